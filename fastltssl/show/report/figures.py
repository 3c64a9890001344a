"""The figures of a report, each drawn from the lines of its own CSV. matplotlib draws them and is an extra.

Titles are left to the page. Call everything here within `house_style`.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastltssl.errors import FigureError
from fastltssl.functional.metrics import GROUPS
from fastltssl.show.study_figures import BLUE, CURVES, ORANGE

GREEN, PINK, YELLOW = (CURVES[place][0] for place in (2, 3, 4))
INK, LINE = "#3b3b3b", "#c8c8c8"  # of text, and of axes and grid; a page puts its own in their place
GROUP_COLORS = dict(zip(GROUPS, (BLUE, YELLOW, PINK), strict=True))
SMALL, BROAD = (4.8, 3.1), (9.8, 3.4)  # inches
LEGEND_LINES = 3  # that a figure has room for
LONGEST_NAME = 20  # letters of a class name on an axis
SMALLEST_TYPE = 4.2  # points; class names that would be smaller are left out
STYLE: Any = {
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": LINE,
    "xtick.color": LINE, "ytick.color": LINE, "grid.color": LINE, "grid.alpha": 0.5, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 8.5, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "axes.unicode_minus": False, "text.parse_math": False, "svg.fonttype": "none",
}  # fmt: skip

Lines = Sequence[dict[str, Any]]  # the rows of a CSV


class Look(NamedTuple):
    """How a curve is drawn."""

    color: str
    marker: str = "o"
    dash: str = "-"


@contextmanager
def house_style() -> Iterator[None]:
    """The settings under which figures are drawn and saved. Raises FigureError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise FigureError('no figures without matplotlib: pip install "fastltssl[plots]"') from None
    with matplotlib.rc_context(STYLE):
        yield


def look(place: int) -> Look:
    """How the curve of a run is drawn, by its place among the runs."""
    color, marker = CURVES[place % len(CURVES)]
    return Look(INK if color == "#000000" else color, marker, "-" if place < len(CURVES) else ":")


def _canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure without a window, and its axes; inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def class_bars(lines: Lines, column: str, unit: str, size: tuple[float, float], error: str | None = None) -> Any:
    """A bar a class, coloured by its group, whose mean is in the legend; `error` names the standard errors."""
    figure, axes = _canvas(size)
    values = [_number(line[column]) for line in lines]
    groups = [line["group"] for line in lines]
    for group in [name for name in (*GROUPS, None) if name in groups]:
        places = [place for place, each in enumerate(groups) if each == group]
        heights = [values[place] for place in places]
        known = [height for height in heights if height == height]
        text = None if group is None or not known else f"{group}: mean {sum(known) / len(known):.3g}"
        axes.bar(places, heights, 0.78, color=GROUP_COLORS.get(group or "", BLUE), label=text)
    if error:
        halves = [1.96 * _number(line[error]) for line in lines]
        axes.errorbar(range(len(lines)), values, halves, fmt="none", ecolor=INK, elinewidth=0.9)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_ylabel(unit)
    _class_axis(axes.xaxis, lines, size[0])
    _legend(figure, axes)
    return figure


def count_bars(lines: Lines, size: tuple[float, float], top: float) -> Any:
    """Accepted pseudo-labels of each class, right ones below and wrong ones on top, and the true rows as a line."""
    figure, axes = _canvas(size)
    places = range(len(lines))
    if lines[0]["right"] is None:
        axes.bar(places, [line["accepted"] for line in lines], 0.78, color=BLUE, label="accepted")
    else:
        right, wrong = [line["right"] for line in lines], [line["accepted"] - line["right"] for line in lines]
        axes.bar(places, right, 0.78, color=BLUE, label="accepted, right")
        axes.bar(places, wrong, 0.78, bottom=right, color=ORANGE, label="accepted, wrong")
        axes.plot(places, [line["true"] for line in lines], drawstyle="steps-mid", color=INK, linewidth=1.1,
                  label="true rows")  # fmt: skip
    axes.set_ylim(0, 1.04 * top or 1)
    axes.set_ylabel("rows of the pool")
    _class_axis(axes.xaxis, lines, size[0])
    _legend(figure, axes)
    return figure


def class_points(lines: Lines, columns: dict[str, str], unit: str, size: tuple[float, float]) -> Any:
    """A point a class for each column (name -> what the legend calls it), in percent."""
    figure, axes = _canvas(size)
    for (column, text), (color, marker) in zip(columns.items(), ((BLUE, "o"), (GREEN, "^")), strict=True):
        values = [_number(line[column]) for line in lines]
        axes.plot(range(len(lines)), values, marker, color=color, label=text, alpha=0.9)
    axes.set_ylim(-3, 103)
    axes.set_ylabel(unit)
    _class_axis(axes.xaxis, lines, size[0])
    _legend(figure, axes)
    return figure


def group_bars(lines: Lines, key: str, column: str, unit: str, looks: dict[str, Look]) -> Any:
    """Bars of head, medium and tail, one of each curve of `looks`."""
    figure, axes = _canvas(SMALL)
    names = list(dict.fromkeys(line[key] for line in lines))
    width = 0.82 / len(names)
    for number, name in enumerate(names):
        heights = {line["group"]: _number(line[column]) for line in lines if line[key] == name}
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(GROUPS))]
        bars = axes.bar(places, [heights[each] for each in GROUPS], 0.92 * width, color=looks[name].color, label=name)
        if len(names) <= 5:
            axes.bar_label(bars, fmt="%.0f", fontsize=7, color=INK)
    axes.set_xticks(range(len(GROUPS)), GROUPS)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("group of the predicted class")
    axes.set_ylabel(unit)
    _legend(figure, axes)
    return figure


def curves(lines: Lines, key: str, column: str, unit: str, looks: dict[str, Look], top: float | None = None) -> Any:
    """A curve over training steps for each value of `key`; from 0 to `top` where that is given."""
    figure, axes = _canvas(SMALL)
    for name in dict.fromkeys(line[key] for line in lines):
        own = [line for line in lines if line[key] == name]
        color, marker, dash = looks[name]
        x, y = [line["step"] for line in own], [_number(line[column]) for line in own]
        axes.plot(x, y, marker=marker, linestyle=dash, color=color, label=name)
    if top is not None:
        axes.set_ylim(-0.02 * top, 1.04 * top or 1)
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    _legend(figure, axes)
    return figure


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
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    _legend(figure, axes)
    return figure


def histogram(lines: Lines, threshold: float, top: float) -> Any:
    """Rows of the pool by confidence, right ones below and wrong ones on top, and the threshold."""
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
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("rows of the pool")
    _legend(figure, axes)
    return figure


def reliability(lines: Lines) -> Any:
    """Accuracy against confidence for all test rows and each group; points grow with their rows."""
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
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")
    _legend(figure, axes)
    return figure


def heat_map(shares: np.ndarray, lines: Lines, size: tuple[float, float]) -> Any:
    """Shares [C C], true class by pseudo-label: right ones blue, wrong ones orange, as dense as their square root."""
    from matplotlib.patches import Patch

    figure, axes = _canvas(size)
    axes.grid(False)
    picture = np.empty((*shares.shape, 4))
    picture[..., :3] = _rgb(ORANGE)
    picture[np.arange(len(shares)), np.arange(len(shares)), :3] = _rgb(BLUE)
    picture[..., 3] = np.sqrt(shares)
    axes.imshow(picture, interpolation="none", aspect="equal")
    _class_axis(axes.xaxis, lines, 0.82 * size[0])
    _class_axis(axes.yaxis, lines, 0.82 * size[0])
    axes.set_xlabel("pseudo-label, most labelled class first")
    axes.set_ylabel("true class, most labelled first")
    keys = [Patch(color=(*_rgb(ORANGE), math.sqrt(share)), linewidth=0) for share in (0.02, 0.1, 0.5)]
    names = ["wrong, 2 %", "10 %", "50 %", "right, 100 %"]
    figure.legend([*keys, Patch(color=BLUE, linewidth=0)], names, loc="outside upper left", ncols=4, handlelength=1.2)
    return figure


def as_svg(figure: Any, name: str) -> str:
    """The figure as an <svg> for a page: it takes its ink from the page's colours; `name` keeps its ids apart."""
    import matplotlib

    text, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg[svg.index("<svg") :])
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1">', svg, count=1)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace(INK, "currentColor").replace(LINE, "var(--line)")


def save(figure: Any, title: str, path: Path) -> Path:
    """The figure as a file with its title, on white."""
    figure.axes[0].set_title(title, loc="left", fontsize=9.5)
    figure.savefig(path, dpi=200, bbox_inches="tight", facecolor="white")
    return path


def _class_axis(axis: Any, lines: Lines, width: float) -> None:
    """Class names along an axis; ranks where they are too many to read."""
    counts = [line["labelled"] for line in lines]
    points = min(7.5, 72 * 0.8 * width / len(lines))
    axis.axes.set(**({"xlim": (-0.7, len(lines) - 0.3)} if axis.axis_name == "x" else {}))
    axis.set_tick_params(length=0)
    if points >= SMALLEST_TYPE:
        is_flat = axis.axis_name == "y" or len(lines) <= 6
        axis.set_ticks(range(len(lines)), [_short(line["class"]) for line in lines])
        axis.set_tick_params(labelsize=points, labelrotation=0 if is_flat else 90)
    axis.set_label_text(f"classes, most labelled first ({max(counts)} to {min(counts)} labelled rows)")


def _legend(figure: Any, axes: Any) -> None:
    """The legend in lines above the axes, where there is anything to name."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    widths, room = [4.9 * len(name) + 26 for name in names], 72 * figure.get_figwidth()  # about, in points
    columns = len(names) if sum(widths) < room else max(1, int(room / max(widths)))
    more = math.ceil(len(names) / columns) - LEGEND_LINES
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, more))  # inches a line, so that axes keep their room
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.3,
                  borderaxespad=0.2)  # fmt: skip


def _rgb(color: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of "#rrggbb"."""
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
