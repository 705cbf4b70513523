/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * clock: the machine's clocks, and cache time made of both: where the wall clock stood at the start, carried
 * on by the one that nobody sets.
 *
 * What may never happen: cache time going back while the daemon runs, or starting below the floor.
 */
#include "clock.h"

#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "util.h"

static uint64_t posix_now_ns(clockid_t id)
{
    struct timespec ts;
    int r;

    r = clock_gettime(id, &ts);
    assert(r == 0); /* both clocks exist since Linux 2.6.39 */
    if (ts.tv_sec < 0)
        return 0; /* a wall clock set before 1970 */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t posix_mono_ns(void *ctx)
{
    (void)ctx;
    return posix_now_ns(CLOCK_BOOTTIME);
}

static uint64_t posix_wall_ns(void *ctx)
{
    (void)ctx;
    return posix_now_ns(CLOCK_REALTIME);
}

const struct clock_ops clock_posix = {.mono_ns = posix_mono_ns, .wall_ns = posix_wall_ns};

void clock_init(struct clock *c, const struct clock_ops *ops, void *ctx, uint64_t floor_cache_ns)
{
    uint64_t wall_ns = ops->wall_ns(ctx);

    *c = (struct clock){
        .ops = ops,
        .ctx = ctx,
        .start_mono_ns = ops->mono_ns(ctx),
        .start_cache_ns = MAX(wall_ns, floor_cache_ns),
    };
}

void boot_id_read(uint8_t out[16])
{
    static const char hex[] = "0123456789abcdef";
    char text[64] = "";
    size_t digit = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        (void)close(fd); /* only read */
    memset(out, 0, 16);
    for (ssize_t i = 0; i < got && digit < 32; i++) {
        const char *p = text[i] ? strchr(hex, text[i]) : NULL;

        if (!p)
            continue;
        out[digit / 2] = (uint8_t)(out[digit / 2] << 4 | (p - hex));
        digit++;
    }
}

uint64_t clock_mono_ns(const struct clock *c)
{
    return c->ops->mono_ns(c->ctx);
}

uint64_t clock_wall_ns(const struct clock *c)
{
    return c->ops->wall_ns(c->ctx);
}

uint64_t clock_cache_ns(const struct clock *c)
{
    uint64_t mono_ns = c->ops->mono_ns(c->ctx);

    assert(mono_ns >= c->start_mono_ns);
    return c->start_cache_ns + (mono_ns - c->start_mono_ns);
}
