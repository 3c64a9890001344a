"""A method put on a finished run, such as GLA: its scores and those of the frozen model, added up and measured.

The equation is that of the method's own file, whose `Ensemble` says how the two are added; nothing is trained here.
"""

import dataclasses
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.layout import all_blocks
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.pipeline import pipeline
from fastltssl.encoder.reopen import source_of
from fastltssl.errors import ConfigError, RunError
from fastltssl.images.source import Images, Source, Subset
from fastltssl.images.views import parse_views
from fastltssl.live.images import pictures_of
from fastltssl.methods import configure, load, names
from fastltssl.progress import Progress, Work
from fastltssl.runs.config import Config
from fastltssl.runs.evaluation import CHUNK, evaluate
from fastltssl.runs.experiment import tasks_of, tested_rows
from fastltssl.runs.folder import read_config, write
from fastltssl.runs.record import METRICS, Results, record_of
from fastltssl.runs.trained import ROWS, TrainedRun, check_cache, encoder_of, load_run
from fastltssl.training.rows import Rows, rows_for
from fastltssl.types import Fitted, Run, Scores, adds_text, labelled_tau_of

PARTS = ("ensemble", "run", "text")  # what is measured: the sum, and both of its parts alone


class Plan(NamedTuple):
    """An ensemble before it is measured."""

    folder: Path  # of the run
    tuned: Config  # of the run
    config: Config  # of the ensemble
    why: str  # its tau was taken


def ensembles() -> list[str]:
    """Names of the methods that can be put on a finished run: those whose file has an Ensemble."""
    return [name for name in names() if hasattr(load(name), "Ensemble")]


def planned(method: str, folder: Path, settings: dict[str, Any], cache: str | None = None) -> Plan:
    """What an ensemble with a finished run is, from the run's own config; `cache` where its cache has moved.

    Raises RunError for a run that has no scores to add, and ConfigError for knobs of a head, as none is trained.
    """
    if not hasattr(load(method), "Ensemble"):
        raise ConfigError(f"--ensemble belongs to {', '.join(ensembles())}, not to {method}")
    tuned = read_config(folder)
    if tuned.ensemble:
        raise RunError(f"{folder} is an ensemble with {tuned.ensemble} already. Name that run, or another one")
    if adds_text(configure(tuned.method, tuned.settings)):
        raise RunError(
            f"{folder} is a run of {tuned.method}, whose scores hold the zero-shot scores already. Name a run of "
            "another method, such as probe"
        )
    configured = configure(method, settings)
    taken = [field.name for field in dataclasses.fields(load(method).Ensemble) if hasattr(configured, field.name)]
    if other := settings.keys() - {*taken}:
        raise ConfigError(f"--set {min(other)}: an ensemble trains no head. It takes {' and '.join(taken)}")
    tau, why = _carried(tuned)
    if "tau" in settings:
        tau, why = configured.tau, f"tau {configured.tau:g}, as asked"
    own: dict[str, Any] = {"method": method, "cache": cache or tuned.cache, "settings": settings | {"tau": tau}}
    return Plan(folder, tuned, dataclasses.replace(tuned, **own, live=None, ensemble=str(folder)), why)


def _carried(tuned: Config) -> tuple[float, str]:
    """The tau that the scores of a run were trained with, and why it is that."""
    tau = labelled_tau_of(configure(tuned.method, tuned.settings))
    if tau is not None:
        return float(tau), f"tau {tau:g}: with it {tuned.method} trained its head, on CE(z + tau log pi_l, y)"
    return 1.0, f"tau 1: the scores of {tuned.method} count as balanced"


def ensembling(
    plan: Plan,
    cache: Cache,
    out: Path | None = None,
    *,
    device: str = "cpu",
    pretrained: str | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    workers: int = 2,
) -> Work[dict[str, Any]]:
    """Measure a run plus the zero-shot scores of its cache on every seed, yielding progress; returns the record.

    The run and the debiased zero-shot scores alone, on the same rows, are in record["ensemble"]. Scores are added on
    the CPU; `device` is that of the encoder of a live run, whose test images are encoded anew. Raises RunError where
    the cache is not the run's.
    """
    folder, config, began = plan.folder, plan.config, time.perf_counter()
    check_cache(folder, cache)
    source = source_of(cache, dataset, root) if plan.tuned.live else None
    method = load(config.method).Ensemble(**_as_configured(config))
    rows = rows_for(cache, method, templates=config.templates)
    read = rows_for(cache, configure(plan.tuned.method, plan.tuned.settings), rows, templates=config.templates)
    tasks = tasks_of(config, cache, rows)
    fitted: dict[str, list[Fitted]] = {part: [] for part in PARTS}
    for task in tasks:
        trained = load_run(folder, cache, task.seed)
        chosen = [("train", task.split.val), *tested_rows(config, task.split, cache)]
        if source is None:
            tuned = torch.cat([trained.scores(part) for part in _gathered(read, chosen).split(CHUNK)])
        else:
            encoder = encoder_of(trained, pretrained, device)
            tuned = yield from encoding(trained, source, encoder, chosen, workers)
        table = torch.cat([tuned, _gathered(rows, chosen).float()], dim=-1)
        held = len(task.split.val)
        measured = task.measured._replace(
            val_x=table[:held], test_x=table[held:], pool_x=table[:0], pool_y=task.measured.pool_y[:0]
        )
        run = Run({}, (), method.start(task.problem))
        for part in PARTS:
            metrics = evaluate(dataclasses.replace(method, tested=part), run, measured)
            metrics |= {"step": torch.tensor(config.steps)}
            fitted[part].append(Fitted(run, {name: value[None] for name, value in metrics.items()}))
    return _recorded(plan, Results(config, method, cache, tasks, []), fitted, time.perf_counter() - began, out)


def _as_configured(config: Config) -> dict[str, Any]:
    """The settings of an ensemble as its method takes them, numbers for text."""
    method = configure(config.method, config.settings)
    return {name: getattr(method, name) for name in config.settings}


def _gathered(rows: Rows, chosen: list[tuple[str, np.ndarray]]) -> Float[Tensor, "n D"]:
    """Center views of rows of the groups, one after the other."""
    return torch.cat([rows.features[name][torch.from_numpy(places), 0] for name, places in chosen])


def encoding(
    trained: TrainedRun, source: Source, encoder: Encoder, chosen: list[tuple[str, np.ndarray]], workers: int = 2
) -> Work[Scores]:
    """Scores of images through the run's own encoder, yielding progress; rounded as `predict` does."""
    named = [(name, [trained.cache.groups[name].ids[row] for row in places]) for name, places in chosen]
    place = pictures_of(source, encoder, named).row
    ends = np.cumsum([0, *(len(ids) for _, ids in named)])
    groups: dict[str, Images] = {}
    for (name, ids), (first, last) in zip(named, pairwise(ends), strict=True):
        images, own = source.groups[name], place[first:last]
        groups[f"{len(groups)} {name}"] = Subset(tuple(ids), images.labels[own], images, own)
    shapes = {name: (len(images.ids), 1, encoder.width) for name, images in groups.items()}
    blocks = all_blocks(shapes, dict.fromkeys(shapes, ROWS))
    found, done, waited, began = [], 0, 0.0, time.perf_counter()
    with pipeline(encoder.device, workers) as threads:
        views = dict.fromkeys(shapes, parse_views("center"))
        for one in threads.encoded(source._replace(groups=groups), encoder, views, blocks, seed=0):
            features = one.features[:, 0, 0].astype(np.float16)
            found.append(trained.scores(torch.from_numpy(features)))
            done, waited = done + len(features), waited + one.waited_s
            yield Progress(
                done,
                len(place),
                time.perf_counter() - began,
                unit="images",
                part=f"seed {trained.seed}",
                waited_s=waited,
            )
    return torch.cat(found)


def _recorded(
    plan: Plan, results: Results, fitted: dict[str, list[Fitted]], seconds: float, out: Path | None
) -> dict[str, Any]:
    """The record, written under `out` if given."""
    records = {part: record_of(results._replace(fitted=runs), seconds) for part, runs in fitted.items()}
    record = records["ensemble"]
    record["settings"] = {"ensemble": plan.folder.name} | record["settings"]
    record["ensemble"] = {
        "run": str(plan.folder),
        "method": plan.tuned.method,
        "live": plan.tuned.live and plan.tuned.live.mode,
        "tau": plan.why,
        "run_alone": {name: records["run"][name] for name in METRICS},
        "zero_shot_debiased_alone": {name: records["text"][name] for name in METRICS},
    }
    return record if out is None else write(out, results._replace(fitted=fitted["ensemble"]), record)
