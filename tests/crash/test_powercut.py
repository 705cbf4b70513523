# SPDX-License-Identifier: BSD-2-Clause
"""Power cuts, simulated: a slice of the sweep that build/tests/crash/powercut runs for as long as one likes."""

import pathlib
import subprocess

import pytest


@pytest.fixture
def powercut(build_dir):
    """Runs the sweep; the completed process."""
    program = pathlib.Path(build_dir) / "tests" / "crash" / "powercut"

    def run(*arguments, timeout=300):
        return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)

    return run


def test_every_disk_a_power_cut_leaves_recovers_to_what_was_promised(powercut):
    """Some thousand disks of the first seeds: each is opened by the recovery and compared with the model (C2)."""
    done = powercut("--seconds", 6, "--disks", 6000, "--seed", 1)
    assert done.returncode == 0, done.stdout
    assert " 0 failures" in done.stdout


@pytest.mark.parametrize("prefix, what", [("journal-", "the journal"), ("seg-", "segments"), ("index-", "checkpoints"),
                                          ("0000", "big files"), (".", "the directory")])
def test_the_sweep_notices_when_syncs_are_left_out(powercut, prefix, what):
    """The machinery can fail: with the syncs of one kind of file sabotaged it finds a lost key soon, says which seed and
    cut it was, and that one alone fails again."""
    done = powercut("--disks", 6000, "--seed", 100, "--sabotage", prefix)
    assert done.returncode == 1, f"syncs of {what} do nothing, and nothing was noticed:\n{done.stdout}"
    assert "FAILURE: " in done.stdout
    assert "LOST" in done.stdout or "TORN" in done.stdout  # what the cut did is told
    again = next(line for line in done.stdout.splitlines() if line.strip().startswith("again: powercut "))
    arguments = again.split("powercut ", 1)[1].split()
    told = powercut(*arguments)
    assert "FAILURE: " in told.stdout, told.stdout
