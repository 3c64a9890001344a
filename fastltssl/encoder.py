"""A frozen CLIP, loaded by open_clip and reduced to three functions: canvas, encode, encode_text.

The embedded model "tiny" takes the same route as every other. Image features of a CLIP ViT are those before its last
projection, so that heads may start from either space; other towers give their pooled output and no projection.
"""

import contextlib
import difflib
import logging
import pickle
import ssl
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor, nn

from fastltssl.towers import (
    fold_batch_norms,
    is_clip_vit,
    last_norm,
    split_tower,
    take_projection,
    trim_last_block,
    weights_sha256,
)

TINY = Path(__file__).parent / "tiny"
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINTS = (".safetensors", ".bin", ".pth")  # what open_clip looks for in a folder
UNLOADABLE = (  # what open_clip, the hub and torch.load raise on weights that are absent, damaged or of another model
    RuntimeError, OSError, ValueError, KeyError, AttributeError, AssertionError, EOFError, pickle.UnpicklingError,
    ImportError,
)  # fmt: skip
TAPS = ("mid", "mlp")  # of the last block: the class token after attention, and what the MLP adds to it
PROBE_S = 5  # a hub that does not answer in this time counts as out of reach
RANDOM_SEED = 0  # of the weights of --pretrained none
TEXT_SLAB = 64  # prompts encoded at once, the last lot padded


class EncoderError(ValueError):
    """A model or its weights that cannot be had."""


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
    from open_clip.transformer import QuickGELU

    where = torch.device(device)
    precision = ("bf16" if where.type == "cuda" else "fp32") if precision == "auto" else precision
    if precision not in DTYPES:
        raise EncoderError(f"--precision {precision!r} is unknown. Accepted: auto, {', '.join(DTYPES)}")
    notes: list[str] = []
    with _quiet():
        clip, transform, tokenize = _opened(model, pretrained, notes)
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
        "preprocessing": {
            "size": side, "mean": list(mean), "std": list(std),
            "resize": settings["resize_mode"], "interpolation": settings["interpolation"],
        },
        "quick_gelu": any(isinstance(part, QuickGELU) for part in tower.modules()),
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


# ---------------------------------------------------------------------------------------------- loading


def _opened(model: str, pretrained: str | None, notes: list[str]) -> tuple[Any, Any, Callable[..., Tensor]]:
    """The open_clip model, its preprocessing for evaluation and its tokenizer."""
    import open_clip

    reach: contextlib.AbstractContextManager[None]
    folder = TINY if model == "tiny" else Path(model.removeprefix("local-dir:"))
    if model == "tiny" or model.startswith("local-dir:"):
        name, settings, reach = f"local-dir:{folder}", {}, contextlib.nullcontext()
        if not any(file.suffix in CHECKPOINTS for file in folder.glob("*")):
            raise EncoderError(
                f"--model {model}: {folder} holds no weights. Accepted: a file {' or '.join(CHECKPOINTS)}"
            )
        merges = sorted(folder.glob("bpe*.txt.gz"))
        words = {"bpe_path": str(merges[0])} if merges else {}  # without it: the tokenizer of the large models
    else:
        name, words, reach = model, {}, _short_wait()
        settings = _weights(model, pretrained, notes)
    try:
        with reach, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(RANDOM_SEED)
            clip, _, transform = open_clip.create_model_and_transforms(name, **settings)
            return clip, transform, open_clip.get_tokenizer(name, **words)
    except UNLOADABLE as error:
        raise EncoderError(
            f"--model {model} --pretrained {pretrained}: the weights could not be loaded. Tried: {_tried(pretrained)}. "
            f"Reason: {_in_short(error)} Copy a checkpoint here and pass --pretrained PATH, "
            f"or --model tiny for the embedded one"
        ) from error


def _weights(model: str, pretrained: str | None, notes: list[str]) -> dict[str, Any]:
    """Arguments for open_clip that say where the weights are; checks the names first."""
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, ["tiny", *known], n=3, cutoff=0.4)
        raise EncoderError(
            f"--model {model!r} is unknown. Nearest: {', '.join(near) or 'none'}. Accepted: tiny, local-dir:FOLDER, "
            f"or a name of open_clip.list_models(), such as ViT-B-16"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    accepted = f"Accepted: {', '.join([*tags, 'PATH of a checkpoint'])}, or none (random weights)"
    if pretrained is None:
        raise EncoderError(f"--model {model} needs --pretrained. {accepted}")
    if pretrained == "none":
        notes.append(f"RANDOM WEIGHTS: {model} was not trained, its features mean nothing. For speed and tests only")
        return {"pretrained": None, "pretrained_text": False}
    recipe = open_clip.get_pretrained_cfg(model, pretrained)
    if recipe:
        return {"pretrained": pretrained, "force_quick_gelu": bool(recipe.get("quick_gelu"))}
    if not Path(pretrained).is_file():
        near = difflib.get_close_matches(pretrained, tags, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise EncoderError(f"--pretrained {pretrained!r} is no tag of {model} and no file.{hint} {accepted}")
    return {"pretrained": pretrained} | _file_settings(model, Path(pretrained), tags, notes)


def _file_settings(model: str, path: Path, tags: Sequence[str], notes: list[str]) -> dict[str, Any]:
    """What a checkpoint file does not say, activation and preprocessing: from the model's tags where they agree."""
    import open_clip

    recipes = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    settings: dict[str, Any] = {}
    arguments = {"mean": "image_mean", "std": "image_std", "interpolation": "image_interpolation"}
    for name, argument in (arguments | {"resize_mode": "image_resize_mode"}).items():
        found = {repr(recipe[name]): recipe[name] for recipe in recipes if name in recipe}
        if len(found) == 1:
            settings[argument] = next(iter(found.values()))
    gelus = {bool(recipe.get("quick_gelu")) for recipe in recipes}
    is_program = _is_torchscript(path)
    settings["force_quick_gelu"] = gelus == {True} or is_program
    settings["weights_only"] = not is_program  # the safe unpickler refuses these; they are no pickles but programs
    if len(gelus) == 2 and not settings["force_quick_gelu"]:
        notes.append(f"{path.name}: taken as trained with GELU. For OpenAI weights use --model {model}-quickgelu")
    return settings


def _is_torchscript(path: Path) -> bool:
    """Whether torch.load takes the file for a TorchScript archive, the form in which OpenAI published CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what open_clip and the hub log while loading; what matters of it becomes a note or an error of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _short_wait() -> Iterator[None]:
    """Let the hub use its local files only while it is out of reach: its own retries take most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; whom to trust is the hub's own choice
    except OSError:
        return False
    return True


def _tried(pretrained: str | None) -> str:
    if pretrained is None or Path(pretrained).is_file():
        return "the local file"
    return f"the tag {pretrained} in the local hub folder, then a download"


def _in_short(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200].rstrip()}..."


def _side(model: str, settings: dict[str, Any]) -> int:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise EncoderError(f"--model {model} takes images of {height} x {width}; only square ones are supported")
    return int(height)


def _scalar(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value)


# ---------------------------------------------------------------------------------------------- functions


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
