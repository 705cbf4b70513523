# SPDX-License-Identifier: BSD-2-Clause
"""Goal: every store ever written by a released format can be read, and nothing that is not one is believed.
Method: golden stores (golden.py) are unpacked and mounted; headers are damaged and resealed in every field."""

import glob
import os
import sys
import tarfile

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import golden  # noqa: E402
from harness import corrupt  # noqa: E402
from harness.mount import MountFailed  # noqa: E402
from harness.values import get, put, random_bytes  # noqa: E402

pytestmark = pytest.mark.daemon

GOLDEN = sorted(glob.glob(os.path.join(HERE, "golden", "*.tar.xz")))


def test_the_golden_content_is_read_back_by_who_wrote_it(mount, site):
    m = mount(quota="64M")
    golden.fill(m.mnt, "first")
    m.restart("stop")
    golden.fill(m.mnt, "second")
    m.restart("kill")
    assert golden.differences(m.mnt) == []
    m.stop()
    site.check(m.store)


@pytest.mark.parametrize("path", GOLDEN, ids=[os.path.basename(path).partition(".")[0] for path in GOLDEN])
def test_golden_store_of(mount, site, path):
    """It mounts, holds what it held, takes more, and is as sound after a restart as before."""
    m = mount(start=False, quota="64M")
    os.mkdir(m.store, 0o700)
    with tarfile.open(path) as archive:
        archive.extractall(m.store)
    for top, folders, files in os.walk(m.store):
        for name in folders + files:
            os.chown(os.path.join(top, name), 0, 0)
    site.check(m.store)
    m.start()
    assert golden.differences(m.mnt) == []
    put(m.path("new"), random_bytes(10_000))
    m.restart("kill")
    assert golden.differences(m.mnt) == []
    assert get(m.path("new")) == random_bytes(10_000)
    assert m.stats()["corrupt_records"] == 0
    m.stop()
    site.check(m.store)


#: Offsets of u32 fields in the 64-byte file headers: (name, offset). All are resealed, so that only the field is wrong.
FIELDS = [("magic", 0), ("version", 8), ("number or reserved field", 12), ("store id", 16), ("a later field", 48)]


@pytest.mark.parametrize("name, offset", FIELDS, ids=[name for name, _ in FIELDS])
@pytest.mark.parametrize("prefix", ["journal-", "index-", "seg-"], ids=lambda prefix: prefix.rstrip("-"))
def test_a_resealed_header_with_another(mount, prefix, name, offset):
    """Whatever a header says, the mount comes up or refuses a newer version, and no value is wrong."""
    m = mount()
    wanted = {f"key-{i}": random_bytes(3000, i) for i in range(20)}
    for key, data in wanted.items():
        put(m.path(key), data)
    m.stop()
    m.allow(".")
    for path in corrupt.store_files(m.store, prefix):
        corrupt.reseal_header(path, offset, 0x7FFFFFFF)
    try:
        m.start()
    except MountFailed as failure:
        assert name == "version" and "newer" in failure.text
        return
    for key, data in wanted.items():
        try:
            assert get(m.path(key)) == data
        except FileNotFoundError:
            continue
        except OSError as error:
            assert error.errno == 5
    put(m.path("new"), b"works")
    assert get(m.path("new")) == b"works"
