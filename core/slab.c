/* SPDX-License-Identifier: BSD-2-Clause */
#include "slab.h"

#include <sys/mman.h>

#include "util.h"

#define PAGE_BYTES_MAX 65536u
#define SCAN_CHUNKS_MAX 4u /* looked at for a free slot before the slab grows instead */

struct chunk_header {
    uint32_t first_index;
};

static size_t chunk_bytes(const struct slab *s)
{
    return SLAB_CHUNK_HEADER_BYTES + (size_t)SLAB_CHUNK_SLOTS * s->slot_bytes;
}

/* What slab_map_chunk leaves mapped of it. */
static size_t mapped_bytes(size_t bytes)
{
    return MIN(round_up(bytes, PAGE_BYTES_MAX), SLAB_CHUNK_BYTES);
}

void slab_init(struct slab *s, uint32_t slot_bytes, uint32_t link_offset)
{
    assert(slot_bytes <= SLAB_SLOT_BYTES_MAX);
    assert(link_offset + sizeof(uint32_t) <= slot_bytes);
    *s = (struct slab){.slot_bytes = slot_bytes, .link_offset = link_offset};
}

void slab_fini(struct slab *s)
{
    for (uint32_t i = 0; i < s->chunk_room; i++)
        if (s->chunks[i])
            (void)munmap(s->chunks[i], mapped_bytes(chunk_bytes(s))); /* cannot fail: it was mapped so */
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

void *slab_map_chunk(size_t bytes)
{
    char *p = mmap(NULL, (size_t)2 * SLAB_CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before, kept = mapped_bytes(bytes);

    if (p == MAP_FAILED)
        return NULL;
    before = -(uintptr_t)p & (SLAB_CHUNK_BYTES - 1);
    if (before > 0)
        (void)munmap(p, before); /* what is left of it is address space, no memory */
    (void)munmap(p + before + kept, 2 * SLAB_CHUNK_BYTES - before - kept); /* else a huge page may take it in */
    return p + before;
}

static int slab_need_chunk(struct slab *s, uint32_t chunk)
{
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
    s->chunks[chunk] = slab_map_chunk(chunk_bytes(s));
    if (!s->chunks[chunk])
        return -ENOMEM;
    s->chunk_count++;
    return 0;
}

/* Not when the chunk is mapped: one that is only reserved stays untouched. */
static void slab_enter_chunk(struct slab *s, uint32_t index)
{
    struct chunk_header *header = (struct chunk_header *)(void *)s->chunks[index / SLAB_CHUNK_SLOTS];

    header->first_index = index - index % SLAB_CHUNK_SLOTS;
}

int slab_reserve(struct slab *s, uint64_t count)
{
    int r = 0;

    if (count > SLAB_INDEX_MAX)
        return -ENOMEM;
    while (r == 0 && s->chunk_count * SLAB_CHUNK_SLOTS <= count) {
        uint32_t chunk = (uint32_t)s->chunk_count;
        r = slab_need_chunk(s, chunk);
        if (r == 0) /* sparse in use: a huge page would be taken for a few slots */
            (void)madvise(s->chunks[chunk], chunk_bytes(s), MADV_NOHUGEPAGE);
    }
    return r;
}

/* Chains the free slots of the next chunks that have any. The chain is empty, so none of them is in it already. */
static void slab_scan(struct slab *s, uint32_t chunks_max)
{
    while (s->free_head == 0 && s->scan_next != 0 && chunks_max-- > 0) {
        uint32_t last = MIN(s->scan_next | (SLAB_CHUNK_SLOTS - 1), s->scan_end);

        for (uint32_t i = last; i >= s->scan_next; i--) {
            if (!s->is_free(slab_at(s, i)))
                continue;
            *slab_link(s, i) = s->free_head;
            s->free_head = i;
        }
        s->scan_next = slab_next(s, last);
        if (s->scan_next > s->scan_end)
            s->scan_next = 0;
    }
}

int slab_take(struct slab *s, uint32_t *ret_index)
{
    uint32_t index;
    int r;

    slab_scan(s, s->used_max < SLAB_INDEX_MAX ? SCAN_CHUNKS_MAX : UINT32_MAX);
    index = s->free_head;
    if (index != 0) {
        s->free_head = *slab_link(s, index);
    } else {
        if (s->used_max >= SLAB_INDEX_MAX)
            return -ENOMEM;
        index = s->used_max + 1;
        r = slab_need_chunk(s, index / SLAB_CHUNK_SLOTS);
        if (r < 0)
            return r;
        slab_enter_chunk(s, index);
        s->used_max = index;
    }
    memset(slab_at(s, index), 0, s->slot_bytes);
    s->live_count++;
    *ret_index = index;
    return 0;
}

/* Slots this far apart come from damage, or from a store that once held many more: a huge page would be taken for each. */
static void slab_expect_few(const struct slab *s, uint32_t index)
{
    char *chunk = s->chunks[index / SLAB_CHUNK_SLOTS];

    if (index > s->used_max + 1)
        (void)madvise(chunk, chunk_bytes(s), MADV_NOHUGEPAGE); /* a kernel that has none needs no telling */
}

int slab_take_at(struct slab *s, uint32_t index)
{
    bool fresh;
    int r;

    if (index == 0 || index > SLAB_INDEX_MAX)
        return -EBADMSG;
    fresh = !slab_at_or_null(s, index);
    if (fresh && s->chunk_count >= MAX(SLAB_SPARSE_CHUNKS_MAX, s->live_count / SLAB_SPARSE_SLOTS_MIN))
        return -EBADMSG;
    r = slab_need_chunk(s, index / SLAB_CHUNK_SLOTS);
    if (r < 0)
        return r;
    if (fresh)
        slab_expect_few(s, index);
    slab_enter_chunk(s, index);
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
    s->is_free = is_free;
    s->scan_next = slab_next(s, 0);
    s->scan_end = s->used_max;
}

uint64_t slab_memory(const struct slab *s)
{
    return MIN(s->chunk_count * SLAB_CHUNK_SLOTS, (uint64_t)s->used_max + 1) * s->slot_bytes;
}
