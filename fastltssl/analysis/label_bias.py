"""The label bias of a cached zero-shot model, estimated from the labelled rows of a split and judged where it can be.

What `fastltssl bias` prints; no printing here. Accuracies are fractions.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.splits import Split
from fastltssl.errors import SourceError, did_you_mean
from fastltssl.functional import metrics
from fastltssl.functional.bias import LabelBias, cross_fitted_accuracy, estimate_label_bias
from fastltssl.functional.zero_shot import text_branch, text_scores
from fastltssl.images.world.world import CLASSES, caption_prior
from fastltssl.training.rows import Rows, make_problem

NEAR_CHANCE = 3.0  # below this many times chance a model knows little but the prior


class Change(NamedTuple):
    """An accuracy without and with the label bias subtracted."""

    before: float
    after: float


class Agreement(NamedTuple):
    """Estimated log bias against a known log prior, over the classes with labelled rows."""

    correlation: float  # Pearson
    slope: float  # of estimated on known, intercept free
    slope_error: float  # standard error of the slope
    rank_correlation: float  # Spearman


class Study(NamedTuple):
    """The label bias of one split."""

    counts: Int[np.ndarray, " C"]  # labelled rows
    estimate: LabelBias
    uncorrected: LabelBias  # the paper's form: the class prior of the labelled rows is taken to be uniform
    top1: Change | None  # on the test rows; None where there are none
    bacc: Change | None
    bacc_uncorrected: Change | None
    cross_fitted: Change  # balanced, on the labelled rows, at scale 1, estimated on one half and judged on the other
    agreement: Agreement | None


def study(rows: Rows, split: Split, *, prior: Float[np.ndarray, " C"] | None = None, scale: str = "fixed") -> Study:
    """Estimate the bias of the zero-shot scores from the split's labelled rows; `prior` is the truth, where known."""
    problem = make_problem(rows, split, 1)
    branch = text_branch(problem)
    scores = text_scores(branch, problem.x[:, 0])
    uniform = torch.full_like(problem.prior, 1 / len(problem.prior))
    estimate, uncorrected = (
        estimate_label_bias(scores, problem.y, prior=each, fit_scale=scale == "joint")
        for each in (problem.prior, uniform)
    )
    top1 = bacc = bacc_uncorrected = None
    if len(split.test):
        test = torch.from_numpy(split.test)
        x, y = rows.features[split.test_group][test][:, 0].to(problem.x), rows.labels[split.test_group][test]
        z = text_scores(branch, x)
        top1, bacc = (_change(z, y, estimate, name) for name in ("top1", "bacc"))
        bacc_uncorrected = _change(z, y, uncorrected, "bacc")
    return Study(
        counts=split.counts,
        estimate=estimate,
        uncorrected=uncorrected,
        top1=top1,
        bacc=bacc,
        bacc_uncorrected=bacc_uncorrected,
        cross_fitted=Change(*cross_fitted_accuracy(scores, problem.y, prior=problem.prior)),
        agreement=None if prior is None else agreement(estimate.log_bias, torch.from_numpy(prior), split.counts > 0),
    )


def _change(z: Float[Tensor, "n C"], y: Int[Tensor, " n"], bias: LabelBias, name: str) -> Change:
    found = (metrics.evaluate(each, y, None)[name] for each in (z, bias.scale * z - bias.log_bias))
    return Change(*(_fraction(value) for value in found))


def agreement(log_bias: Float[Tensor, " C"], prior: Float[Tensor, " C"], is_present: np.ndarray) -> Agreement:
    """Correlations and least-squares slope of the estimated log bias on the known log prior; nan where it is flat."""
    kept = torch.from_numpy(is_present)
    known, found = (each.double().cpu()[kept] for each in (prior.log(), log_bias))
    known, found = _centred(known), _centred(found)
    variance = float(known @ known)
    if len(known) < 3 or variance < 1e-12:
        return Agreement(*[float("nan")] * len(Agreement._fields))
    slope = float(known @ found) / variance
    left = float(((found - slope * known) ** 2).sum()) / (len(known) - 2)
    return Agreement(
        correlation=_cosine(known, found),
        slope=slope,
        slope_error=(left / variance) ** 0.5,
        rank_correlation=_cosine(_centred(_ranks(known)), _centred(_ranks(found))),
    )


def _cosine(a: Float[Tensor, " C"], b: Float[Tensor, " C"]) -> float:
    return float(a @ b) / max(1e-12, float(a @ a) * float(b @ b)) ** 0.5


def _ranks(values: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Place of each value from the smallest, from 0; equal values share the mean of their places."""
    below = (values[:, None] > values).sum(dim=1)
    return below + ((values[:, None] == values).sum(dim=1).double() - 1) / 2


def known_prior(choice: str | None, cache: Cache) -> Float[np.ndarray, " C"] | None:
    """The class prior of a model's captions: "world", a CSV file of class,prior, or "none".

    Without a choice it is the world's for the embedded model on the embedded world, and unknown for all else.
    """
    provenance = cache.attributes.get("provenance", {})
    if choice is None:
        is_own = provenance.get("model") == "tiny" and str(provenance.get("dataset", "")).split(":")[0] == "world"
        choice = "world" if is_own else "none"
    if choice == "none":
        return None
    if choice == "world":
        if cache.classes != CLASSES:
            raise SourceError(f"--known-prior world: the classes of {cache.path} are not those of the embedded world")
        return caption_prior()
    return _read_prior(Path(choice), cache.classes)


def _read_prior(path: Path, classes: tuple[str, ...]) -> Float[np.ndarray, " C"]:
    if not path.is_file():
        raise SourceError(
            f"--known-prior {path}: there is no such file. Accepted: world, none, or a CSV of class,prior"
        )
    found: dict[str, float] = {}
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"--known-prior {path} is not text of lines class,prior: {error}") from None
    for number, line in enumerate(lines, 1):
        if number == 1 and line == ["class", "prior"]:
            continue
        try:
            name, value = line[0], float(line[1])
        except (IndexError, ValueError):
            raise SourceError(f"{path}, line {number}: {','.join(line)!r} is not class,prior") from None
        if name not in classes:
            raise SourceError(f"{path}, line {number}: {name!r} is no class of the cache.{did_you_mean(name, classes)}")
        if name in found:
            raise SourceError(f"{path}, line {number}: {name!r} was given before. One line for each class")
        found[name] = value
    if missing := [name for name in classes if not 0 < found.get(name, 0) < float("inf")]:
        raise SourceError(f"{path} has no prior above 0 for {len(missing)} classes, such as {missing[0]!r}")
    prior = np.array([found[name] for name in classes])
    return prior / prior.sum()


def is_near_chance(one: Study) -> bool:
    """Whether the zero-shot model is so weak that its agreement with a prior says nothing about the estimate."""
    accuracy = one.bacc.before if one.bacc else one.cross_fitted.before
    return accuracy < NEAR_CHANCE / len(one.counts)


def table(studies: list[Study], classes: tuple[str, ...], prior: np.ndarray | None) -> list[dict[str, Any]]:
    """One row per class, most over-predicted first; means over the splits, logarithms relative to the mean class.

    `error` is the standard error of one split's estimate, the root mean square over the splits.
    """
    bias = torch.stack([_centred(one.estimate.log_bias.double()) for one in studies]).mean(dim=0)
    error = torch.stack([one.estimate.standard_error.double() for one in studies]).square().mean(dim=0).sqrt()
    known = None if prior is None else _centred(torch.from_numpy(prior).log())
    rows = [
        {
            "class": name,
            "labelled": round(float(np.mean([one.counts[k] for one in studies])), 1),
            "log_bias": float(bias[k]),
            "error": float(error[k]),
            "known_log_prior": None if known is None else float(known[k]),
        }
        for k, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: -row["log_bias"])


def _centred(values: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    return values - values.mean()


def _fraction(value: float | None) -> float:
    return float("nan") if value is None else float(value)
