# SPDX-License-Identifier: BSD-2-Clause
"""Goal: hits=sampled. The kernel opens and closes by itself, and still C1 to C8 hold; what is counted says how.
Method: a store is filled through an ordinary mount, then read through a sampled one, with the requests counted."""

import contextlib
import errno
import json
import mmap
import os
import random
import re
import threading
import time

import pytest

from harness import corrupt, sysx
from harness.du import Sampler
from harness.errors import raises
from harness.procs import run_children
from harness.values import first_difference, get, mixed_bytes, names, put, random_bytes, text_bytes
from harness.wait import eventually, until

pytestmark = pytest.mark.daemon

KIB, MIB = 1 << 10, 1 << 20
SAMPLED = {"ro": True, "hits": "sampled"}
MS_RDONLY, MS_REMOUNT = 1, 32
SIZES = [0, 1, 4095, 4096, 4097, 64 * KIB, 128 * KIB, 256 * KIB + 1, MIB, 5 * MIB + 1]
KINDS = [pytest.param(random_bytes, id="random"), pytest.param(text_bytes, id="compressible"),
         pytest.param(mixed_bytes, id="mixed"), pytest.param(lambda size, seed=0: bytes(size), id="zeros")]
TRANSPORTS = [pytest.param({}, id="by default"), pytest.param({"io_uring": "off"}, id="without io_uring"),
              pytest.param({"big_bytes": "4096"}, id="mostly big files")]


@contextlib.contextmanager
def opened(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def gone(path):
    try:
        os.stat(path)
        return False
    except FileNotFoundError:
        return True


def moved(m, action, *wanted):
    before = m.stats()
    action()
    after = m.stats()
    return tuple(after[name] - before[name] for name in wanted)


# The option

@pytest.mark.parametrize("options, wanted", [
    ("hits=sampled,quota=0", "option hits=sampled: not with quota=0"),
    ("hits=sampled,ro,passthrough=on", "option passthrough=on: not with hits=sampled"),
    ("hits=some", "option hits=some: not exact or sampled"), ("hits", "option hits: needs a value")])
def test_refused(site, mount, options, wanted):
    m = mount(start=False)
    result = site.run([site.daemon, m.store, m.mnt, "-f", "-o", options])
    assert result.returncode > 0 and wanted in result.stderr
    assert not os.path.exists(m.store)


def test_statistics_say_that_they_are_sampled(site, mount):
    m = mount()
    put(m.path("key"), b"value")
    assert m.stats()["hits_sampled"] == 0
    m.restart(**SAMPLED)
    assert m.stats()["hits_sampled"] == 1
    assert re.search(r"^hits sampled command line$", m.read(".larder", "config").decode(), re.MULTILINE)
    assert re.search(r"^passthrough_active off hits=sampled", m.read(".larder", "config").decode(), re.MULTILINE)
    get(m.path("key"))
    assert re.fullmatch(rb"[0-9]+ sampled", os.getxattr(m.path("key"), "user.larder.hits"))
    assert re.search(r"^hits +[0-9]+ sampled,", site.run_ok([site.tool, "stats", m.mnt]).stdout, re.MULTILINE)
    assert re.search(r"^ +5 +5 +[1-9]", site.run_ok([site.tool, "ls", "-l", m.mnt]).stdout, re.MULTILINE)


# What it is for

def test_a_hot_get_asks_the_daemon_for_nothing(mount):
    m = mount()
    for i in range(10):
        put(m.path(f"key-{i}"), random_bytes(4000, i))
    m.restart(**SAMPLED)
    keys = [m.path(f"key-{i}") for i in range(10)]
    for key in keys:
        get(key)
    m.stats()
    requests = [f"latency_{name}_count" for name in ("open", "flush", "release", "getattr", "other")]

    def hot():
        for _ in range(50):
            for i, key in enumerate(keys):
                assert get(key) == random_bytes(4000, i)
    assert moved(m, hot, *requests, "read_bytes") == (0,) * (len(requests) + 1)


def test_a_use_is_a_lookup_now_and_then(mount):
    m = mount(idle="8s")
    put(m.path("key"), b"value")
    m.restart(**SAMPLED)
    for _ in range(100):
        get(m.path("key"))
    hits = lambda: int(os.getxattr(m.path("key"), "user.larder.hits").split()[0])  # noqa: E731
    few = hits()
    assert 1 <= few < 20
    eventually(lambda: get(m.path("key")) and hits() > few, 10, "the next use to be seen")


# Values

@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("options", TRANSPORTS)
def test_every_size(mount, site, make, options):
    m = mount(quota="512M", **options)
    wanted = {str(size): make(size, size) for size in SIZES}
    for name, data in wanted.items():
        put(m.path(name), data)
    m.restart(**SAMPLED)
    for how in ("stop", "kill"):
        for name, data in wanted.items():
            assert os.stat(m.path(name)).st_size == len(data)
            assert first_difference(get(m.path(name)), data) == "", f"{name} bytes"
            assert first_difference(get(m.path(name)), data) == "", f"{name} bytes, again"
        m.restart(how)
    m.stop()
    site.check(m.store)


def read_here_and_there(top, seed):
    """Random pieces of all values, by pread and by mapping, as they were written."""
    rng = random.Random(seed)
    sizes = {"small": 3000, "packed": 900_000, "big": 4_000_000}
    wanted = {name: mixed_bytes(size, size) for name, size in sizes.items()}
    files = {name: os.open(os.path.join(top, name), os.O_RDONLY) for name in wanted}
    for _ in range(300):
        name = rng.choice(list(wanted))
        data = wanted[name]
        start = rng.randrange(len(data))
        length = rng.choice((1, 100, 5000, 200_000))
        if rng.random() < 0.5:
            assert os.pread(files[name], length, start) == data[start:start + length]
        else:
            with mmap.mmap(files[name], 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[start:start + length] == data[start:start + length]
    for fd in files.values():
        os.close(fd)


def test_many_who_read_here_and_there(mount):
    m = mount()
    for name, size in (("small", 3000), ("packed", 900_000), ("big", 4_000_000)):
        put(m.path(name), mixed_bytes(size, size))
    for how in ("stop", "kill"):
        m.restart(how, **SAMPLED)
        run_children([(read_here_and_there, m.mnt, seed) for seed in range(6)])


def test_more_files_read_at_a_time_than_are_kept(mount):
    m = mount(big_bytes="64K")
    data = {f"key-{i}": random_bytes(600_000, i) for i in range(60)}
    for name, value in data.items():
        put(m.path(name), value)
    m.restart(**SAMPLED)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(opened(m.path(name))) for name in data}
        for start in range(0, 600_000, 60_000):
            for name, fd in files.items():
                assert os.pread(fd, 60_000, start) == data[name][start:start + 60_000]
    assert m.stats()["open_files"] <= 32


def test_holes_locks_and_fsync(mount):
    m = mount()
    with open(m.path("key"), "wb", buffering=0) as f:
        f.write(random_bytes(100_000))
        f.truncate(3_000_000)
    with opened(m.path("key")) as fd:
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
    m.restart(**SAMPLED)
    with opened(m.path("key")) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == hole
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, -5, os.SEEK_END) == 2_999_995
        with raises(errno.ENXIO):
            os.lseek(fd, 3_000_001, os.SEEK_DATA)
        os.fsync(fd)
        os.lockf(fd, os.F_TEST, 10)


def test_directories_are_listed_and_nodes_found_by_readdirplus(mount):
    m = mount()
    os.makedirs(m.path("a", "b"))
    for i in range(500):
        put(m.path("a", f"key-{i}"), b"%d" % i)
    m.restart(**SAMPLED)
    with os.scandir(m.path("a")) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    assert sizes == {f"key-{i}": len(str(i)) for i in range(500)}
    assert names(m.path("a", "b")) == []
    assert get(m.path("a", "key-77")) == b"77"


# What must not happen

def test_nothing_is_written_also_after_a_remount(mount):
    m = mount()
    put(m.path("key"), random_bytes(5000))
    m.restart(**SAMPLED)
    assert get(m.path("key")) == random_bytes(5000)
    for flags in (None, MS_REMOUNT):
        if flags:
            sysx.mount_fs("larder", m.mnt, "fuse.larder", "", flags)
        for call in (lambda: put(m.path("new"), b"x"), lambda: put(m.path("key"), b"x"),
                     lambda: os.truncate(m.path("key"), 0), lambda: os.unlink(m.path("key")),
                     lambda: os.rename(m.path("key"), m.path("k2")), lambda: os.chmod(m.path("key"), 0o600),
                     lambda: os.setxattr(m.path("key"), "user.a", b"1"),
                     lambda: os.setxattr(m.path("key"), "user.larder.ttl", b"1s")):
            with raises(errno.EROFS):
                call()
        assert get(m.path("key")) == random_bytes(5000)
    fd = os.open(m.path("key"), os.O_RDWR)  # the kernel asks nobody
    try:
        with raises(errno.EROFS):
            os.write(fd, b"x")
        with raises(errno.EROFS):
            os.posix_fallocate(fd, 0, 10000)
        with raises(errno.EROFS):
            os.copy_file_range(fd, fd, 10, 0, 100)
    finally:
        os.close(fd)
    m.restart()
    assert get(m.path("key")) == random_bytes(5000)


def test_the_store_stays_as_it_is(mount):
    m = mount(ttl="1h")
    put(m.path("key"), random_bytes(5000))
    put(m.path("big"), random_bytes(2_000_000))
    m.stop()
    files = {path: get(path) for prefix in ("journal-", "index-", "seg-", "big")
             for path in corrupt.store_files(m.store, prefix)}
    m.start(**SAMPLED)
    assert get(m.path("key")) == random_bytes(5000)
    assert get(m.path("big")) == random_bytes(2_000_000)
    m.stop()
    assert {path: get(path) for path in files} == files


def test_a_doubtful_value_is_a_miss(mount):
    m = mount(big_bytes="64K", compress="none")
    put(m.path("bad"), random_bytes(300_000, 1))
    put(m.path("good"), random_bytes(300_000, 2))
    m.stop()
    for path in corrupt.store_files(m.store, "big"):
        if get(path)[:1000] == random_bytes(300_000, 1)[:1000]:
            corrupt.flip(path, 1)
    m.allow("corrupt")
    m.start(**SAMPLED)
    with raises(errno.EIO):
        get(m.path("bad"))
    eventually(lambda: gone(m.path("bad")), 10, "the kernel to hear that the name is gone")
    assert get(m.path("good")) == random_bytes(300_000, 2)
    assert m.stats()["corrupt_records"] >= 1


# Expiry

def test_expired_while_open_it_stays_whole_for_its_reader(mount):
    m = mount(ttl="3s")
    data = {"small": text_bytes(50_000), "big": random_bytes(3_000_000)}
    for name, value in data.items():
        put(m.path(name), value)
    m.restart(**SAMPLED)
    with opened(m.path("small")) as small, opened(m.path("big")) as big:
        assert os.pread(big, 1000, 0) == data["big"][:1000]
        eventually(lambda: gone(m.path("small")) and gone(m.path("big")), 10, "the keys to expire")
        assert names(m.mnt) == []
        assert first_difference(os.pread(big, 3_000_000, 0), data["big"]) == ""
        assert os.pread(small, 60_000, 0) == data["small"]
        assert os.fstat(small).st_size == 50_000
        assert os.lseek(big, 0, os.SEEK_HOLE) == 3_000_000
        assert gone(m.path("big")), "who reads on does not bring it back"
    assert m.stats()["expired_ttl"] == 2
    assert m.stats()["entries"] == 0
    assert b" ttl " in m.read(".larder", "events")


def test_a_key_in_use_does_not_idle_away_and_another_does(mount):
    m = mount(idle="3s")
    put(m.path("used"), b"value")
    put(m.path("idle"), b"value")
    m.restart(**SAMPLED)
    start = time.monotonic()
    while time.monotonic() < start + 5:
        assert get(m.path("used")) == b"value"
    assert gone(m.path("idle"))
    until(time.monotonic() + 4)
    assert gone(m.path("used"))


# Texts that are made

def test_a_reader_of_stats_sees_one_moment(mount):
    m = mount()
    for i in range(50):
        put(m.path(f"key-{i}"), b"value")
    m.restart(**SAMPLED)
    path = m.path(".larder", "stats.json")
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        pieces = [os.pread(fd, 100, 0)]
        for i in range(50):
            get(m.path(f"key-{i}"))
            assert json.loads(get(path))["hits"] >= i
            os.stat(path)
        pieces += [os.pread(fd, 100, start) for start in range(100, size + 200, 100)]
    text = b"".join(pieces)
    assert len(text) == size
    assert json.loads(text)["hits"] == 0


def test_stats_of_a_directory(mount):
    m = mount()
    os.mkdir(m.path("d"))
    put(m.path("d", "key"), b"value")
    m.restart(**SAMPLED)
    assert m.stats("d")["entries"] == 1
    assert m.stats("d")["logical_bytes"] == 5
    with raises(errno.ENOENT):
        get(m.path("d", ".larder"))
    with raises(errno.EROFS, errno.EACCES, errno.EPERM):
        put(m.path("d", ".stats"), b"x")
    assert os.stat(m.path(".stats")).st_mode == os.stat(m.path(".larder", "config")).st_mode


def test_many_who_read_stats(mount):
    m = mount()
    put(m.path("key"), b"value")
    m.restart(**SAMPLED)
    failures = []

    def read():
        for _ in range(100):
            stats = m.stats()
            if stats["entries"] != 1 or json.loads(m.read(".larder", "stats.json"))["entries"] != 1:
                failures.append(stats)
    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# A daemon that goes

def read_until_it_is_gone(top, seed):
    """Never other bytes, whatever happens to the daemon."""
    rng = random.Random(seed)
    while True:
        i = rng.randrange(100)
        try:
            assert get(os.path.join(top, f"key-{i}")) == mixed_bytes(3000 + 1000 * i, i)
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO, errno.ECANCELED)
            return


@pytest.mark.parametrize("options", TRANSPORTS)
def test_killed_under_its_readers(mount, options):
    m = mount(**options)
    for i in range(100):
        put(m.path(f"key-{i}"), mixed_bytes(3000 + 1000 * i, i))
    m.restart(**SAMPLED)
    for round_no in range(4):
        timer = threading.Timer(0.2 * (round_no + 1), lambda: os.kill(m.pid, 9))
        timer.start()
        run_children([(read_until_it_is_gone, m.mnt, seed) for seed in range(4)])
        timer.join()
        m.restart("kill")
    for i in range(100):
        assert get(m.path(f"key-{i}")) == mixed_bytes(3000 + 1000 * i, i)


# Written

WRITABLE = {"hits": "sampled"}


def listed(m):
    return sorted(os.listdir(m.mnt))


def committed(m):
    eventually(lambda: m.stats()["open_files"] == 0, 20, "what was written to be committed")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("options", TRANSPORTS)
def test_every_size_written_and_renamed_survives_sigkill(mount, site, make, options):
    m = mount(quota="512M", **WRITABLE, **options)
    wanted = {str(size): make(size, size) for size in SIZES}
    for name, data in wanted.items():
        m.write(name, data)
        assert first_difference(get(m.path(name)), data) == ""
    m.restart("kill")
    assert listed(m) == sorted(wanted)
    for name, data in wanted.items():
        assert first_difference(get(m.path(name)), data) == "", f"{name} bytes"
    m.stop()
    site.check(m.store)


def test_renamed_over_another_leaves_nothing_open(mount):
    m = mount(**WRITABLE)
    for i in range(50):
        m.write("key", random_bytes(3000, i))
    assert m.stats()["puts"] >= 50
    assert m.stats()["open_files"] == 0
    m.restart("kill")
    assert get(m.path("key")) == random_bytes(3000, 49)


def test_a_value_written_over_is_old_or_new_after_sigkill(mount):
    m = mount(**WRITABLE)
    old = random_bytes(200_000, 1)
    for i in range(4):
        m.write("key", old)
        new = random_bytes(150_000, i + 2)
        with open(m.path("key"), "wb") as f:
            f.write(new)
        m.restart("kill")
        assert get(m.path("key")) in (old, new)


@pytest.mark.parametrize("change, wanted", [
    pytest.param(lambda path: put(path, b"new value"), b"new value", id="written over"),
    pytest.param(lambda path: os.truncate(path, 3), b"old", id="truncated"),
    pytest.param(lambda path: os.truncate(path, 0), b"", id="emptied")])
def test_after_a_moment_it_is_committed(mount, change, wanted):
    m = mount(**WRITABLE)
    m.write("key", b"old value")
    change(m.path("key"))
    assert get(m.path("key")) == wanted
    committed(m)
    m.restart("kill")
    assert get(m.path("key")) == wanted


@pytest.mark.parametrize("commit", [
    pytest.param(lambda m, fd: os.fsync(fd), id="fsync"), pytest.param(lambda m, fd: os.fdatasync(fd), id="fdatasync"),
    pytest.param(lambda m, fd: os.link(m.path("key"), m.path("other")), id="link"),
    pytest.param(lambda m, fd: os.rename(m.path("key"), m.path("other")), id="rename")])
def test_committed_by(mount, commit):
    m = mount(**WRITABLE)
    fd = os.open(m.path("key"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, random_bytes(50_000))
    commit(m, fd)
    m.kill()
    with raises(errno.ENOTCONN, errno.ECONNABORTED):
        os.close(fd)
    m.start()
    assert {get(m.path(name)) for name in listed(m)} == {random_bytes(50_000)}


def test_an_orderly_stop_commits(mount):
    m = mount(**WRITABLE)
    for i in range(300):
        put(m.path(f"key-{i}"), random_bytes(1000, i))
    m.restart()
    for i in range(300):
        assert get(m.path(f"key-{i}")) == random_bytes(1000, i)


def test_more_than_may_wait_are_committed_in_turn(mount):
    m = mount(**WRITABLE)
    for i in range(1000):
        put(m.path(f"key-{i}"), random_bytes(1000, i))
    assert m.stats()["open_files"] <= 300
    m.restart("kill")
    found = listed(m)
    assert len(found) >= 700
    for name in found:
        assert get(m.path(name)) == random_bytes(1000, int(name.split("-")[1]))


def test_unlinked_while_open_it_is_written_and_read_on(mount):
    m = mount(**WRITABLE)
    with open(m.path("key"), "w+b", buffering=0) as f:
        f.write(b"before")
        os.unlink(m.path("key"))
        assert names(m.mnt) == []
        eventually(lambda: m.stats()["open_files"] == 0, 20, "the moment to pass")
        f.write(b" and after")
        assert os.pread(f.fileno(), 100, 0) == b"before and after"
        assert os.fstat(f.fileno()).st_nlink == 0
    m.restart("kill")
    assert names(m.mnt) == []


def test_written_through_a_mapping(mount):
    m = mount(**WRITABLE)
    m.write("key", bytes(300_000))
    with open(m.path("key"), "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        mapped[100_000:100_005] = b"hello"
        mapped.flush()
    m.restart("kill")
    assert get(m.path("key"))[99_999:100_006] == b"\0hello\0"


def test_at_quota_what_the_kernel_remembers_leaves_and_du_stays_below(mount, site):
    m = mount(quota="4M", **WRITABLE)
    sampler = Sampler(m.store, m.pid)
    for i in range(3000):
        m.write(f"key-{i}", random_bytes(20_000, i))
        os.stat(m.path(f"key-{max(0, i - 50)}"))
    assert sampler.finish()["exact"] <= 4 * MIB
    stats = m.stats()
    assert stats["evicted_quota"] > 2000 and stats["errors_enospc"] == 0
    assert stats["logical_bytes"] > 2 * MIB
    left = listed(m)
    assert sorted(int(name.split("-")[1]) for name in left) == list(range(3000 - len(left), 3000))
    for name in left:
        assert get(m.path(name)) == random_bytes(20_000, int(name.split("-")[1]))
    m.stop()
    site.check(m.store)


def test_an_open_file_does_not_leave_for_room(mount):
    m = mount(quota="4M", **WRITABLE)
    m.write("cold", random_bytes(100_000))
    with opened(m.path("cold")) as fd:
        for i in range(600):
            m.write(f"key-{i}", random_bytes(20_000, i))
        assert os.pread(fd, 200_000, 0) == random_bytes(100_000)
        assert not gone(m.path("cold"))
    for i in range(600):
        m.write(f"key-{i}", random_bytes(20_000, i))
    eventually(lambda: m.write("more", random_bytes(20_000)) and gone(m.path("cold")), 20, "it to leave when it is closed")


def test_a_deadline_that_comes_nearer_while_it_is_open_is_kept(mount):
    m = mount(**WRITABLE)
    m.write("key", b"value")
    with opened(m.path("key")) as fd:
        os.setxattr(m.path("key"), "user.larder.ttl", b"1s")
        eventually(lambda: gone(m.path("key")), 4, "the key to expire")
        assert os.pread(fd, 10, 0) == b"value"
