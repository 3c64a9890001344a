"""Where the pseudo-labels go wrong: by class, group, confidence and pair of classes, and over training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import panel as pn
from bokeh.models import CustomJSHover
from bokeh.models.annotations import ColorBar
from bokeh.models.mappers import LinearColorMapper
from bokeh.palettes import Cividis256

from fastltssl.analysis.history import BINS, mistakes, reporting
from fastltssl.functional import metrics
from fastltssl.functional.measures import measure
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio import kept
from fastltssl.show.studio.session import Page, Session, Shown

EDGES = np.linspace(0, 100, BINS + 1)
WORST = 12  # pairs of classes in the list
CURVES = (  # over training: name in the history, colour, marker
    ("pseudo_mask_rate", d.BLUE, "circle"),
    ("pseudo_accuracy", d.GREEN, "triangle"),
    ("pseudo_wrong_confidence", d.ORANGE, "square"),
)


class Plot(NamedTuple):
    """A card with a plot, and the function that fills the plot."""

    card: Any
    fill: Callable[[Shown], None]


def page(session: Session) -> Page:
    """The tab "Pseudo-labels"."""
    dark = session.is_dark
    strip, state = d.text("", dark, margin=(8, 6, 2, 6)), pn.Column(sizing_mode="stretch_width")
    moving = [draw(dark) for draw in (_counts, _shares, _groups, _confidence)]  # follow the sliders
    still = [draw(dark) for draw in (_over_time, _distance)]  # follow the step
    confusion = _confusion(dark)
    grid, plots = d.grid(), pn.Column(sizing_mode="stretch_width")
    drawn: dict[str, Any] = {"run": None, "step": None}

    def repaint(shown: Shown) -> None:
        strip.object = _strip(shown)
        has_numbers = zip([*moving, *still], _has_numbers(shown), strict=True)
        if (cards := [plot.card for plot, is_shown in has_numbers if is_shown]) != grid.objects:
            grid.objects = cards
        if bool(plots.objects) != bool(cards):
            plots.objects = [grid, confusion.card] if cards else []
        if shown.summary is not None:
            is_same_step = drawn["step"] == (shown.key, shown.place)
            for plot in [*([] if is_same_step else still), *moving, confusion]:
                plot.fill(shown)
            drawn["step"] = shown.key, shown.place
        if drawn["run"] != shown.key:
            drawn["run"] = shown.key
            state.objects = [d.grid(*kept.cards(shown, dark))]

    return Page(pn.Column(strip, plots, state, sizing_mode="stretch_width"), repaint, _lines)


def _has_numbers(shown: Shown) -> list[bool]:
    """Which plots have numbers to show: counts, shares, groups, confidence, over training, distance."""
    summary, curves = shown.summary, shown.insight.curves
    if summary is None:
        return [False] * 6
    has_history = "pseudo_mask_rate" in curves, "pseudo_kl" in curves or "prior_kl" in curves
    return [True, summary.by_class is not None, summary.by_group is not None, True, *has_history]


def _strip(shown: Shown) -> str:
    """The numbers that the sliders should improve, each with its value as trained."""
    summary, before = shown.summary, shown.before
    items, missing = [], ""
    if summary is None:
        missing = d.note(f"{shown.insight.config.method} makes no pseudo-labels here.")
    else:
        items.append(_item("accepted, % of the pool", summary.mask_rate, before and before.mask_rate))
    if summary and summary.audit and summary.by_group and summary.by_class:
        was, was_group = (before.audit, before.by_group or {}) if before else (None, {})
        items.append(_item("right, % of accepted", summary.audit.accuracy, was and was.accuracy))
        items.append(_item("tail recall, %", summary.by_group["recall_tail"], was_group.get("recall_tail")))
        items.append(_item("KL to the true prior, nats", summary.audit.kl, was and was.kl, 1.0, 3))
    if shown.metrics:
        was_tested = shown.metrics_before or {}
        for name in ("bacc", "tail", "ece"):
            title = f"test {measure(name).title}, {measure(name).unit}"
            items.append(_item(title, shown.metrics[name], was_tested.get(name)))
    note = d.note(f"{shown.why or _advice(shown)} {reporting(shown.insight)}".strip())
    return missing + (d.numbers(items) if items else "") + note


def _advice(shown: Shown) -> str:
    """What to know about the pseudo-labels in view; empty at the last step of a semi-supervised run."""
    if not (shown.insight.record["is_ssl"] or shown.summary is None):
        return f"{shown.insight.config.method} trains on labels alone: these are the labels it would give the pool."
    last = int(shown.insight.steps[-1])
    if shown.place < len(shown.insight.steps) - 1:
        return f"Pseudo-labels as recorded at this step. The other sliders work on the finished run: step {last}."
    return ""


def _item(
    title: str, value: float | None, was: float | None, factor: float = 100.0, digits: int = 1
) -> tuple[str, str, str]:
    """A number of the strip: its title, its value and its change from `was`, multiplied by `factor`."""
    if value is None or value != value:
        return title, "-", ""
    text, change = f"{factor * value:.{digits}f}", ""
    if was is not None and was == was:
        is_same = text == f"{factor * was:.{digits}f}"
        change = "as trained" if is_same else f"{factor * (value - was):+.{digits}f} to as trained"
    return title, text, change


def _counts(dark: bool) -> Plot:
    plot = d.plot("classes, most labelled first", "rows of the pool", dark, 300)
    own = d.source("counts", x=[], accepted=[], right=[], true=[], name=[], labelled=[])
    bars = plot.vbar("x", top="accepted", width=0.86, source=own, color=d.ORANGE, alpha=0.75, line_color=None)
    right = plot.vbar("x", top="right", width=0.86, source=own, color=d.BLUE, line_color=None)
    true = plot.scatter("x", "true", source=own, marker="dash", size=11, line_width=2.5, color=d.INK[dark][0])
    plot.y_range.start = 0
    names = d.legend(plot, [("right", [right]), ("false", [bars]), ("true rows", [true])], dark)
    tips = [("class", "@name"), ("labelled rows", "@labelled"), ("accepted", "@accepted"), ("right", "@right")]
    d.hover(plot, [*tips, ("true rows", "@true")], bars)

    def fill(shown: Shown) -> None:
        assert shown.summary is not None
        order, by_class = shown.ranked, shown.summary.by_class
        accepted = shown.summary.accepted[order].numpy()
        d.rename(names, 0, "right" if by_class else "accepted")
        own.data = {
            "x": d.column(range(len(order))),
            "accepted": d.column(accepted),
            "right": d.column(by_class.right[order] if by_class else accepted),
            "true": d.column(by_class.true[order] if by_class else np.full(len(order), np.nan)),
            "name": [shown.insight.classes[k] for k in order],
            "labelled": shown.insight.counts[order].tolist(),
        }
        d.class_axis(plot, own.data["name"])

    reading = "Bars over the marks: the class is claimed too often. Orange is what is false."
    return Plot(d.card("Accepted pseudo-labels of each class", reading, d.pane(plot), dark), fill)


def _shares(dark: bool) -> Plot:
    plot = d.plot("classes, most labelled first", "share (%)", dark, 300, y_range=(0, 103))
    own = d.source("shares", x=[], precision=[], recall=[], name=[])
    precision = plot.scatter("x", "precision", source=own, marker="circle", size=7, color=d.BLUE)
    recall = plot.scatter("x", "recall", source=own, marker="triangle", size=7, color=d.ORANGE)
    d.legend(plot, [("precision", [precision]), ("recall", [recall])], dark)
    tips = [("class", "@name"), ("precision", "@precision{0.0} %"), ("recall", "@recall{0.0} %")]
    d.hover(plot, tips, precision, recall)

    def fill(shown: Shown) -> None:
        order, by_class = shown.ranked, shown.summary and shown.summary.by_class
        nothing = np.full(len(order), np.nan)
        own.data = {
            "x": d.column(range(len(order))),
            "precision": d.column(100 * by_class.precision[order] if by_class else nothing),
            "recall": d.column(100 * by_class.recall[order] if by_class else nothing),
            "name": [shown.insight.classes[k] for k in order],
        }
        d.class_axis(plot, own.data["name"])

    reading = "Precision: of a class's accepted rows, those that are right. Recall: of its true rows, those found."
    return Plot(d.card("Precision and recall of each class", reading, d.pane(plot), dark), fill)


def _groups(dark: bool) -> Plot:
    plot = d.plot("group of the predicted class", "false accepted rows", dark, x_range=list(metrics.GROUPS))
    own = d.source("groups", group=metrics.GROUPS, false=[0, 0, 0], was=[0, 0, 0])
    bars = plot.vbar("group", top="false", width=0.6, source=own, color=d.ORANGE, line_color=None)
    was = plot.scatter("group", "was", source=own, marker="dash", size=44, line_width=2, color=d.INK[dark][0])
    plot.y_range.start = 0
    d.legend(plot, [("now", [bars]), ("as trained", [was])], dark)
    d.hover(plot, [("group", "@group"), ("false, now", "@false"), ("as trained", "@was")], bars)

    def fill(shown: Shown) -> None:
        now = shown.summary and shown.summary.by_group
        before = shown.before and shown.before.by_group
        values = {"false": [now[f"false_{name}"] if now else np.nan for name in metrics.GROUPS]}
        values["was"] = [before[f"false_{name}"] if before else np.nan for name in metrics.GROUPS]
        own.data = dict(own.data) | {name: d.column(column) for name, column in values.items()}

    reading = "False pseudo-labels above the threshold. A long tail makes them pile up in the head."
    return Plot(d.card("False pseudo-labels by group", reading, d.pane(plot), dark), fill)


def _confidence(dark: bool) -> Plot:
    plot = d.plot("confidence (%)", "rows of the pool", dark, x_range=(0, 100))
    own = d.source("confidence", left=EDGES[:-1], right=EDGES[1:], correct=[0] * BINS, top=[0] * BINS, wrong=[0] * BINS)
    correct = plot.quad("left", "right", "correct", 0, source=own, color=d.BLUE, line_color=None, alpha=0.9)
    wrong = plot.quad("left", "right", "top", "correct", source=own, color=d.ORANGE, line_color=None, alpha=0.9)
    line = d.scrubber(plot, dark)
    plot.y_range.start = 0
    names = d.legend(plot, [("right", [correct]), ("wrong", [wrong])], dark)
    d.hover(plot, [("confidence", "@left to @right %"), ("right", "@correct"), ("wrong", "@wrong")], correct, wrong)

    def fill(shown: Shown) -> None:
        assert shown.summary is not None
        right, bad = shown.summary.right_histogram.numpy(), shown.summary.wrong_histogram.numpy()
        d.rename(names, 0, "right" if shown.summary.by_class else "all rows")
        own.data = {
            "left": d.column(EDGES[:-1]),
            "right": d.column(EDGES[1:]),
            "correct": d.column(right),
            "wrong": d.column(bad),
            "top": d.column(right + bad),
        }
        line.location = 100 * shown.knobs.threshold

    reading = "Rows to the right of the dotted threshold count as pseudo-labels; orange there is over-confidence."
    return Plot(d.card("Confidence of right and wrong pseudo-labels", reading, d.pane(plot), dark), fill)


def _over_time(dark: bool) -> Plot:
    plot = d.plot("training step", "share (%)", dark)
    items, sources = [], {}
    for name, color, marker in CURVES:
        title = measure(name).title
        sources[name], dots = _line(plot, name, color, marker, (title, "@y{0.0} %"))
        items.append((title, [dots]))
    d.legend(plot, items, dark)
    line = d.scrubber(plot, dark)

    def fill(shown: Shown) -> None:
        for name, own in sources.items():
            own.data = _curve_of(shown, 100 * shown.insight.curves.get(name, np.array([])))
        line.location = float(shown.insight.steps[shown.place])

    reading = "As the run was trained, at its threshold. The dotted line is the step in view."
    return Plot(d.card("Pseudo-labels over training", reading, d.pane(plot), dark), fill)


def _distance(dark: bool) -> Plot:
    plot = d.plot("training step", measure("kl").axis, dark)
    plot.y_range.start = 0
    accepted, dots = _line(plot, "pseudo_kl", d.PINK, "diamond", ("KL", "@y{0.000} nats"))
    estimate, marks = _line(plot, "prior_kl", d.SKY, "square", ("KL", "@y{0.000} nats"))
    d.legend(plot, [("accepted labels", [dots]), ("estimated prior Q", [marks])], dark)
    line = d.scrubber(plot, dark)

    def fill(shown: Shown) -> None:
        accepted.data = _curve_of(shown, shown.insight.curves.get("pseudo_kl", np.array([])))
        estimate.data = _curve_of(shown, shown.insight.curves.get("prior_kl", np.array([])))
        line.location = float(shown.insight.steps[shown.place])

    reading = "From the true classes of the pool; 0 is unbiased, and a curve that rises is a bias that feeds itself."
    return Plot(d.card("Distance from the true prior over training", reading, d.pane(plot), dark), fill)


def _line(plot: Any, name: str, color: str, marker: str, tip: tuple[str, str]) -> tuple[Any, Any]:
    """An empty curve over training: its source and its marks."""
    own = d.source(name, x=[], y=[])
    plot.line("x", "y", source=own, line_color=color, line_width=2)
    dots = plot.scatter("x", "y", source=own, color=color, marker=marker, size=6)
    d.hover(plot, [("step", "@x"), tip], dots)
    return own, dots


def _curve_of(shown: Shown, values: np.ndarray) -> dict[str, Any]:
    return {"x": d.column(shown.insight.steps[: len(values)]), "y": d.column(values)}


def _confusion(dark: bool) -> Plot:
    plot, own, order = _heat_map(dark)
    pairs = d.text("", dark, width=330, sizing_mode="fixed", margin=(0, 10))

    def fill(shown: Shown) -> None:
        confusion, ranked, names = shown.summary and shown.summary.confusion, shown.ranked, shown.insight.classes
        if confusion is None:
            own.data = dict(own.data) | {"image": [np.full((1, 1), np.nan)], "rows": [np.zeros((1, 1))]}
            pairs.object = d.note("The pool has no true labels, so nothing tells right from wrong.")
            return
        order.data = {"name": [names[k] for k in ranked]}
        for axis in (plot.xaxis[0], plot.yaxis[0]):
            d.class_axis(plot, order.data["name"], axis)
        plot.height = max(420, 180 + 11 * min(len(ranked), d.LABELLED_CLASSES))
        rows = confusion[ranked][:, ranked].numpy()
        whole = rows.sum(axis=1, keepdims=True)
        share = np.where(whole > 0, 100 * rows / np.maximum(1, whole), np.nan)
        own.data = {
            "image": [share.astype(np.float32)],
            "rows": [rows.astype(np.float32)],
            "x": [-0.5],
            "y": [-0.5],
            "size": [len(ranked)],
        }
        lines = [[names[true], names[label], f"{count:,}"] for true, label, count in mistakes(confusion, WORST)]
        pairs.object = d.table(["true class", "taken for", "rows"], lines) if lines else d.note("No false ones.")

    reading = (
        "Off the diagonal is what is taken for what, accepted rows only; columns that light up are sinks, and a row "
        "without colour has nothing accepted."
    )
    body = pn.Row(d.pane(plot), pairs, sizing_mode="stretch_width")
    return Plot(d.card("Confusion, and the worst pairs", reading, body, dark), fill)


def _heat_map(dark: bool) -> tuple[Any, Any, Any]:
    """An empty heat map of true classes by pseudo-labels, its source, and the source of its class names."""
    mapper = LinearColorMapper(palette=Cividis256, low=0, high=100, nan_color="rgba(0, 0, 0, 0)")
    plot = d.plot("pseudo-label, most labelled first", "true class", dark, 420, tools="reset,save")
    own = d.source("confusion", image=[np.zeros((1, 1))], rows=[np.zeros((1, 1))], x=[0], y=[0], size=[1])
    image = plot.image("image", "x", "y", "size", "size", source=own, color_mapper=mapper)
    plot.x_range.range_padding = plot.y_range.range_padding = 0
    plot.y_range.flipped = True
    plot.ygrid.visible = False
    bar = ColorBar(color_mapper=mapper, width=8, title="% of the true class's accepted rows", title_standoff=6)
    bar.title_text_font_size, bar.title_text_font_style = "11px", "normal"
    bar.background_fill_color, bar.title_text_color, bar.major_label_text_color = None, *(d.INK[dark][:1] * 2)
    plot.add_layout(bar, "right")
    order = d.source("order", name=[])
    formatters = {
        f"${axis}": CustomJSHover(
            code=f"return order.data.name[Math.round(special_vars.{axis})]", args={"order": order}
        )
        for axis in ("x", "y")
    }
    tips = [("true class", "$y{custom}"), ("taken for", "$x{custom}"), ("rows", "@rows"), ("share", "@image{0.0} %")]
    d.hover(plot, tips, image, formatters=formatters)
    return plot, own, order


def _lines(shown: Shown) -> list[dict[str, Any]]:
    """What the plots show. The first column names the plot; every row ends with the step and the sliders."""
    if shown.summary is None:
        return []
    summary, names = shown.summary, shown.insight.classes
    lines: list[dict[str, Any]] = []
    for k in shown.ranked:
        line = {"plot": "classes", "class": names[k], "labelled": int(shown.insight.counts[k])}
        line["accepted"] = int(summary.accepted[k])
        if summary.by_class:
            audit = summary.by_class
            line |= {"right": int(audit.right[k]), "true": int(audit.true[k])}
            line |= {f"{name}_percent": 100 * float(getattr(audit, name)[k]) for name in ("precision", "recall")}
        lines.append(line)
    histograms = summary.right_histogram.tolist(), summary.wrong_histogram.tolist()
    bins = zip(EDGES[:-1], EDGES[1:], *histograms, strict=True)
    for low, high, right, wrong in bins:
        rows = {"right": right, "wrong": wrong} if summary.by_class else {"rows": right}
        lines.append({"plot": "confidence", "from_percent": low, "to_percent": high} | rows)
    if summary.by_group is not None:
        false = {group: int(summary.by_group[f"false_{group}"]) for group in metrics.GROUPS}
        lines += [{"plot": "false by group", "group": group, "wrong": count} for group, count in false.items()]
    if summary.confusion is not None:
        lines += [
            {"plot": "confusion", "class": names[true], "taken_for": names[label], "rows": count}
            for true, label, count in mistakes(summary.confusion, len(names) ** 2)
        ]
    widgets = {"step": int(shown.insight.steps[shown.place])} | shown.knobs._asdict()
    return [line | widgets for line in lines]
