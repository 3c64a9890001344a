"""Linear probe with logit adjustment (arXiv 2007.07314, LIFT arXiv 2309.10019): LP at tau = 0, LP+LA at tau = 1.

| code | symbol | meaning |
| --- | --- | --- |
| scores | z | head scores |
| target | y | one-hot label, or a mixture of two with mixup |
| log_prior | log pi_l | log of the labelled class prior |

Differs: mixup (arXiv 1710.09412) and jitter of the frozen features (FroFA, arXiv 2403.10519) are ours; 0 is off.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.augment import jitter_channels, mixup
from fastltssl.functional.bias import log_prior, one_hot
from fastltssl.functional.heads import Cosine
from fastltssl.functional.losses import soft_cross_entropy
from fastltssl.knobs import Knob, knob
from fastltssl.types import Batch, Head, Out, Problem, Scores


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, " C"]


@dataclass(frozen=True, eq=False)
class Method:
    """CE(z + tau log pi_l, y) on the labelled rows; balanced softmax is the same with tau = 1."""

    tau: Knob = knob(1.0, 0.0, 2.0, "strength of the logit adjustment; 0 is the plain probe")
    mixup: Knob = knob(0.0, 0.0, 1.0, "how evenly labelled rows are mixed, alpha of a Beta distribution; 0 is off")
    brightness: Knob = knob(0.0, 0.0, 2.0, "largest shift of a channel, in its standard deviations")
    contrast: Knob = knob(0.0, 0.0, 1.0, "largest share by which a channel's distance from its mean changes")
    head: Head = field(default_factory=Cosine)
    views = (0, 0)
    adjusted_by = "tau"

    @property
    def noise(self) -> bool:
        """Whether batches must hold noise: mixup or jitter is on, or swept, its knob then being a tensor."""
        return any(isinstance(value, Tensor) or value != 0 for value in (self.mixup, self.brightness, self.contrast))

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        return State(self.head.start(problem), log_prior(problem.prior).to(problem.x))

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        x, target = batch.x, one_hot(batch.y, len(state.log_prior), batch.x.dtype)
        if batch.noise is not None:
            x = jitter_channels(x, batch.noise, self.brightness, self.contrast)
            x, target = mixup(x, target, batch.noise, self.mixup)
        elif self.noise:
            raise ValueError("mixup, brightness and contrast read Batch.noise: make_stream(..., noise=True)")
        scores = self.head.scores(params, state.head, x)
        return Out(soft_cross_entropy(scores + self.tau * state.log_prior, target).mean(), state, {})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        return {"test": self.head.scores(params, state.head, x)}
