# SPDX-License-Identifier: BSD-2-Clause
"""Goal: every command does what its help says, on a live mount, and says so when it cannot.
Method: the `larder` of the build is run as a person or a script runs it; exit codes, words and JSON are looked at."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from harness import sysx
from harness.mount import find_mount, parse_stats
from harness.values import put, random_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon

MS_REMOUNT = 32
COMMANDS = ["mount", "umount", "stats", "ls", "info", "get", "set", "unset", "purge", "check", "dump", "doctor", "bench"]


@pytest.fixture
def larder(site):
    """larder("ls", path) -> CompletedProcess; larder.ok(...) -> its output; larder.json(...) -> its output, parsed."""
    def run(*words, **popen):
        return site.run([site.tool, *words], **popen)

    def ok(*words, **popen):
        return site.run_ok([site.tool, *words], **popen).stdout

    run.ok = ok
    run.json = lambda *words, **popen: json.loads(ok(*words, **popen))
    return run


def fails(result, code, *words):
    """It ended with that code, said why in one or two lines, and printed nothing as a result."""
    assert result.returncode == code, result
    assert result.stderr.startswith("larder"), result.stderr
    assert len(result.stderr.splitlines()) <= 2, result.stderr
    for word in words:
        assert word in result.stderr, f"no {word!r} in {result.stderr!r}"


def ended(m):
    """The daemon was stopped from outside, in order."""
    assert m.process.wait(30) == 0, m.log()
    m.process = None


# The command line

def test_help_and_version(larder):
    text = larder.ok("--help")
    for name in COMMANDS:
        assert f"  {name}" in text
        assert larder.ok(name, "--help").startswith(f"usage: larder {name} ")
    assert larder.ok("--version").startswith("larder ")


@pytest.mark.parametrize("words", [
    [], ["nonsense"], ["stats", "--nonsense"], ["ls", "a", "b"], ["ls", "-x"], ["info"], ["set"], ["set", "path"],
    ["set", "path", "ttl"], ["set", "path", "nonsense=1"], ["unset", "path", "ttl=1"], ["get"], ["get", "path", "nonsense"],
    ["purge"], ["check"], ["check", "a", "b"], ["dump"], ["dump", "a", "b", "c"], ["doctor", "a", "b"], ["mount"],
    ["mount", "a", "b", "c"], ["umount"], ["umount", "--timeout=soon", "a"], ["stats", "--json", "--raw"],
    ["stats", "--watch=0"]], ids=lambda words: " ".join(["larder", *words]))
def test_a_wrong_command_line_is_refused(larder, words):
    result = larder(*words)
    assert result.returncode == 2
    assert "usage: larder" in result.stderr and not result.stdout


@pytest.mark.parametrize("words", [
    ["stats"], ["ls"], ["info"], ["get"], ["set", "ttl=1h"], ["unset", "ttl"], ["purge"]], ids=lambda words: words[0])
def test_a_path_outside_of_a_larder_is_refused(larder, workdir, words):
    put(os.path.join(workdir, "key"), b"precious")
    fails(larder(words[0], workdir, *words[1:]), 1, workdir, "not in a larder")
    assert os.path.exists(os.path.join(workdir, "key"))
    fails(larder(words[0], os.path.join(workdir, "missing"), *words[1:]), 1, "missing", "No such file")


def test_output_that_cannot_be_written_is_a_failure(larder, mount):
    m = mount()
    with open("/dev/full", "w") as full:
        result = subprocess.run([m.site.tool, "stats", m.mnt], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "No space left" in result.stderr


# Mounting

def test_mount_and_umount_with_a_named_store(larder, workdir):
    store, mnt = os.path.join(workdir, "s"), os.path.join(workdir, "m")
    os.mkdir(mnt)
    larder.ok("mount", store, mnt, "-o", "quota=8M")
    assert find_mount(mnt, "fuse.larder")
    put(os.path.join(mnt, "key"), b"value")
    again = larder("mount", store, mnt)
    assert again.returncode == 1 and "already a mount" in again.stderr
    larder.ok("umount", mnt)
    assert not find_mount(mnt)
    assert larder("check", store).returncode == 0, "the daemon was gone when umount returned"


def test_a_store_that_is_not_named_belongs_to_the_mount_point(larder, workdir, site):
    env = {**site.environment, "XDG_CACHE_HOME": os.path.join(workdir, "caches")}
    stores = {}
    for name in ("a/cache", "b/cache"):
        mnt = os.path.join(workdir, name)
        os.makedirs(mnt)
        stores[name] = larder.ok("mount", "--print-store", mnt, env=env).strip()
        assert not os.path.exists(stores[name])
        assert larder.ok("mount", mnt, "-o", "quota=8M", env=env) == f"store: {stores[name]}\n"
        put(os.path.join(mnt, "key"), name.encode())
        larder.ok("umount", mnt)
    assert stores["a/cache"] != stores["b/cache"]
    assert all(os.path.dirname(store) == os.path.join(workdir, "caches", "larder") for store in stores.values())
    larder.ok("mount", "./cache/", env=env, cwd=os.path.join(workdir, "a"))
    with open(os.path.join(workdir, "a/cache/key")) as f:
        assert f.read() == "a/cache"
    larder.ok("umount", "cache", cwd=os.path.join(workdir, "a"))


def test_without_a_home_the_store_has_to_be_named(larder, workdir, site):
    env = {name: value for name, value in site.environment.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    fails(larder("mount", workdir, env=env), 1, "XDG_CACHE_HOME", "name a store")


def test_mount_passes_on_what_mount_larder_says(larder, workdir):
    result = larder("mount", os.path.join(workdir, "s"), workdir, "-o", "nonsense=1")
    assert result.returncode == 2 and "nonsense" in result.stderr


def test_umount_leaves_other_file_systems_alone(larder, site, workdir):
    point = site.tmpfs("other", "1m")
    fails(larder("umount", point), 1, "tmpfs", "left alone")
    assert find_mount(point)
    fails(larder("umount", workdir), 1, "nothing is mounted")
    fails(larder("umount", os.path.join(workdir, "missing")), 1, "No such file")


def test_umount_waits_for_the_daemon(larder, mount):
    m = mount(quota="64M")
    for i in range(200):
        put(m.path(f"key{i}"), random_bytes(4000, i))
    larder.ok("umount", m.mnt)
    assert larder("check", m.store).returncode == 0
    ended(m)


def test_umount_of_a_mount_in_use(larder, mount):
    m = mount()
    with open(m.path("key"), "w"):
        fails(larder("umount", m.mnt), 1, m.mnt, "in use")
        assert find_mount(m.mnt)
    eventually(lambda: larder("umount", m.mnt).returncode == 0, 10, "umount")
    ended(m)


def test_umount_clears_a_dead_mount(larder, mount):
    m = mount()
    m.kill(clear=False)
    fails(larder("stats", m.mnt), 1, "daemon of this mount is gone", "larder mount")
    fails(larder("ls", m.path("x")), 1, m.mnt)
    report = larder("doctor", m.mnt)
    assert report.returncode == 1 and "daemon is gone" in report.stdout
    assert "cleared" in larder.ok("umount", m.mnt)
    assert not find_mount(m.mnt)


# Numbers

def test_stats_of_a_mount(larder, mount):
    m = mount(quota="8M")
    put(m.path("key"), b"v" * 5000)
    m.read("key")
    text = larder.ok("stats", m.mnt)
    assert m.mnt in text and m.store in text and "8.0 MiB" in text and "hit ratio" in text
    numbers = larder.json("stats", "--json", m.mnt)
    assert numbers["entries"] == 1 and numbers["hits"] == 1 and numbers["quota_bytes"] == 8 << 20
    assert numbers["latency"]["open"]["count"] >= 1
    raw = parse_stats(larder.ok("stats", "--raw", m.mnt))
    assert raw["entries"] == 1 and set(m.stats()) == set(raw)
    assert larder.ok("stats", cwd=m.mnt).splitlines()[0] == text.splitlines()[0], "the current directory will do"


def test_stats_of_a_directory(larder, mount):
    m = mount()
    os.mkdir(m.path("dir"))
    put(m.path("dir", "key"), b"v" * 100)
    put(m.path("other"), b"v" * 1000)
    numbers = larder.json("stats", "--json", m.path("dir"))
    assert numbers["directory"] == m.path("dir")
    assert numbers["entries"] == 1 and numbers["logical_bytes"] == 100
    assert larder.json("stats", "--json", cwd=m.path("dir")) == numbers
    assert "1 in" in larder.ok("stats", m.path("dir"))


@pytest.mark.parametrize("form", [[], ["--json"], ["--raw"]], ids=["table", "json", "raw"])
def test_stats_again_and_again(larder, mount, form):
    m = mount()
    watch = subprocess.Popen([m.site.tool, "stats", "--watch", "1", *form, m.mnt], stdout=subprocess.PIPE, text=True)
    try:
        lines = [watch.stdout.readline() for _ in range(3)]
        assert all(lines)
        if form == ["--json"]:
            assert all(json.loads(line)["entries"] == 0 for line in lines)
    finally:
        watch.kill()
        watch.communicate()


# Keys

def test_ls(larder, mount):
    m = mount(ttl="1h")
    os.mkdir(m.path("dir"))
    put(m.path("b"), b"v" * 10000)
    put(m.path("a\nb\\c"), b"")
    put(os.fsencode(m.mnt) + b"/\xff", b"1")
    os.symlink("b", m.path("link"))
    assert larder.ok("ls", m.mnt).splitlines()[:4] == ["a\\012b\\134c", "b", "dir/", "link"]
    text = larder.ok("ls", "-l", m.mnt)
    assert "SIZE" in text and "59m" in text and "10000" in text
    keys = {key["name"]: key for key in larder.json("ls", "--json", m.mnt)}
    assert set(keys) == {"a\nb\\c", "b", "dir", "link", os.fsdecode(b"\xff")}
    assert keys["b"]["type"] == "file" and keys["b"]["size"] == 10000 and keys["b"]["hits"] == 0
    assert 0 < keys["b"]["stored_bytes"] < 10000 and keys["b"]["codec"] == "lz4"
    assert 3500e9 < keys["b"]["left_ns"] <= 3600e9
    assert keys["dir"]["type"] == "directory" and keys["link"]["type"] == "symlink"
    assert larder.json("ls", "--json", m.path("dir")) == []
    assert larder.ok("ls", cwd=m.path("dir")) == ""
    assert m.stats()["hits"] == 0, "looking is no use"


def test_set_get_unset(larder, mount):
    m = mount(idle="2w")
    os.mkdir(m.path("my dir"))
    key = m.path("my dir", "key")
    put(key, b"value")
    larder.ok("set", m.path("my dir"), "ttl=30m", "compress=none")
    larder.ok("set", key, "pin=on", "expires=+1h")
    policies = larder.json("info", "--json", key)[0]["policies"]
    assert policies["ttl"] == {"value": "30m", "source": "directory:/my dir"}
    assert policies["idle"] == {"value": "2w", "source": "mount"}
    assert policies["pin"] == {"value": "on", "source": "own"}
    assert policies["compress"] == {"value": "none", "source": "directory:/my dir"}
    assert abs(float(policies["expires"]["value"]) - time.time() - 3600) < 60
    assert larder.ok("get", key, "ttl") == "30m\n"
    assert larder.ok("get", key, "ttl", "pin") == "ttl 30m\npin on\n"
    values = larder.json("get", "--json", key, "hits", "stored_bytes", "checksum", "ttl")
    assert values["hits"] == 0 and values["stored_bytes"] == 5 and values["ttl"] == "30m"
    larder.ok("set", key, "ttl=none")
    assert larder.ok("get", key, "ttl") == "none\n"
    larder.ok("unset", key, "ttl", "pin")
    larder.ok("set", key, "expires=")
    assert larder.ok("get", key, "ttl") == "30m\n"
    fails(larder("get", key, "expires"), 1, "not set")
    assert larder.json("get", "--json", key, "expires") == {"expires": None}
    larder.ok("unset", key, "ttl")
    assert "ttl 30m" in larder.ok("get", key).splitlines()


@pytest.mark.parametrize("word, form", [
    ("ttl=soon", "an age"), ("idle=-1s", "an age"), ("expires=tomorrow", "+24h"), ("pin=maybe", "on or off"),
    ("compress=zip", "auto, lz4 or none")])
def test_a_malformed_policy_is_refused_with_the_accepted_form(larder, mount, word, form):
    m = mount()
    put(m.path("key"), b"")
    fails(larder("set", m.path("key"), word), 1, word, form)


def test_info_for_people(larder, mount):
    m = mount()
    put(m.path("key"), b"v" * 5)
    os.symlink("key", m.path("link"))
    text = larder.ok("info", m.path("key"), m.mnt, m.path("link"))
    for word in ("size         5", "hits         0", "checksum     xxh3:", "default", "directory", "symlink"):
        assert word in text
    result = larder("info", m.path("key"), m.path("missing"), "--json")
    assert result.returncode == 1 and len(json.loads(result.stdout)) == 1 and "missing" in result.stderr


def fill(directory, keys):
    os.makedirs(directory, exist_ok=True)
    for i in range(keys):
        put(os.path.join(directory, f"key{i}"), b"v" * 10)


def test_purge(larder, mount):
    m = mount()
    fill(m.path("a", "b", "c"), 20)
    fill(m.path("a"), 5)
    put(m.path("outside"), b"stays")
    os.symlink("../outside", m.path("a", "link"))
    os.symlink("..", m.path("a", "up"))
    os.setxattr(m.path("a"), "user.larder.ttl", b"1h")
    counts = larder.json("purge", "--dry-run", "--json", m.path("a"))
    assert counts == {"dry_run": True, "keys": 27, "directories": 2, "bytes": 250, "left": 0}
    assert len(os.listdir(m.path("a"))) == 8
    assert larder.json("purge", "--json", m.path("a")) == {**counts, "dry_run": False}
    assert os.listdir(m.path("a")) == [] and larder.ok("get", m.path("a"), "ttl") == "1h\n"
    assert "removed 1 keys" in larder.ok("purge", m.path("outside"))
    again = larder("purge", m.path("outside"))
    assert again.returncode == 1 and "No such file" in again.stderr
    assert larder.json("purge", "--json", m.mnt)["directories"] == 1
    assert m.stats()["entries"] == 0


def test_purges_side_by_side(larder, mount):
    m = mount()
    for i in range(10):
        fill(m.path(f"d{i}"), 50)
    purges = [subprocess.Popen([m.site.tool, "purge", "--json", m.mnt], stdout=subprocess.PIPE) for _ in range(4)]
    results = [(json.loads(purge.communicate(timeout=60)[0]), purge.returncode) for purge in purges]
    assert all(code == 0 for _, code in results), results
    assert sum(counts["keys"] for counts, _ in results) == 500
    assert os.listdir(m.mnt) == []


# The machine

def test_doctor(larder, mount, workdir):
    report = larder.json("doctor", "--json")
    names = {finding["name"] for finding in report["findings"]}
    assert report["healthy"] and {"kernel", "/dev/fuse", "fusermount3", "io_uring", "passthrough", "mount.larder",
                                  "libfuse", "direct writes", "request size"} <= names
    assert {finding["verdict"] for finding in report["findings"]} <= {"ok", "note", "slow", "fail"}
    m = mount()
    text = larder.ok("doctor", m.mnt)
    assert m.store in text and str(m.pid) in text and "file system" in text and "hole punching" in text
    assert "mount: hits" in text and "mount: checks" in text and "syncing" in text and "discard" in text
    timed = re.compile(r".*(syncing|file system).*")  # the disk is others' as well
    assert timed.sub("", larder.ok("doctor", cwd=m.mnt)) == timed.sub("", text)
    assert "not there yet" in larder.ok("doctor", os.path.join(workdir, "new", "store"))
    os.mkdir(os.path.join(workdir, "open"))
    os.chmod(os.path.join(workdir, "open"), 0o777)
    result = larder("doctor", os.path.join(workdir, "open"))
    assert result.returncode == 1 and "chmod 0700" in result.stdout


def found(report):
    return {one["name"]: (one["verdict"], one["value"], one["advice"] or "") for one in report["findings"]}


@pytest.mark.parametrize("path, text, name, value, advice", [
    ("/sys/module/fuse/parameters/enable_uring", "N", "io_uring", "switched off", "echo Y > /sys/module/fuse"),
    ("/proc/sys/fs/fuse/max_pages_limit", "32", "request size", "only up to 32 pages", "fs.fuse.max_pages_limit=256")])
def test_doctor_of_a_machine_with_a_switch_turned(larder, site, workdir, path, text, name, value, advice):
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    fake = os.path.join(workdir, "fake")
    put(fake, text.encode() + b"\n")
    script = 'mount --bind "$1" "$2" && exec "$3" doctor --json'
    shown = site.run_ok(["unshare", "-m", "sh", "-c", script, "sh", fake, path, site.tool]).stdout
    verdict, said, advised = found(json.loads(shown))[name]
    assert verdict == "slow" and said == value and advice in advised


def test_doctor_of_an_old_kernel(site):
    shown = site.run(["setarch", os.uname().machine, "--uname-2.6", site.tool, "doctor", "--json"])
    assert shown.returncode == 1
    report = found(json.loads(shown.stdout))
    assert report["kernel"][0] == "fail"
    for name, version in (("io_uring", "6.14"), ("passthrough", "6.9"), ("direct writes", "6.6")):
        assert report[name][0] == "slow" and "not offered by this kernel" in report[name][1]
        assert f"Linux {version} or newer" in report[name][2]


def test_doctor_of_one_who_may_not_pass_through(site):
    without = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    shown = site.run_ok([*without, site.tool, "doctor", "--json"])
    verdict, _, advice = found(json.loads(shown.stdout))["passthrough"]
    assert verdict == "slow" and "CAP_SYS_ADMIN: mount as root" in advice


@pytest.mark.parametrize("options, verdict, word", [
    ({}, "ok", "only root may enter"), ({"default_permissions": True}, "slow", "mount without default_permissions"),
    ({"allow_other": True}, "note", "mount without allow_other")])
def test_doctor_tells_who_checks_permissions(larder, mount, options, verdict, word):
    m = mount(**options)
    said = found(larder.json("doctor", "--json", m.mnt))["mount: checks"]
    assert said[0] == verdict and word in said[1] + said[2]


def test_doctor_tells_what_a_mount_does_not_use(larder, mount):
    m = mount(io_uring="off", passthrough="off")
    report = found(larder.json("doctor", "--json", m.mnt))
    for name in ("mount: io_uring", "mount: passthrough"):
        assert report[name] == ("slow", "not in use", "switched off by option")
    assert report["mount: hits"][:2] == ("ok", "exact")
    assert report["mount: direct writes"][0] in ("ok", "slow")
    m.restart(ro=True)
    report = found(larder.json("doctor", "--json", m.mnt))
    assert report["mount: hits"][0] == "slow" and "ro,hits=sampled" in report["mount: hits"][2]
    assert "mount: direct writes" not in report
    m.restart(hits="sampled")
    assert found(larder.json("doctor", "--json", m.mnt))["mount: hits"][0] == "ok"


def test_doctor_of_a_disk_that_discards(larder, site):
    disk = site.loop_disk("disk")
    store = os.path.join(disk.point, "store")
    assert found(larder.json("doctor", "--json", store))["discard"][0] == "ok"
    sysx.mount_fs(disk.device, disk.point, "ext4", "discard", MS_REMOUNT)
    verdict, said, advice = found(larder.json("doctor", "--json", store))["discard"]
    assert verdict == "slow" and disk.point in said and f"remount,nodiscard {disk.point}" in advice


# bench

def test_bench_measures_two_directories_and_leaves_them_empty(site, larder):
    m = site.mount()
    beside = os.path.join(site.workdir, "beside")
    os.makedirs(beside)
    words = ["bench", m.mnt, "--compare", beside, "--count", "20", "--rounds", "2", "--clients", "2"]
    found = larder.json(*words, "--json")
    assert [step["step"] for step in found["steps"]] == \
        ["put", "get", "get again", "stat", "miss", "miss again", "put over", "unlink"]
    assert all(step["ns"] > 0 and step["compared_ns"] > 0 and step["ratio"] > 0 for step in found["steps"])
    assert "get again" in larder.ok(*words)
    assert os.listdir(m.mnt) == [] and os.listdir(beside) == []


def test_bench_interrupted_removes_its_keys(site, larder):
    place = os.path.join(site.workdir, "place")
    os.makedirs(place)
    process = subprocess.Popen([site.tool, "bench", place, "--count", "1000000"], stderr=subprocess.PIPE, text=True)
    site.processes.append(process)
    eventually(lambda: os.listdir(place) and os.listdir(os.path.join(place, os.listdir(place)[0])), 30, "the first keys")
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 1 and os.listdir(place) == []


@pytest.mark.parametrize("words", [[], ["/nowhere"], ["--count", "0", "."], ["--clients", "9", "--count", "2", "."],
                                   ["--rounds", "x", "."], [".", "."]], ids=lambda words: " ".join(words) or "nothing")
def test_bench_refuses(larder, words):
    result = larder("bench", *words)
    fails(result, 1 if words == ["/nowhere"] else 2)
