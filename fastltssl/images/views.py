"""Named augmentation recipes and the views they make of an image, each seeded by (seed, image, view name) alone.

Every number a view needs comes from a hash of these three, never from a generator that advances, so its pixels do not
depend on batch, order, workers or resume. Lengths are shares of the image side; canvases are square, pixels in [0, 1].
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

MOST_VIEWS = 256  # of one recipe
OPS = 3  # most RandAugment operations of a recipe
DRAWS = (  # what each number of an image decides; new ones are added at the end, so that old views stay as they are
    "flip", "right", "down", "turn", "scale", "shear", "brightness", "contrast", "saturation", "cut_x", "cut_y",
    "area", "aspect", *(f"{part}{op}" for op in range(OPS) for part in ("op", "level", "sign", "chance")),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How far each change may go; what is 0 is left out. The text form is part of a cache's fingerprint."""

    name: str
    flip: float = 0.0  # probability of a mirror image
    shift: float = 0.0  # up to this share of the side, in whole pixels, reflected at the edges
    turn: float = 0.0  # degrees, either way
    scale: float = 0.0  # times 1 - scale to 1 + scale
    shear: float = 0.0
    brightness: float = 0.0  # the three colour factors are 1 - x to 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: float = 0.0  # side of one grey square
    zoom: float = 0.0  # times 1 + zoom before everything else, as Resize(256) and a crop of 224 do (0.143)
    crop: float = 0.0  # least share of the area of a random crop stretched to the whole, sides 3:4 to 4:3
    randaugment: float = 0.0  # operations of FixMatch's RandAugment, at random levels, each with probability 1/2

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
# Soft enough that a zero-shot model still reads it: on the embedded world 63 % center, 61 % weak, 52 % strong.
STRONG = Recipe(
    "strong", flip=0.5, shift=0.0625, turn=15, scale=0.1, shear=0.1,
    brightness=0.2, contrast=0.25, saturation=0.3, cutout=0.15,
)  # fmt: skip
# The augmentations of published code: shift, flip and RandAugment of FixMatch (2001.07685: padding 4 of 32 pixels, 2
# operations, cutout of half the side), the same at 224 pixels as FineSSL runs it, and LIFT's random resized crop.
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
    """Views in the order given: "center,weak:2" is center, weak0, weak1. Center comes first and once.

    A family stands for its views of each strength: "center,finessl:4" is center, weak0 to weak3, strong0 to strong3.
    """
    views: list[View] = []
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        count = int(number) if number.isdecimal() else 0
        roles = FAMILIES.get(name) or ({name: RECIPES[name]} if name in RECIPES else {})
        is_new = bool(roles) and not {view.name for view in views} & {
            "center" if name == "center" else f"{r}0" for r in roles
        }
        is_counted = not colon if name == "center" else not colon or 1 <= count <= MOST_VIEWS
        if not is_new or not is_counted:
            raise ViewError(_refusal(text, f"{part.strip()!r} is repeated, unknown or badly counted"))
        if name == "center":
            views.append(View("center", CENTER, 0))
        else:
            views += [View(f"{role}{index}", own, index) for role, own in roles.items() for index in range(count or 1)]
    if views[0].name != "center":
        raise ViewError(_refusal(text, "it does not begin with center, the view that is tested on"))
    return tuple(views)


def _refusal(text: str, why: str) -> str:
    return (
        f"--views {text!r}: {why}. Accepted: center first, then weak:N and strong:N, "
        f"each once, N from 1 to {MOST_VIEWS}. For example: --views center,weak:4,strong:4. "
        f"In place of the two: {', '.join(f'{family}:N' for family in FAMILIES)}"
    )


def parse_recipe(text: str) -> Recipe:
    """The recipe of a text form, as the provenance of a cache holds it. Raises ViewError."""
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
    """A 64-bit number that stands for an image, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


def make_view(
    canvas: Float[Tensor, "B 3 H W"], view: View, keys: UInt64[np.ndarray, " B"], seed: int
) -> Float[Tensor, "B 3 H W"]:
    """That view of each image, in [0, 1]; `keys` are the images' keys. The center view is the canvas itself."""
    recipe = view.recipe
    if recipe == CENTER:
        return canvas
    uniform = uniforms(seed, view.name, keys, len(DRAWS))
    draw = dict(zip(DRAWS, torch.from_numpy(uniform).to(canvas.device)[..., None, None].unbind(dim=1), strict=True))
    image = _moved(canvas, recipe, draw)  # new memory: what follows writes into it
    if recipe.randaugment:
        image = randaugmented(image, int(recipe.randaugment), dict(zip(DRAWS, uniform.T, strict=True)))
    if recipe.brightness or recipe.contrast or recipe.saturation:
        image = _coloured(image, recipe, draw)
    if recipe.cutout:
        image = _cut(image, recipe, draw)
    return image


def uniforms(seed: int, view: str, keys: UInt64[np.ndarray, " B"], count: int) -> Float32[np.ndarray, "B count"]:
    """Numbers in [0, 1): draw k of an image is a hash of (seed, view, key, k). splitmix64 (Steele et al., 2014)."""
    stream = np.uint64(image_key(f"{seed}/{view}"))
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _mixed(_mixed(keys ^ stream)[:, None] + counter)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _around(draw: Tensor, reach: float) -> Tensor:
    """A draw spread from -reach to reach."""
    return (draw * 2 - 1) * reach


def _moved(
    canvas: Float[Tensor, "B 3 H W"], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> Float[Tensor, "B 3 H W"]:
    """Flip, shift, turn, scale and shear in one resampling: where each pixel comes from, centre 0, edges -1 and 1."""
    height, width = canvas.shape[-2:]
    turn = _around(draw["turn"], recipe.turn * torch.pi / 180)
    zoom = 1 / ((1 + recipe.zoom) * (1 + _around(draw["scale"], recipe.scale)))
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    shear = _around(draw["shear"], recipe.shear)
    mirror = torch.where(draw["flip"] < recipe.flip, -1.0, 1.0)
    right = (_around(draw["right"], recipe.shift) * width).round() * (2 / width)
    down = (_around(draw["down"], recipe.shift) * height).round() * (2 / height)
    x, y = _places(width, canvas) - right, _places(height, canvas)[:, None] - down
    if recipe.crop:
        x, y = _cropped(x, y, recipe, draw)
    # Products and sums apart, no matrix product: its rounding may depend on the size of the batch.
    grid = canvas.new_empty((len(canvas), height, width, 2))
    torch.add(mirror * cos * x, mirror * (cos * shear - sin) * y, out=grid[..., 0])
    torch.add(sin * x, (sin * shear + cos) * y, out=grid[..., 1])
    moved = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.clamp_(0, 1)  # the weights of a pixel may add up to a hair more than one


def _cropped(
    x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Places within a random crop: area uniform, logarithm of the aspect uniform, position uniform. Sides end at 1."""
    area = recipe.crop + (1 - recipe.crop) * draw["area"]
    aspect = torch.exp(_around(draw["aspect"], float(np.log(4 / 3))))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    return x * wide + (1 - wide) * _around(draw["right"], 1), y * high + (1 - high) * _around(draw["down"], 1)


def _places(side: int, like: Tensor) -> Float[Tensor, " side"]:
    """Pixel centres along a side, in (-1, 1)."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) * 2 + 1) / side - 1


def _coloured(
    image: Float[Tensor, "B 3 H W"], recipe: Recipe, draw: dict[str, Float[Tensor, "B 1 1"]]
) -> Float[Tensor, "B 3 H W"]:
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
    """A grey square whose centre is anywhere, so that some of it may fall outside."""
    height, width = image.shape[-2:]
    across = (_places(width, image) - _around(draw["cut_x"], 1)).abs() < recipe.cutout
    along = (_places(height, image)[:, None] - _around(draw["cut_y"], 1)).abs() < recipe.cutout
    return image.masked_fill_((across & along)[:, None], GREY)
