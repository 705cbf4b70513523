/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * faultio: a table of I/O over another one, which counts calls and makes chosen ones fail.
 *
 * Calls of the kinds in plan.calls are counted from 1 on, across threads; those whose number lies in first..last
 * fail with plan.error without reaching the table below, or (error 0) move half of the bytes they were asked to move.
 * Everything else passes through. The plan may be changed between calls.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "io.h"

enum faultio_call {
    FAULTIO_OPEN,   /* of what is there */
    FAULTIO_CREATE, /* open with O_CREAT */
    FAULTIO_READ,
    FAULTIO_WRITE,
    FAULTIO_TRUNCATE,
    FAULTIO_ALLOCATE,
    FAULTIO_PUNCH,
    FAULTIO_SYNC, /* of data, files and directories */
    FAULTIO_RENAME,
    FAULTIO_UNLINK,
    FAULTIO_MKDIR,
    FAULTIO_STAT,
    FAULTIO_LIST,
    FAULTIO_SEEK,
    FAULTIO_STATFS,
    FAULTIO_CALL_COUNT
};

#define FAULTIO_BIT(call) (1u << (call))
#define FAULTIO_ALL (FAULTIO_BIT(FAULTIO_CALL_COUNT) - 1)

struct faultio_plan {
    unsigned calls;       /* FAULTIO_BIT()s */
    uint64_t first, last; /* the calls that fail; first 0: none */
    int error;            /* -errno; 0: reads and writes are cut short */
};

struct faultio {
    struct io io; /* give this to who is tested */
    struct io *below;
    struct faultio_plan plan;
    _Atomic uint64_t counted, failed;
    _Atomic int last_failed; /* enum faultio_call, -1: none yet */
};

void faultio_init(struct faultio *f, struct io *below);
/* Counts from 1 again. */
void faultio_plan(struct faultio *f, const struct faultio_plan *plan);
const char *faultio_call_name(int call);
