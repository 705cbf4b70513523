/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mountinfo: see mountinfo.h. A line that is not as the manual says is passed over.
 */
#include "mountinfo.h"

#include <stdio.h>

#include "util.h"

static bool is_octal(const char *p)
{
    return p[0] >= '0' && p[0] <= '3' && p[1] >= '0' && p[1] <= '7' && p[2] >= '0' && p[2] <= '7';
}

/* Blanks and backslashes are written as \ooo. In place. */
static void unescape(char *text)
{
    char *out = text;

    for (const char *p = text; *p; p++) {
        if (*p == '\\' && is_octal(p + 1)) {
            *out++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else {
            *out++ = *p;
        }
    }
    *out = '\0';
}

/* Ends the word at text; what follows it. */
static char *cut_word(char *text)
{
    size_t bytes = strcspn(text, " \n");
    bool last = text[bytes] == '\0';

    text[bytes] = '\0';
    return text + bytes + !last;
}

/* Cuts the line up. "ID PARENT MAJOR:MINOR ROOT AT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS" */
static bool entry_parse(char *line, struct mountinfo_entry *ret_entry)
{
    char *rest = strstr(line, " - "), *at, *source, *options, *super_options;
    int start = 0, type_end = 0;

    if (!rest || sscanf(line, "%*d %*d %31s %*s %n", ret_entry->device, &start) != 1 || start == 0 ||
        sscanf(rest, " - %63s %n", ret_entry->type, &type_end) != 1 || type_end == 0)
        return false;
    at = line + start;
    source = rest + type_end;
    options = cut_word(at);
    (void)cut_word(options);
    super_options = cut_word(source);
    (void)cut_word(super_options);
    unescape(at);
    unescape(source);
    ret_entry->at = at;
    ret_entry->source = source;
    ret_entry->options = options;
    ret_entry->super_options = super_options;
    return true;
}

int mountinfo_each(bool (*visit)(const struct mountinfo_entry *entry, void *ctx), void *ctx)
{
    _cleanup_free_ char *line = NULL;
    FILE *f = fopen("/proc/self/mountinfo", "re");
    struct mountinfo_entry entry;
    size_t line_bytes = 0;

    if (!f)
        return -errno;
    while (getline(&line, &line_bytes, f) > 0)
        if (entry_parse(line, &entry) && visit(&entry, ctx))
            break;
    (void)fclose(f);
    return 0;
}

int path_absolute(const char *path, char **ret_path)
{
    _cleanup_free_ char *copy = strdup(path), *parent = NULL;
    char *slash, *base;
    size_t bytes;

    if (!copy)
        return -ENOMEM;
    bytes = strlen(copy);
    while (bytes > 1 && copy[bytes - 1] == '/')
        copy[--bytes] = '\0';
    slash = strrchr(copy, '/');
    base = slash ? slash + 1 : copy;
    if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0) {
        *ret_path = realpath(copy, NULL);
        return *ret_path ? 0 : -errno;
    }
    if (slash)
        *slash = '\0';
    parent = realpath(slash ? (slash == copy ? "/" : copy) : ".", NULL);
    if (!parent)
        return -errno;
    if (asprintf(ret_path, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, base) < 0)
        return -ENOMEM;
    return 0;
}
