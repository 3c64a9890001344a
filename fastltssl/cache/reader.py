"""Reads the features of a cache into memory: every chunk is checked, on a few threads, without Zarr."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c
from jaxtyping import Float16, Int

from fastltssl.cache.manifest import damaged, read_manifest, told
from fastltssl.errors import CacheError
from fastltssl.machine import SPARE, available_memory

PART_BYTES = 256 * 2**20  # that stream_features holds at once, all views together


class Group(NamedTuple):
    """One group of an opened cache; its features stay on disk until they are read."""

    path: Path
    name: str
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    views: tuple[str, ...]
    shape: tuple[int, int, int]  # N, V, D
    chunk_rows: int  # rows of a chunk
    digests: dict[str, str]  # file of each chunk -> its crc32c, as the manifest said when the cache was opened
    broken: tuple[int, ...] = ()  # stored rows whose image could not be read; ids, labels and shape are without them
    taps: tuple[str, ...] = ()  # further arrays of that shape

    @property
    def stored(self) -> int:
        """Rows on disk, the broken ones included."""
        return self.shape[0] + len(self.broken)


def read_features(
    group: Group, views: Sequence[str] | None = None, array: str = "features"
) -> Float16[np.ndarray, "N V D"]:
    """Features, or a tap, of the given views (all by default).

    In memory as on disk the views lie one after the other, so the array is not C-contiguous for V > 1. Where it does
    not fit into free memory, it is mapped to a temporary file beside the cache.
    """
    read, names = reader(group, views, array)
    features = _empty((len(names), group.stored, group.shape[2]), group.path.parent.parent)
    read(0, group.stored, features)
    if group.broken:
        kept = np.setdiff1d(np.arange(group.stored), group.broken)
        for view in features:
            view[: len(kept)] = view[kept]
        features = features[:, : len(kept)]
    return features.transpose(1, 0, 2)


def stream_features(
    group: Group, views: Sequence[str] | None = None, part_bytes: int = PART_BYTES
) -> Iterator[Float16[np.ndarray, "n V D"]]:
    """The same rows in parts of about that size, in order; the next part is read while the caller has the last one."""
    read, names = reader(group, views, "features")
    rows, width = group.chunk_rows, group.shape[2]
    step = max(1, part_bytes // (2 * width * len(names) * rows)) * rows

    def part(start: int) -> Float16[np.ndarray, "n V D"]:
        stop = min(start + step, group.stored)
        features = np.empty((len(names), stop - start, width), "<f2")
        read(start, stop, features)
        broken = [row - start for row in group.broken if start <= row < stop]
        return np.delete(features, broken, axis=1).transpose(1, 0, 2)

    with ThreadPoolExecutor(1) as ahead:
        due = ahead.submit(part, 0)
        for start in range(step, group.stored + step, step):
            features, due = due.result(), ahead.submit(part, start) if start < group.stored else due
            yield features


def reader(
    group: Group, views: Sequence[str] | None, array: str
) -> tuple[Callable[[int, int, Float16[np.ndarray, "V n D"]], None], tuple[str, ...]]:
    """A function that reads the stored rows start to stop into an array, and the views it reads, in order.

    `start` must be the first row of a chunk.
    """
    names, width = group.views if views is None else tuple(views), group.shape[2]
    if missing := [name for name in names if name not in group.views]:
        raise CacheError(f"{group.path} has no view {missing[0]!r}, only {', '.join(group.views)}")
    if array not in ("features", *group.taps):
        raise CacheError(
            f"{group.path.parent} has no {array!r}, only {', '.join(('features', *group.taps))}. "
            "Taps are made by: fastltssl extract --taps mid"
        )
    path, rows = group.path.parent, group.chunk_rows

    def changed(what: str) -> CacheError:
        """The error of a chunk that is not as it was on opening: its cache was replaced, or is damaged."""
        now = {file: digest for line in read_manifest(path).blocks for file, digest in line["files"].items()}
        if any(now.get(file) != digest for file, digest in group.digests.items()):
            return CacheError(
                f"{path} was replaced, removed or is being written anew since it was opened, so its features are no "
                f"longer those ({what}). Run this again once the cache is complete"
            )
        return damaged(path, what)

    def read_chunk(part: Float16[np.ndarray, "n D"], name: str) -> None:
        chunk = part if len(part) == rows else np.empty((rows, width), "<f2")  # the last chunk is stored padded
        size = count = 0
        with told(path, f"{name} cannot be read"):
            if (path / name).is_file():
                with open(path / name, "rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size
                    count = file.readinto(chunk.data) if size == chunk.nbytes else 0
        if count != chunk.nbytes:
            raise changed(f"{name} has {size} bytes, not {chunk.nbytes}")
        raw = chunk.view()
        raw.flags.writeable = False  # crc32c accepts no writable array
        if f"{crc32c(raw):08x}" != group.digests[name]:
            raise changed(f"{name} does not match its checksum")
        if chunk is not part:
            part[:] = chunk[: len(part)]

    def read(start: int, stop: int, into: Float16[np.ndarray, "V n D"]) -> None:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            tasks = [
                pool.submit(
                    read_chunk,
                    into[place, first - start : min(first + rows, stop) - start],
                    f"{group.name}/{array}/c/{first // rows}/{group.views.index(name)}/0",
                )
                for place, name in enumerate(names)
                for first in range(start, stop, rows)
            ]
            for task in tasks:
                task.result()

    return read, names


def _empty(shape: tuple[int, int, int], folder: Path) -> Float16[np.ndarray, "V N D"]:
    """An array to be filled, in memory where it fits, else mapped to a temporary file in the folder."""
    size = 2 * int(np.prod(shape))
    if size <= SPARE * available_memory():
        return np.empty(shape, "<f2")
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, "<f2", "w+", shape=shape)
