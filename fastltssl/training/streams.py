"""The seeded index streams that make up the batches.

A stream is drawn at once from its seed, so that batch t is the same in a single run, a joint one or a resumed one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from fastltssl.errors import MissingViews
from fastltssl.types import Batch, Method, Problem, seeded, wants_noise


class Stream(NamedTuple):
    """Which rows and views the batch of each step holds."""

    x_row: Int[Tensor, "steps B"]
    x_view: Int[Tensor, "steps B"]
    row: Int[Tensor, "steps U"]
    weak_view: Int[Tensor, "steps W U"]
    strong_view: Int[Tensor, "steps S U"]
    noise_seed: Int[Tensor, " _"]  # [steps], or [0] for a method without noise


def views_of(problem: Problem, role: str) -> list[int]:
    """Indices of the views with a role: "center", "weak" or "strong"."""
    return [index for index, name in enumerate(problem.views) if name.rstrip("0123456789") == role]


def require(problem: Problem, views: tuple[int, int]) -> None:
    """Raise MissingViews where the method trains on unlabelled rows or strong views that are not there."""
    weak, strong = views
    if (weak or strong) and not len(problem.u):
        raise MissingViews("this method trains on unlabelled rows and the split has none. Add --m1 COUNT")
    if strong and not views_of(problem, "strong"):
        raise MissingViews(
            f"this method trains on strong views and the cache holds only {', '.join(problem.views)}. Extract with "
            "--views center,weak:4,strong:4, or import with --emulate weak:8:0.2,strong:8:0.5:0.1"
        )


def make_stream(
    problem: Problem, method: Method, *, batch: int, batch_u: int, seed: int, noise: bool | None = None
) -> Stream:
    """The index stream of one seed, with the views that a method trains on. Raises MissingViews where there are none.

    Rows of a batch are distinct; an epoch's remainder is dropped. Noise is drawn if the method, with its settings,
    reads it, or if `noise` says so, as for a joint fit in which some runs do. It changes no other draw.
    """
    views = method.views
    require(problem, views)
    generator, steps = seeded(seed, "stream"), problem.steps
    weak = views_of(problem, "weak") or [0]
    strong = views_of(problem, "strong") or weak
    x_row = _epochs(len(problem.x), min(batch, len(problem.x)), steps, generator)
    row = _epochs(len(problem.u), min(batch_u, len(problem.u)), steps, generator)
    device = problem.x.device
    drawn = Stream(
        x_row=x_row,
        x_view=_drawn_views(weak, 1, x_row, generator)[:, 0],
        row=row,
        weak_view=_drawn_views(weak, views[0], row, generator),
        strong_view=_drawn_views(strong, views[1], row, generator),
        noise_seed=torch.randint(
            2**32, (steps if (wants_noise(method) if noise is None else noise) else 0,), generator=generator
        ),
    )
    return Stream(*(indices.to(device) for indices in drawn))


def batch_at(problem: Problem, stream: Stream, step: int) -> Batch:
    """The batch of one step, in the dtype of the labelled rows."""
    x_row, row = stream.x_row[step], stream.row[step]
    return Batch(
        x=problem.x[x_row, stream.x_view[step]],
        y=problem.y[x_row],
        x_row=x_row,
        weak=problem.u[row[None], stream.weak_view[step]].to(problem.x.dtype),
        strong=problem.u[row[None], stream.strong_view[step]].to(problem.x.dtype),
        row=row,
        noise=noise_at(problem, stream, step),
    )


def noise_at(problem: Problem, stream: Stream, step: int) -> Float[Tensor, "B D"] | None:
    """Uniform numbers in [0, 1), drawn on the CPU to be the same on every device; None for a method without noise."""
    if not len(stream.noise_seed):
        return None
    like, generator = problem.x, torch.Generator().manual_seed(int(stream.noise_seed[step]))
    shape = stream.x_row.shape[1], like.shape[-1]
    return torch.rand(*shape, generator=generator, dtype=like.dtype).to(like.device)


def _epochs(rows: int, count: int, steps: int, generator: Generator) -> Int[Tensor, "steps B"]:
    """Row indices of every step: shuffled epochs cut into batches of `count` distinct rows."""
    if not count:
        return torch.zeros(steps, 0, dtype=torch.long)
    per_epoch = rows // count
    epochs = -(-steps // per_epoch)
    order = [torch.randperm(rows, generator=generator)[: per_epoch * count] for _ in range(epochs)]
    return torch.cat(order).view(-1, count)[:steps]


def _drawn_views(options: list[int], count: int, rows: Tensor, generator: Generator) -> Int[Tensor, "steps K n"]:
    """`count` views of each row of each step: distinct ones, unless there are fewer."""
    steps, n = rows.shape
    first = torch.randint(len(options), (steps, 1, n), generator=generator)
    return torch.tensor(options)[(first + torch.arange(count)[:, None]) % len(options)]
