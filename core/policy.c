/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policy: ttl, idle, expires, pin and compression that count for a node, and where each was set.
 *
 * The nearest one wins: the node's own, then its directory's, that one's directory's, ..., the mount's, the
 * default. A file with several names belongs to the newest of the directories they are in that are its owner's, or
 * root's; where none is, to the newest of all. So a link somebody else makes to it takes away no pin and sets no
 * deadline, and a restart changes nothing.
 * Nothing is cached: what a directory is set to counts for all below it from that moment (C3), and a walk costs only
 * where some directory has a policy at all.
 */
#include "cache.h"

bool ext_has_policy(const struct node_ext *x)
{
    return x->ttl_ns != POLICY_UNSET || x->idle_ns != POLICY_UNSET || x->expires_ns != POLICY_UNSET ||
           x->pin != POLICY_BYTE_UNSET || x->compress != POLICY_BYTE_UNSET;
}

enum policy_kind { KIND_TTL, KIND_IDLE, KIND_PIN, KIND_COMPRESS };

/* UINT64_MAX: not set here. */
static uint64_t ext_policy(const struct node_ext *x, enum policy_kind kind)
{
    if (!x)
        return POLICY_UNSET;
    switch (kind) {
    case KIND_TTL:
        return x->ttl_ns;
    case KIND_IDLE:
        return x->idle_ns;
    case KIND_PIN:
        return x->pin == POLICY_BYTE_UNSET ? POLICY_UNSET : x->pin;
    case KIND_COMPRESS:
        return x->compress == POLICY_BYTE_UNSET ? POLICY_UNSET : x->compress;
    }
    return POLICY_UNSET;
}

static const struct node *newer_of(const struct larder *l, const struct node *a, const struct node *b)
{
    return !a || node_id(l->tree, b) > node_id(l->tree, a) ? b : a;
}

/* The order of a node's names is none to go by: a restart does not keep it. */
static const struct node *policy_parent(const struct larder *l, const struct node *n)
{
    const struct node *trusted = NULL, *any = NULL;
    uint32_t uid = node_uid(l->tree, n);

    if (node_is_dir(n) || node_nlink(l->tree, n) <= 1)
        return tree_parent(l->tree, n);
    for (const struct dentry *d = tree_dentry(l->tree, n->first_dentry); d; d = tree_dentry(l->tree, dentry_next_name(d))) {
        const struct node *parent = tree_slot(l->tree, d->parent);

        any = newer_of(l, any, parent);
        if (node_uid(l->tree, parent) == uid || node_uid(l->tree, parent) == 0)
            trusted = newer_of(l, trusted, parent);
    }
    return trusted ? trusted : any;
}

static uint64_t policy_find(const struct larder *l, const struct node *n, enum policy_kind kind,
                            struct policy_source *ret_source)
{
    enum policy_where where = POLICY_OWN;
    uint64_t value;

    for (; n; n = l->policy_dirs > 0 ? policy_parent(l, n) : NULL, where = POLICY_DIRECTORY) {
        value = ext_policy(node_ext(l->tree, n), kind);
        if (value == POLICY_UNSET)
            continue;
        if (ret_source)
            *ret_source = (struct policy_source){.where = where, .node = n};
        return value;
    }
    return POLICY_UNSET;
}

static uint64_t policy_or_mount(uint64_t value, uint64_t mount, uint64_t by_default, struct policy_source *ret_source)
{
    if (value != POLICY_UNSET)
        return value;
    if (ret_source)
        *ret_source = (struct policy_source){.where = mount != by_default ? POLICY_MOUNT : POLICY_DEFAULT};
    return mount;
}

uint64_t policy_ttl(const struct larder *l, const struct node *n, struct policy_source *ret_source)
{
    return policy_or_mount(policy_find(l, n, KIND_TTL, ret_source), l->opts.ttl_ns, POLICY_UNSET, ret_source);
}

uint64_t policy_idle(const struct larder *l, const struct node *n, struct policy_source *ret_source)
{
    return policy_or_mount(policy_find(l, n, KIND_IDLE, ret_source), l->opts.idle_ns, POLICY_UNSET, ret_source);
}

bool policy_pin(const struct larder *l, const struct node *n, struct policy_source *ret_source)
{
    return policy_or_mount(policy_find(l, n, KIND_PIN, ret_source), 0, 0, ret_source) == 1;
}

enum compress_mode policy_compress(const struct larder *l, const struct node *n, struct policy_source *ret_source)
{
    return (enum compress_mode)policy_or_mount(policy_find(l, n, KIND_COMPRESS, ret_source), l->opts.compress,
                                               COMPRESS_AUTO, ret_source);
}

static uint64_t after(uint64_t from_ns, uint64_t age_ns)
{
    uint64_t sum;

    if (age_ns == POLICY_UNSET || age_ns == POLICY_NEVER)
        return UINT64_MAX;
    return add_overflows(from_ns, age_ns, &sum) ? UINT64_MAX : sum;
}

uint64_t policy_deadline(const struct larder *l, const struct node *n, enum drop_reason *ret_reason)
{
    const struct node_ext *x = node_ext(l->tree, n);
    uint64_t deadline, other;

    *ret_reason = DROP_TTL;
    if (!x && l->policy_dirs == 0 && l->opts.ttl_ns == POLICY_UNSET && l->opts.idle_ns == POLICY_UNSET)
        return UINT64_MAX;
    deadline = after(node_written_ns(l->tree, n), policy_ttl(l, n, NULL));
    other = after(n->used_ns, policy_idle(l, n, NULL));
    if (other < deadline) {
        deadline = other;
        *ret_reason = DROP_IDLE;
    }
    if (x && x->expires_ns < MIN(deadline, POLICY_NEVER)) {
        deadline = x->expires_ns;
        *ret_reason = DROP_EXPIRES;
    }
    return deadline;
}
