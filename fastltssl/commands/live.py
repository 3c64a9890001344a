"""`fastltssl train --live`: a run through the encoder, from images; alone or as one of several processes."""

from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    left_clean,
    output_folder,
    show_config,
    show_record,
    usable_device,
)
from fastltssl.progress import drain


def center_cache(model: str, pretrained: str | None, dataset: str) -> Path:
    """Where the cache of center views is kept that a run without --cache makes."""
    from fastltssl.cache.catalogue import cache_folder
    from fastltssl.encoder.extraction import file_stem

    parts = [file_stem(dataset), file_stem(model), *([file_stem(pretrained)] if pretrained else []), "center.zarr"]
    return cache_folder() / "_".join(parts)


def run_live(
    config: Any,
    model: str | None,
    moved: dict[str, Any],
    *,
    workers: int,
    resume: bool,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
) -> None:
    """Train; `model` is that of a cache that is made first, `moved` the data set, its root and the weights."""
    from fastltssl.machine import joined
    from fastltssl.methods import configure, outside
    from fastltssl.runs import live
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import clear, new_folder
    from fastltssl.show.terminal import follow

    if resume and out is None:
        raise click.UsageError("--resume needs the folder of the run: add --out FOLDER")
    if resume and overwrite:
        raise click.UsageError("--resume goes on with what is there and --overwrite removes it: give one of them")
    method = configure(config.method, config.settings)
    live.check_method(config, method)
    ranks = joined()
    where = usable_device(device, threads)
    if model:
        _extract_center(model, Path(config.cache), moved, workers, where)
    if ranks.rank == 0:
        for note in outside(method):
            click.echo(f"note: {note}", err=True)
        show_config(config, is_json)
    cache, rows = open_rows(config.cache, where)
    folder = ranks.gather(out or (None if ranks.rank else new_folder(config)))[0]
    if resume and _is_finished(folder, config, cache, is_shown=ranks.rank == 0, is_json=is_json):
        return
    has_begun = resume and any(folder.glob("seed*.checkpoint"))
    ranks.first(lambda: output_folder(folder, overwrite or has_begun))
    if overwrite:
        ranks.first(lambda: clear(folder))
    with left_clean(folder):
        images = live.open_images(cache, where, **moved, ranks=ranks, workers=workers)
        work = live.training(config, cache, rows, images, folder)
        if ranks.rank:
            drain(work)
            return
        record = follow(work, f"{config.method} --live {config.live.mode}")
    show_record(record, is_json)


def _is_finished(folder: Path, config: Any, cache: Any, is_shown: bool, is_json: bool) -> bool:
    """Whether the folder holds this run, finished, which is then shown; a usage error where it holds another."""
    from fastltssl.runs.folder import read_record
    from fastltssl.runs.live import is_same

    if not (folder / "metrics.json").is_file():
        return False
    if not is_same(config, cache, folder):
        raise click.UsageError(f"{folder} holds another finished run. Choose another --out, or pass --overwrite")
    if is_shown:
        show_record(read_record(folder), is_json, "is finished already")
    return True


def _extract_center(model: str, path: Path, moved: dict[str, Any], workers: int, device: str) -> None:
    """A cache of center views: labels, ids, text, and the features that a method may look at before its first step."""
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction

    run_extract(Extraction(model=model, **moved, views="center", out=path, workers=workers, resume=True, device=device))
