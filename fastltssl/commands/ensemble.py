"""`fastltssl train gla --ensemble RUN`: the scores of a finished run plus the zero-shot scores of its cache."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastltssl.commands.common import (
    Job,
    note_last_step,
    output_folder,
    quoted,
    show_config,
    usable_device,
)

MOVED = ("pretrained", "dataset", "root")  # options that only matter if the run was trained through the encoder
ACCEPTED = ("method", "ensemble", "cache", "set", "workers", *Job._fields, *MOVED)  # options that --ensemble goes with


def run_ensemble(
    method: str, run: Path, cache: str | None, pairs: tuple[str, ...], moved: dict[str, Any], job: Job, workers: int
) -> None:
    """Evaluate the ensemble and write it as a run. `moved` tells where the encoder and the images are now."""
    from fastltssl.runs.config import settings_of
    from fastltssl.runs.ensemble import ensembling, planned
    from fastltssl.runs.finished import open_own_cache
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import follow, results_table, show

    _check_flags(run, job.out)
    plan = planned(method, run, settings_of(pairs), cache)
    if not plan.tuned.live and (unread := [name for name, value in moved.items() if value]):
        raise click.UsageError(f"--{unread[0]} is for a run trained with --live; {run} was trained from its cache")
    device = usable_device(job.device, job.threads or (None if plan.tuned.live else 1))
    note_last_step(plan.tuned)
    show_config(plan.config, job.is_json)
    opened = open_own_cache(run, plan.tuned, cache)
    folder = output_folder(job.out or new_folder(plan.config), job.overwrite)
    work = ensembling(plan, opened, folder, device=device, workers=workers, **moved)
    record = follow(work, f"ensemble {run.name}")
    titles = {"run_alone": f"{run.name} alone", "zero_shot_debiased_alone": "zero-shot - bias alone"}
    parts = [record | record["ensemble"][name] | {"method": title, "settings": {}} for name, title in titles.items()]
    show(results_table([*parts, record], protocol_line(record)))
    show(f"{record['ensemble']['tau']}\nwrote {folder}")
    show(f"next: fastltssl compare {quoted(run)} {quoted(folder)} --baseline {quoted(run)}")
    if job.is_json:
        click.echo(json.dumps(record))


def _check_flags(run: Path, out: Path | None) -> None:
    """A usage error for an option that would change what the run has decided."""
    context = click.get_current_context()
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if is_given and option.name not in ACCEPTED:
            raise click.UsageError(
                f"{option.opts[0]} cannot be changed with --ensemble: split, seeds, measurement and encoder are those "
                f"of {run}. Leave it out, or train that run again with it"
            )
    if out and out.resolve() == run.resolve():
        raise click.UsageError(f"--out {out} is the run itself; choose another folder")
