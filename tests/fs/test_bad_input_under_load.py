# SPDX-License-Identifier: BSD-2-Clause
"""Goal: every row of bad input gets the same answer from a busy store as from an idle one, and the traffic beside it
neither loses nor mixes a byte; two misfortunes at once are no worse than each alone.
Method: clients that know what they wrote keep the mount busy while the bad input comes; then damage, SIGKILL and
refusals in pairs, verified against what the clients had acknowledged."""

import errno
import os
import struct

import pytest

from harness import corrupt, sysx
from harness.load import Load
from harness.mount import MountFailed
from harness.procs import run_children
from harness.values import random_bytes
from harness.wait import eventually

MIB = 1 << 20
pytestmark = pytest.mark.daemon
ANY_DAMAGE = ("corrupt", "damage", "doubtful", "lost", "journal", "index", "segment", "seg-", "big", "superblock",
              "FORMAT", "missing", "recover")


@pytest.fixture
def busy(mount):
    """A mount with clients at work on it, each of whom has keys already."""
    m = mount(quota="256M")
    load = Load(m)
    eventually(load.busy, 30, "every client has written")
    return m, load


def refused(mount, word, **options):
    """The daemon must not come up, and must say `word`."""
    mount.allow(r"^mount\.larder: ")
    with pytest.raises(MountFailed) as failure:
        mount.start(**options)
    assert failure.value.status not in (0, None)
    assert word in failure.value.text, failure.value.text


# Refusals beside a store that works


def second_owner(mount, m):
    refused(mount(start=False, store=m.store), f"process {m.pid}")


def store_that_is_a_symlink_to_the_busy_one(mount, m):
    link = m.store + "-link"
    if not os.path.islink(link):
        os.symlink(m.store, link)
    refused(mount(start=False, store=link), "symbolic link")


def quota_too_small(mount, m):
    refused(mount(start=False), "quota", quota="1k")


def unknown_option(mount, m):
    refused(mount(start=False), "nonsense", nonsense="1")


REFUSALS = [second_owner, store_that_is_a_symlink_to_the_busy_one, quota_too_small, unknown_option]


@pytest.mark.parametrize("attempt", REFUSALS, ids=lambda function: function.__name__.replace("_", " "))
def test_a_busy_store_does_not_notice(mount, busy, attempt):
    m, load = busy
    attempt(mount, m)
    attempt(mount, m)
    assert load.finish() > 0
    assert load.assert_kept() > 0
    m.restart("kill")
    load.assert_kept()


def hammer(path, rounds=60):
    """Everything a client may get wrong with names and xattrs; each has its one errno."""
    name = os.path.join(path, "hammered")
    with open(name, "wb") as f:
        f.write(b"x" * 4000)
    wrong = []

    def expect(number, call, *args):
        try:
            call(*args)
            wrong.append((call.__name__, args[:2], "accepted"))
        except OSError as error:
            if error.errno != number:
                wrong.append((call.__name__, args[:2], errno.errorcode[error.errno]))

    for _ in range(rounds):
        for policy, value in ((b"ttl", b"soon"), (b"ttl", b"-1s"), (b"idle", b""), (b"pin", b"perhaps"),
                              (b"expires", b"\xff" * 200), (b"ttl", b"9" * 400)):
            expect(errno.EINVAL, os.setxattr, name, b"user.larder." + policy, value)
        expect(errno.ENODATA, os.getxattr, name, b"user.larder.nonsense")
        expect(errno.ENAMETOOLONG, os.open, os.path.join(path, "n" * 256), os.O_CREAT | os.O_WRONLY)
        expect(errno.ENAMETOOLONG, os.rename, name, os.path.join(path, "n" * 256))
        expect(errno.ENOTDIR, os.open, os.path.join(name, "below"), os.O_CREAT | os.O_WRONLY)
        expect(errno.ERANGE, os.setxattr, name, b"user." + b"n" * 260, b"")
    with open(name, "rb") as f:
        assert f.read() == b"x" * 4000
    return wrong


def test_bad_names_and_xattrs_from_many_at_once(mount, busy):
    m, load = busy
    for n in range(3):
        os.mkdir(m.path(f"bad-{n}"))
    assert run_children([(hammer, m.path(f"bad-{n}")) for n in range(3)]) == [[], [], []]
    assert load.finish() > 0
    load.assert_kept()


def put_too_much(path, announced):
    """A value that can never fit, written piece by piece or announced: ENOSPC, and nothing else."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        if announced:
            sysx.fallocate(fd, 0, 0, 2048 * MIB)
        for _ in range(2048):
            os.write(fd, bytes(MIB))
    except OSError as error:
        return error.errno
    finally:
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        os.unlink(path)
    return 0


def test_values_that_can_never_fit_beside_traffic(mount):
    """Announced ones cost nobody a key, though four come at once while others write."""
    m = mount(quota="96M")
    load = Load(m, may_vanish=True)
    eventually(load.busy, 30, "every client has written")
    results = run_children([(put_too_much, m.path(f"huge-{n}"), True) for n in range(4)])
    assert results == [errno.ENOSPC] * 4
    load.finish()
    assert m.stats()["evicted_entries"] == 0
    load.assert_kept()


# Two at once

PAIRS = [
    ("journal-", corrupt.flip, "seg-", corrupt.cut),
    ("journal-", corrupt.cut, "index-", corrupt.remove),
    ("journal-", corrupt.remove, "big", corrupt.garbage),
    ("index-", corrupt.flip, "seg-", corrupt.zero),
    ("seg-", corrupt.remove, "big", corrupt.cut),
    ("FORMAT", corrupt.flip, "journal-", corrupt.zero),
    ("LOCK", corrupt.remove, "journal-", corrupt.flip),
]


def may_be_older(pair):
    """A journal cut short is what a killed daemon leaves that had written less: nobody can tell."""
    return ("journal-", corrupt.cut) in (pair[:2], pair[2:])


def pair_name(pair):
    return f"{pair[0].rstrip('-')} {pair[1].__name__} and {pair[2].rstrip('-')} {pair[3].__name__}"


@pytest.mark.parametrize("clear", [True, False], ids=["mount point cleared", "on the dead mount"])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_killed_while_busy_then_damaged_twice(mount, site, busy, pair, clear):
    """What reads back is what was acknowledged, or a miss; the store takes new values, and those are kept."""
    m, load = busy
    m.allow(*ANY_DAMAGE, "dead_mount")
    m.kill(clear=False)
    load.finish()  # before the mount point is bare, where a client would find its directory gone
    if clear:
        m.clear()
    damaged = 0
    for prefix, damage in (pair[:2], pair[2:]):
        for path in corrupt.store_files(m.store, prefix):
            damage(path, 7)
            damaged += 1
    assert damaged > 0
    told = site.run([site.tool, "check", m.store])
    assert told.returncode in ((0, 1) if may_be_older(pair) else (1, 2)), told.stdout + told.stderr
    m.start()
    load.assert_kept(may_miss=True, may_be_older=may_be_older(pair))
    os.makedirs(m.path("later"), exist_ok=True)
    later = {f"later/{i}": random_bytes(50_000 * i + 10, i) for i in range(10)}
    for name, data in later.items():
        m.write(name, data)
    m.restart("kill")
    for name, data in later.items():
        assert m.read(name) == data
    load.assert_kept(may_miss=True, may_be_older=may_be_older(pair))


def test_damaged_and_of_a_newer_format_is_refused_untouched(mount, busy):
    m, load = busy
    m.kill()
    load.finish()
    for path in corrupt.store_files(m.store, "seg-") + corrupt.store_files(m.store, "journal-"):
        corrupt.flip(path, 3)
    with open(os.path.join(m.store, "FORMAT"), "rb") as f:
        version = struct.unpack_from("<I", f.read(12), 8)[0]
    corrupt.reseal_header(os.path.join(m.store, "FORMAT"), 8, version + 1)
    before = snapshot(m.store)
    refused(m, f"version {version + 1}")
    assert snapshot(m.store) == before


def snapshot(top):
    """{relative path: bytes} of every file."""
    found = {}
    for directory, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(directory, name), "rb") as f:
                found[os.path.relpath(os.path.join(directory, name), top)] = f.read()
    return found


def test_shrunk_quota_and_damage_together(mount, busy):
    """Evicting down to the new quota walks over damaged values, and stays within it."""
    m, load = busy
    m.allow(*ANY_DAMAGE)
    load.finish()
    m.stop()
    for path in corrupt.store_files(m.store, "seg-"):
        corrupt.flip(path, 5)
    m.start(quota="4M")
    eventually(lambda: m.stats()["used_bytes"] <= 4 * MIB, 20, "the quota is applied")
    load.assert_kept(may_miss=True)


def test_a_full_host_disk_and_sigkill_and_damage(site):
    """Killed on a full disk, damaged, mounted on the disk still full: what can be served is; with room it goes on."""
    point = site.tmpfs("small", "24m")
    m = site.mount(quota="64M", store=os.path.join(point, "store"))
    m.allow(*ANY_DAMAGE, "ENOSPC", "No space", "full", "checkpoint")
    values = {f"key-{i}": random_bytes(40_000, i) for i in range(100)}
    for name, data in values.items():
        m.write(name, data)
    filler = os.path.join(point, "filler")
    with open(filler, "wb", buffering=0) as f:
        with pytest.raises(OSError):
            while True:
                f.write(bytes(65536))
    m.kill()
    journal = corrupt.store_files(m.store, "journal-")[-1]
    corrupt.flip(journal, 9, count=1)
    try:
        m.start()
    except MountFailed as failure:
        assert "No space" in failure.text and m.store in failure.text
    else:
        assert_values(m, values)
        m.kill()
    os.unlink(filler)
    m.start()
    assert_values(m, values)
    m.write("after", random_bytes(100_000))
    assert m.read("after") == random_bytes(100_000)


def assert_values(m, values):
    for name, data in values.items():
        try:
            assert m.read(name) == data, f"wrong bytes in {name}"
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.EIO)
