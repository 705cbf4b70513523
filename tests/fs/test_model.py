# SPDX-License-Identifier: BSD-2-Clause
"""Goal: any history of operations leaves the mount exactly as it would leave a local directory, restarts included.
Method: seeded random sequences of all operations are done on both (harness/model.py) and every answer compared."""

import os

import pytest

from harness.model import History, capture, compare

SEEDS = [1, 2, 3]

MOUNTS = [
    pytest.param({}, id="by default"),
    pytest.param({"big_bytes": "4096"}, id="with big files from 4 KiB"),
    pytest.param({"big_bytes": "4096", "passthrough": "off"}, id="with big files and no passthrough"),
    pytest.param({"compress": "none", "durability": "fsync"}, id="uncompressed and durable at close"),
    pytest.param({"io_uring": "off", "passthrough": "off"}, id="without io_uring and passthrough"),
]


def run_history(m, plain, seed, steps, restarts, site):
    """steps operations; after each quarter all files are closed, trees compared, and the daemon restarted or killed."""
    os.makedirs(plain)
    history = History(m.mnt, plain, seed, os.path.join(site.logs, f"model-{seed}.log"),
                      m.options.get("passthrough") == "off")
    try:
        for quarter in range(4):
            for _ in range(steps // 4):
                history.step()
            history.close_all()
            history.compare_trees()
            if restarts:
                before = capture(m.mnt, times=True)
                m.restart("kill" if quarter % 2 else "stop")
                difference = compare(capture(m.mnt, times=True), before)
                assert not difference, f"the restart after step {history.steps} changed {difference}"
    finally:
        history.log.close()
    m.stop()
    site.check(m.store)


@pytest.mark.deadline(300)
@pytest.mark.parametrize("options", MOUNTS)
@pytest.mark.parametrize("seed", SEEDS, ids=[f"history {seed}" for seed in SEEDS])
def test_history(mount, site, request, seed, options):
    m = mount(quota="2G", dev=True, suid=True, **options)
    os.chmod(m.mnt, 0o755)
    chosen = request.config.getoption("--seed")
    seed = seed if chosen is None else chosen + seed
    site.notes.append(f"seed {seed}")
    run_history(m, os.path.join(site.workdir, "plain"), seed, request.config.getoption("--model-steps"), not site.plain,
                site)
