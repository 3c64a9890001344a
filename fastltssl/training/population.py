"""Splits x configurations trained as one program: start them, advance them, keep the best, score them.

Every leaf is [S, R, ...], S splits and R configurations. Configurations of a split share its batches, so that R small
products become one wide one. Groups advance one after another, as only the state of a few runs stays in a core's cache.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastltssl.training.step import MOMENTUM, cosine, gradient, start, with_knobs
from fastltssl.training.streams import Stream, batch_at
from fastltssl.training.vmap import glue, jointly, stack, take
from fastltssl.types import Batch, Method, Problem, Run, Scores

GROUP = 32  # runs that advance together on a CPU: see benchmarks/population.py
GROUPS = (8, 16, 32, 64, 128)  # tried by `tuned`


class Population(NamedTuple):
    """S splits x R configurations that differ in real knobs, between two steps."""

    method: Method
    knobs: dict[str, Float[Tensor, " R"]]  # but for these two:
    lr: Float[Tensor, " R"]
    weight_decay: Float[Tensor, " R"]
    problems: tuple[Problem, ...]  # one a split, as the streams
    streams: tuple[Stream, ...]
    run: Run  # leaves [S, R, ...]
    calls: dict[Any, Any] | None = None  # compiled gradients, where they are wanted

    @property
    def shape(self) -> tuple[int, int]:
        """Splits and configurations."""
        return len(self.problems), len(self.lr)

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters, momentum and state, were none of them shared."""
        return sum(leaf.numel() * leaf.element_size() for leaf in tree_flatten(self.run)[0])

    def configured(self, r: int) -> Method:
        """The method of one configuration."""
        return with_knobs(self.method, {name: float(values[r]) for name, values in self.knobs.items()})


def populate(
    method: Method,
    knobs: dict[str, Float[Tensor, " R"]],
    problems: Sequence[Problem],
    streams: Sequence[Stream],
    seeds: Sequence[int],
    *,
    lr: float,
    weight_decay: float,
    calls: dict[Any, Any] | None = None,
) -> Population:
    """A population before its first step; "lr" and "weight_decay" may be among the knobs.

    Given a dict as `calls`, steps are compiled and kept there: it takes a C++ compiler and seconds at the first step of
    each shape, and pays in long runs. Populations of one method that differ in real knobs only may share it.

    Raises ValueError where the tensors of the splits differ in shape.
    """
    count, like = max((len(values) for values in knobs.values()), default=1), problems[0].x
    own = {name: values.to(like) for name, values in knobs.items()}
    rates = own.pop("lr", like.new_full((count,), lr))
    decays = own.pop("weight_decay", like.new_full((count,), weight_decay))
    empty = Population(method, own, rates, decays, tuple(problems), tuple(streams), Run((), (), ()), calls)
    each = [empty.configured(r) for r in range(count)]
    runs = [[start(one, p, s) for one in each] for p, s in zip(problems, seeds, strict=True)]
    if len({shapes(row[0], p) for row, p in zip(runs, problems, strict=True)}) > 1:
        raise ValueError("splits of a joint fit must have one shape; group them by fastltssl.training.fit.shape_key")
    return empty._replace(run=stack(runs))


def shapes(run: Run, problem: Problem) -> tuple[Any, ...]:
    """Splits whose shapes are equal can be one population."""
    return tuple(tuple(leaf.shape) for leaf in tree_flatten((run, problem.x, problem.u))[0])


def advance(
    population: Population, first: int, last: int, steps: int, group: int = 0
) -> tuple[Population, dict[str, Float[Tensor, "S R t"]]]:
    """The population after steps first .. last - 1 of `steps`, and the loss and stats of each of these.

    `group` runs advance together; 0 is GROUP on a CPU and all of them on a GPU.
    """
    parts = [[_advanced(part, first, last, steps) for part in row] for row in _groups(population, group)]
    run, curves = glue(parts)
    return population._replace(run=run), curves


def _advanced(
    population: Population, first: int, last: int, steps: int
) -> tuple[Run, dict[str, Float[Tensor, "S R t"]]]:
    """One group, updated in place on its own copy: temporaries as large as the weights cost more than the products."""
    run, like = population.run, population.problems[0].x
    params, buffers = (tree_map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), tree)
                       for tree in (run.params, run.momentum))  # fmt: skip
    state, outs = run.state, []
    knobs = {name: values[None] for name, values in population.knobs.items()}

    def one(params: Any, state: Any, batch: Batch, progress: Tensor, knobs: dict[str, Tensor]) -> Any:
        return gradient(with_knobs(population.method, knobs), Run(params, (), state), batch, progress)

    for t in range(first, last):
        calls = population.calls if t else None  # the first step is of another kind: all its runs have one state
        each = [batch_at(p, s, t) for p, s in zip(population.problems, population.streams, strict=True)]
        batch = Batch._make(None if row[0] is None else torch.stack(row)[:, None] for row in zip(*each, strict=True))
        progress = like.new_tensor(t / steps)[None, None]
        slope, out = jointly(one, population.shape, params, state, batch, progress, knobs, calls=calls)
        rate = population.lr * cosine(t / steps)
        for leaf, buffer, by in zip(*(tree_flatten(tree)[0] for tree in (params, buffers, slope)), strict=True):
            update_(leaf, buffer, by, rate, population.weight_decay)
        state = out.state
        outs.append({"loss": out.loss, **out.stats})
    curves = {name: torch.stack([out[name] for out in outs], dim=2) for name in (outs or [{}])[0]}
    return Run(params, buffers, state), curves


def update_(
    leaf: Float[Tensor, "S R ..."],
    buffer: Float[Tensor, "S R ..."],
    slope: Float[Tensor, "S R ..."],
    lr: Float[Tensor, " R"],
    weight_decay: Float[Tensor, " R"],
) -> None:
    """The update of `fastltssl.training.step.step`, in place: b <- m b + g + wd w, w <- w - lr b."""
    own = (1, -1, *(1 for _ in leaf.shape[2:]))
    torch.add(slope, buffer, alpha=MOMENTUM, out=buffer).addcmul_(leaf, weight_decay.view(own))
    leaf.addcmul_(buffer, lr.view(own), value=-1)


def kept(population: Population, chosen: Int[Tensor, " K"]) -> Population:
    """The population of some configurations only, in that order."""
    values = {name: each[chosen] for name, each in population.knobs.items()}
    lr, decay = population.lr[chosen], population.weight_decay[chosen]
    return population._replace(knobs=values, lr=lr, weight_decay=decay, run=take(population.run, chosen))


def scores_of(
    population: Population, x: Sequence[Float[Tensor, "n D"]], branch: str = "test"
) -> Float[Tensor, "S R n C"]:
    """Scores of a branch for each run, on rows of its own split; all splits have as many."""

    def one(run: Run, x: Tensor, knobs: dict[str, Tensor]) -> Scores:
        return with_knobs(population.method, knobs).scores(run.params, run.state, x)[branch]

    rows = torch.stack([each.to(population.problems[0].x) for each in x])[:, None]
    knobs = {name: each[None] for name, each in population.knobs.items()}
    return jointly(one, population.shape, population.run, rows, knobs)


def each_group(population: Population, fn: Callable[[Population, slice], Tensor], group: int = 0) -> Tensor:
    """fn of every group and the place of its splits, glued to [S, R, ...]."""
    grid, first = [], 0
    for row in _groups(population, group):
        place = slice(first, first + len(row[0].problems))
        grid.append([fn(part, place) for part in row])
        first = place.stop
    return glue(grid)


def tuned(population: Population, steps: int) -> int:
    """The group size that trains fastest here, by two eager steps of each; about a second of trying."""
    splits, count = population.shape
    if population.problems[0].x.is_cuda or splits * count <= GROUPS[0]:
        return 0
    alone, seconds = population._replace(calls=None), {}
    for group in GROUPS:
        part = _groups(alone, group)[0][0]
        size = math.prod(part.shape)
        if size in seconds:
            break
        _advanced(part, 0, 1, steps)  # warm-up
        began = time.perf_counter()
        _advanced(part, 0, 2, steps)
        seconds[size] = (time.perf_counter() - began) / size
    return min(seconds, key=lambda size: seconds[size])


def _groups(population: Population, group: int) -> list[list[Population]]:
    """Splits apart as long as one has enough configurations to fill a group, else several together."""
    splits, count = population.shape
    group = group or (GROUP if population.problems[0].x.device.type == "cpu" else _room(population))
    rows, columns = max(1, group // count), min(count, group)
    return [
        [_part(population, slice(s, s + rows), slice(r, r + columns)) for r in range(0, count, columns)]
        for s in range(0, splits, rows)
    ]


def _room(population: Population) -> int:
    """Runs that fit into half of a GPU's free memory, ten times their own size each: never none."""
    runs, device = math.prod(population.shape), population.problems[0].x.device
    own = max(1, population.nbytes // runs)
    return max(1, min(runs, torch.cuda.mem_get_info(device)[0] // (20 * own)))


def _part(population: Population, splits: slice, configurations: slice) -> Population:
    return population._replace(
        knobs={name: each[configurations] for name, each in population.knobs.items()},
        lr=population.lr[configurations],
        weight_decay=population.weight_decay[configurations],
        problems=population.problems[splits],
        streams=population.streams[splits],
        run=tree_map(lambda leaf: leaf[splits, configurations], population.run),
    )
