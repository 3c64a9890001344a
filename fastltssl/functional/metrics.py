"""Metrics over test rows, and the audit of pseudo-labels against true labels. Fractions, not percent.

A pseudo-label is accepted where its confidence is at or above the threshold.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.functional.bias import class_prior, kl_divergence
from fastltssl.functional.measures import GROUPS as GROUPS


class Audit(NamedTuple):
    """Pseudo-labels against the truth; nan where there is no such row."""

    accuracy: float  # precision: of the accepted rows
    mask_rate: float  # share of rows that are accepted
    wrong_confidence: float  # mean confidence of the rows whose pseudo-label is wrong, accepted or not
    right_confidence: float
    kl: float  # KL(classes of accepted pseudo-labels || true classes of all rows), nats
    kl_all: float  # the same with the pseudo-labels of all rows


class ClassAudit(NamedTuple):
    """Pseudo-labels of each class against the truth; the shares are nan for a class without such rows."""

    accepted: Int[Tensor, " C"]  # rows with an accepted pseudo-label of this class
    right: Int[Tensor, " C"]  # of these, rows that are of this class
    true: Int[Tensor, " C"]  # rows that are of this class
    precision: Float[Tensor, " C"]  # right / accepted
    recall: Float[Tensor, " C"]  # right / true


def class_recall(guess: Int[Tensor, " n"], labels: Int[Tensor, " n"], n_classes: int) -> Float[Tensor, " C"]:
    """Recall of each class; nan for a class without rows."""
    counts = torch.bincount(labels, minlength=n_classes).double()
    hits = torch.bincount(labels[guess == labels], minlength=n_classes).double()
    return hits / counts  # 0 / 0 is nan


def geometric_mean(recall: Float[Tensor, " C"]) -> float:
    """Geometric mean of the recalls, zero recalls replaced by 1 / (100 C)."""
    seen = recall[~recall.isnan()]
    return float(seen.clamp_min(1 / (100 * len(recall))).log().mean().exp())


def harmonic_mean(recall: Float[Tensor, " C"]) -> float:
    """Harmonic mean of the recalls; 0 where a recall is 0."""
    return float(1 / (1 / recall[~recall.isnan()]).mean())


def thirds(counts: Int[Tensor, " C"]) -> Int[Tensor, " C"] | None:
    """Group of each class (0 head, 1 medium, 2 tail) by labelled count, ties by index; None when balanced."""
    n_classes = len(counts)
    if n_classes < 3 or bool((counts == counts[0]).all()):
        return None
    rank = torch.empty(n_classes, dtype=torch.long)
    rank[torch.argsort(counts.cpu(), descending=True, stable=True)] = torch.arange(n_classes)
    third = n_classes // 3
    return (rank >= third).long() + (rank >= n_classes - third).long()


def by_counts(counts: Int[Tensor, " C"]) -> Int[Tensor, " C"]:
    """Group of each class: many (> 100 labelled images), medium (20 to 100), few (< 20). Groups may be empty."""
    return (counts.cpu() <= 100).long() + (counts.cpu() < 20).long()


GROUPINGS = {"thirds": thirds, "counts": by_counts}


def reliability(probs: Float[Tensor, "n C"], labels: Int[Tensor, " n"], n_bins: int = 15) -> Float[Tensor, "bins 3"]:
    """Number of rows, mean confidence and accuracy of each bin of top-1 confidence; zeros where a bin is empty.

    Bins of equal width, closed on the left; as in torchmetrics, a confidence of exactly 1 has a bin of its own.
    """
    confidence, guess = probs.double().max(dim=-1)
    bins = (confidence * n_bins).long().clamp(0, n_bins)
    count = torch.bincount(bins, minlength=n_bins + 1).double()
    confident = torch.zeros_like(count).scatter_add_(0, bins, confidence) / count.clamp_min(1)
    correct = torch.zeros_like(count).scatter_add_(0, bins, (guess == labels).double()) / count.clamp_min(1)
    return torch.stack([count, confident, correct], dim=1)


def calibration_error(
    probs: Float[Tensor, "n C"], labels: Int[Tensor, " n"], n_bins: int = 15, norm: str = "l1"
) -> float:
    """Top-1 calibration error as a fraction: "l1" is ECE, "max" is MCE, "l2" the root mean square."""
    count, confident, correct = reliability(probs, labels, n_bins).unbind(dim=1)
    gap, share = (confident - correct).abs(), count / count.sum()
    if norm == "max":
        return float(gap.max())
    if norm == "l2":
        return float((gap**2 * share).sum().sqrt())
    return float((gap * share).sum())


def evaluate(
    scores: Float[Tensor, "n C"], labels: Int[Tensor, " n"], groups: Int[Tensor, " C"] | None
) -> dict[str, float | None]:
    """top1, bacc, gm, hm, worst, head, medium, tail, ece, mce of test rows; a group without classes is None."""
    n_classes = scores.shape[-1]
    guess = scores.argmax(dim=-1)
    recall = class_recall(guess, labels, n_classes).cpu()
    result: dict[str, float | None] = {
        "top1": float((guess == labels).double().mean()),
        "bacc": float(recall.nanmean()),
        "gm": geometric_mean(recall),
        "hm": harmonic_mean(recall),
        "worst": float(recall[~recall.isnan()].min()),
    }
    for index, name in enumerate(GROUPS):
        members = recall[groups == index] if groups is not None else recall[:0]
        members = members[~members.isnan()]
        result[name] = float(members.mean()) if len(members) else None
    probs = scores.softmax(dim=-1)
    return result | {"ece": calibration_error(probs, labels), "mce": calibration_error(probs, labels, norm="max")}


def evaluate_many(scores: Float[Tensor, "R n C"], labels: Int[Tensor, " n"], name: str) -> Float[Tensor, " R"]:
    """One metric of `evaluate`, for many runs on the same rows."""
    if name not in ("bacc", "top1"):
        return torch.tensor([evaluate(run_scores, labels, None)[name] for run_scores in scores], dtype=torch.float64)
    hits = (scores.argmax(dim=-1) == labels).double()
    if name == "top1":
        return hits.mean(dim=-1)
    member = (labels[:, None] == torch.arange(scores.shape[-1], device=labels.device)).double()
    return (hits @ member / member.sum(dim=0)).nanmean(dim=-1)  # 0 / 0 is nan


def audit(
    labels: Int[Tensor, " M"], confidence: Float[Tensor, " M"], truth: Int[Tensor, " M"], threshold: float
) -> Audit:
    """Pseudo-labels of all unlabelled rows against their true labels."""
    is_right, is_accepted = labels == truth, confidence >= threshold
    n_classes = int(torch.cat([labels, truth]).max()) + 1
    true = class_prior(truth, n_classes)

    def kl(some: Int[Tensor, " m"]) -> float:
        return float(kl_divergence(class_prior(some, n_classes), true)) if len(some) else math.nan

    return Audit(
        accuracy=float(is_right[is_accepted].double().mean()),
        mask_rate=float(is_accepted.double().mean()),
        wrong_confidence=float(confidence[~is_right].double().mean()),
        right_confidence=float(confidence[is_right].double().mean()),
        kl=kl(labels[is_accepted]),
        kl_all=kl(labels),
    )


def audit_classes(
    labels: Int[Tensor, " M"],
    confidence: Float[Tensor, " M"],
    truth: Int[Tensor, " M"],
    threshold: float,
    n_classes: int,
) -> ClassAudit:
    """Pseudo-labels of all unlabelled rows against their true labels, class by class."""
    is_accepted = confidence >= threshold
    accepted, right, true = (
        torch.bincount(classes, minlength=n_classes)
        for classes in (labels[is_accepted], labels[is_accepted & (labels == truth)], truth)
    )
    return ClassAudit(accepted, right, true, right.double() / accepted, right.double() / true)


def audit_groups(by_class: ClassAudit, groups: Int[Tensor, " C"] | None) -> dict[str, float]:
    """recall_head, false_head and so on: mean recall of a group's classes, and accepted wrong labels of its classes.

    A wrong label counts for the class it names. nan: the group has no class, or, for the recall, none with rows.
    """
    result: dict[str, float] = {}
    for index, name in enumerate(GROUPS):
        members = groups == index if groups is not None else torch.zeros_like(by_class.true, dtype=torch.bool)
        result[f"recall_{name}"] = float(by_class.recall[members].nanmean())
        false = float((by_class.accepted - by_class.right)[members].sum())
        result[f"false_{name}"] = false if bool(members.any()) else math.nan
    return result
