/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stats: one row per number. The row makes the struct field, the `.stats` line, the JSON member and the Prometheus
 * series; a number that is not here does not exist. COUNTER rows only grow while mounted, GAUGE rows are now.
 * Units: COUNT, BYTES, NS.
 */
#pragma once

#include <stdint.h>

#define LARDER_STATS(X)                                                                                      \
    X(COUNTER, COUNT, lookups, "names the kernel asked for")                                                 \
    X(COUNTER, COUNT, hits, "opens of an existing key for reading; see hits_sampled")                        \
    X(GAUGE, COUNT, hits_sampled, "1 with hits=sampled: hits counts lookups, few for a key in use")                 \
    X(COUNTER, COUNT, misses, "lookups of a name that was not there, or had expired")                        \
    X(COUNTER, COUNT, negative_hits, "misses of a name that had been missed or removed recently")            \
    X(COUNTER, COUNT, opens, "files opened")                                                                 \
    X(COUNTER, COUNT, puts, "values committed")                                                              \
    X(COUNTER, COUNT, replaced, "values replaced by a newer one, by rewriting or renaming over them")        \
    X(COUNTER, COUNT, unlinked, "files removed by clients")                                                  \
    X(COUNTER, COUNT, evicted_quota, "keys evicted to stay under quota")                                     \
    X(COUNTER, COUNT, evicted_entries, "keys evicted to stay under max_entries")                             \
    X(COUNTER, COUNT, evicted_min_free, "keys evicted because the host file system was full, or to leave min_free on it")            \
    X(COUNTER, BYTES, evicted_bytes, "stored bytes of evicted keys")                                         \
    X(COUNTER, COUNT, expired_ttl, "keys expired by ttl")                                                    \
    X(COUNTER, COUNT, expired_idle, "keys expired by idle")                                                  \
    X(COUNTER, COUNT, expired_expires, "keys that reached their expires time")                               \
    X(COUNTER, BYTES, read_bytes, "bytes read by clients through the daemon")                                \
    X(COUNTER, BYTES, written_bytes, "bytes written by clients")                                             \
    X(COUNTER, COUNT, passthrough_opens, "opens answered with the backing file itself")                      \
    X(GAUGE, BYTES, quota_bytes, "what the store may take on disk")                                          \
    X(GAUGE, BYTES, used_bytes, "what the store takes on disk, everything included, rounded up")             \
    X(GAUGE, BYTES, stored_bytes, "value bytes as stored, after compression")                                \
    X(GAUGE, BYTES, logical_bytes, "value bytes as clients see them")                                        \
    X(GAUGE, BYTES, dead_bytes, "bytes in segments that belong to no key any more and are not yet given back") \
    X(GAUGE, BYTES, staged_bytes, "bytes held in memory for open files")                                     \
    X(GAUGE, COUNT, entries, "keys: files, symlinks, specials")                                              \
    X(GAUGE, COUNT, entries_max, "bound on entries; 0: none")                                                \
    X(GAUGE, COUNT, directories, "directories, the root included")                                           \
    X(GAUGE, COUNT, open_files, "file handles open now")                                                     \
    X(GAUGE, COUNT, pinned, "keys pinned by a policy of their own")                                          \
    X(GAUGE, COUNT, segments, "segment files")                                                               \
    X(GAUGE, COUNT, big_files, "values in files of their own")                                               \
    X(COUNTER, COUNT, segments_cleaned, "segments emptied by cleaning")                                      \
    X(COUNTER, BYTES, cleaned_bytes, "live bytes moved by cleaning")                                         \
    X(GAUGE, BYTES, journal_bytes, "journal on disk")                                                        \
    X(GAUGE, BYTES, checkpoint_bytes, "newest checkpoint on disk")                                           \
    X(COUNTER, COUNT, checkpoints, "checkpoints written since mount")                                        \
    X(COUNTER, COUNT, checkpoint_failures, "checkpoints given up")                                           \
    X(GAUGE, NS, replay_ns, "time the index took to load at mount")                                          \
    X(GAUGE, COUNT, replay_entries, "journal and checkpoint entries applied at mount")                       \
    X(GAUGE, COUNT, clean_start, "1 if the last stop was orderly")                                           \
    X(COUNTER, COUNT, corrupt_records, "doubtful records found, each turned into a miss")                    \
    X(COUNTER, COUNT, unreadable_values, "values the device failed to read, each turned into a miss")         \
    X(COUNTER, COUNT, lost_values, "values a power cut took before they were synced, each turned into a miss") \
    X(COUNTER, COUNT, orphans_removed, "files in the store nothing pointed to, removed at mount")            \
    X(COUNTER, COUNT, errors_enospc, "requests answered ENOSPC")                                             \
    X(COUNTER, COUNT, errors_eio, "requests answered EIO")                                                   \
    X(COUNTER, COUNT, errors_other, "requests answered another unexpected error")                            \
    X(COUNTER, COUNT, stalls, "writes that had to wait for eviction")                                        \
    X(COUNTER, COUNT, stuck_requests, "requests that made no progress for so long that the watchdog told of it")   \
    X(GAUGE, NS, stuck_ns, "how long the request that is stuck longest has made no progress; 0: none is")           \
    X(GAUGE, COUNT, read_only, "1 after a failed journal write or a failed sync: the mount serves, but takes nothing new")    \
    X(GAUGE, NS, uptime_ns, "time since mount")

enum larder_op {
    LARDER_OP_LOOKUP,
    LARDER_OP_GETATTR,
    LARDER_OP_SETATTR,
    LARDER_OP_OPEN,
    LARDER_OP_CREATE,
    LARDER_OP_READ,
    LARDER_OP_WRITE,
    LARDER_OP_FLUSH,
    LARDER_OP_FSYNC,
    LARDER_OP_RELEASE,
    LARDER_OP_UNLINK,
    LARDER_OP_RENAME,
    LARDER_OP_MKDIR,
    LARDER_OP_READDIR,
    LARDER_OP_XATTR,
    LARDER_OP_OTHER,
    LARDER_OP_COUNT
};

/* "lookup", "getattr", ... */
extern const char *const larder_op_names[LARDER_OP_COUNT];

/* Bucket i counts samples of [2^i, 2^(i+1)) * 256 ns, the first also below, the last also above. */
#define LARDER_LATENCY_BUCKETS 24

struct larder_latency {
    uint64_t count, total_ns, max_ns;
    uint64_t buckets[LARDER_LATENCY_BUCKETS];
};
/* The value below which `percent` of the samples lie, as the upper edge of its bucket, or the largest sample if
 * that is less; 0 without samples. */
uint64_t larder_latency_percentile(const struct larder_latency *h, double percent);

struct larder_stats {
#define X(kind, unit, name, help) uint64_t name;
    LARDER_STATS(X)
#undef X
    struct larder_latency latency[LARDER_OP_COUNT];
};
