"""Folders of images: PATH/train/CLASS/*.jpg, maybe with PATH/test and PATH/unlabeled, or PATH/CLASS/*.jpg alone."""

import io
import os
import re
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.errors import BrokenImage, SourceError, first_few
from fastltssl.images.source import (
    Images,
    Orientation,
    Source,
    check_ids,
    chosen,
    counts,
    group_of,
    place,
    sealed,
)
from fastltssl.reading import short

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
WHITE = (2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)  # largest whole numbers of 8, 16 and 32 bits
DECODERS = 4  # threads; Pillow decodes without holding Python's global lock
LARGE, _ALONE = 2**25, threading.Lock()  # pixels of an image from which on it is decoded while no other such one is
ORIENTATION = 0x0112  # the EXIF tag
OUTPUTS = ("zarr.json", "fastltssl.lock", "head.safetensors")  # a file of these is in every cache and run folder


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files, decoded when read."""

    ids: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[Path, ...]
    orientation: Orientation = field(default_factory=Orientation)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(self._decoded, rows))

    def _decoded(self, row: int) -> np.ndarray:
        return decoded(self.paths[row], self.ids[row], f"{self.paths[row]}", self.orientation)


def decoded(file: Path | io.BytesIO, image_id: str, where: str, orientation: Orientation | None = None) -> np.ndarray:
    """An image file as uint8 RGB [h, w, 3]. Raises BrokenImage, whose message has the id and `where` the file is."""
    from PIL import Image

    try:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what cannot be read raises, and the rest is read
        with Image.open(file) as image:
            return pixels(image, image_id, orientation)
    except Exception as reason:  # bytes that are no image raise errors of many types
        raise broken(image_id, where, reason) from reason


def broken(image_id: str, where: str, reason: Exception) -> BrokenImage:
    """The error of an image that cannot be decoded."""
    return BrokenImage(
        f"image {image_id!r} cannot be decoded ({reason or type(reason).__name__}). Leave such images out with "
        f"--skip-broken (and --resume a cache that was begun), or replace or remove {where} and begin anew, as the "
        "data set has changed"
    )


def pixels(image: Any, image_id: str, orientation: Orientation | None = None) -> np.ndarray:
    """A Pillow image as uint8 RGB [h, w, 3], turned upright where the orientation is to be applied."""
    from PIL import Image

    with _ALONE if image.width * image.height > LARGE else nullcontext():
        exif = _exif_orientation(image)
        if image.mode == "F" or image.mode.startswith("I"):  # convert would clip most values to white
            image = Image.fromarray(_eight_bits(image))
        image = image.convert("RGB")
        if exif > 1 and orientation is not None:
            orientation.carriers.add(image_id)
            image = image.transpose(_turn(exif)) if orientation.exif == "apply" else image
        return np.array(image)


def _exif_orientation(image: Any) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read. Pillow turns TIFF itself: 1, too."""
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF may be damaged where the image is whole
        return 1
    return value if value in range(1, 9) else 1


def _turn(exif: int) -> Any:
    """The change that turns an image with this EXIF orientation, 2 to 8, upright."""
    from PIL.Image import Transpose

    return (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )[exif - 2]  # fmt: skip


def _eight_bits(image: Any) -> np.ndarray:
    """A deep grey image as uint8 [h w]. Where its format tells no white level, it is the next of WHITE above."""
    grey, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if grey.dtype.kind == "f":
        top = grey.max(initial=0, where=np.isfinite(grey))
        white = next((level for level in (1, *WHITE) if top <= level), float(top))
        levels = np.nan_to_num(grey.astype(np.float64)).clip(0, white) * 255 / white
    else:
        bits, is_signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
        if tags and bits == 32 and not is_signed:
            grey = grey.view(np.uint32)  # Pillow reads it as signed
        grey = grey.astype(np.int64)
        if image.mode != "I" or image.format == "PPM":
            white = 2 ** min(bits, 16) - 1
        else:
            white = next(level for level in WHITE if int(grey.max(initial=0)) <= level)
        levels = grey.clip(0, white) * 255 // white
    if tags.get(262) == 0:  # the file counts from white, which Pillow heeds in 8 bits only
        levels = 255 - levels
    return levels.astype(np.uint8)


class Listing(NamedTuple):
    """The files of one group and their labels."""

    files: "Files"
    labels: np.ndarray


class Mark(NamedTuple):
    """What tells a file from others: its size in bytes, and its place on the disk, the same through every link."""

    size: int
    device: int
    inode: int


class Files(NamedTuple):
    """Image files below a folder, and how many others were left out, by suffix."""

    paths: tuple[Path, ...]
    marks: tuple[Mark, ...]  # of the paths
    left: Counter[str]


def open_folder(dataset: str, exif: str = "ignore") -> Source:
    """The images below PATH of "folder:PATH"; classes are the sorted names of the class folders.

    Folders of groups may be spelt otherwise, such as Train, valid or unlabelled. Raises SourceError.
    """
    top = place(dataset.removeprefix("folder:"))
    if dataset in ("folder", "folder:") or not os.path.isdir(top):
        raise SourceError(
            f"--dataset {short(dataset)}: {str(top)[:300]} is not a folder. Accepted: folder:PATH with PATH/CLASS/*.jpg"
        )
    folders, notes = _layout(top)
    names = _class_names(folders)
    listings = {group: _by_class(folder, names) for group, folder in folders.items() if group != "unlabeled"}
    if "unlabeled" in folders:
        files = _files(folders["unlabeled"])
        listings["unlabeled"] = Listing(files, np.full(len(files.paths), -1))
    orientation = Orientation(exif)
    groups: dict[str, Images] = {
        group: FileImages(ids_below(top, files.paths), labels, files.paths, orientation)
        for group, (files, labels) in listings.items()
    }
    for group, (files, _) in listings.items():
        notes += _left_out(group, files.left)
    marks = {group: files.marks for group, (files, _) in listings.items()}
    notes += same_files({name: images.ids for name, images in groups.items()}, marks)
    sizes = [str(mark.size) for files, _ in listings.values() for mark in files.marks]
    classes = tuple(name.replace("_", " ") for name in names)
    return sealed(dataset, classes, groups, " ".join(sizes), notes=notes, orientation=orientation)


def open_images(path: Path, exif: str = "ignore") -> Source:
    """Image files below a folder at any depth, or one file, as a group "images" without labels. Raises SourceError."""
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise SourceError(
            f"{path} is neither a folder nor a regular file. Accepted: an image file, or a folder of them"
        )
    files = _files(path) if os.path.isdir(path) else Files((path,), (), Counter())
    if not files.paths:
        raise SourceError(f"{path} holds no images. Accepted: an image file, or a folder of {', '.join(SUFFIXES)}")
    ids = ids_below(path if os.path.isdir(path) else path.parent, files.paths)
    check_ids(ids, f"{path}")
    orientation = Orientation(exif)
    groups: dict[str, Images] = {"images": FileImages(ids, np.full(len(ids), -1), files.paths, orientation)}
    return Source(str(path), (), groups, "", tuple(_left_out(short(str(path)), files.left)), orientation)


def ids_below(top: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The paths relative to a folder, with slashes."""
    return tuple(path.relative_to(top).as_posix() for path in paths)


def _layout(top: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each group, and notes on what else holds images.

    The training folder is `top` itself where that holds the class folders. A folder without folders in it is a class,
    whatever its name, but for one called unlabeled, which may also lie among the class folders.
    """
    names, outputs = _subfolders(top)
    inner = {name: _subfolders(top / name)[0] for name in names}
    groups = chosen(name for name in names if inner[name] or group_of(name) == "unlabeled")
    folders = {group: top / name for group, name in groups.items()}
    if "train" in folders and "unlabeled" not in folders:
        folders |= {group: folders["train"] / name for group, name in chosen(inner[groups["train"]]).items()
                    if group == "unlabeled"}  # fmt: skip
    if "unlabeled" in folders and not _files(folders["unlabeled"]).paths:
        del folders["unlabeled"]
    notes = [f"{top / name} holds caches or runs, no images of its own: it is left out" for name in outputs]
    if "train" not in folders:
        if "test" in folders:
            test = groups["test"]
            raise SourceError(f"{top} holds {test}/ but no train/ with class folders. Rename or add {top / 'train'}")
        notes += _flat(top, [name for name in names if top / name not in folders.values()])
        return {"train": top} | folders, notes
    left = {f"{name}/": len(_files(top / name).paths) for name in names if top / name not in folders.values()}
    left |= {f"{groups[group]}/*": _direct(folder) for group, folder in folders.items() if group != "unlabeled"}
    left |= {f"{top}/*": _direct(top)}
    if counted := Counter({name: count for name, count in left.items() if count}):
        notes.append(
            f"left out, as they are in no class folder of a group: images of {counts(counted)}. "
            "Groups are train/CLASS, test/CLASS (or val, valid) and unlabeled"
        )
    return folders, notes


def _flat(top: Path, classes: Sequence[str]) -> list[str]:
    """Notes on a folder that holds the class folders itself. Raises SourceError where these are groups rather."""
    groups = [name for name in classes if group_of(name)]
    if groups and len(groups) == len(classes):
        raise SourceError(
            f"{top} holds {first_few([f'{name}/' for name in groups])} without class folders in them. Accepted: "
            "PATH/train/CLASS/*.jpg with PATH/test/CLASS/*.jpg and PATH/unlabeled beside it, or PATH/CLASS/*.jpg"
        )
    notes = [f"{top / name} has no class folders in it, so it is taken as a class called {name}" for name in groups]
    inside = [set(_subfolders(top / name)[0]) for name in classes]
    if len(classes) > 1 and len(shared := set.intersection(*inside)) > 1:
        notes.append(
            f"each of the class folders {first_few(classes)} holds folders of the same names: "
            f"{first_few(sorted(shared))}. "
            "If these are the classes, call the folders above them train, test and unlabeled"
        )
    if stray := _direct(top):
        notes.append(f"left out, as they are in no class folder: images of {top}/* ({stray:,})")
    return notes


def _left_out(where: str, left: Counter[str]) -> list[str]:
    """A note on files that are no images, or of a kind that is not read."""
    kinds = f"Read are {', '.join(SUFFIXES)}"
    told = f"{where}: files that are not read as images, {left.total():,}, by suffix: {counts(left)}. {kinds}"
    return [told] if left else []


def same_files(ids: dict[str, tuple[str, ...]], marks: dict[str, tuple[Mark, ...]]) -> list[str]:
    """Notes on files that are in a group twice, as links are, or in both train and test."""
    notes, first = [], dict[str, dict[tuple[int, int], str]]()
    for group, names in ids.items():
        first[group] = {}
        keys = [(mark.device, mark.inode) for mark in marks[group]]
        pairs = [
            f"{first[group][key]} = {name}"
            for key, name in zip(keys, names, strict=True)
            if first[group].setdefault(key, name) != name
        ]
        if pairs:
            notes.append(f"{group}: files that are there under two names (links), {len(pairs):,}: {first_few(pairs)}")
    if both := first.get("train", {}).keys() & first.get("test", {}).keys():
        pairs = [f"{first['train'][key]} = {first['test'][key]}" for key in first["test"] if key in both]
        notes.append(f"files that are in both train and test, {len(both):,}: {first_few(pairs)}")
    return notes


def _class_names(folders: dict[str, Path]) -> list[str]:
    """Names of the class folders, which must be the same in every group."""
    names = _subfolders(folders["train"])[0]
    if "unlabeled" in folders and folders["unlabeled"].parent == folders["train"]:
        names = [name for name in names if name != folders["unlabeled"].name]
    if not names:
        raise SourceError(
            f"{folders['train']} holds no class folders. Accepted: PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg "
            "with PATH/test/CLASS/*.jpg and PATH/unlabeled beside it"
        )
    test_names = _subfolders(folders["test"])[0] if "test" in folders else names
    if test_names != names:
        raise SourceError(
            f"{folders['train']} and {folders['test']} hold different classes: only in train "
            f"{_shown(set(names) - set(test_names))}, only in test {_shown(set(test_names) - set(names))}. "
            "Both need the same class folders"
        )
    return names


def _by_class(folder: Path, names: list[str]) -> Listing:
    """The files of one group, class after class."""
    by_class = [_files(folder / name) for name in names]
    empty = [name for name, files in zip(names, by_class, strict=True) if not files.paths]
    if empty:
        left = counts(sum((files.left for files in by_class if not files.paths), Counter()))
        raise SourceError(
            f"{folder}: no images in class folder {_shown(set(empty))}{f', only {left}' if left else ''}. "
            f"Put images there ({', '.join(SUFFIXES)}) or remove the folder"
        )
    labels = np.repeat(np.arange(len(names)), [len(files.paths) for files in by_class])
    return Listing(_joined(by_class), labels)


def _joined(parts: Sequence[Files]) -> Files:
    return Files(
        tuple(path for files in parts for path in files.paths),
        tuple(mark for files in parts for mark in files.marks),
        sum((files.left for files in parts), Counter()),
    )


def _subfolders(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, sorted: those that may hold images, and those of caches and runs."""
    if not os.path.isdir(folder):
        return [], []
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder) if _is_folder(entry) and not entry.name.startswith(".")
        )
        outputs = {name for name in names if _is_output(folder / name)}
    except OSError as reason:
        raise _unreadable(reason) from None
    return [name for name in names if name not in outputs], sorted(outputs)


def _unreadable(reason: OSError) -> SourceError:
    return SourceError(f"folder {reason.filename} cannot be read ({reason.strerror}). Allow it, or move it elsewhere")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of links
        return False


def _is_output(folder: Path) -> bool:
    """Whether a folder is a cache or a run, or holds some, without images beside them: they may lie in the data."""
    folders = [str(folder)]
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry.name):
                return False
            folders += [entry.path] if _is_folder(entry) else []
    return any(os.path.isfile(os.path.join(where, name)) for where in folders for name in OUTPUTS)


def _direct(folder: Path) -> int:
    """The number of images in a folder itself, not in folders in it."""
    return sum(_is_image(entry.name) and os.path.isfile(entry) for entry in os.scandir(folder))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _files(folder: Path) -> Files:
    """Image files at any depth, in natural order; none where the folder does not exist.

    Links are followed, but no folder is entered twice. Hidden files are ignored; counted are files of other suffixes,
    and what is no regular file: pipes, sockets, devices and links that lead nowhere.
    """
    found: dict[Path, Mark] = {}
    left: Counter[str] = Counter()
    entered = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        where = os.stat(parent)
        if (where.st_dev, where.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((where.st_dev, where.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            path = Path(parent, name)
            mark = regular(path)
            if mark is None:
                left["no regular file"] += 1
            elif _is_image(name):
                found[path] = mark
            else:
                left[short(path.suffix.lower())[1:-1] or "without a suffix"] += 1
    paths = sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix()))
    return Files(tuple(paths), tuple(found[path] for path in paths), left)


def _refuse(reason: OSError) -> None:
    if not isinstance(reason, FileNotFoundError):
        raise _unreadable(reason)


def regular(path: Path) -> Mark | None:
    """The mark of a regular file, or of the one that a link leads to; None for anything else."""
    try:
        told = os.stat(path)
    except (OSError, ValueError):
        return None
    return Mark(told.st_size, told.st_dev, told.st_ino) if stat.S_ISREG(told.st_mode) else None


def natural(text: str) -> tuple[list[str | int], str]:
    """A sort key that puts "2.jpg" before "10.jpg"; equal numbers ("1", "01") are sorted as text."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def _shown(names: set[str]) -> str:
    """Names for a message, sorted, the first few of many."""
    return first_few(sorted(names)) or "none"
