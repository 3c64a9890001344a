"""The content of tables: finished runs, or a grid of methods and protocols, as a sheet and as rows of a CSV."""

import json
from collections.abc import Sequence
from typing import Any

from fastltssl.analysis.comparison import listed
from fastltssl.analysis.grid import Choice, Grid, Outcome, best_of, differences
from fastltssl.functional.measures import MAIN, measure
from fastltssl.runs.record import METRICS
from fastltssl.show.names import label, pool_of, protocol_line
from fastltssl.show.tables import Entry, Sheet
from fastltssl.show.terminal import spread

SHOWN = {name: measure(name).title for name in MAIN}
BELOW = "*"  # the mark of a cell whose method ends below LP+LA


def run_sheet(records: Sequence[dict[str, Any]], minus: Sequence[dict[str, Any]], baseline: dict[str, Any]) -> Sheet:
    """Runs as rows, best balanced accuracy first; `minus` has the difference of each run to the baseline."""
    columns = ("method", "pool", *(f"{title} %" for title in SHOWN.values()), "bAcc - baseline", "")
    rows = []
    for record, difference in sorted(zip(records, minus, strict=True), key=lambda pair: -pair[0]["bacc"]["mean"]):
        pool = f"{pool_of(record)}, gamma {record['protocol']['gamma_u']:g}" if pool_of(record) else ""
        cells = [spread(record.get(name), least_seeds=1) for name in SHOWN]
        mark = "below LP+LA" if record["is_below_la"] else ""
        last = "baseline" if difference["run"] == baseline["run"] else signed(difference["bacc"])
        rows.append(tuple(Entry(text) for text in (label(record), pool, *cells, last, mark)))
    return Sheet(columns, tuple(rows))


def grid_sheet(grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str) -> Sheet:
    """Methods as rows and protocols as columns, with the published rows of that metric under them.

    The notes explain failed cells and name the sources of published numbers.
    """
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    reasons = list(dict.fromkeys(cell.reason for row in outcomes for cell in row if cell.record is None))
    rows = []
    for index, row in enumerate(outcomes):
        entries = [
            Entry("failed", str(reasons.index(cell.reason) + 1))
            if cell.record is None
            else Entry(spread(cell.record[metric]), BELOW * cell.record["is_below_la"], index in best[column])
            for column, cell in enumerate(row)
        ]
        choice = row[0].cell.choice
        rows.append((Entry(choice.label), *entries))
        if baseline is not None and choice != baseline:
            rows.append((Entry(f"  minus {baseline.label}"), *(Entry(signed(value)) for value in minus[index])))
    papers = [paper for paper in grid.published if paper.metric == metric]
    sources = list(dict.fromkeys((paper.source, paper.differs) for paper in papers))
    published = [
        (
            Entry(paper.method, _letter(sources.index((paper.source, paper.differs)))),
            *(Entry(_as_printed(value)) for value in paper.values),
        )
        for paper in papers
    ]
    return Sheet(
        ("method", *grid.configs),
        tuple(rows),
        _caption(grid, outcomes, metric),
        tuple(published),
        _notes(grid, outcomes, baseline, metric, reasons, sources),
    )


def _letter(index: int) -> str:
    """The mark of a published source: a, b, c, ..."""
    return chr(ord("a") + index)


def _as_printed(value: float | None) -> str:
    """A published number with the decimals it was published with, at least one."""
    if value is None:
        return "-"
    return f"{value:g}" if value % 1 else f"{value:.1f}"


def _caption(grid: Grid, outcomes: Sequence[Sequence[Outcome]], metric: str) -> str:
    config = next(iter(grid.configs.values()))
    seeds = len(config.seeds)
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else f"seed {config.seeds[0]}"
    is_emulated = any(cell.record and cell.record["emulated"] for row in outcomes for cell in row)
    training = f"{config.steps} steps, lr {config.lr:g}{', emulated views' if is_emulated else ''}"
    return f"{grid.name} ({config.cache}): {measure(metric).title} %, {over}, {training}"


def _notes(
    grid: Grid,
    outcomes: Sequence[Sequence[Outcome]],
    baseline: Choice | None,
    metric: str,
    reasons: Sequence[str],
    sources: Sequence[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    """The protocol of each column, and what the marks in the cells mean."""
    notes = []
    columns = [[cell.record for cell in column if cell.record] for column in zip(*outcomes, strict=True)]
    for name, records in zip(grid.configs, columns, strict=True):
        if records:
            pool = pool_of(records[0])
            line = protocol_line(records[0]).removeprefix(f"{records[0]['cache']}: ")
            notes.append((f"{name}:", line + (f", {pool} pool" if pool else "")))
    if baseline is not None:
        single = len(next(iter(grid.configs.values())).seeds) < 2
        interval = "one seed, so no interval" if single else "± half the 95 % interval"
        notes.append((f"minus {baseline.label}:", f"points, paired by seed, {interval}"))
    if any(record["is_below_la"] for records in columns for record in records):
        notes.append((BELOW, "below LP+LA (the logit-adjusted probe) on the same labels, in balanced accuracy"))
    notes += [(str(number), reason) for number, reason in enumerate(reasons, 1)]
    notes += [(_letter(index), f"{source}; {differs}") for index, (source, differs) in enumerate(sources)]
    others = [paper for paper in grid.published if paper.metric != metric]
    if names := [f"{paper.method} ({measure(paper.metric).title})" for paper in others]:
        notes.append(("not shown:", f"published in another metric: {', '.join(names)}"))
    return tuple(notes)


def grid_lines(
    grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str
) -> list[dict[str, Any]]:
    """The grid as CSV rows: one for each cell, and one for each published number of any metric."""
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    lines = []
    for index, row in enumerate(outcomes):
        for column, outcome in enumerate(row):
            cell = outcome.cell
            line = {"row": cell.choice.label, "column": cell.protocol, "is_best": index in best[column]}
            line |= {"source": "", "differs": "", "reason": outcome.reason}
            lines.append(line | (flat(outcome.record, minus[index][column], metric) if outcome.record else {}))
    for paper in grid.published:
        named = {"row": paper.method, "source": paper.source, "differs": paper.differs}
        known = {name: value for name, value in zip(grid.configs, paper.values, strict=True) if value is not None}
        lines += [named | {"column": name, f"{paper.metric}_mean": value} for name, value in known.items()]
    return lines


def flat(record: dict[str, Any], minus: dict[str, Any] | None, metric: str = "bacc") -> dict[str, Any]:
    """A record as one CSV row: settings, protocol, mean and std of every metric, and its difference to the baseline."""
    line = {"run": record["run"], "method": record["method"], "settings": json.dumps(record.get("settings", {}))}
    line |= {"cache": record["cache"]} | record["protocol"] | {"seeds": listed(record["seeds"])}
    for name in METRICS:
        summary = record.get(name) or {}
        line |= {f"{name}_mean": summary.get("mean"), f"{name}_std": summary.get("std")}
    line |= {f"pseudo_{name}": value for name, value in (record["pseudo_label"] or {}).items()}
    ends = {"": "mean", "_low": "low", "_high": "high"}
    line |= {f"{metric}_difference{end}": (minus or {}).get(key) for end, key in ends.items()}
    return line | {"seconds": record["seconds"], "is_below_la": record["is_below_la"]}


def signed(difference: dict[str, Any] | None) -> str:
    """A difference paired by seed, with its sign, ± half of its 95 % interval."""
    if difference is None:
        return "-"
    low, high = difference["low"], difference["high"]
    return f"{difference['mean']:+.1f}" + ("" if low is None else f" ± {(high - low) / 2:.1f}")
