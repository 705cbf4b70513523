/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Goal: what fs/confine.c says is in force is in force: what must fail fails, with the right error, and what the
 * daemon needs works. Method: each test confines a child of its own, as root and as an ordinary user, and tries.
 */
#include "fs/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define NOBODY 65534
#define CALL_NOBODY_HAS 1000 /* no kernel has a system call of that number */
#define CAP_SYS_ADMIN_LINE "CapPrm:\t0000000000200000"
#define CAP_NONE_LINE "CapPrm:\t0000000000000000"

static char base[] = "/tmp/larder-confine-XXXXXX", store[64], outside[64], link_out[64];

/* A call that must fail, and how. */
#define MUST_FAIL(error, call)                                                                          \
    do {                                                                                                \
        errno = 0;                                                                                      \
        if ((long)(call) != -1 || errno != (error))                                                     \
            CHECK_FAIL("%s: %s, not %s", #call, errno ? strerror(errno) : "no error", strerror(error)); \
    } while (0)

static const struct confine_plan everything = {
    .wanted = {TRI_ON, TRI_ON, TRI_ON, TRI_ON},
    .store = store,
};
static const struct confine_plan nothing = {
    .wanted = {TRI_OFF, TRI_OFF, TRI_OFF, TRI_OFF},
    .store = store,
};

/* In a child: confined so; false when it cannot be here, which must not be so where everything has to be there. */
static bool confined(const struct confine_plan *plan)
{
    struct confine_report report;
    enum confine_measure failed;
    int r = confine(plan, &report, &failed);

    if (r == 0)
        return true;
    CHECK_EQ(r, -EPERM);
    (void)printf("not tried: %s: %s\n", confine_name(failed), report.measures[failed].reason);
    if (!LARDER_SANITIZED && getenv("LARDER_REQUIRE_FUSE"))
        CHECK_FAIL("%s is missing (LARDER_REQUIRE_FUSE=1)", confine_name(failed));
    return false;
}

static void in_child(uid_t uid, const struct confine_plan *plan, void (*attempt)(void))
{
    int status;
    pid_t pid;

    (void)fflush(NULL);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(30);
        if (uid != geteuid())
            CHECK(setresuid(uid, uid, uid) == 0);
        if (confined(plan))
            attempt();
        (void)fflush(NULL);
        _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
}

/* As an ordinary user, and as root where we are root. */
static void in_children(const struct confine_plan *plan, void (*attempt)(void))
{
    in_child(geteuid() == 0 ? NOBODY : geteuid(), plan, attempt);
    if (geteuid() == 0)
        in_child(0, plan, attempt);
}

static struct confine_plan only(enum confine_measure measure)
{
    struct confine_plan plan = nothing;

    plan.wanted[measure] = TRI_ON;
    if (measure == CONFINE_LANDLOCK || measure == CONFINE_SECCOMP)
        plan.wanted[CONFINE_NO_NEW_PRIVS] = TRI_ON;
    return plan;
}

/* ---- files ---- */

static void try_files_outside(void)
{
    char path[128];

    MUST_FAIL(EACCES, open("/etc/passwd", O_RDONLY));
    MUST_FAIL(EACCES, open("/", O_RDONLY | O_DIRECTORY));
    MUST_FAIL(EACCES, open("/proc/self/status", O_RDONLY));
    MUST_FAIL(EACCES, open(outside, O_RDONLY));
    MUST_FAIL(EACCES, open(outside, O_WRONLY));
    MUST_FAIL(EACCES, open(outside, O_RDWR | O_TRUNC));
    MUST_FAIL(EACCES, open(link_out, O_RDONLY)); /* a symbolic link planted in the store */
    (void)snprintf(path, sizeof(path), "%s/../outside", store);
    MUST_FAIL(EACCES, open(path, O_RDONLY));
    (void)snprintf(path, sizeof(path), "%s/new", base);
    MUST_FAIL(EACCES, open(path, O_CREAT | O_RDWR, 0600));
    MUST_FAIL(EACCES, mkdir(path, 0700));
    MUST_FAIL(EACCES, unlink(outside));
    (void)snprintf(path, sizeof(path), "%s/moved", store);
    errno = 0;
    CHECK(rename(outside, path) == -1 && (errno == EACCES || errno == EXDEV));
}

static void try_files_inside(void)
{
    int dir = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd;
    char buf[4];

    CHECK(dir >= 0);
    CHECK(mkdirat(dir, "sub", 0700) == 0);
    fd = openat(dir, "sub/file", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(pwrite(fd, "abcd", 4, 0) == 4);
    CHECK(ftruncate(fd, 8192) == 0);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096) == 0);
    CHECK(fdatasync(fd) == 0 && fsync(dir) == 0);
    CHECK(pread(fd, buf, 4, 0) == 4 && memcmp(buf, "abcd", 4) == 0);
    (void)close(fd);
    CHECK(renameat(dir, "sub/file", dir, "sub/other") == 0);
    fd = openat(dir, "sub/other", O_RDWR | O_TRUNC | O_CLOEXEC);
    CHECK(fd >= 0);
    (void)close(fd);
    CHECK(unlinkat(dir, "sub/other", 0) == 0);
    CHECK(unlinkat(dir, "sub", AT_REMOVEDIR) == 0);
    (void)close(dir);
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    (void)close(fd);
}

static void landlock_leaves_the_store_alone_to_be_seen(void)
{
    struct confine_plan plan = only(CONFINE_LANDLOCK);

    in_children(&plan, try_files_outside);
    in_children(&plan, try_files_inside);
    in_children(&everything, try_files_outside);
    in_children(&everything, try_files_inside);
}

static void try_landlock_besides_files(void)
{
    MUST_FAIL(EPERM, mount("none", base, "tmpfs", 0, NULL));
    MUST_FAIL(EPERM, umount2("/proc", MNT_DETACH | UMOUNT_NOFOLLOW));
    MUST_FAIL(EPERM, ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
}

static void landlock_refuses_mounts_and_debugging(void)
{
    struct confine_plan plan = only(CONFINE_LANDLOCK);

    in_children(&plan, try_landlock_besides_files);
}

/* ---- system calls ---- */

static void try_what_no_part_does(void)
{
    char *const argv[] = {(char *)"true", NULL};
    struct rlimit limit = {.rlim_cur = 16, .rlim_max = 16};

    MUST_FAIL(EPERM, execve("/bin/true", argv, argv + 1));
    MUST_FAIL(EPERM, fork());
    MUST_FAIL(EPERM, vfork());
    MUST_FAIL(EPERM, ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    MUST_FAIL(EPERM, mount("none", base, "tmpfs", 0, NULL));
    MUST_FAIL(EPERM, umount2("/proc", MNT_DETACH | UMOUNT_NOFOLLOW));
    MUST_FAIL(EPERM, unshare(CLONE_NEWUSER));
    MUST_FAIL(EPERM, chroot(base));
    MUST_FAIL(EPERM, syscall(SYS_setuid, 1));
    MUST_FAIL(EPERM, syscall(SYS_setgroups, 0, NULL));
    MUST_FAIL(EPERM, chown(store, 1, 1));
    MUST_FAIL(EPERM, chmod(store, 0777));
    MUST_FAIL(EPERM, mknod(link_out, S_IFCHR, 0));
    MUST_FAIL(EPERM, link(link_out, outside));
    MUST_FAIL(EPERM, symlink("x", outside));
    MUST_FAIL(EPERM, kill(getppid(), 0));
    MUST_FAIL(EPERM, setrlimit(RLIMIT_NOFILE, &limit));
    MUST_FAIL(EPERM, memfd_create("x", 0));
    MUST_FAIL(EPERM, syscall(SYS_bpf, 0, NULL, 0));
    MUST_FAIL(EPERM, syscall(SYS_io_uring_setup, 1, NULL));
    MUST_FAIL(EPERM, syscall(SYS_seccomp, 0, 0, NULL));
}

static void try_sockets(void)
{
    int pair[2];

    MUST_FAIL(EPERM, socket(AF_INET, SOCK_STREAM, 0));
    MUST_FAIL(EPERM, socket(AF_INET6, SOCK_DGRAM, 0));
    MUST_FAIL(EPERM, socket(AF_NETLINK, SOCK_RAW, 0));
    MUST_FAIL(EPERM, socket(AF_UNIX, SOCK_STREAM, 0));
    MUST_FAIL(EPERM, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
}

/* A libc that tries something new must be told what an older kernel would say. */
static void try_what_is_new(void)
{
    MUST_FAIL(ENOSYS, syscall(CALL_NOBODY_HAS));
    MUST_FAIL(ENOSYS, syscall(SYS_clone3, NULL, 0));
}

static void seccomp_refuses_what_no_part_of_larder_does(void)
{
    struct confine_plan plan = only(CONFINE_SECCOMP);

    in_children(&plan, try_what_no_part_does);
    in_children(&plan, try_sockets);
    in_children(&plan, try_what_is_new);
    in_children(&everything, try_what_no_part_does);
}

static void try_datagrams(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/nobody/listens"};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    MUST_FAIL(ENOENT, connect(fd, (const struct sockaddr *)&address, sizeof(address)));
    MUST_FAIL(EPERM, socket(AF_INET, SOCK_DGRAM, 0));
    MUST_FAIL(EPERM, bind(fd, (const struct sockaddr *)&address, sizeof(address)));
}

static void syslog_and_notify_keep_their_datagrams(void)
{
    struct confine_plan plan = everything;

    plan.datagrams = true;
    in_children(&plan, try_datagrams);
}

static void try_uring(void)
{
    MUST_FAIL(EFAULT, syscall(SYS_io_uring_setup, 1, NULL)); /* it came as far as the kernel's own check */
}

static void io_uring_is_there_when_asked_for(void)
{
    struct confine_plan plan = only(CONFINE_SECCOMP);

    plan.io_uring = true;
    in_children(&plan, try_uring);
}

static void *thread_main(void *arg)
{
    for (;;)
        (void)pause();
    return arg;
}

/* pthread_cancel loads libgcc_s late, and aborts the process when it cannot. */
static void try_threads(void)
{
    pthread_t thread;
    void *result;

    CHECK_EQ(pthread_create(&thread, NULL, thread_main, NULL), 0);
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(kill(getpid(), 0) == 0);
    CHECK(prctl(PR_SET_NAME, "renamed") == 0);
}

static void threads_start_and_end(void)
{
    in_children(&everything, try_threads);
}

/* ---- capabilities and privileges ---- */

static bool status_has(const char *line)
{
    static char text[8192];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n;

    CHECK(fd >= 0);
    n = read(fd, text, sizeof(text) - 1);
    (void)close(fd);
    CHECK(n > 0);
    text[n] = '\0';
    return strstr(text, line) != NULL;
}

static void try_privileged(void)
{
    MUST_FAIL(EPERM, syscall(SYS_setuid, 1));
    MUST_FAIL(EPERM, chroot(base));
    MUST_FAIL(EPERM, mount("none", base, "tmpfs", 0, NULL));
    CHECK(status_has(CAP_NONE_LINE));
    CHECK(status_has("CapEff:\t0000000000000000"));
    CHECK(status_has("CapInh:\t0000000000000000"));
    CHECK(status_has("CapAmb:\t0000000000000000"));
    CHECK(geteuid() != 0 || status_has("CapBnd:\t0000000000000000"));
}

/* uid 0 executes a program: without more it would have everything back. */
static void try_execute(void)
{
    (void)execl("/bin/grep", "grep", "-q", CAP_NONE_LINE, "/proc/self/status", (char *)NULL);
    CHECK_FAIL("execl: %s", strerror(errno));
}

static void no_capability_is_left(void)
{
    struct confine_plan plan = only(CONFINE_DROP_CAPS);

    in_children(&plan, try_privileged);
    in_children(&plan, try_execute);
}

static void try_sys_admin_only(void)
{
    CHECK(status_has(geteuid() == 0 ? CAP_SYS_ADMIN_LINE : CAP_NONE_LINE));
    MUST_FAIL(EPERM, syscall(SYS_setuid, 1));
}

static void passthrough_keeps_the_one_it_needs(void)
{
    struct confine_plan plan = only(CONFINE_DROP_CAPS);

    plan.sys_admin = true;
    in_children(&plan, try_sys_admin_only);
}

static void try_no_new_privs(void)
{
    CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

static void no_new_privileges(void)
{
    struct confine_plan plan = only(CONFINE_NO_NEW_PRIVS);

    in_children(&plan, try_no_new_privs);
}

/* ---- what cannot be ---- */

static void try_nothing(void)
{
    CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
    CHECK(open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0);
}

static void what_is_switched_off_is_left_out(void)
{
    in_children(&nothing, try_nothing);
}

/* Without no_new_privs an ordinary user gets neither; that is reported when it may be so, an error when it may not. */
static void report_what_cannot_be(void)
{
    struct confine_plan plan = nothing;
    struct confine_report report;
    enum confine_measure failed = CONFINE_MEASURES;

    plan.wanted[CONFINE_LANDLOCK] = plan.wanted[CONFINE_SECCOMP] = TRI_AUTO;
    CHECK_EQ(confine(&plan, &report, &failed), 0);
    CHECK(!report.measures[CONFINE_LANDLOCK].active && report.measures[CONFINE_LANDLOCK].reason[0]);
    CHECK(!report.measures[CONFINE_SECCOMP].active && report.measures[CONFINE_SECCOMP].reason[0]);
    CHECK(open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0);
    plan.wanted[CONFINE_SECCOMP] = TRI_ON;
    CHECK_EQ(confine(&plan, &report, &failed), -EPERM);
    CHECK_EQ(failed, CONFINE_SECCOMP);
}

static void what_cannot_be_is_reported_or_an_error(void)
{
    in_child(geteuid() == 0 ? NOBODY : geteuid(), &nothing, report_what_cannot_be);
}

static void make_files(void)
{
    int fd;

    CHECK(mkdtemp(base) != NULL);
    CHECK(chmod(base, 0777) == 0);
    (void)snprintf(store, sizeof(store), "%s/store", base);
    (void)snprintf(outside, sizeof(outside), "%s/outside", base);
    (void)snprintf(link_out, sizeof(link_out), "%s/link", store);
    CHECK(mkdir(store, 0777) == 0 && chmod(store, 0777) == 0);
    fd = open(outside, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    CHECK(fd >= 0 && fchmod(fd, 0666) == 0);
    (void)close(fd);
    CHECK(symlink(outside, link_out) == 0);
}

static void remove_files(void)
{
    (void)unlink(link_out);
    (void)unlink(outside);
    (void)rmdir(store);
    (void)rmdir(base);
}

int main(void)
{
    make_files();
    (void)atexit(remove_files);
    RUN(landlock_leaves_the_store_alone_to_be_seen);
    RUN(landlock_refuses_mounts_and_debugging);
    RUN(seccomp_refuses_what_no_part_of_larder_does);
    RUN(syslog_and_notify_keep_their_datagrams);
    RUN(io_uring_is_there_when_asked_for);
    RUN(threads_start_and_end);
    RUN(no_capability_is_left);
    RUN(passthrough_keeps_the_one_it_needs);
    RUN(no_new_privileges);
    RUN(what_is_switched_off_is_left_out);
    RUN(what_cannot_be_is_reported_or_an_error);
    return 0;
}
