/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reply: one request from its first line to its one answer. Here, and only here, -errno becomes what FUSE
 * wants, latency is taken and unexpected errors are counted.
 */
#pragma once

#include <sys/stat.h>

#include "fs/fs.h"

/* st_blksize: how much programs gather before they write: C's stdio as much as this, 8 KiB at most, Python all of it. Each
 * write is a round trip, so it is larger than a page. */
#define REPLY_BLOCK_BYTES (64u << 10)

struct watchdog_slot;

struct call {
    struct fs *fs;
    fuse_req_t req;
    enum larder_op op;
    uint64_t start_ns;
    uint64_t gone_seq; /* fs->gone_seq before the engine was asked */
    struct watchdog_slot *watch;
};

struct call call_begin(fuse_req_t req, enum larder_op op);

void reply_error(const struct call *c, int r); /* r <= 0 */
void reply_none(const struct call *c);         /* forget */
void reply_entry(const struct call *c, const struct larder_attr *attr);
void reply_virtual_entry(const struct call *c, uint64_t ino);
/* -ENOENT that the kernel may remember for valid_ns. */
void reply_absent(const struct call *c, uint64_t valid_ns);
void reply_attr(const struct call *c, const struct larder_attr *attr);
void reply_virtual_attr(const struct call *c, uint64_t ino);
void reply_bytes(const struct call *c, const void *data, size_t bytes);
void reply_written(const struct call *c, size_t bytes);
/* getxattr, listxattr: the length when size is 0, ERANGE when it does not fit, else the bytes. */
void reply_xattr(const struct call *c, const void *data, size_t bytes, size_t size);
/* False: the opener is gone, undo the open. */
bool reply_open(const struct call *c, const struct fuse_file_info *fi);
bool reply_create(const struct call *c, const struct larder_attr *attr, const struct fuse_file_info *fi);

void reply_fill_entry(const struct call *c, const struct larder_attr *attr,
                      struct fuse_entry_param *ret_entry);
void reply_fill_stat(const struct larder_attr *attr, struct stat *ret_stat);
/* For an answer sent by other means, just before it is: counts latency, and ends the watch. */
void reply_count(const struct call *c);
