/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Goal: sizes and ages are read as documented, nothing else is, and ages survive being written and read.
 * Method: tables of texts with the value or the error they must give; a sweep of ages through both directions;
 * percentiles of hand-made histograms.
 */
#include <errno.h>

#include "check.h"
#include "larder.h"
#include "util.h"

struct text_case {
    const char *text;
    int r;
    uint64_t value;
};

static const struct text_case size_cases[] = {
    {"0", 0, 0},
    {"1", 0, 1},
    {"500M", 0, 500 * MIB},
    {"10GiB", 0, 10 * GIB},
    {"1.5K", 0, 1536},
    {"0.1GiB", 0, 107374182},
    {"1.0000000000000000000000001K", 0, 1024},
    {"0.9999999999999999999999999K", 0, 1023},
    {"3kB", 0, 3000},
    {"2.5MB", 0, 2500000},
    {"1GB", 0, 1000000000},
    {"1TB", 0, 1000000000000},
    {"1T", 0, 1ull << 40},
    {"7B", 0, 7},
    {"18446744073709551615", 0, UINT64_MAX},
    {"18446744073709551616", -ERANGE, 0},
    {"99999999999999999999999x", -EINVAL, 0},
    {"99999999999999999999999G", -ERANGE, 0},
    {"16777216T", -ERANGE, 0},
    {"16777215.9T", 0, UINT64_MAX - (1ull << 40) + 1 + 989560464998ull},
    {"", -EINVAL, 0},
    {"G", -EINVAL, 0},
    {"-1", -EINVAL, 0},
    {"+1", -EINVAL, 0},
    {" 1", -EINVAL, 0},
    {"1 ", -EINVAL, 0},
    {"1 G", -EINVAL, 0},
    {"0x10", -EINVAL, 0},
    {"1e3", -EINVAL, 0},
    {"1.G", -EINVAL, 0},
    {".5G", -EINVAL, 0},
    {"1.5", -EINVAL, 0},
    {"1.5B", -EINVAL, 0},
    {"1.2.3G", -EINVAL, 0},
    {"1KB", -EINVAL, 0},
    {"1g", -EINVAL, 0},
    {"1GiBx", -EINVAL, 0},
    {"1,5G", -EINVAL, 0},
    {"none", -EINVAL, 0},
};

static const struct text_case age_cases[] = {
    {"0", 0, 0},
    {"30", 0, 30 * NS_PER_S},
    {"30s", 0, 30 * NS_PER_S},
    {"5m", 0, 300 * NS_PER_S},
    {"24h", 0, 86400 * NS_PER_S},
    {"7d", 0, 7 * 86400 * NS_PER_S},
    {"2w", 0, 14 * 86400 * NS_PER_S},
    {"250ms", 0, 250 * NS_PER_MS},
    {"1h30m", 0, 5400 * NS_PER_S},
    {"1w2d3h4m5s6ms", 0, (((7 + 2) * 24 + 3) * 3600 + 4 * 60 + 5) * NS_PER_S + 6 * NS_PER_MS},
    {"none", 0, LARDER_NEVER},
    {"18446744073s", 0, 18446744073 * NS_PER_S},
    {"18446744073s709ms", 0, 18446744073 * NS_PER_S + 709 * NS_PER_MS},
    {"18446744073s710ms", -ERANGE, 0},
    {"18446744074", -ERANGE, 0},
    {"30501w", -ERANGE, 0},
    {"99999999999999999999s", -ERANGE, 0},
    {"", -EINVAL, 0},
    {"s", -EINVAL, 0},
    {"-5s", -EINVAL, 0},
    {"5 s", -EINVAL, 0},
    {"5s ", -EINVAL, 0},
    {"1.5h", -EINVAL, 0},
    {"5S", -EINVAL, 0},
    {"5min", -EINVAL, 0},
    {"5y", -EINVAL, 0},
    {"1h30", -EINVAL, 0},
    {"30m1h", -EINVAL, 0},
    {"1h1h", -EINVAL, 0},
    {"None", -EINVAL, 0},
    {"none ", -EINVAL, 0},
    {"1hnone", -EINVAL, 0},
};

static void check_cases(const struct text_case *cases, size_t count, int (*parse)(const char *, uint64_t *))
{
    for (size_t i = 0; i < count; i++) {
        uint64_t value = 42;
        int r = parse(cases[i].text, &value);
        uint64_t want = cases[i].r == 0 ? cases[i].value : 42; /* written only on success */

        if (r != cases[i].r || value != want)
            CHECK_FAIL("\"%s\": %d, %" PRIu64 "; not %d, %" PRIu64, cases[i].text, r, value, cases[i].r,
                       want);
    }
}

static void check_age_text(uint64_t ns, const char *want)
{
    char text[32];

    larder_format_age(ns, text);
    if (strcmp(text, want) != 0)
        CHECK_FAIL("%" PRIu64 " ns is written \"%s\", not \"%s\"", ns, text, want);
}

static void test_format_age(void)
{
    check_age_text(0, "0s");
    check_age_text(999999, "0s");
    check_age_text(250 * NS_PER_MS, "250ms");
    check_age_text(90 * 60 * NS_PER_S, "1h30m");
    check_age_text(24 * 3600 * NS_PER_S, "1d");
    check_age_text(7 * 86400 * NS_PER_S, "1w");
    check_age_text(LARDER_NEVER, "none");
    check_age_text(LARDER_UNSET, "none");
    check_age_text(LARDER_NEVER - 1, "30500w3d23h34m33s709ms");
}

static void test_age_round_trip(void)
{
    uint64_t ms = 1;

    for (int i = 0; i < 200000; i++) {
        char text[32];
        uint64_t back = 0;

        larder_format_age(ms * NS_PER_MS, text);
        CHECK(larder_parse_age(text, &back) == 0);
        CHECK(back == ms * NS_PER_MS);
        ms = ms * 2862933555777941757ull + 3037000493ull; /* any walk through all magnitudes will do */
        ms = (ms >> (i % 60)) % 18446744073709ull;
    }
}

static void test_percentile(void)
{
    struct larder_latency h = {.max_ns = 300};

    CHECK_EQ(larder_latency_percentile(&h, 50), 0);
    h.buckets[0] = 1;
    CHECK_EQ(larder_latency_percentile(&h, 50), 300);
    h.max_ns = 5000000000ull;
    CHECK_EQ(larder_latency_percentile(&h, 0), 512);
    CHECK_EQ(larder_latency_percentile(&h, 100), 512);
    h.buckets[0] = 50;
    h.buckets[3] = 49;
    h.buckets[LARDER_LATENCY_BUCKETS - 1] = 1;
    CHECK_EQ(larder_latency_percentile(&h, 50), 512);
    CHECK_EQ(larder_latency_percentile(&h, 50.5), 4096);
    CHECK_EQ(larder_latency_percentile(&h, 99), 4096);
    CHECK_EQ(larder_latency_percentile(&h, 99.9), 5000000000ll);
    CHECK_EQ(larder_latency_percentile(&h, 1000), 5000000000ll);
    for (int op = 0; op < LARDER_OP_COUNT; op++)
        CHECK(larder_op_names[op] && larder_op_names[op][0]);
}

int main(void)
{
    check_cases(size_cases, ARRAY_COUNT(size_cases), larder_parse_size);
    check_cases(age_cases, ARRAY_COUNT(age_cases), larder_parse_age);
    test_format_age();
    test_age_round_trip();
    test_percentile();
    return 0;
}
