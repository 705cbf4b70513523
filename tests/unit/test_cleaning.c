/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: cleaning moves records, and nothing else about their values changes. */
#include <fcntl.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

#define SMALL_COUNT 64u
#define LARGE_BYTES (64u << 10)

static uint64_t test_mono(void *ctx)
{
    (void)ctx;
    return 1000 * NS_PER_S;
}

static const struct clock_ops test_clock = {.mono_ns = test_mono, .wall_ns = test_mono};

static struct larder *open_on(struct memdisk *d)
{
    struct cache_host host = {
        .io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &test_clock, .boot_id = {1}};
    struct errtext err = {.text = ""};
    struct larder_options opts;
    struct larder *l;

    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    opts.big_bytes = 4 * KIB;
    opts.compress = LARDER_COMPRESS_NONE;
    if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

static void put(struct larder *l, const char *name, size_t bytes)
{
    static const struct larder_cred cred = {.umask = 022};
    static char data[LARGE_BYTES];
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_OK(larder_create(l, LARDER_ROOT, name, strlen(name), 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_write(f, data, bytes, 0, false));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    larder_forget(l, attr.ino, 1);
}

static void put_or_remove_small_ones(struct larder *l, bool there)
{
    char name[16];

    for (unsigned i = 0; i < SMALL_COUNT; i++) {
        (void)snprintf(name, sizeof(name), "small-%u", i);
        if (there)
            put(l, name, 3000);
        else
            CHECK_OK(larder_unlink(l, LARDER_ROOT, name, strlen(name)));
    }
}

static void look(struct larder *l, struct value *ret_value, bool *ret_unverified)
{
    struct larder_attr attr;
    struct node *n;

    CHECK_OK(larder_lookup(l, LARDER_ROOT, "large", 5, &attr));
    larder_forget(l, attr.ino, 1);
    lock_take(&l->lock);
    n = tree_node(l->tree, attr.ino);
    node_value(l->tree, n, ret_value);
    *ret_unverified = n->flags & NODE_UNVERIFIED;
    lock_give(&l->lock);
}

/* Its bytes were handed to the kernel for passthrough then, which nobody had looked at since the mount. */
static void moved_sums_leave_their_value_in_doubt(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    struct value before, after;
    bool unverified;

    put_or_remove_small_ones(l, true);
    put(l, "large", LARGE_BYTES);
    CHECK_OK(larder_close(l));
    l = open_on(d);
    look(l, &before, &unverified);
    CHECK(before.kind == VALUE_RAW && before.sums_place.segment_no != 0 && unverified);
    put_or_remove_small_ones(l, false);
    while (work_clean_segment(l) > 0)
        ;
    look(l, &after, &unverified);
    CHECK(after.sums_place.segment_no != before.sums_place.segment_no);
    CHECK(unverified);
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

int main(void)
{
    RUN(moved_sums_leave_their_value_in_doubt);
    return 0;
}
