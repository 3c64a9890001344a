"""Intervals of means over seeds, and of differences paired by seed, by Student's t."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Difference(NamedTuple):
    """Mean of paired differences with its 95 % interval, whose ends are nan for a single pair."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


def t_quantile(dof: int, confidence: float = 0.95) -> float:
    """t with P(|T| <= t) = confidence for Student's T of `dof` degrees of freedom, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, dof) < confidence else (low, middle)
    return high


def _t_inside(t: float, dof: int) -> float:
    """P(|T| <= t): the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle, is_odd = math.atan(t / math.sqrt(dof)), dof % 2
    term, total = math.cos(angle) ** is_odd, 0.0
    for power in range(is_odd, dof - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if is_odd else inside


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean of independent values, by Student's t; nan for one value."""
    if len(values) < 2:
        return math.nan
    spread = torch.tensor(values, dtype=torch.float64).std()
    return t_quantile(len(values) - 1) * float(spread) / math.sqrt(len(values))


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Mean of values - others, paired by place, with its 95 % interval."""
    differences = tuple(a - b for a, b in zip(values, others, strict=True))
    mean, half = sum(differences) / len(differences), half_interval(differences)
    return Difference(mean, mean - half, mean + half, differences)
