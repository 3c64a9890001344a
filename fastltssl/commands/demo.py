"""`fastltssl demo`: the embedded world through every part, by the code that any other data set goes through."""

import json
import time
from typing import Any

import click

from fastltssl.commands.common import as_json, example, on_device, quoted, usable_device

SEEDS = (0, 1, 2)
ORDERS = ("consistent", "reversed")
PER_CLASS = "40:50:150"  # training, test and unlabelled images of each of the 40 classes
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("zeroshot", {}),
    ("zeroshot", {"debias": "labels"}),
    ("probe", {"tau": 0}),
    ("probe", {}),
    ("gla", {}),
    ("fixmatch", {}),
    ("fixmatch", {"tau": 1, "tau_u": 1}),
    ("finessl", {}),
    ("adello", {}),
    ("ulfine", {}),
)


@click.command(epilog=example("demo"))
@click.option("--steps", default=500, show_default=True, type=click.IntRange(1, 10**6))
@click.option("--fresh", is_flag=True, help="Extract again even where the demo cache is complete.")
@on_device
@as_json
def demo(steps: int, fresh: bool, device: str, threads: int | None, is_json: bool) -> None:
    """The whole path on the embedded world: images, cache, methods, table. Needs no download."""
    import torch

    from fastltssl.analysis.comparison import mark_below_la
    from fastltssl.runs.experiment import open_rows
    from fastltssl.show.names import label, protocol_line
    from fastltssl.show.terminal import results_table, show

    began, where = time.perf_counter(), usable_device(device, threads)
    show("The embedded world: 40 classes of drawn pictograms, 48 px, and a tiny CLIP trained on long-tailed captions.")
    path = _extracted(fresh, where)
    torch.set_num_threads(threads or 1)  # to train; extraction has used all of them
    cache, rows = open_rows(path, where)
    results = mark_below_la(_trained(path, cache, rows, steps))
    show("")
    show(results_table(results, f"{protocol_line(results[0])}, pools {' and '.join(ORDERS)}"))
    seconds = time.perf_counter() - began
    show(_last_lines(path, len(results), seconds))
    if is_json:
        named = [row | {"method": label(row)} for row in results]
        show(json.dumps({"results": named, "seconds": round(seconds, 2)}))


def _extracted(fresh: bool, device: str) -> str:
    """The path of the demo cache, which is extracted if it is missing or was made by another version."""
    import dataclasses

    from fastltssl.cache.catalogue import cache_folder
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction
    from fastltssl.errors import CacheMismatch
    from fastltssl.show.terminal import show

    extraction = Extraction(
        model="tiny",
        dataset=f"world:mild:{PER_CLASS}",
        views="center,weak:2,strong:2",
        out=cache_folder() / "demo.zarr",
        resume=not fresh,
        overwrite=fresh,
        device=device,
    )
    try:
        run_extract(extraction)
    except CacheMismatch as error:
        show(f"the demo cache is of another version, making it anew ({error})")
        run_extract(dataclasses.replace(extraction, resume=False, overwrite=True))
    return str(extraction.path)


def _trained(path: str, cache: Any, rows: Any, steps: int) -> list[dict[str, Any]]:
    """The records of all methods on both pools; the pools and seeds of a method train together."""
    from fastltssl.cache.splits import Protocol
    from fastltssl.runs.config import Config
    from fastltssl.runs.experiment import training_together
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.terminal import follow

    results: list[dict[str, Any]] = []
    for name, settings in METHODS:
        configs = [
            Config(
                method=name,
                cache=path,
                protocol=Protocol(n1=25, m1=150, gamma_l=10, gamma_u=10, order=order),
                seeds=SEEDS,
                steps=steps,
                settings=settings,
                evals=5,
            )
            for order in ORDERS
        ]
        folders = [new_folder(config) for config in configs]
        results += follow(training_together(configs, cache, rows, folders), name)
    return results


def _last_lines(path: str, experiments: int, seconds: float) -> str:
    from fastltssl.runs.folder import ROOT

    return (
        f"\n{experiments} experiments of {len(SEEDS)} seeds, and the cache, in {seconds:.1f} s (pools and seeds train "
        "together; seconds are shares).\nhead, medium, tail: thirds of the classes by labelled count. "
        "pl acc, kept: pseudo-labels above the threshold.\n"
        "This default checks the pipeline; it does not rank methods.\n"
        f"cache: {path}\nruns:  {ROOT}/ ({experiments} folders)\n"
        f"next:  fastltssl bias --cache {quoted(path)} --n1 25 --gamma-l 10 --seeds 0-4\n"
        f"       fastltssl train ulfine --cache {quoted(path)} --n1 40 --m1 150 --gamma-l 20 --gamma-u 20 --seeds 0-4"
    )
