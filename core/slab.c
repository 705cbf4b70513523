/* SPDX-License-Identifier: BSD-2-Clause */
#include "slab.h"

#include "util.h"

struct chunk_header {
    uint32_t first_index;
};

void slab_init(struct slab *s, uint32_t slot_bytes, uint32_t link_offset)
{
    assert(slot_bytes <= SLAB_SLOT_BYTES_MAX);
    assert(link_offset + sizeof(uint32_t) <= slot_bytes);
    *s = (struct slab){.slot_bytes = slot_bytes, .link_offset = link_offset};
}

void slab_fini(struct slab *s)
{
    for (uint32_t i = 0; i < s->chunk_room; i++)
        free(s->chunks[i]);
    free(s->chunks);
    *s = (struct slab){0};
}

void *slab_at_or_null(const struct slab *s, uint32_t index)
{
    uint32_t chunk = index / SLAB_CHUNK_SLOTS;

    if (chunk >= s->chunk_room || !s->chunks[chunk])
        return NULL;
    return slab_at(s, index);
}

uint32_t slab_index(const struct slab *s, const void *slot)
{
    uintptr_t base = (uintptr_t)slot & ~((uintptr_t)SLAB_CHUNK_BYTES - 1);
    const struct chunk_header *header = (const struct chunk_header *)base;

    return header->first_index + (uint32_t)(((uintptr_t)slot - base - SLAB_CHUNK_HEADER_BYTES) / s->slot_bytes);
}

static uint32_t *slab_link(const struct slab *s, uint32_t index)
{
    return (uint32_t *)(void *)((char *)slab_at(s, index) + s->link_offset);
}

static int slab_need_chunk(struct slab *s, uint32_t chunk)
{
    struct chunk_header *header;

    if (chunk >= s->chunk_room) {
        uint32_t room = MAX(chunk + 1, s->chunk_room * 2);
        char **chunks = realloc(s->chunks, room * sizeof(*chunks));
        if (!chunks)
            return -ENOMEM;
        memset(chunks + s->chunk_room, 0, (room - s->chunk_room) * sizeof(*chunks));
        s->chunks = chunks;
        s->chunk_room = room;
    }
    if (s->chunks[chunk])
        return 0;
    header = aligned_alloc(SLAB_CHUNK_BYTES, SLAB_CHUNK_BYTES);
    if (!header)
        return -ENOMEM;
    header->first_index = chunk * SLAB_CHUNK_SLOTS;
    s->chunks[chunk] = (char *)header;
    s->chunk_count++;
    return 0;
}

int slab_take(struct slab *s, uint32_t *ret_index)
{
    uint32_t index = s->free_head;
    int r;

    if (index != 0) {
        s->free_head = *slab_link(s, index);
    } else {
        if (s->used_max >= SLAB_INDEX_MAX)
            return -ENOMEM;
        index = s->used_max + 1;
        r = slab_need_chunk(s, index / SLAB_CHUNK_SLOTS);
        if (r < 0)
            return r;
        s->used_max = index;
    }
    memset(slab_at(s, index), 0, s->slot_bytes);
    s->live_count++;
    *ret_index = index;
    return 0;
}

int slab_take_at(struct slab *s, uint32_t index)
{
    bool fresh;
    int r;

    if (index == 0 || index > SLAB_INDEX_MAX)
        return -EBADMSG;
    fresh = !slab_at_or_null(s, index);
    r = slab_need_chunk(s, index / SLAB_CHUNK_SLOTS);
    if (r < 0)
        return r;
    if (fresh) /* slots below it in this chunk must read as free until they are taken themselves */
        memset(s->chunks[index / SLAB_CHUNK_SLOTS] + SLAB_CHUNK_HEADER_BYTES, 0,
               (size_t)SLAB_CHUNK_SLOTS * s->slot_bytes);
    memset(slab_at(s, index), 0, s->slot_bytes);
    s->used_max = MAX(s->used_max, index);
    s->live_count++;
    return 0;
}

void slab_give(struct slab *s, uint32_t index)
{
    memset(slab_at(s, index), 0, s->slot_bytes);
    *slab_link(s, index) = s->free_head;
    s->free_head = index;
    assert(s->live_count > 0);
    s->live_count--;
}

uint32_t slab_next(const struct slab *s, uint32_t index)
{
    for (index++; index <= s->used_max; index++) {
        if (slab_at_or_null(s, index))
            return index;
        index |= SLAB_CHUNK_SLOTS - 1; /* the loop's increment enters the next chunk */
    }
    return 0;
}

void slab_rebuild_free(struct slab *s, int (*is_free)(const void *slot))
{
    s->free_head = 0;
    for (uint32_t i = slab_next(s, 0); i != 0; i = slab_next(s, i)) {
        if (!is_free(slab_at(s, i)))
            continue;
        *slab_link(s, i) = s->free_head;
        s->free_head = i;
    }
}

uint64_t slab_memory(const struct slab *s)
{
    return MIN(s->chunk_count * SLAB_CHUNK_SLOTS, (uint64_t)s->used_max + 1) * s->slot_bytes;
}
