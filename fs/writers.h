/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * writers: what is being written where the kernel tells of no close (hits=sampled, ops_sampled.c).
 *
 * A node that is created or changed has one writer, whoever changes it. What was changed is committed
 *   by rename, link and fsync                  writers_commit, before they are answered
 *   when it has not been changed for a moment  WRITERS_MOMENT_NS; by a thread of its own
 *   at once when the kernel forgets it         by that thread: nobody has it open any more
 *   when too many or too much waits            WRITERS_MAX, WRITERS_BYTES_MAX: by who comes next, the one not changed for
 *                                              longest first
 *   when room is wanted                        writers_close_idle
 *   at an orderly stop                         writers_free
 * and by then the writer is gone, but for one that is in use. SIGKILL loses what waits: the value before stays.
 *
 * What may never happen: a change that is not committed for longer than a moment after the last one; a node with two
 * writers in the table.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "fs/fs.h"

struct writer;
struct writers;

int writers_new(struct fs *fs, struct writers **ret_writers);
/* Starts the thread. Before it nothing is committed by itself. */
int writers_start(struct fs *fs);
/* Ends the thread and commits all. Before the engine closes, when no request runs. NULL is fine. [waits] */
void writers_free(struct writers *ws);

/* The node's writer, found or made, until it is given back. -ESTALE, -EROFS, -EISDIR, ... */
int writers_take(struct fs *fs, uint64_t node, struct writer **ret_writer);
/* One for a file that was just created, with something to commit: its name. On failure the file stays the caller's. */
int writers_add(struct fs *fs, struct larder_file *file);
struct larder_file *writer_file(const struct writer *w);
/* changed: something may have been changed through it, by about so many bytes; its moment begins again. */
void writers_give(struct fs *fs, struct writer *w, bool changed, uint64_t bytes);

/* Commits what was written to the node, if anything was, and lets go of it. [waits with durability=fsync] */
int writers_commit(struct fs *fs, uint64_t node);
/* The kernel forgets the node. */
void writers_forgotten(struct fs *fs, uint64_t node);
/* Room is wanted, and open files cannot leave: commits and closes all that nobody is using. [waits] */
void writers_close_idle(struct fs *fs);
/* Something is kept open (sampled.h): the thread looks after it, too. */
void writers_wake(struct fs *fs);
