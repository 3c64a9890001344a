"""Accuracy against the number of cached views, beside live augmentation.

    python benchmarks/views.py --out docs

Does a cache of V views lose anything against fresh augmentation in every step? One cache with 16 weak and 16 strong
views is extracted; a run with V views uses the first V of each. The live run sees the same rows in the same order from
the same start, but at the n-th visit of a row it gets view n of that row, which no step has seen before: a live run is
a cache with as many views as there are visits. So the views it will need are encoded first, with the engine's own
recipes and encoder, and `fit_many` trains both, unchanged. The differences are paired by seed.
"""

import csv
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol, Split, long_tailed
from fastltssl.encoder.clip import Encoder, load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.errors import FigureError
from fastltssl.functional import metrics
from fastltssl.functional.statistics import half_interval
from fastltssl.images import open_source
from fastltssl.images.source import Source
from fastltssl.images.views import CENTER, STRONG, WEAK, View, image_key, make_view, parse_views
from fastltssl.methods import configure
from fastltssl.progress import Progress, Work
from fastltssl.show.palette import BLUE, GREY, ORANGE
from fastltssl.show.study_figures import canvas
from fastltssl.show.terminal import follow, grid, show
from fastltssl.training.fit import fit_many
from fastltssl.training.rows import Rows, make_problem, resident
from fastltssl.training.streams import Stream, make_stream
from fastltssl.training.vmap import pick
from fastltssl.types import Method, Problem

METHODS = {
    "probe (LP+LA), weak views": ("probe", {}),
    "FixMatch + LA + adjusted L_u": ("fixmatch", {"tau": 1, "tau_u": 1}),
}
BATCH, SLAB = 32, 64


class Trained(NamedTuple):
    """Balanced accuracy of each seed in percent, and the encoder passes that the training views of all seeds took."""

    bacc: Tensor
    passes: int


def with_views(problem: Problem, count: int) -> Problem:
    """The problem with the first `count` weak and strong views only."""
    kept = [i for i, name in enumerate(problem.views) if int(re.sub(r"\D", "", name) or 0) < count]
    return dataclasses.replace(
        problem, x=problem.x[:, kept], u=problem.u[:, kept], views=tuple(problem.views[i] for i in kept)
    )


def visits(rows: Tensor) -> Tensor:
    """How often the row of each place was seen at earlier places: [steps, B] of rows -> [steps, B] of counts."""
    flat = rows.flatten()
    order = torch.argsort(flat, stable=True)
    place = torch.arange(len(flat))
    is_first = torch.ones(len(flat), dtype=torch.bool)
    is_first[1:] = flat[order][1:] != flat[order][:-1]
    start = torch.where(is_first, place, 0).cummax(dim=0).values
    return torch.empty_like(flat).scatter(0, order, place - start).view_as(rows)


class Visits(NamedTuple):
    """Number of views a live run needs: labelled rows see weak ones, unlabelled rows weak and strong ones."""

    weak: int
    strong: int


def live_stream(stream: Stream) -> tuple[Stream, Visits]:
    """The same rows, each at its n-th visit with view n, and how many views that takes."""
    x_visit, visit = visits(stream.x_row), visits(stream.row)
    has_pool = visit.numel() > 0
    weak = int(max(x_visit.max(), visit.max() if has_pool else 0)) + 1
    strong = int(visit.max()) + 1 if has_pool else 0
    return stream._replace(
        x_view=1 + x_visit,
        weak_view=(1 + visit)[:, None].expand_as(stream.weak_view),
        strong_view=(1 + weak + visit)[:, None].expand_as(stream.strong_view),
    ), Visits(weak, strong)


def live_problem(
    problem: Problem, stream: Stream, needed: Visits, encode_x: Any, encode_u: Any
) -> Iterator[tuple[int, Problem | None]]:
    """The problem with every view that the live stream asks for; what it does not ask for is nan.

    Yields the number of views encoded so far, and at last the problem. `encode_x(rows, view)` gives features of
    labelled rows, `encode_u` of unlabelled ones.
    """
    names = [f"weak{n}" for n in range(needed.weak)] + [f"strong{n}" for n in range(needed.strong)]
    weak = [View(f"weak{n}", WEAK, n) for n in range(needed.weak)]
    views = [View("center", CENTER, 0), *weak, *(View(f"strong{n}", STRONG, n) for n in range(needed.strong))]
    x, u = (_blank(each, 1 + len(names)) for each in (problem.x, problem.u))
    done = 0
    asked = [(x, stream.x_row, stream.x_view, encode_x)]
    asked += [(u, stream.row, view[:, 0], encode_u) for view in (stream.weak_view, stream.strong_view) if view.numel()]
    for features, rows, view_of, encode in asked:
        for index in view_of.unique().tolist():
            wanted = rows[view_of == index]
            features[wanted, index] = encode(wanted, views[index]).to(features.dtype)
            done += len(wanted)
            yield done, None
    yield done, dataclasses.replace(problem, x=x, u=u, views=("center", *names))


def _blank(features: Tensor, count: int) -> Tensor:
    """Room for `count` views of every row; the center view is there already."""
    blank = features.new_full((len(features), count, features.shape[-1]), float("nan"))
    blank[:, 0] = features[:, 0]
    return blank


def encoder_of(source: Source, group: str, chosen: np.ndarray, encoder: Encoder, seed: int) -> Any:
    """A function that encodes views of a split's rows: of the images, with the engine's own recipes, in float16."""
    images = source.groups[group]
    canvases = np.stack([encoder.canvas(image) for image in images.read(chosen.tolist())])
    keys = np.array([image_key(images.ids[row]) for row in chosen], np.uint64)

    def encode(rows: Tensor, view: View) -> Tensor:
        parts = []
        for lot in rows.split(SLAB):
            index = torch.cat([lot, lot[:1].expand(SLAB - len(lot))]).numpy()
            canvas = torch.from_numpy(canvases[index]).float() / 255
            parts.append(encoder.encode(make_view(canvas, view, keys[index], seed))[: len(lot)].half())
        return torch.cat(parts)

    return encode


def train(
    method: Method, problems: Sequence[Problem], streams: Sequence[Stream], splits: Sequence[Split], rows: Rows,
    seeds: Sequence[int], steps: int,
) -> Tensor:  # fmt: skip
    """Balanced test accuracy of each seed in percent, all trained jointly."""
    fitted = fit_many(method, {}, list(problems), list(streams), steps=steps, seed=list(seeds), evals=1)
    found = []
    for place, split in enumerate(splits):
        run, test = pick(fitted.run, place), torch.from_numpy(split.test)
        x, y = rows.features[split.test_group][test][:, 0].float(), rows.labels[split.test_group][test]
        scores = method.scores(run.params, run.state, x)["test"]
        found.append(100 * float(metrics.evaluate(scores, y, None)["bacc"]))
    return torch.tensor(found, dtype=torch.float64)


def shared_rows(splits: Sequence[Split], has_pool: bool) -> int:
    """Encoder passes of one cached view: labelled rows once, unlabelled ones weak and strong, shared by all seeds."""
    labelled = np.unique(np.concatenate([split.labelled for split in splits]))
    pool = np.unique(np.concatenate([split.unlabelled for split in splits]))
    return len(labelled) + 2 * len(pool) * has_pool


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--pretrained", default=None)
@click.option("--dataset", default="world:mild:60:50:160", show_default=True)
@click.option("--counts", default="1,2,4,8,16", show_default=True, help="Numbers of cached views.")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=500, show_default=True)
@click.option("--n1", default=25, show_default=True)
@click.option("--m1", default=150, show_default=True)
@click.option("--gamma", default=10.0, show_default=True)
@click.option("--order", default="consistent", show_default=True)
@click.option("--cache", "cache_path", default="cache/views.zarr", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--out", default="docs", show_default=True, type=click.Path(path_type=Path), help="Folder of the results."
)
@click.option("--threads", default=1, show_default=True)
def main(
    model: str, pretrained: str | None, dataset: str, counts: str, seeds: int, steps: int, n1: int, m1: int,
    gamma: float, order: str, cache_path: Path, out: Path, threads: int,
) -> None:  # fmt: skip
    """Measure the curve; writes views.csv, views.json and views.png."""
    torch.set_num_threads(threads)
    if not all(each.isdecimal() and int(each) > 0 for each in counts.split(",")):
        raise click.UsageError(f"--counts {counts!r} is no list of numbers above 0, such as 1,2,4")
    numbers, runs = [int(each) for each in counts.split(",")], list(range(seeds))
    source, encoder = open_source(dataset), load_encoder(model, pretrained)
    began = time.perf_counter()
    asked = parse_views(f"center,weak:{max(numbers)},strong:{max(numbers)}")
    work = extract(source, encoder, asked, cache_path, templates="world" if model == "tiny" else "simple", resume=True)
    follow(work, "extract")
    cache = open_cache(cache_path)
    rows, labels = resident(cache), {name: group.labels for name, group in cache.groups.items()}
    protocol = Protocol(n1=n1, m1=m1, gamma_l=gamma, gamma_u=gamma, order=order)
    splits = [long_tailed(labels, len(cache.classes), protocol, seed) for seed in runs]
    problems = [make_problem(rows, split, steps) for split in splits]
    methods = {title: configure(*chosen) for title, chosen in METHODS.items()}
    # The rows of a stream do not depend on the views, so these are the rows of every run below.
    full = configure("fixmatch", {})
    live_parts = []
    for seed, split, problem in zip(runs, splits, problems, strict=True):
        stream, needed = live_stream(make_stream(problem, full, batch=BATCH, batch_u=BATCH, seed=seed))
        encode_x = encoder_of(source, "train", split.labelled, encoder, cache.attributes["provenance"]["seed"])
        encode_u = encoder_of(
            source, split.unlabelled_group, split.unlabelled, encoder, cache.attributes["provenance"]["seed"]
        )
        total = stream.x_row.numel() + 2 * stream.row.numel()
        work = live_problem(problem, stream, needed, encode_x, encode_u)
        last: list[Any] = [0, None]

        def record(work: Iterator[Any] = work, last: list[Any] = last, total: int = total) -> Work[None]:
            began = time.perf_counter()
            for last[0], last[1] in work:
                yield Progress(last[0], total, time.perf_counter() - began, unit="views")

        follow(record(), f"live views of seed {seed}")
        live_parts.append((stream, last[1]))
    results: dict[str, Any] = {}
    for title, method in methods.items():
        trained: dict[str, Trained] = {}
        for count in numbers:
            narrow = [with_views(problem, count) for problem in problems]
            streams = [
                make_stream(p, method, batch=BATCH, batch_u=BATCH, seed=s) for p, s in zip(narrow, runs, strict=True)
            ]
            used = count * shared_rows(splits, has_pool=method.views[0] > 0)
            trained[str(count)] = Trained(train(method, narrow, streams, splits, rows, runs, steps), used)
        live_streams = [s if method.views[0] else _labelled_only(s) for s, _ in live_parts]
        used = sum(s.x_view.numel() + s.weak_view.numel() + s.strong_view.numel() for s in live_streams)
        live = train(method, [p for _, p in live_parts], live_streams, splits, rows, runs, steps)
        trained["live"] = Trained(live, used)
        results[title] = {
            name: {
                "bacc": float(one.bacc.mean()), "interval": half_interval(one.bacc.tolist()),
                "minus_live": float((one.bacc - live).mean()),
                "difference_interval": half_interval((one.bacc - live).tolist()),
                "encoder_passes": one.passes, "values": one.bacc.tolist(),
            }
            for name, one in trained.items()
        }  # fmt: skip
    _report(results, out, f"{dataset}, {model}: N1 {n1} M1 {m1} gamma {gamma:g} {order}, {steps} steps, {seeds} seeds")
    show(f"{time.perf_counter() - began:.0f} s in all")


def _labelled_only(stream: Stream) -> Stream:
    """The stream as a method without unlabelled rows gets it."""
    return stream._replace(weak_view=stream.weak_view[:, :0], strong_view=stream.strong_view[:, :0])


def _report(results: dict[str, Any], out: Path, line: str) -> None:
    """The table on the terminal and as CSV, all numbers as JSON, the picture."""
    out.mkdir(parents=True, exist_ok=True)
    columns = ["method", "cached views", "bAcc %", "± 95 %", "minus live", "± 95 %", "encoder passes"]
    table = [
        [title, name, f"{one['bacc']:.2f}", f"{one['interval']:.2f}", f"{one['minus_live']:+.2f}",
         f"{one['difference_interval']:.2f}", one["encoder_passes"]]
        for title, by_count in results.items() for name, one in by_count.items()
    ]  # fmt: skip
    show(grid(columns, table, line))
    with (out / "views.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *table])
    (out / "views.json").write_text(json.dumps({"setting": line, "results": results}, indent=1) + "\n")
    show(f"wrote {out / 'views.csv'}, {out / 'views.json'}")
    try:
        show(f"wrote {views_figure(results, line, out / 'views.png')}")
    except FigureError as error:
        show(str(error))


def views_figure(results: dict[str, Any], line: str, path: Path) -> Path:
    """Balanced accuracy against the number of cached views, a curve for each method, live augmentation as a band."""
    figure, axes = canvas(7.6, 4.4)
    for (title, by_count), color in zip(results.items(), (BLUE, ORANGE), strict=False):
        counts = [int(name) for name in by_count if name != "live"]
        cached, live = [by_count[str(count)] for count in counts], by_count["live"]
        axes.axhspan(live["bacc"] - live["interval"], live["bacc"] + live["interval"], color=color, alpha=0.1, lw=0)
        axes.axhline(live["bacc"], color=color, linestyle="--", linewidth=1.2, label=f"{title}: live augmentation")
        axes.errorbar(
            counts, [point["bacc"] for point in cached], yerr=[point["interval"] for point in cached],
            fmt="o-", color=color, markersize=5, elinewidth=1.2, capsize=3, label=f"{title}: cached views",
        )  # fmt: skip
        for count, point in zip(counts, cached, strict=True):
            text = f"{point['minus_live']:+.1f} ± {point['difference_interval']:.1f}"
            axes.annotate(text, (count, point["bacc"]), (7, -11), textcoords="offset points", fontsize=7.5, color=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("cached views of each image and strength")
    axes.set_ylabel("balanced test accuracy (%)")
    axes.set_title(f"How many cached views replace live augmentation?\n{line}", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_xlim(0.87, counts[-1] * 1.35)
    note = (
        "Bars and bands: 95 % intervals of the mean over seeds, whose splits differ. Small: cached minus live,\n"
        "paired by seed, with its 95 % interval; no loss is seen where that holds zero."
    )
    figure.text(0.01, -0.05, note, fontsize=8, color=GREY)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


if __name__ == "__main__":
    main()
