"""The terminal: a line of progress while something runs, and tables of results."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastltssl.errors import plain
from fastltssl.functional.measures import MAIN, measure
from fastltssl.progress import Note, Progress, Result, Work, drain
from fastltssl.show.names import label, pool_of


def follow(work: Work[Result], what: str, stream: Any = sys.stderr) -> Result:
    """Run work to its end and return its result; on a terminal, its progress is one line that is rewritten."""
    on_terminal, written_s, width = stream.isatty(), float("-inf"), 0

    def tell(record: Progress | Note) -> None:
        nonlocal written_s, width
        if isinstance(record, Note):
            text = plain(record.text)
            stream.write(("\r" + text.ljust(width) if on_terminal else text) + "\n")
            return
        now = time.monotonic()
        if now - written_s < (0.2 if on_terminal else 5.0) and record.done < record.total:
            return
        left = "" if record.left_s is None else f", {record.left_s:.0f} s left"
        message = plain(f"{what}: {record.done:,} of {record.total:,}  {record}, {record.elapsed_s:.1f} s{left}")
        stream.write("\r" + message.ljust(width) if on_terminal else message + "\n")
        stream.flush()
        written_s, width = now, len(message) if on_terminal else 0

    result = drain(work, tell)
    if width:
        stream.write("\r" + " " * width + "\r")
    return result


def results_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A row for each record: accuracies in percent (mean ± std over seeds), quality of pseudo-labels, and seconds."""
    pools = {pool_of(row) for row in rows}
    has_orders = len(pools) > 1
    if not has_orders and (pool := pools.pop()):
        title = f"{title}, {pool} pool"
    table = _plain_table(title)
    table.add_column("method", overflow="fold", min_width=12)  # a method with many settings takes several lines
    if has_orders:
        table.add_column("pool", no_wrap=True)
    for name in (*MAIN, "accuracy", "mask_rate"):
        table.add_column(measure(name).column, justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for row in rows:
        audit = row["pseudo_label"] or {}
        table.add_row(
            label(row),
            *([pool_of(row)] if has_orders else []),
            spread(row["top1"]),
            spread(row["bacc"]),
            *(_number(row[name] and row[name]["mean"]) for name in ("head", "medium", "tail", "ece")),
            *(_number(audit.get(name)) for name in ("accuracy", "mask_rate")),
            f"{row['seconds']:.1f}",
            "below LP+LA" if row.get("is_below_la") else "",
        )
    return table


def pairs_table(pairs: dict[str, Any], title: str) -> Table:
    """A two-column table of names and values."""
    table = _plain_table(title, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, str(value))
    return table


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Table:
    """A table of any cells; columns of numbers are aligned to the right."""
    table = _plain_table(title or None)
    for index, name in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def _plain_table(title: str | None, show_header: bool = True) -> Table:
    return Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, show_header=show_header
    )


class _PlainConsole(Console):
    """A console that takes every text as it is: names of classes and files may look like markup."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **(options | {"markup": False, "emoji": False, "highlight": False}))


def show(item: Any) -> None:
    """Print a table or a line, as wide as the terminal; 140 columns if the output is not a terminal."""
    width = None if sys.stdout.isatty() else 140
    _PlainConsole(width=width, soft_wrap=isinstance(item, str), markup=False, highlight=False, emoji=False).print(item)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def spread(summary: dict[str, Any] | None, digits: int = 1, least_seeds: int = 2) -> str:
    """The mean over seeds, with ± std from `least_seeds` seeds on; "-" for None."""
    if summary is None:
        return "-"
    std = f" ± {summary['std']:.{digits}f}" if len(summary["values"]) >= least_seeds else ""
    return f"{summary['mean']:.{digits}f}{std}"
