"""The rules of tests/house.py: kept by the package, and broken by made files that break them."""

import subprocess
import sys
from pathlib import Path

import house
import pytest

import fastltssl

ROOT = Path(fastltssl.__file__).parent


def made(tmp_path, **files):
    """A package of files, named by their place with __ for a slash."""
    root = tmp_path / "fastltssl"
    for name, text in {"__init__": "", **files}.items():
        path = root / (name.replace("__", "/") if name != "__init__" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
    return root


def test_the_package_keeps_every_rule():
    assert house.broken(ROOT) == []


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"types": "from fastltssl.runs.config import Config", "runs__config": "Config = 1"},
            "types imports runs.config",
        ),
        (
            {"cache__a": "import fastltssl.cache.b", "cache__b": "import fastltssl.cache.a"},
            "circle of imports: cache.a",
        ),
        ({"methods__a": "from fastltssl.methods import b", "methods__b": ""}, "a method imports the root"),
        ({"runs__a": "from fastltssl.methods import b", "methods__b": ""}, "known by name in its own file only"),
        ({"live__a": "def f():\n    import click"}, "click, which is at home in commands/"),
        ({"training__a": "print(1)"}, "training.a prints"),
        ({"runs__a": "def f():\n" + "    pass\n" * 60}, "runs.a.f has 61 lines"),
        ({"runs__a": "where = 'fastltssl.cache.b:open'", "cache__b": "def close(): ..."}, "fastltssl.cache.b:open"),
        ({"elsewhere__a": ""}, "elsewhere.a stands in no layer"),
        ({f"runs__a{n}": "" for n in range(11)}, "runs/ holds 11 files"),
        ({f"a{n}": "" for n in range(8)}, "9 modules at the root"),
    ],
)
def test_a_rule_that_is_broken_is_named(tmp_path, files, line):
    assert any(line in told for told in house.broken(made(tmp_path, **files)))


def test_what_only_editors_read_is_no_import(tmp_path):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastltssl.runs import a"
    assert house.broken(made(tmp_path, types=text, runs__a="")) == []


def test_importing_the_package_and_the_command_line_loads_no_torch():
    code = "import sys, fastltssl, fastltssl.commands.cli; assert not {'torch', 'zarr', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
