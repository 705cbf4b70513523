/* SPDX-License-Identifier: BSD-2-Clause */
/* text: append-only formatting into one heap buffer, always terminated. */
#include "fs/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define TEXT_BYTES_FIRST 4096

static bool text_reserve(struct text *t, size_t more)
{
    size_t wanted = t->bytes + more + 1, capacity = t->capacity ? t->capacity : TEXT_BYTES_FIRST;
    char *data;

    while (capacity < wanted)
        capacity *= 2;
    if (capacity == t->capacity)
        return true;
    data = realloc(t->data, capacity);
    if (!data) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->capacity = capacity;
    return true;
}

void text_add(struct text *t, const char *format, ...)
{
    va_list args;
    int bytes;

    if (t->failed)
        return;
    va_start(args, format);
    bytes = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (bytes < 0 || !text_reserve(t, (size_t)bytes))
        return;
    va_start(args, format);
    (void)vsnprintf(t->data + t->bytes, (size_t)bytes + 1, format, args);
    va_end(args);
    t->bytes += (size_t)bytes;
}

void text_free(struct text *t)
{
    free(t->data);
    *t = (struct text){0};
}
