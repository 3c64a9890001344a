"""ADELLO (arXiv 2306.04621): FlexDA, a smoothed distribution alignment, plus complementary distillation.

| code | symbol | meaning |
| --- | --- | --- |
| prior_u | Q | running estimate of the unlabelled prior, uniform at first |
| smoothed | Q_a | Q^a / sum Q^a, a falling from 1 to alpha_min |
| temperature | T | exp KL(uniform || Q), fixed at the first step after the warm-up; 0 in the state before |
| q, mask | argmax p, M | pseudo-label from the unadjusted weak scores, M = 1[max p >= threshold] |

Differs: momentum 1 - 5/steps instead of .999, with which Q stays near uniform in a short run (ours); the authors'
configurations leave T = 1 (temperature=one). Where the pool holds the labelled rows, Q estimates the prior of both.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.bias import auto_momentum, kl_divergence, log_prior, smooth_prior, update_prior
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import confident_labels, cross_entropy, soft_cross_entropy
from fastltssl.knobs import AutoKnob, Knob, choice, knob
from fastltssl.types import Batch, Head, Out, OverTime, PerClass, Problem, Scores, Trace


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, " C"]
    prior_u: Float[Tensor, " C"]
    temperature: Float[Tensor, ""]
    momentum: Float[Tensor, ""]


def alpha(progress: Knob, alpha_min: Knob, d: Knob) -> Knob:
    """a_t = 1 - (1 - alpha_min) progress^d."""
    return 1 - (1 - alpha_min) * progress**d


@dataclass(frozen=True, eq=False)
class Method:
    """L = L_s + L_u + L_uC, every score adjusted towards the smoothed prior while training and none at test time."""

    threshold: Knob = knob(0.95, 0.5, 0.99, "confidence from which a pseudo-label counts")
    alpha_min: Knob = knob(0.1, 0.0, 1.0, "smoothing of the target prior at the end; 0 is uniform")
    d: Knob = knob(2.0, 0.5, 4.0, "exponent of the smoothing schedule")
    warmup: Knob = knob(0.19, 0.0, 0.9, "share of training before the distillation starts")
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the estimated prior; auto is 1 - 5/steps")
    temperature: str = choice("auto", ("auto", "one"), "distillation temperature: exp KL(uniform || Q), or 1")
    head: Head = field(default_factory=Cosine)
    views = (1, 1)

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        like = problem.x
        return State(
            head=self.head.start(problem),
            log_prior=log_prior(problem.prior).to(like),
            prior_u=torch.full_like(problem.prior, 1 / problem.prior.numel()).to(like),
            temperature=like.new_tensor(0.0),
            momentum=like.new_tensor(auto_momentum(self.momentum, problem.steps)),
        )

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        scores, weak, strong = together(
            partial(self.head.scores, params, state.head), batch.x, batch.weak[0], batch.strong[0]
        )
        weak = weak.detach()
        smoothed = log_prior(smooth_prior(state.prior_u, alpha(progress, self.alpha_min, self.d)))
        supervised = cross_entropy(scores + state.log_prior - smoothed, batch.y).mean()  # L_s
        adjusted = strong + log_prior(state.prior_u) - smoothed
        q, _, mask = confident_labels(weak, self.threshold)
        unsupervised = (mask * cross_entropy(adjusted, q)).mean()  # L_u
        is_warm = (progress >= self.warmup).to(weak.dtype)
        temperature = self._temperature(state, is_warm)
        divisor = torch.where(temperature > 0, temperature, 1.0)
        distilled = soft_cross_entropy(adjusted / divisor, torch.softmax(weak / divisor, dim=-1))
        complement = is_warm * ((1 - mask) * distilled).mean()  # L_uC
        after = state._replace(prior_u=update_prior(state.prior_u, weak, state.momentum), temperature=temperature)
        stats = {"mask_rate": mask.mean(), "temperature": temperature}
        return Out(supervised + unsupervised + complement, after, stats)

    def _temperature(self, state: State, is_warm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """T, computed once, at the first step after the warm-up; 0 until then."""
        uniform = torch.full_like(state.prior_u, 1 / state.prior_u.numel())
        fresh = kl_divergence(uniform, state.prior_u).exp() if self.temperature == "auto" else torch.ones_like(is_warm)
        return torch.where(state.temperature > 0, state.temperature, is_warm * fresh)

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        scores = self.head.scores(params, state.head, x)
        return {"test": scores, "pseudo": scores}

    def kept(self, state: Any, trace: Trace) -> list[PerClass | OverTime]:
        smoothing = torch.as_tensor(alpha(trace.steps / max(1, trace.total), self.alpha_min, self.d))
        kept: list[PerClass | OverTime] = [
            OverTime("Smoothing alpha_t of the target prior", "alpha_t", "1 aligns with the estimated prior Q, 0 with "
                     "a uniform one.", trace.steps, smoothing[:, None])
        ]  # fmt: skip
        if "temperature" in trace.curves:
            reading = "Temperature of the complementary distillation; 0 until the warm-up ends."
            curve = trace.curves["temperature"][:, None]
            kept.append(OverTime("Distillation temperature T", "T", reading, trace.steps, curve))
        return kept
