"""FixMatch's RandAugment (arXiv 2001.07685) on a batch: each operation runs once on all images that drew it.

Random numbers are on the CPU, so choosing images never waits for a GPU. The pixels of an image do not depend on the
rest of the batch, because no sum depends on its order: products and sums are elementwise, means are of whole numbers,
and there is no convolution and no matrix product.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

GREY = 0.5  # the colour beyond the edges of a moved image and of the cutout, and what contrast leaves unchanged
LEVELS = 10
WHITE = 2**24  # as a whole number

Rows = Float[Tensor, "n 3 H W"]


class Strength(NamedTuple):
    """Parameters of the operations, each [n 1 1 1].

    The last five move pixels: with the origin in the centre, the pixel (x, y) shows what was at
    (stay x + across y - right, along x + stay y - down).
    """

    factor: Tensor  # of brightness, colour, contrast, sharpness: 1 leaves the image as it is
    steps: Tensor  # grey levels of the posterized image; 256 leaves it as it is
    threshold: Tensor  # pixels from here on are inverted by solarize
    stay: Tensor
    across: Tensor
    along: Tensor
    right: Tensor
    down: Tensor


def randaugmented(
    image: Float[Tensor, "B 3 H W"], count: int, draw: Mapping[str, Float32[np.ndarray, " B"]]
) -> Float[Tensor, "B 3 H W"]:
    """The image, overwritten: `count` of 14 operations, each at a level of 1 to 10 and with probability 1/2.

    Over the levels, factors are .14 to .95, rotations up to 30 degrees, shears and shifts up to .3, in both directions.
    """
    for slot in range(count):
        op, level, sign, chance = (draw[f"{part}{slot}"].astype(float) for part in ("op", "level", "sign", "chance"))
        op = np.where(chance < 0.5, np.floor(op * 14), 0).astype(np.int64)  # 0 changes nothing
        level = (1 + np.floor(level * LEVELS)) / LEVELS
        strengths = torch.from_numpy(_strengths(op, np.where(sign < 0.5, level, -level), *image.shape[-2:]))
        strengths = strengths.to(image.device, image.dtype, non_blocking=True)
        kind = np.minimum(op, len(OPERATIONS))  # the last operation serves all that move pixels
        order = torch.from_numpy(np.argsort(kind, kind="stable")).to(image.device, non_blocking=True)
        rows_of_kind = order.split(np.bincount(kind, minlength=len(OPERATIONS) + 1).tolist())
        for operation, rows in zip(OPERATIONS, rows_of_kind[1:], strict=True):
            if len(rows):
                image[rows] = operation(image[rows], Strength(*strengths[rows, :, None, None, None].unbind(dim=1)))
    return image


ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(9, 14)


def _strengths(
    op: Int64[np.ndarray, " B"], signed: Float64[np.ndarray, " B"], height: int, width: int
) -> Float32[np.ndarray, "B 8"]:
    """The fields of Strength, in order, for levels -1 to 1 but 0. Pixels are moved by a row's own operation alone."""
    level, reach = np.abs(signed), 0.3 * signed
    turn = np.radians(30 * signed) * (op == ROTATE)
    fields = {
        "factor": 0.05 + 0.9 * level,
        "steps": 2 ** (4 + np.floor(4 * level)),
        "threshold": 1 - level,
        "stay": np.cos(turn),
        "across": np.sin(turn) + reach * (op == SHEAR_X),
        "along": -np.sin(turn) + reach * (op == SHEAR_Y),
        "right": np.rint(reach * width) * (op == TRANSLATE_X),
        "down": np.rint(reach * height) * (op == TRANSLATE_Y),
    }
    return np.stack([fields[name] for name in Strength._fields], axis=1, dtype=np.float32)


def _autocontrast(image: Rows, by: Strength) -> Rows:
    """Each channel scaled so that its smallest value is 0 and its largest 1; a constant channel stays."""
    low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    is_constant = low == high
    return image.sub_(low.masked_fill(is_constant, 0)).div_((high - low).masked_fill_(is_constant, 1))


def _equalize(image: Rows, by: Strength) -> Rows:
    from torchvision.transforms.v2 import functional as T

    return T.equalize(image)


def _brightness(image: Rows, by: Strength) -> Rows:
    return image.mul_(by.factor)


def _colour(image: Rows, by: Strength) -> Rows:
    return _between(_grey(image), image, by.factor)


def _contrast(image: Rows, by: Strength) -> Rows:
    """Blended with the mean grey; it is a mean of whole numbers, whose sum is the same in any order."""
    grey = _grey(image)
    total = (grey * WHITE).int().sum(dim=(1, 2, 3), keepdim=True)
    return _between(total.to(image.dtype) / (WHITE * grey[0].numel()), image, by.factor)


def _sharpness(image: Rows, by: Strength) -> Rows:
    """Blended with a mean over 3 x 3 pixels, in which the middle one counts five times; the edges stay."""
    sum_of_3 = image[..., :-2] + image[..., 1:-1]
    sum_of_3 += image[..., 2:]
    sum_of_9 = sum_of_3[..., :-2, :] + sum_of_3[..., 1:-1, :]
    sum_of_9 += sum_of_3[..., 2:, :]
    inner = image[..., 1:-1, 1:-1]
    inner.copy_(_between(sum_of_9.add_(inner * 4).div_(13), inner, by.factor))
    return image


def _posterize(image: Rows, by: Strength) -> Rows:
    fewer = (image * by.steps).floor_().clamp_(max=by.steps - 1).div_(by.steps)
    return torch.where(by.steps < 256, fewer, image)


def _solarize(image: Rows, by: Strength) -> Rows:
    return torch.where(image >= by.threshold, 1 - image, image)


def _affine(image: Rows, by: Strength) -> Rows:
    """Rotated, sheared or shifted, by nearest neighbour; grey beyond the edges."""
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
    """A blend: the plain image at factor 0, the image at 1."""
    return (image * factor).add_(plain * (1 - factor)).clamp_(0, 1)


# In the order of their numbers, from 1 on; the last serves all five that move pixels. Each may overwrite its rows.
OPERATIONS: tuple[Callable[[Rows, Strength], Rows], ...] = (
    _autocontrast, _equalize, _brightness, _colour, _contrast, _sharpness, _posterize, _solarize, _affine,
)  # fmt: skip
