/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect_repair: makes a damaged store mountable and sound again, for `larder check --repair`.
 *
 * What can be trusted, and is kept:
 *   - of journal and checkpoint what a mount believes (journal_replay.c): each record that verifies by itself; behind
 *     damage only where nothing older than what was acknowledged can be seen for it;
 *   - a value all of whose bytes verify against what the index says of it. One changed in place since its checksums
 *     were taken carries none: it is kept, unless another key claims the same file;
 *   - a directory whose own record is lost, for what is in it: made anew, 0700 and the store owner's;
 *   - the store's id, when FORMAT is lost, as most of its files give it.
 * What goes, each with a line: a value that does not verify, a name whose file's record is lost, a file or directory no
 * name leads to from the root, what was changed by records that are lost. What is not larder's and lies under one of its
 * names is renamed aside; nothing else is touched. A store of a newer format is refused.
 *
 * Steps: lock; FORMAT, CACHEDIR.TAG and permissions set right (temporary file, fsync, rename, fsync of the directory); the
 * index read, first to tell what is lost, then by the engine; every value read; the engine's own
 * checkpoint, which replaces what was there only once it is durable; then an ordinary opening and closing, which gives
 * back what nothing leads to. Up to the checkpoint only a new journal file has been added, which a repair that is
 * begun again reads, and a mount leaves alone.
 *
 * What may never happen: a value kept that does not verify; a file unlinked before the checkpoint that does without it.
 */
#include "cache.h"
#include "inspect_internal.h"
#include "store_identity.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#define ROOT_ID 1u
#define DEPTH_MAX 4096u
#define ASIDE_TRIES_MAX 100u

struct repair {
    const struct inspect_source *source;
    inspect_report report;
    void *ctx;
    struct inspect_repaired sum;
    struct inspect in;
    struct index_table table;
    uint64_t *directories; /* owned; ids of those to be made anew */
    size_t directory_count;
    struct larder *l;
    uint64_t log_losses; /* what of journal and checkpoint could not be read */
    struct errtext *err;
};

static void repair_say(struct repair *rp, const char *where, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void repair_say(struct repair *rp, const char *where, const char *format, ...)
{
    char text[INSPECT_ERROR_BYTES];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args); /* cut, never overrun */
    va_end(args);
    rp->sum.lost++;
    rp->report(rp->ctx, 'E', where, text);
}

static int repair_fail(struct repair *rp, int r, const char *what)
{
    return errtext(rp->err, r, "store %s: %s: %s", rp->source->path, what, strerror(-r));
}

/* ---- the directory ---- */

/* What lies under `name` is not ours: it keeps its bytes under another name. */
static int repair_set_aside(struct repair *rp, const char *name)
{
    char aside[FOUND_NAME_BYTES + 16];
    struct stat st;
    int r;

    for (unsigned i = 0; i < ASIDE_TRIES_MAX; i++) {
        (void)snprintf(aside, sizeof(aside), "%s.aside-%u", name, i); /* a name of ours and a few digits */
        r = io_stat_at(rp->in.io, rp->in.dir_fd, aside, &st);
        if (r == 0)
            continue;
        if (r == -ENOENT)
            r = io_rename(rp->in.io, rp->in.dir_fd, name, aside);
        if (r < 0)
            return repair_fail(rp, r, name);
        repair_say(rp, name, "is not larder's; renamed to %s", aside);
        return 0;
    }
    return repair_fail(rp, -EEXIST, name);
}

static int repair_own_directory(struct repair *rp)
{
    struct stat st;
    int r = io_stat(rp->in.io, rp->in.dir_fd, &st);

    if (r < 0)
        return repair_fail(rp, r, "its directory");
    if (st.st_uid != geteuid())
        return errtext(rp->err, -EPERM, "store %s: belongs to user %u; repair it as that user", rp->source->path, st.st_uid);
    if (!(st.st_mode & 022))
        return 0;
    if (fchmod(rp->in.dir_fd, 0700) < 0)
        return repair_fail(rp, -errno, "its permissions");
    repair_say(rp, ".", "others could write to it (mode %04o); it is 0700 now", st.st_mode & 07777);
    return 0;
}

/* Is there something under that name, and is it what it should be? Else it is set aside. */
static int repair_kind(struct repair *rp, const char *name, mode_t kind)
{
    struct stat st;
    int r = io_stat_at(rp->in.io, rp->in.dir_fd, name, &st);

    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return repair_fail(rp, r, name);
    return (st.st_mode & S_IFMT) == kind ? 0 : repair_set_aside(rp, name);
}

static int repair_lock(struct repair *rp)
{
    char pid[32] = "";
    size_t got = 0;
    int r = repair_kind(rp, "LOCK", S_IFREG);

    if (r < 0)
        return r;
    rp->in.lock_fd = io_open(rp->in.io, rp->in.dir_fd, "LOCK", O_RDWR | O_CREAT | O_NONBLOCK, 0600);
    if (rp->in.lock_fd < 0)
        return repair_fail(rp, rp->in.lock_fd, "LOCK");
    r = io_lock(rp->in.io, rp->in.lock_fd);
    if (r != -EWOULDBLOCK)
        return r < 0 ? repair_fail(rp, r, "LOCK") : 0;
    (void)io_read_upto(rp->in.io, rp->in.lock_fd, pid, sizeof(pid) - 1, 0, &got); /* nothing read: unknown */
    pid[strspn(pid, "0123456789")] = '\0';
    return errtext(rp->err, -EBUSY, "store %s: in use by process %s; unmount that larder first", rp->source->path,
                   pid[0] ? pid : "(unknown)");
}

/* ---- plumbing ---- */

static int repair_write(struct repair *rp, const char *name, const void *bytes, size_t count)
{
    char tmp[FORMAT_NAME_BYTES];
    int fd, r;

    (void)snprintf(tmp, sizeof(tmp), "%s.tmp", name); /* FORMAT or CACHEDIR.TAG: fits */
    r = io_unlink(rp->in.io, rp->in.dir_fd, tmp);
    if (r < 0 && r != -ENOENT)
        return repair_fail(rp, r, tmp);
    fd = io_open(rp->in.io, rp->in.dir_fd, tmp, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return repair_fail(rp, fd, tmp);
    r = io_write_full(rp->in.io, fd, bytes, count, 0);
    if (r == 0)
        r = io_sync_file(rp->in.io, fd);
    io_close(rp->in.io, fd);
    if (r == 0)
        r = io_rename(rp->in.io, rp->in.dir_fd, tmp, name);
    if (r == 0)
        r = io_sync_dir(rp->in.io, rp->in.dir_fd);
    return r < 0 ? repair_fail(rp, r, name) : 0;
}

static int repair_format(struct repair *rp)
{
    uint8_t raw[DISK_SUPERBLOCK_BYTES];
    struct superblock sb = rp->in.sb;

    if (!rp->in.format_lost)
        return 0;
    sb.version = FORMAT_VERSION;
    sb.created_ns = clock_wall_ns(&(struct clock){.ops = &clock_posix});
    format_superblock_pack(&sb, raw);
    repair_say(rp, "FORMAT", "%s; written again, as %u other files say what it was", rp->in.format_lost,
               rp->in.format_witnesses);
    return repair_write(rp, "FORMAT", raw, sizeof(raw));
}

static int repair_tag(struct repair *rp)
{
    struct stat st;
    int r = repair_kind(rp, "CACHEDIR.TAG", S_IFREG);

    if (r < 0)
        return r;
    r = io_stat_at(rp->in.io, rp->in.dir_fd, "CACHEDIR.TAG", &st);
    if (r == 0 && st.st_size == sizeof(FORMAT_TAG_TEXT) - 1)
        return 0;
    repair_say(rp, "CACHEDIR.TAG", "%s; written again", r == 0 ? "is damaged" : "is missing");
    return repair_write(rp, "CACHEDIR.TAG", FORMAT_TAG_TEXT, sizeof(FORMAT_TAG_TEXT) - 1);
}

static bool name_should_be_a_file(const char *name)
{
    uint32_t no;

    return format_name_parse(name, "journal-", &no) || format_name_parse(name, "index-", &no) ||
           format_name_parse(name, "seg-", &no);
}

static int repair_mode(struct repair *rp, const struct found *f)
{
    char name[FOUND_NAME_BYTES];
    struct stat st;
    int r;

    found_name(f, name);
    r = io_stat_at(rp->in.io, rp->in.dir_fd, name, &st);
    if (r == -ENOENT || (r == 0 && (st.st_mode & 0600) == 0600))
        return 0;
    if (r == 0 && fchmodat(rp->in.dir_fd, name, 0600, 0) < 0)
        r = -errno;
    if (r < 0)
        return repair_fail(rp, r, name);
    repair_say(rp, name, "could not be read and written (mode %04o); it is 0600 now", st.st_mode & 07777);
    return 0;
}

/* Symbolic links, directories and devices under names of ours; directories of values that are none. */
static int repair_foreign(struct repair *rp)
{
    struct found_list found;
    int r = repair_kind(rp, "big", S_IFDIR);

    if (r == 0)
        r = found_scan(&rp->in, &found, rp->err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < found.count; i++) {
        const char *name = found.rows[i].name;
        uint64_t xx = 0;

        if (found.rows[i].kind != FOUND_FOREIGN)
            r = repair_mode(rp, &found.rows[i]);
        else if (name_should_be_a_file(name) || (sscanf(name, "big/%2lx", &xx) == 1 && strlen(name) == 6))
            r = repair_set_aside(rp, name);
    }
    found_fini(&found);
    return r;
}

/* ---- the index, read past its damage ---- */

/* A node that lost records changed: nobody knows to what. */
static void repair_say_recalled(struct repair *rp, uint64_t id)
{
    const struct node_row *row = table_node(&rp->table, id);
    char path[TABLE_PATH_BYTES];

    if (!row || (!row->first_name && id != ROOT_ID))
        return;
    table_path(&rp->table, row, path);
    if (id == ROOT_ID)
        repair_say(rp, path, "lost, and all that was in it: damage in the journal hides what was changed last");
    else
        repair_say(rp, path, "lost: the record of its last change is damaged");
}

static int repair_apply(void *ctx, const struct entry_view *entry) /* journal_apply */
{
    struct repair *rp = ctx;

    for (uint32_t i = 0; entry->type == ENTRY_RECALL && i < entry->recall.count; i++)
        repair_say_recalled(rp, recall_node(entry->recall.nodes, i));
    return table_apply(&rp->table, entry);
}

static int skip_record(void *ctx, uint64_t offset, const struct record_view *view) /* journal_visit */
{
    (void)ctx;
    (void)offset;
    (void)view;
    return 0;
}

/* Which files of the index are damaged, and where. */
static int repair_say_damaged(struct repair *rp, const struct found *f)
{
    uint64_t bad_offset = UINT64_MAX;
    struct journal_header header;
    struct errtext why = {""};
    char name[FOUND_NAME_BYTES];
    int r;

    found_name(f, name);
    r = journal_walk_file(rp->in.io, rp->in.dir_fd, name, rp->in.sb.store_id, skip_record, NULL, &header, &bad_offset, &why);
    if (r == -ENOMEM || r == -EIO)
        return errtext_wrap(rp->err, r, "store %s: %s", rp->source->path, why.text);
    if (r < 0)
        repair_say(rp, name, "has no valid header");
    else if (bad_offset != UINT64_MAX)
        repair_say(rp, name, "is damaged at offset %llu of %llu", (unsigned long long)bad_offset,
                   (unsigned long long)f->size_bytes);
    return 0;
}

static int repair_say_log(struct repair *rp, const struct journal_replay *replay)
{
    struct found_list found;
    int r;

    if (replay->corrupt_records == 0)
        return 0; /* a torn tail is no damage */
    rp->log_losses = replay->corrupt_records;
    repair_say(rp, "journal", "%llu damaged records or files in index and journal: what they held is lost",
               (unsigned long long)replay->corrupt_records);
    r = found_scan(&rp->in, &found, rp->err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < found.count; i++)
        if (found.rows[i].kind == FOUND_JOURNAL || found.rows[i].kind == FOUND_INDEX)
            r = repair_say_damaged(rp, &found.rows[i]);
    found_fini(&found);
    return r;
}

static bool row_is_rooted(const struct index_table *t, const struct node_row *row)
{
    for (unsigned depth = 0; row && depth < DEPTH_MAX; depth++) {
        if (row->id == ROOT_ID)
            return true;
        if (!row->first_name)
            return false;
        row = table_node(t, t->names[row->first_name].parent);
    }
    return false;
}

enum { MARK_NONE, MARK_HOLDS_NAMES };

/* What names lead to, and is not there: a directory if names are in it, else a file that is lost. */
static int repair_unknown_row(struct repair *rp, struct node_row *row)
{
    char path[TABLE_PATH_BYTES];

    if (row->id == ROOT_ID) {
        repair_say(rp, "/", "the attributes of the root are lost; made anew");
        return 0;
    }
    if (!row->first_name)
        return 0; /* told with the names in it */
    table_path(&rp->table, row, path);
    if (row->mark != MARK_HOLDS_NAMES) {
        repair_say(rp, path, "lost: the record of what it leads to is damaged");
        return 0;
    }
    rp->directories[rp->directory_count++] = row->id;
    repair_say(rp, path, "the attributes of this directory are lost; made anew, mode 0700");
    return 0;
}

static void repair_name(struct repair *rp, const struct name_row *name)
{
    const struct node_row *node = table_node(&rp->table, name->node);
    char path[TABLE_PATH_BYTES];

    if (!node || !node->known || row_is_rooted(&rp->table, node))
        return;
    table_path(&rp->table, node, path);
    repair_say(rp, path, "lost: the name of a directory above it is damaged");
}

static int repair_table(struct repair *rp)
{
    struct index_table *t = &rp->table;
    int r = 0;

    rp->directories = calloc(t->node_live + 1u, sizeof(*rp->directories));
    if (!rp->directories)
        return repair_fail(rp, -ENOMEM, "its index");
    for (uint32_t i = 1; i < t->name_used; i++) {
        struct node_row *parent = t->names[i].live ? table_node(t, t->names[i].parent) : NULL;

        if (parent)
            parent->mark = MARK_HOLDS_NAMES;
    }
    for (uint32_t i = 1; r == 0 && i < t->node_used; i++)
        if (t->nodes[i].live && !t->nodes[i].known)
            r = repair_unknown_row(rp, &t->nodes[i]);
        else if (t->nodes[i].live && !t->nodes[i].first_name && t->nodes[i].id != ROOT_ID && rp->log_losses > 0)
            repair_say(rp, "journal", "lost: node 0x%llx has no name any more", (unsigned long long)t->nodes[i].id);
    for (uint32_t i = 1; i < t->name_used; i++)
        if (t->names[i].live)
            repair_name(rp, &t->names[i]);
    return r;
}

static int repair_read_index(struct repair *rp)
{
    struct journal_options opts = {
        .store_id = rp->in.sb.store_id, .boot_id = rp->source->boot_id, .read_only = true};
    struct journal_replay replay = {0};
    struct journal *j = NULL;
    struct quota quota;
    int r;

    quota_init(&quota, UINT64_MAX);
    r = table_init(&rp->table);
    if (r < 0)
        return repair_fail(rp, r, "its index");
    r = journal_open(rp->in.io, rp->in.dir_fd, &quota, &opts, repair_apply, rp, &replay, &j, rp->err);
    journal_close(j);
    if (r < 0)
        return errtext_wrap(rp->err, r, "store %s", rp->source->path);
    r = repair_say_log(rp, &replay);
    return r == 0 ? repair_table(rp) : r;
}

/* ---- the engine ---- */

static void repair_key_lost(void *ctx, const char *path, size_t path_bytes, const char *what)
{
    struct repair *rp = ctx;
    char where[TABLE_PATH_BYTES];

    (void)inspect_escape(path, path_bytes, where, sizeof(where));
    repair_say(rp, where, "lost: %s", what);
}

static int repair_engine_open(struct repair *rp, const struct cache_repair *repair)
{
    struct cache_host host = {.io = rp->source->io, .clock_ops = &clock_posix, .repair = repair};
    struct larder_options opts;

    larder_options_init(&opts);
    opts.quota_bytes = UINT64_MAX; /* nothing leaves for want of room */
    memcpy(host.boot_id, rp->source->boot_id, sizeof(host.boot_id));
    host.dir_fd = io_open(rp->in.io, rp->in.dir_fd, ".", O_RDONLY | O_DIRECTORY, 0);
    if (host.dir_fd < 0)
        return repair_fail(rp, host.dir_fd, "its directory");
    return cache_open_on(&host, rp->source->path, &opts, NULL, &rp->l, rp->err);
}

/* Takes the file from the index; its bytes go with the next opening. */
static int repair_drop(struct repair *rp, struct node *n, const char *what)
{
    struct larder *l = rp->l;
    struct value gone = {.kind = VALUE_EMPTY};
    char path[4096];
    uint64_t seq;

    lock_take(&l->lock);
    repair_key_lost(rp, path, tree_path(l->tree, n, path, sizeof(path)), what);
    log_begin(l);
    cache_drop_node(l, n, DROP_CORRUPT, &gone);
    seq = log_end(l);
    lock_give(&l->lock);
    return log_write(l, seq, false);
}

struct claim {
    uint64_t big_id;
    uint32_t slot;
    bool unsealed;
};

static int claim_compare(const void *a, const void *b)
{
    const struct claim *x = a, *y = b;

    return (x->big_id > y->big_id) - (x->big_id < y->big_id);
}

/* Checksums name their node; a file without any that two keys claim is nobody's. */
static int repair_claims(struct repair *rp, struct claim *claims, size_t count)
{
    int r = 0;

    qsort(claims, count, sizeof(*claims), claim_compare);
    for (size_t i = 0; r == 0 && i < count; i++) {
        bool shared = (i > 0 && claims[i - 1].big_id == claims[i].big_id) ||
                      (i + 1 < count && claims[i + 1].big_id == claims[i].big_id);

        if (shared && claims[i].unsealed)
            r = repair_drop(rp, tree_slot(rp->l->tree, claims[i].slot), "another key claims the same bytes");
    }
    return r;
}

static int repair_value(struct repair *rp, struct node *n, struct claim *ret_claim, bool *ret_claims)
{
    struct errtext why = {""};
    struct value v;
    int r;

    node_value(rp->l->tree, n, &v);
    r = content_verify_value(rp->l->store, &v, node_id(rp->l->tree, n), &why);
    if (r == -ENOMEM || r == -EMFILE || r == -ENFILE)
        return repair_fail(rp, r, "reading its values");
    if (r < 0)
        return repair_drop(rp, n, why.text[0] ? why.text : strerror(-r));
    rp->sum.keys++;
    rp->sum.key_bytes += v.size_bytes;
    *ret_claims = v.kind == VALUE_RAW || v.kind == VALUE_PACKED;
    *ret_claim = (struct claim){.big_id = v.big_id, .slot = node_slot(rp->l->tree, n), .unsealed = v.unsealed};
    return 0;
}

static int repair_values(struct repair *rp)
{
    struct tree *t = rp->l->tree;
    _cleanup_free_ struct claim *claims = calloc(rp->l->entries + 1, sizeof(*claims));
    size_t count = 0;
    int r = claims ? 0 : -ENOMEM;

    for (uint32_t s = tree_next_slot(t, 0); r == 0 && s; s = tree_next_slot(t, s)) {
        struct node *n = tree_slot(t, s);
        bool claims_file = false;

        rp->sum.directories += n && node_is_dir(n);
        if (!n || !node_is_file(n) || !n->first_dentry)
            continue;
        r = repair_value(rp, n, &claims[count], &claims_file);
        count += claims_file;
    }
    return r == 0 ? repair_claims(rp, claims, count) : r;
}

static int repair_publish(struct repair *rp)
{
    int r;

    if (rp->l->opts.read_only)
        return errtext(rp->err, -ENOSPC, "store %s: its disk is full; a repair writes the index anew: make room there first",
                       rp->source->path);
    r = repair_values(rp);
    if (r == 0)
        r = work_checkpoint(rp->l, true);
    if (r == -ENOSPC)
        return errtext(rp->err, r, "store %s: no room on its disk for the new index; nothing was removed: make room there and repair it again",
                       rp->source->path);
    return r < 0 && !rp->err->text[0] ? repair_fail(rp, r, "writing the new index") : r;
}

static int repair_engine(struct repair *rp)
{
    struct cache_repair repair = {
        .lost = repair_key_lost, .ctx = rp, .directories = rp->directories, .directory_count = rp->directory_count};
    int closed, r = repair_engine_open(rp, &repair);

    if (r < 0)
        return r;
    r = repair_publish(rp);
    if (r < 0)
        rp->l->opts.read_only = true; /* what is on the disk stays as it is */
    closed = larder_close(steal_pointer(&rp->l));
    if (r < 0 || closed < 0)
        return r < 0 ? r : repair_fail(rp, closed, "closing it");
    r = repair_engine_open(rp, NULL); /* as a mount would: proves that it can, and gives back what nothing leads to */
    if (r < 0)
        return r;
    closed = larder_close(steal_pointer(&rp->l));
    return closed < 0 ? repair_fail(rp, closed, "closing it") : 0;
}

/* ---- all ---- */

static int repair_run(struct repair *rp)
{
    int r = repair_own_directory(rp);

    if (r == 0)
        r = repair_lock(rp);
    if (r == 0)
        r = repair_kind(rp, "FORMAT", S_IFREG);
    if (r == 0)
        r = inspect_identify(&rp->in, rp->err);
    if (r == 0)
        r = repair_format(rp);
    if (r == 0)
        r = repair_tag(rp);
    if (r == 0)
        r = repair_foreign(rp);
    if (r == 0)
        r = repair_read_index(rp);
    io_close(rp->in.io, rp->in.lock_fd); /* the engine takes it again */
    rp->in.lock_fd = -1;
    return r == 0 ? repair_engine(rp) : r;
}

int inspect_repair(const char *path, inspect_report report, void *ctx, struct inspect_repaired *ret_repaired, char *err)
{
    struct errtext text = {""};
    struct inspect_source source;
    struct repair rp = {.report = report, .ctx = ctx, .source = &source, .err = &text};
    int r = inspect_find(path, false, &source, &text);

    if (r == 0) {
        rp.in = (struct inspect){.io = source.io, .path = path, .dir_fd = source.dir_fd, .lock_fd = -1};
        r = repair_run(&rp);
        table_fini(&rp.table);
        free(rp.directories);
        inspect_close(&rp.in);
    }
    if (r < 0)
        memcpy(err, text.text, MIN(sizeof(text.text), (size_t)INSPECT_ERROR_BYTES));
    else
        *ret_repaired = rp.sum;
    return r;
}
