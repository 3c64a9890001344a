"""What `fastltssl extract` does, for the shell and for notebooks: an Extraction holds the options of one extraction."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastltssl.cache.catalogue import cache_folder
from fastltssl.encoder.clip import Encoder, load_encoder
from fastltssl.encoder.extract import Summary, extract
from fastltssl.errors import EncoderError
from fastltssl.images import open_source, statistics
from fastltssl.images.prompts import templates_of
from fastltssl.images.source import Source, place
from fastltssl.images.views import parse_views
from fastltssl.machine import ALONE, Ranks
from fastltssl.progress import Note, Work, drain


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The options of `fastltssl extract`: each field is the option of that name, with its meaning and default."""

    model: str  # the name of an open_clip model, tiny, or local-dir:FOLDER
    dataset: str  # world, folder:PATH, cifar100 ...: see `fastltssl.images.FORMS`
    pretrained: str | None = None  # a tag, the path of a checkpoint, or none
    root: Path | None = None  # where torchvision keeps its files; None: datasets
    views: str = "center,weak:4,strong:4"
    templates: str | None = None  # None: simple, and the data set's own
    out: Path | None = None  # None: in the cache folder, named after data set and model
    seed: int = 0  # of the views
    limit: int | None = None  # images of each group
    precision: str = "auto"  # fp32, bf16 or fp16; auto: bf16 on a GPU
    exif: str = "ignore"  # or apply: images that carry an EXIF orientation are turned upright
    normalise: str = "model"  # model or dataset: whose mean and standard deviation pixels are normalised by
    compiled: bool | None = None  # run the tower through torch.compile; None: on a GPU
    taps: str | None = None  # mid, tokens@L, or both joined by a comma
    trim: bool = True  # compute the last block for the class token alone
    workers: int = 2  # threads that decode images
    skip_broken: bool = False
    resume: bool = False
    overwrite: bool = False
    device: str = "cpu"

    @property
    def path(self) -> Path:
        """Where the cache is written."""
        return self.out or cache_folder() / f"{file_stem(self.dataset)}_{file_stem(self.model)}.zarr"

    @property
    def parts(self) -> list[str]:
        """The names in `taps`, each "mid" or "tokens@L". Raises EncoderError on anything else."""
        named = [part.strip() for part in self.taps.split(",")] if self.taps else []
        if wrong := [part for part in named if not re.fullmatch(r"mid|tokens@\d+", part)]:
            raise EncoderError(f"--taps {wrong[0]!r} is none of mid and tokens@L, such as mid or mid,tokens@11")
        return named

    @property
    def token_blocks(self) -> list[int]:
        """The blocks L of every tokens@L in `taps`. Tokens are not stored: their size and speed are only reported."""
        return [int(part.removeprefix("tokens@")) for part in self.parts if part != "mid"]


def opened(asked: Extraction, ranks: Ranks = ALONE) -> tuple[Source, Encoder]:
    """The images and the encoder of an extraction. Raises SourceError, EncoderError or ViewError."""
    parse_views(asked.views)  # a mistyped option is reported before a model is loaded
    has_taps = "mid" in asked.parts
    source = ranks.first(lambda: open_source(asked.dataset, asked.root, asked.limit, asked.exif))
    encoder = ranks.first(
        lambda: load_encoder(
            asked.model,
            asked.pretrained,
            asked.device,
            asked.precision,
            trim=asked.trim,
            taps=has_taps,
            compiled=asked.device.startswith("cuda") if asked.compiled is None else asked.compiled,
            statistics=statistics(asked.dataset) if asked.normalise == "dataset" else None,
        )
    )
    return source, encoder


def extracting(asked: Extraction, source: Source, encoder: Encoder, ranks: Ranks = ALONE) -> Work[Summary]:
    """The extraction itself, yielding progress; every process that takes part returns the same summary."""
    for note in encoder.notes if ranks.rank == 0 else ():
        yield Note(note)
    return (
        yield from extract(
            source,
            encoder,
            parse_views(asked.views),
            asked.path,
            templates=asked.templates or ("world" if asked.model == "tiny" else templates_of(asked.dataset)),
            seed=asked.seed,
            workers=asked.workers,
            skip_broken=asked.skip_broken,
            resume=asked.resume,
            overwrite=asked.overwrite,
            ranks=ranks,
        )
    )


def run_extraction(model: str, dataset: str, **options: Any) -> Summary:
    """`fastltssl extract` for notebooks: images through the frozen encoder into a cache, whose path is in the summary.

    `options` are the fields of Extraction. Raises EncoderError for a model that cannot be loaded, SourceError for
    a data set, CacheError where the cache exists already (resume=True continues it, overwrite=True replaces it).
    """
    asked = Extraction(model=model, dataset=dataset, **options)
    return drain(extracting(asked, *opened(asked)))


def file_stem(name: str) -> str:
    """A model or data set as part of a file name: without its prefix such as folder:, its folders and its suffix."""
    kind, colon, rest = name.partition(":")
    name = rest if colon and kind in ("folder", "list", "wds", "hf") else name
    if kind == "folder" and colon:
        name = os.path.abspath(place(rest)).rstrip("/") or kind  # folder:. is called as the folder is
    last = name.rstrip("/").split("/")[-1].removesuffix(".csv").removesuffix(".tar")
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in last)
