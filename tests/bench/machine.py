# SPDX-License-Identifier: BSD-2-Clause
"""What the benchmark asks of the machine: io_uring for FUSE while something is mounted, the CPU time of a daemon, a quiet
disk before a step, cold pages. what the kernel asks a FUSE daemon. Nothing here outlives a step, but Uring.restore() says so once more at the end."""

import collections
import contextlib
import ctypes
import os
import re
import resource

from harness import sysx

URING = "/sys/module/fuse/parameters/enable_uring"
SYS_CACHESTAT = 451
TRACE_BUFFER_KB = 65536  # for each CPU: a million requests


class Uring:
    """The kernel's switch. A connection that began with io_uring keeps it, so the switch is on only while one begins."""

    def __init__(self):
        self.before = self._read()

    @staticmethod
    def _read():
        try:
            with open(URING) as f:
                return f.read().strip()
        except OSError:
            return None

    @staticmethod
    def _write(value):
        with open(URING, "w") as f:
            f.write(value)

    def obstacle(self):
        """Why it cannot be used here, or None."""
        if self.before is None:
            return f"no {URING}: Linux 6.14 or newer is needed"
        if self.before == "N" and not os.access(URING, os.W_OK):
            return f"{URING} is N, and only root may change it"
        return None

    @contextlib.contextmanager
    def enabled(self, wanted=True):
        if wanted and self._read() == "N":
            self._write("Y")
        try:
            yield
        finally:
            self.restore()

    def restore(self):
        if self.before == "N" and self._read() != "N":
            self._write("N")


def raise_descriptor_limit():
    """As far as this process may, for the daemons it starts."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/fs/nr_open") as f:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, int(f.read())))


def descriptors_max():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def cpu_seconds(pid):
    """CPU time a process has used, in all its threads that still are: to the nanosecond where the kernel keeps it."""
    if pid is None:
        return 0.0
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0])
    except FileNotFoundError:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total / 1e9


def anonymous_bytes(pid):
    """Memory of a process that no file backs."""
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


def settle(path):
    """What earlier steps wrote is written, so that it is not written during the next."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sysx.syncfs(fd)
    finally:
        os.close(fd)


def files_below(path):
    for directory, _, names in os.walk(path):
        for name in names:
            yield os.path.join(directory, name)


def chill(path):
    """The pages of all files below path leave memory."""
    settle(path)
    for name in files_below(path):
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def cached_bytes(path):
    """How much of a file, as an inode of its own file system, is in the page cache; None before Linux 6.5."""
    fd = os.open(path, os.O_RDONLY)
    try:
        whole, answer = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
        if sysx.libc.syscall(SYS_CACHESTAT, fd, whole, answer, 0) != 0:
            return None
        return answer[0] * os.sysconf("SC_PAGESIZE")
    finally:
        os.close(fd)


class Requests:
    """Counts the requests the kernel sends on one FUSE connection, by what they ask, through a trace instance of its own."""

    def __init__(self, workdir):
        self.point = os.path.join(workdir, "tracefs")
        self.instance = os.path.join(self.point, "instances", f"larder-bench-{os.getpid()}")
        self.event = os.path.join(self.instance, "events", "fuse", "fuse_request_send")
        os.makedirs(self.point)

    def _put(self, name, text):
        with open(os.path.join(self.instance, name), "w") as f:
            f.write(text)

    def open(self):
        """Raises OSError where there is no tracing, or the kernel's fuse has no trace points (Linux 6.11)."""
        sysx.mount_fs("none", self.point, "tracefs")
        os.mkdir(self.instance)
        self._put("buffer_size_kb", str(TRACE_BUFFER_KB))
        os.stat(self.event)

    def close(self):
        with contextlib.suppress(OSError):
            os.rmdir(self.instance)
        with contextlib.suppress(OSError):
            sysx.umount(self.point, sysx.MNT_DETACH)
        with contextlib.suppress(OSError):
            os.rmdir(self.point)

    @contextlib.contextmanager
    def counted(self, connection):
        """A Counter of the requests made inside."""
        found = collections.Counter()
        self._put("trace", "")
        self._put("events/fuse/fuse_request_send/filter", f"connection=={connection}")
        self._put("events/fuse/fuse_request_send/enable", "1")
        try:
            yield found
        finally:
            self._put("events/fuse/fuse_request_send/enable", "0")
        with open(os.path.join(self.instance, "trace"), errors="replace") as f:
            for line in f:
                match = re.search(r"\(FUSE_(\w+)\) len", line)
                if match:
                    found[match.group(1)] += 1
