"""Ridge probe (as the few-shot evaluation of ViT, arXiv 2010.11929): least squares on one-hot targets, no training.

| code | symbol | meaning |
| --- | --- | --- |
| strengths | alpha | weights of the penalty, as in sum_i w_i |y_i - W x_i - b|^2 + alpha |W|^2 |
| leverage | h_i | weight of the own target in the prediction for row i |
| left_out | | prediction for row i of the fit to all other rows |

Differs (all ours): rows are weighted by 1 / the count of their class, so that tail classes weigh as much as head
classes. The strength is the one of least weighted squared error on left-out rows, without classes of a single row, and
the scale, which turns predictions into scores, the one of least cross-entropy on them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from fastltssl.functional.bias import one_hot
from fastltssl.functional.losses import cross_entropy
from fastltssl.knobs import AutoKnob, choice, knob
from fastltssl.types import Problem, Scores

STRENGTHS = torch.logspace(-3, 2, 26, dtype=torch.float64)
SCALES = torch.logspace(0, 3, 61, dtype=torch.float64)


class RidgePath(NamedTuple):
    """Ridge fits of every strength."""

    weight: Float[Tensor, "S D C"]
    bias: Float[Tensor, "S C"]
    leverage: Float[Tensor, "S n"]


class State(NamedTuple):
    weight: Float[Tensor, "D C"]
    bias: Float[Tensor, " C"]
    strength: Float[Tensor, ""]
    scale: Float[Tensor, ""]


def ridge_path(
    x: Float[Tensor, "n D"],
    y: Int[Tensor, " n"],
    n_classes: int,
    strengths: Float[Tensor, " S"],
    weights: Float[Tensor, " n"] | None = None,
) -> RidgePath:
    """Ridge regression of one-hot targets on x, for all strengths (positive) from one eigendecomposition; in float64.

    The bias is not penalised, as x and targets are centred. Decomposed is the smaller of the Gram matrices, of the rows
    or of the columns of x.
    """
    x, target, strengths = x.double(), one_hot(y, n_classes, torch.float64), strengths.double()
    w = torch.ones_like(x[:, 0]) if weights is None else weights.double()
    mean_x, mean_y = w @ x / w.sum(), w @ target / w.sum()
    centred = w.sqrt()[:, None] * (x - mean_x)
    residual = w.sqrt()[:, None] * (target - mean_y)
    if len(x) < x.shape[1]:
        values, rows = torch.linalg.eigh(centred @ centred.T)
        is_null = values <= values.max() * 1e-12
        basis = centred.T @ (rows * torch.where(is_null, 0.0, values.clamp_min(1e-300).rsqrt()))
    else:
        values, basis = torch.linalg.eigh(centred.T @ centred)
    rotated = centred @ basis  # [n r], orthogonal columns of squared length `values`
    shrunk = 1 / (values.clamp_min(0) + strengths[:, None])  # [S r]
    weight = basis @ (shrunk[:, :, None] * (rotated.T @ residual))
    return RidgePath(weight, mean_y - mean_x @ weight, shrunk @ (rotated**2).T + w / w.sum())


def left_out(fitted: Float[Tensor, "n C"], target: Float[Tensor, "n C"], leverage: Float[Tensor, " n"]) -> Tensor:
    """y_i - (y_i - fitted_i) / (1 - h_i) [n C]: the prediction for each row of the fit to all other rows."""
    return target - (target - fitted) / (1 - leverage).clamp_min(1e-9)[:, None]


@dataclass(frozen=True, eq=False)
class Method:
    """z = scale (W f/|f| + b), solved from the labelled rows."""

    strength: AutoKnob = knob(
        "auto", 1e-3, 100.0, "penalty on |W|^2; auto is the least error on left-out rows", log=True
    )
    scale: AutoKnob = knob("auto", 1.0, 1000.0, "multiplier of the fit; auto suits left-out rows best", log=True)
    balance: str = choice("on", ("on", "off"), "give every class the same weight")
    views = (0, 0)

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {}

    def start(self, problem: Problem) -> State:
        x, y, n_classes = F.normalize(problem.x[:, 0].double(), dim=-1), problem.y, problem.prior.numel()
        target = one_hot(y, n_classes, x.dtype)
        count = target @ target.sum(dim=0)  # for each row, the rows of its class
        weights = len(x) / (count * (1 / count).sum()) if self.balance == "on" else torch.ones_like(count)
        strengths = STRENGTHS.to(x) if isinstance(self.strength, str) else x.new_tensor([self.strength])
        scales = SCALES.to(x) if isinstance(self.scale, str) else x.new_tensor([self.scale])
        path = ridge_path(x, y, n_classes, strengths, weights)
        judge = weights * (count > 1) if bool((count > 1).any()) else weights  # of the errors on left-out rows

        def predicted(s: int) -> Float[Tensor, "n C"]:
            return left_out(x @ path.weight[s] + path.bias[s], target, path.leverage[s])

        errors = [judge @ ((target - predicted(s)) ** 2).sum(dim=-1) for s in range(len(strengths))]
        best = int(torch.stack(errors).argmin())
        losses = [judge @ cross_entropy(scale * predicted(best), y) for scale in scales]
        chosen = (path.weight[best], path.bias[best], strengths[best], scales[torch.stack(losses).argmin()])
        return State(*(tensor.to(problem.x) for tensor in chosen))

    def scores(self, params: dict[str, Tensor], state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        return {"test": state.scale * (F.normalize(x, dim=-1) @ state.weight + state.bias)}
