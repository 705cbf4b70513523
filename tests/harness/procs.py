# SPDX-License-Identifier: BSD-2-Clause
"""Clients as real processes: a function run in a forked child, as another user if wanted, its result piped back."""

import os
import pickle
import select
import signal
import sys
import traceback

from harness.wait import Deadline, DeadlinePassed


class ChildFailed(AssertionError):
    """The function raised; the child's traceback is in the message."""


class Child:
    """func(*args) in a process of its own. `user` is a uid (its gid is the same unless given).

    result() returns what the function returned and raises what it raised: an OSError as itself, so that
    pytest.raises(PermissionError) reads naturally, anything else as ChildFailed with the child's traceback.
    """

    #: Every child started and not yet reaped, for the sweep at the end of a test.
    alive = {}

    def __init__(self, func, *args, user=None, group=None, groups=()):
        read_fd, write_fd = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.name = getattr(func, "__name__", "child")
        self.pid = os.fork()
        if self.pid == 0:
            self._run(func, args, user, group, groups, read_fd, write_fd)
        os.close(write_fd)
        self.fd = read_fd
        self.outcome = None
        Child.alive[self.pid] = self

    @staticmethod
    def _run(func, args, user, group, groups, read_fd, write_fd):
        status = 1
        try:
            os.close(read_fd)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            try:
                if user is not None:
                    group = user if group is None else group
                    os.setgroups(list(groups))
                    os.setresgid(group, group, group)
                    os.setresuid(user, user, user)
                message = ("result", func(*args))
            except OSError as error:
                message = ("errno", (error.errno, str(error), traceback.format_exc()))
            except BaseException:  # whatever it was, the parent must hear of it
                message = ("failed", traceback.format_exc())
            data = pickle.dumps(message)
            while data:
                data = data[os.write(write_fd, data):]
            status = 0
        finally:
            os._exit(status)

    def _collect(self, timeout):
        deadline = Deadline(timeout)
        data = b""
        while True:
            if not select.select([self.fd], [], [], deadline.left())[0]:
                self.kill()
                raise DeadlinePassed(f"child {self.name} still runs after {deadline.seconds:.1f} s")
            part = os.read(self.fd, 1 << 20)
            if not part:
                break
            data += part
        os.close(self.fd)
        self._reap()
        self.outcome = pickle.loads(data) if data else ("died", f"wait status {self.status:#x}")

    def _reap(self):
        if Child.alive.pop(self.pid, None) is not None:
            self.status = os.waitpid(self.pid, 0)[1]

    def result(self, timeout=60.0):
        if self.outcome is None:
            self._collect(timeout)
        kind, value = self.outcome
        if kind == "result":
            return value
        if kind == "errno":
            error = OSError(value[0], value[1])
            error.child_traceback = value[2]
            raise error
        raise ChildFailed(f"child {self.name} {kind}:\n{value}")

    def kill(self, sig=signal.SIGKILL):
        """Ends the process if it still is; harmless when it has ended."""
        if self.pid in Child.alive:
            os.kill(self.pid, sig)
            if sig == signal.SIGKILL:
                self._reap()

    @classmethod
    def kill_all(cls):
        left = list(cls.alive.values())
        for child in left:
            child.kill()
        return [child.name for child in left]


def run_child(func, *args, timeout=60.0, **who):
    """func(*args) in another process; its result, or its exception."""
    return Child(func, *args, **who).result(timeout)


def run_children(jobs, timeout=120.0):
    """Starts all of [(func, args...)] at once, returns their results in order."""
    children = [Child(job[0], *job[1:]) for job in jobs]
    return [child.result(timeout) for child in children]


class Stop:
    """A flag that processes forked after its making can poll: set() in one of them, is_set() in all."""

    def __init__(self):
        self.read_fd, self.write_fd = os.pipe()

    def set(self):
        os.write(self.write_fd, b"x")

    def is_set(self):
        return self.wait(0)

    def wait(self, seconds):
        return bool(select.select([self.read_fd], [], [], seconds)[0])

    def close(self):
        os.close(self.read_fd)
        os.close(self.write_fd)
