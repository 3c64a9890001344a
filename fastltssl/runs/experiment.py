"""One experiment: from a cache and a config to a record, all seeds trained jointly and evaluated."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastltssl.cache.catalogue import Cache, open_cache
from fastltssl.cache.splits import Split
from fastltssl.errors import RunError, byte_size
from fastltssl.machine import available_memory
from fastltssl.methods import configure
from fastltssl.progress import Progress, Work, relay, scaled
from fastltssl.runs.config import Config, check
from fastltssl.runs.evaluation import Task, evaluate, grouping, measured_rows
from fastltssl.runs.folder import write
from fastltssl.runs.record import Results, record_of
from fastltssl.training.fit import fitting_many
from fastltssl.training.population import same_shape
from fastltssl.training.rows import Rows, make_problem, problem_bytes, resident, rows_for
from fastltssl.training.streams import Stream, make_stream
from fastltssl.training.vmap import pick
from fastltssl.types import Fitted, Method


def training(config: Config, cache: Cache, rows: Rows, out: Path | None = None) -> Work[dict[str, Any]]:
    """Train every seed of an experiment, yielding Progress; returns its record, written under `out` if given."""
    records = yield from training_together([config], cache, rows, [out])
    return records[0]


def training_together(
    configs: Sequence[Config], cache: Cache, rows: Rows, outs: Sequence[Path | None]
) -> Work[list[dict[str, Any]]]:
    """Train experiments that differ in their protocol only, jointly; their records divide the seconds equally."""
    configs = [check(config) for config in configs]
    first = configs[0]
    method = configure(first.method, first.settings)
    if any(dataclasses.replace(config, protocol=first.protocol) != first for config in configs):
        raise RunError("experiments trained together may differ in their protocol only")
    if first.live or first.ensemble:
        raise RunError("a live run or an ensemble does not train from a cache: see runs/live/ and runs/ensemble.py")
    rows = rows_for(cache, method, rows, templates=first.templates)
    tasks = [task for config in configs for task in tasks_of(config, cache, rows)]
    fitted: list[Any] = [None] * len(tasks)
    began = time.perf_counter()
    groups = same_shape([task.problem for task in tasks])
    for place, members in enumerate(groups):
        work = _fit_jointly(method, [tasks[index] for index in members])
        result = yield from scaled(work, place, len(groups), began)
        for position, index in enumerate(members):
            fitted[index] = pick(result, position)
    seconds = (time.perf_counter() - began) / len(configs)
    if diverged := [task.seed for task, run in zip(tasks, fitted, strict=True) if not run.is_finite]:
        raise RunError(
            f"{first.method} diverged at seed {diverged[0]}: loss or weights are not finite. Lower --lr ({first.lr:g})"
        )
    records = []
    for config, out in zip(configs, outs, strict=True):
        own = [index for index, task in enumerate(tasks) if task.config is config]
        results = Results(config, method, cache, [tasks[index] for index in own], [fitted[index] for index in own])
        record = record_of(results, seconds)
        records.append(record if out is None else write(out, results, record))
    return records


def tasks_of(config: Config, cache: Cache, rows: Rows) -> list[Task]:
    """The tasks of an experiment, one per seed. Raises RunError where there are no test rows, or too little memory."""
    splits = [cache.split_of(config.protocol, seed) for seed in config.seeds]
    _check_memory(rows, splits)
    tasks = []
    for seed, split in zip(config.seeds, splits, strict=True):
        if config.eval == "test" and not len(split.test):
            raise RunError(f"{config.cache} has no group 'test'. Add --test-per-class n, or --eval all")
        groups = grouping(config.groups, cache.classes, split.counts)
        problem = make_problem(rows, split, config.steps)
        tasks.append(Task(config, seed, split, problem, measured_rows(config, split, groups, problem, rows)))
    return tasks


def _check_memory(rows: Rows, splits: Sequence[Split]) -> None:
    """Raise RunError where the rows of the splits do not fit into memory, before a system ends the process for it."""
    needed, free = sum(problem_bytes(rows, split) for split in splits), available_memory()
    if rows.features["train"].device.type == "cpu" and needed > free:
        raise RunError(
            f"the labelled rows and pools of {len(splits)} seed{'s' * (len(splits) > 1)} take {byte_size(needed)} of "
            f"memory, and {byte_size(free)} are free. Train fewer --seeds at once, or lower --m1 or --n1"
        )


def task_of(config: Config, seed: int, cache: Cache, rows: Rows) -> Task:
    """The task of one seed of an experiment."""
    return tasks_of(dataclasses.replace(config, seeds=(seed,)), cache, rows)[0]


def stream_of(task: Task, method: Method) -> Stream:
    """The index stream of a task."""
    config = task.config
    return make_stream(task.problem, method, batch=config.batch, batch_u=config.batch_u, seed=task.seed)


def _fit_jointly(method: Method, tasks: list[Task]) -> Work[Fitted]:
    """Train tasks of one shape jointly; the history also holds the "step" of each evaluation."""
    config, steps = tasks[0].config, []

    def noted(record: Progress) -> Progress:
        steps.append(record.done)
        return record

    work = fitting_many(
        method,
        {},
        [task.problem for task in tasks],
        [stream_of(task, method) for task in tasks],
        steps=config.steps,
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=[task.seed for task in tasks],
        evals=evals_of(config),
        evaluate=lambda method, run, place: evaluate(method, run, tasks[place].measured),
    )
    fitted = yield from relay(work, noted)
    return fitted._replace(history=fitted.history | {"step": torch.tensor([steps or [0]] * len(tasks))})


def evals_of(config: Config) -> int:
    """Number of evaluations of a run; report mean20 needs at least 20."""
    return max(config.evals, 20) if config.report == "mean20" else config.evals


def tested_rows(config: Config, split: Split, cache: Cache) -> list[tuple[str, np.ndarray]]:
    """The rows that an experiment is tested on: pairs of a group of the cache and rows in it."""
    if config.eval == "all":
        return [(name, np.flatnonzero(group.labels >= 0)) for name, group in cache.groups.items()]
    return [(split.test_group, split.test)]


def open_rows(path: str, device: str) -> tuple[Cache, Rows]:
    """A cache, and its rows on the device."""
    cache = open_cache(path)
    return cache, resident(cache, device)
