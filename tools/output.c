/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * output: what is read from a mount (texts, xattrs) and how it is written for people and for programs.
 */
#include "tools/common.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>

#include "core/larder.h"

#define TEXT_BYTES_MAX (64u << 20) /* of a virtual file; far more than any is */

int read_text(const char *path, char **ret_text)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    _cleanup_free_ char *text = NULL;
    size_t used = 0, room = 0;

    if (fd < 0)
        return -errno;
    for (;;) {
        ssize_t got;

        if (room - used < 2) {
            char *larger;

            room = room ? room * 2 : 16384;
            if (room > TEXT_BYTES_MAX)
                return -EFBIG;
            larger = realloc(text, room);
            if (!larger)
                return -ENOMEM;
            text = larger;
        }
        got = read(fd, text + used, room - used - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    text[used] = '\0';
    *ret_text = text;
    text = NULL;
    return 0;
}

int policy_get(const char *path, const char *key, char *out, size_t out_bytes)
{
    char name[64];
    ssize_t got;

    (void)snprintf(name, sizeof(name), "user.larder.%s", key);
    got = lgetxattr(path, name, out, out_bytes - 1);
    if (got < 0)
        return -errno;
    out[got] = '\0';
    return 0;
}

bool parse_number(const char *text, uint64_t *ret_number)
{
    char *end;

    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    *ret_number = strtoull(text, &end, 10);
    return *end == '\0' && errno == 0;
}

bool policy_get_number(const char *path, const char *key, uint64_t *ret_number)
{
    char text[64];

    if (policy_get(path, key, text, sizeof(text)) < 0)
        return false;
    text[strcspn(text, " ")] = '\0'; /* "3 sampled" */
    return parse_number(text, ret_number);
}

/* In place. */
static void unescape(char *text)
{
    char *out = text;

    for (const char *p = text; *p; p++) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' && p[3] >= '0' &&
            p[3] <= '7') {
            *out++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else {
            *out++ = *p;
        }
    }
    *out = '\0';
}

size_t source_parse(char *text, struct source_item items[SOURCE_ITEMS_MAX])
{
    size_t count = 0;
    char *rest = NULL;

    for (char *item = strtok_r(text, " ", &rest); item && count < SOURCE_ITEMS_MAX;
         item = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(item, ':'), *where = value ? strchr(value + 1, ':') : NULL;

        if (!where)
            continue;
        *value++ = '\0';
        *where++ = '\0';
        unescape(where);
        items[count++] = (struct source_item){.name = item, .value = value, .where = where};
    }
    return count;
}

const char *size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES])
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    if (bytes < 1024) {
        (void)snprintf(out, SIZE_TEXT_BYTES, "%llu B", (unsigned long long)bytes);
        return out;
    }
    for (value /= 1024; value >= 1023.95 && unit + 1 < ARRAY_COUNT(units); unit++)
        value /= 1024;
    (void)snprintf(out, SIZE_TEXT_BYTES, "%.1f %s", value, units[unit]);
    return out;
}

const char *age_text(uint64_t ns, char out[32])
{
    static const uint64_t steps[] = {7 * 86400 * NS_PER_S, 86400 * NS_PER_S, 3600 * NS_PER_S, 60 * NS_PER_S,
                                     NS_PER_S};

    for (size_t i = 0; i + 1 < ARRAY_COUNT(steps); i++) {
        if (ns < steps[i])
            continue;
        ns -= ns % steps[i + 1];
        break;
    }
    if (ns >= NS_PER_S && ns < 60 * NS_PER_S)
        ns -= ns % NS_PER_S;
    larder_format_age(ns, out);
    return out;
}

static uint64_t wall_ns(void)
{
    struct timespec ts = {0};

    (void)clock_gettime(CLOCK_REALTIME, &ts); /* cannot fail for this clock */
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t key_left_ns(const char *path)
{
    uint64_t left = UINT64_MAX, ttl, age, now = wall_ns();
    char text[64];
    double expires;

    if (policy_get(path, "ttl", text, sizeof(text)) == 0 && larder_parse_age(text, &ttl) == 0 &&
        ttl != LARDER_NEVER && policy_get(path, "age", text, sizeof(text)) == 0 &&
        larder_parse_age(text, &age) == 0)
        left = ttl > age ? ttl - age : 0;
    if (policy_get(path, "expires", text, sizeof(text)) == 0 && sscanf(text, "%lf", &expires) == 1 &&
        expires < 1.8e10) {
        uint64_t at = (uint64_t)(expires * 1e9);
        uint64_t until = at > now ? at - now : 0;

        left = until < left ? until : left;
    }
    return left;
}

void print_name(FILE *f, const char *name)
{
    for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
        if (*p < 0x20 || *p == 0x7f || *p == '\\')
            (void)fprintf(f, "\\%03o", *p);
        else
            (void)fputc(*p, f);
    }
}

/* How many bytes of well-formed UTF-8 are at p: 0 for none. RFC 3629: no overlong forms, no surrogates. */
static size_t utf8_length(const unsigned char *p)
{
    size_t bytes = p[0] < 0x80                   ? 1
                   : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                   : (p[0] & 0xf0) == 0xe0       ? 3
                   : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                                 : 0;

    for (size_t i = 1; i < bytes; i++)
        if ((p[i] & 0xc0) != 0x80) /* the terminator as well */
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] >= 0x90))
        return 0;
    return bytes;
}

void print_json(FILE *f, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    (void)fputc('"', f);
    while (*p) {
        size_t bytes = utf8_length(p);

        if (*p == '"' || *p == '\\')
            (void)fprintf(f, "\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f)
            (void)fprintf(f, "\\u%04x", *p);
        else if (bytes == 0)
            (void)fprintf(f, "\\udc%02x", *p);
        else
            (void)fwrite(p, 1, bytes, f);
        p += bytes ? bytes : 1;
    }
    (void)fputc('"', f);
}

void print_json_member(FILE *f, const char *name, const char *text)
{
    print_json(f, name);
    (void)fputs(": ", f);
    print_json(f, text);
}
