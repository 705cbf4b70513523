# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what a review once found stays mended. Method: each test is the shortest history that went wrong."""

import errno
import os
import re
import select

import pytest

from harness import sysx
from harness.errors import raises
from harness.procs import Child
from harness.values import get, put, random_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon

MIB = 1 << 20


def tmpfile(m):
    return os.open(m.mnt, os.O_TMPFILE | os.O_RDWR, 0o644)


def age_ms(path):
    """user.larder.age of a file not a minute old: "1s250ms", "40ms"."""
    text = os.getxattr(path, "user.larder.age").decode()
    return sum(int(number) * {"s": 1000, "ms": 1}[unit] for number, unit in re.findall(r"(\d+)(ms|s)", text))


def test_a_tmpfile_fsynced_before_it_is_linked_survives_close_and_sigkill(mount):
    m = mount()
    fd = tmpfile(m)
    os.write(fd, b"published")
    os.fsync(fd)
    sysx.link_fd(fd, m.path("key"))
    os.close(fd)
    assert get(m.path("key")) == b"published"
    m.restart("kill")
    assert get(m.path("key")) == b"published"


def test_a_tmpfile_changed_in_place_before_it_is_linked_is_whole_after_a_restart(mount):
    m = mount()
    data = bytearray(random_bytes(MIB))
    fd = tmpfile(m)
    os.write(fd, data)
    os.close(os.dup(fd))
    os.pwrite(fd, b"changed" * 512, 4096)
    data[4096:4096 + 3584] = b"changed" * 512
    sysx.link_fd(fd, m.path("key"))
    os.close(fd)
    m.restart("stop")
    assert get(m.path("key")) == bytes(data)


def test_linking_tmpfiles_does_not_pass_max_entries(mount):
    m = mount(max_entries=10)
    for i in range(30):
        fd = tmpfile(m)
        os.write(fd, b"value")
        sysx.link_fd(fd, m.path(f"key-{i}"))
        os.close(fd)
    assert len(os.listdir(m.mnt)) <= 10


def test_a_large_file_overwritten_in_place_is_written_as_far_as_ttl_goes(mount):
    m = mount()
    put(m.path("database"), random_bytes(MIB))
    eventually(lambda: age_ms(m.path("database")) >= 300, 10)
    fd = os.open(m.path("database"), os.O_RDWR)
    os.pwrite(fd, b"x" * 100, 0)
    os.close(fd)
    assert age_ms(m.path("database")) < 300


def test_exchange_with_a_file_being_written_leaves_no_old_name_behind(mount):
    m = mount()
    put(m.path("a"), b"aaaa")
    fd = os.open(m.path("b"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"bbbb")
    sysx.renameat2(m.path("a"), m.path("b"), sysx.RENAME_EXCHANGE)
    m.kill()
    with pytest.raises(OSError):
        os.close(fd)
        os.stat(fd)
    m.start()
    assert get(m.path("b")) == b"aaaa"
    assert os.stat(m.path("b")).st_nlink == 1


def test_keys_moved_out_of_a_pinned_directory_can_be_evicted(mount):
    m = mount(quota="8M")
    for name in ("pinned", "free"):
        os.mkdir(m.path(name))
    os.setxattr(m.path("pinned"), "user.larder.pin", b"on")
    for i in range(40):
        put(m.path(f"pinned/{i}"), random_bytes(130_000, i))
    for i in range(20):
        put(m.path(f"traffic-{i}"), random_bytes(130_000, i))
    for i in range(40):
        os.rename(m.path(f"pinned/{i}"), m.path(f"free/{i}"))
    put(m.path("large"), random_bytes(4_500_000))
    assert get(m.path("large")) == random_bytes(4_500_000)


def test_rename_at_the_link_limit_spares_its_target(mount):
    m = mount(quota="64M")
    put(m.path("file"), b"value")
    put(m.path("victim"), b"old")
    os.mkdir(m.path("links"))
    with raises(errno.EMLINK):
        for i in range(70_000):
            os.link(m.path("file"), m.path(f"links/{i}"))
    os.rename(m.path("links/5"), m.path("victim"))
    assert get(m.path("victim")) == b"value"


def test_a_directory_that_lists_empty_can_be_removed(mount):
    m = mount()
    for i in range(5):
        top = m.path(f"directory-{i}")
        os.mkdir(top)
        os.setxattr(top, "user.larder.ttl", b"300ms")
        put(os.path.join(top, "key"), b"value")
        eventually(lambda: os.listdir(top) == [], 10)  # noqa: B023
        os.rmdir(top)
        assert not os.path.exists(top)


def create_many(top, who):
    top = os.path.join(top, str(who))  # of its own: in one directory the kernel makes one at a time
    os.mkdir(top)
    for i in range(400):
        try:
            put(os.path.join(top, str(i)), b"v")
        except FileNotFoundError:
            pass  # evicted before it was closed
    return True


def most_entries_while(m, children):
    most = 0
    while len(select.select([child.fd for child in children], [], [], 0)[0]) < len(children):  # until all have answered
        most = max(most, m.stats()["entries"])
    return most


def test_concurrent_creators_do_not_pass_max_entries(mount):
    m = mount(max_entries=40)
    children = [Child(create_many, m.mnt, who) for who in range(8)]
    most = most_entries_while(m, children)
    assert all(child.result(60) for child in children)
    assert most <= 40
