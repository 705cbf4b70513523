/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect_internal: what inspect.c, inspect_table.c, inspect_check.c and inspect_dump.c share; nobody else includes it.
 */
#pragma once

#include "clock.h"
#include "format.h"
#include "inspect.h"
#include "io.h"
#include "names.h"
#include "util.h"

/* ---- inspect.c: the store directory ---- */

struct inspect {
    struct io *io;
    const char *path; /* borrowed */
    int dir_fd;
    int lock_fd; /* holds the store against a daemon; -1 when even_if_busy */
    uint8_t boot_id[16];
    struct superblock sb;
    const char *format_lost;   /* what is wrong with FORMAT; the store's id is then what most files say */
    uint32_t format_witnesses; /* so many of them */
};

/* Where a store is: on the machine (inspect_find), or on a disk of a test. */
struct inspect_source {
    struct io *io;
    int dir_fd; /* taken by inspect_open_on, also on failure */
    const char *path; /* borrowed; stands for it in messages */
    bool even_if_busy;
    uint8_t boot_id[16]; /* of this boot of the machine */
};

int inspect_find(const char *path, bool even_if_busy, struct inspect_source *ret_source, struct errtext *err);
int inspect_open_on(const struct inspect_source *source, struct inspect *ret_in, struct errtext *err);
int inspect_check_on(const struct inspect_source *source, inspect_report report, void *ctx,
                     struct inspect_summary *ret_summary, struct errtext *err);
int inspect_dump_on(const struct inspect_source *source, const char *what, inspect_line line, void *ctx, struct errtext *err);
/* Whose store is it? From FORMAT or, should that be lost, from the others. */
int inspect_identify(struct inspect *in, struct errtext *err);
void inspect_close(struct inspect *in);

enum found_kind { FOUND_JOURNAL, FOUND_INDEX, FOUND_SEGMENT, FOUND_BIG, FOUND_FOREIGN };

struct found {
    enum found_kind kind;
    uint64_t no; /* FOREIGN: 0 */
    uint64_t size_bytes, disk_bytes;
    char *name; /* FOREIGN: relative path, owned; else NULL */
};

struct found_list {
    struct found *rows; /* sorted by kind, then number */
    size_t count, allocated;
    uint64_t disk_bytes; /* of the whole store, directories included, as du counts */
};

/* Lists what the store directory holds; what larder knows (LOCK, FORMAT, CACHEDIR.TAG, big/, big/XX) is left out. */
int found_scan(const struct inspect *in, struct found_list *ret_list, struct errtext *err);
void found_fini(struct found_list *list);
struct found *found_find(const struct found_list *list, enum found_kind kind, uint64_t no);
#define FOUND_NAME_BYTES 300
void found_name(const struct found *f, char out[FOUND_NAME_BYTES]);

/* Bytes below 0x21, above 0x7e and backslashes as \ooo. Cut, never overrun. Returns the length. */
size_t inspect_escape(const char *text, size_t bytes, char *out, size_t out_bytes);

/* ---- inspect_table.c: what the index says, replayed without the engine's own tree ---- */

struct node_row {
    uint64_t id;
    struct value value; /* regular files */
    uint32_t mode;
    uint32_t first_name; /* its names, linked by name_row.node_next */
    uint32_t hash_next;  /* same bucket; also chains free rows */
    uint32_t name_count;
    uint32_t mark; /* of the walk that came by */
    bool live;     /* row is in use */
    bool known;    /* a NODE entry was seen; else only names that lead here */
};

struct name_row {
    uint64_t parent, node;
    uint64_t hash;
    uint32_t name;      /* in the arena */
    uint32_t hash_next; /* same bucket; also chains free rows */
    uint32_t node_next, node_prev;
    bool live;
};

struct index_table {
    struct node_row *nodes; /* rows from 1 */
    struct name_row *names; /* rows from 1 */
    uint32_t node_used, node_allocated, node_free, node_live;
    uint32_t name_used, name_allocated, name_free, name_live;
    uint32_t *node_buckets, *name_buckets;
    uint32_t node_bucket_count, name_bucket_count; /* powers of two */
    uint64_t seed;                                 /* random: hostile names must not collide at will */
    struct names arena;
    uint8_t boot_id[16]; /* of the boot the store was last used in */
    bool boot_known;
    uint64_t illegal; /* entries no daemon writes: a name for the root, a node that changes its type, … */
    uint64_t illegal_id; /* the first of them */
};

int table_init(struct index_table *t);
void table_fini(struct index_table *t);
int table_apply(void *ctx, const struct entry_view *entry);            /* a journal_apply */
struct node_row *table_node(const struct index_table *t, uint64_t id); /* NULL: there is none */
const char *table_name(const struct index_table *t, const struct name_row *row, size_t *ret_bytes);
/* "/dir/key" by its first name, escaped; for a node without one "node 0x…". */
#define TABLE_PATH_BYTES 1024
void table_path(const struct index_table *t, const struct node_row *row, char out[TABLE_PATH_BYTES]);
