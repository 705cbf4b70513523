#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""SIGKILL of the daemon under load, again and again on one store, with C2 checked after each.

Clients are processes that know what they did (load.py): puts of all kinds, renames, links, directories, attributes,
xattrs, ttl, in-place writes, mapped writes, files left open. The daemon is killed from 1 ms on after they begin; after the
remount each directory must be as its client was told, or that with the one change under way (oracle.py): never an
older value, never a mixture, never back after its removal or expiry. Only at quota a key may be missing. `larder check`
must find nothing.

A round may also stop the daemon in order and SIGKILL it on the way, SIGKILL several daemons while they mount, fill the
disk, or damage the store before the remount. The modes:

    plain     much room                                  tiny     values below 1 KiB
    quota     4 MiB: eviction, checkpoints, cleaning     big      values above 4 KiB have files of their own
    clean     24 MiB of often replaced values            fsync    durability=fsync
    nouring, uring   the transport                       full     a small disk that another process fills
    damage    the journal is damaged before the remount: what was settled is intact, no byte is wrong
    sampled   hits=sampled, where a close is no commit: values are renamed into place

    tests/crash/kill9.py --build-dir build --rounds 1000 [--mode quota,plain] [--seed N] [--dir /dev/shm]

A failure prints its seed and keeps the store as it was before the remount (store.copy). Moments of death are drawn from
the seed, but what the daemon is doing then is not: repeat a failed seed with --repeat 20.
"""

import argparse
import collections
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import corrupt, logscan, sysx  # noqa: E402
from harness.mount import Site, is_served, sweep  # noqa: E402
from harness.procs import Child  # noqa: E402
from harness.wait import Deadline, eventually, until  # noqa: E402
from load import Client, prepare, verify  # noqa: E402
from oracle import scan  # noqa: E402

URING_PARAMETER = "/sys/module/fuse/parameters/enable_uring"
LOAD_SECONDS = (0.001, 0.4)
COPY_BYTES_MAX = 64 << 20

#: mode: (mount options, scale of values, keys may be evicted)
MODES = {
    "plain": ({"quota": "256M"}, 1.0, False),
    "tiny": ({"quota": "256M"}, 0.05, False),
    "quota": ({"quota": "4M"}, 1.5, True),
    "clean": ({"quota": "24M"}, 3.0, True),
    "big": ({"quota": "256M", "big_bytes": "4K"}, 1.0, False),
    "fsync": ({"quota": "256M", "durability": "fsync"}, 0.5, False),
    "nouring": ({"quota": "16M", "io_uring": "off"}, 1.0, True),
    "uring": ({"quota": "256M", "io_uring": "on"}, 1.0, False),
    "full": ({"quota": "256M"}, 1.0, True),
    "damage": ({"quota": "256M"}, 0.3, False),
    "sampled": ({"quota": "256M", "hits": "sampled"}, 1.0, False),
}


class Filler:
    """Another process's file on the same disk: takes all that is free, or gives it back."""

    def __init__(self, path):
        self.path = path

    def fill(self):
        with open(self.path, "ab", buffering=0) as f:
            for size in (1 << 20, 1 << 16, 1 << 12):
                try:
                    while f.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def give_back(self, size):
        left = max(0, os.path.getsize(self.path) - size) if os.path.exists(self.path) else 0
        with open(self.path, "ab") as f:
            f.truncate(left)


class OfferUring:
    """While it lasts the kernel offers io_uring to those who mount."""

    def __init__(self, mode):
        self.wanted = mode == "uring"

    def __enter__(self):
        if self.wanted:
            with open(URING_PARAMETER, "r+") as parameter:
                self.before = parameter.read().strip()
                parameter.write("Y")

    def __exit__(self, *_):
        if self.wanted:
            with open(URING_PARAMETER, "w") as parameter:
                parameter.write(self.before)


class Campaign:
    """A store, its clients, and round after round of SIGKILL. counts: what has been done so far, by kind."""

    def __init__(self, site, mode, seed, clients=3):
        options, scale, loses = MODES[mode]
        self.site, self.mode = site, mode
        self.rng = random.Random(f"{mode} {seed}")
        self.counts = collections.Counter()
        self.filler = None
        store = None
        if mode == "full":
            disk = site.tmpfs("disk", "12M")
            store = os.path.join(disk, "store")
            self.filler = Filler(os.path.join(disk, "filler"))
        self.mount = site.mount(start=False, store=store, **options)
        self.mount.allow(*self.allowed())
        self.start()
        self.clients = [Client(n, scale, loses, mode == "full", 4096 if mode == "big" else 256 << 10,
                               mode != "sampled") for n in range(clients)]
        for client in self.clients:
            prepare(client, self.mount.mnt)
        self.start_seconds = 0.03
        self.settled = self.settle() if mode == "damage" else None

    def start(self):
        began = time.monotonic()
        self.mount.start()
        self.start_seconds = time.monotonic() - began

    # one round

    def round(self):
        """Returns what was wrong, as texts."""
        reports = self.load_and_kill()
        self.mount.clear()
        wrong = [complaint for _, complaint in reports if complaint]
        self.clients = [client for client, _ in reports]
        wrong += self.read_logs()
        if self.mode == "damage":
            self.damage()
        wrong += self.check()
        for _ in range(self.rng.randrange(4) if self.rng.random() < 0.4 else 0):
            self.kill_while_mounting()
            self.counts["kills while mounting"] += 1
            wrong += self.check()
        self.keep_copy()
        self.start()
        if self.filler and self.mount.stats()["read_only"]:
            self.mount.stop()
            self.filler.give_back(2 << 20)
            self.start()
            self.counts["mounts read-only on a full disk"] += 1
        wrong += self.verify()
        if self.filler and self.rng.random() < 0.5:
            self.filler.give_back(2 << 20)
        self.counts["rounds"] += 1
        return wrong

    def load_and_kill(self):
        """Clients at work, then the daemon's end. Returns [(client, complaint or None)]."""
        began = time.monotonic()
        children = [Child(client.run, self.mount.mnt, self.rng.random()) for client in self.clients]
        low, high = LOAD_SECONDS
        until(began + low * (high / low) ** self.rng.random())
        if self.filler:
            self.fill_disk()
        if self.rng.random() < 0.2:
            self.stop_and_kill()
        else:
            self.mount.kill(clear=False)
            self.counts["kills under load"] += 1
        before = sum(client.changes for client in self.clients)
        reports = [child.result(30) for child in children]
        self.counts["changes"] += sum(client.changes for client, _ in reports) - before
        return reports

    def fill_disk(self):
        for _ in range(self.rng.randrange(1, 4)):
            self.filler.fill()
            until(time.monotonic() + self.rng.uniform(0, 0.02))
            if self.rng.random() < 0.5:
                self.filler.give_back(self.rng.randrange(1 << 20))

    def stop_and_kill(self):
        """SIGTERM, and SIGKILL before it is done, if it is."""
        process, self.mount.process = self.mount.process, None
        os.kill(process.pid, signal.SIGTERM)
        until(time.monotonic() + self.rng.uniform(0, 0.04))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            self.counts["kills while stopping"] += 1
        else:
            self.counts["orderly stops"] += 1
        process.wait(Deadline(10).left())

    def kill_while_mounting(self):
        with open(os.path.join(self.site.logs, "killed.log"), "wb") as log:
            process = subprocess.Popen(self.mount.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True, env=self.site.environment)
        until(time.monotonic() + self.rng.uniform(0, 1.2 * self.start_seconds))
        process.kill()
        process.wait(Deadline(10).left())
        self.mount.clear()

    # what is looked at

    def read_logs(self):
        """Of the daemons that are gone; clean logs are removed."""
        wrong = []
        for path in self.mount.logs:
            with open(path, errors="replace") as f:
                wrong += [f"{os.path.basename(path)}: {line}" for line in logscan.findings(f.read(), self.allowed())]
            if not wrong:
                os.unlink(path)
        if not wrong:
            self.mount.logs.clear()
            self.site.commands.clear()
            self.site.processes.clear()
        return wrong

    def allowed(self):
        if self.mode == "full":
            return [r"No space left", r"event=disk_full"]
        return [r"corrupt", r"damage"] if self.mode == "damage" else []

    def check(self):
        checked = self.site.run([self.site.tool, "check", self.mount.store], 120)
        if checked.returncode == 0 or (self.mode == "damage" and checked.returncode == 1):
            return []
        return [f"larder check: {checked.returncode}\n{checked.stdout}{checked.stderr}"]

    def keep_copy(self):
        """The store as the remount finds it, for whoever looks into a failure."""
        copy = os.path.join(self.site.workdir, "store.copy")
        shutil.rmtree(copy, ignore_errors=True)
        if sum(os.lstat(p).st_blocks * 512 for p in corrupt.store_files(self.mount.store, "")
               + corrupt.store_files(self.mount.store, "big")) < COPY_BYTES_MAX:
            shutil.copytree(self.mount.store, copy, symlinks=True)

    def verify(self):
        if self.mode == "damage":
            return self.verify_damaged()
        wrong = [text for text in (verify(client, self.mount.mnt) for client in self.clients) if text]
        stats = self.mount.stats()
        wrong += [f"{stats[name]} {name}" for name in ("corrupt_records", "lost_values") if stats[name]]
        return wrong

    # damage between the crash and the remount

    def settle(self):
        """A directory that nobody changes any more, in a checkpoint."""
        client = Client(99, 0.3)
        prepare(client, self.mount.mnt)
        child = Child(client.run, self.mount.mnt, self.rng.random())
        until(time.monotonic() + 0.3)
        self.mount.kill()
        client, complaint = child.result()
        assert complaint is None, complaint
        self.start()
        assert verify(client, self.mount.mnt) is None
        for place, inode in client.state.names.items():
            if client.state.nodes[inode].get("ttl") in ("1s", "2s"):
                os.setxattr(os.path.join(client.folder(self.mount.mnt), client.state.path(place)), "user.larder.ttl", b"none")
                client.state.nodes[inode] = {**client.state.nodes[inode], "ttl": "none", "maybe_gone": True}
        self.mount.restart()
        return client

    def damage(self):
        """Of one journal file that tells of what came after the checkpoint."""
        kind = self.rng.choice((corrupt.flip, corrupt.cut, corrupt.zero, corrupt.garbage, corrupt.remove))
        path = self.rng.choice(corrupt.store_files(self.mount.store, "journal-"))
        kind(path, self.rng.random())
        self.counts[f"journals damaged by {kind.__name__}"] += 1

    def verify_damaged(self):
        """What was settled is intact, or all is gone. Of what the journal told of, each value is one that was written, or a miss."""
        wrong = []
        if os.path.isdir(self.settled.folder(self.mount.mnt)):
            wrong = [text for text in [verify(self.settled, self.mount.mnt)] if text]
        else:  # what is lost of the journal could not be known: nothing older is shown, so nothing is
            self.counts["emptied for damage"] += 1
            self.settled = self.settle()
        for client in self.clients:
            folder = client.folder(self.mount.mnt)
            for path, found in scan(folder, damaged=True).items() if os.path.isdir(folder) else ():
                if found.data and not client.is_own(found.data):
                    wrong.append(f"client {client.number}: {path}: {len(found.data)} bytes {found.data[:32]!r}: nobody wrote that")
            shutil.rmtree(folder, ignore_errors=True)
        numbers = [client.number + 10 for client in self.clients]
        self.clients = [Client(number % 1000 + 100, 0.3) for number in numbers]
        for client in self.clients:
            shutil.rmtree(client.folder(self.mount.mnt), ignore_errors=True)
            prepare(client, self.mount.mnt)
        return wrong


def campaign_run(args, mode, seed, base):
    """The rounds of one mode; None, or what was wrong."""
    work = os.path.join(base, mode)
    os.mkdir(work)
    site = Site(work, os.path.abspath(args.build_dir), False, {})
    wrong, began = ["it did not run"], time.monotonic()
    counts = collections.Counter()
    try:
        with OfferUring(mode):
            campaign = Campaign(site, mode, seed, args.clients)
            counts = campaign.counts
            wrong = []
            while not wrong and counts["rounds"] < args.rounds and (not args.until or time.time() < args.until):
                wrong = campaign.round()
    finally:
        failed = bool(wrong)
        wrong = wrong + site.finish(failed)
        seconds = time.monotonic() - began
        print(f"{mode}: seed {seed}, {seconds:.0f} s, {60 * counts['rounds'] / seconds:.0f} rounds/min: "
              + ", ".join(f"{value} {name}" for name, value in sorted(counts.items())), flush=True)
    for text in wrong:
        print(f"WRONG: {text}", flush=True)
    if not wrong:
        shutil.rmtree(work)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default="build")
    parser.add_argument("--rounds", type=int, default=200, help="per mode")
    parser.add_argument("--repeat", type=int, default=1, help="the whole of it, each on a fresh store")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--mode", default="plain,quota", help="comma-separated, or all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--dir", default=None, help="where stores are kept (default: the temporary directory)")
    parser.add_argument("--minutes", type=float, default=0, help="end each mode after its share of this")
    args = parser.parse_args()
    modes = list(MODES) if args.mode == "all" else args.mode.split(",")
    base = tempfile.mkdtemp(prefix="larder-kill9-", dir=args.dir)
    os.chmod(base, 0o755)
    wrong = []
    for turn in range(args.repeat):
        for mode in modes:
            args.until = time.time() + 60 * args.minutes / len(modes) / args.repeat if args.minutes else 0
            wrong = campaign_run(args, mode, args.seed + turn, base)
            if wrong:
                print(f"again: {sys.argv[0]} --build-dir {args.build_dir} --mode {mode} --seed {args.seed + turn} "
                      f"--rounds {args.rounds} --clients {args.clients} --repeat 20\nkept: {base}")
                break
        if wrong:
            break
    left = sweep(base)
    for text in left:
        print(f"WRONG: left behind: {text}")
    if wrong or left:
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
