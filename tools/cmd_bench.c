/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder bench: what a put, a get, a stat and a removal cost in a directory, and in another one beside it. The steps are
 * taken in turn by both, round after round, so that what the machine does meanwhile falls on both; the ratio is the
 * median of the rounds'. Works in a directory of its own below each and removes it, also when interrupted.
 */
#include "tools/common.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "tools/bench.h"

#define BENCH_PLACES_MAX 2
#define BENCH_ROUNDS_MAX 99

static int bench_run_command(const struct command *command, int argc, char **argv);

const struct command command_bench = {
    .name = "bench",
    .arguments =
        "[--compare DIR2] [--count N] [--bytes SIZE] [--clients N] [--rounds N] [--compressible] [--json] DIR",
    .summary = "measure put, get, stat, miss and unlink in a directory",
    .help =
        "Puts, gets and removes small values below DIR, which may be any directory, and prints microseconds per\n"
        "operation. A directory on the disk that the store is on is what to compare a mount with.\n\n"
        "  --compare DIR2   do the same there, in turn\n"
        "  --count N        values per round (default 2000)\n"
        "  --bytes SIZE     of a value, in bytes (default 4096)\n"
        "  --clients N      processes that share the work (default 1)\n"
        "  --rounds N       of which the median is told (default 5)\n"
        "  --compressible   values that compress\n"
        "  --json           an object\n",
    .run = bench_run_command,
};

static const struct {
    const char *label, *workload;
} steps[] = {{"put", "put"},   {"get", "get"},         {"get again", "get"}, {"stat", "stat"},
             {"miss", "miss"}, {"miss again", "miss"}, {"put over", "put"},  {"unlink", "unlink"}};

struct bench_command {
    struct bench_job job;
    const char *directories[BENCH_PLACES_MAX];
    char places[BENCH_PLACES_MAX][BENCH_PATH_BYTES];
    uint32_t place_count, rounds;
    bool json;
    double ns[ARRAY_COUNT(steps)][BENCH_PLACES_MAX][BENCH_ROUNDS_MAX];
};

static int bench_compare_numbers(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double bench_median(const double *values, uint32_t count)
{
    double sorted[BENCH_ROUNDS_MAX];

    (void)memcpy(sorted, values, count * sizeof(*values));
    qsort(sorted, count, sizeof(*sorted), bench_compare_numbers);
    return (sorted[count / 2] + sorted[(count - 1) / 2]) / 2;
}

static double bench_ratio(const struct bench_command *b, size_t step)
{
    double ratios[BENCH_ROUNDS_MAX];

    for (uint32_t i = 0; i < b->rounds; i++)
        ratios[i] = b->ns[step][0][i] / b->ns[step][1][i];
    return bench_median(ratios, b->rounds);
}

/* ---- doing it ---- */

static int bench_measure(const struct command *command, struct bench_command *b)
{
    struct bench_result result;
    char err[BENCH_ERROR_BYTES];

    for (uint32_t round = 0; round < b->rounds; round++)
        for (size_t step = 0; step < ARRAY_COUNT(steps); step++)
            for (uint32_t i = 0; i < b->place_count; i++) {
                uint32_t place = (i + round) % b->place_count;

                b->job.workload = steps[step].workload;
                b->job.directory = b->places[place];
                b->job.seed = round + 1; /* other names each time: a miss is a first one again */
                if (bench_run(&b->job, bench_find(b->job.workload), &result, err) < 0)
                    return tool_fail(command, "%s: %s", steps[step].label, err);
                b->ns[step][place][round] =
                    b->job.clients == 1 ? result.mean_ns : result.wall_s * 1e9 / (double)result.operations;
            }
    return TOOL_OK;
}

static int bench_places_make(const struct command *command, struct bench_command *b)
{
    for (uint32_t i = 0; i < b->place_count; i++) {
        (void)snprintf(b->places[i], sizeof(b->places[i]), "%s/larder-bench-XXXXXX", b->directories[i]);
        if (!mkdtemp(b->places[i])) {
            int code = tool_fail(command, "%s: %s", b->directories[i], strerror(errno));

            b->place_count = i;
            return code;
        }
    }
    return TOOL_OK;
}

static int bench_places_remove(const struct command *command, struct bench_command *b, int code)
{
    for (uint32_t i = 0; i < b->place_count; i++) {
        int r = bench_remove_keys(b->places[i]);

        if (r == 0 && rmdir(b->places[i]) < 0)
            r = -errno;
        if (r < 0)
            code = tool_fail(command, "%s: %s: remove it yourself", b->places[i], strerror(-r));
    }
    return code;
}

/* ---- telling it ---- */

static int bench_column(const struct bench_command *b, uint32_t place)
{
    size_t bytes = strlen(b->directories[place]);

    return bytes < 8 ? 8 : (int)bytes;
}

static void bench_print_table(const struct bench_command *b)
{
    (void)printf(
        "%llu values of %llu bytes, %u client%s, median of %u rounds, microseconds per operation\n\n%-12s",
        (unsigned long long)b->job.count, (unsigned long long)b->job.value_bytes, b->job.clients,
        b->job.clients > 1 ? "s" : "", b->rounds, "");
    for (uint32_t i = 0; i < b->place_count; i++) {
        (void)printf("  %*s", bench_column(b, i) - (int)strlen(b->directories[i]), "");
        print_name(stdout, b->directories[i]);
    }
    (void)printf("%s\n", b->place_count > 1 ? "  ratio" : "");
    for (size_t step = 0; step < ARRAY_COUNT(steps); step++) {
        (void)printf("%-12s", steps[step].label);
        for (uint32_t i = 0; i < b->place_count; i++)
            (void)printf("  %*.2f", bench_column(b, i), bench_median(b->ns[step][i], b->rounds) / 1e3);
        if (b->place_count > 1)
            (void)printf("  %5.2f", bench_ratio(b, step));
        (void)printf("\n");
    }
}

static void bench_print_object(const struct bench_command *b)
{
    (void)printf("{\"count\": %llu, \"value_bytes\": %llu, \"clients\": %u, \"rounds\": %u, ",
                 (unsigned long long)b->job.count, (unsigned long long)b->job.value_bytes, b->job.clients,
                 b->rounds);
    print_json_member(stdout, "directory", b->directories[0]);
    if (b->place_count > 1) {
        (void)printf(", ");
        print_json_member(stdout, "compared_with", b->directories[1]);
    }
    (void)printf(", \"steps\": [");
    for (size_t step = 0; step < ARRAY_COUNT(steps); step++) {
        (void)printf("%s{\"step\": \"%s\", \"ns\": %.0f", step ? ", " : "", steps[step].label,
                     bench_median(b->ns[step][0], b->rounds));
        if (b->place_count > 1)
            (void)printf(", \"compared_ns\": %.0f, \"ratio\": %.3f", bench_median(b->ns[step][1], b->rounds),
                         bench_ratio(b, step));
        (void)printf("}");
    }
    (void)printf("]}\n");
}

/* ---- the command line ---- */

static const struct option options[] = {{"help", no_argument, NULL, 'h'},
                                        {"json", no_argument, NULL, 'j'},
                                        {"compare", required_argument, NULL, 'c'},
                                        {"count", required_argument, NULL, 'n'},
                                        {"bytes", required_argument, NULL, 'b'},
                                        {"clients", required_argument, NULL, 'k'},
                                        {"rounds", required_argument, NULL, 'r'},
                                        {"compressible", no_argument, NULL, 'z'},
                                        {0}};

/* false: not a number of the range. */
static bool bench_number(uint64_t min, uint64_t max, uint64_t *ret_number)
{
    uint64_t number;

    if (!parse_number(optarg, &number) || number < min || number > max)
        return false;
    *ret_number = number;
    return true;
}

static int bench_parse(const struct command *command, int argc, char **argv, struct bench_command *b)
{
    uint64_t clients = 1, rounds = 5;
    int option, code = TOOL_OK;
    bool fine = true;

    while ((option = tool_option(command, argc, argv, ":hj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code == TOOL_OK ? TOOL_OPTION_STOP : code;
        switch (option) {
        case 'j':
            b->json = true;
            break;
        case 'z':
            b->job.compressible = true;
            break;
        case 'c':
            b->directories[1] = optarg;
            break;
        case 'n':
            fine = bench_number(1, 1u << 24, &b->job.count);
            break;
        case 'b':
            fine = bench_number(0, 1u << 26, &b->job.value_bytes);
            break;
        case 'k':
            fine = bench_number(1, BENCH_CLIENTS_MAX, &clients);
            break;
        default:
            fine = bench_number(1, BENCH_ROUNDS_MAX, &rounds);
            break;
        }
        if (!fine)
            return tool_usage(command, "%s: not a number in range", optarg);
    }
    if (argc - optind != 1)
        return tool_usage(command, "one directory is needed");
    b->directories[0] = argv[optind];
    b->place_count = b->directories[1] ? 2 : 1;
    b->job.clients = (uint32_t)clients;
    b->rounds = (uint32_t)rounds;
    if (b->job.count < clients)
        return tool_usage(command, "fewer values than clients");
    for (uint32_t i = 0; i < b->place_count; i++)
        if (strlen(b->directories[i]) > BENCH_PATH_BYTES / 2)
            return tool_usage(command, "%s: too long", b->directories[i]);
    return TOOL_OK;
}

static int bench_run_command(const struct command *command, int argc, char **argv)
{
    _cleanup_free_ struct bench_command *b = calloc(1, sizeof(*b));
    sigset_t signals;
    int code;

    if (!b)
        return tool_fail(command, "out of memory");
    b->job = (struct bench_job){.count = 2000, .value_bytes = 4096};
    code = bench_parse(command, argc, argv, b);
    if (code != TOOL_OK)
        return code == TOOL_OPTION_STOP ? TOOL_OK : code;
    bench_signals(&signals);
    (void)sigprocmask(SIG_BLOCK, &signals,
                      NULL); /* bench_run sees them; what is left behind is removed then */
    code = bench_places_make(command, b);
    if (code == TOOL_OK)
        code = bench_measure(command, b);
    code = bench_places_remove(command, b, code);
    if (code == TOOL_OK && b->json)
        bench_print_object(b);
    else if (code == TOOL_OK)
        bench_print_table(b);
    return tool_flush(command, code);
}
