#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""No function is longer than 70 lines, from the line of its name to its closing brace.

Works on the layout clang-format keeps: a function's opening brace and its closing brace stand alone in column 0.
"""

import os
import re
import sys

LINES_MAX = 70
DIRECTORIES = ("core", "fs", "tools", "tests/unit", "tests/support", "tests/fuzz", "tests/bench", "tests/diff")
NAME = re.compile(r"^[A-Za-z_][^=;#]*?\b([A-Za-z_]\w*)\(")


def functions(path):
    """(name, first line, number of lines) of each function."""
    with open(path) as f:
        lines = f.read().splitlines()
    name, start = None, 0
    for number, line in enumerate(lines, 1):
        match = NAME.match(line)
        if match:
            name, start = match.group(1), number
        elif line == "}" and name:
            yield name, start, number - start + 1
            name = None
        elif line.startswith("};"):
            name = None


def check(source):
    found = []
    for directory in DIRECTORIES:
        top = os.path.join(source, directory)
        if not os.path.isdir(top):
            continue
        for file in sorted(os.listdir(top)):
            if file.endswith((".c", ".h")):
                path = os.path.join(top, file)
                found += [f"{path}:{line}: {name} has {length} lines, {LINES_MAX} is the wall"
                          for name, line, length in functions(path) if length > LINES_MAX]
    return found


if __name__ == "__main__":
    breaches = check(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("\n".join(breaches))
    sys.exit(1 if breaches else 0)
