/* SPDX-License-Identifier: BSD-2-Clause */
/* arena: see arena.h. A chunk begins with a header, and is filled from its front; what is left at its end when the next
 * record does not fit is given up: at most one record of a MiB. */
#include "arena.h"

#include <sys/mman.h>

#include "util.h"

struct chunk_header {
    uint32_t first_unit;
    uint32_t used_units; /* the header's included */
};

#define HEADER_UNITS ((uint32_t)sizeof(struct chunk_header) / ARENA_UNIT_BYTES)

static uint32_t units_of(size_t bytes)
{
    return (uint32_t)((bytes + ARENA_UNIT_BYTES - 1) / ARENA_UNIT_BYTES);
}

static struct chunk_header *chunk_at(const struct arena *a, uint32_t chunk)
{
    return (struct chunk_header *)(void *)a->chunks[chunk];
}

void arena_fini(struct arena *a)
{
    for (uint32_t i = 0; i < a->chunk_count; i++)
        (void)munmap(a->chunks[i], SLAB_CHUNK_BYTES); /* cannot fail: it was mapped so */
    free(a->chunks);
    *a = (struct arena){0};
}

static int arena_grow(struct arena *a)
{
    struct chunk_header *header;

    if (a->chunk_count >= UINT32_MAX / ARENA_CHUNK_UNITS)
        return -ENOMEM;
    if (a->chunk_count == a->chunk_room) {
        uint32_t room = MAX(8u, a->chunk_room * 2);
        char **chunks = realloc(a->chunks, room * sizeof(*chunks));
        if (!chunks)
            return -ENOMEM;
        a->chunks = chunks;
        a->chunk_room = room;
    }
    header = slab_map_chunk(SLAB_CHUNK_BYTES);
    if (!header)
        return -ENOMEM;
    header->first_unit = a->chunk_count * ARENA_CHUNK_UNITS;
    header->used_units = HEADER_UNITS;
    a->chunks[a->chunk_count++] = (char *)header;
    return 0;
}

int arena_take(struct arena *a, size_t bytes, uint32_t *ret_index)
{
    uint32_t units = units_of(bytes), index;
    struct chunk_header *last;
    int r;

    assert(bytes >= sizeof(uint32_t));
    assert(bytes <= ARENA_RECORD_BYTES_MAX);
    index = a->free_heads[units];
    if (index != 0) {
        a->free_heads[units] = read_le32(arena_at(a, index));
    } else {
        if (a->chunk_count == 0 || ARENA_CHUNK_UNITS - chunk_at(a, a->chunk_count - 1)->used_units < units) {
            r = arena_grow(a);
            if (r < 0)
                return r;
        }
        last = chunk_at(a, a->chunk_count - 1);
        index = last->first_unit + last->used_units;
        last->used_units += units;
    }
    a->live_count++;
    *ret_index = index;
    return 0;
}

void arena_give(struct arena *a, uint32_t index, size_t bytes)
{
    uint32_t units = units_of(bytes);

    assert(a->live_count > 0);
    a->live_count--;
    write_le32(arena_at(a, index), a->free_heads[units]);
    a->free_heads[units] = index;
}

uint32_t arena_index(const void *record)
{
    uintptr_t base = (uintptr_t)record & ~((uintptr_t)SLAB_CHUNK_BYTES - 1);

    return ((const struct chunk_header *)base)->first_unit + (uint32_t)(((uintptr_t)record - base) / ARENA_UNIT_BYTES);
}

uint32_t arena_next(const struct arena *a, uint32_t index, size_t bytes)
{
    uint32_t chunk = index / ARENA_CHUNK_UNITS;

    if (a->chunk_count == 0)
        return 0;
    index = index == 0 ? HEADER_UNITS : index + units_of(bytes);
    if (index < chunk_at(a, chunk)->first_unit + chunk_at(a, chunk)->used_units)
        return index;
    return chunk + 1 < a->chunk_count ? chunk_at(a, chunk + 1)->first_unit + HEADER_UNITS : 0;
}

uint64_t arena_memory(const struct arena *a)
{
    uint64_t units = 0;

    for (uint32_t i = 0; i < a->chunk_count; i++)
        units += chunk_at(a, i)->used_units;
    return units * ARENA_UNIT_BYTES;
}
