# SPDX-License-Identifier: BSD-2-Clause
"""Goal: the shape of the tree that STYLE.md describes is kept by every commit.
Method: the check_*.py beside this file are run on the sources, and each is shown to find what it is for."""

import importlib.util
import os

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))


def checker(name):
    spec = importlib.util.spec_from_file_location(name, os.path.join(HERE, name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check


@pytest.mark.parametrize("name", ["check_layers", "check_function_length", "check_magics"])
def test_the_tree_passes(source_dir, name):
    assert checker(name)(source_dir) == []


@pytest.fixture
def tree(tmp_path):
    """An empty source tree: tree("core/x.c", text) adds a file."""
    for directory in ("core", "fs", "tools"):
        (tmp_path / directory).mkdir()

    def add(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path)
    return add


LAYERS = [
    ("core/tree.c", '#include "io.h"\n', None), ("core/io.c", '#include "tree.h"\n', "above it"),
    ("core/cache_evict.c", '#include "evict.h"\n', None), ("core/journal_replay.c", '#include "cache.h"\n', "above it"),
    ("core/tree.c", "#include <fuse_lowlevel.h>\n", "core includes"), ("core/tree.c", '#include "fs/ops.h"\n', "core includes"),
    ("core/mystery.c", "", "no layer"), ("fs/ops.c", '#include "core/larder.h"\n', None),
    ("fs/ops.c", '#include "core/tree.h"\n', "public"), ("tools/main.c", '#include "core/inspect.h"\n', None),
    ("tools/main.c", '#include "fs/ops.h"\n', "includes"),
]


@pytest.mark.parametrize("name, text, breach", LAYERS, ids=[f"{n} with {t.strip()}".replace("/", " ") for n, t, _ in LAYERS])
def test_layers(tree, name, text, breach):
    found = checker("check_layers")(tree(name, text))
    assert (found == []) if breach is None else (len(found) == 1 and breach in found[0])


def test_a_long_function_is_found(tree):
    def function(lines):
        return "static int work(void)\n{\n" + "    step();\n" * (lines - 3) + "}\n"
    assert checker("check_function_length")(tree("core/a.c", function(70))) == []
    found = checker("check_function_length")(tree("core/a.c", "int x;\n" + function(71)))
    assert len(found) == 1 and "a.c:2: work has 71 lines" in found[0]


def test_a_shared_magic_is_found(tree):
    tree("core/a.c", "#define ONE_MAGIC 0xabcdef01u\n")
    assert checker("check_magics")(tree("core/b.c", "#define TWO_MAGIC 0xabcdef02u\n")) == []
    assert len(checker("check_magics")(tree("fs/c.c", "#define THREE_MAGIC 0xABCDEF01u\n"))) == 1
