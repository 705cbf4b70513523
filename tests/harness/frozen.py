# SPDX-License-Identifier: BSD-2-Clause
"""A small ext4 file system in a file, which can be frozen: every write to it then waits in the kernel, unkillable.

It is thawed whatever happens to the test: a guard process does so when the test's process ends, or takes too long.
"""

import fcntl
import os
import select
import signal
import subprocess

from harness import sysx

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
FROZEN_SECONDS_MAX = 60


MKFS_OPTIONS = {"ext4": ("-q", "-F", "-m", "0"), "xfs": ("-q", "-f"), "btrfs": ("-q", "-f")}


class LoopDisk:
    """`size` bytes of a file system on a loop device, mounted at point. Site.finish() takes it away (Site.loop_disk)."""

    def __init__(self, image, point, size, kind="ext4"):
        self.image, self.point, self.guard = image, point, None
        with open(image, "wb") as f:
            f.truncate(size)
        subprocess.run(["mkfs." + kind, *MKFS_OPTIONS[kind], image], check=True, stdin=subprocess.DEVNULL)
        self.device = subprocess.run(["losetup", "--find", "--show", image], check=True, stdout=subprocess.PIPE,
                                     text=True).stdout.strip()
        os.makedirs(point)
        try:
            sysx.mount_fs(self.device, point, kind)
        except OSError:
            subprocess.run(["losetup", "--detach", self.device], check=False)
            raise

    def freeze(self):
        """From here to thaw() writes hang."""
        fd = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        read_fd, self.guard = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()  # what ends the test's process group must not end this
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.close(self.guard)
                select.select([read_fd], [], [], FROZEN_SECONDS_MAX)
                fcntl.ioctl(fd, FITHAW, 0)
            finally:
                os._exit(0)
        os.close(read_fd)
        self.guard_pid = pid
        try:
            fcntl.ioctl(fd, FIFREEZE, 0)
        except OSError:
            self.thaw()
            raise
        finally:
            os.close(fd)

    def thaw(self):
        if self.guard is None:
            return
        os.write(self.guard, b"x")  # closing is not enough: clients forked meanwhile have it as well
        os.close(self.guard)
        self.guard = None
        os.waitpid(self.guard_pid, 0)

    def finish(self):
        self.thaw()
        sysx.umount(self.point, sysx.MNT_DETACH)
        subprocess.run(["losetup", "--detach", self.device], check=True)
