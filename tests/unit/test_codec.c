/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: what is packed comes back, nothing grows, and hostile input is refused without harm.
 * Method: text, noise and repeats of many sizes through pack and unpack; then every truncation and many flips of a packed
 * value, with the sanitizers as judges. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "check.h"
#include "codec.h"
#include "util.h"

#define BYTES_MAX 70000u

static uint8_t data[BYTES_MAX], packed[BYTES_MAX], back[BYTES_MAX];
static uint64_t noise_state = 88172645463325252ull;

static uint64_t noise(void)
{
    noise_state ^= noise_state << 13;
    noise_state ^= noise_state >> 7;
    noise_state ^= noise_state << 17;
    return noise_state;
}

static void fill_text(size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t) "the quick brown fox jumps over the lazy dog\n"[(i + noise() % 3) % 44];
}

static void fill_noise(size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)noise();
}

static const size_t sizes[] = {1, 12, 63, 64, 100, 1000, 4096, 5000, 65536, BYTES_MAX};

static void text_comes_back_smaller(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        size_t bytes = sizes[i];
        size_t packed_bytes = 0;
        fill_text(bytes);
        memset(data, 'x', bytes / 2);
        if (codec_pack(COMPRESS_AUTO, data, bytes, packed, sizeof(packed), &packed_bytes) == -E2BIG) {
            CHECK(bytes < 100);
            continue;
        }
        CHECK(packed_bytes <= bytes - bytes / 8);
        CHECK_OK(codec_unpack(CODEC_LZ4, packed, packed_bytes, back, bytes));
        CHECK(memcmp(data, back, bytes) == 0);
        CHECK_EQ(codec_unpack(CODEC_LZ4, packed, packed_bytes, back, bytes - 1), -EBADMSG);
        CHECK_EQ(codec_unpack(CODEC_LZ4, packed, packed_bytes, back, bytes + 1 > BYTES_MAX ? 0 : bytes + 1), -EBADMSG);
    }
}

static void noise_is_stored_raw(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        size_t packed_bytes;
        fill_noise(sizes[i]);
        CHECK(sizes[i] <= 4096 || !codec_worth_trying(data, sizes[i], COMPRESS_AUTO));
        CHECK_EQ(codec_pack(COMPRESS_AUTO, data, sizes[i], packed, sizeof(packed), &packed_bytes), -E2BIG);
        CHECK_EQ(codec_pack(COMPRESS_LZ4, data, sizes[i], packed, sizeof(packed), &packed_bytes), -E2BIG);
    }
}

static void modes_are_obeyed(void)
{
    size_t packed_bytes;

    fill_text(4096);
    CHECK(codec_worth_trying(data, 4096, COMPRESS_AUTO));
    CHECK(!codec_worth_trying(data, 4096, COMPRESS_NONE));
    CHECK_EQ(codec_pack(COMPRESS_NONE, data, 4096, packed, sizeof(packed), &packed_bytes), -E2BIG);
    CHECK_EQ(codec_pack(COMPRESS_AUTO, data, 0, packed, sizeof(packed), &packed_bytes), -E2BIG);
    CHECK_EQ(codec_pack(COMPRESS_LZ4, data, 4096, packed, 10, &packed_bytes), -E2BIG);
    /* repeats of noise: even in a histogram, but lz4 sees them */
    fill_noise(512);
    for (size_t at = 512; at < 4096; at += 512)
        memcpy(data + at, data, 512);
    CHECK(codec_worth_trying(data, 4096, COMPRESS_AUTO));
}

static void hostile_input_is_refused_or_decoded_in_bounds(void)
{
    size_t packed_bytes = 0;

    memset(data, 0, 6000);
    fill_text(3000);
    CHECK_OK(codec_pack(COMPRESS_AUTO, data, 6000, packed, sizeof(packed), &packed_bytes));
    for (size_t cut = 0; cut < packed_bytes; cut++) {
        uint8_t *exact = malloc(cut ? cut : 1);
        CHECK(exact != NULL);
        memcpy(exact, packed, cut);
        CHECK_EQ(codec_unpack(CODEC_LZ4, exact, cut, back, 6000), -EBADMSG);
        free(exact);
    }
    for (int i = 0; i < 20000; i++) {
        uint8_t saved[4];
        size_t at = noise() % (packed_bytes - 4);
        memcpy(saved, packed + at, 4);
        packed[at + noise() % 4] = (uint8_t)noise();
        (void)codec_unpack(CODEC_LZ4, packed, packed_bytes, back, 6000); /* either is right; the bounds are judged */
        memcpy(packed + at, saved, 4);
    }
    CHECK_EQ(codec_unpack((enum codec)7, packed, packed_bytes, back, 6000), -EBADMSG);
    CHECK_EQ(codec_unpack(CODEC_RAW, data, 5, back, 6), -EBADMSG);
    CHECK_OK(codec_unpack(CODEC_RAW, data, 6, back, 6));
    CHECK(memcmp(data, back, 6) == 0);
}

static void checksum_is_xxh3(void)
{
    CHECK(codec_checksum("", 0) == 0x2d06800538d394c2ull); /* XXH3_64bits of nothing */
}

/* Whatever processor it is computed on and for. */
static void checksum_is_the_same_in_wide_registers(void)
{
    fill_noise(sizeof(data));
    for (size_t bytes = 0; bytes <= sizeof(data); bytes += bytes < 3000 ? 1 : 997)
        CHECK_EQ(codec_checksum(data, bytes), XXH3_64bits(data, bytes));
}

int main(void)
{
    RUN(text_comes_back_smaller);
    RUN(noise_is_stored_raw);
    RUN(modes_are_obeyed);
    RUN(hostile_input_is_refused_or_decoded_in_bounds);
    RUN(checksum_is_xxh3);
    RUN(checksum_is_the_same_in_wide_registers);
    return 0;
}
