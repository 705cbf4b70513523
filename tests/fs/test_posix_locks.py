# SPDX-License-Identifier: BSD-2-Clause
"""Goal: flock(2) and fcntl(2) locks exclude processes from each other on the mount and end with their holder.
Method: two real processes contend, the test asks the one and tells the other through pipes."""

import errno
import fcntl
import os
import struct

import pytest

from harness.errors import raises
from harness.procs import Child, Stop, run_child
from harness.values import get, put


@pytest.fixture
def key(fs):
    path = os.path.join(fs, "key")
    put(path, b"x" * 1000)
    return path


def try_flock(path, kind):
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, kind | fcntl.LOCK_NB)


def try_fcntl(path, kind, start=0, length=0):
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)


def hold(lock, path, kind, held, release, *extra):
    """Takes the lock, says so, keeps it until told."""
    fd = os.open(path, os.O_RDWR)
    if lock == "flock":
        fcntl.flock(fd, kind)
    else:
        fcntl.lockf(fd, kind, *extra)
    held.set()
    release.wait(60)


class Holder:
    """A process that holds a lock while the block runs."""

    def __init__(self, lock, path, kind, *extra):
        self.args = (lock, path, kind)
        self.extra = extra

    def __enter__(self):
        self.held, self.release = Stop(), Stop()
        self.child = Child(hold, *self.args, self.held, self.release, *self.extra)
        assert self.held.wait(20)
        return self

    def __exit__(self, *_):
        self.release.set()
        self.child.result()
        self.held.close()
        self.release.close()


def test_an_exclusive_flock_keeps_all_others_out(key):
    with Holder("flock", key, fcntl.LOCK_EX):
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            with raises(errno.EAGAIN):
                run_child(try_flock, key, kind)
    run_child(try_flock, key, fcntl.LOCK_EX)


def test_shared_flocks_go_together(key):
    with Holder("flock", key, fcntl.LOCK_SH):
        run_child(try_flock, key, fcntl.LOCK_SH)
        with raises(errno.EAGAIN):
            run_child(try_flock, key, fcntl.LOCK_EX)


def test_an_exclusive_fcntl_lock_keeps_all_others_out(key):
    with Holder("fcntl", key, fcntl.LOCK_EX):
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            with raises(errno.EAGAIN, errno.EACCES):
                run_child(try_fcntl, key, kind)
    run_child(try_fcntl, key, fcntl.LOCK_EX)


def test_fcntl_locks_cover_ranges(key):
    with Holder("fcntl", key, fcntl.LOCK_EX, 100, 200):
        run_child(try_fcntl, key, fcntl.LOCK_EX, 0, 200)
        run_child(try_fcntl, key, fcntl.LOCK_EX, 300, 0)
        for start, length in ((199, 2), (250, 1), (299, 100)):
            with raises(errno.EAGAIN, errno.EACCES):
                run_child(try_fcntl, key, fcntl.LOCK_EX, start, length)


def test_f_getlk_names_the_holder(key):
    with Holder("fcntl", key, fcntl.LOCK_EX, 100, 200) as holder:
        fd = os.open(key, os.O_RDWR)
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        kind, _, start, length, pid = struct.unpack("hhqqi4x", answer)
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 200, 100, holder.child.pid)
        os.close(fd)


def test_a_lock_ends_with_its_holder(key):
    for lock, attempt in (("flock", try_flock), ("fcntl", try_fcntl)):
        held, release = Stop(), Stop()
        child = Child(hold, lock, key, fcntl.LOCK_EX, held, release)
        assert held.wait(20)
        child.kill()
        run_child(attempt, key, fcntl.LOCK_EX)


def wait_for_lock(lock, path, waiting):
    fd = os.open(path, os.O_RDWR)
    waiting.set()
    if lock == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    else:
        fcntl.lockf(fd, fcntl.LOCK_EX)
    os.pwrite(fd, b"got it", 0)


@pytest.mark.parametrize("lock", [pytest.param("flock", id="an flock"), pytest.param("fcntl", id="an fcntl lock")])
def test_who_waits_for(key, lock):
    """A blocked request is granted when the holder lets go, and other requests are served meanwhile."""
    waiting = Stop()
    with Holder(lock, key, fcntl.LOCK_EX):
        child = Child(wait_for_lock, lock, key, waiting)
        assert waiting.wait(20)
        for i in range(50):
            put(key + str(i), b"served meanwhile")
        assert get(key)[:6] == b"xxxxxx"
    child.result()
    waiting.close()
    assert get(key)[:6] == b"got it"


def count_up(path, times):
    for _ in range(times):
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 100, 0))
        os.pwrite(fd, b"%d" % (value + 1), 0)
        os.close(fd)


def test_a_counter_under_locks_loses_nothing(fs):
    path = os.path.join(fs, "counter")
    put(path, b"0")
    children = [Child(count_up, path, 200) for _ in range(4)]
    for child in children:
        child.result()
    assert get(path) == b"800"
