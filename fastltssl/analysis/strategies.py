"""Zero-shot, linear probe (LP), lightweight (LFT) and full fine-tuning (FFT) and ULFine on one protocol.

What `fastltssl analyze lp-lft-fft` prints and draws: the analysis of the ULFine paper (arXiv 2505.05062), and which of
its findings hold here. Percent, but for counts and seconds; no printing here.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.errors import RunError
from fastltssl.functional import metrics
from fastltssl.functional.measures import measure
from fastltssl.live.modes import Live
from fastltssl.methods import configure
from fastltssl.progress import Work
from fastltssl.runs import live
from fastltssl.runs.config import Config, check
from fastltssl.runs.experiment import training
from fastltssl.runs.folder import Recorded, read_audit
from fastltssl.runs.live_seed import Opened
from fastltssl.runs.record import difference
from fastltssl.training.rows import Rows


class Arm(NamedTuple):
    """One strategy; `live` is None where it trains from the cache."""

    name: str
    method: str
    live: Live | None


class Finding(NamedTuple):
    """What the paper says, as a difference that is above zero where it holds."""

    claim: str
    ours: str  # arm
    theirs: str
    measure: str


FINDINGS = (
    Finding("LP raises the mean over zero-shot", "LP", "zero-shot", "bacc"),
    Finding("LFT raises the mean over zero-shot", "LFT", "zero-shot", "bacc"),
    Finding("LP helps the head more than the tail", "LP", "zero-shot", "head_minus_tail"),
    Finding("LFT helps the head more than the tail", "LFT", "zero-shot", "head_minus_tail"),
    Finding("FFT ends below LFT", "LFT", "FFT", "bacc"),
    Finding("LP accepts more false pseudo-labels than LFT", "LP", "LFT", "false"),
    Finding("LFT is surer of its wrong pseudo-labels than LP", "LFT", "LP", "wrong_confidence"),
    Finding("ULFine raises the mean over LFT", "ULFine", "LFT", "bacc"),
    Finding("ULFine raises the tail over LFT", "ULFine", "LFT", "tail"),
    Finding("ULFine accepts a smaller share of false pseudo-labels than LFT", "LFT", "ULFine", "false_share"),
    Finding("ULFine trains in less time than FFT", "FFT", "ULFine", "seconds"),
)
MEASURES = {  # of a row of the study -> title of its column
    name: measure(name).column
    for name in ("bacc", "head", "medium", "tail", "ece", "precision", "false", "wrong_confidence")
} | {"precision": f"pl {measure('precision').column}"}


def arms(base: str, lft: Live, fft: Live) -> list[Arm]:
    """The five strategies; LP, LFT and FFT train the same semi-supervised method."""
    return [
        Arm("zero-shot", "zeroshot", None),
        Arm("LP", base, None),
        Arm("LFT", base, lft),
        Arm("FFT", base, fft),
        Arm("ULFine", "ulfine", lft),
    ]


def config_of(arm: Arm, common: Config, live_seeds: Sequence[int]) -> Config:
    """The experiment of an arm, live ones with their own seeds. Raises RunError where it makes no pseudo-labels."""
    if arm.name != "zero-shot" and not configure(arm.method, {}).views[0]:
        raise RunError(f"{arm.method} makes no pseudo-labels, and the analysis is about these. Try --base fixmatch")
    seeds = tuple(live_seeds) if arm.live else common.seeds
    return check(dataclasses.replace(common, method=arm.method, seeds=seeds, live=arm.live))


def studying(config: Config, cache: Cache, rows: Rows, opened: Opened, out: Path) -> Work[dict[str, Any]]:
    """Train one arm; returns its record."""
    if config.live:
        return (yield from live.training(config, cache, rows, opened, out))
    return (yield from training(config, cache, rows, out))


def row(arm: Arm, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """One line of the study, each measure {mean, std, values} or None, with what the pictures need."""
    seeds = record["seeds"]
    found = [read_audit(out, seed) for seed in seeds]
    audits = [_audit(one) for one in found]
    measured = {name: record.get(name) for name in ("bacc", "head", "medium", "tail", "ece")}
    if record["head"] and record["tail"]:
        gaps = np.subtract(record["head"]["values"], record["tail"]["values"])
        measured["head_minus_tail"] = _summary(gaps)
    if audits[0]:
        accepted, right = ([int(each.sum()) for each in column] for column in list(zip(*audits, strict=True))[:2])
        false = np.subtract(accepted, right)
        measured["false"] = _summary(false)
        measured["precision"] = _summary(100 * np.array(right) / np.maximum(accepted, 1))
        measured["false_share"] = _summary(100 * false / np.maximum(accepted, 1))
        measured["wrong_confidence"] = record["audit"]["wrong_confidence"]
    how = record.get("live") or {}
    seconds = record["seconds"] / len(seeds)
    return {
        "arm": arm.name,
        "method": record["method"],
        "mode": how.get("mode"),
        "seeds": seeds,
        **{name: measured.get(name) for name in (*MEASURES, "head_minus_tail", "false_share")},
        "seconds": {"mean": round(seconds, 2), "std": 0.0, "values": [seconds] * len(seeds)},
        "trained_in_encoder": how.get("trainable", 0),
        "trained_in_head": how.get("head", _head_size(out, seeds[0])),
        "run": str(out),
        "curves": _curves(found, audits),
    }


def _audit(one: Recorded) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
    """Accepted, right and true pseudo-labels of each class at the end; empty where there are none."""
    if one.label is None or one.confidence is None or one.truth is None:
        return ()
    label, truth = torch.from_numpy(one.label[-1]).long(), torch.from_numpy(one.truth).long()
    confidence = torch.from_numpy(one.confidence[-1]).float()
    found = metrics.audit_classes(label, confidence, truth, one.threshold, len(one.classes))
    return found.accepted, found.right, found.true


def _curves(found: list[Recorded], audits: list[Any]) -> dict[str, Any]:
    """Means over the seeds, classes sorted by labelled count (most first, ties by number)."""
    order = np.argsort(-found[0].counts, kind="stable")
    curves: dict[str, Any] = {
        "classes": [found[0].classes[k] for k in order],
        "labelled": found[0].counts[order].tolist(),
        "recall": _listed(np.mean([100 * one.test_recall[-1][order] for one in found], axis=0)),
        "steps": found[0].steps.tolist(),
    }
    if not audits[0]:
        return curves
    mean = [np.mean([audit[place].numpy() for audit in audits], axis=0)[order] for place in range(3)]
    for name, each in zip(("accepted", "right", "true"), mean, strict=True):
        curves[name] = _listed(each)
    groups = found[0].groups
    if groups is not None:
        false = mean[0] - mean[1]
        curves["false_by_group"] = [float(false[groups[order] == index].sum()) for index in range(len(metrics.GROUPS))]
    for name, is_right in (("wrong", False), ("right", True)):
        columns = zip(*([_confidence(one, t, is_right) for t in range(len(one.steps))] for one in found), strict=True)
        known = [[value for value in column if value == value] for column in columns]
        curves[f"{name}_confidence"] = [round(sum(each) / len(each), 4) if each else None for each in known]
    return curves


def _confidence(one: Recorded, evaluation: int, is_right: bool) -> float:
    """Mean confidence of the right or of the wrong pseudo-labels of the whole pool; nan where there are none."""
    assert one.label is not None
    assert one.confidence is not None
    chosen = (one.label[evaluation] == one.truth) == is_right
    return 100 * float(one.confidence[evaluation][chosen].astype(np.float64).mean()) if chosen.any() else float("nan")


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if value != value else round(float(value), 4) for value in values]


def _summary(each: Any) -> dict[str, Any]:
    values = [float(value) for value in each]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "std": round(std, 4), "values": values}


def _head_size(out: Path, seed: int) -> int:
    """Trained numbers outside the encoder."""
    from safetensors import safe_open

    with safe_open(out / "head.safetensors", "np") as file:
        names = [name for name in file.keys() if name.startswith(f"seed{seed}.params")]  # noqa: SIM118
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in names)


def findings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each finding with its difference over the seeds both arms share: holds, is reversed, or is left open.

    It is left open where the 95 % interval of the paired difference holds zero.
    """
    by_name = {each["arm"]: each for each in rows}
    found = []
    for one in FINDINGS:
        ours, theirs = by_name[one.ours], by_name[one.theirs]
        shared = [seed for seed in ours["seeds"] if seed in theirs["seeds"]]
        pairs = [_of_seeds(each, one.measure, shared) for each in (ours, theirs)]
        if None in pairs or len(shared) < 2:
            verdict, measured = "not measured", None
        else:
            measured = difference(*({"values": pair} for pair in pairs))
            low, high = (measured["mean"],) * 2 if one.measure == "seconds" else (measured["low"], measured["high"])
            verdict = "holds" if low > 0 else "reversed" if high < 0 else "left open"
        found.append(one._asdict() | {"seeds": shared, "difference": measured, "verdict": verdict})
    return found


def _of_seeds(row: dict[str, Any], measure: str, seeds: Sequence[int]) -> list[float] | None:
    if row[measure] is None:
        return None
    return [row[measure]["values"][row["seeds"].index(seed)] for seed in seeds]


def lines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The study as a tidy table: one line an arm and seed."""
    return [
        {
            **{name: one[name] for name in ("arm", "method", "mode")},
            "seed": seed,
            **{name: one[name] and one[name]["values"][place] for name in MEASURES},
            "seconds": one["seconds"]["values"][place],
            **{name: one[name] for name in ("trained_in_encoder", "trained_in_head")},
        }
        for one in rows
        for place, seed in enumerate(one["seeds"])
    ]


def class_lines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line an arm and class, means over the seeds: accuracy, and accepted, right and true pseudo-labels."""
    found = []
    for one in rows:
        curves = one["curves"]
        for place, name in enumerate(curves["classes"]):
            line = {"arm": one["arm"], "class": name, "labelled": curves["labelled"][place]}
            for key in ("recall", "accepted", "right", "true"):
                line[key] = curves[key][place] if key in curves else None
            right = line["right"]
            line["precision"] = 100 * right / line["accepted"] if line["accepted"] else None
            line["pool_recall"] = 100 * right / line["true"] if line["true"] else None
            found.append(line)
    return found
