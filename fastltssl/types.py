"""The types that every other file uses: Batch, Problem, Run, Out, Fitted, and what a Head and a Method are.

Axes: N rows, V views, D width of the cached feature, E width of the embedding shared with the text, C classes,
T templates, L labelled rows, M unlabelled rows, B labelled batch, U unlabelled batch, W/S weak/strong views a step,
R runs trained jointly. Capitals in annotations, lower case in einops patterns.
"""

import hashlib
import pkgutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves

from fastltssl.knobs import Knob

Result = TypeVar("Result")
Scores = Float[Tensor, "n C"]  # unnormalised class scores (logits)


class Batch(NamedTuple):
    """What a loss sees in one step. Holds no true label of an unlabelled row, so no method can read one."""

    x: Float[Tensor, "B D"]  # a weak view of each labelled row where the cache has one, else the center view
    y: Int[Tensor, " B"]
    x_row: Int[Tensor, " B"]  # positions in Problem.x, distinct within a batch
    weak: Float[Tensor, "W U D"]
    strong: Float[Tensor, "S U D"]
    row: Int[Tensor, " U"]  # positions in Problem.u, distinct within a batch
    noise: Float[Tensor, "B D"] | None = None  # uniform in [0, 1), for methods that ask for it


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Everything a method may know before the first step. View 0 is the center view."""

    x: Float[Tensor, "L V F"]  # F is D, or 2 D where rows hold taps
    y: Int[Tensor, " L"]
    u: Float[Tensor, "M V F"]  # in the dtype of the cache, float16; batches are converted to the dtype of x
    views: tuple[str, ...]  # "center", "weak0", "weak1", ..., "strong0", ...
    steps: int
    prior: Float[Tensor, " C"]  # labelled class prior, sums to one
    text: Float[Tensor, "C T E"] | None
    projection: Float[Tensor, "D E"] | None  # None: the feature is the embedding already (D = E)
    logit_scale: float = 100.0  # the multiplier itself, 100 for CLIP
    logit_bias: float = 0.0
    ln_post: Float[Tensor, "2 D"] | None = None  # where given, rows hold taps: concat(mid, mlp)
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of `make`, computed once for each name, as hundreds of configurations need the same."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]


class Run(NamedTuple):
    """The tensors of one run between two steps: trainable ones, momentum buffers, running statistics (pytrees)."""

    params: Any
    momentum: Any
    state: Any


class Out(NamedTuple):
    """What a loss returns."""

    loss: Float[Tensor, ""]
    state: Any
    stats: dict[str, Tensor]  # scalars to be recorded over training


class Fitted(NamedTuple):
    """A finished run and its history [evals, ...]; after a joint fit every leaf has the axis R first."""

    run: Run
    history: dict[str, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether the losses and the trained parameters are; a loss is taken before the update of its step."""
        losses = [self.history["loss"]] if "loss" in self.history else []
        return all(bool(leaf.isfinite().all()) for leaf in (*losses, *tree_leaves(self.run.params)))


@runtime_checkable
class Head(Protocol):
    """A frozen dataclass of knobs that turns features into class scores."""

    def init(self, problem: Problem, generator: Generator) -> Any: ...
    def start(self, problem: Problem) -> Any: ...
    def scores(self, params: Any, constants: Any, x: Float[Tensor, "n D"]) -> Scores: ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass (eq=False) of knobs. No base class is needed: any class with these members is a method.

    `Trained`, `Fused` and `Keeps` are optional, and so are the attributes below: `threshold_of`, `wants_noise` and so
    on give the defaults. A state, a NamedTuple or a dict, may hold `prior_u` [C], the running estimate of the
    unlabelled prior, and `log_bias` [C], the label bias that is subtracted from the zero-shot scores: evaluations
    record the first, reports show both.

    threshold: Knob            confidence from which a pseudo-label counts
    noise: bool                whether `loss` reads `Batch.noise`
    adjusted_by: str           the knob tau, where the tested head was trained on CE(z + tau log pi_l, y)
    adds_text: bool            the tested scores contain the zero-shot scores at full weight
    """

    @property
    def views(self) -> tuple[int, int]: ...  # (W, S): weak and strong views of each unlabelled row in a step
    def init(self, problem: Problem, generator: Generator) -> Any: ...  # trainable tensors
    def start(self, problem: Problem) -> Any: ...  # running statistics and constants
    def scores(
        self, params: Any, state: Any, x: Float[Tensor, "n D"]
    ) -> dict[str, Scores]: ...  # "test", which is evaluated; with W > 0 "pseudo", too, which gives the pseudo-labels


@runtime_checkable
class Trained(Method, Protocol):
    """A method that is trained. `loss` is pure; progress, the share of the steps that are done, is in [0, 1)."""

    def loss(self, params: Any, state: Any, batch: Batch, progress: Float[Tensor, ""]) -> Out: ...


@runtime_checkable
class Fused(Method, Protocol):
    """A method whose tested scores are share z_run + (1 - share) z_text; `ends` returns (z_run, z_text)."""

    @property
    def share(self) -> Knob: ...
    def ends(self, params: Any, state: Any, x: Float[Tensor, "n D"]) -> tuple[Scores, Scores]: ...


@runtime_checkable
class Keeps(Method, Protocol):
    """A method with internal quantities worth a plot, per class or over training, for reports and the studio."""

    def kept(self, state: Any, trace: "Trace") -> list["PerClass | OverTime"]: ...


class Trace(NamedTuple):
    """How the training of a finished run went, for `Keeps.kept`."""

    steps: Int[Tensor, " T"]  # done at each evaluation
    total: int  # steps
    curves: dict[str, Float[Tensor, " T"]]  # Out.stats, means since the evaluation before


class PerClass(NamedTuple):
    """An internal quantity of a method with one value per class."""

    title: str
    unit: str
    reading: str  # how to read it, one sentence
    values: Float[Tensor | np.ndarray, " C"]
    errors: Float[Tensor | np.ndarray, " C"] | None = None  # standard errors


class OverTime(NamedTuple):
    """An internal quantity of a method over training, as one curve or one per class."""

    title: str
    unit: str
    reading: str
    steps: Int[Tensor | np.ndarray, " T"]
    values: Float[Tensor | np.ndarray, "T K"]  # K is 1 or C


def prior_of(state: Any) -> Float[Tensor, " C"] | None:
    """The running estimate of the unlabelled prior in the state of a method; None without."""
    return _held(state, "prior_u")


def log_bias_of(state: Any) -> Float[Tensor, " C"] | None:
    """The label bias that a method subtracts from the zero-shot scores, from its state; None without."""
    return _held(state, "log_bias")


def _held(state: Any, name: str) -> Any:
    """What a state, a NamedTuple or a dict, holds under a name; None without."""
    return state.get(name) if isinstance(state, dict) else getattr(state, name, None)


def threshold_of(method: Method) -> float:
    """Confidence from which a pseudo-label is accepted: the method's knob, by default .95."""
    return float(getattr(method, "threshold", 0.95))


def wants_noise(method: Method) -> bool:
    """Whether the batches of a method must hold noise; by default not."""
    return bool(getattr(method, "noise", False))


def labelled_tau_of(method: Method) -> Knob | None:
    """The tau of the logit adjustment that the tested scores were trained with; None: they count as balanced."""
    name = getattr(method, "adjusted_by", None)
    return None if name is None else getattr(method, name)


def adds_text(method: Method) -> bool:
    """Whether the tested scores contain the zero-shot scores at full weight; by default not."""
    return bool(getattr(method, "adds_text", False))


def is_trained(method: Method) -> bool:
    """Whether the method has a loss; zero-shot, for one, has none."""
    return isinstance(method, Trained)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of a tensor in head.safetensors, from its path in the tree of a run: "params.weight"."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)


def seeded(seed: int, stream: str) -> Generator:
    """A CPU generator for one use of a seed ("split", "init", "stream"...); those of different uses are independent."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def __getattr__(name: str) -> Any:
    """Names that were here in version 0.1, for one release."""
    moved = dict.fromkeys(("AutoKnob", "choice", "knob", "size"), "fastltssl.knobs")
    moved["auto_momentum"] = "fastltssl.functional.bias"
    if name not in moved:
        raise AttributeError(f"module 'fastltssl.types' has no attribute {name!r}")
    warnings.warn(f"fastltssl.types.{name} has moved: import it from fastltssl.functional", DeprecationWarning, 2)
    return pkgutil.resolve_name(f"{moved[name]}:{name}")
