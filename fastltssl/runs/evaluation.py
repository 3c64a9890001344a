"""What is measured at each evaluation of a run: test rows, validation rows, and the pseudo-labels of the pool."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.cache.splits import Split
from fastltssl.errors import ConfigError
from fastltssl.functional import metrics
from fastltssl.functional.bias import class_prior, kl_divergence
from fastltssl.runs.config import Config
from fastltssl.training.rows import Rows
from fastltssl.training.streams import views_of
from fastltssl.types import Method, Problem, Run

CHUNK = 16384  # rows scored at once
SYNONYMS = {"many": "head", "few": "tail"}


def grouping(name: str, classes: tuple[str, ...], counts: Int[np.ndarray, " C"]) -> Int[Tensor, " C"] | None:
    """Group of each class (0 head, 1 medium, 2 tail) by thirds, counts or a file; None where balanced."""
    if name in metrics.GROUPINGS:
        return metrics.GROUPINGS[name](torch.from_numpy(counts))
    return given_groups(Path(name), classes)


def given_groups(path: Path, classes: tuple[str, ...]) -> Int[Tensor, " C"]:
    """Group of each class from a JSON or YAML file: {"head": [class, ...], "medium": [...], "tail": [...]}.

    A class is named, or numbered from 0; many and few are other words for head and tail. Raises ConfigError unless
    every class is in one group.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--groups {path} cannot be read as JSON or YAML: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(members, list) for members in found.values()):
        raise ConfigError(f'--groups {path} must hold {{"head": [class, ...], "medium": [...], "tail": [...]}}')
    place = {str(index): index for index in range(len(classes))} | {each: index for index, each in enumerate(classes)}
    groups = torch.full((len(classes),), -1)
    for name, members in found.items():
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


def evaluator(
    config: Config, split: Split, groups: Int[Tensor, " C"] | None, problem: Problem, rows: Rows
) -> Callable[[Method, Run], dict[str, Tensor]]:
    """The evaluation of one split: scalars for curves, and arrays for the record of the run.

    test_recall [C], test_reliability [4 16 3] (all test rows, then those of head, medium and tail classes; see
    metrics.reliability), prior_u [C] where the state has one, pseudo_label [M] and pseudo_confidence [M].
    """
    test_x, test_y = _test_rows(config, split, rows)
    val = torch.from_numpy(split.val)
    val_x, val_y = rows.features["train"][val][:, 0], rows.labels["train"][val]
    truth = rows.labels[split.unlabelled_group][torch.from_numpy(split.unlabelled)]
    is_known = len(truth) > 0 and bool((truth >= 0).all())
    weak, dtype, n_classes = (views_of(problem, "weak") or [0])[0], problem.x.dtype, len(split.counts)

    def evaluate(method: Method, run: Run) -> dict[str, Tensor]:
        scores = _scores(method, run, test_x, "test", dtype)
        result = {name: _number(value) for name, value in metrics.evaluate(scores, test_y, groups).items()}
        result["test_recall"] = metrics.class_recall(scores.argmax(dim=-1), test_y, n_classes).float().cpu()
        result["test_reliability"] = _reliability(scores, test_y, groups)
        if len(val_y):
            scores = _scores(method, run, val_x, "test", dtype)
            result["val_bacc"] = _number(metrics.evaluate(scores, val_y, None)["bacc"])
        prior_u = getattr(run.state, "prior_u", None)
        if prior_u is not None:
            result["prior_u"] = prior_u.float()
        if prior_u is not None and is_known:
            true = class_prior(truth, n_classes).to(prior_u.device)
            result["prior_kl"] = kl_divergence(prior_u.double(), true).cpu()
        if method.views[0] and len(problem.u):
            scores = _scores(method, run, problem.u[:, weak], "pseudo", dtype)
            confidence, label = scores.softmax(dim=-1).max(dim=-1)
            if is_known:
                found = audited(label, confidence, truth, threshold_of(method), groups, n_classes)
                result |= {f"pseudo_{name}": _number(value) for name, value in found.items()}
            result |= {"pseudo_label": label.short(), "pseudo_confidence": confidence.half()}
        return result

    return evaluate


def threshold_of(method: Any) -> float:
    """Confidence from which a pseudo-label is accepted: the method's knob, else .95."""
    return float(getattr(method, "threshold", 0.95))


def audited(
    label: Int[Tensor, " M"],
    confidence: Float[Tensor, " M"],
    truth: Int[Tensor, " M"],
    threshold: float,
    groups: Int[Tensor, " C"] | None,
    n_classes: int,
) -> dict[str, float]:
    """Every scalar of the audit: the whole pool, the mean recall of its classes, and the groups."""
    whole = metrics.audit(label, confidence, truth, threshold)
    by_class = metrics.audit_classes(label, confidence, truth, threshold, n_classes)
    recall = {"recall": float(by_class.recall.nanmean())}
    return whole._asdict() | recall | metrics.audit_groups(by_class, groups)


def _test_rows(config: Config, split: Split, rows: Rows) -> tuple[Float[Tensor, "n D"], Int[Tensor, " n"]]:
    """Center views and labels to test on."""
    if config.eval == "all":
        kept = {name: labels >= 0 for name, labels in rows.labels.items()}
        test_x = torch.cat([rows.features[name][mask][:, 0] for name, mask in kept.items()])
        return test_x, torch.cat([rows.labels[name][mask] for name, mask in kept.items()])
    test = torch.from_numpy(split.test)
    return rows.features[split.test_group][test][:, 0], rows.labels[split.test_group][test]


def _reliability(
    scores: Float[Tensor, "n C"], labels: Int[Tensor, " n"], groups: Int[Tensor, " C"] | None
) -> Float[Tensor, "4 bins 3"]:
    probs = scores.softmax(dim=-1)
    of_row = None if groups is None else groups.to(labels.device)[labels]
    kept = [slice(None), *(slice(0) if of_row is None else of_row == index for index in range(len(metrics.GROUPS)))]
    return torch.stack([metrics.reliability(probs[each], labels[each]) for each in kept]).float().cpu()


def _scores(method: Method, run: Run, x: Tensor, branch: str, dtype: torch.dtype) -> Tensor:
    parts = [method.scores(run.params, run.state, part.to(dtype))[branch] for part in x.split(CHUNK)]
    return torch.cat(parts)


def _number(value: float | None) -> Tensor:
    return torch.tensor(float("nan") if value is None else value, dtype=torch.float64)
