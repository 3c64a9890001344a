"""`fastltssl analyze`: studies of what training does, each a table, a CSV, a JSON and a picture."""

import csv
import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    as_json,
    example,
    on_device,
    output_folder,
    parse_methods,
    spread_of,
    train_options,
    usable_device,
)
from fastltssl.commands.strategies import lp_lft_fft
from fastltssl.functional.measures import measure

COLUMNS = {name: measure(name) for name in ("kl", "tail_recall", "precision", "mask_rate", "bacc")}


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
@train_options
@click.option("--out", type=PATH, help="Folder to write (default runs/TIME-pseudo-labels-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a folder that is there.")
@on_device
@as_json
def pseudo_labels(
    method_text: str,
    gamma_text: str,
    orders: str,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """How pseudo-labels follow the imbalance of the pool.

    Every method is trained on every pool (orders x gammas; at gamma 1 all orders are uniform) and its accepted
    pseudo-labels are compared with the true labels of the pool, which no method sees. Recall counts a row whose label
    was not accepted as missed. The tail is that of the labelled rows.
    """
    from fastltssl.analysis import pseudo_labels as pseudo_study
    from fastltssl.runs import experiment
    from fastltssl.runs import folder as runs
    from fastltssl.runs.config import Config
    from fastltssl.show.names import mark_below_la, protocol_line
    from fastltssl.show.terminal import follow, show

    began = time.perf_counter()
    choices = [pseudo_study.Choice(*each) for each in parse_methods(method_text)]
    found = pseudo_study.pools(_gammas(gamma_text), [each.strip() for each in orders.split(",")])
    base = Config.of(flags | {"method": "fixmatch"})
    cache, rows = experiment.open_rows(base.cache, usable_device(device, threads or 1))
    plan = pseudo_study.plan(base, choices, found, cache)
    folder = output_folder(out or runs.new_folder(dataclasses.replace(base, method="pseudo-labels")), overwrite)

    def run_folder(config: Any) -> Path:
        settings = [f"{name}={value}" for name, value in config.settings.items()]
        name = "-".join([Path(config.method).stem, *settings, config.protocol.order, f"{config.protocol.gamma_u:g}"])
        return folder / "runs" / re.sub(r"[^\w.=-]", "_", name)

    probe = follow(pseudo_study.reference(plan[0][0], cache, rows, folder / "runs" / "probe"), "probe LP+LA")
    records = [probe]
    for place, (choice, configs) in enumerate(zip(choices, plan, strict=True), 1):
        what = f"{choice.label} ({place} of {len(plan)})"
        records += follow(pseudo_study.studying(configs, cache, rows, run_folder), what)
    records = mark_below_la(records)
    labels = [choice.label for choice in choices for _ in found]
    results = [pseudo_study.row(record, text) for record, text in zip(records[1:], labels, strict=True)]
    sizes = [count for one in results for count in one["unlabelled"]]
    line = f"{protocol_line(probe | {'unlabelled': sizes})}, M1 {plan[0][0].protocol.m1}"
    show(f"pseudo-labels against the truth, {line}, {len(found)} pools")
    _show_table(results, probe)
    written = _write(folder, results, probe, line)
    show(f"{len(results)} experiments in {time.perf_counter() - began:.1f} s")
    show(
        f"wrote {', '.join(map(str, written))}\nnext: fastltssl compare {folder}/runs/* --baseline {folder}/runs/probe"
    )
    if is_json:
        click.echo(json.dumps({"results": results, "reference": probe, "out": str(folder)}))


analyze.add_command(lp_lft_fft)
pseudo_labels.params = [one for one in pseudo_labels.params if one.name not in ("gamma_u", "order", "set_")]  # as lists


def _gammas(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--gamma-u {text!r} is not a list of numbers such as 1,10,50") from None
    if min(found) < 1 or max(found) == float("inf"):
        raise click.UsageError(f"--gamma-u {text!r}: gamma is head count over tail count, at least 1")
    return found


def _show_table(results: list[dict[str, Any]], probe: dict[str, Any]) -> None:
    from fastltssl.show.terminal import grid, show

    lines = []
    for one in results:
        cells = [spread_of(one[name], shown.digits) for name, shown in COLUMNS.items()]
        mark = "below LP+LA" if one["is_below_la"] else ""
        lines.append([one["method"], one["pool"], f"{one['unlabelled'][0]:,}", *cells, mark])
    lines.append(["LP+LA", "none", "0", *["-"] * (len(COLUMNS) - 1), spread_of(probe["bacc"], 1), ""])
    show(grid(["method", "pool", "rows", *(shown.column for shown in COLUMNS.values()), ""], lines))
    show(
        "KL: classes of the accepted pseudo-labels against the true ones; tail recall, precision, kept: accepted labels"
    )


def _write(folder: Path, results: list[dict[str, Any]], probe: dict[str, Any], line: str) -> list[Path]:
    """pseudo_labels.csv with a line for every method, pool and seed, .json, and .png where matplotlib is there."""
    from fastltssl.analysis.pseudo_labels import lines
    from fastltssl.errors import FigureError
    from fastltssl.show.study_figures import pseudo_label_figure

    paths = [folder / "pseudo_labels.csv", folder / "pseudo_labels.json"]
    table = lines(results)
    with paths[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    paths[1].write_text(json.dumps({"protocol": line, "results": results, "reference": probe}, indent=1))
    try:
        paths.append(pseudo_label_figure(results, probe["bacc"], line, folder / "pseudo_labels.png"))
    except FigureError as error:
        click.echo(f"note: {error}", err=True)
    return paths
