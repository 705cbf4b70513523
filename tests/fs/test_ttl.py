# SPDX-License-Identifier: BSD-2-Clause
"""Goal: C3. A key past its deadline is a miss for every lookup, no sooner and at most a second later, restart or not.
Method: short ages, names asked for without pause until they are gone, and the moment compared with the deadline."""

import errno
import os
import time

import pytest

from harness import wait
from harness.errors import raises
from harness.values import get, names, put, random_bytes
from harness.wait import eventually, until

pytestmark = pytest.mark.daemon

#: How much later than its deadline a name may still be seen, seconds.
SLACK = 1.0


def exists(path):
    try:
        os.stat(path)
        return True
    except FileNotFoundError:
        return False


def assert_expires(path, earliest, latest):
    """path is there until `earliest` and gone by `latest` (plus slack), both on the monotonic clock."""
    seen = time.monotonic()
    while exists(path):
        seen = time.monotonic()
        assert seen <= latest + SLACK * wait.SLOWNESS, f"still there {seen - latest:.2f} s after its deadline"
    assert time.monotonic() >= earliest, f"gone {earliest - time.monotonic():.2f} s too soon"


class Written:
    """A key put at a known moment: expires(seconds) checks it goes that long after."""

    def __init__(self, path, data=b"value"):
        self.path = path
        self.before = time.monotonic()
        put(path, data)
        self.after = time.monotonic()

    def expires(self, seconds):
        assert_expires(self.path, self.before + seconds, self.after + seconds)


def setx(path, name, value):
    os.setxattr(path, f"user.larder.{name}", value.encode())


def getx(path, name):
    return os.getxattr(path, f"user.larder.{name}").decode()


# Where a ttl comes from

def test_the_mounts_ttl_counts_from_the_last_write(mount):
    m = mount(ttl="2s")
    key = Written(m.path("key"))
    until(key.after + 1)
    again = Written(m.path("key"), b"rewritten")
    get(m.path("key"))
    again.expires(2)
    assert names(m.mnt) == []
    assert m.stats()["expired_ttl"] == 1


def test_a_keys_own_ttl(mount):
    m = mount()
    key, other = Written(m.path("key")), Written(m.path("other"))
    setx(key.path, "ttl", "2s")
    key.expires(2)
    assert exists(other.path)


def test_a_directorys_ttl_covers_what_is_there_and_what_comes(mount):
    m = mount()
    os.makedirs(m.path("top", "below"))
    before = Written(m.path("top", "below", "before"))
    setx(m.path("top"), "ttl", "2s")
    later = Written(m.path("top", "below", "later"))
    outside = Written(m.path("outside"))
    before.expires(2)
    later.expires(2)
    assert exists(outside.path)
    assert names(m.path("top", "below")) == []
    assert exists(m.path("top", "below")), "directories stay"


def test_the_nearest_ttl_wins(mount):
    m = mount(ttl="1h")
    os.makedirs(m.path("top", "below"))
    setx(m.path("top"), "ttl", "2s")
    setx(m.path("top", "below"), "ttl", "30m")
    fast = Written(m.path("top", "fast"))
    slow = Written(m.path("top", "below", "slow"))
    own = Written(m.path("top", "below", "own"))
    setx(own.path, "ttl", "2s")
    never = Written(m.path("top", "never"))
    setx(never.path, "ttl", "none")
    fast.expires(2)
    own.expires(2)
    assert exists(slow.path) and exists(never.path)


def test_none_overrides_the_mounts_ttl(mount):
    m = mount(ttl="1s")
    os.mkdir(m.path("kept"))
    setx(m.path("kept"), "ttl", "none")
    kept = Written(m.path("kept", "key"))
    gone = Written(m.path("key"))
    gone.expires(1)
    until(kept.after + 2)
    assert get(kept.path) == b"value"


def test_a_moved_key_obeys_its_new_directory(mount):
    m = mount()
    os.mkdir(m.path("short"))
    os.mkdir(m.path("long"))
    setx(m.path("short"), "ttl", "2s")
    moved_in, moved_out = Written(m.path("long", "in")), Written(m.path("short", "out"))
    os.rename(m.path("long", "in"), m.path("short", "in"))
    os.rename(m.path("short", "out"), m.path("long", "out"))
    moved_in.path = m.path("short", "in")
    moved_in.expires(2)
    until(moved_out.after + 2.5)
    assert exists(m.path("long", "out"))


def test_a_moved_directory_takes_its_new_parents_ttl(mount):
    m = mount()
    os.makedirs(m.path("here", "tree"))
    os.mkdir(m.path("short"))
    setx(m.path("short"), "ttl", "2s")
    key = Written(m.path("here", "tree", "key"))
    assert exists(key.path)
    os.rename(m.path("here", "tree"), m.path("short", "tree"))
    key.path = m.path("short", "tree", "key")
    key.expires(2)


def test_a_ttl_shortened_below_the_age_expires_at_once(mount):
    m = mount()
    key = Written(m.path("key"))
    assert exists(key.path)
    until(key.after + 1)
    now = time.monotonic()
    setx(key.path, "ttl", "500ms")
    assert_expires(key.path, now, now)


def test_a_ttl_taken_away_or_prolonged_in_time_saves_the_key(mount):
    m = mount()
    longer, removed = Written(m.path("longer")), Written(m.path("removed"))
    for key in (longer, removed):
        setx(key.path, "ttl", "2s")
        assert exists(key.path)
    setx(longer.path, "ttl", "1h")
    os.removexattr(removed.path, "user.larder.ttl")
    until(max(longer.after, removed.after) + 3)
    assert exists(longer.path) and exists(removed.path)


# idle and expires

def test_idle_counts_from_the_last_use(mount):
    m = mount(idle="2s")
    key = Written(m.path("key"))
    for i in range(6):
        until(key.after + 0.6 * (i + 1))
        before = time.monotonic()
        get(key.path)
        after = time.monotonic()
    assert_expires(key.path, before + 2, after + 2)
    assert m.stats()["expired_idle"] == 1


def test_looking_at_a_key_does_not_keep_it(mount):
    """The loop of stats that waits for the end is no use of the key."""
    m = mount()
    os.mkdir(m.path("directory"))
    setx(m.path("directory"), "idle", "2s")
    Written(m.path("directory", "key")).expires(2)


def test_expires_is_a_moment(mount):
    m = mount()
    key = Written(m.path("key"))
    before = time.monotonic()
    setx(key.path, "expires", f"{time.time() + 2:.3f}")
    after = time.monotonic()
    put(key.path, b"writing does not move it")
    assert_expires(key.path, before + 1.9, after + 2.1)
    assert m.stats()["expired_expires"] == 1


def test_expires_can_be_said_from_now(mount):
    m = mount()
    key = Written(m.path("key"))
    before = time.monotonic()
    setx(key.path, "expires", "+2s")
    assert abs(float(getx(key.path, "expires")) - time.time() - 2) < 1
    assert_expires(key.path, before + 2, time.monotonic() + 2)


def test_the_sooner_of_ttl_and_idle_decides(mount):
    m = mount(ttl="2s", idle="1h")
    Written(m.path("key")).expires(2)


# No cache keeps what has expired

@pytest.mark.parametrize("touch", [
    pytest.param(lambda path: os.stat(path), id="a stat"),
    pytest.param(lambda path: get(path), id="a read"),
    pytest.param(lambda path: [entry.stat() for entry in os.scandir(os.path.dirname(path))], id="a listing"),
    pytest.param(lambda path: os.access(path, os.R_OK), id="an access")])
def test_the_kernel_forgets_what_it_cached_by(mount, touch):
    m = mount(ttl="2s")
    key = Written(m.path("key"))
    touch(key.path)
    until(key.after + 1.5)
    touch(key.path)
    key.expires(2)
    with raises(errno.ENOENT):
        os.open(key.path, os.O_RDONLY)
    assert os.listdir(m.mnt) == []


def test_expired_keys_are_not_listed_or_counted(mount):
    m = mount(ttl="1s")
    keys = [Written(m.path(f"key-{i}")) for i in range(50)]
    eventually(lambda: os.listdir(m.mnt) == [], 5, "all names expire")
    assert time.monotonic() >= keys[0].before + 1
    eventually(lambda: m.stats()["entries"] == 0, 5, "no entry is counted")


def test_an_expired_name_can_be_made_anew(mount):
    m = mount(ttl="1s")
    Written(m.path("key")).expires(1)
    fd = os.open(m.path("key"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, b"second life")
    os.close(fd)
    assert get(m.path("key")) == b"second life"


def test_an_open_file_stays_readable_past_its_deadline(mount):
    m = mount(ttl="1s")
    data = random_bytes(500_000)
    key = Written(m.path("key"), data)
    fd = os.open(key.path, os.O_RDONLY)
    key.expires(1)
    assert os.pread(fd, 1 << 20, 0) == data
    os.close(fd)


def test_a_file_being_written_does_not_expire_under_its_writer(mount):
    """ttl counts from the last write; a file without its first commit has none yet."""
    m = mount(ttl="1s")
    fd = os.open(m.path("key"), os.O_CREAT | os.O_WRONLY)
    start = time.monotonic()
    os.write(fd, b"first ")
    until(start + 2)
    os.write(fd, b"second")
    os.close(fd)
    assert get(m.path("key")) == b"first second"


def test_expired_space_comes_back(mount):
    m = mount(quota="64M", ttl="2s")
    empty = m.stats()["used_bytes"]
    for i in range(20):
        put(m.path(f"small-{i}"), random_bytes(50_000, i))
        put(m.path(f"big-{i}"), random_bytes(600_000, i))
    assert m.stats()["used_bytes"] > empty + 12_000_000
    eventually(lambda: m.stats()["used_bytes"] < empty + 1_500_000, 10, "expired values give their space back")
    stats = m.stats()
    assert stats["stored_bytes"] == 0 and stats["logical_bytes"] == 0
    assert stats["expired_ttl"] == 40


# Restart

@pytest.mark.parametrize("how", [pytest.param("stop", id="a clean stop"), pytest.param("kill", id="SIGKILL")])
@pytest.mark.parametrize("where", ["a key", "a directory", "the mount"])
def test_deadlines_of(mount, how, where):
    """...survive the restart: neither forgotten nor counted anew from the mount."""
    m = mount(**({"ttl": "3s"} if where == "the mount" else {}))
    os.mkdir(m.path("directory"))
    if where == "a directory":
        setx(m.path("directory"), "ttl", "3s")
    key = Written(m.path("directory", "key"))
    if where == "a key":
        setx(key.path, "ttl", "3s")
    until(key.after + 1)
    m.restart(how)
    assert get(key.path) == b"value"
    key.expires(3)


@pytest.mark.parametrize("how", [pytest.param("stop", id="a clean stop"), pytest.param("kill", id="SIGKILL")])
def test_what_expired_never_comes_back_after(mount, how):
    m = mount()
    expired, due = Written(m.path("expired")), Written(m.path("due"))
    setx(expired.path, "ttl", "1s")
    setx(due.path, "ttl", "2s")
    expired.expires(1)
    getattr(m, how)()
    until(due.after + 2)
    m.start()
    assert not exists(expired.path) and not exists(due.path)
    assert names(m.mnt) == []
    m.restart(ttl="1h")
    assert names(m.mnt) == []


# The attributes themselves

AGES = [("30s", "30s"), ("90", "1m30s"), ("90s", "1m30s"), ("5m", "5m"), ("24h", "1d"), ("7d", "1w"), ("2w", "2w"),
        ("1h30m", "1h30m"), ("36h", "1d12h"), ("none", "none")]


@pytest.mark.parametrize("given, read", AGES, ids=[f"{g} reads {r}" for g, r in AGES])
@pytest.mark.parametrize("name", ["ttl", "idle"])
def test_an_age(mount, name, given, read):
    m = mount()
    put(m.path("key"), b"")
    setx(m.path("key"), name, given)
    assert getx(m.path("key"), name) == read
    assert os.listxattr(m.path("key")) == []


@pytest.mark.parametrize("value", ["", " ", "x", "5x", "-1s", "s", "1h 30m ", "1.5.2h", "99999999999999999999d", "1h\n2m"])
@pytest.mark.parametrize("name", ["ttl", "idle", "expires", "pin", "compress"])
def test_a_malformed(mount, name, value):
    """EINVAL, and what was set before stays."""
    m = mount()
    put(m.path("key"), b"")
    good = {"ttl": "1h", "idle": "1h", "expires": "4000000000.000", "pin": "on", "compress": "lz4"}[name]
    target = m.mnt if name == "compress" else m.path("key")
    setx(target, name, good)
    with raises(errno.EINVAL):
        setx(target, name, value)
    assert getx(target, name) == good


def test_what_is_unset_has_no_data(mount):
    m = mount()
    put(m.path("key"), b"")
    for name in ("ttl", "idle", "expires", "pin"):
        with raises(errno.ENODATA):
            getx(m.path("key"), name)
        with raises(errno.ENODATA):
            os.removexattr(m.path("key"), f"user.larder.{name}")


def test_unknown_names_under_user_larder(mount):
    m = mount()
    put(m.path("key"), b"")
    for name in ("nonsense", "", "TTL", "ttl.more"):
        with raises(errno.ENODATA):
            getx(m.path("key"), name)
        with raises(errno.ENODATA, errno.EINVAL):
            setx(m.path("key"), name, "1s")
    assert os.listxattr(m.path("key")) == []


def test_source_says_who_set_what(mount):
    m = mount(ttl="1d")
    os.mkdir(m.path("top"))
    put(m.path("top", "key"), b"")
    assert "ttl:1d:mount" in getx(m.path("top", "key"), "source")
    setx(m.path("top"), "ttl", "2h")
    assert "ttl:2h:directory:/top" in getx(m.path("top", "key"), "source")
    assert getx(m.path("top", "key"), "ttl") == "2h"
    setx(m.path("top", "key"), "ttl", "3m")
    assert "ttl:3m:own" in getx(m.path("top", "key"), "source")
    os.removexattr(m.path("top", "key"), "user.larder.ttl")
    assert "ttl:2h:directory:/top" in getx(m.path("top", "key"), "source")
    assert "idle:none:default" in getx(m.path("top", "key"), "source")


def test_age_and_hits_are_told(mount):
    m = mount()
    put(m.path("key"), b"x")
    assert getx(m.path("key"), "age").endswith("s")
    assert getx(m.path("key"), "hits") == "0"
    for _ in range(3):
        get(m.path("key"))
    assert getx(m.path("key"), "hits") == "3"


def test_getfattr_and_setfattr_read_and_write_policies(mount, site, need_program):
    m = mount()
    put(m.path("key"), b"x")
    site.run_ok([need_program("setfattr"), "-n", "user.larder.ttl", "-v", "90s", m.path("key")])
    shown = site.run_ok([need_program("getfattr"), "--absolute-names", "--only-values", "-n", "user.larder.ttl",
                         m.path("key")]).stdout
    assert shown == "1m30s"
    assert site.run_ok(["getfattr", "--absolute-names", "-d", "-m", "-", m.path("key")]).stdout == ""


COPIERS = [pytest.param(["cp", "-a", "{from}/.", "{to}"], id="cp -a"),
           pytest.param(["rsync", "-aX", "{from}/", "{to}/"], id="rsync -aX")]


@pytest.mark.parametrize("command", COPIERS)
def test_policies_are_not_copied_by(mount, site, need_program, command):
    m = mount()
    os.mkdir(m.path("from"))
    os.mkdir(m.path("to"))
    put(m.path("from", "key"), b"value")
    os.setxattr(m.path("from", "key"), "user.mine", b"copied")
    for name, value in (("ttl", "1h"), ("pin", "on"), ("idle", "1h")):
        setx(m.path("from", "key"), name, value)
    need_program(command[0])
    site.run_ok([word.format(**{"from": m.path("from"), "to": m.path("to")}) for word in command])
    assert get(m.path("to", "key")) == b"value"
    assert os.getxattr(m.path("to", "key"), "user.mine") == b"copied"
    for name in ("ttl", "pin", "idle"):
        with raises(errno.ENODATA):
            getx(m.path("to", "key"), name)
