# SPDX-License-Identifier: BSD-2-Clause
"""Goal: the bytes of files obey POSIX: offsets, appends, truncation, holes, maps, copies, fsync, on every size class.
Method: each operation on values that live in memory, in segments and in big files, compared with the bytes computed."""

import errno
import mmap
import os
import random

import pytest

from harness import sysx
from harness.errors import raises
from harness.procs import Child, run_child, run_children
from harness.sysx import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from harness.values import first_difference, get, put, random_bytes, text_bytes

KIB, MIB = 1 << 10, 1 << 20

SIZES = [pytest.param(3000, id="a small value"), pytest.param(100 * KIB, id="a value of 100 KiB"),
         pytest.param(3 * MIB, id="a big value")]
MAKERS = [pytest.param(random_bytes, id="random"), pytest.param(text_bytes, id="compressible")]


def assert_bytes(path, wanted):
    assert first_difference(get(path), bytes(wanted)) == ""
    assert os.stat(path).st_size == len(wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("new", [pytest.param(0, id="to nothing"), pytest.param(0.37, id="down"),
                                 pytest.param(1.6, id="up"), pytest.param(1, id="to what it is")])
def test_truncate(fs, size, make, new):
    path = os.path.join(fs, "key")
    data = make(size)
    put(path, data)
    new = int(size * new)
    os.truncate(path, new)
    assert_bytes(path, data[:new] + bytes(max(0, new - size)))
    with open(path, "r+b", buffering=0) as f:
        f.truncate(size)
        f.seek(0, os.SEEK_END)
        f.write(b"end")
    assert_bytes(path, data[:min(new, size)] + bytes(size - min(new, size)) + b"end")


def test_bytes_cut_off_never_come_back(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    for size in (10, 5000, 300 * KIB, 5 * MIB):
        os.pwrite(fd, b"s" * size, 0)
        os.ftruncate(fd, 1)
        os.ftruncate(fd, size)
        assert first_difference(os.pread(fd, size, 0), b"s" + bytes(size - 1)) == ""
    os.close(fd)


def test_truncate_that_cannot_be(fs):
    path = os.path.join(fs, "key")
    put(path, b"x")
    with raises(errno.EINVAL):
        os.truncate(path, -1)
    with raises(errno.EISDIR):
        os.truncate(fs, 0)
    fd = os.open(path, os.O_RDONLY)
    with raises(errno.EINVAL):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
def test_random_writes_and_reads_in_place(fs, size, make):
    """An existing value is opened without truncation and overwritten here and there, as a database does."""
    path = os.path.join(fs, "key")
    model = bytearray(make(size))
    put(path, model)
    rng = random.Random(size)
    fd = os.open(path, os.O_RDWR)
    for i in range(120):
        offset, length = rng.randrange(size + 5000), rng.randrange(1, 9000)
        if rng.random() < 0.6:
            data = random_bytes(length, i)
            assert os.pwrite(fd, data, offset) == length
            if len(model) < offset + length:
                model.extend(bytes(offset + length - len(model)))
            model[offset:offset + length] = data
        else:
            assert first_difference(os.pread(fd, length, offset), bytes(model[offset:offset + length])) == ""
        if i % 40 == 0:
            os.fsync(fd)
    os.close(fd)
    assert_bytes(path, model)


def test_reading_past_the_end_and_writing_far_behind_it(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    assert os.pread(fd, 10, 0) == b""
    os.pwrite(fd, b"far", 20 * MIB)
    assert os.pread(fd, 10, 30 * MIB) == b""
    assert os.pread(fd, 10, 10 * MIB) == bytes(10)
    assert os.pread(fd, 10, 20 * MIB - 4) == bytes(4) + b"far"
    os.close(fd)
    assert os.stat(path).st_size == 20 * MIB + 3
    assert os.stat(path).st_blocks * 512 < 10 * MIB


# Appending

def append_lines(path, who, count):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for i in range(count):
        line = b"%d:%04d:" % (who, i) + b"x" * 50 + b"\n"
        assert os.write(fd, line) == len(line)
    os.close(fd)


def test_o_append_from_several_processes_loses_and_mixes_nothing(fs):
    path = os.path.join(fs, "log")
    put(path, b"")
    run_children([(append_lines, path, who, 1000) for who in range(4)])
    lines = get(path).splitlines()
    assert len(lines) == 4000
    for who in range(4):
        mine = [line for line in lines if line.startswith(b"%d:" % who)]
        assert [int(line.split(b":")[1]) for line in mine] == list(range(1000))
    assert all(line.endswith(b"x" * 50) for line in lines)


def test_o_append_writes_at_the_end_whatever_the_position(fs):
    path = os.path.join(fs, "log")
    put(path, b"0123456789")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 2, os.SEEK_SET)
    os.write(fd, b"end")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 13
    os.close(fd)
    assert get(path) == b"0123456789end"


# fallocate and holes

def test_fallocate_makes_room_and_size(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"data", 0)
    sysx.fallocate(fd, 0, 0, MIB)
    assert os.fstat(fd).st_size == MIB
    assert os.fstat(fd).st_blocks * 512 >= MIB
    assert os.pread(fd, MIB, 0) == b"data" + bytes(MIB - 4)
    os.close(fd)
    assert_bytes(path, b"data" + bytes(MIB - 4))


def test_fallocate_keep_size(fs):
    path = os.path.join(fs, "key")
    put(path, b"data")
    fd = os.open(path, os.O_RDWR)
    sysx.fallocate(fd, FALLOC_KEEP_SIZE, 0, MIB)
    assert os.fstat(fd).st_size == 4
    os.pwrite(fd, b"more", 4)
    os.close(fd)
    assert_bytes(path, b"datamore")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("mode", [pytest.param(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, id="punch a hole"),
                                  pytest.param(FALLOC_ZERO_RANGE, id="zero a range"),
                                  pytest.param(FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, id="zero, keep size")])
def test_zeroing(fs, size, make, mode):
    path = os.path.join(fs, "key")
    model = bytearray(make(size))
    put(path, model)
    fd = os.open(path, os.O_RDWR)
    for offset, length in ((1, 1), (size // 3, size // 3), (0, 4096), (size - 1000, 5000)):
        sysx.fallocate(fd, mode, offset, length)
        end = min(offset + length, len(model))
        model[offset:end] = bytes(end - offset)
        if mode == FALLOC_ZERO_RANGE and offset + length > len(model):
            model.extend(bytes(offset + length - len(model)))
        assert first_difference(os.pread(fd, len(model) + 1, 0), bytes(model)) == ""
    os.close(fd)
    assert_bytes(path, model)


def test_fallocate_that_cannot_be(fs):
    path = os.path.join(fs, "key")
    put(path, b"x")
    fd = os.open(path, os.O_RDWR)
    with raises(errno.EINVAL):
        sysx.fallocate(fd, 0, -1, 10)
    with raises(errno.EINVAL):
        sysx.fallocate(fd, 0, 0, 0)
    with raises(errno.EOPNOTSUPP, errno.EINVAL):
        sysx.fallocate(fd, FALLOC_PUNCH_HOLE, 0, 10)
    os.close(fd)


def test_a_punched_hole_gives_its_space_back(fs):
    path = os.path.join(fs, "key")
    put(path, random_bytes(8 * MIB))
    fd = os.open(path, os.O_RDWR)
    sysx.fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, MIB, 6 * MIB)
    os.close(fd)
    assert os.stat(path).st_blocks * 512 <= 3 * MIB


def holes_and_data(fd, size):
    """[(start, end)] of the data, by SEEK_DATA and SEEK_HOLE."""
    found, position = [], 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < position <= size
        found.append((start, position))
    return found


def test_seek_data_and_hole_in_a_sparse_file(fs):
    """Whatever is outside the data reported reads as zeros, and all that was written lies inside it."""
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 10 * MIB)
    written = (MIB, 4 * MIB, 9 * MIB)
    for offset in written:
        os.pwrite(fd, b"d" * 5000, offset)
    for _ in range(2):
        found = holes_and_data(fd, 10 * MIB)
        for offset in written:
            assert any(start <= offset and offset + 5000 <= end for start, end in found)
        assert sum(end - start for start, end in found) < 5 * MIB
        position = 0
        for start, end in found + [(10 * MIB, 0)]:
            assert not any(os.pread(fd, start - position, position))
            position = end
        os.close(fd)
        fd = os.open(path, os.O_RDONLY)
    os.close(fd)


def test_seek_data_and_hole_at_the_edges(fs):
    path = os.path.join(fs, "key")
    put(path, b"x" * 10000)
    fd = os.open(path, os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 123, os.SEEK_DATA) == 123
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 10000
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        with raises(errno.ENXIO):
            os.lseek(fd, 10000, whence)
    os.close(fd)


# Copies

@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
def test_copy_file_range(fs, size, make):
    source, target = os.path.join(fs, "source"), os.path.join(fs, "target")
    data = make(size)
    put(source, data)
    put(target, b"t" * 1000)
    fd_in, fd_out = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR)
    copied = 0
    while copied < size - 10:
        done = os.copy_file_range(fd_in, fd_out, size - 10 - copied, 10 + copied, 500 + copied)
        assert done > 0
        copied += done
    assert os.copy_file_range(fd_in, fd_out, 100, size, 0) == 0
    os.close(fd_in)
    os.close(fd_out)
    assert_bytes(target, b"t" * 500 + data[10:] + b"t" * max(0, 500 - (size - 10)))
    assert_bytes(source, data)


def test_copy_file_range_within_one_file(fs):
    path = os.path.join(fs, "key")
    data = random_bytes(20000)
    put(path, data)
    fd = os.open(path, os.O_RDWR)
    assert os.copy_file_range(fd, fd, 5000, 0, 10000) == 5000
    with raises(errno.EINVAL):
        os.copy_file_range(fd, fd, 5000, 0, 4000)
    os.close(fd)
    assert_bytes(path, data[:10000] + data[:5000] + data[15000:])


def test_sendfile_from_and_to_the_mount(fs, workdir):
    data = random_bytes(2 * MIB)
    put(os.path.join(workdir, "local"), data)
    for source, target in ((os.path.join(workdir, "local"), os.path.join(fs, "key")),
                           (os.path.join(fs, "key"), os.path.join(workdir, "back"))):
        with open(source, "rb") as reader, open(target, "wb") as writer:
            sent = 0
            while sent < len(data):
                sent += os.sendfile(writer.fileno(), reader.fileno(), sent, len(data) - sent)
        assert_bytes(target, data)


# Maps

@pytest.mark.parametrize("size", SIZES)
def test_a_private_map_reads_and_never_writes(fs, size):
    path = os.path.join(fs, "key")
    data = random_bytes(size)
    put(path, data)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        assert first_difference(view[:], data) == ""
        view[0:4] = b"mine"
    assert_bytes(path, data)


def change_map(path, offset, data):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as view:
        view[offset:offset + len(data)] = data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MAKERS)
def test_a_shared_map_is_shared_and_written_back(fs, size, make):
    path = os.path.join(fs, "key")
    model = bytearray(make(size))
    put(path, model)
    with open(path, "r+b") as f:
        view = mmap.mmap(f.fileno(), 0)
    view[100:105] = b"HELLO"
    model[100:105] = b"HELLO"
    run_child(change_map, path, 200, b"OTHER")
    model[200:205] = b"OTHER"
    assert view[200:205] == b"OTHER"
    view[size - 3:size] = b"END"
    model[size - 3:] = b"END"
    view.flush()
    assert first_difference(run_child(get, path), bytes(model)) == ""
    view[0:5] = b"FIRST"
    model[0:5] = b"FIRST"
    view.close()
    assert_bytes(path, model)


def test_a_map_and_write_see_each_other(fs):
    path = os.path.join(fs, "key")
    put(path, bytes(20000))
    fd = os.open(path, os.O_RDWR)
    view = mmap.mmap(fd, 20000)
    os.pwrite(fd, b"by write", 4090)
    assert view[4090:4098] == b"by write"
    view[9000:9006] = b"by map"
    view.flush()
    assert os.pread(fd, 6, 9000) == b"by map"
    view.close()
    os.close(fd)
    assert get(path)[9000:9006] == b"by map"


def test_a_map_outlives_the_name_and_the_descriptor(fs):
    path = os.path.join(fs, "key")
    data = random_bytes(500_000)
    put(path, data)
    with open(path, "rb") as f:
        view = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    os.unlink(path)
    assert first_difference(view[:], data) == ""
    view.close()


# fsync

@pytest.mark.parametrize("sync", [pytest.param(os.fsync, id="fsync"), pytest.param(os.fdatasync, id="fdatasync")])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_can_be_synced_while_written(fs, sync, size):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    data = random_bytes(size)
    for start in range(0, size, size // 3):
        os.write(fd, data[start:start + size // 3])
        sync(fd)
    os.close(fd)
    assert_bytes(path, data)


def test_directories_can_be_synced(fs):
    os.mkdir(os.path.join(fs, "directory"))
    fd = os.open(os.path.join(fs, "directory"), os.O_RDONLY)
    os.close(os.open("key", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)


def test_o_sync_and_o_dsync_writes(fs):
    for name, flag in (("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        fd = os.open(os.path.join(fs, name), os.O_CREAT | os.O_WRONLY | flag)
        os.write(fd, b"value")
        os.close(fd)
        assert get(os.path.join(fs, name)) == b"value"


# Several openers of one file

def test_two_writers_of_one_file_see_each_other(fs):
    path = os.path.join(fs, "key")
    put(path, b"." * 10)
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.pwrite(one, b"1", 0)
    os.pwrite(two, b"2", 1)
    assert os.pread(one, 3, 0) == os.pread(two, 3, 0) == b"12."
    os.close(one)
    os.pwrite(two, b"3", 2)
    assert get(path) == b"123" + b"." * 7
    os.close(two)
    assert get(path) == b"123" + b"." * 7


def write_stripes(path, who, count):
    fd = os.open(path, os.O_RDWR)
    for i in range(count):
        os.pwrite(fd, bytes([65 + who]) * 1000, (i * 4 + who) * 1000)
    os.close(fd)


def test_processes_writing_their_own_stripes_of_one_file(fs):
    path = os.path.join(fs, "key")
    put(path, b"")
    run_children([(write_stripes, path, who, 200) for who in range(4)])
    assert_bytes(path, b"".join(bytes([65 + i % 4]) * 1000 for i in range(800)))


def test_a_reader_keeps_reading_while_the_value_is_replaced_in_place(fs):
    """O_TRUNC under an open reader: it sees the new state of the file, as on any local file system."""
    path = os.path.join(fs, "key")
    put(path, b"old value")
    reader = os.open(path, os.O_RDONLY)
    assert os.pread(reader, 3, 0) == b"old"
    put(path, b"new")
    assert os.pread(reader, 100, 0) == b"new"
    os.close(reader)


def test_a_reader_of_a_big_value_sees_one_version_while_it_is_replaced_in_place(fs):
    """A passthrough reader may stay with the old version; what it reads is that one or the new one, never both."""
    path = os.path.join(fs, "key")
    old, new = random_bytes(2 * MIB, 1), random_bytes(2 * MIB, 2)
    put(path, old)
    reader = os.open(path, os.O_RDONLY)
    os.pread(reader, 4096, 0)
    put(path, new)
    assert os.pread(reader, 2 * MIB, 0) in (old, new)
    assert get(path) == new
    os.close(reader)


def test_a_descriptor_passed_to_a_child_writes_on(fs):
    path = os.path.join(fs, "key")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"parent ")
    child = Child(os.write, fd, b"child ")
    child.result()
    os.write(fd, b"parent")
    os.close(fd)
    assert get(path) == b"parent child parent"


def test_odirect_reads_and_writes_if_offered(fs, lacking):
    path = os.path.join(fs, "key")
    data = random_bytes(64 * KIB)
    put(path, data)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        assert error.errno == errno.EINVAL
        lacking("no O_DIRECT here")
    with mmap.mmap(-1, 64 * KIB) as aligned:
        assert os.preadv(fd, [aligned], 0) == 64 * KIB
        assert aligned[:] == data
        aligned[:8] = b"directly"
        assert os.pwritev(fd, [aligned], 0) == 64 * KIB
    os.close(fd)
    assert_bytes(path, b"directly" + data[8:])
