"""ImageNet, folders named by WordNet id, and ImageNet-127, its grouping into 127 classes by a mapping file."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from fastltssl.errors import SourceError
from fastltssl.images.folder import open_folder
from fastltssl.images.source import Images, Source, fingerprint

MAPPING = "imagenet127.txt"
LAYOUT = "ROOT/imagenet/train/n01440764/*.JPEG and ROOT/imagenet/val/n01440764/*.JPEG, with --root ROOT"


def open_imagenet(dataset: str, root: Path) -> Source:
    """`imagenet`: class names are those that CLIP uses, in the order of the sorted WordNet ids."""
    source = _by_wordnet_id(dataset, root)
    if len(source.classes) != 1000:
        raise SourceError(
            f"{root / 'imagenet'} holds {len(source.classes)} classes, not 1000. For a part of ImageNet: folder:PATH"
        )
    from open_clip import IMAGENET_CLASSNAMES

    classes = tuple(IMAGENET_CLASSNAMES)
    return Source(dataset, classes, source.groups, fingerprint(classes, source.groups, source.fingerprint))


def open_imagenet127(dataset: str, root: Path) -> Source:
    """`imagenet127`: classes by a file of lines "WORDNET_ID class name", in the order in which it first names them.

    The file is ROOT/imagenet127.txt, or the one that the variable FASTLTSSL_IMAGENET127 names.
    """
    file = Path(os.environ.get("FASTLTSSL_IMAGENET127") or root / MAPPING)
    if not file.is_file():
        raise SourceError(
            f"{dataset} needs a mapping of WordNet ids to its classes, and there is no {file}. "
            "Accepted: lines such as 'n01440764 fish', in that file or in the one FASTLTSSL_IMAGENET127 names"
        )
    pairs = [line.split(maxsplit=1) for line in file.read_text().splitlines() if line.strip()]
    if bad := [number for number, pair in enumerate(pairs, 1) if len(pair) < 2]:
        raise SourceError(f"{file}, line {bad[0]}: {pairs[bad[0] - 1]} is not a WordNet id and a class name")
    mapping = {wnid: name.strip() for wnid, name in pairs}
    classes = tuple(dict.fromkeys(mapping.values()))
    source = _by_wordnet_id(dataset, root)
    if missing := [wnid for wnid in source.classes if wnid not in mapping]:
        raise SourceError(f"{file} does not say the class of {missing[0]} ({len(missing)} folders are not in it)")
    new_label = np.array([classes.index(mapping[wnid]) for wnid in source.classes])
    groups: dict[str, Images] = {
        name: dataclasses.replace(images, labels=new_label[images.labels])  # type: ignore[type-var]
        for name, images in source.groups.items()
    }
    return Source(dataset, classes, groups, fingerprint(classes, groups, source.fingerprint))


def _by_wordnet_id(dataset: str, root: Path) -> Source:
    """The images, with WordNet ids for classes."""
    top = root.expanduser() / "imagenet"
    if not (top / "train").is_dir():
        raise SourceError(
            f"{dataset}: there is no {top / 'train'}. ImageNet cannot be downloaded for you. Accepted: {LAYOUT}"
        )
    return open_folder(f"folder:{top}")
