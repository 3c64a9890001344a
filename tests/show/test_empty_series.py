"""Runs in which there is nothing to show: no row was wrong, none accepted, one class, one evaluation, no test rows.

Every warning is an error here, as in all tests.
"""

import numpy as np
import pytest
from shell import invoke

from fastltssl.analysis.history import curve, read_insight
from fastltssl.cache.imports import import_features

POOL = ("--n1", 9, "--m1", 9, "--gamma-l", 2)
RUNS = {  # name -> number of classes, class without test rows, arguments of train
    "nothing wrong": (5, None, ("fixmatch", *POOL, "--steps", 9)),
    "nothing accepted": (5, None, ("fixmatch", *POOL, "--steps", 9, "--set", "threshold=2")),
    "one class": (1, None, ("fixmatch", "--n1", 9, "--m1", 9, "--steps", 3)),
    "two classes": (2, None, ("ulfine", *POOL, "--steps", 3)),
    "a class without test rows": (5, 2, ("fixmatch", *POOL, "--steps", 3)),
    "one evaluation": (5, None, ("fixmatch", *POOL, "--steps", 1, "--evals", 1)),
    "one row a class": (5, None, ("fixmatch", "--n1", 1, "--m1", 1, "--steps", 3)),
    "no pool": (5, None, ("probe", *POOL[:2], "--steps", 3)),
    "nothing trained": (1, None, ("zeroshot", *POOL[:2])),
}


def easy(path, n_classes, untested):
    """A cache of features that are told apart without a mistake."""
    rng = np.random.default_rng(0)
    center = 9 * np.eye(8)[:n_classes]
    labels, tested = np.arange(n_classes * 30) % n_classes, np.arange(n_classes * 6) % n_classes
    tested = tested[tested != untested]

    def rows(y):
        return (center[y] + 0.01 * rng.normal(size=(len(y), 8))).astype("f4")

    import_features(
        path, features=rows(labels), labels=labels, text=center.astype("f4"), test_features=rows(tested),
        test_labels=tested, emulate="weak:1:0.01,strong:1:0.01:0.1", logit_scale=20.0,
        classes=[f"class {k}" for k in range(n_classes)],
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A cache for each number of classes, and every run."""
    top = tmp_path_factory.mktemp("empty")
    for name, (n_classes, untested, arguments) in RUNS.items():
        cache = top / f"{n_classes}-{untested}.zarr"
        if not cache.exists():
            easy(cache, n_classes, untested)
        invoke("train", *arguments, "--cache", cache, "--out", top / name)
    return top


@pytest.mark.parametrize("name", RUNS)
def test_a_report_and_its_figures_say_what_there_is_not(top, name, tmp_path):
    invoke("report", top / name, "--out", tmp_path / "page.html", "--figures", tmp_path / "figures")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len([*(tmp_path / "figures").iterdir()]) == page.count("<svg ")
    wanted = {"nothing wrong": "there was nothing to measure it on", "nothing accepted": "nothing is accepted"}
    assert wanted.get(name, "") in page
    assert ">nan" not in page


def test_a_curve_that_was_never_measured_is_nan_throughout(top):
    run = read_insight(top / "nothing wrong")
    assert "pseudo_wrong_confidence" not in run.curves
    assert np.isnan(curve(run, "pseudo_wrong_confidence")).tolist() == [True] * len(run.steps)
    assert curve(run, "bacc").tolist() == run.curves["bacc"].tolist()


def test_all_of_them_stand_side_by_side(top, tmp_path):
    invoke("report", *(top / name for name in RUNS), "--out", tmp_path / "page.html")
    assert "compared 9 runs" in invoke("compare", *(top / name for name in RUNS), "--csv", "-").output


@pytest.mark.parametrize("cache", ["1-None.zarr", "2-None.zarr", "5-2.zarr", "5-None.zarr"])
@pytest.mark.parametrize(
    "command",
    ["bias --n1 9 --out OUT", "bias --n1 9 --scale joint --seeds 0-1 --out OUT",
     "analyze pseudo-labels --n1 9 --m1 5 --steps 2 --gamma-u 1 --methods fixmatch:threshold=1,fixmatch --out OUT",
     "sweep probe --n1 5 --val 2 --trials 1 --steps 2 --sampler random --out OUT"],
)  # fmt: skip
def test_a_study_of_few_classes_seeds_and_trials_has_its_picture(top, tmp_path, cache, command):
    arguments = [str(tmp_path / "out") if part == "OUT" else part for part in command.split()]
    invoke(*arguments, "--cache", top / cache)
    assert [path for path in (tmp_path / "out").glob("*.png") if path.stat().st_size > 5000]
