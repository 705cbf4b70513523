/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut_world: one store on a disk in memory, driven by seeded operations, and the model that knows what may be
 * found in it after a power cut.
 *
 * The model is a history: one state of the whole tree after every call that could have changed it. As the journal is one
 * ordered log, what a recovery finds is one of these states (J): none before the last sync that returned, none after
 * what was asked for last. In it (C2)
 *   a key whose version was fsynced is there with exactly those bytes;
 *   a key whose version was not may be a miss, and shows nothing else;
 *   an empty file has no bytes to lose, so it is there;
 *   what is past its deadline is a miss. Deadlines are in cache time (core/clock.h), which a recovery may begin some
 *   nanoseconds ahead of the wall clock: at the newest stamp of use it found; world_open bounds the lead.
 * One file is changed in place, as a database does: each of its bytes is the one fsynced last or one written since.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cache.h"
#include "memdisk.h"
#include "powercut.h"

#define NODES 64u
#define DIRS 8u
#define NAMES 12u
#define VERSIONS_MAX 4096u
#define DB_BYTES_MAX (64u << 10)
#define NO_MARK UINT32_MAX
#define TEXT_BYTES 96u

enum kind { KIND_FREE, KIND_FILE, KIND_DIR, KIND_LINK };

struct mnode {
    uint8_t kind;
    uint8_t links;
    uint8_t dir;      /* KIND_DIR: its row in child[] */
    bool is_db;
    bool small;       /* its value is in a segment: changes of it are whole new values */
    uint32_t version; /* of its bytes; of a link: of its target */
    uint32_t tag;     /* value of user.tag; 0: none */
    uint32_t mode;
    uint64_t written_ns, ttl_ns; /* cache time; ttl 0: none */
};

/* The whole tree at a moment. Node 1 is the root, row 0. */
struct state {
    struct mnode nodes[NODES];
    uint8_t child[DIRS][NAMES]; /* node, 0: no such name */
    uint8_t dir_node[DIRS];     /* node of the row, 0: free */
};

struct version {
    uint8_t *data; /* owned by the pool */
    uint32_t bytes;
    uint32_t same_as; /* the first version with these bytes */
};

/* Every content ever written, shared by a world and those that grow out of its cuts. */
struct pool {
    struct version versions[VERSIONS_MAX];
    uint32_t count;
};

struct moment {
    struct state state;
    uint32_t floor; /* the latest moment known to be durable at this one */
    uint64_t wall_ns;
    bool inner;     /* of a name that left, within a call that had not returned */
    char text[TEXT_BYTES];
};

enum db_what { DB_WRITE, DB_SIZE, DB_ZERO, DB_SYNC };
struct db_event {
    enum db_what what;
    uint32_t mark; /* SYNC: done at this moment; else: the one it was begun at */
    uint64_t offset;
    uint32_t bytes, version; /* WRITE, ZERO; WRITE: of the pool */
};

struct profile {
    const char *name;
    uint8_t put, replace_by_rename, rename, unlink, link, dirs, attrs, ttl, evict, clean, checkpoint, db, append, sync,
        restart;
    uint32_t bytes_max;
};

struct world_options {
    uint64_t quota_bytes;
    uint32_t big_bytes;
    bool durable_close;
    const char *sabotage; /* powercut_ignore_syncs, or NULL */
};

struct fake_clock {
    uint64_t mono_ns, wall_ns;
};

struct world {
    struct world_options opts;
    const struct profile *profile;
    struct memdisk *disk;  /* pc's, or ours */
    struct powercut *pc;   /* NULL: not recorded */
    struct larder *l;
    struct fake_clock clock;
    uint8_t boot;          /* power was cut so many times */
    struct pool *pool;     /* borrowed */
    struct state now;
    struct moment *history;
    uint32_t moments, moments_allocated;
    uint64_t ids[NODES];   /* of larder, by model node */
    uint32_t refs[NODES];  /* the kernel's references to it; of a free one: it has no name any more */
    uint32_t synced_at[VERSIONS_MAX]; /* moment from which the version is durable */
    struct db_event *db_events;
    uint32_t db_count, db_allocated;
    uint8_t *db_base;      /* what the db holds when the history begins; owned */
    uint32_t db_base_bytes;
    uint32_t db_now_bytes;
    struct larder_file *db_file;
    bool db_written;       /* through db_file */
    struct larder_file *held; /* open for reading for a while, whatever becomes of its name */
    unsigned held_node;
    uint64_t held_id;
    uint32_t held_version;
    bool tiny;             /* only small puts now: others hold what room would be made with */
    uint64_t rng;
    bool observing;        /* names that go now go because they cannot be read */
    bool ended;            /* no more operations: an error that may happen */
    char failure[512];     /* empty: none */
};

/* What a recovery found. */
struct found_node {
    uint8_t kind;
    uint8_t dir;      /* row of struct finding */
    uint64_t id;
    uint32_t version; /* NO_MARK: bytes nobody wrote as a whole */
    uint32_t tag, mode;
    uint64_t ttl_ns;
    uint8_t *data;    /* of such bytes; owned */
    uint32_t bytes;
};

struct finding {
    struct found_node nodes[NODES + 1]; /* from 1 */
    uint8_t child[DIRS][NAMES];
    uint32_t node_count, dir_count;
    bool foreign;     /* a name nobody made */
};

/* powercut_world.c */
uint32_t world_random(struct world *w, uint32_t below);
void world_init(struct world *w, struct pool *pool, const struct world_options *opts, uint64_t seed);
void world_fini(struct world *w); /* crashes the store if it is open */
void world_note_base(struct world *w); /* the history begins with the tree as it is */
uint64_t world_now_ns(const struct world *w); /* cache time while it is open */
int world_open(struct world *w);  /* < 0 and failure set when it cannot be */
void world_abandon(struct world *w); /* the daemon dies; the disk stays as the kernel has it */
void world_close(struct world *w);   /* an orderly stop */
void world_run(struct world *w, uint32_t operations);
void world_expire_all(struct world *w); /* what is past its deadline goes */
void world_learn_ids(struct world *w); /* looks every name of the model up; fails when one is not there */
uint32_t pool_add(struct pool *pool, uint32_t bytes, unsigned flavour, uint64_t seed);
uint32_t pool_add_data(struct pool *pool, const uint8_t *data, uint32_t bytes);
void pool_fini(struct pool *pool);
void fail(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern const struct profile profiles[];
extern const unsigned profile_count;

/* powercut_check.c */
void world_observe(struct world *w, struct finding *ret_finding);
void finding_fini(struct finding *f);
struct match {
    uint32_t first, last; /* the moments that are allowed */
    uint32_t cut_mark;    /* what was durable is judged at this one; NO_MARK: no power was cut, nothing may be lost */
    uint64_t now_ns; /* world_now_ns of who found it */
    bool killed;  /* no power was cut: the daemon died, what was answered for is there */
    bool verbose; /* tell of each moment why not */
    bool stale; /* the file system shows old bytes where it lost what was not synced */
};
/* The newest moment that f may be; NO_MARK when there is none, and why says what is wrong with the newest allowed. */
uint32_t finding_match(const struct world *of, const struct finding *f, const struct match *m, char why[TEXT_BYTES * 2]);
/* The state the finding is, as the base of another history. */
/* The history goes on after the daemon was killed at that moment: nothing more is durable than was. */
void world_continue(struct world *w, const struct world *of, uint32_t moment, uint32_t cut_mark, const struct finding *f);
void world_rebase(struct world *w, const struct world *of, uint32_t moment, const struct finding *f);
