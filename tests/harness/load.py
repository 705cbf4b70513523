# SPDX-License-Identifier: BSD-2-Clause
"""Clients that keep a mount busy, know what they wrote, and read it back all the while.

Each owns a directory of the mount and puts keys in it (temporary name, then rename), of every size class. It ends
when told, or when the daemon dies under it, and says what it had acknowledged: {key: version}, and the one version
it was writing.
"""

import errno
import os
import random

from harness.procs import Child
from harness.values import mixed_bytes

#: Packed, packed by two, big, big and raw.
SIZES = (17, 700, 5_000, 60_000, 300_000, 1_200_000)
KEYS = 12
#: What a call on a mount ends with whose daemon was killed.
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO)


def value_of(client, key, version):
    """What version `version` of a key holds: no two alike, in size or in bytes."""
    rng = random.Random(f"{client} {key} {version}")
    head = b"%d %d %d\n" % (client, key, version)
    return head + mixed_bytes(rng.choice(SIZES) + rng.randrange(16), rng.random())


class Client:
    """The loop of one client, in its own process."""

    def __init__(self, client, directory, stop_file, may_vanish):
        self.client, self.directory, self.stop_file, self.may_vanish = client, directory, stop_file, may_vanish
        self.acknowledged, self.writing = {}, None
        self.rng = random.Random(client)

    def path(self, key):
        return os.path.join(self.directory, f"key-{key}")

    def put(self, key):
        version = self.acknowledged.get(key, 0) + 1
        self.writing = (key, version)
        with open(self.path("new"), "wb") as f:
            f.write(value_of(self.client, key, version))
        os.rename(self.path("new"), self.path(key))
        self.acknowledged[key], self.writing = version, None

    def look(self, key):
        try:
            with open(self.path(key), "rb") as f:
                found = f.read()
        except FileNotFoundError:
            assert self.may_vanish or key not in self.acknowledged, f"{self.path(key)} is gone"
            return
        assert found == value_of(self.client, key, self.acknowledged.get(key, 0)), f"wrong bytes in {self.path(key)}"

    def run(self):
        turns = 0
        try:
            os.makedirs(self.directory, exist_ok=True)
            while not os.path.exists(self.stop_file):
                self.put(self.rng.randrange(KEYS))
                self.look(self.rng.randrange(KEYS))
                turns += 1
        except OSError as error:
            if error.errno not in DEAD:
                raise
        return {"turns": turns, "acknowledged": self.acknowledged, "writing": self.writing}


class Load:
    """`count` clients on a mount. finish() ends them and returns how many puts they made together."""

    def __init__(self, mount, count=3, may_vanish=False):
        self.mount, self.may_vanish = mount, may_vanish
        self.stop_file = os.path.join(mount.site.workdir, f"stop-load{mount.name}")
        self.children = [Child(self._client, n) for n in range(count)]
        self.outcomes = None

    def _directory(self, client):
        return self.mount.path(f"load-{client}")

    def _client(self, client):
        return Client(client, self._directory(client), self.stop_file, self.may_vanish).run()

    def busy(self):
        """Whether every client has keys by now."""
        return all(os.path.exists(os.path.join(self._directory(n), "key-0")) for n in range(len(self.children)))

    def finish(self):
        """Ends the clients. Fails if one saw what it should not have seen."""
        with open(self.stop_file, "wb"):
            pass
        self.outcomes = [child.result() for child in self.children]
        return sum(outcome["turns"] for outcome in self.outcomes)

    def assert_kept(self, may_miss=False, may_be_older=False):
        """C2, for close(2): every key holds what was acknowledged, or the version that was being written."""
        kept = 0
        for client, outcome in enumerate(self.outcomes):
            for key, version in outcome["acknowledged"].items():
                allowed = list(range(1 if may_be_older else version, version + 1))
                allowed += [version + 1] if outcome["writing"] == (key, version + 1) else []
                try:
                    with open(os.path.join(self._directory(client), f"key-{key}"), "rb") as f:
                        found = f.read()
                except OSError as error:
                    assert may_miss and error.errno in (errno.ENOENT, errno.EIO), error
                    continue
                assert any(found == value_of(client, key, one) for one in allowed), f"load-{client}/key-{key}: wrong bytes"
                kept += 1
        return kept
