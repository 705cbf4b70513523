/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_log: journals and checkpoints out of an input, with checksums that are right, so that what lies behind them is
 * reached; and a mutator that knows where entries begin.
 *
 * An input is a 64-byte file header, then records: a header of 32 bytes, the payload, zeros up to 8. Sealing keeps what
 * the input says and puts right what would stop replay at once: magic, seq, checksum, lengths past the end. Three bytes
 * of a record's header that mean nothing else steer:
 *   20  'J' or 'X': this record begins another journal or another checkpoint file
 *   21  added to the number of that file; 22 to its first_seq (signed)
 *   15  added to the record's seq (signed): a gap, or a repetition
 */
#include <string.h>

#include "fuzz_store.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define NEAR_SLOTS 24u
#define NEAR_GENERATIONS 3u
#define HEADER DISK_JOURNAL_HEADER_BYTES
#define RECORD DISK_RECORD_HEADER_BYTES
#define ENTRY DISK_ENTRY_HEADER_BYTES

struct log_build {
    struct fuzz_buffer file; /* being built */
    struct journal_header header;
    unsigned how;
    uint64_t seed, seq;
    uint32_t nodes, names; /* in this file */
    bool ended;
    uint32_t journal_no, index_no; /* numbers used so far */
};

/* ---- sealing ---- */

static void near_id(uint8_t *p, unsigned how)
{
    uint64_t id = read_le64(p);
    uint32_t slot = (uint32_t)id % NEAR_SLOTS + 1, generation = (uint32_t)(id >> 32) % (NEAR_SLOTS * NEAR_GENERATIONS);

    if (how & FUZZ_LOG_FAR_IDS)
        return;
    write_le64(p, slot == 1 ? 1 : (uint64_t)MAX(generation, 1u) << 32 | slot);
}

/* Points a value at one the template has, whose number is in its place; size and the like stay the input's for some. */
static void near_value(uint8_t *p, uint64_t *ret_node)
{
    const struct fuzz_known *k = fuzz_known(p[24]);
    bool keep_sizes = p[25] & 0x80;
    uint8_t kind = (uint8_t)k->value.kind;

    *ret_node = p[25] & 0x40 ? 0 : k->node_id;
    p[0] = kind;
    p[1] = kind == VALUE_SEGMENT ? (uint8_t)k->value.codec : CODEC_RAW;
    p[2] = kind == VALUE_RAW ? p[2] & 1 : 0;
    p[3] = 0;
    if (!keep_sizes) {
        write_le64(p + 8, k->value.size_bytes);
        write_le64(p + 16, k->value.stored_bytes);
    }
    write_le32(p + 24, kind == VALUE_SEGMENT ? k->value.place.segment_no : 0);
    write_le32(p + 28, kind == VALUE_SEGMENT ? k->value.place.offset : 0);
    write_le64(p + 32, k->value.big_id);
    if (p[2] == 0) {
        write_le32(p + 4, k->value.sums_bytes);
        write_le32(p + 40, k->value.sums_place.segment_no);
        write_le32(p + 44, k->value.sums_place.offset);
    } else {
        memset(p + 4, 0, 4);
        memset(p + 40, 0, 8);
    }
}

static void seal_node(uint8_t *body, uint32_t bytes, unsigned how)
{
    uint64_t owner = 0;

    if (bytes < DISK_NODE_BYTES)
        return;
    near_id(body, how);
    if (how & FUZZ_LOG_ANY_PLACE)
        return;
    if ((read_le32(body + 8) & 0170000) == 0100000)
        near_value(body + 80, &owner);
    else
        memset(body + 80, 0, 48);
    if (owner && !(how & FUZZ_LOG_FAR_IDS))
        write_le64(body, owner);
    memset(body + 154, 0, 6);
}

static void seal_entry(uint8_t type, uint8_t *body, uint32_t bytes, unsigned how)
{
    uint64_t owner = 0;

    if (type == ENTRY_NODE)
        seal_node(body, bytes, how);
    if (type == ENTRY_NAME && bytes >= 26) {
        near_id(body, how);
        near_id(body + 8, how);
        write_le16(body + 24, (uint16_t)(bytes - 26));
    }
    if (type == ENTRY_UNNAME && bytes >= 10) {
        near_id(body, how);
        write_le16(body + 8, (uint16_t)(bytes - 10));
    }
    if ((type == ENTRY_DROP || type == ENTRY_TOUCH) && bytes >= 8)
        near_id(body, how);
    if (type == ENTRY_USE && bytes >= 4) {
        write_le32(body, (bytes - 4) / 20);
        for (uint32_t i = 0; i < (bytes - 4) / 20; i++)
            near_id(body + 4 + i * 20, how);
    }
    if (type == ENTRY_VALUE && bytes == 56) {
        if (!(how & FUZZ_LOG_ANY_PLACE))
            near_value(body + 8, &owner);
        near_id(body, how);
        if (owner && !(how & FUZZ_LOG_FAR_IDS))
            write_le64(body, owner);
    }
}

/* How long a body of that type is; 0: as it says. Saves the fuzzer from finding out. */
static uint32_t body_bytes_of(uint8_t type)
{
    switch (type) {
    case ENTRY_DROP:
        return 9;
    case ENTRY_VALUE:
        return 56;
    case ENTRY_BOOT:
        return 24;
    case ENTRY_END:
        return 65;
    case ENTRY_TOUCH:
        return 16;
    default:
        return 0;
    }
}

/* Puts the lengths of entries right; what cannot be one is cut off. Returns the payload's bytes. */
static uint32_t seal_entries(uint8_t *payload, uint32_t bytes, struct log_build *b, uint32_t *ret_count)
{
    uint32_t at = 0;

    *ret_count = 0;
    while (bytes - at >= ENTRY) {
        uint8_t type = payload[at];
        uint32_t body = read_le32(payload + at) >> 8, left = bytes - at - ENTRY;
        uint32_t fixed = body_bytes_of(type);

        if (fixed)
            body = fixed;
        if (body > left) {
            if (fixed)
                break;
            body = left;
        }
        write_le32(payload + at, type | body << 8);
        seal_entry(type, payload + at + ENTRY, body, b->how);
        b->nodes += type == ENTRY_NODE;
        b->names += type == ENTRY_NAME;
        b->ended |= type == ENTRY_END;
        at += ENTRY + body;
        ++*ret_count;
    }
    return at;
}

static void seal_record(uint8_t *record, uint32_t payload_bytes, uint64_t seed)
{
    uint64_t header = XXH3_64bits_withSeed(record, 24, seed);

    write_le64(record + 24, XXH3_64bits_withSeed(record + RECORD, payload_bytes, header));
}

static void begin_file(struct log_build *b, bool is_index, uint32_t no_step, uint64_t first_seq)
{
    uint32_t *no = is_index ? &b->index_no : &b->journal_no;

    *no += 1 + no_step;
    b->header = (struct journal_header){.is_index = is_index, .file_no = *no, .first_seq = is_index ? 1 : MAX(first_seq, 1ull)};
    b->header.replay_from_no = is_index ? b->journal_no + 1 : 0;
    memcpy(b->header.store_id, fuzz_store_id, sizeof(fuzz_store_id));
    b->file.used = 0;
    (void)fuzz_buffer_add(&b->file, NULL, HEADER);
    b->seq = b->header.first_seq;
    b->nodes = b->names = 0;
    b->ended = false;
}

static void add_end(struct log_build *b)
{
    struct record_buffer rb = {0};
    struct end_image end = {.nodes = b->nodes, .names = b->names, .next_generation = 100, .last_seq = b->how & FUZZ_LOG_HEADER ? 0 : b->seq};

    FUZZ_CHECK_OK(record_begin(&rb));
    FUZZ_CHECK_OK(record_add_end(&rb, &end));
    record_finish(&rb, b->seq, b->seed);
    (void)fuzz_buffer_add(&b->file, rb.data, rb.used);
    record_buffer_fini(&rb);
}

static void end_file(struct log_build *b)
{
    char name[64];

    if (b->header.is_index && !b->ended)
        add_end(b);
    (void)snprintf(name, sizeof(name), "%s%08x", b->header.is_index ? "index-" : "journal-", b->header.file_no);
    fuzz_store_put(name, b->file.data, b->file.used);
}

/* The header is written once what the input says of it is known. */
static void seal_header(struct log_build *b, const uint8_t *said)
{
    uint8_t *out = b->file.data;

    format_journal_header_pack(&b->header, out);
    if (b->how & FUZZ_LOG_HEADER && said) {
        memcpy(out + 32, said + 32, 24);
        write_le64(out + 56, XXH3_64bits(out, 56));
        b->header.first_seq = b->seq = read_le64(out + 32);
    }
    b->seed = format_journal_seed(&b->header);
}

static void build_record(struct log_build *b, struct fuzz_in *in)
{
    size_t got;
    const uint8_t *said = fuzz_take(in, RECORD, &got);
    uint32_t payload_bytes = (uint32_t)MIN(read_le32(said + 4), MIN(in->left, RECORD_PAYLOAD_BYTES_MAX));
    size_t at = b->file.used;
    uint32_t count, room = (uint32_t)round_up(payload_bytes, 8);
    uint8_t *record;

    (void)fuzz_buffer_add(&b->file, said, RECORD);
    (void)fuzz_buffer_add(&b->file, fuzz_take(in, payload_bytes, &got), payload_bytes);
    (void)fuzz_take(in, room - payload_bytes, &got);
    record = b->file.data + at;
    payload_bytes = seal_entries(record + RECORD, payload_bytes, b, &count);
    b->file.used = at + RECORD + payload_bytes;
    (void)fuzz_buffer_add(&b->file, NULL, round_up(payload_bytes, 8) - payload_bytes);
    record = b->file.data + at;
    write_le32(record, FORMAT_RECORD_MAGIC);
    write_le32(record + 4, payload_bytes);
    b->seq += (uint64_t)(int64_t)(int8_t)record[15];
    write_le64(record + 8, b->seq++);
    if (!(b->how & FUZZ_LOG_COUNTS))
        write_le32(record + 16, count);
    write_le32(record + 20, 0);
    seal_record(record, payload_bytes, b->seed);
}

void fuzz_log_build(struct fuzz_in *in, unsigned how, bool is_index)
{
    struct log_build b = {.how = how};
    const uint8_t *said;
    size_t got;

    if (how & FUZZ_LOG_AS_IS) {
        said = fuzz_take(in, in->left, &got);
        fuzz_store_put(is_index ? "index-00000001" : "journal-00000001", said, got);
        return;
    }
    said = fuzz_take(in, HEADER, &got);
    begin_file(&b, is_index, 0, 1);
    seal_header(&b, got == HEADER ? said : NULL);
    while (in->left >= RECORD) {
        uint8_t kind = in->data[20];
        if (kind == 'J' || kind == 'X') {
            uint64_t next = b.header.is_index ? 1 : b.seq;
            end_file(&b);
            begin_file(&b, kind == 'X', in->data[21], next + (uint64_t)(int64_t)(int8_t)in->data[22]);
            seal_header(&b, NULL);
        }
        build_record(&b, in);
    }
    end_file(&b);
    fuzz_buffer_fini(&b.file);
}

/* ---- a mutator that knows entries ---- */

#define ENTRIES_MAX 256u

struct entry_at {
    size_t record, at, bytes; /* where its record begins; it, with its header */
};

struct log_mutate {
    uint8_t *data;
    size_t bytes, bytes_max;
    struct entry_at entries[ENTRIES_MAX];
    unsigned count;
    uint64_t random;
};

static uint32_t next_random(struct log_mutate *m, uint32_t below)
{
    m->random = m->random * 6364136223846793005ull + 1442695040888963407ull;
    return below ? (uint32_t)(m->random >> 33) % below : 0;
}

static void find_entries(struct log_mutate *m, size_t at)
{
    while (at + RECORD <= m->bytes) {
        size_t record = at, end;
        end = at + RECORD + MIN(read_le32(m->data + at + 4), m->bytes - at - RECORD);
        at += RECORD;
        while (at + ENTRY <= end && m->count < ENTRIES_MAX) {
            uint32_t body = read_le32(m->data + at) >> 8, fixed = body_bytes_of(m->data[at]);
            body = fixed ? fixed : body;
            if (body > end - at - ENTRY)
                break;
            m->entries[m->count++] = (struct entry_at){record, at, ENTRY + body};
            at += ENTRY + body;
        }
        at = record + RECORD + round_up(end - record - RECORD, 8);
    }
}

/* Makes room for, or takes out, bytes at `at` of the record's payload; keeps the padding right. */
static bool resize_at(struct log_mutate *m, size_t record, size_t at, size_t out, size_t in)
{
    uint32_t payload = read_le32(m->data + record + 4);
    size_t old_end, new_end, tail;
    uint32_t now;

    payload = (uint32_t)MIN(payload, m->bytes - record - RECORD);
    old_end = MIN(record + RECORD + round_up(payload, 8), m->bytes);
    now = (uint32_t)(payload - out + in);
    new_end = record + RECORD + round_up(now, 8);
    tail = m->bytes - old_end;
    if (new_end + tail > m->bytes_max || at + out > record + RECORD + payload)
        return false;
    if (new_end > old_end)
        memmove(m->data + new_end, m->data + old_end, tail);
    memmove(m->data + at + in, m->data + at + out, record + RECORD + payload - at - out);
    if (new_end < old_end)
        memmove(m->data + new_end, m->data + old_end, tail);
    memset(m->data + record + RECORD + now, 0, new_end - record - RECORD - now);
    write_le32(m->data + record + 4, now);
    m->bytes = new_end + tail;
    return true;
}

static size_t make_name(struct log_mutate *m, uint8_t *out, uint8_t type)
{
    static const char *const names[] = {"a", "b", "small", "d", "e", "three", "hard", "x y", "put", "renamed"};
    const char *name = names[next_random(m, 10)];
    size_t fixed = type == ENTRY_NAME ? 26 : 10, bytes = fixed + strlen(name);

    memset(out, 0, ENTRY + fixed);
    write_le32(out, type | (uint32_t)bytes << 8);
    write_le64(out + ENTRY, (uint64_t)next_random(m, 8) << 32 | next_random(m, 12));
    if (type == ENTRY_NAME)
        write_le64(out + ENTRY + 8, (uint64_t)next_random(m, 20) << 32 | next_random(m, 20));
    memcpy(out + ENTRY + fixed, name, strlen(name));
    return ENTRY + bytes;
}

static size_t make_node(struct log_mutate *m, uint8_t *out)
{
    static const uint32_t modes[] = {0040755, 0100644, 0100600, 0040700, 0010600, 0140600, 0020600, 0104755};

    memset(out, 0, ENTRY + DISK_NODE_BYTES);
    write_le32(out, ENTRY_NODE | DISK_NODE_BYTES << 8);
    write_le64(out + ENTRY, (uint64_t)next_random(m, 20) << 32 | next_random(m, 20));
    write_le32(out + ENTRY + 8, modes[next_random(m, 8)]);
    out[ENTRY + 80 + 24] = (uint8_t)next_random(m, 256);
    out[ENTRY + 80 + 25] = next_random(m, 4) == 0 ? (uint8_t)next_random(m, 256) : 0;
    memset(out + ENTRY + 128, 0xff, 26);
    return ENTRY + DISK_NODE_BYTES;
}

static size_t make_entry(struct log_mutate *m, uint8_t out[256])
{
    uint8_t type = (uint8_t)next_random(m, 10);
    uint32_t body = body_bytes_of(type);

    if (type == ENTRY_NAME || type == ENTRY_UNNAME)
        return make_name(m, out, type);
    if (type == ENTRY_NODE || type == 0)
        return make_node(m, out);
    if (type == ENTRY_USE)
        body = 4 + 20 * next_random(m, 4);
    write_le32(out, type | body << 8);
    for (uint32_t i = 0; i < body; i++)
        out[ENTRY + i] = next_random(m, 3) == 0 ? (uint8_t)next_random(m, 256) : 0;
    return ENTRY + body;
}

static void change_field(struct log_mutate *m, const struct entry_at *e)
{
    static const uint64_t values[] = {0, 1, 2, 255, 4096, 65536, INT32_MAX, UINT32_MAX, 1ull << 32, INT64_MAX, UINT64_MAX - 1, UINT64_MAX};
    size_t words = (e->bytes - ENTRY) / 4;
    uint8_t *p;

    if (words == 0)
        return;
    p = m->data + e->at + ENTRY + next_random(m, (uint32_t)words) * 4;
    if (next_random(m, 2) && p + 8 <= m->data + e->at + e->bytes)
        write_le64(p, values[next_random(m, ARRAY_COUNT(values))]);
    else
        write_le32(p, (uint32_t)values[next_random(m, ARRAY_COUNT(values))]);
}

static void insert_copy(struct log_mutate *m, const struct entry_at *at, const uint8_t *copy, size_t bytes)
{
    if (resize_at(m, at->record, at->at, 0, bytes))
        memcpy(m->data + at->at, copy, bytes);
}

size_t fuzz_log_mutate(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed, size_t skip)
{
    struct log_mutate m = {.data = data, .bytes = bytes, .bytes_max = bytes_max, .random = seed};
    uint8_t copy[1024];
    struct entry_at a, b;

    if (bytes > skip + HEADER)
        find_entries(&m, skip + HEADER);
    if (m.count == 0 || next_random(&m, 3) == 0)
        return LLVMFuzzerMutate(data, bytes, bytes_max);
    a = m.entries[next_random(&m, m.count)];
    b = m.entries[next_random(&m, m.count)];
    switch (next_random(&m, 8)) {
    case 0: /* take one out */
        (void)resize_at(&m, a.record, a.at, a.bytes, 0);
        break;
    case 1: /* the same again elsewhere */
    case 2:
        if (a.bytes <= sizeof(copy)) {
            memcpy(copy, data + a.at, a.bytes);
            insert_copy(&m, &b, copy, a.bytes);
        }
        break;
    case 3: /* steer */
        data[a.record + 15 + next_random(&m, 8) % 8] = (uint8_t)"JX\0\1\2\377J"[next_random(&m, 7)];
        break;
    case 4:
    case 5:
        insert_copy(&m, &b, copy, make_entry(&m, copy));
        break;
    default:
        change_field(&m, &a);
    }
    return m.bytes;
}
