/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bucket: a table from hashes to 32-bit numbers, of cache lines. A line holds twelve numbers, each with eight bits of its hash,
 * so that what is not there is known after one line, and what is there after the line and the thing itself.
 *
 * The table grows by linear hashing (Litwin 1980): an insertion divides at most one bucket, so no request ever pays for a
 * rehash. A bucket with more than a line holds has further lines, until it is divided.
 *
 * The table keeps no hashes: who divides a bucket is asked for them. Not thread safe.
 *
 * Invariant B1: the lines of a bucket but its last are full, and a further line is never empty.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "slab.h"

#define BUCKET_LINE_ENTRIES 12u

struct bucket_line {
    uint32_t number[BUCKET_LINE_ENTRIES]; /* 0: none, and none behind it */
    uint8_t tag[BUCKET_LINE_ENTRIES];
    uint32_t further; /* slot in the slab of further lines, 0: none */
};

struct bucket_table {
    struct bucket_line **chunks;
    uint32_t chunk_count;
    uint32_t round; /* buckets at the start of this doubling; power of two */
    uint32_t split; /* next bucket to divide: those below are divided already */
    uint64_t count;
    struct slab further;
};

/* Of an entry that is in the table. */
typedef uint64_t (*bucket_hash)(const void *ctx, uint32_t number);

int bucket_init(struct bucket_table *b); /* -ENOMEM */
void bucket_fini(struct bucket_table *b);
/* While it is empty: as many buckets as `count` entries want, as far as memory goes. */
void bucket_fit(struct bucket_table *b, uint64_t count);
int bucket_add(struct bucket_table *b, uint64_t hash, uint32_t number); /* -ENOMEM */
void bucket_remove(struct bucket_table *b, uint64_t hash, uint32_t number);
void bucket_replace(struct bucket_table *b, uint64_t hash, uint32_t number, uint32_t by);
/* After an insertion: divides a bucket where the table is full; without memory its lines just become more. */
void bucket_grow(struct bucket_table *b, bucket_hash hash_of, const void *ctx);
void bucket_prefetch(const struct bucket_table *b, uint64_t hash);
uint64_t bucket_memory(const struct bucket_table *b);

/* A walk over the numbers that may be of that hash: bucket_first, then bucket_next until it returns 0. */
struct bucket_cursor {
    const struct bucket_table *table;
    const struct bucket_line *line;
    uint32_t matches; /* entries of the line still to be told */
    uint8_t tag;
};
uint32_t bucket_next(struct bucket_cursor *c);
uint32_t bucket_first(struct bucket_cursor *c, const struct bucket_table *b, uint64_t hash);
