/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder stats: the numbers of a mount or of one of its directories, as a table, JSON or raw, once or again and
 * again. All of them come from .stats and .larder/stats.json; nothing is counted here.
 */
#include "tools/common.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "core/larder.h"

#define LINES_MAX 512u
#define WATCH_HEADER_EVERY 20u

static int stats_run(const struct command *command, int argc, char **argv);

const struct command command_stats = {
    .name = "stats",
    .arguments = "[--json | --raw] [--watch[=SECONDS]] [DIR]",
    .summary = "show how well a cache is working",
    .help =
        "DIR is a larder mount or a directory on one (then: of what is below it); without it, the current one.\n\n"
        "  --json              as JSON; with --watch one object per line\n"
        "  --raw               the lines of .stats as they are\n"
        "  --watch[=SECONDS]   again every so many seconds (1): a line each, with rates\n",
    .run = stats_run,
};

struct number {
    const char *name, *text;
};

struct stats {
    char *text; /* owned; lines of .stats, cut up */
    struct number numbers[LINES_MAX];
    size_t count;
};

struct stats_options {
    const char *directory;
    bool json, raw, watch, is_root;
    uint64_t interval_s;
};

static void stats_free(struct stats *s)
{
    free(s->text);
    *s = (struct stats){0};
}

static int stats_read(const char *directory, struct stats *ret_stats)
{
    _cleanup_free_ char *path = NULL;
    struct stats s = {0};
    char *rest = NULL;
    int r;

    if (asprintf(&path, "%s/.stats", directory) < 0) {
        path = NULL;
        return -ENOMEM;
    }
    r = read_text(path, &s.text);
    if (r < 0)
        return r;
    for (char *line = strtok_r(s.text, "\n", &rest); line && s.count < LINES_MAX;
         line = strtok_r(NULL, "\n", &rest)) {
        char *value = strchr(line, ' ');

        if (!value)
            continue;
        *value++ = '\0';
        s.numbers[s.count++] = (struct number){.name = line, .text = value};
    }
    *ret_stats = s;
    return 0;
}

static const char *stats_text(const struct stats *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->numbers[i].name, name) == 0)
            return s->numbers[i].text;
    return "0";
}

static uint64_t stats_number(const struct stats *s, const char *name)
{
    uint64_t number = 0;

    (void)parse_number(stats_text(s, name), &number); /* a ratio is asked for as text */
    return number;
}

/* ---- the table ---- */

static const char *stats_size(const struct stats *s, const char *name, char out[SIZE_TEXT_BYTES])
{
    return size_text(stats_number(s, name), out);
}

static void print_row(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void print_row(const char *label, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)printf("%-10s ", label);
    (void)vprintf(format, args);
    (void)putchar('\n');
    va_end(args);
}

static void print_keys(const struct stats *s)
{
    char logical[SIZE_TEXT_BYTES], stored[SIZE_TEXT_BYTES];

    print_row("keys", "%s in %s directories, %s pinned, %s files open", stats_text(s, "entries"),
              stats_text(s, "directories"), stats_text(s, "pinned"), stats_text(s, "open_files"));
    print_row("values", "%s, stored in %s (compression %s)", stats_size(s, "logical_bytes", logical),
              stats_size(s, "stored_bytes", stored), stats_text(s, "compression_ratio"));
}

static void print_space(const struct stats *s)
{
    char used[SIZE_TEXT_BYTES], quota[SIZE_TEXT_BYTES], dead[SIZE_TEXT_BYTES];
    uint64_t quota_bytes = stats_number(s, "quota_bytes"), used_bytes = stats_number(s, "used_bytes");

    print_row("space", "%s of %s used (%.1f %%), %s of it dead", stats_size(s, "used_bytes", used),
              stats_size(s, "quota_bytes", quota),
              quota_bytes ? 100.0 * (double)used_bytes / (double)quota_bytes : 0.0,
              stats_size(s, "dead_bytes", dead));
}

static void print_traffic(const struct stats *s)
{
    char in[SIZE_TEXT_BYTES], out[SIZE_TEXT_BYTES];

    print_row("hits", "%s%s, misses %s (hit ratio %s)", stats_text(s, "hits"),
              stats_number(s, "hits_sampled") ? " sampled" : "", stats_text(s, "misses"), stats_text(s, "hit_ratio"));
    print_row("puts", "%s, replaced %s, unlinked %s", stats_text(s, "puts"), stats_text(s, "replaced"),
              stats_text(s, "unlinked"));
    print_row("bytes", "%s read, %s written", stats_size(s, "read_bytes", in),
              stats_size(s, "written_bytes", out));
    print_row("evicted", "%s for quota, %s for max_entries, %s for min_free", stats_text(s, "evicted_quota"),
              stats_text(s, "evicted_entries"), stats_text(s, "evicted_min_free"));
    print_row("expired", "%s by ttl, %s by idle, %s by expires", stats_text(s, "expired_ttl"),
              stats_text(s, "expired_idle"), stats_text(s, "expired_expires"));
}

static void print_store(const struct stats *s)
{
    char journal[SIZE_TEXT_BYTES], checkpoint[SIZE_TEXT_BYTES], age[32];

    print_row("files", "%s segments, %s big values, journal %s, checkpoint %s", stats_text(s, "segments"),
              stats_text(s, "big_files"), stats_size(s, "journal_bytes", journal),
              stats_size(s, "checkpoint_bytes", checkpoint));
    print_row("health", "%s corrupt records, %s lost values, %s I/O errors%s",
              stats_text(s, "corrupt_records"), stats_text(s, "lost_values"), stats_text(s, "errors_eio"),
              stats_number(s, "read_only") ? "; READ-ONLY: its journal cannot be written" : "");
    print_row("up", "%s, index loaded in %.3f s", age_text(stats_number(s, "uptime_ns"), age),
              (double)stats_number(s, "replay_ns") / 1e9);
}

static void print_latencies(const struct stats *s)
{
    bool any = false;

    for (int op = 0; op < LARDER_OP_COUNT; op++) {
        char name[4][64];
        static const char *const suffixes[] = {"count", "p50_ns", "p99_ns", "max_ns"};

        for (size_t i = 0; i < ARRAY_COUNT(suffixes); i++)
            (void)snprintf(name[i], sizeof(name[i]), "latency_%s_%s", larder_op_names[op], suffixes[i]);
        if (stats_number(s, name[0]) == 0)
            continue;
        if (!any)
            (void)printf("\n%-10s %12s %10s %10s %10s\n", "operation", "count", "p50 us", "p99 us", "max us");
        any = true;
        (void)printf("%-10s %12s %10.1f %10.1f %10.1f\n", larder_op_names[op], stats_text(s, name[0]),
                     (double)stats_number(s, name[1]) / 1e3, (double)stats_number(s, name[2]) / 1e3,
                     (double)stats_number(s, name[3]) / 1e3);
    }
}

static void print_table(const struct stats_options *o, const struct mount_entry *m, const struct stats *s)
{
    print_row(o->is_root ? "mount" : "directory", "%s", o->is_root ? m->path : o->directory);
    if (!o->is_root) {
        print_keys(s);
        print_row("hits", "%s", stats_text(s, "hits"));
        return;
    }
    print_row("store", "%s", m->source);
    print_space(s);
    print_keys(s);
    print_traffic(s);
    print_store(s);
    print_latencies(s);
}

/* ---- the other forms ---- */

static void print_raw(const struct stats *s)
{
    for (size_t i = 0; i < s->count; i++)
        (void)printf("%s %s\n", s->numbers[i].name, s->numbers[i].text);
}

static void print_directory_json(const struct stats_options *o, const struct stats *s)
{
    char space = o->watch ? ' ' : '\n';

    (void)printf("{%c", space);
    print_json_member(stdout, "directory", o->directory);
    for (size_t i = 0; i < s->count; i++)
        (void)printf(",%c\"%s\": %s", space, s->numbers[i].name, s->numbers[i].text);
    (void)printf("%c}\n", space);
}

static int print_root_json(const struct command *command, const struct stats_options *o)
{
    _cleanup_free_ char *path = NULL, *text = NULL;
    int r;

    if (asprintf(&path, "%s/.larder/stats.json", o->directory) < 0) {
        path = NULL;
        return tool_fail(command, "out of memory");
    }
    r = read_text(path, &text);
    if (r < 0)
        return tool_fail(command, "%s: %s", path, strerror(-r));
    if (o->watch) { /* no string in it holds a newline */
        for (char *p = text; *p; p++)
            *p = *p == '\n' ? ' ' : *p;
        (void)printf("%s\n", text);
    } else {
        (void)fputs(text, stdout);
    }
    return TOOL_OK;
}

static double rate(const struct stats *now, const struct stats *before, const char *name, double seconds)
{
    uint64_t a = stats_number(before, name), b = stats_number(now, name);

    return b > a && seconds > 0 ? (double)(b - a) / seconds : 0.0;
}

static void print_watch_line(const struct stats *now, const struct stats *before, double seconds,
                             uint64_t line)
{
    char used[SIZE_TEXT_BYTES], in[SIZE_TEXT_BYTES], out[SIZE_TEXT_BYTES];
    double evicted = rate(now, before, "evicted_quota", seconds) +
                     rate(now, before, "evicted_entries", seconds) +
                     rate(now, before, "evicted_min_free", seconds);
    double expired = rate(now, before, "expired_ttl", seconds) + rate(now, before, "expired_idle", seconds) +
                     rate(now, before, "expired_expires", seconds);

    if (line % WATCH_HEADER_EVERY == 0)
        (void)printf("%10s %10s %10s %10s %10s %10s %10s %12s %12s\n", "used", "keys", "hits/s", "misses/s",
                     "puts/s", "evicted/s", "expired/s", "read/s", "written/s");
    (void)printf("%10s %10s %10.0f %10.0f %10.0f %10.0f %10.0f %12s %12s\n",
                 stats_size(now, "used_bytes", used), stats_text(now, "entries"),
                 rate(now, before, "hits", seconds), rate(now, before, "misses", seconds),
                 rate(now, before, "puts", seconds), evicted, expired,
                 size_text((uint64_t)rate(now, before, "read_bytes", seconds), in),
                 size_text((uint64_t)rate(now, before, "written_bytes", seconds), out));
}

static int stats_once(const struct command *command, const struct stats_options *o,
                      const struct mount_entry *m)
{
    struct stats s;
    int r;

    if (o->json && o->is_root)
        return print_root_json(command, o);
    r = stats_read(o->directory, &s);
    if (r < 0)
        return tool_fail(command, "%s/.stats: %s", o->directory, strerror(-r));
    if (o->json)
        print_directory_json(o, &s);
    else if (o->raw)
        print_raw(&s);
    else
        print_table(o, m, &s);
    stats_free(&s);
    return TOOL_OK;
}

static double now_s(void)
{
    struct timespec ts = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void sleep_s(uint64_t seconds)
{
    struct timespec ts = {.tv_sec = (time_t)seconds};

    (void)nanosleep(&ts, NULL); /* shorter after a signal: no harm */
}

/* Until interrupted, the mount is gone, or nobody reads any more. */
static int stats_watch(const struct command *command, const struct stats_options *o,
                       const struct mount_entry *m)
{
    struct stats before = {0}, now;
    double before_s = 0, read_s;
    int r = TOOL_OK;

    for (uint64_t line = 0; r == TOOL_OK; line++, sleep_s(o->interval_s)) {
        if (o->json || o->raw || !o->is_root) {
            r = stats_once(command, o, m);
            if (!o->json && r == TOOL_OK)
                (void)putchar('\n');
        } else {
            r = stats_read(o->directory, &now);
            read_s = now_s();
            if (r < 0) {
                r = tool_fail(command, "%s/.stats: %s", o->directory, strerror(-r));
                break;
            }
            print_watch_line(&now, line ? &before : &now, read_s - before_s, line);
            stats_free(&before);
            before = now;
            before_s = read_s;
        }
        if (r == TOOL_OK)
            r = tool_flush(command, TOOL_OK);
    }
    stats_free(&before);
    return r;
}

/* --watch 5 as well as --watch=5. */
static bool take_interval(int argc, char **argv, struct stats_options *o)
{
    uint64_t seconds;

    if (!optarg && optind < argc && parse_number(argv[optind], &seconds))
        optarg = argv[optind++];
    o->interval_s = 1;
    return !optarg || (parse_number(optarg, &o->interval_s) && o->interval_s > 0 && o->interval_s <= 86400);
}

static int stats_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"raw", no_argument, NULL, 'r'},
                                            {"watch", optional_argument, NULL, 'w'},
                                            {0}};
    struct stats_options o = {.directory = "."};
    _cleanup_mount_ struct mount_entry m = {0};
    _cleanup_free_ char *real = NULL;
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        o.json |= option == 'j';
        o.raw |= option == 'r';
        o.watch |= option == 'w';
        if (option == 'w' && !take_interval(argc, argv, &o))
            return tool_usage(command, "--watch=%s: not a number of seconds", optarg);
    }
    if (o.json && o.raw)
        return tool_usage(command, "--json and --raw exclude each other");
    if (argc - optind > 1)
        return tool_usage(command, "%s: one directory at a time", argv[optind + 1]);
    if (optind < argc)
        o.directory = argv[optind];
    code = mount_need_larder(command, o.directory, &m);
    if (code != TOOL_OK)
        return code;
    real = realpath(o.directory, NULL);
    if (!real)
        return tool_fail(command, "%s: %s", o.directory, strerror(errno));
    o.directory = real;
    o.is_root = strcmp(real, m.path) == 0;
    code = o.watch ? stats_watch(command, &o, &m) : stats_once(command, &o, &m);
    return tool_flush(command, code);
}
