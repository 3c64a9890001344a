"""M12: an extraction with its cache written, over the same images decoded, viewed and encoded and then dropped.

python benchmarks/writing.py --dataset world:mild:10:5
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch

from fastltssl.cache.layout import all_blocks, chunk_rows
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract, views_of
from fastltssl.encoder.pipeline import pipeline
from fastltssl.images import open_source
from fastltssl.images.prompts import prompts
from fastltssl.images.views import View, parse_views
from fastltssl.progress import drain
from fastltssl.show.terminal import grid, show


def dropped(source: Any, encoder: Any, views: tuple[View, ...], workers: int) -> None:
    """All the work of an extraction but writing."""
    own = {name: views_of(name, views) for name in source.groups}
    shapes = {name: (len(images.ids), len(own[name]), encoder.width) for name, images in source.groups.items()}
    blocks = all_blocks(shapes, {name: chunk_rows(n, width) for name, (n, _, width) in shapes.items()})
    with pipeline(encoder.device, workers) as threads:
        threads.lanes.submit(encoder.encode_text, prompts(source.classes, "world")).result()
        for _ in threads.encoded(source, encoder, own, blocks, seed=0):
            pass


@click.command()
@click.option("--dataset", default="world:mild:10:5", show_default=True)
@click.option("--views", default="center,weak:4,strong:4", show_default=True)
@click.option("--model", default="tiny", show_default=True)
@click.option("--pretrained", default=None)
@click.option("--device", default="cpu", show_default=True)
@click.option("--pairs", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--limit", type=int)
@click.option("--folder", default="cache/writing", show_default=True, type=click.Path(path_type=Path))
def main(
    dataset: str, views: str, model: str, pretrained: str | None, device: str, pairs: int, threads: int, workers: int,
    limit: int | None, folder: Path,
) -> None:  # fmt: skip
    """Print seconds of both and the median ratio of alternated pairs; the folder is removed at the end."""
    torch.set_num_threads(threads)
    source, encoder, asked = (
        open_source(dataset, limit=limit),
        load_encoder(model, pretrained, device),
        parse_views(views),
    )
    seconds: list[list[float]] = [[], []]
    for pair in range(pairs + 1):
        began = time.perf_counter()
        dropped(source, encoder, asked, workers)
        middle = time.perf_counter()
        drain(extract(source, encoder, asked, folder, templates="world", workers=workers, overwrite=True))
        if pair:  # the first warms up
            seconds[0].append(middle - began)
            seconds[1].append(time.perf_counter() - middle)
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    ways = zip(("encoded and dropped", "cache written and closed"), seconds, strict=True)
    show(f"{dataset}, {views}, {model}, {device}, {threads} threads, {workers} workers")
    show(grid(["way", "seconds"], [[way, f"{statistics.median(each):.2f}"] for way, each in ways]))
    show(f"M12 median ratio of {pairs} alternated pairs: {ratio:.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
