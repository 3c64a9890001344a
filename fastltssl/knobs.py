"""The three kinds of hyperparameter: a field of a method or a head that says its range, its options and its meaning."""

import dataclasses
from typing import Any

from torch import Tensor

Knob = float | Tensor  # a number, or one run of a joint sweep


AutoKnob = Knob | str  # also "auto": worked out from the Problem in `start`


def knob(default: float | str, low: float, high: float, doc: str, log: bool = False, under: str = "") -> Any:
    """A real hyperparameter: swept between low and high, and able to differ between runs trained jointly.

    `under` is the choice, "name=option", without which nothing reads it; sweeps then leave it alone.
    """
    return dataclasses.field(
        default=default, metadata={"kind": "knob", "low": low, "high": high, "doc": doc, "log": log, "under": under}
    )


def choice(default: str, options: tuple[str, ...], doc: str) -> Any:
    """A hyperparameter with named options; runs trained jointly share it."""
    return dataclasses.field(default=default, metadata={"kind": "choice", "options": options, "doc": doc})


def size(default: int, low: int, high: int, doc: str) -> Any:
    """A whole-number hyperparameter; runs trained jointly share it."""
    return dataclasses.field(default=default, metadata={"kind": "size", "low": low, "high": high, "doc": doc})
