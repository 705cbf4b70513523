# SPDX-License-Identifier: BSD-2-Clause
"""What a store takes on disk, as du(1) counts it, once or over and over by a process of its own."""

import os
import signal

from harness.procs import Child, Stop


def disk_bytes(path):
    """`du -s --block-size=1 path`: the blocks of everything in it, directories included."""
    total = os.lstat(path).st_blocks * 512
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        st = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # gone since it was listed: takes nothing now
                    total += st.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
    return total


class Sampler:
    """A process that measures the store until told to stop and keeps the largest sum it saw.

    A walk is not one instant: a file may be counted, removed, and its successor counted as well. With a pid,
    every second sample stops that process (the daemon) first and is exact; the others walk beside the traffic
    as du does. extra() is a number of which the smallest is kept.
    """

    def __init__(self, store, pid=None, extra=None):
        self.stop = Stop()
        self.child = Child(self._sample, store, pid, extra)

    def _sample(self, store, pid, extra):
        largest = {"exact": 0, "walked": 0}
        samples = 0
        smallest_extra = None
        while not self.stop.is_set():
            exact = pid is not None and samples % 2 == 0
            try:
                if exact:
                    os.kill(pid, signal.SIGSTOP)
                    self._wait_stopped(pid)
                size = disk_bytes(store)
                more = extra() if extra else None
            finally:
                if exact:
                    os.kill(pid, signal.SIGCONT)
            samples += 1
            kind = "exact" if exact else "walked"
            largest[kind] = max(largest[kind], size)
            if more is not None and (smallest_extra is None or more < smallest_extra):
                smallest_extra = more
            self.stop.wait(0.002)
        return {**largest, "samples": samples, "extra": smallest_extra}

    @staticmethod
    def _wait_stopped(pid):
        """SIGSTOP has arrived once every thread is in state T; a system call in progress may finish first."""
        for _ in range(1000):
            states = []
            for task in os.listdir(f"/proc/{pid}/task"):
                try:
                    with open(f"/proc/{pid}/task/{task}/stat") as f:
                        states.append(f.read().rpartition(")")[2].split()[0])
                except FileNotFoundError:
                    continue
            if all(state in "TtZX" for state in states):
                return

    def finish(self):
        """The largest sums seen: 'exact' with the daemon stopped, 'walked' beside the traffic."""
        self.stop.set()
        result = self.child.result(30)
        self.stop.close()
        return result
