/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * faults: the N-th call to the disk fails, or the N-th allocation, for every N a workload reaches.
 *
 *     faults [--store=DIR] [--workload=NAME] [--kind=NAME] [--mode=once|on|burst] [--end=close|kill|halt]
 *            [--n=N | --step=K [--offset=I]] [--seed=S] [--failures=COUNT] [--list] [--trace]
 *
 * Each run is a process of its own: a new store, the workload with the fault, the disk made well, everything compared
 * with the model; then an orderly stop or a kill (halt: a kill at the first call that failed), the store opened again,
 * compared again, used, and opened a third time. What must hold whatever failed: every call ends with success or a
 * proper errno; what was acknowledged is there, before and after; nothing of another version ever; the process lives;
 * no lock stays held, no memory, no descriptor, no quota; a cache that went read-only said so exactly once, and one
 * whose disk was only full, or out of descriptors, goes on by itself.
 *
 * A failure prints what was done and the command that does it again.
 */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault_world.h"
#include "faultheap.h"

#define BURST 8u
#define LINES_MAX 40u    /* of log per run: more is a flood */
#define WARNINGS_MAX 12u

/* ---- what fails ---- */

#define SPACE_CALLS                                                                                              \
    (FAULTIO_BIT(FAULTIO_CREATE) | FAULTIO_BIT(FAULTIO_WRITE) | FAULTIO_BIT(FAULTIO_ALLOCATE) | \
     FAULTIO_BIT(FAULTIO_RENAME) | FAULTIO_BIT(FAULTIO_MKDIR))
#define CHANGE_CALLS                                                                                                 \
    (SPACE_CALLS | FAULTIO_BIT(FAULTIO_TRUNCATE) | FAULTIO_BIT(FAULTIO_PUNCH) | FAULTIO_BIT(FAULTIO_SYNC) | \
     FAULTIO_BIT(FAULTIO_UNLINK))

struct kind {
    const char *name;
    unsigned calls;
    int error;
    bool heap;
    bool transparent; /* no caller may notice */
    bool heals;       /* the cache goes on by itself */
    bool makes_room;  /* keys may leave for room on the host's disk */
    bool reads;       /* reads of values fail */
};

static const struct kind kinds[] = {
    {.name = "eio", .calls = FAULTIO_ALL, .error = -EIO, .reads = true},
    {.name = "eio-read", .calls = FAULTIO_BIT(FAULTIO_READ), .error = -EIO, .reads = true, .heals = true},
    {.name = "eio-sync", .calls = FAULTIO_BIT(FAULTIO_SYNC), .error = -EIO},
    {.name = "enospc", .calls = SPACE_CALLS, .error = -ENOSPC, .heals = true, .makes_room = true},
    {.name = "enospc-sync", .calls = FAULTIO_BIT(FAULTIO_SYNC), .error = -ENOSPC, .makes_room = true},
    {.name = "edquot", .calls = SPACE_CALLS, .error = -EDQUOT, .heals = true, .makes_room = true},
    {.name = "erofs", .calls = CHANGE_CALLS, .error = -EROFS},
    {.name = "emfile",
     .calls = FAULTIO_BIT(FAULTIO_OPEN) | FAULTIO_BIT(FAULTIO_CREATE) | FAULTIO_BIT(FAULTIO_LIST),
     .error = -EMFILE,
     .heals = true},
    {.name = "enfile",
     .calls = FAULTIO_BIT(FAULTIO_OPEN) | FAULTIO_BIT(FAULTIO_CREATE) | FAULTIO_BIT(FAULTIO_LIST),
     .error = -ENFILE,
     .heals = true},
    {.name = "short",
     .calls = FAULTIO_BIT(FAULTIO_READ) | FAULTIO_BIT(FAULTIO_WRITE),
     .transparent = true,
     .heals = true},
    {.name = "eintr",
     .calls = FAULTIO_ALL & ~FAULTIO_BIT(FAULTIO_LIST),
     .error = -EINTR,
     .transparent = true,
     .heals = true},
    {.name = "heap", .heap = true},
};

enum mode { MODE_ONCE, MODE_ON, MODE_BURST, MODE_COUNT };
enum end { END_CLOSE, END_KILL, END_HALT, END_COUNT };
static const char *const mode_names[] = {"once", "on", "burst"};
static const char *const end_names[] = {"close", "kill", "halt"};

/* ---- workloads ---- */

static int step_checkpoint(struct larder *l)
{
    return work_checkpoint(l, false);
}

static int step_reclaim(struct larder *l)
{
    uint64_t freed;

    return store_reclaim(l->store, 64, &freed);
}

static struct key *numbered(struct world *w, const char *prefix, unsigned number)
{
    char path[32];

    (void)snprintf(path, sizeof(path), "%s%u", prefix, number);
    return world_key(w, path);
}

/* Names: made, replaced, moved, linked, removed, with attributes and deadlines. */
static void work_names(struct world *w)
{
    struct key *pinned;

    do_mkdir(w, "d");
    do_mkdir(w, "e");
    for (unsigned i = 0; i < 6; i++)
        do_put(w, numbered(w, "d/k", i), world_version(w, 100 + 900 * i, i & 1), i == 2);
    pinned = numbered(w, "d/k", 0);
    do_set(w, pinned, "user.larder.pin", "on");
    do_symlink(w, "s", "d/k1");
    do_rename(w, numbered(w, "d/k", 1), numbered(w, "e/k", 1));
    do_rename(w, numbered(w, "d/k", 2), numbered(w, "d/k", 3));
    do_put(w, pinned, world_version(w, 4000, false), false);
    do_set(w, numbered(w, "d/k", 4), "user.larder.ttl", "10m");
    do_set(w, numbered(w, "d/k", 5), "user.note", "some words of no meaning");
    do_work(w, "checkpoint", step_checkpoint);
    do_unlink(w, numbered(w, "d/k", 3));
    do_publish(w, numbered(w, "e/p", 1), world_version(w, 7000, true));
    do_publish(w, numbered(w, "e/p", 1), world_version(w, 300, true));
    do_expire(w);
    do_sync(w);
    for (unsigned i = 0; i < 6; i++)
        do_get(w, numbered(w, "d/k", i));
    do_work(w, "reclaim", step_reclaim);
    do_put(w, numbered(w, "e/k", 1), world_version(w, 2000, false), true);
    do_work(w, "checkpoint", step_checkpoint);
}

/* Values of all sizes, in place changes, truncation, fsync. */
static void work_sizes(struct world *w)
{
    static const uint32_t sizes[] = {0, 1, 5000, 70000, 300000, 700000};

    for (unsigned i = 0; i < ARRAY_COUNT(sizes); i++) {
        do_put(w, numbered(w, "raw", i), world_version(w, sizes[i], false), false);
        do_put(w, numbered(w, "packed", i), world_version(w, sizes[i], true), i == 4);
    }
    do_overwrite(w, numbered(w, "raw", 4), 0, false);
    do_overwrite(w, numbered(w, "raw", 4), 0, true);
    do_overwrite(w, numbered(w, "packed", 4), 0, false);
    do_overwrite(w, numbered(w, "raw", 2), 0, true);
    do_truncate(w, numbered(w, "raw", 5), 123456);
    do_truncate(w, numbered(w, "packed", 5), 1000);
    do_put(w, numbered(w, "raw", 3), world_version(w, 400000, false), true);
    do_put(w, numbered(w, "packed", 3), world_version(w, 100, false), false);
    do_rename(w, numbered(w, "packed", 4), numbered(w, "raw", 2));
    do_unlink(w, numbered(w, "raw", 4));
    do_work(w, "checkpoint", step_checkpoint);
    do_work(w, "reclaim", step_reclaim);
    for (unsigned i = 0; i < ARRAY_COUNT(sizes); i++) {
        do_get(w, numbered(w, "raw", i));
        do_get(w, numbered(w, "packed", i));
    }
    do_sync(w);
}

/* At the quota: eviction, holes, cleaning, checkpoints, and keys that must not leave. */
static void work_evict(struct world *w)
{
    for (unsigned i = 0; i < 4; i++) {
        do_put(w, numbered(w, "pin", i), world_version(w, 3000, false), false);
        do_set(w, numbered(w, "pin", i), "user.larder.pin", "on");
    }
    for (unsigned i = 0; i < 120; i++) {
        uint32_t bytes = (uint32_t)(i % 10 == 9 ? 300000 : 500 + world_random(w, 40000));
        do_put(w, numbered(w, "k", (unsigned)world_random(w, 30)), world_version(w, bytes, i % 5 == 0), i % 16 == 0);
        if (i % 8 == 3)
            do_unlink(w, numbered(w, "k", (unsigned)world_random(w, 30)));
        if (i % 30 == 20)
            do_work(w, "clean", work_clean_segment);
        if (i % 40 == 30)
            do_work(w, "checkpoint", step_checkpoint);
        if (i % 12 == 7)
            do_work(w, "reclaim", step_reclaim);
    }
    for (unsigned i = 0; i < 4; i++)
        do_get(w, numbered(w, "pin", i));
}

/* Segments of which little is left: cleaning moves it. */
static void work_clean(struct world *w)
{
    for (unsigned i = 0; i < 240; i++)
        do_put(w, numbered(w, "k", i % 120), world_version(w, 1500 + (uint32_t)world_random(w, 2500), false), i == 200);
    for (unsigned i = 0; i < 120; i++)
        if (world_random(w, 3) > 0)
            do_unlink(w, numbered(w, "k", i));
    do_work(w, "reclaim", step_reclaim);
    for (unsigned i = 0; i < 4; i++) {
        do_work(w, "clean", work_clean_segment);
        do_put(w, numbered(w, "k", i), world_version(w, 20000, false), false);
    }
    do_work(w, "checkpoint", step_checkpoint);
    do_work(w, "clean", work_clean_segment);
    do_sync(w);
}

/* A store that is there: opened, used a little, closed, opened, with the fault anywhere in that. */
static void work_reopen(struct world *w)
{
    struct errtext err;

    for (unsigned round = 0; round < 2 && !w->halted; round++) {
        if (!w->l && world_open(w, &err) < 0) {
            if (!world_faults_fired(w) || w->transparent)
                world_fail(w, "the store could not be opened, and nothing had failed: %s", err.text);
            w->halted |= w->stop_at_failure;
            continue;
        }
        do_get(w, numbered(w, "raw", 4));
        do_put(w, numbered(w, "d/k", round), world_version(w, 900, false), round == 1);
        do_overwrite(w, numbered(w, "raw", 4), 0, round == 0);
        do_unlink(w, numbered(w, "packed", 1 + round));
        do_work(w, "clean", work_clean_segment);
        if (!w->halted && world_close(w) < 0 && !world_faults_fired(w))
            world_fail(w, "closing failed, and nothing else");
    }
}

static void before_grow(struct world *w)
{
    do_put(w, world_key(w, "database"), world_version(w, 300000, false), true);
    do_put(w, world_key(w, "other"), world_version(w, 250000, false), false);
}

/* What a killed daemon was writing: a file that no value names. */
static void leave_orphan(struct world *w)
{
    static const char bytes[200000];
    char path[192];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/big/00/00000000000000fe", w->dir);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, bytes, sizeof(bytes)) != (ssize_t)sizeof(bytes))
        abort();
    (void)close(fd);
}

/* Files changed in place, found at mount, that grow, shrink and are closed for each change. */
static void work_grow(struct world *w)
{
    struct key *database = world_key(w, "database"), *other = world_key(w, "other");
    struct errtext err;

    leave_orphan(w);
    if (world_open(w, &err) < 0) {
        if (!world_faults_fired(w) || w->transparent)
            world_fail(w, "the store could not be opened, and nothing had failed: %s", err.text);
        return;
    }
    do_overwrite(w, database, 0, false);
    do_overwrite(w, database, 150000, false);
    do_overwrite(w, other, 1, true);
    do_overwrite(w, database, 70000, true);
    do_truncate(w, other, 100001);
    do_overwrite(w, database, 1000, false);
    do_work(w, "checkpoint", step_checkpoint);
    do_get(w, database);
    do_get(w, other);
}

#define THREADS 3u

static void *thread_main(void *arg)
{
    struct world *w = arg;
    unsigned number = w->version_count / VERSIONS_PER_PART;

    for (unsigned i = 0; i < 60; i++) {
        char path[32];
        (void)snprintf(path, sizeof(path), "t%uk%u", number, (unsigned)world_random(w, 8));
        struct key *k = world_key(w, path);
        uint32_t bytes = (uint32_t)(i % 12 == 11 ? 400000 : 200 + world_random(w, 30000));
        do_put(w, k, world_version(w, bytes, i % 3 == 0), i % 10 == 0);
        if (i % 4 == 1)
            do_get(w, world_key(w, path));
        if (i % 9 == 5)
            do_unlink(w, k);
    }
    return NULL;
}

/* Clients at once, with the threads that evict, expire, clean and write checkpoints behind them. */
static void work_threads(struct world *w)
{
    struct world *parts[THREADS];
    pthread_t threads[THREADS];

    if (larder_start(w->l) < 0)
        return;
    for (unsigned i = 0; i < THREADS; i++) {
        parts[i] = calloc(1, sizeof(*parts[i]));
        if (!parts[i])
            abort();
        world_split(parts[i], w, i + 1);
        if (pthread_create(&threads[i], NULL, thread_main, parts[i]) != 0)
            abort();
    }
    do_work(w, "checkpoint", step_checkpoint);
    do_work(w, "clean", work_clean_segment);
    for (unsigned i = 0; i < THREADS; i++) {
        if (pthread_join(threads[i], NULL) != 0)
            abort();
        world_join(w, parts[i]);
        free(parts[i]);
    }
}

struct workload {
    const char *name;
    void (*run)(struct world *w);
    void (*before)(struct world *w); /* on a disk that is well */
    uint64_t quota_bytes;
    bool from_open; /* the fault may be in opening, too */
    bool threads;   /* the order of calls is not the same twice */
};

static void before_reopen(struct world *w)
{
    work_names(w);
    work_sizes(w);
}

static const struct workload workloads[] = {
    {.name = "names", .run = work_names, .quota_bytes = 64 * MIB},
    {.name = "sizes", .run = work_sizes, .quota_bytes = 64 * MIB},
    {.name = "evict", .run = work_evict, .quota_bytes = 2 * MIB},
    {.name = "clean", .run = work_clean, .quota_bytes = 8 * MIB},
    {.name = "reopen", .run = work_reopen, .before = before_reopen, .quota_bytes = 64 * MIB, .from_open = true},
    {.name = "grow", .run = work_grow, .before = before_grow, .quota_bytes = 64 * MIB, .from_open = true},
    {.name = "threads", .run = work_threads, .quota_bytes = 4 * MIB, .threads = true},
};

/* ---- one run ---- */

struct run {
    const struct workload *workload;
    const struct kind *kind;
    enum mode mode;
    enum end end;
    uint64_t n, seed; /* n 0: nothing fails, and what could is counted */
    bool trace;     /* say what is done, also when all is well */
    char dir[96];
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); /* not there: as wanted */
}

static unsigned open_fds(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");

    if (!dir)
        abort();
    while (readdir(dir))
        count++;
    (void)closedir(dir);
    return count;
}

static void arm(struct world *w, const struct run *run)
{
    uint64_t last = run->mode == MODE_ONCE ? run->n : run->mode == MODE_BURST ? run->n + BURST - 1 : UINT64_MAX;

    if (run->kind->heap)
        faultheap_plan(run->n, last);
    else
        faultio_plan(w->fio, &(struct faultio_plan){.calls = run->kind->calls,
                                                      .first = run->n,
                                                      .last = run->n ? last : 0,
                                                      .error = run->kind->error});
}

/* The disk is well again. How much had failed stays known. */
static void disarm(struct world *w)
{
    w->fio->plan.first = 0;
    w->fio->plan.calls = 0;
}

/* Said once, or not at all; and read-only only when something could not be undone. */
static void check_told(struct world *w, const struct run *run)
{
    bool failed = w->l && atomic_load(&w->l->failed);

    if (w->l && w->errors != failed)
        world_fail(w, "%u lines say error, the cache is %s", w->errors, failed ? "read-only" : "writable");
    if (failed && run->kind->heals)
        world_fail(w, "read-only for good, though it should heal: %s", w->first_error);
    if (failed && run->n == 0)
        world_fail(w, "read-only, and nothing failed: %s", w->first_error);
    if (w->warnings > WARNINGS_MAX || w->lines > LINES_MAX)
        world_fail(w, "%u warnings, %u lines of log", w->warnings, w->lines);
}

static void use_it(struct world *w)
{
    struct key *k = world_key(w, "afterwards");

    do_put(w, k, world_version(w, 5000, false), true);
    do_put(w, world_key(w, "afterwards too"), world_version(w, 300000, false), false);
    do_get(w, k);
}

/* On a disk that is well: nothing may fail any more, everything must be there. */
static void open_again(struct world *w, bool use)
{
    struct errtext err;
    int r;

    w->halted = w->stop_at_failure = false;
    w->transparent = true; /* nothing fails now */
    r = world_open(w, &err);
    if (r < 0)
        world_fail(w, "the store does not open again: %s", err.text);
    world_check(w, true);
    world_check_numbers(w);
    if (use)
        use_it(w);
    world_check(w, true);
    if (use)
        world_check_numbers(w);
    r = world_close(w);
    if (r < 0)
        world_fail(w, "closing: %s", strerror(-r));
}

static void check_live(struct world *w, const struct run *run)
{
    if (!w->l)
        return;
    if (run->end == END_HALT) /* killed in the act */
        return;
    world_check(w, false);
    check_told(w, run);
    if (atomic_load(&w->l->failed))
        return;
    use_it(w);
    world_check_numbers(w);
}

static void stop(struct world *w, const struct run *run, unsigned fds_before)
{
    bool failed;
    int r;

    if (!w->l)
        return;
    if (run->end != END_CLOSE) {
        world_kill(w);
        return;
    }
    failed = atomic_load(&w->l->failed);
    r = world_close(w);
    if (r < 0 && !failed)
        world_fail(w, "closing: %s", strerror(-r));
    if (open_fds() != fds_before)
        world_fail(w, "%u descriptors are open, %u were", open_fds(), fds_before);
}

static void prepare(struct world *w, const struct run *run)
{
    struct errtext err;

    w->opts.quota_bytes = run->workload->quota_bytes;
    w->real_clock = run->workload->threads;
    w->evicts = run->workload->quota_bytes < 16 * MIB;
    if (run->workload->before || !run->workload->from_open) {
        if (world_open(w, &err) < 0)
            world_fail(w, "%s", err.text);
    }
    if (run->workload->before) {
        run->workload->before(w);
        if (world_close(w) < 0)
            world_fail(w, "closing the store before");
    }
    w->trace_bytes = 0;
}

static void run_in_child(const struct run *run, uint64_t *ret_counted)
{
    struct world *w = calloc(1, sizeof(*w));
    unsigned fds;
    int64_t blocks;

    if (!w || mkdir(run->dir, 0700) < 0)
        abort();
    world_init(w, run->dir, run->seed);
    fds = open_fds();
    blocks = faultheap_live();
    prepare(w, run);
    w->evicts |= run->kind->makes_room;
    for (unsigned i = 0; i < w->key_count; i++)
        w->keys[i].may_miss |= w->evicts && !w->keys[i].pinned;
    w->transparent = run->kind->transparent;
    w->wants_room = run->kind->makes_room && run->kind->heals;
    w->reads_fail = run->kind->reads;
    w->stop_at_failure = run->end == END_HALT;
    arm(w, run);
    run->workload->run(w);
    if (w->l)
        work_stop(w->l);
    if (run->trace)
        (void)fprintf(stderr, "%.*s", (int)w->trace_bytes, w->trace);
    *ret_counted = run->kind->heap ? faultheap_counted() : atomic_load(&w->fio->counted);
    disarm(w);
    if (run->kind->heap)
        faultheap_plan(UINT64_MAX, UINT64_MAX); /* no more of it; world_faults_fired stays true below */
    if (run->kind->heap)
        (void)atomic_fetch_add(&w->fio->failed, run->n > 0 && run->n <= *ret_counted);
    check_live(w, run);
    stop(w, run, fds);
    if (run->end == END_CLOSE && faultheap_live() != blocks)
        world_fail(w, "%lld blocks of memory were not freed", (long long)(faultheap_live() - blocks));
    open_again(w, true);
    open_again(w, false);
    world_fini(w);
    free(w);
}

/* 0, or the status of the child that died of it. */
static int run_one(const struct run *run, uint64_t *ret_counted)
{
    static uint64_t *counted;
    int status;
    pid_t pid;

    if (!counted)
        counted = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counted == MAP_FAILED)
        abort();
    remove_tree(run->dir);
    pid = fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        (void)alarm(300); /* a run that hangs is a failure, too; on a busy machine one may take a minute */
        run_in_child(run, counted);
        if (run->end != END_CLOSE)
            _exit(0); /* a killed daemon leaves its memory behind, in part reachable from mapped slabs alone */
        exit(0);      /* leaks are looked for */
    }
    if (waitpid(pid, &status, 0) != pid)
        abort();
    *ret_counted = *counted;
    if (status == 0)
        remove_tree(run->dir);
    return status;
}

/* ---- the sweep ---- */

struct sweep {
    const char *workload, *kind, *mode, *end, *dir, *self;
    uint64_t n, step, offset, seed, runs, failures, failures_max;
    bool list, trace;
};

static void set_dir(const struct sweep *s, struct run *run)
{
    (void)snprintf(run->dir, sizeof(run->dir), "%s/larder-faults-%d", s->dir, (int)getpid());
}

static void report(const struct sweep *s, const struct run *run, int status)
{
    (void)printf("FAILED (%s %d) again: %s --workload=%s --kind=%s --mode=%s --end=%s --seed=%llu --n=%llu\n",
                 WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                 s->self, run->workload->name, run->kind->name, mode_names[run->mode], end_names[run->end],
                 (unsigned long long)run->seed, (unsigned long long)run->n);
    (void)fflush(stdout);
}

/* How many calls of the kind the workload makes when none fails. */
static uint64_t count_calls(struct sweep *s, const struct workload *workload, const struct kind *kind)
{
    struct run run = {.workload = workload, .kind = kind, .seed = s->seed};
    uint64_t count = 0;
    int status;

    set_dir(s, &run);
    status = run_one(&run, &count);
    if (status == 0)
        return count;
    report(s, &run, status);
    s->failures++;
    return 0;
}

/* All N of one workload, kind, mode and end. */
static void sweep_one(struct sweep *s, struct run *run, uint64_t count)
{
    uint64_t ignored, tried = 0;
    int status;

    set_dir(s, run);
    s->offset += s->n ? 0 : s->step / 7; /* so that a slice takes other N of each */
    for (uint64_t n = s->n ? s->n : 1 + s->offset % s->step; n <= count && s->failures < s->failures_max; n += s->step) {
        run->n = n;
        status = run_one(run, &ignored);
        tried++;
        if (status != 0) {
            report(s, run, status);
            s->failures++;
        }
        if (s->n)
            break;
    }
    s->runs += tried;
    (void)printf("%s %s %s %s: N=1..%llu, %llu run\n", run->workload->name, run->kind->name, mode_names[run->mode],
                 end_names[run->end], (unsigned long long)count, (unsigned long long)tried);
    (void)fflush(stdout);
}

static bool wanted(const char *filter, const char *name)
{
    return !filter || strcmp(filter, name) == 0;
}

/* Short and interrupted calls that never end are no fault of the disk's, but of the test's. */
static bool makes_sense(const struct run *run)
{
    if (run->workload->threads && run->kind->heap) /* the heap is the test's as well */
        return false;
    if (run->kind->transparent)
        return run->mode != MODE_ON && run->end == END_CLOSE;
    return true;
}

static void sweep_kind(struct sweep *s, const struct workload *workload, const struct kind *kind)
{
    uint64_t count = s->list || (workload->threads && kind->heap) ? 0 : count_calls(s, workload, kind);

    for (unsigned m = 0; m < MODE_COUNT; m++)
        for (unsigned e = 0; e < END_COUNT; e++) {
            struct run run = {.workload = workload, .kind = kind, .mode = m, .end = e, .seed = s->seed, .trace = s->trace};
            if (!wanted(s->mode, mode_names[m]) || !wanted(s->end, end_names[e]) || !makes_sense(&run))
                continue;
            if (s->list)
                (void)printf("%s %s %s %s\n", workload->name, kind->name, mode_names[m], end_names[e]);
            else if (s->failures < s->failures_max)
                sweep_one(s, &run, count);
        }
}

static void sweep_all(struct sweep *s)
{
    for (size_t w = 0; w < ARRAY_COUNT(workloads); w++)
        for (size_t k = 0; k < ARRAY_COUNT(kinds); k++)
            if (wanted(s->workload, workloads[w].name) && wanted(s->kind, kinds[k].name) &&
                s->failures < s->failures_max)
                sweep_kind(s, &workloads[w], &kinds[k]);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"store", required_argument, NULL, 'd'}, {"workload", required_argument, NULL, 'w'},
        {"kind", required_argument, NULL, 'k'},  {"mode", required_argument, NULL, 'm'},
        {"end", required_argument, NULL, 'e'},   {"n", required_argument, NULL, 'n'},
        {"step", required_argument, NULL, 's'},  {"offset", required_argument, NULL, 'o'},
        {"seed", required_argument, NULL, 'r'},  {"failures", required_argument, NULL, 'f'},
        {"list", no_argument, NULL, 'l'},        {"trace", no_argument, NULL, 't'},
        {NULL, 0, NULL, 0}};
    struct sweep s = {.self = argv[0], .dir = "/dev/shm", .step = 1, .seed = 1, .failures_max = 1};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        const char **text = c == 'd' ? &s.dir : c == 'w' ? &s.workload : c == 'k' ? &s.kind : c == 'm' ? &s.mode : &s.end;
        uint64_t *number = c == 'n'   ? &s.n
                           : c == 's' ? &s.step
                           : c == 'o' ? &s.offset
                           : c == 'r' ? &s.seed
                                      : &s.failures_max;
        if (c == 'l')
            s.list = true;
        else if (c == 't')
            s.trace = true;
        else if (strchr("dwkme", c))
            *text = optarg;
        else if (strchr("nsorf", c))
            *number = strtoull(optarg, NULL, 0);
        else
            return 2;
    }
    if (s.step == 0)
        return 2;
    sweep_all(&s);
    if (!s.list)
        (void)printf("%llu runs, %llu failures\n", (unsigned long long)s.runs, (unsigned long long)s.failures);
    return s.failures > 0;
}
