"""The data set as the rest of the package sees it: groups of images behind a small protocol, whole or limited."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fastltssl.errors import SourceError, first_few
from fastltssl.reading import is_utf8, short

SPELLINGS = {  # of the groups, as folders, splits and columns name them in any case; the first that exists is taken
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
EXIF = ("ignore", "apply")
MOST_CLASSES, LONGEST_NAME = 100_000, 1000  # classes of a data set, and characters of a class name


@runtime_checkable
class Images(Protocol):
    """One group (train, test, unlabeled) of a data set; opening it reads labels, not pixels."""

    @property
    def ids(self) -> tuple[str, ...]: ...  # stable, unique within the group: "train/cat/0001.png", "train/000123"
    @property
    def labels(self) -> np.ndarray: ...  # int64 [N], -1 = no label
    def read(
        self, rows: Sequence[int] | np.ndarray
    ) -> list[np.ndarray]: ...  # uint8 RGB [h, w, 3] each, in the order asked


@dataclass(frozen=True, eq=False)
class Orientation:
    """What is done with the EXIF orientation of images, and the ids of those read so far that have one besides 1."""

    exif: str = "ignore"  # or "apply": the image is turned upright
    carriers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.exif not in EXIF:
            raise SourceError(f"--exif {short(self.exif)} is not one of {', '.join(EXIF)}")


class Source(NamedTuple):
    """An opened data set."""

    name: str  # as the user typed it
    classes: tuple[str, ...]  # human-readable, in label order
    groups: dict[str, Images]  # "train", and maybe "test" and "unlabeled"
    fingerprint: str  # SHA-256 over classes, ids and labels, and what else tells that images changed, as file sizes
    notes: tuple[str, ...] = ()  # what the user should know: files that were left out, classes without images
    orientation: Orientation | None = None  # of image files; None where images come without EXIF


def sealed(
    name: str,
    classes: tuple[str, ...],
    groups: dict[str, Images],
    *marks: str,
    notes: Sequence[str] = (),
    orientation: Orientation | None = None,
) -> Source:
    """The source of a user's data, with `marks` of the pixels in its fingerprint.

    Raises SourceError on a class name that is empty or stands for two classes, and on an id that is no plain text or
    stands for two images. Notes tell the classes that have no image, and names that only differ in case or spaces.
    """
    if wrong := next((text for text in (name, *classes) if not _is_text(text)), None):
        raise SourceError(f"the name {short(wrong)} is not UTF-8 or holds a newline. Rename the file, folder or class")
    if "" in {text.strip() for text in classes}:
        raise SourceError(f"class {[text.strip() for text in classes].index('')} of {name} has an empty name. Name it")
    if longest := next((text for text in classes if len(text) > LONGEST_NAME), None):
        raise SourceError(f"class name {short(longest)} of {name} is too long: {LONGEST_NAME} characters at most")
    if twice := repeated(classes):
        raise SourceError(f"two classes of {name} are called {short(twice)}, '_' read as a space. Rename one of them")
    for group, images in groups.items():
        check_ids(images.ids, f"group {group} of {name}")
    told = (*notes, *_alike(classes), *_without_images(classes, groups))
    return Source(name, classes, groups, fingerprint(classes, groups, *marks), tuple(map(_utf8, told)), orientation)


def check_ids(ids: Sequence[str], where: str) -> None:
    """Raise SourceError on an id that is not unique, or that no cache can hold."""
    if not _is_text("".join(ids)):
        wrong = next(text for text in ids if not _is_text(text))
        raise SourceError(f"{where}: the name {short(wrong)} is not UTF-8 or holds a newline. Rename the file")
    if (twice := repeated(ids)) is not None:
        raise SourceError(f"{where}: two images have the id {short(twice)}. Ids must be unique: rename one, or drop it")


def repeated(names: Sequence[str]) -> str | None:
    """The first name that was there before; None where all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _utf8(note: str) -> str:
    """A note in which bytes of file names that are no UTF-8 are escaped, so that it can be printed."""
    return note.encode(errors="backslashreplace").decode()


def _is_text(text: str) -> bool:
    """Whether a name is UTF-8 in one line."""
    return is_utf8(text) and "\n" not in text and "\0" not in text


def _alike(classes: Sequence[str]) -> list[str]:
    """A note on two class names that tokenizers of CLIP read alike, so that their text features are equal."""
    first: dict[str, str] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").casefold().split())
        if plain in first:
            return [
                f"classes {short(first[plain])} and {short(name)} differ in case, '_' or spaces only: their prompts "
                "read alike, so zero-shot scores cannot tell them apart"
            ]
        first[plain] = name
    return []


def _without_images(classes: Sequence[str], groups: dict[str, Images]) -> list[str]:
    """Notes on the classes that have no image in train or in test."""
    notes = []
    for group, use in (("train", "Training needs images of every class"), ("test", "Its averages leave them out")):
        labels = groups[group].labels if group in groups else np.arange(len(classes))
        empty = np.setdiff1d(np.arange(len(classes)), labels)
        if len(empty):
            names = [f"{k}" if classes[k] == f"{k}" else f"{k} ({short(classes[k])})" for k in empty[:5].tolist()]
            least = labels[labels >= 0].min(initial=len(classes))
            start = f". Labels run from {least}, and classes are numbered from 0" if empty[0] == 0 else ""
            notes.append(
                f"{group} has no image of {len(empty):,} of {len(classes):,} classes: {first_few(names, len(empty))}. "
                f"{use}{start}"
            )
    return notes


def counts(parts: Counter[str]) -> str:
    """What was counted, for a message, the most frequent first: ".heic (3), .txt (1)"."""
    return first_few(
        [f"{name} ({count:,})" for name, count in sorted(parts.items(), key=lambda part: (-part[1], part[0]))]
    )


def group_of(name: str) -> str | None:
    """The group that a folder, a split or a column of this name stands for, in any case."""
    return next((group for group, names in SPELLINGS.items() if name.casefold() in names), None)


def chosen(names: Iterable[str]) -> dict[str, str]:
    """For each group the name among these that stands for it: the first of its SPELLINGS, lower case before others."""
    of_groups: dict[str, list[str]] = {group: [] for group in SPELLINGS}
    for name in names:
        if group := group_of(name):
            of_groups[group].append(name)

    def rank(name: str) -> Any:
        spelt = name.casefold()
        return next(group.index(spelt) for group in SPELLINGS.values() if spelt in group), name != spelt, name

    return {group: min(spelt, key=rank) for group, spelt in of_groups.items() if spelt}


def place(text: str) -> Path:
    """The path that a user typed: a file of this very name, or else one below the home folder that ~ stands for."""
    return Path(text if os.path.exists(text) else os.path.expanduser(text))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of a group."""

    ids: tuple[str, ...]
    labels: np.ndarray
    images: Images
    rows: np.ndarray  # of `images`

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images by their place in the subset."""
        return self.images.read([int(self.rows[int(row)]) for row in rows])


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
    taken = 1 + np.diff(shared, prepend=0)
    parts = np.stack((starts, sizes, taken), axis=1).tolist()
    places = [start + _middles(size, count) for start, size, count in parts]
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
