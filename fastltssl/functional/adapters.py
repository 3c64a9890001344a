"""The equations of the adapter heads, one pure function each. A row of taps is concat(mid, mlp) of the last block.

| code | symbol | meaning |
| --- | --- | --- |
| mid | x + attn(ln_1 x) | the class token after the attention of the last block |
| mlp | mlp(ln_2 mid) | what the MLP of that block adds to it |
| feature | f | ln_post(mid + mlp), which is what a cache holds as `features` |
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.errors import MissingTaps
from fastltssl.knobs import Knob
from fastltssl.types import Problem


def wants_taps(method: Any) -> bool:
    """Whether the head of a method reads taps: the rows of its Problem and batches must then hold them."""
    return getattr(getattr(method, "head", None), "taps", False)


def last_norm(problem: Problem) -> Float[Tensor, "_ _"]:
    """ln_post [2 D] of a problem whose rows hold taps, in their dtype; [0 0] where they hold features."""
    return problem.x.new_zeros(0, 0) if problem.ln_post is None else problem.ln_post.to(problem.x)


def feature_of(x: Float[Tensor, "*n _"], ln_post: Float[Tensor, "_ _"]) -> Float[Tensor, "*n D"]:
    """The feature f of rows of taps; with ln_post [0 0] the rows are features already and are returned."""
    if not ln_post.numel():
        return x
    mid, mlp = x.chunk(2, dim=-1)
    return _norm(mid + mlp, ln_post)


def adapted_feature(
    params: dict[str, Tensor], x: Float[Tensor, "n _"], ln_post: Float[Tensor, "2 D"]
) -> Float[Tensor, "n D"]:
    """f' = ln_post(mid + mlp + s Up(ReLU(Down(LN(mid))))), AdaptFormer in the last block (arXiv 2205.13535 eq. 3)."""
    mid, mlp = x.chunk(2, dim=-1)
    return _norm(mid + mlp + params["strength"] * bottleneck(params, _norm(mid, params["norm"])), ln_post)


def bottleneck(params: dict[str, Tensor], x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Up(ReLU(Down(x))), with biases where there are any."""
    hidden = torch.relu(x @ params["down"] + params.get("down_bias", 0))
    return hidden @ params["up"] + params.get("up_bias", 0)


def start_bottleneck(
    like: Float[Tensor, "..."], width: int, hidden: int, length: float, generator: Generator
) -> dict[str, Tensor]:
    """Down [D H] and Up [H D] = 0; Down is normal, scaled so that rows of norm `length` give hidden values near 1."""
    down = torch.randn(width, hidden, generator=generator) / length
    return {"down": down.to(like), "up": like.new_zeros(hidden, width)}


def start_last_block(problem: Problem, hidden: int, strength: Knob, generator: Generator) -> dict[str, Tensor]:
    """Parameters of AdaptFormer in the last block, (2 H + 3) D + H + 1 numbers; Up = 0, so that f' = f at first."""
    if problem.ln_post is None:
        raise MissingTaps("head=lastblock trains on taps of the last block. Make them: fastltssl extract --taps mid")
    like, width = problem.x, problem.ln_post.shape[-1]
    return start_bottleneck(like, width, hidden, width**0.5, generator) | {
        "strength": like.new_tensor(strength),
        "norm": torch.stack((like.new_ones(width), like.new_zeros(width))),
        "down_bias": like.new_zeros(hidden),
        "up_bias": like.new_zeros(width),
    }


def affinity(x: Float[Tensor, "n D"], keys: Float[Tensor, "L D"], beta: Knob) -> Float[Tensor, "n L"]:
    """exp(-beta (1 - cos(f, key))), in (0, 1] (Tip-Adapter, arXiv 2207.09519 eq. 4)."""
    cosine = einsum(F.normalize(x, dim=-1), F.normalize(keys, dim=-1), "n d, l d -> n l")
    return torch.exp(-beta * (1 - cosine))


def _norm(x: Tensor, affine: Float[Tensor, "2 D"]) -> Tensor:
    """LayerNorm, as CLIP has it; affine holds its weight and bias."""
    return F.layer_norm(x, x.shape[-1:], affine[0], affine[1], eps=1e-5)
