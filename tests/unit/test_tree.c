/* SPDX-License-Identifier: BSD-2-Clause */
/* Nodes and names in memory: what is found, and what it costs. */
#include "tree.h"

#include "check.h"
#include "util.h"

#define MANY 200000u

static struct tree *new_tree(struct node **ret_root)
{
    struct tree *t;

    CHECK_OK(tree_new(&t));
    CHECK_OK(node_restore(t, NODE_ROOT_SLOT, S_IFDIR | 0755, ret_root));
    tree_raise_generation(t, 2);
    return t;
}

static size_t name_of(uint32_t i, char name[32])
{
    return (size_t)snprintf(name, 32, "name-%06u", i);
}

static void add(struct tree *t, struct node *dir, struct node *n, uint32_t i)
{
    char name[32];
    size_t bytes = name_of(i, name);

    CHECK_OK(tree_link(t, dir, n, name, bytes, NULL));
}

static struct dentry *find(struct tree *t, const struct node *dir, uint32_t i)
{
    char name[32];
    size_t bytes = name_of(i, name);

    return tree_find(t, node_slot(t, dir), name, bytes);
}

static void check_all(struct tree *t, const struct node *dir, const struct node *const *nodes)
{
    for (uint32_t i = 0; i < MANY; i++) {
        struct dentry *d = find(t, dir, i);

        CHECK(d != NULL);
        CHECK(tree_slot(t, d->node) == nodes[i]);
    }
    CHECK(find(t, dir, MANY) == NULL);
}

static void empty(struct tree *t, struct node *root)
{
    while (root->first_child) {
        struct dentry *d = tree_dentry(t, root->first_child);
        struct node *n = tree_slot(t, d->node);

        tree_unlink(t, d);
        node_free(t, n);
    }
}

/* One after the other, as clients make them; and all nodes before the first name, as a checkpoint tells them. */
static void names_are_found_however_they_came(void)
{
    static const struct node *nodes[MANY];

    for (int all_nodes_first = 0; all_nodes_first < 2; all_nodes_first++) {
        struct node *root, *n;
        struct tree *t = new_tree(&root);

        for (uint32_t i = 0; i < MANY; i++) {
            CHECK_OK(node_new(t, S_IFREG | 0644, &n));
            nodes[i] = n;
            if (!all_nodes_first)
                add(t, root, n, i);
        }
        for (uint32_t i = 0; all_nodes_first && i < MANY; i++)
            add(t, root, tree_slot(t, node_slot(t, nodes[i])), i);
        check_all(t, root, nodes);
        for (uint32_t i = 0; i < MANY; i += 2)
            tree_unlink(t, find(t, root, i));
        for (uint32_t i = 0; i < MANY; i++)
            CHECK_EQ(find(t, root, i) != NULL, i % 2);
        for (uint32_t i = 0; i < MANY; i += 2)
            add(t, root, tree_slot(t, node_slot(t, nodes[i])), i);
        check_all(t, root, nodes);
        empty(t, root);
        tree_free(t);
    }
}

/* Each insertion used to make the table longer, also where a name had just gone. */
static void names_that_come_and_go_leave_nothing_behind(void)
{
    struct tree_totals before, after;
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    for (uint32_t i = 0; i < 2 * MANY; i++) {
        if (i == 1000)
            tree_totals(t, &before);
        CHECK_OK(node_new(t, S_IFREG | 0644, &n));
        add(t, root, n, i);
        tree_unlink(t, find(t, root, i));
        node_free(t, n);
    }
    tree_totals(t, &after);
    CHECK_EQ(after.memory_bytes, before.memory_bytes);
    tree_free(t);
}

/* ---- what a node has, whether it fits into one or not ---- */

#define WRITTEN_STEP (1u << 16)

static void check_times(struct tree *t, struct node *n, const struct node_times *want)
{
    struct node_times got;

    node_set_times(t, n, want);
    node_times(t, n, &got);
    CHECK(got.atime_ns == want->atime_ns);
    CHECK(got.mtime_ns == want->mtime_ns);
    CHECK(got.ctime_ns == want->ctime_ns);
    CHECK(got.written_ns == want->written_ns / WRITTEN_STEP * WRITTEN_STEP); /* wherever it is kept */
}

static void times_are_kept_to_the_nanosecond(void)
{
    static const int64_t near[] = {0, 1, 999, UINT32_MAX - 1ll, UINT32_MAX, UINT32_MAX + 1ll, -1, 3600ll * 1000000000};
    static const int64_t bases[] = {0, 1700000000123456789, -5, INT64_MIN, INT64_MAX};
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    CHECK_OK(node_new(t, S_IFREG | 0644, &n));
    for (size_t i = 0; i < ARRAY_COUNT(bases); i++)
        for (size_t j = 0; j < ARRAY_COUNT(near) * ARRAY_COUNT(near) * ARRAY_COUNT(near); j++) {
            uint64_t base = (uint64_t)bases[i];
            struct node_times times = {
                .mtime_ns = bases[i],
                .atime_ns = (int64_t)(base - (uint64_t)near[j % 8]),
                .ctime_ns = (int64_t)(base + (uint64_t)near[j / 8 % 8]),
                .written_ns = base + (uint64_t)near[j / 64],
            };
            check_times(t, n, &times);
            check_times(t, root, &times);
        }
    node_free(t, n);
    tree_free(t);
}

/* It did, by a step each time: a key that is touched again and again would have expired early. */
static void the_last_write_does_not_move_with_mtime(void)
{
    struct node_times times = {.atime_ns = 1, .mtime_ns = 1000000001, .ctime_ns = 1000000002, .written_ns = 1000000003}, got;
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    CHECK_OK(node_new(t, S_IFREG | 0644, &n));
    node_set_times(t, n, &times);
    for (int i = 0; i < 1000; i++) {
        node_set_changed(t, n, 1000000001 + i * 7001);
        node_times(t, n, &got);
        CHECK(got.written_ns == 1000000003 / WRITTEN_STEP * WRITTEN_STEP);
    }
    tree_free(t);
}

/* Setting one of them moves no other. */
static void counts_and_owners_do_not_mind_each_other(void)
{
    static const uint32_t counts[] = {0, 1, 255, 256, 70000, UINT32_MAX, 3};
    struct node_times times = {.atime_ns = 5, .mtime_ns = 7, .ctime_ns = 9, .written_ns = 7}, got;
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    CHECK_OK(node_new(t, S_IFSOCK | 0644, &n));
    node_set_times(t, n, &times);
    for (uint32_t i = 0; i < 7 * 7 * 4; i++) {
        node_set_lookups(t, n, counts[i % 7]);
        node_set_hits(t, n, counts[i / 7 % 7]);
        node_set_owner(t, n, 04700 | i / 49, i, UINT32_MAX - i);
        node_set_ctime(t, n, i % 3 ? 9 : -9);
        CHECK_EQ(node_lookups(t, n), counts[i % 7]);
        CHECK_EQ(node_hits(t, n), counts[i / 7 % 7]);
        CHECK_EQ(node_mode(t, n), S_IFSOCK | 04700 | i / 49);
        CHECK_EQ(node_uid(t, n), i);
        CHECK_EQ(node_gid(t, n), UINT32_MAX - i);
        node_times(t, n, &got);
        CHECK(got.ctime_ns == (i % 3 ? 9 : -9));
        CHECK(got.atime_ns == 5);
        CHECK(got.mtime_ns == 7);
    }
    node_free(t, n);
    tree_free(t);
}

#define OWNERS (65535u + 500u)

static void more_owners_than_are_numbered(void)
{
    static struct node *nodes[OWNERS];
    struct node *root;
    struct tree *t = new_tree(&root);

    for (uint32_t i = 0; i < OWNERS; i++) {
        CHECK_OK(node_new(t, S_IFREG | 0600, &nodes[i]));
        node_set_owner(t, nodes[i], 0640, i, 2 * i);
    }
    for (uint32_t i = 0; i < OWNERS; i++) {
        CHECK_EQ(node_uid(t, nodes[i]), i);
        CHECK_EQ(node_gid(t, nodes[i]), 2 * i);
        CHECK_EQ(node_mode(t, nodes[i]), S_IFREG | 0640);
        node_set_owner(t, nodes[i], 0600, 1, 1);
        CHECK_EQ(node_uid(t, nodes[i]), 1);
        node_free(t, nodes[i]);
    }
    tree_free(t);
}

static void check_value(struct tree *t, struct node *n, const struct value *want)
{
    struct value got;

    CHECK_OK(node_set_value(t, n, want));
    node_value(t, n, &got);
    CHECK_EQ(got.kind, want->kind);
    CHECK_EQ(got.codec, want->codec);
    CHECK_EQ(got.unsealed, want->unsealed);
    CHECK(got.size_bytes == want->size_bytes);
    CHECK(got.stored_bytes == want->stored_bytes);
    CHECK(got.big_id == want->big_id);
    CHECK_EQ(got.place.segment_no, want->place.segment_no);
    CHECK_EQ(got.place.offset, want->place.offset);
    CHECK_EQ(got.sums_place.segment_no, want->sums_place.segment_no);
    CHECK_EQ(got.sums_place.offset, want->sums_place.offset);
    CHECK_EQ(got.sums_bytes, want->sums_bytes);
}

static void values_are_kept_whatever_their_size(void)
{
    static const uint64_t sizes[] = {0, 1, (1u << 23) - 1, 1u << 23, UINT32_MAX, INT64_MAX};
    static const uint32_t places[] = {8, (1u << 26) - 8, 1u << 26, UINT32_MAX - 7};
    static const uint32_t segments[] = {1, (1u << 27) - 1, 1u << 27, UINT32_MAX};
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    CHECK_OK(node_new(t, S_IFREG | 0644, &n));
    for (uint32_t i = 0; i < 6 * 6 * 4 * 4; i++) {
        struct value v = {.kind = VALUE_SEGMENT,
                          .codec = i % 2 ? CODEC_LZ4 : CODEC_RAW,
                          .size_bytes = sizes[i % 6],
                          .stored_bytes = sizes[i / 6 % 6],
                          .place = {.segment_no = segments[i / 36 % 4], .offset = places[i / 144]}};
        struct value big = {.kind = VALUE_RAW, .unsealed = i % 2, .size_bytes = v.size_bytes, .stored_bytes = 9, .big_id = i + 1,
                            .sums_place = v.place, .sums_bytes = 16};
        check_value(t, n, &v);
        if (i % 5 == 0)
            check_value(t, n, &big);
        if (i % 7 == 0)
            check_value(t, n, &(struct value){.kind = VALUE_EMPTY});
    }
    node_free(t, n);
    tree_free(t);
}

/* What does not fit is given back when it fits again: it would be there for good. */
static void what_fits_again_takes_no_more_than_before(void)
{
    struct tree_totals before, after;
    struct node *root, *n, *other;
    struct tree *t = new_tree(&root);

    CHECK_OK(node_new(t, S_IFREG | 0644, &n));
    node_set_hits(t, n, 1000);
    node_set_hits(t, n, 0);
    tree_totals(t, &before);
    for (unsigned i = 0; i < 100; i++) {
        CHECK_OK(node_new(t, S_IFREG | 0644, &other));
        node_set_lookups(t, other, 1000);
        node_set_lookups(t, other, 0);
        node_set_ctime(t, other, -1);
        node_set_ctime(t, other, 1);
    }
    tree_totals(t, &after);
    CHECK_EQ(after.memory_bytes - before.memory_bytes, 100 * sizeof(struct node));
    tree_free(t);
}

/* ---- several names of a node ---- */

#define NAMES 64u
#define NODES 8u

/* Which node each name leads to, by the tree and by what it should be; and the nodes' lists of names agree. */
static void check_names(struct tree *t, const struct node *dir, struct node *const nodes[NODES], const int model[NAMES])
{
    for (uint32_t k = 0; k < NODES; k++) {
        uint32_t want = 0, listed = 0;

        for (uint32_t i = 0; i < NAMES; i++)
            want += model[i] == (int)k;
        for (struct dentry *d = tree_dentry(t, nodes[k]->first_dentry); d; d = tree_dentry(t, dentry_next_name(d))) {
            CHECK(tree_slot(t, d->node) == nodes[k]);
            listed++;
        }
        CHECK_EQ(listed, want);
        CHECK_EQ(node_nlink(t, nodes[k]), want);
    }
    for (uint32_t i = 0; i < NAMES; i++) {
        struct dentry *d = find(t, dir, i);

        CHECK_EQ(d != NULL, model[i] >= 0);
        if (d)
            CHECK(tree_slot(t, d->node) == nodes[model[i]]);
    }
}

static void check_listing(struct tree *t, const struct node *dir)
{
    uint64_t cookie = 0;
    uint32_t count = 0;

    for (struct dentry *d = tree_dentry(t, dir->first_child); d; d = tree_dentry(t, d->next)) {
        CHECK(dentry_cookie(d) > cookie);
        CHECK(tree_seek(t, dir, cookie, 0) == d);
        cookie = dentry_cookie(d);
        count++;
    }
    CHECK_EQ(count, node_child_count(t, dir));
}

static void move_over(struct tree *t, struct node *dir, int model[NAMES], uint32_t from, uint32_t to)
{
    struct dentry *d = find(t, dir, from), *over = find(t, dir, to);
    char name[32];
    size_t bytes = name_of(to, name);

    CHECK_OK(tree_move(t, d, dir, name, bytes, &d));
    if (over)
        tree_unlink(t, over);
    model[to] = model[from];
    model[from] = -1;
}

static void exchange(struct tree *t, struct node *dir, int model[NAMES], uint32_t a, uint32_t b)
{
    struct dentry *one = find(t, dir, a), *other = find(t, dir, b);
    int was = model[a];

    CHECK_OK(tree_exchange(t, &one, &other));
    CHECK(one == find(t, dir, a));
    CHECK(other == find(t, dir, b));
    model[a] = model[b];
    model[b] = was;
}

static void names_are_linked_moved_and_exchanged(void)
{
    struct node *nodes[NODES], *root;
    struct tree *t = new_tree(&root);
    int model[NAMES];
    uint64_t random = 88172645463325252u;

    memset(model, -1, sizeof(model));
    for (uint32_t k = 0; k < NODES; k++)
        CHECK_OK(node_new(t, S_IFREG | 0644, &nodes[k]));
    for (uint32_t step = 0; step < 40000; step++) {
        uint32_t a, b;

        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        a = (uint32_t)(random >> 8) % NAMES;
        b = (uint32_t)(random >> 16) % NAMES;
        if (model[a] < 0) {
            model[a] = (int)((random >> 24) % NODES);
            add(t, root, nodes[model[a]], a);
        } else if (random >> 40 & 1) {
            tree_unlink(t, find(t, root, a));
            model[a] = -1;
        } else if (a != b && model[b] >= 0 && random >> 41 & 1) {
            exchange(t, root, model, a, b);
        } else if (a != b) {
            move_over(t, root, model, a, b);
        }
        if (step % 64 == 0) {
            check_names(t, root, nodes, model);
            check_listing(t, root);
        }
    }
    tree_free(t);
}

int main(void)
{
    RUN(times_are_kept_to_the_nanosecond);
    RUN(the_last_write_does_not_move_with_mtime);
    RUN(counts_and_owners_do_not_mind_each_other);
    RUN(more_owners_than_are_numbered);
    RUN(values_are_kept_whatever_their_size);
    RUN(what_fits_again_takes_no_more_than_before);
    RUN(names_are_linked_moved_and_exchanged);
    RUN(names_are_found_however_they_came);
    RUN(names_that_come_and_go_leave_nothing_behind);
    return 0;
}
