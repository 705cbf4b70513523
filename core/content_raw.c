/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content_raw: the big file under a content. Its descriptors, what is charged for it, its raw bytes and their
 * block sums.
 *
 * What a file takes is known late: data sits in the page cache first, and the file system adds extent blocks when
 * it places it. So charging runs on an upper bound: data_bytes counts every block a write may have added
 * (all of them where the file has holes), extents_bound() what placing them can cost at worst. The file system is
 * asked (st_blocks) only when the bound has drifted, when the quota says no, and at commit.
 *
 * The sums record: u32 block_bytes, u32 count, u64 size_bytes, then count times u64. block_bytes is the least
 * 64 KiB << k that needs no more than SUMS_BLOCKS_MAX blocks. The sum of a block is the xxh3 of its bytes when it is
 * 64 KiB, else the xxh3 of the little-endian xxh3s of its 64 KiB pieces (the last of each may be shorter).
 *
 * Invariant R1: du(file) <= settled_bytes + reserved_bytes, at every instant.
 * Invariant R2: data allocated <= data_bytes, also where the file system could not be asked.
 * Invariant R3: sums.pieces describe the first hashed_bytes of the file as they are now.
 */
#include <fcntl.h>
#include <stdio.h>
#include <xxhash.h>

#include "codec.h"
#include "content_internal.h"

#define RESERVE_AHEAD_BYTES MIB       /* taken at once while the quota is far */
#define RESERVE_AHEAD_WHEN (64 * MIB) /* "far" */
#define REFRESH_DRIFT_BYTES (4 * MIB)
#define EXTENTS_PER_BLOCK 340u /* ext4: (4096 - 12 - 4) / 12 */
#define EXTENTS_IN_INODE 4u
#define READ_BUFFER_BYTES (256u << 10)
#define SUMS_PIECES_PER_BLOCK_MAX 128u

static_assert(SUMS_FILE_BYTES_MAX / SUMS_BLOCKS_MAX / SUMS_PIECE_BYTES <= SUMS_PIECES_PER_BLOCK_MAX,
              "a block's pieces fit");
static_assert(READ_BUFFER_BYTES % SUMS_PIECE_BYTES == 0, "whole pieces are read");

/* ---- the file ---- */

static struct big_file *big_file_alloc(uint64_t big_id)
{
    struct big_file *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->magic = BIG_FILE_MAGIC;
    atomic_init(&f->refs, 1);
    f->big_id = big_id;
    f->fd_ro = f->fd_rw = -1;
    return f;
}

int big_file_create(struct store *st, struct big_file **ret_file)
{
    struct big_file *f = big_file_alloc(0);
    int r;

    if (!f)
        return -ENOMEM;
    r = store_big_create(st, &f->big_id, &f->fd_rw);
    if (r < 0) {
        f->magic = 0;
        free(f);
        return r;
    }
    f->counted = true;
    *ret_file = f;
    return 0;
}

int big_file_open(struct store *st, uint64_t big_id, uint64_t charged_bytes, struct big_file **ret_file)
{
    struct big_file *f = big_file_alloc(big_id);
    int r;

    if (!f)
        return -ENOMEM;
    r = store_big_open(st, big_id, false, &f->fd_ro);
    if (r < 0) {
        f->magic = 0;
        free(f);
        return r == -ENOENT || r == -ELOOP || r == -ENOTDIR || r == -ENXIO ? -EBADMSG : r;
    }
    f->settled_bytes = charged_bytes;
    *ret_file = f;
    return 0;
}

int big_file_need_rw(struct store *st, struct big_file *f)
{
    return f->fd_rw >= 0 ? 0 : store_big_open(st, f->big_id, true, &f->fd_rw);
}

int big_file_need_ro(struct store *st, struct big_file *f)
{
    return f->fd_ro >= 0 ? 0 : store_big_open(st, f->big_id, false, &f->fd_ro);
}

struct big_file *big_file_ref(struct big_file *f)
{
    CHECK_OBJ(f, BIG_FILE_MAGIC);
    (void)atomic_fetch_add(&f->refs, 1);
    return f;
}

void big_file_unref(struct store *st, struct big_file *f)
{
    if (!f)
        return;
    CHECK_OBJ(f, BIG_FILE_MAGIC);
    if (atomic_fetch_sub(&f->refs, 1) > 1)
        return;
    store_big_close(st, f->fd_ro);
    store_big_close(st, f->fd_rw);
    f->magic = 0;
    free(f);
}

int big_file_fd(const struct big_file *f)
{
    return f->fd_rw >= 0 ? f->fd_rw : f->fd_ro;
}

/* ---- what it is charged ---- */

/* Blocks of extents that placing data_bytes can cost when every block lies by itself. */
static uint64_t extents_bound(uint64_t data_bytes)
{
    uint64_t blocks = round_up(data_bytes, BLOCK_BYTES) / BLOCK_BYTES, level = blocks, total = 0;

    while (level > EXTENTS_IN_INODE) {
        level = round_up(level, EXTENTS_PER_BLOCK) / EXTENTS_PER_BLOCK;
        total += level;
    }
    return total * BLOCK_BYTES;
}

void big_file_discard(struct store *st, struct big_file *f)
{
    uint64_t big_id = f->big_id, settled = f->settled_bytes, reserved = f->reserved_bytes;
    uint64_t taken = MAX(f->data_bytes + extents_bound(f->data_bytes), settled + reserved);

    big_file_unref(st, f); /* first: what is released below must be gone */
    if (store_big_unlink(st, big_id, settled, false) == 0)
        quota_release(store_quota(st), reserved);
    else
        store_big_settle(st, settled, taken, reserved); /* a leftover: charged until the next mount sweeps it */
}

int big_file_refresh(struct store *st, struct big_file *f)
{
    uint64_t disk_bytes;
    int r = io_disk_bytes(store_io(st), big_file_fd(f), &disk_bytes);

    if (r < 0)
        return r;
    f->data_bytes = f->asked_bytes = disk_bytes;
    return 0;
}

int big_file_reserve(struct store *st, struct big_file *f, uint64_t growth_bytes, uint64_t extra_bytes)
{
    struct quota *q = store_quota(st);

    for (int asked = 0;; asked++) {
        uint64_t data = f->data_bytes + growth_bytes;
        uint64_t need = data + extents_bound(data) + extra_bytes;
        uint64_t have = f->settled_bytes + f->reserved_bytes;
        uint64_t missing;
        int r;

        if (need <= have)
            return 0;
        missing = need - have;
        if (asked == 0 && f->data_bytes - f->asked_bytes >= REFRESH_DRIFT_BYTES && f->holes) {
            r = big_file_refresh(st, f);
            if (r < 0)
                return r;
            continue;
        }
        if (missing < RESERVE_AHEAD_BYTES && quota_available(q) > RESERVE_AHEAD_WHEN)
            missing = RESERVE_AHEAD_BYTES;
        r = quota_reserve(q, missing);
        if (r == 0)
            f->reserved_bytes += missing;
        if (r != -ENOSPC || asked > 0 || f->data_bytes == f->asked_bytes)
            return r;
        r = big_file_refresh(st, f); /* the bound may be far above the truth */
        if (r < 0)
            return r;
    }
}

int big_file_settle(struct store *st, struct big_file *f)
{
    uint64_t have = f->settled_bytes + f->reserved_bytes, charge;
    int r = big_file_refresh(st, f);

    if (r < 0)
        return r;
    charge = f->synced ? f->data_bytes : f->data_bytes + extents_bound(f->data_bytes);
    charge = MAX(MIN(charge, have), f->data_bytes); /* what is there may hold extent blocks already */
    if (f->settled_bytes > charge && f->settled_bytes - charge <= extents_bound(f->data_bytes))
        charge = f->settled_bytes; /* so that a value changed in place need not be journaled for this alone */
    store_big_settle(st, f->settled_bytes, charge, f->reserved_bytes);
    f->settled_bytes = charge;
    f->reserved_bytes = 0; /* keeps R1 */
    return 0;
}

void big_file_unsettle(struct store *st, struct big_file *f, uint64_t value_bytes)
{
    uint64_t extra = f->settled_bytes - MIN(f->settled_bytes, value_bytes);

    quota_charge(store_quota(st), extra); /* the settling below gives as much back */
    store_big_settle(st, f->settled_bytes, value_bytes, 0);
    f->settled_bytes = value_bytes;
    f->reserved_bytes += extra; /* keeps R1 */
}

void big_file_keep(struct store *st, struct big_file *f)
{
    uint64_t need = f->data_bytes + extents_bound(f->data_bytes);
    uint64_t charge = MAX(f->settled_bytes, MIN(need, f->settled_bytes + f->reserved_bytes));

    store_big_settle(st, f->settled_bytes, charge, f->reserved_bytes);
    f->settled_bytes = charge;
    f->reserved_bytes = 0; /* keeps R1, by R2 */
}

int big_file_sync(struct store *st, struct big_file *f, int fd)
{
    int r = atomic_load(&f->error);

    if (r < 0)
        return r;
    r = io_sync_data(store_io(st), fd);
    if (r < 0) {
        r = r == -ENOSPC ? -EIO : r; /* nothing to try again: what was dropped is dropped */
        atomic_store(&f->error, r);
        store_failed(st, r, "big file");
        return r;
    }
    if (!atomic_load(&f->entry_synced)) {
        r = store_big_sync_entry(st, f->big_id);
        if (r < 0)
            return r;
        atomic_store(&f->entry_synced, true);
    }
    return 0;
}

/* ---- raw bytes ---- */

/* What a write of the range can add to the file's data, and how the file looks after it. */
static uint64_t raw_growth(const struct big_file *f, uint64_t offset, uint64_t bytes)
{
    uint64_t start = offset / BLOCK_BYTES * BLOCK_BYTES;
    uint64_t end = round_up(offset + bytes, BLOCK_BYTES);

    if (f->holes || start > f->dense_end)
        return end - start;
    return end > f->dense_end ? end - f->dense_end : 0;
}

static void raw_grown(struct big_file *f, uint64_t offset, uint64_t bytes)
{
    uint64_t start = offset / BLOCK_BYTES * BLOCK_BYTES;
    uint64_t end = round_up(offset + bytes, BLOCK_BYTES);

    f->data_bytes += raw_growth(f, offset, bytes);
    if (start > f->dense_end)
        f->holes = true;
    f->dense_end = MAX(f->dense_end, end);
    f->synced = false;
}

static uint64_t sums_cost(const struct content *c, uint64_t size_bytes)
{
    if (atomic_load(&c->state) == CONTENT_IN_PLACE || size_bytes > SUMS_FILE_BYTES_MAX)
        return 0;
    return store_append_cost(c->st, sums_record_bytes(size_bytes));
}

int raw_trim(struct content *c, struct big_file *f)
{
    int r = f->tail_left ? io_truncate(store_io(c->st), f->fd_rw, atomic_load(&c->size_bytes)) : 0;

    if (r == 0)
        f->tail_left = false;
    return r;
}

int raw_write(struct content *c, struct big_file *f, const void *buf, size_t bytes, uint64_t offset)
{
    uint64_t size = atomic_load(&c->size_bytes);
    uint64_t end = offset + bytes;
    int r;

    r = raw_trim(c, f);
    if (r == 0)
        r = big_file_reserve(c->st, f, raw_growth(f, offset, bytes), sums_cost(c, MAX(size, end)));
    if (r < 0)
        return r;
    raw_grown(f, offset, bytes); /* also when it fails: some of it may be there; keeps R2 */
    sums_cut(&c->sums, offset);  /* keeps R3 */
    r = io_write_full(store_io(c->st), f->fd_rw, buf, bytes, offset);
    if (r < 0) {
        f->holes = true; /* which of its blocks it got is not known */
        f->tail_left = end > size;
        (void)raw_trim(c, f); /* else before the next change or commit */
        return r;
    }
    if (atomic_load(&c->state) != CONTENT_IN_PLACE) /* that one is summed when it is sealed */
        sums_feed(&c->sums, buf, bytes, offset);
    return 0;
}

int raw_truncate(struct content *c, struct big_file *f, uint64_t size_bytes)
{
    struct io *io = store_io(c->st);
    uint64_t size = atomic_load(&c->size_bytes);
    /* A partial last block that is not there may be allocated to be zeroed. */
    uint64_t growth = size_bytes % BLOCK_BYTES != 0 ? raw_growth(f, size_bytes, 1) : 0;
    int r = raw_trim(c, f);

    if (r == 0)
        r = big_file_reserve(c->st, f, growth, sums_cost(c, size_bytes));
    if (r < 0)
        return r;
    f->data_bytes += growth; /* keeps R2, also when it fails */
    r = io_truncate(io, f->fd_rw, size_bytes);
    if (r < 0)
        return r;
    f->synced = false;
    sums_cut(&c->sums, MIN(size_bytes, size));
    if (size_bytes > f->dense_end)
        f->holes = true;
    else if (!f->holes)
        f->dense_end = MIN(f->dense_end, round_up(size_bytes, BLOCK_BYTES));
    if (size_bytes < size || growth > 0)
        (void)big_file_refresh(c->st, f); /* else the bound stays above the truth; what was cut is cut */
    return 0;
}

int raw_allocate(struct content *c, struct big_file *f, int mode, uint64_t offset, uint64_t bytes)
{
    uint64_t size = atomic_load(&c->size_bytes);
    uint64_t growth = raw_growth(f, offset, bytes) + 2 * BLOCK_BYTES;
    int r = raw_trim(c, f);

    if (r == 0)
        r = big_file_reserve(c->st, f, growth, sums_cost(c, size));
    if (r < 0)
        return r;
    f->data_bytes += growth; /* keeps R2, also when it fails: some of it may be there */
    f->holes = true; /* from here on the file's own word counts, not ours */
    f->synced = false;
    sums_cut(&c->sums, offset);
    r = io_allocate(store_io(c->st), f->fd_rw, mode, offset, bytes);
    if (r < 0) {
        f->tail_left = true;
        (void)raw_trim(c, f); /* as in raw_write */
    }
    (void)big_file_refresh(c->st, f); /* else the bound stays above the truth */
    return r;
}

int raw_read(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset, bool nowait)
{
    size_t got = 0;
    int r;

    if (nowait) {
        r = io_read_full_nowait(io, fd, buf, bytes, offset);
        if (r == -EOPNOTSUPP)
            return -EAGAIN;
        if (r != -ENODATA)
            return r;
    }
    r = io_read_upto(io, fd, buf, bytes, offset, &got);
    if (r == 0)
        memset((uint8_t *)buf + got, 0, bytes - got);
    return r;
}

/* ---- sums ---- */

void sums_reset(struct sums *s)
{
    content_count_memory(-(int64_t)(s->room * sizeof(*s->pieces)));
    free(s->pieces);
    XXH3_freeState(s->state);
    *s = (struct sums){0};
}

static int sums_room(struct sums *s, uint64_t index)
{
    uint64_t room = MAX(MAX(64, s->room * 2), index + 1);
    uint64_t *pieces;

    if (!s->state) {
        s->state = XXH3_createState();
        if (!s->state)
            return -ENOMEM;
        (void)XXH3_64bits_reset(s->state); /* cannot fail on a state of its own making */
    }
    if (index < s->room)
        return 0;
    pieces = realloc(s->pieces, room * sizeof(*pieces));
    if (!pieces)
        return -ENOMEM;
    content_count_memory((int64_t)((room - s->room) * sizeof(*pieces)));
    s->pieces = pieces;
    s->room = room;
    return 0;
}

void sums_cut(struct sums *s, uint64_t offset)
{
    if (offset >= s->hashed_bytes)
        return;
    s->hashed_bytes = offset / SUMS_PIECE_BYTES * SUMS_PIECE_BYTES;
    if (s->state)
        (void)XXH3_64bits_reset(s->state);
}

/* 0 or -ENOMEM; what was taken in is in hashed_bytes. */
static int sums_update(struct sums *s, const uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        uint64_t index = s->hashed_bytes / SUMS_PIECE_BYTES;
        size_t used = (size_t)(s->hashed_bytes % SUMS_PIECE_BYTES);
        size_t take = MIN(bytes, SUMS_PIECE_BYTES - used);

        if (sums_room(s, index) < 0)
            return -ENOMEM;
        if (take == SUMS_PIECE_BYTES) {
            s->pieces[index] = codec_checksum(data, take);
        } else {
            (void)XXH3_64bits_update(s->state, data, take); /* fails on NULL only */
            if (used + take == SUMS_PIECE_BYTES) {
                s->pieces[index] = XXH3_64bits_digest(s->state);
                (void)XXH3_64bits_reset(s->state);
            }
        }
        s->hashed_bytes += take;
        data += take;
        bytes -= take;
    }
    return 0;
}

void sums_feed(struct sums *s, const void *buf, size_t bytes, uint64_t offset)
{
    if (offset != s->hashed_bytes || offset + bytes > SUMS_FILE_BYTES_MAX)
        return;                       /* a gap, or written again: sums_complete reads from here on */
    (void)sums_update(s, buf, bytes); /* without memory: likewise */
}

int sums_complete(struct sums *s, struct io *io, int fd, uint64_t size_bytes, uint64_t reread_bytes_max)
{
    _cleanup_free_ uint8_t *buf = NULL;
    int r = 0;

    sums_cut(s, size_bytes);
    if (size_bytes - s->hashed_bytes > reread_bytes_max)
        return -E2BIG;
    while (s->hashed_bytes < size_bytes && r == 0) {
        size_t take = (size_t)MIN(size_bytes - s->hashed_bytes, READ_BUFFER_BYTES);
        if (!buf)
            buf = malloc(READ_BUFFER_BYTES);
        if (!buf)
            return -ENOMEM;
        r = io_read_full(io, fd, buf, take, s->hashed_bytes);
        if (r == 0)
            r = sums_update(s, buf, take);
    }
    return r;
}

static uint64_t sums_block_bytes(uint64_t size_bytes)
{
    uint64_t block = SUMS_PIECE_BYTES;

    while (size_bytes > block * SUMS_BLOCKS_MAX)
        block *= 2;
    return block;
}

static uint32_t sums_count(uint64_t size_bytes)
{
    uint64_t block = sums_block_bytes(size_bytes);

    return (uint32_t)(round_up(size_bytes, block) / block);
}

uint32_t sums_record_bytes(uint64_t size_bytes)
{
    return SUMS_HEADER_BYTES + 8 * sums_count(size_bytes);
}

/* The sum of a block from those of its pieces. */
static uint64_t sums_fold(const uint64_t *pieces, uint64_t piece_count, uint64_t block_bytes)
{
    uint8_t raw[SUMS_PIECES_PER_BLOCK_MAX * 8];

    if (block_bytes == SUMS_PIECE_BYTES)
        return pieces[0];
    assert(piece_count <= SUMS_PIECES_PER_BLOCK_MAX);
    for (size_t i = 0; i < piece_count; i++)
        write_le64(raw + 8 * i, pieces[i]);
    return codec_checksum(raw, 8 * piece_count);
}

int sums_append(struct sums *s, struct store *st, uint64_t node_id, uint64_t size_bytes,
                struct place *ret_place)
{
    uint64_t block = sums_block_bytes(size_bytes);
    uint64_t pieces = round_up(size_bytes, SUMS_PIECE_BYTES) / SUMS_PIECE_BYTES,
             step = block / SUMS_PIECE_BYTES;
    uint32_t count = sums_count(size_bytes), bytes = sums_record_bytes(size_bytes);
    _cleanup_free_ uint8_t *payload = malloc(bytes);
    struct record_info info = {.kind = RECORD_SUMS, .codec = CODEC_RAW, .node_id = node_id};

    assert(s->hashed_bytes == size_bytes);
    assert(block <= UINT32_MAX);
    if (!payload)
        return -ENOMEM;
    if (size_bytes % SUMS_PIECE_BYTES != 0) /* the last piece is still open */
        s->pieces[pieces - 1] = XXH3_64bits_digest(s->state);
    write_le32(payload, (uint32_t)block);
    write_le32(payload + 4, count);
    write_le64(payload + 8, size_bytes);
    for (uint32_t i = 0; i < count; i++)
        write_le64(payload + SUMS_HEADER_BYTES + 8 * i,
                   sums_fold(s->pieces + i * step, MIN(step, pieces - i * step), block));
    info.logical_bytes = info.stored_bytes = bytes;
    info.checksum = codec_checksum(payload, bytes);
    return store_append(st, &info, payload, ret_place);
}

/* ---- verifying ---- */

void verifier_fini(struct verifier *v)
{
    free(v->sums);
    *v = (struct verifier){0};
}

bool verifier_is_loaded(const struct verifier *v)
{
    return v->sums != NULL;
}

static int verifier_unpack(struct verifier *v, const uint8_t *payload, uint64_t size_bytes)
{
    uint32_t count = sums_count(size_bytes);

    if (read_le32(payload) != sums_block_bytes(size_bytes))
        return -EBADMSG;
    if (read_le32(payload + 4) != count || read_le64(payload + 8) != size_bytes)
        return -EBADMSG;
    v->sums = calloc(1, 8 * (size_t)count + count / 8 + 1);
    if (!v->sums)
        return -ENOMEM;
    v->verified = (uint8_t *)(v->sums + count);
    for (uint32_t i = 0; i < count; i++)
        v->sums[i] = read_le64(payload + SUMS_HEADER_BYTES + 8 * i);
    v->block_bytes = sums_block_bytes(size_bytes);
    v->size_bytes = size_bytes;
    v->count = count;
    v->verified_count = 0;
    return 0;
}

int verifier_load(struct content *c, bool nowait)
{
    uint64_t size = c->value.size_bytes;
    uint32_t bytes = c->value.sums_bytes;
    _cleanup_free_ uint8_t *payload = NULL;
    struct record_info info;
    uint64_t place;
    int r;

    if (size == 0 || size > SUMS_FILE_BYTES_MAX || bytes != sums_record_bytes(size))
        return -EBADMSG;
    payload = malloc(bytes);
    if (!payload)
        return -ENOMEM;
    do { /* cleaning may have moved the record under us */
        place = atomic_load(&c->sums_place);
        r = store_read(c->st, place_from_u64(place), RECORD_SUMS, bytes, bytes, nowait, payload, &info);
    } while (r == -EBADMSG && atomic_load(&c->sums_place) != place);
    if (r < 0)
        return r;
    if (info.node_id != c->node_id)
        return -EBADMSG;
    return verifier_unpack(&c->verifier, payload, size);
}

static bool verifier_is_marked(const struct verifier *v, uint32_t index)
{
    return v->verified[index / 8] >> (index % 8) & 1;
}

bool verifier_find_doubt(const struct verifier *v, uint64_t offset, uint64_t bytes, uint32_t *ret_index)
{
    if (v->verified_count == v->count)
        return false;
    for (uint64_t i = offset / v->block_bytes; i * v->block_bytes < offset + bytes; i++) {
        if (!verifier_is_marked(v, (uint32_t)i)) {
            *ret_index = (uint32_t)i;
            return true;
        }
    }
    return false;
}

void verifier_mark(struct verifier *v, uint32_t index)
{
    assert(index < v->count);
    if (verifier_is_marked(v, index))
        return;
    v->verified[index / 8] = (uint8_t)(v->verified[index / 8] | 1u << (index % 8));
    v->verified_count++;
}

struct sums_block verifier_block(const struct verifier *v, uint32_t index)
{
    uint64_t start = index * v->block_bytes;

    assert(index < v->count);
    return (struct sums_block){
        .index = index,
        .start = start,
        .end = MIN(start + v->block_bytes, v->size_bytes),
        .block_bytes = v->block_bytes,
        .sum = v->sums[index],
    };
}

int sums_block_check(const struct sums_block *b, struct io *io, int fd, bool nowait)
{
    uint64_t pieces[SUMS_PIECES_PER_BLOCK_MAX], piece_count = 0;
    _cleanup_free_ uint8_t *buf = malloc(SUMS_PIECE_BYTES);
    int r;

    if (!buf)
        return -ENOMEM;
    for (uint64_t offset = b->start; offset < b->end; offset += SUMS_PIECE_BYTES) {
        size_t bytes = (size_t)MIN(b->end - offset, SUMS_PIECE_BYTES);
        r = nowait ? io_read_full_nowait(io, fd, buf, bytes, offset)
                   : io_read_full(io, fd, buf, bytes, offset);
        if (r < 0)
            return r == -ENODATA ? -EBADMSG : r == -EOPNOTSUPP ? -EAGAIN : r;
        pieces[piece_count++] = codec_checksum(buf, bytes);
    }
    return sums_fold(pieces, piece_count, b->block_bytes) == b->sum ? 0 : -EBADMSG;
}
