"""`fastltssl world`: the contact sheet, and the training of the tiny CLIP, as a user types them."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastltssl.cli import COMMANDS, cli
from fastltssl.encoder import load_encoder
from fastltssl.sources import sheet
from fastltssl.sources.painting import drawings
from fastltssl.sources.pictograms import GRID, SIDE, atlas
from fastltssl.sources.shapes import COVERED, nameless
from fastltssl.sources.world import CLASSES, STYLES, render


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(part) for part in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_sheet_shows_the_very_images_of_every_class(tmp_path):
    out = tmp_path / "sheet.png"
    result = run("world", "sheet", "--style", "hard", "--each", 2, "--seed", 5, "--out", out)
    assert f"wrote {out}" in result.output
    page = np.asarray(Image.open(out))
    label = CLASSES.index("duck")
    for number in range(2):
        image = render(5, np.array([2 * label + number]), np.array([label]), STYLES["hard"])[0]
        windows = np.lib.stride_tricks.sliding_window_view(page, image.shape)[:, :, 0]
        corners = np.argwhere((windows[:, :, :2, :2] == image[:2, :2]).all(axis=(2, 3, 4)))
        assert sum(np.array_equal(windows[y, x], image) for y, x in corners) == 1


def test_a_sheet_is_the_same_each_time_and_follows_its_seed():
    pages = [sheet.sheet(CLASSES[:5], {"mild": STYLES["mild"]}, each=1, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(pages[0], pages[1])
    assert not np.array_equal(pages[0], pages[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "milt"], r"--style 'milt' is unknown. Did you mean 'mild'?"),
        (["--out", "sheet.gif"], "must end in .png or .jpg"),
        (["--out", "nowhere/sheet.png"], "there is no folder nowhere"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_says_why(arguments, message):
    assert message in run("world", "sheet", *arguments, code=2).output


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")
def test_world_train_writes_a_model_that_extract_can_load_and_will_not_overwrite_it(tmp_path):
    arguments = ["world", "train", "--out", tmp_path / "new", "--warmup-steps", 1, "--caption-steps", 1]
    record = json.loads(run(*arguments, "--json").stdout.splitlines()[-1])
    assert record["warm_up_images"] == record["caption_pairs"] == 128
    assert load_encoder(f"local-dir:{tmp_path / 'new'}", None).embed_width == 128
    assert "pass --overwrite" in run(*arguments, code=2).output
    run(*arguments, "--overwrite")


def test_every_command_of_the_table_says_of_itself_what_the_table_says():
    for name, line in COMMANDS.items():
        assert " ".join(run(name, "--help").output.split("\n\n")[1].split()).startswith(line)


def test_a_mistyped_command_hints_at_the_nearest():
    assert "Did you mean 'train'?" in run("tarin", code=2).output


# What the image tower is warmed up on


def test_nameless_shapes_follow_their_seed_and_keep_to_their_plane():
    filled, outlined = np.split(nameless(3, 24), 2)
    assert np.array_equal(filled, nameless(3, 24)[:24])
    assert not np.array_equal(filled, nameless(4, 24)[:24])
    covered = filled.mean(axis=(1, 2))
    assert np.all((covered > COVERED[0] - 0.01) & (covered < COVERED[1] + 0.01))
    assert np.all(outlined <= filled)
    assert 4 < sum(np.array_equal(each, each[:, ::-1]) for each in filled) < 20


def test_no_nameless_shape_of_the_shipped_recipe_is_a_named_pictogram():
    from fastltssl.pretrain import Recipe

    recipe = Recipe()
    shapes, named = (each[: len(each) // 2].reshape(len(each) // 2, -1) for each in (
        nameless(recipe.seed, recipe.shapes), atlas(),
    ))  # fmt: skip
    both = shapes @ named.T
    overlap = both / (shapes.sum(axis=1)[:, None] + named.sum(axis=1) - both)  # intersection over union
    assert overlap.max() < 0.85
    assert GRID % SIDE == 0


def test_other_drawings_are_rendered_by_their_own_labels():
    shapes, index = drawings(nameless(1, 3)), np.arange(6)
    images = render(2, index, index % 3, STYLES["mild"], shapes)
    alone = render(2, index[4:5], index[4:5] % 3, STYLES["mild"], shapes)
    assert np.array_equal(images[4:5], alone)
    assert not np.array_equal(images, render(2, index, index % 3, STYLES["mild"]))
