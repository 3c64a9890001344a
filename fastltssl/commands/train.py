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
    live_line,
    live_options,
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
@live_options
@click.option("--ensemble", type=PATH, metavar="RUN", help="With gla: add this run's scores, nothing is trained.")
@click.option("--model", help="With --live and no --cache: the encoder, such as ViT-B-16.")
@click.option("--pretrained", help="With --live: tag or checkpoint of the encoder, where it is not found by its name.")
@click.option("--dataset", help="With --live: the data set, where the images of the cache have moved.")
@click.option("--root", type=PATH, help="With --live: where torchvision keeps its files (default datasets).")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Threads that decode ahead.")
@click.option("--resume", is_flag=True, help="With --live: go on from the checkpoints in --out.")
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
    ensemble: Path | None,
    model: str | None,
    pretrained: str | None,
    dataset: str | None,
    root: Path | None,
    workers: int,
    resume: bool,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """Stage two: train a method from a cache, every seed jointly.

    With --live it trains through the encoder, from images, one seed after the other.
    On several GPUs or hosts: torchrun --nproc-per-node N -m fastltssl train METHOD --live MODE ...
    """
    import yaml

    from fastltssl import experiment, live, methods, runs
    from fastltssl.config import resolve
    from fastltssl.ranks import ALONE, joined
    from fastltssl.report import follow, protocol_line, results_table, show
    from fastltssl.train import drain, is_trained

    if ensemble:
        from fastltssl.commands.ensemble import run_ensemble

        moved = {"pretrained": pretrained, "dataset": dataset, "root": root}
        return run_ensemble(
            method, ensemble, cache_name=flags["cache_name"], pairs=flags["set_"], moved=moved, workers=workers,
            out=out, overwrite=overwrite, device=device, threads=threads, is_json=is_json,
        )  # fmt: skip
    if flags["live_mode"] and not flags["cache_name"] and model and dataset:
        flags["cache_name"] = str(_center_views(model, pretrained, dataset, root, workers, device, threads))
    resolved = resolve(method, config, flags)
    if resolved.ensemble:
        raise click.UsageError(f"{config} is of an ensemble: fastltssl train gla --ensemble {resolved.ensemble}")
    _check_flags(resolved, {"--model": model, "--resume": resume, "--dataset": dataset}, resume and out is None)
    chosen = methods.configure(method, resolved.settings)
    mode = resolved.live and resolved.live.mode
    ranks = joined() if mode else ALONE
    where = usable_device(device, threads or (None if mode else 1))
    if ranks.rank == 0:
        notes = methods.outside(chosen) + ([] if is_trained(chosen) else [f"{method} has no loss: nothing is trained"])
        for note in notes:
            click.echo(f"note: {note}", err=True)
        show("config: " + json.dumps(runs.as_dict(resolved)) if is_json else yaml.safe_dump(
            runs.as_dict(resolved), sort_keys=False, default_flow_style=None, width=140
        ).rstrip())  # fmt: skip
    opened, rows = experiment.open_rows(resolved.cache, where)
    folder = ranks.first(lambda: output_folder(out or runs.new_folder(resolved), overwrite or resume))
    try:
        if mode:
            images = live.open_images(opened, where, pretrained, dataset, root, ranks, workers)
            work = live.training(resolved, opened, rows, images, folder)
            if ranks.rank:
                drain(work)
                return
            record = follow(work, live_line, f"{method} --live {mode}")
        else:
            record = follow(experiment.training(resolved, opened, rows, folder), train_line, method)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was written
        raise
    show(results_table([record], protocol_line(record)))
    show(f"wrote {folder}\nnext: fastltssl compare {folder} OTHER_RUN...")
    if is_json:
        click.echo(json.dumps(record))


def _check_flags(resolved: Any, of_live: dict[str, Any], is_lost: bool) -> None:
    """Usage errors for options that belong to --live, and for --resume without the folder to resume."""
    given = [name for name, value in of_live.items() if value]
    if given and resolved.live is None:
        raise click.UsageError(f"{given[0]} belongs to training through the encoder: add --live MODE")
    if is_lost:
        raise click.UsageError("--resume needs the folder of the run: add --out FOLDER")


def _center_views(
    model: str, pretrained: str | None, dataset: str, root: Path | None, workers: int, device: str, threads: int | None
) -> Path:
    """A cache of center views: labels, ids, text, and the features that a method may look at before its first step."""
    from fastltssl.cache import cache_folder
    from fastltssl.commands.extract import file_stem, run_extract

    path = cache_folder() / f"{file_stem(dataset)}_{file_stem(model)}_center.zarr"
    run_extract(
        model=model, pretrained=pretrained, dataset=dataset, root=root, views="center", templates=None, out=path,
        seed=0, limit=None, precision="auto", normalise="model", trim=True, workers=workers, skip_broken=False,
        resume=True, overwrite=False, device=usable_device(device, threads),
    )  # fmt: skip
    return path
