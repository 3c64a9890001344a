"""DebiasPL (arXiv 2201.01490): FixMatch with pseudo-labels debiased by the mean prediction, and a margin of its log.

| code | symbol | meaning |
| --- | --- | --- |
| tau_u | tau | strength of the debiasing and of the margin |
| mean_p | p_hat | running mean probability of each class over the unlabelled rows, uniform at first |
| q, mask | | pseudo-label from z(u_w) - tau log p_hat, and whether its confidence reaches the threshold |

Differs: momentum 1 - 5/steps instead of .999, with which p_hat stays near uniform in a short run; tau_u 1 for .5 and
threshold .7 for .95, better on CLIP features (ours); tau, a logit adjustment of the labelled loss, is 0 in the paper.
As in the authors' code the margin uses p_hat after the update of the same step, the pseudo-label p_hat before it.
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
    mean_p: Float[Tensor, " C"]
    momentum: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class Method:
    """L = CE(z + tau log pi_l, y) + lambda_u mean 1[max p >= threshold] CE(z(u_s) + tau_u log p_hat, q)."""

    tau_u: Knob = knob(1.0, 0.0, 2.0, "strength of the debiasing of the pseudo-labels and of the margin")
    tau: Knob = knob(0.0, 0.0, 2.0, "logit adjustment of the labelled loss")
    threshold: Knob = knob(0.7, 0.5, 0.99, "debiased confidence from which a pseudo-label counts")
    lambda_u: Knob = knob(1.0, 0.1, 10.0, "weight of the unlabelled loss", log=True)
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the mean probability; auto is 1 - 5/steps")
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
            mean_p=torch.full_like(problem.prior, 1 / problem.prior.numel()).to(like),
            momentum=like.new_tensor(auto_momentum(self.momentum, problem.steps)),
        )

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        scores, weak, strong = together(
            partial(self.head.scores, params, state.head), batch.x, batch.weak[0], batch.strong[0]
        )
        supervised = cross_entropy(scores + self.tau * state.log_prior, batch.y).mean()
        q, _, mask = confident_labels(weak - self.tau_u * log_prior(state.mean_p), self.threshold)
        after = state._replace(mean_p=update_prior(state.mean_p, weak, state.momentum))
        unsupervised = (mask * cross_entropy(strong + self.tau_u * log_prior(after.mean_p), q)).mean()
        return Out(supervised + self.lambda_u * unsupervised, after, {"mask_rate": mask.mean()})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        scores = self.head.scores(params, state.head, x)
        return {"test": scores, "pseudo": scores - self.tau_u * log_prior(state.mean_p)}
