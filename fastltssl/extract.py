"""Stage one: every view of every image of a source through the frozen encoder, once, into a cache.

An image is decoded once for all of its views. The unit of work is a slab of 64 rows, the last one of a group padded;
on a CPU each slab is computed by one thread and slabs run side by side, so that the features depend neither on the
number of threads or workers nor on where an interrupted extraction went on.
"""

import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8, UInt64
from torch import Tensor

from fastltssl.contents import SLAB, Block, GroupSpec
from fastltssl.encoder import Encoder, EncoderError
from fastltssl.prompts import prompts
from fastltssl.prompts import templates as patterns
from fastltssl.sources import BrokenImage, Images, Source, evenly_spaced
from fastltssl.views import View, image_key, make_view
from fastltssl.writer import Writer, create

GPU_LANES = 2  # one slab is prepared while another is computed
GATE, GATE_ROWS = 0.999, 64  # least mean cosine between features in low precision and in fp32, on so many images
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")  # what may change a feature


class Progress(NamedTuple):
    """How far an extraction is; `done` and `total` count the images this call has to encode."""

    group: str
    done: int
    total: int
    elapsed_s: float
    waited_s: float  # for images, the mean over the lanes
    note: str = ""  # a line the user should see


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


class _Slab(NamedTuple):
    """Rows start to stop of a block, at most SLAB."""

    block: Block
    start: int
    stop: int


class _Canvases(NamedTuple):
    """The images of a slab, padded to SLAB rows, with their keys."""

    pixels: UInt8[Tensor, "slab 3 S S"]
    keys: UInt64[np.ndarray, "slab"]
    broken: tuple[int, ...]  # rows of the group whose image could not be decoded; their pixels are zero


class _Encoded(NamedTuple):
    """The features of a slab, without the padding."""

    slab: _Slab
    features: Float32[np.ndarray, "rows V D"]
    waited_s: float
    broken: tuple[int, ...]


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
) -> Generator[Progress, None, Summary]:
    """Write the cache `out`, yielding progress after every slab. `workers` threads decode ahead, with 0 none does.

    An image that cannot be decoded ends it by name; with `skip_broken` such images are counted and left out.

    Raises CacheError where `out` cannot be written or continued, EncoderError where a low precision is too far from
    fp32, and what reading the source raises.
    """
    began, count = time.perf_counter(), _lane_count(encoder.device)
    with _pools(workers, count) as (decoders, lanes):
        if encoder.provenance["precision"] != "fp32":
            yield Progress("", 0, 0, 0.0, 0.0, lanes.submit(check_precision, source, encoder).result())
        # In a lane, too: one thread, so that the text does not depend on their number either.
        text = lanes.submit(encoder.encode_text, prompts(source.classes, templates)).result()
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
            resume=resume,
            overwrite=overwrite,
            **tables,
        ) as writer:
            for note in writer.notes:
                yield Progress("", 0, 0, 0.0, 0.0, note)
            submit = partial(_submit, decoders, lanes, source, encoder, views, seed, skip_broken)
            done = yield from _commit_all(writer, source, submit, 2 * count + workers, count)
            writer.close()
    seconds = time.perf_counter() - began
    return done._replace(seconds=seconds, path=Path(out), notes=tuple(writer.notes))


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
    writer: Writer, source: Source, submit: Callable[[_Slab], Future[_Encoded]], ahead: int, lanes: int
) -> Generator[Progress, None, Summary]:
    """Encode every pending block, slabs in order and `ahead` of them in flight, and commit each once whole."""
    blocks = writer.pending()
    total = sum(block.stop - block.start for block in blocks)
    began, waited, images, rows, written = time.perf_counter(), 0.0, 0, 0, 0
    parts: list[Float32[np.ndarray, "rows V D"]] = []
    broken: list[int] = []
    lost: list[str] = []
    for slab, features, waited_s, bad in _in_order(_slabs(blocks), submit, ahead):
        parts.append(features)
        broken += bad
        lost += [source.groups[slab.block.group].ids[row] for row in bad]
        waited, images, rows = waited + waited_s / lanes, images + len(features), rows + features[..., 0].size
        if slab.stop == slab.block.stop:
            written += writer.commit(slab.block, np.concatenate(parts), broken)
            parts, broken = [], []
        yield Progress(slab.block.group, images, total, time.perf_counter() - began, waited)
    elapsed = max(time.perf_counter() - began, 1e-9)
    return Summary(
        images, rows, elapsed, images / elapsed, rows / elapsed, waited / elapsed, written, writer.path, (), tuple(lost)
    )


def _slabs(blocks: Iterable[Block]) -> Iterator[_Slab]:
    for block in blocks:
        for start in range(block.start, block.stop, SLAB):
            yield _Slab(block, start, min(start + SLAB, block.stop))


def _in_order(slabs: Iterable[_Slab], submit: Callable[[_Slab], Future[_Encoded]], ahead: int) -> Iterator[_Encoded]:
    """Results in the order of the slabs, with at most `ahead` of them under way or waiting to be taken."""
    flight: deque[Future[_Encoded]] = deque()
    for slab in slabs:
        flight.append(submit(slab))
        if len(flight) >= ahead:
            yield flight.popleft().result()
    while flight:
        yield flight.popleft().result()


# ---------------------------------------------------------------------------------------------- threads


def _lane_count(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else GPU_LANES


@contextmanager
def _pools(workers: int, lanes: int) -> Iterator[tuple[ThreadPoolExecutor | None, ThreadPoolExecutor]]:
    """Threads that decode and threads that encode; what has not begun when this is left is dropped."""
    threads = torch.get_num_threads()
    decoders = ThreadPoolExecutor(workers) if workers else None
    encoders = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield decoders, encoders
    finally:
        encoders.shutdown(cancel_futures=True)
        if decoders:
            decoders.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _submit(
    decoders: ThreadPoolExecutor | None,
    lanes: ThreadPoolExecutor,
    source: Source,
    encoder: Encoder,
    views: Sequence[View],
    seed: int,
    skip_broken: bool,
    slab: _Slab,
) -> Future[_Encoded]:
    """Set a slab going. Without decoders its lane decodes, which then counts as waiting."""
    load = partial(_canvases, source.groups[slab.block.group], slab, encoder, skip_broken)
    ready = decoders.submit(load).result if decoders else load
    return lanes.submit(_encoded, slab, ready, encoder, views_of(slab.block.group, views), seed)


def _canvases(images: Images, slab: _Slab, encoder: Encoder, skip_broken: bool) -> _Canvases:
    rows = range(slab.start, slab.stop)
    pixels = np.zeros((SLAB, 3, encoder.size, encoder.size), np.uint8)
    keys = np.zeros(SLAB, np.uint64)
    read = _readable(images, rows) if skip_broken else images.read(rows)
    for place, (row, image) in enumerate(zip(rows, read, strict=True)):
        if image is not None:
            pixels[place], keys[place] = encoder.canvas(image), image_key(images.ids[row])
    broken = tuple(row for row, image in zip(rows, read, strict=True) if image is None)
    return _Canvases(torch.from_numpy(pixels), keys, broken)


def _readable(images: Images, rows: Sequence[int]) -> Sequence[UInt8[np.ndarray, "h w 3"] | None]:
    """The images of the rows, None where one cannot be decoded; one by one only where some cannot."""
    try:
        return images.read(rows)
    except BrokenImage:
        return [_read_one(images, row) for row in rows]


def _read_one(images: Images, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
    try:
        return images.read([row])[0]
    except BrokenImage:
        return None


def _encoded(
    slab: _Slab, ready: Callable[[], _Canvases], encoder: Encoder, views: Sequence[View], seed: int
) -> _Encoded:
    began = time.perf_counter()
    pixels, keys, broken = ready()
    waited_s = time.perf_counter() - began
    with torch.inference_mode():
        canvas = pixels.to(encoder.device).float().div_(255)
        features = [encoder.encode(make_view(canvas, view, keys, seed)) for view in views]
        table = torch.stack(features, dim=1)[: slab.stop - slab.start]
    features_of = table.cpu().numpy()
    features_of[[row - slab.start for row in broken]] = 0
    return _Encoded(slab, features_of, waited_s, broken)


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
