"""torchvision's data sets by name, downloaded where they are absent. Labels are read without decoding an image.

The train group is everything that the authors of a set offer for training: where they split off val, it is in train.
"""

import contextlib
import http.client
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import FileImages
from fastltssl.images.source import Images, Orientation, Source, fingerprint, place

SERVER_TIMEOUT_S = 20.0  # torchvision sets none, so it would wait for ever behind a firewall that drops packets
FAILURES = (
    OSError, RuntimeError, ValueError, EOFError, ImportError, http.client.HTTPException, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


class Rows(NamedTuple):
    """Labels, with the images either as pixels in memory or as files."""

    labels: Sequence[int] | np.ndarray
    pixels: np.ndarray | None = None  # uint8 [N, h, w, 3]
    paths: Sequence[str | Path] = ()


class Recipe(NamedTuple):
    """How to open one set."""

    kind: str  # name of the class in torchvision.datasets
    on_disk: str  # what that class looks for below the root
    groups: dict[str, tuple[dict[str, Any], ...]]  # for each group the arguments of the calls that open its parts
    rows: Callable[[Any], Rows]  # of an opened part
    names: Callable[[Any], Sequence[str]]  # of the classes


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size, in memory."""

    ids: tuple[str, ...]
    labels: np.ndarray
    pixels: np.ndarray  # uint8 [N, h, w, 3]

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images [h, w, 3], uint8 RGB."""
        return [np.ascontiguousarray(self.pixels[row]) for row in rows]


def _listed(dataset: Any) -> Rows:
    return Rows(dataset._labels, paths=dataset._image_files)


def _pairs(samples: Sequence[tuple[str, int]]) -> Rows:
    return Rows([label for _, label in samples], paths=[path for path, _ in samples])


def _sorted_pairs(dataset: Any) -> Rows:
    """SUN397, sorted: it lists its files in the order of the file system, which differs between machines."""
    return _pairs(sorted(zip(map(str, dataset._image_files), dataset._labels, strict=True)))


def _caltech(dataset: Any) -> Rows:
    top = Path(dataset.root, "101_ObjectCategories")
    places = zip(dataset.y, dataset.index, strict=True)
    return Rows(dataset.y, paths=[top / dataset.categories[y] / f"image_{index:04d}.jpg" for y, index in places])


def _spaced(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


LAND = {  # the names that CLIP uses
    "AnnualCrop": "annual crop land", "Forest": "forest", "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road", "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land", "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments", "River": "river", "SeaLake": "lake or sea",
}  # fmt: skip
THINGS = {  # class names for the folders of Caltech whose names do not read as one
    "Faces": "off-center face", "Faces_easy": "centered face", "Leopards": "leopard", "Motorbikes": "motorbike",
    "airplanes": "side of an airplane", "car_side": "side of a car",
}  # fmt: skip


def _land(dataset: Any) -> list[str]:
    return [LAND.get(name, name) for name in dataset.classes]


def _things(dataset: Any) -> list[str]:
    return [THINGS.get(name, name.replace("_", " ").lower()) for name in dataset.categories]


def _scenes(dataset: Any) -> list[str]:
    """Names in the order of speech: outdoor apartment building for apartment_building/outdoor."""
    return [" ".join(reversed(name.split("/"))) for name in _spaced(dataset.classes)]


def _classes(dataset: Any) -> list[str]:
    return _spaced(dataset.classes)


SIGNS = (
    "speed limit 20 km/h", "speed limit 30 km/h", "speed limit 50 km/h", "speed limit 60 km/h",
    "speed limit 70 km/h", "speed limit 80 km/h", "end of speed limit 80 km/h", "speed limit 100 km/h",
    "speed limit 120 km/h", "no overtaking", "no overtaking by trucks", "priority at the next crossing",
    "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry", "general danger", "curve to the left",
    "curve to the right", "double curve", "bumpy road", "slippery road", "road narrows on the right", "road work",
    "traffic lights", "pedestrians", "children crossing", "bicycles crossing", "ice and snow", "wild animals crossing",
    "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "straight or right", "straight or left",
    "keep right", "keep left", "roundabout", "end of no overtaking", "end of no overtaking by trucks",
)  # fmt: skip

_by_split: dict[str, tuple[dict[str, Any], ...]] = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
_with_val = _by_split | {"train": ({"split": "train"}, {"split": "val"})}
_with_trainval = _by_split | {"train": ({"split": "trainval"},)}
_by_flag: dict[str, tuple[dict[str, Any], ...]] = {"train": ({"train": True},), "test": ({"train": False},)}
_train_only: dict[str, tuple[dict[str, Any], ...]] = {"train": ({},)}
SETS: dict[str, Recipe] = {
    "cifar10": Recipe("CIFAR10", "cifar-10-batches-py", _by_flag, lambda d: Rows(d.targets, d.data), _classes),
    "cifar100": Recipe("CIFAR100", "cifar-100-python", _by_flag, lambda d: Rows(d.targets, d.data), _classes),
    "stl10": Recipe(
        "STL10", "stl10_binary", _by_split | {"unlabeled": ({"split": "unlabeled"},)},
        lambda d: Rows(d.labels, np.moveaxis(d.data, 1, -1)), _classes,
    ),
    "svhn": Recipe(
        "SVHN", "train_32x32.mat and test_32x32.mat", _by_split,
        lambda d: Rows(d.labels, np.moveaxis(d.data, 1, -1)), lambda d: "0123456789",
    ),
    "food101": Recipe("Food101", "food-101", _by_split, _listed, _classes),
    "eurosat": Recipe("EuroSAT", "eurosat/2750", _train_only, lambda d: _pairs(d.samples), _land),
    "dtd": Recipe("DTD", "dtd/dtd", _with_val, _listed, _classes),
    "flowers102": Recipe("Flowers102", "flowers-102", _with_val, _listed, _classes),
    "oxford_pets": Recipe(
        "OxfordIIITPet", "oxford-iiit-pet", _with_trainval, lambda d: Rows(d._labels, paths=d._images), _classes
    ),
    "gtsrb": Recipe("GTSRB", "gtsrb", _by_split, lambda d: _pairs(d._samples), lambda d: SIGNS),
    "sun397": Recipe("SUN397", "SUN397", _train_only, _sorted_pairs, _scenes),
    "caltech101": Recipe("Caltech101", "caltech101", _train_only, _caltech, _things),
    "fgvc_aircraft": Recipe("FGVCAircraft", "fgvc-aircraft-2013b", _with_trainval, _listed, _classes),
}  # fmt: skip


def open_torchvision(name: str, root: Path, exif: str = "ignore") -> Source:
    """A set of SETS in the folder `root`, downloaded where it is absent. Raises SourceError."""
    recipe, orientation = SETS[name], Orientation(exif)
    root = place(str(root)).resolve()
    groups: dict[str, Images] = {}
    classes: tuple[str, ...] = ()
    for group, calls in recipe.groups.items():
        opened = [_opened(name, recipe, root, arguments) for arguments in calls]
        groups[group] = _images(group, [recipe.rows(part) for part in opened], root, orientation)
        classes = classes or tuple(recipe.names(opened[0]))
    return Source(name, classes, groups, fingerprint(classes, groups), orientation=orientation)


def _images(group: str, parts: list[Rows], root: Path, orientation: Orientation) -> Images:
    """A group made of its parts; ids are paths below the root, or row numbers where there are no files."""
    labels = np.concatenate([np.asarray(part.labels, np.int64) for part in parts])
    if parts[0].pixels is not None:
        ids = tuple(f"{group}/{row:06d}" for row in range(len(labels)))
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return ArrayImages(ids, labels, pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
    paths = tuple(Path(path) for part in parts for path in part.paths)
    return FileImages(tuple(path.relative_to(root).as_posix() for path in paths), labels, paths, orientation)


def _opened(name: str, recipe: Recipe, root: Path, arguments: dict[str, Any]) -> Any:
    """The data set object of torchvision."""
    from torchvision import datasets

    try:
        with _server_timeout():
            return getattr(datasets, recipe.kind)(root=root, download=True, **arguments)
    except FAILURES as reason:
        raise SourceError(
            f"{name}: torchvision.datasets.{recipe.kind} could not be read from {root / recipe.on_disk} or fetched "
            f"({reason}). With a copy: --root DIR where DIR holds {recipe.on_disk}, or --dataset folder:PATH "
            "with PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg"
        ) from reason


@contextlib.contextmanager
def _server_timeout() -> Iterator[None]:
    """Give up on a server that does not answer; restores the timeout that was set before."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SERVER_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
