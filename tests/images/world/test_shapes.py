"""What the tiny CLIP's image tower is warmed up on: shapes without names, none of them a named pictogram."""

import numpy as np
import pytest

from fastltssl.encoder.pretrain import Recipe
from fastltssl.images.world.painting import drawings
from fastltssl.images.world.pictograms import GRID, SIDE, X, Y, atlas, star
from fastltssl.images.world.shapes import nameless
from fastltssl.images.world.world import CLASSES, STYLES, render


@pytest.fixture(scope="module")
def shipped():
    """The shapes of the shipped weights, filled and outlined, [256, SIDE, SIDE] each."""
    recipe = Recipe()
    return np.split(nameless(recipe.seed, recipe.shapes), 2)


def overlap(a, b):
    """Intersection over union of every drawing of a with every one of b."""
    a, b = ((drawings > 0.5).reshape(len(drawings), -1).astype(np.float32) for drawings in (a, b))
    both = a @ b.T
    return both / (a.sum(axis=1)[:, None] + b.sum(axis=1) - both)


def is_symmetric(shapes):
    return np.array([np.array_equal(shape, shape[:, ::-1]) for shape in shapes])


def test_shapes_follow_their_seed_and_a_longer_list_starts_as_a_shorter_one(shipped):
    filled, outlined = np.split(nameless(Recipe().seed, 24), 2)
    assert np.array_equal(filled, shipped[0][:24])
    assert np.array_equal(outlined, shipped[1][:24])
    assert not np.array_equal(filled, np.split(nameless(Recipe().seed + 1, 24), 2)[0])


def test_no_shape_is_or_nearly_is_a_named_pictogram_however_turned_or_mirrored(shipped):
    named = atlas()[: len(CLASSES)]
    assert np.all(np.diag(overlap(named, named)) == 1)
    turned = [np.rot90(view, turns, axes=(1, 2)) for view in (shipped[0], shipped[0][:, :, ::-1]) for turns in range(4)]
    alike = np.triu(overlap(named, named), 1).max()  # of the two named pictograms nearest to each other
    assert max(overlap(view, named).max() for view in turned) < alike


def test_no_two_shapes_are_the_same(shipped):
    between = overlap(shipped[0], shipped[0])
    np.fill_diagonal(between, 0)
    assert between.max() < 0.82


def test_shapes_fill_a_fair_part_of_their_plane_and_leave_its_corners_empty(shipped):
    filled, outlined = shipped
    covered = filled.mean(axis=(1, 2))
    assert 0.1 < covered.min() < 0.2
    assert 0.5 < covered.max() < 0.6
    extent = np.array([[np.ptp(np.flatnonzero(shape.any(axis=axis))) for axis in (0, 1)] for shape in filled])
    assert extent.min() > 0.6 * SIDE - 2
    is_corner = (X**2 + Y**2 > 1.2).reshape(SIDE, GRID // SIDE, SIDE, GRID // SIDE).all(axis=(1, 3))
    assert is_corner.any()
    assert not filled[:, is_corner].any()
    assert np.all(outlined <= filled)
    assert np.all(outlined.sum(axis=(1, 2)) < filled.sum(axis=(1, 2)))


def test_about_half_of_the_shapes_are_mirror_symmetric(shipped):
    assert is_symmetric(star(5, 0.9, 0.4)[None]).all()
    assert 0.4 < is_symmetric(shipped[0]).mean() < 0.7


def test_other_drawings_are_rendered_by_their_own_labels():
    shapes, index = drawings(nameless(1, 3)), np.arange(6)
    images = render(2, index, index % 3, STYLES["mild"], shapes)
    alone = render(2, index[4:5], index[4:5] % 3, STYLES["mild"], shapes)
    assert np.array_equal(images[4:5], alone)
    assert not np.array_equal(images, render(2, index, index % 3, STYLES["mild"]))
