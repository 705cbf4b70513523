# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what is opened for writing alone goes beside the kernel's page cache, and nobody can tell but by the round trips.
Method: what the kernel does for cached writes and not for these (O_SYNC, setuid bits, pages that others mapped) is looked at
from outside; requests are counted by .stats."""

import errno
import mmap
import os
import stat

import pytest

from harness.errors import raises
from harness.procs import run_child
from harness.values import get, put, random_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon

KIB = 1 << 10
BOB = 42002
RWF_DSYNC = 2


def count(m, *ops):
    stats = m.stats()
    return [stats[f"latency_{op}_count"] for op in ops]


def put_by_rename(m, name, data):
    fd = os.open(m.path("new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)
    os.rename(m.path("new"), m.path(name))


def test_a_put_is_six_round_trips(mount):
    m = mount()
    put_by_rename(m, "first", b"x")
    before = count(m, "lookup", "create", "write", "flush", "rename", "getattr", "xattr")
    for i in range(100):
        put_by_rename(m, f"key-{i}", b"x" * 4096)
    after = count(m, "lookup", "create", "write", "flush", "rename", "getattr", "xattr")
    grown = [b - a for a, b in zip(before, after)]
    assert grown[1:5] == [100] * 4
    assert grown[0] <= 200 + 5  # and a few for .stats itself
    assert grown[5] <= 5 and grown[6] == 0


# What the kernel leaves to us

@pytest.fixture
def disk(site, need_program):
    need_program("mkfs.ext4")
    need_program("losetup")
    return site.loop_disk("disk")


def flushes(disk):
    """How often the device was told to make durable what it has."""
    with open(f"/sys/block/{os.path.basename(disk.device)}/stat") as f:
        return int(f.read().split()[15])


def plain(fd):
    os.write(fd, b"value")


def with_flag(fd):
    os.pwritev(fd, [b"value"], 0, RWF_DSYNC)


@pytest.mark.parametrize("io_uring", ["off", "auto"])
@pytest.mark.parametrize("flags, write", [(os.O_SYNC, plain), (os.O_DSYNC, plain), (0, with_flag)],
                         ids=["O_SYNC", "O_DSYNC", "RWF_DSYNC"])
def test_a_synchronous_write_is_on_the_device(mount, disk, io_uring, flags, write):
    m = mount(store=f"{disk.point}/store", io_uring=io_uring)
    fd = os.open(m.path("key"), os.O_CREAT | os.O_WRONLY | flags)
    os.write(fd, b"before")
    before = flushes(disk)
    write(fd)
    assert flushes(disk) > before
    os.close(fd)
    assert m.stats()["latency_fsync_count"] == 0  # the kernel has not asked


def test_a_writer_beside_the_cache_takes_setuid_away(mount):
    """The kernel learns of it, though it did not ask."""
    m = mount(allow_other=True)
    path = m.path("key")
    put(path, b"x")
    os.chown(path, BOB, BOB)
    fd = os.open(path, os.O_WRONLY)
    os.chmod(path, 0o6777)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o6777
    run_child(os.write, fd, b"y", user=BOB)
    eventually(lambda: stat.S_IMODE(os.stat(path).st_mode) == 0o777, 5)
    os.close(fd)


# Others who look meanwhile

@pytest.mark.parametrize("size", [300, 100 * KIB, 700 * KIB])
def test_a_reader_of_what_is_being_written(mount, size):
    """By read and by mapping, while it grows and is overwritten, and who opens it when it is done."""
    m = mount()
    path, data, other = m.path("key"), random_bytes(size, 1), random_bytes(size, 2)
    writer = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(writer, data)
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, size + 1, 0) == data
    view = mmap.mmap(reader, size, prot=mmap.PROT_READ)
    assert view[:] == data
    os.pwrite(writer, other, 0)
    assert os.pread(reader, size + 1, 0) == other
    assert view[:] == other
    both = os.open(path, os.O_RDWR)
    os.pwrite(both, b"both", 10)
    expected = other[:10] + b"both" + other[14:]
    assert os.pread(reader, size + 1, 0) == expected == os.pread(both, size + 1, 0)
    assert view[:] == expected
    view.close()
    os.pwrite(writer, data, 0)
    for fd in (writer, both):
        os.close(fd)
    assert os.pread(reader, size + 1, 0) == data
    os.close(reader)
    assert get(path) == data
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == data


def test_a_mapping_that_writes_beside_a_direct_writer(mount):
    m = mount()
    path = m.path("key")
    writer = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(writer, b"." * 10_000)
    both = os.open(path, os.O_RDWR)
    view = mmap.mmap(both, 10_000)
    view[:4] = b"view"
    view.flush()
    os.pwrite(writer, b"write", 5000)
    assert view[5000:5005] == b"write"
    view.close()
    os.close(both)
    os.close(writer)
    assert get(path) == b"view" + b"." * 4996 + b"write" + b"." * 4995


def test_sendfile_from_what_is_being_written(mount):
    m = mount()
    writer = os.open(m.path("key"), os.O_CREAT | os.O_WRONLY)
    out = os.open(m.path("copy"), os.O_CREAT | os.O_RDWR)
    os.write(writer, b"first " * 1000)
    reader = os.open(m.path("key"), os.O_RDONLY)
    assert os.sendfile(out, reader, 0, 6000) == 6000
    os.pwrite(writer, b"second" * 1000, 0)
    assert os.sendfile(out, reader, 0, 6000) == 6000
    assert os.pread(out, 20_000, 0) == b"first " * 1000 + b"second" * 1000
    for fd in (writer, reader, out):
        os.close(fd)


def test_appenders_and_truncation(mount):
    m = mount()
    path = m.path("log")
    one, two = (os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for i in range(200):
        os.write(one if i % 2 else two, b"%04d" % i)
    assert get(path) == b"".join(b"%04d" % i for i in range(200))
    os.truncate(path, 8)
    os.write(one, b"tail")
    os.ftruncate(two, 10)
    assert os.fstat(one).st_size == 10
    os.close(one)
    os.close(two)
    assert get(path) == b"00000001ta"


# Who checks permissions

@pytest.mark.parametrize("options, checks", [({}, False), ({"default_permissions": True}, True), ({"allow_other": True}, True)],
                         ids=["of root alone", "asked for", "for all"])
def test_who_checks_permissions(mount, options, checks):
    m = mount(**options)
    with open("/proc/self/mountinfo") as f:
        line = next(line for line in f if f" {m.mnt} " in line)
    assert ("default_permissions" in line) == checks
    path = m.path("key")
    put(path, b"#!/bin/true\n")
    for mode, executable in ((0o644, False), (0o600, False), (0o000, False), (0o001, True), (0o755, True)):
        os.chmod(path, mode)
        assert os.access(path, os.R_OK | os.W_OK)
        assert os.access(path, os.X_OK) == executable
        if executable:
            assert run_child(os.spawnv, os.P_WAIT, path, [path]) == 0
        else:
            with raises(errno.EACCES):
                run_child(os.execv, path, [path])
    os.mkdir(m.path("directory"), 0)
    assert os.access(m.path("directory"), os.X_OK)
    assert os.access(m.path(".larder"), os.X_OK) and not os.access(m.path(".stats"), os.X_OK)
    with raises(errno.ENOENT):
        os.chdir(m.path("none"))
    with raises(errno.ENOTDIR):
        os.chdir(path)
    run_child(os.chdir, m.path("directory"))
