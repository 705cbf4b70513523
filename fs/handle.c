/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handle: open files, and the table of nodes with open files that keeps their opens in agreement.
 * The table's lock of a node is held across the backing ioctls, which only touch the kernel's own table.
 */
#include "fs/handle.h"

#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>

#define HANDLE_MAGIC 0x4c444e48u  /* "HNDL" */
#define HANDLES_MAGIC 0x534c4448u /* "HDLS" */
#define HANDLE_BUCKETS 1024u      /* power of two */

/* Every handle there is. */
static pthread_mutex_t handle_all_lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(, handle) handle_all = LIST_HEAD_INITIALIZER(handle_all); /* (g) handle_all_lock */

struct handle_node {
    struct handle_node *next;
    uint64_t node;
    uint32_t cached, backed, direct; /* opens; backed counts MIXED too. Two of the three are 0. */
    bool shared;                     /* several direct opens at a time, since the first */
    int32_t backing_id;      /* 0: none */
    dev_t backing_dev;
    ino_t backing_ino;
};

struct handle_bucket {
    pthread_mutex_t lock;
    struct handle_node *first; /* (l) */
};

struct handles {
    uint32_t magic;
    struct handle_bucket buckets[HANDLE_BUCKETS];
};

int handles_new(struct handles **ret_handles)
{
    struct handles *hs = calloc(1, sizeof(*hs));

    if (!hs)
        return -ENOMEM;
    hs->magic = HANDLES_MAGIC;
    for (size_t i = 0; i < HANDLE_BUCKETS; i++)
        (void)pthread_mutex_init(&hs->buckets[i].lock, NULL);
    *ret_handles = hs;
    return 0;
}

void handles_free(struct handles *hs)
{
    if (!hs)
        return;
    CHECK_OBJ(hs, HANDLES_MAGIC);
    for (size_t i = 0; i < HANDLE_BUCKETS; i++) {
        struct handle_node *next;

        for (struct handle_node *e = hs->buckets[i].first; e; e = next) {
            next = e->next;
            free(e);
        }
        (void)pthread_mutex_destroy(&hs->buckets[i].lock);
    }
    hs->magic = 0;
    free(hs);
}

int handle_new(uint64_t node, struct handle **ret_handle)
{
    struct handle *h = calloc(1, sizeof(*h));

    if (!h)
        return -ENOMEM;
    h->magic = HANDLE_MAGIC;
    h->node = node;
    (void)pthread_mutex_lock(&handle_all_lock);
    LIST_INSERT_HEAD(&handle_all, h, all);
    (void)pthread_mutex_unlock(&handle_all_lock);
    *ret_handle = h;
    return 0;
}

void handle_free(struct handle *h)
{
    if (!h)
        return;
    CHECK_OBJ(h, HANDLE_MAGIC);
    (void)pthread_mutex_lock(&handle_all_lock);
    LIST_REMOVE(h, all);
    (void)pthread_mutex_unlock(&handle_all_lock);
    if (h->file && h->over)
        larder_abandon(h->file);
    else if (h->file)
        larder_release(h->file);
    if (h->dir)
        larder_close_dir(h->dir);
    text_free(&h->text);
    h->magic = 0;
    free(h);
}

void handle_free_all(void)
{
    struct handle *h;

    while ((h = LIST_FIRST(&handle_all))) { /* no other thread is left */
        h->over = true;
        handle_free(h);
    }
}

struct handle *handle_from(const struct fuse_file_info *fi)
{
    struct handle *h = (struct handle *)(uintptr_t)fi->fh;

    CHECK_OBJ(h, HANDLE_MAGIC);
    return h;
}

static struct handle_bucket *handle_bucket(struct handles *hs, uint64_t node)
{
    CHECK_OBJ(hs, HANDLES_MAGIC);
    return &hs->buckets[(node * 0x9e3779b97f4a7c15ull) >> 54]; /* the upper 10 bits: HANDLE_BUCKETS */
}
_Static_assert(HANDLE_BUCKETS == 1u << 10, "the hash keeps 10 bits");

static struct handle_node *handle_find_locked(struct handle_bucket *b, uint64_t node)
{
    struct handle_node *e = b->first;

    while (e && e->node != node)
        e = e->next;
    return e;
}

bool handle_node_is_open(struct handles *hs, uint64_t node)
{
    struct handle_bucket *b = handle_bucket(hs, node);
    bool open;

    (void)pthread_mutex_lock(&b->lock);
    open = handle_find_locked(b, node) != NULL;
    (void)pthread_mutex_unlock(&b->lock);
    return open;
}

bool handle_may_be_backed(struct handles *hs, uint64_t node)
{
    struct handle_bucket *b = handle_bucket(hs, node);
    struct handle_node *e;
    bool may;

    (void)pthread_mutex_lock(&b->lock);
    e = handle_find_locked(b, node);
    may = !e || (e->cached == 0 && e->direct == 0);
    (void)pthread_mutex_unlock(&b->lock);
    return may;
}

static struct handle_node *handle_find_or_add_locked(struct handle_bucket *b, uint64_t node)
{
    struct handle_node *e = handle_find_locked(b, node);

    if (e)
        return e;
    e = calloc(1, sizeof(*e));
    if (!e)
        return NULL;
    e->node = node;
    e->next = b->first;
    b->first = e;
    return e;
}

static void handle_remove_unused_locked(struct handle_bucket *b, uint64_t node)
{
    for (struct handle_node **at = &b->first; *at; at = &(*at)->next) {
        struct handle_node *e = *at;

        if (e->node != node)
            continue;
        if (e->cached == 0 && e->backed == 0 && e->direct == 0) {
            *at = e->next;
            free(e);
        }
        return;
    }
}

#if HAVE_FUSE_PASSTHROUGH
/* Of a node without cached and direct opens. */
static enum handle_mode handle_choose_backed_locked(fuse_req_t req, struct handle_node *e, int backing_fd)
{
    struct stat st;

    if (e->backed > 0) {
        bool same =
            backing_fd >= 0 && fstat(backing_fd, &st) == 0 && st.st_dev == e->backing_dev &&
            st.st_ino == e->backing_ino; /* the kernel holds that file: its number cannot be another's */
        return same ? HANDLE_BACKED : HANDLE_MIXED;
    }
    if (backing_fd < 0 || fstat(backing_fd, &st) < 0)
        return HANDLE_CACHED;
    e->backing_id = fuse_passthrough_open(req, backing_fd);
    if (e->backing_id <= 0)
        return HANDLE_CACHED; /* a file system that cannot be backed: through the page cache, then */
    e->backing_dev = st.st_dev;
    e->backing_ino = st.st_ino;
    return HANDLE_BACKED;
}
#else
static enum handle_mode handle_choose_backed_locked(fuse_req_t req, struct handle_node *e, int backing_fd)
{
    (void)req;
    (void)e;
    (void)backing_fd;
    return HANDLE_CACHED;
}
#endif

static enum handle_mode handle_choose_locked(fuse_req_t req, struct handle_node *e, const struct handle *h, int backing_fd)
{
    if (e->cached > 0)
        return HANDLE_CACHED;
    if (e->direct > 0 || (e->backed == 0 && h->write_only))
        return HANDLE_DIRECT;
    return handle_choose_backed_locked(req, e, backing_fd);
}

static uint32_t *handle_count(struct handle_node *e, enum handle_mode mode)
{
    switch (mode) {
    case HANDLE_CACHED:
        return &e->cached;
    case HANDLE_DIRECT:
        return &e->direct;
    default:
        return &e->backed;
    }
}

int handle_enter(struct fs *fs, fuse_req_t req, struct handle *h, int backing_fd, struct fuse_file_info *fi)
{
    struct handle_bucket *b = handle_bucket(fs->handles, h->node);
    struct handle_node *e;

    (void)pthread_mutex_lock(&b->lock);
    e = handle_find_or_add_locked(b, h->node);
    if (e) {
        h->mode = handle_choose_locked(req, e, h, backing_fd);
        ++*handle_count(e, h->mode);
        e->shared |= e->direct > 1;
#if HAVE_FUSE_PASSTHROUGH
        fi->backing_id = e->backed > 0 ? e->backing_id : 0;
#endif
    }
    (void)pthread_mutex_unlock(&b->lock);
    if (!e)
        return -ENOMEM;
    fi->fh = (uintptr_t)h;
    fi->keep_cache = h->mode == HANDLE_CACHED;
    fi->direct_io = h->mode == HANDLE_MIXED || h->mode == HANDLE_DIRECT;
    fi->noflush = !h->writable; /* nothing to commit */
    return 0;
}

bool handle_leave(struct fs *fs, fuse_req_t req, struct handle *h)
{
    struct handle_bucket *b = handle_bucket(fs->handles, h->node);
    struct handle_node *e;
    bool stale;

    (void)pthread_mutex_lock(&b->lock);
    e = handle_find_locked(b, h->node);
    assert(e);
    assert(*handle_count(e, h->mode) > 0);
    --*handle_count(e, h->mode);
    stale = h->writable && (h->mode == HANDLE_MIXED || (h->mode == HANDLE_DIRECT && e->shared));
#if HAVE_FUSE_PASSTHROUGH
    if ((h->mode == HANDLE_BACKED || h->mode == HANDLE_MIXED) && e->backed == 0)
        (void)fuse_passthrough_close(req, e->backing_id); /* keeps H1; libfuse logs a failure */
#else
    (void)req;
#endif
    handle_remove_unused_locked(b, h->node);
    (void)pthread_mutex_unlock(&b->lock);
    return stale;
}
