/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * format: every byte larder writes to disk. This file is the specification.
 *
 *   STORE/LOCK            flock(2)ed by the daemon; its pid in decimal and a newline
 *   STORE/CACHEDIR.TAG    bford.info/cachedir: backup programs skip the store
 *   STORE/FORMAT          struct disk_superblock
 *   STORE/journal-NNNNNNNN   (8 hexadecimal digits, lower case, everywhere) struct disk_journal_header, then records
 *   STORE/index-NNNNNNNN     a checkpoint: the same header and records, closed by an ENTRY_END record
 *   STORE/seg-NNNNNNNN       struct disk_segment_header, then value records, 8-byte aligned
 *   STORE/big/XX/XXXXXXXXXXXXXXXX   one value each: 16 hex digits of the id; XX = bits 8..15 of it
 *   STORE/NAME.tmp        being written; removed when found at mount
 *
 * All integers little-endian, fixed width, no padding; reserved fields are written as 0 and refused otherwise.
 * Checksums are xxh3-64. Only format.c and the module that owns a file touch raw bytes.
 *
 * Versions: 1  first. Every later one keeps magic, version and checksum of a file header where they are, so that
 *              "newer" can be told from "damaged".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "content.h"
#include "util.h"

#define FORMAT_VERSION 1u
#define FORMAT_MAGIC "LARDER01"          /* superblock */
#define FORMAT_JOURNAL_MAGIC "LDJRNL01"  /* journal-* */
#define FORMAT_INDEX_MAGIC "LDINDX01"    /* index-* */
#define FORMAT_SEGMENT_MAGIC "LDSEGM01"  /* seg-* */
#define FORMAT_RECORD_MAGIC 0x31524a4cu  /* "LJR1": journal and index records */
#define FORMAT_VALUE_MAGIC 0x3156534cu   /* "LSV1": segment records */
#define FORMAT_PACKED_MAGIC "LDPACK01"   /* footer of a packed big file */

#define NAME_BYTES_MAX 255u
#define SYMLINK_BYTES_MAX 4095u
#define XATTR_NAME_BYTES_MAX 255u
#define XATTR_VALUE_BYTES_MAX 65536u
#define XATTR_NODE_BYTES_MAX (1u << 20) /* all TLVs of one node, headers included */
#define RECORD_PAYLOAD_BYTES_MAX (4u << 20)
#define FIRST_SEQ_MAX (1ull << 62) /* believed when read; counting on from it cannot overflow */

/* FORMAT, 64 bytes.
 *   off size field
 *     0    8 magic            "LARDER01"
 *     8    4 version          1
 *    12    4 reserved
 *    16   16 store_id         random, once per store: seeds checksums so that files cannot wander between stores
 *    32    8 created_ns       wall clock
 *    40   16 reserved
 *    56    8 checksum         of bytes 0..55 */
#define DISK_SUPERBLOCK_BYTES 64u

/* CACHEDIR.TAG, all of it. */
#define FORMAT_TAG_TEXT                                                                                                \
    "Signature: 8a477f597d28d172789f06886806bc55\n"                                                                    \
    "# This file is a cache directory tag created by larder.\n"                                                        \
    "# For information about cache directory tags see https://bford.info/cachedir/\n"

/* journal-* and index-*, 64 bytes.
 *     0    8 magic
 *     8    4 version
 *    12    4 file_no          must equal the number in the name
 *    16   16 store_id
 *    32    8 first_seq        seq of the first record in this file; index: 1
 *    40    8 replay_from_no   index: the first journal file to replay after it; journal: 0
 *    48    8 reserved
 *    56    8 checksum         of bytes 0..55 */
#define DISK_JOURNAL_HEADER_BYTES 64u

/* Record: 32-byte header, payload, zeros up to 8.
 *     0    4 magic            "LJR1"
 *     4    4 payload_bytes    <= RECORD_PAYLOAD_BYTES_MAX, checked before any allocation
 *     8    8 seq              previous + 1 (in an index file: counted from 1)
 *    16    4 entry_count
 *    20    4 reserved
 *    24    8 checksum         of the payload, seeded with the checksum of bytes 0..23, itself seeded with the
 *                            file's seed (format_journal_seed)
 * A record is valid if and only if magic and reserved match, seq follows, it ends inside the file with zeros
 * up to 8, the checksum matches, and it holds exactly entry_count well-formed entries. It is the unit of atomicity: all its entries apply, or none.
 * Replay of a journal file stops at the first record that is not valid. If a valid one with a later seq follows in the file,
 * that is damage, not a torn tail: it is counted and reported. If the machine has not gone down since, and the first
 * valid record behind the damage recalls all that is missing, replay goes on there, and the nodes recalled are gone:
 * what they were last is not known. Else nothing after the damage is applied. */
#define DISK_RECORD_HEADER_BYTES 32u

/* Entry: 4-byte header, body. Entries set states, they do not say changes: applying one twice, or to a state
 * that already has it, is harmless. That is what lets a checkpoint be taken while traffic goes on.
 *     0    1 type             enum entry_type
 *     1    3 body_bytes */
#define DISK_ENTRY_HEADER_BYTES 4u

enum entry_type {
    ENTRY_NODE = 1,   /* struct node_image: the node is this now; another generation in its slot is gone */
    ENTRY_NAME = 2,   /* struct name_image: that name of that directory leads to that node now */
    ENTRY_UNNAME = 3, /* u64 parent, u16 bytes, name: there is no such name */
    ENTRY_DROP = 4,   /* u64 node, u8 reason: the node and all its names are gone */
    ENTRY_USE = 5,    /* u32 count, then count times (u64 node, u64 used_ns, u32 hits) */
    ENTRY_VALUE = 6,  /* u64 node, struct value (packed as in NODE): the same content is somewhere else now */
    ENTRY_BOOT = 7,   /* 16 bytes boot id, u64 cache time: a daemon started here */
    ENTRY_END = 8,    /* index only, last: u64 nodes, u64 names, u64 next_generation, u64 cache time, u64 last_seq,
                         u64 next big id, 16 bytes boot id, u8 clean */
    ENTRY_TOUCH = 9,  /* u64 directory, i64 ns: its entries changed then (mtime and ctime) */
    ENTRY_RECALL = 10, /* u64 first_seq, then u64 nodes: all whose state the records from first_seq to before this one
                         changed. Says nothing about them, unless one of those records is damaged */
};

/* How many records before it a record recalls, newest first, and how many nodes of them together: where they are more, the
 * older records are not recalled. Four records of the usual size are more than a sector; 256 nodes are a batch of expiry. */
#define RECALL_RECORDS 4u
#define RECALL_NODES_MAX 256u

/* NODE body: 160 bytes fixed, then TLVs up to body_bytes.
 *     0   8 id                generation << 32 | slot
 *     8   4 mode              S_IFMT and permission bits
 *    12   4 uid
 *    16   4 gid
 *    20   4 hits
 *    24   8 rdev
 *    32   8 atime_ns          signed
 *    40   8 mtime_ns          signed
 *    48   8 ctime_ns          signed
 *    56   8 written_ns        cache time of the last write: what ttl counts from
 *    64   8 used_ns           cache time of the last use: recency and idle
 *    72   8 btime_ns          signed
 *    80   1 value.kind, 81 1 value.codec, 82 1 value flags (bit 0 unsealed), 83 1 node flags (0)
 *    84   4 value.sums_bytes
 *    88   8 value.size_bytes
 *    96   8 value.stored_bytes
 *   104   4 value.place.segment_no, 108 4 value.place.offset
 *   112   8 value.big_id
 *   120   4 value.sums_place.segment_no, 124 4 value.sums_place.offset
 *   128   8 ttl_ns            policy of its own; POLICY_UNSET (all ones) = none set
 *   136   8 idle_ns
 *   144   8 expires_ns        cache time
 *   152   1 pin (0, 1, 255 unset), 153 1 compress (enum compress_mode, 255 unset), 154 6 reserved
 * Value fields that mean nothing for the kind are 0 (content.h says which those are).
 * TLV: u8 kind, u8 name_bytes, u16 reserved, u32 value_bytes, name, value, no padding. A symbolic link has exactly
 * one SYMLINK, any other node has none. */
#define DISK_NODE_BYTES 160u

enum node_tlv {
    NODE_TLV_SYMLINK = 1, /* name_bytes 0 */
    NODE_TLV_XATTR = 2,
};

#define POLICY_UNSET UINT64_MAX
#define POLICY_NEVER (UINT64_MAX - 1) /* set, to "none": overrides what would be inherited */
#define POLICY_BYTE_UNSET 255u

struct node_image {
    uint64_t id;
    uint32_t mode, uid, gid, hits;
    uint64_t rdev;
    int64_t atime_ns, mtime_ns, ctime_ns, btime_ns;
    uint64_t written_ns, used_ns;
    struct value value;
    uint64_t ttl_ns, idle_ns, expires_ns;
    uint8_t pin, compress;
    const uint8_t *tlv; /* borrowed; tlv_bytes of well-formed TLVs (format_node_unpack checks) */
    uint32_t tlv_bytes;
};

/* NAME body: u64 parent, u64 node, u64 cookie (position in readdir order), u16 name_bytes, name. */
struct name_image {
    uint64_t parent, node, cookie;
    uint16_t name_bytes;
    const char *name; /* borrowed, not terminated; no '/', no NUL, not "." or ".." (unpack checks) */
};

enum drop_reason {
    DROP_REMOVED = 0, /* by a client */
    DROP_REPLACED = 1,
    DROP_QUOTA = 2,
    DROP_ENTRIES = 3,
    DROP_MIN_FREE = 4,
    DROP_TTL = 5,
    DROP_IDLE = 6,
    DROP_EXPIRES = 7,
    DROP_CORRUPT = 8,
    DROP_REASON_COUNT
};

/* seg-*: 64 bytes: magic 8, version 4, segment_no 4, store_id 16, reserved 24, checksum 8 of bytes 0..55. */
#define DISK_SEGMENT_HEADER_BYTES 64u

/* Segment record header, 40 bytes, then the payload, zeros up to 8.
 *     0    4 magic            "LSV1"
 *     4    1 kind             enum record_kind
 *     5    1 codec
 *     6    2 reserved
 *     8    8 node_id
 *    16    4 logical_bytes
 *    20    4 stored_bytes
 *    24    8 checksum         of the decoded payload, seed 0
 *    32    8 header_checksum  of bytes 0..31, seeded with format_seed(store_id, segment_no) ^ offset */
#define DISK_VALUE_HEADER_BYTES 40u

/* Packed big file: blocks back to back from offset 0, then the index, then the footer.
 * index: per block u32 stored_bytes (bit 31: raw), u32 reserved, u64 xxh3 of the decoded block.
 * footer, 56 bytes: magic 8, u32 block_bytes, u32 block_count, u64 size_bytes (logical), u64 blocks_bytes (length of all
 * blocks), u64 node_id, u64 index_checksum, u64 checksum of bytes 0..47 seeded with the big id. */
#define DISK_PACKED_INDEX_BYTES 16u
#define DISK_PACKED_FOOTER_BYTES 56u

/* Seed of a file's checksums: xxh3 of store_id, then file_no as u64. An index file adds 1 << 32 to its
 * number, so that its records are none of the journal of the same number. */
uint64_t format_seed(const uint8_t store_id[16], uint64_t file_no);

struct superblock {
    uint32_t version;
    uint8_t store_id[16];
    uint64_t created_ns;
};
void format_superblock_pack(const struct superblock *sb, uint8_t out[DISK_SUPERBLOCK_BYTES]);
/* -EBADMSG: not ours or damaged; -EPROTONOSUPPORT: a newer version (ret_sb->version is filled). */
int format_superblock_unpack(const uint8_t in[DISK_SUPERBLOCK_BYTES], struct superblock *ret_sb);

struct journal_header {
    bool is_index;
    uint32_t file_no;
    uint8_t store_id[16];
    uint64_t first_seq;
    uint64_t replay_from_no;
};
void format_journal_header_pack(const struct journal_header *h, uint8_t out[DISK_JOURNAL_HEADER_BYTES]);
int format_journal_header_unpack(const uint8_t in[DISK_JOURNAL_HEADER_BYTES], struct journal_header *ret_h);
/* Seed of the checksums of the file's records. */
uint64_t format_journal_seed(const struct journal_header *h);

/* A growing byte buffer in which one record is built: header, entries, padding. */
struct record_buffer {
    uint8_t *data; /* owned */
    size_t used, allocated;
    uint32_t entry_count;
    uint32_t node_count, name_count; /* of the entries: NODE, NAME */
    uint64_t changed[RECALL_NODES_MAX]; /* nodes whose state the record changes */
    uint32_t changed_count;             /* more than RECALL_NODES_MAX: too many to recall */
};
void record_buffer_fini(struct record_buffer *rb);
int record_begin(struct record_buffer *rb); /* forgets what was in it, keeps the memory */
int record_add_node(struct record_buffer *rb, const struct node_image *n);
int record_add_name(struct record_buffer *rb, const struct name_image *n);
int record_add_unname(struct record_buffer *rb, uint64_t parent, const char *name, size_t name_bytes);
int record_add_drop(struct record_buffer *rb, uint64_t node, enum drop_reason reason);
int record_add_value(struct record_buffer *rb, uint64_t node, const struct value *v);
int record_add_touch(struct record_buffer *rb, uint64_t directory, int64_t changed_ns);
struct use_image {
    uint64_t node, used_ns;
    uint32_t hits;
};
int record_add_use(struct record_buffer *rb, const struct use_image *uses, uint32_t count);
/* The record changes the state of that node, though no entry that is added names it (an UNNAME: whose name it was). */
void record_changes(struct record_buffer *rb, uint64_t node);
int record_add_recall(struct record_buffer *rb, uint64_t first_seq, const uint64_t *nodes, uint32_t count);
int record_add_boot(struct record_buffer *rb, const uint8_t boot_id[16], uint64_t cache_ns);
struct end_image {
    uint64_t nodes, names, next_generation, cache_ns, last_seq, next_big_id;
    uint8_t boot_id[16];
    bool clean; /* written by an orderly stop: no journal follows */
};
int record_add_end(struct record_buffer *rb, const struct end_image *e);
/* Pads, fills the header and the checksum. The record is data[0..used). */
void record_finish(struct record_buffer *rb, uint64_t seq, uint64_t seed);

/* Decoding. One bounds-checked walk; hostile bytes give -EBADMSG, never more. */
struct record_view {
    uint64_t seq;
    uint32_t entry_count;
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint32_t total_bytes; /* with header and padding */
};
/* -EBADMSG: no valid record here. bytes: what the file still has. */
int record_parse(const uint8_t *data, size_t bytes, uint64_t expected_seq, uint64_t seed, struct record_view *ret_view);

/* The bytes the record at data says it takes, header and padding included; 0: no record begins here. Judged by
 * the header alone: what to read before record_parse can decide. */
uint32_t record_claimed_bytes(const uint8_t *data, size_t bytes);
/* Looks for a valid record of seq >= seq_min at data (8-aligned in its file) and every 8 bytes on; one whose seq is above
 * FIRST_SEQ_MAX is none. Takes what it hashes from the budget and gives up when that is spent: hostile bytes may claim a
 * record at every step. */
bool record_find(const uint8_t *data, size_t bytes, uint64_t seq_min, uint64_t seed, uint64_t *hash_budget_bytes,
                 size_t *ret_offset, uint64_t *ret_seq);
/* Are all its entries well-formed and as many as it says? Asked before the first is applied: a record is the
 * unit of atomicity. 0 or -EBADMSG. */
int record_check(const struct record_view *view);

struct entry_view {
    enum entry_type type;
    union {
        struct node_image node;
        struct name_image name; /* ENTRY_NAME and ENTRY_UNNAME (node = cookie = 0) */
        struct {
            uint64_t node;
            enum drop_reason reason;
        } drop;
        struct {
            const uint8_t *items; /* count * 20 bytes */
            uint32_t count;
        } use;
        struct {
            uint64_t node;
            struct value value;
        } value;
        struct {
            uint64_t directory;
            int64_t changed_ns;
        } touch;
        struct {
            uint64_t first_seq;
            const uint8_t *nodes; /* count * 8 bytes */
            uint32_t count;
        } recall;
        struct {
            const uint8_t *boot_id; /* 16 bytes */
            uint64_t cache_ns;
        } boot;
        struct end_image end;
    };
};
/* Takes the entry at *offset of the payload and advances. -ENODATA at the end, -EBADMSG for a malformed one.
 * Unknown types are -EBADMSG (a newer format says so in the superblock). */
int entry_next(const struct record_view *view, uint32_t *offset, struct entry_view *ret_entry);
uint64_t recall_node(const uint8_t *nodes, uint32_t index);
void use_item_unpack(const uint8_t *items, uint32_t index, struct use_image *ret_use);

struct tlv_view {
    enum node_tlv kind;
    uint8_t name_bytes;
    uint32_t value_bytes;
    const uint8_t *name, *value;
};
/* -ENODATA at the end. The bytes were checked by entry_next. */
int tlv_next(const uint8_t *tlv, uint32_t tlv_bytes, uint32_t *offset, struct tlv_view *ret_tlv);
/* Bytes one TLV takes; writes it when out is not NULL. */
size_t tlv_put(uint8_t *out, enum node_tlv kind, const char *name, size_t name_bytes, const void *value, size_t value_bytes);

void format_segment_header_pack(const uint8_t store_id[16], uint32_t segment_no, uint8_t out[DISK_SEGMENT_HEADER_BYTES]);
int format_segment_header_unpack(const uint8_t in[DISK_SEGMENT_HEADER_BYTES], const uint8_t store_id[16], uint32_t segment_no);
void format_value_header_pack(const struct record_info *info, uint64_t seed, uint32_t offset,
                              uint8_t out[DISK_VALUE_HEADER_BYTES]);
int format_value_header_unpack(const uint8_t in[DISK_VALUE_HEADER_BYTES], uint64_t seed, uint32_t offset,
                               struct record_info *ret_info);

/* File names. buffers of FORMAT_NAME_BYTES. */
#define FORMAT_NAME_BYTES 40
void format_name(char out[FORMAT_NAME_BYTES], const char *prefix, uint32_t no); /* "journal-", 7 -> journal-00000007 */
bool format_name_parse(const char *name, const char *prefix, uint32_t *ret_no);
void format_big_name(char out[FORMAT_NAME_BYTES], uint64_t big_id); /* big/XX/XXXXXXXXXXXXXXXX */
