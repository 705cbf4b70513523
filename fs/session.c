/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * session: what is agreed with the kernel, and the life of the mount:
 *
 *   larder_open → mount → loop ⇢ INIT → the ready thread stats the mount point through the kernel → larder_start,
 *   parent told → ... → signal or umount → stop → larder_close
 *
 * Stop by signal: the mount leaves the tree (new paths do not reach it), no request goes to a worker any
 * more, the notify thread ends while the session still serves (it may wait for a directory that a request
 * holds), the workers finish, then the loop ends. Only then the engine closes. Further signals change
 * nothing.
 *
 * What may never happen: the parent told "ready" before a request was answered; larder_close with a request
 * running.
 */
#include "fs/session.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fs/confine.h"
#include "fs/handle.h"
#include "fs/helper.h"
#include "fs/log.h"
#include "fs/mountpoint.h"
#include "fs/notify.h"
#include "fs/ops.h"
#include "fs/sampled.h"
#include "fs/sdnotify.h"
#include "fs/watchdog.h"
#include "fs/writers.h"

#define SESSION_URING_PARAMETER "/sys/module/fuse/parameters/enable_uring"
#define SESSION_URING_DEPTH 32     /* requests under way per core, those that wait in workers included */
#define SESSION_URING_WAIT_MS 2000 /* for the rings to be set up */
#define SESSION_THREADS_SAMPLED 64
#define SESSION_KICK_MS 20
#define SESSION_BUSY_WAIT_MS 10000 /* for the daemon of a mount that was just unmounted */
#define SESSION_BUSY_STEP_MS 20
#define SESSION_EXIT_FAILED 1

struct session {
    struct fs fs;
    struct helper *helper;          /* (c) */
    struct confine_report confined; /* (c) before the loop */
    int ready_fd;
    bool io_uring_asked;                  /* (c) of libfuse */
    char device[MOUNTINFO_DEVICE_BYTES]; /* (c) after ready */
    pthread_t loop_thread, signal_thread, ready_thread;
    _Atomic bool loop_ended;
    _Atomic bool answered; /* the ready thread's request came back */
    _Atomic bool failed;   /* the daemon stops because something went wrong */
};

/* The error of a mount that does not come to be: to a person, and to whoever reads logs. */
static int session_fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "mount.larder: %s%s%s\n", what, why ? ": " : "", why ? why : "");
    return SESSION_EXIT_FAILED;
}

/* ---- what the kernel and this process offer ---- */

static bool session_kernel_uring(void)
{
    char value = 'N';
    int fd = open(SESSION_URING_PARAMETER, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    if (read(fd, &value, 1) != 1)
        value = 'N';
    (void)close(fd);
    return value == 'Y' || value == '1';
}

static bool session_may_pass_through(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    return syscall(SYS_capget, &header, data) == 0 && data[0].effective & 1u << CAP_SYS_ADMIN;
}

/* NULL when io_uring can be asked for, else the reason. */
static const char *session_uring_obstacle(void)
{
#if HAVE_FUSE_URING && FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
    if (!session_kernel_uring())
        return "the kernel has it not enabled; as root: echo Y > " SESSION_URING_PARAMETER
               " (Linux 6.14 or newer)";
    return NULL;
#else
    return "this libfuse has no io_uring; build with libfuse 3.18 or newer and liburing-dev";
#endif
}

static int session_decide_uring(struct session *s)
{
    const char *obstacle = session_uring_obstacle();
    enum tri wanted = s->fs.opts->io_uring;

    if (wanted == TRI_ON && obstacle)
        return session_fail("option io_uring=on", obstacle);
    s->io_uring_asked = wanted != TRI_OFF && !obstacle;
    s->fs.io_uring.reason = wanted == TRI_OFF ? "switched off by option"
                            : obstacle        ? obstacle
                                              : "enabled in kernel and libfuse";
    return 0;
}

static const char *session_passthrough_obstacle(const struct fs_options *o, const struct fuse_conn_info *conn)
{
    if (o && o->passthrough == TRI_OFF)
        return "switched off by option";
    if (o && o->core.hits == LARDER_HITS_SAMPLED)
        return "hits=sampled: the kernel opens files by itself, through its page cache";
#if !HAVE_FUSE_PASSTHROUGH
    (void)conn;
    return "this libfuse has no passthrough; build with libfuse 3.17 or newer";
#else
    if (conn && !(conn->capable_ext & FUSE_CAP_PASSTHROUGH))
        return "the kernel does not offer it (Linux 6.9 or newer, CONFIG_FUSE_PASSTHROUGH)";
    return session_may_pass_through() ? NULL : "it needs CAP_SYS_ADMIN: mount as root";
#endif
}

static void session_want(struct fuse_conn_info *conn, uint64_t cap, bool wanted)
{
    if (wanted)
        (void)fuse_set_feature_flag(conn, cap); /* false: not offered, and then not needed */
    else
        fuse_unset_feature_flag(conn, cap);
}

static bool session_kill_priv_relayed(void)
{
    unsigned major = 0, minor = 0, patch = 0;

    (void)sscanf(fuse_pkgversion(), "%u.%u.%u", &major, &minor, &patch);
    return major > 3 || (major == 3 && (minor > 18 || (minor == 18 && patch >= 3)));
}

void session_init(void *userdata, struct fuse_conn_info *conn)
{
    struct fs *fs = userdata;

    CHECK_OBJ(fs, FS_MAGIC);
    /* This daemon is the only writer: pages stay valid until it says otherwise, whatever happens to mtime
     * and size. */
    session_want(conn, FUSE_CAP_AUTO_INVAL_DATA, false);
    session_want(conn, FUSE_CAP_EXPLICIT_INVAL_DATA, true);
    session_want(conn, FUSE_CAP_WRITEBACK_CACHE,
                 false); /* the quota has to see every write before it is accepted */
    session_want(conn, FUSE_CAP_PARALLEL_DIROPS, true);
    session_want(conn, FUSE_CAP_READDIRPLUS, true);
    session_want(conn, FUSE_CAP_READDIRPLUS_AUTO, true);
    session_want(conn, FUSE_CAP_ATOMIC_O_TRUNC, !fs->sampled); /* an OPEN that is not sent truncates nothing */
    session_want(conn, FUSE_CAP_ASYNC_READ, true);
    session_want(conn, FUSE_CAP_CACHE_SYMLINKS, true);
    /* Else who opens a value that is being written could not map it (Linux 6.6). */
    fs->direct_writes = fuse_set_feature_flag(conn, FUSE_CAP_DIRECT_IO_ALLOW_MMAP) && !fs->sampled;
    session_want(conn, FUSE_CAP_DONT_MASK, false);
    session_want(conn, FUSE_CAP_POSIX_ACL, false);
    session_want(conn, FUSE_CAP_SPLICE_READ, false); /* values come and go through memory anyway */
    session_want(conn, FUSE_CAP_IOCTL_DIR, false);
    /* Else the kernel asks for security.capability before every write. */
    fs->kill_priv_by_us = fuse_set_feature_flag(conn, FUSE_CAP_HANDLE_KILLPRIV_V2);
    fs->kill_priv_relayed = session_kill_priv_relayed();
    fs->passthrough.reason = session_passthrough_obstacle(fs->opts, conn);
    fs->passthrough.active = !fs->passthrough.reason;
#if HAVE_FUSE_PASSTHROUGH
    if (fs->passthrough.active) {
        session_want(conn, FUSE_CAP_PASSTHROUGH, true);
        conn->max_backing_stack_depth = FUSE_BACKING_STACKED_UNDER;
        fs->passthrough.reason = "offered by the kernel, and this process may";
    }
#endif
    conn->no_interrupt = 1; /* nothing here can be interrupted */
    fs->proto_minor = conn->proto_minor;
    atomic_store(&fs->agreed, true);
}

/* ---- threads beside the loop ---- */

static void session_sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    (void)nanosleep(&ts, NULL);
}

static void session_no_op(int sig)
{
    (void)sig;
}

/* libfuse's loop waits in sem_wait; before 3.18 only a signal to its thread makes it look at the exit
 * flag. */
static void session_end_loop(struct session *s)
{
    fuse_session_exit(s->fs.session);
    while (!atomic_load(&s->loop_ended)) {
        (void)pthread_kill(s->loop_thread, SIGUSR1);
        session_sleep_ms(SESSION_KICK_MS);
    }
}

static void session_stop(struct session *s)
{
    struct fs *fs = &s->fs;
    int r;

    sdnotify_send("STOPPING=1\nSTATUS=writing what is left");
    r = helper_detach(s->helper);
    if (r < 0)
        log_line(LARDER_LOG_WARNING, "event=unmount_failed error=%d", -r);
    atomic_store(&fs->stopping, true);
    watchdog_stopping(fs->watchdog);
    notify_stop(fs->notify);
    worker_drain(fs->worker);
    session_end_loop(s);
}

static void *session_signal_main(void *arg)
{
    struct session *s = arg;
    bool stopped = false;
    sigset_t set;
    int sig;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    while (!atomic_load(&s->loop_ended) && sigwait(&set, &sig) == 0) {
        if (atomic_load(&s->loop_ended) || stopped)
            continue;
        log_line(LARDER_LOG_INFO, "event=stopping signal=%d", sig);
        (void)pthread_join(s->ready_thread, NULL); /* what it starts must be there to be stopped */
        session_stop(s);
        stopped = true;
    }
    return NULL;
}

/* One request to the daemon by way of the kernel; waits for the rings when they were asked for. */
static int session_prove(struct session *s)
{
    int r;

    for (unsigned waited_ms = 0;; waited_ms += 10) {
        r = helper_ask(s->helper, s->device);
        if (r == -ENOTCONN || r == -ECONNABORTED)
            return -ENOENT; /* taken away by force */
        if (r < 0)
            return r;
        /* What answers before INIT is done, or is no mount, is the directory beneath: unmounted meanwhile. */
        if (!atomic_load(&s->fs.agreed) || !s->device[0])
            return -ENOENT;
        if (!s->io_uring_asked || atomic_load(&s->fs.uring_seen) || waited_ms >= SESSION_URING_WAIT_MS)
            break;
        session_sleep_ms(10);
    }
    if (s->io_uring_asked && !atomic_load(&s->fs.uring_seen)) {
        s->fs.io_uring.reason = "its rings could not be set up (memory or descriptor limits, or the kernel's "
                                "switch turned off while mounting); -d tells more";
        if (s->fs.opts->io_uring == TRI_ON) {
            (void)session_fail("option io_uring=on", s->fs.io_uring.reason);
            return -ENOTSUP;
        }
        log_line(LARDER_LOG_INFO, "event=no_io_uring reason=\"%s\" consequence=\"served over /dev/fuse\"",
                 s->fs.io_uring.reason);
    }
    if (s->fs.writers && s->fs.proto_minor < NOTIFY_PRUNE_MINOR) {
        (void)session_fail("option hits=sampled", "without ro it needs Linux 6.18, which forgets when it is asked to");
        return -ENOTSUP;
    }
    if (s->fs.opts->passthrough == TRI_ON && !s->fs.passthrough.active) {
        (void)session_fail("option passthrough=on", s->fs.passthrough.reason);
        return -ENOTSUP;
    }
    return 0;
}

static void session_announce(struct session *s)
{
    char store[512], mountpoint[512];

    if (!s->fs.opts->foreground)
        log_to_syslog();
    log_line(LARDER_LOG_INFO,
             "event=mounted store=%s mountpoint=%s io_uring=%s passthrough=%s version=%s libfuse=%s",
             log_quote(s->fs.opts->store, store, sizeof(store)),
             log_quote(s->fs.opts->mountpoint, mountpoint, sizeof(mountpoint)),
             atomic_load(&s->fs.uring_seen) ? "on" : "off", s->fs.passthrough.active ? "on" : "off",
             LARDER_VERSION, fuse_pkgversion());
    sdnotify_send("READY=1\nMAINPID=%d\nSTATUS=serving %s from %s", (int)getpid(), s->fs.opts->mountpoint,
                  s->fs.opts->store);
    if (s->ready_fd >= 0 && write(s->ready_fd, "R", 1) != 1)
        log_line(LARDER_LOG_WARNING, "event=parent_gone");
    if (!s->fs.opts->foreground) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        for (int fd = 0; null >= 0 && fd <= 2; fd++)
            (void)dup2(null, fd); /* the terminal is the parent's */
        if (null > 2)
            (void)close(null);
    }
}

static void *session_ready_main(void *arg)
{
    struct session *s = arg;
    int r = session_prove(s);

    atomic_store(&s->answered, true);
    if (r == 0)
        r = notify_start(s->fs.notify);
    if (r == 0)
        r = larder_start(s->fs.larder);
    if (r == 0 && s->fs.writers)
        r = writers_start(&s->fs);
    if (r == 0)
        r = watchdog_start(s->fs.watchdog, s->helper);
    if (r == 0) {
        session_announce(s);
        return NULL;
    }
    if (r == -ENOENT) { /* the loop ends by itself; nothing failed */
        log_line(LARDER_LOG_INFO, "event=unmounted_before_ready");
        return NULL;
    }
    if (r != -ENOTSUP)
        (void)session_fail("the mount does not answer", strerror(-r));
    atomic_store(&s->failed, true);
    (void)kill(getpid(), SIGTERM);
    return NULL;
}

/* ---- from nothing to the loop, and back ---- */

/* The kernel forgets a directory's mode with each change in it and, where it checks permissions, asks for it before the next
 * name: two round trips of nine for a value put. A mount that only root may enter has nothing to check but what
 * ops_access and the kernel do all the same. */
static bool session_kernel_checks(const struct fs_options *o)
{
    return o->allow_other || o->allow_root || o->default_permissions || geteuid() != 0;
}

static bool session_options(const struct session *s, char **opts)
{
    const struct fs_options *o = s->fs.opts;
    _cleanup_free_ char *fsname = NULL;
    char depth[32];

    if (asprintf(&fsname, "fsname=%s", o->fsname ? o->fsname : o->store) < 0)
        return false;
    (void)snprintf(depth, sizeof(depth), "io_uring_q_depth=%d", SESSION_URING_DEPTH);
    return fuse_opt_add_opt_escaped(opts, fsname) == 0 && fuse_opt_add_opt(opts, "subtype=larder") == 0 &&
           fuse_opt_add_opt(opts, o->kernel.data + 1) == 0 &&
           (!session_kernel_checks(o) || fuse_opt_add_opt(opts, "default_permissions") == 0) &&
           (!o->core.read_only || fuse_opt_add_opt(opts, "ro") == 0) &&
           (!o->allow_other || fuse_opt_add_opt(opts, "allow_other") == 0) &&
           (!o->allow_root || o->allow_other || fuse_opt_add_opt(opts, "allow_root") == 0) &&
           (!o->debug || fuse_opt_add_opt(opts, "debug") == 0) &&
           (!s->io_uring_asked ||
            (fuse_opt_add_opt(opts, "io_uring") == 0 && fuse_opt_add_opt(opts, depth) == 0));
}

static int session_mount(struct session *s)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    const struct fuse_lowlevel_ops table = ops_table_of(&s->fs);
    _cleanup_free_ char *opts = NULL;

    if (!session_options(s, &opts) || fuse_opt_add_arg(&args, "mount.larder") < 0 ||
        fuse_opt_add_arg(&args, "-o") < 0 || fuse_opt_add_arg(&args, opts) < 0) {
        fuse_opt_free_args(&args);
        return session_fail("out of memory", NULL);
    }
    s->fs.session = fuse_session_new(&args, &table, sizeof(table), &s->fs);
    fuse_opt_free_args(&args);
    if (!s->fs.session)
        return session_fail("libfuse refused its options", "see above");
    if (fuse_session_mount(s->fs.session, s->fs.opts->mountpoint) < 0) {
        fuse_session_destroy(s->fs.session);
        s->fs.session = NULL;
        return session_fail(s->fs.opts->mountpoint, "could not be mounted, see above");
    }
    return 0;
}

static int session_open_engine(struct session *s)
{
    struct larder_callbacks callbacks = {.name_gone = notify_name_gone,
                                         .node_changed = notify_node_changed,
                                         .please_forget = notify_please_forget,
                                         .log = log_from_larder,
                                         .ctx = &s->fs};
    char err[LARDER_ERROR_BYTES] = "";
    int r = handles_new(&s->fs.handles);

    if (r == 0 && s->fs.opts->core.hits == LARDER_HITS_SAMPLED)
        r = sampled_new(&s->fs.sampled);
    if (r == 0 && s->fs.sampled && !s->fs.opts->core.read_only)
        r = writers_new(&s->fs, &s->fs.writers);
    if (r == 0)
        r = worker_new(&s->fs.worker);
    if (r == 0)
        r = notify_new(&s->fs, &s->fs.notify);
    if (r == 0)
        r = watchdog_new(&s->fs, s->fs.opts->watchdog_ns, &s->fs.watchdog);
    if (r < 0)
        return session_fail("out of memory", NULL);
    for (unsigned waited_ms = 0;; waited_ms += SESSION_BUSY_STEP_MS) {
        r = larder_open(s->fs.opts->store, &s->fs.opts->core, &callbacks, &s->fs.larder, err);
        if (r != -EBUSY || waited_ms >= SESSION_BUSY_WAIT_MS || mountpoint_has_source(s->fs.opts->store))
            break;
        session_sleep_ms(SESSION_BUSY_STEP_MS); /* umount(8) returns before its daemon has finished */
    }
    if (r < 0)
        return session_fail(*err ? err : s->fs.opts->store, *err ? NULL : strerror(-r));
    return 0;
}

/* What libfuse calls an error, and is none of this daemon's. ECONNABORTED: the mount was taken away by force while a thread
 * was taking a request; a moment later it would have been ENODEV, which libfuse knows. EOPNOTSUPP: the kernel's switch was
 * turned off between the agreement and the rings; kept by libfuse for the end, all was served over /dev/fuse. */
static int session_loop_result(const struct session *s, int r)
{
    if (r == -ECONNABORTED)
        return 0;
    if (r == -EOPNOTSUPP && !atomic_load(&s->fs.uring_seen))
        return 0;
    return r;
}

static int session_loop(struct session *s)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    int r;

    if (!config)
        return -ENOMEM;
    fuse_loop_cfg_set_clone_fd(config, 1);
    if (s->fs.writers) /* all may wait for room that comes with a FORGET, and one is to read that */
        fuse_loop_cfg_set_max_threads(config, SESSION_THREADS_SAMPLED);
    if (s->fs.opts->threads) {
        fuse_loop_cfg_set_max_threads(config, s->fs.opts->threads);
        fuse_loop_cfg_set_idle_threads(config, s->fs.opts->threads);
    }
    r = fuse_session_loop_mt(s->fs.session, config);
    fuse_loop_cfg_destroy(config);
    return session_loop_result(s, r);
}

static void session_set_signals(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN}, wake = {.sa_handler = session_no_op};
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL); /* inherited by all threads; one of them waits for these */
    (void)sigaction(SIGPIPE, &ignore, NULL);
    (void)sigaction(SIGXFSZ, &ignore, NULL); /* a file that may not grow is an errno (EFBIG), and no end of the mount */
    (void)sigaction(SIGUSR1, &wake, NULL);
}

/* The kernel and libfuse did not agree, and the ready thread waits for an answer that only the end of this
 * process brings. Nothing was changed in the store, so it is left as after a kill. */
__attribute__((noreturn)) static void session_die(struct session *s)
{
    (void)helper_detach(s->helper); /* else the dead mount is cleared by the next one */
    _exit(session_fail("the kernel and libfuse do not agree", "see above"));
}

/* What session_stop does for a signal, when the loop has ended by itself. */
static void session_end(struct session *s)
{
    (void)pthread_join(s->ready_thread, NULL);
    sdnotify_send("STOPPING=1\nSTATUS=writing what is left");
    atomic_store(&s->fs.stopping, true);
    watchdog_stopping(s->fs.watchdog);
    notify_stop(s->fs.notify);
    if (s->device[0])
        (void)helper_detach(s->helper); /* an aborted connection leaves a dead mount */
}

/* What is left of the rights once the mount is there and no thread is. */
static int session_confine(struct session *s)
{
    const struct fs_options *o = s->fs.opts;
    struct confine_plan plan = {
        .store = o->store,
        .sys_admin = !session_passthrough_obstacle(o, NULL) &&
                     confine_kernel_has_passthrough(fuse_session_fd(s->fs.session)),
        .io_uring = s->io_uring_asked,
        .datagrams = !o->foreground || sdnotify_is_open(),
    };
    enum confine_measure failed;
    char option[64];

    memcpy(plan.wanted, o->confine, sizeof(plan.wanted));
    if (confine(&plan, &s->confined, &failed) == 0)
        return 0;
    (void)snprintf(option, sizeof(option), "option %s=on", confine_name(failed));
    (void)helper_detach(s->helper);
    return session_fail(option, s->confined.measures[failed].reason);
}

/* Loop and threads; on return nothing runs but this thread, and the mount is gone. */
static int session_serve(struct session *s)
{
    int r;

    s->loop_thread = pthread_self();
    if (pthread_create(&s->ready_thread, NULL, session_ready_main, s) != 0)
        return session_fail("no thread to be had", strerror(EAGAIN));
    if (pthread_create(&s->signal_thread, NULL, session_signal_main, s) != 0)
        return session_fail("no thread to be had", strerror(EAGAIN)); /* exit ends the other */
    r = session_loop(s);
    atomic_store(&s->loop_ended, true);
    if (r != 0)
        log_line(LARDER_LOG_ERROR, "event=loop_failed error=%d", r);
    if (r != 0 && !atomic_load(&s->answered))
        session_die(s);
    (void)pthread_kill(s->signal_thread, SIGHUP); /* from sigwait */
    (void)pthread_join(s->signal_thread, NULL);
    if (!atomic_load(&s->fs.stopping)) /* unmounted or aborted: no signal */
        session_end(s);
    worker_drain(s->fs.worker);
    return r != 0 || atomic_load(&s->failed) ? SESSION_EXIT_FAILED : 0;
}

/* Watched like a request: on a device that does not answer it would never end. */
static int session_close_engine(struct session *s)
{
    struct watchdog_slot *watch =
        s->fs.watchdog ? watchdog_begin(s->fs.watchdog, "stop", (int)getpid(), mono_ns()) : NULL;
    int r;

    larder_forget_all(s->fs.larder);
    writers_free(s->fs.writers);
    sampled_free(s->fs.sampled);
    handle_free_all();
    r = larder_close(s->fs.larder);
    watchdog_end(watch);
    return r;
}

static void session_free(struct session *s)
{
    watchdog_free(s->fs.watchdog);
    notify_free(s->fs.notify);
    worker_free(s->fs.worker);
    handles_free(s->fs.handles);
    helper_free(s->helper);
    free(s);
}

int session_run(const struct fs_options *o, int ready_fd)
{
    struct session *s = calloc(1, sizeof(*s));
    struct timespec now;
    int code, r;

    if (!s)
        return session_fail("out of memory", NULL);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    s->fs.magic = FS_MAGIC;
    s->fs.opts = o;
    s->fs.confined = &s->confined;
    s->fs.uid = getuid();
    s->fs.gid = getgid();
    s->fs.start_wall_ns = (int64_t)now.tv_sec * (int64_t)NS_PER_S + now.tv_nsec;
    s->fs.passthrough.reason = "not agreed yet";
    s->ready_fd = ready_fd;
    session_set_signals();
    r = helper_start(o->mountpoint, &s->helper);
    code = r < 0 ? session_fail("no process to be had", strerror(-r)) : session_decide_uring(s);
    sdnotify_open();
    if (code == 0)
        code = session_open_engine(s);
    if (code == 0)
        code = session_mount(s);
    if (code == 0)
        code = session_confine(s);
    if (code == 0)
        code = session_serve(s);
    if (s->fs.session) /* its end was forgotten with the loop's; the threads of the rings look for it (reply.c) */
        fuse_session_exit(s->fs.session);
    if (s->fs.session)
        fuse_session_destroy(s->fs.session); /* closes /dev/fuse; the mount is off the tree already */
    r = s->fs.larder ? session_close_engine(s) : 0;
    if (r < 0) {
        log_line(LARDER_LOG_ERROR, "event=close_failed error=%d", -r);
        code = SESSION_EXIT_FAILED;
    } else if (code == 0) {
        log_line(LARDER_LOG_INFO, "event=stopped");
    }
    session_free(s);
    return code;
}
