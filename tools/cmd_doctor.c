/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder doctor: what this machine offers a larder, and what to do about each lack. Looks and tries, changes nothing:
 * the one file it makes (to learn whether holes can be punched) never has a name.
 */
#include "tools/common.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <time.h>

#define URING_PARAMETER "/sys/module/fuse/parameters/enable_uring"
#define DESCRIPTORS_WANTED 4096u
#define CAP_SYS_ADMIN_BIT 21u
#define REQUEST_PAGES "/proc/sys/fs/fuse/max_pages_limit"
#define REQUEST_PAGES_WANTED 256u
#define SYNC_SLOW_NS (NS_PER_S / 20)
#define SYNC_TRIES 3
#define FINDINGS_MAX 48u

static int doctor_run(const struct command *command, int argc, char **argv);

const struct command command_doctor = {
    .name = "doctor",
    .arguments = "[--json] [STORE | MOUNTPOINT]",
    .summary = "say what this machine offers, and what to do about each lack",
    .help =
        "Of the machine, and of the mount or store that is named, or of the mount one is in.\n"
        "ok: as it should be. note: worth knowing. slow: works, but could be faster. fail: a larder cannot work so.\n"
        "Exit code 1 if anything fails.\n\n"
        "  --json   an object\n",
    .run = doctor_run,
};

enum verdict { VERDICT_OK, VERDICT_NOTE, VERDICT_SLOW, VERDICT_FAIL };

struct finding {
    enum verdict verdict;
    const char *name;
    char value[512], advice[512];
};

struct doctor {
    struct finding findings[FINDINGS_MAX];
    size_t count;
    unsigned kernel_major, kernel_minor, libfuse_major, libfuse_minor;
    char *mount_program; /* owned */
};

static struct finding *find_say(struct doctor *d, enum verdict verdict, const char *name, const char *format,
                                ...) __attribute__((format(printf, 4, 5)));
static struct finding *find_say(struct doctor *d, enum verdict verdict, const char *name, const char *format,
                                ...)
{
    struct finding *f = &d->findings[d->count < FINDINGS_MAX ? d->count++ : FINDINGS_MAX - 1];
    va_list args;

    *f = (struct finding){.verdict = verdict, .name = name};
    va_start(args, format);
    (void)vsnprintf(f->value, sizeof(f->value), format, args);
    va_end(args);
    return f;
}

static void advise(struct finding *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void advise(struct finding *f, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vsnprintf(f->advice, sizeof(f->advice), format, args);
    va_end(args);
}

static bool at_least(unsigned major, unsigned minor, unsigned wanted_major, unsigned wanted_minor)
{
    return major > wanted_major || (major == wanted_major && minor >= wanted_minor);
}

/* ---- the machine ---- */

static void look_at_kernel(struct doctor *d)
{
    struct utsname uts;

    if (uname(&uts) < 0 || sscanf(uts.release, "%u.%u", &d->kernel_major, &d->kernel_minor) != 2) {
        (void)find_say(d, VERDICT_NOTE, "kernel", "unknown");
        return;
    }
    if (at_least(d->kernel_major, d->kernel_minor, 5, 4))
        (void)find_say(d, VERDICT_OK, "kernel", "%s %s", uts.sysname, uts.release);
    else
        advise(find_say(d, VERDICT_FAIL, "kernel", "%s %s", uts.sysname, uts.release),
               "larder needs Linux 5.4 or newer");
}

static void look_at_device(struct doctor *d)
{
    _cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (fd >= 0)
        (void)find_say(d, VERDICT_OK, "/dev/fuse", "can be opened");
    else if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
        advise(
            find_say(d, VERDICT_FAIL, "/dev/fuse", "missing"),
            "load the module (root: modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN");
    else
        advise(find_say(d, VERDICT_FAIL, "/dev/fuse", "cannot be opened: %s", strerror(errno)),
               "root: chmod 0666 /dev/fuse");
}

static void look_at_fusermount(struct doctor *d)
{
    _cleanup_free_ char *path = find_program("fusermount3");
    bool is_root = geteuid() == 0;
    struct stat st;

    if (!path || stat(path, &st) < 0)
        advise(find_say(d, is_root ? VERDICT_NOTE : VERDICT_FAIL, "fusermount3", "not found"),
               "users other than root mount by it; root: apt-get install fuse3");
    else if (!(st.st_mode & S_ISUID) || st.st_uid != 0)
        advise(find_say(d, is_root ? VERDICT_NOTE : VERDICT_FAIL, "fusermount3", "%s, not setuid root", path),
               "users other than root cannot mount; root: chown root %s && chmod u+s %s", path, path);
    else
        (void)find_say(d, VERDICT_OK, "fusermount3", "%s, setuid root", path);
}

static void look_at_fuse_conf(struct doctor *d)
{
    _cleanup_free_ char *text = NULL;
    char *rest = NULL;
    bool allowed = false;

    if (read_text("/etc/fuse.conf", &text) == 0)
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
            allowed |= strncmp(line + strspn(line, " \t"), "user_allow_other", 16) == 0;
    if (allowed)
        (void)find_say(d, VERDICT_OK, "allow_other", "for all users (user_allow_other in /etc/fuse.conf)");
    else
        advise(
            find_say(d, VERDICT_NOTE, "allow_other", "for root only"),
            "if other users are to share a cache with others: the line user_allow_other in /etc/fuse.conf");
}

static void look_at_program(struct doctor *d)
{
    _cleanup_free_ char *line = NULL;
    char quoted[4200];
    size_t line_bytes = 0;
    const char *version;
    FILE *f;

    if (find_mount_program(&d->mount_program) < 0) {
        d->mount_program = NULL;
        advise(
            find_say(d, VERDICT_FAIL, "mount.larder", "not found"),
            "install it beside larder or in sbin; it is built when libfuse 3.17 or newer is there (packaging/libfuse)");
        return;
    }
    (void)snprintf(quoted, sizeof(quoted), "'%s' -V", d->mount_program);
    f = strchr(d->mount_program, '\'') ? NULL : popen(quoted, "re");
    if (f && getline(&line, &line_bytes, f) > 0)
        line[strcspn(line, "\n")] = '\0';
    if (f)
        (void)pclose(f);
    version = line ? strstr(line, "libfuse ") : NULL;
    if (!version || sscanf(version, "libfuse %u.%u", &d->libfuse_major, &d->libfuse_minor) != 2)
        advise(find_say(d, VERDICT_FAIL, "mount.larder", "%s does not run", d->mount_program),
               "run it by hand: %s -V", d->mount_program);
    else
        (void)find_say(d, VERDICT_OK, "mount.larder", "%s: %s", d->mount_program, line);
}

static void look_at_libfuse(struct doctor *d)
{
    unsigned major = d->libfuse_major, minor = d->libfuse_minor;

    if (major == 0)
        return; /* look_at_program said why */
    if (at_least(major, minor, 3, 18))
        (void)find_say(d, VERDICT_OK, "libfuse", "%u.%u", major, minor);
    else
        advise(find_say(d, VERDICT_SLOW, "libfuse", "%u.%u has no io_uring", major, minor),
               "build mount.larder with libfuse 3.18 or newer: packaging/libfuse");
}

static void look_at_uring(struct doctor *d)
{
    _cleanup_free_ char *text = NULL;
    bool libfuse = at_least(d->libfuse_major, d->libfuse_minor, 3, 18);

    if (!at_least(d->kernel_major, d->kernel_minor, 6, 14) || read_text(URING_PARAMETER, &text) < 0)
        advise(find_say(d, VERDICT_SLOW, "io_uring", "not offered by this kernel"),
               "Linux 6.14 or newer with CONFIG_FUSE_IO_URING; requests cost 2 to 5 times as much without");
    else if (text[0] != 'Y' && text[0] != '1')
        advise(find_say(d, VERDICT_SLOW, "io_uring", "switched off"),
               "root: echo Y > " URING_PARAMETER
               "; to keep it: echo 'options fuse enable_uring=1' > /etc/modprobe.d/fuse.conf; then "
               "mount again");
    else if (!libfuse)
        advise(find_say(d, VERDICT_SLOW, "io_uring", "on in the kernel, but mount.larder has libfuse %u.%u",
                        d->libfuse_major, d->libfuse_minor),
               "build with libfuse 3.18 or newer: packaging/libfuse");
    else
        (void)find_say(d, VERDICT_OK, "io_uring", "on in the kernel, libfuse is new enough");
}

static bool has_sys_admin(void)
{
    _cleanup_free_ char *text = NULL;
    unsigned long long effective = 0;
    const char *line;

    if (read_text("/proc/self/status", &text) < 0)
        return geteuid() == 0;
    line = strstr(text, "CapEff:");
    return line && sscanf(line, "CapEff: %llx", &effective) == 1 && (effective >> CAP_SYS_ADMIN_BIT & 1);
}

static void look_at_passthrough(struct doctor *d)
{
    if (!at_least(d->kernel_major, d->kernel_minor, 6, 9))
        advise(
            find_say(d, VERDICT_SLOW, "passthrough", "not offered by this kernel"),
            "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH; large values are read through the daemon without");
    else if (d->libfuse_major && !at_least(d->libfuse_major, d->libfuse_minor, 3, 17))
        advise(find_say(d, VERDICT_SLOW, "passthrough", "mount.larder has libfuse %u.%u", d->libfuse_major,
                        d->libfuse_minor),
               "build with libfuse 3.17 or newer: packaging/libfuse");
    else if (!has_sys_admin())
        advise(find_say(d, VERDICT_SLOW, "passthrough", "this user may not"),
               "it needs CAP_SYS_ADMIN: mount as root; large values are read through the daemon without");
    else
        (void)find_say(d, VERDICT_OK, "passthrough", "offered, and this user may");
}

static void look_at_direct_writes(struct doctor *d)
{
    if (at_least(d->kernel_major, d->kernel_minor, 6, 6))
        (void)find_say(d, VERDICT_OK, "direct writes", "offered");
    else
        advise(find_say(d, VERDICT_SLOW, "direct writes", "not offered by this kernel"),
               "Linux 6.6 or newer; each new value costs a round trip more without");
}

static void look_at_request_size(struct doctor *d)
{
    _cleanup_free_ char *text = NULL;
    unsigned pages = REQUEST_PAGES_WANTED; /* what a kernel has that does not tell */

    if (read_text(REQUEST_PAGES, &text) == 0)
        (void)sscanf(text, "%u", &pages);
    if (pages >= REQUEST_PAGES_WANTED)
        (void)find_say(d, VERDICT_OK, "request size", "up to %u pages", pages);
    else
        advise(find_say(d, VERDICT_SLOW, "request size", "only up to %u pages", pages),
               "large values take more round trips; root: sysctl fs.fuse.max_pages_limit=%u, then mount again",
               REQUEST_PAGES_WANTED);
}

static void look_at_landlock(struct doctor *d)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    if (abi > 0)
        (void)find_say(d, VERDICT_OK, "landlock", "ABI %ld: daemons see their store only", abi);
    else
        advise(
            find_say(d, VERDICT_NOTE, "landlock", "not offered by this kernel"),
            "daemons are confined without it; Linux 5.13 with landlock among its security modules (lsm=landlock,...)");
}

static void look_at_descriptors(struct doctor *d)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    if (limit.rlim_max >= DESCRIPTORS_WANTED)
        (void)find_say(d, VERDICT_OK, "descriptors", "up to %llu", (unsigned long long)limit.rlim_max);
    else
        advise(
            find_say(d, VERDICT_NOTE, "descriptors", "only up to %llu", (unsigned long long)limit.rlim_max),
            "each large value that is open takes one; raise it: ulimit -Hn %u, or LimitNOFILE= of the service",
            DESCRIPTORS_WANTED);
}

/* ---- a mount ---- */

static void look_at_facility(struct doctor *d, const char *mountpoint, enum verdict lacking, const char *name,
                             const char *key)
{
    char text[512];
    size_t word;

    if (!mount_config(mountpoint, key, text, sizeof(text)))
        return;
    word = strcspn(text, " ");
    if (strncmp(text, "on", word) == 0)
        (void)find_say(d, VERDICT_OK, name, "in use");
    else
        advise(find_say(d, lacking, name, "not in use"), "%s", text[word] ? text + word + 1 : "");
}

/* Of a daemon older than this program there is no telling. */
static bool mount_has(const char *mountpoint, const char *key, const char *wanted)
{
    char text[512];

    if (!mount_config(mountpoint, key, text, sizeof(text)))
        return false;
    text[strcspn(text, " ")] = '\0';
    return strcmp(text, wanted) == 0;
}

static void look_at_permission_checks(struct doctor *d, const struct mount_entry *m)
{
    static const char name[] = "mount: checks";
    const char *user = mount_option(m, "user_id");

    if (!mount_option(m, "default_permissions"))
        (void)find_say(d, VERDICT_OK, name, "none by the kernel: only root may enter");
    else if (mount_option(m, "allow_other"))
        advise(find_say(d, VERDICT_NOTE, name, "the kernel checks permissions: other users may enter"),
               "two round trips more for each put; where only root uses it, mount without allow_other");
    else if (!user || strtoul(user, NULL, 10) != 0)
        (void)find_say(d, VERDICT_NOTE, name, "the kernel checks permissions, as for all who are not root");
    else
        advise(find_say(d, VERDICT_SLOW, name, "the kernel checks permissions, though only root may enter"),
               "two round trips more for each put; mount without default_permissions (or allow_root)");
}

static void look_at_hits(struct doctor *d, const char *mountpoint)
{
    if (mount_has(mountpoint, "hits", "sampled"))
        (void)find_say(d, VERDICT_OK, "mount: hits", "sampled: a value that is in memory is read without a request");
    else if (mount_has(mountpoint, "hits", "exact") && mount_has(mountpoint, "ro", "on"))
        advise(find_say(d, VERDICT_SLOW, "mount: hits", "exact: each open is a request"),
               "a cache that is only read can do without: mount with -o ro,hits=sampled");
    else if (mount_has(mountpoint, "hits", "exact"))
        (void)find_say(d, VERDICT_OK, "mount: hits", "exact");
}

static void look_at_mount(struct doctor *d, const struct mount_entry *m)
{
    char pid[64] = "";

    if (mount_is_dead(m->path)) {
        advise(find_say(d, VERDICT_FAIL, "mount", "%s: its daemon is gone", m->path),
               "mount it again: larder mount %s %s", m->source, m->path);
        return;
    }
    if (mount_config(m->path, "pid", pid, sizeof(pid)))
        pid[strcspn(pid, " ")] = '\0';
    (void)find_say(d, VERDICT_OK, "mount", "%s, served by process %s, store %s", m->path,
                   pid[0] ? pid : "unknown", m->source);
    look_at_facility(d, m->path, VERDICT_SLOW, "mount: io_uring", "io_uring_active");
    look_at_facility(d, m->path, VERDICT_SLOW, "mount: passthrough", "passthrough_active");
    if (!mount_has(m->path, "ro", "on"))
        look_at_facility(d, m->path, VERDICT_SLOW, "mount: direct writes", "direct_writes_active");
    look_at_permission_checks(d, m);
    look_at_hits(d, m->path);
    look_at_facility(d, m->path, VERDICT_NOTE, "mount: no_new_privs", "no_new_privs_active");
    look_at_facility(d, m->path, VERDICT_NOTE, "mount: landlock", "landlock_active");
    look_at_facility(d, m->path, VERDICT_NOTE, "mount: drop_caps", "drop_caps_active");
    look_at_facility(d, m->path, VERDICT_NOTE, "mount: seccomp", "seccomp_active");
}

/* ---- a store ---- */

static const char *file_system_name(long type, char out[32])
{
    static const struct {
        unsigned long type;
        const char *name;
    } known[] = {
        {0xef53, "ext2/3/4"}, {0x58465342, "xfs"},      {0x9123683e, "btrfs"},     {0x01021994, "tmpfs"},
        {0x2fc12fc1, "zfs"},  {0xf2f52010, "f2fs"},     {0x794c7630, "overlayfs"}, {0x6969, "nfs"},
        {0xff534d42, "cifs"}, {0xfe534d42, "smb2"},     {0x65735546, "fuse"},      {0x4d44, "vfat"},
        {0x5346544e, "ntfs"}, {0xca451a4e, "bcachefs"}, {0x01021997, "9p"},
    };

    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (known[i].type == (unsigned long)type)
            return known[i].name;
    (void)snprintf(out, 32, "type 0x%lx", (unsigned long)type);
    return out;
}

static bool is_remote(const char *name)
{
    return strcmp(name, "nfs") == 0 || strcmp(name, "cifs") == 0 || strcmp(name, "smb2") == 0 ||
           strcmp(name, "9p") == 0 || strcmp(name, "fuse") == 0 || strcmp(name, "vfat") == 0;
}

static uint64_t mono_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Of a few tries the best: others use the disk as well. */
static void look_at_syncing(struct doctor *d, int fd)
{
    uint64_t best_ns = UINT64_MAX;

    for (int i = 0; i < SYNC_TRIES && best_ns > SYNC_SLOW_NS; i++) {
        uint64_t start_ns = mono_ns(), took_ns;

        if (pwrite(fd, &start_ns, sizeof(start_ns), 0) != (ssize_t)sizeof(start_ns) || fdatasync(fd) < 0) {
            (void)find_say(d, VERDICT_FAIL, "syncing", "fails: %s", strerror(errno));
            return;
        }
        took_ns = mono_ns() - start_ns;
        best_ns = took_ns < best_ns ? took_ns : best_ns;
    }
    if (best_ns <= SYNC_SLOW_NS)
        (void)find_say(d, VERDICT_OK, "syncing", "takes less than %llu ms",
                       (unsigned long long)(SYNC_SLOW_NS / 1000000));
    else
        advise(find_say(d, VERDICT_SLOW, "syncing", "takes %llu ms", (unsigned long long)(best_ns / 1000000)),
               "every fsync, rename over an fsynced file and, with durability=fsync, close waits as long; put the "
               "store on a faster disk");
}

static void look_at_holes(struct doctor *d, const char *directory)
{
    static const char zeros[3 * 4096] = {1};
    _cleanup_close_ int fd = open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

    if (fd < 0 || pwrite(fd, zeros, sizeof(zeros), 0) != (ssize_t)sizeof(zeros)) {
        (void)find_say(d, VERDICT_NOTE, "hole punching", "not tried: %s", strerror(errno));
        return;
    }
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096) == 0)
        (void)find_say(d, VERDICT_OK, "hole punching", "works");
    else
        advise(
            find_say(d, VERDICT_NOTE, "hole punching", "does not work: %s", strerror(errno)),
            "space of removed keys comes back only by rewriting segments; put the store on ext4, xfs or btrfs");
    look_at_syncing(d, fd);
}

static void look_at_discard(struct doctor *d, const char *directory)
{
    _cleanup_mount_ struct mount_entry m = {0};

    if (mount_find_of(directory, &m) < 0)
        return;
    if (!mount_option(&m, "discard"))
        (void)find_say(d, VERDICT_OK, "discard", "not at each removal");
    else
        advise(find_say(d, VERDICT_SLOW, "discard", "%s has it: what is freed waits for the device", m.path),
               "root: mount -o remount,nodiscard %s, and take discard out of /etc/fstab; fstrim.timer does the same "
               "once a week",
               m.path);
}

static void look_at_space(struct doctor *d, const char *directory)
{
    char size[SIZE_TEXT_BYTES], text[32];
    struct statvfs vfs;
    struct statfs fs;
    const char *name;
    uint64_t bytes;

    if (statfs(directory, &fs) < 0 || statvfs(directory, &vfs) < 0) {
        (void)find_say(d, VERDICT_FAIL, "file system", "%s: %s", directory, strerror(errno));
        return;
    }
    name = file_system_name((long)fs.f_type, text);
    bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    if (strcmp(name, "overlayfs") == 0)
        advise(find_say(d, VERDICT_SLOW, "file system", "%s, %s free", name, size_text(bytes, size)),
               "the layer of a container: slower, and gone with it; put the store on a volume of the host");
    else if (is_remote(name))
        advise(find_say(d, VERDICT_NOTE, "file system", "%s, %s free", name, size_text(bytes, size)),
               "a store belongs on a local file system: locks, fsync and holes work as promised only there");
    else
        (void)find_say(d, VERDICT_OK, "file system", "%s, %s free, blocks of %lu bytes", name,
                       size_text(bytes, size), (unsigned long)vfs.f_bsize);
    look_at_holes(d, directory);
    look_at_discard(d, directory);
}

static void look_at_store_mode(struct doctor *d, const char *store, const struct stat *st)
{
    if (!S_ISDIR(st->st_mode))
        advise(find_say(d, VERDICT_FAIL, "store", "%s: not a directory", store),
               "name the directory that keeps the cache");
    else if (st->st_uid != geteuid())
        advise(find_say(d, VERDICT_NOTE, "store", "%s: belongs to user %u", store, st->st_uid),
               "only that user can mount it");
    else if (st->st_mode & 022)
        advise(find_say(d, VERDICT_FAIL, "store", "%s: others may write to it (mode %04o)", store,
                        st->st_mode & 07777),
               "chmod 0700 %s", store);
    else
        (void)find_say(d, VERDICT_OK, "store", "%s", store);
}

/* A store that is not there yet will be on the file system of the directory above. */
static void look_at_store(struct doctor *d, const char *store)
{
    _cleanup_free_ char *path = strdup(store);
    const char *directory = path;
    struct stat st;

    if (!path)
        return;
    if (lstat(store, &st) == 0)
        look_at_store_mode(d, store, &st);
    else
        (void)find_say(d, VERDICT_NOTE, "store", "%s: not there yet", store);
    while (stat(directory, &st) < 0 || !S_ISDIR(st.st_mode)) {
        char *slash = strrchr(path, '/');

        if (!slash || slash == path) {
            directory = slash ? "/" : ".";
            break;
        }
        *slash = '\0';
    }
    look_at_space(d, directory);
}

/* ---- output ---- */

static const char *const verdict_names[] = {
    [VERDICT_OK] = "ok", [VERDICT_NOTE] = "note", [VERDICT_SLOW] = "slow", [VERDICT_FAIL] = "fail"};

static void print_text(const struct doctor *d)
{
    for (size_t i = 0; i < d->count; i++) {
        const struct finding *f = &d->findings[i];

        (void)printf("%-4s  %-18s %s\n", verdict_names[f->verdict], f->name, f->value);
        if (f->advice[0])
            (void)printf("%25s→ %s\n", "", f->advice);
    }
}

static void print_object(const struct doctor *d, bool healthy)
{
    (void)printf("{\n  \"healthy\": %s,\n  \"findings\": [", healthy ? "true" : "false");
    for (size_t i = 0; i < d->count; i++) {
        const struct finding *f = &d->findings[i];

        (void)printf("%s\n    {\"verdict\": \"%s\", ", i ? "," : "", verdict_names[f->verdict]);
        print_json_member(stdout, "name", f->name);
        (void)printf(", ");
        print_json_member(stdout, "value", f->value);
        (void)printf(", \"advice\": ");
        if (f->advice[0])
            print_json(stdout, f->advice);
        else
            (void)printf("null");
        (void)printf("}");
    }
    (void)printf("\n  ]\n}\n");
}

static void look_at_machine(struct doctor *d)
{
    look_at_kernel(d);
    look_at_device(d);
    look_at_fusermount(d);
    look_at_fuse_conf(d);
    look_at_program(d);
    look_at_libfuse(d);
    look_at_uring(d);
    look_at_passthrough(d);
    look_at_direct_writes(d);
    look_at_request_size(d);
    look_at_landlock(d);
    look_at_descriptors(d);
}

/* What was named, or the mount we are in. */
static void look_at_place(struct doctor *d, const char *named)
{
    _cleanup_mount_ struct mount_entry m = {0};

    if (mount_find_of(named ? named : ".", &m) == 0 && m.is_larder) {
        look_at_mount(d, &m);
        if (access(m.source, F_OK) == 0)
            look_at_store(d, m.source);
    } else if (named) {
        look_at_store(d, named);
    }
}

static int doctor_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'}, {"json", no_argument, NULL, 'j'}, {0}};
    struct doctor d = {0};
    bool json = false, healthy = true;
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        json = true;
    }
    if (argc - optind > 1)
        return tool_usage(command, "%s: one store or mount point at a time", argv[optind + 1]);
    look_at_machine(&d);
    look_at_place(&d, argv[optind]); /* argv ends in NULL */
    for (size_t i = 0; i < d.count; i++)
        healthy &= d.findings[i].verdict != VERDICT_FAIL;
    if (json)
        print_object(&d, healthy);
    else
        print_text(&d);
    free(d.mount_program);
    return tool_flush(command, healthy ? TOOL_OK : TOOL_FAILED);
}
