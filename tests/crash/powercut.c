/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut: sweeps over simulated power cuts. `powercut --help` says how.
 *
 * A seed gives a history: a profile, options, operations on a recorded disk. The recording is cut before and after every
 * sync and at moments between; from each cut some disks are built (support/powercut.h), opened by the real recovery and
 * compared with the model (powercut_world.h). Of those some are used on, closed in order, checked by inspect and opened
 * again; and of some the recovery and what follows are recorded and cut in their turn.
 *
 * Histories run in processes of their own, a few in each, so that a crash of the core is a finding like any other: it is
 * run again up to the disk that failed, and what the cut kept and lost there is reduced to what is needed.
 */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "inspect_internal.h"
#include "powercut_world.h"

#define DEPTH_MAX 3u
#define SEEDS_PER_PROCESS 8u
#define HANG_SECONDS 120u
#define SHRINK_TRIES_MAX 4000u

struct step {
    uint32_t event, variant;
};

/* Which disk: cut at the event, choice by the variant; then the same within what followed on that disk. */
struct path {
    struct step steps[DEPTH_MAX];
    uint32_t depth;
};

/* What parent and child share. */
struct progress {
    uint64_t disks, histories, nested, events;
    uint64_t seed;
    struct path path;
    bool failed;
    char failure[512];
};

struct sweep {
    uint64_t seed;
    struct path path;   /* where we are */
    struct path target; /* depth > 0: only this disk */
    const char *sabotage;
    bool tell;          /* print the trace of the target, and reduce what it lost */
    struct progress *shared;
    uint64_t deadline_ns, disks_max;
};

static uint64_t hash(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15ull ^ (b + 0x632be59bd9b4e019ull);

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull; /* the finish of splitmix64, as in support/powercut.c */
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* always there */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static bool is_time(const struct sweep *s)
{
    return s->target.depth == 0 && (now_ns() >= s->deadline_ns || s->shared->disks >= s->disks_max);
}

/* ---- one disk ---- */

struct check {
    struct sweep *s;
    const struct world *of;
    uint64_t seed;  /* of this disk */
    uint32_t mark;  /* of the cut */
    uint32_t depth;
    const struct powercut_cut *cut;
    bool killed;    /* only the daemon died */
    bool stale;     /* old bytes may show where nothing was synced */
    bool verbose;   /* tell what was done after the recovery */
};

static void child_init(struct world *w, const struct check *c, struct memdisk *disk)
{
    const struct moment *next = &c->of->history[MIN(c->mark + 1, c->of->moments - 1)];
    static const uint64_t gaps_ms[] = {0, 1, 500, 3000, 20000};

    world_init(w, c->of->pool, &c->of->opts, hash(c->seed, 1));
    w->profile = c->of->profile;
    w->boot = (uint8_t)(c->of->boot + !c->killed);
    w->clock.wall_ns = next->wall_ns + gaps_ms[hash(c->seed, 2) % 5] * NS_PER_MS;
    w->disk = disk;
}

static void check_charges(struct world *w, const char *when)
{
    uint64_t used = memdisk_used_bytes(w->disk), charged = quota_charged(&w->l->quota);

    if (used > charged)
        fail(w, "%s: the disk holds %llu bytes, %llu are charged", when, (unsigned long long)used, (unsigned long long)charged);
}

static void finding_report(void *ctx, char severity, const char *where, const char *what) /* inspect_report */
{
    if (severity == 'E')
        fail(ctx, "check after an orderly stop: %s: %s", where, what);
}

static void inspect(struct world *w)
{
    struct inspect_source source = {.io = memdisk_io(w->disk), .dir_fd = memdisk_open_root(w->disk), .path = "disk",
                                    .boot_id = {1, 2, 3, w->boot}};
    struct inspect_summary summary;
    struct errtext err = {.text = ""};

    if (inspect_check_on(&source, finding_report, w, &summary, &err) < 0)
        fail(w, "check after an orderly stop: %s", err.text);
}

/* Goes on with a recovered store as if nothing had been, stops it in order, and finds all of it again. */
static void use_on(struct world *w, const struct check *c, uint32_t moment, struct finding *f)
{
    struct match m = {.cut_mark = NO_MARK};
    char why[TEXT_BYTES * 2] = "";
    struct finding again;

    world_rebase(w, c->of, moment, f);
    w->moments = 0;
    world_note_base(w);
    world_learn_ids(w);
    world_run(w, 3 + (uint32_t)(hash(c->seed, 3) % 10));
    if (w->ended || w->failure[0])
        return;
    world_expire_all(w); /* what is due was not read: whether a power cut took its bytes is not known, and check would tell */
    world_close(w);
    if (!w->failure[0])
        inspect(w);
    if (w->failure[0] || world_open(w) < 0)
        return;
    world_observe(w, &again);
    m.first = m.last = w->moments - 1;
    m.now_ns = world_now_ns(w);
    if (!w->failure[0] && finding_match(w, &again, &m, why) == NO_MARK)
        fail(w, "after use and an orderly stop: %s", why);
    finding_fini(&again);
}

static void print_history(const struct world *w)
{
    (void)printf("  after the recovery:\n");
    for (uint32_t i = 0; i < w->moments; i++)
        (void)printf("  %3u %s\n", i, w->history[i].text);
    (void)fflush(stdout);
}

static void sweep_cuts(struct sweep *s, struct world *w, uint64_t seed, uint32_t depth);

/* Records recovery and use of the same disk, and cuts that. */
static void cut_again(const struct check *c, struct memdisk *disk, uint32_t moment, const struct finding *found, char failure[512])
{
    bool goes_on = c->killed && c->cut;
    struct sweep *s = c->s;
    struct world *w = calloc(1, sizeof(*w));
    struct match m = {.cut_mark = NO_MARK};
    char why[TEXT_BYTES * 2] = "";
    struct finding f;

    child_init(w, c, NULL);
    w->pc = goes_on ? powercut_new_killed(c->cut, moment) : powercut_new(disk);
    if (s->sabotage)
        powercut_ignore_syncs(w->pc, s->sabotage);
    w->disk = powercut_disk(w->pc);
    if (goes_on) {
        world_continue(w, c->of, moment, c->mark, found);
        m.first = m.last = moment;
    } else {
        world_rebase(w, c->of, moment, found);
        world_note_base(w);
    }
    if (world_open(w) == 0) {
        world_observe(w, &f);
        m.now_ns = world_now_ns(w);
        if (!w->failure[0] && finding_match(w, &f, &m, why) == NO_MARK)
            fail(w, "recovered once more: %s", why);
        finding_fini(&f);
    }
    if (!w->failure[0])
        world_learn_ids(w);
    if (!w->failure[0])
        world_run(w, 2 + (uint32_t)(hash(c->seed, 4) % 12));
    if (w->failure[0] && c->verbose)
        print_history(w);
    memcpy(failure, w->failure, sizeof(w->failure));
    if (!failure[0]) {
        s->shared->nested++;
        sweep_cuts(s, w, c->seed, c->depth + 1);
    }
    world_fini(w);
    free(w);
}

/* Opens the disk and judges what is there. failure is empty when all is well. */
static void check_disk(const struct check *c, struct memdisk *disk, bool go_on, char failure[512])
{
    struct memdisk *same = go_on ? memdisk_clone(disk) : NULL;
    struct world *w = calloc(1, sizeof(*w));
    struct match m = {.first = c->of->history[c->mark].floor,
                      .last = MIN(c->mark + 1, c->of->moments - 1),
                      .cut_mark = c->mark,
                      .killed = c->killed,
                      .verbose = c->verbose,
                      .stale = c->stale};
    char why[TEXT_BYTES * 2] = "";
    struct finding f = {.node_count = 0};
    uint32_t moment = NO_MARK;

    child_init(w, c, disk);
    for (m.first = c->killed ? c->mark : m.first; c->killed && m.first > 0 && c->of->history[m.first].inner;)
        m.first--; /* what a call that had not returned let go may not be written yet */
    if (world_open(w) == 0) {
        m.now_ns = world_now_ns(w);
        check_charges(w, "after recovery");
        world_observe(w, &f);
        if (!w->failure[0])
            moment = finding_match(c->of, &f, &m, why);
        if (!w->failure[0] && moment == NO_MARK)
            fail(w, "%s (moments %u to %u)", why, m.first, m.last);
    }
    if (!w->failure[0] && (go_on || hash(c->seed, 5) % 8 == 0))
        use_on(w, c, moment, &f);
    memcpy(failure, w->failure, sizeof(w->failure));
    if (failure[0] && c->verbose)
        print_history(w);
    world_fini(w);
    free(w);
    if (!failure[0] && go_on)
        cut_again(c, same, moment, &f, failure);
    finding_fini(&f);
    memdisk_free(same);
}

/* ---- telling of a failure ---- */

static void print_line(void *ctx, const char *text) /* memdisk_print */
{
    (void)ctx;
    (void)printf("    %s\n", text);
}

static void print_trace(const struct world *of, uint32_t event)
{
    char text[256];
    uint32_t mark = 0;
    struct powercut_cut *cut = powercut_cut_new(of->pc);

    (void)printf("  operations and what they did to the disk:\n");
    for (uint32_t e = 0; e < event; e++) {
        powercut_cut_to(cut, e);
        for (; mark <= powercut_cut_mark(cut); mark++)
            (void)printf("  %3u %s%s\n", mark, of->history[mark].text, of->history[mark].floor == mark ? "  [durable]" : "");
        powercut_describe_event(of->pc, e, text, sizeof(text));
        (void)printf("      %5u %s\n", e, text);
    }
    (void)printf("  the power fails; under way or next: %s\n",
                 mark < of->moments ? of->history[mark].text : "(nothing)");
    powercut_cut_free(cut);
}

/* In a process of its own: does the disk of these choices fail? Crashes and hangs do. */
static bool fails_so(const struct check *c, const struct powercut_cut *cut, const struct powercut_choice *choices, bool go_on,
                     char failure[512])
{
    char *shared = mmap(NULL, 512, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid;
    int status = 0;
    bool failed;

    (void)fflush(stdout);
    pid = shared == MAP_FAILED ? -1 : fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        (void)alarm(HANG_SECONDS);
        if (!freopen("/dev/null", "w", stderr))
            _exit(2);
        check_disk(c, powercut_build(cut, choices), go_on, shared);
        _exit(shared[0] ? 1 : 0);
    }
    (void)waitpid(pid, &status, 0); /* ours */
    failed = status != 0;
    if (failed && !shared[0])
        (void)snprintf(shared, 512, "the core ended with signal %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    memcpy(failure, shared, 512);
    (void)munmap(shared, 512);
    return failed;
}

/* Keeps all that need not be lost for it to fail. */
static void reduce(const struct check *c, const struct powercut_cut *cut, struct powercut_choice *choices, bool go_on)
{
    uint32_t count = powercut_pending(cut), tries = 0;
    char failure[512];

    for (uint32_t chunk = MAX(count / 2, 1u);; chunk /= 2) {
        for (uint32_t at = 0; at < count && tries < SHRINK_TRIES_MAX; at += chunk) {
            struct powercut_choice *before = malloc(count * sizeof(*before));
            bool changed = false;
            memcpy(before, choices, count * sizeof(*before));
            for (uint32_t i = at; i < MIN(at + chunk, count); i++) {
                changed |= choices[i].fate != POWERCUT_KEPT || !choices[i].size_kept;
                choices[i].fate = POWERCUT_KEPT;
                choices[i].size_kept = true;
            }
            tries += changed;
            if (changed && !fails_so(c, cut, choices, go_on, failure))
                memcpy(choices, before, count * sizeof(*before));
            free(before);
        }
        if (chunk <= 1)
            break;
    }
}

static void tell(struct check *c, const struct powercut_cut *cut, uint32_t event, struct powercut_choice *choices)
{
    bool go_on = false;
    char failure[512] = "", text[256];
    struct memdisk *disk;

    if (!fails_so(c, cut, choices, false, failure)) {
        go_on = true;
        if (!fails_so(c, cut, choices, true, failure)) {
            (void)printf("  the disk does not fail any more\n");
            return;
        }
    }
    print_trace(c->of, event);
    reduce(c, cut, choices, go_on);
    c->verbose = true;
    (void)fails_so(c, cut, choices, go_on, failure);
    if (c->killed)
        (void)printf("  it was not the power: the daemon was killed\n");
    (void)printf("  what the cut did to what was pending (reduced to what is needed; all else was kept):\n");
    for (uint32_t i = 0; i < powercut_pending(cut); i++)
        if (choices[i].fate != POWERCUT_KEPT || !choices[i].size_kept) {
            powercut_describe(cut, i, &choices[i], text, sizeof(text));
            (void)printf("    %s\n", text);
        }
    (void)printf("  the disk then:\n");
    disk = powercut_build(cut, choices);
    memdisk_print(disk, print_line, NULL);
    memdisk_free(disk);
    (void)printf("  FAILURE: %s\n", failure);
}

/* ---- one history ---- */

static void report(struct sweep *s, const char *failure)
{
    s->shared->failed = true;
    s->shared->path = s->path;
    (void)snprintf(s->shared->failure, sizeof(s->shared->failure), "%s", failure); /* of the same size */
}

static void check_variant(struct sweep *s, struct world *w, const struct powercut_cut *cut, uint64_t seed, uint32_t depth,
                          struct step step, struct powercut_choice *choices)
{
    struct check c = {.s = s, .of = w, .seed = hash(hash(seed, step.event), step.variant),
                      .mark = powercut_cut_mark(cut), .depth = depth, .cut = cut};
    bool on_the_way = s->target.depth > depth + 1;
    bool go_on = on_the_way || (depth + 1 < DEPTH_MAX && hash(c.seed, 6) % (depth == 0 ? 48 : 24) == 0);
    char failure[512] = "";

    s->path.depth = depth + 1;
    s->path.steps[depth] = step;
    s->shared->path = s->path;
    powercut_choose(cut, c.seed, choices);
    go_on = go_on && w->pool->count < VERSIONS_MAX - 64;
    c.killed = hash(c.seed, 7) % 6 == 0;
    for (uint32_t i = 0; i < powercut_pending(cut) && c.killed; i++)
        choices[i] = (struct powercut_choice){.fate = POWERCUT_KEPT, .size_kept = true};
    c.stale = powercut_pending(cut) > 0 && choices[0].stale; /* all or none of a disk */
    if (s->tell && s->target.depth == depth + 1) {
        tell(&c, cut, step.event, choices);
        return;
    }
    s->shared->disks++;
    check_disk(&c, powercut_build(cut, choices), go_on, failure);
    s->path.depth = depth + 1; /* nested cuts changed it */
    if (failure[0])
        report(s, failure);
}

static bool is_wanted(const struct sweep *s, uint32_t depth, struct step step)
{
    return s->target.depth <= depth ||
           (s->target.steps[depth].event == step.event && s->target.steps[depth].variant == step.variant);
}

/* Cuts before and after each sync, and at as many moments between. */
static bool is_cut(const struct world *w, uint64_t seed, uint32_t event, uint32_t depth)
{
    bool at_sync = powercut_is_sync(w->pc, event) || (event > 0 && powercut_is_sync(w->pc, event - 1));
    uint64_t dice = hash(seed, event + 100) % 100;

    if (event == powercut_events(w->pc))
        return true;
    return depth == 0 ? dice < (at_sync ? 60u : 15u) : dice < (at_sync ? 30u : 12u);
}

static void sweep_cuts(struct sweep *s, struct world *w, uint64_t seed, uint32_t depth)
{
    uint32_t events = powercut_events(w->pc), variants;
    struct powercut_cut *cut = powercut_cut_new(w->pc);

    s->shared->events += events;
    for (uint32_t event = powercut_first(w->pc); event <= events && !s->shared->failed && !is_time(s); event++) {
        struct powercut_choice *choices;
        if (!is_cut(w, seed, event, depth))
            continue;
        powercut_cut_to(cut, event);
        variants = powercut_pending(cut) == 0 ? 1 : depth == 0 ? 5 : 3;
        choices = malloc((powercut_pending(cut) + 1) * sizeof(*choices));
        for (uint32_t variant = 0; variant < variants && !s->shared->failed; variant++) {
            struct step step = {event, variant};
            if (is_wanted(s, depth, step))
                check_variant(s, w, cut, seed, depth, step, choices);
        }
        free(choices);
    }
    powercut_cut_free(cut);
}

/* The id of a store is chance; of these it is the seed, so that a history repeats to the byte. */
static struct memdisk *new_disk(uint64_t seed)
{
    struct superblock sb = {.version = FORMAT_VERSION, .created_ns = 1};
    struct memdisk *d = memdisk_new();
    uint8_t raw[DISK_SUPERBLOCK_BYTES];

    if (seed % 16 == 0)
        return d; /* this one is made by the core, which is cut, too */
    memcpy(sb.store_id, &seed, sizeof(seed));
    format_superblock_pack(&sb, raw);
    (void)memdisk_write_file(d, "FORMAT", raw, sizeof(raw)); /* there is room */
    return d;
}

static void run_history(struct sweep *s)
{
    static const uint64_t quotas[] = {LARDER_QUOTA_BYTES_MIN, LARDER_QUOTA_BYTES_MIN, 2 * MIB, 8 * MIB, 64 * MIB, GIB};
    uint64_t seed = hash(s->seed, 0);
    struct world_options opts = {.quota_bytes = quotas[hash(seed, 1) % 6],
                                 .big_bytes = hash(seed, 2) % 3 ? 4 * KIB : 16 * KIB,
                                 .durable_close = hash(seed, 3) % 8 == 0,
                                 .sabotage = s->sabotage};
    struct world *w = calloc(1, sizeof(*w));
    struct pool *pool = calloc(1, sizeof(*pool));
    struct memdisk *base = new_disk(s->seed);

    s->shared->seed = s->seed;
    s->shared->path.depth = s->path.depth = 0;
    s->shared->histories++;
    world_init(w, pool, &opts, seed);
    w->profile = &profiles[hash(seed, 4) % profile_count];
    w->pc = powercut_new(base);
    memdisk_free(base);
    if (s->sabotage)
        powercut_ignore_syncs(w->pc, s->sabotage);
    w->disk = powercut_disk(w->pc);
    if (s->tell)
        (void)printf("seed %llu: profile \"%s\", quota %llu, big_bytes %u%s\n", (unsigned long long)s->seed, w->profile->name,
                     (unsigned long long)opts.quota_bytes, opts.big_bytes, opts.durable_close ? ", durability=fsync" : "");
    if (world_open(w) == 0) {
        world_learn_ids(w);
        world_run(w, 15 + (uint32_t)(hash(seed, 5) % 50));
    }
    if (w->failure[0]) {
        if (s->tell)
            print_trace(w, powercut_events(w->pc));
        report(s, w->failure);
    } else {
        sweep_cuts(s, w, seed, 0);
    }
    world_fini(w);
    pool_fini(pool);
    free(pool);
    free(w);
}

/* ---- processes ---- */

/* Runs histories from s->seed on; returns true when one failed, by itself or by crashing. */
static bool run_process(struct sweep *s, uint64_t seeds, uint64_t *ret_done)
{
    struct progress *shared = s->shared;
    uint64_t first = s->seed;
    int status = 0;
    pid_t pid;

    (void)fflush(stdout);
    shared->failed = false;
    shared->seed = first;
    pid = fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        const struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core); /* a crash is reported, not kept */
        (void)mallopt(M_MMAP_THRESHOLD, 64 << 20); /* the same memory again for each store */
        (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
        for (uint64_t i = 0; i < seeds && !shared->failed && !is_time(s); i++) {
            s->seed = first + i;
            (void)alarm(HANG_SECONDS);
            run_history(s);
        }
        (void)fflush(stdout);
        _exit(0);
    }
    (void)waitpid(pid, &status, 0); /* ours */
    *ret_done = shared->seed - first + 1;
    if (status != 0 && !shared->failed) {
        shared->failed = true;
        (void)snprintf(shared->failure, sizeof(shared->failure), "the core ended with signal %d%s",
                       WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                       WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? " (it hung)" : "");
    }
    return shared->failed;
}

static void path_text(const struct path *p, char out[96])
{
    size_t at = 0;

    out[0] = 0;
    for (uint32_t i = 0; i < p->depth; i++)
        at += (size_t)snprintf(out + at, 96 - at, "%s%u.%u", i ? "/" : "", p->steps[i].event, p->steps[i].variant);
}

static bool path_parse(const char *text, struct path *ret_path)
{
    *ret_path = (struct path){.depth = 0};
    while (*text && ret_path->depth < DEPTH_MAX) {
        struct step *step = &ret_path->steps[ret_path->depth++];
        int used = 0;
        if (sscanf(text, "%u.%u%n", &step->event, &step->variant, &used) != 2)
            return false;
        text += used;
        text += *text == '/';
    }
    return *text == 0;
}

/* Runs the failing history again, up to that disk, and tells all about it. */
static void explain(const struct sweep *failed)
{
    struct sweep s = *failed;
    struct progress shared = *failed->shared;
    char path[96];
    uint64_t done;

    path_text(&shared.path, path);
    (void)printf("\nFAILED: %s\n  again: powercut --seed %llu%s%s%s%s\n", shared.failure, (unsigned long long)shared.seed,
                 shared.path.depth ? " --at " : " --history", path, s.sabotage ? " --sabotage " : "", s.sabotage ? s.sabotage : "");
    s.seed = shared.seed;
    s.target = shared.path;
    s.tell = true;
    (void)run_process(&s, 1, &done);
}

static void usage(void)
{
    (void)printf("usage: powercut [--seconds N] [--disks N] [--seed S] [--failures N] [--sabotage PREFIX]\n"
                 "       powercut --seed S --at EVENT.VARIANT[/...]   one disk again, told in full\n"
                 "       powercut --seed S --history                  one history again, told in full when it fails\n"
                 "Histories from seed S on, until the time is over or so many disks were checked; exit status 1 when one\n"
                 "failed. --sabotage: syncs of files whose names begin so (\"journal-\", \"seg-\", \"index-\", \".\" for the\n"
                 "directory) do nothing; the sweep must then fail.\n");
}

static int sweep(struct sweep *s, uint64_t failures_max)
{
    uint64_t started = now_ns(), failures = 0, next_report = started + 10 * NS_PER_S, done;
    double seconds;

    while (!is_time(s) && failures < failures_max) {
        bool failed = run_process(s, SEEDS_PER_PROCESS, &done);
        if (failed) {
            failures++;
            explain(s);
        }
        s->seed += done;
        if (now_ns() >= next_report) {
            next_report = now_ns() + 10 * NS_PER_S;
            (void)fprintf(stderr, "\r%llu disks, %llu histories, next seed %llu, %llu failures ", (unsigned long long)s->shared->disks,
                          (unsigned long long)s->shared->histories, (unsigned long long)s->seed, (unsigned long long)failures);
        }
    }
    seconds = (double)(now_ns() - started) / 1e9;
    (void)printf("%llu disks in %.1f s (%.0f/s), %llu histories, %llu recordings of recoveries, %llu disk events, next seed %llu: "
                 "%llu failures\n",
                 (unsigned long long)s->shared->disks, seconds, (double)s->shared->disks / seconds,
                 (unsigned long long)s->shared->histories, (unsigned long long)s->shared->nested,
                 (unsigned long long)s->shared->events, (unsigned long long)s->seed, (unsigned long long)failures);
    return failures > 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seconds", required_argument, NULL, 's'}, {"disks", required_argument, NULL, 'd'},
                                            {"seed", required_argument, NULL, 'S'},    {"at", required_argument, NULL, 'a'},
                                            {"history", no_argument, NULL, 'H'},       {"failures", required_argument, NULL, 'f'},
                                            {"sabotage", required_argument, NULL, 'b'}, {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct sweep s = {.seed = 1, .deadline_ns = UINT64_MAX, .disks_max = UINT64_MAX};
    uint64_t failures_max = 1, done;
    bool one = false;
    int o;

    s.shared = mmap(NULL, sizeof(*s.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s.shared == MAP_FAILED)
        return 2;
    while ((o = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (o) {
        case 's': s.deadline_ns = now_ns() + strtoull(optarg, NULL, 10) * NS_PER_S; break;
        case 'd': s.disks_max = strtoull(optarg, NULL, 10); break;
        case 'S': s.seed = strtoull(optarg, NULL, 10); break;
        case 'f': failures_max = strtoull(optarg, NULL, 10); break;
        case 'b': s.sabotage = optarg; break;
        case 'H': one = true; break;
        case 'a':
            one = true;
            if (path_parse(optarg, &s.target))
                break;
            /* fallthrough */
        default: usage(); return o == 'h' ? 0 : 2;
        }
    }
    if (one) {
        s.tell = s.target.depth > 0;
        done = run_process(&s, 1, &done);
        if (s.target.depth == 0 && s.shared->failed)
            explain(&s);
        return s.shared->failed ? 1 : 0;
    }
    if (s.deadline_ns == UINT64_MAX && s.disks_max == UINT64_MAX)
        s.deadline_ns = now_ns() + 10 * NS_PER_S;
    return sweep(&s, failures_max);
}
