"""Named augmentation recipes, and the views of an image that they make from (seed, image, view name) alone.

Every random number of a view is a hash of these three, not the next one of a generator, so its pixels do not depend on
batch, order, workers or resuming. Lengths are shares of the image side; canvases are square, with pixels in [0, 1].
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt64
from torch import Tensor

from fastltssl.errors import ViewError
from fastltssl.images.randaugment import GREY, randaugmented
from fastltssl.images.world.scenery import scrambled

MOST_VIEWS = 256  # of one recipe
OPS = 3  # RandAugment operations of a recipe, at most
DRAWS = (  # what each random number of a view decides; new ones are added at the end, so that old views do not change
    "flip", "right", "down", "turn", "scale", "shear", "brightness", "contrast", "saturation", "cut_x", "cut_y",
    "area", "aspect", *(f"{part}{op}" for op in range(OPS) for part in ("op", "level", "sign", "chance")),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The largest change of each kind; 0 leaves it out. The text of a recipe is part of a cache's fingerprint."""

    name: str
    flip: float = 0.0  # probability of a mirror image
    shift: float = 0.0  # share of the side, in whole pixels; the image is reflected at its edges
    turn: float = 0.0  # degrees, in both directions
    scale: float = 0.0  # the size is multiplied by 1 - scale to 1 + scale
    shear: float = 0.0
    brightness: float = 0.0  # these three factors are 1 - x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: float = 0.0  # side of a grey square
    zoom: float = 0.0  # the size is first multiplied by 1 + zoom, as by Resize(256) and a crop of 224 (0.143)
    crop: float = 0.0  # least area of a random crop, resized to the whole, with sides from 3:4 to 4:3
    randaugment: float = 0.0  # number of FixMatch's RandAugment operations, each applied with probability 1/2

    def __str__(self) -> str:
        changes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        parts = ",".join(f"{name}={value:g}" for name, value in changes.items() if value)
        return f"{self.name}({parts})" if parts else self.name


@dataclass(frozen=True)
class View:
    """One view of every image, such as weak0."""

    name: str
    recipe: Recipe
    index: int


CENTER = Recipe("center")
WEAK = Recipe("weak", flip=0.5, shift=0.0625)
# Mild enough for a zero-shot model: on the embedded world its accuracy is 63 % center, 61 % weak, 52 % strong.
STRONG = Recipe(
    "strong", flip=0.5, shift=0.0625, turn=15, scale=0.1, shear=0.1,
    brightness=0.2, contrast=0.25, saturation=0.3, cutout=0.15,
)  # fmt: skip
# Augmentations of published code: flip, shift and RandAugment of FixMatch (arXiv 2001.07685: padding 4 of 32 pixels, 2
# operations, cutout of half the side), the same at 224 pixels as in FineSSL, and the random resized crop of LIFT.
_fixmatch = Recipe("fixmatch.weak", flip=0.5, shift=0.125)
_finessl = Recipe("finessl.weak", flip=0.5, shift=0.196, zoom=0.143)
FAMILIES: dict[str, dict[str, Recipe]] = {
    "fixmatch": {
        "weak": _fixmatch,
        "strong": dataclasses.replace(_fixmatch, name="fixmatch.strong", randaugment=2, cutout=0.5),
    },
    "finessl": {
        "weak": _finessl,
        "strong": dataclasses.replace(_finessl, name="finessl.strong", randaugment=2, cutout=0.071),
    },
    "lift": {"weak": Recipe("lift.weak", flip=0.5, crop=0.08)},
}
RECIPES = {recipe.name: recipe for recipe in (CENTER, WEAK, STRONG)}


def parse_views(text: str) -> tuple[View, ...]:
    """The views that a text names, in its order: "center,weak:2" is center, weak0, weak1. It must begin with center.

    A family names as many views of each strength: "center,finessl:4" is center, weak0 to weak3, strong0 to strong3.
    Raises ViewError.
    """
    views: list[View] = []
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        count = int(number) if number.isdecimal() else 0
        roles = FAMILIES.get(name) or ({name: RECIPES[name]} if name in RECIPES else {})
        is_new = bool(roles) and not {view.name for view in views} & {
            "center" if name == "center" else f"{role}0" for role in roles
        }
        is_counted = not colon if name == "center" else not colon or 1 <= count <= MOST_VIEWS
        if not is_new or not is_counted:
            raise ViewError(_refusal(text, f"{part.strip()!r} is repeated, unknown or badly counted"))
        if name == "center":
            views.append(View("center", CENTER, 0))
        else:
            views += [View(f"{role}{index}", roles[role], index) for role in roles for index in range(count or 1)]
    if views[0].name != "center":
        raise ViewError(_refusal(text, "it does not begin with center, the view that is tested on"))
    return tuple(views)


def _refusal(text: str, why: str) -> str:
    """The message of a ViewError."""
    return (
        f"--views {text!r}: {why}. Accepted: center first, then weak:N and strong:N, "
        f"each once, N from 1 to {MOST_VIEWS}. For example: --views center,weak:4,strong:4. "
        f"In place of the two: {', '.join(f'{family}:N' for family in FAMILIES)}"
    )


def parse_recipe(text: str) -> Recipe:
    """The recipe that a text stands for, as in the provenance of a cache. Raises ViewError."""
    name, _, changes = text.removesuffix(")").partition("(")
    pairs = [part.partition("=") for part in changes.split(",") if part]
    known = {field.name for field in dataclasses.fields(Recipe)[1:]}
    try:
        if not name or not {key for key, _, _ in pairs} <= known:
            raise ValueError
        return Recipe(name, **{key: float(value) for key, _, value in pairs})
    except ValueError:
        raise ViewError(f"{text!r} is no recipe. A recipe reads name(flip=0.5,shift=0.0625)") from None


def image_key(image_id: str) -> int:
    """A 64-bit hash of the id of an image, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


def make_view(
    canvas: Float[Tensor, "B 3 H W"], view: View, keys: UInt64[np.ndarray, " B"], seed: int
) -> Float[Tensor, "B 3 H W"]:
    """A view of each image, in [0, 1]; `keys` come from image_key. The center view is the canvas itself."""
    recipe = view.recipe
    if recipe == CENTER:
        return canvas
    uniform = uniforms(seed, view.name, keys, len(DRAWS))
    draw = dict(zip(DRAWS, torch.from_numpy(uniform).to(canvas.device)[..., None, None].unbind(dim=1), strict=True))
    image = _moved(canvas, recipe, draw)  # a new tensor, which the following steps overwrite
    if recipe.randaugment:
        image = randaugmented(image, int(recipe.randaugment), dict(zip(DRAWS, uniform.T, strict=True)))
    if recipe.brightness or recipe.contrast or recipe.saturation:
        image = _coloured(image, recipe, draw)
    if recipe.cutout:
        image = _cut(image, recipe, draw)
    return image


def uniforms(seed: int, view: str, keys: UInt64[np.ndarray, " B"], count: int) -> Float32[np.ndarray, "B count"]:
    """Numbers in [0, 1): number k of an image is a hash of (seed, view, key, k); see `scrambled`."""
    stream = np.uint64(image_key(f"{seed}/{view}"))
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = scrambled(scrambled(keys ^ stream)[:, None] + counter)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _around(draw: Tensor, reach: float) -> Tensor:
    """Draws in [0, 1), mapped to -reach to reach."""
    return (draw * 2 - 1) * reach


def _moved(
    canvas: Float[Tensor, "B 3 H W"], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> Float[Tensor, "B 3 H W"]:
    """The canvas flipped, shifted, turned, scaled, sheared and cropped, in one bilinear resampling.

    Coordinates are those of grid_sample: 0 in the centre, -1 and 1 at the edges.
    """
    height, width = canvas.shape[-2:]
    turn = _around(draw["turn"], recipe.turn * torch.pi / 180)
    zoom = 1 / ((1 + recipe.zoom) * (1 + _around(draw["scale"], recipe.scale)))
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    shear = _around(draw["shear"], recipe.shear)
    mirror = torch.where(draw["flip"] < recipe.flip, -1.0, 1.0)
    right = (_around(draw["right"], recipe.shift) * width).round() * (2 / width)
    down = (_around(draw["down"], recipe.shift) * height).round() * (2 / height)
    x, y = _coordinates(width, canvas) - right, _coordinates(height, canvas)[:, None] - down
    if recipe.crop:
        x, y = _cropped(x, y, recipe, draw)
    # Elementwise products and sums, as the rounding of a matrix product may depend on the size of the batch.
    grid = canvas.new_empty((len(canvas), height, width, 2))
    torch.add(mirror * cos * x, mirror * (cos * shear - sin) * y, out=grid[..., 0])
    torch.add(sin * x, (sin * shear + cos) * y, out=grid[..., 1])
    moved = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.clamp_(0, 1)  # the bilinear weights of a pixel may sum to slightly more than one


def _cropped(
    x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Coordinates within a random crop: area, logarithm of the aspect ratio and position are uniform."""
    area = recipe.crop + (1 - recipe.crop) * draw["area"]
    aspect = torch.exp(_around(draw["aspect"], float(np.log(4 / 3))))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    return x * wide + (1 - wide) * _around(draw["right"], 1), y * high + (1 - high) * _around(draw["down"], 1)


def _coordinates(side: int, like: Tensor) -> Float[Tensor, " side"]:
    """Coordinates of the pixel centres along a side, in (-1, 1)."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) * 2 + 1) / side - 1


def _coloured(
    image: Float[Tensor, "B 3 H W"], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> Float[Tensor, "B 3 H W"]:
    """The image, overwritten, with its saturation, contrast and brightness changed, in this order."""
    saturation = 1 + _around(draw["saturation"], recipe.saturation)[:, None]
    contrast = 1 + _around(draw["contrast"], recipe.contrast)[:, None]
    brightness = 1 + _around(draw["brightness"], recipe.brightness)[:, None]
    grey = image.mean(dim=1, keepdim=True).mul_(1 - saturation)
    image.mul_(saturation).add_(grey)
    # ((image - GREY) * contrast + GREY) * brightness, as one factor and one offset
    return image.mul_(contrast * brightness).add_((GREY - GREY * contrast) * brightness).clamp_(0, 1)


def _cut(
    image: Float[Tensor, "B 3 H W"], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> Float[Tensor, "B 3 H W"]:
    """The image, overwritten, with a grey square; its centre is anywhere, so that a part may lie outside."""
    height, width = image.shape[-2:]
    across = (_coordinates(width, image) - _around(draw["cut_x"], 1)).abs() < recipe.cutout
    along = (_coordinates(height, image)[:, None] - _around(draw["cut_y"], 1)).abs() < recipe.cutout
    return image.masked_fill_((across & along)[:, None], GREY)
