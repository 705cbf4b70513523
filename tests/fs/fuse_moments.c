/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuse_moments: preloaded into a daemon, makes happen each time what otherwise takes a moment that is hard to hit.
 *
 * LARDER_TEST_MOMENT=abort      the end of the connection is met while a request is being taken (ECONNABORTED), not while
 *                               waiting for one (ENODEV)
 * LARDER_TEST_MOMENT=early      the connection ends, by force, before the first request, and the mount stays: it is in use
 * LARDER_TEST_MOMENT=uring_off  the kernel's switch for io_uring goes off once it has offered it to this mount
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

static bool moment_is(const char *name)
{
    const char *wanted = getenv("LARDER_TEST_MOMENT");

    return wanted && strcmp(wanted, name) == 0;
}

__attribute__((visibility("default"))) ssize_t read(int fd, void *buf, size_t bytes)
{
    static ssize_t (*next)(int, void *, size_t);
    ssize_t n;

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "read");
    n = next(fd, buf, bytes);
    if (n < 0 && errno == ENODEV && moment_is("abort"))
        errno = ECONNABORTED;
    return n;
}

static void end_early(const char *target)
{
    int fd = open(target, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || umount2(target, MNT_FORCE) == 0 || errno != EBUSY)
        abort();
    (void)close(fd);
}

__attribute__((visibility("default"))) int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data)
{
    int (*next)(const char *, const char *, const char *, unsigned long, const void *);
    int r, fd;

    *(void **)&next = dlsym(RTLD_NEXT, "mount");
    r = next(source, target, kind, flags, data);
    if (r == 0 && moment_is("early"))
        end_early(target);
    if (r < 0 || !moment_is("uring_off"))
        return r;
    fd = open("/sys/module/fuse/parameters/enable_uring", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "N", 1) != 1)
        abort();
    (void)close(fd);
    return r;
}
