/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * helper: a process of its own that can do the things the confined daemon cannot: ask the kernel for the mount
 * point, take the mount away, and end the connection to the kernel. It takes no argument with a request, so whoever owns the daemon gains nothing by it.
 */
#pragma once

#include "fs/mountpoint.h"

struct helper;

/* Forks it. While the process has no thread, and before it holds the store's lock or /dev/fuse: what the helper
 * inherited would outlive the daemon. */
int helper_start(const char *mountpoint, struct helper **ret_helper);
/* A stat of the mount point, which reaches the daemon through the kernel; waits for the answer. Fills in the device
 * of the topmost mount there, "" when there is none. */
int helper_ask(struct helper *h, char device[MOUNTINFO_DEVICE_BYTES]);
/* Takes the mount off the tree if it is (still) the one helper_ask saw. Also while helper_ask waits in another
 * thread. */
int helper_detach(struct helper *h);
/* Has it end the connection of that mount (mountpoint_abort), and waits for that a little: as long as the daemon lives, the
 * connection's number is not another's. */
void helper_abort(struct helper *h);
/* Ends it, if it has not ended yet. NULL is fine. */
void helper_free(struct helper *h);
