"""M6, M7, M9, M10 and growth: joint training against loops, against single runs, and against what the machine can do.

    python benchmarks/population.py                 # M6, M7, M9 and peers: linear heads on 50,000 x 512, 100 classes
    python benchmarks/population.py --part ridge    # M10
    python benchmarks/population.py --part growth --out docs/growth

Rows are drawn around class centers; every way sees the same rows, batch size, learning rates and optimiser, and ends at
the accuracy printed beside it. Ways are timed in turn, compile and warm-up apart; medians over the repeats. The floor
of M9 is the time of the products and of one pass over weights, momentum and gradient at the rates measured here.
"""

import csv
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastltssl import methods
from fastltssl.functional.bias import class_prior
from fastltssl.methods.ridge import ridge_path
from fastltssl.show.terminal import grid, show
from fastltssl.training.fit import fit
from fastltssl.training.population import advance, populate
from fastltssl.training.streams import Stream, make_stream
from fastltssl.training.vmap import pick
from fastltssl.types import Problem

B, C, D, LR = 256, 100, 512, 0.1


def problem(rows: int, steps: int, device: str, noise: float = 9.0) -> Problem:
    """Labelled rows only, one view."""
    generator = torch.Generator().manual_seed(0)
    center, y = torch.randn(C, D, generator=generator), torch.arange(rows) % C
    x = F.normalize(center[y] + noise * torch.randn(rows, D, generator=generator), dim=-1)
    return Problem(
        x=x[:, None].to(device), y=y.to(device), u=torch.zeros(0, 1, D), views=("center",), steps=steps,
        prior=class_prior(y, C).float().to(device), text=None, projection=None,
    )  # fmt: skip


def accuracy(of: Problem, weight: Tensor, bias: Tensor | float = 0.0) -> float:
    """Of the training rows, in percent: all ways see the same ones as often."""
    return 100 * float(((of.x[:, 0] @ weight.T + bias).argmax(dim=-1) == of.y).float().mean())


def loader_epoch(of: Problem, steps: int) -> tuple[float, float]:
    """Seconds and accuracy of what most code does: DataLoader, nn.Linear, SGD, cosine schedule."""
    set_of = TensorDataset(of.x[:, 0].cpu(), of.y.cpu())
    device, head = of.x.device, nn.Linear(D, C).to(of.x.device)
    optimiser = torch.optim.SGD(head.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    began, done = time.perf_counter(), 0
    while done < steps:
        for x, y in DataLoader(set_of, batch_size=B, shuffle=True, drop_last=True):
            optimiser.zero_grad()
            loss = F.cross_entropy(25 * head(x.to(device)), y.to(device))
            loss.backward()
            optimiser.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    float(loss.detach())
    return time.perf_counter() - began, accuracy(of, head.weight.detach(), head.bias.detach())


def heads_loop(of: Problem, stream: Stream, steps: int, runs: int) -> float:
    """Seconds of many heads in one pass over the batches, in a Python loop, as DINOv2's linear evaluation does it."""
    heads = [nn.Linear(D, C).to(of.x.device) for _ in range(runs)]
    optimiser = torch.optim.SGD([{"params": head.parameters(), "lr": LR} for head in heads], momentum=0.9)
    began = time.perf_counter()
    for t in range(steps):
        x, y = of.x[stream.x_row[t], 0], of.y[stream.x_row[t]]
        optimiser.zero_grad()
        losses = [F.cross_entropy(25 * head(x), y) for head in heads]
        torch.stack(losses).sum().backward()
        optimiser.step()
    torch.stack([loss.detach() for loss in losses]).sum().item()
    return time.perf_counter() - began


def joint(of: Problem, stream: Stream, steps: int, runs: int, precision: str, compiled: bool, group: int) -> Any:
    """A function that trains `runs` linear heads whose learning rates and adjustments differ: seconds, accuracy."""
    method = methods.configure(
        "probe", {"head": "linear", "head.precision": precision, "head.weights": "random", "tau": 0}
    )
    knobs = {"lr": LR * torch.linspace(0.5, 1.5, runs) if runs > 1 else torch.tensor([LR])}
    knobs |= {"tau": torch.linspace(0.0, 0.1, runs)} if runs > 1 else {}
    begun = populate(method, knobs, [of], [stream], [0], lr=LR, weight_decay=5e-4, calls={} if compiled else None)
    with torch.no_grad():
        advance(begun, 0, min(3, steps), steps, group)  # warm-up and compile

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        with torch.no_grad():
            after, _ = advance(begun, 0, steps, steps, group)
        if of.x.is_cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        params = pick(after.run, 0, runs // 2).params
        return took, accuracy(of, params["weight"], params["bias"] / 25)

    return run


def floor(of: Problem, stream: Stream, steps: int, runs: int, precision: str) -> float:
    """Seconds of the two products of every step, and of reading and writing what the update touches."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    lot = min(runs, 32)
    x, w = of.x[stream.x_row[0], 0].to(dtype), torch.randn(lot * C, D, device=of.x.device).to(dtype)
    z = torch.randn(B, lot * C, device=of.x.device).to(dtype)
    products = median(lambda: (x @ w.T, z.T @ x), 9)
    held = torch.randn(lot * C * D, device=of.x.device)
    copy = median(lambda: held.clone(), 9)  # 8 bytes a number
    return steps * runs / lot * (products + copy * 5 / 2)  # weights and momentum read and written, gradient read


def median(fn: Callable[[], Any], repeats: int) -> float:
    fn()
    each = []
    for _ in range(repeats):
        began = time.perf_counter()
        fn()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        each.append(time.perf_counter() - began)
    return statistics.median(each)


def compare(rows: int, runs: int, repeats: int, group: int, device: str) -> None:
    """M6, M7 and M9: one epoch of one head and of many."""
    steps = rows // B
    of = problem(rows, steps, device)
    plain = methods.configure("probe", {"head": "linear", "head.weights": "random", "tau": 0})
    stream = make_stream(of, plain, batch=B, batch_u=0, seed=0)
    ways: dict[str, tuple[int, Callable[[], tuple[float, float]]]] = {
        "DataLoader loop": (1, lambda: loader_epoch(of, steps)),
        "our single run (fit)": (1, lambda: single(plain, of, stream, steps)),
        "our single run, compiled, fp32": (1, joint(of, stream, steps, 1, "fp32", True, group)),
        "our single run, compiled, bf16": (1, joint(of, stream, steps, 1, "bf16", True, group)),
        f"{runs} jointly, fp32": (runs, joint(of, stream, steps, runs, "fp32", False, group)),
        f"{runs} jointly, compiled, fp32": (runs, joint(of, stream, steps, runs, "fp32", True, group)),
        f"{runs} jointly, compiled, bf16": (runs, joint(of, stream, steps, runs, "bf16", True, group)),
    }
    few = max(1, 400 // runs)
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, f"{runs} heads in a loop (DINOv2's way)"]}
    reached: dict[str, float] = {}
    for _ in range(repeats):
        for name, (_, run) in ways.items():
            took, reached[name] = run()
            seconds[name].append(took)
        seconds[f"{runs} heads in a loop (DINOv2's way)"].append(heads_loop(of, stream, few, runs) * steps / few)
    counts = {name: count for name, (count, _) in ways.items()}
    each = {name: statistics.median(took) / counts.get(name, runs) for name, took in seconds.items()}
    show(f"{rows:,} x {D}, {C} classes, B {B}, {device}, {torch.get_num_threads()} threads, median of {repeats}")
    lines = [[name, f"{statistics.median(took):.2f}", f"{1e3 * each[name]:.1f}", f"{reached.get(name, math.nan):.1f}"]
             for name, took in seconds.items()]  # fmt: skip
    show(grid(["way", "s an epoch", "ms per head and epoch", "accuracy %"], lines))
    loop, own = each["DataLoader loop"], each["our single run (fit)"]
    for name in list(ways)[1:]:
        count = counts[name]
        what = f"{loop / each[name]:.1f} times the DataLoader loop"
        what += f", {own / each[name]:.1f} times our single runs" if count > 1 else " (M6)"
        precision = "bf16" if "bf16" in name else "fp32"
        physical = floor(of, stream, steps, count, precision)
        show(f"{name}: {what}; {statistics.median(seconds[name]) / physical:.2f} of its floor")


def single(method: Any, of: Problem, stream: Stream, steps: int) -> tuple[float, float]:
    began = time.perf_counter()
    params = fit(method, of, stream, steps=steps, lr=LR, evals=1).run.params
    return time.perf_counter() - began, accuracy(of, params["weight"], params["bias"] / 25)


def ridge(rows: int, strengths: int, repeats: int) -> None:
    """M10: all strengths of a ridge probe against one logistic regression of scikit-learn."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    every = problem(rows * 5 // 4, 1, "cpu")
    x, y = every.x[:rows, 0], every.y[:rows]
    held_out = dataclasses.replace(every, x=every.x[rows:], y=every.y[rows:])
    ours, theirs = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        path = ridge_path(x, y, C, torch.logspace(-3, 3, strengths))
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=100.0, max_iter=100).fit(x.numpy(), y.numpy())
        theirs.append(time.perf_counter() - began)
    best = max(
        accuracy(held_out, w.T.float(), b.float()) for w, b in zip(path.weight[::16], path.bias[::16], strict=True)
    )
    one, fitted = statistics.median(ours) / strengths, statistics.median(theirs)
    show(f"{rows:,} x {D}, {C} classes, {torch.get_num_threads()} threads, median of {repeats}")
    show(
        f"ridge, {strengths} strengths: {one * strengths:.2f} s, {1e3 * one:.1f} ms each; "
        f"held-out accuracy up to {best:.1f} %"
    )
    iterations, score = int(model.n_iter_[0]), 100 * model.score(held_out.x[:, 0].numpy(), held_out.y.numpy())
    show(f"scikit-learn LogisticRegression: {fitted:.1f} s, {iterations} iterations, held-out {score:.1f} %")
    show(f"M10: {fitted / one:.0f} times cheaper per strength")


def growth(out: Path, group: int, device: str) -> None:
    """Milliseconds per run and step as runs and rows grow; a CSV and a picture."""
    lines = []
    for rows, counts in (
        (50_000, (1, 4, 16, 32, 64, 256, 1024)),
        (10_000, (32,)),
        (250_000, (32,)),
        (1_280_000, (32,)),
    ):
        of = problem(rows, 30, device)
        stream = make_stream(of, methods.configure("probe", {}), batch=B, batch_u=0, seed=0)
        for runs in counts:
            steps = 30 if runs <= 64 else 8
            took = statistics.median(joint(of, stream, steps, runs, "fp32", False, group)()[0] for _ in range(3))
            lines.append({"rows": rows, "runs": runs, "ms per run and step": round(1e3 * took / steps / runs, 4)})
            click.echo(str(lines[-1]), err=True)
        del of
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    _picture(lines, out.with_suffix(".png"), device)
    show(grid(list(lines[0]), [list(line.values()) for line in lines]))
    show(f"wrote {out.with_suffix('.csv')} and .png")


def _picture(lines: list[dict[str, Any]], path: Path, device: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    sides = (("runs", "rows", 50_000, "runs trained jointly"), ("rows", "runs", 32, "labelled rows"))
    for place, (axis, other, at, name) in enumerate(sides, 1):
        axes = figure.add_subplot(1, 2, place)
        chosen = sorted((line[axis], line["ms per run and step"]) for line in lines if line[other] == at)
        axes.plot(*zip(*chosen, strict=True), "o-", color="#0072b2")
        axes.set_xscale("log", base=2 if axis == "runs" else 10)
        axes.set_ylim(0, 1.1 * max(height for _, height in chosen))
        axes.set_xlabel(name)
        axes.set_ylabel("ms per run and step")
        axes.set_title(f"{other} {at:,}: lower is better", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Linear head, {D} features, {C} classes, B {B}, {device}, {torch.get_num_threads()} threads")
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--part", default="joint", show_default=True, type=click.Choice(["joint", "ridge", "growth"]))
@click.option("--rows", default=50_000, show_default=True)
@click.option("--runs", default=256, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--group", default=0, show_default=True, help="Runs that advance together (0: the default).")
@click.option("--threads", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", default=Path("growth"), show_default=True, type=click.Path(path_type=Path))
def main(part: str, rows: int, runs: int, repeats: int, group: int, threads: int, device: str, out: Path) -> None:
    torch.set_num_threads(threads)
    if part == "joint":
        compare(rows, runs, repeats, group, device)
    elif part == "ridge":
        ridge(rows, 256, repeats)
    else:
        growth(out, group, device)


if __name__ == "__main__":
    main()
