# SPDX-License-Identifier: BSD-2-Clause
"""Goal: a host that is full, ill or meddled with costs misses and errors, never wrong bytes, a crash or the mount's life.

Method: the store on small file systems of its own, which another process fills and frees, whose device begins to fail,
or whose files are deleted, cut, replaced, hidden or made read-only under the running daemon; clients that know what
they wrote read it back, before and after a kill and a restart. The same faults one by one: tests/crash/faults.c.
"""

import errno
import os
import random
import resource
import shutil
import subprocess

import pytest

from harness import sysx
from harness.du import Sampler, disk_bytes
from harness.procs import Child, Stop, run_children
from harness.values import first_difference, get, mixed_bytes, put, random_bytes, text_bytes
from harness.wait import eventually

KIB, MIB = 1 << 10, 1 << 20

pytestmark = pytest.mark.daemon

#: The least each takes to be made: their own bound, and ours.
DISKS = [pytest.param("ext4", 64 * MIB, id="ext4"), pytest.param("xfs", 320 * MIB, id="XFS"),
         pytest.param("btrfs", 128 * MIB, id="btrfs")]
#: What a call on a store in trouble may say.
TROUBLE = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE)


def value_of(name, version, size):
    """Bytes that no other version of no other key has; a third of them compress."""
    make = (random_bytes, text_bytes, mixed_bytes)[version % 3]
    return f"{name} {version} ".encode().ljust(16)[:16] + make(max(size - 16, 0), hash((name, version)) & 0xffff)


class Keys:
    """Keys and what may be in them: every version whose put did not end before the newest acknowledged one."""

    def __init__(self, directory, seed=0):
        self.directory, self.rng, self.may, self.count = directory, random.Random(seed), {}, 0
        self.errors = []

    def put(self, size=None, name=None, keys=40):
        """One put; its error, or None."""
        name = name or f"k{self.rng.randrange(keys)}"
        self.count += 1
        if size is None:
            size = self.rng.choice((100, 3000, 20 * KIB, 300 * KIB))
        data = value_of(name, self.count, size)
        path = os.path.join(self.directory, name)
        try:
            put(path + ".new", data)
            self.may[name] = self.may.get(name, []) + [data]
            os.rename(path + ".new", path)
        except OSError as error:
            self.errors.append(error.errno)
            return error.errno
        self.may[name] = [data]
        return None

    def check(self, may_fail=()):
        """How many are there; none may be anything else than what was put."""
        found = 0
        for name, versions in self.may.items():
            try:
                data = get(os.path.join(self.directory, name))
            except FileNotFoundError:
                continue
            except OSError as error:
                assert error.errno in may_fail, f"reading {name}: {error}"
                continue
            assert data in versions, f"{name}: {first_difference(versions[-1], data)}"
            found += 1
        return found


def fill(point, stop):
    """Takes all of a disk, gives it back, and again, until told to stop."""
    path = os.path.join(point, "filler")
    rounds = 0
    while not stop.is_set():
        with open(path, "wb") as f:
            try:
                while not stop.is_set():
                    f.write(b"x" * (256 * KIB))
                    f.flush()
            except OSError:
                pass
            stop.wait(0.05)
        os.unlink(path)
        rounds += 1
        stop.wait(0.05)
    return rounds


@pytest.mark.parametrize("kind, size", DISKS)
def test_another_process_fills_the_disk_and_frees_it_of(site, kind, size):
    disk = site.loop_disk("disk", size, kind)
    m = site.mount(store=os.path.join(disk.point, "store"), quota="40M")
    m.allow("event=write_failed", "checkpoint_failed", "no space", "read-only")
    keys = Keys(m.mnt)
    stop = Stop()
    filler = Child(fill, disk.point, stop)
    for _ in range(120):
        assert keys.put() in (None, *TROUBLE)
    stop.set()
    assert filler.result() > 0
    assert keys.check() > 0
    assert m.stats()["read_only"] == 0, "a full disk heals by itself"
    eventually(lambda: keys.put(3000, "afterwards") is None, what="a put once there is room")
    m.restart("kill")
    assert keys.check() > 0
    assert keys.put(3000, "again") is None
    m.stop()
    site.check(m.store)


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("kind, size", DISKS)
def test_after_an_end_on_a_full_disk_it_mounts_again_on(site, kind, size, how):
    disk = site.loop_disk("disk", size, kind)
    m = site.mount(store=os.path.join(disk.point, "store"), quota="32M")
    m.allow("event=write_failed", "checkpoint_failed", "read-only", "full")
    keys = Keys(m.mnt)
    for _ in range(60):
        assert keys.put() is None
    take_everything(os.path.join(disk.point, "filler"))
    for _ in range(20):
        assert keys.put() in (None, *TROUBLE)
    before = keys.check()
    m.restart(how)
    assert keys.check() > before // 2, "eviction for room aside, what was acknowledged is there"
    os.unlink(os.path.join(disk.point, "filler"))
    if m.stats()["read_only"]:
        m.restart()
    eventually(lambda: keys.put(3000, "afterwards") is None, what="a put once there is room")
    keys.check()


def take_everything(path):
    """All of the disk, to the last block."""
    with open(path, "wb", buffering=0) as f:
        for piece in (MIB, 4 * KIB, 1):
            try:
                while True:
                    f.write(b"x" * piece)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def write_values(directory, who, total):
    """Values of all sizes, also some that grow in steps; the errors other than a lack of room."""
    rng, failed, written, count = random.Random(who), [], 0, 0
    while written < total:
        size = int((2 * MIB) ** rng.random())
        path = os.path.join(directory, f"{who}-{rng.randrange(60)}")
        try:
            if count % 3:
                put(path, (random_bytes, text_bytes)[count % 2](size, count))
            else:
                with open(path, "wb", buffering=0) as f:
                    for _ in range(0, size, 32 * KIB):
                        f.write(random_bytes(32 * KIB, count))
                    if count % 2:
                        os.fsync(f.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOENT):
                failed.append(str(error))
        written += size
        count += 1
    return failed


@pytest.mark.parametrize("kind, size", DISKS[1:])
def test_du_stays_below_the_quota_on(site, kind, size):
    disk = site.loop_disk("disk", size, kind)
    m = site.mount(store=os.path.join(disk.point, "store"), quota="16M")
    sampler = Sampler(m.store, m.pid)
    failed = run_children([(write_values, m.mnt, who, 24 * MIB) for who in range(3)], 100)
    assert [line for lines in failed for line in lines] == []
    most = sampler.finish()
    assert max(most["exact"], most["walked"]) <= 16 * MIB, most
    assert disk_bytes(m.store) <= m.stats()["used_bytes"]


def test_a_device_that_fails_makes_the_cache_read_only_and_is_told_of_once(site):
    """The disk is an image on a full tmpfs: what it has no block for yet fails with EIO."""
    host = site.tmpfs("host", 96 * MIB)
    disk = site.loop_disk("disk", 256 * MIB, image=os.path.join(host, "disk.img"))
    m = site.mount(store=os.path.join(disk.point, "store"), quota="64M")
    m.allow("event=write_failed", "checkpoint_failed", "event=unreadable", "event=corrupt", "store_meddled")
    keys = Keys(m.mnt)
    for _ in range(40):
        assert keys.put() is None
    take_everything(os.path.join(host, "filler"))

    def read_only():
        error = keys.put(300 * KIB, f"more{keys.count}")
        assert error in (None, *TROUBLE)
        try:
            with open(m.path("synced"), "wb") as f:
                f.write(random_bytes(100 * KIB, keys.count))
                os.fsync(f.fileno())
        except OSError as failed:
            assert failed.errno in TROUBLE, failed
        return m.stats()["read_only"]

    eventually(read_only, 30, "a cache that cannot sync goes read-only")
    assert keys.check(may_fail=TROUBLE) > 0
    assert keys.put() in (errno.EROFS, errno.EIO)
    assert m.log().count("level=error") == 1
    m.kill()


def of_store(store, prefix):
    return sorted(name for name in os.listdir(store) if name.startswith(prefix))


def big_files(store):
    return [os.path.join("big", directory, name) for directory in os.listdir(os.path.join(store, "big"))
            for name in os.listdir(os.path.join(store, "big", directory))]


VICTIMS = {
    "the journal": lambda store: of_store(store, "journal-"),
    "the index": lambda store: of_store(store, "index-"),
    "every segment": lambda store: of_store(store, "seg-"),
    "every big file": big_files,
    "FORMAT": lambda store: ["FORMAT"],
    "LOCK": lambda store: ["LOCK"],
    "everything": lambda store: of_store(store, ""),
}


def delete(path):
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def cut(path):
    if os.path.isfile(path):
        os.truncate(path, os.stat(path).st_size // 2)


def empty(path):
    if os.path.isfile(path):
        os.truncate(path, 0)


def replace(path):
    if os.path.isfile(path):
        with open(path + ".other", "wb") as f:
            f.write(random_bytes(os.stat(path).st_size, 7))
        os.rename(path + ".other", path)


def overwrite(path):
    if os.path.isfile(path):
        with open(path, "r+b") as f:
            f.write(random_bytes(os.stat(path).st_size, 8))


def swap_for_fifo(path):
    delete(path)
    os.mkfifo(path)


MEDDLING = [(deed, victim) for victim in VICTIMS for deed in (delete, cut, empty, replace, overwrite, swap_for_fifo)
            if deed in (delete, replace, swap_for_fifo) or victim in ("every segment", "every big file", "the journal")]


@pytest.mark.parametrize("deed, victim", MEDDLING, ids=lambda what: getattr(what, "__name__", what))
def test_the_store_is_meddled_with(site, deed, victim):
    """While the daemon runs, and it goes on; then it is killed, and mounts what can still be trusted."""
    m = site.mount(quota="32M", passthrough="off")
    m.allow("corrupt", "write_failed", "checkpoint_failed", "unreadable", "format_damaged", "damaged", "journal",
            "store_meddled", "lost")
    keys = Keys(m.mnt)
    for _ in range(30):
        assert keys.put() is None
    m.restart()
    for _ in range(30):
        assert keys.put() is None
    checkpoints = m.stats()["checkpoints"]
    for name in VICTIMS[victim](m.store):
        deed(os.path.join(m.store, name))
    log_is_lost = victim in ("the journal", "the index", "everything") and deed not in (overwrite, swap_for_fifo)
    if log_is_lost or (victim == "the journal" and deed is swap_for_fifo):
        eventually(lambda: m.stats()["checkpoints"] > checkpoints or m.stats()["checkpoint_failures"] > 0, 20,
                   "a new checkpoint in place of what was meddled with")
    if victim == "FORMAT" and deed is delete:
        eventually(lambda: os.path.exists(os.path.join(m.store, "FORMAT")), 20, "FORMAT is written again")
    drop_caches(m)
    keys.check(may_fail=TROUBLE)
    for _ in range(30):
        assert keys.put() in (None, *TROUBLE)
    drop_caches(m)
    keys.check(may_fail=TROUBLE)
    assert m.process.poll() is None, m.log()
    assert m.log().count("level=error") <= 1
    assert m.log().count("level=warning") <= 24
    m.kill()
    try:
        m.start()
    except AssertionError as refused:
        assert victim in ("FORMAT", "everything"), refused
        assert "store" in str(refused)
        shutil.rmtree(m.store)
        m.start()
    if victim in ("the journal", "everything") and deed is overwrite:
        return  # bytes changed in place, in the journal, and then a crash: to go back to the checkpoint is all that is left
    keys.check(may_fail=(errno.EIO,))
    keys.check()  # what was doubtful is a miss by now
    assert keys.put() is None
    keys.check()


def drop_caches(m):
    """The kernel forgets what the daemon told it, so that everything is read from the store again."""
    for name in os.listdir(m.mnt):
        try:
            fd = os.open(m.path(name), os.O_RDONLY)
        except OSError:
            continue
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_the_store_directory_is_renamed_under_the_daemon(site):
    m = site.mount(quota="32M")
    keys = Keys(m.mnt)
    for _ in range(20):
        assert keys.put() is None
    os.rename(m.store, m.store + ".elsewhere")
    for _ in range(20):
        assert keys.put() is None
    assert keys.check() > 0
    m.kill()
    os.rename(m.store + ".elsewhere", m.store)
    m.start()
    assert keys.check() == len(keys.may)


def test_the_store_directory_is_removed_under_the_daemon(site):
    m = site.mount(quota="32M")
    m.allow("write_failed", "checkpoint_failed", "unreadable", "corrupt", "store_meddled")
    keys = Keys(m.mnt)
    for _ in range(20):
        assert keys.put() is None
    shutil.rmtree(m.store)
    for _ in range(40):
        assert keys.put() in (None, *TROUBLE)
    keys.check(may_fail=TROUBLE)
    assert m.process.poll() is None
    assert m.log().count("level=error") <= 1
    m.kill()
    m.start()
    assert os.listdir(m.mnt) == []
    assert keys.put() is None


def test_the_disk_becomes_read_only_under_the_daemon(site):
    """As ext4 does to itself after an error: what is open for writing stays so, the rest is refused."""
    disk = site.loop_disk("disk")
    m = site.mount(store=os.path.join(disk.point, "store"), quota="32M")
    m.allow("write_failed", "checkpoint_failed", "store_meddled")
    keys = Keys(m.mnt)
    for _ in range(20):
        assert keys.put() is None
    subprocess.run(["mount", "-o", "remount,ro,abort", disk.point], check=False, stderr=subprocess.DEVNULL)
    for _ in range(30):
        assert keys.put() in (None, *TROUBLE)
    keys.check(may_fail=TROUBLE)
    assert m.process.poll() is None
    assert m.log().count("level=error") <= 1
    m.kill()


def test_few_descriptors(site):
    m = site.mount(quota="64M")
    m.allow("checkpoint_failed")
    limit = resource.prlimit(m.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(m.pid, resource.RLIMIT_NOFILE, (48, limit[1]))
    keys = Keys(m.mnt)
    for _ in range(150):
        assert keys.put(keys=100) in (None, errno.EMFILE, errno.ENFILE, errno.ENOSPC)
    files = []
    try:
        for name in keys.may:
            try:
                files.append(os.open(m.path(name), os.O_RDONLY))
                os.pread(files[-1], 100, 0)
            except OSError as error:
                assert error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOENT), error
    finally:
        for fd in files:
            os.close(fd)
    resource.prlimit(m.pid, resource.RLIMIT_NOFILE, limit)
    assert m.stats()["read_only"] == 0
    assert keys.check() == len(keys.may)
    assert keys.put() is None


def test_files_may_not_grow(site):
    m = site.mount(quota="64M")
    m.allow("write_failed", "checkpoint_failed", "store_meddled")
    keys = Keys(m.mnt)
    for _ in range(10):
        assert keys.put() is None
    resource.prlimit(m.pid, resource.RLIMIT_FSIZE, (64 * KIB, resource.RLIM_INFINITY))
    for _ in range(30):
        assert keys.put() in (None, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOSPC, errno.ENOENT)
    keys.check()
    assert m.process.poll() is None, "SIGXFSZ ends nobody"
    m.restart("kill")
    assert keys.check() > 0
    assert keys.put() is None
