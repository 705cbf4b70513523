/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * client: one workload of tools/bench.h from the command line, its result as one JSON object. tests/bench/run calls
 * it for each step and each system. Exit status 1 with a line on stderr when anything went wrong.
 *
 *     client WORKLOAD DIRECTORY [--count N] [--bytes N] [--clients N] [--seconds S] [--seed N] [--compressible]
 *
 * DIRECTORY may be a Unix socket for the workloads of servers.c.
 */
#include <getopt.h>
#include <string.h>

#include "servers.h"
#include "tools/bench.h"
#include "tools/common.h"

static const struct option options[] = {{"count", required_argument, NULL, 'c'},
                                        {"bytes", required_argument, NULL, 'b'},
                                        {"clients", required_argument, NULL, 'k'},
                                        {"seconds", required_argument, NULL, 's'},
                                        {"seed", required_argument, NULL, 'e'},
                                        {"compressible", no_argument, NULL, 'z'},
                                        {0}};

static bool client_parse(int argc, char **argv, struct bench_job *job)
{
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        uint64_t number = option != 'z' && optarg ? strtoull(optarg, NULL, 10) : 0;

        switch (option) {
        case 'c':
            job->count = number;
            break;
        case 'b':
            job->value_bytes = number;
            break;
        case 'k':
            job->clients = (uint32_t)number;
            break;
        case 's':
            job->seconds = strtod(optarg, NULL);
            break;
        case 'e':
            job->seed = (uint32_t)number;
            break;
        case 'z':
            job->compressible = true;
            break;
        default:
            return false;
        }
    }
    if (argc - optind != 2)
        return false;
    job->workload = argv[optind];
    job->directory = argv[optind + 1];
    return job->clients >= 1 && job->clients <= BENCH_CLIENTS_MAX && job->count >= job->clients;
}

int main(int argc, char **argv)
{
    struct bench_job job = {.count = 1000, .value_bytes = 4096, .clients = 1, .seed = 1};
    const struct bench_workload *w;
    char err[BENCH_ERROR_BYTES];
    struct bench_result result;

    if (!client_parse(argc, argv, &job)) {
        (void)fprintf(stderr, "client: usage is at the top of tests/bench/client.c\n");
        return 2;
    }
    w = bench_find(job.workload);
    if (!w)
        w = servers_find(job.workload);
    if (!w) {
        (void)fprintf(stderr, "client: %s: no such workload\n", job.workload);
        return 2;
    }
    if (bench_run(&job, w, &result, err) < 0) {
        (void)fprintf(stderr, "client: %s: %s\n", job.workload, err);
        return 1;
    }
    bench_print_json(stdout, &job, &result);
    (void)printf("\n");
    return fflush(stdout) == 0 ? 0 : 1;
}
