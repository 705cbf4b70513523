/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal: the ordered log of everything the index is, and the checkpoints that shorten it.
 *
 * journal_append copies a record into a memory buffer and gives it a seq; it is called under the cache
 * lock, so the order of records is the order of changes. journal_write hands everything up to a seq to the
 * kernel with one pwrite (concurrent callers share it): from then on it survives our death. journal_sync
 * makes it survive a power cut (concurrent callers share one fdatasync).
 *
 * Files. journal_rotate starts the next file; the old one is made durable before anything in the new one
 * counts as durable, so recovery never meets a gap. A checkpoint is written beside the traffic:
 *   1 journal_rotate gives the file from which replay will start
 *   2 the caller streams its current state through checkpoint_add, in chunks, the cache lock released between
 *   3 checkpoint_finish syncs the journal up to now, then the checkpoint, renames it into place, syncs
 *     the directory, and only then unlinks older index and journal files
 * States in it may be newer than the start of the replay; entries are idempotent (format.h), so replay ends
 * right.
 *
 * Quota. The journal reserves room in steps (JOURNAL_STEP_BYTES) before it grows; if none is to be had
 * journal_append still takes the record out of an emergency reserve held since journal_open, so that
 * removals can always be logged. journal_room() lets callers that can be refused ask first.
 *
 * Errors. After a failed write (but for -ENOSPC) or sync the journal is bad for good: every later call returns
 * that error (-EIO for a sync that found no room: that does not heal), and the cache goes read-only.
 *
 * What may never happen: a record acknowledged by journal_write that a restart does not replay; a record
 * acknowledged by journal_sync that a power cut takes; replay past a gap.
 *
 * Thread safety: append/write/sync/rotate may be called concurrently. Lock JOURNAL covers the buffer (memory work),
 * JOURNAL_FILE the file (held across pwrite, never across fdatasync).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format.h"
#include "io.h"
#include "quota.h"
#include "util.h"

struct journal;

#define JOURNAL_STEP_BYTES (256u << 10)
#define JOURNAL_BUFFER_BYTES_MAX (8u << 20)

/* Replay. Called once per entry, in order, records whole; with ENTRY_RECALL only where records are missing: what those
 * nodes are is not known any more. Return < 0 to give up (only -ENOMEM makes sense). */
typedef int (*journal_apply)(void *ctx, const struct entry_view *entry);
/* An entry that will be applied a little later, if all goes well: a chance to fetch the memory it will want. */
typedef void (*journal_expect)(void *ctx, const struct entry_view *entry);
/* All that was applied so far was of a checkpoint that proves to be none to believe: as if nothing had been. 0 or -errno. */
typedef int (*journal_reset)(void *ctx);

struct journal_replay {
    bool found_index;          /* a valid checkpoint was loaded */
    bool disk_full;            /* no room for a new journal file: the journal was opened read-only instead */
    bool lost;                 /* damage that nothing makes good: all that was applied was recalled again */
    bool clean;                /* it was written by an orderly stop and nothing follows */
    struct end_image end;      /* of the checkpoint, zero without one */
    uint64_t index_records, journal_records, entries;
    uint64_t torn_bytes;       /* ignored at the end of files */
    uint64_t corrupt_records;  /* damage: valid records behind an invalid one, bad checkpoints, bad headers */
    uint64_t last_seq;
    uint64_t read_bytes;
};

struct journal_options {
    const uint8_t *store_id; /* 16 bytes, copied */
    uint64_t emergency_bytes; /* reserve for removals, charged at open; 64 KiB is usual, 0 for quota=0 */
    const uint8_t *boot_id;   /* 16 bytes, borrowed by journal_open; NULL: not known. Of this boot of the machine */
    journal_expect expect;    /* with the ctx of apply. NULL: not told */
    journal_reset reset;      /* likewise. NULL: it cannot; then a checkpoint is read twice */
    bool read_only;           /* replay only: nothing is created or removed */
    /* The journal has gone bad, said once, perhaps with its locks held. NULL: nobody is told. */
    void (*failed)(void *ctx, int error, const char *what);
    void *failed_ctx;
};

/* Replays the newest valid checkpoint and the journals after it, then starts a new journal file. *.tmp and
 * files no longer needed are removed. Damage is counted, not fatal, and a full disk
 * told (disk_full); errors are I/O or memory. */
int journal_open(struct io *io, int dir_fd, struct quota *quota, const struct journal_options *opts, journal_apply apply,
                 void *apply_ctx, struct journal_replay *ret_replay, struct journal **ret_journal, struct errtext *err);
void journal_close(struct journal *j); /* NULL is fine; writes what is buffered, does not sync; its files stay charged */

/* rb: entries between record_begin and record_finish (which this calls). Returns the seq, or 0 if the
 * journal is bad (journal_error says why). Never waits for the disk. */
uint64_t journal_append(struct journal *j, struct record_buffer *rb);
/* -ENOSPC (the host's disk, not the quota) is not for good: nothing is lost, the next call tries again. */
int journal_write(struct journal *j, uint64_t seq);
int journal_sync(struct journal *j, uint64_t seq);
int journal_error(const struct journal *j);
/* Everything up to there survives our death; a power cut. */
uint64_t journal_written_seq(const struct journal *j);
uint64_t journal_synced_seq(const struct journal *j);
/* -ENOSPC when `bytes` more could not be logged without the emergency reserve. May evict (quota_reserve), so
 * no lock may be held. */
int journal_room(struct journal *j, size_t bytes);

uint64_t journal_last_seq(const struct journal *j);
uint64_t journal_disk_bytes(const struct journal *j);      /* journal files, now */
uint64_t journal_since_checkpoint(const struct journal *j); /* bytes appended since the last checkpoint started */
uint64_t journal_checkpoint_bytes(const struct journal *j); /* of the newest index file */

/* Are the files a restart would read the ones that were written: there, under their names, and not cut short? */
bool journal_is_whole(struct journal *j);

uint64_t journal_overdrafts(const struct journal *j); /* times a record had to be charged past the limit */

struct checkpoint;
/* Rotates and opens index-N.tmp. bytes_max: upper bound of what will be added, reserved in the quota: first out of
 * *reserved_bytes, which the caller holds there already and which is lowered by what was taken. -ENOSPC
 * leaves everything as it was (the rotation is harmless). */
int checkpoint_begin(struct journal *j, uint64_t bytes_max, uint64_t *reserved_bytes, struct checkpoint **ret_checkpoint);
/* A record of any entries but END; memory work and buffered writes. */
int checkpoint_add(struct checkpoint *cp, struct record_buffer *rb);
/* Takes ownership. Of end, nodes, names (as many as were added) and last_seq (all appended so far) are filled in here. */
int checkpoint_finish(struct checkpoint **cp, const struct end_image *end);
void checkpoint_abort(struct checkpoint **cp);

/* Walks one file record by record for `larder dump` and `larder check`; stops at the first invalid one.
 * visit gets the byte offset. *ret_bad_offset: where it stopped, UINT64_MAX when at the exact end. */
typedef int (*journal_visit)(void *ctx, uint64_t offset, const struct record_view *view);
int journal_walk_file(struct io *io, int dir_fd, const char *name, const uint8_t store_id[16], journal_visit visit, void *ctx,
                      struct journal_header *ret_header, uint64_t *ret_bad_offset, struct errtext *err);
