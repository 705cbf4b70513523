/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_big: a store with one value in a file of its own, which is the input.
 *
 * Byte 0 is how it is sealed, byte 1 what is done to the store, 8 bytes the size the index claims. As it is, the rest is
 * the file. Sealed, it is a packed file: a byte how many blocks, 8 bytes for each (4 of them what it takes, bit 31: raw), and the
 * blocks themselves; index and footer are made from that.
 */
#include <string.h>
#include <sys/stat.h>

#include "codec.h"
#include "fuzz_store.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define BLOCKS_MAX 12u
#define FILE_NAME "big/00/0000000000000001"
#define NODE_ID (2ull << 32 | 2)

enum {
    BIG_AS_IS = 1 << 0,
    BIG_RAW = 1 << 1,        /* the index says: raw, changed in place */
    BIG_SIZE = 1 << 2,       /* the size is the input's, in the index and in the footer */
    BIG_COUNT = 1 << 3,      /* the footer's count is off by one */
    BIG_LENGTHS = 1 << 4,    /* lengths of blocks are the input's */
    BIG_INDEX_LIES = 1 << 5, /* the index's size is the input's, the footer's is right */
    BIG_BLOCKS_BYTES = 1 << 6, /* the footer's is the input's */
};

static void put_log(const struct value *v)
{
    struct journal_header header = {.file_no = 1, .first_seq = 1};
    struct node_image n = {.id = LARDER_ROOT,
                           .mode = S_IFDIR | 0755,
                           .ttl_ns = POLICY_UNSET,
                           .idle_ns = POLICY_UNSET,
                           .expires_ns = POLICY_UNSET,
                           .pin = POLICY_BYTE_UNSET,
                           .compress = POLICY_BYTE_UNSET};
    struct name_image name = {.parent = LARDER_ROOT, .node = NODE_ID, .name = "f", .name_bytes = 1};
    uint8_t raw[DISK_JOURNAL_HEADER_BYTES];
    struct record_buffer rb = {0};
    struct fuzz_buffer log = {0};

    memcpy(header.store_id, fuzz_store_id, sizeof(fuzz_store_id));
    format_journal_header_pack(&header, raw);
    (void)fuzz_buffer_add(&log, raw, sizeof(raw));
    FUZZ_CHECK_OK(record_begin(&rb));
    FUZZ_CHECK_OK(record_add_node(&rb, &n));
    n.id = NODE_ID;
    n.mode = S_IFREG | 0600;
    n.value = *v;
    FUZZ_CHECK_OK(record_add_node(&rb, &n));
    FUZZ_CHECK_OK(record_add_name(&rb, &name));
    record_finish(&rb, 1, format_journal_seed(&header));
    (void)fuzz_buffer_add(&log, rb.data, rb.used);
    fuzz_store_put("journal-00000001", log.data, log.used);
    record_buffer_fini(&rb);
    fuzz_buffer_fini(&log);
}

/* Decodes a block as the engine must; what cannot be decoded gets a checksum of no meaning. */
static uint64_t know_block(struct fuzz_buffer *decoded, const uint8_t *block, uint32_t word, uint32_t bytes, bool *whole)
{
    uint8_t *out = fuzz_buffer_add(decoded, NULL, bytes);
    uint32_t stored = word & INT32_MAX;
    int r = codec_unpack(word >> 31 ? CODEC_RAW : CODEC_LZ4, block, stored, out, bytes);

    *whole &= r == 0;
    return r == 0 ? codec_checksum(out, bytes) : 0;
}

static void seal_footer(struct fuzz_buffer *file, uint32_t count, uint64_t size, uint64_t blocks_bytes, uint64_t index_sum)
{
    uint8_t *out = fuzz_buffer_add(file, NULL, DISK_PACKED_FOOTER_BYTES);

    memcpy(out, FORMAT_PACKED_MAGIC, 8);
    write_le32(out + 8, PACKED_BLOCK_BYTES);
    write_le32(out + 12, count);
    write_le64(out + 16, size);
    write_le64(out + 24, blocks_bytes);
    write_le64(out + 32, NODE_ID);
    write_le64(out + 40, index_sum);
    write_le64(out + 48, XXH3_64bits_withSeed(out, 48, 1));
}

/* Returns the size the footer tells. */
static uint64_t build_packed(struct fuzz_in *in, unsigned how, uint64_t said_size, struct fuzz_buffer *file)
{
    uint32_t count = fuzz_u8(in) % BLOCKS_MAX, words[BLOCKS_MAX];
    uint32_t last = count > 0 ? 1 + (uint32_t)(said_size % PACKED_BLOCK_BYTES) : 0;
    uint64_t size = count > 0 ? (uint64_t)(count - 1) * PACKED_BLOCK_BYTES + last : 0, blocks_bytes;
    struct fuzz_buffer index = {0}, decoded = {0};
    bool whole = !(how & (BIG_COUNT | BIG_BLOCKS_BYTES));

    for (uint32_t i = 0; i < count; i++)
        words[i] = (uint32_t)fuzz_u64(in);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bytes = i + 1 < count ? PACKED_BLOCK_BYTES : last;
        uint32_t stored = words[i] >> 31 ? bytes : MIN(words[i] & INT32_MAX, bytes);
        uint8_t *entry = fuzz_buffer_add(&index, NULL, DISK_PACKED_INDEX_BYTES);
        size_t got, at = file->used;
        const uint8_t *block = fuzz_take(in, stored, &got);
        (void)fuzz_buffer_add(file, block, got);
        (void)fuzz_buffer_add(file, NULL, words[i] >> 31 ? bytes - got : 0); /* a raw block is whole, by zeros */
        stored = words[i] >> 31 ? bytes : (uint32_t)got;
        words[i] = how & BIG_LENGTHS ? words[i] : (words[i] & 1u << 31) | stored;
        write_le32(entry, words[i]);
        write_le64(entry + 8, know_block(&decoded, file->data + at, (words[i] & 1u << 31) | stored, bytes, &whole));
    }
    blocks_bytes = file->used;
    (void)fuzz_buffer_add(file, index.data, index.used);
    if (how & BIG_SIZE)
        size = said_size & INT64_MAX;
    if (whole && size == decoded.used) {
        struct value v = {.kind = VALUE_PACKED};
        fuzz_know(NODE_ID, &v, decoded.data, decoded.used);
    }
    seal_footer(file, count + (how & BIG_COUNT ? 1 : 0), size, how & BIG_BLOCKS_BYTES ? said_size : blocks_bytes,
                codec_checksum(index.data, index.used));
    fuzz_buffer_fini(&index);
    fuzz_buffer_fini(&decoded);
    return size;
}

static void write_seed(unsigned no, unsigned how, unsigned flags, uint64_t size, const struct fuzz_buffer *body)
{
    uint8_t head[10] = {(uint8_t)how, (uint8_t)flags};
    struct fuzz_buffer b = {0};
    char name[64];

    write_le64(head + 2, size);
    (void)fuzz_buffer_add(&b, head, sizeof(head));
    (void)fuzz_buffer_add(&b, body->data, body->used);
    (void)snprintf(name, sizeof(name), "seed-%u", no);
    fuzz_seed(name, &b);
    fuzz_buffer_fini(&b);
}

/* The template's packed file, taken apart into what build_packed takes. */
static void write_seeds(void)
{
    struct fuzz_buffer file = {0}, body = {0};
    uint8_t *footer, *index, count;
    uint64_t size = 0;

    for (size_t i = 0; size == 0; i++) {
        const struct fuzz_known *k = fuzz_known(i);
        char name[FORMAT_NAME_BYTES];
        if (k->value.kind != VALUE_PACKED)
            continue;
        size = k->size;
        format_big_name(name, k->value.big_id);
        FUZZ_CHECK_OK(memdisk_read_file(fuzz_disk(), name, &file.data, &file.used));
    }
    footer = file.data + file.used - DISK_PACKED_FOOTER_BYTES;
    count = footer[12];
    index = footer - (size_t)count * DISK_PACKED_INDEX_BYTES;
    (void)fuzz_buffer_add(&body, &count, 1);
    for (unsigned i = 0; i < count; i++)
        (void)fuzz_buffer_add(&body, index + (size_t)i * DISK_PACKED_INDEX_BYTES, 8);
    (void)fuzz_buffer_add(&body, file.data, (size_t)(index - file.data));
    write_seed(0, 0, 0, (size - 1) % PACKED_BLOCK_BYTES, &body);
    write_seed(1, 0, FUZZ_CHANGE | FUZZ_INSPECT, (size - 1) % PACKED_BLOCK_BYTES, &body);
    write_seed(2, BIG_SIZE, 0, size, &body);
    write_seed(3, BIG_AS_IS, FUZZ_INSPECT, size, &file);
    write_seed(4, BIG_AS_IS | BIG_RAW, FUZZ_CHANGE, size, &file);
    fuzz_buffer_fini(&file);
    fuzz_buffer_fini(&body);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_store_init();
    fuzz_store_reset(true);
    write_seeds();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fuzz_in in = {.data = data, .left = bytes};
    unsigned how = fuzz_u8(&in), flags = fuzz_u8(&in);
    uint64_t size = fuzz_u64(&in);
    struct value v = {.kind = VALUE_PACKED, .big_id = 1, .size_bytes = size & INT64_MAX, .stored_bytes = size & INT64_MAX};
    struct fuzz_buffer file = {0};
    size_t got;

    fuzz_store_reset(false);
    if (how & BIG_AS_IS) {
        const uint8_t *said = fuzz_take(&in, in.left, &got);
        (void)fuzz_buffer_add(&file, said, got);
    } else {
        uint64_t told = build_packed(&in, how, size, &file);
        v.size_bytes = how & BIG_INDEX_LIES ? v.size_bytes : told;
    }
    if (how & BIG_RAW) {
        v.kind = VALUE_RAW;
        v.unsealed = true;
        fuzz_know(NODE_ID, &v, file.data, file.used);
    }
    fuzz_store_put(FILE_NAME, file.data, file.used);
    put_log(&v);
    fuzz_buffer_fini(&file);
    fuzz_exercise(flags);
    return 0;
}
