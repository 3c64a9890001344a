"""A small Gaussian problem with unequal axes: C = 4 classes, D = 6, E = 5, T = 2 templates, L = 17, M = 23, V = 6."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from fastltssl.functional.adapters import feature_of
from fastltssl.functional.bias import class_prior
from fastltssl.functional.heads import HEADS
from fastltssl.training.streams import make_stream
from fastltssl.types import Problem

VIEWS = ("center", "weak0", "weak1", "strong0", "strong1", "strong2")


def problem(
    n_classes=4, counts=None, unlabelled=23, steps=40, dtype=torch.float64, seed=0, noise=0.7, text=True, scale=20.0,
    taps=False,
):  # fmt: skip
    """With taps the features are halved at random into mid and mlp, and a last norm follows their sum."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    counts = counts or [8, 5, 3, 1][:n_classes]
    center = randn(n_classes, 6) + 1.0
    y = torch.repeat_interleave(torch.arange(n_classes), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=generator)]
    hidden = torch.randint(n_classes, (unlabelled,), generator=generator)

    def views(labels):
        x = center[labels] + noise * randn(len(labels), 6)
        spread = torch.tensor([0.0, 0.2, 0.2, 0.5, 0.5, 0.5], dtype=torch.float64)
        return x[:, None] + spread[None, :, None] * randn(len(labels), len(VIEWS), 6)

    def halved(x):
        mid = x / 2 + randn(*x.shape)
        return torch.cat((mid, x - mid), dim=-1)

    projection, x, u = randn(6, 5), views(y), views(hidden)
    ln_post = torch.stack((1 + 0.1 * randn(6), 0.1 * randn(6))) if taps else torch.zeros(0, 0)
    x, u, center = (halved(each) for each in (x, u, center)) if taps else (x, u, center)
    anchor = F.normalize(feature_of(center, ln_post) @ projection, dim=-1)
    return Problem(
        x=x.to(dtype),
        y=y,
        u=u.to(dtype),
        views=VIEWS,
        steps=steps,
        prior=class_prior(y, n_classes).to(dtype),
        text=(anchor[:, None] + 0.1 * randn(n_classes, 2, 5)).to(dtype) if text else None,
        projection=projection.to(dtype) if text else None,
        logit_scale=scale,
        ln_post=ln_post.to(dtype) if taps else None,
    )


def problem_for(head, **settings):
    """A problem with what a head of that name reads."""
    return problem(taps=getattr(HEADS[head], "taps", False), **settings)


def stream(of, method, seed=0, batch=5, batch_u=9):
    return make_stream(of, method, batch=batch, batch_u=batch_u, seed=seed, noise=hasattr(method, "noise"))


def gaussian_world(n_classes, per_class, ratio=20.0, seed=0, counts=None):
    """Scores of a Bayes classifier under a known prior, on rows drawn from given class counts."""
    rng = np.random.default_rng(seed)
    bias = np.sort(rng.permutation(np.linspace(0, math.log(ratio), n_classes)))
    bias = rng.permutation(bias)
    log_prior = torch.tensor(bias - np.logaddexp.reduce(bias))
    center = torch.tensor(rng.normal(size=(n_classes, 5)))
    counts = np.full(n_classes, per_class) if counts is None else counts
    y = torch.tensor(np.repeat(np.arange(n_classes), counts))
    x = center[y] + torch.tensor(rng.normal(size=(len(y), 5)))
    likelihood = -0.5 * torch.cdist(x, center) ** 2
    return likelihood + log_prior, y, log_prior, likelihood
