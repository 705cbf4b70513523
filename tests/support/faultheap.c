/* SPDX-License-Identifier: BSD-2-Clause */
/* faultheap: see faultheap.h. Takes no lock and allocates nothing itself. */
#include "faultheap.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static _Atomic uint64_t counted, failed, plan_first, plan_last;
static _Atomic int64_t live;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
int __real_posix_memalign(void **ret, size_t alignment, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t bytes);
void __real_free(void *p);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
int __wrap_posix_memalign(void **ret, size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t bytes);
void __wrap_free(void *p);

void faultheap_plan(uint64_t first, uint64_t last)
{
    atomic_store(&plan_first, 0);
    atomic_store(&counted, 0);
    atomic_store(&failed, 0);
    atomic_store(&plan_last, last);
    atomic_store(&plan_first, first);
}

uint64_t faultheap_counted(void)
{
    return atomic_load(&counted);
}

uint64_t faultheap_failed(void)
{
    return atomic_load(&failed);
}

int64_t faultheap_live(void)
{
    return atomic_load(&live);
}

static bool fails(void)
{
    uint64_t number = atomic_fetch_add(&counted, 1) + 1, first = atomic_load(&plan_first);

    if (first == 0 || number < first || number > atomic_load(&plan_last))
        return false;
    (void)atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return true;
}

static void *note(void *p)
{
    if (p)
        (void)atomic_fetch_add(&live, 1);
    return p;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : note(__real_malloc(bytes));
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : note(__real_calloc(count, bytes));
}

void *__wrap_realloc(void *p, size_t bytes)
{
    bool grew = !p;
    void *got;

    if (fails())
        return NULL;
    got = __real_realloc(p, bytes);
    if (grew)
        (void)note(got);
    return got;
}

int __wrap_posix_memalign(void **ret, size_t alignment, size_t bytes)
{
    int r = fails() ? ENOMEM : __real_posix_memalign(ret, alignment, bytes);

    if (r == 0)
        (void)note(*ret);
    return r;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails() ? NULL : note(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : note(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t bytes)
{
    return fails() ? NULL : note(__real_strndup(text, bytes));
}

void __wrap_free(void *p)
{
    if (p)
        (void)atomic_fetch_sub(&live, 1);
    __real_free(p);
}
