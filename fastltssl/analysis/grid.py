"""Methods x protocols, the table of a paper: planned, trained or read again, and compared; no printing here.

Every cell is a run folder, so a grid that was stopped goes on where it was: `finished` cells are not trained again.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

from fastltssl.analysis.pseudo_labels import Choice
from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.cache.splits import long_tailed
from fastltssl.errors import ConfigError, FastltsslError, RunError, SplitError
from fastltssl.functional.measures import measure
from fastltssl.methods import configure
from fastltssl.progress import Work
from fastltssl.reading import known, read_yaml, typed
from fastltssl.runs.config import OPTIONS, SWITCHES, Config, as_dict
from fastltssl.runs.experiment import training_together
from fastltssl.runs.folder import read_config, read_record
from fastltssl.runs.record import METRICS, difference
from fastltssl.training.rows import Rows


@dataclass(frozen=True)
class Published:
    """A row of numbers from a paper: reference only."""

    method: str
    source: str
    differs: str  # in what its protocol is another than the column's
    values: tuple[float | None, ...]  # one a protocol
    metric: str = "bacc"


class Grid(NamedTuple):
    """The columns of a table, each a checked Config without a method, and what stands beside them."""

    name: str
    configs: dict[str, Config]  # by the name of the protocol
    published: tuple[Published, ...] = ()


class Cell(NamedTuple):
    """One method under one protocol, every seed, and the run folder it goes to."""

    choice: Choice
    protocol: str
    config: Config
    folder: Path


class Outcome(NamedTuple):
    """What became of a cell: its record, or the reason why there is none."""

    cell: Cell
    record: dict[str, Any] | None
    reason: str = ""


def plan(grid: Grid, choices: Sequence[Choice], folder: Path) -> list[list[Cell]]:
    """The cells, one list a method. Raises UnknownMethod or UnknownKnob, and ConfigError where folders would clash."""
    rows = []
    for choice in choices:
        row = []
        for name, config in grid.configs.items():
            settings = config.settings | choice.settings
            configure(choice.name, settings)  # raises
            named = "-".join([Path(choice.name).stem, *(f"{k}={v}" for k, v in choice.settings.items()), name])
            own = folder / re.sub(r"[^\w.=-]", "_", named)
            row.append(Cell(choice, name, dataclasses.replace(config, method=choice.name, settings=settings), own))
        rows.append(row)
    folders = [cell.folder for row in rows for cell in row]
    if twice := [each.name for each in folders if folders.count(each) > 1]:
        raise ConfigError(f"two cells would be written to {twice[0]}; give the protocols names that differ in letters")
    return rows


def finished(cell: Cell, cache: Cache) -> dict[str, Any] | None:
    """The record of a cell that has been run; None where its folder has no whole one.

    Raises RunError where the folder holds a run with other settings or from other features.
    """
    try:
        record, stored = read_record(cell.folder), as_dict(read_config(cell.folder))
    except (RunError, OSError):
        return None
    wanted = as_dict(cell.config) | {"cache": stored["cache"]}  # may have moved: its fingerprint decides
    differ = [f"{key} {stored.get(key)}, now {wanted[key]}" for key in wanted if stored.get(key) != wanted[key]]
    if record["cache_fingerprint"] != fingerprint(cache):
        differ.append(f"features of cache {record['cache_fingerprint']}, now {fingerprint(cache)}")
    if differ:
        raise RunError(f"{cell.folder} holds another run ({'; '.join(differ)}). Remove it, or choose another --out")
    return record | {"run": str(cell.folder)}


def settled(grid: Grid, cells: Sequence[Sequence[Cell]], cache: Cache) -> dict[Path, Outcome]:
    """The outcomes that need no training, by run folder: finished cells, and protocols that the cache cannot serve.

    Raises RunError as `finished` does, before anything is trained.
    """
    short = _shortages(grid, cache)
    found = {}
    for cell in (cell for row in cells for cell in row):
        if record := finished(cell, cache):
            found[cell.folder] = Outcome(cell, record)
        elif cell.protocol in short:
            found[cell.folder] = Outcome(cell, None, short[cell.protocol])
    return found


def _shortages(grid: Grid, cache: Cache) -> dict[str, str]:
    """Why the cache cannot serve a protocol, by its name; nothing for those it can."""
    labels = {name: group.labels for name, group in cache.groups.items()}
    found = {}
    for name, config in grid.configs.items():
        try:
            for seed in config.seeds:
                long_tailed(labels, len(cache.classes), config.protocol, seed)
        except SplitError as error:
            found[name] = str(error)
    return found


def running(cells: Sequence[Cell], done: dict[Path, Outcome], cache: Cache, rows: Rows) -> Work[list[Outcome]]:
    """Train what is not done of one method, protocols and seeds jointly; an outcome for each cell, in order.

    Where the joint training fails, each protocol is trained alone, so that one that cannot be run leaves the others.
    """
    todo = [cell for cell in cells if cell.folder not in done]
    parts = [todo] if todo else []
    outcomes = dict(done)
    while parts:
        part = parts.pop(0)
        try:
            trained = yield from _trained(part, cache, rows)
        except Exception as error:  # whatever a method or the device raises: the other cells go on
            trained = [Outcome(cell, None, _reason(error)) for cell in part]
            if len(part) > 1:
                parts = [[cell] for cell in part]
        outcomes |= {one.cell.folder: one for one in trained}
    return [outcomes[cell.folder] for cell in cells]


def _trained(cells: Sequence[Cell], cache: Cache, rows: Rows) -> Work[list[Outcome]]:
    work = training_together([cell.config for cell in cells], cache, rows, [cell.folder for cell in cells])
    records = yield from work
    return [Outcome(cell, record) for cell, record in zip(cells, records, strict=True)]


def _reason(error: Exception) -> str:
    """One line; the kind of the error too where it is not one of ours."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device: fewer --seeds, a smaller batch_u, or --device cpu"
    text = " ".join(str(error).split())
    return text if isinstance(error, FastltsslError) else f"{type(error).__name__}: {text}"


def best_of(outcomes: Sequence[Sequence[Outcome]], metric: str) -> list[set[int]]:
    """The places of the best methods in each column; several where one decimal does not tell them apart."""
    sign = measure(metric).sign
    found = []
    for column in zip(*outcomes, strict=True):
        records = {place: one.record for place, one in enumerate(column) if one.record and one.record.get(metric)}
        means = {place: sign * float(f"{record[metric]['mean']:.1f}") for place, record in records.items()}
        found.append({place for place, mean in means.items() if mean == max(means.values())})
    return found


def differences(
    outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str
) -> list[list[dict[str, Any] | None]]:
    """Each cell minus the baseline's under the same protocol, paired by seed; None where one of the two is missing."""
    base = next((row for row in outcomes if row[0].cell.choice == baseline), None)

    def minus(row: Sequence[Outcome], column: int) -> dict[str, Any] | None:
        if base is None or row is base:
            return None
        ours, theirs = ((of[column].record or {}).get(metric) for of in (row, base))
        return difference(ours, theirs) if ours and theirs else None

    return [[minus(row, column) for column in range(len(row))] for row in outcomes]


def as_json(grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str) -> dict[str, Any]:
    """The table as one object: a record for each cell that has one, the reasons of the others, the papers' rows."""
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    results, failed = [], []
    for place, row in enumerate(outcomes):
        for column, one in enumerate(row):
            named = {"row": one.cell.choice.label, "column": one.cell.protocol}
            if one.record is None:
                failed.append(named | {"reason": one.reason})
            else:
                results.append(
                    named | {"is_best": place in best[column], "difference": minus[place][column]} | one.record
                )
    return {
        "grid": grid.name,
        "metric": metric,
        "baseline": baseline and baseline.label,
        "columns": list(grid.configs),
        "results": results,
        "failed": failed,
        "published": [dataclasses.asdict(row) for row in grid.published],
    }


class _File(TypedDict, total=False):
    """What a grid's file holds beside the options of `train`."""

    protocols: list[dict[str, Any]]
    published: list[Published] | None


def read_grid(file: Path, flags: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file: options of `train` for all, `protocols` as columns, maybe `published` numbers.

    Flags are over the file; a whole number as seeds is a count. Raises ConfigError on an unknown key, and on a value
    that no run can have.
    """
    where = str(file)
    options = known(read_yaml(file) or {}, OPTIONS - {"method", "live", "ensemble"} | {*_File.__annotations__}, where)
    own = typed(options, _File, where)
    common = {name: value for name, value in options.items() if name not in _File.__annotations__}
    if not own.get("protocols"):
        raise ConfigError(f"{where}: protocols must be a list such as - {{name: reversed, order: reversed}}")
    configs: dict[str, Config] = {}
    for place, column in enumerate(own["protocols"], 1):
        switches = known(column, SWITCHES | {"name"}, f"{where}, protocol {place}")
        name = str(switches.pop("name", "")).strip()
        if not name or name in configs:
            raise ConfigError(f"{where}, protocol {place}: it needs a name of its own, not {name!r}")
        layers = ({"method": ""} | common | switches, flags)
        try:
            configs[name] = Config.of(*layers, where=f"{where}, protocol {name}", counted=True)
        except (SplitError, ConfigError) as error:
            named = str(error).removeprefix(f"{where}, protocol {name}: ")
            raise ConfigError(f"{where}, protocol {name}: {named}") from None
    rows = own.get("published") or []
    for place, row in enumerate(rows, 1):
        _check_published(row, len(configs), f"{where}, published row {place}")
    return Grid(file.stem, configs, tuple(rows))


def _check_published(row: Published, columns: int, where: str) -> None:
    """Raise ConfigError where a row of a paper has no source, an unknown metric, or not one number a column."""
    if missing := [name for name in ("method", "source", "differs", "values") if not getattr(row, name)]:
        raise ConfigError(f"{where}: it has no {', '.join(missing)}")
    if row.metric not in METRICS:
        raise ConfigError(f"{where}: metric {row.metric!r} is not one of {', '.join(METRICS)}")
    if len(row.values) != columns:
        raise ConfigError(
            f"{where}: values must be a list of {columns}, one for each protocol, null where there is none"
        )
