"""The analysis of LP, LFT, FFT and ULFine: its numbers are those of the runs, its verdicts follow from intervals."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from fastltssl.analysis import strategies
from fastltssl.commands.cli import cli
from fastltssl.encoder import extract
from fastltssl.encoder.clip import load_encoder
from fastltssl.errors import RunError
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.live.modes import Live
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.finished import read_audit
from fastltssl.show.study_figures import _smooth


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The command on a small world, twice: the second time it goes on in the same folder."""
    top = tmp_path_factory.mktemp("study")
    source, encoder = open_source("world:mild:10:3"), load_encoder("tiny", None)
    views = parse_views("center,weak:1,strong:1")
    drain(extract.extract(source, encoder, views, top / "small.zarr", templates="world"))
    line = [
        "analyze", "lp-lft-fft", "--cache", str(top / "small.zarr"), "--n1", "4", "--m1", "6", "--gamma-l", "4",
        "--gamma-u", "4", "--seeds", "0-2", "--live-seeds", "0-1", "--steps", "4", "--evals", "2", "--batch", "8",
        "--batch-u", "8", "--out", str(top / "out"), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    return top / "out", json.loads(result.stdout.splitlines()[-1]), line


def rows_of(found):
    return {one["arm"]: one for one in found["results"]}


def test_the_rows_are_the_records_of_the_runs(study):
    out, found, _ = study
    rows = rows_of(found)
    assert list(rows) == ["zero-shot", "LP", "LFT", "FFT", "ULFine"]
    assert [len(one["seeds"]) for one in rows.values()] == [3, 3, 2, 2, 2]
    for one in rows.values():
        record = json.loads((out / "runs" / one["arm"] / "metrics.json").read_text())
        assert one["bacc"] == record["bacc"]
    assert rows["LP"]["trained_in_encoder"] == rows["zero-shot"]["trained_in_head"] == 0
    assert rows["LP"]["trained_in_head"] == rows["FFT"]["trained_in_head"] == 40 * 128
    assert rows["FFT"]["trained_in_encoder"] == 823_040
    assert rows["zero-shot"]["false"] is None


def test_false_pseudo_labels_are_counted_above_the_threshold(study):
    out, found, _ = study
    for name in ("LP", "LFT"):
        one = rows_of(found)[name]
        audits = [read_audit(out / "runs" / name, seed) for seed in one["seeds"]]
        counted = [
            int(((a.confidence[-1].astype(np.float32) >= a.threshold) & (a.label[-1] != a.truth)).sum()) for a in audits
        ]
        assert one["false"]["values"] == counted
        assert sum(one["curves"]["false_by_group"]) == pytest.approx(np.mean(counted), abs=1e-3)
        wrong = np.mean([100 * a.confidence[-1][a.label[-1] != a.truth].astype(np.float64).mean() for a in audits])
        assert one["curves"]["wrong_confidence"][-1] == pytest.approx(wrong, abs=1e-3)


def test_files_hold_a_line_a_seed_and_a_line_a_class(study):
    out, found, _ = study
    seeds = list(csv.DictReader((out / "strategies.csv").read_text().splitlines()))
    assert len(seeds) == 3 + 3 + 2 + 2 + 2
    classes = list(csv.DictReader((out / "strategies_classes.csv").read_text().splitlines()))
    assert len(classes) == 5 * 40
    labelled = [int(one["labelled"]) for one in classes[:40]]
    assert labelled == sorted(labelled, reverse=True)
    text = (out / "report.md").read_text()
    assert all(one["claim"] in text for one in found["findings"])
    assert (out / "strategies.png").stat().st_size > 20_000


def test_going_on_keeps_finished_runs_and_makes_what_is_missing(study):
    out, found, line = study
    before = (out / "runs" / "LFT" / "metrics.json").stat().st_mtime_ns
    (out / "runs" / "LP" / "metrics.json").unlink()
    result = CliRunner().invoke(cli, [*line, "--resume"])
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout.splitlines()[-1])
    assert rows_of(again)["LP"]["bacc"] == rows_of(found)["LP"]["bacc"]
    assert (out / "runs" / "LFT" / "metrics.json").stat().st_mtime_ns == before


def made_up(name, bacc, seconds=1.0):
    values = {"mean": float(np.mean(bacc)), "values": list(bacc)}
    row = dict.fromkeys((*strategies.MEASURES, "head_minus_tail", "false_share"), values)
    return row | {"arm": name, "seeds": list(range(len(bacc))), "seconds": {"values": [seconds] * len(bacc)}}


def test_a_finding_holds_is_reversed_or_is_left_open():
    rows = [
        made_up("zero-shot", [60, 60, 60, 60, 60]),
        made_up("LP", [61, 59, 61, 59, 60.5]),
        made_up("LFT", [65, 65.2, 64.8]),
        made_up("FFT", [50, 50.1, 49.9], seconds=3.0),
        made_up("ULFine", [60, 60.2, 59.8]),
    ]
    found = {one["claim"]: one for one in strategies.findings(rows)}
    assert found["LP raises the mean over zero-shot"]["verdict"] == "left open"
    assert found["LFT raises the mean over zero-shot"]["verdict"] == "holds"
    assert found["ULFine raises the mean over LFT"]["verdict"] == "reversed"
    assert found["ULFine trains in less time than FFT"]["verdict"] == "holds"
    assert found["LFT raises the mean over zero-shot"]["seeds"] == [0, 1, 2]
    one_seed = [made_up(row["arm"], [60.0]) for row in rows]
    assert {one["verdict"] for one in strategies.findings(one_seed)} == {"not measured"}


def test_a_base_without_pseudo_labels_is_refused():
    arm = strategies.arms("probe", Live("adaptformer"), Live("fft"))[1]
    with pytest.raises(RunError, match=r"probe makes no pseudo-labels, .* Try --base fixmatch"):
        strategies.config_of(arm, Config("probe", "none"), (0,))


def test_smoothing_leaves_out_what_is_not_there():
    assert _smooth([1.0, None, 3.0, 5.0], width=3) == [1.0, 2.0, 4.0, 4.0]
