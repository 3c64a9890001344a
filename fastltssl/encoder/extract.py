"""Stage one: every view of every image of a source goes through the frozen encoder once, into a cache.

An image is decoded once for all of its views. The unit of work is a slab of 64 rows; the last slab of a block is padded
to it. On a CPU each slab is computed by one thread, and several slabs at the same time, so that the features depend
neither on the number of threads or workers nor on where an interrupted extraction was resumed.
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
from fastltssl.cache.emulated import storable
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

MIN_COSINE, COMPARED = 0.999, 64  # features in low precision and in fp32: their least mean cosine, on so many images
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")  # what may change a feature


class Summary(NamedTuple):
    """What an extraction did, not counting the work of an earlier one that it resumed."""

    images: int
    views: int
    seconds: float
    images_per_s: float
    views_per_s: float
    waiting: float  # share of the time spent on waiting for images
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
    """Write the cache `out`, yielding progress after every slab. `workers` threads decode images ahead of time.

    An image that cannot be decoded raises BrokenImage; with `skip_broken` it is left out and named in the summary.
    Views are copied from `known`, a cache of the same images and encoder, where it has them. Of several ranks each
    encodes a range of blocks; progress is that of this rank, the summary that of all.
    Raises CacheError where `out` cannot be written or continued, EncoderError where a low precision is too far off.
    """
    began = time.perf_counter()
    yield from map(Note, source.notes)
    with pipeline(encoder.device, workers) as threads:
        if encoder.provenance["precision"] != "fp32" or "is_compiled" in encoder.provenance:
            yield Note(threads.lanes.submit(check_precision, source, encoder).result())
        # Text is encoded in the same lanes, one thread for a batch, so that it does not depend on their number either.
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
            yield from map(Note, writer.notes)
            missing = {name: _missing(known, name, views_of(name, views)) for name in source.groups}
            blocks = writer.pending()
            slabs = threads.encoded(source, encoder, missing, blocks, seed=seed, skip_broken=skip_broken)
            merged = partial(_merged, known, views) if known else lambda block, features, broken: (features, broken)
            summary = yield from _commit_all(writer, source, slabs, merged, threads.lane_count)
            summaries = ranks.gather(summary)
            if ranks.rank == 0:
                writer.close()
            carriers = source.orientation.carriers if source.orientation else set()
            carriers.update(*ranks.gather(carriers))  # every rank waits until the cache is complete
    notes = orientation_notes(source)
    yield from map(Note, notes)
    seconds, notes = time.perf_counter() - began, [*source.notes, *writer.notes, *notes]
    return _total(summaries)._replace(seconds=seconds, path=Path(out), notes=tuple(notes))


def orientation_notes(source: Source) -> list[str]:
    """A note on the images read so far whose EXIF orientation is another than 1, and on what was done with it."""
    if source.orientation is None or not source.orientation.carriers:
        return []
    done = {
        "ignore": "it was ignored, as published pipelines do; --exif apply turns them upright",
        "apply": "they were turned upright",
    }[source.orientation.exif]
    return [f"images read that carry an EXIF orientation: {len(source.orientation.carriers):,}; {done}"]


def _total(summaries: Sequence[Summary]) -> Summary:
    """The work of all ranks. They ran at the same time, so their rates add up, and the share of waiting is a mean."""
    added = ("images", "views", "bytes", "images_per_s", "views_per_s", "waiting")
    total = {name: sum(getattr(summary, name) for summary in summaries) for name in added}
    total["waiting"] /= len(summaries)
    return summaries[0]._replace(**total, broken=tuple(name for summary in summaries for name in summary.broken))


def check_precision(source: Source, encoder: Encoder) -> str:
    """A line that says how close the features are to those in fp32; raises EncoderError where they are too far."""
    images = source.groups["train"]
    rows = evenly_spaced(images.labels, COMPARED).tolist()
    canvases = torch.from_numpy(np.stack([encoder.canvas(image) for image in images.read(rows)]))
    cosine = float(F.cosine_similarity(encoder.encode(canvases), encoder.encode_exact(canvases)).mean())
    comparison = f"{encoder.provenance['precision']} against fp32 on {len(rows)} images: mean cosine {cosine:.5f}"
    if not cosine >= MIN_COSINE:
        raise EncoderError(f"{comparison}, below {MIN_COSINE}. Use --precision fp32")
    return comparison


def _commit_all(
    writer: Writer,
    source: Source,
    slabs: Iterable[Encoded],
    merged: Callable[[Block, np.ndarray, list[int]], tuple[np.ndarray, list[int]]],
    lanes: int,
) -> Work[Summary]:
    """Join the slabs of each pending block, in order, and commit it; `merged` adds what is not encoded here."""
    total = sum(block.stop - block.start for block in writer.pending())
    began, waited, images, rows, written = time.perf_counter(), 0.0, 0, 0, 0
    parts: list[Float32[np.ndarray, "rows V P D"]] = []
    broken: list[int] = []  # rows of the block
    broken_ids: list[str] = []
    for slab, features, waited_s, broken_rows in slabs:
        parts.append(features)
        broken += broken_rows
        broken_ids += [source.groups[slab.block.group].ids[row] for row in broken_rows]
        waited, images = waited + waited_s / lanes, images + len(features)
        rows += len(features) * features.shape[1]
        if slab.stop == slab.block.stop:
            block, broken = merged(slab.block, np.concatenate(parts), broken)
            block[:, :, 0] = storable(block[:, :, 0])
            written += writer.commit(slab.block, block if len(writer.parts) > 1 else block[:, :, 0], broken)
            parts, broken = [], []
        yield Progress(
            images, total, time.perf_counter() - began, unit="images", part=slab.block.group, waited_s=waited
        )
    elapsed = max(time.perf_counter() - began, 1e-9)
    return Summary(
        images=images,
        views=rows,
        seconds=elapsed,
        images_per_s=images / elapsed,
        views_per_s=rows / elapsed,
        waiting=waited / elapsed,
        bytes=written,
        path=writer.path,
        notes=(),
        broken=tuple(broken_ids),
    )


def _missing(known: Cache | None, group: str, views: tuple[View, ...]) -> tuple[View, ...]:
    """The views that have to be encoded, because `known` does not hold them."""
    held = known.groups[group].views if known else ()
    return tuple(view for view in views if view.name not in held)


def _merged(
    known: Cache, views: Sequence[View], block: Block, features: np.ndarray, broken: list[int]
) -> tuple[np.ndarray, list[int]]:
    """The features [rows V P D] of a block with those of the views that `known` holds, and its broken rows."""
    group = known.groups[block.group]
    names = [view.name for view in views_of(block.group, views)]
    old = [name for name in group.views if name in names]
    new = [name for name in names if name not in old]
    table = np.empty((len(features), len(names), *features.shape[2:]), np.float32)
    table[:, [names.index(name) for name in new]] = features
    stored = np.empty((len(old), len(features), features.shape[-1]), "<f2")
    for place, part in enumerate(("features", *group.taps)):
        read, _ = reader(group, old, part)
        read(block.start, block.stop, stored)
        table[:, [names.index(name) for name in old], place] = stored.swapaxes(0, 1)
    known_broken = [row for row in group.broken if block.start <= row < block.stop]
    return table, sorted({*broken, *known_broken})


# ---------------------------------------------------------------------------------------------- what is written


def views_of(group: str, views: Sequence[View]) -> tuple[View, ...]:
    """The views that a group gets: test images are never augmented."""
    return tuple(views[:1] if group == "test" else views)


def _group(name: str, images: Images, views: Sequence[View]) -> GroupSpec:
    return GroupSpec(images.ids, images.labels, tuple(view.name for view in views_of(name, views)))


def provenance(source: Source, encoder: Encoder, views: Sequence[View], templates: str, seed: int) -> dict[str, Any]:
    """Everything the features and the text depend on, as plain JSON values; equal provenance means equal caches."""
    is_turned = source.orientation is not None and source.orientation.exif == "apply"
    return (
        encoder.provenance
        | {
            "dataset": source.name,
            "dataset_fingerprint": source.fingerprint,
            "views": {view.name: str(view.recipe) for view in views},
            "seed": seed,
            "templates": templates,
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        | ({"exif": "apply"} if is_turned else {})
    )
