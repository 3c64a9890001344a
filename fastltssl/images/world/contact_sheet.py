"""A contact sheet of the embedded world: every class by name, some images of each style beside one another."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastltssl.images.world.painting import IMAGE_SIDE, Drawings, Style
from fastltssl.images.world.world import render

# Pixels.
WIDTH = 1440  # of the page, about; it decides how many columns of classes there are
GAP, BETWEEN, MARGIN, GUTTER = 2, 10, 24, 40  # of two images, of two styles, around everything, of two columns
NAME_HEIGHT, TITLE_HEIGHT, HEAD_HEIGHT = 19, 28, 24
PAPER, INK, FAINT, RULE = (255, 255, 255), (30, 30, 30), (105, 105, 105), (215, 215, 215)


def sheet(
    names: Sequence[str], styles: dict[str, Style], *, each: int = 3, seed: int = 0, drawn: Drawings | None = None
) -> np.ndarray:
    """The sheet, uint8 [h, w, 3]: for every class its name over `each` images of every style.

    The styles share their random numbers, so that images in the same place differ by the style alone.
    `names` belong to the labels 0, 1, ... of `drawn` (default: the named pictograms). Images are shown pixel by pixel.
    """
    title_font, font, head_font = (ImageFont.load_default(size) for size in (16, 14, 12))
    title = f"{len(names)} drawings, {each} image{'s' * (each > 1)} of each: style {' beside '.join(styles)}"
    strip = max(each * (IMAGE_SIDE + GAP) - GAP, *(ceil(head_font.getlength(head)) for head in styles))
    cell = max(len(styles) * (strip + BETWEEN) - BETWEEN, *(ceil(font.getlength(name)) for name in names))
    lines = ceil(len(names) / max(1, round((WIDTH - 2 * MARGIN + GUTTER) / (cell + GUTTER))))
    columns = ceil(len(names) / lines)  # as even as can be
    line_height, top = NAME_HEIGHT + IMAGE_SIDE + BETWEEN, MARGIN + TITLE_HEIGHT + HEAD_HEIGHT * (len(styles) > 1)
    width = 2 * MARGIN + max(columns * (cell + GUTTER) - GUTTER, ceil(title_font.getlength(title)))
    height = top + lines * line_height - BETWEEN + MARGIN

    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=title_font, anchor="lt")
    if len(styles) > 1:
        for column in range(columns):
            for place, head in enumerate(styles):
                x, y = MARGIN + column * (cell + GUTTER) + place * (strip + BETWEEN), top - 8
                pen.text((x, y - 4), head, fill=FAINT, font=head_font, anchor="ls")
                pen.line((x, y, x + strip - 1, y), fill=RULE)
    for label, name in enumerate(names):
        line, column = divmod(label, columns)
        x, y = MARGIN + column * (cell + GUTTER), top + line * line_height
        pen.text((x, y + NAME_HEIGHT - 5), name, fill=INK, font=font, anchor="ls")
        index = each * label + np.arange(each)
        for place, style in enumerate(styles.values()):
            for number, pixels in enumerate(render(seed, index, np.full(each, label), style, drawn)):
                left = x + place * (strip + BETWEEN) + number * (IMAGE_SIDE + GAP)
                page.paste(Image.fromarray(pixels), (left, y + NAME_HEIGHT))
    return np.asarray(page)


def save(pixels: np.ndarray, path: Path) -> None:
    """An image [h, w, 3] as a .png file, exactly, or as a .jpg file of a quarter of the size."""
    Image.fromarray(pixels).save(path, optimize=True, quality=88)
