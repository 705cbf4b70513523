# SPDX-License-Identifier: BSD-2-Clause
"""Goal: under allow_other no user learns another's keys, their names or their old bytes, or decides over their life.
Method: children with other uids try, on a mount of root's; what modes and owners give is in test_posix_owners.py."""

import errno
import mmap
import os
import random
import stat
import subprocess

import pytest

from harness import sysx
from harness.errors import raises
from harness.procs import run_child
from harness.values import get, put
from harness.wait import eventually

pytestmark = pytest.mark.daemon

ANN, BOB, STAFF = 42001, 42002, 42100
SECRET = b"SECRET-of-ann!!!"
HIDDEN = "hidden-name-7f3a"


@pytest.fixture
def m(mount):
    return mount(quota="64M", allow_other=True)


@pytest.fixture
def shared(m):
    path = m.path("shared")
    os.mkdir(path)
    os.chmod(path, 0o777)
    return path


def make_private(shared):
    """Ann's directory, closed to others, and a key in it."""
    path = os.path.join(shared, "ann")

    def make():
        os.mkdir(path, 0o700)
        put(os.path.join(path, HIDDEN), SECRET * 100)
    run_child(make, user=ANN)
    return path


# Names

def test_events_are_for_who_mounted(m):
    path = m.path(".larder", "events")
    with raises(errno.EACCES):
        run_child(get, path, user=BOB)
    for call in (lambda: os.chmod(path, 0o444), lambda: os.chown(path, BOB, BOB)):
        with raises(errno.EPERM):
            run_child(call, user=BOB)
        with raises(errno.EPERM):
            call()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o400


def test_no_text_tells_a_name(m, shared):
    """After a key of Ann's was put, found, expired: nothing Bob can read, and no line of the log, has its name in it."""
    private = make_private(shared)
    run_child(os.setxattr, os.path.join(private, HIDDEN), "user.larder.ttl", b"1ms", user=ANN)
    eventually(lambda: os.listdir(private) == [], 10, "the key expires")

    def look():
        texts = [get(m.path(".stats")), get(os.path.join(shared, ".stats")), os.getxattr(shared, "user.larder.stats")]
        texts += [get(m.path(".larder", name)) for name in os.listdir(m.path(".larder")) if name != "events"]
        return b"".join(texts)
    assert HIDDEN.encode() not in run_child(look, user=BOB)
    assert HIDDEN not in m.log()
    # Root's: it is the right name to look for.
    eventually(lambda: HIDDEN.encode() in get(m.path(".larder", "events")), 10, "the event")


@pytest.mark.parametrize("mode,reads", [(0o755, True), (0o711, False), (0o733, False)],
                         ids=["0755", "0711", "0733"])
def test_stats_of_a_directory_are_for_who_may_read_it(shared, mode, reads):
    private = make_private(shared)
    stats = os.path.join(private, ".stats")
    with raises(errno.EACCES):
        run_child(get, stats, user=BOB)  # 0700: not even reached
    os.chmod(private, mode)
    assert b"entries 1\n" in run_child(get, stats, user=ANN)
    if reads:
        assert b"entries 1\n" in run_child(get, stats, user=BOB)
    else:
        with raises(errno.EACCES):
            run_child(get, stats, user=BOB)
        with raises(errno.EACCES):
            run_child(os.getxattr, private, "user.larder.stats", user=BOB)
    os.chmod(private, 0o711)
    with raises(errno.EACCES):
        run_child(get, stats, user=BOB)  # nothing of it stays in a cache


def test_the_facts_of_a_key_are_for_who_may_read_it(shared):
    private = make_private(shared)
    os.chmod(private, 0o755)
    path = os.path.join(private, HIDDEN)
    run_child(os.chmod, path, 0o600, user=ANN)
    for name in ("hits", "age", "stored_bytes", "codec", "checksum", "source", "ttl"):
        with raises(errno.EACCES):
            run_child(os.getxattr, path, f"user.larder.{name}", user=BOB)


def test_a_second_name_does_not_tell_the_first_ones_directory(shared):
    os.chown(shared, BOB, BOB)
    private = make_private(shared)
    path, second = os.path.join(private, HIDDEN), os.path.join(shared, "second")

    def publish():
        os.setxattr(private, "user.larder.ttl", b"1h")
        os.chmod(path, 0o644)
        os.link(path, second)
    run_child(publish, user=ANN)
    source = run_child(os.getxattr, second, "user.larder.source", user=BOB)
    assert source.startswith(b"ttl:1h:directory idle:none:default"), source
    assert os.getxattr(second, "user.larder.source").startswith(b"ttl:1h:directory:/shared/ann ")


# Who decides over a name's life

POLICIES = [("ttl", b"1ms"), ("idle", b"1ms"), ("expires", b"+1ms"), ("pin", b"off"), ("compress", b"none")]


@pytest.mark.parametrize("name,value", POLICIES, ids=[name for name, _ in POLICIES])
def test_a_policy_is_the_owners_even_where_others_may_write(shared, name, value):
    path = os.path.join(shared, "key")
    run_child(put, path, b"x", user=ANN)
    os.chmod(path, 0o666)
    attribute = f"user.larder.{name}"
    run_child(os.setxattr, path, "user.plain", b"1", user=BOB)  # an ordinary one needs no more than that
    with raises(errno.EPERM):
        run_child(os.setxattr, path, attribute, value, user=BOB)
    kept = {"expires": b"+1h", "pin": b"on", "compress": b"lz4"}.get(name, b"1h")
    run_child(os.setxattr, path, attribute, kept, user=ANN)
    with raises(errno.EPERM):
        run_child(os.removexattr, path, attribute, user=BOB)
    assert run_child(os.getxattr, path, attribute, user=BOB)
    run_child(os.removexattr, path, attribute, user=ANN)
    os.setxattr(path, attribute, kept)  # root


def test_a_directory_all_may_write_to_does_not_let_them_expire_what_is_below(shared):
    private = make_private(shared)
    with raises(errno.EPERM):
        run_child(os.setxattr, shared, "user.larder.ttl", b"1ms", user=BOB)
    with raises(errno.EPERM):
        run_child(os.removexattr, shared, "user.larder.ttl", user=BOB)
    assert os.listdir(private) == [HIDDEN]


@pytest.mark.parametrize("policy,value", [("ttl", b"1ms"), ("pin", b"off")])
def test_a_link_by_somebody_else_changes_no_policy(m, shared, policy, value):
    """Ann's file, which all may write to, has its policy from her directory; Bob's directory says otherwise."""
    private, mine = make_private(shared), os.path.join(shared, "bob")
    os.chmod(private, 0o755)
    path = os.path.join(private, HIDDEN)

    def publish():
        os.setxattr(private, f"user.larder.{policy}", b"1h" if policy == "ttl" else b"on")
        os.chmod(path, 0o666)

    def take():
        os.mkdir(mine)
        os.setxattr(mine, f"user.larder.{policy}", value)
        os.link(path, os.path.join(mine, "link"))
    run_child(publish, user=ANN)
    wanted = os.getxattr(path, "user.larder.source")
    run_child(take, user=BOB)
    assert os.getxattr(path, "user.larder.source") == wanted
    assert get(os.path.join(mine, "link")) == get(path)
    m.restart()
    assert os.getxattr(path, "user.larder.source") == wanted


def test_attributes_of_a_sticky_directory_are_its_owners(shared):
    os.chmod(shared, 0o1777)
    for name in ("user.plain", "user.larder.pin"):
        with raises(errno.EPERM):
            run_child(os.setxattr, shared, name, b"on", user=BOB)


# Names that point at others' things

def test_links_and_renames_give_no_more_than_on_a_local_directory(m, shared, workdir):
    local = os.path.join(workdir, "local")
    os.mkdir(local)
    results = []
    for place in (shared, local):
        os.chmod(place, 0o1777)
        private, mine = make_private(place), os.path.join(place, "bob")
        os.chmod(private, 0o755)
        path = os.path.join(private, HIDDEN)
        run_child(os.chmod, path, 0o600, user=ANN)

        def tricks():
            os.mkdir(mine)
            os.symlink(path, os.path.join(mine, "link"))
            return [
                trying(get, os.path.join(mine, "link")),
                trying(os.rename, path, os.path.join(mine, "stolen")),
                trying(os.rename, private, os.path.join(mine, "stolen")),
                trying(os.rename, mine, os.path.join(private, "planted")),
                trying(os.symlink, "x", os.path.join(private, "planted")),
                trying(os.link, path, os.path.join(mine, "stolen")),
                trying(os.link, os.path.join(mine, "link"), os.path.join(private, "planted")),
                trying(sysx.renameat2, mine, private, sysx.RENAME_EXCHANGE),
                trying(os.unlink, path),
                trying(os.rmdir, private),
                trying(os.truncate, path, 0),
            ]
        results.append(run_child(tricks, user=BOB))
        assert os.listdir(private) == [HIDDEN] and os.listdir(mine) == ["link"]
    assert results[0] == results[1]
    assert set(results[0]) <= {errno.EACCES, errno.EPERM}


def trying(call, *args):
    """The errno of a call that fails, None of one that does not."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


def test_another_users_directory_is_not_moved_to_another_parent(shared):
    """Where the sticky bit is not set, its name may change hands, but `..` of it is its owner's."""
    private = make_private(shared)
    run_child(os.mkdir, os.path.join(shared, "bob"), user=BOB)
    with raises(errno.EACCES):
        run_child(os.rename, private, os.path.join(shared, "bob", "ann"), user=BOB)


def test_group_members_share_a_setgid_directory_and_others_do_not(shared):
    os.chown(shared, ANN, STAFF)
    os.chmod(shared, 0o2770)
    path = os.path.join(shared, "key")

    def make():
        os.umask(0o007)
        put(path, b"x")
    run_child(make, user=ANN)
    assert run_child(get, path, user=BOB, groups=[STAFF]) == b"x"
    run_child(put, path + "2", b"y", user=BOB, groups=[STAFF])
    assert os.stat(path + "2").st_gid == STAFF
    for call in (os.listdir, os.stat):
        with raises(errno.EACCES):
            run_child(call, os.path.join(shared, "key") if call is os.stat else shared, user=BOB)


# Other attributes

NAMESPACES = ["trusted.a", "security.a", "security.selinux", "security.capability", "system.posix_acl_access",
              "system.posix_acl_default", "system.a", "nonsense"]


@pytest.mark.parametrize("user", [0, ANN], ids=["root", "the owner"])
def test_other_namespaces_are_refused_and_never_stored(m, shared, user):
    path = os.path.join(shared, "key")
    run_child(put, path, b"x", user=ANN)
    acl = bytes.fromhex("02000000" "0100060000000000" "0400060000000000" "2000060000000000")
    refused = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)  # the latter: the kernel's own, to who may not, or ever

    def attempt(target, name):
        value = acl if "acl" in name else b"\1\0\0\2" + bytes(16) if "capability" in name else b"x"
        return (trying(os.setxattr, target, name, value), trying(os.getxattr, target, name),
                trying(os.removexattr, target, name))
    for target in (path, shared):
        for name in NAMESPACES:
            set_, got, removed = run_child(attempt, target, name, user=user)
            assert set_ in refused, name
            assert got in (errno.EOPNOTSUPP, errno.ENODATA), name
            assert removed in (*refused, errno.ENODATA) or "acl" in name, name  # what is not there may be removed
        assert os.listxattr(target) == []
    m.restart()
    assert os.listxattr(path) == []


# setuid programs and devices

def mount_line(m):
    with open("/proc/self/mountinfo") as f:
        return next(line for line in f if f" {m.mnt} " in line)


def put_setuid_id(m):
    path = m.path("id")
    with open("/usr/bin/id", "rb") as f:
        put(path, f.read())
    os.chmod(path, 0o4755)
    return path


def effective_user(path):
    return int(subprocess.run([path, "-u"], capture_output=True, check=True).stdout)


def test_no_setuid_program_and_no_device_works_here(m):
    assert "nosuid" in mount_line(m) and "nodev" in mount_line(m)
    assert run_child(effective_user, put_setuid_id(m), user=BOB) == BOB
    os.mknod(m.path("null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with raises(errno.EACCES):
        get(m.path("null"))


def test_root_may_allow_both(mount):
    m = mount(quota="64M", allow_other=True, suid=True, dev=True)
    assert "nosuid" not in mount_line(m) and "nodev" not in mount_line(m)
    assert run_child(effective_user, put_setuid_id(m), user=BOB) == 0
    os.mknod(m.path("null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert get(m.path("null")) == b""


# Old bytes

SIZES = [100, 5000, 70_000, 300_000, 1_500_000]


def litter(m):
    """Ann's secrets in every kind of place, then removed: segments, packed and raw big files, memory, page cache."""
    def make():
        for i, size in enumerate(SIZES * 4):
            noise = random.Random(i).randbytes(size) if i % 2 else b""  # every other one does not compress
            data = (noise[:size // 2] + SECRET * (size // len(SECRET) + 1))[:size]
            put(m.path("shared", f"secret-{i}"), data)
        for i in range(len(SIZES * 4)):
            os.unlink(m.path("shared", f"secret-{i}"))
    run_child(make, user=ANN)


def extended(path, size):
    put(path, b"head")
    os.truncate(path, size)


def sparse(path, size):
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(fd, b"head", 0)
    os.pwrite(fd, b"tail", size - 4)
    os.close(fd)


def allocated(path, size):
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(fd, b"head", 0)
    os.posix_fallocate(fd, 0, size)
    os.close(fd)


def cut_and_extended(path, size):
    put(path, b"head" + b"own!" * (size // 4))
    os.truncate(path, 4)
    os.truncate(path, size)


def punched(path, size):
    put(path, b"head" + b"own!" * (size // 4 - 1))
    fd = os.open(path, os.O_RDWR)
    sysx.fallocate(fd, sysx.FALLOC_PUNCH_HOLE | sysx.FALLOC_KEEP_SIZE, 4, size - 4)
    os.close(fd)


def zeroed(path, size):
    put(path, b"head" + b"own!" * (size // 4 - 1))
    fd = os.open(path, os.O_RDWR)
    sysx.fallocate(fd, sysx.FALLOC_ZERO_RANGE, 4, size - 4)
    os.close(fd)


@pytest.mark.parametrize("make", [extended, sparse, allocated, cut_and_extended, punched, zeroed],
                         ids=lambda make: make.__name__)
def test_what_was_never_written_reads_as_zeros(m, shared, make):
    """In Bob's files of all sizes, at once, by mmap, after a restart and after SIGKILL."""
    paths = {os.path.join(shared, f"bob-{size}"): size // 4 * 4 for size in SIZES}

    def create():
        for path, size in paths.items():
            make(path, size)

    def verify():
        for path, size in paths.items():
            wanted = b"head" + bytes(size - 4)
            if make is sparse:
                wanted = wanted[:-4] + b"tail"
            assert get(path) == wanted, f"{path}: a byte nobody wrote"
            with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == wanted
    litter(m)
    run_child(create, user=BOB)
    run_child(verify, user=BOB)
    for how in ("stop", "kill"):
        m.restart(how)
        run_child(verify, user=BOB)


@pytest.mark.parametrize("size", [1, 100, 4097, 70_001, 300_001])
def test_the_tail_of_the_last_page_is_zeros(m, shared, size):
    litter(m)
    path = os.path.join(shared, "bob")
    run_child(put, path, b"b" * size, user=BOB)
    m.restart()

    def tail():
        fd = os.open(path, os.O_RDONLY)
        libc = sysx.libc
        libc.mmap.restype = sysx.ctypes.c_void_p
        libc.mmap.argtypes = [sysx.ctypes.c_void_p, sysx.ctypes.c_size_t] + [sysx.ctypes.c_int] * 3 + [sysx.ctypes.c_long]
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        address = libc.mmap(None, pages, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        return sysx.ctypes.string_at(address, pages)
    data = run_child(tail, user=BOB)
    assert data == b"b" * size + bytes(len(data) - size)


def test_small_values_in_recycled_space_hold_their_own_bytes_only(m, shared):
    """Round after round at quota: Ann's secrets are evicted, Bob's short values take their place."""
    def ann(round_no):
        for i in range(60):
            put(os.path.join(shared, f"a{i}"), SECRET * 5000 + bytes([round_no]))

    def bob(round_no):
        for i in range(60):
            path = os.path.join(shared, f"b{i}")
            put(path, b"%d %d" % (round_no, i))
            os.truncate(path, 9000 + i)
        for i in range(60):
            head = b"%d %d" % (round_no, i)
            assert get(os.path.join(shared, f"b{i}")) == head + bytes(9000 + i - len(head))
    m.restart(quota="4M")
    for round_no in range(6):
        run_child(ann, round_no, user=ANN)
        os.chmod(shared, 0o777)
        run_child(bob, round_no, user=BOB)


def change_at_random(path, local, steps, rng):
    """The same random changes to both files."""
    fds = [os.open(name, os.O_CREAT | os.O_RDWR, 0o600) for name in (path, local)]
    for _ in range(steps):
        offset, size = rng.choice([0, 3, 4096, rng.randrange(400_000)]), rng.choice([1, 100, 4096, 70_000, 300_000])
        op = rng.choice(["write", "write", "cut", "allocate", "punch", "zero", "sync"])
        for fd in fds:
            if op == "write":
                os.pwrite(fd, b"w" * size, offset)
            elif op == "cut":
                os.ftruncate(fd, offset)
            elif op == "sync":
                os.fsync(fd)
            else:
                sysx.fallocate(fd, {"allocate": 0, "zero": sysx.FALLOC_ZERO_RANGE,
                                    "punch": sysx.FALLOC_PUNCH_HOLE | sysx.FALLOC_KEEP_SIZE}[op], offset, size)
    for fd in fds:
        os.close(fd)


def test_no_old_byte_comes_back_in_whatever_order_a_file_is_changed(m, shared, workdir, seed):
    rng = random.Random(seed)
    local = os.path.join(workdir, "local")
    os.mkdir(local)
    os.chmod(local, 0o777)
    for round_no in range(3):
        litter(m)
        for i in range(12):
            run_child(change_at_random, os.path.join(shared, f"bob{i}"), os.path.join(local, f"bob{i}"), 12,
                      random.Random(rng.random()), user=BOB)
        m.restart("kill" if round_no == 1 else "stop")
        for i in range(12):
            assert get(os.path.join(shared, f"bob{i}")) == get(os.path.join(local, f"bob{i}")), f"bob{i}"
