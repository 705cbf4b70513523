/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_stats: numbers and the stream of events. Counting is relaxed atomics and costs nanoseconds; gauges are read
 * when somebody asks.
 *
 * Keys appear in the event stream alone, which its owner only may read.
 */
#include "cache.h"

#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t relaxed(const _Atomic uint64_t *p)
{
    return atomic_load_explicit(p, memory_order_relaxed);
}

static void read_counters(const struct larder *l, struct larder_stats *s)
{
#define X(kind, unit, name, help) s->name = relaxed(&l->counters.name);
    LARDER_STATS(X)
#undef X
    for (size_t op = 0; op < LARDER_OP_COUNT; op++) {
        s->latency[op].count = relaxed(&l->counters.latency[op].count);
        s->latency[op].total_ns = relaxed(&l->counters.latency[op].total_ns);
        s->latency[op].max_ns = relaxed(&l->counters.latency[op].max_ns);
        for (size_t i = 0; i < LARDER_LATENCY_BUCKETS; i++)
            s->latency[op].buckets[i] = relaxed(&l->counters.latency[op].buckets[i]);
    }
}

static void read_index_gauges(struct larder *l, struct larder_stats *s)
{
    struct tree_totals totals;

    lock_take(&l->lock);
    tree_totals(l->tree, &totals);
    s->entries = l->entries;
    s->directories = totals.directories;
    s->open_files = l->handle_count;
    s->pinned = l->pinned;
    s->stored_bytes = l->stored_bytes;
    s->logical_bytes = l->logical_bytes;
    lock_give(&l->lock);
}

void larder_stats(struct larder *l, struct larder_stats *ret_stats)
{
    struct store_usage usage;

    CHECK_OBJ(l, LARDER_MAGIC);
    read_counters(l, ret_stats);
    read_index_gauges(l, ret_stats);
    store_usage(l->store, &usage);
    ret_stats->quota_bytes = atomic_load(&l->base_limit_bytes);
    ret_stats->used_bytes = quota_charged(&l->quota);
    ret_stats->dead_bytes = usage.dead_bytes;
    ret_stats->segments = usage.segment_count;
    ret_stats->big_files = usage.big_count;
    ret_stats->staged_bytes = content_memory_bytes();
    ret_stats->entries_max = l->opts.max_entries;
    ret_stats->journal_bytes = journal_disk_bytes(l->journal);
    ret_stats->checkpoint_bytes = journal_checkpoint_bytes(l->journal);
    ret_stats->read_only = l->opts.read_only || atomic_load(&l->failed);
    ret_stats->hits_sampled = l->opts.hits == LARDER_HITS_SAMPLED;
    ret_stats->uptime_ns = clock_mono_ns(&l->clock) - l->opened_mono_ns;
}

void larder_space(struct larder *l, struct larder_space *ret_space)
{
    uint64_t limit = quota_limit(&l->quota);
    struct io_space space;

    if (limit == cache_usable_bytes(l))
        limit = atomic_load(&l->base_limit_bytes);
    *ret_space = (struct larder_space){
        .quota_bytes = MAX(limit, quota_charged(&l->quota)),
        .used_bytes = quota_charged(&l->quota),
        .entries_max = l->opts.max_entries,
    };
    ret_space->available_bytes = quota_available(&l->quota);
    if (io_space(l->io, l->dir_fd, &space) == 0)
        ret_space->available_bytes = MIN(ret_space->available_bytes, space.available_bytes);
    lock_take(&l->lock);
    ret_space->entries = l->entries;
    lock_give(&l->lock);
}

void larder_probe(struct larder *l)
{
    struct store_usage usage;

    CHECK_OBJ(l, LARDER_MAGIC);
    lock_take(&l->lock);
    lock_give(&l->lock);
    store_usage(l->store, &usage);
    (void)journal_last_seq(l->journal); /* only its lock is wanted */
}

void larder_report_stuck(struct larder *l, uint64_t newly_stuck, uint64_t worst_ns)
{
    CHECK_OBJ(l, LARDER_MAGIC);
    COUNT_ADD(l, stuck_requests, newly_stuck);
    atomic_store_explicit(&l->counters.stuck_ns, worst_ns, memory_order_relaxed);
}

void larder_count_latency(struct larder *l, enum larder_op op, uint64_t ns)
{
    unsigned bucket = ns < 512 ? 0 : (63u - (unsigned)__builtin_clzll(ns)) - 8u;
    uint64_t max;

    bucket = MIN(bucket, LARDER_LATENCY_BUCKETS - 1);
    atomic_fetch_add_explicit(&l->counters.latency[op].count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&l->counters.latency[op].total_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&l->counters.latency[op].buckets[bucket], 1, memory_order_relaxed);
    max = relaxed(&l->counters.latency[op].max_ns);
    while (ns > max && !atomic_compare_exchange_weak(&l->counters.latency[op].max_ns, &max, ns))
        ;
}

void larder_count_error(struct larder *l, int error)
{
    if (error == ENOSPC || error == -ENOSPC)
        COUNT(l, errors_enospc);
    else if (error == EIO || error == -EIO)
        COUNT(l, errors_eio);
    else
        COUNT(l, errors_other);
}

bool miss_filter_seen(struct larder *l, uint32_t parent_slot, const char *name, size_t name_bytes)
{
    uint64_t hash = XXH3_64bits_withSeed(name, name_bytes, parent_slot) | 1;
    uint64_t *slot = &l->miss_filter[hash >> 32 & (MISS_FILTER_SLOTS - 1)];
    bool seen = *slot == hash;

    *slot = hash;
    return seen;
}

/* ---- events ---- */

int events_init(struct events *e)
{
    lock_init(&e->lock, "events", LOCK_RANK_EVENTS);
    e->ring = malloc(EVENTS_BYTES);
    return e->ring ? 0 : -ENOMEM;
}

void events_fini(struct events *e)
{
    free(e->ring);
    e->ring = NULL;
    lock_fini(&e->lock);
}

/* Forgets whole lines at the old end until `bytes` fit. */
static void events_forget(struct events *e, size_t bytes)
{
    while (e->newest + bytes - e->oldest > EVENTS_BYTES) {
        while (e->ring[e->oldest % EVENTS_BYTES] != '\n')
            e->oldest++;
        e->oldest++;
    }
}

static void events_put(struct events *e, const char *line, size_t bytes)
{
    lock_take(&e->lock);
    events_forget(e, bytes);
    for (size_t i = 0; i < bytes; i++)
        e->ring[(e->newest + i) % EVENTS_BYTES] = line[i];
    e->newest += bytes;
    lock_give(&e->lock);
}

static size_t escape_path(const char *path, size_t path_bytes, char *out, size_t out_bytes)
{
    size_t at = 0;

    for (size_t i = 0; i < path_bytes && at + 5 < out_bytes; i++) {
        unsigned char c = (unsigned char)path[i];
        if (c <= 0x20 || c >= 0x7f || c == '\\')
            at += (size_t)snprintf(out + at, out_bytes - at, "\\%03o", c);
        else
            out[at++] = (char)c;
    }
    return at;
}

#define EVENT_PATH_BYTES 1024u
#define EVENT_LINE_BYTES (EVENT_PATH_BYTES * 4 + 128)

void events_add(struct larder *l, const struct node *n, enum drop_reason reason)
{
    static const char *const reasons[DROP_REASON_COUNT] = {
        [DROP_REMOVED] = "removed",     [DROP_REPLACED] = "replaced", [DROP_QUOTA] = "quota",
        [DROP_ENTRIES] = "max_entries", [DROP_MIN_FREE] = "min_free", [DROP_TTL] = "ttl",
        [DROP_IDLE] = "idle",           [DROP_EXPIRES] = "expires",   [DROP_CORRUPT] = "corrupt"};
    char path[EVENT_PATH_BYTES], line[EVENT_LINE_BYTES];
    uint64_t wall = clock_wall_ns(&l->clock);
    size_t path_bytes, at;
    struct value v;

    node_value(l->tree, n, &v);
    path_bytes = tree_path(l->tree, n, path, sizeof(path));
    at = (size_t)snprintf(line, sizeof(line), "%llu.%03llu %s %llu ", (unsigned long long)(wall / NS_PER_S),
                          (unsigned long long)(wall % NS_PER_S / NS_PER_MS), reasons[reason],
                          (unsigned long long)v.stored_bytes);
    at += escape_path(path, path_bytes, line + at, sizeof(line) - at - 1);
    line[at++] = '\n';
    events_put(&l->events, line, at);
}

void larder_events_range(struct larder *l, uint64_t *ret_oldest, uint64_t *ret_newest)
{
    lock_take(&l->events.lock);
    *ret_oldest = l->events.oldest;
    *ret_newest = l->events.newest;
    lock_give(&l->events.lock);
}

void larder_events_read(struct larder *l, uint64_t *position, char *out, size_t bytes, size_t *ret_bytes)
{
    struct events *e = &l->events;
    size_t count;

    lock_take(&e->lock);
    *position = MAX(*position, e->oldest);
    count = *position < e->newest ? (size_t)MIN(bytes, e->newest - *position) : 0;
    for (size_t i = 0; i < count; i++)
        out[i] = e->ring[(*position + i) % EVENTS_BYTES];
    *position += count;
    lock_give(&e->lock);
    *ret_bytes = count;
}

/* ---- invariants ---- */

void cache_check_invariants(struct larder *l)
{
    uint64_t entries = 0, listed = 0;
    struct store_usage usage;

    lock_assert_held(&l->lock);
    for (uint32_t s = tree_next_slot(l->tree, 0); s; s = tree_next_slot(l->tree, s)) {
        const struct node *n = tree_slot(l->tree, s);
        bool in_list;
        if (!n)
            continue;
        in_list = n->flags & (NODE_LISTED | NODE_HELD);
        listed += in_list;
        entries += !node_is_dir(n) && n->first_dentry;
        assert(in_list == (node_is_evictable(n) && n->first_dentry)); /* C-I1 */
    }
    assert(listed == l->evict.listed + l->evict.held);
    assert(entries == l->entries); /* C-I2 */
    store_usage(l->store, &usage);
    assert(usage.charged_bytes <= quota_charged(&l->quota)); /* C-I3 */
}
