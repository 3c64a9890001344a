"""The memory that a training step through the encoder takes: counted before the first step, and reduced on request."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fastltssl.errors import RunError, byte_size
from fastltssl.live.step import Trainee
from fastltssl.machine import SPARE


def recompute(tower: Any) -> None:
    """Switch on activation checkpointing: only what enters each block is kept, the rest is computed again."""
    blocks = getattr(tower, "transformer", None)
    if not hasattr(blocks, "grad_checkpointing"):
        raise RunError(f"--recompute: {type(tower).__name__} has no blocks to recompute. Leave it out")
    blocks.grad_checkpointing = True  # type: ignore[union-attr]


def step_bytes(trainee: Trainee, sample: Float[Tensor, " n *shape"]) -> int:
    """Bytes that autograd keeps for the images, parameters apart, counted in a forward pass of them."""
    parameters = {value.untyped_storage().data_ptr() for value in trainee.tower.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = value
        return value

    with saved_tensors_hooks(pack, lambda value: value), torch.enable_grad():
        features = trainee.features(sample)
    del features
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def check_memory(per_image: int, count: int, parts: int, free: int) -> None:
    """Raise RunError where a step of `count` images in so many parts takes more than is free; it says what fits."""
    at_once, fits = -(-count // parts), int(SPARE * free / max(1, per_image))
    if at_once > fits:
        advice = f"Pass --accumulate {-(-count // fits)}, which changes no number" if fits else "Pass --recompute"
        raise RunError(
            f"a step encodes {at_once} images at once, for which {byte_size(per_image * at_once)} must be kept, "
            f"and {byte_size(free)} are free: {fits} images would fit. {advice}; --recompute keeps less of each"
        )
