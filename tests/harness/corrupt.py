# SPDX-License-Identifier: BSD-2-Clause
"""Damage to the files of a store at rest, and the resealing that makes damage look whole."""

import os
import random
import struct

from harness.sysx import xxh3


def store_files(store, prefix):
    """Paths of the files whose name begins with prefix ("journal-", "index-", "seg-"), or the big files ("big")."""
    if prefix == "big":
        return sorted(os.path.join(top, name) for top, _, names in os.walk(os.path.join(store, "big"))
                      for name in names)
    return sorted(os.path.join(store, name) for name in os.listdir(store) if name.startswith(prefix))


def flip(path, seed, count=8):
    """Changes `count` bytes at random places."""
    rng = random.Random(seed)
    size = os.path.getsize(path)
    with open(path, "r+b") as f:
        for offset in rng.sample(range(size), min(count, size)):
            f.seek(offset)
            byte = f.read(1)[0]
            f.seek(offset)
            f.write(bytes([byte ^ rng.randrange(1, 256)]))


def cut(path, seed):
    """Cuts the file at a random place."""
    size = os.path.getsize(path)
    os.truncate(path, random.Random(seed).randrange(size) if size else 0)


def zero(path, seed):
    """Overwrites a random quarter of the file with zeros."""
    size = os.path.getsize(path)
    start = random.Random(seed).randrange(size) if size else 0
    with open(path, "r+b") as f:
        f.seek(start)
        f.write(bytes(min(size // 4 + 1, size - start)))


def empty(path, seed):
    """Leaves a file of no bytes."""
    os.truncate(path, 0)


def remove(path, seed):
    """Takes the file away."""
    os.unlink(path)


def garbage(path, seed):
    """Replaces all bytes with random ones."""
    size = os.path.getsize(path)
    with open(path, "r+b") as f:
        f.write(random.Random(seed).randbytes(size))


def reseal_header(path, offset, value):
    """Sets the u32 at offset of a 64-byte file header and makes its checksum right again."""
    with open(path, "r+b") as f:
        header = bytearray(f.read(64))
        struct.pack_into("<I", header, offset, value)
        struct.pack_into("<Q", header, 56, xxh3(header[:56]))
        f.seek(0)
        f.write(header)
