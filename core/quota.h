/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quota: the one accountant of what the store takes on disk.
 *
 * Everything that can grow a file of the store reserves the growth here first and gives back what it
 * did not need. charged_bytes is therefore, at every instant, at least what `du -s --block-size=1 STORE`
 * would print (C1). quota knows nothing of keys: who must leave when a reservation fails is decided by
 * the owner's `make_room`; that some should leave ahead of need is said by `running_low`.
 *
 * Invariant Q1: charged_bytes <= limit_bytes, unless the limit was lowered under what is stored.
 * Thread safety: lock-free; make_room is called with no lock of quota's held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct quota {
    _Atomic uint64_t charged_bytes;
    _Atomic uint64_t limit_bytes;
    /* Evicts until so many bytes are available; 0 when it is worth trying again (another may have been faster),
     * -ENOSPC when nothing more can leave. May block, take the reclaim, cache, store and journal locks (never call with one of them held). */
    int (*make_room)(void *ctx, uint64_t want_bytes);
    /* After a reservation that left little of the spare. Any number of times, from any thread, with locks of the store's
     * held: it only wakes who evicts. NULL: nobody is to be told. */
    void (*running_low)(void *ctx);
    void *ctx;
};

void quota_init(struct quota *q, uint64_t limit_bytes);
/* Never waits, never evicts. */
bool quota_try_reserve(struct quota *q, uint64_t bytes);
/* Evicts as needed. -ENOSPC: cannot fit even with everything evictable gone (nothing is sacrificed to learn
 * that a value larger than the limit cannot fit). */
int quota_reserve(struct quota *q, uint64_t bytes);
/* For what exists already (found at mount, or grew behind our back): may pass the limit. */
void quota_charge(struct quota *q, uint64_t bytes);
void quota_release(struct quota *q, uint64_t bytes);
uint64_t quota_charged(const struct quota *q);
uint64_t quota_limit(const struct quota *q);
uint64_t quota_available(const struct quota *q); /* 0 when over */
/* What eviction keeps available ahead of need: enough for the burst of a moment, little enough not to waste the limit. */
uint64_t quota_spare(const struct quota *q);
bool quota_is_low(const struct quota *q); /* less than most of the spare is available */
