"""Losses, one value a row: the methods decide how rows are weighted and averaged. All work under vmap."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.functional.bias import one_hot
from fastltssl.knobs import Knob
from fastltssl.types import Scores


def cross_entropy(scores: Scores, labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """CE(z, y) of each row."""
    return soft_cross_entropy(scores, one_hot(labels, scores.shape[-1], scores.dtype))


def soft_cross_entropy(scores: Scores, target: Float[Tensor, "n C"]) -> Float[Tensor, " n"]:
    """-sum_k q_k log softmax(z)_k of each row; the target takes no gradient."""
    return -(target.detach() * torch.log_softmax(scores, dim=-1)).sum(dim=-1)


def balanced_margin_cross_entropy(
    scores: Scores, labels: Int[Tensor, " n"], margin: Float[Tensor, " C"]
) -> Float[Tensor, " n"]:
    """BMS(z, y) = CE(z + m_y (1 - onehot(y)), y): the margin of the row's own class is added to every other score."""
    own = one_hot(labels, scores.shape[-1], scores.dtype)
    return soft_cross_entropy(scores + (own @ margin)[:, None] * (1 - own), own)


def smooth_labels(
    labels: Int[Tensor, " n"], n_classes: int, amount: Knob, dtype: torch.dtype, form: str = "code"
) -> Float[Tensor, "n C"]:
    """Label-smoothed targets; "code" spreads the amount over the other classes, "paper" over all of them."""
    own = one_hot(labels, n_classes, dtype)
    if form == "paper":
        return (1 - amount) * own + amount / n_classes
    return (1 - amount) * own + amount / max(1, n_classes - 1) * (1 - own)


def confident_labels(
    scores: Scores, threshold: Knob
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Pseudo-label, confidence max softmax(z), and mask (1 where the confidence reaches the threshold) of each row."""
    confidence, labels = torch.softmax(scores.detach(), dim=-1).max(dim=-1)
    return labels, confidence, (confidence >= threshold).to(scores.dtype)
