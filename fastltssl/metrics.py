"""Metrics over test rows, and the audit of pseudo-labels. Fractions, not percent. Pure; true labels enter only here."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUPS = ("head", "medium", "tail")


class Audit(NamedTuple):
    """Pseudo-labels against the truth."""

    accuracy: float  # of the rows at or above the threshold; nan where there is none
    mask_rate: float  # share of rows at or above the threshold
    wrong_confidence: float  # mean confidence of the rows whose pseudo-label is wrong; nan where none is


def class_recall(guess: Int[Tensor, "n"], labels: Int[Tensor, "n"], n_classes: int) -> Float[Tensor, "C"]:
    """Recall of each class; nan for a class without rows."""
    counts = torch.bincount(labels, minlength=n_classes).double()
    hits = torch.bincount(labels[guess == labels], minlength=n_classes).double()
    return hits / counts  # 0 / 0 is nan


def geometric_mean(recall: Float[Tensor, "C"]) -> float:
    """Geometric mean of the recalls, zero recalls replaced by 1 / (100 C)."""
    seen = recall[~recall.isnan()]
    return float(seen.clamp_min(1 / (100 * len(recall))).log().mean().exp())


def thirds(counts: Int[Tensor, "C"]) -> Int[Tensor, "C"] | None:
    """Group of each class (0 head, 1 medium, 2 tail) by labelled count, ties by index; None when balanced."""
    n_classes = len(counts)
    if n_classes < 3 or bool((counts == counts[0]).all()):
        return None
    rank = torch.empty(n_classes, dtype=torch.long)
    rank[torch.argsort(counts.cpu(), descending=True, stable=True)] = torch.arange(n_classes)
    third = n_classes // 3
    return (rank >= third).long() + (rank >= n_classes - third).long()


def by_counts(counts: Int[Tensor, "C"]) -> Int[Tensor, "C"]:
    """Group of each class: many (> 100 labelled images), medium (20 to 100), few (< 20). Groups may be empty."""
    return (counts.cpu() <= 100).long() + (counts.cpu() < 20).long()


GROUPINGS = {"thirds": thirds, "counts": by_counts}


def calibration_error(
    probs: Float[Tensor, "n C"], labels: Int[Tensor, "n"], n_bins: int = 15, norm: str = "l1"
) -> float:
    """Top-1 calibration error as a fraction: "l1" is ECE, "max" is MCE, "l2" the root mean square.

    Equal-width bins closed on the left; a confidence of exactly 1 has a bin of its own, as torchmetrics has it.
    """
    confidence, guess = probs.double().max(dim=-1)
    bins = (confidence * n_bins).long().clamp(0, n_bins)
    count = torch.bincount(bins, minlength=n_bins + 1).double()
    confident = torch.zeros_like(count).scatter_add_(0, bins, confidence) / count.clamp_min(1)
    correct = torch.zeros_like(count).scatter_add_(0, bins, (guess == labels).double()) / count.clamp_min(1)
    gap, share = (confident - correct).abs(), count / count.sum()
    if norm == "max":
        return float(gap.max())
    if norm == "l2":
        return float((gap**2 * share).sum().sqrt())
    return float((gap * share).sum())


def evaluate(
    scores: Float[Tensor, "n C"], labels: Int[Tensor, "n"], groups: Int[Tensor, "C"] | None
) -> dict[str, float | None]:
    """top1, bacc, gm, head, medium, tail, ece of labelled test rows; a group without classes is None."""
    n_classes = scores.shape[-1]
    guess = scores.argmax(dim=-1)
    recall = class_recall(guess, labels, n_classes).cpu()
    result: dict[str, float | None] = {
        "top1": float((guess == labels).double().mean()),
        "bacc": float(recall.nanmean()),
        "gm": geometric_mean(recall),
    }
    for index, name in enumerate(GROUPS):
        members = recall[groups == index] if groups is not None else recall[:0]
        members = members[~members.isnan()]
        result[name] = float(members.mean()) if len(members) else None
    return result | {"ece": calibration_error(scores.softmax(dim=-1), labels)}


def audit(labels: Int[Tensor, "M"], confidence: Float[Tensor, "M"], truth: Int[Tensor, "M"], threshold: float) -> Audit:
    """Pseudo-labels of all unlabelled rows against their true labels."""
    is_right, is_accepted = labels == truth, confidence >= threshold
    return Audit(
        accuracy=float(is_right[is_accepted].double().mean()),
        mask_rate=float(is_accepted.double().mean()),
        wrong_confidence=float(confidence[~is_right].double().mean()),
    )
