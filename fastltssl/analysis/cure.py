"""What a cure after training would change: pseudo-labels and test scores under a few knobs, from cached scores.

| code | symbol | meaning |
| --- | --- | --- |
| run, text | z_run, z_text | scores at either end of the fusion weight eta |
| run_shift, text_shift | | what one unit of label-bias strength subtracts from each |
| z | | (eta z_run + (1 - eta) z_text - tau log prior) / temperature |

A run that fuses text scores itself (ulfine, gla) has its own branches there, and its label bias comes off the text. Any
other run meets the zero-shot scores of its cache, and the label bias comes off both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.analysis.history import Insight, Labels
from fastltssl.cache.catalogue import Cache
from fastltssl.errors import RunError
from fastltssl.functional import metrics
from fastltssl.functional.bias import LabelBias, class_prior, log_prior
from fastltssl.functional.zero_shot import text_branch, text_scores, zero_shot_bias
from fastltssl.runs.evaluation import CHUNK, Task
from fastltssl.runs.experiment import task_of
from fastltssl.runs.trained import TrainedRun, load_run
from fastltssl.training.rows import Rows, rows_for
from fastltssl.types import Fused, Scores, threshold_of

SLICE = 2048  # rows a cure works on at once: they stay in the processor's cache
PRIORS = ("labelled", "estimated", "uniform", "true")


class Knobs(NamedTuple):
    """A cure after training."""

    threshold: float
    temperature: float = 1.0  # above 1 makes every label less confident
    tau: float = 0.0  # logit adjustment: how much of the logarithm of the prior is subtracted
    bias: float = 0.0  # how much of the label bias is subtracted
    eta: float = 1.0  # share of the run in the fusion with the text
    prior: str = "labelled"  # one of Scored.priors


class Branches(NamedTuple):
    """Scores of the same rows by the run itself, and at both ends of the fusion weight."""

    own: Float[Tensor, "n C"]
    run: Float[Tensor, "n C"]  # at eta 1
    text: Float[Tensor, "n C"] | None  # at eta 0; None without text
    run_shift: Float[Tensor, " C"]
    text_shift: Float[Tensor, " C"]


@dataclass(frozen=True, eq=False)
class Scored:
    """A run with its cache: what a cure starts from, worked out when it is first asked for."""

    trained: TrainedRun
    rows: Rows
    task: Task

    @property
    def truth(self) -> Int[Tensor, " M"] | None:
        """The true labels of the pool, where all of them are known."""
        return self.task.measured.truth

    @cached_property
    def neutral(self) -> Knobs:
        """The knobs that leave the run as it is."""
        method = self.trained.method
        if not isinstance(method, Fused):
            return Knobs(threshold_of(method))
        is_debiased = bool(self.trained.run.state.log_bias.any())
        return Knobs(threshold_of(method), bias=float(is_debiased), eta=float(method.share))

    @cached_property
    def label_bias(self) -> LabelBias | None:
        """Label bias of the zero-shot scores with its standard errors, from the labelled rows; None without text."""
        return None if self.task.problem.text is None else zero_shot_bias(self.task.problem)

    @cached_property
    def pool(self) -> Branches:
        """Of the first weak view (else the center view) of every row of the pool, as the audit of the run has it."""
        return branches(self, self.task.measured.pool_x, "pseudo" if self.trained.method.views[0] else "test")

    @cached_property
    def test(self) -> Branches:
        """Of the center views that the run was tested on."""
        return branches(self, self.task.measured.test_x, "test")

    @cached_property
    def priors(self) -> dict[str, Float[Tensor, " C"]]:
        """The class priors there are, by the names of PRIORS; each sums to one."""
        problem = self.task.problem
        n_classes = problem.prior.numel()
        priors = {"labelled": problem.prior, "uniform": torch.full_like(problem.prior, 1 / n_classes)}
        estimate = getattr(self.trained.run.state, "prior_u", None)
        if estimate is None and len(problem.u):
            estimate = sum(part.softmax(dim=-1).sum(dim=0) for part in self.pool.own.split(CHUNK)) / len(problem.u)
        if estimate is not None:
            priors["estimated"] = estimate.to(problem.prior)
        if self.truth is not None:
            priors["true"] = class_prior(self.truth, n_classes).to(problem.prior)
        return {name: priors[name] for name in PRIORS if name in priors}


def score(insight: Insight, cache: Cache) -> Scored:
    """The run with its cache. Raises RunError where the cache is another, or cannot tell what the run sees."""
    config = insight.config
    if config.live:
        raise RunError(
            f"{insight.folder} was trained through the encoder (--live {config.live.mode}), so its cache does not "
            f"hold its features: its history is there, and for sliders train the method from the cache: "
            f"fastltssl train {config.method} --cache {config.cache}"
        )
    if config.ensemble:
        raise RunError(
            f"{insight.folder} adds zero-shot scores to those of {config.ensemble}, so it has no head to move: its "
            "history is there, and sliders are with the run it adds to"
        )
    trained = load_run(insight.folder, cache, insight.seed)
    rows = rows_for(cache, trained.method, templates=config.templates)
    return Scored(trained, rows, task_of(config, insight.seed, cache, rows))


def relabelled(scored: Scored, knobs: Knobs) -> Labels:
    """The pseudo-labels of the pool under the knobs; the run's own, bit for bit, at `neutral`."""
    move = _move(scored, scored.pool, knobs)
    parts = [move(rows).softmax(dim=-1).max(dim=-1) for rows in _slices(len(scored.pool.own))]
    return Labels(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


def tested(scored: Scored, knobs: Knobs) -> dict[str, float | None]:
    """The metrics of the test rows under the knobs, as fractions; see metrics.evaluate."""
    move = _move(scored, scored.test, knobs)
    scores = torch.cat([move(rows) for rows in _slices(len(scored.test.own))])
    return metrics.evaluate(scores, scored.task.measured.test_y, scored.task.measured.groups)


def _slices(n: int) -> list[slice]:
    return [slice(start, start + SLICE) for start in range(0, max(1, n), SLICE)]


def _move(scored: Scored, found: Branches, knobs: Knobs) -> Callable[[slice], Scores]:
    """A function from rows to their scores under the knobs."""
    neutral, eta = scored.neutral, knobs.eta
    is_own = knobs.eta == neutral.eta
    away = (knobs.bias - neutral.bias) * (eta * found.run_shift + (1 - eta) * found.text_shift)
    if knobs.tau:
        away = away + knobs.tau * log_prior(scored.priors[knobs.prior])

    is_moved = bool(away.any())

    def moved(rows: slice) -> Scores:
        scores = found.own[rows]
        if not is_own and found.text is not None:
            scores = torch.lerp(found.text[rows], found.run[rows], eta)
        if is_moved:
            scores = scores - away
        return scores / knobs.temperature if knobs.temperature != 1 else scores

    return moved


def branches(scored: Scored, x: Float[Tensor, "n D"], branch: str) -> Branches:
    """Scores of rows at both ends of the fusion weight; every fusion here is linear in it."""
    trained, problem, bias = scored.trained, scored.task.problem, scored.label_bias
    method, run = trained.method, trained.run
    own = _in_chunks(lambda part: method.scores(run.params, run.state, part)[branch], x)
    if isinstance(method, Fused):
        fused, text = (_in_chunks(partial(_end, method, run.params, run.state, end), x) for end in (0, 1))
        return Branches(own, fused, text, torch.zeros_like(problem.prior), _shift(scored, method, x))
    shift = torch.zeros_like(problem.prior) if bias is None else bias.log_bias.to(problem.prior)
    zero_shot = None if bias is None else _in_chunks(lambda part: text_scores(text_branch(problem), part), x)
    return Branches(own, own, zero_shot, shift, shift)


def _shift(scored: Scored, method: Fused, x: Float[Tensor, "n D"]) -> Float[Tensor, " C"]:
    """How far one unit of label bias moves the text's end, as a mean over rows: z-scored fusions scale each row."""
    run, bias = scored.trained.run, scored.label_bias
    assert bias is not None
    moved = []
    for log_bias in (torch.zeros_like(run.state.log_bias), bias.log_bias.to(run.state.log_bias)):
        state = run.state._replace(log_bias=log_bias)
        moved.append(_in_chunks(partial(_end, method, run.params, state, 1), x[:64]).mean(dim=0))
    return moved[0] - moved[1]


def _end(method: Fused, params: Any, state: Any, end: int, x: Float[Tensor, "n D"]) -> Scores:
    """The scores at one end of the fusion: 0 is the run's, 1 is the text's."""
    return method.ends(params, state, x)[end]


def _in_chunks(fn: Callable[[Tensor], Scores], x: Float[Tensor, "n D"]) -> Scores:
    with torch.no_grad():
        return torch.cat([fn(part.float()) for part in x.split(CHUNK)])
