/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Goal: what the journal acknowledged a restart replays, what it did not acknowledge leaves a prefix of the
 * history, and hostile files leave a prefix too; the quota always covers the disk.
 * Method: every record sets one of KEY_COUNT keys to its own seq, so the state after replay says which prefix
 * it is. Files are cut and flipped at every byte, children are killed at random points, devices fail on call.
 */
#include "check.h"
#include "journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define KEY_COUNT 16u
#define NO_LIMIT (1ull << 40)

static const uint8_t store_id[16] = "journaltestsuite";
static const uint8_t other_id[16] = "someotherstoreid";

struct state {
    uint64_t value[KEY_COUNT]; /* seq that set it; 0 never */
};

struct dir {
    char path[64];
    int fd;
};

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* ---- the directory ---- */

static struct dir dir_new(void)
{
    struct dir d = {.path = "journal-test-XXXXXX"};

    CHECK(mkdtemp(d.path));
    d.fd = open(d.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(d.fd >= 0);
    return d;
}

/* Calls for each name in the directory; returns how many begin with prefix. */
static unsigned dir_each(const struct dir *d, const char *prefix, void (*call)(const struct dir *, const char *, void *), void *ctx)
{
    DIR *stream = opendir(d->path);
    struct dirent *entry;
    unsigned count = 0;

    CHECK(stream);
    while ((entry = readdir(stream))) {
        if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
            continue;
        count++;
        if (call)
            call(d, entry->d_name, ctx);
    }
    (void)closedir(stream);
    return count;
}

static unsigned dir_count(const struct dir *d, const char *prefix)
{
    return dir_each(d, prefix, NULL, NULL);
}

static void remove_name(const struct dir *d, const char *name, void *ctx)
{
    (void)ctx;
    if (unlinkat(d->fd, name, 0) < 0)
        CHECK(unlinkat(d->fd, name, AT_REMOVEDIR) == 0);
}

static void dir_free(struct dir *d)
{
    (void)dir_each(d, "", remove_name, NULL);
    CHECK(rmdir(d->path) == 0);
    (void)close(d->fd);
}

static void add_disk_bytes(const struct dir *d, const char *name, void *ctx)
{
    struct stat st;

    if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        *(uint64_t *)ctx += (uint64_t)st.st_blocks * 512;
}

static uint64_t dir_disk_bytes(const struct dir *d)
{
    uint64_t bytes = 0;

    (void)dir_each(d, "", add_disk_bytes, &bytes);
    return bytes;
}

static uint8_t *file_read(const struct dir *d, const char *name, size_t *ret_bytes)
{
    int fd = openat(d->fd, name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint8_t *bytes;

    CHECK(fd >= 0);
    CHECK(fstat(fd, &st) == 0);
    bytes = malloc((size_t)st.st_size + 1);
    CHECK(read(fd, bytes, (size_t)st.st_size) == st.st_size);
    (void)close(fd);
    *ret_bytes = (size_t)st.st_size;
    return bytes;
}

static void file_write(const struct dir *d, const char *name, const uint8_t *bytes, size_t count)
{
    int fd = openat(d->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    CHECK(fd >= 0);
    CHECK(write(fd, bytes, count) == (ssize_t)count);
    CHECK(close(fd) == 0);
}

/* ---- the history ---- */

static int apply_entry(void *ctx, const struct entry_view *entry)
{
    struct state *s = ctx;
    struct use_image use;

    if (entry->type == ENTRY_RECALL)
        *s = (struct state){0}; /* this history knows no nodes: only "all of it" is ever recalled */
    if (entry->type != ENTRY_USE)
        return 0;
    for (uint32_t i = 0; i < entry->use.count; i++) {
        use_item_unpack(entry->use.items, i, &use);
        s->value[use.node % KEY_COUNT] = use.used_ns;
    }
    return 0;
}

/* State after the first `seq` records. */
static struct state state_at(uint64_t seq)
{
    struct state s = {0};

    for (uint64_t i = seq > KEY_COUNT ? seq - KEY_COUNT + 1 : 1; i <= seq; i++)
        s.value[i % KEY_COUNT] = i;
    return s;
}

static void check_state(const struct state *got, uint64_t seq)
{
    struct state want = state_at(seq);

    for (unsigned i = 0; i < KEY_COUNT; i++)
        CHECK_EQ(got->value[i], want.value[i]);
}

/* What is known is right, though not all may be. */
static void check_part(const struct state *got, uint64_t seq)
{
    struct state want = state_at(seq);

    for (unsigned i = 0; i < KEY_COUNT; i++)
        CHECK(got->value[i] == 0 || got->value[i] == want.value[i]);
}

/* Appends record last_seq + 1, with up to pad_bytes of ballast. */
static uint64_t append(struct journal *j, uint32_t pad_count)
{
    struct record_buffer rb = {0};
    uint64_t seq = journal_last_seq(j) + 1, got;
    struct use_image *uses = calloc(pad_count + 1, sizeof(*uses));

    for (uint32_t i = 0; i <= pad_count; i++)
        uses[i] = (struct use_image){.node = seq % KEY_COUNT, .used_ns = seq};
    CHECK_OK(record_begin(&rb));
    CHECK_OK(record_add_use(&rb, uses, pad_count + 1));
    got = journal_append(j, &rb);
    record_buffer_fini(&rb);
    free(uses);
    CHECK(got == 0 || got == seq);
    return got;
}

static int open_at(struct io *io, const struct dir *d, struct quota *q, bool read_only, struct state *s,
                   struct journal_replay *replay, struct journal **ret_journal)
{
    struct journal_options opts = {.store_id = store_id, .emergency_bytes = 64 << 10, .read_only = read_only};
    struct errtext err = {0};

    *s = (struct state){0};
    return journal_open(io, d->fd, q, &opts, apply_entry, s, replay, ret_journal, &err);
}

static struct journal *must_open(const struct dir *d, struct quota *q, struct state *s, struct journal_replay *replay)
{
    struct journal *j;

    CHECK_OK(open_at(&io_posix, d, q, false, s, replay, &j));
    return j;
}

/* What a restart would find, touching nothing. */
static struct journal_replay look(const struct dir *d, struct state *s)
{
    struct journal_replay replay;
    struct journal *j;
    struct quota q;

    quota_init(&q, NO_LIMIT);
    CHECK_OK(open_at(&io_posix, d, &q, true, s, &replay, &j));
    journal_close(j);
    return replay;
}

static int try_checkpoint(struct journal *j, bool clean)
{
    struct state now = state_at(journal_last_seq(j));
    struct end_image end = {.next_generation = 1, .clean = clean};
    struct record_buffer rb = {0};
    struct checkpoint *cp;
    int r;

    r = checkpoint_begin(j, 4096, &(uint64_t){0}, &cp);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < KEY_COUNT; i++) {
        struct use_image use = {.node = i, .used_ns = now.value[i]};

        CHECK_OK(record_begin(&rb));
        CHECK_OK(record_add_use(&rb, &use, 1));
        CHECK_OK(checkpoint_add(cp, &rb));
    }
    record_buffer_fini(&rb);
    return checkpoint_finish(&cp, &end);
}

/* ---- tests ---- */

static void test_round_trip(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct state s;
    struct quota q;

    for (uint64_t round = 0; round < 5; round++) {
        struct journal *j;

        quota_init(&q, NO_LIMIT);
        j = must_open(&d, &q, &s, &replay);
        CHECK_EQ(replay.last_seq, round * 100);
        CHECK_EQ(replay.corrupt_records, 0);
        check_state(&s, round * 100);
        for (unsigned i = 0; i < 100; i++)
            CHECK_OK(journal_write(j, append(j, i % 7)));
        CHECK_OK(journal_sync(j, journal_last_seq(j)));
        journal_close(j);
    }
    CHECK_EQ(look(&d, &s).torn_bytes, 0);
    dir_free(&d);
}

static void fill(struct dir *d, unsigned count)
{
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;

    quota_init(&q, NO_LIMIT);
    j = must_open(d, &q, &s, &replay);
    for (unsigned i = 0; i < count; i++)
        CHECK_OK(journal_write(j, append(j, i % 3)));
    journal_close(j);
}

static void test_every_flip(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct state s;
    size_t count;
    uint8_t *bytes;

    fill(&d, 12);
    bytes = file_read(&d, "journal-00000001", &count);
    for (size_t i = 0; i < count; i++) {
        bytes[i] ^= (uint8_t)(1u << i % 8);
        file_write(&d, "journal-00000001", bytes, count);
        bytes[i] ^= (uint8_t)(1u << i % 8);
        replay = look(&d, &s);
        check_state(&s, replay.last_seq);
        CHECK_EQ(replay.last_seq == 12, i < DISK_JOURNAL_HEADER_BYTES); /* what the header says is known without it */
        CHECK(replay.corrupt_records == 1 || replay.last_seq == 11); /* damage, unless it could be a torn tail */
    }
    free(bytes);
    dir_free(&d);
}

static void test_every_cut(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    uint64_t before = 0;
    struct state s;
    size_t count;
    uint8_t *bytes;

    fill(&d, 12);
    bytes = file_read(&d, "journal-00000001", &count);
    for (size_t cut = 0; cut <= count; cut++) {
        file_write(&d, "journal-00000001", bytes, cut);
        replay = look(&d, &s);
        check_state(&s, replay.last_seq);
        CHECK_EQ(replay.corrupt_records, 0);
        CHECK(replay.last_seq >= before);
        before = replay.last_seq;
    }
    CHECK_EQ(before, 12);
    file_write(&d, "journal-00000001", bytes, count - 5); /* torn, then carried on by the next run */
    fill(&d, 4);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 11 + 4);
    CHECK_EQ(replay.corrupt_records, 0);
    CHECK(replay.torn_bytes > 0);
    check_state(&s, 15);
    free(bytes);
    dir_free(&d);
}

static void test_checkpoint_cycles(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    uint64_t seq = 0;
    struct state s;
    struct quota q;

    for (unsigned round = 0; round < 20; round++) {
        struct journal *j;

        quota_init(&q, NO_LIMIT);
        j = must_open(&d, &q, &s, &replay);
        CHECK_EQ(replay.last_seq, seq);
        CHECK_EQ(replay.found_index, round > 0);
        CHECK_EQ(replay.clean, round > 0 && round % 2 == 0);
        CHECK_EQ(replay.corrupt_records, 0);
        check_state(&s, seq);
        for (unsigned i = 0; i < 30; i++) {
            CHECK(append(j, 0) != 0);
            if (i == 10)
                CHECK_OK(try_checkpoint(j, false));
        }
        CHECK_OK(journal_write(j, journal_last_seq(j)));
        if (round % 2 == 1)
            CHECK_OK(try_checkpoint(j, true));
        seq = journal_last_seq(j);
        CHECK_EQ(dir_count(&d, "index-"), 1);
        CHECK_EQ(dir_count(&d, "journal-"), 1);
        CHECK_EQ(dir_disk_bytes(&d) <= quota_charged(&q), 1);
        journal_close(j);
    }
    dir_free(&d);
}

/* A checkpoint streamed while records go on, given up, and begun again. */
static void test_checkpoint_abort(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct checkpoint *cp, *second;
    struct journal *j;
    struct state s;
    struct quota q;
    uint64_t since;

    quota_init(&q, NO_LIMIT);
    j = must_open(&d, &q, &s, &replay);
    CHECK_OK(journal_write(j, append(j, 0)));
    since = journal_since_checkpoint(j);
    CHECK_OK(checkpoint_begin(j, 4096, &(uint64_t){0}, &cp));
    CHECK_EQ(checkpoint_begin(j, 4096, &(uint64_t){0}, &second), -EBUSY);
    CHECK_EQ(dir_count(&d, "index-"), 1);
    checkpoint_abort(&cp);
    CHECK(!cp);
    CHECK_EQ(dir_count(&d, "index-"), 0);
    CHECK_EQ(journal_since_checkpoint(j), since);
    CHECK_OK(journal_write(j, append(j, 0)));
    CHECK_OK(try_checkpoint(j, false));
    CHECK_EQ(journal_since_checkpoint(j), 0);
    CHECK(journal_checkpoint_bytes(j) > 64);
    journal_close(j);
    CHECK_EQ(look(&d, &s).last_seq, 2);
    check_state(&s, 2);
    dir_free(&d);
}

/* What is left of a damaged checkpoint is applied, and nothing else. */
static void test_bad_checkpoint(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;
    size_t count;
    uint8_t *bytes;

    quota_init(&q, NO_LIMIT);
    j = must_open(&d, &q, &s, &replay);
    for (unsigned i = 0; i < 40; i++)
        CHECK(append(j, 0) != 0);
    CHECK_OK(try_checkpoint(j, true));
    journal_close(j);
    bytes = file_read(&d, "index-00000001", &count);
    for (size_t i = 0; i < count; i++) {
        bytes[i] ^= 0x10;
        file_write(&d, "index-00000001", bytes, count);
        bytes[i] ^= 0x10;
        replay = look(&d, &s);
        CHECK(!replay.clean);
        CHECK(replay.corrupt_records > 0);
        check_part(&s, 40);
        file_write(&d, "index-00000001", bytes, i);
        CHECK(!look(&d, &s).found_index);
        check_part(&s, 40);
    }
    file_write(&d, "index-00000001", bytes, count);
    CHECK_EQ(look(&d, &s).clean, true);
    file_write(&d, "index-00000007", bytes, count); /* its number is not its name: not believed, the older is */
    replay = look(&d, &s);
    CHECK_EQ(replay.corrupt_records, 1);
    check_state(&s, 40);
    CHECK(unlinkat(d.fd, "index-00000007", 0) == 0);
    CHECK(unlinkat(d.fd, "journal-00000002", 0) == 0); /* where replay should start; the stop was clean: nothing was in it */
    replay = look(&d, &s);
    CHECK_EQ(replay.corrupt_records, 1);
    check_state(&s, 40);
    fill(&d, 3);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 43);
    check_state(&s, 43);
    free(bytes);
    dir_free(&d);
}

/* Nothing behind a gap comes back, not even after later runs have written more. */
static void test_gap(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct state s;

    for (unsigned i = 0; i < 3; i++)
        fill(&d, 5);
    CHECK(unlinkat(d.fd, "journal-00000002", 0) == 0);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 5);
    CHECK_EQ(replay.corrupt_records, 1);
    fill(&d, 5); /* seqs 6..10 once more, in another file */
    fill(&d, 5);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 15);
    check_state(&s, 15);
    dir_free(&d);
}

/* A power cut takes all of the first file and leaves the second, to which nothing was synced either. The history
 * begins before the hole, so it is empty. */
static void test_torn_from_the_start(void)
{
    struct dir d = dir_new();
    struct quota q;
    struct state s;
    struct journal_replay replay;
    struct checkpoint *cp;
    uint8_t *bytes;
    size_t count;
    struct journal *j;

    quota_init(&q, 64 * MIB);
    j = must_open(&d, &q, &s, &replay);
    CHECK_OK(journal_write(j, append(j, 0)));
    CHECK_OK(checkpoint_begin(j, 4096, &(uint64_t){0}, &cp));
    checkpoint_abort(&cp);
    CHECK_OK(journal_write(j, append(j, 0)));
    journal_close(j);
    CHECK_EQ(dir_count(&d, "journal-"), 2);
    bytes = file_read(&d, "journal-00000001", &count);
    memset(bytes, 0, count);
    file_write(&d, "journal-00000001", bytes, count);
    free(bytes);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 0);
    CHECK_EQ(replay.entries, 0);
    dir_free(&d);
}

static void test_foreign_files(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct state s;
    size_t count;
    uint8_t *bytes;

    fill(&d, 5);
    bytes = file_read(&d, "journal-00000001", &count);
    file_write(&d, "journal-00000002", bytes, count);
    file_write(&d, "journal-fffffff0", bytes, count);
    file_write(&d, "index-00000001", bytes, count);
    file_write(&d, "index-00000009.tmp", bytes, count);
    free(bytes);
    CHECK(symlinkat("journal-00000001", d.fd, "journal-00000003") == 0);
    CHECK(mkfifoat(d.fd, "journal-00000004", 0600) == 0);
    CHECK(mkdirat(d.fd, "journal-00000005", 0700) == 0);
    CHECK(mkfifoat(d.fd, "index-00000005", 0600) == 0);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, 5);
    CHECK_EQ(replay.corrupt_records, 7);
    CHECK_EQ(dir_count(&d, "index-00000009.tmp"), 1); /* read-only removes nothing */
    fill(&d, 5);
    CHECK_EQ(dir_count(&d, "index-00000009.tmp"), 0);
    CHECK_EQ(dir_count(&d, "journal-00000006"), 1);
    CHECK_EQ(look(&d, &s).last_seq, 10);
    check_state(&s, 10);
    dir_free(&d);
}

static int count_records(void *ctx, uint64_t offset, const struct record_view *view)
{
    CHECK_EQ(offset % 8, 0);
    CHECK_EQ(view->seq, ++*(uint64_t *)ctx);
    return 0;
}

static void test_walk(void)
{
    struct dir d = dir_new();
    struct journal_header header;
    uint64_t seq = 0, bad_offset;
    struct errtext err;
    size_t count;
    uint8_t *bytes;

    fill(&d, 9);
    CHECK_OK(journal_walk_file(&io_posix, d.fd, "journal-00000001", store_id, count_records, &seq, &header, &bad_offset, &err));
    CHECK_EQ(seq, 9);
    CHECK_EQ(bad_offset, UINT64_MAX);
    CHECK_EQ(header.file_no, 1);
    CHECK_EQ(journal_walk_file(&io_posix, d.fd, "journal-00000001", other_id, count_records, &seq, &header, &bad_offset, &err),
             -EBADMSG);
    bytes = file_read(&d, "journal-00000001", &count);
    file_write(&d, "journal-00000001", bytes, count - 1);
    free(bytes);
    seq = 0;
    CHECK_OK(journal_walk_file(&io_posix, d.fd, "journal-00000001", store_id, count_records, &seq, &header, &bad_offset, &err));
    CHECK_EQ(seq, 8);
    CHECK(bad_offset < count);
    dir_free(&d);
}

/* ---- quota ---- */

static void check_covered(const struct dir *d, const struct quota *q)
{
    uint64_t disk_bytes = dir_disk_bytes(d);

    if (disk_bytes > quota_charged(q))
        CHECK_FAIL("%" PRIu64 " bytes on disk, %" PRIu64 " charged", disk_bytes, quota_charged(q));
}

static void test_quota_covers_disk(uint64_t limit_bytes)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    uint64_t charged_bytes;
    struct journal *j;
    struct state s;
    struct quota q;

    for (unsigned run = 0; run < 3; run++) {
        quota_init(&q, limit_bytes);
        j = must_open(&d, &q, &s, &replay);
        check_covered(&d, &q);
        for (unsigned i = 0; i < 400; i++) {
            CHECK_OK(journal_write(j, append(j, (uint32_t)(random_u64() % 200))));
            check_covered(&d, &q);
            if (i % 90 == 89)
                CHECK_OK(journal_sync(j, journal_last_seq(j)));
            if (i % 150 == 149) {
                int r = try_checkpoint(j, false);

                CHECK(r == 0 || r == -ENOSPC);
            }
            check_covered(&d, &q);
        }
        charged_bytes = quota_charged(&q);
        CHECK(journal_disk_bytes(j) <= charged_bytes);
        journal_close(j);
        check_covered(&d, &q);
    }
    dir_free(&d);
}

static unsigned evictions;

static int make_room(void *ctx, uint64_t want_bytes)
{
    (void)want_bytes;
    evictions++;
    if (evictions > 3)
        return -ENOSPC;
    quota_release(ctx, 1 << 20);
    return 0;
}

static void test_room(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;

    quota_init(&q, 64 << 20);
    quota_charge(&q, 64 << 20); /* full: the journal lives from its emergency reserve until room is asked for */
    j = must_open(&d, &q, &s, &replay);
    CHECK_OK(journal_room(j, 1000)); /* what is left of its first block */
    CHECK_EQ(journal_room(j, 10000), -ENOSPC);
    for (unsigned i = 0; i < 100; i++)
        CHECK(append(j, 0) != 0);
    CHECK_EQ(journal_overdrafts(j), 0);
    q.make_room = make_room;
    q.ctx = &q;
    CHECK_OK(journal_room(j, 1000));
    CHECK_EQ(evictions, 1);
    CHECK_OK(journal_room(j, 1000)); /* from what the first one got */
    CHECK_EQ(evictions, 1);
    journal_close(j);
    dir_free(&d);
}

/* ---- failing devices ---- */

struct faulty {
    struct io io; /* first: the table gets it */
    struct io_ops ops;
    bool full;       /* writes and allocations find no space */
    bool sync_fails;
    _Atomic unsigned sync_count;
};

static struct faulty faulty;

static ssize_t faulty_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    (void)io;
    if (faulty.full) {
        (void)io_posix.ops->pwrite(&io_posix, fd, buf, bytes / 2, offset); /* some of it may get there */
        return -ENOSPC;
    }
    return io_posix.ops->pwrite(&io_posix, fd, buf, bytes, offset);
}

static int faulty_fallocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    (void)io;
    return faulty.full ? -ENOSPC : io_posix.ops->fallocate(&io_posix, fd, mode, offset, bytes);
}

static int faulty_fdatasync(struct io *io, int fd)
{
    (void)io;
    faulty.sync_count++;
    return faulty.sync_fails ? -EIO : io_posix.ops->fdatasync(&io_posix, fd);
}

static struct io *faulty_io(void)
{
    faulty = (struct faulty){.ops = *io_posix.ops};
    faulty.ops.pwrite = faulty_pwrite;
    faulty.ops.fallocate = faulty_fallocate;
    faulty.ops.fdatasync = faulty_fdatasync;
    faulty.io = (struct io){.ops = &faulty.ops};
    return &faulty.io;
}

static void test_host_disk_full(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;

    quota_init(&q, NO_LIMIT);
    CHECK_OK(open_at(faulty_io(), &d, &q, false, &s, &replay, &j));
    CHECK_OK(journal_write(j, append(j, 0)));
    faulty.full = true;
    CHECK_EQ(journal_write(j, append(j, 0)), -ENOSPC);
    CHECK_EQ(journal_write(j, append(j, 0)), -ENOSPC);
    CHECK_EQ(try_checkpoint(j, false), -ENOSPC);
    CHECK_EQ(journal_error(j), 0);
    CHECK_EQ(look(&d, &s).last_seq, 1);
    faulty.full = false;
    CHECK_OK(journal_room(j, 1000));
    CHECK_OK(journal_sync(j, append(j, 0)));
    CHECK_EQ(look(&d, &s).last_seq, 4);
    check_state(&s, 4);
    CHECK_OK(try_checkpoint(j, false));
    journal_close(j);
    CHECK_EQ(look(&d, &s).last_seq, 4);
    dir_free(&d);
}

static void test_failed_sync_is_final(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;
    uint64_t seq;

    quota_init(&q, NO_LIMIT);
    CHECK_OK(open_at(faulty_io(), &d, &q, false, &s, &replay, &j));
    seq = append(j, 0);
    faulty.sync_fails = true;
    CHECK_EQ(journal_sync(j, seq), -EIO);
    faulty.sync_fails = false;
    CHECK_EQ(journal_sync(j, seq), -EIO);
    CHECK_EQ(journal_write(j, seq), -EIO);
    CHECK_EQ(append(j, 0), 0);
    CHECK_EQ(journal_error(j), -EIO);
    CHECK_EQ(try_checkpoint(j, false), -EIO);
    journal_close(j);
    dir_free(&d);
}

/* A run after a kill must sync the file the killed run left before its own records count. */
static void test_found_files_are_synced(void)
{
    struct dir d = dir_new();
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;

    fill(&d, 3);
    fill(&d, 3);
    quota_init(&q, NO_LIMIT);
    CHECK_OK(open_at(faulty_io(), &d, &q, false, &s, &replay, &j));
    CHECK_OK(journal_sync(j, append(j, 0)));
    CHECK_EQ(faulty.sync_count, 3);
    CHECK_OK(journal_sync(j, append(j, 0)));
    CHECK_EQ(faulty.sync_count, 4);
    CHECK_OK(journal_sync(j, journal_last_seq(j)));
    CHECK_EQ(faulty.sync_count, 4);
    journal_close(j);
    dir_free(&d);
}

/* ---- threads ---- */

#define THREAD_COUNT 8u
#define THREAD_APPENDS 300u

struct crowd {
    struct journal *j;
    pthread_mutex_t order; /* stands for the cache lock */
};

static void *crowd_member(void *ctx)
{
    struct crowd *c = ctx;

    for (unsigned i = 0; i < THREAD_APPENDS; i++) {
        uint64_t seq;

        CHECK_OK(journal_room(c->j, 4096));
        (void)pthread_mutex_lock(&c->order);
        seq = append(c->j, i % 50);
        (void)pthread_mutex_unlock(&c->order);
        CHECK(seq != 0);
        CHECK_OK(i % 4 == 0 ? journal_sync(c->j, seq) : journal_write(c->j, seq));
    }
    return NULL;
}

static void test_threads(void)
{
    struct crowd c = {.order = PTHREAD_MUTEX_INITIALIZER};
    struct dir d = dir_new();
    struct journal_replay replay;
    pthread_t threads[THREAD_COUNT];
    struct state s;
    struct quota q;

    quota_init(&q, NO_LIMIT);
    CHECK_OK(open_at(faulty_io(), &d, &q, false, &s, &replay, &c.j));
    for (unsigned i = 0; i < THREAD_COUNT; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, crowd_member, &c), 0);
    for (unsigned i = 0; i < 10; i++) {
        struct end_image end = {.next_generation = 1};
        struct checkpoint *cp;
        struct record_buffer rb = {0};

        CHECK_OK(checkpoint_begin(c.j, 4096, &(uint64_t){0}, &cp));
        for (uint64_t key = 0; key < KEY_COUNT; key++) {
            struct use_image use = {.node = key};
            struct state now;

            (void)pthread_mutex_lock(&c.order);
            now = state_at(journal_last_seq(c.j));
            (void)pthread_mutex_unlock(&c.order);
            use.used_ns = now.value[key];
            CHECK_OK(record_begin(&rb));
            CHECK_OK(record_add_use(&rb, &use, 1));
            CHECK_OK(checkpoint_add(cp, &rb));
        }
        record_buffer_fini(&rb);
        CHECK_OK(checkpoint_finish(&cp, &end));
        check_covered(&d, &q);
    }
    for (unsigned i = 0; i < THREAD_COUNT; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(faulty.sync_count < THREAD_COUNT * THREAD_APPENDS / 4 + 100); /* at most one each, and the checkpoints' */
    journal_close(c.j);
    replay = look(&d, &s);
    CHECK_EQ(replay.last_seq, THREAD_COUNT * THREAD_APPENDS);
    CHECK_EQ(replay.corrupt_records, 0);
    check_state(&s, replay.last_seq);
    dir_free(&d);
}

/* ---- kill ---- */

/* Works until it is killed, telling through shared memory what was acknowledged. */
static void child_work(struct dir *d, _Atomic uint64_t *acknowledged)
{
    struct journal_replay replay;
    struct journal *j;
    struct state s;
    struct quota q;

    quota_init(&q, 8 << 20);
    j = must_open(d, &q, &s, &replay);
    check_state(&s, replay.last_seq);
    for (;;) {
        uint64_t seq = append(j, (uint32_t)(random_u64() % 100));

        if (random_u64() % 3 != 0) {
            CHECK_OK(journal_write(j, seq));
            *acknowledged = seq;
        }
        if (random_u64() % 40 == 0)
            CHECK_OK(try_checkpoint(j, false));
    }
}

static void test_kill(void)
{
    _Atomic uint64_t *acknowledged = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct dir d = dir_new();
    struct journal_replay replay;
    struct state s;

    CHECK(acknowledged != MAP_FAILED);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t before = *acknowledged, until = before + random_u64() % 200;
        pid_t pid = fork();

        CHECK(pid >= 0);
        if (pid == 0) {
            random_state += i;
            child_work(&d, acknowledged);
            _exit(1);
        }
        while (*acknowledged < until && waitpid(pid, NULL, WNOHANG) == 0)
            ;
        CHECK(kill(pid, SIGKILL) == 0);
        CHECK_EQ(waitpid(pid, NULL, 0), pid);
        replay = look(&d, &s);
        CHECK(replay.last_seq >= *acknowledged);
        CHECK_EQ(replay.corrupt_records, 0);
        check_state(&s, replay.last_seq);
        *acknowledged = replay.last_seq;
    }
    CHECK(munmap((void *)acknowledged, 4096) == 0);
    dir_free(&d);
}

int main(void)
{
    test_round_trip();
    test_every_flip();
    test_every_cut();
    test_checkpoint_cycles();
    test_checkpoint_abort();
    test_bad_checkpoint();
    test_gap();
    test_torn_from_the_start();
    test_foreign_files();
    test_walk();
    test_quota_covers_disk(NO_LIMIT);
    test_quota_covers_disk(4 << 20);
    test_quota_covers_disk(200 << 10);
    test_quota_covers_disk(0);
    test_room();
    test_host_disk_full();
    test_failed_sync_is_final();
    test_found_files_are_synced();
    test_threads();
    test_kill();
    return 0;
}
