/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_exercise: everything a mount would do to a store, through the engine's public calls.
 *
 * What is right of a hostile store? Bytes that are read must be bytes the store holds for that node (fuzz_is_known). What
 * one mount showed, the next must show: only expiry and eviction may take a key away meanwhile. A key that was evicted or
 * swept is counted; one that is past its deadline and not swept yet is only hidden, so each key's own deadline is asked. What
 * was closed in order must be without defect to inspect_check. And all of it in bounded time and memory, which the fuzzer
 * watches.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "cache.h"
#include "fuzz_store.h"

#define SEEN_MAX 512u
#define DEPTH_MAX 64u
#define READ_WHOLE_BYTES_MAX (256u << 10)
#define LOGS_MAX 200u
#define CHANGES_MAX 24u

struct seen {
    uint64_t ino, parent;
    char name[NAME_BYTES_MAX + 1];
    uint8_t name_bytes;
    uint32_t mode;
    uint64_t size, sum; /* of the bytes, the target or the xattrs */
    int result;         /* of reading them */
    uint64_t deadline_ns; /* in cache time; UINT64_MAX: never */
};

struct walk {
    struct larder *l;
    struct seen *seen; /* owned, SEEN_MAX */
    unsigned count;
    bool check_known;
    bool cut; /* there was more than fits */
};

/* ---- reading ---- */

static uint64_t mix(uint64_t sum, const void *data, size_t bytes)
{
    return (sum ^ codec_checksum(data, bytes)) * 0x9e3779b97f4a7c15ull;
}

static void read_xattrs(struct walk *w, struct seen *s)
{
    char list[4096], value[4096];
    size_t bytes, got;

    s->result = larder_listxattr(w->l, s->ino, list, sizeof(list), &bytes);
    if (s->result < 0)
        return;
    for (size_t at = 0; at < bytes; at += strnlen(list + at, bytes - at) + 1) {
        int r = larder_getxattr(w->l, s->ino, list + at, value, sizeof(value), &got);
        FUZZ_CHECK(r == 0 || r == -ERANGE || r == -ESTALE || r == -ENODATA);
        if (r == 0)
            s->sum = mix(s->sum, value, got);
    }
    for (unsigned i = 0; i < 8; i++) {
        static const char *const names[] = {"user.larder.ttl",    "user.larder.age",   "user.larder.stored_bytes",
                                            "user.larder.source", "user.larder.codec", "user.larder.checksum",
                                            "user.larder.expires", "user.larder.stats"};
        (void)larder_getxattr(w->l, s->ino, names[i], value, sizeof(value), &got); /* any answer will do */
    }
}

static int read_piece(struct larder_file *f, uint8_t *buf, size_t bytes, uint64_t offset, size_t *ret_got)
{
    int r = larder_read(f, buf, bytes, offset, true, ret_got);

    return r == -EAGAIN ? larder_read(f, buf, bytes, offset, false, ret_got) : r;
}

/* All of it when it is small, else its ends. */
static void read_file(struct walk *w, struct seen *s)
{
    _cleanup_free_ uint8_t *buf = malloc(READ_WHOLE_BYTES_MAX);
    struct larder_attr attr;
    struct larder_file *f;
    size_t got = 0;
    int r;

    FUZZ_CHECK(buf);
    r = larder_open_file(w->l, s->ino, O_RDONLY, &f);
    if (r < 0) {
        s->result = r;
        return;
    }
    r = larder_getattr(w->l, s->ino, &attr);
    if (r == 0)
        r = read_piece(f, buf, READ_WHOLE_BYTES_MAX, 0, &got);
    if (r == 0 && attr.size_bytes <= READ_WHOLE_BYTES_MAX) {
        FUZZ_CHECK(got == attr.size_bytes);
        FUZZ_CHECK(!w->check_known || got == 0 || fuzz_is_known(s->ino, buf, got));
    }
    if (r == 0)
        s->sum = mix(s->sum, buf, got);
    if (r == 0 && attr.size_bytes > READ_WHOLE_BYTES_MAX) {
        r = read_piece(f, buf, 4096, attr.size_bytes - 4096, &got);
        FUZZ_CHECK(r < 0 || got == 4096);
        if (r == 0)
            s->sum = mix(s->sum, buf, got);
    }
    s->size = attr.size_bytes;
    s->result = r;
    larder_release(f);
}

static void read_one(struct walk *w, struct seen *s)
{
    char target[SYMLINK_BYTES_MAX + 1];
    struct larder_attr attr;

    if (s->result == 0) /* else expired, and listed until it is swept; -ESTALE says the same */
        s->result = larder_getattr(w->l, s->ino, &attr);
    if (s->result < 0)
        return;
    FUZZ_CHECK((attr.mode & S_IFMT) == (s->mode & S_IFMT));
    FUZZ_CHECK(attr.nlink > 0);
    read_xattrs(w, s);
    if (S_ISLNK(s->mode) && larder_readlink(w->l, s->ino, target, sizeof(target)) == 0) {
        FUZZ_CHECK(strlen(target) == attr.size_bytes);
        s->sum = mix(s->sum, target, strlen(target));
    }
    if (S_ISREG(s->mode))
        read_file(w, s);
}

static bool take_entry(void *ctx, const char *name, size_t name_bytes, const struct larder_attr *attr,
                       uint64_t next_offset)
{
    struct walk *w = ctx;
    struct seen *s = &w->seen[w->count];

    (void)next_offset;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return true;
    FUZZ_CHECK(name_bytes > 0 && name_bytes <= NAME_BYTES_MAX && strlen(name) == name_bytes);
    FUZZ_CHECK(!strchr(name, '/'));
    if (w->count == SEEN_MAX) {
        w->cut = true;
        return false;
    }
    *s = (struct seen){.ino = attr->ino, .mode = attr->mode, .name_bytes = (uint8_t)name_bytes};
    memcpy(s->name, name, name_bytes);
    w->count++;
    return true;
}

/* Breadth first: the directories among what was seen are read in their turn. */
static void walk_dir(struct walk *w, uint64_t ino)
{
    unsigned first = w->count;
    struct larder_dir *dir;

    if (larder_open_dir(w->l, ino, &dir) < 0)
        return;
    (void)larder_read_dir(dir, 0, true, take_entry, w); /* what there is, was taken */
    larder_close_dir(dir);
    for (unsigned i = first; i < w->count; i++) {
        struct larder_attr attr;
        w->seen[i].parent = ino;
        w->seen[i].result = larder_lookup(w->l, ino, w->seen[i].name, w->seen[i].name_bytes, &attr);
        if (w->seen[i].result == 0) {
            FUZZ_CHECK(attr.ino == w->seen[i].ino);
            larder_forget(w->l, attr.ino, 1);
        }
    }
}

/* Last of all: a deadline that a read moves is moved by then. */
static void note_deadlines(struct walk *w)
{
    lock_take(&w->l->lock);
    for (unsigned i = 0; i < w->count; i++) {
        const struct node *n = tree_node(w->l->tree, w->seen[i].ino);
        enum drop_reason reason;

        w->seen[i].deadline_ns = n && !node_is_dir(n) ? policy_deadline(w->l, n, &reason) : UINT64_MAX;
    }
    lock_give(&w->l->lock);
}

static void walk_all(struct walk *w, struct larder *l)
{
    struct larder_stats stats;
    struct larder_space space;
    struct larder_subtree subtree;

    w->l = l;
    w->count = 0;
    w->cut = false;
    walk_dir(w, LARDER_ROOT);
    for (unsigned i = 0; i < w->count; i++) {
        read_one(w, &w->seen[i]);
        if (S_ISDIR(w->seen[i].mode))
            walk_dir(w, w->seen[i].ino);
    }
    note_deadlines(w);
    for (unsigned i = 0; i < w->count; i++)
        larder_forget(l, w->seen[i].ino, 1);
    larder_stats(l, &stats);
    larder_space(l, &space);
    FUZZ_CHECK_OK(larder_subtree(l, LARDER_ROOT, &subtree));
}

/* The next key from *slot on that is past its deadline and still there: one of its names. */
static bool next_hidden(struct larder *l, uint32_t *slot, struct seen *ret_name)
{
    bool found = false;

    lock_take(&l->lock);
    while (!found && (*slot = tree_next_slot(l->tree, *slot))) {
        const struct node *n = tree_slot(l->tree, *slot);
        const struct dentry *d = n && cache_is_expired(l, n, NULL) ? tree_dentry(l->tree, n->first_dentry) : NULL;
        const char *name;
        size_t bytes;

        if (!d)
            continue;
        name = dentry_name(l->tree, d, &bytes);
        memcpy(ret_name->name, name, bytes);
        ret_name->name_bytes = (uint8_t)bytes;
        ret_name->parent = node_id(l->tree, tree_slot(l->tree, d->parent));
        found = true;
    }
    lock_give(&l->lock);
    return found;
}

/* No listing shows them, so nobody has read their bytes and found what is wrong with them. Asked for they leave. */
static void ask_for_hidden(struct larder *l)
{
    struct larder_attr attr;
    struct seen s;
    uint32_t slot = 0;

    while (next_hidden(l, &slot, &s))
        FUZZ_CHECK(larder_lookup(l, s.parent, s.name, s.name_bytes, &attr) == -ENOENT);
}

/* ---- changing ---- */

static void change_file(struct larder *l, const struct seen *s, unsigned how)
{
    static const uint8_t patch[9000] = "patched";
    struct larder_attr attr = {.size_bytes = how * 1000u};
    struct larder_file *f;

    if (how % 4 == 0) {
        (void)larder_setattr(l, s->ino, NULL, LARDER_SET_SIZE, &attr, &attr); /* any answer will do, here and below */
        return;
    }
    if (larder_open_file(l, s->ino, how % 4 == 1 ? O_RDWR : O_RDWR | O_TRUNC, &f) < 0)
        return;
    (void)larder_write(f, patch, how % 8 < 4 ? 7 : sizeof(patch), how * 10, false);
    if (how % 3 == 0)
        (void)larder_fsync(f, false);
    (void)larder_flush(f);
    larder_release(f);
}

static void change_one(struct larder *l, const struct seen *s, unsigned how)
{
    const struct larder_cred cred = {.uid = 1, .gid = 2};
    struct larder_attr attr;

    if (getenv("FUZZ_VERBOSE"))
        (void)fprintf(stderr, "change %u of \"%s\", %llx\n", how, s->name, (unsigned long long)s->ino);
    switch (how % 7) {
    case 0:
        (void)larder_rename(l, s->parent, s->name, s->name_bytes, LARDER_ROOT, "renamed", 7, 0, &cred);
        break;
    case 1:
        (void)larder_unlink(l, s->parent, s->name, s->name_bytes);
        break;
    case 2:
        (void)larder_rmdir(l, s->parent, s->name, s->name_bytes);
        break;
    case 3:
        if (larder_link(l, s->ino, LARDER_ROOT, "linked", 6, &attr) == 0)
            larder_forget(l, attr.ino, 1);
        break;
    case 4:
        (void)larder_setxattr(l, s->ino, "user.new", "value", 5, 0);
        (void)larder_setxattr(l, s->ino, "user.larder.idle", "1d", 2, 0);
        break;
    case 5:
        (void)larder_rename(l, s->parent, s->name, s->name_bytes, LARDER_ROOT, "d", 1, RENAME_EXCHANGE, &cred);
        break;
    default:
        if (S_ISREG(s->mode))
            change_file(l, s, how / 7);
    }
}

/* What is written now must come back, whatever the store was. */
static void put_and_get(struct larder *l, size_t bytes)
{
    const struct larder_cred cred = {.uid = 1, .gid = 2};
    _cleanup_free_ uint8_t *data = malloc(bytes), *back = malloc(bytes);
    struct larder_attr attr;
    struct larder_file *f;
    size_t got;
    int r;

    FUZZ_CHECK(data && back);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    (void)larder_unlink(l, LARDER_ROOT, "put", 3);
    r = larder_create(l, LARDER_ROOT, "put", 3, 0600, O_RDWR, &cred, &attr, &f);
    if (r < 0) {
        FUZZ_CHECK(r == -ENOSPC || r == -EROFS || r == -EEXIST || r == -ENOTDIR || r == -EIO);
        return;
    }
    r = larder_write(f, data, bytes, 0, false);
    if (r == 0)
        r = larder_flush(f);
    larder_release(f);
    if (r == 0 && larder_open_file(l, attr.ino, O_RDONLY, &f) == 0) {
        r = read_piece(f, back, bytes, 0, &got);
        FUZZ_CHECK(r == 0 && got == bytes && memcmp(back, data, bytes) == 0);
        larder_release(f);
    }
    larder_forget(l, attr.ino, 1);
}

static void change(struct walk *w, struct larder *l)
{
    unsigned count = w->count;

    for (unsigned i = 0; i < MIN(count, CHANGES_MAX); i++)
        change_one(l, &w->seen[i * 5 % count], i * 3 + count);
    put_and_get(l, 100);
    put_and_get(l, 20000);
    (void)larder_sync(l); /* a mount gone read-only says so */
}

/* ---- mounting ---- */

struct watch {
    unsigned logs;
};

static void count_log(void *ctx, enum larder_log_level level, const char *line)
{
    struct watch *watch = ctx;

    (void)level;
    if (getenv("FUZZ_VERBOSE"))
        (void)fprintf(stderr, "%s\n", line);
    FUZZ_CHECK(++watch->logs < LOGS_MAX);
}

static struct larder *mount_store(unsigned flags, struct watch *watch)
{
    struct larder_callbacks callbacks = {.log = count_log, .ctx = watch};
    struct larder_options opts;
    struct errtext err = {""};
    struct larder *l;
    int r;

    larder_options_init(&opts);
    opts.quota_bytes = flags & FUZZ_SMALL_QUOTA ? MIB : 64 * MIB;
    opts.big_bytes = 8192;
    opts.read_only = flags & FUZZ_READ_ONLY;
    r = fuzz_mount(&opts, &callbacks, &l, &err);
    if (r < 0) {
        FUZZ_CHECK(err.text[0] != '\0');
        /* What is damaged is a miss, never a refusal; but a quota of 1 MiB may have no room for what is there. */
        if (!(r == -ENOSPC && flags & FUZZ_SMALL_QUOTA))
            (void)fprintf(stderr, "refused: %s\n", err.text);
        FUZZ_CHECK(r == -ENOSPC && flags & FUZZ_SMALL_QUOTA);
        return NULL;
    }
    if (flags & FUZZ_THREADS)
        FUZZ_CHECK_OK(larder_start(l));
    return l;
}

static void see_defect(void *ctx, char severity, const char *where, const char *what)
{
    bool *print = ctx;

    if ((*print && severity == 'E') || getenv("FUZZ_VERBOSE"))
        (void)fprintf(stderr, "%c %s: %s\n", severity, where, what);
}

static void see_line(void *ctx, const char *line)
{
    *(size_t *)ctx += strlen(line);
}

/* Must live through it; defects only count when asked. */
static void inspect(bool must_be_whole)
{
    struct inspect_source source = fuzz_inspect_source();
    struct inspect_summary summary = {0};
    struct errtext err = {""};
    bool print = must_be_whole;
    size_t bytes = 0;
    int r = inspect_check_on(&source, see_defect, &print, &summary, &err);

    FUZZ_CHECK(r == 0 || err.text[0] != '\0');
    FUZZ_CHECK(!must_be_whole || (r == 0 && summary.defects == 0));
    source = fuzz_inspect_source();
    r = inspect_dump_on(&source, NULL, see_line, &bytes, &err);
    FUZZ_CHECK(r == 0 || err.text[0] != '\0');
}

static bool took_away(struct larder *l)
{
    struct larder_stats s;

    larder_stats(l, &s);
    return s.evicted_quota + s.evicted_entries + s.evicted_min_free + s.expired_ttl + s.expired_idle + s.expired_expires > 0;
}

static const struct seen *find_seen(const struct walk *w, const struct seen *like)
{
    for (unsigned i = 0; i < w->count; i++) {
        const struct seen *s = &w->seen[i];
        if (s->parent == like->parent && s->name_bytes == like->name_bytes &&
            memcmp(s->name, like->name, s->name_bytes) == 0)
            return s;
    }
    return NULL;
}

/* For a person who runs one input with FUZZ_VERBOSE. */
static void print_walk(const char *what, const struct walk *w)
{
    for (unsigned i = 0; getenv("FUZZ_VERBOSE") && i < w->count; i++) {
        const struct seen *s = &w->seen[i];
        (void)fprintf(stderr, "%s: %llx in %llx mode %o result %d size %llu \"%s\"\n", what, (unsigned long long)s->ino,
                      (unsigned long long)s->parent, s->mode, s->result, (unsigned long long)s->size, s->name);
    }
}

/* A mount that only reads keeps to itself what was used: the next counts idle time from before, so it is asked as well. */
static bool has_expired(const struct seen *s, struct larder *l, bool read_only)
{
    const struct node *n;
    bool expired;

    lock_take(&l->lock);
    n = tree_node(l->tree, s->ino);
    expired = s->deadline_ns <= cache_now(l) || (read_only && n && cache_is_expired(l, n, NULL));
    lock_give(&l->lock);
    return expired;
}

/* after must show nothing that before did not, and all that could be read if nothing was to be taken away. A mount that
 * only reads cannot say that a key was found damaged, so the next finds it so again. A damaged ttl can be less than the
 * time between two walks. */
static void compare(const struct walk *before, const struct walk *after, bool all, bool read_only)
{
    if (before->cut || after->cut)
        return;
    for (unsigned i = 0; i < after->count; i++) {
        const struct seen *a = &after->seen[i], *b = find_seen(before, a);
        if (!b && read_only && a->result < 0)
            continue;
        FUZZ_CHECK(b);
        FUZZ_CHECK(b->ino == a->ino && b->mode == a->mode);
        FUZZ_CHECK(b->result < 0 || a->result < 0 || (b->size == a->size && b->sum == a->sum));
        FUZZ_CHECK(!all || b->result < 0 || a->result == 0 || a->result == -ESTALE || a->result == -ENOENT);
    }
    for (unsigned i = 0; all && i < before->count; i++) {
        const struct seen *b = &before->seen[i];
        FUZZ_CHECK(b->result < 0 || find_seen(after, b) || has_expired(b, after->l, read_only));
    }
}

void fuzz_exercise(unsigned flags)
{
    static struct walk first, second;
    struct watch watch = {0};
    struct larder *l;
    bool away;

    if (!first.seen) {
        first.seen = calloc(SEEN_MAX, sizeof(*first.seen));
        second.seen = calloc(SEEN_MAX, sizeof(*second.seen));
        FUZZ_CHECK(first.seen && second.seen);
    }
    if (flags & FUZZ_INSPECT)
        inspect(false);
    l = mount_store(flags, &watch);
    if (!l)
        return;
    first.check_known = true;
    walk_all(&first, l);
    first.check_known = false;
    if (flags & FUZZ_CHANGE)
        change(&first, l);
    if (flags & FUZZ_CLEAN && !(flags & FUZZ_READ_ONLY)) {
        (void)work_checkpoint(l, false); /* no room for it: the journal is enough */
        for (unsigned i = 0; i < 4 && work_clean_segment(l) > 0; i++)
            ;
    }
    walk_all(&first, l);
    away = took_away(l);
    if (!(flags & FUZZ_READ_ONLY))
        ask_for_hidden(l);
    FUZZ_CHECK_OK(larder_close(l));
    if (flags & FUZZ_INSPECT && !(flags & FUZZ_READ_ONLY))
        inspect(!first.cut);
    watch.logs = 0;
    l = mount_store(flags & ~(unsigned)FUZZ_SMALL_QUOTA, &watch);
    FUZZ_CHECK(l);
    walk_all(&second, l);
    print_walk("before", &first);
    print_walk("after", &second);
    compare(&first, &second, !away && !took_away(l), flags & FUZZ_READ_ONLY);
    FUZZ_CHECK_OK(larder_close(l));
}
