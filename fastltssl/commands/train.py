"""`fastltssl train`: stage two."""

import os
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    LIVE_OPTIONS,
    PATH,
    TRAIN_OPTIONS,
    WORKERS,
    Job,
    as_json,
    example,
    on_device,
    output_folder,
    show_config,
    show_record,
    tell,
    usable_device,
    with_options,
    with_trust,
)


@click.command(epilog=example("train ulfine --cache cifar100_ViT-B-16 --n1 150 --m1 300 --gamma-l 20 --gamma-u 20"))
@click.argument("method", required=False)
@click.option("--cache", help="Cache to train from (a path, or a name in the cache folder).")
@with_options(TRAIN_OPTIONS)
@with_options(LIVE_OPTIONS)
@click.option("--ensemble", type=PATH, metavar="RUN", help="With gla: add this run's scores, nothing is trained.")
@click.option("--model", help="With --live and no --cache: the encoder, such as ViT-B-16.")
@click.option("--pretrained", help="With --live: tag or checkpoint of the encoder, where it is not found by its name.")
@click.option("--dataset", help="With --live: the data set, where the images of the cache have moved.")
@click.option("--root", type=PATH, help="With --live: where torchvision keeps its files (default datasets).")
@click.option("--workers", default=2, show_default=True, type=WORKERS, help="Threads that decode ahead.")
@click.option("--resume", is_flag=True, help="With --live: go on with the run in --out, or begin it.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of these options; flags win."
)
@click.option("--out", type=PATH, help="Run folder (default runs/TIME-METHOD-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a run folder that is there.")
@on_device
@with_trust
@as_json
def train(
    method: str | None, config: Path | None, ensemble: Path | None, model: str | None, pretrained: str | None,
    dataset: str | None, root: Path | None, workers: int, resume: bool, out: Path | None, overwrite: bool, device: str,
    threads: int | None, is_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Stage two: train a method from a cache, every seed jointly.

    METHOD is a name (see `fastltssl methods`) or the path of a .py file; --config FILE may name it, too.
    With --live it trains through the encoder, from images, one seed after the other.
    On several GPUs or hosts: torchrun --nproc-per-node N -m fastltssl train METHOD --live MODE ...
    """
    from fastltssl.runs.config import Config, read_options

    stored = read_options(config) if config else {}
    method = method or _method_of(stored, config)
    if not method:
        raise click.UsageError("name a METHOD, such as ulfine, or a --config that holds one; see `fastltssl methods`")
    moved = {"pretrained": pretrained, "dataset": dataset, "root": root}
    job = Job(out, overwrite, device, threads, is_json)
    if ensemble:
        from fastltssl.commands.ensemble import run_ensemble

        return run_ensemble(method, ensemble, flags["cache"], flags["set"], moved, job, workers)
    is_new = bool(model and dataset and not flags["cache"])
    if is_new:
        from fastltssl.commands.live import center_cache

        flags["cache"] = str(center_cache(str(model), pretrained, str(dataset)))
    asked = Config.of(stored, flags | {"method": method}, where=str(config or ""))
    if asked.ensemble:
        raise click.UsageError(f"{config} is of an ensemble: fastltssl train {method} --ensemble {asked.ensemble}")
    if asked.live:
        from fastltssl.commands.live import run_live

        if model and not is_new:
            raise click.UsageError(f"--model {model} is for a new cache; {asked.cache} has its own. Leave it out")
        return run_live(asked, model if is_new else None, moved, job, workers=workers, resume=resume)
    _refuse_live_options({"model": model, "resume": resume} | moved)
    _run_cached(asked, job)


def _method_of(stored: dict[str, Any], config: Path | None) -> str | None:
    """The method that a file of options names. A method file is looked for beside it, as in a run folder, first.

    Raises UntrustedMethod where its code is not known on this machine.
    """
    from fastltssl.methods import check_trusted
    from fastltssl.runs.finished import own_method

    if config is None or not str(stored.get("method")).endswith(".py"):
        return stored.get("method")
    file = own_method(config.parent, str(stored["method"]))
    check_trusted(file, config)
    return str(file)


def _refuse_live_options(options: dict[str, Any]) -> None:
    """A usage error for options that only have a meaning with --live."""
    if given := [name for name, value in options.items() if value]:
        raise click.UsageError(f"--{given[0]} belongs to training through the encoder: add --live MODE")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError("torchrun is for training through the encoder (--live MODE); a cache needs one process")


def _run_cached(config: Any, job: Job) -> None:
    """Train from the cache, with progress, and show the record."""
    from fastltssl.methods import configure, outside
    from fastltssl.runs.experiment import open_rows, training
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.terminal import follow
    from fastltssl.types import is_trained

    method = configure(config.method, config.settings)
    for note in outside(method) + ([] if is_trained(method) else [f"{config.method} has no loss: nothing is trained"]):
        tell(f"note: {note}")
    cache, rows = open_rows(config.cache, usable_device(job.device, job.threads or 1))
    show_config(config, job.is_json)
    folder = output_folder(job.out or new_folder(config), job.overwrite)
    record = follow(training(config, cache, rows, folder), config.method)
    show_record(record, job.is_json)
