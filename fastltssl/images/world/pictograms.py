"""The 40 pictograms of the embedded world: outlines drawn as inside/outside masks, in numpy alone.

The drawing plane is the square [-1, 1] x [-1, 1], x to the right and y down. A drawing is a boolean mask on it;
`|` adds, `&` keeps the overlap and `& ~` cuts out. Angles are in degrees.
"""

import math
from collections.abc import Callable

import numpy as np

Mask = np.ndarray  # bool [GRID, GRID]
Point = tuple[float, float]

SIDE = 96  # pixels of a stored pictogram
SUPERSAMPLING = 3
GRID = SIDE * SUPERSAMPLING
STROKE = 10  # grid points of the pen in an outline drawing

_axis = (np.arange(GRID) + 0.5) / GRID * 2 - 1
X, Y = np.meshgrid(_axis, _axis)


def circle(x: float, y: float, radius: float) -> Mask:
    return (X - x) ** 2 + (Y - y) ** 2 <= radius * radius


def ellipse(x: float, y: float, a: float, b: float, turn: float = 0.0) -> Mask:
    """An ellipse of half axes a and b, turned clockwise."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    dx, dy = X - x, Y - y
    return ((dx * cos + dy * sin) / a) ** 2 + ((-dx * sin + dy * cos) / b) ** 2 <= 1


def box(left: float, top: float, right: float, bottom: float) -> Mask:
    return (left <= X) & (right >= X) & (top <= Y) & (bottom >= Y)


def polygon(*corners: Point) -> Mask:
    """Points whose ray to the right crosses the closed outline an odd number of times."""
    inside = np.zeros_like(X, bool)
    for (xa, ya), (xb, yb) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ya != yb:  # a horizontal edge is never crossed
            inside ^= ((ya > Y) != (yb > Y)) & ((xb - xa) * (Y - ya) / (yb - ya) + xa > X)
    return inside


def line(xa: float, ya: float, xb: float, yb: float, width: float) -> Mask:
    """Points within `width` of the segment from a to b: round ends."""
    dx, dy = xb - xa, yb - ya
    along = np.clip(((X - xa) * dx + (Y - ya) * dy) / (dx * dx + dy * dy), 0, 1)
    return (X - xa - along * dx) ** 2 + (Y - ya - along * dy) ** 2 <= width * width


def ring(x: float, y: float, radius: float, width: float) -> Mask:
    """A circle with a hole; the band lies inside the radius."""
    return circle(x, y, radius) & ~circle(x, y, radius - width)


def arc(x: float, y: float, radius: float, width: float, start: float, stop: float) -> Mask:
    """The part of a ring between two angles, counted clockwise from the right."""
    angle = np.degrees(np.arctan2(Y - y, X - x)) % 360
    return ring(x, y, radius, width) & (angle >= start) & (angle <= stop)


def star(points: int, outer: float, inner: float, x: float = 0.0, y: float = 0.0) -> Mask:
    """A star that stands on two of its points."""
    corners = []
    for corner in range(2 * points):
        radius = inner if corner % 2 else outer
        angle = math.radians(-90 + 180 * corner / points)
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return polygon(*corners)


def spiral() -> Mask:
    """A band of 89 short lines, 2.6 turns outwards."""
    turns, steps = 2.6, 90
    drawn = np.zeros_like(X, bool)
    last = None
    for step in range(steps):
        angle, radius = step / steps * turns * 2 * math.pi, 0.08 + 0.8 * step / steps
        here = (radius * math.cos(angle), radius * math.sin(angle))
        if last:
            drawn |= line(*last, *here, 0.085)
        last = here
    return drawn


# fmt: off
PICTOGRAMS: dict[str, Callable[[], Mask]] = {
    "anchor": lambda: ring(0, -.65, .25, .11) | box(-.07, -.5, .07, .8) | box(-.4, -.3, .4, -.16)
        | arc(0, .1, .75, .15, 10, 170),
    "apple": lambda: ellipse(-.28, .15, .48, .62) | ellipse(.28, .15, .48, .62) | line(0, -.35, .08, -.75, .06)
        | ellipse(.3, -.62, .26, .13, -25),
    "arrow": lambda: box(-.85, -.18, .2, .18) | polygon((.15, -.6), (.9, 0), (.15, .6)),
    "bell": lambda: (ellipse(0, .1, .55, .75) & (Y < .45)) | box(-.75, .38, .75, .55) | circle(0, .7, .16)
        | circle(0, -.7, .12),
    "boat": lambda: polygon((-.9, .3), (.9, .3), (.55, .8), (-.55, .8)) | box(-.05, -.8, .05, .3)
        | polygon((.12, -.75), (.75, .15), (.12, .15)) | polygon((-.12, -.5), (-.6, .15), (-.12, .15)),
    "bottle": lambda: box(-.38, -.15, .38, .9) | polygon((-.38, -.13), (-.15, -.45), (.15, -.45), (.38, -.13))
        | box(-.15, -.8, .15, -.4) | box(-.2, -.92, .2, -.75),
    "butterfly": lambda: ellipse(-.45, -.35, .45, .38, 30) | ellipse(.45, -.35, .45, .38, -30)
        | ellipse(-.38, .4, .36, .3, -35) | ellipse(.38, .4, .36, .3, 35) | ellipse(0, 0, .08, .65),
    "candle": lambda: box(-.25, -.1, .25, .7) | box(-.6, .68, .6, .85) | ellipse(0, -.5, .16, .3)
        | box(-.03, -.3, .03, -.05),
    "car": lambda: box(-.9, -.05, .9, .4)
        | (polygon((-.6, 0), (-.35, -.5), (.3, -.5), (.6, 0)) & ~box(-.04, -.38, .04, -.08))
        | circle(-.5, .42, .24) | circle(.5, .42, .24),
    "cat": lambda: (ellipse(0, .15, .7, .6) | polygon((-.68, .1), (-.65, -.8), (-.1, -.35))
        | polygon((.68, .1), (.65, -.8), (.1, -.35)))
        & ~circle(-.27, .05, .11) & ~circle(.27, .05, .11) & ~polygon((-.1, .3), (.1, .3), (0, .42)),
    "cherry": lambda: circle(-.42, .5, .36) | circle(.42, .4, .36) | line(-.4, .2, .1, -.8, .05)
        | line(.4, .1, .1, -.8, .05) | ellipse(.38, -.72, .3, .13, 10),
    "cloud": lambda: circle(-.45, .15, .38) | circle(0, -.12, .48) | circle(.48, .15, .36) | box(-.45, .1, .48, .52),
    "crown": lambda: polygon((-.8, .6), (-.85, -.45), (-.4, .05), (0, -.65), (.4, .05), (.85, -.45), (.8, .6))
        | circle(0, -.7, .1) | circle(-.85, -.5, .1) | circle(.85, -.5, .1),
    "diamond": lambda: polygon((-.85, -.2), (-.45, -.65), (.45, -.65), (.85, -.2), (0, .85))
        & ~line(-.85, -.2, .85, -.2, .03),
    "drop": lambda: circle(0, .3, .52) | polygon((-.46, .08), (0, -.9), (.46, .08)),
    "duck": lambda: ellipse(-.1, .35, .7, .42) | circle(.4, -.35, .33)
        | polygon((.65, -.45), (.98, -.25), (.65, -.15)) | polygon((-.7, .4), (-.95, -.1), (-.4, .1)),
    "envelope": lambda: box(-.9, -.6, .9, .6) & ~line(-.9, -.6, 0, .1, .05) & ~line(.9, -.6, 0, .1, .05),
    "fish": lambda: (ellipse(-.15, 0, .65, .42) & ~circle(-.5, -.08, .08))
        | polygon((.35, 0), (.9, -.45), (.9, .45)) | polygon((-.2, -.35), (.1, -.65), (.2, -.3)),
    "flag": lambda: box(-.7, -.9, -.55, .9) | polygon((-.55, -.85), (.8, -.7), (.5, -.4), (.8, -.05), (-.55, -.05)),
    "flower": lambda: (circle(0, -.5, .34) | circle(.48, -.15, .34) | circle(.3, .4, .34) | circle(-.3, .4, .34)
        | circle(-.48, -.15, .34) | circle(0, 0, .3)) & ~circle(0, 0, .2),
    "gear": lambda: (circle(0, 0, .62) | box(-.16, -.88, .16, .88) | box(-.88, -.16, .88, .16)
        | line(-.55, -.55, .55, .55, .16) | line(-.55, .55, .55, -.55, .16)) & ~circle(0, 0, .26),
    "glasses": lambda: ring(-.48, .1, .42, .12) | ring(.48, .1, .42, .12) | box(-.12, .0, .12, .12)
        | line(-.85, 0, -.9, -.3, .06) | line(.85, 0, .9, -.3, .06),
    "hammer": lambda: box(-.1, -.3, .1, .92) | box(-.6, -.75, .45, -.28)
        | polygon((.45, -.75), (.85, -.5), (.45, -.3)),
    "heart": lambda: circle(-.38, -.25, .43) | circle(.38, -.25, .43)
        | polygon((-.76, -.05), (0, .85), (.76, -.05), (0, -.3)),
    "hourglass": lambda: polygon((-.55, -.75), (.55, -.75), (0, .02)) | polygon((-.55, .75), (.55, .75), (0, -.02))
        | box(-.7, -.88, .7, -.72) | box(-.7, .72, .7, .88),
    "house": lambda: (box(-.6, -.1, .6, .8) | polygon((-.9, -.08), (0, -.85), (.9, -.08)))
        & ~box(-.15, .3, .15, .8),
    "key": lambda: ring(-.5, 0, .4, .17) | box(-.15, -.09, .9, .09) | box(.45, 0, .58, .35) | box(.72, 0, .85, .3),
    "ladder": lambda: box(-.45, -.9, -.3, .9) | box(.3, -.9, .45, .9)
        | np.any([box(-.4, rung - .06, .4, rung + .06) for rung in (-.6, -.2, .2, .6)], axis=0),
    "leaf": lambda: (circle(-.45, 0, .85) & circle(.45, 0, .85) & ~box(-.025, -.4, .025, .7))
        | line(0, .6, .1, .95, .05),
    "lightning": lambda: polygon((.15, -.92), (-.55, .12), (-.05, .12), (-.25, .92), (.55, -.2), (.05, -.2),
        (.4, -.92)),
    "moon": lambda: circle(-.05, 0, .82) & ~circle(.35, -.12, .68),
    "mug": lambda: box(-.65, -.6, .35, .7) | ring(.4, .05, .42, .14) & (X > .3),
    "mushroom": lambda: (ellipse(0, 0, .82, .75) & (Y < .02)) | box(-.25, 0, .25, .75) | ellipse(0, .75, .25, .1),
    "padlock": lambda: (box(-.6, -.1, .6, .8) & ~circle(0, .3, .13) & ~box(-.05, .3, .05, .55))
        | arc(0, -.15, .45, .15, 180, 360) | box(-.45, -.2, -.3, 0) | box(.3, -.2, .45, 0),
    "rocket": lambda: (ellipse(0, -.1, .32, .8) & ~circle(0, -.25, .14)) | polygon((-.25, .2), (-.7, .75), (-.15, .55))
        | polygon((.25, .2), (.7, .75), (.15, .55)) | polygon((-.15, .68), (.15, .68), (0, .95)),
    "spiral": spiral,
    "star": lambda: star(5, .92, .38, 0, .05),
    "sun": lambda: circle(0, 0, .42) | (star(10, .95, .45) & ~circle(0, 0, .52)),
    "tree": lambda: polygon((0, -.92), (.5, -.3), (-.5, -.3)) | polygon((0, -.6), (.65, .15), (-.65, .15))
        | polygon((0, -.2), (.8, .6), (-.8, .6)) | box(-.13, .55, .13, .92),
    "umbrella": lambda: (circle(0, .05, .85) & (Y < .05) & ~circle(-.57, .1, .27) & ~circle(0, .1, .27)
        & ~circle(.57, .1, .27)) | box(-.05, -.85, .05, .6) | arc(.18, .6, .23, .1, 0, 180),
}
# fmt: on


def outline(drawing: Mask) -> Mask:
    """What a pen of radius STROKE draws: the drawing without the points further than that from its edge."""
    around = np.pad(drawing, STROKE, mode="wrap")
    core = drawing.copy()
    for down in range(-STROKE, STROKE + 1):
        for right in range(-STROKE, STROKE + 1):
            if down * down + right * right <= STROKE * STROKE:
                core &= around[STROKE - down : STROKE - down + GRID, STROKE - right : STROKE - right + GRID]
    return drawing & ~core


def coverage(drawing: Mask) -> np.ndarray:
    """Share of each stored pixel that the drawing covers, float32 [SIDE, SIDE] in [0, 1]."""
    return drawing.reshape(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING).mean(axis=(1, 3)).astype(np.float32)


def pair(drawings: list[Mask]) -> np.ndarray:
    """Every drawing filled, then every drawing as an outline: float32 [2 * n, SIDE, SIDE]."""
    return np.stack([coverage(drawing) for drawing in drawings] + [coverage(outline(drawing)) for drawing in drawings])


def atlas() -> np.ndarray:
    """The named pictograms as a pair: float32 [2 * 40, SIDE, SIDE]."""
    return pair([draw() for draw in PICTOGRAMS.values()])
