"""The encoder and the images that a cache was made with, opened again and checked to be the same."""

from pathlib import Path
from typing import Any

from fastltssl.cache.catalogue import Cache
from fastltssl.encoder.clip import Encoder, load_encoder
from fastltssl.errors import RunError
from fastltssl.images import open_source
from fastltssl.images.source import Source, limited


def encoder_for(cache: Cache, device: str, pretrained: str | None = None, *, taps: bool = False) -> Encoder:
    """The encoder a cache was made with. Raises RunError where the cache was imported, or the weights have changed."""
    known: Any = cache.attributes.get("provenance", {})
    if "weights_sha256" not in known:
        raise RunError(f"{cache.path} was imported, so no encoder is known that could read images for it")
    encoder = load_encoder(
        known["model"], pretrained or known["pretrained"], device, known["precision"],
        trim=known["is_trimmed"], taps=taps,
        statistics=(tuple(known["preprocessing"]["mean"]), tuple(known["preprocessing"]["std"])),
    )  # fmt: skip
    if encoder.provenance["weights_sha256"] != known["weights_sha256"]:
        raise RunError(
            f"{known['model']} has other weights than {cache.path} was made with "
            f"({encoder.provenance['weights_sha256'][:12]}, {known['weights_sha256'][:12]}). Pass --pretrained PATH"
        )
    return encoder


def exif_of(cache: Cache) -> str:
    """What was done with the EXIF orientation of the images of a cache: "ignore" or "apply"."""
    known: Any = cache.attributes.get("provenance", {})
    return str(known.get("exif", "ignore"))


def source_of(cache: Cache, dataset: str | None = None, root: Path | None = None) -> Source:
    """The images a cache was made of. Raises RunError where the data set has changed."""
    known = cache.attributes["provenance"]
    source = open_source(dataset or str(known["dataset"]), root, exif=exif_of(cache))
    if source.fingerprint != known["dataset_fingerprint"]:  # it may have been limited to some of them
        source = limited(source, max(len(group.ids) for group in cache.groups.values()))
    if source.fingerprint != known["dataset_fingerprint"]:
        raise RunError(
            f"the images of {dataset or known['dataset']} are not those {cache.path} was made of (ids, labels or file "
            "sizes differ). Give the --dataset and --root it was made with, or extract again"
        )
    return source
