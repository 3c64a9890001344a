"""Stage one: every view of every image of a source through the frozen encoder, once, into a cache.

An image is decoded once for all of its views. The unit of work is a slab of 64 rows, the last one of a group padded;
on a CPU each slab is computed by one thread and slabs run side by side, so that the features depend neither on the
number of threads or workers nor on where an interrupted extraction went on.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.layout import Block, GroupSpec
from fastltssl.cache.reader import reader
from fastltssl.cache.writer import Writer, create
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.pipeline import Encoded, pipeline
from fastltssl.errors import EncoderError
from fastltssl.images.prompts import prompts
from fastltssl.images.prompts import templates as patterns
from fastltssl.images.source import Images, Source, evenly_spaced
from fastltssl.images.views import View
from fastltssl.machine import ALONE, Ranks
from fastltssl.progress import Note, Progress, Work

GATE, GATE_ROWS = 0.999, 64  # least mean cosine between features in low precision and in fp32, on so many images
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")  # what may change a feature


class Summary(NamedTuple):
    """What an extraction did; rates and seconds leave out what an earlier one had done."""

    images: int
    views: int
    seconds: float
    images_per_s: float
    views_per_s: float
    waiting: float  # share of the time that went by waiting for images
    bytes: int
    path: Path
    notes: tuple[str, ...]
    broken: tuple[str, ...]  # ids of images that were left out


def extract(
    source: Source,
    encoder: Encoder,
    views: Sequence[View],
    out: str | Path,
    *,
    templates: str,
    seed: int = 0,
    workers: int = 2,
    skip_broken: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    known: Cache | None = None,
    ranks: Ranks = ALONE,
) -> Work[Summary]:
    """Write the cache `out`, yielding progress after every slab. `workers` threads decode ahead, with 0 none does.

    An image that cannot be decoded ends it by name; with `skip_broken` such images are counted and left out. Views that
    `known` holds, a cache of the same images and encoder, are taken from there. Of several ranks each encodes a range
    of chunks; progress is of this rank, the summary of all.

    Raises CacheError where `out` cannot be written or continued, EncoderError where a low precision is too far from
    fp32, and what reading the source raises.
    """
    began = time.perf_counter()
    with pipeline(encoder.device, workers) as threads:
        if encoder.provenance["precision"] != "fp32" or "is_compiled" in encoder.provenance:
            yield Note(threads.lanes.submit(check_precision, source, encoder).result())
        # In lanes, too: one thread a slab, so that the text does not depend on their number either.
        text = encoder.encode_text(prompts(source.classes, templates), threads.lanes.map)
        tables = {"text": text, "projection": encoder.projection, "ln_post": encoder.ln_post}
        with create(
            out,
            provenance=provenance(source, encoder, views, templates, seed),
            classes=source.classes,
            groups={name: _group(name, images, views) for name, images in source.groups.items()},
            width=encoder.width,
            templates=patterns(templates),
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
            taps=encoder.taps,
            resume=resume,
            overwrite=overwrite,
            ranks=ranks,
            **tables,
        ) as writer:
            for note in writer.notes:
                yield Note(note)
            missing = {name: _missing(known, name, views_of(name, views)) for name in source.groups}
            blocks = writer.pending()
            slabs = threads.encoded(source, encoder, missing, blocks, seed=seed, skip_broken=skip_broken)
            whole = partial(_with_known, known, views) if known else lambda block, features, broken: (features, broken)
            own = yield from _commit_all(writer, source, slabs, whole, threads.lane_count)
            done = ranks.gather(own)
            if ranks.rank == 0:
                writer.close()
            ranks.gather(None)  # nobody leaves before the cache is complete
    return _together(done)._replace(seconds=time.perf_counter() - began, path=Path(out), notes=tuple(writer.notes))


def _together(done: Sequence[Summary]) -> Summary:
    """The work of all ranks, at the rate they had side by side."""
    total = {name: sum(getattr(one, name) for one in done) for name in ("images", "views", "bytes", "waiting")}
    rates = {name: sum(getattr(one, name) for one in done) for name in ("images_per_s", "views_per_s")}
    broken = tuple(lost for one in done for lost in one.broken)
    total["waiting"] /= len(done)
    return done[0]._replace(**total, **rates, broken=broken)


def check_precision(source: Source, encoder: Encoder) -> str:
    """How near the encoder's precision comes to fp32 on some training images; raises EncoderError where too far."""
    images = source.groups["train"]
    rows = evenly_spaced(images.labels, GATE_ROWS).tolist()
    canvases = torch.from_numpy(np.stack([encoder.canvas(image) for image in images.read(rows)]))
    cosine = float(F.cosine_similarity(encoder.encode(canvases), encoder.encode_exact(canvases)).mean())
    found = f"{encoder.provenance['precision']} against fp32 on {len(rows)} images: mean cosine {cosine:.5f}"
    if not cosine >= GATE:
        raise EncoderError(f"{found}, below {GATE}. Use --precision fp32")
    return found


def _commit_all(
    writer: Writer,
    source: Source,
    slabs: Iterable[Encoded],
    whole: Callable[[Block, np.ndarray, list[int]], tuple[np.ndarray, list[int]]],
    lanes: int,
) -> Work[Summary]:
    """Take the slabs of every pending block, in order, and commit each block once it is whole."""
    total = sum(block.stop - block.start for block in writer.pending())
    began, waited, images, rows, written = time.perf_counter(), 0.0, 0, 0, 0
    parts: list[Float32[np.ndarray, "rows V P D"]] = []
    broken: list[int] = []
    lost: list[str] = []
    for slab, features, waited_s, bad in slabs:
        parts.append(features)
        broken += bad
        lost += [source.groups[slab.block.group].ids[row] for row in bad]
        waited, images = waited + waited_s / lanes, images + len(features)
        rows += len(features) * features.shape[1]
        if slab.stop == slab.block.stop:
            block, broken = whole(slab.block, np.concatenate(parts), broken)
            written += writer.commit(slab.block, block if len(writer.parts) > 1 else block[:, :, 0], broken)
            parts, broken = [], []
        yield Progress(
            images, total, time.perf_counter() - began, unit="images", part=slab.block.group, waited_s=waited
        )
    elapsed = max(time.perf_counter() - began, 1e-9)
    return Summary(
        images, rows, elapsed, images / elapsed, rows / elapsed, waited / elapsed, written, writer.path, (), tuple(lost)
    )


def _missing(known: Cache | None, group: str, views: tuple[View, ...]) -> tuple[View, ...]:
    """The views that have to be encoded."""
    there = known.groups[group].views if known else ()
    return tuple(view for view in views if view.name not in there)


def _with_known(
    known: Cache, views: Sequence[View], block: Block, features: np.ndarray, broken: list[int]
) -> tuple[np.ndarray, list[int]]:
    """A block [rows V P D] of all views, those of another cache among them, and its broken rows."""
    group = known.groups[block.group]
    names = [view.name for view in views_of(block.group, views)]
    old = [name for name in group.views if name in names]
    new = [name for name in names if name not in old]
    table = np.empty((len(features), len(names), *features.shape[2:]), np.float32)
    table[:, [names.index(name) for name in new]] = features
    into = np.empty((len(old), len(features), features.shape[-1]), "<f2")
    for place, part in enumerate(("features", *group.taps)):
        reader(group, old, part)[0](block.start, block.stop, into)
        table[:, [names.index(name) for name in old], place] = into.swapaxes(0, 1)
    known_broken = [row for row in group.broken if block.start <= row < block.stop]
    return table, sorted({*broken, *known_broken})


# ---------------------------------------------------------------------------------------------- what is written


def views_of(group: str, views: Sequence[View]) -> tuple[View, ...]:
    """The views a group gets: test images are only ever seen as they are."""
    return tuple(views[:1] if group == "test" else views)


def _group(name: str, images: Images, views: Sequence[View]) -> GroupSpec:
    return GroupSpec(images.ids, images.labels, tuple(view.name for view in views_of(name, views)))


def provenance(source: Source, encoder: Encoder, views: Sequence[View], templates: str, seed: int) -> dict[str, Any]:
    """Everything the features and the text depend on, plain JSON values; two caches that agree in it are the same."""
    return encoder.provenance | {
        "dataset": source.name,
        "dataset_fingerprint": source.fingerprint,
        "views": {view.name: str(view.recipe) for view in views},
        "seed": seed,
        "templates": templates,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
