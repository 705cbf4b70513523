# SPDX-License-Identifier: BSD-2-Clause
"""Goal: every way to mount and stop works, and every reason not to mount has a message that says what to do.
Method: mount.larder is run as users and mount(8) run it; its exit status, its words, and the store are looked at."""

import os
import pwd
import re
import shutil
import signal
import stat
import sys

import pytest

from harness import corrupt, sysx
from harness.mount import MountFailed, find_mount, wait_mounted
from harness.values import get, names, put, random_bytes, text_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon


def refused(mount, *words, **options):
    """The mount fails, with a status that is not 0 and a message holding all words (regular expressions)."""
    m = mount(start=False, **options) if callable(mount) else mount
    m.allow(".")
    with pytest.raises(MountFailed) as failure:
        m.start()
    assert failure.value.status > 0
    for word in words:
        assert re.search(word, failure.value.text, re.IGNORECASE), f"no {word!r} in {failure.value.text!r}"
    assert not find_mount(m.mnt)
    assert len(failure.value.text.splitlines()) <= 3, failure.value.text
    return m


# The store

def test_a_missing_store_is_made_for_its_owner_only(mount):
    m = mount()
    st = os.stat(m.store)
    assert stat.S_IMODE(st.st_mode) == 0o700 and st.st_uid == 0
    assert "CACHEDIR.TAG" in os.listdir(m.store)
    with open(os.path.join(m.store, "CACHEDIR.TAG")) as f:
        assert f.read().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_store_whose_parent_is_missing(mount, site):
    refused(mount, "missing", "mkdir -p .*/missing/store", store=os.path.join(site.workdir, "missing", "store"))


def test_a_store_that_is_a_file(mount, site):
    path = os.path.join(site.workdir, "file")
    put(path, b"precious")
    refused(mount, re.escape(path), "not a directory", store=path)
    assert get(path) == b"precious"


def test_a_store_that_is_a_symlink(mount, site):
    os.mkdir(os.path.join(site.workdir, "real"), 0o700)
    os.symlink("real", os.path.join(site.workdir, "link"))
    refused(mount, "link", "symbolic|symlink", store=os.path.join(site.workdir, "link"))
    assert os.listdir(os.path.join(site.workdir, "real")) == []


def test_a_store_owned_by_another(mount):
    m = mount(start=False)
    os.mkdir(m.store, 0o700)
    os.chown(m.store, 41001, 41001)
    refused(m, re.escape(m.store), "own")
    assert os.listdir(m.store) == []


@pytest.mark.parametrize("mode", [pytest.param(0o770, id="the group"), pytest.param(0o702, id="all")])
def test_a_store_writable_by(mount, mode):
    m = mount(start=False)
    os.mkdir(m.store)
    os.chmod(m.store, mode)
    refused(m, re.escape(m.store), "writ|mode")
    assert os.listdir(m.store) == []


def test_a_directory_that_holds_something_else(mount):
    m = mount(start=False)
    os.mkdir(m.store, 0o700)
    put(os.path.join(m.store, "thesis.txt"), b"precious")
    refused(m, re.escape(m.store), "something else|not a larder|not empty|foreign|other")
    assert names(m.store) == [b"thesis.txt"]


def test_a_store_in_use_names_who_holds_it(mount):
    m = mount()
    other = mount(start=False, store=m.store)
    refused(other, "in use", rf"\b{m.pid}\b")
    put(m.path("key"), b"the first still works")
    m.kill()
    other.start()
    assert get(other.path("key")) == b"the first still works"


def test_a_store_of_a_newer_format(mount):
    m = mount()
    put(m.path("key"), b"value")
    m.stop()
    corrupt.reseal_header(os.path.join(m.store, "FORMAT"), 8, 2)
    before = {name: get(os.path.join(m.store, name)) for name in ("FORMAT", "CACHEDIR.TAG")}
    files = names(m.store)
    refused(m, "newer|version")
    assert names(m.store) == files
    for name, data in before.items():
        assert get(os.path.join(m.store, name)) == data
    corrupt.reseal_header(os.path.join(m.store, "FORMAT"), 8, 1)
    m.start()
    assert get(m.path("key")) == b"value"


# The mount point

def test_a_missing_mount_point(mount):
    m = mount(start=False)
    os.rmdir(m.mnt)
    refused(m, re.escape(m.mnt), "missing")
    os.mkdir(m.mnt)


def test_a_mount_point_that_is_a_file(mount):
    m = mount(start=False)
    os.rmdir(m.mnt)
    put(m.mnt, b"")
    refused(m, "not a directory")


def test_a_mount_point_that_is_not_empty(mount):
    m = mount(start=False)
    put(m.path("hidden"), b"")
    refused(m, "not empty", "nonempty")
    m.start(nonempty=True)
    assert os.listdir(m.mnt) == []


def test_a_mount_point_that_is_a_mount(mount, site):
    m = mount()
    result = site.run([site.daemon, os.path.join(site.workdir, "other"), m.mnt, "-f"])
    assert result.returncode > 0
    assert "already a mount" in result.stderr
    put(m.path("key"), b"x")


def test_a_store_inside_the_mount_point_and_the_other_way_round(mount, site):
    m = mount(start=False)
    refused(mount, "inside", store=os.path.join(site.workdir, "mnt1", "store"))
    os.makedirs(os.path.join(m.store, "mnt"), 0o700)
    result = site.run([site.daemon, m.store, os.path.join(m.store, "mnt"), "-f"])
    assert result.returncode > 0 and "inside" in result.stderr


def test_a_dead_mount_is_cleared_and_mounted_anew(mount):
    m = mount()
    put(m.path("key"), b"value")
    m.kill(clear=False)
    with pytest.raises(OSError):
        os.listdir(m.mnt)
    m.allow("dead_mount")
    m.start()
    assert get(m.path("key")) == b"value"


# Options

BAD_OPTIONS = [
    ("quota=lots", "quota", "size"), ("quota=-1", "quota", "size"), ("quota=5X", "quota", "size"),
    ("quota", "quota", "value"), ("quota=1M1M", "quota", "size"), ("quota=99999999999G", "quota", "size|range"),
    ("ttl=soon", "ttl", "age"), ("ttl=5", None, None), ("idle=1y", "idle", "age"), ("max_entries=many", "max_entries", "number"),
    ("min_free=150%", "min_free", "size"), ("compress=zip", "compress", "auto"), ("big_bytes=1", "big_bytes", "4KiB"),
    ("big_bytes=1G", "big_bytes", "4MiB"), ("durability=maybe", "durability", "close"), ("io_uring=perhaps", "io_uring", "auto"),
    ("passthrough=2", "passthrough", "auto"), ("threads=0", "threads", "1"), ("watchdog=0", "watchdog", "1s"), ("watchdog=never", "watchdog", "off"), ("threads=x", "threads", "number"),
    ("log_level=loud", "log_level", "debug"), ("ro=yes", "ro", "no value"), ("nonsense", "nonsense", "unknown"),
    ("qouta=1G", "qouta", "unknown"), ("QUOTA=1G", "QUOTA", "unknown"),
]


@pytest.mark.parametrize("text, name, form", BAD_OPTIONS, ids=[row[0].replace("=", " is ") for row in BAD_OPTIONS])
def test_option(site, mount, text, name, form):
    """A malformed option is refused by name with the accepted form, before anything is made."""
    m = mount(start=False)
    if name is None:
        m.options = {text.partition("=")[0]: text.partition("=")[2]}
        m.start()
        return
    result = site.run([site.daemon, m.store, m.mnt, "-f", "-o", text])
    assert result.returncode > 0
    assert f"option {name}" in result.stderr
    assert re.search(form, result.stderr)
    assert not os.path.exists(m.store)


GOOD_OPTIONS = ["quota=500M", "quota=1GiB", "quota=1.5G", "quota=2000000", "max_entries=0", "min_free=1%", "min_free=10M",
                "ttl=90", "ttl=1h30m", "ttl=none", "idle=2w", "big_bytes=64K", "threads=1", "watchdog=1h", "watchdog=off", "log_level=debug", "noatime",
                "nosuid,nodev", "defaults,_netdev,nofail,x-systemd.automount", "fsname=name", "rw", "io_uring=off",
                "passthrough=off", "durability=fsync", "compress=none"]


@pytest.mark.parametrize("text", GOOD_OPTIONS, ids=[row.replace("=", " is ") for row in GOOD_OPTIONS])
def test_accepted(mount, text):
    m = mount(start=False)
    m.options = {text: True}
    m.start()
    put(m.path("key"), b"value")
    assert get(m.path("key")) == b"value"


def test_long_options_and_help(site, mount):
    m = mount(start=False)
    shown = site.run([site.daemon, "--help"])
    assert shown.returncode == 0
    for name in ("quota", "max_entries", "min_free", "ttl", "idle", "compress", "big_bytes", "durability", "io_uring",
                 "passthrough", "ro", "threads", "watchdog", "log_level"):
        assert name in shown.stdout
    shown = site.run([site.daemon, "-V"])
    assert shown.returncode == 0 and re.search(r"larder \d+\.\d+", shown.stdout)
    result = site.run([site.daemon, "--nonsense", m.store, m.mnt])
    assert result.returncode > 0 and "nonsense" in result.stderr
    result = site.run([site.daemon])
    assert result.returncode > 0 and "usage" in result.stderr


def test_read_only(mount):
    m = mount()
    os.mkdir(m.path("directory"))
    put(m.path("key"), random_bytes(5000))
    put(m.path("big"), random_bytes(2_000_000))
    m.stop()
    files = {path: get(path) for prefix in ("journal-", "index-", "seg-", "big")
             for path in corrupt.store_files(m.store, prefix)}
    m.start(ro=True)
    assert get(m.path("key")) == random_bytes(5000)
    assert get(m.path("big")) == random_bytes(2_000_000)
    for call in (lambda: put(m.path("new"), b"x"), lambda: os.unlink(m.path("key")), lambda: os.mkdir(m.path("d")),
                 lambda: os.rename(m.path("key"), m.path("k2")), lambda: os.chmod(m.path("key"), 0o600),
                 lambda: os.setxattr(m.path("key"), "user.a", b"1"), lambda: os.truncate(m.path("key"), 0)):
        with pytest.raises(OSError, match=r"\[Errno 30\]"):
            call()
    m.stop()
    for path, data in files.items():
        assert get(path) == data
    m.start(ro=False)
    put(m.path("new"), b"x")


def test_nosuid_and_nodev_unless_wanted(mount):
    m = mount()
    with open("/proc/self/mountinfo") as f:
        line = next(line for line in f if f" {m.mnt} " in line)
    assert "nosuid" in line and "nodev" in line
    assert " - fuse.larder " in line


# Stopping

@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_clean_stop_by(mount, sig):
    m = mount()
    put(m.path("key"), b"value")
    m.stop(sig)
    assert not find_mount(m.mnt)
    m.start()
    assert get(m.path("key")) == b"value"
    assert m.stats()["clean_start"] == 1


def test_a_clean_stop_by_umount(mount, site):
    m = mount()
    put(m.path("key"), b"value")
    site.run_ok(["umount", m.mnt])
    m._wait_exit()
    assert m.process.returncode == 0
    m.process = None
    m.start()
    assert m.stats()["clean_start"] == 1


def test_a_daemon_killed_at_its_birth_dies(mount):
    """A daemon that waits for an answer of its own when it is killed would hold its /dev/fuse, and so wait for ever."""
    m = mount(start=False)
    for _ in range(100):
        m.start()
        m.kill()
    m.start()
    put(m.path("key"), b"value")


def test_umount_of_a_busy_mount_is_refused_and_harmless(mount, site):
    m = mount()
    fd = os.open(m.path("key"), os.O_CREAT | os.O_RDWR)
    assert site.run(["umount", m.mnt]).returncode != 0
    os.write(fd, b"still served")
    os.close(fd)
    assert get(m.path("key")) == b"still served"


def test_umount_detached_keeps_serving_open_files(mount):
    m = mount()
    put(m.path("key"), b"value")
    fd = os.open(m.path("key"), os.O_RDWR)
    sysx.umount(m.mnt, sysx.MNT_DETACH)
    assert os.pread(fd, 10, 0) == b"value"
    os.pwrite(fd, b"VALUE", 0)
    os.close(fd)
    m._wait_exit()
    assert m.process.returncode == 0
    m.process = None
    m.start()
    assert get(m.path("key")) == b"VALUE"


# In the background

def background(site, m, *more):
    return site.run([site.daemon, m.store, m.mnt, *more])


def stop_background(site, m):
    pid = m.daemon_of_store()
    pid_fd = os.pidfd_open(pid)
    try:
        site.run_ok(["umount", m.mnt])
        import select
        assert select.select([pid_fd], [], [], 20)[0], "the daemon ends after umount"
    finally:
        os.close(pid_fd)


def test_the_parent_returns_when_the_mount_answers(mount, site):
    m = mount(start=False)
    result = background(site, m, "-o", "quota=64M")
    assert result.returncode == 0, result.stderr
    assert find_mount(m.mnt, "fuse")
    put(m.path("key"), b"value")
    pid = m.daemon_of_store()
    assert os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "mount.larder"
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    for fd in ("0", "1", "2"):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
    stop_background(site, m)
    m.start()
    assert get(m.path("key")) == b"value"
    assert m.stats()["clean_start"] == 1


def test_the_parent_returns_the_daemons_error(mount, site):
    m = mount(start=False)
    os.mkdir(m.store, 0o700)
    put(os.path.join(m.store, "thesis.txt"), b"precious")
    result = background(site, m)
    assert result.returncode > 0
    assert m.store in result.stderr
    assert not find_mount(m.mnt)


def test_relative_paths_work_in_the_background(mount, site):
    m = mount(start=False)
    site.run_ok([site.daemon, os.path.basename(m.store), os.path.basename(m.mnt)], cwd=site.workdir)
    put(m.path("key"), b"value")
    stop_background(site, m)
    assert os.path.exists(os.path.join(m.store, "FORMAT"))


def test_mount_8_and_fstab(mount, site, need_program, lacking):
    """mount -t larder finds the helper in its path; here a private mount namespace lends it a /sbin of its own."""
    m = mount(start=False)
    helper = os.path.join(site.workdir, "sbin")
    os.mkdir(helper)
    shutil.copy(site.daemon, os.path.join(helper, "mount.larder"))
    script = f"""set -e
        mkdir {site.workdir}/upper {site.workdir}/work
        mount --make-rprivate /
        mount -t overlay overlay -o lowerdir={helper}:/sbin /sbin || mount --bind {helper} /usr/local/sbin
        mount -t larder {m.store} {m.mnt} -o quota=64M,noatime
        echo value > {m.mnt}/key
        cat {m.mnt}/key
        grep quota {m.mnt}/.larder/config
        umount {m.mnt}"""
    result = site.run([need_program("unshare"), "--mount", "sh", "-c", script], 60)
    if os.path.exists(os.path.join(m.store, "LOCK")):
        daemon = m.daemon_of_store()
        eventually(lambda: not os.path.exists(f"/proc/{daemon}"), 20, "the daemon ends after umount")
    if "unknown filesystem type" in result.stderr:
        lacking("mount(8) cannot be lent a helper here: no overlay")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "value\nquota 64M command line\n"


# As an ordinary user

USER_SCRIPT = """
set -e
mount --make-rprivate /
# Some machines keep /dev/fuse for root; distributions open it to all. A node of our own, seen in here only.
mkdir -p {work}/dev
mount -t tmpfs tmpfs {work}/dev
mknod -m 666 {work}/dev/fuse c 10 229
mount --bind {work}/dev/fuse /dev/fuse
exec setpriv --reuid={user} --regid={user} --clear-groups {python} -B {script} {daemon} {work}
"""

USER_CLIENT = """
import os, subprocess, sys
daemon, work = sys.argv[1:]
store, mnt = work + "/user/store", work + "/user/mnt"
os.mkdir(mnt)
def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    print(argv, done.returncode, done.stdout, done.stderr, file=sys.stderr)
    return done
done = run(daemon, store, mnt, "-o", "quota=64M")
assert done.returncode == 0, done.stderr
with open(mnt + "/key", "w") as f:
    f.write("value")
assert open(mnt + "/key").read() == "value"
st = os.stat(mnt + "/key")
assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid()), st
st = os.stat(mnt)
assert st.st_uid == os.getuid(), st
open(mnt + "/.larder/events").close
assert run("fusermount3", "-u", mnt).returncode == 0
pid = int(open(store + "/LOCK").read() or 0)
try:
    fd = os.pidfd_open(pid)
    import select
    assert select.select([fd], [], [], 20)[0], "the daemon ends"
except ProcessLookupError:
    pass
done = run(daemon, store, mnt, "-o", "allow_other")
assert done.returncode > 0 and "user_allow_other" in done.stderr, done.stderr
done = run(daemon, store, mnt)
assert done.returncode == 0, done.stderr
assert open(mnt + "/key").read() == "value"
pid = int(open(store + "/LOCK").read())
os.kill(pid, 15)
fd = os.pidfd_open(pid)
import select
assert select.select([fd], [], [], 20)[0], "the daemon ends"
assert os.listdir(mnt) == []
print("all done")
"""


def test_an_ordinary_user_mounts_through_fusermount3(site, need_program, lacking):
    """All of it in a private mount namespace: mount, use, unmount, mount again, SIGTERM."""
    need_program("fusermount3")
    need_program("setpriv")
    user = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants one that has a name
    home = os.path.join(site.workdir, "user")
    os.mkdir(home)
    os.chown(home, user, user)
    script = os.path.join(site.workdir, "client.py")
    put(script, USER_CLIENT.encode())
    # The build directory may be out of the user's reach.
    daemon = os.path.join(site.workdir, "mount.larder")
    shutil.copy(site.daemon, daemon)
    result = site.run(["unshare", "--mount", "sh", "-c", USER_SCRIPT.format(
        work=site.workdir, python=sys.executable, script=script, daemon=daemon, user=user)], 60)
    if result.returncode and "fusermount3: mount failed: Operation not permitted" in result.stderr:
        lacking("this machine does not let users mount")
    assert result.returncode == 0 and result.stdout == "all done\n", result.stderr


# Damage

def filled(mount, quota="256M"):
    """A store with everything in it, stopped: {name: bytes} of what it holds."""
    m = mount(quota=quota)
    wanted = {}
    os.makedirs(m.path("directory"))
    for i in range(60):
        wanted[f"directory/small-{i}"] = (random_bytes, text_bytes)[i % 2](3000 + i, i)
    for i in range(4):
        wanted[f"big-{i}"] = (random_bytes, text_bytes)[i % 2](1_000_000 + i, i)
    for name, data in wanted.items():
        put(m.path(name), data)
    return m, wanted


def assert_never_wrong(m, wanted):
    """Every name either reads back as it was written, or is missing, or is an error; nothing else is there.
    Returns how many were whole."""
    whole = 0
    for name, data in wanted.items():
        try:
            found = get(m.path(name))
        except OSError as error:
            assert error.errno in (2, 5), error
            continue
        assert found == data, f"wrong bytes in {name}"
        whole += 1
    for directory, _, files in os.walk(m.mnt):
        for name in files:
            assert os.path.relpath(os.path.join(directory, name), m.mnt) in wanted
    return whole


DAMAGE = [corrupt.flip, corrupt.cut, corrupt.zero, corrupt.empty, corrupt.remove, corrupt.garbage]
FILES = ["journal-", "index-", "seg-", "big", "FORMAT", "LOCK", "CACHEDIR.TAG"]


@pytest.mark.parametrize("how", ["stop", "kill"], ids=["after a clean stop", "after SIGKILL"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("prefix", FILES, ids=lambda prefix: prefix.rstrip("-"))
def test_damaged(mount, site, prefix, damage, how):
    """It mounts, never serves wrong bytes, goes on working, and `larder check` had told of the damage."""
    m, wanted = filled(mount)
    getattr(m, how)()
    m.allow("corrupt", "damage", "doubtful", "lost", "journal", "index", "segment", "seg-", "big", "superblock", "FORMAT",
            "missing", "recover")
    files = corrupt.store_files(m.store, prefix)
    if not files:
        m.start()
        return
    for i, path in enumerate(files):
        damage(path, i + 1)
    told = site.run([site.tool, "check", m.store])
    assert told.returncode in (0, 1, 2), told.stderr
    if damage is not corrupt.cut and prefix in ("seg-", "big"):
        assert told.returncode == 1, told.stdout + told.stderr
    if prefix == "FORMAT":
        # Without its superblock a directory cannot be told from a foreign one: refusing is right as well.
        try:
            m.start()
        except MountFailed as failure:
            assert "FORMAT" in failure.text or m.store in failure.text
            return
    else:
        m.start()
    assert_never_wrong(m, wanted)
    put(m.path("new"), random_bytes(10_000))
    assert get(m.path("new")) == random_bytes(10_000)
    os.unlink(m.path("new"))
    m.restart("kill")
    assert_never_wrong(m, wanted)


def test_one_damaged_value_is_one_counted_miss(mount):
    m, wanted = filled(mount)
    m.stop()
    m.allow("corrupt", "doubtful", "damage", "checksum")
    path = corrupt.store_files(m.store, "big")[0]
    corrupt.flip(path, 1, count=3)
    m.start()
    assert assert_never_wrong(m, wanted) == len(wanted) - 1
    stats = m.stats()
    assert stats["corrupt_records"] >= 1
    assert assert_never_wrong(m, wanted) == len(wanted) - 1
    eventually(lambda: len(os.listdir(m.mnt)) == 4, 5, "the doubtful key is dropped")


def test_a_damaged_key_can_be_written_anew(mount):
    m, wanted = filled(mount)
    m.stop()
    m.allow("corrupt", "doubtful", "damage", "checksum")
    for path in corrupt.store_files(m.store, "seg-") + corrupt.store_files(m.store, "big"):
        corrupt.garbage(path, 1)
    m.start()
    assert assert_never_wrong(m, wanted) == 0
    for name, data in wanted.items():
        put(m.path(name), data)
    assert assert_never_wrong(m, wanted) == len(wanted)
    m.restart("kill")
    assert assert_never_wrong(m, wanted) == len(wanted)


def test_files_swapped_between_stores_are_not_believed(mount):
    one, wanted_one = filled(mount)
    two = mount(quota="256M")
    for i in range(60):
        put(two.path(f"other-{i}"), random_bytes(3000 + i, 1000 + i))
    one.stop()
    two.stop()
    for m in (one, two):
        m.allow(".")
    for prefix in ("journal-", "index-", "seg-"):
        for left, right in zip(corrupt.store_files(one.store, prefix), corrupt.store_files(two.store, prefix)):
            os.rename(left, left + "x")
            os.rename(right, left)
            os.rename(left + "x", right)
    one.start()
    two.start()
    assert_never_wrong(one, wanted_one)
    assert_never_wrong(two, {f"other-{i}": random_bytes(3000 + i, 1000 + i) for i in range(60)})


def test_foreign_files_in_the_store_are_left_alone_or_counted(mount):
    m, wanted = filled(mount)
    m.stop()
    m.allow("foreign", "orphan", "unknown", "seg-", "journal", "index", "corrupt", "damage")
    for name in ("notes.txt", "seg-zzzzzzzz", "journal-1", "seg-ffffffff", "big/zz", "index-00000000x"):
        put(os.path.join(m.store, name), b"foreign" * 100)
    m.start()
    assert assert_never_wrong(m, wanted) == len(wanted)
    assert os.path.exists(os.path.join(m.store, "notes.txt"))


def test_a_symlink_in_place_of_a_store_file_is_not_followed(mount, site):
    m, wanted = filled(mount)
    m.stop()
    m.allow(".")
    victim = os.path.join(site.workdir, "victim")
    put(victim, b"precious" * 1000)
    for prefix in ("seg-", "journal-", "index-"):
        for path in corrupt.store_files(m.store, prefix):
            os.unlink(path)
            os.symlink(victim, path)
    m.start()
    assert_never_wrong(m, wanted)
    put(m.path("new"), random_bytes(100_000))
    m.stop()
    assert get(victim) == b"precious" * 1000


def test_a_missing_dev_fuse_says_what_to_do(site, mount, need_program):
    m = mount(start=False)
    script = f"mount --make-rprivate / && mount -t tmpfs tmpfs /dev && exec {site.daemon} {m.store} {m.mnt} -f"
    result = site.run([need_program("unshare"), "--mount", "sh", "-c", script])
    assert result.returncode > 0
    assert "/dev/fuse" in result.stderr and "modprobe fuse" in result.stderr


def test_wait_mounted_tells_death_from_readiness(site, mount):
    """The harness itself: a daemon that ends at once is noticed, not waited for."""
    import subprocess
    process = subprocess.Popen(["true"])
    assert not wait_mounted(os.path.join(site.workdir, "mnt"), process.pid)
    process.wait()
