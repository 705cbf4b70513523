# SPDX-License-Identifier: BSD-2-Clause
"""What is measured: a bare directory, the floor of FUSE, its relatives, larder. Each has a place of its own below the work
directory, all on one disk: `disk` is what it keeps there, `root` where clients work. `transport` says which floor it is
compared with."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess

import machine
from harness import sysx
from harness.mount import Site, wait_mounted
from harness.wait import eventually

START_SECONDS = 20
STOP_SECONDS = 60
QUOTA = "64GiB"


class System:
    name, transport, label = "", None, ""

    def __init__(self, bench):
        self.bench = bench
        self.place = os.path.join(bench.workdir, self.name)
        self.disk = os.path.join(self.place, "disk")
        self.root = self.disk
        self.pid = None

    def obstacle(self):
        """Why it cannot be run here, or None."""

    def start(self):
        os.makedirs(self.disk)

    def forget(self):
        """The kernel knows no name and no page of it any more; what the disk has in memory stays there."""

    def can_chill(self):
        return True

    def keys_max(self):
        """How many keys it can hold at all, or None."""

    def stop(self):
        shutil.rmtree(self.place, ignore_errors=True)


class Bare(System):
    name, label = "bare", "bare directory"


class Daemon(System):
    """A process in the foreground that serves a mount."""

    def argv(self):
        raise NotImplementedError

    def start(self):
        os.makedirs(self.disk, exist_ok=True)
        self.root = os.path.join(self.place, "mnt")
        os.makedirs(self.root, exist_ok=True)
        with open(os.path.join(self.place, "log"), "ab") as log, \
                self.bench.uring.enabled(self.transport == "uring"):
            self.process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True,
                                            preexec_fn=lambda: sysx.die_with_parent(signal.SIGTERM))
            self.pid = self.process.pid
            if not wait_mounted(self.root, self.pid):
                with open(log.name, errors="replace") as f:
                    raise RuntimeError(f"{self.name} did not mount:\n{f.read()}")
            os.listdir(self.root)

    def _unmounted(self):
        try:
            sysx.umount(self.root)
        except OSError as error:
            return error.errno != errno.EBUSY
        return True

    def end(self):
        if self.pid is None:
            return
        with contextlib.suppress(AssertionError):
            eventually(self._unmounted, 5, f"umount {self.root}")
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(OSError):
            sysx.umount(self.root, sysx.MNT_DETACH)  # of a daemon that had to be killed
        self.pid = None

    def forget(self):
        self.end()
        Daemon.start(self)

    def stop(self):
        self.end()
        super().stop()


class Floor(Daemon):
    name, label, transport, words = "floor", "FUSE floor, io_uring", "uring", []

    def obstacle(self):
        if not os.path.exists(self.program()):
            return f"{self.program()} is not built"
        return self.bench.uring.obstacle() if self.transport == "uring" else None

    def program(self):
        return os.path.join(self.bench.build_dir, "tests", "bench", "bench_floor")

    def argv(self):
        options = "fsname=floor" + (",io_uring,io_uring_q_depth=32" if self.transport == "uring" else "")
        return [self.program(), self.root, options, *self.words]

    def forget(self):
        """It has no disk, so it must not end: see the top of floor.c."""
        with contextlib.suppress(OSError):
            os.listxattr(self.root)

    def can_chill(self):
        return False


class FloorNoOpen(Floor):
    name, label, words = "floor-no-open", "FUSE floor, io_uring, no OPEN", ["no_open"]


class FloorDev(Floor):
    name, label, transport = "floor-dev", "FUSE floor, /dev/fuse", "dev"


class Passthrough(Daemon):
    name, label, transport = "passthrough_hp", "passthrough_hp, /dev/fuse", "dev"

    def obstacle(self):
        if not os.path.exists(self.program()):
            return "not built: it needs libfuse's source (packaging/libfuse --source) and a C++ compiler"
        return None

    def program(self):
        return os.path.join(self.bench.build_dir, "tests", "bench", "bench_passthrough_hp")

    def argv(self):
        return [self.program(), "--foreground", self.disk, self.root]

    def keys_max(self):
        return machine.descriptors_max() - 200  # it holds one for each file the kernel knows


class Mergerfs(Daemon):
    name, label, transport = "mergerfs", "mergerfs, /dev/fuse", "dev"

    def obstacle(self):
        return None if shutil.which("mergerfs") else "mergerfs is not installed"

    def argv(self):
        return ["mergerfs", "-f", "-o", "cache.files=auto-full,dropcacheonclose=false,category.create=mfs,fsname=mergerfs",
                self.disk, self.root]


class Larder(System):
    name, label, transport, options = "larder", "larder, io_uring", "uring", {}

    def obstacle(self):
        if not os.path.exists(self.program()):
            return f"{self.program()} is not built"
        return self.bench.uring.obstacle() if self.transport == "uring" else None

    def program(self):
        return os.path.join(self.bench.build_dir, "fs", "mount.larder")

    def start(self, **changed):
        os.makedirs(self.place)
        self.site = Site(os.path.join(self.place), self.bench.build_dir)
        words = {"quota": QUOTA, "io_uring": "on" if self.transport == "uring" else "off", **self.options, **changed}
        self.mount = self.site.mount(start=False, store=self.disk, **words)
        self.root = self.mount.mnt
        self.resume()

    def resume(self):
        with self.bench.uring.enabled(self.transport == "uring"):
            self.mount.start()
            self.pid = self.mount.pid
            eventually(lambda: "event=mounted" in self.mount.log(), START_SECONDS, "the rings of larder")

    def forget(self):
        self.mount.stop()
        self.pid = None
        self.resume()

    def stop(self):
        if hasattr(self, "site"):
            self.bench.notes.extend(f"{self.name}: {problem}" for problem in self.site.finish())
            del self.site
        self.pid = None
        super().stop()


class LarderDev(Larder):
    name, label, transport = "larder-dev", "larder, /dev/fuse", "dev"


class LarderSampled(Larder):
    name, label, options = "larder-sampled", "larder, io_uring, hits=sampled", {"hits": "sampled"}


ALL = [Bare, Floor, FloorNoOpen, FloorDev, Passthrough, Mergerfs, Larder, LarderDev, LarderSampled]
LARDERS = ("larder", "larder-dev", "larder-sampled")
