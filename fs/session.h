/* SPDX-License-Identifier: BSD-2-Clause */
/* session: the mount from larder_open to larder_close. */
#pragma once

#include "fs/options.h"

/* Mounts and serves until a signal or an unmount ends it. ready_fd: one byte is written there when the
 * mount answers (-1: nobody waits). Returns the exit code; what went wrong has been said on stderr or in
 * the log. */
int session_run(const struct fs_options *o, int ready_fd);
