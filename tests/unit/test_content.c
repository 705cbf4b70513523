/* SPDX-License-Identifier: BSD-2-Clause */
/* Goal: an open file always reads as what was written to it, a committed value comes back whole or as -EBADMSG, and
 * du never passes what is charged, nor is a byte left reserved behind.
 * Method: random histories over all states against a plain byte array, with failing writes and failing commits, du at
 * every step; then damage to every part of every kind of value; then readers beside a writer. */
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "check.h"
#include "content.h"
#include "format.h"
#include "quota.h"
#include "store.h"
#include "util.h"

#define MODEL_BYTES_MAX (3u << 20)
#define NODE_ID 0x700000011ull

static const uint8_t store_id[16] = "fedcba987654321";

struct world {
    char dir[64];
    int dir_fd;
    struct quota quota;
    struct store *st;
    uint64_t rng;
    /* one file */
    struct content_host host;
    struct content_options opts;
    struct content *c;
    struct value value; /* as the index has it */
    uint8_t *now;       /* what it reads as */
    uint64_t size;
    uint8_t *committed;
    uint64_t committed_size;
    bool faults;
    unsigned seen_states, unseals; /* kinds committed; bit 8: unsealed */
};

/* ---- a file system that fails on demand ---- */

static _Atomic int fail_pwrite_in = -1; /* calls that still work; < 0: all do */
static _Atomic int fail_error;
static _Atomic bool fail_sync, fail_truncate, fail_stat, fail_pread;

static ssize_t faulty_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    if (fail_pwrite_in >= 0 && fail_pwrite_in-- == 0) {
        fail_pwrite_in = -1;
        return fail_error;
    }
    return io_posix.ops->pwrite(io, fd, buf, bytes, offset);
}

static ssize_t faulty_pread(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    return fail_pread ? -EIO : io_posix.ops->pread(io, fd, buf, bytes, offset);
}

static int faulty_fdatasync(struct io *io, int fd)
{
    return fail_sync ? -EIO : io_posix.ops->fdatasync(io, fd);
}

static int faulty_ftruncate(struct io *io, int fd, uint64_t bytes)
{
    return fail_truncate ? -EIO : io_posix.ops->ftruncate(io, fd, bytes);
}

static int faulty_fstat(struct io *io, int fd, struct stat *ret_st)
{
    return fail_stat ? -EIO : io_posix.ops->fstat(io, fd, ret_st);
}

static struct io_ops faulty_ops;
static struct io faulty = {.ops = &faulty_ops};

/* ---- the world ---- */

static uint64_t rnd(struct world *w, uint64_t below)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return below ? w->rng % below : w->rng;
}

static void fill(struct world *w, uint8_t *out, size_t bytes, bool text)
{
    if (text) {
        static const char words[] = "hits misses evictions stored bytes and more words that repeat ";
        size_t start = (size_t)rnd(w, sizeof(words) - 1);
        for (size_t i = 0; i < bytes; i++)
            out[i] = (uint8_t)words[(start + i) % (sizeof(words) - 1)];
    } else {
        for (size_t i = 0; i < bytes; i++)
            out[i] = (uint8_t)rnd(w, 0);
    }
}

static uint64_t du_dir(int dir_fd, const char *name)
{
    struct dirent *entry;
    uint64_t total;
    struct stat st;
    DIR *dir;
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY);

    CHECK(fd >= 0);
    CHECK_EQ(fstat(fd, &st), 0);
    total = (uint64_t)st.st_blocks * 512;
    dir = fdopendir(fd);
    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        total += S_ISDIR(st.st_mode) ? du_dir(fd, entry->d_name) : (uint64_t)st.st_blocks * 512;
    }
    (void)closedir(dir);
    return total;
}

static void check_du(struct world *w)
{
    uint64_t used = du_dir(w->dir_fd, ".");

    if (used > quota_charged(&w->quota))
        CHECK_FAIL("du %" PRIu64 " > charged %" PRIu64, used, quota_charged(&w->quota));
}

static int unseal(void *ctx, uint64_t node_id)
{
    struct world *w = ctx;

    CHECK_EQ(node_id, NODE_ID);
    CHECK(!w->value.unsealed);
    CHECK_EQ(w->value.kind, VALUE_RAW);
    w->value.unsealed = true;
    w->unseals++;
    return 0;
}

static struct world *world_new(uint32_t big_bytes, enum compress_mode compress)
{
    struct store_options opts = {.store_id = store_id, .segment_bytes = 8 * MIB, .segment_fds_max = 8};
    struct world *w = calloc(1, sizeof(*w));
    uint64_t orphans;

    CHECK(w != NULL);
    (void)snprintf(w->dir, sizeof(w->dir), "larder-content-XXXXXX");
    CHECK(mkdtemp(w->dir) != NULL);
    w->dir_fd = open(w->dir, O_RDONLY | O_DIRECTORY);
    CHECK(w->dir_fd >= 0);
    faulty_ops = *io_posix.ops;
    faulty_ops.pread = faulty_pread;
    faulty_ops.pwrite = faulty_pwrite;
    faulty_ops.fdatasync = faulty_fdatasync;
    faulty_ops.ftruncate = faulty_ftruncate;
    faulty_ops.fstat = faulty_fstat;
    quota_init(&w->quota, UINT64_MAX);
    CHECK_OK(store_open(&faulty, w->dir_fd, &w->quota, &opts, &w->st, NULL));
    CHECK_OK(store_finish_recovery(w->st, &orphans));
    w->rng = 88172645463325252ull;
    w->host = (struct content_host){.unseal = unseal, .ctx = w};
    w->opts = (struct content_options){.big_bytes = big_bytes, .compress = compress};
    w->now = calloc(1, MODEL_BYTES_MAX);
    w->committed = calloc(1, MODEL_BYTES_MAX);
    CHECK(w->now != NULL);
    CHECK(w->committed != NULL);
    return w;
}

static void open_file(struct world *w)
{
    CHECK_OK(content_new(w->st, &w->host, NODE_ID, &w->value, &w->opts, &w->c));
    CHECK_EQ(content_size(w->c), w->value.size_bytes);
}

static void close_file(struct world *w)
{
    if (w->c && w->value.kind == VALUE_RAW)
        w->value.stored_bytes = content_keep_growth(w->c);
    content_free(w->c);
    w->c = NULL;
}

/* Nothing is reserved once nothing is open. */
static void check_nothing_reserved(struct world *w)
{
    struct store_usage usage;

    store_usage(w->st, &usage);
    CHECK_EQ(usage.charged_bytes, quota_charged(&w->quota));
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

static int try_commit(struct world *w, bool durable, bool journal_fails);

static void world_free(struct world *w)
{
    uint64_t freed, memory;

    close_file(w);
    content_drop_value(w->st, &w->value, false);
    CHECK_OK(store_reclaim(w->st, UINT32_MAX, &freed));
    check_nothing_reserved(w);
    check_du(w);
    memory = content_memory_bytes();
    CHECK_EQ(memory, 0);
    store_close(w->st);
    (void)close(w->dir_fd);
    remove_tree(AT_FDCWD, w->dir);
    free(w->now);
    free(w->committed);
    free(w);
}

/* ---- operations on file and model ---- */

static void check_range(struct world *w, uint64_t offset, size_t bytes)
{
    uint8_t *buf = malloc(bytes + 1);
    size_t got = SIZE_MAX, want = offset < w->size ? (size_t)MIN(bytes, w->size - offset) : 0;
    int r;

    CHECK(buf != NULL);
    r = content_read(w->c, buf, bytes, offset, true, &got);
    if (r == -EAGAIN)
        r = content_read(w->c, buf, bytes, offset, false, &got);
    CHECK_OK(r);
    CHECK_EQ(got, want);
    for (size_t i = 0; i < want; i++)
        if (buf[i] != w->now[offset + i])
            CHECK_FAIL("byte %" PRIu64 " of %" PRIu64 " is %02x, not %02x", offset + i, w->size, buf[i],
                       w->now[offset + i]);
    free(buf);
}

static void check_all(struct world *w)
{
    CHECK_EQ(content_size(w->c), w->size);
    check_range(w, 0, MODEL_BYTES_MAX);
}

static void note_state(struct world *w)
{
    w->seen_states |= 1u << (unsigned)w->value.kind;
    if (w->value.kind == VALUE_RAW && w->value.unsealed)
        w->seen_states |= 1u << 8;
}

static bool same_bytes(const struct value *a, const struct value *b)
{
    return a->kind == b->kind && (a->kind == VALUE_RAW || a->kind == VALUE_PACKED) && a->big_id == b->big_id;
}

/* As the cache does it. */
static void publish(struct world *w, const struct value *v)
{
    struct value old = w->value;

    w->value = *v;
    content_committed(w->c, v);
    if (!same_bytes(&old, v))
        content_drop_value(w->st, &old, false);
    else if (old.sums_place.segment_no != 0)
        store_drop(w->st, old.sums_place, old.sums_bytes);
    CHECK(!content_is_dirty(w->c));
    note_state(w);
}

static int try_commit(struct world *w, bool durable, bool journal_fails)
{
    struct value v;
    bool changed;
    int r = content_commit(w->c, durable, &v, &changed);

    if (r < 0)
        return r;
    if (changed && journal_fails) {
        content_commit_failed(w->c, &v);
        CHECK(content_is_dirty(w->c));
        return -EIO;
    }
    if (changed) {
        CHECK_EQ(v.size_bytes, w->size);
        publish(w, &v);
    }
    memcpy(w->committed, w->now, MODEL_BYTES_MAX);
    w->committed_size = w->size;
    return 0;
}

static void try_seal(struct world *w)
{
    struct value v;
    bool changed;

    CHECK_OK(content_seal(w->c, &v, &changed));
    if (!changed)
        return;
    CHECK(!v.unsealed);
    publish(w, &v);
    memcpy(w->committed, w->now, MODEL_BYTES_MAX);
    w->committed_size = w->size;
    CHECK(content_is_sealed(w->c));
}

static int do_write(struct world *w, uint64_t offset, size_t bytes, bool text)
{
    uint8_t *buf = malloc(bytes + 1);
    int r;

    CHECK(buf != NULL);
    fill(w, buf, bytes, text);
    r = content_write(w->c, buf, bytes, offset);
    if (r == 0) {
        memcpy(w->now + offset, buf, bytes);
        w->size = MAX(w->size, offset + bytes);
    }
    free(buf);
    return r;
}

static int do_truncate(struct world *w, uint64_t size)
{
    int r = content_truncate(w->c, size);

    if (r == 0) {
        if (size < w->size)
            memset(w->now + size, 0, w->size - size);
        w->size = size;
    }
    return r;
}

static int do_allocate(struct world *w, int mode, uint64_t offset, uint64_t bytes)
{
    int r = content_allocate(w->c, mode, offset, bytes);

    if (r == 0) {
        if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
            memset(w->now + offset, 0, bytes);
        if (!(mode & FALLOC_FL_KEEP_SIZE))
            w->size = MAX(w->size, offset + bytes);
    }
    return r;
}

static void do_seek(struct world *w)
{
    uint64_t offset = rnd(w, w->size + 2), hole = 0, data = 0;
    int r = content_seek(w->c, offset, SEEK_HOLE, &hole);

    if (offset >= w->size) {
        CHECK_EQ(r, -ENXIO);
        return;
    }
    CHECK_OK(r);
    CHECK(hole >= offset);
    CHECK(hole <= w->size);
    r = content_seek(w->c, offset, SEEK_DATA, &data);
    if (r == -ENXIO)
        data = w->size;
    else
        CHECK_OK(r);
    CHECK(data >= offset);
    CHECK(data <= w->size);
    for (uint64_t i = offset; i < data; i++)
        CHECK_EQ(w->now[i], 0);
}

static void reopen(struct world *w)
{
    close_file(w);
    if (!w->value.unsealed)
        check_nothing_reserved(w);
    memcpy(w->now, w->committed, MODEL_BYTES_MAX);
    w->size = w->committed_size;
    open_file(w);
}

static void step_commit(struct world *w)
{
    switch (rnd(w, 5)) {
    case 0:
        (void)try_commit(w, true, false);
        break;
    case 1:
        (void)try_commit(w, rnd(w, 2), true);
        break;
    case 2:
        try_seal(w);
        break;
    case 3: /* what is changed in place has no way back: commit it before it is given up */
        CHECK_OK(w->value.unsealed ? try_commit(w, false, false) : 0);
        reopen(w);
        break;
    default:
        (void)try_commit(w, false, false);
        if (rnd(w, 2) && !content_is_dirty(w->c))
            reopen(w);
    }
}

static void step(struct world *w)
{
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    uint64_t reach = MIN(w->size + 100000, MODEL_BYTES_MAX - 300000);
    uint64_t small = 1 + rnd(w, 9000), large = 1 + rnd(w, 250000);
    int r = 0;

    switch (rnd(w, 16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5: /* append */
        if (w->size + large < MODEL_BYTES_MAX)
            r = do_write(w, w->size, rnd(w, 3) ? large : small, rnd(w, 4));
        break;
    case 6:
        r = do_write(w, rnd(w, reach), small, rnd(w, 2));
        break;
    case 7:
        r = do_truncate(w, rnd(w, 3) ? rnd(w, reach) : 0);
        break;
    case 8:
        if (rnd(w, 3) == 0)
            r = do_allocate(w, modes[rnd(w, ARRAY_COUNT(modes))], rnd(w, reach), small);
        break;
    case 9:
        do_seek(w);
        break;
    case 10:
    case 11:
    case 12:
        check_range(w, rnd(w, reach), small * 20);
        break;
    default:
        step_commit(w);
    }
    if (fail_error == 0)
        CHECK_OK(r);
}

static unsigned seen_in_all, unseals_in_all;

static void history(uint32_t big_bytes, enum compress_mode compress, uint64_t seed, bool faults)
{
    struct world *w = world_new(big_bytes, compress);

    w->rng += seed * 7919;
    w->faults = faults;
    open_file(w);
    for (unsigned i = 0; i < 1200; i++) {
        /* The first write of an operation fails: later ones may leave half of it, as on any disk. */
        bool fault = faults && rnd(w, 8) == 0;
        if (fault) {
            fail_error = rnd(w, 2) ? -EIO : -ENOSPC;
            fail_pwrite_in = 0;
        }
        if (!fault || !w->value.unsealed)
            step(w);
        fail_pwrite_in = -1;
        fail_error = 0;
        check_du(w);
        if (i % 10 == 0)
            check_all(w);
    }
    check_all(w);
    if (compress == COMPRESS_NONE)
        CHECK_EQ(w->seen_states & 1u << VALUE_PACKED, 0);
    seen_in_all |= w->seen_states;
    unseals_in_all += w->unseals;
    world_free(w);
}

static void random_histories(void)
{
    for (uint64_t seed = 1; seed <= 4; seed++)
        history(64 * KIB, COMPRESS_AUTO, seed, false);
    history(1 << 20, COMPRESS_LZ4, 9, false);
    history(4 * KIB, COMPRESS_NONE, 10, false);
    CHECK_EQ(seen_in_all, 0x10f); /* every kind was committed, unsealed ones too */
    CHECK(unseals_in_all > 20);
}

static void random_histories_with_failing_writes(void)
{
    for (uint64_t seed = 21; seed <= 24; seed++)
        history(64 * KIB, COMPRESS_AUTO, seed, true);
}

/* ---- damage ---- */

/* Writes a new value, commits it, and gives the content up. */
static void make_value(struct world *w, size_t bytes, bool text, bool durable)
{
    open_file(w);
    CHECK_OK(do_truncate(w, 0));
    for (size_t done = 0; done < bytes; done += 50000)
        CHECK_OK(do_write(w, done, MIN(bytes - done, 50000), text));
    CHECK_OK(try_commit(w, durable, false));
    close_file(w);
    check_nothing_reserved(w);
}

static void flip(struct world *w, const char *name, uint64_t offset, uint8_t mask)
{
    uint8_t byte;
    int fd = openat(w->dir_fd, name, O_RDWR);

    CHECK(fd >= 0);
    CHECK_EQ(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= mask;
    CHECK_EQ(pwrite(fd, &byte, 1, (off_t)offset), 1);
    (void)close(fd);
}

/* Right bytes or -EBADMSG, read in pieces; says whether doubt was raised at all. */
static bool reads_with_doubt(struct world *w)
{
    uint8_t *buf = malloc(MODEL_BYTES_MAX);
    bool doubted = false;
    struct content *c;
    size_t got;

    CHECK(buf != NULL);
    CHECK_OK(content_new(w->st, &w->host, NODE_ID, &w->value, &w->opts, &c));
    for (uint64_t offset = 0; offset < w->size; offset += 30000) {
        int r = content_read(c, buf, 30000, offset, false, &got);
        doubted |= r == -EBADMSG;
        CHECK(r == 0 || r == -EBADMSG);
        if (r == 0)
            CHECK_EQ(memcmp(buf, w->now + offset, got), 0);
    }
    content_free(c);
    free(buf);
    return doubted;
}

static void damage(struct world *w, const char *name, uint64_t from, uint64_t to)
{
    struct errtext err = {""};

    CHECK(!reads_with_doubt(w));
    CHECK_OK(content_verify_value(w->st, &w->value, NODE_ID, &err));
    CHECK_EQ(content_verify_value(w->st, &w->value, NODE_ID + 1, &err), -EBADMSG);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t offset = i < 30 ? from + rnd(w, to - from) : to - 1 - rnd(w, MIN(to - from, 100));
        uint8_t mask = (uint8_t)(1u << rnd(w, 8));
        flip(w, name, offset, mask);
        CHECK(reads_with_doubt(w));
        CHECK_EQ(content_verify_value(w->st, &w->value, NODE_ID, &err), -EBADMSG);
        CHECK(err.text[0] != '\0');
        flip(w, name, offset, mask);
    }
    CHECK(!reads_with_doubt(w));
}

static void a_damaged_segment_value_is_doubted(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    char name[FORMAT_NAME_BYTES];

    make_value(w, 50000, false, false);
    CHECK_EQ(w->value.kind, VALUE_SEGMENT);
    format_name(name, "seg-", w->value.place.segment_no);
    damage(w, name, w->value.place.offset,
           w->value.place.offset + DISK_VALUE_HEADER_BYTES + w->value.stored_bytes);
    world_free(w);
}

static void a_damaged_packed_value_is_doubted(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    char name[FORMAT_NAME_BYTES];
    struct stat st;

    make_value(w, 700000, true, false);
    CHECK_EQ(w->value.kind, VALUE_PACKED);
    CHECK(w->value.stored_bytes < 350000);
    format_big_name(name, w->value.big_id);
    CHECK_EQ(fstatat(w->dir_fd, name, &st, 0), 0);
    damage(w, name, 0, (uint64_t)st.st_size);
    world_free(w);
}

static void a_damaged_raw_value_is_doubted(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    char name[FORMAT_NAME_BYTES];

    make_value(w, 700001, false, false);
    CHECK_EQ(w->value.kind, VALUE_RAW);
    CHECK(!w->value.unsealed);
    format_big_name(name, w->value.big_id);
    damage(w, name, 0, w->value.size_bytes);
    format_name(name, "seg-", w->value.sums_place.segment_no);
    damage(w, name, w->value.sums_place.offset,
           w->value.sums_place.offset + DISK_VALUE_HEADER_BYTES + w->value.sums_bytes);
    /* and is not unsealed, which would make the damage good */
    format_big_name(name, w->value.big_id);
    flip(w, name, 300000, 1);
    open_file(w);
    CHECK_EQ(content_write(w->c, "x", 1, 0), -EBADMSG);
    CHECK_EQ(w->unseals, 0);
    world_free(w);
}

static void a_verified_raw_value_is_changed_without_reading_it(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);

    make_value(w, 700001, false, false);
    w->opts.verified = true;
    open_file(w);
    fail_pread = true;
    CHECK_OK(do_write(w, 300000, 5, false));
    fail_pread = false;
    CHECK_EQ(w->unseals, 1);
    check_all(w);
    CHECK_OK(try_commit(w, false, false));
    world_free(w);
}

static void truncated_and_missing_files_are_doubted(void)
{
    for (unsigned text = 0; text < 2; text++) {
        struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
        char name[FORMAT_NAME_BYTES];
        int fd;

        make_value(w, 300000, text, false);
        format_big_name(name, w->value.big_id);
        fd = openat(w->dir_fd, name, O_RDWR);
        CHECK_EQ(ftruncate(fd, 1000), 0);
        (void)close(fd);
        CHECK(reads_with_doubt(w));
        CHECK_EQ(unlinkat(w->dir_fd, name, 0), 0);
        CHECK(reads_with_doubt(w));
        world_free(w);
    }
}

/* ---- single rules ---- */

static void enospc_comes_from_write_and_changes_nothing(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);
    uint64_t before;
    int r = 0;

    open_file(w);
    CHECK_OK(do_write(w, 0, 5000, false));
    atomic_store(&w->quota.limit_bytes, quota_charged(&w->quota) + MIB);
    while (r == 0 && w->size < 2 * MIB)
        r = do_write(w, w->size, 20000, false);
    CHECK_EQ(r, -ENOSPC);
    CHECK(w->size > 700000);
    before = quota_charged(&w->quota);
    CHECK_EQ(do_write(w, w->size, MIB, false), -ENOSPC);
    CHECK_EQ(quota_charged(&w->quota), before);
    check_all(w);
    check_du(w);
    CHECK_OK(try_commit(w, false, false));
    CHECK(quota_charged(&w->quota) <= quota_limit(&w->quota));
    check_all(w);
    world_free(w);
}

static void quota_zero_takes_small_values_and_commits_none(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    uint64_t start = quota_charged(&w->quota);

    atomic_store(&w->quota.limit_bytes, 0);
    open_file(w);
    CHECK_OK(do_write(w, 0, 60000, false));
    CHECK_EQ(do_write(w, w->size, 60000, false), -ENOSPC);
    check_all(w);
    CHECK_EQ(try_commit(w, false, false), -ENOSPC);
    CHECK(content_is_dirty(w->c));
    close_file(w);
    CHECK_EQ(quota_charged(&w->quota), start);
    atomic_store(&w->quota.limit_bytes, UINT64_MAX);
    world_free(w);
}

static void what_is_not_committed_leaves_nothing(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    uint64_t start;

    make_value(w, 1000, false, false); /* so that the directories are there */
    make_value(w, 200000, false, false);
    for (unsigned i = 0; i < 4; i++) {
        start = quota_charged(&w->quota);
        open_file(w);
        CHECK_OK(content_truncate(w->c, 0));
        for (uint64_t at = 0; at < 300000u * i; at += 100000)
            CHECK_OK(content_write(w->c, w->now, 100000, at));
        close_file(w);
        CHECK(quota_charged(&w->quota) <= start + 64 * KIB); /* a new directory of big/ at most */
        check_nothing_reserved(w);
    }
    CHECK(!reads_with_doubt(w));
    world_free(w);
}

static void a_database_that_syncs_often_gets_a_file(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);

    open_file(w);
    for (unsigned i = 0; i < 12; i++) {
        CHECK_OK(do_write(w, rnd(w, 20000), 4096, false));
        CHECK_OK(try_commit(w, true, false));
        check_du(w);
    }
    CHECK_EQ(w->value.kind, VALUE_RAW);
    CHECK(w->value.unsealed);
    CHECK_EQ(w->unseals, 0);
    try_seal(w);
    CHECK(!w->value.unsealed);
    reopen(w);
    check_all(w);
    CHECK_OK(do_write(w, 100, 10, false));
    CHECK_EQ(w->unseals, 1);
    CHECK_OK(try_commit(w, true, false));
    world_free(w);
}

static void a_sparse_file_stays_sparse(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    uint64_t found = 0;

    open_file(w);
    CHECK_OK(do_write(w, 2 * MIB, 100, false));
    CHECK_OK(try_commit(w, false, false));
    CHECK_EQ(w->value.kind, VALUE_RAW);
    CHECK(w->value.unsealed);
    CHECK(w->value.stored_bytes < 64 * KIB);
    CHECK_OK(content_seek(w->c, 0, SEEK_DATA, &found));
    CHECK_EQ(found, 2 * MIB);
    CHECK_OK(content_seek(w->c, 10, SEEK_HOLE, &found));
    CHECK_EQ(found, 10);
    for (unsigned i = 0; i < 300; i++) { /* filling its holes is charged */
        CHECK_OK(do_write(w, rnd(w, 2 * MIB), 5000, false));
        check_du(w);
    }
    CHECK_OK(try_commit(w, false, false));
    check_du(w);
    reopen(w);
    check_all(w);
    world_free(w);
}

static void a_failed_sync_fails_the_commit_for_good(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);

    make_value(w, 300000, false, false);
    open_file(w);
    CHECK_OK(do_truncate(w, 0));
    CHECK_OK(do_write(w, 0, 200000, false));
    fail_sync = true;
    CHECK_EQ(try_commit(w, true, false), -EIO);
    fail_sync = false;
    CHECK_EQ(try_commit(w, true, false), -EIO); /* the kernel forgets; we do not */
    check_all(w);
    reopen(w);
    check_all(w);
    world_free(w);
}

/* The file is closed while nobody can tell what it takes. */
static void close_without_stat(struct world *w)
{
    fail_stat = true;
    close_file(w);
    fail_stat = false;
    check_du(w);
    check_nothing_reserved(w);
}

static void a_failed_truncation_of_a_dense_file_leaves_nothing_charged(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);
    uint64_t before;

    make_value(w, 700000, false, false);
    open_file(w);
    fail_truncate = true;
    CHECK_EQ(content_truncate(w->c, 123456), -EIO);
    fail_truncate = false;
    before = w->value.stored_bytes;
    close_without_stat(w);
    CHECK_EQ(w->value.stored_bytes, before);
    open_file(w);
    check_all(w);
    world_free(w);
}

/* All it may have become larger by is the block that its new end lies in, and the extent blocks above that. */
static void a_failed_truncation_of_a_sparse_file_leaves_one_block_charged(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);
    uint64_t before;

    make_value(w, 700000, false, false);
    open_file(w);
    CHECK_OK(do_truncate(w, 2 * MIB));
    CHECK_OK(try_commit(w, true, false));
    fail_truncate = true;
    CHECK_EQ(content_truncate(w->c, MIB + 1), -EIO);
    fail_truncate = false;
    before = w->value.stored_bytes;
    close_without_stat(w);
    CHECK(w->value.stored_bytes <= before + 8 * KIB);
    open_file(w);
    check_all(w);
    world_free(w);
}

/* Bytes written in place, of a commit that never came: the value answers for them, and gives them back when it goes. */
static void growth_in_place_without_a_commit_is_the_values(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);

    make_value(w, 300000, false, false);
    for (unsigned i = 0; i < 3; i++) {
        open_file(w);
        CHECK_OK(do_write(w, w->size, 500000, false));
        CHECK_EQ(try_commit(w, false, true), -EIO);
        close_without_stat(w);
        CHECK(w->value.stored_bytes >= w->size);
        CHECK(w->value.stored_bytes <= w->size + 16 * KIB);
        w->value.size_bytes = w->size; /* as found at a mount */
    }
    world_free(w);
}

/* The blocks of an allocation that nobody could look at count as there when more is asked for. */
static void an_allocation_nobody_saw_is_not_reserved_over(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);

    make_value(w, 700000, false, false);
    open_file(w);
    CHECK_OK(do_truncate(w, 3 * MIB));
    CHECK_OK(try_commit(w, true, false));
    fail_stat = true;
    CHECK_OK(do_allocate(w, 0, MIB, MIB));
    fail_stat = false;
    CHECK_OK(do_allocate(w, 0, 2 * MIB, MIB));
    check_du(w);
    check_all(w);
    world_free(w);
}

static void a_raw_value_is_verified_in_pieces(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);
    bool end = true;

    make_value(w, 300000, false, false);
    open_file(w);
    CHECK_OK(content_verify_piece(w->c, 0, 100000, &end));
    CHECK(!end);
    CHECK_OK(content_verify_piece(w->c, 200000, 100000, &end));
    CHECK(end);
    CHECK_OK(content_verify_piece(w->c, 900000, 100000, &end));
    CHECK(end);
    CHECK_OK(do_write(w, 0, 100, false));
    CHECK_EQ(content_verify_piece(w->c, 0, 100000, &end), -ENOTSUP);
    CHECK(!end);
    CHECK_OK(try_commit(w, false, false));
    world_free(w);
}

static void a_lent_descriptor_outlives_its_value(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_NONE);
    struct value old;
    bool changed;
    uint8_t byte;
    int fd = -1;

    make_value(w, 300000, false, false);
    open_file(w);
    CHECK_OK(content_backing_fd(w->c, &fd));
    CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    byte = w->now[5];
    CHECK_OK(do_truncate(w, 0));
    CHECK_OK(do_write(w, 0, 100, false));
    old = w->value;
    CHECK_OK(content_commit(w->c, false, &w->value, &changed));
    content_committed(w->c, &w->value);
    CHECK_EQ(pread(fd, w->committed, 6, 0), 6);
    CHECK_EQ(w->committed[5], byte);
    CHECK_EQ(content_backing_fd(w->c, &fd), -ENOTSUP);
    check_all(w);
    close_file(w);
    content_drop_value(w->st, &old, false);
    check_nothing_reserved(w);
    world_free(w);
}

static void an_orphan_releases_everything(void)
{
    static const size_t sizes[] = {0, 1000, 300000};

    for (unsigned i = 0; i < 12; i++) {
        struct world *w = world_new(64 * KIB, COMPRESS_AUTO);

        make_value(w, sizes[i % 3], i & 1, false);
        open_file(w);
        content_orphan(w->c);
        if (i >= 6)
            content_drop_value(w->st, &w->value, true);
        check_all(w);
        CHECK_OK(do_write(w, w->size, 200000, i & 1));
        check_all(w);
        check_du(w);
        w->value = (struct value){.kind = VALUE_EMPTY};
        world_free(w);
    }
}

static void checksums_are_known_for_segment_values(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    uint64_t sum = 0;

    make_value(w, 5000, true, true);
    open_file(w);
    CHECK_OK(content_checksum(w->c, &sum));
    CHECK_EQ(sum, codec_checksum(w->now, w->size));
    CHECK_OK(do_write(w, 0, 1, false));
    CHECK_EQ(content_checksum(w->c, &sum), -ENODATA);
    CHECK_OK(try_commit(w, false, false));
    CHECK_OK(content_checksum(w->c, &sum));
    CHECK_EQ(sum, codec_checksum(w->now, w->size));
    world_free(w);
}

static void nonsense_is_refused(void)
{
    struct value bad[] = {
        {.kind = VALUE_EMPTY, .size_bytes = 1},
        {.kind = VALUE_SEGMENT, .size_bytes = 1 << 30, .stored_bytes = 10, .place = {1, 64}},
        {.kind = VALUE_SEGMENT, .size_bytes = 10, .stored_bytes = 11, .place = {1, 64}},
        {.kind = VALUE_RAW, .size_bytes = 10, .stored_bytes = 4096},
        {.kind = VALUE_PACKED, .big_id = 3},
        {.kind = (enum value_kind)77},
    };
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);

    for (unsigned i = 0; i < ARRAY_COUNT(bad); i++)
        CHECK_EQ(content_new(w->st, &w->host, NODE_ID, &bad[i], &w->opts, &w->c), -EBADMSG);
    w->c = NULL;
    open_file(w);
    CHECK_EQ(content_write(w->c, "x", 1, INT64_MAX), -EFBIG);
    CHECK_EQ(content_truncate(w->c, UINT64_MAX), -EFBIG);
    CHECK_EQ(content_allocate(w->c, 0, 0, 0), -EINVAL);
    CHECK_EQ(content_allocate(w->c, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -EOPNOTSUPP);
    CHECK(!content_is_dirty(w->c));
    world_free(w);
}

/* ---- threads ---- */

static _Atomic bool stop_reading;

/* Every 512 bytes carry one number: a reader sees one of the writer's blocks, or zeros. */
static void *read_blocks(void *arg)
{
    struct world *w = arg;
    uint8_t buf[4096];
    size_t got;

    for (uint64_t x = 1; !stop_reading; x = x * 6364136223846793005ull + 1442695040888963407ull) {
        uint64_t offset = (x >> 33) % 512 * 4096;
        int r = content_read(w->c, buf, sizeof(buf), offset, x >> 63, &got);
        CHECK(r == 0 || r == -EAGAIN);
        for (size_t i = 0; r == 0 && i < got; i++)
            CHECK(buf[i] == 0 || buf[i] == (uint8_t)(offset / 4096 + 1));
        (void)content_size(w->c);
    }
    return NULL;
}

static void readers_beside_a_writer(void)
{
    struct world *w = world_new(64 * KIB, COMPRESS_AUTO);
    uint8_t buf[4096];
    pthread_t threads[2];

    open_file(w);
    stop_reading = false;
    for (unsigned i = 0; i < ARRAY_COUNT(threads); i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, read_blocks, w), 0);
    for (unsigned round = 0; round < 40; round++) {
        for (uint64_t block = 0; block < 60 + 10 * (round % 30); block++) {
            memset(buf, (int)(uint8_t)(block + 1), sizeof(buf));
            CHECK_OK(content_write(w->c, buf, sizeof(buf), block * 4096));
            w->size = MAX(w->size, (block + 1) * 4096);
        }
        CHECK_OK(try_commit(w, round % 5 == 0, false));
        if (round % 3 == 0)
            try_seal(w);
        if (round % 4 == 3) {
            CHECK_OK(content_truncate(w->c, 0));
            w->size = 0;
        }
    }
    stop_reading = true;
    for (unsigned i = 0; i < ARRAY_COUNT(threads); i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    world_free(w);
}

int main(void)
{
    RUN(nonsense_is_refused);
    RUN(checksums_are_known_for_segment_values);
    RUN(enospc_comes_from_write_and_changes_nothing);
    RUN(quota_zero_takes_small_values_and_commits_none);
    RUN(what_is_not_committed_leaves_nothing);
    RUN(a_database_that_syncs_often_gets_a_file);
    RUN(a_sparse_file_stays_sparse);
    RUN(a_failed_sync_fails_the_commit_for_good);
    RUN(a_failed_truncation_of_a_dense_file_leaves_nothing_charged);
    RUN(a_failed_truncation_of_a_sparse_file_leaves_one_block_charged);
    RUN(growth_in_place_without_a_commit_is_the_values);
    RUN(an_allocation_nobody_saw_is_not_reserved_over);
    RUN(a_raw_value_is_verified_in_pieces);
    RUN(a_lent_descriptor_outlives_its_value);
    RUN(an_orphan_releases_everything);
    RUN(a_damaged_segment_value_is_doubted);
    RUN(a_damaged_packed_value_is_doubted);
    RUN(a_damaged_raw_value_is_doubted);
    RUN(a_verified_raw_value_is_changed_without_reading_it);
    RUN(truncated_and_missing_files_are_doubted);
    RUN(random_histories);
    RUN(random_histories_with_failing_writes);
    RUN(readers_beside_a_writer);
    return 0;
}
