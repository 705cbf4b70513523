/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * check: what a unit test says when something is not as it should be, and where. The first failure ends the test.
 */
#pragma once

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                   \
    do {                                                                              \
        if (!(cond)) {                                                                \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

/* Integers of any type; printed as signed 64 bits. */
#define CHECK_EQ(a, b)                                                                                                \
    do {                                                                                                              \
        int64_t check_a_ = (int64_t)(a);                                                                              \
        int64_t check_b_ = (int64_t)(b);                                                                              \
        if (check_a_ != check_b_) {                                                                                   \
            (void)fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %s = %" PRId64 "\n", __FILE__, __LINE__, #a, check_a_, \
                          #b, check_b_);                                                                              \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

/* For calls that return 0 or -errno. */
#define CHECK_OK(call)                                                                                        \
    do {                                                                                                      \
        int check_r_ = (call);                                                                                \
        if (check_r_ < 0) {                                                                                   \
            (void)fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, strerror(-check_r_));         \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#define RUN(test)                       \
    do {                                \
        test();                         \
        (void)printf("ok %s\n", #test); \
    } while (0)

/* Says what is wrong in its own words. */
#define CHECK_FAIL(...)                                         \
    do {                                                        \
        (void)fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);   \
        (void)fprintf(stderr, __VA_ARGS__);                     \
        (void)fputc('\n', stderr);                              \
        exit(1);                                                \
    } while (0)
