/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_segment: a store whose one segment is the input, and a journal made to point at every record in it.
 *
 * Byte 0 is how it is sealed, byte 1 what is done to the store; then come a 64-byte header and records: a header of 40
 * bytes, the payload, zeros up to 8. What the sealed record holds is worked out here once more: no other bytes may be
 * read. A record of kind SUMS is made the sums of the template's raw file.
 */
#include <string.h>
#include <sys/stat.h>

#include "codec.h"
#include "fuzz_store.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define RECORDS_MAX 40u
#define HEADER DISK_VALUE_HEADER_BYTES
#define BOMB_BYTES_MAX (1u << 20) /* what is decoded here to be compared; larger claims are only mounted */

enum {
    SEGMENT_AS_IS = 1 << 0,
    SEGMENT_HEADER = 1 << 1,     /* of the file: the input's, not even sealed */
    SEGMENT_SIZES = 1 << 2,      /* the record's lengths are the input's */
    SEGMENT_CHECKSUM = 1 << 3,   /* of the payload: the input's */
    SEGMENT_OVERLAP = 1 << 4,    /* the journal points into the middle of records as well */
    SEGMENT_INDEX_LIES = 1 << 5, /* the index claims other sizes than the record */
    SEGMENT_FOREIGN = 1 << 6,    /* records belong to other nodes than the index says */
};

struct segment_build {
    struct fuzz_buffer file;
    struct record_buffer log;
    unsigned how, count;
    uint64_t seed;
};

static uint64_t node_of(unsigned index)
{
    return (uint64_t)(index + 2) << 32 | (index + 2);
}

static void log_root(struct segment_build *b)
{
    struct node_image n = {.id = LARDER_ROOT,
                           .mode = S_IFDIR | 0755,
                           .ttl_ns = POLICY_UNSET,
                           .idle_ns = POLICY_UNSET,
                           .expires_ns = POLICY_UNSET,
                           .pin = POLICY_BYTE_UNSET,
                           .compress = POLICY_BYTE_UNSET};

    FUZZ_CHECK_OK(record_begin(&b->log));
    FUZZ_CHECK_OK(record_add_node(&b->log, &n));
}

static void log_file(struct segment_build *b, unsigned index, const struct value *v)
{
    struct node_image n = {.id = node_of(index),
                           .mode = S_IFREG | 0644,
                           .value = *v,
                           .ttl_ns = POLICY_UNSET,
                           .idle_ns = POLICY_UNSET,
                           .expires_ns = POLICY_UNSET,
                           .pin = POLICY_BYTE_UNSET,
                           .compress = POLICY_BYTE_UNSET};
    char name[16];
    struct name_image image = {.parent = LARDER_ROOT, .node = n.id, .name = name};

    image.name_bytes = (uint16_t)snprintf(name, sizeof(name), "f%u", index);
    FUZZ_CHECK_OK(record_add_node(&b->log, &n));
    FUZZ_CHECK_OK(record_add_name(&b->log, &image));
}

static const struct fuzz_known *raw_file(void)
{
    for (size_t i = 0;; i++)
        if (fuzz_known(i)->value.kind == VALUE_RAW)
            return fuzz_known(i);
}

/* Points a node at the record, in so far as the format lets one say so at all. */
static void log_record(struct segment_build *b, const struct record_info *info, uint32_t offset)
{
    struct value v = {.kind = VALUE_SEGMENT, .codec = info->codec, .size_bytes = info->logical_bytes,
                      .stored_bytes = info->stored_bytes, .place = {.segment_no = 1, .offset = offset}};

    if (info->kind == RECORD_SUMS) {
        v = raw_file()->value;
        v.sums_place = (struct place){.segment_no = 1, .offset = offset};
        v.sums_bytes = MAX(MIN(info->stored_bytes, CODEC_INPUT_BYTES_MAX), 1u);
    } else if (b->how & SEGMENT_INDEX_LIES) {
        v.size_bytes += b->count % 3;
        v.stored_bytes += b->count % 2;
    }
    if (v.kind == VALUE_SEGMENT) {
        v.codec = v.codec == CODEC_LZ4 && v.stored_bytes > 0 ? CODEC_LZ4 : CODEC_RAW;
        v.size_bytes = MIN(v.size_bytes, CODEC_INPUT_BYTES_MAX);
        v.stored_bytes = v.codec == CODEC_LZ4 ? MIN(v.stored_bytes, v.size_bytes) : v.size_bytes;
        if (v.stored_bytes == 0)
            v.codec = CODEC_RAW;
    }
    log_file(b, b->count++, &v);
}

/* Decodes what was sealed and remembers it. */
static void know_record(struct segment_build *b, struct record_info *info, const uint8_t *payload)
{
    struct value v = {.kind = VALUE_SEGMENT};
    uint8_t *out;

    if (info->logical_bytes > BOMB_BYTES_MAX || info->kind != RECORD_VALUE)
        return;
    out = malloc(info->logical_bytes + 1);
    FUZZ_CHECK(out);
    if (codec_unpack(info->codec, payload, info->stored_bytes, out, info->logical_bytes) == 0) {
        if (!(b->how & SEGMENT_CHECKSUM))
            info->checksum = codec_checksum(out, info->logical_bytes);
        fuzz_know(info->node_id, &v, out, info->logical_bytes);
    }
    free(out);
}

static void seal_record(struct segment_build *b, size_t at, const struct record_info *info)
{
    uint8_t *header = b->file.data + at;

    write_le32(header, FORMAT_VALUE_MAGIC);
    header[4] = (uint8_t)info->kind;
    header[5] = (uint8_t)info->codec;
    write_le16(header + 6, 0);
    write_le64(header + 8, info->node_id);
    write_le32(header + 16, info->logical_bytes);
    write_le32(header + 20, info->stored_bytes);
    write_le64(header + 24, info->checksum);
    write_le64(header + 32, XXH3_64bits_withSeed(header, 32, b->seed ^ at));
}

static void build_record(struct segment_build *b, struct fuzz_in *in)
{
    size_t at = b->file.used, got, bytes;
    const uint8_t *said = fuzz_take(in, HEADER, &got), *payload;
    struct record_info info = {.kind = said[4] % 4 == 2 ? RECORD_SUMS : RECORD_VALUE,
                               .codec = said[5] % 2,
                               .node_id = node_of(b->how & SEGMENT_FOREIGN ? said[8] % RECORDS_MAX : b->count),
                               .logical_bytes = read_le32(said + 16),
                               .stored_bytes = read_le32(said + 20),
                               .checksum = read_le64(said + 24)};

    (void)fuzz_buffer_add(&b->file, said, HEADER);
    payload = fuzz_take(in, info.stored_bytes, &bytes);
    (void)fuzz_buffer_add(&b->file, payload, bytes);
    (void)fuzz_buffer_add(&b->file, NULL, round_up(bytes, 8) - bytes);
    if (b->how & SEGMENT_AS_IS) {
        log_record(b, &info, (uint32_t)at);
        return;
    }
    if (!(b->how & SEGMENT_SIZES)) {
        info.stored_bytes = (uint32_t)bytes;
        info.logical_bytes = info.codec == CODEC_RAW ? info.stored_bytes : info.logical_bytes % BOMB_BYTES_MAX;
    }
    if (info.stored_bytes == bytes)
        know_record(b, &info, payload);
    if (info.kind == RECORD_SUMS && !(b->how & SEGMENT_CHECKSUM))
        info.checksum = codec_checksum(payload, bytes);
    seal_record(b, at, &info);
    log_record(b, &info, (uint32_t)at);
    if (b->how & SEGMENT_OVERLAP && bytes > 48)
        log_record(b, &info, (uint32_t)at + (bytes > 4096 ? 4096 : 48));
}

static void build(struct segment_build *b, struct fuzz_in *in)
{
    struct journal_header header = {.file_no = 1, .first_seq = 1};
    uint8_t raw[DISK_JOURNAL_HEADER_BYTES];
    struct fuzz_buffer log = {0};
    size_t got;
    const uint8_t *said = fuzz_take(in, DISK_SEGMENT_HEADER_BYTES, &got);

    b->seed = format_seed(fuzz_store_id, 1);
    log_root(b);
    (void)fuzz_buffer_add(&b->file, NULL, DISK_SEGMENT_HEADER_BYTES);
    format_segment_header_pack(fuzz_store_id, 1, b->file.data);
    if (b->how & SEGMENT_HEADER)
        memcpy(b->file.data, said, got);
    while (in->left >= HEADER && b->count + 2 < RECORDS_MAX)
        build_record(b, in);
    fuzz_store_put("seg-00000001", b->file.data, b->file.used);
    memcpy(header.store_id, fuzz_store_id, sizeof(fuzz_store_id));
    format_journal_header_pack(&header, raw);
    (void)fuzz_buffer_add(&log, raw, sizeof(raw));
    record_finish(&b->log, 1, format_journal_seed(&header));
    (void)fuzz_buffer_add(&log, b->log.data, b->log.used);
    fuzz_store_put("journal-00000001", log.data, log.used);
    fuzz_buffer_fini(&log);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const uint8_t heads[][2] = {{0, 0}, {SEGMENT_AS_IS, 0}, {SEGMENT_OVERLAP, FUZZ_CLEAN}, {SEGMENT_SIZES, FUZZ_CHANGE | FUZZ_CLEAN},
                                       {0, FUZZ_INSPECT | FUZZ_CHANGE | FUZZ_CLEAN}, {SEGMENT_FOREIGN, FUZZ_INSPECT}};
    struct fuzz_buffer file = {0}, b = {0};
    char name[64];

    (void)argc;
    (void)argv;
    fuzz_store_init();
    fuzz_store_reset(true);
    FUZZ_CHECK_OK(memdisk_read_file(fuzz_disk(), "seg-00000001", &file.data, &file.used));
    for (unsigned i = 0; i < ARRAY_COUNT(heads); i++) {
        b.used = 0;
        (void)fuzz_buffer_add(&b, heads[i], 2);
        (void)fuzz_buffer_add(&b, file.data, file.used);
        (void)snprintf(name, sizeof(name), "seed-%u", i);
        fuzz_seed(name, &b);
    }
    fuzz_buffer_fini(&b);
    fuzz_buffer_fini(&file);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fuzz_in in = {.data = data, .left = bytes};
    struct segment_build b = {0};
    unsigned flags;

    b.how = fuzz_u8(&in);
    flags = fuzz_u8(&in);
    fuzz_store_reset(true);
    build(&b, &in);
    fuzz_buffer_fini(&b.file);
    record_buffer_fini(&b.log);
    fuzz_exercise(flags);
    return 0;
}
