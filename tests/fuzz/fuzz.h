/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz: what the targets share. A target is a program, fuzz_NAME.c, that defines LLVMFuzzerTestOneInput. Built with
 * -Dfuzzing=true it is driven by libFuzzer; otherwise fuzz_main.c replays the files it is given, which is the suite
 * `fuzz-smoke`. A target that finds something wrong calls FUZZ_CHECK, which aborts.
 *
 * Targets that need a store have one on a disk in memory, made anew for every input: FORMAT with a fixed id, segments and
 * big files with values known beforehand (the template), and what the target makes of its input. Then everything is
 * done to it that a mount does: see fuzz_exercise in fuzz_store.h. The clock is the target's own, so an input does the same every time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/larder.h"

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
void fuzz_seed_table(const uint8_t *seeds, size_t count, size_t seed_bytes);
void fuzz_seed_logs(bool is_index); /* the template's log, to be read in several ways */

/* ---- fuzz_store.c; more of it in fuzz_store.h ---- */

void fuzz_store_init(void);               /* makes the template; once */
void fuzz_store_reset(bool with_payload); /* FORMAT alone, or the template's segments and big files as well */
struct larder *fuzz_mount_whole(const struct larder_options *opts); /* what is well must mount */
