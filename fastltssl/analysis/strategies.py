"""Zero-shot, linear probe (LP), lightweight (LFT) and full fine-tuning (FFT) and ULFine on one protocol.

`fastltssl analyze lp-lft-fft` prints and draws what is computed here: the analysis of the ULFine paper (arXiv
2505.05062), and which of its findings hold. Numbers are in percent, except counts and seconds.
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
from fastltssl.runs.config import Config, check
from fastltssl.runs.experiment import training
from fastltssl.runs.finished import Recorded, read_audit, read_record, read_tensors
from fastltssl.runs.live import experiment as live
from fastltssl.runs.live.images import Opened
from fastltssl.runs.record import difference
from fastltssl.training.rows import Rows


class Arm(NamedTuple):
    """One strategy; `live` is None if it trains from the cache."""

    name: str
    method: str
    live: Live | None


class Finding(NamedTuple):
    """A claim of the paper: it holds if the measure of one arm minus that of another is above zero."""

    claim: str
    ours: str  # the name of the arm
    theirs: str  # the name of the arm whose measure is subtracted
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
MEASURES = {  # of a row of the study, with the titles of their columns
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
    """The experiment of an arm; arms that train through the encoder take `live_seeds`.

    Raises RunError if the method makes no pseudo-labels.
    """
    if arm.name != "zero-shot" and not configure(arm.method, {}).views[0]:
        raise RunError(f"{arm.method} makes no pseudo-labels, and the analysis is about these. Try --base fixmatch")
    seeds = tuple(live_seeds) if arm.live else common.seeds
    return check(dataclasses.replace(common, method=arm.method, seeds=seeds, live=arm.live))


def studying(
    config: Config, cache: Cache, rows: Rows, opened: Opened, out: Path, resume: bool = False
) -> Work[dict[str, Any]]:
    """Train one arm, or with `resume` read it if it is finished; returns its record."""
    if resume and (out / "metrics.json").is_file():
        return read_record(out)
    if config.live:
        return (yield from live.training(config, cache, rows, opened, out))
    return (yield from training(config, cache, rows, out))


def row(arm: Arm, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """The row of an arm: each measure as {mean, std, values} or None, and the curves of the picture."""
    seeds = record["seeds"]
    histories = [read_audit(out, seed) for seed in seeds]
    audits = [_audit(history) for history in histories]
    measured = {name: record.get(name) for name in ("bacc", "head", "medium", "tail", "ece")}
    if record["head"] and record["tail"]:
        gaps = np.subtract(record["head"]["values"], record["tail"]["values"])
        measured["head_minus_tail"] = _summary(gaps)
    if audits[0]:
        accepted, right, _ = ([int(by_class.sum()) for by_class in counts] for counts in zip(*audits, strict=True))
        false = np.subtract(accepted, right)
        measured["false"] = _summary(false)
        measured["precision"] = _summary(100 * np.array(right) / np.maximum(accepted, 1))
        measured["false_share"] = _summary(100 * false / np.maximum(accepted, 1))
        measured["wrong_confidence"] = record["audit"]["wrong_confidence"]
    trained = record.get("live") or {}
    seconds = record["seconds"] / len(seeds)
    return {
        "arm": arm.name,
        "method": record["method"],
        "mode": trained.get("mode"),
        "seeds": seeds,
        **{name: measured.get(name) for name in (*MEASURES, "head_minus_tail", "false_share")},
        "seconds": {"mean": round(seconds, 2), "std": 0.0, "values": [seconds] * len(seeds)},
        "trained_in_encoder": trained.get("trainable", 0),
        "trained_in_head": trained.get("head", _head_size(out, seeds[0])),
        "run": str(out),
        "curves": _curves(histories, audits),
    }


def _audit(history: Recorded) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
    """Accepted, right and true pseudo-labels of each class at the last evaluation; empty where not known."""
    if history.label is None or history.confidence is None or history.truth is None or (history.truth < 0).any():
        return ()
    label, truth = torch.from_numpy(history.label[-1]).long(), torch.from_numpy(history.truth).long()
    confidence = torch.from_numpy(history.confidence[-1]).float()
    audit = metrics.audit_classes(label, confidence, truth, history.threshold, len(history.classes))
    return audit.accepted, audit.right, audit.true


def _curves(histories: list[Recorded], audits: list[Any]) -> dict[str, Any]:
    """Means over the seeds of what is drawn by class, most labelled first (ties by index), and over training."""
    first = histories[0]
    order = np.argsort(-first.counts, kind="stable")
    curves: dict[str, Any] = {
        "classes": [first.classes[k] for k in order],
        "labelled": first.counts[order].tolist(),
        "recall": _listed(np.mean([100 * history.test_recall[-1][order] for history in histories], axis=0)),
        "steps": first.steps.tolist(),
    }
    if not audits[0]:
        return curves
    mean = {
        name: np.mean([audit[place].numpy() for audit in audits], axis=0)[order]
        for place, name in enumerate(("accepted", "right", "true"))
    }
    curves |= {name: _listed(by_class) for name, by_class in mean.items()}
    if first.groups is not None:
        false, groups = mean["accepted"] - mean["right"], first.groups[order]
        curves["false_by_group"] = [float(false[groups == index].sum()) for index in range(len(metrics.GROUPS))]
    for name, is_right in (("wrong", False), ("right", True)):
        over_time = [
            [_confidence(history, place, is_right) for history in histories] for place in range(len(first.steps))
        ]
        known = [[value for value in values if value == value] for values in over_time]  # without nan
        curves[f"{name}_confidence"] = [round(sum(values) / len(values), 4) if values else None for values in known]
    return curves


def _confidence(history: Recorded, evaluation: int, is_right: bool) -> float:
    """Mean confidence of the right or of the wrong pseudo-labels of the whole pool, in percent; nan without any."""
    assert history.label is not None
    assert history.confidence is not None
    chosen = (history.label[evaluation] == history.truth) == is_right
    if not chosen.any():
        return float("nan")
    return 100 * float(history.confidence[evaluation][chosen].astype(np.float64).mean())


def _listed(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON: four digits, None for nan."""
    return [None if value != value else round(float(value), 4) for value in values]


def _summary(numbers: Any) -> dict[str, Any]:
    """Mean and standard deviation of a number for each seed."""
    values = [float(value) for value in numbers]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "std": round(std, 4), "values": values}


def _head_size(out: Path, seed: int) -> int:
    """The number of trained parameters outside the encoder."""
    return sum(value.numel() for name, value in read_tensors(out).items() if name.startswith(f"seed{seed}.params"))


def findings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each finding with its difference over the seeds that both arms have, and the verdict.

    The verdict is "holds" or "reversed" if the 95 % interval of the paired difference lies above or below zero, "left
    open" if it holds zero, and "not measured" if a measure is missing or the arms share fewer than two seeds.
    """
    by_arm = {row["arm"]: row for row in rows}
    verdicts = []
    for finding in FINDINGS:
        ours, theirs = by_arm[finding.ours], by_arm[finding.theirs]
        shared = [seed for seed in ours["seeds"] if seed in theirs["seeds"]]
        pairs = [_of_seeds(row, finding.measure, shared) for row in (ours, theirs)]
        if None in pairs or len(shared) < 2:
            verdict, measured = "not measured", None
        else:
            measured = difference(*({"values": values} for values in pairs))
            is_exact = finding.measure == "seconds"  # of all seeds together, so there is no interval
            low, high = (measured["mean"],) * 2 if is_exact else (measured["low"], measured["high"])
            verdict = "holds" if low > 0 else "reversed" if high < 0 else "left open"
        verdicts.append(finding._asdict() | {"seeds": shared, "difference": measured, "verdict": verdict})
    return verdicts


def _of_seeds(row: dict[str, Any], measure: str, seeds: Sequence[int]) -> list[float] | None:
    """The values of a measure for some of the seeds of a row; None if it was not measured."""
    if row[measure] is None:
        return None
    return [row[measure]["values"][row["seeds"].index(seed)] for seed in seeds]


def seed_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The study as a tidy table: a row for each arm and seed."""
    return [
        {
            **{name: row[name] for name in ("arm", "method", "mode")},
            "seed": seed,
            **{name: row[name] and row[name]["values"][place] for name in MEASURES},
            "seconds": row["seconds"]["values"][place],
            **{name: row[name] for name in ("trained_in_encoder", "trained_in_head")},
        }
        for row in rows
        for place, seed in enumerate(row["seeds"])
    ]


def class_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm and class, means over the seeds: accuracy, and accepted, right and true pseudo-labels."""
    table = []
    for row in rows:
        curves = row["curves"]
        for place, name in enumerate(curves["classes"]):
            line = {"arm": row["arm"], "class": name, "labelled": curves["labelled"][place]}
            for key in ("recall", "accepted", "right", "true"):
                line[key] = curves[key][place] if key in curves else None
            right = line["right"]
            line["precision"] = 100 * right / line["accepted"] if line["accepted"] else None
            line["pool_recall"] = 100 * right / line["true"] if line["true"] else None
            table.append(line)
    return table
