/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * arena: records of up to 512 bytes, each named by the 4-byte unit it begins at (16 GiB at most), so that a record takes
 * what it needs and not a slot. Records never move and never change their size class: an index that once began a record
 * always does, though perhaps another one. Not thread safe.
 *
 * What is in a record is the caller's, but for its first four bytes while it is free. Unit 0 is never handed out.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "slab.h"

#define ARENA_UNIT_BYTES 4u
#define ARENA_CHUNK_UNITS (SLAB_CHUNK_BYTES / ARENA_UNIT_BYTES)
#define ARENA_RECORD_BYTES_MAX 512u
#define ARENA_CLASSES (ARENA_RECORD_BYTES_MAX / ARENA_UNIT_BYTES + 1)

struct arena {
    char **chunks;
    uint32_t chunk_count, chunk_room;
    uint32_t free_heads[ARENA_CLASSES];
    uint64_t live_count;
};

void arena_fini(struct arena *a);
/* What is in it is not said. -ENOMEM. */
int arena_take(struct arena *a, size_t bytes, uint32_t *ret_index);
void arena_give(struct arena *a, uint32_t index, size_t bytes); /* bytes: of the same class as it was taken with */
/* index was taken before (its record may be free again by now). */
static inline void *arena_at(const struct arena *a, uint32_t index)
{
    return a->chunks[index / ARENA_CHUNK_UNITS] + (size_t)(index % ARENA_CHUNK_UNITS) * ARENA_UNIT_BYTES;
}
uint32_t arena_index(const void *record);
/* For walks over all records, free ones included: the one behind that at index, which takes `bytes` (index 0: the first);
 * 0 at the end. */
uint32_t arena_next(const struct arena *a, uint32_t index, size_t bytes);
uint64_t arena_memory(const struct arena *a);
