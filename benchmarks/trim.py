"""M5: an encoder whose last block computes the class token alone, over the same encoder without; alternated pairs.

python benchmarks/trim.py --model tiny
"""

import statistics
import time

import click
import torch

from fastltssl.encoder.clip import load_encoder
from fastltssl.show.terminal import grid, show


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--pretrained", default=None)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--pairs", default=9, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Batches in each measurement.")
@click.option("--threads", default=1, show_default=True)
def main(model: str, pretrained: str | None, device: str, batch: int, pairs: int, repeats: int, threads: int) -> None:
    """Print images/s of both and the median ratio."""
    torch.set_num_threads(threads)
    encoders = [load_encoder(model, pretrained, device, trim=trim) for trim in (False, True)]
    x = torch.zeros(batch, 3, encoders[0].size, encoders[0].size, dtype=torch.uint8)
    rates: list[list[float]] = [[], []]
    for pair in range(pairs + 1):
        for which, encoder in enumerate(encoders):
            began = time.perf_counter()
            for _ in range(repeats):
                features = encoder.encode(x)
            features.cpu()
            if pair:  # the first warms up
                rates[which].append(repeats * batch / (time.perf_counter() - began))
    ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
    lines = [[name, f"{statistics.median(rate):,.0f}"] for name, rate in zip(("whole", "trimmed"), rates, strict=True)]
    show(f"{model}, batch {batch}, {device}, {threads} threads")
    show(grid(["last block", "images/s"], lines))
    show(f"median ratio of {pairs} alternated pairs: {ratio:.3f}")


if __name__ == "__main__":
    main()
