/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quota: reserve before growing, evict when there is no room, give back what was not needed.
 *
 * One counter, changed by compare-and-swap, so that no two writers can both take the last bytes (keeps Q1).
 *
 * What may never happen: charged_bytes below what is on disk; a release of what was never charged.
 */
#include "quota.h"

#include <assert.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#include "util.h"

/* Each try follows a make_room that said it freed something: others took it. So many times in a row is a bug,
 * not bad luck, and must not become a loop without end. */
#define QUOTA_TRIES_MAX 100000u
#define QUOTA_TRIES_BEFORE_YIELD 8u
#define QUOTA_SPARE_SHARE 64u
#define QUOTA_SPARE_BYTES_MAX (32 * MIB)

void quota_init(struct quota *q, uint64_t limit_bytes)
{
    atomic_init(&q->charged_bytes, 0);
    atomic_init(&q->limit_bytes, limit_bytes);
    q->make_room = NULL;
    q->running_low = NULL;
    q->ctx = NULL;
}

bool quota_try_reserve(struct quota *q, uint64_t bytes)
{
    uint64_t charged = atomic_load_explicit(&q->charged_bytes, memory_order_relaxed);
    uint64_t sum;

    do {
        if (add_overflows(charged, bytes, &sum))
            return false;
        if (bytes > 0 && sum > quota_limit(q))
            return false;
    } while (!atomic_compare_exchange_weak(&q->charged_bytes, &charged, sum));
    return true;
}

int quota_reserve(struct quota *q, uint64_t bytes)
{
    for (unsigned tries = 0; tries < QUOTA_TRIES_MAX; tries++) {
        int r;

        if (quota_try_reserve(q, bytes)) {
            if (q->running_low && quota_is_low(q))
                q->running_low(q->ctx);
            return 0;
        }
        if (bytes > quota_limit(q))
            return -ENOSPC;
        if (!q->make_room)
            return -ENOSPC;
        if (tries >= QUOTA_TRIES_BEFORE_YIELD)
            (void)sched_yield(); /* cannot fail on Linux */
        r = q->make_room(q->ctx, bytes);
        if (r < 0)
            return r == -ENOSPC && quota_try_reserve(q, bytes) ? 0 : r;
    }
    return -ENOSPC;
}

void quota_charge(struct quota *q, uint64_t bytes)
{
    uint64_t before = atomic_fetch_add(&q->charged_bytes, bytes);

    assert(before + bytes >= before);
}

void quota_release(struct quota *q, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub(&q->charged_bytes, bytes);

    assert(before >= bytes);
}

uint64_t quota_charged(const struct quota *q)
{
    return atomic_load(&q->charged_bytes);
}

uint64_t quota_limit(const struct quota *q)
{
    return atomic_load_explicit(&q->limit_bytes, memory_order_relaxed);
}

uint64_t quota_available(const struct quota *q)
{
    uint64_t charged = quota_charged(q);
    uint64_t limit = quota_limit(q);

    return charged < limit ? limit - charged : 0;
}

uint64_t quota_spare(const struct quota *q)
{
    return MIN(quota_limit(q) / QUOTA_SPARE_SHARE, QUOTA_SPARE_BYTES_MAX);
}

bool quota_is_low(const struct quota *q)
{
    uint64_t spare = quota_spare(q);

    return quota_available(q) < spare - spare / 4;
}
