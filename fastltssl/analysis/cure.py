"""What a cure after training would change: pseudo-labels and test scores under a few knobs, from cached scores.

| code | symbol | meaning |
| --- | --- | --- |
| run, text | z_run, z_text | scores at either end of the fusion weight eta |
| run_shift, text_shift | | what one unit of label-bias strength subtracts from each |
| z | | (eta z_run + (1 - eta) z_text - tau log prior) / temperature |

A run that fuses text scores itself (ulfine, gla) has its own branches there, and its label bias comes off the text. Any
other run meets the zero-shot scores of its cache, and the label bias comes off both.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.analysis.history import Insight, Labels
from fastltssl.cache.catalogue import Cache
from fastltssl.errors import RunError
from fastltssl.functional import metrics
from fastltssl.functional.adapters import wants_taps
from fastltssl.functional.bias import LabelBias, class_prior, log_prior
from fastltssl.functional.zero_shot import text_branch, text_scores, zero_shot_bias
from fastltssl.runs.evaluation import CHUNK, threshold_of
from fastltssl.runs.experiment import SeedSplit, seeds_of, with_templates
from fastltssl.runs.trained import TrainedRun, load_run
from fastltssl.training.rows import Rows, resident
from fastltssl.training.streams import views_of
from fastltssl.types import Method, Scores

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
    one: SeedSplit
    truth: Int[Tensor, " M"] | None  # of the pool, where all of it is known

    @cached_property
    def neutral(self) -> Knobs:
        """The knobs that leave the run as it is."""
        method: Any = self.trained.method
        if not fuses_text(self.trained):
            return Knobs(threshold_of(method))
        is_debiased = bool(self.trained.run.state.log_bias.any())
        return Knobs(threshold_of(method), bias=float(is_debiased), eta=float(getattr(method, "eta", 0.5)))

    @cached_property
    def label_bias(self) -> LabelBias | None:
        """Label bias of the zero-shot scores with its standard errors, from the labelled rows; None without text."""
        return None if self.one.problem.text is None else zero_shot_bias(self.one.problem)

    @cached_property
    def pool(self) -> Branches:
        """Of the first weak view (else the center view) of every row of the pool, as the audit of the run has it."""
        problem = self.one.problem
        view = (views_of(problem, "weak") or [0])[0]
        return branches(self, problem.u[:, view], "pseudo" if self.trained.method.views[0] else "test")

    @cached_property
    def test_rows(self) -> tuple[Float[Tensor, "n D"], Int[Tensor, " n"]]:
        """Center views and labels that the run was tested on."""
        rows, split = self.rows, self.one.split
        if self.one.config.eval == "test":
            kept = torch.from_numpy(split.test)
            return rows.features[split.test_group][kept][:, 0], rows.labels[split.test_group][kept]
        masks = {name: labels >= 0 for name, labels in rows.labels.items()}
        x = torch.cat([rows.features[name][mask][:, 0] for name, mask in masks.items()])
        return x, torch.cat([rows.labels[name][mask] for name, mask in masks.items()])

    @cached_property
    def test(self) -> Branches:
        return branches(self, self.test_rows[0], "test")

    @cached_property
    def priors(self) -> dict[str, Float[Tensor, " C"]]:
        """The class priors there are, by the names of PRIORS; each sums to one."""
        problem = self.one.problem
        n_classes = problem.prior.numel()
        found = {"labelled": problem.prior, "uniform": torch.full_like(problem.prior, 1 / n_classes)}
        estimate = getattr(self.trained.run.state, "prior_u", None)
        if estimate is None and len(problem.u):
            estimate = sum(part.softmax(dim=-1).sum(dim=0) for part in self.pool.own.split(CHUNK)) / len(problem.u)
        if estimate is not None:
            found["estimated"] = estimate.to(problem.prior)
        if self.truth is not None:
            found["true"] = class_prior(self.truth, n_classes).to(problem.prior)
        return {name: found[name] for name in PRIORS if name in found}


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
    rows = with_templates(resident(cache, taps=wants_taps(trained.method)), cache, config.templates)
    one = seeds_of(dataclasses.replace(config, seeds=(insight.seed,)), cache, rows)[0]
    return scored(trained, rows, one)


def scored(trained: TrainedRun, rows: Rows, one: SeedSplit) -> Scored:
    """A trained run on its own split."""
    truth = rows.labels[one.split.unlabelled_group][torch.from_numpy(one.split.unlabelled)]
    return Scored(trained, rows, one, truth if len(truth) and bool((truth >= 0).all()) else None)


def fuses_text(trained: TrainedRun) -> bool:
    """Whether a run fuses the scores of a probe and of the text itself."""
    state = trained.run.state
    is_known = hasattr(state, "log_bias") and hasattr(state, "text")
    return is_known and "probe" in trained.method.scores(trained.run.params, state, _blank(state.text))


def relabelled(scored: Scored, knobs: Knobs) -> Labels:
    """The pseudo-labels of the pool under the knobs; the run's own, bit for bit, at `neutral`."""
    move = _move(scored, scored.pool, knobs)
    parts = [move(rows).softmax(dim=-1).max(dim=-1) for rows in _slices(len(scored.pool.own))]
    return Labels(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


def tested(scored: Scored, knobs: Knobs) -> dict[str, float | None]:
    """The metrics of the test rows under the knobs, as fractions; see metrics.evaluate."""
    move = _move(scored, scored.test, knobs)
    scores = torch.cat([move(rows) for rows in _slices(len(scored.test.own))])
    return metrics.evaluate(scores, scored.test_rows[1], scored.one.groups)


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
    trained, problem, bias = scored.trained, scored.one.problem, scored.label_bias
    method: Any = trained.method
    own = _scores(trained, method, x, branch)
    if not fuses_text(trained):
        shift = torch.zeros_like(problem.prior) if bias is None else bias.log_bias.to(problem.prior)
        text = None if bias is None else _chunked(lambda part: text_scores(text_branch(problem), part), x)
        return Branches(own, own, text, shift, shift)
    if hasattr(method, "eta"):
        run_end, text_end = (dataclasses.replace(method, eta=eta) for eta in (1.0, 0.0))
        run, text = (_scores(trained, end, x, branch) for end in (run_end, text_end))
        return Branches(own, run, text, torch.zeros_like(problem.prior), _shift(scored, text_end, x, branch))
    run, text = (2 * _scores(trained, method, x, name) for name in ("probe", "text"))  # a sum: eta 1/2 of twice each
    return Branches(own, run, text, torch.zeros_like(problem.prior), 2 * _shift(scored, method, x, "text"))


def _shift(scored: Scored, method: Any, x: Float[Tensor, "n D"], branch: str) -> Float[Tensor, " C"]:
    """How far one unit of label bias moves the text branch: a mean where align=zscore scales each row by its own."""
    trained, bias = scored.trained, scored.label_bias
    assert bias is not None
    state, ends = trained.run.state, []
    for log_bias in (torch.zeros_like(state.log_bias), bias.log_bias.to(state.log_bias)):
        moved = trained._replace(run=trained.run._replace(state=state._replace(log_bias=log_bias)))
        ends.append(_scores(moved, method, x[:64], branch).mean(dim=0))
    return ends[0] - ends[1]


def _blank(text: Any) -> Float[Tensor, "1 D"]:
    """A row of zeros as wide as the feature that a text branch reads."""
    width = text.ln_post.numel() or (text.projection if text.projection.numel() else text.anchor.T).shape[0]
    return text.anchor.new_zeros(1, width)


def _scores(trained: TrainedRun, method: Method, x: Float[Tensor, "n D"], branch: str) -> Scores:
    run = trained.run
    return _chunked(lambda part: method.scores(run.params, run.state, part)[branch], x)


def _chunked(fn: Callable[[Tensor], Scores], x: Float[Tensor, "n D"]) -> Scores:
    with torch.no_grad():
        return torch.cat([fn(part.float()) for part in x.split(CHUNK)])
