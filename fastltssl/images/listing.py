"""Lists of image files: `list:FILE.csv` with the columns path, label and split, as for Semi-Aves and iNaturalist."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import FileImages
from fastltssl.images.source import Images, Source, fingerprint

SPLITS = ("train", "test", "val", "unlabeled")
FORM = "list:FILE.csv with a header path,label[,split]; split is train, test, val or unlabeled"


class _Row(NamedTuple):
    """A row of the list: its line in the file, the path and label as written ("" = none), the split."""

    number: int
    path: str
    label: str
    split: str


def open_list(dataset: str) -> Source:
    """The images that a CSV names, in its order; ids are the paths as written, relative to the folder of the file.

    A label is a class name, or a whole number whose name is that line of FILE.classes.txt; empty or -1 means none. A
    row without a split belongs to train, or, without a label, to unlabeled. Without a split test, val takes its place.
    """
    file = Path(dataset.removeprefix("list:")).expanduser()
    if dataset in ("list", "list:") or not file.is_file():
        raise SourceError(f"--dataset {dataset!r}: {file} is no file. Accepted: {FORM}")
    rows = _rows(file)
    classes = _classes(file, rows)
    groups: dict[str, Images] = {}
    sizes: list[str] = []
    splits = {row.split for row in rows}
    for group, split in (("train", "train"), ("test", "test" if "test" in splits else "val"), ("unlabeled",) * 2):
        if in_split := [row for row in rows if row.split == split]:
            paths = tuple(file.parent / row.path for row in in_split)
            sizes += _sizes(file, in_split, paths)
            labels = np.array([_label(file, row, classes) for row in in_split], np.int64)
            groups[group] = FileImages(tuple(row.path for row in in_split), labels, paths)
    if "train" not in groups:
        raise SourceError(f"{file} has no row of the split train. Accepted: {FORM}")
    for group, images in groups.items():
        if len(set(images.ids)) < len(images.ids):
            twice = next(path for place, path in enumerate(images.ids) if path in images.ids[:place])
            raise SourceError(f"{file} names {twice!r} twice in {group}. Ids must be unique")
    return Source(dataset, classes, groups, fingerprint(classes, groups, " ".join(sizes)))


def _rows(file: Path) -> list[_Row]:
    """The rows of the list. Raises SourceError on columns or splits that are not accepted."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if missing := [name for name in ("path", "label") if name not in columns]:
            raise SourceError(
                f"{file} has no column {missing[0]!r}, only {', '.join(columns) or 'none'}. Accepted: {FORM}"
            )
        rows = []
        for line in reader:
            label = (line["label"] or "").strip()
            label = "" if label == "-1" else label
            split = (line.get("split") or "").strip() or ("train" if label else "unlabeled")
            if split not in SPLITS:
                raise SourceError(f"{file}, line {reader.line_num}: split {split!r} is not one of {', '.join(SPLITS)}")
            rows.append(_Row(reader.line_num, line["path"] or "", label, split))
    if not rows:
        raise SourceError(f"{file} has a header and no rows. Accepted: {FORM}")
    return rows


def _classes(file: Path, rows: Sequence[_Row]) -> tuple[str, ...]:
    """Class names in label order: those of FILE.classes.txt, or else the labels, sorted, or 0 to the largest."""
    names = file.with_suffix(".classes.txt")
    if names.is_file():
        return tuple(line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip())
    labels = {row.label for row in rows if row.label}
    if labels and all(label.isdecimal() for label in labels):
        return tuple(str(label) for label in range(max(map(int, labels)) + 1))
    return tuple(sorted(labels))


def _label(file: Path, row: _Row, classes: tuple[str, ...]) -> int:
    """The number of a row's class, -1 for none. Raises SourceError."""
    if not row.label:
        if row.split != "unlabeled":
            raise SourceError(f"{file}, line {row.number}: no label, but the split is {row.split}. Use split unlabeled")
        return -1
    if row.label in classes:
        return classes.index(row.label)
    if row.label.isdecimal() and int(row.label) < len(classes):
        return int(row.label)
    raise SourceError(f"{file}, line {row.number}: label {row.label!r} is none of the {len(classes)} classes")


def _sizes(file: Path, rows: Sequence[_Row], paths: Sequence[Path]) -> list[str]:
    """Sizes of the files in bytes, for the fingerprint."""
    absent = [row for row, path in zip(rows, paths, strict=True) if not path.is_file()]
    if absent:
        raise SourceError(
            f"{file}, line {absent[0].number}: no file {absent[0].path!r} ({len(absent)} of them are absent)"
        )
    return [str(path.stat().st_size) for path in paths]
