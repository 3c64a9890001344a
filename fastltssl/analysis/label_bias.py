"""The label bias of a cached zero-shot model, estimated from the labelled rows of splits, and how good the estimate is.

`fastltssl bias` prints and writes what is computed here. Accuracies are fractions.
"""

import csv
import dataclasses
from collections.abc import Sequence
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
from fastltssl.functional.zero_shot import text_branch, text_scores, zero_shot_bias
from fastltssl.images.world.world import CLASSES, caption_prior
from fastltssl.runs.config import Config
from fastltssl.training.rows import Rows, make_problem

NEAR_CHANCE = 3.0  # a zero-shot model below this many times chance knows little but the class prior
ACCURACIES = ("top1", "bacc", "bacc_uncorrected", "cross_fitted")  # the fields of Study that hold a Change
AGREEMENTS = ("correlation", "slope", "rank_correlation")  # the fields of Agreement that are summed up over splits


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
    """Estimate the bias of the zero-shot scores from the split's labelled rows.

    `prior` is the class prior of the model's captions, if it is known. With scale "joint" a factor on the scores is
    fitted along with the bias.
    """
    problem = make_problem(rows, split, 1)
    branch = text_branch(problem)
    scores = text_scores(branch, problem.x[:, 0])
    fit_scale, uniform = scale == "joint", torch.full_like(problem.prior, 1 / len(problem.prior))
    estimate = zero_shot_bias(problem, fit_scale)
    uncorrected = estimate_label_bias(scores, problem.y, prior=uniform, fit_scale=fit_scale)
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
    before, after = (metrics.evaluate(scores, y, None)[name] for scores in (z, bias.scale * z - bias.log_bias))
    return Change(_fraction(before), _fraction(after))


def agreement(log_bias: Float[Tensor, " C"], prior: Float[Tensor, " C"], is_present: np.ndarray) -> Agreement:
    """Correlations and least-squares slope of the estimated log bias on the known log prior.

    nan with fewer than three classes that have labelled rows, or if these are equally likely under the prior.
    """
    present = torch.from_numpy(is_present)
    known, estimated = (_centred(values.double().cpu()[present]) for values in (prior.log(), log_bias))
    variance = float(known @ known)
    if len(known) < 3 or variance < 1e-12:
        return Agreement(*[float("nan")] * len(Agreement._fields))
    slope = float(known @ estimated) / variance
    residual_variance = float(((estimated - slope * known) ** 2).sum()) / (len(known) - 2)
    return Agreement(
        correlation=_cosine(known, estimated),
        slope=slope,
        slope_error=(residual_variance / variance) ** 0.5,
        rank_correlation=_cosine(_centred(_ranks(known)), _centred(_ranks(estimated))),
    )


def _cosine(a: Float[Tensor, " C"], b: Float[Tensor, " C"]) -> float:
    return float(a @ b) / max(1e-12, float(a @ a) * float(b @ b)) ** 0.5


def _ranks(values: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """The rank of each value, 0 for the smallest; equal values share their mean rank."""
    below = (values[:, None] > values).sum(dim=1)
    return below + ((values[:, None] == values).sum(dim=1).double() - 1) / 2


def known_prior(choice: str | None, cache: Cache) -> Float[np.ndarray, " C"] | None:
    """The class prior of a model's captions, by the option --known-prior; None if it is not known.

    A choice is "world", a CSV file of class,prior, or "none". Without a choice the prior is that of the embedded world
    for the embedded model on that world, and not known for any other.
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
    priors: dict[str, float] = {}
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
        if name in priors:
            raise SourceError(f"{path}, line {number}: {name!r} was given before. One line for each class")
        priors[name] = value
    if missing := [name for name in classes if not 0 < priors.get(name, 0) < float("inf")]:
        raise SourceError(f"{path} has no prior above 0 for {len(missing)} classes, such as {missing[0]!r}")
    prior = np.array([priors[name] for name in classes])
    return prior / prior.sum()


def is_near_chance(study: Study) -> bool:
    """Whether the zero-shot model is so weak that its agreement with a prior says nothing about the estimate."""
    accuracy = study.bacc.before if study.bacc else study.cross_fitted.before
    return accuracy < NEAR_CHANCE / len(study.counts)


def record_of(
    config: Config,
    scale: str,
    splits: Sequence[Split],
    studies: Sequence[Study],
    classes: tuple[str, ...],
    prior: Float[np.ndarray, " C"] | None,
) -> dict[str, Any]:
    """The JSON object of `fastltssl bias`: the protocol, a row for each class, means over the splits, and each split.

    `splits` and `studies` hold one for each seed of the config.
    """
    return {
        "cache": config.cache,
        "protocol": dataclasses.asdict(config.protocol),
        "seeds": list(config.seeds),
        "templates": config.templates,
        "scale": scale,
        "labelled": [len(split.labelled) for split in splits],
        "unlabelled": [len(split.unlabelled) for split in splits],
        "classes": table(studies, classes, prior),
        **_means(studies),
        "per_seed": [_of_seed(seed, study) for seed, study in zip(config.seeds, studies, strict=True)],
    }


def _means(studies: Sequence[Study]) -> dict[str, Any]:
    """Means over the splits of each accuracy, and mean and range of the agreement; None for what is not defined."""
    means: dict[str, Any] = {}
    for name in ACCURACIES:
        changes = [getattr(study, name) for study in studies]
        means[name] = None if changes[0] is None else [float(np.mean(side)) for side in zip(*changes, strict=True)]
    means["agreement"] = None
    agreements = [study.agreement for study in studies if study.agreement is not None]
    if _is_defined(studies[0].agreement):
        means["agreement"] = {}
        for name in AGREEMENTS:
            values = [getattr(agreement, name) for agreement in agreements]
            means["agreement"][name] = {
                "mean": float(np.mean(values)), "low": min(values), "high": max(values), "values": values
            }  # fmt: skip
    return means


def _of_seed(seed: int, study: Study) -> dict[str, Any]:
    """The numbers of one split, except those of each class, which are in bias.csv."""
    return {
        "seed": seed,
        "scale": float(study.estimate.scale),
        "residual": float(study.estimate.residual),
        **{name: getattr(study, name) and list(getattr(study, name)) for name in ACCURACIES},
        "agreement": study.agreement._asdict() if study.agreement and _is_defined(study.agreement) else None,
    }


def _is_defined(agreement: Agreement | None) -> bool:
    return agreement is not None and bool(np.isfinite(agreement).all())


def class_rows(
    seeds: Sequence[int],
    studies: Sequence[Study],
    classes: tuple[str, ...],
    prior: Float[np.ndarray, " C"] | None,
) -> list[dict[str, Any]]:
    """The rows of bias.csv: one for each seed and class, logarithms with six digits."""
    return [
        {
            "seed": seed,
            "class": name,
            "labelled": int(study.counts[k]),
            "log_bias": f"{float(study.estimate.log_bias[k]):.6f}",
            "standard_error": f"{float(study.estimate.standard_error[k]):.6f}",
            "known_log_prior": "" if prior is None else f"{np.log(prior[k]):.6f}",
        }
        for seed, study in zip(seeds, studies, strict=True)
        for k, name in enumerate(classes)
    ]


def table(studies: Sequence[Study], classes: tuple[str, ...], prior: np.ndarray | None) -> list[dict[str, Any]]:
    """One row per class, most over-predicted first; means over the splits, logarithms relative to the mean class.

    `error` is the standard error of the log bias on a split; of several splits, the root mean square.
    """
    bias = torch.stack([_centred(study.estimate.log_bias.double()) for study in studies]).mean(dim=0)
    error = torch.stack([study.estimate.standard_error.double() for study in studies]).square().mean(dim=0).sqrt()
    known = None if prior is None else _centred(torch.from_numpy(prior).log())
    rows = [
        {
            "class": name,
            "labelled": round(float(np.mean([study.counts[k] for study in studies])), 1),
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
