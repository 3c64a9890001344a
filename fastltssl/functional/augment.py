"""Augmentation of frozen features while a head trains. Random numbers come from `Batch.noise`, uniform in [0, 1).

The numbers belong to rows, so that the order of a batch does not matter. Strength 0 leaves the rows unchanged.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.knobs import Knob


def partners(noise: Float[Tensor, "B _"]) -> Int[Tensor, " B"]:
    """The partner of each row: the next one when rows are sorted by their first random number, cyclically."""
    order = torch.argsort(noise[:, 0])
    rank = torch.argsort(order)
    return order[(rank + 1) % len(order)]


def mixup(
    x: Float[Tensor, "B D"], target: Float[Tensor, "B C"], noise: Float[Tensor, "B _"], alpha: Knob
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B C"]]:
    """share x + (1 - share) x', and targets likewise (arXiv 1710.09412); x' is the row's partner.

    share = sigmoid(e / alpha), e exponential. It has the log-odds tail exp(-alpha t) of max(b, 1 - b) for
    b ~ Beta(alpha, alpha) and differs from it near 1/2 only. Partners are drawn at random, so shares above 1/2 suffice.

    Differs: not Beta itself, whose quantiles have no closed form; one share per row instead of one per batch.
    """
    partner, share = partners(noise), torch.sigmoid(-torch.log(noise[:, 1:2]) / alpha)
    return share * x + (1 - share) * x[partner], share * target + (1 - share) * target[partner]


def jitter_channels(
    x: Float[Tensor, "B D"], noise: Float[Tensor, "B D"], brightness: Knob, contrast: Knob
) -> Float[Tensor, "B D"]:
    """x + brightness a std + contrast b (x - mean), a, b in [-1, 1) of each row and channel (FroFA, arXiv 2403.10519).

    Differs: the paper scales features to [0, 1] by their common range and clips. A few channels of CLIP are far wider
    than the rest, so here mean and std are those of each channel over the batch, and nothing is clipped.
    """
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    a = 2 * noise - 1
    return x + brightness * a * std + contrast * a.roll(1, dims=1) * (x - mean)
