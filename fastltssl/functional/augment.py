"""Augmentation of frozen features while a head trains. Random numbers come from `Batch.noise`, uniform in [0, 1).

Noise belongs to its row, so that the order within a batch changes nothing, and strength 0 gives back the very rows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.knobs import Knob


def partners(noise: Float[Tensor, "B _"]) -> Int[Tensor, " B"]:
    """Another row for each row, each once: the next one when the rows are sorted by their first number."""
    order = torch.argsort(noise[:, 0])
    rank = torch.argsort(order)
    return order[(rank + 1) % len(order)]


def mixup(
    x: Float[Tensor, "B D"], target: Float[Tensor, "B C"], noise: Float[Tensor, "B _"], alpha: Knob
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B C"]]:
    """share x + (1 - share) x', and targets likewise (arXiv 1710.09412); x' is the row's partner.

    share = sigmoid(e / alpha), e exponential: the larger of share and 1 - share of a Beta(alpha, alpha) but for its
    middle, as both have log-odds with tails exp(-alpha |t|). The pairing is symmetric, so that the larger one suffices.

    Differs: not Beta itself, whose quantiles have no closed form; one share a row instead of one a batch.
    """
    partner, share = partners(noise), torch.sigmoid(-torch.log(noise[:, 1:2]) / alpha)
    return share * x + (1 - share) * x[partner], share * target + (1 - share) * target[partner]


def jitter_channels(
    x: Float[Tensor, "B D"], noise: Float[Tensor, "B D"], brightness: Knob, contrast: Knob
) -> Float[Tensor, "B D"]:
    """x + brightness a std + contrast b (x - mean), a, b in [-1, 1) of each row and channel (FroFA, arXiv 2403.10519).

    Differs: the paper maps features to [0, 1] by their range and clips them there; a few channels of CLIP are so much
    wider than the rest that here each channel's own mean and spread over the batch give its unit, without a clip.
    """
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    a = 2 * noise - 1
    return x + brightness * a * std + contrast * a.roll(1, dims=1) * (x - mean)
