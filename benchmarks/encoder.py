"""M1 and M3: our encoder against open_clip's eager `encode_image`, and against the matrix products of the same run.

    python benchmarks/encoder.py --model ViT-B-32 --pretrained none

Same architecture, images, precision and threads; ours computes the class token alone in its last block.
"""

import contextlib
import statistics
import time
from collections.abc import Callable

import click
import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastltssl.encoder.clip import DTYPES, load_encoder
from fastltssl.encoder.weights import TINY
from fastltssl.show.terminal import grid, show


def seconds(work: Callable[[], torch.Tensor], repeats: int) -> float:
    """Of one call, the mean over repeats; waits for the device."""
    began = time.perf_counter()
    for _ in range(repeats):
        result = work()
    result.flatten()[0].item()
    return (time.perf_counter() - began) / repeats


def gemm_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of one square matrix product."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds(lambda: a @ a, 2)
    return 2 * size**3 / statistics.median(seconds(lambda: a @ a, 3) for _ in range(5))


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--pretrained", default=None)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Alternated measurements, of which the median counts.")
@click.option("--calls", default=3, show_default=True, help="Batches in each.")
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--compile/--no-compile", "compiled", default=False, show_default=True, help="Ours through torch.compile."
)
def main(
    model: str, pretrained: str | None, device: str, precision: str, batch: int, repeats: int, calls: int, threads: int,
    compiled: bool,
) -> None:  # fmt: skip
    """Print images/s of both, the ratio, and ours as a share of what matrix products allow."""
    torch.set_num_threads(threads)
    ours = load_encoder(model, pretrained, device, precision, compiled=compiled)
    name = f"local-dir:{TINY}" if model == "tiny" else model
    theirs = open_clip.create_model(name, pretrained=None if pretrained in (None, "none") else pretrained).eval()
    theirs.to(device)
    dtype = DTYPES[ours.provenance["precision"]]
    canvas = torch.zeros(batch, 3, ours.size, ours.size, dtype=torch.uint8, device=device)
    pixels = torch.zeros(batch, 3, ours.size, ours.size, device=device)
    casting = torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext()

    def eager() -> torch.Tensor:
        with torch.inference_mode(), casting:
            return theirs.encode_image(pixels)

    with FlopCounterMode(display=False) as flops, torch.inference_mode():
        theirs.encode_image(pixels[:1])
    times: dict[str, list[float]] = {"open_clip eager": [], "fastltssl": []}
    for repeat in range(repeats + 1):  # the first warms up and compiles
        for way, work in zip(times, (eager, lambda: ours.encode(canvas)), strict=True):
            took = seconds(work, calls)
            times[way] += [took] if repeat else []
    rates = {way: batch / statistics.median(took) for way, took in times.items()}
    limit = gemm_rate(device, dtype or torch.float32, 4096) / flops.get_total_flops()
    show(f"{model}, {ours.provenance['precision']}, batch {batch}, {device}, {threads} threads, compiled: {compiled}")
    show(
        grid(
            ["way", "images/s", "of the matrix products"],
            [[w, f"{r:,.1f}", f"{r / limit:.2f}"] for w, r in rates.items()],
        )
    )
    show(f"M3 {rates['fastltssl'] / rates['open_clip eager']:.2f} times open_clip; M1 {rates['fastltssl'] / limit:.2f}")


if __name__ == "__main__":
    main()
