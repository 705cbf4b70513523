# SPDX-License-Identifier: BSD-2-Clause
"""Goal: C2. What was closed, renamed or removed when the daemon is killed is exactly so after the remount.
Method: crash/kill9.py for a few rounds; run it by hand for hundreds."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kill9 import Campaign  # noqa: E402

pytestmark = pytest.mark.daemon

SHAPES = [
    pytest.param({"quota": "2G"}, False, id="under quota nothing is missing"),
    pytest.param({"quota": "16M"}, True, id="at quota what is there is right"),
    pytest.param({"quota": "2G", "io_uring": "off", "big_bytes": "8K"}, False, id="with mostly big files"),
]


@pytest.mark.deadline(300)
@pytest.mark.parametrize("options, at_quota", SHAPES)
def test_sigkill_under_load(site, mount, request, seed, options, at_quota):
    campaign = Campaign(site, mount(**options), 4, seed, at_quota)
    for number in range(request.config.getoption("--kill-rounds")):
        assert campaign.round() == [], f"round {number + 1}"


def test_the_verification_notices_what_is_wrong(site, workdir):
    """The oracle itself, on a plain directory: lost, old and mixed values and returned removals are all noticed."""
    from kill9 import ABSENT, Client, put
    for state, found, expected in ((2, None, "missing"), (2, 1, "allowed"), (2, b"2 halves", "allowed"),
                                   (ABSENT, 2, "allowed"), (2, 2, None), (ABSENT, None, None)):
        client = Client(0, {5: state}, 3)
        path = client.path(workdir, 5)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
        if found is not None:
            put(path, found if isinstance(found, bytes) else client.value(5, found))
        wrong = client.verify(workdir, False)
        assert (expected is None and wrong == []) or (len(wrong) == 1 and expected in wrong[0])
