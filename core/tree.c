/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tree: names; see tree.h for the model and its invariants, node.c for what a node has.
 *
 * The hash of a name is xxh3 seeded with a random number and the parent's slot. Eight bits of it are kept; the rest is
 * computed again for the few names of a bucket that is divided. A checkpoint tells all nodes before the first name: then
 * the table is made for that many at once.
 *
 * A dentry can tell the next name of its node only where it was made as a further one: most nodes have one name in all
 * their life. So a further name goes to the front of the node's list (keeps T4), and one that takes the place of another
 * (tree_move, tree_exchange) is made anew where it lacks what it needs.
 */
#define XXH_INLINE_ALL
#include <sys/random.h>
#include <xxhash.h>

#include "tree_internal.h"

#define TREE_MAGIC 0x65657254u
#define DENTRY_FIXED_BYTES offsetof(struct dentry, name)

_Static_assert(DENTRY_FIXED_BYTES == 23, "a dentry is 23 bytes and its name");
_Static_assert(DENTRY_FIXED_BYTES + NAME_BYTES_MAX + sizeof(uint32_t) <= ARENA_RECORD_BYTES_MAX, "any name has room");

int tree_new(struct tree **ret_tree)
{
    struct tree *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->magic = TREE_MAGIC;
    node_init_slabs(t);
    t->next_generation = 1;
    if (getrandom(&t->seed, sizeof(t->seed), GRND_NONBLOCK) != sizeof(t->seed))
        t->seed = (uintptr_t)t; /* early at boot: an address is better than nothing */
    if (bucket_init(&t->table) < 0) {
        tree_free(t);
        return -ENOMEM;
    }
    *ret_tree = t;
    return 0;
}

void tree_free(struct tree *t)
{
    if (!t)
        return;
    CHECK_OBJ(t, TREE_MAGIC);
    node_fini_slabs(t);
    arena_fini(&t->dentries);
    bucket_fini(&t->table);
    t->magic = 0;
    free(t);
}

/* ---- which node ---- */

struct node *tree_slot(const struct tree *t, uint32_t slot)
{
    struct node *n;

    if (slot == 0 || slot > t->nodes.used_max)
        return NULL;
    n = slab_at_or_null(&t->nodes, slot);
    return n && n->generation != 0 ? n : NULL;
}

struct node *tree_node(const struct tree *t, uint64_t id)
{
    struct node *n = tree_slot(t, id_slot(id));

    if (id == NODE_ROOT_SLOT) /* the root's id carries no generation: fixed by FUSE */
        return n;
    return n && n->generation == id_generation(id) ? n : NULL;
}

uint32_t node_slot(const struct tree *t, const struct node *n)
{
    return slab_index(&t->nodes, n);
}

uint64_t node_id(const struct tree *t, const struct node *n)
{
    uint32_t slot = node_slot(t, n);

    return slot == NODE_ROOT_SLOT ? slot : (uint64_t)n->generation << 32 | slot;
}

/* ---- one name ---- */

static uint64_t name_hash(const struct tree *t, uint32_t parent_slot, const char *name, size_t bytes)
{
    return XXH3_64bits_withSeed(name, bytes, t->seed ^ parent_slot);
}

static struct dentry *dentry_at(const struct tree *t, uint32_t index)
{
    return arena_at(&t->dentries, index);
}

static size_t dentry_name_bytes(const struct dentry *d)
{
    return (size_t)d->name_last + 1;
}

static size_t dentry_bytes(const struct dentry *d)
{
    return DENTRY_FIXED_BYTES + dentry_name_bytes(d) + (d->cookie_high & DENTRY_CHAINED ? sizeof(uint32_t) : 0);
}

static uint64_t dentry_hash(const void *ctx, uint32_t index) /* bucket_hash */
{
    const struct tree *t = ctx;
    const struct dentry *d = dentry_at(t, index);

    return name_hash(t, d->parent, d->name, dentry_name_bytes(d));
}

struct dentry *tree_dentry(const struct tree *t, uint32_t index)
{
    struct dentry *d = index ? dentry_at(t, index) : NULL;

    return d && d->node ? d : NULL;
}

uint32_t dentry_index(const struct tree *t, const struct dentry *d)
{
    (void)t;
    return arena_index(d);
}

const char *dentry_name(const struct tree *t, const struct dentry *d, size_t *ret_bytes)
{
    (void)t;
    *ret_bytes = dentry_name_bytes(d);
    return d->name;
}

uint32_t dentry_next_name(const struct dentry *d)
{
    return d->cookie_high & DENTRY_CHAINED ? read_le32((const char *)d + DENTRY_FIXED_BYTES + dentry_name_bytes(d)) : 0;
}

static void dentry_set_next_name(struct dentry *d, uint32_t index)
{
    assert(index == 0 || d->cookie_high & DENTRY_CHAINED); /* keeps T4 */
    if (d->cookie_high & DENTRY_CHAINED)
        write_le32((char *)d + DENTRY_FIXED_BYTES + dentry_name_bytes(d), index);
}

/* A record with that name, in no list. */
static int dentry_new(struct tree *t, const char *name, size_t name_bytes, bool chained, uint32_t *ret_index)
{
    struct dentry *d;
    int r = arena_take(&t->dentries, DENTRY_FIXED_BYTES + name_bytes + (chained ? sizeof(uint32_t) : 0), ret_index);

    if (r < 0)
        return r;
    assert(name_bytes >= 1);
    assert(name_bytes <= NAME_BYTES_MAX);
    d = dentry_at(t, *ret_index);
    memset(d, 0, DENTRY_FIXED_BYTES);
    d->cookie_high = chained ? DENTRY_CHAINED : 0;
    d->name_last = (uint8_t)(name_bytes - 1);
    memcpy(d->name, name, name_bytes);
    dentry_set_next_name(d, 0);
    t->name_bytes += name_bytes;
    return 0;
}

static void dentry_free(struct tree *t, struct dentry *d, uint32_t index)
{
    t->name_bytes -= dentry_name_bytes(d);
    d->node = 0;
    arena_give(&t->dentries, index, dentry_bytes(d));
}

struct dentry *tree_find(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes)
{
    struct bucket_cursor c;
    uint32_t index = bucket_first(&c, &t->table, name_hash(t, parent_slot, name, name_bytes));

    for (; index != 0; index = bucket_next(&c)) {
        struct dentry *d = dentry_at(t, index);

        if (d->parent == parent_slot && dentry_name_bytes(d) == name_bytes && memcmp(d->name, name, name_bytes) == 0)
            return d;
    }
    return NULL;
}

void tree_expect(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes)
{
    bucket_prefetch(&t->table, name_hash(t, parent_slot, name, name_bytes));
}

/* ---- its places: siblings, the node's names, the table ---- */

static void siblings_append(struct tree *t, struct node *parent, struct dentry *d, uint32_t index)
{
    struct node_more *m = node_more(t, parent);
    uint64_t cookie = m->next_cookie++;

    d->cookie_low = (uint32_t)cookie; /* 47 bits: a million new names a second for four years */
    d->cookie_high = (uint16_t)((d->cookie_high & DENTRY_CHAINED) | (cookie >> 32 & ~DENTRY_CHAINED));
    d->prev = parent->last_child;
    d->next = 0;
    if (parent->last_child)
        dentry_at(t, parent->last_child)->next = index;
    else
        parent->first_child = index;
    parent->last_child = index;
    m->child_count++;
}

static void siblings_remove(struct tree *t, struct node *parent, struct dentry *d)
{
    if (d->prev)
        dentry_at(t, d->prev)->next = d->next;
    else
        parent->first_child = d->next;
    if (d->next)
        dentry_at(t, d->next)->prev = d->prev;
    else
        parent->last_child = d->prev;
    node_more(t, parent)->child_count--;
}

/* Keeps T2. */
static void count_name(struct tree *t, const struct dentry *d, struct node *n, int delta)
{
    node_count_names(t, node_is_dir(n) ? tree_slot(t, d->parent) : n, delta);
}

static void node_attach(struct tree *t, struct dentry *d, uint32_t index, struct node *n)
{
    count_name(t, d, n, 1);
    d->node = node_slot(t, n);
    dentry_set_next_name(d, n->first_dentry);
    n->first_dentry = index;
}

static struct dentry *name_before(const struct tree *t, const struct node *n, uint32_t index)
{
    struct dentry *d = n->first_dentry == index ? NULL : dentry_at(t, n->first_dentry);

    while (d && dentry_next_name(d) != index)
        d = dentry_at(t, dentry_next_name(d));
    return d;
}

static void node_detach(struct tree *t, struct dentry *d, uint32_t index)
{
    struct node *n = tree_slot(t, d->node);
    struct dentry *before = name_before(t, n, index);

    if (before)
        dentry_set_next_name(before, dentry_next_name(d));
    else
        n->first_dentry = dentry_next_name(d);
    count_name(t, d, n, -1);
}

/* A dentry of that name for n, which may have other names. Not yet in the node's list. */
static int name_new(struct tree *t, struct node *parent, bool chained, const char *name, size_t name_bytes,
                    struct dentry **ret_dentry)
{
    uint32_t parent_slot = node_slot(t, parent), index;
    struct dentry *d;
    int r;

    assert(node_is_dir(parent));
    r = dentry_new(t, name, name_bytes, chained, &index);
    if (r < 0)
        return r;
    d = dentry_at(t, index);
    d->parent = parent_slot;
    if (t->table.count == 0)
        bucket_fit(&t->table, t->nodes.live_count);
    r = bucket_add(&t->table, name_hash(t, parent_slot, name, name_bytes), index);
    if (r < 0) {
        dentry_free(t, d, index);
        return r;
    }
    siblings_append(t, parent, d, index);
    *ret_dentry = d;
    return 0;
}

int tree_link(struct tree *t, struct node *parent, struct node *n, const char *name, size_t name_bytes,
              struct dentry **ret_dentry)
{
    struct dentry *d;
    int r;

    if (!node_is_dir(n) && node_nlink(t, n) > NLINK_MAX)
        return -EMLINK;
    r = name_new(t, parent, n->first_dentry != 0, name, name_bytes, &d);
    if (r < 0)
        return r;
    node_attach(t, d, arena_index(d), n);
    bucket_grow(&t->table, dentry_hash, t);
    if (ret_dentry)
        *ret_dentry = d;
    return 0;
}

/* The node's list is done with. */
static void name_drop(struct tree *t, struct dentry *d, uint32_t index)
{
    bucket_remove(&t->table, dentry_hash(t, index), index);
    siblings_remove(t, tree_slot(t, d->parent), d);
    dentry_free(t, d, index);
}

void tree_unlink(struct tree *t, struct dentry *d)
{
    uint32_t index = arena_index(d);

    node_detach(t, d, index);
    name_drop(t, d, index);
}

int tree_move(struct tree *t, struct dentry *d, struct node *parent, const char *name, size_t name_bytes,
              struct dentry **ret_dentry)
{
    struct node *n = tree_slot(t, d->node);
    uint32_t index = arena_index(d);
    struct dentry *moved;
    bool is_only = n->first_dentry == index && dentry_next_name(d) == 0;
    int r = name_new(t, parent, !is_only, name, name_bytes, &moved);

    if (r < 0)
        return r;
    node_detach(t, d, index);
    node_attach(t, moved, arena_index(moved), n);
    name_drop(t, d, index);
    bucket_grow(&t->table, dentry_hash, t);
    *ret_dentry = moved;
    return 0;
}

/* ---- exchange ---- */

/* The same name in the same places, in a record that can tell the node's next name. */
static int dentry_chain(struct tree *t, struct dentry **d_ptr)
{
    struct dentry *d = *d_ptr, *chained;
    struct node *parent = tree_slot(t, d->parent), *n = tree_slot(t, d->node);
    uint32_t index = arena_index(d), new_index;
    int r;

    if (d->cookie_high & DENTRY_CHAINED)
        return 0;
    r = dentry_new(t, d->name, dentry_name_bytes(d), true, &new_index);
    if (r < 0)
        return r;
    chained = dentry_at(t, new_index);
    memcpy(chained, d, DENTRY_FIXED_BYTES);
    chained->cookie_high |= DENTRY_CHAINED;
    *(d->prev ? &dentry_at(t, d->prev)->next : &parent->first_child) = new_index;
    *(d->next ? &dentry_at(t, d->next)->prev : &parent->last_child) = new_index;
    if (n->first_dentry == index)
        n->first_dentry = new_index;
    else
        dentry_set_next_name(name_before(t, n, index), new_index);
    bucket_replace(&t->table, dentry_hash(t, index), index, new_index);
    dentry_free(t, d, index);
    *d_ptr = chained;
    return 0;
}

int tree_exchange(struct tree *t, struct dentry **one, struct dentry **other)
{
    struct node *n = tree_slot(t, (*one)->node), *m = tree_slot(t, (*other)->node);
    uint32_t one_index, other_index;
    int r = 0;

    if (n == m)
        return 0;
    if (node_nlink(t, m) > 1 && !node_is_dir(m)) /* *one joins other names */
        r = dentry_chain(t, one);
    if (r == 0 && node_nlink(t, n) > 1 && !node_is_dir(n))
        r = dentry_chain(t, other);
    if (r < 0)
        return r;
    one_index = arena_index(*one);
    other_index = arena_index(*other);
    node_detach(t, *one, one_index);
    node_detach(t, *other, other_index);
    node_attach(t, *one, one_index, m);
    node_attach(t, *other, other_index, n);
    return 0;
}

/* ---- walks ---- */

uint32_t tree_next_dentry(const struct tree *t, uint32_t index)
{
    return arena_next(&t->dentries, index, index ? dentry_bytes(dentry_at(t, index)) : 0);
}

struct dentry *tree_seek(const struct tree *t, const struct node *dir, uint64_t cookie, uint32_t hint)
{
    struct dentry *d = tree_dentry(t, hint);

    if (d && d->parent == node_slot(t, dir) && dentry_cookie(d) == cookie)
        return tree_dentry(t, d->next);
    d = tree_dentry(t, dir->last_child);
    if (!d || dentry_cookie(d) <= cookie)
        return NULL;
    for (d = tree_dentry(t, dir->first_child); d && dentry_cookie(d) <= cookie; d = tree_dentry(t, d->next))
        ;
    return d;
}

struct node *tree_parent(const struct tree *t, const struct node *n)
{
    const struct dentry *d = tree_dentry(t, n->first_dentry);

    return d ? tree_slot(t, d->parent) : NULL;
}

bool tree_is_above(const struct tree *t, const struct node *maybe_above, const struct node *n)
{
    for (; n; n = tree_parent(t, n))
        if (n == maybe_above)
            return true;
    return false;
}

size_t tree_path(const struct tree *t, const struct node *n, char *out, size_t out_bytes)
{
    size_t at = out_bytes, bytes;

    if (!n->first_dentry) {
        memcpy(out, "/", 1);
        return 1;
    }
    for (const struct dentry *d; (d = tree_dentry(t, n->first_dentry)); n = tree_slot(t, d->parent)) {
        const char *name = dentry_name(t, d, &bytes);
        if (at < bytes + 1 + 3) {
            at -= 3;
            memcpy(out + at, "...", 3);
            break;
        }
        at -= bytes;
        memcpy(out + at, name, bytes);
        out[--at] = '/';
    }
    memmove(out, out + at, out_bytes - at);
    return out_bytes - at;
}

void tree_totals(const struct tree *t, struct tree_totals *ret_totals)
{
    *ret_totals = (struct tree_totals){
        .nodes = t->nodes.live_count,
        .directories = t->directories,
        .extended = t->exts.live_count,
        .dentries = t->dentries.live_count,
        .name_bytes = t->name_bytes,
        .tlv_bytes = t->tlv_bytes,
        .memory_bytes = slab_memory(&t->nodes) + slab_memory(&t->mores) + slab_memory(&t->exts) +
                        arena_memory(&t->dentries) + bucket_memory(&t->table) + t->tlv_bytes,
    };
}
