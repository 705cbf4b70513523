/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * common: what the commands of `larder` share: exit codes, messages, option parsing, the mounts of this machine,
 * xattrs and JSON.
 *
 * Messages go to stderr as "larder COMMAND: object: what is wrong; what to do". Results go to stdout.
 */
#pragma once

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "core/mountinfo.h"

#ifndef LARDER_VERSION
#define LARDER_VERSION "unknown"
#endif

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define NS_PER_S 1000000000ull

static inline void cleanup_free_ptr(void *p)
{
    free(*(void **)p);
    *(void **)p = NULL;
}
#define _cleanup_free_ __attribute__((cleanup(cleanup_free_ptr)))

static inline void cleanup_close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd); /* nothing is written through descriptors closed this way */
    *fd = -1;
}
#define _cleanup_close_ __attribute__((cleanup(cleanup_close_fd)))

enum tool_exit {
    TOOL_OK = 0,
    TOOL_FAILED = 1,
    TOOL_USAGE = 2,
};

struct command {
    const char *name;
    const char *arguments; /* after the name in the usage line */
    const char *summary;   /* one line */
    const char *help;      /* the rest of --help */
    int (*run)(const struct command *command, int argc, char **argv);
};

extern const struct command command_mount, command_umount, command_stats, command_ls, command_info,
    command_set, command_unset, command_get, command_purge, command_check, command_dump, command_doctor,
    command_bench;

/* Prints "larder NAME: ..." and returns TOOL_FAILED, or TOOL_USAGE with a hint at --help. */
int tool_fail(const struct command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
int tool_usage(const struct command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tool_print_help(const struct command *command);

/* getopt_long that adds -h/--help and complains by itself. Returns an option, -1 at the end (optind is the first
 * operand), or TOOL_OPTION_STOP with *ret_code to exit with. */
#define TOOL_OPTION_STOP (-2)
int tool_option(const struct command *command, int argc, char **argv, const char *short_options,
                const struct option *long_options, int *ret_code);
/* After all output: a full disk or a closed pipe is a failure. */
int tool_flush(const struct command *command, int code);

/* ---- mounts.c ---- */

#define MOUNT_TYPE "fuse.larder"

struct mount_entry {
    char *path, *source, *type, *options; /* owned; options: of the mount and of its file system */
    dev_t device;
    bool is_larder;
};
void mount_entry_free(struct mount_entry *m);
/* NAME, or the value of NAME=. NULL: not among them. Borrowed; it ends at a comma or the end. */
const char *mount_option(const struct mount_entry *m, const char *name);
#define _cleanup_mount_ __attribute__((cleanup(mount_entry_free)))

/* The topmost mount exactly at path (absolute, without symlinks). -ENOENT. */
int mount_find_at(const char *path, struct mount_entry *ret_mount);
/* The mount path lies on, which may be any kind. */
int mount_find_of(const char *path, struct mount_entry *ret_mount);
/* Likewise, but it must be a live larder, else says why not and returns an exit code (TOOL_FAILED). */
int mount_need_larder(const struct command *command, const char *path, struct mount_entry *ret_mount);
/* What a mount whose daemon is gone answers. */
bool error_is_dead_mount(int error);
bool mount_is_dead(const char *mountpoint);
/* The same without ever waiting for the daemon for long: 0, -ENOTCONN, -ETIMEDOUT, or another -errno. */
int mount_ask(const char *mountpoint);
/* The value of a line "name value source" of MNT/.larder/config; false: there is none. */
bool mount_config(const char *mountpoint, const char *name, char *out, size_t out_bytes);

/* mount.larder: beside this program, in the build tree, or installed. -ENOENT. *ret_path is the caller's. */
int find_mount_program(char **ret_path);
/* In PATH, then in the usual places; NULL when nowhere. */
char *find_program(const char *name);

/* ---- output.c ---- */

/* A whole file as text. */
int read_text(const char *path, char **ret_text);
/* xattr user.larder.KEY of a path, symlinks not followed; -errno. */
int policy_get(const char *path, const char *key, char *out, size_t out_bytes);
/* user.larder.KEY as a number; false when there is none. */
bool policy_get_number(const char *path, const char *key, uint64_t *ret_number);
bool parse_number(const char *text, uint64_t *ret_number);

struct source_item {
    char *name, *value, *where;
};
#define SOURCE_ITEMS_MAX 16
/* The items of user.larder.source, in place; path escapes are undone. Returns how many. */
size_t source_parse(char *text, struct source_item items[SOURCE_ITEMS_MAX]);

/* "1.5 MiB"; exact below 1 KiB. */
#define SIZE_TEXT_BYTES 32
const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES]);
/* For people: no more than two units. */
const char *age_text(uint64_t ns, char out[32]);
/* How long a key has got by ttl and expires; UINT64_MAX: for ever. */
uint64_t key_left_ns(const char *path);

/* Names as terminals can bear them: control bytes and backslashes as \ooo. */
void print_name(FILE *f, const char *name);
/* A JSON string. Bytes that are no UTF-8 become lone surrogates U+DC80..U+DCFF, as Python's file names have them. */
void print_json(FILE *f, const char *text);
void print_json_member(FILE *f, const char *name, const char *text); /* "name": "text" */
