"""`fastltssl train`: stage two."""

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    as_json,
    example,
    on_device,
    output_folder,
    train_line,
    train_options,
    usable_device,
)


@click.command(epilog=example("train ulfine --cache cifar100_ViT-B-16 --n1 150 --m1 300 --gamma-l 20 --gamma-u 20"))
@click.argument("method")
@click.option("--cache", "cache_name", help="Cache to train from (a path, or a name in the cache folder).")
@train_options
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of these options; flags win."
)
@click.option("--out", type=PATH, help="Run folder (default runs/TIME-METHOD-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a run folder that is there.")
@on_device
@as_json
def train(
    method: str,
    config: Path | None,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """Stage two: train a method from a cache, every seed jointly."""
    import yaml

    from fastltssl import experiment, methods, runs
    from fastltssl.config import resolve
    from fastltssl.report import follow, protocol_line, results_table, show
    from fastltssl.train import is_trained

    resolved = resolve(method, config, flags)
    chosen = methods.configure(method, resolved.settings)
    notes = methods.outside(chosen) + ([] if is_trained(chosen) else [f"{method} has no loss: nothing is trained"])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    where = usable_device(device, threads or 1)
    show("config: " + json.dumps(runs.as_dict(resolved)) if is_json else yaml.safe_dump(
        runs.as_dict(resolved), sort_keys=False, default_flow_style=None, width=140
    ).rstrip())  # fmt: skip
    opened, rows = experiment.open_rows(resolved.cache, where)
    folder = output_folder(out or runs.new_folder(resolved), overwrite)
    try:
        record = follow(experiment.training(resolved, opened, rows, folder), train_line, method)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was written
        raise
    show(results_table([record], protocol_line(record)))
    show(f"wrote {folder}\nnext: fastltssl compare {folder} OTHER_RUN...")
    if is_json:
        click.echo(json.dumps(record))
