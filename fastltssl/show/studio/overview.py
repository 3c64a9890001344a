"""The runs side by side over training: accuracy by group, calibration, pseudo-labels, and each class at one step."""

import html
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource

from fastltssl.analysis.history import Insight, reporting
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Session, insights_of

PANELS = {  # metric -> title, axis, reading
    "bacc": ("Balanced accuracy", "balanced accuracy (%)", "Mean recall of the test classes; higher is better."),
    "top1": ("Top-1 accuracy", "accuracy (%)", "Share of test rows that are right; higher is better."),
    "ece": ("Calibration error", "ECE (%)", "Mean gap between confidence and accuracy; lower is better."),
    "head": ("Head classes", "recall (%)", "The third with the most labels; the bias favours them."),
    "medium": ("Medium classes", "recall (%)", "The third in between, where what a cure takes from the head may land."),
    "tail": ("Tail classes", "recall (%)", "The third with the fewest labels; the bias costs them most."),
    "pseudo_accuracy": ("Pseudo-label accuracy", "right, of accepted (%)", "Share of accepted pseudo-labels that are "
                        "right; read it with the next plot."),
    "pseudo_mask_rate": ("Accepted pseudo-labels", "rows accepted (%)", "Share of the pool at or above the run's "
                         "threshold."),
    "pseudo_kl": ("Distance from the true prior", "KL (nats)", "Classes of accepted pseudo-labels against the true "
                  "classes of the pool; 0 is unbiased."),
}  # fmt: skip
NATS = ("pseudo_kl",)  # percent otherwise
COLUMNS = ("top1", "bacc", "head", "medium", "tail", "ece", "pseudo_accuracy")


def page(session: Session) -> tuple[Any, Any, Any]:
    """The layout, what repaints it, and the CSV of what it shows."""
    dark = session.is_dark
    numbers, notes = d.text("", dark), d.text("", dark)
    made = {metric: d.plot("training step", unit, dark, 210) for metric, (_, unit, _) in PANELS.items()}
    spans = [d.scrubber(each, dark) for each in made.values()]
    recall = d.plot("classes, most labelled first", "recall (%)", dark, 280)
    reliability = d.plot("confidence (%)", "accuracy (%)", dark, 280, x_range=(0, 100), y_range=(0, 100))
    sources: dict[tuple[str, str], ColumnDataSource] = {}
    reliability.line([0, 100], [0, 100], line_color=d.GREY, line_dash="dashed")

    def repaint() -> None:
        insights = insights_of(session)
        for name, insight in insights.items():
            if (name, "recall") not in sources:
                _add(name, d.look(list(session.runs).index(name), dark), made, recall, reliability, sources)
            _fill(name, insight, _place(session, insight), sources)
        known = {metric for (_, metric), own in sources.items() if metric in cards and len(own.data["x"])}
        if (wanted := [each for metric, each in cards.items() if metric in known]) != curves.objects:
            curves.objects = wanted
        shown = session.shown
        assert shown is not None
        for span in spans:
            span.location = float(shown.insight.steps[shown.place])
        order = _ranked(shown.insight)
        d.class_axis(recall, [shown.insight.classes[k] for k in order])
        numbers.object = d.table(
            ["run, at its step", *(_title(metric) for metric in COLUMNS)], _rows(session, insights)
        )
        told = {name: reporting(insight) for name, insight in insights.items()}
        notes.object = "".join(d.note(f"{name}: {text}") for name, text in told.items() if text)

    cards = {
        metric: d.card(title, reading, d.pane(made[metric]), dark) for metric, (title, _, reading) in PANELS.items()
    }
    curves = d.grid(columns=3)
    layout = pn.Column(
        d.card("Test metrics at the step", "At the evaluation nearest to the step, percent.",
               pn.Column(numbers, notes, sizing_mode="stretch_width"), dark),
        curves,
        d.grid(
            d.card("Recall of each class", "From the most to the least labelled class: a slope down to the right is "
                   "the bias of the long tail.", d.pane(recall), dark),
            d.card("Reliability", "Points below the dashed line are over-confident, above it under-confident.",
                   d.pane(reliability), dark),
        ),
        sizing_mode="stretch_width",
    )  # fmt: skip
    return layout, repaint, lambda: _lines(session, insights_of(session))


def _place(session: Session, insight: Insight) -> int:
    """The evaluation of a run nearest to the step of the scrubber."""
    return int(np.abs(insight.steps - session.step.value).argmin())


def _ranked(insight: Insight) -> list[int]:
    return insight.counts.argsort(descending=True, stable=True).tolist()


def _title(metric: str) -> str:
    return {"top1": "top-1", "bacc": "bACC", "ece": "ECE", "pseudo_accuracy": "pseudo-labels"}.get(metric, metric)


def _rows(session: Session, insights: dict[str, Insight]) -> list[list[str]]:
    rows = []
    for name, insight in insights.items():
        place, at = list(session.runs).index(name), _place(session, insight)
        own = [insight.curves[metric][at] if metric in insight.curves else None for metric in COLUMNS]
        cell = d.Markup(
            f"{d.chip(place, session.is_dark)}{html.escape(name)}, seed {insight.seed}, step {insight.steps[at]}"
        )
        rows.append([cell, *(d.percent(value) for value in own)])
    return rows


def _add(
    name: str, look: tuple[str, str, str], made: dict[str, Any], recall: Any, reliability: Any,
    sources: dict[tuple[str, str], ColumnDataSource],
) -> None:  # fmt: skip
    """The glyphs of one more run."""
    color, marker, dash = look
    for metric, plot in made.items():
        sources[name, metric] = own = d.source(f"{metric}/{name}", x=[], y=[], run=[])
        plot.line("x", "y", source=own, line_color=color, line_width=2, line_dash=dash)
        dots = plot.scatter("x", "y", source=own, color=color, size=6, marker=marker)
        d.hover(plot, [("run", "@run"), ("step", "@x"), (PANELS[metric][1], "@y{0.00}")], dots)
    sources[name, "recall"] = own = d.source(f"recall/{name}", x=[], y=[], run=[], name=[], labelled=[])
    dots = recall.scatter("x", "y", source=own, color=color, size=7, marker=marker, alpha=0.85)
    d.hover(
        recall, [("run", "@run"), ("class", "@name"), ("labelled rows", "@labelled"), ("recall", "@y{0.0} %")], dots
    )
    sources[name, "reliability"] = own = d.source(f"reliability/{name}", x=[], y=[], rows=[], run=[])
    reliability.line("x", "y", source=own, line_color=color, line_width=1.5, line_dash=dash)
    dots = reliability.scatter("x", "y", source=own, color=color, size=7, marker=marker)
    d.hover(reliability, [("run", "@run"), ("rows", "@rows"), ("accuracy", "@y{0.0} %")], dots)


def _fill(name: str, insight: Insight, at: int, sources: dict[tuple[str, str], ColumnDataSource]) -> None:
    who = f"{name}, seed {insight.seed}"
    for metric in PANELS:
        values = insight.curves.get(metric, np.full(len(insight.steps), np.nan))
        known = ~np.isnan(values)
        y = values[known] if metric in NATS else 100 * values[known]
        sources[name, metric].data = {"x": d.column(insight.steps[known]), "y": d.column(y), "run": [who] * len(y)}
    order = _ranked(insight)
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
    """What every plot shows, which the first column names: a line an evaluation, a class or a bin of a run."""
    lines = []
    for name, insight in insights.items():
        at, who = _place(session, insight), {"run": name, "seed": insight.seed}
        for place, step in enumerate(insight.steps):
            values = {
                f"{metric}_{'nats' if metric in NATS else 'percent'}": curve[place] * (1 if metric in NATS else 100)
                for metric, curve in insight.curves.items()
                if metric in PANELS
            }
            lines.append({"plot": "over training"} | who | {"step": int(step)} | values)
        who["step"] = int(insight.steps[at])
        for k in _ranked(insight):
            own = {"class": insight.classes[k], "labelled": int(insight.counts[k])}
            recall = {"recall_percent": 100 * float(insight.recorded.test_recall[at][k])}
            lines.append({"plot": "recall of each class"} | who | own | recall)
        for rows, confidence, accuracy in insight.recorded.test_reliability[at][0]:
            if rows:
                shown = {"rows": int(rows), "confidence_percent": 100 * confidence, "accuracy_percent": 100 * accuracy}
                lines.append({"plot": "reliability"} | who | shown)
    return lines
