#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""SIGKILL of the daemon under load, again and again, with C2 checked after each.

Clients are processes that know what they wrote: every value names its key and version and can be made again from them.
The daemon is killed at a random moment; the clients' calls fail; each reports, for every key, the state it had been
told was done and the change that was under way. After the remount a key must be in the one state or the other: never
an older value, never a mixture, never back after its removal. Under quota nothing may be missing; at quota a key may
have been evicted. `larder check` must find nothing.

    tests/crash/kill9.py --build-dir build --rounds 200 [--at-quota] [--clients 4] [--seed N]
"""

import argparse
import errno
import os
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness.mount import Site, sweep  # noqa: E402
from harness.procs import Child  # noqa: E402
from harness.values import mixed_bytes, random_bytes, text_bytes  # noqa: E402
from harness.wait import until  # noqa: E402

KEYS = 60
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO, errno.EINTR}

#: States of a key: ABSENT, TRUNCATED to no bytes, or the version (> 0) whose bytes it holds.
ABSENT, TRUNCATED = 0, -1


def size_of(client, key, version):
    rng = random.Random(f"size {client} {key} {version}")
    kind = rng.random()
    if kind < 0.1:
        return rng.randrange(8)
    if kind < 0.75:
        return rng.randrange(20_000)
    if kind < 0.95:
        return rng.randrange(300_000)
    return rng.randrange(1_500_000)


def value_of(client, key, version):
    """The bytes of a version, beginning with whose they are."""
    if version == TRUNCATED:
        return b""
    size = size_of(client, key, version)
    make = (random_bytes, text_bytes, mixed_bytes)[version % 3]
    head = b"%d %d %d " % (client, key, version)
    return (head + make(size, f"{client} {key} {version}"))[:max(size, len(head))]


def put(path, data):
    with open(path, "wb", buffering=0) as f:
        view = memoryview(data)
        while view:
            view = view[f.write(view[:100_000]):]


class Client:
    """One client's keys: what is done (states), and what is being done (pending: {key: the state it will have})."""

    def __init__(self, number, states, version):
        self.number = number
        self.states = states
        self.version = version
        self.pending = {}

    def path(self, top, key):
        return os.path.join(top, f"client-{self.number}", f"{key % 7}", f"key-{key}")

    def value(self, key, version):
        return value_of(self.number, key, version)

    def doing(self, key, state):
        """From now until done() the key may be in its old state or in this one."""
        self.pending = {key: state}

    def done(self):
        self.states.update(self.pending)
        self.pending = {}

    def change(self, top, rng):
        """One random change of one key."""
        key, kind = rng.randrange(KEYS), rng.random()
        path = self.path(top, key)
        self.version += 1
        if kind < 0.35:
            self.doing(key, self.version)
            put(path, self.value(key, self.version))
        elif kind < 0.65:
            # The temporary name may stay behind as well; it is no key.
            self.doing(key, self.version)
            put(path + ".tmp", self.value(key, self.version))
            os.rename(path + ".tmp", path)
        elif kind < 0.75:
            # Synced before it is closed: either may be the last thing that was done.
            self.doing(key, self.version)
            with open(path, "wb", buffering=0) as f:
                f.write(self.value(key, self.version))
                os.fsync(f.fileno())
        elif kind < 0.9:
            self.doing(key, ABSENT)
            os.unlink(path)
        else:
            self.doing(key, TRUNCATED)
            os.truncate(path, 0)
        self.done()

    def run(self, top, seed, at_quota):
        """Changes until the daemon is gone: (states, pending, version, complaint or None)."""
        rng = random.Random(seed)
        complaint = None
        while complaint is None:
            try:
                self.change(top, rng)
            except FileNotFoundError:
                complaint = self.miss(at_quota)
            except OSError as error:
                if error.errno in GONE:
                    break
                complaint = f"{errno.errorcode[error.errno]} in change {self.version} of client {self.number}"
        return self.states, self.pending, self.version, complaint

    def miss(self, at_quota):
        """A change found nothing to work on: because there was nothing, or because it has been evicted."""
        (key, state), = self.pending.items()
        self.pending = {}
        if state in (ABSENT, TRUNCATED):
            was, self.states[key] = self.states.get(key, ABSENT), ABSENT
            if was == ABSENT:
                return None
        return None if at_quota else f"client {self.number} key {key} was lost while the daemon ran"

    def verify(self, top, at_quota):
        """What is wrong after the crash, as texts; what is found becomes the state."""
        wrong = []
        for key in range(KEYS):
            allowed = [self.states.get(key, ABSENT)] + ([self.pending[key]] if key in self.pending else [])
            try:
                with open(self.path(top, key), "rb") as f:
                    found = f.read()
            except FileNotFoundError:
                if ABSENT not in allowed and not at_quota:
                    wrong.append(f"client {self.number} key {key}: missing, should be version {allowed}")
                self.states[key] = ABSENT
                continue
            states = [state for state in allowed if state != ABSENT and found == self.value(key, state)]
            if states:
                self.states[key] = states[0]
            else:
                wrong.append(f"client {self.number} key {key}: {len(found)} bytes {found[:40]!r}, allowed {allowed}")
        self.pending = {}
        return wrong


class Campaign:
    """A store, its clients, and round after round of SIGKILL."""

    def __init__(self, site, mount, clients, seed, at_quota):
        self.site, self.mount, self.at_quota = site, mount, at_quota
        self.rng = random.Random(seed)
        self.clients = [Client(number, {}, 0) for number in range(clients)]
        for client in self.clients:
            for folder in range(7):
                os.makedirs(os.path.join(mount.mnt, f"client-{client.number}", str(folder)))

    def round(self):
        """Load, SIGKILL, check, remount, verification. Returns what was wrong."""
        children = [Child(client.run, self.mount.mnt, self.rng.random(), self.at_quota) for client in self.clients]
        until(time.monotonic() + self.rng.uniform(0.02, 0.6))
        self.mount.kill(clear=False)
        reports = [child.result(30) for child in children]
        self.mount.clear()
        wrong = [complaint for *_, complaint in reports if complaint]
        for client, (states, pending, version, _) in zip(self.clients, reports):
            client.states, client.pending, client.version = states, pending, version
        checked = self.site.run([self.site.tool, "check", self.mount.store], 120)
        if checked.returncode != 0:
            wrong.append(f"larder check: {checked.returncode}\n{checked.stdout}{checked.stderr}")
        self.mount.start()
        for client in self.clients:
            wrong += client.verify(self.mount.mnt, self.at_quota)
        stats = self.mount.stats()
        if stats["corrupt_records"]:
            wrong.append(f"{stats['corrupt_records']} corrupt records")
        return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default="build")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--at-quota", action="store_true")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--mount-options", default="")
    args = parser.parse_args()
    base = tempfile.mkdtemp(prefix="larder-kill9-")
    os.chmod(base, 0o755)
    work = os.path.join(base, "work")
    os.mkdir(work)
    extra = dict(word.partition("=")[::2] for word in args.mount_options.split(",") if word)
    site = Site(work, os.path.abspath(args.build_dir), False, extra)
    print(f"seed {args.seed}, work in {work}", flush=True)
    wrong = ["it did not run"]
    try:
        mount = site.mount(quota="24M" if args.at_quota else "2G")
        campaign = Campaign(site, mount, args.clients, args.seed, args.at_quota)
        for number in range(args.rounds):
            wrong = campaign.round()
            if wrong:
                break
            if number % 10 == 9:
                print(f"round {number + 1}: {sum(c.version for c in campaign.clients)} changes so far", flush=True)
    finally:
        wrong = wrong + site.finish()
        wrong += sweep(base)
    for text in wrong:
        print(f"WRONG: {text}")
    if wrong:
        print(f"kept: {work}")
        return 1
    shutil.rmtree(base)
    print(f"{args.rounds} rounds, nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
