"""The study of pseudo-labels: pools, what it refuses, its numbers, its files and its picture."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click import UsageError
from click.testing import CliRunner

from fastltssl.analysis.pseudo_labels import MEASURES, Choice, Pool, plan, pools
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.commands.common import parse_methods
from fastltssl.errors import RunError, SplitError, SwitchError
from fastltssl.runs.config import Config
from fastltssl.runs.finished import read_audit, read_record
from fastltssl.show import study_figures


@pytest.fixture(scope="module")
def study(cache, tmp_path_factory):
    """The command on two methods (one twice) and five pools; its output, and the folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    arguments = [
        "analyze",
        "pseudo-labels",
        "--cache",
        cache.path,
        "--methods",
        "fixmatch,fixmatch:tau=1:tau_u=1,finessl",
    ]
    arguments += [
        "--n1",
        12,
        "--m1",
        20,
        "--gamma-l",
        4,
        "--gamma-u",
        "1,2,4",
        "--orders",
        "consistent,reversed,uniform",
    ]
    arguments += ["--seeds", "0-1", "--steps", 20, "--out", out, "--json"]
    result = CliRunner().invoke(cli, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result, out


def test_pools_that_are_the_same_are_trained_once():
    found = pools([1, 10], ["reversed", "consistent", "uniform"])
    assert found == [Pool("uniform", 1.0), Pool("consistent", 10), Pool("reversed", 10)]
    assert [pool.name for pool in found] == ["uniform", "consistent 10", "reversed 10"]
    assert pools([10, 50], ["uniform"]) == [Pool("uniform", 1.0)]
    with pytest.raises(SwitchError, match="--orders 'up' is not one of consistent"):
        pools([1], ["up"])


def test_methods_are_named_with_their_knobs():
    assert parse_methods("fixmatch, fixmatch:tau=1:tau_u=.5,./mine.py") == [
        ("fixmatch", {}), ("fixmatch", {"tau": "1", "tau_u": ".5"}), ("./mine.py", {}),
    ]  # fmt: skip
    assert Choice("fixmatch", {"tau": "1"}).label == "fixmatch tau=1"
    for text in ("fixmatch:tau", "", "a,,b", "adello,adello"):
        with pytest.raises(UsageError):
            parse_methods(text)


def test_what_has_no_pseudo_labels_or_no_truth_is_refused_before_training(cache, tmp_path):
    base = Config("fixmatch", str(cache.path), Protocol(n1=5, m1=9))
    with pytest.raises(RunError, match="probe makes no pseudo-labels"):
        plan(base, [Choice("probe", {})], [Pool("uniform", 1.0)], cache)
    without = Config("fixmatch", str(cache.path), Protocol(n1=5))
    with pytest.raises(RunError, match=r"counted by class\. Add --m1 n"):
        plan(without, [Choice("fixmatch", {})], [Pool("uniform", 1.0)], cache)
    large = Config("fixmatch", str(cache.path), Protocol(n1=5, m1=56))
    with pytest.raises(SplitError, match="class 0 has 55 images left and 56 unlabelled ones"):
        plan(large, [Choice("fixmatch", {})], [Pool("uniform", 1.0)], cache)
    hidden = cache.groups["train"]._replace(labels=np.full(9, -1))
    pool = cache._replace(groups=cache.groups | {"unlabeled": hidden})
    with pytest.raises(RunError, match=r"unlabeled has no true labels to judge pseudo-labels by\. Add --m1 n"):
        plan(without, [Choice("fixmatch", {})], [Pool("uniform", 1.0)], pool)


def test_the_table_has_every_method_on_every_pool_and_the_probe(study):
    result, out = study
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert [(one["method"], one["pool"]) for one in found["results"]] == [
        (method, pool)
        for method in ("fixmatch", "fixmatch tau=1 tau_u=1", "finessl")
        for pool in ("uniform", "consistent 2", "consistent 4", "reversed 2", "reversed 4")
    ]
    probe = found["reference"]["bacc"]["mean"]
    for one in found["results"]:
        assert one["is_below_la"] == (one["bacc"]["mean"] < probe)
    assert sum("below LP+LA" in line for line in result.stdout.splitlines()) == sum(
        one["is_below_la"] for one in found["results"]
    )
    assert f"fastltssl compare {out}/runs/* --baseline {out}/runs/probe" in result.stdout


def test_each_number_is_that_of_the_run_it_names(study):
    _, out = study
    stored = json.loads((out / "pseudo_labels.json").read_text())
    for one in stored["results"]:
        record = read_record(Path(one["run"]))
        assert record["protocol"]["order"] == one["order"]
        assert record["protocol"]["gamma_u"] == one["gamma_u"]
        assert one["bacc"] == record["bacc"]
        assert one["precision"] == record["audit"]["accuracy"]
        assert one["tail_recall"] == record["audit"]["recall_tail"]
    with (out / "pseudo_labels.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 15 * 2
    first = stored["results"][0]
    assert [float(line["kl"]) for line in table[:2]] == first["kl"]["values"]
    assert [line["seed"] for line in table[:2]] == ["0", "1"]
    seen = {(line["method"], line["order"], line["gamma_u"], line["seed"]) for line in table}
    assert len(seen) == len(table)


def test_the_pools_have_the_imbalance_they_are_named_after(study):
    _, out = study
    for name, expected in {"uniform-1": [20] * 6, "reversed-4": [5, 6, 8, 11, 15, 20]}.items():
        found = read_audit(out / "runs" / f"fixmatch-{name}")
        assert np.bincount(found.truth).tolist() == expected


def test_the_runs_of_a_study_are_paired_with_its_probe_by_compare(study):
    _, out = study
    arguments = ["compare", *sorted((out / "runs").iterdir()), "--baseline", out / "runs/probe", "--json"]
    result = CliRunner().invoke(cli, [str(part) for part in arguments], catch_exceptions=False)
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert len(found["differences"]) == 16
    assert not any(one["unpaired"] for one in found["differences"])


@pytest.mark.parametrize(("orders", "panels"), [(("consistent", "reversed"), 6), (("consistent", "middle"), 10)])
def test_the_picture_has_a_panel_a_measure_and_a_curve_a_method(orders, panels, monkeypatch, tmp_path):
    def summary(*values):
        return {"mean": float(np.mean(values)), "std": 1.0, "values": [*values, None]}

    rows = [
        {"method": f"method{m}", "order": pool.order, "gamma_u": pool.gamma_u, "pool": pool.name}
        | {name: summary(50.0 + m, 60.0 + place) for name in MEASURES}
        | ({"precision": None} if m == 2 else {})
        for m in range(9)
        for place, pool in enumerate(pools([1, 10], orders))
    ]
    saved = {}
    monkeypatch.setattr(study_figures, "save", lambda figure, path, **_: saved.setdefault("figure", figure) and path)
    study_figures.pseudo_label_figure(rows, summary(55.0, 56.0), "a line", tmp_path / "p.png")
    axes = saved["figure"].axes
    assert len(axes) == panels
    measured = axes[: len(study_figures.PANELS)]
    assert [one.get_ylabel() for one in measured] == [unit for _, unit, _ in study_figures.PANELS.values()]
    assert all(one.get_xlabel() for one in measured)
    first = {container.get_label(): container.lines[0] for container in measured[0].containers}
    assert list(first) == [f"method{m}" for m in range(9)]
    assert [len(line.get_xdata()) for line in first.values()] == [3 if "reversed" in orders else 2] * 9
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in first.values()}
    assert len(styles) == 9
    precision = {container.get_label(): container.lines[0] for container in measured[2].containers}
    assert len(precision["method2"].get_xdata()) == 0
    assert [tick.get_text() for tick in measured[0].get_xticklabels()] == (
        ["10", "1", "10"] if "reversed" in orders else ["1", "10"]
    )


def test_the_picture_is_written_beside_the_table(study):
    _, out = study
    picture = (out / "pseudo_labels.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 20_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma-u", "0.5,2"], "at least 1"),
        (["--gamma-u", "a"], "not a list of numbers"),
        (["--gamma-u", "nan"], "not a list of numbers"),
        (["--gamma-u", "٣"], "not a list of numbers"),
        (["--gamma-u", "1e400"], "at least 1"),
        (["--gamma-u", ""], "not a list of numbers"),
        (["--methods", "fixmatch:tau"], "is not NAME or NAME:KNOB=VALUE"),
        (["--order", "reversed"], "No such option"),
        (["--set", "tau=1"], "No such option"),
    ],
)
def test_flags_that_mean_nothing_are_usage_errors(flags, message, cache):
    arguments = ["analyze", "pseudo-labels", "--cache", str(cache.path), "--n1", "5", "--m1", "9", *flags]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.output
