/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * names: see names.h. A string is stored as one byte (length - 1) and its bytes, rounded up to units; a free
 * one keeps the unit of the next free string of its class in its first four bytes. Unit 0 is never handed out.
 */
#include "names.h"

#include "util.h"

#define UNIT_BYTES 8u
#define CHUNK_UNITS (64u << 10) /* 512 KiB */

static char *unit_at(const struct names *a, uint32_t unit)
{
    return a->chunks[unit / CHUNK_UNITS] + (size_t)(unit % CHUNK_UNITS) * UNIT_BYTES;
}

static uint32_t units_of(size_t bytes)
{
    return (uint32_t)((1 + bytes + UNIT_BYTES - 1) / UNIT_BYTES);
}

void names_fini(struct names *a)
{
    for (uint32_t i = 0; i < a->chunk_count; i++)
        free(a->chunks[i]);
    free(a->chunks);
    *a = (struct names){0};
}

/* The rest of the last chunk is given up: at most 32 of its 64 Ki units. */
static int names_grow(struct names *a)
{
    char *chunk;

    if (a->chunk_count >= UINT32_MAX / CHUNK_UNITS)
        return -ENOMEM;
    if (a->chunk_count == a->chunk_room) {
        uint32_t room = MAX(8u, a->chunk_room * 2);
        char **chunks = realloc(a->chunks, room * sizeof(*chunks));
        if (!chunks)
            return -ENOMEM;
        a->chunks = chunks;
        a->chunk_room = room;
    }
    chunk = malloc((size_t)CHUNK_UNITS * UNIT_BYTES);
    if (!chunk)
        return -ENOMEM;
    a->tail_unit = a->chunk_count * CHUNK_UNITS + (a->chunk_count == 0 ? 1 : 0);
    a->tail_end = (a->chunk_count + 1) * CHUNK_UNITS;
    a->chunks[a->chunk_count++] = chunk;
    return 0;
}

int names_put(struct names *a, const char *name, size_t bytes, uint32_t *ret_unit)
{
    uint32_t units = units_of(bytes);
    uint32_t unit;
    char *p;
    int r;

    assert(bytes >= 1);
    assert(bytes <= 255);
    unit = a->free_heads[units];
    if (unit != 0) {
        a->free_heads[units] = read_le32(unit_at(a, unit));
    } else {
        if (a->tail_end - a->tail_unit < units) {
            r = names_grow(a);
            if (r < 0)
                return r;
        }
        unit = a->tail_unit;
        a->tail_unit += units;
    }
    p = unit_at(a, unit);
    *(uint8_t *)p = (uint8_t)(bytes - 1);
    memcpy(p + 1, name, bytes);
    a->live_bytes += bytes;
    *ret_unit = unit;
    return 0;
}

const char *names_get(const struct names *a, uint32_t unit, size_t *ret_bytes)
{
    const char *p = unit_at(a, unit);

    *ret_bytes = (size_t)*(const uint8_t *)p + 1;
    return p + 1;
}

void names_drop(struct names *a, uint32_t unit)
{
    char *p = unit_at(a, unit);
    size_t bytes = (size_t)*(const uint8_t *)p + 1;
    uint32_t units = units_of(bytes);

    a->live_bytes -= bytes;
    write_le32(p, a->free_heads[units]);
    a->free_heads[units] = unit;
}

uint64_t names_memory(const struct names *a)
{
    return (uint64_t)a->chunk_count * CHUNK_UNITS * UNIT_BYTES - (uint64_t)(a->tail_end - a->tail_unit) * UNIT_BYTES;
}
