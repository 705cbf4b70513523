/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * options: one row per option decides its name, its accepted form, its default as shown, and how it is set.
 * `-o name=value` and `--name=value` are the same thing. An option nobody knows is refused by name; those of
 * mount(8) and fstab(5) that mean nothing here are accepted and dropped, those that mean something to the
 * kernel are passed on.
 */
#include "fs/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/statvfs.h>

#include "fs/fs.h"
#include "fs/mountpoint.h"

#define OPTIONS_WATCHDOG_NS (600 * NS_PER_S) /* "10m" below */

struct options_spec {
    const char *name;
    const char *form;  /* accepted value, or NULL for a flag */
    const char *what;  /* of the value, for "not a size" */
    const char *shown; /* default, for .larder/config and --help */
    const char *help;
    int (*set)(struct fs_options *o, const char *value);
};

static int options_parse_number(const char *text, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;

    if (!*text)
        return -EINVAL;
    for (const char *p = text; *p; p++) {
        if (!isdigit((unsigned char)*p))
            return -EINVAL;
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
            return -ERANGE;
    }
    if (value > max)
        return -ERANGE;
    *ret_value = value;
    return 0;
}

/* The index of value in a list of words; -EINVAL. */
static int options_parse_word(const char *value, const char *const *words)
{
    for (int i = 0; words[i]; i++)
        if (strcmp(words[i], value) == 0)
            return i;
    return -EINVAL;
}

static int options_parse_tri(const char *value, enum tri *ret_tri)
{
    static const char *const words[] = {"auto", "on", "off", NULL};
    int i = options_parse_word(value, words);

    if (i < 0)
        return i;
    *ret_tri = (enum tri)i;
    return 0;
}

static int options_set_quota(struct fs_options *o, const char *value)
{
    return larder_parse_size(value, &o->core.quota_bytes);
}

static int options_set_max_entries(struct fs_options *o, const char *value)
{
    return options_parse_number(value, UINT32_MAX, &o->core.max_entries);
}

static int options_set_min_free(struct fs_options *o, const char *value)
{
    size_t length = strlen(value);
    char digits[4] = "";
    uint64_t percent;
    int r;

    if (length == 0 || value[length - 1] != '%') {
        o->min_free_percent = 0;
        return larder_parse_size(value, &o->core.min_free_bytes);
    }
    if (length > 3)
        return -EINVAL;
    memcpy(digits, value, length - 1);
    r = options_parse_number(digits, 99, &percent);
    if (r < 0)
        return r;
    o->min_free_percent = (unsigned)percent;
    o->core.min_free_bytes = 0;
    return 0;
}

static int options_parse_policy_age(const char *value, uint64_t *ret_ns)
{
    uint64_t ns;
    int r = larder_parse_age(value, &ns);

    if (r < 0)
        return r;
    *ret_ns = ns == LARDER_NEVER ? LARDER_UNSET : ns; /* for the mount, "none" is the default */
    return 0;
}

static int options_set_ttl(struct fs_options *o, const char *value)
{
    return options_parse_policy_age(value, &o->core.ttl_ns);
}

static int options_set_idle(struct fs_options *o, const char *value)
{
    return options_parse_policy_age(value, &o->core.idle_ns);
}

static int options_set_compress(struct fs_options *o, const char *value)
{
    static const char *const words[] = {"auto", "lz4", "none", NULL};
    int i = options_parse_word(value, words);

    if (i < 0)
        return i;
    o->core.compress = (enum larder_compress)i;
    return 0;
}
_Static_assert(LARDER_COMPRESS_AUTO == 0 && LARDER_COMPRESS_LZ4 == 1 && LARDER_COMPRESS_NONE == 2,
               "order of words");

static int options_set_big_bytes(struct fs_options *o, const char *value)
{
    uint64_t bytes;
    int r = larder_parse_size(value, &bytes);

    if (r < 0)
        return r;
    if (bytes < 4096 || bytes > 4u << 20)
        return -ERANGE;
    o->core.big_bytes = (uint32_t)bytes;
    return 0;
}

static int options_set_durability(struct fs_options *o, const char *value)
{
    static const char *const words[] = {"close", "fsync", NULL};
    int i = options_parse_word(value, words);

    if (i < 0)
        return i;
    o->core.durability = (enum larder_durability)i;
    return 0;
}
_Static_assert(LARDER_DURABILITY_CLOSE == 0 && LARDER_DURABILITY_FSYNC == 1, "order of words");

static int options_set_io_uring(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->io_uring);
}

static int options_set_passthrough(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->passthrough);
}

static int options_set_hits(struct fs_options *o, const char *value)
{
    static const char *const words[] = {"exact", "sampled", NULL};
    int i = options_parse_word(value, words);

    if (i < 0)
        return i;
    o->core.hits = (enum larder_hits)i;
    return 0;
}
_Static_assert(LARDER_HITS_EXACT == 0 && LARDER_HITS_SAMPLED == 1, "order of words");

static int options_set_no_new_privs(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->confine[CONFINE_NO_NEW_PRIVS]);
}

static int options_set_drop_caps(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->confine[CONFINE_DROP_CAPS]);
}

static int options_set_landlock(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->confine[CONFINE_LANDLOCK]);
}

static int options_set_seccomp(struct fs_options *o, const char *value)
{
    return options_parse_tri(value, &o->confine[CONFINE_SECCOMP]);
}

static int options_set_threads(struct fs_options *o, const char *value)
{
    uint64_t count;
    int r = options_parse_number(value, 1024, &count);

    if (r < 0)
        return r;
    if (count == 0)
        return -ERANGE;
    o->threads = (unsigned)count;
    return 0;
}

static int options_set_watchdog(struct fs_options *o, const char *value)
{
    uint64_t ns;
    int r = strcmp(value, "off") == 0 ? 0 : larder_parse_age(value, &ns);

    if (r < 0)
        return r;
    if (strcmp(value, "off") == 0 || ns == LARDER_NEVER)
        ns = 0;
    else if (ns < NS_PER_S)
        return -ERANGE;
    o->watchdog_ns = ns;
    return 0;
}

static int options_set_log_level(struct fs_options *o, const char *value)
{
    static const char *const words[] = {"error", "warning", "info", "debug", NULL};
    int i = options_parse_word(value, words);

    if (i < 0)
        return i;
    o->log_level = (enum larder_log_level)i;
    return 0;
}
_Static_assert(LARDER_LOG_ERROR == 0 && LARDER_LOG_DEBUG == 3, "order of words");

static int options_set_fsname(struct fs_options *o, const char *value)
{
    char *copy = strdup(value);

    if (!copy)
        return -ENOMEM;
    free(o->fsname);
    o->fsname = copy;
    return *value ? 0 : -EINVAL;
}

static int options_set_ro(struct fs_options *o, const char *value)
{
    (void)value;
    o->core.read_only = true;
    return 0;
}

static int options_set_rw(struct fs_options *o, const char *value)
{
    (void)value;
    o->core.read_only = false;
    return 0;
}

static int options_set_allow_other(struct fs_options *o, const char *value)
{
    (void)value;
    o->allow_other = true;
    return 0;
}

static int options_set_allow_root(struct fs_options *o, const char *value)
{
    (void)value;
    o->allow_root = true;
    return 0;
}

static int options_set_default_permissions(struct fs_options *o, const char *value)
{
    (void)value;
    o->default_permissions = true;
    return 0;
}

static int options_set_nonempty(struct fs_options *o, const char *value)
{
    (void)value;
    o->nonempty = true;
    return 0;
}

static const struct options_spec options_specs[] = {
    {"quota", "quota=500M, quota=10GiB", "a size", "1GiB", "what the store may take on disk",
     options_set_quota},
    {"max_entries", "max_entries=100000", "a number", "0", "bound on the number of keys; 0: none",
     options_set_max_entries},
    {"min_free", "min_free=5G, min_free=10%", "a size or a percentage", "0",
     "to leave free on the host file system", options_set_min_free},
    {"ttl", "ttl=24h, ttl=7d, ttl=none", "an age", "none", "keys expire this long after their last write",
     options_set_ttl},
    {"idle", "idle=30m, idle=2w, idle=none", "an age", "none", "keys expire this long after their last use",
     options_set_idle},
    {"compress", "compress=auto, compress=lz4, compress=none", "a way to compress", "auto",
     "how values are compressed", options_set_compress},
    {"big_bytes", "big_bytes=256KiB (4KiB to 4MiB)", "a size", "256KiB",
     "larger values get a file of their own", options_set_big_bytes},
    {"durability", "durability=close, durability=fsync", "a durability", "close",
     "fsync: close returns when the value is on the device", options_set_durability},
    {"io_uring", "io_uring=auto, io_uring=on, io_uring=off", "auto, on or off", "auto",
     "talk to the kernel over io_uring", options_set_io_uring},
    {"passthrough", "passthrough=auto, passthrough=on, passthrough=off", "auto, on or off", "auto",
     "let the kernel read large raw values itself", options_set_passthrough},
    {"hits", "hits=exact, hits=sampled", "exact or sampled", "exact",
     "sampled: the kernel opens and closes files by itself; uses are seen as lookups, and what was written and not "
     "renamed, linked or fsynced is committed half a second after the last change",
     options_set_hits},
    {"no_new_privs", "no_new_privs=auto, no_new_privs=on, no_new_privs=off", "auto, on or off", "auto",
     "the daemon gains no rights by executing anything", options_set_no_new_privs},
    {"drop_caps", "drop_caps=auto, drop_caps=on, drop_caps=off", "auto, on or off", "auto",
     "the daemon of root keeps no capability it has no use for", options_set_drop_caps},
    {"landlock", "landlock=auto, landlock=on, landlock=off", "auto, on or off", "auto",
     "the daemon sees no files but its store", options_set_landlock},
    {"seccomp", "seccomp=auto, seccomp=on, seccomp=off", "auto, on or off", "auto",
     "the daemon makes no system calls but those it needs", options_set_seccomp},
    {"threads", "threads=8 (1 to 1024)", "a number", "10", "threads that serve /dev/fuse",
     options_set_threads},
    {"watchdog", "watchdog=10m, watchdog=off (1s or more)", "an age", "10m",
     "a request without progress for so long ends the daemon, so that its client gets an error", options_set_watchdog},
    {"log_level", "log_level=error, warning, info or debug", "a log level", "info", "how much is logged",
     options_set_log_level},
    {"fsname", "fsname=NAME", "a name", "the store's path", "first field of /proc/mounts",
     options_set_fsname},
    {"ro", NULL, NULL, "off", "read-only", options_set_ro},
    {"rw", NULL, NULL, "on", "read-write", options_set_rw},
    {"allow_other", NULL, NULL, "off", "other users may use the mount, by its permission bits",
     options_set_allow_other},
    {"allow_root", NULL, NULL, "off", "root may use the mount as well", options_set_allow_root},
    {"default_permissions", NULL, NULL, "off",
     "the kernel checks permission bits also in a mount that only root may enter", options_set_default_permissions},
    {"nonempty", NULL, NULL, "off", "mount over a directory that is not empty", options_set_nonempty},
};
_Static_assert(ARRAY_COUNT(options_specs) <= OPTIONS_ROWS_MAX, "fs_options.given has a place for each");

/* For mount(2), by way of libfuse. A name that ends in '=' takes a value. */
static const char *const options_kernel[] = {
    "nosuid",   "suid",       "nodev",       "dev",          "noexec",     "exec",
    "async",    "sync",       "dirsync",     "noatime",      "nodiratime", "nosymfollow",
    "context=", "fscontext=", "defcontext=", "rootcontext=",
};

/* Of mount(8), fstab(5) and systemd.mount(5): nothing to do for us. Names ending in '-' or '=' are
 * prefixes. */
static const char *const options_dropped[] = {
    "defaults",  "_netdev",    "nofail",      "noauto",
    "auto",      "user",       "user=",       "users",
    "nouser",    "owner",      "group",       "noowner",
    "nogroup",   "comment=",   "x-",          "X-",
    "relatime",  "norelatime", "strictatime", "nostrictatime",
    "atime",     "diratime",   "lazytime",    "nolazytime",
    "symfollow", "silent",     "loud",        "mand",
    "nomand",    "iversion",   "noiversion",  "uhelper=",
    "helper=",
};

void options_init(struct fs_options *o)
{
    *o = (struct fs_options){.log_level = LARDER_LOG_INFO, .watchdog_ns = OPTIONS_WATCHDOG_NS};
    larder_options_init(&o->core);
    text_add(&o->kernel, ",nosuid,nodev");
}

void options_free(struct fs_options *o)
{
    free(o->store);
    free(o->mountpoint);
    free(o->fsname);
    text_free(&o->kernel);
    for (size_t i = 0; i < OPTIONS_ROWS_MAX; i++)
        free(o->given[i]);
}

static int options_fail(char *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int options_fail(char *err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vsnprintf(err, OPTIONS_ERROR_BYTES, format, args);
    va_end(args);
    return -EINVAL;
}

static bool options_in_list(const char *option, const char *const *list, size_t count)
{
    size_t name_bytes = strcspn(option, "=");

    for (size_t i = 0; i < count; i++) {
        size_t bytes = strlen(list[i]);
        char last = list[i][bytes - 1];

        if (last == '=' || last == '-') {
            if (strncmp(option, list[i], bytes) == 0)
                return true;
        } else if (option[name_bytes] == '\0' && strcmp(option, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int options_set_row(struct fs_options *o, size_t row, const char *value, char *err)
{
    const struct options_spec *spec = &options_specs[row];
    char *copy;
    int r;

    if (spec->form && !value)
        return options_fail(err, "option %s: needs a value; write e.g. %s", spec->name, spec->form);
    if (!spec->form && value)
        return options_fail(err, "option %s=%s: takes no value; write %s", spec->name, value, spec->name);
    r = spec->set(o, value);
    if (r == -ENOMEM)
        return options_fail(err, "out of memory");
    if (r < 0)
        return options_fail(err, "option %s=%s: %s%s; write e.g. %s", spec->name, value,
                            r == -ERANGE ? "out of range" : "not ", r == -ERANGE ? "" : spec->what,
                            spec->form);
    copy = strdup(value ? value : "on");
    if (!copy)
        return options_fail(err, "out of memory");
    free(o->given[row]);
    o->given[row] = copy;
    return 0;
}

/* One option as in a -o list: name or name=value. */
static int options_apply(struct fs_options *o, char *option, char *err)
{
    char *value = strchr(option, '=');
    size_t name_bytes = value ? (size_t)(value - option) : strlen(option);

    for (size_t row = 0; row < ARRAY_COUNT(options_specs); row++)
        if (strlen(options_specs[row].name) == name_bytes &&
            strncmp(options_specs[row].name, option, name_bytes) == 0)
            return options_set_row(o, row, value ? value + 1 : NULL, err);
    if (options_in_list(option, options_kernel, ARRAY_COUNT(options_kernel))) {
        text_add(&o->kernel, ",%s", option);
        return 0;
    }
    if (options_in_list(option, options_dropped, ARRAY_COUNT(options_dropped)))
        return 0;
    return options_fail(err, "option %.*s: unknown; mount.larder --help lists those there are",
                        (int)name_bytes, option);
}

/* A -o list: commas separate, a backslash takes the next character as it is. */
static int options_apply_list(struct fs_options *o, const char *list, char *err)
{
    _cleanup_free_ char *one = malloc(strlen(list) + 1);
    size_t bytes = 0;

    if (!one)
        return options_fail(err, "out of memory");
    for (const char *p = list;; p++) {
        if (*p == '\\' && p[1]) {
            one[bytes++] = *++p;
        } else if (*p && *p != ',') {
            one[bytes++] = *p;
        } else {
            int r;

            one[bytes] = '\0';
            r = bytes ? options_apply(o, one, err) : 0;
            if (r < 0 || !*p)
                return r;
            bytes = 0;
        }
    }
}

/* --name, --name=value, and --name value for those that take one. Returns how many arguments it was. */
static int options_apply_long(struct fs_options *o, const char *arg, const char *next, char *err)
{
    _cleanup_free_ char *option = NULL;
    bool joined = false;
    int r;

    if (strcmp(arg, "help") == 0 || strcmp(arg, "version") == 0) {
        o->action = arg[0] == 'h' ? OPTIONS_HELP : OPTIONS_VERSION;
        return 1;
    }
    for (size_t row = 0; row < ARRAY_COUNT(options_specs); row++)
        if (next && options_specs[row].form && strcmp(options_specs[row].name, arg) == 0)
            joined = true;
    r = asprintf(&option, "%s%s%s", arg, joined ? "=" : "", joined ? next : "");
    if (r < 0)
        return options_fail(err, "out of memory");
    r = options_apply(o, option, err);
    return r < 0 ? r : joined ? 2 : 1;
}

/* A cluster of short options, as in "-fd" or "-oquota=1G". Returns how many arguments it was. */
static int options_apply_short(struct fs_options *o, const char *arg, const char *next, char *err)
{
    for (const char *p = arg; *p; p++) {
        switch (*p) {
        case 'd':
            o->debug = true;
            o->foreground = true;
            break;
        case 'f':
            o->foreground = true;
            break;
        case 'h':
            o->action = OPTIONS_HELP;
            return 1;
        case 'V':
            o->action = OPTIONS_VERSION;
            return 1;
        case 'r':
        case 'w': {
            char name[] = {'r', *p == 'r' ? 'o' : 'w', '\0'};
            int r = options_apply(o, name, err);

            if (r < 0)
                return r;
            break;
        }
        case 's': /* sloppy, no mtab, verbose: mount(8) may pass them to any helper */
        case 'n':
        case 'v':
            break;
        case 'o':
        case 't': { /* mount(8) names the type: there is one */
            const char *value = p[1] ? p + 1 : next;
            int r;

            if (!value)
                return options_fail(err, "option -%c: needs a value", *p);
            r = *p == 'o' ? options_apply_list(o, value, err) : 0;
            return r < 0 ? r : p[1] ? 1 : 2;
        }
        default:
            return options_fail(err, "option -%c: unknown; mount.larder --help lists those there are", *p);
        }
    }
    return 1;
}

/* What no single option is wrong about. */
static int options_check(const struct fs_options *o, char *err)
{
    if (o->core.hits != LARDER_HITS_SAMPLED)
        return 0;
    if (o->core.quota_bytes == 0)
        return options_fail(err, "option hits=sampled: not with quota=0; the kernel then tells of no close, at which a "
                                 "value would go");
    if (o->passthrough == TRI_ON)
        return options_fail(err, "option passthrough=on: not with hits=sampled; the kernel asks nobody for the file to "
                                 "pass through to");
    return 0;
}

int options_parse(struct fs_options *o, int argc, char **argv, char *err)
{
    const char *operands[2] = {NULL, NULL};
    unsigned operand_count = 0;
    bool only_operands = false;

    for (int i = 1; i < argc;) {
        const char *arg = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
        int used = 1;

        if (only_operands || arg[0] != '-' || arg[1] == '\0') {
            if (operand_count == 2)
                return options_fail(
                    err, "%s: one argument too many; usage: mount.larder STORE MOUNTPOINT [-o options]", arg);
            operands[operand_count++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            only_operands = true;
        } else if (arg[1] == '-') {
            used = options_apply_long(o, arg + 2, next, err);
        } else {
            used = options_apply_short(o, arg + 1, next, err);
        }
        if (used < 0)
            return used;
        i += used;
    }
    if (o->action != OPTIONS_MOUNT)
        return 0;
    if (operand_count < 2)
        return options_fail(err, "%s is missing; usage: mount.larder STORE MOUNTPOINT [-o options]",
                            operand_count == 0 ? "the store" : "the mount point");
    o->store = strdup(operands[0]);
    o->mountpoint = strdup(operands[1]);
    if (!o->store || !o->mountpoint || o->kernel.failed)
        return options_fail(err, "out of memory");
    if (o->debug)
        o->log_level = LARDER_LOG_DEBUG;
    return options_check(o, err);
}

/* The store may not exist yet: then its parent is on the file system that counts. */
static int options_resolve_min_free(struct fs_options *o, char *err)
{
    _cleanup_free_ char *parent = strdup(o->store);
    struct statvfs vfs;
    char *slash;

    if (o->min_free_percent == 0)
        return 0;
    if (!parent)
        return options_fail(err, "out of memory");
    if (statvfs(parent, &vfs) < 0) {
        slash = strrchr(parent, '/');
        if (slash)
            slash[slash == parent] = '\0';
        if (statvfs(parent, &vfs) < 0)
            return options_fail(err, "store %s: %s", o->store, strerror(errno));
    }
    o->core.min_free_bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize / 100 * o->min_free_percent;
    return 0;
}

int options_resolve(struct fs_options *o, char *err)
{
    char *path;
    int r;

    r = path_absolute(o->store, &path);
    if (r == -ENOENT)
        return options_fail(err, "store %s: the directory to make it in is missing; create it: mkdir -p %s", o->store,
                            o->store);
    if (r < 0)
        return options_fail(err, "store %s: %s", o->store, strerror(-r));
    free(o->store);
    o->store = path;
    path = realpath(o->mountpoint, NULL); /* a link to a directory will do; a dead mount cannot be resolved */
    r = path ? 0 : path_absolute(o->mountpoint, &path);
    if (r < 0)
        return options_fail(err, "mount point %s: %s", o->mountpoint, strerror(-r));
    free(o->mountpoint);
    o->mountpoint = path;
    return options_resolve_min_free(o, err);
}

bool options_row(const struct fs_options *o, unsigned i, const char **ret_name, const char **ret_value,
                 const char **ret_source)
{
    if (i >= ARRAY_COUNT(options_specs))
        return false;
    *ret_name = options_specs[i].name;
    *ret_value = o->given[i] ? o->given[i] : options_specs[i].shown;
    *ret_source = o->given[i] ? "command line" : "default";
    if (options_specs[i].set == options_set_fsname && !o->given[i])
        *ret_value = o->store;
    /* The two are one setting: whichever was given tells its source. */
    if (options_specs[i].set == options_set_ro)
        *ret_value = o->core.read_only ? "on" : "off";
    if (options_specs[i].set == options_set_rw)
        *ret_value = o->core.read_only ? "off" : "on";
    return true;
}

void options_print_help(void)
{
    (void)printf("usage: mount.larder STORE MOUNTPOINT [-o option,...] [-f] [-d]\n\n"
                 "Mounts the cache kept in STORE (created when missing) on MOUNTPOINT.\n\n"
                 "  -f   stay in the foreground\n"
                 "  -d   debug: foreground, every request on stderr\n"
                 "  -r   read-only, as -o ro\n"
                 "  -h   this help    -V   versions\n\n"
                 "Options, as -o name=value or --name=value (and those of mount(8)):\n\n");
    for (size_t i = 0; i < ARRAY_COUNT(options_specs); i++) {
        const struct options_spec *spec = &options_specs[i];

        (void)printf("  %-12s %s (default: %s)\n", spec->name, spec->help, spec->shown);
        if (spec->form)
            (void)printf("  %-12s e.g. %s\n", "", spec->form);
    }
}
