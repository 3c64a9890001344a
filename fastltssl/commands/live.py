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
    resolved: Any,
    method: Any,
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
    from fastltssl import methods
    from fastltssl.machine import joined
    from fastltssl.runs import experiment, live
    from fastltssl.runs import folder as runs
    from fastltssl.runs.config import check
    from fastltssl.show.terminal import follow

    if resume and out is None:
        raise click.UsageError("--resume needs the folder of the run: add --out FOLDER")
    if resume and overwrite:
        raise click.UsageError("--resume goes on with what is there and --overwrite removes it: give one of them")
    resolved = check(resolved)
    live.check_method(resolved, method)
    ranks = joined()
    where = usable_device(device, threads)
    if model:
        _extract_center(model, Path(resolved.cache), moved, workers, where)
    if ranks.rank == 0:
        for note in methods.outside(method):
            click.echo(f"note: {note}", err=True)
        show_config(resolved, is_json)
    opened, rows = experiment.open_rows(resolved.cache, where)
    folder = ranks.gather(out or (None if ranks.rank else runs.new_folder(resolved)))[0]
    if resume and (folder / "metrics.json").is_file():
        if not live.is_same(resolved, opened, folder):
            raise click.UsageError(f"{folder} holds another finished run. Choose another --out, or pass --overwrite")
        if ranks.rank == 0:
            show_record(runs.read_record(folder), is_json, "is finished already")
        return
    has_begun = resume and any(folder.glob("seed*.checkpoint"))
    ranks.first(lambda: output_folder(folder, overwrite or has_begun))
    if overwrite:
        ranks.first(lambda: runs.clear(folder))
    with left_clean(folder):
        images = live.open_images(opened, where, **moved, ranks=ranks, workers=workers)
        work = live.training(resolved, opened, rows, images, folder)
        if ranks.rank:
            drain(work)
            return
        record = follow(work, f"{resolved.method} --live {resolved.live.mode}")
    show_record(record, is_json)


def _extract_center(model: str, path: Path, moved: dict[str, Any], workers: int, device: str) -> None:
    """A cache of center views: labels, ids, text, and the features that a method may look at before its first step."""
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction

    run_extract(Extraction(model=model, **moved, views="center", out=path, workers=workers, resume=True, device=device))
