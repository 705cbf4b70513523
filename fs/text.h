/* SPDX-License-Identifier: BSD-2-Clause */
/* text: a growing text, for snapshots and option strings. A failed allocation is remembered, not reported
 * each time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data;
    size_t bytes, capacity;
    bool failed;
};

void text_add(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_free(struct text *t);
