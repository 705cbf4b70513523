/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * confine: what the daemon gives up once it is mounted. A bug in it that hostile bytes or a hostile client reach is
 * then worth the store and little more.
 */
#pragma once

#include <stdbool.h>

#include "fs/options.h"

struct confine_plan {
    enum tri wanted[CONFINE_MEASURES];
    const char *store;
    bool sys_admin;       /* CAP_SYS_ADMIN stays, where it is there: passthrough */
    bool io_uring;        /* its three system calls stay */
    bool datagrams;       /* socket(2) for AF_UNIX datagrams stays: syslog, sd_notify */
    bool abstract_socket; /* and the receiver may be an abstract one */
};

#define CONFINE_REASON_BYTES 160

/* Whether a measure is in force, and what it is or why not. */
struct confine_report {
    struct {
        bool active;
        char reason[CONFINE_REASON_BYTES];
    } measures[CONFINE_MEASURES];
};

/* For this thread and those it starts: call it before there are others. What was wanted "on" and cannot be is an
 * error: -EPERM, *ret_failed says which; the report says why. "auto" only reports it. Nothing can be taken back. */
int confine(const struct confine_plan *plan, struct confine_report *ret_report,
            enum confine_measure *ret_failed);
/* Whether the kernel knows passthrough at all: an old one has no such request, another says it is not built in.
 * Whether a mount is offered it shows only after INIT, when there are threads already. */
bool confine_kernel_has_passthrough(int device_fd);
/* The option's name. */
const char *confine_name(enum confine_measure measure);
