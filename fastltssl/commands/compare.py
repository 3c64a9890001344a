"""`fastltssl compare`: finished runs side by side, or a grid of methods and protocols as the table of a paper."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    Files,
    as_json,
    checked_files,
    counted,
    example,
    export,
    on_device,
    quoted_runs,
    tell,
    usable_device,
)

FILE = click.Path(allow_dash=True, path_type=Path)
YAML = click.Path(exists=True, dir_okay=False, path_type=Path)
GRID_OPTIONS = ("methods", "seeds", "cache", "steps", "metric", "out")


@click.command(
    epilog=example("compare runs/* --baseline runs/probe")
    + "\n  fastltssl compare --protocol-grid configs/grids/world.yaml --methods probe,fixmatch,ulfine --seeds 5"
)
@click.argument("run_folders", nargs=-1, type=PATH, metavar="[RUN...]")
@click.option("--baseline", help="Run (default: the first), or method of a grid, to pair the others with.")
@click.option("--csv", "csv_file", type=FILE, help="Write a line for each (- is stdout).")
@click.option("--markdown", "markdown_file", type=FILE, help="Write the table (- is stdout).")
@click.option("--latex", "latex_file", type=FILE, help="Write it for LaTeX's booktabs.")
@click.option("--protocol-grid", "grid_file", type=YAML, help="YAML: train's options, protocols.")
@click.option("--methods", help="Of the grid: probe,fixmatch:tau=1:tau_u=1")
@click.option("--seeds", help="Of the grid: 5 (means 0-4), 0-2 or 0,3.")
@click.option("--cache", help="Of the grid, in place of the file's.")
@click.option("--steps", type=int, help="Of the grid, in place of the file's.")
@click.option("--metric", help="Of the grid: bacc (default), top1, tail, ece ...")
@click.option("--out", type=PATH, help="Of the grid; one that is there goes on.")
@on_device
@as_json
def compare(
    run_folders: tuple[Path, ...],
    baseline: str | None,
    grid_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    latex_file: Path | None,
    device: str,
    threads: int | None,
    is_json: bool,
    **options: Any,
) -> None:
    """Put finished runs into one table, best balanced accuracy first.

    Where runs share seeds and test images, their differences to the baseline are paired by seed, and a 95 % interval of
    the mean over the seeds (Student's t) is given. With --protocol-grid methods x protocols are trained, and shown
    beside published numbers; what was stopped goes on with --out FOLDER.
    """
    files = checked_files(csv=csv_file, markdown=markdown_file, latex=latex_file)
    if grid_file is None:
        if given := [name for name in GRID_OPTIONS if options[name] is not None]:
            raise click.UsageError(f"--{given[0]} goes with --protocol-grid FILE")
        if not run_folders:
            raise click.UsageError("name finished runs, such as runs/*, or --protocol-grid FILE --methods A,B")
        return _runs(run_folders, Path(baseline) if baseline else None, files, is_json)
    if run_folders:
        raise click.UsageError(f"--protocol-grid trains its own runs; leave out {run_folders[0]}")
    if not options["methods"]:
        raise click.UsageError("name the rows of the grid with --methods, such as probe,fixmatch,ulfine")
    from fastltssl.commands.grid import run_grid

    where = usable_device(device, threads or 1)
    is_whole = run_grid(grid_file, baseline, files, where, is_json, **options)
    if not is_whole:
        click.get_current_context().exit(1)


def _runs(run_folders: tuple[Path, ...], baseline: Path | None, files: Files, is_json: bool) -> None:
    """Compare finished runs: a table for each protocol, the differences to the baseline, and the files asked for."""
    from fastltssl.analysis.comparison import compared
    from fastltssl.show.names import protocol_line
    from fastltssl.show.sheets import flat, run_sheet
    from fastltssl.show.terminal import results_table, show

    comparison = compared(run_folders, baseline)
    for reason in comparison.skipped:
        tell(f"skipped: {reason}")
    folders, records, differences, *_ = comparison
    by_protocol: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_protocol.setdefault(protocol_line(record), []).append(index)
    for line, members in by_protocol.items():
        members.sort(key=lambda index: -records[index]["bacc"]["mean"])
        show(results_table([records[index] for index in members], line))
        if text := _group_line(records[members[0]]):
            show(text)
        show("")
    if len(records) > 1:
        _show_differences(comparison, [index for members in by_protocol.values() for index in members])
    rows = [
        flat(record | {"run": str(folder)}, difference["bacc"])
        for folder, record, difference in zip(folders, records, differences, strict=True)
    ]
    export(files, run_sheet(records, differences, comparison.baseline_record), rows)
    for file in files.values():
        if file is not None:
            show(f"wrote {file}")
    show(f"compared {counted(len(records), 'run')}\nnext: fastltssl report {quoted_runs(folders)}")
    if is_json:
        click.echo(json.dumps(comparison.as_dict()))


def _show_differences(comparison: Any, order: list[int]) -> None:
    """Print the differences of the runs to the baseline, in the given order of their indices."""
    from fastltssl.show.names import label
    from fastltssl.show.sheets import SHOWN, signed
    from fastltssl.show.terminal import grid, show

    baseline, seeds = comparison.baseline, len(comparison.baseline_record["seeds"])
    spread = f"± half the 95 % interval over {seeds} paired seeds" if seeds > 1 else "one seed, so no interval"
    rows = []
    for index in order:
        folder, difference = comparison.folders[index], comparison.differences[index]
        if folder.resolve() != baseline.resolve():
            cells = [signed(difference[name]) for name in SHOWN]
            reason = f"not paired: {difference['unpaired']}" if difference["unpaired"] else ""
            rows.append([folder.name, label(comparison.records[index]), *cells, reason])
    show(f"minus the baseline {baseline.name} ({label(comparison.baseline_record)}), points, {spread}")
    show(grid(["run", "method", *SHOWN.values(), ""], rows))


def _group_line(record: dict[str, Any]) -> str:
    """The number of classes in each group if the groups are not thirds: groups by counts may be empty."""
    from fastltssl.analysis.comparison import listed

    sizes, name = record.get("group_sizes"), record["protocol"].get("groups")
    if not sizes or name == "thirds":
        return ""
    limits = {"head": " (> 100 labelled)", "tail": " (< 20)"} if name == "counts" else {}
    parts = [f"{group}{limits.get(group, '')} {listed(sorted(set(counts)))}" for group, counts in sizes.items()]
    return f"classes in each group ({name}): {', '.join(parts)}"
