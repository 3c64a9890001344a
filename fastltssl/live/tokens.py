"""The tokens that enter the trained blocks of an encoder, each view's once, in memory.

A training that changes only the last blocks need not compute those before them again and again. Tokens are large
(ViT-B-16: 303 KB a view), so they are worth it only in memory; a TokenPlan says how large, and when they pay off.
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
from fastltssl.errors import SourceError
from fastltssl.images.source import Source
from fastltssl.images.views import parse_views
from fastltssl.live.images import Augmented, Seen
from fastltssl.machine import SPARE, available_memory
from fastltssl.progress import Progress, Work

Front = Callable[[Float[Tensor, "n 3 S S"]], Float[Tensor, "n L D"]]
SAMPLE, REPEATS = 16, 3  # views, and measurements of which the fastest counts


class Tokens(NamedTuple):
    """The tokens that enter the trained blocks, of every view that will be seen."""

    table: Float16[Tensor, "P L D"]
    code: Int[np.ndarray, " P"]  # picture and view as one number, ascending
    names: tuple[str, ...]
    device: torch.device

    def __call__(self, seen: Seen) -> Float[Tensor, "n L D"]:
        places = np.searchsorted(self.code, _code(seen, self.names))
        return self.table[places].to(self.device).float()


def _code(seen: Seen, names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    number = {name: place for place, name in enumerate(names)}
    return seen.picture * len(names) + np.array([number[name] for name in seen.names], np.int64)


class TokenPlan(NamedTuple):
    """What keeping tokens costs and saves, said before they are made. Times are of one view, forward only."""

    views: int  # different ones
    shape: tuple[int, int]  # L, D
    before_s: float  # of the blocks before, which tokens save
    after_s: float  # of the blocks from there on
    visits: int = 0  # of a training, which would encode a view at each of them; 0 where none is planned yet

    @property
    def bytes(self) -> int:
        """Of all tokens, as float16."""
        return 2 * self.views * self.shape[0] * self.shape[1]

    @property
    def fits(self) -> bool:
        return self.bytes <= SPARE * available_memory()

    def __str__(self) -> str:
        cost, saved = self.views * self.before_s, (self.visits - self.views) * self.before_s
        use = f", for {self.visits:,} visits" if self.visits else ""
        saves = f"save {saved:.0f} s, and " if self.visits else ""
        return (
            f"tokens of the frozen blocks: {self.views:,} views x {self.shape[0]} x {self.shape[1]} float16, "
            f"{self.bytes / max(1, self.views) / 1000:,.0f} KB a view, {self.bytes / 2**30:.2f} GiB of "
            f"{available_memory() / 2**30:.1f} free{use}. "
            f"A view takes {1000 * self.before_s:.2f} ms through the frozen blocks and {1000 * self.after_s:.2f} ms "
            f"through the others (forward): they cost {cost:.0f} s once, {saves}pay off from {self.views:,} visits on"
        )


def plan_tokens(every: Sequence[Seen], images: Augmented, front: Front, rest: Callable[[Tensor], Tensor]) -> TokenPlan:
    """The plan of a training that will see all of `every`."""
    names = tuple(dict.fromkeys(name for one in every for name in one.names))
    different = len(np.unique(np.concatenate([_code(one, names) for one in every])))
    shape, before_s, after_s = _measured(images(every[0].part(0, SAMPLE)), front, rest)
    return TokenPlan(different, shape, before_s, after_s, sum(len(one.picture) for one in every))


def plan_block(source: Source, encoder: Encoder, views: str, block: int, group: str = "train") -> TokenPlan:
    """The plan of the tokens that enter a block, for every view of a group; raises EncoderError for an absent block."""
    parts = encoder.split(block)
    sample = torch.zeros(SAMPLE, 3, encoder.size, encoder.size, dtype=torch.uint8)
    shape, before_s, after_s = _measured(sample, parts.tokens, parts.features)
    return TokenPlan(len(source.groups[group].ids) * len(parse_views(views)), shape, before_s, after_s)


def _measured(
    sample: Tensor, front: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]
) -> tuple[tuple[int, int], float, float]:
    """Shape of a view's tokens, and the seconds that it takes through either part of the tower."""
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):  # the first warms up
            began = time.perf_counter()
            tokens = front(sample)
            float(tokens.flatten()[0])  # waits for a GPU
            middle = time.perf_counter()
            float(rest(tokens).flatten()[0])
            times.append((middle - began, time.perf_counter() - middle))
    before, after = (min(each) / len(sample) for each in zip(*times[1:], strict=True))
    return (tokens.shape[1], tokens.shape[2]), before, after


def make_tokens(every: Sequence[Seen], images: Augmented, front: Front) -> Work[Tokens]:
    """The tokens of all that is seen, each view once."""
    names = tuple(dict.fromkeys(name for one in every for name in one.names))
    code = np.unique(np.concatenate([_code(one, names) for one in every]))
    index, number = np.divmod(code, len(names))
    table, began = torch.empty(0), time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(code), SLAB):
            last = min(first + SLAB, len(code))
            seen = Seen(index[first:last], tuple(names[k] for k in number[first:last]))
            found = front(images(seen)).half().cpu()
            if not first:
                table = torch.empty(len(code), *found.shape[1:], dtype=torch.float16)
            table[first:last] = found
            yield Progress(last, len(code), time.perf_counter() - began, unit="images", part="tokens")
    if not table.isfinite().all():
        raise SourceError("the tokens are not finite in float16; train with --live-views fresh")
    return Tokens(table, code, names, images.pictures.encoder.device)
