"""SimPro (arXiv 2402.13505): expectation-maximisation with explicit class marginals, which the scores leave out.

| code | symbol | meaning |
| --- | --- | --- |
| prior_u | pi_u | marginal of the unlabelled rows, which gives the pseudo-labels; uniform at first |
| prior_a | pi_a | marginal of labelled and accepted rows together, the adjustment of both losses; pi_l at first |
| mass_u, mass_a | s, n + s | sum of p, and labelled counts plus sum of accepted p, over the epoch so far |
| p, mask | p, 1[max p >= threshold] | soft pseudo-label softmax(z(u_w) + tau log pi_u), and whether it is accepted |

Differs: s sums p over all rows, which is the exact M-step. The authors sum over accepted rows (estimate=accepted):
where few are accepted, their class takes the whole marginal and then all pseudo-labels. lambda_x is 1, not the ratio of
batches per epoch (L/B) / (M/U), which is 1 in the CIFAR-10 runs but near 0 for a small labelled set. The labelled loss
uses one weak view, as a batch holds no strong one of labelled rows. A run is divided into 50 epochs (ours).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from fastltssl.functional.bias import log_prior, one_hot
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import cross_entropy, soft_cross_entropy
from fastltssl.knobs import Knob, choice, knob, size
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    prior_u: Float[Tensor, " C"]
    prior_a: Float[Tensor, " C"]
    mass_u: Float[Tensor, " C"]
    mass_a: Float[Tensor, " C"]
    epoch: Int[Tensor, ""]


def moved(state: State, momentum: Knob) -> State:
    """M-step: pi_u <- m pi_u + (1 - m) s / (sum s + 1), pi_a <- m pi_a + (1 - m) norm(n + s); the sums are reset."""
    prior_u = momentum * state.prior_u + (1 - momentum) * state.mass_u / (state.mass_u.sum() + 1)
    prior_a = momentum * state.prior_a + (1 - momentum) * state.mass_a / state.mass_a.sum().clamp_min(1)
    empty = torch.zeros_like(prior_u)
    return state._replace(prior_u=prior_u, prior_a=prior_a, mass_u=empty, mass_a=empty)


@dataclass(frozen=True, eq=False)
class Method:
    """L = lambda_x CE(z + tau log pi_a, y) + mean over two strong views of mask CE(z(u_s) + tau log pi_a, p)."""

    threshold: Knob = knob(0.95, 0.2, 0.99, "confidence from which a pseudo-label counts; .2 for 100 classes")
    tau: Knob = knob(1.0, 0.0, 2.0, "strength of both adjustments; 2 for the published CIFAR-10 runs")
    momentum: Knob = knob(0.9, 0.0, 0.99, "momentum of the marginals from epoch to epoch")
    lambda_x: Knob = knob(1.0, 0.1, 10.0, "weight of the labelled loss", log=True)
    epochs: int = size(50, 1, 500, "times the marginals are estimated in a run")
    estimate: str = choice("all", ("all", "accepted"), "rows whose p the unlabelled marginal is estimated from")
    head: Head = field(default_factory=Cosine)
    views = (1, 2)

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        like = problem.x
        prior = problem.prior.to(like)
        return State(
            head=self.head.start(problem),
            prior_u=torch.full_like(prior, 1 / prior.numel()),
            prior_a=prior,
            mass_u=torch.zeros_like(prior),
            mass_a=torch.zeros_like(prior),
            epoch=problem.y.new_tensor(0),
        )

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        epoch = (progress * self.epochs + 1e-6).long()
        fresh = moved(state, self.momentum)
        pairs = zip(fresh[1:], state[1:], strict=True)
        state = State(state.head, *(torch.where(epoch != state.epoch, new, old) for new, old in pairs))
        parts = (batch.x, batch.weak[0], *batch.strong)
        scores, weak, *strong = together(partial(self.head.scores, params, state.head), *parts)
        margin = self.tau * log_prior(state.prior_a)
        supervised = cross_entropy(scores + margin, batch.y).mean()
        p = torch.softmax(weak.detach() + self.tau * log_prior(state.prior_u), dim=-1)
        mask = (p.amax(dim=-1) >= self.threshold).to(p.dtype)
        unsupervised = torch.stack([mask * soft_cross_entropy(z + margin, p) for z in strong]).mean()
        accepted = (mask[:, None] * p).sum(dim=0)
        after = state._replace(
            mass_u=state.mass_u + (p.sum(dim=0) if self.estimate == "all" else accepted),
            mass_a=state.mass_a + one_hot(batch.y, p.shape[-1], p.dtype).sum(dim=0) + accepted,
            epoch=epoch,
        )
        return Out(self.lambda_x * supervised + unsupervised, after, {"mask_rate": mask.mean()})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        scores = self.head.scores(params, state.head, x)
        return {"test": scores, "pseudo": scores + self.tau * log_prior(state.prior_u)}
