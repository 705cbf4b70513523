# SPDX-License-Identifier: BSD-2-Clause
"""Goal: no history of operations tells the mount from a local directory. Method: a slice of tests/diff/campaign: lists
made up from seeds are done on both, by several users, from one process and from three, with the daemon stopped and killed
in between; every result is compared. Storms have several processes on the same files. `tests/diff/campaign --seed N --turns 1` does one of them again."""

import os
import subprocess
import sys

import pytest

CAMPAIGN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "campaign")


def run_campaign(site, *words):
    result = site.run([sys.executable, CAMPAIGN, "--build-dir", site.build_dir, "--workdir", site.workdir, *words], 110)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("words", [
    pytest.param(("--seed", "0", "--turns", "8", "--restarts", "none", "--processes", "1"), id="every kind of mount"),
    pytest.param(("--seed", "10", "--turns", "3", "--restarts", "all", "--processes", "1"), id="with restarts and kills"),
    pytest.param(("--seed", "20", "--turns", "2", "--restarts", "none", "--processes", "3"), id="three processes"),
])
def test_campaign(site, words):
    run_campaign(site, "--kind", "lists", "--operations", "700", *words)


@pytest.mark.parametrize("seed", [pytest.param("0", id="through the daemon"), pytest.param("2", id="with passthrough")])
def test_storms(site, seed):
    run_campaign(site, "--kind", "storms", "--storm-seconds", "0.3", "--seed", seed, "--turns", "1",
                 "--mount-options", "io_uring=auto")  # through the rings where the kernel has them


def test_a_difference_is_found_and_cut_down(site):
    """The campaign can fail: a mount that is full differs from the directory beside it."""
    result = site.run([sys.executable, CAMPAIGN, "--build-dir", site.build_dir, "--workdir", site.workdir, "--seed", "0", "--kind", "lists",
                       "--turns", "1", "--restarts", "none", "--processes", "1", "--operations", "1000",
                       "--mount-options", "quota=1M"], 110)
    assert result.returncode == 1
    assert "ENOSPC" in result.stdout and " operations in " in result.stdout
    kept = next(word for word in result.stdout.split() if word.endswith(".ops"))
    with open(kept) as f:
        assert 1 <= len(f.read().splitlines()) < 200
    subprocess.run(["rm", "-r", os.path.dirname(os.path.dirname(kept))], check=True)
