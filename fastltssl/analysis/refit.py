"""A run trained again from the cache with other knobs, and accuracy as a function of one knob.

Training and evaluation are those of `fastltssl train`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from fastltssl.analysis.cure import Scored
from fastltssl.analysis.history import Insight, read_insight
from fastltssl.methods import OF_TRAINING, configure, fields
from fastltssl.progress import Work, drain
from fastltssl.runs.config import Config
from fastltssl.runs.evaluation import evaluate
from fastltssl.runs.experiment import stream_of, training
from fastltssl.training.fit import fitting_many
from fastltssl.training.step import with_knobs

MEASURES = ("bacc", "tail", "ece", "pseudo_accuracy", "pseudo_mask_rate", "val_bacc")


def changed(insight: Insight, settings: dict[str, Any], options: dict[str, Any]) -> Config:
    """The config of the run with other knobs and options, for one seed. Raises UnknownKnob for a wrong value."""
    config = dataclasses.replace(insight.config, seeds=(insight.seed,), settings=settings, **options)
    configure(config.method, config.settings)
    return config


def refitting(config: Config, scored: Scored, out: Path) -> Work[Insight]:
    """Train a changed config from the cache of a run, yielding progress; the run is written to the folder `out`."""
    yield from training(config, scored.trained.cache, scored.rows, out)
    return read_insight(out)


def knob_range(config: Config, knob: str, count: int) -> list[float]:
    """`count` values over the range a knob is meant for, spaced by equal factors if its scale is logarithmic.

    lr and weight_decay range from a tenth to ten times their value in the config.
    """
    if knob in ("lr", "weight_decay"):
        middle = getattr(config, knob) or 5e-4
        return [float(value) for value in np.geomspace(middle / 10, middle * 10, count)]
    metadata = fields(configure(config.method, config.settings))[knob].metadata
    spaced = np.geomspace if metadata["log"] and metadata["low"] > 0 else np.linspace
    return [float(value) for value in spaced(metadata["low"], metadata["high"], count)]


def curve(config: Config, scored: Scored, knob: str, values: Sequence[float]) -> dict[str, Float[np.ndarray, " R"]]:
    """The measures in MEASURES at the last evaluation, as fractions, for each value of a real knob.

    The runs, one for each value, are trained together.
    """
    task = scored.task
    method, problem = configure(config.method, config.settings), dataclasses.replace(task.problem, steps=config.steps)
    swept = {knob: torch.tensor(values, dtype=problem.x.dtype)}
    in_method = {name: numbers for name, numbers in swept.items() if name not in OF_TRAINING}
    work = fitting_many(
        method,
        swept,
        problem,
        stream_of(task._replace(config=config, problem=problem), with_knobs(method, in_method)),
        steps=config.steps,
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=task.seed,
        evals=1,
        evaluate=lambda method, run, _: evaluate(method, run, task.measured),
    )
    history = drain(work).history
    return {name: history[name][:, -1].double().numpy() for name in MEASURES if name in history}
