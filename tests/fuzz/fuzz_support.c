/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz_support: bytes of an input, growing buffers, and an end to the process that leaves nothing behind. */
#include <string.h>

#include "fuzz_store.h"

uint8_t fuzz_u8(struct fuzz_in *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->data++;
}

uint16_t fuzz_u16(struct fuzz_in *in)
{
    uint16_t low = fuzz_u8(in);

    return (uint16_t)(low | fuzz_u8(in) << 8);
}

uint64_t fuzz_u64(struct fuzz_in *in)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++)
        value |= (uint64_t)fuzz_u8(in) << 8 * i;
    return value;
}

const uint8_t *fuzz_take(struct fuzz_in *in, size_t bytes_max, size_t *ret_bytes)
{
    const uint8_t *data = in->data;

    *ret_bytes = MIN(bytes_max, in->left);
    in->data += *ret_bytes;
    in->left -= *ret_bytes;
    return data;
}

void *fuzz_buffer_add(struct fuzz_buffer *b, const void *data, size_t bytes)
{
    uint8_t *at;

    if (!b->data || b->allocated - b->used < bytes) {
        b->allocated = MAX(b->allocated * 2, b->used + bytes + 256);
        b->data = realloc(b->data, b->allocated);
        FUZZ_CHECK(b->data);
    }
    at = b->data + b->used;
    if (bytes > 0 && data)
        memcpy(at, data, bytes);
    else if (bytes > 0)
        memset(at, 0, bytes);
    b->used += bytes;
    return at;
}

void fuzz_buffer_fini(struct fuzz_buffer *b)
{
    free(b->data);
    *b = (struct fuzz_buffer){0};
}

void fuzz_seed(const char *name, const struct fuzz_buffer *b)
{
    const char *dir = getenv("FUZZ_SEEDS");
    char path[512];
    FILE *f;

    if (!dir)
        return;
    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "we");
    FUZZ_CHECK(f && fwrite(b->data, 1, b->used, f) == b->used);
    FUZZ_CHECK(fclose(f) == 0);
}

void fuzz_seed_table(const uint8_t *seeds, size_t count, size_t seed_bytes)
{
    char name[16];

    for (size_t i = 0; i < count; i++) {
        struct fuzz_buffer b = {0};

        (void)fuzz_buffer_add(&b, seeds + i * seed_bytes, seed_bytes);
        (void)snprintf(name, sizeof(name), "seed-%u", (unsigned)i);
        fuzz_seed(name, &b);
        fuzz_buffer_fini(&b);
    }
}

/* What the engine wrote, less the zeros it keeps ahead. */
static size_t log_bytes(const struct fuzz_buffer *log)
{
    size_t bytes = log->used;

    while (bytes > 0 && log->data[bytes - 1] == 0)
        bytes--;
    return MIN(round_up(bytes, 8), log->used);
}

void fuzz_seed_logs(bool is_index)
{
    static const uint8_t hows[] = {0, FUZZ_LOG_AS_IS, FUZZ_LOG_FAR_IDS | FUZZ_LOG_ANY_PLACE, FUZZ_LOG_HEADER | FUZZ_LOG_COUNTS};
    struct fuzz_buffer log = {0}, b = {0};
    char name[64];

    fuzz_seed_log(is_index ? "index" : "journal", &log);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t head[2] = {hows[i % 4], i < 4 ? 0 : FUZZ_CHANGE | FUZZ_CLEAN | FUZZ_INSPECT};
        b.used = 0;
        (void)fuzz_buffer_add(&b, head, 2);
        (void)fuzz_buffer_add(&b, log.data, log_bytes(&log));
        (void)snprintf(name, sizeof(name), "seed-%u", i);
        fuzz_seed(name, &b);
    }
    fuzz_buffer_fini(&b);
    fuzz_buffer_fini(&log);
}
