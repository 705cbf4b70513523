# SPDX-License-Identifier: BSD-2-Clause
"""Goal: a mount whose daemon is dead or does not answer can be cleared: by larder mount, larder umount and a service manager.
Method: dead mounts are made busy, by root and by an ordinary user, before they are cleared; SIGSTOP makes a mount silent;
the commands of the systemd units are run as systemd would."""

import errno
import os
import pwd
import signal
import time

import pytest

from harness import sysx
from harness.errors import GONE, fails_with
from harness.mount import MountFailed, find_mount
from harness.notify import NotifySocket
from harness.procs import Child, run_child
from harness.values import random_bytes
from harness.wait import Deadline, eventually

pytestmark = pytest.mark.daemon

USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants to know the user's name


def put(path, data):
    with open(path, "wb", buffering=0) as f:
        f.write(data)


# ---- dead and stuck mounts ----

def stay_busy(mnt, ready_fd):
    """A client that will not let go: its directory, an open file and a mapping are in the mount."""
    import mmap
    os.chdir(mnt)
    fd = os.open("k", os.O_RDWR)
    mapping = mmap.mmap(fd, 0)
    assert mapping[0]
    os.write(ready_fd, b"r")
    signal.pause()


@pytest.fixture
def busy():
    """busy(mnt, user): a process that keeps the mount busy, already there when this returns."""
    children = []

    def busy(mnt, user=None):
        read_fd, write_fd = os.pipe()
        children.append(Child(stay_busy, mnt, write_fd, user=user))
        os.close(write_fd)
        assert os.read(read_fd, 1) == b"r"
        os.close(read_fd)
        return children[-1]
    yield busy
    for child in children:
        child.kill()


def tool(site, *words, user=None):
    """`larder WORDS`, as another user if wanted."""
    who = {} if user is None else {"user": user, "group": user, "extra_groups": [], "cwd": "/"}
    return site.run([site.tool, *words], 90, **who)


def is_mounted(path):
    return bool(find_mount(path, "fuse.larder"))


def test_larder_mount_clears_a_busy_dead_mount(site, mount, busy):
    m = mount()
    m.write("k", b"v" * 5000)
    client = busy(m.mnt)
    m.kill(clear=False)
    assert fails_with(os.listdir, m.mnt) in GONE
    result = tool(site, "mount", m.store, m.mnt)
    assert result.returncode == 0, result.stderr
    assert m.read("k") == b"v" * 5000
    client.kill()
    result = tool(site, "umount", m.mnt)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(m.mnt)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["plain", "by force"])
def test_larder_umount_clears_a_busy_dead_mount(site, mount, busy, force):
    m = mount()
    m.write("k", b"v")
    busy(m.mnt)
    m.kill(clear=False)
    result = tool(site, "umount", *force, m.mnt)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(m.mnt)
    assert os.listdir(m.mnt) == []


@pytest.fixture
def user_mount(site, mount, need_program):
    """A mount made by an ordinary user, with a store of its own."""
    need_program("fusermount3")
    home = os.path.join(site.workdir, "home")
    os.makedirs(f"{home}/mnt")
    for path in (home, f"{home}/mnt"):
        os.chown(path, USER, USER)
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)
    result = tool(site, "mount", f"{home}/store", f"{home}/mnt", user=USER)
    assert result.returncode == 0, result.stderr
    with open(f"{home}/store/LOCK") as f:
        pid = int(f.read())
    run_child(put, f"{home}/mnt/k", b"v", user=USER)
    yield f"{home}/store", f"{home}/mnt", pid
    while find_mount(f"{home}/mnt"):
        sysx.umount(f"{home}/mnt", sysx.MNT_DETACH)
    os.chmod("/dev/fuse", mode & 0o777)


def test_an_ordinary_user_clears_a_busy_dead_mount(site, user_mount, busy):
    store, mnt, pid = user_mount
    client = busy(mnt, USER)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: run_child(fails_with, os.listdir, mnt, user=USER) in GONE)
    result = tool(site, "mount", store, mnt, user=USER)
    assert result.returncode == 0, result.stderr
    with open(f"{store}/LOCK") as f:
        second = int(f.read())
    assert second != pid
    os.kill(second, signal.SIGKILL)
    eventually(lambda: run_child(fails_with, os.listdir, mnt, user=USER) in GONE)
    result = tool(site, "umount", mnt, user=USER)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(mnt)
    client.kill()


def served_by(mount, offer_uring, transport):
    """A mount that is ready, and served by this transport."""
    if transport == "io_uring":
        offer_uring()
    m = mount(io_uring="on" if transport == "io_uring" else "off")
    eventually(lambda: "event=mounted" in m.log())
    return m


def waits_for_answer(pid):
    """Whether the process is in a request that a FUSE daemon has to answer."""
    with open(f"/proc/{pid}/stack") as f:
        return "fuse_" in f.read()


def test_a_mount_that_does_not_answer_is_taken_away_by_force(site, mount):
    """The daemon is stopped from outside. Neither command may wait for it for long; --force ends what waits on it."""
    m = mount(io_uring="off")
    m.write("k", b"v")
    os.kill(m.pid, signal.SIGSTOP)
    try:
        client = Child(fails_with, os.listdir, m.mnt)
        eventually(lambda: waits_for_answer(client.pid))
        start = time.monotonic()
        result = tool(site, "umount", "--force", "--timeout=0", m.mnt)
        assert time.monotonic() - start < Deadline(5).seconds
        assert result.returncode == 1 and "still at work" in result.stderr  # it cannot end before it goes on
        assert client.result(5) in GONE
        assert not is_mounted(m.mnt)
    finally:
        os.kill(m.pid, signal.SIGCONT)
    assert m.process.wait(20) == 0
    m.process = None


@pytest.mark.parametrize("sig", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "is killed"])
def test_rings_that_do_not_answer_are_taken_away_by_force(site, mount, offer_uring, sig):
    """The kernel ends a request that waits to be taken by a ring's thread when that thread moves again, or dies."""
    m = served_by(mount, offer_uring, "io_uring")
    os.kill(m.pid, signal.SIGSTOP)
    try:
        client = Child(fails_with, os.listdir, m.mnt)
        eventually(lambda: waits_for_answer(client.pid))
        start = time.monotonic()
        result = tool(site, "umount", "--force", "--timeout=0", m.mnt)
        assert time.monotonic() - start < Deadline(5).seconds
        assert result.returncode == 1 and "kill -KILL" in result.stderr
        assert not is_mounted(m.mnt)
    finally:
        os.kill(m.pid, sig)
    assert client.result(5) in GONE
    assert m.process.wait(20) == (0 if sig == signal.SIGCONT else -signal.SIGKILL)
    m.process = None


@pytest.mark.parametrize("transport", ["dev_fuse", "io_uring"])
def test_commands_do_not_wait_for_a_mount_that_does_not_answer(site, mount, offer_uring, transport):
    """Nor does who reads what they print: what they ask through rings cannot even be killed."""
    m = served_by(mount, offer_uring, transport)
    os.kill(m.pid, signal.SIGSTOP)
    try:
        commands = [Child(tool, site, "umount", m.mnt), Child(tool, site, "mount", m.store, m.mnt)]
        for result in [command.result(30) for command in commands]:
            assert result.returncode == 1
            assert "larder umount --force" in result.stderr
    finally:
        os.kill(m.pid, signal.SIGCONT)
    assert is_mounted(m.mnt)


def write_until_it_fails(directory, name, ready_fd):
    """Writes values under new names in this very mount until it fails; (how many were closed, the errno)."""
    folder = os.open(directory, os.O_RDONLY)  # a path would lead to the bare mount point as soon as the mount is off
    done = 0
    try:
        while True:
            fd = os.open(f"{name}-{done}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder)
            try:
                os.write(fd, f"{name} {done} ".encode() * 500)
            finally:
                os.close(fd)
            done += 1
            if done == 50:
                os.write(ready_fd, b"r")
    except OSError as error:
        return done, error.errno


def start_writers(m, count):
    """Clients that are all at work when this returns."""
    read_fd, write_fd = os.pipe()
    clients = [Child(write_until_it_fails, m.mnt, f"c{i}", write_fd) for i in range(count)]
    os.close(write_fd)
    for _ in clients:
        assert os.read(read_fd, 1) == b"r"
    os.close(read_fd)
    return clients


@pytest.mark.parametrize("transport", ["dev_fuse", "io_uring"])
def test_umount_by_force_while_clients_write(mount, offer_uring, transport):
    """umount -f ends every request with an error, and the daemon in order; what was closed before is there, and who
    comes later finds the bare mount point."""
    m = served_by(mount, offer_uring, transport)
    clients = start_writers(m, 3)
    assert fails_with(sysx.umount, m.mnt, sysx.MNT_FORCE) == errno.EBUSY  # the connection was ended all the same
    results = [client.result(10) for client in clients]
    assert {error for _, error in results} <= GONE
    assert m.process.wait(Deadline(20).seconds) == 0
    m.process = None
    assert not is_mounted(m.mnt)
    assert os.listdir(m.mnt) == []
    m.start()
    for i, (done, _) in enumerate(results):
        for number in range(done):
            assert m.read(f"c{i}-{number}") == f"c{i} {number} ".encode() * 500


@pytest.fixture
def moment(site, build_dir):
    """moment(name): what tests/fs/fuse_moments.c makes happen to the daemons of this test."""
    def moment(name):
        site.environment["LD_PRELOAD"] = os.path.join(build_dir, "tests", "fuse_moments.so")
        site.environment["LARDER_TEST_MOMENT"] = name
        site.environment["ASAN_OPTIONS"] += ":verify_asan_link_order=0"
    return moment


@pytest.fixture
def offer_uring(lacking):
    """offer_uring(): from now on the kernel offers io_uring to those who mount, as it was when the test is over."""
    path = "/sys/module/fuse/parameters/enable_uring"
    before = []

    def offer():
        if not os.path.exists(path):
            lacking("no FUSE over io_uring in this kernel")
        with open(path, "r+") as f:
            before.append(f.read())
            f.write("Y")
    yield offer
    for value in before:
        with open(path, "w") as f:
            f.write(value)


def test_a_mount_taken_away_while_a_request_is_taken_is_no_failure(mount, moment):
    """umount -f met in between: the thread reads ECONNABORTED, where others read ENODEV."""
    moment("abort")
    m = mount(io_uring="off")
    m.write("k", b"v")
    sysx.umount(m.mnt, sysx.MNT_FORCE)
    assert m.process.wait(Deadline(20).seconds) == 0, m.log()
    m.process = None
    assert "reading device" in m.log()  # the moment came


def test_a_mount_taken_away_before_it_was_ready_is_no_failure(mount, moment):
    moment("early")
    m = mount(start=False, io_uring="off")
    with pytest.raises(MountFailed) as ended:
        m.start()
    assert ended.value.status == 0, ended.value.text
    assert "event=unmounted_before_ready" in m.log()
    m.clear()


def test_rings_refused_after_they_were_agreed_on(mount, moment, offer_uring):
    """enable_uring goes off between FUSE_INIT and the set-up of the rings: /dev/fuse serves, and is said to."""
    offer_uring()
    moment("uring_off")
    m = mount(io_uring="auto")
    m.write("k", b"v" * 5000)
    eventually(lambda: "event=mounted" in m.log())
    assert "io_uring=off" in m.log()
    assert m.log().count("event=no_io_uring") == 1
    state = next(line for line in m.read(".larder", "config").decode().splitlines() if line.startswith("io_uring_active"))
    assert state.startswith("io_uring_active off") and "rings" in state
    m.restart()
    assert m.read("k") == b"v" * 5000


# ---- the unit of packaging/ ----

UNITS = ["larder@.service", "larder-user@.service"]


def unit_lines(source_dir, name):
    with open(os.path.join(source_dir, "packaging", name)) as f:
        return [line.rstrip("\n") for line in f]


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_serves_and_clears(site, mount, workdir, source_dir, name):
    """Its commands as systemd would run them: ExecStart becomes ready, is killed, ExecStopPost clears the mount."""
    m = mount(start=False)
    values = {"%f": m.mnt, "${LARDER_STORE}": m.store, "${LARDER_OPTIONS}": "quota=64M"}

    def command(key):
        line = next(line for line in unit_lines(source_dir, name) if line.startswith(key + "="))
        words = line.partition("=")[2].lstrip("-").split()
        words[0] = {"mount.larder": site.daemon, "larder": site.tool}[words[0]]
        return [values.get(word, word) for word in words]

    listener = NotifySocket(site, f"{workdir}/notify", usec=1_000_000)
    m.argv = lambda: command("ExecStart")
    m.start()
    assert listener.wait_for("READY")["MAINPID"] == str(m.pid)
    listener.wait_for("WATCHDOG")
    m.write("k", b"v")
    m.kill(clear=False)
    result = site.run(command("ExecStopPost"))
    assert result.returncode == 0, result.stderr
    assert not is_mounted(m.mnt)
    m.start()
    assert m.read("k") == b"v"


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit(site, workdir, source_dir, name, need_program):
    """systemd-analyze finds nothing unknown in it."""
    path = os.path.join(workdir, name.replace("@", "@x"))
    with open(path, "w") as f:
        for line in unit_lines(source_dir, name):
            f.write(line.replace("=mount.larder", f"={site.daemon}").replace("-larder ", f"-{site.tool} ")
                    .replace("man:mount.larder(8)", "https://example.org") + "\n")
    result = site.run([need_program("systemd-analyze"), "verify", "--man=no", path])
    assert result.returncode == 0 and name.replace("@", "@x") not in result.stderr, result.stderr


def threads_called(pid, name):
    """The processors each thread of that name may run on."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm") as f:
            if f.read().strip() == name:
                found.append(os.sched_getaffinity(int(task)))
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
@pytest.mark.parametrize("transport", ["/dev/fuse", "io_uring"])
def test_a_worker_is_not_bound_to_the_processor_of_the_ring_that_starts_it(mount, offer_uring, transport):
    """It verifies a large value that was found at mount."""
    m = served_by(mount, offer_uring, transport)
    put(m.path("k"), random_bytes(1 << 20))
    m.restart()
    eventually(lambda: "event=mounted" in m.log())
    with open(m.path("k"), "rb") as f:
        f.read(1)
    found = threads_called(m.pid, "worker")
    assert found
    assert all(processors == os.sched_getaffinity(m.pid) for processors in found)
