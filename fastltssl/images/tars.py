"""WebDataset tars, `wds:PATTERN`. The members of a tar that share a name up to the first dot are one sample.

Tars of the group unlabeled may be as img2dataset writes them, with metadata in place of labels. The position of every
image in its tar is found once, when the tars are opened. Images can then be read in any order, which the streaming
readers of this format do not allow.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fastltssl.errors import SourceError, first_few
from fastltssl.images.folder import DECODERS, SUFFIXES, decoded
from fastltssl.images.listing import class_names, whole
from fastltssl.images.source import (
    MOST_CLASSES,
    Images,
    Orientation,
    Source,
    counts,
    group_of,
    repeated,
    sealed,
)  # fmt: skip
from fastltssl.reading import short

FORM = "wds:PATTERN, or wds:TRAIN_PATTERN,test=PATTERN,unlabeled=PATTERN; a pattern has * ? [] or {000..127}"
LABELS = (".cls", ".json")  # a whole number, or an object with the key "label"; .cls decides where both are there
MOST_TARS, MOST_BYTES = 10**6, 2**24  # tars that braces may stand for, and bytes of a file with a label
BLOCK = 512  # bytes of a tar's header; two of zeros are its end mark


class Member(NamedTuple):
    """The position of an image file in a tar."""

    tar: Path
    offset: int
    size: int


@dataclass
class Sample:
    """The members of a tar that share a key."""

    image: Member | None = None
    image_name: str = ""
    labels: dict[str, bytes] = field(default_factory=dict)  # the contents of .cls and .json
    left: list[str] = field(default_factory=list)  # endings of the members that are not read


@dataclass(frozen=True, eq=False)
class TarImages:
    """Images inside tars, decoded when read."""

    ids: tuple[str, ...]
    labels: np.ndarray
    members: tuple[Member, ...]
    orientation: Orientation = field(default_factory=Orientation)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(self._decoded, rows))

    def _decoded(self, row: int) -> np.ndarray:
        tar, offset, size = self.members[row]
        with tar.open("rb") as file:
            file.seek(offset)
            return decoded(io.BytesIO(file.read(size)), self.ids[row], f"{tar}", self.orientation)


def open_tars(dataset: str, exif: str = "ignore") -> Source:
    """The samples of the tars, in the order of the tars' names. Classes are numbers unless classes.txt names them.

    Raises SourceError where a tar of a pattern is missing, breaks off or holds a key twice.
    """
    text = dataset.removeprefix("wds:")
    groups: dict[str, Images] = {}
    sizes: list[str] = []
    notes: list[str] = []
    orientation = Orientation(exif)
    first: list[Path] = []
    for part in [text] if _is_there(text) else _parts(text):
        group, pattern = _group(dataset, part)
        if group in groups:
            raise SourceError(
                f"--dataset {short(dataset)} names the group {group} twice. Join the tars by braces: {{a,b}}"
            )
        tars = _tars(dataset, pattern)
        first = first or tars
        groups[group], told = _images(tars, group, orientation)
        sizes += [str(member.size) for member in groups[group].members]  # type: ignore[attr-defined]
        notes += told
    if "train" not in groups:
        raise SourceError(f"--dataset {short(dataset)} names no training tars. Accepted: {FORM}")
    labels = np.concatenate([images.labels for images in groups.values()])
    names, count = first[0].parent / "classes.txt", 1 + int(labels.max())
    classes = class_names(names) if os.path.lexists(names) else tuple(map(str, range(count)))
    if len(classes) < count:
        raise SourceError(
            f"{names} names {len(classes)} classes, the tars hold labels from {labels[labels >= 0].min()} up to "
            f"{count - 1}. Classes are numbered from 0"
        )
    return sealed(dataset, classes, groups, " ".join(sizes), notes=notes, orientation=orientation)


def _group(dataset: str, part: str) -> tuple[str, str]:
    """The group and the pattern of one part of the data set's name: "test=PATTERN", or a PATTERN of train."""
    word, sign, pattern = part.partition("=")
    if not sign or _is_there(part) or not re.fullmatch(r"\w*", word):
        return "train", part
    group = group_of(word)
    if group is None:
        raise SourceError(f"--dataset {short(dataset)}: {short(word)} is no group. Accepted: {FORM}")
    return group, pattern


def _is_there(pattern: str) -> bool:
    """Whether there is a file of this very name, or the folder that it names is there."""
    return os.path.isfile(pattern) or os.path.isdir(os.path.dirname(pattern))


def _tars(dataset: str, pattern: str) -> list[Path]:
    """The tars of a pattern; a file or a folder of the very name is taken before the pattern is read as one."""
    pattern = pattern if _is_there(pattern) else os.path.expanduser(pattern)
    folder, name = os.path.split(pattern)
    if os.path.isfile(pattern):
        patterns = [escape(pattern)]
    elif os.path.isdir(folder):
        patterns = [os.path.join(escape(folder), choice) for choice in expanded(name)]
    else:
        patterns = expanded(pattern)
    fitting = {simple: sorted(glob(simple)) for simple in patterns}
    if missing := [simple for simple, paths in fitting.items() if not paths]:
        which = f"{len(missing):,} of the {len(patterns):,} tars of " if len(patterns) > 1 else ""
        names = first_few([name[:200] for name in missing], most=20)
        raise SourceError(
            f"--dataset {short(dataset)}: no tar fits {which}{short(pattern)}: {names}. "
            f"Fetch what is missing, or name only those that are there. Accepted: {FORM}"
        )
    tars = [Path(path) for simple in patterns for path in fitting[simple]]
    if odd := [tar for tar in tars if not os.path.isfile(tar)]:
        raise SourceError(f"{odd[0]} is no regular file. Accepted: {FORM}")
    if twice := repeated([os.path.realpath(tar) for tar in tars]):
        raise SourceError(f"--dataset {short(dataset)} names the tar {twice} twice. Name it once")
    return tars


def _parts(text: str) -> list[str]:
    """The text, split at the commas outside of braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def expanded(pattern: str) -> list[str]:
    """The patterns that one with {000..012} or {a,b} stands for. Raises SourceError where these are too many."""
    before, brace, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not brace or not closing:
        return [pattern]
    low, dots, high = inside.partition("..")
    if dots and low.isdecimal() and high.isdecimal():
        if len(low) > 9 or len(high) > 9 or int(high) - int(low) >= MOST_TARS:
            raise SourceError(f"{{{short(inside)[1:-1]}}} stands for more than {MOST_TARS:,} tars. Name fewer")
        choices = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    else:
        choices = inside.split(",")
    if not choices:
        raise SourceError(f"{{{inside}}} stands for no tar, as {low} is above {high}. Write {{{high}..{low}}}")
    tails = expanded(after)
    if len(choices) * len(tails) > MOST_TARS:
        raise SourceError(f"{short(pattern)} stands for more than {MOST_TARS:,} tars. Name fewer")
    return [before + choice + tail for choice in choices for tail in tails]


def _images(tars: Sequence[Path], group: str, orientation: Orientation) -> tuple[TarImages, list[str]]:
    """The images of a group, and notes on what else the tars hold."""
    ids: list[str] = []
    labels: list[int] = []
    members: list[Member] = []
    without: list[str] = []  # keys of samples without an image
    left: Counter[str] = Counter()
    bare: list[str] = []  # tars without an image
    for tar in tars:
        before = len(ids)
        for key, sample in _samples(tar, left).items():
            left.update(sample.left)
            if sample.image is None:
                without.append(f"{tar.name}/{key}")
                continue
            ids.append(f"{tar.name}/{key}")
            labels.append(_label(tar, key, sample, is_needed=group != "unlabeled"))
            members.append(sample.image)
        if len(ids) == before:
            bare.append(tar.name)
    endings = f"members that are not read, {left.total():,}, by their ending: {counts(left)}" if left else ""
    if not members:
        raise SourceError(
            f"{tars[0]} and the tars with it hold no images ({', '.join(SUFFIXES)}){f'; {endings}' if left else ''}"
        )
    notes = [f"{group}: {endings}. A key ends at the first dot of a name"] if left else []
    if without:
        notes.append(f"{group}: left out, as they have no image: samples {first_few(without)} ({len(without):,})")
    if bare:
        notes.append(f"{group}: tars that hold no image, {len(bare):,} of {len(tars):,}: {first_few(bare)}")
    return TarImages(tuple(ids), np.array(labels, np.int64), tuple(members), orientation), notes


def _samples(path: Path, left: Counter[str]) -> dict[str, Sample]:
    """Every sample of a tar by its key, in its order; `left` counts members that are no files. Raises SourceError."""
    samples: dict[str, Sample] = {}
    names: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    left["links, sparse files and the like"] += 1
                    continue
                name = os.path.normpath(member.name).lstrip("/")
                if name in names:
                    raise SourceError(f"{path} holds {short(member.name)} twice. Make it anew with each member once")
                names.add(name)
                _add(samples, path, member, file)
            _check_end(path, file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, EOFError) as reason:
        if isinstance(reason, SourceError):
            raise
        raise SourceError(
            f"{path} cannot be read as an uncompressed tar of samples ({reason}). Fetch or make it anew"
        ) from reason
    return samples


def _add(samples: dict[str, Sample], path: Path, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    """Add a member to its sample, which is made where there is none."""
    folder, _, name = member.name.rpartition("/")
    stem, dot, ending = name.partition(".")
    key, suffix = f"{folder}/{stem}" if folder else stem, f"{dot}{ending}".lower()
    sample = samples.setdefault(key, Sample())
    if suffix in SUFFIXES:
        if sample.image is not None:
            raise SourceError(
                f"{path}: sample {short(key)} has two images, {short(sample.image_name)} and {short(member.name)}. "
                "A key ends at the first dot of a name: give each image a key of its own"
            )
        sample.image, sample.image_name = Member(path, member.offset_data, member.size), member.name
    elif suffix in LABELS:
        if suffix in sample.labels:
            raise SourceError(f"{path}: sample {short(key)} has two members {suffix}. Leave one of them out")
        file.seek(member.offset_data)
        sample.labels[suffix] = file.read(min(member.size, MOST_BYTES))
    else:
        sample.left.append(short(suffix)[1:-1] or "without an ending")


def _check_end(path: Path, file: IO[bytes], offset: int) -> None:
    """Raise SourceError where a tar has no end mark at the offset, as one that was cut, or has more behind it."""
    file.seek(offset)
    mark = file.read(2 * BLOCK)
    if len(mark) < 2 * BLOCK and not mark.strip(b"\0"):
        raise SourceError(
            f"{path} breaks off at byte {offset + len(mark):,}: its end mark, two blocks of zeros, is not there. "
            "Fetch or make it anew"
        )
    while mark:
        if mark.strip(b"\0"):
            raise SourceError(
                f"{path} is damaged, cut or joined of several: the last header that can be read ends before byte "
                f"{offset:,}, and what follows is no end. Fetch or make it anew"
            )
        mark = file.read(2**20)


def _label(path: Path, key: str, sample: Sample, is_needed: bool) -> int:
    """The label of a sample, -1 for none. Raises SourceError where it is needed, or no class number."""
    accepted = 'Accepted: KEY.cls with a whole number, or KEY.json with one as "label"'
    label: int | None = None
    if raw := sample.labels.get(".cls"):
        label = whole(raw[:100].decode(errors="replace").strip())
        wrong: object = raw[:100]
    elif raw := sample.labels.get(".json"):
        try:
            wrong = json.loads(raw).get("label")
        except (ValueError, AttributeError, RecursionError):
            wrong = raw[:100]
        is_number = isinstance(wrong, int) and not isinstance(wrong, bool)
        label = whole(str(wrong).strip()) if is_number or isinstance(wrong, str) else None
        if not is_needed:  # metadata in place of a label
            return -1 if label is None or label >= MOST_CLASSES else label
    else:
        wrong = None
    if label is None and wrong is not None:
        raise SourceError(
            f"{path} cannot be read as an uncompressed tar of samples: the label of sample {short(key)} is "
            f"{short(wrong)}. {accepted}, -1 for none"
        )
    if label is not None and label >= MOST_CLASSES:
        raise SourceError(f"{path}: the label of sample {short(key)} is {label}, of at most {MOST_CLASSES:,} classes")
    if is_needed and label in (None, -1):
        raise SourceError(f"{path}: sample {short(key)} has no label. {accepted}, or name the tar unlabeled=PATTERN")
    return -1 if label is None else label
