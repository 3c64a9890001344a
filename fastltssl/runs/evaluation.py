"""What is measured at each evaluation of a run: test rows, validation rows, and the pseudo-labels of the pool."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.cache.splits import Split
from fastltssl.errors import ConfigError, RunError
from fastltssl.functional import metrics
from fastltssl.functional.bias import class_prior, kl_divergence
from fastltssl.reading import read_yaml
from fastltssl.runs.config import Config
from fastltssl.training.rows import Rows
from fastltssl.training.streams import views_of
from fastltssl.types import Method, Problem, Run, Scores, prior_of, threshold_of

CHUNK = 16384  # rows scored at once
SYNONYMS = {"many": "head", "few": "tail"}


def grouping(name: str, classes: tuple[str, ...], counts: Int[np.ndarray, " C"]) -> Int[Tensor, " C"] | None:
    """Group of each class (0 head, 1 medium, 2 tail) by thirds, counts or a file; None if thirds have equal counts."""
    if name in metrics.GROUPINGS:
        return metrics.GROUPINGS[name](torch.from_numpy(counts))
    return given_groups(Path(name), classes)


def given_groups(path: Path, classes: tuple[str, ...]) -> Int[Tensor, " C"]:
    """Group of each class from a JSON or YAML file: {"head": [class, ...], "medium": [...], "tail": [...]}.

    A class is given by name or by number, from 0; many and few may be used for head and tail. Raises ConfigError unless
    every class is in exactly one group.
    """
    members_of = read_yaml(path, dict[str, list[Any]])
    place = {str(index): index for index in range(len(classes))} | {name: index for index, name in enumerate(classes)}
    groups = torch.full((len(classes),), -1)
    for name, members in members_of.items():
        group = SYNONYMS.get(str(name), str(name))
        if group not in metrics.GROUPS:
            raise ConfigError(f"--groups {path}: {name!r} is not one of {', '.join((*metrics.GROUPS, *SYNONYMS))}")
        for member in members:
            if str(member) not in place:
                raise ConfigError(f"--groups {path}: {group} holds {member!r}, which is no class of the cache")
            if groups[place[str(member)]] >= 0:
                raise ConfigError(f"--groups {path}: class {member!r} is named twice")
            groups[place[str(member)]] = metrics.GROUPS.index(group)
    if (absent := torch.nonzero(groups < 0)).numel():
        raise ConfigError(
            f"--groups {path}: {len(absent)} classes are in no group, such as {classes[int(absent[0])]!r}"
        )
    return groups


class Measured(NamedTuple):
    """The rows that an evaluation scores, with their true labels, which no method sees."""

    test_x: Float[Tensor, "n D"]  # center views
    test_y: Int[Tensor, " n"]
    val_x: Float[Tensor, "v D"]  # center views
    val_y: Int[Tensor, " v"]
    pool_x: Float[Tensor, "M D"]  # the first weak view where there is one, else the center view
    pool_y: Int[Tensor, " M"]  # -1 where a label is not known
    groups: Int[Tensor, " C"] | None  # of the classes: 0 head, 1 medium, 2 tail
    n_classes: int

    @property
    def truth(self) -> Int[Tensor, " M"] | None:
        """The true labels of the pool, where all of them are known."""
        return self.pool_y if len(self.pool_y) and bool((self.pool_y >= 0).all()) else None


class Task(NamedTuple):
    """One seed of one experiment, before it is trained."""

    config: Config
    seed: int
    split: Split
    problem: Problem
    measured: Measured


def measured_rows(
    config: Config, split: Split, groups: Int[Tensor, " C"] | None, problem: Problem, rows: Rows
) -> Measured:
    """The rows of a split that an experiment is measured on."""
    val, pool = torch.from_numpy(split.val), torch.from_numpy(split.unlabelled)
    if config.eval == "all":
        masks = {name: labels >= 0 for name, labels in rows.labels.items()}
        test_x = torch.cat([rows.features[name][mask][:, 0] for name, mask in masks.items()])
        test_y = torch.cat([rows.labels[name][mask] for name, mask in masks.items()])
    else:
        test = torch.from_numpy(split.test)
        test_x, test_y = rows.features[split.test_group][test][:, 0], rows.labels[split.test_group][test]
    weak = (views_of(problem, "weak") or [0])[0]
    return Measured(
        test_x=test_x,
        test_y=test_y,
        val_x=rows.features["train"][val][:, 0],
        val_y=rows.labels["train"][val],
        pool_x=problem.u[:, weak],
        pool_y=rows.labels[split.unlabelled_group][pool],
        groups=groups,
        n_classes=len(split.counts),
    )


def evaluate(method: Method, run: Run, on: Measured, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One evaluation of a run: every scalar metric, and some arrays. Rows are scored in `dtype`.

    The arrays are test_recall [C], test_reliability [4 16 3] (all test rows, then those of head, medium and tail
    classes; see metrics.reliability), prior_u [C] if the state has one, pseudo_label [M] and pseudo_confidence [M].
    """
    scores, groups, n_classes = scored(method, run, on.test_x, "test", dtype), on.groups, on.n_classes
    if scores.softmax(dim=-1).isnan().any():
        raise RunError("the scores of the test rows are not finite: the training diverged. Lower --lr")
    result = {name: _number(value) for name, value in metrics.evaluate(scores, on.test_y, groups).items()}
    result["test_recall"] = metrics.class_recall(scores.argmax(dim=-1), on.test_y, n_classes).float().cpu()
    result["test_reliability"] = _reliability(scores, on.test_y, groups)
    if len(on.val_y):
        scores = scored(method, run, on.val_x, "test", dtype)
        result["val_bacc"] = _number(metrics.evaluate(scores, on.val_y, None)["bacc"])
    prior_u, truth = prior_of(run.state), on.truth
    if prior_u is not None:
        result["prior_u"] = prior_u.float()
    if prior_u is not None and truth is not None:
        true = class_prior(truth, n_classes).to(prior_u.device)
        result["prior_kl"] = kl_divergence(prior_u.double(), true).cpu()
    if method.views[0] and len(on.pool_x):
        confidence, label = scored(method, run, on.pool_x, "pseudo", dtype).softmax(dim=-1).max(dim=-1)
        if truth is not None:
            audit = audited(label, confidence, truth, threshold_of(method), groups, n_classes)
            result |= {f"pseudo_{name}": _number(value) for name, value in audit.items()}
        result |= {"pseudo_label": label.short(), "pseudo_confidence": confidence.half()}
    return result


def audited(
    label: Int[Tensor, " M"],
    confidence: Float[Tensor, " M"],
    truth: Int[Tensor, " M"],
    threshold: float,
    groups: Int[Tensor, " C"] | None,
    n_classes: int,
) -> dict[str, float]:
    """Every scalar of the audit: of the whole pool, the mean recall of its classes, and those of the groups."""
    whole = metrics.audit(label, confidence, truth, threshold)
    by_class = metrics.audit_classes(label, confidence, truth, threshold, n_classes)
    recall = {"recall": float(by_class.recall.nanmean())}
    return whole._asdict() | recall | metrics.audit_groups(by_class, groups)


def _reliability(
    scores: Float[Tensor, "n C"], labels: Int[Tensor, " n"], groups: Int[Tensor, " C"] | None
) -> Float[Tensor, "4 bins 3"]:
    """metrics.reliability of all rows, then of those of head, medium and tail classes; zeros without groups."""
    probs = scores.softmax(dim=-1)
    of_row = None if groups is None else groups.to(labels.device)[labels]
    parts = [slice(None), *(slice(0) if of_row is None else of_row == index for index in range(len(metrics.GROUPS)))]
    return torch.stack([metrics.reliability(probs[part], labels[part]) for part in parts]).float().cpu()


def scored(method: Method, run: Run, x: Float[Tensor, "n D"], branch: str, dtype: torch.dtype) -> Scores:
    """Scores of a branch of a method, computed for CHUNK rows at a time."""
    with torch.no_grad():
        return torch.cat([method.scores(run.params, run.state, part.to(dtype))[branch] for part in x.split(CHUNK)])


def _number(value: float | None) -> Tensor:
    return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)
