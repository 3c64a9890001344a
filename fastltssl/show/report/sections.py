"""The sections of a report: their figures, how to read them, and the numbers behind them.

Numbers are in percent, nats or rows. A figure shows one seed; if it does not run over training, its last evaluation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastltssl.analysis import history as numbers
from fastltssl.analysis.history import BINS
from fastltssl.functional.measures import measure
from fastltssl.functional.metrics import GROUPS
from fastltssl.show.report import figures as draw
from fastltssl.show.report.exhibits import (
    Case,
    Exhibit,
    Plot,
    Question,
    Section,
    class_lines,
    looks_of,
    no_groups,
    no_labels,
    no_truth,
    nothing,
    overlaid,
    plain,
    plot_each,
    reasons,
    size_of,
    slug,
)
from fastltssl.show.report.figures import Lines
from fastltssl.types import OverTime, PerClass

WORST = 10  # pairs of classes listed
SQUARE, BROAD_SQUARE = (4.8, 5.0), (9.8, 10.0)  # inches
ACCURACY = Question(
    "Test accuracy by class",
    "Bars that fall to the right show the minority bottleneck: classes with few labels are recognised worse.",
)
BALANCED_ACCURACY = Question(
    "Test accuracy by class", "Every class has as many labels: what differs is how hard it is."
)
COUNTS = Question(
    "Accepted and true rows by class",
    "Where bars stay under the line a class gets too few pseudo-labels; over it, too many. Orange ones are wrong.",
)
SHARES = Question(
    "Precision and recall by class",
    "Precision: share of the accepted labels of a class that are right. Recall: share of its rows accepted with it.",
)
FALSE = Question(
    "False labels at the end",
    "Accepted pseudo-labels that are wrong, by the group of the class they name: a high head bar is majority "
    "over-confidence.",
)
FALSE_CURVES = Question(
    "False labels over training", "The same at each evaluation: a curve that rises is training on its own mistakes."
)
WRONG_CONFIDENCE = Question(
    "Mean confidence of wrong pseudo-labels",
    "Of all wrong ones, accepted or not; a curve that rises shows over-confidence that grows.",
)
HISTOGRAM = Question("Histogram at the end", "Orange to the right of the threshold is accepted although it is wrong.")
ECE = Question(
    "Expected calibration error", "Mean distance of confidence from accuracy on the test rows; lower is better."
)
RELIABILITY = Question(
    "Reliability of test predictions",
    "Points under the dashed line are over-confident, points over it under-confident; the larger, the more rows.",
)
BALANCED = Question("Balanced accuracy", "Mean over classes of their accuracy on the test rows; higher is better.")
MASK_RATE = Question("Mask rate", "Share of the pool whose pseudo-label is accepted.")
PRIOR = Question(
    "Estimated prior against the true one", "KL(Q || true prior of the pool): 0 where Q has the true class shares."
)
ACCEPTED_PRIOR = Question(
    "Accepted labels against the true prior",
    "KL(classes of accepted labels || true prior of the pool): 0 where acceptance keeps the class shares.",
)
CONFUSION = Question(
    "True class by accepted pseudo-label",
    "Each row is a true class and shows how its accepted rows are labelled; a column with much orange draws in the "
    "rows of other classes.",
)


def sections(runs: Sequence[Case]) -> list[Section]:
    """All sections but the table of results and the configurations. Call within `figures.house_style`."""
    return [
        Section("Accuracy of each class", [_accuracy(runs)]),
        Section("Pseudo-labels of each class", _pseudo_labels(runs)),
        Section("False pseudo-labels above the threshold", _false(runs)),
        Section("Confidence of right and wrong pseudo-labels", _confidence(runs)),
        Section("Calibration", _calibration(runs)),
        Section("Over training", _over_training(runs)),
        Section("Confusion of pseudo-labels", [_confusion(runs)]),
        _state(runs),
    ]


def _accuracy(runs: Sequence[Case]) -> Exhibit:
    def plot(case: Case) -> tuple[Any, Lines]:
        lines = class_lines(case.insight, accuracy_percent=100 * case.insight.recorded.test_recall[-1])
        return draw.class_bars(lines, "accuracy_percent", "test accuracy (%)", size_of(case, runs)), lines

    is_balanced = all(case.insight.counts.unique().numel() == 1 for case in runs)
    return plot_each(BALANCED_ACCURACY if is_balanced else ACCURACY, runs, plot, nothing)


def _pseudo_labels(runs: Sequence[Case]) -> list[Exhibit]:
    audits = {case.name: case.summary.by_class for case in runs if case.summary is not None}
    accepted = {case.name: case.summary.accepted for case in runs if case.summary is not None}
    rows = [*accepted.values(), *(audit.true for audit in audits.values() if audit)]
    top = max((float(by_class.max()) for by_class in rows), default=0.0)

    def counts(case: Case) -> tuple[Any, Lines]:
        audit = audits[case.name]
        true, right = (audit.true, audit.right) if audit else (None, None)
        lines = class_lines(case.insight, true=true, accepted=accepted[case.name], right=right)
        return draw.count_bars(lines, size_of(case, runs), top), lines

    def shares(case: Case) -> tuple[Any, Lines]:
        audit = audits[case.name]
        columns = {f"{name}_percent": 100 * getattr(audit, name) for name in ("precision", "recall")}
        lines = class_lines(case.insight, **columns)
        names = dict(zip(columns, ("precision", "recall"), strict=True))
        return draw.class_points(lines, names, "share (%)", size_of(case, runs)), lines

    return [plot_each(COUNTS, runs, counts, no_labels), plot_each(SHARES, runs, shares, no_truth)]


def _false(runs: Sequence[Case]) -> list[Exhibit]:
    unit, by_run = "false accepted labels (rows)", {}
    for case in runs:
        if not no_groups(case):
            by_run[case.name] = [
                {"run": case.name, "group": group, "step": int(step), "false_rows": plain(value)}
                for group in GROUPS
                for step, value in zip(
                    case.insight.steps, numbers.curve(case.insight, f"pseudo_false_{group}"), strict=True
                )
            ]
    top = max((line["false_rows"] or 0 for lines in by_run.values() for line in lines), default=0)
    markers = dict(zip(GROUPS, ("o", "s", "^"), strict=True))
    looks = {group: draw.Look(color, markers[group]) for group, color in draw.GROUP_COLORS.items()}
    ends = [line for lines in by_run.values() for line in lines if line["step"] == lines[-1]["step"]]
    figure = draw.group_bars(ends, "run", "false_rows", unit, looks_of(runs)) if ends else None

    def plot(case: Case) -> tuple[Any, Lines]:
        lines = by_run[case.name]
        return draw.curves(lines, "group", "false_rows", unit, looks, float(top)), lines

    plots = [Plot(slug(FALSE.title), "", figure, ends)] if ends else []
    return [Exhibit(FALSE, plots, reasons(runs, no_groups)), plot_each(FALSE_CURVES, runs, plot, no_groups)]


def _confidence(runs: Sequence[Case]) -> list[Exhibit]:
    summaries = {case.name: case.summary for case in runs if case.summary is not None}
    rows = [summary.right_histogram + summary.wrong_histogram for summary in summaries.values()]
    top = max((float(by_bin.max()) for by_bin in rows), default=0.0)

    def plot(case: Case) -> tuple[Any, Lines]:
        right, wrong = summaries[case.name].right_histogram, summaries[case.name].wrong_histogram
        edges = np.linspace(0, 100, BINS + 1)
        lines = [
            {"from_percent": edges[k], "to_percent": edges[k + 1], "right": plain(right[k])}
            | {"wrong": None if no_truth(case) else plain(wrong[k])}
            for k in range(BINS)
        ]
        return draw.histogram(lines, case.insight.recorded.threshold, top), lines

    def wrong(case: Case) -> np.ndarray:
        return 100 * numbers.curve(case.insight, "pseudo_wrong_confidence")

    curves = overlaid(
        WRONG_CONFIDENCE, runs, "wrong_confidence_percent", measure("wrong_confidence").axis, wrong, no_truth
    )
    return [curves, plot_each(HISTOGRAM, runs, plot, no_labels)]


def _calibration(runs: Sequence[Case]) -> list[Exhibit]:
    def plot(case: Case) -> tuple[Any, Lines]:
        last = case.insight.recorded.test_reliability[-1]
        lines = [
            {"rows_of": name, "rows": int(rows)}
            | {"confidence_percent": plain(100 * confidence), "accuracy_percent": plain(100 * accuracy)}
            for name, bins in zip(("all", *GROUPS), last, strict=True)
            for rows, confidence, accuracy in bins
            if rows
        ]
        return draw.reliability(lines), lines

    curves = overlaid(
        ECE, runs, "ece_percent", measure("ece").axis, lambda case: 100 * numbers.curve(case.insight, "ece"), nothing
    )
    return [curves, plot_each(RELIABILITY, runs, plot, nothing)]


def _over_training(runs: Sequence[Case]) -> list[Exhibit]:
    def accepted(case: Case) -> np.ndarray:
        if "pseudo_mask_rate" in case.insight.curves:
            return 100 * case.insight.curves["pseudo_mask_rate"]
        confidence = case.insight.recorded.confidence  # in float16; there is no curve if true labels are not known
        assert confidence is not None
        return 100 * (confidence >= case.insight.recorded.threshold).mean(axis=1)

    def bacc(case: Case) -> np.ndarray:
        return 100 * numbers.curve(case.insight, "bacc")

    def no_estimate(case: Case) -> str:
        is_recorded = "prior_kl" in case.insight.curves
        return no_truth(case) or ("" if is_recorded else "no estimate Q of the prior of the pool is kept")

    kl = measure("kl").axis
    return [
        overlaid(BALANCED, runs, "bacc_percent", measure("bacc").axis, bacc, nothing),
        overlaid(MASK_RATE, runs, "accepted_percent", measure("mask_rate").axis, accepted, no_labels),
        overlaid(PRIOR, runs, "kl_nats", kl, lambda case: case.insight.curves["prior_kl"], no_estimate),
        overlaid(ACCEPTED_PRIOR, runs, "kl_nats", kl, lambda case: numbers.curve(case.insight, "pseudo_kl"), no_truth),
    ]


def _confusion(runs: Sequence[Case]) -> Exhibit:
    plots = [_confusion_plot(case, runs) for case in runs if not no_truth(case)]
    return Exhibit(CONFUSION, plots, reasons(runs, no_truth))


def _confusion_plot(case: Case, runs: Sequence[Case]) -> Plot:
    assert case.summary is not None
    assert case.summary.confusion is not None
    names, confusion = case.insight.classes, case.summary.confusion
    order = np.argsort(-case.insight.recorded.counts, kind="stable")
    rows = confusion.numpy()[np.ix_(order, order)]  # most labelled first
    lines = [
        {"true": names[order[k]], "label": names[order[j]], "rows": int(rows[k, j])}
        for k, j in zip(*rows.nonzero(), strict=True)
    ]
    worst = [
        (names[true], names[label], f"{count:,}", f"{100 * count / int(confusion[true].sum()):.0f} %")
        for true, label, count in numbers.mistakes(confusion, WORST)
    ]
    header = ("true class", "accepted as", "rows", "of its accepted rows")
    shares = rows / np.maximum(1, rows.sum(axis=1, keepdims=True))
    figure = draw.heat_map(shares, class_lines(case.insight), size_of(case, runs, (SQUARE, BROAD_SQUARE)))
    return Plot(slug(f"confusion {case.name}"), case.name, figure, lines, (header, *worst) if worst else ())


def _state(runs: Sequence[Case]) -> Section:
    """The recorded state of each method; items of the same title share an exhibit."""
    questions = {item.title: Question(item.title, item.reading) for case in runs for item in case.state}

    def exhibit(question: Question) -> Exhibit:
        items = {case.name: item for case in runs for item in case.state if item.title == question.title}
        holders = [case for case in runs if case.name in items]
        return plot_each(question, holders, lambda case: _kept(case, items[case.name], size_of(case, runs)), nothing)

    missing = reasons(runs, lambda case: "" if case.state else "nothing that the method keeps is recorded")
    return Section("State of the method", [exhibit(question) for question in questions.values()], tuple(missing))


def _kept(case: Case, item: PerClass | OverTime, size: tuple[float, float]) -> tuple[Any, Lines]:
    """The figure and CSV rows of a part of a method's state: by class at the end, or over training."""
    if isinstance(item, PerClass):
        columns = {"value": item.values} | ({} if item.errors is None else {"standard_error": item.errors})
        lines = class_lines(case.insight, **columns)
        return draw.class_bars(lines, "value", item.unit, size, "standard_error" if len(columns) > 1 else None), lines
    if item.values.shape[1] == 1:
        pairs = zip(item.steps, item.values[:, 0], strict=True)
        lines = [{"run": case.name, "step": int(step), "value": plain(value)} for step, value in pairs]
        return draw.curves(lines, "run", "value", item.unit, {case.name: draw.Look(draw.BLUE)}), lines
    lines = [
        {"step": int(step)} | line
        for step, values in zip(item.steps, item.values, strict=True)
        for line in class_lines(case.insight, value=values)
    ]
    return draw.class_curves(lines, item.unit), lines
