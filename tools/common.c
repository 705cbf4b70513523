/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * common: messages and option parsing of all commands, so that they look and fail alike.
 */
#include "tools/common.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

static void tool_complain(const struct command *command, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
static void tool_complain(const struct command *command, const char *format, va_list args)
{
    (void)fflush(stdout); /* what was found before comes before */
    (void)fprintf(stderr, "larder%s%s: ", command ? " " : "", command ? command->name : "");
    (void)vfprintf(stderr, format, args);
    (void)fputc('\n', stderr);
}

int tool_fail(const struct command *command, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    tool_complain(command, format, args);
    va_end(args);
    return TOOL_FAILED;
}

int tool_usage(const struct command *command, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    tool_complain(command, format, args);
    va_end(args);
    if (command)
        (void)fprintf(stderr, "usage: larder %s %s\n", command->name, command->arguments);
    else
        (void)fprintf(stderr, "usage: larder COMMAND ...; larder --help lists the commands\n");
    return TOOL_USAGE;
}

void tool_print_help(const struct command *command)
{
    (void)printf("usage: larder %s %s\n\n%s.\n%s%s", command->name, command->arguments, command->summary,
                 command->help[0] ? "\n" : "", command->help);
}

int tool_option(const struct command *command, int argc, char **argv, const char *short_options,
                const struct option *long_options, int *ret_code)
{
    int option;

    opterr = 0;
    option = getopt_long(argc, argv, short_options, long_options, NULL);
    if (option == 'h') {
        tool_print_help(command);
        *ret_code = tool_flush(command, TOOL_OK);
        return TOOL_OPTION_STOP;
    }
    if (option != '?' && option != ':')
        return option;
    if (optopt && optopt < 128 && (argv[optind - 1][0] != '-' || argv[optind - 1][1] != '-'))
        *ret_code =
            tool_usage(command, "-%c: %s", optopt, option == ':' ? "needs a value" : "unknown option");
    else
        *ret_code = tool_usage(command, "%s: %s", argv[optind - 1],
                               option == ':' ? "needs a value"
                               : optopt      ? "takes no value"
                                             : "unknown option");
    return TOOL_OPTION_STOP;
}

int tool_flush(const struct command *command, int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    if (errno == EPIPE)
        return TOOL_FAILED; /* the reader has what it wanted */
    return tool_fail(command, "standard output: %s", strerror(errno));
}
