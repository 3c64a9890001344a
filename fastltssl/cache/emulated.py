"""Emulated views: noise added to features, where augmented images were not encoded."""

import hashlib
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from fastltssl.cache.layout import SLAB
from fastltssl.errors import CacheError

EMULATE_FORM = "weak:COUNT:NOISE or strong:COUNT:NOISE:DROP, joined by commas, such as weak:8:0.2,strong:8:0.5:0.1"
MAX_VIEWS = 64
SMALLEST, LARGEST = 1e-3, 65504.0  # of the largest value of a vector: float16 has few digits below, and none above


class Noise(NamedTuple):
    """The recipe of one emulated view."""

    view: str  # its name
    noise: float  # expected norm of the noise; that of the feature is 1
    drop: float  # probability that a coordinate is set to zero

    def recipe(self) -> str:
        """The formula of the view as text, which is part of the fingerprint of a cache."""
        noisy = f"x + {self.noise:g} e"
        formula = f"drop {100 * self.drop:g} % of ({noisy})" if self.drop else noisy
        return f"emulated: normalise({formula}), e ~ N(0, I/D)"


def parse_emulate(text: str | None) -> tuple[Noise, ...]:
    """The views that a text such as weak:8:0.2,strong:8:0.5:0.1 names. Raises CacheError."""
    recipes: list[Noise] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(weak|strong):(\d+):(\d*\.?\d+)(?::(\d*\.?\d+))?", part.strip())
        if not match:
            raise CacheError(f"--emulate {part!r} is not understood; accepted: {EMULATE_FORM}")
        role, count, noise, drop = match[1], int(match[2]), float(match[3]), float(match[4] or 0)
        if not 1 <= count <= MAX_VIEWS or noise <= 0 or drop >= 1:
            raise CacheError(
                f"--emulate {part!r}: the count is 1 to {MAX_VIEWS}, the noise above 0, the dropped share below 1"
            )
        if any(recipe.view.startswith(role) for recipe in recipes):
            raise CacheError(f"--emulate {text!r} names {role} twice; accepted: {EMULATE_FORM}")
        recipes += [Noise(f"{role}{index}", noise, drop) for index in range(count)]
    return tuple(recipes)


def emulated(
    x: Float32[np.ndarray, "rows D"], recipe: Noise, *, seed: int, group: str, start: int
) -> Float32[np.ndarray, "rows D"]:
    """One emulated view of the rows of a group from `start` on, a multiple of 64; unit norm.

    The noise of a row depends on seed, group, view and position alone, not on how many rows are passed at once.
    """
    view = unit(x)
    for first in range(0, len(x), SLAB):
        key = hashlib.blake2b(f"{seed}/{group}/{recipe.view}/{start + first}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        part = view[first : first + SLAB]
        # Noise is drawn for a whole slab, so that a short last one gets the numbers it would get in a longer group.
        noise = generator.standard_normal((SLAB, x.shape[1]), dtype=np.float32)
        is_kept = generator.random((SLAB, x.shape[1]), dtype=np.float32) >= recipe.drop
        part += recipe.noise * noise[: len(part)] / np.sqrt(x.shape[1])
        part *= is_kept[: len(part)]
    return unit(view)


def storable(
    x: Float[np.ndarray, "*n D"], least: float = SMALLEST, limit: float = LARGEST
) -> Float32[np.ndarray, "*n D"]:
    """Features of which float16 holds the direction: vectors too large or too small for it are scaled near one.

    The factor is a power of two, so that no digit is lost; all others stay as they are. Every head takes the direction
    of a feature alone. `least` and `limit` are for the largest value of a vector, where it is stored as another type.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True)
    is_extreme = (largest < least) | (largest >= limit)
    _, exponent = np.frexp(np.where(is_extreme & (largest > 0), largest, 0.5))  # of 0.5 it is 0
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, -exponent).astype(np.float32)


def unit(x: Float[np.ndarray, "*n D"]) -> Float32[np.ndarray, "*n D"]:
    """Features scaled to unit norm."""
    x = storable(x)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
