"""The grid of `fastltssl compare --protocol-grid`: trained, shown, written."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import Files, export, output_folder, parse_methods, quoted, tell


def run_grid(
    file: Path, baseline: str | None, files: Files, device: str, is_json: bool, methods: str, metric: str | None,
    out: Path | None, **flags: Any,
) -> bool:  # fmt: skip
    """Train and show a grid; returns whether every cell has a result."""
    from fastltssl.analysis.grid import Choice, as_json, plan, read_grid, settled
    from fastltssl.runs.config import Config
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.terminal import show

    grid = read_grid(file, flags)
    choices = [Choice(*method) for method in parse_methods(methods)]
    base, metric = _baseline(baseline, choices), _metric(metric)
    cache, rows = open_rows(next(iter(grid.configs.values())).cache, device)
    folder = output_folder(out or new_folder(Config(method="grid", cache=grid.name)), overwrite=True)
    planned = plan(grid, choices, folder)
    done = settled(grid, planned, cache)
    tell(_first_line(grid, len(choices), done, folder))
    outcomes = _outcomes(planned, done, cache, rows)
    _show(grid, outcomes, base, metric, files)
    failed = sum(outcome.record is None for row in outcomes for outcome in row)
    show(_last_lines(folder, failed))
    if is_json:
        click.echo(json.dumps(as_json(grid, outcomes, base, metric) | {"out": str(folder)}))
    return not failed


def _outcomes(planned: list[Any], done: dict[Path, Any], cache: Any, rows: Any) -> list[Any]:
    """Train the grid, a method after the other, and report progress and failures; returns an outcome for each cell."""
    from fastltssl.analysis.grid import marked, running
    from fastltssl.show.terminal import follow

    left_out = {outcome.cell.protocol: outcome.reason for outcome in done.values() if outcome.record is None}
    for protocol, reason in left_out.items():
        tell(f"{protocol}: left out: {reason}")
    outcomes = []
    for number, cells in enumerate(planned, 1):
        name = cells[0].choice.label
        outcomes.append(follow(running(cells, done, cache, rows), f"{name} ({number} of {len(planned)})"))
        for outcome in outcomes[-1]:
            if outcome.record is None and outcome.cell.folder not in done:
                tell(f"{name}, {outcome.cell.protocol}: failed: {outcome.reason}")
    return marked(outcomes)


def _show(grid: Any, outcomes: list[Any], baseline: Any, metric: str, files: Files) -> None:
    """Print the table and its notes, and write it to the files."""
    from fastltssl.show.sheets import grid_lines, grid_sheet
    from fastltssl.show.tables import note_lines, terminal
    from fastltssl.show.terminal import show

    sheet = grid_sheet(grid, outcomes, baseline, metric)
    show(sheet.caption)
    show(terminal(sheet))
    show("\n" + "\n".join(note_lines(sheet)))
    export(files, sheet, grid_lines(grid, outcomes, baseline, metric))


def _first_line(grid: Any, methods: int, done: dict[Path, Any], folder: Path) -> str:
    seeds = len(next(iter(grid.configs.values())).seeds)
    count = sum(outcome.record is not None for outcome in done.values())
    return (
        f"{grid.name}: {methods} methods x {len(grid.configs)} protocols x {seeds} seeds, {count} of "
        f"{methods * len(grid.configs)} cells are there already; if stopped, go on with --out {folder}"
    )


def _last_lines(folder: Path, failed: int) -> str:
    wrote = f"wrote {folder}" if any(folder.glob("*/metrics.json")) else "nothing was written"
    if not failed:
        return f"{wrote}\nnext: fastltssl compare {quoted(folder)}/*"
    return (
        f"{wrote}; {failed} cells failed\nnext: mend what the notes say, then the same command with --out {folder} "
        "trains what is missing"
    )


def _baseline(text: str | None, choices: list[Any]) -> Any:
    """The method of the grid that the others are compared with; None if none is asked for."""
    if text is None:
        return None
    choice = type(choices[0])(*parse_methods(text)[0])
    if choice not in choices:
        labels = ", ".join(known.label for known in choices)
        raise click.UsageError(f"--baseline {text!r} is not among --methods: {labels}")
    return choice


def _metric(name: str | None) -> str:
    """The metric of that name, or balanced accuracy; a usage error if there is no such metric."""
    from fastltssl.runs.record import METRICS

    if name not in (None, *METRICS):
        raise click.UsageError(f"--metric {name!r} is not one of {', '.join(METRICS)}")
    return name or "bacc"
