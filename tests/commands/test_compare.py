"""Finished runs side by side: pairs, intervals, marks and exports."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import toy_cache
from click.testing import CliRunner

from fastltssl.analysis import comparison
from fastltssl.commands.cli import cli
from fastltssl.errors import RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs a (probe) and b (fixmatch) that can be paired, other that cannot, and one of a single seed."""
    root = tmp_path_factory.mktemp("compare")
    cache = str(toy_cache.write(root / "toy.zarr", noise=1.6).path)
    common = ["--cache", cache, "--n1", "12", "--m1", "20", "--gamma-l", "4", "--gamma-u", "4", "--steps", "20"]
    for name, *flags in [
        ("a", "probe", "--seeds", "0-2"),
        ("b", "fixmatch", "--seeds", "0-2", "--order", "reversed"),
        ("other", "probe", "--seeds", "1-3"),
        ("drawn", "probe", "--seeds", "0-2", "--test-per-class", "9"),
        ("mean", "probe", "--seeds", "0-2", "--report", "mean20"),
        ("one", "probe"),
    ]:
        result = CliRunner().invoke(cli, ["train", *flags, *common, "--out", str(root / name)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return root


def compare(*arguments, code=0):
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def last_json(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


def values(folder, name):
    return np.array(json.loads((folder / name / "metrics.json").read_text())["bacc"]["values"])


def test_differences_are_paired_by_seed_with_an_interval(folder):
    result = compare(folder / "a", folder / "b", "--json")
    first, second = last_json(result)["differences"]
    assert first["bacc"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "values": [0.0, 0.0, 0.0]}
    each = values(folder, "b") - values(folder, "a")
    half = 4.302653 * each.std(ddof=1) / 3**0.5
    assert second["bacc"]["values"] == pytest.approx(each.tolist(), abs=1e-3)
    assert [second["bacc"][name] for name in ("mean", "low", "high")] == pytest.approx(
        [each.mean(), each.mean() - half, each.mean() + half], abs=1e-3
    )
    title = next(line for line in result.stdout.splitlines() if "minus the baseline a" in line)
    assert "± half the 95 % interval over 3 paired seeds" in title
    assert f"{each.mean():+.1f} ± {half:.1f}" in result.stdout


def test_another_baseline_can_be_chosen_and_is_added_where_it_is_not_named(folder):
    found = last_json(compare(folder / "a", "--baseline", folder / "b", "--json"))
    assert found["baseline"] == str(folder / "b")
    assert len(found["results"]) == 2
    each = values(folder, "a") - values(folder, "b")
    assert found["differences"][1]["bacc"]["mean"] == pytest.approx(each.mean(), abs=1e-3)
    result = CliRunner().invoke(cli, ["compare", str(folder / "a"), "--baseline", str(folder)])
    assert result.exit_code == 1
    assert "is not a finished run" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other", "seeds 1-3 against 0-2"),
        ("drawn", "other test images (seed 0)"),
        ("mean", "--report mean20 against last"),
        ("one", "seeds 0 against 0-2"),
    ],
)
def test_runs_that_do_not_match_say_why_they_are_not_paired(folder, name, why):
    result = compare(folder / "a", folder / name, "--json")
    difference = last_json(result)["differences"][1]
    assert difference["unpaired"] == why
    assert difference["bacc"] is None
    assert f"not paired: {why}" in " ".join(result.stdout.split())


def test_the_function_returns_what_the_command_prints_and_what_was_skipped(folder):
    result = compare(folder / "a", folder / "b", folder, "--baseline", folder / "b", "--json")
    found = comparison.compare([str(folder / "a"), folder / "b", folder], baseline=folder / "b")
    (skipped,) = found.pop("skipped")
    assert found == last_json(result)
    assert skipped.startswith(f"{folder} is not a finished run")
    assert f"skipped: {skipped}" in result.stderr
    with pytest.raises(RunError, match=r"none of these is a finished run\nskipped: .* is not a finished run"):
        comparison.compare([folder])
    with pytest.raises(RunError, match="is not a finished run"):
        comparison.compare([folder / "a"], baseline=folder)


def test_a_single_seed_has_a_difference_and_no_interval(folder, tmp_path):
    shutil.copytree(folder / "one", tmp_path / "again")
    result = compare(folder / "one", tmp_path / "again", "--json")
    assert "one seed, so no interval" in result.stdout
    difference = last_json(result)["differences"][1]["bacc"]
    assert difference == {"mean": 0.0, "low": None, "high": None, "values": [0.0]}


def test_what_ends_below_the_probe_on_the_same_labels_says_so(folder, tmp_path):
    for name, bacc in (("a", 70.0), ("b", 69.9)):
        shutil.copytree(folder / name, tmp_path / name)
        record = json.loads((tmp_path / name / "metrics.json").read_text())
        record["bacc"]["mean"] = bacc
        (tmp_path / name / "metrics.json").write_text(json.dumps(record))
    result = compare(tmp_path / "a", tmp_path / "b", "--markdown", tmp_path / "t.md")
    assert result.stdout.count("below LP+LA") == 1
    assert (tmp_path / "t.md").read_text().count("below LP+LA") == 1
    assert "below LP+LA" not in compare(tmp_path / "b").stdout  # no probe to be below


def test_the_table_is_exported_as_csv_and_markdown(folder, tmp_path):
    compare(folder / "a", folder / "b", folder / "other", "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md")
    with (tmp_path / "t.csv").open() as file:
        table = {line["run"].split("/")[-1]: line for line in csv.DictReader(file)}
    assert float(table["b"]["bacc_mean"]) == pytest.approx(values(folder, "b").mean(), abs=1e-3)
    assert (table["b"]["order"], table["b"]["seeds"], table["b"]["gamma_l"]) == ("reversed", "0-2", "4.0")
    assert table["other"]["bacc_difference"] == ""
    each = values(folder, "b") - values(folder, "a")
    assert float(table["b"]["bacc_difference"]) == pytest.approx(each.mean(), abs=1e-3)
    head, rule, *lines = (tmp_path / "t.md").read_text().strip().splitlines()
    assert {head.count("|"), rule.count("|"), *(line.count("|") for line in lines)} == {head.count("|")}
    assert sum("baseline" in line for line in lines) == 1
    out = compare(folder / "a", "--csv", "-").stdout
    assert next(csv.reader(io.StringIO(out[out.index("run,method") :])))[:2] == ["run", "method"]


def test_runs_written_before_there_were_more_metrics_are_read(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "old")
    record = json.loads((tmp_path / "old/metrics.json").read_text())
    for name in ("hm", "worst", "mce", "audit", "group_sizes"):
        del record[name]
    (tmp_path / "old/metrics.json").write_text(json.dumps(record))
    found = last_json(compare(tmp_path / "old", folder / "a", "--csv", tmp_path / "t.csv", "--json"))
    assert found["differences"][1]["bacc"]["mean"] == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3


def test_sizes_of_groups_are_printed_where_they_are_counted(folder, tmp_path):
    flags = ["--cache", str(folder / "toy.zarr"), "--n1", "30", "--gamma-l", "4", "--groups", "counts"]
    CliRunner().invoke(cli, ["train", "zeroshot", *flags, "--out", str(tmp_path / "z")], catch_exceptions=False)
    assert (
        "classes in each group (counts): head (> 100 labelled) 0, medium 2, tail (< 20) 4"
        in compare(tmp_path / "z").stdout
    )
