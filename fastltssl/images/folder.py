"""Folders of images: PATH/train/CLASS/*.jpg, maybe with PATH/test and PATH/unlabeled, or PATH/CLASS/*.jpg alone."""

import io
import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastltssl.errors import BrokenImage, SourceError
from fastltssl.images.source import Images, Source, fingerprint

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
WHITE = (2**8 - 1, 2**16 - 1, 2**31 - 1)  # largest values of whole numbers of 8, 16 and 32 bits
DECODERS = 4  # threads; Pillow decodes without holding Python's global lock
TEST_FOLDERS = ("test", "val")  # the first that exists is used; that of ImageNet is called val


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files, decoded when read."""

    ids: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[Path, ...]

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images in their own sizes, uint8 RGB."""
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(self._decoded, rows))

    def _decoded(self, row: int) -> np.ndarray:
        return decoded(self.paths[row], self.ids[row], f"{self.paths[row]}")


def decoded(file: Path | io.BytesIO, image_id: str, where: str) -> np.ndarray:
    """An image file as uint8 RGB [h, w, 3]. Raises BrokenImage, whose message has the id and `where` the file is."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # convert would clip most values to white
                return _eight_bits(np.asarray(image), is_16=image.mode != "I" or image.format == "PPM")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as reason:
        raise BrokenImage(
            f"image {image_id!r} cannot be decoded ({reason}). Leave such images out with --skip-broken (and --resume "
            f"a cache that was begun), or replace or remove {where} and begin anew, as the data set has changed"
        ) from reason


def _eight_bits(grey: np.ndarray, is_16: bool) -> np.ndarray:
    """A deep grey image as uint8 RGB. Where its format does not tell the white level, it is the next of WHITE above."""
    if grey.dtype.kind == "f":
        white = next((level for level in (1, *WHITE) if np.nanmax(grey, initial=0) <= level), WHITE[-1])
        levels = np.nan_to_num(grey.astype(np.float64)).clip(0, white) * 255 / white
    else:
        white = WHITE[1] if is_16 else next(level for level in WHITE if int(grey.max(initial=0)) <= level)
        levels = grey.astype(np.int64).clip(0, white) * 255 // white
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


class Listing(NamedTuple):
    """The files of one group and their labels."""

    paths: tuple[Path, ...]
    labels: np.ndarray


def open_folder(dataset: str) -> Source:
    """The images below PATH of "folder:PATH"; classes are the sorted names of the class folders."""
    top = Path(dataset.removeprefix("folder:")).expanduser()
    if dataset in ("folder", "folder:") or not top.is_dir():
        raise SourceError(f"--dataset {dataset!r}: {top} is not a folder. Accepted: folder:PATH with PATH/CLASS/*.jpg")
    folders = _splits(top)
    names = _class_names(folders)
    listings = {group: _by_class(folder, names) for group, folder in folders.items()}
    unlabelled = _files(top / "unlabeled") if folders["train"] != top else ()
    if unlabelled:
        listings["unlabeled"] = Listing(unlabelled, np.full(len(unlabelled), -1))
    groups: dict[str, Images] = {
        group: FileImages(tuple(path.relative_to(top).as_posix() for path in paths), labels, paths)
        for group, (paths, labels) in listings.items()
    }
    sizes = [str(path.stat().st_size) for paths, _ in listings.values() for path in paths]
    classes = tuple(name.replace("_", " ") for name in names)
    return Source(dataset, classes, groups, fingerprint(classes, groups, " ".join(sizes)))


def open_images(path: Path) -> Source:
    """Image files below a folder at any depth, or one file, as a group "images" without labels."""
    paths = (path,) if path.is_file() else _files(path)
    if not paths:
        raise SourceError(f"{path} holds no images. Accepted: an image file, or a folder of {', '.join(SUFFIXES)}")
    ids = tuple((file.relative_to(path) if path.is_dir() else Path(file.name)).as_posix() for file in paths)
    groups: dict[str, Images] = {"images": FileImages(ids, np.full(len(paths), -1), paths)}
    return Source(str(path), (), groups, "")


def _splits(top: Path) -> dict[str, Path]:
    """The folder of each labelled group; that of train is `top` itself where it holds the class folders."""
    test = next((top / name for name in TEST_FOLDERS if _subfolders(top / name)), None)
    if _subfolders(top / "train"):  # without subfolders it is a class that is called "train"
        return {"train": top / "train"} | ({"test": test} if test else {})
    if test:
        raise SourceError(f"{top} holds {test.name}/ but no train/ with class folders. Rename or add {top / 'train'}")
    return {"train": top}


def _class_names(folders: dict[str, Path]) -> list[str]:
    """Names of the class folders, which must be the same in every group."""
    names = _subfolders(folders["train"])
    if not names:
        raise SourceError(
            f"{folders['train']} holds no class folders. Accepted: PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg "
            "with PATH/test/CLASS/*.jpg and PATH/unlabeled beside it"
        )
    test_names = _subfolders(folders["test"]) if "test" in folders else names
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
    empty = [name for name, paths in zip(names, by_class, strict=True) if not paths]
    if empty:
        raise SourceError(
            f"{folder}: no images in class folder {_shown(set(empty))}. "
            f"Put images there ({', '.join(SUFFIXES)}) or remove the folder"
        )
    labels = np.repeat(np.arange(len(names)), [len(paths) for paths in by_class])
    return Listing(tuple(path for paths in by_class for path in paths), labels)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> tuple[Path, ...]:
    """Image files at any depth, in natural order; none where the folder does not exist.

    Links are followed, but no folder is entered twice; pipes, sockets and broken links are no images.
    """
    paths, entered = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = (Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        paths += [path for path in images if path.is_file()]
    return tuple(sorted(paths, key=lambda path: natural(path.relative_to(folder).as_posix())))


def natural(text: str) -> tuple[list[str | int], str]:
    """A sort key that puts "2.jpg" before "10.jpg"; equal numbers ("1", "01") are sorted as text."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def _shown(names: set[str], most: int = 5) -> str:
    """Names for a message, the first few of many."""
    listed = ", ".join(sorted(names)[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
