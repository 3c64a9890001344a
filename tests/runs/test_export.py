"""Exported runs: the run's own scores from torch alone, the run's own tensors, and an example that can be called."""

import csv
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import toy_cache
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import fastltssl
from fastltssl import methods
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.encoder import extract
from fastltssl.encoder.clip import load_encoder
from fastltssl.errors import ExportError, RunError
from fastltssl.images import open_source
from fastltssl.images.folder import open_images
from fastltssl.images.views import parse_views
from fastltssl.progress import drain
from fastltssl.runs import export
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import training
from fastltssl.runs.folder import read_record
from fastltssl.runs.trained import encoder_of, load_run, predicting
from fastltssl.training.rows import resident

PACKAGE = str(Path(fastltssl.__file__).parent)
ALONE = (
    "import sys, runpy; sys.modules.update(dict.fromkeys(['fastltssl', 'open_clip', 'einops', 'torchvision']));"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
METHOD = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True, eq=False)
class Method:
    views = (0, 0)
    def init(self, problem, generator):
        return {}
    def start(self, problem):
        return {"weight": problem.x[:, 0].T[:, : problem.prior.numel()].contiguous()}
    def scores(self, params, state, x):
        return {"test": %s}
"""


def trained(cache, out, method="probe", *, seeds=(0,), steps=3, **settings):
    config = Config(method, str(cache.path), Protocol(n1=5, m1=5), seeds, steps, settings=settings, evals=1)
    drain(training(config, cache, resident(cache), out))
    return out


def exported(run, out, cache, encoder=None):
    """The program of a run, loaded, what was said of it, and the run."""
    out.mkdir()
    one = load_run(run, cache)
    encoder = encoder_of(one, None, "cpu") if encoder else None
    found = export.write_export(out, one, encoder, read_record(run))
    return torch.export.load(out / "model.pt2").module(), found, one


def called(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def alone(*words):
    """What an example prints in a process of its own, in which only torch, numpy and Pillow can be imported."""
    command = [sys.executable, "-c", ALONE, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return [line.split("\t") for line in result.stdout.splitlines()]


@pytest.fixture
def printed(monkeypatch, capsys):
    """What an example prints in this process, which is quicker."""

    def run(script, *files):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, files)])
        capsys.readouterr()
        with torch.enable_grad():  # it turns gradients off for good
            runpy.run_path(str(script), run_name="__main__")
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty test images of the world in a size that is not the encoder's, as files."""
    folder = tmp_path_factory.mktemp("photos")
    for row, pixels in enumerate(open_source("world:mild:160:12").groups["test"].read(range(0, 480, 24))):
        Image.fromarray(pixels).resize((61, 50)).save(folder / f"{row:03d}.png")
    return folder


@pytest.fixture(scope="module")
def cached(world, tmp_path_factory):
    return trained(world, tmp_path_factory.mktemp("cached") / "run", "ulfine", seeds=(0, 2), steps=20)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((name, {}) for name in methods.names()),
        *(("probe", {"head": head}) for head in ("linear", "adapter", "taskres", "tip")),
        ("ulfine", {"align": "zscore", "alpha": "confidence"}),
    ],
)
def test_a_program_gives_the_scores_of_its_run_on_batches_of_any_size(world, tmp_path, method, settings):
    program, found, run = exported(trained(world, tmp_path / "run", method, **settings), tmp_path / "out", world)
    rows = resident(world).features["test"][:, 0].float()
    with torch.inference_mode():
        for count in (1, 3, 7, 200):
            own = run.scores(rows[:count])
            assert torch.allclose(program(rows[:count]), own, atol=1e-5 * own.abs().max())
        assert not torch.allclose(program(rows[:7]), program(rows[-7:]), atol=0.01)
    assert found.described["input"]["shape"] == ["n", 128]
    assert found.described["input"]["most_rows"] == (2048 if method == "labelprop" else None)
    assert PACKAGE.encode() not in (tmp_path / "out" / "model.pt2").read_bytes()


def compared(folder, run, cache, photos):
    """A program of pixels against what `predict` finds for the same files."""
    one = load_run(run, cache)
    own = drain(predicting(one, open_images(photos), encoder_of(one, None, "cpu"), workers=0))
    images = [Image.open(path).resize((48, 48), Image.Resampling.BILINEAR) for path in sorted(photos.iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
    program = torch.export.load(folder / "model.pt2").module()
    with torch.inference_mode():
        for count in (1, 3, 20):
            gap = (program(pixels[:count]).softmax(dim=-1) - own.probs[:count]).abs()
            assert gap.max() < 1e-3  # of a feature that rounds to the other neighbour in float16
            assert gap.median() < 1e-6
    return [one.cache.classes[k] for k in own.probs.argmax(dim=-1)]


@pytest.mark.parametrize("mode", ["fft", "adaptformer", "lora:2", "vpt:3"])
def test_a_live_run_is_exported_with_the_encoder_it_trained(world, photos, tmp_path, mode):
    run, out = tmp_path / "run", tmp_path / "out"
    live = f"train fixmatch --live {mode} --n1 2 --m1 2 --batch 4 --batch-u 4 --steps 2 --evals 1 --lr 0.1 --threads 1"
    called(*live.split(), "--cache", world.path, "--out", run)
    result = called("export", run, "--out", out, "--json")
    compared(out, run, world, photos)
    found = load_file(out / "head.safetensors")
    head, tower = load_file(run / "head.safetensors"), load_file(run / "tower.safetensors")
    assert {name.removeprefix("seed0."): value.sum() for name, value in head.items()} | {
        f"tower.{name.removeprefix('seed0.')}": value.sum() for name, value in tower.items()
    } == {name: value.sum() for name, value in found.items()}
    row = json.loads(result.stdout.splitlines()[-1])
    assert row["parameters"] == sum(value.numel() for value in found.values())
    assert row["model"]["live"] == mode
    assert f"next: python {out}/example.py IMAGE..." in result.stdout


def test_the_example_prints_what_predict_finds(world, cached, photos, tmp_path, printed):
    files = sorted(photos.iterdir())
    called("predict", cached, photos, "--out", tmp_path / "own.csv")
    own = [(row["label"], row["confidence"]) for row in csv.DictReader((tmp_path / "own.csv").read_text().splitlines())]
    for name, switch, run in (("rows", "--no-encoder", printed), ("whole", "--with-encoder", alone)):
        out = tmp_path / name
        called("export", cached, "--out", out, switch)
        lines = run(out / "example.py", *files)
        assert [path for path, _, _ in lines] == list(map(str, files))
        assert [label for _, label, _ in lines] == [label for label, _ in own]
        sure = np.array([[float(mine), float(theirs)] for (_, _, mine), (_, theirs) in zip(lines, own, strict=True)])
        assert np.abs(sure[:, 0] - sure[:, 1]).max() < 1e-3
    assert len({label for label, _ in own}) > 3
    compared(tmp_path / "whole", cached, world, photos)


def test_a_chosen_seed_is_exported_with_its_own_tensors(cached, tmp_path):
    called("export", cached, "--out", tmp_path / "out", "--seed", 2)
    stored, found = load_file(cached / "head.safetensors"), load_file(tmp_path / "out" / "head.safetensors")
    assert {f"seed2.{name}" for name in found} == {name for name in stored if name.startswith("seed2.")}
    assert all(torch.equal(value, stored[f"seed2.{name}"]) for name, value in found.items())
    assert not torch.equal(found["params.head.weight"], stored["seed0.params.head.weight"])
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (described["method"], described["seed"], described["knobs"]["head"]) == ("ulfine", 2, "cosine")
    assert described["encoder"]["weights_sha256"] == load_encoder("tiny", None).provenance["weights_sha256"]
    assert described["metrics"]["bacc"] == read_record(cached)["bacc"]
    assert described["deviation"] <= export.SAME


def test_a_head_that_reads_taps_takes_its_encoder_along(photos, tmp_path):
    path = tmp_path / "taps.zarr"
    source, encoder = open_source("world:mild:12:2"), load_encoder("tiny", None, taps=True)
    drain(extract.extract(source, encoder, parse_views("center"), path, templates="world"))
    cache = open_cache(path)
    config = Config("probe", str(path), Protocol(n1=5), steps=20, settings={"head": "lastblock"}, evals=1)
    drain(training(config, cache, resident(cache), tmp_path / "run"))
    called("export", tmp_path / "run", "--out", tmp_path / "out")
    compared(tmp_path / "out", tmp_path / "run", cache, photos)
    refused = CliRunner().invoke(cli, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "b"), "--no-encoder"])
    assert "reads taps of the last block, which no plain encoder gives. Pass --with-encoder" in str(refused.exception)
    assert not (tmp_path / "b").exists()


def test_an_imported_cache_gives_an_example_that_reads_arrays(tmp_path, printed):
    imported = toy_cache.write(tmp_path / "toy.zarr")
    config = Config("probe", str(imported.path), Protocol(n1=5), steps=5)
    drain(training(config, imported, resident(imported), tmp_path / "run"))
    _, found, run = exported(tmp_path / "run", tmp_path / "out", imported)
    rows = resident(imported).features["test"][:3, 0]
    np.save(tmp_path / "rows.npy", rows.numpy())
    assert (found.reads, found.described["encoder"]) == ("ARRAY.npy", None)
    own = [imported.classes[k] for k in run.scores(rows).argmax(dim=-1)]
    assert [label for _, label, _ in printed(tmp_path / "out" / "example.py", tmp_path / "rows.npy")] == own


@pytest.mark.parametrize("resize", ["squash", "shortest"])
@pytest.mark.parametrize("size", [(61, 50), (50, 97), (48, 48), (333, 48), (20, 31)])
def test_an_example_cuts_an_image_as_open_clip_does(tmp_path, resize, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    whole = open_clip.image_transform(48, False, resize_mode=resize, interpolation="bicubic")
    for part in whole.transforms[:-2]:
        image = part(image)
    names = {"encoder": {"size": 48, "interpolation": "bicubic"}, "np": np, "torch": torch, "Image": Image}
    exec(export.READERS[resize].code, names)
    assert torch.equal(
        names["read"](tmp_path / "image.png")[0], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    )


@pytest.mark.parametrize(
    ("pretrained", "model", "reader"),
    [("openai", "ViT-B-16", "named"), ("none", "ViT-B-16", "arrays"), ("file", "ViT-B-16", "arrays"),
     (None, "tiny", "tiny"), (None, "local-dir:clip", "named")],
)  # fmt: skip
def test_open_clip_makes_the_encoder_of_an_example_where_a_name_is_enough(world, cached, pretrained, model, reader):
    known = world.attributes["provenance"] | {"pretrained": pretrained, "model": model}
    run = load_run(cached, world)._replace(cache=world._replace(attributes={"provenance": known}))
    assert export.reader_of(run, None) == reader


def test_a_method_that_asks_for_the_length_of_its_rows_is_traced_all_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export.Program, "forward", inspect.unwrap(export.Program.forward)
    )  # torch cannot trace the shape checks
    (tmp_path / "mine.py").write_text(METHOD % 'x @ state["weight"] + torch.arange(len(x))[:, None]')
    program, found, run = exported(trained(world, tmp_path / "run", str(tmp_path / "mine.py")), tmp_path / "out", world)
    rows = torch.ones(5, 128)
    assert torch.allclose(program(rows), run.scores(rows), atol=1e-4)
    assert found.described["method"] == "mine"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ('x @ state["weight"] if x.sum() > 0 else x[:, :40]', "torch.export cannot trace this method's scores"),
        ('x @ state["weight"] + 9 * torch.rand(1)', "the exported program gives other scores than the run"),
    ],
)
def test_scores_that_are_no_program_are_refused_and_nothing_is_left(world, tmp_path, scores, message):
    (tmp_path / "mine.py").write_text(METHOD % scores)
    run = trained(world, tmp_path / "run", str(tmp_path / "mine.py"))
    result = CliRunner().invoke(cli, ["export", str(run), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ExportError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(cached, tmp_path):
    def refused(*words):
        return CliRunner().invoke(cli, ["export", *map(str, words)])

    assert isinstance(refused(tmp_path / "none", "--out", tmp_path / "a").exception, RunError)
    assert "has no seed 7, only 0, 2" in str(refused(cached, "--seed", 7, "--out", tmp_path / "a").exception)
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    result = refused(cached, "--out", tmp_path / "full")
    assert (result.exit_code, "is not empty; choose another --out, or pass --overwrite" in result.output) == (2, True)
    called("export", cached, "--out", tmp_path / "full", "--overwrite")
    assert {path.name for path in (tmp_path / "full").iterdir()} == {
        "notes.txt", "head.safetensors", "model.pt2", "model.json", "example.py",
    }  # fmt: skip
