"""A live experiment: its encoder trains from images, seed after seed; labels, text and splits come from a cache."""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.encoder.reopen import encoder_for, source_of
from fastltssl.errors import RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.live.modes import Live, describe, parse_mode, state, tuned
from fastltssl.live.step import finetuning
from fastltssl.machine import ALONE, Ranks
from fastltssl.methods import configure, identity
from fastltssl.progress import Note, Work, scaled
from fastltssl.runs.config import Config, as_dict, check
from fastltssl.runs.evaluation import Task
from fastltssl.runs.experiment import evals_of, tasks_of
from fastltssl.runs.finished import read_config
from fastltssl.runs.folder import write
from fastltssl.runs.live.images import Opened, TaskImages
from fastltssl.runs.record import Results, record_of
from fastltssl.training.rows import Rows, rows_for
from fastltssl.types import Fitted, Method, is_trained, seeded

SAME_NUMBERS = ("accumulate", "recompute", "compiled")  # fields of Live that change memory and time, but no number


def open_images(
    cache: Cache,
    device: str,
    pretrained: str | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    ranks: Ranks = ALONE,
    workers: int = 2,
) -> Opened:
    """The images and the encoder that a cache was made with; `dataset` and `root` where the images have moved."""
    encoder = ranks.first(lambda: encoder_for(cache, device, pretrained))
    return Opened(ranks.first(lambda: source_of(cache, dataset, root)), encoder, ranks, workers)


def training(config: Config, cache: Cache, rows: Rows, opened: Opened, out: Path | None = None) -> Work[dict[str, Any]]:
    """Train every seed through the encoder, yielding progress; returns the record, written under `out` if given.

    A checkpoint of each seed is kept in `out` until all are done: after an interruption the same call continues there.
    Raises RunError for a method that cannot be trained so, and where a step does not fit into memory.
    """
    config = check(config)
    method = configure(config.method, config.settings)
    check_trainable(config, method)
    began, count = time.perf_counter(), len(config.seeds)
    tasks = tasks_of(config, cache, rows_for(cache, method, rows, templates=config.templates))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    seeds: list[_Seed] = []
    for place, task in enumerate(tasks):
        work = _trained(task, method, cache, opened, out, is_first=not place)
        seeds.append((yield from scaled(work, place, count, began)))
    results = Results(config, method, cache, tasks, [seed.fitted for seed in seeds])
    record = record_of(results, sum(seed.earlier_s for seed in seeds) + time.perf_counter() - began)
    record["live"] = dataclasses.asdict(_live(config)) | {
        "trainable": sum(map(Tensor.numel, seeds[0].tower.values())),
        "parameters": seeds[0].parameters,
        "head": sum(leaf.numel() for leaf in tree_leaves(seeds[0].fitted.run.params)),
    }
    if out is not None and opened.ranks.rank == 0:
        record = write(out, results, record, [seed.tower for seed in seeds])
        for task in tasks:
            (out / f"seed{task.seed}.checkpoint").unlink(missing_ok=True)
    return record


def _live(config: Config) -> Live:
    assert config.live is not None
    return config.live


class _Seed(NamedTuple):
    """One seed after its training."""

    fitted: Fitted
    tower: dict[str, Tensor]  # what was trained in the encoder, by name
    parameters: int  # in the tower, with those that the mode adds
    earlier_s: float  # spent on it by interrupted calls


def _trained(task: Task, method: Method, cache: Cache, opened: Opened, out: Path | None, is_first: bool) -> Work[_Seed]:
    """Train one task, with its checkpoint in `out`."""
    config, live = task.config, _live(task.config)
    mode, generator = parse_mode(live.mode), seeded(task.seed, "tower")
    tower = tuned(opened.encoder.tower, mode, n_classes=len(cache.classes), generator=generator)
    if is_first:
        yield Note(describe(tower, mode))
    images = TaskImages(task, cache, opened)
    trainee = yield from images.trainee(method, tower, is_first=is_first)
    try:
        run, history, before_s = yield from finetuning(
            method,
            task.problem,
            images.stream(method),
            trainee,
            live,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=task.seed,
            evals=evals_of(config),
            evaluate=partial(images.measured, trainee),
            checkpoint=out / f"seed{task.seed}.checkpoint" if out else None,
            identity=identity_of(config, cache),
        )
    except torch.OutOfMemoryError:
        raise RunError(
            f"the device has no memory for a step of {config.batch} labelled and {config.batch_u} unlabelled "
            f"images in {live.accumulate} parts. Try --accumulate {2 * live.accumulate}, or --recompute"
        ) from None
    return _Seed(Fitted(run, history), state(tower), sum(map(Tensor.numel, tower.parameters())), before_s)


def check_trainable(config: Config, method: Method) -> None:
    """Raise RunError where a method cannot be trained through the encoder."""
    if not is_trained(method):
        raise RunError(f"{config.method} has no loss, so nothing would train through the encoder. Leave --live out")
    if wants_taps(method):
        raise RunError("this head reads taps of a frozen last block. With --live lastblock that block trains itself")


def identity_of(config: Config, cache: Cache) -> str:
    """Everything that decides the numbers of a run, as JSON: config without SAME_NUMBERS, fingerprint of the cache."""
    options = as_dict(config) | {"method": identity(config.method)}
    live = {f"live {name}": value for name, value in options.pop("live").items() if name not in SAME_NUMBERS}
    del options["cache"]
    return json.dumps(options | live | {"cache_fingerprint": fingerprint(cache)}, default=str)


def is_same(config: Config, cache: Cache, folder: Path) -> bool:
    """Whether a finished run has the numbers that this config would give."""
    stored = read_config(folder)
    return stored.live is not None and identity_of(check(stored), cache) == identity_of(config, cache)
