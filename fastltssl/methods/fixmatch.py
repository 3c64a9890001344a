"""FixMatch (arXiv 2001.07685), with optional logit adjustment of either loss.

| code | symbol | meaning |
| --- | --- | --- |
| weak, strong | z(u_w), z(u_s) | scores of the weak and the strong view |
| q, mask | argmax p, 1[max p >= threshold] | pseudo-label and whether it counts |
| prior_u | Q | running estimate of the unlabelled prior |

Differs: threshold .7 instead of .95, which suits CLIP features (ours); tau and tau_u are 0 in the paper.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.bias import auto_momentum, log_prior, update_prior
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import confident_labels, cross_entropy
from fastltssl.knobs import AutoKnob, Knob, knob
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, " C"]
    prior_u: Float[Tensor, " C"]
    momentum: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class Method:
    """L = CE(z + tau log pi_l, y) + lambda_u mean 1[max p >= threshold] CE(z(u_s) + tau_u log Q, q)."""

    tau: Knob = knob(0.0, 0.0, 2.0, "logit adjustment of the labelled loss")
    tau_u: Knob = knob(0.0, 0.0, 2.0, "logit adjustment of the unlabelled loss by the estimated prior")
    threshold: Knob = knob(0.7, 0.5, 0.99, "confidence from which a pseudo-label counts")
    lambda_u: Knob = knob(1.0, 0.1, 10.0, "weight of the unlabelled loss", log=True)
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the estimated prior; auto is 1 - 5/steps")
    head: Head = field(default_factory=Cosine)
    views = (1, 1)
    adjusted_by = "tau"

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
        scores, weak, strong = together(
            partial(self.head.scores, params, state.head), batch.x, batch.weak[0], batch.strong[0]
        )
        supervised = cross_entropy(scores + self.tau * state.log_prior, batch.y).mean()
        q, _, mask = confident_labels(weak, self.threshold)
        unsupervised = (mask * cross_entropy(strong + self.tau_u * log_prior(state.prior_u), q)).mean()
        after = state._replace(prior_u=update_prior(state.prior_u, weak, state.momentum))
        return Out(supervised + self.lambda_u * unsupervised, after, {"mask_rate": mask.mean()})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        scores = self.head.scores(params, state.head, x)
        return {"test": scores, "pseudo": scores}
