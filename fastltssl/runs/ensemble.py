"""GLA on a finished run (arXiv 2310.08106): its scores and those of the frozen model, each freed of its own label bias.

| code | symbol | meaning |
| --- | --- | --- |
| tuned | z_ft | test scores of the run, through its own encoder where it was trained live |
| text | z_zs | zero-shot scores of the frozen encoder, from the cache |
| log_prior | log pi_s | prior of the labelled rows, of which z_ft carries 1 - tau |
| log_bias | log pi_p | label bias of z_zs, from the labelled rows |

Differs: as in methods/gla.py, whose estimate this takes.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator as Draws
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.layout import all_blocks
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.pipeline import pipeline
from fastltssl.encoder.reopen import source_of
from fastltssl.errors import ConfigError, RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.functional.zero_shot import text_scores
from fastltssl.images.source import Images, Source, Subset
from fastltssl.images.views import parse_views
from fastltssl.knobs import Knob, choice, knob
from fastltssl.live.images import pictures_of
from fastltssl.methods import configure, gla
from fastltssl.progress import Progress, Work
from fastltssl.runs.config import Config
from fastltssl.runs.evaluation import CHUNK, evaluator, threshold_of
from fastltssl.runs.experiment import SeedSplit, Wanted, measured_rows, seeds_of, with_templates
from fastltssl.runs.folder import read_config, write
from fastltssl.runs.record import METRICS, record_of
from fastltssl.runs.trained import ROWS, TrainedRun, check_cache, encoder_of, load_run
from fastltssl.training.rows import Rows, resident
from fastltssl.types import Fitted, Problem, Run, Scores

ADJUSTED = ("probe", "fixmatch", "debiaspl", "multiview")  # their tested head was trained on CE(z + tau log pi_l, y)
ZERO_SHOT = ("zeroshot", "gla")  # the zero-shot scores are in theirs, at full weight
PARTS = ("ensemble", "run", "text")


class Plan(NamedTuple):
    """An ensemble before it is measured."""

    folder: Path  # of the run
    tuned: Config  # of the run
    config: Config  # of the ensemble
    why: str  # its tau was taken


@dataclass(frozen=True, eq=False)
class Ensemble:
    """z = z_ft - (1 - tau) log pi_s + s z_zs - log pi_p (GLA eq. 7); a row is concat(z_ft, frozen feature)."""

    tau: Knob = knob(1.0, 0.0, 2.0, "logit adjustment the run was trained with; 0 subtracts log pi_s afterwards")
    scale: str = choice("fixed", ("fixed", "joint"), "s = 1, or s fitted along with the label bias")
    tested: str = "ensemble"  # one of PARTS
    views = (0, 0)

    def init(self, problem: Problem, generator: Draws) -> dict[str, Tensor]:
        return {}

    def start(self, problem: Problem) -> gla.State:
        """Of the frozen features; nothing in it trains."""
        return gla.Method(tau=self.tau, scale=self.scale).start(problem)._replace(head=())

    def scores(self, params: dict[str, Tensor], state: gla.State, x: Float[Tensor, "n CD"]) -> dict[str, Scores]:
        tuned, feature = x.tensor_split([len(state.log_prior)], dim=-1)
        text = state.text_scale * text_scores(state.text, feature) - state.log_bias
        found = {"ensemble": tuned - (1 - self.tau) * state.log_prior + text, "run": tuned, "text": text}
        return found | {"test": found[self.tested]}


def planned(folder: Path, settings: dict[str, Any], cache: str | None = None) -> Plan:
    """What an ensemble with a finished run is, from the run's own config; `cache` where its cache has moved.

    Raises RunError for a run that has no scores to add, and ConfigError for knobs of a head, as none is trained.
    """
    tuned = read_config(folder)
    if tuned.ensemble:
        raise RunError(f"{folder} is an ensemble with {tuned.ensemble} already. Name that run, or another one")
    if tuned.method in ZERO_SHOT:
        raise RunError(
            f"{folder} is a run of {tuned.method}, whose scores hold the zero-shot scores already. Name a run of "
            "another method, such as probe"
        )
    method = configure("gla", settings)
    if other := settings.keys() - {"tau", "scale"}:
        raise ConfigError(f"--set {min(other)}: an ensemble trains no head. It takes tau and scale")
    tau, why = _carried(tuned)
    if "tau" in settings:
        tau, why = method.tau, f"tau {method.tau:g}, as asked"
    own: dict[str, Any] = {"method": "gla", "cache": cache or tuned.cache, "settings": settings | {"tau": tau}}
    return Plan(folder, tuned, dataclasses.replace(tuned, **own, live=None, ensemble=str(folder)), why)


def _carried(tuned: Config) -> tuple[float, str]:
    """The tau that the scores of a run were trained with, and why it is that."""
    if tuned.method in ADJUSTED:
        tau = float(configure(tuned.method, tuned.settings).tau)
        return tau, f"tau {tau:g}: with it {tuned.method} trained its head, on CE(z + tau log pi_l, y)"
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
    method = Ensemble(config.settings["tau"], config.settings.get("scale", "fixed"))
    rows = with_templates(resident(cache), cache, config.templates)
    read = resident(cache, taps=True) if wants_taps(configure(plan.tuned.method, plan.tuned.settings)) else rows
    seeds = seeds_of(config, cache, rows)
    fitted: dict[str, list[Fitted]] = {part: [] for part in PARTS}
    for one in seeds:
        trained, wanted = load_run(folder, cache, one.seed), measured_rows(config, one.split, cache)
        if source is None:
            tuned = torch.cat([trained.scores(part) for part in _gathered(read, wanted).split(CHUNK)])
        else:
            encoder = encoder_of(trained, pretrained, device)
            tuned = yield from encoding(trained, source, encoder, wanted, workers)
        table = torch.cat([tuned, _gathered(rows, wanted).float()], dim=-1)
        state = method.start(one.problem)
        for part in PARTS:
            run, measure = Run({}, (), state), _measure(config, one, table, rows, wanted)
            metrics = measure(dataclasses.replace(method, tested=part), run) | {"step": torch.tensor(config.steps)}
            fitted[part].append(Fitted(run, {name: value[None] for name, value in metrics.items()}))
    return _recorded(plan, method, cache, seeds, fitted, time.perf_counter() - began, out)


def _gathered(rows: Rows, wanted: Wanted) -> Float[Tensor, "n D"]:
    """Center views."""
    return torch.cat([rows.features[name][torch.from_numpy(chosen), 0] for name, chosen in wanted])


def encoding(trained: TrainedRun, source: Source, encoder: Encoder, wanted: Wanted, workers: int = 2) -> Work[Scores]:
    """Scores of images through the run's own encoder, yielding progress; rounded as `predict` does."""
    named = [(name, [trained.cache.groups[name].ids[row] for row in chosen]) for name, chosen in wanted]
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


def _measure(
    config: Config, one: SeedSplit, table: Float[Tensor, "n CD"], rows: Rows, wanted: Wanted
) -> Callable[[Ensemble, Run], dict[str, Tensor]]:
    """The evaluation every run has, on validation and test rows that lie one after the other."""
    labels = torch.cat([rows.labels[name][torch.from_numpy(chosen)] for name, chosen in wanted])
    held = len(one.split.val)
    compact = rows._replace(
        features={"train": table[:held, None], "test": table[held:, None]},
        labels={"train": labels[:held], "test": labels[held:]},
    )
    none, val, test = np.arange(0), np.arange(held), np.arange(len(table) - held)
    split = one.split._replace(unlabelled=none, unlabelled_group="train", val=val, test=test, test_group="test")
    return evaluator(dataclasses.replace(config, eval="test"), split, one.groups, one.problem, compact)


def _recorded(
    plan: Plan,
    method: Ensemble,
    cache: Cache,
    seeds: list[SeedSplit],
    fitted: dict[str, list[Fitted]],
    seconds: float,
    out: Path | None,
) -> dict[str, Any]:
    """The record, written under `out` if given."""
    splits, groups = [one.split for one in seeds], [one.groups for one in seeds]
    records = {
        part: record_of(plan.config, method, cache, splits, groups, each, seconds) for part, each in fitted.items()
    }
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
    if out is not None:
        record["run"] = str(out)
        write(out, plan.config, cache, splits, groups, fitted["ensemble"], record, threshold_of(method))
    return record
