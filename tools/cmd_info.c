/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder info: all a cache knows of a key or directory, each policy with where it comes from.
 */
#include "tools/common.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define SOURCE_BYTES_MAX (128u << 10) /* five policies, each with an escaped path */

static int info_run(const struct command *command, int argc, char **argv);

const struct command command_info = {
    .name = "info",
    .arguments = "[--json] PATH...",
    .summary = "show what is known of a key, and where its policies come from",
    .help = "  --json   an array of objects\n",
    .run = info_run,
};

static const char *const facts[] = {"stored_bytes", "codec", "checksum", "hits", "age"};

static const char *type_name(mode_t mode)
{
    return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "directory" : S_ISLNK(mode) ? "symlink" : "special";
}

static const char *time_text(const struct timespec *ts, char out[64])
{
    struct tm tm;
    size_t used;

    if (!localtime_r(&ts->tv_sec, &tm)) {
        (void)snprintf(out, 64, "%lld", (long long)ts->tv_sec);
        return out;
    }
    used = strftime(out, 64, "%Y-%m-%d %H:%M:%S", &tm);
    (void)snprintf(out + used, 64 - used, ".%03ld", ts->tv_nsec / 1000000);
    return out;
}

/* "by itself", "of /ccache", ... */
static void print_where(const char *where)
{
    static const char directory[] = "directory:";

    if (strncmp(where, directory, sizeof(directory) - 1) == 0) {
        (void)printf("set on directory ");
        print_name(stdout, where + sizeof(directory) - 1);
    } else if (strcmp(where, "own") == 0) {
        (void)printf("set here");
    } else if (strcmp(where, "mount") == 0) {
        (void)printf("mount option");
    } else {
        (void)printf("%s", where);
    }
}

/* The seconds of user.larder.expires as a date; the text itself if it is none. */
static const char *expires_text(const char *value, char out[64])
{
    struct timespec ts = {0};
    double seconds;

    if (sscanf(value, "%lf", &seconds) != 1 || seconds < 0 || seconds > 2.5e11)
        return value;
    ts.tv_sec = (time_t)seconds;
    return time_text(&ts, out);
}

static void print_people(const char *path, const struct stat *st, const struct source_item *items,
                         size_t count)
{
    char text[128], date[64];

    print_name(stdout, path);
    (void)printf("\n  %-12s %s\n", "type", type_name(st->st_mode));
    if (S_ISREG(st->st_mode))
        (void)printf("  %-12s %llu\n", "size", (unsigned long long)st->st_size);
    for (size_t i = 0; i < ARRAY_COUNT(facts); i++)
        if (policy_get(path, facts[i], text, sizeof(text)) == 0)
            (void)printf("  %-12s %s\n", facts[i], text);
    (void)printf("  %-12s %s\n", "modified", time_text(&st->st_mtim, date));
    for (size_t i = 0; i < count; i++) {
        const char *value =
            strcmp(items[i].name, "expires") == 0 ? expires_text(items[i].value, date) : items[i].value;

        (void)printf("  %-12s %-16s ", items[i].name, value);
        print_where(items[i].where);
        (void)putchar('\n');
    }
}

static void print_object(const char *path, const struct stat *st, const struct source_item *items,
                         size_t count)
{
    char text[128];

    (void)printf("  {");
    print_json_member(stdout, "path", path);
    (void)printf(", \"type\": \"%s\", \"size\": %llu, \"mtime_ns\": %lld%09ld", type_name(st->st_mode),
                 (unsigned long long)st->st_size, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
    for (size_t i = 0; i < ARRAY_COUNT(facts); i++) {
        uint64_t number;

        if (policy_get(path, facts[i], text, sizeof(text)) < 0)
            continue;
        (void)printf(", ");
        if (parse_number(text, &number))
            (void)printf("\"%s\": %llu", facts[i], (unsigned long long)number);
        else
            print_json_member(stdout, facts[i], text);
    }
    (void)printf(", \"policies\": {");
    for (size_t i = 0; i < count; i++) {
        (void)printf("%s", i ? ", " : "");
        print_json(stdout, items[i].name);
        (void)printf(": {");
        print_json_member(stdout, "value", items[i].value);
        (void)printf(", ");
        print_json_member(stdout, "source", items[i].where);
        (void)printf("}");
    }
    (void)printf("}}");
}

static int info_one(const struct command *command, const char *path, bool json, bool first)
{
    _cleanup_mount_ struct mount_entry m = {0};
    _cleanup_free_ char *source = malloc(SOURCE_BYTES_MAX);
    struct source_item items[SOURCE_ITEMS_MAX];
    struct stat st;
    size_t count = 0;
    int r = mount_need_larder(command, path, &m);

    if (r != TOOL_OK)
        return r;
    if (!source)
        return tool_fail(command, "out of memory");
    if (lstat(path, &st) < 0)
        return tool_fail(command, "%s: %s", path, strerror(errno));
    r = policy_get(path, "source", source, SOURCE_BYTES_MAX);
    if (r == 0)
        count = source_parse(source, items);
    else if (r != -ENODATA && r != -EPERM &&
             r != -EOPNOTSUPP) /* a symlink or special file has no user xattrs */
        return tool_fail(command, "%s: user.larder.source: %s", path, strerror(-r));
    if (json) {
        (void)printf("%s\n", first ? "" : ",");
        print_object(path, &st, items, count);
    } else {
        (void)printf("%s", first ? "" : "\n");
        print_people(path, &st, items, count);
    }
    return TOOL_OK;
}

static int info_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'}, {"json", no_argument, NULL, 'j'}, {0}};
    bool json = false, first = true;
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        json = true;
    }
    if (optind == argc)
        return tool_usage(command, "no path given");
    if (json)
        (void)printf("[");
    for (int i = optind; i < argc; i++) {
        if (info_one(command, argv[i], json, first) == TOOL_OK)
            first = false;
        else
            code = TOOL_FAILED;
    }
    if (json)
        (void)printf("%s]\n", first ? "" : "\n");
    return tool_flush(command, code);
}
