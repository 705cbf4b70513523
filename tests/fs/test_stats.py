# SPDX-License-Identifier: BSD-2-Clause
"""Goal: `.stats`, `.larder/` and their numbers say what happened, as core/stats.h documents each row.
Method: every number is moved by a known action and must move by exactly as much; secrets must be nowhere."""

import errno
import json
import os
import re
import stat

import pytest

from harness.errors import raises
from harness.mount import parse_stats
from harness.procs import run_child
from harness.values import get, names, put, random_bytes, text_bytes
from harness.wait import eventually

pytestmark = pytest.mark.daemon


def rows(source_dir):
    """[(kind, unit, name)] of core/stats.h."""
    with open(os.path.join(source_dir, "core", "stats.h")) as f:
        return re.findall(r"^\s*X\((COUNTER|GAUGE), (\w+), (\w+),", f.read(), re.MULTILINE)


class Moved:
    """Which counters an action moved, and by how much."""

    def __init__(self, mount):
        self.mount = mount
        self.before = mount.stats()

    def by(self, *wanted):
        after = self.mount.stats()
        return tuple(after[name] - self.before[name] for name in wanted)


def test_every_row_of_stats_h_is_a_line(mount, source_dir):
    m = mount()
    text = m.read(".stats").decode()
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9_]+ [0-9]+(\.[0-9]+)?", line), line
    stats = parse_stats(text)
    for _, _, name in rows(source_dir):
        assert name in stats
    for ratio in ("hit_ratio", "compression_ratio"):
        assert ratio in stats
    assert sum(1 for name in stats if name.startswith("latency_")) >= 16


def test_lookups_hits_and_misses(mount):
    m = mount()
    put(m.path("key"), b"value")
    moved = Moved(m)
    for _ in range(4):
        get(m.path("key"))
    hits, opens = moved.by("hits", "opens")
    assert hits == 4
    assert opens >= 4
    moved = Moved(m)
    for i in range(3):
        assert not os.path.exists(m.path(f"missing-{i}"))
    lookups, misses = moved.by("lookups", "misses")
    assert misses == 3 and lookups >= 3


def test_a_name_that_was_removed_is_a_negative_hit(mount):
    m = mount()
    put(m.path("key"), b"value")
    os.unlink(m.path("key"))
    moved = Moved(m)
    m.restart()
    assert not os.path.exists(m.path("key"))
    assert m.stats()["misses"] >= 1
    assert moved.before["unlinked"] == 1


def test_puts_and_replacements(mount):
    m = mount()
    moved = Moved(m)
    for i in range(5):
        put(m.path(f"key-{i}"), b"value")
    assert moved.by("puts", "replaced", "entries") == (5, 0, 5)
    moved = Moved(m)
    put(m.path("key-0"), b"rewritten")
    m.write("key-1", b"renamed over")
    assert moved.by("puts", "replaced", "entries") == (2, 2, 0)
    moved = Moved(m)
    os.unlink(m.path("key-0"))
    os.unlink(m.path("key-1"))
    assert moved.by("unlinked", "entries", "puts") == (2, -2, 0)


def test_bytes_read_and_written(mount):
    m = mount()
    moved = Moved(m)
    put(m.path("key"), random_bytes(100_000))
    assert moved.by("written_bytes") == (100_000,)
    m.restart()
    moved = Moved(m)
    get(m.path("key"))
    assert 100_000 <= moved.by("read_bytes")[0] <= 140_000


def test_stored_and_logical_bytes(mount):
    m = mount()
    put(m.path("random"), random_bytes(100_000))
    stats = m.stats()
    assert stats["logical_bytes"] == 100_000
    assert 100_000 <= stats["stored_bytes"] <= 104_096
    put(m.path("text"), text_bytes(100_000))
    stats = m.stats()
    assert stats["logical_bytes"] == 200_000
    assert stats["stored_bytes"] < 160_000
    assert stats["compression_ratio"] > 1.2
    os.unlink(m.path("random"))
    os.unlink(m.path("text"))
    stats = m.stats()
    assert (stats["logical_bytes"], stats["stored_bytes"]) == (0, 0)


def test_entries_directories_and_open_files(mount):
    m = mount()
    before = m.stats()
    os.makedirs(m.path("a", "b"))
    put(m.path("key"), b"")
    os.symlink("x", m.path("link"))
    os.mkfifo(m.path("fifo"))
    stats = m.stats()
    assert stats["directories"] - before["directories"] == 2
    assert stats["entries"] - before["entries"] == 3
    fds = [os.open(m.path("key"), os.O_RDONLY) for _ in range(7)]
    assert m.stats()["open_files"] - before["open_files"] == 7
    for fd in fds:
        os.close(fd)
    eventually(lambda: m.stats()["open_files"] == before["open_files"], 5, "files are released")


def test_used_bytes_cover_what_du_sees(mount):
    from harness.du import disk_bytes
    m = mount(quota="64M")
    for i in range(50):
        put(m.path(f"key-{i}"), random_bytes(200_000, i))
    stats = m.stats()
    assert stats["quota_bytes"] == 64 << 20
    assert disk_bytes(m.store) <= stats["used_bytes"] <= 64 << 20


def test_pinned_and_big_files_and_segments(mount):
    m = mount(quota="64M")
    put(m.path("small"), random_bytes(1000))
    put(m.path("big"), random_bytes(2_000_000))
    os.setxattr(m.path("small"), "user.larder.pin", b"on")
    stats = m.stats()
    assert stats["pinned"] == 1
    assert stats["big_files"] == 1
    assert stats["segments"] >= 1


def test_latencies_are_counted(mount):
    m = mount()
    before = m.stats()
    for i in range(20):
        put(m.path(f"key-{i}"), b"x")
    after = m.stats()
    assert after["latency_create_count"] - before["latency_create_count"] == 20
    assert after["latency_flush_count"] - before["latency_flush_count"] >= 20
    assert 0 < after["latency_create_p50_ns"] <= after["latency_create_p99_ns"]
    assert after["latency_create_max_ns"] > 0


def test_errors_are_counted_by_class(mount):
    m = mount(quota="2M")
    with raises(errno.ENOSPC):
        put(m.path("key"), random_bytes(8 << 20))
    assert m.stats()["errors_enospc"] >= 1


def test_restart_numbers(mount):
    m = mount()
    for i in range(100):
        put(m.path(f"key-{i}"), b"x")
    m.restart()
    stats = m.stats()
    assert stats["clean_start"] == 1 and stats["replay_ns"] > 0 and stats["entries"] == 100
    m.restart("kill")
    stats = m.stats()
    assert stats["clean_start"] == 0 and stats["entries"] == 100
    assert stats["corrupt_records"] == 0
    assert stats["uptime_ns"] > 0


def test_stats_of_a_directory_cover_its_subtree(mount):
    m = mount()
    os.makedirs(m.path("a", "b"))
    put(m.path("a", "one"), random_bytes(1000))
    put(m.path("a", "b", "two"), random_bytes(2000))
    put(m.path("outside"), random_bytes(4000))
    stats = m.stats("a")
    assert stats["entries"] == 2
    assert stats["logical_bytes"] == 3000
    assert m.stats("a", "b")["logical_bytes"] == 2000
    assert m.stats()["logical_bytes"] == 7000
    by_xattr = parse_stats(os.getxattr(m.path("a"), "user.larder.stats").decode())
    assert by_xattr["entries"] == 2


def test_a_reader_of_stats_sees_one_moment(mount):
    m = mount()
    fd = os.open(m.path(".stats"), os.O_RDONLY)
    first = os.pread(fd, 100, 0)
    for i in range(10):
        put(m.path(f"key-{i}"), b"x")
    assert os.pread(fd, 100, 0) == first
    os.close(fd)
    assert m.stats()["puts"] == 10


# The files of .larder

def test_dot_larder_holds_its_files_and_shows_in_no_listing(mount):
    m = mount()
    assert names(m.path(".larder")) == [b"config", b"events", b"metrics", b"stats.json"]
    assert os.listdir(m.mnt) == []
    for name in (".stats", ".larder/stats.json", ".larder/config"):
        st = os.stat(m.path(name))
        assert stat.S_ISREG(st.st_mode) and not st.st_mode & 0o222


def test_stats_json_is_json_with_the_same_names(mount, source_dir):
    m = mount()
    data = json.loads(m.read(".larder", "stats.json"))
    for _, _, name in rows(source_dir):
        assert isinstance(data[name], int)
    assert "create" in data["latency"]


METRIC = re.compile(r'^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_]\w*="[^"]*"(,[a-zA-Z_]\w*="[^"]*")*\})? [-+0-9.eEInfNa]+$')


def test_metrics_are_prometheus_text(mount, source_dir):
    m = mount()
    put(m.path("key"), b"x")
    text = m.read(".larder", "metrics").decode()
    typed = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed, f"{name} is described twice"
            typed[name] = kind
        elif not line.startswith("# HELP "):
            assert METRIC.match(line), line
            base = re.match(r"[\w:]+", line).group()
            assert base in typed or re.sub(r"_(bucket|sum|count)$", "", base) in typed, line
    for kind, _, name in rows(source_dir):
        assert any(word.startswith("larder_" + name.removesuffix("_ns")) for word in typed), name
        if kind == "COUNTER":
            assert any(typed[word] == "counter" for word in typed if word.startswith("larder_" + name))
    buckets = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith('larder_request_duration_seconds_bucket{op="create"')]
    assert buckets == sorted(buckets) and buckets[-1] >= 1


def test_config_names_each_value_and_its_source(mount):
    m = mount(quota="48M", ttl="2h")
    lines = m.read(".larder", "config").decode().splitlines()
    config = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}
    assert config["quota"] == "48M command line"
    assert config["ttl"] == "2h command line"
    assert config["idle"] == "none default"
    for name in ("max_entries", "min_free", "compress", "big_bytes", "durability", "io_uring", "passthrough", "threads",
                 "log_level", "io_uring_active", "passthrough_active"):
        assert name in config


# Events

def read_events(m):
    fd = os.open(m.path(".larder", "events"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        data = b""
        while True:
            try:
                part = os.read(fd, 65536)
            except BlockingIOError:
                return data.decode()
            if not part:
                return data.decode()
            data += part
    finally:
        os.close(fd)


def test_events_name_what_left_and_why(mount):
    m = mount(max_entries=10)
    os.mkdir(m.path("directory"))
    put(m.path("directory", "first key"), b"x")
    for i in range(15):
        put(m.path(f"key-{i}"), b"x")
    put(m.path("expires"), b"x")
    os.setxattr(m.path("expires"), "user.larder.ttl", b"500ms")
    eventually(lambda: "/expires\n" in read_events(m), 10, "the expiry is reported")
    lines = read_events(m).splitlines()
    for line in lines:
        assert re.fullmatch(r"\d+\.\d{3} [a-z_]+ \d+ /\S+", line), line
    assert any(line.endswith(" /directory/first\\040key") for line in lines)
    assert [line.split()[3] for line in lines if "/key-" in line][:2] == ["/key-0", "/key-1"]


def test_events_are_the_owners_only(mount):
    m = mount(allow_other=True)
    assert stat.S_IMODE(os.stat(m.path(".larder", "events")).st_mode) & 0o077 == 0
    with raises(errno.EACCES):
        run_child(get, m.path(".larder", "events"), user=41001)
    run_child(get, m.path(".stats"), user=41001)


def test_keys_never_appear_in_logs_or_stats(mount):
    """Names of keys and directories, hot, missed, evicted, expired, refused, all with a marker that must be nowhere."""
    m = mount(max_entries=20, ttl="1s", quota="4M", log_level="info")
    os.mkdir(m.path("SECRET-directory"))
    for i in range(60):
        put(m.path("SECRET-directory", f"SECRET-{i}"), b"SECRET value" * 100)
    os.path.exists(m.path("SECRET-missing"))
    with raises(errno.ENOSPC):
        put(m.path("SECRET-large"), random_bytes(10 << 20))
    with raises(errno.EINVAL):
        os.setxattr(m.path("SECRET-directory"), "user.larder.ttl", b"SECRET")
    eventually(lambda: os.listdir(m.path("SECRET-directory")) == [], 5, "keys expire")
    texts = [m.read(".stats"), m.read("SECRET-directory", ".stats"), m.read(".larder", "stats.json"),
             m.read(".larder", "metrics"), m.read(".larder", "config")]
    m.stop()
    texts.append(m.log().encode())
    for text in texts:
        assert b"SECRET" not in text


def test_log_lines_are_structured(mount):
    m = mount()
    put(m.path("key"), b"x")
    m.stop()
    lines = m.log().splitlines()
    assert lines
    for line in lines:
        assert re.match(r"ts=\S+ level=(error|warning|info|debug) event=\w+( \w+=(\"([^\"\\]|\\.)*\"|\S*))*$", line), line
