/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * executor: does a list of file system operations below one directory and prints what each returned.
 *
 *     diff_executor DIRECTORY [--passthrough] < operations > results
 *
 * --passthrough: an open that truncates, and a truncation to nothing, closes what else is open of that file. Who reads a
 * value through the kernel's passthrough keeps its old bytes when it is replaced; README.md says so.
 *
 * One operation per line, `name argument...`, separated by single blanks; one line of result each, in a form that does
 * not depend on the file system: errno by name, bytes as a hash, directory listings sorted, times as "changed since
 * they were last seen". Two runs of the same list on two file systems print the same, or one of the two has a bug
 * (tests/harness/differ.py knows the exceptions).
 *
 * Descriptors, mappings and directory streams live in numbered slots. Nothing here judges, except where file systems
 * may rightly differ: SEEK_DATA, SEEK_HOLE and directory streams are checked against the rules, and "bad" is printed.
 */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "diff/mapped.h"

#define SLOTS 12
#define MAPS 4
#define STREAMS 3
#define ARGS_MAX 8
#define BUFFER_BYTES (8u << 20)
#define NAMES_MAX 4096
#define SEEN_MAX (1u << 16)

struct map {
    uint8_t *at;
    size_t bytes;
    off_t file_offset;
    int keep_fd, path_fd;
    bool writes;
    uint64_t ino;
};

struct stream {
    DIR *dir;
    unsigned begun; /* operation number */
    unsigned known_count, got_count;
    char *known[NAMES_MAX], *got[NAMES_MAX];
    long tell;          /* a position and what was read there, for seekdir */
    char *at_tell;
};

struct seen {
    uint64_t ino, born; /* an inode number may be used again, not at the same time */
    int64_t atime, mtime, ctime;
    bool mapped; /* written through a mapping: when that shows in its times is the file system's choice */
};

static int slots[SLOTS];
static struct map maps[MAPS];
static struct stream streams[STREAMS];
static struct seen seen_table[SEEN_MAX];
static struct {
    char name[256];
    unsigned op;
} touched[256];
static unsigned touched_next;
static unsigned op_no;
static int root_fd;
static bool with_passthrough;
static int64_t start_ns;
static uid_t user_id;
static gid_t group_id;
static uint8_t *buffer; /* page-aligned, for O_DIRECT */
static char detail[1 << 20];
static size_t detail_bytes;

static char *arg[ARGS_MAX];

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(detail + detail_bytes, sizeof(detail) - detail_bytes, format, ap);
    va_end(ap);
    if (n > 0 && detail_bytes + (size_t)n < sizeof(detail))
        detail_bytes += (size_t)n;
}

static int64_t number(unsigned i)
{
    return arg[i] ? strtoll(arg[i], NULL, 0) : 0;
}

static int fd_of(unsigned i)
{
    return slots[(uint64_t)number(i) % SLOTS];
}

static struct map *map_of(unsigned i)
{
    return &maps[(uint64_t)number(i) % MAPS];
}

static long result(long r)
{
    return r < 0 ? -errno : r;
}

/* "-" is the empty path; a path of "@n" is a name of n bytes. */
static const char *path_of(unsigned i)
{
    static char longs[2][8192];
    size_t n;

    if (strcmp(arg[i], "-") == 0)
        return "";
    if (arg[i][0] != '@')
        return arg[i];
    n = (size_t)strtoul(arg[i] + 1, NULL, 10) % 8000;
    memset(longs[i % 2], 'L', n);
    longs[i % 2][n] = 0;
    return longs[i % 2];
}

static uint64_t hash_bytes(const uint8_t *data, size_t bytes, uint64_t h)
{
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ data[i]) * 0x100000001b3ull;
    return h;
}

#define HASH_START 0xcbf29ce484222325ull

/* kind 0: incompressible, 1: text, 2: zeros, 3: blocks of zeros and others */
static void fill(uint8_t *out, size_t bytes, int64_t kind, int64_t seed)
{
    uint64_t x = (uint64_t)seed * 0x9e3779b97f4a7c15ull + 1;

    for (size_t i = 0; i < bytes; i++) {
        if (i % 8 == 0) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        if (kind == 2 || (kind == 3 && (i >> 12 & 1)))
            out[i] = 0;
        else
            out[i] = kind == 1 ? (uint8_t)("larder!\n"[(i + (size_t)seed) % 8]) : (uint8_t)(x >> (i % 8 * 8));
    }
}

static size_t length(unsigned i)
{
    uint64_t n = (uint64_t)number(i);

    return n > BUFFER_BYTES ? BUFFER_BYTES : (size_t)n;
}

static void note_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    (void)snprintf(touched[touched_next % 256].name, sizeof(touched[0].name), "%.255s", slash ? slash + 1 : path);
    touched[touched_next++ % 256].op = op_no;
}

/* ---- descriptors ---- */

static void put_slot(unsigned i, int fd)
{
    unsigned slot = (unsigned)((uint64_t)number(i) % SLOTS);

    if (slots[slot] >= 0)
        (void)close(slots[slot]);
    slots[slot] = fd;
}

static void unmap(struct map *m)
{
    struct timespec fixed[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1}};
    char proc[64];

    if (m->writes) { /* when that stamps the file differs: so that a restart shows the same time, it gets one */
        (void)msync(m->at, m->bytes, MS_SYNC); /* past the end of the file: nothing to write */
        (void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", m->path_fd);
        (void)utimensat(AT_FDCWD, proc, fixed, 0);
    }
    (void)munmap(m->at, m->bytes);
    m->at = NULL;
    (void)close(m->path_fd);
    if (m->keep_fd >= 0) {
        (void)fsync(m->keep_fd);
        (void)close(m->keep_fd);
    }
}

/* What --passthrough asks for. Leaves fd itself open. */
static void drop_readers(int fd)
{
    struct stat st, other;

    for (unsigned i = 0; with_passthrough && fstat(fd, &st) == 0 && i < SLOTS; i++) {
        if (slots[i] < 0 || slots[i] == fd || fstat(slots[i], &other) < 0 || other.st_ino != st.st_ino || S_ISDIR(st.st_mode))
            continue;
        (void)close(slots[i]);
        slots[i] = -1;
    }
    for (unsigned i = 0; with_passthrough && i < MAPS; i++)
        if (maps[i].at && maps[i].ino == st.st_ino)
            unmap(&maps[i]);
}

static long op_open(void)
{
    /* O_NONBLOCK: a FIFO must not wait */
    int fd = open(path_of(1), (int)number(2) | O_NONBLOCK | O_CLOEXEC, (mode_t)number(3));
    int saved = errno;

    if (number(2) & O_CREAT)
        note_name(path_of(1));
    if (fd < 0)
        return -saved;
    if (number(2) & O_TRUNC)
        drop_readers(fd);
    put_slot(0, fd);
    return 0;
}

static long op_close(void)
{
    unsigned slot = (unsigned)((uint64_t)number(0) % SLOTS);
    long r = result(close(slots[slot]));

    slots[slot] = -1;
    return r;
}

static long op_dup(void)
{
    int fd = fcntl(fd_of(0), F_DUPFD_CLOEXEC, 10);

    if (fd < 0)
        return -errno;
    put_slot(1, fd);
    return 0;
}

static long op_reopen(void)
{
    char path[64];
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd_of(0));
    fd = open(path, (int)number(2) | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (number(2) & O_TRUNC)
        drop_readers(fd);
    put_slot(1, fd);
    return 0;
}

/* A value the kernel reads from its backing file by itself wants aligned requests like any local file, others take any:
 * all get aligned ones. */
static bool is_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && flags & O_DIRECT && !(flags & O_PATH);
}

static uint64_t aligned(int fd, uint64_t value)
{
    return is_direct(fd) ? value & ~(uint64_t)4095 : value;
}

static long got_bytes(ssize_t n)
{
    if (n < 0)
        return -errno;
    say(" %016llx", (unsigned long long)hash_bytes(buffer, (size_t)n, HASH_START));
    return n;
}

static long op_read(void)
{
    int fd = fd_of(0);

    if (is_direct(fd))
        (void)lseek(fd, lseek(fd, 0, SEEK_CUR) & ~4095, SEEK_SET);
    return got_bytes(read(fd, buffer, aligned(fd, length(1))));
}

static long op_pread(void)
{
    int fd = fd_of(0);

    return got_bytes(pread(fd, buffer, aligned(fd, length(1)), (off_t)aligned(fd, (uint64_t)number(2))));
}

static long op_preadv(void)
{
    int fd = fd_of(0);
    size_t bytes = aligned(fd, length(1)), first = bytes / 3 & ~(size_t)4095;
    struct iovec iov[2] = {{buffer, first}, {buffer + first, bytes - first}};

    return got_bytes(preadv(fd, iov, 2, (off_t)aligned(fd, (uint64_t)number(2))));
}

static long op_write(void)
{
    fill(buffer, length(1), number(2), number(3));
    return result(write(fd_of(0), buffer, length(1)));
}

static long op_pwrite(void)
{
    fill(buffer, length(1), number(3), number(4));
    return result(pwrite(fd_of(0), buffer, length(1), number(2)));
}

static long op_pwritev(void)
{
    size_t bytes = length(1), first = bytes / 3 & ~(size_t)511;
    struct iovec iov[2] = {{buffer, first}, {buffer + first, bytes - first}};

    fill(buffer, bytes, number(3), number(4));
    return result(pwritev2(fd_of(0), iov, 2, number(2), (int)number(5)));
}

static long op_lseek(void)
{
    struct stat st;

    if (fstat(fd_of(0), &st) == 0 && S_ISDIR(st.st_mode))
        return 0; /* what a position in a directory is, and where its end, is the file system's choice */
    return result(lseek(fd_of(0), number(1), (int)number(2)));
}

static bool all_zero(int fd, off_t from, off_t to)
{
    from = (off_t)(is_direct(fd) ? (uint64_t)(from + 4095) & ~(uint64_t)4095 : (uint64_t)from);
    while (from < to) {
        ssize_t n = pread(fd, buffer, BUFFER_BYTES, from);

        if (n <= 0)
            return n == 0;
        for (ssize_t i = 0; i < n && from + i < to; i++)
            if (buffer[i])
                return false;
        from += n;
    }
    return true;
}

/* The kernel asks a FUSE file system for holes without telling it first what mappings have written. */
static void sync_maps(uint64_t ino)
{
    for (unsigned i = 0; i < MAPS; i++)
        if (maps[i].at && maps[i].writes && maps[i].ino == ino)
            (void)msync(maps[i].at, maps[i].bytes, MS_SYNC);
}

/* Where holes are is the file system's choice; that they read as zeros and lie inside the file is not. */
static long op_seekdata(void)
{
    int fd = fd_of(0), whence = (int)number(2);
    off_t offset = number(1), found, before = lseek(fd, 0, SEEK_CUR);
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    sync_maps(st.st_ino);
    found = lseek(fd, offset, whence);
    if (found < 0 && errno != ENXIO)
        return -errno;
    if (found < 0 && (offset < 0 || offset >= st.st_size))
        return -ENXIO;
    (void)lseek(fd, before, SEEK_SET);
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY)
        return 0;
    if (found < 0 && (whence != SEEK_DATA || !all_zero(fd, offset, st.st_size)))
        say(" bad: ENXIO");
    if (found >= 0 && (found < offset || found > st.st_size || offset >= st.st_size))
        say(" bad: %lld", (long long)found);
    if (found >= 0 && whence == SEEK_DATA && !all_zero(fd, offset, found))
        say(" bad: data before %lld", (long long)found);
    if (found >= 0 && whence == SEEK_HOLE && found < st.st_size && !all_zero(fd, found, found + 1))
        say(" bad: no hole at %lld", (long long)found);
    return 0;
}

static long op_ftruncate(void)
{
    long r = result(ftruncate(fd_of(0), number(1)));

    if (r == 0 && number(1) == 0)
        drop_readers(fd_of(0));
    return r;
}

static long op_truncate(void)
{
    struct stat st;
    long r;
    int fd;

    if (stat(path_of(0), &st) == 0 && S_ISREG(st.st_mode) && st.st_size == number(1))
        return 0; /* ext4 gives it new times, tmpfs sometimes */
    r = result(truncate(path_of(0), number(1)));
    fd = r == 0 && number(1) == 0 ? open(path_of(0), O_PATH | O_CLOEXEC) : -1;
    if (fd >= 0) {
        drop_readers(fd);
        (void)close(fd);
    }
    return r;
}

static long op_fallocate(void)
{
    return result(fallocate(fd_of(0), (int)number(1), number(2), number(3)));
}

static long op_fsync(void)
{
    return result(fsync(fd_of(0)));
}

static long op_fdatasync(void)
{
    return result(fdatasync(fd_of(0)));
}

static long op_syncfs(void)
{
    return result(syncfs(fd_of(0)));
}

/* ---- from file to file ---- */

static long op_copy(void)
{
    off64_t in = number(1), out = number(3);
    uint64_t left = (uint64_t)number(4), done = 0;

    if (is_direct(fd_of(0)))
        return 0; /* pieces of whatever size the pipe in between makes */
    while (left > 0) {
        ssize_t n = copy_file_range(fd_of(0), number(1) < 0 ? NULL : &in, fd_of(2), number(3) < 0 ? NULL : &out,
                                    (size_t)left, 0);

        if (n < 0 && done == 0)
            return -errno;
        if (n <= 0)
            break;
        done += (uint64_t)n;
        left -= (uint64_t)n;
    }
    return (long)done;
}

/* Through a pipe of pages: what arrives where source and target overlap depends on the size of its pieces. */
static bool is_no_pipe(int from, int to)
{
    struct stat a, b;

    return is_direct(from) || (fstat(from, &a) == 0 && fstat(to, &b) == 0 && a.st_ino == b.st_ino);
}

static long op_sendfile(void)
{
    uint64_t left = (uint64_t)number(2), done = 0;

    if (is_no_pipe(fd_of(0), fd_of(1)))
        return 0;
    while (left > 0) {
        ssize_t n = sendfile(fd_of(1), fd_of(0), NULL, (size_t)left);

        if (n < 0 && done == 0)
            return -errno;
        if (n <= 0)
            break;
        done += (uint64_t)n;
        left -= (uint64_t)n;
    }
    return (long)done;
}

static long op_splice(void)
{
    uint64_t left = (uint64_t)number(2), done = 0;
    int ends[2];
    long r = 0;

    if (is_no_pipe(fd_of(0), fd_of(1)))
        return 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    while (left > 0 && r >= 0) {
        ssize_t n = splice(fd_of(0), NULL, ends[1], NULL, left < 65536 ? (size_t)left : 65536, SPLICE_F_NONBLOCK);

        if (n <= 0) {
            r = n < 0 && done == 0 ? -errno : 0;
            break;
        }
        left -= (uint64_t)n;
        while (n > 0) {
            ssize_t out = splice(ends[0], NULL, fd_of(1), NULL, (size_t)n, 0);

            if (out <= 0) {
                r = done == 0 ? -errno : -1;
                break;
            }
            done += (uint64_t)out;
            n -= out;
        }
    }
    (void)close(ends[0]);
    (void)close(ends[1]);
    return r < -1 ? r : (long)done;
}

/* ---- mappings ---- */

static int64_t time_ns(struct statx_timestamp t)
{
    return t.tv_sec * 1000000000 + (int64_t)t.tv_nsec;
}

static struct seen *seen_of(uint64_t ino, uint64_t born)
{
    for (uint64_t i = ino * 0x9e3779b97f4a7c15ull;; i++) {
        struct seen *s = &seen_table[i % SEEN_MAX];

        if ((s->ino == ino && s->born == born) || s->ino == 0)
            return s;
    }
}

static long op_munmap(void)
{
    struct map *m = map_of(0);

    if (!m->at)
        return -EBADF;
    unmap(m);
    return 0;
}

static long op_mmap(void)
{
    struct map *m = map_of(0);
    bool shared = number(5);
    struct statx stx;
    char proc[64];
    void *at;

    if (m->at)
        unmap(m);
    m->bytes = length(3);
    at = mmap(NULL, m->bytes, (int)number(4), shared ? MAP_SHARED : MAP_PRIVATE, fd_of(1), number(2));
    if (at == MAP_FAILED)
        return -errno;
    m->at = at;
    m->file_offset = number(2);
    (void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd_of(1));
    m->path_fd = open(proc, O_PATH | O_CLOEXEC);
    m->writes = shared && (number(4) & PROT_WRITE);
    m->keep_fd = number(6) ? fcntl(fd_of(1), F_DUPFD_CLOEXEC, 10) : -1;
    if (statx(fd_of(1), "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stx) < 0)
        return 0;
    m->ino = stx.stx_ino;
    if (m->writes) {
        uint64_t born = stx.stx_mask & STATX_BTIME ? (uint64_t)time_ns(stx.stx_btime) : 0;
        struct seen *s = seen_of(stx.stx_ino, born);
        s->ino = stx.stx_ino;
        s->born = born;
        s->mapped = true;
    }
    return 0;
}

static bool map_range(const struct map *m, unsigned i, size_t *ret_offset, size_t *ret_bytes)
{
    if (!m->at)
        return false;
    *ret_offset = (size_t)((uint64_t)number(i) % m->bytes);
    *ret_bytes = length(i + 1);
    if (*ret_bytes > m->bytes - *ret_offset)
        *ret_bytes = m->bytes - *ret_offset;
    return true;
}

static long op_mread(void)
{
    struct map *m = map_of(0);
    size_t offset, bytes;

    if (!map_range(m, 1, &offset, &bytes))
        return -EBADF;
    if (!mapped_copy(buffer, m->at + offset, bytes))
        return -EFAULT;
    return got_bytes((ssize_t)bytes);
}

/* What is written behind the end of the file in its last page comes and goes as the kernel likes. */
static size_t before_end(const struct map *m, size_t offset, size_t bytes)
{
    struct stat st;
    off_t at = m->file_offset + (off_t)offset;

    if (fstat(m->path_fd, &st) < 0)
        return 0;
    return at >= st.st_size ? 0 : bytes < (size_t)(st.st_size - at) ? bytes : (size_t)(st.st_size - at);
}

static long op_mwrite(void)
{
    struct map *m = map_of(0);
    size_t offset, bytes;

    if (!map_range(m, 1, &offset, &bytes))
        return -EBADF;
    fill(buffer, bytes, number(3), number(4));
    return mapped_copy(m->at + offset, buffer, before_end(m, offset, bytes)) ? (long)bytes : -EFAULT;
}

static long op_msync(void)
{
    struct map *m = map_of(0);

    return m->at ? result(msync(m->at, m->bytes, (int)number(1))) : -EBADF;
}

/* ---- attributes ---- */

/* A time that was set is its value; one that came from the clock is how it moved since it was last seen. */
static void say_time(const char *what, int64_t now, int64_t before, bool first)
{
    if (now < start_ns || now > start_ns + 86400 * 1000000000ll)
        say(" %s=%lld", what, (long long)now);
    else if (first)
        say(" %sF", what);
    else
        say(" %s%c", what, now == before ? '=' : now > before ? '+' : '-');
}

/* Directories' are "dm" and "dc": one reference takes them from elsewhere (see DIFFERENCES). A FIFO's are the kernel's. */
static void say_times(const struct statx *stx)
{
    int64_t a = time_ns(stx->stx_atime), m = time_ns(stx->stx_mtime), c = time_ns(stx->stx_ctime);
    uint64_t born = stx->stx_mask & STATX_BTIME ? (uint64_t)time_ns(stx->stx_btime) : 0;
    struct seen *s = seen_of(stx->stx_ino, born);
    bool first = s->ctime == 0, dir = S_ISDIR(stx->stx_mode);

    say_time("a", a, s->atime, first);
    if (s->mapped || S_ISFIFO(stx->stx_mode)) {
        say(" m? c?");
    } else {
        say_time(dir ? "dm" : "m", m, s->mtime, first);
        say_time(dir ? "dc" : "c", c, s->ctime, first);
        say(" %sm%cc", dir ? "d" : "", m == c ? '=' : m < c ? '<' : '>');
    }
    s->ino = stx->stx_ino;
    s->born = born;
    s->atime = a;
    s->mtime = m;
    s->ctime = c;
}

static void say_attr(const struct statx *stx)
{
    unsigned mode = stx->stx_mode;

    /* For whom the kernel takes it away from a file whose group may not execute it depends on the groups of the writer,
     * which FUSE does not tell. */
    if (S_ISREG(mode) && !(mode & S_IXGRP))
        mode &= ~(unsigned)S_ISGID;
    say(" %o n%u u%u g%u", mode, stx->stx_nlink, stx->stx_uid, stx->stx_gid);
    if (!S_ISDIR(stx->stx_mode))
        say(" s%llu", (unsigned long long)stx->stx_size);
    if (S_ISCHR(stx->stx_mode) || S_ISBLK(stx->stx_mode))
        say(" r%u:%u", stx->stx_rdev_major, stx->stx_rdev_minor);
    say_times(stx);
}

static long stat_at(int fd, const char *path, int flags)
{
    struct statx stx;

    if (statx(fd, path, flags, STATX_BASIC_STATS | STATX_BTIME, &stx) < 0)
        return -errno;
    say_attr(&stx);
    return 0;
}

static long op_stat(void)
{
    return stat_at(AT_FDCWD, path_of(0), 0);
}

static long op_lstat(void)
{
    return stat_at(AT_FDCWD, path_of(0), AT_SYMLINK_NOFOLLOW);
}

static long op_fstat(void)
{
    return fd_of(0) < 0 ? -EBADF : stat_at(fd_of(0), "", AT_EMPTY_PATH);
}

static long op_access(void)
{
    return result(faccessat(AT_FDCWD, path_of(0), (int)number(1), AT_EACCESS));
}

static long op_statfs(void)
{
    struct statvfs v;

    if (statvfs(path_of(0), &v) < 0)
        return -errno;
    if (v.f_bavail > v.f_bfree || v.f_bfree > v.f_blocks || v.f_ffree > v.f_files || v.f_namemax != 255)
        say(" bad");
    return 0;
}

static long op_chmod(void)
{
    return result(chmod(path_of(0), (mode_t)number(1)));
}

static long op_fchmod(void)
{
    return result(fchmod(fd_of(0), (mode_t)number(1)));
}

static long op_chown(void)
{
    return result(chown(path_of(0), (uid_t)number(1), (gid_t)number(2)));
}

static long op_lchown(void)
{
    return result(lchown(path_of(0), (uid_t)number(1), (gid_t)number(2)));
}

static long op_fchown(void)
{
    return result(fchown(fd_of(0), (uid_t)number(1), (gid_t)number(2)));
}

static struct timespec time_of(unsigned i)
{
    int64_t ns;

    if (strcmp(arg[i], "now") == 0)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    if (strcmp(arg[i], "omit") == 0)
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    ns = number(i);
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static long op_utimens(void)
{
    struct timespec ts[2] = {time_of(1), time_of(2)};

    return result(utimensat(AT_FDCWD, path_of(0), ts, number(3) ? AT_SYMLINK_NOFOLLOW : 0));
}

static long op_futimens(void)
{
    struct timespec ts[2] = {time_of(1), time_of(2)};

    return result(futimens(fd_of(0), ts));
}

/* Whether it has that very value: ext4 leaves its times alone then. */
static bool same_xattr(ssize_t bytes, const uint8_t *value)
{
    return bytes == (ssize_t)length(2) && memcmp(value, buffer, length(2)) == 0;
}

static long op_setxattr(void)
{
    static uint8_t value[65536];

    fill(buffer, length(2), 0, number(3));
    if (same_xattr(lgetxattr(path_of(0), arg[1], value, sizeof(value)), value))
        return 0;
    return result(lsetxattr(path_of(0), arg[1], buffer, length(2), (int)number(4)));
}

static long op_fsetxattr(void)
{
    static uint8_t value[65536];

    fill(buffer, length(2), 0, number(3));
    if (same_xattr(fgetxattr(fd_of(0), arg[1], value, sizeof(value)), value))
        return 0;
    return result(fsetxattr(fd_of(0), arg[1], buffer, length(2), (int)number(4)));
}

static long op_getxattr(void)
{
    ssize_t n = lgetxattr(path_of(0), arg[1], buffer, length(2));

    return length(2) ? got_bytes(n) : result(n);
}

static long op_removexattr(void)
{
    return result(lremovexattr(path_of(0), arg[1]));
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names and values, sorted; of what users may set. */
static void say_xattrs(const char *path)
{
    static char list[65536], value[65536];
    char *names[256];
    unsigned count = 0;
    ssize_t n = llistxattr(path, list, sizeof(list));

    for (ssize_t at = 0; at < n && count < 256; at += (ssize_t)strlen(list + at) + 1)
        if (strncmp(list + at, "user.", 5) == 0)
            names[count++] = list + at;
    qsort(names, count, sizeof(*names), compare_names);
    for (unsigned i = 0; i < count; i++) {
        ssize_t bytes = lgetxattr(path, names[i], value, sizeof(value));
        say(" %s:%zd:%016llx", names[i], bytes,
            (unsigned long long)hash_bytes((uint8_t *)value, bytes > 0 ? (size_t)bytes : 0, HASH_START));
    }
}

static long op_listxattr(void)
{
    ssize_t n = llistxattr(path_of(0), NULL, 0);

    if (n < 0)
        return -errno;
    say_xattrs(path_of(0));
    return 0;
}

/* ---- names ---- */

/* A directory may get its time from what is linked or unlinked in it. Once looked at, that gets a new one. */
static void look(const char *path)
{
    struct stat st;

    (void)lstat(path, &st);
}

static long op_mkdir(void)
{
    note_name(path_of(0));
    return result(mkdir(path_of(0), (mode_t)number(1)));
}

static long op_rmdir(void)
{
    note_name(path_of(0));
    look(path_of(0));
    return result(rmdir(path_of(0)));
}

static long op_unlink(void)
{
    note_name(path_of(0));
    look(path_of(0));
    return result(unlink(path_of(0)));
}

static long op_rename(void)
{
    note_name(path_of(0));
    note_name(path_of(1));
    return result(renameat2(AT_FDCWD, path_of(0), AT_FDCWD, path_of(1), (unsigned)number(2)));
}

static long op_link(void)
{
    note_name(path_of(1));
    look(path_of(0));
    return result(linkat(AT_FDCWD, path_of(0), AT_FDCWD, path_of(1), (int)number(2)));
}

static long op_linkfd(void)
{
    char proc[64];
    struct stat st;

    note_name(path_of(1));
    (void)fstat(fd_of(0), &st);
    if (number(2) == 0)
        return fd_of(0) < 0 ? -EBADF : result(linkat(fd_of(0), "", AT_FDCWD, path_of(1), AT_EMPTY_PATH));
    (void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd_of(0));
    return result(linkat(AT_FDCWD, proc, AT_FDCWD, path_of(1), AT_SYMLINK_FOLLOW));
}

static long op_symlink(void)
{
    note_name(path_of(1));
    return result(symlink(path_of(0), path_of(1)));
}

static long op_readlink(void)
{
    return got_bytes(readlink(path_of(0), (char *)buffer, BUFFER_BYTES));
}

static long op_mknod(void)
{
    note_name(path_of(0));
    return result(mknod(path_of(0), (mode_t)number(1), makedev(1, 3)));
}

static long op_chdir(void)
{
    return result(strcmp(arg[0], "/") == 0 ? fchdir(root_fd) : chdir(path_of(0)));
}

/* ---- locks ---- */

static long op_flock(void)
{
    return result(flock(fd_of(0), (int)number(1) | LOCK_NB));
}

static long op_lock(void)
{
    struct flock fl = {.l_type = (short)number(2), .l_whence = SEEK_SET, .l_start = number(3), .l_len = number(4)};
    long r = result(fcntl(fd_of(0), (int)number(1), &fl));

    if (r == 0 && (number(1) == F_OFD_GETLK || number(1) == F_GETLK))
        say(" %d %lld %lld", fl.l_type, (long long)fl.l_start, (long long)fl.l_len);
    return r;
}

/* ---- directories ---- */

static unsigned list_names(const char *path, char **names, unsigned max)
{
    DIR *dir = opendir(path);
    struct dirent *e;
    unsigned count = 0;

    while (dir && (e = readdir(dir)) && count < max)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            names[count++] = strdup(e->d_name);
    if (dir)
        (void)closedir(dir);
    qsort(names, count, sizeof(*names), compare_names);
    return count;
}

static void free_names(char **names, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        free(names[i]);
}

static long op_list(void)
{
    static char *names[NAMES_MAX];
    unsigned count;
    DIR *dir = opendir(path_of(0));

    if (!dir)
        return -errno;
    (void)closedir(dir);
    count = list_names(path_of(0), names, NAMES_MAX);
    for (unsigned i = 0; i < count; i++)
        say(" %s", names[i]);
    free_names(names, count);
    return count;
}

static struct stream *stream_of(unsigned i)
{
    return &streams[(uint64_t)number(i) % STREAMS];
}

static void stream_forget(struct stream *s)
{
    if (s->dir)
        (void)closedir(s->dir);
    free_names(s->known, s->known_count);
    free_names(s->got, s->got_count);
    free(s->at_tell);
    memset(s, 0, sizeof(*s));
}

static long op_dirbegin(void)
{
    struct stream *s = stream_of(0);

    stream_forget(s);
    s->dir = opendir(path_of(1));
    if (!s->dir)
        return -errno;
    s->begun = op_no;
    s->known_count = list_names(path_of(1), s->known, NAMES_MAX);
    return 0;
}

static void stream_read(struct stream *s, unsigned count)
{
    struct dirent *e;

    while (count-- > 0 && s->got_count < NAMES_MAX) {
        long tell = telldir(s->dir);

        e = readdir(s->dir);
        if (!e)
            return;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (!s->at_tell && s->got_count % 3 == 2) {
            s->tell = tell;
            s->at_tell = strdup(e->d_name);
        }
        s->got[s->got_count++] = strdup(e->d_name);
    }
}

static long op_dirread(void)
{
    struct stream *s = stream_of(0);

    if (!s->dir)
        return -EBADF;
    stream_read(s, (unsigned)number(1));
    return 0;
}

static bool was_touched(const char *name, unsigned since)
{
    if (touched_next > 256 && touched[touched_next % 256].op >= since)
        return true; /* forgotten by now: be lenient */
    for (unsigned i = 0; i < 256 && i < touched_next; i++)
        if (touched[i].op >= since && strcmp(touched[i].name, name) == 0)
            return true;
    return false;
}

/* Back to a position: what was read there is read again, unless it is gone. */
static long op_dirseek(void)
{
    struct stream *s = stream_of(0);
    struct dirent *e;
    long here;

    if (!s->dir || !s->at_tell)
        return 0;
    here = telldir(s->dir);
    seekdir(s->dir, s->tell);
    e = readdir(s->dir);
    if (!was_touched(s->at_tell, s->begun) && (!e || strcmp(e->d_name, s->at_tell) != 0))
        say(" bad: %s is not where it was", s->at_tell);
    seekdir(s->dir, here);
    return 0;
}

static unsigned times_in(char *const *names, unsigned count, const char *name)
{
    unsigned times = 0;

    for (unsigned i = 0; i < count; i++)
        times += strcmp(names[i], name) == 0;
    return times;
}

/* What was there all the time was seen exactly once. */
static long op_dirend(void)
{
    struct stream *s = stream_of(0);

    if (!s->dir)
        return -EBADF;
    stream_read(s, NAMES_MAX);
    for (unsigned i = 0; i < s->known_count; i++) {
        unsigned times = times_in(s->got, s->got_count, s->known[i]);

        if (times != 1 && !was_touched(s->known[i], s->begun))
            say(" bad: %s seen %u times", s->known[i], times);
    }
    stream_forget(s);
    return 0;
}

/* ---- everything at once ---- */

static void become(uid_t uid, gid_t gid)
{
    gid_t groups[1] = {gid};

    /* Of this thread, so it is the plain system call. */
    if (syscall(SYS_setresuid, -1, 0, 0) < 0 || syscall(SYS_setgroups, gid ? 1 : 0, groups) < 0 ||
        syscall(SYS_setresgid, -1, gid, -1) < 0 || syscall(SYS_setresuid, -1, uid, -1) < 0)
        abort();
}

static long op_user(void)
{
    user_id = (uid_t)number(0);
    group_id = (gid_t)number(1);
    become(user_id, group_id);
    return 0;
}

static long op_umask(void)
{
    return (long)umask((mode_t)number(0));
}

static void say_content(int fd)
{
    uint64_t h = HASH_START;
    off_t offset = 0;
    ssize_t n;

    do {
        n = pread(fd, buffer, BUFFER_BYTES, offset);
        h = hash_bytes(buffer, n > 0 ? (size_t)n : 0, h);
        offset += n;
    } while (n == BUFFER_BYTES);
    say(" %016llx%s", (unsigned long long)h, n < 0 ? strerrorname_np(errno) : "");
}

static void walk(const char *path, unsigned depth)
{
    char *names[NAMES_MAX], below[4096];
    unsigned count;
    struct stat st;

    say("\n  %s", path);
    if (stat_at(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW) < 0 || lstat(path, &st) < 0) {
        say(" %s", strerrorname_np(errno));
        return;
    }
    say_xattrs(path);
    if (S_ISREG(st.st_mode)) {
        int fd = open(path, O_RDONLY | O_NOATIME | O_CLOEXEC);
        say_content(fd);
        (void)close(fd);
    } else if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlink(path, below, sizeof(below) - 1);
        say(" -> %.*s", (int)n, below);
    } else if (S_ISDIR(st.st_mode) && depth < 40) {
        count = list_names(path, names, NAMES_MAX);
        for (unsigned i = 0; i < count; i++) {
            (void)snprintf(below, sizeof(below), "%s/%s", path, names[i]);
            walk(below, depth + 1);
        }
        free_names(names, count);
    }
}

static long op_walk(void)
{
    int cwd = open(".", O_PATH | O_CLOEXEC);

    become(0, 0);
    if (fchdir(root_fd) < 0)
        abort();
    walk(".", 0);
    for (unsigned i = 0; i < SLOTS; i++) {
        int flags = slots[i] < 0 ? -1 : fcntl(slots[i], F_GETFL);
        struct stat st;

        if (flags < 0 || fstat(slots[i], &st) < 0)
            continue;
        say("\n  #%u", i);
        (void)stat_at(slots[i], "", AT_EMPTY_PATH);
        if (S_ISREG(st.st_mode) && !(flags & O_PATH))
            say(" at %lld", (long long)lseek(slots[i], 0, SEEK_CUR));
        if (S_ISREG(st.st_mode) && !(flags & O_PATH) && (flags & O_ACCMODE) != O_WRONLY)
            say_content(slots[i]);
    }
    if (cwd >= 0 && fchdir(cwd) < 0)
        say(" fchdir: %s", strerrorname_np(errno));
    if (cwd >= 0)
        (void)close(cwd);
    become(user_id, group_id);
    return 0;
}

/* ---- the list ---- */

static const struct {
    const char *name;
    unsigned args;
    long (*run)(void);
} ops[] = {
    {"open", 4, op_open},         {"close", 1, op_close},         {"dup", 2, op_dup},
    {"reopen", 3, op_reopen},     {"read", 2, op_read},           {"pread", 3, op_pread},
    {"preadv", 3, op_preadv},     {"write", 4, op_write},         {"pwrite", 5, op_pwrite},
    {"pwritev", 6, op_pwritev},   {"lseek", 3, op_lseek},         {"seekdata", 3, op_seekdata},
    {"ftruncate", 2, op_ftruncate}, {"truncate", 2, op_truncate}, {"fallocate", 4, op_fallocate},
    {"fsync", 1, op_fsync},       {"fdatasync", 1, op_fdatasync}, {"syncfs", 1, op_syncfs},
    {"copy", 5, op_copy},         {"sendfile", 3, op_sendfile},   {"splice", 3, op_splice},
    {"mmap", 7, op_mmap},         {"munmap", 1, op_munmap},       {"mread", 3, op_mread},
    {"mwrite", 5, op_mwrite},     {"msync", 2, op_msync},         {"stat", 1, op_stat},
    {"lstat", 1, op_lstat},       {"fstat", 1, op_fstat},         {"access", 2, op_access},
    {"statfs", 1, op_statfs},     {"chmod", 2, op_chmod},         {"fchmod", 2, op_fchmod},
    {"chown", 3, op_chown},       {"lchown", 3, op_lchown},       {"fchown", 3, op_fchown},
    {"utimens", 4, op_utimens},   {"futimens", 3, op_futimens},   {"setxattr", 5, op_setxattr},
    {"fsetxattr", 5, op_fsetxattr}, {"getxattr", 3, op_getxattr}, {"removexattr", 2, op_removexattr},
    {"listxattr", 1, op_listxattr}, {"mkdir", 2, op_mkdir},       {"rmdir", 1, op_rmdir},
    {"unlink", 1, op_unlink},     {"rename", 3, op_rename},       {"link", 3, op_link},
    {"linkfd", 3, op_linkfd},     {"symlink", 2, op_symlink},     {"readlink", 1, op_readlink},
    {"mknod", 2, op_mknod},       {"chdir", 1, op_chdir},         {"flock", 2, op_flock},
    {"lock", 5, op_lock},         {"list", 1, op_list},           {"dirbegin", 2, op_dirbegin},
    {"dirread", 2, op_dirread},   {"dirseek", 1, op_dirseek},     {"dirend", 1, op_dirend},
    {"user", 2, op_user},         {"umask", 1, op_umask},         {"walk", 0, op_walk},
};

static void run_line(char *line)
{
    unsigned args = 0;
    char *rest = line, *name = strsep(&rest, " \n");
    long r = LONG_MIN;

    memset(arg, 0, sizeof(arg));
    while (rest && *rest && args < ARGS_MAX)
        arg[args++] = strsep(&rest, " \n");
    detail_bytes = 0;
    detail[0] = 0;
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (strcmp(ops[i].name, name) != 0)
            continue;
        if (args < ops[i].args) {
            (void)fprintf(stderr, "%s needs %u arguments, has %u\n", name, ops[i].args, args);
            exit(2);
        }
        r = ops[i].run();
    }
    if (r == LONG_MIN) {
        (void)fprintf(stderr, "no operation %s\n", name);
        exit(2);
    }
    if (r < 0)
        (void)printf("%s%s\n", strerrorname_np((int)-r), detail);
    else
        (void)printf("%ld%s\n", r, detail);
}

/* As a careful program ends: every mapping written back, every descriptor closed. */
static void finish(void)
{
    become(0, 0);
    for (unsigned i = 0; i < MAPS; i++)
        if (maps[i].at)
            unmap(&maps[i]);
    for (unsigned i = 0; i < STREAMS; i++)
        stream_forget(&streams[i]);
    for (unsigned i = 0; i < SLOTS; i++)
        if (slots[i] >= 0)
            (void)close(slots[i]);
}

int main(int argc, char **argv)
{
    static char line[16384], out[1 << 16];
    struct timespec now;

    with_passthrough = argc == 3 && strcmp(argv[2], "--passthrough") == 0;
    if (argc != 2 + with_passthrough || chdir(argv[1]) < 0) {
        (void)fprintf(stderr, "usage: diff_executor DIRECTORY [--passthrough] < operations: %s\n", strerror(errno));
        return 2;
    }
    (void)setvbuf(stdout, out, _IOFBF, sizeof(out));
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
    start_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - 600 * 1000000000ll; /* a list may go on in a second run */
    root_fd = open(".", O_PATH | O_CLOEXEC);
    buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (root_fd < 0 || buffer == MAP_FAILED)
        return 2;
    (void)signal(SIGPIPE, SIG_IGN);
    mapped_init();
    (void)umask(022);
    for (unsigned i = 0; i < SLOTS; i++)
        slots[i] = -1;
    for (unsigned i = 0; i < MAPS; i++)
        maps[i].keep_fd = -1;
    for (op_no = 1; fgets(line, sizeof(line), stdin); op_no++)
        run_line(line);
    finish();
    return fflush(stdout) == 0 ? 0 : 2;
}
