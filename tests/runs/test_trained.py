"""New images through a trained run: what its cache would have given, or a message."""

import csv
import json

import numpy as np
import pytest
import torch
import toy_cache
from click.testing import CliRunner
from PIL import Image

from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.errors import RunError, SourceError
from fastltssl.images import open_source
from fastltssl.images.folder import open_images
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import training
from fastltssl.runs.trained import encoder_of, load_run, predicting
from fastltssl.training.rows import resident


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run on the world, and its test images as files."""
    top = tmp_path_factory.mktemp("predict")
    config = Config("ulfine", str(world.path), Protocol(n1=20, m1=20), seeds=(0, 2), steps=30)
    drain(training(config, world, resident(world), top / "run"))
    images = open_source("world:mild:160:12").groups["test"]
    for row, pixels in enumerate(images.read(range(100))):
        path = top / "photos" / f"part{row % 3}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return top


def lines_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("seed", [None, 2])
def test_an_image_gets_the_scores_it_has_in_the_cache(trained, world, seed):
    run = load_run(trained / "run", world, seed)
    source = open_images(trained / "photos")
    found = drain(predicting(run, source, encoder_of(run, None, "cpu"), workers=0))
    rows = torch.tensor([int(name[-7:-4]) for name in found.ids])
    cached = run.scores(resident(world).features["test"][rows, 0]).softmax(dim=-1)
    assert torch.allclose(found.probs, cached, atol=1e-6)
    assert len(found.ids) == 100


def test_the_command_writes_a_line_an_image(trained, tmp_path):
    out = tmp_path / "found.csv"
    line = ["predict", str(trained / "run"), str(trained / "photos"), "--out", str(out), "--probabilities", "--json"]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["images"] == 100
    rows = lines_of(out)
    assert rows[0]["image"] == "part0/000.png"
    for row in rows[:5]:
        probs = {name: float(value) for name, value in list(row.items())[3:]}
        assert max(probs, key=probs.get) == row["label"]
        assert sum(probs.values()) == pytest.approx(1, abs=0.01)


def test_a_broken_image_stops_it_by_name_or_is_left_out(trained, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "fine.png")
    (folder / "torn.png").write_bytes(b"no image")
    line = ["predict", str(trained / "run"), str(folder), "--out", str(tmp_path / "found.csv")]
    refused = CliRunner().invoke(cli, line)
    assert "torn.png" in str(refused.exception)
    taken = CliRunner().invoke(cli, [*line, "--skip-broken"])
    assert "left out 1 that cannot be decoded: torn.png" in taken.stdout
    assert [row["image"] for row in lines_of(tmp_path / "found.csv")] == ["fine.png"]


def test_what_cannot_predict_is_refused(trained, world, tmp_path):
    with pytest.raises(RunError, match="has no seed 7, only 0, 2"):
        load_run(trained / "run", world, 7)
    with pytest.raises(SourceError, match="holds no images"):
        open_images(tmp_path)
    imported = toy_cache.write(tmp_path / "toy.zarr")
    drain(
        training(
            Config("probe", str(imported.path), Protocol(n1=5), steps=5), imported, resident(imported), tmp_path / "r"
        )
    )
    with pytest.raises(RunError, match="was imported, so no encoder is known"):
        encoder_of(load_run(tmp_path / "r", imported), None, "cpu")
    with pytest.raises(RunError, match="Name the run's own cache with --cache"):
        load_run(tmp_path / "r", world)
    alike = toy_cache.write(tmp_path / "other.zarr", noise=0.8)  # of the same shapes: only its content is another
    with pytest.raises(RunError, match="was trained on a cache with fingerprint"):
        load_run(tmp_path / "r", alike)
