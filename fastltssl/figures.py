"""Pictures for files. matplotlib draws them and is an extra; without it a picture is left out with a message."""

from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # Okabe and Ito's palette, safe for colour-blind eyes


class FigureError(RuntimeError):
    """A picture that cannot be drawn here."""


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure without a window, and its axes; inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError('no picture without matplotlib: pip install "fastltssl[plots]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


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


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path
