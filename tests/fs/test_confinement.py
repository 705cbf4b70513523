# SPDX-License-Identifier: BSD-2-Clause
"""Goal: a mounted daemon has given up what `.larder/config` says it has, every thread of it, and still stops without
leaving a mount or a process behind, as root and as an ordinary user. Method: the kernel's word in /proc/PID/status.
What a confined process cannot do is tried from inside one by tests/unit/test_confine.c."""

import contextlib
import errno
import os
import pwd
import re
import shutil
import signal
import sys

import pytest

from harness.errors import raises
from harness.mount import find_mount
from harness.procs import run_children
from harness.values import get, put, random_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon

MEASURES = ("no_new_privs", "landlock", "drop_caps", "seccomp")
CAP_SYS_ADMIN = 1 << 21


def config(m):
    """{name: (value, source or reason)}"""
    rows = [line.split(" ", 2) for line in m.read(".larder", "config").decode().splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows}


def in_force(m, measure):
    """Whether a measure is active; one that is not must say why, and only the build may be the reason."""
    value, reason = config(m)[f"{measure}_active"]
    assert value in ("on", "off") and reason
    if value == "off":
        assert "sanitizer build" in reason or "built without" in reason, f"{measure}: {reason}"
    return value == "on"


def statuses(pid):
    """One {field: value} for each thread; those that end meanwhile are left out."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{task}/status") as f:
            found.append(dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line))
    return found


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(word) for word in f.read().split()]


def is_gone(pid):
    """Ended, or only waiting to be reaped by whoever inherited it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def make_threads_work(m):
    """All kinds of threads: those that serve, workers (fsync, policies), the engine's own."""
    def client(i):
        path = m.path(f"key-{i}")
        put(path, random_bytes(300_000 + i))
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
        os.setxattr(path, "user.larder.ttl", b"1h")
        assert len(get(path)) == 300_000 + i
    run_children([(client, i) for i in range(8)])


def test_every_thread_is_confined(mount):
    m = mount(quota="64M")
    make_threads_work(m)
    found = statuses(m.pid)
    assert len(found) > 3
    wanted_caps = CAP_SYS_ADMIN if config(m)["passthrough_active"][0] == "on" else 0
    for status in found:
        if in_force(m, "no_new_privs"):
            assert status["NoNewPrivs"] == "1"
        if in_force(m, "seccomp"):
            assert status["Seccomp"] == "2"
        if in_force(m, "drop_caps"):
            assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (wanted_caps, wanted_caps)
            for name in ("CapInh", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, name
    in_force(m, "landlock")


def test_no_capability_is_left_without_passthrough(mount):
    m = mount(passthrough="off")
    make_threads_work(m)
    for status in statuses(m.pid):
        assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_each_can_be_switched_off(mount, measure):
    m = mount(passthrough="off", **{measure: "off"})
    rows = config(m)
    assert rows[measure] == ("off", "command line")
    assert rows[f"{measure}_active"] == ("off", "switched off by option")
    for status in statuses(m.pid):
        if measure == "no_new_privs":
            assert status["NoNewPrivs"] == "0"
        if measure == "seccomp":
            assert status["Seccomp"] == "0"
        if measure == "drop_caps":
            assert int(status["CapEff"], 16) & CAP_SYS_ADMIN
    put(m.path("key"), b"works")
    assert get(m.path("key")) == b"works"


def test_each_can_be_demanded(mount):
    default = mount()
    wanted = {measure: "on" for measure in MEASURES if in_force(default, measure)}
    m = mount(**wanted)
    for measure in wanted:
        assert config(m)[measure] == ("on", "command line")
        assert config(m)[f"{measure}_active"][0] == "on"


def test_doctor_tells(mount, site):
    m = mount(seccomp="off")
    report = site.run([site.tool, "doctor", m.mnt]).stdout
    for measure in MEASURES:
        assert re.search(rf"^\w+ +mount: {measure} ", report, re.MULTILINE), report
    assert re.search(r"^note +mount: seccomp +not in use\n +→ switched off by option", report, re.MULTILINE), report


# The helper

def test_the_helper_holds_nothing_of_the_daemons(mount):
    """Not /dev/fuse, which would keep a dead mount's clients waiting; not LOCK, which would keep the store in use."""
    m = mount()
    helpers = children(m.pid)
    assert len(helpers) == 1

    def held():
        found = []
        for fd in os.listdir(f"/proc/{helpers[0]}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{helpers[0]}/fd/{fd}").split("[")[0])
        return found

    # When it has just been asked, it still reads its mountinfo.
    eventually(lambda: sorted(held()) == ["/dev/null"] * 3 + ["socket:"] * 2, 10, held)


def unmount_by(site, *argv):
    """Again while it is busy: whoever looked at the mount a moment ago may still be letting go."""
    eventually(lambda: site.run(argv).returncode == 0, 10, " ".join(argv))


STOPS = {
    "SIGTERM": lambda m, site: os.kill(m.pid, signal.SIGTERM),
    "SIGTERM to all processes, as a service manager does": lambda m, site: os.killpg(m.pid, signal.SIGTERM),
    "umount": lambda m, site: unmount_by(site, "umount", m.mnt),
    "larder umount": lambda m, site: unmount_by(site, site.tool, "umount", m.mnt),
    "fusermount3": lambda m, site: unmount_by(site, "fusermount3", "-u", m.mnt),
}


@pytest.mark.parametrize("how", STOPS)
def test_nothing_is_left_behind_by(mount, site, how):
    m = mount()
    helper, = children(m.pid)
    STOPS[how](m, site)
    eventually(lambda: m.process.poll() is not None, 20, "the daemon ends")
    assert m.process.returncode == 0, m.log()
    m.process = None
    assert not find_mount(m.mnt)
    eventually(lambda: is_gone(helper), 10, "the helper ends")


def test_a_stop_while_files_are_open_takes_the_mount_away(mount):
    m = mount()
    put(m.path("key"), b"x")
    fd = os.open(m.path("key"), os.O_RDONLY)
    os.kill(m.pid, signal.SIGTERM)
    eventually(lambda: not find_mount(m.mnt), 20, "the mount goes")
    os.close(fd)
    m._wait_exit()
    assert m.process.returncode == 0
    m.process = None


def test_sigkill_of_the_daemon_alone_ends_the_helper_and_frees_the_store(mount):
    m = mount()
    m.allow("dead_mount_cleared")
    put(m.path("key"), b"x")
    helper, = children(m.pid)
    os.kill(m.pid, signal.SIGKILL)
    m.process.wait(20)
    m.process = None
    eventually(lambda: is_gone(helper), 10, "the helper ends")
    with raises(errno.ENOTCONN, errno.ECONNABORTED):
        os.stat(m.path("key"))
    m.start()
    assert get(m.path("key")) == b"x"


# An ordinary user

USER_SCRIPT = """
set -e
mount --make-rprivate /
mkdir -p {work}/dev
mount -t tmpfs tmpfs {work}/dev
mknod -m 666 {work}/dev/fuse c 10 229
mount --bind {work}/dev/fuse /dev/fuse
exec setpriv --reuid={user} --regid={user} --clear-groups {python} -B {script} {daemon} {tool} {work}
"""

USER_CLIENT = """
import os, select, signal, subprocess, sys, time
daemon, tool, work = sys.argv[1:]
store, mnt = work + "/user/store", work + "/user/mnt"
os.mkdir(mnt)
def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)
def config(name):
    for line in open(mnt + "/.larder/config"):
        if line.startswith(name + " "):
            return line.split(" ", 2)[1:]
def status(pid, name):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(name + ":"):
            return line.split()[1]
def unmount(*argv):
    deadline = time.monotonic() + 10
    while run(*argv).returncode and time.monotonic() < deadline:
        select.select([], [], [], 0.01)  # busy: whoever looked a moment ago may still be letting go
def mounted():
    return mnt in open("/proc/self/mountinfo").read()
stops = {
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "fusermount3": lambda pid: unmount("fusermount3", "-u", mnt),
    "larder umount": lambda pid: unmount(tool, "umount", mnt),
}
for name, stop in stops.items():
    done = run(daemon, store, mnt)
    assert done.returncode == 0, done.stderr
    pid = int(config("pid")[0])
    helper = int(open(f"/proc/{pid}/task/{pid}/children").read())
    sanitized = "build" in config("seccomp_active")[1] or "built" in config("seccomp_active")[1]
    assert status(pid, "NoNewPrivs") == "1"
    assert status(pid, "Seccomp") == ("0" if sanitized else "2")
    assert int(status(pid, "CapPrm"), 16) == 0
    assert config("landlock_active")[0] == "on" or "sanitizer" in config("landlock_active")[1], config("landlock_active")
    fds = [os.pidfd_open(pid), os.pidfd_open(helper)]
    stop(pid)
    for fd in fds:
        assert select.select([fd], [], [], 20)[0], f"{name}: a process stays"
    assert not mounted(), f"{name}: the mount stays"
if not sanitized:
    # What cannot be is reported, unless it is demanded.
    done = run(daemon, store, mnt, "-o", "no_new_privs=off")
    assert done.returncode == 0, done.stderr
    for measure in ("landlock", "seccomp"):
        assert config(measure + "_active") == ["off", "it needs no_new_privs\\n"], config(measure + "_active")
    unmount(tool, "umount", mnt)
    done = run(daemon, store, mnt, "-o", "no_new_privs=off,landlock=on")
    assert done.returncode == 1 and "option landlock=on: it needs no_new_privs" in done.stderr, done.stderr
    assert not mounted()
print("all done")
"""


def test_an_ordinary_users_daemon_is_confined_and_leaves_nothing(site, need_program):
    for program in ("fusermount3", "setpriv", "unshare"):
        need_program(program)
    user = pwd.getpwnam("nobody").pw_uid
    home = os.path.join(site.workdir, "user")
    os.mkdir(home)
    os.chown(home, user, user)
    script = os.path.join(site.workdir, "client.py")
    put(script, USER_CLIENT.encode())
    daemon, tool = os.path.join(site.workdir, "mount.larder"), os.path.join(site.workdir, "larder")
    shutil.copy(site.daemon, daemon)  # the build directory may be out of the user's reach
    shutil.copy(site.tool, tool)
    result = site.run(["unshare", "--mount", "sh", "-c", USER_SCRIPT.format(
        work=site.workdir, python=sys.executable, script=script, daemon=daemon, tool=tool, user=user)], 60)
    assert result.returncode == 0 and result.stdout == "all done\n", result.stderr
