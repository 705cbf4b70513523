/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_store: the store of a target: a disk in memory, and the template, which the engine itself makes once per process:
 * a few values of every kind, in a store whose id is fixed, so that places and checksums are the same in every run.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cache.h"
#include "fuzz_store.h"

#define KNOWN_MAX 64u
#define FUZZ_WALL_NS (1770000000ull * NS_PER_S)
#define BIG_BYTES 8192u

const uint8_t fuzz_store_id[16] = "larder-fuzz-seed";

static struct {
    struct memdisk *disk;                /* of this input */
    struct memdisk *bare, *with_payload; /* what it is a clone of */
    _Atomic uint64_t now_ns;             /* the clock; it moves with every look at it */
    struct fuzz_known known[KNOWN_MAX];
    unsigned known_count, template_count; /* of which so many are the template's */
    unsigned choice_count;                /* and so many are values of its index */
    struct fuzz_buffer journal, index;
} fuzz;

/* ---- the disk ---- */

struct memdisk *fuzz_disk(void)
{
    return fuzz.disk;
}

void fuzz_store_put(const char *name, const void *data, size_t bytes)
{
    FUZZ_CHECK_OK(memdisk_write_file(fuzz.disk, name, data, bytes));
}

static void put_format(void)
{
    struct superblock sb = {.version = FORMAT_VERSION, .created_ns = 1};
    uint8_t raw[DISK_SUPERBLOCK_BYTES];

    memcpy(sb.store_id, fuzz_store_id, sizeof(sb.store_id));
    format_superblock_pack(&sb, raw);
    fuzz_store_put("FORMAT", raw, sizeof(raw));
    fuzz_store_put("CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n", 44);
}

void fuzz_store_reset(bool with_payload)
{
    memdisk_free(fuzz.disk);
    fuzz.disk = memdisk_clone(with_payload ? fuzz.with_payload : fuzz.bare);
    fuzz.now_ns = 0;
    while (fuzz.known_count > fuzz.template_count)
        free(fuzz.known[--fuzz.known_count].bytes);
}

/* ---- mounting and looking into it ---- */

static uint64_t read_mono(void *ctx)
{
    (void)ctx;
    return atomic_fetch_add(&fuzz.now_ns, 1000) + NS_PER_S;
}

static uint64_t read_wall(void *ctx)
{
    return read_mono(ctx) + FUZZ_WALL_NS;
}

static const struct clock_ops fuzz_clock = {.mono_ns = read_mono, .wall_ns = read_wall};

int fuzz_mount(const struct larder_options *opts, const struct larder_callbacks *callbacks, struct larder **ret_larder,
               struct errtext *err)
{
    struct cache_host host = {.io = memdisk_io(fuzz.disk),
                              .dir_fd = memdisk_open_root(fuzz.disk),
                              .clock_ops = &fuzz_clock,
                              .boot_id = "one boot of many"};

    return cache_open_on(&host, "fuzzed", opts, callbacks, ret_larder, err);
}

struct larder *fuzz_mount_whole(const struct larder_options *opts)
{
    struct errtext err = {""};
    struct larder *l;

    FUZZ_CHECK_OK(fuzz_mount(opts, NULL, &l, &err));
    return l;
}

struct inspect_source fuzz_inspect_source(void)
{
    return (struct inspect_source){.io = memdisk_io(fuzz.disk),
                                   .dir_fd = memdisk_open_root(fuzz.disk),
                                   .path = "fuzzed",
                                   .boot_id = "one boot of many"};
}

/* ---- what is known ---- */

const struct fuzz_known *fuzz_known(size_t index)
{
    return &fuzz.known[index % fuzz.choice_count];
}

void fuzz_know(uint64_t node_id, const struct value *v, const void *bytes, size_t size)
{
    struct fuzz_known *k = &fuzz.known[fuzz.known_count];

    if (fuzz.known_count == KNOWN_MAX)
        return;
    *k = (struct fuzz_known){.node_id = node_id, .value = *v, .size = size, .bytes = malloc(size + 1)};
    FUZZ_CHECK(k->bytes);
    if (size > 0)
        memcpy(k->bytes, bytes, size);
    fuzz.known_count++;
}

bool fuzz_is_known(uint64_t node_id, const void *bytes, size_t size)
{
    for (unsigned i = 0; i < fuzz.known_count; i++) {
        const struct fuzz_known *k = &fuzz.known[i];
        bool is_raw = k->value.kind == VALUE_RAW; /* a raw file does not say whose it is */

        if ((is_raw || k->node_id == node_id) && k->size == size && memcmp(k->bytes, bytes, size) == 0)
            return true;
    }
    return false;
}

/* ---- the template ---- */

static void fill(uint8_t *out, size_t bytes, bool compressible)
{
    uint32_t x = 12345;

    for (size_t i = 0; i < bytes; i++) {
        x = x * 1664525u + 1013904223u;
        out[i] = compressible ? (uint8_t)('a' + i / 7 % 13) : (uint8_t)(x >> 24);
    }
}

static void template_file(struct larder *l, uint64_t parent, const char *name, size_t bytes, bool compressible)
{
    const struct larder_cred cred = {.uid = 1000, .gid = 1000, .umask = 022};
    uint8_t *data = malloc(bytes + 1);
    struct larder_attr attr;
    struct larder_file *f;
    struct value v;

    FUZZ_CHECK(data);
    fill(data, bytes, compressible);
    FUZZ_CHECK_OK(larder_create(l, parent, name, strlen(name), 0644, O_RDWR, &cred, &attr, &f));
    if (bytes > 0)
        FUZZ_CHECK_OK(larder_write(f, data, bytes, 0, false));
    FUZZ_CHECK_OK(larder_fsync(f, false));
    larder_release(f);
    FUZZ_CHECK_OK(larder_sync(l));
    node_value(l->tree, tree_node(l->tree, attr.ino), &v);
    fuzz_know(attr.ino, &v, data, bytes);
    larder_forget(l, attr.ino, 1);
    free(data);
}

static void template_names(struct larder *l)
{
    const struct larder_cred cred = {.uid = 0, .gid = 0, .umask = 022};
    struct larder_attr dir, sub, attr;

    FUZZ_CHECK_OK(larder_mkdir(l, LARDER_ROOT, "d", 1, 0755, &cred, &dir));
    FUZZ_CHECK_OK(larder_mkdir(l, dir.ino, "e", 1, 02775, &cred, &sub));
    template_file(l, LARDER_ROOT, "small", 5, false);
    template_file(l, LARDER_ROOT, "packed small", 6000, true);
    template_file(l, dir.ino, "three", 3000, false);
    template_file(l, dir.ino, "raw", 10000, false);
    template_file(l, sub.ino, "packed", 150000, true);
    template_file(l, sub.ino, "empty", 0, false);
    FUZZ_CHECK_OK(larder_symlink(l, LARDER_ROOT, "link", 4, "d/three", &cred, &attr));
    FUZZ_CHECK_OK(larder_mknod(l, sub.ino, "fifo", 4, S_IFIFO | 0600, 0, &cred, &attr));
    FUZZ_CHECK_OK(larder_mknod(l, sub.ino, "null", 4, S_IFCHR | 0600, 0x103, &cred, &attr));
    FUZZ_CHECK_OK(larder_lookup(l, LARDER_ROOT, "small", 5, &attr));
    FUZZ_CHECK_OK(larder_link(l, attr.ino, sub.ino, "hard", 4, &attr));
    FUZZ_CHECK_OK(larder_setxattr(l, attr.ino, "user.colour", "blue", 4, 0));
    FUZZ_CHECK_OK(larder_setxattr(l, attr.ino, "user.larder.pin", "1", 1, 0));
    FUZZ_CHECK_OK(larder_setxattr(l, dir.ino, "user.larder.ttl", "10d", 3, 0));
    FUZZ_CHECK_OK(larder_rename(l, LARDER_ROOT, "link", 4, dir.ino, "moved", 5, 0, &cred));
    template_file(l, LARDER_ROOT, "gone", 100, true);
    FUZZ_CHECK_OK(larder_unlink(l, LARDER_ROOT, "gone", 4));
}

static void take_file(const char *name, struct fuzz_buffer *b)
{
    FUZZ_CHECK_OK(memdisk_read_file(fuzz.disk, name, &b->data, &b->used));
}

/* An index that lies may call a packed file raw and changed in place: then its bytes are what they are. */
static void know_files(void)
{
    const struct value raw = {.kind = VALUE_RAW};
    unsigned count = fuzz.known_count;

    for (unsigned i = 0; i < count; i++) {
        char name[FORMAT_NAME_BYTES];
        uint8_t *data;
        size_t bytes;
        if (fuzz.known[i].value.kind != VALUE_PACKED)
            continue;
        format_big_name(name, fuzz.known[i].value.big_id);
        FUZZ_CHECK_OK(memdisk_read_file(fuzz.disk, name, &data, &bytes));
        fuzz_know(0, &raw, data, bytes);
        free(data);
    }
}

static void drop_log(const char *name)
{
    memdisk_put_name(fuzz.with_payload, MEMDISK_ROOT, name, 0);
    memdisk_settle(fuzz.with_payload);
}

static void make_template(void)
{
    struct larder_options opts;
    struct errtext err = {""};
    struct larder *l;

    larder_options_init(&opts);
    opts.quota_bytes = 64 * MIB;
    opts.big_bytes = BIG_BYTES;
    FUZZ_CHECK_OK(fuzz_mount(&opts, NULL, &l, &err));
    template_names(l);
    fuzz.choice_count = fuzz.known_count;
    know_files();
    fuzz.template_count = fuzz.known_count;
    take_file("journal-00000001", &fuzz.journal);
    fuzz.with_payload = memdisk_clone(fuzz.disk);
    FUZZ_CHECK_OK(work_checkpoint(l, false));
    take_file("index-00000001", &fuzz.index);
    FUZZ_CHECK_OK(larder_close(l));
    drop_log("journal-00000001");
    drop_log("LOCK");
}

void fuzz_seed_log(const char *which, struct fuzz_buffer *ret_bytes)
{
    const struct fuzz_buffer *b = strcmp(which, "index") == 0 ? &fuzz.index : &fuzz.journal;

    ret_bytes->used = 0;
    (void)fuzz_buffer_add(ret_bytes, b->data, b->used);
}

void fuzz_store_init(void)
{
    if (fuzz.bare)
        return;
    fuzz.disk = memdisk_new();
    put_format();
    FUZZ_CHECK_OK(memdisk_plant(fuzz.disk, "big", S_IFDIR | 0700, NULL, 0));
    FUZZ_CHECK_OK(memdisk_plant(fuzz.disk, "big/00", S_IFDIR | 0700, NULL, 0));
    fuzz.bare = memdisk_clone(fuzz.disk);
    make_template();
}
