/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * util: error texts, built where a failure is first understood and wrapped on the way out.
 * What may never happen: a message longer than its buffer, or an empty one for a failure.
 */
#include "util.h"

#include <stdarg.h>
#include <stdio.h>

int errtext(struct errtext *err, int r, const char *format, ...)
{
    va_list args;

    if (!err)
        return r;
    va_start(args, format);
    (void)vsnprintf(err->text, sizeof(err->text), format, args); /* truncation is the bound, not an error */
    va_end(args);
    return r;
}

int errtext_wrap(struct errtext *err, int r, const char *format, ...)
{
    char inner[ERRTEXT_BYTES];
    va_list args;
    int prefix_bytes;

    if (!err)
        return r;
    memcpy(inner, err->text, sizeof(inner));
    va_start(args, format);
    prefix_bytes = vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    if (prefix_bytes >= 0 && (size_t)prefix_bytes < sizeof(err->text))
        (void)snprintf(err->text + prefix_bytes, sizeof(err->text) - (size_t)prefix_bytes, ": %s", inner);
    return r;
}
