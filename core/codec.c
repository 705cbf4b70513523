/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * codec: when lz4 is worth its time, and how its result is bounded.
 *
 * The question "is it compressed already?" is answered by a histogram of a sample: bytes that are spread as
 * evenly as chance would spread them are given to lz4 only as a sample of a few KiB, since repeats of a longer
 * pattern do not show in a histogram.
 *
 * What may never happen: a stored form that is larger than the value; a write past out on hostile input.
 */
#include "codec.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <lz4.h>
#include <xxhash.h>

#include "util.h"

#define SAMPLE_BYTES 4096u
#define SAMPLE_SLICES 4u
#define WIDE_BYTES_MIN 512u     /* xxh3 of less than 241 has no use for wide registers */
#define PACK_BYTES_MIN 64u      /* below this a header outweighs what lz4 could save */
#define PACK_SAVES_AT_LEAST 8u  /* 1/8 of the input, under COMPRESS_AUTO */
/* Sum of squared byte counts over what chance would give, in 1/16: 20/16 is an entropy of about 7.8 bits a byte. */
#define EVEN_SPREAD_16THS 20u

static_assert(CODEC_INPUT_BYTES_MAX <= LZ4_MAX_INPUT_SIZE, "lz4 takes the largest value in one block");
static_assert(CODEC_INPUT_BYTES_MAX <= INT_MAX, "lz4 counts in int");

const char *codec_name(enum codec codec)
{
    switch (codec) {
    case CODEC_RAW:
        return "raw";
    case CODEC_LZ4:
        return "lz4";
    }
    return "unknown";
}

/* The sample is four slices across the value, so that neither a header nor one picture in a tar decides. */
static size_t codec_sample(const uint8_t *data, size_t bytes, uint8_t sample[SAMPLE_BYTES])
{
    const size_t slice_bytes = SAMPLE_BYTES / SAMPLE_SLICES;

    if (bytes <= SAMPLE_BYTES) {
        memcpy(sample, data, bytes);
        return bytes;
    }
    for (size_t i = 0; i < SAMPLE_SLICES; i++) {
        size_t at = (bytes - slice_bytes) / (SAMPLE_SLICES - 1) * i;
        memcpy(sample + i * slice_bytes, data + at, slice_bytes);
    }
    return SAMPLE_BYTES;
}

static bool codec_looks_random(const uint8_t *sample, size_t bytes)
{
    uint32_t counts[4][256] = {{0}}; /* four, so that runs of one byte do not wait for each other's store */
    uint64_t squares = 0;
    uint64_t chance;
    size_t i = 0;

    for (; i + 4 <= bytes; i += 4) {
        counts[0][sample[i]]++;
        counts[1][sample[i + 1]]++;
        counts[2][sample[i + 2]]++;
        counts[3][sample[i + 3]]++;
    }
    for (; i < bytes; i++)
        counts[0][sample[i]]++;
    for (size_t b = 0; b < 256; b++) {
        uint64_t n = (uint64_t)counts[0][b] + counts[1][b] + counts[2][b] + counts[3][b];
        squares += n * n;
    }
    chance = bytes + (uint64_t)bytes * bytes / 256;
    return squares * 16 < chance * EVEN_SPREAD_16THS;
}

bool codec_worth_trying(const void *data, size_t bytes, enum compress_mode mode)
{
    uint8_t sample[SAMPLE_BYTES];
    char packed[SAMPLE_BYTES];
    size_t sample_bytes;

    if (mode == COMPRESS_NONE || bytes > CODEC_INPUT_BYTES_MAX)
        return false;
    if (mode == COMPRESS_LZ4)
        return bytes > 0;
    if (bytes < PACK_BYTES_MIN)
        return false;
    sample_bytes = codec_sample(data, bytes, sample);
    if (!codec_looks_random(sample, sample_bytes))
        return true;
    return LZ4_compress_default((const char *)sample, packed, (int)sample_bytes,
                                (int)(sample_bytes - sample_bytes / PACK_SAVES_AT_LEAST)) > 0;
}

int codec_pack(enum compress_mode mode, const void *data, size_t bytes, void *out, size_t out_bytes_max,
               size_t *ret_bytes)
{
    size_t room;
    int n;

    if (mode == COMPRESS_NONE || bytes == 0 || bytes > CODEC_INPUT_BYTES_MAX)
        return -E2BIG;
    room = mode == COMPRESS_LZ4 ? bytes - 1 : bytes - MAX(bytes / PACK_SAVES_AT_LEAST, 1);
    room = MIN(room, out_bytes_max);
    if (room == 0)
        return -E2BIG;
    n = LZ4_compress_default(data, out, (int)bytes, (int)room);
    if (n <= 0)
        return -E2BIG;
    assert((size_t)n <= room);
    *ret_bytes = (size_t)n;
    return 0;
}

int codec_unpack(enum codec codec, const void *data, size_t bytes, void *out, size_t out_bytes)
{
    int n;

    if (bytes > CODEC_INPUT_BYTES_MAX || out_bytes > CODEC_INPUT_BYTES_MAX)
        return -EBADMSG;
    switch (codec) {
    case CODEC_RAW:
        if (bytes != out_bytes)
            return -EBADMSG;
        if (bytes > 0)
            memcpy(out, data, bytes);
        return 0;
    case CODEC_LZ4:
        n = LZ4_decompress_safe(data, out, (int)bytes, (int)out_bytes);
        return n >= 0 && (size_t)n == out_bytes ? 0 : -EBADMSG;
    }
    return -EBADMSG;
}

uint64_t codec_checksum(const void *data, size_t bytes)
{
#ifdef CODEC_AVX2
    if (bytes >= WIDE_BYTES_MIN && __builtin_cpu_supports("avx2"))
        return codec_checksum_avx2(data, bytes);
#endif
    return XXH3_64bits(data, bytes);
}
