"""The only training loop over cached rows: `step` is all of one step, `fit` repeats it, `fit_many` vmaps it.

Optimiser: SGD with momentum 0.9 and a cosine to zero, as the LTSSL papers train their heads.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_flatten, tree_map

from fastltssl.batches import Stream, batch_at
from fastltssl.joint import jointly, pick, stack
from fastltssl.types import Batch, Fitted, Knob, Method, Out, Problem, Run, Trained, seeded

Result = TypeVar("Result")
Evaluate = Callable[[Method, Run, int], dict[str, Tensor]]  # the int counts the splits of a joint fit


class Progress(NamedTuple):
    """Where a fit stands; yielded at each evaluation."""

    step: int
    steps: int
    runs: int
    elapsed_s: float
    loss: float  # mean over the runs and over the steps since the last record


def step(
    method: Method,
    run: Run,
    batch: Batch,
    progress: Float[Tensor, ""],
    *,
    lr: Knob,
    weight_decay: Knob,
    momentum: float = 0.9,
) -> tuple[Run, Out]:
    """One step of SGD: loss, gradient, update. Pure; `lr` is the rate of this step."""

    def loss_of(params: Any) -> tuple[Tensor, Out]:
        out = cast(Trained, method).loss(params, run.state, batch, progress)
        return out.loss, out

    gradient, (_, out) = grad_and_value(loss_of, has_aux=True)(run.params)
    buffer = tree_map(lambda b, g, p: momentum * b + g + weight_decay * p, run.momentum, gradient, run.params)
    params = tree_map(lambda p, b: p - lr * b, run.params, buffer)
    return Run(params, buffer, out.state), out


def is_trained(method: Method) -> bool:
    """Whether the method has anything to train; zero-shot and its like have no loss."""
    return isinstance(method, Trained)


def start(method: Method, problem: Problem, seed: int) -> Run:
    """A run before its first step."""
    params = method.init(problem, seeded(seed, "init"))
    return Run(params, tree_map(torch.zeros_like, params), method.start(problem))


def with_knobs(method: Any, knobs: dict[str, Any]) -> Any:
    """The method with some fields replaced; "head.scale" reaches into the head."""
    direct = {name: value for name, value in knobs.items() if "." not in name}
    for part in {name.split(".")[0] for name in knobs} - direct.keys():
        inner = {name.split(".", 1)[1]: value for name, value in knobs.items() if name.startswith(part + ".")}
        direct[part] = with_knobs(getattr(method, part), inner)
    return dataclasses.replace(method, **direct) if direct else method


def cosine(progress: float) -> float:
    """Share of the learning rate left at `progress` in [0, 1)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def fitting(
    method: Method,
    problem: Problem,
    stream: Stream,
    *,
    steps: int,
    lr: float = 0.03,
    weight_decay: float = 5e-4,
    seed: int = 0,
    evals: int = 10,
    evaluate: Evaluate | None = None,
) -> Generator[Progress, None, Fitted]:
    """Train one run, yielding Progress at each of `evals` evaluations; returns Fitted."""
    run, history, began = start(method, problem, seed), _History(), time.perf_counter()
    steps = steps if is_trained(method) else 0
    with torch.no_grad():
        for t in range(steps):
            progress = problem.x.new_tensor(t / steps)
            rate = lr * cosine(t / steps)
            run, out = step(method, run, batch_at(problem, stream, t), progress, lr=rate, weight_decay=weight_decay)
            history.add(out)
            if (t + 1) * evals // steps > t * evals // steps:
                loss = history.close(evaluate(method, run, 0) if evaluate else {})
                yield Progress(t + 1, steps, 1, time.perf_counter() - began, loss)
        if not steps:
            history.close(evaluate(method, run, 0) if evaluate else {})
    return Fitted(run, history.stacked())


def fit(method: Method, problem: Problem, batches: Stream, *, steps: int, **settings: Any) -> Fitted:
    """Train one run to the end; the settings are those of `fitting`."""
    return drain(fitting(method, problem, batches, steps=steps, **settings))


def fitting_many(
    method: Method,
    knobs: dict[str, Float[Tensor, "R"]],
    problem: Problem | Sequence[Problem],
    stream: Stream | Sequence[Stream],
    *,
    steps: int,
    lr: float = 0.03,
    weight_decay: float = 5e-4,
    seed: int | Sequence[int] = 0,
    evals: int = 10,
    evaluate: Evaluate | None = None,
) -> Generator[Progress, None, Fitted]:
    """Train splits x configurations as one program, yielding Progress; returns Fitted, run s * R + r on axis 0.

    `problem`, `stream` and `seed` may be one or a sequence, one per split (all of one shape, see `shape_key`). The
    configurations differ in real knobs only ("lr" and "weight_decay" among them) and share each split's batches.
    """
    problems = [problem] if isinstance(problem, Problem) else list(problem)
    streams = [stream] if isinstance(stream, Stream) else list(stream)
    seeds = [seed] * len(problems) if isinstance(seed, int) else list(seed)
    _check_joint(method, knobs, problems, streams, seeds)
    count, like = max((len(values) for values in knobs.values()), default=1), problems[0].x
    values = {name: v.to(like) for name, v in knobs.items()}
    rates = values.pop("lr", like.new_full((count,), lr))
    decays = values.pop("weight_decay", like.new_full((count,), weight_decay))
    each = [with_knobs(method, {name: float(v[r]) for name, v in values.items()}) for r in range(count)]
    runs = [[start(one, p, s) for one in each] for p, s in zip(problems, seeds, strict=True)]
    if len({_shapes(row[0], p) for row, p in zip(runs, problems, strict=True)}) > 1:
        raise ValueError("splits of a joint fit must have one shape; group them by fastltssl.train.shape_key")
    run, history, began = stack(runs), _History(), time.perf_counter()
    shape, steps = (len(problems), count), steps if is_trained(method) else 0

    def one_step(run: Run, batch: Batch, progress: Tensor, rate: Tensor, decay: Tensor, knob: dict[str, Tensor]) -> Any:
        return step(with_knobs(method, knob), run, batch, progress, lr=rate, weight_decay=decay)

    def evaluated() -> dict[str, Tensor]:
        if evaluate is None:
            return {}
        rows = [evaluate(each[r], pick(run, s, r), s) for s in range(shape[0]) for r in range(count)]
        return {name: torch.stack([row[name] for row in rows]).unflatten(0, shape) for name in rows[0]}

    with torch.no_grad():
        for t in range(steps):
            batches = [batch_at(p, s, t) for p, s in zip(problems, streams, strict=True)]
            rows = zip(*batches, strict=True)
            batch = Batch._make(None if one[0] is None else torch.stack(one)[:, None] for one in rows)
            shared = (like.new_tensor(t / steps)[None, None], (rates * cosine(t / steps))[None], decays[None])
            by_run = {name: v[None] for name, v in values.items()}
            run, out = jointly(one_step, shape, run, batch, *shared, by_run)
            history.add(out)
            if (t + 1) * evals // steps > t * evals // steps:
                yield Progress(t + 1, steps, shape[0] * count, time.perf_counter() - began, history.close(evaluated()))
        if not steps:
            history.close(evaluated())
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), (run, history.stacked(joint=True)))
    return Fitted(*flat)


def fit_many(
    method: Method,
    knobs: dict[str, Float[Tensor, "R"]],
    problem: Problem | Sequence[Problem],
    batches: Stream | Sequence[Stream],
    *,
    steps: int,
    **settings: Any,
) -> Fitted:
    """Train splits x configurations jointly to the end; the settings are those of `fitting_many`."""
    return drain(fitting_many(method, knobs, problem, batches, steps=steps, **settings))


def drain(fitting: Generator[Any, None, Result]) -> Result:
    """The value a generator of progress records returns."""
    while True:
        try:
            next(fitting)
        except StopIteration as end:
            return end.value


def shape_key(method: Method, problem: Problem) -> tuple[Any, ...]:
    """Splits with equal keys can be trained jointly."""
    return _shapes(start(method, problem, 0), problem)


def _shapes(run: Run, problem: Problem) -> tuple[Any, ...]:
    return tuple(tuple(leaf.shape) for leaf in tree_flatten((run, problem.x, problem.u))[0])


def _check_joint(method: Method, knobs: dict[str, Tensor], problems: list, streams: list, seeds: list) -> None:
    lengths = {name: len(values) for name, values in knobs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"knobs of a joint fit must have one length, got {lengths}")
    if not len(problems) == len(streams) == len(seeds):
        raise ValueError(f"one stream and one seed per problem: got {len(problems)}, {len(streams)} and {len(seeds)}")
    for name in knobs.keys() - {"lr", "weight_decay"}:
        owner: Any = method
        *parts, last = name.split(".")
        for part in parts:
            owner = getattr(owner, part)
        kinds = {field.name: field.metadata.get("kind") for field in dataclasses.fields(owner)}
        if kinds.get(last) != "knob":
            real = sorted(field for field, kind in kinds.items() if kind == "knob")
            raise ValueError(f"{name!r} cannot differ between joint runs; the real knobs here are {', '.join(real)}")


class _History:
    """Losses and stats since the last evaluation, and one row of means and metrics per evaluation."""

    def __init__(self) -> None:
        self.outs: list[dict[str, Tensor]] = []
        self.rows: list[dict[str, Tensor]] = []
        self.steps = 0

    def add(self, out: Out) -> None:
        self.outs.append({"loss": out.loss, **out.stats})

    def close(self, metrics: dict[str, Tensor]) -> float:
        self.steps += len(self.outs)
        means = {name: torch.stack([out[name] for out in self.outs]).mean(dim=0) for name in (self.outs or [{}])[0]}
        self.outs = []
        self.rows.append(means | metrics)
        return float(means["loss"].mean()) if means else math.nan

    def stacked(self, joint: bool = False) -> dict[str, Tensor]:
        axis = 2 if joint else 0
        return {name: torch.stack([row[name] for row in self.rows], dim=axis) for name in (self.rows or [{}])[0]}
