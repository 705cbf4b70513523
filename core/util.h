/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * util: the few idioms every module shares. Nothing here allocates a policy or knows a file format.
 */
#pragma once

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define GIB (1024ull * MIB)
#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

/* Space on disk is counted in blocks of this size; file systems with larger blocks are refused a
 * small quota, not miscounted (store_open reads the real one). */
#define BLOCK_BYTES 4096ull

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Every heap object starts with a magic: set at birth, checked on entry, wiped at free. */
#define CHECK_OBJ(obj, expected)               \
    do {                                       \
        assert((obj) != NULL);                 \
        assert((obj)->magic == (expected));    \
    } while (0)

static inline void cleanup_close_fd(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        (void)close(*fd); /* cleanup of a descriptor nobody waits for; written files are synced before */
        errno = saved;
        *fd = -1;
    }
}
#define _cleanup_close_ __attribute__((cleanup(cleanup_close_fd)))

static inline void cleanup_free_ptr(void *p)
{
    free(*(void **)p);
    *(void **)p = NULL;
}
#define _cleanup_free_ __attribute__((cleanup(cleanup_free_ptr)))

static inline int steal_fd(int *fd)
{
    int r = *fd;
    *fd = -1;
    return r;
}

static inline void *steal_pointer_(void *pp)
{
    void *p = *(void **)pp;
    *(void **)pp = NULL;
    return p;
}
#define steal_pointer(pp) ((__typeof__(*(pp)))steal_pointer_(pp))

static inline uint64_t round_up(uint64_t value, uint64_t multiple)
{
    assert(multiple > 0);
    return (value + multiple - 1) / multiple * multiple;
}

static inline bool add_overflows(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
    return __builtin_add_overflow(a, b, ret_sum);
}

/* Little-endian bytes <-> integers, at any alignment. */
static inline uint16_t read_le16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}
static inline uint32_t read_le32(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t read_le64(const void *p)
{
    return (uint64_t)read_le32(p) | (uint64_t)read_le32((const uint8_t *)p + 4) << 32;
}
static inline void write_le16(void *p, uint16_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
}
static inline void write_le32(void *p, uint32_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
    b[2] = (uint8_t)(v >> 16);
    b[3] = (uint8_t)(v >> 24);
}
static inline void write_le64(void *p, uint64_t v)
{
    write_le32(p, (uint32_t)v);
    write_le32((uint8_t *)p + 4, (uint32_t)(v >> 32));
}

/* A message for a person, filled where an operation fails for good (open, recovery). */
#define ERRTEXT_BYTES 512
struct errtext {
    char text[ERRTEXT_BYTES];
};

/* Formats into err (NULL is fine) and returns r, so that "return errtext(err, -EIO, ...)" reads as one step. */
int errtext(struct errtext *err, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " in front of what err already says. Returns r. */
int errtext_wrap(struct errtext *err, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));
