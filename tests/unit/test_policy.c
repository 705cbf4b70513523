/* SPDX-License-Identifier: BSD-2-Clause */
/* Which policy counts for a file with several names: as names come and go, and after a restart. */
#include <errno.h>
#include <fcntl.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

static uint64_t now_ns;

static uint64_t test_mono(void *ctx)
{
    (void)ctx;
    return now_ns;
}

static const struct clock_ops test_clock = {.mono_ns = test_mono, .wall_ns = test_mono};
static const struct larder_cred cred = {.umask = 022};

static struct larder *open_on(struct memdisk *d)
{
    struct cache_host host = {
        .io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &test_clock, .boot_id = {1}};
    struct errtext err = {.text = ""};
    struct larder_options opts;
    struct larder *l;

    now_ns = 1000 * NS_PER_S;
    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

static uint64_t make_dir(struct larder *l, const char *name, const char *ttl)
{
    struct larder_attr attr;

    CHECK_OK(larder_mkdir(l, LARDER_ROOT, name, strlen(name), 0755, &cred, &attr));
    CHECK_OK(larder_setxattr(l, attr.ino, "user.larder.ttl", ttl, strlen(ttl), 0));
    return attr.ino;
}

static uint64_t make_file(struct larder *l, uint64_t dir, const char *name)
{
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_OK(larder_create(l, dir, name, strlen(name), 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    return attr.ino;
}

static uint64_t ttl_of(struct larder *l, uint64_t id)
{
    const struct node *n;
    uint64_t ttl;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    CHECK(n != NULL);
    ttl = policy_ttl(l, n, NULL);
    lock_give(&l->lock);
    return ttl;
}

/* A checkpoint writes names in the order of their slots. The link gets a slot below that of the first name: after a restart
 * the first name counted as the newest, and the key was under another deadline than before. */
static void a_restart_leaves_a_file_with_two_names_under_its_policy(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    uint64_t first, second, file;
    struct larder_attr attr;

    first = make_dir(l, "first", "1h");
    second = make_dir(l, "second", "2h");
    (void)make_file(l, first, "gone");
    file = make_file(l, first, "file");
    CHECK_OK(larder_unlink(l, first, "gone", 4));
    CHECK_OK(larder_link(l, file, second, "link", 4, &attr));
    CHECK_EQ(ttl_of(l, file), 7200 * NS_PER_S);
    CHECK_OK(larder_close(l));
    l = open_on(d);
    CHECK_EQ(ttl_of(l, file), 7200 * NS_PER_S);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

static unsigned count_swept_at(struct larder *l, uint64_t age_s)
{
    now_ns = (1000 + age_s) * NS_PER_S;
    (void)cache_expire_due(l);
    return (unsigned)atomic_load(&l->counters.expired_ttl);
}

/* Nobody looked when it would be over: hidden from every lookup it kept its room until somebody asked for it. */
static void a_link_into_a_directory_with_a_ttl_is_swept_in_time(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    uint64_t first = make_dir(l, "first", "none"), second = make_dir(l, "second", "1h"), file;
    struct larder_attr attr;

    file = make_file(l, first, "file");
    CHECK_OK(larder_link(l, file, second, "link", 4, &attr));
    CHECK_EQ(count_swept_at(l, 3500), 0);
    CHECK_EQ(count_swept_at(l, 3700), 1);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

static void a_file_that_loses_its_longer_ttl_with_a_name_is_swept_in_time(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    uint64_t first = make_dir(l, "first", "1h"), second = make_dir(l, "second", "none"), file;
    struct larder_attr attr;

    file = make_file(l, second, "file");
    CHECK_OK(larder_link(l, file, first, "link", 4, &attr));
    CHECK_OK(larder_unlink(l, second, "file", 4));
    CHECK_EQ(count_swept_at(l, 3500), 0);
    CHECK_EQ(count_swept_at(l, 3700), 1);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

int main(void)
{
    RUN(a_restart_leaves_a_file_with_two_names_under_its_policy);
    RUN(a_file_that_loses_its_longer_ttl_with_a_name_is_swept_in_time);
    RUN(a_link_into_a_directory_with_a_ttl_is_swept_in_time);
    return 0;
}
