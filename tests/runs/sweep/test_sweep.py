"""Sweeps: what they try, whom they keep, and that neither death nor company loses or doubles a trial."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
import yaml
from click.testing import CliRunner

import fastltssl
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.errors import CacheError, ConfigError, RunError
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.sweep.space import Real
from fastltssl.runs.sweep.sweep import concluding, ready, rungs, sweeping
from fastltssl.runs.sweep.trials import Sweep, asked, best_of, checked, open_study, report
from fastltssl.training.rows import resident

PROTOCOL = Protocol(n1=12, m1=20, gamma_l=4, gamma_u=4, val=4)
SPACE = {"lr": Real(0.003, 0.3, True), "tau": Real(0, 2)}
FLAGS = ["--n1", "12", "--m1", "20", "--gamma-l", "4", "--val", "4", "--steps", "20", "--threads", "1"]


def asked_for(cache, space=SPACE, method="fixmatch", steps=20, protocol=PROTOCOL, **settings):
    config = Config(method, str(cache.path), protocol, seeds=(0, 1), steps=steps)
    return checked(Sweep(config, space, **({"trials": 8, "together": 4} | settings)))


def swept(cache, rows, sweep, storage="memory"):
    kept = open_study(sweep, storage, cache)
    return drain(sweeping(sweep, cache, rows, kept)), kept


def test_a_configuration_has_the_value_it_has_when_trained_alone(cache, rows, tmp_path):
    sweep = asked_for(cache)
    trials, kept = swept(cache, rows, sweep)
    assert [trial.state for trial in trials] == ["complete"] * 8
    found = drain(concluding(sweep, cache, rows, kept, trials, tmp_path))
    assert found["best"]["value"] == max(trial.value for trial in trials)
    assert found["record"]["val_bacc"]["mean"] == pytest.approx(found["best"]["value"], abs=1e-3)
    assert found["record"]["bacc"] is not None
    assert len(list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))) == 8
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["set"] == {"tau": found["best"]["tau"]}
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] == json.loads(json.dumps(found["best"]))


def test_the_same_sweep_asks_for_the_same_configurations(cache, rows):
    first, _ = swept(cache, rows, asked_for(cache))
    second, _ = swept(cache, rows, asked_for(cache))
    other, _ = swept(cache, rows, asked_for(cache, seed=1))
    assert [t.point for t in first] == [t.point for t in second] != [t.point for t in other]


def test_halving_keeps_the_best_of_each_round_and_prunes_the_rest(cache, rows):
    sweep = asked_for(cache, steps=80, halving=2, trials=8, together=8, sampler="random")
    trials, _ = swept(cache, rows, sweep)
    assert rungs(80, 2) == [20, 40, 80]
    assert sorted(trial.steps for trial in trials) == [20] * 4 + [40] * 2 + [80] * 2
    whole, _ = swept(cache, rows, asked_for(cache, steps=80, trials=8, together=8, sampler="random"))
    kept = [trial.number for trial in trials if trial.state == "complete"]
    assert [trials[n].value for n in kept] == pytest.approx([whole[n].value for n in kept], abs=1e-3)


def test_options_form_populations_of_their_own(cache, rows):
    space = SPACE | {"head": ("cosine", "linear"), "batch": (4, 8)}
    trials, _ = swept(cache, rows, asked_for(cache, space, sampler="random", trials=10, together=10))
    assert {trial.point["head"] for trial in trials} == {"cosine", "linear"}
    assert all(trial.state == "complete" for trial in trials)


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random", "tpe"])
def test_every_sampler_gives_the_trials_wanted_each_once(cache, rows, sampler):
    trials, _ = swept(cache, rows, asked_for(cache, sampler=sampler, trials=9))
    assert len({tuple(trial.point.values()) for trial in trials}) == len(trials) == 9


@pytest.mark.parametrize("told", [0, 1, 3])
def test_trials_of_a_dead_worker_are_trained_again_and_none_is_lost_or_doubled(cache, rows, tmp_path, told):
    sweep = asked_for(cache, steps=40, halving=2)
    whole, _ = swept(cache, rows, sweep)
    storage = f"journal:{tmp_path / 'study.journal'}"
    begun = open_study(sweep, storage, cache)
    for trial in asked(begun, sweep, [], 8, [])[:told]:  # told at the first rung, before the worker died
        report(trial, whole[trial.number].value if whole[trial.number].steps == 20 else 0.0, 20, [])
        begun.tell(trial, state=optuna.trial.TrialState.PRUNED)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for trial in begun.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        optuna.Trial(begun, trial._trial_id).set_user_attr("worker", f"{os.uname().nodename}:{dead.pid}")
    trials, _ = swept(cache, rows, sweep, storage)
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    if not told:
        assert [(t.point, t.state) for t in trials] == [(t.point, t.state) for t in whole]


def test_a_trial_that_was_never_fully_asked_for_is_replaced(cache, rows, tmp_path):
    sweep, storage = asked_for(cache), f"journal:{tmp_path / 'study.journal'}"
    open_study(sweep, storage, cache).ask()  # killed before its knobs were drawn
    trials, _ = swept(cache, rows, sweep, storage)
    assert [trial.state for trial in trials] == ["complete"] * 8  # what was never drawn is no trial


def test_a_storage_of_another_sweep_is_refused_with_what_differs(cache, rows, tmp_path):
    storage = f"journal:{tmp_path / 'study.journal'}"
    open_study(asked_for(cache), storage, cache)
    with pytest.raises(RunError, match="holds a sweep with steps 20, and this one has 40"):
        open_study(asked_for(cache, steps=40), storage, cache)
    open_study(asked_for(cache, trials=99), storage, cache)  # more trials are welcome


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "test.bacc"}, "chosen on validation rows only"),
        ({"sampler": "cmaes"}, "not one of tpe, random, grid, qmc"),
        ({"protocol": Protocol(n1=12, m1=20)}, "add --val n"),
        ({"method": "zeroshot"}, "trains nothing"),
    ],
)
def test_what_cannot_be_swept_is_refused(cache, settings, message):
    with pytest.raises(ConfigError, match=message):
        asked_for(cache, **settings)


def test_the_command_writes_a_folder_resumes_there_and_best_yaml_trains(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["sweep", "fixmatch", "--cache", str(cache.path), *FLAGS, "--seeds", "2", "--only", "lr,tau", "--out", "s"]
    first = CliRunner().invoke(cli, [*line, "--trials", "4", "--json", "--parquet", "trials.parquet"])
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout.splitlines()[-1])
    assert found["record"]["seeds"] == [0, 1]
    assert "val.bacc of the best, alone" in first.stdout
    assert (tmp_path / "s" / "parallel.png").stat().st_size > 5000
    assert (tmp_path / "trials.parquet").is_file()
    more = CliRunner().invoke(cli, [*line, "--trials", "6", "--json"])
    assert "the study holds 4 trials" in more.stderr
    assert [row["lr"] for row in json.loads(more.stdout.splitlines()[-1])["trials"]][:4] == [
        row["lr"] for row in found["trials"]
    ]
    again = CliRunner().invoke(cli, ["train", "fixmatch", "--config", "s/best.yaml", "--json", "--out", "again"])
    record, best = json.loads(again.stdout.splitlines()[-1]), json.loads(more.stdout.splitlines()[-1])["record"]
    assert record["bacc"] == best["bacc"]


@pytest.mark.slow
def test_a_sweep_killed_five_times_tries_what_an_unbroken_one_tries(cache, tmp_path):
    line = [sys.executable, "-m", "fastltssl", "sweep", "fixmatch", "--cache", cache.path, *FLAGS, "--steps", "1500"]
    line += ["--seeds", "2", "--trials", "48", "--together", "12", "--halving", "3", "--json", "--out"]

    def begun(name):
        command = [*map(str, line), str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    began = time.monotonic()
    whole = json.loads(begun("whole").communicate()[0].splitlines()[-1])
    span, random = time.monotonic() - began, np.random.default_rng(0)
    for _ in range(5):
        worker = begun("killed")
        time.sleep(3 + random.random() * max(0.5, span - 4) / 3)
        worker.kill()
        worker.wait()
    killed = json.loads(begun("killed").communicate()[0].splitlines()[-1])
    for name in ("trial", "state", "lr", "value"):
        assert [row[name] for row in killed["trials"]] == [row[name] for row in whole["trials"]], name


def test_what_a_split_cannot_give_is_told_before_a_trial_is_asked_for(cache, tmp_path):
    line = ["sweep", "fixmatch", "--cache", str(cache.path), "--n1", "9999", "--val", "4", "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 1 or isinstance(result.exception, ValueError)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("metric", ["val.bacc", "val.ece"])
def test_configurations_that_diverge_count_once_are_pruned_first_and_never_best(cache, rows, metric):
    space = {"lr": Real(1.0, 1e12, True)}
    sweep = asked_for(
        cache, space, sampler="random", trials=8, together=8, steps=40, halving=2, metric=metric, method="probe"
    )
    trials, _ = swept(cache, rows, sweep)
    assert len({trial.point["lr"] for trial in trials}) == len(trials) == 8
    diverged = [trial for trial in trials if trial.state == "diverged"]
    assert diverged
    assert {trial.value for trial in diverged} == {0.0 if metric == "val.bacc" else 100.0}
    assert best_of(trials, metric).point["lr"] < min(trial.point["lr"] for trial in diverged)


def test_a_sweep_of_which_every_configuration_diverges_ends_and_says_so(cache, rows):
    sweep = asked_for(cache, {"lr": Real(1e9, 1e12, True)}, sampler="random", trials=4, method="probe")
    trials, _ = swept(cache, rows, sweep)
    assert [trial.state for trial in trials] == ["diverged"] * 4
    with pytest.raises(RunError, match="each diverged"):
        best_of(trials, sweep.metric)


def test_a_head_that_reads_taps_is_swept_beside_one_that_does_not(cache, rows, tmp_path):
    source, encoder = open_source("world:mild:9:3"), load_encoder("tiny", None, taps=True)
    drain(extract(source, encoder, parse_views("center,weak:1"), tmp_path / "taps.zarr", templates="world"))
    taps = open_cache(tmp_path / "taps.zarr")
    config = Config("probe", str(taps.path), Protocol(n1=4, val=3), steps=5)
    space = {"lr": Real(0.01, 0.1), "head": ("cosine", "lastblock")}
    sweep, own = checked(Sweep(config, space, trials=4, together=4, sampler="grid")), resident(taps)
    ready(sweep, taps, own)
    trials, _ = swept(taps, own, sweep)
    assert {trial.point["head"] for trial in trials if trial.state == "complete"} == {"cosine", "lastblock"}
    with pytest.raises(CacheError, match="--taps mid"):
        ready(asked_for(cache, space), cache, rows)


def test_what_is_not_meant_is_refused_before_anything_is_trained(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["sweep", "fixmatch", "--cache", str(cache.path), *FLAGS]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for flags, message in (
        (["--parquet", "nowhere/trials.parquet"], "nowhere must be a folder that is there"),
        (["--report", "val"], "a sweep judges the last step"),
        (["--range", "lr=-1:1"], "lr must be above 0"),
        (["--set", "tau=0.3", "--range", "tau=0:1"], "Leave one of them out"),
        (["--sampler", "grid", "--trials", "3", "--out", "grid"], "Name fewer knobs with --only"),
        (["--storage", "memory", "--out", "mine"], "mine is not empty"),
    ):
        result = CliRunner().invoke(cli, [*line, *flags])
        assert message in result.output + str(result.exception), flags
    assert not (tmp_path / "grid").exists()
    assert not (tmp_path / "runs").exists()


def test_two_processes_share_one_journal(cache, tmp_path):
    line = [sys.executable, "-m", "fastltssl", "sweep", "probe", "--cache", cache.path, *FLAGS, "--only", "lr,tau"]
    line += ["--trials", "12", "--together", "3", "--storage", f"journal:{tmp_path / 'study.journal'}", "--out"]
    workers = [
        subprocess.Popen([*map(str, line), str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("one", "two")
    ]
    ends = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    trials = optuna.load_study(study_name="probe-sweep", storage=storage).trials
    assert len(trials) <= 12 + 1  # both may see one place left at the same moment
    assert all(trial.state.is_finished() for trial in trials)


def test_the_function_for_notebooks_is_the_command(cache, tmp_path):
    found = fastltssl.sweep(
        "probe", cache.path, ranges={"lr": (0.01, 0.1, "log"), "head": ["cosine", "linear"]}, only=["lr"], trials=4,
        seeds=(0, 1), n1=12, gamma_l=4, val=4, steps=10, out=tmp_path / "sweep",
    )  # fmt: skip
    assert {row["head"] for row in found["trials"]} <= {"cosine", "linear"}
    assert found["values"].shape == (4, 2)
    assert found["values"].mean(axis=1).max() == pytest.approx(found["best"]["value"])
    assert all(0.01 <= row["lr"] <= 0.1 for row in found["trials"])
    with pytest.raises(ConfigError, match=r"unknown key 'stepz'. Did you mean 'steps'"):
        fastltssl.sweep("probe", cache.path, stepz=3)
    shutil.rmtree(tmp_path / "sweep")
