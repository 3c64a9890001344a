"""Arrays from a notebook (numpy, torch, lists), checked; messages say what was wrong, the value, what is accepted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from fastltssl.cache.emulated import storable
from fastltssl.errors import FitError


def numbers(name: str, given: Any, form: str, ranks: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """A finite float32 array, its number of axes among `ranks`; `form` says the same in messages."""
    array = as_array(name, given)
    if array.dtype.kind not in "fiu" or array.ndim not in ranks or not array.size:
        raise FitError(f"{name} must be an array of numbers {form}, got {array.dtype} {list(array.shape)}")
    refuse_rows(name, ~np.isfinite(array).reshape(len(array), -1).all(axis=1), "hold values that are not finite")
    return storable(array) if array.dtype == np.float64 else array.astype(np.float32)


def features(given: Any, width: int | None = None) -> Float32[np.ndarray, "n *V D"]:
    """Rows [n D] or [n V D] within float16 and without zero vectors; `width` is the D they must have."""
    x = numbers("X", given, "[n, D] or [n, V, D]", (2, 3))
    if width is not None and x.shape[-1] != width:
        raise FitError(f"X {list(x.shape)} is {x.shape[-1]} wide, and the rows of fit were {width}")
    refuse_rows("X", has_zeros(x), "hold zeros only, which have no direction")
    return storable(x)


def refuse_rows(name: str, is_bad: Bool[np.ndarray, " n"], why: str) -> None:
    """Raise FitError where any row is bad; the message names the first few."""
    if is_bad.any():
        first = ", ".join(map(str, np.flatnonzero(is_bad)[:5]))
        raise FitError(f"{name}: {int(is_bad.sum())} of {len(is_bad)} rows {why} (rows {first})")


def has_zeros(x: Float32[np.ndarray, "n *m D"]) -> Bool[np.ndarray, " n"]:
    """Whether any vector of a row is zero."""
    largest = np.abs(x).max(axis=-1).reshape(len(x), -1)
    return largest.min(axis=1) == 0


def as_array(name: str, given: Any) -> np.ndarray:
    """The input as a numpy array. Raises FitError where it cannot be one."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        return (given.float() if given.is_floating_point() else given).numpy()  # numpy has no bfloat16
    try:
        return np.asarray(given)
    except ValueError as error:
        raise FitError(f"{name} is no array: {error}") from None


def labels(given: Any, count: int) -> tuple[np.ndarray, Bool[np.ndarray, " n"]]:
    """The labels, and which rows have one: y = -1 marks the others. Raises FitError on mixed or unusable labels."""
    y = as_array("y", given)
    if y.shape != (count,):
        raise FitError(f"y must be [{count}], a label for each row of X or -1; got {y.dtype} {list(y.shape)}")
    if y.dtype.kind == "U" and (y == "-1").any():
        raise FitError("y holds the text '-1'. An unlabelled row is the number -1: np.array([..., -1], dtype=object)")
    is_labelled = np.array([not _is_minus_one(label) for label in y.tolist()], bool)
    known = y[is_labelled]
    if y.dtype.kind == "O":
        is_text = {isinstance(label, str) for label in known.tolist()}
        known = np.array(known.tolist()) if len(is_text) == 1 else known
    if known.dtype.kind == "f" and not (known == np.floor(known)).all():
        raise FitError(
            f"y holds {known[known != np.floor(known)][0]}; labels are whole numbers or texts, or -1 for none"
        )
    if len(known) and (known.dtype.kind not in "biufU" or known.ndim != 1):
        raise FitError(
            f"y must hold whole numbers or texts, not both nor anything else; got {y.dtype} {y[:3].tolist()}"
        )
    return y, is_labelled


def _is_minus_one(label: Any) -> bool:
    return not isinstance(label, str | bool) and bool(label == -1)


def classes_of(y: np.ndarray, is_labelled: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, Int[np.ndarray, " L"]]:
    """The sorted classes, and the class index of each labelled row. Raises FitError on fewer than two classes."""
    known = y[is_labelled]
    known = np.array(known.tolist()) if known.dtype.kind == "O" else known
    classes, code = np.unique(known, return_inverse=True)
    if len(classes) < 2:
        only = f"only the class {classes.tolist()[0]!r}" if len(classes) else "no label"
        raise FitError(f"y holds {only}, and it takes two classes; -1 marks a row without a label")
    return classes, code


def view_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the `count` views of X [n V D]. Raises FitError unless they are distinct, the center view first."""
    names = tuple(given or ())
    is_known = all(name.rstrip("0123456789") in ("weak", "strong") for name in names[1:])
    if len(names) != count or names[:1] != ("center",) or not is_known or len(set(names)) < count:
        raise FitError(
            f"X holds {count} views and views={given!r}. Name each once, the center first: "
            'views=("center", "weak0", "weak1", "strong0")'
        )
    return names


def class_order(names: Sequence[Any] | np.ndarray, classes: np.ndarray) -> list[int]:
    """The index of each class among the names. Raises FitError where the names are not those of the classes."""
    given, wanted = np.asarray(names).tolist(), classes.tolist()
    for name in given:
        if name not in wanted:
            raise FitError(f"class {name!r} of class_names has no labelled row in y, whose classes are {wanted[:5]}")
    if len(set(given)) < len(given) or len(given) != len(wanted):
        absent = [label for label in wanted if label not in given] or given
        raise FitError(f"class_names must hold each class of y once: {len(given)} names, and {absent[:5]} are amiss")
    return [given.index(label) for label in wanted]


def prompts(given: Any, n_classes: int, width: int, like: str) -> Float32[np.ndarray, "C T E"]:
    """Text features of all classes; E must be `width`, that of `like`, which they are compared with."""
    text = numbers("text", given, "[C, E] or [C, T, E]", (2, 3))
    text = text[:, None] if text.ndim == 2 else text
    if len(text) != n_classes:
        raise FitError(
            f"text has rows for {len(text)} classes and y has {n_classes}: it takes one for each, in the order of "
            "classes_, and each class needs a labelled row. With class_names the text may be in another order"
        )
    if text.shape[-1] != width:
        raise FitError(
            f"text is {text.shape[-1]} wide and {like} is {width}. Features from before the projection of the model "
            "need it: projection=[D, E]"
        )
    refuse_rows("text", has_zeros(text), "hold zeros only, which have no direction")
    return text
