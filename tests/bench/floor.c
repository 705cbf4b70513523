/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * floor: what FUSE itself costs. A file system in memory that does the least a correct one must: names, nodes, bytes,
 * times; everything the kernel may cache it may cache for ever. No journal, no quota, no checksum, no statistics.
 *
 *     floor MOUNTPOINT OPTIONS [no_open]
 *
 * OPTIONS are libfuse's (io_uring among them). It stays in the foreground; umount or SIGTERM ends it. no_open answers
 * OPEN with ENOSYS, so that the kernel never asks again. listxattr of the root makes the kernel forget every name and
 * page below it: what a remount does to a file system that has a disk.
 *
 * One lock for all: requests are short, and a floor is no place for cleverness. A node lives as long as it has a name or
 * the kernel knows it.
 */
#define FUSE_USE_VERSION 317

#include <errno.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FLOOR_BUCKETS (1u << 20)
#define FLOOR_FOREVER_S 1e9
#define FLOOR_DATA_BYTES_MIN 256u

struct node {
    struct stat st;
    uint64_t lookups;
    uint32_t names;
    uint32_t children; /* of a directory */
    uint8_t *data;
    size_t room;
    struct dentry *first; /* of a directory */
};

struct dentry {
    struct dentry *next_in_bucket, *next, *previous;
    struct node *parent, *node;
    char name[];
};

/* What opendir saw; entries that come or go meanwhile are neither here nor there. */
struct listing {
    size_t count;
    char **names;
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct node root;
static struct dentry *buckets[FLOOR_BUCKETS];
static struct fuse_session *session;
static bool no_open;

/* ---- nodes and names; the lock is held ---- */

static struct node *node_of(fuse_ino_t ino)
{
    return ino == FUSE_ROOT_ID ? &root : (struct node *)(uintptr_t)ino;
}

static struct dentry **dentry_bucket(const struct node *parent, const char *name)
{
    uint64_t hash = (uintptr_t)parent * 0x9e3779b97f4a7c15ull;

    while (*name)
        hash = (hash ^ (uint8_t)*name++) * 0x100000001b3ull;
    return &buckets[(hash ^ hash >> 32) % FLOOR_BUCKETS];
}

static struct dentry *dentry_find(const struct node *parent, const char *name)
{
    for (struct dentry *d = *dentry_bucket(parent, name); d; d = d->next_in_bucket)
        if (d->parent == parent && strcmp(d->name, name) == 0)
            return d;
    return NULL;
}

static void node_touch(struct node *n)
{
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &n->st.st_ctim);
    n->st.st_mtim = n->st.st_ctim;
}

static struct node *node_new(fuse_req_t req, mode_t mode)
{
    struct node *n = calloc(1, sizeof(*n));

    if (!n)
        return NULL;
    n->st.st_mode = mode;
    n->st.st_nlink = S_ISDIR(mode) ? 2 : 1;
    n->st.st_uid = fuse_req_ctx(req)->uid;
    n->st.st_gid = fuse_req_ctx(req)->gid;
    n->st.st_ino = (ino_t)(uintptr_t)n;
    n->st.st_blksize = 4096;
    node_touch(n);
    n->st.st_atim = n->st.st_mtim;
    return n;
}

static void node_drop(struct node *n)
{
    if (n == &root || n->names > 0 || n->lookups > 0)
        return;
    free(n->data);
    free(n);
}

static int dentry_add(struct node *parent, const char *name, struct node *n)
{
    struct dentry **bucket = dentry_bucket(parent, name), *d = malloc(sizeof(*d) + strlen(name) + 1);

    if (!d)
        return ENOMEM;
    (void)memcpy(d->name, name, strlen(name) + 1);
    d->parent = parent;
    d->node = n;
    d->next_in_bucket = *bucket;
    *bucket = d;
    d->previous = NULL;
    d->next = parent->first;
    if (d->next)
        d->next->previous = d;
    parent->first = d;
    parent->children++;
    n->names++;
    node_touch(parent);
    return 0;
}

static void dentry_remove(struct dentry *d)
{
    struct dentry **at = dentry_bucket(d->parent, d->name);
    struct node *n = d->node;

    while (*at != d)
        at = &(*at)->next_in_bucket;
    *at = d->next_in_bucket;
    if (d->next)
        d->next->previous = d->previous;
    if (d->previous)
        d->previous->next = d->next;
    else
        d->parent->first = d->next;
    d->parent->children--;
    node_touch(d->parent);
    n->names--;
    n->st.st_nlink = 0;
    node_drop(n);
    free(d);
}

static void entry_fill(struct node *n, struct fuse_entry_param *e)
{
    memset(e, 0, sizeof(*e));
    e->ino = n == &root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)n;
    e->attr = n->st;
    e->attr_timeout = FLOOR_FOREVER_S;
    e->entry_timeout = FLOOR_FOREVER_S;
}

/* ---- names ---- */

static void floor_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    fuse_unset_feature_flag(conn, FUSE_CAP_AUTO_INVAL_DATA);
    (void)fuse_set_feature_flag(conn, FUSE_CAP_EXPLICIT_INVAL_DATA);
    (void)fuse_set_feature_flag(conn, FUSE_CAP_PARALLEL_DIROPS);
    (void)fuse_set_feature_flag(conn, FUSE_CAP_READDIRPLUS);
    (void)fuse_set_feature_flag(conn, FUSE_CAP_READDIRPLUS_AUTO);
    (void)fuse_set_feature_flag(conn, FUSE_CAP_ATOMIC_O_TRUNC);
    fuse_unset_feature_flag(conn, FUSE_CAP_SPLICE_READ);
    conn->no_interrupt = 1;
}

static void floor_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {.entry_timeout = FLOOR_FOREVER_S};
    struct dentry *d;

    (void)pthread_rwlock_wrlock(&lock);
    d = dentry_find(node_of(parent), name);
    if (d) {
        d->node->lookups++;
        entry_fill(d->node, &e);
    }
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_entry(req, &e); /* ino 0: not there, and that may be cached */
}

static void floor_forget_one(fuse_ino_t ino, uint64_t count)
{
    struct node *n = node_of(ino);

    n->lookups -= count < n->lookups ? count : n->lookups;
    node_drop(n);
}

static void floor_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
    (void)pthread_rwlock_wrlock(&lock);
    floor_forget_one(ino, count);
    (void)pthread_rwlock_unlock(&lock);
    fuse_reply_none(req);
}

static void floor_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    (void)pthread_rwlock_wrlock(&lock);
    for (size_t i = 0; i < count; i++)
        floor_forget_one(forgets[i].ino, forgets[i].nlookup);
    (void)pthread_rwlock_unlock(&lock);
    fuse_reply_none(req);
}

/* A new node under a name, known to the kernel. 0 or an errno. */
static int floor_make(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_entry_param *e)
{
    struct node *n;
    int error = 0;

    (void)pthread_rwlock_wrlock(&lock);
    n = dentry_find(node_of(parent), name) ? NULL : node_new(req, mode);
    if (!n) {
        error = EEXIST;
    } else {
        error = dentry_add(node_of(parent), name, n);
        n->lookups = 1;
        entry_fill(n, e);
    }
    (void)pthread_rwlock_unlock(&lock);
    return error;
}

static void floor_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct fuse_entry_param e;
    int error = floor_make(req, parent, name, mode | S_IFDIR, &e);

    if (error)
        (void)fuse_reply_err(req, error);
    else
        (void)fuse_reply_entry(req, &e);
}

static void floor_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                         struct fuse_file_info *fi)
{
    struct fuse_entry_param e;
    int error = floor_make(req, parent, name, mode | S_IFREG, &e);

    fi->keep_cache = 1;
    if (error)
        (void)fuse_reply_err(req, error);
    else
        (void)fuse_reply_create(req, &e, fi);
}

static void floor_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct dentry *d;

    (void)pthread_rwlock_wrlock(&lock);
    d = dentry_find(node_of(parent), name);
    if (d)
        dentry_remove(d);
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_err(req, d ? 0 : ENOENT);
}

static void floor_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct dentry *d;
    int error = ENOENT;

    (void)pthread_rwlock_wrlock(&lock);
    d = dentry_find(node_of(parent), name);
    if (d)
        error = d->node->children ? ENOTEMPTY : 0;
    if (d && !error)
        dentry_remove(d);
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_err(req, error);
}

static void floor_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t to,
                         const char *to_name, unsigned int flags)
{
    struct dentry *d, *old;
    struct node *n;
    int error;

    if (flags) {
        (void)fuse_reply_err(req, EINVAL);
        return;
    }
    (void)pthread_rwlock_wrlock(&lock);
    d = dentry_find(node_of(parent), name);
    error = d ? dentry_add(node_of(to), to_name, d->node)
              : ENOENT; /* it comes before the old one in its bucket */
    if (!error) {
        n = d->node;
        dentry_remove(d);
        n->st.st_nlink = 1;
        for (old = dentry_find(node_of(to), to_name)->next_in_bucket; old; old = old->next_in_bucket)
            if (old->parent == node_of(to) && strcmp(old->name, to_name) == 0) {
                dentry_remove(old);
                break;
            }
    }
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_err(req, error);
}

/* ---- attributes ---- */

static void floor_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;

    (void)fi;
    (void)pthread_rwlock_rdlock(&lock);
    st = node_of(ino)->st;
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_attr(req, &st, FLOOR_FOREVER_S);
}

static int node_grow(struct node *n, size_t bytes)
{
    size_t room = n->room ? n->room : FLOOR_DATA_BYTES_MIN;
    uint8_t *data;

    if (bytes <= n->room)
        return 0;
    while (room < bytes)
        room *= 2;
    if (n->room == 0)
        room = bytes; /* most values are written once */
    data = realloc(n->data, room);
    if (!data)
        return ENOSPC;
    n->data = data;
    n->room = room;
    return 0;
}

static int node_resize(struct node *n, size_t bytes)
{
    size_t now = (size_t)n->st.st_size;
    int error = node_grow(n, bytes);

    if (error)
        return error;
    if (bytes > now)
        memset(n->data + now, 0, bytes - now);
    n->st.st_size = (off_t)bytes;
    n->st.st_blocks = (blkcnt_t)((bytes + 511) / 512);
    return 0;
}

static void floor_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                          struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    struct stat st;
    int error = 0;

    (void)fi;
    (void)pthread_rwlock_wrlock(&lock);
    if (to_set & FUSE_SET_ATTR_SIZE)
        error = node_resize(n, (size_t)attr->st_size);
    if (to_set & FUSE_SET_ATTR_MODE)
        n->st.st_mode = (n->st.st_mode & S_IFMT) | (attr->st_mode & 07777);
    if (to_set & FUSE_SET_ATTR_UID)
        n->st.st_uid = attr->st_uid;
    if (to_set & FUSE_SET_ATTR_GID)
        n->st.st_gid = attr->st_gid;
    node_touch(n);
    if (to_set & FUSE_SET_ATTR_MTIME)
        n->st.st_mtim = attr->st_mtim;
    if (to_set & FUSE_SET_ATTR_ATIME)
        n->st.st_atim = attr->st_atim;
    st = n->st;
    (void)pthread_rwlock_unlock(&lock);
    if (error)
        (void)fuse_reply_err(req, error);
    else
        (void)fuse_reply_attr(req, &st, FLOOR_FOREVER_S);
}

/* ---- bytes ---- */

static void floor_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (no_open) {
        (void)fuse_reply_err(req, ENOSYS);
        return;
    }
    if (fi->flags & O_TRUNC) {
        (void)pthread_rwlock_wrlock(&lock);
        (void)node_resize(node_of(ino), 0);
        node_touch(node_of(ino));
        (void)pthread_rwlock_unlock(&lock);
    }
    fi->keep_cache = 1;
    fi->noflush = 1;
    (void)fuse_reply_open(req, fi);
}

static void floor_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    size_t left;

    (void)fi;
    (void)pthread_rwlock_rdlock(&lock); /* the bytes may not move before they are copied */
    left = offset < n->st.st_size ? (size_t)(n->st.st_size - offset) : 0;
    (void)fuse_reply_buf(req, (const char *)n->data + offset, left < size ? left : size);
    (void)pthread_rwlock_unlock(&lock);
}

static void floor_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t offset,
                        struct fuse_file_info *fi)
{
    struct node *n = node_of(ino);
    size_t end = (size_t)offset + size;
    int error = 0;

    (void)fi;
    (void)pthread_rwlock_wrlock(&lock);
    if (end > (size_t)n->st.st_size) {
        if ((size_t)offset > (size_t)n->st.st_size)
            error = node_resize(n, (size_t)offset);
        if (!error)
            error = node_grow(n, end);
        if (!error) {
            n->st.st_size = (off_t)end;
            n->st.st_blocks = (blkcnt_t)((end + 511) / 512);
        }
    }
    if (!error)
        memcpy(n->data + offset, buf, size);
    node_touch(n);
    (void)pthread_rwlock_unlock(&lock);
    if (error)
        (void)fuse_reply_err(req, error);
    else
        (void)fuse_reply_write(req, size);
}

static void floor_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    (void)fuse_reply_err(req, 0);
}

static void floor_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs st = {.f_bsize = 4096,
                         .f_frsize = 4096,
                         .f_blocks = 1u << 30,
                         .f_bfree = 1u << 30,
                         .f_bavail = 1u << 30,
                         .f_namemax = 255};

    (void)ino;
    (void)fuse_reply_statfs(req, &st);
}

/* ---- listings ---- */

static void listing_free(struct listing *l)
{
    for (size_t i = 0; l && i < l->count; i++)
        free(l->names[i]);
    if (l)
        free(l->names);
    free(l);
}

static struct listing *listing_new(struct node *n)
{
    struct listing *l = calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    l->names = calloc(n->children + 1, sizeof(*l->names));
    for (struct dentry *d = l->names ? n->first : NULL; d; d = d->next)
        l->names[l->count++] = strdup(d->name);
    return l;
}

static void floor_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct listing *l;

    (void)pthread_rwlock_rdlock(&lock);
    l = listing_new(node_of(ino));
    (void)pthread_rwlock_unlock(&lock);
    fi->fh = (uintptr_t)l;
    if (!l)
        (void)fuse_reply_err(req, ENOMEM);
    else if (fuse_reply_open(req, fi) < 0)
        listing_free(l);
}

static void floor_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    listing_free((struct listing *)(uintptr_t)fi->fh);
    (void)fuse_reply_err(req, 0);
}

static void floor_list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi,
                       bool plus)
{
    const struct listing *l = (const struct listing *)(uintptr_t)fi->fh;
    char *buf = malloc(size);
    size_t used = 0;

    (void)pthread_rwlock_wrlock(&lock);
    for (size_t i = (size_t)offset; buf && i < l->count; i++) {
        struct dentry *d = dentry_find(node_of(ino), l->names[i]);
        struct fuse_entry_param e;
        size_t need;

        if (!d)
            continue;
        entry_fill(d->node, &e);
        need = plus ? fuse_add_direntry_plus(req, buf + used, size - used, d->name, &e, (off_t)i + 1)
                    : fuse_add_direntry(req, buf + used, size - used, d->name, &e.attr, (off_t)i + 1);
        if (need > size - used)
            break;
        used += need;
        if (plus)
            d->node->lookups++;
    }
    (void)pthread_rwlock_unlock(&lock);
    (void)fuse_reply_buf(req, buf, used);
    free(buf);
}

static void floor_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                          struct fuse_file_info *fi)
{
    floor_list(req, ino, size, offset, fi, false);
}

static void floor_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                              struct fuse_file_info *fi)
{
    floor_list(req, ino, size, offset, fi, true);
}

/* The kernel forgets what is below a directory, leaves first. No client is at work, so the tree stands still; the lock
 * is not held, since FORGETs come of it. */
static void floor_forget_below(struct node *dir)
{
    struct fuse_entry_param e;

    for (struct dentry *d = dir->first; d; d = d->next) {
        if (S_ISDIR(d->node->st.st_mode))
            floor_forget_below(d->node);
        entry_fill(dir, &e);
        (void)fuse_lowlevel_notify_inval_entry(session, e.ino, d->name,
                                               strlen(d->name)); /* not known: as good */
    }
}

static void floor_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    (void)size;
    if (ino == FUSE_ROOT_ID)
        floor_forget_below(&root);
    (void)fuse_reply_err(req, ENOTSUP);
}

static const struct fuse_lowlevel_ops operations = {
    .init = floor_init,
    .lookup = floor_lookup,
    .forget = floor_forget,
    .forget_multi = floor_forget_multi,
    .getattr = floor_getattr,
    .setattr = floor_setattr,
    .mkdir = floor_mkdir,
    .unlink = floor_unlink,
    .rmdir = floor_rmdir,
    .rename = floor_rename,
    .create = floor_create,
    .open = floor_open,
    .read = floor_read,
    .write = floor_write,
    .release = floor_release,
    .statfs = floor_statfs,
    .opendir = floor_opendir,
    .readdir = floor_readdir,
    .readdirplus = floor_readdirplus,
    .releasedir = floor_releasedir,
    .listxattr = floor_listxattr,
};

static int floor_serve(const char *mountpoint)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    int r = -1;

    if (config && fuse_set_signal_handlers(session) == 0 && fuse_session_mount(session, mountpoint) == 0) {
        fuse_loop_cfg_set_clone_fd(config, 1);
        r = fuse_session_loop_mt(session, config);
        fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
    fuse_loop_cfg_destroy(config);
    return r;
}

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    int r;

    if (argc < 3) {
        (void)fprintf(stderr, "floor: usage: floor MOUNTPOINT OPTIONS [no_open]\n");
        return 2;
    }
    no_open = argc > 3 && strcmp(argv[3], "no_open") == 0;
    root.st.st_mode = S_IFDIR | 0755;
    root.st.st_nlink = 2;
    root.st.st_ino = FUSE_ROOT_ID;
    node_touch(&root);
    if (fuse_opt_add_arg(&args, "floor") < 0 || fuse_opt_add_arg(&args, "-o") < 0 ||
        fuse_opt_add_arg(&args, argv[2]) < 0)
        return 1;
    session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
    if (!session)
        return 1;
    r = floor_serve(argv[1]);
    fuse_session_destroy(session);
    fuse_opt_free_args(&args);
    return r == 0 ? 0 : 1;
}
