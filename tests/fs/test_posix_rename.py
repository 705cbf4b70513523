# SPDX-License-Identifier: BSD-2-Clause
"""Goal: rename(2) and renameat2(2) with every flag do what the manual says, at once and completely.
Method: every pair of kinds is renamed onto another with every flag and compared with what POSIX and Linux define."""

import errno
import os
import stat

import pytest

from harness import sysx
from harness.errors import raises
from harness.procs import Child, Stop
from harness.sysx import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from harness.values import get, names, put


@pytest.fixture
def top(fs):
    """A directory holding: file, file2, directory, full (a directory with a file), link."""
    put(os.path.join(fs, "file"), b"file")
    put(os.path.join(fs, "file2"), b"file2")
    os.mkdir(os.path.join(fs, "directory"))
    os.mkdir(os.path.join(fs, "full"))
    put(os.path.join(fs, "full", "below"), b"below")
    os.symlink("file", os.path.join(fs, "link"))
    return fs


OVER = [
    ("file", "file2", None), ("file", "link", None), ("link", "file2", None), ("directory", "missing", None),
    ("full", "directory", None), ("file", "directory", errno.EISDIR), ("directory", "file", errno.ENOTDIR),
    ("directory", "full", errno.ENOTEMPTY), ("missing", "file", errno.ENOENT), ("full", "full/x", errno.EINVAL),
    ("full/below", "file", None), ("file", "full/below", None), ("link", "directory", errno.EISDIR),
]


@pytest.mark.parametrize("source, target, error", OVER, ids=[
    f"{s} to {t}: {errno.errorcode[e] if e else 'done'}".replace("/", " slash ") for s, t, e in OVER])
def test_rename(top, source, target, error):
    old, new = os.path.join(top, source), os.path.join(top, target)
    if error:
        before = sorted(os.walk(top))
        with raises(error):
            os.rename(old, new)
        assert sorted(os.walk(top)) == before
        return
    number = os.lstat(old).st_ino
    os.rename(old, new)
    assert os.lstat(new).st_ino == number
    with raises(errno.ENOENT):
        os.lstat(old)


def test_a_name_renamed_to_itself_stays(top):
    os.rename(os.path.join(top, "file"), os.path.join(top, "file"))
    assert get(os.path.join(top, "file")) == b"file"


def test_two_links_of_one_file_renamed_onto_each_other_both_stay(top):
    os.link(os.path.join(top, "file"), os.path.join(top, "same"))
    os.rename(os.path.join(top, "file"), os.path.join(top, "same"))
    assert get(os.path.join(top, "file")) == get(os.path.join(top, "same")) == b"file"


def test_a_moved_directory_takes_everything_along(top):
    os.rename(os.path.join(top, "full"), os.path.join(top, "directory", "moved"))
    assert get(os.path.join(top, "directory", "moved", "below")) == b"below"
    assert names(top) == [b"directory", b"file", b"file2", b"link"]


def test_a_file_is_committed_when_it_is_renamed_while_written(top):
    path = os.path.join(top, "written")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"first ")
    os.rename(path, os.path.join(top, "file"))
    assert get(os.path.join(top, "file")) == b"first "
    os.write(fd, b"second")
    os.close(fd)
    assert get(os.path.join(top, "file")) == b"first second"


def test_noreplace_refuses_what_is_there(top):
    for target in ("file2", "directory", "link"):
        with raises(errno.EEXIST):
            renameat2(os.path.join(top, "file"), os.path.join(top, target), RENAME_NOREPLACE)
    renameat2(os.path.join(top, "file"), os.path.join(top, "new"), RENAME_NOREPLACE)
    assert get(os.path.join(top, "new")) == b"file"
    assert get(os.path.join(top, "file2")) == b"file2"


EXCHANGES = [("file", "file2"), ("file", "directory"), ("full", "directory"), ("link", "full"), ("file", "full/below")]


@pytest.mark.parametrize("first, second", EXCHANGES,
                         ids=[f"{a} and {b}".replace("/", " slash ") for a, b in EXCHANGES])
def test_exchange_of(top, first, second):
    one, two = os.path.join(top, first), os.path.join(top, second)
    numbers = os.lstat(one).st_ino, os.lstat(two).st_ino
    links = {name: os.stat(os.path.join(top, name)).st_nlink for name in (".", "full")}
    renameat2(one, two, RENAME_EXCHANGE)
    assert (os.lstat(two).st_ino, os.lstat(one).st_ino) == numbers
    renameat2(one, two, RENAME_EXCHANGE)
    assert (os.lstat(one).st_ino, os.lstat(two).st_ino) == numbers
    assert links == {name: os.stat(os.path.join(top, name)).st_nlink for name in (".", "full")}
    assert get(os.path.join(top, "full", "below")) == b"below"


def test_exchange_of_directories_across_parents_moves_link_counts(top):
    os.makedirs(os.path.join(top, "full", "inner", "most"))
    before = os.stat(os.path.join(top, "full")).st_nlink
    renameat2(os.path.join(top, "full", "inner"), os.path.join(top, "file"), RENAME_EXCHANGE)
    assert os.stat(os.path.join(top, "full")).st_nlink == before - 1
    assert os.stat(os.path.join(top, "file", "..")).st_ino == os.stat(top).st_ino
    assert get(os.path.join(top, "full", "inner")) == b"file"


def test_exchange_that_cannot_be(top):
    with raises(errno.ENOENT):
        renameat2(os.path.join(top, "file"), os.path.join(top, "missing"), RENAME_EXCHANGE)
    with raises(errno.EINVAL):
        renameat2(os.path.join(top, "full"), os.path.join(top, "full", "below"), RENAME_EXCHANGE)
    with raises(errno.EINVAL):
        renameat2(os.path.join(top, "file"), os.path.join(top, "file2"), RENAME_EXCHANGE | RENAME_NOREPLACE)


@pytest.mark.parametrize("flags", [pytest.param(RENAME_WHITEOUT, id="alone, over a file"),
                                   pytest.param(RENAME_WHITEOUT | RENAME_NOREPLACE, id="with noreplace")])
def test_whiteout_leaves_a_device_of_number_0(top, flags):
    target = "file2" if flags == RENAME_WHITEOUT else "new"
    renameat2(os.path.join(top, "file"), os.path.join(top, target), flags)
    assert get(os.path.join(top, target)) == b"file"
    st = os.lstat(os.path.join(top, "file"))
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
    os.unlink(os.path.join(top, "file"))


def test_unknown_flags_are_invalid(top):
    with raises(errno.EINVAL):
        renameat2(os.path.join(top, "file"), os.path.join(top, "new"), 1 << 10)


def look_until(path, wanted, stop):
    """Reads path again and again; returns what it saw that is neither of the wanted values."""
    wrong = []
    while not stop.is_set():
        try:
            value = get(path)
        except FileNotFoundError:
            value = None
        if value not in wanted:
            wrong.append(value)
    return wrong


def test_a_reader_sees_the_old_or_the_new_value_never_none(top):
    """Goal: replacing by rename is atomic for readers. Method: one process replaces, another reads all the while."""
    path = os.path.join(top, "file")
    put(path, b"a" * 5000)
    wanted = {bytes([c]) * 5000 for c in b"ab"}
    stop = Stop()
    reader = Child(look_until, path, wanted, stop)
    for i in range(1000):
        put(path + ".tmp", (b"a", b"b")[i % 2] * 5000)
        os.rename(path + ".tmp", path)
    stop.set()
    assert reader.result() == []
    stop.close()


def test_exchange_is_atomic_for_readers(top):
    path, other = os.path.join(top, "file"), os.path.join(top, "file2")
    stop = Stop()
    reader = Child(look_until, path, {b"file", b"file2"}, stop)
    for _ in range(1000):
        sysx.renameat2(path, other, RENAME_EXCHANGE)
    stop.set()
    assert reader.result() == []
    stop.close()
