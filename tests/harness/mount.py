# SPDX-License-Identifier: BSD-2-Clause
"""One larder daemon as a process, and the mount it serves: started, stopped, killed, and never left behind.

A Site is what one test owns: $workdir/{store,mnt,logs} and whatever it started there. A Mount is ready when the
kernel lists it; the daemon's exit before that is the failure. stop() unmounts and wants exit status 0.
"""

import errno
import os
import re
import select
import shutil
import signal
import subprocess

from harness import logscan, sysx
from harness.frozen import LoopDisk
from harness.procs import Child
from harness.wait import Deadline, DeadlinePassed, eventually

READY_SECONDS = 20
STOP_SECONDS = 30


class MountFailed(AssertionError):
    """The daemon ended before it served. status and text are its own."""

    def __init__(self, argv, status, text):
        super().__init__(f"{' '.join(argv)}: exit status {status}\n{text}")
        self.status = status
        self.text = text


def mountinfo():
    """[(mount point, file system type, minor device number)] of what is mounted, in mounting order."""
    rows = []
    with open("/proc/self/mountinfo", "rb") as f:
        for line in f:
            left, _, right = line.rstrip(b"\n").partition(b" - ")
            fields = left.split()
            point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m.group(1), 8)]), fields[4])
            rows.append((os.fsdecode(point), right.split()[0].decode(), int(fields[2].split(b":")[1])))
    return rows


def find_mount(path, kind=""):
    """The topmost mount at path as (type, minor), or None."""
    for point, fstype, minor in reversed(mountinfo()):
        if point == path and fstype.startswith(kind):
            return fstype, minor
    return None


def is_served(path):
    """Whether path is a FUSE mount with a daemon behind it; a dead one is there, but does not answer.

    Asked by statvfs, which no cache answers for a dead daemon; and before the table is read, so that the plain
    directory that is there while a dead mount gives way to a new one is not taken for either."""
    try:
        os.statvfs(path)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
    return find_mount(path, "fuse") is not None


def wait_mounted(path, pid):
    """True when path is a FUSE mount, False when process pid ended first. Waits for either, without polling."""
    deadline = Deadline(READY_SECONDS)
    with open("/proc/self/mountinfo", "rb", buffering=0) as table:
        pid_fd = os.pidfd_open(pid)
        try:
            poller = select.poll()
            poller.register(table, select.POLLERR | select.POLLPRI)
            poller.register(pid_fd, select.POLLIN)
            while not is_served(path):
                events = poller.poll(deadline.left() * 1000)
                if any(fd == pid_fd for fd, _ in events):
                    return False
                if deadline.passed():
                    raise DeadlinePassed(f"{path} is not mounted within {deadline.seconds:.0f} s")
        finally:
            os.close(pid_fd)
    return True


def format_options(options):
    """quota="8M", allow_other=True  ->  "quota=8M,allow_other"."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f"{name}={value}")
    return ",".join(words)


def parse_stats(text):
    """`name value` lines as {name: number}."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        values[name] = float(value) if "." in value else int(value)
    return values


class Mount:
    """A store, a mount point, and the daemon between them, which may be started and stopped many times."""

    def __init__(self, site, name, options, store=None):
        self.site = site
        self.name = name
        self.options = options
        self.store = store or os.path.join(site.workdir, f"store{name}")
        self.mnt = os.path.join(site.workdir, f"mnt{name}")
        os.makedirs(self.mnt, exist_ok=True)
        self.process = None
        self.logs = []
        self.allowed = []

    def path(self, *names):
        return os.path.join(self.mnt, *names)

    def read(self, *names):
        with open(self.path(*names), "rb") as f:
            return f.read()

    def write(self, name, data):
        """Puts a value as caches do: a temporary name, then rename."""
        path = self.path(name)
        with open(path + ".tmp", "wb") as f:
            f.write(data)
        os.rename(path + ".tmp", path)
        return path

    # starting

    @property
    def pid(self):
        return self.process.pid

    def argv(self):
        words = format_options({**self.site.default_options, **self.options})
        return [self.site.daemon, self.store, self.mnt, "-f"] + (["-o", words] if words else [])

    def start(self, **changed):
        """Mounts; `changed` options replace those given before, for this and later starts."""
        assert self.process is None, "already started"
        self.options = {**self.options, **changed}
        argv = self.argv()
        self.logs.append(os.path.join(self.site.logs, f"daemon{self.name}-{len(self.logs)}.log"))
        with open(self.logs[-1], "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True, env=self.site.environment,
                                            preexec_fn=lambda: sysx.die_with_parent(signal.SIGTERM))
        self.site.commands.append(argv)
        if not wait_mounted(self.mnt, self.process.pid):
            status = self.process.wait()
            self.process = None
            raise MountFailed(argv, status, self.log())
        return self

    def log(self):
        """The log of the newest daemon."""
        with open(self.logs[-1], errors="replace") as f:
            return f.read()

    def allow(self, *patterns):
        """These warnings are what the test is about."""
        self.allowed.extend(patterns)

    # ending

    def stop(self, sig=None, patience=10):
        """An orderly stop, by umount(2) or by a signal; the daemon must end with status 0."""
        if sig is None:
            eventually(self._try_umount, patience, f"umount {self.mnt}")
        else:
            os.kill(self.process.pid, sig)
        self._wait_exit()
        status, self.process = self.process.returncode, None
        assert status == 0, f"the daemon's exit status is {status}:\n{self.log()}"

    def kill(self, clear=True):
        """SIGKILL, as a crash would; the dead mount is cleared unless the test wants to see it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(Deadline(10).left())
        except subprocess.TimeoutExpired:
            self.dump_stacks()
            self.abort()
            self.process.wait(10)
            raise DeadlinePassed(f"SIGKILL does not end the daemon, see {self.site.logs}") from None
        finally:
            self.process = None
        if clear:
            self.clear()

    def restart(self, how="stop", **changed):
        """stop() or kill(), then start()."""
        getattr(self, how)()
        return self.start(**changed)

    def clear(self):
        """Takes away whatever is mounted here, dead or alive."""
        while find_mount(self.mnt):
            sysx.umount(self.mnt, sysx.MNT_DETACH)

    def _try_umount(self):
        try:
            sysx.umount(self.mnt)
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:  # a client that was just reaped may still be letting go
                raise
            return False

    def _wait_exit(self):
        deadline = Deadline(STOP_SECONDS)
        try:
            self.process.wait(deadline.left())
        except subprocess.TimeoutExpired:
            self.dump_stacks()
            raise DeadlinePassed(f"the daemon did not end within {deadline.seconds:.0f} s, see {self.site.logs}") \
                from None

    def dump_stacks(self):
        """Where every thread is, into logs/."""
        if self.process is None or self.process.poll() is not None:
            return
        with open(os.path.join(self.site.logs, f"stacks{self.name}.txt"), "ab") as out:
            for task in sorted(os.listdir(f"/proc/{self.pid}/task")):
                for what in ("comm", "wchan", "stack"):
                    try:
                        with open(f"/proc/{self.pid}/task/{task}/{what}", "rb") as f:
                            out.write(b"%s %s: %s\n" % (task.encode(), what.encode(), f.read()))
                    except OSError:
                        continue
            out.flush()
            if shutil.which("gdb"):
                try:
                    subprocess.run(["gdb", "-p", str(self.pid), "-batch", "-ex", "thread apply all bt"], stdout=out,
                                   stderr=out, stdin=subprocess.DEVNULL, timeout=30, check=False)
                except subprocess.TimeoutExpired:
                    out.write(b"gdb took too long\n")

    def abort(self):
        """Ends every request in the kernel, then the daemon. Used when a test hangs."""
        found = find_mount(self.mnt, "fuse")
        if found:
            self.site.abort_connection(found[1])
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended by itself

    def finish(self, failed=False):
        """Teardown: what was not right, as a list of texts. Leaves neither mount nor process.

        A failed test may hold files open, in frames that its traceback keeps: it is not waited for."""
        problems = []
        try:
            if self.process is not None:
                if self.process.poll() is not None:
                    problems.append(f"the daemon ended by itself with status {self.process.returncode}")
                    self.process = None
                else:
                    self.stop(patience=0.5 if failed else 10)
        except (AssertionError, OSError) as error:
            problems.append(str(error))
            if not failed:
                self.dump_stacks()
            self.abort()
            if self.process is not None:
                self.process.wait(10)
                self.process = None
        try:
            self.clear()
        except OSError as error:
            problems.append(f"umount {self.mnt}: {error}")
        for path in self.logs:
            with open(path, errors="replace") as f:
                problems += [f"{os.path.basename(path)}: {line}" for line in logscan.findings(f.read(), self.allowed)]
        return problems

    # what larder says about itself

    def stats(self, *directory):
        """`.stats` of a directory as {name: number}."""
        return parse_stats(self.read(*directory, ".stats").decode())

    def daemon_of_store(self):
        """The pid that the store's LOCK names."""
        with open(os.path.join(self.store, "LOCK")) as f:
            return int(f.read())


class PlainMount(Mount):
    """A plain local directory in place of a mount, to try the tests themselves (--plain-dir)."""

    def start(self, **changed):
        self.options = {**self.options, **changed}
        return self

    def stop(self, sig=None, patience=10):
        pass

    def kill(self, clear=True):
        pass

    def finish(self, failed=False):
        return []


class Site:
    """What one test owns, and what of it must be gone afterwards."""

    def __init__(self, workdir, build_dir, plain=False, default_options=None):
        self.workdir = workdir
        self.build_dir = build_dir
        self.daemon = os.path.join(build_dir, "fs", "mount.larder")
        self.tool = os.path.join(build_dir, "tools", "larder")
        self.plain = plain
        self.default_options = default_options or {}
        self.logs = os.path.join(workdir, "logs")
        os.makedirs(self.logs)
        os.chmod(workdir, 0o755)
        self.mounts = []
        self.commands = []
        self.processes = []
        self.tmpfs_points = []
        self.loop_disks = []
        self.notes = []
        self.aborted = False
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        suppressions = os.path.join(source, "packaging", "suppressions")
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", "UBSAN_OPTIONS": "print_stacktrace=1",
                            "ASAN_OPTIONS": f"suppressions={suppressions}/asan",
                            "TSAN_OPTIONS": f"suppressions={suppressions}/tsan"}

    def mount(self, start=True, store=None, **options):
        """A new store and mount point; the second of a test gets a pair of its own."""
        kind = PlainMount if self.plain else Mount
        mount = kind(self, str(len(self.mounts) or ""), options, store)
        self.mounts.append(mount)
        return mount.start() if start else mount

    def run(self, argv, timeout=60, **popen):
        """A program to its end: CompletedProcess with text output. It must not outlive the test."""
        popen.setdefault("env", self.environment)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True, **popen)
        self.processes.append(process)
        self.commands.append(argv)
        deadline = Deadline(timeout)
        try:
            out, err = process.communicate(timeout=deadline.left())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise DeadlinePassed(f"{argv} still runs after {deadline.seconds:.0f} s: {out!r} {err!r}") from None
        return subprocess.CompletedProcess(argv, process.returncode, out.decode(errors="replace"),
                                           err.decode(errors="replace"))

    def run_ok(self, argv, timeout=60, **popen):
        """The same, and it must succeed."""
        result = self.run(argv, timeout, **popen)
        assert result.returncode == 0, f"{argv}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result

    def check(self, store):
        """`larder check` of a store at rest must find nothing."""
        if not self.plain:
            self.run_ok([self.tool, "check", store], 120)

    def tmpfs(self, name, size, flags=0):
        """A small file system of its own, for tests that fill the host's disk or compare with it."""
        point = os.path.join(self.workdir, name)
        os.makedirs(point)
        sysx.mount_fs("tmpfs", point, "tmpfs", f"size={size},mode=0755", flags)
        self.tmpfs_points.append(point)
        return point

    def loop_disk(self, name, size=64 << 20, kind="ext4", image=None):
        """A file system on a device of its own, which can be frozen and unmounted."""
        image = image or os.path.join(self.workdir, f"{name}.img")
        disk = LoopDisk(image, os.path.join(self.workdir, name), size, kind)
        self.loop_disks.append(disk)
        return disk

    def abort_connection(self, minor):
        """Writes to the connection's `abort`, through a control file system mounted for the moment."""
        control = os.path.join(self.workdir, "fusectl")
        os.makedirs(control, exist_ok=True)
        try:
            sysx.mount_fs("none", control, "fusectl")
            try:
                with open(os.path.join(control, str(minor), "abort"), "w") as f:
                    f.write("1")
            finally:
                sysx.umount(control, sysx.MNT_DETACH)
        except OSError:
            pass  # killing the daemon, which follows, ends the requests as well

    def abort_all(self):
        """The test has run too long: stacks first, then everything ends."""
        self.aborted = True
        for disk in self.loop_disks:
            disk.thaw()
        for mount in self.mounts:
            mount.dump_stacks()
            mount.abort()
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def finish(self, failed=False):
        """Teardown: problems found, nothing left running or mounted."""
        for disk in self.loop_disks:
            disk.thaw()
        problems = [f"the test left its process {name} running" for name in Child.kill_all()]
        for process in self.processes:
            if process.poll() is None:
                problems.append(f"the test left {process.args} running")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for mount in self.mounts:
            problems += mount.finish(failed)
        for point in reversed(self.tmpfs_points):
            sysx.umount(point, sysx.MNT_DETACH)
        for disk in reversed(self.loop_disks):
            disk.finish()
        return problems

    def keep_evidence(self, nodeid):
        """repro.sh beside the logs of a failed test: every command it ran, and how to run it again."""
        with open(os.path.join(self.workdir, "repro.sh"), "w") as f:
            f.write("#!/bin/sh\n# " + "\n# ".join([nodeid, *self.notes]) + "\n")
            f.write(f"# /usr/bin/python3 -m pytest --build-dir '{self.build_dir}' '{nodeid}'\n")
            f.writelines(f"{subprocess.list2cmdline(map(str, argv))}\n" for argv in self.commands)


def sweep(base):
    """At the end of a run: no daemon left whose command line names base, nothing mounted below it."""
    left = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"mount.larder") and any(word.startswith(os.fsencode(base) + b"/") for word in words):
            left.append(f"process {entry}: {b' '.join(words).decode(errors='replace')}")
            os.kill(int(entry), signal.SIGKILL)
    for point, fstype, _ in reversed(mountinfo()):
        if point.startswith(base + "/"):
            left.append(f"mount {point} ({fstype})")
            sysx.umount(point, sysx.MNT_DETACH)
    return left
