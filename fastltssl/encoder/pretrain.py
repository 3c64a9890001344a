"""Trains the embedded CLIP "tiny" from drawn images alone: a warm-up of the image tower, then both towers on captions.

Warm-up: the image tower learns to classify shapes without names (`images.world.shapes`), drawn in every style of the
world. It sees none of the 40 named pictograms, and its classifier is discarded.
Captions: both towers learn from named pictograms in the style "caption", each with a sentence; the classes follow
`caption_prior`, long-tailed 50:1. The image-to-text loss compares an image with a bank of plain captions, one of every
class, the text-to-image loss a caption with the images of the batch (f images, t captions, s the logit scale):
    L = .8 CE(s <f_i, bank>, y_i) + .2 CE(s <t_i, f>, the images of that caption)
Images are long-tailed and the bank is not, so the optimal scores are log p(y | x), which contain the class prior, as
GLA assumes. In the usual loss the captions of the batch, which are as frequent as the images, take the place of the
bank, and the prior cancels; `negatives=batch` trains that control.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import cos, log, pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastltssl.encoder.weights import TINY
from fastltssl.errors import PretrainError
from fastltssl.images.prompts import prompts
from fastltssl.images.world.painting import Style, drawings
from fastltssl.images.world.scenery import uniforms
from fastltssl.images.world.shapes import nameless
from fastltssl.images.world.world import CAPTION_RATIO, CLASSES, STYLES, caption_prior, captions, render
from fastltssl.machine import cpu_threads
from fastltssl.progress import Progress, Work
from fastltssl.types import seeded

MERGES = "bpe_tiny.txt.gz"
CHECKPOINT, WARMED = "unfinished.pt", "warmup.safetensors"
EVERY = 250  # steps between checkpoints
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 48, "patch_size": 8, "layers": 4, "width": 128, "head_width": 32, "mlp_ratio": 4.0},
    "text_cfg": {"context_length": 12, "vocab_size": 764, "width": 96, "heads": 4, "layers": 2, "mlp_ratio": 2.0},
}
PREPROCESSING = {"mean": MEAN, "std": STD, "size": 48, "interpolation": "bilinear", "resize_mode": "squash"}

# Warm-up images go from easy to every style of the world at once, over the first half of the steps.
EASY = Style(
    backgrounds=(0, 12), rotation=15, scale=(0.8, 1.0), shift=0.08, bend=0.03, outlined=0.0, noise=(0, 3),
    blur=(0, 0.3), contrast=(0.9, 1.0), occluded=0.0, tint=0.02, tone=10,
)  # fmt: skip
BROAD = Style(
    backgrounds=(0, 12), rotation=50, scale=(0.5, 0.95), shift=0.27, bend=0.2, outlined=0.3, noise=(0, 22),
    blur=(0, 0.9), contrast=(0.6, 1.0), occluded=0.3, tint=0.15, tone=25,
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on but the versions of the libraries and the kind of processor."""

    seed: int = 0
    negatives: str = "bank"  # of the image-to-text loss: bank | batch
    shapes: int = 256
    warmup_steps: int = 2500
    caption_steps: int = 100
    batch: int = 128
    warmup_lr: float = 1e-3  # of vectors and embeddings; matrices, which Muon updates, take ten times that
    caption_lr: float = 1e-3
    image_lr: float = 0.01  # of the image tower on captions, times caption_lr: nearly frozen
    scale: float = 14.0  # initial logit scale


def pretrain(recipe: Recipe, out: Path, *, warmed: Path | None = None, resume: bool = False) -> Work[dict[str, Any]]:
    """Train the model into the folder `out`, yielding Progress; returns and writes the record of the training.

    On one thread, so that the weights come out bit-identical. `warmed` is the folder of an earlier training whose
    warm-up is reused. With `resume` an interrupted training continues.
    """
    if recipe.negatives not in ("bank", "batch"):
        raise PretrainError(f"negatives {recipe.negatives!r} is not one of bank, batch")
    if not hasattr(torch.optim, "Muon"):
        raise PretrainError(f"this is torch {torch.__version__}; the warm-up needs Muon, which came with torch 2.9")
    if warmed:
        _warm_tower(recipe, warmed)  # refused before anything is written
    out.mkdir(parents=True, exist_ok=True)
    with cpu_threads(1):
        return (yield from _pretrain(recipe, out, warmed, resume))


class _Stage(NamedTuple):
    """One of the two parts of the training."""

    name: str
    steps: int
    parts: nn.ModuleDict  # what is trained
    optimisers: list[torch.optim.Optimizer]
    loss: Callable[[int], tuple[Float[Tensor, ""], Float[Tensor, ""]]]  # of a step number: loss and accuracy


def _pretrain(recipe: Recipe, out: Path, warmed: Path | None, resume: bool) -> Work[dict[str, Any]]:
    began, saved = time.perf_counter(), _checkpoint(recipe, out, resume)
    torch.default_generator.manual_seed(recipe.seed)
    clip = _new_clip(recipe)
    stages = [_warmup(recipe, clip), _captions(recipe, clip)]
    done, total, earlier = 0, sum(stage.steps for stage in stages), None
    for stage in stages:
        start = 0
        if saved and saved["stage"] == stage.name:
            start = _restored(saved, stage)
            saved = None
        elif saved or (warmed and stage.name == "warm-up"):
            start = stage.steps  # an earlier training has completed it
        if warmed and stage.name == "warm-up":
            clip.visual.load_state_dict(_warm_tower(recipe, warmed))
        stage.parts.train()
        for step in range(start, stage.steps):
            earlier = done + step if earlier is None else earlier
            loss, accuracy = _step(stage, step)
            yield Progress(
                done + step + 1, total, time.perf_counter() - began,
                part=stage.name, loss=loss, accuracy=accuracy, earlier=earlier,
            )  # fmt: skip
            if (step + 1) % EVERY == 0 or step + 1 == stage.steps:
                _save(recipe, stage, step + 1, out)
        if start < stage.steps and stage.name == "warm-up":
            save_file(clip.visual.state_dict(), out / WARMED, {"recipe": _warmup_part(recipe)})
        done += stage.steps
    return _export(recipe, clip, out, time.perf_counter() - began)


def _step(stage: _Stage, step: int) -> tuple[float, float]:
    """One update; learning rates rise linearly over the first 5 % of the steps and fall with a cosine to 2 %."""
    loss, accuracy = stage.loss(step)
    warmup = min(1.0, (step + 1) / (0.05 * stage.steps))
    rate = warmup * (0.02 + 0.98 * 0.5 * (1 + cos(pi * step / stage.steps)))
    stage.parts.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(stage.parts.parameters(), 1.0)
    for optimiser in stage.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        optimiser.step()
    return loss.item(), accuracy.item()


def _warmup(recipe: Recipe, clip: Any) -> _Stage:
    """Classification of shapes without names."""
    shapes = drawings(nameless(recipe.seed, recipe.shapes))
    width = CONFIG["embed_dim"]
    classifier = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, recipe.shapes))
    parts = nn.ModuleDict({"tower": clip.visual, "classifier": classifier})
    matrices = [p for name, p in clip.visual.named_parameters() if p.ndim == 2 and "resblocks" in name]
    others = [p for p in parts.parameters() if all(p is not matrix for matrix in matrices)]
    lr = recipe.warmup_lr
    optimisers = [
        torch.optim.Muon([_group(matrices, 10 * lr)], momentum=0.95, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW([_group(others, lr)], betas=(0.9, 0.98), weight_decay=0.02),
    ]

    def loss(step: int) -> tuple[Tensor, Tensor]:
        index = _index(recipe, step)
        label = _drawn(recipe, "shape", index, np.full(recipe.shapes, 1 / recipe.shapes))
        style = _between(EASY, BROAD, min(1.0, 2 * step / recipe.warmup_steps))
        scores = classifier(
            clip.encode_image(_normalised(render(_seed(recipe, "warm-up"), index, label, style, shapes)))
        )
        y = torch.from_numpy(label)
        return F.cross_entropy(scores, y, label_smoothing=0.05), _accuracy(scores, y)

    return _Stage("warm-up", recipe.warmup_steps, parts, optimisers, loss)


def _captions(recipe: Recipe, clip: Any) -> _Stage:
    """Contrastive learning of images and captions."""
    tower = list(clip.visual.parameters())
    others = [p for p in clip.parameters() if all(p is not image_parameter for image_parameter in tower)]
    groups = [_group(tower, recipe.image_lr * recipe.caption_lr), _group(others, recipe.caption_lr)]
    tokenize = open_clip.SimpleTokenizer(
        bpe_path=str(TINY / MERGES), context_length=CONFIG["text_cfg"]["context_length"]
    )
    plain = [prompt for of_class in prompts(CLASSES, "world") for prompt in of_class]
    bank = tokenize(plain).view(len(CLASSES), -1, CONFIG["text_cfg"]["context_length"])

    def loss(step: int) -> tuple[Tensor, Tensor]:
        index, style = _index(recipe, step), STYLES["caption"]
        label = _drawn(recipe, "class", index, caption_prior())
        seed = _seed(recipe, "captions")
        tokens, y = tokenize(captions(seed, index, label, style)), torch.from_numpy(label)
        image = clip.encode_image(_normalised(render(seed, index, label, style)), normalize=True)
        if recipe.negatives == "batch":
            text, pairs = clip.encode_text(tokens, normalize=True), torch.arange(len(tokens))
            scores = clip.logit_scale.exp() * image @ text.T
            return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2, _accuracy(scores, pairs)
        is_same = (tokens[:, None] == tokens[None]).all(dim=-1).float()
        candidates = bank[:, step % bank.shape[1]]  # one template a step, in turn
        text, of_classes = clip.encode_text(torch.cat([tokens, candidates]), normalize=True).split(
            [len(tokens), len(candidates)]
        )
        scores = clip.logit_scale.exp() * image @ of_classes.T
        by_text = F.cross_entropy(clip.logit_scale.exp() * text @ image.T, is_same / is_same.sum(dim=1, keepdim=True))
        return 0.8 * F.cross_entropy(scores, y) + 0.2 * by_text, _accuracy(scores, y)

    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)]
    return _Stage("captions", recipe.caption_steps, nn.ModuleDict({"clip": clip}), optimisers, loss)


def _new_clip(recipe: Recipe) -> Any:
    """The untrained model."""
    clip = open_clip.CLIP(**CONFIG)
    nn.init.normal_(clip.token_embedding.weight, std=0.3)  # at the usual .02 all short captions start nearly equal
    clip.logit_scale.data.fill_(log(recipe.scale))
    return clip


def _group(parameters: list[nn.Parameter], lr: float) -> dict[str, Any]:
    """A parameter group of an optimiser; "peak" is the learning rate that the schedule multiplies."""
    return {"params": parameters, "lr": lr, "peak": lr}


def _seed(recipe: Recipe, what: str) -> int:
    """The seed of the images of a stage: a large number, so that it equals no seed of a data set."""
    return seeded(recipe.seed, what).initial_seed()


def _index(recipe: Recipe, step: int) -> np.ndarray:
    """The numbers of the images of a step, [batch]; no image is used twice."""
    return np.arange(step * recipe.batch, (step + 1) * recipe.batch)


def _drawn(recipe: Recipe, what: str, index: np.ndarray, prior: np.ndarray) -> Int[np.ndarray, " B"]:
    """The label of each image, drawn from a prior; it depends on the number of the image alone."""
    draw = uniforms(_seed(recipe, what), index, 1)[:, 0]
    return np.minimum(np.searchsorted(np.cumsum(prior), draw, side="right"), len(prior) - 1)


def _between(start: Style, stop: Style, share: float) -> Style:
    """The style that lies a share of the way from one to the other; backgrounds are those of `stop`."""

    def mixed(a: Any, b: Any) -> Any:
        return tuple(map(mixed, a, b)) if isinstance(a, tuple) else a + (b - a) * share

    values = {field.name: mixed(getattr(start, field.name), getattr(stop, field.name)) for field in fields(Style)}
    return Style(**values | {"backgrounds": stop.backgrounds})


def _normalised(images: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    mean, std = (torch.tensor(channels).view(1, 3, 1, 1) for channels in (MEAN, STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _accuracy(scores: Float[Tensor, "B C"], y: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    return (scores.argmax(dim=1) == y).float().mean()


# ---------------------------------------------------------------------------------------------- files


def _save(recipe: Recipe, stage: _Stage, step: int, out: Path) -> None:
    """Write a checkpoint; a kill meanwhile leaves the last one as it was."""
    state = {
        "recipe": asdict(recipe), "stage": stage.name, "step": step, "parts": stage.parts.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in stage.optimisers],
    }  # fmt: skip
    torch.save(state, out / f"{CHECKPOINT}.new")
    (out / f"{CHECKPOINT}.new").replace(out / CHECKPOINT)


def _checkpoint(recipe: Recipe, out: Path, resume: bool) -> dict[str, Any] | None:
    """The last checkpoint in the folder, which must be of the same recipe; None where there is none."""
    path = out / CHECKPOINT
    if not path.exists():
        return None
    if not resume:
        raise PretrainError(f"{path} is of a run that was stopped. Go on with --resume, or remove it")
    saved = torch.load(path, weights_only=True)
    if changed := [name for name, value in asdict(recipe).items() if saved["recipe"].get(name) != value]:
        raise PretrainError(f"{path} is of another recipe: {', '.join(changed)} differ. Remove it to start anew")
    return saved


def _restored(saved: dict[str, Any], stage: _Stage) -> int:
    """Load a stage as it was saved, in place; returns the number of steps done."""
    stage.parts.load_state_dict(saved["parts"])
    for optimiser, state in zip(stage.optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return saved["step"]


def _warmup_part(recipe: Recipe) -> str:
    """What the warm-up depends on, as JSON."""
    return json.dumps([asdict(recipe)[name] for name in ("seed", "shapes", "warmup_steps", "batch", "warmup_lr")])


def _warm_tower(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """The weights of the image tower after the warm-up of an earlier training."""
    path = folder / WARMED
    if not path.is_file():
        raise PretrainError(
            f"--warmed {folder}: there is no {WARMED}. Accepted: the folder of a finished `world train`"
        )
    with safe_open(path, "pt") as file:
        stored, wanted = (file.metadata() or {}).get("recipe"), _warmup_part(recipe)
        if stored != wanted:
            raise PretrainError(f"--warmed {folder} is of another warm-up: {stored}, not {wanted}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _export(recipe: Recipe, clip: Any, out: Path, seconds: float) -> dict[str, Any]:
    """Write the model as `--model local-dir:OUT` reads it, weights in fp16, and the record of the training."""
    weights = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors", {"format": "pt"})
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESSING}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    if out.resolve() != TINY.resolve():
        shutil.copyfile(TINY / MERGES, out / MERGES)
    record = {
        "recipe": asdict(recipe),
        "warm_up_images": recipe.warmup_steps * recipe.batch,
        "caption_pairs": recipe.caption_steps * recipe.batch,
        "caption_ratio": CAPTION_RATIO,
        "parameters": sum(value.numel() for value in clip.parameters()),
        "bytes": (out / "open_clip_model.safetensors").stat().st_size,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / CHECKPOINT).unlink(missing_ok=True)
    return record
