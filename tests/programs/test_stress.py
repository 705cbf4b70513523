# SPDX-License-Identifier: BSD-2-Clause
"""Goal: programs made to wear file systems out find nothing, and databases survive the daemon's SIGKILL. Method: a slice
of tests/programs/campaign; each program verifies what it reads, acknowledged transactions must be there afterwards."""

import os
import subprocess

import pytest

from harness import programs

pytestmark = [pytest.mark.deadline(300), pytest.mark.daemon]


@pytest.mark.parametrize("name", ["copy-file", "fpunch", "rename"])
def test_stress_ng(mount, site, need_program, name):
    need_program("stress-ng")
    m = mount(quota="1G")
    problem = programs.stress_and_compare(site, m.path("stress"), os.path.join(site.workdir, "local"), name, 1)
    assert problem is None


@pytest.mark.parametrize("engine, direct", [("psync", 0), ("libaio", 1), ("mmap", 0)])
def test_fio_verifies_with(mount, site, need_program, engine, direct):
    need_program("fio")
    m = mount(quota="1G")
    programs.fio(site, m.path("fio"), engine, direct, 4, 1)


def test_bonnie(mount, site, need_program):
    need_program("bonnie++")
    m = mount(quota="1G")
    programs.bonnie(site, m.path("bonnie"), 16, 1)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_acknowledged_transactions_survive_sigkill_with(mount, journal):
    m = mount(quota="1G")
    assert programs.kill_under_sqlite(m, journal, 3, 1) > 0


def test_acknowledged_git_commits_survive_sigkill(mount, site, need_program):
    need_program("git")
    m = mount(quota="1G")
    environment = {**site.environment, "HOME": site.workdir, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
                   "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}

    def git(where, *words):
        return subprocess.run(["git", *words], cwd=where, env=environment, check=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, timeout=120).stdout.decode()
    assert programs.kill_under_git(m, git, 2, 1) > 0
