/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut: the recording of a disk and the disks made from it.
 *
 * A record holds the pages of its range as they were after it (shared with the disk, copied on write), so that any
 * subset of the pending changes can be put on the durable disk in order.
 *
 * What may never happen: a durable change lost in a disk that is built; a sector that mixes two states.
 */
#include "powercut.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS_PER_PAGE (MEMDISK_PAGE_BYTES / MEMDISK_SECTOR_BYTES)
#define IGNORED_MAX 8u

struct record {
    enum memdisk_change change;
    uint32_t mark;      /* the last one before it */
    uint64_t ino, dir, to_dir;
    uint64_t offset, bytes, size_bytes, old_size_bytes;
    mode_t mode;
    char name[MEMDISK_NAME_BYTES], to_name[MEMDISK_NAME_BYTES];
    uint64_t first_page;
    uint32_t page_count;
    struct memdisk_page **pages; /* WRITE, PUNCH: after it */
};

struct powercut {
    struct memdisk *base, *disk;
    struct record *records;
    uint32_t count, allocated;
    uint32_t first; /* those before are of an earlier recording */
    uint32_t mark;
    char ignored[IGNORED_MAX][16];
    unsigned ignored_count;
    char (*names)[MEMDISK_NAME_BYTES]; /* by inode: the name it was made under, for descriptions and sabotage */
    uint64_t names_count;
};

struct powercut_cut {
    struct powercut *pc;
    struct memdisk *durable;
    uint32_t event;
    uint32_t *pending; /* records, in order */
    uint32_t pending_count, pending_allocated;
};

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* splitmix64, from https://prng.di.unimi.it/splitmix64.c (public domain): one well mixed number of each seed. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* ---- recording ---- */

static void remember_name(struct powercut *pc, uint64_t ino, const char *name)
{
    if (ino >= pc->names_count) {
        pc->names = must(realloc(pc->names, (ino + 64) * sizeof(*pc->names)));
        memset(pc->names + pc->names_count, 0, (ino + 64 - pc->names_count) * sizeof(*pc->names));
        pc->names_count = ino + 64;
    }
    (void)snprintf(pc->names[ino], MEMDISK_NAME_BYTES, "%s", name); /* names on the disk are no longer */
}

static const char *name_of(const struct powercut *pc, uint64_t ino)
{
    return ino == MEMDISK_ROOT                            ? "."
           : ino < pc->names_count && pc->names[ino][0]   ? pc->names[ino]
                                                          : "?";
}

static void take_pages(struct memdisk *d, struct record *rec)
{
    uint64_t end = (rec->offset + rec->bytes + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES;

    rec->first_page = rec->offset / MEMDISK_PAGE_BYTES;
    rec->page_count = (uint32_t)(end - rec->first_page);
    rec->pages = must(malloc(rec->page_count * sizeof(struct memdisk_page *)));
    for (uint32_t i = 0; i < rec->page_count; i++)
        rec->pages[i] = memdisk_page(d, rec->ino, rec->first_page + i);
}

static bool sync_is_ignored(const struct powercut *pc, const struct memdisk_event *event)
{
    const char *name = name_of(pc, event->ino);

    if (event->change != MEMDISK_SYNC && event->change != MEMDISK_SYNC_DATA)
        return false;
    for (unsigned i = 0; i < pc->ignored_count; i++)
        if (strncmp(name, pc->ignored[i], strlen(pc->ignored[i])) == 0)
            return true;
    return false;
}

static void observe(void *ctx, struct memdisk *d, const struct memdisk_event *event) /* memdisk_observer */
{
    struct powercut *pc = ctx;
    struct record *rec;

    if (event->change == MEMDISK_CREATE)
        remember_name(pc, event->ino, event->name);
    if (sync_is_ignored(pc, event))
        return;
    if (pc->count == pc->allocated) {
        pc->allocated = pc->count * 2 + 256;
        pc->records = must(realloc(pc->records, pc->allocated * sizeof(*rec)));
    }
    rec = &pc->records[pc->count++];
    *rec = (struct record){.change = event->change, .mark = pc->mark, .ino = event->ino, .dir = event->dir,
                           .to_dir = event->to_dir, .offset = event->offset, .bytes = event->bytes,
                           .size_bytes = event->size_bytes, .old_size_bytes = event->old_size_bytes, .mode = event->mode};
    if (event->name)
        (void)snprintf(rec->name, sizeof(rec->name), "%s", event->name); /* names on the disk are no longer */
    if (event->to_name)
        (void)snprintf(rec->to_name, sizeof(rec->to_name), "%s", event->to_name);
    if (event->change == MEMDISK_WRITE || event->change == MEMDISK_PUNCH)
        take_pages(d, rec);
}

struct powercut *powercut_new(struct memdisk *base)
{
    struct powercut *pc = must(calloc(1, sizeof(*pc)));

    pc->base = memdisk_clone(base);
    pc->disk = memdisk_clone(base);
    memdisk_observe(pc->disk, observe, pc);
    return pc;
}

void powercut_free(struct powercut *pc)
{
    if (!pc)
        return;
    for (uint32_t i = 0; i < pc->count; i++) {
        for (uint32_t p = 0; p < pc->records[i].page_count; p++)
            memdisk_page_free(pc->records[i].pages[p]);
        free(pc->records[i].pages);
    }
    free(pc->records);
    free(pc->names);
    memdisk_free(pc->base);
    memdisk_free(pc->disk);
    free(pc);
}

struct memdisk *powercut_disk(struct powercut *pc)
{
    return pc->disk;
}

void powercut_mark(struct powercut *pc, uint32_t mark)
{
    pc->mark = mark;
}

void powercut_ignore_syncs(struct powercut *pc, const char *prefix)
{
    assert(pc->ignored_count < IGNORED_MAX);
    (void)snprintf(pc->ignored[pc->ignored_count++], sizeof(pc->ignored[0]), "%s", prefix); /* ours, and short */
}

uint32_t powercut_events(const struct powercut *pc)
{
    return pc->count;
}

bool powercut_is_sync(const struct powercut *pc, uint32_t event)
{
    return event < pc->count && (pc->records[event].change == MEMDISK_SYNC || pc->records[event].change == MEMDISK_SYNC_DATA);
}

/* ---- one change on a disk ---- */

static unsigned touched_sectors(const struct record *rec, uint32_t page)
{
    uint64_t start = (rec->first_page + page) * MEMDISK_PAGE_BYTES, end = start + MEMDISK_PAGE_BYTES;
    uint64_t from = rec->offset > start ? rec->offset : start;
    uint64_t to = rec->offset + rec->bytes < end ? rec->offset + rec->bytes : end;
    unsigned first = (unsigned)((from - start) / MEMDISK_SECTOR_BYTES);
    unsigned last = (unsigned)((to - 1 - start) / MEMDISK_SECTOR_BYTES);

    return (2u << last) - (1u << first);
}

/* Which sectors of a torn write arrived: the first so many, the last so many, or any. */
static unsigned torn_sectors(const struct record *rec, uint32_t page, const struct powercut_choice *choice)
{
    uint64_t total = (uint64_t)rec->page_count * SECTORS_PER_PAGE;
    uint64_t split = 1 + mix(choice->seed) % (total > 1 ? total - 1 : 1), at = (uint64_t)page * SECTORS_PER_PAGE;
    unsigned kept = 0;

    switch (choice->seed % 4) {
    case 0:
    case 1:
        for (unsigned s = 0; s < SECTORS_PER_PAGE; s++)
            kept |= (at + s < split) == (choice->seed % 4 == 0) ? 1u << s : 0;
        return kept;
    default:
        return (unsigned)mix(choice->seed + page * 0x10001ull) & 0xff;
    }
}

/* Old bytes of whatever was written at some time. */
static struct memdisk_page *stale_page(const struct powercut *pc, uint32_t seed)
{
    for (unsigned tries = 0; pc->count > 0 && tries < 8; tries++) {
        const struct record *rec = &pc->records[mix(seed + tries) % pc->count];
        if (rec->change == MEMDISK_WRITE)
            return rec->pages[mix(seed) % rec->page_count];
    }
    return NULL;
}

static void put_write(const struct powercut *pc, struct memdisk *d, const struct record *rec, const struct powercut_choice *choice)
{
    for (uint32_t i = 0; i < rec->page_count; i++) {
        unsigned touched = touched_sectors(rec, i);
        unsigned kept = choice->fate == POWERCUT_KEPT   ? touched
                        : choice->fate == POWERCUT_TORN ? touched & torn_sectors(rec, i, choice)
                                                        : 0;
        uint64_t page = rec->first_page + i;

        if (choice->stale && kept != touched && page * MEMDISK_PAGE_BYTES >= memdisk_size(d, rec->ino) &&
            memdisk_is_hole(d, rec->ino, page))
            memdisk_put_sectors(d, rec->ino, page, 0xff, stale_page(pc, choice->seed + i));
        if (kept)
            memdisk_put_sectors(d, rec->ino, page, kept, rec->pages[i]);
    }
    if (rec->size_bytes > memdisk_size(d, rec->ino) && choice->size_kept)
        memdisk_put_size(d, rec->ino, rec->size_bytes);
}

static void put_punch(struct memdisk *d, const struct record *rec, const struct powercut_choice *choice)
{
    for (uint32_t i = 0; i < rec->page_count; i++)
        if (choice->fate == POWERCUT_KEPT || (choice->fate == POWERCUT_TORN && mix(choice->seed + i) & 1))
            memdisk_put_sectors(d, rec->ino, rec->first_page + i, touched_sectors(rec, i), rec->pages[i]);
}

static void put_allocation(struct memdisk *d, const struct record *rec)
{
    uint64_t end = (rec->offset + rec->bytes + MEMDISK_PAGE_BYTES - 1) / MEMDISK_PAGE_BYTES;

    for (uint64_t page = rec->offset / MEMDISK_PAGE_BYTES; page < end; page++)
        memdisk_put_allocated(d, rec->ino, page);
    if (rec->size_bytes > memdisk_size(d, rec->ino))
        memdisk_put_size(d, rec->ino, rec->size_bytes);
}

static void put_truncation(struct memdisk *d, const struct record *rec)
{
    if (rec->size_bytes <= rec->old_size_bytes)
        memdisk_put_end(d, rec->ino, rec->size_bytes);
    else
        memdisk_put_size(d, rec->ino, rec->size_bytes);
}

static void put_record(const struct powercut *pc, struct memdisk *d, const struct record *rec,
                       const struct powercut_choice *choice)
{
    if (rec->change == MEMDISK_WRITE) {
        put_write(pc, d, rec, choice);
        return;
    }
    if (rec->change == MEMDISK_PUNCH) {
        put_punch(d, rec, choice);
        return;
    }
    if (choice->fate == POWERCUT_LOST)
        return;
    switch (rec->change) {
    case MEMDISK_TRUNCATE:
        put_truncation(d, rec);
        break;
    case MEMDISK_ALLOCATE:
        put_allocation(d, rec);
        break;
    case MEMDISK_CREATE:
        memdisk_put_name(d, rec->dir, rec->name, rec->ino);
        break;
    case MEMDISK_UNLINK:
        memdisk_put_name(d, rec->dir, rec->name, 0);
        break;
    case MEMDISK_RENAME:
        memdisk_put_name(d, rec->to_dir, rec->to_name, rec->ino);
        if (choice->fate == POWERCUT_KEPT)
            memdisk_put_name(d, rec->dir, rec->name, 0);
        break;
    default:
        abort(); /* syncs are never pending */
    }
}

/* ---- cuts ---- */

struct powercut_cut *powercut_cut_new(struct powercut *pc)
{
    struct powercut_cut *cut = must(calloc(1, sizeof(*cut)));

    cut->pc = pc;
    cut->durable = memdisk_clone_all(pc->base);
    return cut;
}

void powercut_cut_free(struct powercut_cut *cut)
{
    if (!cut)
        return;
    memdisk_free(cut->durable);
    free(cut->pending);
    free(cut);
}

static bool is_name_change(const struct record *rec)
{
    return rec->change == MEMDISK_CREATE || rec->change == MEMDISK_UNLINK || rec->change == MEMDISK_RENAME;
}

/* What the sync makes durable: the file's own changes, or the directory's names. */
static bool is_synced_by(const struct record *rec, const struct record *sync)
{
    return is_name_change(rec) ? rec->dir == sync->ino || (rec->change == MEMDISK_RENAME && rec->to_dir == sync->ino)
                               : rec->ino == sync->ino;
}

static void apply_sync(struct powercut_cut *cut, const struct record *sync)
{
    static const struct powercut_choice whole = {.fate = POWERCUT_KEPT, .size_kept = true};
    uint32_t kept = 0;

    for (uint32_t i = 0; i < cut->pending_count; i++) {
        const struct record *rec = &cut->pc->records[cut->pending[i]];
        if (is_synced_by(rec, sync))
            put_record(cut->pc, cut->durable, rec, &whole);
        else
            cut->pending[kept++] = cut->pending[i];
    }
    cut->pending_count = kept;
}

static void apply_event(struct powercut_cut *cut, uint32_t event)
{
    const struct record *rec = &cut->pc->records[event];

    if (powercut_is_sync(cut->pc, event)) {
        apply_sync(cut, rec);
        return;
    }
    if (rec->change == MEMDISK_CREATE)
        memdisk_put_inode(cut->durable, rec->ino, rec->mode); /* unreachable without its name */
    if (cut->pending_count == cut->pending_allocated) {
        cut->pending_allocated = cut->pending_count * 2 + 64;
        cut->pending = must(realloc(cut->pending, cut->pending_allocated * sizeof(*cut->pending)));
    }
    cut->pending[cut->pending_count++] = event;
}

void powercut_cut_to(struct powercut_cut *cut, uint32_t event)
{
    assert(event >= cut->event);
    assert(event <= cut->pc->count);
    while (cut->event < event)
        apply_event(cut, cut->event++);
}

uint32_t powercut_cut_mark(const struct powercut_cut *cut)
{
    return cut->event < cut->pc->count ? cut->pc->records[cut->event].mark : cut->pc->mark;
}

uint32_t powercut_pending(const struct powercut_cut *cut)
{
    return cut->pending_count;
}

/* ---- choices ---- */

enum style {
    STYLE_ALL_LOST,
    STYLE_ALL_KEPT,
    STYLE_RANDOM,      /* each by itself, more or fewer */
    STYLE_IN_ORDER,    /* up to one, which is torn */
    STYLE_ONE_LOST,
    STYLE_ONE_KEPT,
    STYLE_NAMES_ONLY,  /* names and sizes without bytes */
    STYLE_BYTES_ONLY,  /* bytes without names; sizes by chance */
    STYLE_FILE_LOST,   /* all there but what was done to one file */
    STYLE_COUNT
};

static struct powercut_choice choose_by_chance(uint64_t r, unsigned kept_percent, unsigned torn_percent)
{
    struct powercut_choice choice = {.seed = (uint32_t)(r >> 32)};
    unsigned dice = (unsigned)(r & 0xffff) % 100;

    choice.fate = dice < kept_percent ? POWERCUT_KEPT : dice < kept_percent + torn_percent ? POWERCUT_TORN : POWERCUT_LOST;
    choice.size_kept = (r >> 16 & 0xff) % 100 < (choice.fate == POWERCUT_LOST ? 30u : 80u);
    return choice;
}

static struct powercut_choice choose_one(const struct record *rec, enum style style, uint64_t r, uint32_t i, uint32_t special,
                                         const struct record *special_rec)
{
    struct powercut_choice kept = {.fate = POWERCUT_KEPT, .size_kept = true, .seed = (uint32_t)(r >> 32)};
    struct powercut_choice lost = {.fate = POWERCUT_LOST, .seed = (uint32_t)(r >> 32)};
    struct powercut_choice torn = {.fate = POWERCUT_TORN, .size_kept = r & 1, .seed = (uint32_t)(r >> 32)};

    switch (style) {
    case STYLE_ALL_LOST:
        return lost;
    case STYLE_ALL_KEPT:
        return kept;
    case STYLE_IN_ORDER:
        return i < special ? kept : i == special ? torn : lost;
    case STYLE_ONE_LOST:
        lost.size_kept = r & 1;
        return i != special ? kept : r & 2 ? torn : lost;
    case STYLE_ONE_KEPT:
        return i == special ? kept : lost;
    case STYLE_NAMES_ONLY:
        lost.size_kept = true;
        return is_name_change(rec) ? kept : lost;
    case STYLE_BYTES_ONLY:
        kept.size_kept = r & 1;
        return is_name_change(rec) ? lost : kept;
    case STYLE_FILE_LOST:
        lost.size_kept = special & 1;
        return rec->ino != special_rec->ino ? kept : lost;
    default:
        return choose_by_chance(r, 50, 15);
    }
}

void powercut_choose(const struct powercut_cut *cut, uint64_t seed, struct powercut_choice *ret_choices)
{
    enum style style = mix(seed) % (STYLE_COUNT + 3); /* by chance is a third of all */
    uint32_t count = cut->pending_count, special = count > 0 ? (uint32_t)(mix(seed + 1) % count) : 0;
    bool stale = mix(seed + 2) % 4 == 0;
    unsigned kept_percent = (unsigned)(mix(seed + 3) % 90) + 5;

    for (uint32_t i = 0; i < count; i++) {
        const struct record *rec = &cut->pc->records[cut->pending[i]];
        uint64_t r = mix(seed * 0x10000001ull + i + 16);

        ret_choices[i] = style == STYLE_RANDOM || style >= STYLE_COUNT
                             ? choose_by_chance(r, kept_percent, (100 - kept_percent) / 3)
                             : choose_one(rec, style, r, i, special, &cut->pc->records[cut->pending[special]]);
        ret_choices[i].stale = stale;
    }
}

struct memdisk *powercut_build(const struct powercut_cut *cut, const struct powercut_choice *choices)
{
    struct memdisk *d = memdisk_clone_all(cut->durable);

    for (uint32_t i = 0; i < cut->pending_count; i++)
        put_record(cut->pc, d, &cut->pc->records[cut->pending[i]], &choices[i]);
    memdisk_settle(d);
    return d;
}

/* ---- a daemon killed ---- */

static struct record record_copy(const struct record *from)
{
    struct record rec = *from;

    if (from->pages) {
        rec.pages = must(malloc(rec.page_count * sizeof(struct memdisk_page *)));
        for (uint32_t i = 0; i < rec.page_count; i++)
            rec.pages[i] = memdisk_page_ref(from->pages[i]);
    }
    return rec;
}

struct powercut *powercut_new_killed(const struct powercut_cut *cut, uint32_t mark)
{
    struct powercut *pc = must(calloc(1, sizeof(*pc)));
    struct powercut_choice *all = must(malloc((cut->pending_count + 1) * sizeof(*all)));

    for (uint32_t i = 0; i < cut->pending_count; i++)
        all[i] = (struct powercut_choice){.fate = POWERCUT_KEPT, .size_kept = true};
    pc->base = memdisk_clone_all(cut->durable);
    pc->disk = powercut_build(cut, all);
    free(all);
    pc->count = pc->first = pc->allocated = cut->pending_count;
    pc->records = must(malloc((pc->count + 1) * sizeof(*pc->records)));
    for (uint32_t i = 0; i < pc->count; i++) {
        pc->records[i] = record_copy(&cut->pc->records[cut->pending[i]]);
        pc->records[i].mark = mark;
    }
    pc->mark = mark;
    for (uint64_t ino = 0; ino < cut->pc->names_count; ino++)
        if (cut->pc->names[ino][0])
            remember_name(pc, ino, cut->pc->names[ino]);
    memdisk_observe(pc->disk, observe, pc);
    return pc;
}

uint32_t powercut_first(const struct powercut *pc)
{
    return pc->first;
}

/* ---- for a person ---- */

void powercut_describe_event(const struct powercut *pc, uint32_t event, char *out, size_t out_bytes)
{
    const struct record *rec = &pc->records[event];
    const char *name = name_of(pc, rec->ino);
    unsigned long long offset = rec->offset, bytes = rec->bytes, size = rec->size_bytes;

    switch (rec->change) {
    case MEMDISK_WRITE:
        (void)snprintf(out, out_bytes, "write %s at %llu +%llu%s", name, offset, bytes,
                       rec->size_bytes > rec->old_size_bytes ? ", grows" : "");
        break;
    case MEMDISK_TRUNCATE:
        (void)snprintf(out, out_bytes, "truncate %s to %llu", name, size);
        break;
    case MEMDISK_ALLOCATE:
        (void)snprintf(out, out_bytes, "allocate %s at %llu +%llu", name, offset, bytes);
        break;
    case MEMDISK_PUNCH:
        (void)snprintf(out, out_bytes, "punch %s at %llu +%llu", name, offset, bytes);
        break;
    case MEMDISK_CREATE:
        (void)snprintf(out, out_bytes, "create %s", rec->name);
        break;
    case MEMDISK_UNLINK:
        (void)snprintf(out, out_bytes, "unlink %s", rec->name);
        break;
    case MEMDISK_RENAME:
        (void)snprintf(out, out_bytes, "rename %s to %s", rec->name, rec->to_name);
        break;
    case MEMDISK_SYNC_DATA:
        (void)snprintf(out, out_bytes, "fdatasync %s", name);
        break;
    case MEMDISK_SYNC:
        (void)snprintf(out, out_bytes, "fsync %s", name);
        break;
    }
}

void powercut_describe(const struct powercut_cut *cut, uint32_t pending_index, const struct powercut_choice *choice,
                       char *out, size_t out_bytes)
{
    static const char *const fates[] = {"LOST", "kept", "TORN"};
    const struct record *rec = &cut->pc->records[cut->pending[pending_index]];
    char what[2 * MEMDISK_NAME_BYTES + 40];

    powercut_describe_event(cut->pc, cut->pending[pending_index], what, sizeof(what));
    (void)snprintf(out, out_bytes, "%5u %s: %s%s%s", cut->pending[pending_index], what, fates[choice->fate],
                   rec->change == MEMDISK_WRITE && rec->size_bytes > rec->old_size_bytes
                       ? choice->size_kept ? ", size kept" : ", size LOST" : "",
                   choice->stale && choice->fate != POWERCUT_KEPT ? ", stale" : "");
}
