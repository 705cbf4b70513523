/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fault_world: a store, a table of I/O that can fail beneath it, and the model of what must be in it.
 *
 * The model keeps, per key, every version that may be found there and whether it may be missing. A call that
 * succeeded leaves one version; one that failed leaves what was there and what was to come. Bytes are a function of
 * version and position, so a mixture of two versions is never mistaken for either.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache.h"
#include "faultio.h"

#define KEYS_MAX 160u
#define ACCEPT_MAX 24u
#define VERSIONS_MAX 4096u
#define VERSIONS_PER_PART 512u

struct accept {
    uint32_t version;
    bool cut; /* any prefix of it will do: a write of it failed */
};

struct key {
    char path[32]; /* "name" or "directory/name" */
    struct accept accept[ACCEPT_MAX];
    unsigned accept_count;
    bool may_miss;
    bool torn;   /* being changed in place: each byte is of one of the versions */
    bool pinned; /* never leaves for room */
    bool has_ttl;
};

struct version {
    uint32_t bytes;
    bool compressible;
};

struct world {
    struct larder *l;
    struct larder_options opts;
    struct faultio *fio, own_fio; /* fio: of the world that others were split from */
    struct clock_ops clock_ops;
    char dir[128];
    uint64_t now_ns, rng;
    bool real_clock;

    bool evicts;      /* keys may leave for room */
    bool transparent; /* nothing may fail: short transfers and interrupted calls */
    bool wants_room;  /* only room is missing: whoever is refused is told so */
    bool halted;      /* stop_at_failure, and there was one */
    bool stop_at_failure;
    bool heap;        /* it is allocations that fail */
    bool reads_fail;  /* a value whose bytes cannot be read is a miss */

    struct key keys[KEYS_MAX];
    unsigned key_count;
    struct version versions[VERSIONS_MAX];
    uint32_t version_count;
    uint8_t *expected, *found; /* buffers of VALUE_BYTES_MAX */

    _Atomic unsigned errors, warnings, lines;
    char first_error[256];
    char *trace;
    size_t trace_bytes;
};

#define VALUE_BYTES_MAX (3u << 20)

/* Ends the process: what is wrong, and what was done before. */
_Noreturn void world_fail(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void world_init(struct world *w, const char *dir, uint64_t seed);
void world_fini(struct world *w);
int world_open(struct world *w, struct errtext *err);
int world_close(struct world *w);
/* The daemon is killed: nothing more reaches the disk, its lock is free. */
void world_kill(struct world *w);
uint64_t world_random(struct world *w, uint64_t bound);
/* For a thread of its own: the same store, other keys, versions from `number` on. To be joined again. */
void world_split(struct world *w, const struct world *from, unsigned number);
void world_join(struct world *w, struct world *part);
bool world_faults_fired(const struct world *w);

struct key *world_key(struct world *w, const char *path);
uint32_t world_version(struct world *w, uint32_t bytes, bool compressible);

/* Operations: done on the store, judged, entered into the model. They do nothing once halted. */
void do_mkdir(struct world *w, const char *name);
void do_put(struct world *w, struct key *k, uint32_t version, bool sync);
void do_overwrite(struct world *w, struct key *k, uint32_t growth_bytes, bool sync);
void do_truncate(struct world *w, struct key *k, uint64_t bytes);
void do_rename(struct world *w, struct key *from, struct key *to);
void do_publish(struct world *w, struct key *k, uint32_t version);
void do_unlink(struct world *w, struct key *k);
void do_symlink(struct world *w, const char *name, const char *target);
void do_set(struct world *w, struct key *k, const char *name, const char *value);
void do_get(struct world *w, struct key *k);
void do_sync(struct world *w);
void do_expire(struct world *w); /* an hour passes */
void do_work(struct world *w, const char *what, int (*work)(struct larder *l));

/* Every key is what the model says, the numbers are right. settled: what is found now is what must be found later. */
void world_check(struct world *w, bool settled);
void world_check_numbers(struct world *w);
