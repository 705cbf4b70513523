/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memdisk: inodes, their pages and names, and the calls of struct io_ops upon them.
 *
 * An inode's body may be shared with clones (refs > 1): whoever changes it takes a copy first (body_own). So
 * may a page. Blocks allocated without data are zero_page, which is never written.
 *
 * What may never happen: a change of one disk seen in its clone; a byte beyond a file's end that is not zero when
 * the file grows over it; an inode number given out twice.
 */
#include "memdisk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCKS_PER_PAGE (MEMDISK_PAGE_BYTES / 512u)
#define SECTORS_ALL 0xffu
#define FILE_PAGES_MAX (1ull << 28) /* 1 TiB */
#define CAPACITY_USUAL (1ull << 40)
#define FREE_BYTES_MAX (64ull << 30)
#define DEPTH_MAX 8u

struct memdisk_page {
    _Atomic uint32_t refs;
    uint8_t data[MEMDISK_PAGE_BYTES];
};

static struct memdisk_page zero_page = {.refs = 1}; /* allocated, nothing written: reads as zeros */

struct name {
    uint64_t ino;
    char text[MEMDISK_NAME_BYTES];
};

struct body {
    _Atomic uint32_t refs;
    mode_t mode;
    uint64_t size_bytes;
    struct memdisk_page **pages; /* page_count of them, NULL: a hole */
    uint64_t page_count, used_pages;
    struct name *names; /* of a directory */
    uint32_t name_count, names_allocated;
};

struct inode {
    struct body *body; /* NULL: no such inode */
    uint32_t links, opens;
    int lock_fd; /* who has the lock; 0: nobody */
};

struct open_file {
    uint64_t ino; /* 0: free */
    int flags;
};

struct memdisk {
    pthread_mutex_t lock;
    struct io io;
    struct inode *inodes; /* by number */
    uint64_t inode_count, inodes_allocated;
    struct open_file *files;
    uint32_t file_count, files_allocated;
    uint64_t open_count, used_pages, capacity_bytes;
    memdisk_observer observer;
    void *observer_ctx;
};

static const struct io_ops memdisk_ops;

/* ---- memory ---- */

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

struct memdisk_page *memdisk_page_ref(struct memdisk_page *page)
{
    if (page && page != &zero_page)
        atomic_fetch_add_explicit(&page->refs, 1, memory_order_relaxed);
    return page;
}

void memdisk_page_free(struct memdisk_page *page)
{
    if (page && page != &zero_page && atomic_fetch_sub(&page->refs, 1) == 1)
        free(page);
}

struct memdisk_page *memdisk_page_new(const uint8_t data[MEMDISK_PAGE_BYTES])
{
    struct memdisk_page *page = must(malloc(sizeof(*page)));

    atomic_init(&page->refs, 1);
    memcpy(page->data, data, MEMDISK_PAGE_BYTES);
    return page;
}

const uint8_t *memdisk_page_data(const struct memdisk_page *page)
{
    return page ? page->data : zero_page.data;
}

static struct body *body_new(mode_t mode)
{
    struct body *b = must(calloc(1, sizeof(*b)));

    atomic_init(&b->refs, 1);
    b->mode = mode;
    return b;
}

static void body_free(struct body *b)
{
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1)
        return;
    for (uint64_t i = 0; i < b->page_count; i++)
        memdisk_page_free(b->pages[i]);
    free(b->pages);
    free(b->names);
    free(b);
}

static struct body *body_copy(const struct body *from)
{
    struct body *b = body_new(from->mode);

    b->size_bytes = from->size_bytes;
    b->page_count = from->page_count;
    b->used_pages = from->used_pages;
    if (b->page_count > 0)
        b->pages = must(malloc(b->page_count * sizeof(struct memdisk_page *)));
    for (uint64_t i = 0; i < b->page_count; i++)
        b->pages[i] = memdisk_page_ref(from->pages[i]);
    b->name_count = b->names_allocated = from->name_count;
    if (b->name_count > 0) {
        b->names = must(malloc(b->name_count * sizeof(struct name)));
        memcpy(b->names, from->names, b->name_count * sizeof(struct name));
    }
    return b;
}

static struct inode *inode_of(struct memdisk *d, uint64_t ino)
{
    return ino < d->inode_count && d->inodes[ino].body ? &d->inodes[ino] : NULL;
}

/* The body, ours alone from now on. */
static struct body *body_own(struct memdisk *d, uint64_t ino)
{
    struct inode *in = inode_of(d, ino);

    assert(in);
    if (atomic_load(&in->body->refs) > 1) {
        struct body *copy = body_copy(in->body);
        body_free(in->body);
        in->body = copy;
    }
    return in->body;
}

static void inodes_reach(struct memdisk *d, uint64_t ino)
{
    if (ino < d->inode_count)
        return;
    if (ino >= d->inodes_allocated) {
        d->inodes_allocated = ino + 64;
        d->inodes = must(realloc(d->inodes, d->inodes_allocated * sizeof(struct inode)));
    }
    memset(d->inodes + d->inode_count, 0, (ino + 1 - d->inode_count) * sizeof(struct inode));
    d->inode_count = ino + 1;
}

static uint64_t pages_taken(const struct body *b)
{
    return S_ISDIR(b->mode) ? 1 : b->used_pages;
}

static void inode_drop_if_unused(struct memdisk *d, uint64_t ino)
{
    struct inode *in = inode_of(d, ino);

    if (!in || in->links > 0 || in->opens > 0)
        return;
    d->used_pages -= pages_taken(in->body);
    body_free(in->body);
    in->body = NULL;
}

/* ---- pages ---- */

static void pages_reach(struct body *b, uint64_t count)
{
    if (count <= b->page_count)
        return;
    b->pages = must(realloc(b->pages, count * sizeof(struct memdisk_page *)));
    memset(b->pages + b->page_count, 0, (count - b->page_count) * sizeof(struct memdisk_page *));
    b->page_count = count;
}

static void page_set(struct memdisk *d, struct body *b, uint64_t index, struct memdisk_page *page)
{
    struct memdisk_page *old = b->pages[index];

    b->used_pages += (page != NULL) - (uint64_t)(old != NULL);
    d->used_pages += (page != NULL) - (uint64_t)(old != NULL);
    memdisk_page_free(old);
    b->pages[index] = page;
}

/* The page, to be written to. */
static struct memdisk_page *page_own(struct memdisk *d, struct body *b, uint64_t index)
{
    struct memdisk_page *page;

    pages_reach(b, index + 1);
    page = b->pages[index];
    if (page && page != &zero_page && atomic_load(&page->refs) == 1)
        return page;
    page = memdisk_page_new(memdisk_page_data(page));
    page_set(d, b, index, page);
    return page;
}

static void zero_range(struct memdisk *d, struct body *b, uint64_t from, uint64_t to)
{
    to = to < b->page_count * MEMDISK_PAGE_BYTES ? to : b->page_count * MEMDISK_PAGE_BYTES;
    while (from < to) {
        uint64_t index = from / MEMDISK_PAGE_BYTES, at = from % MEMDISK_PAGE_BYTES;
        uint64_t bytes = MEMDISK_PAGE_BYTES - at < to - from ? MEMDISK_PAGE_BYTES - at : to - from;

        if (b->pages[index] && bytes == MEMDISK_PAGE_BYTES)
            page_set(d, b, index, NULL);
        else if (b->pages[index] && b->pages[index] != &zero_page)
            memset(page_own(d, b, index)->data + at, 0, bytes);
        from += bytes;
    }
}

/* Frees whole blocks beyond the end and clears the rest of the last. */
static void cut_pages(struct memdisk *d, struct body *b, uint64_t size)
{
    uint64_t keep = (size + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES;

    zero_range(d, b, size, keep * MEMDISK_PAGE_BYTES);
    for (uint64_t i = keep; i < b->page_count; i++)
        page_set(d, b, i, NULL);
    if (keep < b->page_count)
        b->page_count = keep;
}

static uint64_t new_pages_in(const struct body *b, uint64_t offset, uint64_t bytes)
{
    uint64_t count = 0;

    for (uint64_t i = offset / MEMDISK_PAGE_BYTES; i * MEMDISK_PAGE_BYTES < offset + bytes; i++)
        count += i >= b->page_count || !b->pages[i];
    return count;
}

static bool has_room(const struct memdisk *d, uint64_t pages)
{
    return (d->used_pages + pages) * MEMDISK_PAGE_BYTES <= d->capacity_bytes;
}

/* ---- names ---- */

static struct name *name_find(struct body *dir, const char *text)
{
    for (uint32_t i = 0; i < dir->name_count; i++)
        if (strcmp(dir->names[i].text, text) == 0)
            return &dir->names[i];
    return NULL;
}

static void name_add(struct memdisk *d, uint64_t dir, const char *text, uint64_t ino)
{
    struct body *b = body_own(d, dir);

    if (b->name_count == b->names_allocated) {
        b->names_allocated = b->name_count * 2 + 8;
        b->names = must(realloc(b->names, b->names_allocated * sizeof(struct name)));
    }
    b->names[b->name_count].ino = ino;
    (void)snprintf(b->names[b->name_count].text, MEMDISK_NAME_BYTES, "%s", text); /* its length was checked */
    b->name_count++;
    d->inodes[ino].links++;
}

static void name_remove(struct memdisk *d, uint64_t dir, const char *text)
{
    struct body *b = body_own(d, dir);
    struct name *n = name_find(b, text);
    uint64_t ino = n->ino;

    memmove(n, n + 1, (size_t)(b->names + b->name_count - (n + 1)) * sizeof(*n));
    b->name_count--;
    d->inodes[ino].links--;
    inode_drop_if_unused(d, ino);
}

static uint64_t inode_new(struct memdisk *d, mode_t mode)
{
    uint64_t ino = d->inode_count;

    inodes_reach(d, ino);
    d->inodes[ino].body = body_new(mode);
    d->used_pages += pages_taken(d->inodes[ino].body);
    return ino;
}

/* Walks all but the last component. ret_name gets the last ("." for the directory itself). */
static int resolve(struct memdisk *d, uint64_t dir, const char *path, uint64_t *ret_dir, char ret_name[MEMDISK_NAME_BYTES])
{
    for (unsigned depth = 0; depth < DEPTH_MAX; depth++) {
        const char *slash = strchr(path, '/');
        size_t length = slash ? (size_t)(slash - path) : strlen(path);
        struct name *n;

        if (length >= MEMDISK_NAME_BYTES)
            return -ENAMETOOLONG;
        memcpy(ret_name, path, length);
        ret_name[length] = 0;
        *ret_dir = dir;
        if (!slash)
            return length == 0 ? -ENOENT : 0;
        n = name_find(d->inodes[dir].body, ret_name);
        if (!n)
            return -ENOENT;
        dir = n->ino;
        if (S_ISLNK(d->inodes[dir].body->mode))
            return -ELOOP; /* links in the store are followed by nobody */
        if (!S_ISDIR(d->inodes[dir].body->mode))
            return -ENOTDIR;
        path = slash + 1;
    }
    return -ELOOP;
}

/* ---- descriptors ---- */

static struct open_file *file_of(struct memdisk *d, int fd)
{
    uint32_t index = (uint32_t)(fd - MEMDISK_FD_BASE);

    return fd >= MEMDISK_FD_BASE && index < d->file_count && d->files[index].ino ? &d->files[index] : NULL;
}

static int file_open(struct memdisk *d, uint64_t ino, int flags)
{
    uint32_t i = 0;

    while (i < d->file_count && d->files[i].ino)
        i++;
    if (i == d->files_allocated) {
        d->files_allocated = i * 2 + 16;
        d->files = must(realloc(d->files, d->files_allocated * sizeof(struct open_file)));
    }
    if (i == d->file_count)
        d->file_count++;
    d->files[i] = (struct open_file){.ino = ino, .flags = flags};
    d->inodes[ino].opens++;
    d->open_count++;
    return MEMDISK_FD_BASE + (int)i;
}

/* The directory a call is relative to; 0: not one. */
static uint64_t dir_of(struct memdisk *d, int fd)
{
    struct open_file *f = file_of(d, fd);

    return f && S_ISDIR(d->inodes[f->ino].body->mode) ? f->ino : 0;
}

/* A regular file open for what is asked; NULL and -errno in *ret_error. */
static struct open_file *regular_of(struct memdisk *d, int fd, bool write, int *ret_error)
{
    struct open_file *f = file_of(d, fd);
    int mode = f ? f->flags & O_ACCMODE : 0;

    *ret_error = -EBADF;
    if (!f || (write ? mode == O_RDONLY : mode == O_WRONLY))
        return NULL;
    *ret_error = S_ISDIR(d->inodes[f->ino].body->mode) ? -EISDIR : -EINVAL;
    return S_ISREG(d->inodes[f->ino].body->mode) ? f : NULL;
}

static void tell(struct memdisk *d, struct memdisk_event event)
{
    if (d->observer)
        d->observer(d->observer_ctx, d, &event);
}

static struct memdisk *enter(struct io *io)
{
    struct memdisk *d = io->ctx;

    (void)pthread_mutex_lock(&d->lock); /* cannot fail: not recursive, not robust */
    return d;
}

static void leave(struct memdisk *d)
{
    (void)pthread_mutex_unlock(&d->lock); /* ours */
}

/* ---- the table ---- */

static int open_found(struct memdisk *d, uint64_t ino, int flags)
{
    mode_t mode = d->inodes[ino].body->mode;
    bool write = (flags & O_ACCMODE) != O_RDONLY;
    int fd;

    if ((flags & O_CREAT) && (flags & O_EXCL))
        return -EEXIST;
    if (S_ISLNK(mode))
        return -ELOOP; /* O_NOFOLLOW is always meant */
    if ((flags & O_DIRECTORY) && !S_ISDIR(mode))
        return -ENOTDIR;
    if (S_ISDIR(mode) && write)
        return -EISDIR;
    if (S_ISSOCK(mode) || (S_ISFIFO(mode) && (flags & O_ACCMODE) == O_WRONLY))
        return -ENXIO;
    fd = file_open(d, ino, flags);
    if ((flags & O_TRUNC) && S_ISREG(mode) && d->inodes[ino].body->size_bytes > 0) {
        struct body *b = body_own(d, ino);
        uint64_t old = b->size_bytes;
        b->size_bytes = 0;
        cut_pages(d, b, 0);
        tell(d, (struct memdisk_event){.change = MEMDISK_TRUNCATE, .ino = ino, .old_size_bytes = old});
    }
    return fd;
}

static int open_locked(struct memdisk *d, int dir_fd, const char *path, int flags, mode_t mode)
{
    char last[MEMDISK_NAME_BYTES];
    uint64_t dir = dir_of(d, dir_fd), ino;
    struct name *n;
    int r, fd;

    if (!dir)
        return file_of(d, dir_fd) ? -ENOTDIR : -EBADF;
    r = resolve(d, dir, path, &dir, last);
    if (r < 0)
        return r;
    if (strcmp(last, ".") == 0)
        return open_found(d, dir, flags);
    n = name_find(d->inodes[dir].body, last);
    if (n)
        return open_found(d, n->ino, flags);
    if (!(flags & O_CREAT))
        return -ENOENT;
    if (!has_room(d, 1))
        return -ENOSPC; /* ext4 would still make an empty file; stricter is better */
    ino = inode_new(d, S_IFREG | (mode & 07777));
    name_add(d, dir, last, ino);
    fd = file_open(d, ino, flags);
    tell(d, (struct memdisk_event){
                .change = MEMDISK_CREATE, .ino = ino, .dir = dir, .name = last, .mode = S_IFREG | (mode & 07777)});
    return fd;
}

static int mem_openat(struct io *io, int dir_fd, const char *name, int flags, mode_t mode)
{
    struct memdisk *d = enter(io);
    int r = open_locked(d, dir_fd, name, flags, mode);

    leave(d);
    return r;
}

static void mem_close(struct io *io, int fd)
{
    struct memdisk *d = enter(io);
    struct open_file *f = file_of(d, fd);
    struct inode *in;
    uint64_t ino;

    assert(f); /* closed twice, or never ours */
    ino = f->ino;
    in = &d->inodes[ino];
    f->ino = 0;
    if (in->lock_fd == fd)
        in->lock_fd = 0;
    in->opens--;
    d->open_count--;
    inode_drop_if_unused(d, ino);
    leave(d);
}

static ssize_t mem_pread(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    struct memdisk *d = enter(io);
    ssize_t done = 0;
    struct body *b;
    int error;

    struct open_file *f = regular_of(d, fd, false, &error);
    if (!f) {
        leave(d);
        return error;
    }
    b = d->inodes[f->ino].body;
    bytes = offset >= b->size_bytes ? 0 : bytes < b->size_bytes - offset ? bytes : b->size_bytes - offset;
    while ((size_t)done < bytes) {
        uint64_t index = (offset + (size_t)done) / MEMDISK_PAGE_BYTES, at = (offset + (size_t)done) % MEMDISK_PAGE_BYTES;
        size_t part = MEMDISK_PAGE_BYTES - at < bytes - (size_t)done ? MEMDISK_PAGE_BYTES - at : bytes - (size_t)done;
        const struct memdisk_page *page = index < b->page_count ? b->pages[index] : NULL;

        memcpy((uint8_t *)buf + done, memdisk_page_data(page) + at, part);
        done += (ssize_t)part;
    }
    leave(d);
    return done;
}

static void write_locked(struct memdisk *d, uint64_t ino, const uint8_t *buf, size_t bytes, uint64_t offset)
{
    struct body *b = body_own(d, ino);
    uint64_t old = b->size_bytes;

    pages_reach(b, (offset + bytes + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES);
    for (size_t done = 0; done < bytes;) {
        uint64_t index = (offset + done) / MEMDISK_PAGE_BYTES, at = (offset + done) % MEMDISK_PAGE_BYTES;
        size_t part = MEMDISK_PAGE_BYTES - at < bytes - done ? MEMDISK_PAGE_BYTES - at : bytes - done;

        memcpy(page_own(d, b, index)->data + at, buf + done, part);
        done += part;
    }
    if (offset + bytes > b->size_bytes)
        b->size_bytes = offset + bytes;
    tell(d, (struct memdisk_event){.change = MEMDISK_WRITE, .ino = ino, .offset = offset, .bytes = bytes,
                                   .size_bytes = b->size_bytes, .old_size_bytes = old});
}

static ssize_t mem_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    struct memdisk *d = enter(io);
    int error;
    struct open_file *f = regular_of(d, fd, true, &error);
    ssize_t r = (ssize_t)bytes;

    if (!f)
        r = error;
    else if (offset + bytes > FILE_PAGES_MAX * MEMDISK_PAGE_BYTES)
        r = -EFBIG;
    else if (!has_room(d, new_pages_in(d->inodes[f->ino].body, offset, bytes)))
        r = -ENOSPC;
    else if (bytes > 0)
        write_locked(d, f->ino, buf, bytes, offset);
    leave(d);
    return r;
}

static int mem_ftruncate(struct io *io, int fd, uint64_t bytes)
{
    struct memdisk *d = enter(io);
    int r = 0;
    struct open_file *f = regular_of(d, fd, true, &r);

    if (f && bytes > FILE_PAGES_MAX * MEMDISK_PAGE_BYTES) {
        r = -EFBIG;
    } else if (f) {
        struct body *b = body_own(d, f->ino);
        uint64_t old = b->size_bytes;
        if (bytes <= b->size_bytes)
            cut_pages(d, b, bytes); /* also blocks allocated ahead of the end */
        b->size_bytes = bytes;
        tell(d, (struct memdisk_event){.change = MEMDISK_TRUNCATE, .ino = f->ino, .size_bytes = bytes, .old_size_bytes = old});
        r = 0;
    }
    leave(d);
    return r;
}

static int allocate_locked(struct memdisk *d, uint64_t ino, int mode, uint64_t offset, uint64_t bytes)
{
    struct body *b;
    uint64_t old;

    if (bytes == 0 || (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        return bytes == 0 ? -EINVAL : -EOPNOTSUPP;
    if (offset + bytes > FILE_PAGES_MAX * MEMDISK_PAGE_BYTES)
        return -EFBIG;
    if (!(mode & FALLOC_FL_PUNCH_HOLE) && !has_room(d, new_pages_in(d->inodes[ino].body, offset, bytes)))
        return -ENOSPC;
    b = body_own(d, ino);
    old = b->size_bytes;
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        zero_range(d, b, offset, offset + bytes);
    if (!(mode & FALLOC_FL_PUNCH_HOLE)) {
        pages_reach(b, (offset + bytes + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES);
        for (uint64_t i = offset / MEMDISK_PAGE_BYTES; i * MEMDISK_PAGE_BYTES < offset + bytes; i++)
            if (!b->pages[i])
                page_set(d, b, i, &zero_page);
        if (!(mode & FALLOC_FL_KEEP_SIZE) && offset + bytes > b->size_bytes)
            b->size_bytes = offset + bytes;
    }
    tell(d, (struct memdisk_event){
                .change = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? MEMDISK_PUNCH : MEMDISK_ALLOCATE,
                .ino = ino, .offset = offset, .bytes = bytes, .size_bytes = b->size_bytes, .old_size_bytes = old});
    return 0;
}

static int mem_fallocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    struct memdisk *d = enter(io);
    int r = 0;
    struct open_file *f = regular_of(d, fd, true, &r);

    if (f)
        r = allocate_locked(d, f->ino, mode, offset, bytes);
    leave(d);
    return r;
}

static int sync_any(struct io *io, int fd, enum memdisk_change change)
{
    struct memdisk *d = enter(io);
    struct open_file *f = file_of(d, fd);

    if (f)
        tell(d, (struct memdisk_event){.change = change, .ino = f->ino});
    leave(d);
    return f ? 0 : -EBADF;
}

static int mem_fdatasync(struct io *io, int fd)
{
    return sync_any(io, fd, MEMDISK_SYNC_DATA);
}

static int mem_fsync(struct io *io, int fd)
{
    return sync_any(io, fd, MEMDISK_SYNC);
}

/* May the name be taken by what is renamed? */
static int rename_check(struct memdisk *d, uint64_t ino, const struct name *target)
{
    bool is_dir = S_ISDIR(d->inodes[ino].body->mode);
    const struct body *old = target ? d->inodes[target->ino].body : NULL;

    if (!old)
        return 0;
    if (is_dir != S_ISDIR(old->mode))
        return is_dir ? -ENOTDIR : -EISDIR;
    return is_dir && old->name_count > 0 ? -ENOTEMPTY : 0;
}

static int rename_locked(struct memdisk *d, uint64_t dir, const char *from, const char *to)
{
    char last[MEMDISK_NAME_BYTES], to_last[MEMDISK_NAME_BYTES];
    uint64_t from_dir = 0, to_dir = 0, ino;
    struct name *n, *target;
    int r = resolve(d, dir, from, &from_dir, last);

    if (r == 0)
        r = resolve(d, dir, to, &to_dir, to_last);
    if (r < 0)
        return r;
    n = name_find(d->inodes[from_dir].body, last);
    if (!n)
        return -ENOENT;
    ino = n->ino;
    target = name_find(d->inodes[to_dir].body, to_last);
    if (target && target->ino == ino)
        return 0;
    r = rename_check(d, ino, target);
    if (r < 0)
        return r;
    if (target)
        name_remove(d, to_dir, to_last);
    name_add(d, to_dir, to_last, ino);
    name_remove(d, from_dir, last);
    tell(d, (struct memdisk_event){.change = MEMDISK_RENAME, .ino = ino, .dir = from_dir, .name = last, .to_dir = to_dir,
                                   .to_name = to_last});
    return 0;
}

static int mem_renameat(struct io *io, int dir_fd, const char *from, const char *to)
{
    struct memdisk *d = enter(io);
    uint64_t dir = dir_of(d, dir_fd);
    int r = dir ? rename_locked(d, dir, from, to) : -EBADF;

    leave(d);
    return r;
}

static int unlink_locked(struct memdisk *d, uint64_t dir, const char *path, int flags)
{
    char last[MEMDISK_NAME_BYTES];
    const struct body *b;
    struct name *n;
    uint64_t ino;
    int r = resolve(d, dir, path, &dir, last);

    if (r < 0)
        return r;
    n = name_find(d->inodes[dir].body, last);
    if (!n)
        return -ENOENT;
    ino = n->ino;
    b = d->inodes[ino].body;
    if (S_ISDIR(b->mode) != ((flags & AT_REMOVEDIR) != 0))
        return S_ISDIR(b->mode) ? -EISDIR : -ENOTDIR;
    if (S_ISDIR(b->mode) && b->name_count > 0)
        return -ENOTEMPTY;
    name_remove(d, dir, last);
    tell(d, (struct memdisk_event){.change = MEMDISK_UNLINK, .ino = ino, .dir = dir, .name = last});
    return 0;
}

static int mem_unlinkat(struct io *io, int dir_fd, const char *name, int flags)
{
    struct memdisk *d = enter(io);
    uint64_t dir = dir_of(d, dir_fd);
    int r = dir ? unlink_locked(d, dir, name, flags) : -EBADF;

    leave(d);
    return r;
}

static int mkdir_locked(struct memdisk *d, uint64_t dir, const char *path, mode_t mode)
{
    char last[MEMDISK_NAME_BYTES];
    uint64_t ino;
    int r = resolve(d, dir, path, &dir, last);

    if (r < 0)
        return r;
    if (strcmp(last, ".") == 0 || name_find(d->inodes[dir].body, last))
        return -EEXIST;
    if (!has_room(d, 1))
        return -ENOSPC;
    ino = inode_new(d, S_IFDIR | (mode & 07777));
    name_add(d, dir, last, ino);
    tell(d, (struct memdisk_event){
                .change = MEMDISK_CREATE, .ino = ino, .dir = dir, .name = last, .mode = S_IFDIR | (mode & 07777)});
    return 0;
}

static int mem_mkdirat(struct io *io, int dir_fd, const char *name, mode_t mode)
{
    struct memdisk *d = enter(io);
    uint64_t dir = dir_of(d, dir_fd);
    int r = dir ? mkdir_locked(d, dir, name, mode) : -EBADF;

    leave(d);
    return r;
}

static void fill_stat(const struct memdisk *d, uint64_t ino, struct stat *ret_st)
{
    const struct inode *in = &d->inodes[ino];

    *ret_st = (struct stat){
        .st_dev = 1,
        .st_ino = ino,
        .st_mode = in->body->mode,
        .st_nlink = in->links + (S_ISDIR(in->body->mode) ? 1 : 0),
        .st_uid = geteuid(),
        .st_gid = getegid(),
        .st_size = (off_t)(S_ISDIR(in->body->mode) ? MEMDISK_PAGE_BYTES : in->body->size_bytes),
        .st_blksize = MEMDISK_PAGE_BYTES,
        .st_blocks = (blkcnt_t)(pages_taken(in->body) * BLOCKS_PER_PAGE),
    };
}

static int mem_fstat(struct io *io, int fd, struct stat *ret_st)
{
    struct memdisk *d = enter(io);
    struct open_file *f = file_of(d, fd);

    if (f)
        fill_stat(d, f->ino, ret_st);
    leave(d);
    return f ? 0 : -EBADF;
}

static int mem_fstatat(struct io *io, int dir_fd, const char *name, struct stat *ret_st)
{
    struct memdisk *d = enter(io);
    char last[MEMDISK_NAME_BYTES];
    uint64_t dir = dir_of(d, dir_fd), ino = 0;
    int r = dir ? resolve(d, dir, name, &dir, last) : -EBADF;

    if (r == 0)
        ino = memdisk_find(d, dir, last);
    if (r == 0 && !ino)
        r = -ENOENT;
    if (r == 0)
        fill_stat(d, ino, ret_st);
    leave(d);
    return r;
}

/* From a copy, so that visit may change the directory. */
static int mem_list(struct io *io, int dir_fd, io_visit visit, void *ctx)
{
    struct memdisk *d = enter(io);
    uint64_t dir = dir_of(d, dir_fd);
    struct body *b = dir ? d->inodes[dir].body : NULL;
    int r = 0;

    if (b)
        atomic_fetch_add(&b->refs, 1); /* whoever changes the directory meanwhile makes a copy */
    leave(d);
    if (!b)
        return -EBADF;
    for (uint32_t i = 0; i < b->name_count && r == 0; i++)
        r = visit(ctx, b->names[i].text);
    body_free(b);
    return r;
}

static int mem_seek(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset)
{
    struct memdisk *d = enter(io);
    int r = 0;
    struct open_file *f = file_of(d, fd);
    struct body *b = f ? d->inodes[f->ino].body : NULL;

    if (!b || (whence != SEEK_DATA && whence != SEEK_HOLE))
        r = b ? -EINVAL : -EBADF;
    else if (offset >= b->size_bytes)
        r = -ENXIO;
    while (r == 0 && offset < b->size_bytes) {
        uint64_t index = offset / MEMDISK_PAGE_BYTES;
        bool is_data = index < b->page_count && b->pages[index] && b->pages[index] != &zero_page;
        if (is_data == (whence == SEEK_DATA))
            break;
        offset = (index + 1) * MEMDISK_PAGE_BYTES;
    }
    if (r == 0 && offset >= b->size_bytes) {
        offset = b->size_bytes; /* a hole follows every file */
        r = whence == SEEK_DATA ? -ENXIO : 0;
    }
    if (r == 0)
        *ret_offset = offset;
    leave(d);
    return r;
}

static int mem_statfs(struct io *io, int fd, struct io_space *ret_space)
{
    struct memdisk *d = enter(io);
    uint64_t used = d->used_pages * MEMDISK_PAGE_BYTES;
    bool is_open = file_of(d, fd) != NULL;

    *ret_space = (struct io_space){.block_bytes = MEMDISK_PAGE_BYTES,
                                   .total_bytes = d->capacity_bytes,
                                   .available_bytes = d->capacity_bytes > used ? d->capacity_bytes - used : 0};
    leave(d);
    return is_open ? 0 : -EBADF;
}

static int mem_lock(struct io *io, int fd)
{
    struct memdisk *d = enter(io);
    struct open_file *f = file_of(d, fd);
    struct inode *in = f ? &d->inodes[f->ino] : NULL;
    int r = !in ? -EBADF : in->lock_fd != 0 && in->lock_fd != fd ? -EWOULDBLOCK : 0;

    if (r == 0)
        in->lock_fd = fd;
    leave(d);
    return r;
}

static const struct io_ops memdisk_ops = {
    .openat = mem_openat,
    .close = mem_close,
    .pread = mem_pread,
    .pread_nowait = mem_pread,
    .pwrite = mem_pwrite,
    .ftruncate = mem_ftruncate,
    .fallocate = mem_fallocate,
    .fdatasync = mem_fdatasync,
    .fsync = mem_fsync,
    .renameat = mem_renameat,
    .unlinkat = mem_unlinkat,
    .mkdirat = mem_mkdirat,
    .fstat = mem_fstat,
    .fstatat = mem_fstatat,
    .list = mem_list,
    .seek = mem_seek,
    .statfs = mem_statfs,
    .lock = mem_lock,
};

/* ---- disks ---- */

static struct memdisk *disk_alloc(void)
{
    struct memdisk *d = must(calloc(1, sizeof(*d)));

    (void)pthread_mutex_init(&d->lock, NULL); /* cannot fail on Linux */
    d->io = (struct io){.ops = &memdisk_ops, .ctx = d};
    d->capacity_bytes = CAPACITY_USUAL;
    return d;
}

struct memdisk *memdisk_new(void)
{
    struct memdisk *d = disk_alloc();

    inodes_reach(d, MEMDISK_ROOT);
    d->inodes[MEMDISK_ROOT].body = body_new(S_IFDIR | 0700);
    d->inodes[MEMDISK_ROOT].links = 1;
    d->used_pages = 1;
    return d;
}

static struct memdisk *disk_copy(struct memdisk *from, bool nameless)
{
    struct memdisk *d = disk_alloc();

    (void)pthread_mutex_lock(&from->lock); /* cannot fail */
    d->capacity_bytes = from->capacity_bytes;
    d->inode_count = d->inodes_allocated = from->inode_count;
    d->inodes = must(malloc(d->inode_count * sizeof(struct inode)));
    for (uint64_t i = 0; i < d->inode_count; i++) {
        const struct inode *in = &from->inodes[i];
        d->inodes[i] = (struct inode){.body = in->links > 0 || nameless ? in->body : NULL, .links = in->links};
        if (d->inodes[i].body) {
            atomic_fetch_add_explicit(&in->body->refs, 1, memory_order_relaxed);
            d->used_pages += pages_taken(in->body);
        }
    }
    (void)pthread_mutex_unlock(&from->lock); /* ours */
    return d;
}

/* Nothing is open on the clone, so what only descriptors held is not there. */
struct memdisk *memdisk_clone(struct memdisk *d)
{
    return disk_copy(d, false);
}

struct memdisk *memdisk_clone_all(struct memdisk *d)
{
    return disk_copy(d, true);
}

void memdisk_free(struct memdisk *d)
{
    if (!d)
        return;
    for (uint64_t i = 0; i < d->inode_count; i++)
        body_free(d->inodes[i].body);
    free(d->inodes);
    free(d->files);
    (void)pthread_mutex_destroy(&d->lock); /* nobody is in it */
    free(d);
}

struct io *memdisk_io(struct memdisk *d)
{
    return &d->io;
}

int memdisk_open_root(struct memdisk *d)
{
    int fd;

    (void)enter(&d->io);
    fd = file_open(d, MEMDISK_ROOT, O_RDONLY | O_DIRECTORY);
    leave(d);
    return fd;
}

void memdisk_observe(struct memdisk *d, memdisk_observer observer, void *ctx)
{
    d->observer = observer;
    d->observer_ctx = ctx;
}

void memdisk_set_capacity(struct memdisk *d, uint64_t bytes)
{
    d->capacity_bytes = bytes;
}

uint64_t memdisk_used_bytes(struct memdisk *d)
{
    return d->used_pages * MEMDISK_PAGE_BYTES;
}

uint64_t memdisk_open_count(struct memdisk *d)
{
    return d->open_count;
}

/* ---- whole files ---- */

int memdisk_read_file(struct memdisk *d, const char *path, uint8_t **ret_data, size_t *ret_bytes)
{
    int dir_fd = memdisk_open_root(d);
    int fd = mem_openat(&d->io, dir_fd, path, O_RDONLY, 0);
    struct stat st = {0};
    ssize_t got;

    mem_close(&d->io, dir_fd);
    if (fd < 0)
        return fd;
    (void)mem_fstat(&d->io, fd, &st); /* open: it is there */
    *ret_data = must(malloc((size_t)st.st_size + 1));
    got = mem_pread(&d->io, fd, *ret_data, (size_t)st.st_size, 0);
    mem_close(&d->io, fd);
    if (got < 0) {
        free(*ret_data);
        return (int)got;
    }
    *ret_bytes = (size_t)got;
    return 0;
}

int memdisk_write_file(struct memdisk *d, const char *path, const void *data, size_t bytes)
{
    int dir_fd = memdisk_open_root(d);
    int fd = mem_openat(&d->io, dir_fd, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t r;

    mem_close(&d->io, dir_fd);
    if (fd < 0)
        return fd;
    r = mem_pwrite(&d->io, fd, data, bytes, 0);
    mem_close(&d->io, fd);
    return r < 0 ? (int)r : 0;
}

int memdisk_plant(struct memdisk *d, const char *path, mode_t mode, const void *data, size_t bytes)
{
    char last[MEMDISK_NAME_BYTES];
    uint64_t dir = 0, ino;
    int r;

    (void)enter(&d->io);
    r = resolve(d, MEMDISK_ROOT, path, &dir, last);
    if (r == 0 && name_find(d->inodes[dir].body, last))
        r = -EEXIST;
    if (r == 0) {
        ino = inode_new(d, mode);
        name_add(d, dir, last, ino);
        if (bytes > 0)
            write_locked(d, ino, data, bytes, 0);
    }
    leave(d);
    return r;
}

/* ---- images ---- */

uint64_t memdisk_find(struct memdisk *d, uint64_t dir, const char *name)
{
    struct inode *in = inode_of(d, dir);
    struct name *n = in ? name_find(in->body, name) : NULL;

    return n ? n->ino : 0;
}

struct memdisk_page *memdisk_page(struct memdisk *d, uint64_t ino, uint64_t page_index)
{
    struct inode *in = inode_of(d, ino);

    return in && page_index < in->body->page_count ? memdisk_page_ref(in->body->pages[page_index]) : NULL;
}

void memdisk_put_sectors(struct memdisk *d, uint64_t ino, uint64_t page_index, unsigned sectors, struct memdisk_page *page)
{
    struct body *b = body_own(d, ino);

    pages_reach(b, page_index + 1);
    if (sectors == SECTORS_ALL) {
        page_set(d, b, page_index, memdisk_page_ref(page));
        return;
    }
    if (!page && !b->pages[page_index])
        return;
    for (unsigned s = 0; s < BLOCKS_PER_PAGE; s++)
        if (sectors & 1u << s)
            memcpy(page_own(d, b, page_index)->data + s * MEMDISK_SECTOR_BYTES,
                   memdisk_page_data(page) + s * MEMDISK_SECTOR_BYTES, MEMDISK_SECTOR_BYTES);
}

uint64_t memdisk_size(struct memdisk *d, uint64_t ino)
{
    struct inode *in = inode_of(d, ino);

    return in ? in->body->size_bytes : 0;
}

void memdisk_put_size(struct memdisk *d, uint64_t ino, uint64_t bytes)
{
    body_own(d, ino)->size_bytes = bytes;
}

void memdisk_put_end(struct memdisk *d, uint64_t ino, uint64_t bytes)
{
    struct body *b = body_own(d, ino);

    cut_pages(d, b, bytes);
    b->size_bytes = bytes;
}

void memdisk_put_allocated(struct memdisk *d, uint64_t ino, uint64_t page_index)
{
    struct body *b = body_own(d, ino);

    pages_reach(b, page_index + 1);
    if (!b->pages[page_index])
        page_set(d, b, page_index, &zero_page);
}

bool memdisk_is_hole(struct memdisk *d, uint64_t ino, uint64_t page_index)
{
    struct inode *in = inode_of(d, ino);

    return in && (page_index >= in->body->page_count || !in->body->pages[page_index]);
}

void memdisk_put_inode(struct memdisk *d, uint64_t ino, mode_t mode)
{
    inodes_reach(d, ino);
    if (d->inodes[ino].body)
        return;
    d->inodes[ino].body = body_new(mode);
    d->used_pages += pages_taken(d->inodes[ino].body);
}

void memdisk_put_name(struct memdisk *d, uint64_t dir, const char *name, uint64_t ino)
{
    struct body *b = body_own(d, dir);
    struct name *n = name_find(b, name);

    if (n && n->ino == ino)
        return;
    if (n) { /* not name_remove: an inode without a name may get one back until the disk is settled */
        d->inodes[n->ino].links--;
        memmove(n, n + 1, (size_t)(b->names + b->name_count - (n + 1)) * sizeof(*n));
        b->name_count--;
    }
    if (ino)
        name_add(d, dir, name, ino);
}

/* What a directory that is lost held is lost with it. */
static void drop_tree(struct memdisk *d, uint64_t ino)
{
    struct body *b = d->inodes[ino].body;

    if (S_ISDIR(b->mode)) {
        b = body_own(d, ino);
        for (uint32_t i = 0; i < b->name_count; i++) {
            uint64_t child = b->names[i].ino;
            if (--d->inodes[child].links == 0)
                drop_tree(d, child);
        }
        b->name_count = 0;
    }
    inode_drop_if_unused(d, ino);
}

/* Bytes beyond the end are unseen for ever; their blocks may stay allocated. */
static void settle_end(struct memdisk *d, struct body *b)
{
    uint64_t keep = (b->size_bytes + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES;

    zero_range(d, b, b->size_bytes, keep * MEMDISK_PAGE_BYTES);
    for (uint64_t i = keep; i < b->page_count; i++)
        if (b->pages[i])
            page_set(d, b, i, &zero_page);
}

void memdisk_settle(struct memdisk *d)
{
    for (uint64_t i = 0; i < d->inode_count; i++)
        if (d->inodes[i].body && d->inodes[i].links == 0)
            drop_tree(d, i);
    for (uint64_t i = 0; i < d->inode_count; i++) {
        const struct body *b = d->inodes[i].body;
        if (b && S_ISREG(b->mode) && b->page_count * MEMDISK_PAGE_BYTES > b->size_bytes)
            settle_end(d, body_own(d, i));
    }
}

static void print_dir(struct memdisk *d, uint64_t dir, const char *prefix, void (*line)(void *ctx, const char *text), void *ctx)
{
    const struct body *b = d->inodes[dir].body;
    char text[2 * MEMDISK_NAME_BYTES + 80], path[2 * MEMDISK_NAME_BYTES];

    for (uint32_t i = 0; i < b->name_count; i++) {
        const struct body *child = d->inodes[b->names[i].ino].body;
        (void)snprintf(path, sizeof(path), "%s%s", prefix, b->names[i].text); /* cut: for a person */
        (void)snprintf(text, sizeof(text), "%s ino=%llu mode=%o size=%llu pages=%llu", path,
                       (unsigned long long)b->names[i].ino, child->mode, (unsigned long long)child->size_bytes,
                       (unsigned long long)child->used_pages);
        line(ctx, text);
        if (S_ISDIR(child->mode)) {
            (void)strncat(path, "/", sizeof(path) - strlen(path) - 1); /* cut */
            print_dir(d, b->names[i].ino, path, line, ctx);
        }
    }
}

void memdisk_print(struct memdisk *d, void (*line)(void *ctx, const char *text), void *ctx)
{
    print_dir(d, MEMDISK_ROOT, "", line, ctx);
}
