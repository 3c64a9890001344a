"""Heads: features [n D] to class scores [n C], pure functions of parameters and constants.

All normalise the feature to f/|f| themselves; `lastblock` reads taps of the last block instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.adapters import (
    adapted_feature,
    affinity,
    bottleneck,
    feature_of,
    last_norm,
    start_bottleneck,
    start_last_block,
)
from fastltssl.functional.bias import one_hot
from fastltssl.functional.zero_shot import class_means, embed, text_branch
from fastltssl.knobs import Knob, choice, knob, size
from fastltssl.types import Head, Problem, Scores, seeded

INITS = ("auto", "text", "classmean", "random")


def together(score: Callable[[Tensor], Scores], *parts: Float[Tensor, "_ D"]) -> tuple[Tensor, ...]:
    """Scores of several sets of rows from one call, so that the class weights are normalised once."""
    return score(torch.cat(parts)).split([len(part) for part in parts])


def initial_weight(init: str, problem: Problem, generator: Generator) -> Float[Tensor, "C D"]:
    """Class weights of about unit norm in feature space: text . P^T, class means, or N(0, 1/D)."""
    n_classes, center = problem.prior.numel(), feature_of(problem.x[:, 0], last_norm(problem))
    if init == "auto":
        init = "classmean" if problem.text is None else "text"
    if init == "text":
        branch = text_branch(problem)
        return embed(branch.anchor, branch.projection.T)
    if init == "classmean":
        return class_means(center, problem.y, n_classes)
    width = center.shape[-1]
    return (torch.randn(n_classes, width, generator=generator) * width**-0.5).to(center)


def product(x: Float[Tensor, "n D"], weight: Float[Tensor, "C D"], precision: str = "fp32") -> Scores:
    """<f_n, w_k>, in bf16 if asked: three times as fast on a processor with bf16 units."""
    if precision == "bf16":
        return einsum(x.bfloat16(), weight.bfloat16(), "n d, c d -> n c").to(x.dtype)
    return einsum(x, weight, "n d, c d -> n c")


def cosine_scores(
    x: Float[Tensor, "n D"], weight: Float[Tensor, "C D"], scale: Knob, precision: str = "fp32"
) -> Scores:
    """s <f/|f|, w_k/|w_k|>; |w_k| divides the scores, which are smaller than the weights of many joint runs."""
    length = torch.linalg.vector_norm(weight, dim=-1).clamp_min(1e-12)
    return product(F.normalize(x, dim=-1), weight, precision) * (scale / length)


@dataclass(frozen=True, eq=False)
class Cosine:
    """z_k = s <f/|f|, w_k/|w_k|>."""

    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the cosine (its start where it is learned)", log=True)
    learn_scale: str = choice("no", ("no", "yes"), "train s along, kept raw: its logarithm explodes at lr .03")
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")
    precision: str = choice("fp32", ("fp32", "bf16"), "of the product with the weights, which stay fp32 themselves")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        return {"weight": weight} | ({"scale": weight.new_tensor(self.scale)} if self.learn_scale == "yes" else {})

    def start(self, problem: Problem) -> tuple[()]:
        return ()

    def scores(self, params: dict[str, Tensor], constants: tuple[()], x: Float[Tensor, "n D"]) -> Scores:
        return cosine_scores(x, params["weight"], params.get("scale", self.scale), self.precision)


@dataclass(frozen=True, eq=False)
class Linear:
    """z_k = s <f/|f|, w_k> + b_k, with w free in length."""

    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the score", log=True)
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")
    precision: str = choice("fp32", ("fp32", "bf16"), "of the product with the weights, which stay fp32 themselves")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        return {"weight": weight, "bias": weight.new_zeros(len(weight))}

    def start(self, problem: Problem) -> tuple[()]:
        return ()

    def scores(self, params: dict[str, Tensor], constants: tuple[()], x: Float[Tensor, "n D"]) -> Scores:
        return self.scale * product(F.normalize(x, dim=-1), params["weight"], self.precision) + params["bias"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """z_k = s cos(f', w_k), f' = f/|f| + ratio Up(ReLU(Down(f/|f|))) (CLIP-Adapter, arXiv 2110.04544).

    Differs: the paper blends, (1 - a) f + a A(f), which is our f' with ratio = a / (1 - a), up to its length; its A
    ends in a second ReLU, and its class weights stay the text. Here Up starts at zero, so that at first f' = f/|f|.
    """

    ratio: Knob = knob(0.1, 0.01, 1.0, "weight of the bottleneck beside the feature", log=True)
    width: int = size(64, 1, 512, "hidden values of the bottleneck")
    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the cosine", log=True)
    classifier: str = choice("trained", ("trained", "fixed"), "whether w trains too")
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        params = start_bottleneck(weight, weight.shape[-1], self.width, 1.0, generator)
        return params | ({"weight": weight} if self.classifier == "trained" else {})

    def start(self, problem: Problem) -> dict[str, Tensor]:
        return fixed_weight(self.weights, problem) if self.classifier == "fixed" else {}

    def scores(self, params: dict[str, Tensor], constants: dict[str, Tensor], x: Float[Tensor, "n D"]) -> Scores:
        unit = F.normalize(x, dim=-1)
        adapted = unit + self.ratio * bottleneck(params, unit)
        return cosine_scores(adapted, (params | constants)["weight"], self.scale)


@dataclass(frozen=True, eq=False)
class TaskRes:
    """z_k = s cos(f, t_k + alpha x_k): the text t is fixed; a residual x, zero at first, trains (arXiv 2211.10277)."""

    alpha: Knob = knob(0.5, 0.1, 2.0, "weight of the residual beside the text", log=True)
    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the cosine", log=True)
    weights: str = choice("auto", INITS, "t; auto is text where there is any, else class means")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {"residual": torch.zeros_like(initial_weight(self.weights, problem, generator))}

    def start(self, problem: Problem) -> dict[str, Tensor]:
        return fixed_weight(self.weights, problem)

    def scores(self, params: dict[str, Tensor], constants: dict[str, Tensor], x: Float[Tensor, "n D"]) -> Scores:
        return cosine_scores(x, constants["weight"] + self.alpha * params["residual"], self.scale)


@dataclass(frozen=True, eq=False)
class Tip:
    """z = s cos(f, t) + alpha exp(-beta (1 - cos(f, key))) @ values: Tip-Adapter-F (arXiv 2207.09519), the keys train.

    Differs: with balance=on (ours) the values, one-hot labels, are divided by the count of their class and multiplied
    by the mean count: no change where all counts are equal. Plain sums give the head classes the most votes.
    """

    alpha: Knob = knob(3.0, 0.3, 30.0, "weight of the labelled rows beside the text", log=True)
    beta: Knob = knob(5.5, 1.0, 20.0, "sharpness of the affinity to a labelled row", log=True)
    scale: Knob = knob(100.0, 10.0, 200.0, "multiplier s of the cosine with the text", log=True)
    weights: str = choice("auto", INITS, "t; auto is text where there is any, else class means")
    balance: str = choice("on", ("on", "off"), "count each class by the mean of its keys, or by their sum")

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {"keys": F.normalize(problem.x[:, 0], dim=-1)}

    def start(self, problem: Problem) -> dict[str, Tensor]:
        values = one_hot(problem.y, problem.prior.numel(), problem.x.dtype)
        if self.balance == "on":
            values = values / (problem.prior.to(values) * problem.prior.numel()).clamp_min(1e-12)
        return fixed_weight(self.weights, problem) | {"values": values}

    def scores(self, params: dict[str, Tensor], constants: dict[str, Tensor], x: Float[Tensor, "n D"]) -> Scores:
        cached = affinity(x, params["keys"], self.beta) @ constants["values"]
        return cosine_scores(x, constants["weight"], self.scale) + self.alpha * cached


@dataclass(frozen=True, eq=False)
class LastBlock:
    """z_k = s cos(f', w_k), f' the feature with AdaptFormer (arXiv 2205.13535) in the last block, computed from taps.

    Differs: only the last block has an adapter, as no attention follows it: the others would need the images. A method
    with several heads trains an adapter in each, and its text branch reads f; `--live lastblock` has one for all.
    """

    width: int = size(16, 1, 256, "hidden values of the bottleneck")
    strength: Knob = knob(0.1, 0.01, 10.0, "start of the learned weight of the adapter beside the MLP", log=True)
    scale: Knob = knob(25.0, 1.0, 100.0, "multiplier s of the cosine", log=True)
    weights: str = choice("auto", INITS, "start of w; auto is text where there is any, else class means")
    taps = True

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        weight = initial_weight(self.weights, problem, generator)
        return start_last_block(problem, self.width, self.strength, generator) | {"weight": weight}

    def start(self, problem: Problem) -> Float[Tensor, "_ _"]:
        return last_norm(problem)

    def scores(self, params: dict[str, Tensor], constants: Float[Tensor, "_ _"], x: Float[Tensor, "n D"]) -> Scores:
        return cosine_scores(adapted_feature(params, x, constants), params["weight"], self.scale)


def fixed_weight(init: str, problem: Problem) -> dict[str, Tensor]:
    """Class weights that do not train, the same for every seed where they are random."""
    return {"weight": initial_weight(init, problem, seeded(0, "init"))}


HEADS: dict[str, type[Head]] = {
    "cosine": Cosine,
    "linear": Linear,
    "adapter": Adapter,
    "taskres": TaskRes,
    "tip": Tip,
    "lastblock": LastBlock,
}
