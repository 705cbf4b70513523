/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sampled: what stands in for handles where the kernel tells of no open and no close (hits=sampled, ops_sampled.c).
 *
 *   kept files   a value that is being read from front to back stays open between two READs, so that it is found,
 *                verified and decoded once: a bounded number of them, the one not read for longest goes first, and all
 *                go with the kernel's last reference, or where there are writers after a moment
 *   snapshots    the text of a virtual file as its lookup found it. It has a number of its own, which no other text
 *                ever has while the kernel knows it: whoever opened it reads one moment, whatever others look up
 *meanwhile
 *
 * What may never happen: a READ of a node answered with bytes of another, or with two moments of a text.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fs/fs.h"

struct sampled;

int sampled_new(struct sampled **ret_sampled);
/* Before the engine closes, when no request runs. NULL is fine. */
void sampled_free(struct sampled *s);

/* The node's file, for one request alone; sampled_give takes it back. */
int sampled_take(struct fs *fs, uint64_t node, struct larder_file **ret_file);
/* keep: more of it will be read. One that comes after its node was forgotten goes when its place is needed. */
void sampled_give(struct fs *fs, struct larder_file *file, bool keep);
/* Closes the kept files that were not read since before_ns; whether others are left. While a file is kept it cannot leave
 * for room: where room may be wanted writers.c calls this soon after. */
bool sampled_close_idle(struct fs *fs, uint64_t before_ns);
/* The kernel forgets the node. */
void sampled_let_go(struct fs *fs, uint64_t node);

/* A new snapshot of a virtual file, with one reference of the kernel's to it; its attributes, number and size in
 * *ret_stat. [waits] like virtual_snapshot. -ENFILE: too many at a time. */
int sampled_snapshot_new(struct fs *fs, uint64_t virtual_ino, struct stat *ret_stat);
/* -ESTALE: not there. */
int sampled_snapshot_stat(struct fs *fs, uint64_t ino, struct stat *ret_stat);
/* Borrowed while the kernel has a reference. */
int sampled_snapshot_read(struct fs *fs, uint64_t ino, size_t bytes, uint64_t offset, const char **ret_data,
                          size_t *ret_bytes);
void sampled_snapshot_forget(struct fs *fs, uint64_t ino, uint64_t count);
