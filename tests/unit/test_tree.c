/* SPDX-License-Identifier: BSD-2-Clause */
/* Nodes and names in memory: what is found, and what it costs. */
#include "tree.h"

#include "check.h"
#include "util.h"

#define MANY 200000u

static struct tree *new_tree(struct node **ret_root)
{
    struct tree *t;

    CHECK_OK(tree_new(&t));
    CHECK_OK(node_restore(t, NODE_ROOT_SLOT, S_IFDIR | 0755, ret_root));
    tree_raise_generation(t, 2);
    return t;
}

static size_t name_of(uint32_t i, char name[32])
{
    return (size_t)snprintf(name, 32, "name-%u", i);
}

static void add(struct tree *t, struct node *dir, struct node *n, uint32_t i)
{
    char name[32];
    size_t bytes = name_of(i, name);

    CHECK_OK(tree_link(t, dir, n, name, bytes, NULL));
}

static struct dentry *find(struct tree *t, const struct node *dir, uint32_t i)
{
    char name[32];
    size_t bytes = name_of(i, name);

    return tree_find(t, node_slot(t, dir), name, bytes);
}

static void check_all(struct tree *t, const struct node *dir, const struct node *const *nodes)
{
    for (uint32_t i = 0; i < MANY; i++) {
        struct dentry *d = find(t, dir, i);

        CHECK(d != NULL);
        CHECK(tree_slot(t, d->node) == nodes[i]);
    }
    CHECK(find(t, dir, MANY) == NULL);
}

static void empty(struct tree *t, struct node *root)
{
    while (root->first_child) {
        struct dentry *d = tree_dentry(t, root->first_child);
        struct node *n = tree_slot(t, d->node);

        tree_unlink(t, d);
        node_free(t, n);
    }
}

/* One after the other, as clients make them; and all nodes before the first name, as a checkpoint tells them. */
static void names_are_found_however_they_came(void)
{
    static const struct node *nodes[MANY];

    for (int all_nodes_first = 0; all_nodes_first < 2; all_nodes_first++) {
        struct node *root, *n;
        struct tree *t = new_tree(&root);

        for (uint32_t i = 0; i < MANY; i++) {
            CHECK_OK(node_new(t, S_IFREG | 0644, &n));
            nodes[i] = n;
            if (!all_nodes_first)
                add(t, root, n, i);
        }
        for (uint32_t i = 0; all_nodes_first && i < MANY; i++)
            add(t, root, tree_slot(t, node_slot(t, nodes[i])), i);
        check_all(t, root, nodes);
        for (uint32_t i = 0; i < MANY; i += 2)
            tree_unlink(t, find(t, root, i));
        for (uint32_t i = 0; i < MANY; i++)
            CHECK_EQ(find(t, root, i) != NULL, i % 2);
        for (uint32_t i = 0; i < MANY; i += 2)
            add(t, root, tree_slot(t, node_slot(t, nodes[i])), i);
        check_all(t, root, nodes);
        empty(t, root);
        tree_free(t);
    }
}

/* Each insertion used to make the table longer, also where a name had just gone. */
static void names_that_come_and_go_leave_nothing_behind(void)
{
    struct tree_totals before, after;
    struct node *root, *n;
    struct tree *t = new_tree(&root);

    for (uint32_t i = 0; i < 2 * MANY; i++) {
        if (i == 1000)
            tree_totals(t, &before);
        CHECK_OK(node_new(t, S_IFREG | 0644, &n));
        add(t, root, n, i);
        tree_unlink(t, find(t, root, i));
        node_free(t, n);
    }
    tree_totals(t, &after);
    CHECK_EQ(after.memory_bytes, before.memory_bytes);
    tree_free(t);
}

int main(void)
{
    RUN(names_are_found_however_they_came);
    RUN(names_that_come_and_go_leave_nothing_behind);
    return 0;
}
