"""`fastltssl compare`: finished runs side by side, or a grid of methods and protocols as the table of a paper."""

import json
import shlex
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np

from fastltssl.commands.common import (
    PATH,
    Files,
    as_json,
    counted,
    example,
    export,
    on_device,
    usable_device,
)

LONGEST = 160  # characters of runs named in full in a next line
FILE = click.File("w", lazy=True)
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
    csv_file: TextIO | None,
    markdown_file: TextIO | None,
    latex_file: TextIO | None,
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
    files: Files = {"csv": csv_file, "markdown": markdown_file, "latex": latex_file}
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
    """Finished runs in one table."""
    from fastltssl.runs import folder as runs
    from fastltssl.show.names import mark_below_la, protocol_line
    from fastltssl.show.sheets import flat, run_sheet
    from fastltssl.show.terminal import results_table, show

    folders, records = _read(run_folders, baseline)
    records = mark_below_la(records)
    first = records[0] if baseline is None else runs.read_record(baseline)
    differences = [
        _difference(first, record, _unpaired(baseline or folders[0], first, folder, record))
        for folder, record in zip(folders, records, strict=True)
    ]
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
        order = [index for members in by_protocol.values() for index in members]
        _show_differences(first, baseline or folders[0], [(folders[i], records[i], differences[i]) for i in order])
    sheet = run_sheet(records, differences, first)
    lines = [
        flat(record | {"run": str(folder)}, found["bacc"])
        for folder, record, found in zip(folders, records, differences, strict=True)
    ]
    export(files, sheet, lines)
    for file in files.values():
        if file is not None:
            show(f"wrote {file.name}")
    names = " ".join(shlex.quote(str(folder)) for folder in folders)
    where = names if len(names) < LONGEST else f"{shlex.quote(str(folders[0].parent))}/*"
    show(f"compared {counted(len(records), 'run')}\nnext: fastltssl report {where}")
    if is_json:
        click.echo(
            json.dumps({"results": records, "baseline": str(baseline or folders[0]), "differences": differences})
        )


def _read(run_folders: tuple[Path, ...], baseline: Path | None) -> tuple[list[Path], list[dict[str, Any]]]:
    """The finished runs among the folders, the baseline added where it is not one of them."""
    from fastltssl.errors import RunError
    from fastltssl.runs import folder as runs

    wanted = list(run_folders)
    if baseline is not None and baseline.resolve() not in [folder.resolve() for folder in wanted]:
        wanted.insert(0, baseline)
    folders, records = [], []
    for folder in wanted:
        try:
            records.append(runs.read_record(folder))
            folders.append(folder)
        except RunError as error:
            if folder == baseline:
                raise
            click.echo(f"skipped: {error}", err=True)
    if not records:
        raise RunError("none of these is a finished run")
    return folders, records


def _unpaired(base: Path, first: dict[str, Any], folder: Path, record: dict[str, Any]) -> str:
    """Why a run cannot be paired with the baseline seed by seed; empty where it can."""
    from fastltssl.show.sheets import listed

    if record["seeds"] != first["seeds"]:
        return f"seeds {listed(record['seeds'])} against {listed(first['seeds'])}"
    for switch in ("eval", "report"):
        ours, theirs = (one["protocol"].get(switch) for one in (record, first))
        if ours != theirs:
            return f"--{switch} {ours} against {theirs}"
    if first["protocol"].get("eval") == "all":
        return "" if record["cache_fingerprint"] == first["cache_fingerprint"] else "other caches, tested on all rows"
    for seed in first["seeds"]:
        try:
            with np.load(base / "rows.npz") as ours, np.load(folder / "rows.npz") as theirs:
                if not np.array_equal(ours[f"seed{seed}.test.ids"], theirs[f"seed{seed}.test.ids"]):
                    return f"other test images (seed {seed})"
        except (OSError, KeyError, ValueError):
            return "its rows.npz, or the baseline's, cannot be read"
    return ""


def _difference(first: dict[str, Any], record: dict[str, Any], why: str) -> dict[str, Any]:
    """Each metric of a run minus that of the baseline, in points, paired by seed; null where there is no pair."""
    from fastltssl.runs.record import difference
    from fastltssl.show.sheets import SHOWN

    found: dict[str, Any] = {"run": record["run"], "unpaired": why or None}
    for name in SHOWN:
        ours, theirs = record.get(name), first.get(name)
        found[name] = None if why or ours is None or theirs is None else difference(ours, theirs)
    return found


def _show_differences(
    first: dict[str, Any], base: Path, rows: list[tuple[Path, dict[str, Any], dict[str, Any]]]
) -> None:
    from fastltssl.show.names import label
    from fastltssl.show.sheets import SHOWN, signed
    from fastltssl.show.terminal import grid, show

    seeds = len(first["seeds"])
    spread = f"± half the 95 % interval over {seeds} paired seeds" if seeds > 1 else "one seed, so no interval"
    lines = []
    for folder, record, found in rows:
        if folder.resolve() != base.resolve():
            cells = [signed(found[name]) for name in SHOWN]
            why = f"not paired: {found['unpaired']}" if found["unpaired"] else ""
            lines.append([folder.name, label(record), *cells, why])
    show(f"minus the baseline {base.name} ({label(first)}), points, {spread}")
    show(grid(["run", "method", *SHOWN.values(), ""], lines))


def _group_line(record: dict[str, Any]) -> str:
    """How many classes each group has, where the groups are not thirds: with counts, whole groups can be empty."""
    from fastltssl.show.sheets import listed

    sizes, name = record.get("group_sizes"), record["protocol"].get("groups")
    if not sizes or name == "thirds":
        return ""
    limits = {"head": " (> 100 labelled)", "tail": " (< 20)"} if name == "counts" else {}
    parts = [f"{group}{limits.get(group, '')} {listed(sorted(set(each)))}" for group, each in sizes.items()]
    return f"classes in each group ({name}): {', '.join(parts)}"
