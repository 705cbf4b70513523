# SPDX-License-Identifier: BSD-2-Clause
"""Goal: `larder check` finds damage and nothing else, `larder dump` shows what is there, and neither writes.
Method: stores made by a real daemon, stopped or killed, then damaged byte by byte; exit codes, findings and lines
are compared with what was done."""

import json
import os
import random

import pytest

from harness import corrupt
from harness.values import put, random_bytes, text_bytes

pytestmark = pytest.mark.daemon


@pytest.fixture
def check(site):
    """check(store) -> (exit code, findings, summary) of `larder check --json`."""
    def run(store):
        result = site.run([site.tool, "check", "--json", store])
        report = json.loads(result.stdout)
        return result.returncode, report["findings"], report
    return run


@pytest.fixture
def dump(site):
    """dump(store, what...) -> lines."""
    return lambda *words: site.run_ok([site.tool, "dump", *words]).stdout.splitlines()


def fill(m):
    """Values of every kind. Returns {path: size}."""
    sizes = {}
    os.makedirs(m.path("dir", "sub"))
    for i in range(30):
        put(m.path("dir", f"small{i}"), text_bytes(3000 + i, i))
        sizes[f"/dir/small{i}"] = 3000 + i
    put(m.path("dir", "sub", "raw"), random_bytes(600_000))
    put(m.path("dir", "sub", "packed"), text_bytes(3_000_000))
    put(m.path("empty"), b"")
    sizes |= {"/dir/sub/raw": 600_000, "/dir/sub/packed": 3_000_000, "/empty": 0}
    os.symlink("dir/small0", m.path("symbolic"))
    os.link(m.path("dir", "small1"), m.path("hard link"))
    os.mkfifo(m.path("fifo"))
    os.setxattr(m.path("empty"), "user.color", b"red")
    os.setxattr(m.path("dir"), "user.larder.ttl", b"7d")
    return sizes


@pytest.fixture
def stopped(mount):
    """A filled store at rest."""
    m = mount(quota="64M")
    m.sizes = fill(m)
    m.stop()
    return m


def contents(store):
    """Every file of the store with its bytes and times."""
    found = {}
    for top, _, names in os.walk(store):
        for name in names:
            path = os.path.join(top, name)
            with open(path, "rb") as f:
                found[path] = (f.read(), os.stat(path).st_mtime_ns)
    return found


def severities(findings):
    return [finding["severity"] for finding in findings]


# check

def test_a_sound_store(check, stopped, site):
    before = contents(stopped.store)
    code, findings, report = check(stopped.store)
    assert code == 0 and findings == []
    assert report["names"] == 30 + 3 + 3 + 2 and report["directories"] == 3
    assert report["values_checked"] == 32 and report["value_bytes_checked"] == sum(stopped.sizes.values())
    assert report["big_files"] == 2 and report["disk_bytes"] == int(
        site.run_ok(["du", "-s", "--block-size=1", stopped.store]).stdout.split()[0])
    assert "clean" in site.run_ok([site.tool, "check", stopped.store]).stdout
    assert contents(stopped.store) == before, "it writes nothing"


def test_a_new_store(check, mount):
    m = mount()
    m.stop()
    assert check(m.store)[:2] == (0, [])
    m.start()
    m.kill()
    assert check(m.store)[0] == 0


def test_a_store_in_use_is_refused(mount, site):
    m = mount()
    for words in (["check", m.store], ["dump", m.store]):
        result = site.run([site.tool, *words])
        assert result.returncode == (2 if words[0] == "check" else 1)
        assert str(m.pid) in result.stderr and "in use" in result.stderr
    result = site.run([site.tool, "check", m.mnt])
    assert result.returncode == 2 and "larder umount" in result.stderr and m.store in result.stderr


@pytest.mark.parametrize("kind", ["missing", "file", "symlink", "not a store", "newer FORMAT"])
def test_what_cannot_be_checked(stopped, site, workdir, kind):
    path = stopped.store
    if kind == "missing":
        path = os.path.join(workdir, "missing")
    elif kind == "file":
        path = os.path.join(workdir, "file")
        put(path, b"")
    elif kind == "symlink":
        path = os.path.join(workdir, "link")
        os.symlink(stopped.store, path)
    elif kind == "not a store":
        path = os.path.join(workdir, "logs")
    else:
        corrupt.reseal_header(os.path.join(path, "FORMAT"), 8, 9)
    result = site.run([site.tool, "check", path])
    assert result.returncode == 2 and path in result.stderr and len(result.stderr.splitlines()) == 1
    assert site.run([site.tool, "dump", path]).returncode == 1


@pytest.mark.parametrize("prefix, damage", [
    (prefix, damage) for prefix in ("seg-", "big", "index-")
    for damage in (corrupt.flip, corrupt.cut, corrupt.zero, corrupt.empty, corrupt.remove, corrupt.garbage)],
    ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_damage_is_found(check, stopped, prefix, damage):
    for path in corrupt.store_files(stopped.store, prefix):
        if damage is corrupt.zero and prefix == "seg-":
            corrupt.garbage(path, 5)
        else:
            damage(path, 5)
    code, findings, _ = check(stopped.store)
    assert code == 1 and "E" in severities(findings), findings
    for finding in findings:
        assert finding["where"] and finding["what"]


def test_damage_of_one_value_names_its_key(check, stopped, dump):
    line, = [line for line in dump(stopped.store, "index") if "node id=" in line and "size=3007 " in line]
    name, offset = line.split("place=")[1].split(" ")[0].split(":")
    with open(os.path.join(stopped.store, name), "r+b") as f:
        f.seek(int(offset) + 50)
        f.write(b"\0\1\2\3")
    code, findings, _ = check(stopped.store)
    assert code == 1 and [finding["where"] for finding in findings] == ["/dir/small7"]


def test_leftovers_are_notes(check, stopped):
    put(os.path.join(stopped.store, "index-000000ff.tmp"), b"half")
    put(os.path.join(stopped.store, "seg-00000fff"), b"")
    put(os.path.join(stopped.store, "holiday.jpg"), b"x" * 5000)
    os.makedirs(os.path.join(stopped.store, "big/0f"), exist_ok=True)
    put(os.path.join(stopped.store, "big/0f/0000000000000f0f"), b"x")
    os.mkfifo(os.path.join(stopped.store, "seg-00000ffe"))
    code, findings, _ = check(stopped.store)
    assert code == 0 and severities(findings) == ["N"] * 5
    assert {finding["where"] for finding in findings} == {
        "index-000000ff.tmp", "seg-00000fff", "holiday.jpg", "big/0f/0000000000000f0f", "seg-00000ffe"}


def test_a_torn_journal_is_a_note(check, mount):
    m = mount(quota="64M")
    fill(m)
    m.kill()
    journal = corrupt.store_files(m.store, "journal-")[-1]
    with open(journal, "ab") as f:
        f.write(b"LJR1 and then the power went")
    code, findings, _ = check(m.store)
    assert code == 0 and any("torn" in finding["what"] for finding in findings)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_breaks_the_checker(stopped, site, seed):
    rng = random.Random(seed)
    kinds = [corrupt.flip, corrupt.cut, corrupt.zero, corrupt.garbage]
    for prefix in ("seg-", "big", "index-", "journal-"):
        for path in corrupt.store_files(stopped.store, prefix):
            rng.choice(kinds)(path, rng.randrange(1 << 30))
    assert site.run([site.tool, "check", stopped.store]).returncode in (0, 1)
    site.run_ok([site.tool, "dump", stopped.store])


def test_clean_after_sigkill(check, mount):
    m = mount(quota="64M")
    fill(m)
    fd = os.open(m.path("open"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, random_bytes(1_000_000))
    os.unlink(m.path("dir", "small3"))
    os.rename(m.path("dir", "sub"), m.path("moved"))
    m.kill()
    with pytest.raises(OSError):
        os.close(fd)
    code, findings, report = check(m.store)
    assert code == 0, findings
    assert report["names"] == 37 and report["values_checked"] == 31


# dump

def test_dump_shows_every_key_and_value(dump, stopped):
    index = dump(stopped.store, "index")
    names = [line.split(" name=")[1] for line in index if " name " in line]
    assert sorted(names) == sorted(["dir", "sub", "raw", "packed", "empty", "symbolic", "hard\\040link", "fifo",
                                    *(f"small{i}" for i in range(30))])
    assert any("symlink=dir/small0" in line for line in index)
    assert any("xattr=user.color:3" in line for line in index)
    assert any(" end " in line and "clean=1" in line for line in index)
    segments = dump(stopped.store, "segments")
    assert len([line for line in segments if " value " in line]) >= 30
    big = dump(stopped.store, "big")
    assert any(" packed " in line and "logical=3000000" in line for line in big)
    assert any(" raw " in line and "size=600000" in line for line in big)
    everything = dump(stopped.store)
    assert set(index) | set(segments) | set(big) <= set(everything)


def test_dump_offsets_are_those_of_the_records(dump, stopped):
    checked = 0
    for line in dump(stopped.store):
        name, offset, kind = line.split(" ")[:3]
        if kind not in ("record", "value", "sums"):
            continue
        with open(os.path.join(stopped.store, name), "rb") as f:
            f.seek(int(offset))
            assert f.read(4) == (b"LJR1" if kind == "record" else b"LSV1"), line
        checked += 1
    assert checked > 30


def test_dump_of_one_file(dump, stopped, site):
    for path in corrupt.store_files(stopped.store, "seg-"):
        name = os.path.basename(path)
        lines = dump(stopped.store, name)
        assert lines and all(line.startswith(name + " ") for line in lines)
    result = site.run([site.tool, "dump", stopped.store, "seg-0fffffff"])
    assert result.returncode == 1 and "seg-0fffffff" in result.stderr


def test_dump_of_a_busy_store(mount, site):
    m = mount()
    put(m.path("key"), b"value")
    assert site.run([site.tool, "dump", m.store]).returncode == 1
    assert " name=key" in site.run_ok([site.tool, "dump", "--even-if-busy", m.store, "journal"]).stdout
