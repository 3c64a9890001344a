"""FixMatch's RandAugment (arXiv 2001.07685) of a batch: each operation once a slot, on the rows that drew it.

The draws are on the host, so choosing rows never waits for a GPU. Pixels do not depend on the rest of the batch:
products and sums apart, means of whole numbers, no convolution and no matrix product.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

GREY = 0.5  # beyond the edges of a moved image, colour of the cutout, pivot of the strong view's contrast
LEVELS = 10
WHOLE = 2**24  # white, as a whole number

Rows = Float[Tensor, "n 3 H W"]


class Strength(NamedTuple):
    """What the operations are told, each [n 1 1 1].

    The last five are the map: the pixel (x, y), centre 0, shows (stay x + across y - right, along x + stay y - down).
    """

    factor: Tensor  # of an enhancement: 0 is the plain image, 1 the image
    steps: Tensor  # of the posterized image; 256 leaves it alone
    threshold: Tensor  # of the solarized image
    stay: Tensor
    across: Tensor
    along: Tensor
    right: Tensor
    down: Tensor


def randaugmented(
    image: Float[Tensor, "B 3 H W"], count: int, draw: Mapping[str, Float32[np.ndarray, " B"]]
) -> Float[Tensor, "B 3 H W"]:
    """The image, overwritten: `count` operations of 14 at levels 1 to 10, each with probability 1/2.

    Enhancements take factors .14 to .95, rotations end at 30 degrees, shears at .3, shifts at .3.
    """
    for slot in range(count):
        op, level, sign, chance = (draw[f"{part}{slot}"].astype(float) for part in ("op", "level", "sign", "chance"))
        op = np.where(chance < 0.5, np.floor(op * 14), 0).astype(np.int64)  # 0 is the identity
        level = (1 + np.floor(level * LEVELS)) / LEVELS
        strengths = torch.from_numpy(_strengths(op, np.where(sign < 0.5, level, -level), *image.shape[-2:]))
        strengths = strengths.to(image.device, image.dtype, non_blocking=True)
        group = np.minimum(op, len(OPERATIONS))
        order = torch.from_numpy(np.argsort(group, kind="stable")).to(image.device, non_blocking=True)
        parts = order.split(np.bincount(group, minlength=len(OPERATIONS) + 1).tolist())
        for operation, rows in zip(OPERATIONS, parts[1:], strict=True):
            if len(rows):
                image[rows] = operation(image[rows], Strength(*strengths[rows, :, None, None, None].unbind(dim=1)))
    return image


ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(9, 14)


def _strengths(
    op: Int64[np.ndarray, " B"], signed: Float64[np.ndarray, " B"], height: int, width: int
) -> Float32[np.ndarray, "B 8"]:
    """The columns of Strength at levels -1 to 1, not 0; the map is that of the row's own operation."""
    level, reach = np.abs(signed), 0.3 * signed
    turn = np.radians(30 * signed) * (op == ROTATE)
    columns = (
        0.05 + 0.9 * level,
        2 ** (4 + np.floor(4 * level)),
        1 - level,
        np.cos(turn),
        np.sin(turn) + reach * (op == SHEAR_X),
        -np.sin(turn) + reach * (op == SHEAR_Y),
        np.rint(reach * width) * (op == TRANSLATE_X),
        np.rint(reach * height) * (op == TRANSLATE_Y),
    )
    return np.stack(columns, axis=1, dtype=np.float32)


def _autocontrast(image: Rows, by: Strength) -> Rows:
    """Each channel from its own least and most to 0 and 1; a channel of one value stays."""
    least, most = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    is_flat = least == most
    return image.sub_(least.masked_fill(is_flat, 0)).div_((most - least).masked_fill_(is_flat, 1))


def _equalize(image: Rows, by: Strength) -> Rows:
    from torchvision.transforms.v2 import functional as T

    return T.equalize(image)


def _brightness(image: Rows, by: Strength) -> Rows:
    return image.mul_(by.factor)


def _colour(image: Rows, by: Strength) -> Rows:
    return _between(_grey(image), image, by.factor)


def _contrast(image: Rows, by: Strength) -> Rows:
    """Between the mean grey and the image; the sum of whole numbers is the same in any order."""
    grey = _grey(image)
    total = (grey * WHOLE).int().sum(dim=(1, 2, 3), keepdim=True)
    return _between(total.to(image.dtype) / (WHOLE * grey[0].numel()), image, by.factor)


def _sharpness(image: Rows, by: Strength) -> Rows:
    """Between a mean of 3 x 3 pixels, the middle one five times, and the image; the edges stay."""
    three = image[..., :-2] + image[..., 1:-1]
    three += image[..., 2:]
    nine = three[..., :-2, :] + three[..., 1:-1, :]
    nine += three[..., 2:, :]
    inner = image[..., 1:-1, 1:-1]
    inner.copy_(_between(nine.add_(inner * 4).div_(13), inner, by.factor))
    return image


def _posterize(image: Rows, by: Strength) -> Rows:
    fewer = (image * by.steps).floor_().clamp_(max=by.steps - 1).div_(by.steps)
    return torch.where(by.steps < 256, fewer, image)


def _solarize(image: Rows, by: Strength) -> Rows:
    return torch.where(image >= by.threshold, 1 - image, image)


def _affine(image: Rows, by: Strength) -> Rows:
    """Rotated, sheared or shifted: the nearest pixel to where each comes from, grey beyond the edges."""
    height, width = image.shape[-2:]
    x = torch.arange(width, device=image.device, dtype=image.dtype) - (width - 1) / 2
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] - (height - 1) / 2
    column = (by.stay * x + (by.across * y - by.right + (width - 1) / 2)).round_()
    row = (by.along * x + (by.stay * y - by.down + (height - 1) / 2)).round_()
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = row.clamp_(0, height - 1).mul_(width).add_(column.clamp_(0, width - 1)).long()
    moved = image.flatten(2).gather(2, source.flatten(2).expand(-1, 3, -1)).view_as(image)
    return torch.where(is_inside, moved, GREY)


def _grey(image: Rows) -> Float[Tensor, "n 1 H W"]:
    red, green, blue = image.split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)


def _between(
    plain: Float[Tensor, "n _ _ _"], image: Float[Tensor, "n 3 _ _"], factor: Float[Tensor, "n 1 1 1"]
) -> Float[Tensor, "n 3 _ _"]:
    """The plain image at factor 0, the image at 1."""
    return (image * factor).add_(plain * (1 - factor)).clamp_(0, 1)


# In the order of the draws after the identity, the last one for all five that move pixels; each may overwrite its rows.
OPERATIONS: tuple[Callable[[Rows, Strength], Rows], ...] = (
    _autocontrast, _equalize, _brightness, _colour, _contrast, _sharpness, _posterize, _solarize, _affine,
)  # fmt: skip
