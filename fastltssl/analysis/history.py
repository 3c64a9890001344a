"""The numbers behind a finished run, read from its folder alone; cure.py needs its cache too.

The true labels of the pool are used here, to judge pseudo-labels. No method sees them.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from fastltssl.errors import RunError
from fastltssl.functional import metrics
from fastltssl.methods import configure
from fastltssl.reading import parse_json
from fastltssl.runs.config import Config
from fastltssl.runs.finished import Recorded, read_audit, read_config, read_record, read_tensors
from fastltssl.types import Keeps, OverTime, PerClass, Trace

BINS = 20  # of a histogram of confidence, equally wide from 0 to 1


class Insight(NamedTuple):
    """One seed of a finished run."""

    folder: Path
    seed: int
    config: Config
    record: dict[str, Any]
    recorded: Recorded
    classes: tuple[str, ...]
    counts: Int[Tensor, " C"]  # labelled rows
    groups: Int[Tensor, " C"] | None  # 0 head, 1 medium, 2 tail
    steps: Int[np.ndarray, " T"]
    curves: dict[str, np.ndarray]  # [T] each, by the names of metrics.jsonl, nan where there is no value; fractions
    truth: Int[Tensor, " M"] | None  # true labels of the pool; None unless all of them are known


class Labels(NamedTuple):
    """A pseudo-label of each row of the pool."""

    label: Int[Tensor, " M"]
    confidence: Float[Tensor, " M"]


class Summary(NamedTuple):
    """Statistics of the pseudo-labels of a pool; those that need the true labels are None without them."""

    accepted: Int[Tensor, " C"]  # rows at or above the threshold, by pseudo-label
    mask_rate: float  # share of rows that are accepted, nan for an empty pool
    right_histogram: Int[Tensor, " bins"]  # right pseudo-labels by confidence, accepted or not; all if truth is unknown
    wrong_histogram: Int[Tensor, " bins"]  # the same of wrong ones
    audit: metrics.Audit | None
    by_class: metrics.ClassAudit | None
    by_group: dict[str, float] | None  # recall_head, false_head and so on, see metrics.audit_groups
    confusion: Int[Tensor, "C C"] | None  # accepted rows: true class in rows, pseudo-label in columns


class Mistake(NamedTuple):
    """A pair of classes, by index, that accepted pseudo-labels confuse."""

    true: int
    label: int
    rows: int  # how many rows of the first are labelled as the second


def read_insight(folder: Path, seed: int | None = None) -> Insight:
    """One seed (None: the first) of a finished run. Raises RunError if there is no such run."""
    recorded, record, config = read_audit(folder, seed), read_record(folder), read_config(folder)
    seed = config.seeds[0] if seed is None else seed
    groups, truth = recorded.groups, recorded.truth
    return Insight(
        folder=folder,
        seed=seed,
        config=config,
        record=record,
        recorded=recorded,
        classes=recorded.classes,
        counts=torch.from_numpy(recorded.counts).long(),
        groups=None if groups is None else torch.from_numpy(groups).long(),
        steps=recorded.steps,
        curves=_curves(folder / "metrics.jsonl", seed, len(recorded.steps)),
        truth=None if truth is None or not len(truth) or (truth < 0).any() else torch.from_numpy(truth).long(),
    )


def _curves(path: Path, seed: int, times: int) -> dict[str, np.ndarray]:
    """Each metric of a seed over its evaluations, which are so many."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}). Train the run again") from None
    lines = [
        parse_json(text, dict[str, float], f"{path}, line {n}", RunError) for n, text in enumerate(texts, 1) if text
    ]
    lines = [line for line in lines if line.get("seed") == seed]
    if len(lines) != times:
        raise RunError(f"{path} has {len(lines)} evaluations of seed {seed}, not {times}. Train the run again")
    names = sorted({name for line in lines for name in line} - {"seed", "evaluation"})
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def curve(insight: Insight, name: str) -> Float64[np.ndarray, " T"]:
    """A metric over the evaluations, nan where there was nothing to measure: no row was wrong, or none accepted."""
    return insight.curves.get(name, np.full(len(insight.steps), np.nan))


def reporting(insight: Insight) -> str:
    """A sentence if the run's table does not report its last evaluation (see --report), else ""."""
    if insight.config.report == "mean20":
        return "The run's own table has means over its last 20 evaluations."
    if insight.config.report == "val" and "val_bacc" in insight.curves:
        best = int(insight.steps[insight.curves["val_bacc"].argmax()])
        return f"The run's own table has the step that is best on validation rows, which is {best} with this seed."
    return ""


def at_step(insight: Insight, place: int = -1) -> Labels | None:
    """The pseudo-labels at an evaluation (0 to T - 1, or -1 for the last); None if the method makes none."""
    label, confidence = insight.recorded.label, insight.recorded.confidence
    if label is None or confidence is None:
        return None
    return Labels(torch.from_numpy(label[place]).long(), torch.from_numpy(confidence[place]).float())


def summary(insight: Insight, labels: Labels, threshold: float, truth: Int[Tensor, " M"] | None = None) -> Summary:
    """Statistics of pseudo-labels, those at or above the threshold being accepted.

    `truth` are the true labels of the pool, if the run has not recorded them. Takes about 1 ms for 10,000 rows.
    """
    label, confidence = labels
    truth, n_classes = insight.truth if truth is None else truth, len(insight.classes)
    is_accepted = confidence >= threshold
    accepted = torch.bincount(label[is_accepted], minlength=n_classes)
    mask_rate = float(is_accepted.double().mean())
    bins = (confidence * BINS).long().clamp_(0, BINS - 1)
    if truth is None:
        histogram = torch.bincount(bins, minlength=BINS)
        return Summary(accepted, mask_rate, histogram, torch.zeros_like(histogram), None, None, None, None)
    is_right = label == truth
    wrong_and_right = torch.bincount(bins + BINS * is_right, minlength=2 * BINS)
    by_class = metrics.audit_classes(label, confidence, truth, threshold, n_classes)
    pairs = (truth * n_classes + label)[is_accepted]
    return Summary(
        accepted=accepted,
        mask_rate=mask_rate,
        right_histogram=wrong_and_right[BINS:],
        wrong_histogram=wrong_and_right[:BINS],
        audit=metrics.audit(label, confidence, truth, threshold),
        by_class=by_class,
        by_group=metrics.audit_groups(by_class, insight.groups),
        confusion=torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes),
    )


def mistakes(confusion: Int[Tensor, "C C"], count: int = 10) -> list[Mistake]:
    """The pairs of classes that are confused most often, most rows first."""
    n_classes = len(confusion)
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    counts, places = wrong.topk(min(count, len(wrong)))
    pairs = zip(counts.tolist(), places.tolist(), strict=True)
    return [Mistake(place // n_classes, place % n_classes, rows) for rows, place in pairs if rows]


def method_state(insight: Insight) -> list[PerClass | OverTime]:
    """What the method says of its state, by class or over training (see types.Keeps), and the estimated prior."""
    method = configure(insight.config.method, insight.config.settings)
    kept: list[PerClass | OverTime] = []
    steps = torch.from_numpy(insight.steps)
    if insight.recorded.prior_u is not None:
        reading = "One curve a class: the share of the pool that the method believes is of it."
        prior = 100 * torch.from_numpy(insight.recorded.prior_u)
        kept.append(OverTime("Estimated prior Q of the pool", "share (%)", reading, steps, prior))
    if isinstance(method, Keeps) and not insight.config.ensemble:
        curves = {name: torch.from_numpy(curve) for name, curve in insight.curves.items()}
        kept += method.kept(final_state(insight), Trace(steps, insight.config.steps, curves))
    return [_as_numpy(item) for item in kept]


def _as_numpy(item: PerClass | OverTime) -> PerClass | OverTime:
    return type(item)(*(np.asarray(value) if isinstance(value, Tensor) else value for value in item))  # type: ignore


def final_state(insight: Insight) -> SimpleNamespace:
    """The state that the method ended with, its tensors as nested attributes such as state.text.anchor.

    Raises RunError where its file cannot be read.
    """
    prefix = f"seed{insight.seed}.state."
    state = SimpleNamespace()
    for name, value in read_tensors(insight.folder).items():
        if name.startswith(prefix):
            parent, (*parts, last) = state, name.removeprefix(prefix).split(".")
            for part in parts:
                parent.__dict__.setdefault(part, SimpleNamespace())
                parent = getattr(parent, part)
            setattr(parent, last, value)
    return state
