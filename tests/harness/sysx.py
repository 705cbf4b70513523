# SPDX-License-Identifier: BSD-2-Clause
"""System calls the standard library leaves out, raising OSError like those it has."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
MNT_FORCE, MNT_DETACH = 1, 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


class _Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(_Dirent)
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
for _function in (libc.readdir, libc.telldir, libc.closedir, libc.rewinddir):
    _function.argtypes = [ctypes.c_void_p]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _check(result, *where):
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), *where)
    return result


def renameat2(source, target, flags):
    _check(libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)),
           source, None, target)


def fallocate(fd, mode, offset, length):
    _check(libc.fallocate(fd, mode, offset, length))


def link_fd(fd, target):
    """Gives a file without a name (O_TMPFILE) a name."""
    path = f"/proc/self/fd/{fd}".encode()
    _check(libc.linkat(AT_FDCWD, path, AT_FDCWD, os.fsencode(target), 0x400), target)


def umount(path, flags=0):
    _check(libc.umount2(os.fsencode(path), flags), path)


MS_NOATIME = 1024


def mount_fs(source, target, kind, options="", flags=0):
    _check(libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()),
           target)


def syncfs(fd):
    _check(libc.syncfs(fd))


def utimensat(path, atime, mtime, follow=True):
    """atime, mtime: (seconds, nanoseconds); the latter may be UTIME_NOW or UTIME_OMIT."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _check(libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0 if follow else 0x100), path)


def die_with_parent(sig):
    libc.prctl(1, sig, 0, 0, 0)


class Directory:
    """An open directory stream with positions: opendir, readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path):
        self.stream = libc.opendir(os.fsencode(path))
        if not self.stream:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)

    def read(self):
        """The next name, or None at the end; "." and ".." are given like any other."""
        ctypes.set_errno(0)
        entry = libc.readdir(self.stream)
        if not entry:
            if ctypes.get_errno():
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return None
        return ctypes.string_at(ctypes.addressof(entry.contents) + _Dirent.name.offset)

    def read_all(self):
        names = []
        while (name := self.read()) is not None:
            names.append(name)
        return names

    def tell(self):
        return libc.telldir(self.stream)

    def seek(self, position):
        libc.seekdir(self.stream, position)

    def rewind(self):
        libc.rewinddir(self.stream)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        libc.closedir(self.stream)


def xxh3(data, seed=0):
    """xxh3-64, through the library larder itself uses."""
    library = ctypes.CDLL("libxxhash.so.0")
    library.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    library.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    return library.XXH3_64bits_withSeed(bytes(data), len(data), seed)
