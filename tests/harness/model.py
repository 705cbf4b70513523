# SPDX-License-Identifier: BSD-2-Clause
"""The oracle of random histories: every operation is done on the mount and on a plain local directory.

Results, errnos, bytes and attributes must agree; times are not compared between the two (but see Tree.capture),
nor what only the one file system can know: inode numbers, block counts, sizes of directories.
"""

import errno
import mmap
import os
import random
import stat

from harness import sysx
from harness.values import first_difference, mixed_bytes, random_bytes, text_bytes

FOLDERS = ["d1", "d2", "d3"]
NAMES = ["a", "b", "c", "d.txt", "e" * 60, "f\udcff\udc80", "g h"]
MODES = [0o644, 0o600, 0o755, 0o4755, 0o2775, 0o1777, 0o000]
XATTRS = ["user.one", "user.two", "user.three"]


class Mismatch(AssertionError):
    """The two did not agree; the message has the operation and both answers."""


def outcome(call, *args):
    """("ok", result) or ("error", errno name)."""
    try:
        return "ok", call(*args)
    except OSError as error:
        return "error", errno.errorcode[error.errno]


def brief(answer):
    kind, value = answer
    return f"({kind}, {len(value)} bytes)" if isinstance(value, bytes) else repr(answer)[:300]


def where_different(one, two):
    if not isinstance(one[1], bytes) or not isinstance(two[1], bytes):
        return ""
    return ": " + first_difference(one[1], two[1])


class Side:
    """One of the two directories, with the files it has open by the same keys as the other."""

    def __init__(self, top):
        self.top = top
        self.open_files = {}

    def path(self, names):
        return os.path.join(self.top, *names)

    # Every method below is an operation: it takes plain values and returns what is to be compared.

    def put(self, names, data):
        with open(self.path(names), "wb", buffering=0) as f:
            f.write(data)

    def read(self, names):
        with open(self.path(names), "rb") as f:
            return f.read()

    def pread(self, names, offset, length):
        fd = os.open(self.path(names), os.O_RDONLY)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def pwrite(self, names, data, offset):
        fd = os.open(self.path(names), os.O_WRONLY)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def append(self, names, data):
        fd = os.open(self.path(names), os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    def truncate(self, names, size):
        os.truncate(self.path(names), size)

    def map_write(self, names, data, share):
        fd = os.open(self.path(names), os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            if size < len(data):
                return "too short"
            offset = int((size - len(data)) * share)
            with mmap.mmap(fd, size) as view:
                view[offset:offset + len(data)] = data
            return offset
        finally:
            os.close(fd)

    def fallocate(self, names, mode, offset, length):
        fd = os.open(self.path(names), os.O_RDWR)
        try:
            sysx.fallocate(fd, mode, offset, length)
        finally:
            os.close(fd)

    def copy_range(self, source, target, from_offset, to_offset, length):
        fd_in = os.open(self.path(source), os.O_RDONLY)
        try:
            fd_out = os.open(self.path(target), os.O_WRONLY)
            try:
                total = 0
                while total < length:
                    done = os.copy_file_range(fd_in, fd_out, length - total, from_offset + total, to_offset + total)
                    if done == 0:
                        break
                    total += done
                return total
            finally:
                os.close(fd_out)
        finally:
            os.close(fd_in)

    def create_exclusive(self, names, mode):
        os.close(os.open(self.path(names), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(self, names, mode):
        os.mkdir(self.path(names), mode)

    def rmdir(self, names):
        os.rmdir(self.path(names))

    def unlink(self, names):
        os.unlink(self.path(names))

    def symlink(self, target, names):
        os.symlink(target, self.path(names))

    def readlink(self, names):
        return os.readlink(self.path(names))

    def link(self, old, new):
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def mkfifo(self, names):
        os.mkfifo(self.path(names))

    def rename(self, old, new, flags):
        sysx.renameat2(self.path(old), self.path(new), flags)

    def chmod(self, names, mode):
        os.chmod(self.path(names), mode)

    def chown(self, names, uid, gid):
        os.chown(self.path(names), uid, gid, follow_symlinks=False)

    def utime(self, names, atime, mtime):
        os.utime(self.path(names), ns=(atime, mtime), follow_symlinks=False)
        st = os.lstat(self.path(names))
        return st.st_atime_ns, st.st_mtime_ns

    def set_xattr(self, names, name, value, flags):
        os.setxattr(self.path(names), name, value, flags)

    def get_xattr(self, names, name):
        return os.getxattr(self.path(names), name)

    def remove_xattr(self, names, name):
        os.removexattr(self.path(names), name)

    def list_xattr(self, names):
        return sorted(name for name in os.listxattr(self.path(names)) if name.startswith("user."))

    def stat(self, names):
        return attributes(os.lstat(self.path(names)))

    def list(self, names):
        return sorted(os.listdir(self.path(names)))

    # files kept open

    def open(self, key, names, flags):
        self.open_files[key] = os.open(self.path(names), flags, 0o644)

    def held_read(self, key, offset, length):
        return os.pread(self.open_files[key], length, offset)

    def held_write(self, key, data, offset):
        return os.pwrite(self.open_files[key], data, offset)

    def held_truncate(self, key, size):
        os.ftruncate(self.open_files[key], size)

    def held_stat(self, key):
        return attributes(os.fstat(self.open_files[key]))

    def held_sync(self, key):
        os.fsync(self.open_files[key])

    def close(self, key):
        os.close(self.open_files.pop(key))


def attributes(st):
    size = None if stat.S_ISDIR(st.st_mode) else st.st_size
    return oct(st.st_mode), st.st_nlink, st.st_uid, st.st_gid, size, st.st_rdev


def capture(top, times=False):
    """{relative name: attributes, bytes or target, xattrs}: all of a tree that the two must have in common.

    With times (one side against itself, over a restart) also modification and change times and inode numbers."""
    seen = {}
    for directory, folders, files in os.walk(top):
        for name in [""] + folders + files:
            path = os.path.join(directory, name) if name else directory
            st = os.lstat(path)
            entry = [attributes(st)]
            if times:
                entry.append((st.st_mtime_ns, st.st_ctime_ns, st.st_ino))
            if stat.S_ISLNK(st.st_mode):
                entry.append(os.readlink(path))
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    entry.append(f.read())
            if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
                entry.append({x: os.getxattr(path, x) for x in os.listxattr(path) if x.startswith("user.")})
            seen[os.path.relpath(path, top)] = entry
    return seen


def compare(left, right):
    """The first difference of two captures, as text; empty when there is none."""
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            return f"{name!r} is only on {'the mount' if name in left else 'the local directory'}"
        for one, two in zip(left[name], right[name]):
            if one != two:
                return f"{name!r}: {one!r:.400} on the mount, {two!r:.400} on the local directory"
    return ""


class History:
    """A seeded sequence of operations on both sides. step() does one and compares."""

    def __init__(self, mount_top, plain_top, seed, log_path, hold_readers=True):
        """hold_readers: also keep files open for reading only. A mount with passthrough gives such a reader the version
        of the value that was there when it opened it, where a local file system gives it every later change."""
        self.rng = random.Random(seed)
        self.mount = Side(mount_top)
        self.plain = Side(plain_top)
        self.log = open(log_path, "w", errors="backslashreplace")
        self.hold_readers = hold_readers
        self.steps = 0
        self.keys = 0
        self.operations = [(weight, getattr(self, f"gen_{name}")) for name, weight in (
            ("put", 12), ("read", 10), ("pread", 5), ("pwrite", 9), ("append", 5), ("truncate", 6), ("map_write", 3),
            ("fallocate", 4), ("copy_range", 3), ("create_exclusive", 2), ("mkdir", 5), ("rmdir", 3), ("unlink", 7),
            ("symlink", 2), ("readlink", 2), ("link", 4), ("mkfifo", 1), ("rename", 10), ("chmod", 3), ("chown", 2),
            ("utime", 2), ("xattr", 5), ("stat", 5), ("list", 4), ("open", 6), ("held", 10), ("close", 4))]

    # choosing

    def name(self):
        """A path of few names, most often one that is there, so that operations meet each other."""
        if self.rng.random() < 0.6:
            there = [os.path.join(directory, name) for directory, folders, files in os.walk(self.plain.top)
                     for name in sorted(folders) + sorted(files) * 4]
            if there:
                return os.path.relpath(self.rng.choice(sorted(there)), self.plain.top).split("/")
        parents = [self.rng.choice(FOLDERS) for _ in range(self.rng.choice((0, 0, 1, 1, 1, 2)))]
        return parents + [self.rng.choice(NAMES if self.rng.random() < 0.9 else FOLDERS)]

    def folder(self):
        return [self.rng.choice(FOLDERS) for _ in range(self.rng.choice((1, 1, 2)))]

    def size(self):
        kind = self.rng.random()
        if kind < 0.5:
            return self.rng.randrange(9000)
        if kind < 0.8:
            return self.rng.randrange(150_000)
        if kind < 0.97:
            return self.rng.randrange(600_000)
        return self.rng.randrange(5_000_000)

    def data(self, size):
        return self.rng.choice((random_bytes, text_bytes, mixed_bytes))(size, self.rng.randrange(1 << 30))

    def offset(self):
        return self.rng.choice((0, 1, 4095, 4096, 65536, 262144, self.rng.randrange(700_000)))

    # one generator per kind of operation: returns (method name, arguments)

    def gen_put(self):
        return "put", self.name(), self.data(self.size())

    def gen_read(self):
        return "read", self.name()

    def gen_pread(self):
        return "pread", self.name(), self.offset(), self.size()

    def gen_pwrite(self):
        return "pwrite", self.name(), self.data(self.rng.randrange(1, 70_000)), self.offset()

    def gen_append(self):
        return "append", self.name(), self.data(self.rng.randrange(1, 20_000))

    def gen_truncate(self):
        return "truncate", self.name(), self.rng.choice((0, self.size(), self.offset()))

    def gen_map_write(self):
        return "map_write", self.name(), self.data(self.rng.randrange(1, 5000)), self.rng.random()

    def gen_fallocate(self):
        mode = self.rng.choice((0, sysx.FALLOC_KEEP_SIZE, sysx.FALLOC_PUNCH_HOLE | sysx.FALLOC_KEEP_SIZE,
                                sysx.FALLOC_ZERO_RANGE, sysx.FALLOC_ZERO_RANGE | sysx.FALLOC_KEEP_SIZE))
        return "fallocate", self.name(), mode, self.offset(), self.rng.randrange(1, 200_000)

    def gen_copy_range(self):
        return "copy_range", self.name(), self.name(), self.offset(), self.offset(), self.rng.randrange(1, 300_000)

    def gen_create_exclusive(self):
        return "create_exclusive", self.name(), self.rng.choice(MODES)

    def gen_mkdir(self):
        return "mkdir", self.folder(), self.rng.choice((0o755, 0o700, 0o2775))

    def gen_rmdir(self):
        return "rmdir", self.rng.choice((self.folder(), self.name()))

    def gen_unlink(self):
        return "unlink", self.name()

    def gen_symlink(self):
        return "symlink", self.rng.choice(NAMES + ["missing", "d1/a", "./b"]), self.name()

    def gen_readlink(self):
        return "readlink", self.name()

    def gen_link(self):
        return "link", self.name(), self.name()

    def gen_mkfifo(self):
        return "mkfifo", self.name()

    def gen_rename(self):
        flags = self.rng.choice((0, 0, 0, sysx.RENAME_NOREPLACE, sysx.RENAME_EXCHANGE, sysx.RENAME_EXCHANGE,
                                 sysx.RENAME_WHITEOUT))
        return "rename", self.name(), self.name(), flags

    def gen_chmod(self):
        return "chmod", self.name(), self.rng.choice(MODES)

    def gen_chown(self):
        return "chown", self.name(), *self.rng.choice(((0, -1), (1234, -1), (-1, 0), (-1, 4321), (1234, 4321), (0, 0)))

    def gen_utime(self):
        return "utime", self.name(), self.rng.randrange(1 << 61), self.rng.randrange(1 << 61)

    def gen_xattr(self):
        kind, name = self.rng.random(), self.rng.choice(XATTRS)
        if kind < 0.5:
            flags = self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
            return "set_xattr", self.name(), name, random_bytes(self.rng.randrange(300), self.steps), flags
        if kind < 0.7:
            return "get_xattr", self.name(), name
        if kind < 0.85:
            return "remove_xattr", self.name(), name
        return "list_xattr", self.name()

    def gen_stat(self):
        return "stat", self.name()

    def gen_list(self):
        return "list", self.rng.choice(([], self.folder(), self.name()))

    def gen_open(self):
        if len(self.plain.open_files) >= 6:
            return self.gen_close()
        self.keys += 1
        flags = self.rng.choice((os.O_RDONLY if self.hold_readers else os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_CREAT,
                                 os.O_RDWR | os.O_TRUNC))
        # Without O_NONBLOCK the open of a FIFO would wait for its other end.
        return "open", self.keys, self.name(), flags | os.O_NONBLOCK

    def gen_held(self):
        if not self.plain.open_files:
            return self.gen_open()
        key = self.rng.choice(sorted(self.plain.open_files))
        kind = self.rng.random()
        if kind < 0.35:
            return "held_write", key, self.data(self.rng.randrange(1, 100_000)), self.offset()
        if kind < 0.65:
            return "held_read", key, self.offset(), self.size()
        if kind < 0.75:
            return "held_truncate", key, self.size()
        if kind < 0.9:
            return "held_stat", key
        return "held_sync", key

    def gen_close(self):
        if not self.plain.open_files:
            return self.gen_stat()
        return "close", self.rng.choice(sorted(self.plain.open_files))

    # doing

    #: Opening what may be a FIFO must not wait for its other end.
    _OPENS = {"put", "read", "pread", "pwrite", "append", "truncate", "map_write", "fallocate", "copy_range"}

    def meets_fifo(self, arguments):
        for argument in arguments:
            if isinstance(argument, list):
                try:
                    if stat.S_ISFIFO(os.stat(self.plain.path(argument)).st_mode):
                        return True
                except OSError:
                    continue
        return False

    def step(self):
        weights, generators = zip(*self.operations)
        method, *arguments = self.rng.choices(generators, weights)[0]()
        self.steps += 1
        if method in self._OPENS and self.meets_fifo(arguments):
            return
        shown = ", ".join(f"<{len(a)} bytes>" if isinstance(a, bytes) and len(a) > 40 else repr(a) for a in arguments)
        on_plain = outcome(getattr(self.plain, method), *arguments)
        on_mount = outcome(getattr(self.mount, method), *arguments)
        self.log.write(f"{self.steps} {method}({shown}) {on_plain!r:.120}\n")
        if on_plain != on_mount:
            self.log.flush()
            raise Mismatch(f"step {self.steps}: {method}({shown}): {brief(on_mount)} on the mount, "
                           f"{brief(on_plain)} on the local directory{where_different(on_mount, on_plain)}")

    def close_all(self):
        for key in sorted(self.plain.open_files):
            self.plain.close(key)
            self.mount.close(key)
        self.log.flush()

    def compare_trees(self):
        difference = compare(capture(self.mount.top), capture(self.plain.top))
        if difference:
            raise Mismatch(f"after step {self.steps}: {difference}")
