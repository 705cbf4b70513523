/* SPDX-License-Identifier: BSD-2-Clause */
/* writers: see writers.h. The lock is held for memory work only, never across a call of the engine. */
#include "fs/writers.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/queue.h>

#include "fs/log.h"
#include "fs/options.h"
#include "fs/sampled.h"

#define WRITERS_MAGIC 0x52545257u /* "WRTR" */
#define WRITERS_MOMENT_NS (500 * NS_PER_MS)
#define WRITERS_LOOK_NS (100 * NS_PER_MS) /* between two looks at who is due, while there is anyone */
#define WRITERS_MAX 256u
#define WRITERS_BUCKETS 256u
#define WRITERS_BYTES_MAX (64ull << 20)
#define WRITERS_QUOTA_SHARE 16u /* what waits cannot leave for room */
#define WRITERS_BUSY_NS (20 * NS_PER_MS) /* who changed it so lately is in the middle of it */

TAILQ_HEAD(writer_list, writer);

struct writer {
    struct writer *hash_next; /* (l) */
    TAILQ_ENTRY(writer) order; /* (l) */
    struct larder_file *file; /* (c) owned */
    uint64_t node;            /* (c) */
    uint64_t changed_ns;      /* (l) */
    uint64_t bytes;           /* (l) written, overwriting included */
    uint32_t users;           /* (l) requests in progress */
    bool changed;             /* (l) */
    bool forgotten;           /* (l) nobody has the node open */
};

struct writers {
    uint32_t magic;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct writer *buckets[WRITERS_BUCKETS]; /* (l) */
    struct writer_list list;                 /* (l) the one not changed for longest first */
    uint32_t count;                          /* (l) */
    uint64_t bytes;                          /* (l) of all */
    uint64_t bytes_max;                      /* (c) */
    bool hurry;                              /* (l) one was forgotten */
    bool awake;                              /* (l) there may be something to look after */
    bool stop;                               /* (l) */
    bool started;                            /* (c) after writers_start */
    struct fs *fs;                           /* (c) */
    pthread_t thread;
};

int writers_new(struct fs *fs, struct writers **ret_writers)
{
    struct writers *ws = calloc(1, sizeof(*ws));
    pthread_condattr_t attr;

    if (!ws)
        return -ENOMEM;
    ws->magic = WRITERS_MAGIC;
    ws->fs = fs;
    ws->bytes_max = MIN(WRITERS_BYTES_MAX, fs->opts->core.quota_bytes / WRITERS_QUOTA_SHARE);
    TAILQ_INIT(&ws->list);
    (void)pthread_mutex_init(&ws->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&ws->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    *ret_writers = ws;
    return 0;
}

struct larder_file *writer_file(const struct writer *w)
{
    return w->file;
}

/* ---- the table; lock held ---- */

static struct writer **writers_find(struct writers *ws, uint64_t node)
{
    struct writer **at = &ws->buckets[(node ^ node >> 32) % WRITERS_BUCKETS];

    CHECK_OBJ(ws, WRITERS_MAGIC);
    while (*at && (*at)->node != node)
        at = &(*at)->hash_next;
    return at;
}

static void writers_wake_locked(struct writers *ws)
{
    if (!ws->awake)
        (void)pthread_cond_signal(&ws->wake);
    ws->awake = true;
}

static void writers_insert(struct writers *ws, struct writer *w)
{
    struct writer **at = writers_find(ws, w->node);

    assert(!*at);
    *at = w;
    TAILQ_INSERT_TAIL(&ws->list, w, order);
    ws->count++;
    writers_wake_locked(ws);
}

static void writers_remove(struct writers *ws, struct writer *w)
{
    *writers_find(ws, w->node) = w->hash_next;
    TAILQ_REMOVE(&ws->list, w, order);
    ws->count--;
    ws->bytes -= w->bytes;
}

static bool writer_is_due(const struct writer *w, uint64_t before_ns)
{
    return w->users == 0 && (w->forgotten || w->changed_ns <= before_ns);
}

/* Takes out one that is due; NULL: none is. */
static struct writer *writers_remove_due(struct writers *ws, uint64_t before_ns, bool hurry)
{
    struct writer *w;

    (void)pthread_mutex_lock(&ws->lock);
    w = TAILQ_FIRST(&ws->list);
    while (w && !writer_is_due(w, before_ns)) /* a forgotten one may be anywhere */
        w = hurry || w->changed_ns <= before_ns ? TAILQ_NEXT(w, order) : NULL;
    if (w)
        writers_remove(ws, w);
    (void)pthread_mutex_unlock(&ws->lock);
    return w;
}

/* ---- the end of one ---- */

/* Who unlinked it and closed it wants nothing kept. */
static bool writer_is_gone(struct fs *fs, const struct writer *w)
{
    struct larder_attr attr;

    return w->forgotten && (larder_getattr(fs->larder, w->node, &attr) < 0 || attr.nlink == 0);
}

static int writer_close(struct fs *fs, struct writer *w)
{
    int r = writer_is_gone(fs, w) ? 0 : larder_flush(w->file);

    if (r == -ENOSPC) {
        (void)sampled_close_idle(fs, UINT64_MAX); /* what is read here cannot leave */
        r = larder_flush(w->file);
    }
    larder_abandon(w->file); /* who changes it from now on has a writer of his own */
    free(w);
    return r;
}

/* Nobody waits for what became of it. */
static void writer_close_untold(struct fs *fs, struct writer *w)
{
    uint64_t node = w->node;
    int r = writer_close(fs, w);

    if (r == 0)
        return;
    larder_count_error(fs->larder, r);
    log_line(LARDER_LOG_WARNING, "event=not_committed node=%llx error=%d consequence=\"the value before stays\"",
             (unsigned long long)node, -r);
}

/* ---- taking and giving ---- */

static int writer_new(struct larder_file *file, struct writer **ret_writer)
{
    struct writer *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->file = file;
    w->node = larder_file_node(file);
    w->changed_ns = mono_ns();
    *ret_writer = w;
    return 0;
}

/* Before when a writer has to be changed last to go now; 0: none has to. */
static uint64_t writers_too_many(struct writers *ws)
{
    uint64_t before_ns = 0;

    (void)pthread_mutex_lock(&ws->lock);
    if (ws->bytes > ws->bytes_max)
        before_ns = mono_ns() - WRITERS_BUSY_NS;
    if (ws->count > WRITERS_MAX)
        before_ns = UINT64_MAX;
    (void)pthread_mutex_unlock(&ws->lock);
    return before_ns;
}

static void writers_bound(struct fs *fs)
{
    struct writer *w = NULL;
    uint64_t before_ns;

    do {
        before_ns = writers_too_many(fs->writers);
        w = before_ns ? writers_remove_due(fs->writers, before_ns, false) : NULL; /* NULL: all others are in use */
        if (w)
            writer_close_untold(fs, w);
    } while (w);
}

static struct writer *writers_use(struct writers *ws, uint64_t node)
{
    struct writer *w;

    (void)pthread_mutex_lock(&ws->lock);
    w = *writers_find(ws, node);
    if (w) {
        w->users++;
        w->forgotten = false;
    }
    (void)pthread_mutex_unlock(&ws->lock);
    return w;
}

int writers_take(struct fs *fs, uint64_t node, struct writer **ret_writer)
{
    struct writers *ws = fs->writers;
    struct writer *other, *w = writers_use(ws, node);
    struct larder_file *file;
    int r;

    if (w) {
        *ret_writer = w;
        return 0;
    }
    r = larder_open_file(fs->larder, node, O_RDWR, &file);
    if (r < 0)
        return r;
    r = writer_new(file, &w);
    if (r < 0) {
        larder_abandon(file);
        return r;
    }
    (void)pthread_mutex_lock(&ws->lock);
    other = *writers_find(ws, node);
    if (!other)
        writers_insert(ws, w);
    else
        other->forgotten = false;
    (other ? other : w)->users++;
    (void)pthread_mutex_unlock(&ws->lock);
    if (other) { /* somebody was faster */
        larder_abandon(file);
        free(w);
    }
    writers_bound(fs);
    *ret_writer = other ? other : w;
    return 0;
}

int writers_add(struct fs *fs, struct larder_file *file)
{
    struct writers *ws = fs->writers;
    struct writer *w;
    int r = writer_new(file, &w);

    if (r < 0)
        return r;
    w->changed = true;
    (void)pthread_mutex_lock(&ws->lock);
    writers_insert(ws, w);
    (void)pthread_mutex_unlock(&ws->lock);
    writers_bound(fs);
    return 0;
}

void writers_give(struct fs *fs, struct writer *w, bool changed, uint64_t bytes)
{
    struct writers *ws = fs->writers;
    bool unused, too_much;

    (void)pthread_mutex_lock(&ws->lock);
    assert(w->users > 0);
    w->users--;
    w->bytes += bytes;
    ws->bytes += bytes;
    if (changed) {
        w->changed = true;
        w->changed_ns = mono_ns();
        TAILQ_REMOVE(&ws->list, w, order);
        TAILQ_INSERT_TAIL(&ws->list, w, order);
    }
    unused = w->users == 0 && !w->changed;
    too_much = bytes > 0 && ws->bytes > ws->bytes_max;
    if (unused)
        writers_remove(ws, w);
    (void)pthread_mutex_unlock(&ws->lock);
    if (unused) {
        larder_abandon(w->file);
        free(w);
    }
    if (too_much)
        writers_bound(fs);
}

int writers_commit(struct fs *fs, uint64_t node)
{
    struct writers *ws = fs->writers;
    struct writer *w;
    bool used;
    int r;

    (void)pthread_mutex_lock(&ws->lock);
    w = *writers_find(ws, node);
    used = w && w->users > 0;
    if (used)
        w->users++;
    else if (w)
        writers_remove(ws, w);
    (void)pthread_mutex_unlock(&ws->lock);
    if (!w)
        return 0;
    if (!used)
        return writer_close(fs, w);
    r = larder_flush(w->file);
    writers_give(fs, w, false, 0);
    return r;
}

void writers_forgotten(struct fs *fs, uint64_t node)
{
    struct writers *ws = fs->writers;
    struct writer *w;

    (void)pthread_mutex_lock(&ws->lock);
    w = *writers_find(ws, node);
    if (w) {
        w->forgotten = true;
        ws->hurry = true;
        (void)pthread_cond_signal(&ws->wake);
    }
    (void)pthread_mutex_unlock(&ws->lock);
}

void writers_close_idle(struct fs *fs)
{
    struct writer *w;

    while ((w = writers_remove_due(fs->writers, UINT64_MAX, false)))
        writer_close_untold(fs, w);
    (void)sampled_close_idle(fs, UINT64_MAX);
}

void writers_wake(struct fs *fs)
{
    struct writers *ws = fs->writers;

    (void)pthread_mutex_lock(&ws->lock);
    writers_wake_locked(ws);
    (void)pthread_mutex_unlock(&ws->lock);
}

/* ---- the thread ---- */

/* False when it is time to end. */
static bool writers_wait(struct writers *ws, bool *ret_hurry)
{
    uint64_t until_ns = mono_ns() + WRITERS_LOOK_NS;
    struct timespec ts = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    bool go_on;
    int r = 0;

    (void)pthread_mutex_lock(&ws->lock);
    while (!ws->stop && !ws->hurry && !ws->awake)
        (void)pthread_cond_wait(&ws->wake, &ws->lock);
    while (!ws->stop && !ws->hurry && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&ws->wake, &ws->lock, &ts);
    *ret_hurry = ws->hurry;
    ws->hurry = false;
    ws->awake = ws->count > 0;
    go_on = !ws->stop;
    (void)pthread_mutex_unlock(&ws->lock);
    return go_on;
}

static void *writers_main(void *arg)
{
    struct writers *ws = arg;
    struct fs *fs = ws->fs;
    bool hurry;

    while (writers_wait(ws, &hurry)) {
        uint64_t before_ns = mono_ns() - WRITERS_MOMENT_NS;
        struct writer *w;

        while ((w = writers_remove_due(ws, before_ns, hurry)))
            writer_close_untold(fs, w);
        if (sampled_close_idle(fs, before_ns))
            writers_wake(fs);
    }
    return NULL;
}

int writers_start(struct fs *fs)
{
    struct writers *ws = fs->writers;
    int r;

    CHECK_OBJ(ws, WRITERS_MAGIC);
    r = pthread_create(&ws->thread, NULL, writers_main, ws);
    if (r != 0)
        return -r;
    ws->started = true;
    return 0;
}

void writers_free(struct writers *ws)
{
    struct writer *w;

    if (!ws)
        return;
    CHECK_OBJ(ws, WRITERS_MAGIC);
    if (ws->started) {
        (void)pthread_mutex_lock(&ws->lock);
        ws->stop = true;
        (void)pthread_cond_signal(&ws->wake);
        (void)pthread_mutex_unlock(&ws->lock);
        (void)pthread_join(ws->thread, NULL);
    }
    while ((w = writers_remove_due(ws, UINT64_MAX, false)))
        writer_close_untold(ws->fs, w);
    (void)pthread_cond_destroy(&ws->wake);
    (void)pthread_mutex_destroy(&ws->lock);
    ws->magic = 0;
    free(ws);
}
