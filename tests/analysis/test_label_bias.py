"""`fastltssl bias` and the numbers behind it, on a Bayes classifier with a known prior and on the embedded world."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy import gaussian_world

from fastltssl.analysis.label_bias import agreement, is_near_chance, known_prior, study, table
from fastltssl.cache.splits import Protocol, long_tailed
from fastltssl.commands.cli import cli
from fastltssl.errors import ConfigError, MissingText, SourceError
from fastltssl.functional.bias import estimate_label_bias
from fastltssl.functional.metrics import evaluate
from fastltssl.images.world.world import caption_prior
from fastltssl.training.rows import Rows, resident

C, SCALE = 8, 200.0


def rows_of(scores, y, test_scores, test_y):
    """Rows whose zero-shot scores are the given ones, up to a constant of each row."""

    def features(z):
        x = (z - z.mean(dim=1, keepdim=True)) / SCALE
        rest = (1 - x.square().sum(dim=1, keepdim=True)).sqrt()
        return torch.cat([x, rest], dim=1)[:, None].float()

    text = torch.cat([torch.eye(C), torch.zeros(C, 1)], dim=1)[:, None]
    return Rows(
        features={"train": features(scores), "test": features(test_scores)},
        labels={"train": y, "test": test_y}, views=("center",), text=text, projection=None, logit_scale=SCALE,
        logit_bias=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bayes():
    """A classifier that is Bayes-optimal under a prior 20:1, on balanced rows, and that prior."""
    scores, y, log_prior, likelihood = gaussian_world(C, 600, seed=3)
    half = torch.arange(len(y)) % 2 == 0
    return rows_of(scores[half], y[half], scores[~half], y[~half]), log_prior.exp().numpy(), likelihood[half], y[half]


def split_of(rows, **switches):
    return long_tailed({name: y.numpy() for name, y in rows.labels.items()}, C, Protocol(**switches), 0)


@pytest.mark.parametrize("gamma", [1, 20])
def test_the_prior_of_a_bayes_classifier_is_found_whatever_the_labelled_prior(bayes, gamma):
    rows, prior, *_ = bayes
    found = study(rows, split_of(rows, n1=300, gamma_l=gamma), prior=prior)
    assert found.agreement.correlation > 0.97
    assert abs(found.agreement.slope - 1) < 4 * found.agreement.slope_error + 0.1
    assert found.bacc.after > found.bacc.before + 0.01
    assert found.cross_fitted.after > found.cross_fitted.before
    assert not is_near_chance(found)


def test_a_model_without_a_prior_shows_none(bayes):
    _, prior, likelihood, y = bayes
    plain = rows_of(likelihood, y, likelihood, y)
    found = study(plain, split_of(plain), prior=prior)
    assert abs(found.agreement.slope) < 0.15


def test_a_model_near_chance_is_told_apart(bayes):
    _, prior, _, y = bayes
    noise = torch.from_numpy(np.log(prior)) + 0.01 * torch.randn(len(y), C, generator=torch.Generator().manual_seed(0))
    guessing = rows_of(noise, y, noise, y)
    found = study(guessing, split_of(guessing), prior=prior)
    assert found.agreement.correlation > 0.9  # it knows the prior, and nothing else
    assert is_near_chance(found)


def test_agreement_is_the_least_squares_fit_over_the_classes_with_labels():
    prior = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04])
    log_bias = 0.7 * prior.log() + torch.tensor([0.1, -0.1, 0.05, 0.0, 9.0])
    found = agreement(log_bias, prior, np.array([True, True, True, True, False]))
    x, y = prior.log().double()[:4].numpy(), log_bias.double()[:4].numpy()
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.slope == pytest.approx(slope)
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.slope_error == pytest.approx(covariance[0, 0] ** 0.5)
    below = [(values[:, None] > values).sum(axis=1) for values in (x, y)]
    assert found.rank_correlation == pytest.approx(np.corrcoef(*below)[0, 1])
    assert np.isnan(agreement(log_bias, torch.full((5,), 0.2), np.ones(5, bool))).all()


def test_equal_priors_share_the_mean_of_their_ranks():
    prior = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64)
    log_bias = torch.tensor([1.0, 0.9, -0.2, -0.1, -3.0], dtype=torch.float64)
    by_hand = np.corrcoef([5, 3.5, 3.5, 1.5, 1.5], [5, 4, 2, 3, 1])[0, 1]
    assert agreement(log_bias, prior, np.ones(5, bool)).rank_correlation == pytest.approx(by_hand)


def test_the_uncorrected_form_holds_the_labelled_prior_against_the_model(bayes):
    rows, prior, *_ = bayes
    even = study(rows, split_of(rows, n1=300), prior=prior)
    assert torch.allclose(even.uncorrected.log_bias, even.estimate.log_bias, atol=1e-4)
    tailed = study(rows, split_of(rows, n1=300, gamma_l=20), prior=prior)
    labelled = torch.from_numpy(tailed.counts / tailed.counts.sum()).float().log()
    expected = tailed.estimate.log_bias - labelled
    difference = tailed.uncorrected.log_bias - (expected - expected.logsumexp(dim=0))
    assert float(difference.abs().max()) < 0.25  # the ridge pulls both to their own means
    assert tailed.bacc_uncorrected.before == tailed.bacc.before
    assert tailed.bacc_uncorrected.after < tailed.bacc.after - 0.02


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds(bayes):
    rows, prior, *_ = bayes
    moved = rows._replace(
        features={name: x.cuda() for name, x in rows.features.items()},
        labels={name: y.cuda() for name, y in rows.labels.items()},
        text=rows.text.cuda(),
    )
    split = split_of(rows, n1=100, gamma_l=5)
    here, there = study(rows, split, prior=prior), study(moved, split, prior=prior)
    assert there.agreement == pytest.approx(here.agreement, abs=1e-3)
    assert there.bacc == pytest.approx(here.bacc, abs=5e-3)
    names = tuple("abcdefgh")
    assert [row["class"] for row in table([there], names, prior)] == [
        row["class"] for row in table([here], names, prior)
    ]


def test_the_table_is_sorted_and_relative_to_the_mean_class(bayes):
    rows, prior, *_ = bayes
    studies = [study(rows, split_of(rows, n1=n1), prior=prior) for n1 in (40, 80)]
    found = table(studies, tuple("abcdefgh"), prior)
    values = [row["log_bias"] for row in found]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(0, abs=1e-6)
    assert sum(row["known_log_prior"] for row in found) == pytest.approx(0, abs=1e-6)
    first = found[0]
    k = "abcdefgh".index(first["class"])
    errors = [float(one.estimate.standard_error[k]) for one in studies]
    assert first["error"] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert first["labelled"] == 60


# The command


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(cli, ["bias", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


def test_the_command_prints_and_writes_what_the_functions_say(run, world, tmp_path):
    out = tmp_path / "found"
    result = run("--cache", world.path, "--n1", 40, "--gamma-l", 4, "--seeds", "0-1", "--out", out, "--json")
    record = json.loads(result.stdout.splitlines()[-1])
    rows, labels = resident(world), {name: one.labels for name, one in world.groups.items()}
    prior = caption_prior()
    studies = [study(rows, long_tailed(labels, 40, Protocol(n1=40, gamma_l=4), seed), prior=prior) for seed in (0, 1)]
    assert record["bacc"] == pytest.approx([np.mean([one.bacc[k] for one in studies]) for k in (0, 1)])
    assert record["agreement"]["slope"]["values"] == pytest.approx([one.agreement.slope for one in studies])
    assert f"slope {record['agreement']['slope']['mean']:.2f}" in result.output
    low, high = (extreme(one.agreement.correlation for one in studies) for extreme in (min, max))
    assert f"correlation {record['agreement']['correlation']['mean']:.2f} ({low:.2f} to {high:.2f})" in result.output
    after = [100 * one.cross_fitted.after for one in studies]
    assert f"{np.mean(after):.1f} ± {np.std(after, ddof=1):.1f}" in result.output
    assert f"{100 * record['bacc'][1]:.1f} ±" in result.output
    assert "N1 40 gamma 4" in result.output
    for seed, (one, kept) in enumerate(zip(studies, record["per_seed"], strict=True)):
        assert (kept["seed"], kept["scale"]) == (seed, 1)
        assert kept["residual"] == pytest.approx(float(one.estimate.residual))
        assert kept["bacc_uncorrected"] == pytest.approx(one.bacc_uncorrected)
        assert kept["agreement"] == pytest.approx(one.agreement._asdict())
    stored = list(csv.DictReader((out / "bias.csv").read_text().splitlines()))
    assert len(stored) == 80
    written = [float(row["log_bias"]) for row in stored if row["seed"] == "1"]
    assert written == pytest.approx(studies[1].estimate.log_bias.tolist(), abs=1e-5)
    assert json.loads((out / "bias.json").read_text()) == {k: v for k, v in record.items() if k != "out"}
    assert (out / "bias.png").stat().st_size > 5000
    with pytest.raises(ConfigError, match="is not empty"):
        run("--cache", world.path, "--out", out)


def test_the_estimate_of_the_command_is_that_of_zero_shot_with_debias(run, world):
    record = json.loads(run("--cache", world.path, "--n1", 30, "--gamma-l", 5, "--json").stdout.splitlines()[-1])
    arguments = [
        "train",
        "zeroshot",
        "--cache",
        world.path,
        "--n1",
        30,
        "--gamma-l",
        5,
        "--set",
        "debias=labels",
        "--json",
    ]
    trained = json.loads(CliRunner().invoke(cli, [str(one) for one in arguments]).stdout.splitlines()[-1])
    assert 100 * record["bacc"][1] == pytest.approx(trained["bacc"]["mean"], abs=1e-3)


def test_the_embedded_model_was_biased_by_its_captions(world):
    """The labels are long-tailed in another order than the captions."""
    rows, labels = resident(world), {name: one.labels for name, one in world.groups.items()}
    found = study(rows, long_tailed(labels, 40, Protocol(n1=100, gamma_l=10), 7), prior=caption_prior())
    assert found.agreement.correlation > 0.6
    assert found.agreement.slope > 0.5
    assert found.bacc.after > found.bacc.before


def test_a_known_prior_may_come_from_a_file(world, tmp_path):
    path, prior = tmp_path / "prior.csv", caption_prior()
    lines = [f"{name},{3 * value}" for name, value in zip(world.classes, prior, strict=True)]
    path.write_text("class,prior\n" + "\n".join(lines))
    assert known_prior(str(path), world) == pytest.approx(prior)
    assert known_prior(None, world) == pytest.approx(prior)  # tiny on the world: known without asking
    assert known_prior("none", world) is None
    assert (
        known_prior(None, world._replace(attributes={"provenance": {"model": "ViT-B-16", "dataset": "world"}})) is None
    )
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(SourceError, match="no prior above 0 for 1 classes, such as 'umbrella'"):
        known_prior(str(path), world)
    path.write_text("duk,0.1")
    with pytest.raises(SourceError, match=r"line 1: 'duk' is no class of the cache. Did you mean 'duck'\?"):
        known_prior(str(path), world)
    path.write_text("duck,0.1\nduck,0.2")
    with pytest.raises(SourceError, match="line 2: 'duck' was given before"):
        known_prior(str(path), world)
    path.write_bytes(b"\xdf\x00")
    with pytest.raises(SourceError, match="is not text of lines class,prior"):
        known_prior(str(path), world)
    path.write_text("\ufeffclass,prior\n" + "\n".join(lines))  # as spreadsheets write it
    assert known_prior(str(path), world) == pytest.approx(prior)
    path.write_text("duck;0.1")
    with pytest.raises(SourceError, match=r"'duck;0\.1' is not class,prior"):
        known_prior(str(path), world)
    with pytest.raises(SourceError, match="there is no such file"):
        known_prior("worlds", world)
    with pytest.raises(SourceError, match="are not those of the embedded world"):
        known_prior("world", world._replace(classes=("a", "b")))


def test_estimates_with_a_fitted_scale_use_it(bayes):
    rows, prior, *_ = bayes
    split = split_of(rows, n1=200)
    found = study(rows, split, prior=prior, scale="joint")
    z = SCALE * rows.features["test"][:, 0, :C]
    expected = evaluate(found.estimate.scale * z - found.estimate.log_bias, rows.labels["test"], None)["bacc"]
    assert float(found.estimate.scale) != 1
    assert found.bacc.after == pytest.approx(float(expected))
    assert estimate_label_bias(z, rows.labels["test"]).scale == 1


@pytest.fixture
def imported(tmp_path):
    """Caches of 60 rows in each of four classes, made by `cache import`: noise 0 is a perfect model."""

    def make(noise, has_text=True):
        rng = np.random.default_rng(0)
        text, y = np.eye(4, 6, dtype=np.float32), np.repeat(np.arange(4), 60)
        x = (text[y] * (noise < 9) + noise * rng.normal(size=(240, 6))).astype(np.float32)
        np.savez(tmp_path / "rows.npz", x=x, y=y, text=text)
        arguments = ["cache", "import", "rows.npz", "--features", "x", "--labels", "y", "--out", "rows.zarr"]
        arguments += ["--logit-scale", "5"] + (["--text", "text"] if has_text else [])
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return tmp_path / "rows.zarr"

    return make


def known(tmp_path, *priors):
    (tmp_path / "prior.csv").write_text("\n".join(f"class {k},{prior}" for k, prior in enumerate(priors)))
    return tmp_path / "prior.csv"


def test_without_test_rows_the_test_accuracy_is_left_out_and_named(run, imported):
    cache = imported(0.5)
    without = run("--cache", cache, "--n1", 20, "--json")
    assert "no test rows in this cache, so no test accuracy. Add --test-per-class n" in without.output
    assert "zero-shot top-1" not in without.output
    record = json.loads(without.stdout.splitlines()[-1])
    assert record["top1"] is record["bacc"] is record["per_seed"][0]["bacc_uncorrected"] is None
    given = run("--cache", cache, "--n1", 20, "--test-per-class", 5)
    assert "no test rows" not in given.output
    assert "zero-shot top-1" in given.output


def test_a_model_near_chance_is_warned_of_where_a_prior_is_known(run, imported, tmp_path):
    switches = ["--n1", 20, "--test-per-class", 10, "--known-prior", known(tmp_path, 8, 4, 2, 1)]
    cache = imported(9)
    warned = run("--cache", cache, *switches).output.splitlines()
    (at,) = [index for index, line in enumerate(warned) if line.startswith("warning:")]
    assert "below 3 times chance (75.0 %) in 1 split. A model near chance knows only the prior" in warned[at]
    assert warned[at - 1].startswith("against the known log prior: correlation")
    assert any(line.startswith("zero-shot balanced %") for line in warned[at - 5 : at])  # never apart from the accuracy
    assert "warning" not in run("--cache", cache, "--n1", 20, "--test-per-class", 10).output  # nothing to distrust
    (tmp_path / "rows.zarr").rename(tmp_path / "weak.zarr")
    assert "warning" not in run("--cache", imported(0), *switches).output


def test_a_flat_known_prior_has_no_correlation_and_leaves_valid_json(run, imported, tmp_path):
    result = run("--cache", imported(0.5), "--n1", 20, "--known-prior", known(tmp_path, 1, 1, 1, 1), "--json")
    assert "no correlation with the known prior" in result.output
    assert "nan" not in result.output
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["agreement"] is record["per_seed"][0]["agreement"] is None


def test_a_cache_without_text_says_how_to_get_some(run, imported):
    with pytest.raises(MissingText, match="Import them with `cache import --text KEY`"):
        run("--cache", imported(0.5, has_text=False))


def test_switches_are_checked_and_recorded_as_they_were_used(run, imported):
    cache = imported(0.5)
    with pytest.raises(ConfigError, match="each once"):
        run("--cache", cache, "--seeds", "0,0")
    record = json.loads(run("--cache", cache, "--n1", 20, "--preset", "acr", "--json").stdout.splitlines()[-1])
    assert record["protocol"]["images"] == "file-order"


def test_a_fitted_scale_is_shown_and_leads_to_the_method_that_uses_it(run, imported):
    result = run("--cache", imported(0.5), "--n1", 20, "--scale", "joint", "--json")
    record = json.loads(result.stdout.splitlines()[-1])
    assert f"factor fitted on the scores: {record['per_seed'][0]['scale']:.3f}" in result.output
    assert "cross-fitted at scale 1" in result.output
    assert "train gla --set scale=joint" in result.output
