/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: a damaged byte of the log costs what its record was about and no more, and never brings back what was before.
 * Method: a store in memory with a history of replaced, removed, moved and changed keys, killed; every byte of its log
 * (by steps) is flipped in turn and the real recovery compared with the one truth. */
#include <fcntl.h>
#include <sys/stat.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

#define KEYS 24u
#define DIRS 3u
#define VALUE_BYTES_MAX 6000u
#define TAIL_BYTES 512u /* more than the last record: damage to that cannot be told from a torn tail */
#define STEP_BYTES 41u /* no divisor of anything: every field of some record is hit */

static uint64_t now_ns = 1700000000ull * NS_PER_S;

static uint64_t fake_ns(void *ctx)
{
    (void)ctx;
    return now_ns;
}

static const struct clock_ops fake_clock = {.mono_ns = fake_ns, .wall_ns = fake_ns};

static struct larder *open_on(struct memdisk *d, uint8_t boot)
{
    struct cache_host host = {.io = memdisk_io(d), .dir_fd = memdisk_open_root(d), .clock_ops = &fake_clock};
    struct larder_options opts;
    struct errtext err = {""};
    struct larder *l;

    memset(host.boot_id, boot, sizeof(host.boot_id));
    larder_options_init(&opts);
    opts.quota_bytes = 64 * MIB;
    if (cache_open_on(&host, "store", &opts, NULL, &l, &err) < 0)
        CHECK_FAIL("%s", err.text);
    return l;
}

/* ---- keys that know their version ---- */

static const struct larder_cred cred = {.umask = 022};

static size_t value_bytes(unsigned key, unsigned version)
{
    return 20 + (key * 977 + version * 311) % (VALUE_BYTES_MAX - 20);
}

static void value_fill(unsigned key, unsigned version, char *out)
{
    size_t bytes = value_bytes(key, version), used = 0;

    while (used < bytes)
        used += (size_t)snprintf(out + used, 32, "%u.%u.%zu ", key, version, used);
}

static uint64_t find(struct larder *l, uint64_t parent, const char *name)
{
    struct larder_attr attr;

    if (larder_lookup(l, parent, name, strlen(name), &attr) < 0)
        return 0;
    larder_forget(l, attr.ino, 1);
    return attr.ino;
}

static uint64_t directory_of(struct larder *l, unsigned key)
{
    char name[8];

    (void)snprintf(name, sizeof(name), "d%u", key % DIRS);
    return find(l, LARDER_ROOT, name);
}

static void put(struct larder *l, unsigned key, unsigned version)
{
    static char value[VALUE_BYTES_MAX + 64];
    uint64_t dir = directory_of(l, key);
    struct larder_attr attr;
    struct larder_file *f;
    char name[16];

    (void)snprintf(name, sizeof(name), "k%u", key);
    value_fill(key, version, value);
    now_ns += NS_PER_MS;
    CHECK_OK(larder_create(l, dir, "tmp", 3, 0644, O_WRONLY, &cred, &attr, &f));
    CHECK_OK(larder_write(f, value, value_bytes(key, version), 0, false));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    larder_forget(l, attr.ino, 1);
    CHECK_OK(larder_rename(l, dir, "tmp", 3, dir, name, strlen(name), 0, &cred));
}

/* The version a key holds; 0: a miss. Anything but the bytes of one of its versions ends the test. */
static unsigned version_of(struct larder *l, unsigned key, unsigned newest)
{
    static char value[VALUE_BYTES_MAX + 64], wanted[VALUE_BYTES_MAX + 64];
    uint64_t dir = directory_of(l, key), node;
    struct larder_file *f;
    char name[16];
    size_t got;

    (void)snprintf(name, sizeof(name), "k%u", key);
    node = dir ? find(l, dir, name) : 0;
    if (!node || larder_open_file(l, node, O_RDONLY, &f) < 0)
        return 0;
    if (larder_read(f, value, sizeof(value), 0, false, &got) < 0)
        got = 0;
    larder_release(f);
    for (unsigned version = newest; version > 0 && got > 0; version--) {
        value_fill(key, version, wanted);
        if (got == value_bytes(key, version) && memcmp(value, wanted, got) == 0)
            return version;
    }
    if (got > 0)
        CHECK_FAIL("%s holds bytes nobody wrote", name);
    return 0;
}

/* ---- the history ---- */

/* Newest version per key; 0: removed. */
static unsigned truth[KEYS];

static void make_history(struct larder *l)
{
    struct larder_attr attr;
    char name[16];

    for (unsigned d = 0; d < DIRS; d++) {
        (void)snprintf(name, sizeof(name), "d%u", d);
        CHECK_OK(larder_mkdir(l, LARDER_ROOT, name, 2, 0755, &cred, &attr));
        larder_forget(l, attr.ino, 1);
    }
    for (unsigned version = 1; version <= 4; version++) {
        for (unsigned key = 0; key < KEYS; key++) {
            put(l, key, version);
            truth[key] = version;
        }
    }
    for (unsigned key = 0; key < KEYS; key += 5) {
        (void)snprintf(name, sizeof(name), "k%u", key);
        CHECK_OK(larder_unlink(l, directory_of(l, key), name, strlen(name)));
        truth[key] = 0;
    }
    CHECK_OK(larder_mkdir(l, LARDER_ROOT, "last", 4, 0755, &cred, &attr));
    larder_forget(l, attr.ino, 1);
}

/* Reads every key of the disk; false: it holds something older than the truth, which *ret_key names. */
static bool compare(struct memdisk *d, uint8_t boot, unsigned *ret_missing, unsigned *ret_key)
{
    struct larder *l = open_on(d, boot);
    bool same = true;

    *ret_missing = 0;
    for (unsigned key = 0; key < KEYS; key++) {
        unsigned version = version_of(l, key, 4);

        *ret_missing += version == 0 && truth[key] != 0;
        if (version != 0 && version != truth[key]) {
            *ret_key = key;
            same = false;
        }
    }
    (void)larder_close(l); /* what it makes of the damage is not asked here */
    return same;
}

static void find_log(struct memdisk *d, const char *prefix, char out[32])
{
    for (unsigned no = 40; no > 0; no--) {
        (void)snprintf(out, 32, "%s%08x", prefix, no);
        if (memdisk_find(d, MEMDISK_ROOT, out))
            return;
    }
    CHECK_FAIL("no %s in the store", prefix);
}

/* One byte flipped, or a hole of zeros. */
static void spoil(struct memdisk *d, const char *file, const uint8_t *data, size_t bytes, size_t offset, size_t hole_bytes)
{
    uint8_t *copy = malloc(bytes);

    CHECK(copy);
    memcpy(copy, data, bytes);
    if (hole_bytes == 1)
        copy[offset] ^= 0x41;
    else
        memset(copy + offset, 0, hole_bytes);
    CHECK_OK(memdisk_write_file(d, file, copy, bytes));
    free(copy);
}

struct cost {
    unsigned tries, worst, total; /* keys missing, of KEYS */
};

/* Damages one file of the store on `disk` again and again. */
static struct cost damage_all(struct memdisk *disk, const char *file, size_t hole_bytes)
{
    struct cost cost = {0};
    uint8_t *data;
    size_t bytes;

    CHECK_OK(memdisk_read_file(disk, file, &data, &bytes));
    for (size_t offset = 0; offset + hole_bytes + TAIL_BYTES <= bytes; offset += hole_bytes == 1 ? STEP_BYTES : 5 * STEP_BYTES) {
        struct memdisk *d = memdisk_clone(disk);
        unsigned missing, key;

        spoil(d, file, data, bytes, offset, hole_bytes);
        if (!compare(d, 1, &missing, &key))
            CHECK_FAIL("%s, %zu bytes from %zu of %zu: k%u is older than what was acknowledged", file, hole_bytes, offset,
                       bytes, key);
        cost.tries++;
        cost.total += missing;
        cost.worst = MAX(cost.worst, missing);
        memdisk_free(d);
    }
    free(data);
    return cost;
}

/* The disk as a killed daemon leaves it. */
static struct memdisk *killed(struct larder *l, struct memdisk *d)
{
    struct memdisk *left = memdisk_clone(d);

    (void)larder_close(l); /* of the original; nobody looks at it again */
    memdisk_free(d);
    return left;
}

static void test_a_flipped_byte_of_the_journal_costs_its_record(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d, 1);
    struct cost cost;
    char journal[32];

    make_history(l);
    d = killed(l, d);
    find_log(d, "journal-", journal);
    cost = damage_all(d, journal, 1);
    CHECK(cost.tries > 1000);
    CHECK(cost.total < cost.tries); /* a directory in doubt takes what is in it along, the record of the start everything */
    memdisk_free(d);
}

/* More than is recalled: empty rather than old. */
static void test_a_hole_in_the_journal_brings_nothing_back(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d, 1);
    char journal[32];

    make_history(l);
    d = killed(l, d);
    find_log(d, "journal-", journal);
    CHECK(damage_all(d, journal, 512).worst <= KEYS);
    CHECK(damage_all(d, journal, 4096).worst <= KEYS);
    memdisk_free(d);
}

/* After an orderly stop there is only the checkpoint, and each of its records stands for itself. */
static void test_a_flipped_byte_of_the_checkpoint_costs_its_record(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d, 1);
    struct cost cost;
    char file[32];

    make_history(l);
    CHECK_OK(larder_close(l));
    find_log(d, "index-", file);
    cost = damage_all(d, file, 1);
    CHECK(cost.tries > 20);
    CHECK(cost.worst < KEYS);
    memdisk_free(d);
}

/* A checkpoint, then a history on top of it, then death: damage to either is no way back to what was before. */
static void test_a_damaged_checkpoint_with_a_journal_behind_it(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d, 1);
    char file[32];

    make_history(l);
    CHECK_OK(work_checkpoint(l, false));
    for (unsigned key = 1; key < KEYS; key += 2) {
        put(l, key, 3); /* an older value anew: the newest is what was written last */
        truth[key] = 3;
    }
    d = killed(l, d);
    find_log(d, "index-", file);
    CHECK(damage_all(d, file, 1).worst < KEYS);
    find_log(d, "journal-", file);
    CHECK_OK(memdisk_write_file(d, file, "", 0)); /* and without its journal it is only old */
    {
        unsigned missing, key;

        CHECK(compare(d, 1, &missing, &key));
        CHECK(compare(d, 2, &missing, &key)); /* nor does it come back at the next mount */
    }
    memdisk_free(d);
}

/* Behind a power cut a hole is what was not synced: what lies before it is served, as it always was. */
static void test_a_hole_after_a_power_cut_is_torn(void)
{
    struct memdisk *d = memdisk_new();
    struct larder *l = open_on(d, 1);
    uint8_t *data;
    size_t bytes;
    char journal[32];
    unsigned found = 0;

    make_history(l);
    CHECK_OK(larder_sync(l));
    put(l, 1, 3);
    put(l, 2, 3);
    put(l, 3, 3);
    d = killed(l, d);
    find_log(d, "journal-", journal);
    CHECK_OK(memdisk_read_file(d, journal, &data, &bytes));
    memset(data + bytes - 1500, 0, 600);
    CHECK_OK(memdisk_write_file(d, journal, data, bytes));
    free(data);
    l = open_on(d, 2);
    for (unsigned key = 0; key < KEYS; key++)
        found += version_of(l, key, 4) != 0;
    CHECK_OK(larder_close(l));
    CHECK(found >= KEYS - (KEYS + 4) / 5);
    memdisk_free(d);
}

int main(void)
{
    RUN(test_a_flipped_byte_of_the_journal_costs_its_record);
    RUN(test_a_hole_in_the_journal_brings_nothing_back);
    RUN(test_a_flipped_byte_of_the_checkpoint_costs_its_record);
    RUN(test_a_damaged_checkpoint_with_a_journal_behind_it);
    RUN(test_a_hole_after_a_power_cut_is_torn);
    return 0;
}
