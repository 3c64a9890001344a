"""What tables hold: finished runs, or a grid of methods and protocols, as a sheet to render and as lines of a CSV."""

import json
from collections.abc import Sequence
from typing import Any

from fastltssl.analysis.grid import Choice, Grid, Outcome, best_of, differences
from fastltssl.runs.record import METRICS
from fastltssl.show.names import label, protocol_line
from fastltssl.show.tables import Entry, Sheet
from fastltssl.show.terminal import spread

SHOWN = {"top1": "top-1", "bacc": "bAcc", "head": "head", "medium": "medium", "tail": "tail", "ece": "ECE"}
NAMES = SHOWN | {"gm": "GM", "hm": "HM", "worst": "worst class", "mce": "MCE"}
BELOW = "*"  # in a cell: below LP+LA


def run_sheet(records: Sequence[dict[str, Any]], minus: Sequence[dict[str, Any]], baseline: dict[str, Any]) -> Sheet:
    """Runs as rows, best balanced accuracy first; `minus` are their differences to the baseline."""
    columns = ("method", "pool", *(f"{name} %" for name in SHOWN.values()), "bAcc - baseline", "")
    rows = []
    for record, found in sorted(zip(records, minus, strict=True), key=lambda each: -each[0]["bacc"]["mean"]):
        protocol = record["protocol"]
        pool = f"{protocol['order']}, gamma {protocol['gamma_u']:g}" if protocol["m1"] else ""
        means = [record.get(name) for name in SHOWN]
        cells = ["-" if one is None else f"{one['mean']:.1f} ± {one['std']:.1f}" for one in means]
        mark = "below LP+LA" if record["is_below_la"] else ""
        last = "baseline" if found["run"] == baseline["run"] else signed(found["bacc"])
        rows.append(tuple(Entry(text) for text in (label(record), pool, *cells, last, mark)))
    return Sheet(columns, tuple(rows))


def grid_sheet(grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str) -> Sheet:
    """Methods as rows, protocols as columns, published rows of that metric under them; reasons and sources as notes."""
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    reasons = list(dict.fromkeys(one.reason for row in outcomes for one in row if one.record is None))
    rows = []
    for place, row in enumerate(outcomes):
        cells = [
            Entry("failed", str(reasons.index(one.reason) + 1))
            if one.record is None
            else Entry(spread(one.record[metric]), BELOW * one.record["is_below_la"], place in best[column])
            for column, one in enumerate(row)
        ]
        rows.append((Entry(row[0].cell.choice.label), *cells))
        if baseline is not None and row[0].cell.choice != baseline:
            rows.append((Entry(f"  minus {baseline.label}"), *(Entry(signed(one)) for one in minus[place])))
    shown = [one for one in grid.published if one.metric == metric]
    sources = list(dict.fromkeys((one.source, one.differs) for one in shown))
    marks = [chr(ord("a") + sources.index((one.source, one.differs))) for one in shown]
    published = [
        (Entry(one.method, mark), *(Entry(_as_printed(each)) for each in one.values))
        for one, mark in zip(shown, marks, strict=True)
    ]
    return Sheet(
        ("method", *grid.configs),
        tuple(rows),
        _caption(grid, outcomes, metric),
        tuple(published),
        _notes(grid, outcomes, baseline, metric, reasons, sources),
    )


def _as_printed(value: float | None) -> str:
    """A published number with its own decimals, at least one."""
    if value is None:
        return "-"
    return f"{value:g}" if value % 1 else f"{value:.1f}"


def _caption(grid: Grid, outcomes: Sequence[Sequence[Outcome]], metric: str) -> str:
    config = next(iter(grid.configs.values()))
    seeds = len(config.seeds)
    over = f"mean ± std over {seeds} seeds" if seeds > 1 else f"seed {config.seeds[0]}"
    emulated = any(one.record and one.record["emulated"] for row in outcomes for one in row)
    told = f"{config.steps} steps, lr {config.lr:g}{', emulated views' if emulated else ''}"
    return f"{grid.name} ({config.cache}): {NAMES[metric]} %, {over}, {told}"


def _notes(
    grid: Grid,
    outcomes: Sequence[Sequence[Outcome]],
    baseline: Choice | None,
    metric: str,
    reasons: Sequence[str],
    sources: Sequence[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    """What the signs mean, and the switches of each column."""
    notes = []
    records = [[one.record for one in column if one.record] for column in zip(*outcomes, strict=True)]
    for name, column in zip(grid.configs, records, strict=True):
        if column:
            protocol = column[0]["protocol"]
            line = protocol_line(column[0]).removeprefix(f"{column[0]['cache']}: ")
            notes.append((f"{name}:", line + (f", {protocol['order']} pool" if protocol["m1"] else "")))
    if baseline is not None:
        single = len(next(iter(grid.configs.values())).seeds) < 2
        interval = "one seed, so no interval" if single else "± half the 95 % interval"
        notes.append((f"minus {baseline.label}:", f"points, paired by seed, {interval}"))
    if any(record["is_below_la"] for column in records for record in column):
        notes.append((BELOW, "below LP+LA (the logit-adjusted probe) on the same labels, in balanced accuracy"))
    notes += [(str(place), reason) for place, reason in enumerate(reasons, 1)]
    notes += [(chr(ord("a") + place), f"{source}; {differs}") for place, (source, differs) in enumerate(sources)]
    if other := [f"{one.method} ({NAMES[one.metric]})" for one in grid.published if one.metric != metric]:
        notes.append(("not shown:", f"published in another metric: {', '.join(other)}"))
    return tuple(notes)


def grid_lines(
    grid: Grid, outcomes: Sequence[Sequence[Outcome]], baseline: Choice | None, metric: str
) -> list[dict[str, Any]]:
    """One line for each cell and published number, of whatever metric."""
    best, minus = best_of(outcomes, metric), differences(outcomes, baseline, metric)
    lines = []
    for place, row in enumerate(outcomes):
        for column, one in enumerate(row):
            line = {"row": one.cell.choice.label, "column": one.cell.protocol, "is_best": place in best[column]}
            line |= {"source": "", "differs": "", "reason": one.reason}
            lines.append(line | (flat(one.record, minus[place][column], metric) if one.record else {}))
    for paper in grid.published:
        named = {"row": paper.method, "source": paper.source, "differs": paper.differs}
        known = {name: value for name, value in zip(grid.configs, paper.values, strict=True) if value is not None}
        lines += [named | {"column": name, f"{paper.metric}_mean": value} for name, value in known.items()]
    return lines


def flat(record: dict[str, Any], minus: dict[str, Any] | None, metric: str = "bacc") -> dict[str, Any]:
    """A record as one line: every switch, every metric with its spread, and its difference to the baseline."""
    found = {"run": record["run"], "method": record["method"], "settings": json.dumps(record.get("settings", {}))}
    found |= {"cache": record["cache"]} | record["protocol"] | {"seeds": listed(record["seeds"])}
    for name in METRICS:
        one = record.get(name) or {}
        found |= {f"{name}_mean": one.get("mean"), f"{name}_std": one.get("std")}
    found |= {f"pseudo_{name}": value for name, value in (record["pseudo_label"] or {}).items()}
    ends = {"": "mean", "_low": "low", "_high": "high"}
    found |= {f"{metric}_difference{end}": (minus or {}).get(key) for end, key in ends.items()}
    return found | {"seconds": record["seconds"], "is_below_la": record["is_below_la"]}


def signed(one: dict[str, Any] | None) -> str:
    """A paired difference and half its interval."""
    if one is None:
        return "-"
    return f"{one['mean']:+.1f}" + ("" if one["low"] is None else f" ± {(one['high'] - one['low']) / 2:.1f}")


def listed(numbers: list[int]) -> str:
    """0-4 for consecutive numbers, else 0,3."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
