"""The record of an experiment: one JSON row, computed from the histories of its seeds.

Values are percent, nats or counts of rows; std has ddof 1 (0 for one seed); null stands for what does not exist.
"""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.functional import measures, metrics
from fastltssl.functional.statistics import paired_difference
from fastltssl.methods import values
from fastltssl.runs.config import Config
from fastltssl.runs.evaluation import Task
from fastltssl.types import Fitted, Method, is_trained

METRICS = tuple(measures.TEST)
PSEUDO_LABEL = ("accuracy", "mask_rate", "wrong_confidence")
AUDIT = {  # curves of the audit, and the factor from their unit to that of the record
    name if name == "prior_kl" else f"pseudo_{name}": measure.factor for name, measure in measures.AUDIT.items()
}


class Results(NamedTuple):
    """An experiment after its training, from which its record and its folder are written."""

    config: Config
    method: Method
    cache: Cache
    tasks: list[Task]  # one per seed
    fitted: list[Fitted]  # one per seed


def record_of(results: Results, seconds: float) -> dict[str, Any]:
    """The record of an experiment; "run", the folder, is None until it is written."""
    config, method, cache, tasks, fitted = results
    histories = [run.history for run in fitted]
    protocol = dataclasses.asdict(config.protocol)
    record: dict[str, Any] = {
        "method": config.method,
        "settings": {name: value for name, value in values(method).items() if name in config.settings},
        "cache": config.cache,
        "protocol": protocol | {"report": config.report, "groups": config.groups, "eval": config.eval},
        "seeds": list(config.seeds),
    }
    for name in METRICS:
        record[name] = _summary([100 * _reported(history, name, config.report) for history in histories])
    held_out = [100 * _reported(history, "val_bacc", config.report) for history in histories if "val_bacc" in history]
    record["val_bacc"] = _summary(held_out)
    audit = _audit(histories, config.report)
    record["pseudo_label"] = audit and {name: audit[name] and audit[name]["mean"] for name in PSEUDO_LABEL}
    record["audit"] = audit
    record |= {
        "seconds": round(seconds, 3),
        "run": None,
        "steps": config.steps if is_trained(method) else 0,
        "lr": config.lr,
        "templates": config.templates,
        "labelled": [len(task.split.labelled) for task in tasks],
        "unlabelled": [len(task.split.unlabelled) for task in tasks],
        "shortage": [task.split.shortage for task in tasks],
        "group_sizes": _group_sizes([task.measured.groups for task in tasks]),
        "cache_fingerprint": fingerprint(cache),
        "emulated": "emulated" in json.dumps(cache.attributes),
        "is_ssl": method.views[0] > 0,
    }
    return record


def _reported(history: dict[str, Tensor], name: str, report: str) -> float:
    """The reported value of a metric of one seed: the last, the mean of the last 20, or that of the best val_bacc."""
    values = history[name]
    if report == "mean20":
        return float(values[-20:].nanmean())
    return float(values[int(history["val_bacc"].argmax())] if report == "val" else values[-1])


def _audit(histories: list[dict[str, Tensor]], report: str) -> dict[str, Any] | None:
    """Each scalar of the audit over the seeds, null for a seed without it; None without pseudo-labels or truth."""
    if not all("pseudo_accuracy" in history for history in histories):
        return None
    audit: dict[str, Any] = {}
    for name, factor in AUDIT.items():
        values = [factor * _reported(history, name, report) for history in histories if name in history]
        summary = _summary([value for value in values if value == value])
        rounded = [round(value, 4) if value == value else None for value in values]
        audit[name.removeprefix("pseudo_")] = summary and summary | {"values": rounded}
    return audit


def _group_sizes(groups: list[Tensor | None]) -> dict[str, list[int]] | None:
    """Number of classes in each group, one a seed; None where labels are balanced."""
    known = [group for group in groups if group is not None]
    if len(known) < len(groups):
        return None
    return {name: [int((group == index).sum()) for group in known] for index, name in enumerate(metrics.GROUPS)}


def _summary(values: list[float]) -> dict[str, Any] | None:
    """Mean, std and values over the seeds; None without values, or where one is nan."""
    if not values or any(value != value for value in values):
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "std": round(std, 4), "values": [round(v, 4) for v in values]}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """A metric of one record minus that of another, in points, paired by seed; without an interval for one seed."""
    paired = paired_difference(ours["values"], theirs["values"])
    low, high = (round(paired.low, 4), round(paired.high, 4)) if len(paired.values) > 1 else (None, None)
    return {"mean": round(paired.mean, 4), "low": low, "high": high, "values": [round(v, 4) for v in paired.values]}
