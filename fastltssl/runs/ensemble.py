"""An ensemble of a finished run and the zero-shot model: their scores summed and evaluated, without any training.

How the two are summed says the class `Ensemble` in the file of a method, such as GLA.
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
from fastltssl.runs.finished import read_config
from fastltssl.runs.folder import write
from fastltssl.runs.record import METRICS, Results, record_of
from fastltssl.runs.trained import ROWS, TrainedRun, check_cache, encoder_of, load_run
from fastltssl.training.rows import Rows, rows_for
from fastltssl.types import Fitted, Run, Scores, adds_text, labelled_tau_of

PARTS = ("ensemble", "run", "text")  # what is evaluated: the sum, and both of its parts alone


class EnsemblePlan(NamedTuple):
    """What an ensemble is to be."""

    folder: Path  # of the run
    tuned: Config  # of the run
    config: Config  # of the ensemble
    why: str  # where its tau comes from, in words


def ensembles() -> list[str]:
    """Names of the methods whose file has an Ensemble."""
    return [name for name in names() if hasattr(load(name), "Ensemble")]


def planned(method: str, folder: Path, settings: dict[str, Any], cache: str | None = None) -> EnsemblePlan:
    """The plan of an ensemble with the run in a folder; `cache` where the run's cache has moved.

    Raises RunError for a run whose scores hold the zero-shot ones, and ConfigError for settings of a head.
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
    knobs = [field.name for field in dataclasses.fields(load(method).Ensemble) if hasattr(configured, field.name)]
    if other := settings.keys() - {*knobs}:
        raise ConfigError(f"--set {min(other)}: an ensemble trains no head. It takes {' and '.join(knobs)}")
    tau, why = _tau_of(tuned)
    if "tau" in settings:
        tau, why = configured.tau, f"tau {configured.tau:g}, as asked"
    own: dict[str, Any] = {"method": method, "cache": cache or tuned.cache, "settings": settings | {"tau": tau}}
    return EnsemblePlan(folder, tuned, dataclasses.replace(tuned, **own, live=None, ensemble=str(folder)), why)


def _tau_of(tuned: Config) -> tuple[float, str]:
    """The tau that the scores of a run were trained with, and where it comes from, in words."""
    tau = labelled_tau_of(configure(tuned.method, tuned.settings))
    if tau is not None:
        return float(tau), f"tau {tau:g}: with it {tuned.method} trained its head, on CE(z + tau log pi_l, y)"
    return 1.0, f"tau 1: the scores of {tuned.method} count as balanced"


def ensembling(
    plan: EnsemblePlan,
    cache: Cache,
    out: Path | None = None,
    *,
    device: str = "cpu",
    pretrained: str | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    workers: int = 2,
) -> Work[dict[str, Any]]:
    """Evaluate the sum of a run and the zero-shot model on every seed, yielding progress; returns the record.

    record["ensemble"] holds the metrics of both parts alone, on the same rows. The images of a live run are encoded
    again, on `device`; everything else is on the CPU. Raises RunError where the cache is not the run's.
    """
    folder, config, began = plan.folder, plan.config, time.perf_counter()
    check_cache(folder, cache)
    source = source_of(cache, dataset, root) if plan.tuned.live else None
    method = load(config.method).Ensemble(**_as_configured(config))
    rows = rows_for(cache, method, templates=config.templates)
    run_rows = rows_for(cache, configure(plan.tuned.method, plan.tuned.settings), rows, templates=config.templates)
    tasks = tasks_of(config, cache, rows)
    fitted: dict[str, list[Fitted]] = {part: [] for part in PARTS}
    for task in tasks:
        trained = load_run(folder, cache, task.seed)
        chosen = [("train", task.split.val), *tested_rows(config, task.split, cache)]
        if source is None:
            tuned = torch.cat([trained.scores(part) for part in _gathered(run_rows, chosen).split(CHUNK)])
        else:
            encoder = encoder_of(trained, pretrained, device)
            tuned = yield from encoding(trained, source, encoder, chosen, workers)
        x = torch.cat([tuned, _gathered(rows, chosen).float()], dim=-1)  # what Ensemble.scores reads
        n_val = len(task.split.val)
        measured = task.measured._replace(
            val_x=x[:n_val], test_x=x[n_val:], pool_x=x[:0], pool_y=task.measured.pool_y[:0]
        )
        run = Run({}, (), method.start(task.problem))
        for part in PARTS:
            metrics = evaluate(dataclasses.replace(method, tested=part), run, measured)
            metrics |= {"step": torch.tensor(config.steps)}
            fitted[part].append(Fitted(run, {name: value[None] for name, value in metrics.items()}))
    return _recorded(plan, Results(config, method, cache, tasks, []), fitted, time.perf_counter() - began, out)


def _as_configured(config: Config) -> dict[str, Any]:
    """The settings of an ensemble as its method takes them: text converted to numbers."""
    method = configure(config.method, config.settings)
    return {name: getattr(method, name) for name in config.settings}


def _gathered(rows: Rows, chosen: list[tuple[str, np.ndarray]]) -> Float[Tensor, "n D"]:
    """The center views of the chosen rows: pairs of a group and rows in it."""
    return torch.cat([rows.features[name][torch.from_numpy(places), 0] for name, places in chosen])


def encoding(
    trained: TrainedRun, source: Source, encoder: Encoder, chosen: list[tuple[str, np.ndarray]], workers: int = 2
) -> Work[Scores]:
    """Scores of images through the run's own encoder, yielding progress. Features are rounded as in `predicting`."""
    named = [(name, [trained.cache.groups[name].ids[row] for row in places]) for name, places in chosen]
    row = pictures_of(source, encoder, named).row
    ends = np.cumsum([0, *(len(ids) for _, ids in named)])
    groups: dict[str, Images] = {}
    for (name, ids), (first, last) in zip(named, pairwise(ends), strict=True):
        images, own = source.groups[name], row[first:last]
        groups[f"{len(groups)} {name}"] = Subset(tuple(ids), images.labels[own], images, own)
    shapes = {name: (len(images.ids), 1, encoder.width) for name, images in groups.items()}
    blocks = all_blocks(shapes, dict.fromkeys(shapes, ROWS))
    scores, done, waited, began = [], 0, 0.0, time.perf_counter()
    with pipeline(encoder.device, workers) as threads:
        views = dict.fromkeys(shapes, parse_views("center"))
        for block in threads.encoded(source._replace(groups=groups), encoder, views, blocks, seed=0):
            features = block.features[:, 0, 0].astype(np.float16)
            scores.append(trained.scores(torch.from_numpy(features)))
            done, waited = done + len(features), waited + block.waited_s
            yield Progress(
                done,
                len(row),
                time.perf_counter() - began,
                unit="images",
                part=f"seed {trained.seed}",
                waited_s=waited,
            )
    return torch.cat(scores)


def _recorded(
    plan: EnsemblePlan, results: Results, fitted: dict[str, list[Fitted]], seconds: float, out: Path | None
) -> dict[str, Any]:
    """The record of an ensemble, written under `out` if given."""
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
