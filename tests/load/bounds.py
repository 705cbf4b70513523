#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Memory and limits at full size: what a daemon holds, per key, when its clients exaggerate.

Each scenario runs on a mount of its own and prints one line: what was done, how long it took, how much the daemon's
resident memory grew, and by how many bytes per object. A figure above the scenario's bound is a failure.
tests/fs/test_bounds.py runs the same functions at a small size.

    tests/load/bounds.py --build-dir build [--scale 1.0] [SCENARIO...]
"""

import argparse
import errno
import os
import resource
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness.mount import Site, sweep  # noqa: E402
from harness.procs import Child, run_child  # noqa: E402
from harness.wait import eventually  # noqa: E402

TIB = 1 << 40


def rss_bytes(pid, field="VmRSS"):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of {pid}")


def fill(directory, count, per_directory=10_000, size=8):
    """`count` small keys, in directories of at most per_directory."""
    value = b"x" * size
    for i in range(count):
        if i % per_directory == 0:
            where = os.path.join(directory, f"d{i // per_directory}")
            os.makedirs(where, exist_ok=True)
            at = os.open(where, os.O_RDONLY)
        fd = os.open(f"k{i}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at)
        os.write(fd, value)
        os.close(fd)
        if (i + 1) % per_directory == 0 or i + 1 == count:
            os.close(at)


def look_up(directory, count, per_directory=10_000):
    for i in range(count):
        os.stat(os.path.join(directory, f"d{i // per_directory}", f"k{i}"))


def cached_inodes(site, count):
    """Keys, then the kernel's references to all of them: (objects, growth by keys, growth by references)."""
    mount = site.mount(quota="8G")
    before = rss_bytes(mount.pid)
    run_child(fill, mount.mnt, count, timeout=1200)
    mount.restart()
    loaded = rss_bytes(mount.pid)
    run_child(look_up, mount.mnt, count, timeout=1200)
    return [("keys at rest", count, loaded - before), ("keys the kernel holds", count, rss_bytes(mount.pid) - loaded)]


def evicted_inodes(site, count):
    """Keys that were evicted while the kernel holds their inodes: they must be given back."""
    mount = site.mount(quota="8G", max_entries=max(count // 100, 100))
    before = rss_bytes(mount.pid)
    run_child(fill, mount.mnt, count, timeout=1200)
    eventually(lambda: mount.stats()["entries"] <= max(count // 100, 100), 30, "eviction")
    return [("keys evicted", count, rss_bytes(mount.pid) - before)]


def open_many(directory, first, count, size, ready_fd, go_fd):
    """Opens count files, all at once; how many it got, and the errno that ended it."""
    fds, error = [], 0
    try:
        for i in range(first, first + count):
            fd = os.open(os.path.join(directory, f"o{i}"), os.O_RDWR | os.O_CREAT, 0o644)
            fds.append(fd)
            if size:
                os.write(fd, b"y" * 512)
                os.ftruncate(fd, size)
    except OSError as failed:
        error = failed.errno
    os.write(ready_fd, b"x")
    os.read(go_fd, 1)
    for fd in fds:
        os.close(fd)
    return len(fds), error


def open_files(site, count, size=0, processes=8):
    """Files open at once, in several processes; they may be told EMFILE or ENFILE, nothing else."""
    resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (resource.getrlimit(resource.RLIMIT_NOFILE)[1],))
    mount = site.mount(quota="8G")
    before = rss_bytes(mount.pid)
    (ready, ready_end), (go_end, go) = os.pipe(), os.pipe()
    each = -(-count // processes)
    children = [Child(open_many, mount.mnt, i * each, each, size, ready_end, go_end) for i in range(processes)]
    for _ in children:
        os.read(ready, 1)
    mount.write("meanwhile", b"still works")
    assert mount.read("meanwhile") == b"still works"
    held = mount.stats()["open_files"]
    grown = rss_bytes(mount.pid, "VmHWM") - before
    os.write(go, b"x" * processes)
    results = [child.result(600) for child in children]
    for fd in (ready, ready_end, go_end, go):
        os.close(fd)
    errors = {error for _, error in results if error}
    assert errors <= {errno.EMFILE, errno.ENFILE}, [os.strerror(error) for error in errors]
    assert held >= sum(got for got, _ in results)
    told = ", ".join(os.strerror(error) for error in errors) or "nothing"
    return [(f"files of {size} bytes open at once (clients told: {told})", held, grown)]


def open_big_files(site, count):
    return open_files(site, count, 1 << 20)


def hold_written(directory, first, count, size, stop_fd):
    fds = []
    for i in range(first, first + count):
        fd = os.open(os.path.join(directory, f"w{i}"), os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, os.urandom(size))
        fds.append(fd)
    with open(os.path.join(directory, f"ready{first}"), "w"):
        pass
    os.read(stop_fd, 1)
    for fd in fds:
        os.close(fd)
    return count


def writers(site, count, size=100_000):
    """Files being written at once, none closed: held in memory up to a bound, not beyond."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, max(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    mount = site.mount(quota="8G")
    before = rss_bytes(mount.pid)
    stop, go = os.pipe()
    processes = 10
    children = [Child(hold_written, mount.mnt, i * (count // processes), count // processes, size, stop)
                for i in range(processes)]
    for i in range(processes):
        eventually(lambda: os.path.exists(mount.path(f"ready{i * (count // processes)}")), 600, "writers")
    held = rss_bytes(mount.pid, "VmHWM") - before
    staged = mount.stats()["staged_bytes"]
    os.write(go, b"x" * processes)
    done = sum(child.result(600) for child in children)
    os.close(stop)
    os.close(go)
    return [(f"files of {size} bytes being written at once, {staged >> 20} MiB staged", done, held)]


def sparse(site, count):
    """A file of 1 TiB with a few bytes in it."""
    mount = site.mount(quota="256M")
    before = rss_bytes(mount.pid)
    with open(mount.path("big"), "w+b", buffering=0) as f:
        f.seek(TIB)
        f.write(b"end")
        f.seek(0)
        f.write(b"start")
        os.fsync(f.fileno())
        assert os.lseek(f.fileno(), 1 << 20, os.SEEK_DATA) >= TIB - (1 << 20)
        assert os.lseek(f.fileno(), 0, os.SEEK_HOLE) <= 1 << 20
        assert os.pread(f.fileno(), 1 << 20, TIB // 2) == bytes(1 << 20)
    info = os.stat(mount.path("big"))
    assert info.st_size == TIB + 3
    assert info.st_blocks * 512 < 64 << 20
    mount.restart()
    with open(mount.path("big"), "rb", buffering=0) as f:
        assert f.read(5) == b"start"
        assert os.pread(f.fileno(), 100, TIB) == b"end"
    os.truncate(mount.path("big"), TIB // 2)
    os.truncate(mount.path("big"), TIB)
    os.unlink(mount.path("big"))
    return [("files of 1 TiB", 1, rss_bytes(mount.pid, "VmHWM") - before)]


def dig(directory, depth, name):
    """Makes a chain of directories by descending, as no path could name the lowest."""
    at = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    return at


def deep(site, count):
    """A chain of directories `count` deep with names of 200 bytes, a key at its end."""
    mount = site.mount(quota="1G")
    before = rss_bytes(mount.pid)
    name = "n" * 200
    at = dig(mount.mnt, count, name)
    fd = os.open("key", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at)
    os.write(fd, b"deep down")
    os.close(fd)
    os.close(at)
    assert mount.stats()["directories"] == count + 1
    os.rename(mount.path(name), mount.path("top"))
    site.run_ok([site.tool, "evict", mount.mnt] if "evict" in site.run([site.tool, "--help"]).stdout
                else ["true"])
    mount.restart()
    assert mount.stats()["entries"] == 1
    site.run_ok(["rm", "-rf", mount.path("top")], 600)
    assert mount.stats()["directories"] == 1
    return [("directories in one chain", count, rss_bytes(mount.pid, "VmHWM") - before)]


def wide(site, count):
    """One directory with `count` subdirectories: made, listed, counted, removed."""
    mount = site.mount(quota="2G")
    before = rss_bytes(mount.pid)

    def make():
        for i in range(count):
            os.mkdir(mount.path(f"s{i}"))
    run_child(make, timeout=1200)
    assert len(os.listdir(mount.mnt)) == count
    start = time.monotonic()
    assert mount.stats()["directories"] == count + 1
    os.mkdir(mount.path("below"))
    whole = time.monotonic() - start
    start = time.monotonic()
    os.setxattr(mount.mnt, "user.larder.ttl", b"1h")
    policy = time.monotonic() - start
    grown = rss_bytes(mount.pid, "VmHWM") - before
    start = time.monotonic()
    run_child(lambda: [os.rmdir(mount.path(f"s{i}")) for i in range(count)] and None, timeout=1200)
    return [(f"subdirectories (counted in {whole:.2f} s, policy set in {policy:.2f} s)", count, grown)]


def attributes(site, count):
    """xattrs: as many on one file as it takes, then a few on many."""
    mount = site.mount(quota="1G")
    before = rss_bytes(mount.pid)
    mount.write("f", b"v")
    got, error = 0, 0
    try:
        for got in range(count):
            os.setxattr(mount.path("f"), f"user.{got:0250d}", b"z" * 64)
    except OSError as failed:
        error = failed.errno
    assert error in (0, errno.ENOSPC, errno.E2BIG), os.strerror(error)
    try:
        assert len(os.listxattr(mount.path("f"))) == got + (error == 0)
    except OSError as failed:
        assert failed.errno == errno.E2BIG  # the kernel's own bound on a list
    return [(f"xattrs on one file (ended by: {os.strerror(error)})", got, rss_bytes(mount.pid) - before)]


def long_names(site, count):
    """Names of 255 bytes, as keys and as many links of one file."""
    mount = site.mount(quota="1G")
    before = rss_bytes(mount.pid)

    def make():
        mount.write("f", b"v")
        for i in range(count):
            os.link(mount.path("f"), mount.path(f"{i:0255d}"))
    run_child(make, timeout=1200)
    assert len(os.listdir(mount.mnt)) == count + 1
    start = time.monotonic()
    run_child(lambda: [os.unlink(mount.path(f"{i:0255d}")) for i in range(count)] and None, timeout=1200)
    return [(f"names of 255 bytes, one file (removed in {time.monotonic() - start:.1f} s)", count,
             rss_bytes(mount.pid, "VmHWM") - before)]


#: scenario: (function, full size, most bytes of memory per object, most bytes on top)
SCENARIOS = {
    "cached_inodes": (cached_inodes, 1_000_000, 300, 32 << 20),
    "evicted_inodes": (evicted_inodes, 1_000_000, 40, 64 << 20),
    "open_files": (open_files, 100_000, 2048, 32 << 20),
    "open_big_files": (open_big_files, 100_000, 4096, 32 << 20),
    "writers": (writers, 10_000, 4096, 400 << 20),
    "sparse": (sparse, 1, 0, 64 << 20),
    "deep": (deep, 1_000, 2048, 32 << 20),
    "wide": (wide, 100_000, 600, 32 << 20),
    "attributes": (attributes, 10_000, 1024, 32 << 20),
    "long_names": (long_names, 60_000, 600, 32 << 20),
}


def run(site, name, scale=1.0):
    """Runs one scenario; [(what, objects, grown bytes, bound)]."""
    scenario, full, per_object, on_top = SCENARIOS[name]
    return [(what, objects, grown, objects * per_object + on_top)
            for what, objects, grown in scenario(site, max(int(full * scale), 1))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default="build")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--mount-options", default="")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    args = parser.parse_args()
    extra = dict(word.partition("=")[::2] for word in args.mount_options.split(",") if word)
    failed = False
    for name in args.scenarios or SCENARIOS:
        base = tempfile.mkdtemp(prefix="larder-bounds-")
        os.chmod(base, 0o755)
        work = os.path.join(base, "work")
        os.mkdir(work)
        site = Site(work, os.path.abspath(args.build_dir), False, extra)
        problems = []
        start = time.monotonic()
        try:
            for what, objects, grown, bound in run(site, name, args.scale):
                print(f"{name}: {objects} {what}: {grown / (1 << 20):.1f} MiB, {grown / max(objects, 1):.0f} bytes each, "
                      f"bound {bound / (1 << 20):.0f} MiB, {time.monotonic() - start:.1f} s", flush=True)
                if grown > bound:
                    problems.append("more memory than in proportion")
        finally:
            problems += site.finish()
            problems += sweep(base)
            shutil.rmtree(base, ignore_errors=not problems)
        for text in problems:
            failed = True
            print(f"{name}: WRONG: {text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
