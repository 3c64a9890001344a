"""The training loop over cached rows: `fit` trains one run, `fit_many` many runs jointly."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from fastltssl.progress import Progress, Work, drain
from fastltssl.training.contract import check_method
from fastltssl.training.population import Population, advance, populate
from fastltssl.training.step import cosine, start, step
from fastltssl.training.streams import Stream, batch_at
from fastltssl.training.vmap import pick
from fastltssl.types import Fitted, Method, Problem, Run, is_trained

Evaluate = Callable[[Method, Run, int], dict[str, Tensor]]  # the int is the index of the split in a joint fit


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
) -> Work[Fitted]:
    """Train one run, yielding Progress after each of `evals` evaluations; returns Fitted."""
    run, history, began = start(method, problem, seed), History(0), time.perf_counter()
    steps = steps if is_trained(method) else 0
    check_method(method, problem, run, batch_at(problem, stream, 0) if steps else None)
    with torch.no_grad():
        for first, last in intervals(steps, evals):
            outs = []
            for t in range(first, last):
                progress, rate = problem.x.new_tensor(t / steps), lr * cosine(t / steps)
                run, out = step(method, run, batch_at(problem, stream, t), progress, lr=rate, weight_decay=weight_decay)
                outs.append({"loss": out.loss, **out.stats})
            curves = {name: torch.stack([out[name] for out in outs]) for name in outs[0]}
            loss = history.close(curves, evaluate(method, run, 0) if evaluate else {})
            yield Progress(last, steps, time.perf_counter() - began, loss=loss)
        if not steps:
            history.close({}, evaluate(method, run, 0) if evaluate else {})
    return Fitted(run, history.stacked())


def fit(method: Method, problem: Problem, batches: Stream, *, steps: int, **settings: Any) -> Fitted:
    """Train one run to the end; the settings are those of `fitting`."""
    return drain(fitting(method, problem, batches, steps=steps, **settings))


def fitting_many(
    method: Method,
    knobs: dict[str, Float[Tensor, " R"]],
    problem: Problem | Sequence[Problem],
    stream: Stream | Sequence[Stream],
    *,
    steps: int,
    lr: float = 0.03,
    weight_decay: float = 5e-4,
    seed: int | Sequence[int] = 0,
    evals: int = 10,
    evaluate: Evaluate | None = None,
    group: int = 0,
    compiled: bool = False,
) -> Work[Fitted]:
    """Train S splits x R configurations as one program, yielding Progress; returns Fitted, run s * R + r on axis 0.

    `problem`, `stream` and `seed` are those of one split, or sequences (of one shape, see `population.same_shape`).
    Configurations differ in real knobs only, "lr" and "weight_decay" included, and share the batches of a split.
    `group` runs advance together, see `population.advance`; `compiled` pays in long runs only.
    """
    problems = [problem] if isinstance(problem, Problem) else list(problem)
    streams = [stream] if isinstance(stream, Stream) else list(stream)
    seeds = [seed] * len(problems) if isinstance(seed, int) else list(seed)
    check_joint(method, knobs, problems, streams, seeds)
    steps = steps if is_trained(method) else 0
    if steps > (drawn := min(len(stream.x_row) for stream in streams)):
        raise ValueError(f"steps {steps} is above the {drawn} steps of the stream: make_problem(..., steps={steps})")
    calls: dict[Any, Any] | None = {} if compiled else None
    population = populate(method, knobs, problems, streams, seeds, lr=lr, weight_decay=weight_decay, calls=calls)
    batch = batch_at(problems[0], streams[0], 0) if steps else None
    check_method(population.configured(0), problems[0], pick(population.run, 0, 0), batch)
    history, began, runs = History(2), time.perf_counter(), math.prod(population.shape)
    with torch.no_grad():
        for first, last in intervals(steps, evals):
            population, curves = advance(population, first, last, steps, group)
            loss = history.close(curves, evaluated(population, evaluate))
            yield Progress(last, steps, time.perf_counter() - began, runs=runs, loss=loss)
        if not steps:
            history.close({}, evaluated(population, evaluate))
    joint = (population.run, history.stacked())
    return Fitted(*tree_map(lambda leaf: None if leaf is None else leaf.flatten(0, 1), joint))


def intervals(steps: int, evals: int) -> list[tuple[int, int]]:
    """The steps [first, last) before each of `evals` evaluations, about equally many; fewer where steps are fewer."""
    ends = sorted({-(-steps * (k + 1) // evals) for k in range(evals)})
    return [(first, last) for first, last in zip([0, *ends], ends, strict=False) if last > first]


def evaluated(population: Population, evaluate: Evaluate | None) -> dict[str, Float[Tensor, "S R ..."]]:
    """The metrics of every run; a scalar metric gives [S, R]."""
    if evaluate is None:
        return {}
    splits, count = population.shape
    methods = [population.configured(r) for r in range(count)]
    rows = [evaluate(methods[r], pick(population.run, s, r), s) for s in range(splits) for r in range(count)]
    return {name: torch.stack([row[name] for row in rows]).unflatten(0, (splits, count)) for name in rows[0]}


def fit_many(
    method: Method,
    knobs: dict[str, Float[Tensor, " R"]],
    problem: Problem | Sequence[Problem],
    batches: Stream | Sequence[Stream],
    *,
    steps: int,
    **settings: Any,
) -> Fitted:
    """Train splits x configurations jointly to the end; the settings are those of `fitting_many`."""
    return drain(fitting_many(method, knobs, problem, batches, steps=steps, **settings))


def check_joint(method: Method, knobs: dict[str, Tensor], problems: list, streams: list, seeds: list) -> None:
    """Raise ValueError on knobs, problems, streams or seeds that no joint fit can have."""
    for name, values in knobs.items():
        if not isinstance(values, Tensor) or values.ndim != 1 or not len(values):
            raise ValueError(f"knob {name!r} must be a tensor [R], one number a run, got {values!r}")
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


class History:
    """What is recorded at each evaluation: the metrics, and loss and stats as means over the steps before it."""

    def __init__(self, axis: int) -> None:
        self.rows: list[dict[str, Tensor]] = []  # one per evaluation
        self.axis = axis  # of the evaluations in `stacked`, after those of the runs

    def close(self, curves: dict[str, Float[Tensor, "*runs t"]], metrics: dict[str, Tensor]) -> float:
        """Record an evaluation, after t steps with these curves; returns the mean loss, nan without steps."""
        means = {name: curve.mean(dim=-1) for name, curve in curves.items()}
        self.rows.append(means | metrics)
        return float(means["loss"].mean()) if means else math.nan

    def stacked(self) -> dict[str, Tensor]:
        """Every quantity over all evaluations."""
        return {name: torch.stack([row[name] for row in self.rows], dim=self.axis) for name in (self.rows or [{}])[0]}
