"""Lists of image files: `list:FILE.csv` with the columns path, label and split, as for Semi-Aves and iNaturalist.

The text files of other data sets, such as those of class names, are read here, too.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import FileImages, Mark, regular, same_files
from fastltssl.images.source import MOST_CLASSES, Images, Orientation, Source, group_of, place, repeated, sealed
from fastltssl.reading import short

FORM = "list:FILE.csv with a header path,label[,split]; split is train, test, val or unlabeled"
MARKS = (  # that a text may begin with, and the encodings they tell; that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
WAY_OUT = "Save it as UTF-8: iconv -f LATIN1 -t UTF-8 FILE, with the encoding it is in"


class _Row(NamedTuple):
    """A row of the list: its line in the file, the path and label as written ("" = none), the split."""

    number: int
    path: str
    label: str
    split: str


def open_list(dataset: str, exif: str = "ignore") -> Source:
    """The images that a CSV names, in its order; ids are the paths as written, relative to the folder of the file.

    A label is a class name, or a whole number whose name is that line of FILE.classes.txt; empty or -1 means none. A
    row without a split belongs to train, or, without a label, to unlabeled. Without a split test, val takes its place.
    Raises SourceError.
    """
    file = place(dataset.removeprefix("list:"))
    if dataset in ("list", "list:") or not os.path.isfile(file):
        raise SourceError(f"--dataset {short(dataset)}: {str(file)[:300]} is no file. Accepted: {FORM}")
    rows = _rows(file)
    classes, notes = _classes(file, rows)
    number_of = {name: number for number, name in enumerate(classes)}
    orientation = Orientation(exif)
    groups: dict[str, Images] = {}
    marks: dict[str, tuple[Mark, ...]] = {}
    splits = {row.split for row in rows}
    test = "test" if "test" in splits else "val"
    for group, split in (("train", "train"), ("test", test), ("unlabeled", "unlabeled")):
        if in_split := [row for row in rows if row.split == split]:
            paths = tuple(file.parent / row.path for row in in_split)
            marks[group] = _marks(file, group, in_split, paths)
            labels = np.array([_label(file, row, number_of) for row in in_split], np.int64)
            groups[group] = FileImages(tuple(row.path for row in in_split), labels, paths, orientation)
    if "train" not in groups:
        raise SourceError(f"{file} has no row of the split train. Accepted: {FORM}")
    if test == "test" and "val" in splits:
        count = sum(row.split == "val" for row in rows)
        notes.append(f"left out, as there is a split test: rows of the split val ({count:,})")
    notes += same_files({name: images.ids for name, images in groups.items()}, marks)
    sizes = " ".join(str(mark.size) for of_group in marks.values() for mark in of_group)
    return sealed(dataset, classes, groups, sizes, notes=notes, orientation=orientation)


def text_of(file: Path) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 with its byte order mark. Raises SourceError on any other."""
    if not os.path.isfile(file):
        raise SourceError(f"{file} is no regular file. Accepted: a text file")
    raw = file.read_bytes()
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as reason:
        line = raw[: reason.start].count(b"\n") + 1
        guess = f", which may be Latin-1: {short(raw[reason.start : reason.start + 1].decode('latin-1'))} there"
        raise SourceError(
            f"{file}, line {line}: byte 0x{raw[reason.start]:02x} is not {encoding.removesuffix('-sig').upper()}"
            f"{guess if encoding == 'utf-8' else ''}. {WAY_OUT}"
        ) from None
    if "\0" in text:
        raise SourceError(f"{file} holds zero bytes, as UTF-16 without a byte order mark does. {WAY_OUT}")
    return text


def class_names(file: Path) -> tuple[str, ...]:
    """The class names of a file, one a line; empty lines at its end are left out. Raises SourceError."""
    names = [line.strip() for line in text_of(file).rstrip().splitlines()]
    if "" in names or not names:
        line = names.index("") + 1 if names else 1
        raise SourceError(f"{file}, line {line} is empty, and line {line} names class {line - 1}. Name it")
    if twice := repeated(names):
        raise SourceError(f"{file} names {short(twice)} in two lines. Each class needs a name of its own")
    return tuple(names)


def whole(text: str) -> int | None:
    """The number of a label in ASCII digits, -1 included; None where it is anything else."""
    return int(text) if re.fullmatch(r"-1|\d{1,18}", text, re.ASCII) else None


def _rows(file: Path) -> list[_Row]:
    """The rows of the list. Raises SourceError on columns or splits that are not accepted."""
    reader = csv.DictReader(io.StringIO(text_of(file), newline=""), strict=True)
    rows = []
    try:
        columns = reader.fieldnames or []
        for name in ("path", "label"):
            if name not in columns:
                raise SourceError(
                    f"{file} has no column {name!r}, only {short(', '.join(columns))[1:-1] or 'none'}. Accepted: {FORM}"
                )
        if twice := repeated(columns):
            raise SourceError(f"{file} has two columns {short(twice)}. Accepted: {FORM}")
        for line in reader:
            if None in line or any(line[name] is None for name in ("path", "label")):
                count = len(columns) + len(line.get(None) or ()) if None in line else "fewer"
                raise SourceError(
                    f"{file}, line {reader.line_num}: {count} fields, but the header has {len(columns)}. A path with a "
                    'comma stands in quotes: "a,b.jpg"'
                )
            if any(value and value.strip() for value in line.values()):
                rows.append(_row(file, reader.line_num, line))
    except csv.Error as reason:
        raise SourceError(
            f"{file}, line {reader.line_num + 1} cannot be read as CSV ({reason}). Accepted: {FORM}"
        ) from None
    if not rows:
        raise SourceError(f"{file} has a header and no rows. Accepted: {FORM}")
    return rows


def _row(file: Path, number: int, line: dict[str, str]) -> _Row:
    label = line["label"].strip()
    label = "" if label == "-1" else label
    split = (line.get("split") or "").strip() or ("train" if label else "unlabeled")
    group = "val" if split.casefold() in ("val", "valid", "validation") else group_of(split)
    if group is None:
        raise SourceError(
            f"{file}, line {number}: split {short(split)} is not one of train, test, val, unlabeled, in any case"
        )
    return _Row(number, line["path"], label, group)


def _classes(file: Path, rows: Sequence[_Row]) -> tuple[tuple[str, ...], list[str]]:
    """Class names in label order: those of FILE.classes.txt, or else the labels, sorted, or 0 to the largest.

    Also notes on labels that may be meant as numbers and are taken as names.
    """
    names = file.with_suffix(".classes.txt")
    labels = {row.label for row in rows if row.label}
    if os.path.lexists(names):
        known = class_names(names)
        numbers = {name: number for number, name in enumerate(known)}
        both = sorted(name for name in labels & {*known} if whole(name) not in (None, numbers[name]))
        note = f"label {both[0] if both else ''} is taken as the class of that name in {names.name}, not as its number"
        return known, [note] if both else []
    if labels and all(label.isdecimal() for label in labels):
        longest = max(labels, key=len)
        highest = max(map(int, labels)) if len(longest) < 19 else MOST_CLASSES
        if highest >= MOST_CLASSES:
            raise SourceError(
                f"{file}: label {short(str(highest) if len(longest) < 19 else longest)} is too large, at most "
                f"{MOST_CLASSES:,} classes are taken. Number them from 0, or give their names"
            )
        return tuple(str(label) for label in range(highest + 1)), []
    numeric = sorted(label for label in labels if re.fullmatch(r"[-+]?\d+(\.\d*)?", label))
    note = (
        f"labels such as {short(numeric[0] if numeric else '')} are taken as class names, in the order of text, as not "
        f"all of them are whole numbers from 0: {', '.join(map(short, sorted(labels)[:3]))}"
    )
    return tuple(sorted(labels)), [note] if numeric else []


def _label(file: Path, row: _Row, number_of: dict[str, int]) -> int:
    """The number of a row's class, -1 for none. Raises SourceError."""
    if not row.label:
        if row.split != "unlabeled":
            raise SourceError(f"{file}, line {row.number}: no label, but the split is {row.split}. Use split unlabeled")
        return -1
    if row.label in number_of:
        return number_of[row.label]
    if row.label.isdecimal() and len(row.label) < 19 and int(row.label) < len(number_of):
        return int(row.label)
    hint = f". Numbers run from 0 to {len(number_of) - 1}" if row.label.isdecimal() else ""
    raise SourceError(
        f"{file}, line {row.number}: label {short(row.label)} is none of the {len(number_of)} classes{hint}"
    )


def _marks(file: Path, group: str, rows: Sequence[_Row], paths: Sequence[Path]) -> tuple[Mark, ...]:
    """The marks of the files. Raises SourceError on one that is absent or named twice."""
    marks = [regular(path) for path in paths]
    if absent := [row for row, mark in zip(rows, marks, strict=True) if mark is None]:
        raise SourceError(
            f"{file}, line {absent[0].number}: no file {short(absent[0].path)} ({len(absent)} of them are absent)"
        )
    found = [mark for mark in marks if mark is not None]
    first: dict[tuple[int, int], tuple[_Row, Path]] = {}
    for row, path, mark in zip(rows, paths, found, strict=True):
        before, same = first.setdefault((mark.device, mark.inode), (row, path))
        if before is not row and os.path.realpath(same) == os.path.realpath(path):
            also = "" if before.path == row.path else f", there as {short(before.path)}"
            raise SourceError(
                f"{file} names {short(row.path)} twice in {group}: in lines {before.number} and {row.number}{also}. "
                "Ids must be unique: leave one of them out"
            )
    return tuple(found)
