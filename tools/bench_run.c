/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_run: the clients as processes, their common start, what they took.
 *
 * Each client writes its latencies to shared memory that was touched before the start, so that no measured operation
 * pays for a page of it.
 */
#include "tools/bench.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/common.h"

#define BENCH_VALUES_BYTES_MAX (16u << 20) /* of all prepared values together */
#define BENCH_VALUES_MAX 64u
#define BENCH_STAMP_BYTES 12u
#define BENCH_SAMPLES_MAX \
    (4u << 20) /* of all clients; later operations are run, but their latency is not kept */

struct bench_outcome {
    uint64_t operations, samples, started_ns, ended_ns;
    int error;
};

struct bench_shared {
    pthread_barrier_t start;
    char err[BENCH_ERROR_BYTES];
    struct bench_outcome outcome[BENCH_CLIENTS_MAX];
};

static struct bench_shared *shared;

static uint64_t bench_now_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

int bench_fail(struct bench_client *c, const char *what, const char *path, int error)
{
    (void)c;
    if (!shared->err[0])
        (void)snprintf(shared->err, sizeof(shared->err), "%s %s: %s", what, path, strerror(error));
    return -error;
}

/* ---- keys and values ---- */

static uint64_t bench_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

uint64_t bench_key_in_order(const struct bench_client *c, uint64_t index)
{
    return c->first + index % c->count;
}

uint64_t bench_key_shuffled(const struct bench_client *c, uint64_t index)
{
    /* A prime that divides no count below it, so each key is visited once. */
    return c->first + index % c->count * 2654435761u % c->count;
}

void bench_key_path(const struct bench_client *c, uint64_t key, const char *suffix, char *out)
{
    uint64_t digest = bench_mix(key + ((uint64_t)c->job->seed << 40) + 1);

    (void)snprintf(out, BENCH_PATH_BYTES, "%s/%02x/%016llx%08x%s", c->job->directory,
                   (unsigned)(digest % BENCH_DIRECTORIES), (unsigned long long)digest, (unsigned)key, suffix);
}

static uint32_t bench_value_count(const struct bench_job *job)
{
    uint64_t fit = BENCH_VALUES_BYTES_MAX / (job->value_bytes ? job->value_bytes : 1);

    return fit < 1 ? 1 : fit > BENCH_VALUES_MAX ? BENCH_VALUES_MAX : (uint32_t)fit;
}

/* Records as a service would log them: the same words over and over, numbers that differ. */
static void bench_fill_text(uint8_t *out, uint64_t bytes, uint64_t seed)
{
    uint64_t used = 0, line = 0;
    char text[160];

    while (used < bytes) {
        uint64_t r = bench_mix(seed + ++line);
        int n = snprintf(text, sizeof(text),
                         "{\"id\": %llu, \"user\": \"u%u\", \"state\": \"%s\", \"size\": %u},\n",
                         (unsigned long long)(r >> 20), (unsigned)(r & 0x3ff),
                         r & 0x400 ? "ready" : "waiting", (unsigned)(r >> 11 & 0xffff));
        uint64_t part = (uint64_t)n < bytes - used ? (uint64_t)n : bytes - used;

        memcpy(out + used, text, part);
        used += part;
    }
}

static void bench_fill_random(uint8_t *out, uint64_t bytes, uint64_t seed)
{
    for (uint64_t used = 0, i = 0; used < bytes; used += 8, i++) {
        uint64_t r = bench_mix(seed + i * 0x9e3779b97f4a7c15ull);

        memcpy(out + used, &r, bytes - used < 8 ? bytes - used : 8);
    }
}

const uint8_t *bench_value(struct bench_client *c, uint64_t key)
{
    uint8_t *value = c->values + key % bench_value_count(c->job) * c->job->value_bytes;

    if (c->job->value_bytes >= BENCH_STAMP_BYTES) {
        memcpy(value, &key, 8);
        memcpy(value + 8, &c->job->seed, 4);
    }
    return value;
}

bool bench_value_is(const struct bench_client *c, const uint8_t *value, uint64_t key)
{
    return c->job->value_bytes < BENCH_STAMP_BYTES ||
           (memcmp(value, &key, 8) == 0 && memcmp(value + 8, &c->job->seed, 4) == 0);
}

/* ---- one client ---- */

static int bench_client_prepare(struct bench_client *c, const struct bench_workload *w)
{
    uint32_t count = w->one_value ? 0 : bench_value_count(c->job);
    uint64_t bytes = c->job->value_bytes;

    c->path = malloc(BENCH_PATH_BYTES);
    c->other = malloc(BENCH_PATH_BYTES);
    c->values = malloc(count * bytes + 1);
    c->buffer = malloc((w->one_value ? BENCH_CHUNK_BYTES : bytes) + 1);
    if (!c->path || !c->other || !c->values || !c->buffer)
        return bench_fail(c, "memory for", c->job->workload, ENOMEM);
    for (uint32_t i = 0; i < count; i++) {
        if (c->job->compressible)
            bench_fill_text(c->values + i * bytes, bytes, c->job->seed + i);
        else
            bench_fill_random(c->values + i * bytes, bytes, c->job->seed + i);
    }
    if (w->one_value && c->job->compressible)
        bench_fill_text(c->buffer, BENCH_CHUNK_BYTES, c->job->seed);
    else
        bench_fill_random(c->buffer, w->one_value ? BENCH_CHUNK_BYTES : bytes, c->job->seed);
    return w->open ? w->open(c) : 0;
}

static int bench_client_loop(struct bench_client *c, const struct bench_workload *w, uint64_t *samples,
                             uint64_t room, struct bench_outcome *o)
{
    uint64_t end_ns = 0, now, limit = w->whole ? 1 : c->count;
    int r;

    o->started_ns = bench_now_ns();
    if (c->job->seconds > 0)
        end_ns = o->started_ns + (uint64_t)(c->job->seconds * (double)NS_PER_S);
    for (uint64_t i = 0; end_ns || i < limit; i++) {
        if (w->before)
            w->before(c, i);
        now = bench_now_ns();
        if (end_ns && now >= end_ns)
            break;
        r = w->each(c, i);
        if (r < 0)
            return r;
        if (i < room)
            samples[o->samples++] = bench_now_ns() - now;
        o->operations = w->whole ? c->count : i + 1;
    }
    o->ended_ns = bench_now_ns();
    return 0;
}

static void __attribute__((noreturn))
bench_client_main(const struct bench_job *job, const struct bench_workload *w, uint32_t number,
                  uint64_t *samples, uint64_t room)
{
    struct bench_outcome *o = &shared->outcome[number];
    uint64_t share = job->count / job->clients;
    struct bench_client c = {.job = job, .first = number * share, .count = share, .fd = -1};
    int r;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (number == job->clients - 1)
        c.count = job->count - c.first;
    r = bench_client_prepare(&c, w);
    (void)pthread_barrier_wait(&shared->start);
    if (r == 0)
        r = bench_client_loop(&c, w, samples, room, o);
    if (w->close)
        w->close(&c);
    o->error = r;
    _exit(r < 0 ? 1 : 0);
}

/* ---- all of them ---- */

static int bench_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void bench_percentiles(uint64_t *samples, uint64_t count, bool whole, struct bench_result *out)
{
    double sum = 0;

    if (count == 0)
        return;
    for (uint64_t i = 0; i < count; i++)
        sum += (double)samples[i];
    qsort(samples, count, sizeof(*samples), bench_compare);
    out->mean_ns = sum / (double)(whole ? out->operations : count);
    out->min_ns = samples[0];
    out->p50_ns = samples[count / 2];
    out->p90_ns = samples[count * 9 / 10];
    out->p99_ns = samples[count * 99 / 100];
    out->p999_ns = samples[count * 999 / 1000];
    out->max_ns = samples[count - 1];
}

static int bench_gather(const struct bench_job *job, const struct bench_workload *w, uint64_t *samples,
                        uint64_t room, struct bench_result *out)
{
    uint64_t kept = 0, start = UINT64_MAX, end = 0;

    for (uint32_t i = 0; i < job->clients; i++) {
        const struct bench_outcome *o = &shared->outcome[i];
        double seconds = (double)(o->ended_ns - o->started_ns) / NS_PER_S, rate;

        if (o->error < 0)
            return o->error;
        memmove(samples + kept, samples + i * room, o->samples * sizeof(*samples));
        kept += o->samples;
        out->operations += o->operations;
        start = o->started_ns < start ? o->started_ns : start;
        end = o->ended_ns > end ? o->ended_ns : end;
        rate = seconds > 0 ? (double)o->operations / seconds : 0;
        if (i == 0 || rate > out->fastest_client_ops)
            out->fastest_client_ops = rate;
        if (i == 0 || rate < out->slowest_client_ops)
            out->slowest_client_ops = rate;
    }
    out->wall_s = (double)(end - start) / NS_PER_S;
    out->bytes = out->operations * (w->operation_bytes ? w->operation_bytes : job->value_bytes);
    bench_percentiles(samples, kept, w->whole, out);
    return 0;
}

static double bench_seconds(struct timeval tv)
{
    return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

static int bench_directories(const struct bench_job *job)
{
    char path[BENCH_PATH_BYTES];

    if (mkdir(job->directory, 0755) < 0 && errno != EEXIST)
        return -errno;
    for (unsigned i = 0; i < BENCH_DIRECTORIES; i++) {
        (void)snprintf(path, sizeof(path), "%s/%02x", job->directory, i);
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

static int bench_shared_memory(const struct bench_job *job, uint64_t samples_bytes, uint64_t **ret_samples)
{
    pthread_barrierattr_t attr;
    void *p = mmap(NULL, sizeof(*shared) + samples_bytes, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED)
        return -errno;
    shared = p;
    (void)pthread_barrierattr_init(&attr);
    (void)pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    (void)pthread_barrier_init(&shared->start, &attr, job->clients);
    (void)pthread_barrierattr_destroy(&attr);
    *ret_samples = (uint64_t *)(void *)(shared + 1);
    return 0;
}

static void bench_kill(const pid_t *pids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (pids[i])
            (void)kill(pids[i], SIGKILL); /* not reaped, so it is no stranger */
}

/* Those that have ended: how many, and -ECHILD in *r when one of them did not end by itself. */
static uint32_t bench_reap(pid_t *pids, uint32_t started, int *r)
{
    uint32_t reaped = 0;
    int status;

    for (uint32_t i = 0; i < started; i++)
        if (pids[i] && waitpid(pids[i], &status, WNOHANG) == pids[i]) {
            pids[i] = 0;
            reaped++;
            if (!WIFEXITED(status) && *r == 0)
                *r = -ECHILD;
        }
    return reaped;
}

/* A client that died leaves the others waiting at the barrier: they go with it. So do all when a signal tells this
 * process to end; it is blocked meanwhile, so it comes here and is not lost, however early it came. */
static int bench_wait(pid_t *pids, uint32_t started, const sigset_t *signals)
{
    uint32_t left = started;
    int r = 0, caught;

    for (;;) {
        left -= bench_reap(pids, started, &r);
        if (r < 0)
            bench_kill(pids, started);
        if (left == 0)
            return r;
        caught = sigwaitinfo(signals, NULL);
        if (caught > 0 && caught != SIGCHLD)
            r = -EINTR;
    }
}

static int bench_start_and_wait(const struct bench_job *job, const struct bench_workload *w,
                                uint64_t *samples, uint64_t room)
{
    pid_t pids[BENCH_CLIENTS_MAX];
    sigset_t signals, before;
    uint32_t started = 0;
    int r = 0, waited;

    bench_signals(&signals);
    (void)sigaddset(&signals, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &signals, &before);
    for (; started < job->clients; started++) {
        pids[started] = fork();
        if (pids[started] == 0)
            bench_client_main(job, w, started, samples + started * room, room);
        if (pids[started] < 0) {
            r = -errno;
            bench_kill(pids, started);
            break;
        }
    }
    waited = bench_wait(pids, started, &signals);
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return r < 0 ? r : waited;
}

void bench_signals(sigset_t *out)
{
    (void)sigemptyset(out);
    (void)sigaddset(out, SIGINT);
    (void)sigaddset(out, SIGTERM);
    (void)sigaddset(out, SIGHUP);
}

int bench_run(const struct bench_job *job, const struct bench_workload *w, struct bench_result *ret_result,
              char err[BENCH_ERROR_BYTES])
{
    uint64_t room =
        job->seconds > 0 ? BENCH_SAMPLES_MAX : job->count / job->clients + job->clients; /* per client */
    struct rusage before, after;
    struct bench_result result = {0};
    uint64_t *samples = NULL, samples_bytes;
    int r;

    room = room < BENCH_SAMPLES_MAX / job->clients ? room : BENCH_SAMPLES_MAX / job->clients;
    samples_bytes = room * job->clients * sizeof(*samples);
    r = w->makes_directories ? bench_directories(job) : 0;
    if (r == 0)
        r = bench_shared_memory(job, samples_bytes, &samples);
    if (r < 0) {
        (void)snprintf(err, BENCH_ERROR_BYTES, "%s: %s", job->directory, strerror(-r));
        return r;
    }
    (void)getrusage(RUSAGE_CHILDREN, &before);
    r = bench_start_and_wait(job, w, samples, room);
    (void)getrusage(RUSAGE_CHILDREN, &after);
    if (r == 0)
        r = bench_gather(job, w, samples, room, &result);
    result.user_s = bench_seconds(after.ru_utime) - bench_seconds(before.ru_utime);
    result.system_s = bench_seconds(after.ru_stime) - bench_seconds(before.ru_stime);
    (void)snprintf(err, BENCH_ERROR_BYTES, "%s",
                   r == 0           ? ""
                   : shared->err[0] ? shared->err
                   : r == -EINTR    ? "interrupted"
                                    : "a client died");
    (void)munmap(shared, sizeof(*shared) + samples_bytes);
    shared = NULL;
    if (r == 0)
        *ret_result = result;
    return r;
}

const struct bench_workload *bench_find(const char *name)
{
    for (const struct bench_workload *w = bench_key_workloads; w->name; w++)
        if (strcmp(w->name, name) == 0)
            return w;
    for (const struct bench_workload *w = bench_value_workloads; w->name; w++)
        if (strcmp(w->name, name) == 0)
            return w;
    return NULL;
}

void bench_print_json(FILE *f, const struct bench_job *job, const struct bench_result *r)
{
    (void)fprintf(
        f,
        "{\"workload\": \"%s\", \"count\": %llu, \"value_bytes\": %llu, \"clients\": %u, \"compressible\": %s, "
        "\"operations\": %llu, \"bytes\": %llu, \"wall_s\": %.6f, \"user_s\": %.6f, \"system_s\": %.6f, "
        "\"fastest_client_ops\": %.1f, \"slowest_client_ops\": %.1f, \"mean_ns\": %.0f, \"min_ns\": %llu, "
        "\"p50_ns\": %llu, \"p90_ns\": %llu, \"p99_ns\": %llu, \"p999_ns\": %llu, \"max_ns\": %llu}",
        job->workload, (unsigned long long)job->count, (unsigned long long)job->value_bytes, job->clients,
        job->compressible ? "true" : "false", (unsigned long long)r->operations, (unsigned long long)r->bytes,
        r->wall_s, r->user_s, r->system_s, r->fastest_client_ops, r->slowest_client_ops, r->mean_ns,
        (unsigned long long)r->min_ns, (unsigned long long)r->p50_ns, (unsigned long long)r->p90_ns,
        (unsigned long long)r->p99_ns, (unsigned long long)r->p999_ns, (unsigned long long)r->max_ns);
}
