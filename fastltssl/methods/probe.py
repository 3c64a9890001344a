"""Linear probe with logit adjustment (arXiv 2007.07314, LIFT arXiv 2309.10019): LP at tau = 0, LP+LA at tau = 1.

| code | symbol | meaning |
| --- | --- | --- |
| scores | z | head scores |
| log_prior | log pi_l | log of the labelled class prior |
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.bias import log_prior
from fastltssl.heads import Cosine
from fastltssl.losses import cross_entropy
from fastltssl.types import Batch, Head, Knob, Out, Problem, Scores, knob


class State(NamedTuple):
    head: Any
    log_prior: Float[Tensor, "C"]


@dataclass(frozen=True, eq=False)
class Method:
    """CE(z + tau log pi_l, y) on the labelled rows; balanced softmax is the same with tau = 1."""

    tau: Knob = knob(1.0, 0.0, 2.0, "strength of the logit adjustment; 0 is the plain probe")
    head: Head = field(default_factory=Cosine)
    views = (0, 0)

    def init(self, problem: Problem, generator: Generator) -> Any:
        return self.head.init(problem, generator)

    def start(self, problem: Problem) -> State:
        return State(self.head.start(problem), log_prior(problem.prior).to(problem.x))

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        scores = self.head.scores(params, state.head, batch.x)
        return Out(cross_entropy(scores + self.tau * state.log_prior, batch.y).mean(), state, {})

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        return {"test": self.head.scores(params, state.head, x)}
