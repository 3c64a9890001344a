"""The image tower of an open_clip model, rewritten before it encodes, so that frozen parts cost less.

The projection into the space of the text is taken off and kept beside the tower. Then batch norms are merged into
convolutions, and the last block of a ViT computes no more than is needed; neither changes a feature beyond rounding.
"""

import copy
import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from fastltssl.errors import EncoderError

SAME = 0.9999  # a rewritten tower is kept where the cosine to the features of the original is at least this


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 in hex over name, dtype, shape and bytes of every tensor of the state dict, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Rewritten(NamedTuple):
    """What was taken off the image tower of a CLIP, and what can still be done with it."""

    projection: Float32[np.ndarray, "D E"] | None
    ln_post: Float32[np.ndarray, "2 D"] | None
    blocks: int  # of a ViT that pools its class token, else 0
    is_trimmed: bool


def rewrite_tower(clip: Any, model: str, device: torch.device, size: int, *, trim: bool, has_taps: bool) -> Rewritten:
    """Move a CLIP to the device and make its image tower simpler and faster, in place. Raises EncoderError."""
    tower = clip.visual
    projection, ln_post = take_projection(tower), last_norm(tower)
    fold_batch_norms(tower)
    clip.to(device)
    tower.to(memory_format=torch.channels_last)
    blocks = len(tower.transformer.resblocks) if is_clip_vit(tower) else 0
    is_trimmed = trim and trim_last_block(tower, size, has_taps=has_taps)
    if has_taps and not is_trimmed:
        raise EncoderError(
            f"--taps mid: {model} has no last block to tap. Accepted: open_clip's ViTs that pool their class token, "
            "such as ViT-B-16, without --no-trim"
        )
    return Rewritten(projection, ln_post, blocks, is_trimmed)


def take_projection(tower: Any) -> Float32[np.ndarray, "D E"] | None:
    """The projection of a CLIP ViT, removed from the tower; None where it is not a matrix of its own."""
    projection = getattr(tower, "proj", None)
    if not isinstance(projection, nn.Parameter):
        return None
    tower.proj = None
    return projection.detach().float().cpu().numpy()


def last_norm(tower: nn.Module) -> Float32[np.ndarray, "2 D"] | None:
    """Weight and bias of the last norm of a CLIP ViT; None where the tower is no ViT."""
    norm = getattr(tower, "ln_post", None)
    if not isinstance(norm, nn.LayerNorm):
        return None
    return torch.stack((norm.weight, norm.bias)).detach().float().cpu().numpy()


def fold_batch_norms(tower: Any) -> None:
    """Merge each batch norm of open_clip's ResNet into the convolution before it, in place: it is frozen, so linear."""
    from open_clip.modified_resnet import Bottleneck, ModifiedResNet
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for block in tower.modules():
        if not isinstance(block, Bottleneck | ModifiedResNet):
            continue
        for i in (1, 2, 3):
            setattr(block, f"conv{i}", fuse_conv_bn_eval(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")))
            setattr(block, f"bn{i}", nn.Identity())
        shortcut = getattr(block, "downsample", None)
        if shortcut is not None:
            pool, convolution, norm = shortcut
            block.downsample = nn.Sequential(pool, fuse_conv_bn_eval(convolution, norm))


class ClassTokenBlock(nn.Module):
    """The last block of a ViT that pools its class token, computed for that token alone: [B L D] -> [B 1 D].

    Keys and values still come from every token; what is left out are the queries and the MLP of the patches. With
    `has_taps` the result is [B 3 D]: the class token, then the two taps that add up to it, which are the token after
    attention and what the MLP adds to it.
    """

    def __init__(self, block: nn.Module, is_batch_first: bool, has_taps: bool) -> None:
        super().__init__()
        self.block, self.is_batch_first, self.has_taps = block, is_batch_first, has_taps

    def forward(self, x: Float[Tensor, "..."], *_: None, **__: None) -> Float[Tensor, "..."]:
        block: Any = self.block
        normed = block.ln_1(x)
        class_token = (slice(None), slice(0, 1)) if self.is_batch_first else slice(0, 1)
        mid = x[class_token] + block.ls_1(block.attn(normed[class_token], normed, normed, need_weights=False)[0])
        mlp = block.ls_2(block.mlp(block.ln_2(mid)))
        return torch.cat((mid + mlp, mid, mlp), dim=int(self.is_batch_first)) if self.has_taps else mid + mlp


class FirstTokenNorm(nn.Module):
    """A norm applied to the first token alone, leaving the taps behind it as they are; x is [B L D], or [B D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.norm(x) if x.ndim == 2 else torch.cat((self.norm(x[:, :1]), x[:, 1:]), dim=1)


def trim_last_block(tower: Any, side: int, *, has_taps: bool = False) -> bool:
    """Let a CLIP ViT compute only the class token in its last block, in place; False where the tower stays as it was.

    With `has_taps` the tower then returns (features [B D], taps [B 2 D]), and features = ln_post(sum of the taps).
    It stays as it was where it is no such ViT, or where the features of two sample images would change (see SAME).
    """
    from open_clip.transformer import ResidualAttentionBlock

    if not is_clip_vit(tower):
        return False
    blocks, norm = tower.transformer.resblocks, tower.ln_post
    last = blocks[-1]
    if type(last) is not ResidualAttentionBlock:
        return False
    sample = _sample(tower, side)
    with torch.inference_mode():
        before = tower(sample)
        blocks[-1] = ClassTokenBlock(last, tower.transformer.batch_first, has_taps)
        if has_taps:
            tower.ln_post, tower.output_tokens = FirstTokenNorm(norm), True
        after = tower(sample)
        pairs = [(before, after[0]), (before, norm(after[1].sum(dim=1)))] if has_taps else [(before, after)]
        is_same = all(bool((F.cosine_similarity(a, b) >= SAME).all()) for a, b in pairs)
    if not is_same:
        blocks[-1], tower.ln_post, tower.output_tokens = last, norm, False
    return is_same


def is_clip_vit(tower: Any) -> bool:
    """Whether a tower is open_clip's ViT and its feature the class token after the last norm."""
    from open_clip.transformer import VisionTransformer

    is_plain = isinstance(tower, VisionTransformer) and tower.pool_type == "tok"
    return is_plain and tower.attn_pool is None and not tower.output_tokens


def split_tower(tower: Any, layer: int) -> tuple[nn.Module, nn.Module]:
    """A CLIP ViT in two: from images to the tokens [B L D] that enter block `layer`, and from tokens to features [B D].

    Both parts share the tower's tensors. Training through the last blocks can compute the first part once and store it.
    """
    blocks = tower.transformer.resblocks
    front = _variant(tower.transformer, resblocks=blocks[:layer])
    first = _variant(tower, transformer=front, ln_post=nn.Identity())
    first.pool_type, first.output_tokens = "none", False
    return first, TokensToFeatures(_variant(tower.transformer, resblocks=blocks[layer:]), tower.ln_post)


class TokensToFeatures(nn.Module):
    """The last blocks of a CLIP ViT and its last norm; returns the class token."""

    def __init__(self, transformer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.transformer, self.norm = transformer, norm

    def forward(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B D"]:
        return self.norm(self.transformer(tokens))[:, 0]


def _variant(module: Any, **parts: nn.Module) -> Any:
    """A copy of a module in which some parts are replaced and all others are shared."""
    other = copy.copy(module)
    other._modules = module._modules | parts
    return other


def _sample(tower: nn.Module, side: int) -> Float[Tensor, "2 3 S S"]:
    """Two images on which a rewritten tower is compared with the original."""
    like = next(tower.parameters())
    return torch.linspace(-2, 2, 2 * 3 * side * side, device=like.device, dtype=like.dtype).view(2, 3, side, side)
