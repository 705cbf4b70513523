/* SPDX-License-Identifier: BSD-2-Clause */
/* sdnotify: what systemd is told, and how often it wants to hear that all is well. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment, so that no child has them, and opens the
 * socket: to be called once, before confinement, by the process that will serve. */
void sdnotify_open(void);
/* "READY=1", several lines possible. Nothing happens when nobody listens. */
void sdnotify_send(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool sdnotify_is_open(void);
/* How often at least WATCHDOG=1 is expected; 0: it is not. */
uint64_t sdnotify_watchdog_ns(void);
