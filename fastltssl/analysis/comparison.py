"""Finished runs side by side: their differences to a baseline, paired by seed, and which end below LP+LA."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.errors import RunError
from fastltssl.functional.measures import MAIN
from fastltssl.runs.finished import read_record, read_rows
from fastltssl.runs.record import difference


class Comparison(NamedTuple):
    """Runs in the order they were given; `folders`, `records` and `differences` are equally long."""

    folders: list[Path]
    records: list[dict[str, Any]]  # metrics.json of each run, with "is_below_la", see `mark_below_la`
    differences: list[dict[str, Any]]  # each run minus the baseline, see `_differences`
    baseline: Path
    baseline_record: dict[str, Any]
    skipped: list[str]  # a line for each folder without a finished run

    def as_dict(self) -> dict[str, Any]:
        """What `fastltssl compare --json` prints."""
        return {"results": self.records, "baseline": str(self.baseline), "differences": self.differences}


def compare(runs: Sequence[str | Path], baseline: str | Path | None = None) -> dict[str, Any]:
    """Compare finished runs with a baseline (default: the first of them), seed by seed.

    Returns a dictionary, as `fastltssl compare --json` prints it:

    results      the record of each run: its metrics as {"mean", "std", "values"}, in percent, a value for each seed
    baseline     the folder of the baseline, which is the first of the results if it is not among the runs
    differences  for each run "unpaired", the reason why it cannot be paired with the baseline, or None; and for each of
                 top1, bacc, head, medium, tail and ece {"mean", "low", "high", "values"} in percentage points, where
                 low and high are the ends of the 95 % interval of the mean (Student's t), None with a single seed
    skipped      a line of text for each folder that holds no finished run (not part of the command's JSON)

    Raises RunError if none of the runs is finished, or the baseline is not.
    """
    comparison = compared(runs, baseline)
    return comparison.as_dict() | {"skipped": comparison.skipped}


def compared(runs: Sequence[str | Path], baseline: str | Path | None = None) -> Comparison:
    """The same as `compare`, with the folders that were read."""
    folders = [Path(run) for run in runs]
    if baseline is not None:
        baseline = Path(baseline)
        read_record(baseline)  # raises
        if baseline.resolve() not in [folder.resolve() for folder in folders]:
            folders.insert(0, baseline)
    finished, errors = read_finished(folders)
    if not finished:
        raise RunError("\n".join(["none of these is a finished run", *(f"skipped: {error}" for error in errors)]))
    folders = [folder for folder, _ in finished]
    records = mark_below_la([record for _, record in finished])
    base = folders[0] if baseline is None else baseline
    base_record = records[0] if baseline is None else read_record(base)
    differences = [
        _differences(base_record, record, _unpaired(base, base_record, folder, record))
        for folder, record in zip(folders, records, strict=True)
    ]
    return Comparison(folders, records, differences, base, base_record, [str(error) for error in errors])


def read_finished(folders: Sequence[Path]) -> tuple[list[tuple[Path, dict[str, Any]]], list[RunError]]:
    """The finished runs among some folders, each with its record, and an error for each of the other folders."""
    finished, errors = [], []
    for folder in folders:
        try:
            finished.append((folder, read_record(folder)))
        except RunError as error:
            errors.append(error)
    return finished, errors


def _unpaired(baseline: Path, baseline_record: dict[str, Any], folder: Path, record: dict[str, Any]) -> str:
    """Why a run cannot be paired with the baseline seed by seed; empty if it can."""
    if record["seeds"] != baseline_record["seeds"]:
        return f"seeds {listed(record['seeds'])} against {listed(baseline_record['seeds'])}"
    for switch in ("eval", "report"):
        ours, theirs = record["protocol"].get(switch), baseline_record["protocol"].get(switch)
        if ours != theirs:
            return f"--{switch} {ours} against {theirs}"
    if record["protocol"].get("eval") == "all":
        is_same = record["cache_fingerprint"] == baseline_record["cache_fingerprint"]
        return "" if is_same else "other caches, tested on all rows"
    for seed in record["seeds"]:
        try:
            ours, theirs = (read_rows(run, f"seed{seed}.test.ids") for run in (folder, baseline))
            if not np.array_equal(ours, theirs):
                return f"other test images (seed {seed})"
        except RunError:
            return "its rows.npz, or the baseline's, cannot be read"
    return ""


def _differences(baseline: dict[str, Any], record: dict[str, Any], unpaired: str) -> dict[str, Any]:
    """Each metric of a run minus that of the baseline, in percentage points, paired by seed; None without a pair."""
    row: dict[str, Any] = {"run": record["run"], "unpaired": unpaired or None}
    for name in MAIN:
        ours, theirs = record.get(name), baseline.get(name)
        row[name] = None if unpaired or ours is None or theirs is None else difference(ours, theirs)
    return row


def mark_below_la(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with "is_below_la": whether a semi-supervised run ends below the logit-adjusted probe (LP+LA).

    Compared are balanced accuracies of runs with the same cache, seeds and labelled rows. Where several probes qualify,
    the best one counts.
    """

    def labels_of(record: dict[str, Any]) -> str:
        """A text that is equal for runs with the same cache, seeds and labelled rows."""
        of_the_pool = ("m1", "gamma_u", "order", "overlap")
        switches = {name: value for name, value in record["protocol"].items() if name not in of_the_pool}
        return json.dumps([record["cache_fingerprint"], record["seeds"], switches], sort_keys=True)

    baseline: dict[str, float] = {}
    for record in records:
        is_probe_la = record["method"] == "probe" and all(pair == ("tau", 1) for pair in record["settings"].items())
        if is_probe_la:
            key = labels_of(record)
            baseline[key] = max(record["bacc"]["mean"], baseline.get(key, 0.0))
    return [
        record | {"is_below_la": record["is_ssl"] and record["bacc"]["mean"] < baseline.get(labels_of(record), 0.0)}
        for record in records
    ]


def listed(numbers: list[int]) -> str:
    """Numbers as text: "0-4" where they are consecutive and more than two, else "0,3"."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
