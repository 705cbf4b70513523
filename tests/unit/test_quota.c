/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: the quota is never passed, whoever races, and room is made only for what can fit.
 * Method: a make_room that counts its calls; then threads that reserve and release while a bound is watched. */
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "quota.h"
#include "util.h"

struct room {
    struct quota *q;
    uint64_t evictable_bytes;
    unsigned calls;
};

static int make_room(void *ctx, uint64_t want_bytes)
{
    struct room *room = ctx;
    uint64_t bytes = MIN(want_bytes, room->evictable_bytes);

    room->calls++;
    if (bytes == 0)
        return -ENOSPC;
    room->evictable_bytes -= bytes;
    quota_release(room->q, bytes);
    return 0;
}

static void reserves_up_to_the_limit_and_no_further(void)
{
    struct quota q;

    quota_init(&q, 100);
    CHECK(quota_try_reserve(&q, 60));
    CHECK(!quota_try_reserve(&q, 41));
    CHECK(quota_try_reserve(&q, 40));
    CHECK(!quota_try_reserve(&q, UINT64_MAX));
    CHECK_EQ(quota_available(&q), 0);
    quota_charge(&q, 50);
    CHECK_EQ(quota_charged(&q), 150);
    CHECK_EQ(quota_available(&q), 0);
    CHECK(quota_try_reserve(&q, 0));
    quota_release(&q, 150);
    CHECK_EQ(quota_charged(&q), 0);
}

static void evicts_only_for_what_can_fit(void)
{
    struct quota q;
    struct room room = {.q = &q, .evictable_bytes = 90};

    quota_init(&q, 100);
    q.make_room = make_room;
    q.ctx = &room;
    CHECK_OK(quota_reserve(&q, 100));
    CHECK_EQ(quota_reserve(&q, 101), -ENOSPC);
    CHECK_EQ(room.calls, 0);
    CHECK_OK(quota_reserve(&q, 50));
    CHECK_EQ(room.calls, 1);
    CHECK_EQ(room.evictable_bytes, 40);
    CHECK_EQ(quota_reserve(&q, 60), -ENOSPC);
    CHECK(quota_charged(&q) <= 100);
}

static struct quota shared;
static _Atomic uint64_t really_used;

static void count_low(void *ctx)
{
    ((struct room *)ctx)->calls++;
}

/* Who evicts is woken while there is still room for a moment's writes, and not before. */
static void says_when_it_runs_low(void)
{
    struct quota q;
    struct room room = {.q = &q};

    quota_init(&q, 6400);
    q.running_low = count_low;
    q.ctx = &room;
    CHECK_EQ(quota_spare(&q), 100);
    CHECK_OK(quota_reserve(&q, 6325));
    CHECK_EQ(room.calls, 0);
    CHECK_OK(quota_reserve(&q, 1));
    CHECK_EQ(room.calls, 1);
    quota_release(&q, 1000);
    CHECK(!quota_is_low(&q));
    CHECK_OK(quota_reserve(&q, 900));
    CHECK_EQ(room.calls, 1);
}

static void *reserve_and_release(void *arg)
{
    uint64_t mine = 0;
    unsigned seed = (unsigned)(uintptr_t)arg;

    for (int i = 0; i < 100000; i++) {
        uint64_t bytes = (uint64_t)(rand_r(&seed) % 50);
        if (mine > 0 && rand_r(&seed) % 2) {
            atomic_fetch_sub(&really_used, mine);
            quota_release(&shared, mine);
            mine = 0;
        } else if (quota_try_reserve(&shared, bytes)) {
            uint64_t before = atomic_fetch_add(&really_used, bytes);
            CHECK(before + bytes <= 100);
            mine += bytes;
        }
    }
    atomic_fetch_sub(&really_used, mine);
    quota_release(&shared, mine);
    return NULL;
}

static void threads_never_pass_the_limit(void)
{
    pthread_t threads[4];

    quota_init(&shared, 100);
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, reserve_and_release, (void *)(uintptr_t)(i + 1)), 0);
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(quota_charged(&shared), 0);
}

int main(void)
{
    RUN(reserves_up_to_the_limit_and_no_further);
    RUN(evicts_only_for_what_can_fit);
    RUN(says_when_it_runs_low);
    RUN(threads_never_pass_the_limit);
    return 0;
}
