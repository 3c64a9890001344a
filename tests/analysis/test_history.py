"""The numbers behind a run: its own at the neutral knobs, and slow loops for everything else."""

import dataclasses
import importlib.machinery
import shutil
import sys
import types

import numpy as np
import pytest
import torch
import toy_cache

from fastltssl.analysis import cure, history, refit, samples
from fastltssl.cache.splits import Protocol
from fastltssl.errors import MapError, RunError, UnknownKnob
from fastltssl.functional import metrics
from fastltssl.live.modes import Live
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import training
from fastltssl.training.rows import resident
from fastltssl.training.streams import views_of

LONG_TAIL = Protocol(n1=20, m1=60, gamma_l=5, gamma_u=5)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Runs of several methods on the world, by name, each read back and scored."""
    top, rows, found = tmp_path_factory.mktemp("history"), resident(world), {}
    settings = {"ulfine": {}, "fixmatch": {}, "gla": {}, "adello": {}, "finessl": {}, "zeroshot": {}}
    settings |= {"ulfine-paper": {"alpha": "confidence", "align": "zscore", "debias": "off"}}
    for name, own in settings.items():
        config = Config(name.split("-")[0], str(world.path), LONG_TAIL, (0, 3), 40, settings=own, evals=4)
        drain(training(config, world, rows, top / name))
        read = history.read_insight(top / name, 3)
        found[name] = read, cure.score(read, world)
    return found


@pytest.mark.parametrize("name", ["fixmatch", "ulfine", "ulfine-paper", "adello", "finessl"])
def test_the_neutral_knobs_give_the_pseudo_labels_the_run_recorded(trained, name):
    read, scored = trained[name]
    labels, recorded = cure.relabelled(scored, scored.neutral), history.at_step(read)
    assert torch.equal(labels.label, recorded.label)
    assert torch.equal(labels.confidence.half().float(), recorded.confidence)


@pytest.mark.parametrize("name", ["fixmatch", "ulfine", "ulfine-paper", "gla", "zeroshot"])
def test_the_neutral_knobs_give_the_test_metrics_the_run_recorded(trained, name):
    read, scored = trained[name]
    found = cure.tested(scored, scored.neutral)
    for metric in ("top1", "bacc", "tail", "ece"):
        assert found[metric] == read.curves[metric][-1]


def test_each_knob_of_ulfine_does_what_its_equation_says(trained):
    _, scored = trained["ulfine"]
    method, run, problem = scored.trained.method, scored.trained.run, scored.task.problem
    x = problem.u[:, views_of(problem, "weak")[0]].float()
    each = method.scores(run.params, run.state, x)
    raw = each["text"] + run.state.log_bias
    prior = np.bincount(scored.truth, minlength=40) / len(scored.truth)
    knobs = scored.neutral._replace(temperature=1.7, tau=0.6, prior="true", eta=0.8, bias=0.4)
    text = 2 * run.params["c"] * (raw - 0.4 * run.state.log_bias)
    z = 0.8 * 2 * run.params["a"] * each["probe"] + 0.2 * text
    z = (z - 0.6 * torch.from_numpy(np.log(np.maximum(prior, 1e-12))).float()) / 1.7
    found = cure.relabelled(scored, knobs)
    assert torch.allclose(found.confidence, z.softmax(dim=-1).amax(dim=-1), atol=1e-5)
    assert (found.label == z.argmax(dim=-1)).double().mean() > 0.999


def test_other_runs_meet_the_zero_shot_scores_and_lose_the_label_bias_from_both(trained):
    _, scored = trained["fixmatch"]
    zero_shot, bias = scored.pool.text, scored.label_bias.log_bias
    z = 0.3 * scored.pool.own + 0.7 * zero_shot - 1.5 * bias
    found = cure.relabelled(scored, scored.neutral._replace(eta=0.3, bias=1.5))
    assert torch.allclose(found.confidence, z.softmax(dim=-1).amax(dim=-1), atol=1e-4)
    assert list(scored.priors) == ["labelled", "estimated", "uniform", "true"]
    assert all(float(prior.sum()) == pytest.approx(1) for prior in scored.priors.values())


def test_a_summary_is_what_a_slow_loop_counts(trained):
    read, _ = trained["fixmatch"]
    labels, threshold = history.at_step(read, 1), 0.45
    found = history.summary(read, labels, threshold)
    confusion, right, wrong = np.zeros((40, 40), int), np.zeros(history.BINS, int), np.zeros(history.BINS, int)
    for label, sure, true in zip(labels.label.tolist(), labels.confidence.tolist(), read.truth.tolist(), strict=True):
        (right if label == true else wrong)[min(history.BINS - 1, int(sure * history.BINS))] += 1
        if sure >= threshold:
            confusion[true, label] += 1
    assert np.array_equal(found.confusion, confusion)
    assert np.array_equal(found.right_histogram, right)
    assert np.array_equal(found.wrong_histogram, wrong)
    assert np.array_equal(found.accepted, confusion.sum(axis=0))
    assert found.audit.accuracy == pytest.approx(confusion.trace() / confusion.sum())
    assert found.mask_rate == pytest.approx(confusion.sum() / len(read.truth))
    false = (confusion.sum(axis=0) - confusion.diagonal())[read.groups == 0].sum()
    assert found.by_group["false_head"] == false
    worst = history.mistakes(found.confusion, 3)
    off = confusion - np.diag(confusion.diagonal())
    assert [pair.rows for pair in worst] == sorted(off.flatten(), reverse=True)[:3]
    assert all(off[pair.true, pair.label] == pair.rows for pair in worst)


def test_the_last_step_has_the_audit_of_the_run(trained):
    read, _ = trained["ulfine"]
    found = history.summary(read, history.at_step(read), read.recorded.threshold)
    assert found.audit.kl == pytest.approx(read.curves["pseudo_kl"][-1], abs=1e-4)
    assert found.mask_rate == pytest.approx(read.curves["pseudo_mask_rate"][-1], abs=1e-3)


def test_without_the_truth_only_counts_are_left(trained):
    read, _ = trained["ulfine"]
    blind = read._replace(truth=None)
    found = history.summary(blind, history.at_step(blind), 0.5)
    assert found.confusion is None
    assert found.audit is None
    assert int(found.right_histogram.sum()) == len(read.truth)


def test_methods_show_what_they_keep(trained):
    titles = {name: [each.title for each in history.method_state(read)] for name, (read, _) in trained.items()}
    assert any("alpha_k" in title for title in titles["ulfine"])
    assert any("alpha_t" in title for title in titles["adello"])
    assert any("Margin" in title for title in titles["finessl"])
    assert titles["gla"] == []
    share = {name: history.method_state(trained[name][0])[1].values for name in ("ulfine", "ulfine-paper")}
    assert np.allclose(share["ulfine"], 0.3)
    assert share["ulfine-paper"].max() == pytest.approx(0.3)
    assert share["ulfine-paper"].min() < 0.29
    smoothing = next(each for each in history.method_state(trained["adello"][0]) if "alpha_t" in each.title)
    assert smoothing.values[-1, 0] == pytest.approx(0.1)


def test_a_run_that_subtracts_a_label_bias_shows_it_whatever_its_method(trained, world, tmp_path):
    for name, is_subtracted in {"ulfine": True, "gla": True, "ulfine-paper": False, "zeroshot": False}.items():
        read, scored = trained[name]
        bias, reason = cure.subtracted_bias(read)
        assert (bias is not None, reason) == (is_subtracted, "")
        if bias is not None:
            stored = scored.trained.run.state.log_bias.numpy()
            assert np.allclose(bias.values, stored - stored.mean(), atol=1e-5)
            assert np.array_equal(bias.errors, scored.label_bias.standard_error)
    read, _ = trained["ulfine"]
    with_cache, _ = cure.subtracted_bias(read)
    shutil.copytree(read.folder, tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text('{"cache": "/gone.zarr"}')
    moved = read._replace(folder=tmp_path / "run", config=dataclasses.replace(read.config, cache="gone.zarr"))
    live = read._replace(config=dataclasses.replace(read.config, live=Live("bitfit")))
    for changed, message in ((moved, "no cache 'gone.zarr'"), (live, "")):
        bias, reason = cure.subtracted_bias(changed)
        assert np.allclose(bias.values, with_cache.values, atol=1e-5)
        assert bias.errors is None
        assert reason.startswith(message)


def test_what_has_no_cure_says_why(trained, world, tmp_path):
    read, _ = trained["ulfine"]
    live = read._replace(config=dataclasses.replace(read.config, live=Live("bitfit")))
    with pytest.raises(RunError, match=r"trained through the encoder \(--live bitfit\).*train ulfine --cache"):
        cure.score(live, world)
    with pytest.raises(RunError, match="Name the run's own cache with --cache"):
        cure.score(read, toy_cache.write(tmp_path / "toy.zarr"))
    assert history.at_step(trained["gla"][0]) is None


def test_a_gallery_takes_what_it_is_asked_for(trained):
    read, scored = trained["fixmatch"]
    labels = cure.relabelled(scored, scored.neutral)
    wrong = samples.chosen(read, labels, read.truth, samples.Wanted())
    assert (labels.label[wrong] != read.truth[wrong]).all()
    assert (labels.confidence[wrong].diff() <= 0).all()
    right = samples.chosen(read, labels, read.truth, samples.Wanted("right"))
    assert len(wrong) + len(right) == len(read.truth)
    pair = int(read.truth[wrong[0]]), int(labels.label[wrong[0]])
    narrow = samples.Wanted(true=pair[0], label=pair[1], low=0.2, rows=wrong[:5])
    assert int(wrong[0]) in samples.chosen(read, labels, read.truth, narrow)
    tail = samples.chosen(read, labels, read.truth, samples.Wanted(group=2))
    assert set(read.groups[labels.label[tail]].tolist()) == {2}


def test_a_sample_has_images_views_branches_and_neighbours(trained, world):
    read, scored = trained["ulfine"]
    album, ids = samples.open_album(world), samples.ids_of(read, np.array([5, 2]))
    assert ids[0] == world.groups[scored.task.split.unlabelled_group].ids[scored.task.split.unlabelled[5]]
    pictures = samples.thumbnails(album, scored.task.split.unlabelled_group, [*ids, "nothing"])
    assert pictures[0].startswith("data:image/png;base64,")
    assert pictures[2] == ""
    scores = samples.branch_scores(scored, 5)
    assert set(scores) == {"run", "text", "probe", "zero-shot"}
    assert scores["run"].shape == (len(scored.task.problem.views), 40)
    near = samples.neighbours(scored, 5, 3)
    unit = torch.nn.functional.normalize(scored.task.problem.x[:, 0], dim=-1)
    query = torch.nn.functional.normalize(scored.task.problem.u[5, 0].float(), dim=-1)
    best = (unit @ query).topk(3)
    assert [one.cosine for one in near] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [one.label for one in near] == scored.task.problem.y[best.indices].tolist()


def test_images_that_are_not_at_hand_are_told(tmp_path):
    album = samples.open_album(toy_cache.write(tmp_path / "toy.zarr"))
    assert "Images are not at hand" in album.why
    assert samples.thumbnails(album, "train", ["a", "b"]) == ["", ""]


def test_the_map_is_the_principal_components(trained, monkeypatch):
    _, scored = trained["ulfine"]
    rows = np.arange(0, len(scored.task.problem.u), 3)
    places = samples.flat_pca(scored, rows)
    x = torch.nn.functional.normalize(scored.task.problem.u[rows, 0].float(), dim=-1).numpy()
    x = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    assert np.allclose(np.abs(places), np.abs(u[:, :2] * s[:2]), atol=1e-3)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MapError, match="pip install umap-learn"):
        samples.flat_umap(scored, rows)
    made = types.ModuleType("umap")
    made.__spec__ = importlib.machinery.ModuleSpec("umap", None)
    made.UMAP = lambda **_: types.SimpleNamespace(fit_transform=lambda x: x[:, :2])
    monkeypatch.setitem(sys.modules, "umap", made)
    assert samples.flat_umap(scored, rows).shape == (len(rows), 2)


def test_a_refit_with_the_same_knobs_is_the_same_run(trained, tmp_path):
    read, scored = trained["fixmatch"]
    again = drain(refit.refitting(refit.changed(read, {}, {}), scored, tmp_path / "again"))
    assert np.array_equal(again.curves["bacc"], read.curves["bacc"])
    assert np.array_equal(again.recorded.label, read.recorded.label)
    with pytest.raises(UnknownKnob, match="not a number"):
        refit.changed(read, {"tau": "much"}, {})


def test_a_curve_is_one_run_a_point(trained, tmp_path):
    read, scored = trained["fixmatch"]
    config = refit.changed(read, {}, {})
    found = refit.curve(config, scored, "tau", [0.0, 1.0])
    alone = drain(refit.refitting(refit.changed(read, {"tau": 1.0}, {}), scored, tmp_path / "alone"))
    assert found["bacc"] == pytest.approx([read.curves["bacc"][-1], alone.curves["bacc"][-1]], abs=0.005)
    assert refit.knob_range(config, "lambda_u", 3) == pytest.approx([0.1, 1.0, 10.0])
    assert refit.knob_range(config, "lr", 3) == pytest.approx([0.003, 0.03, 0.3])
    assert metrics.GROUPS == ("head", "medium", "tail")
