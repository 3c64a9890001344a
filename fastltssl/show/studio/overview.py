"""All runs side by side over training: accuracy by group, calibration, pseudo-labels, and each class at one step."""

import html
from typing import Any, NamedTuple

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource

from fastltssl.analysis.history import Insight, reporting
from fastltssl.functional.measures import MAIN, measure
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Page, Session, Shown, insights_of, ranked

PANELS = {  # measure of a history -> title, reading
    "bacc": ("Balanced accuracy", "Mean recall of the test classes; higher is better."),
    "top1": ("Top-1 accuracy", "Share of test rows that are right; higher is better."),
    "ece": ("Calibration error", "Mean gap between confidence and accuracy; lower is better."),
    "head": ("Head classes", "The third with the most labels; the bias favours them."),
    "medium": ("Medium classes", "The third in between, where what a cure takes from the head may land."),
    "tail": ("Tail classes", "The third with the fewest labels; the bias costs them most."),
    "pseudo_accuracy": ("Pseudo-label accuracy", "Share of accepted pseudo-labels that are right; read it with the "
                        "next plot."),
    "pseudo_mask_rate": ("Accepted pseudo-labels", "Share of the pool at or above the run's threshold."),
    "pseudo_kl": ("Distance from the true prior", "Classes of accepted pseudo-labels against the true classes of the "
                  "pool; 0 is unbiased."),
}  # fmt: skip
COLUMNS = (*MAIN, "pseudo_accuracy")


class Plots(NamedTuple):
    """The plots, to which runs are added when they are first shown."""

    curves: dict[str, Any]  # over training, by measure
    recall: Any
    reliability: Any
    sources: dict[tuple[str, str], ColumnDataSource]  # by name of the run, and by measure, "recall" or "reliability"


def page(session: Session) -> Page:
    """The tab "Overview"."""
    dark = session.is_dark
    numbers, notes = d.text("", dark), d.text("", dark)
    plots = _plots(dark)
    steps = [d.scrubber(plot, dark) for plot in plots.curves.values()]
    cards = {name: d.card(*PANELS[name], d.pane(plot), dark) for name, plot in plots.curves.items()}
    curves = d.grid(columns=3)

    def repaint(shown: Shown) -> None:
        insights = insights_of(session)
        for name, insight in insights.items():
            if (name, "recall") not in plots.sources:
                _add(name, d.look(list(session.runs).index(name), dark), plots)
            _fill(name, insight, _place(session, insight), plots.sources)
        filled = {name for (_, name), own in plots.sources.items() if name in cards and len(own.data["x"])}
        if (wanted := [card for name, card in cards.items() if name in filled]) != curves.objects:
            curves.objects = wanted
        for step in steps:
            step.location = float(shown.insight.steps[shown.place])
        d.class_axis(plots.recall, [shown.insight.classes[k] for k in shown.ranked])
        columns = ["run, at its step", *(measure(name).title for name in COLUMNS)]
        numbers.object = d.table(columns, _rows(session, insights))
        told = {name: reporting(insight) for name, insight in insights.items()}
        notes.object = "".join(d.note(f"{name}: {text}") for name, text in told.items() if text)

    layout = pn.Column(
        d.card("Test metrics at the step", "At the evaluation nearest to the step, percent.",
               pn.Column(numbers, notes, sizing_mode="stretch_width"), dark),
        curves,
        d.grid(
            d.card("Recall of each class", "From the most to the least labelled class: a slope down to the right is "
                   "the bias of the long tail.", d.pane(plots.recall), dark),
            d.card("Reliability", "Points below the dashed line are over-confident, above it under-confident.",
                   d.pane(plots.reliability), dark),
        ),
        sizing_mode="stretch_width",
    )  # fmt: skip
    return Page(layout, repaint, lambda shown: _lines(session, insights_of(session)))


def _plots(dark: bool) -> Plots:
    curves = {name: d.plot("training step", measure(name).axis, dark, 210) for name in PANELS}
    recall = d.plot("classes, most labelled first", "recall (%)", dark, 280)
    reliability = d.plot("confidence (%)", "accuracy (%)", dark, 280, x_range=(0, 100), y_range=(0, 100))
    reliability.line([0, 100], [0, 100], line_color=d.GREY, line_dash="dashed")
    return Plots(curves, recall, reliability, {})


def _place(session: Session, insight: Insight) -> int:
    """The evaluation of a run that is nearest to the chosen step."""
    return int(np.abs(insight.steps - session.step.value).argmin())


def _rows(session: Session, insights: dict[str, Insight]) -> list[list[str]]:
    rows = []
    for name, insight in insights.items():
        at = _place(session, insight)
        values = [insight.curves[column][at] if column in insight.curves else None for column in COLUMNS]
        head = f"{html.escape(name)}, seed {insight.seed}, step {insight.steps[at]}"
        chip = d.chip(list(session.runs).index(name), session.is_dark)
        rows.append([d.Markup(chip + head), *(d.percent(value) for value in values)])
    return rows


def _add(name: str, look: tuple[str, str, str], plots: Plots) -> None:
    """Add a run to all plots."""
    color, marker, dash = look
    for metric, plot in plots.curves.items():
        plots.sources[name, metric] = own = d.source(f"{metric}/{name}", x=[], y=[], run=[])
        plot.line("x", "y", source=own, line_color=color, line_width=2, line_dash=dash)
        dots = plot.scatter("x", "y", source=own, color=color, size=6, marker=marker)
        d.hover(plot, [("run", "@run"), ("step", "@x"), (measure(metric).axis, "@y{0.00}")], dots)
    plots.sources[name, "recall"] = own = d.source(f"recall/{name}", x=[], y=[], run=[], name=[], labelled=[])
    dots = plots.recall.scatter("x", "y", source=own, color=color, size=7, marker=marker, alpha=0.85)
    tips = [("run", "@run"), ("class", "@name"), ("labelled rows", "@labelled"), ("recall", "@y{0.0} %")]
    d.hover(plots.recall, tips, dots)
    plots.sources[name, "reliability"] = own = d.source(f"reliability/{name}", x=[], y=[], rows=[], run=[])
    plots.reliability.line("x", "y", source=own, line_color=color, line_width=1.5, line_dash=dash)
    dots = plots.reliability.scatter("x", "y", source=own, color=color, size=7, marker=marker)
    d.hover(plots.reliability, [("run", "@run"), ("rows", "@rows"), ("accuracy", "@y{0.0} %")], dots)


def _fill(name: str, insight: Insight, at: int, sources: dict[tuple[str, str], ColumnDataSource]) -> None:
    """Give the plots the numbers of a run, those of classes and bins at evaluation `at`."""
    who = f"{name}, seed {insight.seed}"
    for metric in PANELS:
        values = insight.curves.get(metric, np.full(len(insight.steps), np.nan))
        known = ~np.isnan(values)
        y = measure(metric).factor * values[known]
        sources[name, metric].data = {"x": d.column(insight.steps[known]), "y": d.column(y), "run": [who] * len(y)}
    order = ranked(insight)
    sources[name, "recall"].data = {
        "x": d.column(range(len(order))),
        "y": d.column(100 * insight.recorded.test_recall[at][order]),
        "run": [who] * len(order),
        "name": [insight.classes[k] for k in order],
        "labelled": [int(insight.counts[k]) for k in order],
    }
    rows, confidence, accuracy = insight.recorded.test_reliability[at][0].T
    kept = rows > 0
    sources[name, "reliability"].data = {
        "x": d.column(100 * confidence[kept]),
        "y": d.column(100 * accuracy[kept]),
        "rows": d.column(rows[kept]),
        "run": [who] * int(kept.sum()),
    }


def _lines(session: Session, insights: dict[str, Insight]) -> list[dict[str, Any]]:
    """What the plots show. The first column names the plot; a row is an evaluation, a class or a bin of a run."""
    lines = []
    for name, insight in insights.items():
        at, who = _place(session, insight), {"run": name, "seed": insight.seed}
        for place, step in enumerate(insight.steps):
            values = {
                f"{name}_{measure(name).unit.replace('%', 'percent')}": curve[place] * measure(name).factor
                for name, curve in insight.curves.items()
                if name in PANELS
            }
            lines.append({"plot": "over training"} | who | {"step": int(step)} | values)
        who["step"] = int(insight.steps[at])
        for k in ranked(insight):
            own = {"class": insight.classes[k], "labelled": int(insight.counts[k])}
            recall = {"recall_percent": 100 * float(insight.recorded.test_recall[at][k])}
            lines.append({"plot": "recall of each class"} | who | own | recall)
        for rows, confidence, accuracy in insight.recorded.test_reliability[at][0]:
            if rows:
                shown = {"rows": int(rows), "confidence_percent": 100 * confidence, "accuracy_percent": 100 * accuracy}
                lines.append({"plot": "reliability"} | who | shown)
    return lines
