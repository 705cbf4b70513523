/* SPDX-License-Identifier: BSD-2-Clause */
/* What is said of a key that left while its caller still knew the name. */
#include <errno.h>
#include <fcntl.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

static uint64_t now_ns = 1000 * NS_PER_S;

static uint64_t test_mono(void *ctx)
{
    (void)ctx;
    return now_ns;
}

static const struct clock_ops test_clock = {.mono_ns = test_mono, .wall_ns = test_mono};
static const struct larder_cred cred = {.umask = 022};

static struct larder *open_for_one_entry(struct memdisk *d)
{
    struct cache_host host = {
        .io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &test_clock, .boot_id = {1}};
    struct errtext err = {.text = ""};
    struct larder_options opts;
    struct larder *l;

    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    opts.max_entries = 1;
    if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

/* The caller keeps its reference: it knows the name. */
static uint64_t make_file(struct larder *l, const char *name)
{
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_OK(larder_create(l, LARDER_ROOT, name, strlen(name), 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    return attr.ino;
}

static void check_stale(struct larder *l, uint64_t id)
{
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_EQ(larder_link(l, id, LARDER_ROOT, "link", 4, &attr), -ESTALE);
    CHECK_EQ(larder_getattr(l, id, &attr), -ESTALE);
    CHECK_EQ(larder_open_file(l, id, O_RDONLY, &f), -ESTALE);
}

/* Link said ENOENT, and the kernel went on showing the name until it was told. */
static void an_evicted_key_is_stale_to_link_stat_and_open(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_for_one_entry(d);
    uint64_t evicted = make_file(l, "evicted");

    (void)make_file(l, "other");
    check_stale(l, evicted);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

/* Link gave it a second name. */
static void an_expired_key_is_stale_to_link_stat_and_open(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_for_one_entry(d);
    uint64_t id = make_file(l, "expires");

    CHECK_OK(larder_setxattr(l, id, "user.larder.ttl", "1s", 2, 0));
    now_ns += 2 * NS_PER_S;
    check_stale(l, id);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

int main(void)
{
    RUN(an_evicted_key_is_stale_to_link_stat_and_open);
    RUN(an_expired_key_is_stale_to_link_stat_and_open);
    return 0;
}
