#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The golden stores: one per format version, made by the larder that wrote that version and never changed again.

    tests/format/golden.py --build-dir build        makes tests/format/golden/version-N.tar.xz of the current version

A store holds everything the format has (contents() below), half in a checkpoint, half in a journal after it.
"""

import argparse
import os
import shutil
import stat
import struct
import sys
import tarfile
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))

from harness import sysx  # noqa: E402
from harness.values import put, random_bytes, text_bytes  # noqa: E402

FILES = {"first/small": random_bytes(500, 1), "first/text": text_bytes(20_000, 2), "first/big": random_bytes(300_000, 3),
         "first/packed": text_bytes(600_000, 4), "first/empty": b"", "second/small": random_bytes(700, 5),
         "second/text": text_bytes(9_000, 6), "second/packed": text_bytes(400_000, 7)}


def fill(top, part):
    """Makes one half: what begins with `part`."""
    os.makedirs(os.path.join(top, part, "directory"))
    for name, data in FILES.items():
        if name.startswith(part):
            put(os.path.join(top, name), data)
    os.link(os.path.join(top, part, "small"), os.path.join(top, part, "directory", "hard link"))
    os.symlink("../target", os.path.join(top, part, "link"))
    os.mkfifo(os.path.join(top, part, "fifo"))
    os.chmod(os.path.join(top, part, "fifo"), 0o620)
    os.mknod(os.path.join(top, part, "device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(os.path.join(top, part, "text"), "user.name", random_bytes(5000, 8))
    os.setxattr(os.path.join(top, part, "text"), "user.larder.ttl", b"none")
    os.setxattr(os.path.join(top, part, "small"), "user.larder.pin", b"on")
    os.setxattr(os.path.join(top, part), "user.larder.compress", b"lz4")
    os.setxattr(os.path.join(top, part), "user.larder.idle", b"5000w")
    os.chown(os.path.join(top, part, "text"), 1234, 5678)
    os.chmod(os.path.join(top, part, "text"), 0o640)
    put(os.path.join(top, part, "removed"), b"removed")
    os.unlink(os.path.join(top, part, "removed"))
    sysx.utimensat(os.path.join(top, part, "text"), (1_000_000_000, 1), (1_500_000_000, 123456789))


def differences(top):
    """What of both halves is not as fill() left it, as texts."""
    wrong = []

    def want(what, found, wanted):
        if found != wanted:
            wrong.append(f"{what}: {found!r:.80} instead of {wanted!r:.80}")
    for name, data in FILES.items():
        with open(os.path.join(top, name), "rb") as f:
            want(name, f.read(), data)
    for part in ("first", "second"):
        def path(*names):
            return os.path.join(top, part, *names)
        want(f"{part} hard link", os.stat(path("small")).st_ino, os.stat(path("directory", "hard link")).st_ino)
        want(f"{part} link", os.readlink(path("link")), "../target")
        want(f"{part} fifo", os.stat(path("fifo")).st_mode, stat.S_IFIFO | 0o620)
        want(f"{part} device", os.stat(path("device")).st_rdev, os.makedev(1, 3))
        want(f"{part} xattr", os.getxattr(path("text"), "user.name"), random_bytes(5000, 8))
        want(f"{part} ttl", os.getxattr(path("text"), "user.larder.ttl"), b"none")
        want(f"{part} pin", os.getxattr(path("small"), "user.larder.pin"), b"on")
        want(f"{part} compress", os.getxattr(path(), "user.larder.compress"), b"lz4")
        want(f"{part} idle", os.getxattr(path(), "user.larder.idle"), b"5000w")
        st = os.stat(path("text"))
        want(f"{part} owner", (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)), (1234, 5678, 0o640))
        want(f"{part} mtime", st.st_mtime_ns, 1_500_000_000_123_456_789)
        want(f"{part} removed", os.path.exists(path("removed")), False)
    return wrong


def main():
    from harness.mount import Site, sweep
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", default="build")
    args = parser.parse_args()
    base = tempfile.mkdtemp(prefix="larder-golden-")
    os.chmod(base, 0o755)
    os.mkdir(os.path.join(base, "work"))
    site = Site(os.path.join(base, "work"), os.path.abspath(args.build_dir))
    problems = ["it did not run"]
    try:
        m = site.mount(quota="64M")
        fill(m.mnt, "first")
        m.restart("stop")
        fill(m.mnt, "second")
        m.kill()
    finally:
        problems = site.finish() + sweep(base)
    with open(os.path.join(m.store, "FORMAT"), "rb") as f:
        version = struct.unpack_from("<I", f.read(), 8)[0]
    target = os.path.join(HERE, "golden", f"version-{version}.tar.xz")
    if problems or os.path.exists(target):
        print(problems or f"{target} is there already; a golden store is never made anew")
        return 1
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with tarfile.open(target, "w:xz") as archive:
        for name in sorted(os.listdir(m.store)):
            if name != "LOCK":
                archive.add(os.path.join(m.store, name), name)
    shutil.rmtree(base)
    print(f"made {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
