"""What a cure after training changes: pseudo-labels and test scores of a finished run, computed from cached features.

A cure sets a few knobs: threshold, temperature, logit adjustment, label-bias correction and fusion with the text.

| code | symbol | meaning |
| --- | --- | --- |
| run, text | z_run, z_text | scores at the two ends of the fusion weight eta: 1 is the run alone, 0 the text alone |
| run_shift, text_shift | | what a label-bias strength of 1 subtracts from either |
| z | | (eta z_run + (1 - eta) z_text - tau log prior) / temperature |

A method that fuses a text branch itself (see types.Fused) provides z_run and z_text; its label bias is subtracted from
z_text alone. For any other method z_run is its own score and z_text the zero-shot score from its cache; the label bias
is subtracted from both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.analysis.history import Insight, Labels, final_state
from fastltssl.cache.catalogue import Cache
from fastltssl.errors import CacheError, RunError
from fastltssl.functional import metrics
from fastltssl.functional.bias import LabelBias, class_prior, log_prior
from fastltssl.functional.zero_shot import text_branch, text_scores, zero_shot_bias
from fastltssl.runs.evaluation import CHUNK, Task
from fastltssl.runs.experiment import task_of
from fastltssl.runs.finished import open_own_cache
from fastltssl.runs.trained import TrainedRun, load_run
from fastltssl.training.rows import Rows, rows_for
from fastltssl.types import Fused, PerClass, Scores, log_bias_of, prior_of, threshold_of

SLICE = 2048  # rows that are moved at once: few enough for the cache of a CPU
PRIORS = ("labelled", "estimated", "uniform", "true")
READING = (
    "Relative to the mean class: above 0 the zero-shot model predicts it too often. Lines, if the run's cache can be "
    "read: ± 1.96 standard errors."
)


class Knobs(NamedTuple):
    """A cure after training; the fields but the threshold and the prior are factors."""

    threshold: float  # of confidence, from which a pseudo-label is accepted
    temperature: float = 1.0  # above 1 lowers every confidence
    tau: float = 0.0  # logit adjustment: tau times the log prior is subtracted
    bias: float = 0.0  # label-bias strength: this many times the label bias is subtracted
    eta: float = 1.0  # weight of the run in its fusion with the text
    prior: str = "labelled"  # the prior that tau applies to, one of Scored.priors


class Branches(NamedTuple):
    """Scores of the same rows: those of the run as it was trained, and those at both ends of the fusion weight."""

    own: Float[Tensor, "n C"]  # as trained
    run: Float[Tensor, "n C"]  # at eta 1
    text: Float[Tensor, "n C"] | None  # at eta 0; None if the cache holds no text features
    run_shift: Float[Tensor, " C"]
    text_shift: Float[Tensor, " C"]


@dataclass(frozen=True, eq=False)
class Scored:
    """A run with its cache, from which a cure is computed; each property is computed at its first use."""

    trained: TrainedRun
    rows: Rows
    task: Task

    @property
    def truth(self) -> Int[Tensor, " M"] | None:
        """The true labels of the pool; None unless all of them are known."""
        return self.task.measured.truth

    @cached_property
    def neutral(self) -> Knobs:
        """The knobs that leave the run as it is."""
        method = self.trained.method
        if not isinstance(method, Fused):
            return Knobs(threshold_of(method))
        log_bias = log_bias_of(self.trained.run.state)
        is_debiased = log_bias is not None and bool(log_bias.any())
        return Knobs(threshold_of(method), bias=float(is_debiased), eta=float(method.share))

    @cached_property
    def label_bias(self) -> LabelBias | None:
        """Label bias of the zero-shot scores with its standard errors, from the labelled rows; None without text."""
        return None if self.task.problem.text is None else zero_shot_bias(self.task.problem)

    @cached_property
    def pool(self) -> Branches:
        """Scores of the pool, from the first weak view of each row (or its center view), as the run's audit uses it."""
        return branches(self, self.task.measured.pool_x, "pseudo" if self.trained.method.views[0] else "test")

    @cached_property
    def test(self) -> Branches:
        """Scores of the test rows, from their center views."""
        return branches(self, self.task.measured.test_x, "test")

    @cached_property
    def priors(self) -> dict[str, Float[Tensor, " C"]]:
        """The class priors that are known for this run, by the names in PRIORS; each sums to one."""
        problem = self.task.problem
        n_classes = problem.prior.numel()
        priors = {"labelled": problem.prior, "uniform": torch.full_like(problem.prior, 1 / n_classes)}
        estimate = prior_of(self.trained.run.state)
        if estimate is None and len(problem.u):
            estimate = sum(part.softmax(dim=-1).sum(dim=0) for part in self.pool.own.split(CHUNK)) / len(problem.u)
        if estimate is not None:
            priors["estimated"] = estimate.to(problem.prior)
        if self.truth is not None:
            priors["true"] = class_prior(self.truth, n_classes).to(problem.prior)
        return {name: priors[name] for name in PRIORS if name in priors}


def score(insight: Insight, cache: Cache) -> Scored:
    """The run with its cache.

    Raises RunError if the run was trained from another cache, or its scores cannot be computed from cached features: if
    it was trained through the encoder, or is an ensemble.
    """
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
    """The pseudo-labels of the pool under the knobs; at `neutral` exactly those of the run."""
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


def _move(scored: Scored, scores: Branches, knobs: Knobs) -> Callable[[slice], Scores]:
    """A function that returns the scores of some rows under the knobs."""
    neutral, eta = scored.neutral, knobs.eta
    is_own = eta == neutral.eta
    shift = (knobs.bias - neutral.bias) * (eta * scores.run_shift + (1 - eta) * scores.text_shift)
    if knobs.tau:
        shift = shift + knobs.tau * log_prior(scored.priors[knobs.prior])
    is_shifted = bool(shift.any())

    def moved(rows: slice) -> Scores:
        z = scores.own[rows]
        if not is_own and scores.text is not None:
            z = torch.lerp(scores.text[rows], scores.run[rows], eta)
        if is_shifted:
            z = z - shift
        return z / knobs.temperature if knobs.temperature != 1 else z

    return moved


def branches(scored: Scored, x: Float[Tensor, "n D"], branch: str) -> Branches:
    """Scores of rows, as trained and at both ends of the fusion weight; all scores in between are linear in it."""
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
    """What a label-bias strength of 1 subtracts from the scores at eta 0, a mean over some rows.

    It is a mean since a method that z-scores its text branch scales the label bias differently in each row.
    """
    run, bias = scored.trained.run, scored.label_bias
    own = log_bias_of(run.state)
    if own is None or bias is None:  # a method that subtracts none
        return torch.zeros_like(scored.task.problem.prior)
    moved = []
    for log_bias in (torch.zeros_like(own), bias.log_bias.to(own)):
        is_dict = isinstance(run.state, dict)
        state = run.state | {"log_bias": log_bias} if is_dict else run.state._replace(log_bias=log_bias)
        moved.append(_in_chunks(partial(_end, method, run.params, state, 1), x[:64]).mean(dim=0))
    return moved[0] - moved[1]


def _end(method: Fused, params: Any, state: Any, end: int, x: Float[Tensor, "n D"]) -> Scores:
    """The scores at one end of the fusion: end 0 is the run alone, end 1 the text alone."""
    return method.ends(params, state, x)[end]


def _in_chunks(fn: Callable[[Tensor], Scores], x: Float[Tensor, "n D"]) -> Scores:
    with torch.no_grad():
        return torch.cat([fn(part.float()) for part in x.split(CHUNK)])


def label_bias_of(insight: Insight, scored: Scored | None) -> PerClass | None:
    """The label bias of the zero-shot scores by class, less its mean; None if there is none to show.

    It is estimated from the cache, with its standard errors. Without a cache (`scored` is None) it is the label bias
    that the run has stored to subtract from its scores, without standard errors.
    """
    bias = scored.label_bias if scored else None
    log_bias = bias.log_bias if bias else stored_label_bias(insight)
    if log_bias is None:
        return None
    values = (log_bias - log_bias.mean()).cpu().numpy()
    errors = bias.standard_error.cpu().numpy() if bias else None
    return PerClass("Label bias of the zero-shot scores", "log bias (nats)", READING, values, errors)


def stored_label_bias(insight: Insight) -> Float[Tensor, " C"] | None:
    """The `log_bias` in the final state of a run, see types.Method; None if it has none, or is all zero."""
    log_bias = log_bias_of(final_state(insight))
    return log_bias if log_bias is not None and log_bias.any() else None


def subtracted_bias(insight: Insight) -> tuple[PerClass | None, str]:
    """The label bias of a run that subtracts one from its scores, else None; and why it has no standard errors, or "".

    The cache is opened for the standard errors, unless the run cannot be scored from it at all, see `score`.
    """
    if stored_label_bias(insight) is None:
        return None, ""
    if insight.config.live or insight.config.ensemble:
        return label_bias_of(insight, None), ""
    try:
        return label_bias_of(insight, score(insight, open_own_cache(insight.folder, insight.config))), ""
    except (CacheError, RunError) as error:
        return label_bias_of(insight, None), str(error)
