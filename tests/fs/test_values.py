# SPDX-License-Identifier: BSD-2-Clause
"""Goal: values of every size and kind come back byte for byte, however they are written and read, also after a restart.
Method: sizes around every threshold, random and compressible, written in pieces, overwritten, read at random places."""

import os
import random
import subprocess

import pytest

from harness.errors import raises
from harness.sysx import xxh3
from harness.values import first_difference, get, mixed_bytes, put, random_bytes, text_bytes

KIB, MIB = 1 << 10, 1 << 20

SIZES = [0, 1, 511, 512, 4095, 4096, 4097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB - 1, 256 * KIB,
         256 * KIB + 1, MIB, 4 * MIB + 1, 5 * MIB]
KINDS = [pytest.param(random_bytes, id="random"), pytest.param(text_bytes, id="compressible"),
         pytest.param(mixed_bytes, id="mixed"), pytest.param(lambda size, seed=0: bytes(size), id="zeros")]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("options", [
    pytest.param({}, id="by default"), pytest.param({"compress": "none"}, id="never compressed"),
    pytest.param({"compress": "lz4"}, id="always compressed"), pytest.param({"big_bytes": "4096"}, id="mostly big files"),
    pytest.param({"big_bytes": "4M"}, id="mostly segments"), pytest.param({"durability": "fsync"}, id="durable at close"),
    pytest.param({"io_uring": "off"}, id="without io_uring"), pytest.param({"passthrough": "off"}, id="without passthrough")])
def test_every_size(mount, site, make, options):
    m = mount(quota="512M", **options)
    wanted = {}
    for size in SIZES:
        wanted[str(size)] = make(size, size)
        put(m.path(str(size)), wanted[str(size)])
    for _ in range(3):
        for name, data in wanted.items():
            assert os.stat(m.path(name)).st_size == len(data)
            assert first_difference(get(m.path(name)), data) == "", f"{name} bytes"
        m.restart()
    m.stop()
    site.check(m.store)


@pytest.mark.parametrize("make", KINDS)
def test_64_mib(mount, make):
    m = mount(quota="256M")
    data = make(64 * MIB)
    put(m.path("key"), data)
    assert first_difference(get(m.path("key")), data) == ""
    m.restart()
    assert first_difference(get(m.path("key")), data) == ""


def test_programs_gather_what_they_write(mount):
    """As much as st_blksize tells, however it is asked for: a page would be 16 times the round trips."""
    m = mount()
    before = m.stats()["latency_write_count"]
    with open(m.path("key"), "wb") as f:
        for _ in range(1024):
            f.write(bytes(KIB))
    assert m.stats()["latency_write_count"] - before == 16
    assert os.stat(m.path("key")).st_blksize == 64 * KIB
    assert os.stat(m.mnt).st_blksize == 64 * KIB
    told = subprocess.run(["stat", "-c", "%o %W", m.path("key")], capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == str(64 * KIB)  # %W: the birth time, for which the kernel asks by STATX


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("piece", [pytest.param(1000, id="pieces of 1000 bytes"),
                                   pytest.param(65536, id="pieces of 64 KiB"),
                                   pytest.param(300_001, id="pieces of 300001 bytes")])
def test_written_in(fs, make, piece):
    data = make(2_500_000)
    with open(os.path.join(fs, "key"), "wb", buffering=0) as f:
        for start in range(0, len(data), piece):
            f.write(data[start:start + piece])
    assert first_difference(get(os.path.join(fs, "key")), data) == ""


@pytest.mark.parametrize("make", KINDS)
def test_random_access_into_a_large_value(mount, make):
    """The kernel's cache is dropped by a restart, so every read is the daemon's."""
    m = mount(quota="256M")
    data = make(16 * MIB)
    put(m.path("key"), data)
    m.restart()
    rng = random.Random(1)
    fd = os.open(m.path("key"), os.O_RDONLY)
    for _ in range(300):
        offset, length = rng.randrange(len(data)), rng.choice((1, 100, 4096, 70_000, 200_000))
        assert first_difference(os.pread(fd, length, offset), data[offset:offset + length]) == ""
    os.close(fd)


@pytest.mark.daemon
def test_random_access_does_not_decode_the_whole(mount):
    """A few small reads of a large compressed value must not cost what reading all of it costs."""
    m = mount(quota="256M")
    put(m.path("key"), text_bytes(64 * MIB))
    m.restart()
    before = m.stats()["read_bytes"]
    fd = os.open(m.path("key"), os.O_RDONLY)
    for offset in range(0, 64 * MIB, 8 * MIB):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(fd, 100, offset)) == 100
    os.close(fd)
    assert m.stats()["read_bytes"] - before < 8 * MIB


@pytest.mark.parametrize("size", [pytest.param(100, id="small"), pytest.param(100 * KIB, id="medium"),
                                  pytest.param(2 * MIB, id="big")])
def test_rewriting_a_value(mount, size):
    """Through O_TRUNC, by rename, in place: always the newest, also when kinds and sizes change."""
    m = mount(quota="256M")
    path = m.path("key")
    rng = random.Random(size)
    for version in range(30):
        data = (random_bytes if version % 2 else text_bytes)(rng.randrange(size // 2, size * 2), version)
        if version % 3 == 0:
            put(path, data)
        elif version % 3 == 1:
            m.write("key", data)
        else:
            with open(path, "r+b", buffering=0) as f:
                f.truncate(len(data))
                for start in range(0, len(data), 1 << 20):
                    f.write(data[start:start + (1 << 20)])
        assert first_difference(get(path), data) == "", f"version {version}"
    m.restart("kill")
    assert first_difference(get(path), data) == ""


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("size", [pytest.param(10 * KIB, id="small"), pytest.param(200 * KIB, id="medium"),
                                  pytest.param(3 * MIB, id="big")])
def test_partly_overwritten(mount, make, size):
    """Pieces of an existing value are overwritten, each time through a new open; all of it survives a crash."""
    m = mount(quota="256M")
    path = m.path("key")
    model = bytearray(make(size))
    put(path, model)
    rng = random.Random(size)
    for i in range(12):
        offset, length = rng.randrange(size), rng.randrange(1, 20_000)
        data = random_bytes(length, i)
        with open(path, "r+b", buffering=0) as f:
            f.seek(offset)
            f.write(data)
        if offset + length > len(model):
            model.extend(bytes(offset + length - len(model)))
        model[offset:offset + length] = data
        assert first_difference(get(path), bytes(model)) == ""
        if i % 4 == 3:
            m.restart("kill" if i == 3 else "stop")
            assert first_difference(get(path), bytes(model)) == ""


def test_a_sparse_value(mount, site):
    """Holes take no space, read as zeros, and stay holes over a restart."""
    m = mount(quota="64M")
    path = m.path("key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 1 << 30)
    for offset in (0, 100 * MIB, (1 << 30) - 4096):
        os.pwrite(fd, random_bytes(4096, offset), offset)
    os.close(fd)
    for _ in range(2):
        assert os.stat(path).st_size == 1 << 30
        assert os.stat(path).st_blocks * 512 < MIB
        fd = os.open(path, os.O_RDONLY)
        for offset in (0, 100 * MIB, (1 << 30) - 4096):
            assert os.pread(fd, 4096, offset) == random_bytes(4096, offset)
        assert not any(os.pread(fd, MIB, 500 * MIB))
        os.close(fd)
        m.restart("kill")
    m.stop()
    site.check(m.store)


def test_repeated_reads_give_the_same(fs):
    data = {str(size): random_bytes(size, size) for size in (100, 50_000, 3 * MIB)}
    for name, value in data.items():
        put(os.path.join(fs, name), value)
    for _ in range(20):
        for name, value in data.items():
            assert get(os.path.join(fs, name)) == value


@pytest.mark.daemon
def test_reading_a_cached_value_again_asks_the_daemon_for_nothing(mount):
    """Small reads come from the kernel's page cache on repeats: read_bytes stands still, hits do not."""
    m = mount()
    put(m.path("key"), random_bytes(20_000))
    get(m.path("key"))
    before = m.stats()
    for _ in range(10):
        get(m.path("key"))
    after = m.stats()
    assert after["read_bytes"] - before["read_bytes"] < 10_000
    assert after["hits"] - before["hits"] >= 10


# What larder tells about a value

def larder_xattr(path, name):
    return os.getxattr(path, f"user.larder.{name}").decode()


@pytest.mark.daemon
@pytest.mark.parametrize("size", [pytest.param(20 * KIB, id="small"), pytest.param(2 * MIB, id="big")])
def test_codec_and_stored_bytes(mount, size):
    m = mount(quota="64M")
    put(m.path("text"), text_bytes(size))
    put(m.path("random"), random_bytes(size))
    for _ in range(2):
        assert larder_xattr(m.path("text"), "codec") == "lz4"
        assert larder_xattr(m.path("random"), "codec") == "raw"
        assert int(larder_xattr(m.path("text"), "stored_bytes")) < size // 2
        assert size <= int(larder_xattr(m.path("random"), "stored_bytes")) <= size + size // 50 + 4096
        m.restart()


@pytest.mark.daemon
def test_compression_never_makes_a_value_larger(mount):
    m = mount(quota="64M", compress="lz4")
    for size in (1, 100, 4096, 100_000):
        put(m.path("key"), random_bytes(size))
        assert int(larder_xattr(m.path("key"), "stored_bytes")) <= size


@pytest.mark.daemon
def test_checksum_is_xxh3_of_the_bytes(mount):
    m = mount()
    for make in (random_bytes, text_bytes):
        data = make(12_345)
        put(m.path("key"), data)
        assert larder_xattr(m.path("key"), "checksum") == f"xxh3:{xxh3(data):016x}"


@pytest.mark.daemon
def test_compress_can_be_set_per_directory(mount):
    m = mount(quota="64M")
    os.mkdir(m.path("plain"))
    os.setxattr(m.path("plain"), "user.larder.compress", b"none")
    os.mkdir(m.path("plain", "packed"))
    os.setxattr(m.path("plain", "packed"), "user.larder.compress", b"lz4")
    for size in (20 * KIB, MIB):
        put(m.path("plain", "key"), text_bytes(size))
        put(m.path("plain", "packed", "key"), text_bytes(size))
        assert larder_xattr(m.path("plain", "key"), "codec") == "raw"
        assert larder_xattr(m.path("plain", "packed", "key"), "codec") == "lz4"
    with raises(22):
        os.setxattr(m.path("plain"), "user.larder.compress", b"zip")


@pytest.mark.daemon
def test_facts_cannot_be_set(mount):
    m = mount()
    put(m.path("key"), b"x")
    for name in ("hits", "age", "stored_bytes", "codec", "checksum", "source"):
        with pytest.raises(OSError):
            os.setxattr(m.path("key"), f"user.larder.{name}", b"1")
