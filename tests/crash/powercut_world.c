/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut_world: the operations. Each is a call or a few of the public API, and what the model makes of it.
 *
 * Nothing here runs in another thread: eviction, expiry, cleaning and checkpoints are called for. Time stands still
 * within an operation. So a seed gives the same recording again.
 */
#include "powercut_world.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define WALL_START_NS 1700000000000000000ull
#define OP_NS (20 * NS_PER_MS)
#define LEAD_NS_MAX 1000u /* of cache time: stamps of use differ, so each use in the same fake nanosecond takes the next */

const struct profile profiles[] = {
    {"mixed", 10, 6, 6, 5, 2, 3, 3, 3, 2, 2, 2, 3, 3, 3, 1, 24 << 10},
    {"small puts", 20, 6, 3, 4, 1, 1, 1, 0, 1, 3, 2, 0, 3, 3, 2, 3000},
    {"big files", 12, 6, 3, 4, 0, 0, 1, 1, 2, 1, 2, 4, 2, 3, 1, 120 << 10},
    {"renames", 6, 12, 14, 3, 4, 6, 2, 0, 0, 1, 1, 0, 1, 3, 1, 6000},
    {"database", 3, 1, 1, 1, 0, 0, 0, 0, 0, 1, 2, 24, 0, 1, 2, 8000},
    {"at quota", 20, 4, 2, 2, 1, 0, 0, 2, 6, 4, 2, 1, 2, 2, 1, 90 << 10},
    {"restarts", 8, 4, 3, 4, 1, 1, 1, 2, 1, 4, 3, 2, 1, 2, 8, 12 << 10},
    {"deadlines", 8, 3, 3, 2, 1, 1, 1, 12, 1, 1, 2, 0, 1, 3, 1, 8000},
    {"cleaning", 16, 3, 2, 8, 0, 0, 0, 0, 1, 10, 2, 1, 2, 2, 4, 5000},
};
const unsigned profile_count = sizeof(profiles) / sizeof(profiles[0]);

static const struct larder_cred cred = {.uid = 0, .gid = 0, .umask = 022};

/* ---- chance and contents ---- */

static uint64_t mix(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull; /* splitmix64, as in powercut.c */

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

uint32_t world_random(struct world *w, uint32_t below)
{
    return (uint32_t)((mix(&w->rng) >> 32) * below >> 32);
}

uint32_t pool_add_data(struct pool *pool, const uint8_t *data, uint32_t bytes)
{
    uint32_t v = pool->count;

    if (v >= VERSIONS_MAX)
        abort(); /* a workload is shorter than that */
    pool->versions[v] = (struct version){.data = malloc(bytes + 1), .bytes = bytes, .same_as = v};
    memcpy(pool->versions[v].data, data, bytes);
    for (uint32_t i = 0; i < v && bytes < 16; i++) /* longer ones begin with their number */
        if (pool->versions[i].bytes == bytes && memcmp(pool->versions[i].data, data, bytes) == 0) {
            pool->versions[v].same_as = i;
            break;
        }
    pool->count++;
    return v;
}

/* flavour 0 is random, 1 compresses well, 2 in part. The first 8 bytes are the version's number. */
uint32_t pool_add(struct pool *pool, uint32_t bytes, unsigned flavour, uint64_t seed)
{
    uint8_t *data = malloc(bytes + 8);
    uint64_t state = seed ^ (uint64_t)pool->count << 32, word = 0;
    uint32_t v;

    for (uint32_t i = 0; i < bytes; i += 8) {
        if (flavour == 0 || i % 512 == 0 || (flavour == 2 && i % 256 < 128))
            word = mix(&state);
        memcpy(data + i, &word, 8);
    }
    if (bytes >= 16)
        memcpy(data, &(uint64_t){pool->count}, 8);
    v = pool_add_data(pool, data, bytes);
    free(data);
    return v;
}

void pool_fini(struct pool *pool)
{
    for (uint32_t i = 0; i < pool->count; i++)
        free(pool->versions[i].data);
    pool->count = 0;
}

void fail(struct world *w, const char *format, ...)
{
    va_list args;

    w->ended = true;
    if (w->failure[0])
        return; /* the first counts */
    va_start(args, format);
    (void)vsnprintf(w->failure, sizeof(w->failure), format, args); /* cut */
    va_end(args);
}

/* ---- clock, opening, closing ---- */

static uint64_t fake_mono(void *ctx)
{
    return ((struct fake_clock *)ctx)->mono_ns;
}

static uint64_t fake_wall(void *ctx)
{
    return ((struct fake_clock *)ctx)->wall_ns;
}

static const struct clock_ops fake_clock_ops = {.mono_ns = fake_mono, .wall_ns = fake_wall};

static void pass_time(struct world *w, uint64_t ns)
{
    w->clock.mono_ns += ns;
    w->clock.wall_ns += ns;
}

uint64_t world_now_ns(const struct world *w)
{
    return w->l ? clock_cache_ns(&w->l->clock) : w->clock.wall_ns;
}

void world_init(struct world *w, struct pool *pool, const struct world_options *opts, uint64_t seed)
{
    w->opts = *opts;
    w->pool = pool;
    w->rng = seed;
    w->clock = (struct fake_clock){.mono_ns = 1000 * NS_PER_S, .wall_ns = WALL_START_NS};
    w->profile = &profiles[0];
    w->now = (struct state){.nodes[1] = {.kind = KIND_DIR, .links = 1, .mode = 0755}, .dir_node[0] = 1};
    w->ids[1] = LARDER_ROOT;
    memset(w->synced_at, 0xff, sizeof(w->synced_at));
}

/* A new moment: what the tree is from now on. */
static void note(struct world *w, bool durable, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void note(struct world *w, bool durable, const char *format, ...)
{
    struct moment *m;
    va_list args;

    if (w->moments == w->moments_allocated) {
        w->moments_allocated = w->moments * 2 + 64;
        w->history = realloc(w->history, w->moments_allocated * sizeof(*w->history));
        if (!w->history)
            abort();
    }
    m = &w->history[w->moments];
    m->state = w->now;
    m->floor = durable || w->moments == 0 ? w->moments : w->history[w->moments - 1].floor;
    va_start(args, format);
    (void)vsnprintf(m->text, sizeof(m->text), format, args); /* cut */
    va_end(args);
    m->wall_ns = w->clock.wall_ns;
    m->inner = false;
    if (w->pc)
        powercut_mark(w->pc, w->moments);
    w->moments++;
}

static void forget_name(struct state *s, unsigned dir, unsigned name)
{
    struct mnode *n = &s->nodes[s->child[dir][name]];

    s->child[dir][name] = 0;
    if (--n->links > 0)
        return;
    if (n->kind == KIND_DIR)
        s->dir_node[n->dir] = 0;
    n->kind = KIND_FREE;
}

static void name_gone(void *ctx, uint64_t parent, uint64_t child, const char *name, size_t name_bytes) /* larder_callbacks */
{
    struct world *w = ctx;
    unsigned node = 1, dir, index;
    char text[8] = "";

    (void)child;
    if (w->observing)
        return;
    memcpy(text, name, MIN(name_bytes, sizeof(text) - 1)); /* it is not terminated */
    index = (unsigned)atoi(text + 1);
    while (node < NODES && (w->now.nodes[node].kind != KIND_DIR || w->ids[node] != parent))
        node++;
    if (node == NODES || index >= NAMES || !w->now.child[w->now.nodes[node].dir][index]) {
        fail(w, "the kernel was told that %s left, which nobody made", text);
        return;
    }
    dir = w->now.nodes[node].dir;
    forget_name(&w->now, dir, index);
    note(w, false, "left: %u/%s", dir, text);
    w->history[w->moments - 1].inner = true;
}

void world_note_base(struct world *w)
{
    note(w, true, "begin");
}

int world_open(struct world *w)
{
    struct larder_callbacks callbacks = {.name_gone = name_gone, .ctx = w};
    struct cache_host host = {.io = memdisk_io(w->disk),
                              .dir_fd = memdisk_open_root(w->disk),
                              .clock_ops = &fake_clock_ops,
                              .clock_ctx = &w->clock,
                              .boot_id = {1, 2, 3, w->boot}};
    struct larder_options opts;
    struct errtext err = {.text = ""};
    int r;

    larder_options_init(&opts);
    opts.quota_bytes = w->opts.quota_bytes;
    opts.big_bytes = w->opts.big_bytes;
    opts.durability = w->opts.durable_close ? LARDER_DURABILITY_FSYNC : LARDER_DURABILITY_CLOSE;
    opts.root_uid = opts.root_gid = 0;
    if (w->moments == 0)
        world_note_base(w);
    r = cache_open_on(&host, "disk", &opts, &callbacks, &w->l, &err);
    if (r < 0) {
        w->l = NULL;
        fail(w, "cannot be opened: %s", err.text);
    } else if (world_now_ns(w) - w->clock.wall_ns > LEAD_NS_MAX) {
        fail(w, "cache time is %llu when the wall clock, never set back, says %llu", (unsigned long long)world_now_ns(w),
             (unsigned long long)w->clock.wall_ns);
    }
    return r;
}

static void drop_db_file(struct world *w)
{
    if (w->db_file)
        larder_abandon(w->db_file);
    w->db_file = NULL;
}

static void drop_held(struct world *w)
{
    if (w->held)
        larder_release(w->held);
    w->held = NULL;
}

void world_abandon(struct world *w)
{
    if (!w->l)
        return;
    drop_db_file(w);
    drop_held(w);
    atomic_store(&w->l->failed, true); /* no checkpoint: what was answered for is with the kernel */
    (void)larder_close(w->l);          /* -EIO, for that reason */
    w->l = NULL;
}

void world_close(struct world *w)
{
    int r;

    drop_db_file(w);
    drop_held(w);
    r = larder_close(w->l);
    w->l = NULL;
    if (r < 0)
        fail(w, "close: %s", strerror(-r));
    else
        note(w, true, "orderly stop");
}

void world_fini(struct world *w)
{
    world_abandon(w);
    if (w->pc)
        powercut_free(w->pc);
    else
        memdisk_free(w->disk);
    w->pc = NULL;
    w->disk = NULL;
    free(w->history);
    free(w->db_events);
    free(w->db_base);
    w->history = NULL;
    w->db_events = NULL;
    w->db_base = NULL;
}

/* ---- picking ---- */

static bool is_due(const struct world *w, const struct mnode *n)
{
    return n->ttl_ns > 0 && n->written_ns + n->ttl_ns <= world_now_ns(w);
}

static unsigned pick_dir(struct world *w)
{
    unsigned dir = world_random(w, 3) ? 0 : world_random(w, DIRS);

    return w->now.dir_node[dir] ? dir : 0;
}

/* A name in use by a node of that kind; false when a few tries found none. */
static bool pick_name(struct world *w, enum kind kind, unsigned *ret_dir, unsigned *ret_name)
{
    for (unsigned tries = 0; tries < 12; tries++) {
        unsigned dir = pick_dir(w), name = world_random(w, NAMES);
        const struct mnode *n = &w->now.nodes[w->now.child[dir][name]];
        if (w->now.child[dir][name] && n->kind == kind && !is_due(w, n)) {
            *ret_dir = dir;
            *ret_name = name;
            return true;
        }
    }
    return false;
}

static unsigned node_alloc(struct world *w, enum kind kind, uint64_t id)
{
    unsigned node = 2;

    while (node < NODES && w->now.nodes[node].kind != KIND_FREE)
        node++;
    if (node == NODES) {
        fail(w, "the model has no room");
        return 0;
    }
    if (w->refs[node])
        larder_forget(w->l, w->ids[node], w->refs[node]);
    w->now.nodes[node] = (struct mnode){.kind = (uint8_t)kind};
    w->ids[node] = id;
    w->refs[node] = 1; /* every call that makes one gives one */
    return node;
}

static void put_name(struct world *w, unsigned dir, unsigned name, unsigned node)
{
    w->now.child[dir][name] = (uint8_t)node;
    w->now.nodes[node].links++;
}

static uint64_t dir_id(const struct world *w, unsigned dir)
{
    return w->ids[w->now.dir_node[dir]];
}

static const char *text_of(unsigned name, char out[8])
{
    (void)snprintf(out, 8, "n%u", name);
    return out;
}

/* Errors that a full cache may give end the history; any other is a failure. */
static bool went_well(struct world *w, int r, const char *what)
{
    if (r >= 0)
        return true;
    w->ended = true;
    if (r != -ENOSPC)
        fail(w, "%s: %s", what, strerror(-r));
    return false;
}

static uint32_t pick_bytes(struct world *w)
{
    static const uint32_t edges[] = {0, 1, 7, 100, 511, 512, 513, 3900, 4096, 4097};
    uint32_t max = w->profile->bytes_max;

    if (w->tiny)
        return world_random(w, 900);
    switch (world_random(w, 8)) {
    case 0:
        return edges[world_random(w, sizeof(edges) / sizeof(edges[0]))];
    case 1:
        return w->opts.big_bytes - 1 + world_random(w, 3);
    case 2:
    case 3:
        return world_random(w, max);
    case 4:
        return world_random(w, MIN(max, 6000u));
    default:
        return world_random(w, 900);
    }
}

/* ---- puts ---- */

static void published(struct world *w, unsigned node, uint32_t version)
{
    struct mnode *n = &w->now.nodes[node];

    n->version = version;
    n->written_ns = world_now_ns(w);
    n->small = w->pool->versions[version].bytes <= w->opts.big_bytes;
}

static int write_version(struct world *w, struct larder_file *f, uint32_t version)
{
    const struct version *v = &w->pool->versions[version];
    uint32_t step = world_random(w, 2) ? v->bytes : 1 + v->bytes / (1 + world_random(w, 4));
    int r = 0;

    for (uint32_t at = 0; at < v->bytes && r == 0; at += step)
        r = larder_write(f, v->data + at, MIN(step, v->bytes - at), at, false);
    return r;
}

enum commit_steps { FSYNC_FIRST = 1, FLUSH = 2, FSYNC_AFTER = 4 };

/* Commits what was written; the node shows the version, and a new one has its name, from the first step on. */
static bool commit_steps(struct world *w, struct larder_file *f, unsigned steps, unsigned node, uint32_t version, const char *what,
                         uint8_t *new_name)
{
    for (unsigned step = 1; step <= FSYNC_AFTER; step <<= 1) {
        bool durable = step != FLUSH || w->opts.durable_close;
        int r;

        if (!(steps & step))
            continue;
        r = step == FLUSH ? larder_flush(f) : larder_fsync(f, world_random(w, 2));
        if (!went_well(w, r, what))
            return false;
        published(w, node, version);
        if (new_name && *new_name == 0) {
            *new_name = (uint8_t)node;
            w->now.nodes[node].links = 1;
        }
        if (durable)
            w->synced_at[version] = MIN(w->synced_at[version], w->moments);
        note(w, durable, "%s v%u %u bytes: %s", what, version, w->pool->versions[version].bytes,
             step == FLUSH ? durable ? "flush (durable)" : "flush" : "fsync");
    }
    return true;
}

static unsigned random_steps(struct world *w)
{
    static const uint8_t steps[] = {FLUSH, FLUSH, FLUSH, FLUSH, FSYNC_FIRST | FLUSH, FLUSH | FSYNC_AFTER, FSYNC_FIRST | FLUSH | FSYNC_AFTER};

    return steps[world_random(w, sizeof(steps))];
}

/* A new file or a new version of one. */
static bool put(struct world *w, unsigned dir, unsigned name, uint32_t version, unsigned steps)
{
    unsigned node = w->now.child[dir][name];
    struct larder_attr attr;
    struct larder_file *f;
    char text[8], what[40];
    bool is_new = node == 0;
    int r;

    if (is_new)
        r = larder_create(w->l, dir_id(w, dir), text_of(name, text), strlen(text_of(name, text)), 0644, O_WRONLY, &cred,
                          &attr, &f);
    else
        r = larder_open_file(w->l, w->ids[node], O_WRONLY | O_TRUNC, &f);
    if (!went_well(w, r, "open for a put"))
        return false;
    r = write_version(w, f, version);
    if (!is_new && !w->now.child[dir][name])
        fail(w, "an open key was evicted"); /* C4 allows it, our reserve does not */
    if (went_well(w, r, "write")) {
        if (is_new) {
            node = node_alloc(w, KIND_FILE, attr.ino);
            if (node == 0)
                return false;
            w->now.nodes[node].mode = 0644;
        }
        (void)snprintf(what, sizeof(what), "put %u/n%u", dir, name); /* short */
        (void)commit_steps(w, f, steps, node, version, what, is_new ? &w->now.child[dir][name] : NULL);
    }
    larder_release(f);
    return !w->ended;
}

static void op_put(struct world *w)
{
    unsigned dir = pick_dir(w), name = world_random(w, NAMES);
    const struct mnode *n = &w->now.nodes[w->now.child[dir][name]];

    if (w->now.child[dir][name] && (n->kind != KIND_FILE || n->is_db || is_due(w, n)))
        return;
    (void)put(w, dir, name, pool_add(w->pool, pick_bytes(w), world_random(w, 3), w->rng), random_steps(w));
}

static int rename_names(struct world *w, unsigned dir, unsigned name, unsigned to_dir, unsigned to_name, unsigned flags)
{
    char from[8], to[8];

    (void)text_of(name, from);
    (void)text_of(to_name, to);
    return larder_rename(w->l, dir_id(w, dir), from, strlen(from), dir_id(w, to_dir), to, strlen(to), flags, &cred);
}

static void move_name(struct world *w, unsigned dir, unsigned name, unsigned to_dir, unsigned to_name)
{
    unsigned node = w->now.child[dir][name];

    if (w->now.child[to_dir][to_name])
        forget_name(&w->now, to_dir, to_name);
    w->now.child[dir][name] = 0;
    w->now.child[to_dir][to_name] = (uint8_t)node;
}

/* Write beside, fsync perhaps, rename over: what careful programs do. */
static void op_replace_by_rename(struct world *w)
{
    unsigned dir = pick_dir(w), tmp = NAMES - 1, name = world_random(w, NAMES - 1);
    const struct mnode *n = &w->now.nodes[w->now.child[dir][name]];

    if (w->now.child[dir][name] && (n->kind != KIND_FILE || n->is_db || is_due(w, n)))
        return;
    if (w->now.child[dir][tmp] &&
        (w->now.nodes[w->now.child[dir][tmp]].kind != KIND_FILE || w->now.nodes[w->now.child[dir][tmp]].is_db ||
         is_due(w, &w->now.nodes[w->now.child[dir][tmp]])))
        return;
    if (!put(w, dir, tmp, pool_add(w->pool, pick_bytes(w), world_random(w, 3), w->rng), random_steps(w)))
        return;
    if (!w->now.child[dir][tmp] || w->now.child[dir][tmp] == w->now.child[dir][name])
        return; /* evicted at once, or two names of one file */
    if (!went_well(w, rename_names(w, dir, tmp, dir, name, 0), "rename over"))
        return;
    move_name(w, dir, tmp, dir, name);
    note(w, false, "rename %u/n%u over n%u", dir, tmp, name);
    if (world_random(w, 4) == 0 && went_well(w, larder_fsync_dir(w->l, dir_id(w, dir)), "fsync of a directory"))
        note(w, true, "fsync of directory %u", dir);
}

/* ---- names ---- */

static bool is_below(const struct world *w, unsigned dir_row, unsigned node)
{
    for (unsigned depth = 0; depth < DIRS; depth++) {
        bool found = false;
        if (w->now.dir_node[dir_row] == node)
            return true;
        for (unsigned d = 0; d < DIRS && !found; d++)
            for (unsigned n = 0; n < NAMES && !found; n++)
                if (w->now.dir_node[d] && w->now.child[d][n] == w->now.dir_node[dir_row]) {
                    dir_row = d;
                    found = true;
                }
        if (!found)
            return false;
    }
    return false;
}

static bool dir_is_empty(const struct world *w, unsigned row)
{
    for (unsigned n = 0; n < NAMES; n++)
        if (w->now.child[row][n])
            return false;
    return true;
}

/* Would rename(2) do it? */
static bool can_rename(const struct world *w, unsigned node, unsigned over, unsigned to_dir, bool exchange)
{
    const struct mnode *n = &w->now.nodes[node], *o = &w->now.nodes[over];

    if (n->kind == KIND_DIR && is_below(w, to_dir, node))
        return false;
    if (over && (over == node || is_due(w, o) || o->is_db))
        return false;
    if (exchange)
        return over && o->kind != KIND_DIR; /* a directory above the other: left to the unit tests */
    if (!over)
        return true;
    if ((o->kind == KIND_DIR) != (n->kind == KIND_DIR))
        return false;
    return o->kind != KIND_DIR || dir_is_empty(w, o->dir);
}

static void op_rename(struct world *w)
{
    enum kind kind = world_random(w, 4) ? KIND_FILE : KIND_DIR;
    unsigned dir, name, to_dir = pick_dir(w), to_name = world_random(w, NAMES), node, over;
    bool exchange;

    if (!pick_name(w, kind, &dir, &name))
        return;
    node = w->now.child[dir][name];
    over = w->now.child[to_dir][to_name];
    exchange = over && world_random(w, 3) == 0;
    if (!can_rename(w, node, over, to_dir, exchange) || (exchange && w->now.nodes[node].kind == KIND_DIR))
        return;
    if (!went_well(w, rename_names(w, dir, name, to_dir, to_name, exchange ? RENAME_EXCHANGE : 0), "rename"))
        return;
    if (exchange) {
        w->now.child[dir][name] = (uint8_t)over;
        w->now.child[to_dir][to_name] = (uint8_t)node;
    } else {
        move_name(w, dir, name, to_dir, to_name);
    }
    note(w, false, "rename %u/n%u to %u/n%u%s", dir, name, to_dir, to_name, exchange ? " exchange" : "");
}

static void op_unlink(struct world *w)
{
    unsigned dir, name;
    char text[8];

    if (!pick_name(w, world_random(w, 6) ? KIND_FILE : KIND_LINK, &dir, &name))
        return;
    if (w->now.nodes[w->now.child[dir][name]].is_db && world_random(w, 8))
        return;
    if (w->now.nodes[w->now.child[dir][name]].is_db)
        drop_db_file(w);
    if (!went_well(w, larder_unlink(w->l, dir_id(w, dir), text_of(name, text), strlen(text_of(name, text))), "unlink"))
        return;
    forget_name(&w->now, dir, name);
    note(w, false, "unlink %u/n%u", dir, name);
}

static void op_link(struct world *w)
{
    unsigned dir, name, to_dir = pick_dir(w), to_name = world_random(w, NAMES), node;
    struct larder_attr attr;
    char text[8];
    int r;

    if (w->now.child[to_dir][to_name])
        return;
    (void)text_of(to_name, text);
    if (world_random(w, 3) == 0) {
        uint32_t version = pool_add(w->pool, 0, 0, 0);
        r = larder_symlink(w->l, dir_id(w, to_dir), text, strlen(text), "target", &cred, &attr);
        node = went_well(w, r, "symlink") ? node_alloc(w, KIND_LINK, attr.ino) : 0;
        if (node == 0)
            return;
        w->now.nodes[node].version = version;
        put_name(w, to_dir, to_name, node);
        note(w, false, "symlink %u/n%u", to_dir, to_name);
        return;
    }
    if (!pick_name(w, KIND_FILE, &dir, &name))
        return;
    node = w->now.child[dir][name];
    if (w->now.nodes[node].is_db)
        return;
    if (!went_well(w, larder_link(w->l, w->ids[node], dir_id(w, to_dir), text, strlen(text), &attr), "link"))
        return;
    w->refs[node]++;
    put_name(w, to_dir, to_name, node);
    note(w, false, "link %u/n%u to %u/n%u", dir, name, to_dir, to_name);
}

static void op_dirs(struct world *w)
{
    unsigned dir = pick_dir(w), name = world_random(w, NAMES), row = 1, node;
    struct larder_attr attr;
    char text[8];

    (void)text_of(name, text);
    if (w->now.child[dir][name]) {
        node = w->now.child[dir][name];
        if (w->now.nodes[node].kind != KIND_DIR || !dir_is_empty(w, w->now.nodes[node].dir))
            return;
        if (!went_well(w, larder_rmdir(w->l, dir_id(w, dir), text, strlen(text)), "rmdir"))
            return;
        forget_name(&w->now, dir, name);
        note(w, false, "rmdir %u/n%u", dir, name);
        return;
    }
    while (row < DIRS && w->now.dir_node[row])
        row++;
    if (row == DIRS)
        return;
    if (!went_well(w, larder_mkdir(w->l, dir_id(w, dir), text, strlen(text), 0755, &cred, &attr), "mkdir"))
        return;
    node = node_alloc(w, KIND_DIR, attr.ino);
    if (node == 0)
        return;
    w->now.nodes[node].dir = (uint8_t)row;
    w->now.nodes[node].mode = 0755;
    w->now.dir_node[row] = (uint8_t)node;
    memset(w->now.child[row], 0, sizeof(w->now.child[row]));
    put_name(w, dir, name, node);
    note(w, false, "mkdir %u/n%u as %u", dir, name, row);
}

/* ---- attributes, deadlines ---- */

static void op_attrs(struct world *w)
{
    unsigned dir, name, node;
    struct larder_attr attr;
    uint32_t tag = 1 + world_random(w, 1u << 30);
    int r;

    if (!pick_name(w, world_random(w, 4) ? KIND_FILE : KIND_DIR, &dir, &name))
        return;
    node = w->now.child[dir][name];
    switch (world_random(w, 3)) {
    case 0:
        attr = (struct larder_attr){.mode = 0600 | world_random(w, 0100)};
        r = larder_setattr(w->l, w->ids[node], NULL, LARDER_SET_MODE, &attr, &attr);
        if (!went_well(w, r, "chmod"))
            return;
        w->now.nodes[node].mode = attr.mode & 07777;
        break;
    case 1:
        if (w->now.nodes[node].tag) {
            if (!went_well(w, larder_removexattr(w->l, w->ids[node], "user.tag"), "removexattr"))
                return;
            w->now.nodes[node].tag = 0;
            break;
        }
        /* fallthrough */
    default:
        if (!went_well(w, larder_setxattr(w->l, w->ids[node], "user.tag", &tag, sizeof(tag), 0), "setxattr"))
            return;
        w->now.nodes[node].tag = tag;
        break;
    }
    note(w, false, "attributes of %u/n%u: mode %o tag %u", dir, name, w->now.nodes[node].mode, w->now.nodes[node].tag);
}

static void expire(struct world *w)
{
    while (cache_expire_due(w->l) == EXPIRE_BATCH)
        ;
}

void world_expire_all(struct world *w)
{
    pass_time(w, 2 * EXPIRE_TICK_NS);
    note(w, false, "time passes");
    expire(w);
}

static void op_ttl(struct world *w)
{
    unsigned dir, name, node, seconds = 1 + world_random(w, 6);
    char text[32];

    if (world_random(w, 3) == 0) {
        pass_time(w, (uint64_t)world_random(w, 3000) * NS_PER_MS);
        note(w, false, "time passes");
        expire(w);
        return;
    }
    if (!pick_name(w, KIND_FILE, &dir, &name))
        return;
    node = w->now.child[dir][name];
    if (w->now.nodes[node].is_db)
        return;
    if (w->now.nodes[node].ttl_ns && world_random(w, 2)) {
        if (!went_well(w, larder_removexattr(w->l, w->ids[node], "user.larder.ttl"), "removing a ttl"))
            return;
        w->now.nodes[node].ttl_ns = 0;
    } else {
        (void)snprintf(text, sizeof(text), "%us", seconds);
        if (!went_well(w, larder_setxattr(w->l, w->ids[node], "user.larder.ttl", text, strlen(text), 0), "setting a ttl"))
            return;
        w->now.nodes[node].ttl_ns = seconds * NS_PER_S;
    }
    note(w, false, "ttl of %u/n%u: %llu s", dir, name, (unsigned long long)(w->now.nodes[node].ttl_ns / NS_PER_S));
}

/* ---- what the threads would do ---- */

static void op_evict(struct world *w)
{
    uint64_t free_bytes = quota_available(&w->l->quota) + 1 + world_random(w, w->profile->bytes_max * 2);
    int r = cache_evict_until(w->l, free_bytes);

    if (r != -ENOSPC)
        (void)went_well(w, r, "eviction");
    note(w, false, "eviction");
}

static void op_clean(struct world *w)
{
    uint64_t freed;

    if (world_random(w, 2)) {
        (void)work_clean_segment(w->l); /* -ENOSPC: not now */
        note(w, false, "cleaning");
        return;
    }
    (void)store_reclaim(w->l->store, 64, &freed); /* none to be had is fine */
    note(w, false, "reclaim");
}

/* A checkpoint in a thread of its own, which stands still at its sched_yield()s while operations go on: the two never
 * run at once, so a seed repeats. */
static struct gate {
    struct larder *l;
    pthread_t thread;
    sem_t to_main, to_thread;
    bool open, done;
    int result;
} gate;

static void gate_pause(void)
{
    (void)sem_post(&gate.to_main); /* cannot overflow: 0 or 1 */
    while (sem_wait(&gate.to_thread) < 0)
        ;
}

/* Instead of libc's: where the core would let others run, we decide who. */
int sched_yield(void)
{
    if (gate.open && pthread_equal(gate.thread, pthread_self()))
        gate_pause();
    return 0;
}

static void *gate_main(void *arg)
{
    (void)arg;
    while (sem_wait(&gate.to_thread) < 0)
        ;
    gate.result = work_checkpoint(gate.l, false);
    gate.done = true;
    (void)sem_post(&gate.to_main);
    return NULL;
}

static void small_operation(struct world *w);
static void held_follow(struct world *w);

static void checkpoint_beside(struct world *w)
{
    gate = (struct gate){.l = w->l};
    (void)sem_init(&gate.to_main, 0, 0); /* private semaphores: cannot fail */
    (void)sem_init(&gate.to_thread, 0, 0);
    if (pthread_create(&gate.thread, NULL, gate_main, NULL) != 0)
        abort();
    gate.open = true;
    w->tiny = true;
    for (;;) {
        (void)sem_post(&gate.to_thread);
        while (sem_wait(&gate.to_main) < 0)
            ;
        if (gate.done)
            break;
        for (uint32_t i = world_random(w, 4); i > 0 && !w->ended; i--) {
            small_operation(w);
            held_follow(w);
        }
    }
    w->tiny = false;
    gate.open = false;
    (void)pthread_join(gate.thread, NULL); /* ours */
    (void)sem_destroy(&gate.to_main);
    (void)sem_destroy(&gate.to_thread);
    if (gate.result != -ENOSPC)
        (void)went_well(w, gate.result, "checkpoint beside the traffic");
    note(w, gate.result == 0, "checkpoint beside the traffic");
}

static void op_checkpoint(struct world *w)
{
    int r;

    if (!w->tiny && world_random(w, 2) && quota_available(&w->l->quota) > MIB) { /* room made would wait for it */
        checkpoint_beside(w);
        return;
    }
    r = work_checkpoint(w->l, false);
    if (r != -ENOSPC)
        (void)went_well(w, r, "checkpoint");
    note(w, r == 0, "checkpoint");
}

static void op_sync(struct world *w)
{
    if (went_well(w, larder_sync(w->l), "sync"))
        note(w, true, "sync");
}

static uint64_t world_lookup(struct world *w, unsigned dir, unsigned name)
{
    struct larder_attr attr;
    char text[8];
    int r = larder_lookup(w->l, dir_id(w, dir), text_of(name, text), strlen(text_of(name, text)), &attr);

    if (r < 0) {
        fail(w, "lookup of %u/n%u after a restart: %s", dir, name, strerror(-r));
        return 0;
    }
    return attr.ino;
}

/* The nodes' ids as the kernel learns them anew; also holds a reference to each, so that name_gone is told. */
static void learn_ids(struct world *w, unsigned dir)
{
    for (unsigned name = 0; name < NAMES && !w->failure[0]; name++) {
        unsigned node = w->now.child[dir][name];
        if (!node || is_due(w, &w->now.nodes[node]))
            continue;
        w->ids[node] = world_lookup(w, dir, name);
        w->refs[node]++;
        if (w->now.nodes[node].kind == KIND_DIR)
            learn_ids(w, w->now.nodes[node].dir);
    }
}

void world_learn_ids(struct world *w)
{
    memset(w->refs, 0, sizeof(w->refs));
    learn_ids(w, 0);
}

/* What is due is a miss at once, for the model as for whoever asks. */
static void forget_due(struct world *w)
{
    for (unsigned dir = 0; dir < DIRS; dir++)
        for (unsigned name = 0; w->now.dir_node[dir] && name < NAMES; name++)
            if (w->now.child[dir][name] && is_due(w, &w->now.nodes[w->now.child[dir][name]]))
                forget_name(&w->now, dir, name);
}

static void op_restart(struct world *w)
{
    bool orderly = world_random(w, 2);

    if (orderly)
        world_close(w);
    else
        world_abandon(w);
    if (w->failure[0])
        return;
    pass_time(w, world_random(w, 1000) * NS_PER_MS);
    if (world_open(w) < 0)
        return;
    forget_due(w);
    world_learn_ids(w);
    note(w, false, orderly ? "restart" : "killed and restarted");
}

/* ---- the file that is changed in place ---- */

static void db_note(struct world *w, struct db_event event)
{
    if (w->db_count == w->db_allocated) {
        w->db_allocated = w->db_count * 2 + 32;
        w->db_events = realloc(w->db_events, w->db_allocated * sizeof(event));
        if (!w->db_events)
            abort();
    }
    w->db_events[w->db_count++] = event;
}

static unsigned db_find(const struct world *w, unsigned *ret_dir, unsigned *ret_name)
{
    for (unsigned dir = 0; dir < DIRS; dir++)
        for (unsigned name = 0; w->now.dir_node[dir] && name < NAMES; name++) {
            unsigned node = w->now.child[dir][name];
            if (node && w->now.nodes[node].is_db) {
                *ret_dir = dir;
                *ret_name = name;
                return node;
            }
        }
    return 0;
}

static void db_create(struct world *w)
{
    unsigned dir = pick_dir(w), name = world_random(w, NAMES), node;
    uint32_t bytes = w->opts.big_bytes + 1 + world_random(w, 30000), version;

    if (w->db_base || w->now.child[dir][name] || bytes > DB_BYTES_MAX)
        return; /* one in a history */
    version = pool_add(w->pool, bytes, 0, w->rng);
    if (!put(w, dir, name, version, FSYNC_FIRST | FLUSH))
        return;
    node = w->now.child[dir][name];
    if (!node)
        return; /* evicted at once */
    w->now.nodes[node].is_db = true;
    w->now.nodes[node].small = false;
    w->db_base = malloc(bytes);
    if (!w->db_base)
        abort();
    memcpy(w->db_base, w->pool->versions[version].data, bytes);
    w->db_base_bytes = w->db_now_bytes = bytes;
    note(w, false, "%u/n%u is the database now", dir, name);
}

static void settle_node(struct world *w, uint64_t id)
{
    struct open_node *on;

    if (open_node_get(w->l, id, false, &on) < 0)
        return;
    (void)open_node_seal(on); /* busy: later */
    open_node_put(on, false);
}

static void db_write(struct world *w)
{
    uint32_t bytes = 1 + world_random(w, 6000), offset = world_random(w, w->db_now_bytes + 2000), version;
    int r;

    if (offset + bytes > DB_BYTES_MAX)
        return;
    version = pool_add(w->pool, bytes, 0, w->rng);
    db_note(w, (struct db_event){.what = DB_WRITE, .mark = w->moments, .offset = offset, .bytes = bytes, .version = version});
    r = larder_write(w->db_file, w->pool->versions[version].data, bytes, offset, false);
    w->db_now_bytes = MAX(w->db_now_bytes, offset + bytes);
    w->db_written = true;
    if (went_well(w, r, "db write"))
        note(w, false, "db write at %u +%u", offset, bytes);
}

static void db_resize(struct world *w, uint64_t id)
{
    struct larder_attr attr = {.size_bytes = 1 + world_random(w, w->db_now_bytes + 5000)};
    int r;

    db_note(w, (struct db_event){.what = DB_SIZE, .mark = w->moments, .offset = attr.size_bytes});
    w->db_now_bytes = (uint32_t)attr.size_bytes;
    w->db_written = true;
    r = larder_setattr(w->l, id, w->db_file, LARDER_SET_SIZE, &attr, &attr);
    if (went_well(w, r, "db truncate"))
        note(w, false, "db truncate to %u", w->db_now_bytes);
}

static void db_punch(struct world *w)
{
    uint32_t bytes = 1 + world_random(w, 9000), offset = world_random(w, w->db_now_bytes);
    int r;

    db_note(w, (struct db_event){.what = DB_ZERO, .mark = w->moments, .offset = offset, .bytes = bytes});
    w->db_written = true;
    r = larder_allocate(w->db_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes, false);
    if (went_well(w, r, "db punch"))
        note(w, false, "db punch at %u +%u", offset, bytes);
}

static void db_sync(struct world *w)
{
    if (!went_well(w, larder_fsync(w->db_file, true), "db fsync"))
        return;
    db_note(w, (struct db_event){.what = DB_SYNC, .mark = w->moments});
    note(w, true, "db fsync");
}

static void db_close(struct world *w, uint64_t id)
{
    int r = larder_flush(w->db_file);

    if (went_well(w, r, "db flush") && w->opts.durable_close && w->db_written) {
        db_note(w, (struct db_event){.what = DB_SYNC, .mark = w->moments});
        note(w, false, "db flush (durable)");
    }
    larder_release(w->db_file);
    w->db_file = NULL;
    note(w, false, "db close");
    if (!w->ended && world_random(w, 2)) {
        settle_node(w, id);
        note(w, false, "db seal");
    }
}

static void op_db(struct world *w)
{
    unsigned dir, name, node = db_find(w, &dir, &name);

    if (!node) {
        drop_db_file(w);
        db_create(w);
        return;
    }
    if (!w->db_file) {
        if (went_well(w, larder_open_file(w->l, w->ids[node], O_RDWR, &w->db_file), "db open"))
            note(w, false, "db open");
        else
            w->db_file = NULL;
        w->db_written = false;
        return;
    }
    switch (world_random(w, 11)) {
    case 10:
        db_punch(w);
        break;
    case 0:
        db_close(w, w->ids[node]);
        break;
    case 1:
        db_resize(w, w->ids[node]);
        break;
    case 2:
    case 3:
    case 4:
        db_sync(w);
        break;
    default:
        db_write(w);
        break;
    }
}

/* ---- appends and cuts of small values: whole new versions ---- */

static void op_append(struct world *w)
{
    static uint8_t data[64u << 10];
    const struct version *old;
    unsigned dir, name, node;
    struct larder_file *f;
    uint32_t more = 1 + world_random(w, 700), version;
    char what[40];
    int r;

    if (!pick_name(w, KIND_FILE, &dir, &name))
        return;
    node = w->now.child[dir][name];
    old = &w->pool->versions[w->now.nodes[node].version];
    if (w->now.nodes[node].is_db || !w->now.nodes[node].small || old->bytes + more > w->opts.big_bytes ||
        old->bytes + more > sizeof(data) || old->bytes + more < 16)
        return;
    memcpy(data, old->data, old->bytes);
    for (uint32_t i = 0; i < more; i++)
        data[old->bytes + i] = (uint8_t)world_random(w, 256);
    if (!went_well(w, larder_open_file(w->l, w->ids[node], O_WRONLY, &f), "open to append"))
        return;
    memcpy(data, &(uint64_t){w->pool->count}, 8); /* the number of the version to come */
    version = pool_add_data(w->pool, data, old->bytes + more);
    r = larder_write(f, data + old->bytes, more, old->bytes, false);
    if (r == 0)
        r = larder_write(f, data, MIN(8u, old->bytes + more), 0, false);
    (void)snprintf(what, sizeof(what), "append %u/n%u", dir, name); /* short */
    if (went_well(w, r, "append"))
        (void)commit_steps(w, f, random_steps(w), node, version, what, NULL);
    larder_release(f);
}

/* ---- a file held open ---- */

static void held_check(struct world *w)
{
    const struct version *v = &w->pool->versions[w->held_version];
    uint8_t *data = malloc(v->bytes + 1);
    size_t got = 0;
    int r;

    if (!data)
        abort();
    r = larder_read(w->held, data, v->bytes + 1, 0, false, &got);
    if (r < 0)
        fail(w, "C4: reading an open file: %s", strerror(-r));
    else if (got != v->bytes || memcmp(data, v->data, got) != 0)
        fail(w, "C4: an open file shows other bytes than when it was opened");
    free(data);
}

static void op_hold(struct world *w)
{
    unsigned dir, name, node;

    if (w->held) {
        held_check(w);
        drop_held(w);
        note(w, false, "close of the open file");
        return;
    }
    if (!pick_name(w, KIND_FILE, &dir, &name))
        return;
    node = w->now.child[dir][name];
    if (w->now.nodes[node].is_db || !went_well(w, larder_open_file(w->l, w->ids[node], O_RDONLY, &w->held), "open"))
        return;
    w->held_node = node;
    w->held_id = w->ids[node];
    w->held_version = w->now.nodes[node].version;
    note(w, false, "open %u/n%u for a while", dir, name);
}

/* A put to the same file is seen by who has it open. */
static void held_follow(struct world *w)
{
    const struct mnode *n = &w->now.nodes[w->held_node];

    if (w->held && n->kind == KIND_FILE && w->ids[w->held_node] == w->held_id)
        w->held_version = n->version;
}

/* ---- a run ---- */

/* What needs no room to be made for it. */
static void small_operation(struct world *w)
{
    static void (*const ops[])(struct world *) = {op_put,  op_put,   op_replace_by_rename, op_rename, op_rename, op_unlink, op_unlink,
                                                  op_link, op_attrs, op_append,            op_sync,   op_db,     op_db,     op_dirs,
                                                  op_hold};

    ops[world_random(w, sizeof(ops) / sizeof(ops[0]))](w);
}

/* The kernel forgets what has no name, sooner or later: only then its bytes go. */
static void forget_nameless(struct world *w)
{
    for (unsigned node = 2; node < NODES; node++)
        if (w->now.nodes[node].kind == KIND_FREE && w->refs[node] && world_random(w, 4)) {
            larder_forget(w->l, w->ids[node], w->refs[node]);
            w->refs[node] = 0;
        }
}

static void operation(struct world *w)
{
    static void (*const ops[])(struct world *) = {op_put,    op_replace_by_rename, op_rename, op_unlink, op_link,
                                                  op_dirs,   op_attrs,             op_ttl,    op_evict,  op_clean,
                                                  op_checkpoint, op_db,            op_append, op_sync,   op_restart};
    const struct profile *p = w->profile;
    const uint8_t weights[] = {p->put, p->replace_by_rename, p->rename, p->unlink, p->link, p->dirs, p->attrs, p->ttl,
                               p->evict, p->clean, p->checkpoint, p->db, p->append, p->sync, p->restart};
    uint32_t total = 0, dice;

    if (world_random(w, 16) == 0) {
        op_hold(w);
        return;
    }
    for (unsigned i = 0; i < sizeof(weights); i++)
        total += weights[i];
    dice = world_random(w, total);
    for (unsigned i = 0; i < sizeof(weights); i++) {
        if (dice < weights[i]) {
            ops[i](w);
            return;
        }
        dice -= weights[i];
    }
}

void world_run(struct world *w, uint32_t operations)
{
    for (uint32_t i = 0; i < operations && !w->ended && w->pool->count < VERSIONS_MAX - 8; i++) {
        pass_time(w, OP_NS);
        expire(w);
        operation(w);
        held_follow(w);
        if (w->l)
            forget_nameless(w);
        if (w->l && memdisk_used_bytes(w->disk) > quota_charged(&w->l->quota))
            fail(w, "C1: the disk holds %llu bytes, %llu are charged", (unsigned long long)memdisk_used_bytes(w->disk),
                 (unsigned long long)quota_charged(&w->l->quota));
    }
}
