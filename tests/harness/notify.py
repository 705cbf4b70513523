# SPDX-License-Identifier: BSD-2-Clause
"""The other end of sd_notify(3), in place of a service manager."""

import socket

from harness.wait import Deadline


class NotifySocket:
    """What a service manager listens on; sets the daemon's environment."""

    def __init__(self, site, name, usec=None, pid=None):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        site.listener = self  # listens until the site is gone
        site.environment["NOTIFY_SOCKET"] = name
        if usec:
            site.environment["WATCHDOG_USEC"] = str(usec)
        if pid:
            site.environment["WATCHDOG_PID"] = str(pid)

    def next(self, seconds=10):
        """The next message as {name: value}."""
        self.socket.settimeout(Deadline(seconds).left())
        return dict(line.partition("=")[::2] for line in self.socket.recv(4096).decode().splitlines())

    def wait_for(self, name, seconds=10):
        deadline = Deadline(seconds)
        while True:
            message = self.next(deadline.left())
            if name in message:
                return message

    def drain(self):
        self.socket.setblocking(False)
        try:
            while self.socket.recv(4096):
                pass
        except BlockingIOError:
            pass

    def is_silent(self, seconds):
        try:
            self.wait_for("WATCHDOG", seconds)
            return False
        except (TimeoutError, BlockingIOError):  # the latter without any time at all
            return True
