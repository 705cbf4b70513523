/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect: opens a store at rest and lists what is in it, for inspect_check.c and inspect_dump.c.
 *
 * The store's lock is held while it is looked at, so that no daemon changes it underneath. Nothing is written;
 * symbolic links, devices and directories under our names are told, not followed.
 */
#include "inspect_internal.h"

#include "store_identity.h"

#include <fcntl.h>
#include <stdio.h>

#define ST_BLOCK_BYTES 512u
/* Ours are three levels deep; how far into what somebody else put there is looked, for what it takes. */
#define FOUND_LEVEL_MAX 16
#define FOUND_PATH_BYTES 4096u

static int inspect_lock(struct inspect *in, struct errtext *err)
{
    char pid[32] = "";
    size_t got = 0;
    int r;

    in->lock_fd = io_open(in->io, in->dir_fd, "LOCK", O_RDONLY | O_NONBLOCK, 0);
    if (in->lock_fd == -ENOENT) {
        in->lock_fd = -1; /* no daemon has ever run here, or its lock was removed: nothing to hold */
        return 0;
    }
    if (in->lock_fd < 0) {
        r = in->lock_fd;
        in->lock_fd = -1;
        return errtext(err, r, "store %s: LOCK: %s", in->path, strerror(-r));
    }
    r = io_lock(in->io, in->lock_fd);
    if (r != -EWOULDBLOCK)
        return r < 0 ? errtext(err, r, "store %s: LOCK: %s", in->path, strerror(-r)) : 0;
    (void)io_read_upto(in->io, in->lock_fd, pid, sizeof(pid) - 1, 0, &got); /* nothing read: unknown */
    pid[strspn(pid, "0123456789")] = '\0';
    return errtext(err, -EBUSY, "store %s: in use by process %s; unmount that larder first", in->path,
                   pid[0] ? pid : "(unknown)");
}

static int inspect_superblock(struct inspect *in, struct errtext *err)
{
    uint8_t raw[DISK_SUPERBLOCK_BYTES];
    int fd, r;

    fd = io_open(in->io, in->dir_fd, "FORMAT", O_RDONLY | O_NONBLOCK, 0);
    if (fd == -ENOENT)
        return fd;
    if (fd < 0)
        return errtext(err, fd, "store %s: FORMAT: %s", in->path, strerror(-fd));
    r = io_read_full(in->io, fd, raw, sizeof(raw), 0);
    io_close(in->io, fd);
    if (r == 0)
        r = format_superblock_unpack(raw, &in->sb);
    if (r == -EPROTONOSUPPORT)
        return errtext(err, r, "store %s: has format version %u, this larder knows %u; use the newer larder",
                       in->path, in->sb.version, FORMAT_VERSION);
    if (r == -ENODATA || r == -EBADMSG)
        return -EBADMSG;
    return r < 0 ? errtext(err, r, "store %s: FORMAT: %s", in->path, strerror(-r)) : 0;
}

int inspect_identify(struct inspect *in, struct errtext *err)
{
    int learnt, r = inspect_superblock(in, err);

    if (r != -ENOENT && r != -EBADMSG)
        return r;
    in->format_lost = r == -ENOENT ? "is missing" : "is damaged";
    learnt = store_learn_identity(in->io, in->dir_fd, in->sb.store_id, &in->format_witnesses);
    if (learnt == -EPROTONOSUPPORT)
        return errtext(err, learnt, "store %s: FORMAT %s, and its files are of a newer format than %u; use the newer larder",
                       in->path, in->format_lost, FORMAT_VERSION);
    if (learnt == -ENOENT && r == -ENOENT)
        return errtext(err, r, "store %s: is no larder store (it has no FORMAT file)", in->path);
    if (learnt == -ENOENT)
        return errtext(err, r,
                       "store %s: FORMAT is damaged, and no other file says whose store it is: nothing in it can be "
                       "verified, and the next mount will start it afresh",
                       in->path);
    return learnt < 0 ? errtext(err, learnt, "store %s: FORMAT: %s", in->path, strerror(-learnt)) : 0;
}

int inspect_find(const char *path, bool even_if_busy, struct inspect_source *ret_source, struct errtext *err)
{
    struct inspect_source source = {.io = &io_posix, .path = path, .even_if_busy = even_if_busy};

    source.dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (source.dir_fd < 0) {
        int r = -errno;

        return errtext(err, r, "store %s: %s", path,
                       r == -ELOOP ? "is a symbolic link; name the directory it leads to" : strerror(-r));
    }
    boot_id_read(source.boot_id);
    *ret_source = source;
    return 0;
}

int inspect_open_on(const struct inspect_source *source, struct inspect *ret_in, struct errtext *err)
{
    struct inspect in = {.io = source->io, .path = source->path, .dir_fd = source->dir_fd, .lock_fd = -1};
    int r;

    memcpy(in.boot_id, source->boot_id, sizeof(in.boot_id));
    r = inspect_identify(&in, err); /* before the lock: "no larder store" is the better answer for any directory */
    if (r == 0 && !source->even_if_busy)
        r = inspect_lock(&in, err);
    if (r < 0) {
        inspect_close(&in);
        return r;
    }
    *ret_in = in;
    return 0;
}

void inspect_close(struct inspect *in)
{
    io_close(in->io, in->lock_fd);
    io_close(in->io, in->dir_fd);
    in->lock_fd = in->dir_fd = -1;
}

/* ---- what is there ---- */

static int found_compare(const void *a, const void *b)
{
    const struct found *x = a, *y = b;

    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return (x->no > y->no) - (x->no < y->no);
}

static int found_push(struct found_list *list, const struct found *row)
{
    if (list->count == list->allocated) {
        size_t room = MAX(list->allocated * 2, (size_t)64);
        struct found *rows = reallocarray(list->rows, room, sizeof(*rows));

        if (!rows)
            return -ENOMEM;
        list->rows = rows;
        list->allocated = room;
    }
    list->rows[list->count++] = *row;
    return 0;
}

/* big/XX/XXXXXXXXXXXXXXXX, in the one spelling larder uses. */
static bool big_name_parse(const char *relative, uint64_t *ret_id)
{
    char canonical[FORMAT_NAME_BYTES];
    const char *name = strrchr(relative, '/');
    char *end;
    uint64_t id;

    if (!name || strlen(name + 1) != 16)
        return false;
    id = strtoull(name + 1, &end, 16);
    format_big_name(canonical, id);
    if (*end || id == 0 || strcmp(canonical, relative) != 0)
        return false;
    *ret_id = id;
    return true;
}

static bool is_big_dir(const char *relative, int level)
{
    if (level == 1)
        return strcmp(relative, "big") == 0;
    return level == 2 && strncmp(relative, "big/", 4) == 0 && strlen(relative) == 6 &&
           strspn(relative + 4, "0123456789abcdef") == 2;
}

static bool found_is_plumbing(const char *relative)
{
    return strcmp(relative, "LOCK") == 0 || strcmp(relative, "FORMAT") == 0 ||
           strcmp(relative, "CACHEDIR.TAG") == 0 || strcmp(relative, "lost+found") == 0;
}

static int found_classify(struct found_list *list, const char *relative, const struct stat *st, int level)
{
    struct found row = {.kind = FOUND_FOREIGN,
                        .size_bytes = (uint64_t)st->st_size,
                        .disk_bytes = (uint64_t)st->st_blocks * ST_BLOCK_BYTES};
    uint32_t no = 0;

    if (S_ISDIR(st->st_mode) ? is_big_dir(relative, level) : false)
        return 0;
    if (found_is_plumbing(relative))
        return 0;
    if (S_ISREG(st->st_mode)) {
        if (format_name_parse(relative, "journal-", &no))
            row.kind = FOUND_JOURNAL;
        else if (format_name_parse(relative, "index-", &no))
            row.kind = FOUND_INDEX;
        else if (format_name_parse(relative, "seg-", &no))
            row.kind = FOUND_SEGMENT;
        row.no = no;
        if (no == 0 && big_name_parse(relative, &row.no))
            row.kind = FOUND_BIG;
    }
    if (row.kind == FOUND_FOREIGN) {
        row.name = strdup(relative);
        if (!row.name)
            return -ENOMEM;
    }
    return found_push(list, &row);
}

struct found_walk {
    const struct inspect *in;
    struct found_list *list;
    dev_t device; /* of the store; what is mounted below it is not looked into */
    struct errtext *err;
    const char *parent; /* relative, "" at the top */
    int dir_fd, level;
};

static int found_walk_dir(const struct found_walk *walk, const char *name, const char *relative);

static int found_visit(void *ctx, const char *name) /* io_visit */
{
    const struct found_walk *walk = ctx;
    char relative[FOUND_PATH_BYTES];
    struct stat st;
    int r, length;

    length = snprintf(relative, sizeof(relative), "%s%s%s", walk->parent, walk->parent[0] ? "/" : "", name);
    if ((size_t)length >= sizeof(relative))
        return 0; /* nothing of ours is this deep, and it was told where it begins */
    r = io_stat_at(walk->in->io, walk->dir_fd, name, &st);
    if (r == -ENOENT)
        return 0; /* gone meanwhile: a busy store that is inspected all the same */
    if (r < 0)
        return errtext(walk->err, r, "store: %s: %s", relative, strerror(-r));
    walk->list->disk_bytes += (uint64_t)st.st_blocks * ST_BLOCK_BYTES;
    r = found_classify(walk->list, relative, &st, walk->level);
    if (r == 0 && S_ISDIR(st.st_mode) && st.st_dev == walk->device && walk->level < FOUND_LEVEL_MAX)
        r = found_walk_dir(walk, name, relative);
    return r;
}

static int found_walk_dir(const struct found_walk *walk, const char *name, const char *relative)
{
    struct found_walk below = *walk;
    int r;

    below.parent = relative;
    below.level++;
    below.dir_fd = io_open(walk->in->io, walk->dir_fd, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK, 0);
    if (below.dir_fd == -ENOENT)
        return 0;
    if (below.dir_fd < 0)
        return errtext(walk->err, below.dir_fd, "store: %s: %s", relative, strerror(-below.dir_fd));
    r = io_list(walk->in->io, below.dir_fd, found_visit, &below);
    io_close(walk->in->io, below.dir_fd);
    return r;
}

int found_scan(const struct inspect *in, struct found_list *ret_list, struct errtext *err)
{
    struct found_list list = {0};
    struct found_walk walk = {.in = in, .list = &list, .err = err, .parent = "", .dir_fd = in->dir_fd, .level = 1};
    struct stat st;
    int r;

    r = io_stat(in->io, in->dir_fd, &st);
    if (r == 0) {
        walk.device = st.st_dev;
        list.disk_bytes = (uint64_t)st.st_blocks * ST_BLOCK_BYTES;
        r = io_list(in->io, in->dir_fd, found_visit, &walk);
    }
    if (r < 0) {
        found_fini(&list);
        return err->text[0] ? r : errtext(err, r, "store %s: listing it: %s", in->path, strerror(-r));
    }
    if (list.count > 0)
        qsort(list.rows, list.count, sizeof(*list.rows), found_compare);
    *ret_list = list;
    return 0;
}

void found_fini(struct found_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->rows[i].name);
    free(list->rows);
    *list = (struct found_list){0};
}

struct found *found_find(const struct found_list *list, enum found_kind kind, uint64_t no)
{
    struct found key = {.kind = kind, .no = no};

    return list->count == 0 ? NULL
                            : bsearch(&key, list->rows, list->count, sizeof(*list->rows), found_compare);
}

void found_name(const struct found *f, char out[FOUND_NAME_BYTES])
{
    switch (f->kind) {
    case FOUND_JOURNAL:
        format_name(out, "journal-", (uint32_t)f->no);
        break;
    case FOUND_INDEX:
        format_name(out, "index-", (uint32_t)f->no);
        break;
    case FOUND_SEGMENT:
        format_name(out, "seg-", (uint32_t)f->no);
        break;
    case FOUND_BIG:
        format_big_name(out, f->no);
        break;
    case FOUND_FOREIGN:
        (void)inspect_escape(f->name, strlen(f->name), out, FOUND_NAME_BYTES);
        break;
    }
}

size_t inspect_escape(const char *text, size_t bytes, char *out, size_t out_bytes)
{
    size_t used = 0;

    assert(out_bytes > 0);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool plain = c > 0x20 && c < 0x7f && c != '\\';

        if (used + (plain ? 1 : 4) >= out_bytes)
            break;
        if (plain)
            out[used++] = (char)c;
        else
            used += (size_t)snprintf(out + used, out_bytes - used, "\\%03o", c);
    }
    out[used] = '\0';
    return used;
}
