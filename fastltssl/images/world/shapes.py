"""Shapes without names: random compositions of the parts of pictograms, for the warm-up of the tiny CLIP's image tower.

None of them is one of the 40 named pictograms. Half are mirror-symmetric, as named things often are.
"""

import math

import numpy as np

from fastltssl.images.world.pictograms import (
    GRID,
    Mask,
    X,
    Y,
    arc,
    box,
    circle,
    ellipse,
    line,
    pair,
    polygon,
    ring,
    star,
)  # fmt: skip

REACH = X**2 + Y**2 <= 1.15  # corners stay empty, so that no part of a shape is lost when it is turned
COVERED = (0.1, 0.6)  # smallest and largest share of the plane that a shape covers
SPAN = 0.6  # smallest extent along both axes, as a share of the plane


def nameless(seed: int, count: int) -> np.ndarray:
    """Every shape filled, then every shape as an outline: float32 [2 * count, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    return pair([_shape(rng) for _ in range(count)])


def _shape(rng: np.random.Generator) -> Mask:
    """Two to four parts, up to two holes."""
    while True:
        drawn = _part(rng)
        for _ in range(rng.integers(1, 4)):
            drawn = drawn | _part(rng)
        for _ in range(rng.integers(0, 3)):
            hole = _part(rng) if rng.random() < 0.5 else circle(*_point(rng, 0.5), rng.uniform(0.1, 0.25))
            drawn = drawn & ~hole
        if rng.random() < 0.5:
            drawn = drawn | drawn[:, ::-1]
        drawn = drawn & REACH
        high, wide = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
        is_large = len(high) > 0 and min(np.ptp(high), np.ptp(wide)) > SPAN * GRID
        if is_large and COVERED[0] < drawn.mean() < COVERED[1]:
            return drawn


def _part(rng: np.random.Generator) -> Mask:
    """One primitive of any kind, size and place."""
    kind, (x, y), size = rng.integers(8), _point(rng, 0.5), rng.uniform(0.2, 0.6)
    if kind == 0:
        return circle(x, y, 0.8 * size)
    if kind == 1:
        return ellipse(x, y, size, size * rng.uniform(0.25, 0.7), rng.uniform(0, 180))
    if kind == 2:
        half_width, half_height = rng.uniform(0.08, 0.6, 2)
        return box(x - half_width, y - half_height, x + half_width, y + half_height)
    if kind == 3:
        corners = int(rng.integers(3, 7))
        angles, radii = np.sort(rng.uniform(0, 2 * math.pi, corners)), rng.uniform(0.35, 0.9, corners)
        return polygon(*zip((x + radii * np.cos(angles)).tolist(), (y + radii * np.sin(angles)).tolist(), strict=True))
    if kind == 4:
        return line(*_point(rng, 0.75), *_point(rng, 0.75), rng.uniform(0.05, 0.16))
    if kind == 5:
        return ring(x, y, size, rng.uniform(0.1, 0.2))
    if kind == 6:
        start = rng.uniform(0, 200)
        return arc(x, y, 1.3 * size, rng.uniform(0.12, 0.22), start, min(360, start + rng.uniform(90, 250)))
    return star(int(rng.integers(4, 9)), 1.4 * size, size * rng.uniform(0.4, 0.7), x, y)


def _point(rng: np.random.Generator, reach: float) -> tuple[float, float]:
    return rng.uniform(-reach, reach), rng.uniform(-reach, reach)
