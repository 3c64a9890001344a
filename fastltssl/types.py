"""The words every other file speaks: Batch, Problem, Run, Out, Fitted, and the three kinds of hyperparameter.

Axes: N rows, V views, D width of the cached feature, E width of the embedding shared with the text, C classes,
T templates, L labelled rows, M unlabelled rows, B labelled batch, U unlabelled batch, W/S weak/strong views a step,
R runs trained jointly. Capitals in annotations, lower case in einops patterns.
"""

import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Scores = Float[Tensor, "n C"]  # unnormalised class scores (logits)


class Batch(NamedTuple):
    """What a loss sees in one step. Holds no true label of an unlabelled row, so no method can read one."""

    x: Float[Tensor, "B D"]  # a weak view of each labelled row where the cache has one, else the center view
    y: Int[Tensor, " B"]
    x_row: Int[Tensor, " B"]  # positions in Problem.x, distinct within a batch
    weak: Float[Tensor, "W U D"]
    strong: Float[Tensor, "S U D"]
    row: Int[Tensor, " U"]  # positions in Problem.u, distinct within a batch
    noise: Float[Tensor, "B D"] | None = None  # drawn outside the loss, for methods that want it


class Problem(NamedTuple):
    """Everything a method may know before the first step. View 0 is the center view."""

    x: Float[Tensor, "L V D"]
    y: Int[Tensor, " L"]
    u: Float[Tensor, "M V D"]  # as stored (float16 from a cache); batches are converted to the dtype of x
    views: tuple[str, ...]  # "center", "weak0", "weak1", ..., "strong0", ...
    steps: int
    prior: Float[Tensor, " C"]  # labelled class prior, sums to one
    text: Float[Tensor, "C T E"] | None
    projection: Float[Tensor, "D E"] | None  # None: the feature is the embedding already (D = E)
    logit_scale: float = 100.0  # the multiplier itself, 100 for CLIP
    logit_bias: float = 0.0
    ln_post: Float[Tensor, "2 D"] | None = None  # where given, rows hold taps: concat(mid, mlp), 2 D wide


class Run(NamedTuple):
    """One run between two steps: trainable tensors, optimiser buffers, running statistics (pytrees of tensors)."""

    params: Any
    momentum: Any
    state: Any


class Out(NamedTuple):
    """What a loss returns."""

    loss: Float[Tensor, ""]
    state: Any
    stats: dict[str, Tensor]  # scalars worth a curve


class Fitted(NamedTuple):
    """A finished run and its history [evals, ...]; the joint axis R comes first where there is one."""

    run: Run
    history: dict[str, Tensor]


@runtime_checkable
class Head(Protocol):
    """A frozen dataclass of knobs that turns features into class scores."""

    def init(self, problem: Problem, generator: Generator) -> Any: ...
    def start(self, problem: Problem) -> Any: ...
    def scores(self, params: Any, constants: Any, x: Float[Tensor, "n D"]) -> Scores: ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass (eq=False) of knobs. No base class is needed; the names alone make a method."""

    @property
    def views(self) -> tuple[int, int]: ...  # (W, S) it wants per step
    def init(self, problem: Problem, generator: Generator) -> Any: ...  # trainable tensors
    def start(self, problem: Problem) -> Any: ...  # running statistics and constants, a NamedTuple of tensors
    def scores(
        self, params: Any, state: Any, x: Float[Tensor, "n D"]
    ) -> dict[str, Scores]: ...  # "test"; SSL: "pseudo"


@runtime_checkable
class Trained(Method, Protocol):
    """A method with something to train. `loss` is pure; progress is in [0, 1)."""

    def loss(self, params: Any, state: Any, batch: Batch, progress: Float[Tensor, ""]) -> Out: ...


def seeded(seed: int, stream: str) -> Generator:
    """A CPU generator for one named stream of a seed ("split", "init" or "stream"); the streams are independent."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
