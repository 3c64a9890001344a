"""The steps that paint an image of the embedded world, from random numbers to noise; `world.render` runs them in order.

Axes: N images, H = 48 both image sides. Colours are red, green and blue from 0 to 255.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastltssl.images.world.pictograms import SIDE, atlas
from fastltssl.images.world.scenery import BACKGROUNDS, COLORS, GRAIN_SIDE, TEXTURE_SIDE, grain, textures, uniforms

IMAGE_SIDE = 48

# Which of an image's random numbers decides what. Another place for one of them would change every image of the world.
PURPOSE: dict[str, int | slice] = {
    "background": 0, "color": 1, "outlined": 2, "scale": 3, "aspect": 4, "angle": 5, "shift_x": 6, "shift_y": 7,
    "mirror": 8, "bend_x": 9, "bend_y": 10, "shear": 11, "crop_x": 12, "crop_y": 13, "brightness": 14,
    "tone": slice(15, 18), "light_x": 18, "light_y": 19, "occluded": 20, "cover_width": 21, "cover_height": 22,
    "cover_x": 23, "cover_y": 24, "cover_color": slice(25, 28), "blur": 28, "contrast": 29, "middle": 30,
    "tint": slice(31, 34), "noise": 34, "grain_x": 35, "grain_y": 36, "grain_flips": 37,
}  # fmt: skip
N_NUMBERS = 40

_side = ((np.arange(IMAGE_SIDE) + 0.5) / IMAGE_SIDE * 2 - 1).astype(np.float32)
PIXEL_X, PIXEL_Y = np.meshgrid(_side, _side)
TURN_STEPS = 1024
_angles = np.arange(TURN_STEPS) / TURN_STEPS * 2 * math.pi
# Rounded, so that the last bit of a platform's cosine cannot change an image.
COS, SIN = np.round(np.cos(_angles), 6).astype(np.float32), np.round(np.sin(_angles), 6).astype(np.float32)

Draws = dict[str, np.ndarray]  # uniform numbers in [0, 1) by purpose: [N], or [N, 3] where it is a colour


@dataclass(frozen=True)
class Style:
    """How the images of one domain look; a pair is the range of a uniform draw."""

    backgrounds: tuple[int, int]  # half-open range of BACKGROUNDS
    rotation: float  # degrees, in both directions
    scale: tuple[float, float]  # side of the pictogram, in image sides
    shift: float  # in half image sides, in both directions
    bend: float  # strength of a quadratic warp, in both directions
    outlined: float  # share drawn as an outline instead of filled
    noise: tuple[float, float]  # standard deviation
    blur: tuple[float, float]  # 0 sharp, 1 a full 3 x 3 binomial filter
    contrast: tuple[float, float]
    occluded: float  # share with a rectangle in front
    tint: float  # a channel is multiplied by 1 - tint to 1 + tint
    tone: float  # largest distance of a channel from that of the named colour


class Drawings(NamedTuple):
    """The drawings that images can show: n filled ones, then the same n as outlines."""

    pixels: np.ndarray  # float32, [2 * n, SIDE + 2, SIDE + 2] with an empty border, flattened
    number: int  # n


class Assets(NamedTuple):
    """The parts that images are composed of."""

    pictograms: Drawings  # the named ones
    textures: np.ndarray  # uint8 [12, TEXTURE_SIDE, TEXTURE_SIDE, 3]
    grain: np.ndarray  # float32 [GRAIN_SIDE, GRAIN_SIDE, 3]
    palette: np.ndarray  # float32 [10, 3]
    distinct: tuple[np.ndarray, ...]  # for each background, the colours that stand out from it


def drawings(pair: np.ndarray) -> Drawings:
    """Drawings from pixels [2 * n, SIDE, SIDE]: n filled, then n outlined."""
    return Drawings(np.pad(pair, ((0, 0), (1, 1), (1, 1))).reshape(-1), len(pair) // 2)


@functools.cache
def assets() -> Assets:
    """The drawn parts of the world, made in half a second at the first call and then kept."""
    drawn, palette = textures(), np.array(list(COLORS.values()), np.float32)
    mean_color = drawn.reshape(len(BACKGROUNDS), -1, 3).mean(axis=1)
    # Weighted as the eye does: green most and blue least.
    distance = np.sqrt(((mean_color[:, None] - palette[None]) ** 2 * np.array([0.9, 1.5, 0.6])).sum(axis=-1))
    return Assets(drawings(atlas()), drawn, grain(), palette, tuple(np.flatnonzero(row > 105) for row in distance))


def draws(seed: int, index: np.ndarray) -> Draws:
    """The random numbers of each image, by purpose."""
    drawn = uniforms(seed, index, N_NUMBERS)
    return {name: drawn[:, place] for name, place in PURPOSE.items()}


def spread(u: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Numbers in [0, 1) mapped to [low, high), float32."""
    return (bounds[0] + (bounds[1] - bounds[0]) * u).astype(np.float32)


def per_plane(value: np.ndarray) -> np.ndarray:
    """[N] -> [N, 1, 1], to broadcast with [N, H, H]."""
    return value[:, None, None]


def per_image(value: np.ndarray) -> np.ndarray:
    """[N] -> [N, 1, 1, 1], to broadcast with [N, H, H, 3]."""
    return value[:, None, None, None]


def backdrop(u: Draws, background: np.ndarray) -> np.ndarray:
    """A crop of each image's background, at a random brightness, float32 [N, H, H, 3]."""
    room = TEXTURE_SIDE - IMAGE_SIDE
    left, top = (u["crop_x"] * room).astype(int), (u["crop_y"] * room).astype(int)
    image = np.empty((len(background), IMAGE_SIDE, IMAGE_SIDE, 3), np.float32)
    for row, place in enumerate(background):
        image[row] = assets().textures[place, top[row] : top[row] + IMAGE_SIDE, left[row] : left[row] + IMAGE_SIDE]
    return image * per_image(0.8 + 0.4 * u["brightness"])


def warped(u: Draws, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """The point of the pictogram that each pixel shows, x and y [N, H, H]: shifted, turned, scaled, mirrored, bent."""
    scale, aspect = spread(u["scale"], style.scale), 1 + 0.3 * (u["aspect"] - 0.5)
    turn = ((2 * u["angle"] - 1) * style.rotation / 360 * TURN_STEPS).astype(int) % TURN_STEPS
    cos, sin = COS[turn], SIN[turn]
    mirror = np.where(u["mirror"] < 0.5, np.float32(-1), np.float32(1))
    x = PIXEL_X[None] - per_plane((2 * u["shift_x"] - 1) * style.shift)
    y = PIXEL_Y[None] - per_plane((2 * u["shift_y"] - 1) * style.shift)
    turned_x = (x * per_plane(cos / (scale * aspect)) + y * per_plane(sin / (scale * aspect))) * per_plane(mirror)
    turned_y = y * per_plane(cos * aspect / scale) - x * per_plane(sin * aspect / scale)
    bend_x, bend_y, shear = (per_plane((2 * u[name] - 1) * style.bend) for name in ("bend_x", "bend_y", "shear"))
    bent_x = turned_x + bend_x * turned_y * turned_y + shear * turned_y * turned_x
    return bent_x, turned_y + bend_y * turned_x * turned_x


def coverage(u: Draws, label: np.ndarray, is_outlined: np.ndarray, style: Style, drawn: Drawings) -> np.ndarray:
    """Share of each pixel that drawing `label` covers, float64 [N, H, H]: bilinear between the stored pixels."""
    stored, width, half = drawn.pixels, SIDE + 2, np.float32(SIDE / 2)
    x, y = (np.clip(place * half + np.float32(half + 0.5), 0, np.float32(SIDE + 0.99)) for place in warped(u, style))
    column, line = x.astype(np.int32), y.astype(np.int32)
    x, y = x - column, y - line
    drawing = (label + drawn.number * is_outlined).astype(np.int32)
    corner = per_plane(drawing * (width * width)) + line * width + column
    above, below = stored[corner], stored[corner + width]
    above = above + (stored[corner + 1] - above) * x
    below = below + (stored[corner + width + 1] - below) * x
    return above + (below - above) * y


def painted(image: np.ndarray, u: Draws, covered: np.ndarray, color: np.ndarray, style: Style) -> np.ndarray:
    """The image with the pictogram over it, in nearly its named colour (see `Style.tone`) and lit from one side."""
    tone = assets().palette[color] + (u["tone"] * 2 - 1) * style.tone
    slant = per_plane(2 * u["light_x"] - 1) * PIXEL_X + per_plane(2 * u["light_y"] - 1) * PIXEL_Y
    lit = tone[:, None, None, :] * (1 + np.float32(0.18) * slant)[..., None]
    return (image + covered[..., None] * (lit - image)).astype(np.float32)


def occluded(image: np.ndarray, u: Draws, style: Style) -> np.ndarray:
    """The images, a share of them with a rectangle of one colour in front."""
    is_near_x = np.abs(PIXEL_X - per_plane(u["cover_x"] * 1.4 - 0.7)) < per_plane(0.12 + 0.25 * u["cover_width"])
    is_near_y = np.abs(PIXEL_Y - per_plane(u["cover_y"] * 1.4 - 0.7)) < per_plane(0.12 + 0.6 * u["cover_height"])
    is_covered = is_near_x & is_near_y & per_plane(u["occluded"] < style.occluded)
    color = u["cover_color"] * 220 + 20
    return np.where(is_covered[..., None], color[:, None, None], image)


def blurred(image: np.ndarray, u: Draws, style: Style) -> np.ndarray:
    """The image blended with its 3 x 3 binomial average; edge pixels are repeated."""
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    smooth = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) * np.float32(0.25)
    padded = np.pad(smooth, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    smooth = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) * np.float32(0.25)
    return image + per_image(spread(u["blur"], style.blur)) * (smooth - image)


def developed(image: np.ndarray, u: Draws, style: Style) -> np.ndarray:
    """The image with its contrast changed around a random grey, and with a tint."""
    contrast, middle = spread(u["contrast"], style.contrast), 110 + 60 * (u["middle"] - 0.5)
    tint = 1 + (u["tint"] * 2 - 1) * style.tint
    return ((image - per_image(middle)) * per_image(contrast) + per_image(middle)) * tint[:, None, None, :]


def noisy(image: np.ndarray, u: Draws, style: Style) -> np.ndarray:
    """The image plus a crop of the noise sheet, flipped or transposed in one of eight ways."""
    room, strength = GRAIN_SIDE - IMAGE_SIDE, spread(u["noise"], style.noise)
    left, top = (u["grain_x"] * room).astype(int), (u["grain_y"] * room).astype(int)
    flips = (u["grain_flips"] * 8).astype(int)
    noise = np.empty_like(image)
    for row in range(len(image)):
        crop = assets().grain[top[row] : top[row] + IMAGE_SIDE, left[row] : left[row] + IMAGE_SIDE]
        crop = crop[::-1] if flips[row] & 1 else crop
        crop = crop[:, ::-1] if flips[row] & 2 else crop
        noise[row] = crop.transpose(1, 0, 2) if flips[row] & 4 else crop
    return image + per_image(strength) * noise
