"""`fastltssl world`: the contact sheet, and the training of the tiny CLIP, as a user types them."""

import json
import re
import shutil
import sys
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from shell import invoke

from fastltssl.__main__ import main
from fastltssl.commands.cli import cli
from fastltssl.encoder import pretrain
from fastltssl.encoder.clip import load_encoder
from fastltssl.errors import PretrainError
from fastltssl.images.world import contact_sheet
from fastltssl.images.world.painting import IMAGE_SIDE, drawings
from fastltssl.images.world.shapes import nameless
from fastltssl.images.world.world import CLASSES, STYLES, render
from fastltssl.show.terminal import follow

SHORT = ["--warmup-steps", "3", "--caption-steps", "2"]
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(part) for part in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def places(page, image):
    """The corners [n, (y, x)] at which the page shows the image, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(page, image.shape)[:, :, 0]
    corners = np.argwhere((windows[:, :, :2, :2] == image[:2, :2]).all(axis=(2, 3, 4)))
    return [corner for corner in corners if np.array_equal(windows[tuple(corner)], image)]


# The contact sheet


def test_the_sheet_shows_the_very_images_of_every_class_the_first_style_to_the_left():
    result = run("world", "sheet", "--style", "hard", "--style", "mild", "--each", 2, "--seed", 5, "--out", "sheet.png")
    page = np.asarray(Image.open("sheet.png"))
    assert f"wrote sheet.png ({page.shape[1]} x {page.shape[0]} pixels)\nnext: fastltssl " in result.output
    for label in (0, CLASSES.index("duck"), 39):
        index, labels = 2 * label + np.arange(2), np.full(2, label)
        hard, mild = (render(5, index, labels, STYLES[style]) for style in ("hard", "mild"))
        found = [places(page, image) for image in (*hard, *mild)]
        assert [len(each) for each in found] == [1, 1, 1, 1]
        y, x = np.array(found)[:, 0].T
        assert len(set(y)) == 1
        assert np.all(np.diff(x) > IMAGE_SIDE)


def test_a_sheet_is_the_same_each_time_and_follows_its_seed():
    pages = [contact_sheet.sheet(CLASSES[:5], {"mild": STYLES["mild"]}, count=1, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(pages[0], pages[1])
    assert not np.array_equal(pages[0], pages[2])


@pytest.mark.parametrize("each", [1, 3, 8])
@pytest.mark.parametrize("styles", [["mild"], ["caption", "mild"], ["caption", "mild", "hard"]])
def test_a_sheet_has_even_margins_with_nothing_in_them_and_is_about_as_wide_as_a_screen(styles, each):
    page = contact_sheet.sheet(CLASSES, {name: STYLES[name] for name in styles}, count=each)
    assert page.shape[1] <= 1600 or each == 8
    is_ink = (page != contact_sheet.PAPER).any(axis=-1)
    lines, columns = np.flatnonzero(is_ink.any(axis=1)), np.flatnonzero(is_ink.any(axis=0))
    assert abs(lines[0] - contact_sheet.MARGIN) <= 1
    assert len(page) - 1 - lines[-1] == contact_sheet.MARGIN
    assert abs(columns[0] - contact_sheet.MARGIN) <= 1
    assert page.shape[1] - 1 - columns[-1] >= contact_sheet.MARGIN


def test_the_usual_sheet_is_a_picture_for_the_web():
    run("world", "sheet")
    with Image.open("world.jpg") as picture:
        assert 1200 <= picture.width <= 1600
    assert 100_000 < Path("world.jpg").stat().st_size < 700_000


def test_nameless_shapes_are_shown_as_the_warm_up_draws_them():
    run("world", "sheet", "--nameless", "--each", 1, "--out", "shapes.png")
    shapes = drawings(nameless(0, len(CLASSES)))
    image = render(0, np.array([7]), np.array([7]), pretrain.BROAD, shapes)[0]
    assert len(places(np.asarray(Image.open("shapes.png")), image)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "milt"], "--style 'milt' is unknown. Did you mean 'mild'? Known: mild, hard, caption"),
        (["--style", "warm-up"], "--style 'warm-up' is unknown. Known: mild, hard, caption"),
        (["--out", "sheet.gif"], "must end in .png or .jpg"),
        (["--out", "nowhere/sheet.png"], "nowhere/sheet.png cannot be written: there is no folder nowhere. Choose"),
        (["--out", "folder.png"], "folder.png cannot be written: it is a folder. Choose another place"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_says_why(arguments, message, tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert message in invoke("world", "sheet", *arguments, code=2).told


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of a few steps, and what its training printed."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("Muon came with torch 2.9")
    folder = tmp_path_factory.mktemp("trained") / "new"
    return folder, run("world", "train", "--out", folder, *SHORT, "--json")


def test_world_train_writes_a_model_that_extract_can_load_and_reports_it(trained):
    folder, result = trained
    record = json.loads(result.stdout.splitlines()[-1])
    assert record == json.loads((folder / "training.json").read_text())
    assert (record["warm_up_images"], record["caption_pairs"]) == (3 * 128, 2 * 128)
    assert "384 images of 256 nameless shapes, then 256 images with captions" in result.stdout
    assert f"wrote {folder}\nnext: fastltssl extract --model local-dir:{folder} --dataset world" in result.stdout
    assert "fastltssl bias --cache new.zarr" in result.stdout
    encoder = load_encoder(f"local-dir:{folder}", None)
    images = torch.from_numpy(render(0, np.arange(3), np.arange(3), STYLES["mild"])).permute(0, 3, 1, 2)
    features = encoder.encode(images)
    assert features.shape == (3, 128)
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1])


def test_a_model_that_is_there_is_replaced_only_with_overwrite(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "copy")
    arguments = ["world", "train", "--out", "copy", *SHORT, "--warmed", folder, "--negatives", "batch"]
    weights = tmp_path / "copy/open_clip_model.safetensors"
    before = weights.read_bytes()
    refused = run(*arguments, code=2)
    assert "copy holds a trained model; choose another --out, or pass --overwrite" in refused.output
    assert weights.read_bytes() == before
    run(*arguments, "--overwrite")
    assert weights.read_bytes() != before


def test_progress_counts_the_steps_of_this_run_so_that_rate_and_time_left_hold(trained, tmp_path):
    recipe, shown = pretrain.Recipe(warmup_steps=3, caption_steps=2), StringIO()
    follow(pretrain.pretrain(recipe, tmp_path / "a", warmed=trained[0]), "world train", shown)
    first, *_, last = shown.getvalue().splitlines()
    assert first.startswith("world train: 4 of 5  captions, loss ")
    assert re.fullmatch(r"world train: 5 of 5  captions, loss .*, accuracy \d+ %, \d+\.\d steps/s, .* s", last)


def test_a_killed_run_goes_on_even_where_it_was_to_replace_a_model(trained, monkeypatch, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "again")
    monkeypatch.setattr(pretrain, "EVERY", 1)
    list(islice(pretrain.pretrain(pretrain.Recipe(warmup_steps=3, caption_steps=2), tmp_path / "again"), 4))
    assert isinstance(run("world", "train", "--out", "again", *SHORT, code=1).exception, PretrainError)
    run("world", "train", "--out", "again", *SHORT, "--resume")
    again, first = (each / "open_clip_model.safetensors" for each in (tmp_path / "again", folder))
    assert again.read_bytes() == first.read_bytes()


@needs_muon
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "new", "--negatives", "bang"], "negatives 'bang' is not one of bank, batch"),
        (["--out", "new", "--warmed", "TRAINED", "--warmup-steps", "4"], "is of another warm-up: [0, 256, 3, 128"),
        (["--out", "new", "--warmed", "nowhere"], "--warmed nowhere: there is no warmup.safetensors"),
        (["--out", "file"], "--out file cannot be written: [Errno 17] File exists"),
    ],
)
def test_training_that_cannot_start_ends_in_one_message(arguments, message, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    words = [str(trained[0]) if part == "TRAINED" else part for part in arguments]
    monkeypatch.setattr(sys, "argv", ["fastltssl", "world", "train", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("new/*"))
