"""Training through the encoder: the same as from a cache where nothing else changes, however a step is cut up."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from shell import invoke

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.encoder import extract
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.reopen import source_of
from fastltssl.encoder.towers import split_tower
from fastltssl.errors import ConfigError, RunError, SourceError, TuningError
from fastltssl.images import open_source
from fastltssl.images.views import parse_recipe, parse_views
from fastltssl.live.images import Augmented, Seen, pictures_of, recipes_of
from fastltssl.live.memory import check_memory, recompute, step_bytes
from fastltssl.live.modes import Live, parse_mode, trainable, tuned
from fastltssl.live.step import Trainee, finetuning, live_step, views_at
from fastltssl.live.tokens import make_tokens
from fastltssl.methods import configure
from fastltssl.progress import drain
from fastltssl.runs.config import Config, read_options
from fastltssl.runs.experiment import tasks_of
from fastltssl.runs.live import experiment as live
from fastltssl.runs.live.images import TaskImages
from fastltssl.runs.trained import encoder_of, load_run
from fastltssl.training.fit import fit
from fastltssl.training.rows import resident
from fastltssl.training.streams import make_stream
from fastltssl.types import seeded

DATASET = "world:mild:12:3"
PROTOCOL = Protocol(n1=4, m1=6, gamma_l=2, gamma_u=2)
STEPS = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the world with taps: 12 training and 3 test images a class, five views."""
    path = tmp_path_factory.mktemp("live") / "small.zarr"
    encoder = load_encoder("tiny", None, taps=True)
    drain(
        extract.extract(open_source(DATASET), encoder, parse_views("center,weak:2,strong:2"), path, templates="world")
    )
    return open_cache(path)


@pytest.fixture(scope="module")
def opened(cache):
    return live.open_images(cache, "cpu")


def config_of(cache, method="fixmatch", live_mode="adaptformer", steps=STEPS, seeds=(0,), settings=None, **own):
    sizes = {"batch": 8, "batch_u": 8, "evals": 2}
    how = Live(live_mode, **own)
    return Config(method, str(cache.path), PROTOCOL, seeds, steps, settings=settings or {}, live=how, **sizes)


class Setup:
    """One seed of a live run, taken apart."""

    def __init__(self, cache, opened, method="fixmatch", mode="adaptformer", settings=None, taps=False, **own):
        self.config = config_of(cache, method, mode, own.pop("steps", STEPS), settings=settings, **own)
        self.method = configure(method, settings or {})
        self.task = tasks_of(self.config, cache, resident(cache, taps=taps))[0]
        self.images = TaskImages(self.task, cache, opened)
        self.mode, self.encoder = parse_mode(mode), opened.encoder

    def tower(self, stream="tower"):
        return tuned(self.encoder.tower, self.mode, n_classes=40, generator=seeded(0, stream))

    def trainee(self, tower):
        return Trainee(
            tower, Augmented(self.images.pictures, self.images.recipes, self.images.view_seed), None, workers=0
        )

    def fitted(self, trainee, evaluate=lambda method, run: {}, evals=STEPS, **change):
        how = dataclasses.replace(self.config.live, **change)
        return drain(
            finetuning(
                self.method, self.task.problem, self.images.stream(self.method), trainee, how,
                lr=0.03, weight_decay=5e-4, seed=0, evals=evals, evaluate=evaluate,
            )
        )[:2]  # fmt: skip


def leaves_of(tree):
    return torch.utils._pytree.tree_leaves(tree)


def test_an_encoder_that_does_not_move_gives_the_features_and_the_losses_of_the_cache(cache, opened):
    own = Setup(cache, opened, "ulfine", views="cached")
    trainee = own.trainee(opened.encoder.tower)
    stream, problem = own.images.stream(own.method), own.task.problem
    for t in range(3):
        views = views_at(problem, stream, t, is_fresh=False)
        live_features = trainee.encoded(views.trained)[: len(stream.x_row[t])]
        cached = problem.x[stream.x_row[t], stream.x_view[t]]
        torch.testing.assert_close(live_features, cached, atol=2e-3, rtol=2e-3)  # of float16
    assert set(views.weak.names) <= {"weak0", "weak1"}
    assert set(views.trained.names[8:]) <= {"strong0", "strong1"}


@pytest.mark.parametrize("method", ["probe", "fixmatch", "adello", "simpro"])
def test_the_last_block_adapter_trains_alike_from_taps_and_from_images(cache, opened, method):
    """For methods with one head: on a cache each head has an adapter of its own, in the tower they share one."""
    images = Setup(cache, opened, method, "lastblock", {"head": "cosine", "head.scale": 25}, steps=50, views="cached")
    taps = Setup(cache, opened, method, "lastblock", {"head": "lastblock"}, steps=50, taps=True)
    _, history = images.fitted(images.trainee(images.tower("init")), evals=50)  # the adapter starts as that of the head
    stream = make_stream(taps.task.problem, taps.method, batch=8, batch_u=8, seed=0)
    cached = fit(taps.method, taps.task.problem, stream, steps=50, evals=50, seed=0)
    assert len(history["loss"]) == 50
    torch.testing.assert_close(history["loss"], cached.history["loss"], atol=1e-3, rtol=1e-3)
    assert history["loss"].std() > 0.1


def test_tokens_of_the_frozen_blocks_train_like_images_and_each_view_is_encoded_once(cache, opened):
    own = Setup(cache, opened, "fixmatch", "lastk:2", views="cached")
    tower = own.tower()
    front, rest = split_tower(tower, 2)
    every = own.images._every(own.method)
    tokens = drain(make_tokens(every, own.trainee(tower).inputs, front))
    different = {(int(p), name) for one in every for p, name in zip(one.picture, one.names, strict=True)}
    assert len(tokens.table) == len(different) < sum(len(one.picture) for one in every)
    run_t, history_t = own.fitted(Trainee(rest, tokens, None))
    other = own.tower()
    run_i, history_i = own.fitted(own.trainee(other))
    torch.testing.assert_close(history_t["loss"], history_i["loss"], atol=3e-3, rtol=1e-3)
    for a, b in zip(leaves_of(run_t.params), leaves_of(run_i.params), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)
    moved = zip(trainable(tower).values(), trainable(own.tower()).values(), strict=True)
    assert all((a - b).abs().max() > 0 for a, b in moved)


@pytest.mark.parametrize("method", ["finessl", "ulfine"])
@pytest.mark.parametrize("mode", ["fft", "vpt:3"])
def test_a_step_in_parts_or_recomputed_has_the_gradients_of_the_whole_one(cache, opened, method, mode):
    own = Setup(cache, opened, method, mode)
    problem, stream, found = own.task.problem, own.images.stream(own.method), []
    for parts, is_recomputed in ((1, False), (3, False), (1, True)):
        tower = own.tower()
        if is_recomputed:
            recompute(tower)
        params = torch.utils._pytree.tree_map(
            lambda leaf: leaf.clone().requires_grad_(), own.method.init(problem, seeded(0, "init"))
        )
        views = views_at(problem, stream, 0, is_fresh=True)
        out = live_step(
            own.method, own.trainee(tower), params, own.method.start(problem), problem, stream, 0, views, parts
        )
        found.append((out.loss, [value.grad for value in (*trainable(tower).values(), *leaves_of(params))]))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-5, rtol=1e-5)
        for a, b in zip(gradients, found[0][1], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-3)
    assert all(value is not None and value.abs().sum() > 0 for value in found[0][1][:3])


def test_fresh_views_differ_at_every_visit_and_between_seeds_and_do_not_depend_on_company(cache, opened):
    own = Setup(cache, opened)
    inputs = own.trainee(opened.encoder.tower).inputs
    seen = Seen(np.array([3, 5, 3, 3]), ("weak@0", "weak@0", "weak@1", "center"))
    views = inputs(seen)
    assert not torch.equal(views[0], views[2])
    torch.testing.assert_close(inputs(seen.part(2, 3))[0], views[2], atol=0, rtol=0)
    assert not torch.equal(inputs._replace(seed=7)(seen)[0], views[0])


def test_pictures_that_memory_does_not_hold_are_decoded_ahead_and_forgotten(cache, opened):
    own = Setup(cache, opened)
    kept = own.images.pictures
    bare = dataclasses.replace(kept, store=torch.empty(0, 3, 48, 48, dtype=torch.uint8), lots={})
    index = np.array([9, 2, 9, 4])
    torch.testing.assert_close(bare.canvases(index), kept.canvases(index), atol=0, rtol=0)
    bare.prepare(0, index)
    lost = dataclasses.replace(bare, source=bare.source._replace(groups={}))  # the lot alone serves
    assert torch.equal(lost.canvases(np.array([4, 9])), kept.canvases(np.array([4, 9])))
    bare.forget(0)
    assert not bare.lots
    inputs = own.trainee(opened.encoder.tower).inputs._replace(pictures=bare)
    ahead = Trainee(own.tower(), inputs, None, workers=2)
    plain = own.trainee(own.tower())
    torch.testing.assert_close(own.fitted(ahead)[1]["loss"], own.fitted(plain)[1]["loss"], atol=0, rtol=0)
    assert not bare.lots


def test_the_mean_of_the_weights_is_measured_and_kept(cache, opened):
    own = Setup(cache, opened, "probe", "bitfit")
    seen = []

    def evaluate(method, run):
        seen.append(run.params["weight"].clone())
        return {}

    tower = own.tower()
    run, _ = own.fitted(own.trainee(tower), evaluate, ema=0.5)
    plain, trained = own.tower(), []
    own.fitted(own.trainee(plain), lambda method, run: trained.append(run.params["weight"].clone()) or {})
    mean = own.method.init(own.task.problem, seeded(0, "init"))["weight"].clone()
    for weight, found in zip(trained, seen, strict=True):
        mean = 0.5 * mean + 0.5 * weight
        torch.testing.assert_close(found, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(run.params["weight"], mean, atol=1e-6, rtol=1e-5)


def test_rates_rise_then_fall_and_the_encoder_has_its_own(cache, opened, monkeypatch):
    own, rates = Setup(cache, opened, "probe", "bitfit"), []
    true_step = torch.optim.SGD.step

    def step(optimizer, *args):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return true_step(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    own.fitted(own.trainee(own.tower()), warmup=2, lr=0.003)
    encoder, head = zip(*rates, strict=True)
    shares = [0.5 * (1 + np.cos(np.pi * t / STEPS)) * min(1, (t + 1) / 2) for t in range(STEPS)]
    np.testing.assert_allclose(encoder, [0.003 * each for each in shares])
    np.testing.assert_allclose(head, [0.03 * each for each in shares])


# ---------------------------------------------------------------------------------------------- whole runs


def line_of(cache, out, *more):
    return [
        "train", "fixmatch", "--live", "adaptformer", "--cache", str(cache.path), "--n1", "4", "--m1", "6",
        "--steps", "8", "--evals", "2", "--batch", "8", "--batch-u", "8", "--out", str(out), "--json", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(cache, tmp_path_factory):
    """A live run of two seeds, and its record."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    result = CliRunner().invoke(cli, line_of(cache, out, "--seeds", "0-1"))
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout.splitlines()[-1])


def test_a_live_run_leaves_a_run_folder_and_says_what_trained(unbroken):
    out, record = unbroken
    assert record["live"]["mode"] == "adaptformer"
    assert record["live"]["trainable"] == sum(v.numel() for v in load_file(out / "tower.safetensors").values()) // 2
    assert len(record["bacc"]["values"]) == 2
    assert record["pseudo_label"]["accuracy"] > 0
    assert not list(out.glob("*.checkpoint"))
    assert {"config.yaml", "metrics.json", "head.safetensors", "pseudo_labels.zarr"} <= {p.name for p in out.iterdir()}


def test_a_killed_run_goes_on_and_ends_the_same(cache, unbroken, tmp_path, monkeypatch):
    out, line = tmp_path / "killed", line_of(cache, tmp_path / "killed", "--seeds", "0-1")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *line], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (out / "seed1.checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    refused = CliRunner().invoke(cli, line)
    assert refused.exception.exit_code == 2
    assert "is not empty" in str(refused.exception)
    assert "--resume to go on with the run in it" in str(refused.exception)
    for more, wanted in (("--lr", "lr 0.03 and now it is 0.01"), ("--ema", "live ema 0.0 and now it is 0.01")):
        other = CliRunner().invoke(cli, [*line, "--resume", more, "0.01"])
        assert f"was written by {wanted}" in str(other.exception)
    monkeypatch.chdir(cache.path.parent)
    line[line.index("--cache") + 1] = cache.path.name  # where it lies changes no number
    result = CliRunner().invoke(cli, [*line, "--resume", "--threads", "1"])
    assert result.exit_code == 0, result.output
    ours = json.loads(result.stdout.splitlines()[-1])
    for name in ("top1", "bacc", "ece", "pseudo_label", "audit"):
        assert ours[name] == unbroken[1][name]
    for file in ("head.safetensors", "tower.safetensors"):
        ours, theirs = load_file(out / file), load_file(unbroken[0] / file)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_finished_run_is_left_alone_and_another_is_not_resumed_over(cache, unbroken, tmp_path):
    out, record = unbroken
    line = line_of(cache, out, "--seeds", "0-1", "--resume")
    before = (out / "metrics.json").read_bytes()
    again = CliRunner().invoke(cli, [*line, "--accumulate", "2"])
    assert again.exit_code == 0, again.output
    assert "is finished already" in again.output
    assert json.loads(again.stdout.splitlines()[-1])["bacc"] == record["bacc"]
    line[line.index("--steps") + 1] = "3"
    other = CliRunner().invoke(cli, line)
    assert other.exit_code == 2
    assert "holds another finished run" in other.output
    assert (out / "metrics.json").read_bytes() == before
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(cli, line_of(cache, strangers, "--resume"))
    assert refused.exception.exit_code == 2
    assert "is not empty" in str(refused.exception)


def test_overwriting_begins_anew_and_leaves_strangers_alone(cache, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("seed0.checkpoint", "seed7.checkpoint", "metrics.json", "tower.safetensors", "notes.txt"):
        (out / name).write_text("old")
    result = CliRunner().invoke(cli, line_of(cache, out, "--overwrite"))
    assert result.exit_code == 0, result.output
    assert (out / "notes.txt").read_text() == "old"
    assert not list(out.glob("*.checkpoint"))
    assert json.loads((out / "metrics.json").read_text())["live"]["mode"] == "adaptformer"


def test_other_images_under_the_same_names_are_refused(cache, tmp_path):
    with pytest.raises(RunError, match=r"the images of world:hard:12:3 are not those .* was made of"):
        source_of(cache, "world:hard:12:3")
    path = tmp_path / "limited.zarr"
    source = open_source(DATASET, limit=80)
    drain(extract.extract(source, load_encoder("tiny", None), parse_views("center"), path, templates="world"))
    assert source_of(open_cache(path)).fingerprint == source.fingerprint


SLOW = """
import sys, time
import torch
from fastltssl.live.checkpoint import TrainingState
torch.set_num_threads(1)
write = TrainingState.write
def slow(self, path, identity, step, seconds):
    write(self, path, identity, step, seconds)
    time.sleep(60 if path.name == "seed1.checkpoint" else 0)
TrainingState.write = slow
from fastltssl.commands.cli import cli
cli(sys.argv[1:])
"""


def test_two_processes_train_like_one(cache, unbroken, tmp_path):
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    line = line_of(cache, out, "--seeds", "0-1", "--threads", "1")
    done = subprocess.run([*command, "-m", "fastltssl", *line], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ours, theirs = load_file(out / "tower.safetensors"), load_file(unbroken[0] / "tower.safetensors")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-3, msg=name)
    found = json.loads(done.stdout.splitlines()[-1])
    assert abs(found["bacc"]["mean"] - unbroken[1]["bacc"]["mean"]) < 1.0


def test_new_images_get_the_scores_of_the_tuned_tower(cache, unbroken, opened, tmp_path):

    trained = load_run(unbroken[0], cache, 1)
    encoder = encoder_of(trained, None, "cpu")
    images = open_source(DATASET).groups["test"]
    canvases = torch.from_numpy(np.stack([encoder.canvas(image) for image in images.read(range(120))]))
    scores = trained.scores(encoder.encode_parts(canvases)[:, 0])
    top1 = 100 * (scores.argmax(dim=-1) == torch.from_numpy(images.labels[:120])).float().mean().item()
    assert top1 == pytest.approx(unbroken[1]["top1"]["values"][1], abs=1.0)
    frozen = trained.scores(opened.encoder.encode_parts(canvases)[:, 0])
    assert (frozen - scores).abs().max() > 1e-3


def test_without_a_cache_one_of_center_views_is_made_by_all_processes(tmp_path):
    line = ["train", "probe", "--live", "bitfit", "--model", "tiny", "--dataset", "world:mild:3:1", "--n1", "3"]
    line += ["--steps", "2", "--evals", "1", "--threads", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29612"]
    done = subprocess.run(
        [*command, "-m", "fastltssl", *line], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"FASTLTSSL_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert open_cache(tmp_path / "world_mild_3_1_tiny_center.zarr").groups["train"].views == ("center",)


def test_evaluating_all_rows_and_validation_rows(cache, opened, tmp_path):
    config = config_of(cache, "probe", "bitfit", steps=2)
    config = dataclasses.replace(config, eval="all", protocol=dataclasses.replace(PROTOCOL, val=1), report="val")
    record = drain(live.training(config, cache, resident(cache), opened))
    assert record["val_bacc"]["mean"] > 0
    assert record["top1"]["mean"] > 0


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "zeroshot"}, "zeroshot has no loss, so nothing would train through the encoder"),
        ({"settings": {"head": "lastblock"}}, "this head reads taps of a frozen last block"),
        ({"live_mode": "lastk:9"}, "the tower has 4 blocks"),
        ({"live_mode": "ftt"}, "--live 'ftt' is unknown. Did you mean 'fft'?"),
        ({"optimizer": "adam"}, "--optimizer 'adam' is not one of sgd, adamw"),
        ({"views": "old"}, "--live-views 'old' is not one of fresh, cached"),
        ({"lr": 0.0}, "--encoder-lr 0.0 must be above 0"),
        ({"ema": 1.0}, "--ema 1.0 must be from 0 to below 1"),
    ],
)
def test_what_cannot_train_is_refused(cache, opened, change, message):
    with pytest.raises((RunError, TuningError)) as error:
        drain(live.training(config_of(cache, **change), cache, resident(cache), opened))
    assert message in str(error.value)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_kept(cache, opened, tmp_path):
    config = dataclasses.replace(config_of(cache, "fixmatch", "fft", steps=30), lr=1e6)
    with pytest.raises(RunError, match=r"are not finite\. Lower --lr or --encoder-lr"):
        drain(live.training(config, cache, resident(cache), opened, tmp_path))
    assert not list(tmp_path.glob("*.checkpoint"))
    one_step = dataclasses.replace(config, steps=1, evals=1)  # its loss is that of before the update
    with pytest.raises(RunError, match=r"weights of step 1 are not finite"):
        drain(live.training(dataclasses.replace(one_step, lr=1e38, weight_decay=1e38), cache, resident(cache), opened))


def test_a_step_that_memory_does_not_hold_is_refused_with_what_fits(cache, opened):
    own = Setup(cache, opened, mode="fft")
    trainee = own.trainee(own.tower())
    sample = trainee.inputs(Seen(np.array([0, 1]), ("center", "center")))
    one, two = step_bytes(trainee, sample[:1]), step_bytes(trainee, sample)
    assert 37 * 128 * 4 * 4 < one < 4 * 2**20  # more than the tokens of four blocks
    assert two == pytest.approx(2 * one, rel=0.05)
    tower = own.tower()
    recompute(tower)
    assert step_bytes(own.trainee(tower), sample[:1]) < one / 3
    check_memory(one, 16, 1, 100 * one)
    with pytest.raises(RunError, match=r"8 images would fit\. Pass --accumulate 2, which changes no number"):
        check_memory(one, 16, 1, 10 * one)
    with pytest.raises(RunError, match=r"0 images would fit\. Pass --recompute"):
        check_memory(one, 16, 4, one)


def test_flags_of_live_training_need_it(cache, tmp_path):
    line = ["train", "probe", "--cache", str(cache.path), "--out", str(tmp_path / "run")]
    for more, message in (
        (["--warmup", "3"], "--warmup belongs to training through the encoder"),
        (["--resume"], "--resume belongs to training through the encoder"),
        (["--root", "here"], "--root belongs to training through the encoder"),
        (["--live", "fft", "--model", "tiny"], "--model tiny is for a new cache"),
        (["--live", "fft", "--resume", "--overwrite"], "give one of them"),
        (["--live", "fft", "--resume"], "--resume needs the folder of the run"),
    ):
        own = line if "needs" not in message else line[:-2]
        assert message in invoke(*own, *more, code=2).told


def test_a_file_takes_the_names_of_the_flags_and_those_a_run_writes(cache, tmp_path):
    file, flags = tmp_path / "live.yaml", {"cache": "some", "method": "fixmatch"}
    wanted = Live("lora:4", lr=0.01, views="cached", compiled=True)
    for keys in ("encoder-lr: .01, live-views: cached, compile: true", "lr: .01, views: cached, compiled: true"):
        file.write_text(f"live: {{mode: 'lora:4', {keys}}}")
        assert Config.of(read_options(file), flags).live == wanted
    file.write_text("live: {mode: fft, rate: 1}")
    with pytest.raises(ConfigError, match="unknown key 'rate'"):
        Config.of(read_options(file), flags)


def test_images_that_the_data_set_lacks_are_named(cache, opened):
    with pytest.raises(SourceError, match="has no image 'train/nowhere' in its group 'train'"):
        pictures_of(opened.source, opened.encoder, [("train", ["train/nowhere"])])


def test_every_recipe_survives_its_text_form():
    from fastltssl.images.views import FAMILIES, RECIPES

    for recipe in (*RECIPES.values(), *(each for family in FAMILIES.values() for each in family.values())):
        assert parse_recipe(str(recipe)) == recipe
    assert recipes_of({"weak3": parse_recipe("weak(flip=0.25)")})["weak"].flip == 0.25
    with pytest.raises(ValueError, match="is no recipe"):
        parse_recipe("weak(flop=1)")
