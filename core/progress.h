/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * progress: what a thread waits for in the store's file system, and whether it gets on. Whoever supervises a thread
 * gives it a struct larder_progress (larder.h); each system call on the store leaves its name there while it runs, and
 * a step when it is done. A thread without one pays for a look at a thread-local pointer.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>

#include "larder.h"

extern _Thread_local struct larder_progress *progress_mine;

static inline void progress_enter(const char *call)
{
    if (progress_mine)
        atomic_store_explicit(&progress_mine->waits_in, call, memory_order_relaxed);
}

static inline void progress_leave(void)
{
    if (progress_mine) {
        atomic_store_explicit(&progress_mine->waits_in, NULL, memory_order_relaxed);
        atomic_fetch_add_explicit(&progress_mine->steps, 1, memory_order_relaxed);
    }
}

/* The call's result, with its name in view while it runs. */
#define PROGRESS(name, call)           \
    __extension__({                    \
        progress_enter(name);          \
        __auto_type progress_r = call; \
        progress_leave();              \
        progress_r;                    \
    })
