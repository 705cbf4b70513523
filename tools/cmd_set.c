/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder set and unset: policies of a key or directory, by way of user.larder.* xattrs. A name that is no policy is
 * refused here, a value that is none by the mount.
 */
#include "tools/common.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

static int set_run(const struct command *command, int argc, char **argv);
static int unset_run(const struct command *command, int argc, char **argv);

#define POLICY_HELP                                                                                 \
    "  ttl=AGE         expires this long after its last write: 30s, 5m, 24h, 7d, 2w, 1h30m, none\n" \
    "  idle=AGE        expires this long after its last use\n"                                      \
    "  expires=TIME    expires at a time (keys only): +AGE from now, seconds since 1970, none\n"    \
    "  pin=on|off      is never evicted\n"                                                          \
    "  compress=auto|lz4|none\n"

const struct command command_set = {
    .name = "set",
    .arguments = "PATH NAME=VALUE...",
    .summary = "set policies of a key, or of a directory and all below it",
    .help = POLICY_HELP
    "\nAn empty value takes the setting away, as `larder unset` does: what is above it counts again.\n"
    "\"none\" is a setting: it overrides what is above.\n",
    .run = set_run,
};

const struct command command_unset = {
    .name = "unset",
    .arguments = "PATH NAME...",
    .summary = "take policies away, so that those above count again",
    .help = "Names: ttl, idle, expires, pin, compress.\n",
    .run = unset_run,
};

static const struct {
    const char *name, *form;
} policies[] = {
    {"ttl", "an age such as 30s, 24h, 7d, or none"},
    {"idle", "an age such as 30s, 24h, 7d, or none"},
    {"expires", "+AGE such as +24h, seconds since 1970, or none; keys only"},
    {"pin", "on or off"},
    {"compress", "auto, lz4 or none"},
};

/* -1: there is no such policy. */
static int policy_index(const char *name, size_t name_bytes)
{
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++)
        if (strlen(policies[i].name) == name_bytes && memcmp(policies[i].name, name, name_bytes) == 0)
            return (int)i;
    return -1;
}

static int check_names(const struct command *command, char **words, int count)
{
    for (int i = 0; i < count; i++) {
        size_t bytes = strcspn(words[i], "=");

        if (command == &command_set && words[i][bytes] == '\0')
            return tool_usage(command, "%s: not of the form NAME=VALUE", words[i]);
        if (command == &command_unset && words[i][bytes] != '\0')
            return tool_usage(command, "%s: a name alone is wanted", words[i]);
        if (policy_index(words[i], bytes) < 0)
            return tool_usage(command, "%.*s: no such policy; there are ttl, idle, expires, pin, compress",
                              (int)bytes, words[i]);
    }
    return TOOL_OK;
}

static int set_one(const struct command *command, const char *path, const char *word)
{
    size_t name_bytes = strcspn(word, "=");
    const char *value = word[name_bytes] ? word + name_bytes + 1 : "";
    char attribute[64];
    int r;

    (void)snprintf(attribute, sizeof(attribute), "user.larder.%.*s", (int)name_bytes, word);
    r = value[0] ? lsetxattr(path, attribute, value, strlen(value), 0) : lremovexattr(path, attribute);
    if (r == 0 || (!value[0] && errno == ENODATA))
        return TOOL_OK;
    if (errno == EINVAL)
        return tool_fail(command, "%s: %s: not accepted; it takes %s", path, word,
                         policies[policy_index(word, name_bytes)].form);
    if (errno == EPERM || errno == EOPNOTSUPP)
        return tool_fail(
            command, "%s: %s: %s; only files and directories have policies, and only their owners set them",
            path, word, strerror(errno));
    return tool_fail(command, "%s: %s: %s", path, word, strerror(errno));
}

static int change(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
    _cleanup_mount_ struct mount_entry m = {0};
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":h", options, &code)) != -1)
        if (option == TOOL_OPTION_STOP)
            return code;
    if (argc - optind < 2)
        return tool_usage(command, optind == argc ? "no path given" : "no policy given");
    code = check_names(command, argv + optind + 1, argc - optind - 1);
    if (code == TOOL_OK)
        code = mount_need_larder(command, argv[optind], &m);
    for (int i = optind + 1; code == TOOL_OK && i < argc; i++)
        code = set_one(command, argv[optind], argv[i]);
    return code;
}

static int set_run(const struct command *command, int argc, char **argv)
{
    return change(command, argc, argv);
}

static int unset_run(const struct command *command, int argc, char **argv)
{
    return change(command, argc, argv);
}
