/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_file: open files. Reading, writing, and the commit that publishes what was written.
 *
 * All handles of a node share one open node and one content, so every reader sees every write at once. Writers and
 * commits of a node take its file lock; readers do not.
 *
 *   first handle          open_node_get   takes the node's value into a content
 *   write, truncate, ...  the content changes; the node keeps the committed value
 *   close, fsync, rename  open_node_commit: bytes (K1), record (K2), then the old value goes (K3)
 *   last handle           open_node_put   what was not committed is lost; a nameless node's value goes
 *
 * What may never happen: a value replaced before its successor is logged; an uncommitted version shown after a
 * restart; a node evicted while it is open (NODE_OPEN).
 */
#include "cache.h"

#include <fcntl.h>

#define HOST_FULL_TRIES 16
#define OPEN_BUCKETS_MIN 256u
#define VERIFY_PIECE_BYTES (16u << 20) /* between two looks at whether to go on */

/* ---- the table of open nodes; cache lock held ---- */

struct open_node *open_node_find(const struct larder *l, uint32_t slot)
{
    struct open_node *on = l->open_nodes[slot & (l->open_buckets - 1)];

    while (on && id_slot(on->id) != slot)
        on = on->hash_next;
    return on;
}

/* Doubles the table when it is full; without memory the chains grow instead. */
static void open_table_grow(struct larder *l)
{
    uint32_t buckets = l->open_buckets * 2;
    struct open_node **table;

    if (l->open_count < l->open_buckets)
        return;
    table = calloc(buckets, sizeof(struct open_node *));
    if (!table)
        return;
    for (uint32_t i = 0; i < l->open_buckets; i++) {
        struct open_node *on = l->open_nodes[i], *next;
        for (; on; on = next) {
            struct open_node **head = &table[id_slot(on->id) & (buckets - 1)];
            next = on->hash_next;
            on->hash_next = *head;
            *head = on;
        }
    }
    free(l->open_nodes);
    l->open_nodes = table;
    l->open_buckets = buckets;
}

static void open_table_add(struct larder *l, struct open_node *on)
{
    struct open_node **head;

    open_table_grow(l);
    head = &l->open_nodes[id_slot(on->id) & (l->open_buckets - 1)];
    on->hash_next = *head;
    *head = on;
    l->open_count++;
}

static void open_table_remove(struct larder *l, struct open_node *on)
{
    struct open_node **link = &l->open_nodes[id_slot(on->id) & (l->open_buckets - 1)];

    while (*link != on)
        link = &(*link)->hash_next;
    *link = on->hash_next;
    l->open_count--;
}

/* ---- open and last close ---- */

static int open_node_new(struct larder *l, struct node *n, struct open_node **ret_on)
{
    struct content_options copts = {.big_bytes = l->opts.big_bytes,
                                    .compress = policy_compress(l, n, NULL),
                                    .verified = !(n->flags & NODE_UNVERIFIED)};
    struct open_node *on = calloc(1, sizeof(*on));
    struct value v;
    int r;

    if (!on)
        return -ENOMEM;
    on->magic = OPEN_NODE_MAGIC;
    on->l = l;
    on->id = node_id(l->tree, n);
    node_value(l->tree, n, &v);
    r = content_new(l->store, &l->content_host, on->id, &v, &copts, &on->content);
    if (r < 0) {
        free(on);
        return r;
    }
    lock_init(&on->lock, "file", LOCK_RANK_FILE);
    on->uncommitted = n->flags & NODE_NEW;
    n->flags |= NODE_OPEN;
    open_table_add(l, on);
    *ret_on = on;
    return 0;
}

/* Cache lock held. */
static int open_node_get_locked(struct larder *l, struct node *n, bool writer, struct open_node **ret_on)
{
    struct open_node *on = NULL;
    int r;

    if (n->flags & NODE_OPEN)
        on = open_node_find(l, node_slot(l->tree, n));
    if (!on) {
        r = open_node_new(l, n, &on);
        if (r < 0)
            return r;
    }
    on->opens++;
    on->writers += writer;
    *ret_on = on;
    return 0;
}

int open_node_get(struct larder *l, uint64_t id, bool writer, struct open_node **ret_on)
{
    struct node *n;
    int r;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (!n)
        r = -ESTALE;
    else if (!node_is_file(n))
        r = node_is_dir(n) ? -EISDIR : -EINVAL;
    else
        r = open_node_get_locked(l, n, writer, ret_on);
    lock_give(&l->lock);
    return r;
}

static void open_node_free(struct open_node *on)
{
    struct larder *l = on->l;

    content_free(on->content);
    log_let_go_of_logged(l, on->deferred, on->deferred_count);
    free(on->deferred);
    lock_fini(&on->lock);
    on->magic = 0;
    free(on);
}

#define SEAL_AFTER_NS (10 * NS_PER_S) /* a database opened and closed for each transaction is not read each time */

void cache_seal_later(struct larder *l, uint64_t id)
{
    struct seal_item item = {.id = id, .due_ns = clock_mono_ns(&l->clock) + SEAL_AFTER_NS};

    if (l->seal_count < SEAL_QUEUE_MAX) /* a value that found no place here is served unsealed */
        l->seal_queue[(l->seal_head + l->seal_count++) % SEAL_QUEUE_MAX] = item;
}

/* A file changed in place is as long as it is and takes what it takes, although no commit could say so; a restart sees it
 * that way, too. Cache lock held. */
static void keep_in_place(struct larder *l, struct open_node *on, struct node *n)
{
    struct value before, v;

    node_value(l->tree, n, &before);
    if (before.kind != VALUE_RAW || !before.unsealed)
        return;
    v = before;
    v.stored_bytes = content_keep_growth(on->content);
    if (on->uncommitted && content_is_in_place(on->content))
        v.size_bytes = content_size(on->content);
    if (v.size_bytes == before.size_bytes && v.stored_bytes == before.stored_bytes)
        return;
    if (node_set_value(l->tree, n, &v) < 0)
        abort(); /* it is a big file's already: nothing is to be allocated */
    cache_count_value(l, &before, -1);
    cache_count_value(l, &v, +1);
}

/* The last handle is gone. Cache lock held. */
static void open_node_closed(struct larder *l, struct open_node *on, struct node *n, struct value *ret_value)
{
    open_table_remove(l, on);
    keep_in_place(l, on, n);
    n->flags &= ~(unsigned)NODE_OPEN;
    if (n->first_dentry && n->flags & NODE_NEW) { /* its only commit failed: there is nothing to keep a name for */
        cache_drop_node(l, n, DROP_REMOVED, ret_value);
        return;
    }
    if (on->uncommitted && l->callbacks.node_changed) /* what counts again is the value before */
        l->callbacks.node_changed(l->callbacks.ctx, on->id, true);
    if (!n->first_dentry) {
        node_settle_nameless(l, n, ret_value);
        return;
    }
    evict_unhold(&l->evict, l->tree, n);
    if (n->flags & NODE_UNSEALED && on->changed)
        cache_seal_later(l, on->id);
}

void open_node_put(struct open_node *on, bool writer)
{
    struct larder *l = on->l;
    struct value gone = {.kind = VALUE_EMPTY};
    struct node *n;
    bool last;

    CHECK_OBJ(on, OPEN_NODE_MAGIC);
    lock_take(&l->lock);
    assert(on->opens > 0);
    on->opens--;
    on->writers -= writer;
    last = on->opens == 0;
    if (last) {
        n = tree_node(l->tree, on->id);
        assert(n); /* NODE_OPEN keeps it */
        open_node_closed(l, on, n, &gone);
    }
    lock_give(&l->lock);
    if (!last)
        return;
    open_node_free(on);
    log_let_go_of_logged(l, &gone, gone.kind != VALUE_EMPTY);
}

/* Of an open that only means to read on: what has left since is read by those who had it open. */
static bool is_left_open(const struct larder *l, const struct node *n)
{
    return l->opts.hits == LARDER_HITS_SAMPLED && node_lookups(l->tree, n) > 0;
}

static int open_check(struct larder *l, struct node *n, int flags)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);

    if (!n || (n->flags & NODE_EVICTED && !is_left_open(l, n)))
        return -ESTALE;
    if (node_is_dir(n))
        return writes ? -EISDIR : -EINVAL;
    if (!node_is_file(n))
        return -ENXIO;
    if (writes)
        return cache_writable(l);
    return 0;
}

static void count_open(struct larder *l, struct node *n, int flags)
{
    if (l->opts.hits == LARDER_HITS_SAMPLED)
        return; /* the lookup was counted */
    COUNT(l, opens);
    if (n->flags & NODE_NEW)
        return;
    if ((flags & O_ACCMODE) != O_WRONLY) {
        COUNT(l, hits);
        if (node_hits(l->tree, n) < UINT32_MAX)
            node_set_hits(l->tree, n, node_hits(l->tree, n) + 1);
    }
}

static int open_locked(struct larder *l, uint64_t id, int flags, bool writable, struct open_node **ret_on,
                       struct value *ret_expired)
{
    struct node *n = tree_node(l->tree, id);
    enum drop_reason reason;
    int r = open_check(l, n, flags);

    if (r < 0)
        return r;
    if (n->first_dentry && !(n->flags & NODE_NEW) && !node_may_be_open(l, n) && cache_is_expired(l, n, &reason)) {
        cache_drop_node(l, n, reason, ret_expired);
        return -ESTALE; /* the kernel looks the name up again and finds it gone */
    }
    r = open_node_get_locked(l, n, writable, ret_on);
    if (r < 0)
        return r;
    count_open(l, n, flags);
    l->handle_count++;
    if (l->opts.hits == LARDER_HITS_SAMPLED && cache_is_expired(l, n, NULL))
        return 0; /* who reads on past the deadline does not move it */
    if (n->first_dentry) {
        evict_use(&l->evict, l->tree, n, cache_now(l));
        if (l->opts.idle_ns != POLICY_UNSET || l->policy_dirs > 0 || node_ext(l->tree, n))
            cache_arm(l, n);
    }
    return 0;
}

/* A doubtful record is a miss (C7), and so is one that the device fails to read: the key goes, its reader gets EIO. */
static void drop_corrupt(struct larder *l, uint64_t id, int why)
{
    struct value gone = {.kind = VALUE_EMPTY};
    struct node *n;
    uint64_t seq;

    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (n) {
        if (why == -EIO)
            COUNT(l, unreadable_values);
        else if (l->unclean_boot && n->flags & NODE_UNVERIFIED)
            COUNT(l, lost_values);
        else
            COUNT(l, corrupt_records);
        if (n->first_dentry)
            cache_drop_node(l, n, DROP_CORRUPT, &gone);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    log_let_go(l, log_write(l, seq, false), seq, false, &gone, 1);
}

int larder_open_file(struct larder *l, uint64_t id, int flags, struct larder_file **ret_file)
{
    bool writable = (flags & O_ACCMODE) != O_RDONLY;
    struct value expired = {.kind = VALUE_EMPTY};
    struct larder_file *f = calloc(1, sizeof(*f));
    uint64_t seq;
    int r;

    if (!f)
        return -ENOMEM;
    lock_take(&l->lock);
    log_begin(l);
    r = open_locked(l, id, flags, writable, &f->on, &expired);
    seq = log_end(l);
    lock_give(&l->lock);
    log_let_go(l, log_write(l, seq, false), seq, false, &expired, 1);
    if (r == -EBADMSG) { /* a value that cannot be: a miss (C7) */
        drop_corrupt(l, id, r);
        r = -ESTALE;
    }
    if (r == 0 && (flags & (O_TRUNC | O_CREAT))) {
        r = flags & O_TRUNC ? open_node_resize(f->on, 0) : 0;
        if (r == 0 && !writable) /* no close of a writer will come; O_CREAT: larder_create's */
            r = open_node_commit(f->on, false);
        if (r < 0) {
            lock_take(&l->lock);
            l->handle_count--;
            lock_give(&l->lock);
            open_node_put(f->on, writable);
        }
    }
    if (r < 0) {
        free(f);
        return r;
    }
    f->magic = LARDER_FILE_MAGIC;
    f->l = l;
    f->writable = writable;
    f->readable = (flags & O_ACCMODE) != O_WRONLY;
    *ret_file = f;
    return 0;
}

void larder_release(struct larder_file *f)
{
    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    (void)larder_flush_rest(f); /* pages of a mapping written after close; close(2) reported the rest */
    larder_abandon(f);
}

void larder_abandon(struct larder_file *f)
{
    struct larder *l = f->l;

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    lock_take(&l->lock);
    l->handle_count--;
    lock_give(&l->lock);
    open_node_put(f->on, f->writable);
    f->magic = 0;
    free(f);
}

uint64_t larder_file_node(const struct larder_file *f)
{
    return f->on->id;
}

bool larder_file_writable(const struct larder_file *f)
{
    return f->writable;
}

static void note_verified(struct larder *l, uint64_t id, bool done)
{
    struct node *n;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (n)
        n->flags &= ~((unsigned)NODE_VERIFYING | (unsigned)(done ? NODE_UNVERIFIED : 0));
    lock_give(&l->lock);
}

void larder_verify(struct larder *l, uint64_t id, bool (*go_on)(void *ctx), void *ctx)
{
    struct open_node *on;
    bool end = false;
    int r = open_node_get(l, id, false, &on);

    if (r < 0)
        return;
    for (uint64_t offset = 0; r == 0 && !end && go_on(ctx); offset += VERIFY_PIECE_BYTES)
        r = content_verify_piece(on->content, offset, VERIFY_PIECE_BYTES, &end);
    if (r == -EBADMSG)
        drop_corrupt(l, id, r); /* its readers find the same, block by block */
    note_verified(l, id, end);
    open_node_put(on, false);
}

/* -EAGAIN: not verified yet, and it is the caller's to see to it; -ENOTSUP: somebody else's. */
static int check_verified(struct larder *l, uint64_t id)
{
    struct node *n;
    int r = 0;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (n && n->flags & NODE_UNVERIFIED && node_value_kind(n) == VALUE_RAW && !(n->flags & NODE_UNSEALED)) {
        r = n->flags & NODE_VERIFYING ? -ENOTSUP : -EAGAIN;
        n->flags |= NODE_VERIFYING;
    }
    lock_give(&l->lock);
    return r;
}

int larder_file_backing_fd(struct larder_file *f, int *ret_fd)
{
    struct larder *l = f->l;
    int r = check_verified(l, f->on->id);

    if (r < 0)
        return r;
    lock_take(&f->on->lock);
    r = content_backing_fd(f->on->content, ret_fd);
    if (r == 0) {
        f->on->backing_taken = true;
        COUNT(l, passthrough_opens);
    }
    lock_give(&f->on->lock);
    return r;
}

/* ---- reading ---- */

#define LOUD_COUNT 8u /* such events told one by one; after that, when their number has doubled */

static void log_corrupt(struct larder *l, uint64_t id, int why)
{
    uint64_t count = atomic_load(&l->counters.corrupt_records) + atomic_load(&l->counters.unreadable_values) +
                     atomic_load(&l->counters.lost_values) + 1;

    if (count > LOUD_COUNT && (count & (count - 1)) != 0)
        return;
    cache_logf(l, LARDER_LOG_WARNING, "event=%s node=%llx action=dropped count=%llu",
               why == -EIO ? "unreadable" : "corrupt", (unsigned long long)id, (unsigned long long)count);
}

/* What became of a call that had to read the committed value: doubt makes it a miss. */
static int doubt_result(struct open_node *on, int r)
{
    if (r != -EBADMSG && r != -ENODATA)
        return r;
    log_corrupt(on->l, on->id, -EBADMSG);
    drop_corrupt(on->l, on->id, -EBADMSG);
    return -EIO;
}

/* So does a device that fails to read it. Not bytes that are being written or were changed in place: there is no other
 * copy of them, and they may be readable later. */
static int read_result(struct open_node *on, int r)
{
    if (r != -EIO || !content_is_sealed(on->content))
        return doubt_result(on, r);
    log_corrupt(on->l, on->id, r);
    drop_corrupt(on->l, on->id, r);
    return r;
}

int larder_read(struct larder_file *f, void *buf, size_t bytes, uint64_t offset, bool nowait, size_t *ret_bytes)
{
    int r;

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    r = content_read(f->on->content, buf, bytes, offset, nowait, ret_bytes);
    if (r == 0)
        COUNT_ADD(f->l, read_bytes, *ret_bytes);
    return r == 0 ? 0 : read_result(f->on, r);
}

int larder_seek(struct larder_file *f, uint64_t offset, int whence, uint64_t *ret_offset)
{
    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    return read_result(f->on, content_seek(f->on->content, offset, whence, ret_offset));
}

/* ---- changing; file lock held ---- */

static void note_uncommitted(struct open_node *on)
{
    struct larder *l = on->l;
    uint64_t size = content_size(on->content), disk = content_disk_bytes(on->content);

    lock_take(&l->lock);
    on->uncommitted = true;
    on->changed = true;
    on->size_bytes = size;
    on->disk_bytes = disk;
    lock_give(&l->lock);
}

/* After a change: what getattr shows from now on. */
static void note_change(struct open_node *on, bool kill_priv)
{
    struct larder *l = on->l;
    struct node *n;

    note_uncommitted(on);
    lock_take(&l->lock);
    n = tree_node(l->tree, on->id);
    node_set_changed(l->tree, n, cache_wall(l));
    if (kill_priv && (node_mode(l->tree, n) & (S_ISUID | S_ISGID))) {
        node_clear_priv(l, n);
        if (l->callbacks.node_changed) /* who wrote beside its cache was not told the mode */
            l->callbacks.node_changed(l->callbacks.ctx, on->id, false);
    }
    lock_give(&l->lock);
}

/* The host disk may be fuller than our quota says: evict and try again, a bounded number of times. */
static bool host_gave_way(struct open_node *on, int r, uint64_t bytes)
{
    struct larder *l = on->l;

    if (r != -ENOSPC || quota_available(&l->quota) < bytes || content_was_refused(on->content))
        return false;
    return cache_host_full(l, bytes) == 0;
}

#define RETRY_WHEN_HOST_IS_FULL(on, bytes, r, call)                                  \
    do {                                                                             \
        (r) = (call);                                                                \
        for (int try_ = 0; try_ < HOST_FULL_TRIES && host_gave_way(on, r, bytes); try_++) \
            (r) = (call);                                                            \
    } while (0)

int open_node_resize(struct open_node *on, uint64_t size_bytes)
{
    int r;

    lock_take(&on->lock);
    RETRY_WHEN_HOST_IS_FULL(on, BLOCK_BYTES, r, content_truncate(on->content, size_bytes));
    if (r == 0)
        note_change(on, false);
    lock_give(&on->lock);
    return doubt_result(on, r);
}

int larder_write(struct larder_file *f, const void *buf, size_t bytes, uint64_t offset, bool kill_priv)
{
    struct larder *l = f->l;
    int r = cache_writable(l);

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    if (r < 0)
        return r;
    atomic_store(&f->flushed, false);
    lock_take(&f->on->lock);
    RETRY_WHEN_HOST_IS_FULL(f->on, bytes, r, content_write(f->on->content, buf, bytes, offset));
    if (r == 0) {
        note_change(f->on, kill_priv);
        COUNT_ADD(l, written_bytes, bytes);
    }
    lock_give(&f->on->lock);
    return doubt_result(f->on, r);
}

int larder_allocate(struct larder_file *f, int mode, uint64_t offset, uint64_t bytes, bool kill_priv)
{
    struct larder *l = f->l;
    int r = cache_writable(l);

    if (r < 0)
        return r;
    if (!f->writable)
        return -EBADF;
    atomic_store(&f->flushed, false);
    lock_take(&f->on->lock);
    RETRY_WHEN_HOST_IS_FULL(f->on, bytes, r, content_allocate(f->on->content, mode, offset, bytes));
    if (r == 0)
        note_change(f->on, kill_priv);
    lock_give(&f->on->lock);
    return r;
}

int larder_expect_changes(struct larder_file *f)
{
    int r = cache_writable(f->l);

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    if (r < 0)
        return r;
    atomic_store(&f->flushed, false);
    lock_take(&f->on->lock);
    r = content_allocate(f->on->content, FALLOC_FL_KEEP_SIZE, 0, 1);
    if (r == 0)
        note_uncommitted(f->on);
    lock_give(&f->on->lock);
    return doubt_result(f->on, r);
}

#define COPY_CHUNK_BYTES (256u << 10)

int larder_copy_range(struct larder_file *in, uint64_t in_offset, struct larder_file *out, uint64_t out_offset,
                      uint64_t bytes, bool kill_priv, uint64_t *ret_bytes)
{
    _cleanup_free_ char *buf = malloc(COPY_CHUNK_BYTES);
    uint64_t done = 0;
    size_t got = 0;
    int r = 0;

    if (!buf)
        return -ENOMEM;
    while (done < bytes && r == 0) {
        r = larder_read(in, buf, (size_t)MIN(bytes - done, COPY_CHUNK_BYTES), in_offset + done, false, &got);
        if (r < 0 || got == 0)
            break;
        r = larder_write(out, buf, got, out_offset + done, kill_priv);
        if (r == 0)
            done += got;
    }
    if (r < 0 && done == 0)
        return r;
    *ret_bytes = done;
    return 0;
}

/* ---- commit ---- */

/* r: log_write's word on the record that replaced it. */
static void drop_replaced(struct open_node *on, const struct value *old, int r, uint64_t seq)
{
    struct value *list;

    if (on->backing_taken && old->kind == VALUE_RAW) {
        list = realloc(on->deferred, (on->deferred_count + 1) * sizeof(*list));
        if (list) {
            on->deferred = list;
            on->deferred[on->deferred_count++] = *old;
            return;
        }
    }
    log_let_go(on->l, r, seq, false, old, 1);
}

/* Same bytes on disk, perhaps resealed: nothing of the old value is to be let go but its sums. */
static bool same_bytes(const struct value *a, const struct value *b)
{
    return a->kind == b->kind && a->kind != VALUE_EMPTY && a->kind != VALUE_SEGMENT && a->big_id == b->big_id;
}

/* A durable commit is done: from now on the value is not to be lost, also not by what another one does (K5). */
static void note_fsynced(struct open_node *on)
{
    struct larder *l = on->l;

    lock_take(&l->lock);
    tree_node(l->tree, on->id)->flags |= NODE_FSYNCED;
    lock_give(&l->lock);
}

/* The node gets its new value and the record says so. Cache lock held. */
static int publish(struct larder *l, struct open_node *on, const struct value *v, bool is_write, struct value *ret_old)
{
    struct node *n = tree_node(l->tree, on->id);
    bool linked = n->first_dentry != 0;
    int r;

    node_value(l->tree, n, ret_old);
    r = node_set_value(l->tree, n, v);
    if (r < 0)
        return r;
    cache_count_value(l, ret_old, -1);
    cache_count_value(l, v, +1);
    on->uncommitted = false;
    if (is_write) {
        if (!same_bytes(ret_old, v)) /* changed in place its fsynced bytes are as safe as before */
            n->flags &= ~(unsigned)NODE_FSYNCED;
        node_set_written(l->tree, n, cache_now(l));
        COUNT(l, puts);
        if (ret_old->kind != VALUE_EMPTY)
            COUNT(l, replaced);
    }
    if (!linked)
        return 0; /* a tmpfile stays NODE_NEW until it has a name; an unlinked file is nobody's business */
    if (is_write) {
        evict_use(&l->evict, l->tree, n, cache_now(l));
        cache_arm(l, n);
    }
    log_node(l, n);
    if (n->flags & NODE_NEW) {
        n->flags &= ~(unsigned)NODE_NEW;
        log_first_names(l, n);
    }
    return 0;
}

/* File lock held. Makes v the node's committed value. */
static int commit_value(struct open_node *on, const struct value *v, bool is_write, bool durable)
{
    struct larder *l = on->l;
    struct value old = {.kind = VALUE_EMPTY};
    uint64_t seq;
    int r;

    lock_take(&l->lock);
    log_begin(l);
    r = publish(l, on, v, is_write, &old);
    seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    if (r < 0) {
        content_commit_failed(on->content, v);
        return r;
    }
    content_committed(on->content, v);
    r = log_write_making_room(l, seq, durable);
    if (r == 0 && durable)
        note_fsynced(on);
    if (!same_bytes(&old, v)) {
        drop_replaced(on, &old, r, seq);
    } else if (old.sums_place.segment_no && (old.sums_place.segment_no != v->sums_place.segment_no ||
                                             old.sums_place.offset != v->sums_place.offset)) {
        struct value sums = {.kind = VALUE_SEGMENT, .place = old.sums_place, .stored_bytes = old.sums_bytes};
        log_let_go(l, r, seq, false, &sums, 1);
    }
    return r;
}

/* Nothing new in the bytes; but the node itself may never have been logged. File lock held. */
static int commit_unchanged(struct open_node *on, bool durable)
{
    struct larder *l = on->l;
    bool refused = content_was_refused(on->content);
    struct node *n;
    uint64_t seq;
    int r = 0;

    if (durable)
        r = content_sync(on->content);
    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, on->id);
    if (n->first_dentry && (n->flags & NODE_NEW || on->uncommitted)) {
        if (on->changed && on->size_bytes != node_size(l->tree, n) && l->callbacks.node_changed)
            l->callbacks.node_changed(l->callbacks.ctx, on->id, true); /* given up: what the kernel holds is no value */
        if (on->uncommitted && !refused) {
            uint64_t now = cache_now(l);
            node_set_written(l->tree, n, now); /* bytes changed in place are a write, too */
            evict_use(&l->evict, l->tree, n, now);
            cache_arm(l, n);
        }
        on->uncommitted = false;
        COUNT_ADD(l, puts, (n->flags & NODE_NEW) != 0);
        log_node(l, n);
        if (n->flags & NODE_NEW) {
            n->flags &= ~(unsigned)NODE_NEW;
            log_first_names(l, n);
        }
    }
    seq = log_end(l);
    lock_give(&l->lock);
    if (r == 0)
        r = log_write(l, seq, durable);
    if (r == 0 && durable)
        note_fsynced(on);
    return r;
}

/* quota=0 keeps nothing: what was closed leaves at once, readable to those who have it open. File lock held. */
static int commit_nothing(struct open_node *on)
{
    struct larder *l = on->l;
    struct value gone = {.kind = VALUE_EMPTY};
    struct node *n;
    uint64_t seq;

    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, on->id);
    if (n->first_dentry)
        cache_drop_node(l, n, DROP_QUOTA, &gone);
    seq = log_end(l);
    lock_give(&l->lock);
    return log_write(l, seq, false);
}

static bool has_something_to_commit(struct open_node *on)
{
    struct larder *l = on->l;
    const struct node *n;
    bool r;

    lock_take(&l->lock);
    n = tree_node(l->tree, on->id);
    r = on->uncommitted || (n->first_dentry && n->flags & NODE_NEW); /* linked since: its name is not logged yet */
    lock_give(&l->lock);
    return r;
}

/* A new file whose bytes found no room stays as an empty one, as a full disk would leave it. */
static void keep_empty(struct open_node *on)
{
    struct larder *l = on->l;
    struct node *n;
    uint64_t seq;

    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, on->id);
    if (n->first_dentry && n->flags & NODE_NEW) {
        n->flags &= ~(unsigned)NODE_NEW;
        log_node(l, n);
        log_first_names(l, n);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    (void)log_write(l, seq, false); /* the caller reports the lack of room already */
}

static bool is_fsynced(struct open_node *on)
{
    struct larder *l = on->l;
    bool fsynced;

    lock_take(&l->lock);
    fsynced = tree_node(l->tree, on->id)->flags & NODE_FSYNCED;
    lock_give(&l->lock);
    return fsynced;
}

static int commit_locked(struct open_node *on, bool durable)
{
    struct larder *l = on->l;
    struct value v;
    bool changed;
    int r;

    if (l->opts.quota_bytes == 0)
        return has_something_to_commit(on) ? commit_nothing(on) : 0;
    r = cache_writable(l);
    if (r == 0)
        r = log_room(l, RECORD_USUAL_BYTES);
    if (r < 0)
        return r;
    /* What was fsynced and then changed in part, not replaced, stays promised (C2, K5). */
    durable |= is_fsynced(on) && content_is_derived(on->content);
    RETRY_WHEN_HOST_IS_FULL(on, content_size(on->content), r, content_commit(on->content, durable, &v, &changed));
    if (r == -ENOSPC)
        keep_empty(on);
    if (r < 0)
        return r;
    return changed ? commit_value(on, &v, true, durable) : commit_unchanged(on, durable);
}

/* Its own new file was cut short underneath. */
static int commit_result(int r)
{
    return r == -EBADMSG || r == -ENODATA ? -EIO : r;
}

int open_node_commit(struct open_node *on, bool durable)
{
    int r;

    if (!durable && !has_something_to_commit(on))
        return 0;
    lock_take(&on->lock);
    r = commit_locked(on, durable);
    lock_give(&on->lock);
    return commit_result(r);
}

bool larder_flush_waits(struct larder_file *f)
{
    struct open_node *on = f->on;
    bool waits;

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    if (!f->writable || f->l->opts.durability == LARDER_DURABILITY_FSYNC)
        return f->writable;
    if (!is_fsynced(on))
        return false;
    lock_take(&on->lock);
    waits = content_is_derived(on->content);
    lock_give(&on->lock);
    return waits;
}

int larder_flush(struct larder_file *f)
{
    int r;

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    if (!f->writable)
        return 0;
    atomic_store(&f->flushed, true); /* first: what is written meanwhile is not */
    r = open_node_commit(f->on, f->l->opts.durability == LARDER_DURABILITY_FSYNC &&
                                    has_something_to_commit(f->on));
    if (r < 0)
        atomic_store(&f->flushed, false);
    return r;
}

/* Held with the file lock the answer stays true of what is in the content: who opens it with O_TRUNC is a writer first. */
static bool is_left_to_others(const struct larder_file *f)
{
    struct larder *l = f->l;
    bool others;

    lock_take(&l->lock);
    others = f->on->writers > 1;
    lock_give(&l->lock);
    return others && atomic_load(&f->flushed);
}

int larder_flush_rest(struct larder_file *f)
{
    struct open_node *on = f->on;
    int r = 0;

    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    if (!f->writable || !has_something_to_commit(on))
        return 0;
    lock_take(&on->lock);
    if (!is_left_to_others(f))
        r = commit_locked(on, f->l->opts.durability == LARDER_DURABILITY_FSYNC);
    lock_give(&on->lock);
    return commit_result(r);
}

int larder_fsync(struct larder_file *f, bool datasync)
{
    CHECK_OBJ(f, LARDER_FILE_MAGIC);
    (void)datasync; /* one record holds bytes and attributes: there is nothing to save */
    if (cache_writable(f->l) < 0)
        return atomic_load(&f->l->failed) ? -EIO : 0;
    return open_node_commit(f->on, true);
}

/* ---- sealing ---- */

int open_node_seal(struct open_node *on)
{
    struct larder *l = on->l;
    struct value v;
    bool changed;
    int r;

    lock_take(&on->lock);
    lock_take(&l->lock);
    r = on->writers > 0 ? -EBUSY : 0;
    lock_give(&l->lock);
    if (r == 0)
        r = content_seal(on->content, &v, &changed);
    if (r == 0 && changed)
        r = commit_value(on, &v, false, false);
    lock_give(&on->lock);
    return r;
}
