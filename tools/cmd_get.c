/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder get: policies and facts of one path, for scripts. What is not set is left out, or with --json null.
 */
#include "tools/common.h"

#include <errno.h>
#include <string.h>

#define VALUE_BYTES_MAX (128u << 10) /* of source, the longest */

static int get_run(const struct command *command, int argc, char **argv);

const struct command command_get = {
    .name = "get",
    .arguments = "[--json] PATH [NAME...]",
    .summary = "print policies and facts of a key or directory",
    .help =
        "Names: ttl, idle, expires, pin, compress, hits, age, stored_bytes, codec, checksum, source.\n"
        "Without names: \"NAME VALUE\" of all that are set. With one: its value alone, and exit code 1 if there is none.\n\n"
        "  --json   an object\n",
    .run = get_run,
};

static const char *const names[] = {"ttl", "idle",         "expires", "pin",      "compress", "hits",
                                    "age", "stored_bytes", "codec",   "checksum", "source"};

static bool is_known(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

struct getting {
    const char *path;
    char *value; /* VALUE_BYTES_MAX */
    bool json, alone, all, first;
};

static int get_one(const struct command *command, struct getting *g, const char *name)
{
    int r = policy_get(g->path, name, g->value, VALUE_BYTES_MAX);
    uint64_t number;

    if (r == -EPERM || r == -EOPNOTSUPP) /* a symlink or special file has no user xattrs */
        r = -ENODATA;
    if (r < 0 && r != -ENODATA)
        return tool_fail(command, "%s: %s: %s", g->path, name, strerror(-r));
    if (g->json) {
        (void)printf("%s", g->first ? "" : ", ");
        g->first = false;
        print_json(stdout, name);
        (void)printf(": ");
        if (r < 0)
            (void)printf("null");
        else if (parse_number(g->value, &number))
            (void)printf("%llu", (unsigned long long)number);
        else
            print_json(stdout, g->value);
        return TOOL_OK;
    }
    if (r < 0)
        return g->all ? TOOL_OK : tool_fail(command, "%s: %s: not set", g->path, name);
    if (!g->alone)
        (void)printf("%s ", name);
    (void)printf("%s\n", g->value);
    return TOOL_OK;
}

static int get_all(const struct command *command, struct getting *g, const char *const *wanted, size_t count)
{
    int code = TOOL_OK;

    if (g->json)
        (void)printf("{");
    for (size_t i = 0; i < count; i++)
        if (get_one(command, g, wanted[i]) != TOOL_OK)
            code = TOOL_FAILED;
    if (g->json)
        (void)printf("}\n");
    return tool_flush(command, code);
}

static int get_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'}, {"json", no_argument, NULL, 'j'}, {0}};
    _cleanup_mount_ struct mount_entry m = {0};
    _cleanup_free_ char *value = malloc(VALUE_BYTES_MAX);
    struct getting g = {.value = value, .first = true};
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        g.json = true;
    }
    if (optind == argc)
        return tool_usage(command, "no path given");
    for (int i = optind + 1; i < argc; i++)
        if (!is_known(argv[i]))
            return tool_usage(command, "%s: no such name; larder get --help lists them", argv[i]);
    if (!value)
        return tool_fail(command, "out of memory");
    g.path = argv[optind];
    g.all = argc - optind == 1;
    g.alone = argc - optind == 2;
    code = mount_need_larder(command, g.path, &m);
    if (code != TOOL_OK)
        return code;
    return g.all ? get_all(command, &g, names, ARRAY_COUNT(names))
                 : get_all(command, &g, (const char *const *)argv + optind + 1, (size_t)(argc - optind - 1));
}
