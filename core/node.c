/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * node: what a node has, and how it is kept in 64 bytes. Decides what fits:
 *
 *   mode, owner   the number of the triple in t->owners, of which there may be 65,535
 *   times         mtime; atime up to 4.29 s before it, ctime up to 4.29 s after it, the time of the last write (another clock)
 *                 within 2.1 s of it, in 2^16 ns: a file that was made, written and renamed
 *   counts        up to 255 uses, up to 255 references of the kernel, one name
 *   value         up to 8 MiB at a place in the segments up to 2^27
 *
 * What does not is in a struct node_more, all but the value, which goes to the struct node_ext like that of a big file. There is
 * always room for one more struct node_more (slab_reserve when the node is made), so nothing here but node_new, node_restore,
 * node_ext_need and a value that needs an extension can fail. It is given back when all fits again.
 */
#include "tree_internal.h"

#define OWNERS_MAX 65535u
#define OWNERS_MIN 16u
#define COUNT_MAX 255u
#define WRITTEN_SHIFT 16u
#define WRITTEN_BIAS (1ull << 15) /* either clock may be ahead of the other */

#define SIZE_BITS 23u
#define OFFSET_LOW_BITS 18u /* of the offset, in value_low; the other 5 are in value_high */
#define SEGMENT_BITS 27u
#define SIZE_MASK ((1u << SIZE_BITS) - 1)

_Static_assert(sizeof(struct node) == 64, "a node is a cache line");
_Static_assert(SLAB_CHUNK_HEADER_BYTES % 64 == 0, "and begins with one");
_Static_assert(sizeof(struct node_more) <= SLAB_SLOT_BYTES_MAX, "it fits a slab slot");
_Static_assert(sizeof(struct node_ext) <= SLAB_SLOT_BYTES_MAX, "an extension fits a slab slot");
_Static_assert(CODEC_LZ4 == 1 && VALUE_PACKED == 3, "codecs have one bit, kinds two");

void node_init_slabs(struct tree *t)
{
    slab_init(&t->nodes, sizeof(struct node), offsetof(struct node, lru_next));
    slab_init(&t->mores, sizeof(struct node_more), offsetof(struct node_more, ext));
    slab_init(&t->exts, sizeof(struct node_ext), offsetof(struct node_ext, sums_bytes));
}

void node_fini_slabs(struct tree *t)
{
    for (uint32_t i = slab_next(&t->exts, 0); i != 0; i = slab_next(&t->exts, i))
        free(((struct node_ext *)slab_at(&t->exts, i))->tlv);
    slab_fini(&t->exts);
    slab_fini(&t->mores);
    slab_fini(&t->nodes);
    free(t->owners.list);
    free(t->owners.slots);
}

struct node_more *node_more(const struct tree *t, const struct node *n)
{
    assert(n->flags & NODE_MORE);
    return slab_at(&t->mores, n->more);
}

/* ---- mode and owner ---- */

static uint32_t owner_slot(const struct tree *t, const struct owner *o)
{
    uint64_t hash = ((uint64_t)o->uid << 32 | o->gid) ^ t->seed;

    hash = (hash ^ hash >> 29 ^ o->mode) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(hash >> 32) & (2 * t->owners.room - 1);
}

static void owners_hash_all(struct tree *t)
{
    struct owners *os = &t->owners;

    for (uint32_t i = 0; i < os->count; i++) {
        uint32_t slot = owner_slot(t, &os->list[i]);
        while (os->slots[slot])
            slot = (slot + 1) & (2 * os->room - 1);
        os->slots[slot] = (uint16_t)(i + 1);
    }
}

static bool owners_grow(struct tree *t)
{
    struct owners *os = &t->owners;
    uint32_t room = MAX(OWNERS_MIN, os->room * 2);
    struct owner *list;
    uint16_t *slots;

    if (os->count >= OWNERS_MAX)
        return false;
    if (os->count < os->room)
        return true;
    slots = calloc(2 * (size_t)room, sizeof(*slots));
    list = slots ? realloc(os->list, room * sizeof(*list)) : NULL;
    if (!list) {
        free(slots);
        return false;
    }
    free(os->slots);
    os->slots = slots;
    os->list = list;
    os->room = room;
    owners_hash_all(t);
    return true;
}

static bool owner_is(const struct owner *a, const struct owner *b)
{
    return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid;
}

/* 0: there are too many, or no memory for one more. */
static uint32_t owner_number(struct tree *t, const struct owner *o)
{
    struct owners *os = &t->owners;
    uint32_t slot;

    if (os->last && owner_is(&os->list[os->last - 1], o))
        return os->last;
    if (!owners_grow(t) && os->room == 0)
        return 0;
    for (slot = owner_slot(t, o); os->slots[slot]; slot = (slot + 1) & (2 * os->room - 1)) {
        if (owner_is(&os->list[os->slots[slot] - 1], o))
            return os->last = os->slots[slot];
    }
    if (os->count == os->room || os->count >= OWNERS_MAX)
        return 0;
    os->list[os->count++] = *o;
    os->slots[slot] = (uint16_t)os->count;
    return os->last = os->count;
}

static struct owner node_owner(const struct tree *t, const struct node *n)
{
    uint32_t number = n->flags >> NODE_OWNER_SHIFT;
    const struct node_more *m;

    if (number)
        return t->owners.list[number - 1];
    m = node_more(t, n);
    return (struct owner){.mode = m->mode, .uid = m->uid, .gid = m->gid};
}

uint32_t node_mode(const struct tree *t, const struct node *n)
{
    return node_owner(t, n).mode;
}

uint32_t node_uid(const struct tree *t, const struct node *n)
{
    return node_owner(t, n).uid;
}

uint32_t node_gid(const struct tree *t, const struct node *n)
{
    return node_owner(t, n).gid;
}

/* ---- what is kept apart ---- */

/* In steps of the clock itself, not from mtime on: it stays what it is when mtime is changed. */
static uint64_t written_packed(const struct node_times *x)
{
    return (x->written_ns >> WRITTEN_SHIFT) - ((uint64_t)x->mtime_ns >> WRITTEN_SHIFT) + WRITTEN_BIAS;
}

static uint64_t written_unpacked(int64_t mtime_ns, uint64_t packed)
{
    return (((uint64_t)mtime_ns >> WRITTEN_SHIFT) + packed - WRITTEN_BIAS) << WRITTEN_SHIFT;
}

static bool times_fit(const struct node_times *x)
{
    uint64_t mtime = (uint64_t)x->mtime_ns; /* unsigned: any two times have a difference */

    return mtime - (uint64_t)x->atime_ns <= UINT32_MAX && (uint64_t)x->ctime_ns - mtime <= UINT32_MAX &&
           written_packed(x) <= UINT16_MAX;
}

static void times_pack(struct node *n, const struct node_times *x)
{
    uint64_t mtime = (uint64_t)x->mtime_ns;

    n->atime_back = (uint32_t)(mtime - (uint64_t)x->atime_ns);
    n->ctime_on = (uint32_t)((uint64_t)x->ctime_ns - mtime);
    n->written_on = (uint16_t)written_packed(x);
}

void node_times(const struct tree *t, const struct node *n, struct node_times *ret_times)
{
    uint64_t mtime = (uint64_t)n->mtime_ns;

    ret_times->mtime_ns = n->mtime_ns;
    if (n->flags & NODE_MORE) {
        const struct node_more *m = node_more(t, n);
        ret_times->atime_ns = m->atime_ns;
        ret_times->ctime_ns = m->ctime_ns;
        ret_times->written_ns = m->written_ns;
        return;
    }
    ret_times->atime_ns = (int64_t)(mtime - n->atime_back);
    ret_times->ctime_ns = (int64_t)(mtime + n->ctime_on);
    ret_times->written_ns = written_unpacked(n->mtime_ns, n->written_on);
}

/* Cannot fail: room for as many as there are nodes was reserved. */
static struct node_more *node_expand(struct tree *t, struct node *n)
{
    struct node_more *m;
    struct node_times times;
    uint32_t slot = 0;
    int r;

    if (n->flags & NODE_MORE)
        return node_more(t, n);
    node_times(t, n, &times);
    r = slab_take(&t->mores, &slot);
    assert(r == 0);
    m = slab_at(&t->mores, slot);
    m->atime_ns = times.atime_ns;
    m->ctime_ns = times.ctime_ns;
    m->written_ns = times.written_ns;
    m->nlink = n->first_dentry != 0;
    m->hits = n->hits;
    m->lookups = n->lookups;
    n->flags |= NODE_MORE;
    n->more = slot;
    return m;
}

/* Gives the struct node_more back if all that is in it fits by now. */
static void node_shrink(struct tree *t, struct node *n)
{
    struct node_more *m = node_more(t, n);
    struct node_times times;
    uint32_t slot = n->more;

    if (m->ext || node_is_dir(n) || m->nlink > 1 || m->hits > COUNT_MAX || m->lookups > COUNT_MAX ||
        n->flags >> NODE_OWNER_SHIFT == 0)
        return;
    node_times(t, n, &times);
    if (!times_fit(&times))
        return;
    n->hits = (uint8_t)m->hits;
    n->lookups = (uint8_t)m->lookups;
    n->flags &= ~(unsigned)NODE_MORE;
    times_pack(n, &times);
    slab_give(&t->mores, slot);
}

void node_set_times(struct tree *t, struct node *n, const struct node_times *times)
{
    struct node_more *m;

    if (!(n->flags & NODE_MORE) && times_fit(times)) {
        n->mtime_ns = times->mtime_ns;
        times_pack(n, times);
        return;
    }
    m = node_expand(t, n);
    n->mtime_ns = times->mtime_ns;
    m->atime_ns = times->atime_ns;
    m->ctime_ns = times->ctime_ns;
    m->written_ns = times->written_ns >> WRITTEN_SHIFT << WRITTEN_SHIFT; /* the same, kept here or there */
    node_shrink(t, n);
}

void node_set_changed(struct tree *t, struct node *n, int64_t now_ns)
{
    struct node_times times;

    node_times(t, n, &times);
    times.mtime_ns = times.ctime_ns = now_ns;
    node_set_times(t, n, &times);
}

void node_set_ctime(struct tree *t, struct node *n, int64_t ctime_ns)
{
    struct node_times times;

    node_times(t, n, &times);
    times.ctime_ns = ctime_ns;
    node_set_times(t, n, &times);
}

uint64_t node_written_ns(const struct tree *t, const struct node *n)
{
    struct node_times times;

    node_times(t, n, &times);
    return times.written_ns;
}

void node_set_written(struct tree *t, struct node *n, uint64_t written_ns)
{
    struct node_times times;

    node_times(t, n, &times);
    times.written_ns = written_ns;
    node_set_times(t, n, &times);
}

void node_set_owner(struct tree *t, struct node *n, uint32_t permissions, uint32_t uid, uint32_t gid)
{
    struct owner o = {.mode = (node_mode(t, n) & S_IFMT) | (permissions & 07777), .uid = uid, .gid = gid};
    uint32_t number = owner_number(t, &o);
    struct node_more *m;

    n->flags = (n->flags & ((1u << NODE_OWNER_SHIFT) - 1)) | number << NODE_OWNER_SHIFT;
    if (number)
        return;
    m = node_expand(t, n);
    m->mode = o.mode;
    m->uid = uid;
    m->gid = gid;
}

void node_set_mode(struct tree *t, struct node *n, uint32_t permissions)
{
    struct owner o = node_owner(t, n);

    node_set_owner(t, n, permissions, o.uid, o.gid);
}

/* ---- counts ---- */

uint32_t node_nlink(const struct tree *t, const struct node *n)
{
    return n->flags & NODE_MORE ? node_more(t, n)->nlink : n->first_dentry != 0;
}

void node_count_names(struct tree *t, struct node *n, int delta)
{
    struct node_more *m;

    if (!(n->flags & NODE_MORE) && n->first_dentry == 0)
        return; /* none or one: that there is one says so */
    m = node_expand(t, n);
    m->nlink += (uint32_t)delta;
    node_shrink(t, n);
}

uint32_t node_lookups(const struct tree *t, const struct node *n)
{
    return n->flags & NODE_MORE ? node_more(t, n)->lookups : n->lookups;
}

void node_set_lookups(struct tree *t, struct node *n, uint32_t lookups)
{
    if (!(n->flags & NODE_MORE) && lookups <= COUNT_MAX) {
        n->lookups = (uint8_t)lookups;
        return;
    }
    node_expand(t, n)->lookups = lookups;
    node_shrink(t, n);
}

uint32_t node_hits(const struct tree *t, const struct node *n)
{
    return n->flags & NODE_MORE ? node_more(t, n)->hits : n->hits;
}

void node_set_hits(struct tree *t, struct node *n, uint32_t hits)
{
    if (!(n->flags & NODE_MORE) && hits <= COUNT_MAX) {
        n->hits = (uint8_t)hits;
        return;
    }
    node_expand(t, n)->hits = hits;
    node_shrink(t, n);
}

uint32_t node_child_count(const struct tree *t, const struct node *dir)
{
    return node_more(t, dir)->child_count;
}

/* ---- nodes ---- */

static enum node_type type_of(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return NODE_TYPE_FILE;
    case S_IFDIR:
        return NODE_TYPE_DIR;
    case S_IFLNK:
        return NODE_TYPE_SYMLINK;
    }
    return NODE_TYPE_SPECIAL;
}

static void node_init(struct tree *t, struct node *n, uint32_t generation, uint32_t mode)
{
    struct owner o = {.mode = mode};
    uint32_t number = owner_number(t, &o);

    n->generation = generation;
    n->flags = (uint32_t)type_of(mode) << NODE_TYPE_SHIFT | number << NODE_OWNER_SHIFT;
    node_set_times(t, n, &(struct node_times){0});
    if (!number)
        node_expand(t, n)->mode = mode;
    if (node_is_dir(n)) {
        struct node_more *m = node_expand(t, n);
        m->nlink = 2;
        m->next_cookie = 1;
        t->directories++;
    }
}

int node_new(struct tree *t, uint32_t mode, struct node **ret_node)
{
    uint32_t slot;
    int r;

    if (t->next_generation >= NODE_GENERATION_MAX)
        return -ENOSPC;
    r = slab_reserve(&t->mores, t->nodes.live_count + 1);
    if (r == 0)
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
    if (n && n->generation == generation && (node_mode(t, n) & S_IFMT) == (mode & S_IFMT)) {
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
    r = slab_reserve(&t->mores, t->nodes.live_count + 1);
    if (r == 0)
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
    struct node_ext *x = node_ext(t, n);

    assert(n->first_dentry == 0);
    if (node_is_dir(n)) {
        assert(n->first_child == 0);
        t->directories--;
    }
    if (x) {
        t->tlv_bytes -= x->tlv_bytes;
        free(x->tlv);
        slab_give(&t->exts, node_more(t, n)->ext);
    }
    if (n->flags & NODE_MORE)
        slab_give(&t->mores, n->more);
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

/* ---- extensions ---- */

struct node_ext *node_ext(const struct tree *t, const struct node *n)
{
    uint32_t slot = n->flags & NODE_MORE ? node_more(t, n)->ext : 0;

    return slot ? slab_at(&t->exts, slot) : NULL;
}

int node_ext_need(struct tree *t, struct node *n, struct node_ext **ret_ext)
{
    struct node_ext *x = node_ext(t, n);
    uint32_t slot;
    int r;

    if (!x) {
        r = slab_take(&t->exts, &slot);
        if (r < 0)
            return r;
        node_expand(t, n)->ext = slot;
        x = slab_at(&t->exts, slot);
        x->ttl_ns = x->idle_ns = x->expires_ns = POLICY_UNSET;
        x->pin = x->compress = POLICY_BYTE_UNSET;
    }
    *ret_ext = x;
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

    if (node_ext(t, n))
        node_set_tlv(t, n, &none, 0);
}

/* ---- values ---- */

enum value_kind node_value_kind(const struct node *n)
{
    return (enum value_kind)(n->flags >> NODE_KIND_SHIFT & 3);
}

/* value_low: size, stored, low bits of the offset / 8; value_high: the other bits of it, segment. */
static bool value_fits(const struct value *v)
{
    return v->kind <= VALUE_SEGMENT && v->size_bytes <= SIZE_MASK && v->stored_bytes <= SIZE_MASK &&
           v->place.offset % 8 == 0 && v->place.offset / 8 <= SIZE_MASK && v->place.segment_no < 1u << SEGMENT_BITS;
}

static void value_pack_in(struct node *n, const struct value *v)
{
    uint32_t offset = v->place.offset / 8;

    n->value_low = v->size_bytes | v->stored_bytes << SIZE_BITS |
                   (uint64_t)offset << 2 * SIZE_BITS; /* its high bits fall off */
    n->value_high = offset >> OFFSET_LOW_BITS | v->place.segment_no << (SIZE_BITS - OFFSET_LOW_BITS);
}

static void value_unpack_from(const struct node *n, struct value *v)
{
    uint32_t high_bits = SIZE_BITS - OFFSET_LOW_BITS;
    uint32_t offset = (uint32_t)(n->value_low >> 2 * SIZE_BITS) | (n->value_high & ((1u << high_bits) - 1)) << OFFSET_LOW_BITS;

    v->stored_bytes = n->value_low >> SIZE_BITS & SIZE_MASK;
    v->place.offset = offset * 8;
    v->place.segment_no = n->value_high >> high_bits;
}

uint64_t node_size(const struct tree *t, const struct node *n)
{
    if (node_is_dir(n))
        return 0;
    return n->flags & NODE_VALUE_APART ? node_more(t, n)->size_bytes : n->value_low & SIZE_MASK;
}

void node_set_target_bytes(struct node *n, uint32_t bytes)
{
    assert(node_is_symlink(n));
    n->value_low = bytes;
}

void node_value(const struct tree *t, const struct node *n, struct value *ret_value)
{
    const struct node_ext *x;

    *ret_value = (struct value){.kind = node_value_kind(n)};
    if (!node_is_file(n))
        return;
    ret_value->size_bytes = node_size(t, n);
    ret_value->codec = (enum codec)(n->flags >> NODE_CODEC_SHIFT & 1);
    if (!(n->flags & NODE_VALUE_APART)) {
        value_unpack_from(n, ret_value);
        return;
    }
    x = node_ext(t, n);
    assert(x);
    ret_value->unsealed = n->flags & NODE_UNSEALED;
    ret_value->stored_bytes = x->big_stored_bytes;
    ret_value->big_id = x->big_id;
    if (ret_value->kind <= VALUE_SEGMENT)
        ret_value->place = x->sums_place;
    else
        ret_value->sums_place = x->sums_place;
    ret_value->sums_bytes = x->sums_bytes;
}

static void value_set_apart(struct tree *t, struct node *n, struct node_ext *x, const struct value *v)
{
    node_more(t, n)->size_bytes = v->size_bytes;
    x->big_id = v->big_id;
    x->big_stored_bytes = v->stored_bytes;
    x->sums_place = v->kind <= VALUE_SEGMENT ? v->place : v->sums_place;
    x->sums_bytes = v->sums_bytes;
}

int node_set_value(struct tree *t, struct node *n, const struct value *v)
{
    bool big = v->kind == VALUE_RAW || v->kind == VALUE_PACKED, apart = !value_fits(v);
    struct node_ext *x = NULL;
    int r;

    assert(node_is_file(n));
    if (apart) {
        r = node_ext_need(t, n, &x);
        if (r < 0)
            return r;
    }
    n->flags &= ~(3u << NODE_KIND_SHIFT | 1u << NODE_CODEC_SHIFT | (unsigned)NODE_UNSEALED | (unsigned)NODE_UNVERIFIED |
                  (unsigned)NODE_VALUE_APART);
    n->flags |= (uint32_t)v->kind << NODE_KIND_SHIFT | (uint32_t)v->codec << NODE_CODEC_SHIFT;
    n->flags |= big && v->unsealed ? (unsigned)NODE_UNSEALED : 0u;
    if (apart) {
        n->flags |= NODE_VALUE_APART;
        value_set_apart(t, n, x, v);
        return 0;
    }
    value_pack_in(n, &(struct value){.size_bytes = v->size_bytes,
                                     .stored_bytes = v->kind == VALUE_SEGMENT ? v->stored_bytes : 0,
                                     .place = v->kind == VALUE_SEGMENT ? v->place : (struct place){0}});
    return 0;
}
