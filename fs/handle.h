/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handle: what fi->fh points to, and how each open of a node does its I/O.
 *
 * The kernel wants all opens of an inode to agree (fs/fuse/iomode.c):
 *   CACHED   through its page cache, filled by READ         not while a backed open exists
 *   BACKED   passthrough: read, write and mmap on the backing file itself
 *   MIXED    passthrough|direct_io: read and write come to us, mmap goes to the backing file
 *   DIRECT   every read and write comes to us               not while a backed open exists
 * and all backed opens of an inode at a time share one backing file. So:
 *   node has cached opens       → CACHED
 *   node has direct opens       → DIRECT
 *   node has backed opens       → BACKED for a reader of the same file, else MIXED
 *   no opens, for writing alone → DIRECT
 *   no opens, reader, raw big   → BACKED;  else CACHED
 * A writer in MIXED writes through the engine, in place (content.h), so backed readers see it and the quota
 * counts it.
 *
 * Why DIRECT: who writes a new value seldom reads it at once, and the kernel asks for security.capability before the
 * first write through its page cache, a round trip for each value. Two things the kernel does for cached writes are
 * ours then: O_SYNC and RWF_DSYNC (ops_write), and it must not be told of setuid bits that a write took away (such files
 * are CACHED). Pages that mappings of others cached meanwhile are dropped at the end.
 *
 * Invariant H1: a backing id lives exactly as long as the node has backed opens.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "fs/fs.h"
#include "fs/text.h"

enum handle_mode { HANDLE_CACHED, HANDLE_BACKED, HANDLE_MIXED, HANDLE_DIRECT };

struct handle {
    uint32_t magic;
    uint32_t kind;            /* (c) enum virtual_kind; VIRTUAL_NONE for a stored file or directory */
    uint64_t node;            /* (c) */
    struct larder_file *file; /* (c) a stored file, or NULL */
    struct larder_dir *dir;   /* (c) a stored directory, or NULL */
    enum handle_mode mode;    /* (c) of a file */
    bool writable;            /* (c) */
    bool write_only;          /* (c) and may be DIRECT */
    bool over;                /* the session ended before it was released */
    struct text text;         /* (c) snapshot of a virtual file */
    _Atomic uint64_t shift;   /* (a) events: position less file offset */
    LIST_ENTRY(handle) all;   /* (g) */
};

struct handles;

int handles_new(struct handles **ret_handles);
void handles_free(struct handles *hs); /* NULL is fine */

int handle_new(uint64_t node, struct handle **ret_handle);
void handle_free(struct handle *h); /* NULL is fine; closes what it holds */
/* When the session is over: closes what the kernel did not release (an unmount may come before its RELEASE does). */
void handle_free_all(void);
struct handle *handle_from(const struct fuse_file_info *fi);

/* Whether any file handle of the node is open. From any thread, with any lock of the engine's held. */
bool handle_node_is_open(struct handles *hs, uint64_t node);
/* Enters h (whose file is open) in the table and decides h->mode; sets fi for the reply. backing_fd: -1 or a
 * descriptor a reader may be handed. The request is needed to register it. */
int handle_enter(struct fs *fs, fuse_req_t req, struct handle *h, int backing_fd, struct fuse_file_info *fi);
/* Before the handle is freed. True: the kernel may have cached pages while this handle wrote beside its cache; they are to be
 * dropped (notify_node_changed). */
bool handle_leave(struct fs *fs, fuse_req_t req, struct handle *h);
/* Whether an open for reading could be backed now: saves asking the engine for a descriptor. */
bool handle_may_be_backed(struct handles *hs, uint64_t node);
