/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_work: what goes on behind the traffic, in three threads, each turn of it bounded.
 *
 *   evict   keeps a reserve free, so that puts find room without waiting
 *   tick    every TICK_NS: expired keys, recency to the journal, free space of the host
 *   tidy    checkpoints when the journal has grown, cleaning when dead bytes pile up, sealing of raw values that
 *           nobody writes to any more
 *
 * What may never happen: a thread here holds the cache lock for longer than a batch; a stop that waits for
 * more than the step a thread is in.
 */
#include "cache.h"

#include <sched.h>

#define TICK_NS (NS_PER_S / 4)
#define RECENCY_INTERVAL_TICKS 4u      /* a second of uses may be lost to SIGKILL */
#define RECENCY_BATCH 8192u
#define TIDY_INTERVAL_NS (2 * NS_PER_S)
#define CHECKPOINT_BATCH 512u          /* nodes written under one hold of the cache lock */
#define CHECKPOINT_RETRY_NS (10 * NS_PER_S)
#define CHECKPOINT_JOURNAL_BYTES_MAX (128 * MIB)
#define CLEAN_LIVE_PERCENT 60u
#define CLEAN_BATCH 128u
#define CLEAN_SEGMENTS_PER_TURN 8u
#define NODE_LOG_BYTES (DISK_NODE_BYTES + DISK_ENTRY_HEADER_BYTES) /* without TLVs */
#define NAME_LOG_BYTES 32u             /* one name and its entry header, without its bytes */

/* ---- eviction ahead of need ---- */

/* False: all that is left is open or pinned; writers will hear of it. */
static bool evict_ahead(struct larder *l)
{
    if (atomic_load(&l->failed) || l->opts.quota_bytes == 0 || !quota_is_low(&l->quota))
        return true;
    return cache_evict_until(l, MAX(quota_spare(&l->quota), 1ull)) == 0;
}

/* ---- recency ---- */

/* Uses since the last flush are the warm end of the list, down to the stamp reached then. Should there be more than
 * a batch, the warmest are taken: the others' order waits for the next checkpoint. Cache lock held. */
static uint32_t collect_uses(struct larder *l, struct use_image *uses)
{
    struct node *n = tree_slot(l->tree, l->evict.warm);
    uint32_t count = 0;

    for (; n && n->used_ns > l->recency_flushed_ns && count < RECENCY_BATCH; n = tree_slot(l->tree, n->lru_next))
        if (!(n->flags & NODE_NEW))
            uses[count++] = (struct use_image){.node = node_id(l->tree, n), .used_ns = n->used_ns, .hits = node_hits(l->tree, n)};
    l->recency_flushed_ns = l->evict.newest_use_ns;
    return count;
}

static void flush_recency(struct larder *l)
{
    _cleanup_free_ struct use_image *uses = malloc(RECENCY_BATCH * sizeof(*uses));
    uint32_t count;
    uint64_t seq;

    if (!uses || cache_writable(l) < 0 || l->opts.quota_bytes == 0)
        return;
    lock_take(&l->lock);
    count = collect_uses(l, uses);
    log_begin(l);
    if (count > 0)
        (void)record_add_use(&l->rb, uses, count); /* no memory: a moment's recency is not worth failing for */
    seq = log_end(l);
    lock_give(&l->lock);
    (void)log_write(l, seq, false); /* a failed journal has been told of */
}

/* ---- checkpoints ---- */

static uint64_t checkpoint_bound(struct larder *l)
{
    struct tree_totals t;
    uint64_t nodes;

    lock_take(&l->lock);
    tree_totals(l->tree, &t);
    nodes = l->entries + t.directories; /* not those that only the kernel remembers */
    lock_give(&l->lock);
    return nodes * NODE_LOG_BYTES + t.tlv_bytes + t.dentries * NAME_LOG_BYTES + t.name_bytes +
           (nodes + t.dentries) / CHECKPOINT_BATCH * 64 + 8 * KIB;
}

/* Nodes first, then names: a name is only believed when its node is there (format.h, entries set states). */
static int checkpoint_nodes(struct larder *l, struct checkpoint *cp, struct record_buffer *rb, uint64_t *ret_count)
{
    uint32_t slot = 0;
    int r = 0;

    do {
        r = record_begin(rb);
        lock_take(&l->lock);
        for (unsigned i = 0; i < CHECKPOINT_BATCH && r >= 0 && rb->used < RECORD_PAYLOAD_BYTES_MAX / 2; i++) {
            struct node_image image;
            struct node *n;
            slot = tree_next_slot(l->tree, slot);
            if (slot == 0)
                break;
            n = tree_slot(l->tree, slot);
            if (!n || (n->flags & NODE_NEW) || (!n->first_dentry && slot != NODE_ROOT_SLOT))
                continue;
            node_to_image(l, n, &image);
            r = record_add_node(rb, &image);
            ++*ret_count;
        }
        lock_give(&l->lock);
        if (r >= 0 && rb->entry_count > 0)
            r = checkpoint_add(cp, rb);
        (void)sched_yield(); /* traffic first */
    } while (r >= 0 && slot != 0);
    return r;
}

static int checkpoint_names(struct larder *l, struct checkpoint *cp, struct record_buffer *rb, uint64_t *ret_count)
{
    uint32_t index = 0;
    int r = 0;

    do {
        r = record_begin(rb);
        lock_take(&l->lock);
        for (unsigned i = 0; i < CHECKPOINT_BATCH && r >= 0; i++) {
            struct name_image image;
            struct dentry *d;
            index = tree_next_dentry(l->tree, index);
            if (index == 0)
                break;
            d = tree_dentry(l->tree, index);
            if (!d || tree_slot(l->tree, d->node)->flags & NODE_NEW)
                continue;
            dentry_to_image(l, d, &image);
            r = record_add_name(rb, &image);
            ++*ret_count;
        }
        lock_give(&l->lock);
        if (r >= 0 && rb->entry_count > 0)
            r = checkpoint_add(cp, rb);
        (void)sched_yield(); /* traffic first */
    } while (r >= 0 && index != 0);
    return r;
}

static void checkpoint_end(struct larder *l, bool clean, struct end_image *end)
{
    lock_take(&l->lock);
    end->next_generation = tree_next_generation(l->tree);
    end->cache_ns = MAX(cache_now(l), l->evict.newest_use_ns);
    lock_give(&l->lock);
    end->last_seq = journal_last_seq(l->journal);
    memcpy(end->boot_id, l->boot_id, sizeof(end->boot_id));
    end->clean = clean;
}

static int checkpoint_write(struct larder *l, bool clean)
{
    struct record_buffer rb = {0};
    struct checkpoint *cp = NULL;
    struct end_image end = {0};
    uint64_t held = atomic_exchange(&l->checkpoint_reserve_bytes, 0);
    uint64_t bound = 2 * checkpoint_bound(l) + 64 * KIB;
    int r = store_sync(l->store); /* what the checkpoint points to should not be less durable than itself */

    if (l->opts.quota_bytes == 0 && held < bound) { /* its own few kilobytes are not counted against nothing */
        quota_charge(&l->quota, bound - held);
        held = bound;
    }
    if (r == 0)
        r = checkpoint_begin(l->journal, checkpoint_bound(l), &held, &cp);
    atomic_fetch_add(&l->checkpoint_reserve_bytes, held);
    if (r == 0)
        r = checkpoint_nodes(l, cp, &rb, &end.nodes);
    if (r == 0)
        r = checkpoint_names(l, cp, &rb, &end.names);
    if (r == 0) {
        checkpoint_end(l, clean, &end);
        r = checkpoint_finish(&cp, &end);
    }
    checkpoint_abort(&cp);
    record_buffer_fini(&rb);
    return r;
}

/* Room for the next checkpoint is held all the time: at quota there would be none when the journal must be shortened. */
static uint64_t checkpoint_room(struct larder *l)
{
    uint64_t bound = checkpoint_bound(l);

    return bound + bound / 16;
}

/* Checkpoint lock held. */
static void checkpoint_hold_room(struct larder *l)
{
    uint64_t want = checkpoint_room(l), held = atomic_load(&l->checkpoint_reserve_bytes);

    if (want > held && quota_reserve(&l->quota, want - held) == 0)
        atomic_fetch_add(&l->checkpoint_reserve_bytes, want - held);
}

bool work_release_checkpoint_room(struct larder *l)
{
    uint64_t want = checkpoint_room(l), held = atomic_load(&l->checkpoint_reserve_bytes);

    while (held > want)
        if (atomic_compare_exchange_weak(&l->checkpoint_reserve_bytes, &held, want)) {
            quota_release(&l->quota, held - want);
            return true;
        }
    return false;
}

/* Counts it; tells of the first that fails, and that it is over. */
static void checkpoint_note(struct larder *l, int r)
{
    bool failing = r < 0, was_failing = atomic_exchange(&l->checkpoint_failing, failing);

    if (failing) {
        COUNT(l, checkpoint_failures);
        atomic_store(&l->checkpoint_retry_ns, clock_mono_ns(&l->clock) + CHECKPOINT_RETRY_NS);
    } else {
        COUNT(l, checkpoints);
        atomic_store(&l->checkpoint_retry_ns, 0);
        log_settle_leaving(l);
    }
    if (failing && !was_failing)
        cache_logf(l, r == -ENOSPC ? LARDER_LOG_INFO : LARDER_LOG_WARNING,
                   "event=checkpoint_failed error=\"%s\" consequence=\"the journal goes on, another try in %u s\"",
                   strerror(-r), (unsigned)(CHECKPOINT_RETRY_NS / NS_PER_S));
    if (was_failing && !failing)
        cache_logf(l, LARDER_LOG_INFO, "event=checkpoint_written consequence=\"the journal is short again\"");
}

int work_checkpoint(struct larder *l, bool clean)
{
    int r;

    lock_take(&l->checkpoint_lock);
    r = checkpoint_write(l, clean);
    if (!clean)
        checkpoint_hold_room(l);
    lock_give(&l->checkpoint_lock);
    checkpoint_note(l, r);
    return r;
}

bool work_checkpoint_may_try(const struct larder *l)
{
    return clock_mono_ns(&l->clock) >= atomic_load(&l->checkpoint_retry_ns);
}

/* How long the journal may grow before a checkpoint shortens it. */
static uint64_t journal_bound(const struct larder *l)
{
    uint64_t bound = MAX(2 * journal_checkpoint_bytes(l->journal), 4 * MIB);

    bound = MIN(bound, CHECKPOINT_JOURNAL_BYTES_MAX);
    return MIN(bound, MAX(quota_limit(&l->quota) / 16, 128 * KIB));
}

static bool checkpoint_is_due(const struct larder *l)
{
    return journal_since_checkpoint(l->journal) > journal_bound(l);
}

/* What of journal and checkpoint tells of things that are gone. A quarter of the quota is too much of that. */
static bool log_is_mostly_gone(struct larder *l)
{
    uint64_t length = journal_disk_bytes(l->journal) + journal_checkpoint_bytes(l->journal);

    return length > checkpoint_bound(l) + quota_limit(&l->quota) / 4;
}

bool work_shrink_log(struct larder *l)
{
    uint64_t before = quota_charged(&l->quota);

    if (lock_is_mine(&l->checkpoint_lock) || !work_checkpoint_may_try(l) || !log_is_mostly_gone(l))
        return false;
    return work_checkpoint(l, false) == 0 && quota_charged(&l->quota) < before;
}

int work_bound_journal(struct larder *l)
{
    uint64_t length = journal_since_checkpoint(l->journal), bound = journal_bound(l);

    if (length <= bound)
        return 0;
    work_want_tidy(l);
    if (length <= 2 * bound || !work_checkpoint_may_try(l))
        return 0; /* a journal that cannot be shortened grows, within the quota */
    lock_take(&l->checkpoint_lock); /* waits for the one being written */
    length = journal_since_checkpoint(l->journal);
    lock_give(&l->checkpoint_lock);
    if (length > 2 * bound)
        (void)work_checkpoint(l, false); /* told, counted, and tried again later */
    return cache_writable(l);
}

/* ---- cleaning ---- */

struct cleaning {
    struct larder *l;
    struct {
        struct place from, to;
        uint64_t node_id;
        enum record_kind kind;
        uint32_t stored_bytes;
        bool moved;
    } records[CLEAN_BATCH];
    unsigned count;
    uint64_t moved_bytes;
};

/* Does the node still point there? Cache lock held. Open nodes are left alone: their contents know the place. */
static struct node *cleaning_owner(struct larder *l, struct place place, uint64_t id, enum record_kind kind)
{
    struct node *n = tree_node(l->tree, id);
    struct value v;
    struct place p;

    if (!n || !node_is_file(n) || n->flags & (NODE_OPEN | NODE_NEW))
        return NULL;
    node_value(l->tree, n, &v);
    p = kind == RECORD_SUMS ? v.sums_place : v.place;
    return p.segment_no == place.segment_no && p.offset == place.offset ? n : NULL;
}

/* A record that is doubtful is a miss (C7), found before its reader finds it: else its segment could never be emptied. */
static void cleaning_drop(struct larder *l, struct place place, const struct record_info *info)
{
    struct value gone = {.kind = VALUE_EMPTY};
    struct node *n;
    uint64_t seq;

    lock_take(&l->lock);
    log_begin(l);
    n = cleaning_owner(l, place, info->node_id, info->kind); /* it may have moved on while it was read */
    if (n) {
        COUNT(l, corrupt_records);
        cache_drop_node(l, n, DROP_CORRUPT, &gone);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    log_let_go(l, log_write(l, seq, false), seq, false, &gone, 1);
}

static int cleaning_visit(void *ctx, struct place place, const struct record_info *info)
{
    struct cleaning *c = ctx;
    struct larder *l = c->l;
    struct place to;
    bool wanted;
    int r;

    lock_take(&l->lock);
    wanted = cleaning_owner(l, place, info->node_id, info->kind) != NULL;
    lock_give(&l->lock);
    if (!wanted)
        return 0;
    r = store_copy(l->store, place, info, &to);
    if (r == -EBADMSG)
        cleaning_drop(l, place, info);
    if (r < 0)
        return r == -EBADMSG ? 0 : r;
    c->records[c->count].from = place;
    c->records[c->count].to = to;
    c->records[c->count].node_id = info->node_id;
    c->records[c->count].kind = info->kind;
    c->records[c->count].stored_bytes = info->stored_bytes;
    c->records[c->count].moved = false;
    c->count++;
    return 0;
}

/* Points the nodes at the copies, unless they moved on meanwhile. Cache lock held. */
static void cleaning_repoint(struct cleaning *c, unsigned i)
{
    struct larder *l = c->l;
    struct node *n = cleaning_owner(l, c->records[i].from, c->records[i].node_id, c->records[i].kind);
    struct value v;
    uint32_t doubt;

    if (!n)
        return;
    node_value(l->tree, n, &v);
    if (c->records[i].kind == RECORD_SUMS)
        v.sums_place = c->records[i].to;
    else
        v.place = c->records[i].to;
    doubt = n->flags & NODE_UNVERIFIED;
    if (node_set_value(l->tree, n, &v) < 0)
        return;
    n->flags |= doubt; /* the record was looked at, the bytes it is about were not */
    log_value(l, n);
    c->records[i].moved = true;
    c->moved_bytes += c->records[i].stored_bytes;
}

/* keeps K4 */
static int cleaning_settle(struct cleaning *c)
{
    struct larder *l = c->l;
    uint64_t seq = 0;
    int r = store_sync(l->store);

    if (r == 0) {
        lock_take(&l->lock);
        log_begin(l);
        for (unsigned i = 0; i < c->count; i++)
            cleaning_repoint(c, i);
        seq = log_end(l);
        lock_give(&l->lock);
        r = log_write(l, seq, true);
    }
    for (unsigned i = 0; i < c->count; i++) {
        struct value dead = {.kind = VALUE_SEGMENT,
                             .place = c->records[i].moved ? c->records[i].from : c->records[i].to,
                             .stored_bytes = c->records[i].stored_bytes};
        log_let_go(l, c->records[i].moved ? r : 0, seq, true, &dead, 1);
    }
    COUNT_ADD(l, cleaned_bytes, c->moved_bytes);
    c->count = 0;
    c->moved_bytes = 0;
    return r;
}

static int clean_segment(struct larder *l, struct cleaning *c)
{
    uint32_t segment = store_pick_clean(l->store, CLEAN_LIVE_PERCENT), offset = 0;
    uint64_t freed = 0;
    bool done = false;
    int r = 0;

    if (segment == 0)
        return 0;
    c->l = l;
    while (r == 0 && !done) {
        r = store_walk_segment(l->store, segment, CLEAN_BATCH, &offset, cleaning_visit, c, &done);
        if (c->count > 0) {
            int settled = cleaning_settle(c);
            r = r < 0 ? r : settled;
        }
    }
    if (r == 0)
        COUNT(l, segments_cleaned);
    (void)store_reclaim(l->store, 64, &freed); /* what it could not give back now it gives back later */
    return r == 0 && freed > 0;
}

int work_clean_segment(struct larder *l)
{
    struct cleaning *c;
    int r = 0;

    if (cache_writable(l) < 0 || atomic_exchange(&l->cleaning, true))
        return 0;
    c = calloc(1, sizeof(*c));
    if (c)
        r = clean_segment(l, c);
    free(c);
    atomic_store(&l->cleaning, false);
    return r;
}

static bool cleaning_is_due(struct larder *l)
{
    struct store_usage usage;

    store_usage(l->store, &usage);
    return usage.dead_bytes > MAX(quota_limit(&l->quota) / 8, 4 * MIB);
}

/* ---- sealing ---- */

static bool take_due_seal(struct larder *l, uint64_t *ret_id)
{
    bool due;

    lock_take(&l->lock);
    due = l->seal_count > 0 && l->seal_queue[l->seal_head].due_ns <= clock_mono_ns(&l->clock);
    if (due) {
        *ret_id = l->seal_queue[l->seal_head].id;
        l->seal_head = (l->seal_head + 1) % SEAL_QUEUE_MAX;
        l->seal_count--;
    }
    lock_give(&l->lock);
    return due;
}

static void seal_some(struct larder *l)
{
    struct open_node *on;
    uint64_t id;

    while (take_due_seal(l, &id)) {
        if (open_node_get(l, id, false, &on) < 0)
            continue;
        (void)open_node_seal(on); /* busy or failed: served unsealed until its next writer closes it */
        open_node_put(on, false);
    }
}

/* ---- threads ---- */

/* When nothing could leave it stays wanted, so that nobody wakes this thread for the same in vain. */
static void *evict_thread(void *arg)
{
    struct larder *l = arg;
    bool in_vain = false;

    lock_take(&l->work_lock);
    while (!l->work_stop) {
        uint64_t next = clock_mono_ns(&l->clock) + TICK_NS;
        while (!l->work_stop && (in_vain || !atomic_load(&l->evict_wanted)) && lock_wait(&l->work_lock, &l->work_cond, next))
            ;
        if (l->work_stop)
            break;
        lock_give(&l->work_lock);
        atomic_store(&l->evict_wanted, false);
        in_vain = !evict_ahead(l);
        if (in_vain)
            atomic_store(&l->evict_wanted, true);
        lock_take(&l->work_lock);
    }
    lock_give(&l->work_lock);
    return NULL;
}

static void tick(struct larder *l, unsigned count)
{
    while (cache_expire_due(l) == EXPIRE_BATCH)
        ;
    cache_update_min_free(l);
    if (cache_writable(l) == 0)
        cache_mend_files(l);
    if (count % RECENCY_INTERVAL_TICKS == 0)
        flush_recency(l);
}

static void *tick_thread(void *arg)
{
    struct larder *l = arg;
    unsigned count = 0;

    lock_take(&l->work_lock);
    while (!l->work_stop) {
        uint64_t next = clock_mono_ns(&l->clock) + TICK_NS;
        while (!l->work_stop && lock_wait(&l->work_lock, &l->work_cond, next))
            ;
        if (l->work_stop)
            break;
        lock_give(&l->work_lock);
        tick(l, ++count);
        lock_take(&l->work_lock);
    }
    lock_give(&l->work_lock);
    return NULL;
}

static void tidy(struct larder *l)
{
    uint64_t freed;

    if (cache_writable(l) < 0)
        return;
    if ((checkpoint_is_due(l) || atomic_load(&l->checkpoint_wanted)) && work_checkpoint_may_try(l))
        if (work_checkpoint(l, false) == 0) /* else told and counted */
            atomic_store(&l->checkpoint_wanted, false);
    lock_take(&l->checkpoint_lock);
    (void)work_release_checkpoint_room(l);
    if (l->opts.quota_bytes > 0)
        checkpoint_hold_room(l);
    lock_give(&l->checkpoint_lock);
    (void)store_reclaim(l->store, 64, &freed);
    for (unsigned i = 0; i < CLEAN_SEGMENTS_PER_TURN && cleaning_is_due(l); i++)
        if (work_clean_segment(l) == 0)
            break;
    seal_some(l);
}

static void *tidy_thread(void *arg)
{
    struct larder *l = arg;

    lock_take(&l->work_lock);
    while (!l->work_stop) {
        uint64_t next = clock_mono_ns(&l->clock) + TIDY_INTERVAL_NS;
        while (!l->work_stop && !l->tidy_wanted && lock_wait(&l->work_lock, &l->work_cond, next))
            ;
        l->tidy_wanted = false;
        if (l->work_stop)
            break;
        lock_give(&l->work_lock);
        tidy(l);
        lock_take(&l->work_lock);
    }
    lock_give(&l->work_lock);
    return NULL;
}

/* Asked with every put while room is short: who is on his way already is not woken again. */
static void want(struct larder *l, _Atomic bool *flag)
{
    if (atomic_exchange(flag, true))
        return;
    lock_take(&l->work_lock);
    (void)pthread_cond_broadcast(&l->work_cond); /* cannot fail on an initialised condition */
    lock_give(&l->work_lock);
}

void work_want_eviction(struct larder *l)
{
    want(l, &l->evict_wanted);
}

void work_want_tidy(struct larder *l)
{
    want(l, &l->tidy_wanted);
}

int work_start(struct larder *l)
{
    static void *(*const mains[WORKER_COUNT])(void *) = {
        [WORKER_EVICT] = evict_thread, [WORKER_TICK] = tick_thread, [WORKER_TIDY] = tidy_thread};

    l->tidy_wanted = true; /* a daemon that is killed again and again must shorten its journal, too */
    while (l->threads_started < WORKER_COUNT) {
        int r = -pthread_create(&l->threads[l->threads_started], NULL, mains[l->threads_started], l);
        if (r < 0)
            return r;
        l->threads_started++;
    }
    return 0;
}

void work_stop(struct larder *l)
{
    lock_take(&l->work_lock);
    l->work_stop = true;
    (void)pthread_cond_broadcast(&l->work_cond); /* cannot fail on an initialised condition */
    lock_give(&l->work_lock);
    while (l->threads_started > 0)
        (void)pthread_join(l->threads[--l->threads_started], NULL); /* a thread of ours, joined once */
}
