# SPDX-License-Identifier: BSD-2-Clause
"""Goal: whatever was done to a store while nobody had it mounted, a mount never hangs or dies of it, never gives bytes that were
not put there, takes new values, and never touches what lies outside the store.
Method: a store with a value of every kind is copied, things are planted in the place of its files or moved between two
stores, and the real daemon mounts it. (Damage below good checksums: tests/fuzz and tests/unit/test_hostile.c.)"""

import os
import shutil
import socket
import stat

import pytest

from harness import corrupt
from harness.mount import MountFailed
from harness.values import get, put, random_bytes, text_bytes

pytestmark = pytest.mark.daemon

VICTIM = b"not larder's\n" * 1000

#: name: bytes. Small ones share a segment; the last is beyond big_bytes and raw, the one before packed.
CONTENT = {"d/one": b"1", "two": random_bytes(3000), "three": text_bytes(20_000), "packed": text_bytes(900_000),
           "raw": random_bytes(700_000)}


def fill(mnt, prefix=b""):
    os.mkdir(os.path.join(mnt, "d"))
    for name, data in CONTENT.items():
        put(os.path.join(mnt, name), prefix + data)
    os.symlink("two", os.path.join(mnt, "link"))
    for i in range(30):  # holes to punch, later
        put(os.path.join(mnt, f"gone{i}"), random_bytes(40_000))
    for i in range(0, 30, 2):
        os.unlink(os.path.join(mnt, f"gone{i}"))


@pytest.fixture
def filled(mount):
    """A mount whose store has been filled and whose daemon has stopped."""
    m = mount(quota="64M")
    fill(m.mnt)
    m.stop()
    m.allow("event=corrupt", "event=format_damaged", "^mount.larder: store ")
    return m


def check_it_serves(m):
    """Nothing is wrong of what is there, and what is put comes back, also after a restart."""
    for name, data in CONTENT.items():
        try:
            found = get(m.path(name))
        except OSError:
            continue
        assert found == data, name
    fresh = {"fresh": random_bytes(5000), "fresh big": random_bytes(600_000)}
    for name, data in fresh.items():
        put(m.path(name), data)
    m.restart("stop")
    for name, data in fresh.items():
        assert get(m.path(name)) == data, name


class Victim:
    """A file outside the store that must stay as it is, to the block."""

    def __init__(self, path, data=VICTIM):
        self.path = path
        if data is not None:
            with open(path, "wb") as f:
                f.write(data)
        self.before = self.look()

    def look(self):
        with open(self.path, "rb") as f:
            status = os.fstat(f.fileno())
            return f.read(), status.st_size, status.st_blocks, stat.S_IMODE(status.st_mode), status.st_mtime_ns

    def check(self):
        assert self.look() == self.before, self.path


def plant(kind, path, victim):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
    if kind == "link to a file":
        os.symlink(victim.path, path)
    elif kind == "link to a directory":
        os.symlink(os.path.dirname(victim.path), path)
    elif kind == "dangling link":
        os.symlink(victim.path + ".none", path)
    elif kind == "hard link":
        os.link(victim.path, path)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # /dev/full: a write to it would fail
    elif kind == "directory":
        os.makedirs(os.path.join(path, "below"))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            here = os.getcwd()
            os.chdir(os.path.dirname(path))  # the path of a socket is short
            try:
                s.bind(os.path.basename(path))
            finally:
                os.chdir(here)


KINDS = ["link to a file", "link to a directory", "dangling link", "hard link", "FIFO", "device", "directory", "socket"]

#: What is replaced at once, and whether the mount may be refused for it.
PLACES = {
    "LOCK": (lambda store: [os.path.join(store, "LOCK")], True),
    "FORMAT": (lambda store: [os.path.join(store, "FORMAT")], True),
    "CACHEDIR.TAG and the log": (lambda store: [os.path.join(store, "CACHEDIR.TAG")] + corrupt.store_files(store, "journal-") +
                                 corrupt.store_files(store, "index-"), False),
    "values": (lambda store: corrupt.store_files(store, "seg-") + corrupt.store_files(store, "big"), False),
    "big": (lambda store: [os.path.join(store, "big")], False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_planted_in_the_place_of(filled, workdir, place, kind):
    victim = Victim(os.path.join(workdir, "victim"))
    paths, may_refuse = PLACES[place]
    for path in paths(filled.store):
        plant(kind, path, victim)
    try:
        filled.start()
    except MountFailed as refused:
        assert may_refuse, refused
        assert place in refused.text, refused.text
    else:
        check_it_serves(filled)
        filled.stop()
    victim.check()


def test_a_hard_link_to_every_file_of_the_store(filled, workdir):
    """As a backup by `cp -al` leaves them: the other names must read for ever what they read now."""
    outside = os.path.join(workdir, "outside")
    os.mkdir(outside)
    victims = []
    for top, _, names in os.walk(filled.store):
        for name in names:
            if name == "LOCK":
                continue
            os.link(os.path.join(top, name), os.path.join(outside, f"{len(victims)}-{name}"))
            victims.append(Victim(os.path.join(outside, f"{len(victims)}-{name}"), None))
    filled.start()
    for name in ("raw", "packed"):
        if os.path.exists(filled.path(name)):
            with open(filled.path(name), "r+b") as f:
                f.write(b"changed in place")
                os.fsync(f.fileno())
    for name in os.listdir(filled.mnt):
        if name.startswith("gone"):
            os.unlink(filled.path(name))
    filled.stop()
    for victim in victims:
        victim.check()


def test_a_new_store_whose_first_files_are_planted(mount, workdir):
    """FORMAT.tmp may be there when a mount was killed early; it is not written over, lest it be another's."""
    victim = Victim(os.path.join(workdir, "victim"))
    m = mount(start=False, quota="64M")
    os.mkdir(m.store, 0o700)
    os.link(victim.path, os.path.join(m.store, "FORMAT.tmp"))
    m.start()
    put(m.path("k"), b"v")
    m.stop()
    victim.check()


@pytest.mark.parametrize("prefix", ["journal-", "index-", "seg-", "big", "FORMAT"])
def test_swapped_between_two_stores(filled, mount, prefix):
    """A file of another store, under the same name, is believed in nothing: every checksum is seeded with the store's id,
    or what it holds is not what the index says."""
    other = mount(quota="64M")
    fill(other.mnt, b"other ")
    other.stop()
    if prefix == "FORMAT":
        pairs = [(os.path.join(filled.store, "FORMAT"), os.path.join(other.store, "FORMAT"))]
    else:
        pairs = list(zip(corrupt.store_files(filled.store, prefix), corrupt.store_files(other.store, prefix)))
    assert pairs or prefix == "journal-"
    for ours, theirs in pairs:
        os.rename(ours, ours + ".swap")
        os.rename(theirs, ours)
        os.rename(ours + ".swap", theirs)
    filled.start()
    check_it_serves(filled)
    assert filled.stats()["read_only"] == 0


def test_the_store_is_a_symlink(filled, workdir):
    link = os.path.join(workdir, "link-to-store")
    os.symlink(filled.store, link)
    filled.store, real = link, filled.store
    with pytest.raises(MountFailed) as refused:
        filled.start()
    assert "symbolic link" in refused.value.text
    filled.store = real
    filled.start()
    check_it_serves(filled)


def test_segments_of_4_gib_that_hold_nothing(filled):
    """Sparse files take no space; they must take no memory either."""
    for path in corrupt.store_files(filled.store, "seg-"):
        os.truncate(path, 4 << 30)
    for no in range(0x1000, 0x1000 + 500):
        path = os.path.join(filled.store, f"seg-{no:08x}")
        with open(path, "wb") as f:
            f.truncate(4 << 30)
    filled.start()
    with open(f"/proc/{filled.pid}/status") as f:
        peak_kib = int(f.read().split("VmHWM:")[1].split()[0])
    assert peak_kib < 256 << 10
    check_it_serves(filled)


def test_names_far_off_use_up_no_numbers(filled):
    """A number is believed only when it was earned."""
    for name in ("journal-fffffff0", "index-fffffff0", "seg-efffffff", "seg-ffffffff"):
        open(os.path.join(filled.store, name), "wb").close()
    os.makedirs(os.path.join(filled.store, "big", "ff"), exist_ok=True)
    open(os.path.join(filled.store, "big", "ff", "7fffffffffffffff"), "wb").close()
    filled.start()
    check_it_serves(filled)
