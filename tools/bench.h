/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench: the clients of a benchmark, in C so that they cost little beside what they measure. `larder bench` and
 * tests/bench/client run the same workloads.
 *
 * A job is one workload, done by `clients` processes that start together, on keys 0..count-1 below a directory. Each
 * client has a contiguous share of them. Keys have names such as caches have (hexadecimal digests), spread over
 * BENCH_DIRECTORIES directories; what reads, stats or removes them visits them in another order than the one in which
 * they were put. Their paths and values are made outside the measured time.
 *
 * A value begins with its key's number and the seed, and what reads it checks them, and the length: a benchmark of wrong
 * answers measures nothing.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define BENCH_DIRECTORIES 16
#define BENCH_CLIENTS_MAX 256
#define BENCH_ERROR_BYTES 512
#define BENCH_CHUNK_BYTES (1u << 20) /* what one write or read of a large value asks for */
#define BENCH_PAGE_BYTES 4096u

struct bench_job {
    const char *workload;
    const char *directory;
    uint64_t count; /* keys, or operations inside one value */
    uint64_t value_bytes;
    uint32_t clients;
    uint32_t seed;
    double seconds;    /* > 0: go round the keys for so long, `count` is then how many keys there are */
    bool compressible; /* values that compress to about a third; else such that do not */
};

struct bench_result {
    uint64_t operations;
    uint64_t bytes;
    double wall_s;           /* from the common start until the last client had finished */
    double user_s, system_s; /* CPU time of the clients */
    double fastest_client_ops, slowest_client_ops; /* per second, of one client */
    double mean_ns;                                /* of one operation; the others are of one call */
    uint64_t min_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns;
};

/* What one client holds while it runs. */
struct bench_client {
    const struct bench_job *job;
    uint64_t first, count; /* its keys */
    void *state;           /* of the workload: a descriptor, a connection, a mapping */
    int fd;
    uint8_t *values;    /* bench_value_count different ones */
    uint8_t *buffer;    /* one value, to read into */
    char *path, *other; /* of the key at hand */
};

struct bench_workload {
    const char *name;
    const char *summary;
    /* Operation `index` of this client. Measured. */
    int (*each)(struct bench_client *c, uint64_t index);
    /* Before each: not measured. NULL: nothing to do. */
    void (*before)(struct bench_client *c, uint64_t index);
    /* Before the common start and after the end. NULL likewise. */
    int (*open)(struct bench_client *c);
    void (*close)(struct bench_client *c);
    bool one_value; /* `count` operations in one value of value_bytes, not `count` values */
    bool makes_directories;
    bool whole;               /* one call of each() does all `count` operations */
    uint64_t operation_bytes; /* 0: value_bytes */
};

extern const struct bench_workload bench_key_workloads[], bench_value_workloads[]; /* end with a NULL name */

const struct bench_workload *bench_find(const char *name);
/* 0, or -errno with a text that names the path. -EINTR: one of bench_signals came, and was taken; who has something to
 * take away blocks them before. */
int bench_run(const struct bench_job *job, const struct bench_workload *w, struct bench_result *ret_result,
              char err[BENCH_ERROR_BYTES]);
void bench_signals(sigset_t *out);
void bench_print_json(FILE *f, const struct bench_job *job, const struct bench_result *result);
/* Everything that jobs left in the directory, which stays. */
int bench_remove_keys(const char *directory);

/* ---- for workloads ---- */

/* Says once what went wrong, and returns -error. */
int bench_fail(struct bench_client *c, const char *what, const char *path, int error);
/* The value of a key, in one of a few buffers; valid until the next call. */
const uint8_t *bench_value(struct bench_client *c, uint64_t key);
bool bench_value_is(const struct bench_client *c, const uint8_t *value, uint64_t key);
/* The key that operation `index` works on: in order, or each once in another order. */
uint64_t bench_key_in_order(const struct bench_client *c, uint64_t index);
uint64_t bench_key_shuffled(const struct bench_client *c, uint64_t index);
void bench_key_path(const struct bench_client *c, uint64_t key, const char *suffix, char *out);
#define BENCH_PATH_BYTES 4096
