# SPDX-License-Identifier: BSD-2-Clause
"""Goal: everything is known again after a clean stop and after SIGKILL: tree, attributes, xattrs, policies, recency.
Method: a snapshot of all that can be asked is taken through the mount before, and must be equal after the restart."""

import errno
import mmap
import os
import signal
import stat
import time

import pytest

from harness import corrupt, sysx, wait
from harness.du import disk_bytes
from harness.errors import raises
from harness.procs import Child
from harness.values import first_difference, get, names, put, random_bytes, text_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon

HOW = pytest.mark.parametrize("how", [pytest.param("stop", id="a clean stop"), pytest.param("kill", id="SIGKILL")])


def assert_same(found, wanted):
    """Two snapshots are equal; says what of which name is not."""
    assert found.keys() == wanted.keys()
    wrong = [f"{what} of {name}: {found[name].get(what)!r:.80} instead of {value!r:.80}"
             for name, entry in wanted.items() for what, value in entry.items() if found[name].get(what) != value]
    assert not wrong


def close_dead(fd):
    """close(2) of a file whose daemon is gone: the descriptor ends whatever is said about it."""
    try:
        os.close(fd)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


def snapshot(top):
    """{relative path: {what: value}}, everything that can be asked of it."""
    seen = {}
    for directory, folders, files in os.walk(os.fsencode(top)):
        for name in [b""] + folders + files:
            path = os.path.join(directory, name) if name else directory
            st = os.lstat(path)
            entry = {what: getattr(st, f"st_{what}") for what in (
                "ino", "mode", "nlink", "uid", "gid", "rdev", "atime_ns", "mtime_ns", "ctime_ns")}
            if stat.S_ISLNK(st.st_mode):
                entry["target"] = os.readlink(path)
            if not stat.S_ISDIR(st.st_mode):
                entry["size"] = st.st_size
            if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
                entry["xattrs"] = {x: os.getxattr(path, x) for x in os.listxattr(path)}
            seen[os.path.relpath(path, os.fsencode(top))] = entry
    return seen


@HOW
def test_a_tree_of_everything(mount, site, how):
    m = mount(quota="256M")
    os.makedirs(m.path("a", "b", "c"))
    for i, size in enumerate((0, 1, 5000, 300_000, 2_000_000)):
        put(m.path("a", f"random-{i}"), random_bytes(size, i))
        put(m.path("a", "b", f"text-{i}"), text_bytes(size, i))
    os.link(m.path("a", "random-2"), m.path("a", "b", "c", "hard link"))
    os.symlink("../somewhere", m.path("a", "symlink"))
    os.mkfifo(m.path("a", "fifo"), 0o600)
    os.mknod(m.path("a", "device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(m.path("a", "socket"), stat.S_IFSOCK | 0o755)
    put(os.path.join(os.fsencode(m.mnt), b"\xff\xfe not UTF-8"), b"x")
    put(m.path("n" * 255), b"long name")
    os.chmod(m.path("a", "random-1"), 0o6751)
    os.chown(m.path("a", "random-2"), 1234, 5678)
    os.chmod(m.path("a", "b"), 0o1777)
    os.setxattr(m.path("a", "random-3"), "user.large", random_bytes(60_000))
    os.setxattr(m.path("a"), "user.directory", b"")
    sysx.utimensat(m.path("a", "random-4"), (1, 234567891), (-5, 987654321))
    sysx.utimensat(m.path("a", "symlink"), (7, 8), (9, 10), follow=False)
    os.rename(m.path("a", "random-1"), m.path("a", "renamed"))
    os.unlink(m.path("a", "random-0"))
    before = snapshot(m.mnt)
    for _ in range(2):
        m.restart(how)
        assert_same(snapshot(m.mnt), before)
        for i, size in enumerate((0, 1, 5000, 300_000, 2_000_000)):
            assert first_difference(get(m.path("a", "b", f"text-{i}")), text_bytes(size, i)) == ""
        assert get(m.path("a", "b", "c", "hard link")) == random_bytes(5000, 2)
    getattr(m, how)()
    site.check(m.store)


@HOW
def test_20000_keys(mount, site, how):
    m = mount(quota="512M")
    for i in range(20_000):
        if i % 1000 == 0:
            os.mkdir(m.path(str(i // 1000)))
        put(m.path(str(i // 1000), f"key-{i}"), b"%d" % i * 10)
    for i in range(0, 20_000, 10):
        os.unlink(m.path(str(i // 1000), f"key-{i}"))
    m.restart(how)
    assert m.stats()["entries"] == 18_000
    for folder in range(20):
        wanted = sorted(b"key-%d" % i for i in range(folder * 1000, folder * 1000 + 1000) if i % 10)
        assert names(m.path(str(folder))) == wanted
    for i in range(1, 20_000, 10):
        assert get(m.path(str(i // 1000), f"key-{i}")) == b"%d" % i * 10
    getattr(m, how)()
    site.check(m.store)


@HOW
def test_policies_and_hit_counts(mount, how):
    m = mount()
    os.mkdir(m.path("directory"))
    put(m.path("directory", "key"), b"x")
    wanted = {"ttl": "1w", "idle": "1d12h", "expires": "4000000000.500", "pin": "on"}
    for name, value in wanted.items():
        os.setxattr(m.path("directory", "key"), f"user.larder.{name}", value.encode())
    os.setxattr(m.path("directory"), "user.larder.compress", b"none")
    os.setxattr(m.path("directory"), "user.larder.ttl", b"none")
    for _ in range(5):
        get(m.path("directory", "key"))
    # Uses may be a few seconds behind in the journal when the daemon is killed.
    if how == "kill":
        eventually(lambda: m.stats()["uptime_ns"] > 6e9, 10, "uses have been logged")
    m.restart(how)
    for name, value in wanted.items():
        assert os.getxattr(m.path("directory", "key"), f"user.larder.{name}").decode() == value
    assert os.getxattr(m.path("directory"), "user.larder.compress") == b"none"
    assert os.getxattr(m.path("directory"), "user.larder.ttl") == b"none"
    assert os.getxattr(m.path("directory", "key"), "user.larder.hits") == b"5"
    assert m.stats()["pinned"] == 1


@HOW
def test_the_order_of_last_use(mount, how):
    m = mount(max_entries=20)
    for i in range(20):
        put(m.path(f"key-{i}"), b"x")
    for i in range(0, 20, 3):
        get(m.path(f"key-{i}"))
    if how == "kill":
        eventually(lambda: m.stats()["uptime_ns"] > 6e9, 10, "uses have been logged")
    m.restart(how)
    order = [i for i in range(20) if i % 3] + [i for i in range(0, 20, 3)]
    for i in range(12):
        put(m.path(f"fill-{i}"), b"x")
        left = sorted(int(name[4:]) for name in os.listdir(m.mnt) if name.startswith("key-"))
        assert left == sorted(order[20 - len(left):])


def test_a_file_without_its_first_close_is_not_there_after_sigkill(mount):
    m = mount()
    put(m.path("closed"), b"closed")
    fds = []
    for size in (0, 10, 100_000, 3_000_000):
        fds.append(os.open(m.path(f"open-{size}"), os.O_CREAT | os.O_WRONLY))
        for start in range(0, size, 1 << 20):
            os.write(fds[-1], random_bytes(min(1 << 20, size - start)))
    m.kill()
    for fd in fds:
        close_dead(fd)
    m.start()
    assert names(m.mnt) == [b"closed"]
    assert get(m.path("closed")) == b"closed"


def test_an_uncommitted_change_leaves_the_old_value_after_sigkill(mount):
    """Opened with truncation or replaced under a temporary name, but never closed: the old value is what counts."""
    m = mount()
    for size in (10, 100_000, 3_000_000):
        put(m.path(f"key-{size}"), random_bytes(size))
    fds = []
    for size in (10, 100_000, 3_000_000):
        fds.append(os.open(m.path(f"key-{size}"), os.O_WRONLY | os.O_TRUNC))
        os.write(fds[-1], b"half of something new")
    m.kill()
    for fd in fds:
        close_dead(fd)
    m.start()
    for size in (10, 100_000, 3_000_000):
        assert first_difference(get(m.path(f"key-{size}")), random_bytes(size)) == ""


def test_what_was_synced_but_not_closed_is_there_after_sigkill(mount):
    m = mount()
    fds = []
    for size in (10, 100_000, 3_000_000):
        fds.append(os.open(m.path(f"key-{size}"), os.O_CREAT | os.O_WRONLY))
        os.write(fds[-1], random_bytes(size))
        os.fsync(fds[-1])
    m.kill()
    for fd in fds:
        close_dead(fd)
    m.start()
    for size in (10, 100_000, 3_000_000):
        assert first_difference(get(m.path(f"key-{size}")), random_bytes(size)) == ""


@pytest.mark.parametrize("size", [pytest.param(10, id="small"), pytest.param(100_000, id="medium"),
                                  pytest.param(2_000_000, id="big")])
def test_every_close_rename_and_unlink_survives_sigkill(mount, site, size):
    """Killed at once after the last of a few changes, again and again: always the last state, never an older one."""
    m = mount(quota="256M")
    for turn in range(6):
        put(m.path("overwritten"), random_bytes(size, turn))
        m.write("replaced", text_bytes(size, turn))
        put(m.path(f"new-{turn}"), random_bytes(size, 100 + turn))
        if turn:
            os.unlink(m.path(f"new-{turn - 1}"))
        m.restart("kill")
        assert names(m.mnt) == sorted([b"overwritten", b"replaced", b"new-%d" % turn])
        assert first_difference(get(m.path("overwritten")), random_bytes(size, turn)) == ""
        assert first_difference(get(m.path("replaced")), text_bytes(size, turn)) == ""
        assert first_difference(get(m.path(f"new-{turn}")), random_bytes(size, 100 + turn)) == ""
    m.stop()
    site.check(m.store)


def test_attribute_changes_survive_sigkill_at_once(mount):
    m = mount()
    put(m.path("key"), b"x")
    for mode in (0o600, 0o640, 0o755):
        os.chmod(m.path("key"), mode)
        os.chown(m.path("key"), mode, mode + 1)
        sysx.utimensat(m.path("key"), (mode, 1), (mode, 2))
        os.setxattr(m.path("key"), "user.mode", b"%o" % mode)
        before = snapshot(m.mnt)
        m.restart("kill")
        assert_same(snapshot(m.mnt), before)


LINK_CHANGES = [
    pytest.param(lambda m: os.link(m.path("one"), m.path("four")), id="a link more"),
    pytest.param(lambda m: os.unlink(m.path("one")), id="a link less"),
    pytest.param(lambda m: os.rename(m.path("three"), m.path("one")), id="a rename over one of its links"),
    pytest.param(lambda m: os.rename(m.path("one"), m.path("five")), id="a rename"),
    pytest.param(lambda m: sysx.renameat2(m.path("one"), m.path("three"), sysx.RENAME_EXCHANGE), id="an exchange"),
    pytest.param(lambda m: os.rename(m.path("directory"), m.path("below", "moved")), id="a directory moved"),
]


@pytest.mark.parametrize("change", LINK_CHANGES)
def test_times_and_link_counts_survive_sigkill_after(mount, change):
    m = mount()
    put(m.path("one"), b"1")
    os.link(m.path("one"), m.path("two"))
    put(m.path("three"), b"3")
    os.mkdir(m.path("directory"))
    os.mkdir(m.path("below"))
    change(m)
    before = snapshot(m.mnt)
    m.restart("kill")
    assert_same(snapshot(m.mnt), before)


def test_big_values_changed_in_place_survive_a_clean_stop_and_fsync_survives_sigkill(mount, site):
    m = mount(quota="256M")
    model = bytearray(random_bytes(4_000_000))
    put(m.path("key"), model)
    for turn in range(4):
        fd = os.open(m.path("key"), os.O_RDWR)
        data = random_bytes(50_000, turn)
        os.pwrite(fd, data, 1_000_000 * turn)
        model[1_000_000 * turn:1_000_000 * turn + 50_000] = data
        os.fsync(fd)
        if turn % 2:
            os.close(fd)
            m.restart("kill")
        else:
            m.kill()
            close_dead(fd)
            m.start()
        assert first_difference(get(m.path("key")), bytes(model)) == ""
    m.stop()
    site.check(m.store)


@pytest.mark.parametrize("how", [None, signal.SIGTERM], ids=["umount", "SIGTERM"])
def test_a_map_written_after_its_file_was_closed_survives(mount, how):
    """Nobody calls close(2) after such a write: the daemon must not end before it is done with what is left of it."""
    m = mount(quota="256M")
    for turn in range(5):
        for size in (20_000, 2_000_000):
            put(m.path(f"key-{size}"), bytes(size))
        for size in (20_000, 2_000_000):
            with open(m.path(f"key-{size}"), "r+b") as f:
                view = mmap.mmap(f.fileno(), size)
            view[:] = random_bytes(size, turn)
            view.close()
        m.stop(how)
        m.start()
        for size in (20_000, 2_000_000):
            assert first_difference(get(m.path(f"key-{size}")), random_bytes(size, turn)) == ""


# Large values are verified before the kernel may read them by itself

UNVERIFIED_BYTES = 40 << 20


def opens_passed_through(m):
    with open(m.path("key"), "rb") as f:
        f.read(1)
    return m.stats()["passthrough_opens"]


@pytest.mark.parametrize("io_uring", ["off", "auto"])
def test_a_large_value_is_verified_behind_its_first_reader(mount, io_uring):
    m = mount(quota="256M", io_uring=io_uring)
    data = random_bytes(UNVERIFIED_BYTES, 1)
    put(m.path("key"), data)
    m.restart("kill")
    with open(m.path("key"), "rb") as f:
        assert m.stats()["passthrough_opens"] == 0
        assert f.read() == data
    eventually(lambda: opens_passed_through(m) > 0, 20, "the kernel reads it by itself")
    assert get(m.path("key")) == data


def test_a_large_value_found_damaged_behind_its_first_reader_is_a_miss(mount):
    m = mount(quota="256M")
    m.allow("event=corrupt")
    data = random_bytes(UNVERIFIED_BYTES, 1)
    put(m.path("key"), data)
    m.stop()
    (big,) = corrupt.store_files(m.store, "big")
    with open(big, "r+b") as f:
        f.seek(UNVERIFIED_BYTES - 5)
        f.write(bytes([data[-5] ^ 1]))
    m.start()
    with open(m.path("key"), "rb", buffering=0) as f:
        assert f.read(1000) == data[:1000]  # block by block: what is whole is served
        eventually(lambda: not os.path.exists(m.path("key")), 20, "the key is gone")
        assert m.stats()["corrupt_records"] == 1
        f.seek(UNVERIFIED_BYTES - 1000)
        with raises(errno.EIO):
            f.read(1000)
    assert m.stats()["passthrough_opens"] == 0


def test_a_stop_does_not_wait_for_the_verification_of_large_values(mount):
    m = mount(quota="1G")
    for i in range(4):
        put(m.path(f"key-{i}"), random_bytes(UNVERIFIED_BYTES, i))
    m.restart()
    for i in range(4):
        with open(m.path(f"key-{i}"), "rb"):
            pass
    m.restart()
    for i in range(4):
        assert get(m.path(f"key-{i}")) == random_bytes(UNVERIFIED_BYTES, i)


def test_unlinked_open_files_leave_no_space_behind_after_sigkill(mount, site):
    m = mount(quota="64M")
    fds = []
    for i in range(10):
        put(m.path(f"key-{i}"), random_bytes(1_000_000, i))
        fds.append(os.open(m.path(f"key-{i}"), os.O_RDONLY))
        os.unlink(m.path(f"key-{i}"))
    m.kill()
    for fd in fds:
        close_dead(fd)
    m.start()
    eventually(lambda: disk_bytes(m.store) < 2_000_000, 10, "orphans are removed")
    m.stop()
    site.check(m.store)


def create_until_gone(directory):
    """Makes keys until the mount is gone; returns the names of all that were closed before."""
    closed = []
    top = os.open(directory, os.O_RDONLY)
    try:
        while True:
            name = f"key-{len(closed)}"
            fd = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=top)
            os.write(fd, name.encode())
            os.close(fd)
            closed.append(name)
    except OSError as error:
        return closed, error.errno


def test_clean_stop_under_load_loses_nothing_closed(mount, site):
    """SIGTERM while a client writes: the daemon ends with 0 and everything the client had closed is there."""
    m = mount()
    child = Child(create_until_gone, m.mnt)
    eventually(lambda: len(os.listdir(m.mnt)) > 200, 10, "the client is at work")
    m.stop(signal.SIGTERM)
    closed, error = child.result()
    assert error in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ECANCELED)
    m.clear()
    m.start()
    assert len(closed) > 200
    assert set(closed) - set(os.listdir(m.mnt)) == set()
    m.stop()
    site.check(m.store)


def test_many_restarts_in_a_row(mount, site):
    m = mount()
    for turn in range(8):
        put(m.path(f"key-{turn}"), b"%d" % turn)
        m.restart("kill" if turn % 2 else "stop")
        assert len(os.listdir(m.mnt)) == turn + 1
    assert [get(m.path(f"key-{i}")) for i in range(8)] == [b"%d" % i for i in range(8)]
    m.stop()
    site.check(m.store)


def test_inode_numbers_of_removed_files_are_not_used_again(mount):
    m = mount()
    seen = set()
    for turn in range(3):
        for i in range(50):
            put(m.path("key"), b"x")
            number = os.stat(m.path("key")).st_ino
            assert number not in seen
            seen.add(number)
            os.unlink(m.path("key"))
        m.restart("kill" if turn else "stop")


def test_ready_soon_with_a_large_index(mount):
    """20,000 keys, killed: the mount answers within a second of its start (most of it is the process itself)."""
    m = mount(quota="256M")
    for i in range(20_000):
        os.symlink("x", m.path(f"key-{i}"))
    m.kill()
    start = time.monotonic()
    m.start()
    os.lstat(m.path("key-19999"))
    taken = time.monotonic() - start
    assert taken < 1.0 * wait.SLOWNESS, f"{taken:.2f} s"
