# SPDX-License-Identifier: BSD-2-Clause
"""Goal: whatever call to the disk fails, and whatever allocation, nothing acknowledged is lost, nothing wrong is served.

Method: a slice of what the command `faults` (tests/crash/faults.c) sweeps: every workload, kind of failure, way of
failing and way of stopping, at some of the places where it can strike. All of it: `BUILD/tests/faults`.
"""

import os
import subprocess

import pytest

#: Of the N each workload reaches, one in so many.
STEPS = {"names": 97, "sizes": 307, "evict": 503, "clean": 701, "reopen": 307, "grow": 97, "threads": 503}


@pytest.mark.parametrize("workload", STEPS)
def test_a_call_that_fails_anywhere_costs_nothing_acknowledged(build_dir, tmp_path, workload):
    store = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    done = subprocess.run([os.path.join(build_dir, "tests", "faults"), f"--workload={workload}", f"--step={STEPS[workload]}",
                           f"--store={store}"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    runs = int(done.stdout.splitlines()[-1].split()[0])
    assert runs >= 12, done.stdout[-2000:]
