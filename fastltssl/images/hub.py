"""Hugging Face data sets, `hf:NAME`, read by the optional library `datasets`; columns and groups are found here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import broken, pixels
from fastltssl.images.source import Images, Orientation, Source, chosen, counts, place, sealed
from fastltssl.reading import short


@dataclass(frozen=True, eq=False)
class HubImages:
    """The images of one split."""

    ids: tuple[str, ...]
    labels: np.ndarray
    split: Any
    column: str
    orientation: Orientation = field(default_factory=Orientation)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB. The library may have turned them upright itself."""
        return [self._decoded(int(row)) for row in rows]

    def _decoded(self, row: int) -> np.ndarray:
        try:
            return pixels(self.split[row][self.column], self.ids[row], self.orientation)
        except Exception as reason:  # the library raises errors of many types
            raise broken(self.ids[row], f"row {row} of its split", reason) from reason


def open_hub(dataset: str, exif: str = "ignore") -> Source:
    """A data set with a column of images and one of class labels; NAME may be a local folder. Raises SourceError."""
    try:
        import datasets
    except ImportError:
        raise SourceError('hf: needs the library datasets. Install it: pip install "fastltssl[data]"') from None
    name = dataset.removeprefix("hf:")
    try:
        splits = datasets.load_dataset(str(place(name)) if name.startswith("~") else name)
    except Exception as reason:  # the library raises errors of many types
        raise SourceError(
            f"--dataset {short(dataset)} could not be loaded ({' '.join(str(reason).split())[:200]})"
        ) from reason
    return from_splits(dataset, splits, exif)


def from_splits(dataset: str, splits: Any, exif: str = "ignore") -> Source:
    """The source made of the splits of a DatasetDict. Raises SourceError."""
    taken = chosen(splits)
    if "train" not in taken:
        raise SourceError(f"--dataset {short(dataset)} has no split train, only {', '.join(splits)}")
    features = splits[taken["train"]].features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images, labels = ([name for name in kinds if kinds[name] == kind] for kind in ("Image", "ClassLabel"))
    if not images or not labels:
        raise SourceError(f"--dataset {short(dataset)}: needs a column Image and a column ClassLabel, has {kinds}")
    orientation = Orientation(exif)
    groups: dict[str, Images] = {}
    for group, split in taken.items():
        rows = splits[split]
        own = rows.features.get(labels[0])
        if group != "unlabeled" and getattr(own, "names", None) != features[labels[0]].names:
            raise SourceError(
                f"--dataset {short(dataset)}: the classes of split {split} are not those of {taken['train']}"
            )
        ids = tuple(f"{split}/{row:07d}" for row in range(len(rows)))
        of_rows = rows[labels[0]] if own is not None else [-1] * len(rows)
        numbers = np.array([-1 if label is None else label for label in of_rows], np.int64)
        groups[group] = HubImages(ids, numbers, rows, images[0], orientation)
    classes = tuple(name.replace("_", " ") for name in features[labels[0]].names)
    marks = [getattr(splits[split], "_fingerprint", "") for split in taken.values()]
    left = Counter({name: len(splits[name]) for name in splits if name not in taken.values()})
    notes = [f"left out, as they are no group of a cache: splits {counts(left)}"] if left else []
    return sealed(dataset, classes, groups, *marks, notes=notes, orientation=orientation)
