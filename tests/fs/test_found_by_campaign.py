# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what the differential campaign (tests/diff) found stays mended. Method: each test is the shortest history that
went wrong, with the answer a local file system gives."""

import contextlib
import ctypes
import os
import stat

import pytest

from harness import sysx
from harness.procs import run_child
from harness.values import get, put, random_bytes

RENAME_EXCHANGE, RENAME_WHITEOUT = 2, 4
AT_EMPTY_PATH, STATX_BTIME = 0x1000, 0x800
USER = 1001


def statx_mask(path, fd=-100, flags=0):
    """stx_mask of a statx(2) that asks for everything."""
    buf = (ctypes.c_uint32 * 64)()
    if sysx.libc.statx(fd, os.fsencode(path), flags, 0xfff, buf) < 0:
        raise OSError(ctypes.get_errno(), path)
    return buf[0]


def test_a_file_created_by_a_read_only_open_stays(mount):
    """As flock(1) makes its lock files."""
    m = mount()
    os.close(os.open(m.path("lock"), os.O_RDONLY | os.O_CREAT, 0o640))
    assert os.listdir(m.mnt) == ["lock"]
    m.restart("kill")
    assert stat.S_IMODE(os.stat(m.path("lock")).st_mode) == 0o640


@pytest.mark.daemon
def test_both_files_of_an_exchange_survive_sigkill_though_one_is_being_written(mount):
    m = mount()
    put(m.path("old"), b"old")
    fd = os.open(m.path("new"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"new")
    sysx.renameat2(m.path("old"), m.path("new"), RENAME_EXCHANGE)
    m.kill()
    with contextlib.suppress(OSError):  # ENOTCONN or, served over io_uring, another that says so
        os.close(fd)
    m.start()
    assert get(m.path("new")) == b"old"
    assert get(m.path("old")) == b"new"


def test_a_whiteout_belongs_to_who_renames(mount):
    m = mount(allow_other=True)
    os.chmod(m.mnt, 0o777)

    def rename():
        put(m.path("from"), b"x")
        sysx.renameat2(m.path("from"), m.path("to"), RENAME_WHITEOUT)
    run_child(rename, user=USER)
    st = os.stat(m.path("from"))
    assert (st.st_uid, st.st_gid) == (USER, USER)
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


@pytest.mark.daemon
def test_a_whiteout_counts_as_an_entry(mount):
    m = mount(max_entries=2)
    put(m.path("a"), b"a")
    put(m.path("b"), b"b")
    sysx.renameat2(m.path("b"), m.path("c"), RENAME_WHITEOUT)
    assert sorted(os.listdir(m.mnt)) == ["b", "c"]


def test_an_unlinked_file_is_statted_through_a_path_descriptor(mount):
    m = mount()
    put(m.path("key"), b"1234")
    fd = os.open(m.path("key"), os.O_PATH)
    os.unlink(m.path("key"))
    statx_mask("", fd, AT_EMPTY_PATH)
    assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 4)
    os.close(fd)


@pytest.mark.daemon
def test_no_birth_time_is_made_up(mount):
    m = mount()
    put(m.path("key"), b"")
    assert not statx_mask(m.path("key")) & STATX_BTIME


def set_gid_file(m):
    """A file of USER's with both bits, which any change by USER must take away."""
    path = put(m.path("program"), random_bytes(10_000, 1)) or m.path("program")
    os.chown(path, USER, USER)
    os.chmod(path, 0o6777)
    return path


def by_truncating_open(path):
    os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))


def by_truncating_open_for_writing(path):
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def by_copy_file_range(path):
    fd = os.open(path, os.O_RDWR)
    assert os.copy_file_range(fd, fd, 100, 0, 1000) == 100
    os.close(fd)


def by_fallocate(path):
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, 20_000)
    os.close(fd)


def by_write(path):
    fd = os.open(path, os.O_RDWR)
    os.write(fd, b"x")
    os.close(fd)


def by_truncate(path):
    os.truncate(path, 5)


@pytest.mark.parametrize("change", [by_truncating_open, by_truncating_open_for_writing, by_copy_file_range, by_fallocate,
                                    by_write, by_truncate], ids=lambda f: f.__name__)
def test_setuid_and_setgid_go_when_a_user_changes_the_file(mount, change):
    m = mount(allow_other=True, suid=True)
    os.chmod(m.mnt, 0o777)
    path = set_gid_file(m)
    run_child(change, path, user=USER)
    assert oct(os.stat(path).st_mode & 0o7777) == oct(0o777)


def test_opening_a_large_value_for_writing_changes_no_times(mount):
    """While somebody reads it through the kernel's passthrough."""
    m = mount(compress="none")
    put(m.path("key"), random_bytes(1 << 20, 2))
    os.utime(m.path("key"), ns=(1, 1))
    ctime = os.stat(m.path("key")).st_ctime_ns
    with open(m.path("key"), "rb") as reader:
        os.close(os.open(m.path("key"), os.O_RDWR))
        assert reader.read(10) == random_bytes(1 << 20, 2)[:10]
        assert (os.stat(m.path("key")).st_mtime_ns, os.stat(m.path("key")).st_ctime_ns) == (1, ctime)


def test_a_directory_replaced_by_rename_gets_a_new_ctime(mount):
    m = mount()
    os.mkdir(m.path("old"))
    os.mkdir(m.path("new"))
    fd = os.open(m.path("old"), os.O_PATH)
    before = os.fstat(fd).st_ctime_ns
    os.rename(m.path("new"), m.path("old"))
    assert os.fstat(fd).st_nlink == 0
    assert os.fstat(fd).st_ctime_ns > before
    os.close(fd)
