"""The figures of a report, each drawn from the rows of its own CSV. They need matplotlib.

The page writes the titles. Call everything here within `house_style`.
"""

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.functional.metrics import GROUPS
from fastltssl.show import palette
from fastltssl.show.names import short_name
from fastltssl.show.palette import BLACK, BLUE, CURVES, GREEN, ORANGE, rgb
from fastltssl.show.pictures import drawing
from fastltssl.show.pictures import save as save_picture

INK, LINE = "#3b3b3b", "#c8c8c8"  # colours of text, and of axes and grid; `as_svg` replaces them with the page's
GROUP_COLORS = dict(zip(GROUPS, palette.GROUP_COLORS, strict=True))
SMALL, BROAD = (4.8, 3.1), (9.8, 3.4)  # inches
LEGEND_LINES = 3  # a legend of more lines makes its figure higher
SMALLEST_TYPE = 4.2  # points; class names that would have to be smaller are left out
STYLE: Any = {
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": LINE,
    "xtick.color": LINE, "ytick.color": LINE, "grid.color": LINE, "grid.alpha": 0.5, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 8.5, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "axes.unicode_minus": False, "svg.fonttype": "none",
}  # fmt: skip

Lines = Sequence[dict[str, Any]]  # the rows of a CSV, by column


class Look(NamedTuple):
    """How a curve is drawn."""

    color: str
    marker: str = "o"
    dash: str = "-"


def house_style() -> AbstractContextManager[None]:
    """Draw and save figures with the settings of STYLE. Raises FigureError without matplotlib."""
    return drawing(**STYLE)


def look(index: int) -> Look:
    """How the curve of run number `index` is drawn; dotted from where the colours repeat."""
    color, marker = CURVES[index % len(CURVES)]
    return Look(INK if color == BLACK else color, marker, "-" if index < len(CURVES) else ":")


def _canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes; no window is opened."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def class_bars(lines: Lines, column: str, unit: str, size: tuple[float, float], error: str | None = None) -> Any:
    """A bar for each class, coloured by its group; the legend has the mean of each group.

    `error` is the column of the standard errors, drawn as 95 % intervals.
    """
    figure, axes = _canvas(size)
    values = [_number(line[column]) for line in lines]
    groups = [line["group"] for line in lines]
    for group in [name for name in (*GROUPS, None) if name in groups]:
        ranks = [rank for rank, name in enumerate(groups) if name == group]
        heights = [values[rank] for rank in ranks]
        known = [height for height in heights if height == height]
        text = None if group is None or not known else f"{group}: mean {sum(known) / len(known):.3g}"
        axes.bar(ranks, heights, 0.78, color=GROUP_COLORS.get(group or "", BLUE), label=text)
    if error:
        halves = [1.96 * _number(line[error]) for line in lines]
        axes.errorbar(range(len(lines)), values, halves, fmt="none", ecolor=INK, elinewidth=0.9)
    axes.axhline(0, color=LINE, linewidth=0.8)
    if not any(value == value for value in values):
        _say(axes, "no class has a value")
    _class_axis(axes.xaxis, lines, size[0])
    return _finished(figure, axes, unit)


def count_bars(lines: Lines, size: tuple[float, float], top: float) -> Any:
    """Accepted pseudo-labels of each class as a bar, wrong ones on top of right ones; the true rows as a line."""
    figure, axes = _canvas(size)
    ranks = range(len(lines))
    if lines[0]["right"] is None:
        axes.bar(ranks, [line["accepted"] for line in lines], 0.78, color=BLUE, label="accepted")
    else:
        right, wrong = [line["right"] for line in lines], [line["accepted"] - line["right"] for line in lines]
        axes.bar(ranks, right, 0.78, color=BLUE, label="accepted, right")
        axes.bar(ranks, wrong, 0.78, bottom=right, color=ORANGE, label="accepted, wrong")
        axes.plot(ranks, [line["true"] for line in lines], drawstyle="steps-mid", color=INK, linewidth=1.1,
                  label="true rows")  # fmt: skip
    axes.set_ylim(0, 1.04 * top or 1)
    if not any(line["accepted"] for line in lines):
        _say(axes, "nothing is accepted")
    _class_axis(axes.xaxis, lines, size[0])
    return _finished(figure, axes, "rows of the pool")


def class_points(lines: Lines, columns: dict[str, str], unit: str, size: tuple[float, float]) -> Any:
    """A point for each class and column, in percent; `columns` gives the name of each in the legend."""
    figure, axes = _canvas(size)
    for (column, name), (color, marker) in zip(columns.items(), ((BLUE, "o"), (GREEN, "^")), strict=True):
        values = [_number(line[column]) for line in lines]
        axes.plot(range(len(lines)), values, marker, color=color, label=name, alpha=0.9)
        if not any(value == value for value in values):
            _say(axes, f"no class has a {name}")
    axes.set_ylim(-3, 103)
    _class_axis(axes.xaxis, lines, size[0])
    return _finished(figure, axes, unit)


def group_bars(lines: Lines, key: str, column: str, unit: str, looks: dict[str, Look]) -> Any:
    """Bars for head, medium and tail; the value of `key` says whose bar a line is, and `looks` its colour."""
    figure, axes = _canvas(SMALL)
    names = list(dict.fromkeys(line[key] for line in lines))
    width = 0.82 / len(names)
    for index, name in enumerate(names):
        heights = {line["group"]: _number(line[column]) for line in lines if line[key] == name}
        x = [group + (index - (len(names) - 1) / 2) * width for group in range(len(GROUPS))]
        bars = axes.bar(x, [heights[group] for group in GROUPS], 0.92 * width, color=looks[name].color, label=name)
        if len(names) <= 5:
            axes.bar_label(bars, fmt="%.0f", fontsize=7, color=INK)
    axes.set_xticks(range(len(GROUPS)), GROUPS)
    axes.tick_params(axis="x", length=0)
    if not any(line[column] for line in lines):
        _say(axes, "there are none")
    return _finished(figure, axes, unit, x_label="group of the predicted class")


def curves(lines: Lines, key: str, column: str, unit: str, looks: dict[str, Look], top: float | None = None) -> Any:
    """A curve over training steps for each value of `key`; the y axis runs from 0 to `top` if that is given."""
    figure, axes = _canvas(SMALL)
    for name in dict.fromkeys(line[key] for line in lines):
        own = [line for line in lines if line[key] == name]
        color, marker, dash = looks[name]
        x, y = [line["step"] for line in own], [_number(line[column]) for line in own]
        axes.plot(x, y, marker=marker, linestyle=dash, color=color, label=name)
    if top is not None:
        axes.set_ylim(-0.02 * top, 1.04 * top or 1)
    return _finished(figure, axes, unit, x_label="training step")


def class_curves(lines: Lines, unit: str) -> Any:
    """A thin curve over training steps for each class, coloured by its group."""
    figure, axes = _canvas(SMALL)
    by_class: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for line in lines:
        by_class.setdefault((line["class"], line["group"]), []).append(line)
    named = set[str | None]()
    for (_, group), own in by_class.items():
        color, text = GROUP_COLORS.get(group or "", BLUE), None if group in named else group
        x, y = [line["step"] for line in own], [_number(line["value"]) for line in own]
        axes.plot(x, y, color=color, alpha=0.75, linewidth=0.9, label=text)
        named.add(group)
    return _finished(figure, axes, unit, x_label="training step")


def histogram(lines: Lines, threshold: float, top: float) -> Any:
    """Rows of the pool by confidence, wrong ones on top of right ones, and the threshold as a dashed line."""
    figure, axes = _canvas(SMALL)
    middles = [(line["from_percent"] + line["to_percent"]) / 2 for line in lines]
    width = 0.9 * (lines[0]["to_percent"] - lines[0]["from_percent"])
    right, wrong = [line["right"] for line in lines], [line["wrong"] for line in lines]
    is_known = wrong[0] is not None
    axes.bar(middles, right, width, color=BLUE, label="right" if is_known else "all rows")
    if is_known:
        axes.bar(middles, wrong, width, bottom=right, color=ORANGE, label="wrong")
    axes.axvline(100 * threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold {100 * threshold:g} %")
    axes.set_xlim(0, 100.5)
    axes.set_ylim(0, 1.04 * top or 1)
    return _finished(figure, axes, "rows of the pool", x_label="confidence (%)")


def reliability(lines: Lines) -> Any:
    """Accuracy against confidence of all test rows and of each group; the area of a point shows its share of rows."""
    figure, axes = _canvas(SMALL)
    axes.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=0.9, label="calibrated")
    for name in dict.fromkeys(line["rows_of"] for line in lines):
        own = [line for line in lines if line["rows_of"] == name]
        x, y = ([line[column] for line in own] for column in ("confidence_percent", "accuracy_percent"))
        total, color = sum(line["rows"] for line in own), GROUP_COLORS.get(name, INK)
        axes.plot(x, y, color=color, linewidth=1.8 if name == "all" else 1, label=name)
        axes.scatter(x, y, [4 + 130 * line["rows"] / total for line in own], color=color, alpha=0.8, linewidths=0)
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 102)
    return _finished(figure, axes, "accuracy (%)", x_label="confidence (%)")


def heat_map(shares: np.ndarray, lines: Lines, size: tuple[float, float]) -> Any:
    """Shares [C C] of pseudo-labels (columns) in each true class (rows): right ones blue, wrong ones orange.

    Opacity is the square root of the share, so that small shares can be seen.
    """
    from matplotlib.patches import Patch

    figure, axes = _canvas(size)
    axes.grid(False)
    picture = np.empty((*shares.shape, 4))
    picture[..., :3] = rgb(ORANGE)
    picture[np.arange(len(shares)), np.arange(len(shares)), :3] = rgb(BLUE)
    picture[..., 3] = np.sqrt(shares)
    axes.imshow(picture, interpolation="none", aspect="equal")
    if not shares.any():
        _say(axes, "nothing is accepted")
    _class_axis(axes.xaxis, lines, 0.82 * size[0])
    _class_axis(axes.yaxis, lines, 0.82 * size[0])
    axes.set_xlabel("pseudo-label, most labelled class first")
    axes.set_ylabel("true class, most labelled first")
    keys = [Patch(color=(*rgb(ORANGE), math.sqrt(share)), linewidth=0) for share in (0.02, 0.1, 0.5)]
    names = ["wrong, 2 %", "10 %", "50 %", "right, 100 %"]
    figure.legend([*keys, Patch(color=BLUE, linewidth=0)], names, loc="outside upper left", ncols=4, handlelength=1.2)
    return figure


def as_svg(figure: Any, name: str) -> str:
    """The figure as an <svg> element that uses the colours of the page; `name` makes its ids unique in the page."""
    import matplotlib

    text, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = re.sub(r"<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg[svg.index("<svg") :])
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1">', svg, count=1)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace(INK, "currentColor").replace(LINE, "var(--line)")


def save(figure: Any, title: str, path: Path) -> Path:
    """Write the figure with its title to a file, on a white ground."""
    figure.axes[0].set_title(title, loc="left", fontsize=9.5)
    return save_picture(figure, path, dpi=200, facecolor="white")


def _class_axis(axis: Any, lines: Lines, width: float) -> None:
    """Class names along an axis, or ranks if there are too many names to read."""
    counts = [line["labelled"] for line in lines]
    points = min(7.5, 72 * 0.8 * width / len(lines))
    axis.axes.set(**({"xlim": (-0.7, len(lines) - 0.3)} if axis.axis_name == "x" else {}))
    axis.set_tick_params(length=0)
    if points >= SMALLEST_TYPE:
        is_flat = axis.axis_name == "y" or len(lines) <= 6
        axis.set_ticks(range(len(lines)), [short_name(line["class"]) for line in lines])
        axis.set_tick_params(labelsize=points, labelrotation=0 if is_flat else 90)
    axis.set_label_text(f"classes, most labelled first ({max(counts)} to {min(counts)} labelled rows)")


def _finished(figure: Any, axes: Any, y_label: str, x_label: str | None = None) -> Any:
    """The figure with labels at its axes and a legend; the x axis of classes has its label already."""
    axes.set_ylabel(y_label)
    if x_label is not None:
        axes.set_xlabel(x_label)
    _legend(figure, axes)
    return figure


def _say(axes: Any, text: str) -> None:
    """Write a sentence into the middle of axes that show nothing."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")


def _legend(figure: Any, axes: Any) -> None:
    """A legend above the axes, if anything has a name; as many columns as the width of the figure has room for."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    widths, room = [4.9 * len(name) + 26 for name in names], 72 * figure.get_figwidth()  # roughly, in points
    columns = len(names) if sum(widths) < room else max(1, int(room / max(widths)))
    more = math.ceil(len(names) / columns) - LEGEND_LINES
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, more))  # inches for each line
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.3,
                  borderaxespad=0.2)  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
