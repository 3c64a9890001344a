"""`fastltssl bias` and the numbers behind it, on a Bayes classifier with a known prior and on the embedded world."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_bias import gaussian_world

from fastltssl import bias_study
from fastltssl.batches import Rows, resident
from fastltssl.bias import estimate_label_bias
from fastltssl.bias_study import agreement, known_prior, study, table
from fastltssl.cli import cli
from fastltssl.metrics import evaluate
from fastltssl.sources import SourceError
from fastltssl.sources.world import caption_prior
from fastltssl.splits import Protocol, long_tailed

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
    assert not bias_study.is_near_chance(found)


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
    assert bias_study.is_near_chance(found)


def test_agreement_is_the_least_squares_fit_over_the_classes_with_labels():
    prior = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04])
    log_bias = 0.7 * prior.log() + torch.tensor([0.1, -0.1, 0.05, 0.0, 9.0])
    found = agreement(log_bias, prior, np.array([True, True, True, True, False]))
    x, y = prior.log().double()[:4].numpy(), log_bias.double()[:4].numpy()
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.slope == pytest.approx(slope)
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.slope_error == pytest.approx(covariance[0, 0] ** 0.5)
    assert np.isnan(agreement(log_bias, torch.full((5,), 0.2), np.ones(5, bool)).slope)


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
    assert f"{100 * record['bacc'][1]:.1f}" in result.output
    stored = list(csv.DictReader((out / "bias.csv").read_text().splitlines()))
    assert len(stored) == 80
    written = [float(row["log_bias"]) for row in stored if row["seed"] == "1"]
    assert written == pytest.approx(studies[1].estimate.log_bias.tolist(), abs=1e-5)
    assert json.loads((out / "bias.json").read_text())["classes"] == record["classes"]
    assert (out / "bias.png").stat().st_size > 5000
    assert "not empty" in run("--cache", world.path, "--out", out, code=2).output


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
