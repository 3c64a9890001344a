"""Hugging Face data sets: `hf:NAME`, through the library `datasets`, an extra. Thin: it finds columns and groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.source import Images, Source, fingerprint

TESTS = ("test", "validation", "valid")  # the first that is there


@dataclass(frozen=True, eq=False)
class HubImages:
    """A split of a data set."""

    ids: tuple[str, ...]
    labels: np.ndarray
    split: Any
    column: str

    def read(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        return [np.array(self.split[int(row)][self.column].convert("RGB")) for row in rows]


def open_hub(dataset: str) -> Source:
    """A data set with a column of images and one of class labels; NAME may be a local folder that `datasets` reads."""
    try:
        import datasets
    except ImportError:
        raise SourceError('hf: needs the library datasets. Install it: pip install "fastltssl[data]"') from None
    name = dataset.removeprefix("hf:")
    try:
        splits = datasets.load_dataset(name)
    except Exception as reason:  # the library raises errors of many kinds
        raise SourceError(
            f"--dataset {dataset!r} could not be loaded ({' '.join(str(reason).split())[:200]})"
        ) from reason
    return from_splits(dataset, splits)


def from_splits(dataset: str, splits: Any) -> Source:
    """The source of a DatasetDict."""
    if "train" not in splits:
        raise SourceError(f"--dataset {dataset!r} has no split train, only {', '.join(splits)}")
    features = splits["train"].features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images, labels = ([name for name, kind in kinds.items() if kind == wanted] for wanted in ("Image", "ClassLabel"))
    if not images or not labels:
        raise SourceError(f"--dataset {dataset!r}: needs a column Image and a column ClassLabel, has {kinds}")
    test = next((name for name in TESTS if name in splits), None)
    chosen = (
        {"train": "train"}
        | ({"test": test} if test else {})
        | ({"unlabeled": "unlabeled"} if "unlabeled" in splits else {})
    )
    groups: dict[str, Images] = {}
    for group, split in chosen.items():
        own = splits[split]
        ids = tuple(f"{split}/{row:07d}" for row in range(len(own)))
        groups[group] = HubImages(ids, np.array(own[labels[0]], np.int64), own, images[0])
    classes = tuple(name.replace("_", " ") for name in features[labels[0]].names)
    marks = [getattr(splits[split], "_fingerprint", "") for split in chosen.values()]
    return Source(dataset, classes, groups, fingerprint(classes, groups, *marks))
