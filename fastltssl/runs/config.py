"""From flags and a YAML file to a Config, or the grid of a table: flags win over the file, the file over defaults."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from click import UsageError

from fastltssl.cache.splits import PRESETS, Protocol, checked
from fastltssl.errors import ConfigError, did_you_mean
from fastltssl.functional import metrics
from fastltssl.live.modes import Live, parse_mode


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
    ensemble: str | None = None  # the run folder whose scores are added to the zero-shot ones, with gla


SWITCHES = {one.name for one in dataclasses.fields(Protocol)}
KEYS = {one.name for one in dataclasses.fields(Config)} - {"protocol", "settings"} | SWITCHES | {"set"}

FLAGS = {"lr": "encoder-lr", "views": "live-views", "compiled": "compile", "mode": "live"}  # of fields of Live
LIVE: dict[str, Any] = {one.name: one.type for one in dataclasses.fields(Live)}


def resolve(method: str, file: Path | None, flags: dict[str, Any]) -> Config:
    """The Config of a train command: flags over file over defaults; an unknown key is a usage error."""
    return _resolved(method, _known(_read(file), KEYS, str(file)) if file else {}, flags, str(file))


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {error}") from None


def _known(found: Any, known: Collection[str], where: str) -> dict[str, Any]:
    """A mapping with underscores in its keys; a usage error where it is none, or has a key that is not known."""
    if not isinstance(found, dict):
        raise UsageError(f"{where} must hold a mapping of options, not {type(found).__name__}")
    found = {str(key).replace("-", "_"): value for key, value in found.items()}
    for key in sorted(found.keys() - {*known}):
        hint = did_you_mean(key, known)
        raise UsageError(f"{where}: unknown key {key!r}.{hint} Known: {', '.join(sorted(known))}")
    return found


def _resolved(method: str, from_file: dict[str, Any], flags: dict[str, Any], where: str) -> Config:
    """Flags over the options of a file; both are of known keys."""
    from_file = dict(from_file)
    settings = from_file.pop("set", None) or {}
    if not isinstance(settings, dict):
        raise UsageError(f"{where}: set must be a mapping of knobs to values, not {settings!r}")
    settings = dict(settings)
    from_file = {key: value for key, value in from_file.items() if value is not None}
    for pair in flags.pop("set_"):
        if "=" not in pair:
            raise UsageError(f"--set {pair!r} is not KNOB=VALUE")
        settings |= dict([pair.split("=", 1)])
    given = from_file | {
        {"cache_name": "cache"}.get(name, name): value for name, value in flags.items() if value is not None
    }
    given["method"] = method
    live = _live(given, where)
    if live:
        given["live"] = live
    if "cache" not in given:
        new = ", or with --live a new one with both --model and --dataset" if live else ""
        raise UsageError(f"name a cache with --cache (see `fastltssl cache ls`){new}")
    if "seeds" in given:
        given["seeds"] = parse_seeds(given["seeds"])
    types = {one.name: one.type for one in (*dataclasses.fields(Config), *dataclasses.fields(Protocol))}
    for key, value in given.items():
        given[key] = _typed(key, value, types[key])
    for name, value in PRESETS.get(str(given.get("preset")), {}).items():
        if given.get(name, value) != value:
            raise UsageError(f"preset {given['preset']} sets {name} to {value}, and {given[name]} was asked for")
    protocol = Protocol(**{name: value for name, value in given.items() if name in SWITCHES})
    rest = {name: value for name, value in given.items() if name not in SWITCHES}
    return Config(protocol=protocol, settings=settings, **rest)


def _live(given: dict[str, Any], where: str) -> Live | None:
    """How to train through the encoder, taken out of what was given: flags over the mapping of a file."""
    stored = given.pop("live", None)
    if isinstance(stored, dict):  # by the names of the fields, or of the flags
        fields = {flag.replace("-", "_"): name for name, flag in FLAGS.items()}
        stored = {fields.get(str(name).replace("-", "_"), name): value for name, value in stored.items()}
    found = _known({"mode": stored} if isinstance(stored, str) else stored or {}, LIVE.keys(), f"{where}, live")
    found |= {name: given.pop(f"live_{name}") for name in LIVE if f"live_{name}" in given}
    if found and "mode" not in found:
        flag = FLAGS.get(next(iter(found)), next(iter(found)))
        raise UsageError(f"--{flag} belongs to training through the encoder: add --live MODE, such as adaptformer")
    if not found:
        return None
    typed = {name: _typed(f"live {name}", value, LIVE[name]) for name, value in found.items() if value is not None}
    return Live(**typed)


def _typed(key: str, value: Any, kind: Any) -> Any:
    """A value of the kind its option takes; numbers may be text, since YAML reads 1e-3 as text."""
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{key}: {value!r} is not true or false")
        return value
    if kind in (str, str | None):
        if not isinstance(value, str):
            raise UsageError(f"{key}: {value!r} is not text")
        return value
    if Literal["all"] in get_args(kind):
        if value == "all":
            return value
        kind = int
    if kind == float | None:
        kind = float
    if kind not in (float, int, int | None):
        return value
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or (kind is not float and number % 1):
        raise UsageError(f"{key}: {value!r} is not a {'' if kind is float else 'whole '}number")
    return number if kind is float else int(number)


def parse_seeds(text: Any) -> tuple[int, ...]:
    """ "0-4" (inclusive), "0,3", 2 or [0, 1] as a tuple of seeds."""
    parts = [str(part) for part in text] if isinstance(text, list | tuple) else str(text).split(",")
    seeds: list[int] = []
    try:
        for part in parts:
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise UsageError(f"--seeds {text!r} is not a range such as 0-4 or a list such as 0,3")
    return tuple(seeds)


def counted_seeds(given: Any) -> tuple[int, ...]:
    """5 as the seeds 0 to 4; else as `parse_seeds`."""
    if isinstance(given, bool) or not str(given).strip().isdecimal():
        return parse_seeds(given)
    if int(given) < 1:
        raise UsageError(f"--seeds {given} is no number of seeds; seed {given} alone is {given}-{given}")
    return tuple(range(int(given)))


def check(config: Config) -> Config:
    """The config with the protocol's preset applied; raises RunError on what cannot be run."""
    accepted = {"eval": ("test", "all"), "report": ("last", "mean20", "val")}
    for name, options in accepted.items():
        if getattr(config, name) not in options:
            raise ConfigError(f"--{name} {getattr(config, name)!r} is not one of {', '.join(options)}")
    if config.groups not in metrics.GROUPINGS and not Path(config.groups).is_file():
        known = ", ".join(metrics.GROUPINGS)
        raise ConfigError(f"--groups {config.groups!r} is not one of {known}, nor a JSON or YAML file of groups")
    for name in ("steps", "batch", "batch_u", "evals"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)} is below 1")
    if not 0 < config.lr < float("inf") or not 0 <= config.weight_decay < float("inf"):
        raise ConfigError(f"--lr {config.lr} must be above 0 and --weight-decay {config.weight_decay} at least 0")
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
    if live.lr is not None and not 0 < live.lr < float("inf"):
        raise ConfigError(f"--encoder-lr {live.lr} must be above 0")
    if not 0 <= live.ema < 1 or live.warmup < 0 or live.accumulate < 1:
        raise ConfigError(
            f"--ema {live.ema} must be from 0 to below 1, --warmup {live.warmup} at least 0 and --accumulate "
            f"{live.accumulate} at least 1"
        )


def as_dict(config: Config) -> dict[str, Any]:
    """The config as `--config` reads it: the protocol's switches beside the rest."""
    flat = dataclasses.asdict(config)
    protocol, settings = flat.pop("protocol"), flat.pop("settings")
    for name in ("live", "ensemble"):
        if flat[name] is None:
            del flat[name]
    return flat | {"seeds": list(config.seeds)} | protocol | {"set": settings}
