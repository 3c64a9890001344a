"""A live experiment: a cache for labels, text and split, images for the rest, one seed after the other, to a record."""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.encoder.reopen import encoder_for, source_of
from fastltssl.errors import RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.live.modes import describe, parse_mode, state, tuned
from fastltssl.live.step import finetuning
from fastltssl.machine import ALONE, Ranks
from fastltssl.methods import configure
from fastltssl.progress import Note, Work, scaled
from fastltssl.runs.config import Config, as_dict, check
from fastltssl.runs.evaluation import threshold_of
from fastltssl.runs.experiment import evals_of, seeds_of, with_templates
from fastltssl.runs.folder import read_config, write
from fastltssl.runs.live_seed import LiveSplit, Opened
from fastltssl.runs.record import record_of
from fastltssl.training.rows import Rows
from fastltssl.training.step import is_trained
from fastltssl.types import Fitted, Method, seeded

SAME_NUMBERS = ("accumulate", "recompute", "compiled")  # of Live: they change memory and time alone


def open_images(
    cache: Cache,
    device: str,
    pretrained: str | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    ranks: Ranks = ALONE,
    workers: int = 2,
) -> Opened:
    """The images and the encoder of a cache; `dataset` and `root` where they have moved."""
    encoder = ranks.first(lambda: encoder_for(cache, device, pretrained))
    return Opened(ranks.first(lambda: source_of(cache, dataset, root)), encoder, ranks, workers)


def training(config: Config, cache: Cache, rows: Rows, opened: Opened, out: Path | None = None) -> Work[dict[str, Any]]:
    """Train every seed through the encoder, yielding progress; returns the record, written under `out` if given.

    A checkpoint of each seed is kept in `out` until all are done: the same call goes on from there.
    Raises RunError for a method that cannot train so, and where the memory does not hold a step.
    """
    config = check(config)
    live = config.live
    assert live is not None
    method = configure(config.method, config.settings)
    check_method(config, method)
    mode, began, count = parse_mode(live.mode), time.perf_counter(), len(config.seeds)
    seeds = seeds_of(config, cache, with_templates(rows, cache, config.templates))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    fitted: list[Fitted] = []
    towers: list[dict[str, Tensor]] = []
    earlier = 0.0
    for place, one in enumerate(seeds):
        tower = tuned(opened.encoder.tower, mode, n_classes=len(cache.classes), generator=seeded(one.seed, "tower"))
        if not place:
            yield Note(describe(tower, mode))
        images = LiveSplit(config, one, cache, opened)
        trainee = yield from images.trainee(method, tower, is_first=not place)
        work = finetuning(
            method,
            one.problem,
            images.stream(method),
            trainee,
            live,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=one.seed,
            evals=evals_of(config),
            evaluate=partial(images.measured, trainee),
            checkpoint=out / f"seed{one.seed}.checkpoint" if out else None,
            identity=identity_of(config, cache),
        )
        try:
            run, history, before = yield from scaled(work, place, count, began)
        except torch.OutOfMemoryError:
            raise RunError(
                f"the device has no memory for a step of {config.batch} labelled and {config.batch_u} unlabelled "
                f"images in {live.accumulate} parts. Try --accumulate {2 * live.accumulate}, or --recompute"
            ) from None
        earlier += before
        fitted.append(Fitted(run, history))
        towers.append(state(tower))
    seconds = earlier + time.perf_counter() - began
    splits, groups = [one.split for one in seeds], [one.groups for one in seeds]
    record = record_of(config, method, cache, splits, groups, fitted, seconds)
    record["live"] = dataclasses.asdict(live) | {
        "trainable": sum(map(Tensor.numel, towers[0].values())),
        "parameters": sum(map(Tensor.numel, tower.parameters())),
        "head": sum(leaf.numel() for leaf in tree_leaves(fitted[0].run.params)),
    }
    if out is not None and opened.ranks.rank == 0:
        record["run"] = str(out)
        write(out, config, cache, splits, groups, fitted, record, threshold_of(method), towers)
        for one in seeds:
            (out / f"seed{one.seed}.checkpoint").unlink()
    return record


def check_method(config: Config, method: Method) -> None:
    """Raise RunError where a method cannot train through the encoder."""
    if not is_trained(method):
        raise RunError(f"{config.method} has no loss, so nothing would train through the encoder. Leave --live out")
    if wants_taps(method):
        raise RunError("this head reads taps of a frozen last block. With --live lastblock that block trains itself")


def identity_of(config: Config, cache: Cache) -> str:
    """What decides the numbers of a run, as JSON: its config, but for how a step is cut up and where the cache lies."""
    flat = as_dict(config)
    how = {f"live {name}": value for name, value in flat.pop("live").items() if name not in SAME_NUMBERS}
    del flat["cache"]
    return json.dumps(flat | how | {"cache_fingerprint": fingerprint(cache)}, default=str)


def is_same(config: Config, cache: Cache, folder: Path) -> bool:
    """Whether a finished run is the one this config would give."""
    stored = read_config(folder)
    return stored.live is not None and identity_of(check(stored), cache) == identity_of(config, cache)
