/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal_internal: what journal.c, journal_replay.c and checkpoint.c share. Nobody else includes it.
 *
 * One journal file is one stream of bytes: its 64-byte header goes through the same buffer as its records.
 * A chunk belongs to one file, so a rotation is a swap of chunks and needs no I/O under the lock.
 *
 *   journal_append --> front (lock) --swap--> back --pwrite (file_lock)--> file --fdatasync (sync turn)
 *
 * Field keys: (c) constant after open; (l) JOURNAL lock; (f) JOURNAL_FILE lock; (a) atomic;
 * (s) owner of the sync turn (sync_running), which syncs and removes files; one thread at a time.
 */
#pragma once

#include "journal.h"
#include "lock.h"

#define JOURNAL_MAGIC 0x4a524e4cu
#define JOURNAL_PREFIX "journal-"
#define INDEX_PREFIX "index-"
#define JOURNAL_STEP_BYTES_MIN (16u << 10) /* for small quotas, where a full step would be a large share */
/* Charged on top of each file's own bytes: file systems count the blocks of its extent tree as well. */
#define FILE_SLACK_BYTES BLOCK_BYTES
/* Numbers above are not used and, when found, not believed: room to count on from the largest found. */
#define JOURNAL_NO_MAX (UINT32_MAX - (1u << 20))
#define JOURNAL_FILES_MAX (1u << 20) /* of a kind in one directory; what is beyond is ignored and counted */

struct journal_file {
    struct journal_file *next; /* (l) to set; towards newer */
    uint32_t no;               /* (c) */
    int fd;                    /* (s) -1: of an earlier run, or sealed and synced; else open for writing */
    uint64_t offset;           /* (f) where the next chunk goes */
    uint64_t allocated_end;    /* (f) blocks below are allocated */
    _Atomic uint64_t charged_bytes; /* (a), written under (l); in the quota, on behalf of this file */
    uint64_t overhead_bytes;   /* (l) of charged_bytes: taken by the file system itself */
    _Atomic bool sealed;       /* (a) nothing more will be written to it */
    bool synced;               /* (s) and all of it is durable */
    bool junk;                 /* (c) not part of any chain; leaves with the next checkpoint */
};

struct journal_chunk {
    struct journal_file *file; /* where it goes */
    uint8_t *data;             /* owned */
    size_t used, allocated;
    uint64_t last_seq; /* of its last record; 0 when it holds none */
};

struct index_file {
    uint32_t no;
    uint64_t charged_bytes;
    uint64_t inode_no; /* 0: not known */
};

/* What one of the last records changed, for the next ones to recall. */
struct recalled {
    uint64_t seq; /* 0: none yet */
    uint32_t count;
    uint64_t nodes[RECALL_NODES_MAX];
};

struct journal {
    uint32_t magic;
    struct io *io;          /* (c) */
    int dir_fd;             /* (c) borrowed */
    struct quota *quota;    /* (c) */
    uint8_t store_id[16];   /* (c) */
    bool read_only;         /* (c) */
    void (*failed)(void *ctx, int error, const char *what); /* (c) */
    void *failed_ctx;       /* (c) */
    uint64_t step_bytes;    /* (c) growth is reserved in these */
    uint64_t emergency_bytes; /* (c) what emergency_left is refilled to */

    struct lock file_lock;
    struct journal_chunk back;   /* (f) being written; kept for another try when the disk was full */
    bool can_allocate;           /* (f) */
    _Atomic bool host_full;      /* (a) the last allocation ahead found the host's disk full */

    struct lock lock;
    pthread_cond_t sync_done;
    struct journal_file *files, *current; /* oldest .. newest; nodes go in the sync turn; the rest (l), current also (f) */
    struct journal_chunk front;  /* (l) */
    uint64_t seed;               /* (l) of the current file */
    struct recalled recalled[RECALL_RECORDS]; /* (l) by seq modulo their number */
    _Atomic uint64_t room_bytes; /* (a), written under (l): what fits in the current file's charge */
    _Atomic uint64_t emergency_left; /* (a), written under (l) */
    _Atomic uint64_t overdrafts; /* (a) times growth was charged past the limit */
    bool sync_running;           /* (l) */
    bool checkpoint_running;     /* (l) one at a time */
    uint32_t next_no;            /* (f) */
    uint32_t next_index_no;      /* (l) */

    struct index_file *indexes; /* (s) owned */
    size_t index_count;         /* (s) */

    _Atomic int error;           /* (a) first failure; sticky */
    _Atomic uint64_t last_seq;   /* (a), written under (l): appended */
    _Atomic uint64_t written_seq; /* (a), written under (f) */
    _Atomic uint64_t synced_seq; /* (a), written in the sync turn */
    _Atomic bool dir_dirty;      /* (a) a new file's name is not durable yet */
    _Atomic uint64_t appended_total; /* (a) bytes, all files */
    _Atomic uint64_t checkpoint_mark; /* (a) appended_total when the last checkpoint started */
    _Atomic uint64_t files_charged;  /* (a) sum over files of charged_bytes */
    _Atomic uint64_t checkpoint_bytes; /* (a) size of the newest index */
};

/* journal.c */
int journal_rotate(struct journal *j, uint32_t *ret_no);
void journal_fail(struct journal *j, int error);
/* The turn to sync or remove files. */
void journal_turn_take(struct journal *j);
void journal_turn_give(struct journal *j);
/* Unlinks the files below replay_from_no, those of no chain, and all but one index. In the sync turn. */
void journal_remove_older(struct journal *j, uint32_t replay_from_no, uint32_t index_no);
int journal_add_index(struct journal *j, uint32_t no, uint64_t charged_bytes, uint64_t inode_no);
/* Everything written so far and every name is durable, even if no record is. */
int journal_sync_all(struct journal *j);

/* journal_replay.c */
struct journal_names {
    uint32_t *journals, *indexes; /* owned, ascending */
    size_t journal_count, index_count;
    uint64_t ignored; /* beyond JOURNAL_FILES_MAX */
};
void journal_names_fini(struct journal_names *names);
/* Lists the directory; removes leftovers of unfinished writes unless read_only. */
int journal_names_scan(struct io *io, int dir_fd, bool read_only, struct journal_names *ret_names);

/* Opens a regular file of ours for reading; -EBADMSG for anything else under that name. */
int journal_open_regular(struct io *io, int dir_fd, const char *name, int *ret_fd, struct stat *ret_st);

struct replay_result {
    uint32_t index_no;       /* 0: none was good */
    uint32_t replay_from_no; /* files below are not needed */
    uint32_t journal_no;     /* the largest number that was earned: by a good header, or by a good checkpoint */
    uint64_t index_bytes, journal_bytes;
};
int journal_replay_all(struct io *io, int dir_fd, const struct journal_options *opts, const struct journal_names *names,
                       journal_apply apply, void *apply_ctx, struct journal_replay *replay, struct replay_result *ret_result,
                       struct errtext *err);
