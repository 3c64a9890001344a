"""Pictures for files. matplotlib draws them and is an extra; without it a picture is left out with a message."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastltssl.errors import FigureError
from fastltssl.functional.statistics import half_interval

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # Okabe and Ito's palette, safe for colour-blind eyes
CURVES = (  # colour and marker of each curve, so that either alone tells them apart
    (BLUE, "o"), (ORANGE, "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
PANELS = {  # measure of a study -> title, unit, and which way is better
    "kl": ("Class shares of accepted labels", "KL to the true shares (nats)", "lower is better"),
    "tail_recall": ("Recall of tail classes", "tail recall (%)", "higher is better"),
    "precision": ("Precision", "precision (%)", "higher is better"),
    "mask_rate": ("Accepted share of the pool", "rows accepted (%)", "at or above the method's threshold"),
    "bacc": ("Balanced test accuracy", "balanced accuracy (%)", "higher is better"),
}


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure without a window, and its axes; inches."""
    figure = _figure(width, height)
    return figure, _axes(figure, 1, 1, 1)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError('no picture without matplotlib: pip install "fastltssl[plots]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Any, *place: int, sharey: Any = None) -> Any:
    axes = figure.add_subplot(*place, sharey=sharey)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def bias_figure(rows: list[dict[str, Any]], path: Path) -> Path:
    """Label bias of each class with its 95 % interval, most over-predicted first, and the known prior beside it."""
    figure, axes = _canvas(max(7, 0.22 * len(rows) + 1.5), 4.2)
    places = range(len(rows))
    if rows[0]["known_log_prior"] is not None:
        known = [row["known_log_prior"] for row in rows]
        axes.plot(places, known, "D", color=ORANGE, markersize=4.5, label="known log prior of the captions")
    axes.errorbar(
        places, [row["log_bias"] for row in rows], yerr=[1.96 * row["error"] for row in rows], fmt="o", color=BLUE,
        markersize=4.5, elinewidth=1, label="estimated log bias, ± 1.96 standard errors",
    )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(places, [row["class"] for row in rows], rotation=90, fontsize=8 if len(rows) <= 60 else 5)
    axes.set_xlim(-0.8, len(rows) - 0.2)
    axes.set_ylabel("log bias, relative to the mean class (nats)")
    axes.set_title("Label bias: classes to the left are predicted too often, those to the right too rarely",
                   loc="left", fontsize=10)  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    return _saved(figure, path)


def views_figure(results: dict[str, Any], line: str, path: Path) -> Path:
    """Balanced accuracy against the number of cached views, one curve a method, live augmentation as a band."""
    figure, axes = _canvas(7.6, 4.4)
    for (title, by_count), color in zip(results.items(), (BLUE, ORANGE), strict=False):
        counts = [int(name) for name in by_count if name != "live"]
        cached, live = [by_count[str(count)] for count in counts], by_count["live"]
        axes.axhspan(live["bacc"] - live["interval"], live["bacc"] + live["interval"], color=color, alpha=0.1, lw=0)
        axes.axhline(live["bacc"], color=color, linestyle="--", linewidth=1.2, label=f"{title}: live augmentation")
        axes.errorbar(
            counts, [one["bacc"] for one in cached], yerr=[one["interval"] for one in cached],
            fmt="o-", color=color, markersize=5, elinewidth=1.2, capsize=3, label=f"{title}: cached views",
        )  # fmt: skip
        for count, one in zip(counts, cached, strict=True):
            text = f"{one['minus_live']:+.1f} ± {one['difference_interval']:.1f}"
            axes.annotate(text, (count, one["bacc"]), (7, -11), textcoords="offset points", fontsize=7.5, color=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("cached views of each image and strength")
    axes.set_ylabel("balanced test accuracy (%)")
    axes.set_title(f"How many cached views replace live augmentation?\n{line}", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_xlim(0.87, counts[-1] * 1.35)
    note = (
        "Bars and bands: 95 % intervals of the mean over seeds, whose splits differ. Small: cached minus live,\n"
        "paired by seed, with its 95 % interval; no loss is seen where that holds zero."
    )
    figure.text(0.01, -0.05, note, fontsize=8, color=GREY)
    return _saved(figure, path)


def pseudo_label_figure(rows: list[dict[str, Any]], reference: dict[str, Any], line: str, path: Path) -> Path:
    """Small multiples of a study of pseudo-labels: a panel a measure, a curve a method, the pools along x.

    Reversed pools lie left of the uniform one and consistent ones right of it; other orders have rows of their own.
    """
    families = _families(rows)
    wide = 3 if len(families) == 1 else len(PANELS)
    high = 2 if len(families) == 1 else len(families)
    figure = _figure(3.6 * wide, 3.1 * high + 0.6)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    drawn: dict[str, Any] = {}
    for depth, (name, sides) in enumerate(families):
        for index, (measure, (title, unit, hint)) in enumerate(PANELS.items()):
            axes = _axes(figure, high, wide, depth * wide + index + 1, sharey=drawn.get(measure))
            _curves(axes, rows, sides, measure)
            if measure == "bacc":
                axes.axhline(reference["mean"], color=GREY, linestyle="--", linewidth=1.1, label="LP+LA, labels only")
            if measure not in drawn:
                axes.set_title(title, loc="left", fontsize=10.5, pad=17)
                axes.text(0, 1.01, hint, transform=axes.transAxes, fontsize=8.5, color=GREY, va="bottom")
            axes.set_ylabel(unit, fontsize=9)
            axes.set_xlabel(name, fontsize=9)
            axes.tick_params(labelsize=9)
            drawn.setdefault(measure, axes)
    drawn["kl"].set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if len(families) == 1:
        axes = figure.add_subplot(high, wide, len(PANELS) + 1)
        axes.axis("off")
        axes.legend(handles, labels, frameon=False, fontsize=9.5, loc="center left", labelspacing=0.8)
    else:
        figure.legend(handles, labels, frameon=False, fontsize=9.5, loc="outside upper right", ncols=4)
    figure.suptitle("How pseudo-labels follow the imbalance of the unlabelled pool", x=0.01, ha="left", fontsize=12)
    note = f"{line}\nAccepted pseudo-labels against the pool's true labels. Bars: 95 % intervals over seeds."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
    return _saved(figure, path)


def sweep_figure(found: dict[str, Any], path: Path) -> Path:
    """Parallel coordinates: an axis a knob, a line a configuration, coloured by its value; the best one is black."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    knobs = sorted(found["space"], key=lambda name: -found["importance"].get(name, 0))
    rows = [row for row in found["trials"] if row["state"] == "complete"]
    sign = -1 if found["metric"].endswith("ce") else 1
    rows.sort(key=lambda row: sign * row["value"])
    figure, axes = _canvas(max(8, 1.15 * len(knobs) + 2), 4.6)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    for place, name in enumerate(knobs):
        low, high = _ends(found["space"][name])
        axes.axvline(place, color="#bbbbbb", linewidth=1, zorder=1)
        axes.annotate(low, (place, 0), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8)
        axes.annotate(high, (place, 1), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    colors = ScalarMappable(Normalize(*sorted((rows[0]["value"], rows[-1]["value"]))), "viridis")
    for row in [each for each in found["trials"] if each["state"] == "pruned"]:
        _line(axes, found, knobs, row, color="#dddddd", linewidth=0.5, zorder=0)
    for row in rows[:-1]:
        _line(axes, found, knobs, row, color=colors.to_rgba(row["value"]), linewidth=1)
    _line(axes, found, knobs, rows[-1], color="black", linewidth=2.2)
    axes.set_xticks(range(len(knobs)), knobs, fontsize=9)
    axes.set_xlim(-0.4, len(knobs) - 0.6)
    axes.set_ylim(0, 1)
    axes.tick_params(length=0, pad=16)
    axes.set_yticks([])
    figure.colorbar(colors, ax=axes, label=f"{found['metric']} (%)", pad=0.03)
    left_out = len(found["trials"]) - len(rows)
    title = (
        f"{found['method']}: configurations trained to the end ({len(rows)}), black the best; grey left a rung early"
    )
    order = ", the most important knob to the left" if found["importance"] else ""
    axes.set_title(f"{title} ({left_out}){order}", loc="left", fontsize=10, pad=22)
    return _saved(figure, path)


def strategies_figure(rows: list[dict[str, Any]], line: str, path: Path) -> Path:
    """The analysis of LP, LFT, FFT and ULFine: accuracy and pseudo-labels by class, false ones, confidence, cost."""
    figure = _figure(13.2, 7.4)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    axes = [_axes(figure, 2, 3, place) for place in range(1, 7)]
    with_labels = [row for row in rows if "accepted" in row["curves"]]
    for row in rows:
        style = dict(zip(("color", "marker"), CURVES[rows.index(row) % len(CURVES)], strict=True))
        color, curves, name = style["color"], row["curves"], row["arm"]
        axes[0].plot(_smooth(curves["recall"]), color=color, linewidth=1.8, label=name)
        if row in with_labels:
            share = [_ratio(a, t) for a, t in zip(curves["accepted"], curves["true"], strict=True)]
            axes[2].plot(_smooth(share), color=color, linewidth=1.8, label=name)
            for kind, look in (("right", ":"), ("wrong", "-")):
                values = [value if value is not None else math.nan for value in curves[f"{kind}_confidence"]]
                text = name if kind == "wrong" else None
                axes[4].plot(curves["steps"], values, look, linewidth=1.6, label=text, markersize=4.5, **style)
    _grouped(axes[1], rows, [[row[name] and row[name]["mean"] for name in ("head", "medium", "tail")] for row in rows])
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
    for each, (title, below, side) in zip(axes, titles, strict=True):
        each.set_title(title, loc="left", fontsize=10.5)
        each.set_xlabel(below, fontsize=9)
        each.set_ylabel(side, fontsize=9)
        each.tick_params(labelsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=10, loc="outside upper right", ncols=5)
    figure.suptitle("Linear probe, lightweight and full fine-tuning, ULFine", x=0.01, ha="left", fontsize=12)
    figure.supxlabel(f"{line}\nBars and points: means over seeds.", x=0.01, ha="left", fontsize=8, color=GREY)
    return _saved(figure, path)


def _ratio(value: float | None, of: float | None) -> float:
    return (value or 0) / of if of else math.nan


def _smooth(values: Sequence[float | None], width: int = 5) -> list[float]:
    """Mean of each value and its neighbours, of those that are there."""
    found = []
    for place in range(len(values)):
        near = [v for v in values[max(0, place - width // 2) : place + width // 2 + 1] if v is not None and v == v]
        found.append(sum(near) / len(near) if near else math.nan)
    return found


def _grouped(axes: Any, rows: list[Any], heights: list[Any], of: list[Any] | None = None) -> None:
    """Bars of head, medium and tail, one color a row; `of` are the rows whose places give the colors."""
    width = 0.8 / max(1, len(rows))
    for place, (row, values) in enumerate(zip(rows, heights, strict=True)):
        color = CURVES[(of or rows).index(row) % len(CURVES)][0]
        shift = (place - (len(rows) - 1) / 2) * width
        bars = axes.bar([k + shift for k in range(3)], [value or 0 for value in values], width * 0.94, color=color)
        axes.bar_label(bars, fmt="%.0f", fontsize=7.5, color=GREY)
    axes.set_xticks(range(3), ["head", "medium", "tail"])


def _costs(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Seconds of a seed against accuracy, with the numbers that train."""
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        color, marker = CURVES[place % len(CURVES)]
        count = row["trained_in_encoder"] + row["trained_in_head"]
        at = max(row["seconds"]["mean"], 0.01), row["bacc"]["mean"]
        axes.plot(*at, marker, color=color, markersize=9)
        text = f"{row['arm']}\n{count:,} trained"
        axes.annotate(text, at, (0, 9), textcoords="offset points", ha="center", fontsize=8, color=color)
    axes.margins(0.22, 0.25)


def _line(axes: Any, found: dict[str, Any], knobs: Sequence[str], row: dict[str, Any], **style: Any) -> None:
    heights = [_height(found["space"][name], row[name]) for name in knobs]
    axes.plot(range(len(knobs)), heights, marker="o", markersize=2.5, clip_on=False, **style)


def _height(space: list[Any] | tuple[Any, ...], value: Any) -> float:
    if len(space) == 3 and isinstance(space[2], bool):
        low, high, at = (math.log(each) if space[2] else each for each in (space[0], space[1], value))
        return min(1.0, max(0.0, (at - low) / (high - low)))
    return list(space).index(value) / max(1, len(space) - 1)


def _ends(space: list[Any] | tuple[Any, ...]) -> tuple[str, str]:
    if len(space) == 3 and isinstance(space[2], bool):
        return f"{space[0]:g}", f"{space[1]:g}" + (" (log)" if space[2] else "")
    return str(space[0]), str(space[-1])


def _families(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, int]]]:
    """Axis name, and side of each order on it: -1 left, 1 right; pools of gamma 1 are in the middle of every axis."""
    orders = list(dict.fromkeys(row["order"] for row in rows if row["gamma_u"] > 1))
    both = {"reversed": -1, "consistent": 1}
    found: list[tuple[str, dict[str, int]]] = []
    if not orders:
        return [("pool imbalance $\\gamma_u$", {})]
    if both.keys() <= {*orders}:
        found.append(("reversed  $\\leftarrow$  pool imbalance $\\gamma_u$  $\\rightarrow$  consistent", both))
        orders = [order for order in orders if order not in both]
    return found + [(f"pool imbalance $\\gamma_u$, {order}", {order: 1}) for order in orders]


def _curves(axes: Any, rows: list[dict[str, Any]], sides: dict[str, int], measure: str) -> None:
    """One measure of every method over the pools of one axis; curves are set apart sideways so that bars show."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shown = [row for row in rows if row["gamma_u"] == 1 or row["order"] in sides]
    place = {row["pool"]: sides.get(row["order"], 1) * math.log10(row["gamma_u"]) for row in shown}
    apart = 0.009 * (max(place.values()) - min(place.values()) or 1)
    for number, name in enumerate(methods):
        found = [row for row in shown if row["method"] == name and row[measure] is not None]
        found.sort(key=lambda row: place[row["pool"]])
        shift = apart * (number - (len(methods) - 1) / 2)
        means = [row[measure]["mean"] for row in found]
        halves = [_half(row[measure]["values"]) for row in found]
        ceiling = math.inf if measure == "kl" else 100.0
        bars = [[min(half, y), min(half, ceiling - y)] for half, y in zip(halves, means, strict=True)]
        color, marker = CURVES[number % len(CURVES)]
        axes.errorbar(
            [place[row["pool"]] + shift for row in found], means, yerr=list(zip(*bars, strict=True)) or None,
            color=color, ecolor=(*_rgb(color), 0.45), marker=marker, markersize=6, markeredgecolor="white",
            markeredgewidth=0.7, linewidth=1.6, elinewidth=1.6,
            linestyle="-" if number < len(CURVES) else ":", label=name,
        )  # fmt: skip
    ticks = {place[row["pool"]]: f"{row['gamma_u']:g}" for row in shown}
    axes.set_xticks(sorted(ticks), [ticks[each] for each in sorted(ticks)])


def _rgb(color: str) -> tuple[float, ...]:
    """Red, green and blue in [0, 1] of "#rrggbb"."""
    return tuple(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))


def _half(values: Sequence[float | None]) -> float:
    """Half the 95 % interval of the mean of the seeds that have a value; 0 for fewer than two."""
    half = half_interval([value for value in values if value is not None])
    return half if half == half else 0.0


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path
