# SPDX-License-Identifier: BSD-2-Clause
"""Goal: memory in proportion to keys whatever clients exaggerate, and limits that answer with the proper errno.
Method: the scenarios of load/bounds.py at a small size, with the bounds of the full one per object; and limits of the daemon
lowered so that a few clients reach them."""

import errno
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "load"))

import bounds  # noqa: E402

from harness.errors import fails_with  # noqa: E402
from harness.procs import run_child  # noqa: E402

pytestmark = pytest.mark.daemon

MIB = 1 << 20

#: scenario: share of the full size; what the test may take on top of the objects' own, a sanitizer's included
SCALES = {"cached_inodes": 0.005, "evicted_inodes": 0.01, "open_files": 0.02, "open_big_files": 0.01, "writers": 0.02,
          "sparse": 1, "deep": 0.4, "wide": 0.05, "attributes": 0.02, "long_names": 0.02}


def is_sanitized(site):
    """Then what the process takes is the sanitizer's more than ours."""
    with open(site.daemon, "rb") as f:
        data = f.read()
    return b"__asan_init" in data or b"__tsan_init" in data


@pytest.mark.parametrize("name", list(SCALES))
def test_in_proportion(site, name):
    for what, objects, grown, bound in bounds.run(site, name, SCALES[name]):
        assert grown <= bound or is_sanitized(site), f"{objects} {what}: {grown / MIB:.1f} MiB, bound {bound / MIB:.1f} MiB"


def open_all(directory, count, flags, size):
    """Opens up to count files, writes size bytes to each; (how many, errno that ended it)."""
    fds = []
    try:
        for i in range(count):
            fd = os.open(os.path.join(directory, f"big{i}"), flags, 0o644)
            fds.append(fd)
            if size:
                os.write(fd, b"x" * size)
                os.fsync(fd)
    except OSError as error:
        return len(fds), error.errno
    finally:
        for fd in fds:
            fails_with(os.close, fd)
    return len(fds), 0


def limited(site, mount, count, **options):
    """A mount whose daemon may have `count` descriptors."""
    m = mount(start=False, **options)
    argv = m.argv
    m.argv = lambda: ["prlimit", f"--nofile={count}:{count}", *argv()]
    return m.start()


def test_clients_that_hold_many_large_files_are_told_and_take_nothing_from_the_others(site, mount, need_program):
    """A large file that is open is a descriptor of the daemon's. Past what it can give, ENFILE; and small values, the
    journal, .stats go on, while they are all held and afterwards."""
    need_program("prlimit")
    m = limited(site, mount, 128, big_bytes="4K", compress="none")
    m.write("small", b"v")

    def hold_and_look():
        fds, told = [], 0
        while not told and len(fds) < 500:
            fd = os.open(m.path(f"big{len(fds)}"), os.O_RDWR | os.O_CREAT, 0o644)
            fds.append(fd)
            told = fails_with(os.write, fd, os.urandom(20_000)) or fails_with(os.fsync, fd)
        for i in range(200):  # needs a descriptor now and then: segments, directories
            m.write(f"other{i}", os.urandom(3000))
            assert m.read(f"other{i}")
        assert m.read("small") == b"v"
        stats = m.stats()
        assert stats["read_only"] == 0
        for fd in fds:
            fails_with(os.close, fd)
        return len(fds), told

    held, told = run_child(hold_and_look)
    assert told == errno.ENFILE
    assert held > 30
    m.write("big-after", os.urandom(100_000))
    held, told = run_child(open_all, m.mnt, held - 1, os.O_RDONLY, 0)
    assert told in (0, errno.ENFILE)
    m.stop()
    site.check(m.store)


def test_files_with_xattrs_give_way_to_newer_ones(mount):
    """No ENOSPC while a file with xattrs can leave; keys without any are not touched."""
    m = mount(quota="16M")
    m.write("plain", b"coldest of all")
    for i in range(60):
        m.write(f"key-{i}", b"v")
        os.setxattr(m.path(f"key-{i}"), "user.x", b"x" * 60_000)
    left = sorted(int(name[4:]) for name in os.listdir(m.mnt) if name.startswith("key-"))
    assert left == list(range(60 - len(left), 60)) and 20 <= len(left) <= 40
    assert m.read("plain") == b"coldest of all"


def test_xattrs_of_many_directories_are_bounded_together(site, mount):
    """They are held in memory: past an eighth of the quota, ENOSPC where nothing can leave; what is taken away makes room."""
    m = mount(quota="16M")
    before = bounds.rss_bytes(m.pid)
    value, told, count = b"x" * 60_000, 0, 0
    while not told and count < 200:
        os.mkdir(m.path(f"d{count}"))  # no eviction takes a directory
        told = fails_with(os.setxattr, m.path(f"d{count}"), "user.x", value)
        count += not told
    assert told == errno.ENOSPC
    assert 20 <= count <= 40
    assert bounds.rss_bytes(m.pid) - before < 16 * MIB or is_sanitized(site)
    os.setxattr(m.path("d0"), "user.x", b"less")
    os.setxattr(m.path(f"d{count}"), "user.x", value[:50_000])
    m.write("k", b"v")
    m.restart()
    assert os.getxattr(m.path("d1"), "user.x") == value
