/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * lock: a mutex that knows its name, its rank and its owner.
 *
 * Ranks rise along the order written at the top of cache.h. Taking a lock of a rank not above every
 * rank this thread holds is a bug and aborts, in every build: a deadlock found here costs a restart,
 * one found by a user costs the mount.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum lock_rank {
    LOCK_RANK_FILE = 5,
    LOCK_RANK_CONTENT = 10,
    LOCK_RANK_CHECKPOINT = 12,
    LOCK_RANK_RECLAIM = 15,
    LOCK_RANK_CACHE = 20,
    LOCK_RANK_STORE = 30,
    LOCK_RANK_JOURNAL_FILE = 40,
    LOCK_RANK_JOURNAL = 50,
    LOCK_RANK_EVENTS = 60,
    LOCK_RANK_LEAF = 90,
};

struct lock {
    pthread_mutex_t mutex;
    const char *name; /* (c) */
    enum lock_rank rank; /* (c) */
    _Atomic uint64_t owner; /* thread token, 0 when free */
};

void lock_init(struct lock *l, const char *name, enum lock_rank rank);
void lock_fini(struct lock *l);
void lock_take(struct lock *l);
bool lock_try(struct lock *l); /* exempt from the rank order */
void lock_give(struct lock *l);
bool lock_is_mine(const struct lock *l);
#define lock_assert_held(l) assert(lock_is_mine(l))
#define lock_assert_not_held(l) assert(!lock_is_mine(l))

/* Waits on cond with l held (CLOCK_MONOTONIC). false when deadline_ns (0: none) passed. */
bool lock_wait(struct lock *l, pthread_cond_t *cond, uint64_t deadline_mono_ns);
/* A condition variable whose deadlines are CLOCK_MONOTONIC. */
void lock_cond_init(pthread_cond_t *cond);
