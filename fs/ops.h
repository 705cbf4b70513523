/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops: the table of FUSE operations. Each checks, calls core, and answers once; nothing is answered before
 * core returned. What may wait for the device goes to a worker: a thread that waits stalls every client of
 * its core (io_uring).
 */
#pragma once

#include "fs/reply.h"
#include "fs/worker.h"

/* The table for a mount. */
struct fuse_lowlevel_ops ops_table_of(const struct fs *fs);

/* Runs job->run on a worker; at once when the daemon is stopping, or when the answer has to go out through a ring. */
void ops_defer(const struct call *c, struct worker_job *job);

/* ops_file.c */
void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void ops_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi);
void ops_read(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi);
void ops_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t bytes, off_t offset,
               struct fuse_file_info *fi);
void ops_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t bytes,
                   struct fuse_file_info *fi);
void ops_copy_file_range(fuse_req_t req, fuse_ino_t in_ino, off_t in_offset, struct fuse_file_info *in_fi,
                         fuse_ino_t out_ino, off_t out_offset, struct fuse_file_info *out_fi, size_t bytes,
                         int flags);
void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi);

/* Reads and answers. 0; -EAGAIN, only with nowait: nothing was answered; another error, which was. */
int ops_read_file(const struct call *c, struct larder_file *f, size_t bytes, uint64_t offset, bool nowait,
                  size_t *ret_bytes);

/* Whether a write, or one that the kernel says nothing with, takes away the setuid and setgid bits. */
bool ops_must_kill_priv(const struct call *c, const struct fuse_file_info *fi);
bool ops_must_kill_priv_untold(const struct call *c);
/* ops.c. May a name be made, removed or renamed? 0, -ENAMETOOLONG, -EPERM. */
int ops_check_name(uint64_t parent, const char *name);

/* ops_sampled.c: hits=sampled */
void ops_sampled_override(struct fuse_lowlevel_ops *table, bool writable);
/* After r: worth another try? With hits=sampled what is kept open here is closed, once, where there was no room. */
bool ops_sampled_made_room(struct fs *fs, int r, bool *tried);
/* A SETATTR of the size, and of what comes with it. Only with fs->writers. [waits] */
int ops_sampled_resize(struct fs *fs, uint64_t ino, unsigned set, const struct larder_attr *attr,
                       struct larder_attr *ret_attr);
void ops_sampled_lookup_virtual(const struct call *c, uint64_t virtual_ino);
void ops_sampled_forget(struct fs *fs, uint64_t ino, uint64_t count);

/* ops_dir.c */
void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi);
void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi);
void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

/* ops_xattr.c */
void ops_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t bytes,
                  int flags);
void ops_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void ops_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void ops_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

/* session.c */
void session_init(void *userdata, struct fuse_conn_info *conn);
