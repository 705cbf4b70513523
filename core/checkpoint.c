/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * checkpoint: the whole state written beside the traffic, so that the journal before it can go.
 *
 * The file is index-N.tmp until it is whole: records, END, fsync, rename, fsync of the directory; only then
 * are older files unlinked. The journal is durable up to END's last_seq before END is written, because a
 * state added to the checkpoint may be newer than anything a torn journal would still explain.
 *
 * What may never happen: a file unlinked that the newest durable checkpoint needs; growth not reserved.
 *
 * Thread safety: a checkpoint belongs to one thread; the journal goes on meanwhile. One at a time.
 */
#include "journal_internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>

#define CHECKPOINT_MAGIC 0x43484b50u
#define CHECKPOINT_BUFFER_BYTES (1u << 20)
/* For record headers and padding, on top of the caller's bound for what it adds: records of 4 KiB need no more. */
#define CHECKPOINT_OVERHEAD_SHARE 64u

struct checkpoint {
    uint32_t magic;
    struct journal *j;
    uint32_t no, replay_from_no;
    int fd;
    bool can_allocate;
    uint8_t *buffer; /* owned, CHECKPOINT_BUFFER_BYTES */
    size_t buffer_used;
    uint64_t offset; /* of the buffer in the file */
    uint64_t charged_bytes;
    uint64_t seed, seq;
    uint64_t node_count, name_count;
    uint64_t mark_before; /* journal->checkpoint_mark, for abort */
    bool published;       /* renamed into place; its charge is the index list's */
    struct record_buffer end_record;
};

static int checkpoint_start(struct checkpoint *cp);
static void checkpoint_free(struct checkpoint *cp);
static int checkpoint_discard(struct checkpoint *cp, int error);

static void checkpoint_name(const struct checkpoint *cp, bool finished, char out[FORMAT_NAME_BYTES])
{
    format_name(out, INDEX_PREFIX, cp->no);
    if (!finished)
        strcat(out, ".tmp"); /* 14 + 4 bytes of 40 */
}

/* One checkpoint at a time; takes its number. */
static int checkpoint_claim(struct journal *j, uint32_t *ret_no)
{
    int r = 0;

    lock_take(&j->lock);
    if (j->checkpoint_running)
        r = -EBUSY;
    else if (j->next_index_no > JOURNAL_NO_MAX)
        r = -EOVERFLOW;
    if (r == 0) {
        j->checkpoint_running = true;
        *ret_no = j->next_index_no++;
    }
    lock_give(&j->lock);
    return r;
}

static void checkpoint_unclaim(struct journal *j)
{
    lock_take(&j->lock);
    j->checkpoint_running = false;
    lock_give(&j->lock);
}

static struct checkpoint *checkpoint_new(struct journal *j, uint32_t no)
{
    struct checkpoint *cp = calloc(1, sizeof(*cp));

    if (!cp)
        return NULL;
    cp->magic = CHECKPOINT_MAGIC;
    cp->j = j;
    cp->no = no;
    cp->fd = -1;
    cp->can_allocate = true;
    cp->mark_before = j->checkpoint_mark;
    cp->buffer = malloc(CHECKPOINT_BUFFER_BYTES);
    if (!cp->buffer) {
        checkpoint_free(cp);
        return NULL;
    }
    return cp;
}

int checkpoint_begin(struct journal *j, uint64_t bytes_max, uint64_t *reserved_bytes, struct checkpoint **ret_checkpoint)
{
    struct checkpoint *cp;
    uint64_t charged_bytes;
    uint32_t no;
    int r;

    CHECK_OBJ(j, JOURNAL_MAGIC);
    if (j->read_only)
        return -EROFS;
    r = checkpoint_claim(j, &no);
    if (r < 0)
        return r;
    cp = checkpoint_new(j, no);
    if (!cp) {
        checkpoint_unclaim(j);
        return -ENOMEM;
    }
    bytes_max += bytes_max / CHECKPOINT_OVERHEAD_SHARE + BLOCK_BYTES;
    charged_bytes = round_up(bytes_max, BLOCK_BYTES) + FILE_SLACK_BYTES;
    r = charged_bytes > *reserved_bytes ? quota_reserve(j->quota, charged_bytes - *reserved_bytes) : 0;
    if (r == 0) {
        cp->charged_bytes = charged_bytes;
        *reserved_bytes -= MIN(*reserved_bytes, charged_bytes);
        r = checkpoint_start(cp);
    }
    if (r < 0)
        return checkpoint_discard(cp, r);
    *ret_checkpoint = cp;
    return 0;
}

/* Before the rotation nothing is lost by failing; after it, the next checkpoint rotates again. */
static int checkpoint_start(struct checkpoint *cp)
{
    struct journal *j = cp->j;
    struct journal_header header = {.is_index = true, .file_no = cp->no, .first_seq = 1};
    char name[FORMAT_NAME_BYTES];
    int r;

    checkpoint_name(cp, false, name);
    r = io_unlink(j->io, j->dir_fd, name);
    if (r < 0 && r != -ENOENT)
        return r;
    r = io_open(j->io, j->dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (r < 0)
        return r;
    cp->fd = r;
    j->checkpoint_mark = j->appended_total;
    r = journal_rotate(j, &cp->replay_from_no);
    if (r < 0)
        return r;
    header.replay_from_no = cp->replay_from_no;
    memcpy(header.store_id, j->store_id, sizeof(header.store_id));
    cp->seed = format_journal_seed(&header);
    format_journal_header_pack(&header, cp->buffer);
    cp->buffer_used = DISK_JOURNAL_HEADER_BYTES;
    return 0;
}

/* ---- adding ---- */

/* Writes at the end. What the caller's bound did not foresee is reserved here or refused. */
static int checkpoint_write(struct checkpoint *cp, const uint8_t *data, size_t bytes)
{
    struct journal *j = cp->j;
    uint64_t need_bytes = round_up(cp->offset + bytes, BLOCK_BYTES) + FILE_SLACK_BYTES;
    int r;

    if (need_bytes > cp->charged_bytes) {
        if (!quota_try_reserve(j->quota, need_bytes - cp->charged_bytes))
            return -ENOSPC;
        cp->charged_bytes = need_bytes;
    }
    if (cp->can_allocate) { /* exactly these blocks: a file system that grows files ahead would pass the charge */
        r = io_allocate(j->io, cp->fd, FALLOC_FL_KEEP_SIZE, cp->offset, bytes);
        if (r == -EOPNOTSUPP || r == -ENOSYS)
            cp->can_allocate = false;
        else if (r < 0)
            return r;
    }
    r = io_write_full(j->io, cp->fd, data, bytes, cp->offset);
    if (r == 0)
        cp->offset += bytes;
    return r;
}

static int checkpoint_flush(struct checkpoint *cp)
{
    int r;

    if (cp->buffer_used == 0)
        return 0;
    r = checkpoint_write(cp, cp->buffer, cp->buffer_used);
    if (r == 0)
        cp->buffer_used = 0;
    return r;
}

int checkpoint_add(struct checkpoint *cp, struct record_buffer *rb)
{
    int r;

    CHECK_OBJ(cp, CHECKPOINT_MAGIC);
    record_finish(rb, cp->seq + 1, cp->seed);
    if (cp->buffer_used + rb->used > CHECKPOINT_BUFFER_BYTES) {
        r = checkpoint_flush(cp);
        if (r < 0)
            return r;
    }
    if (rb->used > CHECKPOINT_BUFFER_BYTES) {
        r = checkpoint_write(cp, rb->data, rb->used);
        if (r < 0)
            return r;
    } else {
        memcpy(cp->buffer + cp->buffer_used, rb->data, rb->used);
        cp->buffer_used += rb->used;
    }
    cp->seq++;
    cp->node_count += rb->node_count;
    cp->name_count += rb->name_count;
    return 0;
}

/* ---- finishing ---- */

static int checkpoint_add_end(struct checkpoint *cp, const struct end_image *end, uint64_t last_seq)
{
    struct end_image counted = *end;
    int r;

    counted.nodes = cp->node_count;
    counted.names = cp->name_count;
    counted.last_seq = last_seq;
    r = record_begin(&cp->end_record);
    if (r == 0)
        r = record_add_end(&cp->end_record, &counted);
    if (r == 0)
        r = checkpoint_add(cp, &cp->end_record);
    return r;
}

/* From here on the file takes exactly what it is charged for. */
static int checkpoint_settle(struct checkpoint *cp)
{
    struct quota *quota = cp->j->quota;
    uint64_t disk_bytes;
    int r;

    r = io_disk_bytes(cp->j->io, cp->fd, &disk_bytes);
    if (r < 0)
        return r;
    if (disk_bytes > cp->charged_bytes)
        quota_charge(quota, disk_bytes - cp->charged_bytes);
    else
        quota_release(quota, cp->charged_bytes - disk_bytes);
    cp->charged_bytes = disk_bytes;
    return 0;
}

static int checkpoint_complete(struct checkpoint *cp, const struct end_image *end)
{
    struct journal *j = cp->j;
    uint64_t last_seq = journal_last_seq(j); /* all that was added is of this seq or before */
    int r;

    r = journal_sync_all(j);
    if (r == 0)
        r = checkpoint_add_end(cp, end, last_seq);
    if (r == 0)
        r = checkpoint_flush(cp);
    if (r == 0)
        r = io_truncate(j->io, cp->fd, cp->offset);
    if (r == 0)
        r = io_sync_file(j->io, cp->fd);
    return r == 0 ? checkpoint_settle(cp) : r;
}

/* In the sync turn. A failure after the rename leaves both the new and the old files: either restarts right. */
static int checkpoint_publish(struct checkpoint *cp)
{
    struct journal *j = cp->j;
    char from[FORMAT_NAME_BYTES], to[FORMAT_NAME_BYTES];
    struct stat st;
    int r;

    checkpoint_name(cp, false, from);
    checkpoint_name(cp, true, to);
    r = io_stat(j->io, cp->fd, &st);
    if (r == 0)
        r = journal_add_index(j, cp->no, cp->charged_bytes, st.st_ino);
    if (r < 0)
        return r;
    r = io_rename(j->io, j->dir_fd, from, to);
    if (r < 0) {
        j->index_count--;
        return r;
    }
    cp->published = true;
    j->checkpoint_bytes = cp->offset;
    r = io_sync_dir(j->io, j->dir_fd);
    if (r < 0) {
        journal_fail(j, r);
        return r;
    }
    journal_remove_older(j, cp->replay_from_no, cp->no);
    return 0;
}

int checkpoint_finish(struct checkpoint **cp_ptr, const struct end_image *end)
{
    struct checkpoint *cp = steal_pointer(cp_ptr);
    struct journal *j;
    int r;

    CHECK_OBJ(cp, CHECKPOINT_MAGIC);
    j = cp->j;
    r = checkpoint_complete(cp, end);
    if (r < 0)
        return checkpoint_discard(cp, r);
    journal_turn_take(j);
    r = checkpoint_publish(cp);
    journal_turn_give(j);
    if (!cp->published)
        return checkpoint_discard(cp, r);
    checkpoint_free(cp);
    checkpoint_unclaim(j);
    return r;
}

void checkpoint_abort(struct checkpoint **cp_ptr)
{
    struct checkpoint *cp = steal_pointer(cp_ptr);

    if (!cp)
        return;
    CHECK_OBJ(cp, CHECKPOINT_MAGIC);
    (void)checkpoint_discard(cp, -ECANCELED); /* the caller knows why */
}

static void checkpoint_free(struct checkpoint *cp)
{
    io_close(cp->j->io, cp->fd);
    record_buffer_fini(&cp->end_record);
    free(cp->buffer);
    cp->magic = 0;
    free(cp);
}

/* As if it had not been begun, but for the rotation. Returns error. */
static int checkpoint_discard(struct checkpoint *cp, int error)
{
    struct journal *j = cp->j;
    char name[FORMAT_NAME_BYTES];

    assert(error < 0);
    assert(!cp->published);
    if (cp->fd >= 0) {
        checkpoint_name(cp, false, name);
        (void)io_unlink(j->io, j->dir_fd, name); /* else it goes at the next open */
        io_close(j->io, cp->fd); /* before its space is called free */
        cp->fd = -1;
    }
    j->checkpoint_mark = cp->mark_before;
    quota_release(j->quota, cp->charged_bytes);
    checkpoint_free(cp);
    checkpoint_unclaim(j);
    return error;
}
