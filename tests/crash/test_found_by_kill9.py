# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what kill9.py once found stays mended. Method: each test is the shortest history that went wrong."""

import errno
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import sysx
from harness.procs import Child
from harness.values import get, put, random_bytes
from harness.wait import eventually
from kill9 import URING_PARAMETER, OfferUring

pytestmark = pytest.mark.daemon

MIB = 1 << 20


def fill(path):
    """Takes all that the disk still has."""
    with open(path, "wb", buffering=0) as f:
        for size in (MIB, 4096):
            try:
                while f.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_an_evicted_file_takes_no_new_name(mount):
    """A link(2) that had looked its file up before it was evicted made a key of no bytes."""
    m = mount(quota="2M")
    put(m.path("key"), random_bytes(100_000, 1))
    fd = os.open(m.path("key"), os.O_PATH)
    try:
        for i in range(40):
            put(m.path(f"other-{i}"), random_bytes(100_000, i))
        eventually(lambda: not os.path.lexists(m.path("key")), 10, "key is evicted")
        try:
            sysx.link_fd(fd, m.path("again"))
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ESTALE)
        assert not os.path.lexists(m.path("again")) or get(m.path("again")) == random_bytes(100_000, 1)
    finally:
        os.close(fd)


def write_until_gone(top):
    """Puts of a megabyte, until there is nobody to take them."""
    number = 0
    while True:
        try:
            put(os.path.join(top, f"{os.getpid()}-{number % 8}"), b"x" * 1_000_000)
        except OSError:
            return
        number += 1


def test_a_stop_waits_for_the_threads_of_the_rings(mount, lacking):
    """libfuse cancelled them wherever they were, locks held: the daemon aborted or hung instead of stopping."""
    if not os.path.exists(URING_PARAMETER):
        lacking("this kernel has no FUSE over io_uring")
    m = mount(start=False, quota="64M", io_uring="on")
    for _ in range(12):
        with OfferUring("uring"):
            m.start()
        os.makedirs(m.path("dir"), exist_ok=True)  # not there once the mount is gone
        children = [Child(write_until_gone, m.path("dir")) for _ in range(4)]
        eventually(lambda: m.stats()["puts"] > 8, 10, "clients at work")
        m.stop(signal.SIGTERM)
        for child in children:
            child.kill()


def test_a_full_disk_refuses_no_mount(site):
    """Not one block is left for a new journal file, nor for the pid in LOCK: the values can be read all the same."""
    disk = site.tmpfs("disk", "8M")
    m = site.mount(store=os.path.join(disk, "store"), quota="4M")
    for i in range(20):
        put(m.path(f"key-{i}"), random_bytes(50_000, i))
    m.stop()
    fill(os.path.join(disk, "filler"))
    m.allow("event=disk_full")
    m.start()
    assert m.stats()["read_only"] == 1
    assert [get(m.path(f"key-{i}")) for i in range(20)] == [random_bytes(50_000, i) for i in range(20)]
    with pytest.raises(OSError) as refused:
        put(m.path("new"), b"value")
    assert refused.value.errno == errno.EROFS
    m.stop()
    os.unlink(os.path.join(disk, "filler"))
    m.start()
    put(m.path("new"), b"value")
    assert m.stats()["read_only"] == 0
