"""Heads: features [n D] to class scores [n C]. Pure functions of parameters and constants; every head sees f / |f|."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, reduce
from jaxtyping import Float, Int
from torch import Generator, Tensor

from fastltssl.bias import one_hot
from fastltssl.types import Head, Knob, Problem, Scores, choice, knob

INITS = ("auto", "text", "classmean", "random")


class MissingText(ValueError):
    """The cache holds no text features, and something asked for them."""


class TextBranch(NamedTuple):
    """The frozen zero-shot classifier."""

    anchor: Float[Tensor, "C E"]  # unit norm
    projection: Float[Tensor, "D E"]  # [0 0] where the feature is the embedding already: a state holds tensors only
    logit_scale: Tensor
    logit_bias: Tensor


def text_anchors(text: Float[Tensor, "C T E"]) -> Float[Tensor, "C E"]:
    """Mean over templates of the normalised text features, normalised again."""
    return F.normalize(reduce(F.normalize(text, dim=-1), "c t e -> c e", "mean"), dim=-1)


def embed(x: Float[Tensor, "n D"], projection: Float[Tensor, "D E"] | None) -> Float[Tensor, "n E"]:
    """Unit-norm embedding that lives with the text."""
    return F.normalize(x if projection is None or not projection.numel() else x @ projection, dim=-1)


def text_branch(problem: Problem) -> TextBranch:
    """The zero-shot classifier of a problem, in the dtype of its labelled rows."""
    if problem.text is None:
        raise MissingText(
            "this needs text features and the cache holds none. Import them with `cache import --text KEY`, "
            "or choose a method and head init that do without (probe with head.weights=classmean)"
        )
    like = problem.x
    return TextBranch(
        anchor=text_anchors(problem.text.float()).to(like),
        projection=like.new_zeros(0, 0) if problem.projection is None else problem.projection.to(like),
        logit_scale=like.new_tensor(problem.logit_scale),
        logit_bias=like.new_tensor(problem.logit_bias),
    )


def text_scores(branch: TextBranch, x: Float[Tensor, "n D"]) -> Scores:
    """z_zs = logit_scale cos(embedding, anchor) + logit_bias."""
    cosine = einsum(embed(x, branch.projection), branch.anchor, "n e, c e -> n c")
    return branch.logit_scale * cosine + branch.logit_bias


def together(score: Callable[[Tensor], Scores], *parts: Float[Tensor, "_ D"]) -> tuple[Tensor, ...]:
    """Scores of several sets of rows from one product, which normalises the weights once."""
    return score(torch.cat(parts)).split([len(part) for part in parts])


def class_means(x: Float[Tensor, "n D"], y: Int[Tensor, "n"], n_classes: int) -> Float[Tensor, "C D"]:
    """Unit-norm mean of the normalised rows of each class; a class without rows gets the mean of all rows."""
    unit = F.normalize(x, dim=-1)
    member = one_hot(y, n_classes, unit.dtype)
    total = einsum(member, unit, "n c, n d -> c d")
    empty = (member.sum(dim=0) == 0)[:, None]
    return F.normalize(torch.where(empty, unit.mean(dim=0), total), dim=-1)


def spread(prototype: Float[Tensor, "C E"], rate: Knob) -> Float[Tensor, "C E"]:
    """Unit prototypes after one gradient step on their mean squared off-diagonal cosine (orthogonality)."""
    cosine = einsum(prototype, prototype, "c e, k e -> c k")
    off = cosine * (1 - torch.eye(len(cosine), dtype=cosine.dtype, device=cosine.device))
    return F.normalize(prototype - rate * 4 / (len(off) * max(1, len(off) - 1)) * off @ prototype, dim=-1)


def initial_weight(init: str, problem: Problem, generator: Generator) -> Float[Tensor, "C D"]:
    """Class weights of about unit norm in feature space: text . P^T, class means, or N(0, 1/D)."""
    n_classes, width = problem.prior.numel(), problem.x.shape[-1]
    if init == "auto":
        init = "classmean" if problem.text is None else "text"
    if init == "text":
        branch = text_branch(problem)
        return embed(branch.anchor, branch.projection.T)
    if init == "classmean":
        return class_means(problem.x[:, 0], problem.y, n_classes)
    return (torch.randn(n_classes, width, generator=generator) * width**-0.5).to(problem.x)


@dataclass(frozen=True, eq=False)
class Cosine:
    """z_k = s <f/|f|, w_k/|w_k|>."""

    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the cosine (its start where it is learned)", log=True)
    learn_scale: str = choice("no", ("no", "yes"), "train s along, kept raw: its logarithm explodes at lr .03")
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        return {"weight": weight} | ({"scale": weight.new_tensor(self.scale)} if self.learn_scale == "yes" else {})

    def start(self, problem: Problem) -> tuple[()]:
        return ()

    def scores(self, params: dict[str, Tensor], constants: tuple[()], x: Float[Tensor, "n D"]) -> Scores:
        cosine = einsum(F.normalize(x, dim=-1), F.normalize(params["weight"], dim=-1), "n d, c d -> n c")
        return params.get("scale", self.scale) * cosine


@dataclass(frozen=True, eq=False)
class Linear:
    """z_k = s <f/|f|, w_k> + b_k, with w free in length."""

    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the score", log=True)
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        return {"weight": weight, "bias": weight.new_zeros(len(weight))}

    def start(self, problem: Problem) -> tuple[()]:
        return ()

    def scores(self, params: dict[str, Tensor], constants: tuple[()], x: Float[Tensor, "n D"]) -> Scores:
        product = einsum(F.normalize(x, dim=-1), params["weight"], "n d, c d -> n c")
        return self.scale * product + params["bias"]


HEADS: dict[str, type[Head]] = {"cosine": Cosine, "linear": Linear}
