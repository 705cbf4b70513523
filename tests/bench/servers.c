/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * servers: put and get of the caches that are servers, in their own protocols over a Unix socket, with as little work on
 * the client's side as they allow: one write, then reads until the answer is whole. job->directory is the socket.
 */
#include "servers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/bench.h"

#define SERVERS_KEY_BYTES 64
#define SERVERS_ANSWER_BYTES_EXTRA 256

static int servers_open(struct bench_client *c)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    c->state = malloc(c->job->value_bytes + SERVERS_ANSWER_BYTES_EXTRA);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", c->job->directory);
    if (!c->state || c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return bench_fail(c, "connect", c->job->directory, errno);
    return 0;
}

static void servers_close(struct bench_client *c)
{
    free(c->state);
    if (c->fd >= 0)
        (void)close(c->fd); /* every answer was read */
}

static void servers_before_put(struct bench_client *c, uint64_t index)
{
    (void)snprintf(c->other, SERVERS_KEY_BYTES, "%024llx", (unsigned long long)bench_key_in_order(c, index));
}

static void servers_before_get(struct bench_client *c, uint64_t index)
{
    (void)snprintf(c->other, SERVERS_KEY_BYTES, "%024llx", (unsigned long long)bench_key_shuffled(c, index));
}

static int servers_send(struct bench_client *c, struct iovec *iov, int count)
{
    while (count > 0) {
        ssize_t n = writev(c->fd, iov, count);

        if (n < 0)
            return bench_fail(c, "send to", c->job->directory, errno);
        while (count > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

/* Reads exactly so many bytes: of each answer the length is known beforehand when it is the right one. */
static int servers_expect(struct bench_client *c, size_t bytes, const char *begin)
{
    char *answer = c->state;
    size_t done = 0;

    while (done < bytes) {
        ssize_t n = read(c->fd, answer + done, bytes - done);

        if (n <= 0)
            return bench_fail(c, "answer of", c->job->directory, n < 0 ? errno : ECONNRESET);
        done += (size_t)n;
        if (memcmp(answer, begin, done < strlen(begin) ? done : strlen(begin)) != 0)
            return bench_fail(c, "answer of", c->job->directory, EBADMSG);
    }
    return 0;
}

static int servers_put(struct bench_client *c, uint64_t index, const char *head, const char *done)
{
    union {
        const void *in;
        void *out;
    } value = {.in = bench_value(c, bench_key_in_order(c, index))};
    char end[] = "\r\n";
    struct iovec iov[] = {{c->path, strlen(head)}, {value.out, c->job->value_bytes}, {end, 2}};
    int r;

    (void)memcpy(c->path, head, strlen(head) + 1);
    r = servers_send(c, iov, 3);
    return r < 0 ? r : servers_expect(c, strlen(done), done);
}

static int servers_get(struct bench_client *c, uint64_t index, char *request, const char *head,
                       size_t tail_bytes)
{
    struct iovec iov = {request, strlen(request)};
    int r = servers_send(c, &iov, 1);

    if (r == 0)
        r = servers_expect(c, strlen(head) + c->job->value_bytes + tail_bytes, head);
    if (r == 0 && !bench_value_is(c, (const uint8_t *)c->state + strlen(head), bench_key_shuffled(c, index)))
        r = bench_fail(c, "value of", c->job->directory, EBADMSG);
    return r;
}

static int servers_redis_put(struct bench_client *c, uint64_t index)
{
    char head[SERVERS_ANSWER_BYTES_EXTRA];

    (void)snprintf(head, sizeof(head), "*3\r\n$3\r\nSET\r\n$24\r\n%s\r\n$%llu\r\n", c->other,
                   (unsigned long long)c->job->value_bytes);
    return servers_put(c, index, head, "+OK\r\n");
}

static int servers_redis_get(struct bench_client *c, uint64_t index)
{
    char request[SERVERS_ANSWER_BYTES_EXTRA], head[64];

    (void)snprintf(request, sizeof(request), "*2\r\n$3\r\nGET\r\n$24\r\n%s\r\n", c->other);
    (void)snprintf(head, sizeof(head), "$%llu\r\n", (unsigned long long)c->job->value_bytes);
    return servers_get(c, index, request, head, 2);
}

static int servers_memcached_put(struct bench_client *c, uint64_t index)
{
    char head[SERVERS_ANSWER_BYTES_EXTRA];

    (void)snprintf(head, sizeof(head), "set %s 0 0 %llu\r\n", c->other,
                   (unsigned long long)c->job->value_bytes);
    return servers_put(c, index, head, "STORED\r\n");
}

static int servers_memcached_get(struct bench_client *c, uint64_t index)
{
    char request[SERVERS_ANSWER_BYTES_EXTRA], head[128];

    (void)snprintf(request, sizeof(request), "get %s\r\n", c->other);
    (void)snprintf(head, sizeof(head), "VALUE %s 0 %llu\r\n", c->other,
                   (unsigned long long)c->job->value_bytes);
    return servers_get(c, index, request, head, strlen("\r\nEND\r\n"));
}

#define SERVERS_WORKLOAD(server, verb)                                                                 \
    {                                                                                                  \
        .name = #server "_" #verb, .each = servers_##server##_##verb, .before = servers_before_##verb, \
        .open = servers_open, .close = servers_close                                                   \
    }

static const struct bench_workload servers_workloads[] = {
    SERVERS_WORKLOAD(redis, put), SERVERS_WORKLOAD(redis, get), SERVERS_WORKLOAD(memcached, put),
    SERVERS_WORKLOAD(memcached, get)};

const struct bench_workload *servers_find(const char *name)
{
    for (size_t i = 0; i < sizeof(servers_workloads) / sizeof(*servers_workloads); i++)
        if (strcmp(servers_workloads[i].name, name) == 0)
            return &servers_workloads[i];
    return NULL;
}
