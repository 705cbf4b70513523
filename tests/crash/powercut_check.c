/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * powercut_check: what a recovery left, read through the public API, and whether a moment of the history explains it.
 */
#include "powercut_world.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- reading all of it ---- */

struct listing {
    char names[NAMES * 4][16];
    unsigned count;
    bool foreign;
};

static bool emit(void *ctx, const char *name, size_t name_bytes, const struct larder_attr *attr, uint64_t next) /* larder_emit */
{
    struct listing *list = ctx;

    (void)attr;
    (void)next;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return true;
    if (name[0] != 'n' || name_bytes >= 4 || list->count == NAMES * 4) {
        list->foreign = true;
        return true;
    }
    memcpy(list->names[list->count++], name, name_bytes + 1);
    return true;
}

static int list_dir(struct world *w, uint64_t id, struct listing *ret_list)
{
    struct larder_dir *d;
    int r = larder_open_dir(w->l, id, &d);

    if (r < 0)
        return r;
    r = larder_read_dir(d, 0, false, emit, ret_list);
    larder_close_dir(d);
    return r;
}

static uint32_t identify(const struct pool *pool, const uint8_t *data, uint32_t bytes)
{
    uint64_t number;

    if (bytes >= 16) {
        memcpy(&number, data, 8);
        return number < pool->count && pool->versions[number].bytes == bytes &&
                       memcmp(pool->versions[number].data, data, bytes) == 0
                   ? (uint32_t)number
                   : NO_MARK;
    }
    for (uint32_t i = 0; i < pool->count; i++)
        if (pool->versions[i].bytes == bytes && memcmp(pool->versions[i].data, data, bytes) == 0)
            return i;
    return NO_MARK;
}

/* Reads all of a file. -EIO and -ESTALE: a miss. */
static int read_file(struct world *w, const struct larder_attr *attr, struct found_node *n)
{
    size_t got = 0, bytes = (size_t)attr->size_bytes;
    struct larder_file *f;
    uint8_t *data;
    int r = larder_open_file(w->l, attr->ino, O_RDONLY, &f);

    if (r < 0)
        return r;
    data = malloc(bytes + 1);
    if (!data)
        abort();
    r = larder_read(f, data, bytes + 1, 0, false, &got);
    larder_release(f);
    if (r == 0 && got != bytes)
        fail(w, "a file of %zu bytes reads as %zu", bytes, got);
    if (r < 0) {
        free(data);
        return r;
    }
    n->version = identify(w->pool, data, (uint32_t)bytes);
    n->bytes = (uint32_t)bytes;
    if (n->version == NO_MARK)
        n->data = data;
    else
        free(data);
    return 0;
}

static void read_attributes(struct world *w, struct found_node *n)
{
    char text[32];
    size_t got = 0;

    if (n->kind == KIND_LINK)
        return;
    if (larder_getxattr(w->l, n->id, "user.tag", &n->tag, sizeof(n->tag), &got) < 0 || got != sizeof(n->tag))
        n->tag = 0;
    if (larder_getxattr(w->l, n->id, "user.larder.ttl", text, sizeof(text) - 1, &got) == 0) {
        text[got] = 0;
        if (larder_parse_age(text, &n->ttl_ns) < 0)
            fail(w, "the ttl of a file is \"%s\"", text);
    }
}

static unsigned find_known(const struct finding *f, uint64_t id)
{
    for (unsigned i = 1; i <= f->node_count; i++)
        if (f->nodes[i].id == id)
            return i;
    return 0;
}

static void observe_dir(struct world *w, struct finding *f, unsigned row, uint64_t id);

static void observe_name(struct world *w, struct finding *f, unsigned row, uint64_t parent, const char *name)
{
    unsigned index = (unsigned)atoi(name + 1), known;
    struct larder_attr attr;
    struct found_node n = {0};
    int r = larder_lookup(w->l, parent, name, strlen(name), &attr);

    if (r == -ENOENT)
        return; /* it expired, or its file turned out to be lost under another name */
    if (r < 0 || index >= NAMES) {
        fail(w, "lookup of %u/%s, which is listed: %s", row, name, strerror(-r));
        return;
    }
    larder_forget(w->l, attr.ino, 1);
    known = find_known(f, attr.ino);
    if (known) {
        f->child[row][index] = (uint8_t)known;
        return;
    }
    n.id = attr.ino;
    n.mode = attr.mode & 07777;
    n.kind = S_ISDIR(attr.mode) ? KIND_DIR : S_ISLNK(attr.mode) ? KIND_LINK : KIND_FILE;
    if (n.kind == KIND_FILE) {
        r = read_file(w, &attr, &n);
        if (r == -EIO || r == -ESTALE)
            return;
        if (r < 0) {
            fail(w, "reading %u/%s: %s", row, name, strerror(-r));
            return;
        }
    }
    read_attributes(w, &n);
    if (f->node_count == NODES || (n.kind == KIND_DIR && f->dir_count == DIRS)) {
        fail(w, "more files than there ever were");
        free(n.data);
        return;
    }
    if (n.kind == KIND_DIR)
        n.dir = (uint8_t)f->dir_count++;
    f->nodes[++f->node_count] = n;
    f->child[row][index] = (uint8_t)f->node_count;
    if (n.kind == KIND_DIR)
        observe_dir(w, f, n.dir, n.id);
}

static void observe_dir(struct world *w, struct finding *f, unsigned row, uint64_t id)
{
    struct listing list = {.count = 0};
    int r = list_dir(w, id, &list);

    if (r < 0)
        fail(w, "listing directory %u: %s", row, strerror(-r));
    f->foreign |= list.foreign;
    for (unsigned i = 0; i < list.count && !w->failure[0]; i++)
        observe_name(w, f, row, id, list.names[i]);
}

/* Names whose file was found lost under its other name are gone, too. */
static void drop_lost_names(struct world *w, struct finding *f)
{
    for (unsigned row = 0; row < f->dir_count; row++)
        for (unsigned name = 0; name < NAMES; name++) {
            struct found_node *n = &f->nodes[f->child[row][name]];
            struct larder_attr attr;
            if (f->child[row][name] && n->kind == KIND_FILE && larder_getattr(w->l, n->id, &attr) < 0)
                f->child[row][name] = 0;
        }
}

void world_observe(struct world *w, struct finding *ret_finding)
{
    *ret_finding = (struct finding){.dir_count = 1, .node_count = 1};
    ret_finding->nodes[1] = (struct found_node){.kind = KIND_DIR, .id = LARDER_ROOT};
    w->observing = true;
    observe_dir(w, ret_finding, 0, LARDER_ROOT);
    drop_lost_names(w, ret_finding);
    w->observing = false;
    if (ret_finding->foreign)
        fail(w, "a name is listed that nobody made");
}

void finding_fini(struct finding *f)
{
    for (unsigned i = 1; i <= f->node_count; i++)
        free(f->nodes[i].data);
}

/* ---- the database: byte by byte ---- */

static uint32_t db_last_sync(const struct world *of, uint32_t cut_mark)
{
    uint32_t last = 0; /* events before it are in the image */

    for (uint32_t i = 0; i < of->db_count; i++)
        if (of->db_events[i].what == DB_SYNC && of->db_events[i].mark <= cut_mark)
            last = i + 1;
    return last;
}

static void db_apply(const struct world *of, const struct db_event *e, uint8_t *image, uint32_t *bytes)
{
    if (e->what == DB_SIZE) {
        if (e->offset < *bytes)
            memset(image + e->offset, 0, *bytes - e->offset);
        *bytes = (uint32_t)e->offset;
    } else if (e->what == DB_ZERO) {
        if (e->offset < *bytes)
            memset(image + e->offset, 0, MIN(e->bytes, *bytes - e->offset));
    } else if (e->what == DB_WRITE) {
        memcpy(image + e->offset, of->pool->versions[e->version].data, e->bytes);
        *bytes = MAX(*bytes, (uint32_t)e->offset + e->bytes);
    }
}

/* May the byte be there, by what was begun since the last sync? */
static bool db_may_be(const struct world *of, uint32_t from, uint32_t cut_mark, uint32_t at, uint8_t byte)
{
    for (uint32_t i = from; i < of->db_count && of->db_events[i].mark <= cut_mark + 1; i++) {
        const struct db_event *e = &of->db_events[i];
        if (e->what == DB_SIZE && byte == 0)
            return true;
        if (e->what == DB_ZERO && byte == 0 && at >= e->offset && at < e->offset + e->bytes)
            return true;
        if (e->what == DB_WRITE && at >= e->offset && at < e->offset + e->bytes &&
            of->pool->versions[e->version].data[at - e->offset] == byte)
            return true;
    }
    return false;
}

static bool db_matches(const struct world *of, const struct match *m, const uint8_t *data, uint32_t bytes, char why[TEXT_BYTES * 2])
{
    static uint8_t image[2 * DB_BYTES_MAX];
    uint32_t mark = m->cut_mark == NO_MARK ? of->moments : m->cut_mark;
    uint32_t from = db_last_sync(of, mark), size = of->db_base_bytes, least, most;

    memset(image, 0, sizeof(image));
    memcpy(image, of->db_base, of->db_base_bytes);
    for (uint32_t i = 0; i < from; i++)
        db_apply(of, &of->db_events[i], image, &size);
    least = most = size;
    for (uint32_t i = from; i < of->db_count && of->db_events[i].mark <= mark + 1; i++) {
        const struct db_event *e = &of->db_events[i];
        if (e->what == DB_SIZE)
            least = MIN(least, (uint32_t)e->offset);
        if (e->what == DB_WRITE || e->what == DB_SIZE)
            most = MAX(most, (uint32_t)e->offset + (e->what == DB_WRITE ? e->bytes : 0));
    }
    if (bytes < least || bytes > most) {
        (void)snprintf(why, TEXT_BYTES * 2, "database of %u bytes, between %u and %u are possible", bytes, least, most);
        return false;
    }
    for (uint32_t i = 0; i < MIN(bytes, m->stale ? least : size); i++)
        if (data[i] != image[i] && !db_may_be(of, from, mark, i, data[i])) {
            (void)snprintf(why, TEXT_BYTES * 2, "database: byte %u of %u is neither the one fsynced nor one written since", i, bytes);
            return false;
        }
    return true;
}

/* ---- one moment ---- */

struct matching {
    const struct world *of;
    const struct state *s;
    uint32_t moment; /* of s */
    const struct finding *f;
    const struct match *m;
    uint8_t as[NODES]; /* found node, by model node */
    char *why;
    const struct found_node *compared; /* with the database, at another moment */
    bool db_good;
};

static bool differs(struct matching *c, const char *what, unsigned dir, unsigned name)
{
    (void)snprintf(c->why, TEXT_BYTES * 2, "%u/n%u %s", dir, name, what);
    return false;
}

static bool file_matches(struct matching *c, const struct mnode *n, const struct found_node *got, unsigned dir, unsigned name)
{
    const struct pool *pool = c->of->pool;

    if (n->is_db) {
        const uint8_t *data = got->version == NO_MARK ? got->data : pool->versions[got->version].data;
        if (c->compared != got)
            c->db_good = db_matches(c->of, c->m, data, got->bytes, c->why);
        c->compared = got;
        return c->db_good;
    }
    if (got->version == NO_MARK)
        return differs(c, "has BYTES NOBODY WROTE", dir, name);
    if (pool->versions[got->version].same_as != pool->versions[n->version].same_as)
        return differs(c, got->version < n->version ? "has an older version" : "has another version", dir, name);
    return true;
}

/* Was the name's version let go of later, before the power was cut? Its bytes may be gone then though the record of it is
 * lost: it was removed, evicted, expired, or replaced by a version not fsynced. One that was fsynced must not take the
 * place of another, lose it, and not be there itself. */
static bool was_let_go(const struct matching *c, unsigned row, unsigned name)
{
    unsigned node = c->s->child[row][name];

    for (uint32_t u = c->moment + 1; u <= c->m->cut_mark + 1 && u < c->of->moments; u++) {
        const struct state *later = &c->of->history[u].state;
        unsigned other = later->dir_node[row] ? later->child[row][name] : 0;

        if (other == node && later->nodes[other].version == c->s->nodes[node].version)
            continue;
        return other == 0 || later->nodes[other].kind != KIND_FILE ||
               c->of->synced_at[later->nodes[other].version] > c->m->cut_mark;
    }
    return false;
}

static bool may_be_lost(const struct matching *c, const struct mnode *n, unsigned row, unsigned name)
{
    const struct version *v = &c->of->pool->versions[n->version];

    if (n->kind != KIND_FILE || v->bytes == 0 || c->m->cut_mark == NO_MARK || c->m->killed)
        return false;
    return c->of->synced_at[n->version] > c->m->cut_mark || was_let_go(c, row, name);
}

static bool dir_matches(struct matching *c, unsigned row, unsigned got_row);

static bool name_matches(struct matching *c, unsigned row, unsigned got_row, unsigned name)
{
    unsigned node = c->s->child[row][name], got = c->f->child[got_row][name];
    const struct mnode *n = &c->s->nodes[node];
    const struct found_node *g = &c->f->nodes[got];

    if (node && n->kind == KIND_FILE && n->ttl_ns && n->written_ns + n->ttl_ns <= c->m->now_ns)
        return got == 0 || differs(c, "is there past its deadline", row, name);
    if (!node)
        return got == 0 || differs(c, "is there and should not be", row, name);
    if (!got)
        return may_be_lost(c, n, row, name) || differs(c, "is a miss and should not be", row, name);
    if (g->kind != n->kind)
        return differs(c, "is of another kind", row, name);
    if (c->as[node] && c->as[node] != got)
        return differs(c, "is not the same file as its other name", row, name);
    c->as[node] = (uint8_t)got;
    if (n->kind != KIND_LINK && (g->tag != n->tag || g->mode != n->mode || g->ttl_ns != n->ttl_ns))
        return differs(c, "has other attributes", row, name);
    if (n->kind == KIND_FILE)
        return file_matches(c, n, g, row, name);
    return n->kind != KIND_DIR || dir_matches(c, n->dir, g->dir);
}

static bool dir_matches(struct matching *c, unsigned row, unsigned got_row)
{
    for (unsigned name = 0; name < NAMES; name++)
        if (!name_matches(c, row, got_row, name))
            return false;
    return true;
}

uint32_t finding_match(const struct world *of, const struct finding *f, const struct match *m, char why[TEXT_BYTES * 2])
{
    char newest[TEXT_BYTES * 2] = "", oldest[TEXT_BYTES * 2] = "";
    struct matching c = {.of = of, .f = f, .m = m, .why = newest};

    for (uint32_t t = m->last + 1; t-- > m->first;) {
        c.s = &of->history[t].state;
        c.moment = t;
        memset(c.as, 0, sizeof(c.as));
        if (dir_matches(&c, 0, 0))
            return t;
        if (m->verbose)
            (void)printf("  moment %u (%s): %s\n", t, of->history[t].text, c.why);
        c.why = oldest;
    }
    (void)snprintf(why, TEXT_BYTES * 2, "at moment %u: %.80s; at moment %u: %.80s", m->last, newest, m->first, oldest);
    return NO_MARK;
}

/* ---- the base of another history ---- */

static void rebase_dir(struct world *w, const struct finding *f, unsigned row, unsigned got_row)
{
    for (unsigned name = 0; name < NAMES; name++) {
        unsigned node = w->now.child[row][name], got = f->child[got_row][name];
        struct mnode *n = &w->now.nodes[node];
        if (!node)
            continue;
        if (!got) {
            w->now.child[row][name] = 0;
            if (--n->links == 0)
                n->kind = KIND_FREE;
            continue;
        }
        w->ids[node] = f->nodes[got].id;
        if (n->kind == KIND_FILE)
            w->synced_at[n->version] = 0;
        if (n->kind == KIND_FILE && n->is_db) {
            w->db_base_bytes = w->db_now_bytes = f->nodes[got].bytes;
            w->db_base = malloc(f->nodes[got].bytes + 1);
            if (!w->db_base)
                abort();
            memcpy(w->db_base,
                   f->nodes[got].version == NO_MARK ? f->nodes[got].data : w->pool->versions[f->nodes[got].version].data,
                   f->nodes[got].bytes);
        }
        if (n->kind == KIND_DIR)
            rebase_dir(w, f, n->dir, f->nodes[got].dir);
    }
}

void world_rebase(struct world *w, const struct world *of, uint32_t moment, const struct finding *f)
{
    w->now = of->history[moment].state;
    rebase_dir(w, f, 0, 0);
}

/* ---- a history that goes on ---- */

/* What the database is now, whatever of a write under way had reached it. */
static void continue_db(struct world *w, const struct found_node *n, uint32_t mark)
{
    uint32_t version = n->version == NO_MARK ? pool_add_data(w->pool, n->data, n->bytes) : n->version;

    w->db_now_bytes = n->bytes;
    w->db_events[w->db_count++] = (struct db_event){.what = DB_SIZE, .mark = mark, .offset = n->bytes};
    w->db_events[w->db_count++] = (struct db_event){.what = DB_WRITE, .mark = mark, .bytes = n->bytes, .version = version};
}

static void continue_ids(struct world *w, const struct finding *f, unsigned row, unsigned got_row, uint32_t mark)
{
    for (unsigned name = 0; name < NAMES; name++) {
        unsigned node = w->now.child[row][name], got = f->child[got_row][name];
        if (!node || !got)
            continue; /* due: a miss for whoever asks */
        w->ids[node] = f->nodes[got].id;
        if (w->now.nodes[node].kind == KIND_FILE && w->now.nodes[node].is_db)
            continue_db(w, &f->nodes[got], mark);
        if (w->now.nodes[node].kind == KIND_DIR)
            continue_ids(w, f, w->now.nodes[node].dir, f->nodes[got].dir, mark);
    }
}

static void *copy_of(const void *from, size_t bytes)
{
    void *copy = malloc(bytes + 1);

    if (!copy)
        abort();
    if (bytes > 0)
        memcpy(copy, from, bytes);
    return copy;
}

void world_continue(struct world *w, const struct world *of, uint32_t moment, uint32_t cut_mark, const struct finding *f)
{
    w->moments = w->moments_allocated = moment + 1;
    w->history = copy_of(of->history, w->moments * sizeof(*w->history));
    w->history[moment].floor = MIN(of->history[moment].floor, of->history[cut_mark].floor); /* a sync under way is none */
    w->now = of->history[moment].state;
    /* moment may be before the mark, when names that were about to leave had not: its numbers count from here on */
    for (uint32_t v = 0; v < VERSIONS_MAX; v++)
        w->synced_at[v] = of->synced_at[v] <= cut_mark ? MIN(of->synced_at[v], moment) : NO_MARK;
    for (w->db_count = 0; w->db_count < of->db_count && of->db_events[w->db_count].mark <= cut_mark;)
        w->db_count++;
    w->db_allocated = w->db_count + 2;
    w->db_events = calloc(w->db_allocated, sizeof(*w->db_events));
    if (!w->db_events)
        abort();
    if (w->db_count > 0)
        memcpy(w->db_events, of->db_events, w->db_count * sizeof(*w->db_events));
    for (uint32_t i = 0; i < w->db_count; i++)
        w->db_events[i].mark = MIN(w->db_events[i].mark, moment);
    if (of->db_base) {
        w->db_base = copy_of(of->db_base, of->db_base_bytes);
        w->db_base_bytes = of->db_base_bytes;
        w->db_now_bytes = of->db_now_bytes;
    }
    continue_ids(w, f, 0, 0, moment);
}
