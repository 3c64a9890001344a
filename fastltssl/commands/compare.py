"""`fastltssl compare`: finished runs side by side."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, example


@click.command(epilog=example("compare runs/*"))
@click.argument("run_folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@as_json
def compare(run_folders: tuple[Path, ...], is_json: bool) -> None:
    """Put finished runs into one table, best balanced accuracy first."""
    from fastltssl import runs
    from fastltssl.report import mark_below_la, protocol_line, results_table, show

    records = []
    for folder in run_folders:
        try:
            records.append(runs.read_record(folder))
        except runs.RunError as error:
            click.echo(f"skipped: {error}", err=True)
    if not records:
        raise runs.RunError("none of these is a finished run")
    records = mark_below_la(records)
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_protocol.setdefault(protocol_line(record), []).append(record)
    for line, rows in by_protocol.items():
        show(results_table(sorted(rows, key=lambda row: -row["bacc"]["mean"]), line))
        show("")
    show(f"compared {len(records)} runs")
    if is_json:
        click.echo(json.dumps({"results": records}))
