/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * format: packs, unpacks and judges the bytes that format.h specifies.
 *
 * Packing asserts what unpacking verifies: nothing is written that would be refused when read. Unpacking
 * takes bytes as hostile even behind a good checksum: every length is checked against what is left before
 * it is used, every enum against its range, every reserved field against zero, and nothing is allocated.
 *
 * A value is written in canonical form: a field that means nothing for its kind is 0 on disk whatever it
 * is in memory, and anything else there is refused.
 *
 * What may never happen: a read outside the given bytes; a view of an entry whose fields break format.h.
 */
#include "format.h"

#define XXH_INLINE_ALL
#include <stdio.h>
#include <sys/stat.h>
#include <xxhash.h>

static int entry_take(const struct record_view *view, uint32_t *offset, struct entry_view *ret_entry);

#define BODY_BYTES_MAX 0xffffffu
#define TLV_HEADER_BYTES 8u
#define NAME_BODY_BYTES 26u   /* before the name */
#define UNNAME_BODY_BYTES 10u /* before the name */
#define DROP_BODY_BYTES 9u
#define USE_BODY_BYTES 4u /* before the items */
#define USE_ITEM_BYTES 20u
#define BOOT_BODY_BYTES 24u
#define TOUCH_BODY_BYTES 16u
#define RECALL_BODY_BYTES 8u /* and the nodes */
#define RECALL_NODE_BYTES 8u
#define CHANGED_LOOK_BACK 4u
#define END_BODY_BYTES 65u
#define VALUE_BYTES 48u  /* struct value as packed inside NODE, from offset 80 */
#define VALUE_OFFSET 80u /* in a NODE body */
#define RECORD_BUFFER_BYTES_MIN 1024u
#define HEADER_CHECKED_BYTES 56u /* of the 64-byte file headers */
#define RECORD_CHECKED_BYTES 24u /* of the record header; its checksum follows */
#define SEED_INDEX (1ull << 32)
#define PERMISSION_BITS 07777u

static_assert(DISK_NODE_BYTES == 160, "NODE body is 160 bytes before its TLVs");
static_assert(VALUE_OFFSET + VALUE_BYTES == 128, "the value ends where the policy begins");
static_assert(HEADER_CHECKED_BYTES + 8 == DISK_SUPERBLOCK_BYTES, "the checksum closes the superblock");
static_assert(HEADER_CHECKED_BYTES + 8 == DISK_JOURNAL_HEADER_BYTES, "the checksum closes the journal header");
static_assert(HEADER_CHECKED_BYTES + 8 == DISK_SEGMENT_HEADER_BYTES, "the checksum closes the segment header");
static_assert(RECORD_CHECKED_BYTES + 8 == DISK_RECORD_HEADER_BYTES, "the checksum closes the record header");
static_assert(DISK_NODE_BYTES + XATTR_NODE_BYTES_MAX < BODY_BYTES_MAX, "the largest node's length fits its field");
static_assert(DISK_NODE_BYTES + XATTR_NODE_BYTES_MAX < RECORD_PAYLOAD_BYTES_MAX / 2,
              "the largest node fits a record beside others");
static_assert(INT64_MAX >= CODEC_INPUT_BYTES_MAX, "a segment value is a legal size");

/* ---- file headers ---- */

uint64_t format_seed(const uint8_t store_id[16], uint64_t file_no)
{
    uint8_t bytes[24];

    memcpy(bytes, store_id, 16);
    write_le64(bytes + 16, file_no);
    return XXH3_64bits(bytes, sizeof(bytes));
}

uint64_t format_journal_seed(const struct journal_header *h)
{
    return format_seed(h->store_id, h->is_index ? SEED_INDEX | h->file_no : h->file_no);
}

static void header_close(uint8_t *out)
{
    write_le64(out + HEADER_CHECKED_BYTES, XXH3_64bits(out, HEADER_CHECKED_BYTES));
}

/* Magic and checksum first: only then is the version worth believing. Every later version keeps the three in place. */
static int header_judge(const uint8_t *in, const char *magic)
{
    if (memcmp(in, magic, 8) != 0)
        return -EBADMSG;
    if (read_le64(in + HEADER_CHECKED_BYTES) != XXH3_64bits(in, HEADER_CHECKED_BYTES))
        return -EBADMSG;
    if (read_le32(in + 8) > FORMAT_VERSION)
        return -EPROTONOSUPPORT;
    return read_le32(in + 8) == FORMAT_VERSION ? 0 : -EBADMSG;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
    uint8_t any = 0;

    for (size_t i = 0; i < count; i++)
        any |= bytes[i];
    return any == 0;
}

void format_superblock_pack(const struct superblock *sb, uint8_t out[DISK_SUPERBLOCK_BYTES])
{
    memset(out, 0, DISK_SUPERBLOCK_BYTES);
    memcpy(out, FORMAT_MAGIC, 8);
    write_le32(out + 8, FORMAT_VERSION);
    memcpy(out + 16, sb->store_id, 16);
    write_le64(out + 32, sb->created_ns);
    header_close(out);
}

int format_superblock_unpack(const uint8_t in[DISK_SUPERBLOCK_BYTES], struct superblock *ret_sb)
{
    int r = header_judge(in, FORMAT_MAGIC);

    if (r == -EPROTONOSUPPORT)
        ret_sb->version = read_le32(in + 8);
    if (r < 0)
        return r;
    if (read_le32(in + 12) != 0)
        return -EBADMSG;
    if (!all_zero(in + 40, 16))
        return -EBADMSG;
    ret_sb->version = FORMAT_VERSION;
    memcpy(ret_sb->store_id, in + 16, 16);
    ret_sb->created_ns = read_le64(in + 32);
    return 0;
}

/* keeps apart: a journal names no start of replay, an index always does */
static bool journal_header_is_legal(const struct journal_header *h)
{
    if (h->file_no == 0)
        return false;
    if (h->first_seq == 0)
        return false;
    if (h->replay_from_no > UINT32_MAX)
        return false;
    return h->is_index == (h->replay_from_no != 0);
}

void format_journal_header_pack(const struct journal_header *h, uint8_t out[DISK_JOURNAL_HEADER_BYTES])
{
    assert(journal_header_is_legal(h));
    memset(out, 0, DISK_JOURNAL_HEADER_BYTES);
    memcpy(out, h->is_index ? FORMAT_INDEX_MAGIC : FORMAT_JOURNAL_MAGIC, 8);
    write_le32(out + 8, FORMAT_VERSION);
    write_le32(out + 12, h->file_no);
    memcpy(out + 16, h->store_id, 16);
    write_le64(out + 32, h->first_seq);
    write_le64(out + 40, h->replay_from_no);
    header_close(out);
}

int format_journal_header_unpack(const uint8_t in[DISK_JOURNAL_HEADER_BYTES], struct journal_header *ret_h)
{
    struct journal_header h = {.is_index = memcmp(in, FORMAT_INDEX_MAGIC, 8) == 0};
    int r;

    r = header_judge(in, h.is_index ? FORMAT_INDEX_MAGIC : FORMAT_JOURNAL_MAGIC);
    if (r < 0)
        return r;
    h.file_no = read_le32(in + 12);
    memcpy(h.store_id, in + 16, 16);
    h.first_seq = read_le64(in + 32);
    h.replay_from_no = read_le64(in + 40);
    if (!all_zero(in + 48, 8))
        return -EBADMSG;
    if (!journal_header_is_legal(&h) || h.first_seq > FIRST_SEQ_MAX)
        return -EBADMSG;
    *ret_h = h;
    return 0;
}

void format_segment_header_pack(const uint8_t store_id[16], uint32_t segment_no, uint8_t out[DISK_SEGMENT_HEADER_BYTES])
{
    assert(segment_no != 0);
    memset(out, 0, DISK_SEGMENT_HEADER_BYTES);
    memcpy(out, FORMAT_SEGMENT_MAGIC, 8);
    write_le32(out + 8, FORMAT_VERSION);
    write_le32(out + 12, segment_no);
    memcpy(out + 16, store_id, 16);
    header_close(out);
}

int format_segment_header_unpack(const uint8_t in[DISK_SEGMENT_HEADER_BYTES], const uint8_t store_id[16],
                                 uint32_t segment_no)
{
    int r = header_judge(in, FORMAT_SEGMENT_MAGIC);

    if (r < 0)
        return r;
    if (read_le32(in + 12) != segment_no)
        return -EBADMSG;
    if (memcmp(in + 16, store_id, 16) != 0)
        return -EBADMSG;
    return all_zero(in + 32, 24) ? 0 : -EBADMSG;
}

/* ---- segment records ---- */

static bool record_info_is_legal(const struct record_info *info)
{
    if (info->kind != RECORD_VALUE && info->kind != RECORD_SUMS)
        return false;
    if (info->logical_bytes > CODEC_INPUT_BYTES_MAX)
        return false;
    if (info->codec == CODEC_RAW)
        return info->stored_bytes == info->logical_bytes;
    if (info->codec != CODEC_LZ4)
        return false;
    return info->stored_bytes > 0 && info->stored_bytes <= info->logical_bytes;
}

void format_value_header_pack(const struct record_info *info, uint64_t seed, uint32_t offset,
                              uint8_t out[DISK_VALUE_HEADER_BYTES])
{
    assert(record_info_is_legal(info));
    write_le32(out, FORMAT_VALUE_MAGIC);
    out[4] = (uint8_t)info->kind;
    out[5] = (uint8_t)info->codec;
    write_le16(out + 6, 0);
    write_le64(out + 8, info->node_id);
    write_le32(out + 16, info->logical_bytes);
    write_le32(out + 20, info->stored_bytes);
    write_le64(out + 24, info->checksum);
    write_le64(out + 32, XXH3_64bits_withSeed(out, 32, seed ^ offset));
}

int format_value_header_unpack(const uint8_t in[DISK_VALUE_HEADER_BYTES], uint64_t seed, uint32_t offset,
                               struct record_info *ret_info)
{
    struct record_info info;

    if (read_le32(in) != FORMAT_VALUE_MAGIC)
        return -EBADMSG;
    if (read_le64(in + 32) != XXH3_64bits_withSeed(in, 32, seed ^ offset))
        return -EBADMSG;
    if (read_le16(in + 6) != 0)
        return -EBADMSG;
    info = (struct record_info){
        .kind = in[4],
        .codec = in[5],
        .node_id = read_le64(in + 8),
        .logical_bytes = read_le32(in + 16),
        .stored_bytes = read_le32(in + 20),
        .checksum = read_le64(in + 24),
    };
    if (!record_info_is_legal(&info))
        return -EBADMSG;
    *ret_info = info;
    return 0;
}

/* ---- values ---- */

static bool place_is_legal(struct place place)
{
    return place.segment_no != 0 && place.offset >= DISK_SEGMENT_HEADER_BYTES && place.offset % 8 == 0;
}

static bool place_is_nowhere(struct place place)
{
    return place.segment_no == 0 && place.offset == 0;
}

static bool value_segment_is_legal(const struct value *v)
{
    if (v->size_bytes > CODEC_INPUT_BYTES_MAX)
        return false;
    if (v->codec == CODEC_RAW && v->stored_bytes != v->size_bytes)
        return false;
    if (v->codec != CODEC_RAW && (v->codec != CODEC_LZ4 || v->stored_bytes == 0))
        return false;
    if (v->stored_bytes > v->size_bytes)
        return false;
    return place_is_legal(v->place) && v->big_id == 0;
}

static bool value_sums_are_legal(const struct value *v)
{
    if (v->sums_bytes == 0)
        return place_is_nowhere(v->sums_place);
    return v->kind == VALUE_RAW && !v->unsealed && v->sums_bytes <= CODEC_INPUT_BYTES_MAX && place_is_legal(v->sums_place);
}

static bool value_is_legal(const struct value *v)
{
    if (v->size_bytes > INT64_MAX)
        return false;
    if (v->stored_bytes > INT64_MAX)
        return false;
    if (!value_sums_are_legal(v))
        return false;
    if (v->unsealed && v->kind != VALUE_RAW)
        return false;
    if (v->kind == VALUE_SEGMENT)
        return value_segment_is_legal(v);
    if (v->codec != CODEC_RAW || !place_is_nowhere(v->place))
        return false;
    if (v->kind == VALUE_EMPTY)
        return v->size_bytes == 0 && v->stored_bytes == 0 && v->big_id == 0;
    return (v->kind == VALUE_RAW || v->kind == VALUE_PACKED) && v->big_id != 0;
}

/* Only what means something for the kind. */
static struct value value_canonical(const struct value *v)
{
    struct value c = {.kind = v->kind, .size_bytes = v->size_bytes};

    if (v->kind == VALUE_EMPTY)
        return c;
    c.stored_bytes = v->stored_bytes;
    if (v->kind == VALUE_SEGMENT) {
        c.codec = v->codec;
        c.place = v->place;
        return c;
    }
    c.big_id = v->big_id;
    if (v->kind == VALUE_RAW) {
        c.unsealed = v->unsealed;
        if (!v->unsealed && v->sums_bytes > 0) {
            c.sums_place = v->sums_place;
            c.sums_bytes = v->sums_bytes;
        }
    }
    return c;
}

static void value_pack(const struct value *value, uint8_t out[VALUE_BYTES])
{
    struct value v = value_canonical(value);

    assert(value_is_legal(&v));
    out[0] = (uint8_t)v.kind;
    out[1] = (uint8_t)v.codec;
    out[2] = v.unsealed ? 1 : 0;
    out[3] = 0;
    write_le32(out + 4, v.sums_bytes);
    write_le64(out + 8, v.size_bytes);
    write_le64(out + 16, v.stored_bytes);
    write_le32(out + 24, v.place.segment_no);
    write_le32(out + 28, v.place.offset);
    write_le64(out + 32, v.big_id);
    write_le32(out + 40, v.sums_place.segment_no);
    write_le32(out + 44, v.sums_place.offset);
}

static int value_unpack(const uint8_t in[VALUE_BYTES], struct value *ret_v)
{
    if (in[2] > 1 || in[3] != 0)
        return -EBADMSG;
    *ret_v = (struct value){
        .kind = in[0],
        .codec = in[1],
        .unsealed = in[2] == 1,
        .sums_bytes = read_le32(in + 4),
        .size_bytes = read_le64(in + 8),
        .stored_bytes = read_le64(in + 16),
        .place = {.segment_no = read_le32(in + 24), .offset = read_le32(in + 28)},
        .big_id = read_le64(in + 32),
        .sums_place = {.segment_no = read_le32(in + 40), .offset = read_le32(in + 44)},
    };
    return value_is_legal(ret_v) ? 0 : -EBADMSG;
}

/* ---- TLVs, names, nodes: what is legal ---- */

size_t tlv_put(uint8_t *out, enum node_tlv kind, const char *name, size_t name_bytes, const void *value, size_t value_bytes)
{
    assert(name_bytes <= XATTR_NAME_BYTES_MAX);
    assert(value_bytes <= XATTR_VALUE_BYTES_MAX);
    if (out) {
        out[0] = (uint8_t)kind;
        out[1] = (uint8_t)name_bytes;
        write_le16(out + 2, 0);
        write_le32(out + 4, (uint32_t)value_bytes);
        if (name_bytes > 0)
            memcpy(out + TLV_HEADER_BYTES, name, name_bytes);
        if (value_bytes > 0)
            memcpy(out + TLV_HEADER_BYTES + name_bytes, value, value_bytes);
    }
    return TLV_HEADER_BYTES + name_bytes + value_bytes;
}

int tlv_next(const uint8_t *tlv, uint32_t tlv_bytes, uint32_t *offset, struct tlv_view *ret_tlv)
{
    const uint8_t *p;
    uint32_t left;

    if (*offset >= tlv_bytes)
        return -ENODATA;
    p = tlv + *offset;
    left = tlv_bytes - *offset;
    if (left < TLV_HEADER_BYTES)
        return -EBADMSG;
    left -= TLV_HEADER_BYTES;
    if (p[1] > left || read_le32(p + 4) > left - p[1])
        return -EBADMSG;
    *ret_tlv = (struct tlv_view){
        .kind = p[0],
        .name_bytes = p[1],
        .value_bytes = read_le32(p + 4),
        .name = p + TLV_HEADER_BYTES,
        .value = p + TLV_HEADER_BYTES + p[1],
    };
    if (read_le16(p + 2) != 0)
        return -EBADMSG;
    *offset += TLV_HEADER_BYTES + ret_tlv->name_bytes + ret_tlv->value_bytes;
    return 0;
}

static bool tlv_is_legal(const struct tlv_view *t)
{
    switch (t->kind) {
    case NODE_TLV_SYMLINK:
        if (t->name_bytes != 0 || t->value_bytes == 0 || t->value_bytes > SYMLINK_BYTES_MAX)
            return false;
        return memchr(t->value, 0, t->value_bytes) == NULL;
    case NODE_TLV_XATTR:
        if (t->name_bytes == 0 || t->value_bytes > XATTR_VALUE_BYTES_MAX)
            return false;
        return memchr(t->name, 0, t->name_bytes) == NULL;
    }
    return false;
}

/* A symbolic link has exactly one target, nothing else has any. */
static bool tlvs_are_legal(const struct node_image *n)
{
    unsigned targets_wanted = (n->mode & S_IFMT) == S_IFLNK ? 1 : 0;
    unsigned target_count = 0;
    uint32_t offset = 0;
    struct tlv_view t;
    int r;

    if (n->tlv_bytes > XATTR_NODE_BYTES_MAX) /* else a node could outgrow the record it is logged in */
        return false;
    while ((r = tlv_next(n->tlv, n->tlv_bytes, &offset, &t)) == 0) {
        if (!tlv_is_legal(&t))
            return false;
        target_count += t.kind == NODE_TLV_SYMLINK;
    }
    return r == -ENODATA && target_count == targets_wanted;
}

static bool mode_is_legal(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFIFO:
    case S_IFSOCK:
    case S_IFCHR:
    case S_IFBLK:
        return (mode & ~((uint32_t)S_IFMT | PERMISSION_BITS)) == 0;
    default:
        return false;
    }
}

/* The value is judged apart (value_is_legal), in its canonical form. */
static bool node_is_legal(const struct node_image *n)
{
    if (!mode_is_legal(n->mode))
        return false;
    if (n->value.kind != VALUE_EMPTY && (n->mode & S_IFMT) != S_IFREG)
        return false;
    if (n->pin > 1 && n->pin != POLICY_BYTE_UNSET)
        return false;
    if (n->compress > COMPRESS_NONE && n->compress != POLICY_BYTE_UNSET)
        return false;
    return tlvs_are_legal(n);
}

static bool name_is_legal(const char *name, size_t name_bytes)
{
    if (name_bytes == 0 || name_bytes > NAME_BYTES_MAX)
        return false;
    if (name[0] == '.' && (name_bytes == 1 || (name_bytes == 2 && name[1] == '.')))
        return false;
    return memchr(name, '/', name_bytes) == NULL && memchr(name, 0, name_bytes) == NULL;
}

/* ---- building a record ---- */

void record_buffer_fini(struct record_buffer *rb)
{
    free(rb->data);
    *rb = (struct record_buffer){0};
}

/* Room for `bytes` more after what is used. */
static int record_buffer_grow(struct record_buffer *rb, size_t bytes)
{
    size_t allocated = MAX(rb->allocated, (size_t)RECORD_BUFFER_BYTES_MIN);
    uint8_t *data;

    if (rb->allocated - rb->used >= bytes)
        return 0;
    while (allocated - rb->used < bytes)
        allocated *= 2;
    data = realloc(rb->data, allocated);
    if (!data)
        return -ENOMEM;
    rb->data = data;
    rb->allocated = allocated;
    return 0;
}

int record_begin(struct record_buffer *rb)
{
    int r;

    rb->used = 0;
    rb->entry_count = 0;
    rb->node_count = 0;
    rb->name_count = 0;
    rb->changed_count = 0;
    r = record_buffer_grow(rb, DISK_RECORD_HEADER_BYTES);
    if (r < 0)
        return r;
    memset(rb->data, 0, DISK_RECORD_HEADER_BYTES);
    rb->used = DISK_RECORD_HEADER_BYTES;
    return 0;
}

/* A few entries in a row are usually about one node; one named twice over a longer way does no harm. */
void record_changes(struct record_buffer *rb, uint64_t node)
{
    uint32_t known = MIN(rb->changed_count, RECALL_NODES_MAX);

    for (uint32_t i = 1; i <= MIN(known, CHANGED_LOOK_BACK); i++) {
        if (rb->changed[known - i] == node)
            return;
    }
    if (known < RECALL_NODES_MAX)
        rb->changed[known] = node;
    rb->changed_count = known + 1;
}

/* Writes the entry's header and says where its body goes; the caller fills all of it. Room for the padding
 * is made here, so that record_finish cannot fail. */
static int entry_add(struct record_buffer *rb, enum entry_type type, size_t body_bytes, uint8_t **ret_body)
{
    size_t bytes = DISK_ENTRY_HEADER_BYTES + body_bytes;
    uint8_t *p;
    int r;

    assert(rb->used >= DISK_RECORD_HEADER_BYTES);
    if (rb->used - DISK_RECORD_HEADER_BYTES + bytes > RECORD_PAYLOAD_BYTES_MAX)
        return -E2BIG;
    r = record_buffer_grow(rb, bytes + 8);
    if (r < 0)
        return r;
    p = rb->data + rb->used;
    write_le32(p, (uint32_t)type | (uint32_t)body_bytes << 8);
    rb->used += bytes;
    rb->entry_count++;
    rb->node_count += type == ENTRY_NODE;
    rb->name_count += type == ENTRY_NAME;
    *ret_body = p + DISK_ENTRY_HEADER_BYTES;
    return 0;
}

static void node_pack(const struct node_image *n, uint8_t *out)
{
    write_le64(out, n->id);
    write_le32(out + 8, n->mode);
    write_le32(out + 12, n->uid);
    write_le32(out + 16, n->gid);
    write_le32(out + 20, n->hits);
    write_le64(out + 24, n->rdev);
    write_le64(out + 32, (uint64_t)n->atime_ns);
    write_le64(out + 40, (uint64_t)n->mtime_ns);
    write_le64(out + 48, (uint64_t)n->ctime_ns);
    write_le64(out + 56, n->written_ns);
    write_le64(out + 64, n->used_ns);
    write_le64(out + 72, (uint64_t)n->btime_ns);
    value_pack(&n->value, out + VALUE_OFFSET);
    write_le64(out + 128, n->ttl_ns);
    write_le64(out + 136, n->idle_ns);
    write_le64(out + 144, n->expires_ns);
    out[152] = n->pin;
    out[153] = n->compress;
    memset(out + 154, 0, 6);
    if (n->tlv_bytes > 0)
        memcpy(out + DISK_NODE_BYTES, n->tlv, n->tlv_bytes);
}

int record_add_node(struct record_buffer *rb, const struct node_image *n)
{
    uint8_t *body;
    int r;

    assert(node_is_legal(n));
    r = entry_add(rb, ENTRY_NODE, DISK_NODE_BYTES + (size_t)n->tlv_bytes, &body);
    if (r < 0)
        return r;
    node_pack(n, body);
    record_changes(rb, n->id);
    return 0;
}

int record_add_name(struct record_buffer *rb, const struct name_image *n)
{
    uint8_t *body;
    int r;

    assert(name_is_legal(n->name, n->name_bytes));
    r = entry_add(rb, ENTRY_NAME, NAME_BODY_BYTES + (size_t)n->name_bytes, &body);
    if (r < 0)
        return r;
    write_le64(body, n->parent);
    write_le64(body + 8, n->node);
    write_le64(body + 16, n->cookie);
    write_le16(body + 24, n->name_bytes);
    memcpy(body + NAME_BODY_BYTES, n->name, n->name_bytes);
    record_changes(rb, n->node);
    return 0;
}

int record_add_unname(struct record_buffer *rb, uint64_t parent, const char *name, size_t name_bytes)
{
    uint8_t *body;
    int r;

    assert(name_is_legal(name, name_bytes));
    r = entry_add(rb, ENTRY_UNNAME, UNNAME_BODY_BYTES + name_bytes, &body);
    if (r < 0)
        return r;
    write_le64(body, parent);
    write_le16(body + 8, (uint16_t)name_bytes);
    memcpy(body + UNNAME_BODY_BYTES, name, name_bytes);
    return 0;
}

int record_add_drop(struct record_buffer *rb, uint64_t node, enum drop_reason reason)
{
    uint8_t *body;
    int r;

    assert(reason < DROP_REASON_COUNT);
    r = entry_add(rb, ENTRY_DROP, DROP_BODY_BYTES, &body);
    if (r < 0)
        return r;
    write_le64(body, node);
    body[8] = (uint8_t)reason;
    record_changes(rb, node);
    return 0;
}

int record_add_value(struct record_buffer *rb, uint64_t node, const struct value *v)
{
    uint8_t *body;
    int r;

    r = entry_add(rb, ENTRY_VALUE, 8 + VALUE_BYTES, &body);
    if (r < 0)
        return r;
    write_le64(body, node);
    value_pack(v, body + 8);
    record_changes(rb, node);
    return 0;
}

int record_add_recall(struct record_buffer *rb, uint64_t first_seq, const uint64_t *nodes, uint32_t count)
{
    uint8_t *body;
    int r;

    assert(count <= RECALL_NODES_MAX);
    r = entry_add(rb, ENTRY_RECALL, RECALL_BODY_BYTES + (size_t)count * RECALL_NODE_BYTES, &body);
    if (r < 0)
        return r;
    write_le64(body, first_seq);
    for (uint32_t i = 0; i < count; i++)
        write_le64(body + RECALL_BODY_BYTES + i * RECALL_NODE_BYTES, nodes[i]);
    return 0;
}

int record_add_use(struct record_buffer *rb, const struct use_image *uses, uint32_t count)
{
    uint8_t *body;
    int r;

    r = entry_add(rb, ENTRY_USE, USE_BODY_BYTES + (size_t)count * USE_ITEM_BYTES, &body);
    if (r < 0)
        return r;
    write_le32(body, count);
    body += USE_BODY_BYTES;
    for (uint32_t i = 0; i < count; i++, body += USE_ITEM_BYTES) {
        write_le64(body, uses[i].node);
        write_le64(body + 8, uses[i].used_ns);
        write_le32(body + 16, uses[i].hits);
    }
    return 0;
}

int record_add_touch(struct record_buffer *rb, uint64_t directory, int64_t changed_ns)
{
    uint8_t *body;
    int r;

    r = entry_add(rb, ENTRY_TOUCH, TOUCH_BODY_BYTES, &body);
    if (r < 0)
        return r;
    write_le64(body, directory);
    write_le64(body + 8, (uint64_t)changed_ns);
    return 0;
}

int record_add_boot(struct record_buffer *rb, const uint8_t boot_id[16], uint64_t cache_ns)
{
    uint8_t *body;
    int r;

    r = entry_add(rb, ENTRY_BOOT, BOOT_BODY_BYTES, &body);
    if (r < 0)
        return r;
    memcpy(body, boot_id, 16);
    write_le64(body + 16, cache_ns);
    return 0;
}

int record_add_end(struct record_buffer *rb, const struct end_image *e)
{
    uint8_t *body;
    int r;

    r = entry_add(rb, ENTRY_END, END_BODY_BYTES, &body);
    if (r < 0)
        return r;
    write_le64(body, e->nodes);
    write_le64(body + 8, e->names);
    write_le64(body + 16, e->next_generation);
    write_le64(body + 24, e->cache_ns);
    write_le64(body + 32, e->last_seq);
    write_le64(body + 40, e->next_big_id);
    memcpy(body + 48, e->boot_id, 16);
    body[64] = e->clean ? 1 : 0;
    return 0;
}

/* The header is hashed into the payload's seed: one pass, no copy, and neither can be changed alone. */
static uint64_t record_checksum(const uint8_t *record, size_t payload_bytes, uint64_t seed)
{
    uint64_t header = XXH3_64bits_withSeed(record, RECORD_CHECKED_BYTES, seed);

    return XXH3_64bits_withSeed(record + DISK_RECORD_HEADER_BYTES, payload_bytes, header);
}

void record_finish(struct record_buffer *rb, uint64_t seq, uint64_t seed)
{
    size_t payload_bytes = rb->used - DISK_RECORD_HEADER_BYTES;
    size_t padding_bytes = (8 - payload_bytes % 8) % 8;

    assert(rb->used >= DISK_RECORD_HEADER_BYTES);
    assert(rb->entry_count > 0);
    assert(rb->allocated - rb->used >= padding_bytes);
    memset(rb->data + rb->used, 0, padding_bytes);
    rb->used += padding_bytes;
    write_le32(rb->data, FORMAT_RECORD_MAGIC);
    write_le32(rb->data + 4, (uint32_t)payload_bytes);
    write_le64(rb->data + 8, seq);
    write_le32(rb->data + 16, rb->entry_count);
    write_le32(rb->data + 20, 0);
    write_le64(rb->data + 24, record_checksum(rb->data, payload_bytes, seed));
}

/* ---- reading a record ---- */

uint32_t record_claimed_bytes(const uint8_t *data, size_t bytes)
{
    uint32_t payload_bytes;

    if (bytes < DISK_RECORD_HEADER_BYTES)
        return 0;
    if (read_le32(data) != FORMAT_RECORD_MAGIC || read_le32(data + 20) != 0)
        return 0;
    payload_bytes = read_le32(data + 4);
    if (payload_bytes > RECORD_PAYLOAD_BYTES_MAX)
        return 0;
    return DISK_RECORD_HEADER_BYTES + (uint32_t)round_up(payload_bytes, 8);
}

/* Everything but the order of seqs. */
static int record_judge(const uint8_t *data, size_t bytes, uint64_t seed, struct record_view *ret_view)
{
    uint32_t total_bytes = record_claimed_bytes(data, bytes);
    uint32_t payload_bytes;

    if (total_bytes == 0 || total_bytes > bytes)
        return -EBADMSG;
    payload_bytes = read_le32(data + 4);
    if (!all_zero(data + DISK_RECORD_HEADER_BYTES + payload_bytes, total_bytes - DISK_RECORD_HEADER_BYTES - payload_bytes))
        return -EBADMSG;
    if (read_le64(data + 24) != record_checksum(data, payload_bytes, seed))
        return -EBADMSG;
    *ret_view = (struct record_view){
        .seq = read_le64(data + 8),
        .entry_count = read_le32(data + 16),
        .payload = data + DISK_RECORD_HEADER_BYTES,
        .payload_bytes = payload_bytes,
        .total_bytes = total_bytes,
    };
    return 0;
}

int record_parse(const uint8_t *data, size_t bytes, uint64_t expected_seq, uint64_t seed, struct record_view *ret_view)
{
    if (bytes < DISK_RECORD_HEADER_BYTES || read_le64(data + 8) != expected_seq)
        return -EBADMSG; /* before the checksum: it is the cheaper test */
    return record_judge(data, bytes, seed, ret_view);
}

bool record_find(const uint8_t *data, size_t bytes, uint64_t seq_min, uint64_t seed, uint64_t *hash_budget_bytes,
                 size_t *ret_offset, uint64_t *ret_seq)
{
    struct record_view view;

    for (size_t offset = 0; offset + DISK_RECORD_HEADER_BYTES <= bytes; offset += 8) {
        uint32_t claimed_bytes = record_claimed_bytes(data + offset, bytes - offset);
        uint64_t seq = read_le64(data + offset + 8);

        if (claimed_bytes == 0 || claimed_bytes > bytes - offset || seq < seq_min || seq > FIRST_SEQ_MAX)
            continue;
        if (*hash_budget_bytes < claimed_bytes)
            return false;
        *hash_budget_bytes -= claimed_bytes;
        if (record_judge(data + offset, bytes - offset, seed, &view) == 0 && record_check(&view) == 0) {
            *ret_offset = offset;
            *ret_seq = view.seq;
            return true;
        }
    }
    return false;
}

int record_check(const struct record_view *view)
{
    struct entry_view entry;
    uint32_t offset = 0, count = 0;
    int r;

    while ((r = entry_take(view, &offset, &entry)) == 0)
        count++;
    if (r != -ENODATA)
        return r;
    return count == view->entry_count ? 0 : -EBADMSG;
}

int entry_next(const struct record_view *view, uint32_t *offset, struct entry_view *ret_entry)
{
    return entry_take(view, offset, ret_entry);
}

static int node_unpack(const uint8_t *body, uint32_t bytes, struct node_image *ret_n)
{
    int r;

    if (bytes < DISK_NODE_BYTES || !all_zero(body + 154, 6))
        return -EBADMSG;
    *ret_n = (struct node_image){
        .id = read_le64(body),
        .mode = read_le32(body + 8),
        .uid = read_le32(body + 12),
        .gid = read_le32(body + 16),
        .hits = read_le32(body + 20),
        .rdev = read_le64(body + 24),
        .atime_ns = (int64_t)read_le64(body + 32),
        .mtime_ns = (int64_t)read_le64(body + 40),
        .ctime_ns = (int64_t)read_le64(body + 48),
        .written_ns = read_le64(body + 56),
        .used_ns = read_le64(body + 64),
        .btime_ns = (int64_t)read_le64(body + 72),
        .ttl_ns = read_le64(body + 128),
        .idle_ns = read_le64(body + 136),
        .expires_ns = read_le64(body + 144),
        .pin = body[152],
        .compress = body[153],
        .tlv = body + DISK_NODE_BYTES,
        .tlv_bytes = bytes - DISK_NODE_BYTES,
    };
    r = value_unpack(body + VALUE_OFFSET, &ret_n->value);
    if (r < 0)
        return r;
    return node_is_legal(ret_n) ? 0 : -EBADMSG;
}

static int name_unpack(const uint8_t *body, uint32_t bytes, struct name_image *ret_n)
{
    if (bytes < NAME_BODY_BYTES || bytes - NAME_BODY_BYTES != read_le16(body + 24))
        return -EBADMSG;
    *ret_n = (struct name_image){
        .parent = read_le64(body),
        .node = read_le64(body + 8),
        .cookie = read_le64(body + 16),
        .name_bytes = read_le16(body + 24),
        .name = (const char *)body + NAME_BODY_BYTES,
    };
    return name_is_legal(ret_n->name, ret_n->name_bytes) ? 0 : -EBADMSG;
}

static int unname_unpack(const uint8_t *body, uint32_t bytes, struct name_image *ret_n)
{
    if (bytes < UNNAME_BODY_BYTES || bytes - UNNAME_BODY_BYTES != read_le16(body + 8))
        return -EBADMSG;
    *ret_n = (struct name_image){
        .parent = read_le64(body),
        .name_bytes = read_le16(body + 8),
        .name = (const char *)body + UNNAME_BODY_BYTES,
    };
    return name_is_legal(ret_n->name, ret_n->name_bytes) ? 0 : -EBADMSG;
}

static int drop_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes != DROP_BODY_BYTES || body[8] >= DROP_REASON_COUNT)
        return -EBADMSG;
    ret_entry->drop.node = read_le64(body);
    ret_entry->drop.reason = body[8];
    return 0;
}

static int use_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes < USE_BODY_BYTES || bytes - USE_BODY_BYTES != (uint64_t)read_le32(body) * USE_ITEM_BYTES)
        return -EBADMSG;
    ret_entry->use.count = read_le32(body);
    ret_entry->use.items = body + USE_BODY_BYTES;
    return 0;
}

static int moved_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes != 8 + VALUE_BYTES)
        return -EBADMSG;
    ret_entry->value.node = read_le64(body);
    return value_unpack(body + 8, &ret_entry->value.value);
}

static int touch_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes != TOUCH_BODY_BYTES)
        return -EBADMSG;
    ret_entry->touch.directory = read_le64(body);
    ret_entry->touch.changed_ns = (int64_t)read_le64(body + 8);
    return 0;
}

static int recall_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes < RECALL_BODY_BYTES || (bytes - RECALL_BODY_BYTES) % RECALL_NODE_BYTES != 0 ||
        bytes - RECALL_BODY_BYTES > RECALL_NODES_MAX * RECALL_NODE_BYTES)
        return -EBADMSG;
    ret_entry->recall.first_seq = read_le64(body);
    ret_entry->recall.nodes = body + RECALL_BODY_BYTES;
    ret_entry->recall.count = (bytes - RECALL_BODY_BYTES) / RECALL_NODE_BYTES;
    return 0;
}

static int boot_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    if (bytes != BOOT_BODY_BYTES)
        return -EBADMSG;
    ret_entry->boot.boot_id = body;
    ret_entry->boot.cache_ns = read_le64(body + 16);
    return 0;
}

static int end_unpack(const uint8_t *body, uint32_t bytes, struct end_image *ret_e)
{
    if (bytes != END_BODY_BYTES || body[64] > 1 || read_le64(body + 32) > FIRST_SEQ_MAX)
        return -EBADMSG;
    *ret_e = (struct end_image){
        .nodes = read_le64(body),
        .names = read_le64(body + 8),
        .next_generation = read_le64(body + 16),
        .cache_ns = read_le64(body + 24),
        .last_seq = read_le64(body + 32),
        .next_big_id = read_le64(body + 40),
        .clean = body[64] == 1,
    };
    memcpy(ret_e->boot_id, body + 48, 16);
    return 0;
}

static int entry_unpack(const uint8_t *body, uint32_t bytes, struct entry_view *ret_entry)
{
    switch (ret_entry->type) {
    case ENTRY_NODE:
        return node_unpack(body, bytes, &ret_entry->node);
    case ENTRY_NAME:
        return name_unpack(body, bytes, &ret_entry->name);
    case ENTRY_UNNAME:
        return unname_unpack(body, bytes, &ret_entry->name);
    case ENTRY_DROP:
        return drop_unpack(body, bytes, ret_entry);
    case ENTRY_USE:
        return use_unpack(body, bytes, ret_entry);
    case ENTRY_VALUE:
        return moved_unpack(body, bytes, ret_entry);
    case ENTRY_BOOT:
        return boot_unpack(body, bytes, ret_entry);
    case ENTRY_END:
        return end_unpack(body, bytes, &ret_entry->end);
    case ENTRY_TOUCH:
        return touch_unpack(body, bytes, ret_entry);
    case ENTRY_RECALL:
        return recall_unpack(body, bytes, ret_entry);
    }
    return -EBADMSG;
}

/* One entry of any known type. */
static int entry_take(const struct record_view *view, uint32_t *offset, struct entry_view *ret_entry)
{
    const uint8_t *p = view->payload + *offset;
    uint32_t left, body_bytes;
    int r;

    if (*offset >= view->payload_bytes)
        return -ENODATA;
    left = view->payload_bytes - *offset;
    if (left < DISK_ENTRY_HEADER_BYTES)
        return -EBADMSG;
    body_bytes = read_le32(p) >> 8;
    if (body_bytes > left - DISK_ENTRY_HEADER_BYTES)
        return -EBADMSG;
    ret_entry->type = p[0];
    r = entry_unpack(p + DISK_ENTRY_HEADER_BYTES, body_bytes, ret_entry);
    if (r < 0)
        return r;
    *offset += DISK_ENTRY_HEADER_BYTES + body_bytes;
    return 0;
}

uint64_t recall_node(const uint8_t *nodes, uint32_t index)
{
    return read_le64(nodes + (size_t)index * RECALL_NODE_BYTES);
}

void use_item_unpack(const uint8_t *items, uint32_t index, struct use_image *ret_use)
{
    const uint8_t *p = items + (size_t)index * USE_ITEM_BYTES;

    ret_use->node = read_le64(p);
    ret_use->used_ns = read_le64(p + 8);
    ret_use->hits = read_le32(p + 16);
}

/* ---- file names ---- */

void format_name(char out[FORMAT_NAME_BYTES], const char *prefix, uint32_t no)
{
    int bytes = snprintf(out, FORMAT_NAME_BYTES, "%s%08x", prefix, no);

    assert(bytes > 0);
    assert(bytes < FORMAT_NAME_BYTES);
}

/* -1: not one of 0-9a-f. Upper case is not ours: two names must never mean one file. */
static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool format_name_parse(const char *name, const char *prefix, uint32_t *ret_no)
{
    size_t prefix_bytes = strlen(prefix);
    uint32_t no = 0;

    if (strncmp(name, prefix, prefix_bytes) != 0)
        return false;
    for (int i = 0; i < 8; i++) {
        int digit = hex_digit(name[prefix_bytes + (size_t)i]); /* the terminator is no digit: no overrun */

        if (digit < 0)
            return false;
        no = no << 4 | (uint32_t)digit;
    }
    if (name[prefix_bytes + 8] != '\0' || no == 0)
        return false;
    *ret_no = no;
    return true;
}

void format_big_name(char out[FORMAT_NAME_BYTES], uint64_t big_id)
{
    int bytes = snprintf(out, FORMAT_NAME_BYTES, "big/%02x/%016llx", (unsigned)(big_id >> 8 & 0xff),
                         (unsigned long long)big_id);

    assert(bytes > 0);
    assert(bytes < FORMAT_NAME_BYTES);
}
