"""The encoder and the images that a cache was made with, opened again and checked to be the same."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from fastltssl.cache.catalogue import Cache
from fastltssl.encoder.clip import Encoder, load_encoder
from fastltssl.errors import RunError
from fastltssl.images import open_source
from fastltssl.images.source import Source, limited
from fastltssl.reading import short, typed


class Preprocessing(TypedDict):
    """By what pixels are normalised, per channel."""

    mean: list[float]
    std: list[float]


class Made(TypedDict):
    """What the provenance of an extracted cache says of its encoder and images, as far as it is read."""

    model: str
    pretrained: str | None
    precision: str
    is_trimmed: bool
    is_compiled: NotRequired[bool]
    preprocessing: Preprocessing
    weights_sha256: str
    dataset: str
    dataset_fingerprint: str
    templates: str
    seed: int


def made_with(cache: Cache) -> Made:
    """What a cache was made with. Raises RunError where it was imported, or its provenance is not understood."""
    known = cache.attributes["provenance"]
    if "weights_sha256" not in known:
        raise RunError(f"{cache.path} was imported, so no encoder is known that could read images for it")
    made: Made = typed(known, Made, f"{cache.path}, provenance", RunError)
    for name, channels in made["preprocessing"].items():
        if len(channels) != 3:  # type: ignore[arg-type]
            raise RunError(f"{cache.path}, provenance, preprocessing.{name}: {short(channels)} are not three numbers")
    return made


def encoder_for(cache: Cache, device: str, pretrained: str | None = None, *, taps: bool = False) -> Encoder:
    """The encoder a cache was made with. Raises RunError where the cache was imported, or the weights have changed."""
    known = made_with(cache)
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
    known = made_with(cache)
    source = open_source(dataset or known["dataset"], root, exif=exif_of(cache))
    if source.fingerprint != known["dataset_fingerprint"]:  # it may have been limited to some of them
        source = limited(source, max(len(group.ids) for group in cache.groups.values()))
    if source.fingerprint != known["dataset_fingerprint"]:
        raise RunError(
            f"the images of {dataset or known['dataset']} are not those {cache.path} was made of (ids, labels or file "
            "sizes differ). Give the --dataset and --root it was made with, or extract again"
        )
    return source
