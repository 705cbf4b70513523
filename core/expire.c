/* SPDX-License-Identifier: BSD-2-Clause */
/* expire: see expire.h. Buckets are growable arrays of (slot, tick); a level's bucket is spread over the level
 * below when the clock reaches it. */
#include "expire.h"

#define LEVELS 4u
#define BUCKETS 256u
#define BUCKET_BITS 8u

struct look {
    uint32_t slot, tick;
};

struct bucket {
    struct look *looks;
    uint32_t count, room;
};

struct expire {
    uint64_t start_ns; /* tick 0 */
    uint32_t tick;     /* every bucket below is empty; the one of this tick may be half taken */
    struct bucket buckets[LEVELS][BUCKETS];
};

int expire_new(uint64_t now_ns, struct expire **ret_expire)
{
    struct expire *x = calloc(1, sizeof(*x));

    if (!x)
        return -ENOMEM;
    x->start_ns = now_ns - now_ns % EXPIRE_TICK_NS;
    x->tick = 1; /* 0 means "not armed" */
    *ret_expire = x;
    return 0;
}

void expire_free(struct expire *x)
{
    if (!x)
        return;
    for (uint32_t level = 0; level < LEVELS; level++)
        for (uint32_t i = 0; i < BUCKETS; i++)
            free(x->buckets[level][i].looks);
    free(x);
}

static int bucket_add(struct bucket *b, struct look look)
{
    if (b->count == b->room) {
        uint32_t room = MAX(8u, b->room * 2);
        struct look *looks = realloc(b->looks, room * sizeof(*looks));
        if (!looks)
            return -ENOMEM;
        b->looks = looks;
        b->room = room;
    }
    b->looks[b->count++] = look;
    return 0;
}

static void bucket_clear(struct bucket *b)
{
    free(b->looks);
    *b = (struct bucket){0};
}

/* The lowest level whose span still tells look.tick apart from now. */
static int wheel_insert(struct expire *x, struct look look)
{
    uint32_t differ = look.tick ^ x->tick;
    uint32_t level = differ == 0 ? 0 : (31u - (uint32_t)__builtin_clz(differ)) / BUCKET_BITS;

    return bucket_add(&x->buckets[level][look.tick >> (level * BUCKET_BITS) & (BUCKETS - 1)], look);
}

int expire_arm(struct expire *x, struct node *n, uint32_t slot, uint64_t deadline_ns)
{
    uint64_t tick = deadline_ns <= x->start_ns ? 0 : (deadline_ns - x->start_ns + EXPIRE_TICK_NS - 1) / EXPIRE_TICK_NS;
    struct look look;
    int r;

    tick = MAX(tick, x->tick);
    tick = MIN(tick, UINT32_MAX);
    if (n->armed != 0 && n->armed <= tick)
        return 0;
    look = (struct look){.slot = slot, .tick = (uint32_t)tick};
    r = wheel_insert(x, look);
    if (r < 0)
        return r;
    n->armed = look.tick;
    return 0;
}

/* The clock has reached a multiple of a level's span: what waited there moves down. */
static void wheel_cascade(struct expire *x)
{
    for (uint32_t level = 1; level < LEVELS; level++) {
        struct bucket *b, taken;
        if (x->tick & ((1u << (level * BUCKET_BITS)) - 1))
            break;
        b = &x->buckets[level][x->tick >> (level * BUCKET_BITS) & (BUCKETS - 1)];
        taken = *b;
        *b = (struct bucket){0};
        for (uint32_t i = 0; i < taken.count; i++)
            if (wheel_insert(x, taken.looks[i]) < 0) {
                /* no memory: keep the rest where the next lap finds it; lookups still see every deadline */
                (void)bucket_add(b, taken.looks[i]);
            }
        free(taken.looks);
    }
}

uint32_t expire_take_due(struct expire *x, const struct tree *t, uint64_t now_ns, uint32_t *slots, uint32_t slots_max)
{
    uint64_t now_tick = now_ns <= x->start_ns ? 0 : (now_ns - x->start_ns) / EXPIRE_TICK_NS;
    uint32_t count = 0;

    while (x->tick <= now_tick && x->tick < UINT32_MAX) {
        struct bucket *b = &x->buckets[0][x->tick & (BUCKETS - 1)];
        while (b->count > 0) {
            struct look look;
            struct node *n;
            if (count == slots_max)
                return count;
            look = b->looks[--b->count];
            n = tree_slot(t, look.slot);
            if (!n || n->armed != look.tick)
                continue; /* gone, or armed for another tick since */
            n->armed = 0;
            slots[count++] = look.slot;
        }
        bucket_clear(b);
        x->tick++;
        wheel_cascade(x);
    }
    return count;
}
