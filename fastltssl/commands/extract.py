"""`fastltssl extract`: stage one."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, counted, example, extract_line, next_of, on_device, usable_device


@click.command(epilog=example("extract --model ViT-B-16 --pretrained openai --dataset cifar100"))
@click.option("--model", required=True, help="open_clip model name, or tiny (embedded).")
@click.option("--pretrained", help="Tag, path of a local checkpoint, or none (random weights). tiny needs none.")
@click.option(
    "--dataset", required=True, help="world, folder:PATH, list:FILE.csv, wds:PATTERN, hf:NAME, imagenet, cifar100 ..."
)
@click.option("--root", type=PATH, help="Where torchvision sets are kept or downloaded to (default ./datasets).")
@click.option(
    "--views",
    default="center,weak:4,strong:4",
    show_default=True,
    help="Views of each image; fixmatch:N, finessl:N and lift:N give those of published code.",
)
@click.option(
    "--templates",
    default=None,
    help="Sets of prompts, such as simple,openai80 (default: simple, and the data set's own).",
)
@click.option("--out", type=PATH, help="Cache to write (default: cache folder / dataset_model.zarr).")
@click.option("--seed", default=0, show_default=True, help="Seed of the views.")
@click.option("--limit", type=click.IntRange(1), help="At most n images per group, evenly spaced.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option(
    "--normalise",
    type=click.Choice(["model", "dataset"]),
    default="model",
    show_default=True,
    help="Pixels by the model's own mean and deviation, or by the data set's.",
)
@click.option("--compile/--no-compile", "compiled", default=None, help="Run torch.compile (default: on a GPU).")
@click.option("--taps", help="mid (for heads in the last block), tokens@L (size and break-even of block L's tokens).")
@click.option("--trim/--no-trim", default=True, show_default=True, help="Last ViT block for the class token alone.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Decoding threads.")
@click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be decoded (default: stop at one).")
@click.option(
    "--duplicates",
    "threshold",
    default=0.999,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Cosine from which a test image counts as a near-duplicate of a training image; 1 looks for none.",
)
@click.option("--resume", is_flag=True, help="Go on where an earlier extraction stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
@on_device
@as_json
def extract(device: str, threads: int | None, threshold: float, is_json: bool, **options: Any) -> None:
    """Stage one: run the frozen encoder once over all views of a data set.

    On several GPUs or hosts: torchrun --nproc-per-node N -m fastltssl extract ...
    """
    from fastltssl.show.terminal import show

    summary = run_extract(device=usable_device(device, threads), **options)
    if summary is None:
        return
    summary["near_duplicates"] = _near_duplicates(Path(summary["path"]), threshold)
    show(next_of(Path(summary["path"])))
    if is_json:
        click.echo(json.dumps(summary))


def _near_duplicates(path: Path, threshold: float) -> int | None:
    """Look for test images among the training images; lists them beside the cache and returns their number."""
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.encoder.near_duplicates import near_duplicates, write_pairs
    from fastltssl.show.terminal import show

    if threshold >= 1:
        return None
    pairs = near_duplicates(open_cache(path), threshold)
    if pairs is None:
        show("near-duplicates: too many rows to look for them here")
    elif pairs:
        listed = path.with_name(f"{path.stem}.duplicates.csv")
        write_pairs(pairs, listed)
        first = pairs[0]
        show(
            f"near-duplicates: {len(pairs)} test images have a training image with cosine >= {threshold:g}, such as "
            f"{first.test} and {first.row} ({first.cosine:.4f})\nwrote {listed}"
        )
    return None if pairs is None else len(pairs)


def run_extract(
    model: str,
    pretrained: str | None,
    dataset: str,
    root: Path | None,
    views: str,
    templates: str | None,
    out: Path | None,
    seed: int,
    limit: int | None,
    precision: str,
    normalise: str,
    trim: bool,
    workers: int,
    skip_broken: bool,
    resume: bool,
    overwrite: bool,
    device: str,
    taps: str | None = None,
    compiled: bool | None = None,
) -> dict[str, Any] | None:
    """The summary; None in a process that torchrun started beside the first."""
    from fastltssl.cache.catalogue import cache_folder
    from fastltssl.encoder import extract as stage_one
    from fastltssl.encoder.clip import load_encoder
    from fastltssl.images import open_source, statistics
    from fastltssl.images.prompts import templates_of
    from fastltssl.images.views import parse_views
    from fastltssl.live.tokens import plan
    from fastltssl.machine import joined
    from fastltssl.show.terminal import follow, show
    from fastltssl.training.fit import drain

    parsed, tapped = parse_views(views), _taps(taps)
    ranks = joined()
    source = ranks.first(lambda: open_source(dataset, root, limit))
    load = partial(
        load_encoder, model, pretrained, device, precision,
        trim=trim, taps="mid" in tapped, compiled=device.startswith("cuda") if compiled is None else compiled,
        statistics=statistics(dataset) if normalise == "dataset" else None,
    )  # fmt: skip
    encoder = ranks.first(load)
    for note in encoder.notes if ranks.rank == 0 else ():
        click.echo(note, err=True)
    for block in (int(each.removeprefix("tokens@")) for each in tapped if each != "mid"):
        show(str(plan(source, encoder, parsed, block)))
    path = out or cache_folder() / f"{file_stem(dataset)}_{file_stem(model)}.zarr"
    templates = templates or ("world" if model == "tiny" else templates_of(dataset))
    work = stage_one.extract(
        source, encoder, parsed, path,
        templates=templates, seed=seed, workers=workers, skip_broken=skip_broken, resume=resume, overwrite=overwrite,
        ranks=ranks,
    )  # fmt: skip
    if ranks.rank:
        drain(work)
        return None
    what = f"extract (the first of {ranks.size} processes)" if ranks.size > 1 else "extract"
    summary = follow(work, extract_line, what)._asdict()
    summary["path"] = str(summary["path"])
    if lost := summary["broken"]:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        show(f"{counted(len(lost), 'image')} could not be decoded, left out: {shown}")
    if summary["images"]:
        show(
            f"{summary['images']:,} images, {summary['views']:,} views in {summary['seconds']:.1f} s "
            f"({summary['views_per_s']:,.0f} views/s, {100 * summary['waiting']:.0f} % waiting for data), "
            f"{summary['bytes'] / 2**20:.1f} MiB\nwrote {path}"
        )
    else:
        show(f"{path} is complete already")
    return summary


def _taps(text: str | None) -> list[str]:
    """The parts of --taps."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if wrong := [part for part in parts if not re.fullmatch(r"mid|tokens@\d+", part)]:
        raise click.UsageError(f"--taps {wrong[0]!r} is none of mid and tokens@L, such as mid or mid,tokens@11")
    return parts


def file_stem(name: str) -> str:
    """A model or data set as part of a file name: no kind, no folders, no ending."""
    kind, colon, rest = name.partition(":")
    name = rest if colon and kind in ("folder", "list", "wds", "hf") else name
    last = name.rstrip("/").split("/")[-1].removesuffix(".csv").removesuffix(".tar")
    return "".join(c if c.isalnum() or c in "-." else "_" for c in last)
