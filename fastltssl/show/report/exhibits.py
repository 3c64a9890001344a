"""The parts of a report: runs under their names, figures with their numbers, and why a run has none.

Figures are of one seed; those of no step are of its last evaluation.
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

MOST_IN_SMALL = 45  # classes; figures of more are as wide as the page


class Case(NamedTuple):
    """A run as a report shows it."""

    name: str
    insight: Insight
    found: Summary | None  # of its last pseudo-labels; None where it makes none
    state: list[PerClass | OverTime]


class Plot(NamedTuple):
    """A figure and the numbers behind it."""

    name: str  # of files, see slug
    caption: str  # the run, or empty for several
    figure: Any
    lines: Lines
    rows: tuple[tuple[str, ...], ...] = ()  # a small table under it, its first row the header


class Question(NamedTuple):
    title: str
    reading: str  # how its figures are read, a sentence or two


class Exhibit(NamedTuple):
    """A question with a figure for each run, or one for all."""

    question: Question
    plots: list[Plot]
    missing: list[str]  # a sentence for each reason why runs have no figure


class Section(NamedTuple):
    title: str
    exhibits: list[Exhibit]
    missing: tuple[str, ...] = ()  # sentences on runs that no exhibit is about


Lacks = Callable[[Case], str]  # why a run cannot have a figure; empty where it can


def cases(insights: Sequence[Insight]) -> list[Case]:
    """The runs under names of their own, see report.names_of."""
    names = names_of([one.record for one in insights], [one.folder for one in insights])
    found = []
    for one, name in zip(insights, names, strict=True):
        last = numbers.at_step(one)
        summary = None if last is None else numbers.summary(one, last, one.recorded.threshold)
        found.append(Case(name, one, summary, numbers.method_state(one)))
    return found


def nothing(case: Case) -> str:
    """Every run has it."""
    return ""


def no_labels(case: Case) -> str:
    return "no pseudo-labels are made" if case.found is None else ""


def no_truth(case: Case) -> str:
    is_unknown = case.found is not None and case.found.by_class is None
    return "the true labels of the pool are not known" if is_unknown else no_labels(case)


def no_groups(case: Case) -> str:
    return no_truth(case) or ("its classes have no head, medium and tail" if case.insight.groups is None else "")


def plot_each(
    question: Question, runs: Sequence[Case], plot: Callable[[Case], tuple[Any, Lines]], lacks: Lacks
) -> Exhibit:
    """A figure of each run that lacks nothing for it."""
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
    """One figure over training, with a curve of each run that lacks nothing for it."""
    lines = [
        {"run": case.name, "step": int(step), column: plain(value)}
        for case in runs
        if not lacks(case)
        for step, value in zip(case.insight.steps, values(case), strict=True)
    ]
    figure = draw.curves(lines, "run", column, unit, looks_of(runs)) if lines else None
    plots = [Plot(slug(question.title), "", figure, lines)] if lines else []
    return Exhibit(question, plots, reasons(runs, lacks))


def reasons(runs: Sequence[Case], lacks: Lacks) -> list[str]:
    """A sentence for each reason why runs are left out."""
    by_reason: dict[str, list[str]] = {}
    for case in runs:
        if reason := lacks(case):
            by_reason.setdefault(reason, []).append(case.name)
    return [f"{', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def looks_of(runs: Sequence[Case]) -> dict[str, draw.Look]:
    """How each run is drawn, everywhere the same."""
    return {case.name: draw.look(place) for place, case in enumerate(runs)}


def size_of(case: Case, runs: Sequence[Case], sizes: tuple[Any, Any] = (SMALL, BROAD)) -> tuple[float, float]:
    """Small where runs stand side by side and their class names can be read so."""
    n_classes = len(case.insight.classes)
    is_broad = n_classes > MOST_IN_SMALL or (len(runs) == 1 and n_classes > MOST_IN_SMALL // 2)
    return sizes[is_broad]


def class_lines(insight: Insight, **columns: Any) -> list[dict[str, Any]]:
    """A line a class, most labelled first, ties by index; columns hold C values, or are None."""
    order = np.argsort(-insight.recorded.counts, kind="stable")
    names = None if insight.groups is None else [GROUPS[group] for group in insight.groups.tolist()]
    return [
        {"class": insight.classes[k], "group": names and names[k], "labelled": int(insight.counts[k])}
        | {name: None if each is None else plain(each[k]) for name, each in columns.items()}
        for k in order.tolist()
    ]


def plain(value: Any) -> float | int | None:
    """A number as a CSV holds it: None for nan, six digits, whole numbers without a point."""
    number = float(value)
    if number != number:
        return None
    return int(number) if number.is_integer() else float(f"{number:.6g}")


def slug(text: str) -> str:
    """Text as part of a file's name; settings stay apart, such as tau=1 and tau=-1."""
    return "-".join("".join(one if one.isalnum() or one in "=-._" else " " for one in text.lower()).split())
