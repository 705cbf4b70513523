# SPDX-License-Identifier: BSD-2-Clause
"""Lists of file system operations: made up from a seed, done on two directories, compared, and cut down when they differ.

tests/diff/executor.c does one list below one directory and prints a line per operation. Here a list is text, one
operation per line, so that a failure is a file somebody can run, read and shorten by hand.

What may differ, and why, is DIFFERENCES and nothing else.
"""

import concurrent.futures
import os
import random
import re
import shutil
import subprocess

FALLOC_KEEP_SIZE, FALLOC_PUNCH, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT = 1, 2, 8, 16, 32
F_OFD_GETLK, F_OFD_SETLK, F_GETLK, F_SETLK = 36, 37, 5, 6

#: (where, what, why, what of a result is left out): of the reference "tmpfs" or "ext4", or of "any".
#: What no reference can say is left out by the executor: st_blocks and the sizes of directories (each file system's
#: own), positions at the end of a directory, times of FIFOs (the kernel's) and of files with a shared mapping (a local
#: file system stamps them when a page is first touched, FUSE when it is written back).
DIFFERENCES = [
    ("any", "order of mtime and ctime", "a local file system stamps with a clock that moves every few milliseconds, so "
     "what happened in two steps may show as one; larder's clock always moves", re.compile(r" d?m[=<>]c")),
    ("tmpfs", "times of directories", "tmpfs stamps a directory with the time it gives what is linked or unlinked in it, "
     "which may be the one the directory has already; ext4 is the reference for these", re.compile(r" d[mc][-+=F]\d*")),
    ("ext4", "times of a file seen for the first time", "ext4 uses inode numbers again, within one tick of its clock with "
     "the same birth time, so a new file may pass for the one before", re.compile(r"(?<= [mc])F|(?<= d[mc])F")),
    ("ext4", "atime", "larder changes it only when it is set, as a file system mounted noatime does; the reference on tmpfs "
     "is mounted so", re.compile(r" a[-+=F]\d*")),
]


def normalise(line, reference):
    for where, _, _, pattern in DIFFERENCES:
        if where in ("any", reference):
            line = pattern.sub("+" if pattern.pattern.endswith("F") else "", line)
    return line


class Generator:
    """Operations from a seed. `features` widens or narrows them: see FEATURES."""

    #: What some reference or some turn cannot do, with the reason.
    FEATURES = {
        "direct": "O_DIRECT: on ext4 a write must be aligned, larder and tmpfs take any",
        "zero_range": "FALLOC_FL_ZERO_RANGE, which ext4 has and tmpfs not; without it COLLAPSE_RANGE and INSERT_RANGE, "
                      "which tmpfs and larder refuse and ext4 not",
        "whiteout": "RENAME_WHITEOUT: on ext4 one that fails changes the times of the directory",
        "users": "operations by other users than root",
        "keep_maps": "a mapping holds a descriptor and syncs when it goes, so that a kill after the list loses nothing",
    }

    WEIGHTS = {
        "open": 60, "close": 22, "dup": 4, "reopen": 5, "read": 12, "pread": 20, "preadv": 5, "write": 25, "pwrite": 40,
        "pwritev": 8, "lseek": 8, "seekdata": 10, "ftruncate": 18, "truncate": 10, "fallocate": 12, "fsync": 5,
        "fdatasync": 3, "syncfs": 1, "copy": 10, "sendfile": 4, "splice": 4, "mmap": 8, "munmap": 5, "mread": 8,
        "mwrite": 10, "msync": 4, "stat": 12, "lstat": 8, "fstat": 14, "access": 4, "statfs": 1, "chmod": 8, "fchmod": 4,
        "chown": 5, "lchown": 2, "fchown": 2, "utimens": 8, "futimens": 3, "setxattr": 8, "fsetxattr": 2, "getxattr": 5,
        "removexattr": 3, "listxattr": 3, "mkdir": 14, "rmdir": 8, "unlink": 20, "rename": 30, "link": 14, "linkfd": 8,
        "symlink": 8, "readlink": 4, "mknod": 6, "chdir": 3, "flock": 5, "lock": 6, "list": 6, "dirbegin": 4,
        "dirread": 8, "dirseek": 4, "dirend": 4, "user": 4, "umask": 1, "walk": 4,
    }

    def __init__(self, seed, threshold=262144, features=("users",)):
        self.random = random.Random(seed)
        self.threshold = threshold
        self.features = set(features)
        self.names = list(self.WEIGHTS)
        self.weights = list(self.WEIGHTS.values())
        self.maybe_open = []

    def operations(self, count):
        return [self.operation() for _ in range(count)]

    def operation(self):
        name = self.random.choices(self.names, self.weights)[0]
        return " ".join(str(word) for word in (name, *getattr(self, "_" + name)()))

    # what operations are made of

    def chance(self, share):
        return self.random.random() < share

    def pick(self, *choices):
        return self.random.choice(choices)

    def path(self):
        turn = self.random.random()
        if turn < 0.01:
            return self.pick("-", "@255", "@256", "@5000", ".", "./", "a/.", "a/..")
        depth = 1 if turn < 0.55 else 2 if turn < 0.88 else 3
        path = "/".join(self.pick(*"abcde") if i == depth - 1 else self.pick(*"abcd") for i in range(depth))
        if self.chance(0.02):
            path += "/"
        return path

    def slot(self):
        return self.random.randrange(8)

    def size(self):
        """Around what matters: blocks, the threshold of big files, the memory of a stage."""
        turn = self.random.random()
        if turn < 0.35:
            return self.random.randrange(0, 9000)
        if turn < 0.6:
            return self.pick(0, 1, 511, 4095, 4096, 4097, 8192, 65536, 131072)
        if turn < 0.9:
            return max(0, self.threshold + self.pick(-4096, -1, 0, 1, 4096, self.random.randrange(-9000, 9000)))
        return self.random.randrange(0, 4 * self.threshold + 100_000)

    def offset(self):
        return self.size() if self.chance(0.85) else self.random.randrange(0, 3_000_000)

    def length(self):
        return self.size() if self.chance(0.4) else self.random.randrange(0, 20_000)

    def fill(self):
        return self.random.randrange(4), self.random.randrange(1000)

    def flags(self):
        flags = self.pick(os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR)
        for flag, share in ((os.O_CREAT, 0.5), (os.O_EXCL, 0.1), (os.O_TRUNC, 0.15), (os.O_APPEND, 0.15),
                            (os.O_DIRECTORY, 0.04), (os.O_NOFOLLOW, 0.08), (os.O_SYNC, 0.04), (os.O_NOATIME, 0.04)):
            if self.chance(share):
                flags |= flag
        if "direct" in self.features and self.chance(0.08):
            flags |= os.O_DIRECT
        if self.chance(0.02):
            flags |= os.O_PATH
        return flags

    def mode(self):
        return self.pick(0o644, 0o600, 0o666, 0o755, 0o777, 0o4755, 0o2755, 0o2770, 0o1777, 0o400, 0o000)

    def owner(self):
        return self.pick((0, 0), (1001, 1001), (1002, 1002), (1001, 1002), (-1, 1001), (1002, -1))

    def time(self):
        return self.pick("now", "omit", 0, 1, 999999999, 1234567890123456789, self.random.randrange(0, 1_700_000_000 * 10**9))

    def xattr(self):
        return self.pick("user.a", "user.b", "user.c", "user." + "x" * 200)

    # operations

    def _open(self):
        if self.chance(0.05):
            flags = os.O_TMPFILE | self.pick(os.O_RDWR, os.O_WRONLY) | self.pick(0, 0, os.O_EXCL)
            return self.slot(), self.pick(".", "a", "b", "a/b"), flags, self.mode()
        return self.slot(), self.path(), self.flags(), self.mode()

    def _close(self):
        return (self.slot(),)

    def _dup(self):
        return self.slot(), self.slot()

    def _reopen(self):
        flags = self.pick(os.O_RDONLY, os.O_WRONLY, os.O_RDWR) | self.pick(0, 0, os.O_TRUNC, os.O_APPEND)
        return self.slot(), self.slot(), flags

    def _read(self):
        return self.slot(), self.length()

    def _pread(self):
        return self.slot(), self.length(), self.offset()

    _preadv = _pread

    def _write(self):
        return self.slot(), self.length(), *self.fill()

    def _pwrite(self):
        return self.slot(), self.length(), self.offset(), *self.fill()

    def _pwritev(self):
        return *self._pwrite(), self.pick(0, 0, 0x10, 0x2)  # RWF_APPEND, RWF_DSYNC

    def _lseek(self):
        whence = self.pick(os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)
        return self.slot(), self.offset() if whence == os.SEEK_SET else self.random.randrange(-5000, 5000), whence

    def _seekdata(self):
        return self.slot(), self.offset(), self.pick(os.SEEK_DATA, os.SEEK_HOLE)

    def _ftruncate(self):
        return self.slot(), self.size() if self.chance(0.97) else -1

    def _truncate(self):
        return self.path(), self.size() if self.chance(0.97) else -1

    def _fallocate(self):
        modes = [0, 0, FALLOC_KEEP_SIZE, FALLOC_PUNCH | FALLOC_KEEP_SIZE, FALLOC_PUNCH | FALLOC_KEEP_SIZE, FALLOC_PUNCH]
        if "zero_range" in self.features:
            modes += [FALLOC_ZERO, FALLOC_ZERO | FALLOC_KEEP_SIZE]
        else:
            modes += [FALLOC_COLLAPSE, FALLOC_INSERT]
        return self.slot(), self.pick(*modes), self.offset(), self.length()

    _fsync = _fdatasync = _syncfs = _fstat = _close

    def _copy(self):
        return (self.slot(), -1 if self.chance(0.3) else self.offset(), self.slot(),
                -1 if self.chance(0.3) else self.offset(), self.length())

    def _sendfile(self):
        return self.slot(), self.slot(), self.length()

    _splice = _sendfile

    def _mmap(self):
        return (self.random.randrange(4), self.slot(), self.pick(0, 0, 4096, 65536), 1 + self.size(),
                self.pick(1, 3, 3, 3), self.pick(1, 1, 1, 0), int("keep_maps" in self.features or self.chance(0.3)))

    def _munmap(self):
        return (self.random.randrange(4),)

    def _mread(self):
        return self.random.randrange(4), self.offset(), self.length()

    def _mwrite(self):
        return *self._mread(), *self.fill()

    def _msync(self):
        return self.random.randrange(4), self.pick(4, 4, 1)

    def _stat(self):
        return (self.path(),)

    _lstat = _rmdir = _unlink = _readlink = _listxattr = _list = _stat

    def _statfs(self):
        return (self.path(),)

    def _access(self):
        return self.path(), self.random.randrange(8)

    def _chmod(self):
        return self.path(), self.mode()

    def _fchmod(self):
        return self.slot(), self.mode()

    def _chown(self):
        return self.path(), *self.owner()

    _lchown = _chown

    def _fchown(self):
        return self.slot(), *self.owner()

    def _utimens(self):
        return self.path(), self.time(), self.time(), self.pick(0, 1)

    def _futimens(self):
        return self.slot(), self.time(), self.time()

    def _setxattr(self):
        return self.path(), self.xattr(), self.pick(0, 1, 100, 500), self.random.randrange(99), self.pick(0, 0, 0, 1, 2)

    def _fsetxattr(self):
        return self.slot(), *self._setxattr()[1:]

    def _getxattr(self):
        return self.path(), self.xattr(), self.pick(0, 10, 4096)

    def _removexattr(self):
        return self.path(), self.xattr()

    def _mkdir(self):
        return self.path(), self.mode()

    def _rename(self):
        return self.path(), self.path(), self.random.choices((0, 1, 2, 4, 3), (70, 10, 15, 4 * ("whiteout" in self.features), 1))[0]

    def _link(self):
        return self.path(), self.path(), self.pick(0, 0, 0x400)

    def _linkfd(self):
        return self.slot(), self.path(), self.pick(0, 1)

    def _symlink(self):
        return self.pick("a", "b", "c", "a/b", "b/c", ".", "nothing", "d/e", "@1000"), self.path()

    def _mknod(self):
        return self.path(), self.pick(0o10644, 0o140644, 0o100644, 0o20666, 0o644)

    def _chdir(self):
        return (self.path(),) if self.chance(0.3) else ("/",)

    def _flock(self):
        return self.slot(), self.pick(1, 2, 8)

    def _lock(self):
        return (self.slot(), self.pick(F_OFD_SETLK, F_OFD_SETLK, F_OFD_GETLK, F_SETLK), self.pick(0, 1, 2),
                self.random.randrange(20), self.random.randrange(20))

    def _dirbegin(self):
        return self.random.randrange(3), self.pick(".", "a", "b", "a/b", self.path())

    def _dirread(self):
        return self.random.randrange(3), self.random.randrange(4)

    def _dirseek(self):
        return (self.random.randrange(3),)

    _dirend = _dirseek

    def _user(self):
        return self.pick((0, 0), (0, 0), (0, 0), (1001, 1001), (1002, 1002)) if "users" in self.features else (0, 0)

    def _umask(self):
        return (self.pick(0o22, 0o22, 0, 0o77),)

    def _walk(self):
        return ()


def with_restarts(operations, how, every):
    """The same, with a restart of the daemon after each `every` operations; how: "stop" and "kill" in turn."""
    result = []
    for i, operation in enumerate(operations, 1):
        result.append(operation)
        if how and i % every == 0:
            result += ["@" + how[i // every % len(how)], "walk"]
    return result


class ExecutorFailed(AssertionError):
    """It did not reach the end of the list."""


def start(executor, root, operations, passthrough=False):
    argv = [executor, root] + (["--passthrough"] if passthrough else [])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.script = "".join(op + "\n" for op in operations).encode()
    return process


def collect(process, timeout=120):
    """[result per operation]; a walk's is several lines."""
    try:
        out, err = process.communicate(process.script, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ExecutorFailed(f"{process.args} did not end within {timeout} s") from None
    if process.returncode != 0:
        raise ExecutorFailed(f"{process.args}: {process.returncode} {err.decode(errors='replace')}\n")
    results = []
    for line in out.decode(errors="replace").splitlines():
        if line.startswith("  ") and results:
            results[-1] += "\n" + line
        else:
            results.append(line)
    return results


def segments(operations):
    """[(operations, what comes after them)], cut at the restarts."""
    part = []
    for operation in operations:
        if operation.startswith("@"):
            yield part, operation
            part = []
        else:
            part.append(operation)
    yield part, None


class Twins:
    """A mount and a local directory, and lists done on both. `m` is a started harness.mount.Mount."""

    def __init__(self, m, local, executor, reference):
        self.m = m
        self.local = local
        self.executor = executor
        self.reference = reference
        self.passthrough = m.options.get("passthrough") != "off"
        self.runs = 0
        self.done = 0  # operations on the mount

    def _new_roots(self):
        self.runs += 1
        run = f"run-{os.path.basename(self.m.mnt)}-{self.runs}"  # a failed turn before may have left its own
        roots = [os.path.join(top, run, "below") for top in (self.local, self.m.mnt)]
        for root in roots:
            os.makedirs(root)
            os.chmod(os.path.dirname(root), 0o755)
            os.chmod(root, 0o777)
        return roots

    def run(self, lists):
        """Does the lists side by side, each below a directory of its own. (list, index, local, mount), or None."""
        roots = [self._new_roots() for _ in lists]
        results = [([], []) for _ in lists]
        cut = [list(segments(operations)) for operations in lists]
        for turn in range(len(cut[0])):
            for side in (0, 1):
                running = [start(self.executor, pair[side], cut[i][turn][0], self.passthrough)
                           for i, pair in enumerate(roots)]
                for i, outcome in enumerate(collect_all(running)):
                    results[i][side].extend(outcome)
            action = cut[0][turn][1]
            for pair in results:
                for side in pair if action else ():
                    side.append(action)
            if action:
                self.restart(action)
        for pair in roots:
            for root in pair:
                shutil.rmtree(os.path.dirname(root))
        self.done += sum(map(len, lists))
        for i, (local, mount) in enumerate(results):
            found = first_difference(lists[i], local, mount, self.reference)
            if found:
                return i, *found
        return None

    def restart(self, action):
        self.m.restart("kill" if action == "@kill" else "stop")

    def fails(self, operations):
        """Whether one list alone differs, every time it is tried."""
        return all(self.run([operations]) for _ in range(3))


def collect_all(processes):
    """Reads them side by side, so that none waits for its reader."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(collect, processes))


TIMES = re.compile(r" d?[amc](=\d+|[-+=F?])| d?m[=<>]c")


def is_doubtful(twins, operations, found):
    """On ext4 a directory made in the place of another, in one tick of its clock, has its number, birth and times: what
    differs in times must differ again."""
    return (twins.reference == "ext4" and TIMES.sub("", found[2]) == TIMES.sub("", found[3]) and
            not twins.fails(operations[:found[1] + 1]))


def report(twins, operations, found, path):
    """Cuts the list down, leaves it at path, and says what differs in it."""
    shorter = shrink(operations[:found[1] + 1], twins.fails) if twins.fails(operations[:found[1] + 1]) else operations
    with open(path, "w") as f:
        f.write("\n".join(shorter) + "\n")
    again = twins.run([shorter]) or found
    return (f"{len(shorter)} operations in {path}\n  the last: {shorter[-1]}\n  local: {again[2]}\n  mount: {again[3]}"
            + ("" if shorter is not operations else "\n  (not each time: only side by side, or by chance)"))


def first_difference(operations, local, mount, reference):
    """(index, what the local directory said, what the mount said) of the first result that differs, or None."""
    for i, operation in enumerate(operations):
        left, right = (normalise(results[i], reference) if i < len(results) else "(nothing)" for results in (local, mount))
        if left != right:
            return i, *_differing_lines(left, right)
    return None


def _differing_lines(left, right):
    a, b = left.split("\n"), right.split("\n")
    if len(a) == 1 and len(b) == 1:
        return left, right
    return "\n".join(line for line in a if line not in b), "\n".join(line for line in b if line not in a)


def shrink(operations, fails, tries=300):
    """The shortest list still failing that `tries` runs find (delta debugging: Zeller and Hildebrandt 2002)."""
    pieces = 2
    while len(operations) > 1 and tries > 0:
        size = max(1, len(operations) // pieces)
        for at in range(0, len(operations), size):
            shorter = operations[:at] + operations[at + size:]
            tries -= 1
            if shorter and fails(shorter):
                operations, pieces = shorter, max(2, pieces - 1)
                break
            if tries <= 0:
                break
        else:
            if size == 1:
                break
            pieces = min(len(operations), pieces * 2)
    return operations
