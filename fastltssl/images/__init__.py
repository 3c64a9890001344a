"""Where images come from: the embedded world, folders, lists, tars, hubs, behind one small protocol."""

import difflib
import hashlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

DEFAULT_ROOT = Path("datasets")


# Mean and standard deviation of the training images per channel, as the LTSSL code bases normalise by.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet127": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class SourceError(ValueError):
    """A data set that is unknown, absent or damaged."""


class BrokenImage(SourceError):
    """An image that cannot be decoded."""


class Images(Protocol):
    """One group (split) of a data set; opening it reads labels, not pixels."""

    @property
    def ids(self) -> tuple[str, ...]: ...  # stable, unique within the group: "train/cat/0001.png", "train/000123"
    @property
    def labels(self) -> np.ndarray: ...  # int64 [N], -1 = no label
    def read(self, rows: Sequence[int]) -> list[np.ndarray]: ...  # uint8 RGB [h, w, 3] each, in the order asked


class Source(NamedTuple):
    """A data set ready to be read."""

    name: str  # what the user typed
    classes: tuple[str, ...]  # human-readable, in label order
    groups: dict[str, Images]  # "train", and "test" and "unlabeled" where there are such
    fingerprint: str  # SHA-256 over classes, ids and labels, and for folders the file sizes


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of a group, still read through it."""

    ids: tuple[str, ...]
    labels: np.ndarray
    images: Images
    rows: np.ndarray  # in the group

    def read(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Images at positions of the subset."""
        return self.images.read([int(self.rows[row]) for row in rows])


def open_source(dataset: str, root: Path | None = None, limit: int | None = None) -> Source:
    """The data set of that name; `root` is where torchvision keeps its files, `limit` a number of images per group.

    A limited group keeps its order and takes its rows evenly from every class, at least one where the limit allows it.
    """
    if limit is not None and limit < 1:
        raise SourceError(f"--limit {limit} leaves no image. Give 1 or more, or leave --limit out")
    kind = dataset.split(":")[0]
    source = OPENERS.get(kind, _open_torchvision)(dataset, root or DEFAULT_ROOT)
    return source if limit is None else limited(source, limit)


def statistics(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a named data set; raises SourceError where none are known."""
    if dataset not in STATISTICS:
        known = ", ".join(STATISTICS)
        raise SourceError(f"--normalise dataset: no statistics of {dataset!r} are known, only of {known}. Use model")
    return STATISTICS[dataset]


def _open_torchvision(dataset: str, root: Path) -> Source:
    from fastltssl.images.torchvision_sets import SETS, open_torchvision

    if dataset in SETS:
        return open_torchvision(dataset, root)
    if Path(dataset).is_dir():
        hint = f" For a folder of images: --dataset folder:{dataset}."
    else:
        hint = nearest(dataset.split(":")[0], [*OPENERS, *SETS])
    known = ", ".join([*FORMS, *SETS])
    raise SourceError(f"--dataset {dataset!r} is unknown.{hint} Accepted: {known}")


def _opener(module: str, function: str, takes_root: bool = False) -> Callable[[str, Path], Source]:
    """A function of a module below this one, imported when a data set of its kind is opened."""

    def opened(dataset: str, root: Path) -> Source:
        call = getattr(importlib.import_module(f"fastltssl.images.{module}"), function)
        return call(dataset, root) if takes_root else call(dataset)

    return opened


OPENERS: dict[str, Callable[[str, Path], Source]] = {  # by what stands before the first colon
    "world": _opener("world.world", "open_world"),
    "folder": _opener("folder", "open_folder"),
    "list": _opener("listing", "open_list"),
    "wds": _opener("tars", "open_tars"),
    "hf": _opener("hub", "open_hub"),
    "imagenet": _opener("imagenet", "open_imagenet", takes_root=True),
    "imagenet127": _opener("imagenet", "open_imagenet127", takes_root=True),
}
FORMS = (
    "world", "world:STYLE:TRAIN:TEST:UNLABELED", "folder:PATH", "list:FILE.csv", "wds:PATTERN", "hf:NAME", "imagenet",
    "imagenet127",
)  # fmt: skip


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
    """At most `limit` rows, ascending, spaced evenly over each class; each class gets one before any gets its share."""
    if limit >= len(labels):
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    if limit < len(sizes):
        return np.sort(by_class[_middles(len(labels), limit)])
    # Shares of what is left after one each, rounded so that they add up.
    upto = np.cumsum(sizes - 1) * (limit - len(sizes)) // max(1, len(labels) - len(sizes))
    takes = 1 + np.diff(upto, prepend=0)
    places = [start + _middles(size, take) for start, size, take in zip(starts, sizes, takes, strict=True)]
    return np.sort(by_class[np.concatenate(places)])


def _middles(size: int, count: int) -> np.ndarray:
    """The middle position of each of `count` equal stretches of `size` positions."""
    return (2 * np.arange(count) + 1) * size // (2 * count)


def fingerprint(classes: Sequence[str], groups: dict[str, Images], *marks: str) -> str:
    """SHA-256 in hex over the class names, each group's name, ids and labels, and whatever else tells pixels apart."""
    digest = hashlib.sha256()
    parts = ["\0".join(classes).encode(), *(mark.encode() for mark in marks)]
    for name, images in groups.items():
        labels = np.ascontiguousarray(images.labels, dtype="<i8").tobytes()
        parts += [name.encode(), "\0".join(images.ids).encode(), labels]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'cifar10'?", or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
