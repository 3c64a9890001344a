"""One experiment: a cache and a protocol to a record, every seed trained jointly and measured."""

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastltssl import metrics
from fastltssl.batches import Rows, make_problem, make_stream, resident, views_of
from fastltssl.cache import Cache, fingerprint, open_cache
from fastltssl.joint import pick
from fastltssl.methods import configure, values
from fastltssl.prompts import templates as template_set
from fastltssl.runs import Config, RunError, check, write
from fastltssl.splits import Split, long_tailed
from fastltssl.train import Progress, fitting_many, is_trained, shape_key
from fastltssl.types import Fitted, Method, Problem, Run

METRICS = ("top1", "bacc", "gm", "head", "medium", "tail", "ece")
CHUNK = 16384  # rows scored at once


class _Seed(NamedTuple):
    """One seed of one experiment, before it is trained."""

    config: Config
    seed: int
    split: Split
    problem: Problem


def training(
    config: Config, cache: Cache, rows: Rows, out: Path | None = None
) -> Generator[Progress, None, dict[str, Any]]:
    """Train every seed of an experiment, yielding Progress; returns its record, written under `out` if given."""
    records = yield from training_together([config], cache, rows, [out])
    return records[0]


def training_together(
    configs: Sequence[Config], cache: Cache, rows: Rows, outs: Sequence[Path | None]
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Train experiments that differ in their protocol only as one, seeds and all; `seconds` is each one's share."""
    configs = [check(config) for config in configs]
    first = configs[0]
    method = configure(first.method, first.settings)
    if any(dataclasses.replace(one, protocol=first.protocol) != first for one in configs):
        raise RunError("experiments trained together may differ in their protocol only")
    rows = with_templates(rows, cache, first.templates)
    seeds = [one for config in configs for one in _seeds(config, cache, rows)]
    fitted: list[Any] = [None] * len(seeds)
    began = time.perf_counter()
    for members in _alike(method, [one.problem for one in seeds]):
        result = yield from _fit_alike(method, rows, [seeds[i] for i in members])
        for place, index in enumerate(members):
            fitted[index] = pick(result, place)
    seconds = (time.perf_counter() - began) / len(configs)
    if diverged := [one.seed for one, run in zip(seeds, fitted, strict=True) if not _is_finite(run)]:
        raise RunError(
            f"{first.method} diverged at seed {diverged[0]}: the loss is not finite. Lower --lr ({first.lr:g})"
        )
    records = []
    for config, out in zip(configs, outs, strict=True):
        own = [index for index, one in enumerate(seeds) if one.config is config]
        splits, results = [seeds[i].split for i in own], [fitted[i] for i in own]
        record = _record(config, method, cache, splits, results, seconds)
        if out is not None:
            record["run"] = str(out)
            write(out, config, cache, splits, results, record)
        records.append(record)
    return records


def _is_finite(fitted: Fitted) -> bool:
    loss = fitted.history.get("loss")
    return loss is None or bool(loss.isfinite().all())


def _seeds(config: Config, cache: Cache, rows: Rows) -> list[_Seed]:
    """The splits of an experiment; raises where there is nothing to test on."""
    labels = {name: group.labels for name, group in cache.groups.items()}
    found = []
    for seed in config.seeds:
        split = long_tailed(labels, len(cache.classes), config.protocol, seed)
        if config.eval == "test" and not len(split.test):
            raise RunError(f"{config.cache} has no group 'test'. Add --test-per-class n, or --eval all")
        found.append(_Seed(config, seed, split, make_problem(rows, split, config.steps)))
    return found


def _fit_alike(method: Method, rows: Rows, seeds: list[_Seed]) -> Generator[Progress, None, Fitted]:
    """Train the seeds whose tensors have one shape jointly."""
    config, scored = seeds[0].config, [_scorer(one, rows) for one in seeds]
    return (
        yield from fitting_many(
            method,
            {},
            [one.problem for one in seeds],
            [
                make_stream(one.problem, method.views, batch=config.batch, batch_u=config.batch_u, seed=one.seed)
                for one in seeds
            ],
            steps=config.steps,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=[one.seed for one in seeds],
            evals=max(config.evals, 20) if config.report == "mean20" else config.evals,
            evaluate=lambda method, run, place: scored[place](method, run),
        )
    )


def _scorer(one: _Seed, rows: Rows) -> Callable[[Method, Run], dict[str, Tensor]]:
    """The evaluation of one split: test metrics, and the audit of the pseudo-labels."""
    config, _, split, problem = one
    dtype, grouping = problem.x.dtype, metrics.GROUPINGS[config.groups](torch.from_numpy(split.counts))
    if config.eval == "all":
        kept = {name: labels >= 0 for name, labels in rows.labels.items()}
        test_x = torch.cat([rows.features[name][mask][:, 0] for name, mask in kept.items()])
        test_y = torch.cat([rows.labels[name][mask] for name, mask in kept.items()])
    else:
        test = torch.from_numpy(split.test)
        test_x, test_y = rows.features[split.test_group][test][:, 0], rows.labels[split.test_group][test]
    val = torch.from_numpy(split.val)
    val_x, val_y = rows.features["train"][val][:, 0], rows.labels["train"][val]
    truth = rows.labels[split.unlabelled_group][torch.from_numpy(split.unlabelled)]
    weak = (views_of(problem, "weak") or [0])[0]

    def evaluate(method: Method, run: Run) -> dict[str, Tensor]:
        found = metrics.evaluate(_scores(method, run, test_x, "test", dtype), test_y, grouping)
        result = {name: _number(value) for name, value in found.items()}
        if len(val_y):
            scores = _scores(method, run, val_x, "test", dtype)
            result["val_bacc"] = _number(metrics.evaluate(scores, val_y, None)["bacc"])
        if method.views[0] and len(problem.u):
            scores = _scores(method, run, problem.u[:, weak], "pseudo", dtype)
            confidence, label = scores.softmax(dim=-1).max(dim=-1)
            if bool((truth >= 0).all()):
                audit = metrics.audit(label, confidence, truth, float(getattr(method, "threshold", 0.95)))
                result |= {f"pseudo_{name}": _number(value) for name, value in audit._asdict().items()}
            result |= {"pseudo_label": label.short(), "pseudo_confidence": confidence.half()}
        return result

    return evaluate


def _scores(method: Method, run: Run, x: Tensor, branch: str, dtype: torch.dtype) -> Tensor:
    parts = [method.scores(run.params, run.state, part.to(dtype))[branch] for part in x.split(CHUNK)]
    return torch.cat(parts)


def _number(value: float | None) -> Tensor:
    return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)


def _alike(method: Method, problems: list[Problem]) -> list[list[int]]:
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


def _reported(history: dict[str, Tensor], name: str, report: str) -> float:
    """One seed's reported value of a metric."""
    values = history[name]
    if report == "mean20":
        return float(values[-20:].nanmean())
    return float(values[int(history["val_bacc"].argmax())] if report == "val" else values[-1])


def _record(
    config: Config, method: Method, cache: Cache, splits: list[Split], fitted: list[Fitted], seconds: float
) -> dict[str, Any]:
    """The JSON row of an experiment; percent, std with ddof 1 (0 for one seed), null for what does not exist."""
    histories = [one.history for one in fitted]
    protocol = dataclasses.asdict(config.protocol)
    record: dict[str, Any] = {
        "method": config.method,
        "settings": {name: value for name, value in values(method).items() if name in config.settings},
        "cache": config.cache,
        "protocol": protocol | {"report": config.report, "groups": config.groups, "eval": config.eval},
        "seeds": list(config.seeds),
    }
    for name in METRICS:
        each = [100 * _reported(history, name, config.report) for history in histories]
        record[name] = _summary(each)
    record["pseudo_label"] = None
    if all("pseudo_accuracy" in history for history in histories):
        record["pseudo_label"] = {
            name: _mean([100 * _reported(history, f"pseudo_{name}", config.report) for history in histories])
            for name in metrics.Audit._fields
        }
    record |= {
        "seconds": round(seconds, 3),
        "run": None,
        "steps": config.steps if is_trained(method) else 0,
        "lr": config.lr,
        "templates": config.templates,
        "labelled": [len(split.labelled) for split in splits],
        "unlabelled": [len(split.unlabelled) for split in splits],
        "shortage": [split.shortage for split in splits],
        "cache_fingerprint": fingerprint(cache),
        "emulated": "emulated" in json.dumps(cache.attributes),
        "is_ssl": method.views[0] > 0,
    }
    return record


def _mean(each: list[float]) -> float | None:
    seen = [value for value in each if value == value]
    return round(float(np.mean(seen)), 4) if seen else None


def _summary(each: list[float]) -> dict[str, Any] | None:
    if any(value != value for value in each):
        return None
    std = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    return {"mean": round(float(np.mean(each)), 4), "std": round(std, 4), "values": [round(v, 4) for v in each]}


def open_rows(path: str, device: str) -> tuple[Cache, Rows]:
    """A cache, and its rows on the device."""
    cache = open_cache(path)
    return cache, resident(cache, device)
