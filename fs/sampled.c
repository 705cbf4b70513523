/* SPDX-License-Identifier: BSD-2-Clause */
/* sampled: see sampled.h. */
#include "fs/sampled.h"

#include <errno.h>
#include <pthread.h>

#include "fs/handle.h"
#include "fs/options.h"
#include "fs/virtual.h"
#include "fs/writers.h"

#define SAMPLED_MAGIC 0x4c504d53u /* "SMPL" */
#define SAMPLED_KEPT 32u          /* looked through for each READ */
#define SAMPLED_QUOTA_SHARE 8u    /* all kept together, where what is kept cannot leave for room */
#define SAMPLED_BUCKETS 256u
#define SAMPLED_SNAPSHOTS_MAX 65536u
#define SAMPLED_EVENTS_CHUNK_BYTES (64u << 10)

struct kept_file {
    struct larder_file *file; /* NULL: a free place */
    uint64_t used_ns;
};

struct snapshot {
    struct snapshot *next;
    uint64_t references; /* the kernel's */
    struct stat st;      /* (c) */
    struct handle *text; /* (c) owned */
};

struct sampled {
    uint32_t magic;
    pthread_mutex_t lock;
    struct kept_file kept[SAMPLED_KEPT];        /* (l) */
    struct snapshot *snapshots[SAMPLED_BUCKETS]; /* (l) */
    uint32_t snapshot_count, snapshot_no;       /* (l) */
};

int sampled_new(struct sampled **ret_sampled)
{
    struct sampled *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->magic = SAMPLED_MAGIC;
    (void)pthread_mutex_init(&s->lock, NULL);
    *ret_sampled = s;
    return 0;
}

static void snapshot_free(struct snapshot *snap)
{
    if (snap)
        handle_free(snap->text);
    free(snap);
}

void sampled_free(struct sampled *s)
{
    if (!s)
        return;
    CHECK_OBJ(s, SAMPLED_MAGIC);
    for (size_t i = 0; i < SAMPLED_KEPT; i++)
        if (s->kept[i].file)
            larder_release(s->kept[i].file);
    for (size_t i = 0; i < SAMPLED_BUCKETS; i++) {
        struct snapshot *next;

        for (struct snapshot *snap = s->snapshots[i]; snap; snap = next) {
            next = snap->next;
            snapshot_free(snap);
        }
    }
    (void)pthread_mutex_destroy(&s->lock);
    s->magic = 0;
    free(s);
}

/* ---- kept files ---- */

/* Takes a kept file of the node out of its place; NULL: there is none. */
static struct larder_file *kept_find(struct sampled *s, uint64_t node)
{
    struct larder_file *file = NULL;

    CHECK_OBJ(s, SAMPLED_MAGIC);
    (void)pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < SAMPLED_KEPT && !file; i++) {
        if (!s->kept[i].file || larder_file_node(s->kept[i].file) != node)
            continue;
        file = s->kept[i].file;
        s->kept[i].file = NULL;
    }
    (void)pthread_mutex_unlock(&s->lock);
    return file;
}

int sampled_take(struct fs *fs, uint64_t node, struct larder_file **ret_file)
{
    struct larder_file *file = kept_find(fs->sampled, node);

    if (!file)
        return larder_open_file(fs->larder, node, O_RDONLY, ret_file);
    *ret_file = file;
    return 0;
}

/* The place that is free or was not read for longest. */
static struct kept_file *kept_oldest(struct sampled *s)
{
    struct kept_file *place = &s->kept[0];

    for (size_t i = 1; i < SAMPLED_KEPT && place->file; i++)
        if (!s->kept[i].file || s->kept[i].used_ns < place->used_ns)
            place = &s->kept[i];
    return place;
}

static struct larder_file *kept_add(struct sampled *s, struct larder_file *file)
{
    struct kept_file *place;
    struct larder_file *replaced;

    (void)pthread_mutex_lock(&s->lock);
    place = kept_oldest(s);
    replaced = place->file;
    *place = (struct kept_file){.file = file, .used_ns = mono_ns()};
    (void)pthread_mutex_unlock(&s->lock);
    return replaced;
}

/* Where room may be wanted one that takes more than its share of what may be kept is found anew for each READ. */
static bool kept_fits(struct fs *fs, const struct larder_file *file)
{
    struct larder_attr attr;

    if (!fs->writers)
        return true;
    return larder_getattr(fs->larder, larder_file_node(file), &attr) == 0 &&
           attr.size_bytes <= fs->opts->core.quota_bytes / SAMPLED_QUOTA_SHARE / SAMPLED_KEPT;
}

void sampled_give(struct fs *fs, struct larder_file *file, bool keep)
{
    struct larder_file *gone = keep && kept_fits(fs, file) ? kept_add(fs->sampled, file) : file;

    if (gone != file && fs->writers)
        writers_wake(fs);
    if (gone)
        larder_release(gone);
}

bool sampled_close_idle(struct fs *fs, uint64_t before_ns)
{
    struct larder_file *gone[SAMPLED_KEPT];
    struct sampled *s = fs->sampled;
    size_t count = 0;
    bool left = false;

    CHECK_OBJ(s, SAMPLED_MAGIC);
    (void)pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < SAMPLED_KEPT; i++) {
        struct kept_file *place = &s->kept[i];

        if (place->file && place->used_ns <= before_ns) {
            gone[count++] = place->file;
            place->file = NULL;
        }
        left |= place->file != NULL;
    }
    (void)pthread_mutex_unlock(&s->lock);
    while (count > 0)
        larder_release(gone[--count]);
    return left;
}

void sampled_let_go(struct fs *fs, uint64_t node)
{
    struct larder_file *file;

    while ((file = kept_find(fs->sampled, node)))
        larder_release(file);
}

/* ---- snapshots ---- */

static struct snapshot **snapshot_find_locked(struct sampled *s, uint64_t ino)
{
    struct snapshot **at = &s->snapshots[ino % SAMPLED_BUCKETS];

    while (*at && (*at)->st.st_ino != ino)
        at = &(*at)->next;
    return at;
}

static void snapshot_add_events(struct fs *fs, struct text *t, char *buf)
{
    uint64_t position = 0;
    size_t got;

    for (;;) {
        larder_events_read(fs->larder, &position, buf, SAMPLED_EVENTS_CHUNK_BYTES, &got);
        if (got == 0)
            return;
        text_add(t, "%.*s", (int)got, buf);
        position += got;
    }
}

static int snapshot_fill(struct fs *fs, struct handle *h)
{
    _cleanup_free_ char *buf = NULL;

    h->kind = virtual_kind_of(h->node);
    if (h->kind != VIRTUAL_EVENTS)
        return virtual_snapshot(fs, h);
    buf = malloc(SAMPLED_EVENTS_CHUNK_BYTES);
    if (!buf)
        return -ENOMEM;
    snapshot_add_events(fs, &h->text, buf);
    return h->text.failed ? -ENOMEM : 0;
}

/* A number that no snapshot has which the kernel may still know. */
static int snapshot_add(struct sampled *s, struct snapshot *snap)
{
    struct snapshot **at = NULL;
    int r = 0;

    (void)pthread_mutex_lock(&s->lock);
    if (s->snapshot_count >= SAMPLED_SNAPSHOTS_MAX)
        r = -ENFILE;
    while (r == 0 && (!at || *at)) {
        snap->st.st_ino = virtual_snapshot_ino(s->snapshot_no++);
        at = snapshot_find_locked(s, snap->st.st_ino);
    }
    if (r == 0) {
        *at = snap;
        s->snapshot_count++;
    }
    (void)pthread_mutex_unlock(&s->lock);
    return r;
}

int sampled_snapshot_new(struct fs *fs, uint64_t virtual_ino, struct stat *ret_stat)
{
    struct snapshot *snap = calloc(1, sizeof(*snap));
    int r = snap ? handle_new(virtual_ino, &snap->text) : -ENOMEM;

    CHECK_OBJ(fs->sampled, SAMPLED_MAGIC);
    if (r == 0)
        r = snapshot_fill(fs, snap->text);
    if (r < 0)
        goto fail;
    snap->references = 1;
    virtual_stat(fs, virtual_ino, &snap->st);
    snap->st.st_size = (off_t)snap->text->text.bytes;
    r = snapshot_add(fs->sampled, snap);
    if (r < 0)
        goto fail;
    *ret_stat = snap->st;
    return 0;
fail:
    snapshot_free(snap);
    return r;
}

int sampled_snapshot_stat(struct fs *fs, uint64_t ino, struct stat *ret_stat)
{
    struct sampled *s = fs->sampled;
    struct snapshot *snap;

    CHECK_OBJ(s, SAMPLED_MAGIC);
    (void)pthread_mutex_lock(&s->lock);
    snap = *snapshot_find_locked(s, ino);
    if (snap)
        *ret_stat = snap->st;
    (void)pthread_mutex_unlock(&s->lock);
    return snap ? 0 : -ESTALE;
}

int sampled_snapshot_read(struct fs *fs, uint64_t ino, size_t bytes, uint64_t offset, const char **ret_data,
                          size_t *ret_bytes)
{
    struct sampled *s = fs->sampled;
    const struct snapshot *snap;

    CHECK_OBJ(s, SAMPLED_MAGIC);
    (void)pthread_mutex_lock(&s->lock);
    snap = *snapshot_find_locked(s, ino);
    (void)pthread_mutex_unlock(&s->lock);
    if (!snap)
        return -ESTALE;
    offset = MIN(offset, (uint64_t)snap->text->text.bytes);
    *ret_data = snap->text->text.data ? snap->text->text.data + offset : "";
    *ret_bytes = MIN(bytes, snap->text->text.bytes - (size_t)offset);
    return 0;
}

void sampled_snapshot_forget(struct fs *fs, uint64_t ino, uint64_t count)
{
    struct sampled *s = fs->sampled;
    struct snapshot **at, *gone = NULL;

    CHECK_OBJ(s, SAMPLED_MAGIC);
    (void)pthread_mutex_lock(&s->lock);
    at = snapshot_find_locked(s, ino);
    if (*at) {
        (*at)->references -= MIN(count, (*at)->references);
        if ((*at)->references == 0) {
            gone = *at;
            *at = gone->next;
            s->snapshot_count--;
        }
    }
    (void)pthread_mutex_unlock(&s->lock);
    snapshot_free(gone);
}
