/* SPDX-License-Identifier: BSD-2-Clause */
/* bucket: see bucket.h. */
#include "bucket.h"

#include "util.h"

#define LINES_PER_CHUNK 1024u
#define LINES_MIN 64u
#define LINES_MAX (1u << 28)
/* Entries of a bucket on average. More are less memory for lines that are not full, and more buckets of two lines. */
#define LOAD 12u

_Static_assert(sizeof(struct bucket_line) == 64, "a cache line");
_Static_assert(SLAB_CHUNK_HEADER_BYTES % sizeof(struct bucket_line) == 0, "further lines are cache lines, too");

static struct bucket_line *line_at(const struct bucket_table *b, uint32_t bucket)
{
    return &b->chunks[bucket / LINES_PER_CHUNK][bucket % LINES_PER_CHUNK];
}

static struct bucket_line *line_further(const struct bucket_table *b, const struct bucket_line *line)
{
    return line->further ? slab_at(&b->further, line->further) : NULL;
}

/* Bits that no bucket's number has. */
static uint8_t tag_of(uint64_t hash)
{
    return (uint8_t)(hash >> 56);
}

static uint32_t bucket_of(const struct bucket_table *b, uint64_t hash)
{
    uint32_t bucket = (uint32_t)hash & (b->round - 1);

    return bucket < b->split ? (uint32_t)hash & (b->round * 2 - 1) : bucket;
}

static int lines_need(struct bucket_table *b, uint32_t bucket)
{
    uint32_t chunk = bucket / LINES_PER_CHUNK;
    struct bucket_line **chunks, *lines;

    if (chunk < b->chunk_count)
        return 0;
    chunks = realloc(b->chunks, (chunk + 1) * sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    b->chunks = chunks;
    lines = aligned_alloc(sizeof(*lines), LINES_PER_CHUNK * sizeof(*lines));
    if (!lines)
        return -ENOMEM;
    memset(lines, 0, LINES_PER_CHUNK * sizeof(*lines));
    b->chunks[b->chunk_count++] = lines;
    return 0;
}

int bucket_init(struct bucket_table *b)
{
    *b = (struct bucket_table){.round = LINES_MIN};
    slab_init(&b->further, sizeof(struct bucket_line), offsetof(struct bucket_line, further));
    return lines_need(b, LINES_MIN - 1);
}

void bucket_fini(struct bucket_table *b)
{
    for (uint32_t i = 0; i < b->chunk_count; i++)
        free(b->chunks[i]);
    free(b->chunks);
    slab_fini(&b->further);
    *b = (struct bucket_table){0};
}

void bucket_fit(struct bucket_table *b, uint64_t count)
{
    uint32_t wanted = (uint32_t)MIN(count / LOAD, LINES_MAX), buckets = b->round + b->split;

    assert(b->count == 0);
    while (buckets < wanted && lines_need(b, buckets) == 0)
        buckets = MIN(wanted, (buckets / LINES_PER_CHUNK + 1) * LINES_PER_CHUNK);
    b->round = 1u << (31 - __builtin_clz(buckets));
    b->split = buckets - b->round;
}

/* ---- entries ---- */

static uint32_t line_count(const struct bucket_line *line)
{
    uint32_t count = 0;

    while (count < BUCKET_LINE_ENTRIES && line->number[count])
        count++;
    return count;
}

static int line_append(struct bucket_table *b, struct bucket_line *line, uint8_t tag, uint32_t number)
{
    uint32_t at;
    int r;

    while (line->further)
        line = slab_at(&b->further, line->further);
    at = line_count(line);
    if (at == BUCKET_LINE_ENTRIES) {
        uint32_t slot;
        r = slab_take(&b->further, &slot);
        if (r < 0)
            return r;
        line->further = slot;
        line = slab_at(&b->further, slot);
        at = 0;
    }
    line->number[at] = number;
    line->tag[at] = tag;
    return 0;
}

int bucket_add(struct bucket_table *b, uint64_t hash, uint32_t number)
{
    int r = line_append(b, line_at(b, bucket_of(b, hash)), tag_of(hash), number);

    b->count += r == 0;
    return r;
}

/* Where the number stands, which must be there. */
static struct bucket_line *entry_find(const struct bucket_table *b, uint64_t hash, uint32_t number, uint32_t *ret_at)
{
    for (struct bucket_line *line = line_at(b, bucket_of(b, hash)); line; line = line_further(b, line))
        for (uint32_t i = 0; i < BUCKET_LINE_ENTRIES; i++)
            if (line->number[i] == number) {
                *ret_at = i;
                return line;
            }
    assert(false && "an entry is in the bucket of its hash");
    return NULL;
}

void bucket_replace(struct bucket_table *b, uint64_t hash, uint32_t number, uint32_t by)
{
    uint32_t at = 0;
    struct bucket_line *line = entry_find(b, hash, number, &at);

    line->number[at] = by;
}

/* The last entry takes the place of the one that goes: keeps B1. */
void bucket_remove(struct bucket_table *b, uint64_t hash, uint32_t number)
{
    uint32_t at = 0, last_at;
    struct bucket_line *line = entry_find(b, hash, number, &at), *last = line_at(b, bucket_of(b, hash)), *before = NULL;

    while (last->further) {
        before = last;
        last = slab_at(&b->further, last->further);
    }
    last_at = line_count(last) - 1;
    line->number[at] = last->number[last_at];
    line->tag[at] = last->tag[last_at];
    last->number[last_at] = 0;
    b->count--;
    if (last_at == 0 && before) {
        slab_give(&b->further, before->further);
        before->further = 0;
    }
}

/* A bit for each entry whose tag it is. Without branches: none of them could be foretold. */
static uint32_t line_matches(const struct bucket_line *line, uint8_t tag)
{
    uint32_t matches = 0;

    for (uint32_t i = 0; i < BUCKET_LINE_ENTRIES; i++)
        matches |= (uint32_t)(line->tag[i] == tag) << i;
    return matches;
}

uint32_t bucket_next(struct bucket_cursor *c)
{
    for (;;) {
        while (c->matches) {
            uint32_t number = c->line->number[__builtin_ctz(c->matches)];
            c->matches &= c->matches - 1;
            if (number) /* else what is left of a tag */
                return number;
        }
        c->line = line_further(c->table, c->line);
        if (!c->line)
            return 0;
        c->matches = line_matches(c->line, c->tag);
    }
}

uint32_t bucket_first(struct bucket_cursor *c, const struct bucket_table *b, uint64_t hash)
{
    *c = (struct bucket_cursor){.table = b, .line = line_at(b, bucket_of(b, hash)), .tag = tag_of(hash)};
    c->matches = line_matches(c->line, c->tag);
    return bucket_next(c);
}

void bucket_prefetch(const struct bucket_table *b, uint64_t hash)
{
    __builtin_prefetch(line_at(b, bucket_of(b, hash)));
}

/* ---- growing ---- */

/* Puts what was in the bucket where it belongs now. Both buckets together need no more lines than the one and the new one
 * have: none of this can fail. */
static void bucket_divide(struct bucket_table *b, uint32_t from, bucket_hash hash_of, const void *ctx)
{
    struct bucket_line line = *line_at(b, from);
    int r;

    *line_at(b, from) = (struct bucket_line){0};
    for (;;) {
        uint32_t further = line.further;
        for (uint32_t i = 0; i < BUCKET_LINE_ENTRIES && line.number[i]; i++) {
            uint64_t hash = hash_of(ctx, line.number[i]);
            r = line_append(b, line_at(b, bucket_of(b, hash)), line.tag[i], line.number[i]);
            assert(r == 0); /* a further line that is wanted was given back before */
        }
        if (!further)
            return;
        line = *(struct bucket_line *)slab_at(&b->further, further);
        slab_give(&b->further, further);
    }
}

void bucket_grow(struct bucket_table *b, bucket_hash hash_of, const void *ctx)
{
    uint32_t from = b->split;

    if (b->count <= (uint64_t)(b->round + b->split) * LOAD)
        return;
    if (b->round >= LINES_MAX || lines_need(b, b->round + from) < 0)
        return;
    b->split++;
    bucket_divide(b, from, hash_of, ctx);
    if (b->split == b->round) {
        b->round *= 2;
        b->split = 0;
    }
}

uint64_t bucket_memory(const struct bucket_table *b)
{
    return (uint64_t)b->chunk_count * LINES_PER_CHUNK * sizeof(struct bucket_line) + slab_memory(&b->further);
}
