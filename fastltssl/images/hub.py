"""Hugging Face data sets, `hf:NAME`, read by the optional library `datasets`; columns and groups are found here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.source import Images, Source, fingerprint

TESTS = ("test", "validation", "valid")  # names of the test split; the first that exists is used


@dataclass(frozen=True, eq=False)
class HubImages:
    """The images of one split."""

    ids: tuple[str, ...]
    labels: np.ndarray
    split: Any
    column: str

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        return [np.array(self.split[int(row)][self.column].convert("RGB")) for row in rows]


def open_hub(dataset: str) -> Source:
    """A data set with a column of images and one of class labels; NAME may be a local folder. Raises SourceError."""
    try:
        import datasets
    except ImportError:
        raise SourceError('hf: needs the library datasets. Install it: pip install "fastltssl[data]"') from None
    name = dataset.removeprefix("hf:")
    try:
        splits = datasets.load_dataset(name)
    except Exception as reason:  # the library raises errors of many types
        raise SourceError(
            f"--dataset {dataset!r} could not be loaded ({' '.join(str(reason).split())[:200]})"
        ) from reason
    return from_splits(dataset, splits)


def from_splits(dataset: str, splits: Any) -> Source:
    """The source made of the splits of a DatasetDict."""
    if "train" not in splits:
        raise SourceError(f"--dataset {dataset!r} has no split train, only {', '.join(splits)}")
    features = splits["train"].features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images, labels = ([name for name in kinds if kinds[name] == kind] for kind in ("Image", "ClassLabel"))
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
        rows = splits[split]
        ids = tuple(f"{split}/{row:07d}" for row in range(len(rows)))
        groups[group] = HubImages(ids, np.array(rows[labels[0]], np.int64), rows, images[0])
    classes = tuple(name.replace("_", " ") for name in features[labels[0]].names)
    marks = [getattr(splits[split], "_fingerprint", "") for split in chosen.values()]
    return Source(dataset, classes, groups, fingerprint(classes, groups, *marks))
