/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache: `struct larder`, the lock order, and what the cache_*.c files share. Each operation is one function
 * there: check, change memory and log it under the cache lock, write the log, give space back, answer.
 *
 *   cache.c          open, close, the store directory
 *   cache_name.c     lookup, making and removing names, rename
 *   cache_file.c     open, read, write, commit
 *   cache_attr.c     attributes
 *   cache_xattr.c    xattrs and policy settings
 *   cache_dir.c      directory streams, subtree walks
 *   cache_log.c      changes to journal records
 *   cache_recover.c  journal records to nodes, and what holds together
 *   cache_evict.c    room for what comes in; what leaves and why
 *   cache_work.c     threads: eviction ahead of need, expiry, recency, checkpoints, cleaning, sealing
 *   cache_stats.c    counters, events
 *
 *   rank  lock             covers                                           may be held across
 *      5  file             one open node: its writers and commits           everything below, payload I/O
 *     10  content          one open node's bytes                            payload I/O, quota_reserve
 *     12  checkpoint       who writes a checkpoint                          everything below, fdatasync
 *     15  reclaim          who is making room                               journal writes, punches, unlinks
 *     20  cache            tree, recency, wheel, open nodes, record buffer  memory work only
 *     30  store            segment table, append cursor                     memory work only
 *     40  journal file     journal descriptors                              pwrite
 *     50  journal          journal buffer                                   memory work only
 *     60  events           ring of events                                   memory work only
 *     90  work             what the threads are asked to do                 memory work only
 *     90  leaving          bytes that wait for their record                  memory work only
 *
 * No lock is held across fdatasync but `file` and `content` of that one file, and `checkpoint`.
 *
 * Order on disk, which is what C2 rests on:
 *   K1  a value's bytes are written before the record that points to them;
 *   K2  a record is written before the request that caused it is answered;
 *   K3  the record that lets go of bytes is written before the bytes are let go (log_let_go);
 *   K4  bytes moved by cleaning are synced, and so is the record that says so, before the old ones go;
 *   K5  when a name goes from one fsynced value to another (rename), the record is durable before the request is
 *       answered and before the replaced bytes are let go: a power cut shows one of the two.
 *
 * What becomes of a failure below:
 *   a sync                    the kernel may have dropped what it could not write: nothing that depended on it is promised,
 *                             the file is not trusted again, the cache is read-only until it is mounted anew; said once
 *   a write to the journal    likewise; but for want of room it is kept and tried again
 *   any other change          that request fails, and what it was to replace stays; the next one goes elsewhere
 *   no room (ENOSPC, EDQUOT)  keys leave, a bounded number of times, then the request fails; heals by itself. Bytes let
 *                             go of by a record that found no room wait for it (K3). A sync is no such case
 *   no descriptors, no memory the request fails, heals by itself; but a change that has happened and cannot be put into
 *                             a record for want of memory makes the cache read-only
 *   a read of a value         the key is dropped and counted, its reader gets EIO, the next finds a miss; bytes changed
 *                             in place stay
 *   a read at mount           of FORMAT, checkpoint or journal: no mount; of a value's file: a miss
 *   a checkpoint              the journal goes on, another try follows in a while; said once
 *   our files meddled with    index, journal and FORMAT that went or were replaced are written anew; segments and big
 *                             files are misses. Bytes of a big file that somebody changes while the kernel reads it
 *                             itself (passthrough) are beyond us
 *
 * Invariants, checked by cache_check_invariants in -Dinvariants=true builds:
 *   C-I1  every linked evictable node is in exactly one recency list, no other is in any (E2).
 *   C-I2  entries is the number of linked nodes that are no directories.
 *   C-I3  the quota's charged bytes are at least what the store says it takes.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "clock.h"
#include "content.h"
#include "evict.h"
#include "expire.h"
#include "io.h"
#include "journal.h"
#include "larder.h"
#include "lock.h"
#include "quota.h"
#include "stats.h"
#include "store.h"
#include "tree.h"
#include "util.h"

#define LARDER_MAGIC 0x7264726cu
#define OPEN_NODE_MAGIC 0x646e6e6fu
#define LARDER_FILE_MAGIC 0x656c6966u
#define LARDER_DIR_MAGIC 0x72696472u

#define EVICT_BATCH 64u     /* nodes that leave under one hold of the cache lock */
#define EXPIRE_BATCH 256u
#define WALK_BATCH 512u     /* nodes looked at under one hold of the cache lock */
#define SEAL_QUEUE_MAX 1024u
#define ASKED_MAX 16384u    /* nodes the kernel is asked to forget within a second */
#define EVENTS_BYTES (1u << 20)
#define MISS_FILTER_SLOTS 4096u
#define RECORD_USUAL_BYTES 1024u /* what a usual change logs; asked of log_room */

enum worker {
    WORKER_EVICT, /* eviction ahead of need */
    WORKER_TICK,  /* expiry, recency, host free space */
    WORKER_TIDY,  /* checkpoints, cleaning, sealing */
    WORKER_COUNT
};

/* A node that has open files. */
struct open_node {
    uint32_t magic;
    struct lock lock;            /* rank FILE */
    struct larder *l;            /* (c) */
    uint64_t id;                 /* (c) */
    struct content *content;     /* (c) */
    struct open_node *hash_next; /* (cache) */
    uint32_t opens, writers;     /* (cache) */
    bool uncommitted;            /* (cache) the size below counts, not the node's */
    uint64_t size_bytes;         /* (cache) */
    uint64_t disk_bytes;         /* (cache) */
    bool changed;                /* (cache) was written to since it was opened */
    bool backing_taken;          /* (file) the kernel may read the raw file itself: replaced values wait for the last close */
    struct value *deferred;      /* (file) such values */
    uint32_t deferred_count;     /* (file) */
};

struct larder_file {
    uint32_t magic;
    struct larder *l;      /* (c) */
    struct open_node *on;  /* (c) */
    bool readable, writable; /* (c) */
    _Atomic bool flushed;    /* (a) nothing has been changed through it since its last flush */
};

struct counters {
#define X(kind, unit, name, help) _Atomic uint64_t name;
    LARDER_STATS(X)
#undef X
    struct {
        _Atomic uint64_t count, total_ns, max_ns;
        _Atomic uint64_t buckets[LARDER_LATENCY_BUCKETS];
    } latency[LARDER_OP_COUNT];
};

#define COUNT(l, name) COUNT_ADD(l, name, 1)
#define COUNT_ADD(l, name, n) \
    ((void)atomic_fetch_add_explicit(&(l)->counters.name, (uint64_t)(n), memory_order_relaxed))

/* Bytes that a record let go of which found the host's disk full: they go when it is written (K3). */
struct leaving {
    struct value value;
    uint64_t seq;
    bool durable; /* when it is synced (K4) */
};
#define LEAVING_MAX (1u << 16) /* what is beyond stays on the books until the next mount */

struct events {
    struct lock lock;
    char *ring;              /* EVENTS_BYTES */
    uint64_t oldest, newest; /* stream positions */
};

struct larder {
    uint32_t magic;
    struct larder_options opts;        /* (c) */
    struct larder_callbacks callbacks; /* (c) */
    struct clock clock;                /* (c) */
    struct io *io;                     /* (c) */
    int dir_fd, lock_fd;               /* (c) */
    uint8_t store_id[16];              /* (c) */
    uint8_t boot_id[16];               /* (c) of this boot of the machine */
    uint8_t store_boot_id[16];         /* (c) of the boot the store was last used in */
    const struct cache_repair *repair; /* (c) NULL in a daemon */
    uint64_t stamp_max_ns;             /* (c) no cache time from disk is believed to be later */
    bool unclean_boot;                 /* (c) the machine went down without an orderly stop of the daemon */
    struct quota quota;                /* (a) */
    struct store *store;               /* (c) */
    struct journal *journal;           /* (c) */
    struct content_host content_host;  /* (c) */
    uint64_t opened_mono_ns;           /* (c) */

    struct lock lock; /* rank CACHE: the block below */
    struct tree *tree;
    struct evict evict;
    struct expire *expire;
    struct record_buffer rb;            /* the record being built */
    struct open_node **open_nodes;      /* hash table by slot */
    uint32_t open_buckets;              /* power of two */
    uint64_t open_count, handle_count;
    uint64_t entries;                   /* linked nodes that are no directories */
    uint64_t stored_bytes, logical_bytes; /* of committed values */
    uint64_t policy_dirs;               /* linked directories with a policy of their own */
    uint64_t policy_files;              /* nodes with expires, ttl or idle of their own; never falls: a hint */
    uint64_t pinned;                    /* linked nodes with pin set on themselves */
    uint64_t recency_flushed_ns;        /* uses up to here are in the journal */
    struct seal_item {
        uint64_t id, due_ns;
    } *seal_queue;                      /* ring, in the order they are due */
    uint32_t seal_head, seal_count;
    struct asked_item {
        uint64_t id, mono_ns;
    } *asked;                           /* ring of those the kernel was asked to forget; NULL with exact hits */
    uint32_t asked_head, asked_count;
    uint64_t forgotten;                 /* held nodes that were, so far */
    bool all_forgotten;
    pthread_cond_t forgotten_cond;
    uint64_t told_parent;               /* directory the kernel was last told about in this record */
    uint64_t miss_filter[MISS_FILTER_SLOTS];

    struct lock checkpoint_lock;        /* rank CHECKPOINT */
    _Atomic uint64_t checkpoint_retry_ns; /* mono: after a failed one none is written before, but on request */
    _Atomic uint32_t mends;               /* times files were found meddled with */
    _Atomic bool checkpoint_wanted;       /* what a restart would read was meddled with */
    _Atomic bool checkpoint_failing;      /* the last one failed; said once */
    _Atomic uint64_t checkpoint_reserve_bytes; /* held in the quota so that the next one finds room */
    struct lock reclaim_lock;           /* rank RECLAIM */
    _Atomic uint64_t wanted_bytes;      /* what those who wait for room want, together */
    _Atomic bool rb_failed;             /* a record could not be built: no memory */
    _Atomic bool failed;                /* read-only from now on; said once */
    _Atomic uint64_t base_limit_bytes;  /* quota as configured; quota.limit_bytes may be lower (min_free) */
    struct lock leaving_lock;           /* rank LEAF: the two below */
    struct leaving *leaving;
    uint32_t leaving_room;
    _Atomic uint32_t leaving_count;     /* written under leaving_lock */
    struct events events;
    struct counters counters;

    struct lock work_lock;              /* rank LEAF: the block below */
    pthread_cond_t work_cond;
    _Atomic bool cleaning;              /* somebody empties a segment */
    bool work_stop;
    _Atomic bool evict_wanted, tidy_wanted;
    unsigned threads_started;
    pthread_t threads[WORKER_COUNT];
};

/* A store that is opened to be repaired: nothing is given up in silence, and no file removed before the checkpoint. */
struct cache_repair {
    void (*lost)(void *ctx, const char *path, size_t path_bytes, const char *what); /* path: raw */
    void *ctx;
    const uint64_t *directories; /* node ids of those whose own record is lost, to be made anew for what is in them */
    size_t directory_count;
};

/* What a store stands on. The daemon's is the machine; a test's may be a disk in memory whose power fails. */
struct cache_host {
    struct io *io;                     /* borrowed until larder_close */
    int dir_fd;                        /* of the store directory; taken, also on failure */
    const struct clock_ops *clock_ops;
    void *clock_ctx;
    uint8_t boot_id[16];               /* of this boot of the machine */
    const struct cache_repair *repair; /* NULL but for inspect_repair; borrowed until larder_close */
};

/* cache.c */
/* larder_open without the path: label stands for it in messages. */
int cache_open_on(const struct cache_host *host, const char *label, const struct larder_options *opts,
                  const struct larder_callbacks *callbacks, struct larder **ret_larder, struct errtext *err);
uint64_t cache_now(const struct larder *l); /* cache time */
int64_t cache_wall(const struct larder *l); /* for st_mtime and its kin */
uint64_t cache_usable_bytes(const struct larder *l); /* the quota less what a walk over the store may count twice */
void cache_mend_files(struct larder *l); /* what somebody took out of the store directory and can be put back */
int cache_writable(struct larder *l);       /* -EROFS when read-only or failed */
void cache_logf(struct larder *l, enum larder_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void cache_fail(struct larder *l, int error, const char *what); /* goes read-only, tells once; under any lock */

/* cache_log.c. All but log_write and log_room with the cache lock held. */
void log_begin(struct larder *l);
void log_node(struct larder *l, const struct node *n);
void log_first_names(struct larder *l, const struct node *n); /* and the times of the directories they are in */
void log_name(struct larder *l, const struct dentry *d);
void log_unname(struct larder *l, const struct dentry *d);
void log_unname_of(struct larder *l, const struct node *parent, const struct node *n, const char *name, size_t name_bytes);
void log_touch(struct larder *l, const struct node *dir);
void log_drop(struct larder *l, const struct node *n, enum drop_reason reason);
void log_value(struct larder *l, const struct node *n);
/* Sends the record. The seq to hand to log_write; 0: nothing was in it; UINT64_MAX: failed, log_write says so. */
uint64_t log_end(struct larder *l);
/* Without the cache lock. Makes the record survive us (durable: and a power cut). On failure the cache goes
 * read-only and this returns -EIO. */
int log_write(struct larder *l, uint64_t seq, bool durable);
/* The same for a request that changed something: evicts where the host's disk is full, before it gives up. Without locks. */
int log_write_making_room(struct larder *l, uint64_t seq, bool durable);
/* What to answer to a request that went r and whose record is seq: r, or if that was well what became of the record. */
int log_result(struct larder *l, int r, uint64_t seq);
/* What becomes of the bytes that the record seq let go of, r being log_write's word on it: they are freed, or wait for
 * the record, or stay (the journal is bad: the next mount knows them). Without the cache lock. */
void log_let_go(struct larder *l, int r, uint64_t seq, bool durable, const struct value *values, unsigned count);
/* Likewise of bytes whose record was sent before. */
void log_let_go_of_logged(struct larder *l, const struct value *values, unsigned count);
void log_settle_leaving(struct larder *l); /* frees what waited for records that are written by now */
int log_room(struct larder *l, size_t bytes); /* without locks; may evict */
void node_to_image(const struct larder *l, const struct node *n, struct node_image *ret_image);
void dentry_to_image(const struct larder *l, const struct dentry *d, struct name_image *ret_image);

/* cache_recover.c. Before anything else runs. */
int cache_apply(void *ctx, const struct entry_view *entry); /* journal_apply */
void cache_expect(void *ctx, const struct entry_view *entry); /* journal_expect */
int cache_make_lost_directories(struct larder *l); /* of a repair, before the journal is read */
int cache_recover(struct larder *l, const struct journal_replay *replay); /* drops what dangles, marks places */
void cache_arm_all(struct larder *l);
uint64_t cache_sane_stamp(const struct larder *l, uint64_t ns); /* from disk, cut to what a clock could say */

/* cache_evict.c */
int cache_make_room(void *ctx, uint64_t want_bytes);           /* quota's make_room */
void cache_running_low(void *ctx);                             /* quota's running_low */
int cache_evict_until(struct larder *l, uint64_t free_bytes);  /* -ENOSPC: nothing more may leave */
/* The coldest files with xattrs of theirs leave, but one, until so many bytes of xattrs are gone; false: there are none. */
bool cache_evict_xattrs(struct larder *l, uint64_t but, uint64_t bytes);
int cache_make_entry_room(struct larder *l);                   /* -ENOSPC: at max_entries and nothing may leave */
int cache_host_full(struct larder *l, uint64_t bytes);         /* the host disk said ENOSPC below the quota; 0: try again */
void cache_update_min_free(struct larder *l);
/* Drops what has expired at the head of that directory, if the name is one: readdir does not show it any more. */
void cache_expire_children(struct larder *l, uint64_t parent, const char *name, size_t name_bytes);
unsigned cache_expire_due(struct larder *l);                   /* without locks; how many were looked at */
/* Below: cache lock held. */
/* Takes every name of the node away, adds a DROP to the record, tells the kernel and the event stream. Its value
 * goes to *ret_value for content_drop_value after log_write (EMPTY when an open file keeps it). The node may be freed. */
void cache_drop_node(struct larder *l, struct node *n, enum drop_reason reason, struct value *ret_value);
bool cache_is_expired(const struct larder *l, const struct node *n, enum drop_reason *ret_reason);
void cache_arm(struct larder *l, struct node *n);
void cache_forgotten(struct larder *l, struct node *n); /* the kernel has no reference to it any more */
void node_linked(struct larder *l, struct node *n);   /* it has its first name now */
void node_unlinked(struct larder *l, struct node *n); /* it lost its last name: leaves lists and counts */
void node_gone_if_unused(struct larder *l, struct node *n);
void cache_count_value(struct larder *l, const struct value *v, int sign);
/* Takes the committed value off a node whose last name is gone, unless it is open. */
void node_take_value(struct larder *l, struct node *n, struct value *ret_value);
/* Of a nameless node: what nobody can reach any more goes. The kernel may still open a node it has a reference to. */
void node_settle_nameless(struct larder *l, struct node *n, struct value *ret_value);

/* cache_file.c */
struct open_node *open_node_find(const struct larder *l, uint32_t slot); /* cache lock held */
/* An open node for internal use (sealing, truncate by path). Without locks. */
int open_node_get(struct larder *l, uint64_t id, bool writer, struct open_node **ret_on);
void open_node_put(struct open_node *on, bool writer);
int open_node_commit(struct open_node *on, bool durable);
int open_node_seal(struct open_node *on);
int open_node_resize(struct open_node *on, uint64_t size_bytes);
void cache_seal_later(struct larder *l, uint64_t id); /* cache lock held */
void node_times_now(struct larder *l, struct node *n); /* atime, mtime and ctime */
void node_clear_priv(struct larder *l, struct node *n); /* setuid, and setgid of executables; cache lock held */

/* cache_attr.c. Cache lock held. */
uint64_t cache_valid_ns(const struct larder *l, const struct node *n);
void cache_fill_attr(struct larder *l, const struct node *n, struct larder_attr *ret_attr);
/* Somebody may read it, whatever becomes of its names: it has open files, or nobody says so (sampled) and the kernel
 * knows it. */
bool node_may_be_open(const struct larder *l, const struct node *n);
/* Past its deadline, or evicted: as good as gone for all but those who have it open. Answered -ESTALE, which makes the kernel
 * look its name up again, at once. */
bool cache_is_stale(const struct larder *l, const struct node *n);

/* policy.c: what counts for a node, and where it was set. Cache lock held. */
enum policy_where { POLICY_DEFAULT, POLICY_MOUNT, POLICY_DIRECTORY, POLICY_OWN };
struct policy_source {
    enum policy_where where;
    const struct node *node; /* OWN, DIRECTORY */
};
uint64_t policy_ttl(const struct larder *l, const struct node *n, struct policy_source *ret_source);
uint64_t policy_idle(const struct larder *l, const struct node *n, struct policy_source *ret_source);
bool policy_pin(const struct larder *l, const struct node *n, struct policy_source *ret_source);
enum compress_mode policy_compress(const struct larder *l, const struct node *n, struct policy_source *ret_source);
/* When it expires (UINT64_MAX: never), and which policy says so. */
uint64_t policy_deadline(const struct larder *l, const struct node *n, enum drop_reason *ret_reason);
bool ext_has_policy(const struct node_ext *x);

/* cache_dir.c: calls visit for every node below the directory (not itself), the cache lock held, given up between batches. */
typedef void (*subtree_visit)(struct larder *l, struct node *n, void *ctx);
int cache_walk_subtree(struct larder *l, uint64_t directory, subtree_visit visit, void *ctx);
/* What counts below a directory changed (policy set, or moved): arm anew, make the kernel ask again. Without locks. */
void cache_rearm_subtree(struct larder *l, uint64_t directory);

/* cache_work.c */
int work_start(struct larder *l);
void work_stop(struct larder *l);
void work_want_eviction(struct larder *l);
void work_want_tidy(struct larder *l);
int work_checkpoint(struct larder *l, bool clean);
bool work_checkpoint_may_try(const struct larder *l); /* not so soon after one that failed */
bool work_release_checkpoint_room(struct larder *l); /* what keys that left no longer need; true: there was some */
bool work_shrink_log(struct larder *l); /* a log of much that is gone by now: shortened; true: it gave room */
int work_bound_journal(struct larder *l); /* before a change is logged, without locks: a journal that is far too long
                                          * is shortened first */
int work_clean_segment(struct larder *l); /* 1: gave something back, 0: nothing to do. Reclaim lock may be held */

/* cache_stats.c */
int events_init(struct events *e);
void events_fini(struct events *e);
void events_add(struct larder *l, const struct node *n, enum drop_reason reason); /* cache lock held */
bool miss_filter_seen(struct larder *l, uint32_t parent_slot, const char *name, size_t name_bytes); /* and remembers; cache lock held */

void cache_check_invariants(struct larder *l); /* cache lock held */
#ifdef LARDER_INVARIANTS
#define CHECK_INVARIANTS(l) cache_check_invariants(l)
#else
#define CHECK_INVARIANTS(l) ((void)0)
#endif
