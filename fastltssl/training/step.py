"""One step of training, pure: loss, gradient, update. `fit` repeats it; joint runs update in place: `population`.

The optimiser is SGD with momentum 0.9 and a cosine schedule to zero, as in the LTSSL papers.
"""

import dataclasses
import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from fastltssl.knobs import Knob
from fastltssl.training.contract import blamed, made
from fastltssl.types import Batch, Method, Out, Problem, Run, Trained, seeded

MOMENTUM = 0.9


def step(
    method: Method,
    run: Run,
    batch: Batch,
    progress: Float[Tensor, ""],
    *,
    lr: Knob,
    weight_decay: Knob,
    momentum: float = MOMENTUM,
) -> tuple[Run, Out]:
    """The run after one step of SGD, and what the loss returned; `lr` is the learning rate of this step."""
    grad, out = gradient(method, run, batch, progress)
    buffer = tree_map(lambda b, g, p: momentum * b + g + weight_decay * p, run.momentum, grad, run.params)
    params = tree_map(lambda p, b: p - lr * b, run.params, buffer)
    return Run(params, buffer, out.state), out


def gradient(method: Method, run: Run, batch: Batch, progress: Float[Tensor, ""]) -> tuple[Any, Out]:
    """The gradient of the loss with respect to the parameters, and what the loss returned."""

    def loss_of(params: Any) -> tuple[Tensor, Out]:
        with blamed(method, "loss"):
            out = cast(Trained, method).loss(params, run.state, batch, progress)
        return out.loss, out

    grad, (_, out) = grad_and_value(loss_of, has_aux=True)(run.params)
    return grad, out


def start(method: Method, problem: Problem, seed: int) -> Run:
    """A run before its first step."""
    params = made(method, "init", problem, seeded(seed, "init"))
    return Run(params, tree_map(torch.zeros_like, params), made(method, "start", problem))


def with_knobs(method: Any, knobs: dict[str, Any]) -> Any:
    """The method with some knobs replaced; "head.scale" is the knob `scale` of its head."""
    direct = {name: value for name, value in knobs.items() if "." not in name}
    for part in {name.split(".")[0] for name in knobs} - direct.keys():
        inner = {name.split(".", 1)[1]: value for name, value in knobs.items() if name.startswith(part + ".")}
        direct[part] = with_knobs(getattr(method, part), inner)
    return dataclasses.replace(method, **direct) if direct else method


def cosine(progress: float) -> float:
    """The factor of the learning rate at `progress` in [0, 1): 1 at first, falling to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))
