# SPDX-License-Identifier: BSD-2-Clause
"""The workloads that are no steps of the client on any directory."""


class Other:
    """A family that runs itself: run(bench) keeps its results."""

    name, title, slow = "", "", False

    def run(self, bench):
        raise NotImplementedError


ALL = []
