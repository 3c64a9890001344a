"""The tokens that enter the trained blocks of an encoder, computed once for each view and kept in memory.

A training of the last blocks can so skip the frozen ones before. Tokens are large (ViT-B-16: 303 KB a view), so that
they save time only in memory; a TokenPlan says how much they take and from how many views on they pay off.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from fastltssl.cache.layout import SLAB
from fastltssl.encoder.clip import Encoder
from fastltssl.errors import SourceError, byte_size
from fastltssl.images.source import Source
from fastltssl.images.views import parse_views
from fastltssl.live.images import Augmented, Seen
from fastltssl.machine import SPARE, available_memory
from fastltssl.progress import Progress, Work

Front = Callable[[Float[Tensor, "n 3 S S"]], Float[Tensor, "n L D"]]  # the frozen blocks
SAMPLE, REPEATS = 16, 3  # views that are timed, and repetitions, of which the fastest counts


class Tokens(NamedTuple):
    """The tokens of every view that will be seen. Called with a list of views, it returns their tokens."""

    table: Float16[Tensor, "P L D"]
    code: Int[np.ndarray, " P"]  # picture and view of a row of the table, as one number, ascending
    names: tuple[str, ...]  # of the views
    device: torch.device

    def __call__(self, seen: Seen) -> Float[Tensor, "n L D"]:
        places = np.searchsorted(self.code, _code(seen, self.names))
        return self.table[places].to(self.device).float()


def _code(seen: Seen, names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """One number for each picture and view: picture * len(names) + index of the view's name."""
    number = {name: place for place, name in enumerate(names)}
    return seen.picture * len(names) + np.array([number[name] for name in seen.names], np.int64)


class TokenPlan(NamedTuple):
    """What keeping tokens costs and saves, estimated before they are made. Times are of one view, forward only."""

    views: int  # distinct ones
    shape: tuple[int, int]  # L, D
    before_s: float  # through the blocks before the tokens, which are saved
    after_s: float  # through the blocks after them
    visits: int = 0  # views that the training encodes, repeated ones included; 0: no training is planned yet

    @property
    def bytes(self) -> int:
        """Of all tokens, as float16."""
        return 2 * self.views * self.shape[0] * self.shape[1]

    @property
    def fits(self) -> bool:
        """Whether memory holds them."""
        return self.bytes <= SPARE * available_memory()

    def __str__(self) -> str:
        cost, saved = self.views * self.before_s, (self.visits - self.views) * self.before_s
        use = f", for {self.visits:,} visits" if self.visits else ""
        saves = f"save {saved:.0f} s, and " if self.visits else ""
        return (
            f"tokens of the frozen blocks: {self.views:,} views x {self.shape[0]} x {self.shape[1]} float16, "
            f"{self.bytes / max(1, self.views) / 1000:,.0f} KB a view, {byte_size(self.bytes)} of "
            f"{byte_size(available_memory())} free{use}. "
            f"A view takes {1000 * self.before_s:.2f} ms through the frozen blocks and {1000 * self.after_s:.2f} ms "
            f"through the others (forward): they cost {cost:.0f} s once, {saves}pay off from {self.views:,} visits on"
        )


def plan_tokens(every: Sequence[Seen], images: Augmented, front: Front, rest: Callable[[Tensor], Tensor]) -> TokenPlan:
    """The plan of a training that will see the views `every`."""
    distinct, _ = _distinct(every)
    shape, before_s, after_s = _measured(images(every[0].part(0, SAMPLE)), front, rest)
    return TokenPlan(len(distinct), shape, before_s, after_s, sum(len(seen.picture) for seen in every))


def _distinct(every: Sequence[Seen]) -> tuple[Int[np.ndarray, " P"], tuple[str, ...]]:
    """The codes of the distinct views, ascending, and the names that they refer to."""
    names = tuple(dict.fromkeys(name for seen in every for name in seen.names))
    return np.unique(np.concatenate([_code(seen, names) for seen in every])), names


def plan_block(source: Source, encoder: Encoder, views: str, block: int) -> TokenPlan:
    """The plan of the tokens that enter a block, of all training views. Raises EncoderError for an absent block."""
    parts = encoder.split(block)
    sample = torch.zeros(SAMPLE, 3, encoder.size, encoder.size, dtype=torch.uint8)
    shape, before_s, after_s = _measured(sample, parts.tokens, parts.features)
    return TokenPlan(len(source.groups["train"].ids) * len(parse_views(views)), shape, before_s, after_s)


def _measured(
    sample: Tensor, front: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]
) -> tuple[tuple[int, int], float, float]:
    """Shape of the tokens of a view, and the seconds that a view takes through the two parts of the tower."""
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):  # the first warms up
            began = time.perf_counter()
            tokens = front(sample)
            float(tokens.flatten()[0])  # waits for a GPU
            middle = time.perf_counter()
            float(rest(tokens).flatten()[0])
            times.append((middle - began, time.perf_counter() - middle))
    before, after = (min(seconds) / len(sample) for seconds in zip(*times[1:], strict=True))
    return (tokens.shape[1], tokens.shape[2]), before, after


def make_tokens(every: Sequence[Seen], images: Augmented, front: Front) -> Work[Tokens]:
    """The tokens of the views `every`, each view once."""
    code, names = _distinct(every)
    index, number = np.divmod(code, len(names))
    table, began = torch.empty(0), time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(code), SLAB):
            last = min(first + SLAB, len(code))
            seen = Seen(index[first:last], tuple(names[k] for k in number[first:last]))
            tokens = front(images(seen)).half().cpu()
            if not first:
                table = torch.empty(len(code), *tokens.shape[1:], dtype=torch.float16)
            table[first:last] = tokens
            yield Progress(last, len(code), time.perf_counter() - began, unit="images", part="tokens")
    if not table.isfinite().all():
        raise SourceError("the tokens are not finite in float16; train with --live-views fresh")
    return Tokens(table, code, names, images.pictures.encoder.device)
