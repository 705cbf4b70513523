/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inspect_table: journal entries to nodes and names, a second time. It follows the rules of format.h and shares no
 * code with tree.c and cache_recover.c, so that a mistake there shows as a difference here.
 *
 * It differs from the engine in one thing: an entry that leads to a node not known (yet) is kept, not skipped. Before the
 * end of the log that is usual (a checkpoint is taken beside the traffic); what still dangles at the end is a defect.
 *
 * Memory is in proportion to the entries that are in the files.
 */
#include "inspect_internal.h"

#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <xxhash.h>

#define ROOT_ID 1u
#define ROWS_MAX (UINT32_MAX / 2)
#define BUCKETS_MIN 1024u
#define PATH_DEPTH_MAX 4096u

int table_init(struct index_table *t)
{
    *t = (struct index_table){.node_used = 1, .name_used = 1};
    if (getrandom(&t->seed, sizeof(t->seed), GRND_NONBLOCK) != sizeof(t->seed))
        t->seed = (uint64_t)(uintptr_t)t; /* early boot: less random will do */
    t->node_buckets = calloc(BUCKETS_MIN, sizeof(uint32_t));
    t->name_buckets = calloc(BUCKETS_MIN, sizeof(uint32_t));
    t->node_bucket_count = t->name_bucket_count = BUCKETS_MIN;
    if (t->node_buckets && t->name_buckets)
        return 0;
    table_fini(t);
    return -ENOMEM;
}

void table_fini(struct index_table *t)
{
    free(t->nodes);
    free(t->names);
    free(t->node_buckets);
    free(t->name_buckets);
    names_fini(&t->arena);
    *t = (struct index_table){0};
}

static void table_complain(struct index_table *t, uint64_t id)
{
    if (t->illegal++ == 0)
        t->illegal_id = id;
}

static uint32_t *node_bucket(const struct index_table *t, uint32_t slot)
{
    return &t->node_buckets[XXH3_64bits_withSeed(&slot, sizeof(slot), t->seed) & (t->node_bucket_count - 1)];
}

static uint32_t *name_bucket(const struct index_table *t, uint64_t hash)
{
    return &t->name_buckets[hash & (t->name_bucket_count - 1)];
}

static int table_grow(void **rows, uint32_t *allocated, uint32_t used, size_t row_bytes)
{
    uint32_t room;
    void *larger;

    if (used < *allocated)
        return 0;
    if (*allocated >= ROWS_MAX)
        return -ENOMEM;
    room = *allocated ? *allocated * 2 : 1024;
    larger = reallocarray(*rows, room, row_bytes);
    if (!larger)
        return -ENOMEM;
    *rows = larger;
    *allocated = room;
    return 0;
}

static int node_rehash(struct index_table *t)
{
    uint32_t *buckets;

    if (t->node_live < t->node_bucket_count)
        return 0;
    buckets = calloc((size_t)t->node_bucket_count * 2, sizeof(*buckets));
    if (!buckets)
        return -ENOMEM;
    free(t->node_buckets);
    t->node_buckets = buckets;
    t->node_bucket_count *= 2;
    for (uint32_t i = 1; i < t->node_used; i++) {
        uint32_t *bucket;

        if (!t->nodes[i].live)
            continue;
        bucket = node_bucket(t, (uint32_t)t->nodes[i].id);
        t->nodes[i].hash_next = *bucket;
        *bucket = i;
    }
    return 0;
}

static int name_rehash(struct index_table *t)
{
    uint32_t *buckets;

    if (t->name_live < t->name_bucket_count)
        return 0;
    buckets = calloc((size_t)t->name_bucket_count * 2, sizeof(*buckets));
    if (!buckets)
        return -ENOMEM;
    free(t->name_buckets);
    t->name_buckets = buckets;
    t->name_bucket_count *= 2;
    for (uint32_t i = 1; i < t->name_used; i++) {
        uint32_t *bucket;

        if (!t->names[i].live)
            continue;
        bucket = name_bucket(t, t->names[i].hash);
        t->names[i].hash_next = *bucket;
        *bucket = i;
    }
    return 0;
}

/* Whatever generation is in that slot. */
static struct node_row *node_in_slot(const struct index_table *t, uint32_t slot)
{
    for (uint32_t i = *node_bucket(t, slot); i; i = t->nodes[i].hash_next)
        if ((uint32_t)t->nodes[i].id == slot)
            return &t->nodes[i];
    return NULL;
}

struct node_row *table_node(const struct index_table *t, uint64_t id)
{
    struct node_row *row = node_in_slot(t, (uint32_t)id);

    return row && row->id == id ? row : NULL;
}

static void name_remove(struct index_table *t, uint32_t index)
{
    struct name_row *row = &t->names[index];
    struct node_row *node = table_node(t, row->node);
    uint32_t *link = name_bucket(t, row->hash);

    while (*link != index)
        link = &t->names[*link].hash_next;
    *link = row->hash_next;
    if (row->node_prev)
        t->names[row->node_prev].node_next = row->node_next;
    else if (node)
        node->first_name = row->node_next;
    if (row->node_next)
        t->names[row->node_next].node_prev = row->node_prev;
    if (node)
        node->name_count--;
    names_drop(&t->arena, row->name);
    *row = (struct name_row){.hash_next = t->name_free};
    t->name_free = index;
    t->name_live--;
}

static void node_remove(struct index_table *t, struct node_row *row)
{
    uint32_t *link = node_bucket(t, (uint32_t)row->id);
    uint32_t index = (uint32_t)(row - t->nodes);

    while (row->first_name)
        name_remove(t, row->first_name);
    while (*link != index)
        link = &t->nodes[*link].hash_next;
    *link = row->hash_next;
    *row = (struct node_row){.hash_next = t->node_free};
    t->node_free = index;
    t->node_live--;
}

static int node_add(struct index_table *t, uint64_t id, struct node_row **ret_row)
{
    uint32_t *bucket, index;
    int r = node_rehash(t);

    if (r < 0)
        return r;
    if (t->node_free) {
        index = t->node_free;
        t->node_free = t->nodes[index].hash_next;
    } else {
        r = table_grow((void **)&t->nodes, &t->node_allocated, t->node_used, sizeof(*t->nodes));
        if (r < 0)
            return r;
        index = t->node_used++;
    }
    bucket = node_bucket(t, (uint32_t)id);
    t->nodes[index] = (struct node_row){.id = id, .live = true, .hash_next = *bucket};
    *bucket = index;
    t->node_live++;
    *ret_row = &t->nodes[index];
    return 0;
}

/* The node's row, made when there is none; an older generation leaves. *ret_row NULL: the id is of an older one. */
static int node_need(struct index_table *t, uint64_t id, struct node_row **ret_row)
{
    struct node_row *row = node_in_slot(t, (uint32_t)id);

    *ret_row = NULL;
    if ((uint32_t)id == 0 || ((uint32_t)id == ROOT_ID && id != ROOT_ID)) {
        table_complain(t, id);
        return 0;
    }
    if (row && row->id > id)
        return 0;
    if (row && row->id < id) {
        node_remove(t, row);
        row = NULL;
    }
    if (!row)
        return node_add(t, id, ret_row);
    *ret_row = row;
    return 0;
}

static uint64_t name_hash(const struct index_table *t, uint64_t parent, const char *name, size_t bytes)
{
    return XXH3_64bits_withSeed(name, bytes, t->seed ^ (parent * 0x9e3779b97f4a7c15ull));
}

const char *table_name(const struct index_table *t, const struct name_row *row, size_t *ret_bytes)
{
    return names_get(&t->arena, row->name, ret_bytes);
}

/* 0: no such name. */
static uint32_t name_find(const struct index_table *t, uint64_t parent, const char *name, size_t bytes)
{
    uint64_t hash = name_hash(t, parent, name, bytes);

    for (uint32_t i = *name_bucket(t, hash); i; i = t->names[i].hash_next) {
        const struct name_row *row = &t->names[i];
        size_t row_bytes;
        const char *text;

        if (row->hash != hash || row->parent != parent)
            continue;
        text = table_name(t, row, &row_bytes);
        if (row_bytes == bytes && memcmp(text, name, bytes) == 0)
            return i;
    }
    return 0;
}

static int name_add(struct index_table *t, const struct name_image *image, struct node_row *node)
{
    uint32_t *bucket, index, unit;
    int r = name_rehash(t);

    if (r == 0)
        r = names_put(&t->arena, image->name, image->name_bytes, &unit);
    if (r < 0)
        return r;
    if (t->name_free) {
        index = t->name_free;
        t->name_free = t->names[index].hash_next;
    } else {
        r = table_grow((void **)&t->names, &t->name_allocated, t->name_used, sizeof(*t->names));
        if (r < 0) {
            names_drop(&t->arena, unit);
            return r;
        }
        index = t->name_used++;
    }
    t->names[index] = (struct name_row){
        .parent = image->parent,
        .node = image->node,
        .hash = name_hash(t, image->parent, image->name, image->name_bytes),
        .name = unit,
        .node_next = node->first_name,
        .live = true,
    };
    bucket = name_bucket(t, t->names[index].hash);
    t->names[index].hash_next = *bucket;
    *bucket = index;
    if (node->first_name)
        t->names[node->first_name].node_prev = index;
    node->first_name = index;
    node->name_count++;
    t->name_live++;
    return 0;
}

/* ---- entries ---- */

static int apply_node(struct index_table *t, const struct node_image *image)
{
    struct node_row *row;
    int r = node_need(t, image->id, &row);

    if (r < 0 || !row)
        return r;
    if (row->known && (row->mode & S_IFMT) != (image->mode & S_IFMT))
        table_complain(t, image->id);
    row->known = true;
    row->mode = image->mode;
    row->value = image->value;
    return 0;
}

static int apply_name(struct index_table *t, const struct name_image *image)
{
    struct node_row *parent, *node;
    uint32_t old;
    int r = node_need(t, image->parent, &parent);

    if (r < 0 || !parent)
        return r;
    if (image->node == ROOT_ID) {
        table_complain(t, image->node);
        return 0;
    }
    r = node_need(t, image->node, &node);
    if (r < 0 || !node)
        return r;
    old = name_find(t, image->parent, image->name, image->name_bytes);
    if (old && t->names[old].node == image->node)
        return 0;
    if (old)
        name_remove(t, old);
    if (node->known && S_ISDIR(node->mode) && node->first_name) /* a directory has one name: it was moved */
        name_remove(t, node->first_name);
    return name_add(t, image, node);
}

static void apply_unname(struct index_table *t, const struct name_image *image)
{
    uint32_t index = name_find(t, image->parent, image->name, image->name_bytes);

    if (index)
        name_remove(t, index);
}

static void apply_drop(struct index_table *t, uint64_t id)
{
    struct node_row *row = table_node(t, id);

    if (id == ROOT_ID)
        table_complain(t, id);
    else if (row)
        node_remove(t, row);
}

static void apply_value(struct index_table *t, uint64_t id, const struct value *value)
{
    struct node_row *row = table_node(t, id);

    if (!row || !row->known)
        return;
    if (!S_ISREG(row->mode))
        table_complain(t, id);
    else
        row->value = *value;
}

static void apply_recall(struct index_table *t, const uint8_t *nodes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = recall_node(nodes, i);
        struct node_row *row = table_node(t, id);

        if (id != ROOT_ID) {
            if (row)
                node_remove(t, row);
            continue;
        }
        for (uint32_t name = 1; name < t->name_used; name++) {
            if (t->names[name].live && t->names[name].parent == ROOT_ID)
                name_remove(t, name);
        }
    }
}

int table_apply(void *ctx, const struct entry_view *entry)
{
    struct index_table *t = ctx;

    switch (entry->type) {
    case ENTRY_NODE:
        return apply_node(t, &entry->node);
    case ENTRY_NAME:
        return apply_name(t, &entry->name);
    case ENTRY_UNNAME:
        apply_unname(t, &entry->name);
        break;
    case ENTRY_DROP:
        apply_drop(t, entry->drop.node);
        break;
    case ENTRY_VALUE:
        apply_value(t, entry->value.node, &entry->value.value);
        break;
    case ENTRY_BOOT:
        memcpy(t->boot_id, entry->boot.boot_id, sizeof(t->boot_id));
        t->boot_known = true;
        break;
    case ENTRY_END:
        memcpy(t->boot_id, entry->end.boot_id, sizeof(t->boot_id));
        t->boot_known = true;
        break;
    case ENTRY_RECALL:
        apply_recall(t, entry->recall.nodes, entry->recall.count);
        break;
    case ENTRY_USE:
    case ENTRY_TOUCH:
        break;
    }
    return 0;
}

/* ---- paths ---- */

/* Built from the end of `out` towards its start; a path too long keeps its last components. */
void table_path(const struct index_table *t, const struct node_row *row, char out[TABLE_PATH_BYTES])
{
    char part[NAME_BYTES_MAX * 4 + 1];
    size_t start = TABLE_PATH_BYTES - 1;
    const struct node_row *at = row;

    if (row->id == ROOT_ID) {
        memcpy(out, "/", 2);
        return;
    }
    if (!row->first_name) {
        (void)snprintf(out, TABLE_PATH_BYTES, "node 0x%llx", (unsigned long long)row->id);
        return;
    }
    out[start] = '\0';
    for (unsigned depth = 0; at && at->first_name && depth < PATH_DEPTH_MAX; depth++) {
        const struct name_row *name = &t->names[at->first_name];
        size_t bytes;
        const char *text = table_name(t, name, &bytes);

        bytes = inspect_escape(text, bytes, part, sizeof(part));
        if (bytes + 1 > start)
            break;
        start -= bytes;
        memcpy(out + start, part, bytes);
        out[--start] = '/';
        at = table_node(t, name->parent);
    }
    memmove(out, out + start, TABLE_PATH_BYTES - start);
}
