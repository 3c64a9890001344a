"""Seconds per 1,000 steps of every method, on 50,000 x 512 features of 100 classes. One table, one row a method.

    python benchmarks/methods.py

Rows are drawn around class centers: 4,741 labelled ones (N1 150, gamma 20), the rest is the pool, two weak and two
strong views, B = U = 32, one thread. A run trains alone; the median of the repeats is shown, and their range. CPU
seconds are those of the process, which a busy machine stretches less. `start` is what a method works out before its
first step (label bias, class means). Features are random: only time is measured.
"""

import statistics
import time
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F

from fastltssl import methods
from fastltssl.cache.splits import long_tailed_counts
from fastltssl.functional.bias import class_prior
from fastltssl.show.terminal import grid, show
from fastltssl.training.fit import fit, start
from fastltssl.training.streams import make_stream
from fastltssl.types import Problem, is_trained

VIEWS = ("center", "weak0", "weak1", "strong0", "strong1")
NOISE = (0.0, 0.3, 0.3, 0.8, 0.8)


class Timed(NamedTuple):
    """Seconds before the first step, and per 1,000 steps of each repeat."""

    start: float
    wall: list[float]
    cpu: list[float]


def problem(rows: int, width: int, n_classes: int, steps: int) -> Problem:
    """Clustered features: labelled rows on a long tail, all others unlabelled and balanced."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    center = randn(n_classes, width)
    y = torch.repeat_interleave(torch.arange(n_classes), torch.from_numpy(long_tailed_counts(n_classes, 150, 20)))
    if len(y) >= rows:
        raise click.UsageError(f"--rows {rows} leaves no pool beside {len(y)} labelled rows")

    def views(labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = center[labels] + randn(len(labels), width)
        return torch.stack([(x + noise * randn(len(labels), width)).to(dtype) for noise in NOISE], dim=1)

    return Problem(
        x=views(y, torch.float32),
        y=y,
        u=views(torch.arange(rows - len(y)) % n_classes, torch.float16),
        views=VIEWS,
        steps=steps,
        prior=class_prior(y, n_classes).float(),
        text=F.normalize(center + 0.5 * randn(n_classes, width), dim=-1)[:, None],
        projection=None,
        logit_scale=30.0,
    )


def timed(name: str, of: Problem, steps: int, repeats: int) -> Timed:
    method = methods.configure(name, {})
    began = time.perf_counter()
    start(method, of, 0)
    found = Timed(time.perf_counter() - began, [], [])
    if not is_trained(method):
        return found
    stream = make_stream(of, method, batch=32, batch_u=32, seed=0)
    fit(method, of, stream, steps=min(20, steps), evals=1)  # warm-up
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        fit(method, of, stream, steps=steps, evals=1)
        found.wall.append(1000 * (time.perf_counter() - wall - found.start) / steps)
        found.cpu.append(1000 * (time.process_time() - cpu - found.start) / steps)
    return found


@click.command()
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--rows", default=50_000, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--classes", default=100, show_default=True)
@click.option("--methods", "chosen", default=",".join(methods.names()), help="Default: all.")
def main(steps: int, repeats: int, rows: int, width: int, classes: int, chosen: str) -> None:
    torch.set_num_threads(1)
    of, lines = problem(rows, width, classes, steps), []
    for name in chosen.split(","):
        found = timed(name, of, steps, repeats)
        cells = ["nothing is trained", "", ""]
        if found.wall:
            cells = [f"{statistics.median(each):.2f}" for each in (found.wall, found.cpu)]
            cells.insert(1, f"{min(found.wall):.2f} to {max(found.wall):.2f}")
        lines.append([name, *cells, f"{found.start:.2f}"])
        click.echo(f"{name}: {cells[0]}", err=True)
    title = f"{rows:,} rows x {width}, {classes} classes, B = U = 32, one thread, {repeats} x {steps:,} steps"
    show(title)
    show(grid(["method", "s per 1,000 steps (median)", "range", "CPU s per 1,000 steps", "start s"], lines))


if __name__ == "__main__":
    main()
