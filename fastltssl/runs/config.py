"""From flags and a YAML file to a Config, or the grid of a table: flags win over the file, the file over defaults."""

import dataclasses
import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from click import UsageError

from fastltssl.analysis.grid import Grid, Published
from fastltssl.cache.splits import PRESETS, Protocol, SplitError
from fastltssl.runs.folder import Config, ConfigError, Live, check
from fastltssl.runs.record import METRICS

SWITCHES = {one.name for one in dataclasses.fields(Protocol)}
KEYS = {one.name for one in dataclasses.fields(Config)} - {"protocol", "settings"} | SWITCHES | {"set"}

FLAGS = {"lr": "encoder-lr", "views": "live-views", "compiled": "compile", "mode": "live"}  # of fields of Live
LIVE: dict[str, Any] = {one.name: one.type for one in dataclasses.fields(Live)}


def resolve(method: str, file: Path | None, flags: dict[str, Any]) -> Config:
    """The Config of a train command: flags over file over defaults; an unknown key is a usage error."""
    return _resolved(method, _known(_read(file), KEYS, str(file)) if file else {}, flags, str(file))


def read_grid(file: Path, flags: dict[str, Any]) -> Grid:
    """The grid of a YAML file: options of `train` for all, `protocols` as columns, maybe `published` numbers.

    Flags are over the file; a whole number as seeds is a count. Unknown keys and values no run can have are usage
    errors.
    """
    where = str(file)
    common = _known(_read(file), KEYS - {"method", "live", "ensemble"} | {"protocols", "published"}, where)
    protocols, published = common.pop("protocols", None), common.pop("published", None) or []
    for given in (common, flags):
        if given.get("seeds") is not None:
            given["seeds"] = counted_seeds(given["seeds"])
    if not isinstance(protocols, list) or not protocols:
        raise UsageError(f"{where}: protocols must be a list such as - {{name: reversed, order: reversed}}")
    configs: dict[str, Config] = {}
    for place, one in enumerate(protocols, 1):
        switches = _known(one, SWITCHES | {"name"}, f"{where}, protocol {place}")
        name = str(switches.pop("name", "")).strip()
        if not name or name in configs:
            raise UsageError(f"{where}, protocol {place}: it needs a name of its own, not {name!r}")
        try:
            configs[name] = check(_resolved("", common | switches, flags | {"set_": ()}, f"{where}, protocol {name}"))
        except (SplitError, ConfigError) as error:
            raise UsageError(f"{where}, protocol {name}: {error}") from None
    if not isinstance(published, list):
        raise UsageError(f"{where}: published must be a list of rows, not {type(published).__name__}")
    rows = [_published(one, len(configs), f"{where}, published row {n}") for n, one in enumerate(published, 1)]
    return Grid(file.stem, configs, tuple(rows))


def _published(row: Any, columns: int, where: str) -> Published:
    """A row of numbers from a paper, one for each protocol, null where it has none."""
    row = _known(row, set(Published._fields), where)
    if missing := [name for name in ("method", "source", "differs", "values") if not row.get(name)]:
        raise UsageError(f"{where}: it has no {', '.join(missing)}")
    metric, values = row.get("metric", "bacc"), row["values"]
    if metric not in METRICS:
        raise UsageError(f"{where}: metric {metric!r} is not one of {', '.join(METRICS)}")
    if not isinstance(values, list) or len(values) != columns:
        raise UsageError(
            f"{where}: values must be a list of {columns}, one for each protocol, null where there is none"
        )
    numbers = [None if each is None else _typed("values", each, float) for each in values]
    return Published(str(row["method"]), str(row["source"]), str(row["differs"]), metric, tuple(numbers))


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
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
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
