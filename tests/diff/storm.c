/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * storm: several processes on the same files of one directory, and what must be true whoever comes first.
 *
 *     diff_storm DIRECTORY KIND SECONDS SEED
 *
 *   append    records appended by all to one file are whole, none is lost, each writer's are in order
 *   replace   values replaced by rename are seen whole, and never go back; they are never missing
 *   words     one file written, mapped, truncated, punched, copied to and read by all: every word read was written there
 *             by somebody, or is zero
 *   renames   directories moved into each other by all: none is lost, none is twice, none contains itself
 *   winners   of all who make one name (open, mkdir, link, rename) exactly one succeeds
 *   links     names of one file made, moved and removed by all: its link count is the number of names left
 *   listing   names that stay are listed exactly once while others come and go
 *
 * Prints the number of operations; the first breach is told on standard error, and the exit status is 1.
 */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "diff/mapped.h"

#define WORKERS 4
#define BYTES_MAX (600u << 10)
#define KEYS 4
#define DIRECTORIES 40
#define STEADY 300
#define LINK_NAMES 40

struct shared {
    _Atomic uint64_t operations;
    _Atomic uint32_t seq[WORKERS]; /* append: how many each has written */
    _Atomic uint32_t round, arrived, won, ended;
    _Atomic bool stop, failed;
};

static struct shared *shared;
static unsigned worker; /* which of them this process is */
static uint64_t random_state;
static uint8_t *buffer;

/* ---- tools ---- */

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, format);
    (void)vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    (void)fprintf(stderr, "worker %u: %s (%s)\n", worker, text, strerror(errno));
    atomic_store(&shared->failed, true);
    atomic_store(&shared->stop, true);
    _exit(1);
}

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 11;
}

static uint32_t below(uint32_t bound)
{
    return (uint32_t)(random_next() % bound);
}

static bool go_on(void)
{
    (void)atomic_fetch_add_explicit(&shared->operations, 1, memory_order_relaxed);
    return !atomic_load_explicit(&shared->stop, memory_order_relaxed);
}

static int must_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);

    if (fd < 0)
        fail("open %s", path);
    return fd;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

/* A size that crosses what the engine treats differently. */
static uint32_t some_size(uint32_t max)
{
    static const uint32_t bounds[] = {200, 5000, 70000, 300000, BYTES_MAX};
    uint32_t bound = bounds[below(5)];

    return 16 + below(bound < max ? bound : max) / 8 * 8;
}

/* ---- append ---- */

struct record {
    uint32_t magic, writer, seq, bytes; /* bytes: of what follows */
};

#define RECORD_MAGIC 0x4c525321u

static void append_worker(void)
{
    struct record *r = (struct record *)buffer;
    int fd = must_open("log", O_WRONLY | O_APPEND);
    uint32_t seq = 0;

    while (go_on()) {
        *r = (struct record){.magic = RECORD_MAGIC, .writer = worker, .seq = seq++, .bytes = some_size(30000)};
        memset(buffer + sizeof(*r), (int)(worker * 16 + (r->seq & 15)), r->bytes);
        if (write(fd, buffer, sizeof(*r) + r->bytes) != (ssize_t)(sizeof(*r) + r->bytes))
            fail("append");
        if (below(50) == 0 && fsync(fd) < 0)
            fail("fsync");
        if (below(20) == 0) {
            if (close(fd) < 0)
                fail("close");
            fd = must_open("log", O_WRONLY | O_APPEND);
        }
    }
    if (close(fd) < 0)
        fail("close");
    atomic_store(&shared->seq[worker], seq);
}

static void append_check(void)
{
    uint32_t next[WORKERS] = {0};
    int fd = must_open("log", O_RDONLY);
    struct record r;

    while (read(fd, &r, sizeof(r)) == sizeof(r)) {
        if (r.magic != RECORD_MAGIC || r.writer >= WORKERS || r.bytes > BYTES_MAX)
            fail("append: no record at %lld", (long long)lseek(fd, 0, SEEK_CUR));
        if (r.seq != next[r.writer]++)
            fail("append: writer %u, %u in place of %u", r.writer, r.seq, next[r.writer] - 1);
        if (read(fd, buffer, r.bytes) != (ssize_t)r.bytes)
            fail("append: the last record is short");
        for (uint32_t i = 0; i < r.bytes; i++)
            if (buffer[i] != (uint8_t)(r.writer * 16 + (r.seq & 15)))
                fail("append: writer %u, record %u, byte %u", r.writer, r.seq, i);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        if (next[i] != atomic_load(&shared->seq[i]))
            fail("append: writer %u has %u of %u", i, next[i], atomic_load(&shared->seq[i]));
    (void)close(fd);
}

/* ---- replace ---- */

static void replace_value(uint32_t seq)
{
    uint64_t *words = (uint64_t *)buffer;
    uint32_t count = some_size(BYTES_MAX - 64) / 8;
    char tmp[32], key[32];
    bool before = below(2);
    int fd;

    (void)snprintf(tmp, sizeof(tmp), "tmp-%u", worker);
    (void)snprintf(key, sizeof(key), "key-%u", worker);
    words[0] = (uint64_t)seq << 32 | count;
    for (uint32_t i = 1; i < count; i++)
        words[i] = mix((uint64_t)seq << 32 | i);
    fd = must_open(tmp, O_WRONLY | O_CREAT | O_TRUNC);
    for (size_t at = 0, n; at < count * 8ul; at += n) {
        n = count * 8ul - at < 65536 ? count * 8ul - at : 65536;
        if (write(fd, buffer + at, n) != (ssize_t)n)
            fail("write %s", tmp);
    }
    if (before && rename(tmp, key) < 0)
        fail("rename %s", tmp);
    if (close(fd) < 0)
        fail("close %s", tmp);
    if (!before && rename(tmp, key) < 0)
        fail("rename %s", tmp);
}

static void replace_look(uint32_t *newest)
{
    uint32_t key_no = below(WORKERS);
    char key[32];
    struct stat st;
    const uint64_t *words = (const uint64_t *)buffer;
    ssize_t n;
    int fd;

    (void)snprintf(key, sizeof(key), "key-%u", key_no);
    fd = must_open(key, O_RDONLY);
    if (fstat(fd, &st) < 0)
        fail("stat %s", key);
    n = read(fd, buffer, BYTES_MAX * 2);
    if (n < 16 || n != st.st_size || (uint32_t)words[0] != (uint64_t)n / 8)
        fail("replace: %s is cut: %zd of %lld bytes, %u words", key, n, (long long)st.st_size, (uint32_t)words[0]);
    if ((uint32_t)(words[0] >> 32) < newest[key_no])
        fail("replace: %s went back from %u", key, newest[key_no]);
    newest[key_no] = (uint32_t)(words[0] >> 32);
    for (uint32_t i = 1; i < (uint64_t)n / 8; i++)
        if (words[i] != mix((uint64_t)newest[key_no] << 32 | i))
            fail("replace: %s is mixed at word %u", key, i);
    (void)close(fd);
}

static void replace_prepare(void)
{
    for (worker = 0; worker < WORKERS; worker++)
        replace_value(1);
    worker = 0;
}

static void replace_worker(void)
{
    uint32_t newest[WORKERS] = {0};

    for (uint32_t seq = 2; go_on(); seq++) {
        replace_value(seq);
        for (unsigned i = 0; i < 3; i++)
            replace_look(newest);
    }
}

/* ---- words ---- */

static uint64_t word_of(uint32_t writer, uint32_t seq, uint64_t index)
{
    return (uint64_t)(writer + 1) << 56 | (uint64_t)(seq & 0xffffff) << 32 | (uint32_t)mix(index * 977);
}

static void words_fill(uint64_t offset, uint32_t bytes)
{
    uint64_t *words = (uint64_t *)buffer;
    static uint32_t seq;

    seq++;
    for (uint32_t i = 0; i < bytes / 8; i++)
        words[i] = word_of(worker, seq, offset / 8 + i);
}

/* A word read while it is written may be old in some bytes and new in others, on a local file system, too: so each byte
 * is looked at. The lower four belong to the place, whoever wrote them. */
static bool word_is_known(uint64_t word, uint64_t index)
{
    uint64_t place = word_of(0, 0, index);

    if (word >> 56 > WORKERS)
        return false;
    for (unsigned shift = 0; shift < 32; shift += 8)
        if ((word >> shift & 0xff) != 0 && (word >> shift & 0xff) != (place >> shift & 0xff))
            return false;
    return true;
}

static void words_check(const char *how, uint64_t offset, ssize_t bytes)
{
    const uint64_t *words = (const uint64_t *)buffer;

    for (ssize_t i = 0; i < bytes / 8; i++) {
        uint64_t index = offset / 8 + (uint64_t)i;

        if (!word_is_known(words[i], index))
            fail("words: %s, word %llu is %016llx", how, (unsigned long long)index, (unsigned long long)words[i]);
    }
}

static void words_map(int fd, uint64_t offset, uint32_t bytes, bool write_it)
{
    uint64_t start = offset & ~4095ull;
    size_t map_bytes = (size_t)(offset - start) + bytes;
    uint8_t *at = mmap(NULL, map_bytes, PROT_READ | (write_it ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)start);

    if (at == MAP_FAILED)
        fail("mmap");
    if (write_it) {
        words_fill(offset, bytes);
        (void)mapped_copy(at + (offset - start), buffer, bytes);
        if (below(3) == 0 && msync(at, map_bytes, MS_SYNC) < 0)
            fail("msync");
    } else if (mapped_copy(buffer, at + (offset - start), bytes)) {
        words_check("mapped", offset, bytes);
    }
    (void)munmap(at, map_bytes);
}

static void words_write(int fd, uint64_t offset, uint32_t bytes)
{
    words_fill(offset, bytes);
    if (pwrite(fd, buffer, bytes, (off_t)offset) != (ssize_t)bytes)
        fail("pwrite");
}

/* Bytes come from a file of one's own, at the same offset: words are bound to it. */
static void words_copy(int fd, uint64_t offset, uint32_t bytes)
{
    char name[32];
    off64_t in = (off64_t)offset, out = (off64_t)offset;
    int own;

    (void)snprintf(name, sizeof(name), "own-%u", worker);
    own = must_open(name, O_RDWR | O_CREAT | O_TRUNC);
    words_write(own, offset, bytes);
    if (copy_file_range(own, &in, fd, &out, bytes, 0) < 0)
        fail("copy_file_range");
    (void)close(own);
}

static void words_step(int fd, int direct)
{
    uint32_t bytes = some_size(200000);
    uint64_t offset = below(BYTES_MAX) / 8 * 8ull;
    ssize_t n;

    switch (below(12)) {
    case 0:
        words_map(fd, offset, bytes, true);
        break;
    case 1:
        words_map(fd, offset, bytes, false);
        break;
    case 2:
        if (ftruncate(fd, (off_t)offset) < 0)
            fail("ftruncate");
        break;
    case 3:
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, bytes) < 0)
            fail("punch");
        break;
    case 4:
        words_copy(fd, offset, bytes);
        break;
    case 5:
        n = pread(direct, buffer, (bytes + 4095) & ~4095u, (off_t)(offset & ~4095ull));
        if (n < 0)
            fail("direct read");
        words_check("direct", offset & ~4095ull, n);
        break;
    case 6:
    case 7:
    case 8:
        words_write(fd, offset, bytes);
        break;
    default:
        n = pread(fd, buffer, bytes, (off_t)offset);
        if (n < 0)
            fail("pread");
        words_check("read", offset, n);
    }
}

static void words_worker(void)
{
    int fd = must_open("words", O_RDWR), direct = must_open("words", O_RDONLY | O_DIRECT);

    while (go_on()) {
        words_step(fd, direct);
        if (below(30) > 0)
            continue;
        if (below(2) && fsync(fd) < 0)
            fail("fsync");
        if (close(fd) < 0 || close(direct) < 0)
            fail("close");
        fd = must_open("words", O_RDWR | (below(4) ? 0 : O_TRUNC));
        direct = must_open("words", O_RDONLY | O_DIRECT);
    }
    (void)close(fd);
    (void)close(direct);
}

static void words_last_check(void)
{
    int fd = must_open("words", O_RDONLY);
    ssize_t n = pread(fd, buffer, BYTES_MAX * 2, 0);

    if (n < 0)
        fail("read");
    words_check("at the end", 0, n);
    (void)close(fd);
}

/* ---- renames ---- */

static unsigned subdirectories(const char *path, char names[][16], unsigned max)
{
    DIR *dir = opendir(path);
    struct dirent *e;
    unsigned count = 0;

    while (dir && (e = readdir(dir)) && count < max)
        if (e->d_name[0] == 'D')
            (void)snprintf(names[count++], 16, "%.15s", e->d_name);
    if (dir)
        (void)closedir(dir);
    return count;
}

/* A directory somewhere below, by going down at random. Returns where its last name starts, 0 for "." itself. */
static size_t somewhere(char *path, size_t path_bytes)
{
    static char names[DIRECTORIES][16];
    size_t length = 1, last = 0;

    (void)snprintf(path, path_bytes, ".");
    while (below(5) > 0) {
        unsigned count = subdirectories(path, names, DIRECTORIES);

        if (count == 0 || length + 20 > path_bytes)
            break;
        last = length + 1;
        length += (size_t)snprintf(path + length, path_bytes - length, "/%s", names[below(count)]);
    }
    return last;
}

static void renames_prepare(void)
{
    char path[64];

    for (unsigned i = 0; i < DIRECTORIES; i++) {
        (void)snprintf(path, sizeof(path), "D%u", i);
        if (mkdir(path, 0755) < 0)
            fail("mkdir %s", path);
        (void)snprintf(path, sizeof(path), "D%u/mark-%u", i, i);
        (void)close(must_open(path, O_WRONLY | O_CREAT));
    }
}

static void renames_worker(void)
{
    char from[2048], to[2048], target[4096];

    while (go_on()) {
        size_t last = somewhere(from, sizeof(from));
        bool exchange = below(4) == 0;

        if (last == 0 || (somewhere(to, sizeof(to)) == 0 && exchange))
            continue;
        (void)snprintf(target, sizeof(target), "%s/%s", to, from + last);
        if (renameat2(AT_FDCWD, from, AT_FDCWD, exchange ? to : target, exchange ? RENAME_EXCHANGE : 0) < 0 &&
            errno != ENOENT && errno != EINVAL && errno != ENOTEMPTY)
            fail("rename %s %s", from, target);
    }
}

/* An exchange swaps what is below two names: marks say which directory it is. */
static void renames_count(const char *path, unsigned depth, unsigned *marks, unsigned *names)
{
    DIR *dir = opendir(path);
    struct dirent *e;
    char below_it[4096];

    if (!dir || depth > DIRECTORIES)
        fail("renames: %s, %u deep", path, depth);
    while ((e = readdir(dir))) {
        if (e->d_name[0] == 'D') {
            names[strtoul(e->d_name + 1, NULL, 10) % DIRECTORIES]++;
            (void)snprintf(below_it, sizeof(below_it), "%s/%s", path, e->d_name);
            renames_count(below_it, depth + 1, marks, names);
        } else if (e->d_name[0] == 'm') {
            marks[strtoul(e->d_name + 5, NULL, 10) % DIRECTORIES]++;
        }
    }
    (void)closedir(dir);
}

static void renames_check(void)
{
    unsigned marks[DIRECTORIES] = {0}, names[DIRECTORIES] = {0};

    renames_count(".", 0, marks, names);
    for (unsigned i = 0; i < DIRECTORIES; i++)
        if (marks[i] != 1 || names[i] != 1)
            fail("renames: directory %u is there %u times, its name %u times", i, marks[i], names[i]);
}

/* ---- winners ---- */

static bool try_to_win(unsigned how, const char *own)
{
    int fd;

    switch (how) {
    case 0:
        fd = open("prize", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd >= 0)
            (void)close(fd);
        return fd >= 0;
    case 1:
        return mkdir("prize", 0755) == 0;
    case 2:
        return link(own, "prize") == 0;
    case 3:
        return symlink("x", "prize") == 0;
    default:
        return renameat2(AT_FDCWD, own, AT_FDCWD, "prize", RENAME_NOREPLACE) == 0;
    }
}

/* All meet, all try, all meet again; one of them looks and takes the prize away. */
static bool meet(_Atomic uint32_t *count, uint32_t round)
{
    (void)atomic_fetch_add(count, 1);
    while (atomic_load(count) < WORKERS * round) {
        if (atomic_load(&shared->stop))
            return false;
        (void)sched_yield();
    }
    return true;
}

static void winners_worker(void)
{
    char own[32];

    (void)snprintf(own, sizeof(own), "own-%u", worker);
    for (uint32_t round = 1; go_on(); round++) {
        int fd = open(own, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

        if (fd < 0 || close(fd) < 0)
            fail("open %s", own);
        if (!meet(&shared->arrived, round))
            return;
        if (try_to_win(round % 5, own))
            (void)atomic_fetch_add(&shared->won, 1);
        else if (errno != EEXIST)
            fail("winners: %u", round % 5);
        if (!meet(&shared->ended, round))
            return;
        if (worker == 0) {
            if (atomic_load(&shared->won) != 1)
                fail("winners: %u won by way %u", atomic_load(&shared->won), round % 5);
            atomic_store(&shared->won, 0);
            if (unlink("prize") < 0 && rmdir("prize") < 0)
                fail("remove the prize");
            atomic_store(&shared->round, round);
        }
        while (atomic_load(&shared->round) < round) {
            if (atomic_load(&shared->stop))
                return;
            (void)sched_yield();
        }
    }
}

/* ---- links ---- */

static void links_worker(void)
{
    char a[32], b[32];
    int fd;

    while (go_on()) {
        (void)snprintf(a, sizeof(a), "name-%u", below(LINK_NAMES));
        (void)snprintf(b, sizeof(b), "name-%u", below(LINK_NAMES));
        switch (below(5)) {
        case 0:
        case 1:
            (void)link("name-base", a);
            break;
        case 2:
            (void)rename(a, b);
            break;
        case 3:
            (void)unlink(a);
            break;
        default:
            fd = open(a, O_RDWR | O_CLOEXEC);
            if (fd < 0)
                break;
            if (pwrite(fd, a, strlen(a), below(1000)) < 0)
                fail("write %s", a);
            (void)close(fd);
        }
    }
}

static void links_check(void)
{
    struct stat base, st;
    char name[32];
    nlink_t count = 1;

    if (stat("name-base", &base) < 0)
        fail("stat name-base");
    for (unsigned i = 0; i < LINK_NAMES; i++) {
        (void)snprintf(name, sizeof(name), "name-%u", i);
        if (lstat(name, &st) < 0)
            continue;
        if (st.st_ino != base.st_ino || st.st_nlink != base.st_nlink)
            fail("links: %s is another file", name);
        count++;
    }
    if (count != base.st_nlink)
        fail("links: %lu names, st_nlink %lu", (unsigned long)count, (unsigned long)base.st_nlink);
}

/* ---- listing ---- */

static void listing_prepare(void)
{
    char name[32];

    for (unsigned i = 0; i < STEADY; i++) {
        (void)snprintf(name, sizeof(name), "steady-%u", i);
        (void)close(must_open(name, O_WRONLY | O_CREAT));
    }
}

static void listing_churn(void)
{
    char a[32], b[32];
    int fd;

    (void)snprintf(a, sizeof(a), "come-%u-%u", worker, below(200));
    (void)snprintf(b, sizeof(b), "come-%u-%u", worker, below(200));
    switch (below(3)) {
    case 0:
        fd = open(a, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0 || close(fd) < 0)
            fail("open %s", a);
        break;
    case 1:
        (void)rename(a, b);
        break;
    default:
        (void)unlink(a);
    }
}

static void listing_look(void)
{
    unsigned times[STEADY] = {0};
    struct dirent *e;
    DIR *dir = opendir(".");

    if (!dir)
        fail("opendir");
    while ((e = readdir(dir))) {
        if (strncmp(e->d_name, "steady-", 7) == 0)
            times[strtoul(e->d_name + 7, NULL, 10) % STEADY]++;
        if (below(20) == 0)
            listing_churn();
    }
    (void)closedir(dir);
    for (unsigned i = 0; i < STEADY; i++)
        if (times[i] != 1)
            fail("listing: steady-%u is listed %u times", i, times[i]);
}

static void listing_worker(void)
{
    while (go_on()) {
        listing_churn();
        if (below(20) == 0)
            listing_look();
    }
}

/* ---- all of them ---- */

static void append_prepare(void)
{
    (void)close(must_open("log", O_WRONLY | O_CREAT));
}

static void words_prepare(void)
{
    (void)close(must_open("words", O_WRONLY | O_CREAT));
}

static void links_prepare(void)
{
    (void)close(must_open("name-base", O_WRONLY | O_CREAT));
}

static void nothing(void)
{
}

static const struct {
    const char *name;
    void (*prepare)(void), (*work)(void), (*check)(void);
} kinds[] = {
    {"append", append_prepare, append_worker, append_check}, {"replace", replace_prepare, replace_worker, nothing},
    {"words", words_prepare, words_worker, words_last_check}, {"renames", renames_prepare, renames_worker, renames_check},
    {"winners", nothing, winners_worker, nothing},            {"links", links_prepare, links_worker, links_check},
    {"listing", listing_prepare, listing_worker, nothing},
};

static int run_kind(size_t k, double seconds, uint64_t seed)
{
    pid_t pids[WORKERS];
    struct timespec pause = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    int status, failed = 0;

    random_state = mix(seed + 99) | 1;
    kinds[k].prepare();
    for (unsigned i = 0; i < WORKERS; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            worker = i;
            random_state = mix(seed * WORKERS + i + 1) | 1;
            kinds[k].work();
            _exit(0);
        }
    }
    (void)nanosleep(&pause, NULL);
    atomic_store(&shared->stop, true);
    for (unsigned i = 0; i < WORKERS; i++)
        failed |= waitpid(pids[i], &status, 0) < 0 || status != 0;
    if (failed || atomic_load(&shared->failed))
        return 1;
    kinds[k].check();
    (void)printf("%llu\n", (unsigned long long)atomic_load(&shared->operations));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 5 || chdir(argv[1]) < 0) {
        (void)fprintf(stderr, "usage: diff_storm DIRECTORY KIND SECONDS SEED: %s\n", strerror(errno));
        return 2;
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    buffer = mmap(NULL, BYTES_MAX * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || buffer == MAP_FAILED)
        return 2;
    mapped_init();
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
        if (strcmp(kinds[k].name, argv[2]) == 0)
            return run_kind(k, strtod(argv[3], NULL), strtoull(argv[4], NULL, 10));
    (void)fprintf(stderr, "no kind %s\n", argv[2]);
    return 2;
}
