/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_internal: what store.c and store_*.c share; nobody else includes it.
 *
 * A segment's life:   (none) -> ACTIVE    store_create_segment
 *                     ACTIVE -> SEALED    segment_seal_locked (full, failed write, failed sync)
 *                     found at mount: SEALED from the start, so that nothing is appended behind a torn tail
 *                     SEALED -> gone      store_reclaim, store_finish_recovery (no live record, no append in flight, no pin)
 *
 * Blocks. counts[i] is how many live records touch block i; a record lives from the moment its place is chosen.
 * Blocks at or above segment_punch_limit belong to the tail and are never dead.
 *
 * Invariant S1: charged_bytes of a segment >= what its file takes on disk, at every instant.
 * Invariant S2: counts[i] is BLOCK_HOLE only when no live record touches block i, and it never lives again.
 * Invariant S3: dead_blocks = number of i < segment_punch_limit with counts[i] == 0.
 *
 * Keys: (c) constant after creation, (l) lock of the store, (a) atomic, (d) dirs_lock, (r) recovery only.
 */
#pragma once

#include <stdatomic.h>
#include <sys/queue.h>

#include "format.h"
#include "lock.h"
#include "store.h"

#define STORE_MAGIC 0x53544f52u
#define SEGMENT_MAGIC 0x5345474du

#define BLOCK_STICKY 254u /* so many that the count is lost: alive until the whole segment is dead */
#define BLOCK_HOLE 255u   /* given back, or being given back */

#define SEGMENT_NO_MAX 0xf0000000u /* names above are foreign; numbers never wrap */
#define SEGMENT_NO_EARNED_MAX 0xe0000000u /* numbers above, when found, are not counted on from */
#define SEGMENT_FILE_BYTES_MAX (128 * MIB) /* twice the largest there can be; what lies beyond in a file is not looked at */
#define DIR_GROWTH_BLOCKS 3u       /* one new name may split a leaf and its index node, or make the directory an indexed one */
#define BIG_DIR_COUNT 256u
/* From so many segments on, a name of another module (a journal) may be what makes the store directory grow. */
#define TOP_SEGMENTS_SPARE 64u
#define TOP_SPARE_BLOCKS 2u
#define ST_BLOCK_BYTES 512u /* unit of st_blocks */

enum {
    QUEUE_DEAD_COUNT = 21, /* by log2 of the dead blocks of a segment; 2^20 blocks is the largest file there can be */
    QUEUE_EMPTY = QUEUE_DEAD_COUNT,
    QUEUE_COUNT,
    QUEUE_NONE = QUEUE_COUNT,
};

struct segment {
    uint32_t magic;
    uint32_t no;               /* (c) */
    struct segment *hash_next; /* (l) */
    TAILQ_ENTRY(segment) all_link;
    TAILQ_ENTRY(segment) queue_link; /* (l) in queues[queue], unless QUEUE_NONE */
    TAILQ_ENTRY(segment) fd_link;    /* (l) in open_fds when in_fd_list */
    TAILQ_ENTRY(segment) dirty_link; /* (l) in dirty when dirty */
    unsigned queue;                  /* (l) */
    int fd;                          /* (l) -1: closed; stays open while pinned */
    _Atomic uint32_t pins;           /* (a) raised under the lock only, so 0 seen under it stays 0 */
    uint32_t tail;                   /* (l) next record goes here; found at mount: the file's size */
    uint32_t in_flight;              /* (l) appends chosen but not written */
    uint32_t block_count;            /* (l) blocks charged for so far, from the start of the file */
    uint32_t counts_allocated;       /* (l) */
    uint8_t *counts;                 /* (l) */
    uint32_t dead_blocks;            /* (l) S3 */
    uint32_t disk_blocks;            /* (l) payload blocks that are, or may come to be, on disk */
    uint32_t slack_blocks;           /* (l) for the file system's own map of the file; never falls */
    uint32_t splits;                 /* (l) holes punched into the middle of something */
    uint64_t live_records;           /* (l) */
    uint64_t live_bytes;             /* (l) */
    bool sealed;                     /* (l) */
    bool bad;                        /* (l) a sync failed: what was unsynced then may be lost */
    bool dirty;                      /* (l) written since the last sync began */
    bool in_fd_list;                 /* (l) */
    bool holes_unknown;              /* (l) found at mount and not asked yet */
    bool mapping;                    /* (l) somebody is looking for its holes */
    bool unpunchable;                /* (l) punching it failed; its space comes back with the file */
};

TAILQ_HEAD(segment_list, segment);

/* One of big/XX. */
struct big_dir {
    uint32_t file_count;    /* (d) */
    uint64_t charged_bytes; /* (d) */
    bool exists, foreign;   /* (d) foreign: the name is taken by something that is no directory */
    bool entry_unsynced;    /* (d) */
};

struct store {
    uint32_t magic;
    struct io *io;           /* (c) */
    int dir_fd;              /* (c) borrowed */
    struct quota *quota;     /* (c) */
    struct store_options opts; /* (c) */
    uint8_t store_id[16];    /* (c) */
    uint32_t block_bytes;    /* (c) power of 2, >= BLOCK_BYTES */

    struct lock lock;
    struct segment **table;  /* (l) hash by number */
    uint32_t table_size;     /* (l) power of 2 */
    uint32_t segment_count;  /* (l) */
    uint32_t next_segment_no; /* (l) */
    struct segment *active;  /* (l) */
    bool creating;           /* (l) */
    bool ready;              /* (c) after store_finish_recovery */
    bool no_punch;           /* (l) the file system has no holes */
    pthread_cond_t changed;  /* creating or syncing ended */
    struct segment_list all; /* (l) oldest first */
    struct segment_list open_fds; /* (l) most recently used first */
    struct segment_list dirty;    /* (l) */
    struct segment_list queues[QUEUE_COUNT]; /* (l) */
    uint32_t open_fd_count;  /* (l) */
    uint32_t dirty_count;    /* (l) */
    uint32_t bad_count;      /* (l) */
    uint64_t disk_blocks;    /* (l) of all segments */
    uint64_t live_bytes;     /* (l) */
    uint64_t punches, segments_unlinked; /* (l) */
    uint64_t top_charged_bytes;          /* (l) the store directory itself */

    uint64_t sync_started, sync_done;    /* (l) passes */
    uint64_t sync_failed_pass;           /* (l) the last one that failed */
    int sync_error;                      /* (l) of that pass */
    bool syncing;                        /* (l) */
    bool dir_dirty;                      /* (l) a segment's name is not durable */
    bool dir_bad;                        /* (l) a sync of the directory failed */

    struct lock dirs_lock;   /* rank LEAF: big/ and below; held across mkdir and rmdir, which are rare and small */
    struct big_dir big_dirs[BIG_DIR_COUNT]; /* (d) */
    uint64_t big_charged_bytes; /* (d) big/ itself */
    bool big_exists;         /* (d) */
    bool big_foreign;        /* (d) */
    bool big_entry_unsynced; /* (d) */
    uint64_t next_big_id;    /* (d) */
    _Atomic uint32_t big_fds;   /* (a) descriptors of big files */
    _Atomic uint64_t big_count; /* (a) written with dirs_lock held */
    _Atomic uint64_t big_bytes;     /* (a) */
    _Atomic uint64_t charged_bytes; /* (a) */
    uint64_t *big_marked;    /* (r) open-addressed set of ids; 0 = free */
    uint64_t big_marked_size, big_marked_count; /* (r) */
};

/* What a record takes: header, payload, zeros up to 8. */
static inline uint32_t record_bytes(uint32_t stored_bytes)
{
    return (uint32_t)round_up((uint64_t)DISK_VALUE_HEADER_BYTES + stored_bytes, 8);
}

/* ---- store.c ---- */
struct segment *store_find_locked(struct store *st, uint32_t segment_no);
int store_insert_locked(struct store *st, struct segment *seg);
void store_remove_locked(struct store *st, struct segment *seg);
struct segment *segment_new(uint32_t no);
void segment_free(struct segment *seg);
/* Pins a segment and opens its file if need be. -ENOENT: no such segment. */
int segment_pin(struct store *st, uint32_t segment_no, struct segment **ret_seg, int *ret_fd);
int segment_open_fd(struct store *st, struct segment *seg, int *ret_fd); /* pinned by the caller */
void segment_unpin(struct segment *seg);
/* The bookkeeping of what is charged; the quota is charged, or released, along with it. */
void store_charge(struct store *st, uint64_t bytes);
void store_uncharge(struct store *st, uint64_t bytes);
/* Reserved before is now the store's: no change of the quota. */
void store_adopt(struct store *st, uint64_t bytes);
/* A directory takes now_bytes; *charged_bytes is what was charged for it. Takes the growth out of *reserved_bytes first. */
void store_settle_dir(struct store *st, uint64_t now_bytes, uint64_t *charged_bytes, uint64_t *reserved_bytes);
uint64_t store_dir_bytes(struct store *st, int dir_fd);
uint64_t store_top_spare_bytes(const struct store *st);
void store_mark_dirty_locked(struct store *st, struct segment *seg);

/* ---- store_space.c ---- */
uint32_t store_blocks(const struct store *st, uint64_t bytes);
int segment_reserve_counts_locked(struct store *st, struct segment *seg, uint32_t block_count);
void segment_ref_locked(struct store *st, struct segment *seg, uint32_t offset, uint32_t bytes);
void segment_unref_locked(struct store *st, struct segment *seg, uint32_t offset, uint32_t bytes);
void segment_seal_locked(struct store *st, struct segment *seg);
uint32_t segment_slack_blocks(const struct segment *seg);
uint64_t segment_charged_bytes(const struct store *st, const struct segment *seg);
void segment_requeue_locked(struct store *st, struct segment *seg);
void segment_recount_locked(struct store *st, struct segment *seg);
/* Compares with what the file really takes; charges what the file system added of its own. */
void segment_true_up(struct store *st, struct segment *seg, int fd);
/* Takes the segment out of everything and unlinks it; its charge is released. false: stays. */
bool segment_unlink(struct store *st, struct segment *seg, uint64_t *freed_bytes);

/* ---- store_big.c ---- */
int store_big_scan(struct store *st, struct errtext *err);
int store_big_remove_orphans(struct store *st, uint64_t *removed);
