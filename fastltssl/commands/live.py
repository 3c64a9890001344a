"""`fastltssl train --live`: a run that trains through the encoder, from images, in one process or several."""

from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import Job, output_folder, show_config, show_record, tell, usable_device
from fastltssl.progress import drain


def center_cache(model: str, pretrained: str | None, dataset: str) -> Path:
    """The path of the cache of center views that a run without --cache extracts first."""
    from fastltssl.cache.catalogue import cache_folder
    from fastltssl.encoder.extraction import file_stem

    parts = [file_stem(dataset), file_stem(model), *([file_stem(pretrained)] if pretrained else []), "center.zarr"]
    return cache_folder() / "_".join(parts)


def run_live(config: Any, model: str | None, moved: dict[str, Any], job: Job, *, workers: int, resume: bool) -> None:
    """Train through the encoder.

    With a `model` the cache of the config is extracted first. `moved` holds the options --dataset, --root and
    --pretrained, which tell where the images and the weights are.
    """
    from fastltssl.machine import joined
    from fastltssl.methods import configure, outside
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import new_folder
    from fastltssl.runs.live.experiment import check_trainable, open_images, training
    from fastltssl.show.terminal import follow

    if resume and job.out is None:
        raise click.UsageError("--resume needs the folder of the run: add --out FOLDER")
    if resume and job.overwrite:
        raise click.UsageError("--resume goes on with what is there and --overwrite removes it: give one of them")
    method = configure(config.method, config.settings)
    check_trainable(config, method)
    ranks = joined()
    device = usable_device(job.device, job.threads)
    if model:
        _extract_center(model, Path(config.cache), moved, workers, device)
    if ranks.rank == 0:
        for note in outside(method):
            tell(f"note: {note}")
        show_config(config, job.is_json)
    cache, rows = open_rows(config.cache, device)
    folder = ranks.gather(job.out or (None if ranks.rank else new_folder(config)))[0]
    if resume and _is_finished(folder, config, cache, is_shown=ranks.rank == 0, is_json=job.is_json):
        return
    has_begun = resume and any(folder.glob("seed*.checkpoint"))
    ranks.first(lambda: None if ranks.rank else _claim(folder, job.overwrite, has_begun))
    images = open_images(cache, device, **moved, ranks=ranks, workers=workers)
    work = training(config, cache, rows, images, folder)
    if ranks.rank:
        drain(work)
        return
    record = follow(work, f"{config.method} --live {config.live.mode}")
    show_record(record, job.is_json)


def _claim(folder: Path, overwrite: bool, has_begun: bool) -> None:
    """Keep other processes out of the run folder, and with --overwrite remove the run that it holds."""
    from fastltssl.runs.folder import clear

    output_folder(folder, overwrite or has_begun)
    if overwrite:
        clear(folder)


def _is_finished(folder: Path, config: Any, cache: Any, is_shown: bool, is_json: bool) -> bool:
    """Whether the folder holds this run, finished; it is then printed. A usage error if it holds another run."""
    from fastltssl.runs.finished import read_record
    from fastltssl.runs.live.experiment import is_same

    if not (folder / "metrics.json").is_file():
        return False
    if not is_same(config, cache, folder):
        raise click.UsageError(f"{folder} holds another finished run. Choose another --out, or pass --overwrite")
    if is_shown:
        show_record(read_record(folder), is_json, "is finished already")
    return True


def _extract_center(model: str, path: Path, moved: dict[str, Any], workers: int, device: str) -> None:
    """Extract a cache of center views.

    It holds labels, ids and text features, and the features that a method may use to initialise its parameters.
    """
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction

    run_extract(Extraction(model=model, **moved, views="center", out=path, workers=workers, resume=True, device=device))
