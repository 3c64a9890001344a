"""The studio in a real browser: every page, every slider against the numbers of layer 4, and no other host is asked."""

import csv
import dataclasses
import re
import shutil
import socket
from urllib.parse import quote

import numpy as np
import pytest
from click.testing import CliRunner
from visitor import MODELS, Visit, launched, served_in

import fastltssl
from fastltssl.analysis import cure, history, samples
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.encoder import extract
from fastltssl.encoder.clip import load_encoder
from fastltssl.images import open_source
from fastltssl.images.source import Subset
from fastltssl.images.views import parse_views
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import training
from fastltssl.runs.folder import clear
from fastltssl.show.studio import drawing, session
from fastltssl.show.studio import map as map_page
from fastltssl.training.rows import resident

pytestmark = pytest.mark.flaky(reruns=3)  # a browser on busy cores may be late
PANEL_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning:panel", "ignore::DeprecationWarning:bokeh")


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """Two runs on the world, and one without a pool."""
    top = tmp_path_factory.mktemp("studio")
    protocol = Protocol(n1=20, m1=60, gamma_l=5, gamma_u=5)
    for method in ("ulfine", "fixmatch"):
        config = Config(method, str(world.path), protocol, (0, 3), 40, evals=4)
        drain(training(config, world, resident(world), top / method))
    config = Config("probe", str(world.path), Protocol(n1=20, gamma_l=5), (0, 3), 20, evals=2)
    drain(training(config, world, resident(world), top / "probe"))
    return top


@pytest.fixture(scope="module")
def others(world, folders, tmp_path_factory):
    """A run through the encoder, an ensemble, one that reports its best step, and one without anything to train."""
    top = tmp_path_factory.mktemp("others")
    small = f"--cache {world.path} --n1 4 --m1 4 --device cpu"
    lines = (
        f"train fixmatch --live bitfit {small} --steps 4 --evals 2 --workers 0 --batch 8 --batch-u 8 --out {top}/live",
        f"train gla --ensemble {folders}/probe --device cpu --out {top}/ensemble",
        f"train fixmatch {small} --val 2 --report val --steps 40 --evals 4 --out {top}/best",
        f"train zeroshot {small} --out {top}/zeroshot",
    )
    for line in lines:
        result = CliRunner().invoke(cli, line.split())
        assert result.exit_code == 0, (result.output, result.exception)
    return top


@pytest.fixture(scope="module")
def address(folders):
    with served_in(folders, "ulfine", "fixmatch", "probe") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with launched() as opened:
        yield opened


@pytest.fixture
def visit(browser, address):
    opened = []

    def start(query=""):
        opened.append(Visit(browser, address, query))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def scored(folders, world):
    read = {name: history.read_insight(folders / name) for name in ("ulfine", "fixmatch")}
    return {name: (one, cure.score(one, world)) for name, one in read.items()}


def expected(scored, name, knobs):
    """Accepted rows of each class, most labelled first, under some knobs."""
    read, one = scored[name]
    found = history.summary(read, cure.relabelled(one, knobs), knobs.threshold, one.truth)
    return found, read.counts.argsort(descending=True, stable=True)


def test_the_overview_shows_the_curves_of_all_runs_and_follows_the_step(visit, scored):
    opened = visit()
    for name, (read, _) in scored.items():
        opened.until(f"bacc/{name} steps=40", "y", 100 * read.curves["bacc"])
    read = scored["ulfine"][0]
    order = read.counts.argsort(descending=True, stable=True)
    opened.until("recall/ulfine steps=40", "y", 100 * read.recorded.test_recall[-1][order])
    handle = opened.page.locator(".noUi-handle").first
    handle.focus()
    for _ in range(2):
        opened.page.keyboard.press("ArrowLeft")
    opened.until("recall/ulfine steps=40", "y", 100 * read.recorded.test_recall[1][order])
    opened.asked("step", "20")


SLIDERS = {
    "Threshold (confidence)": {"threshold": 0.4},
    "Temperature": {"temperature": 2.0},
    "Logit adjustment tau": {"tau": 1.0},
    "Label-bias strength": {"bias": 0.0},
    "Fusion weight eta (1: the run alone)": {"eta": 0.9},
}


def test_each_slider_moves_the_plots_to_the_numbers_of_the_cure(visit, scored):
    opened, (_, one) = visit("?tab=1"), scored["ulfine"]
    knobs = one.neutral
    found, order = expected(scored, "ulfine", knobs)
    opened.until("counts", "accepted", found.accepted[order])
    for title, change in SLIDERS.items():
        knobs = knobs._replace(**change)
        opened.set(title, next(iter(change.values())))
        found, order = expected(scored, "ulfine", knobs)
        opened.until("counts", "accepted", found.accepted[order])
        opened.until("counts", "right", found.by_class.right[order])
        opened.until("shares", "recall", 100 * found.by_class.recall[order])
        opened.until("groups", "false", [found.by_group[f"false_{group}"] for group in ("head", "medium", "tail")])
        opened.until("confidence", "wrong", found.wrong_histogram)
    opened.set("Prior that tau takes off", "true")
    found, order = expected(scored, "ulfine", knobs._replace(prior="true"))
    opened.until("counts", "accepted", found.accepted[order])
    assert f"{100 * cure.tested(one, knobs._replace(prior='true'))['bacc']:.1f}" in opened.text()
    opened.asked("tau", "1")


def test_a_slider_moves_by_the_keyboard_too(visit, scored):
    opened, (_, one) = visit("?tab=1&run=fixmatch"), scored["fixmatch"]
    found, order = expected(scored, "fixmatch", one.neutral)
    opened.until("counts", "accepted", found.accepted[order])
    handle = opened.page.locator(".noUi-handle").nth(1)
    handle.focus()
    for _ in range(10):
        opened.page.keyboard.press("ArrowLeft")
    opened.asked("threshold", "0.6")
    found, order = expected(scored, "fixmatch", one.neutral._replace(threshold=0.6))
    opened.until("counts", "accepted", found.accepted[order])


def test_a_burst_of_moves_ends_on_the_last_one(visit, scored):
    opened, (_, one) = visit("?tab=1&run=fixmatch"), scored["fixmatch"]
    opened.columns("counts")
    for last in (0.35, 0.81, 0.52):
        for value in (*np.linspace(0.2, 0.9, 12), last):
            opened.set("Threshold (confidence)", float(value))
        found, order = expected(scored, "fixmatch", one.neutral._replace(threshold=last))
        opened.until("counts", "accepted", found.accepted[order])
        opened.until("confidence", "wrong", found.wrong_histogram)


def test_the_address_brings_back_what_was_in_view(visit, scored):
    opened = visit("?tab=1&run=fixmatch&seed=0&threshold=0.55&tau=0.5&prior=uniform&step=40")
    found, order = expected(scored, "fixmatch", scored["fixmatch"][1].neutral._replace(threshold=0.55))
    opened.until("counts", "accepted", found.accepted[order])


def test_an_address_out_of_range_is_brought_back_into_it(visit, scored):
    opened = visit("?tab=1&run=fixmatch&threshold=0.8&tau=-99&temperature=0")
    knobs = scored["fixmatch"][1].neutral._replace(threshold=0.8, tau=-1.0, temperature=0.25)
    found, order = expected(scored, "fixmatch", knobs)
    opened.until("counts", "accepted", found.accepted[order])
    assert f"{100 * cure.tested(scored['fixmatch'][1], knobs)['bacc']:.1f}" in opened.text()


def test_an_address_that_means_nothing_is_as_opened(visit, scored):
    opened = visit("?tab=none&run=%ff&seed=none&tau=much&prior=none")
    read = scored["ulfine"][0]
    opened.until("bacc/ulfine steps=40", "y", 100 * read.curves["bacc"])
    opened = visit("?tab=1&seed=0&step=27")  # between evaluations: the nearest
    found = history.summary(read, history.at_step(read, 2), read.recorded.threshold)
    order = read.counts.argsort(descending=True, stable=True)
    opened.until("counts", "accepted", found.accepted[order])


def test_back_leaves_the_page_however_many_sliders_were_moved(visit):
    opened = visit("?tab=1")
    before = opened.page.evaluate("history.length")
    for value in (0.3, 0.5, 0.7):
        opened.set("Threshold (confidence)", value)
        opened.asked("threshold", str(value))
    assert opened.page.evaluate("history.length") == before


def test_a_run_without_a_pool_shows_no_plots_of_another(visit, scored):
    opened = visit("?tab=3&run=ulfine")
    opened.page.get_by_text("Nearest labelled images").wait_for()
    opened.set("Run", "probe steps=20")
    opened.page.get_by_text("probe makes no pseudo-labels here").wait_for()
    assert opened.columns("gallery")["id"] == []
    opened = visit("?tab=1&run=probe")
    opened.page.get_by_text("probe makes no pseudo-labels here").wait_for()
    assert not opened.page.get_by_text("Accepted pseudo-labels of each class").first.is_visible()
    assert "test bAcc" in opened.text()


def test_names_are_text_and_not_markup():
    shown = drawing.table(["run"], [["<img src=x>"], [drawing.Markup("<b>own</b>")]])
    assert "&lt;img src=x&gt;" in shown
    assert "<b>own</b>" in shown


def test_an_earlier_step_shows_what_was_recorded_then(visit, scored):
    opened, (read, _) = visit("?tab=1&step=10"), scored["ulfine"]
    found = history.summary(read, history.at_step(read, 0), read.recorded.threshold)
    order = read.counts.argsort(descending=True, stable=True)
    opened.until("counts", "accepted", found.accepted[order])
    assert "work on the finished run: step 40" in opened.text()


def test_a_refit_stands_beside_the_others_and_can_be_kept(visit, folders):
    opened = visit("?tab=2&run=fixmatch")
    opened.page.get_by_role("button", name="Train again").wait_for()
    found = f"{MODELS}.find(each => each.title === 'tau' && 'value' in each)"
    opened.page.evaluate(f"() => {{ {found}.value = '1' }}")
    opened.page.get_by_role("button", name="Train again").click()
    opened.page.get_by_text("refit 1 is trained").wait_for(timeout=30000)
    assert "tau 1.0" in opened.text()
    opened.page.get_by_role("button", name="Keep this run").click()
    opened.page.get_by_text("Kept as runs").wait_for()
    kept = next((folders / "runs").iterdir())
    assert history.read_insight(kept).config.settings["tau"] == "1"
    opened.page.get_by_role("button", name="Draw the curve").click()
    opened.page.wait_for_function(
        f"() => {MODELS}.find(each => each.name === 'sweep')?.data.x.length === 5", timeout=30000
    )
    opened.page.get_by_text("Overview").click()
    assert len(opened.columns("bacc/refit 1")["y"]) == 4


def test_samples_and_map_show_the_pool_and_a_brush_picks(visit, scored):
    opened, (read, one) = visit("?tab=3"), scored["ulfine"]
    labels = cure.relabelled(one, one.neutral)
    rows = samples.chosen(read, labels, one.truth, samples.Wanted())
    opened.until("gallery", "row", rows[:24])
    cards = opened.columns("gallery")
    assert cards["id"] == samples.ids_of(read, rows[:24])
    assert all(url.startswith("data:image/png") for url in opened.columns("pictures")["url"])
    opened.page.get_by_text("Nearest labelled images").wait_for()
    opened.set("Predicted group", "tail")
    opened.until("gallery", "row", samples.chosen(read, labels, one.truth, samples.Wanted(group=2))[:24])
    opened.asked("group", "tail")
    opened.set("Predicted group", "any")
    opened.until("gallery", "row", rows[:24])
    box = opened.page.locator(".bk-Figure").first.bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] / 6)  # the third
    opened.asked("row", str(rows[2]))
    opened.page.get_by_text(samples.ids_of(read, rows[2:3])[0], exact=True).first.wait_for()
    opened.page.get_by_text("Map", exact=True).click()
    every = np.arange(len(labels.label))
    opened.until("map", "x", samples.flat_pca(one, every)[:, 0])
    opened.page.evaluate(f"{MODELS}.find(each => each.name === 'map').selected.indices = [3, 4, 5, 6, 7, 8, 9, 10, 11]")
    opened.page.get_by_text("9 rows are picked").wait_for()
    opened.page.get_by_text("Samples", exact=True).click()
    wanted = samples.Wanted(rows=every[3:12])
    opened.until("gallery", "row", samples.chosen(read, labels, one.truth, wanted))
    opened.page.get_by_role("button", name="Forget the map's choice").click()
    opened.until("gallery", "row", rows[:24])
    opened.page.get_by_text("Map", exact=True).click()
    picked = f"{MODELS}.find(each => each.name === 'map').selected.indices.length"
    opened.page.wait_for_function(f"() => {picked} === 0")
    opened.set("Run", "fixmatch steps=40")
    opened.asked("row", None)


def test_a_link_brings_back_filters_colours_and_knobs(visit, scored):
    read, one = scored["ulfine"]
    labels = cure.relabelled(one, one.neutral)
    opened = visit("?tab=3&show=all&label=" + quote(read.classes[3]) + "&confidence=0.2~0.9&row=7")
    wanted = samples.Wanted(kind="all", label=3, low=0.2, high=0.9)
    opened.until("gallery", "row", samples.chosen(read, labels, one.truth, wanted)[:24])
    assert samples.ids_of(read, np.array([7]))[0] in opened.text()
    opened = visit("?tab=4&colour=group")
    groups = read.groups[labels.label].tolist()
    opened.page.get_by_text("blue head, yellow medium, pink tail").wait_for()
    assert opened.columns("map")["color"] == [drawing.GROUP_COLORS[group] for group in groups]
    opened = visit("?tab=2&run=fixmatch&set.tau=0.7&points=9&knob=threshold")
    opened.page.get_by_role("button", name="Train again").wait_for()
    found = "[...Bokeh.documents[0]._all_models.values()].find(each => each.title === '{}' && 'value' in each).value"
    assert [opened.page.evaluate(found.format(name)) for name in ("tau", "Points", "Knob")] == ["0.7", "9", "threshold"]
    opened.set("Run", "ulfine steps=40")
    opened.page.wait_for_function("() => !location.search.includes('set.tau')")


def test_what_a_refit_refuses_is_told(visit):
    opened = visit("?tab=2&run=fixmatch&set.tau=much")
    button = opened.page.get_by_role("button", name="Train again")
    button.click()
    opened.page.get_by_text("tau='much' is not a number").wait_for()
    opened.set("tau", "0")
    opened.set("threshold", "2")
    button.click()
    opened.page.get_by_text("threshold=2 is outside").wait_for()


def test_a_sweep_that_ends_under_another_run_is_dropped(visit):
    opened = visit("?tab=2&run=fixmatch&points=15")
    button = opened.page.get_by_role("button", name="Draw the curve")
    button.click()
    opened.set("Run", "probe steps=20")
    opened.page.get_by_text("lambda_u", exact=True).first.wait_for(state="detached")
    opened.page.wait_for_function(
        f"() => {MODELS}.some(each => each.label === 'Draw the curve' && !each.disabled)", timeout=60000
    )
    assert not opened.page.get_by_text("pseudo-labels right", exact=True).nth(1).is_visible()
    with opened.page.expect_download() as waiting:
        opened.page.get_by_text("CSV of what is shown").click()
    lines = waiting.value.path().read_text().splitlines()
    assert waiting.value.suggested_filename == "probe-steps=20-seed0-refit.csv"
    assert [line.split(",")[0] for line in lines[1:4]] == [f"{name} steps={n}" for name, n in
            (("ulfine", 40), ("fixmatch", 40), ("probe", 20))]  # fmt: skip
    assert "sweep of" not in "".join(lines)


def test_a_run_that_is_deleted_meanwhile_is_told_and_leaves_the_others_alone(browser, folders, tmp_path):
    for name in ("ulfine", "fixmatch"):
        shutil.copytree(folders / name, tmp_path / name)
    read = history.read_insight(tmp_path / "fixmatch", 3)
    with served_in(tmp_path, "ulfine", "fixmatch") as address:
        one = Visit(browser, address, "?tab=1")
        one.columns("counts")
        shutil.rmtree(tmp_path / "ulfine")
        one.page.get_by_text("Samples", exact=True).click()
        one.page.get_by_text("ulfine steps=40 cannot be read").wait_for()
        one.set("Seed", "3")
        one.page.get_by_text("is not a finished run").wait_for()
        one.set("Run", "fixmatch steps=40")
        one.page.get_by_text("Overview").click()
        one.until("bacc/fixmatch steps=40", "y", 100 * read.curves["bacc"])
        one.page.get_by_text("cannot be read").wait_for(state="detached")
        one.close()


def test_a_pool_without_true_labels_shows_neither_right_nor_wrong(browser, tmp_path):
    source = open_source("world:mild:30:8")
    pool = source.groups["train"]
    hidden = Subset(tuple(f"u{k}" for k in range(400)), np.full(400, -1), pool, np.arange(400))
    source = source._replace(groups=source.groups | {"unlabeled": hidden})
    work = extract.extract(source, load_encoder("tiny", None), parse_views("center,weak:1,strong:1"),
                           tmp_path / "cache.zarr", templates="world")  # fmt: skip
    drain(work)
    cache = open_cache(tmp_path / "cache.zarr")
    config = Config("fixmatch", str(cache.path), Protocol(n1=10), (0,), 20, evals=2)
    drain(training(config, cache, resident(cache), tmp_path / "run"))
    read = history.read_insight(tmp_path / "run")
    found = history.summary(read, history.at_step(read), read.recorded.threshold)
    with served_in(tmp_path, "run") as address:
        one = Visit(browser, address, "?tab=1")
        order = read.counts.argsort(descending=True, stable=True)
        one.until("counts", "accepted", found.accepted[order])
        one.until("counts", "right", found.accepted[order])
        legend = "each.type === 'LegendItem' && ['accepted', 'all rows'].includes(each.label.value)"
        assert one.page.evaluate(f"{MODELS}.filter(each => {legend}).length") >= 2
        one.page.get_by_text("nothing tells right from wrong").wait_for()
        assert "Precision and recall of each class" not in one.text()
        one.page.get_by_text("Samples", exact=True).click()
        one.page.wait_for_function(f"() => {MODELS}.find(each => each.name === 'gallery')?.data.row.length === 24")
        assert set(one.columns("gallery")["color"]) == {drawing.GREY}
        one.close()


def test_runs_without_sliders_show_their_history_and_say_why(browser, others):
    with served_in(others, "live", "ensemble", "best", "zeroshot") as address:
        one = Visit(browser, address, "?tab=3")
        one.page.get_by_text("was trained through the encoder").first.wait_for()
        read = history.read_insight(others / "live")
        rows = samples.chosen(read, history.at_step(read), read.truth, samples.Wanted())[:24]
        one.until("gallery", "row", rows)
        cards = one.columns("gallery")
        assert cards["id"] == samples.ids_of(read, rows)
        assert all(url.startswith("data:image/png") for url in one.columns("pictures")["url"])
        one.page.get_by_text("Map", exact=True).click()
        one.page.get_by_text("was trained through the encoder").first.wait_for()
        one.page.get_by_text("Overview").click()
        one.until("bacc/fixmatch live bitfit steps=4", "y", 100 * read.curves["bacc"])
        assert "that is best on validation rows" in one.text()
        one.set("Run", "gla ensemble=probe tau=1")
        for tab in ("Pseudo-labels", "Refit", "Samples", "Map"):
            one.page.get_by_text(tab, exact=True).click()
            one.page.get_by_text("so it has no head to move").first.wait_for()
        one.set("Run", "zeroshot")
        one.page.get_by_text("Refit", exact=True).click()
        one.page.get_by_text("A small sweep").wait_for()
        one.page.wait_for_function(f"() => !{MODELS}.some(each => each.title === 'lr')")
        one.close()


def test_a_run_that_was_trained_anew_is_read_again(world, tmp_path):
    config = Config("fixmatch", str(world.path), Protocol(n1=8, m1=8), (0,), 4, evals=1)
    drain(training(config, world, resident(world), tmp_path / "run"))
    first = session.at_hand(tmp_path / "run", None)
    assert session.at_hand(tmp_path / "run", None) is first
    clear(tmp_path / "run")
    assert session.at_hand(tmp_path / "run", None) is first  # while it is being trained
    drain(training(dataclasses.replace(config, steps=6), world, resident(world), tmp_path / "run"))
    assert session.at_hand(tmp_path / "run", None).steps.tolist() == [6]


def test_a_map_of_many_rows_takes_some_evenly(monkeypatch, scored):
    read, one = scored["ulfine"]
    monkeypatch.setattr(map_page, "POINTS", 50)
    monkeypatch.setattr(map_page, "_KEPT", {})
    shown = session.Shown(None, read, one, "", 0, one.neutral, *[None] * 6)
    rows, places = map_page.placed(shown, "PCA")
    assert rows[[0, -1]].tolist() == [0, len(one.task.problem.u) - 1]
    assert places.shape == (len(rows), 2)
    assert len(rows) == 50


def test_visitors_do_not_disturb_each_other(visit, scored):
    first, second = visit("?tab=1"), visit("?tab=1")
    found, order = expected(scored, "ulfine", scored["ulfine"][1].neutral)
    second.until("counts", "accepted", found.accepted[order])
    first.set("Threshold (confidence)", 0.2)
    moved, _ = expected(scored, "ulfine", scored["ulfine"][1].neutral._replace(threshold=0.2))
    first.until("counts", "accepted", moved.accepted[order])
    second.until("counts", "accepted", found.accepted[order])


def test_what_is_shown_can_be_kept_as_a_file_and_seen_on_a_dark_theme(visit, scored):
    opened = visit("?tab=1&theme=dark")
    opened.columns("counts")
    with opened.page.expect_download() as waiting:
        opened.page.get_by_text("CSV of what is shown").click()
    lines = waiting.value.path().read_text().splitlines()
    assert waiting.value.suggested_filename == "ulfine-steps=40-seed0-pseudo-labels.csv"
    assert lines[0].startswith(
        "plot,class,labelled,accepted,right,true,precision_percent,recall_percent,step,threshold"
    )
    rows = list(csv.DictReader(lines))
    found, order = expected(scored, "ulfine", scored["ulfine"][1].neutral)
    classes = [row for row in rows if row["plot"] == "classes"]
    assert [int(row["accepted"]) for row in classes] == found.accepted[order].tolist()
    wrong = sum(int(row["rows"]) for row in rows if row["plot"] == "confusion")
    assert wrong == sum(int(row["wrong"]) for row in rows if row["plot"] == "false by group")
    assert wrong == int((found.accepted - found.by_class.right).sum())
    binned = [row for row in rows if row["plot"] == "confidence"]
    assert [int(row["right"]) for row in binned] == found.right_histogram.tolist()
    opened.page.get_by_text("Overview").click()
    opened.columns("recall/ulfine steps=40")
    with opened.page.expect_download() as waiting:
        opened.page.get_by_text("CSV of what is shown").click()
    rows = list(csv.DictReader(waiting.value.path().read_text().splitlines()))
    read = scored["ulfine"][0]
    recall = [float(row["recall_percent"]) for row in rows if row["plot"] == "recall of each class"][:40]
    assert recall == pytest.approx((100 * read.recorded.test_recall[-1][order.numpy()]).tolist())
    assert {row["plot"] for row in rows} == {"over training", "recall of each class", "reliability"}
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 200


@PANEL_WARNINGS
def test_a_notebook_gets_a_frame_and_other_hosts_need_the_token(browser, folders):
    from fastltssl.show.studio import served

    opened = fastltssl.studio(folders / "ulfine")
    try:
        assert opened.address.startswith("http://127.0.0.1:")
        assert f'<iframe src="{opened.address}"' in opened._repr_html_()
        one = Visit(browser, opened.address, "?tab=1")
        one.columns("counts")
        one.close()
    finally:
        opened.stop()
    server, address = served((folders / "ulfine",), "0.0.0.0", 0, in_thread=True)
    try:
        assert socket.gethostname() in address
        plain, token = address.replace(socket.gethostname(), "127.0.0.1").split("?token=")
        one = Visit(browser, plain)
        one.page.get_by_text("Token, as the terminal shows it").wait_for()
        assert "Threshold" not in one.text()
        one.page.locator("input[type=password]").fill("guess")
        one.page.keyboard.press("Enter")
        one.page.get_by_text("That is not the token").wait_for()
        one.page.locator("input[type=password]").fill(token)
        one.page.keyboard.press("Enter")
        one.page.get_by_text("Threshold (confidence)").wait_for()
        one.asked("token", token)
        one.close()
    finally:
        server.stop()


def test_messages_of_the_command(tmp_path):
    refused = CliRunner().invoke(cli, ["studio", str(tmp_path)])
    assert "is not a finished run" in str(refused.exception)
    assert "studio" in CliRunner().invoke(cli, ["--help"]).output
