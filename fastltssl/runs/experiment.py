"""One experiment: a cache and a protocol to a record, every seed trained jointly and measured."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastltssl.cache.catalogue import Cache, open_cache
from fastltssl.cache.splits import Split, long_tailed
from fastltssl.errors import RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.images.prompts import templates as template_set
from fastltssl.methods import configure
from fastltssl.progress import Progress, Work, relay, scaled
from fastltssl.runs.config import Config, check
from fastltssl.runs.evaluation import evaluator, grouping, threshold_of
from fastltssl.runs.folder import write
from fastltssl.runs.record import record_of
from fastltssl.training.fit import fitting_many, shape_key
from fastltssl.training.rows import Rows, make_problem, resident
from fastltssl.training.streams import make_stream
from fastltssl.training.vmap import pick
from fastltssl.types import Fitted, Method, Problem

Wanted = list[tuple[str, np.ndarray]]  # groups of a cache, and rows in them


class SeedSplit(NamedTuple):
    """One seed of one experiment, before it is trained."""

    config: Config
    seed: int
    split: Split
    groups: Tensor | None  # [C]
    problem: Problem


def training(config: Config, cache: Cache, rows: Rows, out: Path | None = None) -> Work[dict[str, Any]]:
    """Train every seed of an experiment, yielding Progress; returns its record, written under `out` if given."""
    records = yield from training_together([config], cache, rows, [out])
    return records[0]


def training_together(
    configs: Sequence[Config], cache: Cache, rows: Rows, outs: Sequence[Path | None]
) -> Work[list[dict[str, Any]]]:
    """Train experiments that differ in their protocol only as one, seeds and all; `seconds` is each one's share."""
    configs = [check(config) for config in configs]
    first = configs[0]
    method = configure(first.method, first.settings)
    if any(dataclasses.replace(one, protocol=first.protocol) != first for one in configs):
        raise RunError("experiments trained together may differ in their protocol only")
    if first.live or first.ensemble:
        raise RunError("a live run or an ensemble does not train from a cache: see fastltssl.runs.live and .ensemble")
    if wants_taps(method) and rows.ln_post is None:
        rows = resident(cache, str(rows.features["train"].device), taps=True)
    rows = with_templates(rows, cache, first.templates)
    seeds = [one for config in configs for one in seeds_of(config, cache, rows)]
    fitted: list[Any] = [None] * len(seeds)
    began = time.perf_counter()
    alike = alike_of(method, [one.problem for one in seeds])
    for place, members in enumerate(alike):
        work = _fit_alike(method, rows, [seeds[i] for i in members])
        result = yield from _one_of(work, place, len(alike), began)
        for position, index in enumerate(members):
            fitted[index] = pick(result, position)
    seconds = (time.perf_counter() - began) / len(configs)
    if diverged := [one.seed for one, run in zip(seeds, fitted, strict=True) if not _is_finite(run)]:
        raise RunError(
            f"{first.method} diverged at seed {diverged[0]}: the loss is not finite. Lower --lr ({first.lr:g})"
        )
    records = []
    for config, out in zip(configs, outs, strict=True):
        own = [index for index, one in enumerate(seeds) if one.config is config]
        splits, groups, results = (
            [seeds[i].split for i in own],
            [seeds[i].groups for i in own],
            [fitted[i] for i in own],
        )
        record = record_of(config, method, cache, splits, groups, results, seconds)
        if out is not None:
            record["run"] = str(out)
            write(out, config, cache, splits, groups, results, record, threshold_of(method))
        records.append(record)
    return records


def _one_of(work: Work[Fitted], place: int, count: int, began: float) -> Work[Fitted]:
    """One of `count` joint fits, its progress counted over all; the history gains the step of each evaluation."""
    steps: list[int] = []

    def noted(record: Progress) -> Progress:
        steps.append(record.done)
        return record

    fitted = yield from scaled(relay(work, noted), place, count, began)
    runs = len(next(iter(fitted.history.values())))
    return fitted._replace(history=fitted.history | {"step": torch.tensor([steps or [0]] * runs)})


def _is_finite(fitted: Fitted) -> bool:
    loss = fitted.history.get("loss")
    return loss is None or bool(loss.isfinite().all())


def seeds_of(config: Config, cache: Cache, rows: Rows) -> list[SeedSplit]:
    """The splits of an experiment; raises where there is nothing to test on."""
    labels = {name: group.labels for name, group in cache.groups.items()}
    found = []
    for seed in config.seeds:
        split = long_tailed(labels, len(cache.classes), config.protocol, seed)
        if config.eval == "test" and not len(split.test):
            raise RunError(f"{config.cache} has no group 'test'. Add --test-per-class n, or --eval all")
        groups = grouping(config.groups, cache.classes, split.counts)
        found.append(SeedSplit(config, seed, split, groups, make_problem(rows, split, config.steps)))
    return found


def _fit_alike(method: Method, rows: Rows, seeds: list[SeedSplit]) -> Work[Fitted]:
    """Train the seeds whose tensors have one shape jointly."""
    config = seeds[0].config
    scored = [evaluator(one.config, one.split, one.groups, one.problem, rows) for one in seeds]
    return (
        yield from fitting_many(
            method,
            {},
            [one.problem for one in seeds],
            [
                make_stream(
                    one.problem,
                    method.views,
                    batch=config.batch,
                    batch_u=config.batch_u,
                    seed=one.seed,
                    noise=getattr(method, "noise", False),
                )
                for one in seeds
            ],
            steps=config.steps,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=[one.seed for one in seeds],
            evals=evals_of(config),
            evaluate=lambda method, run, place: scored[place](method, run),
        )
    )


def evals_of(config: Config) -> int:
    """Evaluations of a run; mean20 needs at least that many."""
    return max(config.evals, 20) if config.report == "mean20" else config.evals


def measured_rows(config: Config, split: Split, cache: Cache) -> Wanted:
    """Groups and rows an evaluation looks at: validation rows, then those to test on."""
    tests = [(split.test_group, split.test)]
    if config.eval == "all":
        tests = [(name, np.flatnonzero(group.labels >= 0)) for name, group in cache.groups.items()]
    return [("train", split.val), *tests]


def alike_of(method: Method, problems: list[Problem]) -> list[list[int]]:
    """Indices of the problems in groups that can be trained jointly."""
    groups: dict[Any, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(shape_key(method, problem), []).append(index)
    return list(groups.values())


def with_templates(rows: Rows, cache: Cache, name: str | None) -> Rows:
    """Rows whose text holds only the templates of a named set; all the cached ones without a name."""
    if name is None or rows.text is None:
        return rows
    wanted = template_set(name)
    kept = [index for index, template in enumerate(cache.templates) if template in wanted]
    if not cache.templates:
        raise RunError(f"--templates {name}: the prompts of this cache's text are not known, as it was imported")
    if not kept:
        raise RunError(
            f"--templates {name}: the cache holds none of them, only {len(cache.templates)} such as "
            f"{cache.templates[0]!r}. Extract again with --templates {name}"
        )
    return rows._replace(text=rows.text[:, kept])


def open_rows(path: str, device: str) -> tuple[Cache, Rows]:
    """A cache, and its rows on the device."""
    cache = open_cache(path)
    return cache, resident(cache, device)
