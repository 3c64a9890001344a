"""The tokens that enter one block of the encoder, for every image and view, in memory.

A training that changes only the blocks from there on need not compute the ones before again. Tokens are large
(ViT-B-16: 303 KB a view), so they are worth it only in memory; `plan` says how large, and when they pay off.
"""

import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16

from fastltssl.cache.layout import SLAB, all_blocks
from fastltssl.cache.reader import SPARE, available_memory
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.extract import Progress
from fastltssl.encoder.pipeline import pipeline
from fastltssl.encoder.weights import EncoderError
from fastltssl.images import Source
from fastltssl.images.views import View

SAMPLE, REPEATS = 16, 3  # images, and measurements of which the fastest counts


class Plan(NamedTuple):
    """What the tokens before a block cost; times are of one image, forward only, on the device as it is now."""

    block: int
    shape: tuple[int, int]  # L, D
    rows: int
    views: int
    before_s: float  # of the blocks before, which tokens save
    after_s: float  # of the blocks from there on

    @property
    def bytes(self) -> int:
        """Of all tokens, as float16."""
        return 2 * self.rows * self.views * self.shape[0] * self.shape[1]

    def __str__(self) -> str:
        per_view, share = self.bytes / max(1, self.rows * self.views), self.after_s / (self.before_s + self.after_s)
        return (
            f"tokens@{self.block}: {self.shape[0]} x {self.shape[1]} float16, {per_view / 1000:,.0f} KB a view, "
            f"{self.bytes / 2**30:.2f} GiB for {self.rows:,} images x {self.views} views "
            f"({available_memory() / 2**30:.1f} GiB of memory are free). To block {self.block}: "
            f"{1000 * self.before_s:.2f} ms an image, from there: {1000 * self.after_s:.2f} ms. They pay off after "
            f"{self.views} passes over the images, each of which then costs {share:.2f} of a live one (forward)"
        )


def plan(source: Source, encoder: Encoder, views: Sequence[View], block: int, group: str = "train") -> Plan:
    """Size and times of the tokens of a group, measured on a few images; raises EncoderError for an absent block."""
    parts = encoder.split(block)
    canvas = torch.zeros(SAMPLE, 3, encoder.size, encoder.size, dtype=torch.uint8)
    tokens = parts.tokens(canvas)
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):  # the first warms up
            began = time.perf_counter()
            parts.tokens(canvas)[0, 0, 0].item()
            middle = time.perf_counter()
            parts.features(tokens)[0, 0].item()
            times.append((middle - began, time.perf_counter() - middle))
    before, after = (min(each) / SAMPLE for each in zip(*times[1:], strict=True))
    return Plan(block, parts.shape, len(source.groups[group].ids), len(views), before, after)


def tokens(
    source: Source,
    encoder: Encoder,
    views: Sequence[View],
    block: int,
    *,
    group: str = "train",
    seed: int = 0,
    workers: int = 2,
) -> Generator[Progress, None, Float16[np.ndarray, "N V L D"]]:
    """The tokens that enter a block, of every view of a group's images; yields progress after every slab.

    Views are those of `extract` with the same seed. Raises EncoderError for an absent block, for values that float16
    does not hold, and where the memory does not.
    """
    parts, count = encoder.split(block), len(source.groups[group].ids)
    shape = (count, len(views), *parts.shape)
    needed, free = 2 * int(np.prod(shape)), available_memory()
    if needed > SPARE * free:
        raise EncoderError(
            f"tokens@{block} of {count:,} images x {len(views)} views need {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB of memory are free. Take fewer views or images, or train from images"
        )
    found = np.empty(shape, np.float16)
    began, waited = time.perf_counter(), 0.0
    cut = encoder._replace(encode_parts=parts.tokens)
    blocks = all_blocks({group: (count, len(views), parts.shape[1])}, {group: SLAB})
    with pipeline(encoder.device, workers) as threads:
        for slab, values, waited_s, _ in threads.encoded(source, cut, {group: tuple(views)}, blocks, seed=seed):
            with np.errstate(over="ignore"):
                found[slab.start : slab.stop] = values
            if not np.isfinite(found[slab.start : slab.stop]).all():
                raise EncoderError(f"tokens@{block} of rows {slab.start} to {slab.stop} are not finite in float16")
            waited += waited_s / threads.lane_count
            yield Progress(group, slab.stop, count, time.perf_counter() - began, waited)
    return found
