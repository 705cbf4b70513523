/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store: payload bytes on disk, in segments and big files. It knows places, not keys: which record is
 * alive is told to it (store_mark_live, store_drop), never guessed from the bytes.
 *
 * Segments. Records are appended to seg-NNNNNNNN (format.h: struct disk_segment_header, struct
 * disk_value_header), 8-byte aligned, never rewritten; numbers are never used again. Per 4 KiB block the
 * store counts the live records that touch it: a block whose count falls to 0 is dead, and store_reclaim
 * gives dead runs back by punching, or the whole file once no block lives. A block also holding the tail
 * that appends go to is never punched.
 *
 * Big files. big/XX/XXXXXXXX, one value each; content.c owns what is in them. The store makes, opens,
 * unlinks and counts them.
 *
 * Quota. Every call that can grow the disk takes reserved bytes from the caller's quota itself: the
 * functions below reserve through `quota` before they write and settle afterwards, so a caller must hold
 * no lock of rank RECLAIM or above. They fail with -ENOSPC, having changed nothing.
 *
 * What may never happen: a byte of a record read back that fails its checksum is returned; a record
 * still alive is punched; growth that was not reserved.
 *
 * Thread safety: all calls may run concurrently. One lock (rank STORE) covers the segment table and the
 * append cursor, memory work only; payload I/O runs outside it. Segments being read are reference counted.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec.h"
#include "io.h"
#include "quota.h"
#include "util.h"

struct store;

/* Where a record is. segment_no 0 = nowhere. */
struct place {
    uint32_t segment_no;
    uint32_t offset; /* of the record's header in the segment file; multiple of 8 */
};

enum record_kind {
    RECORD_VALUE = 1, /* a whole value */
    RECORD_SUMS = 2,  /* block checksums of a raw big file (content.c) */
};

struct record_info {
    enum record_kind kind;
    enum codec codec;
    uint64_t node_id;       /* whom it was written for; cleaning asks that node whether it still points here */
    uint32_t logical_bytes; /* decoded */
    uint32_t stored_bytes;  /* payload as stored, without header and padding */
    uint64_t checksum;      /* xxh3 of the decoded bytes */
};

struct store_options {
    const uint8_t *store_id;     /* 16 bytes, copied: seeds the checksums (format_seed) */
    uint32_t segment_bytes;      /* a segment is sealed when it reaches this; 256 KiB .. 64 MiB */
    unsigned segment_fds_max;    /* descriptors kept open for reading; >= 8 */
    unsigned big_fds_max;        /* descriptors of big files, else -ENFILE; 0: any. It keeps what the rest needs from those who
                                  * hold many large files open */
    bool read_only;              /* nothing on disk is created, changed or removed */
    /* A sync failed: the kernel may have dropped what it could not write. Said each time, with no lock above STORE to be
     * taken in it. NULL: nobody is told. */
    void (*failed)(void *ctx, int error, const char *what);
    void *failed_ctx;
    bool keep_orphans;           /* recovery removes nothing: what nothing leads to yet may still be wanted */
};

struct store_usage {
    uint64_t charged_bytes;  /* what this module has charged to the quota: segments, big files, directories */
    uint64_t dead_bytes;     /* bytes in segments that no live record needs and that are still on disk */
    uint64_t live_bytes;     /* bytes of live records, headers included */
    uint64_t big_bytes;      /* charged for big files */
    uint64_t segment_count;
    uint64_t big_count;
    uint64_t punches, segments_unlinked; /* since open */
};

/* Opens the payload part of a store directory. Looks at names and sizes only, reads no payload. Charges
 * what is there. next_segment_no/next_big_id: nothing at or above is in use by the index; the store also
 * never goes below what it finds on disk. */
int store_open(struct io *io, int dir_fd, struct quota *quota, const struct store_options *opts, struct store **ret_store,
               struct errtext *err);
void store_close(struct store *st); /* NULL is fine. Does not sync. */

/* Recovery, single-threaded, for every value the log names, also one that is gone by its end: its segment and big file
 * numbers are not given out again. A power cut may take the end of the log, and then it is this value that counts. */
void store_note_segment(struct store *st, uint32_t segment_no);
void store_note_big(struct store *st, uint64_t big_id);
/* Recovery, single-threaded, after the index is loaded: tells what lives. A place outside its file or in a
 * segment that is not there is -EBADMSG (the caller drops that node). */
int store_mark_live(struct store *st, struct place place, uint32_t stored_bytes);
/* Likewise for a big file; -ENOENT when it is missing. charged_bytes: what it takes (st_blocks * 512). */
int store_mark_big(struct store *st, uint64_t big_id, uint64_t *ret_size_bytes, uint64_t *ret_disk_bytes);
/* After marking: removes segments nothing lives in and big files nothing points to; the store is ready. */
int store_finish_recovery(struct store *st, uint64_t *ret_orphans_removed);

/* Upper bound of what appending a payload of stored_bytes can add to the disk. */
uint64_t store_append_cost(const struct store *st, uint32_t stored_bytes);
/* Appends one record (header made from info; info->stored_bytes == payload length). On return the bytes are
 * in the page cache (they survive our death, not a power cut) and the record is live. */
int store_append(struct store *st, const struct record_info *info, const void *payload, struct place *ret_place);
/* Header alone; -EBADMSG if it is not a valid record. */
int store_read_info(struct store *st, struct place place, struct record_info *ret_info);
/* Reads, verifies and decodes a record of kind into out, exactly logical_bytes. -EBADMSG: doubtful.
 * -EAGAIN only with nowait. stored_bytes as the index has it. */
int store_read(struct store *st, struct place place, enum record_kind kind, uint32_t stored_bytes, uint32_t logical_bytes,
               bool nowait, void *out, struct record_info *ret_info);
/* The record is dead. Memory work; disk space comes back through store_reclaim. Safe under the cache lock. */
void store_drop(struct store *st, struct place place, uint32_t stored_bytes);

/* Gives dead space back: at most ops_max punches and unlinks. *ret_freed: bytes released to the quota.
 * The journal must already hold (written) what made the records dead. */
int store_reclaim(struct store *st, unsigned ops_max, uint64_t *ret_freed);

/* Makes every record appended before the call durable (file data and directory entries). Concurrent calls
 * share one pass. -EIO is sticky for the segment: it is never trusted or appended to again. */
int store_sync(struct store *st);

/* Cleaning. Picks the sealed segment with the least live share, if below live_percent_max and older than
 * the append segment; 0 = none. */
uint32_t store_pick_clean(struct store *st, unsigned live_percent_max);
/* Visits up to records_max record headers of a segment from *offset on (start with 0), advancing it; *ret_done
 * at its end. visit gets every record that still reads as one; dead and punched ranges are skipped. */
typedef int (*store_visit)(void *ctx, struct place place, const struct record_info *info);
int store_walk_segment(struct store *st, uint32_t segment_no, unsigned records_max, uint32_t *offset, store_visit visit,
                       void *ctx, bool *ret_done);

/* Appends a verified copy of a record as it is stored; info as the walk gave it. -EBADMSG when it does not verify, or
 * cannot be read.
 * Never evicts (-ENOSPC instead): it is called while room is being made. */
int store_copy(struct store *st, struct place from, const struct record_info *info, struct place *ret_to);

/* Big files. create: empty, 0600; the id is new for the life of the store. Directory space is charged. */
int store_big_create(struct store *st, uint64_t *ret_big_id, int *ret_fd);
int store_big_open(struct store *st, uint64_t big_id, bool writable, int *ret_fd);
void store_big_close(struct store *st, int fd); /* of either; fd < 0 is fine */
/* The file is gone from the store directory; its bytes are released unless still_open, in which case the
 * caller keeps them charged and calls quota_release at the last close (C4). Reserves nothing. */
int store_big_unlink(struct store *st, uint64_t big_id, uint64_t disk_bytes, bool still_open);
/* The file now takes new_bytes on disk instead of old_bytes: settles big_bytes and the quota. The growth has
 * been reserved in the quota before by the caller; reserved_bytes of it are given back here. */
void store_big_settle(struct store *st, uint64_t old_bytes, uint64_t new_bytes, uint64_t reserved_bytes);
/* Makes the directory entry of the file durable (its data: io_sync_data on the fd). */
int store_big_sync_entry(struct store *st, uint64_t big_id);

/* For content: the sync of a big file failed. */
void store_failed(struct store *st, int error, const char *what);

void store_usage(struct store *st, struct store_usage *ret_usage);
struct quota *store_quota(struct store *st);
struct io *store_io(struct store *st);
