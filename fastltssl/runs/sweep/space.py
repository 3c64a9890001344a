"""The space of a sweep: ranges of real knobs, and options.

Configurations that differ in real knobs only train jointly, as one population; each set of options has its own.
"""

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
    """A range of real values; with `log` it is sampled uniformly in the logarithm."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Real | tuple[Any, ...]]  # the range of a knob, or its options
OF_CONFIG: Space = {"lr": Real(0.003, 0.3, True), "weight_decay": Real(1e-6, 1e-2, True)}  # real fields of Config
SIZES = ("batch", "batch_u", "steps")  # whole-number fields of Config, swept as options


def space_of(config: Config, ranges: Sequence[str] = (), only: Sequence[str] = (), file: Path | None = None) -> Space:
    """The space of a sweep: by default lr and the real knobs of the method and its head, then what `ranges` say.

    The default leaves out knobs that are "auto", set by `config`, or read under another option only. A range reads
    KNOB=LOW:HIGH, KNOB=LOW:HIGH:log or, for options, KNOB=A|B|C; `file` is a YAML mapping of such ranges. `only` drops
    all other knobs of the default. Raises UnknownKnob and, for an impossible range, ConfigError.
    """
    method = configure(config.method, config.settings)
    known, set_to = fields(method), values(method)
    real = {name: field for name, field in known.items() if field.metadata["kind"] == "knob"}
    default: Space = {"lr": OF_CONFIG["lr"]}
    for name, field in real.items():
        choice, _, option = field.metadata["under"].partition("=")
        if set_to[name] != "auto" and name not in config.settings and set_to.get(choice, option) == option:
            default[name] = _range_of(field)
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
    """The text of each range in a file of lines such as 'mu: 0:1' or 'align: stack|zscore'; options may be a list."""
    ranges = read_yaml(path, dict[str, str | float | list[Any]])
    return {name: "|".join(map(str, text)) if isinstance(text, list) else str(text) for name, text in ranges.items()}


def _parsed(name: str, text: str, config: Config, is_real: bool) -> Real | tuple[Any, ...]:
    """The range or the options of a knob from text. Raises ConfigError or UnknownKnob where they are impossible."""
    if is_real and "|" not in text:
        low, _, rest = text.partition(":")
        high, _, log = rest.partition(":")
        try:
            parsed = Real(float(low), float(high), log == "log")
        except ValueError:
            raise ConfigError(f"--range {name}={text!r} is not LOW:HIGH or LOW:HIGH:log") from None
        if log not in ("", "log"):
            raise ConfigError(f"--range {name}={text!r} is not LOW:HIGH or LOW:HIGH:log")
        if not -np.inf < parsed.low < parsed.high < np.inf or (parsed.log and parsed.low <= 0):
            raise ConfigError(f"--range {name}={text!r}: LOW must be below HIGH (and above 0 with :log)")
        if (parsed.low < 0 and name in OF_CONFIG) or (parsed.low == 0 and name == "lr"):
            raise ConfigError(f"--range {name}={text!r}: {name} must be {'above' if name == 'lr' else 'at least'} 0")
        return parsed
    options = tuple(dict.fromkeys(text.split("|")))
    if name in SIZES:
        if not all(option.isdigit() and int(option) for option in options):
            raise ConfigError(f"--range {name}={text!r} must list whole numbers above 0, such as {name}=32|64")
        return tuple(int(option) for option in options)
    if name == "head" and (unknown := set(options) - set(HEADS)):
        raise ConfigError(f"--range head={text!r}: no head {sorted(unknown)[0]!r}; known: {', '.join(HEADS)}")
    if name in OF_CONFIG:
        raise ConfigError(f"--range {name}={text!r} is real, so it is LOW:HIGH or LOW:HIGH:log")
    if name == "head":
        return options
    return tuple(values(configure(config.method, {**config.settings, name: option}))[name] for option in options)


def grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """Every point of a grid: all options, and as many levels of each real range as `trials` allow, ends included."""
    real = [name for name, range_ in space.items() if isinstance(range_, Real)]
    options = int(np.prod([len(range_) for range_ in space.values() if not isinstance(range_, Real)]))
    levels = int((trials / options) ** (1 / max(1, len(real))) + 1e-9)
    if levels < 1 or (real and levels < 2):
        raise ConfigError(
            f"a grid over {', '.join(space)} needs at least {options * 2 ** len(real)} trials, and --trials is "
            f"{trials}. Name fewer knobs with --only"
        )
    axes = [_levels(range_, levels) if isinstance(range_, Real) else list(range_) for range_ in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def _levels(real: Real, count: int) -> list[float]:
    spaced = np.geomspace if real.log else np.linspace
    return [float(level) for level in spaced(real.low, real.high, count)]


def as_json(space: Space) -> dict[str, Any]:
    """The space in plain values: a range is (low, high, log), options are a tuple."""
    return {name: dataclasses.astuple(range_) if isinstance(range_, Real) else range_ for name, range_ in space.items()}


def configured(config: Config, point: dict[str, Any]) -> Config:
    """The config of the experiment at a point of the space."""
    own = {name: value for name, value in point.items() if name in (*OF_CONFIG, *SIZES)}
    settings = {name: value for name, value in point.items() if name not in own}
    return dataclasses.replace(config, **own, settings=config.settings | settings)
