"""The pictures of the studies and of a sweep, as files. They need matplotlib and raise FigureError without it,
and WriteError where the file cannot be written."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastltssl.functional.measures import GROUPS, measure
from fastltssl.functional.statistics import half_interval
from fastltssl.show.names import short_name
from fastltssl.show.palette import BLUE, CURVES, GREY, ORANGE, rgb
from fastltssl.show.pictures import drawing, save


class Panel(NamedTuple):
    """One of the small plots of a study."""

    title: str
    unit: str  # the label of the y axis
    reading: str  # which way is better


def _panel(name: str, title: str, unit: str = "", reading: str = "") -> Panel:
    return Panel(title, unit or measure(name).axis, reading or measure(name).direction)


PANELS = {  # by measure of a study
    "kl": _panel("kl", "Class shares of accepted labels", "KL to the true shares (nats)"),
    "tail_recall": _panel("tail_recall", "Recall of tail classes"),
    "precision": _panel("precision", "Precision"),
    "mask_rate": _panel("mask_rate", "Accepted share of the pool", reading="at or above the method's threshold"),
    "bacc": _panel("bacc", "Balanced test accuracy"),
}


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes; no window is opened."""
    figure = _figure(width, height)
    return figure, _axes(figure, 1, 1, 1)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Any, *position: int, sharey: Any = None) -> Any:
    """The axes at (rows, columns, number), with horizontal grid lines and no frame at the top and right."""
    axes = figure.add_subplot(*position, sharey=sharey)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


@drawing()
def bias_figure(rows: list[dict[str, Any]], path: Path) -> Path:
    """Label bias of each class with its 95 % interval, and its known log prior; the most over-predicted class first."""
    figure, axes = canvas(max(7, 0.22 * len(rows) + 1.5), 4.2)
    ranks = range(len(rows))
    if rows[0]["known_log_prior"] is not None:
        known = [row["known_log_prior"] for row in rows]
        axes.plot(ranks, known, "D", color=ORANGE, markersize=4.5, label="known log prior of the captions")
    axes.errorbar(
        ranks, [row["log_bias"] for row in rows], yerr=[1.96 * row["error"] for row in rows], fmt="o", color=BLUE,
        markersize=4.5, elinewidth=1, label="estimated log bias, ± 1.96 standard errors",
    )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    names = [short_name(row["class"]) for row in rows]
    axes.set_xticks(ranks, names, rotation=90, fontsize=8 if len(rows) <= 60 else 5)
    axes.set_xlim(-0.8, len(rows) - 0.2)
    axes.set_ylabel("log bias, relative to the mean class (nats)")
    axes.set_title("Label bias: classes to the left are predicted too often, those to the right too rarely",
                   loc="left", fontsize=10)  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path, dpi=120)


@drawing()
def pseudo_label_figure(rows: list[dict[str, Any]], reference: dict[str, Any], line: str, path: Path) -> Path:
    """The study of pseudo-labels: a panel for each measure, a curve for each method, the pools along the x axis.

    Reversed pools are to the left of the uniform pool and consistent ones to its right, in one row of panels. Every
    other order of the pool has a row of its own.
    """
    families = _families(rows)
    is_single = len(families) == 1
    n_columns, n_rows = (3, 2) if is_single else (len(PANELS), len(families))
    figure = _figure(3.6 * n_columns, 3.1 * n_rows + 0.6)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    drawn: dict[str, Any] = {}
    for row, family in enumerate(families):
        for column, (name, panel) in enumerate(PANELS.items(), 1):
            axes = _axes(figure, n_rows, n_columns, row * n_columns + column, sharey=drawn.get(name))
            _curves(axes, rows, family.sides, name)
            if name == "bacc":
                axes.axhline(reference["mean"], color=GREY, linestyle="--", linewidth=1.1, label="LP+LA, labels only")
            if name not in drawn:
                axes.set_title(panel.title, loc="left", fontsize=10.5, pad=17)
                axes.text(0, 1.01, panel.reading, transform=axes.transAxes, fontsize=8.5, color=GREY, va="bottom")
            axes.set_ylabel(panel.unit, fontsize=9)
            axes.set_xlabel(family.axis, fontsize=9)
            axes.tick_params(labelsize=9)
            drawn.setdefault(name, axes)
    drawn["kl"].set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if is_single:
        axes = figure.add_subplot(n_rows, n_columns, len(PANELS) + 1)
        axes.axis("off")
        axes.legend(handles, labels, frameon=False, fontsize=9.5, loc="center left", labelspacing=0.8)
    else:
        figure.legend(handles, labels, frameon=False, fontsize=9.5, loc="outside upper right", ncols=4)
    figure.suptitle("How pseudo-labels follow the imbalance of the unlabelled pool", x=0.01, ha="left", fontsize=12)
    note = f"{line}\nAccepted pseudo-labels against the pool's true labels. Bars: 95 % intervals over seeds."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
    return save(figure, path, dpi=120)


@drawing()
def sweep_figure(sweep: dict[str, Any], path: Path) -> Path:
    """Parallel coordinates: an axis for each knob, a line for each configuration, coloured by its value.

    The best configuration is black; those that were stopped before the end are grey.
    """
    knobs = sorted(sweep["space"], key=lambda name: -sweep["importance"].get(name, 0))
    sign = measure(sweep["metric"].removeprefix("val.")).sign
    rows = sorted(_trials(sweep, "complete"), key=lambda row: sign * row["value"])
    figure, axes = canvas(max(8, 1.15 * len(knobs) + 2), 4.6)
    from matplotlib.cm import ScalarMappable  # after `canvas`, which tells where there is no matplotlib
    from matplotlib.colors import Normalize

    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    for x, name in enumerate(knobs):
        low, high = _ends(sweep["space"][name])
        axes.axvline(x, color="#bbbbbb", linewidth=1, zorder=1)
        axes.annotate(low, (x, 0), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8)
        axes.annotate(high, (x, 1), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    colors = ScalarMappable(Normalize(*sorted((rows[0]["value"], rows[-1]["value"]))), "viridis")
    for row in _trials(sweep, "pruned"):
        _line(axes, sweep, knobs, row, color="#dddddd", linewidth=0.5, zorder=0)
    for row in rows[:-1]:
        _line(axes, sweep, knobs, row, color=colors.to_rgba(row["value"]), linewidth=1)
    _line(axes, sweep, knobs, rows[-1], color="black", linewidth=2.2)
    axes.set_xticks(range(len(knobs)), knobs, fontsize=9)
    axes.set_xlim(-0.4, len(knobs) - 0.6)
    axes.set_ylim(0, 1)
    axes.tick_params(length=0, pad=16)
    axes.set_yticks([])
    figure.colorbar(colors, ax=axes, label=f"{sweep['metric']} (%)", pad=0.03)
    left_out = len(sweep["trials"]) - len(rows)
    title = (
        f"{sweep['method']}: configurations trained to the end ({len(rows)}), black the best; grey left a rung early"
    )
    order = ", the most important knob to the left" if sweep["importance"] else ""
    axes.set_title(f"{title} ({left_out}){order}", loc="left", fontsize=10, pad=22)
    return save(figure, path, dpi=120)


def _trials(sweep: dict[str, Any], state: str) -> list[dict[str, Any]]:
    return [row for row in sweep["trials"] if row["state"] == state]


@drawing()
def strategies_figure(rows: list[dict[str, Any]], line: str, path: Path) -> Path:
    """The study of LP, LFT, FFT and ULFine: accuracy, pseudo-labels and their confidence, false ones, and cost."""
    figure = _figure(13.2, 7.4)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    axes = [_axes(figure, 2, 3, number) for number in range(1, 7)]
    with_labels = [row for row in rows if "accepted" in row["curves"]]
    for row in rows:
        style = dict(zip(("color", "marker"), CURVES[rows.index(row) % len(CURVES)], strict=True))
        color, curves, name = style["color"], row["curves"], row["arm"]
        axes[0].plot(_smooth(curves["recall"]), color=color, linewidth=1.8, label=name)
        if row in with_labels:
            pairs = zip(curves["accepted"], curves["true"], strict=True)
            share = [(accepted or 0) / true if true else math.nan for accepted, true in pairs]
            axes[2].plot(_smooth(share), color=color, linewidth=1.8, label=name)
            for kind, dash in (("right", ":"), ("wrong", "-")):
                values = [value if value is not None else math.nan for value in curves[f"{kind}_confidence"]]
                text = name if kind == "wrong" else None
                axes[4].plot(curves["steps"], values, dash, linewidth=1.6, label=text, markersize=4.5, **style)
    _grouped(axes[1], rows, [[row[name] and row[name]["mean"] for name in GROUPS] for row in rows])
    _grouped(axes[3], with_labels, [row["curves"].get("false_by_group", [None] * 3) for row in with_labels], rows)
    _costs(axes[5], rows)
    axes[2].axhline(1, color=GREY, linewidth=1, linestyle="--")
    axes[2].set_yscale("log")
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("{x:g}")
    titles = (
        ("Accuracy by class", "classes, most labelled first (mean of 5 neighbours)", "accuracy (%)"),
        ("Accuracy by group", "", "balanced accuracy (%)"),
        ("Accepted pseudo-labels by class", "classes, most labelled first", "accepted / true rows"),
        ("False accepted pseudo-labels, by predicted class", "", "rows of the pool"),
        ("Confidence of wrong (solid) and right (dotted) labels", "training step", "mean confidence (%)"),
        ("Cost", "seconds a seed (log)", "balanced accuracy (%)"),
    )
    for plot, (title, x_label, y_label) in zip(axes, titles, strict=True):
        plot.set_title(title, loc="left", fontsize=10.5)
        plot.set_xlabel(x_label, fontsize=9)
        plot.set_ylabel(y_label, fontsize=9)
        plot.tick_params(labelsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=10, loc="outside upper right", ncols=5)
    figure.suptitle("Linear probe, lightweight and full fine-tuning, ULFine", x=0.01, ha="left", fontsize=12)
    figure.supxlabel(f"{line}\nBars and points: means over seeds.", x=0.01, ha="left", fontsize=8, color=GREY)
    return save(figure, path, dpi=120)


def _smooth(values: Sequence[float | None], width: int = 5) -> list[float]:
    """The moving average over `width` values; None and nan are left out of it."""
    smooth = []
    for index in range(len(values)):
        window = values[max(0, index - width // 2) : index + width // 2 + 1]
        known = [value for value in window if value is not None and value == value]
        smooth.append(sum(known) / len(known) if known else math.nan)
    return smooth


def _grouped(axes: Any, rows: list[Any], heights: list[Any], of: list[Any] | None = None) -> None:
    """A bar of each row for head, medium and tail; a row has the colour of its index in `of` (default: `rows`)."""
    width = 0.8 / max(1, len(rows))
    for index, (row, values) in enumerate(zip(rows, heights, strict=True)):
        color = CURVES[(of or rows).index(row) % len(CURVES)][0]
        shift = (index - (len(rows) - 1) / 2) * width
        bars = axes.bar(
            [group + shift for group in range(3)], [value or 0 for value in values], width * 0.94, color=color
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7.5, color=GREY)
    axes.set_xticks(range(3), GROUPS)


def _costs(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Accuracy against seconds of a seed, with the number of trained parameters."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    for row, (color, marker) in zip(rows, itertools.cycle(CURVES)):
        count = row["trained_in_encoder"] + row["trained_in_head"]
        point = max(row["seconds"]["mean"], 0.01), row["bacc"]["mean"]
        axes.plot(*point, marker, color=color, markersize=9)
        text = f"{row['arm']}\n{count:,} trained"
        axes.annotate(text, point, (0, 9), textcoords="offset points", ha="center", fontsize=8, color=color)
    axes.margins(0.22, 0.25)


def _line(axes: Any, sweep: dict[str, Any], knobs: Sequence[str], row: dict[str, Any], **style: Any) -> None:
    """A trial of a sweep as a line over the axes of its knobs."""
    heights = [_height(sweep["space"][name], row[name]) for name in knobs]
    axes.plot(range(len(knobs)), heights, marker="o", markersize=2.5, clip_on=False, **style)


def _is_range(space: Sequence[Any]) -> bool:
    """Whether the space of a knob is (low, high, is logarithmic) rather than a list of options."""
    return len(space) == 3 and isinstance(space[2], bool)


def _height(space: Sequence[Any], value: Any) -> float:
    """Where a value lies between the ends of its axis, 0 to 1."""
    if _is_range(space):
        low, high, at = (math.log(end) if space[2] else end for end in (space[0], space[1], value))
        return min(1.0, max(0.0, (at - low) / (high - low)))
    return list(space).index(value) / max(1, len(space) - 1)


def _ends(space: Sequence[Any]) -> tuple[str, str]:
    """The labels of the lower and the upper end of a knob's axis."""
    if _is_range(space):
        return f"{space[0]:g}", f"{space[1]:g}" + (" (log)" if space[2] else "")
    return str(space[0]), str(space[-1])


class Family(NamedTuple):
    """The pools that share one x axis, by their imbalance gamma; pools of gamma 1 are in the middle."""

    axis: str  # the label of the axis
    sides: dict[str, int]  # by order of the pool: -1 is left of the middle, 1 is right of it


def _families(rows: list[dict[str, Any]]) -> list[Family]:
    """Reversed and consistent pools on one axis if there are both, each further order on an axis of its own."""
    orders = list(dict.fromkeys(row["order"] for row in rows if row["gamma_u"] > 1))
    if not orders:
        return [Family("pool imbalance γ", {})]
    both, families = {"reversed": -1, "consistent": 1}, []
    if both.keys() <= {*orders}:
        label = "reversed  ←  pool imbalance γ  →  consistent"
        families.append(Family(label, both))
        orders = [order for order in orders if order not in both]
    return families + [Family(f"pool imbalance γ, {order}", {order: 1}) for order in orders]


def _curves(axes: Any, rows: list[dict[str, Any]], sides: dict[str, int], name: str) -> None:
    """A measure of every method over the pools of a family; curves are shifted a little so that no bars overlap."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows = [row for row in rows if row["gamma_u"] == 1 or row["order"] in sides]
    x = {row["pool"]: sides.get(row["order"], 1) * math.log10(row["gamma_u"]) for row in rows}
    apart = 0.009 * (max(x.values()) - min(x.values()) or 1)
    for index, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method and row[name] is not None]
        own.sort(key=lambda row: x[row["pool"]])
        shift = apart * (index - (len(methods) - 1) / 2)
        means = [row[name]["mean"] for row in own]
        halves = [_half(row[name]["values"]) for row in own]
        ceiling = math.inf if name == "kl" else 100.0
        bars = [[min(half, y), min(half, ceiling - y)] for half, y in zip(halves, means, strict=True)]
        color, marker = CURVES[index % len(CURVES)]
        axes.errorbar(
            [x[row["pool"]] + shift for row in own], means, yerr=list(zip(*bars, strict=True)) or None,
            color=color, ecolor=(*rgb(color), 0.45), marker=marker, markersize=6, markeredgecolor="white",
            markeredgewidth=0.7, linewidth=1.6, elinewidth=1.6,
            linestyle="-" if index < len(CURVES) else ":", label=method,
        )  # fmt: skip
    ticks = {x[row["pool"]]: f"{row['gamma_u']:g}" for row in rows}
    axes.set_xticks(sorted(ticks), [ticks[tick] for tick in sorted(ticks)])


def _half(values: Sequence[float | None]) -> float:
    """Half the 95 % interval of the mean over seeds, without None; 0 for fewer than two values."""
    half = half_interval([value for value in values if value is not None])
    return half if half == half else 0.0
