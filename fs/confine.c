/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * confine: four measures, each for itself, each reported:
 *
 *   no_new_privs  nothing executed from here on gains rights; landlock and seccomp need it (or CAP_SYS_ADMIN)
 *   landlock      the file system is the store (files and directories made, read, written, removed), /dev/fuse (a
 *                 descriptor per thread), /dev/null, and a few files to read; TCP is refused, and signals to others
 *   drop_caps     no capability is left but CAP_SYS_ADMIN where passthrough needs it (FUSE_DEV_IOC_BACKING_OPEN);
 *                 uid 0 means nothing to execve any more, and the bounding set is empty
 *   seccomp       the system calls listed below; the rest fail
 *
 * What seccomp refuses fails with EPERM when it is on the list of what no part of larder ever does, else with ENOSYS:
 * a libc that tries a call newer than this file then does what it does on an older kernel. Nobody is killed: a cache
 * that dies because its libc was upgraded would be the worse failure. Only a system call of a foreign architecture
 * kills; no libc makes one. The kernel's audit log tells what was refused, at its own rate. clone3(2), whose flags a
 * filter cannot see, is refused without that by a filter of its own; libc then uses clone(2).
 *
 * io_uring (where the mount uses it) goes round the filter, but not round Landlock or the capabilities.
 *
 * In a sanitizer build Landlock and seccomp stay off: its run time opens and calls what nobody can list. Under
 * valgrind give -o landlock=off,seccomp=off.
 *
 * A core dump that the kernel would write to a file is refused by Landlock; one it pipes to a program is not.
 *
 * Relies on: the process has one thread. Capabilities and Landlock are a thread's own; threads made later inherit.
 * What may never happen: a measure reported that is not in force.
 */
#include "fs/confine.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/securebits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if HAVE_SECCOMP
#include <sched.h>
#include <seccomp.h>
#endif

#ifndef LARDER_SANITIZED
#define LARDER_SANITIZED 0
#endif

/* From linux/fuse.h, which may be older than the kernel. */
#define CONFINE_DEV_IOC_CLONE 0x8004e500u         /* _IOR(229, 0, uint32_t); fuse(4) */
#define CONFINE_DEV_IOC_BACKING_OPEN 0x4010e501u  /* _IOW(229, 1, struct fuse_backing_map) */
#define CONFINE_DEV_IOC_BACKING_CLOSE 0x4004e502u /* _IOW(229, 2, uint32_t) */

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char *const confine_names[] = {
    [CONFINE_NO_NEW_PRIVS] = "no_new_privs",
    [CONFINE_DROP_CAPS] = "drop_caps",
    [CONFINE_LANDLOCK] = "landlock",
    [CONFINE_SECCOMP] = "seccomp",
};

static int confine_say(char *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int confine_say(char *out, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vsnprintf(out, CONFINE_REASON_BYTES, format, args);
    va_end(args);
    return 0;
}

/* ---- no_new_privs ---- */

static int confine_no_new_privs(const struct confine_plan *plan, char *reason)
{
    (void)plan;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return confine_say(reason, "nothing it executes gains rights");
}

/* ---- capabilities ---- */

static int confine_caps_get(uint64_t *ret_permitted)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    *ret_permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
    return 0;
}

static int confine_caps_set(uint64_t kept)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {
        {.effective = (uint32_t)kept, .permitted = (uint32_t)kept},
        {.effective = (uint32_t)(kept >> 32), .permitted = (uint32_t)(kept >> 32)},
    };

    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

/* The bounding set and the meaning of uid 0 are for who may change them: root. For others there is nothing to gain
 * back, and no_new_privs stands before it. */
static int confine_caps_of_root(void)
{
    for (unsigned cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return -errno;
    if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
                                     SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) < 0)
        return -errno;
    return 0;
}

static int confine_drop_caps(const struct confine_plan *plan, char *reason)
{
    uint64_t permitted = 0, kept = 0;
    int r = confine_caps_get(&permitted);

    if (r < 0)
        return r;
    if (plan->sys_admin)
        kept = permitted & (uint64_t)1 << CAP_SYS_ADMIN;
    if (permitted & (uint64_t)1 << CAP_SETPCAP) {
        r = confine_caps_of_root();
        if (r < 0)
            return r;
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); /* EINVAL: a kernel without them */
    r = confine_caps_set(kept);
    if (r < 0)
        return r;
    return confine_say(reason, kept ? "all but CAP_SYS_ADMIN, which passthrough needs" : "none is left");
}

/* ---- landlock ---- */

/* From linux/landlock.h, which may be older than the kernel. */
#define CONFINE_FS_REFER (1ull << 13)     /* ABI 2 */
#define CONFINE_FS_TRUNCATE (1ull << 14)  /* ABI 3 */
#define CONFINE_FS_IOCTL_DEV (1ull << 15) /* ABI 5 */
#define CONFINE_NET_TCP 3ull              /* ABI 4: bind and connect */
#define CONFINE_SCOPE_ABSTRACT 1ull       /* ABI 6 */
#define CONFINE_SCOPE_SIGNAL 2ull
#define CONFINE_FS_ABI_1 ((1ull << 13) - 1)
#define CONFINE_FS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define CONFINE_FS_STORE                                                                            \
    (CONFINE_FS_READ | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |                \
     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR | \
     CONFINE_FS_TRUNCATE)
/* What makes no sense for a file, and is refused by the kernel in its rule. */
#define CONFINE_FS_FILE                                                                   \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | CONFINE_FS_TRUNCATE | \
     CONFINE_FS_IOCTL_DEV)

struct confine_ruleset {
    uint64_t fs, net, scoped;
};

/* Older kernels take only the beginning of the struct; what they do not know is 0 then. */
static int confine_ruleset_new(const struct confine_plan *plan, long abi, struct confine_ruleset *ret_rules)
{
    struct confine_ruleset rules = {.fs = CONFINE_FS_ABI_1};
    size_t bytes = sizeof(rules.fs);
    long fd;

    if (abi >= 2)
        rules.fs |= CONFINE_FS_REFER;
    if (abi >= 3)
        rules.fs |= CONFINE_FS_TRUNCATE;
    if (abi >= 4) {
        rules.net = CONFINE_NET_TCP;
        bytes += sizeof(rules.net);
    }
    if (abi >= 5)
        rules.fs |= CONFINE_FS_IOCTL_DEV;
    if (abi >= 6) {
        rules.scoped = CONFINE_SCOPE_SIGNAL | (plan->abstract_socket ? 0 : CONFINE_SCOPE_ABSTRACT);
        bytes += sizeof(rules.scoped);
    }
    fd = syscall(SYS_landlock_create_ruleset, &rules, bytes, 0);
    *ret_rules = rules;
    return fd < 0 ? -errno : (int)fd;
}

static int confine_allow(int ruleset, const struct confine_ruleset *rules, const char *path, uint64_t access)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = access & rules->fs};
    struct stat st;
    int r = 0;

    rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
    if (rule.parent_fd < 0)
        return -errno;
    if (fstat(rule.parent_fd, &st) == 0 && !S_ISDIR(st.st_mode))
        rule.allowed_access &= CONFINE_FS_FILE;
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        r = -errno;
    (void)close(rule.parent_fd);
    return r;
}

static int confine_allow_all(const struct confine_plan *plan, int ruleset,
                             const struct confine_ruleset *rules)
{
    /* What libc and libnuma look up late; all of them do without. */
    static const char *const readable[] = {"/etc/localtime", "/sys/devices/system/cpu",
                                           "/sys/devices/system/node", "/proc/sys/vm/overcommit_memory"};
    const uint64_t read_write = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE;
    int r = confine_allow(ruleset, rules, plan->store, CONFINE_FS_STORE);

    if (r == 0)
        r = confine_allow(ruleset, rules, "/dev/fuse", read_write | CONFINE_FS_IOCTL_DEV);
    if (r == 0)
        r = confine_allow(ruleset, rules, "/dev/null", read_write);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_COUNT(readable); i++)
        (void)confine_allow(ruleset, rules, readable[i], CONFINE_FS_READ); /* not there: not needed */
    return 0;
}

static int confine_landlock(const struct confine_plan *plan, char *reason)
{
    struct confine_ruleset rules;
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    int ruleset, r;

    if (abi < 0)
        return -errno;
    ruleset = confine_ruleset_new(plan, abi, &rules);
    if (ruleset < 0)
        return ruleset;
    r = confine_allow_all(plan, ruleset, &rules);
    if (r == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        r = -errno;
    (void)close(ruleset);
    return r < 0 ? r : confine_say(reason, "ABI %ld: the store, /dev/fuse and a few files to read", abi);
}

/* ---- seccomp ---- */

#if HAVE_SECCOMP

/* Names, not numbers: one that this architecture, or this libseccomp, does not have is passed over. */
static const char *const confine_calls[] = {
    /* memory */
    "brk", "madvise", "mbind", "membarrier", "mincore", "mmap", "mmap2", "mprotect", "mremap", "munmap",
    "mseal", "map_shadow_stack", "get_mempolicy", "set_mempolicy",
    /* threads and time */
    "clone3" /* see confine_load_quiet */, "exit", "exit_group", "futex", "futex_time64", "futex_waitv",
    "futex_wait", "futex_wake", "futex_requeue", "get_robust_list", "set_robust_list", "rseq", "sched_yield",
    "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler", "getcpu", "gettid",
    "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getpgrp",
    "arch_prctl", "set_thread_area", "set_tid_address", "clock_gettime", "clock_gettime64", "clock_getres",
    "clock_getres_time64", "clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "gettimeofday", "time",
    "times", "getrusage", "restart_syscall", "timerfd_create", "timerfd_settime", "timerfd_gettime",
    /* signals */
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_sigsuspend", "rt_sigpending", "sigaltstack",
    /* descriptors */
    "close", "close_range", "dup", "dup2", "dup3", "fcntl", "fcntl64", "lseek", "_llseek", "read", "readv",
    "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2", "pipe2", "poll",
    "ppoll", "ppoll_time64", "select", "pselect6", "pselect6_time64", "epoll_create1", "epoll_ctl",
    "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "splice", "tee", "vmsplice", "recvfrom",
    "recvmsg", "recv", "send", "sendto", "sendmsg", "shutdown", "getsockopt",
    /* files: what is in the store, and Landlock sees to it that it is nothing else */
    "open", "openat", "openat2", "stat", "stat64", "lstat", "lstat64", "fstat", "fstat64", "newfstatat",
    "fstatat64", "statx", "statfs", "statfs64", "fstatfs", "fstatfs64", "access", "faccessat", "faccessat2",
    "readlink", "readlinkat", "getcwd", "getdents", "getdents64", "ftruncate", "ftruncate64", "fallocate",
    "fadvise64", "fadvise64_64", "readahead", "fdatasync", "fsync", "sync_file_range", "syncfs", "flock",
    "mkdirat", "mkdir", "unlinkat", "unlink", "rmdir", "renameat", "renameat2", "rename", "copy_file_range",
    "umask",
    /* the machine */
    "uname", "capget", "sysinfo", "getrandom", "getrlimit", "ugetrlimit",
    /* the end of the helper */
    "wait4", "waitid"};

static const char *const confine_calls_uring[] = {"io_uring_setup", "io_uring_enter", "io_uring_register"};

/* No part of larder does these, so no libc will try another way: EPERM, as it would be without the rights. */
static const char *const confine_refused[] = {
    /* other programs and processes */
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev",
    "process_madvise", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kcmp", "tkill", "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    /* mounts and namespaces */
    "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "setns", "unshare",
    /* identity */
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
    "setuid32", "setgid32", "setreuid32", "setregid32", "setresuid32", "setresgid32", "setgroups32",
    /* the kernel, and what watches it */
    "capset", "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "bpf",
    "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark", "inotify_init", "inotify_init1",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon",
    "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "iopl", "ioperm", "modify_ldt", "personality",
    "settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex",
    "stime", "sethostname", "setdomainname", "setpriority", "sched_setscheduler", "sched_setattr",
    "sched_setparam", "migrate_pages", "move_pages", "add_key", "request_key", "keyctl", "lookup_dcookie",
    "name_to_handle_at", "open_by_handle_at", "memfd_create", "memfd_secret", "mlockall",
    /* connections */
    "bind", "listen", "accept", "accept4", "setsockopt", "socketcall",
    /* files of another kind, owner or mode */
    "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat", "chmod", "fchmod", "fchmodat", "fchmodat2",
    "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "removexattr",
    "lremovexattr", "fremovexattr", "chdir", "fchdir", "vhangup", "nfsservctl",
    /* memory shared with others */
    "msgget", "semget", "shmget", "shmat", "mq_open"};

#define CONFINE_SOCKET_TYPE_MASK 0xf  /* the rest are flags */
#define CONFINE_PR_SET_VMA 0x53564d41 /* names of mappings, by newer libcs */

/* 0 also when there is no such call here. */
static int confine_rule(scmp_filter_ctx ctx, uint32_t action, const char *name,
                        const struct scmp_arg_cmp *arg)
{
    int nr = seccomp_syscall_resolve_name(name), r;

    if (nr == __NR_SCMP_ERROR)
        return 0;
    r = seccomp_rule_add_array(ctx, action, nr, arg ? 1 : 0, arg);
    return r == -EDOM || r == -EEXIST ? 0 : r; /* EDOM: not of this architecture */
}

static int confine_rules(scmp_filter_ctx ctx, uint32_t action, const char *const *names, size_t count)
{
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++)
        r = confine_rule(ctx, action, names[i], NULL);
    return r;
}

/* One call, one argument. */
struct confine_argument {
    const char *call;
    uint32_t action;
    unsigned index;
    enum scmp_compare compare;
    scmp_datum_t a, b; /* b: of SCMP_CMP_MASKED_EQ, where a is the mask */
};

#if defined(__s390__)
#define CONFINE_CLONE_FLAGS 1u
#else
#define CONFINE_CLONE_FLAGS 0u
#endif

static int confine_rules_of(scmp_filter_ctx ctx, const struct confine_argument *rows, size_t count)
{
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++) {
        const struct scmp_arg_cmp argument = {
            .arg = rows[i].index, .op = rows[i].compare, .datum_a = rows[i].a, .datum_b = rows[i].b};

        r = confine_rule(ctx, rows[i].action, rows[i].call, &argument);
    }
    return r;
}

/* Those that are fine with some arguments only. */
static int confine_rules_by_argument(scmp_filter_ctx ctx)
{
    const uint32_t eperm = SCMP_ACT_ERRNO(EPERM), allow = SCMP_ACT_ALLOW;
    const scmp_datum_t self = (scmp_datum_t)getpid(), thread = CLONE_THREAD;
    const struct confine_argument rows[] = {
        {"clone", allow, CONFINE_CLONE_FLAGS, SCMP_CMP_MASKED_EQ, thread, thread},
        {"clone", eperm, CONFINE_CLONE_FLAGS, SCMP_CMP_MASKED_EQ, thread, 0},
        {"kill", allow, 0, SCMP_CMP_EQ, self, 0},
        {"kill", eperm, 0, SCMP_CMP_NE, self, 0},
        {"tgkill", allow, 0, SCMP_CMP_EQ, self, 0},
        {"tgkill", eperm, 0, SCMP_CMP_NE, self, 0},
        {"prctl", allow, 0, SCMP_CMP_EQ, PR_SET_NAME, 0},
        {"prctl", allow, 0, SCMP_CMP_EQ, PR_GET_NAME, 0},
        {"prctl", allow, 0, SCMP_CMP_EQ, CONFINE_PR_SET_VMA, 0},
        {"prlimit64", allow, 2, SCMP_CMP_EQ, 0, 0}, /* to read */
        {"prlimit64", eperm, 2, SCMP_CMP_NE, 0, 0},
        {"ioctl", allow, 1, SCMP_CMP_EQ, CONFINE_DEV_IOC_CLONE, 0},
        {"ioctl", allow, 1, SCMP_CMP_EQ, CONFINE_DEV_IOC_BACKING_OPEN, 0},
        {"ioctl", allow, 1, SCMP_CMP_EQ, CONFINE_DEV_IOC_BACKING_CLOSE, 0},
        {"ioctl", allow, 1, SCMP_CMP_EQ, TCGETS, 0}, /* stdio asks whether it is a terminal */
    };

    return confine_rules_of(ctx, rows, ARRAY_COUNT(rows));
}

static int confine_rules_for_sockets(scmp_filter_ctx ctx, bool datagrams)
{
    static const char *const all[] = {"socket", "socketpair", "connect"};
    const struct confine_argument other = {"socket", SCMP_ACT_ERRNO(EPERM), 0, SCMP_CMP_NE, AF_UNIX, 0};
    const struct scmp_arg_cmp datagram[] = {
        {.arg = 0, .op = SCMP_CMP_EQ, .datum_a = AF_UNIX, .datum_b = 0},
        {.arg = 1, .op = SCMP_CMP_MASKED_EQ, .datum_a = CONFINE_SOCKET_TYPE_MASK, .datum_b = SOCK_DGRAM},
    };
    int r;

    if (!datagrams)
        return confine_rules(ctx, SCMP_ACT_ERRNO(EPERM), all, ARRAY_COUNT(all));
    r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), ARRAY_COUNT(datagram), datagram);
    if (r == 0)
        r = confine_rules_of(ctx, &other, 1);
    return r < 0 ? r : confine_rule(ctx, SCMP_ACT_ALLOW, "connect", NULL);
}

static int confine_load(scmp_filter_ctx ctx)
{
    /* No thread but this one is expected; one that a library made is taken along. The filter does not set
     * no_new_privs: that is a measure of its own. */
    int r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);

    if (r == 0)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
    if (r == 0)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_API_SYSRAWRC, 1); /* what the kernel said, not ECANCELED */
    if (r == 0)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    return r < 0 ? r : seccomp_load(ctx);
}

/* Of two filters the stricter answer counts: this one refuses clone3 without a line in the audit log each time. */
static int confine_load_quiet(void)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
    int r = ctx ? confine_rule(ctx, SCMP_ACT_ERRNO(ENOSYS), "clone3", NULL) : -ENOMEM;

    if (r == 0)
        r = confine_load(ctx);
    seccomp_release(ctx);
    return r;
}

static int confine_load_main(const struct confine_plan *plan)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    int r = ctx ? 0 : -ENOMEM;

    if (r == 0)
        r = confine_rules(ctx, SCMP_ACT_ALLOW, confine_calls, ARRAY_COUNT(confine_calls));
    if (r == 0)
        r = confine_rules(ctx, plan->io_uring ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(EPERM), confine_calls_uring,
                          ARRAY_COUNT(confine_calls_uring));
    if (r == 0)
        r = confine_rules_by_argument(ctx);
    if (r == 0)
        r = confine_rules_for_sockets(ctx, plan->datagrams);
    if (r == 0)
        r = confine_rules(ctx, SCMP_ACT_ERRNO(EPERM), confine_refused, ARRAY_COUNT(confine_refused));
    if (r == 0)
        (void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_LOG, 1); /* a kernel before 4.14 cannot, and need not */
    if (r == 0)
        r = confine_load(ctx);
    seccomp_release(ctx);
    return r;
}

static int confine_seccomp(const struct confine_plan *plan, char *reason)
{
    int r = confine_load_quiet();

    if (r == 0)
        r = confine_load_main(plan);
    return r < 0 ? r
                 : confine_say(reason, "%zu system calls, those with limits not counted; the others fail",
                               ARRAY_COUNT(confine_calls) +
                                   (plan->io_uring ? ARRAY_COUNT(confine_calls_uring) : 0));
}

#else

static int confine_seccomp(const struct confine_plan *plan, char *reason)
{
    (void)plan;
    (void)confine_say(reason, "built without libseccomp");
    return -EOPNOTSUPP;
}

#endif

/* ---- all of it ---- */

/* What libc would load or read only when it is too late: libgcc_s, without which pthread_cancel aborts the process,
 * and the time zone. */
static void confine_preload(void)
{
    (void)dlopen("libgcc_s.so.1",
                 RTLD_NOW | RTLD_GLOBAL); /* never closed; not there: a libc that needs none */
    tzset();
}

static const char *confine_advice(enum confine_measure measure, int error)
{
    if (error == ENOSYS || error == EOPNOTSUPP)
        return measure == CONFINE_LANDLOCK
                   ? "the kernel has none, or not enabled (Linux 5.13, lsm=landlock,...)"
                   : "the kernel has none";
    if ((error == EPERM || error == EACCES) && (measure == CONFINE_LANDLOCK || measure == CONFINE_SECCOMP))
        return "it needs no_new_privs";
    return strerror(error);
}

static void confine_measure_run(const struct confine_plan *plan, enum confine_measure measure,
                                struct confine_report *report)
{
    static int (*const run[])(const struct confine_plan *, char *) = {
        [CONFINE_NO_NEW_PRIVS] = confine_no_new_privs,
        [CONFINE_DROP_CAPS] = confine_drop_caps,
        [CONFINE_LANDLOCK] = confine_landlock,
        [CONFINE_SECCOMP] = confine_seccomp,
    };
    char *reason = report->measures[measure].reason;
    int r;

    if (plan->wanted[measure] == TRI_OFF) {
        (void)confine_say(reason, "switched off by option");
        return;
    }
    if (LARDER_SANITIZED && (measure == CONFINE_LANDLOCK || measure == CONFINE_SECCOMP)) {
        (void)confine_say(reason, "not in a sanitizer build");
        return;
    }
    r = run[measure](plan, reason);
    report->measures[measure].active = r == 0;
    if (r < 0 && !reason[0])
        (void)confine_say(reason, "%s", confine_advice(measure, -r));
}

int confine(const struct confine_plan *plan, struct confine_report *ret_report,
            enum confine_measure *ret_failed)
{
    *ret_report = (struct confine_report){0};
    confine_preload();
    for (int i = 0; i < CONFINE_MEASURES; i++) {
        confine_measure_run(plan, (enum confine_measure)i, ret_report);
        if (plan->wanted[i] == TRI_ON && !ret_report->measures[i].active) {
            *ret_failed = (enum confine_measure)i;
            return -EPERM;
        }
    }
    return 0;
}

bool confine_kernel_has_passthrough(int device_fd)
{
    struct {
        int32_t fd;
        uint32_t flags;
        uint64_t padding;
    } none = {.fd = -1};
    _Static_assert(sizeof(none) == 16, "struct fuse_backing_map");

    return ioctl(device_fd, CONFINE_DEV_IOC_BACKING_OPEN, &none) >= 0 ||
           (errno != ENOTTY && errno != EOPNOTSUPP && errno != ENOSYS);
}

const char *confine_name(enum confine_measure measure)
{
    assert(measure < CONFINE_MEASURES);
    return confine_names[measure];
}
