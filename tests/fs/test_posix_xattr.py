# SPDX-License-Identifier: BSD-2-Clause
"""Goal: ordinary user xattrs of every legal size are kept, listed, replaced and removed as xattr(7) says.
Method: sets and reads them on all kinds of nodes, at the limits and one past them."""

import errno
import os

import pytest

from harness import sysx
from harness.errors import raises
from harness.values import put, random_bytes


@pytest.fixture
def key(fs):
    path = os.path.join(fs, "key")
    put(path, b"value")
    return path


@pytest.mark.daemon
@pytest.mark.parametrize("size", [pytest.param(n, id=f"{n} bytes") for n in (0, 1, 100, 4095, 4096, 65535, 65536)])
def test_a_value_of(key, size):
    data = random_bytes(size)
    os.setxattr(key, "user.name", data)
    assert os.getxattr(key, "user.name") == data
    assert os.listxattr(key) == ["user.name"]


@pytest.mark.daemon
def test_one_byte_more_is_too_big(key):
    with raises(errno.E2BIG):
        os.setxattr(key, "user.name", bytes(65537))
    assert os.listxattr(key) == []


@pytest.mark.daemon
def test_names_up_to_255_bytes(key):
    longest = "user." + "n" * 250
    os.setxattr(key, longest, b"1")
    assert os.getxattr(key, longest) == b"1"
    with raises(errno.ERANGE):
        os.setxattr(key, longest + "n", b"1")


def test_many_attributes_of_one_file(key):
    wanted = {f"user.attribute-{i}": b"%d" % i for i in range(60)}
    for name, value in wanted.items():
        os.setxattr(key, name, value)
    assert {name: os.getxattr(key, name) for name in os.listxattr(key)} == wanted
    for name in list(wanted)[::2]:
        os.removexattr(key, name)
        del wanted[name]
    assert {name: os.getxattr(key, name) for name in os.listxattr(key)} == wanted


def test_create_and_replace_flags(key):
    with raises(errno.ENODATA):
        os.setxattr(key, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(key, "user.a", b"1", os.XATTR_CREATE)
    with raises(errno.EEXIST):
        os.setxattr(key, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(key, "user.a", b"22", os.XATTR_REPLACE)
    assert os.getxattr(key, "user.a") == b"22"


def test_what_is_not_set_is_not_there(key):
    with raises(errno.ENODATA):
        os.getxattr(key, "user.a")
    with raises(errno.ENODATA):
        os.removexattr(key, "user.a")
    assert os.listxattr(key) == []


def test_a_buffer_too_small_is_an_error(key):
    os.setxattr(key, "user.a", b"12345")
    buffer = (sysx.ctypes.c_char * 4)()
    assert sysx.libc.getxattr(os.fsencode(key), b"user.a", buffer, 4) == -1
    assert sysx.ctypes.get_errno() == errno.ERANGE
    assert sysx.libc.getxattr(os.fsencode(key), b"user.a", None, 0) == 5
    assert sysx.libc.listxattr(os.fsencode(key), buffer, 4) == -1
    assert sysx.ctypes.get_errno() == errno.ERANGE
    assert sysx.libc.listxattr(os.fsencode(key), None, 0) == len(b"user.a\0")


def test_directories_have_them_too(fs):
    os.mkdir(os.path.join(fs, "directory"))
    os.setxattr(os.path.join(fs, "directory"), "user.a", b"1")
    os.setxattr(fs, "user.root", b"2")
    assert os.listxattr(os.path.join(fs, "directory")) == ["user.a"]
    assert os.getxattr(fs, "user.root") == b"2"


def test_symlinks_and_fifos_cannot_have_user_attributes(fs):
    os.symlink("x", os.path.join(fs, "link"))
    os.mkfifo(os.path.join(fs, "fifo"))
    for name in ("link", "fifo"):
        with raises(errno.EPERM):
            os.setxattr(os.path.join(fs, name), "user.a", b"1", follow_symlinks=False)


@pytest.mark.daemon
@pytest.mark.parametrize("name", ["security.capability", "trusted.a", "system.posix_acl_access", "nonsense.a"])
def test_other_namespaces_hold_nothing(key, name):
    """None of them is stored, none confuses a program that asks: reading says there is none."""
    with raises(errno.ENODATA, errno.EOPNOTSUPP):
        os.getxattr(key, name)
    assert os.listxattr(key) == []


def test_attributes_follow_the_file_not_the_name(fs, key):
    os.setxattr(key, "user.a", b"1")
    os.link(key, key + "-link")
    os.rename(key, key + "-moved")
    assert os.getxattr(key + "-link", "user.a") == b"1"
    put(key + "-moved", b"a new value in place")
    assert os.getxattr(key + "-moved", "user.a") == b"1"


def test_attributes_of_an_open_file_by_descriptor(key):
    fd = os.open(key, os.O_RDWR)
    os.setxattr(fd, "user.a", b"1")
    os.unlink(key)
    os.setxattr(fd, "user.b", b"2")
    assert sorted(os.listxattr(fd)) == ["user.a", "user.b"]
    os.close(fd)


def test_attributes_of_a_file_still_being_written(fs):
    fd = os.open(os.path.join(fs, "new"), os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    os.setxattr(fd, "user.a", b"1")
    os.close(fd)
    assert os.getxattr(os.path.join(fs, "new"), "user.a") == b"1"
