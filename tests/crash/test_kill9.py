# SPDX-License-Identifier: BSD-2-Clause
"""Goal: C2. What was closed, renamed, removed or set when the daemon is killed is exactly so after the remount.
Method: crash/kill9.py for a few rounds of each mode; run it by hand for thousands."""

import errno
import os
import random
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness.errors import raises  # noqa: E402
from kill9 import MODES, URING_PARAMETER, Campaign, OfferUring  # noqa: E402
from load import Client, prepare, verify  # noqa: E402
from oracle import State, new_file, piece, reconcile  # noqa: E402

pytestmark = pytest.mark.daemon


@pytest.mark.deadline(300)
@pytest.mark.parametrize("mode", MODES)
def test_sigkill_under_load(site, request, lacking, seed, mode):
    if mode == "uring" and not os.path.exists(URING_PARAMETER):
        lacking("this kernel has no FUSE over io_uring")
    with OfferUring(mode):
        campaign = Campaign(site, mode, seed)
        for number in range(request.config.getoption("--kill-rounds")):
            assert campaign.round() == [], f"round {number + 1}"


def known():
    """A client's directory: one file of two names."""
    state = State()
    state.nodes[2] = new_file(((1, 5000),), 0.0)
    state.nodes[2]["written"] = (0.0, 0.0)
    state.names = {(0, "k1"): 2, (0, "k2"): 2}
    return state


def lay_out(top, client, damage):
    path = os.path.join(top, "k1")
    with open(path, "wb") as f:
        f.write(client.data(((1, 5000),)))
    os.chmod(path, 0o644)
    os.link(path, os.path.join(top, "k2"))
    damage(path)


def make_stray(path):
    with open(path + "0", "wb") as f:
        f.write(b"back again")


def split(path):
    with open(path, "rb") as f:
        data = f.read()
    os.unlink(path)
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, 0o644)


def overwrite(path):
    with open(path, "r+b") as f:
        f.seek(4000)
        f.write(b"?")


@pytest.mark.parametrize("damage, expected", [
    (lambda path: None, None), (lambda path: os.truncate(path, 4000), "should be 5000"), (overwrite, "first differs at 4000"),
    (lambda path: os.truncate(path, 0), "should be 5000"), (os.unlink, "without its other names"), (make_stray, "should not be"),
    (split, "no hard link"), (lambda path: os.chmod(path, 0o600), "mode"), (lambda path: os.setxattr(path, "user.k0", b"x"), "xattrs"),
], ids=["nothing", "cut", "one byte", "emptied", "one name lost", "returned", "link split", "mode", "xattr"])
def test_the_verification_notices_what_is_wrong(workdir, damage, expected):
    """The oracle itself, on a plain directory."""
    client = Client(0)
    prepare(client, workdir)
    lay_out(client.folder(workdir), client, damage)
    state, wrong = reconcile(0, [("before", known())], client.folder(workdir), False)
    assert (expected is None and state is not None) or expected in wrong


def test_a_name_that_only_the_kernel_remembers_is_no_loss(mount, monkeypatch):
    """The daemon that would have told it is killed while the client looks: the dead mount still answers stat(2)."""
    m = mount()
    client = Client(0, loses=True)
    prepare(client, m.mnt)
    client.state = known()
    client.using = [(0, "k1")]
    monkeypatch.chdir(client.folder(m.mnt))
    lay_out(".", client, os.stat)

    def daemon_dies(_):
        m.kill(clear=False)
        assert os.path.lexists("k1")
        return False
    monkeypatch.setattr(client, "is_gone", daemon_dies)
    assert client.miss(FileNotFoundError(2, "evicted", "k1")) is None
    assert client.dead
    os.chdir("/")
    m.clear()


def test_after_a_refused_mapped_write_nothing_is_taken_for_granted(workdir, monkeypatch):
    """The pages show what the disk had no room for: the next write that succeeds says nothing of them."""
    client = Client(0, full_ok=True)
    client.rng = random.Random(1)
    prepare(client, workdir)
    monkeypatch.chdir(client.folder(workdir))

    def full(count, writes):
        pid = os.fork()
        if pid == 0:
            os._exit(errno.ENOSPC)
        return pid
    monkeypatch.setattr(client, "map_and_write", full)
    with raises(errno.ENOSPC):
        client.do_mapped()
    assert client.refused() is None
    assert (0, "db") not in client.state.names and not os.path.exists("db")


def test_a_removal_the_disk_has_no_room_for_may_come_back(workdir, monkeypatch):
    client = Client(0, loses=True, full_ok=True)
    prepare(client, workdir)
    monkeypatch.chdir(client.folder(workdir))
    client.state = known()
    lay_out(".", client, os.stat)
    client.pending = {2: client.state.nodes[2]}, {}
    unlink = os.unlink

    def unlink_and_fail(path):
        unlink(path)
        raise OSError(errno.ENOSPC, "no room for the record", path)
    monkeypatch.setattr(os, "unlink", unlink_and_fail)
    assert client.refused() is None
    assert set(client.state.ghosts) == {(0, "k1"), (0, "k2")} and not client.state.names


@pytest.mark.parametrize("change", ["do_rename_open", "do_in_place"])
def test_a_rename_commits_what_is_open_before_it_moves_it(workdir, monkeypatch, change):
    """The daemon is killed in between."""
    client = Client(0)
    client.rng = random.Random(1)
    prepare(client, workdir)
    monkeypatch.chdir(client.folder(workdir))

    def die(source, target):
        raise OSError(errno.ENOTCONN, "the daemon is gone", source, None, target)
    monkeypatch.setattr(os, "rename", die)
    with raises(errno.ENOTCONN):
        getattr(client, change)()
    assert verify(client, workdir) is None
    assert set(client.state.names) == set((0, name) for name in os.listdir("."))


def test_what_is_written_over_keeps_its_attributes(workdir, monkeypatch):
    """A crash leaves "open" there, and an exchange brings a file with xattrs to its place."""
    client = Client(0)
    client.rng = random.Random(1)
    prepare(client, workdir)
    monkeypatch.chdir(client.folder(workdir))
    client.state = known()
    client.state.names = {(0, "open"): 2}
    client.state.nodes[2] = {**client.state.nodes[2], "xattrs": {"user.k0": (7, 300)}}
    with open("open", "wb") as f:
        f.write(client.data(((1, 5000),)))
    os.chmod("open", 0o644)
    os.setxattr("open", "user.k0", piece(0, 7, 300))
    client.do_rename_open()
    assert verify(client, workdir) is None
