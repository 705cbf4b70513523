/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * names: an arena for short byte strings, 1..255 bytes each, named by a 32-bit unit number (8-byte units, 32 GiB
 * at most). Freed strings are reused by size class. Not thread safe.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NAMES_CLASSES 33u /* of (1 + 255) / 8 units, 1-based */

struct names {
    char **chunks;
    uint32_t chunk_count, chunk_room;
    uint32_t tail_unit, tail_end; /* units not handed out yet in the last chunk */
    uint32_t free_heads[NAMES_CLASSES];
    uint64_t live_bytes; /* of the strings alone */
};

void names_fini(struct names *a);
int names_put(struct names *a, const char *name, size_t bytes, uint32_t *ret_unit); /* -ENOMEM */
const char *names_get(const struct names *a, uint32_t unit, size_t *ret_bytes);
void names_drop(struct names *a, uint32_t unit);
uint64_t names_memory(const struct names *a);
