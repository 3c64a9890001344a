"""Near-duplicates of test images among the training images: nearest neighbours by cosine, found by faiss."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.emulated import unit
from fastltssl.cache.reader import Group, read_features
from fastltssl.errors import CacheError
from fastltssl.machine import replacing

MOST_PRODUCTS = 2e13  # of test rows x training rows x width; about a minute on two cores
BATCH = 1024  # test rows searched at once
HEADER = b"test,group,row,cosine"  # of the list that is written


class Pair(NamedTuple):
    """A test image and the most similar image of another group."""

    test: str  # id
    group: str
    row: str  # id in that group
    cosine: float


def near_duplicates(cache: Cache, threshold: float) -> list[Pair] | None:
    """Pairs with a cosine of at least the threshold, most similar first; None where the search would take too long."""
    import faiss

    if "test" not in cache.groups:
        return []
    others = [group for name, group in cache.groups.items() if name != "test"]
    test = cache.groups["test"]
    if test.shape[0] * sum(group.shape[0] for group in others) * test.shape[2] > MOST_PRODUCTS:
        return None
    queries, pairs = _center(test), []
    for group in others:
        index = faiss.IndexFlatIP(test.shape[2])
        index.add(_center(group))
        for start in range(0, len(queries), BATCH):
            cosines, rows = index.search(queries[start : start + BATCH], 1)
            pairs += [
                Pair(test.ids[start + place], group.name, group.ids[row], float(cosine))
                for place, (cosine, row) in enumerate(zip(cosines[:, 0], rows[:, 0], strict=True))
                if cosine >= threshold
            ]
    return sorted(pairs, key=lambda pair: -pair.cosine)


def _center(group: Group) -> Float32[np.ndarray, "N D"]:
    """Features of the center view, scaled to unit norm."""
    return np.ascontiguousarray(unit(read_features(group, ["center"])[:, 0]))


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """Write the pairs as CSV. Raises WriteError, or CacheError where the file there is no such list."""
    if os.path.lexists(path) and not (path.is_file() and path.read_bytes().startswith(HEADER)):
        raise CacheError(f"{path} is there and is no list of near-duplicates; it is left alone. Move it away")
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Pair._fields, *pairs])
