"""Every method on a grid of long tails and pools: one table, one line per variant, and a CSV of all numbers.

    fastltssl extract --model tiny --dataset world --views center,weak:2,strong:2 --taps mid --out WORLD.zarr
    python benchmarks/accuracy.py --cache WORLD.zarr --out accuracy
    python benchmarks/accuracy.py --cache WHU.zarr --grid whu --seeds 0-19 --out whu
    python benchmarks/accuracy.py --cache WORLD.zarr --variants ablations --out ablations

Nothing is chosen on these grids. Runs of one variant and one gamma train together, where their shapes agree.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from fastltssl.analysis.comparison import mark_below_la
from fastltssl.cache.splits import Protocol
from fastltssl.progress import drain
from fastltssl.runs.config import Config, parse_seeds
from fastltssl.runs.experiment import open_rows, training_together
from fastltssl.show.terminal import grid, show

MAIN: list[tuple[str, dict[str, Any]]] = [
    ("zeroshot", {}), ("zeroshot", {"debias": "labels"}), ("tip", {}), ("ridge", {}), ("labelprop", {}),
    ("probe", {"tau": 0}), ("probe", {}), ("gla", {}),
    ("fixmatch", {"head": "linear"}), ("fixmatch", {}), ("fixmatch", {"tau": 1, "tau_u": 1}),
    ("debiaspl", {}), ("acr", {}), ("simpro", {}), ("multiview", {}), ("finessl", {}), ("adello", {}), ("ulfine", {}),
]  # fmt: skip
HEADS: list[tuple[str, dict[str, Any]]] = [
    (method, {"head": head})
    for method in ("probe", "fixmatch", "ulfine")
    for head in ("cosine", "linear", "adapter", "taskres", "tip", "lastblock")
]
ABLATIONS: list[tuple[str, dict[str, Any]]] = [
    ("probe", {}), ("ulfine", {}),
    *(("ulfine", {"alpha": alpha, "align": align}) for alpha in ("off", "uniform", "confidence")
      for align in ("none", "zscore", "stack")),
    ("ulfine", {"debias": "off"}), ("ulfine", {"tau_u": 0}), ("ulfine", {"debias": "off", "tau_u": 0}),
    *(("ulfine", {"alpha": "confidence", "align": "none", "debias": "off", "eta": 0, "mu": mu})
      for mu in (0.001, 0.01, 0.1, 0.3)),
]  # fmt: skip
VARIANTS = {"main": MAIN, "heads": HEADS, "ablations": ABLATIONS}
POOLS = ("consistent", "uniform", "reversed")
WORLD = Protocol(n1=100, m1=150)
WHU = Protocol(n1=16, m1=24, test_per_class=12, class_order="seeded", on_shortage="cap")
GRIDS: dict[str, list[list[Protocol]]] = {  # protocols that train together
    "world": [[dataclasses.replace(WORLD, gamma_l=gamma, gamma_u=10, order=order) for order in POOLS]
              for gamma in (1, 10, 50)],
    "world10": [[dataclasses.replace(WORLD, gamma_l=10, gamma_u=10, order=order) for order in POOLS]],
    "whu": [[dataclasses.replace(WHU, gamma_l=8, gamma_u=8, order=order)] for order in ("consistent", "reversed")]
    + [[dataclasses.replace(WHU, n1=4, gamma_l=4, gamma_u=8, order="reversed")]],
}  # fmt: skip
COLUMNS = ("bacc", "head", "medium", "tail", "ece")


@click.command()
@click.option("--cache", required=True)
@click.option("--grid", "grid_name", default="world", show_default=True, type=click.Choice(list(GRIDS)))
@click.option("--variants", default="main", show_default=True, type=click.Choice(list(VARIANTS)))
@click.option("--seeds", default="0-4", show_default=True)
@click.option("--steps", default=500, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Name of the CSV and JSON, without ending.")
def main(cache: str, grid_name: str, variants: str, seeds: str, steps: int, out: Path) -> None:
    import torch

    torch.set_num_threads(1)
    opened, rows = open_rows(cache, "cpu")
    records: list[dict[str, Any]] = []
    for protocols in GRIDS[grid_name]:
        for method, settings in VARIANTS[variants]:
            configs = [
                Config(method, cache, protocol, parse_seeds(seeds), steps, settings=settings, evals=1)
                for protocol in protocols
            ]
            records += drain(training_together(configs, opened, rows, [None] * len(configs)))
            click.echo(f"{method} {settings} {[r['bacc']['mean'] for r in records[-len(configs) :]]}", err=True)
    records = mark_below_la(records)
    lines = [line_of(record) for record in records]
    show(f"{cache}, {grid_name}, seeds {seeds}, {steps} steps, one thread; seconds are shares of runs trained together")
    show(grid(list(lines[0]), [list(line.values()) for line in lines]))
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    out.with_suffix(".json").write_text(json.dumps(records))
    show(f"wrote {out.with_suffix('.csv')} and .json")


def line_of(record: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds in percent; the balanced accuracy with its standard deviation."""
    protocol, audit = record["protocol"], record["pseudo_label"] or {}
    settings = " ".join(f"{name}={value}" for name, value in record["settings"].items())
    found = {"method": f"{record['method']} {settings}".strip(), "gamma": f"{protocol['gamma_l']:g}"}
    found |= {"pool": protocol["order"], "bacc": f"{record['bacc']['mean']:.1f}", "std": f"{record['bacc']['std']:.1f}"}
    found |= {name: f"{record[name]['mean']:.1f}" if record[name] else "" for name in COLUMNS[1:]}
    found |= {name: f"{audit[name]:.1f}" if audit.get(name) is not None else "" for name in ("accuracy", "mask_rate")}
    return found | {"seconds": f"{record['seconds']:.2f}", "below LP+LA": "yes" if record["is_below_la"] else ""}


if __name__ == "__main__":
    main()
