/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fs: what the files of mount.larder share: the session's context and a few idioms.
 *
 * Lock order: every lock in fs/ is a leaf. None is held while a larder_* function, a fuse_reply_* or a
 * fuse_lowlevel_notify_* runs; the engine's callbacks may take them with the engine's own locks held.
 */
#pragma once

#define FUSE_USE_VERSION 317

#include <assert.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/larder.h"

struct confine_report;
struct fs_options;
struct handles;
struct notify;
struct sampled;
struct watchdog;
struct worker;
struct writers;

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Every heap object starts with a magic: set at birth, checked on entry, wiped at free. */
#define CHECK_OBJ(obj, expected)            \
    do {                                    \
        assert((obj) != NULL);              \
        assert((obj)->magic == (expected)); \
    } while (0)

static inline void cleanup_free_ptr(void *p)
{
    free(*(void **)p);
    *(void **)p = NULL;
}
#define _cleanup_free_ __attribute__((cleanup(cleanup_free_ptr)))

static inline uint64_t mono_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

#define FS_MAGIC 0x4c53465fu /* "_FSL" */

/* Whether a facility is in use, and why (not): a constant string for .larder/config. */
struct fs_facility {
    bool active;
    const char *_Atomic reason; /* (a) that of io_uring may change once more while requests are served */
};

struct fs {
    uint32_t magic;
    const struct fs_options *opts;  /* (c) */
    struct larder *larder;          /* (c) once the session runs */
    struct fuse_session *session;   /* (c) */
    struct notify *notify;          /* (c) */
    struct worker *worker;          /* (c) */
    struct watchdog *watchdog;      /* (c) */
    struct handles *handles;        /* (c) */
    struct sampled *sampled;        /* (c) NULL but with hits=sampled */
    struct writers *writers;        /* (c) likewise, and not with ro */
    uint32_t uid, gid;              /* (c) of the mount's owner, for virtual files */
    int64_t start_wall_ns;          /* (c) times of virtual files */
    struct fs_facility io_uring;    /* (c) after INIT; active: set by the first request that came so */
    struct fs_facility passthrough; /* (c) after INIT */
    uint32_t proto_minor;           /* (c) after INIT; of the kernel */
    bool kill_priv_by_us;           /* (c) after INIT; HANDLE_KILLPRIV_V2 was agreed */
    bool kill_priv_relayed;         /* (c) libfuse tells who lacks CAP_FSETID */
    bool direct_writes;             /* (c) after INIT; what is opened for writing alone may be HANDLE_DIRECT */
    _Atomic bool agreed;            /* (a) INIT is done: publishes the fields above */
    _Atomic bool uring_seen;        /* (a) a request came over io_uring */
    _Atomic bool stopping;          /* (a) an orderly stop began; nothing goes to a worker any more */
    _Atomic uint64_t gone_seq;      /* (a) names the engine took away: see reply_entry */

    const struct confine_report *confined; /* (c) once the session runs */
};
