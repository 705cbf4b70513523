/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Goal: what format.c packs it unpacks the same, and bytes it did not pack are refused, never trusted.
 * Method: round trips of every structure; every byte flipped; entries mutated at random behind a good
 * checksum, under a sanitizer; a model of nothing but "no crash, and a legal view" for those.
 */
#include "check.h"
#include "format.h"

#include <sys/stat.h>

static const uint8_t store_id[16] = "0123456789abcdef";
static const uint8_t boot_id[16] = "bootbootbootboot";

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static struct value segment_value(void)
{
    return (struct value){.kind = VALUE_SEGMENT,
                          .codec = CODEC_LZ4,
                          .size_bytes = 5000,
                          .stored_bytes = 4000,
                          .place = {.segment_no = 7, .offset = 4096},
                          .big_id = 99}; /* means nothing here: must not reach the disk */
}

static struct value raw_value(void)
{
    return (struct value){.kind = VALUE_RAW,
                          .size_bytes = 1 << 30,
                          .stored_bytes = 1 << 30,
                          .big_id = 0x1234,
                          .sums_place = {.segment_no = 3, .offset = 64},
                          .sums_bytes = 800};
}

static struct node_image file_node(void)
{
    return (struct node_image){.id = 5ull << 32 | 9,
                               .mode = S_IFREG | 0644,
                               .uid = 1000,
                               .gid = 1001,
                               .hits = 3,
                               .atime_ns = -1,
                               .mtime_ns = 2,
                               .ctime_ns = INT64_MIN,
                               .btime_ns = INT64_MAX,
                               .written_ns = 77,
                               .used_ns = 78,
                               .value = segment_value(),
                               .ttl_ns = POLICY_UNSET,
                               .idle_ns = POLICY_NEVER,
                               .expires_ns = 12,
                               .pin = POLICY_BYTE_UNSET,
                               .compress = COMPRESS_LZ4};
}

static void test_superblock(void)
{
    struct superblock sb = {.created_ns = 42}, back;
    uint8_t bytes[DISK_SUPERBLOCK_BYTES];

    memcpy(sb.store_id, store_id, 16);
    format_superblock_pack(&sb, bytes);
    CHECK_OK(format_superblock_unpack(bytes, &back));
    CHECK_EQ(back.created_ns, 42);
    CHECK(memcmp(back.store_id, store_id, 16) == 0);
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] ^= 0x41;
        CHECK_EQ(format_superblock_unpack(bytes, &back), -EBADMSG); /* a damaged version is not a newer one */
        bytes[i] ^= 0x41;
    }
    CHECK_OK(format_superblock_unpack(bytes, &back));
}

static void test_journal_header(void)
{
    struct journal_header h = {.is_index = true, .file_no = 8, .first_seq = 1, .replay_from_no = 5}, back;
    uint8_t bytes[DISK_JOURNAL_HEADER_BYTES];

    memcpy(h.store_id, store_id, 16);
    format_journal_header_pack(&h, bytes);
    CHECK_OK(format_journal_header_unpack(bytes, &back));
    CHECK(back.is_index);
    CHECK_EQ(back.file_no, 8);
    CHECK_EQ(back.first_seq, 1);
    CHECK_EQ(back.replay_from_no, 5);
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] ^= 1;
        CHECK_EQ(format_journal_header_unpack(bytes, &back), -EBADMSG);
        bytes[i] ^= 1;
    }
    h = (struct journal_header){.file_no = 8, .first_seq = 1};
    memcpy(h.store_id, store_id, 16);
    back.is_index = true;
    CHECK(format_journal_seed(&h) != format_seed(store_id, 8ull << 32));
    h.is_index = true;
    CHECK(format_journal_seed(&h) != format_seed(store_id, 8)); /* an index's records are no journal's */
}

static void test_segment_headers(void)
{
    struct record_info info = {.kind = RECORD_SUMS, .codec = CODEC_RAW, .node_id = 77, .logical_bytes = 40, .stored_bytes = 40,
                               .checksum = 123};
    uint8_t file[DISK_SEGMENT_HEADER_BYTES], record[DISK_VALUE_HEADER_BYTES];
    struct record_info back;

    format_segment_header_pack(store_id, 6, file);
    CHECK_OK(format_segment_header_unpack(file, store_id, 6));
    CHECK_EQ(format_segment_header_unpack(file, store_id, 7), -EBADMSG);
    CHECK_EQ(format_segment_header_unpack(file, boot_id, 6), -EBADMSG);
    format_value_header_pack(&info, 1111, 64, record);
    CHECK_OK(format_value_header_unpack(record, 1111, 64, &back));
    CHECK_EQ(back.kind, RECORD_SUMS);
    CHECK_EQ(back.node_id, 77);
    CHECK_EQ(back.checksum, 123);
    CHECK_EQ(format_value_header_unpack(record, 1111, 72, &back), -EBADMSG); /* moved */
    CHECK_EQ(format_value_header_unpack(record, 1112, 64, &back), -EBADMSG); /* another file's */
    for (size_t i = 0; i < sizeof(record); i++) {
        record[i] ^= 0x80;
        CHECK_EQ(format_value_header_unpack(record, 1111, 64, &back), -EBADMSG);
        record[i] ^= 0x80;
    }
}

static void test_names(void)
{
    char name[FORMAT_NAME_BYTES];
    uint32_t no = 0;

    format_name(name, "journal-", 7);
    CHECK(strcmp(name, "journal-00000007") == 0);
    CHECK(format_name_parse(name, "journal-", &no));
    CHECK_EQ(no, 7);
    CHECK(format_name_parse("index-ffffffff", "index-", &no));
    CHECK_EQ(no, UINT32_MAX);
    CHECK(!format_name_parse("index-FFFFFFFF", "index-", &no));
    CHECK(!format_name_parse("index-0000000", "index-", &no));
    CHECK(!format_name_parse("index-000000011", "index-", &no));
    CHECK(!format_name_parse("index-00000001.tmp", "index-", &no));
    CHECK(!format_name_parse("index-00000000", "index-", &no));
    CHECK(!format_name_parse("index-", "index-", &no));
    CHECK(!format_name_parse("seg-00000001", "index-", &no));
    format_big_name(name, 0x0123456789abcdef);
    CHECK(strcmp(name, "big/cd/0123456789abcdef") == 0);
}

/* One record with every type of entry. */
static void build_record(struct record_buffer *rb, uint8_t *tlv)
{
    struct node_image file = file_node(), link = {.id = 2, .mode = S_IFLNK | 0777, .pin = 1, .compress = POLICY_BYTE_UNSET};
    struct name_image name = {.parent = 1, .node = file.id, .cookie = 4, .name_bytes = 3, .name = "abc"};
    struct use_image uses[2] = {{.node = 1, .used_ns = 2, .hits = 3}, {.node = 4, .used_ns = 5, .hits = 6}};
    struct value raw = raw_value();
    struct end_image end = {.nodes = 1, .names = 2, .next_generation = 3, .cache_ns = 4, .last_seq = 5, .next_big_id = 6,
                            .clean = true};
    size_t tlv_bytes;

    memcpy(end.boot_id, boot_id, 16);
    CHECK_OK(record_begin(rb));
    tlv_bytes = tlv_put(tlv, NODE_TLV_XATTR, "user.a", 6, "value", 5);
    tlv_bytes += tlv_put(tlv + tlv_bytes, NODE_TLV_XATTR, "user.b", 6, NULL, 0);
    file.tlv = tlv;
    file.tlv_bytes = (uint32_t)tlv_bytes;
    CHECK_OK(record_add_node(rb, &file));
    link.tlv_bytes = (uint32_t)tlv_put(tlv, NODE_TLV_SYMLINK, NULL, 0, "../target", 9);
    link.tlv = tlv;
    CHECK_OK(record_add_node(rb, &link));
    CHECK_OK(record_add_name(rb, &name));
    CHECK_OK(record_add_unname(rb, 1, "...", 3));
    CHECK_OK(record_add_drop(rb, 9, DROP_IDLE));
    CHECK_OK(record_add_use(rb, uses, 2));
    CHECK_OK(record_add_value(rb, 9, &raw));
    CHECK_OK(record_add_boot(rb, boot_id, 1234));
    CHECK_OK(record_add_end(rb, &end));
    CHECK_EQ(rb->entry_count, 9);
    CHECK_EQ(rb->node_count, 2);
    CHECK_EQ(rb->name_count, 1);
}

static void check_nodes(const struct record_view *view, uint32_t *offset)
{
    struct value v = segment_value();
    struct entry_view e;
    struct tlv_view t;
    uint32_t at = 0;

    CHECK_OK(entry_next(view, offset, &e));
    CHECK_EQ(e.type, ENTRY_NODE);
    CHECK_EQ(e.node.id, 5ull << 32 | 9);
    CHECK_EQ(e.node.ctime_ns, INT64_MIN);
    CHECK_EQ(e.node.btime_ns, INT64_MAX);
    CHECK_EQ(e.node.used_ns, 78);
    CHECK_EQ(e.node.idle_ns, POLICY_NEVER);
    CHECK_EQ(e.node.compress, COMPRESS_LZ4);
    CHECK_EQ(e.node.value.place.offset, v.place.offset);
    CHECK_EQ(e.node.value.stored_bytes, v.stored_bytes);
    CHECK_EQ(e.node.value.big_id, 0);
    CHECK_OK(tlv_next(e.node.tlv, e.node.tlv_bytes, &at, &t));
    CHECK_EQ(t.kind, NODE_TLV_XATTR);
    CHECK(t.name_bytes == 6 && memcmp(t.name, "user.a", 6) == 0);
    CHECK(t.value_bytes == 5 && memcmp(t.value, "value", 5) == 0);
    CHECK_OK(tlv_next(e.node.tlv, e.node.tlv_bytes, &at, &t));
    CHECK_EQ(t.value_bytes, 0);
    CHECK_EQ(tlv_next(e.node.tlv, e.node.tlv_bytes, &at, &t), -ENODATA);
    CHECK_OK(entry_next(view, offset, &e));
    at = 0;
    CHECK_OK(tlv_next(e.node.tlv, e.node.tlv_bytes, &at, &t));
    CHECK(t.kind == NODE_TLV_SYMLINK && t.value_bytes == 9 && memcmp(t.value, "../target", 9) == 0);
}

static void check_rest(const struct record_view *view, uint32_t *offset)
{
    struct use_image use;
    struct entry_view e;

    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_NAME && e.name.cookie == 4 && e.name.name_bytes == 3 && memcmp(e.name.name, "abc", 3) == 0);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_UNNAME && e.name.parent == 1 && e.name.node == 0 && memcmp(e.name.name, "...", 3) == 0);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_DROP && e.drop.node == 9 && e.drop.reason == DROP_IDLE);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_USE && e.use.count == 2);
    use_item_unpack(e.use.items, 1, &use);
    CHECK(use.node == 4 && use.used_ns == 5 && use.hits == 6);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_VALUE && e.value.node == 9 && e.value.value.big_id == 0x1234 && e.value.value.sums_bytes == 800);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_BOOT && e.boot.cache_ns == 1234 && memcmp(e.boot.boot_id, boot_id, 16) == 0);
    CHECK_OK(entry_next(view, offset, &e));
    CHECK(e.type == ENTRY_END && e.end.next_big_id == 6 && e.end.clean);
    CHECK_EQ(entry_next(view, offset, &e), -ENODATA);
}

static void test_record(void)
{
    struct record_buffer rb = {0};
    struct record_view view;
    uint8_t tlv[200];
    uint32_t offset = 0;

    build_record(&rb, tlv);
    record_finish(&rb, 17, 99);
    CHECK_EQ(rb.used % 8, 0);
    CHECK_OK(record_parse(rb.data, rb.used, 17, 99, &view));
    CHECK_EQ(view.total_bytes, rb.used);
    CHECK_OK(record_check(&view));
    check_nodes(&view, &offset);
    check_rest(&view, &offset);
    CHECK_EQ(record_parse(rb.data, rb.used, 18, 99, &view), -EBADMSG);
    CHECK_EQ(record_parse(rb.data, rb.used, 17, 98, &view), -EBADMSG);
    for (size_t bytes = 0; bytes < rb.used; bytes++) {
        uint8_t *cut = malloc(bytes + 1); /* exact, so that a sanitizer sees an over-read */

        memcpy(cut, rb.data, bytes);
        CHECK_EQ(record_parse(cut, bytes, 17, 99, &view), -EBADMSG);
        free(cut);
    }
    for (size_t i = 0; i < rb.used * 8; i++) {
        rb.data[i / 8] ^= (uint8_t)(1u << i % 8);
        CHECK_EQ(record_parse(rb.data, rb.used, 17, 99, &view), -EBADMSG);
        rb.data[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    record_buffer_fini(&rb);
}

/* What entry_next promises of a view. */
static void check_legal(const struct entry_view *e)
{
    struct tlv_view t;
    uint32_t at = 0;
    int r = 0;

    if (e->type == ENTRY_NODE) {
        CHECK(e->node.value.size_bytes <= INT64_MAX);
        CHECK(e->node.value.kind <= VALUE_PACKED);
        while ((r = tlv_next(e->node.tlv, e->node.tlv_bytes, &at, &t)) == 0)
            CHECK(t.kind == NODE_TLV_XATTR || t.kind == NODE_TLV_SYMLINK);
        CHECK_EQ(r, -ENODATA);
    }
    if (e->type == ENTRY_NAME || e->type == ENTRY_UNNAME) {
        CHECK(e->name.name_bytes > 0 && e->name.name_bytes <= NAME_BYTES_MAX);
        CHECK(!memchr(e->name.name, '/', e->name.name_bytes));
    }
    if (e->type == ENTRY_USE && e->use.count > 0) {
        struct use_image use;

        use_item_unpack(e->use.items, e->use.count - 1, &use);
    }
}

static void mutate(uint8_t *bytes, size_t count)
{
    for (uint64_t n = 1 + random_u64() % 4; n > 0; n--) {
        uint8_t values[] = {0, 1, 0xff, 0x7f, 0x80, (uint8_t)random_u64()};

        bytes[random_u64() % count] = values[random_u64() % ARRAY_COUNT(values)];
    }
}

static void test_hostile_entries(void)
{
    struct record_buffer rb = {0};
    uint8_t tlv[200];
    unsigned whole_count = 0;

    build_record(&rb, tlv);
    for (int i = 0; i < 200000; i++) {
        uint32_t bytes = (uint32_t)(rb.used - DISK_RECORD_HEADER_BYTES), offset = 0;
        uint8_t *payload = malloc(bytes);
        struct record_view view = {.payload = payload, .payload_bytes = bytes, .entry_count = rb.entry_count};
        struct entry_view e;
        int r;

        memcpy(payload, rb.data + DISK_RECORD_HEADER_BYTES, bytes);
        mutate(payload, bytes);
        while ((r = entry_next(&view, &offset, &e)) == 0)
            check_legal(&e);
        CHECK(r == -ENODATA || r == -EBADMSG);
        whole_count += record_check(&view) == 0;
        free(payload);
    }
    CHECK(whole_count > 1000); /* many bytes are free to be anything: the mutations reach all depths */
    record_buffer_fini(&rb);
}

/* Packs a legal node, sets one byte of its body, and expects it refused. */
static void expect_refused(const struct node_image *n, size_t body_offset, uint8_t byte)
{
    struct record_buffer rb = {0};
    struct record_view view;

    CHECK_OK(record_begin(&rb));
    CHECK_OK(record_add_node(&rb, n));
    rb.data[DISK_RECORD_HEADER_BYTES + DISK_ENTRY_HEADER_BYTES + body_offset] = byte;
    record_finish(&rb, 1, 2);
    CHECK_OK(record_parse(rb.data, rb.used, 1, 2, &view));
    CHECK_EQ(record_check(&view), -EBADMSG);
    record_buffer_fini(&rb);
}

static void test_must_reject(void)
{
    struct node_image n = file_node(), raw = file_node(), empty = file_node(), dir = file_node();

    raw.value = raw_value();
    empty.value = (struct value){0};
    dir.mode = S_IFDIR | 0755;
    dir.value = (struct value){0};
    expect_refused(&n, 80, 4);        /* no such kind */
    expect_refused(&n, 80, 0);        /* empty, with a place */
    expect_refused(&n, 81, 2);        /* no such codec */
    expect_refused(&n, 82, 1);        /* unsealed, but not raw */
    expect_refused(&n, 83, 1);        /* node flags */
    expect_refused(&n, 91, 0x7f);     /* larger than a segment value may be */
    expect_refused(&n, 108, 1);       /* unaligned */
    expect_refused(&n, 104, 0);       /* nowhere */
    expect_refused(&n, 112, 1);       /* a big id as well */
    expect_refused(&n, 152, 2);       /* pin */
    expect_refused(&n, 153, 3);       /* compress */
    expect_refused(&n, 154, 1);       /* reserved */
    expect_refused(&n, 9, 0x40);      /* a directory with a value */
    expect_refused(&n, 11, 1);        /* mode bits that are none */
    expect_refused(&raw, 95, 0x80);   /* size beyond INT64_MAX */
    expect_refused(&raw, 103, 0x80);  /* and stored */
    expect_refused(&raw, 82, 1);      /* unsealed with sums */
    expect_refused(&raw, 120, 0);     /* sums nowhere */
    expect_refused(&empty, 88, 1);    /* empty with a size */
    expect_refused(&dir, 9, 0xa1);    /* a symbolic link without a target */
}

static void test_find(void)
{
    struct record_buffer rb = {0};
    uint8_t bytes[4096] = {0};
    uint64_t budget = 1 << 20;
    size_t at = 0;
    uint64_t found_seq = 0;

    CHECK_OK(record_begin(&rb));
    CHECK_OK(record_add_drop(&rb, 1, DROP_TTL));
    record_finish(&rb, 40, 7);
    memcpy(bytes + 1024, rb.data, rb.used);
    CHECK(record_find(bytes, sizeof(bytes), 40, 7, &budget, &at, &found_seq));
    CHECK_EQ(at, 1024);
    CHECK_EQ(found_seq, 40);
    CHECK(!record_find(bytes, sizeof(bytes), 41, 7, &budget, &at, &found_seq));
    CHECK(!record_find(bytes, 1024 + rb.used - 1, 40, 7, &budget, &at, &found_seq));
    budget = 10;
    CHECK(!record_find(bytes, sizeof(bytes), 40, 7, &budget, &at, &found_seq));
    record_buffer_fini(&rb);
}

static void test_limits(void)
{
    struct record_buffer rb = {0};
    struct use_image *uses = calloc(300000, sizeof(*uses));
    struct record_view view;

    CHECK_OK(record_begin(&rb));
    CHECK_EQ(record_add_use(&rb, uses, 300000), -E2BIG);
    CHECK_EQ(rb.entry_count, 0);
    CHECK_OK(record_add_use(&rb, uses, 200000));
    record_finish(&rb, 1, 1);
    CHECK_OK(record_parse(rb.data, rb.used, 1, 1, &view));
    CHECK_OK(record_check(&view));
    record_buffer_fini(&rb);
    free(uses);
}

int main(void)
{
    test_superblock();
    test_journal_header();
    test_segment_headers();
    test_names();
    test_record();
    test_must_reject();
    test_hostile_entries();
    test_find();
    test_limits();
    return 0;
}
