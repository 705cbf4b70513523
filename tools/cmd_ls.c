/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder ls: the keys of a directory, with what a cache knows of them. Looking does not count as use: nothing is opened.
 */
#include "tools/common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "core/larder.h"

static int ls_run(const struct command *command, int argc, char **argv);

const struct command command_ls = {
    .name = "ls",
    .arguments = "[-l] [--json] [DIR]",
    .summary = "list the keys of a directory",
    .help = "  -l       with size, stored bytes, hits, and the time left before it expires (- : for ever)\n"
            "  --json   an array of objects, all of it\n",
    .run = ls_run,
};

struct key {
    char *name; /* owned */
    struct stat st;
};

struct listing {
    struct key *keys;
    size_t count, allocated;
};

static void listing_free(struct listing *l)
{
    for (size_t i = 0; i < l->count; i++)
        free(l->keys[i].name);
    free(l->keys);
    *l = (struct listing){0};
}

static int key_compare(const void *a, const void *b)
{
    return strcmp(((const struct key *)a)->name, ((const struct key *)b)->name);
}

static int listing_add(struct listing *l, int dir_fd, const char *name)
{
    struct key key;

    if (fstatat(dir_fd, name, &key.st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno; /* evicted since it was listed */
    if (l->count == l->allocated) {
        size_t room = l->allocated ? l->allocated * 2 : 256;
        struct key *keys = reallocarray(l->keys, room, sizeof(*keys));

        if (!keys)
            return -ENOMEM;
        l->keys = keys;
        l->allocated = room;
    }
    key.name = strdup(name);
    if (!key.name)
        return -ENOMEM;
    l->keys[l->count++] = key;
    return 0;
}

static int listing_read(const char *directory, struct listing *ret_listing)
{
    struct listing l = {0};
    DIR *dir = opendir(directory);
    struct dirent *entry;
    int r = 0;

    if (!dir)
        return -errno;
    for (errno = 0; r == 0 && (entry = readdir(dir)); errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = listing_add(&l, dirfd(dir), entry->d_name);
    if (r == 0 && errno != 0)
        r = -errno;
    (void)closedir(dir); /* only read */
    if (r < 0) {
        listing_free(&l);
        return r;
    }
    if (l.count > 0)
        qsort(l.keys, l.count, sizeof(*l.keys), key_compare);
    *ret_listing = l;
    return 0;
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "directory";
    case S_IFLNK:
        return "symlink";
    case S_IFIFO:
        return "fifo";
    case S_IFSOCK:
        return "socket";
    default:
        return "device";
    }
}

static void print_long(const char *path, const struct key *key)
{
    uint64_t stored = 0, hits = 0, left = key_left_ns(path);
    char text[32];
    bool is_file = S_ISREG(key->st.st_mode);

    (void)policy_get_number(path, "stored_bytes", &stored); /* 0 for what has none */
    (void)policy_get_number(path, "hits", &hits);
    if (is_file)
        (void)printf("%12llu %12llu %8llu %8s  ", (unsigned long long)key->st.st_size,
                     (unsigned long long)stored, (unsigned long long)hits,
                     left == UINT64_MAX ? "-" : age_text(left, text));
    else
        (void)printf("%12s %12s %8s %8s  ", type_name(key->st.st_mode), "-", "-",
                     left == UINT64_MAX ? "-" : age_text(left, text));
    print_name(stdout, key->name);
    (void)printf("%s\n", S_ISDIR(key->st.st_mode) ? "/" : "");
}

static void print_key_json(const char *path, const struct key *key)
{
    uint64_t stored, hits, left = key_left_ns(path);
    char codec[32];

    (void)printf("  {");
    print_json_member(stdout, "name", key->name);
    (void)printf(", \"type\": \"%s\", \"size\": %llu", type_name(key->st.st_mode),
                 (unsigned long long)key->st.st_size);
    if (policy_get_number(path, "stored_bytes", &stored))
        (void)printf(", \"stored_bytes\": %llu", (unsigned long long)stored);
    if (policy_get(path, "codec", codec, sizeof(codec)) == 0)
        (void)printf(", \"codec\": \"%s\"", codec);
    if (policy_get_number(path, "hits", &hits))
        (void)printf(", \"hits\": %llu", (unsigned long long)hits);
    if (left == UINT64_MAX)
        (void)printf(", \"left_ns\": null}");
    else
        (void)printf(", \"left_ns\": %llu}", (unsigned long long)left);
}

static int print_listing(const struct command *command, const char *directory, const struct listing *l,
                         bool is_long, bool json)
{
    if (json)
        (void)printf("[");
    else if (is_long)
        (void)printf("%12s %12s %8s %8s  %s\n", "SIZE", "STORED", "HITS", "LEFT", "KEY");
    for (size_t i = 0; i < l->count; i++) {
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, "%s/%s", directory, l->keys[i].name) < 0) {
            path = NULL;
            return tool_fail(command, "out of memory");
        }
        if (json) {
            (void)printf("%s\n", i ? "," : "");
            print_key_json(path, &l->keys[i]);
        } else if (is_long) {
            print_long(path, &l->keys[i]);
        } else {
            print_name(stdout, l->keys[i].name);
            (void)printf("%s\n", S_ISDIR(l->keys[i].st.st_mode) ? "/" : "");
        }
    }
    if (json)
        (void)printf("%s]\n", l->count ? "\n" : "");
    return TOOL_OK;
}

static int ls_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"long", no_argument, NULL, 'l'},
                                            {0}};
    _cleanup_mount_ struct mount_entry m = {0};
    const char *directory = ".";
    struct listing listing = {0};
    bool is_long = false, json = false;
    int option, code = TOOL_OK, r;

    while ((option = tool_option(command, argc, argv, ":hlj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        is_long |= option == 'l';
        json |= option == 'j';
    }
    if (argc - optind > 1)
        return tool_usage(command, "%s: one directory at a time", argv[optind + 1]);
    if (optind < argc)
        directory = argv[optind];
    code = mount_need_larder(command, directory, &m);
    if (code != TOOL_OK)
        return code;
    r = listing_read(directory, &listing);
    if (r < 0)
        return tool_fail(command, "%s: %s", directory, strerror(-r));
    code = print_listing(command, directory, &listing, is_long, json);
    listing_free(&listing);
    return tool_flush(command, code);
}
