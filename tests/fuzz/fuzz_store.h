/* SPDX-License-Identifier: BSD-2-Clause */
/* fuzz_store: the store of a target and what is done to it; for those that know what a store is made of. */
#pragma once

#include "content.h"
#include "format.h"
#include "fuzz.h"
#include "inspect_internal.h"
#include "larder.h"
#include "memdisk.h"

extern const uint8_t fuzz_store_id[16];
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
