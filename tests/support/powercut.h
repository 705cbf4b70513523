/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut: records what happens to a memdisk, and builds the disks that a power cut at any moment could leave.
 *
 * What is durable is known per file (its bytes and its size, by fsync and fdatasync) and per directory (its names, by
 * fsync of the directory). Every other change since is pending, and for each disk it is chosen what became of it:
 *
 *   write      each sector kept or lost by itself: a later write kept without an earlier one, torn in the middle; the
 *              growth of the file kept or lost apart from the bytes. A sector shows what it held after one of the
 *              writes to it, never a mixture of bytes.
 *   truncate, punch, allocation   kept or lost (a punch also block by block)
 *   names      each creation, removal and renaming kept or lost by itself; a renaming may also leave both names
 *   bytes of a block by which a file grew, lost while its size was kept, are zeros, or stale bytes of another file
 *
 * That is more than journaling file systems do to their users, and what POSIX allows. Pending changes of one
 * file keep their order where they touch the same bytes or the same name.
 *
 * The recording is walked by a cut, forwards; from one cut any number of disks can be built.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memdisk.h"

struct powercut;     /* the recording */
struct powercut_cut; /* a moment in it */

/* base: what is on the disk, all of it durable; copied. */
struct powercut *powercut_new(struct memdisk *base);
/* The daemon died at the cut, the machine did not: the disk is as the kernel has it, and what was pending still is. Those
 * changes are the first events of the new recording; powercut_first is the first of its own. */
struct powercut *powercut_new_killed(const struct powercut_cut *cut, uint32_t mark);
uint32_t powercut_first(const struct powercut *pc);
void powercut_free(struct powercut *pc); /* NULL is fine; also frees the disk, not the cuts */
struct memdisk *powercut_disk(struct powercut *pc); /* the one that is recorded */
/* The caller's own count of what has happened, to be found again at a cut. */
void powercut_mark(struct powercut *pc, uint32_t mark);
/* Sabotage, to see that a test notices: syncs of files whose name starts so are taken for done and do nothing. "." is
 * the directories. */
void powercut_ignore_syncs(struct powercut *pc, const char *prefix);
uint32_t powercut_events(const struct powercut *pc);
bool powercut_is_sync(const struct powercut *pc, uint32_t event);

struct powercut_cut *powercut_cut_new(struct powercut *pc); /* before the first event */
void powercut_cut_free(struct powercut_cut *cut);
void powercut_cut_to(struct powercut_cut *cut, uint32_t event); /* before that event; not backwards */
uint32_t powercut_cut_mark(const struct powercut_cut *cut);     /* the last one passed; 0: none */
uint32_t powercut_pending(const struct powercut_cut *cut);

enum powercut_fate { POWERCUT_LOST, POWERCUT_KEPT, POWERCUT_TORN };

/* What became of one pending change. */
struct powercut_choice {
    uint8_t fate;    /* enum powercut_fate */
    bool size_kept;  /* of a write that made the file longer */
    bool stale;      /* its lost blocks show old bytes, not zeros */
    uint32_t seed;   /* of what is torn how */
};

/* One of each pending change. */
void powercut_choose(const struct powercut_cut *cut, uint64_t seed, struct powercut_choice *ret_choices);
struct memdisk *powercut_build(const struct powercut_cut *cut, const struct powercut_choice *choices);
/* "write journal-00000001 at 64 +128: torn 0f, size lost" */
void powercut_describe(const struct powercut_cut *cut, uint32_t pending_index, const struct powercut_choice *choice,
                       char *out, size_t out_bytes);
/* The event itself, for a trace. */
void powercut_describe_event(const struct powercut *pc, uint32_t event, char *out, size_t out_bytes);
