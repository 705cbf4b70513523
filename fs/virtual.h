/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtual: files that are not stored: `.stats` in every directory, `.larder/` at the root.
 * A reader sees one moment: the text is made at open. No listing of a stored directory shows them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fs/handle.h"

enum virtual_kind {
    VIRTUAL_NONE,
    VIRTUAL_STATS,     /* .stats of a directory; of the root: the whole cache */
    VIRTUAL_DIRECTORY, /* .larder */
    VIRTUAL_JSON,
    VIRTUAL_METRICS,
    VIRTUAL_CONFIG,
    VIRTUAL_EVENTS,
    VIRTUAL_SNAPSHOT, /* the text of one of them at one moment (sampled.h) */
};

/* VIRTUAL_NONE for a number of the engine's. */
enum virtual_kind virtual_kind_of(uint64_t ino);
/* Whether nothing may be created, removed or renamed under that name there. */
bool virtual_name_is_reserved(uint64_t parent, const char *name);
/* The number of a reserved name, or of a name in .larder; 0 if it is none. */
uint64_t virtual_find(uint64_t parent, const char *name);
/* The no-th number of a snapshot; they repeat after 2^31. */
uint64_t virtual_snapshot_ino(uint32_t no);
void virtual_stat(struct fs *fs, uint64_t ino, struct stat *ret_stat);
/* Whether making the text walks a subtree: a job for a worker. */
bool virtual_open_waits(uint64_t ino);
/* The text of h->node; events has none. */
int virtual_snapshot(struct fs *fs, struct handle *h);
/* The text of a directory's .stats. */
int virtual_stats_text(struct fs *fs, uint64_t directory, struct text *t);
/* Bytes of the text at offset, or of the events. *ret_data may point into buf or into h. */
void virtual_read(struct fs *fs, struct handle *h, char *buf, size_t bytes, uint64_t offset,
                  const char **ret_data, size_t *ret_bytes);
/* The i-th name in .larder and its number; NULL past the last. */
const char *virtual_entry(unsigned i, uint64_t *ret_ino);
