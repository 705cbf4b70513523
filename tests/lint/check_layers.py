#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Includes may only point down: fs and tools -> the public headers of core; core -> lower core.

Inside core a module may include its own layer and those below it. A file belongs to the layer of its longest
matching name, so that cache_evict.c is the cache's and journal_replay.c the journal's. What is in no layer is an
error, so that a new module finds its place the day it is made.
"""

import os
import re
import sys

#: From the top down.
LAYERS = [
    ("larder", "inspect", "cache", "check"),
    ("evict", "expire", "policy"),
    ("tree", "node", "names", "content", "stage", "store", "journal", "checkpoint"),
    ("codec", "format"),
    ("io", "clock", "lock", "log", "util", "quota", "stats", "text", "slab", "arena", "bucket", "progress", "mountinfo"),
]

#: Includes against the order, each with its reason.
EXCEPTIONS = {
    ("format", "content"): "format.h packs the plain data `struct value` of content.h",
    ("policy", "cache"): "policy.c reads the mount's options in struct larder; its header is cache.h",
}

PUBLIC = {"larder", "inspect", "stats", "mountinfo"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def layer_of(name):
    """(index from the top, module) of a core file's stem, or None."""
    best = None
    for index, modules in enumerate(LAYERS):
        for module in modules:
            if (name == module or name.startswith(module + "_")) and (best is None or len(module) > len(best[1])):
                best = (index, module)
    return best


def includes(path):
    with open(path) as f:
        text = f.read()
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group(1), match.group(2)


def check_core(path, name):
    own = layer_of(name)
    if own is None:
        yield f"{path}:1: {name} is in no layer; add it to LAYERS in tests/lint/check_layers.py"
        return
    for line, kind, target in includes(path):
        if "fuse" in target:
            yield f"{path}:{line}: core includes {target}"
        if kind == "<":
            continue
        if target.startswith(("fs/", "tools/", "../")):
            yield f"{path}:{line}: core includes {target}"
            continue
        other = layer_of(os.path.splitext(os.path.basename(target))[0])
        if other is None:
            yield f"{path}:{line}: {target} is in no layer"
        elif other[0] < own[0] and other[1] != "larder" and (own[1], other[1]) not in EXCEPTIONS:
            yield f"{path}:{line}: {own[1]} includes {target}, which is above it"


def check_front(path, directory):
    for line, kind, target in includes(path):
        inside = target.split("/")
        if inside[0] == "core":
            if os.path.splitext(inside[-1])[0] not in PUBLIC:
                yield f"{path}:{line}: {directory}/ includes {target}; public are {', '.join(sorted(PUBLIC))}"
        elif inside[0] in ("fs", "tools") and inside[0] != directory:
            yield f"{path}:{line}: {directory}/ includes {target}"
        elif kind == '"' and "/" not in target and not os.path.exists(os.path.join(os.path.dirname(path), target)):
            yield f"{path}:{line}: {target} is not of {directory}/"


def check(source):
    """Every breach, as `file:line: text`."""
    found = []
    for directory in ("core", "fs", "tools"):
        top = os.path.join(source, directory)
        for name in sorted(os.listdir(top)):
            stem, extension = os.path.splitext(name)
            if extension not in (".c", ".h"):
                continue
            path = os.path.join(top, name)
            found += check_core(path, stem) if directory == "core" else check_front(path, directory)
    return found


if __name__ == "__main__":
    breaches = check(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("\n".join(breaches))
    sys.exit(1 if breaches else 0)
