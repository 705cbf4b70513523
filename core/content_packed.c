/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content_packed: the lz4 blocks of a packed big file (format.h: "Packed big file"), written once from front to
 * back and then read anywhere without decoding the whole.
 *
 * Every full 64 KiB is compressed and written as it comes, as it is where that does not pay; what is left waits in
 * tail until it is full or the file is finished. A write that fails leaves the blocks before it as they were, so
 * that it can be repeated: nothing in struct packed changes before its last pwrite has succeeded.
 *
 * Invariant P1: blocks[0 .. block_count) describe the file's first blocks_bytes; all but the last are full.
 * What may never happen: a block handed out whose checksum differs; an index believed that does not add up.
 */
#include <limits.h>
#include <xxhash.h>

#include "codec.h"
#include "content_internal.h"
#include "format.h"

#define PACKED_OBJECT_MAGIC 0x6b636170u
#define BLOCK_IS_RAW (1u << 31)
#define DECODED_BLOCKS 2u
#define FOOTER_CHECKED_BYTES 48u
#define PACKED_SIZE_BYTES_MAX (1ull << 40) /* bounds the index that is read for a file */

static_assert(FOOTER_CHECKED_BYTES + 8 == DISK_PACKED_FOOTER_BYTES, "the checksum closes the footer");
static_assert(PACKED_BLOCK_BYTES < BLOCK_IS_RAW, "the flag is no length");

struct packed_block {
    uint64_t offset;
    uint64_t checksum; /* of the decoded block */
    uint32_t stored_bytes;
    bool is_raw;
};

struct decoded {
    uint32_t block_index; /* UINT32_MAX: none */
    uint64_t used_no;
    uint8_t *data; /* PACKED_BLOCK_BYTES, owned */
};

struct packed {
    uint32_t magic;
    enum compress_mode mode;
    struct packed_block *blocks; /* owned */
    uint32_t block_count, block_room;
    uint64_t blocks_bytes; /* in the file */
    uint64_t size_bytes;   /* decoded, tail included */
    uint64_t file_end;     /* the file may reach up to here */
    bool tail_finished;    /* blocks[block_count] is the tail, written by packed_finish */
    uint8_t *tail;         /* PACKED_BLOCK_BYTES, owned; NULL once sealed */
    uint8_t *scratch;      /* a block as stored; PACKED_BLOCK_BYTES, owned */
    struct decoded decoded[DECODED_BLOCKS];
    uint64_t use_no;
};

static size_t packed_tail_bytes(const struct packed *p)
{
    return (size_t)(p->size_bytes - (uint64_t)p->block_count * PACKED_BLOCK_BYTES);
}

static uint32_t block_decoded_bytes(const struct packed *p, uint32_t index)
{
    return (uint32_t)MIN(p->size_bytes - (uint64_t)index * PACKED_BLOCK_BYTES, PACKED_BLOCK_BYTES);
}

static struct packed *packed_alloc(enum compress_mode mode)
{
    struct packed *p = calloc(1, sizeof(*p));

    if (!p)
        return NULL;
    p->magic = PACKED_OBJECT_MAGIC;
    p->mode = mode;
    for (unsigned i = 0; i < DECODED_BLOCKS; i++)
        p->decoded[i].block_index = UINT32_MAX;
    p->scratch = malloc(PACKED_BLOCK_BYTES);
    if (!p->scratch) {
        packed_free(p);
        return NULL;
    }
    content_count_memory(PACKED_BLOCK_BYTES);
    return p;
}

int packed_new(enum compress_mode mode, struct packed **ret_packed)
{
    struct packed *p = packed_alloc(mode);

    if (!p)
        return -ENOMEM;
    p->tail = malloc(PACKED_BLOCK_BYTES);
    if (!p->tail) {
        packed_free(p);
        return -ENOMEM;
    }
    content_count_memory(PACKED_BLOCK_BYTES);
    *ret_packed = p;
    return 0;
}

void packed_free(struct packed *p)
{
    if (!p)
        return;
    CHECK_OBJ(p, PACKED_OBJECT_MAGIC);
    content_count_memory(-(int64_t)packed_memory(p));
    for (unsigned i = 0; i < DECODED_BLOCKS; i++)
        free(p->decoded[i].data);
    free(p->blocks);
    free(p->tail);
    free(p->scratch);
    p->magic = 0;
    free(p);
}

size_t packed_memory(const struct packed *p)
{
    size_t bytes = p->block_room * sizeof(*p->blocks);

    bytes += p->tail ? PACKED_BLOCK_BYTES : 0;
    bytes += p->scratch ? PACKED_BLOCK_BYTES : 0;
    for (unsigned i = 0; i < DECODED_BLOCKS; i++)
        bytes += p->decoded[i].data ? PACKED_BLOCK_BYTES : 0;
    return bytes;
}

static int packed_room(struct packed *p, uint64_t block_count)
{
    uint64_t room = MAX(MAX(32, (uint64_t)p->block_room * 2), block_count);
    struct packed_block *blocks;

    if (block_count <= p->block_room)
        return 0;
    if (room > PACKED_SIZE_BYTES_MAX / PACKED_BLOCK_BYTES + 1)
        return -EFBIG;
    blocks = realloc(p->blocks, room * sizeof(*blocks));
    if (!blocks)
        return -ENOMEM;
    content_count_memory((int64_t)((room - p->block_room) * sizeof(*blocks)));
    p->blocks = blocks;
    p->block_room = (uint32_t)room;
    return 0;
}

/* ---- writing ---- */

static uint64_t packed_end_bytes(uint64_t blocks_bytes, uint64_t block_count)
{
    return blocks_bytes + block_count * DISK_PACKED_INDEX_BYTES + DISK_PACKED_FOOTER_BYTES;
}

/* Writes one block behind the others and describes it in *b, which must come after the last one. */
static int packed_put_block(struct packed *p, struct io *io, struct big_file *f, const uint8_t *data,
                            uint32_t bytes, uint64_t offset, struct packed_block *b)
{
    const uint8_t *stored = data;
    size_t stored_bytes = bytes;
    int r = codec_pack(p->mode, data, bytes, p->scratch, PACKED_BLOCK_BYTES, &stored_bytes);

    if (r == 0)
        stored = p->scratch;
    else if (r == -E2BIG)
        stored_bytes = bytes;
    else
        return r;
    *b = (struct packed_block){
        .offset = offset,
        .checksum = codec_checksum(data, bytes),
        .stored_bytes = (uint32_t)stored_bytes,
        .is_raw = r == -E2BIG,
    };
    f->synced = false;
    p->file_end = MAX(p->file_end, offset + stored_bytes);
    return io_write_full(io, f->fd_rw, stored, stored_bytes, offset);
}

static int packed_reserve(struct packed *p, struct store *st, struct big_file *f, uint64_t bytes)
{
    uint64_t size = p->size_bytes + bytes, count = size / PACKED_BLOCK_BYTES + 1;
    uint64_t unwritten = packed_tail_bytes(p) + bytes;
    uint64_t end =
        round_up(MAX(packed_end_bytes(p->blocks_bytes + unwritten, count), p->file_end), BLOCK_BYTES);
    int r;

    r = packed_room(p, count + 1);
    if (r < 0)
        return r;
    f->data_bytes = round_up(MAX(p->blocks_bytes, p->file_end), BLOCK_BYTES); /* written densely from 0 */
    f->asked_bytes = f->data_bytes;
    return big_file_reserve(st, f, end - f->data_bytes, 0);
}

int packed_append(struct packed *p, struct store *st, struct big_file *f, const void *buf, size_t bytes)
{
    struct io *io = store_io(st);
    const uint8_t *data = buf;
    uint64_t blocks_bytes = p->blocks_bytes;
    uint32_t count = p->block_count;
    size_t tail_bytes = packed_tail_bytes(p), left = bytes;
    int r;

    CHECK_OBJ(p, PACKED_OBJECT_MAGIC);
    assert(p->tail);
    r = packed_reserve(p, st, f, bytes);
    if (r < 0)
        return r;
    p->tail_finished = false;
    while (tail_bytes + left >= PACKED_BLOCK_BYTES) {
        size_t take = PACKED_BLOCK_BYTES - tail_bytes;
        if (tail_bytes > 0) /* behind what is in use: a failure below leaves that as it was */
            memcpy(p->tail + tail_bytes, data, take);
        r = packed_put_block(p, io, f, tail_bytes > 0 ? p->tail : data, PACKED_BLOCK_BYTES, blocks_bytes,
                             &p->blocks[count]);
        if (r < 0)
            return r;
        blocks_bytes += p->blocks[count++].stored_bytes;
        data += take;
        left -= take;
        tail_bytes = 0;
    }
    if (left > 0)
        memcpy(p->tail + tail_bytes, data, left);
    p->block_count = count;
    p->blocks_bytes = blocks_bytes;
    p->size_bytes += bytes; /* keeps P1 */
    return 0;
}

static void packed_footer(const struct packed *p, const uint8_t *index, uint32_t count, uint64_t blocks_bytes,
                          uint64_t node_id, uint64_t big_id, uint8_t out[DISK_PACKED_FOOTER_BYTES])
{
    memcpy(out, FORMAT_PACKED_MAGIC, 8);
    write_le32(out + 8, PACKED_BLOCK_BYTES);
    write_le32(out + 12, count);
    write_le64(out + 16, p->size_bytes);
    write_le64(out + 24, blocks_bytes);
    write_le64(out + 32, node_id);
    write_le64(out + 40, codec_checksum(index, (size_t)count * DISK_PACKED_INDEX_BYTES));
    write_le64(out + FOOTER_CHECKED_BYTES, XXH3_64bits_withSeed(out, FOOTER_CHECKED_BYTES, big_id));
}

int packed_finish(struct packed *p, struct store *st, struct big_file *f, uint64_t node_id)
{
    struct io *io = store_io(st);
    uint32_t tail_bytes = (uint32_t)packed_tail_bytes(p), count = p->block_count + (tail_bytes > 0);
    size_t end_bytes = (size_t)count * DISK_PACKED_INDEX_BYTES + DISK_PACKED_FOOTER_BYTES;
    _cleanup_free_ uint8_t *end = malloc(end_bytes);
    uint64_t blocks_bytes = p->blocks_bytes;
    int r = packed_reserve(p, st, f, 0);

    if (!end)
        return -ENOMEM;
    if (r == 0 && tail_bytes > 0)
        r = packed_put_block(p, io, f, p->tail, tail_bytes, blocks_bytes, &p->blocks[p->block_count]);
    if (r < 0)
        return r;
    if (tail_bytes > 0)
        blocks_bytes += p->blocks[p->block_count].stored_bytes;
    for (uint32_t i = 0; i < count; i++) {
        const struct packed_block *b = &p->blocks[i];
        write_le32(end + i * DISK_PACKED_INDEX_BYTES, b->stored_bytes | (b->is_raw ? BLOCK_IS_RAW : 0));
        write_le32(end + i * DISK_PACKED_INDEX_BYTES + 4, 0);
        write_le64(end + i * DISK_PACKED_INDEX_BYTES + 8, b->checksum);
    }
    packed_footer(p, end, count, blocks_bytes, node_id, f->big_id,
                  end + end_bytes - DISK_PACKED_FOOTER_BYTES);
    p->file_end = MAX(p->file_end, blocks_bytes + end_bytes);
    r = io_write_full(io, f->fd_rw, end, end_bytes, blocks_bytes);
    if (r == 0 &&
        p->file_end > blocks_bytes + end_bytes) /* an earlier, longer try: the footer must be last */
        r = io_truncate(io, f->fd_rw, blocks_bytes + end_bytes);
    if (r < 0)
        return r;
    p->file_end = blocks_bytes + end_bytes;
    p->tail_finished = tail_bytes > 0;
    return 0;
}

void packed_seal(struct packed *p)
{
    if (p->tail_finished)
        p->blocks_bytes += p->blocks[p->block_count++].stored_bytes;
    p->tail_finished = false;
    free(p->tail);
    if (p->tail)
        content_count_memory(-(int64_t)PACKED_BLOCK_BYTES);
    p->tail = NULL;
}

uint64_t packed_disk_bytes(const struct packed *p)
{
    return MAX(p->blocks_bytes + (p->tail ? packed_tail_bytes(p) : 0), p->file_end);
}

/* ---- reading ---- */

static int read_at(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset, bool nowait)
{
    int r =
        nowait ? io_read_full_nowait(io, fd, buf, bytes, offset) : io_read_full(io, fd, buf, bytes, offset);

    if (r == -ENODATA)
        return -EBADMSG;
    return r == -EOPNOTSUPP ? -EAGAIN : r;
}

/* Footer of a file that is file_bytes long: does it belong to this value, and add up? */
static int footer_check(const uint8_t in[DISK_PACKED_FOOTER_BYTES], const struct value *v, uint64_t node_id,
                        uint64_t file_bytes, uint32_t *ret_count)
{
    uint64_t blocks_bytes = read_le64(in + 24);
    uint32_t count = read_le32(in + 12);

    if (memcmp(in, FORMAT_PACKED_MAGIC, 8) != 0)
        return -EBADMSG;
    if (read_le64(in + FOOTER_CHECKED_BYTES) != XXH3_64bits_withSeed(in, FOOTER_CHECKED_BYTES, v->big_id))
        return -EBADMSG;
    if (read_le32(in + 8) != PACKED_BLOCK_BYTES || read_le64(in + 32) != node_id)
        return -EBADMSG;
    if (read_le64(in + 16) != v->size_bytes)
        return -EBADMSG;
    if (count != round_up(v->size_bytes, PACKED_BLOCK_BYTES) / PACKED_BLOCK_BYTES)
        return -EBADMSG;
    if (blocks_bytes > file_bytes || packed_end_bytes(blocks_bytes, count) != file_bytes)
        return -EBADMSG;
    *ret_count = count;
    return 0;
}

static int index_unpack(struct packed *p, const uint8_t *index, uint32_t count, uint64_t blocks_bytes)
{
    uint64_t offset = 0;
    int r = packed_room(p, count);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < count; i++, index += DISK_PACKED_INDEX_BYTES) {
        uint32_t word = read_le32(index), stored = word & ~BLOCK_IS_RAW;
        bool is_raw = word & BLOCK_IS_RAW;
        if (read_le32(index + 4) != 0 || stored == 0)
            return -EBADMSG;
        if (is_raw ? stored != block_decoded_bytes(p, i) : stored > block_decoded_bytes(p, i))
            return -EBADMSG;
        p->blocks[i] = (struct packed_block){offset, read_le64(index + 8), stored, is_raw};
        offset += stored;
    }
    p->block_count = count;
    p->blocks_bytes = blocks_bytes;
    return offset == blocks_bytes ? 0 : -EBADMSG; /* keeps P1 */
}

int packed_open(struct io *io, int fd, const struct value *v, uint64_t node_id, bool nowait,
                struct packed **ret_packed)
{
    uint8_t footer[DISK_PACKED_FOOTER_BYTES];
    _cleanup_free_ uint8_t *index = NULL;
    struct packed *p;
    struct stat stat;
    uint32_t count = 0;
    int r = io_stat(io, fd, &stat);

    if (r < 0)
        return r;
    if (stat.st_size < (off_t)sizeof(footer) || v->size_bytes == 0 || v->size_bytes > PACKED_SIZE_BYTES_MAX)
        return -EBADMSG;
    r = read_at(io, fd, footer, sizeof(footer), (uint64_t)stat.st_size - sizeof(footer), nowait);
    if (r == 0)
        r = footer_check(footer, v, node_id, (uint64_t)stat.st_size, &count);
    if (r < 0)
        return r;
    index = malloc((size_t)count * DISK_PACKED_INDEX_BYTES);
    if (!index)
        return -ENOMEM;
    r = read_at(io, fd, index, (size_t)count * DISK_PACKED_INDEX_BYTES, read_le64(footer + 24), nowait);
    if (r < 0)
        return r;
    if (codec_checksum(index, (size_t)count * DISK_PACKED_INDEX_BYTES) != read_le64(footer + 40))
        return -EBADMSG;
    p = packed_alloc(COMPRESS_NONE);
    if (!p)
        return -ENOMEM;
    p->size_bytes = v->size_bytes;
    p->file_end = (uint64_t)stat.st_size;
    r = index_unpack(p, index, count, read_le64(footer + 24));
    if (r < 0) {
        packed_free(p);
        return r;
    }
    *ret_packed = p;
    return 0;
}

/* Decodes and verifies block index into out. */
static int packed_get_block(struct packed *p, struct io *io, int fd, uint32_t index, bool nowait,
                            uint8_t *out)
{
    const struct packed_block *b = &p->blocks[index];
    uint32_t bytes = block_decoded_bytes(p, index);
    int r = read_at(io, fd, b->is_raw ? out : p->scratch, b->stored_bytes, b->offset, nowait);

    if (r == 0 && !b->is_raw)
        r = codec_unpack(CODEC_LZ4, p->scratch, b->stored_bytes, out, bytes);
    if (r == 0 && codec_checksum(out, bytes) != b->checksum)
        r = -EBADMSG;
    return r;
}

/* The block decoded, in the cache of a few. */
static int packed_find_block(struct packed *p, struct io *io, int fd, uint32_t index, bool nowait,
                             const uint8_t **ret_data)
{
    struct decoded *d = &p->decoded[0];
    int r;

    for (unsigned i = 0; i < DECODED_BLOCKS; i++) {
        if (p->decoded[i].used_no < d->used_no)
            d = &p->decoded[i];
        if (p->decoded[i].block_index != index)
            continue;
        p->decoded[i].used_no = ++p->use_no;
        *ret_data = p->decoded[i].data;
        return 0;
    }
    if (!d->data) {
        d->data = malloc(PACKED_BLOCK_BYTES);
        if (!d->data)
            return -ENOMEM;
        content_count_memory(PACKED_BLOCK_BYTES);
    }
    d->block_index = UINT32_MAX;
    r = packed_get_block(p, io, fd, index, nowait, d->data);
    if (r < 0)
        return r;
    d->block_index = index;
    d->used_no = ++p->use_no;
    *ret_data = d->data;
    return 0;
}

int packed_read(struct packed *p, struct io *io, int fd, void *buf, size_t bytes, uint64_t offset,
                bool nowait)
{
    uint8_t *out = buf;
    int r = 0;

    CHECK_OBJ(p, PACKED_OBJECT_MAGIC);
    assert(offset + bytes <= p->size_bytes);
    while (bytes > 0 && r == 0) {
        uint32_t index = (uint32_t)(offset / PACKED_BLOCK_BYTES);
        size_t skip = (size_t)(offset % PACKED_BLOCK_BYTES), take = MIN(bytes, PACKED_BLOCK_BYTES - skip);
        const uint8_t *data = NULL;

        if (index >= p->block_count) {
            memcpy(out, p->tail + skip, take);
        } else if (skip == 0 && take == block_decoded_bytes(p, index)) {
            r = packed_get_block(p, io, fd, index, nowait, out);
        } else {
            r = packed_find_block(p, io, fd, index, nowait, &data);
            if (r == 0)
                memcpy(out, data + skip, take);
        }
        out += take;
        offset += take;
        bytes -= take;
    }
    return r;
}
