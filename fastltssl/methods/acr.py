"""ACR (CVPR 2023, no arXiv copy; the authors' sequel is arXiv 2406.13187): two heads, one of them balanced.

| code | symbol | meaning |
| --- | --- | --- |
| standard, balanced | z, z' | scores of the two heads |
| prior_u | Q | running histogram of the accepted argmax z', uniform at first |
| targets | | pi_l, uniform and reversed pi_l, which Q is compared with |
| distance, counted | | sum over the epoch of the symmetric KL of Q to each target, and the steps in it |
| tau_t | tau_t | adjustment of the pseudo-labels of z, tau1 at first: small where Q is near pi_l |

Differs: a run is divided into 50 epochs instead of 500 (ours). Reversed pi_l goes by the rank of a class, ties
averaged, so that the order of the classes does not matter. Labelled rows in the pool count for Q, as a batch does not
mark them. The authors' code counts a class at most once a step, as its indexed sum keeps one of equal indices:
count=classes. On frozen features the heads share no parameter: Q decides tau_t alone, which changes how z is trained,
and so reaches the tested head z' only through the pseudo-labels that z gives it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from fastltssl.functional.bias import kl_divergence, log_prior, one_hot
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import confident_labels, cross_entropy
from fastltssl.knobs import Knob, choice, knob, size
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, " C"]
    targets: Float[Tensor, "3 C"]
    prior_u: Float[Tensor, " C"]
    distance: Float[Tensor, "3"]
    counted: Float[Tensor, ""]
    tau_t: Float[Tensor, ""]
    epoch: Int[Tensor, ""]


def reversed_prior(prior: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """The prior with its ranks reversed: the largest class gets the smallest share; classes that tie get their mean."""
    order = torch.argsort(prior, descending=True)
    turned = torch.empty_like(prior).scatter(0, order, prior[order].flip(0))
    is_tied = (prior[:, None] == prior).to(prior.dtype)
    return is_tied @ turned / is_tied.sum(dim=-1)


def distances(prior_u: Float[Tensor, " C"], targets: Float[Tensor, "3 C"]) -> Float[Tensor, "3"]:
    """d = (KL(Q || target) + KL(target || Q)) / 2 for each target."""
    return torch.stack([kl_divergence(prior_u, target) + kl_divergence(target, prior_u) for target in targets]) / 2


def adaptive_tau(distance: Float[Tensor, "3"], tau1: Knob) -> Float[Tensor, ""]:
    """tau_t = tau1 exp(d_con) / (exp(d_con) + exp(d_uni) + exp(d_rev))."""
    return tau1 * torch.softmax(distance, dim=-1)[0]


@dataclass(frozen=True, eq=False)
class Method:
    """L = CE(z, y) + CE(z' + tau2 log pi_l, y) + lambda_u mean (mask CE(z(u_s), q) + mask' CE(z'(u_s), q')).

    q = argmax z(u_w) - tau_t log pi_l and q' = argmax z(u_w) - tau12 log pi_l.
    """

    threshold: Knob = knob(0.95, 0.5, 0.99, "confidence from which a row counts, raw or adjusted")
    tau1: Knob = knob(2.0, 0.0, 4.0, "largest adjustment of the pseudo-labels of the standard head")
    tau12: Knob = knob(2.0, 0.0, 4.0, "adjustment of the pseudo-labels of the balanced head")
    tau2: Knob = knob(2.0, 0.0, 4.0, "logit adjustment of the balanced head's labelled loss")
    lambda_u: Knob = knob(1.0, 0.1, 10.0, "weight of the unlabelled losses", log=True)
    momentum: Knob = knob(0.9, 0.5, 0.9999, "momentum of the estimated prior")
    warmup: Knob = knob(0.01, 0.0, 0.5, "share of training before the prior is estimated")
    epochs: int = size(50, 1, 500, "times tau_t is worked out in a run")
    count: str = choice("rows", ("rows", "classes"), "what the histogram counts in a step: rows, or classes seen")
    head: Head = field(default_factory=Cosine)
    views = (1, 2)

    def init(self, problem: Problem, generator: Generator) -> Any:
        standard = self.head.init(problem, generator)
        return {"standard": standard, "balanced": tree_map(torch.clone, standard)}

    def start(self, problem: Problem) -> State:
        like = problem.x
        prior = problem.prior.to(like)
        uniform = torch.full_like(prior, 1 / prior.numel())
        return State(
            head=self.head.start(problem),
            log_prior=log_prior(prior),
            targets=torch.stack([prior, uniform, reversed_prior(prior)]),
            prior_u=uniform,
            distance=like.new_zeros(3),
            counted=like.new_tensor(0.0),
            tau_t=like.new_tensor(self.tau1),
            epoch=problem.y.new_tensor(0),
        )

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        state = self._turned(state, progress)
        parts = (batch.x, batch.weak[0], *batch.strong)
        z, weak, *strong = together(partial(self.head.scores, params["standard"], state.head), *parts)
        z_b, weak_b, *strong_b = together(partial(self.head.scores, params["balanced"], state.head), *parts)
        labelled = cross_entropy(z, batch.y) + cross_entropy(z_b + self.tau2 * state.log_prior, batch.y)
        q, _, is_adjusted = confident_labels(weak - state.tau_t * state.log_prior, self.threshold)
        q_b, _, is_balanced = confident_labels(weak - self.tau12 * state.log_prior, self.threshold)
        _, _, is_raw = confident_labels(weak, self.threshold)
        guess, _, is_own = confident_labels(weak_b, self.threshold)
        mask, mask_b = torch.maximum(is_adjusted, is_raw), torch.maximum(is_balanced, is_own)
        unlabelled = [
            mask * cross_entropy(s, q) + mask_b * cross_entropy(s_b, q_b)
            for s, s_b in zip(strong, strong_b, strict=True)
        ]
        after = self._estimated(state, is_own[:, None] * one_hot(guess, z.shape[-1], z.dtype), progress)
        stats = {"mask_rate": mask_b.mean(), "tau_t": state.tau_t}
        return Out(labelled.mean() + self.lambda_u * torch.stack(unlabelled).mean(), after, stats)

    def _turned(self, state: State, progress: Float[Tensor, ""]) -> State:
        """At the start of an epoch: tau_t from the mean distances of the last one, unless no step was counted in it."""
        epoch = (progress * self.epochs + 1e-6).long()
        has_turned = epoch != state.epoch
        fresh = adaptive_tau(state.distance / state.counted.clamp_min(1), self.tau1)
        return state._replace(
            tau_t=torch.where(has_turned & (state.counted > 0), fresh, state.tau_t),
            distance=torch.where(has_turned, 0.0, state.distance),
            counted=torch.where(has_turned, 0.0, state.counted),
            epoch=epoch,
        )

    def _estimated(self, state: State, accepted: Float[Tensor, "U C"], progress: Float[Tensor, ""]) -> State:
        """Q <- m Q + (1 - m) histogram, and its distances; no change in the warm-up or without accepted rows."""
        histogram = accepted.amax(dim=0) if self.count == "classes" else accepted.sum(dim=0)
        fresh = self.momentum * state.prior_u + (1 - self.momentum) * histogram / histogram.sum().clamp_min(1)
        is_counted = (progress >= self.warmup) & (histogram.sum() > 0)
        step = is_counted.to(fresh.dtype)
        return state._replace(
            prior_u=torch.where(is_counted, fresh, state.prior_u),
            distance=state.distance + step * distances(fresh, state.targets),
            counted=state.counted + step,
        )

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        z = self.head.scores(params["standard"], state.head, x)
        z_b = self.head.scores(params["balanced"], state.head, x)
        return {"test": z_b, "pseudo": z - self.tau12 * state.log_prior, "standard": z}
