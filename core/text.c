/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * text: sizes and ages as people write them. The forms are in larder.h; whatever else is refused, so that a typing
 * error is an error and not another value. What larder_format_age writes, larder_parse_age reads back as the same age.
 */
#include "larder.h"

#include <stdio.h>

#include "util.h"

struct unit {
    const char *name;
    uint64_t scale;
};

static const struct unit size_units[] = {
    {"B", 1},
    {"K", KIB},
    {"KiB", KIB},
    {"M", MIB},
    {"MiB", MIB},
    {"G", GIB},
    {"GiB", GIB},
    {"T", 1024 * GIB},
    {"TiB", 1024 * GIB},
    {"kB", 1000},
    {"MB", 1000 * 1000},
    {"GB", 1000 * 1000 * 1000},
    {"TB", 1000ull * 1000 * 1000 * 1000},
};

/* From the largest: the order in which they may follow each other. */
static const struct unit age_units[] = {
    {"w", 7 * 86400 * NS_PER_S}, {"d", 86400 * NS_PER_S}, {"h", 3600 * NS_PER_S},
    {"m", 60 * NS_PER_S},        {"s", NS_PER_S},         {"ms", NS_PER_MS},
};
#define AGE_SECONDS_INDEX 4u

/* Locale-free, unlike isdigit(3) and strtoull(3), and without their signs, spaces and prefixes. */
static bool text_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Takes the digits at *p and moves behind them. */
static int text_take_number(const char **p, uint64_t *ret_number)
{
    uint64_t number = 0;

    if (!text_is_digit(**p))
        return -EINVAL;
    for (; text_is_digit(**p); (*p)++) {
        if (__builtin_mul_overflow(number, 10u, &number) ||
            __builtin_add_overflow(number, (uint64_t)(**p - '0'), &number))
            return -ERANGE;
    }
    *ret_number = number;
    return 0;
}

/* floor(scale * 0.DIGITS), from the last digit to the first, so that any number of digits is exact. */
static uint64_t text_fraction(const char *digits, size_t count, uint64_t scale)
{
    uint64_t value = 0;

    while (count-- > 0)
        value = (scale * (uint64_t)(digits[count] - '0') + value) / 10;
    return value;
}

static int size_unit_find(const char *name, uint64_t *ret_scale)
{
    if (!*name) {
        *ret_scale = 1;
        return 0;
    }
    for (size_t i = 0; i < ARRAY_COUNT(size_units); i++) {
        if (strcmp(size_units[i].name, name) == 0) {
            *ret_scale = size_units[i].scale;
            return 0;
        }
    }
    return -EINVAL;
}

int larder_parse_size(const char *text, uint64_t *ret_bytes)
{
    const char *p = text, *digits = NULL;
    uint64_t whole = 0, scale, bytes;
    size_t digit_count = 0;
    int r, range;

    range = text_take_number(&p, &whole);
    if (range == -EINVAL)
        return range;
    while (text_is_digit(*p)) /* of a number that is too large: is the rest well-formed? */
        p++;
    if (*p == '.') {
        digits = ++p;
        while (text_is_digit(*p))
            p++;
        digit_count = (size_t)(p - digits);
        if (digit_count == 0)
            return -EINVAL;
    }
    r = size_unit_find(p, &scale);
    if (r < 0)
        return r;
    if (digits && scale == 1)
        return -EINVAL; /* there is no part of a byte */
    if (range < 0)
        return range;
    if (__builtin_mul_overflow(whole, scale, &bytes) ||
        __builtin_add_overflow(bytes, text_fraction(digits, digit_count, scale), &bytes))
        return -ERANGE;
    *ret_bytes = bytes;
    return 0;
}

/* The unit at p: its index, -EINVAL if there is none. *ret_bytes: length of its name. */
static int age_unit_find(const char *p, size_t *ret_bytes)
{
    size_t bytes = 0;

    while (p[bytes] && !text_is_digit(p[bytes]))
        bytes++;
    for (size_t i = 0; i < ARRAY_COUNT(age_units); i++) {
        if (strlen(age_units[i].name) == bytes && memcmp(age_units[i].name, p, bytes) == 0) {
            *ret_bytes = bytes;
            return (int)i;
        }
    }
    return -EINVAL;
}

int larder_parse_age(const char *text, uint64_t *ret_ns)
{
    const char *p = text;
    uint64_t number, ns = 0;
    int previous = -1;

    if (strcmp(text, "none") == 0) {
        *ret_ns = LARDER_NEVER;
        return 0;
    }
    do {
        size_t unit_bytes = 0;
        int unit, r = text_take_number(&p, &number);

        if (r < 0)
            return r;
        unit = !*p && previous < 0 ? (int)AGE_SECONDS_INDEX : age_unit_find(p, &unit_bytes);
        if (unit <= previous) /* not one, or "30m1h", which is likelier a mistake than meant */
            return -EINVAL;
        if (__builtin_mul_overflow(number, age_units[unit].scale, &number) ||
            __builtin_add_overflow(ns, number, &ns))
            return -ERANGE;
        previous = unit;
        p += unit_bytes;
    } while (*p);
    if (ns >= LARDER_NEVER)
        return -ERANGE;
    *ret_ns = ns;
    return 0;
}

/* Parts of a millisecond are left out: no age set by a person has any. */
void larder_format_age(uint64_t ns, char out[32])
{
    size_t used = 0;

    if (ns >= LARDER_NEVER) {
        memcpy(out, "none", sizeof("none"));
        return;
    }
    if (ns < NS_PER_MS) {
        memcpy(out, "0s", sizeof("0s"));
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(age_units); i++) {
        uint64_t count = ns / age_units[i].scale;

        if (count == 0)
            continue;
        /* The longest, of UINT64_MAX - 2, takes 22 bytes. */
        used +=
            (size_t)snprintf(out + used, 32 - used, "%llu%s", (unsigned long long)count, age_units[i].name);
        ns %= age_units[i].scale;
    }
}
