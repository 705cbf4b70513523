/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * clock: two clocks, never mixed. mono_ns for intervals; wall_ns for what must survive a restart.
 *
 * cache time (clock_cache_ns) decides expiry and recency: the wall clock as it was at start, carried
 * on by CLOCK_BOOTTIME. A wall clock set back or forth under a running daemon therefore moves no
 * deadline. Over a restart the wall clock is believed again, but never below the newest stamp the
 * store holds (clock_init's floor), so a clock set back only delays expiry by as much, and no key
 * written later ever looks older; a clock set forward expires what would have expired by then.
 */
#pragma once

#include <stdint.h>

struct clock_ops {
    uint64_t (*mono_ns)(void *ctx); /* CLOCK_BOOTTIME: goes on during suspend */
    uint64_t (*wall_ns)(void *ctx); /* CLOCK_REALTIME */
};

struct clock {
    const struct clock_ops *ops; /* (c) */
    void *ctx;                   /* (c) */
    uint64_t start_mono_ns;      /* (c) */
    uint64_t start_cache_ns;     /* (c) */
};

extern const struct clock_ops clock_posix;

void clock_init(struct clock *c, const struct clock_ops *ops, void *ctx, uint64_t floor_cache_ns);
/* Which boot of the machine this is; zeros where it cannot be told. */
void boot_id_read(uint8_t out[16]);

uint64_t clock_mono_ns(const struct clock *c);
uint64_t clock_wall_ns(const struct clock *c); /* for st_mtime and its kin only */
uint64_t clock_cache_ns(const struct clock *c);
