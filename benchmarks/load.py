"""M11: a cache read into memory, checksums included, over np.load of the same bytes; alternated pairs.

python benchmarks/load.py --rows 200000 --width 512
"""

import shutil
import statistics
import time
from pathlib import Path

import click
import numpy as np
import zarr

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.layout import GroupSpec
from fastltssl.cache.reader import read_features
from fastltssl.cache.writer import create
from fastltssl.show.terminal import grid, show


def make(folder: Path, rows: int, width: int) -> None:
    """A cache of one view of normal numbers, and the same features as features.npy."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, 1, width), np.float32).astype(np.float16)
    ids = tuple(f"{row:07d}" for row in range(rows))
    group = GroupSpec(ids, np.arange(rows) % 100, ("center",))
    with create(
        folder / "cache.zarr", provenance={}, classes=[str(k) for k in range(100)], groups={"train": group}, width=width
    ) as writer:
        for block in writer.pending():
            writer.commit(block, features[block.start : block.stop])
        writer.close()
    np.save(folder / "features.npy", features)


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--pairs", default=9, show_default=True)
@click.option("--folder", default="cache/load", show_default=True, type=click.Path(path_type=Path))
def main(rows: int, width: int, pairs: int, folder: Path) -> None:
    """Print GB/s of the three ways and the median ratio to np.load; the folder is removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder, rows, width)
    group = open_cache(folder / "cache.zarr").groups["train"]
    array = zarr.open_array(folder / "cache.zarr" / "train" / "features", mode="r")
    ways = {
        "fastltssl, checksums included": lambda: read_features(group),
        "np.load": lambda: np.load(folder / "features.npy"),
        "zarr array[:]": lambda: array[:],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            features = way()
            if pair:  # the first warms the page cache
                seconds[name].append(time.perf_counter() - began)
            del features
    gigabytes = rows * width * 2 / 1e9
    show(f"{rows:,} x {width}, {gigabytes:.2f} GB, from memory the system has cached")
    show(
        grid(["way", "GB/s"], [[name, f"{gigabytes / statistics.median(each):.2f}"] for name, each in seconds.items()])
    )
    ours, theirs = seconds["fastltssl, checksums included"], seconds["np.load"]
    show(f"median ratio to np.load: {statistics.median(b / a for a, b in zip(ours, theirs, strict=True)):.2f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
