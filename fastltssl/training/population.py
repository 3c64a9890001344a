"""S splits x R configurations trained as one program: start the runs, advance them, keep the best, score them.

Configurations of a split share its batches, so that R small products become one wide one (see `vmap`). Groups of runs
advance one after another, because the tensors of only a few runs fit into the cache of a CPU core.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastltssl.training.step import MOMENTUM, cosine, gradient, start, with_knobs
from fastltssl.training.streams import Stream, batch_at
from fastltssl.training.vmap import concatenate, jointly, pick, stack, take
from fastltssl.types import Batch, Method, Out, Problem, Run, Scores

GROUP = 32  # runs that advance together on a CPU: see benchmarks/population.py
GROUPS = (8, 16, 32, 64, 128)  # sizes that `fastest_group` tries


class Population(NamedTuple):
    """S splits x R configurations that differ in real knobs, between two steps."""

    method: Method
    knobs: dict[str, Float[Tensor, " R"]]  # of the method
    lr: Float[Tensor, " R"]
    weight_decay: Float[Tensor, " R"]
    problems: tuple[Problem, ...]  # one per split
    streams: tuple[Stream, ...]  # one per split
    run: Run  # leaves [S, R, ...]
    calls: dict[Any, Any] | None = None  # compiled gradients, see `vmap.jointly`; None: not compiled

    @property
    def shape(self) -> tuple[int, int]:
        """(S, R)."""
        return len(self.problems), len(self.lr)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, momentum and state, shared leaves counted once per run."""
        return sum(leaf.numel() * leaf.element_size() for leaf in tree_flatten(self.run)[0])

    def configured(self, r: int) -> Method:
        """The method with the knobs of configuration r."""
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

    Given a dict as `calls`, gradients are compiled and stored there. That needs a C++ compiler, takes seconds for each
    new shape, and pays in long runs. Populations of one method that differ in real knobs only may share the dict.

    Raises ValueError where the problems are not of one shape, see `same_shape`.
    """
    if len(same_shape(problems)) > 1:
        raise ValueError(
            "splits of a joint fit must have one shape; group them by fastltssl.training.population.same_shape"
        )
    count, like = max((len(values) for values in knobs.values()), default=1), problems[0].x
    own = {name: values.to(like) for name, values in knobs.items()}
    rates = own.pop("lr", like.new_full((count,), lr))
    decays = own.pop("weight_decay", like.new_full((count,), weight_decay))
    empty = Population(method, own, rates, decays, tuple(problems), tuple(streams), Run((), (), ()), calls)
    configurations = [empty.configured(r) for r in range(count)]
    runs = [[start(configured, p, s) for configured in configurations] for p, s in zip(problems, seeds, strict=True)]
    return empty._replace(run=stack(runs))


def same_shape(problems: Sequence[Problem]) -> list[list[int]]:
    """Indices of the problems in groups that can be trained jointly: the tensors of their runs have one shape."""
    groups: dict[Any, list[int]] = {}
    for index, problem in enumerate(problems):
        shape = (tuple(problem.x.shape), tuple(problem.u.shape), problem.prior.numel())
        groups.setdefault(shape, []).append(index)
    return list(groups.values())


def advance(
    population: Population, first: int, last: int, steps: int, group: int = 0
) -> tuple[Population, dict[str, Float[Tensor, "S R t"]]]:
    """The population after steps first .. last - 1 of `steps`, and the loss and stats of each of these.

    `group` runs advance together; 0: GROUP on a CPU, and as many as fit into the memory of a GPU.
    """
    parts = [[_advanced(part, first, last, steps) for part in row] for row in _groups(population, group)]
    run, curves = concatenate(parts)
    return population._replace(run=run), curves


def _advanced(
    population: Population, first: int, last: int, steps: int
) -> tuple[Run, dict[str, Float[Tensor, "S R t"]]]:
    """The runs of one group and their curves. Parameters are copied once and then updated in place.

    New tensors as large as the weights would cost more time than the products.
    """
    run, like = population.run, population.problems[0].x
    params, buffers = (tree_map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), tree)
                       for tree in (run.params, run.momentum))  # fmt: skip
    state, outs = run.state, []
    knobs = {name: values[None] for name, values in population.knobs.items()}

    def gradient_of_run(
        params: Any, state: Any, batch: Batch, progress: Tensor, knobs: dict[str, Tensor]
    ) -> tuple[Any, Out]:
        return gradient(with_knobs(population.method, knobs), Run(params, (), state), batch, progress)

    for t in range(first, last):
        calls = population.calls if t else None  # at step 0 all runs share one state: compiled code would serve once
        batches = [batch_at(p, s, t) for p, s in zip(population.problems, population.streams, strict=True)]
        fields = zip(*batches, strict=True)
        batch = Batch._make(None if values[0] is None else torch.stack(values)[:, None] for values in fields)
        progress = like.new_tensor(t / steps)[None, None]
        grads, out = jointly(gradient_of_run, population.shape, params, state, batch, progress, knobs, calls=calls)
        rate = population.lr * cosine(t / steps)
        for leaf, buffer, grad in zip(*(tree_flatten(tree)[0] for tree in (params, buffers, grads)), strict=True):
            update_(leaf, buffer, grad, rate, population.weight_decay)
        state = out.state
        outs.append({"loss": out.loss, **out.stats})
    curves = {name: torch.stack([out[name] for out in outs], dim=2) for name in (outs or [{}])[0]}
    return Run(params, buffers, state), curves


def update_(
    leaf: Float[Tensor, "S R ..."],
    buffer: Float[Tensor, "S R ..."],
    grad: Float[Tensor, "S R ..."],
    lr: Float[Tensor, " R"],
    weight_decay: Float[Tensor, " R"],
) -> None:
    """The update of `fastltssl.training.step.step`, in place: b <- m b + g + wd w, w <- w - lr b."""
    shape = (1, -1, *(1 for _ in leaf.shape[2:]))
    torch.add(grad, buffer, alpha=MOMENTUM, out=buffer).addcmul_(leaf, weight_decay.view(shape))
    leaf.addcmul_(buffer, lr.view(shape), value=-1)


def selected(population: Population, chosen: Int[Tensor, " K"]) -> Population:
    """The population of the chosen configurations, in that order."""
    knobs = {name: values[chosen] for name, values in population.knobs.items()}
    lr, decay = population.lr[chosen], population.weight_decay[chosen]
    return population._replace(knobs=knobs, lr=lr, weight_decay=decay, run=take(population.run, chosen))


def finite(population: Population) -> Bool[Tensor, " R"]:
    """Whether the trained parameters of each configuration are finite on every split; on the CPU."""
    leaves = [
        leaf.isfinite().reshape(*population.shape, -1).all(dim=2).all(dim=0)
        for leaf in tree_flatten(population.run.params)[0]
    ]
    every = torch.ones(len(population.lr), dtype=torch.bool)
    for is_finite in leaves:
        every &= is_finite.cpu()
    return every


def scores_of(
    population: Population, x: Sequence[Float[Tensor, "n D"]], branch: str = "test"
) -> Float[Tensor, "S R n C"]:
    """Scores of a branch of every run. `x` holds rows for each split, n of each."""

    def scores_of_run(run: Run, x: Tensor, knobs: dict[str, Tensor]) -> Scores:
        return with_knobs(population.method, knobs).scores(run.params, run.state, x)[branch]

    rows = torch.stack([split_x.to(population.problems[0].x) for split_x in x])[:, None]
    knobs = {name: values[None] for name, values in population.knobs.items()}
    return jointly(scores_of_run, population.shape, population.run, rows, knobs)


def map_groups(population: Population, fn: Callable[[Population, slice], Tensor], group: int = 0) -> Tensor:
    """fn(part, splits) of every group of runs, concatenated to [S, R, ...]; `splits` are those of the part."""
    grid, first = [], 0
    for row in _groups(population, group):
        splits = slice(first, first + len(row[0].problems))
        grid.append([fn(part, splits) for part in row])
        first = splits.stop
    return concatenate(grid)


def fastest_group(population: Population, steps: int) -> int:
    """The group size that trains fastest here, from timing two steps of each; 0, the default, on a GPU or for few runs.

    It takes about a second.
    """
    splits, count = population.shape
    if population.problems[0].x.is_cuda or splits * count <= GROUPS[0]:
        return 0
    eager, seconds = population._replace(calls=None), {}
    for group in GROUPS:
        part = _groups(eager, group)[0][0]
        size = math.prod(part.shape)
        if size in seconds:
            break
        _advanced(part, 0, 1, steps)  # warm-up
        began = time.perf_counter()
        _advanced(part, 0, 2, steps)
        seconds[size] = (time.perf_counter() - began) / size
    return min(seconds, key=lambda size: seconds[size])


def _groups(population: Population, group: int) -> list[list[Population]]:
    """The population cut into parts of about `group` runs: some configurations of a split, or of several small ones."""
    splits, count = population.shape
    group = group or (GROUP if population.problems[0].x.device.type == "cpu" else _fitting(population))
    rows, columns = max(1, group // count), min(count, group)
    return [
        [_part(population, slice(s, s + rows), slice(r, r + columns)) for r in range(0, count, columns)]
        for s in range(0, splits, rows)
    ]


def _fitting(population: Population) -> int:
    """Runs, at least 1, that fit into half of a GPU's free memory if each takes ten times the bytes of its tensors."""
    runs, device = math.prod(population.shape), population.problems[0].x.device
    own = max(1, population.nbytes // runs)
    return max(1, min(runs, torch.cuda.mem_get_info(device)[0] // (20 * own)))


def _part(population: Population, splits: slice, configurations: slice) -> Population:
    return population._replace(
        knobs={name: values[configurations] for name, values in population.knobs.items()},
        lr=population.lr[configurations],
        weight_decay=population.weight_decay[configurations],
        problems=population.problems[splits],
        streams=population.streams[splits],
        run=pick(population.run, splits, configurations),
    )
