/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * notify: how the kernel's caches learn of what the engine took away (eviction, expiry, purge).
 *
 * The obvious message, FUSE_NOTIFY_INVAL_ENTRY, takes the parent directory's inode lock, and waits for it
 * uninterruptibly. A client that creates or unlinks in that directory holds the lock until we answer it.
 * Should this daemon be killed at that moment, its thread in the kernel keeps /dev/fuse open, the connection
 * is not aborted, and client and daemon wait for each other for good. So for a node nobody has open we use
 * messages that take no directory lock:
 *   INVAL_INODE (attributes only)  the next stat asks us; core answers ESTALE for a node that is gone, and the
 *                                  kernel then walks the path again with revalidation: a LOOKUP, a miss
 *   PRUNE (Linux 6.18)             drops the unused names of the inode at once and frees its memory
 * Only a node that is open still needs INVAL_ENTRY, because it has to answer to its holders by attribute.
 *
 * A LOOKUP answered just before may reach the kernel's cache after our message. Therefore each node is named
 * twice: at once, and again after NOTIFY_AGAIN_NS.
 *
 * Where no OPEN is sent (hits=sampled) the attributes are not enough: a name that is good for less long than was said has
 * to be looked up again. PRUNE does that, but for a file that is open; then the epoch is increased.
 *
 * When more leaves than the queue holds, the epoch is increased (Linux 6.16): every name is asked for again.
 * Before Linux 6.16 what does not fit is left to ESTALE alone.
 */
#include "fs/notify.h"

#include <errno.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fs/fs.h"
#include "fs/handle.h"
#include "fs/log.h"

#define NOTIFY_MAGIC 0x5946544eu /* "NTFY" */
#define NOTIFY_QUEUE_MAX (1u << 18)
#define NOTIFY_AGAIN_NS (500 * NS_PER_MS)
#define NOTIFY_BATCH 256u
#define NOTIFY_PRUNE_CODE 9    /* FUSE_NOTIFY_PRUNE; libfuse 3.18 has no call for it */

enum notify_kind { NOTIFY_NODE_GONE, NOTIFY_NODE_ATTR, NOTIFY_NODE_DATA, NOTIFY_NAME, NOTIFY_FORGET };

struct notify_item {
    uint64_t node;   /* the parent for NOTIFY_NAME */
    uint64_t due_ns; /* not before */
    char *name;      /* owned; NOTIFY_NAME only */
    enum notify_kind kind;
};

/* A ring of items in the order they are due. */
struct notify_queue {
    struct notify_item *items;
    uint32_t capacity, head, count;
};

struct notify {
    uint32_t magic;
    struct fs *fs; /* (c) */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct notify_queue fresh; /* (l) */
    struct notify_queue again; /* (t) the thread's: second messages */
    bool overflow;             /* (l) */
    bool stop;                 /* (l) */
    bool started;              /* (c) after notify_start */
    bool can_prune;            /* (t) */
    pthread_t thread;
};

/* The message as linux/fuse.h has it from 7.45 on. */
struct notify_prune_message {
    uint32_t len;
    int32_t code;
    uint64_t unique;
    uint32_t count, padding;
    uint64_t spare;
    uint64_t nodes[NOTIFY_BATCH];
};
_Static_assert(offsetof(struct notify_prune_message, nodes) == 32,
               "fuse_out_header and fuse_notify_prune_out");

int notify_new(struct fs *fs, struct notify **ret_notify)
{
    struct notify *n = calloc(1, sizeof(*n));
    pthread_condattr_t attr;

    if (!n)
        return -ENOMEM;
    n->magic = NOTIFY_MAGIC;
    n->fs = fs;
    (void)pthread_mutex_init(&n->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&n->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    *ret_notify = n;
    return 0;
}

static bool notify_queue_push(struct notify_queue *q, const struct notify_item *item)
{
    if (q->count == q->capacity) {
        uint32_t capacity = q->capacity ? q->capacity * 2 : 256;
        struct notify_item *items;

        if (capacity > NOTIFY_QUEUE_MAX)
            return false;
        items = malloc(capacity * sizeof(*items));
        if (!items)
            return false;
        for (uint32_t i = 0; i < q->count; i++)
            items[i] = q->items[(q->head + i) % q->capacity];
        free(q->items);
        q->items = items;
        q->capacity = capacity;
        q->head = 0;
    }
    q->items[(q->head + q->count++) % q->capacity] = *item;
    return true;
}

static bool notify_queue_pop(struct notify_queue *q, uint64_t now_ns, struct notify_item *ret_item)
{
    if (q->count == 0 || q->items[q->head].due_ns > now_ns)
        return false;
    *ret_item = q->items[q->head];
    q->head = (q->head + 1) % q->capacity;
    q->count--;
    return true;
}

static void notify_queue_free(struct notify_queue *q)
{
    struct notify_item item;

    while (notify_queue_pop(q, UINT64_MAX, &item))
        free(item.name);
    free(q->items);
}

static void notify_push(struct notify *n, const struct notify_item *item)
{
    CHECK_OBJ(n, NOTIFY_MAGIC);
    (void)pthread_mutex_lock(&n->lock);
    if (!notify_queue_push(&n->fresh, item)) {
        n->overflow = true;
        free(item->name);
    }
    if (n->fresh.count == 1 || n->overflow)
        (void)pthread_cond_signal(&n->wake);
    (void)pthread_mutex_unlock(&n->lock);
}

void notify_name_gone(void *ctx, uint64_t parent, uint64_t child, const char *name, size_t name_bytes)
{
    struct fs *fs = ctx;
    struct notify_item item = {.node = child, .kind = NOTIFY_NODE_GONE};

    CHECK_OBJ(fs, FS_MAGIC);
    atomic_fetch_add(&fs->gone_seq, 1);
    if (child == 0 || handle_node_is_open(fs->handles, child)) {
        item = (struct notify_item){.node = parent, .kind = NOTIFY_NAME, .name = strndup(name, name_bytes)};
        if (!item.name && child == 0)
            return; /* no memory: it will find out when it uses it */
        if (!item.name)
            item = (struct notify_item){.node = child, .kind = NOTIFY_NODE_GONE};
    }
    notify_push(fs->notify, &item);
}

void notify_node_changed(void *ctx, uint64_t node, bool data)
{
    struct fs *fs = ctx;
    struct notify_item item = {.node = node, .kind = data ? NOTIFY_NODE_DATA : NOTIFY_NODE_ATTR};

    CHECK_OBJ(fs, FS_MAGIC);
    atomic_fetch_add(&fs->gone_seq, 1);
    notify_push(fs->notify, &item);
}

void notify_please_forget(void *ctx, uint64_t node)
{
    struct fs *fs = ctx;

    CHECK_OBJ(fs, FS_MAGIC);
    notify_push(fs->notify, &(struct notify_item){.node = node, .kind = NOTIFY_FORGET});
}

/* The kernel refuses what it does not know (ENOENT): most nodes were never asked for, or are forgotten. */
static void notify_prune(struct notify *n, const uint64_t *nodes, uint32_t count)
{
    struct notify_prune_message message = {.code = NOTIFY_PRUNE_CODE, .count = count};

    if (!n->can_prune || count == 0)
        return;
    message.len = (uint32_t)(offsetof(struct notify_prune_message, nodes) + count * sizeof(nodes[0]));
    memcpy(message.nodes, nodes, count * sizeof(nodes[0]));
    if (write(fuse_session_fd(n->fs->session), &message, message.len) < 0 && errno == EINVAL)
        n->can_prune = false; /* a kernel without it */
}

static void notify_send(struct notify *n, const struct notify_item *item)
{
    struct fuse_session *se = n->fs->session;

    switch (item->kind) {
    case NOTIFY_NODE_GONE:
    case NOTIFY_NODE_ATTR:
        (void)fuse_lowlevel_notify_inval_inode(se, item->node, -1, 0);
        break;
    case NOTIFY_NODE_DATA:
        (void)fuse_lowlevel_notify_inval_inode(se, item->node, 0, 0);
        break;
    case NOTIFY_FORGET: /* the prune does it */
        break;
    case NOTIFY_NAME:
        (void)fuse_lowlevel_notify_inval_entry(se, item->node, item->name, strlen(item->name));
        break;
    }
}

/* Every name the kernel holds is asked for again. */
static int notify_increase_epoch(struct notify *n)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
    return fuse_lowlevel_notify_increment_epoch(n->fs->session);
#else
    (void)n;
    return -ENOSYS;
#endif
}

static void notify_everything(struct notify *n)
{
    int r = notify_increase_epoch(n);

    log_line(LARDER_LOG_WARNING, "event=notify_overflow queue=%u epoch=%s", NOTIFY_QUEUE_MAX,
             r == 0 ? "increased" : "unsupported");
}

static uint32_t notify_take_batch(struct notify *n, struct notify_item *batch, bool *ret_overflow)
{
    uint32_t count = 0;
    uint64_t now_ns = mono_ns();

    while (count < NOTIFY_BATCH / 2 && notify_queue_pop(&n->again, now_ns, &batch[count]))
        count++;
    (void)pthread_mutex_lock(&n->lock);
    while (count < NOTIFY_BATCH && notify_queue_pop(&n->fresh, now_ns, &batch[count]))
        count++;
    *ret_overflow = n->overflow;
    n->overflow = false;
    (void)pthread_mutex_unlock(&n->lock);
    return count;
}

/* Is its name to go from the kernel's cache, as nobody will ask by OPEN? */
static bool notify_takes_name(const struct notify *n, const struct notify_item *item)
{
    return item->kind == NOTIFY_NODE_GONE || item->kind == NOTIFY_FORGET ||
           (item->kind == NOTIFY_NODE_ATTR && n->fs->writers);
}

/* A name that did not go when it was asked to: the file is open, or is there anew. */
static bool notify_is_left(const struct notify *n, const struct notify_item *item)
{
    return item->due_ns > 0 && item->kind == NOTIFY_NODE_ATTR && n->fs->writers &&
           larder_file_is_known(n->fs->larder, item->node);
}

static void notify_run_batch(struct notify *n, struct notify_item *batch, uint32_t count)
{
    uint64_t gone[NOTIFY_BATCH];
    uint32_t gone_count = 0;
    uint64_t now_ns = mono_ns();
    bool left = false;

    for (uint32_t i = 0; i < count; i++) {
        struct notify_item *item = &batch[i];

        notify_send(n, item);
        left |= notify_is_left(n, item);
        if (notify_takes_name(n, item))
            gone[gone_count++] = item->node;
        if (item->kind != NOTIFY_NAME && item->kind != NOTIFY_FORGET && item->due_ns == 0) {
            item->due_ns = now_ns + NOTIFY_AGAIN_NS;
            (void)notify_queue_push(&n->again, item); /* full: once must do */
        }
        free(item->name);
    }
    notify_prune(n, gone, gone_count);
    if (left)
        (void)notify_increase_epoch(n); /* without it a name lasts as long as was said: core, name_valid_ns */
}

/* False when it is time to end. */
static bool notify_wait(struct notify *n)
{
    bool go_on;

    (void)pthread_mutex_lock(&n->lock);
    while (n->fresh.count == 0 && !n->overflow && !n->stop) {
        if (n->again.count > 0) {
            uint64_t due_ns = n->again.items[n->again.head].due_ns;
            struct timespec ts = {.tv_sec = (time_t)(due_ns / NS_PER_S),
                                  .tv_nsec = (long)(due_ns % NS_PER_S)};

            if (pthread_cond_timedwait(&n->wake, &n->lock, &ts) == ETIMEDOUT)
                break;
        } else {
            (void)pthread_cond_wait(&n->wake, &n->lock);
        }
    }
    go_on = !n->stop || n->fresh.count > 0;
    (void)pthread_mutex_unlock(&n->lock);
    return go_on;
}

static void *notify_main(void *arg)
{
    struct notify *n = arg;
    struct notify_item batch[NOTIFY_BATCH];

    CHECK_OBJ(n, NOTIFY_MAGIC);
    n->can_prune = n->fs->proto_minor >= NOTIFY_PRUNE_MINOR;
    while (notify_wait(n)) {
        bool overflow;
        uint32_t count = notify_take_batch(n, batch, &overflow);

        if (overflow)
            notify_everything(n);
        notify_run_batch(n, batch, count);
    }
    return NULL;
}

int notify_start(struct notify *n)
{
    int r;

    CHECK_OBJ(n, NOTIFY_MAGIC);
    r = pthread_create(&n->thread, NULL, notify_main, n);
    if (r != 0)
        return -r;
    n->started = true;
    return 0;
}

void notify_stop(struct notify *n)
{
    if (!n || !n->started)
        return;
    CHECK_OBJ(n, NOTIFY_MAGIC);
    (void)pthread_mutex_lock(&n->lock);
    n->stop = true;
    (void)pthread_cond_signal(&n->wake);
    (void)pthread_mutex_unlock(&n->lock);
    (void)pthread_join(n->thread, NULL);
    n->started = false;
}

void notify_free(struct notify *n)
{
    if (!n)
        return;
    notify_stop(n);
    notify_queue_free(&n->fresh);
    notify_queue_free(&n->again);
    (void)pthread_cond_destroy(&n->wake);
    (void)pthread_mutex_destroy(&n->lock);
    n->magic = 0;
    free(n);
}
