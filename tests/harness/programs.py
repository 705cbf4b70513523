# SPDX-License-Identifier: BSD-2-Clause
"""Programs made to wear file systems out (stress-ng, fio, bonnie++), and databases whose daemon is killed under them.

What a stressor finds wrong on the mount but not on a local directory is a bug of the mount.
"""

import mmap
import os
import random
import shutil
import sqlite3
import struct

from harness.procs import Child
from harness.values import put, random_bytes
from harness.wait import eventually

#: Debian's stress-ng, those of `stress-ng --class filesystem` and of its memory and I/O classes that work on files below
#: --temp-path. Left out: bind-mount, binderfs, fanotify, file-ioctl, procfs, verity, chattr, inode-flags, eventfd,
#: ioprio (about other file systems, or calls that FUSE has not).
STRESSORS = {name: [] for name in (
    "access", "aio", "aiol", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dnotify",
    "dup", "fallocate", "fcntl", "fiemap", "filename", "flock", "fpunch", "fsize", "fstat", "getdent", "handle", "hdd",
    "inotify", "io", "iomix", "lease", "link", "locka", "lockf", "lockofd", "madvise", "mknod", "mmap", "msync", "open",
    "readahead", "rename", "seek", "sendfile", "splice", "symlink", "sync-file", "touch", "utime", "xattr")}
STRESSORS["mmap"] = ["--mmap-file", "--mmap-bytes", "32m"]
STRESSORS["hdd"] = ["--hdd-bytes", "64m"]

#: (ioengine, direct)
FIO_ENGINES = [("sync", 0), ("sync", 1), ("psync", 0), ("pvsync", 1), ("libaio", 0), ("libaio", 1), ("io_uring", 0),
               ("io_uring", 1), ("posixaio", 0), ("mmap", 0)]


def stress(site, directory, name, seconds, workers=2):
    """Exit status and output of one stressor, its results verified by itself."""
    os.makedirs(directory, exist_ok=True)
    result = site.run(["stress-ng", "--temp-path", directory, f"--{name}", str(workers), *STRESSORS[name], "--timeout",
                       str(seconds), "--verify"], timeout=seconds + 120)
    return result.returncode, result.stdout + result.stderr


def stress_and_compare(site, mounted, local, name, seconds):
    """None, or what went wrong on the mount and not in the local directory."""
    status, text = stress(site, mounted, name, seconds)
    if status == 0 or stress(site, local, name, seconds)[0] == status:
        return None
    return f"stress-ng {name}: exit status {status}\n{text}"


def fio(site, directory, engine, direct, size_mb, seed):
    """Random reads and writes, every block checked; an AssertionError says what fio found."""
    os.makedirs(directory, exist_ok=True)
    site.run_ok(["fio", "--name=job", f"--directory={directory}", f"--ioengine={engine}", f"--direct={direct}",
                 "--rw=randrw", "--bsrange=4k-128k", f"--size={size_mb}m", "--numjobs=2", "--verify=crc32c",
                 "--verify_fatal=1", "--verify_backlog=256", "--group_reporting", f"--randseed={seed}"], timeout=300, cwd=directory)
    shutil.rmtree(directory)


def bonnie(site, directory, size_mb, files):
    """bonnie++ checks what it reads back. -f: not byte by byte, which is a round trip each."""
    os.makedirs(directory, exist_ok=True)
    site.run_ok(["bonnie++", "-f", "-d", directory, "-s", str(size_mb), "-r", str(size_mb // 2), "-n", f"{files}:20000:0:2",
                 "-u", "root", "-q"], timeout=600)


class Acknowledged:
    """A number that a child raises and its parent reads, whatever becomes of the child."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 4096)

    def set(self, value):
        self.memory[:8] = struct.pack("<Q", value)

    def get(self):
        return struct.unpack("<Q", self.memory[:8])[0]


def _insert_for_ever(path, journal, first, acknowledged):
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    for i in range(first, 1 << 30):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?, ?)", (i, random_bytes(100 + i % 7000, i)))
        connection.execute("UPDATE total SET rows = ?", (i + 1,))
        connection.execute("COMMIT")
        acknowledged.set(i + 1)


def _check_rows(path, acknowledged):
    """Rows that are there: all acknowledged ones, whole and in step; how many."""
    connection = sqlite3.connect(path, timeout=30)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute("SELECT i, data FROM t ORDER BY i").fetchall()
    assert [i for i, _ in rows] == list(range(len(rows)))
    assert all(data == random_bytes(100 + i % 7000, i) for i, data in rows[-200:])
    assert connection.execute("SELECT rows FROM total").fetchone() == (len(rows),)
    assert len(rows) >= acknowledged, f"{acknowledged} transactions were acknowledged, {len(rows)} are there"
    connection.close()
    return len(rows)


def kill_under_sqlite(m, journal, rounds, seed):
    """SIGKILL of the daemon at a random moment of a transaction, and what was committed must be there. Transactions done."""
    path, chance, rows = m.path(f"database-{journal}"), random.Random(seed), 0
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    connection.executescript("CREATE TABLE t (i INTEGER PRIMARY KEY, data BLOB); CREATE TABLE total (rows INTEGER);"
                             "INSERT INTO total VALUES (0);")
    connection.close()
    for _ in range(rounds):
        acknowledged = Acknowledged()
        child = Child(_insert_for_ever, path, journal, rows, acknowledged)
        wanted = rows + chance.randrange(1, 25)
        eventually(lambda: acknowledged.get() >= wanted, 60, f"{wanted} transactions are acknowledged")
        m.kill(clear=False)
        child.kill()
        m.clear()
        m.start()
        rows = _check_rows(path, acknowledged.get())
    return rows


def _commit_for_ever(git, path, first, acknowledged):
    for i in range(first, 1 << 30):
        put(os.path.join(path, f"file-{i % 20}"), random_bytes(100 + i * 37 % 9000, i))
        git(path, "add", "-A")
        git(path, "commit", "-q", "-m", f"{i}")
        acknowledged.set(i + 1)


def kill_under_git(m, git, rounds, seed):
    """The same under `git commit`. `git(directory, words...)` runs it. Commits done."""
    path, chance, commits = m.path("repository"), random.Random(seed), 0
    os.mkdir(path)
    git(path, "init", "-q")
    for _ in range(rounds):
        acknowledged = Acknowledged()
        child = Child(_commit_for_ever, git, path, commits, acknowledged)
        wanted = commits + chance.randrange(1, 5)
        eventually(lambda: acknowledged.get() >= wanted, 60, f"{wanted} commits are acknowledged")
        m.kill(clear=False)
        child.kill()
        m.clear()
        m.start()
        for directory, _, files in os.walk(os.path.join(path, ".git")):
            for name in files:
                if name.endswith(".lock"):
                    os.unlink(os.path.join(directory, name))  # as git says after a crash
        git(path, "fsck", "--full", "--strict")
        commits = int(git(path, "rev-list", "--count", "HEAD"))
        assert commits >= acknowledged.get(), f"{acknowledged.get()} commits were acknowledged, {commits} are there"
        git(path, "reset", "-q", "--hard")
    return commits
