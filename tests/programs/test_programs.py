# SPDX-License-Identifier: BSD-2-Clause
"""Goal: programs that people point at a cache directory work on the mount as on a local disk, crashes included.
Method: ccache, git, sqlite, tar, rsync and gcc are run on it; their own checks and a byte-for-byte comparison decide."""

import glob
import os
import re
import shutil
import signal
import sqlite3
import stat

import pytest

from harness.procs import Child
from harness.values import first_difference, get, put, random_bytes, text_bytes
from harness.wait import eventually

pytestmark = pytest.mark.deadline(400)


def full_capture(top):
    """{relative name: (mode, owner, mtime in ns, link group, content or target, xattrs)} of a tree."""
    seen, groups = {}, {}
    for directory, folders, files in os.walk(top):
        for name in [""] + folders + files:
            path = os.path.join(directory, name) if name else directory
            st = os.lstat(path)
            relative = os.path.relpath(path, top)
            content = os.readlink(path) if stat.S_ISLNK(st.st_mode) else get(path) if stat.S_ISREG(st.st_mode) else None
            xattrs = {x: os.getxattr(path, x) for x in os.listxattr(path, follow_symlinks=False)
                      if x.startswith("user.")} if not stat.S_ISLNK(st.st_mode) else None
            group = groups.setdefault(st.st_ino, relative) if not stat.S_ISDIR(st.st_mode) else None
            seen[relative] = [st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev, group, content, xattrs]
    return seen


def assert_same_tree(found, wanted):
    assert found.keys() == wanted.keys()
    for name, entry in wanted.items():
        for what, one, two in zip(("mode", "uid", "gid", "mtime", "rdev", "links", "content", "xattrs"), found[name], entry):
            if what == "links":
                continue
            assert one == two, f"{what} of {name}: {one!r:.100} instead of {two!r:.100}"
    # Hard links: the same names share a file, whatever the order they were walked in.
    assert link_sets(found) == link_sets(wanted)


def link_sets(tree):
    sets = {}
    for name, entry in tree.items():
        if entry[5]:
            sets.setdefault(entry[5], set()).add(name)
    return sorted(sorted(names) for names in sets.values() if len(names) > 1)


# ccache

def ccache_stats(site, environment):
    """(hits, misses) as ccache counts them."""
    shown = site.run_ok(["ccache", "--print-stats"], env=environment).stdout
    values = dict(line.split("\t") for line in shown.splitlines())
    hits = int(values["direct_cache_hit"]) + int(values["preprocessed_cache_hit"])
    return hits, int(values["cache_miss"])


def compile_all(site, environment, sources, source_dir, out):
    """Every source through `ccache gcc`; the objects as {name: bytes}."""
    os.makedirs(out, exist_ok=True)
    objects = {}
    for path in sources:
        target = os.path.join(out, os.path.basename(path) + ".o")
        site.run_ok(["ccache", "gcc", "-std=gnu11", "-D_GNU_SOURCE", "-DLARDER_VERSION=\"0\"", "-O1", "-I" + source_dir, "-c",
                     path, "-o", target], env=environment)
        objects[os.path.basename(path)] = get(target)
    return objects


@pytest.mark.daemon
@pytest.mark.parametrize("between", [
    pytest.param(None, id="without a restart"), pytest.param("stop", id="with a restart in between"),
    pytest.param("kill", id="with a SIGKILL in between")])
def test_ccache_builds_larder_twice_and_the_second_is_all_hits(mount, site, need_program, source_dir, between):
    need_program("ccache")
    need_program("gcc")
    m = mount(quota="256M")
    copy = os.path.join(site.workdir, "source")
    shutil.copytree(os.path.join(source_dir, "core"), os.path.join(copy, "core"))
    sources = sorted(glob.glob(os.path.join(copy, "core", "*.c")))
    environment = {**site.environment, "CCACHE_DIR": m.path("ccache"), "HOME": site.workdir,
                   "CCACHE_TEMPDIR": m.path("ccache", "tmp"), "CCACHE_NOHASHDIR": "1"}
    first = compile_all(site, environment, sources, copy, os.path.join(site.workdir, "first"))
    assert ccache_stats(site, environment) == (0, len(sources))
    hits_before = m.stats()["hits"]
    if between:
        m.restart(between)
        hits_before = 0
    second = compile_all(site, environment, sources, copy, os.path.join(site.workdir, "second"))
    assert ccache_stats(site, environment) == (len(sources), len(sources))
    assert second == first
    stats = m.stats()
    assert stats["hits"] - hits_before >= len(sources), "its .stats agree: at least one hit per object"
    assert stats["corrupt_records"] == 0
    m.stop()
    site.check(m.store)


# git

def git(site, where, *words):
    environment = {**site.environment, "HOME": site.workdir, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
                   "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    return site.run_ok(["git", "-c", "init.defaultBranch=main", *words], 120, cwd=where, env=environment).stdout


def make_repository(site, path, commits=30):
    os.mkdir(path)
    git(site, path, "init", "-q")
    for i in range(commits):
        os.makedirs(os.path.join(path, f"folder-{i % 5}"), exist_ok=True)
        put(os.path.join(path, f"folder-{i % 5}", f"file-{i}"), text_bytes(2000 + 300 * i, i))
        put(os.path.join(path, "changing"), random_bytes(5000, i))
        git(site, path, "add", "-A")
        git(site, path, "commit", "-q", "-m", f"commit {i}")
        if i == commits // 2:
            git(site, path, "branch", "half")


def test_git_clones_checks_and_packs_on_the_mount(mount, site, need_program):
    need_program("git")
    m = mount(quota="256M")
    origin = os.path.join(site.workdir, "origin")
    make_repository(site, origin)
    git(site, m.mnt, "clone", "-q", "--no-local", origin, "clone")
    clone = m.path("clone")
    git(site, clone, "fsck", "--full", "--strict")
    assert git(site, clone, "status", "--porcelain") == ""
    for i in range(5):
        put(os.path.join(clone, f"new-{i}"), random_bytes(3000, 1000 + i))
        git(site, clone, "add", "-A")
        git(site, clone, "commit", "-q", "-m", f"on the mount {i}")
    git(site, clone, "checkout", "-q", "-b", "side", "origin/half")
    git(site, clone, "checkout", "-q", "main")
    git(site, clone, "gc", "-q", "--aggressive", "--prune=now")
    git(site, clone, "fsck", "--full", "--strict")
    m.restart("kill")
    git(site, clone, "fsck", "--full", "--strict")
    assert git(site, clone, "status", "--porcelain") == ""
    assert git(site, clone, "rev-list", "--count", "main") == "35\n"


def test_git_works_from_the_first_commit_on_the_mount(mount, site, need_program):
    need_program("git")
    m = mount(quota="256M")
    make_repository(site, m.path("repository"), 15)
    git(site, m.path("repository"), "repack", "-adq")
    git(site, m.path("repository"), "fsck", "--full", "--strict")


# sqlite

def fill_database(path, journal, who, rows):
    """Inserts rows in transactions; returns how many were committed when the end came."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    committed = 0
    for start in range(0, rows, 10):
        connection.execute("BEGIN IMMEDIATE")
        for i in range(start, start + 10):
            connection.execute("INSERT INTO t VALUES (?, ?, ?)", (who, i, random_bytes(200 + i % 3000, i)))
        connection.execute("COMMIT")
        committed = start + 10
    connection.close()
    return committed


def new_database(path, journal):
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    connection.execute("CREATE TABLE t (who INTEGER, i INTEGER, data BLOB, PRIMARY KEY (who, i))")
    connection.commit()
    connection.close()


def check_database(path):
    """integrity_check, and {who: number of rows}; every row must be whole."""
    connection = sqlite3.connect(path, timeout=30)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = {}
    for who, i, data in connection.execute("SELECT who, i, data FROM t ORDER BY who, i"):
        assert data == random_bytes(200 + i % 3000, i)
        assert i == counts.get(who, 0), "rows of one writer are complete up to the last"
        counts[who] = i + 1
    connection.close()
    return counts


JOURNALS = pytest.mark.parametrize("journal", [pytest.param("wal", id="a write-ahead log"),
                                               pytest.param("delete", id="a rollback journal"),
                                               pytest.param("truncate", id="a truncated journal"),
                                               pytest.param("persist", id="a persistent journal")])


@JOURNALS
def test_sqlite_with_two_writers_and(mount, journal):
    m = mount(quota="256M")
    path = m.path("database")
    new_database(path, journal)
    children = [Child(fill_database, path, journal, who, 300) for who in range(2)]
    assert [child.result(120) for child in children] == [300, 300]
    assert check_database(path) == {0: 300, 1: 300}
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DELETE FROM t WHERE who = 0 AND i >= 100")
    connection.execute("VACUUM")
    connection.close()
    m.restart()
    assert check_database(path) == {0: 100, 1: 300}


@JOURNALS
def test_sqlite_after_sigkill_of_the_client_with(mount, journal):
    m = mount(quota="256M")
    path = m.path("database")
    new_database(path, journal)
    for turn in range(3):
        child = Child(fill_database, path, journal, turn, 100_000)
        eventually(lambda: count_rows(path, turn) > 50, 30, "the client is at work")
        before = count_rows(path, turn)
        child.kill()
        assert check_database(path)[turn] >= before


def count_rows(path, who):
    connection = sqlite3.connect(path, timeout=30)
    try:
        return connection.execute("SELECT count(*) FROM t WHERE who = ?", (who,)).fetchone()[0]
    finally:
        connection.close()


@pytest.mark.daemon
@JOURNALS
def test_sqlite_after_sigkill_of_the_daemon_with(mount, site, journal):
    """Committed transactions were fsynced: they are there after the crash, and the database is whole."""
    m = mount(quota="256M")
    path = m.path("database")
    new_database(path, journal)
    for turn in range(3):
        child = Child(fill_database, path, journal, turn, 100_000)
        eventually(lambda: count_rows(path, turn) > 50, 30, "the client is at work")
        before = count_rows(path, turn)
        m.kill(clear=False)
        with pytest.raises(AssertionError, match="sqlite3"):
            child.result(30)
        m.clear()
        m.start()
        assert check_database(path)[turn] >= before
    m.stop()
    site.check(m.store)


# Archivers

def make_tree(top):
    """A tree with one of everything an archiver must keep."""
    os.makedirs(os.path.join(top, "a", "b", "empty"))
    for i, size in enumerate((0, 1, 4096, 70_000, 400_000, 3_000_000)):
        put(os.path.join(top, "a", f"random-{i}"), random_bytes(size, i))
        put(os.path.join(top, "a", "b", f"text-{i}"), text_bytes(size, i))
    with open(os.path.join(top, "a", "sparse"), "wb") as f:
        f.truncate(5_000_000)
        f.seek(2_000_000)
        f.write(b"in the middle")
    os.link(os.path.join(top, "a", "random-3"), os.path.join(top, "a", "b", "hard"))
    os.link(os.path.join(top, "a", "random-3"), os.path.join(top, "hard too"))
    os.symlink("../b", os.path.join(top, "a", "b", "link"))
    os.symlink("x" * 1000, os.path.join(top, "dangling"))
    os.mkfifo(os.path.join(top, "fifo"), 0o640)
    os.mknod(os.path.join(top, "device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    put(os.path.join(os.fsencode(top), b"n\xff\xfe" + b"x" * 252), b"")
    os.chmod(os.path.join(top, "a", "random-1"), 0o4751)
    os.chown(os.path.join(top, "a", "random-2"), 1234, 4321)
    os.chmod(os.path.join(top, "a", "random-2"), 0o2640)
    os.chmod(os.path.join(top, "a", "b"), 0o1777)
    os.setxattr(os.path.join(top, "a", "random-4"), "user.one", b"1" * 500)
    os.setxattr(os.path.join(top, "a"), "user.two", b"\0binary\xff")
    for directory, folders, files in os.walk(top, topdown=False):
        for i, name in enumerate(sorted(folders + files)):
            os.utime(os.path.join(directory, name), ns=(10**18 + i, 1_234_567_890_123_456_789 + i), follow_symlinks=False)
    os.utime(top, ns=(10**18, 10**18 + 1))


ROUND_TRIPS = [
    pytest.param("tar", "tar --xattrs --format=pax -C '{source}' -cf '{work}/one.tar' . && "
                 "tar --xattrs -C '{target}' -xpf '{work}/one.tar'", id="tar"),
    pytest.param("rsync", "rsync -aHX '{source}/' '{target}/'", id="rsync -aHX"),
    pytest.param("rsync", "rsync -aHX --inplace --whole-file '{source}/' '{target}/'", id="rsync --inplace"),
    pytest.param("rsync", "rsync -aHXS '{source}/' '{target}/'", id="rsync --sparse"),
    pytest.param("cp", "cp -a '{source}/.' '{target}/'", id="cp -a"),
]


@pytest.mark.parametrize("program, command", ROUND_TRIPS)
def test_round_trip_by(mount, site, need_program, program, command):
    """Local directory to mount to local directory: the same, byte for byte and attribute for attribute."""
    need_program(program)
    m = mount(quota="256M")
    source, back = os.path.join(site.workdir, "source"), os.path.join(site.workdir, "back")
    make_tree(source)
    os.mkdir(back)
    os.mkdir(m.path("copy"))
    wanted = full_capture(source)
    site.run_ok(["sh", "-c", command.format(source=source, target=m.path("copy"), work=site.workdir)])
    assert_same_tree(full_capture(m.path("copy")), wanted)
    m.restart()
    assert_same_tree(full_capture(m.path("copy")), wanted)
    site.run_ok(["sh", "-c", command.format(source=m.path("copy"), target=back, work=site.workdir)])
    assert_same_tree(full_capture(back), wanted)


def test_rsync_finds_nothing_to_do_the_second_time(mount, site, need_program):
    need_program("rsync")
    m = mount(quota="256M")
    source = os.path.join(site.workdir, "source")
    make_tree(source)
    site.run_ok(["rsync", "-aHX", source + "/", m.path("copy") + "/"])
    m.restart("kill")
    listed = site.run_ok(["rsync", "-aHXi", source + "/", m.path("copy") + "/"]).stdout
    assert listed == ""
    put(os.path.join(source, "a", "random-5"), random_bytes(3_000_000, 77))
    listed = site.run_ok(["rsync", "-aHXi", "--no-whole-file", source + "/", m.path("copy") + "/"]).stdout
    assert re.findall(r"\S+$", listed, re.MULTILINE) == ["a/random-5"] or listed.count("\n") <= 2
    assert first_difference(get(m.path("copy", "a", "random-5")), random_bytes(3_000_000, 77)) == ""


# Compilers and linkers

def test_gcc_compiles_and_links_on_the_mount(mount, site, need_program):
    """Linkers write their output with mmap, seeks and rewrites; the program must run and be the same after a restart."""
    need_program("gcc")
    m = mount(quota="256M", suid=True)
    put(m.path("hello.c"), b'#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    site.run_ok(["gcc", "-g", "-O2", "-o", "hello", "hello.c"], cwd=m.mnt)
    assert site.run_ok([m.path("hello")]).stdout == "hello\n"
    data = get(m.path("hello"))
    site.run_ok(["ar", "rcs", "libhello.a", "hello"], cwd=m.mnt)
    m.restart("kill")
    assert get(m.path("hello")) == data
    assert site.run_ok([m.path("hello")]).stdout == "hello\n"


def test_a_killed_writer_leaves_what_it_closed(mount):
    """SIGKILL of a client in the middle of a write closes its file, as on a local disk."""
    m = mount()
    path = m.path("key")

    def write_for_ever():
        with open(path, "wb", buffering=0) as f:
            while True:
                f.write(b"x" * 1000)
    child = Child(write_for_ever)
    eventually(lambda: os.path.exists(path) and os.stat(path).st_size > 10_000, 10, "the client writes")
    child.kill(signal.SIGKILL)
    data = get(path)
    assert len(data) > 10_000 and set(data) == {ord("x")}
