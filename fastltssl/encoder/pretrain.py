"""How the tiny CLIP is made, from seeds and nothing else: a warm-up of the image tower, then both towers on captions.

Warm-up: the image tower learns to tell nameless shapes (`images.world.shapes`) apart, drawn in every style of the
world. No named pictogram is seen. Its classifier is thrown away.
Captions: both towers learn from named pictograms in the style "caption" and one sentence each, whose classes follow
`caption_prior`, long-tailed 50:1. The image-to-text loss has one plain caption of every class as its candidates:
    L = .8 CE(s <f_i, bank>, y_i) + .2 CE over the images of the batch of s <t_i, f>
With the candidates balanced and the images not, the best scores are log p(y | x) with the prior in it, as GLA assumes.
The usual candidates, the captions of the batch, are as frequent as the images, and the prior cancels: `negatives=batch`
is that control.
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
    """Everything the weights depend on, besides the versions of the libraries and the kind of processor."""

    seed: int = 0
    negatives: str = "bank"  # of the image-to-text loss: bank | batch
    shapes: int = 256
    warmup_steps: int = 2500
    caption_steps: int = 100
    batch: int = 128
    warmup_lr: float = 1e-3  # of vectors and embeddings; ten times that for the matrices, which Muon updates
    caption_lr: float = 1e-3
    image_lr: float = 0.01  # of the image tower on captions, times caption_lr: all but locked
    scale: float = 14.0  # initial logit scale


def pretrain(recipe: Recipe, out: Path, *, warmed: Path | None = None, resume: bool = False) -> Work[dict[str, Any]]:
    """Train into the folder `out`, yielding Progress; returns and writes the record. One thread, for equal bits.

    `warmed` is a folder of an earlier run of the same warm-up, which is taken over. A killed run goes on with `resume`.
    """
    if recipe.negatives not in ("bank", "batch"):
        raise PretrainError(f"negatives {recipe.negatives!r} is not one of bank, batch")
    if not hasattr(torch.optim, "Muon"):
        raise PretrainError(f"this is torch {torch.__version__}; the warm-up needs Muon, which came with torch 2.9")
    if warmed:
        _warm_tower(recipe, warmed)  # refused before anything is written
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return (yield from _pretrain(recipe, out, warmed, resume))
    finally:
        torch.set_num_threads(threads)


class _Stage(NamedTuple):
    """One of the two parts of the training."""

    name: str
    steps: int
    parts: nn.ModuleDict  # what is trained
    optimisers: list[torch.optim.Optimizer]
    loss: Callable[[int], tuple[Float[Tensor, ""], Float[Tensor, ""]]]  # of a step: loss and accuracy


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
            start = stage.steps  # an earlier run has done it
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
    """One update of a stage; its learning rates rise over the first twentieth and fall with a cosine to 2 %."""
    loss, accuracy = stage.loss(step)
    rise = min(1.0, (step + 1) / (0.05 * stage.steps))
    rate = rise * (0.02 + 0.98 * 0.5 * (1 + cos(pi * step / stage.steps)))
    stage.parts.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(stage.parts.parameters(), 1.0)
    for optimiser in stage.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        optimiser.step()
    return loss.item(), accuracy.item()


def _warmup(recipe: Recipe, clip: Any) -> _Stage:
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
    tower = list(clip.visual.parameters())
    others = [p for p in clip.parameters() if all(p is not own for own in tower)]
    groups = [_group(tower, recipe.image_lr * recipe.caption_lr), _group(others, recipe.caption_lr)]
    tokenize = open_clip.SimpleTokenizer(
        bpe_path=str(TINY / MERGES), context_length=CONFIG["text_cfg"]["context_length"]
    )
    bank = tokenize([each for of_class in prompts(CLASSES, "world") for each in of_class]).view(len(CLASSES), -1, 12)

    def loss(step: int) -> tuple[Tensor, Tensor]:
        index, style = _index(recipe, step), STYLES["caption"]
        label = _drawn(recipe, "class", index, caption_prior())
        seed = _seed(recipe, "captions")
        tokens, y = tokenize(captions(seed, index, label, style)), torch.from_numpy(label)
        image = clip.encode_image(_normalised(render(seed, index, label, style)), normalize=True)
        if recipe.negatives == "batch":
            text, own = clip.encode_text(tokens, normalize=True), torch.arange(len(tokens))
            scores = clip.logit_scale.exp() * image @ text.T
            return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2, _accuracy(scores, own)
        is_same = (tokens[:, None] == tokens[None]).all(dim=-1).float()
        picked = bank[:, step % bank.shape[1]]  # the templates take turns
        text, plain = clip.encode_text(torch.cat([tokens, picked]), normalize=True).split([len(tokens), len(picked)])
        scores = clip.logit_scale.exp() * image @ plain.T
        by_text = F.cross_entropy(clip.logit_scale.exp() * text @ image.T, is_same / is_same.sum(dim=1, keepdim=True))
        return 0.8 * F.cross_entropy(scores, y) + 0.2 * by_text, _accuracy(scores, y)

    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)]
    return _Stage("captions", recipe.caption_steps, nn.ModuleDict({"clip": clip}), optimisers, loss)


def _new_clip(recipe: Recipe) -> Any:
    clip = open_clip.CLIP(**CONFIG)
    nn.init.normal_(clip.token_embedding.weight, std=0.3)  # at the usual .02 captions of two words start out alike
    clip.logit_scale.data.fill_(log(recipe.scale))
    return clip


def _group(parameters: list[nn.Parameter], lr: float) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "peak": lr}


def _seed(recipe: Recipe, what: str) -> int:
    """The seed of one stream of images; those of the data sets are small numbers, these are not."""
    return seeded(recipe.seed, what).initial_seed()


def _index(recipe: Recipe, step: int) -> np.ndarray:
    """The images of a step, [batch]; none is ever seen twice."""
    return np.arange(step * recipe.batch, (step + 1) * recipe.batch)


def _drawn(recipe: Recipe, what: str, index: np.ndarray, prior: np.ndarray) -> Int[np.ndarray, " B"]:
    """The label of each image, a function of its index."""
    place = uniforms(_seed(recipe, what), index, 1)[:, 0]
    return np.minimum(np.searchsorted(np.cumsum(prior), place, side="right"), len(prior) - 1)


def _between(start: Style, stop: Style, share: float) -> Style:
    """The style a share of the way from one to the other; backgrounds are those of `stop`."""

    def mixed(a: Any, b: Any) -> Any:
        return tuple(map(mixed, a, b)) if isinstance(a, tuple) else a + (b - a) * share

    changed = {one.name: mixed(getattr(start, one.name), getattr(stop, one.name)) for one in fields(Style)}
    return Style(**changed | {"backgrounds": stop.backgrounds})


def _normalised(images: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _accuracy(scores: Float[Tensor, "B C"], y: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    return (scores.argmax(dim=1) == y).float().mean()


# ---------------------------------------------------------------------------------------------- files


def _save(recipe: Recipe, stage: _Stage, step: int, out: Path) -> None:
    state = {
        "recipe": asdict(recipe), "stage": stage.name, "step": step, "parts": stage.parts.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in stage.optimisers],
    }  # fmt: skip
    torch.save(state, out / f"{CHECKPOINT}.new")
    (out / f"{CHECKPOINT}.new").replace(out / CHECKPOINT)


def _checkpoint(recipe: Recipe, out: Path, resume: bool) -> dict[str, Any] | None:
    """What a killed run of the same recipe left in the folder."""
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
    """The stage as it was saved; returns the steps done."""
    stage.parts.load_state_dict(saved["parts"])
    for optimiser, state in zip(stage.optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return saved["step"]


def _warmup_part(recipe: Recipe) -> str:
    """What the warm-up depends on, as JSON."""
    return json.dumps([asdict(recipe)[name] for name in ("seed", "shapes", "warmup_steps", "batch", "warmup_lr")])


def _warm_tower(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """The image tower of another run, after its warm-up."""
    path = folder / WARMED
    if not path.is_file():
        raise PretrainError(
            f"--warmed {folder}: there is no {WARMED}. Accepted: the folder of a finished `world train`"
        )
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get("recipe")
        if found != _warmup_part(recipe):
            raise PretrainError(f"--warmed {folder} is of another warm-up: {found}, not {_warmup_part(recipe)}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _export(recipe: Recipe, clip: Any, out: Path, seconds: float) -> dict[str, Any]:
    """The model as `--model local-dir:OUT` takes it, weights in fp16, and the record of the training."""
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
