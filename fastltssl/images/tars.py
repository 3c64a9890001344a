"""WebDataset tars, `wds:PATTERN`. The members of a tar that share a name up to the first dot are one sample.

The position of every image in its tar is found once, when the tars are opened. Images can then be read in any order,
which the streaming readers of this format do not allow.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import DECODERS, SUFFIXES, decoded
from fastltssl.images.source import Images, Source, fingerprint

FORM = "wds:PATTERN, or wds:TRAIN_PATTERN,test=PATTERN,unlabeled=PATTERN; a pattern has * ? [] or {000..127}"
LABELS = (".cls", ".json")  # a whole number, or an object with the key "label"


class Member(NamedTuple):
    """The position of an image file in a tar."""

    tar: Path
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class TarImages:
    """Images inside tars, decoded when read."""

    ids: tuple[str, ...]
    labels: np.ndarray
    members: tuple[Member, ...]

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(self._decoded, rows))

    def _decoded(self, row: int) -> np.ndarray:
        tar, offset, size = self.members[row]
        with tar.open("rb") as file:
            file.seek(offset)
            return decoded(io.BytesIO(file.read(size)), self.ids[row], f"{tar}")


def open_tars(dataset: str) -> Source:
    """The samples of the tars, in the order of the tars' names. Classes are numbers unless classes.txt names them."""
    groups: dict[str, Images] = {}
    first: list[Path] = []
    for part in _parts(dataset.removeprefix("wds:")):
        group, _, pattern = part.rpartition("=")
        tars = [Path(path) for simple_pattern in expanded(pattern) for path in sorted(glob(simple_pattern))]
        if not tars:
            raise SourceError(f"--dataset {dataset!r}: no tar fits {pattern!r}. Accepted: {FORM}")
        if (group or "train") not in ("train", "test", "unlabeled"):
            raise SourceError(f"--dataset {dataset!r}: {group!r} is no group. Accepted: {FORM}")
        first = first or tars
        groups[group or "train"] = _images(tars, needs_labels=group != "unlabeled")
    if "train" not in groups:
        raise SourceError(f"--dataset {dataset!r} names no training tars. Accepted: {FORM}")
    count = 1 + max(int(images.labels.max()) for images in groups.values())
    names = first[0].parent / "classes.txt"
    classes = tuple(names.read_text().splitlines()) if names.is_file() else tuple(map(str, range(count)))
    if len(classes) < count:
        raise SourceError(f"{names} names {len(classes)} classes, the tars hold labels up to {count - 1}")
    sizes = " ".join(str(member.size) for images in groups.values() for member in images.members)  # type: ignore[attr-defined]
    return Source(dataset, classes, groups, fingerprint(classes, groups, sizes))


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
    """The patterns that one with {000..012} or {a,b} stands for."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, after = rest.partition("}")
    low, dots, high = inside.partition("..")
    if dots and low.isdecimal() and high.isdecimal():
        choices = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    else:
        choices = inside.split(",")
    return [before + choice + tail for choice in choices for tail in expanded(after)]


def _images(tars: Sequence[Path], needs_labels: bool) -> TarImages:
    ids: list[str] = []
    labels: list[int] = []
    members: list[Member] = []
    for tar in tars:
        for key, image, label in _samples(tar):
            if label is None and needs_labels:
                raise SourceError(f'{tar}: sample {key!r} has no label. Accepted: KEY.cls or KEY.json with "label"')
            ids.append(f"{tar.name}/{key}")
            labels.append(-1 if label is None else label)
            members.append(image)
    if not members:
        raise SourceError(f"{tars[0]} and the tars with it hold no images ({', '.join(SUFFIXES)})")
    return TarImages(tuple(ids), np.array(labels, np.int64), tuple(members))


def _samples(path: Path) -> Iterator[tuple[str, Member, int | None]]:
    """Key, image and label of every sample of a tar, in its order."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                suffix = f"{dot}{ending}".lower()
                if suffix in LABELS and "label" not in sample:
                    sample["label"] = _label(tar.extractfile(member).read(), suffix)  # type: ignore[union-attr]
                elif suffix in SUFFIXES:
                    sample["image"] = Member(path, member.offset_data, member.size)
    except (tarfile.TarError, ValueError, KeyError, TypeError) as reason:
        raise SourceError(f"{path} cannot be read as an uncompressed tar of samples ({reason})") from reason
    for key, sample in samples.items():
        if "image" in sample:
            yield key, sample["image"], sample.get("label")


def _label(raw: bytes, suffix: str) -> int:
    return int(raw.decode().strip() if suffix == ".cls" else json.loads(raw)["label"])
