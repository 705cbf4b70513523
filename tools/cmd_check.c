/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder check: prints what core/inspect.h finds in a store at rest.
 */
#include "tools/common.h"

#include <errno.h>
#include <string.h>

#include "core/inspect.h"

static int check_run(const struct command *command, int argc, char **argv);

const struct command command_check = {
    .name = "check",
    .arguments = "[--repair] [--json] [--quiet] STORE",
    .summary = "verify a store that is not mounted: every record, every value, the tree",
    .help =
        "Writes nothing unless told to repair. Defects are marked E; notes, marked N, are what a crash leaves and the\n"
        "next mount tidies up. What cannot be trusted is a miss for a mount as well: a repair is for a store that\n"
        "cannot be mounted, or of which a mount would keep less.\n"
        "Exit code: 0 no defects, 1 defects (with --repair: mended), 2 it could not be checked or repaired.\n\n"
        "  --repair   keep what can be trusted, with a line for each thing that goes; then check again. It needs room\n"
        "             for a new index. Stopped half way, the store is no worse and can be repaired again\n"
        "  --quiet    only defects\n"
        "  --json     an object\n",
    .run = check_run,
};

enum { CHECK_CLEAN = 0, CHECK_DEFECTS = 1, CHECK_IMPOSSIBLE = 2 };

struct checking {
    bool json, quiet, repair;
    uint64_t printed;
};

static void print_finding(void *ctx, char severity, const char *where, const char *what)
{
    struct checking *c = ctx;

    if (c->quiet && severity != 'E')
        return;
    if (!c->json) {
        (void)printf("%c %s: %s\n", severity, where, what);
        return;
    }
    (void)printf("%s\n    {\"severity\": \"%c\", ", c->printed++ ? "," : "", severity);
    print_json_member(stdout, "where", where);
    (void)printf(", ");
    print_json_member(stdout, "what", what);
    (void)printf("}");
}

static void print_summary_json(const struct checking *c, const struct inspect_summary *s)
{
    (void)printf("%s],\n", c->printed ? "\n  " : "");
    (void)printf("  \"nodes\": %llu,\n  \"names\": %llu,\n  \"directories\": %llu,\n",
                 (unsigned long long)s->nodes, (unsigned long long)s->names,
                 (unsigned long long)s->directories);
    (void)printf("  \"values_checked\": %llu,\n  \"value_bytes_checked\": %llu,\n",
                 (unsigned long long)s->values_checked, (unsigned long long)s->value_bytes_checked);
    (void)printf("  \"segments\": %llu,\n  \"big_files\": %llu,\n", (unsigned long long)s->segments,
                 (unsigned long long)s->big_files);
    (void)printf("  \"journal_records\": %llu,\n  \"index_records\": %llu,\n",
                 (unsigned long long)s->journal_records, (unsigned long long)s->index_records);
    (void)printf("  \"disk_bytes\": %llu,\n  \"defects\": %llu,\n  \"notes\": %llu\n}\n",
                 (unsigned long long)s->disk_bytes, (unsigned long long)s->defects,
                 (unsigned long long)s->notes);
}

static void print_summary(const char *store, const struct inspect_summary *s)
{
    char values[SIZE_TEXT_BYTES], disk[SIZE_TEXT_BYTES];

    (void)printf("%s: %s", store, s->defects ? "DEFECTS FOUND" : "clean");
    (void)printf("; %llu defects, %llu notes\n", (unsigned long long)s->defects,
                 (unsigned long long)s->notes);
    (void)printf("  %llu names, %llu nodes, %llu of them directories\n", (unsigned long long)s->names,
                 (unsigned long long)s->nodes, (unsigned long long)s->directories);
    (void)printf("  %llu values read, %s\n", (unsigned long long)s->values_checked,
                 size_text(s->value_bytes_checked, values));
    (void)printf("  %llu segments, %llu big files, %llu journal and %llu index records, %s on disk\n",
                 (unsigned long long)s->segments, (unsigned long long)s->big_files,
                 (unsigned long long)s->journal_records, (unsigned long long)s->index_records,
                 size_text(s->disk_bytes, disk));
}

/* A path of the mount instead of the store's is an easy mistake. */
static bool is_on_larder(const char *path, struct mount_entry *ret_mount)
{
    return mount_find_of(path, ret_mount) == 0 && ret_mount->is_larder;
}

static void print_repaired(const struct checking *c, const char *store, const struct inspect_repaired *r)
{
    char bytes[SIZE_TEXT_BYTES];

    if (c->json)
        (void)printf("%s],\n  \"repaired\": {\"lost\": %llu, \"keys\": %llu, \"key_bytes\": %llu, "
                     "\"directories\": %llu},\n  \"left\": [",
                     c->printed ? "\n  " : "", (unsigned long long)r->lost, (unsigned long long)r->keys,
                     (unsigned long long)r->key_bytes, (unsigned long long)r->directories);
    else if (!c->quiet)
        (void)printf("%s: %s; %llu keys in %llu directories kept, %s; checking it again\n", store,
                     r->lost ? "REPAIRED" : "nothing to repair", (unsigned long long)r->keys,
                     (unsigned long long)r->directories, size_text(r->key_bytes, bytes));
}

/* *ret_mended: something had to be. */
static int run_repair(const char *store, struct checking *c, bool *ret_mended, char err[INSPECT_ERROR_BYTES])
{
    struct inspect_repaired repaired;
    int r = inspect_repair(store, print_finding, c, &repaired, err);

    if (r < 0)
        return r;
    print_repaired(c, store, &repaired);
    c->printed = 0;
    *ret_mended = repaired.lost > 0;
    return 0;
}

static int run_check(const struct command *command, const char *store, struct checking *c)
{
    _cleanup_mount_ struct mount_entry m = {0};
    char err[INSPECT_ERROR_BYTES] = "";
    struct inspect_summary summary;
    bool mended = false;
    int r = 0;

    if (is_on_larder(store, &m)) {
        (void)tool_fail(
            command,
            "%s: is on a mount; unmount it (larder umount %s), then check its store: larder check %s", store,
            m.path, m.source);
        return CHECK_IMPOSSIBLE;
    }
    if (c->json) {
        (void)printf("{\n  ");
        print_json_member(stdout, "store", store);
        (void)printf(",\n  \"findings\": [");
    }
    if (c->repair)
        r = run_repair(store, c, &mended, err);
    if (r == 0)
        r = inspect_check(store, false, print_finding, c, &summary, err);
    if (r < 0) {
        if (c->json) {
            (void)printf("%s],\n  ", c->printed ? "\n  " : "");
            print_json_member(stdout, "error", err);
            (void)printf("\n}\n");
        }
        (void)tool_fail(command, "%s", err[0] ? err : strerror(-r));
        return CHECK_IMPOSSIBLE;
    }
    if (c->json)
        print_summary_json(c, &summary);
    else if (!c->quiet)
        print_summary(store, &summary);
    return summary.defects || mended ? CHECK_DEFECTS : CHECK_CLEAN;
}

static int check_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"repair", no_argument, NULL, 'r'},
                                            {0}};
    struct checking c = {0};
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hjqr", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        c.json |= option == 'j';
        c.quiet |= option == 'q';
        c.repair |= option == 'r';
    }
    if (argc - optind != 1)
        return tool_usage(command, optind == argc ? "the store is missing" : "one store at a time");
    code = run_check(command, argv[optind], &c);
    return tool_flush(command, TOOL_OK) == TOOL_OK ? code : CHECK_IMPOSSIBLE;
}
