/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * evict: the order in which keys leave. Exact LRU by last use; a use moves a node to the warm end.
 *
 * Open and pinned nodes are not victims. They stay where their last use put them until they would be the
 * next to leave; then they go to the held list, and come back to their place when they are closed or
 * unpinned (evict_unhold). So a thousand pinned keys are looked at once, not at every eviction.
 *
 * evict chooses, it frees nothing. Not thread safe: the cache lock covers it.
 *
 * Invariant E1: the recency list is sorted by used_ns, which is unique per node and never decreases.
 * Invariant E2: every linked evictable node that is in the journal or being written is in exactly one of
 * the two lists (NODE_LISTED or NODE_HELD), never both.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tree.h"

struct evict {
    uint32_t warm, cold;           /* ends of the recency list: slots */
    uint32_t held_head, held_tail;
    uint64_t listed, held;
    uint64_t newest_use_ns;        /* uses are numbered strictly upwards */
};

void evict_init(struct evict *e);
/* A use at now_ns: stamps the node and moves it to the warm end. The first one lists it. */
void evict_use(struct evict *e, const struct tree *t, struct node *n, uint64_t now_ns);
/* The node leaves the lists (unlinked, evicted). Fine if it is in neither. */
void evict_forget(struct evict *e, const struct tree *t, struct node *n);
/* The coldest node, or NULL. The caller takes it (evict_forget) or holds it (evict_hold) and asks again. */
struct node *evict_coldest(const struct evict *e, const struct tree *t);
void evict_hold(struct evict *e, const struct tree *t, struct node *n);
void evict_unhold(struct evict *e, const struct tree *t, struct node *n); /* fine if it is not held */
void evict_unhold_all(struct evict *e, const struct tree *t);
/* Recovery: builds the list from every linked evictable node's used_ns. -ENOMEM. */
int evict_rebuild(struct evict *e, const struct tree *t);
