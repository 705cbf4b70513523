/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * watchdog: notices that the daemon, or the device beneath it, does not get on, so that no client waits for ever.
 *
 * Two things are watched, by a thread that depends on neither:
 *   requests   each has a slot from its arrival to its answer. It makes progress when a system call on the store
 *              returns on the thread that works for it (core/progress.h): an fsync that lasts is one without
 *              progress, a copy of a terabyte is not.
 *   a probe    a job that goes through the workers and takes each lock that every request needs. It comes back
 *              unless all workers are taken or a lock is held for good.
 *
 * What follows:
 *   told       a request without progress for WATCHDOG_TELL_NS (or a quarter of the limit): one line in the log,
 *              with what it waits for, and the counters stuck_requests and stuck_ns. One line more when all is
 *              well again; not one per request.
 *   keepalive  WATCHDOG=1 to the service manager at half its period, as long as the probe comes back within it.
 *   the end    a request, or the probe, without progress for the limit (option watchdog): the connection to the kernel
 *              is ended, so that every waiting call returns with an error, and the process dies: by SIGKILL when a
 *              request is in a system call, else by SIGABRT, for the dump of core. Killing alone
 *              would not do: a thread in uninterruptible sleep outlives SIGKILL and keeps the connection open. The
 *              store's lock stays held until that thread is gone, too: its write may still happen, and no
 *              other daemon may have the store before. Nothing is lost that was promised (C2: it is a kill).
 *
 * Only time in which this process runs counts: a turn of the thread adds what passed since the last, but no more than
 * twice its length. A suspended machine, SIGSTOP, a debugger are no alarm.
 *
 * System calls of its own, for whoever filters them: fstat, open of /dev/null (at watchdog_new), dup2, getpid, tgkill and
 * rt_sigaction (abort), kill (of itself), sendto, and what sdnotify.c and log.c need. Fork: none.
 */
#include "fs/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/helper.h"
#include "fs/log.h"
#include "fs/options.h"
#include "fs/sdnotify.h"
#include "fs/worker.h"

#define WATCHDOG_MAGIC 0x47444657u       /* "WFDG" */
#define WATCHDOG_SLOTS 1024u             /* requests watched at once */
#define WATCHDOG_TRIES 16u               /* slots looked at by a request that wants one */
#define WATCHDOG_TURN_NS NS_PER_S        /* at most; a turn is 1/16 of the shortest period it serves */
#define WATCHDOG_TURN_MIN_NS (20 * NS_PER_MS)
#define WATCHDOG_TELL_NS (30 * NS_PER_S)

struct watchdog_slot {
    _Atomic uint64_t start_ns;       /* (a) names the request; 0: free */
    const char *_Atomic name;        /* (a) */
    _Atomic int client_pid;          /* (a) */
    struct larder_progress progress; /* (a) */
};

/* What the thread knows of a slot. */
struct watchdog_view {
    uint64_t start_ns, steps;
    uint64_t idle_ns; /* of running time, without progress */
    bool told;
};

struct watchdog_probe {
    struct worker_job job;
    _Atomic bool under_way;
};

struct watchdog {
    uint32_t magic;
    struct fs *fs;                      /* (c) */
    uint64_t limit_ns, tell_ns;         /* (c) limit 0: none */
    uint64_t turn_ns, keepalive_ns;     /* (c) keepalive 0: none is wanted */
    int null_fd;                        /* (c) */
    struct helper *helper;              /* (c) after watchdog_start */
    dev_t fuse_device;                  /* (c) likewise */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;                          /* (l) */
    bool started;                       /* (c) after watchdog_start */
    bool stopping;                      /* (l) the engine may end any time now */
    struct watchdog_probe probe;
    uint64_t probe_idle_ns;             /* (t) since the probe under way was sent */
    uint64_t since_keepalive_ns;        /* (t) */
    uint32_t stuck_count;               /* (t) told and not yet answered */
    pthread_t thread;
    struct watchdog_slot slots[WATCHDOG_SLOTS];
    struct watchdog_view views[WATCHDOG_SLOTS]; /* (t) */
};

/* ---- requests ---- */

/* Where this thread looks for a free slot: threads start apart, and find the one they left. */
static _Thread_local uint32_t watchdog_cursor;
static _Atomic uint32_t watchdog_cursors;

struct watchdog_slot *watchdog_begin(struct watchdog *w, const char *name, int client_pid, uint64_t start_ns)
{
    if (watchdog_cursor == 0)
        watchdog_cursor = 1 + WATCHDOG_TRIES * atomic_fetch_add(&watchdog_cursors, 1);
    for (uint32_t i = 0; i < WATCHDOG_TRIES; i++) {
        struct watchdog_slot *slot = &w->slots[(watchdog_cursor + i) % WATCHDOG_SLOTS];
        uint64_t none = 0;

        if (atomic_load_explicit(&slot->start_ns, memory_order_relaxed) != 0 ||
            !atomic_compare_exchange_strong(&slot->start_ns, &none, start_ns))
            continue;
        atomic_store_explicit(&slot->name, name, memory_order_relaxed);
        atomic_store_explicit(&slot->client_pid, client_pid, memory_order_relaxed);
        larder_set_progress(&slot->progress);
        return slot;
    }
    watchdog_cursor += WATCHDOG_TRIES; /* its neighbourhood is taken by requests that last */
    return NULL;
}

void watchdog_end(struct watchdog_slot *slot)
{
    if (!slot)
        return;
    larder_set_progress(NULL);
    atomic_store_explicit(&slot->progress.waits_in, NULL, memory_order_relaxed);
    atomic_store_explicit(&slot->start_ns, 0, memory_order_release);
}

struct larder_progress *watchdog_leave(struct watchdog_slot *slot)
{
    if (!slot)
        return NULL;
    larder_set_progress(NULL);
    return &slot->progress;
}

void watchdog_stopping(struct watchdog *w)
{
    CHECK_OBJ(w, WATCHDOG_MAGIC);
    (void)pthread_mutex_lock(&w->lock);
    w->stopping = true;
    (void)pthread_mutex_unlock(&w->lock);
}

/* ---- the end ---- */

/* Where the helper may not end the connection (an ordinary user's, without fusectl): every descriptor by which this process
 * holds it, /dev/fuse and its clones, and the rings (anonymous inodes have no type in their mode; libfuse's event
 * descriptors among them do no harm). They are replaced, not closed: a number that came free could be given to a
 * file of the store, under a thread that still answers by it. What threads hold for the call they are in they let go
 * when they die. Only a ring whose own thread is stuck stays: then its clients wait for that thread. */
static void watchdog_let_go_of_kernel(const struct watchdog *w)
{
    struct rlimit limit = {.rlim_cur = 1u << 20};
    struct stat st;

    (void)getrlimit(RLIMIT_NOFILE, &limit); /* then the guess above must do */
    for (int fd = 3; (rlim_t)fd < limit.rlim_cur; fd++) {
        if (fd == w->null_fd || fstat(fd, &st) < 0)
            continue;
        if ((S_ISCHR(st.st_mode) && st.st_rdev == w->fuse_device) || (st.st_mode & S_IFMT) == 0)
            (void)dup2(w->null_fd, fd);
    }
}

/* A dump of core shows a deadlock; but it waits for every thread, and one that waits in the kernel may never come. */
static bool watchdog_in_system_call(const struct watchdog *w)
{
    for (uint32_t i = 0; i < WATCHDOG_SLOTS; i++)
        if (atomic_load(&w->slots[i].start_ns) && atomic_load(&w->slots[i].progress.waits_in))
            return true;
    return false;
}

__attribute__((noreturn)) static void watchdog_die(const struct watchdog *w, const char *name, const char *waits_in)
{
    struct sigaction ordinary = {.sa_handler = SIG_DFL};
    bool in_call = watchdog_in_system_call(w); /* now: a client that has its error may wake the device */

    log_line(LARDER_LOG_ERROR,
             "event=stuck request=%s waits_in=%s limit_s=%.1f consequence=\"the mount is given up so that its clients get "
             "an error; what was closed or fsynced is kept; when the device answers again: larder mount\"",
             name, waits_in, (double)w->limit_ns / (double)NS_PER_S);
    sdnotify_send("STATUS=stuck in %s (%s): giving up the mount", name, waits_in);
    helper_abort(w->helper);
    watchdog_let_go_of_kernel(w);
    if (in_call || watchdog_in_system_call(w))
        (void)kill(getpid(), SIGKILL);
    (void)sigaction(SIGABRT, &ordinary, NULL);
    abort();
}

/* ---- a turn ---- */

/* Not in a system call on the store: it waits for another thread. */
static const char *watchdog_waits_in(const struct watchdog_slot *slot)
{
    const char *call = atomic_load_explicit(&slot->progress.waits_in, memory_order_relaxed);

    return call ? call : "lock";
}

static void watchdog_look(struct watchdog *w, uint32_t i, uint64_t passed_ns)
{
    struct watchdog_view *view = &w->views[i];
    uint64_t start_ns = atomic_load_explicit(&w->slots[i].start_ns, memory_order_acquire);
    uint64_t steps = atomic_load_explicit(&w->slots[i].progress.steps, memory_order_relaxed);

    if (start_ns == view->start_ns && steps == view->steps && start_ns != 0)
        view->idle_ns += passed_ns;
    else
        *view = (struct watchdog_view){.start_ns = start_ns, .steps = steps};
}

static void watchdog_tell(struct watchdog *w, uint32_t worst, uint32_t stuck_count)
{
    const struct watchdog_slot *slot = &w->slots[worst];

    if (stuck_count > 0 && w->stuck_count == 0)
        log_line(LARDER_LOG_WARNING,
                 "event=no_progress requests=%u worst=%s client_pid=%d seconds=%.1f waits_in=%s "
                 "consequence=\"its client waits%s\"",
                 stuck_count, atomic_load(&slot->name), atomic_load(&slot->client_pid),
                 (double)w->views[worst].idle_ns / (double)NS_PER_S, watchdog_waits_in(slot),
                 w->limit_ns ? "; the mount is given up at the limit of option watchdog" : "");
    else if (stuck_count == 0 && w->stuck_count > 0)
        log_line(LARDER_LOG_INFO, "event=progress_again");
    w->stuck_count = stuck_count;
}

static void watchdog_check_requests(struct watchdog *w, uint64_t passed_ns)
{
    uint32_t worst = 0, stuck_count = 0;
    uint64_t newly = 0;

    for (uint32_t i = 0; i < WATCHDOG_SLOTS; i++) {
        struct watchdog_view *view = &w->views[i];

        watchdog_look(w, i, passed_ns);
        if (view->idle_ns > w->views[worst].idle_ns)
            worst = i;
        if (view->idle_ns < w->tell_ns)
            continue;
        stuck_count++;
        newly += !view->told;
        view->told = true;
    }
    (void)pthread_mutex_lock(&w->lock);
    if (!w->stopping)
        larder_report_stuck(w->fs->larder, newly, stuck_count ? w->views[worst].idle_ns : 0);
    (void)pthread_mutex_unlock(&w->lock);
    watchdog_tell(w, worst, stuck_count);
    if (w->limit_ns && w->views[worst].idle_ns >= w->limit_ns)
        watchdog_die(w, atomic_load(&w->slots[worst].name), watchdog_waits_in(&w->slots[worst]));
}

static void watchdog_probe_run(struct worker_job *job)
{
    struct watchdog_probe *probe = (struct watchdog_probe *)job;
    struct watchdog *w = (struct watchdog *)(void *)((char *)probe - offsetof(struct watchdog, probe));

    CHECK_OBJ(w, WATCHDOG_MAGIC);
    larder_probe(w->fs->larder);
    atomic_store(&probe->under_way, false);
}

static void watchdog_check_probe(struct watchdog *w, uint64_t passed_ns)
{
    if (atomic_load(&w->probe.under_way)) {
        w->probe_idle_ns += passed_ns;
        if (w->limit_ns && w->probe_idle_ns >= w->limit_ns)
            watchdog_die(w, "probe", "lock");
        return;
    }
    w->probe_idle_ns = 0;
    (void)pthread_mutex_lock(&w->lock);
    if (!w->stopping) {
        atomic_store(&w->probe.under_way, true);
        w->probe.job = (struct worker_job){.run = watchdog_probe_run};
        worker_submit(w->fs->worker, &w->probe.job);
    }
    (void)pthread_mutex_unlock(&w->lock);
}

static void watchdog_keep_alive(struct watchdog *w, uint64_t passed_ns)
{
    w->since_keepalive_ns += passed_ns;
    if (w->keepalive_ns == 0 || w->since_keepalive_ns < w->keepalive_ns || w->probe_idle_ns >= w->keepalive_ns)
        return;
    w->since_keepalive_ns = 0;
    sdnotify_send("WATCHDOG=1");
}

/* Sleeps for a turn. False: it is time to end. */
static bool watchdog_wait(struct watchdog *w)
{
    uint64_t until_ns = mono_ns() + w->turn_ns;
    struct timespec ts = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    bool stop;

    (void)pthread_mutex_lock(&w->lock);
    while (!w->stop && pthread_cond_timedwait(&w->wake, &w->lock, &ts) != ETIMEDOUT)
        ;
    stop = w->stop;
    (void)pthread_mutex_unlock(&w->lock);
    return !stop;
}

static void *watchdog_main(void *arg)
{
    struct watchdog *w = arg;
    uint64_t last_ns = mono_ns();

    CHECK_OBJ(w, WATCHDOG_MAGIC);
    while (watchdog_wait(w)) {
        uint64_t now_ns = mono_ns(), passed_ns = MIN(now_ns - last_ns, 2 * w->turn_ns);

        last_ns = now_ns;
        watchdog_check_probe(w, passed_ns);
        watchdog_check_requests(w, passed_ns);
        watchdog_keep_alive(w, passed_ns);
    }
    return NULL;
}

/* ---- life ---- */

static void watchdog_set_periods(struct watchdog *w, uint64_t limit_ns)
{
    uint64_t shortest_ns;

    w->limit_ns = limit_ns;
    w->tell_ns = limit_ns ? MIN(WATCHDOG_TELL_NS, limit_ns / 4) : WATCHDOG_TELL_NS;
    w->keepalive_ns = sdnotify_watchdog_ns() / 2;
    w->since_keepalive_ns = w->keepalive_ns; /* the first at once */
    shortest_ns = w->keepalive_ns ? MIN(w->tell_ns, w->keepalive_ns) : w->tell_ns;
    w->turn_ns = MAX(MIN(shortest_ns / 8, WATCHDOG_TURN_NS), WATCHDOG_TURN_MIN_NS);
}

int watchdog_new(struct fs *fs, uint64_t limit_ns, struct watchdog **ret_watchdog)
{
    struct watchdog *w = calloc(1, sizeof(*w));
    pthread_condattr_t attr;

    if (!w)
        return -ENOMEM;
    w->magic = WATCHDOG_MAGIC;
    w->fs = fs;
    watchdog_set_periods(w, limit_ns);
    w->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&w->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    *ret_watchdog = w;
    return 0;
}

int watchdog_start(struct watchdog *w, struct helper *helper)
{
    struct stat st;
    int r;

    CHECK_OBJ(w, WATCHDOG_MAGIC);
    if (fstat(fuse_session_fd(w->fs->session), &st) < 0)
        return -errno;
    w->fuse_device = st.st_rdev;
    w->helper = helper;
    r = pthread_create(&w->thread, NULL, watchdog_main, w);
    w->started = r == 0;
    return -r;
}

void watchdog_free(struct watchdog *w)
{
    if (!w)
        return;
    CHECK_OBJ(w, WATCHDOG_MAGIC);
    (void)pthread_mutex_lock(&w->lock);
    w->stop = true;
    (void)pthread_cond_signal(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
    if (w->started)
        (void)pthread_join(w->thread, NULL);
    (void)pthread_cond_destroy(&w->wake);
    (void)pthread_mutex_destroy(&w->lock);
    if (w->null_fd >= 0)
        (void)close(w->null_fd);
    w->magic = 0;
    free(w);
}
