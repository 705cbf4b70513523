/* SPDX-License-Identifier: BSD-2-Clause */
/* options: the command line of mount.larder: argv and -o lists to values, each with its source. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/larder.h"
#include "fs/text.h"

enum tri { TRI_AUTO, TRI_ON, TRI_OFF };

/* What fs/confine.c does, in this order. */
enum confine_measure {
    CONFINE_NO_NEW_PRIVS,
    CONFINE_LANDLOCK,
    CONFINE_DROP_CAPS,
    CONFINE_SECCOMP,
    CONFINE_MEASURES
};

enum options_action { OPTIONS_MOUNT, OPTIONS_HELP, OPTIONS_VERSION };

#define OPTIONS_ROWS_MAX 32
#define OPTIONS_ERROR_BYTES 512

struct fs_options {
    struct larder_options core;
    char *store, *mountpoint; /* absolute after options_resolve */
    enum tri io_uring, passthrough;
    enum tri confine[CONFINE_MEASURES];
    unsigned threads; /* 0: libfuse's choice */
    uint64_t watchdog_ns; /* 0: off */
    enum larder_log_level log_level;
    bool allow_other, allow_root, default_permissions, nonempty;
    bool foreground, debug;
    unsigned min_free_percent; /* of the host file system; 0: min_free_bytes is it */
    char *fsname;              /* NULL: the store's path */
    struct text kernel;        /* ",opt,opt": for mount(2), through libfuse */
    enum options_action action;
    char *given[OPTIONS_ROWS_MAX]; /* what the command line says, per row */
};

void options_init(struct fs_options *o);
void options_free(struct fs_options *o);
/* -EINVAL with err (OPTIONS_ERROR_BYTES) naming the option and the accepted form. */
int options_parse(struct fs_options *o, int argc, char **argv, char *err);
/* Makes paths absolute and min_free=N% a size. Before any chdir. */
int options_resolve(struct fs_options *o, char *err);
/* The i-th option for .larder/config: false past the last. */
bool options_row(const struct fs_options *o, unsigned i, const char **ret_name, const char **ret_value,
                 const char **ret_source);
void options_print_help(void);
