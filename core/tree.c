/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tree: see tree.h for the model and its invariants.
 *
 * Buckets of the name table are chains of dentry indexes; the table has bucket_count of them, of which those
 * below `split` are already divided for the next doubling. The hash is xxh3 of the name seeded with a random number and
 * the parent's slot; 16 bits of it are kept, the rest is computed again for the few entries of a bucket being split. A
 * checkpoint tells all nodes before the first name: then the table is made for that many at once.
 */
#include "tree.h"

#define XXH_INLINE_ALL
#include <sys/random.h>
#include <xxhash.h>

#include "names.h"
#include "slab.h"

#define BUCKETS_PER_CHUNK 16384u
#define BUCKETS_MIN 1024u
#define BUCKETS_MAX (1u << 30)

#define TREE_MAGIC 0x65657254u

struct tree {
    uint32_t magic;
    struct slab nodes, dentries, exts;
    struct names names;
    uint32_t **buckets; /* chunks of BUCKETS_PER_CHUNK heads */
    uint32_t bucket_chunks;
    uint32_t bucket_round; /* buckets at the start of this doubling; power of two */
    uint32_t split;        /* next bucket to divide */
    uint32_t next_generation;
    uint64_t directories, tlv_bytes;
    uint64_t seed; /* random: names made to collide would make every lookup walk all of them */
};

_Static_assert(sizeof(struct node) <= SLAB_SLOT_BYTES_MAX, "a node fits a slab slot");
_Static_assert(sizeof(struct dentry) == 36, "a dentry is nine words");
_Static_assert(sizeof(struct node_ext) <= SLAB_SLOT_BYTES_MAX, "an extension fits a slab slot");

static uint32_t *bucket_at(const struct tree *t, uint32_t bucket)
{
    return &t->buckets[bucket / BUCKETS_PER_CHUNK][bucket % BUCKETS_PER_CHUNK];
}

static int buckets_need(struct tree *t, uint32_t bucket)
{
    uint32_t chunk = bucket / BUCKETS_PER_CHUNK;

    if (chunk < t->bucket_chunks)
        return 0;
    uint32_t **chunks = realloc(t->buckets, (chunk + 1) * sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    t->buckets = chunks;
    t->buckets[chunk] = calloc(BUCKETS_PER_CHUNK, sizeof(uint32_t));
    if (!t->buckets[chunk])
        return -ENOMEM;
    t->bucket_chunks = chunk + 1;
    return 0;
}

int tree_new(struct tree **ret_tree)
{
    struct tree *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->magic = TREE_MAGIC;
    slab_init(&t->nodes, sizeof(struct node), offsetof(struct node, lru_next));
    slab_init(&t->dentries, sizeof(struct dentry), offsetof(struct dentry, hash_next));
    slab_init(&t->exts, sizeof(struct node_ext), offsetof(struct node_ext, sums_bytes));
    t->bucket_round = BUCKETS_MIN;
    t->next_generation = 1;
    if (getrandom(&t->seed, sizeof(t->seed), GRND_NONBLOCK) != sizeof(t->seed))
        t->seed = (uintptr_t)t; /* early at boot: an address is better than nothing */
    if (buckets_need(t, BUCKETS_MIN) < 0) {
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
    for (uint32_t i = slab_next(&t->exts, 0); i != 0; i = slab_next(&t->exts, i))
        free(((struct node_ext *)slab_at(&t->exts, i))->tlv);
    slab_fini(&t->exts);
    slab_fini(&t->nodes);
    slab_fini(&t->dentries);
    names_fini(&t->names);
    for (uint32_t i = 0; i < t->bucket_chunks; i++)
        free(t->buckets[i]);
    free(t->buckets);
    t->magic = 0;
    free(t);
}

/* ---- nodes ---- */

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

static void node_init(struct tree *t, struct node *n, uint32_t generation, uint32_t mode)
{
    n->generation = generation;
    n->mode = mode;
    if (node_is_dir(n)) {
        n->nlink = 2;
        n->next_cookie = 1;
        t->directories++;
    }
}

int node_new(struct tree *t, uint32_t mode, struct node **ret_node)
{
    uint32_t slot;
    int r;

    if (t->next_generation >= NODE_GENERATION_MAX)
        return -ENOSPC;
    r = slab_take(&t->nodes, &slot);
    if (r < 0)
        return r;
    *ret_node = slab_at(&t->nodes, slot);
    node_init(t, *ret_node, t->next_generation++, mode);
    return 0;
}

static void node_drop_names(struct tree *t, struct node *n)
{
    while (n->first_dentry)
        tree_unlink(t, tree_dentry(t, n->first_dentry));
    while (node_is_dir(n) && n->first_child)
        tree_unlink(t, tree_dentry(t, n->first_child));
}

int node_restore(struct tree *t, uint64_t id, uint32_t mode, struct node **ret_node)
{
    uint32_t slot = id_slot(id), generation = id_generation(id);
    struct node *n;
    int r;

    if (slot == NODE_ROOT_SLOT && generation == 0)
        generation = 1;
    if (slot == 0 || slot > NODE_SLOT_MAX || generation == 0 || generation > NODE_GENERATION_MAX)
        return -EBADMSG;
    n = tree_slot(t, slot);
    if (n && n->generation > generation)
        return -EEXIST;
    if (n && n->generation == generation && (n->mode & S_IFMT) == (mode & S_IFMT)) {
        *ret_node = n;
        return 0;
    }
    if (slot == NODE_ROOT_SLOT && (mode & S_IFMT) != S_IFDIR)
        return -EBADMSG;
    if (n) {
        node_drop_names(t, n);
        node_free(t, n);
        t->nodes.free_head = 0; /* rebuilt after recovery: this slot is taken again right here */
    }
    r = slab_take_at(&t->nodes, slot);
    if (r < 0)
        return r;
    n = slab_at(&t->nodes, slot);
    node_init(t, n, generation, mode);
    t->next_generation = MAX(t->next_generation, generation + 1);
    *ret_node = n;
    return 0;
}

static int node_slot_is_free(const void *slot)
{
    return ((const struct node *)slot)->generation == 0;
}

void tree_raise_generation(struct tree *t, uint32_t next)
{
    t->next_generation = MAX(t->next_generation, next);
    slab_rebuild_free(&t->nodes, node_slot_is_free);
}

void node_free(struct tree *t, struct node *n)
{
    assert(n->first_dentry == 0);
    if (n->ext) {
        struct node_ext *x = slab_at(&t->exts, n->ext);
        t->tlv_bytes -= x->tlv_bytes;
        free(x->tlv);
        slab_give(&t->exts, n->ext);
    }
    if (node_is_dir(n)) {
        assert(n->first_child == 0);
        t->directories--;
    }
    slab_give(&t->nodes, node_slot(t, n));
}

uint32_t tree_next_slot(const struct tree *t, uint32_t slot)
{
    return slab_next(&t->nodes, slot);
}

uint32_t tree_next_generation(const struct tree *t)
{
    return t->next_generation;
}

struct node_ext *node_ext(const struct tree *t, const struct node *n)
{
    return n->ext ? slab_at(&t->exts, n->ext) : NULL;
}

int node_ext_need(struct tree *t, struct node *n, struct node_ext **ret_ext)
{
    struct node_ext *x;
    uint32_t index;
    int r;

    if (!n->ext) {
        r = slab_take(&t->exts, &index);
        if (r < 0)
            return r;
        n->ext = index;
        x = slab_at(&t->exts, index);
        x->ttl_ns = x->idle_ns = x->expires_ns = POLICY_UNSET;
        x->pin = x->compress = POLICY_BYTE_UNSET;
    }
    *ret_ext = slab_at(&t->exts, n->ext);
    return 0;
}

void node_set_tlv(struct tree *t, struct node *n, uint8_t **tlv, uint32_t tlv_bytes)
{
    struct node_ext *x = node_ext(t, n);

    assert(x); /* the caller asked for it before it built the bytes */
    t->tlv_bytes += tlv_bytes;
    t->tlv_bytes -= x->tlv_bytes;
    free(x->tlv);
    x->tlv = steal_pointer(tlv);
    x->tlv_bytes = tlv_bytes;
}

void node_drop_tlv(struct tree *t, struct node *n)
{
    uint8_t *none = NULL;

    if (n->ext)
        node_set_tlv(t, n, &none, 0);
}

enum value_kind node_value_kind(const struct node *n)
{
    return (enum value_kind)(n->flags >> NODE_KIND_SHIFT & 7);
}

void node_value(const struct tree *t, const struct node *n, struct value *ret_value)
{
    const struct node_ext *x = node_ext(t, n);

    *ret_value = (struct value){.kind = node_value_kind(n)};
    if (!node_is_file(n))
        return;
    ret_value->size_bytes = n->size_bytes;
    if (ret_value->kind == VALUE_SEGMENT) {
        ret_value->codec = (enum codec)(n->flags >> NODE_CODEC_SHIFT & 3);
        ret_value->stored_bytes = n->stored_bytes;
        ret_value->place = n->place;
    } else if (ret_value->kind != VALUE_EMPTY) {
        assert(x);
        ret_value->unsealed = n->flags & NODE_UNSEALED;
        ret_value->stored_bytes = x->big_stored_bytes;
        ret_value->big_id = x->big_id;
        ret_value->sums_place = x->sums_place;
        ret_value->sums_bytes = x->sums_bytes;
    }
}

int node_set_value(struct tree *t, struct node *n, const struct value *v)
{
    struct node_ext *x = node_ext(t, n);
    bool big = v->kind == VALUE_RAW || v->kind == VALUE_PACKED;
    int r;

    if (big && !x) {
        r = node_ext_need(t, n, &x);
        if (r < 0)
            return r;
    }
    n->flags &= ~(7u << NODE_KIND_SHIFT | 3u << NODE_CODEC_SHIFT | (unsigned)NODE_UNSEALED | (unsigned)NODE_UNVERIFIED);
    n->flags |= (uint32_t)v->kind << NODE_KIND_SHIFT | (uint32_t)v->codec << NODE_CODEC_SHIFT;
    n->size_bytes = v->size_bytes;
    n->place = v->kind == VALUE_SEGMENT ? v->place : (struct place){0};
    n->stored_bytes = v->kind == VALUE_SEGMENT ? (uint32_t)v->stored_bytes : 0;
    if (big) {
        n->flags |= v->unsealed ? (unsigned)NODE_UNSEALED : 0u;
        x->big_id = v->big_id;
        x->big_stored_bytes = v->stored_bytes;
        x->sums_place = v->sums_place;
        x->sums_bytes = v->sums_bytes;
    }
    return 0;
}

/* ---- names ---- */

static uint64_t name_hash(const struct tree *t, uint32_t parent_slot, const char *name, size_t bytes)
{
    return XXH3_64bits_withSeed(name, bytes, t->seed ^ parent_slot);
}

/* Bits that no bucket number has. */
static uint16_t tag_of(uint64_t hash)
{
    return (uint16_t)(hash >> 48);
}

static uint32_t bucket_of(const struct tree *t, uint64_t hash)
{
    uint32_t bucket = (uint32_t)hash & (t->bucket_round - 1);

    return bucket < t->split ? (uint32_t)hash & (t->bucket_round * 2 - 1) : bucket;
}

static uint32_t dentry_bucket(const struct tree *t, const struct dentry *d)
{
    size_t bytes;
    const char *name = dentry_name(t, d, &bytes);

    return bucket_of(t, name_hash(t, d->parent, name, bytes));
}

/* Divides one bucket; without memory for the new one the chains just stay longer. */
static void buckets_split(struct tree *t)
{
    uint32_t from = t->split, index, next;

    if (t->bucket_round >= BUCKETS_MAX || buckets_need(t, t->bucket_round + from) < 0)
        return;
    index = *bucket_at(t, from);
    *bucket_at(t, from) = 0;
    t->split++;
    for (; index != 0; index = next) {
        struct dentry *d = slab_at(&t->dentries, index);
        uint32_t *head = bucket_at(t, dentry_bucket(t, d));
        next = d->hash_next;
        d->hash_next = *head;
        *head = index;
    }
    if (t->split == t->bucket_round) {
        t->bucket_round *= 2;
        t->split = 0;
    }
}

/* Before the first name there is nothing to divide: as many buckets as there are nodes, as far as memory goes. */
static void buckets_fit(struct tree *t)
{
    uint32_t wanted = (uint32_t)MIN(t->nodes.live_count, BUCKETS_MAX), count = t->bucket_round + t->split;

    while (count < wanted && buckets_need(t, count) == 0)
        count = MIN(wanted, (count / BUCKETS_PER_CHUNK + 1) * BUCKETS_PER_CHUNK);
    t->bucket_round = 1u << (31 - __builtin_clz(count));
    t->split = count - t->bucket_round;
}

struct dentry *tree_dentry(const struct tree *t, uint32_t index)
{
    struct dentry *d;

    if (index == 0 || index > t->dentries.used_max)
        return NULL;
    d = slab_at_or_null(&t->dentries, index);
    return d && d->node ? d : NULL;
}

uint32_t dentry_index(const struct tree *t, const struct dentry *d)
{
    return slab_index(&t->dentries, d);
}

const char *dentry_name(const struct tree *t, const struct dentry *d, size_t *ret_bytes)
{
    return names_get(&t->names, d->name, ret_bytes);
}

struct dentry *tree_find(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes)
{
    uint64_t hash = name_hash(t, parent_slot, name, name_bytes);
    struct dentry *d;

    for (uint32_t index = *bucket_at(t, bucket_of(t, hash)); index != 0; index = d->hash_next) {
        const char *own;
        size_t bytes;

        d = slab_at(&t->dentries, index);
        if (d->tag != tag_of(hash) || d->parent != parent_slot)
            continue;
        own = dentry_name(t, d, &bytes);
        if (bytes == name_bytes && memcmp(own, name, bytes) == 0)
            return d;
    }
    return NULL;
}

static void siblings_append(struct tree *t, struct node *parent, struct dentry *d, uint32_t index)
{
    uint64_t cookie = parent->next_cookie++;

    d->cookie_low = (uint32_t)cookie;
    d->cookie_high = (uint16_t)(cookie >> 32); /* 48 bits: a million new names a second for eight years */
    d->prev = parent->last_child;
    d->next = 0;
    if (parent->last_child)
        ((struct dentry *)slab_at(&t->dentries, parent->last_child))->next = index;
    else
        parent->first_child = index;
    parent->last_child = index;
    parent->child_count++;
}

static void siblings_remove(struct tree *t, struct node *parent, struct dentry *d)
{
    if (d->prev)
        ((struct dentry *)slab_at(&t->dentries, d->prev))->next = d->next;
    else
        parent->first_child = d->next;
    if (d->next)
        ((struct dentry *)slab_at(&t->dentries, d->next))->prev = d->prev;
    else
        parent->last_child = d->prev;
    parent->child_count--;
}

static void node_attach(struct tree *t, struct dentry *d, uint32_t index, struct node *n)
{
    struct node *parent = tree_slot(t, d->parent);

    d->node = node_slot(t, n);
    d->node_next = n->first_dentry;
    n->first_dentry = index;
    if (node_is_dir(n))
        parent->nlink++;
    else
        n->nlink++;
}

static void node_detach(struct tree *t, struct dentry *d, uint32_t index)
{
    struct node *n = tree_slot(t, d->node), *parent = tree_slot(t, d->parent);
    uint32_t *link = &n->first_dentry;

    while (*link != index)
        link = &((struct dentry *)slab_at(&t->dentries, *link))->node_next;
    *link = d->node_next;
    if (node_is_dir(n))
        parent->nlink--;
    else
        n->nlink--;
}

int tree_link(struct tree *t, struct node *parent, struct node *n, const char *name, size_t name_bytes,
              struct dentry **ret_dentry)
{
    struct dentry *d;
    uint32_t index, unit, *head;
    uint64_t hash;
    int r;

    assert(node_is_dir(parent));
    if (!node_is_dir(n) && n->nlink > NLINK_MAX) /* one to spare: a rename has both names for a moment */
        return -EMLINK;
    r = names_put(&t->names, name, name_bytes, &unit);
    if (r < 0)
        return r;
    r = slab_take(&t->dentries, &index);
    if (r < 0) {
        names_drop(&t->names, unit);
        return r;
    }
    d = slab_at(&t->dentries, index);
    d->parent = node_slot(t, parent);
    d->name = unit;
    if (t->dentries.live_count == 1)
        buckets_fit(t);
    hash = name_hash(t, d->parent, name, name_bytes);
    d->tag = tag_of(hash);
    head = bucket_at(t, bucket_of(t, hash));
    d->hash_next = *head;
    *head = index;
    siblings_append(t, parent, d, index);
    node_attach(t, d, index, n); /* keeps T2 */
    if (t->dentries.live_count > t->bucket_round + t->split)
        buckets_split(t);
    if (ret_dentry)
        *ret_dentry = d;
    return 0;
}

void tree_unlink(struct tree *t, struct dentry *d)
{
    uint32_t index = dentry_index(t, d);
    uint32_t *link = bucket_at(t, dentry_bucket(t, d));

    while (*link != index)
        link = &((struct dentry *)slab_at(&t->dentries, *link))->hash_next;
    *link = d->hash_next;
    node_detach(t, d, index);
    siblings_remove(t, tree_slot(t, d->parent), d);
    names_drop(&t->names, d->name);
    slab_give(&t->dentries, index);
}

void tree_relink(struct tree *t, struct dentry *d, struct node *n)
{
    uint32_t index = dentry_index(t, d);

    node_detach(t, d, index);
    node_attach(t, d, index, n);
}

uint32_t tree_next_dentry(const struct tree *t, uint32_t index)
{
    return slab_next(&t->dentries, index);
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
        .dentries = t->dentries.live_count,
        .name_bytes = t->names.live_bytes,
        .tlv_bytes = t->tlv_bytes,
        .memory_bytes = slab_memory(&t->nodes) + slab_memory(&t->dentries) + slab_memory(&t->exts) +
                        names_memory(&t->names) + t->tlv_bytes +
                        (uint64_t)t->bucket_chunks * BUCKETS_PER_CHUNK * sizeof(uint32_t),
    };
}
