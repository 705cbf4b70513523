/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mountinfo: what is mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5)), which answers also when a
 * daemon does not. For fs/ and tools/; the engine knows nothing of mounts.
 */
#pragma once

#include <stdbool.h>

#define MOUNTINFO_DEVICE_BYTES 32

/* Of one mount; the texts are the caller's for the time of the call, at and source unescaped. */
struct mountinfo_entry {
    char device[MOUNTINFO_DEVICE_BYTES]; /* "MAJOR:MINOR" */
    char type[64];
    const char *at, *source;
    const char *options, *super_options; /* of the mount, of its file system: "rw,noatime" */
};

/* Calls visit for every mount until it returns true; later ones lie on top of earlier ones. -errno when there is no telling. */
int mountinfo_each(bool (*visit)(const struct mountinfo_entry *entry, void *ctx), void *ctx);

/* Absolute and without symlinks, also when the last component is missing or a dead mount. *ret_path is the
 * caller's. */
int path_absolute(const char *path, char **ret_path);
