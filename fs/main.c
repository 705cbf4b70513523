/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mount.larder: argv → options → checks → (background) → session. No file operations here. Exit: 0 mounted
 * (background) or stopped in order (foreground); 1 it could not be done; 2 the command line is wrong. SIGKILL or SIGABRT: its
 * own watchdog, after a line in the log (fs/watchdog.c).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/fs.h"
#include "fs/log.h"
#include "fs/mountpoint.h"
#include "fs/options.h"
#include "fs/session.h"

#define MAIN_EXIT_FAILED 1
#define MAIN_EXIT_USAGE 2

_Static_assert(OPTIONS_ERROR_BYTES >= MOUNTPOINT_ERROR_BYTES, "one buffer for both");

/* Every big value that is open is a descriptor. */
static void main_raise_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit); /* then fewer must do */
}

/* In the child: the descriptor to report on. In the parent: does not return. */
static int main_go_background(int *ret_ready_fd)
{
    int fds[2];
    char answer = 0;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    (void)fflush(NULL);
    pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        (void)close(fds[0]);
        (void)setsid();
        *ret_ready_fd = fds[1];
        return 0;
    }
    (void)close(fds[1]);
    while (read(fds[0], &answer, 1) < 0 && errno == EINTR)
        ;
    /* The child has said why not, if not. */
    _exit(answer == 'R' ? 0 : MAIN_EXIT_FAILED);
}

static int main_mount(struct fs_options *o)
{
    char err[OPTIONS_ERROR_BYTES] = "";
    int ready_fd = -1, r;

    r = options_resolve(o, err);
    if (r == 0)
        r = mountpoint_check_machine(o, err);
    if (r == 0)
        r = mountpoint_prepare(o, err);
    if (r < 0) {
        (void)fprintf(stderr, "mount.larder: %s\n", err);
        return MAIN_EXIT_FAILED;
    }
    r = o->foreground ? 0 : main_go_background(&ready_fd);
    if (r < 0) {
        (void)fprintf(stderr, "mount.larder: cannot go to the background: %s\n", strerror(-r));
        return MAIN_EXIT_FAILED;
    }
    main_raise_descriptors();
    (void)umask(0);
    if (chdir("/") < 0)
        return MAIN_EXIT_FAILED; /* there is no such system */
    return session_run(o, ready_fd);
}

int main(int argc, char **argv)
{
    struct fs_options o;
    char err[OPTIONS_ERROR_BYTES] = "";
    int code = 0;

    options_init(&o);
    if (options_parse(&o, argc, argv, err) < 0) {
        (void)fprintf(stderr, "mount.larder: %s\n", err);
        options_free(&o);
        return MAIN_EXIT_USAGE;
    }
    if (o.action == OPTIONS_HELP) {
        options_print_help();
    } else if (o.action == OPTIONS_VERSION) {
        (void)printf("mount.larder %s, libfuse %s\n", LARDER_VERSION, fuse_pkgversion());
    } else {
        log_set_level(o.log_level);
        log_take_over_libfuse();
        code = main_mount(&o);
    }
    options_free(&o);
    return code;
}
