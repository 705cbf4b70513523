/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_heap: keeps large allocations for the next input. The address sanitizer maps them anew each time and forgets
 * their shadow, which costs more than all the rest of an input. Here they are poisoned while nobody has them, and
 * behind their end, so an overrun or a use after free is seen as ever. Linked in by --wrap=malloc and its kin.
 */
#include <sanitizer/asan_interface.h>
#include <string.h>

#include "core/util.h"
#include "fuzz.h"

#define LARGE_BYTES_MIN (32u << 10)
#define LARGE_BYTES_MAX (9u << 20)
#define BLOCKS_MAX 64u
#define REDZONE_BYTES 64u
#define ALIGN_BYTES (1u << 20) /* of a slab chunk; also tells what cannot be one of these */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *p);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void __wrap_free(void *p);

static struct block {
    uint8_t *data;
    size_t room, bytes; /* without the red zone; bytes 0: nobody's */
} blocks[BLOCKS_MAX];
static bool busy; /* a spin lock: threads of the engine allocate as well */

static void take_turn(void)
{
    while (__atomic_test_and_set(&busy, __ATOMIC_ACQUIRE))
        ;
}

static void give_turn(void)
{
    __atomic_clear(&busy, __ATOMIC_RELEASE);
}

static size_t room_of(size_t bytes)
{
    size_t room = LARGE_BYTES_MIN;

    while (room < bytes)
        room *= 2;
    return room;
}

/* NULL: none is left. */
static struct block *find_block(size_t room)
{
    for (struct block *b = blocks; b < blocks + BLOCKS_MAX; b++) {
        if (!b->data) {
            void *data;
            if (posix_memalign(&data, ALIGN_BYTES, room + REDZONE_BYTES) != 0)
                return NULL;
            b->data = data;
            b->room = room;
            return b;
        }
        if (b->room == room && b->bytes == 0)
            return b;
    }
    return NULL;
}

static void *large_take(size_t bytes)
{
    struct block *b;

    take_turn();
    b = find_block(room_of(bytes));
    if (b) {
        b->bytes = bytes;
        ASAN_UNPOISON_MEMORY_REGION(b->data, bytes);
        ASAN_POISON_MEMORY_REGION(b->data + bytes, b->room - bytes + REDZONE_BYTES);
    }
    give_turn();
    return b ? b->data : NULL;
}

static struct block *large_find(const void *p)
{
    if (((uintptr_t)p & (ALIGN_BYTES - 1)) != 0)
        return NULL;
    for (struct block *b = blocks; b < blocks + BLOCKS_MAX && b->data; b++)
        if (b->data == p)
            return b;
    return NULL;
}

static bool is_large(size_t bytes)
{
    return bytes >= LARGE_BYTES_MIN && bytes <= LARGE_BYTES_MAX;
}

void *__wrap_malloc(size_t bytes)
{
    void *p = is_large(bytes) ? large_take(bytes) : NULL;

    if (p)
        memset(p, 0xbe, 4096);
    return p ? p : __real_malloc(bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    void *p = is_large(bytes) && alignment <= ALIGN_BYTES ? large_take(bytes) : NULL;

    return p ? p : __real_aligned_alloc(alignment, bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    void *p = NULL;

    if (count > 0 && bytes <= LARGE_BYTES_MAX / count && is_large(count * bytes))
        p = large_take(count * bytes);
    return p ? memset(p, 0, count * bytes) : __real_calloc(count, bytes);
}

void __wrap_free(void *p)
{
    struct block *b;

    if (!p || ((uintptr_t)p & (ALIGN_BYTES - 1)) != 0) {
        __real_free(p);
        return;
    }
    take_turn();
    b = large_find(p);
    if (b) {
        FUZZ_CHECK(b->bytes > 0); /* else freed twice */
        b->bytes = 0;
        ASAN_POISON_MEMORY_REGION(b->data, b->room);
    }
    give_turn();
    if (!b)
        __real_free(p);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    struct block *b;
    void *q;

    take_turn();
    b = large_find(p);
    give_turn();
    if (!b)
        return __real_realloc(p, bytes);
    q = __wrap_malloc(bytes);
    if (q)
        memcpy(q, p, MIN(bytes, b->bytes));
    if (q)
        __wrap_free(p);
    return q;
}
