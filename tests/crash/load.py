# SPDX-License-Identifier: BSD-2-Clause
"""A client that loads a mount with random changes of its own directory and knows, at every moment, what it was told.

It runs until the daemon is gone, in a process of its own with the directory as its working directory, and gives back
its State, the change under way, and a complaint if something was wrong while the daemon lived.
"""

import collections
import errno
import mmap
import os
import random
import time

from harness import sysx
from harness.wait import until
from oracle import BLOCK_BYTES, State, block, due_range, new_file, new_folder, piece, reconcile

GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO, errno.EINTR, errno.ENODEV, errno.ESHUTDOWN}
FOLDERS_MAX = 6
NAMES_MAX = 36
LINKS_MAX = 3
PIECES_MAX = 4
REFUSED_LOOKS = 20
#: Names of what is not yet a key.
HALVES = ("slow", "open", "newdb")
NOTIFIED_LOOKS = 200
TRACE_MAX = 40
#: A key that may expire within this while it is being changed counts as possibly gone.
EXPIRES_SOON = 2.0


class Wrong(Exception):
    """What the mount did is not what it should."""


class Client:
    """`scale` multiplies the sizes of values. `loses`: keys may be evicted. `full_ok`: ENOSPC may happen. Larger values
    than `in_place_bytes` have files of their own. Without `closes` a close is no commit (hits=sampled): values are renamed
    into place or msynced."""

    def __init__(self, number, scale=1.0, loses=False, full_ok=False, in_place_bytes=256 << 10, closes=True):
        self.number, self.scale, self.loses, self.full_ok = number, scale, loses, full_ok
        self.in_place_bytes = in_place_bytes
        self.closes = closes
        self.state = State()
        self.pending = None
        self.between = None  # a state on the way there
        self.version = 0
        self.changes = 0
        self.next_inode = 1
        self.history = {}
        self.trace = collections.deque(maxlen=TRACE_MAX)
        self.rng = None
        self.slow = None
        self.using = []
        self.dead = False

    def folder(self, top):
        return os.path.join(top, f"client-{self.number}")

    # the life of a process

    def run(self, top, seed):
        """Changes until the daemon is gone. Returns (self, complaint or None)."""
        os.umask(0o022)
        self.rng = random.Random(seed)
        self.dead = False
        complaint = None
        try:
            os.chdir(self.folder(top))
        except OSError as error:
            return self, None if error.errno in GONE | {errno.ENOENT} else repr(error)
        while complaint is None and not self.dead:
            try:
                self.change()
            except FileNotFoundError as error:
                complaint = self.refused() if self.full_ok and error.filename in HALVES else self.miss(error)
            except OSError as error:
                if error.errno == errno.ENOSPC and self.full_ok:
                    complaint = self.refused()
                elif error.errno in GONE and not self.served():
                    break
                else:
                    complaint = f"client {self.number}: {error!r} with pending {self.pending}"
            except Wrong as error:
                complaint = f"client {self.number}: {error}"
        self.outlive_the_mount(complaint)
        self.rng = self.slow = None
        return self, complaint and f"{complaint}\n    after " + "; ".join(self.trace)

    def outlive_the_mount(self, complaint):
        """A daemon that is being stopped may still serve: the file held open must not be closed, which commits, before."""
        for _ in range(NOTIFIED_LOOKS if self.slow and not complaint else 0):
            try:
                os.listdir(".")
            except OSError as error:
                if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    break
            until(time.monotonic() + 0.005)

    def served(self):
        try:
            os.stat(".")
            os.listdir(".")
            return True
        except OSError:
            return False

    def miss(self, error):
        """A call found nothing under a name of ours: rightly, if that key may be evicted or has expired."""
        if not self.served():
            self.dead = True
            return None
        self.trace.append(f"  {error!r}")
        self.pending = None
        now, excused = time.time(), False
        for place in self.using:
            inode = self.state.names.get(place)
            if inode is None or not self.is_gone(self.state.path(place)):
                continue
            node = self.state.nodes[inode]
            due = due_range(node, now)
            if self.loses or node.get("maybe_gone") or (due and now >= due[0]):
                self.state.forget(inode, may_return=self.loses)
                excused = True
        if not excused and not self.served():  # who was to tell the kernel is dead, and what it remembers stays
            self.dead = True
            return None
        here = [(self.state.path(place), os.path.lexists(self.state.path(place))) for place in self.using]
        return None if excused else f"client {self.number}: {error!r} of {error.filename} {error.filename2}: lost while the " \
            f"daemon ran; {here}"

    def is_gone(self, path):
        """The kernel may hold the name until it is told; that must not take long."""
        for _ in range(NOTIFIED_LOOKS):
            if not os.path.lexists(path):
                return True
            until(time.monotonic() + 0.005)
        return False

    def refused(self):
        """No space: the change was made, was not, or the new value is cut short. The mount says which."""
        if self.slow:
            self.close_failed(self.slow["fd"])
            self.slow = None
        self.trace.append("  refused")
        wrong = None
        try:
            self.remove_halves(".")
            self.remove_doubtful()
            for _ in range(REFUSED_LOOKS):  # what close(2) refused goes with the release, which nobody waits for
                state, wrong = reconcile(self.number, self.candidates("."), ".", self.loses)
                if wrong is None:
                    self.state, self.pending = state, None
                    break
                until(time.monotonic() + 0.005)
        except OSError as error:
            self.dead = error.errno in GONE and not self.served()
            return None if self.dead else repr(error)
        return wrong

    def remove_doubtful(self):
        """Of a file whose change was refused: the release, which nobody waits for, may yet make a part of it."""
        if not self.pending:
            return
        doubtful = {inode for inode in self.pending[0] if self.state.nodes.get(inode, {"kind": "f"})["kind"] == "f"}
        places = [place for place, inode in {**self.state.names, **self.pending[1]}.items() if inode in doubtful]
        for place in places:
            evicted = not self.unlink_if_there(self.state.path(place))
            inode = self.state.names.pop(place, None)
            if inode is not None and not self.state.names_of(inode):
                self.state.nodes.pop(inode)
            self.state.ghosts.pop(place, None)
            self.trace.append(f"  {'was gone' if evicted else 'removed'}: {place}")
            if evicted:
                self.state.ghosts[place] = inode, None
        if places:
            self.pending = None

    def remove_halves(self, top):
        """What was being made under a name of its own when the disk was full."""
        for name in HALVES:
            if (0, name) not in self.state.names:
                self.unlink_if_there(os.path.join(top, name))

    @staticmethod
    def unlink_if_there(path):
        """False: it never was, or has been evicted, or the disk has no room to say so, and a crash may bring it back."""
        try:
            os.unlink(path)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOSPC):
                raise
            return False

    def candidates(self, top):
        """The states that a crash at this moment may leave."""
        states = [("before", self.state.copy())]
        if self.pending:
            states.append(("after", self.state.copy().apply(self.pending)))
            if self.between:  # a rename commits what is open, then renames
                states.append(("between", self.state.copy().apply(self.between)))
            if self.full_ok or self.appends_in_place():
                states.append(("cut", self.cut_short(top)))
        return states

    def appends_in_place(self):
        """A value that has a file of its own and is not truncated carries no promise as a whole before the next commit."""
        for inode, node in self.pending[0].items():
            old = (self.state.nodes.get(inode) or {}).get("pieces")
            new = (node or {}).get("pieces")
            if old and new and new[:len(old)] == old and sum(size for _, size in old) > self.in_place_bytes:
                return True
        return False

    def cut_short(self, top):
        """The pending change with its values as long as they are found."""
        state = self.state.copy().apply(self.pending)
        for place, inode in list(state.names.items()):
            node = state.nodes.get(inode)
            if inode in self.pending[0] and node and node.get("pieces"):
                try:
                    left = os.lstat(os.path.join(top, state.path(place))).st_size
                except OSError:
                    continue
                pieces = []
                old = (self.state.nodes.get(inode) or {}).get("pieces")
                if old and not self.full_ok:
                    left = max(left, sum(size for _, size in old))
                for version, size in node["pieces"]:
                    if left > 0:
                        pieces.append((version, min(left, size)))
                    left -= size
                state.nodes[inode] = {**node, "pieces": tuple(pieces)}
        return state

    def is_own(self, data):
        """Whether these bytes are a whole value that this client wrote once, or blocks it wrote in place."""
        if any(data == self.data(pieces) for pieces in self.history.get(len(data), ())):
            return True
        return len(data) % BLOCK_BYTES == 0 and all(
            self.is_own_block(data[at:at + BLOCK_BYTES], at // BLOCK_BYTES) for at in range(0, len(data), BLOCK_BYTES))

    def is_own_block(self, data, index):
        words = data[:40].split(b" ")
        return len(words) > 1 and words[1].isdigit() and data == block(self.number, int(words[1]), index)

    # steps

    def remember(self, pieces):
        self.history.setdefault(sum(size for _, size in pieces), set()).add(pieces)

    def step(self, call, nodes=None, names=None):
        """One system call that makes this change: until it returns, either may be so."""
        self.pending = (nodes or {}, names or {})
        self.trace.append(f"  {self.version}: {self.place_names(names)} {sorted(nodes or {})}")
        result = call()
        now = time.time()
        for inode, node in self.pending[0].items():
            if node and node.get("written", (0, 0))[1] is None:
                self.pending[0][inode] = {**node, "written": (node["written"][0], now)}
        self.state.apply(self.pending)
        self.pending = self.between = None
        self.changes += 1
        return result

    def place_names(self, names):
        return " ".join(f"{self.state.path(place)}={inode}" for place, inode in (names or {}).items())

    def new_inode(self):
        self.next_inode += 1
        return self.next_inode

    def new_version(self):
        self.version += 1
        return self.version

    def value(self, version):
        """(version, size)"""
        kind = self.rng.random()
        size = self.rng.randrange(8) if kind < 0.1 else self.rng.randrange(int(12_000 * self.scale)) if kind < 0.8 \
            else self.rng.randrange(int(100_000 * self.scale)) if kind < 0.97 \
            else self.rng.randrange(min(1_500_000, int(600_000 * self.scale)))
        return version, size

    def data(self, pieces):
        return b"".join(piece(self.number, *part) for part in pieces)

    def any_place(self):
        """A place for a file, taken or not: half of the time one that is taken."""
        taken = [p for p in self.idle_places("f") if p[1].startswith("k")]
        if taken and (len(taken) > NAMES_MAX or self.rng.random() < 0.5):
            return self.rng.choice(taken)
        place = (self.rng.choice(self.state.folders()), f"k{self.rng.randrange(8)}")
        inode = self.state.names.get(place)
        return place if inode is None or place in taken else (0, "k8")

    def idle_places(self, *kinds):
        """Without those of the file that is held open."""
        busy = self.slow["inode"] if self.slow else None
        return [place for place in self.state.places(*kinds) if self.state.names[place] != busy]

    def file_place(self):
        """A place that holds a file, or None."""
        taken = [p for p in self.idle_places("f") if "pieces" in self.state.nodes[self.state.names[p]]]
        return self.rng.choice(taken) if taken else None

    def changed(self, inode, **fields):
        """A copy of the node with these fields; if it may expire meanwhile it is told."""
        node = {**self.state.nodes[inode], **fields}
        due = due_range(self.state.nodes[inode], time.time())
        if due and time.time() + EXPIRES_SOON > due[0]:
            node["maybe_gone"] = True
        return node

    def open_to_write(self, place, flags=0):
        """(fd, inode, whether it is new). What is there is opened as such, what is not is created: nothing else will do."""
        inode = self.state.names.get(place)
        path = self.state.path(place)
        if inode is not None:
            self.state.nodes[inode] = {**self.state.nodes[inode], "mtime": None}  # from now on it is a write's
            return os.open(path, os.O_WRONLY | flags), inode, False
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o644), self.new_inode(), True
        except FileExistsError:
            raise Wrong(f"{path} is there again, and was removed, evicted or had expired") from None

    def write_all(self, fd, data):
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:100_000]):]

    # the changes

    def change(self):
        kinds = (self.do_put, self.do_put_renamed, self.do_put_synced, self.do_slow, self.do_rename_open, self.do_truncate,
                 self.do_append, self.do_unlink, self.do_link, self.do_symlink, self.do_rename, self.do_exchange,
                 self.do_mkdir, self.do_rmdir, self.do_move_folder, self.do_chmod, self.do_utime, self.do_xattr,
                 self.do_ttl, self.do_read, self.do_in_place, self.do_mapped)
        weights = (10, 10, 4, 5, 4, 2, 4, 8, 4, 1, 5, 2, 2, 2, 2, 3, 3, 6, 5, 4, 5, 3)
        if not self.closes:
            weights = (0, 0, 0, 0, 24, 0, 0, 8, 4, 1, 5, 2, 2, 2, 2, 3, 3, 6, 5, 4, 0, 3)
        self.using = []
        kind = self.rng.choices(kinds, weights)[0]
        self.trace.append(kind.__name__)
        kind()

    def put(self, place, synced=False):
        """open (truncating), write, [fsync,] close. The value appears whole with the close or the fsync."""
        value = self.value(self.new_version())
        self.using = [place]
        now = time.time()
        fd, inode, is_new = self.open_to_write(place, os.O_TRUNC)
        try:
            node = self.made((value,), now) if is_new else self.replaced(inode, (value,), now)
            self.pending = ({inode: node}, {place: inode})
            self.write_all(fd, self.data((value,)))
            if synced:
                self.step(lambda: os.fsync(fd), {inode: node}, {place: inode})
        except OSError:
            self.close_failed(fd)
            raise
        self.step(lambda: os.close(fd), {} if synced else {inode: node}, {} if synced else {place: inode})

    def made(self, pieces, now):
        self.remember(pieces)
        return new_file(pieces, now)

    def replaced(self, inode, pieces, now):
        self.remember(pieces)
        node = self.changed(inode, pieces=pieces, written=(now, None), mtime=None)
        node.pop("blocks", None)
        return node

    def close_failed(self, fd):
        try:
            os.close(fd)
        except OSError:
            pass  # the call that failed before is the one to tell

    def do_put(self):
        self.put(self.any_place())

    def do_put_synced(self):
        self.put(self.any_place(), True)

    def do_put_renamed(self):
        self.put((0, "tmp"))
        self.rename((0, "tmp"), self.any_place())

    def do_slow(self):
        """A file that stays open over other changes: nothing of it may show after a crash."""
        if self.full_ok:
            return  # when a change is refused the client looks at what is there, and this would be half a file
        if self.slow is None:
            value = self.value(self.new_version())
            self.using = [(0, "slow")]
            fd, inode, is_new = self.open_to_write((0, "slow"), os.O_TRUNC)
            node = self.made((value,), time.time()) if is_new else self.replaced(inode, (value,), time.time())
            self.slow = {"fd": fd, "inode": inode, "node": node}
            self.write_all(fd, self.data((value,))[:value[1] // 2])
            return
        slow, self.slow = self.slow, None
        value = slow["node"]["pieces"][0]
        change = {slow["inode"]: slow["node"]}, {(0, "slow"): slow["inode"]}
        self.pending = change
        try:
            self.write_all(slow["fd"], self.data((value,))[value[1] // 2:])
        except OSError:
            self.close_failed(slow["fd"])
            raise
        self.step(lambda: os.close(slow["fd"]), *change)

    def do_rename_open(self):
        """Written and renamed while open: the rename is what commits."""
        target = self.any_place()
        value = self.value(self.new_version())
        now = time.time()
        fd, inode, is_new = self.open_to_write((0, "open"), os.O_TRUNC)
        try:  # a crash may have left it, and an exchange have brought another there
            node = self.made((value,), now) if is_new else self.replaced(inode, (value,), now)
            self.write_all(fd, self.data((value,)))
            self.using = [(0, "open")]
            self.between = {inode: node}, {(0, "open"): inode}
            self.step(lambda: os.rename("open", self.state.path(target)), {inode: node},
                      {(0, "open"): None, target: inode})
        finally:
            self.close_failed(fd)

    def do_truncate(self):
        place = self.file_place()
        if place is None:
            return
        inode = self.state.names[place]
        node = self.state.nodes[inode]
        size = 0
        pieces = ()
        if node["pieces"] and self.rng.random() < 0.5:
            size = self.rng.randrange(node["pieces"][0][1] + 1)
            pieces = ((node["pieces"][0][0], size),)
        self.using = [place]
        self.step(lambda: os.truncate(self.state.path(place), size), {inode: self.replaced(inode, pieces, time.time())})

    def do_append(self):
        place = self.file_place()
        if place is None or len(self.state.nodes[self.state.names[place]]["pieces"]) >= PIECES_MAX:
            return
        value = self.value(self.new_version())
        self.using = [place]
        now = time.time()
        fd, inode, _ = self.open_to_write(place, os.O_APPEND)
        node = self.replaced(inode, self.state.nodes[inode]["pieces"] + (value,), now)
        self.pending = ({inode: node}, {})
        try:
            self.write_all(fd, self.data((value,)))
        except OSError:
            self.close_failed(fd)
            raise
        self.step(lambda: os.close(fd), {inode: node})

    def do_unlink(self):
        places = self.idle_places("f", "l")
        if not places:
            return
        place = self.rng.choice(places)
        inode = self.state.names[place]
        last = len(self.state.names_of(inode)) == 1
        self.using = [place]
        self.step(lambda: os.unlink(self.state.path(place)), {inode: None} if last else {}, {place: None})

    def do_link(self):
        place = self.file_place()
        target = (self.rng.choice(self.state.folders()), f"k{self.rng.randrange(8)}")
        if place is None or target in self.state.names:
            return
        inode = self.state.names[place]
        if len(self.state.names_of(inode)) >= LINKS_MAX:
            return
        self.using = [place]
        self.step(lambda: os.link(self.state.path(place), self.state.path(target)), {}, {target: inode})

    def do_symlink(self):
        place = (self.rng.choice(self.state.folders()), f"l{self.rng.randrange(2)}")
        if place in self.state.names:
            return
        target = f"../somewhere/{self.new_version()}"
        inode = self.new_inode()
        self.step(lambda: os.symlink(target, self.state.path(place)),
                  {inode: {"kind": "l", "target": target, "mode": 0o777, "mtime": None}}, {place: inode})

    def rename(self, place, target):
        inode, old = self.state.names.get(place), self.state.names.get(target)
        if inode is None or inode == old:
            return
        nodes = {old: None} if old is not None and len(self.state.names_of(old)) == 1 else {}
        self.using = [place]
        self.step(lambda: os.rename(self.state.path(place), self.state.path(target)), nodes, {place: None, target: inode})

    def do_rename(self):
        place = self.file_place()
        if place is not None:
            self.rename(place, self.any_place())

    def do_exchange(self):
        one, other = self.file_place(), self.file_place()
        if one is None or one == other or self.state.names[one] == self.state.names[other]:
            return
        self.using = [one, other]
        self.step(lambda: sysx.renameat2(self.state.path(one), self.state.path(other), sysx.RENAME_EXCHANGE), {},
                  {one: self.state.names[other], other: self.state.names[one]})

    def do_mkdir(self):
        place = (self.rng.choice(self.state.folders()), f"d{self.rng.randrange(3)}")
        if place in self.state.names or len(self.state.folders()) > FOLDERS_MAX:
            return
        inode = self.new_inode()
        self.step(lambda: os.mkdir(self.state.path(place), 0o755), {inode: new_folder(place)}, {place: inode})

    def do_rmdir(self):
        used = {place[0] for place in self.state.names}
        empty = [inode for inode in self.state.folders() if inode not in used and inode != 0]
        if empty:
            place = self.state.nodes[empty[0]]["at"]
            self.step(lambda: os.rmdir(self.state.path(place)), {empty[0]: None}, {place: None})

    def do_move_folder(self):
        folders = self.state.folders()
        inode, parent = self.rng.choice(folders), self.rng.choice(folders)
        target = (parent, f"d{self.rng.randrange(3)}")
        above = parent
        while above != 0 and above != inode:
            above = self.state.nodes[above]["at"][0]
        if inode == 0 or above == inode or target in self.state.names:
            return
        place = self.state.nodes[inode]["at"]
        self.step(lambda: os.rename(self.state.path(place), self.state.path(target)), {inode: self.changed(inode, at=target)},
                  {place: None, target: inode})

    def attribute(self, call, **fields):
        place = self.file_place()
        if place is not None:
            inode = self.state.names[place]
            self.using = [place]
            self.step(lambda: call(self.state.path(place)), {inode: self.changed(inode, **fields)})

    def do_chmod(self):
        mode = self.rng.choice((0o600, 0o640, 0o644, 0o755))
        self.attribute(lambda path: os.chmod(path, mode), mode=mode)

    def do_utime(self):
        when = self.rng.randrange(1 << 60)
        self.attribute(lambda path: os.utime(path, ns=(when, when)), mtime=when)

    def do_xattr(self):
        place = self.file_place()
        if place is None:
            return
        inode = self.state.names[place]
        xattrs = dict(self.state.nodes[inode]["xattrs"])
        name = f"user.k{self.rng.randrange(3)}"
        self.using = [place]
        path = self.state.path(place)
        if name in xattrs and self.rng.random() < 0.5:
            del xattrs[name]
            self.step(lambda: self.remove_xattr(path, name), {inode: self.changed(inode, xattrs=xattrs)})
            return
        value = self.new_version(), self.rng.choice((5, 300, 5000, 30_000))
        xattrs[name] = value
        self.step(lambda: os.setxattr(path, name, piece(self.number, *value)), {inode: self.changed(inode, xattrs=xattrs)})

    @staticmethod
    def remove_xattr(path, name):
        """Of a file that has just left there are none, and then there is no file."""
        try:
            os.removexattr(path, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                raise FileNotFoundError(errno.ENOENT, "no such attribute", path) from None
            raise

    def do_ttl(self):
        ttl = self.rng.choice(("1s", "2s", "1h", "1h", "none"))
        self.attribute(lambda path: os.setxattr(path, "user.larder.ttl", ttl.encode()), ttl=ttl)

    def do_read(self):
        place = self.file_place()
        if place is None:
            return
        self.using = [place]
        pieces = self.state.nodes[self.state.names[place]]["pieces"]
        with open(self.state.path(place), "rb", buffering=0) as f:
            data = f.readall()
        if data != self.data(pieces):
            raise Wrong(f"{self.state.path(place)}: {len(data)} bytes {data[:24]!r} are read, {pieces} were written")

    # in place

    def database(self):
        """The place of the file that is changed block by block; made when it is not there."""
        place = (0, "db")
        if place not in self.state.names:
            version, count = self.new_version(), self.rng.choice((3, 20, 80))
            fd, inode, _ = self.open_to_write((0, "newdb"), os.O_TRUNC)
            node = {**self.made((), time.time()), "blocks": [(version,)] * count}
            del node["pieces"]
            try:
                self.write_all(fd, b"".join(block(self.number, version, i) for i in range(count)))
                self.using = [(0, "newdb")]
                self.between = {inode: node}, {(0, "newdb"): inode}
                self.step(lambda: os.rename("newdb", "db"), {inode: node}, {(0, "newdb"): None, place: inode})
            finally:
                self.close_failed(fd)
        self.using = [place]
        return place

    def database_may(self, inode, index, version):
        """From now on the block may hold this version as well."""
        node = self.state.nodes[inode]
        blocks = list(node["blocks"])
        blocks[index] += (version,)
        self.state.nodes[inode] = {**node, "blocks": blocks, "mtime": None, "written": (time.time(), None)}

    def database_has(self, inode):
        """What was written last is what every block holds."""
        node = self.state.nodes[inode]
        self.state.nodes[inode] = {**node, "blocks": [versions[-1:] for versions in node["blocks"]]}
        self.changes += 1

    def do_in_place(self):
        inode = self.state.names[self.database()]
        fd = os.open("db", os.O_RDWR)
        try:
            for _ in range(self.rng.randrange(1, 5)):
                index, version = self.rng.randrange(len(self.state.nodes[inode]["blocks"])), self.new_version()
                self.database_may(inode, index, version)
                os.pwrite(fd, block(self.number, version, index), index * BLOCK_BYTES)
                if self.rng.random() < 0.5:
                    os.fsync(fd)
                    self.database_has(inode)
        except OSError:
            self.close_failed(fd)
            raise
        os.close(fd)
        self.database_has(inode)

    def do_mapped(self):
        """In a process of its own: a page that cannot be read any more ends it with SIGBUS."""
        if self.slow:
            return  # the process would close its copy of that descriptor, which commits
        inode = self.state.names[self.database()]
        count = len(self.state.nodes[inode]["blocks"])
        writes = [(self.rng.randrange(count), self.new_version()) for _ in range(self.rng.randrange(1, 5))]
        for index, version in writes:
            self.database_may(inode, index, version)
        status = os.waitpid(self.map_and_write(count, writes), 0)[1]
        if os.waitstatus_to_exitcode(status) == 0:
            self.database_has(inode)
        elif status == errno.ENOENT << 8:
            raise FileNotFoundError(errno.ENOENT, "db")
        elif self.served() and not self.full_ok:
            raise Wrong(f"a client that mapped db ended with wait status {status:#x}")
        elif self.served():  # its pages show what was refused, as long as the kernel keeps them
            self.pending = {inode: self.state.nodes[inode]}, {}
            raise OSError(errno.ENOSPC, f"a mapped write was refused: wait status {status:#x}", "db")

    def map_and_write(self, count, writes):
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            with open("db", "r+b", buffering=0) as f, mmap.mmap(f.fileno(), count * BLOCK_BYTES) as pages:
                for index, version in writes:
                    pages[index * BLOCK_BYTES:(index + 1) * BLOCK_BYTES] = block(self.number, version, index)
                pages.flush()
            status = 0
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)


def prepare(client, top):
    """The client's directory on a fresh mount."""
    os.mkdir(client.folder(top))


def forget_halves(client, top):
    """What was being written under a name of its own was committed at an orderly stop, as far as it had come."""
    for name in HALVES:
        client.unlink_if_there(os.path.join(client.folder(top), name))
        inode = client.state.names.pop((0, name), None)
        if inode is not None and not client.state.names_of(inode):
            client.state.nodes.pop(inode)
    client.between = None


def verify(client, top):
    """After the crash: None, or what is wrong. The client goes on from what was found."""
    if not client.closes:
        forget_halves(client, top)
    if client.full_ok:
        client.remove_halves(client.folder(top))
    client.trace.append("crash")
    state, wrong = reconcile(client.number, client.candidates(client.folder(top)), client.folder(top), client.loses)
    if wrong is None:
        client.state, client.pending = state, None
        client.state.ghosts.clear()
    return wrong and wrong + "\n    after " + "; ".join(client.trace)
