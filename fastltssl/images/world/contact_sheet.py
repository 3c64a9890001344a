"""A contact sheet of the embedded world: for every class its name and images in one or several styles, side by side."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastltssl.images.world.painting import IMAGE_SIDE, Drawings, Style
from fastltssl.images.world.world import render

# Pixels.
WIDTH = 1440  # of the page, about; it sets the number of columns of classes
GAP, BETWEEN, MARGIN, GUTTER = 2, 10, 24, 40  # between images, between styles, around the page, between columns
NAME_HEIGHT, TITLE_HEIGHT, HEAD_HEIGHT = 19, 28, 24
PAPER, INK, FAINT, RULE = (255, 255, 255), (30, 30, 30), (105, 105, 105), (215, 215, 215)


def sheet(
    names: Sequence[str], styles: dict[str, Style], *, count: int = 3, seed: int = 0, drawn: Drawings | None = None
) -> np.ndarray:
    """The sheet, uint8 [h, w, 3]: for every class its name over `count` images of every style, at their own size.

    The styles share their random numbers, so that images in the same place differ by the style alone. `names` are those
    of the labels 0, 1, ... of `drawn` (default: the named pictograms).
    """
    title_font, font, head_font = (ImageFont.load_default(size) for size in (16, 14, 12))
    title = f"{len(names)} drawings, {count} image{'s' * (count > 1)} of each: style {' beside '.join(styles)}"
    strip = max(count * (IMAGE_SIDE + GAP) - GAP, *(ceil(head_font.getlength(head)) for head in styles))
    cell = max(len(styles) * (strip + BETWEEN) - BETWEEN, *(ceil(font.getlength(name)) for name in names))
    lines = ceil(len(names) / max(1, round((WIDTH - 2 * MARGIN + GUTTER) / (cell + GUTTER))))
    columns = ceil(len(names) / lines)  # so that the columns are about equally long
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
        index = count * label + np.arange(count)
        for place, style in enumerate(styles.values()):
            for number, pixels in enumerate(render(seed, index, np.full(count, label), style, drawn)):
                left = x + place * (strip + BETWEEN) + number * (IMAGE_SIDE + GAP)
                page.paste(Image.fromarray(pixels), (left, y + NAME_HEIGHT))
    return np.asarray(page)


def save(pixels: np.ndarray, path: Path) -> None:
    """Write an image [h, w, 3] as a .png file, without loss, or as a .jpg file, a quarter as large."""
    Image.fromarray(pixels).save(path, optimize=True, quality=88)
