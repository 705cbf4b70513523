/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_xattr: ordinary user xattrs, kept with the node; and user.larder.*, which are none: they read and set
 * policies, or tell facts, and are never listed.
 *
 * A policy reads as what counts for the node, whoever set it; user.larder.source says who. Removing or setting
 * it touches the node's own only.
 *
 * What may never happen: a policy change that a restart forgets, or that the kernel's caches outlive
 * (cache_rearm_subtree).
 */
#include "cache.h"

#include <stdio.h>
#include <sys/xattr.h>

#define XATTR_ALL_BYTES_MAX (256 * MIB) /* of all nodes together */
#define XATTR_QUOTA_SHARE 8u            /* or this part of the quota, if that is less */
#define VIRTUAL_PREFIX "user.larder."
#define TEXT_BYTES 512

/* ---- ordinary ones; cache lock held ---- */

static bool xattr_find(const struct node_ext *x, const char *name, struct tlv_view *ret_tlv, uint32_t *ret_start,
                       uint32_t *ret_end)
{
    size_t name_bytes = strlen(name);
    uint32_t offset = 0, start = 0;
    struct tlv_view tlv;
    bool found = false;

    /* The last one counts: no two have the same name but in a damaged store, and a new one goes to the end. */
    for (; x && tlv_next(x->tlv, x->tlv_bytes, &offset, &tlv) == 0; start = offset) {
        if (tlv.kind != NODE_TLV_XATTR || tlv.name_bytes != name_bytes || memcmp(tlv.name, name, name_bytes) != 0)
            continue;
        *ret_tlv = tlv;
        *ret_start = start;
        *ret_end = offset;
        found = true;
    }
    return found;
}

static int xattr_get(const struct larder *l, const struct node *n, const char *name, void *out, size_t out_bytes,
                     size_t *ret_bytes)
{
    struct tlv_view tlv;
    uint32_t start, end;

    if (!xattr_find(node_ext(l->tree, n), name, &tlv, &start, &end))
        return -ENODATA;
    *ret_bytes = tlv.value_bytes;
    if (out_bytes == 0)
        return 0;
    if (out_bytes < tlv.value_bytes)
        return -ERANGE;
    memcpy(out, tlv.value, tlv.value_bytes);
    return 0;
}

/* xattrs are kept in memory, journal and checkpoint: all together are bounded, and files that have some give way. */
static bool xattr_fits(const struct larder *l, size_t before_bytes, size_t after_bytes)
{
    uint64_t share = MAX(atomic_load(&l->base_limit_bytes) / XATTR_QUOTA_SHARE, XATTR_VALUE_BYTES_MAX);
    struct tree_totals totals;

    if (after_bytes <= before_bytes)
        return true;
    tree_totals(l->tree, &totals);
    return totals.tlv_bytes + (after_bytes - before_bytes) <= MIN(share, XATTR_ALL_BYTES_MAX);
}

/* The node's TLVs without [cut_start, cut_end), with one more xattr when value is not NULL. */
static int xattr_rebuild(struct larder *l, struct node *n, uint32_t cut_start, uint32_t cut_end, const char *name,
                         const void *value, size_t value_bytes)
{
    size_t name_bytes = strlen(name), kept, total;
    struct node_ext *x;
    uint8_t *tlv;
    int r = node_ext_need(l->tree, n, &x);

    if (r < 0)
        return r;
    kept = x->tlv_bytes - (cut_end - cut_start);
    total = kept + (value ? tlv_put(NULL, NODE_TLV_XATTR, name, name_bytes, value, value_bytes) : 0);
    if (total > XATTR_NODE_BYTES_MAX)
        return -ENOSPC;
    if (!xattr_fits(l, x->tlv_bytes, total))
        return -ENOBUFS; /* larder_setxattr makes room */
    tlv = malloc(total ? total : 1);
    if (!tlv)
        return -ENOMEM;
    if (cut_start > 0)
        memcpy(tlv, x->tlv, cut_start);
    if (x->tlv_bytes > cut_end)
        memcpy(tlv + cut_start, x->tlv + cut_end, x->tlv_bytes - cut_end);
    if (value)
        (void)tlv_put(tlv + kept, NODE_TLV_XATTR, name, name_bytes, value, value_bytes); /* size measured above */
    node_set_tlv(l->tree, n, &tlv, (uint32_t)total);
    return 0;
}

static int xattr_set(struct larder *l, struct node *n, const char *name, const void *value, size_t value_bytes, int flags)
{
    struct tlv_view tlv;
    uint32_t start = 0, end = 0;
    bool exists = xattr_find(node_ext(l->tree, n), name, &tlv, &start, &end);
    int r;

    if (exists && flags & XATTR_CREATE)
        return -EEXIST;
    if (!exists && (!value || flags & XATTR_REPLACE))
        return -ENODATA;
    r = xattr_rebuild(l, n, start, end, name, value, value_bytes);
    while (r == 0 && !value && xattr_find(node_ext(l->tree, n), name, &tlv, &start, &end))
        r = xattr_rebuild(l, n, start, end, name, NULL, 0); /* and those of the same name it hid */
    return r;
}

/* ---- virtual ones: text ---- */

static const char *const compress_names[] = {[COMPRESS_AUTO] = "auto", [COMPRESS_LZ4] = "lz4", [COMPRESS_NONE] = "none"};

static void age_text(uint64_t ns, char out[32])
{
    if (ns == POLICY_UNSET || ns == POLICY_NEVER)
        memcpy(out, "none", 5);
    else
        larder_format_age(ns, out);
}

static void expires_text(uint64_t ns, char out[32])
{
    if (ns >= POLICY_NEVER)
        memcpy(out, "none", 5);
    else
        (void)snprintf(out, 32, "%llu.%03llu", (unsigned long long)(ns / NS_PER_S),
                       (unsigned long long)(ns % NS_PER_S / NS_PER_MS));
}

/* One "name:value:where" of user.larder.source. */
static size_t source_item(const struct larder *l, char *out, size_t out_bytes, const char *name, const char *value,
                          const struct policy_source *source)
{
    static const char *const where[] = {
        [POLICY_DEFAULT] = "default", [POLICY_MOUNT] = "mount", [POLICY_DIRECTORY] = "directory", [POLICY_OWN] = "own"};
    char path[4096];
    size_t path_bytes = 0, at;

    at = (size_t)snprintf(out, out_bytes, "%s%s:%s:%s", name[0] == 't' ? "" : " ", name, value, where[source->where]);
    if (source->where != POLICY_DIRECTORY)
        return at;
    path_bytes = tree_path(l->tree, source->node, path, sizeof(path));
    at += (size_t)snprintf(out + at, out_bytes - at, ":");
    for (size_t i = 0; i < path_bytes && at + 5 < out_bytes; i++) {
        unsigned char c = (unsigned char)path[i];
        if (c <= 0x20 || c >= 0x7f || c == '\\')
            at += (size_t)snprintf(out + at, out_bytes - at, "\\%03o", c);
        else
            out[at++] = (char)c;
    }
    return at;
}

#define SOURCE_TEXT_BYTES 100000 /* five values, each with an escaped path */

static char *source_text(const struct larder *l, const struct node *n, size_t *ret_bytes)
{
    const struct node_ext *x = node_ext(l->tree, n);
    struct policy_source source = {.where = POLICY_OWN};
    char *out = malloc(SOURCE_TEXT_BYTES), text[32];
    size_t at = 0;

    if (!out)
        return NULL;
    age_text(policy_ttl(l, n, &source), text);
    at += source_item(l, out + at, SOURCE_TEXT_BYTES - at, "ttl", text, &source);
    age_text(policy_idle(l, n, &source), text);
    at += source_item(l, out + at, SOURCE_TEXT_BYTES - at, "idle", text, &source);
    source.where = x && x->expires_ns != POLICY_UNSET ? POLICY_OWN : POLICY_DEFAULT;
    expires_text(x ? x->expires_ns : POLICY_UNSET, text);
    at += source_item(l, out + at, SOURCE_TEXT_BYTES - at, "expires", text, &source);
    at += source_item(l, out + at, SOURCE_TEXT_BYTES - at, "pin", policy_pin(l, n, &source) ? "on" : "off", &source);
    at += source_item(l, out + at, SOURCE_TEXT_BYTES - at, "compress",
                      compress_names[policy_compress(l, n, &source)], &source);
    *ret_bytes = at;
    return out;
}

static const char *codec_text(const struct larder *l, const struct node *n)
{
    struct value v;

    node_value(l->tree, n, &v);
    switch (v.kind) {
    case VALUE_SEGMENT:
        return codec_name(v.codec);
    case VALUE_PACKED:
        return "lz4";
    case VALUE_EMPTY:
    case VALUE_RAW:
        break;
    }
    return "raw";
}

/* -ENODATA: nobody set it. */
static int policy_text(const struct larder *l, const struct node *n, const char *key, char out[TEXT_BYTES])
{
    const struct node_ext *x = node_ext(l->tree, n);
    struct policy_source source = {.where = POLICY_OWN};

    if (strcmp(key, "ttl") == 0) {
        age_text(policy_ttl(l, n, &source), out);
    } else if (strcmp(key, "idle") == 0) {
        age_text(policy_idle(l, n, &source), out);
    } else if (strcmp(key, "expires") == 0 && !node_is_dir(n)) {
        source.where = x && x->expires_ns != POLICY_UNSET ? POLICY_OWN : POLICY_DEFAULT;
        expires_text(x ? x->expires_ns : POLICY_UNSET, out);
    } else if (strcmp(key, "pin") == 0) {
        (void)snprintf(out, TEXT_BYTES, "%s", policy_pin(l, n, &source) ? "on" : "off");
    } else if (strcmp(key, "compress") == 0) {
        (void)snprintf(out, TEXT_BYTES, "%s", compress_names[policy_compress(l, n, &source)]);
    } else {
        return -ENODATA;
    }
    return source.where == POLICY_DEFAULT ? -ENODATA : 0;
}

static int fact_text(const struct larder *l, const struct node *n, const char *key, char out[TEXT_BYTES])
{
    uint64_t now = cache_now(l), written_ns = node_written_ns(l->tree, n);
    struct value v;

    if (!node_is_file(n))
        return -ENODATA;
    node_value(l->tree, n, &v);
    if (strcmp(key, "hits") == 0)
        (void)snprintf(out, TEXT_BYTES, "%u%s", node_hits(l->tree, n), l->opts.hits == LARDER_HITS_SAMPLED ? " sampled" : "");
    else if (strcmp(key, "age") == 0)
        larder_format_age((now > written_ns ? now - written_ns : 0) / NS_PER_MS * NS_PER_MS, out);
    else if (strcmp(key, "stored_bytes") == 0)
        (void)snprintf(out, TEXT_BYTES, "%llu", (unsigned long long)v.stored_bytes);
    else if (strcmp(key, "codec") == 0)
        (void)snprintf(out, TEXT_BYTES, "%s", codec_text(l, n));
    else
        return -ENODATA;
    return 0;
}

/* xxh3-64 of the value, which may have to be read. No lock held. */
static int checksum_text(struct larder *l, uint64_t id, char out[TEXT_BYTES])
{
    struct open_node *on;
    uint64_t sum;
    int r = open_node_get(l, id, false, &on);

    if (r < 0)
        return r == -ESTALE ? r : -ENODATA;
    r = content_checksum(on->content, &sum);
    open_node_put(on, false);
    if (r < 0)
        return -ENODATA;
    (void)snprintf(out, TEXT_BYTES, "xxh3:%016llx", (unsigned long long)sum);
    return 0;
}

static int give_text(const char *text, size_t text_bytes, void *out, size_t out_bytes, size_t *ret_bytes)
{
    *ret_bytes = text_bytes;
    if (out_bytes == 0)
        return 0;
    if (out_bytes < text_bytes)
        return -ERANGE;
    memcpy(out, text, text_bytes);
    return 0;
}

static int virtual_get(struct larder *l, uint64_t id, const char *key, void *out, size_t out_bytes, size_t *ret_bytes)
{
    _cleanup_free_ char *source = NULL;
    char text[TEXT_BYTES];
    size_t source_bytes = 0;
    struct node *n;
    int r;

    if (strcmp(key, "checksum") == 0) {
        r = checksum_text(l, id, text);
        return r < 0 ? r : give_text(text, strlen(text), out, out_bytes, ret_bytes);
    }
    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (!n) {
        r = -ESTALE;
    } else if (strcmp(key, "source") == 0) {
        source = source_text(l, n, &source_bytes);
        r = source ? 0 : -ENOMEM;
    } else {
        r = fact_text(l, n, key, text);
        if (r == -ENODATA)
            r = policy_text(l, n, key, text);
    }
    lock_give(&l->lock);
    if (r < 0)
        return r;
    return source ? give_text(source, source_bytes, out, out_bytes, ret_bytes)
                  : give_text(text, strlen(text), out, out_bytes, ret_bytes);
}

/* ---- virtual ones: setting ---- */

static int parse_bool(const char *text, uint8_t *ret_value)
{
    static const struct {
        const char *text;
        uint8_t value;
    } words[] = {{"on", 1}, {"1", 1}, {"true", 1}, {"yes", 1}, {"off", 0}, {"0", 0}, {"false", 0}, {"no", 0}};

    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        if (strcmp(text, words[i].text) == 0) {
            *ret_value = words[i].value;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_compress(const char *text, uint8_t *ret_value)
{
    for (size_t i = 0; i < ARRAY_COUNT(compress_names); i++) {
        if (strcmp(text, compress_names[i]) == 0) {
            *ret_value = (uint8_t)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* "+AGE" from now, seconds since 1970 (with a fraction), or "none". */
static int parse_expires(const struct larder *l, const char *text, uint64_t *ret_ns)
{
    uint64_t age_ns, scale = NS_PER_S / 10, ns = 0;
    int r;

    if (text[0] == '+') {
        r = larder_parse_age(text + 1, &age_ns);
        if (r < 0 || age_ns >= POLICY_NEVER - cache_now(l))
            return -EINVAL;
        *ret_ns = cache_now(l) + age_ns;
        return 0;
    }
    if (strcmp(text, "none") == 0) {
        *ret_ns = POLICY_NEVER;
        return 0;
    }
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (ns > UINT64_MAX / NS_PER_S / 10 - 1)
            return -EINVAL;
        ns = ns * 10 + (uint64_t)(*text - '0');
    }
    ns *= NS_PER_S;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9'; text++, scale /= 10)
            ns += (uint64_t)(*text - '0') * scale;
    if (*text != 0)
        return -EINVAL;
    *ret_ns = ns;
    return 0;
}

/* text "" takes the node's own setting away. */
static int set_policy(struct larder *l, struct node *n, const char *key, const char *text)
{
    struct node_ext *x;
    bool unset = text[0] == 0;
    uint64_t age = POLICY_UNSET;
    uint8_t byte = POLICY_BYTE_UNSET;
    int r = node_ext_need(l->tree, n, &x);

    if (r < 0)
        return r;
    if (strcmp(key, "ttl") == 0 || strcmp(key, "idle") == 0) {
        r = unset ? 0 : larder_parse_age(text, &age);
        if (r == 0)
            *(key[0] == 't' ? &x->ttl_ns : &x->idle_ns) = age;
        return r < 0 ? -EINVAL : 0;
    }
    if (strcmp(key, "expires") == 0) {
        r = node_is_dir(n) ? -EINVAL : unset ? 0 : parse_expires(l, text, &age);
        if (r == 0)
            x->expires_ns = age;
        return r;
    }
    if (strcmp(key, "pin") == 0) {
        r = unset ? 0 : parse_bool(text, &byte);
        if (r == 0)
            x->pin = byte;
        return r;
    }
    if (strcmp(key, "compress") == 0) {
        r = unset ? 0 : parse_compress(text, &byte);
        if (r == 0)
            x->compress = byte;
        return r;
    }
    return -ENODATA;
}

static bool is_policy(const char *key)
{
    static const char *const keys[] = {"ttl", "idle", "expires", "pin", "compress"};

    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

static bool is_fact(const char *key)
{
    static const char *const keys[] = {"hits", "age", "stored_bytes", "codec", "checksum", "source", "stats"};

    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

static void count_policies(struct larder *l, const struct node *n, int sign)
{
    const struct node_ext *x = node_ext(l->tree, n);

    if (!x || (!n->first_dentry && node_id(l->tree, n) != LARDER_ROOT))
        return;
    if (node_is_dir(n) && ext_has_policy(x))
        l->policy_dirs += (uint64_t)(int64_t)sign;
    if (x->pin == 1)
        l->pinned += (uint64_t)(int64_t)sign;
}

static int virtual_set_locked(struct larder *l, struct node *n, const char *key, const char *text)
{
    int r;

    count_policies(l, n, -1);
    r = set_policy(l, n, key, text);
    count_policies(l, n, +1);
    if (r < 0)
        return r;
    if (strcmp(key, "pin") == 0)
        evict_unhold_all(&l->evict, l->tree);
    if (!node_is_dir(n) && n->first_dentry) {
        cache_arm(l, n);
        if (l->callbacks.node_changed) /* the kernel may trust it for longer than it is good now */
            l->callbacks.node_changed(l->callbacks.ctx, node_id(l->tree, n), false);
    }
    return 0;
}

static int virtual_set(struct larder *l, uint64_t id, const char *key, const char *value, size_t value_bytes)
{
    char text[TEXT_BYTES];
    struct node *n;
    bool directory = false;
    uint64_t seq;
    int r = 0;

    if (!is_policy(key))
        return is_fact(key) ? -EPERM : -EINVAL;
    if (value_bytes >= sizeof(text) || memchr(value, 0, value_bytes ? value_bytes - 1 : 0))
        return -EINVAL;
    memcpy(text, value, value_bytes);
    text[value_bytes] = 0;
    if (value_bytes > 1 && text[value_bytes - 1] == '\n') /* echo 5m | ... */
        text[value_bytes - 1] = 0;
    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (!n) {
        r = -ESTALE;
    } else {
        directory = node_is_dir(n);
        r = virtual_set_locked(l, n, key, text);
        if (r == 0 && !(n->flags & NODE_NEW))
            log_node(l, n);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    r = log_result(l, r, seq);
    if (r == 0 && directory)
        cache_rearm_subtree(l, id);
    return r;
}

static bool own_policy_is_set(struct larder *l, uint64_t id, const char *key)
{
    const struct node_ext *x;
    struct node *n;
    bool set = false;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    x = n ? node_ext(l->tree, n) : NULL;
    if (x && is_policy(key))
        set = (key[0] == 't' && x->ttl_ns != POLICY_UNSET) || (key[0] == 'i' && x->idle_ns != POLICY_UNSET) ||
              (key[0] == 'e' && x->expires_ns != POLICY_UNSET) || (key[0] == 'p' && x->pin != POLICY_BYTE_UNSET) ||
              (key[0] == 'c' && x->compress != POLICY_BYTE_UNSET);
    lock_give(&l->lock);
    return set;
}

/* ---- public ---- */

static const char *virtual_key(const char *name)
{
    size_t prefix = strlen(VIRTUAL_PREFIX);

    return strncmp(name, VIRTUAL_PREFIX, prefix) == 0 ? name + prefix : NULL;
}

/* user.* are kept; trusted.* and security.* would be promises we do not keep. */
static int check_namespace(const char *name)
{
    if (strlen(name) > XATTR_NAME_BYTES_MAX)
        return -ERANGE;
    if (strncmp(name, "user.", 5) != 0 || name[5] == 0)
        return -EOPNOTSUPP;
    return 0;
}

int larder_getxattr(struct larder *l, uint64_t id, const char *name, void *out, size_t out_bytes, size_t *ret_bytes)
{
    const char *key = virtual_key(name);
    struct node *n;
    int r;

    if (key)
        return virtual_get(l, id, key, out, out_bytes, ret_bytes);
    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    r = n ? xattr_get(l, n, name, out, out_bytes, ret_bytes) : -ESTALE;
    lock_give(&l->lock);
    return r;
}

static int change_xattr(struct larder *l, uint64_t id, const char *name, const void *value, size_t value_bytes, int flags)
{
    struct node *n;
    uint64_t seq;
    int r;

    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (!n) {
        r = -ESTALE;
    } else if (!node_is_file(n) && !node_is_dir(n)) {
        r = -EPERM; /* as xattr(7): symlinks and specials carry no user attributes */
    } else {
        r = xattr_set(l, n, name, value, value_bytes, flags);
    }
    if (r == 0) {
        node_set_ctime(l->tree, n, cache_wall(l));
        if (!(n->flags & NODE_NEW))
            log_node(l, n);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    r = log_result(l, r, seq);
    return r;
}

int larder_setxattr(struct larder *l, uint64_t id, const char *name, const void *value, size_t value_bytes, int flags)
{
    const char *key = virtual_key(name);
    int r = check_namespace(name);

    if (r == 0)
        r = cache_writable(l);
    if (r == 0 && value_bytes > XATTR_VALUE_BYTES_MAX)
        r = -E2BIG;
    if (r == 0)
        r = log_room(l, RECORD_USUAL_BYTES + value_bytes);
    if (r < 0)
        return r;
    if (key && value_bytes == 0)
        return -EINVAL; /* to take a policy away there is removexattr */
    if (key)
        return virtual_set(l, id, key, value, value_bytes);
    do
        r = change_xattr(l, id, name, value_bytes ? value : "", value_bytes, flags);
    while (r == -ENOBUFS && cache_evict_xattrs(l, id, value_bytes));
    return r == -ENOBUFS ? -ENOSPC : r;
}

int larder_removexattr(struct larder *l, uint64_t id, const char *name)
{
    const char *key = virtual_key(name);
    int r = check_namespace(name);

    if (r == 0)
        r = cache_writable(l);
    if (r < 0)
        return r;
    if (!key)
        return change_xattr(l, id, name, NULL, 0, 0);
    if (is_fact(key))
        return -EPERM;
    return own_policy_is_set(l, id, key) ? virtual_set(l, id, key, "", 0) : -ENODATA;
}

int larder_listxattr(struct larder *l, uint64_t id, char *out, size_t out_bytes, size_t *ret_bytes)
{
    const struct node_ext *x;
    struct tlv_view tlv;
    uint32_t offset = 0;
    size_t total = 0;
    struct node *n;
    int r = 0;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    x = n ? node_ext(l->tree, n) : NULL;
    if (!n)
        r = -ESTALE;
    while (x && tlv_next(x->tlv, x->tlv_bytes, &offset, &tlv) == 0) {
        if (tlv.kind != NODE_TLV_XATTR)
            continue;
        if (out_bytes > 0 && total + tlv.name_bytes + 1 > out_bytes) {
            r = -ERANGE;
            break;
        }
        if (out_bytes > 0) {
            memcpy(out + total, tlv.name, tlv.name_bytes);
            out[total + tlv.name_bytes] = 0;
        }
        total += tlv.name_bytes + 1u;
    }
    lock_give(&l->lock);
    *ret_bytes = total;
    return r;
}
