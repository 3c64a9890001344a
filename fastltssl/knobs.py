"""The three kinds of hyperparameter: dataclass fields of a method or a head, with their range and their meaning."""

import dataclasses
from typing import Any

from torch import Tensor

LARGEST = 1e38  # of a number in float32
Knob = float | Tensor  # a number; inside a joint fit, under vmap, the scalar tensor of one run
AutoKnob = Knob | str  # "auto", too: computed from the Problem in `start`


def knob(default: float | str, low: float, high: float, doc: str, log: bool = False, under: str = "") -> Any:
    """A real hyperparameter: swept between low and high, and may differ between runs trained jointly.

    `under` is a choice, "name=option", if only that option reads this knob: sweeps leave it out under another option.
    """
    return dataclasses.field(
        default=default, metadata={"kind": "knob", "low": low, "high": high, "doc": doc, "log": log, "under": under}
    )


def choice(default: str, options: tuple[str, ...], doc: str) -> Any:
    """A hyperparameter with named options; it is the same for all runs trained jointly."""
    return dataclasses.field(default=default, metadata={"kind": "choice", "options": options, "doc": doc})


def size(default: int, low: int, high: int, doc: str) -> Any:
    """A whole-number hyperparameter; it is the same for all runs trained jointly."""
    return dataclasses.field(default=default, metadata={"kind": "size", "low": low, "high": high, "doc": doc})
