# SPDX-License-Identifier: BSD-2-Clause
"""What one client of a mount knows of its own directory: an inode table, names, and what may be found after a crash.

A State is what the client was told is done. A change is what one system call does to it, as ({inode: node},
{(directory, name): inode}), None for what goes. After a crash the directory must be the State or the State with the
one change that was under way, whole: both halves of a rename, all names of a file, every attribute.

A node is a dict: kind "f", "d" or "l"; mode; xattrs {name: (version, size)}; of a file `pieces`, the (version, size)
its bytes are made of, or `blocks`, the versions each block may hold until the next fsync; ttl as text, written (not
before, not after), mtime (None: unknown), maybe_gone (it may have expired while it was being replaced).
"""

import errno
import os
import stat
import time

from harness.values import mixed_bytes, random_bytes, text_bytes

TOP = 0
BLOCK_BYTES = 4096
POOL_BYTES = 1 << 21
TTL_SECONDS = {"1s": 1, "2s": 2, "1h": 3600, "none": None}
#: A miss may be noticed this much after the deadline before it counts as "still there".
EXPIRY_SLACK = 0.3
DIFFERENCES_MAX = 6

POOLS = tuple(make(POOL_BYTES, "pool") for make in (random_bytes, text_bytes, mixed_bytes))


def piece(client, version, size):
    """Bytes of a version; a shorter piece is the beginning of a longer one."""
    start = (client * 7919 + version * 104729) % (POOL_BYTES // 4)
    return (b"%d %d " % (client, version) + POOLS[version % 3][start:start + size])[:size]


def block(client, version, index):
    """One block of a file that is changed in place."""
    start = (client * 7919 + version * 104729 + index * 1299709) % (POOL_BYTES - BLOCK_BYTES)
    return (b"%d %d %d " % (client, version, index) + POOLS[version % 3][start:start + BLOCK_BYTES])[:BLOCK_BYTES]


def new_file(pieces, now):
    return {"kind": "f", "mode": 0o644, "xattrs": {}, "ttl": None, "mtime": None, "pieces": pieces,
            "written": (now, None)}


def new_folder(place):
    return {"kind": "d", "mode": 0o755, "xattrs": {}, "mtime": None, "at": place}


def due_range(node, now):
    """When it expires: (not before, not after), or None."""
    seconds = TTL_SECONDS[node["ttl"]] if node.get("ttl") else None
    if seconds is None:
        return None
    low, high = node["written"]
    return low + seconds, (now if high is None else high) + seconds


class State:
    """Inodes and names as a client knows them. Ghosts were evicted since the daemon started: C2 promises of what was
    removed or has expired that it does not come back, and an eviction may be seen a moment before it is logged."""

    def __init__(self):
        self.nodes = {TOP: new_folder(None)}
        self.names = {}
        self.ghosts = {}

    def copy(self):
        state = State()
        state.nodes, state.names, state.ghosts = dict(self.nodes), dict(self.names), dict(self.ghosts)
        return state

    def apply(self, change):
        for table, changes in zip((self.nodes, self.names), change):
            for key, value in changes.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
        return self

    def forget(self, inode, may_return=False):
        """All its names are gone."""
        node = self.nodes.pop(inode, None)
        for name in self.names_of(inode):
            del self.names[name]
            if may_return:
                self.ghosts[name] = inode, node

    def names_of(self, inode):
        return [name for name, leads_to in self.names.items() if leads_to == inode]

    def path(self, place):
        """Relative to the client's directory."""
        parts = [place[1]]
        while place[0] != TOP:
            place = self.nodes[place[0]]["at"]
            parts.append(place[1])
        return "/".join(reversed(parts))

    def places(self, *kinds):
        return [place for place, inode in self.names.items() if self.nodes[inode]["kind"] in kinds]

    def folders(self):
        return [inode for inode, node in self.nodes.items() if node["kind"] == "d"]

    def paths(self):
        return {self.path(place): inode for place, inode in self.names.items()}


class Found:
    """What is at one path of the mount."""

    def __init__(self, path):
        self.st = os.lstat(path)
        self.data = self.target = self.ttl = None
        self.xattrs = {}
        if stat.S_ISLNK(self.st.st_mode):
            self.target = os.readlink(path)
            return
        if stat.S_ISREG(self.st.st_mode):
            with open(path, "rb", buffering=0) as f:
                self.data = f.readall()
            self.st = os.lstat(path)
        for name in os.listxattr(path):
            self.xattrs[name] = os.getxattr(path, name)
        try:
            self.ttl = os.getxattr(path, "user.larder.ttl").decode()
        except OSError:
            pass  # none of its own

    @property
    def kind(self):
        return "d" if stat.S_ISDIR(self.st.st_mode) else "l" if self.target is not None else "f"


def scan(top, damaged=False):
    """{relative path: Found} of all below top. What goes meanwhile (expired, evicted) is left out; of a damaged store
    what cannot be read as well."""
    found, folders = {}, [""]
    while folders:
        folder = folders.pop()
        for name in os.listdir(os.path.join(top, folder)):
            path = os.path.join(folder, name)
            try:
                found[path] = Found(os.path.join(top, path))
            except OSError as error:
                if error.errno == errno.ENOENT or (damaged and error.errno == errno.EIO):
                    continue
                raise
            if found[path].kind == "d":
                folders.append(path)
    return found


class Comparison:
    """One State against what was found: what differs, and which inodes are gone (rightly or not)."""

    def __init__(self, client, state, found, gone_ok, before):
        self.client, self.state, self.found, self.gone_ok = client, state, found, gone_ok
        self.before, self.after = before, time.time()
        self.wrong, self.gone = [], set()
        paths = state.paths()
        for path, inode in sorted(paths.items()):
            self._check_path(path, inode, state.nodes[inode])
        self.returned = {state.path(place): place for place in state.ghosts if place[0] in state.nodes} if gone_ok else {}
        for path in sorted(set(found) - set(paths)):
            if path in self.returned:
                node = state.ghosts[self.returned[path]][1]
                if node is None or not self._differs(node, found[path]):
                    continue
            self.wrong.append(f"{path}: is there, should not be ({found[path].kind} of {found[path].st.st_size} bytes)")
        self._check_identity(paths)

    def _is_due(self, node):
        due = due_range(node, self.after)
        return due and self.after >= due[0]

    def _may_be_gone(self, node):
        return node["kind"] != "d" and (self.gone_ok or node.get("maybe_gone") or self._is_due(node))

    def _check_path(self, path, inode, node):
        here = self.found.get(path)
        if here is None:
            self.gone.add(inode)
            if not self._may_be_gone(node):
                self.wrong.append(f"{path}: is missing, should be {describe(node)}")
            return
        due = due_range(node, self.before)
        if due and self.before > due[1] + EXPIRY_SLACK:
            self.wrong.append(f"{path}: has expired {self.before - due[1]:.2f} s ago and is there")
        what = self._differs(node, here)
        if what:
            self.wrong.append(f"{path}: {what}")

    def _differs(self, node, here):
        if here.kind != node["kind"]:
            return f"is a {here.kind}, should be a {node['kind']}"
        if node["kind"] == "l":
            return None if here.target == node["target"] else f"leads to {here.target}, should to {node['target']}"
        if stat.S_IMODE(here.st.st_mode) != node["mode"]:
            return f"mode {here.st.st_mode:o}, should be {node['mode']:o}"
        if node["mtime"] is not None and here.st.st_mtime_ns != node["mtime"]:
            return f"mtime {here.st.st_mtime_ns}, should be {node['mtime']}"
        if here.xattrs != {name: piece(self.client, *value) for name, value in node["xattrs"].items()}:
            return f"xattrs {sorted(here.xattrs)} differ from {node['xattrs']}"
        if node["kind"] == "d":
            return None
        if here.ttl != node["ttl"] and not (here.ttl is None and self._is_due(node)):  # leaving between two looks at it
            return f"ttl {here.ttl}, should be {node['ttl']}"
        return self._data_differs(node, here.data)

    def _data_differs(self, node, data):
        if "blocks" in node:
            if len(data) != len(node["blocks"]) * BLOCK_BYTES:
                return f"{len(data)} bytes, should be {len(node['blocks'])} blocks"
            for index, versions in enumerate(node["blocks"]):
                part = data[index * BLOCK_BYTES:(index + 1) * BLOCK_BYTES]
                if not any(part == block(self.client, version, index) for version in versions):
                    return f"block {index} begins {part[:24]!r}, should be one of {versions}"
            return None
        expected = b"".join(piece(self.client, *part) for part in node["pieces"])
        if data == expected:
            return None
        at = next((i for i, (x, y) in enumerate(zip(data, expected)) if x != y), min(len(data), len(expected)))
        return f"{len(data)} bytes, begins {data[:24]!r}, should be {len(expected)}: {node['pieces']}; first differs at {at}"

    def _check_identity(self, paths):
        """Hard links: one inode per model inode, all of its names or none."""
        seen = {}
        for path, inode in paths.items():
            if path not in self.found or self.state.nodes[inode]["kind"] == "d":
                continue
            st = self.found[path].st
            if inode in self.gone and not self._may_be_gone(self.state.nodes[inode]):
                self.wrong.append(f"{path}: is there without its other names")
            if seen.setdefault(inode, st.st_ino) != st.st_ino:
                self.wrong.append(f"{path}: is no hard link of its other name any more")
            if inode not in self.gone and st.st_nlink != len(self.state.names_of(inode)):
                self.wrong.append(f"{path}: {st.st_nlink} links, should be {len(self.state.names_of(inode))}")

    def unknown(self):
        """Paths that are there, rightly, with nobody knows what: half of a value that was refused, then evicted."""
        return [path for path in set(self.returned) & set(self.found)
                if self.returned[path] not in self.state.names and self.state.ghosts[self.returned[path]][1] is None]

    def settled(self):
        """The state that was found, as the one to go on from."""
        for path, inode in self.state.paths().items():
            node = self.state.nodes[inode]
            if "blocks" in node and path in self.found:
                self.state.nodes[inode] = {**node, "blocks": self._found_blocks(node, self.found[path].data)}
            elif node.get("written", (0, 0))[1] is None:
                self.state.nodes[inode] = {**node, "written": (node["written"][0], self.after)}
        for inode in self.gone:
            self.state.forget(inode)
        for path in set(self.returned) & set(self.found):
            inode, node = self.state.ghosts[self.returned[path]]
            if self.returned[path] not in self.state.names and node:
                self.state.names[self.returned[path]], self.state.nodes[inode] = inode, node
        return self.state

    def _found_blocks(self, node, data):
        return [tuple(v for v in versions
                      if data[i * BLOCK_BYTES:(i + 1) * BLOCK_BYTES] == block(self.client, v, i))
                for i, versions in enumerate(node["blocks"])]


def describe(node):
    return {key: (value if key != "blocks" else f"{len(value)} blocks") for key, value in node.items()}


def reconcile(client, candidates, top, gone_ok):
    """(the State that explains what is below top, None), or (None, why none does)."""
    before = time.time()
    found = scan(top)
    texts = []
    for label, state in candidates:
        comparison = Comparison(client, state, found, gone_ok, before)
        if not comparison.wrong:
            for path in comparison.unknown():
                os.unlink(os.path.join(top, path))
            return comparison.settled(), None
        texts.append(f"as {label}: " + "; ".join(comparison.wrong[:DIFFERENCES_MAX]))
    return None, f"client {client}: " + "\n    ".join(texts)
