# SPDX-License-Identifier: BSD-2-Clause
"""Goal: a stuck daemon is noticed by its service manager and by itself, and leaves no client waiting for ever.
Method: a notify socket of the test's own listens to the daemon; SIGSTOP and a frozen file system under the store make it
stick."""

import errno
import fcntl
import os
import signal
import time

import pytest

from harness.errors import GONE, fails_with
from harness.notify import NotifySocket
from harness.procs import Child
from harness.wait import Deadline, DeadlinePassed, eventually

pytestmark = pytest.mark.daemon

BOTH_WAYS = pytest.mark.parametrize("io_uring", ["off", "auto"])


@pytest.fixture
def disk(site, need_program):
    need_program("mkfs.ext4")
    need_program("losetup")
    return site.loop_disk("disk")


def put(path, data, sync=False):
    with open(path, "wb", buffering=0) as f:
        f.write(data)
        if sync:
            os.fsync(f.fileno())


# ---- what the service manager hears ----

@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
def test_the_service_manager_is_told_of_the_life(site, mount, workdir, abstract):
    listener = NotifySocket(site, f"@{workdir}/notify" if abstract else f"{workdir}/notify")
    m = mount()
    ready = listener.next()
    assert ready["READY"] == "1"
    assert ready["MAINPID"] == str(m.pid)
    assert m.mnt in ready["STATUS"]
    os.kill(m.pid, signal.SIGTERM)
    assert listener.next()["STOPPING"] == "1"
    m.stop(signal.SIGTERM)
    assert listener.is_silent(0)


def test_a_socket_that_is_not_there_is_told_and_harmless(site, mount, workdir):
    site.environment["NOTIFY_SOCKET"] = f"{workdir}/nobody"
    m = mount()
    m.allow("event=sd_notify_failed")
    assert "event=sd_notify_failed" in m.log()
    m.write("k", b"v")


def test_a_watchdog_meant_for_another_process_is_not_ours(site, mount, workdir):
    listener = NotifySocket(site, f"{workdir}/notify", usec=200_000, pid=1)
    mount()
    listener.wait_for("READY")
    assert listener.is_silent(1)


@BOTH_WAYS
def test_keepalives_come_in_time_and_cease_while_the_daemon_is_stopped(site, mount, workdir, io_uring):
    """SIGSTOP is no alarm of our own afterwards: time in which the process did not run does not count."""
    listener = NotifySocket(site, f"{workdir}/notify", usec=500_000)
    m = mount(io_uring=io_uring, watchdog="1s")
    listener.wait_for("WATCHDOG")
    for _ in range(3):
        start = time.monotonic()
        listener.wait_for("WATCHDOG", 2)
        assert time.monotonic() - start < Deadline(0.5).seconds
    client = None
    try:
        os.kill(m.pid, signal.SIGSTOP)
        client = Child(put, m.path("k"), b"v")  # its request waits all the time
        listener.drain()
        assert listener.is_silent(1.5)
    finally:
        os.kill(m.pid, signal.SIGCONT)
    listener.wait_for("WATCHDOG", 5)
    client.result(10)
    assert m.read("k") == b"v"
    assert m.stats()["stuck_requests"] == 0


# ---- a store that does not answer ----

def write_and_sync(fd):
    os.pwrite(fd, os.urandom(300_000), 0)
    os.fsync(fd)


@pytest.fixture
def opened(disk):
    """opened(path) -> a descriptor. A create that hangs would hold the directory in the kernel, and with it all who look
    something up there; a write to a file that is open holds nobody."""
    fds = []

    def opened(path):
        fds.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        return fds[-1]
    yield opened
    disk.thaw()
    for fd in fds:
        fails_with(os.close, fd)  # its daemon may be gone


@BOTH_WAYS
def test_a_stuck_request_is_told_and_counted_and_no_alarm_when_it_ends(mount, disk, opened, io_uring):
    m = mount(store=f"{disk.point}/store", io_uring=io_uring, watchdog="8s")
    m.allow("event=no_progress")
    m.write("before", b"v")
    assert m.stats()["stuck_ns"] == 0
    fd = opened(m.path("stuck"))
    disk.freeze()
    client = Child(write_and_sync, fd)
    eventually(lambda: "event=no_progress" in m.log(), 10, "the log tells of it")
    line = next(line for line in m.log().splitlines() if "event=no_progress" in line)
    assert f"client_pid={client.pid}" in line
    assert "waits_in=" in line and "waits_in=lock" not in line
    if io_uring == "off":  # over io_uring a write that hangs holds up the requests of its core
        stats = m.stats()
        assert m.read("before") == b"v"
        assert stats["stuck_requests"] == 1
        assert stats["stuck_ns"] >= 2_000_000_000
    disk.thaw()
    client.result(20)
    eventually(lambda: "event=progress_again" in m.log(), 10)
    assert m.stats()["stuck_ns"] == 0
    assert m.stats()["stuck_requests"] >= 1
    assert m.log().count("event=no_progress") == 1


@BOTH_WAYS
def test_no_client_waits_for_ever_on_a_store_that_is_stuck(mount, disk, io_uring):
    """The limit ends the daemon: all clients get an error, though a thread of it cannot even be killed. Its store has no
    second owner before that thread is gone; then everything closed before is there."""
    m = mount(store=f"{disk.point}/store", io_uring=io_uring, watchdog="2s")
    m.allow("event=no_progress", "event=stuck", "event=libfuse")
    m.write("before", b"v" * 1000)
    disk.freeze()
    clients = [Child(fails_with, put, m.path(f"stuck{i}"), os.urandom(300_000), True) for i in range(4)]
    assert {client.result(15) for client in clients} <= GONE
    assert "event=stuck" in m.log()
    assert fails_with(os.stat, m.path("before")) in GONE
    with open(f"{m.store}/LOCK") as lock:  # nobody may have the store while a write of that thread may still happen
        assert fails_with(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EWOULDBLOCK
    disk.thaw()
    assert m.process.wait(10) == -signal.SIGKILL
    m.process = None
    m.clear()
    m.start(io_uring=io_uring)
    assert m.read("before") == b"v" * 1000
    assert m.stats()["corrupt_records"] == 0


def test_an_ordinary_stop_of_a_stuck_daemon_ends_too(mount, disk):
    """SIGTERM while a request is stuck: what can be answered is, then the limit ends it, with a status that says so."""
    m = mount(store=f"{disk.point}/store", watchdog="2s")
    m.allow("event=no_progress", "event=stuck", "event=libfuse")
    disk.freeze()
    client = Child(fails_with, put, m.path("stuck"), os.urandom(300_000), True)
    eventually(lambda: "event=no_progress" in m.log(), 10)
    os.kill(m.pid, signal.SIGTERM)
    assert client.result(15) in GONE
    disk.thaw()
    assert m.process.wait(10) == -signal.SIGKILL
    m.process = None
    m.clear()


def test_without_a_limit_a_stuck_daemon_waits_and_goes_on(mount, disk, opened):
    m = mount(store=f"{disk.point}/store", watchdog="off")
    fd = opened(m.path("stuck"))
    disk.freeze()
    client = Child(write_and_sync, fd)
    with pytest.raises(DeadlinePassed):
        eventually(lambda: m.process.poll() is not None, 1)
    disk.thaw()
    client.result(20)
    m.stop(signal.SIGTERM)
