/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder mount: finds mount.larder and a store for the mount point, and becomes mount.larder. Every option is its
 * business; here only operands are told from options.
 *
 * A store that is not named is derived from the mount point's absolute path, so that the same directory has the same
 * store every time, and two directories of the same name have two.
 */
#include "tools/common.h"

#include <errno.h>
#include <string.h>

#define NAME_BYTES_MAX 100 /* of the store's name that come from the mount point's */

static int mount_run(const struct command *command, int argc, char **argv);

const struct command command_mount = {
    .name = "mount",
    .arguments = "[-o option,...] [-f] [STORE] MOUNTPOINT",
    .summary = "mount a cache on a directory",
    .help =
        "STORE is the directory that keeps the cache; it is created when missing. Without it, a directory below\n"
        "${XDG_CACHE_HOME:-~/.cache}/larder is taken that belongs to this mount point; it is printed.\n\n"
        "  -o LIST         options: quota=10GiB,ttl=7d,idle=24h,allow_other,... (mount.larder --help lists them)\n"
        "  --NAME=VALUE    the same, one by one\n"
        "  -f              stay in the foreground\n"
        "  -d              debug: foreground, every request on stderr\n"
        "  -r              read-only\n"
        "  --print-store   print the store that belongs to MOUNTPOINT, and do nothing else\n",
    .run = mount_run,
};

struct mount_line {
    char **argv; /* of mount.larder: program, store, mount point, options, NULL */
    int argc;
    char *operands[2];
    int operand_count;
    bool print_store;
};

/* FNV-1a, 64 bits (github.com/lcn2/fnv): only to tell mount points apart. */
static uint64_t path_hash(const char *path)
{
    uint64_t hash = 0xcbf29ce484222325ull;

    for (; *path; path++)
        hash = (hash ^ (unsigned char)*path) * 0x100000001b3ull;
    return hash;
}

static int caches_dir(const struct command *command, char **ret_path)
{
    const char *caches = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int r;

    if (caches && caches[0] == '/')
        r = asprintf(ret_path, "%s/larder", caches);
    else if (home && home[0] == '/')
        r = asprintf(ret_path, "%s/.cache/larder", home);
    else
        return tool_fail(
            command,
            "neither XDG_CACHE_HOME nor HOME says where caches go; name a store: larder mount STORE MOUNTPOINT");
    return r < 0 ? tool_fail(command, "out of memory") : TOOL_OK;
}

static int derive_store(const struct command *command, const char *mountpoint, char **ret_store)
{
    _cleanup_free_ char *path = realpath(mountpoint, NULL), *caches = NULL; /* as mount.larder resolves it */
    char name[NAME_BYTES_MAX + 1];
    const char *base;
    int r = path ? 0 : path_absolute(mountpoint, &path);
    size_t i;

    if (r < 0)
        return tool_fail(command, "mount point %s: %s", mountpoint, strerror(-r));
    r = caches_dir(command, &caches);
    if (r != TOOL_OK)
        return r;
    base = strrchr(path, '/') + 1;
    for (i = 0; base[i] && i < NAME_BYTES_MAX; i++) {
        char c = base[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     (c == '.' && i > 0) || c == '-';

        name[i] = plain ? c : '_';
    }
    name[i] = '\0';
    if (asprintf(ret_store, "%s/%s-%016llx", caches, i ? name : "root", (unsigned long long)path_hash(path)) <
        0)
        return tool_fail(command, "out of memory");
    return TOOL_OK;
}

/* The directories above the store; the store itself is mount.larder's to make. */
static int make_parents(const struct command *command, const char *store)
{
    _cleanup_free_ char *path = strdup(store);

    if (!path)
        return tool_fail(command, "out of memory");
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0700) < 0 && errno != EEXIST && errno != EROFS)
            return tool_fail(command,
                             "%s: cannot be created: %s; name a store: larder mount STORE MOUNTPOINT", path,
                             strerror(errno));
        *slash = '/';
    }
    return TOOL_OK;
}

/* Does the option at arg take the next argument? */
static bool takes_next(const char *arg)
{
    static const char *const flags[] = {"ro",       "rw",   "allow_other", "allow_root", "default_permissions",
                                        "nonempty", "help", "version"};

    if (arg[1] != '-') {
        const char *value =
            strpbrk(arg + 1, "ot"); /* the last of a cluster, and its value is not joined to it */

        return value && value[1] == '\0';
    }
    if (strchr(arg, '='))
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++)
        if (strcmp(arg + 2, flags[i]) == 0)
            return false;
    return true;
}

static int parse_line(const struct command *command, int argc, char **argv, struct mount_line *line)
{
    bool only_operands = false;

    for (int i = 1; i < argc; i++) {
        char *arg = argv[i];

        if (only_operands || arg[0] != '-' || arg[1] == '\0') {
            if (line->operand_count == 2)
                return tool_usage(command, "%s: one argument too many", arg);
            line->operands[line->operand_count++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            only_operands = true;
        } else if (strcmp(arg, "--print-store") == 0) {
            line->print_store = true;
        } else {
            line->argv[line->argc++] = arg;
            if (takes_next(arg) && i + 1 < argc)
                line->argv[line->argc++] = argv[++i];
        }
    }
    if (line->operand_count == 0)
        return tool_usage(command, "the mount point is missing");
    return TOOL_OK;
}

static int mount_exec(const struct command *command, struct mount_line *line)
{
    _cleanup_free_ char *program = NULL;
    int r = find_mount_program(&program);

    if (r < 0)
        return tool_fail(
            command,
            "mount.larder: found neither beside this program nor in the usual places; install it there");
    line->argv[0] = program;
    line->argv[line->argc++] = (char *)"--"; /* argv of exec is not written to */
    line->argv[line->argc++] = line->operands[0];
    line->argv[line->argc++] = line->operands[1];
    line->argv[line->argc] = NULL;
    (void)execv(program, line->argv);
    return tool_fail(command, "%s: cannot be run: %s", program, strerror(errno));
}

static bool asks_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

static int mount_run(const struct command *command, int argc, char **argv)
{
    struct mount_line line = {.argc = 1};
    _cleanup_free_ char **rebuilt = calloc((size_t)argc + 8, sizeof(char *));
    _cleanup_free_ char *store = NULL;
    int r;

    if (asks_help(argc, argv)) {
        tool_print_help(command);
        return tool_flush(command, TOOL_OK);
    }
    if (!rebuilt)
        return tool_fail(command, "out of memory");
    line.argv = rebuilt;
    r = parse_line(command, argc, argv, &line);
    if (r != TOOL_OK)
        return r;
    if (line.operand_count == 2 && line.print_store)
        return tool_usage(command, "--print-store: takes the mount point alone");
    if (line.operand_count == 2)
        return mount_exec(command, &line);
    r = derive_store(command, line.operands[0], &store);
    if (r != TOOL_OK)
        return r;
    (void)printf("%s%s\n", line.print_store ? "" : "store: ", store);
    r = tool_flush(command, TOOL_OK);
    if (r != TOOL_OK || line.print_store)
        return r;
    r = make_parents(command, store);
    if (r != TOOL_OK)
        return r;
    line.operands[1] = line.operands[0];
    line.operands[0] = store;
    return mount_exec(command, &line);
}
