/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mapped: memcpy to or from a mapping of a file that may end before the mapping does. SIGBUS is an answer, not an end.
 */
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static sigjmp_buf mapped_out;

static void mapped_on_sigbus(int sig)
{
    (void)sig;
    siglongjmp(mapped_out, 1);
}

static void mapped_init(void)
{
    struct sigaction sa = {.sa_handler = mapped_on_sigbus};

    (void)sigaction(SIGBUS, &sa, NULL);
    (void)sigaction(SIGSEGV, &sa, NULL); /* a mapping that may not be written */
}

/* false: SIGBUS, with the bytes before it copied. */
static bool mapped_copy(void *to, const void *from, size_t bytes)
{
    if (sigsetjmp(mapped_out, 1))
        return false;
    memcpy(to, from, bytes);
    return true;
}
