#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Every heap object's magic is its own: two of one value would make CHECK_OBJ pass for the wrong type."""

import os
import re
import sys

DEFINE = re.compile(r"^#\s*define\s+(\w+_MAGIC)\s+(0x[0-9a-fA-F]+|\"[^\"]*\")", re.MULTILINE)


def check(source):
    found, seen = [], {}
    for directory in ("core", "fs", "tools"):
        top = os.path.join(source, directory)
        for file in sorted(os.listdir(top)):
            if not file.endswith((".c", ".h")):
                continue
            path = os.path.join(top, file)
            with open(path) as f:
                text = f.read()
            for match in DEFINE.finditer(text):
                name, value = match.group(1), match.group(2).lower()
                line = text.count("\n", 0, match.start()) + 1
                if value in seen and seen[value] != name:
                    found.append(f"{path}:{line}: {name} has the value of {seen[value]}")
                seen[value] = name
    return found


if __name__ == "__main__":
    breaches = check(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("\n".join(breaches))
    sys.exit(1 if breaches else 0)
