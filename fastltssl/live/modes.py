"""The modes of training an image tower: all of it, a part of it, or small modules added to its blocks.

| mode | what trains | source |
| --- | --- | --- |
| fft | everything | |
| adaptformer[:H] | mid + mlp + s Up(ReLU(Down(LN(mid)))) in every block, H hidden values | arXiv 2205.13535 |
| lastblock[:H] | the same in the last block only; the head of that name trains the same from cached taps | |
| lora[:R] | x W + x A B for the queries and the values of every block, A B of rank R | arXiv 2106.09685 |
| vpt[:P] | P prompts after the class token, other ones in every block (VPT-deep) | arXiv 2203.12119 |
| bitfit | every bias, those of norms too | arXiv 2106.10199 |
| lastk:K | the last K blocks and ln_post | |

Before the first step features are those of the frozen tower, except with vpt, whose prompts change them.
The names of parameters are those of open_clip's tower, whether or not its last block is trimmed.

Differs: the s of AdaptFormer is learned, from 0.1 (in the paper it stays 0.1), and H follows the number of classes, as
in LIFT (arXiv 2309.10019); Down and A start normal with standard deviation 1 / sqrt(D), so that hidden values are near
1. LoRA's alpha is R, so that A B is not scaled: the learning rate does that.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Generator, Tensor, nn

from fastltssl.encoder.towers import ClassTokenBlock, FirstTokenNorm, is_clip_vit
from fastltssl.errors import TuningError, did_you_mean
from fastltssl.functional.adapters import start_bottleneck

FORMS = ("fft", "adaptformer[:H]", "lora[:R]", "vpt[:P]", "bitfit", "lastk:K", "lastblock[:H]")
RANK, PROMPTS, HIDDEN = 8, 50, 16  # R, P, and H of lastblock, where a mode gives no number
STRENGTH = 0.1  # start of s of AdaptFormer


@dataclass(frozen=True)
class Mode:
    """What trains in a tower; `size` is the number after the colon, None where the text gives none."""

    name: str
    size: int | None = None

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}:{self.size}"


def parse_mode(text: str) -> Mode:
    """The mode that a text such as "lora:4" names. Raises TuningError."""
    name, colon, size = text.partition(":")
    forms, accepted = {re.split(r"\W", form)[0]: form for form in FORMS}, f"Accepted: {', '.join(FORMS)}"
    if name not in forms:
        hint = did_you_mean(name, forms)
        raise TuningError(f"--live {text!r} is unknown.{hint} {accepted}")
    form = forms[name]
    is_number = size.isascii() and size.isdigit() and int(size) > 0 and ":" in form
    if not (is_number if colon else not form.endswith(":K")):
        number = f", {form.rstrip(']')[-1]} a whole number from 1" if ":" in form else ", without a number"
        raise TuningError(f"--live {text!r} is not of the form {form}{number}. {accepted}")
    return Mode(name, int(size) if colon else None)


def tuned(tower: nn.Module, mode: Mode, *, n_classes: int, generator: Generator) -> nn.Module:
    """A copy of the tower, images [B 3 S S] to features [B D], in which only what the mode names trains.

    It is in eval mode, and has neither patch dropout nor taps. Fold the batch norms of a ResNet before. Raises
    TuningError for a mode that does not suit the tower.
    """
    own = _copied(tower)
    if mode.name == "fft":
        return own.requires_grad_(True)
    blocks = _blocks(own, mode)
    width = bottleneck_width(n_classes, len(blocks))
    sizes = {"adaptformer": width, "lora": RANK, "vpt": PROMPTS, "lastblock": HIDDEN}
    CHANGES[mode.name](own, blocks, mode.size or sizes.get(mode.name, 1), generator)
    return own


def bottleneck_width(n_classes: int, layers: int) -> int:
    """2^max(0, floor(log2(C / (2 layers)))), the default H of AdaptFormer."""
    return 1 << max(0, (n_classes // (2 * layers)).bit_length() - 1)  # in whole numbers, so exact


def first_trained(tower: nn.Module, mode: Mode) -> int:
    """The index of the first block in which anything trains: the blocks before it are frozen."""
    blocks = len(tower.transformer.resblocks) if mode.name in ("lastk", "lastblock") else 0  # type: ignore[union-attr, arg-type]
    return max(0, blocks - (mode.size or 1 if mode.name == "lastk" else 1))


def trainable(tower: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    parameters = [(name, value) for name, value in tower.named_parameters() if value.requires_grad]
    return {re.sub(r"(resblocks\.\d+)\.block\.", r"\1.", name): value for name, value in parameters}


def state(tower: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that train, contiguous and on the CPU, as safetensors needs them."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in trainable(tower).items()}


def load_state(tower: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `state` returned into a tower of the same model and mode. Raises TuningError before any change."""
    own = trainable(tower)
    pairs = [(name, tuple(tensors[name].shape), tuple(own[name].shape)) for name in own.keys() & tensors.keys()]
    wrong = {f"{name} {given} for {needed}" for name, given, needed in pairs if given != needed}
    faults = {"missing": own.keys() - tensors.keys(), "unexpected": tensors.keys() - own.keys(), "misshapen": wrong}
    parts = [f"{len(names)} {fault}: {', '.join(sorted(names)[:3])}" for fault, names in faults.items() if names]
    if parts:
        accepted = f"the {len(own)} tensors of a tower of the same model and mode"
        raise TuningError(f"the tensors do not fit the tower: {'; '.join(parts)}. Accepted: {accepted}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def describe(tower: nn.Module, mode: Mode) -> str:
    """One line: the mode, and how many of the tower's parameters train."""
    count, total = (sum(map(Tensor.numel, part)) for part in (trainable(tower).values(), tower.parameters()))
    note = ". Prompts change the features before the first step" if mode.name == "vpt" else ""
    return f"{mode}: {count:,} of {total:,} parameters of the tower train, {100 * count / total:.2f} %{note}"


class AdaptedMLP(nn.Module):
    """The MLP branch of a block with AdaptFormer (eq. 3): mlp(ln_2 mid) + s Up(ReLU(Down(LN(mid)))), Up = 0 at first.

    Its parameters have the names and shapes of the `lastblock` head, which trains the same from cached taps.
    """

    def __init__(self, block: Any, hidden: int, generator: Generator) -> None:
        super().__init__()
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2
        like, width = block.ln_2.weight, block.ln_2.normalized_shape[0]
        start = start_bottleneck(like, width, hidden, width**0.5, generator) | {
            "strength": like.new_tensor(STRENGTH),
            "norm": torch.stack((like.new_ones(width), like.new_zeros(width))),
            "down_bias": like.new_zeros(hidden),
            "up_bias": like.new_zeros(width),
        }
        self.adapter = nn.ParameterDict(start)

    def forward(self, mid: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        own = self.adapter
        normed = F.layer_norm(mid, mid.shape[-1:], own["norm"][0], own["norm"][1])
        hidden = torch.relu(F.linear(normed, own["down"].T, own["down_bias"]))
        return self.ls_2(self.mlp(self.ln_2(mid))) + own["strength"] * F.linear(hidden, own["up"].T, own["up_bias"])


class LowRankAttention(nn.Module):
    """An nn.MultiheadAttention whose queries and values are x W + x A B (LoRA eq. 3), B = 0 at first.

    A B is not added to W, as the gradient of A and B would then take one of the size of W.
    """

    def __init__(self, attn: nn.MultiheadAttention, rank: int, generator: Generator) -> None:
        super().__init__()
        self.attn, width = attn, attn.embed_dim
        starts = (start_bottleneck(attn.in_proj_weight, width, rank, width**0.5, generator) for _ in range(2))
        self.query, self.value = map(nn.ParameterDict, starts)

    def forward(
        self, query: Float[Tensor, "B Q D"], key: Float[Tensor, "B L D"], value: Float[Tensor, "B L D"], **_: Any
    ) -> tuple[Float[Tensor, "B Q D"], None]:
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q, k, v = map(F.linear, (query, key, value), weights, biases)
        q = q + query @ self.query["down"] @ self.query["up"]
        v = v + value @ self.value["down"] @ self.value["up"]
        q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=self.attn.num_heads) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.attn.out_proj(rearrange(mixed, "b h l d -> b l (h d)")), None


class PromptedBlock(nn.Module):
    """A block that sees P prompts after the class token, in place of those of the block before (VPT-deep)."""

    def __init__(self, block: nn.Module, prompts: Float[Tensor, "P D"], is_first: bool) -> None:
        super().__init__()
        self.block, self.prompts, self.is_first = block, nn.Parameter(prompts), is_first

    def forward(self, x: Float[Tensor, "B L D"], *_: None, **__: None) -> Float[Tensor, "B _ D"]:
        prompts = repeat(self.prompts.to(x.dtype), "p d -> b p d", b=x.shape[0])
        patches = x[:, 1:] if self.is_first else x[:, 1 + len(self.prompts) :]
        return self.block(torch.cat((x[:, :1], prompts, patches), dim=1))


def _adaptformer(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    for block in blocks:
        block.mlp = AdaptedMLP(block, size, generator)
        block.ln_2 = block.ls_2 = nn.Identity()  # AdaptedMLP holds them, as the adapter reads mid before ln_2


def _lastblock(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    _adaptformer(tower, blocks[-1:], size, generator)


def _lora(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    for block in blocks:
        block.attn = LowRankAttention(block.attn, size, generator)


def _vpt(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    """Prompts start uniform on (-b, b) with b = sqrt(6 / (3 p^2 + D)), p the side of a patch."""
    outer, weight = tower.transformer.resblocks, tower.conv1.weight
    bound = (6 / (weight[0].numel() + len(weight))) ** 0.5
    for i in range(len(outer)):
        prompts = bound * (2 * torch.rand(size, len(weight), generator=generator) - 1)
        outer[i] = PromptedBlock(outer[i], prompts.to(weight), i == 0)


def _bitfit(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    for name, value in tower.named_parameters():
        value.requires_grad_(name.endswith("bias"))


def _lastk(tower: Any, blocks: list[Any], size: int, generator: Generator) -> None:
    if size > len(blocks):
        raise TuningError(
            f"--live lastk:{size}: the tower has {len(blocks)} blocks. Accepted: 1 to {len(blocks)} of them"
        )
    for part in (*blocks[-size:], tower.ln_post):
        part.requires_grad_(True)


CHANGES: dict[str, Callable[[Any, list[Any], int, Generator], None]] = {
    "adaptformer": _adaptformer, "lora": _lora, "vpt": _vpt, "bitfit": _bitfit, "lastk": _lastk,
    "lastblock": _lastblock,
}  # fmt: skip


def _copied(tower: nn.Module) -> Any:
    """A frozen copy in eval mode that returns features only, without taps or tokens, and drops no patches."""
    from open_clip.transformer import VisionTransformer

    own: Any = copy.deepcopy(tower).eval().requires_grad_(False)
    if isinstance(own, VisionTransformer):
        own.output_tokens, own.patch_dropout = False, nn.Identity()
        if isinstance(own.ln_post, FirstTokenNorm):
            own.ln_post, own.transformer.resblocks[-1].has_taps = own.ln_post.norm, False
    return own


def _blocks(tower: Any, mode: Mode) -> list[Any]:
    """The blocks of a CLIP ViT; of a trimmed last block the original one. Raises TuningError for another tower."""
    from open_clip.transformer import ResidualAttentionBlock

    outer = tower.transformer.resblocks if is_clip_vit(tower) and tower.transformer.batch_first else ()
    blocks = [block.block if isinstance(block, ClassTokenBlock) else block for block in outer]
    if not blocks or any(type(block) is not ResidualAttentionBlock for block in blocks):
        raise TuningError(
            f"--live {mode}: {type(tower).__name__} is no CLIP ViT that pools its class token. Accepted: fft"
        )
    return blocks


@dataclass(frozen=True)
class Live:
    """The settings of a training through the encoder, from images."""

    mode: str  # of the table above, such as "lora:4"
    lr: float | None = None  # of the encoder; None: that of the head, a thirtieth of it with fft
    optimizer: str = "sgd"  # or "adamw"
    warmup: int = 0  # steps over which both learning rates rise linearly
    ema: float = 0.0  # decay of a running mean of the weights, which is then evaluated and kept; 0: none
    precision: str = "auto"  # "fp32" or "bf16"; auto: bf16 on a GPU
    accumulate: int = 1  # parts in which the images of a step are encoded; the numbers stay the same
    recompute: bool = False  # activation checkpointing
    compiled: bool = False  # torch.compile of the tower
    views: str = "fresh"  # new random views at each step, or "cached": the views of the cache, made again
