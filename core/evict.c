/* SPDX-License-Identifier: BSD-2-Clause */
/* evict: see evict.h. */
#include "evict.h"

#include "util.h"

void evict_init(struct evict *e)
{
    *e = (struct evict){0};
}

static void list_remove(const struct tree *t, uint32_t *head, uint32_t *tail, struct node *n)
{
    if (n->lru_prev)
        tree_slot(t, n->lru_prev)->lru_next = n->lru_next;
    else
        *head = n->lru_next;
    if (n->lru_next)
        tree_slot(t, n->lru_next)->lru_prev = n->lru_prev;
    else
        *tail = n->lru_prev;
    n->lru_prev = n->lru_next = 0;
}

/* Puts n behind `before` (0: first). */
static void list_insert(const struct tree *t, uint32_t *head, uint32_t *tail, struct node *n, uint32_t before)
{
    uint32_t slot = node_slot(t, n);
    uint32_t after = before ? tree_slot(t, before)->lru_next : *head;

    n->lru_prev = before;
    n->lru_next = after;
    if (before)
        tree_slot(t, before)->lru_next = slot;
    else
        *head = slot;
    if (after)
        tree_slot(t, after)->lru_prev = slot;
    else
        *tail = slot;
}

void evict_forget(struct evict *e, const struct tree *t, struct node *n)
{
    if (n->flags & NODE_LISTED) {
        list_remove(t, &e->warm, &e->cold, n);
        e->listed--;
    } else if (n->flags & NODE_HELD) {
        list_remove(t, &e->held_head, &e->held_tail, n);
        e->held--;
    }
    n->flags &= ~(unsigned)(NODE_LISTED | NODE_HELD);
}

void evict_use(struct evict *e, const struct tree *t, struct node *n, uint64_t now_ns)
{
    e->newest_use_ns = MAX(e->newest_use_ns + 1, now_ns);
    n->used_ns = e->newest_use_ns; /* keeps E1 */
    if (!node_is_evictable(n))
        return;
    if ((n->flags & NODE_LISTED) && e->warm == node_slot(t, n))
        return;
    evict_forget(e, t, n);
    list_insert(t, &e->warm, &e->cold, n, 0);
    n->flags |= NODE_LISTED; /* keeps E2 */
    e->listed++;
}

struct node *evict_coldest(const struct evict *e, const struct tree *t)
{
    return tree_slot(t, e->cold);
}

void evict_hold(struct evict *e, const struct tree *t, struct node *n)
{
    evict_forget(e, t, n);
    list_insert(t, &e->held_head, &e->held_tail, n, e->held_tail);
    n->flags |= NODE_HELD;
    e->held++;
}

/* Held nodes were the coldest, so their place is near the cold end. */
void evict_unhold(struct evict *e, const struct tree *t, struct node *n)
{
    uint32_t before = e->cold;

    if (!(n->flags & NODE_HELD))
        return;
    evict_forget(e, t, n);
    while (before && tree_slot(t, before)->used_ns < n->used_ns)
        before = tree_slot(t, before)->lru_prev;
    list_insert(t, &e->warm, &e->cold, n, before);
    n->flags |= NODE_LISTED;
    e->listed++;
}

void evict_unhold_all(struct evict *e, const struct tree *t)
{
    while (e->held_tail)
        evict_unhold(e, t, tree_slot(t, e->held_tail));
}

#define KEYS_FEW 8192u

struct use_key {
    uint64_t used_ns;
    uint32_t slot;
};

static int key_compare(const void *a, const void *b) /* qsort */
{
    const struct use_key *x = a, *y = b;

    if (x->used_ns != y->used_ns)
        return x->used_ns < y->used_ns ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* Least significant digit first, 16 bits a pass; a pass in which all digits agree is skipped. Few are not worth
 * the table. */
static int keys_sort(struct use_key *keys, struct use_key *spare, size_t count)
{
    _cleanup_free_ size_t *starts = NULL;

    if (count < KEYS_FEW) {
        qsort(keys, count, sizeof(*keys), key_compare);
        return 0;
    }
    starts = calloc(65536, sizeof(*starts));
    if (!starts)
        return -ENOMEM;
    for (unsigned shift = 0; shift < 64; shift += 16) {
        size_t sum = 0;
        memset(starts, 0, 65536 * sizeof(*starts));
        for (size_t i = 0; i < count; i++)
            starts[keys[i].used_ns >> shift & 0xffff]++;
        if (starts[keys[0].used_ns >> shift & 0xffff] == count)
            continue;
        for (size_t d = 0; d < 65536; d++) {
            size_t here = starts[d];
            starts[d] = sum;
            sum += here;
        }
        for (size_t i = 0; i < count; i++)
            spare[starts[keys[i].used_ns >> shift & 0xffff]++] = keys[i];
        memcpy(keys, spare, count * sizeof(*keys));
    }
    return 0;
}

/* From the coldest on. Equal stamps (damage) get distinct ones: keeps E1. */
static void list_sorted(struct evict *e, const struct tree *t, const struct use_key *keys, size_t count)
{
    assert(e->listed == 0);
    for (size_t i = 0; i < count; i++) {
        struct node *n = tree_slot(t, keys[i].slot);

        e->newest_use_ns = MAX(e->newest_use_ns + 1, keys[i].used_ns);
        n->used_ns = e->newest_use_ns;
        n->lru_next = i > 0 ? keys[i - 1].slot : 0;
        n->lru_prev = i + 1 < count ? keys[i + 1].slot : 0;
        n->flags |= NODE_LISTED; /* keeps E2 */
    }
    e->cold = count > 0 ? keys[0].slot : 0;
    e->warm = count > 0 ? keys[count - 1].slot : 0;
    e->listed = count;
}

int evict_rebuild(struct evict *e, const struct tree *t)
{
    _cleanup_free_ struct use_key *keys = NULL;
    struct tree_totals totals;
    bool sorted = true;
    size_t count = 0;

    tree_totals(t, &totals);
    keys = malloc((totals.nodes + 1) * 2 * sizeof(*keys));
    if (!keys)
        return -ENOMEM;
    for (uint32_t s = tree_next_slot(t, 0); s; s = tree_next_slot(t, s)) {
        struct node *n = tree_slot(t, s);
        if (!n || !node_is_evictable(n) || !n->first_dentry)
            continue;
        sorted &= count == 0 || keys[count - 1].used_ns <= n->used_ns;
        keys[count++] = (struct use_key){.used_ns = n->used_ns, .slot = s};
    }
    if (!sorted && keys_sort(keys, keys + totals.nodes + 1, count) < 0)
        return -ENOMEM;
    list_sorted(e, t, keys, count);
    return 0;
}
