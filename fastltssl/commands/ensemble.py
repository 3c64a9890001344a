"""`fastltssl train gla --ensemble RUN`: the scores of a finished run and the zero-shot scores of its cache, added."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastltssl.commands.common import left_clean, output_folder, say_which_step, show_config, usable_device

MOVED = ("pretrained", "dataset", "root")  # read where the run was trained live
TAKEN = (
    "method", "ensemble", "cache", "set", "out", "overwrite", "workers", "device", "threads", "is_json", *MOVED,
)  # fmt: skip


def run_ensemble(
    method: str, run: Path, cache: str | None, pairs: tuple[str, ...], moved: dict[str, Any], *, workers: int,
    out: Path | None, overwrite: bool, device: str, threads: int | None, is_json: bool,
) -> None:  # fmt: skip
    """Measure the ensemble and write it as a run; `moved` says where encoder and images are now."""
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.runs.config import settings_of
    from fastltssl.runs.ensemble import ensembling, planned
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import follow, results_table, show

    _check_flags(run, out)
    plan = planned(method, run, settings_of(pairs), cache)
    if not plan.tuned.live and (unread := [name for name, value in moved.items() if value]):
        raise click.UsageError(f"--{unread[0]} is for a run trained with --live; {run} was trained from its cache")
    where = usable_device(device, threads or (None if plan.tuned.live else 1))
    say_which_step(plan.tuned)
    show_config(plan.config, is_json)
    opened = open_cache(plan.config.cache)
    folder = output_folder(out or new_folder(plan.config), overwrite)
    with left_clean(folder):
        work = ensembling(plan, opened, folder, device=where, workers=workers, **moved)
        record = follow(work, f"ensemble {run.name}")
    summed = record["ensemble"]
    alone = [("run_alone", f"{run.name} alone"), ("zero_shot_debiased_alone", "zero-shot - bias alone")]
    parts = [record | summed[name] | {"method": title, "settings": {}} for name, title in alone]
    show(results_table([*parts, record], protocol_line(record)))
    show(f"{summed['tau']}\nwrote {folder}\nnext: fastltssl compare {run} {folder} --baseline {run}")
    if is_json:
        click.echo(json.dumps(record))


def _check_flags(run: Path, out: Path | None) -> None:
    """Usage errors for options that would change what the run decides."""
    context = click.get_current_context()
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if is_given and option.name not in TAKEN:
            raise click.UsageError(
                f"{option.opts[0]} cannot be changed with --ensemble: split, seeds, measurement and encoder are those "
                f"of {run}. Leave it out, or train that run again with it"
            )
    if out and out.resolve() == run.resolve():
        raise click.UsageError(f"--out {out} is the run itself; choose another folder")
