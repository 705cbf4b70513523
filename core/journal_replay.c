/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal_replay: from files back to entries, and how far files are believed.
 *
 * Checkpoint. The newest that is good in every byte, and whose journal is there, is applied. It is judged while it is
 * applied, and forgotten again if it proves to be none to believe; for who cannot forget it is read twice, the first time
 * only to judge it. When there is none, the newest is salvaged: every valid record of it is applied. What the others held
 * is missing then, but nothing is wrong: a checkpoint holds each thing once.
 *
 * Journal. Files follow in the order of their numbers. A file continues the history if its first_seq is the seq after
 * the last one applied. A hole in the history is one of two things:
 *   torn      a power cut leaves holes in what was not synced. Nothing behind one is applied: what was synced lies
 *             before it. A file behind the hole is counted and skipped, now and at every later replay, because the
 *             next daemon's file carries on from before it. A first file that was never filled is such a hole.
 *   damage    where the machine has not gone down since (the boot id says so), or where a checkpoint says that it had
 *             been synced. Then what is known may be older than what was acknowledged, and must not be served. If the
 *             first valid record behind the hole recalls every node that the missing ones changed (ENTRY_RECALL),
 *             those nodes are gone and replay goes on. Else nothing of the index is believed: the cache is empty.
 * The last record of all has none behind it: damage to it cannot be told from a torn tail.
 *
 * Files are read, never mapped: one cut short underneath is an early end, not a SIGBUS.
 *
 * What may never happen: an entry of an invalid record applied; a record applied after a hole that was not recalled;
 * an older state taken for the newest where it can be known that it is not.
 */
#include "journal_internal.h"

#include <fcntl.h>
#include <stdio.h>

/* Two of the largest records fit, so that one always does, wherever the window happens to start. */
#define WINDOW_BYTES (8u << 20)
#define WINDOW_BYTES_MIN (64u << 10)
/* How much a search behind an invalid record may hash before it calls it a torn tail. */
#define FIND_BUDGET_BYTES (64u << 20)
#define FIND_BYTES_MAX (256u << 20) /* and how much it may read */

static_assert(WINDOW_BYTES / 2 >= RECORD_PAYLOAD_BYTES_MAX, "two of the largest payloads fit");

#define RECORD_SEQ_OFFSET 8u
#define ENTRIES_AHEAD 16u

struct journal_reader {
    struct io *io;
    int dir_fd;
    const uint8_t *store_id;
    int fd;
    struct journal_header header;
    uint64_t seed;
    uint64_t next_seq;
    uint64_t file_bytes;
    uint8_t *window; /* owned */
    size_t window_room; /* all of the file, and no more than WINDOW_BYTES */
    size_t window_used;
    size_t cursor;          /* in the window: the next record */
    uint64_t window_offset; /* in the file: where the window starts */
    bool check_entries;     /* else the caller walks them before it believes any */
};

struct replay {
    struct journal_reader reader;
    const struct journal_names *names;
    journal_apply apply;
    journal_expect expect; /* NULL: nobody asks */
    journal_reset reset;   /* NULL: what is applied stays */
    void *apply_ctx;
    struct journal_replay *out;
    struct replay_result result;
    struct {
        uint64_t nodes, names, entries;
        bool ended;
    } seen;            /* of the checkpoint that is being applied */
    uint64_t next_seq; /* 0: not known yet */
    const uint8_t *boot_id;    /* borrowed; of this boot of the machine, NULL: not known */
    bool same_boot;            /* the daemon whose records these are ran in this boot */
    bool lost;                 /* there is damage that nothing makes good */
    bool start_is_torn;        /* a file that was never filled lies before all that were read */
    uint64_t find_budget_bytes; /* what searches may still hash */
    struct errtext *err;
};

static void reader_init(struct journal_reader *rd, struct io *io, int dir_fd, const uint8_t store_id[16]);
static void reader_fini(struct journal_reader *rd);
static int reader_open(struct journal_reader *rd, const char *name);
static int reader_open_expected(struct journal_reader *rd, bool is_index, uint32_t no);
static int reader_next(struct journal_reader *rd, struct record_view *ret_view);
static void reader_seek(struct journal_reader *rd, uint64_t offset, uint64_t seq);
static int reader_open_headless(struct journal_reader *rd, bool is_index, uint32_t no);
static uint64_t reader_offset(const struct journal_reader *rd);
static int replay_newest_index(struct replay *rp);
static int journal_find_later(struct replay *rp, uint64_t *ret_offset, uint64_t *ret_seq);
static int replay_journals(struct replay *rp);
static int replay_forget(struct replay *rp);

int journal_replay_all(struct io *io, int dir_fd, const struct journal_options *opts, const struct journal_names *names,
                       journal_apply apply, void *apply_ctx, struct journal_replay *replay, struct replay_result *ret_result,
                       struct errtext *err)
{
    struct replay rp = {.names = names,
                        .apply = apply,
                        .expect = opts->expect,
                        .reset = opts->reset,
                        .apply_ctx = apply_ctx,
                        .out = replay,
                        .boot_id = opts->boot_id,
                        .find_budget_bytes = FIND_BUDGET_BYTES,
                        .err = err};
    int r;

    reader_init(&rp.reader, io, dir_fd, opts->store_id);
    replay->corrupt_records += names->ignored;
    r = replay_newest_index(&rp);
    if (r == 0)
        r = replay_journals(&rp);
    reader_fini(&rp.reader);
    if (r < 0)
        return r;
    replay->last_seq = rp.next_seq > 0 ? rp.next_seq - 1 : 0;
    if (replay->last_seq < replay->end.last_seq) {
        replay->corrupt_records++; /* what the checkpoint says was synced is not there */
        rp.lost = true;
    }
    replay->clean = replay->found_index && replay->end.clean && replay->last_seq == replay->end.last_seq;
    if (rp.lost)
        r = replay_forget(&rp);
    *ret_result = rp.result;
    return r;
}

/* Nothing of the index is believed: its root is recalled, and with it all that is below. */
static int replay_forget(struct replay *rp)
{
    uint8_t root[8];
    struct entry_view entry = {.type = ENTRY_RECALL, .recall = {.first_seq = 1, .nodes = root, .count = 1}};
    int r;

    write_le64(root, 1);
    r = rp->apply(rp->apply_ctx, &entry);
    if (r < 0)
        return errtext(rp->err, r, "journal: forgetting a damaged index");
    rp->out->lost = true;
    rp->out->clean = false;
    return 0;
}

/* ---- checkpoint ---- */

/* Counts what the record holds; true when it is END. -EBADMSG: END elsewhere than last and alone. */
static int index_judge_record(const struct record_view *view, struct end_image *counted, struct end_image *ret_end,
                              bool *ret_ended)
{
    struct entry_view entry;
    uint32_t offset = 0, count = 0;
    int r;

    if (*ret_ended)
        return -EBADMSG;
    while ((r = entry_next(view, &offset, &entry)) == 0) {
        count++;
        counted->nodes += entry.type == ENTRY_NODE;
        counted->names += entry.type == ENTRY_NAME;
        if (entry.type == ENTRY_END) {
            *ret_end = entry.end;
            *ret_ended = true;
        }
    }
    if (r != -ENODATA)
        return r;
    return *ret_ended && count != 1 ? -EBADMSG : 0;
}

/* Reads all of it and applies nothing. -EBADMSG: not one to believe. */
static int index_judge(struct replay *rp, uint32_t no, struct end_image *ret_end)
{
    struct end_image counted = {0};
    struct record_view view;
    bool ended = false;
    int r;

    r = reader_open_expected(&rp->reader, true, no);
    if (r < 0)
        return r;
    while ((r = reader_next(&rp->reader, &view)) == 0) {
        r = index_judge_record(&view, &counted, ret_end, &ended);
        if (r < 0)
            return r;
    }
    rp->out->read_bytes += reader_offset(&rp->reader);
    if (r != -ENODATA)
        return r;
    if (!ended)
        return -EBADMSG;
    return counted.nodes == ret_end->nodes && counted.names == ret_end->names ? 0 : -EBADMSG;
}

static int replay_entry(struct replay *rp, const struct record_view *view, const struct entry_view *entry)
{
    int r = rp->apply(rp->apply_ctx, entry);

    rp->out->entries++;
    rp->seen.nodes += entry->type == ENTRY_NODE;
    rp->seen.names += entry->type == ENTRY_NAME;
    rp->seen.ended |= entry->type == ENTRY_END;
    if (entry->type == ENTRY_BOOT)
        rp->same_boot = rp->boot_id && memcmp(entry->boot.boot_id, rp->boot_id, 16) == 0;
    if (entry->type == ENTRY_END) {
        rp->same_boot = rp->boot_id && memcmp(entry->end.boot_id, rp->boot_id, 16) == 0;
        rp->out->end = entry->end; /* the checkpoint's; a journal's was refused */
    }
    return r < 0 ? errtext(rp->err, r, "journal: applying record %llu", (unsigned long long)view->seq) : 0;
}

static int replay_entries(struct replay *rp, const struct record_view *view, const struct entry_view *entries, unsigned count)
{
    int r = 0;

    rp->seen.entries += count;
    for (unsigned i = 0; r == 0 && i < count; i++)
        if (entries[i].type != ENTRY_RECALL) /* of records that are there */
            r = replay_entry(rp, view, &entries[i]);
    return r;
}

/* Some are taken before the first of them is applied: what it costs to wait for memory is paid for all of them at once. */
static int replay_record(struct replay *rp, const struct record_view *view)
{
    struct entry_view entries[ENTRIES_AHEAD];
    uint32_t offset = 0;
    unsigned count;
    int taken, r;

    do {
        taken = 0;
        for (count = 0; taken == 0 && count < ENTRIES_AHEAD; count += taken == 0) {
            taken = entry_next(view, &offset, &entries[count]);
            if (taken == 0 && rp->expect)
                rp->expect(rp->apply_ctx, &entries[count]);
        }
        r = replay_entries(rp, view, entries, count);
        if (r < 0)
            return r;
    } while (taken == 0);
    return taken == -ENODATA ? 0 : taken;
}

static int index_apply(struct replay *rp, uint32_t no)
{
    struct record_view view;
    int r;

    r = reader_open_expected(&rp->reader, true, no);
    while (r == 0) {
        r = reader_next(&rp->reader, &view);
        if (r < 0)
            break;
        rp->out->index_records++;
        r = replay_record(rp, &view);
        if (r < 0)
            return r;
    }
    rp->out->read_bytes += reader_offset(&rp->reader);
    return r == -ENODATA ? 0 : r;
}

static bool journal_is_there(const struct journal_names *names, uint64_t no)
{
    for (size_t i = 0; i < names->journal_count; i++) {
        if (names->journals[i] == no)
            return true;
    }
    return false;
}

/* It is the one: the reader has it open. */
static void index_found(struct replay *rp, uint32_t no, const struct end_image *end)
{
    rp->out->found_index = true;
    rp->out->end = *end;
    rp->result.index_no = no;
    rp->result.replay_from_no = (uint32_t)rp->reader.header.replay_from_no;
    rp->result.index_bytes = rp->reader.file_bytes;
    rp->next_seq = end->last_seq + 1;
}

/* -EBADMSG: not one to believe. Nothing of it is applied. */
static int index_judge_and_take(struct replay *rp, uint32_t no, bool is_newest)
{
    struct end_image end;
    int r = index_judge(rp, no, &end);

    if (r == 0 && !is_newest && !journal_is_there(rp->names, rp->reader.header.replay_from_no))
        r = -EBADMSG;
    if (r < 0)
        return r;
    index_found(rp, no, &end);
    r = index_apply(rp, no);
    if (r == -EBADMSG)
        rp->out->corrupt_records++; /* changed between two reads: what came before stays applied */
    return r == -EBADMSG ? 0 : r;
}

/* All of the file that the reader has open. -EBADMSG: it proves to be none to believe. */
static int index_apply_judging(struct replay *rp)
{
    struct record_view view;
    int r;

    memset(&rp->seen, 0, sizeof(rp->seen));
    while ((r = reader_next(&rp->reader, &view)) == 0) {
        uint64_t before = rp->seen.entries;

        if (rp->seen.ended)
            return -EBADMSG;
        rp->out->index_records++;
        r = replay_record(rp, &view);
        if (r == 0 && rp->seen.ended && rp->seen.entries - before != 1)
            r = -EBADMSG;
        if (r < 0)
            return r;
    }
    rp->out->read_bytes += reader_offset(&rp->reader);
    if (r != -ENODATA)
        return r;
    if (!rp->seen.ended)
        return -EBADMSG;
    return rp->seen.nodes == rp->out->end.nodes && rp->seen.names == rp->out->end.names ? 0 : -EBADMSG;
}

/* -EBADMSG: not one to believe. Nothing of it is left. */
static int index_take_or_reset(struct replay *rp, uint32_t no, bool is_newest)
{
    struct journal_replay before = *rp->out;
    int r, reset;

    r = reader_open_expected(&rp->reader, true, no);
    if (r == 0 && !is_newest && !journal_is_there(rp->names, rp->reader.header.replay_from_no))
        r = -EBADMSG;
    if (r < 0)
        return r;
    r = index_apply_judging(rp);
    if (r == 0) {
        struct end_image end = rp->out->end;
        index_found(rp, no, &end);
    }
    if (r != -EBADMSG)
        return r;
    *rp->out = before;
    rp->same_boot = false;
    reset = rp->reset(rp->apply_ctx);
    return reset < 0 ? reset : r;
}

/* Every valid record of a checkpoint that is not whole. Its END, if that is among them, says where the journal goes on.
 * -ENODATA: there is none. */
static int index_salvage(struct replay *rp, uint32_t no)
{
    struct journal_reader *rd = &rp->reader;
    struct record_view view;
    uint64_t offset, seq;
    int r;

    r = reader_open_expected(rd, true, no);
    if (r == -EBADMSG)
        r = reader_open_headless(rd, true, no);
    if (r < 0)
        return r == -EBADMSG ? -ENODATA : r;
    rd->check_entries = true;
    rp->result.index_no = no;
    rp->result.replay_from_no = (uint32_t)rd->header.replay_from_no;
    rp->result.index_bytes = rd->file_bytes;
    do {
        while ((r = reader_next(rd, &view)) == 0) {
            rp->out->index_records++;
            r = replay_record(rp, &view);
            if (r < 0)
                return r;
        }
        if (r == -EBADMSG)
            r = journal_find_later(rp, &offset, &seq);
        if (r == 0)
            reader_seek(rd, offset, seq);
    } while (r == 0);
    rp->out->read_bytes += reader_offset(rd);
    if (rp->out->end.last_seq > 0) {
        rp->out->found_index = true;
        rp->out->end.clean = false;
        rp->next_seq = rp->out->end.last_seq + 1;
    }
    if (r != -ENODATA && r != -ENOENT)
        return errtext(rp->err, r, "index-%08x: reading: %s", no, strerror(-r));
    if (rp->out->index_records > 0)
        return 0;
    rp->result = (struct replay_result){0};
    return -ENODATA;
}

/* Older ones count only while the journal that follows them is there: else they are what was before. */
static int replay_newest_index(struct replay *rp)
{
    size_t count = rp->names->index_count;

    rp->reader.check_entries = false; /* one that is malformed makes all of it one not to believe */
    for (size_t i = count; i-- > 0;) {
        uint32_t no = rp->names->indexes[i];
        bool is_newest = i + 1 == count;
        int r = rp->reset ? index_take_or_reset(rp, no, is_newest) : index_judge_and_take(rp, no, is_newest);

        if (r == 0)
            return 0;
        if (r != -EBADMSG)
            return errtext(rp->err, r, "index-%08x: reading: %s", no, strerror(-r));
        rp->out->corrupt_records++;
    }
    for (size_t i = count; i-- > 0;) {
        int r = index_salvage(rp, rp->names->indexes[i]);

        if (r != -ENODATA)
            return r;
    }
    return 0;
}

/* ---- journal files ---- */

/* Where is the next valid record of what should follow, behind bytes that are not? -ENOENT: nowhere. */
static int journal_find_later(struct replay *rp, uint64_t *ret_offset, uint64_t *ret_seq)
{
    struct journal_reader *rd = &rp->reader;
    uint64_t offset = reader_offset(rd);
    uint64_t end = MIN(rd->file_bytes, offset + FIND_BYTES_MAX);

    while (offset < end && rp->find_budget_bytes > DISK_RECORD_HEADER_BYTES) {
        size_t got, at;
        int r;

        r = io_read_upto(rd->io, rd->fd, rd->window, rd->window_room, offset, &got);
        if (r < 0)
            return r;
        if (record_find(rd->window, got, rd->next_seq, rd->seed, &rp->find_budget_bytes, &at, ret_seq)) {
            *ret_offset = offset + at;
            return 0;
        }
        if (got < WINDOW_BYTES)
            break; /* the rest of the file */
        offset += WINDOW_BYTES / 2; /* a record over the window's end is whole in the next */
    }
    return -ENOENT;
}

static int replay_recall(struct replay *rp, const struct record_view *view)
{
    struct entry_view entry;
    uint32_t offset = 0;
    int r;

    while ((r = entry_next(view, &offset, &entry)) == 0) {
        if (entry.type != ENTRY_RECALL || entry.recall.first_seq > rp->next_seq)
            continue;
        r = replay_entry(rp, view, &entry);
        if (r == 0)
            rp->next_seq = view->seq;
        return r;
    }
    return -EBADMSG;
}

/* The record there does not follow what was applied. Does it recall all that is missing? Then that is applied: 0, and
 * the reader stands at it. -EBADMSG: no. */
static int replay_recall_at(struct replay *rp, uint64_t offset, uint64_t seq)
{
    struct record_view view;
    int r;

    reader_seek(&rp->reader, offset, seq);
    r = reader_next(&rp->reader, &view);
    if (r == 0)
        r = replay_recall(rp, &view);
    reader_seek(&rp->reader, offset, seq);
    return r == -ENODATA ? -EBADMSG : r;
}

/* The bytes at the reader are no valid record. 0: the damage is bridged, the reader stands behind it. -ENODATA: this
 * file ends here, for us. */
static int journal_bridge(struct replay *rp)
{
    struct journal_reader *rd = &rp->reader;
    uint64_t bad_offset = reader_offset(rd), offset, seq;
    int r;

    r = journal_find_later(rp, &offset, &seq);
    if (r == 0) {
        rp->out->corrupt_records++;
        r = rp->same_boot ? replay_recall_at(rp, offset, seq) : -EBADMSG;
        rp->lost |= rp->same_boot && r == -EBADMSG;
    }
    if (r == 0 || (r != -ENOENT && r != -EBADMSG))
        return r;
    rp->out->torn_bytes += rd->file_bytes - MIN(rd->file_bytes, bad_offset);
    return -ENODATA;
}

static bool journal_holds_end(const struct record_view *view)
{
    struct entry_view entry;
    uint32_t offset = 0;

    while (entry_next(view, &offset, &entry) == 0) {
        if (entry.type == ENTRY_END)
            return true;
    }
    return false;
}

/* All valid records from the reader on. -ENODATA: the file is through; -EBADMSG: something else is in the way. */
static int replay_run(struct replay *rp)
{
    struct record_view view;
    int r;

    while ((r = reader_next(&rp->reader, &view)) == 0) {
        if (journal_holds_end(&view)) {
            rp->out->corrupt_records++; /* no daemon writes that; what follows is as little to be believed */
            return -ENODATA;
        }
        r = replay_record(rp, &view);
        if (r < 0)
            return r;
        rp->out->journal_records++;
        rp->next_seq = view.seq + 1;
    }
    return r;
}

static int replay_one_journal(struct replay *rp, uint32_t no)
{
    struct journal_reader *rd = &rp->reader;
    uint64_t read_bytes;
    int r;

    do {
        r = replay_run(rp);
        read_bytes = reader_offset(rd);
        if (r == -EBADMSG)
            r = journal_bridge(rp);
    } while (r == 0);
    rp->out->read_bytes += read_bytes;
    rp->result.journal_bytes += read_bytes;
    return r == -ENODATA ? 0 : errtext(rp->err, r, "journal-%08x: reading: %s", no, strerror(-r));
}

/* Does the open file go on from what was applied? Sets where the history starts at its first file. */
static bool replay_continues(struct replay *rp, uint32_t no)
{
    uint64_t first_seq = rp->reader.header.first_seq;

    if (!rp->out->found_index && rp->next_seq == 0) {
        rp->next_seq = rp->start_is_torn ? 1 : first_seq;
        if (first_seq != 1)
            rp->out->corrupt_records++; /* the checkpoint is lost; entries set states, so the rest still helps */
    }
    /* The checkpoint was begun with this file: it may hold states newer than the file's first record. */
    if (rp->out->found_index && no == rp->result.replay_from_no && first_seq <= rp->out->end.last_seq + 1)
        rp->next_seq = first_seq;
    return first_seq == rp->next_seq;
}

/* Does the open file go on from what was applied, or make good what is missing in between? */
static int replay_joins(struct replay *rp, uint32_t no)
{
    uint64_t first_seq;
    int r;

    if (replay_continues(rp, no))
        return 0;
    first_seq = rp->reader.header.first_seq;
    if (!rp->same_boot || first_seq < rp->next_seq)
        return -EBADMSG; /* behind a torn hole; or left from before one, and carried on elsewhere */
    rp->out->corrupt_records++;
    r = replay_recall_at(rp, DISK_JOURNAL_HEADER_BYTES, first_seq);
    rp->lost |= r == -EBADMSG;
    return r;
}

/* -ENODATA: it never held anything. -EBADMSG: not to be believed. */
static int replay_open_journal(struct replay *rp, uint32_t no)
{
    int r = reader_open_expected(&rp->reader, false, no);

    if (r == -EBADMSG) {
        rp->out->corrupt_records++;
        r = reader_open_headless(&rp->reader, false, no);
    }
    if (r == 0)
        rp->result.journal_no = no;
    return r;
}

static int replay_journals(struct replay *rp)
{
    bool start_seen = !rp->out->found_index;
    int r;

    rp->reader.check_entries = true;
    for (size_t i = 0; i < rp->names->journal_count; i++) {
        uint32_t no = rp->names->journals[i];

        if (no < rp->result.replay_from_no)
            continue;
        r = replay_open_journal(rp, no);
        if (r == 0) {
            r = replay_joins(rp, no);
            rp->out->corrupt_records += r == -EBADMSG;
        }
        if (r == -ENODATA) { /* made, then cut off before its header */
            rp->out->torn_bytes += rp->reader.file_bytes;
            rp->start_is_torn |= rp->next_seq == 0;
        }
        if (r == -ENODATA || r == -EBADMSG)
            continue;
        if (r < 0)
            return errtext(rp->err, r, "journal-%08x: opening: %s", no, strerror(-r));
        start_seen |= no == rp->result.replay_from_no;
        r = replay_one_journal(rp, no);
        if (r < 0)
            return r;
    }
    rp->out->corrupt_records += !start_seen;
    rp->lost |= !start_seen && !rp->out->end.clean; /* it was there before the checkpoint was */
    rp->result.journal_no = MAX(rp->result.journal_no, rp->result.replay_from_no);
    return 0;
}

/* ---- one file, record by record ---- */

static void reader_init(struct journal_reader *rd, struct io *io, int dir_fd, const uint8_t store_id[16])
{
    *rd = (struct journal_reader){.io = io, .dir_fd = dir_fd, .store_id = store_id, .fd = -1, .check_entries = true};
}

static void reader_fini(struct journal_reader *rd)
{
    io_close(rd->io, rd->fd);
    free(rd->window);
    *rd = (struct journal_reader){.fd = -1};
}

int journal_open_regular(struct io *io, int dir_fd, const char *name, int *ret_fd, struct stat *ret_st)
{
    int fd, r;

    fd = io_open(io, dir_fd, name, O_RDONLY | O_NONBLOCK, 0); /* NONBLOCK: a FIFO under our name must not hold us */
    if (fd == -ELOOP || fd == -ENXIO || fd == -ENOENT || fd == -EACCES)
        return -EBADMSG;
    if (fd < 0)
        return fd;
    r = io_stat(io, fd, ret_st);
    if (r == 0 && !S_ISREG(ret_st->st_mode))
        r = -EBADMSG;
    if (r < 0) {
        io_close(io, fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int reader_need_window(struct journal_reader *rd)
{
    size_t room = (size_t)MIN(round_up(rd->file_bytes + 1, WINDOW_BYTES_MIN), WINDOW_BYTES);

    if (room <= rd->window_room)
        return 0;
    free(rd->window);
    rd->window_room = 0;
    rd->window = malloc(room);
    if (!rd->window)
        return -ENOMEM;
    rd->window_room = room;
    return 0;
}

/* Makes at least `bytes` available from the cursor on, if the file has them. */
static int reader_fill(struct journal_reader *rd, size_t bytes)
{
    size_t got;
    int r;

    assert(bytes <= WINDOW_BYTES);
    if (rd->window_used - rd->cursor >= bytes)
        return 0;
    memmove(rd->window, rd->window + rd->cursor, rd->window_used - rd->cursor);
    rd->window_offset += rd->cursor;
    rd->window_used -= rd->cursor;
    rd->cursor = 0;
    r = io_read_upto(rd->io, rd->fd, rd->window + rd->window_used, rd->window_room - rd->window_used,
                     rd->window_offset + rd->window_used, &got);
    if (r < 0)
        return r;
    rd->window_used += got;
    return 0;
}

static bool bytes_are_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0)
            return false;
    }
    return true;
}

/* -ENODATA: it ends before its header does, or the header was never written. -EBADMSG: not a file of this store. */
static int reader_open(struct journal_reader *rd, const char *name)
{
    struct stat st;
    int fd, r;

    io_close(rd->io, rd->fd);
    rd->fd = -1;
    rd->window_used = 0;
    rd->cursor = 0;
    rd->window_offset = 0;
    r = journal_open_regular(rd->io, rd->dir_fd, name, &fd, &st);
    if (r < 0)
        return r;
    rd->fd = fd;
    rd->file_bytes = (uint64_t)st.st_size;
    r = reader_need_window(rd);
    if (r == 0)
        r = reader_fill(rd, DISK_JOURNAL_HEADER_BYTES);
    if (r < 0)
        return r;
    if (rd->window_used < DISK_JOURNAL_HEADER_BYTES || bytes_are_zero(rd->window, DISK_JOURNAL_HEADER_BYTES))
        return -ENODATA;
    r = format_journal_header_unpack(rd->window, &rd->header);
    if (r < 0)
        return r;
    if (memcmp(rd->header.store_id, rd->store_id, sizeof(rd->header.store_id)) != 0)
        return -EBADMSG;
    rd->cursor = DISK_JOURNAL_HEADER_BYTES;
    rd->seed = format_journal_seed(&rd->header);
    rd->next_seq = rd->header.first_seq;
    return 0;
}

static int reader_open_expected(struct journal_reader *rd, bool is_index, uint32_t no)
{
    char name[FORMAT_NAME_BYTES];
    int r;

    format_name(name, is_index ? INDEX_PREFIX : JOURNAL_PREFIX, no);
    r = reader_open(rd, name);
    if (r == -EPROTONOSUPPORT)
        return -EBADMSG; /* the superblock is ours, so a newer daemon did not write this */
    if (r == -ENODATA && is_index)
        return -EBADMSG; /* renamed into place only when whole */
    if (r < 0)
        return r;
    if (rd->header.is_index != is_index || rd->header.file_no != no)
        return -EBADMSG;
    if (no > JOURNAL_NO_MAX || rd->header.replay_from_no > JOURNAL_NO_MAX)
        return -EBADMSG;
    return !is_index || rd->header.first_seq == 1 ? 0 : -EBADMSG;
}

/* The file is ours by its records, though its header is damaged: number and store are known, and are in the seed. */
static int reader_open_headless(struct journal_reader *rd, bool is_index, uint32_t no)
{
    struct record_view view;

    if (rd->fd < 0 || rd->window_used < DISK_JOURNAL_HEADER_BYTES + DISK_RECORD_HEADER_BYTES || no > JOURNAL_NO_MAX)
        return -EBADMSG;
    rd->header = (struct journal_header){.is_index = is_index, .file_no = no};
    memcpy(rd->header.store_id, rd->store_id, sizeof(rd->header.store_id));
    rd->seed = format_journal_seed(&rd->header);
    rd->cursor = DISK_JOURNAL_HEADER_BYTES;
    rd->next_seq = is_index ? 1 : read_le64(rd->window + rd->cursor + RECORD_SEQ_OFFSET);
    rd->header.first_seq = rd->next_seq;
    if (rd->next_seq == 0 || rd->next_seq > FIRST_SEQ_MAX)
        return -EBADMSG; /* as of a header that says so */
    if (reader_next(rd, &view) < 0)
        return is_index ? 0 : -EBADMSG; /* a checkpoint's first record is not needed */
    reader_seek(rd, DISK_JOURNAL_HEADER_BYTES, rd->header.first_seq);
    return 0;
}

static uint64_t reader_offset(const struct journal_reader *rd)
{
    return rd->window_offset + rd->cursor;
}

/* The next record is expected there, and to be that one. */
static void reader_seek(struct journal_reader *rd, uint64_t offset, uint64_t seq)
{
    rd->window_offset = offset;
    rd->window_used = 0;
    rd->cursor = 0;
    rd->next_seq = seq;
}

/* -ENODATA at the exact end; -EBADMSG: the bytes here are no valid record, and the cursor stays on them. */
static int reader_next(struct journal_reader *rd, struct record_view *ret_view)
{
    uint32_t claimed_bytes;
    int r;

    r = reader_fill(rd, DISK_RECORD_HEADER_BYTES);
    if (r < 0)
        return r;
    if (rd->window_used == rd->cursor)
        return -ENODATA;
    claimed_bytes = record_claimed_bytes(rd->window + rd->cursor, rd->window_used - rd->cursor);
    if (claimed_bytes == 0)
        return -EBADMSG;
    r = reader_fill(rd, claimed_bytes);
    if (r < 0)
        return r;
    r = record_parse(rd->window + rd->cursor, rd->window_used - rd->cursor, rd->next_seq, rd->seed, ret_view);
    if (r == 0 && rd->check_entries)
        r = record_check(ret_view);
    if (r < 0)
        return r;
    rd->cursor += ret_view->total_bytes;
    rd->next_seq++;
    return 0;
}

static int walk_records(struct journal_reader *rd, journal_visit visit, void *ctx, uint64_t *ret_bad_offset)
{
    struct record_view view;
    uint64_t offset = reader_offset(rd);
    int r;

    while ((r = reader_next(rd, &view)) == 0) {
        r = visit(ctx, offset, &view);
        if (r < 0)
            return r;
        offset = reader_offset(rd);
    }
    if (r != -ENODATA && r != -EBADMSG)
        return r;
    *ret_bad_offset = r == -ENODATA ? UINT64_MAX : offset;
    return 0;
}

int journal_walk_file(struct io *io, int dir_fd, const char *name, const uint8_t store_id[16], journal_visit visit, void *ctx,
                      struct journal_header *ret_header, uint64_t *ret_bad_offset, struct errtext *err)
{
    struct journal_reader rd;
    uint32_t no = 0;
    int r;

    reader_init(&rd, io, dir_fd, store_id);
    r = reader_open(&rd, name);
    if (r == 0 && !format_name_parse(name, rd.header.is_index ? INDEX_PREFIX : JOURNAL_PREFIX, &no))
        r = -EBADMSG;
    if (r == 0 && no != rd.header.file_no)
        r = -EBADMSG;
    if (r == -ENODATA)
        r = -EBADMSG;
    if (r < 0) {
        reader_fini(&rd);
        return errtext(err, r, "%s: %s", name, r == -EBADMSG ? "its header is not this store's" : strerror(-r));
    }
    *ret_header = rd.header;
    r = walk_records(&rd, visit, ctx, ret_bad_offset);
    if (r < 0)
        (void)errtext(err, r, "%s: at %llu: %s", name, (unsigned long long)reader_offset(&rd), strerror(-r));
    reader_fini(&rd);
    return r;
}

/* ---- the directory ---- */

void journal_names_fini(struct journal_names *names)
{
    free(names->journals);
    free(names->indexes);
    *names = (struct journal_names){0};
}

static int no_compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static int names_push(struct journal_names *names, uint32_t **list, size_t *count, uint32_t no)
{
    if (*count == JOURNAL_FILES_MAX) {
        names->ignored++;
        return 0;
    }
    if ((*count & (*count - 1)) == 0) { /* a power of two, or none: full */
        uint32_t *larger = realloc(*list, MAX(*count * 2, (size_t)1) * sizeof(*larger));

        if (!larger)
            return -ENOMEM;
        *list = larger;
    }
    (*list)[(*count)++] = no;
    return 0;
}

static bool name_is_leftover(const char *name)
{
    size_t bytes = strlen(name);

    return bytes > 4 && strcmp(name + bytes - 4, ".tmp") == 0;
}

struct names_scan {
    struct journal_names *names;
    struct io *io;
    int dir_fd;
    bool read_only;
};

static int names_take(void *ctx, const char *name) /* io_visit */
{
    struct names_scan *scan = ctx;
    struct journal_names *names = scan->names;
    uint32_t no;

    if (format_name_parse(name, JOURNAL_PREFIX, &no))
        return names_push(names, &names->journals, &names->journal_count, no);
    if (format_name_parse(name, INDEX_PREFIX, &no))
        return names_push(names, &names->indexes, &names->index_count, no);
    if (!scan->read_only && name_is_leftover(name))
        (void)io_unlink(scan->io, scan->dir_fd, name); /* it may be a directory, or stay: nothing reads it */
    return 0;
}

int journal_names_scan(struct io *io, int dir_fd, bool read_only, struct journal_names *ret_names)
{
    struct journal_names names = {0};
    struct names_scan scan = {.names = &names, .io = io, .dir_fd = dir_fd, .read_only = read_only};
    int r;

    r = io_list(io, dir_fd, names_take, &scan);
    if (r < 0) {
        journal_names_fini(&names);
        return r;
    }
    if (names.journal_count > 0)
        qsort(names.journals, names.journal_count, sizeof(*names.journals), no_compare);
    if (names.index_count > 0)
        qsort(names.indexes, names.index_count, sizeof(*names.indexes), no_compare);
    *ret_names = names;
    return 0;
}
