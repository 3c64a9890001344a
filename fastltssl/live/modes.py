"""An image tower whose parameters train: all of it, a part of it, or small modules put into its blocks.

| mode | what trains | source |
| --- | --- | --- |
| fft | everything | |
| adaptformer[:H] | mid + mlp + s Up(ReLU(Down(LN(mid)))) in every block, H hidden values | arXiv 2205.13535 |
| lastblock[:H] | the same in the last block alone, as the head of that name trains it from cached taps | |
| lora[:R] | x W + x A B for the queries and the values of every block, A B of rank R | arXiv 2106.09685 |
| vpt[:P] | P tokens put after the class token before every block, and replaced before the next | arXiv 2203.12119 |
| bitfit | every bias, those of norms too | arXiv 2106.10199 |
| lastk:K | the last K blocks and ln_post | |

Features are unchanged at first, but not with vpt: its prompts change them before the first step.
The names of parameters are those of open_clip's tower, whether or not its last block is trimmed.

Differs: the s of AdaptFormer is learned from 0.1 (there 0.1 throughout) and H follows the number of classes, as LIFT
has it (arXiv 2309.10019); Down and A start normal, of spread 1 / sqrt(D), so that hidden values are of about unit
size. LoRA's alpha is R, so that A B is not scaled: the learning rate does that.
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
RANK, PROMPTS, HIDDEN = 8, 50, 16  # where a mode gives no number
STRENGTH = 0.1  # s of AdaptFormer at first


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
    """A copy of the tower, images [B 3 S S] to features [B D], in which what the mode names trains and nothing else.

    It is in eval mode; train mode changes nothing in a ViT, as patch dropout and taps are taken off. Batch norms of a
    ResNet should be folded before. Raises TuningError for a mode that the tower has no place for.
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
    """2^max(0, floor(log2(C / (2 layers)))), the hidden values of AdaptFormer where the mode does not say."""
    return 1 << max(0, (n_classes // (2 * layers)).bit_length() - 1)  # in whole numbers, so exact


def first_trained(tower: nn.Module, mode: Mode) -> int:
    """The first block in which anything trains: what comes before it is the same at every step."""
    blocks = len(tower.transformer.resblocks) if mode.name in ("lastk", "lastblock") else 0  # type: ignore[union-attr, arg-type]
    return max(0, blocks - (mode.size or 1 if mode.name == "lastk" else 1))


def trainable(tower: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name: the tower's own tensors, for an optimiser."""
    parameters = [(name, value) for name, value in tower.named_parameters() if value.requires_grad]
    return {re.sub(r"(resblocks\.\d+)\.block\.", r"\1.", name): value for name, value in parameters}


def state(tower: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that train, contiguous and on the CPU: what a file of safetensors takes."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in trainable(tower).items()}


def load_state(tower: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write what `state` gave into a tower of the same mode. Raises TuningError and then writes nothing."""
    own = trainable(tower)
    pairs = [(name, tuple(tensors[name].shape), tuple(own[name].shape)) for name in own.keys() & tensors.keys()]
    wrong = {f"{name} {given} for {needed}" for name, given, needed in pairs if given != needed}
    faults = {"missing": own.keys() - tensors.keys(), "unexpected": tensors.keys() - own.keys(), "misshapen": wrong}
    found = [f"{len(names)} {fault}: {', '.join(sorted(names)[:3])}" for fault, names in faults.items() if names]
    if found:
        accepted = f"the {len(own)} tensors of a tower of the same model and mode"
        raise TuningError(f"the tensors do not fit the tower: {'; '.join(found)}. Accepted: {accepted}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def describe(tower: nn.Module, mode: Mode) -> str:
    """One line: the mode, how many parameters of the tuned tower train, and their share of all of its parameters."""
    count, total = (sum(map(Tensor.numel, part)) for part in (trainable(tower).values(), tower.parameters()))
    note = ". Prompts change the features before the first step" if mode.name == "vpt" else ""
    return f"{mode}: {count:,} of {total:,} parameters of the tower train, {100 * count / total:.2f} %{note}"


class AdaptedMLP(nn.Module):
    """What a block adds to mid: mlp(ln_2 mid) + s Up(ReLU(Down(LN(mid)))) (AdaptFormer eq. 3), equal to mlp at first.

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
    """An nn.MultiheadAttention whose queries and values are x W + x A B (LoRA eq. 3), equal to it at first.

    A B is not added to W: autograd would then compute the gradient of all of W.
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
        block.ln_2 = block.ls_2 = nn.Identity()  # they are in there now: the adapter reads mid itself


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
    """A frozen copy in eval mode that gives features alone, without taps, and drops no patches."""
    from open_clip.transformer import VisionTransformer

    own: Any = copy.deepcopy(tower).eval().requires_grad_(False)
    if isinstance(own, VisionTransformer):
        own.output_tokens, own.patch_dropout = False, nn.Identity()
        if isinstance(own.ln_post, FirstTokenNorm):
            own.ln_post, own.transformer.resblocks[-1].has_taps = own.ln_post.norm, False
    return own


def _blocks(tower: Any, mode: Mode) -> list[Any]:
    """The blocks of a CLIP ViT, the last one as it is inside where it is trimmed. Raises TuningError."""
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
    """How a run trains through the encoder, from images. The modes are those of fastltssl.live.modes."""

    mode: str
    lr: float | None = None  # of the encoder; None: that of the head, a thirtieth of it with fft
    optimizer: str = "sgd"  # or "adamw"
    warmup: int = 0  # steps over which both rates rise
    ema: float = 0.0  # decay of the mean of the weights that is measured and kept; 0: the weights themselves
    precision: str = "auto"  # "fp32" or "bf16"; auto: bf16 on a GPU
    accumulate: int = 1  # parts in which the images of a step are encoded; the numbers stay the same
    recompute: bool = False  # activation checkpointing
    compiled: bool = False
    views: str = "fresh"  # or "cached": the views that the cache holds, made again
