/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_xattr: a sequence of xattr operations on the nodes of a store, with a model of the ordinary ones beside it, and
 * nodes whose stored xattrs are the input.
 *
 * Byte 0: how many bytes of the input are xattrs as stored (times 4), of a node planted in the journal. The rest are
 * operations: a byte what, a byte which node and name, then name and value. In the end the store is closed, opened
 * again, and must still say the same.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "cache.h"
#include "fuzz_store.h"

#define NODES 4u
#define MODEL_MAX 32u
#define PLANTED_ID (7ull << 32 | 7)

struct pair {
    unsigned node;
    char name[XATTR_NAME_BYTES_MAX + 1];
    uint8_t value[256];
    size_t bytes;
};

static struct {
    struct larder *l;
    uint64_t nodes[NODES];
    struct pair pairs[MODEL_MAX];
    unsigned count;
    bool full; /* more than the model can tell: nothing is compared any more */
} fz;

static struct pair *model_find(unsigned node, const char *name)
{
    for (unsigned i = 0; i < fz.count; i++)
        if (fz.pairs[i].node == node && strcmp(fz.pairs[i].name, name) == 0)
            return &fz.pairs[i];
    return NULL;
}

static bool is_ordinary(const char *name)
{
    return strncmp(name, "user.", 5) == 0 && strncmp(name, "user.larder.", 12) != 0;
}

static void model_set(unsigned node, const char *name, const void *value, size_t bytes)
{
    struct pair *p = model_find(node, name);

    if (!p && fz.count == MODEL_MAX) {
        fz.full = true;
        return;
    }
    if (!p)
        p = &fz.pairs[fz.count++];
    p->node = node;
    (void)snprintf(p->name, sizeof(p->name), "%s", name);
    p->bytes = bytes;
    if (bytes > 0)
        memcpy(p->value, value, bytes);
}

static void model_check(void)
{
    for (unsigned i = 0; i < fz.count && !fz.full; i++) {
        uint8_t value[256];
        size_t bytes;
        FUZZ_CHECK_OK(larder_getxattr(fz.l, fz.nodes[fz.pairs[i].node], fz.pairs[i].name, value, sizeof(value), &bytes));
        FUZZ_CHECK(bytes == fz.pairs[i].bytes && memcmp(value, fz.pairs[i].value, bytes) == 0);
    }
}

/* Every listed name can be read; none is listed twice of those we set. */
static void read_all(uint64_t node)
{
    char list[8192], value[4096];
    size_t bytes, got;
    int r = larder_listxattr(fz.l, node, list, sizeof(list), &bytes);

    FUZZ_CHECK(r == 0 || r == -ERANGE || r == -ESTALE);
    for (size_t at = 0; r == 0 && at < bytes; at += strnlen(list + at, bytes - at) + 1) {
        FUZZ_CHECK(memchr(list + at, 0, bytes - at));
        FUZZ_CHECK(strncmp(list + at, "user.larder.", 12) != 0);
        int g = larder_getxattr(fz.l, node, list + at, value, sizeof(value), &got);
        FUZZ_CHECK(g == 0 || g == -ERANGE || g == -EOPNOTSUPP);
    }
}

static void take_text(struct fuzz_in *in, char *out, size_t out_bytes)
{
    static const char *const names[] = {"user.larder.ttl", "user.larder.idle", "user.larder.expires", "user.larder.pin",
                                        "user.larder.compress", "user.larder.hits", "user.larder.stats", "user.a",
                                        "user.b", "security.capability", "trusted.x", "system.posix_acl_access", "user."};
    uint8_t which = fuzz_u8(in);
    size_t got;
    const uint8_t *said;

    if (which < 0xc0) {
        (void)snprintf(out, out_bytes, "%s", names[which % (sizeof(names) / sizeof(names[0]))]);
        return;
    }
    said = fuzz_take(in, which & 0x3f, &got);
    (void)snprintf(out, out_bytes, "user.%.*s", (int)got, (const char *)said);
}

static void one_operation(struct fuzz_in *in)
{
    unsigned what = fuzz_u8(in), node = fuzz_u8(in) % NODES;
    char name[XATTR_NAME_BYTES_MAX + 1], out[4096];
    const uint8_t *value;
    struct pair *p;
    size_t bytes;
    int r;

    take_text(in, name, sizeof(name));
    value = fuzz_take(in, what & 0x20 ? fuzz_u8(in) : fuzz_u8(in) % 16, &bytes);
    p = model_find(node, name);
    switch (what % 4) {
    case 0:
    case 1:
        r = larder_setxattr(fz.l, fz.nodes[node], name, value, bytes, what & 0x40 ? XATTR_CREATE : what & 0x80 ? XATTR_REPLACE : 0);
        if (r == 0 && !is_ordinary(name))
            fz.full = true; /* it may have expired */
        if (r == 0 && is_ordinary(name))
            model_set(node, name, value, bytes);
        FUZZ_CHECK(r <= 0);
        break;
    case 2:
        r = larder_removexattr(fz.l, fz.nodes[node], name);
        FUZZ_CHECK(fz.full || !is_ordinary(name) || node == NODES - 1 || (r == 0) == (p != NULL));
        if (r == 0 && p)
            *p = fz.pairs[--fz.count];
        break;
    default:
        r = larder_getxattr(fz.l, fz.nodes[node], name, out, what & 0x10 ? 0 : sizeof(out), &bytes);
        FUZZ_CHECK(r < 0 || bytes <= XATTR_VALUE_BYTES_MAX);
    }
}

static void plant(const uint8_t *tlv, size_t bytes)
{
    struct journal_header header = {.file_no = 2, .first_seq = 1};
    uint8_t raw[DISK_JOURNAL_HEADER_BYTES], body[DISK_ENTRY_HEADER_BYTES + DISK_NODE_BYTES] = {0};
    struct fuzz_buffer log = {0};
    struct record_buffer rb = {0};
    struct node_image root = {.id = LARDER_ROOT, .mode = S_IFDIR | 0755, .ttl_ns = POLICY_UNSET, .idle_ns = POLICY_UNSET,
                              .expires_ns = POLICY_UNSET, .pin = POLICY_BYTE_UNSET, .compress = POLICY_BYTE_UNSET};
    struct name_image name = {.parent = LARDER_ROOT, .node = PLANTED_ID, .name = "planted", .name_bytes = 7};
    struct fuzz_buffer entry = {0};

    header.file_no = 1;
    memcpy(header.store_id, fuzz_store_id, sizeof(fuzz_store_id));
    format_journal_header_pack(&header, raw);
    (void)fuzz_buffer_add(&log, raw, sizeof(raw));
    FUZZ_CHECK_OK(record_begin(&rb));
    FUZZ_CHECK_OK(record_add_node(&rb, &root));
    /* Not by record_add_node, which writes nothing that is not right. */
    write_le32(body, (uint32_t)(ENTRY_NODE | (DISK_NODE_BYTES + bytes) << 8));
    write_le64(body + 4, PLANTED_ID);
    write_le32(body + 4 + 8, S_IFREG | 0644);
    memset(body + 4 + 128, 0xff, 26);
    (void)fuzz_buffer_add(&entry, rb.data, rb.used);
    (void)fuzz_buffer_add(&entry, body, sizeof(body));
    (void)fuzz_buffer_add(&entry, tlv, bytes);
    rb.data = realloc(rb.data, entry.used + 1024);
    FUZZ_CHECK(rb.data);
    memcpy(rb.data, entry.data, entry.used);
    rb.used = entry.used;
    rb.allocated = entry.used + 1024;
    rb.entry_count++;
    FUZZ_CHECK_OK(record_add_name(&rb, &name));
    record_finish(&rb, 1, format_journal_seed(&header));
    (void)fuzz_buffer_add(&log, rb.data, rb.used);
    fuzz_store_put("journal-00000001", log.data, log.used);
    record_buffer_fini(&rb);
    fuzz_buffer_fini(&log);
    fuzz_buffer_fini(&entry);
}

static void open_store(void)
{
    static const char *const names[NODES] = {"dir", "file", "link", "planted"};
    const struct larder_cred cred = {.uid = 0};
    struct larder_options opts;
    struct errtext err = {""};

    larder_options_init(&opts);
    opts.quota_bytes = 64 * MIB;
    FUZZ_CHECK_OK(fuzz_mount(&opts, NULL, &fz.l, &err));
    for (unsigned i = 0; i < NODES; i++) {
        struct larder_attr attr;
        int r = larder_lookup(fz.l, LARDER_ROOT, names[i], strlen(names[i]), &attr);
        if (r < 0 && i == 0)
            r = larder_mkdir(fz.l, LARDER_ROOT, names[i], 3, 0755, &cred, &attr);
        else if (r < 0 && i == 2)
            r = larder_symlink(fz.l, LARDER_ROOT, names[i], 4, "target", &cred, &attr);
        else if (r < 0)
            r = larder_mknod(fz.l, LARDER_ROOT, names[i], strlen(names[i]), S_IFREG | 0600, 0, &cred, &attr);
        FUZZ_CHECK_OK(r);
        fz.nodes[i] = attr.ino;
    }
}

static void close_store(void)
{
    for (unsigned i = 0; i < NODES; i++)
        larder_forget(fz.l, fz.nodes[i], 1);
    FUZZ_CHECK_OK(larder_close(fz.l));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const uint8_t seeds[][64] = {
        "\0\0\1\7\3abc\0\1\1\10\2xy\2\1\7\0\3\1\7\0\3\1\10\0",
        "\0\0\1\0\0031h\0\0\2\1\0024w\0\0\0\2\0031700\0\1\3\1\0011",
        "\5\2\6\0\0\3\0\0\0user.abcd\0\0\0\0\0\0\3\3\7\0\0\3\10\2zz",
        "\0\40\1\305hello\40value value value value value\3\1\305hello\0",
    };

    (void)argc;
    (void)argv;
    fuzz_store_init();
    fuzz_seed_table(&seeds[0][0], sizeof(seeds) / sizeof(seeds[0]), sizeof(seeds[0]));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fuzz_in in = {.data = data, .left = bytes};
    size_t planted = fuzz_u8(&in) * 4u;
    const uint8_t *tlv = fuzz_take(&in, planted, &planted);

    fz.count = 0;
    fz.full = false;
    fuzz_store_reset(false);
    plant(tlv, planted);
    open_store();
    for (unsigned i = 0; i < NODES; i++)
        read_all(fz.nodes[i]);
    for (unsigned i = 0; i < 64 && in.left > 0; i++)
        one_operation(&in);
    model_check();
    close_store();
    open_store();
    model_check();
    for (unsigned i = 0; i < NODES; i++)
        read_all(fz.nodes[i]);
    close_store();
    return 0;
}
