/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect_dump: a store's files as text, one line per record or entry: "FILE OFFSET what name=value ...". The offset is
 * that of the record's or entry's first byte. Names are escaped, so that a line is a line.
 *
 * Shows what is there, also what replay would not use: each file is walked by itself.
 */
#include "inspect_internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "codec.h"
#include "journal.h"
#include "store.h"

#define WINDOW_BYTES (256u << 10)

struct dump {
    struct inspect in;
    inspect_line line;
    void *ctx;
    struct found_list found;
    char name[FOUND_NAME_BYTES]; /* of the file at hand */
    FILE *out;                   /* writes to text */
    char *text;
    size_t text_bytes;
};

static const char *const drop_reasons[DROP_REASON_COUNT] = {
    [DROP_REMOVED] = "removed", [DROP_REPLACED] = "replaced", [DROP_QUOTA] = "quota",
    [DROP_ENTRIES] = "entries", [DROP_MIN_FREE] = "min_free", [DROP_TTL] = "ttl",
    [DROP_IDLE] = "idle",       [DROP_EXPIRES] = "expires",   [DROP_CORRUPT] = "corrupt",
};

/* ---- one line ---- */

static void line_begin(struct dump *d, uint64_t offset, const char *what)
{
    rewind(d->out);
    (void)fprintf(d->out, "%s %" PRIu64 " %s", d->name, offset, what);
}

static void line_add(struct dump *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line_add(struct dump *d, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vfprintf(d->out, format, args); /* memory: line_end sees a failure */
    va_end(args);
}

static void line_add_escaped(struct dump *d, const char *key, const void *text, size_t bytes)
{
    const char *p = text;

    (void)fprintf(d->out, " %s=", key);
    for (size_t i = 0; i < bytes; i++) {
        char one[8];

        (void)inspect_escape(p + i, 1, one, sizeof(one));
        (void)fputs(one, d->out);
    }
}

static void line_end(struct dump *d)
{
    (void)fputc('\0', d->out); /* over the rest of a longer line before */
    if (fflush(d->out) == 0 && !ferror(d->out))
        d->line(d->ctx, d->text);
}

/* ---- journal and index ---- */

static void add_age(struct dump *d, const char *key, uint64_t ns)
{
    if (ns == POLICY_NEVER)
        line_add(d, " %s=never", key);
    else if (ns != POLICY_UNSET)
        line_add(d, " %s=%" PRIu64, key, ns);
}

static void add_value(struct dump *d, const struct value *v)
{
    static const char *const kinds[] = {
        [VALUE_EMPTY] = "empty", [VALUE_SEGMENT] = "segment", [VALUE_RAW] = "raw", [VALUE_PACKED] = "packed"};
    char name[FORMAT_NAME_BYTES];

    line_add(d, " value=%s size=%" PRIu64, kinds[v->kind], v->size_bytes);
    if (v->kind == VALUE_SEGMENT) {
        format_name(name, "seg-", v->place.segment_no);
        line_add(d, " stored=%" PRIu64 " codec=%s place=%s:%" PRIu32, v->stored_bytes, codec_name(v->codec),
                 name, v->place.offset);
    } else if (v->kind != VALUE_EMPTY) {
        format_big_name(name, v->big_id);
        line_add(d, " stored=%" PRIu64 " place=%s", v->stored_bytes, name);
    }
    if (v->unsealed)
        line_add(d, " unsealed");
    if (v->sums_place.segment_no != 0) {
        format_name(name, "seg-", v->sums_place.segment_no);
        line_add(d, " sums=%s:%" PRIu32 " sums_bytes=%" PRIu32, name, v->sums_place.offset, v->sums_bytes);
    }
}

static void add_tlvs(struct dump *d, const struct node_image *n)
{
    struct tlv_view tlv;
    uint32_t offset = 0;

    while (tlv_next(n->tlv, n->tlv_bytes, &offset, &tlv) == 0) {
        if (tlv.kind == NODE_TLV_SYMLINK) {
            line_add_escaped(d, "symlink", tlv.value, tlv.value_bytes);
        } else {
            line_add_escaped(d, "xattr", tlv.name, tlv.name_bytes);
            line_add(d, ":%" PRIu32, tlv.value_bytes);
        }
    }
}

static void add_node(struct dump *d, const struct node_image *n)
{
    line_add(d, " id=0x%" PRIx64 " mode=%06" PRIo32 " uid=%" PRIu32 " gid=%" PRIu32, n->id, n->mode, n->uid,
             n->gid);
    if (S_ISCHR(n->mode) || S_ISBLK(n->mode))
        line_add(d, " rdev=0x%" PRIx64, n->rdev);
    if (S_ISREG(n->mode))
        add_value(d, &n->value);
    line_add(d,
             " hits=%" PRIu32 " mtime=%" PRId64 " ctime=%" PRId64 " atime=%" PRId64 " btime=%" PRId64
             " written=%" PRIu64 " used=%" PRIu64,
             n->hits, n->mtime_ns, n->ctime_ns, n->atime_ns, n->btime_ns, n->written_ns, n->used_ns);
    add_age(d, "ttl", n->ttl_ns);
    add_age(d, "idle", n->idle_ns);
    add_age(d, "expires", n->expires_ns);
    if (n->pin != POLICY_BYTE_UNSET)
        line_add(d, " pin=%u", n->pin);
    if (n->compress != POLICY_BYTE_UNSET)
        line_add(d, " compress=%u", n->compress);
    add_tlvs(d, n);
}

static void add_boot_id(struct dump *d, const uint8_t boot_id[16])
{
    line_add(d, " boot=");
    for (int i = 0; i < 16; i++)
        line_add(d, "%02x", boot_id[i]);
}

static void dump_uses(struct dump *d, uint64_t offset, const struct entry_view *e)
{
    for (uint32_t i = 0; i < e->use.count; i++) {
        struct use_image use;

        use_item_unpack(e->use.items, i, &use);
        line_begin(d, offset, "use");
        line_add(d, " id=0x%" PRIx64 " used=%" PRIu64 " hits=%" PRIu32, use.node, use.used_ns, use.hits);
        line_end(d);
    }
}

static void add_recall(struct dump *d, const struct entry_view *e)
{
    line_add(d, " first_seq=%" PRIu64 " ids=", e->recall.first_seq);
    for (uint32_t i = 0; i < e->recall.count; i++)
        line_add(d, "%s0x%" PRIx64, i > 0 ? "," : "", recall_node(e->recall.nodes, i));
}

static void dump_entry(struct dump *d, uint64_t offset, const struct entry_view *e)
{
    static const char *const types[] = {
        [ENTRY_NODE] = "node", [ENTRY_NAME] = "name", [ENTRY_UNNAME] = "unname",
        [ENTRY_DROP] = "drop", [ENTRY_USE] = "use",   [ENTRY_VALUE] = "value",
        [ENTRY_BOOT] = "boot", [ENTRY_END] = "end",   [ENTRY_TOUCH] = "touch",
        [ENTRY_RECALL] = "recall"};

    if (e->type == ENTRY_USE) {
        dump_uses(d, offset, e);
        return;
    }
    line_begin(d, offset, types[e->type]);
    if (e->type == ENTRY_NODE)
        add_node(d, &e->node);
    if (e->type == ENTRY_NAME || e->type == ENTRY_UNNAME)
        line_add(d, " parent=0x%" PRIx64, e->name.parent);
    if (e->type == ENTRY_NAME)
        line_add(d, " id=0x%" PRIx64 " cookie=%" PRIu64, e->name.node, e->name.cookie);
    if (e->type == ENTRY_NAME || e->type == ENTRY_UNNAME)
        line_add_escaped(d, "name", e->name.name, e->name.name_bytes);
    if (e->type == ENTRY_DROP)
        line_add(d, " id=0x%" PRIx64 " reason=%s", e->drop.node,
                 e->drop.reason < DROP_REASON_COUNT ? drop_reasons[e->drop.reason] : "unknown");
    if (e->type == ENTRY_VALUE) {
        line_add(d, " id=0x%" PRIx64, e->value.node);
        add_value(d, &e->value.value);
    }
    if (e->type == ENTRY_BOOT) {
        line_add(d, " cache_time=%" PRIu64, e->boot.cache_ns);
        add_boot_id(d, e->boot.boot_id);
    }
    if (e->type == ENTRY_RECALL)
        add_recall(d, e);
    if (e->type == ENTRY_END) {
        line_add(d,
                 " nodes=%" PRIu64 " names=%" PRIu64 " next_generation=%" PRIu64 " cache_time=%" PRIu64
                 " last_seq=%" PRIu64 " next_big_id=0x%" PRIx64 " clean=%d",
                 e->end.nodes, e->end.names, e->end.next_generation, e->end.cache_ns, e->end.last_seq,
                 e->end.next_big_id, e->end.clean);
        add_boot_id(d, e->end.boot_id);
    }
    line_end(d);
}

static int dump_record(void *ctx, uint64_t offset, const struct record_view *view)
{
    struct dump *d = ctx;
    struct entry_view entry;
    uint32_t at = 0, entry_offset = 0;

    line_begin(d, offset, "record");
    line_add(d, " seq=%" PRIu64 " entries=%" PRIu32 " bytes=%" PRIu32, view->seq, view->entry_count,
             view->total_bytes);
    line_end(d);
    while (entry_next(view, &at, &entry) == 0) {
        dump_entry(d, offset + DISK_RECORD_HEADER_BYTES + entry_offset, &entry);
        entry_offset = at;
    }
    return 0;
}

static int dump_log(struct dump *d, const struct found *f)
{
    struct journal_header header;
    struct errtext err = {""};
    uint64_t bad_offset = UINT64_MAX;
    int r;

    r = journal_walk_file(d->in.io, d->in.dir_fd, d->name, d->in.sb.store_id, dump_record, d, &header,
                          &bad_offset, &err);
    if (r == -ENOMEM || r == -EIO)
        return r;
    line_begin(d, r < 0 ? 0 : MIN(bad_offset, f->size_bytes),
               r < 0                      ? "invalid"
               : bad_offset == UINT64_MAX ? "eof"
                                          : "torn");
    if (r < 0)
        line_add(d, " no valid header");
    else
        line_add(d, " first_seq=%" PRIu64 " replay_from=%" PRIu64, header.first_seq, header.replay_from_no);
    line_add(d, " size=%" PRIu64, f->size_bytes);
    line_end(d);
    return 0;
}

/* ---- segments ---- */

struct segment_walk {
    uint8_t *window; /* WINDOW_BYTES */
    uint64_t window_offset;
    size_t window_bytes;
    int fd;
    uint64_t seed;
};

/* At least a header's bytes at offset, if the file has them; fewer: *ret_bytes says so. */
static int segment_look(struct dump *d, struct segment_walk *w, uint64_t offset, const uint8_t **ret_data,
                        size_t *ret_bytes)
{
    uint64_t ahead = offset - w->window_offset;

    if (offset < w->window_offset || ahead + DISK_VALUE_HEADER_BYTES > w->window_bytes) {
        int r = io_read_upto(d->in.io, w->fd, w->window, WINDOW_BYTES, offset, &w->window_bytes);

        if (r < 0)
            return r;
        w->window_offset = offset;
        ahead = 0;
    }
    *ret_data = w->window + ahead;
    *ret_bytes = w->window_bytes - (size_t)ahead;
    return 0;
}

static void dump_value_header(struct dump *d, uint64_t offset, const struct record_info *info)
{
    line_begin(d, offset, info->kind == RECORD_SUMS ? "sums" : "value");
    line_add(d, " id=0x%" PRIx64 " codec=%s size=%" PRIu32 " stored=%" PRIu32 " checksum=%016" PRIx64,
             info->node_id, codec_name(info->codec), info->logical_bytes, info->stored_bytes, info->checksum);
    line_end(d);
}

static void dump_gap(struct dump *d, uint64_t start, uint64_t end)
{
    if (end <= start)
        return;
    line_begin(d, start, "gap");
    line_add(d, " bytes=%" PRIu64, end - start);
    line_end(d);
}

/* Where no record is (punched, torn), looks at every 8 bytes for the next one. A header's checksum covers its own
 * offset, so a copy of one inside a value is not taken for one. */
static int dump_segment_records(struct dump *d, struct segment_walk *w)
{
    uint64_t offset = DISK_SEGMENT_HEADER_BYTES, gap = offset;

    for (;;) {
        struct record_info info;
        const uint8_t *data;
        size_t bytes;
        int r = segment_look(d, w, offset, &data, &bytes);

        if (r < 0)
            return r;
        if (bytes < DISK_VALUE_HEADER_BYTES || offset > UINT32_MAX) {
            dump_gap(d, gap, offset + bytes);
            return 0;
        }
        if (read_le32(data) != FORMAT_VALUE_MAGIC ||
            format_value_header_unpack(data, w->seed, (uint32_t)offset, &info) < 0) {
            offset += 8;
            continue;
        }
        dump_gap(d, gap, offset);
        dump_value_header(d, offset, &info);
        offset += DISK_VALUE_HEADER_BYTES + round_up(info.stored_bytes, 8);
        gap = offset;
    }
}

static int dump_segment(struct dump *d, const struct found *f)
{
    struct segment_walk w = {.seed = format_seed(d->in.sb.store_id, f->no)};
    uint8_t header[DISK_SEGMENT_HEADER_BYTES];
    int r;

    w.fd = io_open(d->in.io, d->in.dir_fd, d->name, O_RDONLY | O_NONBLOCK, 0);
    if (w.fd < 0)
        return w.fd;
    r = io_read_full(d->in.io, w.fd, header, sizeof(header), 0);
    if (r == 0)
        r = format_segment_header_unpack(header, d->in.sb.store_id, (uint32_t)f->no);
    line_begin(d, 0, "segment");
    line_add(d, " size=%" PRIu64 " disk=%" PRIu64 "%s", f->size_bytes, f->disk_bytes,
             r == 0 ? "" : " header=invalid-or-punched");
    line_end(d);
    w.window = malloc(WINDOW_BYTES);
    r = w.window ? dump_segment_records(d, &w) : -ENOMEM;
    free(w.window);
    io_close(d->in.io, w.fd);
    return r;
}

/* ---- big files ---- */

struct packed_footer {
    uint32_t block_bytes, block_count;
    uint64_t size_bytes, blocks_bytes, node_id;
};

/* false: a raw file, or one being written. The layout is in format.h. */
static bool read_footer(struct dump *d, int fd, const struct found *f, struct packed_footer *ret_footer)
{
    uint8_t raw[DISK_PACKED_FOOTER_BYTES];

    if (f->size_bytes < sizeof(raw) ||
        io_read_full(d->in.io, fd, raw, sizeof(raw), f->size_bytes - sizeof(raw)) < 0)
        return false;
    if (memcmp(raw, FORMAT_PACKED_MAGIC, 8) != 0)
        return false;
    *ret_footer = (struct packed_footer){
        .block_bytes = read_le32(raw + 8),
        .block_count = read_le32(raw + 12),
        .size_bytes = read_le64(raw + 16),
        .blocks_bytes = read_le64(raw + 24),
        .node_id = read_le64(raw + 32),
    };
    return ret_footer->blocks_bytes <= f->size_bytes &&
           (uint64_t)ret_footer->block_count * DISK_PACKED_INDEX_BYTES + ret_footer->blocks_bytes +
                   sizeof(raw) ==
               f->size_bytes;
}

static int dump_packed_blocks(struct dump *d, int fd, const struct packed_footer *footer)
{
    uint64_t offset = 0;

    for (uint32_t i = 0; i < footer->block_count; i++) {
        uint8_t raw[DISK_PACKED_INDEX_BYTES];
        uint64_t at = footer->blocks_bytes + (uint64_t)i * sizeof(raw);
        uint32_t stored;
        int r = io_read_full(d->in.io, fd, raw, sizeof(raw), at);

        if (r < 0)
            return r;
        stored = read_le32(raw);
        line_begin(d, offset, "block");
        line_add(d, " index=%" PRIu32 " stored=%" PRIu32 " codec=%s checksum=%016" PRIx64, i,
                 stored & 0x7fffffffu, stored >> 31 ? "raw" : "lz4", read_le64(raw + 8));
        line_end(d);
        offset += stored & 0x7fffffffu;
    }
    return 0;
}

static int dump_big(struct dump *d, const struct found *f)
{
    struct packed_footer footer;
    bool packed;
    int r = 0, fd = io_open(d->in.io, d->in.dir_fd, d->name, O_RDONLY | O_NONBLOCK, 0);

    if (fd < 0)
        return fd;
    packed = read_footer(d, fd, f, &footer);
    line_begin(d, 0, packed ? "packed" : "raw");
    line_add(d, " size=%" PRIu64 " disk=%" PRIu64, f->size_bytes, f->disk_bytes);
    if (packed)
        line_add(d, " id=0x%" PRIx64 " logical=%" PRIu64 " blocks=%" PRIu32 " block_bytes=%" PRIu32,
                 footer.node_id, footer.size_bytes, footer.block_count, footer.block_bytes);
    line_end(d);
    if (packed)
        r = dump_packed_blocks(d, fd, &footer);
    io_close(d->in.io, fd);
    return r;
}

/* ---- all of it ---- */

static bool is_wanted(const struct found *f, const char *name, const char *what)
{
    static const char *const kinds[] = {[FOUND_JOURNAL] = "journal",
                                        [FOUND_INDEX] = "index",
                                        [FOUND_SEGMENT] = "segments",
                                        [FOUND_BIG] = "big"};

    if (f->kind == FOUND_FOREIGN)
        return what == NULL;
    return !what || strcmp(what, kinds[f->kind]) == 0 || strcmp(what, name) == 0;
}

static int dump_file(struct dump *d, const struct found *f)
{
    switch (f->kind) {
    case FOUND_JOURNAL:
    case FOUND_INDEX:
        return dump_log(d, f);
    case FOUND_SEGMENT:
        return dump_segment(d, f);
    case FOUND_BIG:
        return dump_big(d, f);
    case FOUND_FOREIGN:
        line_begin(d, 0, "foreign");
        line_add(d, " size=%" PRIu64 " disk=%" PRIu64, f->size_bytes, f->disk_bytes);
        line_end(d);
        return 0;
    }
    return 0;
}

static bool is_kind(const char *what)
{
    return !what || strcmp(what, "journal") == 0 || strcmp(what, "index") == 0 ||
           strcmp(what, "segments") == 0 || strcmp(what, "big") == 0;
}

static int dump_run(struct dump *d, const char *what, struct errtext *err)
{
    bool any = is_kind(what);
    int r;

    d->out = open_memstream(&d->text, &d->text_bytes);
    if (!d->out)
        return errtext(err, -ENOMEM, "store %s: out of memory", d->in.path);
    r = found_scan(&d->in, &d->found, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < d->found.count; i++) {
        found_name(&d->found.rows[i], d->name);
        if (!is_wanted(&d->found.rows[i], d->name, what))
            continue;
        any = true;
        r = dump_file(d, &d->found.rows[i]);
        if (r < 0)
            return errtext(err, r, "store %s: %s: %s", d->in.path, d->name, strerror(-r));
    }
    return any ? 0
               : errtext(err, -ENOENT,
                         "store %s: has no %s; name a file of it, or journal, index, segments, big",
                         d->in.path, what);
}

int inspect_dump_on(const struct inspect_source *source, const char *what, inspect_line line, void *ctx, struct errtext *err)
{
    struct dump d = {.line = line, .ctx = ctx};
    int r = inspect_open_on(source, &d.in, err);

    if (r < 0)
        return r;
    r = dump_run(&d, what, err);
    found_fini(&d.found);
    if (d.out)
        (void)fclose(d.out); /* memory only */
    free(d.text);
    inspect_close(&d.in);
    return r;
}

int inspect_dump(const char *path, const char *what, bool even_if_busy, inspect_line line, void *ctx,
                 char *err)
{
    struct inspect_source source;
    struct errtext text = {""};
    int r;

    r = inspect_find(path, even_if_busy, &source, &text);
    if (r == 0)
        r = inspect_dump_on(&source, what, line, ctx, &text);
    if (r < 0)
        memcpy(err, text.text, MIN(sizeof(text.text), (size_t)INSPECT_ERROR_BYTES));
    return r;
}
