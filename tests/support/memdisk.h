/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memdisk: a file system in memory behind struct io_ops, so that the real core runs on a disk a test owns.
 *
 * Directories, files with holes, blocks allocated ahead (FALLOC_FL_KEEP_SIZE), punches, st_blocks as ext4 counts
 * them, files unlinked while open, one exclusive lock per file, a capacity that answers -ENOSPC. Descriptors
 * are numbers no system call takes for one of its own. Inode numbers are never used twice.
 *
 * memdisk_clone copies a disk in microseconds: inodes and pages are shared and copied when one of the two
 * changes them. A clone has nothing open.
 *
 * An observer is told of every change, after it, with the disk locked: powercut.c records them. The functions
 * below "images" change a disk behind the back of the io table (nobody is told), to build the disk that a power cut
 * leaves, or to plant what a hostile hand could.
 *
 * No memory: abort(3); this is a test's disk. Thread safety: one lock per disk; clones may be used by other threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"

#define MEMDISK_PAGE_BYTES 4096u
#define MEMDISK_SECTOR_BYTES 512u
#define MEMDISK_ROOT 2ull         /* inode of the top directory */
#define MEMDISK_NAME_BYTES 64u    /* longest name and its end; longer ones are -ENAMETOOLONG */
#define MEMDISK_FD_BASE 1000000   /* the first descriptor */

struct memdisk;
struct memdisk_page; /* MEMDISK_PAGE_BYTES of a file as they were at a moment; shared, counted */

enum memdisk_change {
    MEMDISK_WRITE,     /* ino, offset, bytes, size_bytes */
    MEMDISK_TRUNCATE,  /* ino, size_bytes; old_size_bytes */
    MEMDISK_ALLOCATE,  /* ino, offset, bytes, size_bytes */
    MEMDISK_PUNCH,     /* ino, offset, bytes */
    MEMDISK_CREATE,    /* dir, name, ino; also of a directory */
    MEMDISK_UNLINK,    /* dir, name, ino; also of a directory */
    MEMDISK_RENAME,    /* dir, name, to_dir, to_name, ino */
    MEMDISK_SYNC_DATA, /* ino */
    MEMDISK_SYNC,      /* ino; of a file or a directory */
};

struct memdisk_event {
    enum memdisk_change change;
    uint64_t ino, dir, to_dir;
    const char *name, *to_name;
    uint64_t offset, bytes, size_bytes, old_size_bytes;
    mode_t mode; /* CREATE */
};

typedef void (*memdisk_observer)(void *ctx, struct memdisk *d, const struct memdisk_event *event);

struct memdisk *memdisk_new(void);
struct memdisk *memdisk_clone(struct memdisk *d);
void memdisk_free(struct memdisk *d); /* NULL is fine; what is open is closed */
struct io *memdisk_io(struct memdisk *d);
int memdisk_open_root(struct memdisk *d); /* a descriptor of the top directory */
void memdisk_observe(struct memdisk *d, memdisk_observer observer, void *ctx);
void memdisk_set_capacity(struct memdisk *d, uint64_t bytes); /* of all files and directories; without: 1 TiB */
uint64_t memdisk_used_bytes(struct memdisk *d);  /* as du(1) counts; unlinked files that are open included */
uint64_t memdisk_open_count(struct memdisk *d);  /* descriptors */

/* Whole files by path ("big/00/0000000000000001"); 0 or -errno. *ret_data is the caller's to free. */
int memdisk_read_file(struct memdisk *d, const char *path, uint8_t **ret_data, size_t *ret_bytes);
int memdisk_write_file(struct memdisk *d, const char *path, const void *data, size_t bytes);
/* A file of any type (mode's S_IFMT), a link's target in its bytes. */
int memdisk_plant(struct memdisk *d, const char *path, mode_t mode, const void *data, size_t bytes);

/* images */
uint64_t memdisk_find(struct memdisk *d, uint64_t dir, const char *name); /* 0: no such name */
struct memdisk_page *memdisk_page(struct memdisk *d, uint64_t ino, uint64_t page_index); /* a reference; NULL: a hole */
struct memdisk_page *memdisk_page_new(const uint8_t data[MEMDISK_PAGE_BYTES]);
struct memdisk_page *memdisk_page_ref(struct memdisk_page *page);                       /* one more; NULL is fine */
void memdisk_page_free(struct memdisk_page *page);                                      /* gives one back */
const uint8_t *memdisk_page_data(const struct memdisk_page *page);
/* sectors: bit n is the n-th 512 bytes. page NULL: zeros, and a hole when all eight are meant. */
void memdisk_put_sectors(struct memdisk *d, uint64_t ino, uint64_t page_index, unsigned sectors, struct memdisk_page *page);
uint64_t memdisk_size(struct memdisk *d, uint64_t ino);
void memdisk_put_size(struct memdisk *d, uint64_t ino, uint64_t bytes);  /* pages beyond stay, unseen, until settled */
void memdisk_put_end(struct memdisk *d, uint64_t ino, uint64_t bytes);   /* size, and what is beyond goes: truncate */
void memdisk_put_allocated(struct memdisk *d, uint64_t ino, uint64_t page_index); /* if a hole: takes a block, zeros */
bool memdisk_is_hole(struct memdisk *d, uint64_t ino, uint64_t page_index);
void memdisk_put_inode(struct memdisk *d, uint64_t ino, mode_t mode);    /* empty; there already is fine */
void memdisk_put_name(struct memdisk *d, uint64_t dir, const char *name, uint64_t ino); /* ino 0: removes it */
struct memdisk *memdisk_clone_all(struct memdisk *d); /* inodes without a name, too, until it is settled */
/* What the file system's own recovery does: inodes without a name go, and so does what lies beyond a file's end. */
void memdisk_settle(struct memdisk *d);
/* One line per file: path, inode, size, blocks. For a person. */
void memdisk_print(struct memdisk *d, void (*line)(void *ctx, const char *text), void *ctx);
