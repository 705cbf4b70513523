# SPDX-License-Identifier: BSD-2-Clause
"""Goal: C1. What the store takes on disk never passes its quota at any instant, and what leaves is what should leave.
Method: du of the store is sampled by a process of its own, half the time with the daemon stopped, while writers write."""

import errno
import os
import random

import pytest

from harness import sysx
from harness.du import Sampler, disk_bytes
from harness.errors import raises
from harness.mount import MountFailed
from harness.procs import run_children
from harness.values import first_difference, get, mixed_bytes, names, put, random_bytes, text_bytes
from harness.wait import eventually

KIB, MIB = 1 << 10, 1 << 20

pytestmark = pytest.mark.daemon


def write_many(directory, who, total, size_max):
    """Writes `total` bytes in values of mixed sizes and ways, sometimes reading or removing; returns what failed."""
    rng = random.Random(who)
    failed, written, count = [], 0, 0
    while written < total:
        size = min(int(size_max ** rng.random()), size_max)
        name = os.path.join(directory, f"{who}-{rng.randrange(2000)}")
        data = (random_bytes, text_bytes, mixed_bytes)[count % 3](size, count)
        try:
            if count % 2:
                put(name, data)
            else:
                put(name + ".tmp", data)
                os.rename(name + ".tmp", name)
            if count % 7 == 0:
                get(os.path.join(directory, f"{who}-{rng.randrange(2000)}"))
            if count % 11 == 0:
                os.unlink(os.path.join(directory, f"{who}-{rng.randrange(2000)}"))
        except FileNotFoundError:
            pass  # evicted or never there: a miss, also of the temporary name
        except OSError as error:
            failed.append(f"{errno.errorcode[error.errno]} for {size} bytes")
        written += size
        count += 1
    return failed


QUOTAS = [pytest.param("1M", MIB, 30 * KIB, id="1 MiB"), pytest.param("4M", 4 * MIB, 200 * KIB, id="4 MiB"),
          pytest.param("64M", 64 * MIB, 3 * MIB, id="64 MiB")]


@pytest.mark.deadline(240)
@pytest.mark.parametrize("quota, quota_bytes, size_max", QUOTAS)
def test_8_writers_at_10_times_a_quota_of(mount, site, quota, quota_bytes, size_max):
    m = mount(quota=quota)
    sampler = Sampler(m.store, m.pid)
    failed = run_children([(write_many, m.mnt, who, 10 * quota_bytes // 8, size_max) for who in range(8)], 200)
    most = sampler.finish()
    assert most["exact"] <= quota_bytes, f"over by {most['exact'] - quota_bytes} in {most['samples']} samples"
    assert most["walked"] <= quota_bytes, f"du saw {most['walked'] - quota_bytes} too much in {most['samples']} samples"
    assert sum(failed, []) == []
    stats = m.stats()
    assert stats["evicted_quota"] > 0 and stats["errors_enospc"] == 0
    assert stats["used_bytes"] >= disk_bytes(m.store)
    assert stats["logical_bytes"] > quota_bytes // 4, "most of the quota is not used"
    m.restart("kill")
    assert disk_bytes(m.store) <= quota_bytes
    m.stop()
    assert disk_bytes(m.store) <= quota_bytes
    site.check(m.store)


@pytest.mark.deadline(240)
def test_one_big_value_after_another_stays_under_quota(mount):
    """Values of a third of the quota, replaced and renamed: old and new must never both be there beyond it."""
    m = mount(quota="16M")
    sampler = Sampler(m.store, m.pid)
    for i in range(20):
        put(m.path(f"key-{i % 4}"), random_bytes(5 * MIB, i))
        assert first_difference(get(m.path(f"key-{i % 4}")), random_bytes(5 * MIB, i)) == ""
    most = sampler.finish()
    assert most["exact"] <= 16 * MIB


def test_metadata_counts_too(mount):
    """Names, xattrs and directories alone must not pass the quota: entries leave, or ENOSPC is the answer."""
    m = mount(quota="2M")
    sampler = Sampler(m.store, m.pid)
    refused = 0
    for i in range(400):
        path = m.path(f"{i:04d}" + "n" * 200)
        try:
            put(path, b"")
            os.setxattr(path, "user.a", random_bytes(10_000, i))
        except FileNotFoundError:
            pass  # evicted between the two calls
        except OSError as error:
            assert error.errno == errno.ENOSPC
            refused += 1
    assert sampler.finish()["exact"] <= 2 * MIB
    assert refused == 0
    put(m.path("later"), b"still works")
    assert get(m.path("later")) == b"still works"


def test_changes_in_place_count_too(mount):
    """A file overwritten and extended for ever, with fsync: the journal and old copies must not pile up."""
    m = mount(quota="8M")
    sampler = Sampler(m.store, m.pid)
    fd = os.open(m.path("database"), os.O_CREAT | os.O_RDWR)
    rng = random.Random(1)
    for i in range(800):
        os.pwrite(fd, random_bytes(8192, i), rng.randrange(300) * 8192)
        if i % 20 == 0:
            os.fsync(fd)
    for _ in range(3000):
        os.utime(fd)
    os.close(fd)
    assert sampler.finish()["exact"] <= 8 * MIB


# Bounds other than bytes

def test_max_entries_is_never_passed(mount):
    m = mount(max_entries=100)
    for i in range(1000):
        put(m.path(f"key-{i}"), b"x")
        assert len(os.listdir(m.mnt)) <= 100
    assert len(os.listdir(m.mnt)) >= 50
    stats = m.stats()
    assert stats["entries"] <= 100
    assert stats["evicted_entries"] >= 900
    assert stats["entries_max"] == 100


def test_max_entries_counts_symlinks_and_empty_files(mount):
    m = mount(max_entries=50)
    for i in range(200):
        os.symlink("x", m.path(f"link-{i}"))
        put(m.path(f"empty-{i}"), b"")
    assert len(os.listdir(m.mnt)) <= 50


def test_min_free_is_left_on_the_host(site):
    """The store is on a file system of 64 MiB of its own; half of that must stay free while 200 MB are written."""
    host = site.tmpfs("host", "64m")
    m = site.mount(store=os.path.join(host, "store"), quota="1G", min_free="32M")

    def host_free():
        st = os.statvfs(host)
        return st.f_bavail * st.f_frsize
    sampler = Sampler(m.store, m.pid, host_free)
    failed = run_children([(write_many, m.mnt, who, 50 * MIB, MIB) for who in range(4)])
    most = sampler.finish()
    assert most["extra"] >= 32 * MIB
    assert sum(failed, []) == []
    assert m.stats()["evicted_min_free"] > 0


def test_a_full_host_disk_evicts_first(site):
    """16 MiB of disk under a quota of 64: keys leave, no client sees an error, the store stays sound."""
    host = site.tmpfs("host", "16m")
    m = site.mount(store=os.path.join(host, "store"), quota="64M")
    m.allow("ENOSPC", "No space left", "min_free", "disk_full", "host")
    for i in range(400):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))
    assert get(m.path("key-399")) == random_bytes(100_000, 399)
    for name in os.listdir(m.mnt):
        assert get(m.path(name)) == random_bytes(100_000, int(name[4:]))
    m.restart("kill")
    for name in os.listdir(m.mnt):
        assert get(m.path(name)) == random_bytes(100_000, int(name[4:]))
    m.stop()
    site.check(m.store)


def test_a_host_disk_filled_by_others_is_an_error_and_no_more(site):
    host = site.tmpfs("host", "16m")
    m = site.mount(store=os.path.join(host, "store"), quota="64M")
    m.allow("ENOSPC", "No space left", "checkpoint", "disk", "host")
    put(m.path("before"), random_bytes(50_000))
    with open(os.path.join(host, "others"), "wb", buffering=0) as f:
        with raises(errno.ENOSPC):
            while True:
                f.write(bytes(65536))
    try:
        for i in range(20):
            put(m.path(f"key-{i}"), random_bytes(200_000, i))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.unlink(os.path.join(host, "others"))
    put(m.path("after"), random_bytes(50_000, 1))
    m.restart("kill")
    assert get(m.path("after")) == random_bytes(50_000, 1)
    m.stop()
    site.check(m.store)


# Who leaves

def survivors(m):
    return sorted(int(name[4:]) for name in os.listdir(m.mnt) if name.startswith("key-"))


def fill_until_evicted(m, counter, size):
    """New keys until counter moves; returns how many it took."""
    before = m.stats()[counter]
    for i in range(10_000):
        put(m.path(f"fill-{i}"), random_bytes(size, i))
        if m.stats()[counter] > before:
            return i + 1
    raise AssertionError(f"{counter} never moved")


USES = [
    pytest.param(get, id="a read"),
    pytest.param(lambda path: os.close(os.open(path, os.O_RDONLY)), id="an open alone"),
    pytest.param(lambda path: put(path, b"rewritten"), id="a write"),
]


@pytest.mark.parametrize("use", USES)
def test_the_least_recently_used_leave_in_order_after(mount, use):
    """Of 20 keys every third is used again; entries then leave one by one in exact order of their last use."""
    m = mount(max_entries=20)
    for i in range(20):
        put(m.path(f"key-{i}"), b"x")
    order = [i for i in range(20) if i % 3] + [i for i in range(0, 20, 3)]
    for i in range(0, 20, 3):
        use(m.path(f"key-{i}"))
    for i in range(20):
        put(m.path(f"fill-{i}"), b"x")
        left = survivors(m)
        assert left == sorted(order[20 - len(left):]), f"after {i + 1} new keys"
    assert survivors(m) == []


def test_looking_is_not_using(mount):
    """stat, readdir, getxattr do not make a key younger."""
    m = mount(max_entries=10)
    for i in range(10):
        put(m.path(f"key-{i}"), b"x")
    for _ in range(3):
        for entry in os.scandir(m.mnt):
            entry.stat()
            os.getxattr(entry.path, "user.larder.hits")
        os.stat(m.path("key-0"))
    for i in range(3):
        put(m.path(f"fill-{i}"), b"x")
    left = survivors(m)
    assert left == list(range(10 - len(left), 10)) and len(left) <= 7


def test_a_read_of_cached_pages_counts_through_its_open(mount):
    m = mount(max_entries=10)
    for i in range(10):
        put(m.path(f"key-{i}"), b"x" * 10_000)
    for _ in range(3):
        get(m.path("key-0"))
    for i in range(8):
        put(m.path(f"fill-{i}"), b"x")
    assert 0 in survivors(m)
    assert int(os.getxattr(m.path("key-0"), "user.larder.hits")) >= 3


def test_lru_order_holds_by_bytes_too(mount):
    """Under a byte quota the coldest leave first: the survivors are the most recently used ones, in one piece."""
    m = mount(quota="4M")
    for i in range(200):
        put(m.path(f"key-{i}"), random_bytes(30_000, i))
    left = survivors(m)
    assert left == list(range(200 - len(left), 200))
    assert len(left) >= 40


def test_pinned_keys_stay(mount):
    m = mount(max_entries=20)
    for i in range(5):
        put(m.path(f"key-{i}"), b"pinned")
        os.setxattr(m.path(f"key-{i}"), "user.larder.pin", b"1")
    for i in range(100):
        put(m.path(f"fill-{i}"), b"x")
    assert survivors(m) == [0, 1, 2, 3, 4]
    assert m.stats()["pinned"] == 5
    os.removexattr(m.path("key-0"), "user.larder.pin")
    os.setxattr(m.path("key-1"), "user.larder.pin", b"off")
    for i in range(100):
        put(m.path(f"fill-{i}"), b"x")
    assert survivors(m) == [2, 3, 4]


def test_a_pinned_directory_keeps_what_is_in_it(mount):
    m = mount(quota="4M")
    os.mkdir(m.path("pinned"))
    put(m.path("pinned", "before"), random_bytes(1000))
    os.setxattr(m.path("pinned"), "user.larder.pin", b"on")
    put(m.path("pinned", "after"), random_bytes(1000))
    for i in range(100):
        put(m.path(f"fill-{i}"), random_bytes(100_000, i))
    assert names(m.path("pinned")) == [b"after", b"before"]


def test_when_everything_is_pinned_writers_get_enospc(mount):
    m = mount(quota="4M")
    os.setxattr(m.mnt, "user.larder.pin", b"on")
    with raises(errno.ENOSPC):
        for i in range(100):
            put(m.path(f"key-{i}"), random_bytes(100_000, i))
    left = survivors(m)
    assert len(left) >= 20
    for i in left[:-1]:
        assert get(m.path(f"key-{i}")) == random_bytes(100_000, i)
    os.removexattr(m.mnt, "user.larder.pin")
    put(m.path("new"), random_bytes(100_000))


@pytest.mark.parametrize("size", [pytest.param(1000, id="small"), pytest.param(600_000, id="big")])
def test_an_open_file_stays_whole_when_it_is_the_coldest(mount, size):
    m = mount(quota="8M")
    data = random_bytes(size)
    put(m.path("open"), data)
    fd = os.open(m.path("open"), os.O_RDONLY)
    sampler = Sampler(m.store, m.pid)
    for i in range(300):
        put(m.path(f"fill-{i}"), random_bytes(100_000, i))
    assert first_difference(os.pread(fd, size + 1, 0), data) == ""
    assert os.fstat(fd).st_size == size
    assert sampler.finish()["exact"] <= 8 * MIB
    os.close(fd)
    for i in range(300):
        put(m.path(f"fill-{i}"), random_bytes(100_000, i))
    assert not os.path.exists(m.path("open"))


def test_an_evicted_name_is_gone_from_every_cache(mount):
    """The kernel knows the keys by stat and listing; once evicted none of them is found there any more."""
    m = mount(max_entries=30)
    for i in range(30):
        put(m.path(f"key-{i}"), b"x")
        os.stat(m.path(f"key-{i}"))
    os.listdir(m.mnt)
    for i in range(30):
        put(m.path(f"fill-{i}"), b"x")
    assert survivors(m) == []
    eventually(lambda: not any(os.path.exists(m.path(f"key-{i}")) for i in range(30)), 5, "evicted names vanish")


# The quota itself

def test_a_shrunk_quota_is_applied_at_the_next_mount(mount):
    m = mount(quota="32M")
    for i in range(280):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))
    kept = len(survivors(m))
    assert kept >= 250
    m.stop()
    before = disk_bytes(m.store)
    m.start(quota="8M")
    sampler = Sampler(m.store, m.pid)
    eventually(lambda: disk_bytes(m.store) <= 8 * MIB, 20, "the store shrinks to its quota")
    assert sampler.finish()["exact"] <= before + 256 * KIB
    left = survivors(m)
    assert left == list(range(280 - len(left), 280)) and len(left) >= 40
    for i in left:
        assert get(m.path(f"key-{i}")) == random_bytes(100_000, i)
    put(m.path("new"), random_bytes(100_000))
    assert disk_bytes(m.store) <= 8 * MIB


def test_a_grown_quota_is_used(mount):
    m = mount(quota="4M")
    for i in range(100):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))
    m.restart(quota="16M")
    for i in range(100):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))
    assert len(survivors(m)) == 100


def test_quota_0_keeps_nothing(mount):
    m = mount(quota="0")
    fd = os.open(m.path("key"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"value")
    assert os.pread(fd, 10, 0) == b"value"
    os.close(fd)
    eventually(lambda: os.listdir(m.mnt) == [], 2, "a closed file is gone at once")
    for i in range(200):
        put(m.path(f"key-{i}"), random_bytes(10_000, i))
    eventually(lambda: os.listdir(m.mnt) == [], 2, "closed files are gone at once")
    assert disk_bytes(m.store) <= 256 * KIB


@pytest.mark.parametrize("quota", ["1", "4096", "100K", "1023K"])
def test_too_small_a_quota_is_refused_naming_the_least(mount, quota):
    m = mount(start=False, quota=quota)
    m.allow("quota")
    with pytest.raises(MountFailed) as failure:
        m.start()
    assert failure.value.status not in (0, None)
    assert any(word in failure.value.text for word in ("1MiB", "1 MiB", "1M", "1048576"))


def fill_with_keys(m, count=40):
    for i in range(count):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))


def assert_keys(m, count=40):
    assert survivors(m) == list(range(count))
    for i in range(count):
        assert get(m.path(f"key-{i}")) == random_bytes(100_000, i)


ANNOUNCED = [
    pytest.param(lambda fd: sysx.fallocate(fd, 0, 0, 40 * MIB), id="fallocate"),
    pytest.param(lambda fd: sysx.fallocate(fd, sysx.FALLOC_KEEP_SIZE, 0, 40 * MIB), id="fallocate keeping the size"),
]


@pytest.mark.parametrize("announce", ANNOUNCED)
def test_nothing_is_lost_to_a_value_announced_too_large_by(mount, announce):
    m = mount(quota="16M")
    fill_with_keys(m)
    fd = os.open(m.path("huge"), os.O_CREAT | os.O_RDWR)
    with raises(errno.ENOSPC):
        announce(fd)
    os.close(fd)
    assert_keys(m)


def test_a_value_written_piece_by_piece_past_the_quota_gets_enospc(mount):
    """The write that passes the limit fails, the store stays within it, pinned keys stay, and the cache goes on."""
    m = mount(quota="16M")
    fill_with_keys(m)
    for i in range(40):
        os.setxattr(m.path(f"key-{i}"), "user.larder.pin", b"on")
    sampler = Sampler(m.store, m.pid)
    with raises(errno.ENOSPC):
        put(m.path("huge"), random_bytes(40 * MIB))
    os.unlink(m.path("huge"))
    assert sampler.finish()["exact"] <= 16 * MIB
    assert_keys(m)
    put(m.path("later"), random_bytes(5 * MIB))
    assert get(m.path("later")) == random_bytes(5 * MIB)


def test_nothing_is_lost_to_a_value_written_piece_by_piece_past_the_quota(mount):
    m = mount(quota="16M")
    fill_with_keys(m)
    with raises(errno.ENOSPC):
        put(m.path("huge"), random_bytes(40 * MIB))
    os.unlink(m.path("huge"))
    assert_keys(m)


def test_an_old_value_stays_when_its_successor_does_not_fit(mount):
    m = mount(quota="8M")
    put(m.path("key"), b"old value")
    os.setxattr(m.path("key"), "user.larder.pin", b"on")
    fd = os.open(m.path("key"), os.O_WRONLY | os.O_TRUNC)
    with raises(errno.ENOSPC):
        for i in range(20):
            os.write(fd, random_bytes(MIB, i))
    m.kill()
    try:
        os.close(fd)
    except OSError:
        pass  # its daemon is gone
    m.start()
    assert get(m.path("key")) == b"old value"


def test_df_tells_the_truth(mount):
    m = mount(quota="32M", max_entries=1000)
    st = os.statvfs(m.mnt)
    assert st.f_blocks * st.f_frsize == 32 * MIB
    for i in range(100):
        put(m.path(f"key-{i}"), random_bytes(100_000, i))
    st = os.statvfs(m.mnt)
    used = (st.f_blocks - st.f_bfree) * st.f_frsize
    assert 10_000_000 <= used <= 14_000_000
    assert used >= disk_bytes(m.store) - 4096
    assert st.f_files == 1000
    assert st.f_files - st.f_ffree in (100, 101)
