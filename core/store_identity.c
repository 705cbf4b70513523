/* SPDX-License-Identifier: BSD-2-Clause */
/* store_identity: see the header. Looks at 64 bytes of at most FILES_MAX files. */
#include "store_identity.h"

#include <fcntl.h>
#include <string.h>

#include "format.h"
#include "util.h"

#define FILES_MAX 4096u
#define CANDIDATES_MAX 8u
#define SEGMENT_STORE_ID_OFFSET 16u /* format.h: after magic, version and number */

struct vote {
    struct io *io;
    int dir_fd;
    struct {
        uint8_t store_id[16];
        uint32_t files;
    } candidates[CANDIDATES_MAX];
    unsigned count, looked;
    bool newer;
};

static void vote_for(struct vote *v, const uint8_t store_id[16])
{
    for (unsigned i = 0; i < v->count; i++)
        if (memcmp(v->candidates[i].store_id, store_id, 16) == 0) {
            v->candidates[i].files++;
            return;
        }
    if (v->count == CANDIDATES_MAX)
        return;
    memcpy(v->candidates[v->count].store_id, store_id, 16);
    v->candidates[v->count++].files = 1;
}

/* 0, or why the header says nothing. */
static int header_judge(const uint8_t raw[DISK_JOURNAL_HEADER_BYTES], const char *name, uint8_t ret_store_id[16])
{
    struct journal_header header;
    uint32_t no;
    int r;

    if (format_name_parse(name, "seg-", &no)) {
        memcpy(ret_store_id, raw + SEGMENT_STORE_ID_OFFSET, 16);
        return format_segment_header_unpack(raw, ret_store_id, no);
    }
    r = format_journal_header_unpack(raw, &header);
    if (r < 0)
        return r;
    if (!format_name_parse(name, header.is_index ? "index-" : "journal-", &no) || no != header.file_no)
        return -EBADMSG;
    memcpy(ret_store_id, header.store_id, 16);
    return 0;
}

static int vote_visit(void *ctx, const char *name) /* io_visit */
{
    struct vote *v = ctx;
    uint8_t raw[DISK_JOURNAL_HEADER_BYTES], store_id[16];
    uint32_t no;
    int fd, r;

    if (!format_name_parse(name, "journal-", &no) && !format_name_parse(name, "index-", &no) &&
        !format_name_parse(name, "seg-", &no))
        return 0;
    if (v->looked++ >= FILES_MAX)
        return 1;
    fd = io_open(v->io, v->dir_fd, name, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return 0;
    r = io_read_full(v->io, fd, raw, sizeof(raw), 0);
    io_close(v->io, fd);
    if (r == 0)
        r = header_judge(raw, name, store_id);
    if (r == 0)
        vote_for(v, store_id);
    v->newer |= r == -EPROTONOSUPPORT;
    return 0;
}

static_assert(DISK_SEGMENT_HEADER_BYTES == DISK_JOURNAL_HEADER_BYTES, "one read serves all headers");

int store_learn_identity(struct io *io, int dir_fd, uint8_t ret_store_id[16], uint32_t *ret_files)
{
    struct vote v = {.io = io, .dir_fd = dir_fd};
    unsigned best = 0;
    int r = io_list(io, dir_fd, vote_visit, &v);

    if (r < 0)
        return r;
    if (v.newer)
        return -EPROTONOSUPPORT;
    if (v.count == 0)
        return -ENOENT;
    for (unsigned i = 1; i < v.count; i++)
        if (v.candidates[i].files > v.candidates[best].files)
            best = i;
    memcpy(ret_store_id, v.candidates[best].store_id, 16);
    *ret_files = v.candidates[best].files;
    return 0;
}
