# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what kill9.py once found stays mended. Method: each test is the shortest history that went wrong."""

import errno
import os

import pytest

from harness import sysx
from harness.values import get, put, random_bytes
from harness.wait import eventually

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
