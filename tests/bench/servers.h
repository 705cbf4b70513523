/* SPDX-License-Identifier: BSD-2-Clause */
/* servers: put and get of redis and memcached through a Unix socket, as workloads of tools/bench.h. */
#pragma once

struct bench_workload;

const struct bench_workload *servers_find(const char *name);
