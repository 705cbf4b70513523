/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Goal: a store whose every checksum is right but whose fields are absurd costs no more than its bytes are worth, and takes
 * new values as well as any other.
 * Method: journals and files are written by hand to a disk in memory and mounted by the real engine.
 */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "cache.h"
#include "check.h"
#include "memdisk.h"

#define CHUNK_SLOTS 8192ull /* of slab.h: slots that share memory */

static const uint8_t store_id[16] = "hostile store id";

struct hostile {
    struct memdisk *disk;
    struct record_buffer rb;
    struct larder *l;
};

static void put_format(struct memdisk *d)
{
    struct superblock sb = {.version = FORMAT_VERSION};
    uint8_t raw[DISK_SUPERBLOCK_BYTES];

    memcpy(sb.store_id, store_id, sizeof(store_id));
    format_superblock_pack(&sb, raw);
    CHECK_OK(memdisk_write_file(d, "FORMAT", raw, sizeof(raw)));
}

static struct node_image image_of(uint64_t id, uint32_t mode)
{
    return (struct node_image){.id = id,
                               .mode = mode,
                               .ttl_ns = POLICY_UNSET,
                               .idle_ns = POLICY_UNSET,
                               .expires_ns = POLICY_UNSET,
                               .pin = POLICY_BYTE_UNSET,
                               .compress = POLICY_BYTE_UNSET};
}

static void begin(struct hostile *h)
{
    struct node_image root = image_of(LARDER_ROOT, S_IFDIR | 0755);

    *h = (struct hostile){.disk = memdisk_new()};
    put_format(h->disk);
    CHECK_OK(record_begin(&h->rb));
    CHECK_OK(record_add_node(&h->rb, &root));
}

static void add_key(struct hostile *h, const struct node_image *n, const char *name)
{
    struct name_image image = {.parent = LARDER_ROOT, .node = n->id, .name = name, .name_bytes = (uint16_t)strlen(name)};

    CHECK_OK(record_add_node(&h->rb, n));
    CHECK_OK(record_add_name(&h->rb, &image));
}

/* Everything added so far becomes the one record of a journal, or of a checkpoint that END closes. */
static void put_log(struct hostile *h, const struct end_image *end)
{
    struct journal_header header = {.is_index = end != NULL, .file_no = 1, .first_seq = 1, .replay_from_no = end ? 1 : 0};
    uint8_t *file;
    size_t bytes;

    memcpy(header.store_id, store_id, sizeof(store_id));
    file = malloc(DISK_JOURNAL_HEADER_BYTES + h->rb.used + 1024);
    CHECK(file);
    format_journal_header_pack(&header, file);
    record_finish(&h->rb, 1, format_journal_seed(&header));
    memcpy(file + DISK_JOURNAL_HEADER_BYTES, h->rb.data, h->rb.used);
    bytes = DISK_JOURNAL_HEADER_BYTES + h->rb.used;
    if (end) {
        struct end_image said = *end;
        said.nodes = h->rb.node_count;
        said.names = h->rb.name_count;
        CHECK_OK(record_begin(&h->rb));
        CHECK_OK(record_add_end(&h->rb, &said));
        record_finish(&h->rb, 2, format_journal_seed(&header));
        memcpy(file + bytes, h->rb.data, h->rb.used);
        bytes += h->rb.used;
    }
    CHECK_OK(memdisk_write_file(h->disk, end ? "index-00000001" : "journal-00000001", file, bytes));
    free(file);
}

static void mount_it(struct hostile *h)
{
    struct cache_host host = {.io = memdisk_io(h->disk), .dir_fd = memdisk_open_root(h->disk), .clock_ops = &clock_posix};
    struct larder_options opts;
    struct errtext err = {""};

    larder_options_init(&opts);
    opts.quota_bytes = 64 * MIB;
    opts.big_bytes = 8192;
    if (cache_open_on(&host, "hostile", &opts, NULL, &h->l, &err) < 0)
        CHECK_FAIL("refused: %s", err.text);
}

static void put(struct hostile *h, const char *name, size_t bytes)
{
    const struct larder_cred cred = {.uid = 0};
    uint8_t *data = malloc(bytes);
    struct larder_attr attr;
    struct larder_file *f;

    CHECK(data);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i * 31 + i / 256 * 7);
    CHECK_OK(larder_create(h->l, LARDER_ROOT, name, strlen(name), 0600, O_RDWR, &cred, &attr, &f));
    CHECK_OK(larder_write(f, data, bytes, 0, false));
    CHECK_OK(larder_flush(f));
    larder_release(f);
    larder_forget(h->l, attr.ino, 1);
    free(data);
}

static void check_is_there(struct hostile *h, const char *name, size_t bytes)
{
    uint8_t *data = malloc(bytes);
    struct larder_attr attr;
    struct larder_file *f;
    size_t got;

    CHECK(data);
    CHECK_OK(larder_lookup(h->l, LARDER_ROOT, name, strlen(name), &attr));
    CHECK_OK(larder_open_file(h->l, attr.ino, O_RDONLY, &f));
    CHECK_OK(larder_read(f, data, bytes, 0, false, &got));
    CHECK_EQ(got, bytes);
    for (size_t i = 0; i < bytes; i++)
        CHECK(data[i] == (uint8_t)(i * 31 + i / 256 * 7));
    larder_release(f);
    larder_forget(h->l, attr.ino, 1);
    free(data);
}

static void again(struct hostile *h)
{
    CHECK_OK(larder_close(h->l));
    mount_it(h);
}

static void end(struct hostile *h)
{
    CHECK_OK(larder_close(h->l));
    record_buffer_fini(&h->rb);
    memdisk_free(h->disk);
}

/* What is written now is there after a restart: small and big. */
static void check_takes_values(struct hostile *h)
{
    put(h, "new small", 100);
    put(h, "new big", 20000);
    again(h);
    check_is_there(h, "new small", 100);
    check_is_there(h, "new big", 20000);
}

/* The thread sanitizer keeps notes of all memory that is asked for, used or not: what it takes says nothing of us. */
#ifdef __SANITIZE_THREAD__
#define MEMORY_IS_OURS false
#else
#define MEMORY_IS_OURS true
#endif

static uint64_t peak_bytes(void)
{
    struct rusage usage;

    CHECK_OK(getrusage(RUSAGE_SELF, &usage));
    return (uint64_t)usage.ru_maxrss * KIB;
}

static void test_slots_far_apart_cost_pages_not_chunks(void)
{
    uint64_t before = peak_bytes(), grown;
    struct larder_stats stats;
    struct hostile h;
    char name[32];

    begin(&h);
    for (uint64_t i = 0; i < 6000; i++) {
        struct node_image n = image_of((i + 2) << 32 | (i + 1) * 3 * CHUNK_SLOTS, S_IFREG | 0600);
        (void)snprintf(name, sizeof(name), "n%u", (unsigned)i);
        add_key(&h, &n, name);
    }
    put_log(&h, NULL);
    mount_it(&h);
    grown = peak_bytes() - before;
    if (MEMORY_IS_OURS && grown > 256 * MIB)
        CHECK_FAIL("6000 keys took %llu MiB", (unsigned long long)(grown / MIB));
    larder_stats(h.l, &stats);
    CHECK(stats.entries >= 4000); /* the first ones might be of a store that once held many more */
    CHECK(stats.entries < 6000);
    CHECK_EQ(stats.corrupt_records, 6000 - stats.entries);
    check_takes_values(&h);
    end(&h);
}

static void test_numbers_near_the_end_are_not_used_up(void)
{
    struct hostile h;

    begin(&h);
    put_log(&h, NULL);
    CHECK_OK(memdisk_write_file(h.disk, "seg-efffffff", "", 0));
    CHECK_OK(memdisk_plant(h.disk, "big", S_IFDIR | 0700, NULL, 0));
    CHECK_OK(memdisk_plant(h.disk, "big/ff", S_IFDIR | 0700, NULL, 0));
    CHECK_OK(memdisk_write_file(h.disk, "big/ff/7fffffffffffffff", "x", 1));
    CHECK_OK(memdisk_write_file(h.disk, "journal-fffffffe", "", 0));
    CHECK_OK(memdisk_write_file(h.disk, "index-fffffffe", "", 0));
    mount_it(&h);
    check_takes_values(&h);
    end(&h);
}

static void test_values_that_name_the_last_numbers(void)
{
    struct node_image n = image_of(2ull << 32 | 2, S_IFREG | 0600);
    struct hostile h;

    begin(&h);
    n.value = (struct value){.kind = VALUE_SEGMENT, .size_bytes = 10, .stored_bytes = 10, .place = {0xefffffffu, 64}};
    add_key(&h, &n, "segment");
    n.id = 3ull << 32 | 3;
    n.value = (struct value){.kind = VALUE_RAW, .unsealed = true, .size_bytes = 10, .big_id = UINT64_MAX >> 1};
    add_key(&h, &n, "big");
    put_log(&h, NULL);
    mount_it(&h);
    check_takes_values(&h);
    end(&h);
}

static void test_a_clock_of_the_far_future(void)
{
    struct end_image said = {.next_generation = 5, .cache_ns = INT64_MAX};
    struct hostile h;

    begin(&h);
    put_log(&h, &said);
    mount_it(&h);
    CHECK(cache_now(h.l) < (uint64_t)cache_wall(h.l) + 1000ull * 86400 * NS_PER_S);
    check_takes_values(&h);
    end(&h);
}

/* A journal whose header is damaged takes its first seq from its first record: one that cannot be counted on from. */
static void check_seq_that_little_follows(uint64_t seq_given)
{
    struct journal_header header = {.file_no = 1};
    uint64_t seq, budget_bytes = MIB, seed;
    uint8_t file[4096] = "";
    size_t at, bytes;
    struct hostile h;

    memcpy(header.store_id, store_id, sizeof(store_id));
    seed = format_journal_seed(&header);
    begin(&h);
    memset(file, 0xff, DISK_JOURNAL_HEADER_BYTES);
    record_finish(&h.rb, seq_given, seed);
    bytes = DISK_JOURNAL_HEADER_BYTES + h.rb.used;
    CHECK(bytes <= sizeof(file));
    memcpy(file + DISK_JOURNAL_HEADER_BYTES, h.rb.data, h.rb.used);
    CHECK_OK(memdisk_write_file(h.disk, "journal-00000001", file, bytes));
    CHECK(!record_find(file, bytes, 1, seed, &budget_bytes, &at, &seq));
    mount_it(&h);
    CHECK_OK(work_checkpoint(h.l, false));
    check_takes_values(&h);
    end(&h);
}

/* Wherever the last one falls: in the middle of a file, or where the next begins. */
static void test_seqs_that_little_follows(void)
{
    for (uint64_t left = 0; left < 16; left++)
        check_seq_that_little_follows(UINT64_MAX - left);
}

static void test_two_xattrs_of_one_name(void)
{
    struct node_image n = image_of(2ull << 32 | 2, S_IFREG | 0600);
    uint8_t tlv[64];
    size_t bytes = tlv_put(tlv, NODE_TLV_XATTR, "user.a", 6, "1", 1), got;
    struct larder_attr attr;
    struct hostile h;
    char value[16];

    bytes += tlv_put(tlv + bytes, NODE_TLV_XATTR, "user.a", 6, "2", 1);
    n.tlv = tlv;
    n.tlv_bytes = (uint32_t)bytes;
    begin(&h);
    add_key(&h, &n, "k");
    put_log(&h, NULL);
    mount_it(&h);
    CHECK_OK(larder_lookup(h.l, LARDER_ROOT, "k", 1, &attr));
    CHECK_OK(larder_setxattr(h.l, attr.ino, "user.a", "new", 3, 0));
    CHECK_OK(larder_getxattr(h.l, attr.ino, "user.a", value, sizeof(value), &got));
    CHECK(got == 3 && memcmp(value, "new", 3) == 0);
    CHECK_OK(larder_removexattr(h.l, attr.ino, "user.a"));
    CHECK_EQ(larder_getxattr(h.l, attr.ino, "user.a", value, sizeof(value), &got), -ENODATA);
    larder_forget(h.l, attr.ino, 1);
    end(&h);
}

/* 9 bytes for each byte of name and value: as many xattrs as fill a record, so that nothing else has room in one. */
static void test_a_node_that_fills_its_record(void)
{
    const size_t tlv_bytes = 3500 * KIB / 9 * 9;
    struct node_image small = image_of(2ull << 32 | 2, S_IFREG | 0600), large = image_of(3ull << 32 | 3, S_IFREG | 0600);
    uint8_t *entry, value[XATTR_VALUE_BYTES_MAX] = "";
    struct larder_attr attr;
    struct hostile h;
    char name[32];

    begin(&h);
    add_key(&h, &small, "small");
    CHECK_OK(record_add_node(&h.rb, &large));
    h.rb.data = realloc(h.rb.data, h.rb.used + tlv_bytes + 4096);
    CHECK(h.rb.data);
    /* by hand: record_add_node writes nothing that is not right */
    entry = h.rb.data + h.rb.used - DISK_NODE_BYTES - DISK_ENTRY_HEADER_BYTES;
    write_le32(entry, (uint32_t)(ENTRY_NODE | (DISK_NODE_BYTES + tlv_bytes) << 8));
    for (size_t at = 0; at < tlv_bytes;)
        at += tlv_put(h.rb.data + h.rb.used + at, NODE_TLV_XATTR, "x", 1, NULL, 0);
    h.rb.used += tlv_bytes;
    h.rb.allocated = h.rb.used + 4096;
    CHECK_OK(record_add_name(&h.rb, &(struct name_image){.parent = LARDER_ROOT, .node = large.id, .name = "l", .name_bytes = 1}));
    put_log(&h, NULL);
    mount_it(&h);
    if (larder_lookup(h.l, LARDER_ROOT, "small", 5, &attr) == 0) { /* the record counts for nothing, or all of it counts */
        for (int i = 0; i < 15; i++) {
            (void)snprintf(name, sizeof(name), "user.%d", i);
            CHECK_OK(larder_setxattr(h.l, attr.ino, name, value, sizeof(value), 0));
        }
        larder_forget(h.l, attr.ino, 1);
    }
    CHECK_OK(work_checkpoint(h.l, false));
    check_takes_values(&h);
    end(&h);
}

int main(void)
{
    RUN(test_slots_far_apart_cost_pages_not_chunks);
    RUN(test_numbers_near_the_end_are_not_used_up);
    RUN(test_values_that_name_the_last_numbers);
    RUN(test_a_clock_of_the_far_future);
    RUN(test_seqs_that_little_follows);
    RUN(test_two_xattrs_of_one_name);
    RUN(test_a_node_that_fills_its_record);
    return 0;
}
