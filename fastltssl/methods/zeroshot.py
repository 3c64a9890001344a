"""Zero-shot CLIP (arXiv 2103.00020): the text features classify, nothing is trained.

| code | symbol | meaning |
| --- | --- | --- |
| text_scores | z_zs | logit_scale cos(embedding, mean prompt) |
| log_bias | log pi_p | label bias of the zero-shot model (GLA, arXiv 2310.08106) |
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.zero_shot import TextBranch, text_branch, text_scores, zero_shot_bias
from fastltssl.knobs import choice
from fastltssl.types import Problem, Scores


class State(NamedTuple):
    text: TextBranch
    log_bias: Float[Tensor, " C"]


@dataclass(frozen=True, eq=False)
class Method:
    """z = z_zs, or z_zs - log pi_p with debias=labels."""

    debias: str = choice("off", ("off", "labels"), "subtract the label bias estimated from the labelled rows")
    views = (0, 0)
    adds_text = True

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {}

    def start(self, problem: Problem) -> State:
        branch = text_branch(problem)
        log_bias = problem.prior.to(problem.x) * 0
        if self.debias == "labels":
            log_bias = zero_shot_bias(problem).log_bias
        return State(branch, log_bias)

    def scores(self, params: dict[str, Tensor], state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        text = text_scores(state.text, x)
        return {"test": text - state.log_bias, "text": text}
