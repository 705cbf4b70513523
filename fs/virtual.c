/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * virtual: numbers, attributes and texts of the files that are not stored.
 *
 * Numbers have bit 63 set; the engine's never have (generation < 2^31). `.stats` of directory D is D with
 * that bit. The files of .larder and snapshots take slots the engine cannot have.
 *
 * Who may read them: `.stats` of a directory who may read the directory, events (they have names in them) the owner of
 * the mount, the others anyone who gets in. No text but events holds a name of a key.
 *
 * Lines and series come from LARDER_STATS alone, so a number exists everywhere or nowhere. Names are stable.
 */
#include "fs/virtual.h"

#include <errno.h>
#include <unistd.h>

#include "fs/confine.h"
#include "fs/options.h"
#include "fs/sampled.h"

#define VIRTUAL_BIT (1ull << 63)
#define VIRTUAL_SNAPSHOTS (VIRTUAL_BIT | 0x7fffffffull << 32) /* + a number below 2^31 */
#define VIRTUAL_SPECIAL (VIRTUAL_BIT | 0x7fffffffull << 32 | 0xfffffff0ull) /* + enum virtual_kind */

static const struct {
    const char *name;
    enum virtual_kind kind;
} virtual_entries[] = {
    {"stats.json", VIRTUAL_JSON},
    {"metrics", VIRTUAL_METRICS},
    {"config", VIRTUAL_CONFIG},
    {"events", VIRTUAL_EVENTS},
};

enum virtual_kind virtual_kind_of(uint64_t ino)
{
    if (!(ino & VIRTUAL_BIT))
        return VIRTUAL_NONE;
    if (ino > VIRTUAL_SPECIAL)
        return (enum virtual_kind)(ino - VIRTUAL_SPECIAL);
    return ino >= VIRTUAL_SNAPSHOTS ? VIRTUAL_SNAPSHOT : VIRTUAL_STATS;
}

uint64_t virtual_snapshot_ino(uint32_t no)
{
    return VIRTUAL_SNAPSHOTS + (no & 0x7fffffff);
}

bool virtual_name_is_reserved(uint64_t parent, const char *name)
{
    if (name[0] != '.')
        return parent & VIRTUAL_BIT;
    return (parent & VIRTUAL_BIT) || strcmp(name, ".stats") == 0 ||
           (parent == LARDER_ROOT && strcmp(name, ".larder") == 0);
}

const char *virtual_entry(unsigned i, uint64_t *ret_ino)
{
    if (i >= ARRAY_COUNT(virtual_entries))
        return NULL;
    *ret_ino = VIRTUAL_SPECIAL + virtual_entries[i].kind;
    return virtual_entries[i].name;
}

uint64_t virtual_find(uint64_t parent, const char *name)
{
    if (virtual_kind_of(parent) == VIRTUAL_DIRECTORY) {
        uint64_t ino;
        const char *entry;

        for (unsigned i = 0; (entry = virtual_entry(i, &ino)); i++)
            if (strcmp(entry, name) == 0)
                return ino;
        return 0;
    }
    if (!virtual_name_is_reserved(parent, name))
        return 0;
    return strcmp(name, ".stats") == 0 ? parent | VIRTUAL_BIT : VIRTUAL_SPECIAL + VIRTUAL_DIRECTORY;
}

/* The numbers of a directory are for who may read it. One that is gone is for nobody. */
static void virtual_stat_subtree(struct fs *fs, uint64_t directory, struct stat *st)
{
    struct larder_attr attr;

    st->st_mode = S_IFREG;
    if (larder_getattr(fs->larder, directory, &attr) < 0)
        return;
    st->st_mode |= attr.mode & 0444;
    st->st_uid = attr.uid;
    st->st_gid = attr.gid;
}

void virtual_stat(struct fs *fs, uint64_t ino, struct stat *ret_stat)
{
    enum virtual_kind kind = virtual_kind_of(ino);
    uint64_t oldest, newest;

    if (kind == VIRTUAL_SNAPSHOT && sampled_snapshot_stat(fs, ino, ret_stat) == 0)
        return;
    *ret_stat = (struct stat){
        .st_ino = ino,
        .st_mode = kind == VIRTUAL_DIRECTORY ? S_IFDIR | 0555
                   : kind == VIRTUAL_EVENTS  ? S_IFREG | 0400
                                             : S_IFREG | 0444,
        .st_nlink = kind == VIRTUAL_DIRECTORY ? 2 : 1,
        .st_uid = fs->uid,
        .st_gid = fs->gid,
        .st_blksize = 4096,
    };
    ret_stat->st_mtim.tv_sec = fs->start_wall_ns / (int64_t)NS_PER_S;
    ret_stat->st_mtim.tv_nsec = fs->start_wall_ns % (int64_t)NS_PER_S;
    ret_stat->st_atim = ret_stat->st_ctim = ret_stat->st_mtim;
    if (kind == VIRTUAL_STATS && ino != (LARDER_ROOT | VIRTUAL_BIT))
        virtual_stat_subtree(fs, ino & ~VIRTUAL_BIT, ret_stat);
    if (kind == VIRTUAL_EVENTS) {
        larder_events_range(fs->larder, &oldest, &newest);
        ret_stat->st_size = (off_t)newest; /* so that tail -f sees it grow */
    }
}

bool virtual_open_waits(uint64_t ino)
{
    return virtual_kind_of(ino) == VIRTUAL_STATS && ino != (LARDER_ROOT | VIRTUAL_BIT);
}

static double virtual_ratio(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0.0;
}

struct virtual_ratios {
    double hit, compression, full;
};

static struct virtual_ratios virtual_ratios_of(const struct larder_stats *s)
{
    return (struct virtual_ratios){
        .hit = virtual_ratio(s->hits, s->hits + s->misses),
        .compression = virtual_ratio(s->logical_bytes, s->stored_bytes),
        .full = virtual_ratio(s->used_bytes, s->quota_bytes),
    };
}

static void virtual_add_stats(const struct larder_stats *s, struct text *t)
{
    struct virtual_ratios ratios = virtual_ratios_of(s);

#define X(kind, unit, name, help) text_add(t, #name " %llu\n", (unsigned long long)s->name);
    LARDER_STATS(X)
#undef X
    for (int op = 0; op < LARDER_OP_COUNT; op++) {
        const struct larder_latency *h = &s->latency[op];
        const char *name = larder_op_names[op];

        text_add(t, "latency_%s_count %llu\n", name, (unsigned long long)h->count);
        text_add(t, "latency_%s_p50_ns %llu\n", name, (unsigned long long)larder_latency_percentile(h, 50));
        text_add(t, "latency_%s_p99_ns %llu\n", name, (unsigned long long)larder_latency_percentile(h, 99));
        text_add(t, "latency_%s_max_ns %llu\n", name, (unsigned long long)h->max_ns);
    }
    text_add(t, "hit_ratio %.4f\n", ratios.hit);
    text_add(t, "compression_ratio %.4f\n", ratios.compression);
    text_add(t, "full_ratio %.4f\n", ratios.full);
}

static int virtual_add_subtree(struct fs *fs, uint64_t directory, struct text *t)
{
    struct larder_subtree s;
    int r = larder_subtree(fs->larder, directory, &s);

    if (r < 0)
        return r;
    text_add(t, "entries %llu\n", (unsigned long long)s.entries);
    text_add(t, "directories %llu\n", (unsigned long long)s.directories);
    text_add(t, "logical_bytes %llu\n", (unsigned long long)s.logical_bytes);
    text_add(t, "stored_bytes %llu\n", (unsigned long long)s.stored_bytes);
    text_add(t, "hits %llu\n", (unsigned long long)s.hits);
    text_add(t, "pinned %llu\n", (unsigned long long)s.pinned);
    text_add(t, "open_files %llu\n", (unsigned long long)s.open_files);
    text_add(t, "compression_ratio %.4f\n", virtual_ratio(s.logical_bytes, s.stored_bytes));
    return 0;
}

int virtual_stats_text(struct fs *fs, uint64_t directory, struct text *t)
{
    _cleanup_free_ struct larder_stats *s = NULL;

    if (directory != LARDER_ROOT)
        return virtual_add_subtree(fs, directory, t);
    s = malloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    larder_stats(fs->larder, s);
    virtual_add_stats(s, t);
    return 0;
}

static void virtual_add_json(const struct larder_stats *s, struct text *t)
{
    struct virtual_ratios ratios = virtual_ratios_of(s);

    text_add(t, "{\n  \"version\": \"%s\",\n", LARDER_VERSION);
#define X(kind, unit, name, help) text_add(t, "  \"" #name "\": %llu,\n", (unsigned long long)s->name);
    LARDER_STATS(X)
#undef X
    text_add(t, "  \"latency\": {\n");
    for (int op = 0; op < LARDER_OP_COUNT; op++) {
        const struct larder_latency *h = &s->latency[op];

        text_add(
            t,
            "    \"%s\": {\"count\": %llu, \"total_ns\": %llu, \"p50_ns\": %llu, \"p99_ns\": %llu, \"max_ns\": %llu}%s\n",
            larder_op_names[op], (unsigned long long)h->count, (unsigned long long)h->total_ns,
            (unsigned long long)larder_latency_percentile(h, 50),
            (unsigned long long)larder_latency_percentile(h, 99), (unsigned long long)h->max_ns,
            op + 1 < LARDER_OP_COUNT ? "," : "");
    }
    text_add(t, "  },\n  \"hit_ratio\": %.4f,\n  \"compression_ratio\": %.4f,\n  \"full_ratio\": %.4f\n}\n",
             ratios.hit, ratios.compression, ratios.full);
}

enum virtual_metric { VIRTUAL_METRIC_COUNTER, VIRTUAL_METRIC_GAUGE };
enum virtual_unit { VIRTUAL_UNIT_COUNT, VIRTUAL_UNIT_BYTES, VIRTUAL_UNIT_NS };

/* Prometheus names: base units, counters end in _total. */
static void virtual_add_metric(struct text *t, enum virtual_metric metric, enum virtual_unit unit,
                               const char *name, const char *help, uint64_t value)
{
    size_t stem = strlen(name);
    const char *unit_suffix = "", *suffix = metric == VIRTUAL_METRIC_COUNTER ? "_total" : "";
    const char *type = metric == VIRTUAL_METRIC_COUNTER ? "counter" : "gauge";

    if (unit == VIRTUAL_UNIT_NS && stem > 3) {
        stem -= 3; /* "_ns" */
        unit_suffix = "_seconds";
    }
    text_add(t, "# HELP larder_%.*s%s%s %s\n# TYPE larder_%.*s%s%s %s\n", (int)stem, name, unit_suffix,
             suffix, help, (int)stem, name, unit_suffix, suffix, type);
    if (unit == VIRTUAL_UNIT_NS)
        text_add(t, "larder_%.*s%s%s %.9f\n", (int)stem, name, unit_suffix, suffix, (double)value / 1e9);
    else
        text_add(t, "larder_%s%s %llu\n", name, suffix, (unsigned long long)value);
}

static void virtual_add_metrics(const struct larder_stats *s, struct text *t)
{
#define X(kind, unit, name, help) \
    virtual_add_metric(t, VIRTUAL_METRIC_##kind, VIRTUAL_UNIT_##unit, #name, help, s->name);
    LARDER_STATS(X)
#undef X
    text_add(t, "# HELP larder_request_duration_seconds time the daemon took for a request\n"
                "# TYPE larder_request_duration_seconds histogram\n");
    for (int op = 0; op < LARDER_OP_COUNT; op++) {
        const struct larder_latency *h = &s->latency[op];
        const char *name = larder_op_names[op];
        uint64_t below = 0;

        /* The last bucket has no upper edge: it is +Inf, which must equal the count. */
        for (int i = 0; i < LARDER_LATENCY_BUCKETS - 1; i++) {
            below += h->buckets[i];
            text_add(t, "larder_request_duration_seconds_bucket{op=\"%s\",le=\"%.9g\"} %llu\n", name,
                     (double)(512ull << i) / 1e9, (unsigned long long)below);
        }
        below += h->buckets[LARDER_LATENCY_BUCKETS - 1];
        text_add(t, "larder_request_duration_seconds_bucket{op=\"%s\",le=\"+Inf\"} %llu\n", name,
                 (unsigned long long)below);
        text_add(t, "larder_request_duration_seconds_sum{op=\"%s\"} %.9f\n", name, (double)h->total_ns / 1e9);
        text_add(t, "larder_request_duration_seconds_count{op=\"%s\"} %llu\n", name,
                 (unsigned long long)below);
    }
}

/* One line each: name value source. A value with spaces is the last case one would want; there is none. */
static void virtual_add_config(struct fs *fs, struct text *t)
{
    const char *name, *value, *source;
    bool uring = atomic_load(&fs->uring_seen);

    for (unsigned i = 0; options_row(fs->opts, i, &name, &value, &source); i++)
        text_add(t, "%s %s %s\n", name, value, source);
    text_add(t, "io_uring_active %s %s\n", uring ? "on" : "off",
             uring ? "enabled in kernel and libfuse" : fs->io_uring.reason); /* rings may come late */
    text_add(t, "passthrough_active %s %s\n", fs->passthrough.active ? "on" : "off", fs->passthrough.reason);
    text_add(t, "direct_writes_active %s %s\n", fs->direct_writes ? "on" : "off",
             fs->direct_writes ? "offered by the kernel" : "the kernel does not offer them (Linux 6.6 or newer)");
    for (int i = 0; i < CONFINE_MEASURES; i++)
        text_add(t, "%s_active %s %s\n", confine_name((enum confine_measure)i),
                 fs->confined->measures[i].active ? "on" : "off", fs->confined->measures[i].reason);
    text_add(t, "kernel_protocol 7.%u machine\n", fs->proto_minor);
    text_add(t, "libfuse %s machine\n", fuse_pkgversion());
    text_add(t, "version %s machine\n", LARDER_VERSION);
    text_add(t, "pid %d machine\n", (int)getpid());
}

int virtual_snapshot(struct fs *fs, struct handle *h)
{
    _cleanup_free_ struct larder_stats *s = NULL;
    enum virtual_kind kind = virtual_kind_of(h->node);
    int r = 0;

    if (kind == VIRTUAL_JSON || kind == VIRTUAL_METRICS) {
        s = malloc(sizeof(*s));
        if (!s)
            return -ENOMEM;
        larder_stats(fs->larder, s);
    }
    if (kind == VIRTUAL_STATS)
        r = virtual_stats_text(fs, h->node & ~VIRTUAL_BIT, &h->text);
    else if (kind == VIRTUAL_JSON)
        virtual_add_json(s, &h->text);
    else if (kind == VIRTUAL_METRICS)
        virtual_add_metrics(s, &h->text);
    else if (kind == VIRTUAL_CONFIG)
        virtual_add_config(fs, &h->text);
    return r < 0 ? r : h->text.failed ? -ENOMEM : 0;
}

/* File offsets are the engine's positions, except that a reader who starts below what is still kept reads
 * on from there: then, and from then on, its offsets lie h->shift below. */
static void virtual_read_events(struct fs *fs, struct handle *h, char *buf, size_t bytes, uint64_t offset,
                                size_t *ret_bytes)
{
    uint64_t position = offset + atomic_load(&h->shift);

    larder_events_read(fs->larder, &position, buf, bytes, ret_bytes);
    atomic_store(&h->shift, position > offset ? position - offset : 0);
}

void virtual_read(struct fs *fs, struct handle *h, char *buf, size_t bytes, uint64_t offset,
                  const char **ret_data, size_t *ret_bytes)
{
    *ret_data = buf;
    *ret_bytes = 0;
    if (virtual_kind_of(h->node) == VIRTUAL_EVENTS) {
        virtual_read_events(fs, h, buf, bytes, offset, ret_bytes);
    } else if (offset < h->text.bytes) {
        *ret_data = h->text.data + offset;
        *ret_bytes = MIN(bytes, h->text.bytes - (size_t)offset);
    }
}
