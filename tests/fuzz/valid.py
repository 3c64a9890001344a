"""Valid things that inputs are bent from: caches, runs, a checkpoint. Each is made once in a process."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import toy_cache

import fastltssl

SMALL = {"n1": 4, "m1": 4, "steps": 2, "evals": 1, "seeds": "0-1", "val": 1}  # an experiment that takes a moment


@cache
def root() -> Path:
    """A folder in that of the fuzzer, which is removed when it ends."""
    return Path(tempfile.mkdtemp(prefix="valid-"))


@cache
def toy() -> Path:
    """A cache of imported features: 6 classes of 12 training and 9 test rows, text, emulated views."""
    return toy_cache.write(root() / "toy.zarr", per_class=12).path


@cache
def world() -> Path:
    """A cache of the embedded world: 2 training images and a test image of each of its 40 classes, three views."""
    fastltssl.extract(model="tiny", dataset="world:mild:2:1", views="center,weak:1,strong:1", templates="world",
                      out=root() / "world.zarr")  # fmt: skip
    return root() / "world.zarr"


@cache
def run(method: str = "fixmatch") -> Path:
    """A finished run of a method from the toy cache, or, as "live", of a probe through the encoder."""
    if method == "live":
        options = {"n1": 1, "steps": 2, "evals": 1, "batch": 4, "live": "bitfit"}
        return Path(fastltssl.train("probe", world(), out=root() / "live", **options)["run"])
    return Path(fastltssl.train(method, toy(), out=root() / method, **SMALL)["run"])


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder."""
    return Path(shutil.copytree(source, target))


def files(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
