/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect: look into a store at rest, for `larder check`, `larder dump` and tests. No stability promise. Only
 * inspect_repair writes.
 * All take the store's path and refuse (-EBUSY) a store whose daemon runs, unless told `even_if_busy`.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INSPECT_ERROR_BYTES 512

/* One finding: where (file, offset or key) and what. severity 'E' a defect, 'N' a note (torn tail, orphan). */
typedef void (*inspect_report)(void *ctx, char severity, const char *where, const char *what);

struct inspect_summary {
    uint64_t nodes, names, directories, values_checked, value_bytes_checked;
    uint64_t segments, big_files, journal_records, index_records;
    uint64_t defects, notes;
    uint64_t disk_bytes; /* as du counts the store */
};

/* Every checksum, every value, the tree, the accounting. 0 when it could be done (findings are in the summary). */
int inspect_check(const char *path, bool even_if_busy, inspect_report report, void *ctx, struct inspect_summary *ret_summary,
                  char *err);

struct inspect_repaired {
    uint64_t lost;      /* what went or was changed, as often as report was called with 'E' */
    uint64_t keys, key_bytes; /* files that were kept */
    uint64_t directories;
};

/* Makes a damaged store mountable and sound again, keeping all that can be trusted (inspect_repair.c says what that is)
 * and reporting each thing that goes. A sound store is left as a mount and an orderly stop would leave it. On failure it is no worse,
 * and can be repaired again. */
int inspect_repair(const char *path, inspect_report report, void *ctx, struct inspect_repaired *ret_repaired, char *err);

/* One text line per record or entry, with file name and byte offset, in file order. what: NULL for all, else one of
 * "journal", "index", "segments", "big" or a file's name. */
typedef void (*inspect_line)(void *ctx, const char *line);
int inspect_dump(const char *path, const char *what, bool even_if_busy, inspect_line line, void *ctx, char *err);
