"""The numbers behind a finished run, from its folder alone. cure.py goes on from here, with the cache.

True labels of the pool are looked at here; no method sees them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from fastltssl.errors import RunError
from fastltssl.functional import metrics
from fastltssl.methods import adello, configure, finessl
from fastltssl.runs.config import Config
from fastltssl.runs.folder import Recorded, read_audit, read_config, read_record

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
    truth: Int[Tensor, " M"] | None  # of the pool, where all of it is known


class Labels(NamedTuple):
    """A pseudo-label of each row of the pool."""

    label: Int[Tensor, " M"]
    confidence: Float[Tensor, " M"]


class Summary(NamedTuple):
    """Pseudo-labels of a pool; what needs the truth is None without it."""

    accepted: Int[Tensor, " C"]  # rows at or above the threshold, by pseudo-label
    mask_rate: float  # share of rows that are accepted, nan for an empty pool
    right_histogram: Int[Tensor, " bins"]  # all rows by confidence; every row where the truth is not known
    wrong_histogram: Int[Tensor, " bins"]
    audit: metrics.Audit | None
    by_class: metrics.ClassAudit | None
    by_group: dict[str, float] | None  # recall_head, false_head and so on, see metrics.audit_groups
    confusion: Int[Tensor, "C C"] | None  # accepted rows, true class by pseudo-label


class Mistake(NamedTuple):
    """A pair of classes that accepted pseudo-labels mix up; indices."""

    true: int
    label: int
    rows: int


class PerClass(NamedTuple):
    """A number of each class that a method keeps."""

    title: str
    unit: str
    reading: str  # how to read it, one sentence
    values: Float[np.ndarray, " C"]
    errors: Float[np.ndarray, " C"] | None = None  # standard errors


class OverTime(NamedTuple):
    """Numbers of a method over training; a curve of each class where there are several."""

    title: str
    unit: str
    reading: str
    steps: Int[np.ndarray, " T"]
    values: Float[np.ndarray, "T K"]  # K is 1 or C


def read_insight(folder: Path, seed: int | None = None) -> Insight:
    """The history of one seed (None: the first) of a finished run. Raises RunError where there is none."""
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
        curves=_curves(folder / "metrics.jsonl", seed),
        truth=None if truth is None or not len(truth) or (truth < 0).any() else torch.from_numpy(truth).long(),
    )


def _curves(path: Path, seed: int) -> dict[str, np.ndarray]:
    """Each metric of a seed over its evaluations."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}). Train the run again") from None
    lines = [line for line in lines if line["seed"] == seed]
    names = sorted({name for line in lines for name in line} - {"seed", "evaluation"})
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def reporting(insight: Insight) -> str:
    """A sentence where the run's record reports anything but its last evaluation (--report); "" where it does not."""
    if insight.config.report == "mean20":
        return "The run's own table has means over its last 20 evaluations."
    if insight.config.report == "val" and "val_bacc" in insight.curves:
        best = int(insight.steps[insight.curves["val_bacc"].argmax()])
        return f"The run's own table has the step that is best on validation rows, which is {best} with this seed."
    return ""


def at_step(insight: Insight, place: int = -1) -> Labels | None:
    """The pseudo-labels at an evaluation (0 to T - 1, or -1 for the last); None where the method makes none."""
    label, confidence = insight.recorded.label, insight.recorded.confidence
    if label is None or confidence is None:
        return None
    return Labels(torch.from_numpy(label[place]).long(), torch.from_numpy(confidence[place]).float())


def summary(insight: Insight, labels: Labels, threshold: float, truth: Int[Tensor, " M"] | None = None) -> Summary:
    """What there is to say of pseudo-labels; `truth` where the run recorded none. About a millisecond a 10,000 rows."""
    label, confidence = labels
    truth, n_classes = insight.truth if truth is None else truth, len(insight.classes)
    is_accepted = confidence >= threshold
    accepted = torch.bincount(label[is_accepted], minlength=n_classes)
    mask_rate = float(is_accepted.double().mean())
    bins = (confidence * BINS).long().clamp_(0, BINS - 1)
    if truth is None:
        every = torch.bincount(bins, minlength=BINS)
        return Summary(accepted, mask_rate, every, torch.zeros_like(every), None, None, None, None)
    is_right = label == truth
    both = torch.bincount(bins + BINS * is_right, minlength=2 * BINS)
    by_class = metrics.audit_classes(label, confidence, truth, threshold, n_classes)
    pairs = (truth * n_classes + label)[is_accepted]
    return Summary(
        accepted=accepted,
        mask_rate=mask_rate,
        right_histogram=both[BINS:],
        wrong_histogram=both[:BINS],
        audit=metrics.audit(label, confidence, truth, threshold),
        by_class=by_class,
        by_group=metrics.audit_groups(by_class, insight.groups),
        confusion=torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes),
    )


def mistakes(confusion: Int[Tensor, "C C"], count: int = 10) -> list[Mistake]:
    """The pairs of classes that are mixed up most, most rows first."""
    n_classes = len(confusion)
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    rows, places = wrong.topk(min(count, len(wrong)))
    each = zip(rows.tolist(), places.tolist(), strict=True)
    return [Mistake(place // n_classes, place % n_classes, n) for n, place in each if n]


def method_state(insight: Insight) -> list[PerClass | OverTime]:
    """What the method itself keeps of each class or over training, such as ULFine's alpha_k; empty where nothing."""
    method = configure(insight.config.method, insight.config.settings)
    found = _estimated_prior(insight)
    special = {"ulfine": _ulfine, "adello": _adello, "finessl": _finessl}.get(insight.config.method)
    return found + (special(insight, method, _state(insight)) if special and not insight.config.ensemble else [])


def _state(insight: Insight) -> dict[str, Tensor]:
    """The tensors of the final state of a run, by name."""
    prefix = f"seed{insight.seed}.state."
    stored = load_file(insight.folder / "head.safetensors")
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def _estimated_prior(insight: Insight) -> list[PerClass | OverTime]:
    """The running estimate Q of the unlabelled prior."""
    prior = insight.recorded.prior_u
    if prior is None:
        return []
    reading = "One curve a class: the share of the pool that the method believes is of it."
    return [OverTime("Estimated prior Q of the pool", "share (%)", reading, insight.steps, 100 * prior)]


def _ulfine(insight: Insight, method: Any, state: dict[str, Tensor]) -> list[PerClass | OverTime]:
    text, fitted, visual = (state[name] for name in ("text.anchor", "fitted", "visual"))
    drift, target = (1 - (text * other).sum(dim=-1) for other in (fitted, visual))
    share = torch.full_like(drift, 0.0 if method.alpha == "off" else method.mu)
    if method.alpha == "confidence":
        share = method.mu * state["prior_u"] / state["prior_u"].max()
    return [
        PerClass("Share alpha_k of the visual prototype", "alpha_k", "How much of a class's text prototype gives way "
                 "to the mean of its images; equal bars mean one share for all classes.", share.numpy()),
        PerClass("Prototype drift", "1 - cosine with the text", "How far the fitted prototype has moved from the text; "
                 "0 is the zero-shot classifier.", drift.numpy()),
        PerClass("Distance of the class mean from the text", "1 - cosine with the text", "Where the prototype would "
                 "go at alpha_k = 1.", target.numpy()),
    ]  # fmt: skip


def _adello(insight: Insight, method: Any, state: dict[str, Tensor]) -> list[PerClass | OverTime]:
    steps, total = insight.steps, max(1, insight.config.steps)
    smoothing = np.array([float(adello.alpha(step / total, method.alpha_min, method.d)) for step in steps])
    found: list[PerClass | OverTime] = [
        OverTime("Smoothing alpha_t of the target prior", "alpha_t", "1 aligns with the estimated prior Q, 0 with a "
                 "uniform one.", steps, smoothing[:, None])
    ]  # fmt: skip
    if "temperature" in insight.curves:
        reading = "Temperature of the complementary distillation; 0 until the warm-up ends."
        found.append(
            OverTime("Distillation temperature T", "T", reading, steps, insight.curves["temperature"][:, None])
        )
    return found


def _finessl(insight: Insight, method: Any, state: dict[str, Tensor]) -> list[PerClass | OverTime]:
    n_classes, kept = len(insight.classes), state["ema"].float()
    sigma = kept if method.status == "ema" else finessl.counts_of(state["status"].long(), n_classes, torch.float32)
    margins = finessl.margin(sigma, method.alpha0, method.form).numpy()
    found: list[PerClass | OverTime] = [
        PerClass("Margin m_k", "margin (score)", "A class with few selected rows must win by more while training.",
                 margins),
        PerClass("Selected rows sigma_k", "share" if method.status == "ema" else "rows", "Rows of the pool that the "
                 "main head has selected since the status was last emptied.", sigma.numpy()),
    ]  # fmt: skip
    if "margin_max" in insight.curves:
        reading = "The largest margin of any class."
        found.append(
            OverTime("Largest margin", "margin (score)", reading, insight.steps, insight.curves["margin_max"][:, None])
        )
    return found
