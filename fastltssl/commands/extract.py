"""`fastltssl extract`: stage one."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, WORKERS, as_json, counted, example, next_of, on_device, usable_device

# An option that is not given is None, and takes the default of the field of Extraction by its name.


@click.command(epilog=example("extract --model ViT-B-16 --pretrained openai --dataset cifar100"))
@click.option("--model", required=True, help="open_clip model name, or tiny (embedded).")
@click.option("--pretrained", help="Tag, path of a local checkpoint, or none (random weights). tiny needs none.")
@click.option(
    "--dataset", required=True, help="world, folder:PATH, list:FILE.csv, wds:PATTERN, hf:NAME, imagenet, cifar100 ..."
)
@click.option("--root", type=PATH, help="Where torchvision sets are kept or downloaded to (default ./datasets).")
@click.option(
    "--views",
    help="Views of each image (default center,weak:4,strong:4); fixmatch:N, finessl:N and lift:N "
    "give those of published code.",
)
@click.option("--templates", help="Sets of prompts, such as simple,openai80 (default: simple, and the data set's own).")
@click.option("--out", type=PATH, help="Cache to write (default: cache folder / dataset_model.zarr).")
@click.option("--seed", type=int, help="Seed of the views (default 0).")
@click.option("--limit", type=click.IntRange(1), help="At most n images per group, evenly spaced.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="(default auto: bf16 on a GPU)")
@click.option(
    "--exif",
    type=click.Choice(["ignore", "apply"]),
    help="EXIF orientation of images: ignore, as published pipelines do (default), or apply (turn them upright).",
)
@click.option(
    "--normalise",
    type=click.Choice(["model", "dataset"]),
    help="Pixels by the model's own mean and deviation (default), or by the data set's.",
)
@click.option("--compile/--no-compile", "compiled", default=None, help="Run torch.compile (default: on a GPU).")
@click.option("--taps", help="mid (for heads in the last block), tokens@L (size and break-even of block L's tokens).")
@click.option("--trim/--no-trim", default=None, help="Last ViT block for the class token alone (default yes).")
@click.option("--workers", type=WORKERS, help="Decoding threads (default 2).")
@click.option(
    "--skip-broken", is_flag=True, default=None, help="Leave out images that cannot be decoded (default: stop at one)."
)
@click.option(
    "--duplicates",
    "threshold",
    default=0.999,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Cosine from which a test image counts as a near-duplicate of a training image; 1 looks for none.",
)
@click.option("--resume", is_flag=True, default=None, help="Go on where an earlier extraction stopped.")
@click.option("--overwrite", is_flag=True, default=None, help="Replace a cache that is there.")
@on_device
@as_json
def extract(device: str, threads: int | None, threshold: float, is_json: bool, **options: Any) -> None:
    """Stage one: run the frozen encoder once over all views of a data set.

    On several GPUs or hosts: torchrun --nproc-per-node N -m fastltssl extract ...
    """
    from fastltssl.encoder.extraction import Extraction
    from fastltssl.show.terminal import show

    given = {name: value for name, value in options.items() if value is not None}
    summary = run_extract(Extraction(device=usable_device(device, threads), **given))
    if summary is None:
        return
    summary["near_duplicates"] = _near_duplicates(Path(summary["path"]), threshold)
    show(next_of(Path(summary["path"])))
    if is_json:
        click.echo(json.dumps(summary))


def run_extract(extraction: Any) -> dict[str, Any] | None:
    """Run an Extraction with progress and print its summary; returns the summary.

    Of several processes that torchrun started, only the first prints and returns one, the others return None.
    """
    from fastltssl.encoder.extract import orientation_notes
    from fastltssl.encoder.extraction import extracting, opened
    from fastltssl.errors import first_few
    from fastltssl.live.tokens import plan_block
    from fastltssl.machine import joined
    from fastltssl.progress import drain
    from fastltssl.show.terminal import follow, show

    ranks = joined()
    source, encoder = opened(extraction, ranks)
    for block in extraction.token_blocks:
        show(str(plan_block(source, encoder, extraction.views, block)))
    work = extracting(extraction, source, encoder, ranks)
    if ranks.rank:
        drain(work)
        return None
    what = f"extract (the first of {ranks.size} processes)" if ranks.size > 1 else "extract"
    summary = follow(work, what)._asdict()
    summary["path"] = str(summary["path"])
    if broken := summary["broken"]:
        show(f"{counted(len(broken), 'image')} could not be decoded, left out: {first_few(broken)}")
    if summary["images"]:
        show(
            f"{summary['images']:,} images, {summary['views']:,} views in {summary['seconds']:.1f} s "
            f"({summary['views_per_s']:,.0f} views/s, {100 * summary['waiting']:.0f} % waiting for data), "
            f"{summary['bytes'] / 2**20:.1f} MiB\nwrote {extraction.path}"
        )
    else:
        show(f"{extraction.path} is complete already")
    for note in (*source.notes, *orientation_notes(source)):  # again, as hours may have passed
        show(f"note: {note}")
    return summary


def _near_duplicates(path: Path, threshold: float) -> int | None:
    """Look for test images that are also training images, and write a list of them next to the cache.

    Returns their number; None if the search was left out.
    """
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
