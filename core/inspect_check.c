/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect_check: is a store at rest sound? Reads every record, replays the index, walks the tree, and reads every
 * value against its checksum. Severity:
 *
 *   'E'  a defect: a restart would lose or refuse something it should not.
 *   'N'  a note: a state that SIGKILL, or a full disk, leaves behind and the next mount tidies up. Also a value that the
 *        machine's going down may have taken before it was synced: it will be a miss, as promised.
 *
 * Memory is in proportion to keys and big files. What may never happen: a defect passed over silently; a write.
 */
#include "inspect_internal.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "content.h"
#include "journal.h"
#include "quota.h"
#include "store.h"

#define ROOT_ID 1u
#define SEGMENT_FDS_MAX 64u
/* A file may take this much more than was measured at its commit: the file system's own blocks, and those it allocated late. */
#define DISK_SLACK_BYTES (64u << 10)

/* What a value takes in a segment. */
struct extent {
    uint64_t start, end;
    uint32_t segment_no;
    uint32_t row; /* of the node */
    bool is_sums;
};

struct check {
    struct inspect in;
    inspect_report report;
    void *ctx;
    uint64_t log_files; /* journals and checkpoints */
    struct inspect_summary sum;
    struct found_list found;
    struct index_table table;
    struct store *store;
    struct quota quota;
    struct extent *extents; /* sorted by segment and start */
    size_t extent_count;
    uint32_t *big_rows; /* rows of big values, sorted by big id */
    size_t big_count;
    bool power_lost; /* the machine went down without an orderly stop: unsynced values may be gone */
};

static void say(struct check *c, char severity, const char *where, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void say(struct check *c, char severity, const char *where, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    c->sum.defects += severity == 'E';
    c->sum.notes += severity == 'N';
    c->report(c->ctx, severity, where, text);
}

static void say_node(struct check *c, char severity, const struct node_row *row, const char *what)
{
    char path[TABLE_PATH_BYTES];

    table_path(&c->table, row, path);
    say(c, severity, path, "%s", what);
}

static int check_run(struct check *c, struct errtext *err);

int inspect_check_on(const struct inspect_source *source, inspect_report report, void *ctx,
                     struct inspect_summary *ret_summary, struct errtext *err)
{
    struct check c = {.report = report, .ctx = ctx};
    int r;

    r = inspect_open_on(source, &c.in, err);
    if (r < 0)
        return r;
    r = check_run(&c, err);
    store_close(c.store);
    table_fini(&c.table);
    found_fini(&c.found);
    free(c.extents);
    free(c.big_rows);
    inspect_close(&c.in);
    if (r == 0)
        *ret_summary = c.sum;
    return r;
}

int inspect_check(const char *path, bool even_if_busy, inspect_report report, void *ctx,
                  struct inspect_summary *ret_summary, char *err)
{
    struct inspect_source source;
    struct errtext text = {""};
    int r;

    r = inspect_find(path, even_if_busy, &source, &text);
    if (r == 0)
        r = inspect_check_on(&source, report, ctx, ret_summary, &text);
    if (r < 0)
        memcpy(err, text.text, MIN(sizeof(text.text), (size_t)INSPECT_ERROR_BYTES));
    return r;
}

/* ---- files ---- */

static int count_record(void *ctx, uint64_t offset, const struct record_view *view)
{
    uint64_t *count = ctx;

    (void)offset;
    (void)view;
    ++*count;
    return 0;
}

/* Counts and finds torn tails. Whether a bad journal matters is told by the replay; an index is renamed into place
 * when all of it is on the device, so not even a power cut excuses a bad one. */
static int check_log_file(struct check *c, const struct found *f)
{
    struct journal_header header;
    struct errtext err = {""};
    char name[FOUND_NAME_BYTES];
    uint64_t bad_offset = UINT64_MAX, records = 0;
    char severity = f->kind == FOUND_INDEX ? 'E' : 'N';
    int r;

    found_name(f, name);
    r = journal_walk_file(c->in.io, c->in.dir_fd, name, c->in.sb.store_id, count_record, &records, &header,
                          &bad_offset, &err);
    if (r == -ENOMEM || r == -EIO)
        return r;
    *(f->kind == FOUND_INDEX ? &c->sum.index_records : &c->sum.journal_records) += records;
    if (r < 0)
        say(c, severity, name, "has no valid header (%llu bytes): it is left out",
            (unsigned long long)f->size_bytes);
    else if (bad_offset != UINT64_MAX)
        say(c, severity, name, "is valid up to offset %llu of %llu: what follows is no record%s",
            (unsigned long long)bad_offset, (unsigned long long)f->size_bytes,
            severity == 'N' ? " (a torn tail)" : "");
    return 0;
}

static int check_files(struct check *c)
{
    for (size_t i = 0; i < c->found.count; i++) {
        const struct found *f = &c->found.rows[i];
        char name[FOUND_NAME_BYTES];
        size_t bytes;
        int r = 0;

        found_name(f, name);
        bytes = strlen(name);
        switch (f->kind) {
        case FOUND_JOURNAL:
        case FOUND_INDEX:
            c->log_files++;
            r = check_log_file(c, f);
            break;
        case FOUND_SEGMENT:
            c->sum.segments++;
            break;
        case FOUND_BIG:
            c->sum.big_files++;
            break;
        case FOUND_FOREIGN:
            if (bytes > 4 && strcmp(name + bytes - 4, ".tmp") == 0)
                say(c, 'N', name, "is unfinished; the next mount removes it");
            else
                say(c, 'N', name, "is not larder's, and takes %llu bytes of the disk",
                    (unsigned long long)f->disk_bytes);
            break;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- index ---- */

static void check_tag(struct check *c)
{
    struct stat st;

    if (c->in.format_lost)
        say(c, 'E', "FORMAT", "%s; %u other files say what it was", c->in.format_lost, c->in.format_witnesses);

    if (io_stat_at(c->in.io, c->in.dir_fd, "CACHEDIR.TAG", &st) < 0)
        say(c, 'N', "CACHEDIR.TAG", "is missing: backup programs will not skip the store");
}

static int check_replay(struct check *c, struct errtext *err)
{
    struct journal_options opts = {.store_id = c->in.sb.store_id, .boot_id = c->in.boot_id, .read_only = true};
    struct journal_replay replay = {0};
    struct journal *j = NULL;
    int r;

    r = journal_open(c->in.io, c->in.dir_fd, &c->quota, &opts, table_apply, &c->table, &replay, &j, err);
    journal_close(j);
    if (r < 0)
        return r;
    c->power_lost =
        c->table.boot_known && !replay.clean && memcmp(c->in.boot_id, c->table.boot_id, sizeof(c->in.boot_id)) != 0;
    if (c->log_files == 0 && c->sum.segments + c->sum.big_files > 0)
        say(c, 'E', "journal", "and checkpoint are missing: whose the values in the store are cannot be known");
    if (replay.lost)
        say(c, 'E', "index",
            "is damaged so that what the keys were last cannot be known: the next mount begins with an empty cache");
    if (replay.corrupt_records > 0)
        say(c, c->power_lost ? 'N' : 'E', "journal",
            "%llu damaged records or files in index and journal: what they held is lost%s",
            (unsigned long long)replay.corrupt_records,
            c->power_lost ? " (the machine went down without an orderly stop)" : "");
    if (c->table.illegal > 0)
        say(c, 'E', "journal", "%llu entries that no daemon writes, the first for node 0x%llx",
            (unsigned long long)c->table.illegal, (unsigned long long)c->table.illegal_id);
    return 0;
}

/* ---- tree ---- */

/* The directory its first name is in; NULL at the root, and where the way ends. */
static struct node_row *parent_of(const struct check *c, const struct node_row *row)
{
    if (row->id == ROOT_ID || !row->first_name)
        return NULL;
    return table_node(&c->table, c->table.names[row->first_name].parent);
}

enum { MARK_NONE, MARK_ROOTED, MARK_LOST, MARK_WALKS };

/* Follows the parents up until a directory whose fate is known, then tells it to all on the way. */
static void check_way_up(struct check *c, struct node_row *row, uint32_t walk)
{
    struct node_row *at = row, *next;
    uint32_t fate = MARK_LOST;

    for (; at && at->mark == MARK_NONE; at = next) {
        at->mark = walk;
        next = parent_of(c, at);
        if (at->id == ROOT_ID)
            fate = MARK_ROOTED;
    }
    if (at && at->mark == walk)
        say_node(c, 'E', at, "is a directory inside itself");
    else if (at)
        fate = at->mark;
    for (at = row; at && at->mark == walk; at = parent_of(c, at))
        at->mark = fate;
}

static void check_node(struct check *c, struct node_row *row)
{
    char path[TABLE_PATH_BYTES];

    c->sum.nodes++;
    if (!row->known) {
        table_path(&c->table, row, path);
        say(c, 'E', path, "%s",
            row->first_name ? "is a name that leads to nothing" : "is a directory that is not there");
        return;
    }
    c->sum.directories += S_ISDIR(row->mode);
    if (row->id == ROOT_ID) {
        if (!S_ISDIR(row->mode))
            say(c, 'E', "/", "the root is no directory");
        return;
    }
    if (!row->first_name)
        say_node(c, 'N', row, "has no name (it was open, or just made); the next mount drops it");
    else if (S_ISDIR(row->mode) && row->name_count > 1)
        say_node(c, 'E', row, "is a directory with more than one name");
}

static void check_name(struct check *c, const struct name_row *name)
{
    struct node_row *parent = table_node(&c->table, name->parent), *node = table_node(&c->table, name->node);
    char path[TABLE_PATH_BYTES];

    c->sum.names++;
    if (!node)
        return; /* cannot be: rows take their names along */
    table_path(&c->table, node, path);
    if (!parent)
        say(c, 'E', path, "is in a directory that was dropped (node 0x%llx)",
            (unsigned long long)name->parent);
    else if (parent->known && !S_ISDIR(parent->mode))
        say(c, 'E', path, "is in something that is no directory (node 0x%llx)",
            (unsigned long long)name->parent);
    else if (parent->mark == MARK_LOST && parent->first_name)
        say(c, 'E', path, "is in a directory that does not lead to the root");
}

static void check_tree(struct check *c)
{
    struct index_table *t = &c->table;
    uint32_t walk = MARK_WALKS;

    if (t->node_live > 0 && !table_node(t, ROOT_ID))
        say(c, 'E', "/", "the root is not in the index");
    for (uint32_t i = 1; i < t->node_used; i++)
        if (t->nodes[i].live && (S_ISDIR(t->nodes[i].mode) || !t->nodes[i].known))
            check_way_up(c, &t->nodes[i], walk++);
    for (uint32_t i = 1; i < t->node_used; i++)
        if (t->nodes[i].live)
            check_node(c, &t->nodes[i]);
    for (uint32_t i = 1; i < t->name_used; i++)
        if (t->names[i].live)
            check_name(c, &t->names[i]);
}

/* ---- places ---- */

static bool row_has_value(const struct node_row *row)
{
    return row->live && row->known && S_ISREG(row->mode) && row->value.kind != VALUE_EMPTY;
}

static int extent_compare(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;

    if (x->segment_no != y->segment_no)
        return x->segment_no < y->segment_no ? -1 : 1;
    return (x->start > y->start) - (x->start < y->start);
}

static struct extent extent_of(struct place place, uint64_t stored_bytes, uint32_t row)
{
    return (struct extent){
        .segment_no = place.segment_no,
        .start = place.offset,
        .end = place.offset + DISK_VALUE_HEADER_BYTES + round_up(stored_bytes, 8),
        .row = row,
    };
}

static int big_compare(const void *a, const void *b, void *ctx)
{
    const struct node_row *nodes = ctx;
    uint64_t x = nodes[*(const uint32_t *)a].value.big_id, y = nodes[*(const uint32_t *)b].value.big_id;

    return (x > y) - (x < y);
}

static int collect_places(struct check *c)
{
    const struct index_table *t = &c->table;
    size_t room = t->node_live + 1u;

    c->extents = calloc(
        room, sizeof(*c->extents)); /* one per value: either a segment record or the sums of a big file */
    c->big_rows = calloc(room, sizeof(*c->big_rows));
    if (!c->extents || !c->big_rows)
        return -ENOMEM;
    for (uint32_t i = 1; i < t->node_used; i++) {
        const struct value *v = &t->nodes[i].value;

        if (!row_has_value(&t->nodes[i]))
            continue;
        if (v->kind == VALUE_SEGMENT) {
            c->extents[c->extent_count++] = extent_of(v->place, v->stored_bytes, i);
            continue;
        }
        c->big_rows[c->big_count++] = i;
        if (v->kind == VALUE_RAW && !v->unsealed && v->sums_place.segment_no != 0) {
            c->extents[c->extent_count] = extent_of(v->sums_place, v->sums_bytes, i);
            c->extents[c->extent_count++].is_sums = true;
        }
    }
    qsort(c->extents, c->extent_count, sizeof(*c->extents), extent_compare);
    qsort_r(c->big_rows, c->big_count, sizeof(*c->big_rows), big_compare, t->nodes);
    return 0;
}

static void say_shared(struct check *c, uint32_t row, uint32_t other_row, const char *what)
{
    char path[TABLE_PATH_BYTES], other[TABLE_PATH_BYTES];

    table_path(&c->table, &c->table.nodes[row], path);
    table_path(&c->table, &c->table.nodes[other_row], other);
    say(c, 'E', path, "shares %s with %s", what, other);
}

static void check_overlaps(struct check *c)
{
    const struct node_row *nodes = c->table.nodes;
    const struct extent *furthest = NULL;

    for (size_t i = 0; i < c->extent_count; i++) {
        const struct extent *e = &c->extents[i];
        char what[FORMAT_NAME_BYTES + 32], name[FORMAT_NAME_BYTES];

        if (furthest && furthest->segment_no == e->segment_no && e->start < furthest->end) {
            format_name(name, "seg-", e->segment_no);
            (void)snprintf(what, sizeof(what), "%s, offset %llu", name, (unsigned long long)e->start);
            say_shared(c, e->row, furthest->row, what);
        }
        if (!furthest || furthest->segment_no != e->segment_no || e->end > furthest->end)
            furthest = e;
    }
    for (size_t i = 1; i < c->big_count; i++) {
        char name[FORMAT_NAME_BYTES];

        if (nodes[c->big_rows[i]].value.big_id != nodes[c->big_rows[i - 1]].value.big_id)
            continue;
        format_big_name(name, nodes[c->big_rows[i]].value.big_id);
        say_shared(c, c->big_rows[i], c->big_rows[i - 1], name);
    }
}

/* ---- values ---- */

static void check_value(struct check *c, struct node_row *row)
{
    struct value v = row->value;
    char path[TABLE_PATH_BYTES];
    struct errtext err = {""};
    int r;

    if (v.unsealed) /* its size is the file's, whatever the index says: no reason to read that much */
        v.size_bytes = MIN(v.size_bytes, 1u);
    r = content_verify_value(c->store, &v, row->id, &err);
    table_path(&c->table, row, path);
    c->sum.values_checked++;
    if (r == 0)
        c->sum.value_bytes_checked += v.size_bytes;
    else if (c->power_lost && (r == -EBADMSG || r == -ENOENT || r == -ENODATA))
        say(c, 'N', path, "%s (the machine went down before it was synced; it is a miss)",
            err.text[0] ? err.text : strerror(-r));
    else if (!row->first_name)
        say(c, 'N', path, "%s (it has no name: its space was given back before that was logged)",
            err.text[0] ? err.text : strerror(-r));
    else
        say(c, 'E', path, "%s", err.text[0] ? err.text : strerror(-r));
    if (r == 0 && row->value.unsealed)
        say(c, 'N', path, "was changed in place and not sealed: it carries no checksum");
}

static void check_values(struct check *c)
{
    struct node_row *nodes = c->table.nodes;

    for (size_t i = 0; i < c->extent_count; i++) /* in the order they lie on the disk */
        if (!c->extents[i].is_sums)
            check_value(c, &nodes[c->extents[i].row]);
    for (size_t i = 0; i < c->big_count; i++)
        check_value(c, &nodes[c->big_rows[i]]);
}

/* ---- segments and big files against the index ---- */

/* The first extent in the segment; NULL: no value is in it. */
static const struct extent *segment_first(const struct check *c, uint64_t segment_no)
{
    size_t low = 0, high = c->extent_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (c->extents[middle].segment_no < segment_no)
            low = middle + 1;
        else
            high = middle;
    }
    return low < c->extent_count && c->extents[low].segment_no == segment_no ? &c->extents[low] : NULL;
}

static bool bytes_are_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

static void check_segment(struct check *c, const struct found *f)
{
    uint8_t raw[DISK_SEGMENT_HEADER_BYTES];
    char name[FOUND_NAME_BYTES];
    const struct extent *first = segment_first(c, f->no);
    int fd, r;

    found_name(f, name);
    if (!first) {
        say(c, 'N', name, "holds no value; the next mount removes it");
        return;
    }
    fd = io_open(c->in.io, c->in.dir_fd, name, O_RDONLY | O_NONBLOCK, 0);
    r = fd < 0 ? fd : io_read_full(c->in.io, fd, raw, sizeof(raw), 0);
    io_close(c->in.io, fd);
    if (r == 0)
        r = format_segment_header_unpack(raw, c->in.sb.store_id, (uint32_t)f->no);
    if (r == -EBADMSG && bytes_are_zero(raw, sizeof(raw)) && first->start >= BLOCK_BYTES)
        r = 0; /* its block was given back when the last value in it left: nothing reads the header by then */
    if (r < 0) /* after a power cut it may be, and the values in the file whole */
        say(c, 'N', name,
            "its header is not valid (%s); it only helps when the superblock is lost: each value in the file was checked "
            "by itself",
            strerror(-r));
}

static const struct node_row *big_owner(const struct check *c, uint64_t big_id)
{
    const struct node_row *nodes = c->table.nodes;
    size_t low = 0, high = c->big_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (nodes[c->big_rows[middle]].value.big_id < big_id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == c->big_count || nodes[c->big_rows[low]].value.big_id != big_id)
        return NULL;
    return &nodes[c->big_rows[low]];
}

static void check_big(struct check *c, const struct found *f)
{
    const struct node_row *row = big_owner(c, f->no);
    char name[FOUND_NAME_BYTES];

    found_name(f, name);
    if (!row)
        say(c, 'N', name, "belongs to no key; the next mount removes it");
    else if (!row->value.unsealed && f->disk_bytes > row->value.stored_bytes + DISK_SLACK_BYTES)
        say(c, 'N', name, "takes %llu bytes on disk, %llu are in the index; the next mount corrects that",
            (unsigned long long)f->disk_bytes, (unsigned long long)row->value.stored_bytes);
}

static void check_payload_files(struct check *c)
{
    for (size_t i = 0; i < c->found.count; i++) {
        if (c->found.rows[i].kind == FOUND_SEGMENT)
            check_segment(c, &c->found.rows[i]);
        else if (c->found.rows[i].kind == FOUND_BIG)
            check_big(c, &c->found.rows[i]);
    }
}

static int open_payload(struct check *c, struct errtext *err)
{
    struct store_options opts = {
        .store_id = c->in.sb.store_id,
        .segment_bytes = 1u << 20, /* of segments to come: there will be none */
        .segment_fds_max = SEGMENT_FDS_MAX,
        .read_only = true,
    };

    return store_open(c->in.io, c->in.dir_fd, &c->quota, &opts, &c->store, err);
}

static int check_run(struct check *c, struct errtext *err)
{
    int r;

    quota_init(&c->quota, UINT64_MAX);
    r = table_init(&c->table);
    if (r < 0)
        return errtext(err, r, "store %s: out of memory", c->in.path);
    r = found_scan(&c->in, &c->found, err);
    if (r < 0)
        return r;
    c->sum.disk_bytes = c->found.disk_bytes;
    check_tag(c);
    r = check_files(c);
    if (r < 0)
        return errtext(err, r, "store %s: reading the journal: %s", c->in.path, strerror(-r));
    r = check_replay(c, err);
    if (r == 0)
        r = open_payload(c, err);
    if (r < 0)
        return errtext_wrap(err, r, "store %s", c->in.path);
    check_tree(c);
    r = collect_places(c);
    if (r < 0)
        return errtext(err, r, "store %s: out of memory", c->in.path);
    check_overlaps(c);
    check_values(c);
    check_payload_files(c);
    return 0;
}
