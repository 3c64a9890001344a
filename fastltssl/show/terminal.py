"""What a person sees: progress while something runs, and tables of results."""

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from fastltssl.progress import Note, Progress, Result, Work, drain
from fastltssl.show.names import label


def follow(work: Work[Result], what: str, stream: TextIO = sys.stderr) -> Result:
    """Run work to its end and return its result; its progress is one line, rewritten where that is a terminal."""
    on_terminal, shown, width = stream.isatty(), float("-inf"), 0

    def tell(record: Progress | Note) -> None:
        nonlocal shown, width
        if isinstance(record, Note):
            stream.write(("\r" + record.text.ljust(width) if on_terminal else record.text) + "\n")
            return
        now = time.monotonic()
        if now - shown < (0.2 if on_terminal else 5.0) and record.done < record.total:
            return
        left = "" if record.left_s is None else f", {record.left_s:.0f} s left"
        message = f"{what}: {record.done:,} of {record.total:,}  {record}, {record.elapsed_s:.1f} s{left}"
        stream.write("\r" + message.ljust(width) if on_terminal else message + "\n")
        stream.flush()
        shown, width = now, len(message) if on_terminal else 0

    result = drain(work, tell)
    if width:
        stream.write("\r" + " " * width + "\r")
    return result


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mean(summary: dict[str, Any] | None) -> str:
    return "-" if summary is None else f"{summary['mean']:.1f}"


def spread(summary: dict[str, Any] | None) -> str:
    """Mean over the seeds and their standard deviation, where there are several."""
    if summary is None:
        return "-"
    return f"{summary['mean']:.1f}" + (f" ± {summary['std']:.1f}" if len(summary["values"]) > 1 else "")
