"""`fastltssl analyze`: studies of what training does, each a table, a CSV, a JSON and a picture."""

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.cli import NUMBER
from fastltssl.commands.common import (
    PATH,
    TRAIN_OPTIONS,
    as_json,
    example,
    on_device,
    output_folder,
    parse_methods,
    quoted,
    usable_device,
    with_options,
    write_study,
)
from fastltssl.commands.strategies import lp_lft_fft

GIVEN_AS_LISTS = ("--gamma-u", "--order", "--set")  # by --gamma-u, --orders and --methods of the command itself


@click.group()
def analyze() -> None:
    """Studies of what training does: each a table, a CSV, a JSON and a picture."""


@analyze.command(
    "pseudo-labels",
    epilog=example("analyze pseudo-labels --cache CACHE --n1 25 --m1 150 --gamma-l 10 --seeds 0-4 --out study"),
)
@click.option("--cache", required=True, help="Cache to train from (a path, or a name).")
@click.option("--methods", "method_text", default="fixmatch,fixmatch:tau=1:tau_u=1,finessl,adello,ulfine",
              show_default=True, help="Methods, each with the knobs it is to have.")  # fmt: skip
@click.option("--gamma-u", "gamma_text", default="1,10,50", show_default=True, help="Head over tail of the pools.")
@click.option("--orders", default="consistent,uniform,reversed", show_default=True, help="Orders of the pools.")
@with_options(TRAIN_OPTIONS, without=GIVEN_AS_LISTS)
@click.option("--out", type=PATH, help="Folder to write (default runs/TIME-pseudo-labels-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a folder that is there.")
@on_device
@as_json
def pseudo_labels(
    method_text: str, gamma_text: str, orders: str, out: Path | None, overwrite: bool, device: str, threads: int | None,
    is_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """How pseudo-labels follow the imbalance of the pool.

    Every method is trained on every pool (orders x gammas; at gamma 1 all orders are uniform) and its accepted
    pseudo-labels are compared with the true labels of the pool, which no method sees. Recall counts a row whose label
    was not accepted as missed. The tail is that of the labelled rows.
    """
    from fastltssl.analysis.comparison import mark_below_la
    from fastltssl.analysis.pseudo_labels import Choice, plan, pools, reference, row, seed_rows, studying
    from fastltssl.runs.config import Config
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.names import protocol_line
    from fastltssl.show.study_figures import pseudo_label_figure
    from fastltssl.show.terminal import follow, show

    began = time.perf_counter()
    choices = [Choice(*method) for method in parse_methods(method_text)]
    compared = pools(_gammas(gamma_text), [order.strip() for order in orders.split(",")])
    base = Config.of(flags | {"method": "fixmatch"})
    cache, rows = open_rows(base.cache, usable_device(device, threads or 1))
    planned = plan(base, choices, compared, cache)
    folder = output_folder(out or new_folder(dataclasses.replace(base, method="pseudo-labels")), overwrite)
    runs = folder / "runs"
    probe = follow(reference(planned[0][0], cache, rows, runs / "probe"), "probe LP+LA")
    records = [probe]
    for number, (choice, configs) in enumerate(zip(choices, planned, strict=True), 1):
        title = f"{choice.label} ({number} of {len(planned)})"
        records += follow(studying(configs, cache, rows, runs), title)
    labels = [choice.label for choice in choices for _ in compared]
    results = [row(record, label) for record, label in zip(mark_below_la(records)[1:], labels, strict=True)]
    sizes = [count for result in results for count in result["unlabelled"]]
    line = f"{protocol_line(probe | {'unlabelled': sizes})}, M1 {planned[0][0].protocol.m1}"
    show(f"pseudo-labels against the truth, {line}, {len(compared)} pools")
    _show_table(results, probe)
    study = {"protocol": line, "results": results, "reference": probe}
    written = write_study(folder, "pseudo_labels", study, {"pseudo_labels": seed_rows(results)},
                          lambda path: pseudo_label_figure(results, probe["bacc"], line, path))  # fmt: skip
    show(f"{len(results)} experiments in {time.perf_counter() - began:.1f} s\nwrote {', '.join(map(str, written))}")
    show(f"next: fastltssl compare {quoted(runs)}/* --baseline {quoted(runs / 'probe')}")
    if is_json:
        click.echo(json.dumps({"results": results, "reference": probe, "out": str(folder)}))


analyze.add_command(lp_lft_fft)


def _gammas(text: str) -> list[float]:
    """The values of --gamma-u; a usage error if one is no number, or no imbalance."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(NUMBER, part) for part in parts):
        raise click.UsageError(f"--gamma-u {text!r} is not a list of numbers such as 1,10,50")
    gammas = list(map(float, parts))
    if min(gammas) < 1 or max(gammas) == float("inf"):
        raise click.UsageError(f"--gamma-u {text!r}: gamma is head count over tail count, at least 1")
    return gammas


def _show_table(results: list[dict[str, Any]], probe: dict[str, Any]) -> None:
    """Print a row for each method and pool, and one for the probe, which uses no pool."""
    from fastltssl.analysis.pseudo_labels import MEASURES
    from fastltssl.functional.measures import measure
    from fastltssl.show.terminal import grid, show, spread

    rows = []
    for result in results:
        cells = [spread(result[name], measure(name).digits) for name in MEASURES]
        mark = "below LP+LA" if result["is_below_la"] else ""
        rows.append([result["method"], result["pool"], f"{result['unlabelled'][0]:,}", *cells, mark])
    rows.append(["LP+LA", "none", "0", *["-"] * (len(MEASURES) - 1), spread(probe["bacc"]), ""])
    show(grid(["method", "pool", "rows", *(measure(name).column for name in MEASURES), ""], rows))
    show(
        "KL: classes of the accepted pseudo-labels against the true ones; tail recall, precision, kept: accepted labels"
    )
