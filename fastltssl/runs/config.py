"""The Config of an experiment, and how it is made of options from a shell, a YAML file or a notebook."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastltssl.cache.splits import Protocol, checked
from fastltssl.errors import ConfigError
from fastltssl.functional import metrics
from fastltssl.knobs import LARGEST
from fastltssl.live.modes import Live, parse_mode
from fastltssl.reading import known, read_yaml, short, typed


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run."""

    method: str
    cache: str
    protocol: Protocol = Protocol()
    seeds: tuple[int, ...] = (0,)
    steps: int = 500
    lr: float = 0.03
    weight_decay: float = 5e-4
    batch: int = 32
    batch_u: int = 32
    settings: dict[str, Any] = field(default_factory=dict)
    templates: str | None = None
    eval: str = "test"  # or "all": every labelled row of every group
    report: str = "last"  # or "mean20" (last 20 evaluations) or "val" (best on validation)
    groups: str = "thirds"  # or "counts", or a JSON or YAML file of groups
    evals: int = 10
    live: Live | None = None
    ensemble: str | None = None  # a run folder: its scores are added to the zero-shot ones, and nothing is trained

    @classmethod
    def of(cls, *layers: Mapping[str, Any], where: str = "", counted: bool = False) -> "Config":
        """The checked config of the options; a later layer overrides an earlier one, and None counts as not given.

        Options are those of `train`: the fields above, the switches of a Protocol, `set` (or `settings`: knobs to
        values, or a list of KNOB=VALUE), `live` (a mode, or a mapping of the fields of Live) and `live_lr` and so on.
        Messages begin with `where`; with `counted`, seeds=5 means the seeds 0 to 4. Raises ConfigError on wrong
        options, values and combinations, SwitchError on those of the protocol.
        """
        return check(cls.read(*layers, where=where, counted=counted))

    @classmethod
    def read(cls, *layers: Mapping[str, Any], where: str = "", counted: bool = False) -> "Config":
        """The config of the options, only types checked: for a finished run, whose files need no longer exist."""
        options: dict[str, Any] = {}
        for layer in layers:
            for name, value in _options(layer, where).items():
                is_part = isinstance(value, dict) and isinstance(options.get(name), dict)
                options[name] = options[name] | value if is_part else value
        live = options.get("live")
        if live and "mode" not in live:
            flag = FLAGS.get(next(iter(live)), next(iter(live)))
            raise ConfigError(f"--{flag} belongs to training through the encoder: add --live MODE, such as adaptformer")
        if "cache" not in options:
            new = ", or with --live a new one with both --model and --dataset" if live else ""
            raise ConfigError(f"name a cache with --cache (see `fastltssl cache ls`){new}")
        if "seeds" in options:
            options["seeds"] = counted_seeds(options["seeds"]) if counted else parse_seeds(options["seeds"])
        protocol = Protocol.of(options.pop("protocol", {}), where)
        return dataclasses.replace(typed(options, cls, where), protocol=protocol)


SWITCHES = {switch.name for switch in dataclasses.fields(Protocol)}
FIELDS = {option.name for option in dataclasses.fields(Config)} - {"protocol"}
LIVE = {option.name for option in dataclasses.fields(Live)}
FLAGS = {"lr": "encoder-lr", "views": "live-views", "compiled": "compile", "mode": "live"}  # of fields of Live, by name
MOST = {"steps": 10**8, "batch": 10**7, "batch_u": 10**7, "evals": 10**4}  # beyond them a run would never end
MOST_SEEDS = 10**4
OPTIONS = FIELDS | SWITCHES | {"set"} | {f"live_{name}" for name in LIVE - {"mode"}}


def read_options(file: Path) -> dict[str, Any]:
    """The options in a YAML file for `train --config`."""
    return known(read_yaml(file) or {}, OPTIONS, str(file))


def _options(layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a layer that are not None; those of "protocol", "settings" and "live" each in a mapping."""
    layer = known(layer, OPTIONS, where or "options")
    given = {name: _plain(value) for name, value in layer.items() if value is not None}
    options = {name: value for name, value in given.items() if name in FIELDS - {"settings", "live"}}
    if switches := {name: value for name, value in given.items() if name in SWITCHES}:
        options["protocol"] = switches
    settings = [settings_of(given[name], where) for name in ("settings", "set") if name in given]
    if settings:
        options["settings"] = {name: value for mapping in settings for name, value in mapping.items()}
    live = {name.removeprefix("live_"): value for name, value in given.items() if name.startswith("live_")}
    if "live" in given:
        stored = {"mode": given["live"]} if isinstance(given["live"], str) else given["live"]
        fields = {flag.replace("-", "_"): name for name, flag in FLAGS.items()}
        stored = known(stored, LIVE | fields.keys(), f"{where}, live" if where else "live")
        live = {fields.get(name, name): value for name, value in stored.items() if value is not None} | live
    return options | ({"live": live} if live else {})


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's, paths as text; other values unchanged."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    return value


def settings_of(given: Any, where: str = "") -> dict[str, Any]:
    """Knobs to values, from a mapping or from texts KNOB=VALUE."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{where}: set must be a mapping of knobs to values, not {short(given)}".lstrip(": "))
    if wrong := [pair for pair in given if not isinstance(pair, str) or "=" not in pair]:
        raise ConfigError(f"--set {short(wrong[0])} is not KNOB=VALUE")
    return dict(pair.split("=", 1) for pair in given)


def check(config: Config) -> Config:
    """The config with the preset of its protocol applied. Raises ConfigError on a config that cannot be run."""
    accepted = {"eval": ("test", "all"), "report": ("last", "mean20", "val")}
    for name, options in accepted.items():
        if getattr(config, name) not in options:
            raise ConfigError(f"--{name} {getattr(config, name)!r} is not one of {', '.join(options)}")
    if config.groups not in metrics.GROUPINGS and not Path(config.groups).is_file():
        known_groups = ", ".join(metrics.GROUPINGS)
        raise ConfigError(f"--groups {config.groups!r} is not one of {known_groups}, nor a JSON or YAML file of groups")
    for name, most in MOST.items():
        if not 1 <= getattr(config, name) <= most:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {getattr(config, name)} is not from 1 to {most:,}")
    if not 0 < config.lr <= LARGEST or not 0 <= config.weight_decay <= LARGEST:
        given = f"--lr {config.lr} must be above 0 and --weight-decay {config.weight_decay} at least 0"
        raise ConfigError(f"{given}, both at most {LARGEST:g}")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"--seeds {config.seeds} must name at least one seed, each once")
    if config.live:
        _check_live(config.live)
    if config.report == "val" and not config.protocol.val:
        raise ConfigError("--report val needs validation rows: add --val n (rows per class held out of training)")
    return dataclasses.replace(config, protocol=checked(config.protocol))


def _check_live(live: Live) -> None:
    parse_mode(live.mode)
    accepted = {"optimizer": ("sgd", "adamw"), "precision": ("auto", "fp32", "bf16"), "views": ("fresh", "cached")}
    for name, options in accepted.items():
        if getattr(live, name) not in options:
            flag = "live-views" if name == "views" else name
            raise ConfigError(f"--{flag} {getattr(live, name)!r} is not one of {', '.join(options)}")
    if live.lr is not None and not 0 < live.lr <= LARGEST:
        raise ConfigError(f"--encoder-lr {live.lr} must be above 0, at most {LARGEST:g}")
    if not 0 <= live.ema < 1 or live.warmup < 0 or live.accumulate < 1:
        raise ConfigError(
            f"--ema {live.ema} must be from 0 to below 1, --warmup {live.warmup} at least 0 and --accumulate "
            f"{live.accumulate} at least 1"
        )


def parse_seeds(text: Any) -> tuple[int, ...]:
    """ "0-4" (inclusive), "0,3", 2, [0, 1] or range(2) as a tuple of seeds."""
    parts = text if isinstance(text, Iterable) and not isinstance(text, str) else str(text).split(",")
    ranges = []
    for part in itertools.islice(parts, MOST_SEEDS + 1):
        ends = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", str(part))
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            raise ConfigError(f"--seeds {short(text)} is not a range such as 0-4 or a list such as 0,3")
        ranges.append(range(first, last + 1))
    if sum(map(len, ranges)) > MOST_SEEDS:
        raise ConfigError(f"--seeds {short(text)} names more than {MOST_SEEDS:,} seeds")
    return tuple(seed for own in ranges for seed in own)


def counted_seeds(given: Any) -> tuple[int, ...]:
    """The seeds 0 to n - 1 of a whole number n; of anything else what `parse_seeds` returns."""
    if isinstance(given, bool) or not re.fullmatch(r"\s*[0-9]+\s*", str(given)):
        return parse_seeds(given)
    if not 1 <= int(given) <= MOST_SEEDS:
        raise ConfigError(f"--seeds {given} is no number of seeds; seed {given} alone is {given}-{given}")
    return tuple(range(int(given)))


def as_dict(config: Config) -> dict[str, Any]:
    """The config as options for `--config`: the switches of the protocol stand beside the rest."""
    options = dataclasses.asdict(config)
    protocol, settings = options.pop("protocol"), options.pop("settings")
    for name in ("live", "ensemble"):
        if options[name] is None:
            del options[name]
    return options | {"seeds": list(config.seeds)} | protocol | {"set": settings}
