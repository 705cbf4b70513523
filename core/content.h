/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content: the bytes of one open file, read or being changed, and their way to a committed value.
 * (STYLE's "stage": a value being written lives in memory first, in a big file when it outgrows that.)
 *
 * States                        bytes are in                         committed value
 *   SEALED    nothing changed   the value's segment record or big file    value
 *   MEMORY    changed           a buffer                                   value (old) stays whole until commit
 *   PACKED    being written     a new big file of lz4 blocks + tail        value (old) stays whole until commit
 *   RAW       being written     a new raw big file                         value (old) stays whole until commit
 *   IN_PLACE  changed           the committed raw big file itself          value, unsealed: fsynced bytes survive,
 *                                                                          no whole-value promise (C2, last clause)
 *   SEALED  -> MEMORY    first change of a segment value, or truncation to 0 of any value
 *   SEALED  -> IN_PLACE  first change of a raw big value, after its unsealing is durable (host->unseal)
 *   SEALED  -> RAW       first change of a packed big value (decoded into a new raw file)
 *   MEMORY  -> PACKED    outgrew big_bytes by appends, compressible
 *   PACKED, RAW -> MEMORY  a file never committed would need others evicted before its size is known: it is held in
 *                        memory instead, up to HOLD_BYTES_MAX, so that a value that cannot fit costs nobody a key.
 *                        Once it proves too large (-ENOSPC) it takes nothing more before it is truncated to 0, and
 *                        a commit gives it up: the value before stays
 *   MEMORY  -> RAW       outgrew big_bytes otherwise; fallocate; fsynced again and again (a database)
 *   PACKED  -> RAW       a write that is no append, truncate up, fallocate
 *   any     -> SEALED    content_commit, content_seal
 *
 * A commit makes a new `struct value`; the caller journals it and only then drops the old one
 * (content_drop_value). A RAW content that stays open after its commit is IN_PLACE from then on.
 *
 * Checksums. Segment values: xxh3 in the record. Packed: per block, inside the file. Raw: per block, in a
 * RECORD_SUMS record. An unsealed raw file has none until content_seal has synced it. A block
 * is verified when first read after content_new; a mismatch is -EBADMSG, never bytes.
 *
 * What may never happen: a committed version destroyed before the next is committed; a byte of another
 * value's old space shown in a hole or after growth; disk growth not reserved first.
 *
 * Thread safety: one content has one lock (rank CONTENT), taken inside each call and held across its I/O; raw files are
 * read with it given up. Changes, commits and seals of one content are serialised by the caller, from content_commit
 * or content_seal up to content_committed or content_commit_failed (cache: the file lock). content_new does memory work
 * only; content_size, _disk_bytes, _is_dirty, _is_sealed, _moved, _orphan and _keep_growth do not wait for the lock, and
 * content_new and these may be called under the cache lock.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec.h"
#include "store.h"

enum value_kind {
    VALUE_EMPTY = 0, /* size 0, nothing on disk */
    VALUE_SEGMENT = 1,
    VALUE_RAW = 2,    /* big file, byte for byte: can be passed through */
    VALUE_PACKED = 3, /* big file of independently readable lz4 blocks */
};

/* A committed value as the index keeps it. Plain data: copying it copies no ownership. */
struct value {
    enum value_kind kind;
    enum codec codec;      /* of the segment record */
    bool unsealed;         /* VALUE_RAW: changed in place since its sums were taken; sums_place is void */
    uint64_t size_bytes;   /* logical */
    uint64_t stored_bytes; /* SEGMENT: payload bytes; RAW, PACKED: what is charged for the file: st_blocks * 512 and,
                              while it was not synced, what extent blocks placing it may add */
    struct place place;    /* SEGMENT */
    uint64_t big_id;       /* RAW, PACKED; never 0 */
    struct place sums_place; /* RAW, sealed */
    uint32_t sums_bytes;     /* payload bytes of that record */
};

struct content;

/* What content needs from the cache above it. Called with the content's lock held and no other. */
struct content_host {
    /* Journal durably that the node's raw value is changed in place from now on. Its sums are void, but their record
     * stays the index's to drop (when the next value replaces this one). */
    int (*unseal)(void *ctx, uint64_t node_id);
    /* The largest value that could be kept if every other one left. NULL: the quota's limit. */
    uint64_t (*fit_bytes)(void *ctx);
    void *ctx;
};

struct content_options {
    uint32_t big_bytes;          /* larger values get a file of their own; <= STAGE_MEMORY_BYTES_MAX */
    enum compress_mode compress; /* decided by policy when the content is opened */
    bool verified;               /* all of a raw value was found good, or written, by this process */
};

#define STAGE_MEMORY_BYTES_MAX (4u << 20)
#define HOLD_BYTES_MAX (64u << 20)
#define PACKED_BLOCK_BYTES (64u << 10)

/* host and store outlive the content. value: what is committed (VALUE_EMPTY for a new file). */
int content_new(struct store *st, const struct content_host *host, uint64_t node_id, const struct value *value,
                const struct content_options *opts, struct content **ret_content);
/* What the committed value has to answer for from now on: its stored_bytes, and what its file grew by when it was changed
 * in place and no commit could say so. Just before content_free, which nobody else may come between; memory work only. */
uint64_t content_keep_growth(struct content *c);
/* Gives up what was not committed (its big file is unlinked, its space released). The committed value stays. */
void content_free(struct content *c);

/* Reads up to `bytes` at offset; short only at the end. -EBADMSG: doubtful. -EAGAIN only with nowait: call
 * again from a thread that may wait. */
int content_read(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait, size_t *ret_bytes);
/* All or an error. -ENOSPC before anything of it is written; -EFBIG past INT64_MAX. */
int content_write(struct content *c, const void *buf, size_t bytes, uint64_t offset);
int content_truncate(struct content *c, uint64_t size_bytes);
/* mode as fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE[|KEEP_SIZE]; others -EOPNOTSUPP. */
int content_allocate(struct content *c, int mode, uint64_t offset, uint64_t bytes);
/* whence SEEK_DATA or SEEK_HOLE; -ENXIO as lseek(2). */
int content_seek(struct content *c, uint64_t offset, int whence, uint64_t *ret_offset);

uint64_t content_size(struct content *c);
uint64_t content_disk_bytes(struct content *c); /* for st_blocks */
bool content_is_dirty(struct content *c);       /* has changes a commit would publish */
bool content_is_sealed(struct content *c);
bool content_is_in_place(struct content *c);    /* what was changed is the committed file itself, committed or not */
/* Its next commit replaces a value of which it still has bytes: one that was changed in part. */
bool content_is_derived(struct content *c);
bool content_was_refused(struct content *c);    /* proved too large; eviction would not help */

/* Turns the changes into a value: payload written, checksummed, verified sizes. durable: the payload is on
 * the device on return (the caller syncs the journal after). *ret_changed false: nothing to publish. The
 * caller journals *ret_value, then calls content_committed with the same value, or content_commit_failed. */
int content_commit(struct content *c, bool durable, struct value *ret_value, bool *ret_changed);
void content_committed(struct content *c, const struct value *value);
void content_commit_failed(struct content *c, const struct value *value);
/* Only the device sync of an IN_PLACE content whose place did not change (a database's fsync). */
int content_sync(struct content *c);
/* Last writer gone, or idle: syncs the file, takes its sums, makes *ret_value a sealed one. *ret_changed false
 * if there was nothing to seal (not IN_PLACE, sparse, or larger than the sums may cover). Then as after content_commit. */
int content_seal(struct content *c, struct value *ret_value, bool *ret_changed);

/* A read-only descriptor of a raw value's file, if all of it is in one file, sealed or in place. Borrowed: valid until
 * content_free. -ENOTSUP otherwise. Nothing is verified by it. */
int content_backing_fd(struct content *c, int *ret_fd);
/* Verifies what there is of a sealed raw value at offset; *ret_end: nothing lies behind. -ENOTSUP for any other. */
int content_verify_piece(struct content *c, uint64_t offset, uint64_t bytes, bool *ret_end);

/* Cleaning moved the record of a SEALED segment value, or the sums record of a raw one: use the new place. */
void content_moved(struct content *c, const struct value *value);

/* Frees what a value takes. still_open: a content (C4) still holds its file; then the bytes of a big file stay
 * charged until that content is freed (the content must have been told by content_orphan). */
void content_drop_value(struct store *st, const struct value *value, bool still_open);
/* The node is gone (unlinked, evicted, expired, replaced): its bytes live until content_free, which then
 * releases everything, committed or not. */
void content_orphan(struct content *c);

/* Reads a whole value at rest and verifies it (larder check). -EBADMSG with err saying where. */
int content_verify_value(struct store *st, const struct value *value, uint64_t node_id, struct errtext *err);
/* xxh3 of the decoded value if it is known without reading it all (segment values), else -ENODATA. */
int content_checksum(struct content *c, uint64_t *ret_checksum);
/* Bytes held in memory by all contents, against a bound: past it new writes go to big files at once. */
uint64_t content_memory_bytes(void);
