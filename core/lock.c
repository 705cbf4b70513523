/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * lock: taking and giving, and the per-thread list of ranks that makes the order a checked one.
 *
 * A thread's token is the address of its own list: unique while the thread lives, never 0.
 * The check costs a look at a list that is almost always empty or of one.
 *
 * What may never happen: a thread waiting for a lock whose rank is not above all it holds.
 */
#include "lock.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "util.h"

#define LOCKS_HELD_MAX 16u

struct lock_held {
    unsigned count;
    const struct lock *locks[LOCKS_HELD_MAX];
};

static _Thread_local struct lock_held lock_held;

static uint64_t lock_token(void)
{
    return (uint64_t)(uintptr_t)&lock_held;
}

static void lock_must(int r, const struct lock *l, const char *what)
{
    if (r == 0)
        return;
    (void)fprintf(stderr, "lock %s: %s: error %d\n", l->name, what, r);
    abort();
}

static void lock_check_rank(const struct lock *l)
{
    for (unsigned i = 0; i < lock_held.count; i++) {
        if (lock_held.locks[i]->rank < l->rank)
            continue;
        (void)fprintf(stderr, "lock order: %s (rank %d) taken while %s (rank %d) is held\n", l->name, (int)l->rank,
                      lock_held.locks[i]->name, (int)lock_held.locks[i]->rank);
        abort();
    }
}

static void lock_note_taken(struct lock *l)
{
    assert(lock_held.count < LOCKS_HELD_MAX);
    lock_held.locks[lock_held.count++] = l;
    atomic_store_explicit(&l->owner, lock_token(), memory_order_relaxed);
}

void lock_init(struct lock *l, const char *name, enum lock_rank rank)
{
    l->name = name;
    l->rank = rank;
    atomic_init(&l->owner, 0);
    lock_must(pthread_mutex_init(&l->mutex, NULL), l, "init");
}

void lock_fini(struct lock *l)
{
    assert(atomic_load(&l->owner) == 0);
    lock_must(pthread_mutex_destroy(&l->mutex), l, "destroy");
}

void lock_take(struct lock *l)
{
    lock_check_rank(l); /* also catches taking it twice: its own rank is not above itself */
    lock_must(pthread_mutex_lock(&l->mutex), l, "take");
    lock_note_taken(l);
}

bool lock_try(struct lock *l)
{
    if (lock_is_mine(l))
        return false;
    if (pthread_mutex_trylock(&l->mutex) != 0)
        return false;
    lock_note_taken(l);
    return true;
}

void lock_give(struct lock *l)
{
    unsigned i = lock_held.count;

    lock_assert_held(l);
    while (i > 0 && lock_held.locks[i - 1] != l)
        i--;
    assert(i > 0);
    for (; i < lock_held.count; i++)
        lock_held.locks[i - 1] = lock_held.locks[i];
    lock_held.count--;
    atomic_store_explicit(&l->owner, 0, memory_order_relaxed);
    lock_must(pthread_mutex_unlock(&l->mutex), l, "give");
}

bool lock_is_mine(const struct lock *l)
{
    /* Only this thread stores its own token, so a stale value of another's can never look like it. */
    return atomic_load_explicit(&l->owner, memory_order_relaxed) == lock_token();
}

bool lock_wait(struct lock *l, pthread_cond_t *cond, uint64_t deadline_mono_ns)
{
    int r;

    lock_assert_held(l);
    atomic_store_explicit(&l->owner, 0, memory_order_relaxed);
    if (deadline_mono_ns == 0) {
        r = pthread_cond_wait(cond, &l->mutex);
    } else {
        struct timespec ts = {.tv_sec = (time_t)(deadline_mono_ns / NS_PER_S),
                              .tv_nsec = (long)(deadline_mono_ns % NS_PER_S)};
        r = pthread_cond_timedwait(cond, &l->mutex, &ts);
    }
    atomic_store_explicit(&l->owner, lock_token(), memory_order_relaxed);
    if (r == ETIMEDOUT)
        return false;
    lock_must(r, l, "wait");
    return true;
}

void lock_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    int r;

    r = pthread_condattr_init(&attr);
    assert(r == 0);
    r = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    assert(r == 0);
    r = pthread_cond_init(cond, &attr);
    assert(r == 0);
    (void)pthread_condattr_destroy(&attr); /* holds nothing after init */
}
