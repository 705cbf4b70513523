/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder: one program, a table of commands. Exit: 0 done, 1 failed, 2 the command line is wrong. (`check` has a
 * meaning of its own for 1 and 2; its help says so.)
 */
#include <signal.h>
#include <string.h>

#include "tools/common.h"

static const struct command *const commands[] = {
    &command_mount, &command_umount, &command_stats, &command_ls,    &command_info,
    &command_get,   &command_set,    &command_unset, &command_purge, &command_check,
    &command_dump,  &command_doctor, &command_bench,
};

static void print_commands(void)
{
    (void)printf(
        "usage: larder COMMAND ...\n\nA cache directory that keeps to its quota, forgets what has expired, and survives crashes.\n\n");
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        (void)printf("  %-8s %s\n", commands[i]->name, commands[i]->summary);
    (void)printf("\nlarder COMMAND --help tells more; larder --version says which this is.\n");
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    (void)signal(SIGPIPE, SIG_IGN); /* a reader that leaves is seen when writing */
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_commands();
        return tool_flush(NULL, TOOL_OK);
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        (void)printf("larder %s\n", LARDER_VERSION);
        return tool_flush(NULL, TOOL_OK);
    }
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i]->run(commands[i], argc - 1, argv + 1);
    if (argc < 2)
        return tool_usage(NULL, "no command given");
    return tool_usage(NULL, "%s: no such command", name);
}
