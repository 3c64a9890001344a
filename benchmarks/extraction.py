"""M2 and M4: an extraction against a plain loop, and against its own encoder alone. Same images, model, threads, fp32.

    python benchmarks/extraction.py --images 1500 --views 8

The plain loop is what public scripts do: a Dataset that opens an image with Pillow and transforms it, a DataLoader with
workers, `encode_image` in eager mode, one pass over the data set for each view.
"""

import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.encoder.weights import TINY
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.images.world.world import STYLES, render
from fastltssl.progress import drain
from fastltssl.show.terminal import grid, show


def make_images(folder: Path, count: int) -> None:
    """JPEG files of the embedded world, 240 pixels a side, as a folder set of 40 classes."""
    index = np.arange(count)
    for row, pixels in zip(index, render(1, index, index % 40, STYLES["mild"]), strict=True):
        path = folder / f"{row % 40:02d}" / f"{row:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((240, 240), Image.Resampling.BICUBIC).save(path, quality=90)


class Files(Dataset[torch.Tensor]):
    """What a plain loop reads: one transformed image at a time."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def plain_loop(model: Any, preprocess: Any, paths: list[Path], views: int, workers: int) -> float:
    """Seconds of a plain loop over that many views: the first as it is, the others flipped and shifted."""
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    augmented = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(side, side // 16, padding_mode="reflect")])
    began, features = time.perf_counter(), []
    for view in range(views):
        transform = preprocess if view == 0 else v2.Compose([preprocess, augmented])
        loader = DataLoader(Files(paths, transform), batch_size=64, num_workers=workers)
        with torch.inference_mode():
            features.append(torch.cat([model.encode_image(batch).cpu() for batch in loader]))
    torch.stack(features, dim=1).numpy().astype(np.float16)
    return time.perf_counter() - began


def ours(source: Any, encoder: Any, views: int, path: Path, workers: int) -> float:
    """Seconds of an extraction of as many views."""
    asked = "center" if views == 1 else f"center,weak:{views - 1}"
    began = time.perf_counter()
    drain(extract(source, encoder, parse_views(asked), path, templates="simple", workers=workers, overwrite=True))
    return time.perf_counter() - began


def encoder_only(encoder: Any, images: int, threads: int) -> float:
    """Seconds of encoding as many images that are there already, on as many lanes as an extraction uses."""
    canvas = torch.zeros(64, 3, encoder.size, encoder.size, dtype=torch.uint8)
    slabs = -(-images // 64)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as lanes:
        began = time.perf_counter()
        list(lanes.map(encoder.encode, [canvas] * slabs))
        seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return seconds * images / (slabs * 64)


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--pretrained", default=None, help="Such as none: the speed of a large model needs no weights.")
@click.option("--images", default=1500, show_default=True)
@click.option("--views", default=8, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--folder", default="cache/extraction", show_default=True, type=click.Path(path_type=Path))
def main(
    model: str, pretrained: str | None, images: int, views: int, workers: int, threads: int, repeats: int, folder: Path
) -> None:
    """Print views/s and ratios, medians over alternated repeats; the folder is removed at the end."""
    torch.set_num_threads(threads)
    shutil.rmtree(folder, ignore_errors=True)
    make_images(folder / "set", images)
    name = f"local-dir:{TINY}" if model == "tiny" else model
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    theirs.eval()
    source, encoder = open_source(f"folder:{folder / 'set'}"), load_encoder(model, pretrained)
    paths = sorted((folder / "set").glob("*/*.jpg"))
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for count in (1, views):
            seconds.setdefault(("plain loop", count), []).append(plain_loop(theirs, preprocess, paths, count, workers))
            took = ours(source, encoder, count, folder / "cache.zarr", workers)
            seconds.setdefault(("fastltssl extract", count), []).append(took)
            seconds.setdefault(("encoder alone", count), []).append(encoder_only(encoder, images * count, threads))
    median = {key: statistics.median(each) for key, each in seconds.items()}
    lines = [[name, count, f"{images * count / took:,.0f}"] for (name, count), took in median.items()]
    show(
        f"{images:,} JPEG files of 240 x 240, {model}, fp32, {threads} threads, {workers} workers, median of {repeats}"
    )
    show(grid(["way", "views", "views/s"], lines))
    for count in (1, views):
        loop, mine, alone = (median[name, count] for name in ("plain loop", "fastltssl extract", "encoder alone"))
        show(f"{count} views: {loop / mine:.2f} times the plain loop; {alone / mine:.2f} of the encoder alone")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
