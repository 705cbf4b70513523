# SPDX-License-Identifier: BSD-2-Clause
"""Conditions with deadlines: no test waits for time to pass, it waits for something to be so."""

import select
import time

#: Multiplies every deadline; set by conftest for sanitizer builds, which are several times slower.
SLOWNESS = 1.0


class DeadlinePassed(AssertionError):
    """The condition did not come true in time."""


class Deadline:
    """A moment on the monotonic clock, `seconds` (times the slowness of the build) from now."""

    def __init__(self, seconds):
        self.seconds = seconds * SLOWNESS
        self.end = time.monotonic() + self.seconds

    def left(self):
        return max(0.0, self.end - time.monotonic())

    def passed(self):
        return time.monotonic() >= self.end


def eventually(condition, timeout=10.0, what=None, interval=0.01):
    """Returns the first true value of condition(), asked again every `interval`, or fails after `timeout` seconds."""
    deadline = Deadline(timeout)
    while True:
        value = condition()
        if value:
            return value
        if deadline.passed():
            raise DeadlinePassed(f"not within {deadline.seconds:.1f} s: {what or condition}")
        select.select([], [], [], min(interval, deadline.left() + 0.001))


def until(moment):
    """Returns once the monotonic clock has reached `moment`: for asserting that something is *still* so then."""
    while (left := moment - time.monotonic()) > 0:
        select.select([], [], [], left)
