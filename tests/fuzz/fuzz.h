/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz: what the targets share. A target is a program, fuzz_NAME.c, that defines LLVMFuzzerTestOneInput. Built with
 * -Dfuzzing=true it is driven by libFuzzer; otherwise fuzz_main.c replays the files it is given, which is the suite
 * `fuzz-smoke`. A target that finds something wrong calls FUZZ_CHECK, which aborts.
 *
 * Targets that need a store have one on a disk in memory, made anew for every input: FORMAT with a fixed id, segments and
 * big files with values known beforehand (the template), and what the target makes of its input. Then everything is
 * done to it that a mount does: see fuzz_exercise. The clock is the target's own, so an input does the same every time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "content.h"
#include "format.h"
#include "inspect_internal.h"
#include "larder.h"
#include "memdisk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t bytes_max);

#define FUZZ_CHECK(cond)                                                                     \
    do {                                                                                     \
        if (!(cond)) {                                                                       \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);        \
            abort();                                                                         \
        }                                                                                    \
    } while (0)

#define FUZZ_CHECK_OK(call)                                                                          \
    do {                                                                                             \
        int fuzz_r_ = (call);                                                                        \
        if (fuzz_r_ < 0) {                                                                           \
            (void)fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, strerror(-fuzz_r_)); \
            abort();                                                                                 \
        }                                                                                            \
    } while (0)

/* ---- bytes of the input, taken from the front ---- */

struct fuzz_in {
    const uint8_t *data;
    size_t left;
};
uint8_t fuzz_u8(struct fuzz_in *in); /* 0 when there are none left */
uint16_t fuzz_u16(struct fuzz_in *in);
uint64_t fuzz_u64(struct fuzz_in *in);
const uint8_t *fuzz_take(struct fuzz_in *in, size_t bytes_max, size_t *ret_bytes); /* what there is of it */

struct fuzz_buffer {
    uint8_t *data; /* owned */
    size_t used, allocated;
};
void *fuzz_buffer_add(struct fuzz_buffer *b, const void *data, size_t bytes); /* data NULL: zeros. Returns where it went */
void fuzz_buffer_fini(struct fuzz_buffer *b);

/* Seeds: written to the directory FUZZ_SEEDS names, if it does. */
void fuzz_seed(const char *name, const struct fuzz_buffer *b);
void fuzz_seed_logs(bool is_index); /* the template's log, to be read in several ways */

/* ---- fuzz_store.c ---- */

extern const uint8_t fuzz_store_id[16];
void fuzz_store_init(void);                  /* makes the template; once */
void fuzz_store_reset(bool with_payload);    /* FORMAT alone, or the template's segments and big files as well */
void fuzz_store_put(const char *name, const void *data, size_t bytes);
struct memdisk *fuzz_disk(void);
int fuzz_mount(const struct larder_options *opts, const struct larder_callbacks *callbacks, struct larder **ret_larder,
               struct errtext *err);
struct inspect_source fuzz_inspect_source(void); /* each use needs one of its own */

/* A value of the template: what the store holds of it and what must be read. */
struct fuzz_known {
    uint64_t node_id;
    struct value value;
    uint8_t *bytes; /* owned */
    size_t size;
};
const struct fuzz_known *fuzz_known(size_t index); /* any index; it wraps around */
/* Adds one of the target's own; bytes are copied. Forgotten by fuzz_store_reset. */
void fuzz_know(uint64_t node_id, const struct value *v, const void *bytes, size_t size);
/* Whether those bytes are what the store holds for that node. A raw file does not say whose it is: any node's will do. */
bool fuzz_is_known(uint64_t node_id, const void *bytes, size_t size);
void fuzz_seed_log(const char *which, struct fuzz_buffer *ret_bytes); /* "journal" or "index" of the template */

enum {
    FUZZ_READ_ONLY = 1 << 0,
    FUZZ_CHANGE = 1 << 1,      /* write, rename, unlink and so on, too */
    FUZZ_SMALL_QUOTA = 1 << 2, /* 1 MiB: eviction at once */
    FUZZ_THREADS = 1 << 3,     /* with what goes on behind the traffic */
    FUZZ_CLEAN = 1 << 4,       /* a checkpoint and the cleaning of segments, too */
    FUZZ_INSPECT = 1 << 5,     /* with what `larder check` and `larder dump` do, before and after */
};
/* Mounts the store, reads all of it, closes it, inspects it, mounts it again and reads it again. What was read must
 * be known, and the same both times. */
void fuzz_exercise(unsigned flags);

/* ---- fuzz_log.c: journals and checkpoints ---- */

/* What a byte of the input decides about the rest of it. */
enum {
    FUZZ_LOG_AS_IS = 1 << 0,     /* the bytes are the file: nothing is sealed */
    FUZZ_LOG_HEADER = 1 << 1,    /* the file header is the input's, but for what must be right */
    FUZZ_LOG_COUNTS = 1 << 2,    /* entry_count is the input's */
    FUZZ_LOG_FAR_IDS = 1 << 3,   /* node ids are the input's; else brought near */
    FUZZ_LOG_ANY_PLACE = 1 << 4, /* values are the input's; else made to point at the template's */
};
/* Turns input into the files of a log in the store, sealed. */
void fuzz_log_build(struct fuzz_in *in, unsigned how, bool is_index);
/* For LLVMFuzzerCustomMutator; the log begins after `skip` bytes of the input. */
size_t fuzz_log_mutate(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed, size_t skip);
