"""GLA on a finished run: the sum of the paper, the same as gla where the heads are the same, and its messages."""

import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from fastltssl import methods
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.encoder import extract
from fastltssl.encoder.clip import load_encoder
from fastltssl.errors import RunError
from fastltssl.functional.bias import estimate_label_bias
from fastltssl.images import open_source
from fastltssl.images.source import Subset
from fastltssl.images.views import parse_views
from fastltssl.progress import drain
from fastltssl.runs import ensemble
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import tasks_of, training
from fastltssl.runs.finished import read_audit, read_record
from fastltssl.runs.record import METRICS
from fastltssl.runs.trained import encoder_of, load_run, predicting
from fastltssl.training.rows import resident
from fastltssl.training.step import start
from fastltssl.training.streams import batch_at, make_stream
from fastltssl.types import labelled_tau_of

LONG_TAILED = Protocol(n1=12, gamma_l=6, val=2)
SETTINGS = [{"tau": 1.0}, {"tau": 0.0}, {"tau": 0.5, "head": "linear"}, {"scale": "joint"}]


@pytest.fixture(scope="module")
def cached(world, tmp_path_factory):
    """A probe trained from the cache, two seeds."""
    folder = tmp_path_factory.mktemp("ensemble") / "probe"
    drain(training(config_of(world, "probe"), world, resident(world), folder))
    return folder


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A FixMatch trained through the encoder, by the command."""
    folder = tmp_path_factory.mktemp("ensemble") / "fixmatch"
    line = f"train fixmatch --live adaptformer --cache {world.path} --n1 4 --m1 4 --steps 4 --evals 1 --workers 0"
    run(f"{line} --batch 8 --batch-u 8 --encoder-lr 3 --device cpu --out {folder}")
    return folder


@pytest.fixture(scope="module")
def taps(tmp_path_factory):
    """Another small cache of the world, with taps."""
    path = tmp_path_factory.mktemp("ensemble") / "small.zarr"
    source, encoder = open_source("world:mild:5:2"), load_encoder("tiny", None, taps=True)
    drain(extract.extract(source, encoder, parse_views("center"), path, templates="world"))
    return open_cache(path)


def config_of(cache, method, settings=None, **own):
    own = {"protocol": LONG_TAILED, "seeds": (0, 3), "steps": 25, "evals": 2} | own
    return Config(method, str(cache.path), settings=settings or {}, **own)


def run(line):
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(line):
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code, result.output
    return result.stderr or str(result.exception)


def ensembled(folder, cache, settings=None, out=None, **images):
    return drain(ensemble.ensembling(ensemble.planned("gla", folder, settings or {}), cache, out, **images))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_ensemble_of_a_probe_is_gla(world, tmp_path, settings):
    of_probe = {name: value for name, value in settings.items() if name != "scale"}
    rows = resident(world)
    drain(training(config_of(world, "probe", of_probe), world, rows, tmp_path / "probe"))
    drain(training(config_of(world, "gla", settings), world, rows, tmp_path / "gla"))
    asked = {name: value for name, value in settings.items() if name == "scale"}
    ours = ensembled(tmp_path / "probe", world, asked, tmp_path / "ensemble")
    theirs = read_record(tmp_path / "gla")
    for name in (*METRICS, "val_bacc"):
        assert ours[name]["values"] == pytest.approx(theirs[name]["values"], abs=2e-3), name
    for seed in (0, 3):
        found, wanted = (read_audit(tmp_path / name, seed) for name in ("ensemble", "gla"))
        assert np.allclose(found.test_recall[-1], wanted.test_recall[-1], equal_nan=True)
        assert np.allclose(found.test_reliability[-1], wanted.test_reliability[-1], atol=1e-4, equal_nan=True)


def test_the_scores_are_the_sum_of_the_paper(world, cached):
    """z_ft - (1 - tau) log pi_s + s z_zs - log pi_p, row by row, on counts 12 to 2 and shifted label bias."""
    rows, trained = resident(world), load_run(cached, world, 3)
    config = ensemble.planned("gla", cached, {"tau": 0.3}).config
    one = tasks_of(config, world, rows)[1]
    x = rows.features["test"][:50, 0].float()
    method = methods.load("gla").Ensemble(tau=0.3)
    found = method.scores({}, method.start(one.problem), torch.cat([trained.scores(x), x], dim=-1))
    zero_shot = methods.configure("zeroshot", {})
    state = zero_shot.start(one.problem)
    z_zs = zero_shot.scores({}, state, torch.cat([x, one.problem.x[:, 0]]))["test"]
    bias = estimate_label_bias(z_zs[50:], one.problem.y, prior=one.problem.prior).log_bias
    counts = np.bincount(one.problem.y.numpy(), minlength=len(world.classes))
    assert counts.min() < counts.max()
    for row in range(50):
        for k in range(len(world.classes)):
            leftover = 0.7 * np.log(counts[k] / counts.sum())
            wanted = float(trained.scores(x[row : row + 1])[0, k]) - leftover + float(z_zs[row, k] - bias[k])
            assert float(found["test"][row, k]) == pytest.approx(wanted, abs=1e-3)


def test_the_run_alone_is_what_it_recorded_and_the_text_alone_is_debiased_zero_shot(world, cached):
    found = ensembled(cached, world)["ensemble"]
    recorded = read_record(cached)
    debiased = drain(training(config_of(world, "zeroshot", {"debias": "labels"}), world, resident(world)))
    for name in METRICS:
        assert found["run_alone"][name]["values"] == pytest.approx(recorded[name]["values"], abs=2e-3), name
        assert found["zero_shot_debiased_alone"][name]["values"] == pytest.approx(debiased[name]["values"], abs=2e-3)
    assert found["method"] == "probe"
    assert found["live"] is None


@pytest.mark.parametrize(("method", "settings", "tau"), [
    ("probe", {}, 1), ("probe", {"tau": "0"}, 0), ("fixmatch", {}, 0), ("multiview", {}, 1), ("debiaspl", {}, 0),
    ("ulfine", {"tau": 0}, 1), ("acr", {}, 1), ("ridge", {}, 1),
])  # fmt: skip
def test_tau_is_that_of_the_tested_head_else_one(world, tmp_path, method, settings, tau):
    config = config_of(world, method, settings, steps=2, seeds=(0,), protocol=Protocol(n1=4, m1=4))
    drain(training(config, world, resident(world), tmp_path / "run"))
    plan = ensemble.planned("gla", tmp_path / "run", {})
    assert plan.config.settings == {"tau": tau}
    assert plan.why.startswith(f"tau {tau}: ")
    assert ("CE(z + tau log pi_l, y)" in plan.why) == (labelled_tau_of(methods.configure(method, {})) is not None)
    assert ensemble.planned("gla", tmp_path / "run", {"tau": "0.4"}).why == "tau 0.4, as asked"


@pytest.mark.parametrize(
    "name", [name for name in methods.names() if hasattr(methods.load(name).Method, "adjusted_by")]
)
def test_a_method_whose_tau_is_taken_trains_the_tested_head_with_it(world, name):
    config = config_of(world, name, protocol=Protocol(n1=6, m1=4, gamma_l=3), steps=1)
    problem = tasks_of(config, world, resident(world))[0].problem
    method = methods.configure(name, {"tau": 0.7, "head": "linear"})
    without = methods.configure(name, {"tau": 0.7, "head": "linear"} | ({} if name == "probe" else {"lambda_u": 0}))
    run = start(method, problem, 0)
    batch = batch_at(problem, make_stream(problem, method, batch=16, batch_u=8, seed=0), 0)
    scores = method.scores(run.params, run.state, batch.x)["test"]
    adjusted = scores + 0.7 * problem.prior.log()
    wanted = (adjusted.logsumexp(dim=-1) - adjusted[torch.arange(16), batch.y]).mean()
    found = without.loss(run.params, run.state, batch, torch.zeros(())).loss
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_a_live_run_scores_test_images_as_predict_does(world, tuned):
    trained = load_run(tuned, world)
    source, encoder = open_source("world:mild:160:12"), encoder_of(trained, None, "cpu")
    wanted = [("train", np.array([5, 2])), ("test", np.arange(40, 70))]
    found = drain(ensemble.encoding(trained, source, encoder, wanted, workers=0)).softmax(dim=-1)
    for (name, chosen), probs in zip(wanted, found.split([2, 30]), strict=True):
        images = source.groups[name]
        ids = tuple(images.ids[row] for row in chosen)
        alone = source._replace(groups={"images": Subset(ids, images.labels[chosen], images, chosen)})
        assert torch.allclose(probs, drain(predicting(trained, alone, encoder, workers=0)).probs, atol=1e-6)
    frozen = trained.scores(resident(world).features["test"][40:70, 0]).softmax(dim=-1)
    assert (found[2:] - frozen).abs().max() > 1e-3, "the run's own tower was not used"


def test_the_command_measures_a_live_run_and_writes_a_run(world, tuned, tmp_path):
    out = tmp_path / "sum"
    result = run(f"train gla --ensemble {tuned} --set scale=joint --workers 0 --device cpu --out {out} --json")
    record = json.loads(result.stdout.splitlines()[-1])
    assert record == read_record(out)
    assert record["ensemble"]["live"] == "adaptformer"
    alone, recorded = record["ensemble"]["run_alone"], read_record(tuned)
    assert alone["ece"]["values"] == pytest.approx(recorded["ece"]["values"], abs=0.05)
    assert all(np.isfinite(record[name]["mean"]) for name in ("top1", "bacc", "ece"))
    for text in ("fixmatch alone", "zero-shot - bias alone", "gla ensemble=fixmatch tau=0 scale=joint", f"wrote {out}"):
        assert text in result.stdout
    assert "tau 0: with it fixmatch trained its head" in result.stdout
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert (stored["ensemble"], stored["set"]) == (str(tuned), {"scale": "joint", "tau": 0.0})
    assert "live" not in stored
    assert load_file(out / "head.safetensors")["seed0.state.text_scale"] != 1
    table = run(f"compare {tuned} {out}").stdout
    assert "gla ensemble=fixmatch" in table
    assert "not paired" not in table


def test_test_rows_of_every_group_are_measured_where_the_run_was(world, tmp_path):
    config = config_of(world, "probe", seeds=(0,), steps=5, eval="all")
    drain(training(config, world, resident(world), tmp_path / "all"))
    found = ensembled(tmp_path / "all", world)["ensemble"]["run_alone"]
    assert found["bacc"]["values"] == pytest.approx(read_record(tmp_path / "all")["bacc"]["values"], abs=2e-3)


def test_a_head_that_reads_taps_has_its_scores_from_them(taps, tmp_path):
    config = config_of(taps, "probe", {"head": "lastblock"}, protocol=Protocol(n1=4, gamma_l=2), seeds=(1,), steps=5)
    drain(training(config, taps, resident(taps), tmp_path / "run"))
    found = ensembled(tmp_path / "run", taps)["ensemble"]["run_alone"]
    assert found["ece"]["values"] == pytest.approx(read_record(tmp_path / "run")["ece"]["values"], abs=2e-3)


def test_what_cannot_be_ensembled_is_refused(world, cached, tmp_path):
    line = f"train gla --ensemble {cached} --out {tmp_path / 'out'}"
    assert "belongs to gla, not to probe" in refused(f"train probe --ensemble {cached}")
    assert "--seeds cannot be changed with --ensemble" in refused(f"{line} --seeds 0-4")
    assert "--live cannot be changed with --ensemble" in refused(f"{line} --live fft")
    assert "--set head.scale: an ensemble trains no head. It takes tau and scale" in refused(
        f"{line} --set head.scale=9"
    )
    assert "--set 'tau' is not KNOB=VALUE" in refused(f"{line} --set tau")
    assert "gla has no knob 'tua'. Did you mean 'tau'?" in refused(f"{line} --set tua=1")
    assert "--dataset is for a run trained with --live" in refused(f"{line} --dataset world")
    assert "is the run itself" in refused(f"train gla --ensemble {cached} --overwrite --out {cached}")
    assert "is not a finished run" in refused(f"train gla --ensemble {tmp_path}")
    assert not (tmp_path / "out").exists()
    drain(training(config_of(world, "gla", steps=2), world, resident(world), tmp_path / "gla"))
    with pytest.raises(RunError, match="a run of gla, whose scores hold the zero-shot scores already"):
        ensemble.planned("gla", tmp_path / "gla", {})


def test_an_ensemble_is_no_run_to_train_predict_or_ensemble_from(world, cached, tmp_path):
    out = tmp_path / "sum"
    ensembled(cached, world, out=out)
    with pytest.raises(RunError, match=r"is an ensemble with .*probe already. Name that run"):
        ensemble.planned("gla", out, {})
    with pytest.raises(RunError, match=r"adds zero-shot scores to those of .*probe: it has no head"):
        load_run(out, world)
    assert f"train gla --ensemble {cached}" in refused(f"train gla --config {out / 'config.yaml'}")


def test_another_cache_or_other_images_are_refused(taps, cached, tuned, world, tmp_path):
    with pytest.raises(RunError, match=r"probe was trained on a cache with fingerprint .*small.zarr has"):
        ensembled(cached, taps)
    assert "Name the run's own cache with --cache" in refused(
        f"train gla --ensemble {cached} --cache {taps.path} --out {tmp_path / 'out'}"
    )
    with pytest.raises(RunError, match="Give the --dataset and --root it was made with"):
        ensembled(tuned, world, dataset="world:mild:3:2")
