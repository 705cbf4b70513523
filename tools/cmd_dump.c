/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder dump: a store at rest as text, through core/inspect.h.
 */
#include "tools/common.h"

#include <string.h>

#include "core/inspect.h"

static int dump_run(const struct command *command, int argc, char **argv);

const struct command command_dump = {
    .name = "dump",
    .arguments = "[--even-if-busy] STORE [WHAT]",
    .summary = "print a store record by record, with file names and offsets",
    .help = "WHAT: journal, index, segments, big, or the name of a file in the store; without it, all.\n"
            "A line is: FILE OFFSET KIND NAME=VALUE... Keys are in it: treat it as you treat the cache.\n\n"
            "  --even-if-busy   look at a store that is mounted; what is being written may show half\n",
    .run = dump_run,
};

static void print_line(void *ctx, const char *line)
{
    (void)ctx;
    (void)puts(line); /* a failure is seen by tool_flush */
}

static int dump_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {
        {"even-if-busy", no_argument, NULL, 'b'}, {"help", no_argument, NULL, 'h'}, {0}};
    char err[INSPECT_ERROR_BYTES] = "";
    bool even_if_busy = false;
    int option, code = TOOL_OK, r;

    while ((option = tool_option(command, argc, argv, ":h", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        even_if_busy = true;
    }
    if (optind == argc)
        return tool_usage(command, "the store is missing");
    if (argc - optind > 2)
        return tool_usage(command, "%s: one argument too many", argv[optind + 2]);
    r = inspect_dump(argv[optind], argv[optind + 1], even_if_busy, print_line, NULL,
                     err); /* argv ends in NULL */
    if (r < 0)
        code = tool_fail(command, "%s", err[0] ? err : strerror(-r));
    return tool_flush(command, code);
}
