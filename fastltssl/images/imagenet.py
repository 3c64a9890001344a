"""ImageNet, folders named by WordNet id, and ImageNet-127, its grouping into 127 classes by a mapping file."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import open_folder
from fastltssl.images.listing import text_of
from fastltssl.images.source import Images, Source, fingerprint, place, sealed

MAPPING = "imagenet127.txt"
LAYOUT = "ROOT/imagenet/train/n01440764/*.JPEG and ROOT/imagenet/val/n01440764/*.JPEG, with --root ROOT"


def open_imagenet(dataset: str, root: Path, exif: str = "ignore") -> Source:
    """`imagenet`: class names are those that CLIP uses, in the order of the sorted WordNet ids."""
    source = _by_wordnet_id(dataset, root, exif)
    if len(source.classes) != 1000:
        raise SourceError(
            f"{root / 'imagenet'} holds {len(source.classes)} classes, not 1000. For a part of ImageNet: folder:PATH"
        )
    from open_clip import IMAGENET_CLASSNAMES

    classes = tuple(IMAGENET_CLASSNAMES)
    mark = fingerprint(classes, source.groups, source.fingerprint)
    return source._replace(name=dataset, classes=classes, fingerprint=mark)


def open_imagenet127(dataset: str, root: Path, exif: str = "ignore") -> Source:
    """`imagenet127`: classes by a file of lines "WORDNET_ID class name", in the order in which it first names them.

    The file is ROOT/imagenet127.txt, or the one that the variable FASTLTSSL_IMAGENET127 names.
    """
    file = place(os.environ.get("FASTLTSSL_IMAGENET127") or str(place(str(root)) / MAPPING))
    if not os.path.isfile(file):
        raise SourceError(
            f"{dataset} needs a mapping of WordNet ids to its classes, and there is no file {file}. "
            "Accepted: lines such as 'n01440764 fish', in that file or in the one FASTLTSSL_IMAGENET127 names"
        )
    pairs = [(number, line.split(maxsplit=1)) for number, line in enumerate(text_of(file).splitlines(), 1)]
    mapping: dict[str, str] = {}
    for number, pair in pairs:
        if len(pair) == 1:
            raise SourceError(f"{file}, line {number}: {pair} is not a WordNet id and a class name")
        if pair and mapping.setdefault(pair[0], pair[1].strip()) != pair[1].strip():
            raise SourceError(f"{file}, line {number}: {pair[0]} is given two classes. Leave one of the lines out")
    classes = tuple(dict.fromkeys(mapping.values()))
    source = _by_wordnet_id(dataset, root, exif)
    if missing := [wnid for wnid in source.classes if wnid not in mapping]:
        raise SourceError(f"{file} does not say the class of {missing[0]} ({len(missing)} folders are not in it)")
    new_label = np.array([classes.index(mapping[wnid]) for wnid in source.classes])
    groups: dict[str, Images] = {
        name: dataclasses.replace(  # type: ignore[type-var]
            images, labels=np.where(images.labels < 0, -1, new_label[images.labels])
        )
        for name, images in source.groups.items()
    }
    return sealed(dataset, classes, groups, source.fingerprint, notes=source.notes, orientation=source.orientation)


def _by_wordnet_id(dataset: str, root: Path, exif: str) -> Source:
    """The images, with WordNet ids for classes."""
    top = place(str(root)) / "imagenet"
    if not (top / "train").is_dir():
        raise SourceError(
            f"{dataset}: there is no {top / 'train'}. ImageNet cannot be downloaded for you. Accepted: {LAYOUT}"
        )
    return open_folder(f"folder:{top}", exif)
