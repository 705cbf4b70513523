/* SPDX-License-Identifier: BSD-2-Clause */
/* mountpoint: whether a mount can go where it was asked for, and what to do when it cannot. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "core/mountinfo.h"

#define MOUNTPOINT_ERROR_BYTES 512

struct fs_options;

/* The machine: kernel, /dev/fuse, fusermount3, allow_other. -errno with err. */
int mountpoint_check_machine(const struct fs_options *o, char *err);
/* The directory; clears a dead larder mount from it. -errno with err. */
int mountpoint_prepare(const struct fs_options *o, char *err);
/* The device number, as mountinfo writes it, of the topmost mount at path. -ENOENT when there is none. */
int mountpoint_device(const char *path, char device[MOUNTINFO_DEVICE_BYTES]);
/* Whether a larder is mounted anywhere from that source (which -o fsname= may hide). */
bool mountpoint_has_source(const char *source);
/* Takes the mount of that device off the tree at once; holders of open files keep them. 0 also when
 * another mount, or none, is there by now. */
int mountpoint_detach(const char *path, const char *device);
/* Ends the connection of the mount of that device, on the tree or not: every call that waits for its daemon returns with an
 * error. As root, or as its owner where the fusectl file system is mounted; else -errno, and they wait on. To be
 * called while the daemon lives, or the number may be another's. */
int mountpoint_abort(const char *device);
