"""The data set as the rest of the package sees it: groups of images behind a small protocol, whole or limited."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Images(Protocol):
    """One group (train, test, unlabeled) of a data set; opening it reads labels, not pixels."""

    @property
    def ids(self) -> tuple[str, ...]: ...  # stable, unique within the group: "train/cat/0001.png", "train/000123"
    @property
    def labels(self) -> np.ndarray: ...  # int64 [N], -1 = no label
    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]: ...  # uint8 RGB [h, w, 3], in that order


class Source(NamedTuple):
    """An opened data set."""

    name: str  # as the user typed it
    classes: tuple[str, ...]  # human-readable, in label order
    groups: dict[str, Images]  # "train", and maybe "test" and "unlabeled"
    fingerprint: str  # SHA-256 over classes, ids and labels, and what else tells that images changed, as file sizes


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of a group."""

    ids: tuple[str, ...]
    labels: np.ndarray
    images: Images
    rows: np.ndarray  # of `images`

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images by their place in the subset."""
        return self.images.read([int(self.rows[row]) for row in rows])


def limited(source: Source, limit: int) -> Source:
    """The source with at most `limit` images in each group; a source no larger than that stays as it is."""
    if all(len(images.ids) <= limit for images in source.groups.values()):
        return source
    groups: dict[str, Images] = {}
    for name, images in source.groups.items():
        rows = evenly_spaced(images.labels, limit)
        groups[name] = Subset(tuple(images.ids[row] for row in rows), images.labels[rows], images, rows)
    return source._replace(groups=groups, fingerprint=fingerprint(source.classes, groups, source.fingerprint))


def evenly_spaced(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows, ascending, from each class in proportion to its size but at least one, evenly spaced."""
    if limit >= len(labels):
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    if limit < len(sizes):
        return np.sort(by_class[_middles(len(labels), limit)])
    # After one row of each class the rest of the limit is shared out; cumulative sums are rounded, so that it adds up.
    shared = np.cumsum(sizes - 1) * (limit - len(sizes)) // max(1, len(labels) - len(sizes))
    counts = 1 + np.diff(shared, prepend=0)
    places = [start + _middles(int(size), int(count)) for start, size, count in zip(starts, sizes, counts, strict=True)]
    return np.sort(by_class[np.concatenate(places)])


def _middles(size: int, count: int) -> np.ndarray:
    """`count` evenly spaced positions of `size`: the middle of each of `count` equal intervals."""
    return (2 * np.arange(count) + 1) * size // (2 * count)


def fingerprint(classes: Sequence[str], groups: dict[str, Images], *marks: str) -> str:
    """SHA-256 in hex over the class names, the name, ids and labels of each group, and `marks` of the pixels."""
    digest = hashlib.sha256()
    parts = ["\0".join(classes).encode(), *(mark.encode() for mark in marks)]
    for name, images in groups.items():
        labels = np.ascontiguousarray(images.labels, dtype="<i8").tobytes()
        parts += [name.encode(), "\0".join(images.ids).encode(), labels]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
