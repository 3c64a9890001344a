"""Class priors and label bias: one pure function per equation.

`log_bias` is the logarithm of what GLA (arXiv 2310.08106) calls the label bias of a zero-shot model. It mixes the class
prior of the pre-training captions with prompt wording and confusions, hence the name.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.errors import FitError
from fastltssl.knobs import AutoKnob, Knob
from fastltssl.types import Scores

_TINY = 1e-12


class LabelBias(NamedTuple):
    """An estimated label bias."""

    log_bias: Float[Tensor, " C"]  # logsumexp is 0
    scale: Float[Tensor, ""]  # s; exactly 1 unless it was fitted
    standard_error: Float[Tensor, " C"]
    residual: Float[Tensor, ""]  # largest violation of the first-order condition, as a probability


def one_hot(labels: Int[Tensor, " n"], n_classes: int, dtype: torch.dtype) -> Float[Tensor, "n C"]:
    """One-hot rows by comparison, which unlike F.one_hot works under vmap."""
    return (labels[:, None] == torch.arange(n_classes, device=labels.device)).to(dtype)


def class_prior(labels: Int[Tensor, " n"], n_classes: int) -> Float[Tensor, " C"]:
    """Share of each class among the labels, in float64; sums to one."""
    counts = torch.bincount(labels, minlength=n_classes).double()
    return counts / counts.sum().clamp_min(1)


def log_prior(prior: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
    """log prior, floored so that a class without labelled rows stays finite."""
    return prior.clamp_min(_TINY).log()


def smooth_prior(prior: Float[Tensor, " C"], a: Knob) -> Float[Tensor, " C"]:
    """Q_a(k) = Q(k)^a / sum_j Q(j)^a: a = 1 keeps the prior, a = 0 makes it uniform (ADELLO eq. 4)."""
    return torch.softmax(log_prior(prior) * a, dim=-1)


def update_prior(prior: Float[Tensor, " C"], scores: Scores, momentum: Knob) -> Float[Tensor, " C"]:
    """Q <- m Q + (1 - m) mean_i softmax(z_i): the running estimate of the unlabelled prior."""
    return momentum * prior + (1 - momentum) * torch.softmax(scores.detach(), dim=-1).mean(dim=0)


def kl_divergence(p: Float[Tensor, " C"], q: Float[Tensor, " C"]) -> Float[Tensor, ""]:
    """KL(p || q) in nats."""
    return (p * (log_prior(p) - log_prior(q))).sum(dim=-1)


def estimate_label_bias(
    scores: Scores,
    labels: Int[Tensor, " n"],
    *,
    prior: Float[Tensor, " C"] | None = None,
    ridge: float | None = None,
    fit_scale: bool = False,
) -> LabelBias:
    """Label bias b minimising mean CE(s z - b + log prior, y) + ridge/2 sum_k (b_k - mean b)^2 (GLA eq. 8).

    `prior` is the class prior of the estimation set (None: the counts of `labels`; a uniform vector gives the paper's
    uncorrected form). ridge None is 1/n. s is 1 unless `fit_scale`. A class without labels gets the mean bias.

    Differs: the paper minimises over the simplex by a Lagrangian and SGD. In b = log pi the problem is convex and free
    of constraints, so Newton's method solves it; the correction by `prior` is ours and needed on long-tailed labels.
    """
    z, n_classes = scores.detach().double(), scores.shape[-1]
    target = class_prior(labels, n_classes)
    present = target > 0
    weight = 1 / len(labels) if ridge is None else ridge
    offset = log_prior((target if prior is None else prior.double()).to(z.device))
    offset = torch.where(present, offset, float("-inf"))
    theta = torch.zeros(n_classes + 1, dtype=z.dtype, device=z.device)  # b, then s
    theta[-1] = 1
    value, gradient, hessian, probs = _objective(z, labels, theta, offset, weight, present)
    if not value.isfinite():
        raise FitError("the scores are too large for a label bias: their likelihood is not finite")
    for _ in range(100):
        if not fit_scale:
            gradient[-1], hessian[-1, :], hessian[:, -1] = 0, 0, 0
        newton = torch.linalg.pinv(hessian, hermitian=True) @ gradient
        decrease, rate = gradient @ newton, 1.0
        is_last = bool(decrease < 1e-10)  # the full step is exact to rounding here, and no line search could tell
        for _ in range(40):
            moved = _objective(z, labels, theta - rate * newton, offset, weight, present)
            if is_last or moved[0] <= value - 1e-4 * rate * decrease:
                break
            rate /= 2
        theta = theta - rate * newton
        value, gradient, hessian, probs = moved
        if is_last:
            break
    log_bias = torch.where(present, theta[:-1], theta[:-1][present].mean())
    information = torch.diag(probs.mean(dim=0)) - probs.T @ probs / len(probs)
    variance = _variance_around_mean(information, present) / len(labels)
    return LabelBias(
        log_bias=(log_bias - log_bias.logsumexp(dim=0)).to(scores.dtype),
        scale=theta[-1].to(scores.dtype),
        standard_error=torch.where(present, variance.clamp_min(0).sqrt(), float("inf")).to(scores.dtype),
        residual=(probs.mean(dim=0) - target).abs().max().to(scores.dtype),
    )


def _variance_around_mean(information: Tensor, present: Tensor) -> Tensor:
    """Diagonal [C] of the pseudo-inverse of the information matrix, whose null direction is known: an equal shift.

    Confident scores leave eigenvalues near rounding error, so that a relative cutoff could not tell them from zero.
    """
    share = present.double() / present.sum()
    anchored = information + present.sum() * torch.outer(share, share) + torch.diag((~present).double())
    values, vectors = torch.linalg.eigh(anchored)
    return (vectors**2 / values.clamp_min(_TINY)).sum(dim=-1) - share


def _objective(
    z: Tensor, labels: Tensor, theta: Tensor, offset: Tensor, ridge: float, present: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian in (b, s), and the probabilities [n C]."""
    bias, scale, n = theta[:-1], theta[-1], len(z)
    adjusted = scale * z - bias + offset
    probs = adjusted.softmax(dim=-1)
    picked = adjusted.gather(1, labels[:, None])[:, 0]
    share = present.double() / present.sum()
    centred = (bias - (bias * share).sum()) * present
    value = (adjusted.logsumexp(dim=-1) - picked).mean() + ridge / 2 * (centred**2).sum()
    mean_z = (probs * z).sum(dim=-1)
    by_scale = (mean_z - z.gather(1, labels[:, None])[:, 0]).mean()
    gradient = torch.cat([class_prior(labels, z.shape[1]) - probs.mean(dim=0) + ridge * centred, by_scale[None]])
    curvature = torch.diag(probs.mean(dim=0)) - probs.T @ probs / n
    curvature = curvature + ridge * (torch.diag(present.double()) - present.double()[:, None] * share[None])
    cross = -(probs * (z - mean_z[:, None])).mean(dim=0)
    second = ((probs * z**2).sum(dim=-1) - mean_z**2).mean()
    hessian = torch.cat([torch.cat([curvature, cross[:, None]], dim=1), torch.cat([cross, second[None]])[None]], dim=0)
    return value, gradient, hessian, probs


def two_folds(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Fold of each row, 0 or 1: rows of a class alternate, starting from the parity of the first one's index.

    Renumbering the classes changes nothing.
    """
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    first = (counts.cumsum(dim=0) - counts)[labels[order]]  # place in `order` where the row's class begins
    rank = torch.arange(len(labels), device=labels.device) - first
    return torch.empty_like(labels).scatter(0, order, (rank + order[first]) % 2)


def cross_fitted_accuracy(
    scores: Scores, labels: Int[Tensor, " n"], *, prior: Float[Tensor, " C"] | None = None
) -> tuple[float, float]:
    """Balanced accuracy before and after subtracting the label bias estimated on the other of two class-wise folds."""
    fold, after = two_folds(labels), torch.empty_like(scores)
    for side in (0, 1):
        estimate = estimate_label_bias(scores[fold != side], labels[fold != side], prior=prior)
        after[fold == side] = scores[fold == side] - estimate.log_bias
    n_classes = scores.shape[-1]

    def balanced(guess: Tensor) -> float:
        hits = torch.bincount(labels[guess == labels], minlength=n_classes).double()
        counts = torch.bincount(labels, minlength=n_classes).double()
        return float((hits / counts.clamp_min(1))[counts > 0].mean())

    return balanced(scores.argmax(dim=-1)), balanced(after.argmax(dim=-1))


def auto_momentum(momentum: AutoKnob, steps: int) -> Knob:
    """Momentum of a running mean; "auto" is 1 - 5/steps, so that a short run forgets its start too."""
    if isinstance(momentum, str):
        return max(0.0, 1.0 - 5.0 / steps)
    return momentum
