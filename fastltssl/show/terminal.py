"""What a person sees: progress while something runs, and tables of results."""

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.table import Table

Result = TypeVar("Result")
Line = Callable[[Any], tuple[int, int, str]]  # a progress record -> done, total, text


def follow(work: Generator[Any, None, Result], line: Line, what: str, stream: TextIO = sys.stderr) -> Result:
    """Run a generator of progress records to its end and return its value; one line rewritten on a terminal."""
    on_terminal, began, shown = stream.isatty(), time.monotonic(), float("-inf")
    width = 0
    while True:
        try:
            record = next(work)
        except StopIteration as end:
            if on_terminal and width:
                stream.write("\r" + " " * width + "\r")
            return end.value
        now = time.monotonic()
        done, total, text = line(record)
        if not total:  # a note, not a state
            stream.write(("\r" + text.ljust(width) if on_terminal else text) + "\n")
            continue
        if now - shown < (0.2 if on_terminal else 5.0) and done < total:
            continue
        shown, elapsed = now, now - began
        left = f", {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        message = f"{what}: {done:,} of {total:,}  {text}, {elapsed:.1f} s{left}"
        if on_terminal:
            stream.write("\r" + message.ljust(width))
            width = len(message)
        else:
            stream.write(message + "\n")
        stream.flush()


def label(row: dict[str, Any]) -> str:
    """A method with the settings it was given, and steps and learning rate where they are unusual."""
    parts = [row["method"], *_live_parts(row.get("live"))]
    parts += [f"{name}={_short(value)}" for name, value in row.get("settings", {}).items()]
    if row["steps"]:
        parts += [f"{name}={_short(row[name])}" for name, usual in (("steps", 500), ("lr", 0.03)) if row[name] != usual]
    return " ".join(parts)


def names_of(records: Sequence[dict[str, Any]], folders: Sequence[Path]) -> list[str]:
    """A name for each run: its method and settings, with its pool or its folder where that tells it from others."""
    labels = [label(record) for record in records]
    pools = [f"{name}, {one['protocol'].get('order')} pool" for name, one in zip(labels, records, strict=True)]
    short = [f"{name} ({folder.resolve().name})" for name, folder in zip(labels, folders, strict=True)]
    long = [f"{name} ({folder.resolve()})" for name, folder in zip(labels, folders, strict=True)]
    kinds = (labels, pools, short)

    def name(place: int) -> str:
        return next((names[place] for names in kinds if names.count(names[place]) == 1), long[place])

    return [name(place) for place in range(len(labels))]


def _live_parts(how: dict[str, Any] | None) -> list[str]:
    """How a run trained through the encoder, as far as it is unusual."""
    if not how:
        return []
    usual = {"lr": None, "optimizer": "sgd", "warmup": 0, "ema": 0.0, "views": "fresh"}
    names = {"lr": "encoder-lr"}
    parts = [f"{names.get(name, name)}={_short(how[name])}" for name, value in usual.items() if how[name] != value]
    return [f"live {how['mode']}", *parts]


def results_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """One row per record: accuracies in percent (mean, and spread over seeds), the audit, and seconds."""
    orders = {row["protocol"]["order"] for row in rows}
    pools = len(orders) > 1
    if not pools and isinstance(rows[0]["protocol"]["m1"], int):
        title = f"{title}, {orders.pop()} pool"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("method", overflow="fold", min_width=12)  # many knobs go over several lines
    if pools:
        table.add_column("pool", no_wrap=True)
    for name in ("top-1 %", "bAcc %", "head", "medium", "tail", "ECE %", "pl acc %", "kept %", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for row in rows:
        audit = row["pseudo_label"] or {}
        table.add_row(
            label(row),
            *([row["protocol"]["order"]] if pools else []),
            spread(row["top1"]),
            spread(row["bacc"]),
            *(_mean(row[name]) for name in ("head", "medium", "tail", "ece")),
            _number(audit.get("accuracy")),
            _number(audit.get("mask_rate")),
            f"{row['seconds']:.1f}",
            "below LP+LA" if row.get("is_below_la") else "",
        )
    return table


def mark_below_la(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, semi-supervised ones marked where they end below the logit-adjusted probe on the same labels."""

    def labels_of(row: dict[str, Any]) -> str:
        switches = {k: v for k, v in row["protocol"].items() if k not in ("m1", "gamma_u", "order", "overlap")}
        return json.dumps([row["cache_fingerprint"], row["seeds"], switches], sort_keys=True)

    baseline: dict[str, float] = {}
    for row in rows:
        if row["method"] == "probe" and not {k: v for k, v in row["settings"].items() if (k, v) != ("tau", 1)}:
            baseline[labels_of(row)] = max(row["bacc"]["mean"], baseline.get(labels_of(row), 0.0))
    return [
        row | {"is_below_la": row["is_ssl"] and row["bacc"]["mean"] < baseline.get(labels_of(row), 0.0)} for row in rows
    ]


def protocol_line(row: dict[str, Any]) -> str:
    """The protocol of a record in one line."""
    protocol = row["protocol"]
    if protocol["n1"] is None:
        labelled = "every labelled row"
    else:
        labelled = f"N1 {protocol['n1']} gamma {protocol['gamma_l']:g}"
    gamma = "" if protocol["m1"] == "all" else f" gamma {protocol['gamma_u']:g}"
    pool = f", M1 {protocol['m1']}{gamma}" if protocol["m1"] else ""
    usual = {"val": 0, "test_per_class": 0, "images": "seeded", "overlap": False, "class_order": "given",
             "preset": None, "report": "last", "eval": "test", "groups": "thirds"}  # fmt: skip
    extra = "".join(f", {name.replace('_', ' ')} {protocol[name]}" for name in usual if protocol[name] != usual[name])
    if protocol["groups"] != "thirds" and row.get("group_sizes"):
        sizes = (f"{name} {_range(each)}" for name, each in row["group_sizes"].items())
        extra += f" ({', '.join(sizes)} classes)"
    extra += f", templates {row['templates']}" if row.get("templates") else ""
    seeds = len(row["seeds"])
    emulated = ", emulated views" if row.get("emulated") else ""
    rows = f"{_range(row['labelled'])} labelled, {_range(row['unlabelled'])} unlabelled rows"
    return f"{row['cache']}: {labelled}{pool} ({rows}), {seeds} seed{'s' if seeds > 1 else ''}{extra}{emulated}"


def pairs_table(pairs: dict[str, Any], title: str) -> Table:
    """A two-column table of names and values."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, str(value))
    return table


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Table:
    """A plain aligned table; numbers to the right."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def show(item: Any) -> None:
    """Print a table or a line; as wide as the terminal, 140 columns where there is none."""
    console = Console(
        width=None if sys.stdout.isatty() else 140, soft_wrap=isinstance(item, str), highlight=False, emoji=False
    )
    console.print(item, markup=False) if isinstance(item, str) else console.print(item)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mean(summary: dict[str, Any] | None) -> str:
    return "-" if summary is None else f"{summary['mean']:.1f}"


def spread(summary: dict[str, Any] | None) -> str:
    """Mean over the seeds and their standard deviation, where there are several."""
    if summary is None:
        return "-"
    return f"{summary['mean']:.1f}" + (f" ± {summary['std']:.1f}" if len(summary["values"]) > 1 else "")


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
