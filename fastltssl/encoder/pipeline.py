"""The threads of stage one: some decode the images of a slab, others encode it, and slabs come out in order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8, UInt64
from torch import Tensor

from fastltssl.cache.layout import SLAB, Block
from fastltssl.encoder.clip import Encoder
from fastltssl.errors import BrokenImage
from fastltssl.images.source import Images, Source
from fastltssl.images.views import View, image_key, make_view

LOT = 16  # images that a thread holds at their full size
GPU_LANES = 2  # threads that encode on a GPU: one prepares a slab while the GPU computes another


class Slab(NamedTuple):
    """Rows start to stop of a block, at most SLAB."""

    block: Block
    start: int
    stop: int


class Canvases(NamedTuple):
    """The images of a slab, padded to SLAB rows, with their keys."""

    pixels: UInt8[Tensor, "slab 3 S S"]
    keys: UInt64[np.ndarray, " slab"]
    broken: tuple[int, ...]  # rows of the group whose image could not be decoded; their pixels are zero


class Encoded(NamedTuple):
    """The features (first) and taps of a slab, without the padding."""

    slab: Slab
    features: Float32[np.ndarray, "rows V P D"]
    waited_s: float  # for its images
    broken: tuple[int, ...]


class Pipeline(NamedTuple):
    """Threads that decode images, and lanes: threads that each encode a slab without further threads."""

    decoders: ThreadPoolExecutor | None
    lanes: ThreadPoolExecutor
    lane_count: int
    ahead: int  # slabs in work or finished and not yet taken, at most

    def encoded(
        self,
        source: Source,
        encoder: Encoder,
        views: dict[str, tuple[View, ...]],
        blocks: Iterable[Block],
        *,
        seed: int,
        skip_broken: bool = False,
    ) -> Iterator[Encoded]:
        """The slabs of blocks, in order, encoded in the views of their group; without views nothing is read."""
        submitted: deque[Future[Encoded]] = deque()
        for block in blocks:
            for start in range(block.start, block.stop, SLAB):
                slab = Slab(block, start, min(start + SLAB, block.stop))
                submitted.append(self._submit(slab, source, encoder, views[block.group], seed, skip_broken))
                if len(submitted) >= self.ahead:
                    yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()

    def _submit(
        self, slab: Slab, source: Source, encoder: Encoder, views: tuple[View, ...], seed: int, skip_broken: bool
    ) -> Future[Encoded]:
        """Hand a slab to the threads. Without decoders its lane decodes, which then counts as waiting."""
        if not views:
            done: Future[Encoded] = Future()
            empty = np.zeros((slab.stop - slab.start, 0, 1 + len(encoder.taps), encoder.width), np.float32)
            done.set_result(Encoded(slab, empty, 0.0, ()))
            return done
        decode = partial(_canvases, source.groups[slab.block.group], slab, encoder, skip_broken)
        canvases = self.decoders.submit(decode).result if self.decoders else decode
        return self.lanes.submit(_encoded, slab, canvases, encoder, views, seed)


@contextmanager
def pipeline(device: torch.device, workers: int) -> Iterator[Pipeline]:
    """A pipeline with so many decoding threads; on leaving it, slabs that have not begun are dropped."""
    threads = torch.get_num_threads()
    count = threads if device.type == "cpu" else GPU_LANES
    decoders = ThreadPoolExecutor(workers) if workers else None
    lanes = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Pipeline(decoders, lanes, count, 2 * count + workers)
    finally:
        lanes.shutdown(cancel_futures=True)
        if decoders:
            decoders.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _canvases(images: Images, slab: Slab, encoder: Encoder, skip_broken: bool) -> Canvases:
    """The images of a slab, decoded, resized and cropped."""
    pixels = np.zeros((SLAB, 3, encoder.size, encoder.size), np.uint8)
    keys = np.zeros(SLAB, np.uint64)
    broken: list[int] = []
    for start in range(slab.start, slab.stop, LOT):
        lot = range(start, min(start + LOT, slab.stop))
        for row, image in zip(lot, _readable(images, lot) if skip_broken else images.read(lot), strict=True):
            if image is None:
                broken.append(row)
            else:
                place = row - slab.start
                pixels[place], keys[place] = encoder.canvas(image), image_key(images.ids[row])
    return Canvases(torch.from_numpy(pixels), keys, tuple(broken))


def _readable(images: Images, rows: Sequence[int] | np.ndarray) -> Sequence[UInt8[np.ndarray, "h w 3"] | None]:
    """The images of the rows, None for one that cannot be decoded. Read one by one only where needed."""
    try:
        return images.read(rows)
    except BrokenImage:
        return [_read_row(images, row) for row in rows]


def _read_row(images: Images, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
    try:
        return images.read([row])[0]
    except BrokenImage:
        return None


def _encoded(
    slab: Slab, canvases: Callable[[], Canvases], encoder: Encoder, views: Sequence[View], seed: int
) -> Encoded:
    """All views of a slab, encoded; `canvases` waits for its images."""
    began = time.perf_counter()
    pixels, keys, broken = canvases()
    waited_s = time.perf_counter() - began
    with torch.inference_mode():
        canvas = pixels.to(encoder.device).float().div_(255)
        made = [make_view(canvas, view, keys, seed) for view in views]
        # A GPU takes all views at once; one view at a time fits into the cache memory of a CPU.
        batches = made if encoder.device.type == "cpu" else [torch.cat(made)]
        parts = torch.cat([encoder.encode_parts(batch) for batch in batches])
        table = rearrange(parts, "(v s) p d -> s v p d", v=len(views))[: slab.stop - slab.start]
    features = table.cpu().numpy()
    features[[row - slab.start for row in broken]] = 0
    return Encoded(slab, features, waited_s, broken)
