/* SPDX-License-Identifier: BSD-2-Clause */
/* watchdog: every request under way is known here, and one that is stuck is told of, counted and in the end ended. */
#pragma once

#include <stdint.h>

#include "fs/fs.h"

struct helper;
struct watchdog;
struct watchdog_slot;

/* limit_ns: a request without progress for so long ends the daemon; 0: none does. */
int watchdog_new(struct fs *fs, uint64_t limit_ns, struct watchdog **ret_watchdog);
/* helper: to end the connection by. It outlives the thread. */
int watchdog_start(struct watchdog *w, struct helper *helper);
/* Ends the thread, if any. NULL is fine. */
void watchdog_free(struct watchdog *w);

/* A request begins on this thread. name: constant. NULL: it goes unwatched, there are enough others. */
struct watchdog_slot *watchdog_begin(struct watchdog *w, const char *name, int client_pid, uint64_t start_ns);
/* It is answered, on the thread that works for it. NULL is fine. */
void watchdog_end(struct watchdog_slot *slot);
/* It goes to another thread, which is to larder_set_progress() what this returns. NULL is fine. */
struct larder_progress *watchdog_leave(struct watchdog_slot *slot);
/* No worker takes a probe any more: from here on only requests, and the stop itself (begun as a request), count. */
void watchdog_stopping(struct watchdog *w);
