/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fault_world: see fault_world.h.
 *
 * What a call may say when it fails is in error_is_proper. A key that may leave for room, or whose value could not be
 * read from the device, may be missing; it may never be another version, a mixture, or unreadable once the disk is well.
 */
#include "fault_world.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "faultheap.h"
#include "journal_internal.h"

#define TRACE_BYTES_MAX (256u << 10)
#define WRITE_BYTES (64u << 10)

/* ---- words ---- */

static void trace(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void trace(struct world *w, const char *format, ...)
{
    va_list args;
    int bytes;

    if (w->trace_bytes > TRACE_BYTES_MAX - 512)
        return;
    va_start(args, format);
    bytes = vsnprintf(w->trace + w->trace_bytes, 512, format, args);
    va_end(args);
    w->trace_bytes += (size_t)MIN(MAX(bytes, 0), 511);
}

void world_fail(struct world *w, const char *format, ...)
{
    va_list args;

    (void)fprintf(stderr, "%.*s", (int)w->trace_bytes, w->trace);
    (void)fprintf(stderr, "failed call: %s; calls counted %llu, failed %llu; allocations %llu, failed %llu\nWRONG: ",
                  faultio_call_name(atomic_load(&w->fio->last_failed)), (unsigned long long)w->fio->counted,
                  (unsigned long long)w->fio->failed, (unsigned long long)faultheap_counted(),
                  (unsigned long long)faultheap_failed());
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fprintf(stderr, "\n");
    (void)fflush(stderr);
    _exit(1);
}

static void world_log(void *ctx, enum larder_log_level level, const char *line)
{
    struct world *w = ctx;

    if (level == LARDER_LOG_ERROR && atomic_fetch_add(&w->errors, 1) == 0)
        (void)snprintf(w->first_error, sizeof(w->first_error), "%s", line);
    if (level == LARDER_LOG_WARNING)
        (void)atomic_fetch_add(&w->warnings, 1);
    (void)atomic_fetch_add(&w->lines, 1);
    if (!w->real_clock) /* one thread */
        trace(w, "  log %d: %s\n", (int)level, line);
}

/* ---- time and chance ---- */

static uint64_t world_now(void *ctx)
{
    struct world *w = ctx;

    return w->now_ns += 1000;
}

uint64_t world_random(struct world *w, uint64_t bound)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng % bound;
}

/* The eight bytes from `at` on, a multiple of 8: a sweep spends most of its time in making them. */
static uint64_t word_of(const struct world *w, uint32_t version, uint32_t at)
{
    uint64_t x = ((uint64_t)version << 32) + (w->versions[version].compressible ? at / 512 : at / 8);

    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15ull;
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9ull;
}

static uint8_t byte_of(const struct world *w, uint32_t version, uint32_t at)
{
    uint64_t word = word_of(w, version, at / 8 * 8);
    uint8_t bytes[8];

    memcpy(bytes, &word, sizeof(bytes));
    return bytes[at % 8];
}

static void fill(const struct world *w, uint32_t version, uint8_t *out)
{
    uint32_t bytes = w->versions[version].bytes;

    for (uint32_t at = 0; at < bytes; at += 8) {
        uint64_t word = word_of(w, version, at);
        memcpy(out + at, &word, MIN(bytes - at, sizeof(word)));
    }
}

/* ---- coming up, going down ---- */

static uint64_t faults(const struct world *w)
{
    return w->fio->failed + faultheap_failed();
}

void world_init(struct world *w, const char *dir, uint64_t seed)
{
    *w = (struct world){.rng = seed * 0x9e3779b97f4a7c15ull + 1, .now_ns = 1700000000ull * NS_PER_S};
    (void)snprintf(w->dir, sizeof(w->dir), "%s", dir);
    w->clock_ops = (struct clock_ops){.mono_ns = world_now, .wall_ns = world_now};
    larder_options_init(&w->opts);
    w->fio = &w->own_fio;
    faultio_init(w->fio, &io_posix);
    w->trace = malloc(TRACE_BYTES_MAX);
    w->expected = malloc(VALUE_BYTES_MAX);
    w->found = malloc(VALUE_BYTES_MAX);
    w->version_count = 1; /* 0: empty */
    if (!w->trace || !w->expected || !w->found)
        abort();
}

void world_split(struct world *w, const struct world *from, unsigned number)
{
    world_init(w, from->dir, from->rng + number);
    w->fio = from->fio;
    w->l = from->l;
    w->opts = from->opts;
    w->real_clock = from->real_clock;
    w->evicts = from->evicts;
    w->transparent = from->transparent;
    w->wants_room = from->wants_room;
    w->stop_at_failure = from->stop_at_failure;
    w->reads_fail = from->reads_fail;
    w->version_count = 1 + number * VERSIONS_PER_PART;
}

void world_join(struct world *w, struct world *part)
{
    for (unsigned i = 0; i < part->key_count; i++)
        *world_key(w, part->keys[i].path) = part->keys[i];
    for (uint32_t i = 1; i < part->version_count; i++)
        if (part->versions[i].bytes > 0)
            w->versions[i] = part->versions[i];
    w->version_count = MAX(w->version_count, part->version_count);
    w->halted |= part->halted;
    world_fini(part);
}

void world_fini(struct world *w)
{
    free(w->trace);
    free(w->expected);
    free(w->found);
}

int world_open(struct world *w, struct errtext *err)
{
    struct larder_callbacks callbacks = {.log = world_log, .ctx = w};
    struct cache_host host = {.io = &w->fio->io,
                              .dir_fd = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                              .clock_ops = w->real_clock ? &clock_posix : &w->clock_ops,
                              .clock_ctx = w,
                              .boot_id = "one boot"};
    uint64_t before = faults(w);
    int r;

    if (host.dir_fd < 0)
        world_fail(w, "%s: %s", w->dir, strerror(errno));
    trace(w, "open\n");
    r = cache_open_on(&host, w->dir, &w->opts, &callbacks, &w->l, err);
    trace(w, "  = %d %s\n", r, r < 0 ? err->text : "");
    if (r < 0)
        w->l = NULL;
    for (unsigned i = 0; r == 0 && w->reads_fail && faults(w) > before && i < w->key_count; i++)
        w->keys[i].may_miss = true; /* a value whose file cannot be looked at is a miss */
    return r;
}

int world_close(struct world *w)
{
    int r;

    trace(w, "close\n");
    r = larder_close(w->l);
    w->l = NULL;
    trace(w, "  = %d\n", r);
    return r;
}

static struct larder *killed[4]; /* what a killed daemon leaves in memory: reachable, so no leak */

void world_kill(struct world *w)
{
    static unsigned count;

    trace(w, "kill\n");
    io_close(&io_posix, w->l->lock_fd);
    killed[count++ % 4] = w->l;
    w->l = NULL;
}

bool world_faults_fired(const struct world *w)
{
    return w->fio->failed + faultheap_failed() > 0;
}

/* ---- model ---- */

struct key *world_key(struct world *w, const char *path)
{
    struct key *k;

    for (unsigned i = 0; i < w->key_count; i++)
        if (strcmp(w->keys[i].path, path) == 0)
            return &w->keys[i];
    assert(w->key_count < KEYS_MAX);
    k = &w->keys[w->key_count++];
    *k = (struct key){.may_miss = true};
    (void)snprintf(k->path, sizeof(k->path), "%s", path);
    return k;
}

uint32_t world_version(struct world *w, uint32_t bytes, bool compressible)
{
    assert(w->version_count < VERSIONS_MAX);
    assert(bytes <= VALUE_BYTES_MAX);
    w->versions[w->version_count] = (struct version){.bytes = bytes, .compressible = compressible};
    return w->version_count++;
}

static void model_add(struct key *k, struct accept a)
{
    for (unsigned i = 0; i < k->accept_count; i++)
        if (k->accept[i].version == a.version && k->accept[i].cut == a.cut)
            return;
    assert(k->accept_count < ACCEPT_MAX);
    k->accept[k->accept_count++] = a;
}

static void model_is(struct world *w, struct key *k, uint32_t version)
{
    k->accept_count = 0;
    model_add(k, (struct accept){.version = version});
    k->may_miss = w->evicts && !k->pinned;
    k->torn = false;
}

static void model_gone(struct key *k)
{
    k->accept_count = 0;
    k->may_miss = true;
    k->torn = k->has_ttl = false;
}

/* Who may say what. */
static bool error_is_proper(int r)
{
    return r == -EIO || r == -ENOSPC || r == -EDQUOT || r == -ENOMEM || r == -EROFS || r == -EMFILE || r == -ENFILE ||
           r == -EACCES;
}

static void check_charges(struct world *w);

/* true: it succeeded. A failure must have a cause. */
static bool judge(struct world *w, const char *what, const char *path, int r)
{
    trace(w, "%s %s = %d [%llu]\n", what, path, r, (unsigned long long)w->fio->counted);
    if (!w->real_clock && !atomic_load(&w->l->failed))
        check_charges(w);
    if (r == 0)
        return true;
    if (w->stop_at_failure)
        w->halted = true;
    if (!error_is_proper(r))
        world_fail(w, "%s %s: %d (%s) is no proper answer", what, path, r, strerror(-r));
    if (w->wants_room && r == -EIO)
        world_fail(w, "%s %s: EIO for a lack of room", what, path);
    if (!world_faults_fired(w) && !(r == -ENOSPC && w->evicts))
        world_fail(w, "%s %s: %s, and nothing had failed", what, path, strerror(-r));
    if (w->transparent)
        world_fail(w, "%s %s: %s, of something a caller must not notice", what, path, strerror(-r));
    return false;
}

/* ---- finding ---- */

static int find_parent(struct world *w, const char *path, uint64_t *ret_parent, const char **ret_name)
{
    const char *slash = strchr(path, '/');
    struct larder_attr attr;
    int r;

    *ret_parent = LARDER_ROOT;
    *ret_name = slash ? slash + 1 : path;
    if (!slash)
        return 0;
    r = larder_lookup(w->l, LARDER_ROOT, path, (size_t)(slash - path), &attr);
    if (r == 0) {
        larder_forget(w->l, attr.ino, 1);
        *ret_parent = attr.ino;
    }
    return r;
}

/* With a reference to be forgotten. */
static int find(struct world *w, const char *path, struct larder_attr *ret_attr)
{
    uint64_t parent;
    const char *name;
    int r = find_parent(w, path, &parent, &name);

    return r < 0 ? r : larder_lookup(w->l, parent, name, strlen(name), ret_attr);
}

static const struct larder_cred cred = {.umask = 022};

/* Without a slash in the name. -EEXIST never: what is there is opened and cut to nothing. */
static int open_for_put(struct world *w, const char *path, struct larder_file **ret_file, uint64_t *ret_ino)
{
    struct larder_attr attr;
    const char *name;
    uint64_t parent;
    int r = find_parent(w, path, &parent, &name);

    if (r < 0)
        return r;
    r = larder_lookup(w->l, parent, name, strlen(name), &attr);
    if (r == 0) {
        r = larder_open_file(w->l, attr.ino, O_WRONLY | O_TRUNC, ret_file);
        if (r < 0)
            larder_forget(w->l, attr.ino, 1);
    }
    if (r == -ENOENT || r == -ESTALE)
        r = larder_create(w->l, parent, name, strlen(name), 0644, O_WRONLY, &cred, &attr, ret_file);
    if (r == 0)
        *ret_ino = attr.ino;
    return r;
}

static int write_all(struct world *w, struct larder_file *f, uint32_t version, uint32_t from, uint32_t to)
{
    int r = 0;

    fill(w, version, w->expected);
    for (uint32_t at = from; r == 0 && at < to; at += WRITE_BYTES)
        r = larder_write(f, w->expected + at, MIN(to - at, WRITE_BYTES), at, false);
    return r;
}

/* As the kernel does: flush at close, then release, whatever write said. */
static int finish(struct world *w, struct larder_file *f, uint64_t ino, bool sync, int r)
{
    int flushed, synced = sync && r == 0 ? larder_fsync(f, false) : 0;

    flushed = larder_flush(f);
    larder_release(f);
    larder_forget(w->l, ino, 1);
    return r < 0 ? r : synced < 0 ? synced : flushed;
}

/* ---- operations ---- */

/* Is the directory of the path known to be there? A directory that could not be made takes its keys along. */
static bool parent_is_there(struct world *w, const char *path)
{
    const char *name;
    uint64_t parent;
    int r = find_parent(w, path, &parent, &name);

    if (r == 0)
        return true;
    if (r != -ENOENT || !world_faults_fired(w))
        world_fail(w, "directory of %s: %d", path, r);
    return false;
}

void do_mkdir(struct world *w, const char *name)
{
    struct larder_attr attr;
    int r;

    if (w->halted)
        return;
    r = larder_mkdir(w->l, LARDER_ROOT, name, strlen(name), 0755, &cred, &attr);
    if (judge(w, "mkdir", name, r))
        larder_forget(w->l, attr.ino, 1);
}

void do_put(struct world *w, struct key *k, uint32_t version, bool sync)
{
    struct larder_file *f;
    uint64_t ino = 0;
    int r;

    if (w->halted || !parent_is_there(w, k->path))
        return;
    model_add(k, (struct accept){.version = version, .cut = true});
    r = open_for_put(w, k->path, &f, &ino);
    if (r == 0) {
        r = write_all(w, f, version, 0, w->versions[version].bytes);
        r = finish(w, f, ino, sync, r);
    }
    if (judge(w, sync ? "put+fsync" : "put", k->path, r))
        model_is(w, k, version);
}

/* How long the longest version is that may be found. */
static uint32_t bytes_max(const struct world *w, const struct key *k)
{
    uint32_t bytes = 0;

    for (unsigned i = 0; i < k->accept_count; i++)
        bytes = MAX(bytes, w->versions[k->accept[i].version].bytes);
    return bytes;
}

/* From front to back, without truncation. */
void do_overwrite(struct world *w, struct key *k, uint32_t growth_bytes, bool sync)
{
    uint32_t version = world_version(w, bytes_max(w, k) + growth_bytes, false);
    struct larder_attr attr;
    struct larder_file *f;
    int r;

    if (w->halted || k->accept_count == 0 || w->versions[version].bytes == 0)
        return;
    r = find(w, k->path, &attr);
    if (r < 0) {
        if (!k->may_miss)
            world_fail(w, "overwrite %s: not there: %d", k->path, r);
        return;
    }
    r = larder_open_file(w->l, attr.ino, O_RDWR, &f);
    if (r < 0) {
        larder_forget(w->l, attr.ino, 1);
        if (r != -ESTALE || !k->may_miss)
            (void)judge(w, "open", k->path, r);
        return;
    }
    k->torn = true;
    model_add(k, (struct accept){.version = version});
    r = write_all(w, f, version, 0, w->versions[version].bytes);
    if (r == -EIO) /* what it was to be put upon could not be read */
        k->may_miss |= w->reads_fail;
    r = finish(w, f, attr.ino, sync, r);
    if (judge(w, sync ? "overwrite+fsync" : "overwrite", k->path, r))
        model_is(w, k, version);
}

/* Only of what is there for certain, to something shorter. */
void do_truncate(struct world *w, struct key *k, uint64_t bytes)
{
    struct larder_attr attr = {0}, out;
    uint32_t version;
    int r;

    if (w->halted || k->accept_count != 1 || k->accept[0].cut || k->torn || w->versions[k->accept[0].version].bytes <= bytes)
        return;
    r = find(w, k->path, &attr);
    if (r < 0) {
        if (!k->may_miss)
            world_fail(w, "truncate %s: not there: %d", k->path, r);
        return;
    }
    version = k->accept[0].version;
    model_add(k, (struct accept){.version = version, .cut = true});
    attr.size_bytes = bytes;
    r = larder_setattr(w->l, attr.ino, NULL, LARDER_SET_SIZE, &attr, &out);
    larder_forget(w->l, attr.ino, 1);
    k->may_miss |= r < 0 && w->reads_fail;
    if (judge(w, "truncate", k->path, r) && out.size_bytes != bytes)
        world_fail(w, "truncate %s: is %llu bytes long", k->path, (unsigned long long)out.size_bytes);
}

void do_rename(struct world *w, struct key *from, struct key *to)
{
    const char *name, *new_name;
    uint64_t parent, new_parent;
    int r;

    if (w->halted || !parent_is_there(w, from->path) || !parent_is_there(w, to->path))
        return;
    if (find_parent(w, from->path, &parent, &name) < 0 || find_parent(w, to->path, &new_parent, &new_name) < 0)
        return;
    r = larder_rename(w->l, parent, name, strlen(name), new_parent, new_name, strlen(new_name), 0, &cred);
    if (r == -ENOENT) {
        if (!from->may_miss)
            world_fail(w, "rename %s: it is not there", from->path);
        return;
    }
    if (judge(w, "rename to", to->path, r)) {
        char path[sizeof(to->path)];

        memcpy(path, to->path, sizeof(path));
        *to = *from;
        memcpy(to->path, path, sizeof(path));
        to->may_miss |= w->evicts && !to->pinned;
        model_gone(from);
        return;
    }
    for (unsigned i = 0; i < from->accept_count; i++)
        model_add(to, from->accept[i]);
    to->torn |= from->torn;
    to->has_ttl |= from->has_ttl;
    from->may_miss = true;
}

/* Written under one name, linked to another, the first removed. */
void do_publish(struct world *w, struct key *k, uint32_t version)
{
    struct key *tmp = world_key(w, "publish.tmp");
    struct larder_attr attr, linked;
    const char *name;
    uint64_t parent;
    int r;

    do_unlink(w, k);
    do_put(w, tmp, version, false);
    if (w->halted || tmp->accept_count != 1 || !parent_is_there(w, k->path))
        return;
    r = find(w, tmp->path, &attr);
    if (r < 0)
        return;
    if (find_parent(w, k->path, &parent, &name) == 0) {
        r = larder_link(w->l, attr.ino, parent, name, strlen(name), &linked);
        if (r == 0)
            larder_forget(w->l, linked.ino, 1);
        if (r == -EEXIST && world_faults_fired(w)) /* its unlink failed */
            r = -EIO;
        for (unsigned i = 0; i < tmp->accept_count; i++)
            model_add(k, tmp->accept[i]);
        if (judge(w, "link", k->path, r)) {
            k->accept_count = 0;
            for (unsigned i = 0; i < tmp->accept_count; i++)
                model_add(k, tmp->accept[i]);
            k->may_miss = w->evicts;
        }
    }
    larder_forget(w->l, attr.ino, 1);
    do_unlink(w, tmp);
}

void do_unlink(struct world *w, struct key *k)
{
    const char *name;
    uint64_t parent;
    int r;

    if (w->halted || !parent_is_there(w, k->path) || find_parent(w, k->path, &parent, &name) < 0)
        return;
    r = larder_unlink(w->l, parent, name, strlen(name));
    if (r == -ENOENT && k->may_miss)
        return; /* it may have left by itself */
    if (r == -ENOENT)
        world_fail(w, "unlink %s: it is not there", k->path);
    if (judge(w, "unlink", k->path, r))
        model_gone(k);
    else
        k->may_miss = true;
}

void do_symlink(struct world *w, const char *name, const char *target)
{
    struct larder_attr attr;

    if (!w->halted && judge(w, "symlink", name,
                            larder_symlink(w->l, LARDER_ROOT, name, strlen(name), target, &cred, &attr)))
        larder_forget(w->l, attr.ino, 1);
}

void do_set(struct world *w, struct key *k, const char *name, const char *value)
{
    struct larder_attr attr;
    int r;

    if (w->halted)
        return;
    r = find(w, k->path, &attr);
    if (r < 0) {
        if (!k->may_miss)
            world_fail(w, "%s is not there: %d", k->path, r);
        return;
    }
    r = larder_setxattr(w->l, attr.ino, name, value, strlen(value), 0);
    larder_forget(w->l, attr.ino, 1);
    if (strcmp(name, "user.larder.ttl") == 0)
        k->has_ttl = true;
    if (judge(w, name, k->path, r) && strcmp(name, "user.larder.pin") == 0)
        k->pinned = true;
}

void do_sync(struct world *w)
{
    if (!w->halted)
        (void)judge(w, "sync", "", larder_sync(w->l));
}

void do_expire(struct world *w)
{
    if (w->halted)
        return;
    w->now_ns += 3600 * NS_PER_S;
    trace(w, "an hour later\n");
    while (cache_expire_due(w->l) > 0)
        ;
    for (unsigned i = 0; i < w->key_count; i++)
        if (w->keys[i].has_ttl) /* set for certain, or perhaps */
            w->keys[i].may_miss = true;
}

void do_work(struct world *w, const char *what, int (*work)(struct larder *l))
{
    int r;

    uint64_t before = faults(w);

    if (w->halted)
        return;
    r = work(w->l);
    for (unsigned i = 0; w->reads_fail && faults(w) > before && i < w->key_count; i++)
        w->keys[i].may_miss = true; /* what cleaning cannot read is a miss, too */
    trace(w, "%s = %d [%llu]\n", what, r, (unsigned long long)w->fio->counted);
    if (r < 0 && w->transparent)
        world_fail(w, "%s: %s, of something that must not matter", what, strerror(-r));
}

/* ---- judging what is found ---- */

static bool is_version(struct world *w, struct accept a, uint64_t bytes)
{
    uint64_t wanted = w->versions[a.version].bytes;

    if (a.cut ? bytes > wanted : bytes != wanted)
        return false;
    fill(w, a.version, w->expected);
    return memcmp(w->expected, w->found, (size_t)bytes) == 0;
}

/* Every byte is of one of the versions. */
static bool is_torn(const struct world *w, const struct key *k, uint64_t bytes)
{
    for (uint32_t at = 0; at < bytes; at++) {
        bool known = false;
        for (unsigned i = 0; i < k->accept_count && !known; i++)
            known = at < w->versions[k->accept[i].version].bytes &&
                    byte_of(w, k->accept[i].version, at) == w->found[at];
        if (!known)
            return false;
    }
    return true;
}

static void check_bytes(struct world *w, struct key *k, uint64_t bytes, bool settled)
{
    for (unsigned i = k->accept_count; i-- > 0;) {
        struct accept a = k->accept[i];
        if (!is_version(w, a, bytes))
            continue;
        if (settled && (!a.cut || bytes == w->versions[a.version].bytes))
            model_is(w, k, a.version);
        return;
    }
    if (k->torn && is_torn(w, k, bytes))
        return;
    world_fail(w, "%s holds %llu bytes of something else%s", k->path, (unsigned long long)bytes,
               k->accept_count ? "" : ": it should be gone");
}

static int read_whole(struct larder_file *f, uint8_t *out, uint64_t *ret_bytes)
{
    uint64_t done = 0;
    size_t got = 1;
    int r = 0;

    while (r == 0 && got > 0 && done < VALUE_BYTES_MAX) {
        r = larder_read(f, out + done, MIN(WRITE_BYTES, VALUE_BYTES_MAX - done), done, false, &got);
        done += r == 0 ? got : 0;
    }
    *ret_bytes = done;
    return r;
}

/* -ENOENT: it is a miss. */
static int get(struct world *w, const struct key *k, uint64_t *ret_bytes)
{
    struct larder_attr attr;
    struct larder_file *f;
    int r = find(w, k->path, &attr);

    if (r < 0)
        return r;
    r = larder_open_file(w->l, attr.ino, O_RDONLY, &f);
    if (r == 0) {
        r = read_whole(f, w->found, ret_bytes);
        larder_release(f);
    }
    larder_forget(w->l, attr.ino, 1);
    return r == -ESTALE ? -ENOENT : r;
}

static void get_and_check(struct world *w, struct key *k, bool settled)
{
    uint64_t bytes = 0, before = faults(w);
    int r = get(w, k, &bytes);

    if (r == -ENOENT) {
        if (!k->may_miss)
            world_fail(w, "%s is missing", k->path);
        if (settled)
            model_gone(k);
        return;
    }
    if (r < 0) {
        if (faults(w) == before)
            world_fail(w, "reading %s: %s, and nothing fails", k->path, strerror(-r));
        (void)judge(w, "get", k->path, r);
        k->may_miss |= w->reads_fail;
        return;
    }
    check_bytes(w, k, bytes, settled);
}

void do_get(struct world *w, struct key *k)
{
    if (!w->halted)
        get_and_check(w, k, false);
}

void world_check(struct world *w, bool settled)
{
    trace(w, "check\n");
    for (unsigned i = 0; i < w->key_count; i++)
        get_and_check(w, &w->keys[i], settled);
}

/* ---- numbers ---- */

static uint64_t du(struct world *w, const char *path)
{
    char child[256];
    struct dirent *entry;
    struct stat st;
    DIR *dir = opendir(path);
    uint64_t bytes = 0;

    if (!dir)
        world_fail(w, "%s: %s", path, strerror(errno));
    if (lstat(path, &st) == 0)
        bytes += (uint64_t)st.st_blocks * 512;
    while ((entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        (void)snprintf(child, sizeof(child), "%s/%s", path, entry->d_name);
        if (lstat(child, &st) < 0)
            continue;
        bytes += S_ISDIR(st.st_mode) ? du(w, child) : (uint64_t)st.st_blocks * 512;
    }
    (void)closedir(dir);
    return bytes;
}

/* What is charged is what its parts say, to the byte: nothing was reserved and forgotten. */
static void check_charges(struct world *w)
{
    struct larder *l = w->l;
    struct store_usage usage;
    uint64_t parts = 3 * BLOCK_BYTES, charged = quota_charged(&l->quota);

    store_usage(l->store, &usage);
    parts += usage.charged_bytes + l->journal->files_charged + l->journal->emergency_left +
             atomic_load(&l->checkpoint_reserve_bytes);
    for (size_t i = 0; i < l->journal->index_count; i++)
        parts += l->journal->indexes[i].charged_bytes;
    if (parts != charged)
        world_fail(w, "%llu bytes are charged, the parts are %llu (%+lld)", (unsigned long long)charged,
                   (unsigned long long)parts, (long long)(charged - parts));
}

void world_check_numbers(struct world *w)
{
    struct larder *l = w->l;
    uint64_t on_disk = du(w, w->dir), charged = quota_charged(&l->quota);

    if (on_disk > charged)
        world_fail(w, "du says %llu bytes, charged are %llu", (unsigned long long)on_disk, (unsigned long long)charged);
    if (on_disk > l->opts.quota_bytes)
        world_fail(w, "du says %llu bytes, the quota is %llu", (unsigned long long)on_disk,
                   (unsigned long long)l->opts.quota_bytes);
    check_charges(w);
    lock_take(&l->lock);
    cache_check_invariants(l);
    lock_give(&l->lock);
}
