# SPDX-License-Identifier: BSD-2-Clause
"""Values that tests write: reproducible from a seed, random or compressible, each telling where it came from."""

import os
import random

_WORDS = b"the quick brown fox jumps over the lazy dog while larder packs what it is given \n".split(b" ")


def random_bytes(size, seed=0):
    """Bytes that no codec makes smaller."""
    return random.Random(f"random {seed}").randbytes(size)


def text_bytes(size, seed=0):
    """Bytes that lz4 makes much smaller, without being one byte repeated."""
    rng = random.Random(f"text {seed}")
    block = b" ".join(rng.choices(_WORDS, k=1024))
    parts, made = [], 0
    while made < size:
        parts.append(b"%d " % rng.randrange(1000) + block)
        made += len(parts[-1])
    return b"".join(parts)[:size]


def mixed_bytes(size, seed=0):
    """Half text, half random, in pieces of a few KiB."""
    rng = random.Random(f"mixed {seed}")
    parts, made = [], 0
    while made < size:
        length = rng.randrange(1000, 9000)
        parts.append((text_bytes if rng.random() < 0.5 else random_bytes)(length, rng.randrange(1 << 30)))
        made += length
    return b"".join(parts)[:size]


def put(path, data):
    """open, write, close."""
    with open(path, "wb", buffering=0) as f:
        view = memoryview(data)
        while view:
            view = view[f.write(view):]


def get(path):
    with open(path, "rb", buffering=0) as f:
        return f.read()


def first_difference(left, right):
    """A short text for an assertion about long bytes; empty when they are equal."""
    if left == right:
        return ""
    if len(left) != len(right):
        return f"{len(left)} bytes instead of {len(right)}"
    for start in range(0, len(left), 4096):
        if left[start:start + 4096] != right[start:start + 4096]:
            at = next(i for i in range(start, start + 4096) if left[i] != right[i])
            return f"differs at {at}: {left[at:at + 8].hex()} instead of {right[at:at + 8].hex()}"
    return "differs"


def names(directory):
    """Names of a directory as bytes, sorted."""
    return sorted(os.listdir(os.fsencode(directory)))
