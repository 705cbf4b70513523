/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stats: the names of operations, and percentiles of their latencies. Counting itself is the owner's.
 */
#include "stats.h"

#include "util.h"

const char *const larder_op_names[LARDER_OP_COUNT] = {
    [LARDER_OP_LOOKUP] = "lookup",   [LARDER_OP_GETATTR] = "getattr", [LARDER_OP_SETATTR] = "setattr",
    [LARDER_OP_OPEN] = "open",       [LARDER_OP_CREATE] = "create",   [LARDER_OP_READ] = "read",
    [LARDER_OP_WRITE] = "write",     [LARDER_OP_FLUSH] = "flush",     [LARDER_OP_FSYNC] = "fsync",
    [LARDER_OP_RELEASE] = "release", [LARDER_OP_UNLINK] = "unlink",   [LARDER_OP_RENAME] = "rename",
    [LARDER_OP_MKDIR] = "mkdir",     [LARDER_OP_READDIR] = "readdir", [LARDER_OP_XATTR] = "xattr",
    [LARDER_OP_OTHER] = "other",
};
_Static_assert(LARDER_OP_OTHER + 1 == LARDER_OP_COUNT, "every operation has a name");

/* How many samples make up `percent` of them: at least one, at most all. */
static uint64_t latency_rank(uint64_t samples, double percent)
{
    double exact = (double)samples * percent / 100.0;
    uint64_t rank;

    if (!(exact > 1.0)) /* a NaN as well */
        return 1;
    if (exact >= (double)samples)
        return samples;
    rank = (uint64_t)exact;
    return (double)rank < exact ? rank + 1 : rank;
}

uint64_t larder_latency_percentile(const struct larder_latency *h, double percent)
{
    uint64_t samples = 0, below = 0, rank;

    /* Not h->count: it is counted beside the buckets, and may be a sample ahead or behind. */
    for (unsigned i = 0; i < LARDER_LATENCY_BUCKETS; i++)
        samples += h->buckets[i];
    if (samples == 0)
        return 0;
    rank = latency_rank(samples, percent);
    for (unsigned i = 0; i < LARDER_LATENCY_BUCKETS - 1; i++) {
        below += h->buckets[i];
        if (below >= rank)
            return MIN(512ull << i, h->max_ns);
    }
    return h->max_ns; /* the last bucket has no upper edge */
}
