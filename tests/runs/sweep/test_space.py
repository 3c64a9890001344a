"""Spaces of sweeps: what is swept by default, what a user may say, and how a wrong range is refused."""

import pytest

from fastltssl.errors import ConfigError, UnknownKnob
from fastltssl.runs.config import Config
from fastltssl.runs.sweep.space import Real, configured, grid, space_of

ULFINE = Config("ulfine", "cache.zarr")


def test_by_default_every_real_knob_is_swept_but_automatic_and_given_ones():
    space = space_of(Config("ulfine", "cache.zarr", settings={"eta": 0.3}))
    assert space["mu"] == Real(0, 1)
    assert space["lr"] == Real(0.003, 0.3, True)
    assert "head.scale" in space
    assert not {"momentum", "eta", "align", "weight_decay"} & space.keys()


def test_a_knob_that_nothing_reads_is_left_alone_until_its_option_is_chosen():
    assert "pull" in space_of(ULFINE)
    assert "orth_rate" not in space_of(ULFINE)
    other = space_of(Config("ulfine", "cache.zarr", settings={"orth": "step", "align": "none"}))
    assert "orth_rate" in other
    assert "pull" not in other


def test_a_range_narrows_and_only_leaves_the_rest_out():
    space = space_of(ULFINE, ["mu=0.1:0.4", "lambda_u=0.5:2:log", "align=stack|none", "batch=32|64"], ["mu", "eta"])
    assert space == {
        "mu": Real(0.1, 0.4), "eta": Real(0, 1), "lambda_u": Real(0.5, 2, True), "align": ("stack", "none"),
        "batch": (32, 64),
    }  # fmt: skip


def test_a_yaml_file_says_the_same_and_flags_win(tmp_path):
    (tmp_path / "space.yaml").write_text("mu: 0:0.5\nhead: [cosine, linear]\nlr: 1e-3:1e-1:log\n")
    space = space_of(ULFINE, ["mu=0.2:0.3"], (), tmp_path / "space.yaml")
    assert (space["mu"], space["head"], space["lr"]) == (Real(0.2, 0.3), ("cosine", "linear"), Real(0.001, 0.1, True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mu", "is not KNOB=LOW:HIGH"),
        ("mu=1:0", "LOW must be below HIGH"),
        ("lambda_u=0:1:log", "above 0 with :log"),
        ("mu=a:b", "is not LOW:HIGH"),
        ("batch=0|32", "whole numbers above 0"),
        ("head=cosin|linear", "no head 'cosin'"),
        ("lr=0.1|0.2", "is real, so it is LOW:HIGH"),
    ],
)
def test_a_wrong_range_is_refused_with_what_is_accepted(text, message):
    with pytest.raises(ConfigError, match=message):
        space_of(ULFINE, [text])


def test_an_unknown_knob_is_refused_with_the_nearest():
    with pytest.raises(UnknownKnob, match="Did you mean 'threshold'"):
        space_of(ULFINE, ["treshold=0.5:0.9"])
    with pytest.raises(UnknownKnob, match="alpha='x' is not one of"):
        space_of(ULFINE, ["alpha=uniform|x"])


def test_a_grid_has_its_ends_and_every_option_and_no_more_points_than_trials():
    space = {"mu": Real(0, 1), "lr": Real(0.01, 1, True), "align": ("stack", "none")}
    points = grid(space, 20)
    assert len(points) == 18
    assert sorted({point["mu"] for point in points}) == [0, 0.5, 1]
    assert sorted({point["lr"] for point in points}) == pytest.approx([0.01, 0.1, 1])
    with pytest.raises(ConfigError, match="at least 8 trials, and --trials is 7"):
        grid(space, 7)


def test_a_point_becomes_an_experiment():
    config = configured(ULFINE, {"lr": 0.1, "batch": 64, "mu": 0.2, "align": "none"})
    assert (config.lr, config.batch, config.settings) == (0.1, 64, {"mu": 0.2, "align": "none"})
