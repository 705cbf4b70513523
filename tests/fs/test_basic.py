# SPDX-License-Identifier: BSD-2-Clause
"""Goal: what every program does with files and directories works on the mount as it does on a local disk.
Method: each test does it with plain system calls on a fresh mount and compares results, errors and attributes."""

import errno
import os
import stat
import subprocess
import time

import pytest

from harness import sysx
from harness.errors import raises
from harness.values import get, names, put, random_bytes, text_bytes


def test_a_value_written_is_read_back(fs):
    path = os.path.join(fs, "key")
    put(path, b"value")
    assert get(path) == b"value"
    assert os.stat(path).st_size == 5
    assert names(fs) == [b"key"]


def test_writing_again_replaces_the_value(fs):
    path = os.path.join(fs, "key")
    for version in range(20):
        put(path, b"version %d" % version * (20 - version))
        assert get(path) == b"version %d" % version * (20 - version)


def test_rename_over_a_key_replaces_it(fs):
    path = os.path.join(fs, "key")
    put(path, b"old")
    put(path + ".tmp", b"new")
    os.rename(path + ".tmp", path)
    assert get(path) == b"new"
    assert names(fs) == [b"key"]


def test_an_unlinked_key_is_gone(fs):
    path = os.path.join(fs, "key")
    put(path, b"value")
    os.unlink(path)
    with raises(errno.ENOENT):
        os.stat(path)
    with raises(errno.ENOENT):
        os.unlink(path)
    assert names(fs) == []


def test_a_name_missed_before_is_found_once_it_is_there(fs):
    path = os.path.join(fs, "key")
    for _ in range(3):
        assert not os.path.exists(path)
        put(path, b"x")
        assert os.path.exists(path)
        os.unlink(path)


def test_the_root_is_an_empty_directory_of_its_maker(fs):
    st = os.stat(fs)
    assert stat.S_ISDIR(st.st_mode)
    assert (st.st_uid, st.st_gid) == (0, 0)
    assert os.listdir(fs) == []


def test_directories_nest_and_count_their_links(fs):
    before = os.stat(fs).st_nlink
    os.makedirs(os.path.join(fs, "a", "b", "c"))
    assert os.stat(fs).st_nlink == before + 1
    assert os.stat(os.path.join(fs, "a")).st_nlink == 3
    assert os.stat(os.path.join(fs, "a", "b", "c")).st_nlink == 2
    put(os.path.join(fs, "a", "file"), b"")
    assert os.stat(os.path.join(fs, "a")).st_nlink == 3
    os.rename(os.path.join(fs, "a", "b", "c"), os.path.join(fs, "c"))
    assert os.stat(os.path.join(fs, "a", "b")).st_nlink == 2
    assert os.stat(fs).st_nlink == before + 2
    os.rmdir(os.path.join(fs, "c"))
    assert os.stat(fs).st_nlink == before + 1


def test_dot_dot_leads_to_the_parent_also_after_a_move(fs):
    os.makedirs(os.path.join(fs, "a", "b"))
    os.mkdir(os.path.join(fs, "z"))
    os.rename(os.path.join(fs, "a", "b"), os.path.join(fs, "z", "b"))
    assert os.stat(os.path.join(fs, "z", "b", "..")).st_ino == os.stat(os.path.join(fs, "z")).st_ino
    with sysx.Directory(os.path.join(fs, "z", "b")) as d:
        assert sorted(d.read_all()) == [b".", b".."]


def test_only_an_empty_directory_is_removed(fs):
    top = os.path.join(fs, "a")
    os.mkdir(top)
    put(os.path.join(top, "key"), b"")
    with raises(errno.ENOTEMPTY):
        os.rmdir(top)
    os.unlink(os.path.join(top, "key"))
    os.rmdir(top)
    with raises(errno.ENOENT):
        os.stat(top)


def test_errors_of_the_wrong_kind_of_thing(fs):
    directory, key = os.path.join(fs, "directory"), os.path.join(fs, "key")
    os.mkdir(directory)
    put(key, b"")
    with raises(errno.EISDIR):
        os.open(directory, os.O_WRONLY)
    with raises(errno.EISDIR):
        os.unlink(directory)
    with raises(errno.ENOTDIR):
        os.rmdir(key)
    with raises(errno.ENOTDIR):
        os.stat(os.path.join(key, "below"))
    with raises(errno.ENOTDIR):
        os.open(key, os.O_RDONLY | os.O_DIRECTORY)
    with raises(errno.EEXIST):
        os.mkdir(key)
    with raises(errno.EEXIST):
        os.open(key, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with raises(errno.ENOENT):
        os.mkdir(os.path.join(fs, "missing", "below"))
    with raises(errno.EINVAL):
        os.rename(directory, os.path.join(directory, "below"))


def test_o_trunc_empties_and_o_excl_makes(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    assert os.write(fd, b"abc") == 3
    assert os.pread(fd, 10, 0) == b"abc"
    os.close(fd)
    fd = os.open(path, os.O_TRUNC | os.O_RDWR)
    assert os.fstat(fd).st_size == 0
    assert os.pread(fd, 10, 0) == b""
    os.close(fd)
    assert get(path) == b""


def test_what_is_being_written_is_seen_by_others_at_once(fs):
    path = os.path.join(fs, "key")
    writer = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(writer, b"first")
    reader = os.open(path, os.O_RDONLY)
    assert os.read(reader, 100) == b"first"
    os.write(writer, b" second")
    assert os.read(reader, 100) == b" second"
    assert os.stat(path).st_size == 12
    os.close(writer)
    os.close(reader)


NAMES = [
    pytest.param(b"x", id="one byte"),
    pytest.param(b"n" * 255, id="255 bytes"),
    pytest.param(b" leading and trailing ", id="spaces"),
    pytest.param(b"line\nbreak\ttab", id="control characters"),
    pytest.param(b"\xff\xfe\x80", id="not UTF-8"),
    pytest.param("größe-測試-😀".encode(), id="UTF-8 of several lengths"),
    pytest.param(b"-rf", id="looks like an option"),
    pytest.param(b"...", id="three dots"),
    pytest.param(b"a\\b'c\"d$e`f*g?h[i", id="shell characters"),
    pytest.param(bytes(b for b in range(1, 256) if b != ord("/")), id="every byte a name may hold"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of(fs, name):
    path = os.path.join(os.fsencode(fs), name)
    put(path, b"value")
    assert names(fs) == [name]
    assert get(path) == b"value"
    os.unlink(path)
    os.mkdir(path)
    os.rename(path, path[:-1] + b"~")
    os.rmdir(path[:-1] + b"~")
    assert names(fs) == []


def test_names_over_255_bytes_are_too_long_everywhere(fs):
    path, other = os.path.join(fs, "n" * 256), os.path.join(fs, "key")
    put(other, b"")
    for call in (lambda: os.stat(path), lambda: os.open(path, os.O_CREAT | os.O_WRONLY), lambda: os.mkdir(path),
                 lambda: os.symlink("x", path), lambda: os.link(other, path), lambda: os.rename(other, path),
                 lambda: os.mkfifo(path), lambda: os.unlink(path), lambda: os.rmdir(path)):
        with raises(errno.ENAMETOOLONG):
            call()
    assert names(fs) == [b"key"]


@pytest.mark.daemon
@pytest.mark.parametrize("name", [pytest.param(".stats", id="the root's .stats"),
                                  pytest.param(".larder", id="the root's .larder"),
                                  pytest.param("directory/.stats", id="a directory's .stats")])
def test_reserved_is(fs, name):
    """A reserved name cannot be made, replaced, moved or removed; the kernel itself may know it as existing."""
    reserved, other, folder = os.path.join(fs, name), os.path.join(fs, "key"), os.path.join(fs, "folder")
    os.mkdir(os.path.join(fs, "directory"))
    os.mkdir(folder)
    put(other, b"")
    making = [lambda: os.mkdir(reserved), lambda: os.mkfifo(reserved), lambda: os.symlink("x", reserved),
              lambda: os.link(other, reserved), lambda: os.open(reserved, os.O_CREAT | os.O_EXCL | os.O_WRONLY)]
    for call in making:
        with raises(errno.EPERM, errno.EEXIST):
            call()
    moving = [lambda: os.rename(folder if name == ".larder" else other, reserved),
              lambda: os.rename(reserved, os.path.join(fs, "moved"))]
    removing = [lambda: os.rmdir(reserved) if name == ".larder" else os.unlink(reserved)]
    for call in moving + removing:
        with raises(errno.EPERM):
            call()
    assert names(fs) == [b"directory", b"folder", b"key"]


@pytest.mark.daemon
def test_dot_larder_below_the_root_is_an_ordinary_name(fs):
    os.makedirs(os.path.join(fs, "directory", ".larder"))
    put(os.path.join(fs, "directory", ".larder", "key"), b"x")
    assert names(os.path.join(fs, "directory")) == [b".larder"]


@pytest.mark.daemon
def test_nothing_can_be_put_into_dot_larder(fs):
    for call in (lambda: os.mkdir(os.path.join(fs, ".larder", "x")),
                 lambda: os.open(os.path.join(fs, ".larder", "x"), os.O_CREAT | os.O_WRONLY),
                 lambda: os.unlink(os.path.join(fs, ".larder", "config"))):
        with raises(errno.EPERM, errno.EACCES, errno.EROFS):
            call()


@pytest.mark.daemon
def test_tools_do_not_see_the_virtual_names(fs, site):
    """ls -a, du, find, cp -a, rm -rf mnt/* see keys only."""
    os.mkdir(os.path.join(fs, "directory"))
    put(os.path.join(fs, "directory", "key"), b"x")
    assert site.run_ok(["ls", "-A", fs]).stdout == "directory\n"
    assert site.run_ok(["find", ".", "-mindepth", "1"], cwd=fs).stdout == "./directory\n./directory/key\n"
    site.run_ok(["sh", "-c", "rm -rf ./* ./.[!.]*"], cwd=fs)
    assert os.listdir(fs) == []


def test_5000_keys_in_a_directory(fs):
    wanted = sorted(b"key-%05d" % i for i in range(5000))
    for name in wanted:
        put(os.path.join(os.fsencode(fs), name), name)
    assert names(fs) == wanted
    for name in wanted[::97]:
        assert get(os.path.join(os.fsencode(fs), name)) == name
    for name in wanted[::2]:
        os.unlink(os.path.join(os.fsencode(fs), name))
    assert names(fs) == wanted[1::2]


def test_a_tree_is_removed_by_rm(fs, site):
    for i in range(10):
        os.makedirs(os.path.join(fs, "tree", str(i), "deep", "er"))
        for j in range(20):
            put(os.path.join(fs, "tree", str(i), "deep", str(j)), random_bytes(100, j))
    site.run_ok(["rm", "-rf", os.path.join(fs, "tree")])
    assert os.listdir(fs) == []


# Attributes

def test_modes_of_new_things_obey_the_umask(fs):
    before = os.umask(0o027)
    try:
        os.close(os.open(os.path.join(fs, "key"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(os.path.join(fs, "directory"), 0o777)
        os.mkfifo(os.path.join(fs, "fifo"), 0o666)
    finally:
        os.umask(before)
    for name, mode in (("key", 0o640), ("directory", 0o750), ("fifo", 0o640)):
        assert stat.S_IMODE(os.stat(os.path.join(fs, name)).st_mode) == mode


def test_chmod_keeps_every_bit(fs):
    path = os.path.join(fs, "key")
    put(path, b"")
    for mode in (0o000, 0o7777, 0o4711, 0o2755, 0o1777, 0o644):
        os.chmod(path, mode)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_chown_sets_owner_and_group_apart(fs):
    path = os.path.join(fs, "key")
    put(path, b"")
    os.chown(path, 1234, -1)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1234, 0)
    os.chown(path, -1, 2345)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1234, 2345)
    os.chown(path, 4294967294, 4294967294)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (4294967294, 4294967294)


TIMES = [
    pytest.param((1, 1), (2, 999_999_999), id="single nanoseconds"),
    pytest.param((0, 0), (0, 0), id="the epoch"),
    pytest.param((-1, 500_000_000), (-86400, 1), id="before 1970"),
    pytest.param((4294967296, 7), (7000000000, 123456789), id="beyond 32 bits"),
]


@pytest.mark.parametrize("atime, mtime", TIMES)
def test_utimensat_keeps(fs, atime, mtime):
    for kind in ("file", "directory", "symlink"):
        path = os.path.join(fs, kind)
        if kind == "file":
            put(path, b"")
        elif kind == "directory":
            os.mkdir(path)
        else:
            os.symlink("nowhere", path)
        sysx.utimensat(path, atime, mtime, follow=False)
        st = os.lstat(path)
        assert st.st_atime_ns == atime[0] * 10**9 + atime[1]
        assert st.st_mtime_ns == mtime[0] * 10**9 + mtime[1]


def test_utimensat_now_and_omit(fs):
    path = os.path.join(fs, "key")
    put(path, b"")
    sysx.utimensat(path, (1000, 1), (2000, 2))
    sysx.utimensat(path, (0, sysx.UTIME_OMIT), (3000, 3))
    st = os.stat(path)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1000 * 10**9 + 1, 3000 * 10**9 + 3)
    before = time.time_ns()
    sysx.utimensat(path, (0, sysx.UTIME_NOW), (0, sysx.UTIME_OMIT))
    st = os.stat(path)
    assert before - 10**8 <= st.st_atime_ns <= time.time_ns() + 10**8
    assert st.st_mtime_ns == 3000 * 10**9 + 3
    assert st.st_ctime_ns >= before - 10**8


def changed_times(path, action):
    """Names of the times of path that action moves from long ago to now."""
    sysx.utimensat(path, (1000, 0), (1000, 0), follow=False)
    before = os.lstat(path)
    action()
    after = os.lstat(path)
    return {name for name in ("mtime", "ctime")
            if getattr(after, f"st_{name}_ns") != getattr(before, f"st_{name}_ns")}


def test_writing_and_truncating_move_mtime_and_ctime(fs):
    path = os.path.join(fs, "key")
    put(path, b"value")
    fd = os.open(path, os.O_RDWR)
    assert changed_times(path, lambda: os.write(fd, b"x")) == {"mtime", "ctime"}
    assert changed_times(path, lambda: os.ftruncate(fd, 2)) == {"mtime", "ctime"}
    os.close(fd)
    assert changed_times(path, lambda: os.truncate(path, 1)) == {"mtime", "ctime"}


def test_chmod_chown_and_link_move_only_ctime(fs):
    path = os.path.join(fs, "key")
    put(path, b"value")
    assert changed_times(path, lambda: os.chmod(path, 0o600)) == {"ctime"}
    assert changed_times(path, lambda: os.chown(path, 5, 5)) == {"ctime"}
    assert changed_times(path, lambda: os.link(path, path + "2")) == {"ctime"}
    assert changed_times(path, lambda: os.unlink(path + "2")) == {"ctime"}
    assert changed_times(path, lambda: os.setxattr(path, "user.a", b"b")) == {"ctime"}


def test_names_that_come_and_go_move_the_times_of_their_directory(fs):
    top = os.path.join(fs, "directory")
    os.mkdir(top)
    path = os.path.join(top, "key")
    for action in (lambda: put(path, b""), lambda: os.rename(path, path + "2"), lambda: os.unlink(path + "2"),
                   lambda: os.mkdir(path), lambda: os.rmdir(path), lambda: os.symlink("x", path)):
        assert changed_times(top, action) == {"mtime", "ctime"}


def test_set_times_survive_the_close_of_a_writer(fs):
    """cp -p and tar set the times before they close the file they wrote."""
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"value")
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    os.fchmod(fd, 0o640)
    os.close(fd)
    st = os.stat(path)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert stat.S_IMODE(st.st_mode) == 0o640


def test_an_inode_number_is_stable_and_its_own(fs):
    numbers = set()
    for i in range(50):
        path = os.path.join(fs, str(i))
        put(path, b"")
        numbers.add(os.stat(path).st_ino)
    assert len(numbers) == 50
    path = os.path.join(fs, "0")
    number = os.stat(path).st_ino
    put(path, b"changed in place")
    os.rename(path, path + "moved")
    assert os.stat(path + "moved").st_ino == number


def test_st_blocks_tell_what_a_value_takes(fs):
    """An empty file takes nothing, a random one its size, a compressible one no more than that."""
    put(os.path.join(fs, "empty"), b"")
    assert os.stat(os.path.join(fs, "empty")).st_blocks == 0
    for size in (10_000, 1 << 20):
        put(os.path.join(fs, "random"), random_bytes(size))
        put(os.path.join(fs, "text"), text_bytes(size))
        taken = os.stat(os.path.join(fs, "random")).st_blocks * 512
        assert size <= taken <= size + size // 50 + 8192
        assert 0 < os.stat(os.path.join(fs, "text")).st_blocks * 512 <= taken


def test_statfs_names_limits_and_space(fs):
    st = os.statvfs(fs)
    assert st.f_namemax == 255
    assert st.f_bsize > 0 and st.f_frsize > 0
    assert 0 < st.f_bavail <= st.f_bfree <= st.f_blocks


def test_sync_of_everything(fs):
    put(os.path.join(fs, "key"), b"value")
    fd = os.open(fs, os.O_RDONLY)
    try:
        os.fsync(fd)
        sysx.syncfs(fd)
    finally:
        os.close(fd)
    assert get(os.path.join(fs, "key")) == b"value"


def test_programs_run_from_the_mount(fs):
    path = os.path.join(fs, "script")
    put(path, b"#!/bin/sh\necho it ran\n")
    os.chmod(path, 0o755)
    assert subprocess.run([path], capture_output=True, check=True).stdout == b"it ran\n"
    with open("/bin/true", "rb") as f:
        put(os.path.join(fs, "binary"), f.read())
    os.chmod(os.path.join(fs, "binary"), 0o755)
    subprocess.run([os.path.join(fs, "binary")], check=True)
