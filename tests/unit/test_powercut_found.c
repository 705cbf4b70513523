/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the power-cut sweep found, as the shortest histories that went wrong. The disks are memdisk's; where a power cut is
 * part of it, all that was not synced is lost.
 */
#include "powercut.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>

#include "cache.h"
#include "check.h"

static uint64_t test_mono_ns = 1000 * NS_PER_S;
static uint8_t boot = 1;

static uint64_t test_mono(void *ctx)
{
    (void)ctx;
    return test_mono_ns;
}

static uint64_t test_wall(void *ctx)
{
    (void)ctx;
    return 1700000000000000000ull + test_mono_ns;
}

static struct larder *open_on(struct memdisk *d)
{
    static const struct clock_ops ops = {.mono_ns = test_mono, .wall_ns = test_wall};
    struct cache_host host = {.io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &ops, .boot_id = {boot}};
    struct errtext err = {.text = ""};
    struct larder_options opts;
    struct larder *l;

    larder_options_init(&opts);
    opts.quota_bytes = 16 * MIB;
    if (cache_open_on(&host, "memory", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

static void put(struct larder *l, const char *name, const char *value, bool sync)
{
    const struct larder_cred cred = {.umask = 022};
    struct larder_attr attr;
    struct larder_file *f;

    CHECK_OK(larder_create(l, LARDER_ROOT, name, strlen(name), 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_write(f, value, strlen(value), 0, false));
    if (sync)
        CHECK_OK(larder_fsync(f, false));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    larder_forget(l, attr.ino, 1);
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

/* The disk as it is when the power fails now and everything not synced is lost; or only what is said in these words. */
static struct memdisk *cut(struct powercut *pc, const char *only)
{
    struct powercut_cut *c = powercut_cut_new(pc);
    struct powercut_choice *choices;
    struct memdisk *d;
    char text[256];

    powercut_cut_to(c, powercut_events(pc));
    choices = calloc(powercut_pending(c) + 1, sizeof(*choices)); /* POWERCUT_LOST */
    for (uint32_t i = 0; only && i < powercut_pending(c); i++) {
        powercut_describe(c, i, &choices[i], text, sizeof(text));
        if (!strstr(text, only))
            choices[i] = (struct powercut_choice){.fate = POWERCUT_KEPT, .size_kept = true};
    }
    d = powercut_build(c, choices);
    free(choices);
    powercut_cut_free(c);
    boot++;
    return d;
}

/* The daemon dies: no checkpoint, what it wrote stays with the kernel. */
static void kill_daemon(struct larder *l)
{
    atomic_store(&l->failed, true);
    CHECK_EQ(larder_close(l), -EIO);
}

/* Power was cut while the store was being made: CACHEDIR.TAG.tmp was taken for somebody else's file, for ever. */
static void a_store_cut_while_it_is_made_can_be_made_again(void)
{
    struct memdisk *d = memdisk_new();

    CHECK_OK(memdisk_write_file(d, "LOCK", "1\n", 2));
    CHECK_OK(memdisk_write_file(d, "CACHEDIR.TAG.tmp", "", 0));
    CHECK_OK(larder_close(open_on(d)));
    memdisk_free(d);
}

/* The daemon that made the store was killed before it had synced the name FORMAT: the next one went on, and a power cut
 * left journals without it, which nobody could mount. */
static void a_store_never_has_journals_before_its_format_is_durable(void)
{
    struct memdisk *d = memdisk_new(), *base, *left;
    struct powercut *pc;
    struct larder *l;
    uint8_t *format;
    size_t bytes;

    CHECK_OK(larder_close(open_on(d)));
    CHECK_OK(memdisk_read_file(d, "FORMAT", &format, &bytes));
    base = memdisk_new();
    pc = powercut_new(base);
    CHECK_OK(memdisk_write_file(powercut_disk(pc), "FORMAT", format, bytes));
    l = open_on(powercut_disk(pc));
    put(l, "key", "value", false);
    left = cut(pc, "FORMAT");
    CHECK_OK(larder_close(l));
    CHECK_OK(larder_close(open_on(left)));
    free(format);
    memdisk_free(left);
    powercut_free(pc);
    memdisk_free(base);
    memdisk_free(d);
}

/* write beside, fsync, rename over an fsynced file: the rename's record was not synced, but the replaced bytes went. A
 * power cut took the one and showed neither. K5. */
static void a_rename_over_an_fsynced_file_never_leaves_a_miss(void)
{
    const struct larder_cred cred = {.umask = 022};

    for (unsigned exchange = 0; exchange < 2; exchange++) {
        struct memdisk *base = memdisk_new(), *left;
        struct powercut *pc = powercut_new(base);
        struct larder *l = open_on(powercut_disk(pc));
        uint64_t freed;

        put(l, "key", "old", true);
        put(l, "key.tmp", "new", true);
        CHECK_OK(larder_rename(l, LARDER_ROOT, "key.tmp", 7, LARDER_ROOT, "key", 3, exchange ? RENAME_EXCHANGE : 0, &cred));
        if (exchange)
            CHECK_OK(larder_unlink(l, LARDER_ROOT, "key.tmp", 7));
        CHECK_OK(store_reclaim(l->store, 64, &freed));
        left = cut(pc, NULL);
        CHECK_OK(larder_close(l));
        l = open_on(left);
        check_value(l, "key", "new");
        CHECK_OK(larder_close(l));
        memdisk_free(left);
        powercut_free(pc);
        memdisk_free(base);
    }
}

static uint32_t last_sync(struct powercut *pc)
{
    uint32_t e = powercut_events(pc);

    while (e > 0 && !powercut_is_sync(pc, e - 1))
        e--;
    return e - 1;
}

static bool can_be_read(struct larder *l, const char *name)
{
    struct larder_attr attr;
    struct larder_file *f;
    size_t bytes = 0;
    char got[16];

    if (larder_lookup(l, LARDER_ROOT, name, strlen(name), &attr) < 0 || larder_open_file(l, attr.ino, O_RDONLY, &f) < 0)
        return false;
    CHECK_OK(larder_read(f, got, sizeof(got), 0, false, &bytes));
    larder_release(f);
    return bytes == sizeof(got);
}

/* The daemon is killed within such a rename, its record written and not synced. The next one let the replaced bytes go on
 * the strength of it, and a power cut took it. */
static void a_recovery_lets_nothing_go_by_what_is_not_durable(void)
{
    struct memdisk *base = memdisk_new(), *left;
    struct powercut *pc = powercut_new(base), *again;
    struct powercut_cut *at = powercut_cut_new(pc);
    struct larder *l = open_on(powercut_disk(pc));
    static char big[300u << 10];

    for (size_t i = 0; i < sizeof(big) - 1; i++)
        big[i] = (char)('!' + (i * i / 7 + i * 31) % 90);
    put(l, "key", big, true);
    put(l, "key.tmp", big, true);
    CHECK_OK(work_checkpoint(l, false)); /* a store without one syncs what it finds */
    CHECK_OK(larder_rename(l, LARDER_ROOT, "key.tmp", 7, LARDER_ROOT, "key", 3, 0, &(struct larder_cred){.umask = 022}));
    powercut_cut_to(at, last_sync(pc));
    again = powercut_new_killed(at, 0);
    kill_daemon(l);
    l = open_on(powercut_disk(again));
    left = cut(again, "journal-");
    kill_daemon(l);
    l = open_on(left);
    CHECK(can_be_read(l, "key"));
    CHECK_OK(larder_close(l));
    powercut_cut_free(at);
    memdisk_free(left);
    powercut_free(again);
    powercut_free(pc);
    memdisk_free(base);
}

/* A name past its deadline is a miss for a rename onto it, too: a directory may take it, and NOREPLACE finds nothing. */
static void an_expired_target_is_none_to_rename(void)
{
    const struct larder_cred cred = {.umask = 022};
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    struct larder_attr attr;

    for (unsigned round = 0; round < 2; round++) {
        put(l, "old", "x", false);
        CHECK_OK(larder_lookup(l, LARDER_ROOT, "old", 3, &attr));
        CHECK_OK(larder_setxattr(l, attr.ino, "user.larder.ttl", "1s", 2, 0));
        test_mono_ns += 2 * NS_PER_S;
        if (round == 0) {
            CHECK_OK(larder_mkdir(l, LARDER_ROOT, "dir", 3, 0755, &cred, &attr));
            CHECK_OK(larder_rename(l, LARDER_ROOT, "dir", 3, LARDER_ROOT, "old", 3, 0, &cred));
            CHECK_OK(larder_rmdir(l, LARDER_ROOT, "old", 3));
        } else {
            put(l, "new", "y", false);
            CHECK_OK(larder_rename(l, LARDER_ROOT, "new", 3, LARDER_ROOT, "old", 3, RENAME_NOREPLACE, &cred));
            check_value(l, "old", "y");
        }
    }
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

static bool has_key(struct larder *l, const char *name)
{
    struct larder_attr attr;

    return larder_lookup(l, LARDER_ROOT, name, strlen(name), &attr) == 0;
}

static bool disk_has(struct memdisk *d, const char *path)
{
    uint8_t *data;
    size_t bytes;

    if (memdisk_read_file(d, path, &data, &bytes) < 0)
        return false;
    free(data);
    return true;
}

/* After a restart the numbers of files that had gone were given out again. A power cut that took the record of their going
 * showed another value's bytes under the old key: a database has no checksums to tell. */
static void numbers_of_files_are_not_given_out_again(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d);
    static char big[300u << 10];
    uint64_t state = 1;

    for (size_t i = 0; i < sizeof(big) - 1; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        big[i] = (char)('!' + (state >> 33) % 90);
    }
    put(l, "big", big, true);
    put(l, "small", "value", true);
    CHECK(disk_has(d, "big/00/0000000000000001"));
    CHECK(disk_has(d, "seg-00000001"));
    CHECK_OK(larder_unlink(l, LARDER_ROOT, "big", 3));
    CHECK_OK(larder_unlink(l, LARDER_ROOT, "small", 5));
    kill_daemon(l);
    l = open_on(d);
    CHECK(!disk_has(d, "seg-00000001"));
    put(l, "big2", big, true);
    put(l, "small2", "value", true);
    CHECK(!disk_has(d, "big/00/0000000000000001"));
    CHECK(!disk_has(d, "seg-00000001"));
    CHECK_OK(larder_close(l));
    memdisk_free(d);
}

/* A store killed before its first checkpoint: a power cut took the name of its first journal and left the second, and what
 * the one said was applied without what the other had said before. */
static void a_young_stores_second_journal_never_stands_alone(void)
{
    struct memdisk *base = memdisk_new(), *left;
    struct powercut *pc = powercut_new(base);
    struct larder *l = open_on(powercut_disk(pc));

    put(l, "first", "1", false);
    kill_daemon(l);
    l = open_on(powercut_disk(pc));
    put(l, "second", "2", false);
    left = cut(pc, "create journal-00000001");
    kill_daemon(l);
    l = open_on(left);
    CHECK(has_key(l, "first") || !has_key(l, "second"));
    CHECK_OK(larder_close(l));
    memdisk_free(left);
    powercut_free(pc);
    memdisk_free(base);
}

/* The close of what was only changed in part gave up the fsynced value for one that a power cut took. C2: in place its fsynced
 * bytes survive. */
static void an_fsynced_value_changed_in_part_survives(void)
{
    struct memdisk *base = memdisk_new(), *left;
    struct powercut *pc = powercut_new(base);
    struct larder *l = open_on(powercut_disk(pc));
    struct larder_attr attr;
    struct larder_file *f;

    put(l, "key", "value", true);
    CHECK_OK(larder_lookup(l, LARDER_ROOT, "key", 3, &attr));
    CHECK_OK(larder_open_file(l, attr.ino, O_WRONLY, &f));
    CHECK(!larder_flush_waits(f));
    CHECK_OK(larder_write(f, " and more", 9, 5, false));
    CHECK(larder_flush_waits(f));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    left = cut(pc, "seg-");
    CHECK_OK(larder_close(l));
    l = open_on(left);
    check_value(l, "key", "value and more");
    CHECK_OK(larder_close(l));
    memdisk_free(left);
    powercut_free(pc);
    memdisk_free(base);
}

int main(void)
{
    RUN(a_store_cut_while_it_is_made_can_be_made_again);
    RUN(a_store_never_has_journals_before_its_format_is_durable);
    RUN(a_rename_over_an_fsynced_file_never_leaves_a_miss);
    RUN(a_recovery_lets_nothing_go_by_what_is_not_durable);
    RUN(an_expired_target_is_none_to_rename);
    RUN(numbers_of_files_are_not_given_out_again);
    RUN(a_young_stores_second_journal_never_stands_alone);
    RUN(an_fsynced_value_changed_in_part_survives);
    return 0;
}
