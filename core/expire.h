/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * expire: which nodes may be due? A hierarchical timing wheel (Varghese and Lauck 1987): four levels of 256
 * buckets, ticks of a quarter second, so 34 years. O(1) to arm, no scans.
 *
 * The wheel only remembers "look at this node at that tick"; whether the node is due is the caller's to
 * decide. Deadlines that move away (a use, a rewrite) are not moved in the wheel: the entry fires early, the
 * caller looks, and arms again. A deadline that comes nearer is armed again at once; node->armed says which
 * entry counts, so the old one is dropped when it fires.
 *
 * Invariant X1: a linked node with a deadline has armed != 0 and armed <= tick of its deadline, or its
 * deadline has not passed and it is being looked at.
 * Not thread safe: the cache lock covers it.
 */
#pragma once

#include <stdint.h>

#include "tree.h"

struct expire;

#define EXPIRE_TICK_NS (NS_PER_S / 4)

int expire_new(uint64_t now_ns, struct expire **ret_expire);
void expire_free(struct expire *x);
/* Look at the node at deadline_ns (rounded up to a tick), unless an earlier look is armed already. -ENOMEM. */
int expire_arm(struct expire *x, struct node *n, uint32_t slot, uint64_t deadline_ns);
/* Takes up to slots_max nodes whose look is due at now_ns; their armed is 0 afterwards. Returns how many; call
 * again while it returns slots_max. */
uint32_t expire_take_due(struct expire *x, const struct tree *t, uint64_t now_ns, uint32_t *slots, uint32_t slots_max);
