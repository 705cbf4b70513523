# SPDX-License-Identifier: BSD-2-Clause
"""Goal: a listing gives every entry that stayed exactly once, whatever comes and goes, and positions stay valid.
Method: opendir, readdir, telldir and seekdir of libc on directories that other processes change meanwhile."""

import os
import random
import stat

from harness.procs import Child, Stop
from harness.sysx import Directory
from harness.values import put


def fill(directory, count, prefix="key"):
    wanted = []
    for i in range(count):
        put(os.path.join(directory, f"{prefix}-{i:05d}"), b"")
        wanted.append(f"{prefix}-{i:05d}".encode())
    return wanted


def keys(found):
    return [name for name in found if name not in (b".", b"..")]


def test_dots_come_with_every_listing(fs):
    os.mkdir(os.path.join(fs, "directory"))
    for path in (fs, os.path.join(fs, "directory")):
        with Directory(path) as d:
            found = d.read_all()
        assert found.count(b".") == found.count(b"..") == 1


def test_types_and_inodes_agree_with_stat(fs):
    put(os.path.join(fs, "file"), b"")
    os.mkdir(os.path.join(fs, "directory"))
    os.symlink("x", os.path.join(fs, "link"))
    os.mkfifo(os.path.join(fs, "fifo"))
    with os.scandir(fs) as entries:
        for entry in entries:
            st = os.lstat(entry.path)
            assert entry.inode() == st.st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
            assert entry.is_file(follow_symlinks=False) == stat.S_ISREG(st.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)


def test_every_position_can_be_returned_to(fs):
    fill(fs, 500)
    with Directory(fs) as d:
        order, positions = [], []
        while True:
            positions.append(d.tell())
            name = d.read()
            if name is None:
                break
            order.append(name)
        rng = random.Random(1)
        for _ in range(200):
            i = rng.randrange(len(order))
            d.seek(positions[i])
            assert d.read() == order[i]
        d.seek(positions[-1])
        assert d.read() is None
        d.rewind()
        assert d.read_all() == order


def test_positions_survive_changes_around_them(fs):
    fill(fs, 400)
    with Directory(fs) as d:
        order, positions = [], []
        while (name := d.read()) is not None:
            order.append(name)
            positions.append(d.tell())
        gone = set(order[50:350:2]) - {b".", b".."}
        for name in gone:
            os.unlink(os.path.join(os.fsencode(fs), name))
        fill(fs, 200, "new")
        for i in (0, 49, 100, 200, 349, 398):
            d.seek(positions[i])
            rest = d.read_all()
            assert [name for name in rest if not name.startswith(b"new")] == [
                name for name in order[i + 1:] if name not in gone]
            assert len(set(rest)) == len(rest)


def test_rewinddir_shows_what_is_new(fs):
    fill(fs, 10)
    with Directory(fs) as d:
        assert len(keys(d.read_all())) == 10
        put(os.path.join(fs, "later"), b"")
        d.rewind()
        assert b"later" in d.read_all()


def test_removing_while_reading_finds_all(fs):
    """What rm -r does: every entry read is removed at once; nothing is skipped."""
    wanted = set(fill(fs, 3000))
    seen = set()
    with Directory(fs) as d:
        while (name := d.read()) is not None:
            if name not in (b".", b".."):
                seen.add(name)
                os.unlink(os.path.join(os.fsencode(fs), name))
    assert seen == wanted
    assert os.listdir(fs) == []


def come_and_go(directory, seed, stop):
    rng = random.Random(seed)
    here = []
    while not stop.is_set():
        if here and rng.random() < 0.5:
            os.unlink(os.path.join(directory, here.pop(rng.randrange(len(here)))))
        else:
            name = f"passing-{seed}-{rng.randrange(10**9)}"
            put(os.path.join(directory, name), b"")
            here.append(name)


def test_entries_that_stay_are_listed_once_while_others_come_and_go(fs):
    staying = sorted(fill(fs, 1000))
    stop = Stop()
    children = [Child(come_and_go, fs, seed, stop) for seed in range(2)]
    try:
        for _ in range(30):
            with Directory(fs) as d:
                found = d.read_all()
            assert sorted(name for name in found if name.startswith(b"key-")) == staying
            assert len(set(found)) == len(found)
    finally:
        stop.set()
        for child in children:
            child.result()
        stop.close()


def rename_around(directory, stop):
    turn = 0
    while not stop.is_set():
        for i in range(100):
            os.rename(os.path.join(directory, f"moving-{i}-{turn}"), os.path.join(directory, f"moving-{i}-{turn + 1}"))
        turn += 1


def test_listing_while_names_change_never_shows_a_staying_name_twice(fs):
    staying = sorted(fill(fs, 300))
    for i in range(100):
        put(os.path.join(fs, f"moving-{i}-0"), b"")
    stop = Stop()
    child = Child(rename_around, fs, stop)
    try:
        for _ in range(30):
            with Directory(fs) as d:
                found = [name for name in d.read_all() if name.startswith(b"key-")]
            assert sorted(found) == staying
    finally:
        stop.set()
        child.result()
        stop.close()


def test_a_listing_and_stat_of_all_agree_after_changes(fs):
    """readdirplus fills the kernel's caches: they must show later changes all the same."""
    fill(fs, 200)
    for entry in os.scandir(fs):
        entry.stat()
    for i in range(0, 200, 2):
        put(os.path.join(fs, f"key-{i:05d}"), b"x" * (i + 1))
    for entry in os.scandir(fs):
        i = int(entry.name[4:])
        assert entry.stat().st_size == (i + 1 if i % 2 == 0 else 0)


def test_two_streams_of_one_directory_are_independent(fs):
    fill(fs, 100)
    with Directory(fs) as one, Directory(fs) as two:
        first = one.read()
        for _ in range(50):
            one.read()
        assert two.read() == first
        assert len(keys(two.read_all())) >= 98
