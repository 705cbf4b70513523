# SPDX-License-Identifier: BSD-2-Clause
"""Goal: under allow_other several users get exactly what owners, groups and modes give them, and no more.
Method: children with other uids and gids act on a mount of root's; results are those of a local file system."""

import errno
import os
import stat

import pytest

from harness.errors import raises
from harness.procs import run_child
from harness.values import get, put

ANN, BOB, STAFF = 41001, 41002, 41100


@pytest.fixture
def shared(fs):
    """A directory all may write to, holding Ann's key."""
    path = os.path.join(fs, "shared")
    os.mkdir(path)
    os.chmod(path, 0o777)
    run_child(put, os.path.join(path, "ann"), b"by ann", user=ANN)
    return path


def test_what_a_user_makes_is_the_users(shared):
    def make():
        put(os.path.join(shared, "file"), b"")
        os.mkdir(os.path.join(shared, "directory"))
        os.symlink("x", os.path.join(shared, "link"))
        os.mkfifo(os.path.join(shared, "fifo"))
    run_child(make, user=BOB, group=STAFF)
    for name in ("file", "directory", "link", "fifo"):
        st = os.lstat(os.path.join(shared, name))
        assert (st.st_uid, st.st_gid) == (BOB, STAFF)


def test_modes_decide_who_reads_and_writes(shared):
    path = os.path.join(shared, "ann")
    for mode, bob_reads, bob_writes in ((0o600, False, False), (0o604, True, False), (0o602, False, True),
                                        (0o666, True, True)):
        os.chmod(path, mode)
        assert run_child(os.access, path, os.R_OK, user=BOB) == bob_reads
        assert run_child(os.access, path, os.W_OK, user=BOB) == bob_writes
        if bob_reads:
            assert run_child(get, path, user=BOB) == b"by ann"
        else:
            with raises(errno.EACCES):
                run_child(get, path, user=BOB)
        if not bob_writes:
            with raises(errno.EACCES):
                run_child(os.open, path, os.O_WRONLY, user=BOB)


def test_supplementary_groups_count(shared):
    path = os.path.join(shared, "ann")
    os.chown(path, ANN, STAFF)
    os.chmod(path, 0o640)
    assert run_child(get, path, user=BOB, groups=[STAFF]) == b"by ann"
    with raises(errno.EACCES):
        run_child(get, path, user=BOB)


def test_directories_need_search_and_write_permission(shared):
    def make():
        os.mkdir(os.path.join(shared, "private"), 0o700)
        put(os.path.join(shared, "private", "key"), b"x")
    run_child(make, user=ANN)
    with raises(errno.EACCES):
        run_child(os.stat, os.path.join(shared, "private", "key"), user=BOB)
    with raises(errno.EACCES):
        run_child(os.listdir, os.path.join(shared, "private"), user=BOB)
    os.chmod(os.path.join(shared, "private"), 0o711)
    assert run_child(get, os.path.join(shared, "private", "key"), user=BOB) == b"x"
    for call in (lambda: os.unlink(os.path.join(shared, "private", "key")),
                 lambda: os.mkdir(os.path.join(shared, "private", "new")),
                 lambda: os.rename(os.path.join(shared, "private", "key"), os.path.join(shared, "key"))):
        with raises(errno.EACCES):
            run_child(call, user=BOB)


def test_only_the_owner_changes_modes_owners_and_times(shared):
    path = os.path.join(shared, "ann")
    os.chmod(path, 0o666)
    for call in (lambda: os.chmod(path, 0o777), lambda: os.chown(path, BOB, -1), lambda: os.chown(path, -1, BOB),
                 lambda: os.utime(path, (1, 1))):
        with raises(errno.EPERM):
            run_child(call, user=BOB)
    run_child(os.utime, path, None, user=BOB)  # to now: allowed to who may write
    run_child(os.chmod, path, 0o600, user=ANN)
    with raises(errno.EPERM):
        run_child(os.chown, path, BOB, -1, user=ANN)
    with raises(errno.EPERM):
        run_child(os.chown, path, -1, STAFF, user=ANN)
    run_child(os.chown, path, -1, STAFF, user=ANN, groups=[STAFF])
    assert os.stat(path).st_gid == STAFF


def test_a_sticky_directory_protects_names_from_others(shared):
    os.chmod(shared, 0o1777)
    path = os.path.join(shared, "ann")
    os.chmod(path, 0o666)
    run_child(put, os.path.join(shared, "bob"), b"", user=BOB)
    for call in (lambda: os.unlink(path), lambda: os.rename(path, path + "2"),
                 lambda: os.rename(os.path.join(shared, "bob"), path)):
        with raises(errno.EPERM):
            run_child(call, user=BOB)
    run_child(put, path, b"content is not protected", user=BOB)
    run_child(os.rename, path, path + "2", user=ANN)
    run_child(os.unlink, path + "2", user=ANN)


def test_a_setgid_directory_gives_its_group(shared):
    os.chown(shared, 0, STAFF)
    os.chmod(shared, 0o2777)

    def make():
        put(os.path.join(shared, "file"), b"")
        os.mkdir(os.path.join(shared, "directory"))
        os.symlink("x", os.path.join(shared, "link"))
    run_child(make, user=BOB)
    for name in ("file", "directory", "link"):
        assert os.lstat(os.path.join(shared, name)).st_gid == STAFF
    assert os.stat(os.path.join(shared, "directory")).st_mode & stat.S_ISGID
    assert not os.stat(os.path.join(shared, "file")).st_mode & stat.S_ISGID


# setuid and setgid bits

def write_one(path):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"X", 0)
    os.close(fd)


CHANGES = [
    pytest.param(write_one, id="writing"),
    pytest.param(lambda path: os.truncate(path, 1), id="truncating"),
    pytest.param(lambda path: put(path, b""), id="opening with truncation"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_setuid_and_setgid_bits_go_when_another_user_is(shared, change):
    path = os.path.join(shared, "ann")
    put(path, b"value")
    os.chmod(path, 0o6777)
    run_child(change, path, user=BOB)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777


@pytest.mark.parametrize("change", CHANGES)
def test_setuid_bits_stay_when_root_is(shared, change):
    path = os.path.join(shared, "ann")
    put(path, b"value")
    os.chmod(path, 0o6777)
    change(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o6777


def test_chown_clears_setuid_and_setgid(shared):
    path = os.path.join(shared, "ann")
    os.chown(path, ANN, STAFF)
    os.chmod(path, 0o6755)
    run_child(os.chown, path, -1, ANN, user=ANN, groups=[STAFF])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_chown_clears_setuid_also_for_root_and_of_all_but_directories(shared):
    os.mkfifo(os.path.join(shared, "fifo"))
    os.mkdir(os.path.join(shared, "directory"))
    for name, wanted in (("ann", 0o755), ("fifo", 0o755), ("directory", 0o6755)):
        os.chmod(os.path.join(shared, name), 0o6755)
        os.chown(os.path.join(shared, name), BOB, BOB)
        assert stat.S_IMODE(os.stat(os.path.join(shared, name)).st_mode) == wanted, name


def test_setgid_is_refused_to_who_is_not_in_the_group(shared):
    path = os.path.join(shared, "ann")
    os.chown(path, ANN, STAFF)
    run_child(os.chmod, path, 0o2755, user=ANN)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    run_child(os.chmod, path, 0o2755, user=ANN, groups=[STAFF])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o2755


def test_xattrs_need_the_permission_of_the_bytes(shared):
    path = os.path.join(shared, "ann")
    os.chmod(path, 0o644)
    run_child(os.setxattr, path, "user.a", b"1", user=ANN)
    assert run_child(os.getxattr, path, "user.a", user=BOB) == b"1"
    with raises(errno.EACCES):
        run_child(os.setxattr, path, "user.a", b"2", user=BOB)
    os.chmod(path, 0o600)
    with raises(errno.EACCES):
        run_child(os.getxattr, path, "user.a", user=BOB)


@pytest.mark.daemon
def test_policies_need_the_permission_of_the_bytes(shared):
    path = os.path.join(shared, "ann")
    os.chmod(path, 0o644)
    run_child(os.setxattr, path, "user.larder.ttl", b"1h", user=ANN)
    with raises(errno.EACCES):
        run_child(os.setxattr, path, "user.larder.ttl", b"1s", user=BOB)
    assert os.getxattr(path, "user.larder.ttl") == b"1h"


@pytest.mark.daemon
def test_without_allow_other_other_users_stay_out(mount):
    m = mount()
    put(m.path("key"), b"x")
    os.chmod(m.path("key"), 0o666)
    with raises(errno.EACCES):
        run_child(get, m.path("key"), user=BOB)
