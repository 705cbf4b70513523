/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content_internal: what the content*.c files share.
 *
 *   content.c         birth, reading and the end
 *   content_change.c  the transitions of a changed content, and the changes
 *   content_commit.c  commit, sync, seal
 *   content_raw.c     the big file under a content: descriptors, what is charged for it, raw bytes, block sums
 *   content_packed.c  the lz4 blocks of a packed big file: writer and reader
 *
 * Everything here is called with the content's lock held unless it says otherwise.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "content.h"
#include "io.h"
#include "lock.h"
#include "quota.h"
#include "util.h"

#define CONTENT_MAGIC 0x746e6f63u
#define BIG_FILE_MAGIC 0x66676962u

#define SUMS_PIECE_BYTES (64u << 10)
#define SUMS_BLOCKS_MAX 8192u
#define SUMS_HEADER_BYTES 16u
#define SUMS_FILE_BYTES_MAX (64 * GIB)    /* larger raw files are never sealed */
#define SUMS_REREAD_BYTES_MAX (512 * MIB) /* a commit reads no more than this again; content_seal does */

/* A big file in use. Reference counted: reads run without the content's lock, and the file may be replaced
 * under them. */
struct big_file {
    uint32_t magic;
    _Atomic uint32_t refs;
    uint64_t big_id;  /* (c) */
    int fd_ro, fd_rw; /* -1 until needed; at least one is open */
    /* At any instant: du(file) <= settled_bytes + reserved_bytes. */
    uint64_t settled_bytes;  /* charged through the store (store_big_settle) */
    uint64_t reserved_bytes; /* taken from the quota on top */
    uint64_t data_bytes;     /* upper bound of what is allocated, without extent blocks to come */
    uint64_t asked_bytes;    /* data_bytes when the file system was last asked */
    uint64_t dense_end;      /* !holes: everything below is allocated, nothing above */
    bool holes;
    bool tail_left; /* a failed write may have left bytes past the size */
    bool counted;   /* the fields above are true: it may be changed (fresh, or content_open_in_place) */
    bool synced;    /* nothing changed since its data was last synced */
    _Atomic bool entry_synced;
    bool lent;         /* fd_ro was handed out: stays open until content_free */
    _Atomic int error; /* of a failed sync: sticky, the file is not trusted again */
    struct big_file *next_lent;
};

/* Block sums of a raw file, taken as it is written. Pieces of 64 KiB are summed one by one; a block of more than
 * one piece is summed over the sums of its pieces, so that the final block size need not be known. */
struct sums {
    uint64_t *pieces; /* owned */
    uint64_t room;
    uint64_t hashed_bytes; /* the prefix of the file that pieces and state cover */
    void *state;           /* XXH3_state_t of the piece hashed_bytes lies in; owned */
};

/* Sums of a sealed value, as read back, and which blocks were found to agree. */
struct verifier {
    uint64_t block_bytes;
    uint64_t size_bytes;
    uint32_t count;
    uint32_t verified_count;
    uint64_t *sums;    /* owned; one allocation with verified behind it */
    uint8_t *verified; /* bitmap */
};

struct sums_block {
    uint32_t index;
    uint64_t start, end; /* in the file */
    uint64_t block_bytes, sum;
};

struct packed;

enum content_state { CONTENT_SEALED, CONTENT_MEMORY, CONTENT_PACKED, CONTENT_RAW, CONTENT_IN_PLACE };

struct content {
    uint32_t magic;
    struct lock lock;
    struct store *st;                 /* (c) */
    const struct content_host *host;  /* (c) */
    uint64_t node_id;                 /* (c) */
    struct content_options opts;      /* (c) */
    struct value value;               /* (l) committed; of its places only the atomics below are current */
    _Atomic uint64_t place;           /* (a) segment_no << 32 | offset */
    _Atomic uint64_t sums_place;      /* (a) */
    _Atomic uint64_t size_bytes;      /* (a) written with the lock held */
    _Atomic uint64_t disk_bytes;      /* (a) likewise */
    _Atomic enum content_state state; /* (a) likewise */
    _Atomic bool dirty;               /* (a) likewise */
    _Atomic bool orphan;              /* (a) */
    bool pending;                     /* (l) between content_commit and content_committed */
    bool synced;                      /* (l) what is committed is known to be on the device */
    bool trusted;             /* (l) we wrote what is committed, or verified all of it: no doubts left */
    bool commit_durable;      /* (l) the pending commit */
    bool checksum_known;      /* (l) */
    bool appended_only;       /* (l) MEMORY: written from front to back */
    bool derived;             /* (l) MEMORY, PACKED, RAW: begun with bytes of the committed value */
    bool refused;             /* (l) was held and proved too large: takes no more before it is truncated to 0 */
    bool held;                /* (l) MEMORY: too large for it, but a file would evict others before its size is known */
    unsigned durable_commits; /* (l) */
    uint64_t change_no;       /* (l) counts changes and changes of state */
    uint64_t checksum;        /* (l) of the committed segment value */
    uint8_t *buf;             /* (l) MEMORY, or the loaded segment value; owned */
    size_t buf_room;          /* (l) */
    uint64_t reserved_bytes;  /* (l) MEMORY: for the record to come */
    uint64_t kept_bytes;      /* (l) charged for a replaced file beyond its value; released by content_free */
    struct big_file *base;    /* (l) the committed big file, once opened */
    struct big_file *stage;   /* (l) the one being written: RAW, PACKED */
    struct big_file *lent;    /* (l) list */
    struct packed *packed;    /* (l) blocks of stage (PACKED) or base (SEALED) */
    struct sums sums;         /* (l) of stage (RAW) */
    struct verifier verifier; /* (l) of base (SEALED) */
};

static inline uint64_t place_to_u64(struct place p)
{
    return (uint64_t)p.segment_no << 32 | p.offset;
}

static inline struct place place_from_u64(uint64_t v)
{
    return (struct place){.segment_no = (uint32_t)(v >> 32), .offset = (uint32_t)v};
}

/* content_raw.c: big files */
int big_file_create(struct store *st, struct big_file **ret_file);
/* -EBADMSG when it is missing. */
int big_file_open(struct store *st, uint64_t big_id, uint64_t charged_bytes, struct big_file **ret_file);
int big_file_need_rw(struct store *st, struct big_file *f);
int big_file_need_ro(struct store *st, struct big_file *f);
struct big_file *big_file_ref(struct big_file *f);
void big_file_unref(struct store *st, struct big_file *f); /* closes at the last; NULL is fine */
/* Closes, unlinks and releases a file that no committed value names. */
void big_file_discard(struct store *st, struct big_file *f);
int big_file_fd(const struct big_file *f);
/* Reserves so that growth_bytes more of data fit, and extra_bytes for something else. -ENOSPC: nothing changed. */
int big_file_reserve(struct store *st, struct big_file *f, uint64_t growth_bytes, uint64_t extra_bytes);
/* Charges what the file takes (and may yet take once its blocks are placed), gives the rest back. */
int big_file_settle(struct store *st, struct big_file *f);
/* The commit of a file changed in place came to nothing: its value says value_bytes as before, and that is what will be
 * released when it is dropped. */
void big_file_unsettle(struct store *st, struct big_file *f, uint64_t value_bytes);
/* As big_file_settle, but from what is known without asking. Memory work only. */
void big_file_keep(struct store *st, struct big_file *f);
int big_file_refresh(struct store *st, struct big_file *f);
/* Data and directory entry on the device. An error is sticky. May run without the lock, on a referenced file. */
int big_file_sync(struct store *st, struct big_file *f, int fd);

/* content_change.c: a held value goes to a file after all, evicting what it must. */
int content_unhold(struct content *c);

/* content_raw.c: raw bytes */
/* The file ends where the content does, also after a write that failed half-way. */
int raw_trim(struct content *c, struct big_file *f);
int raw_write(struct content *c, struct big_file *f, const void *buf, size_t bytes, uint64_t offset);
int raw_truncate(struct content *c, struct big_file *f, uint64_t size_bytes);
int raw_allocate(struct content *c, struct big_file *f, int mode, uint64_t offset, uint64_t bytes);
/* All of [offset, offset + bytes), which lies below the content's size; what the file lacks reads as zeros.
 * Runs without the lock, on a referenced file. */
int raw_read(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset, bool nowait);

/* content_raw.c: sums */
void sums_reset(struct sums *s);
void sums_feed(struct sums *s, const void *buf, size_t bytes, uint64_t offset);
void sums_cut(struct sums *s, uint64_t offset);
/* Reads what is not summed yet. -E2BIG: more than reread_bytes_max. */
int sums_complete(struct sums *s, struct io *io, int fd, uint64_t size_bytes, uint64_t reread_bytes_max);
uint32_t sums_record_bytes(uint64_t size_bytes);
/* Appends the record for a file summed to size_bytes. */
int sums_append(struct sums *s, struct store *st, uint64_t node_id, uint64_t size_bytes,
                struct place *ret_place);

void verifier_fini(struct verifier *v);
bool verifier_is_loaded(const struct verifier *v);
/* The sums record of the committed value. -EBADMSG, -EAGAIN (nowait). */
int verifier_load(struct content *c, bool nowait);
/* The first block of the range that was not verified yet. */
bool verifier_find_doubt(const struct verifier *v, uint64_t offset, uint64_t bytes, uint32_t *ret_index);
void verifier_mark(struct verifier *v, uint32_t index);
struct sums_block verifier_block(const struct verifier *v, uint32_t index);
/* Is the block as summed? Runs without the lock. -EBADMSG: it is not. */
int sums_block_check(const struct sums_block *b, struct io *io, int fd, bool nowait);

/* content_packed.c */
int packed_new(enum compress_mode mode, struct packed **ret_packed);
void packed_free(struct packed *p); /* NULL is fine */
size_t packed_memory(const struct packed *p);
/* Reads and checks footer and index of a committed file. -EBADMSG, -EAGAIN (nowait). */
int packed_open(struct io *io, int fd, const struct value *v, uint64_t node_id, bool nowait,
                struct packed **ret_packed);
int packed_append(struct packed *p, struct store *st, struct big_file *f, const void *buf, size_t bytes);
/* Writes tail, index and footer. Repeatable; packed_append goes on where it was. */
int packed_finish(struct packed *p, struct store *st, struct big_file *f, uint64_t node_id);
/* The finished file is the committed one: no more appends. */
void packed_seal(struct packed *p);
uint64_t packed_disk_bytes(const struct packed *p);
int packed_read(struct packed *p, struct io *io, int fd, void *buf, size_t bytes, uint64_t offset,
                bool nowait);

/* content.c */
void content_count_memory(int64_t bytes);
void content_set_state(struct content *c, enum content_state state);
/* Something changed: what is shown from outside, and that there is something to commit. */
void content_changed(struct content *c, uint64_t size_bytes);
void content_forget_buffer(struct content *c);
int content_need_base(struct content *c);
int content_load(struct content *c, bool nowait);
/* Verifies what of [offset, offset + bytes) of a SEALED raw value was not yet. Gives the lock up meanwhile:
 * -ESTALE if the content is another then. */
int content_verify(struct content *c, uint64_t offset, uint64_t bytes, bool nowait);
void content_forget_stage(struct content *c);

/* content_change.c */
int content_begin_change(struct content *c);
/* Makes an IN_PLACE content's file writable and exactly as long as the value. */
int content_open_in_place(struct content *c);
