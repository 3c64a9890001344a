"""The parts of a report: runs with their names, figures with the numbers behind them, and reasons for missing figures.

A figure shows one seed. A figure that does not run over training shows the last evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastltssl.analysis import history as numbers
from fastltssl.analysis.history import Insight, Summary
from fastltssl.functional.metrics import GROUPS
from fastltssl.show.names import names_of
from fastltssl.show.report import figures as draw
from fastltssl.show.report.figures import BROAD, SMALL, Lines
from fastltssl.types import OverTime, PerClass

MOST_IN_SMALL = 45  # classes; a figure of more classes is as wide as the page


class Case(NamedTuple):
    """A run as a report shows it."""

    name: str
    insight: Insight
    summary: Summary | None  # of its last pseudo-labels; None if it makes no pseudo-labels
    state: list[PerClass | OverTime]


class Plot(NamedTuple):
    """A figure and the numbers behind it."""

    name: str  # of its files, made by `slug`
    caption: str  # the name of its run; empty if it shows several runs
    figure: Any
    lines: Lines
    rows: tuple[tuple[str, ...], ...] = ()  # a small table under the figure; the first row is its header


class Question(NamedTuple):
    """What an exhibit shows."""

    title: str
    reading: str  # how to read its figures, in a sentence or two


class Exhibit(NamedTuple):
    """A question with a figure for each run, or with one figure for all runs."""

    question: Question
    plots: list[Plot]
    missing: list[str]  # why runs have no figure, a sentence for each reason


class Section(NamedTuple):
    """A numbered part of the page."""

    title: str
    exhibits: list[Exhibit]
    missing: tuple[str, ...] = ()  # why runs have no exhibit, a sentence for each reason


Lacks = Callable[[Case], str]  # the reason why a run has no figure; "" if it has one


def cases(insights: Sequence[Insight]) -> list[Case]:
    """The runs with unique names, see `names_of`."""
    names = names_of([insight.record for insight in insights], [insight.folder for insight in insights])
    runs = []
    for insight, name in zip(insights, names, strict=True):
        labels = numbers.at_step(insight)
        summary = None if labels is None else numbers.summary(insight, labels, insight.recorded.threshold)
        runs.append(Case(name, insight, summary, numbers.method_state(insight)))
    return runs


def nothing(case: Case) -> str:
    """No reason: every run has this figure."""
    return ""


def no_labels(case: Case) -> str:
    """The reason for figures that need pseudo-labels."""
    return "no pseudo-labels are made" if case.summary is None else ""


def no_truth(case: Case) -> str:
    """The reason for figures that compare pseudo-labels with true labels."""
    is_unknown = case.summary is not None and case.summary.by_class is None
    return "the true labels of the pool are not known" if is_unknown else no_labels(case)


def no_groups(case: Case) -> str:
    """The reason for figures that compare them in head, medium and tail."""
    return no_truth(case) or ("its classes have no head, medium and tail" if case.insight.groups is None else "")


def plot_each(
    question: Question, runs: Sequence[Case], plot: Callable[[Case], tuple[Any, Lines]], lacks: Lacks
) -> Exhibit:
    """A figure for each run that can have it."""
    shown = [case for case in runs if not lacks(case)]
    plots = [Plot(slug(f"{question.title} {case.name}"), case.name, *plot(case)) for case in shown]
    return Exhibit(question, plots, reasons(runs, lacks))


def overlaid(
    question: Question,
    runs: Sequence[Case],
    column: str,
    unit: str,
    values: Callable[[Case], np.ndarray],
    lacks: Lacks,
) -> Exhibit:
    """One figure over training, with a curve for each run that can have one, and was measured at all."""

    def lacking(case: Case) -> str:
        return lacks(case) or ("" if np.isfinite(values(case)).any() else "there was nothing to measure it on")

    lines = [
        {"run": case.name, "step": int(step), column: plain(value)}
        for case in runs
        if not lacking(case)
        for step, value in zip(case.insight.steps, values(case), strict=True)
    ]
    figure = draw.curves(lines, "run", column, unit, looks_of(runs)) if lines else None
    plots = [Plot(slug(question.title), "", figure, lines)] if lines else []
    return Exhibit(question, plots, reasons(runs, lacking))


def reasons(runs: Sequence[Case], lacks: Lacks) -> list[str]:
    """A sentence for each reason why runs are left out."""
    by_reason: dict[str, list[str]] = {}
    for case in runs:
        if reason := lacks(case):
            by_reason.setdefault(reason, []).append(case.name)
    return [f"{', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def looks_of(runs: Sequence[Case]) -> dict[str, draw.Look]:
    """The look of each run, the same in all figures."""
    return {case.name: draw.look(index) for index, case in enumerate(runs)}


def size_of(case: Case, runs: Sequence[Case], sizes: tuple[Any, Any] = (SMALL, BROAD)) -> tuple[float, float]:
    """The small size if class names can be read in it; a single run takes the broad size with half as many classes."""
    n_classes = len(case.insight.classes)
    is_broad = n_classes > MOST_IN_SMALL or (len(runs) == 1 and n_classes > MOST_IN_SMALL // 2)
    return sizes[is_broad]


def class_lines(insight: Insight, **columns: Any) -> list[dict[str, Any]]:
    """A CSV row for each class, most labelled first, ties by index. A column is an array of C values, or None."""
    order = np.argsort(-insight.recorded.counts, kind="stable")
    names = None if insight.groups is None else [GROUPS[group] for group in insight.groups.tolist()]
    return [
        {"class": insight.classes[k], "group": names and names[k], "labelled": int(insight.counts[k])}
        | {name: None if values is None else plain(values[k]) for name, values in columns.items()}
        for k in order.tolist()
    ]


def plain(value: Any) -> float | int | None:
    """A number for a CSV: None for nan, six significant digits, whole numbers without a decimal point."""
    number = float(value)
    if number != number:
        return None
    return int(number) if number.is_integer() else float(f"{number:.6g}")


def slug(text: str) -> str:
    """Text as part of a file name. "=" and "-" stay, so that tau=1 and tau=-1 have different names."""
    kept = "".join(letter if letter.isalnum() or letter in "=-._" else " " for letter in text.lower())
    return "-".join(kept.split())
