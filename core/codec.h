/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * codec: lz4 in and out, and the decision not to. Pure memory work; output is always bounded by the caller.
 *
 * Compression never makes a value larger: codec_pack says -E2BIG unless it saves at least 1/8 (less than
 * that is not worth decoding). Already-compressed data is recognised on a sample before the whole is tried.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum codec {
    CODEC_RAW = 0,
    CODEC_LZ4 = 1, /* one LZ4 block (github.com/lz4/lz4 doc/lz4_Block_format.md) */
};

enum compress_mode {
    COMPRESS_AUTO = 0, /* lz4 where it pays, by sample */
    COMPRESS_LZ4 = 1,  /* lz4 wherever it saves anything */
    COMPRESS_NONE = 2,
};

#define CODEC_INPUT_BYTES_MAX (16u << 20)

const char *codec_name(enum codec codec);

/* Does data look compressible? Looks at no more than a few KiB. */
bool codec_worth_trying(const void *data, size_t bytes, enum compress_mode mode);

/* Compresses into out (room for at least out_bytes_max). -E2BIG: does not pay under `mode`, store it raw. */
int codec_pack(enum compress_mode mode, const void *data, size_t bytes, void *out, size_t out_bytes_max,
               size_t *ret_bytes);
/* Decodes exactly out_bytes; -EBADMSG for anything else. Safe on hostile input. */
int codec_unpack(enum codec codec, const void *data, size_t bytes, void *out, size_t out_bytes);

/* xxh3, 64 bits, seed 0 (github.com/Cyan4973/xxHash doc/xxhash_spec.md). */
uint64_t codec_checksum(const void *data, size_t bytes);
/* The same; codec_checksum calls it where the processor has AVX2. */
uint64_t codec_checksum_avx2(const void *data, size_t bytes);
