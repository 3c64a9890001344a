"""What is done to an image tower of open_clip before it encodes: its last matrix taken off, frozen parts simplified."""

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

SAME = 0.9999  # least cosine at which a rewritten tower counts as equal


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 in hex over name, dtype, shape and bytes of every tensor of the state dict, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def take_projection(tower: Any) -> Float32[np.ndarray, "D E"] | None:
    """The last matrix of a CLIP ViT, taken off the tower; None where the tower has none that can be split off."""
    projection = getattr(tower, "proj", None)
    if not isinstance(projection, nn.Parameter):
        return None
    tower.proj = None
    return projection.detach().float().cpu().numpy()


def last_norm(tower: nn.Module) -> Float32[np.ndarray, "2 D"] | None:
    """Weight and bias of the last norm of a CLIP ViT."""
    norm = getattr(tower, "ln_post", None)
    if not isinstance(norm, nn.LayerNorm):
        return None
    return torch.stack((norm.weight, norm.bias)).detach().float().cpu().numpy()


def fold_batch_norms(tower: Any) -> None:
    """Merge each frozen batch norm of open_clip's ResNet into the convolution before it, in place: fewer passes."""
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
    """A last block of a ViT that computes the class token alone, where only that token is pooled: [B L D] -> [B 1 D].

    Keys and values still come from every token; what is left out are the queries and the MLP of the patches.
    """

    def __init__(self, block: nn.Module, is_batch_first: bool) -> None:
        super().__init__()
        self.block, self.is_batch_first = block, is_batch_first

    def forward(self, x: Float[Tensor, "..."], attn_mask: None = None) -> Float[Tensor, "..."]:
        block: Any = self.block
        normed = block.ln_1(x)
        own = (slice(None), slice(0, 1)) if self.is_batch_first else slice(0, 1)
        token = x[own] + block.ls_1(block.attn(normed[own], normed, normed, need_weights=False)[0])
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def trim_last_block(tower: Any, side: int) -> bool:
    """Let a CLIP ViT compute only the class token in its last block, in place; False where it cannot or must not.

    Guarded: the tower is put back where the features of two images change, cosine below SAME.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(tower, VisionTransformer) or tower.pool_type != "tok" or tower.attn_pool is not None:
        return False
    blocks = tower.transformer.resblocks
    last = blocks[-1]
    if type(last) is not ResidualAttentionBlock or tower.output_tokens:
        return False
    like = next(tower.parameters())
    sample = torch.linspace(-2, 2, 2 * 3 * side * side, device=like.device, dtype=like.dtype).view(2, 3, side, side)
    with torch.inference_mode():
        before = tower(sample)
        blocks[-1] = ClassTokenBlock(last, tower.transformer.batch_first)
        is_same = bool((F.cosine_similarity(before, tower(sample)) >= SAME).all())
    if not is_same:
        blocks[-1] = last
    return is_same
