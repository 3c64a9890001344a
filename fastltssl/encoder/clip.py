"""A frozen CLIP, loaded by open_clip and reduced to three functions: canvas, encode, encode_text.

The embedded model "tiny" takes the same route as every other. Image features of a CLIP ViT are those before its last
projection, so that heads may start from either space; other towers give their pooled output and no projection.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor, nn

from fastltssl.encoder.towers import (
    fold_batch_norms,
    is_clip_vit,
    last_norm,
    split_tower,
    take_projection,
    trim_last_block,
    weights_sha256,
)
from fastltssl.encoder.weights import open_model, quiet
from fastltssl.errors import EncoderError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TAPS = ("mid", "mlp")  # of the last block: the class token after attention, and what the MLP adds to it
TEXT_SLAB = 64  # prompts encoded at once, the last lot padded


class Encoder(NamedTuple):
    """A loaded model, in eval mode. D is `width`, E is `embed_width`, P counts the features (first) and the taps."""

    canvas: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "3 S S"]]  # the model's own resize and crop
    encode: Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B D"]]  # float32; of uint8, or float in [0, 1]
    encode_exact: Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B D"]]  # the same eager in fp32, to compare with
    encode_parts: Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B P D"]]
    through: Callable[[nn.Module], Callable[..., Float[Tensor, "B P D"]]]  # encode_parts of another tower, without taps
    split: Callable[[int], "Split"]  # at a block; raises EncoderError where the tower has no such block
    encode_text: Callable[..., Float32[np.ndarray, "C T E"]]  # unit norm, of prompts [C][T]; slabs go through `run`
    size: int  # S
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    embed_width: int
    projection: Float32[np.ndarray, "D E"] | None
    ln_post: Float32[np.ndarray, "2 D"] | None
    logit_scale: float  # the multiplier itself
    logit_bias: float
    device: torch.device
    tower: nn.Module  # images, normalised, to features; what training through the encoder copies
    normalised: Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B 3 S S"]]  # of uint8, or float in [0, 1]
    provenance: dict[str, Any]  # what the features depend on, for the fingerprint of a cache
    notes: tuple[str, ...]  # lines a user should see
    taps: tuple[str, ...] = ()


class Split(NamedTuple):
    """An image tower in two: what may be computed once, and what a training in the last blocks computes anew."""

    tokens: Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B L D"]]  # that enter the block
    features: Callable[[Float[Tensor, "B L D"]], Float[Tensor, "B D"]]
    shape: tuple[int, int]  # L, D
    blocks: int  # of the whole tower


def load_encoder(
    model: str,
    pretrained: str | None,
    device: str = "cpu",
    precision: str = "auto",
    *,
    trim: bool = True,
    taps: bool = False,
    compiled: bool = False,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Encoder:
    """The model with the weights of a tag, of a file, or random ones ("none"). Raises EncoderError.

    With `trim` the last block of a CLIP ViT computes the class token alone, which changes no feature beyond rounding.
    With `taps` the encoder gives the TAPS beside the features; `compiled` runs the tower through torch.compile.
    `statistics` are mean and standard deviation per channel to normalise by, in place of the model's own.
    """
    where = torch.device(device)
    precision = ("bf16" if where.type == "cuda" else "fp32") if precision == "auto" else precision
    if precision not in DTYPES:
        raise EncoderError(f"--precision {precision!r} is unknown. Accepted: auto, {', '.join(DTYPES)}")
    notes: list[str] = []
    with quiet():
        clip, transform, tokenize = open_model(model, pretrained, notes)
    clip.eval().requires_grad_(False)
    weights = weights_sha256(clip)
    tower = clip.visual
    projection, ln_post = take_projection(tower), last_norm(tower)
    fold_batch_norms(tower)
    clip.to(where)
    tower.to(memory_format=torch.channels_last)
    settings = tower.preprocess_cfg
    side = _side(model, settings)
    mean, std = statistics or (tuple(settings["mean"]), tuple(settings["std"]))
    blocks = len(tower.transformer.resblocks) if is_clip_vit(tower) else 0
    is_trimmed = trim and trim_last_block(tower, side, has_taps=taps)
    if taps and not is_trimmed:
        raise EncoderError(
            f"--taps mid: {model} has no last block to tap. Accepted: open_clip's ViTs that pool their class token, "
            "such as ViT-B-16, without --no-trim"
        )
    canvas = _canvas(transform, side)
    run = _compiled(tower) if compiled else tower
    parts = _encode(run, where, DTYPES[precision], mean, std, taps)
    exact = _encode(tower, where, None, mean, std, taps)
    encode_text = _encode_text(clip, tokenize, where)
    width = exact(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[2]
    provenance = {
        "model": model,
        # where a file lies is no property of the features, its hash is
        "pretrained": "file" if pretrained and Path(pretrained).is_file() else pretrained,
        "weights_sha256": weights,
        **_numerics(tower, side, mean, std),
        "precision": precision, "is_trimmed": is_trimmed, **({"is_compiled": True} if compiled else {}),
    }  # fmt: skip
    embed_width = width if projection is None else projection.shape[1]
    return Encoder(
        canvas, lambda x: parts(x)[:, 0], lambda x: exact(x)[:, 0], parts,
        lambda other: _encode(other, where, DTYPES[precision], mean, std, False),
        partial(_split, tower, blocks, where, mean, std, side), encode_text, side, mean, std, width, embed_width,
        projection, ln_post, _scalar(clip.logit_scale.exp()), _scalar(getattr(clip, "logit_bias", None)),
        where, tower, _normalised(where, mean, std), provenance, tuple(notes), TAPS if taps else (),
    )  # fmt: skip


def _numerics(tower: Any, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """What changes the features of given weights: preprocessing and activation."""
    from open_clip.transformer import QuickGELU

    settings = tower.preprocess_cfg
    return {
        "preprocessing": {
            "size": side, "mean": list(mean), "std": list(std),
            "resize": settings["resize_mode"], "interpolation": settings["interpolation"],
        },
        "quick_gelu": any(isinstance(part, QuickGELU) for part in tower.modules()),
    }  # fmt: skip


def _side(model: str, settings: dict[str, Any]) -> int:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise EncoderError(f"--model {model} takes images of {height} x {width}; only square ones are supported")
    return int(height)


def _scalar(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value)


def _canvas(transform: Any, side: int) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "3 S S"]]:
    """The resize and crop of a model's preprocessing: all of it but the last two parts, to tensor and normalise."""
    from PIL import Image

    parts = transform.transforms[:-2]

    def canvas(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3 S S"]:
        if image.shape != (side, side, 3):  # resizing to the same size changes nothing
            picture: Any = Image.fromarray(image)
            for part in parts:
                picture = part(picture)
            image = np.asarray(picture)
        return image.transpose(2, 0, 1)

    return canvas


def _encode(
    tower: Callable[[Tensor], Any],
    device: torch.device,
    dtype: torch.dtype | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    has_taps: bool,
) -> Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B P D"]]:
    """A function from canvases to features and taps, in autocast to dtype where one is given."""
    normalised = _normalised(device, mean, std)

    def encode(canvas: Shaped[Tensor, "B 3 S S"]) -> Float[Tensor, "B P D"]:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            found = tower(normalised(canvas))
            features, others = found if isinstance(found, tuple) else (found, None)  # CoCa gives tokens, too
            parts = torch.cat((features[:, None], others), dim=1) if has_taps else features[:, None]
            return parts.float()

    return encode


def _normalised(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Shaped[Tensor, "B 3 S S"]], Float[Tensor, "B 3 S S"]]:
    center, spread = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (mean, std))

    def normalised(canvas: Shaped[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        x = canvas.to(device)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        return (x - center).div_(spread).contiguous(memory_format=torch.channels_last)

    return normalised


def _compiled(tower: nn.Module) -> Callable[[Tensor], Any]:
    """The tower compiled for one shape of batch; every slab is padded to it."""
    return torch.compile(tower, dynamic=False)


def _split(
    tower: Any,
    blocks: int,
    device: torch.device,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    side: int,
    block: int,
) -> Split:
    """The tower in two parts at a block, 1 to the number of blocks less one, in fp32."""
    if not 1 <= block < blocks:
        accepted = f"1 to {blocks - 1}" if blocks > 1 else "none: it is not a ViT that pools its class token"
        raise EncoderError(f"--taps tokens@{block}: the tower cannot be split there. Accepted: {accepted}")
    front, back = split_tower(tower, block)
    normalised = _normalised(device, mean, std)

    def tokens(canvas: Shaped[Tensor, "B 3 S S"]) -> Float[Tensor, "B L D"]:
        with torch.inference_mode():
            return front(normalised(canvas))

    like = tokens(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    return Split(tokens, back, (like.shape[1], like.shape[2]), blocks)


def _encode_text(
    clip: Any, tokenize: Callable[..., Tensor], device: torch.device
) -> Callable[..., Float32[np.ndarray, "C T E"]]:
    """A function from prompts to text features, always in fp32 and in lots of one size, which go through `run`."""

    def slab(lot: list[str]) -> Tensor:
        with torch.inference_mode():
            tokens = tokenize(lot + lot[:1] * (TEXT_SLAB - len(lot))).to(device)
            return F.normalize(clip.encode_text(tokens).float(), dim=-1)[: len(lot)].cpu()

    def encode_text(
        prompts: Sequence[Sequence[str]], run: Callable[..., Iterable[Tensor]] = map
    ) -> Float32[np.ndarray, "C T E"]:
        flat = [prompt for of_class in prompts for prompt in of_class]
        rows = list(run(slab, [flat[start : start + TEXT_SLAB] for start in range(0, len(flat), TEXT_SLAB)]))
        return torch.cat(rows).view(len(prompts), len(prompts[0]), -1).numpy()

    return encode_text
