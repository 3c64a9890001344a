"""The report of runs: its numbers are those of analysis.history, and the file opens without a server or a network."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_cache
from click.testing import CliRunner

from fastltssl.analysis import history
from fastltssl.cache.imports import import_features
from fastltssl.commands.cli import cli
from fastltssl.errors import FigureError
from fastltssl.live.modes import Live
from fastltssl.show.names import names_of
from fastltssl.show.report import exhibits
from fastltssl.show.report import figures as run_figures
from fastltssl.show.report.sections import sections
from fastltssl.show.study_figures import sweep_figure

PROTOCOL = ["--n1", "12", "--m1", "20", "--gamma-l", "4", "--gamma-u", "4", "--steps", "20", "--evals", "4"]
CHROMIUM = shutil.which("chromium")
QUIET = ["quic", "background-networking", "component-update", "sync", "gpu"]
ARGUMENTS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def many_classes(path, n_classes=100):
    """Rows of many classes, whose names hold markup."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=(n_classes, 16))

    def rows(y):
        return (center[y] + 0.9 * rng.normal(size=(len(y), 16))).astype("f4")

    labels, test_labels = np.arange(n_classes * 32) % n_classes, np.arange(n_classes * 3) % n_classes
    import_features(
        path,
        features=rows(labels),
        labels=labels,
        text=(center + 0.4 * rng.normal(size=center.shape)).astype("f4"),
        classes=tuple(f"<b>sweet & sour {k}</b><script>alert({k})</script> $x_{k}$" for k in range(n_classes)),
        test_features=rows(test_labels),
        test_labels=test_labels,
        emulate="weak:1:0.2,strong:1:0.5:0.1",
        logit_scale=20.0,
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs ulfine, adello, gla and probe of two seeds with a report of each and of all, and wide, of 100 classes."""
    root = tmp_path_factory.mktemp("report")
    cache, seeds = toy_cache.write(root / "toy.zarr", noise=1.6).path, ("--seeds", "0-1")
    for name in ("ulfine", "adello", "gla", "probe"):
        run("train", name, "--cache", cache, *PROTOCOL, *seeds, "--out", root / name)
    run("train", "ulfine", "--cache", many_classes(root / "wide.zarr"), *PROTOCOL, "--out", root / "wide")
    folders = [root / name for name in ("ulfine", "adello", "gla", "probe")]
    run("report", *folders, "--out", root / "all.html")
    run("report", root / "probe", "--out", root / "probe.html")
    run("report", root / "wide", "--out", root / "wide.html")
    return root


def lines(path, name):
    """The lines of an embedded CSV."""
    found = re.search(rf'download="{name}.csv" href="data:text/csv;base64,([^"]*)"', path.read_text())
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[1]).decode())))


def column(rows, name):
    return [float(row[name]) if row[name] else float("nan") for row in rows]


@pytest.mark.parametrize("name", ["ulfine", "adello"])
def test_the_numbers_of_each_class_are_those_of_the_history_most_labelled_first(folder, name):
    one = history.read_insight(folder / name)
    found = history.summary(one, history.at_step(one), one.recorded.threshold).by_class
    order = sorted(range(6), key=lambda k: (-int(one.counts[k]), k))
    accuracy = lines(folder / "all.html", f"test-accuracy-by-class-{name}-steps=20")
    assert [row["class"] for row in accuracy] == [one.classes[k] for k in order]
    assert [row["group"] for row in accuracy] == ["head"] * 2 + ["medium"] * 2 + ["tail"] * 2
    expected = 100 * one.recorded.test_recall[-1][order]
    np.testing.assert_allclose(column(accuracy, "accuracy_percent"), expected, rtol=1e-5)
    counts = lines(folder / "all.html", f"accepted-and-true-rows-by-class-{name}-steps=20")
    for kind in ("true", "accepted", "right"):
        assert column(counts, kind) == getattr(found, kind)[order].tolist()
    shares = lines(folder / "all.html", f"precision-and-recall-by-class-{name}-steps=20")
    for kind in ("precision", "recall"):
        np.testing.assert_allclose(
            column(shares, f"{kind}_percent"), 100 * getattr(found, kind)[order].numpy(), rtol=1e-5
        )


def test_the_curves_over_training_are_those_of_the_history(folder):
    one = history.read_insight(folder / "adello")
    for name, kind, curve, factor in [
        ("balanced-accuracy", "bacc_percent", "bacc", 100),
        ("mask-rate", "accepted_percent", "pseudo_mask_rate", 100),
        ("estimated-prior-against-the-true-one", "kl_nats", "prior_kl", 1),
        ("accepted-labels-against-the-true-prior", "kl_nats", "pseudo_kl", 1),
        ("mean-confidence-of-wrong-pseudo-labels", "wrong_confidence_percent", "pseudo_wrong_confidence", 100),
        ("expected-calibration-error", "ece_percent", "ece", 100),
    ]:
        own = [row for row in lines(folder / "all.html", name) if row["run"] == "adello steps=20"]
        assert column(own, "step") == one.steps.tolist()
        np.testing.assert_allclose(column(own, kind), factor * one.curves[curve], rtol=1e-4, atol=1e-6)


def test_false_labels_histogram_calibration_and_confusion_are_those_of_the_history(folder):
    one = history.read_insight(folder / "ulfine")
    found, page = history.summary(one, history.at_step(one), one.recorded.threshold), folder / "all.html"
    ends = [row for row in lines(page, "false-labels-at-the-end") if row["run"] == "ulfine steps=20"]
    assert {row["group"]: float(row["false_rows"]) for row in ends} == {
        group: found.by_group[f"false_{group}"] for group in ("head", "medium", "tail")
    }
    bars = lines(page, "histogram-at-the-end-ulfine-steps=20")
    assert column(bars, "right") == found.right_histogram.tolist()
    assert column(bars, "wrong") == found.wrong_histogram.tolist()
    points = lines(page, "reliability-of-test-predictions-ulfine-steps=20")
    count = one.recorded.test_reliability[-1][:, :, 0]
    assert sum(column(points, "rows")) == pytest.approx(count.sum())
    pairs = lines(page, "confusion-ulfine-steps=20")
    counted = {(row["true"], row["label"]): int(row["rows"]) for row in pairs}
    names = one.classes
    assert counted == {(names[k], names[j]): int(found.confusion[k, j]) for k, j in found.confusion.nonzero().tolist()}


def test_the_state_of_each_method_is_shown(folder):
    page = folder / "all.html"
    for name in ("ulfine", "adello"):
        one = history.read_insight(folder / name)
        for item in history.method_state(one):
            rows = lines(page, exhibits.slug(f"{item.title} {name} steps=20"))
            values = sorted(column(rows, "value"))
            np.testing.assert_allclose(values, np.sort(item.values.ravel()), rtol=1e-4, atol=1e-6)
    for name in ("gla", "ulfine"):  # the two that subtract a label bias
        bias = lines(page, f"label-bias-of-the-zero-shot-scores-{name}-steps=20")
        assert len(bias) == 6
        assert sum(column(bias, "value")) == pytest.approx(0, abs=1e-4)
        assert min(column(bias, "standard_error")) > 0
    assert "label-bias-of-the-zero-shot-scores-adello" not in page.read_text()


def test_the_table_has_mean_and_spread_over_seeds(folder):
    record = json.loads((folder / "ulfine" / "metrics.json").read_text())
    text = (folder / "all.html").read_text()
    assert f"<td>{record['bacc']['mean']:.1f} ± {record['bacc']['std']:.1f}</td>" in text
    row = next(row for row in lines(folder / "all.html", "results") if row["method"] == "ulfine")
    assert float(row["bacc_mean"]) == record["bacc"]["mean"]
    assert record["cache_fingerprint"] in text
    assert "steps: 20" in text  # config.yaml


def test_a_section_without_numbers_says_so_in_one_line(folder):
    text = (folder / "probe.html").read_text()
    start, end = text.index('<h2 id="s3">'), text.index('<h2 id="s4">')
    assert "probe steps=20: no pseudo-labels are made." in text[start:end]
    assert "<svg" not in text[start:end]
    assert "gla steps=20, probe steps=20: no pseudo-labels are made." in (folder / "all.html").read_text()


def test_a_live_run_says_so_and_one_below_the_probe_is_marked(folder, tmp_path):
    copy, strong = tmp_path / "live", tmp_path / "strong"
    for name, path in (("ulfine", copy), ("probe", strong)):
        shutil.copytree(folder / name, path)
    record = json.loads((copy / "metrics.json").read_text()) | {"live": dataclasses.asdict(Live("adaptformer:4"))}
    (copy / "metrics.json").write_text(json.dumps(record))
    probe = json.loads((strong / "metrics.json").read_text())
    probe["bacc"]["mean"] = 101.0
    (strong / "metrics.json").write_text(json.dumps(probe))
    run("report", copy, strong, "--out", tmp_path / "page.html")
    assert "below LP+LA; live: trained through the encoder (adaptformer:4)" in (tmp_path / "page.html").read_text()


def test_names_with_markup_are_escaped_in_a_file_of_100_classes_below_5_mb(folder):
    page = folder / "wide.html"
    text = page.read_text()
    assert page.stat().st_size < 5_000_000
    assert "<b>sweet" not in text
    assert "<script" not in text
    assert "&lt;b&gt;sweet &amp; sour" in text
    assert len(lines(page, "test-accuracy-by-class-ulfine-steps=20")) == 100


def test_nothing_refers_to_a_network(folder):
    for name in ("all", "wide", "probe"):
        text = (folder / f"{name}.html").read_text()
        assert "http" not in text
        assert set(re.findall(r'(?:href|src)="(#|data:|[^"]*)', text)) == {"#", "data:"}
        assert "@import" not in text
        assert len(re.findall(r' id="([^"]*)"', text)) == len(set(re.findall(r' id="([^"]*)"', text)))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_files_too(folder, tmp_path, kind):
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    result = run("report", folder / "probe", "--out", out, "--figures", figures, "--format", kind, "--json")
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["bytes"] == out.stat().st_size
    assert found["runs"] == [str(folder / "probe")]
    assert sorted(found["figures"]) == sorted(map(str, figures.glob(f"*.{kind}")))
    assert len(found["figures"]) == out.read_text().count("<svg ")
    assert (figures / f"2-test-accuracy-by-class-probe-steps=20.{kind}").stat().st_size > 1000


def test_the_seed_of_the_figures_can_be_chosen_and_must_be_one_of_the_run(folder, tmp_path):
    run("report", folder / "ulfine", "--seed", "1", "--out", tmp_path / "page.html")
    one = history.read_insight(folder / "ulfine", 1)
    found = column(lines(tmp_path / "page.html", "balanced-accuracy"), "bacc_percent")
    np.testing.assert_allclose(found, 100 * one.curves["bacc"], rtol=1e-4)
    assert "Figures show seed 1" in (tmp_path / "page.html").read_text()
    error = run("report", folder / "ulfine", "--seed", "7", "--out", tmp_path / "none.html", code=1).exception
    assert "has no seed 7, only 0, 1" in str(error)


def test_a_folder_that_is_no_run_or_not_whole_is_refused_by_name(folder, tmp_path):
    error = run("report", tmp_path, "--out", tmp_path / "page.html", code=1).exception
    assert f"{tmp_path} is not a finished run" in str(error)
    shutil.copytree(folder / "probe", tmp_path / "copy")
    (tmp_path / "copy" / "environment.json").unlink()
    error = run("report", tmp_path / "copy", "--out", tmp_path / "page.html", code=1).exception
    assert f"{tmp_path / 'copy' / 'environment.json'} cannot be read" in str(error)
    assert not (tmp_path / "page.html").exists()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_drawn(folder, tmp_path):
    (tmp_path / "taken").touch()
    assert "is a directory" in run("report", folder / "probe", "--out", tmp_path, code=2).stderr
    result = run("report", folder / "probe", "--out", tmp_path / "taken" / "page.html", code=2)
    assert f"{tmp_path / 'taken'} cannot be a folder to write into" in result.stderr


def test_settings_that_differ_in_a_sign_have_files_of_their_own():
    assert exhibits.slug("Mask rate fixmatch tau=-1") == "mask-rate-fixmatch-tau=-1"
    assert exhibits.slug("probe (a/b) <x>") == "probe-a-b-x"


def test_without_its_cache_a_run_has_its_label_bias_without_standard_errors(folder, tmp_path):
    shutil.copytree(folder / "gla", tmp_path / "gla")
    config = tmp_path / "gla" / "config.yaml"
    config.write_text(re.sub(r"^cache: .*$", "cache: gone.zarr", config.read_text(), flags=re.MULTILINE))
    (tmp_path / "gla" / "environment.json").write_text('{"cache": "/gone.zarr"}')
    result = run("report", tmp_path / "gla", "--out", tmp_path / "page.html")
    assert f"no standard errors of the label bias of {tmp_path / 'gla'}: no cache 'gone.zarr'" in result.stderr
    name = "label-bias-of-the-zero-shot-scores-gla-steps=20"
    alone, whole = lines(tmp_path / "page.html", name), lines(folder / "all.html", name)
    assert column(alone, "value") == pytest.approx(column(whole, "value"), rel=1e-4, abs=1e-5)
    assert "standard_error" not in alone[0]


def test_a_pool_without_known_labels_still_has_counts_and_confidence(folder):
    one = history.read_insight(folder / "ulfine")._replace(truth=None)
    case = exhibits.cases([one])[0]
    with run_figures.house_style():
        found = {one.title: one for one in sections([case])}
    counts, shares = found["Pseudo-labels of each class"].exhibits
    assert counts.plots[0].lines[0]["right"] is None
    assert shares.missing == ["ulfine steps=20: the true labels of the pool are not known."]
    assert found["Confusion of pseudo-labels"].exhibits[0].plots == []


def test_runs_of_one_method_are_told_apart_by_their_folders(folder, tmp_path):
    shutil.copytree(folder / "probe", tmp_path / "twin")
    run("report", folder / "probe", tmp_path / "twin", folder / "probe", "--out", tmp_path / "page.html")
    rows = lines(tmp_path / "page.html", "balanced-accuracy")
    assert {row["run"] for row in rows} == {"probe steps=20 (probe)", "probe steps=20 (twin)"}


def test_without_matplotlib_the_message_names_the_extra(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = run("report", folder / "probe", "--out", tmp_path / "page.html", code=1).exception
    assert isinstance(error, FigureError)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FigureError):
        sweep_figure({"space": {}, "importance": {}, "metric": "val.bacc", "trials": []}, tmp_path / "sweep.png")
    assert "fastltssl[plots]" in str(error)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_opens_the_file_without_an_error_or_a_request(folder):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright for Python is not installed")
    told, asked = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, scheme, width in (("all", "light", 1280), ("wide", "dark", 390)):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: told.append(message.text))
            page.on("pageerror", lambda error: told.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto((folder / f"{name}.html").as_uri())
            assert page.locator("svg").count() == (folder / f"{name}.html").read_text().count("<svg ")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 384) == (scheme == "dark")
        browser.close()
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [
        (folder / f"{name}.html").as_uri() for name in ("all", "wide")
    ]


def test_a_folder_that_is_no_run_is_skipped_beside_others(folder, tmp_path):
    (tmp_path / "bias").mkdir()
    result = run("report", tmp_path / "bias", folder / "probe", "--out", tmp_path / "page.html")
    assert f"skipped: {tmp_path / 'bias'} is not a finished run" in result.output
    assert "1 run," in result.output


def test_runs_are_named_by_what_tells_them_apart():
    def record(method, order="reversed"):
        return {"method": method, "settings": {}, "steps": 500, "lr": 0.03, "protocol": {"order": order}}

    records = [record("probe"), record("gla"), record("gla", "consistent"), record("ulfine"), record("ulfine")]
    folders = [Path("runs", name) for name in "abcde"]
    pools = ["gla, reversed pool", "gla, consistent pool"]
    assert names_of(records, folders) == ["probe", *pools, "ulfine (d)", "ulfine (e)"]
    same = names_of([record("gla")] * 2, [Path("one", "run"), Path("two", "run")])
    assert same == [f"gla ({Path(top, 'run').resolve()})" for top in ("one", "two")]
