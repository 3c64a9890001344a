"""GLA (arXiv 2310.08106): the scores of a probe and of the zero-shot model, each less its own label bias, summed.

| code | symbol | meaning |
| --- | --- | --- |
| probe | z_ft | head scores, trained with CE(z + tau log pi_l, y) |
| text | z_zs | zero-shot scores |
| log_prior | log pi_s | prior z_ft was trained on |
| log_bias | log pi_p | label bias of z_zs, from the labelled rows |

Differs: the estimate of log pi_p is corrected for the prior of the labelled rows (see bias.estimate_label_bias).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.bias import log_prior
from fastltssl.functional.heads import Cosine
from fastltssl.functional.losses import cross_entropy
from fastltssl.functional.zero_shot import TextBranch, text_branch, text_scores, zero_shot_bias
from fastltssl.knobs import Knob, choice, knob
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    text: TextBranch
    log_prior: Float[Tensor, " C"]
    log_bias: Float[Tensor, " C"]
    text_scale: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class Method:
    """z = z_ft - (1 - tau) log pi_s + s z_zs - log pi_p: at tau = 1 the probe is balanced already (GLA eq. 7)."""

    tau: Knob = knob(1.0, 0.0, 2.0, "logit adjustment while the probe trains; 0 subtracts log pi_s afterwards")
    scale: str = choice("fixed", ("fixed", "joint"), "s = 1, or s fitted along with the label bias")
    head: Head = field(default_factory=Cosine)
    views = (0, 0)
    share = 0.5
    adds_text = True

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        branch, estimate = text_branch(problem), zero_shot_bias(problem, fit_scale=self.scale == "joint")
        prior = log_prior(problem.prior).to(problem.x)
        return State(self.head.start(problem), branch, prior, estimate.log_bias, estimate.scale)

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        scores = self.head.scores(params, state.head, batch.x)
        return Out(cross_entropy(scores + self.tau * state.log_prior, batch.y).mean(), state, {})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        probe = self.head.scores(params, state.head, x) - (1 - self.tau) * state.log_prior
        text = state.text_scale * text_scores(state.text, x) - state.log_bias
        return {"test": probe + text, "probe": probe, "text": text}

    def ends(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> tuple[Scores, Scores]:
        """Twice the scores of either part: z is the mean of the two, at share 1/2."""
        scores = self.scores(params, state, x)
        return 2 * scores["probe"], 2 * scores["text"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """z = z_ft - (1 - tau) log pi_s + s z_zs - log pi_p (GLA eq. 7) with z_ft from a finished run.

    A row is concat(z_ft, f): scores of the run, from its own encoder if that was trained, and the feature of the cache.
    """

    tau: Knob = knob(1.0, 0.0, 2.0, "logit adjustment the run was trained with; 0 subtracts log pi_s afterwards")
    scale: str = choice("fixed", ("fixed", "joint"), "s = 1, or s fitted along with the label bias")
    tested: str = "ensemble"  # or "run" or "text": either part alone
    views = (0, 0)

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {}

    def start(self, problem: Problem) -> State:
        """The text branch, priors and label bias; there is no head."""
        return Method(tau=self.tau, scale=self.scale).start(problem)._replace(head=())

    def scores(self, params: dict[str, Tensor], state: State, x: Float[Tensor, "n CD"]) -> dict[str, Scores]:
        tuned, feature = x.tensor_split([len(state.log_prior)], dim=-1)
        text = state.text_scale * text_scores(state.text, feature) - state.log_bias
        parts = {"ensemble": tuned - (1 - self.tau) * state.log_prior + text, "run": tuned, "text": text}
        return parts | {"test": parts[self.tested]}
