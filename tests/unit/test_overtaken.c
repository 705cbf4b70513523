/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Calls that another one overtakes, at each moment at which it can: a rename, between the commit of what it moves (from
 * whose fdatasync the overtaker is called) and the move itself; a release, wherever it holds no lock.
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

/* Where the release is stopped: after so many times that it has given back all its locks. */
static _Thread_local unsigned locks_held;
static _Thread_local unsigned stop_at;
static struct larder_file *next;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's --wrap wants these names */
void __real_lock_take(struct lock *l);
void __real_lock_give(struct lock *l);
void __wrap_lock_take(struct lock *l);
void __wrap_lock_give(struct lock *l);

void __wrap_lock_take(struct lock *l)
{
    __real_lock_take(l);
    locks_held++;
}

static void *truncate_it(void *arg)
{
    CHECK_OK(larder_open_file(shared_larder, *(uint64_t *)arg, O_WRONLY | O_TRUNC, &next));
    return NULL;
}

static uint64_t key;

void __wrap_lock_give(struct lock *l)
{
    pthread_t thread;

    __real_lock_give(l);
    locks_held--;
    if (locks_held > 0 || stop_at == 0 || --stop_at > 0)
        return;
    CHECK_OK(pthread_create(&thread, NULL, truncate_it, &key));
    CHECK_OK(pthread_join(thread, NULL));
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* The release committed the empty file of an open that came between its look at the writers and its commit: a SIGKILL
 * then left neither the old value nor the new one. */
static void a_release_does_not_commit_the_truncation_of_the_next_writer(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = shared_larder = open_on(d, LARDER_DURABILITY_CLOSE);
    struct larder_file *closed;
    struct larder_attr attr;
    unsigned moments = 0;

    closed = create(l, "key", "value");
    CHECK_OK(larder_flush(closed));
    larder_release(closed);
    CHECK_OK(larder_lookup(l, LARDER_ROOT, "key", 3, &attr));
    key = attr.ino;
    do {
        next = NULL;
        CHECK_OK(larder_open_file(l, key, O_WRONLY, &closed));
        stop_at = ++moments;
        larder_release(closed);
        stop_at = 0;
        if (next)
            larder_abandon(next); /* as a kill would */
        check_value(l, "key", "value");
    } while (next);
    CHECK(moments > 3);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

int main(void)
{
    RUN(a_file_that_takes_the_name_during_a_rename_is_committed_by_it);
    RUN(a_release_does_not_commit_the_truncation_of_the_next_writer);
    return 0;
}
