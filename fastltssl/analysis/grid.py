"""Methods x protocols, the table of a paper: planned, trained or read again, and compared.

Each cell is a run folder, so a grid that was stopped goes on where it was: `finished` cells are not trained again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

from fastltssl.analysis.comparison import mark_below_la
from fastltssl.analysis.pseudo_labels import Choice, run_name
from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.errors import ConfigError, FastltsslError, RunError, SplitError, UntrustedMethod
from fastltssl.functional.measures import measure
from fastltssl.methods import configure, identity
from fastltssl.progress import Work
from fastltssl.reading import known, read_yaml, typed
from fastltssl.runs.config import OPTIONS, SWITCHES, Config, as_dict
from fastltssl.runs.experiment import training_together
from fastltssl.runs.finished import read_config, read_record
from fastltssl.runs.record import METRICS, difference
from fastltssl.training.rows import Rows


@dataclass(frozen=True)
class Published:
    """A row of numbers from a paper, shown for reference only."""

    method: str
    source: str
    differs: str  # how the paper's protocol differs from those of the grid
    values: tuple[float | None, ...]  # one for each protocol
    metric: str = "bacc"


class Grid(NamedTuple):
    """The columns of a table, each a checked Config without a method, and the published rows under them."""

    name: str
    configs: dict[str, Config]  # by the name of the protocol
    published: tuple[Published, ...] = ()


class Cell(NamedTuple):
    """A method under a protocol with all seeds, and the folder of its run."""

    choice: Choice
    protocol: str
    config: Config
    folder: Path


class Outcome(NamedTuple):
    """The result of a cell: its record, or the reason why there is none."""

    cell: Cell
    record: dict[str, Any] | None
    reason: str = ""


def plan(grid: Grid, choices: Sequence[Choice], folder: Path) -> list[list[Cell]]:
    """The cells, a list for each method.

    Raises UnknownMethod or UnknownKnob, and ConfigError if two cells would have the same folder.
    """
    rows = []
    for choice in choices:
        row = []
        for protocol, shared in grid.configs.items():
            settings = shared.settings | choice.settings
            configure(choice.name, settings)  # raises
            config = dataclasses.replace(shared, method=choice.name, settings=settings)
            row.append(Cell(choice, protocol, config, folder / run_name(choice.name, choice.settings, protocol)))
        rows.append(row)
    folders = [cell.folder for row in rows for cell in row]
    if twice := [path.name for path in folders if folders.count(path) > 1]:
        raise ConfigError(f"two cells would be written to {twice[0]}; give the protocols names that differ in letters")
    return rows


def finished(cell: Cell, cache: Cache) -> dict[str, Any] | None:
    """The record of a cell that has been run; None if its folder holds no complete record.

    Raises RunError if the folder holds a run with other settings, or from other features, or of a foreign method file.
    """
    try:
        record, stored = read_record(cell.folder), as_dict(read_config(cell.folder))
    except UntrustedMethod:  # a run that somebody else made is not trained over
        raise
    except (RunError, OSError):
        return None
    wanted = as_dict(cell.config) | {"cache": stored["cache"]}  # its path may differ, its fingerprint not
    for config in (stored, wanted):
        config["method"] = identity(config["method"])
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
    shortages = _shortages(grid, cache)
    outcomes = {}
    for cell in (cell for row in cells for cell in row):
        if record := finished(cell, cache):
            outcomes[cell.folder] = Outcome(cell, record)
        elif cell.protocol in shortages:
            outcomes[cell.folder] = Outcome(cell, None, shortages[cell.protocol])
    return outcomes


def _shortages(grid: Grid, cache: Cache) -> dict[str, str]:
    """The reason for each protocol, by name, that the cache has too few rows for."""
    reasons = {}
    for name, config in grid.configs.items():
        try:
            for seed in config.seeds:
                cache.split_of(config.protocol, seed)
        except SplitError as error:
            reasons[name] = str(error)
    return reasons


def running(cells: Sequence[Cell], done: dict[Path, Outcome], cache: Cache, rows: Rows) -> Work[list[Outcome]]:
    """Train those cells of a method that are not done, protocols and seeds jointly; an outcome for each cell, in order.

    If the joint training fails, each protocol is trained alone, so that one that fails does not stop the others.
    """
    todo = [cell for cell in cells if cell.folder not in done]
    batches = [todo] if todo else []
    outcomes = dict(done)
    while batches:
        batch = batches.pop(0)
        try:
            trained = yield from _trained(batch, cache, rows)
        except Exception as error:  # whatever a method or the device raises: the other cells go on
            trained = [Outcome(cell, None, _reason(error)) for cell in batch]
            if len(batch) > 1:
                batches = [[cell] for cell in batch]
        outcomes |= {outcome.cell.folder: outcome for outcome in trained}
    return [outcomes[cell.folder] for cell in cells]


def _trained(cells: Sequence[Cell], cache: Cache, rows: Rows) -> Work[list[Outcome]]:
    work = training_together([cell.config for cell in cells], cache, rows, [cell.folder for cell in cells])
    records = yield from work
    return [Outcome(cell, record) for cell, record in zip(cells, records, strict=True)]


def _reason(error: Exception) -> str:
    """An error in one line, with its type unless the package raised it on purpose."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device: fewer --seeds, a smaller batch_u, or --device cpu"
    text = " ".join(str(error).split())
    return text if isinstance(error, FastltsslError) else f"{type(error).__name__}: {text}"


def marked(outcomes: Sequence[Sequence[Outcome]]) -> list[list[Outcome]]:
    """The outcomes with "is_below_la" in each record, see comparison.mark_below_la."""
    records = iter(mark_below_la([outcome.record for row in outcomes for outcome in row if outcome.record]))
    return [[outcome._replace(record=next(records)) if outcome.record else outcome for outcome in row]
            for row in outcomes]  # fmt: skip


def best_of(outcomes: Sequence[Sequence[Outcome]], metric: str) -> list[set[int]]:
    """The indices of the best methods in each column; several if they are equal when rounded to one decimal."""
    sign = measure(metric).sign
    best = []
    for column in zip(*outcomes, strict=True):
        records = {row: outcome.record for row, outcome in enumerate(column)}
        means = {
            row: sign * float(f"{record[metric]['mean']:.1f}")
            for row, record in records.items()
            if record and record.get(metric)
        }
        best.append({row for row, mean in means.items() if mean == max(means.values())})
    return best


def differences(
    outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str
) -> list[list[dict[str, Any] | None]]:
    """Each cell minus the baseline's under the same protocol, paired by seed; None where one of the two is missing."""
    base = next((row for row in outcomes if row[0].cell.choice == baseline), None)

    def minus(row: Sequence[Outcome], column: int) -> dict[str, Any] | None:
        if base is None or row is base:
            return None
        ours, theirs = ((cells[column].record or {}).get(metric) for cells in (row, base))
        return difference(ours, theirs) if ours and theirs else None

    return [[minus(row, column) for column in range(len(row))] for row in outcomes]


def as_json(grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str) -> dict[str, Any]:
    """The table as one object: the records of cells, the reasons of those without a record, and the published rows."""
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    results, failed = [], []
    for index, row in enumerate(outcomes):
        for column, outcome in enumerate(row):
            names = {"row": outcome.cell.choice.label, "column": outcome.cell.protocol}
            if outcome.record is None:
                failed.append(names | {"reason": outcome.reason})
            else:
                compared = {"is_best": index in best[column], "difference": minus[index][column]}
                results.append(names | compared | outcome.record)
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
    """The keys of a grid's file that are not options of `train`."""

    protocols: list[dict[str, Any]]
    published: list[Published] | None


def read_grid(file: Path, flags: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file: options of `train` for all columns, `protocols`, and optional `published` numbers.

    Flags replace options of the file; a whole number as seeds is a count. Raises ConfigError for an unknown key, and
    for a value that no run can have.
    """
    where = str(file)
    options = known(read_yaml(file) or {}, OPTIONS - {"method", "live", "ensemble"} | {*_File.__annotations__}, where)
    own = typed(options, _File, where)
    common = {name: value for name, value in options.items() if name not in _File.__annotations__}
    if not own.get("protocols"):
        raise ConfigError(f"{where}: protocols must be a list such as - {{name: reversed, order: reversed}}")
    configs: dict[str, Config] = {}
    for number, column in enumerate(own["protocols"], 1):
        switches = known(column, SWITCHES | {"name"}, f"{where}, protocol {number}")
        name = str(switches.pop("name", "")).strip()
        if not name or name in configs:
            raise ConfigError(f"{where}, protocol {number}: it needs a name of its own, not {name!r}")
        layers = ({"method": ""} | common | switches, flags)
        try:
            configs[name] = Config.of(*layers, where=f"{where}, protocol {name}", counted=True)
        except (SplitError, ConfigError) as error:
            message = str(error).removeprefix(f"{where}, protocol {name}: ")
            raise ConfigError(f"{where}, protocol {name}: {message}") from None
    rows = own.get("published") or []
    for number, row in enumerate(rows, 1):
        _check_published(row, len(configs), f"{where}, published row {number}")
    return Grid(file.stem, configs, tuple(rows))


def _check_published(row: Published, columns: int, where: str) -> None:
    """Raise ConfigError if a published row lacks a source, has an unknown metric, or not a number for each column."""
    if missing := [name for name in ("method", "source", "differs", "values") if not getattr(row, name)]:
        raise ConfigError(f"{where}: it has no {', '.join(missing)}")
    if row.metric not in METRICS:
        raise ConfigError(f"{where}: metric {row.metric!r} is not one of {', '.join(METRICS)}")
    if len(row.values) != columns:
        raise ConfigError(
            f"{where}: values must be a list of {columns}, one for each protocol, null where there is none"
        )
