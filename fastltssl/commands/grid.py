"""The grid of `fastltssl compare --protocol-grid`: trained, shown, written."""

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import Files, export, output_folder, parse_methods


def run_grid(
    file: Path,
    baseline: str | None,
    files: Files,
    device: str,
    is_json: bool,
    methods: str,
    metric: str | None,
    out: Path | None,
    **flags: Any,
) -> bool:
    """Train and show a grid; whether every cell has a result."""
    from fastltssl.analysis import grid as protocol_grid
    from fastltssl.analysis.grid import read_grid
    from fastltssl.runs import experiment
    from fastltssl.show import terminal as report

    grid = read_grid(file, flags)
    choices = [protocol_grid.Choice(*each) for each in parse_methods(methods)]
    base, metric = _baseline(baseline, choices), _metric(metric)
    cache, rows = experiment.open_rows(next(iter(grid.configs.values())).cache, device)
    folder = out or _new_folder(grid.name)
    plan = protocol_grid.plan(grid, choices, folder)
    done = protocol_grid.settled(grid, plan, cache)
    output_folder(folder, overwrite=True)
    click.echo(_first_line(grid, len(choices), done, folder), err=True)
    outcomes = _outcomes(plan, done, cache, rows)
    _show(grid, outcomes, base, metric, files)
    failed = sum(one.record is None for row in outcomes for one in row)
    with contextlib.suppress(OSError):
        folder.rmdir()  # only where nothing was written
    report.show(_last_lines(folder, failed))
    if is_json:
        click.echo(json.dumps(protocol_grid.as_json(grid, outcomes, base, metric) | {"out": str(folder)}))
    return not failed


def _outcomes(plan: list[Any], done: dict[Path, Any], cache: Any, rows: Any) -> list[Any]:
    """What became of every cell, progress and failures told on the way, semi-supervised ones below LP+LA marked."""
    from fastltssl.analysis import grid as protocol_grid
    from fastltssl.show import terminal as report
    from fastltssl.show.names import mark_below_la

    for name, reason in {one.cell.protocol: one.reason for one in done.values() if one.record is None}.items():
        click.echo(f"{name}: left out: {reason}", err=True)
    outcomes = []
    for place, cells in enumerate(plan, 1):
        name = cells[0].choice.label
        work = protocol_grid.running(cells, done, cache, rows)
        outcomes.append(report.follow(work, f"{name} ({place} of {len(plan)})"))
        for one in outcomes[-1]:
            if one.record is None and one.cell.folder not in done:
                click.echo(f"{name}, {one.cell.protocol}: failed: {one.reason}", err=True)
    marked = iter(mark_below_la([one.record for row in outcomes for one in row if one.record]))
    return [[one._replace(record=next(marked)) if one.record else one for one in row] for row in outcomes]


def _show(grid: Any, outcomes: list[Any], baseline: Any, metric: str, files: Files) -> None:
    """Print the table and its notes, and write it to the files."""
    from fastltssl.show import sheets, tables
    from fastltssl.show import terminal as report

    sheet = sheets.grid_sheet(grid, outcomes, baseline, metric)
    report.show(sheet.caption)
    report.show(tables.terminal(sheet))
    report.show("\n" + "\n".join(tables.note_lines(sheet)))
    export(files, sheet, sheets.grid_lines(grid, outcomes, baseline, metric))


def _new_folder(name: str) -> Path:
    from fastltssl.runs import folder as runs
    from fastltssl.runs.config import Config

    return runs.new_folder(Config(method="grid", cache=name))


def _first_line(grid: Any, methods: int, done: dict[Path, Any], folder: Path) -> str:
    seeds, there = len(next(iter(grid.configs.values())).seeds), sum(one.record is not None for one in done.values())
    return (
        f"{grid.name}: {methods} methods x {len(grid.configs)} protocols x {seeds} seeds, {there} of "
        f"{methods * len(grid.configs)} cells are there already; if stopped, go on with --out {folder}"
    )


def _last_lines(folder: Path, failed: int) -> str:
    wrote = f"wrote {folder}" if folder.exists() else "nothing was written"
    if not failed:
        return f"{wrote}\nnext: fastltssl compare {folder}/*"
    return (
        f"{wrote}; {failed} cells failed\nnext: mend what the notes say, then the same command with --out {folder} "
        "trains what is missing"
    )


def _baseline(text: str | None, choices: list[Any]) -> Any:
    """The method of the grid that the others are compared with."""
    if text is None:
        return None
    found = type(choices[0])(*parse_methods(text)[0])
    if found not in choices:
        raise click.UsageError(f"--baseline {text!r} is not among --methods: {', '.join(one.label for one in choices)}")
    return found


def _metric(name: str | None) -> str:
    from fastltssl.runs.record import METRICS

    if name not in (None, *METRICS):
        raise click.UsageError(f"--metric {name!r} is not one of {', '.join(METRICS)}")
    return name or "bacc"
