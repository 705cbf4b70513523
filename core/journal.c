/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal: records in order, from a buffer to a file to the device. Replay is in journal_replay.c,
 * checkpoints are in checkpoint.c, the picture of the parts is in journal_internal.h.
 *
 * Room. Bytes go to disk only within what the quota was charged for the file before. journal_append cannot
 * evict (it is called under the cache lock), so it takes room in this order: what is left of the file's
 * charge; a step from the free quota; the emergency reserve; and as a last resort, counted in overdrafts,
 * a charge past the limit: a change that has happened must be logged. journal_room, called without locks by
 * all who can be refused, evicts early enough to keep that from happening.
 *
 * Host disk. Blocks are allocated half a step ahead of what is written, so a host disk found full leaves
 * that much for removals. A write that still fails with -ENOSPC is kept and tried again by the next
 * journal_write; it does not make the journal bad, as nothing was acknowledged.
 *
 * Invariant J1: a file's bytes on disk never pass its charged_bytes.
 * Invariant J2: bytes of a file are written only after all bytes of the file before it.
 * Invariant J3: synced_seq rises only when all files up to the one holding it, and their names, are durable.
 */
#include "journal_internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>

#define CHUNK_BYTES_MIN (64u << 10)
/* Names skipped in a row when one is taken already. */
#define NO_SKIP_MAX 1024u
/* Evictions tried for one caller while the host's disk is full. */
#define HOST_FULL_TRIES_MAX 8u

static int journal_start(struct journal *j, uint64_t first_seq);
static int journal_adopt(struct journal *j, const struct journal_names *names, const struct replay_result *result,
                         struct journal_replay *replay);
static int journal_flush_locked(struct journal *j, uint64_t seq);
static void journal_free(struct journal *j);

/* ---- open and close ---- */

static int journal_new(struct io *io, int dir_fd, struct quota *quota, const struct journal_options *opts,
                       struct journal **ret_journal)
{
    struct journal *j = calloc(1, sizeof(*j));
    uint64_t step_bytes = MIN(quota_limit(quota) / 64, (uint64_t)JOURNAL_STEP_BYTES);

    if (!j)
        return -ENOMEM;
    j->magic = JOURNAL_MAGIC;
    j->io = io;
    j->dir_fd = dir_fd;
    j->quota = quota;
    memcpy(j->store_id, opts->store_id, sizeof(j->store_id));
    j->read_only = opts->read_only;
    j->failed = opts->failed;
    j->failed_ctx = opts->failed_ctx;
    j->step_bytes = round_up(MAX(step_bytes, (uint64_t)JOURNAL_STEP_BYTES_MIN), BLOCK_BYTES);
    j->emergency_bytes = opts->read_only ? 0 : round_up(opts->emergency_bytes, BLOCK_BYTES);
    j->can_allocate = true;
    lock_init(&j->file_lock, "journal file", LOCK_RANK_JOURNAL_FILE);
    lock_init(&j->lock, "journal", LOCK_RANK_JOURNAL);
    lock_cond_init(&j->sync_done);
    *ret_journal = j;
    return 0;
}

/* What was forgotten must not come back when the next replay looks at the same files: they go before a new one begins.
 * The checkpoint first: journals alone never say more than they know. */
static void journal_start_afresh(struct io *io, int dir_fd, struct journal_names *names, struct journal_replay *replay,
                                 struct replay_result *result)
{
    char name[FORMAT_NAME_BYTES];

    for (size_t i = 0; i < names->index_count; i++) {
        format_name(name, INDEX_PREFIX, names->indexes[i]);
        (void)io_unlink(io, dir_fd, name); /* what stays is forgotten at the next mount as well */
    }
    for (size_t i = names->journal_count; i-- > 0;) {
        format_name(name, JOURNAL_PREFIX, names->journals[i]);
        (void)io_unlink(io, dir_fd, name);
    }
    names->index_count = names->journal_count = 0;
    replay->last_seq = 0;
    replay->found_index = false;
    result->index_no = 0;
    result->index_bytes = result->journal_bytes = 0;
}

int journal_open(struct io *io, int dir_fd, struct quota *quota, const struct journal_options *opts, journal_apply apply,
                 void *apply_ctx, struct journal_replay *ret_replay, struct journal **ret_journal, struct errtext *err)
{
    struct journal_names names = {0};
    struct replay_result result = {0};
    struct journal_replay replay = {0};
    struct journal *j;
    int r;

    r = journal_new(io, dir_fd, quota, opts, &j);
    if (r < 0)
        return errtext(err, r, "journal: no memory");
    r = journal_names_scan(io, dir_fd, opts->read_only, &names);
    if (r < 0)
        (void)errtext(err, r, "journal: listing the store: %s", strerror(-r));
    if (r == 0)
        r = journal_replay_all(io, dir_fd, opts, &names, apply, apply_ctx, &replay, &result, err);
    if (r == 0 && replay.lost && !opts->read_only)
        journal_start_afresh(io, dir_fd, &names, &replay, &result);
    if (r == 0) {
        r = journal_adopt(j, &names, &result, &replay);
        if (r == 0 && !opts->read_only)
            r = journal_start(j, replay.last_seq + 1);
        if (r == -ENOSPC || r == -EDQUOT) { /* not one block to be had: what is there can be read all the same */
            j->read_only = true;
            replay.disk_full = true;
            r = 0;
        }
        if (r < 0)
            (void)errtext(err, r, "journal: starting a new file: %s", strerror(-r));
    }
    journal_names_fini(&names);
    if (r < 0) {
        journal_free(j);
        return r;
    }
    *ret_replay = replay;
    *ret_journal = j;
    return 0;
}

static void journal_free(struct journal *j)
{
    struct journal_file *f;

    while ((f = j->files)) {
        j->files = f->next;
        io_close(j->io, f->fd);
        free(f);
    }
    (void)pthread_cond_destroy(&j->sync_done); /* nobody waits */
    lock_fini(&j->lock);
    lock_fini(&j->file_lock);
    free(j->front.data);
    free(j->back.data);
    free(j->indexes);
    j->magic = 0;
    free(j);
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    CHECK_OBJ(j, JOURNAL_MAGIC);
    assert(!j->checkpoint_running);
    if (!j->read_only && journal_error(j) == 0) {
        lock_take(&j->file_lock);
        if (journal_flush_locked(j, journal_last_seq(j)) == 0) /* what fails here was never acknowledged */
            (void)io_truncate(j->io, j->current->fd, j->current->offset); /* gives back blocks allocated ahead */
        lock_give(&j->file_lock);
    }
    journal_free(j);
}

/* ---- small questions ---- */

void journal_fail(struct journal *j, int error)
{
    int none = 0, sticky = error == -ENOSPC ? -EIO : error; /* -ENOSPC invites another try, and there is none */

    assert(error < 0);
    if (atomic_compare_exchange_strong(&j->error, &none, sticky) && j->failed) /* the first one says why */
        j->failed(j->failed_ctx, error, "journal");
}

int journal_error(const struct journal *j)
{
    return j->error;
}

uint64_t journal_written_seq(const struct journal *j)
{
    return j->written_seq;
}

uint64_t journal_synced_seq(const struct journal *j)
{
    return j->synced_seq;
}

uint64_t journal_last_seq(const struct journal *j)
{
    return j->last_seq;
}

uint64_t journal_disk_bytes(const struct journal *j)
{
    return j->files_charged;
}

uint64_t journal_since_checkpoint(const struct journal *j)
{
    uint64_t mark = j->checkpoint_mark; /* read first: the total only grows past it */

    return j->appended_total - mark;
}

uint64_t journal_checkpoint_bytes(const struct journal *j)
{
    return j->checkpoint_bytes;
}

uint64_t journal_overdrafts(const struct journal *j)
{
    return j->overdrafts;
}

static bool journal_turn_try(struct journal *j)
{
    bool mine;

    lock_take(&j->lock);
    mine = !j->sync_running;
    j->sync_running = true;
    lock_give(&j->lock);
    return mine;
}

/* What cannot be asked counts as whole: it will be told of by what fails next. inode_no 0: any. */
static bool journal_name_leads_to(struct journal *j, const char *prefix, uint32_t no, uint64_t inode_no, uint64_t bytes_min)
{
    char name[FORMAT_NAME_BYTES];
    struct stat st;
    int r;

    format_name(name, prefix, no);
    r = io_stat_at(j->io, j->dir_fd, name, &st);
    if (r < 0)
        return r != -ENOENT && r != -ENOTDIR;
    return S_ISREG(st.st_mode) && (uint64_t)st.st_size >= bytes_min && (inode_no == 0 || st.st_ino == inode_no);
}

static bool journal_index_is_whole(struct journal *j)
{
    const struct index_file *newest = j->index_count > 0 ? &j->indexes[j->index_count - 1] : NULL;

    return !newest || journal_name_leads_to(j, INDEX_PREFIX, newest->no, newest->inode_no, j->checkpoint_bytes);
}

static bool journal_current_is_whole(struct journal *j)
{
    struct stat st;
    bool whole;

    lock_take(&j->file_lock);
    whole = io_stat(j->io, j->current->fd, &st) < 0 ||
            journal_name_leads_to(j, JOURNAL_PREFIX, j->current->no, st.st_ino, j->current->offset);
    lock_give(&j->file_lock);
    return whole;
}

bool journal_is_whole(struct journal *j)
{
    bool whole;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    if (j->read_only || journal_error(j) < 0)
        return true;
    if (!journal_turn_try(j)) /* files neither go nor are closed meanwhile */
        return true; /* busy with them: asked again later */
    whole = journal_index_is_whole(j) && journal_current_is_whole(j);
    journal_turn_give(j);
    return whole;
}

/* ---- room ---- */

/* Bytes already charged to the quota become the current file's. */
static void journal_add_room_locked(struct journal *j, uint64_t bytes)
{
    j->current->charged_bytes += bytes;
    j->files_charged += bytes;
    j->room_bytes += bytes;
}

static void journal_take_room_locked(struct journal *j, uint64_t bytes)
{
    if (j->room_bytes < bytes + j->step_bytes / 2 && quota_try_reserve(j->quota, j->step_bytes))
        journal_add_room_locked(j, j->step_bytes);
    if (j->room_bytes < bytes) {
        uint64_t need_bytes = round_up(bytes - j->room_bytes, BLOCK_BYTES);

        if (quota_try_reserve(j->quota, need_bytes)) {
            /* larger than a step */
        } else if (j->emergency_left >= need_bytes) {
            j->emergency_left -= need_bytes;
        } else {
            quota_charge(j->quota, need_bytes);
            j->overdrafts++;
        }
        journal_add_room_locked(j, need_bytes);
    }
    j->room_bytes -= bytes;
}

/* Shares out reserved bytes: first what the emergency reserve lacks, if it is to be refilled, then room. */
static void journal_give_room(struct journal *j, uint64_t bytes, bool refill)
{
    uint64_t refill_bytes = 0;

    lock_take(&j->lock);
    if (refill)
        refill_bytes = MIN(bytes, j->emergency_bytes - j->emergency_left);
    j->emergency_left += refill_bytes;
    journal_add_room_locked(j, bytes - refill_bytes);
    lock_give(&j->lock);
}

static void journal_allocate_ahead(struct journal *j, struct journal_file *f, uint64_t end);

/* The quota has room, the host's disk has not: what leaves the store makes some there as well. */
static int journal_room_on_host(struct journal *j)
{
    for (unsigned i = 0; j->host_full && i < HOST_FULL_TRIES_MAX; i++) {
        if (i > 0 && (!j->quota->make_room || j->quota->make_room(j->quota->ctx, j->step_bytes) < 0))
            break;
        lock_take(&j->file_lock);
        journal_allocate_ahead(j, j->current, j->current->offset);
        lock_give(&j->file_lock);
    }
    return j->host_full ? -ENOSPC : 0;
}

static int journal_room_reserve(struct journal *j, uint64_t bytes)
{
    uint64_t least_bytes = round_up(bytes, BLOCK_BYTES) + BLOCK_BYTES;
    uint64_t lacking_bytes = j->emergency_bytes - MIN(j->emergency_bytes, j->emergency_left);
    uint64_t want_bytes = least_bytes + j->step_bytes + lacking_bytes;
    int r;

    r = quota_reserve(j->quota, want_bytes);
    if (r == 0) {
        journal_give_room(j, want_bytes, true);
        return 0;
    }
    if (r != -ENOSPC)
        return r;
    if (j->room_bytes >= bytes)
        return 0;
    r = quota_reserve(j->quota, least_bytes);
    if (r == 0)
        journal_give_room(j, least_bytes, false);
    return r;
}

int journal_room(struct journal *j, size_t bytes)
{
    int r;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    r = journal_error(j);
    if (r < 0)
        return r;
    if (j->read_only)
        return -EROFS;
    if (j->room_bytes < bytes + j->step_bytes / 2 || j->emergency_left < j->emergency_bytes) {
        r = journal_room_reserve(j, bytes);
        if (r < 0)
            return r;
    }
    return j->host_full ? journal_room_on_host(j) : 0;
}

/* ---- append ---- */

static int chunk_reserve(struct journal_chunk *chunk, size_t bytes)
{
    size_t allocated = MAX(chunk->allocated, (size_t)CHUNK_BYTES_MIN);
    uint8_t *data;

    if (chunk->allocated - chunk->used >= bytes)
        return 0;
    while (allocated - chunk->used < bytes)
        allocated *= 2;
    data = realloc(chunk->data, allocated);
    if (!data)
        return -ENOMEM;
    chunk->data = data;
    chunk->allocated = allocated;
    return 0;
}

static void recall_add_node(uint64_t *nodes, uint32_t *count, uint64_t node)
{
    for (uint32_t i = *count; i-- > 0;) {
        if (nodes[i] == node)
            return;
    }
    nodes[(*count)++] = node;
}

/* What the last records changed goes into this one as well: should one of them be damaged, replay knows whom it was
 * about. One that changed too many for that hides those before it. */
static void journal_add_recall_locked(struct journal *j, struct record_buffer *rb, uint64_t seq)
{
    uint64_t nodes[RECALL_NODES_MAX];
    uint64_t first_seq = seq;
    uint32_t count = 0;

    while (first_seq > 1 && seq - first_seq < RECALL_RECORDS) {
        const struct recalled *before = &j->recalled[(first_seq - 1) % RECALL_RECORDS];

        if (before->seq != first_seq - 1 || count + before->count > RECALL_NODES_MAX)
            break;
        for (uint32_t i = 0; i < before->count; i++)
            recall_add_node(nodes, &count, before->nodes[i]);
        first_seq--;
    }
    if (first_seq < seq)
        (void)record_add_recall(rb, first_seq, nodes, count); /* no memory, or no room in it: it is only a spare */
}

static void journal_remember_locked(struct journal *j, const struct record_buffer *rb, uint64_t seq)
{
    struct recalled *r = &j->recalled[seq % RECALL_RECORDS];

    r->seq = rb->changed_count <= RECALL_NODES_MAX ? seq : 0;
    r->count = MIN(rb->changed_count, RECALL_NODES_MAX);
    memcpy(r->nodes, rb->changed, r->count * sizeof(r->nodes[0]));
}

static uint64_t journal_append_locked(struct journal *j, struct record_buffer *rb)
{
    uint64_t seq = j->last_seq + 1;
    int r;

    lock_assert_held(&j->lock);
    journal_add_recall_locked(j, rb, seq);
    journal_remember_locked(j, rb, seq);
    record_finish(rb, seq, j->seed);
    r = chunk_reserve(&j->front, rb->used);
    if (r < 0) {
        journal_fail(j, r); /* the change has happened in memory and cannot be logged: nothing after it may be */
        return 0;
    }
    journal_take_room_locked(j, rb->used); /* keeps J1 */
    memcpy(j->front.data + j->front.used, rb->data, rb->used);
    j->front.used += rb->used;
    j->front.last_seq = seq;
    j->appended_total += rb->used;
    j->last_seq = seq;
    return seq;
}

uint64_t journal_append(struct journal *j, struct record_buffer *rb)
{
    uint64_t seq = 0;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    if (j->read_only)
        return 0;
    lock_take(&j->lock);
    if (journal_error(j) == 0)
        seq = journal_append_locked(j, rb);
    lock_give(&j->lock);
    return seq;
}

/* ---- write ---- */

/* Charges what the file system took beyond what was foreseen (blocks of the extent tree), so that FILE_SLACK_BYTES
 * are spare again. */
static void journal_settle(struct journal *j, struct journal_file *f)
{
    uint64_t disk_bytes;

    if (io_disk_bytes(j->io, f->fd, &disk_bytes) < 0)
        return; /* the slack stands; the next step asks again */
    lock_take(&j->lock);
    if (disk_bytes + FILE_SLACK_BYTES > f->charged_bytes) {
        uint64_t more_bytes = round_up(disk_bytes + FILE_SLACK_BYTES - f->charged_bytes, BLOCK_BYTES);

        quota_charge(j->quota, more_bytes);
        f->charged_bytes += more_bytes; /* not room: the file system has it already */
        f->overhead_bytes += more_bytes;
        j->files_charged += more_bytes;
    }
    lock_give(&j->lock);
}

/* Allocates blocks so that half a step is there behind `end`, as far as the charge goes (keeps J1). Failing is
 * no error: the write that needs the space will say so. */
static void journal_allocate_ahead(struct journal *j, struct journal_file *f, uint64_t end)
{
    uint64_t limit, target;
    int r = 0;

    lock_assert_held(&j->file_lock);
    if (!j->can_allocate || f->allocated_end >= end + j->step_bytes / 2) {
        j->host_full = false;
        return;
    }
    lock_take(&j->lock);
    limit = f->charged_bytes - f->overhead_bytes - FILE_SLACK_BYTES;
    lock_give(&j->lock);
    target = MIN(limit, round_up(end + j->step_bytes / 2, j->step_bytes));
    if (target > f->allocated_end)
        r = io_allocate(j->io, f->fd, FALLOC_FL_KEEP_SIZE, f->allocated_end, target - f->allocated_end);
    if (r == -EOPNOTSUPP || r == -ENOSYS)
        j->can_allocate = false;
    j->host_full = r == -ENOSPC;
    if (r == 0 && target > f->allocated_end) {
        f->allocated_end = target;
        journal_settle(j, f);
    }
}

/* Nothing more comes to the file: gives back what it has beyond its bytes. */
static void journal_seal(struct journal *j, struct journal_file *f)
{
    uint64_t disk_bytes, spare_bytes;

    (void)io_truncate(j->io, f->fd, f->offset); /* failing leaves the blocks, and their charge below */
    if (io_disk_bytes(j->io, f->fd, &disk_bytes) == 0) {
        /* blocks not yet allocated (no allocation ahead) are still to come */
        uint64_t keep_bytes = MAX(round_up(disk_bytes, BLOCK_BYTES), round_up(f->offset, BLOCK_BYTES)) + FILE_SLACK_BYTES;

        lock_take(&j->lock);
        spare_bytes = f->charged_bytes - MIN(f->charged_bytes, keep_bytes);
        f->charged_bytes -= spare_bytes;
        j->files_charged -= spare_bytes;
        lock_give(&j->lock);
        quota_release(j->quota, spare_bytes);
    }
    f->sealed = true;
}

/* One pwrite of all of back. After -ENOSPC it is kept, and the next try writes the same bytes to the same place. */
static int journal_write_back_locked(struct journal *j)
{
    struct journal_chunk *back = &j->back;
    struct journal_file *f = back->file;
    uint64_t end = f->offset + back->used;
    int r;

    lock_assert_held(&j->file_lock);
    journal_allocate_ahead(j, f, end);
    r = io_write_full(j->io, f->fd, back->data, back->used, f->offset);
    if (r == -ENOSPC) {
        j->host_full = true;
        return r;
    }
    if (r < 0) {
        journal_fail(j, r);
        return r;
    }
    if (!j->can_allocate && f->offset / j->step_bytes != end / j->step_bytes)
        journal_settle(j, f);
    f->offset = end;
    if (back->last_seq > 0)
        j->written_seq = back->last_seq;
    back->used = 0;
    back->last_seq = 0;
    if (back->allocated > JOURNAL_BUFFER_BYTES_MAX) {
        free(back->data);
        back->data = NULL;
        back->allocated = 0;
    }
    if (f != j->current)
        journal_seal(j, f);
    return 0;
}

/* back must be empty; its memory becomes the new front. */
static void journal_swap_locked(struct journal *j)
{
    struct journal_chunk empty = {.file = j->front.file, .data = j->back.data, .allocated = j->back.allocated};

    lock_assert_held(&j->file_lock);
    lock_assert_held(&j->lock);
    assert(j->back.used == 0);
    j->back = j->front;
    j->front = empty;
}

static int journal_flush_locked(struct journal *j, uint64_t seq)
{
    int r;

    while (j->written_seq < seq) {
        r = journal_error(j);
        if (r < 0)
            return r;
        if (j->back.used == 0) {
            lock_take(&j->lock);
            journal_swap_locked(j);
            lock_give(&j->lock);
        }
        r = journal_write_back_locked(j);
        if (r < 0)
            return r;
    }
    return 0;
}

int journal_write(struct journal *j, uint64_t seq)
{
    int r;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    assert(seq <= journal_last_seq(j));
    r = journal_error(j);
    if (r < 0 || j->written_seq >= seq)
        return r;
    lock_take(&j->file_lock);
    r = journal_flush_locked(j, seq);
    lock_give(&j->file_lock);
    return r;
}

/* ---- sync ---- */

void journal_turn_take(struct journal *j)
{
    lock_take(&j->lock);
    while (j->sync_running)
        (void)lock_wait(&j->lock, &j->sync_done, 0);
    j->sync_running = true;
    lock_give(&j->lock);
}

void journal_turn_give(struct journal *j)
{
    lock_take(&j->lock);
    assert(j->sync_running);
    j->sync_running = false;
    (void)pthread_cond_broadcast(&j->sync_done); /* cannot fail on a live condition */
    lock_give(&j->lock);
}

/* A file of an earlier run: the kernel may still hold what that run wrote. */
static int journal_sync_found(struct journal *j, struct journal_file *f)
{
    char name[FORMAT_NAME_BYTES];
    struct stat st;
    int fd, r;

    format_name(name, JOURNAL_PREFIX, f->no);
    r = journal_open_regular(j->io, j->dir_fd, name, &fd, &st);
    if (r == -EBADMSG)
        return 0; /* not there, or not ours: nothing was believed of it */
    if (r < 0)
        return r;
    r = io_sync_data(j->io, fd);
    io_close(j->io, fd);
    return r;
}

static int journal_sync_file(struct journal *j, struct journal_file *f)
{
    bool sealed = f->sealed; /* asked before: what is written during the sync is not in it */
    int r;

    if (f->synced)
        return 0;
    r = f->fd < 0 ? journal_sync_found(j, f) : io_sync_data(j->io, f->fd);
    if (r < 0)
        return r;
    if (sealed) {
        f->synced = true;
        io_close(j->io, f->fd);
        f->fd = -1;
    }
    return 0;
}

/* Oldest file first, then names, keeps J3. In the sync turn, no lock held. */
static int journal_sync_turn(struct journal *j)
{
    uint64_t seq = j->written_seq; /* before current: whatever file holds it is not after current */
    struct journal_file *last, *f;
    int r;

    lock_take(&j->lock);
    last = j->current;
    f = j->files;
    lock_give(&j->lock);
    for (;; f = f->next) {
        r = journal_sync_file(j, f);
        if (r == -EMFILE || r == -ENFILE)
            return r; /* nothing was tried: the next turn begins here again */
        if (r < 0)
            goto fail;
        if (f == last)
            break;
    }
    if (atomic_exchange(&j->dir_dirty, false)) {
        r = io_sync_dir(j->io, j->dir_fd);
        if (r < 0)
            goto fail;
    }
    j->synced_seq = seq;
    return 0;
fail:
    journal_fail(j, r); /* the kernel may have dropped what it could not write: nothing here is trusted again */
    return r;
}

int journal_sync_all(struct journal *j)
{
    int r;

    r = journal_write(j, journal_last_seq(j));
    if (r < 0)
        return r;
    journal_turn_take(j);
    r = journal_error(j);
    if (r == 0)
        r = journal_sync_turn(j);
    journal_turn_give(j);
    return r;
}

int journal_sync(struct journal *j, uint64_t seq)
{
    int r;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    r = journal_write(j, seq);
    if (r < 0 || j->synced_seq >= seq)
        return r;
    journal_turn_take(j);
    r = journal_error(j);
    if (r == 0 && j->synced_seq < seq) /* else another's turn took ours along */
        r = journal_sync_turn(j);
    journal_turn_give(j);
    assert(r < 0 || j->synced_seq >= seq);
    return r;
}

/* ---- files ---- */

static struct journal_file *journal_file_new(uint32_t no, int fd, uint64_t charged_bytes)
{
    struct journal_file *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->no = no;
    f->fd = fd;
    f->charged_bytes = charged_bytes;
    return f;
}

/* A new, empty file with a number nothing else has. */
static int journal_create_fd(struct journal *j, uint32_t *ret_no, int *ret_fd)
{
    char name[FORMAT_NAME_BYTES];

    for (unsigned i = 0; i < NO_SKIP_MAX && j->next_no <= JOURNAL_NO_MAX; i++) {
        uint32_t no = j->next_no++;
        int fd;

        format_name(name, JOURNAL_PREFIX, no);
        fd = io_open(j->io, j->dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd == -EEXIST)
            continue;
        if (fd < 0)
            return fd;
        j->dir_dirty = true;
        *ret_no = no;
        *ret_fd = fd;
        return 0;
    }
    return -EOVERFLOW;
}

/* charged_bytes: in the quota already; the caller's again on failure. */
static int journal_create_file(struct journal *j, uint64_t charged_bytes, struct journal_file **ret_file)
{
    uint64_t allocate_bytes = charged_bytes - FILE_SLACK_BYTES;
    struct journal_file *f;
    char name[FORMAT_NAME_BYTES];
    uint32_t no;
    int fd, r;

    r = journal_create_fd(j, &no, &fd);
    if (r < 0)
        return r;
    r = io_allocate(j->io, fd, FALLOC_FL_KEEP_SIZE, 0, allocate_bytes);
    if (r == -EOPNOTSUPP || r == -ENOSYS) {
        j->can_allocate = false;
        allocate_bytes = 0;
        r = 0;
    }
    f = r == 0 ? journal_file_new(no, fd, charged_bytes) : NULL;
    if (!f) {
        io_close(j->io, fd);
        format_name(name, JOURNAL_PREFIX, no);
        (void)io_unlink(j->io, j->dir_fd, name); /* r says why; a leftover is an empty file at the next open */
        return r < 0 ? r : -ENOMEM;
    }
    f->allocated_end = allocate_bytes;
    *ret_file = f;
    return 0;
}

/* From now on records go to f, whose header is its first bytes. back must be empty and have room for the header;
 * it then holds the rest of the file before. */
static void journal_switch_locked(struct journal *j, struct journal_file *f, uint64_t first_seq)
{
    struct journal_header header = {.file_no = f->no, .first_seq = first_seq};
    struct journal_file **link = &j->files;

    lock_assert_held(&j->lock);
    memcpy(header.store_id, j->store_id, sizeof(header.store_id));
    journal_swap_locked(j);
    format_journal_header_pack(&header, j->front.data);
    j->front.file = f;
    j->front.used = DISK_JOURNAL_HEADER_BYTES;
    while (*link)
        link = &(*link)->next;
    *link = f;
    j->current = f;
    j->seed = format_journal_seed(&header);
    j->files_charged += f->charged_bytes;
    j->room_bytes = f->charged_bytes - FILE_SLACK_BYTES - DISK_JOURNAL_HEADER_BYTES;
}

/* Writes the rest of the old file, then what the new one has: its header at least. */
static int journal_switch_files(struct journal *j, struct journal_file *f)
{
    struct journal_file *old = j->current;
    int r;

    lock_take(&j->lock);
    journal_switch_locked(j, f, j->last_seq + 1);
    lock_give(&j->lock);
    if (j->back.used > 0) {
        r = journal_write_back_locked(j);
        if (r < 0)
            return r;
    } else if (old) {
        journal_seal(j, old);
    }
    lock_take(&j->lock);
    journal_swap_locked(j);
    lock_give(&j->lock);
    return journal_write_back_locked(j);
}

static int journal_rotate_locked(struct journal *j, uint64_t charged_bytes, struct journal_file **ret_file)
{
    int r;

    lock_assert_held(&j->file_lock);
    r = journal_flush_locked(j, journal_last_seq(j));
    if (r == 0)
        r = journal_error(j);
    if (r == 0 && j->back.used > 0)
        r = journal_write_back_locked(j); /* a header whose first write found the disk full */
    if (r == 0)
        r = chunk_reserve(&j->back, DISK_JOURNAL_HEADER_BYTES);
    if (r < 0)
        return r;
    return journal_create_file(j, charged_bytes, ret_file);
}

int journal_rotate(struct journal *j, uint32_t *ret_no)
{
    uint64_t charged_bytes = BLOCK_BYTES + FILE_SLACK_BYTES + j->step_bytes;
    struct journal_file *f = NULL;
    int r;

    r = quota_reserve(j->quota, charged_bytes);
    if (r == -ENOSPC) {
        charged_bytes = BLOCK_BYTES + FILE_SLACK_BYTES;
        r = quota_reserve(j->quota, charged_bytes);
    }
    if (r == -ENOSPC && quota_limit(j->quota) == 0) { /* keeps nothing but its own log: that must not grow for ever */
        quota_charge(j->quota, charged_bytes);
        r = 0;
    }
    if (r < 0)
        return r;
    lock_take(&j->file_lock);
    r = journal_rotate_locked(j, charged_bytes, &f);
    if (r == 0)
        r = journal_switch_files(j, f); /* f is the journal's now, whatever comes */
    lock_give(&j->file_lock);
    if (!f)
        quota_release(j->quota, charged_bytes);
    if (r == 0)
        *ret_no = f->no;
    return r;
}

/* The first file of this run. */
static int journal_start(struct journal *j, uint64_t first_seq)
{
    uint64_t charged_bytes = BLOCK_BYTES + FILE_SLACK_BYTES;
    struct journal_file *f = NULL;
    int r;

    j->last_seq = first_seq - 1;
    j->written_seq = first_seq - 1;
    j->dir_dirty = true; /* names found may be as new as their files */
    quota_charge(j->quota, charged_bytes + j->emergency_bytes);
    j->emergency_left = j->emergency_bytes;
    if (quota_try_reserve(j->quota, j->step_bytes))
        charged_bytes += j->step_bytes;
    lock_take(&j->file_lock);
    r = chunk_reserve(&j->back, DISK_JOURNAL_HEADER_BYTES);
    if (r == 0)
        r = journal_create_file(j, charged_bytes, &f);
    if (r == -ENOSPC) { /* the host's disk: without room ahead, then */
        quota_release(j->quota, charged_bytes - BLOCK_BYTES - FILE_SLACK_BYTES);
        charged_bytes = BLOCK_BYTES + FILE_SLACK_BYTES;
        r = journal_create_file(j, charged_bytes, &f);
    }
    if (r == 0)
        r = journal_switch_files(j, f);
    lock_give(&j->file_lock);
    if (!f)
        quota_release(j->quota, charged_bytes);
    return r;
}

/* ---- files of earlier runs ---- */

/* Charges the file; a run that was killed left blocks allocated ahead, which go back. */
static int journal_charge_found(struct journal *j, const char *name, uint64_t *ret_bytes, uint64_t *ret_inode_no)
{
    struct stat st;
    uint64_t disk_bytes;
    int fd, r;

    r = journal_open_regular(j->io, j->dir_fd, name, &fd, &st);
    if (r < 0)
        return r;
    io_close(j->io, fd);
    disk_bytes = (uint64_t)st.st_blocks * 512;
    if (!j->read_only && disk_bytes > round_up((uint64_t)st.st_size, BLOCK_BYTES) + FILE_SLACK_BYTES) {
        fd = io_open(j->io, j->dir_fd, name, O_WRONLY | O_NONBLOCK, 0);
        if (fd >= 0) {
            (void)io_truncate(j->io, fd, (uint64_t)st.st_size); /* else they stay, charged */
            (void)io_disk_bytes(j->io, fd, &disk_bytes);
            io_close(j->io, fd);
        }
    }
    quota_charge(j->quota, disk_bytes);
    *ret_bytes = disk_bytes;
    *ret_inode_no = (uint64_t)st.st_ino;
    return 0;
}

static int journal_adopt_journals(struct journal *j, const struct journal_names *names, const struct replay_result *result)
{
    struct journal_file **link = &j->files;
    uint64_t charged_bytes, inode_no;
    char name[FORMAT_NAME_BYTES];
    int r;

    for (size_t i = 0; i < names->journal_count; i++) {
        uint32_t no = names->journals[i];

        format_name(name, JOURNAL_PREFIX, no);
        r = journal_charge_found(j, name, &charged_bytes, &inode_no);
        if (r == -EBADMSG)
            continue; /* no regular file: counted by replay, never touched */
        if (r < 0)
            return r;
        quota_charge(j->quota, FILE_SLACK_BYTES); /* the kernel may not have written it out yet */
        charged_bytes += FILE_SLACK_BYTES;
        *link = journal_file_new(no, -1, charged_bytes);
        if (!*link)
            return -ENOMEM;
        (*link)->sealed = true;
        (*link)->synced = no < result->replay_from_no;
        (*link)->junk = no >= j->next_no;
        j->files_charged += charged_bytes;
        link = &(*link)->next;
    }
    return 0;
}

static int journal_adopt_indexes(struct journal *j, const struct journal_names *names)
{
    uint64_t charged_bytes, inode_no;
    char name[FORMAT_NAME_BYTES];
    int r;

    for (size_t i = 0; i < names->index_count; i++) {
        format_name(name, INDEX_PREFIX, names->indexes[i]);
        r = journal_charge_found(j, name, &charged_bytes, &inode_no);
        if (r == 0)
            r = journal_add_index(j, names->indexes[i], charged_bytes, inode_no);
        if (r < 0 && r != -EBADMSG)
            return r;
    }
    return 0;
}

/* The first number after `earned`, stepping over names close behind it. A name far off was never ours: whoever
 * put it there must not use up the numbers. */
static uint32_t journal_next_no(const uint32_t *nos, size_t count, uint32_t earned)
{
    for (size_t i = 0; i < count; i++) {
        if (nos[i] > earned && nos[i] - earned <= NO_SKIP_MAX)
            earned = nos[i];
    }
    return MIN(earned, JOURNAL_NO_MAX) + 1;
}

/* Before its first checkpoint a store has its files in a row and nothing else: should a power cut take the first, the
 * next one would be taken for all there is; should it take FORMAT, they would be somebody else's. So no file begins before
 * what was found is durable, names and all. */
static int journal_sync_young(struct journal *j)
{
    int r = 0;

    for (struct journal_file *f = j->files; f && r == 0; f = f->next) {
        r = journal_sync_found(j, f);
        f->synced = r == 0;
    }
    return r < 0 ? r : io_sync_dir(j->io, j->dir_fd);
}

static int journal_adopt(struct journal *j, const struct journal_names *names, const struct replay_result *result,
                         struct journal_replay *replay)
{
    int r;

    j->next_no = journal_next_no(names->journals, names->journal_count, result->journal_no);
    j->next_index_no = journal_next_no(names->indexes, names->index_count, result->index_no);
    j->last_seq = replay->last_seq;
    j->written_seq = replay->last_seq;
    j->synced_seq = j->read_only ? replay->last_seq : 0;
    j->appended_total = result->journal_bytes;
    j->checkpoint_bytes = result->index_bytes;
    r = journal_adopt_journals(j, names, result);
    if (r == 0)
        r = journal_adopt_indexes(j, names);
    if (r < 0 || j->read_only)
        return r;
    if (!replay->found_index)
        return journal_sync_young(j);
    r = io_sync_dir(j->io, j->dir_fd); /* the checkpoint's name first: what it replaces goes now */
    if (r == 0)
        journal_remove_older(j, result->replay_from_no, result->index_no);
    return r;
}

int journal_add_index(struct journal *j, uint32_t no, uint64_t charged_bytes, uint64_t inode_no)
{
    struct index_file *larger = realloc(j->indexes, (j->index_count + 1) * sizeof(*larger));

    if (!larger)
        return -ENOMEM;
    j->indexes = larger;
    j->indexes[j->index_count++] = (struct index_file){.no = no, .charged_bytes = charged_bytes, .inode_no = inode_no};
    return 0;
}

static bool journal_unlink(struct journal *j, const char *prefix, uint32_t no)
{
    char name[FORMAT_NAME_BYTES];
    int r;

    format_name(name, prefix, no);
    r = io_unlink(j->io, j->dir_fd, name);
    return r == 0 || r == -ENOENT; /* else it stays, charged, and is tried again at the next checkpoint */
}

/* The links up to current are changed only here; journal_switch_locked adds behind current. */
static void journal_remove_journals(struct journal *j, uint32_t replay_from_no)
{
    struct journal_file **link = &j->files;
    struct journal_file *f, *current;

    lock_take(&j->lock);
    current = j->current; /* it stays: a checkpoint that removes files is the only one to rotate */
    lock_give(&j->lock);
    while ((f = *link) && f != current) {
        if ((f->no >= replay_from_no && !f->junk) || !journal_unlink(j, JOURNAL_PREFIX, f->no)) {
            link = &f->next;
            continue;
        }
        lock_take(&j->lock);
        *link = f->next;
        j->files_charged -= f->charged_bytes;
        lock_give(&j->lock);
        io_close(j->io, f->fd);
        quota_release(j->quota, f->charged_bytes);
        free(f);
    }
}

void journal_remove_older(struct journal *j, uint32_t replay_from_no, uint32_t index_no)
{
    size_t kept = 0;

    for (size_t i = 0; i < j->index_count; i++) {
        struct index_file index = j->indexes[i];

        if (index.no != index_no && journal_unlink(j, INDEX_PREFIX, index.no))
            quota_release(j->quota, index.charged_bytes);
        else
            j->indexes[kept++] = index;
    }
    j->index_count = kept;
    journal_remove_journals(j, replay_from_no);
}
