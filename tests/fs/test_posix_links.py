# SPDX-License-Identifier: BSD-2-Clause
"""Goal: hard links, symbolic links, FIFOs, sockets, devices and files without a name behave as on a local disk.
Method: makes each through the mount, follows it, renames and removes it, with the errors POSIX names."""

import errno
import os
import socket
import stat

import pytest

from harness import sysx
from harness.errors import raises
from harness.procs import Child, run_child
from harness.values import get, names, put


def test_hard_links_are_one_file(fs):
    first, second = os.path.join(fs, "first"), os.path.join(fs, "second")
    put(first, b"value")
    os.link(first, second)
    assert os.stat(first).st_ino == os.stat(second).st_ino
    assert os.stat(first).st_nlink == os.stat(second).st_nlink == 2
    with open(second, "r+b") as f:
        f.write(b"VAL")
    assert get(first) == b"VALue"
    os.chmod(first, 0o600)
    assert stat.S_IMODE(os.stat(second).st_mode) == 0o600
    os.unlink(first)
    assert os.stat(second).st_nlink == 1
    assert get(second) == b"VALue"


def test_hard_links_cross_directories(fs):
    os.mkdir(os.path.join(fs, "directory"))
    path = os.path.join(fs, "key")
    put(path, b"x")
    links = [os.path.join(fs, "directory", str(i)) for i in range(100)]
    for link in links:
        os.link(path, link)
    assert os.stat(path).st_nlink == 101
    os.unlink(path)
    for link in links[1:]:
        os.unlink(link)
    assert os.stat(links[0]).st_nlink == 1
    assert get(links[0]) == b"x"


def test_a_file_being_written_can_be_linked(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"before ")
    os.link(path, path + "2")
    os.write(fd, b"after")
    os.close(fd)
    assert get(path + "2") == b"before after"
    assert os.stat(path + "2").st_nlink == 2


def test_links_that_cannot_be(fs):
    directory, key = os.path.join(fs, "directory"), os.path.join(fs, "key")
    os.mkdir(directory)
    put(key, b"")
    with raises(errno.EPERM):
        os.link(directory, os.path.join(fs, "other"))
    with raises(errno.EEXIST):
        os.link(key, directory)
    with raises(errno.ENOENT):
        os.link(os.path.join(fs, "missing"), os.path.join(fs, "other"))


@pytest.mark.parametrize("length", [pytest.param(1, id="a target of one byte"), pytest.param(100, id="of 100 bytes"),
                                    pytest.param(4095, id="of 4095 bytes, the longest")])
def test_a_symlink_with(fs, length):
    path = os.path.join(fs, "link")
    target = ("d/" * length)[:length - 1] + "t"
    os.symlink(target, path)
    st = os.lstat(path)
    assert stat.S_ISLNK(st.st_mode)
    assert st.st_size == length
    assert os.readlink(path) == target


def test_symlinks_are_followed_or_not(fs):
    key, link = os.path.join(fs, "key"), os.path.join(fs, "link")
    put(key, b"value")
    os.symlink("key", link)
    assert get(link) == b"value"
    put(link, b"through the link")
    assert get(key) == b"through the link"
    with raises(errno.ELOOP):
        os.open(link, os.O_RDONLY | os.O_NOFOLLOW)
    os.unlink(link)
    assert names(fs) == [b"key"]


def test_a_dangling_symlink_and_one_to_itself(fs):
    os.symlink("missing", os.path.join(fs, "dangling"))
    os.symlink("loop", os.path.join(fs, "loop"))
    with raises(errno.ENOENT):
        os.stat(os.path.join(fs, "dangling"))
    with raises(errno.ELOOP):
        os.stat(os.path.join(fs, "loop"))
    put(os.path.join(fs, "dangling"), b"made through it")
    assert get(os.path.join(fs, "missing")) == b"made through it"


def test_a_symlink_has_an_owner_of_its_own(fs):
    os.symlink("missing", os.path.join(fs, "link"))
    os.lchown(os.path.join(fs, "link"), 77, 88)
    st = os.lstat(os.path.join(fs, "link"))
    assert (st.st_uid, st.st_gid) == (77, 88)


def test_a_hard_link_to_a_symlink(fs):
    os.symlink("missing", os.path.join(fs, "link"))
    os.link(os.path.join(fs, "link"), os.path.join(fs, "other"), follow_symlinks=False)
    assert os.readlink(os.path.join(fs, "other")) == "missing"
    assert os.lstat(os.path.join(fs, "link")).st_nlink == 2


def test_a_fifo_carries_bytes_between_processes(fs):
    path = os.path.join(fs, "fifo")
    os.mkfifo(path, 0o600)
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    writer = Child(put, path, b"through the fifo")
    assert get(path) == b"through the fifo"
    writer.result()


def test_an_unlinked_fifo_serves_its_holders(fs):
    path = os.path.join(fs, "fifo")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    st = os.fstat(fd)
    assert stat.S_ISFIFO(st.st_mode) and st.st_nlink == 0
    os.fchmod(fd, 0o600)
    os.write(fd, b"still a pipe")
    assert os.read(fd, 100) == b"still a pipe"
    os.close(fd)


def test_an_unlinked_symlink_and_socket_serve_their_holders(fs):
    """O_PATH holds a node without opening it."""
    os.symlink("target", os.path.join(fs, "link"))
    os.mknod(os.path.join(fs, "socket"), stat.S_IFSOCK | 0o600)
    for name in ("link", "socket"):
        fd = os.open(os.path.join(fs, name), os.O_PATH | os.O_NOFOLLOW)
        os.unlink(os.path.join(fs, name))
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)


def test_a_socket_accepts_connections(fs):
    # The address must be short: the path may be longer than an address can hold.
    here = os.open(fs, os.O_RDONLY)
    try:
        address = f"/proc/self/fd/{here}/socket"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(address)
            assert stat.S_ISSOCK(os.stat(os.path.join(fs, "socket")).st_mode)
            server.listen()
            client.connect(address)
            client.sendall(b"hello")
            connection = server.accept()[0]
            assert connection.recv(10) == b"hello"
            connection.close()
    finally:
        os.close(here)


def test_device_nodes_keep_their_numbers(fs):
    os.mknod(os.path.join(fs, "char"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(os.path.join(fs, "block"), stat.S_IFBLK | 0o600, os.makedev(4095, 1048575))
    st = os.stat(os.path.join(fs, "char"))
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3)
    st = os.stat(os.path.join(fs, "block"))
    assert stat.S_ISBLK(st.st_mode) and st.st_rdev == os.makedev(4095, 1048575)


def test_mknod_makes_regular_files(fs):
    os.mknod(os.path.join(fs, "key"), stat.S_IFREG | 0o640)
    st = os.stat(os.path.join(fs, "key"))
    assert stat.S_ISREG(st.st_mode) and st.st_size == 0


# Files without a name

@pytest.fixture
def open_tmpfile(fs, lacking):
    def opened(flags=os.O_RDWR):
        try:
            return os.open(fs, os.O_TMPFILE | flags, 0o640)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
                lacking("this libfuse or kernel has no O_TMPFILE")
            raise
    return opened


def test_an_unnamed_file_can_be_given_a_name(fs, open_tmpfile):
    fd = open_tmpfile()
    assert names(fs) == []
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"value")
    sysx.link_fd(fd, os.path.join(fs, "key"))
    os.close(fd)
    assert get(os.path.join(fs, "key")) == b"value"
    assert os.stat(os.path.join(fs, "key")).st_nlink == 1


def test_an_unnamed_file_opened_exclusively_stays_unnamed(fs, open_tmpfile):
    fd = open_tmpfile(os.O_RDWR | os.O_EXCL)
    os.write(fd, b"scratch")
    assert os.pread(fd, 10, 0) == b"scratch"
    with raises(errno.ENOENT):
        sysx.link_fd(fd, os.path.join(fs, "key"))
    os.close(fd)
    assert names(fs) == []


def test_an_unlinked_file_serves_its_holders(fs):
    """Open files of this and another process read and write on; the name can be used anew."""
    path = os.path.join(fs, "key")
    put(path, b"first life")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    assert os.fstat(fd).st_nlink == 0
    put(path, b"second life")
    assert os.pread(fd, 100, 0) == b"first life"
    os.pwrite(fd, b"FIRST", 0)
    assert run_child(os.pread, fd, 100, 0) == b"FIRST life"
    os.ftruncate(fd, 5)
    assert os.fstat(fd).st_size == 5
    os.close(fd)
    assert get(path) == b"second life"


def test_a_file_replaced_by_rename_serves_its_holders(fs):
    path = os.path.join(fs, "key")
    put(path, b"old" * 100_000)
    fd = os.open(path, os.O_RDONLY)
    put(path + ".tmp", b"new")
    os.rename(path + ".tmp", path)
    assert os.pread(fd, 1 << 20, 0) == b"old" * 100_000
    assert get(path) == b"new"
    os.close(fd)


def test_a_file_never_named_again_leaves_nothing(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.unlink(path)
    os.write(fd, b"x" * 1_000_000)
    assert os.pread(fd, 4, 999_996) == b"xxxx"
    os.close(fd)
    assert names(fs) == []


def test_a_removed_directory_stays_usable_by_its_holders(fs):
    path = os.path.join(fs, "directory")
    os.mkdir(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(path)
    assert os.listdir(fd) == []
    assert os.fstat(fd).st_nlink == 0
    with raises(errno.ENOENT):
        os.open("below", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)
