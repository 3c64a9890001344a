"""Soft pseudo-labels averaged over weak views: FixMatch (arXiv 2001.07685) with labels of MixMatch (arXiv 1905.02249).

| code | symbol | meaning |
| --- | --- | --- |
| p | mean softmax(z(u_w)) | mean probability over `weak_views` weak views of a row |
| target, mask | q, 1[max p >= threshold] | p sharpened to norm(p^(1/T)), and whether the row counts |
| prior_u | Q | running estimate of the unlabelled prior |

Differs: no mixup, and cross-entropy on a strong view in place of MixMatch's squared error; both losses are
logit-adjusted (ours). Where a cache holds fewer weak views than asked for, some count twice. The audit of pseudo-labels
uses one view per row.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.bias import auto_momentum, log_prior
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import cross_entropy, soft_cross_entropy
from fastltssl.knobs import AutoKnob, Knob, knob, size
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, " C"]
    prior_u: Float[Tensor, " C"]
    momentum: Float[Tensor, ""]


def sharpen(p: Float[Tensor, "n C"], temperature: Knob) -> Float[Tensor, "n C"]:
    """norm(p^(1/T)): T = 1 keeps p, T towards 0 makes it one-hot."""
    return torch.softmax(log_prior(p) / temperature, dim=-1)


@dataclass(frozen=True, eq=False)
class Method:
    """L = CE(z + tau log pi_l, y) + lambda_u mean 1[max p >= threshold] CE(z(u_s) + tau_u log Q, norm(p^(1/T)))."""

    weak_views: int = size(4, 1, 16, "weak views a row's pseudo-label is averaged over")
    temperature: Knob = knob(0.5, 0.1, 1.0, "temperature T of the pseudo-labels; 1 leaves them as they are")
    tau: Knob = knob(1.0, 0.0, 2.0, "logit adjustment of the labelled loss")
    tau_u: Knob = knob(1.0, 0.0, 2.0, "logit adjustment of the unlabelled loss by the estimated prior")
    threshold: Knob = knob(0.0, 0.0, 0.99, "confidence from which a pseudo-label counts; 0 takes all")
    lambda_u: Knob = knob(1.0, 0.1, 10.0, "weight of the unlabelled loss", log=True)
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the estimated prior; auto is 1 - 5/steps")
    head: Head = field(default_factory=Cosine)
    adjusted_by = "tau"

    @property
    def views(self) -> tuple[int, int]:
        return self.weak_views, 1

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        like = problem.x
        return State(
            head=self.head.start(problem),
            log_prior=log_prior(problem.prior).to(like),
            prior_u=torch.full_like(problem.prior, 1 / problem.prior.numel()).to(like),
            momentum=like.new_tensor(auto_momentum(self.momentum, problem.steps)),
        )

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        parts = (batch.x, batch.strong[0], *batch.weak)
        scores, strong, *weak = together(partial(self.head.scores, params, state.head), *parts)
        supervised = cross_entropy(scores + self.tau * state.log_prior, batch.y).mean()
        p = torch.softmax(torch.stack(weak).detach(), dim=-1).mean(dim=0)
        mask = (p.amax(dim=-1) >= self.threshold).to(p.dtype)
        adjusted = strong + self.tau_u * log_prior(state.prior_u)
        unsupervised = (mask * soft_cross_entropy(adjusted, sharpen(p, self.temperature))).mean()
        prior_u = state.momentum * state.prior_u + (1 - state.momentum) * p.mean(dim=0)
        after = state._replace(prior_u=prior_u)
        return Out(supervised + self.lambda_u * unsupervised, after, {"mask_rate": mask.mean()})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        scores = self.head.scores(params, state.head, x)
        return {"test": scores, "pseudo": scores}
