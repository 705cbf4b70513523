/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A rename that another overtakes between the commit of what it moves and the move itself. The overtaker is called from
 * the commit's fdatasync, so it comes at that very moment, each time.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

static struct larder *shared_larder;
static struct larder_file *second;
static struct io hooked;
static struct io_ops hooked_ops;
static const struct io_ops *plain_ops;
static void *(*at_sync)(void *arg);

static uint64_t test_mono(void *ctx)
{
    (void)ctx;
    return 1000 * NS_PER_S;
}

static const struct clock_ops test_clock = {.mono_ns = test_mono, .wall_ns = test_mono};
static const struct larder_cred cred = {.umask = 022};

/* Once, and from a thread of its own: this one holds locks of the file that is committed. */
static int hooked_fdatasync(struct io *io, int fd)
{
    void *(*run)(void *arg) = at_sync;
    pthread_t thread;

    at_sync = NULL;
    if (run) {
        CHECK_OK(pthread_create(&thread, NULL, run, NULL));
        CHECK_OK(pthread_join(thread, NULL));
    }
    return plain_ops->fdatasync(io, fd);
}

static struct larder *open_on(struct memdisk *d, enum larder_durability durability)
{
    struct io *io = memdisk_io(d);
    struct cache_host host = {.io = &hooked, .dir_fd = memdisk_open_root(d), .clock_ops = &test_clock, .boot_id = {1}};
    struct errtext err = {.text = ""};
    struct larder_options opts;
    struct larder *l;

    plain_ops = io->ops;
    hooked_ops = *io->ops;
    hooked_ops.fdatasync = hooked_fdatasync;
    hooked = (struct io){.ops = &hooked_ops, .ctx = io->ctx};
    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    opts.durability = durability;
    if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

static struct larder_file *create(struct larder *l, const char *name, const char *value)
{
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_OK(larder_create(l, LARDER_ROOT, name, strlen(name), 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_write(f, value, strlen(value), 0, false));
    larder_forget(l, attr.ino, 1);
    return f;
}

static void check_value(struct larder *l, const char *name, const char *value)
{
    struct larder_attr attr;
    struct larder_file *f;
    char got[64] = "";
    size_t bytes = 0;

    CHECK_OK(larder_lookup(l, LARDER_ROOT, name, strlen(name), &attr));
    CHECK_OK(larder_open_file(l, attr.ino, O_RDONLY, &f));
    CHECK_OK(larder_read(f, got, sizeof(got), 0, false, &bytes));
    CHECK_EQ(bytes, strlen(value));
    CHECK(memcmp(got, value, bytes) == 0);
    larder_release(f);
}

static void *take_the_name(void *arg)
{
    CHECK_OK(larder_unlink(shared_larder, LARDER_ROOT, "from", 4));
    second = create(shared_larder, "from", "second");
    return arg;
}

/* The second file went over the target without ever having been logged: a SIGKILL then left neither. */
static void a_file_that_takes_the_name_during_a_rename_is_committed_by_it(void)
{
    struct memdisk *d = memdisk_new(), *left;
    struct larder *l = open_on(d, LARDER_DURABILITY_FSYNC), *again;
    struct larder_file *target, *first;

    shared_larder = l;
    target = create(l, "to", "zeroth");
    CHECK_OK(larder_flush(target));
    larder_release(target);
    first = create(l, "from", "first");
    at_sync = take_the_name;
    CHECK_OK(larder_rename(l, LARDER_ROOT, "from", 4, LARDER_ROOT, "to", 2, 0, &cred));
    CHECK(second != NULL);
    check_value(l, "to", "second");
    left = memdisk_clone(d); /* as a SIGKILL leaves it */
    again = open_on(left, LARDER_DURABILITY_CLOSE);
    check_value(again, "to", "second");
    CHECK_OK(larder_close(again));
    memdisk_free(left);
    hooked.ctx = memdisk_io(d)->ctx;
    larder_release(first);
    larder_release(second);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

int main(void)
{
    RUN(a_file_that_takes_the_name_during_a_rename_is_committed_by_it);
    return 0;
}
