"""Data sets of images: the embedded world, folders, lists, tars and hubs, all read through one protocol (source.py)."""

import os
import pkgutil
from pathlib import Path

from fastltssl.errors import SourceError, did_you_mean
from fastltssl.images.source import Source, limited
from fastltssl.reading import short

DEFAULT_ROOT = Path("datasets")

# Mean and standard deviation of each channel over the training images, as published LTSSL code normalises by.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet127": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

OPENERS = {  # by the word before the first colon; imported when such a data set is opened
    "world": "fastltssl.images.world.world:open_world",
    "folder": "fastltssl.images.folder:open_folder",
    "list": "fastltssl.images.listing:open_list",
    "wds": "fastltssl.images.tars:open_tars",
    "hf": "fastltssl.images.hub:open_hub",
    "imagenet": "fastltssl.images.imagenet:open_imagenet",
    "imagenet127": "fastltssl.images.imagenet:open_imagenet127",
}
WITH_ROOT = ("imagenet", "imagenet127")  # their files are below --root
FORMS = (
    "world", "world:STYLE:TRAIN:TEST:UNLABELED", "folder:PATH", "list:FILE.csv", "wds:PATTERN", "hf:NAME", "imagenet",
    "imagenet127",
)  # fmt: skip


def open_source(dataset: str, root: Path | None = None, limit: int | None = None, exif: str = "ignore") -> Source:
    """The data set of that name. `root` is the folder of downloaded data sets, `limit` a number of images per group.

    With `exif` "apply" image files that carry an EXIF orientation are turned upright. A limited group takes its rows
    evenly from every class, at least one of each where the limit allows, and keeps its order. Raises SourceError.
    """
    if limit is not None and limit < 1:
        raise SourceError(f"--limit {limit} leaves no image. Give 1 or more, or leave --limit out")
    if "\0" in dataset:
        raise SourceError(f"--dataset {short(dataset)} is unknown, as no name of a file holds a zero byte")
    kind, root = dataset.split(":")[0], root or DEFAULT_ROOT
    if kind in OPENERS:
        opener = pkgutil.resolve_name(OPENERS[kind])
        options = ({"root": root} if kind in WITH_ROOT else {}) | ({} if kind == "world" else {"exif": exif})
        source = opener(dataset, **options)
    else:
        source = _open_torchvision(dataset, root, exif)
    return source if limit is None else limited(source, limit)


def statistics(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of a data set; raises SourceError where they are not known."""
    if dataset not in STATISTICS:
        known = ", ".join(STATISTICS)
        raise SourceError(f"--normalise dataset: no statistics of {dataset!r} are known, only of {known}. Use model")
    return STATISTICS[dataset]


def _open_torchvision(dataset: str, root: Path, exif: str) -> Source:
    from fastltssl.images.torchvision_sets import SETS, open_torchvision

    if dataset in SETS:
        return open_torchvision(dataset, root, exif)
    if os.path.isdir(dataset):
        hint = f" For a folder of images: --dataset folder:{dataset}."
    else:
        hint = did_you_mean(dataset.split(":")[0], [*OPENERS, *SETS])
    known = ", ".join([*FORMS, *SETS])
    raise SourceError(f"--dataset {short(dataset)} is unknown.{hint} Accepted: {known}")
