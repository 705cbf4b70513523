/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tree: nodes and names in memory. No I/O, no clock, no policy, no lock of its own: the cache lock
 * covers all of it.
 *
 *     dentry (parent node, name) -> node -> where its value is
 *
 * Nodes are fixed-size slots in a slab that grows by chunks, dentries records of an arena with the name at their end; so
 * pointers stay valid until the node or name is gone. A node is named by its slot and a generation that is never used
 * twice in a store; id = generation << 32 | slot, and a stale id finds nothing.
 *
 * Memory is counted in bytes per key: 64 for the node, 24 with rounding for the dentry besides its name, 8 for the table
 * (bucket.h). A node takes one cache line because what most nodes have alike is kept short: mode and owner as the number
 * of a triple that is kept once, times as what lies between them, small counts, the place of a value in 96 bits. What
 * does not fit is kept apart (struct node_more, reserved with the node: this can not fail), whole, and comes back when it
 * fits again. So only the functions of node.c read and write these.
 *
 * Names are found through a table (bucket.h) in which an insertion divides at most one bucket, so no
 * request ever pays for a rehash. Entries of a directory form a list in cookie order; cookies only grow,
 * so a position survives any change around it.
 *
 * Invariant T1: a dentry's parent is a directory, and both its ends are live nodes.
 * Invariant T2: node_nlink is the number of its dentries (directories: 2 + subdirectories, 0 when removed).
 * Invariant T3: a directory has at most one dentry, and the root none.
 * Invariant T4: of the names of a node all but the last in its list can tell the next.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "content.h"
#include "format.h"

#define NODE_ROOT_SLOT 1u
#define NLINK_MAX 65000u /* names of a file */
#define NODE_NONE 0u
#define NODE_SLOT_MAX 0x7ffffff0u
#define NODE_GENERATION_MAX 0x7ffffffeu /* so that bit 63 of an id is free for the front's own inodes */

enum node_flag {
    NODE_NEW = 1 << 0,      /* not in the journal yet: a file being written for the first time */
    NODE_OPEN = 1 << 1,     /* there is a struct open_node */
    NODE_LISTED = 1 << 2,   /* in the recency list */
    NODE_HELD = 1 << 3,     /* in the held list: was the coldest while open or pinned */
    NODE_UNSEALED = 1 << 4, /* value.unsealed */
    NODE_UNVERIFIED = 1 << 5, /* value found at mount: not all of it was read by this process yet */
    NODE_EVICTED = 1 << 6,  /* left without a client's doing: stale to all but those who have it open */
    NODE_FSYNCED = 1 << 7,  /* its value was promised to survive a power cut; also said of all found at mount */
    NODE_VERIFYING = 1 << 8, /* somebody was told to call larder_verify */
    NODE_MORE = 1 << 9,     /* node.c: there is a struct node_more */
    NODE_VALUE_APART = 1 << 10, /* node.c: the value is in the struct node_ext */
    NODE_KIND_SHIFT = 11,   /* bits 11, 12: enum value_kind */
    NODE_CODEC_SHIFT = 13,  /* bit 13: enum codec */
    NODE_TYPE_SHIFT = 14,   /* bits 14, 15: enum node_type */
    NODE_OWNER_SHIFT = 16,  /* the rest: number of mode and owner, 0: they are in the struct node_more */
};

enum node_type { NODE_TYPE_SPECIAL, NODE_TYPE_FILE, NODE_TYPE_DIR, NODE_TYPE_SYMLINK };

/* What few nodes have. Owned by the node. */
struct node_ext {
    uint64_t ttl_ns, idle_ns, expires_ns; /* POLICY_UNSET, POLICY_NEVER or a value */
    uint8_t pin, compress;                /* POLICY_BYTE_UNSET or a value */
    uint32_t sums_bytes;
    uint64_t rdev;
    uint64_t big_id, big_stored_bytes; /* NODE_VALUE_APART: stored_bytes also of another kind; likewise its place: */
    struct place sums_place;
    uint8_t *tlv; /* symlink target and xattrs, as on disk */
    uint32_t tlv_bytes;
};

struct node {
    uint32_t generation; /* 0: free slot; lru_next chains free slots */
    uint32_t flags;
    uint32_t first_dentry;
    uint32_t lru_prev, lru_next;
    uint32_t armed;      /* expire.h: tick its wheel entry waits for, 0 none */
    uint64_t used_ns;    /* cache time */
    int64_t mtime_ns;    /* read; node_set_times */
    union {              /* node.c */
        struct {
            uint32_t atime_back; /* before mtime */
            uint32_t ctime_on;   /* after mtime */
        };
        uint32_t more; /* NODE_MORE: slot of its struct node_more */
    };
    union {
        struct {
            uint32_t first_child, last_child; /* directories: dentries */
        };
        uint64_t value_low; /* node.c */
    };
    uint32_t value_high;
    uint16_t written_on; /* node.c: after mtime */
    uint8_t hits, lookups; /* node.c */
};

struct dentry {
    uint32_t parent; /* slot; also chains free records */
    uint32_t node;   /* slot; 0: free */
    uint32_t prev, next; /* siblings, cookie order */
    uint32_t cookie_low;
    uint16_t cookie_high; /* DENTRY_CHAINED and 15 bits */
    uint8_t name_last;    /* bytes of the name - 1 */
    char name[1];         /* all of it; then, when chained, the next name of the node, four bytes */
};
#define DENTRY_CHAINED 0x8000u

struct tree;

int tree_new(struct tree **ret_tree);
void tree_free(struct tree *t);

/* Nodes */
static inline uint32_t id_slot(uint64_t id)
{
    return (uint32_t)id;
}
static inline uint32_t id_generation(uint64_t id)
{
    return (uint32_t)(id >> 32);
}
/* NULL when the id is stale. */
struct node *tree_node(const struct tree *t, uint64_t id);
struct node *tree_slot(const struct tree *t, uint32_t slot); /* NULL when free */
uint32_t node_slot(const struct tree *t, const struct node *n);
uint64_t node_id(const struct tree *t, const struct node *n);
/* A fresh node: next generation, given mode, owned by 0:0, nothing else. -ENOMEM. */
int node_new(struct tree *t, uint32_t mode, struct node **ret_node);
/* Recovery: that very slot and generation. An older generation in the slot is dropped with its names; a newer one
 * makes it -EEXIST. -EBADMSG for ids that cannot be. *ret_node is the existing node if it has that generation. */
int node_restore(struct tree *t, uint64_t id, uint32_t mode, struct node **ret_node);
/* No dentries may be left. */
void node_free(struct tree *t, struct node *n);
/* For walks over all slots, free ones included: s = tree_next_slot(t, 0), then tree_next_slot(t, s), until 0. */
uint32_t tree_next_slot(const struct tree *t, uint32_t slot);
uint32_t tree_next_dentry(const struct tree *t, uint32_t index); /* likewise */
uint32_t tree_next_generation(const struct tree *t);
/* Ends recovery: generations below next count as used; freed slots may be taken again. */
void tree_raise_generation(struct tree *t, uint32_t next);

/* What a node has: node.c */
uint32_t node_mode(const struct tree *t, const struct node *n); /* S_IFMT and permission bits */
uint32_t node_uid(const struct tree *t, const struct node *n);
uint32_t node_gid(const struct tree *t, const struct node *n);
void node_set_mode(struct tree *t, struct node *n, uint32_t permissions); /* the type stays */
void node_set_owner(struct tree *t, struct node *n, uint32_t permissions, uint32_t uid, uint32_t gid);
uint32_t node_nlink(const struct tree *t, const struct node *n);
uint32_t node_lookups(const struct tree *t, const struct node *n); /* references the kernel holds */
void node_set_lookups(struct tree *t, struct node *n, uint32_t lookups);
uint32_t node_hits(const struct tree *t, const struct node *n);
void node_set_hits(struct tree *t, struct node *n, uint32_t hits);

/* ns since 1970, and cache time of the last write. The latter is kept in steps of 2^16 ns, rounded down: a
 * ttl never ends late. */
struct node_times {
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint64_t written_ns;
};
void node_times(const struct tree *t, const struct node *n, struct node_times *ret_times);
void node_set_times(struct tree *t, struct node *n, const struct node_times *times);
void node_set_changed(struct tree *t, struct node *n, int64_t now_ns); /* mtime and ctime */
void node_set_ctime(struct tree *t, struct node *n, int64_t ctime_ns);
uint64_t node_written_ns(const struct tree *t, const struct node *n);
void node_set_written(struct tree *t, struct node *n, uint64_t written_ns);
uint32_t node_child_count(const struct tree *t, const struct node *dir);

struct node_ext *node_ext(const struct tree *t, const struct node *n); /* NULL when it has none */
int node_ext_need(struct tree *t, struct node *n, struct node_ext **ret_ext);
/* Replaces the TLVs; takes ownership of *tlv. */
void node_set_tlv(struct tree *t, struct node *n, uint8_t **tlv, uint32_t tlv_bytes);

/* Forgets symlink target and xattrs. */
void node_drop_tlv(struct tree *t, struct node *n);

void node_value(const struct tree *t, const struct node *n, struct value *ret_value);
int node_set_value(struct tree *t, struct node *n, const struct value *v); /* -ENOMEM, unchanged */
uint64_t node_size(const struct tree *t, const struct node *n);
void node_set_target_bytes(struct node *n, uint32_t bytes); /* of a symbolic link */
enum value_kind node_value_kind(const struct node *n);

/* Names */
struct dentry *tree_dentry(const struct tree *t, uint32_t index); /* NULL for 0 or free */
uint32_t dentry_index(const struct tree *t, const struct dentry *d);
struct dentry *tree_find(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes);
/* That name will be looked for soon. */
void tree_expect(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes);
/* -ENOMEM, -EMLINK. The name must not exist. Does not change times. */
int tree_link(struct tree *t, struct node *parent, struct node *n, const char *name, size_t name_bytes,
              struct dentry **ret_dentry);
void tree_unlink(struct tree *t, struct dentry *d);
/* The name goes, and the node has that one instead. The new one may be there still, leading to another node, for the caller to
 * unlink next. -ENOMEM: nothing has changed. */
int tree_move(struct tree *t, struct dentry *d, struct node *parent, const char *name, size_t name_bytes,
              struct dentry **ret_dentry);
/* Each name leads to the other's node: both keep their positions. The names of one node are not exchanged. -ENOMEM: nothing
 * has changed. *one and *other may be elsewhere afterwards. */
int tree_exchange(struct tree *t, struct dentry **one, struct dentry **other);
uint32_t dentry_next_name(const struct dentry *d); /* of the same node: index, 0 none */
const char *dentry_name(const struct tree *t, const struct dentry *d, size_t *ret_bytes); /* not terminated */
static inline uint64_t dentry_cookie(const struct dentry *d)
{
    return (uint64_t)(d->cookie_high & ~DENTRY_CHAINED) << 32 | d->cookie_low;
}
/* First entry of the directory with a cookie above `cookie`; hint: the dentry that had it, or 0. */
struct dentry *tree_seek(const struct tree *t, const struct node *dir, uint64_t cookie, uint32_t hint);
struct node *tree_parent(const struct tree *t, const struct node *n); /* by its first name; NULL for root or nameless */
/* Is `maybe_above` n itself or a directory above it? */
bool tree_is_above(const struct tree *t, const struct node *maybe_above, const struct node *n);
/* Path from the root with a leading '/', cut at the front with "..." when it does not fit. Returns its length. */
size_t tree_path(const struct tree *t, const struct node *n, char *out, size_t out_bytes);

struct tree_totals {
    uint64_t nodes, directories, extended, dentries, name_bytes, tlv_bytes, memory_bytes; /* extended: with a node_ext */
};
void tree_totals(const struct tree *t, struct tree_totals *ret_totals);

static inline enum node_type node_type(const struct node *n)
{
    return (enum node_type)(n->flags >> NODE_TYPE_SHIFT & 3);
}
static inline bool node_is_dir(const struct node *n)
{
    return node_type(n) == NODE_TYPE_DIR;
}
static inline bool node_is_file(const struct node *n)
{
    return node_type(n) == NODE_TYPE_FILE;
}
static inline bool node_is_symlink(const struct node *n)
{
    return node_type(n) == NODE_TYPE_SYMLINK;
}
/* What eviction may take: files and symlinks; specials and directories stay. */
static inline bool node_is_evictable(const struct node *n)
{
    return node_is_file(n) || node_is_symlink(n);
}
