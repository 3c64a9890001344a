"""The zero-shot classifier of CLIP: text prototypes, its scores, its label bias, and class means beside them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, reduce
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.errors import MissingText
from fastltssl.functional.adapters import (
    feature_of,
    last_norm,
)
from fastltssl.functional.bias import LabelBias, estimate_label_bias, one_hot
from fastltssl.knobs import Knob
from fastltssl.types import Problem, Scores


class TextBranch(NamedTuple):
    """The frozen zero-shot classifier."""

    anchor: Float[Tensor, "C E"]  # unit norm
    projection: Float[Tensor, "D E"]  # [0 0], not None, where the feature is the embedding: a state holds tensors only
    logit_scale: Tensor
    logit_bias: Tensor
    ln_post: Float[Tensor, "2 D"]  # [0 0] where rows hold the feature itself, and no taps


def text_anchors(text: Float[Tensor, "C T E"]) -> Float[Tensor, "C E"]:
    """Mean over templates of the normalised text features, normalised again."""
    return F.normalize(reduce(F.normalize(text, dim=-1), "c t e -> c e", "mean"), dim=-1)


def embed(
    x: Float[Tensor, "n _"], projection: Float[Tensor, "_ _"] | None, ln_post: Float[Tensor, "_ _"] | None = None
) -> Float[Tensor, "n E"]:
    """Unit-norm embedding, in the space of the text; ln_post is needed where the rows may hold taps."""
    x = x if ln_post is None else feature_of(x, ln_post)
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
        ln_post=last_norm(problem),
    )


def text_scores(branch: TextBranch, x: Float[Tensor, "n D"]) -> Scores:
    """z_zs = logit_scale cos(embedding, anchor) + logit_bias."""
    cosine = einsum(embed(x, branch.projection, branch.ln_post), branch.anchor, "n e, c e -> n c")
    return branch.logit_scale * cosine + branch.logit_bias


def zero_shot_bias(problem: Problem, fit_scale: bool = False) -> LabelBias:
    """Label bias of the zero-shot classifier, estimated from the labelled rows, once for a problem."""

    def estimate() -> LabelBias:
        scores = text_scores(text_branch(problem), problem.x[:, 0])
        return estimate_label_bias(scores, problem.y, prior=problem.prior, fit_scale=fit_scale)

    return problem.once(f"zero_shot_bias, fit_scale={fit_scale}", estimate)


def class_means(x: Float[Tensor, "n D"], y: Int[Tensor, " n"], n_classes: int) -> Float[Tensor, "C D"]:
    """Unit-norm mean of the normalised rows of each class; a class without rows gets the mean of all rows."""
    unit = F.normalize(x, dim=-1)
    member = one_hot(y, n_classes, unit.dtype)
    total = einsum(member, unit, "n c, n d -> c d")
    empty = (member.sum(dim=0) == 0)[:, None]
    return F.normalize(torch.where(empty, unit.mean(dim=0), total), dim=-1)


def spread(prototype: Float[Tensor, "C E"], rate: Knob) -> Float[Tensor, "C E"]:
    """Unit prototypes after one gradient step on the mean squared cosine between different ones (orthogonality)."""
    cosine = einsum(prototype, prototype, "c e, k e -> c k")
    off = cosine * (1 - torch.eye(len(cosine), dtype=cosine.dtype, device=cosine.device))
    return F.normalize(prototype - rate * 4 / (len(off) * max(1, len(off) - 1)) * off @ prototype, dim=-1)
