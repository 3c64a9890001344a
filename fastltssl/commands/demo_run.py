"""The demo: the embedded world through every part, from images to one table. The same code as any other data set."""

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from fastltssl.cache.catalogue import cache_folder
from fastltssl.cache.manifest import CacheMismatch
from fastltssl.cache.splits import Protocol
from fastltssl.runs import experiment
from fastltssl.runs import folder as runs
from fastltssl.show.terminal import follow, label, mark_below_la, protocol_line, results_table, show

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


def demo(
    extract: Callable[..., Any],
    *,
    follow_training: Callable[[Any], tuple[int, int, str]],
    steps: int,
    fresh: bool,
    device: str,
    threads: int,
    is_json: bool,
) -> dict[str, Any]:
    """Extract the embedded world (or take the cache that is there) and train every method on two pools."""
    began = time.perf_counter()
    path = cache_folder() / "demo.zarr"
    arguments: dict[str, Any] = {
        "model": "tiny", "pretrained": None, "dataset": f"world:mild:{PER_CLASS}", "root": None,
        "views": "center,weak:2,strong:2", "templates": None, "out": path, "seed": 0, "limit": None,
        "precision": "auto", "normalise": "model", "trim": True, "workers": 2, "skip_broken": False, "device": device,
    }  # fmt: skip
    show("The embedded world: 40 classes of drawn pictograms, 48 px, and a tiny CLIP trained on long-tailed captions.")
    try:
        extract(**arguments, resume=not fresh, overwrite=fresh)
    except CacheMismatch as error:
        show(f"the demo cache is of another version, making it anew ({error})")
        extract(**arguments, resume=False, overwrite=True)
    torch.set_num_threads(threads)  # to train; extraction has used all of them
    cache, rows = experiment.open_rows(str(path), device)
    results: list[dict[str, Any]] = []
    for name, settings in METHODS:
        configs = [
            runs.Config(
                method=name,
                cache=str(path),
                protocol=Protocol(n1=25, m1=150, gamma_l=10, gamma_u=10, order=order),
                seeds=SEEDS,
                steps=steps,
                settings=settings,
                evals=5,
            )
            for order in ORDERS
        ]
        work = experiment.training_together(configs, cache, rows, [runs.new_folder(config) for config in configs])
        results += follow(work, follow_training, name)
    results = mark_below_la(results)
    show("")
    show(results_table(results, f"{protocol_line(results[0])}, pools {' and '.join(ORDERS)}"))
    seconds = time.perf_counter() - began
    show(
        f"\n{len(results)} experiments of {len(SEEDS)} seeds, and the cache, in {seconds:.1f} s (pools and seeds train "
        "together; seconds are shares).\nhead, medium, tail: thirds of the classes by labelled count. "
        "pl acc, kept: pseudo-labels above the threshold.\n"
        "This default checks the pipeline; it does not rank methods.\n"
        f"cache: {path}\nruns:  {runs.ROOT}/ ({len(results)} folders)\n"
        f"next:  fastltssl bias --cache {path} --n1 25 --gamma-l 10 --seeds 0-4\n"
        f"       fastltssl train ulfine --cache {path} --n1 40 --m1 150 --gamma-l 20 --gamma-u 20 --seeds 0-4"
    )
    if is_json:
        rows_out = [row | {"method": label(row)} for row in results]
        show(json.dumps({"results": rows_out, "seconds": round(seconds, 2)}))
    return {"results": results, "seconds": seconds}
