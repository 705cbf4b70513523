/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_big: files of their own, big/XX/XXXXXXXXXXXXXXXX. What is in them is content.c's; here they are named,
 * made, found, counted and removed.
 *
 * Ids rise for the life of the store, so at most one big/XX is growing at a time; a directory that empties
 * behind it is removed, since 256 of them would be a megabyte of a small quota.
 *
 * Directories are trusted by what they were at mount (a link or a file in the place of big is removed, in that of an XX it
 * makes it unusable and its ids are passed over): the store is 0700 and locked, nobody else changes it afterwards.
 *
 * What may never happen: an id given out twice; a directory's growth that nobody reserved; a link followed.
 */
#include <fcntl.h>
#include <stdio.h>

#include "store_internal.h"

#define BIG_NAME_DIGITS 16u
#define BIG_ID_MAX (UINT64_MAX >> 1) /* larger ones found on disk are foreign: counting on from them could wrap */
#define BIG_ID_EARNED_MAX (BIG_ID_MAX / 2) /* and larger ones than this are not counted on from */
#define CREATE_TRIES_MAX 16u
#define DIR_NAME_BYTES 8u

/* ---- names ---- */

static unsigned big_dir_index(uint64_t big_id)
{
    return (unsigned)(big_id >> 8) % BIG_DIR_COUNT;
}

static void big_dir_name(unsigned index, char out[DIR_NAME_BYTES])
{
    (void)snprintf(out, DIR_NAME_BYTES, "big/%02x", index & 0xff); /* always fits */
}

/* Only what format_big_name would write, in the directory it would write it to. */
static bool big_name_parse(const char *name, unsigned dir_index, uint64_t *ret_id)
{
    uint64_t id = 0;

    for (unsigned i = 0; i < BIG_NAME_DIGITS; i++) {
        const char *digits = "0123456789abcdef";
        const char *digit = name[i] ? strchr(digits, name[i]) : NULL;
        if (!digit)
            return false;
        id = id << 4 | (uint64_t)(digit - digits);
    }
    if (name[BIG_NAME_DIGITS] != '\0' || id == 0 || id > BIG_ID_MAX)
        return false;
    *ret_id = id;
    return big_dir_index(id) == dir_index;
}

/* ---- the set of ids the index pointed to ---- */

static uint64_t *big_marked_slot(uint64_t *table, uint64_t size, uint64_t id)
{
    uint64_t i = (id * 0x9e3779b97f4a7c15ull) >> 20 & (size - 1);

    while (table[i] != 0 && table[i] != id)
        i = (i + 1) & (size - 1);
    return &table[i];
}

static int big_marked_grow(struct store *st)
{
    uint64_t size = st->big_marked_size ? st->big_marked_size * 2 : 1024;
    uint64_t *table = calloc(size, sizeof(*table));

    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < st->big_marked_size; i++) {
        if (st->big_marked[i] != 0)
            *big_marked_slot(table, size, st->big_marked[i]) = st->big_marked[i];
    }
    free(st->big_marked);
    st->big_marked = table;
    st->big_marked_size = size;
    return 0;
}

static bool big_is_marked(struct store *st, uint64_t id)
{
    return st->big_marked && *big_marked_slot(st->big_marked, st->big_marked_size, id) == id;
}

static int big_mark(struct store *st, uint64_t id)
{
    int r;

    if (st->big_marked_count * 2 >= st->big_marked_size) {
        r = big_marked_grow(st);
        if (r < 0)
            return r;
    }
    *big_marked_slot(st->big_marked, st->big_marked_size, id) = id;
    st->big_marked_count++;
    return 0;
}

/* ---- at mount ---- */

/* 1 and a descriptor, 0 if there is none, or -errno. *ret_foreign: something else has the name. */
static int big_open_dir(struct store *st, const char *name, int *ret_fd, bool *ret_foreign)
{
    int fd = io_open(st->io, st->dir_fd, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK, 0);

    *ret_foreign = false;
    if (fd == -ENOENT)
        return 0;
    if (fd == -ENOTDIR || fd == -ELOOP || fd == -EACCES) {
        /* Of the 256 below it another can be used; "big" itself is needed, and what is in the store is ours to remove. */
        *ret_foreign = st->opts.read_only || strcmp(name, "big") != 0 || io_unlink(st->io, st->dir_fd, name) < 0;
        return 0;
    }
    if (fd < 0)
        return fd;
    *ret_fd = fd;
    return 1;
}

struct big_scan {
    struct store *st;
    unsigned index;
    int (*visit)(struct store *st, uint64_t big_id); /* 1: counts; -errno ends it */
    uint64_t count;
};

static int big_scan_name(void *ctx, const char *name) /* io_visit */
{
    struct big_scan *scan = ctx;
    uint64_t id;
    int r;

    if (!big_name_parse(name, scan->index, &id))
        return 0;
    r = scan->visit(scan->st, id);
    scan->count += r > 0;
    return MIN(r, 0);
}

static int big_for_each(struct big_scan *scan)
{
    struct store *st = scan->st;
    char name[DIR_NAME_BYTES];
    bool foreign;
    int fd, r;

    big_dir_name(scan->index, name);
    r = big_open_dir(st, name, &fd, &foreign);
    st->big_dirs[scan->index].foreign = foreign;
    st->big_dirs[scan->index].exists = r == 1;
    if (r <= 0)
        return r;
    r = io_list(st->io, fd, big_scan_name, scan);
    io_close(st->io, fd);
    return r;
}

/* The id was in use: the next ones come after it. An absurdly high one was never ours, and must not use up the ids. */
static void big_count_on(struct store *st, uint64_t big_id)
{
    if (big_id <= BIG_ID_EARNED_MAX)
        st->next_big_id = MAX(st->next_big_id, big_id + 1);
}

static int big_visit_found(struct store *st, uint64_t big_id)
{
    big_count_on(st, big_id);
    return 1;
}

/* Which of the 256 there are: asking for each costs more than the rest of an empty mount. */
static int big_scan_dir_name(void *ctx, const char *name) /* io_visit */
{
    static const char digits[] = "0123456789abcdef";
    const char *high = name[0] ? strchr(digits, name[0]) : NULL;
    const char *low = high && name[1] ? strchr(digits, name[1]) : NULL;
    bool *found = ctx;

    if (low && name[2] == '\0')
        found[(high - digits) * 16 + (low - digits)] = true;
    return 0;
}

int store_big_scan(struct store *st, struct errtext *err)
{
    bool found[BIG_DIR_COUNT] = {false};
    uint64_t reserved = 0;
    int fd = -1;
    int r;

    r = big_open_dir(st, "big", &fd, &st->big_foreign);
    if (r < 0)
        return errtext(err, r, "big: %s", strerror(-r));
    if (r == 0)
        return 0;
    st->big_exists = true;
    st->big_entry_unsynced = true; /* as are those below: who made them may have been killed before the sync */
    store_settle_dir(st, store_dir_bytes(st, fd), &st->big_charged_bytes, &reserved);
    r = io_list(st->io, fd, big_scan_dir_name, found);
    io_close(st->io, fd);
    if (r < 0)
        return errtext(err, r, "big: %s", strerror(-r));
    for (unsigned i = 0; i < BIG_DIR_COUNT; i++) {
        struct big_scan scan = {.st = st, .index = i, .visit = big_visit_found};
        char name[DIR_NAME_BYTES];
        bool foreign;

        if (!found[i])
            continue;
        r = big_for_each(&scan);
        if (r < 0)
            return errtext(err, r, "big/%02x: %s", i, strerror(-r));
        if (!st->big_dirs[i].exists)
            continue;
        st->big_dirs[i].entry_unsynced = true;
        big_dir_name(i, name);
        if (big_open_dir(st, name, &fd, &foreign) == 1) {
            store_settle_dir(st, store_dir_bytes(st, fd), &st->big_dirs[i].charged_bytes, &reserved);
            io_close(st->io, fd);
        }
    }
    return 0;
}

void store_note_big(struct store *st, uint64_t big_id)
{
    CHECK_OBJ(st, STORE_MAGIC);
    assert(!st->ready);
    big_count_on(st, big_id);
}

int store_mark_big(struct store *st, uint64_t big_id, uint64_t *ret_size_bytes, uint64_t *ret_disk_bytes)
{
    uint64_t disk_bytes;
    struct stat stat;
    int fd = -1;
    int r;

    CHECK_OBJ(st, STORE_MAGIC);
    assert(!st->ready);
    if (big_id == 0 || big_id > BIG_ID_MAX)
        return -ENOENT;
    if (big_is_marked(st, big_id))
        return -EBADMSG; /* two values in one file: the index is wrong about one of them */
    r = store_big_open(st, big_id, false, &fd);
    if (r < 0)
        return r == -ELOOP || r == -ENXIO || r == -ENOTDIR ? -ENOENT : r;
    r = io_stat(st->io, fd, &stat);
    store_big_close(st, fd);
    if (r == 0 && stat.st_nlink > 1)
        r = -EBADMSG; /* another name outside the store: not to be written to, nor to be relied on */
    if (r < 0)
        return r;
    r = big_mark(st, big_id);
    if (r < 0)
        return r;
    disk_bytes = (uint64_t)stat.st_blocks * ST_BLOCK_BYTES;
    store_charge(st, disk_bytes);
    atomic_fetch_add(&st->big_bytes, disk_bytes);
    st->big_count++;
    st->big_dirs[big_dir_index(big_id)].file_count++;
    *ret_size_bytes = (uint64_t)stat.st_size;
    *ret_disk_bytes = disk_bytes;
    return 0;
}

/* What cannot be removed is tried at the next mount, and stays charged till then; a directory of that name is not ours. */
static int big_visit_orphan(struct store *st, uint64_t big_id)
{
    char name[FORMAT_NAME_BYTES];
    struct stat stat;
    int r;

    if (big_is_marked(st, big_id))
        return 0;
    format_big_name(name, big_id);
    if (io_unlink(st->io, st->dir_fd, name) == 0)
        return 1;
    r = io_stat_at(st->io, st->dir_fd, name, &stat);
    if (r == 0 && S_ISREG(stat.st_mode))
        store_charge(st, (uint64_t)stat.st_blocks * ST_BLOCK_BYTES);
    return r == -ENOENT ? 0 : r;
}

/* Removes big/XX when nothing of ours is left in it and no new file is about to come. */
static void big_trim_dir_locked(struct store *st, unsigned index)
{
    struct big_dir *dir = &st->big_dirs[index];
    char name[DIR_NAME_BYTES];

    lock_assert_held(&st->dirs_lock);
    if (!dir->exists || dir->file_count > 0 || big_dir_index(st->next_big_id) == index)
        return;
    big_dir_name(index, name);
    if (io_rmdir(st->io, st->dir_fd, name) < 0)
        return; /* something foreign is in it: it stays, and stays charged */
    dir->exists = false;
    dir->entry_unsynced = false;
    store_uncharge(st, dir->charged_bytes);
    dir->charged_bytes = 0;
}

int store_big_remove_orphans(struct store *st, uint64_t *removed)
{
    for (unsigned i = 0; i < BIG_DIR_COUNT; i++) {
        struct big_scan scan = {.st = st, .index = i, .visit = big_visit_orphan};
        int r;

        if (!st->big_dirs[i].exists)
            continue;
        r = big_for_each(&scan);
        if (r < 0)
            return r; /* who knows how much is in it */
        *removed += scan.count;
        lock_take(&st->dirs_lock);
        big_trim_dir_locked(st, i);
        lock_give(&st->dirs_lock);
    }
    return 0;
}

/* ---- files ---- */

static int big_make_dir(struct store *st, const char *name, bool *exists, bool *entry_unsynced, uint64_t *charged_bytes,
                        uint64_t *reserved_bytes)
{
    int fd, r;

    if (*exists)
        return 0;
    r = io_mkdir(st->io, st->dir_fd, name, 0700);
    if (r < 0 && r != -EEXIST)
        return r;
    fd = io_open(st->io, st->dir_fd, name, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    *exists = true;
    *entry_unsynced = true;
    store_settle_dir(st, store_dir_bytes(st, fd), charged_bytes, reserved_bytes);
    io_close(st->io, fd);
    return 0;
}

/* Takes the next id and counts its file in, so that its directory stays. */
static int big_take_id_locked(struct store *st, uint64_t *reserved_bytes, uint64_t *ret_id)
{
    char name[DIR_NAME_BYTES];
    struct big_dir *dir;
    int r;

    lock_assert_held(&st->dirs_lock);
    if (st->big_foreign)
        return -ENOTDIR;
    for (unsigned i = 0; i < BIG_DIR_COUNT && st->big_dirs[big_dir_index(st->next_big_id)].foreign; i++)
        st->next_big_id = (st->next_big_id | 0xff) + 1;
    dir = &st->big_dirs[big_dir_index(st->next_big_id)];
    if (dir->foreign)
        return -ENOTDIR;
    r = big_make_dir(st, "big", &st->big_exists, &st->big_entry_unsynced, &st->big_charged_bytes, reserved_bytes);
    if (r < 0)
        return r;
    big_dir_name(big_dir_index(st->next_big_id), name);
    r = big_make_dir(st, name, &dir->exists, &dir->entry_unsynced, &dir->charged_bytes, reserved_bytes);
    if (r < 0)
        return r;
    dir->file_count++;
    st->big_count++;
    *ret_id = st->next_big_id++;
    /* The directory just left behind may have emptied while it was the growing one. */
    if (big_dir_index(*ret_id - 1) != big_dir_index(*ret_id))
        big_trim_dir_locked(st, big_dir_index(*ret_id - 1));
    return 0;
}

static void big_forget(struct store *st, uint64_t big_id)
{
    struct big_dir *dir = &st->big_dirs[big_dir_index(big_id)];

    lock_take(&st->dirs_lock);
    assert(dir->file_count > 0);
    assert(st->big_count > 0);
    dir->file_count--;
    st->big_count--;
    big_trim_dir_locked(st, big_dir_index(big_id));
    lock_give(&st->dirs_lock);
}

/* Charges what the new name made the directories grow by. */
static void big_settle_dirs(struct store *st, uint64_t big_id, uint64_t *reserved_bytes)
{
    unsigned index = big_dir_index(big_id);
    char name[DIR_NAME_BYTES];
    bool foreign;
    int fd;

    big_dir_name(index, name);
    if (big_open_dir(st, name, &fd, &foreign) != 1)
        return;
    lock_take(&st->dirs_lock);
    store_settle_dir(st, store_dir_bytes(st, fd), &st->big_dirs[index].charged_bytes, reserved_bytes);
    lock_give(&st->dirs_lock);
    io_close(st->io, fd);
}

/* The client's own limit is not what is reached: never EMFILE. */
static int big_open_file(struct store *st, const char *name, int flags)
{
    int fd;

    if (atomic_fetch_add(&st->big_fds, 1) >= st->opts.big_fds_max && st->opts.big_fds_max > 0)
        fd = -ENFILE;
    else
        fd = io_open(st->io, st->dir_fd, name, flags, 0600);
    if (fd < 0)
        (void)atomic_fetch_sub(&st->big_fds, 1);
    return fd == -EMFILE ? -ENFILE : fd;
}

void store_big_close(struct store *st, int fd)
{
    if (fd < 0)
        return;
    (void)atomic_fetch_sub(&st->big_fds, 1);
    io_close(st->io, fd);
}

static int big_create_one(struct store *st, uint64_t *reserved_bytes, uint64_t *ret_big_id, int *ret_fd)
{
    char name[FORMAT_NAME_BYTES];
    uint64_t big_id;
    int fd, r;

    lock_take(&st->dirs_lock);
    r = big_take_id_locked(st, reserved_bytes, &big_id);
    lock_give(&st->dirs_lock);
    if (r < 0)
        return r;
    format_big_name(name, big_id);
    fd = big_open_file(st, name, O_RDWR | O_CREAT | O_EXCL);
    if (fd < 0) {
        big_forget(st, big_id);
        return fd;
    }
    *ret_big_id = big_id;
    *ret_fd = fd;
    return 0;
}

/* Directories that are not there are made anew. Of those that are, mkdir says so; what they take stays charged. */
static void big_forget_dirs(struct store *st)
{
    lock_take(&st->dirs_lock);
    st->big_exists = false;
    for (unsigned i = 0; i < BIG_DIR_COUNT; i++)
        st->big_dirs[i].exists = false;
    lock_give(&st->dirs_lock);
}

int store_big_create(struct store *st, uint64_t *ret_big_id, int *ret_fd)
{
    /* big/, big/XX, and the growth of the one by a new name */
    uint64_t reserved = (uint64_t)(2 + DIR_GROWTH_BLOCKS) * st->block_bytes;
    int r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (st->opts.read_only)
        return -EROFS;
    r = quota_reserve(st->quota, reserved);
    if (r < 0)
        return r;
    r = -EEXIST;
    for (unsigned tries = 0; tries < CREATE_TRIES_MAX && (r == -EEXIST || r == -ENOENT); tries++) {
        if (r == -ENOENT)
            big_forget_dirs(st); /* somebody removed them */
        r = big_create_one(st, &reserved, ret_big_id, ret_fd);
    }
    if (r == -ENOENT || r == -ENOTDIR || r == -ELOOP)
        r = -EIO; /* something else has the place of a directory of ours */
    if (r == 0)
        big_settle_dirs(st, *ret_big_id, &reserved);
    quota_release(st->quota, reserved);
    return r;
}

int store_big_open(struct store *st, uint64_t big_id, bool writable, int *ret_fd)
{
    char name[FORMAT_NAME_BYTES];
    struct stat stat;
    int fd, r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (writable && st->opts.read_only)
        return -EROFS;
    if (st->big_foreign || st->big_dirs[big_dir_index(big_id)].foreign)
        return -ENOENT;
    format_big_name(name, big_id);
    fd = big_open_file(st, name, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK);
    if (fd < 0)
        return fd;
    r = io_stat(st->io, fd, &stat);
    if (r == 0 && !S_ISREG(stat.st_mode))
        r = -ENOENT;
    if (r < 0) {
        store_big_close(st, fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

int store_big_unlink(struct store *st, uint64_t big_id, uint64_t disk_bytes, bool still_open)
{
    char name[FORMAT_NAME_BYTES];
    uint64_t before;
    int r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (st->opts.read_only)
        return -EROFS;
    format_big_name(name, big_id);
    r = io_unlink(st->io, st->dir_fd, name);
    if (r < 0 && r != -ENOENT)
        return r;
    before = atomic_fetch_sub(&st->big_bytes, disk_bytes);
    assert(before >= disk_bytes);
    before = atomic_fetch_sub(&st->charged_bytes, disk_bytes);
    assert(before >= disk_bytes);
    if (!still_open)
        quota_release(st->quota, disk_bytes);
    big_forget(st, big_id);
    return 0;
}

void store_big_settle(struct store *st, uint64_t old_bytes, uint64_t new_bytes, uint64_t reserved_bytes)
{
    uint64_t held = old_bytes + reserved_bytes; /* charged to the quota so far */

    CHECK_OBJ(st, STORE_MAGIC);
    atomic_fetch_add(&st->big_bytes, new_bytes - old_bytes); /* modulo 2^64: also when it shrank */
    atomic_fetch_add(&st->charged_bytes, new_bytes - old_bytes);
    if (new_bytes > held)
        quota_charge(st->quota, new_bytes - held);
    else
        quota_release(st->quota, held - new_bytes);
}

static int big_sync_dir(struct store *st, const char *name)
{
    int fd = io_open(st->io, st->dir_fd, name, O_RDONLY | O_DIRECTORY, 0);
    int r;

    if (fd < 0)
        return fd;
    r = io_sync_dir(st->io, fd);
    io_close(st->io, fd);
    if (r < 0)
        store_failed(st, r, "big");
    return r;
}

/* The flags fall only after the sync: two callers at once sync twice, neither returns early. */
int store_big_sync_entry(struct store *st, uint64_t big_id)
{
    unsigned index = big_dir_index(big_id);
    char name[DIR_NAME_BYTES];
    bool sync_big, sync_top;
    int r;

    CHECK_OBJ(st, STORE_MAGIC);
    big_dir_name(index, name);
    r = big_sync_dir(st, name);
    if (r < 0)
        return r == -ENOSPC ? -EIO : r;
    lock_take(&st->dirs_lock);
    sync_big = st->big_dirs[index].entry_unsynced;
    sync_top = st->big_entry_unsynced;
    lock_give(&st->dirs_lock);
    if (sync_big)
        r = big_sync_dir(st, "big");
    if (r == 0 && sync_top) {
        r = io_sync_dir(st->io, st->dir_fd);
        if (r < 0)
            store_failed(st, r, "store directory");
    }
    if (r < 0)
        return r == -ENOSPC ? -EIO : r;
    lock_take(&st->dirs_lock);
    if (sync_big)
        st->big_dirs[index].entry_unsynced = false;
    if (sync_top)
        st->big_entry_unsynced = false;
    lock_give(&st->dirs_lock);
    return 0;
}
