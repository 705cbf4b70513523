/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_control: what people and programs ask .stats and .larder/ for, and the ages and sizes they write.
 *
 * The input is a sequence of questions: a byte what, then its arguments. Keys with names out of the input come and are
 * evicted meanwhile, since `events` tells of them: its lines must stay lines, whatever the name.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/confine.h"
#include "fs/options.h"
#include "fs/virtual.h"

#include "fuzz.h"

#define QUESTIONS_MAX 48u
#define ENTRIES_MAX 4u

static const struct confine_report unconfined;
static struct fs fz;
static uint64_t position; /* in the stream of events */

static void take_text(struct fuzz_in *in, char *out, size_t out_bytes)
{
    size_t got, wanted = fuzz_u8(in);
    const uint8_t *said = fuzz_take(in, MIN(wanted, out_bytes - 1), &got);

    if (got > 0)
        memcpy(out, said, got);
    out[got] = '\0';
}

/* What is shown can be given back, and means the same. */
static void ask_age(struct fuzz_in *in)
{
    char text[64], shown[32];
    uint64_t ns, again;

    take_text(in, text, sizeof(text));
    if (larder_parse_age(text, &ns) < 0 || ns == LARDER_NEVER)
        return;
    larder_format_age(ns, shown);
    FUZZ_CHECK(memchr(shown, 0, sizeof(shown)));
    FUZZ_CHECK_OK(larder_parse_age(shown, &again));
    FUZZ_CHECK(again == ns || ns % NS_PER_MS != 0);
}

static void ask_size(struct fuzz_in *in)
{
    char text[64], digits[32];
    uint64_t bytes, again;

    take_text(in, text, sizeof(text));
    if (larder_parse_size(text, &bytes) < 0)
        return;
    (void)snprintf(digits, sizeof(digits), "%lluB", (unsigned long long)bytes);
    FUZZ_CHECK_OK(larder_parse_size(digits, &again));
    FUZZ_CHECK(again == bytes);
}

static void ask_events(struct fuzz_in *in)
{
    uint64_t oldest, newest, from = fuzz_u8(in) % 2 ? fuzz_u64(in) : position;
    char text[600];
    size_t got, bytes = fuzz_u16(in) % sizeof(text);

    larder_events_range(fz.larder, &oldest, &newest);
    FUZZ_CHECK(oldest <= newest);
    larder_events_read(fz.larder, &from, text, bytes, &got);
    FUZZ_CHECK(got <= bytes);
    for (size_t i = 0; i < got; i++)
        FUZZ_CHECK(text[i] == '\n' || (text[i] >= 0x20 && text[i] < 0x7f));
    position = from;
}

static void ask_name(struct fuzz_in *in)
{
    uint64_t parent = fuzz_u8(in) % 2 ? LARDER_ROOT : fuzz_u64(in), ino;
    char name[NAME_MAX + 1];
    struct stat st;

    take_text(in, name, sizeof(name));
    ino = virtual_find(parent, name);
    FUZZ_CHECK(ino == 0 || virtual_kind_of(ino) != VIRTUAL_NONE);
    (void)virtual_name_is_reserved(parent, name);
    if (ino != 0)
        virtual_stat(&fz, ino, &st);
}

/* Text files are text: lines of printable bytes. */
static void check_text(const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        FUZZ_CHECK(data[i] == '\n' || (unsigned char)data[i] >= 0x20);
}

static void ask_file(struct fuzz_in *in)
{
    static const char *const names[] = {"stats.json", "metrics", "config", "events"};
    uint64_t larder = virtual_find(LARDER_ROOT, ".larder"), which = fuzz_u8(in);
    struct handle h = {.node = which % 8 < 4    ? virtual_find(larder, names[which % 8])
                               : which % 8 == 4 ? virtual_find(LARDER_ROOT, ".stats")
                                                : fuzz_u64(in) | 1ull << 63};
    char buf[512];

    if (virtual_kind_of(h.node) == VIRTUAL_NONE)
        return;
    if (virtual_snapshot(&fz, &h) == 0) {
        for (unsigned i = 0; i < 4; i++) {
            uint64_t offset = i == 0 ? 0 : i == 1 ? fuzz_u64(in) : fuzz_u16(in);
            size_t bytes = fuzz_u16(in) % sizeof(buf), got;
            const char *data;
            virtual_read(&fz, &h, buf, bytes, offset, &data, &got);
            FUZZ_CHECK(got <= bytes);
            check_text(data, got);
        }
    }
    text_free(&h.text);
}

/* A key; the mount takes few, so another may have to leave. */
static void make_key(struct fuzz_in *in)
{
    const struct larder_cred cred = {.uid = 1};
    char name[NAME_MAX + 1];
    struct larder_attr attr;
    size_t bytes;

    take_text(in, name, sizeof(name));
    bytes = strlen(name);
    if (bytes == 0 || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return; /* the kernel lets no such name through */
    if (larder_mknod(fz.larder, LARDER_ROOT, name, bytes, S_IFREG | 0600, 0, &cred, &attr) == 0)
        larder_forget(fz.larder, attr.ino, 1);
}

static void ask(struct fuzz_in *in)
{
    switch (fuzz_u8(in) % 8) {
    case 0:
        ask_age(in);
        break;
    case 1:
        ask_size(in);
        break;
    case 2:
        ask_events(in);
        break;
    case 3:
        ask_name(in);
        break;
    case 4:
    case 5:
        ask_file(in);
        break;
    default:
        make_key(in);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const uint8_t seeds[][64] = {
        "\0\0061h30m\0\0\005250ms\0\0042w3d\1\0061.5GiB\1\003100\1\00210kB",
        "\6\1a\6\1b\6\3c\nd\6\1e\6\2f \6\1g\6\2h\\\2\0\377\1\2\0\100\0",
        "\3\1\6.stats\3\1\7.larder\3\0\0\0\0\0\0\0\0\200\7metrics",
        "\4\0\377\1\0\0\0\0\0\0\0\0\377\1\4\1\377\1\4\2\377\1\4\3\377\1\4\4\377\1",
        "\4\5\1\0\0\0\0\0\0\200\377\1\4\6\377\377\377\377\377\377\377\377\377\1",
    };

    (void)argc;
    (void)argv;
    fuzz_store_init();
    fuzz_seed_table(&seeds[0][0], sizeof(seeds) / sizeof(seeds[0]), sizeof(seeds[0]));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char *argv[] = {"mount.larder", "store", "/mnt", "-o", "ttl=1h,fsname=x y", NULL}, err[OPTIONS_ERROR_BYTES];
    struct fuzz_in in = {.data = data, .left = bytes};
    struct larder_options opts;
    struct fs_options o;

    fuzz_store_reset(false);
    larder_options_init(&opts);
    opts.quota_bytes = 64ull << 20;
    opts.max_entries = ENTRIES_MAX;
    options_init(&o);
    FUZZ_CHECK_OK(options_parse(&o, 5, argv, err));
    fz = (struct fs){.magic = FS_MAGIC, .opts = &o, .io_uring = {.reason = "no"}, .passthrough = {.reason = "no"},
                     .confined = &unconfined};
    position = 0;
    fz.larder = fuzz_mount_whole(&opts);
    for (unsigned i = 0; i < QUESTIONS_MAX && in.left > 0; i++)
        ask(&in);
    FUZZ_CHECK_OK(larder_close(fz.larder));
    options_free(&o);
    return 0;
}
