/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * slab: fixed-size slots named by 32-bit indexes, growing by chunks, so that pointers stay valid and growth
 * never copies. Index 0 is never handed out. Slots come zeroed. Chunks are aligned to their size, so a slot's
 * index follows from its address. Not thread safe.
 *
 * Memory is touched only as slots are used, page by page; a chunk that no slot was taken from is not there at all, so an
 * absurd index read from disk costs two pages, not the room up to it; and many absurd ones are refused (slab_take_at).
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SLAB_CHUNK_SLOTS 8192u
#define SLAB_CHUNK_BYTES (1u << 20)
#define SLAB_CHUNK_HEADER_BYTES 64u
#define SLAB_SLOT_BYTES_MAX ((SLAB_CHUNK_BYTES - SLAB_CHUNK_HEADER_BYTES) / SLAB_CHUNK_SLOTS)
#define SLAB_INDEX_MAX 0x7fffffffu
/* Chunks there may be at recovery with fewer slots in each, on average: those of 33 million keys. */
#define SLAB_SPARSE_CHUNKS_MAX 4096u
#define SLAB_SPARSE_SLOTS_MIN 8u

struct slab {
    uint32_t slot_bytes;
    uint32_t link_offset; /* of a uint32_t in the slot that chains free ones */
    uint32_t chunk_room;
    char **chunks;        /* NULL where no slot was taken */
    uint32_t used_max;    /* highest index taken so far */
    uint32_t free_head;
    uint64_t live_count;
    uint64_t chunk_count;
    int (*is_free)(const void *slot); /* of slab_rebuild_free */
    uint32_t scan_next, scan_end;     /* slots not looked at since: 0 when all were */
};

void slab_init(struct slab *s, uint32_t slot_bytes, uint32_t link_offset);
void slab_fini(struct slab *s);
/* index was taken before (its slot may be free again by now). */
static inline void *slab_at(const struct slab *s, uint32_t index)
{
    return s->chunks[index / SLAB_CHUNK_SLOTS] + SLAB_CHUNK_HEADER_BYTES +
           (size_t)(index % SLAB_CHUNK_SLOTS) * s->slot_bytes;
}
/* NULL when no slot of that chunk was ever taken. */
void *slab_at_or_null(const struct slab *s, uint32_t index);
uint32_t slab_index(const struct slab *s, const void *slot);
int slab_take(struct slab *s, uint32_t *ret_index); /* -ENOMEM */
/* While no more than `count` slots are live, slab_take does not fail. Costs address space alone. Not of a slab that slots are
 * taken from by slab_take_at. -ENOMEM. */
int slab_reserve(struct slab *s, uint64_t count);
/* Up to SLAB_CHUNK_BYTES, aligned to that, zeroed, and no memory before it is touched; munmap them. NULL: there are none. */
void *slab_map_chunk(size_t bytes);
/* Recovery: makes that very slot usable; slots skipped on the way stay out of the free chain until
 * slab_rebuild_free. -ENOMEM; -EBADMSG past SLAB_INDEX_MAX, or for the next of very many that lie apart. */
int slab_take_at(struct slab *s, uint32_t index);
void slab_give(struct slab *s, uint32_t index); /* zeroes the slot */
/* Free slots are found again, chunk by chunk as they are needed: to chain them all would touch all memory. */
void slab_rebuild_free(struct slab *s, int (*is_free)(const void *slot));
/* The next index above `index` that is in an existing chunk and not above used_max; 0 at the end. */
uint32_t slab_next(const struct slab *s, uint32_t index);
uint64_t slab_memory(const struct slab *s);
