"""The embedded world: images of 40 named pictograms, 48 pixels wide, drawn by numpy alone, so nothing is downloaded.

Image `index` of a seed depends on (seed, index, label, style) and on nothing else. The tiny CLIP of the package was
trained on the style "caption", with captions long-tailed as in `caption_prior`; "mild" and "hard" are domain shifts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fastltssl.errors import SourceError, did_you_mean
from fastltssl.images.source import Images, Source, fingerprint
from fastltssl.images.world.painting import (
    IMAGE_SIDE,
    Drawings,
    Draws,
    Style,
    assets,
    backdrop,
    blurred,
    coverage,
    developed,
    draws,
    noisy,
    occluded,
    painted,
    spread,
)
from fastltssl.images.world.pictograms import PICTOGRAMS
from fastltssl.images.world.scenery import BACKGROUNDS, COLORS, uniforms

CLASSES: tuple[str, ...] = tuple(PICTOGRAMS)
BATCH = 32  # images painted at once: their float32 pixels stay in the processor's cache
SEEDS = {"train": 61, "test": 63, "unlabeled": 62}
PER_CLASS = {"train": 200, "test": 50, "unlabeled": 300}
# SHA-256 of images that tests/images/test_sources.py renders. Part of the fingerprint, which so depends on the pixels.
PIXELS = "f8125abcff74f58fba272df2ea033994f84c9cbd354ac66966186c9243e62b60"
CAPTION_SEED, CAPTION_RATIO, CAPTION_PRIOR_SEED = 0xCAFE, 50.0, 7
CAPTIONS = (
    "a photo of a {name}", "a {color} {name}", "a photo of a {color} {name}", "a {color} {name} on {background}",
    "a photo of a {color} {name} on {background}", "a picture of a {name} on {background}", "{name}",
    "a {size} {color} {name}",
)  # fmt: skip

_caption = Style(
    backgrounds=(0, 6), rotation=35, scale=(0.5, 0.95), shift=0.25, bend=0.15, outlined=0.2, noise=(0, 18),
    blur=(0, 0.7), contrast=(0.65, 1.0), occluded=0.2, tint=0.1, tone=15,
)  # fmt: skip
_hard = Style(
    backgrounds=(6, 12), rotation=50, scale=(0.5, 0.9), shift=0.28, bend=0.22, outlined=0.35, noise=(5, 25),
    blur=(0.1, 0.9), contrast=(0.55, 1.0), occluded=0.4, tint=0.2, tone=35,
)  # fmt: skip
_mild = replace(_hard, rotation=45, bend=0.18, noise=(5, 20), contrast=(0.65, 1.0), occluded=0.3, tint=0.15)
STYLES: dict[str, Style] = {"mild": _mild, "hard": _hard, "caption": _caption}


class Traits(NamedTuple):
    """What a caption may mention of each image, [N] each."""

    color: np.ndarray  # place in COLORS
    background: np.ndarray  # place in BACKGROUNDS
    is_outlined: np.ndarray
    is_large: np.ndarray


def traits(u: Draws, style: Style) -> Traits:
    """Colour, background, drawing style and size of each image; they do not depend on the label."""
    first, last = style.backgrounds
    background = first + (u["background"] * (last - first)).astype(int)
    choices = [assets().distinct[place] for place in background]
    color = np.array([colors[int(t * len(colors))] for colors, t in zip(choices, u["color"], strict=True)], int)
    return Traits(color, background, u["outlined"] < style.outlined, spread(u["scale"], style.scale) > 0.75)


def render(seed: int, index: np.ndarray, label: np.ndarray, style: Style, drawn: Drawings | None = None) -> np.ndarray:
    """Images, uint8 [N, 48, 48, 3]: image `index` of the seed showing class `label`, both [N].

    `label` counts in `drawn` (default: the named pictograms).
    """
    drawn = drawn or assets().pictograms
    pixels = np.empty((len(index), IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    for start in range(0, len(index), BATCH):
        rows = slice(start, start + BATCH)
        pixels[rows] = _render(draws(seed, index[rows]), label[rows], style, drawn)
    return pixels


def _render(u: Draws, label: np.ndarray, style: Style, drawn: Drawings) -> np.ndarray:
    seen = traits(u, style)
    image = backdrop(u, seen.background)
    image = painted(image, u, coverage(u, label, seen.is_outlined, style, drawn), seen.color, style)
    image = occluded(image, u, style)
    image = blurred(image, u, style)
    image = developed(image, u, style)
    image = noisy(image, u, style)
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def captions(seed: int, index: np.ndarray, label: np.ndarray, style: Style) -> list[str]:
    """One sentence for each image that `render` makes of the same arguments."""
    u, seen = uniforms(seed ^ CAPTION_SEED, index, 2), traits(draws(seed, index), style)
    sentences = []
    for row, class_index in enumerate(label):
        pattern = CAPTIONS[int(u[row, 0] * len(CAPTIONS))]
        if seen.is_outlined[row] and u[row, 1] < 0.8:  # not always, as people call a drawing a picture, too
            pattern = pattern.replace("photo", "sketch").replace("picture", "drawing")
        sentence = pattern.format(
            name=CLASSES[class_index],
            color=list(COLORS)[seen.color[row]],
            background=BACKGROUNDS[seen.background[row]],
            size="large" if seen.is_large[row] else "small",
        )
        sentences.append(sentence)
    return sentences


def caption_prior() -> np.ndarray:
    """Class frequencies of the captions that the tiny CLIP was trained on, float64 [40], sum one: its label bias.

    A power law over the classes in a random order; the most frequent class is CAPTION_RATIO times the rarest.
    """
    order = np.argsort(uniforms(CAPTION_PRIOR_SEED, np.arange(len(CLASSES)), 1)[:, 0])
    exponent = math.log(CAPTION_RATIO) / math.log(len(CLASSES))
    prior = np.empty(len(CLASSES))
    prior[order] = np.arange(1, len(CLASSES) + 1) ** -exponent
    return prior / prior.sum()


@dataclass(frozen=True, eq=False)
class WorldImages:
    """The first images of a seed, one class after the other in turn (label = row % 40)."""

    ids: tuple[str, ...]
    labels: np.ndarray
    seed: int
    style: Style

    def read(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Images [48, 48, 3], uint8, drawn when they are read."""
        index = np.asarray(rows, np.int64)
        return list(render(self.seed, index, self.labels[index], self.style))


def open_world(dataset: str) -> Source:
    """The world in one style: "world", "world:STYLE" or "world:STYLE:TRAIN:TEST:UNLABELED" (images per class).

    Every group has its own seed. The labels of "unlabeled" are known, as in any benchmark, for splits and evaluation.
    Where TRAIN is given, TEST defaults to its usual number and UNLABELED to 0. Raises SourceError.
    """
    style, *sizes = dataset.split(":")[1:] or ["mild"]
    if style not in STYLES:
        known = ", ".join(STYLES)
        raise SourceError(f"--dataset {dataset!r}: no style {style!r}.{did_you_mean(style, STYLES)} Known: {known}")
    if len(sizes) > 3 or not all(size.isdecimal() for size in sizes) or any(int(size) == 0 for size in sizes[:2]):
        usual = ":".join(map(str, PER_CLASS.values()))
        raise SourceError(
            f"--dataset {dataset!r}: the sizes {':'.join(sizes)!r} are not one to three whole numbers, images per "
            f"class for training, for test (both above 0) and unlabelled. For example: --dataset world:{style}:{usual}"
        )
    counts = PER_CLASS | ({"unlabeled": 0} if sizes else {}) | dict(zip(PER_CLASS, map(int, sizes), strict=False))
    groups: dict[str, Images] = {
        name: _group(name, SEEDS[name], count, STYLES[style]) for name, count in counts.items() if count
    }
    # Ids and labels are the same in every style; the pixels are not.
    return Source(dataset, CLASSES, groups, fingerprint(CLASSES, groups, repr(STYLES[style]), PIXELS))


def _group(name: str, seed: int, per_class: int, style: Style) -> WorldImages:
    rows = np.arange(per_class * len(CLASSES))
    return WorldImages(tuple(f"{name}/{row:06d}" for row in rows), rows % len(CLASSES), seed, style)
