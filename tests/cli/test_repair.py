# SPDX-License-Identifier: BSD-2-Clause
"""Goal: `larder check --repair` makes any damaged store mountable and sound, keeps all that can be trusted, tells what went.
Method: a store whose every byte is known, half of it in a checkpoint and half in journals, is copied and damaged; after the
repair `larder check` finds no defect, it mounts, every key left holds exactly its bytes, and every key that is gone was named. Where changes are lost, and that was told, a key may be as it was before."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time

import pytest

from harness import corrupt
from harness.procs import Child
from harness.sysx import xxh3
from harness.values import get, put, random_bytes, text_bytes
from harness.wait import Deadline, until

pytestmark = pytest.mark.daemon

KIB, MIB = 1 << 10, 1 << 20


def tree(top):
    """{relative path: bytes of a file, target of a link, None of a directory}."""
    found = {}
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = os.readlink(path) if os.path.islink(path) else \
                get(path) if os.path.isfile(path) else None
    return found


def fill(m, prefix):
    """Values of every kind in directories two deep."""
    for folder in ("a", "a/b", "c"):
        os.makedirs(m.path(prefix, folder), exist_ok=True)
        for i in range(12):
            put(m.path(prefix, folder, f"small-{i}"), text_bytes(2000 + 100 * i, f"{prefix}{folder}{i}"))
    put(m.path(prefix, "a", "raw"), random_bytes(600_000, prefix))
    put(m.path(prefix, "c", "packed"), text_bytes(2_000_000, prefix))
    put(m.path(prefix, "c", "empty"), b"")
    os.symlink("small-1", m.path(prefix, "c", "link"))
    os.link(m.path(prefix, "c", "small-1"), m.path(prefix, "a", "hard"))
    os.setxattr(m.path(prefix, "c", "small-2"), "user.color", b"red")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Where the store is kept that all tests damage copies of."""
    return {"store": str(tmp_path_factory.mktemp("model") / "store")}


def make_model(site, model):
    m = site.mount(store=os.path.join(site.workdir, "model"), quota="256M")
    fill(m, "old")
    m.restart()
    fill(m, "new")
    for i in range(4):
        put(m.path("new", "c", "small-3"), random_bytes(3000, i))
    os.unlink(m.path("new", "c", "small-4"))
    model["wanted"] = tree(m.mnt)
    m.kill()
    shutil.copytree(m.store, model["store"])


@pytest.fixture
def broken(site, model):
    """A store at rest whose daemon was killed. `.wanted` is all that was in it, `.earlier` what had been."""
    if "wanted" not in model:
        make_model(site, model)
    m = site.mount(start=False, store=os.path.join(site.workdir, "broken"), quota="256M")
    shutil.copytree(model["store"], m.store)
    m.wanted = dict(model["wanted"])
    m.earlier = {"new/c/small-3": [random_bytes(3000, i) for i in range(3)] + [text_bytes(2300, "newc3")],
                 "new/c/small-4": [text_bytes(2400, "newc4")]}
    m.allow("format_damaged")
    return m


@pytest.fixture
def repair(site):
    """repair(store) -> (exit code, [(where, what)], report)."""
    def run(store, **popen):
        result = site.run([site.tool, "check", "--repair", "--json", store], 60, **popen)
        assert result.returncode in (0, 1), result.stderr
        report = json.loads(result.stdout)
        return result.returncode, [(finding["where"], finding["what"]) for finding in report["findings"]], report
    return run


def assert_sound(m, told, unknown=False):
    """The store mounts, is clean, and holds nothing wrong; what is not there was told, unless it cannot be known that it
    ever was (the end of a journal is missing). Returns what is there."""
    m.site.check(m.store)
    m.start()
    found = tree(m.mnt)
    for path, value in found.items():
        earlier = m.earlier.get(path, []) if unknown else []
        assert (path in m.wanted and m.wanted[path] == value) or value in earlier, f"{path}: {value and len(value)}"
    told_of = " ".join(where for where, _ in told)
    if not unknown and not any(word in what for _, what in told for word in ("all that was in it", "damaged records")):
        assert {path for path in set(m.wanted) - set(found) if f"/{path}" not in told_of} == set()
    put(m.path("more"), b"value")
    os.unlink(m.path("more"))
    m.stop()
    return found


def test_a_sound_store_stays_as_it_is(broken, repair):
    code, told, report = repair(broken.store)
    assert (code, told, report["defects"]) == (0, [], 0)
    assert assert_sound(broken, told) == broken.wanted
    assert repair(broken.store)[:2] == (0, [])


DAMAGES = [corrupt.flip, corrupt.cut, corrupt.zero, corrupt.empty, corrupt.remove, corrupt.garbage]


@pytest.mark.parametrize("prefix", ["journal-", "index-", "seg-", "big", "FORMAT", "LOCK", "CACHEDIR.TAG"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_file_damaged_in_every_way(broken, repair, prefix, damage):
    files = corrupt.store_files(broken.store, prefix)
    assert files
    for number, path in enumerate(files):
        damage(path, number + 1)
    _, told, _ = repair(broken.store)
    found = assert_sound(broken, told, unknown=prefix == "journal-")
    if prefix in ("FORMAT", "LOCK", "CACHEDIR.TAG"):
        assert found == broken.wanted
    if prefix in ("journal-", "seg-", "big"):
        assert found or any("all that was in it" in what for _, what in told)


@pytest.mark.parametrize("prefix", ["journal-", "index-", "seg-", "big"])
def test_files_that_have_changed_places(broken, repair, mount, prefix):
    """With one another, and with those of another store."""
    other = mount(quota="256M")
    fill(other, "old")
    other.restart()
    fill(other, "new")
    other.kill()
    mine, foreign = corrupt.store_files(broken.store, prefix), corrupt.store_files(other.store, prefix)
    shutil.copyfile(foreign[0], mine[0])
    if len(mine) > 1:
        os.rename(mine[1], mine[1] + ".x")
        os.rename(mine[0], mine[1])
        os.rename(mine[1] + ".x", mine[0])
    _, told, _ = repair(broken.store)
    assert_sound(broken, told, unknown=prefix == "journal-")


def test_a_checkpoint_is_kept_but_for_what_is_damaged_in_it(broken, repair):
    path, = corrupt.store_files(broken.store, "index-")
    with open(path, "r+b") as f:
        f.seek(64 + 32 + 40)
        f.write(b"\xff")
    code, told, _ = repair(broken.store)
    assert code == 1 and told
    assert_sound(broken, told)


def test_a_change_that_is_lost_takes_its_key_along(broken, repair, site):
    """Behind the damage it is known which keys the lost records changed: what was known of them is older, and goes."""
    lines = [line for line in site.run_ok([site.tool, "dump", broken.store, "journal"]).stdout.splitlines()]
    at = max(i for i, line in enumerate(lines) if "name=small-3" in line.split())
    node_id = lines[at].split(" id=")[1].split()[0]
    line = next(line for line in reversed(lines) if f"node id={node_id} " in line)
    with open(os.path.join(broken.store, line.split()[0]), "r+b") as f:
        f.seek(int(line.split()[1]) + 20)
        f.write(b"\xff\xff")
    code, told, _ = repair(broken.store)
    assert code == 1 and any("/new/c/small-3" in where for where, _ in told)
    found = assert_sound(broken, told)
    assert "new/c/small-3" not in found and len(found) > 70


def test_keys_outlive_the_record_of_their_directory(broken, repair, site):
    """Its names are there: it is made anew, for the owner alone."""
    wanted = {"old/a/b": None}
    lines = site.run_ok([site.tool, "dump", broken.store, "index"]).stdout.splitlines()
    name, = [line for line in lines if "name=b" in line.split()]
    node_id = name.split(" id=")[1].split()[0]
    line, = [line for line in lines if f"node id={node_id} " in line]
    path = os.path.join(broken.store, line.split()[0])
    drop_entry(path, int(line.split()[1]))
    code, told, _ = repair(broken.store)
    assert code == 1 and any(where == "/old/a/b" for where, _ in told)
    broken.site.check(broken.store)
    broken.start()
    assert {path: value for path, value in tree(broken.mnt).items() if path in wanted or path.startswith("old/a/b/")} \
        == {path: value for path, value in broken.wanted.items() if path in wanted or path.startswith("old/a/b/")}
    assert os.stat(broken.path("old", "a", "b")).st_mode & 0o777 == 0o700


def drop_entry(path, entry_offset):
    """Turns one NODE entry of a record into a harmless one (a USE of nothing as long as it), and seals the record again."""
    with open(path, "rb") as f:
        data = bytearray(f.read())
    store_id, file_no = bytes(data[16:32]), struct.unpack_from("<I", data, 12)[0]
    is_index = data[:8] == b"LDINDX01"
    seed = xxh3(store_id + struct.pack("<Q", file_no + ((1 << 32) if is_index else 0)))
    at = 64
    while True:
        length, seq = struct.unpack_from("<IQ", data, at + 4)
        if at < entry_offset < at + 32 + length:
            break
        at += 32 + (length + 7) // 8 * 8
    body = int.from_bytes(data[entry_offset + 1:entry_offset + 4], "little")
    before, after = data[at + 32:entry_offset], data[entry_offset + 4 + body:at + 32 + length]
    payload = bytes(before + after)
    count = struct.unpack_from("<I", data, at + 16)[0] - 1
    header = struct.pack("<4sIQII", b"LJR1", len(payload), seq, count, 0)
    checksum = xxh3(payload, xxh3(header, seed))
    record = header + struct.pack("<Q", checksum) + payload + bytes(-len(payload) % 8)
    data[at:at + 32 + (length + 7) // 8 * 8] = record
    with open(path, "wb") as f:
        f.write(data)


@pytest.mark.parametrize("name, kind", [
    (name, kind) for name in ("LOCK", "FORMAT", "CACHEDIR.TAG", "journal-00000007", "index-000000ff", "seg-00000009", "big")
    for kind in ("symbolic link", "directory", "fifo") if (name, kind) != ("big", "directory")])
def test_what_is_not_ours_is_set_aside(broken, repair, name, kind):
    path = os.path.join(broken.store, name)
    if os.path.isdir(path):
        os.rename(path, path + ".was")
    elif os.path.exists(path):
        os.unlink(path)
    outside = os.path.join(broken.site.workdir, "outside")
    put(outside, b"not yours")
    {"symbolic link": lambda: os.symlink(outside, path), "directory": lambda: os.makedirs(os.path.join(path, "sub")),
     "fifo": lambda: os.mkfifo(path)}[kind]()
    code, told, _ = repair(broken.store)
    assert code == 1 and any(where == name and ".aside-0" in what for where, what in told)
    assert os.path.lexists(path + ".aside-0") and get(outside) == b"not yours"
    found = assert_sound(broken, told)
    if name != "big":
        assert found == broken.wanted


def test_permissions_are_set_right(broken, repair):
    os.chmod(broken.store, 0o777)
    os.chmod(corrupt.store_files(broken.store, "seg-")[0], 0)
    code, told, _ = repair(broken.store)
    assert code == 1 and len(told) == 2 and os.stat(broken.store).st_mode & 0o777 == 0o700
    assert assert_sound(broken, told) == broken.wanted


def test_a_store_in_use_and_a_newer_one_are_refused(broken, site):
    broken.start()
    result = site.run([site.tool, "check", "--repair", broken.store])
    assert result.returncode == 2 and str(broken.pid) in result.stderr
    broken.stop()
    corrupt.reseal_header(os.path.join(broken.store, "FORMAT"), 8, 9)
    before = {path: get(path) for path in corrupt.store_files(broken.store, "")if os.path.isfile(path)}
    result = site.run([site.tool, "check", "--repair", broken.store])
    assert result.returncode == 2 and "newer" in result.stderr
    assert before == {path: get(path) for path in corrupt.store_files(broken.store, "") if os.path.isfile(path)}


def damage_some(store):
    """Of everything a little."""
    for prefix in ("journal-", "seg-", "big"):
        path = max(corrupt.store_files(store, prefix), key=os.path.getsize)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 3)
            f.write(random_bytes(100))
    path, = corrupt.store_files(store, "index-")
    with open(path, "r+b") as f:
        f.seek(os.path.getsize(path) // 2)
        f.write(b"?")
    os.unlink(os.path.join(store, "FORMAT"))


def test_killed_half_way_it_can_be_repaired_again(broken, repair, site, seed):
    """What the repair keeps after ten that were killed is what one alone keeps."""
    damage_some(broken.store)
    alone = os.path.join(site.workdir, "alone")
    shutil.copytree(broken.store, alone, symlinks=True)
    began = time.monotonic()
    repair(alone)
    seconds = time.monotonic() - began
    for kill in range(10):
        process = subprocess.Popen([site.tool, "check", "--repair", broken.store], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(time.monotonic() + seconds * (kill + (seed % 97) / 97) / 12)
        process.send_signal(signal.SIGKILL)
        process.wait(Deadline(10).left())
    _, told, _ = repair(broken.store)
    other = site.mount(store=alone, quota="256M")
    kept = tree(other.mnt)
    other.stop()
    broken.site.check(broken.store)
    broken.start()
    assert tree(broken.mnt) == kept


def test_a_full_disk_leaves_the_store_as_it_was(site, repair):
    """There is no room for the new index; with room, the same repair keeps the same."""
    disk = site.tmpfs("disk", "24M")
    m = site.mount(store=os.path.join(disk, "store"), quota="16M")
    m.allow("format_damaged")
    fill(m, "old")
    m.restart()
    for i in range(300):
        put(m.path(f"key-{i}"), random_bytes(100, i))
        os.setxattr(m.path(f"key-{i}"), "user.long", random_bytes(1000, i))
    m.wanted = tree(m.mnt)
    m.kill()
    damage_some(m.store)
    filler = os.path.join(disk, "filler")
    with open(filler, "wb", buffering=0) as f:
        for size in (MIB, 4 * KIB):
            try:
                while f.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    result = site.run([site.tool, "check", "--repair", m.store])
    assert result.returncode == 2 and "room" in result.stderr or "space" in result.stderr
    os.unlink(filler)
    _, told, _ = repair(m.store)
    m.site.check(m.store)
    m.start()
    found = tree(m.mnt)
    assert {path: value for path, value in found.items() if m.wanted.get(path) != value} == {}
    assert len(found) > len(m.wanted) // 2


def test_a_user_repairs_his_own(site, workdir):
    """Not root: what the repair needs is the store's owner."""
    store = os.path.join(workdir, "store-of-user")
    m = site.mount(store=store, quota="16M")
    put(m.path("key"), b"value")
    m.stop()
    for top, folders, names in os.walk(store):
        for name in folders + names:
            os.chown(os.path.join(top, name), 12345, 12345)
    os.chown(store, 12345, 12345)
    os.chmod(corrupt.store_files(store, "index-")[0], 0)

    def run():
        return subprocess.run([site.tool, "check", "--repair", store], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)
    result = Child(run, user=12345).result()
    assert result.returncode == 1 and "0600 now" in result.stdout and "1 keys" in result.stdout, result.stdout + result.stderr
    result = site.run([site.tool, "check", "--repair", store])
    assert result.returncode == 2 and "belongs to user 12345" in result.stderr
