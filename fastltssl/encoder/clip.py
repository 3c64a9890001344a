"""A frozen CLIP, loaded by open_clip and reduced to what the rest needs: images to features, prompts to text features.

A canvas is an image after the model's own resize and crop, still uint8. Image features of a CLIP ViT are those before
its projection into the space of the text, so that a head may be trained on either side of it; other models give their
pooled output and no projection. The embedded model "tiny" is loaded in the same way as every other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor, nn

from fastltssl.encoder.towers import rewrite_tower, split_tower, weights_sha256
from fastltssl.encoder.weights import open_model, quiet
from fastltssl.errors import EncoderError
from fastltssl.reading import short

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TAPS = ("mid", "mlp")  # of the last block: the class token after attention, and what the MLP adds to it
TEXT_SLAB = 64  # prompts encoded at once; a shorter last batch is padded to it
EXTREME, MARGIN = 100, 4  # longer side over shorter of an image that is cropped first; pixels beside what is cropped

Pixels = Shaped[Tensor, "B 3 S S"]  # canvases, uint8 or float in [0, 1]


class SplitTower(NamedTuple):
    """An image tower in two parts: `tokens` can be computed once and stored, `features` is then what is trained."""

    tokens: Callable[[Pixels], Float[Tensor, "B L D"]]  # that enter the block at which the tower is split
    features: Callable[[Float[Tensor, "B L D"]], Float[Tensor, "B D"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoder:
    """A loaded model, in eval mode. D is `width`, E is `embed_width`, P counts the features (first) and the taps."""

    canvas: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "3 S S"]]  # the model's own resize and crop
    normalised: Callable[[Pixels], Float[Tensor, "B 3 S S"]]  # moved to the device, too
    encode_parts: Callable[[Pixels], Float[Tensor, "B P D"]]  # float32, whatever the precision inside
    encode_text: Callable[..., Float32[np.ndarray, "C T E"]]  # unit norm, of prompts [C][T]
    tower: nn.Module  # from normalised images to features; training through the encoder copies it
    blocks: int  # of a ViT that pools its class token, else 0
    dtype: torch.dtype | None  # that the tower computes in under autocast; None: float32
    device: torch.device
    size: int  # S
    mean: tuple[float, ...]  # of each colour channel, as is std
    std: tuple[float, ...]
    width: int
    projection: Float32[np.ndarray, "D E"] | None
    ln_post: Float32[np.ndarray, "2 D"] | None
    logit_scale: float  # the multiplier itself, not its logarithm
    logit_bias: float
    taps: tuple[str, ...]
    provenance: dict[str, Any]  # what the features depend on, for the fingerprint of a cache
    notes: tuple[str, ...]  # lines to show to the user

    @property
    def embed_width(self) -> int:
        """Width of the space that images and text share."""
        return self.width if self.projection is None else self.projection.shape[1]

    def encode(self, pixels: Pixels) -> Float[Tensor, "B D"]:
        """The features without the taps."""
        return self.encode_parts(pixels)[:, 0]

    def encode_exact(self, pixels: Pixels) -> Float[Tensor, "B D"]:
        """The features in float32 and without torch.compile, to compare with."""
        return _encoding(self.tower, self.normalised, None, bool(self.taps))(pixels)[:, 0]

    def through(self, tower: nn.Module) -> Callable[[Pixels], Float[Tensor, "B 1 D"]]:
        """What `encode_parts` is with another tower in place of its own, one that gives no taps."""
        return _encoding(tower, self.normalised, self.dtype, False)

    def split(self, block: int) -> SplitTower:
        """The tower, in float32, in two parts at a block from 1 to `blocks` - 1. Raises EncoderError."""
        if not 1 <= block < self.blocks:
            accepted = (
                f"1 to {self.blocks - 1}" if self.blocks > 1 else "none: it is not a ViT that pools its class token"
            )
            raise EncoderError(f"--taps tokens@{block}: the tower cannot be split there. Accepted: {accepted}")
        front, back = split_tower(self.tower, block)

        def tokens(pixels: Pixels) -> Float[Tensor, "B L D"]:
            with torch.inference_mode():
                return front(self.normalised(pixels))

        return SplitTower(tokens, back)


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
    tower, settings, identity = clip.visual, clip.visual.preprocess_cfg, _identity(clip, model, pretrained)
    size = _size(model, settings)
    mean, std = statistics or (_channels(model, "mean", settings["mean"]), _channels(model, "std", settings["std"]))
    rewritten = rewrite_tower(clip, model, where, size, trim=trim, has_taps=taps)
    # Compiled for one shape of batch: every slab is padded to it.
    run = torch.compile(tower, dynamic=False) if compiled else tower
    normalised = _normalised(where, mean, std)
    return Encoder(
        canvas=_canvas(transform, size),
        normalised=normalised,
        encode_parts=_encoding(run, normalised, DTYPES[precision], taps),
        encode_text=_encode_text(clip, tokenize, where),
        tower=tower,
        blocks=rewritten.blocks,
        dtype=DTYPES[precision],
        device=where,
        size=size,
        mean=mean,
        std=std,
        width=_encoding(tower, normalised, None, taps)(_blank(size)).shape[2],
        projection=rewritten.projection,
        ln_post=rewritten.ln_post,
        logit_scale=_scalar(clip.logit_scale.exp()),
        logit_bias=_scalar(getattr(clip, "logit_bias", None)),
        taps=TAPS if taps else (),
        provenance=identity
        | _numerics(tower, size, mean, std)
        | {"precision": precision, "is_trimmed": rewritten.is_trimmed}
        | ({"is_compiled": True} if compiled else {}),
        notes=tuple(notes),
    )


def _identity(clip: nn.Module, model: str, pretrained: str | None) -> dict[str, Any]:
    """Which weights these are. Where a checkpoint file lies is left out: its hash says what is in it."""
    is_file = pretrained is not None and Path(pretrained).is_file()
    return {
        "model": model,
        "pretrained": "file" if is_file else pretrained,
        "weights_sha256": weights_sha256(clip),
    }


def _numerics(tower: Any, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """What changes the features of given weights: preprocessing and activation."""
    from open_clip.transformer import QuickGELU

    settings = tower.preprocess_cfg
    return {
        "preprocessing": {
            "size": size, "mean": list(mean), "std": list(std),
            "resize": settings["resize_mode"], "interpolation": settings["interpolation"],
        },
        "quick_gelu": any(isinstance(part, QuickGELU) for part in tower.modules()),
    }  # fmt: skip


def _size(model: str, settings: dict[str, Any]) -> int:
    """Height and width of a canvas in pixels, which must be equal."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise EncoderError(f"--model {model} takes images of {height} x {width}; only square ones are supported")
    return int(height)


def _scalar(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value)


def _blank(size: int) -> UInt8[Tensor, "1 3 S S"]:
    """A black canvas, to learn the shape of what a tower makes of it."""
    return torch.zeros(1, 3, size, size, dtype=torch.uint8)


def _canvas(transform: Any, size: int) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "3 S S"]]:
    """The resize and crop of a model's preprocessing: all of its steps but the last two, to tensor and normalise.

    Where the shorter side is resized and the longer cropped, an image of extreme shape is cropped first, as its resized
    pixels may fill all memory.
    """
    from PIL import Image

    steps = transform.transforms[:-2]
    is_cropped = isinstance(getattr(steps[0], "size", None), int)

    def canvas(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3 S S"]:
        if image.shape != (size, size, 3):  # resizing to the same size changes nothing
            picture: Any = Image.fromarray(image)
            if is_cropped and max(picture.size) > EXTREME * min(picture.size):
                picture = _central(picture, size, steps[0].interpolation.name)
            for step in steps:
                picture = step(picture)
            image = np.asarray(picture)
        return image.transpose(2, 0, 1)

    return canvas


def _central(picture: Any, size: int, interpolation: str) -> Any:
    """The square of side `size` that is left of a long picture once it is resized and cropped.

    Only its middle is resized: what the square shows, and a margin that the filter sees.
    """
    from PIL import Image

    long, short = max(picture.size), min(picture.size)
    resized = int(size * long / short)
    scale, first = long / resized, round((resized - size) / 2)
    margin = MARGIN * max(scale, 1)
    start, stop = max(0, int(first * scale - margin)), min(long, int((first + size) * scale + margin))
    low, high = first * scale - start, (first + size) * scale - start
    if picture.width == long:
        part, box = picture.crop((start, 0, stop, short)), (low, 0, high, short)
    else:
        part, box = picture.crop((0, start, short, stop)), (0, low, short, high)
    return part.resize((size, size), Image.Resampling[interpolation], box)


def _channels(model: str, name: str, values: Any) -> tuple[float, ...]:
    """Three numbers of a model's preprocessing, one a colour. Raises EncoderError on anything else."""
    is_list = isinstance(values, list | tuple) and len(values) == 3
    if not is_list or not all(type(value) in (int, float) for value in values) or (name == "std" and 0 in values):
        raise EncoderError(f"--model {model}: its preprocessing has {name} {short(values)}, not three numbers. Mend it")
    return tuple(map(float, values))


def _normalised(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Pixels], Float[Tensor, "B 3 S S"]]:
    """A function that moves canvases to the device and normalises each colour channel by its mean and deviation."""
    center, spread = (torch.tensor(channels, device=device).view(1, 3, 1, 1) for channels in (mean, std))

    def normalised(pixels: Pixels) -> Float[Tensor, "B 3 S S"]:
        x = pixels.to(device)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        return (x - center).div_(spread).contiguous(memory_format=torch.channels_last)

    return normalised


def _encoding(
    tower: Callable[[Tensor], Any],
    normalised: Callable[[Pixels], Float[Tensor, "B 3 S S"]],
    dtype: torch.dtype | None,
    has_taps: bool,
) -> Callable[[Pixels], Float[Tensor, "B P D"]]:
    """A function from canvases to features and taps, under autocast where a dtype is given."""

    def encode(pixels: Pixels) -> Float[Tensor, "B P D"]:
        with torch.inference_mode():
            x = normalised(pixels)
            with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
                output = tower(x)
                features, others = output if isinstance(output, tuple) else (output, None)  # CoCa gives tokens, too
                parts = torch.cat((features[:, None], others), dim=1) if has_taps else features[:, None]
                return parts.float()

    return encode


def _encode_text(
    clip: Any, tokenize: Callable[..., Tensor], device: torch.device
) -> Callable[..., Float32[np.ndarray, "C T E"]]:
    """A function from prompts to text features, in float32. `run` maps it over batches, all padded to one size."""

    def encoded(batch: list[str]) -> Float[Tensor, "n E"]:
        with torch.inference_mode():
            tokens = tokenize(batch + batch[:1] * (TEXT_SLAB - len(batch))).to(device)
            return F.normalize(clip.encode_text(tokens).float(), dim=-1)[: len(batch)].cpu()

    def encode_text(
        prompts: Sequence[Sequence[str]], run: Callable[..., Iterable[Tensor]] = map
    ) -> Float32[np.ndarray, "C T E"]:
        flat = [prompt for of_class in prompts for prompt in of_class]
        batches = [flat[start : start + TEXT_SLAB] for start in range(0, len(flat), TEXT_SLAB)]
        return torch.cat(list(run(encoded, batches))).view(len(prompts), len(prompts[0]), -1).numpy()

    return encode_text
