"""A contact sheet of the embedded world: every class by name, some images of each style beside one another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastltssl.sources.painting import IMAGE_SIDE, Drawings, Style
from fastltssl.sources.world import render

COLUMNS = 4  # of classes
GAP, BETWEEN, MARGIN = 2, 10, 20  # pixels: of two images, of two styles, around everything
NAME_HEIGHT, HEAD_HEIGHT = 18, 58
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)


def sheet(
    names: Sequence[str], styles: dict[str, Style], *, each: int = 3, seed: int = 0, drawn: Drawings | None = None
) -> np.ndarray:
    """The sheet, uint8 [h, w, 3]: for every class its name over `each` images of every style.

    The styles share their random numbers, so that images beside one another differ by the style alone.
    `names` belong to the labels 0, 1, ... of `drawn` (default: the named pictograms).
    """
    from PIL import Image, ImageDraw, ImageFont

    strip = each * (IMAGE_SIDE + GAP) - GAP
    cell = len(styles) * (strip + BETWEEN) - BETWEEN
    lines = -(-len(names) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * (cell + 2 * MARGIN) - 2 * MARGIN
    height = HEAD_HEIGHT + lines * (NAME_HEIGHT + IMAGE_SIDE + BETWEEN) + MARGIN - BETWEEN
    page = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    title = f"{len(names)} drawings, {each} images of each in the style " + " and beside them in the style ".join(
        styles
    )
    pen.text((MARGIN, MARGIN), title, fill=FAINT, font=ImageFont.load_default(15))
    for label, name in enumerate(names):
        line, column = divmod(label, COLUMNS)
        left = MARGIN + column * (cell + 2 * MARGIN)
        top = HEAD_HEIGHT + line * (NAME_HEIGHT + IMAGE_SIDE + BETWEEN)
        pen.text((left, top), name, fill=INK, font=font)
        for place, style in enumerate(styles.values()):
            index = each * label + np.arange(each)
            images = render(seed, index, np.full(each, label), style, drawn)
            for number, pixels in enumerate(images):
                x = left + place * (strip + BETWEEN) + number * (IMAGE_SIDE + GAP)
                page.paste(Image.fromarray(pixels), (x, top + NAME_HEIGHT))
    return np.asarray(page)


def save(pixels: np.ndarray, path: Path) -> None:
    """An image [h, w, 3] as a .png or .jpg file."""
    from PIL import Image

    Image.fromarray(pixels).save(path, optimize=True, quality=88)
