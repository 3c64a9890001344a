"""Training through the encoder: steps of every mode, and M15, an epoch of the last-block adapter live over cached.

python benchmarks/live.py modes --model ViT-B-16 --pretrained none --batch 4 --steps 10
python benchmarks/live.py last-block --model ViT-B-16 --pretrained none --batch 16
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from fastltssl.cache.catalogue import Cache, open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.live.modes import Live, parse_mode, trainable, tuned
from fastltssl.live.step import finetuning
from fastltssl.methods import configure
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import tasks_of
from fastltssl.runs.live import experiment as live
from fastltssl.runs.live.images import TaskImages
from fastltssl.show.terminal import grid, show
from fastltssl.training.rows import resident
from fastltssl.training.step import start, step
from fastltssl.training.streams import batch_at, make_stream
from fastltssl.types import seeded

MODES = ("fft", "adaptformer", "lora", "vpt", "bitfit", "lastk:2", "lastblock")


class Prepared:
    """One seed of a live FixMatch run on a small world, ready to step."""

    def __init__(self, cache: Cache, mode: str, batch: int, steps: int, device: str, views: str) -> None:
        how = Live(mode, views=views, precision="auto")
        self.config = Config("fixmatch", str(cache.path), Protocol(n1=1, m1=1), (0,), steps, 0.001, live=how,
                             batch=batch, batch_u=batch)  # fmt: skip
        self.opened = live.open_images(cache, device)
        self.task = tasks_of(self.config, cache, resident(cache, device))[0]
        self.images = TaskImages(self.task, cache, self.opened)
        self.method = configure("fixmatch", {"head.scale": 25})
        self.tower = tuned(self.opened.encoder.tower, parse_mode(mode), n_classes=40, generator=seeded(0, "tower"))

    def steps_s(self) -> list[float]:
        """Seconds of each step."""
        trainee = drain(self.images.trainee(self.method, self.tower, is_first=False))
        assert self.config.live
        work = finetuning(
            self.method, self.task.problem, self.images.stream(self.method), trainee, self.config.live,
            lr=0.001, weight_decay=0.0, seed=0, evals=1, evaluate=lambda method, run: {},
        )  # fmt: skip
        times, before = [], time.perf_counter()
        for _ in work:
            if self.opened.encoder.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
            before = time.perf_counter()
        return times


def cache_of(folder: Path, model: str, pretrained: str | None, device: str) -> Path:
    """A small cache of the world with taps."""
    path = folder / "world.zarr"
    encoder = load_encoder(model, pretrained, device, taps=True)
    source = open_source("world:mild:2:1")
    drain(extract(source, encoder, parse_views("center,weak:1,strong:1"), path, templates="simple"))
    return path


def options(command: Any) -> Any:
    for option in (
        click.option("--model", default="tiny", show_default=True),
        click.option("--pretrained", default=None),
        click.option("--device", default="cpu", show_default=True),
        click.option("--batch", default=16, show_default=True, help="Labelled, and unlabelled, images a step."),
        click.option("--steps", default=10, show_default=True),
        click.option("--threads", default=2, show_default=True),
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Measure training through the encoder."""


@main.command()
@options
@click.option("--only", help="One mode of a cache that is there: prints JSON.")
@click.option("--cache", "cache_path", type=click.Path(path_type=Path))
def modes(
    model: str, pretrained: str | None, device: str, batch: int, steps: int, threads: int,
    only: str | None, cache_path: Path | None,
) -> None:  # fmt: skip
    """Steps of every mode, each in a process of its own so that its memory can be told."""
    torch.set_num_threads(threads)
    if only and cache_path:
        prepared = Prepared(open_cache(cache_path), only, batch, steps, device, "fresh")
        times = prepared.steps_s()
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if device != "cpu":
            peak = torch.cuda.max_memory_allocated()
        count = sum(value.numel() for value in trainable(prepared.tower).values())
        show(json.dumps({"s": statistics.median(times[1:]), "peak": peak, "trainable": count}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = cache_of(Path(folder), model, pretrained, device)
        lines = []
        for mode in MODES:
            line = [sys.executable, __file__, "modes", "--only", mode, "--cache", str(path), "--batch", str(batch)]
            line += ["--steps", str(steps), "--threads", str(threads), "--device", device]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            images = 3 * batch / found["s"]
            numbers = f"{found['s']:.2f}", f"{images:.1f}", f"{found['peak'] / 2**30:.2f}"
            lines.append([mode, f"{found['trainable']:,}", *numbers])
    show(f"{model}, {device}, {threads} threads, {batch} labelled and {batch} unlabelled images a step")
    show(grid(["mode", "trained", "s a step", "images/s", "peak GiB"], lines))


@main.command("last-block")
@options
def last_block(model: str, pretrained: str | None, device: str, batch: int, steps: int, threads: int) -> None:
    """M15: the adapter of the last block from images, from tokens in memory and from cached taps."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(cache_of(Path(folder), model, pretrained, device))
        times = {
            "live": Prepared(cache, "lastblock", batch, steps, device, "fresh").steps_s(),
            "tokens in memory": Prepared(cache, "lastblock", batch, steps, device, "cached").steps_s(),
            "cached taps": _cached_s(cache, batch, 10 * steps, device),
        }
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}
    lines = [[name, f"{1000 * s:,.2f}", f"{medians['live'] / s:,.1f}"] for name, s in medians.items()]
    show(f"{model}, {device}, {threads} threads, {batch} labelled and {batch} unlabelled images a step")
    show(grid(["last-block adapter", "ms a step", "live over this"], lines))


def _cached_s(cache: Cache, batch: int, steps: int, device: str) -> list[float]:
    """Seconds of each step of the head on taps."""
    config = Config("fixmatch", str(cache.path), Protocol(n1=1, m1=1), (0,), steps)
    problem = tasks_of(config, cache, resident(cache, device, taps=True))[0].problem
    method = configure("fixmatch", {"head": "lastblock"})
    stream = make_stream(problem, method, batch=batch, batch_u=batch, seed=0)
    run, times = start(method, problem, 0), []
    for t in range(steps):
        before = time.perf_counter()
        progress = problem.x.new_tensor(t / steps)
        run, _ = step(method, run, batch_at(problem, stream, t), progress, lr=0.001, weight_decay=0.0)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    main()
