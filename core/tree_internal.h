/* SPDX-License-Identifier: BSD-2-Clause */
/* tree_internal: what tree.c (names) and node.c (nodes) share. */
#pragma once

#include "arena.h"
#include "bucket.h"
#include "slab.h"
#include "tree.h"
#include "util.h"

/* What modes and owners there are; numbers from 1. They are few, and none is forgotten. */
struct owner {
    uint32_t mode, uid, gid;
};

struct owners {
    struct owner *list; /* by number - 1 */
    uint16_t *slots;    /* numbers by hash, open addressing, 2 * room of them; 0: none */
    uint32_t count, room;
    uint32_t last; /* asked for: mostly the next as well */
};

struct tree {
    uint32_t magic;
    struct slab nodes, mores, exts;
    struct arena dentries;
    struct bucket_table table;
    struct owners owners;
    uint32_t next_generation;
    uint64_t directories, tlv_bytes, name_bytes;
    uint64_t seed; /* random: names made to collide would make every lookup walk all of them */
};

/* What does not fit into a node: then all of these are here. Directories always have one. */
struct node_more {
    int64_t atime_ns, ctime_ns;
    uint64_t written_ns;
    union {
        uint64_t size_bytes;  /* NODE_VALUE_APART */
        uint64_t next_cookie; /* directories */
    };
    uint32_t nlink, lookups, hits;
    uint32_t ext;        /* slot of its struct node_ext, 0 none; also chains free slots */
    uint32_t mode, uid, gid; /* where the node has no number of an owner */
    uint32_t child_count; /* directories */
};

void node_init_slabs(struct tree *t);
void node_fini_slabs(struct tree *t);
struct node_more *node_more(const struct tree *t, const struct node *n); /* NODE_MORE */
/* By delta names more; directories: links of subdirectories. */
void node_count_names(struct tree *t, struct node *n, int delta);
