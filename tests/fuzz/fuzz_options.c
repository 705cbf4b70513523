/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_options: the command line of mount.larder. The input's words end at NUL bytes. What is accepted must be within what
 * the help says, and be told again by .larder/config; what is refused must be told why.
 */
#include <errno.h>
#include <string.h>

#include "fs/options.h"

#include "fuzz.h"

#define WORDS_MAX 32

static void check_accepted(const struct fs_options *o)
{
    const char *name, *value, *source;

    if (o->action != OPTIONS_MOUNT)
        return;
    FUZZ_CHECK(o->store && o->mountpoint);
    FUZZ_CHECK(o->core.big_bytes >= 4096 && o->core.big_bytes <= 4u << 20);
    FUZZ_CHECK(o->threads <= 1024);
    FUZZ_CHECK(o->min_free_percent < 100);
    FUZZ_CHECK(o->log_level <= LARDER_LOG_DEBUG);
    for (unsigned i = 0; options_row(o, i, &name, &value, &source); i++)
        FUZZ_CHECK(name && source && (value || o->action == OPTIONS_MOUNT));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
#define LINE(text) {text, sizeof(text) - 1}
    static const struct {
        const char *text;
        size_t bytes;
    } lines[] = {
        LINE("mount.larder\0store\0/mnt\0-o\0quota=10G,ttl=1h30m,idle=2w,compress=lz4"),
        LINE("x\0-oro,max_entries=5,min_free=10%,noatime,x-systemd.automount,fsname=a\\,b\0a\0b"),
        LINE("x\0--quota\0001.5GiB\0--big_bytes=64K\0--io_uring=off\0--\0-a\0b"),
        LINE("x\0-fd\0-t\0larder\0--log_level=debug\0s\0m\0--threads\0008"),
        LINE("x\0--help"),
        LINE("x\0-V"),
        LINE("x\0s\0m\0-o\0durability=fsync,passthrough=auto,allow_other,nonempty,context=\"u:r\""),
    };
#undef LINE
    char name[16];

    (void)argc;
    (void)argv;
    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct fuzz_buffer b = {0};
        (void)fuzz_buffer_add(&b, lines[i].text, lines[i].bytes);
        (void)snprintf(name, sizeof(name), "seed-%u", i);
        fuzz_seed(name, &b);
        fuzz_buffer_fini(&b);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char *copy = malloc(bytes + 1), *argv[WORDS_MAX + 1];
    char err[OPTIONS_ERROR_BYTES] = "";
    struct fs_options o;
    int argc = 0, r;

    FUZZ_CHECK(copy);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    copy[bytes] = '\0';
    for (size_t at = 0; at <= bytes && argc < WORDS_MAX; at += strlen(copy + at) + 1) {
        size_t length = strlen(copy + at) + 1;
        argv[argc] = malloc(length); /* of its own, so that an overrun is seen */
        FUZZ_CHECK(argv[argc]);
        memcpy(argv[argc++], copy + at, length);
    }
    argv[argc] = NULL;
    options_init(&o);
    r = options_parse(&o, argc, argv, err);
    FUZZ_CHECK(r == 0 || (r == -EINVAL && err[0] != '\0'));
    if (r == 0)
        check_accepted(&o);
    options_free(&o);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
    free(copy);
    return 0;
}
