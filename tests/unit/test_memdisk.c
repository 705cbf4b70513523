/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memdisk: the file system in memory that other tests stand on must be one.
 *
 * The same random calls go to it and to a directory of the machine; results, sizes, contents and names are compared
 * after each. What no other file system offers (clones, images, planting) is tested by itself.
 */
#include "memdisk.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "check.h"
#include "util.h"

#define FILES 6u
#define STEPS 6000u
#define FILE_BYTES_MAX (64u << 10)

struct pair {
    struct memdisk *disk;
    struct io *io;
    int dir, real_dir;
    char path[64];
};

static uint64_t rng_state = 1;

static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng_state >> 33) % below;
}

static void pair_open(struct pair *p)
{
    (void)snprintf(p->path, sizeof(p->path), "/tmp/larder-memdisk-XXXXXX");
    CHECK(mkdtemp(p->path));
    p->real_dir = open(p->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(p->real_dir >= 0);
    p->disk = memdisk_new();
    p->io = memdisk_io(p->disk);
    p->dir = memdisk_open_root(p->disk);
    CHECK_EQ(io_mkdir(p->io, p->dir, "sub", 0700), 0);
    CHECK_EQ(io_mkdir(&io_posix, p->real_dir, "sub", 0700), 0);
}

static int remove_visit(void *ctx, const char *name) /* io_visit */
{
    int *dir_fd = ctx;

    (void)unlinkat(*dir_fd, name, 0); /* sub itself is left for rmdir */
    return 0;
}

static void pair_close(struct pair *p)
{
    int sub = openat(p->real_dir, "sub", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    CHECK_OK(io_list(&io_posix, p->real_dir, remove_visit, &p->real_dir));
    CHECK_OK(io_list(&io_posix, sub, remove_visit, &sub));
    CHECK_EQ(close(sub), 0);
    CHECK_EQ(unlinkat(p->real_dir, "sub", AT_REMOVEDIR), 0);
    CHECK_EQ(rmdir(p->path), 0);
    CHECK_EQ(close(p->real_dir), 0);
    io_close(p->io, p->dir);
    CHECK_EQ(memdisk_open_count(p->disk), 0);
    memdisk_free(p->disk);
}

static void random_name(char out[16])
{
    (void)snprintf(out, 16, "%sf%u", rng(2) ? "sub/" : "", rng(FILES));
}

static void compare_file(struct pair *p, const char *name)
{
    static uint8_t a[FILE_BYTES_MAX * 2], b[FILE_BYTES_MAX * 2];
    struct stat sa, sb;
    size_t got_a = 0, got_b = 0;
    int fa = io_open(p->io, p->dir, name, O_RDONLY, 0), fb = io_open(&io_posix, p->real_dir, name, O_RDONLY, 0);

    CHECK_EQ(fa < 0 ? fa : 0, fb < 0 ? fb : 0);
    if (fa < 0)
        return;
    CHECK_OK(io_stat(p->io, fa, &sa));
    CHECK_OK(io_stat(&io_posix, fb, &sb));
    CHECK_EQ(sa.st_size, sb.st_size);
    CHECK_EQ(sa.st_nlink, sb.st_nlink);
    CHECK_EQ(sa.st_mode, sb.st_mode);
    CHECK_OK(io_read_upto(p->io, fa, a, sizeof(a), 0, &got_a));
    CHECK_OK(io_read_upto(&io_posix, fb, b, sizeof(b), 0, &got_b));
    CHECK_EQ(got_a, got_b);
    CHECK(memcmp(a, b, got_a) == 0);
    io_close(p->io, fa);
    io_close(&io_posix, fb);
}

static void step_bytes(struct pair *p, const char *name)
{
    static uint8_t data[8192];
    uint64_t offset = rng(FILE_BYTES_MAX - 8192);
    uint32_t bytes = 1 + rng(8191), what = rng(8);
    int flags = O_RDWR | (rng(4) ? O_CREAT : 0) | (rng(8) ? 0 : O_TRUNC) | (rng(8) ? 0 : O_EXCL);
    int fa = io_open(p->io, p->dir, name, flags, 0600), fb = io_open(&io_posix, p->real_dir, name, flags, 0600);

    CHECK_EQ(fa < 0 ? fa : 0, fb < 0 ? fb : 0);
    if (fa < 0)
        return;
    memset(data, (int)rng(256), sizeof(data));
    if (what < 4)
        CHECK_EQ(io_write_full(p->io, fa, data, bytes, offset), io_write_full(&io_posix, fb, data, bytes, offset));
    else if (what == 4)
        CHECK_EQ(io_truncate(p->io, fa, offset), io_truncate(&io_posix, fb, offset));
    else if (what == 5)
        CHECK_EQ(io_punch(p->io, fa, offset, bytes), io_punch(&io_posix, fb, offset, bytes));
    else
        CHECK_EQ(io_allocate(p->io, fa, what == 6 ? FALLOC_FL_KEEP_SIZE : 0, offset, bytes),
                 io_allocate(&io_posix, fb, what == 6 ? FALLOC_FL_KEEP_SIZE : 0, offset, bytes));
    io_close(p->io, fa);
    io_close(&io_posix, fb);
}

static void random_calls_give_what_a_real_directory_gives(void)
{
    struct pair p;
    char name[16], to[16];

    pair_open(&p);
    for (unsigned i = 0; i < STEPS; i++) {
        random_name(name);
        random_name(to);
        switch (rng(10)) {
        case 0: CHECK_EQ(io_unlink(p.io, p.dir, name), io_unlink(&io_posix, p.real_dir, name)); break;
        case 1: CHECK_EQ(io_rename(p.io, p.dir, name, to), io_rename(&io_posix, p.real_dir, name, to)); break;
        case 2: CHECK_EQ(io_rmdir(p.io, p.dir, name), io_rmdir(&io_posix, p.real_dir, name)); break;
        case 3: CHECK_EQ(io_rmdir(p.io, p.dir, "sub"), io_rmdir(&io_posix, p.real_dir, "sub"));
            CHECK_EQ(io_mkdir(p.io, p.dir, "sub", 0700), io_mkdir(&io_posix, p.real_dir, "sub", 0700)); break;
        default: step_bytes(&p, name); break;
        }
        compare_file(&p, name);
        compare_file(&p, to);
    }
    pair_close(&p);
}

static uint64_t blocks_of(struct io *io, int fd)
{
    uint64_t bytes = 0;

    CHECK_OK(io_disk_bytes(io, fd, &bytes));
    return bytes / MEMDISK_PAGE_BYTES;
}

static void blocks_and_holes_are_counted_as_ext4_does(void)
{
    struct memdisk *d = memdisk_new();
    struct io *io = memdisk_io(d);
    int dir = memdisk_open_root(d), fd = io_open(io, dir, "f", O_RDWR | O_CREAT, 0600);
    uint64_t offset = 0;

    CHECK_OK(io_allocate(io, fd, FALLOC_FL_KEEP_SIZE, 0, 40960));
    CHECK_EQ(blocks_of(io, fd), 10);
    CHECK_EQ(io_seek(io, fd, 0, SEEK_DATA, &offset), -ENXIO);
    CHECK_OK(io_write_full(io, fd, "x", 1, 8192));
    CHECK_EQ(blocks_of(io, fd), 10);
    CHECK_OK(io_seek(io, fd, 0, SEEK_DATA, &offset));
    CHECK_EQ(offset, 8192);
    CHECK_OK(io_seek(io, fd, 0, SEEK_HOLE, &offset));
    CHECK_EQ(offset, 0);
    CHECK_OK(io_truncate(io, fd, 8193));
    CHECK_EQ(blocks_of(io, fd), 3);
    CHECK_OK(io_punch(io, fd, 0, 8192));
    CHECK_EQ(blocks_of(io, fd), 1);
    CHECK_EQ(memdisk_used_bytes(d), 2 * MEMDISK_PAGE_BYTES);
    memdisk_set_capacity(d, 3 * MEMDISK_PAGE_BYTES);
    CHECK_OK(io_write_full(io, fd, "x", 1, 0));
    CHECK_EQ(io_write_full(io, fd, "x", 1, 4096), -ENOSPC);
    CHECK_OK(io_unlink(io, dir, "f"));
    CHECK_EQ(memdisk_used_bytes(d), 3 * MEMDISK_PAGE_BYTES);
    io_close(io, fd);
    CHECK_EQ(memdisk_used_bytes(d), MEMDISK_PAGE_BYTES);
    io_close(io, dir);
    memdisk_free(d);
}

static void a_clone_is_a_disk_of_its_own(void)
{
    struct memdisk *d = memdisk_new(), *clone;
    uint8_t *data;
    size_t bytes;

    CHECK_OK(memdisk_write_file(d, "f", "first", 5));
    clone = memdisk_clone(d);
    CHECK_OK(memdisk_write_file(clone, "g", "new", 3));
    CHECK_OK(memdisk_write_file(d, "f", "later", 5));
    CHECK_OK(memdisk_read_file(clone, "f", &data, &bytes));
    CHECK_EQ(bytes, 5);
    CHECK(memcmp(data, "first", 5) == 0);
    free(data);
    CHECK_EQ(memdisk_read_file(d, "g", &data, &bytes), -ENOENT);
    memdisk_free(d);
    CHECK_OK(memdisk_read_file(clone, "g", &data, &bytes));
    free(data);
    memdisk_free(clone);
}

static void links_and_locks_answer_as_the_kernel_does(void)
{
    struct memdisk *d = memdisk_new();
    struct io *io = memdisk_io(d);
    int dir = memdisk_open_root(d), one, two;

    CHECK_OK(memdisk_plant(d, "link", S_IFLNK | 0777, "/etc/passwd", 11));
    CHECK_OK(memdisk_plant(d, "fifo", S_IFIFO | 0600, NULL, 0));
    CHECK_EQ(io_open(io, dir, "link", O_RDWR | O_CREAT, 0600), -ELOOP);
    CHECK_EQ(io_open(io, dir, "link/x", O_RDONLY, 0), -ELOOP);
    CHECK_EQ(io_open(io, dir, "fifo", O_WRONLY | O_NONBLOCK, 0), -ENXIO);
    one = io_open(io, dir, "LOCK", O_RDWR | O_CREAT, 0600);
    two = io_open(io, dir, "LOCK", O_RDWR, 0600);
    CHECK_OK(io_lock(io, one));
    CHECK_EQ(io_lock(io, two), -EWOULDBLOCK);
    io_close(io, one);
    CHECK_OK(io_lock(io, two));
    io_close(io, two);
    io_close(io, dir);
    memdisk_free(d);
}

/* A put, an orderly close, and the value is there when the core opens the same disk again. */
static void the_core_runs_on_it(void)
{
    struct memdisk *d = memdisk_new();
    struct larder_options opts;
    struct larder_attr attr;
    struct larder_file *f;
    struct errtext err = {.text = ""};
    struct larder *l;
    char got[8];
    size_t bytes = 0;

    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    for (unsigned round = 0; round < 2; round++) {
        struct cache_host host = {.io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &clock_posix};
        struct larder_cred cred = {0};
        if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
            CHECK_FAIL("%s", err.text);
        if (round == 0) {
            CHECK_OK(larder_create(l, LARDER_ROOT, "key", 3, 0644, O_WRONLY, &cred, &attr, &f));
            CHECK_OK(larder_write(f, "value", 5, 0, false));
            CHECK_OK(larder_flush(f));
        } else {
            CHECK_OK(larder_lookup(l, LARDER_ROOT, "key", 3, &attr));
            CHECK_OK(larder_open_file(l, attr.ino, O_RDONLY, &f));
            CHECK_OK(larder_read(f, got, sizeof(got), 0, false, &bytes));
            CHECK_EQ(bytes, 5);
            CHECK(memcmp(got, "value", 5) == 0);
        }
        larder_release(f);
        larder_forget(l, attr.ino, 1);
        CHECK_OK(larder_close(l));
        CHECK_EQ(memdisk_open_count(d), 0);
    }
    memdisk_free(d);
}

int main(void)
{
    RUN(random_calls_give_what_a_real_directory_gives);
    RUN(blocks_and_holes_are_counted_as_ext4_does);
    RUN(a_clone_is_a_disk_of_its_own);
    RUN(links_and_locks_answer_as_the_kernel_does);
    RUN(the_core_runs_on_it);
    return 0;
}
