/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: no record is lost, mixed up or returned damaged, and what is charged is never less than what du counts.
 * Method: random histories of append, drop, reclaim, sync and reopen against a table of what should be there, du after every
 * step, on the build's file system and on tmpfs; threads; and an io table that fails on demand. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "check.h"
#include "format.h"
#include "quota.h"
#include "store.h"
#include "util.h"

#define RECORDS_MAX 4096u

static const uint8_t store_id[16] = "0123456789abcde";

struct rec {
    bool live;
    struct place place;
    struct record_info info;
    uint64_t seed;
};

struct world {
    char dir[64];
    int dir_fd;
    struct quota quota;
    struct store *st;
    struct io *io;
    uint64_t rng;
    bool read_only;
    struct rec recs[RECORDS_MAX];
};

/* ---- a file system that fails on demand ---- */

static _Atomic int fail_pwrite, fail_sync, fail_punch; /* -errno, 0: works */
static _Atomic int fail_pwrite_after;                 /* calls that still work */
static _Atomic unsigned sync_calls;

static ssize_t faulty_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    if (fail_pwrite != 0 && atomic_fetch_sub(&fail_pwrite_after, 1) <= 0)
        return fail_pwrite;
    return io_posix.ops->pwrite(io, fd, buf, bytes, offset);
}

static int faulty_fdatasync(struct io *io, int fd)
{
    sync_calls++;
    return fail_sync != 0 ? fail_sync : io_posix.ops->fdatasync(io, fd);
}

static int faulty_fallocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    return fail_punch != 0 ? fail_punch : io_posix.ops->fallocate(io, fd, mode, offset, bytes);
}

static struct io_ops faulty_ops;
static struct io faulty = {.ops = &faulty_ops};

/* ---- the world ---- */

static uint64_t rnd(struct world *w)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng;
}

static void fill(uint8_t *out, size_t bytes, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

    for (size_t i = 0; i < bytes; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out[i] = (uint8_t)x;
    }
}

static uint64_t du_dir(int dir_fd, const char *name)
{
    uint64_t total = 0;
    struct dirent *entry;
    struct stat st;
    DIR *dir;
    int fd;

    fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0);
    CHECK_EQ(fstat(fd, &st), 0);
    total = (uint64_t)st.st_blocks * 512;
    dir = fdopendir(fd);
    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* unlinked between the two calls */
        if (S_ISDIR(st.st_mode))
            total += du_dir(fd, entry->d_name);
        else
            total += (uint64_t)st.st_blocks * 512;
    }
    (void)closedir(dir);
    return total;
}

static void check_du(struct world *w)
{
    uint64_t used = du_dir(w->dir_fd, ".");

    if (used > quota_charged(&w->quota))
        (void)fprintf(stderr, "du %" PRIu64 " charged %" PRIu64 "\n", used, quota_charged(&w->quota));
    CHECK(used <= quota_charged(&w->quota));
}

static void world_open(struct world *w)
{
    struct store_options opts = {
        .store_id = store_id,
        .segment_bytes = 256 * KIB,
        .segment_fds_max = 8,
        .read_only = w->read_only,
    };
    struct errtext err = {""};
    uint64_t orphans;

    quota_init(&w->quota, UINT64_MAX);
    CHECK_OK(store_open(w->io, w->dir_fd, &w->quota, &opts, &w->st, &err));
    for (size_t i = 0; i < RECORDS_MAX; i++) {
        if (w->recs[i].live)
            CHECK_OK(store_mark_live(w->st, w->recs[i].place, w->recs[i].info.stored_bytes));
    }
    CHECK_OK(store_finish_recovery(w->st, &orphans));
}

static struct world *world_new(const char *parent, struct io *io)
{
    struct world *w = calloc(1, sizeof(*w));

    CHECK(w != NULL);
    (void)snprintf(w->dir, sizeof(w->dir), "%s/larder-store-XXXXXX", parent);
    CHECK(mkdtemp(w->dir) != NULL);
    w->dir_fd = open(w->dir, O_RDONLY | O_DIRECTORY);
    CHECK(w->dir_fd >= 0);
    w->io = io;
    w->rng = 88172645463325252ull;
    faulty_ops = *io_posix.ops;
    faulty_ops.pwrite = faulty_pwrite;
    faulty_ops.fdatasync = faulty_fdatasync;
    faulty_ops.fallocate = faulty_fallocate;
    world_open(w);
    return w;
}

static void remove_tree(int dir_fd, const char *name)
{
    struct dirent *entry;
    DIR *dir;
    int fd;

    if (unlinkat(dir_fd, name, 0) == 0)
        return;
    fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    CHECK(fd >= 0);
    dir = fdopendir(fd);
    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_tree(fd, entry->d_name);
    }
    (void)closedir(dir);
    CHECK_EQ(unlinkat(dir_fd, name, AT_REMOVEDIR), 0);
}

static void world_free(struct world *w)
{
    store_close(w->st);
    (void)close(w->dir_fd);
    remove_tree(AT_FDCWD, w->dir);
    free(w);
}

static void reopen(struct world *w)
{
    store_close(w->st);
    world_open(w);
}

/* ---- records ---- */

static int try_append(struct world *w, struct rec *rec, uint32_t logical_bytes, bool text)
{
    uint8_t *data = malloc(logical_bytes + 1);
    uint8_t *packed = malloc(logical_bytes + 1);
    size_t stored = logical_bytes;
    int r;

    CHECK(data != NULL);
    CHECK(packed != NULL);
    rec->seed = rnd(w);
    fill(data, logical_bytes, rec->seed);
    if (text)
        memset(data + logical_bytes / 4, 'a', logical_bytes - logical_bytes / 4);
    rec->info = (struct record_info){
        .kind = RECORD_VALUE,
        .codec = CODEC_RAW,
        .node_id = (uint64_t)(rec - w->recs),
        .logical_bytes = logical_bytes,
        .checksum = codec_checksum(data, logical_bytes),
    };
    if (codec_pack(COMPRESS_AUTO, data, logical_bytes, packed, logical_bytes, &stored) == 0)
        rec->info.codec = CODEC_LZ4;
    rec->info.stored_bytes = (uint32_t)stored;
    r = store_append(w->st, &rec->info, rec->info.codec == CODEC_LZ4 ? packed : data, &rec->place);
    rec->live = r == 0;
    free(data);
    free(packed);
    return r;
}

static void check_read(struct world *w, struct rec *rec, bool nowait)
{
    uint8_t *out = malloc(rec->info.logical_bytes + 1);
    struct record_info info;
    int r;

    CHECK(out != NULL);
    r = store_read(w->st, rec->place, RECORD_VALUE, rec->info.stored_bytes, rec->info.logical_bytes, nowait, out, &info);
    if (r == -EAGAIN && nowait) {
        free(out);
        return;
    }
    CHECK_OK(r);
    CHECK_EQ(info.node_id, rec->info.node_id);
    CHECK(codec_checksum(out, rec->info.logical_bytes) == rec->info.checksum);
    CHECK_OK(store_read_info(w->st, rec->place, &info));
    CHECK_EQ(info.stored_bytes, rec->info.stored_bytes);
    free(out);
}

static void drop(struct world *w, struct rec *rec)
{
    CHECK(rec->live);
    rec->live = false;
    store_drop(w->st, rec->place, rec->info.stored_bytes);
}

static void check_all(struct world *w)
{
    for (size_t i = 0; i < RECORDS_MAX; i++) {
        if (w->recs[i].live)
            check_read(w, &w->recs[i], i % 2 == 0);
    }
}

static uint32_t random_size(struct world *w)
{
    switch (rnd(w) % 8) {
    case 0:
        return (uint32_t)(rnd(w) % 16);
    case 1:
        return (uint32_t)(rnd(w) % 200000);
    case 2:
        return 4096;
    default:
        return (uint32_t)(rnd(w) % 9000);
    }
}

/* ---- tests ---- */

static void random_history(const char *parent, unsigned steps)
{
    struct world *w = world_new(parent, &io_posix);
    uint64_t freed;

    for (unsigned step = 0; step < steps; step++) {
        struct rec *rec = &w->recs[rnd(w) % (step % 4000 < 2000 ? RECORDS_MAX : RECORDS_MAX / 8)];
        if (rec->live)
            drop(w, rec);
        else
            CHECK_OK(try_append(w, rec, random_size(w), rnd(w) % 3 == 0));
        if (rnd(w) % 4 == 0)
            CHECK_OK(store_reclaim(w->st, (unsigned)(1 + rnd(w) % 8), &freed));
        if (rnd(w) % 64 == 0)
            CHECK_OK(store_sync(w->st));
        if (step % 8 == 0)
            check_du(w);
        if (rnd(w) % 1000 == 0) {
            reopen(w);
            check_du(w);
            check_all(w);
        }
    }
    check_all(w);
    for (size_t i = 0; i < RECORDS_MAX; i++) {
        if (w->recs[i].live)
            drop(w, &w->recs[i]);
    }
    do
        CHECK_OK(store_reclaim(w->st, 64, &freed));
    while (freed > 0);
    CHECK_OK(store_sync(w->st));
    check_du(w);
    CHECK(quota_charged(&w->quota) <= 64 * KIB);
    world_free(w);
}

static void random_history_on_disk(void)
{
    random_history(".", 6000);
}

static void random_history_on_tmpfs(void)
{
    if (access("/dev/shm", W_OK) == 0)
        random_history("/dev/shm", 6000);
}

/* One record a block, every other one dropped in random order: the most extents a file can have. */
static void random_punching_keeps_the_charge_above_du(void)
{
    struct world *w = world_new(".", &io_posix);
    unsigned count = 3000;
    uint64_t freed;

    for (unsigned i = 0; i < count; i++)
        CHECK_OK(try_append(w, &w->recs[i], 4096 - DISK_VALUE_HEADER_BYTES, false));
    CHECK_OK(store_sync(w->st));
    check_du(w);
    for (unsigned i = 0; i < count * 2; i++) {
        struct rec *rec = &w->recs[rnd(w) % count];
        if (rec->live && (rec->place.offset / 4096) % 2 == 0)
            drop(w, rec);
        CHECK_OK(store_reclaim(w->st, 2, &freed));
        if (i % 4 == 0)
            check_du(w);
        if (i % 512 == 0)
            CHECK_OK(store_sync(w->st));
    }
    check_all(w);
    reopen(w);
    check_du(w);
    do
        CHECK_OK(store_reclaim(w->st, 64, &freed));
    while (freed > 0);
    check_all(w);
    check_du(w);
    world_free(w);
}

static void steady_state_gives_back_what_it_takes(void)
{
    struct world *w = world_new(".", &io_posix);
    uint64_t freed;

    for (unsigned i = 0; i < 512; i++)
        CHECK_OK(try_append(w, &w->recs[i], 4096, false));
    atomic_store(&w->quota.limit_bytes, quota_charged(&w->quota) + 64 * KIB);
    for (unsigned i = 0; i < 4096; i++) {
        drop(w, &w->recs[i % 512]);
        CHECK_OK(store_reclaim(w->st, 4, &freed));
        CHECK_OK(try_append(w, &w->recs[i % 512], 4096, false));
        CHECK(quota_charged(&w->quota) <= quota_limit(&w->quota));
        if (i % 64 == 0)
            check_du(w);
    }
    check_all(w);
    world_free(w);
}

static void damage_is_never_returned(void)
{
    struct world *w = world_new(".", &io_posix);
    char name[FORMAT_NAME_BYTES];
    uint8_t out[8192], byte;
    struct record_info info;
    struct rec *rec = &w->recs[7];
    int fd, r;

    CHECK_OK(try_append(w, &w->recs[1], 100, false));
    CHECK_OK(try_append(w, rec, 3000, true));
    format_name(name, "seg-", rec->place.segment_no);
    fd = openat(w->dir_fd, name, O_RDWR);
    CHECK(fd >= 0);
    for (uint32_t at = 0; at < DISK_VALUE_HEADER_BYTES + rec->info.stored_bytes; at++) {
        CHECK_EQ(pread(fd, &byte, 1, rec->place.offset + at), 1);
        byte ^= (uint8_t)(1u << at % 8);
        CHECK_EQ(pwrite(fd, &byte, 1, rec->place.offset + at), 1);
        r = store_read(w->st, rec->place, RECORD_VALUE, rec->info.stored_bytes, 3000, false, out, &info);
        /* some flips inside an lz4 block decode to the same bytes */
        CHECK(r == -EBADMSG || (r == 0 && at >= DISK_VALUE_HEADER_BYTES));
        CHECK(r < 0 || codec_checksum(out, 3000) == rec->info.checksum);
        byte ^= (uint8_t)(1u << at % 8);
        CHECK_EQ(pwrite(fd, &byte, 1, rec->place.offset + at), 1);
    }
    check_read(w, rec, false);
    CHECK_EQ(store_read(w->st, rec->place, RECORD_SUMS, rec->info.stored_bytes, 3000, false, out, &info), -EBADMSG);
    CHECK_EQ(store_read(w->st, rec->place, RECORD_VALUE, rec->info.stored_bytes, 2999, false, out, &info), -EBADMSG);
    CHECK_EQ(store_read(w->st, w->recs[1].place, RECORD_VALUE, 101, 101, false, out, &info), -EBADMSG);
    CHECK_EQ(store_read(w->st, (struct place){99, 64}, RECORD_VALUE, 1, 1, false, out, &info), -EBADMSG);
    CHECK_EQ(store_read(w->st, (struct place){1, 1u << 30}, RECORD_VALUE, 1, 1, false, out, &info), -EBADMSG);
    (void)close(fd);
    world_free(w);
}

static void hostile_places_are_refused_at_mount(void)
{
    struct world *w = world_new(".", &io_posix);
    struct store_options opts = {.store_id = store_id, .segment_bytes = 256 * KIB, .segment_fds_max = 8};
    struct errtext err = {""};
    uint64_t orphans;

    CHECK_OK(try_append(w, &w->recs[0], 5000, false));
    store_close(w->st);
    CHECK_OK(store_open(w->io, w->dir_fd, &w->quota, &opts, &w->st, &err));
    store_note_segment(w->st, 40);
    store_note_segment(w->st, 3);
    store_note_segment(w->st, UINT32_MAX); /* absurd: would leave no numbers */
    CHECK_EQ(store_mark_live(w->st, (struct place){1, 0}, 10), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){1, 65}, 10), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){1, 64}, 5001), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){1, 0xfffffff8u}, UINT32_MAX), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){0, 64}, 1), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){40, 64}, 1), -EBADMSG);
    CHECK_EQ(store_mark_live(w->st, (struct place){UINT32_MAX, 64}, 1), -EBADMSG);
    for (int i = 0; i < 300; i++)
        CHECK_OK(store_mark_live(w->st, (struct place){1, 64}, 5000)); /* an index gone mad: more than a byte counts */
    CHECK_OK(store_finish_recovery(w->st, &orphans));
    for (int i = 0; i < 300; i++)
        store_drop(w->st, (struct place){1, 64}, 5000);
    w->recs[0].live = false;
    CHECK_OK(try_append(w, &w->recs[1], 10, false));
    CHECK_EQ(w->recs[1].place.segment_no, 41); /* a number an old log names is not given out again */
    world_free(w);
}

static void foreign_files_are_left_alone(void)
{
    struct world *w = world_new(".", &io_posix);

    CHECK_OK(try_append(w, &w->recs[0], 100, false));
    CHECK_EQ(symlinkat("/etc/passwd", w->dir_fd, "seg-00000002"), 0);
    CHECK_EQ(mkfifoat(w->dir_fd, "seg-00000003", 0600), 0);
    CHECK_EQ(mkdirat(w->dir_fd, "seg-00000004", 0700), 0);
    CHECK_EQ(mkdirat(w->dir_fd, "seg-ffffffff", 0700), 0);
    CHECK_EQ(mkdirat(w->dir_fd, "big", 0700), 0);
    CHECK_EQ(symlinkat("/tmp", w->dir_fd, "big/00"), 0);
    reopen(w);
    CHECK_OK(try_append(w, &w->recs[1], 100, false)); /* passes over the names that are taken */
    CHECK_EQ(w->recs[1].place.segment_no, 5);
    for (int i = 0; i < 2; i++) {
        struct stat st;
        uint64_t id;
        int fd;
        CHECK_OK(store_big_create(w->st, &id, &fd));
        CHECK_EQ(id >> 8, 1);
        CHECK_EQ(fstatat(w->dir_fd, "big/01", &st, AT_SYMLINK_NOFOLLOW), 0);
        (void)close(fd);
    }
    check_all(w);
    world_free(w);
}

static void orphans_go_at_mount(void)
{
    struct world *w = world_new(".", &io_posix);
    struct store_usage usage;
    uint64_t id;
    int fd;

    for (unsigned i = 0; i < 200; i++)
        CHECK_OK(try_append(w, &w->recs[i], 4096, false));
    CHECK_OK(store_big_create(w->st, &id, &fd));
    CHECK_OK(io_write_full(&io_posix, fd, "x", 1, 0));
    (void)close(fd);
    store_close(w->st);
    w->st = NULL;
    for (unsigned i = 0; i < 150; i++)
        w->recs[i].live = false;
    world_open(w);
    store_usage(w->st, &usage);
    CHECK_EQ(usage.big_count, 0);
    CHECK(usage.segments_unlinked > 0);
    CHECK_EQ(store_big_open(w->st, id, false, &fd), -ENOENT);
    check_all(w);
    check_du(w);
    world_free(w);
}

static void big_files_are_counted_and_their_directories_trimmed(void)
{
    struct world *w = world_new(".", &io_posix);
    static uint64_t ids[700];
    struct store_options opts = {.store_id = store_id, .segment_bytes = 256 * KIB, .segment_fds_max = 8};
    struct errtext err = {""};
    struct store_usage usage;
    uint64_t size, disk, orphans, before;
    int fd;

    before = quota_charged(&w->quota);
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        CHECK_OK(store_big_create(w->st, &ids[i], &fd));
        CHECK(i == 0 || ids[i] > ids[i - 1]);
        CHECK_OK(quota_reserve(&w->quota, 12 * KIB));
        CHECK_OK(io_write_full(&io_posix, fd, "0123456789", 10, 0));
        CHECK_OK(io_disk_bytes(&io_posix, fd, &disk));
        store_big_settle(w->st, 0, disk, 12 * KIB);
        (void)close(fd);
        if (i % 16 == 0)
            check_du(w);
    }
    CHECK_OK(store_big_sync_entry(w->st, ids[0]));
    store_close(w->st);
    quota_init(&w->quota, UINT64_MAX);
    CHECK_OK(store_open(w->io, w->dir_fd, &w->quota, &opts, &w->st, &err));
    store_note_big(w->st, 0x7777); /* the next one is in another directory: all of these may go */
    store_note_big(w->st, UINT64_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        CHECK_OK(store_mark_big(w->st, ids[i], &size, &disk));
        CHECK_EQ(size, 10);
    }
    CHECK_EQ(store_mark_big(w->st, ids[3], &size, &disk), -EBADMSG);
    CHECK_EQ(store_mark_big(w->st, 0x7777, &size, &disk), -ENOENT);
    CHECK_OK(store_finish_recovery(w->st, &orphans));
    CHECK_EQ(orphans, 0);
    check_du(w);
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        CHECK_OK(store_big_open(w->st, ids[i], false, &fd));
        CHECK_OK(io_disk_bytes(&io_posix, fd, &disk));
        (void)close(fd);
        CHECK_OK(store_big_unlink(w->st, ids[i], disk, i == 5));
        if (i == 5)
            quota_release(&w->quota, disk);
        if (i % 16 == 0)
            check_du(w);
    }
    store_usage(w->st, &usage);
    CHECK_EQ(usage.big_count, 0);
    CHECK_EQ(usage.big_bytes, 0);
    CHECK(quota_charged(&w->quota) <= before + 12 * KIB);
    CHECK_EQ(usage.charged_bytes, quota_charged(&w->quota));
    world_free(w);
}

struct walked {
    struct world *w;
    unsigned live;
};

static int note_walked(void *ctx, struct place place, const struct record_info *info)
{
    struct walked *walked = ctx;
    struct rec *rec = &walked->w->recs[info->node_id];

    if (rec->live && memcmp(&rec->place, &place, sizeof(place)) == 0)
        walked->live++;
    return 0;
}

static void a_walk_finds_every_live_record_behind_holes(void)
{
    struct world *w = world_new(".", &io_posix);
    unsigned live[64] = {0};
    uint64_t freed;

    for (unsigned i = 0; i < 1000; i++)
        CHECK_OK(try_append(w, &w->recs[i], (uint32_t)(rnd(w) % 9000), false));
    for (unsigned i = 0; i < 1000; i++) {
        if (rnd(w) % 4 != 0)
            drop(w, &w->recs[i]);
        else
            live[w->recs[i].place.segment_no]++;
    }
    do
        CHECK_OK(store_reclaim(w->st, 64, &freed));
    while (freed > 0);
    for (uint32_t no = 1; no < ARRAY_COUNT(live); no++) {
        struct walked walked = {.w = w};
        uint32_t offset = 0;
        bool done = false;
        if (live[no] == 0)
            continue;
        while (!done)
            CHECK_OK(store_walk_segment(w->st, no, 7, &offset, note_walked, &walked, &done));
        CHECK_EQ(walked.live, live[no]);
    }
    CHECK(store_pick_clean(w->st, 90) != 0);
    CHECK_EQ(store_pick_clean(w->st, 0), 0);
    world_free(w);
}

static void a_full_host_disk_costs_no_quota(void)
{
    struct world *w = world_new(".", &faulty);
    uint64_t charged;

    CHECK_OK(try_append(w, &w->recs[0], 3000, false));
    fail_pwrite_after = 0;
    fail_pwrite = -ENOSPC;
    CHECK_EQ(try_append(w, &w->recs[1], 40000, false), -ENOSPC);
    charged = quota_charged(&w->quota);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(try_append(w, &w->recs[1], 40000, false), -ENOSPC);
    CHECK_EQ(quota_charged(&w->quota), charged);
    fail_pwrite = 0;
    CHECK_OK(try_append(w, &w->recs[1], 40000, false));
    CHECK_EQ(w->recs[1].place.segment_no, w->recs[0].place.segment_no);
    check_all(w);
    fail_pwrite = -EIO;
    CHECK_EQ(try_append(w, &w->recs[2], 100, false), -EIO);
    fail_pwrite = 0;
    CHECK_OK(try_append(w, &w->recs[2], 100, false));
    CHECK(w->recs[2].place.segment_no != w->recs[0].place.segment_no);
    fail_pwrite = -EIO; /* and when it is the header of a new segment that fails */
    CHECK_EQ(try_append(w, &w->recs[3], 100, false), -EIO);
    CHECK_EQ(try_append(w, &w->recs[3], 100, false), -EIO);
    fail_pwrite = 0;
    CHECK_OK(try_append(w, &w->recs[3], 100, false));
    check_all(w);
    check_du(w);
    world_free(w);
}

static void a_failed_sync_is_not_forgotten(void)
{
    struct world *w = world_new(".", &faulty);
    uint64_t freed;

    CHECK_OK(try_append(w, &w->recs[0], 3000, false));
    CHECK_OK(store_sync(w->st));
    CHECK_OK(try_append(w, &w->recs[1], 3000, false));
    fail_sync = -EIO;
    CHECK_EQ(store_sync(w->st), -EIO);
    fail_sync = 0;
    CHECK_EQ(store_sync(w->st), -EIO);
    CHECK_OK(try_append(w, &w->recs[2], 3000, false));
    CHECK(w->recs[2].place.segment_no != w->recs[1].place.segment_no);
    CHECK_EQ(store_sync(w->st), -EIO);
    drop(w, &w->recs[0]);
    drop(w, &w->recs[1]);
    CHECK_OK(store_reclaim(w->st, 8, &freed));
    CHECK(freed > 0);
    CHECK_OK(store_sync(w->st)); /* what may have been lost is gone for good */
    sync_calls = 0;
    CHECK_OK(store_sync(w->st));
    CHECK_EQ(sync_calls, 0);
    check_all(w);
    world_free(w);
}

static void without_holes_whole_segments_still_come_back(void)
{
    struct world *w = world_new(".", &faulty);
    struct store_usage usage;
    uint64_t freed;

    fail_punch = -EOPNOTSUPP;
    for (unsigned i = 0; i < 200; i++)
        CHECK_OK(try_append(w, &w->recs[i], 4096, false));
    for (unsigned i = 0; i < 20; i++)
        drop(w, &w->recs[i]);
    CHECK_OK(store_reclaim(w->st, 8, &freed));
    CHECK_EQ(freed, 0);
    for (unsigned i = 20; i < 200; i++)
        drop(w, &w->recs[i]);
    CHECK_OK(store_reclaim(w->st, 8, &freed));
    CHECK(freed >= 512 * KIB);
    fail_punch = 0;
    store_usage(w->st, &usage);
    CHECK_EQ(usage.punches, 0);
    check_du(w);
    world_free(w);
}

static void read_only_changes_nothing(void)
{
    struct world *w = world_new(".", &io_posix);
    uint64_t id, before, freed;
    int fd;

    for (unsigned i = 0; i < 100; i++)
        CHECK_OK(try_append(w, &w->recs[i], 4096, false));
    store_close(w->st);
    for (unsigned i = 0; i < 80; i++)
        w->recs[i].live = false;
    before = du_dir(w->dir_fd, ".");
    w->read_only = true;
    world_open(w);
    check_all(w);
    CHECK_EQ(try_append(w, &w->recs[0], 10, false), -EROFS);
    CHECK_EQ(store_big_create(w->st, &id, &fd), -EROFS);
    CHECK_OK(store_reclaim(w->st, 8, &freed));
    CHECK_OK(store_sync(w->st));
    CHECK_EQ(du_dir(w->dir_fd, "."), before);
    world_free(w);
}

/* ---- threads ---- */

#define THREADS 4u
#define THREAD_RECORDS (RECORDS_MAX / THREADS)

struct worker {
    struct world *w;
    unsigned index;
};

static _Atomic bool stop_sampling;

/* du is no snapshot: a file may go, and its charge with it, after it was counted. A real excess shows again and again. */
#define EXCESS_SEEN_MAX 50u

static void *sample_du(void *arg)
{
    struct world *w = arg;
    unsigned excess = 0;

    while (!stop_sampling) {
        uint64_t before = quota_charged(&w->quota);
        uint64_t used = du_dir(w->dir_fd, ".");
        excess = used > MAX(before, quota_charged(&w->quota)) ? excess + 1 : 0;
        CHECK(excess < EXCESS_SEEN_MAX);
    }
    return NULL;
}

static void *work(void *arg)
{
    const struct worker *worker = arg;
    struct world *w = worker->w;
    struct world *own = calloc(1, sizeof(*own)); /* a random state of its own */
    uint64_t freed;

    CHECK(own != NULL);
    own->rng = worker->index + 1234567;
    for (unsigned i = 0; i < 3000; i++) {
        size_t index = worker->index * THREAD_RECORDS + rnd(own) % 256;
        struct rec *rec = &w->recs[index];
        if (rec->live && rnd(own) % 2) {
            check_read(w, rec, rnd(own) % 2);
        } else if (rec->live) {
            drop(w, rec);
        } else {
            own->st = w->st;
            CHECK_OK(try_append(own, &own->recs[index], random_size(own), false));
            *rec = own->recs[index];
        }
        if (rnd(own) % 4 == 0)
            CHECK_OK(store_reclaim(w->st, 4, &freed));
        if (rnd(own) % 256 == 0)
            CHECK_OK(store_sync(w->st));
    }
    free(own);
    return NULL;
}

static void threads_lose_nothing_and_du_stays_below(void)
{
    struct world *w = world_new(".", &io_posix);
    struct worker workers[THREADS];
    pthread_t threads[THREADS], sampler;

    stop_sampling = false;
    CHECK_EQ(pthread_create(&sampler, NULL, sample_du, w), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.w = w, .index = i};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    stop_sampling = true;
    CHECK_EQ(pthread_join(sampler, NULL), 0);
    check_all(w);
    reopen(w);
    check_all(w);
    check_du(w);
    world_free(w);
}

int main(void)
{
    RUN(damage_is_never_returned);
    RUN(hostile_places_are_refused_at_mount);
    RUN(foreign_files_are_left_alone);
    RUN(orphans_go_at_mount);
    RUN(big_files_are_counted_and_their_directories_trimmed);
    RUN(a_walk_finds_every_live_record_behind_holes);
    RUN(a_full_host_disk_costs_no_quota);
    RUN(a_failed_sync_is_not_forgotten);
    RUN(without_holes_whole_segments_still_come_back);
    RUN(read_only_changes_nothing);
    RUN(steady_state_gives_back_what_it_takes);
    RUN(random_punching_keeps_the_charge_above_du);
    RUN(random_history_on_tmpfs);
    RUN(random_history_on_disk);
    RUN(threads_lose_nothing_and_du_stays_below);
    return 0;
}
