/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tree: nodes and names in memory. No I/O, no clock, no policy, no lock of its own: the cache lock
 * covers all of it.
 *
 *     dentry (parent node, name) -> node -> where its value is
 *
 * Nodes and dentries are fixed-size slots in slabs that grow by chunks, so pointers stay valid until the
 * slot is freed. A node is named by its slot and a generation that is never used twice in a store;
 * id = generation << 32 | slot, and a stale id finds nothing. Names live in an arena of 8-byte units.
 *
 * Names are found through linear hashing (Litwin 1980): an insertion splits at most one bucket, so no
 * request ever pays for a rehash. Entries of a directory form a list in cookie order; cookies only grow,
 * so a position survives any change around it.
 *
 * Invariant T1: a dentry's parent is a directory, and both its ends are live nodes.
 * Invariant T2: node->nlink is the number of its dentries (directories: 2 + subdirectories, 0 when removed).
 * Invariant T3: a directory has at most one dentry, and the root none.
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
    NODE_KIND_SHIFT = 8,    /* bits 8..10: enum value_kind */
    NODE_CODEC_SHIFT = 11,  /* bits 11..12: enum codec */
    NODE_VERIFYING = 1 << 13, /* somebody was told to call larder_verify */
};

/* What few nodes have. Owned by the node. */
struct node_ext {
    uint64_t ttl_ns, idle_ns, expires_ns; /* POLICY_UNSET, POLICY_NEVER or a value */
    uint8_t pin, compress;                /* POLICY_BYTE_UNSET or a value */
    uint32_t sums_bytes;
    uint64_t rdev;
    uint64_t big_id, big_stored_bytes;
    struct place sums_place;
    uint8_t *tlv; /* symlink target and xattrs, as on disk */
    uint32_t tlv_bytes;
};

struct node {
    uint32_t generation; /* 0: free slot; lru_next chains free slots */
    uint32_t mode;
    uint32_t uid, gid;
    uint32_t nlink;
    uint32_t lookups; /* references the kernel holds */
    uint32_t first_dentry;
    uint32_t hits;
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint64_t written_ns, used_ns; /* cache time */
    union {
        uint64_t size_bytes;  /* of the committed value */
        uint64_t next_cookie; /* directories */
    };
    union {
        struct place place; /* VALUE_SEGMENT */
        struct {
            uint32_t first_child, last_child; /* directories: dentries */
        };
    };
    uint32_t lru_prev, lru_next;
    union {
        uint32_t stored_bytes; /* VALUE_SEGMENT */
        uint32_t child_count;  /* directories */
    };
    uint32_t flags;
    uint32_t armed; /* expire.h: tick its wheel entry waits for, 0 none */
    uint32_t ext;   /* slot of its struct node_ext, 0 none */
};

struct dentry {
    uint32_t parent, node;         /* slots; node 0: free */
    uint32_t hash_next;            /* same bucket; also chains free slots */
    uint32_t prev, next;           /* siblings, cookie order */
    uint32_t node_next;            /* next name of the same node */
    uint32_t name;                 /* arena unit: u8 length - 1, bytes */
    uint32_t cookie_low;
    uint16_t cookie_high;
    uint16_t tag; /* of the name's hash: a chain is walked without a look at the names */
};

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
/* A fresh node: next generation, given mode, nothing else. -ENOMEM. */
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

struct node_ext *node_ext(const struct tree *t, const struct node *n); /* NULL when it has none */
int node_ext_need(struct tree *t, struct node *n, struct node_ext **ret_ext);
/* Replaces the TLVs; takes ownership of *tlv. */
void node_set_tlv(struct tree *t, struct node *n, uint8_t **tlv, uint32_t tlv_bytes);

/* Forgets symlink target and xattrs. */
void node_drop_tlv(struct tree *t, struct node *n);

void node_value(const struct tree *t, const struct node *n, struct value *ret_value);
int node_set_value(struct tree *t, struct node *n, const struct value *v); /* -ENOMEM, unchanged */
enum value_kind node_value_kind(const struct node *n);

/* Names */
struct dentry *tree_dentry(const struct tree *t, uint32_t index); /* NULL for 0 or free */
uint32_t dentry_index(const struct tree *t, const struct dentry *d);
struct dentry *tree_find(const struct tree *t, uint32_t parent_slot, const char *name, size_t name_bytes);
/* -ENOMEM, -EMLINK. The name must not exist. Does not change times. */
int tree_link(struct tree *t, struct node *parent, struct node *n, const char *name, size_t name_bytes,
              struct dentry **ret_dentry);
void tree_unlink(struct tree *t, struct dentry *d);
/* The name now leads to another node (rename over, exchange): keeps its position in the directory. */
void tree_relink(struct tree *t, struct dentry *d, struct node *n);
const char *dentry_name(const struct tree *t, const struct dentry *d, size_t *ret_bytes); /* not terminated */
static inline uint64_t dentry_cookie(const struct dentry *d)
{
    return (uint64_t)d->cookie_high << 32 | d->cookie_low;
}
/* First entry of the directory with a cookie above `cookie`; hint: the dentry that had it, or 0. */
struct dentry *tree_seek(const struct tree *t, const struct node *dir, uint64_t cookie, uint32_t hint);
struct node *tree_parent(const struct tree *t, const struct node *n); /* by its first name; NULL for root or nameless */
/* Is `maybe_above` n itself or a directory above it? */
bool tree_is_above(const struct tree *t, const struct node *maybe_above, const struct node *n);
/* Path from the root with a leading '/', cut at the front with "..." when it does not fit. Returns its length. */
size_t tree_path(const struct tree *t, const struct node *n, char *out, size_t out_bytes);

struct tree_totals {
    uint64_t nodes, directories, dentries, name_bytes, tlv_bytes, memory_bytes;
};
void tree_totals(const struct tree *t, struct tree_totals *ret_totals);

static inline bool node_is_dir(const struct node *n)
{
    return (n->mode & S_IFMT) == S_IFDIR;
}
static inline bool node_is_file(const struct node *n)
{
    return (n->mode & S_IFMT) == S_IFREG;
}
/* What eviction may take: files and symlinks; specials and directories stay. */
static inline bool node_is_evictable(const struct node *n)
{
    return node_is_file(n) || (n->mode & S_IFMT) == S_IFLNK;
}
