"""What a sweep may change: real ranges, which ride the joint axis, and options, which form populations of their own."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastltssl.errors import ConfigError, UnknownKnob, did_you_mean
from fastltssl.functional.heads import HEADS
from fastltssl.methods import configure, fields, values
from fastltssl.reading import read_yaml
from fastltssl.runs.config import Config


@dataclass(frozen=True)
class Real:
    """A range of real values; sampled by its logarithm with `log`."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Real | tuple[Any, ...]]
OF_CONFIG: Space = {"lr": Real(0.003, 0.3, True), "weight_decay": Real(1e-6, 1e-2, True)}  # of the optimiser
SIZES = ("batch", "batch_u", "steps")  # options of the experiment: whole numbers


def space_of(config: Config, ranges: Sequence[str] = (), only: Sequence[str] = (), file: Path | None = None) -> Space:
    """The real knobs of a method and its head, but automatic, idle and given ones, and lr; then what a user changes.

    A range reads KNOB=LOW:HIGH, KNOB=LOW:HIGH:log or, for options, KNOB=A|B|C; `file` is a YAML mapping of the same.
    `only` keeps these knobs alone. Raises UnknownKnob for a knob and ConfigError for a range that cannot be.
    """
    method = configure(config.method, config.settings)
    known, set_to = fields(method), values(method)
    real = {name: each for name, each in known.items() if each.metadata["kind"] == "knob"}
    default: Space = {"lr": OF_CONFIG["lr"]}
    for name, each in real.items():
        choice, _, option = each.metadata["under"].partition("=")
        if set_to[name] != "auto" and name not in config.settings and set_to.get(choice, option) == option:
            default[name] = _range_of(each)
    accepted = {**OF_CONFIG, **known, **dict.fromkeys(SIZES)} | ({"head": None} if hasattr(method, "head") else {})
    texts = dict(_from_file(file)) if file else {}
    for pair in ranges:
        name, is_pair, text = pair.partition("=")
        if not is_pair:
            raise ConfigError(f"--range {pair!r} is not KNOB=LOW:HIGH[:log] or KNOB=A|B")
        texts[name] = text
    for name in (*texts, *only):
        if name not in accepted:
            hint = did_you_mean(name, accepted)
            raise UnknownKnob(f"{config.method} has no knob {name!r} to sweep.{hint} Known: {', '.join(accepted)}")
    if fixed := [name for name in texts if name in config.settings]:
        raise ConfigError(f"--set {fixed[0]} fixes what --range {fixed[0]} is to sweep. Leave one of them out")
    given = {name: _parsed(name, text, config, name in real or name in OF_CONFIG) for name, text in texts.items()}
    space = default | given
    if only:
        extra = {name: OF_CONFIG.get(name) or _range_of(real[name]) for name in only if name in {**real, **OF_CONFIG}}
        if lost := [name for name in only if name not in extra and name not in given]:
            raise ConfigError(f"--only {lost[0]}: it takes options, so say which with --range '{lost[0]}=A|B'")
        space = {name: given.get(name, extra.get(name)) for name in dict.fromkeys((*only, *given))}  # type: ignore
    if not space:
        raise ConfigError(f"there is nothing to sweep. Name a knob with --range; known: {', '.join(accepted)}")
    return space


def _range_of(field: Any) -> Real:
    return Real(field.metadata["low"], field.metadata["high"], field.metadata["log"])


def _from_file(path: Path) -> dict[str, str]:
    """A range for each knob, such as 'mu: 0:1' or 'align: stack|zscore'; options may be a list."""
    ranges = read_yaml(path, dict[str, str | float | list[Any]])
    return {name: "|".join(map(str, text)) if isinstance(text, list) else str(text) for name, text in ranges.items()}


def _parsed(name: str, text: str, config: Config, is_real: bool) -> Real | tuple[Any, ...]:
    """A range from text; options are checked by configuring the method with each."""
    if is_real and "|" not in text:
        low, _, rest = text.partition(":")
        high, _, log = rest.partition(":")
        try:
            found = Real(float(low), float(high), log == "log")
        except ValueError:
            raise ConfigError(f"--range {name}={text!r} is not LOW:HIGH or LOW:HIGH:log") from None
        if log not in ("", "log"):
            raise ConfigError(f"--range {name}={text!r} is not LOW:HIGH or LOW:HIGH:log")
        if not -np.inf < found.low < found.high < np.inf or (found.log and found.low <= 0):
            raise ConfigError(f"--range {name}={text!r}: LOW must be below HIGH (and above 0 with :log)")
        if (found.low < 0 and name in OF_CONFIG) or (found.low == 0 and name == "lr"):
            raise ConfigError(f"--range {name}={text!r}: {name} must be {'above' if name == 'lr' else 'at least'} 0")
        return found
    options = tuple(dict.fromkeys(text.split("|")))
    if name in SIZES:
        if not all(each.isdigit() and int(each) for each in options):
            raise ConfigError(f"--range {name}={text!r} must list whole numbers above 0, such as {name}=32|64")
        return tuple(int(each) for each in options)
    if name == "head" and (unknown := set(options) - set(HEADS)):
        raise ConfigError(f"--range head={text!r}: no head {sorted(unknown)[0]!r}; known: {', '.join(HEADS)}")
    if name in OF_CONFIG:
        raise ConfigError(f"--range {name}={text!r} is real, so it is LOW:HIGH or LOW:HIGH:log")
    if name == "head":
        return options
    return tuple(values(configure(config.method, {**config.settings, name: each}))[name] for each in options)


def grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """Every point of a grid: all options, and as many levels of each real range as `trials` allow, ends included."""
    real = [name for name, each in space.items() if isinstance(each, Real)]
    options = int(np.prod([len(each) for each in space.values() if not isinstance(each, Real)]))
    levels = int((trials / options) ** (1 / max(1, len(real))) + 1e-9)
    if levels < 1 or (real and levels < 2):
        raise ConfigError(
            f"a grid over {', '.join(space)} needs at least {options * 2 ** len(real)} trials, and --trials is "
            f"{trials}. Name fewer knobs with --only"
        )
    axes = [_levels(each, levels) if isinstance(each, Real) else list(each) for each in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def _levels(real: Real, count: int) -> list[float]:
    spaced = np.geomspace if real.log else np.linspace
    return [float(each) for each in spaced(real.low, real.high, count)]


def configured(config: Config, point: dict[str, Any]) -> Config:
    """The experiment at a point of the space."""
    own = {name: value for name, value in point.items() if name in (*OF_CONFIG, *SIZES)}
    settings = {name: value for name, value in point.items() if name not in own}
    return dataclasses.replace(config, **own, settings=config.settings | settings)
