"""Where the pseudo-labels go wrong: by class, by group, by confidence, by pair, over training; the sliders beside."""

from collections.abc import Callable
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import CustomJSHover
from bokeh.models.annotations import ColorBar
from bokeh.models.mappers import LinearColorMapper
from bokeh.palettes import Cividis256

from fastltssl.analysis.cure import Knobs
from fastltssl.analysis.history import BINS, mistakes, reporting
from fastltssl.functional import metrics
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio import kept
from fastltssl.show.studio.session import Session, Shown

Drawn = tuple[Any, Callable[[Shown], None]]
EDGES = np.linspace(0, 100, BINS + 1)
WORST = 12  # pairs of classes in the list


def page(session: Session) -> tuple[Any, Any, Any]:
    """The layout, what repaints it, and the CSV of what it shows."""
    dark = session.is_dark
    strip, own = d.text("", dark, margin=(8, 6, 2, 6)), pn.Column(sizing_mode="stretch_width")
    parts = [each(dark) for each in (_counts, _shares, _groups, _confidence, _over_time, _distance)]
    confusion, fill_confusion = _confusion(dark)
    moving, still = [fill for _, fill in parts[:4]] + [fill_confusion], [fill for _, fill in parts[4:]]
    state: dict[str, Any] = {}

    def repaint() -> None:
        shown = session.shown
        assert shown is not None
        strip.object = _strip(shown)
        has = _has(shown)
        if (wanted := [card for (card, _), is_there in zip(parts, has, strict=True) if is_there]) != grid.objects:
            grid.objects = wanted
        if bool(plots.objects) != bool(wanted):
            plots.objects = [grid, confusion] if wanted else []
        if shown.summary is not None:
            for fill in still if state.get("step") != (shown.key, shown.place) else []:
                fill(shown)
            for fill in moving:
                fill(shown)
            state["step"] = shown.key, shown.place
        if state.get("run") != shown.key:
            state["run"] = shown.key
            own.objects = [d.grid(*kept.cards(shown, dark))]

    grid, plots = d.grid(), pn.Column(sizing_mode="stretch_width")
    layout = pn.Column(strip, plots, own, sizing_mode="stretch_width")
    return layout, repaint, lambda: _lines(session)


def _has(shown: Shown) -> list[bool]:
    """Which of the plots have anything to show: counts, shares, groups, confidence, over training, distance."""
    found, curves = shown.summary, shown.insight.curves
    if found is None:
        return [False] * 6
    has_history = "pseudo_mask_rate" in curves, "pseudo_kl" in curves or "prior_kl" in curves
    return [True, found.by_class is not None, found.by_group is not None, True, *has_history]


def _strip(shown: Shown) -> str:
    """The numbers that a cure should move, with what they were."""
    found, before, told = shown.summary, shown.before, reporting(shown.insight)
    items, missing = [], ""
    if found is None:
        missing = d.note(f"{shown.insight.config.method} makes no pseudo-labels here.")
    else:
        items.append(_item("accepted, % of the pool", found.mask_rate, before and before.mask_rate))
    if found and found.audit and found.by_group and found.by_class:
        was, was_group = (before.audit, before.by_group or {}) if before else (None, {})
        items.append(_item("right, % of accepted", found.audit.accuracy, was and was.accuracy))
        items.append(_item("tail recall, %", found.by_group["recall_tail"], was_group.get("recall_tail")))
        items.append(_item("KL to the true prior, nats", found.audit.kl, was and was.kl, 1.0, 3))
    if shown.metrics:
        was_tested = shown.metrics_before or {}
        for name, title in (("bacc", "test bACC, %"), ("tail", "test tail, %"), ("ece", "test ECE, %")):
            items.append(_item(title, shown.metrics[name], was_tested.get(name)))
    return missing + (d.numbers(items) if items else "") + d.note(f"{shown.why or _advice(shown)} {told}".strip())


def _advice(shown: Shown) -> str:
    if not (shown.insight.record["is_ssl"] or shown.summary is None):
        return f"{shown.insight.config.method} trains on labels alone: these are the labels it would give the pool."
    last = int(shown.insight.steps[-1])
    if shown.place < len(shown.insight.steps) - 1:
        return f"Pseudo-labels as recorded at this step. The other sliders work on the finished run: step {last}."
    return ""


def _item(
    title: str, value: float | None, was: float | None, factor: float = 100.0, digits: int = 1
) -> tuple[str, str, str]:
    if value is None or value != value:
        return title, "-", ""
    text, change = f"{factor * value:.{digits}f}", ""
    if was is not None and was == was:
        is_same = text == f"{factor * was:.{digits}f}"
        change = "as trained" if is_same else f"{factor * (value - was):+.{digits}f} to as trained"
    return title, text, change


def _counts(dark: bool) -> Drawn:
    made = d.plot("classes, most labelled first", "rows of the pool", dark, 300)
    own = d.source("counts", x=[], accepted=[], right=[], true=[], name=[], labelled=[])
    bars = made.vbar("x", top="accepted", width=0.86, source=own, color=d.ORANGE, alpha=0.75, line_color=None)
    right = made.vbar("x", top="right", width=0.86, source=own, color=d.BLUE, line_color=None)
    true = made.scatter("x", "true", source=own, marker="dash", size=11, line_width=2.5, color=d.INK[dark][0])
    made.y_range.start = 0
    names = d.legend(made, [("right", [right]), ("false", [bars]), ("true rows", [true])], dark)
    tips = [("class", "@name"), ("labelled rows", "@labelled"), ("accepted", "@accepted"), ("right", "@right")]
    d.hover(made, [*tips, ("true rows", "@true")], bars)

    def fill(shown: Shown) -> None:
        found, order = shown.summary, shown.ranked
        assert found is not None
        by_class = found.by_class
        accepted = found.accepted[order].numpy()
        d.rename(names, 0, "right" if by_class else "accepted")
        own.data = {
            "x": d.column(range(len(order))),
            "accepted": d.column(accepted),
            "right": d.column(by_class.right[order] if by_class else accepted),
            "true": d.column(by_class.true[order] if by_class else np.full(len(order), np.nan)),
            "name": [shown.insight.classes[k] for k in order],
            "labelled": shown.insight.counts[order].tolist(),
        }
        d.class_axis(made, own.data["name"])

    reading = "Bars over the marks: the class is claimed too often. Orange is what is false."
    return d.card("Accepted pseudo-labels of each class", reading, d.pane(made), dark), fill


def _shares(dark: bool) -> Drawn:
    made = d.plot("classes, most labelled first", "share (%)", dark, 300, y_range=(0, 103))
    own = d.source("shares", x=[], precision=[], recall=[], name=[])
    precision = made.scatter("x", "precision", source=own, marker="circle", size=7, color=d.BLUE)
    recall = made.scatter("x", "recall", source=own, marker="triangle", size=7, color=d.ORANGE)
    d.legend(made, [("precision", [precision]), ("recall", [recall])], dark)
    tips = [("class", "@name"), ("precision", "@precision{0.0} %"), ("recall", "@recall{0.0} %")]
    d.hover(made, tips, precision, recall)

    def fill(shown: Shown) -> None:
        order, found = shown.ranked, shown.summary and shown.summary.by_class
        nothing = np.full(len(order), np.nan)
        own.data = {
            "x": d.column(range(len(order))),
            "precision": d.column(100 * found.precision[order] if found else nothing),
            "recall": d.column(100 * found.recall[order] if found else nothing),
            "name": [shown.insight.classes[k] for k in order],
        }
        d.class_axis(made, own.data["name"])

    reading = "Precision: of a class's accepted rows, those that are right. Recall: of its true rows, those found."
    return d.card("Precision and recall of each class", reading, d.pane(made), dark), fill


def _groups(dark: bool) -> Drawn:
    made = d.plot("group of the predicted class", "false accepted rows", dark, x_range=list(metrics.GROUPS))
    own = d.source("groups", group=metrics.GROUPS, false=[0, 0, 0], was=[0, 0, 0])
    bars = made.vbar("group", top="false", width=0.6, source=own, color=d.ORANGE, line_color=None)
    was = made.scatter("group", "was", source=own, marker="dash", size=44, line_width=2, color=d.INK[dark][0])
    made.y_range.start = 0
    d.legend(made, [("now", [bars]), ("as trained", [was])], dark)
    d.hover(made, [("group", "@group"), ("false, now", "@false"), ("as trained", "@was")], bars)

    def fill(shown: Shown) -> None:
        now = shown.summary and shown.summary.by_group
        before = shown.before and shown.before.by_group
        values = {"false": [now[f"false_{name}"] if now else np.nan for name in metrics.GROUPS]}
        values["was"] = [before[f"false_{name}"] if before else np.nan for name in metrics.GROUPS]
        own.data = dict(own.data) | {name: d.column(each) for name, each in values.items()}

    reading = "False pseudo-labels above the threshold. A long tail makes them pile up in the head."
    return d.card("False pseudo-labels by group", reading, d.pane(made), dark), fill


def _confidence(dark: bool) -> Drawn:
    made = d.plot("confidence (%)", "rows of the pool", dark, x_range=(0, 100))
    own = d.source("confidence", left=EDGES[:-1], right=EDGES[1:], correct=[0] * BINS, top=[0] * BINS, wrong=[0] * BINS)
    correct = made.quad("left", "right", "correct", 0, source=own, color=d.BLUE, line_color=None, alpha=0.9)
    wrong = made.quad("left", "right", "top", "correct", source=own, color=d.ORANGE, line_color=None, alpha=0.9)
    line = d.scrubber(made, dark)
    made.y_range.start = 0
    names = d.legend(made, [("right", [correct]), ("wrong", [wrong])], dark)
    d.hover(made, [("confidence", "@left to @right %"), ("right", "@correct"), ("wrong", "@wrong")], correct, wrong)

    def fill(shown: Shown) -> None:
        found = shown.summary
        assert found is not None
        right, bad = found.right_histogram.numpy(), found.wrong_histogram.numpy()
        d.rename(names, 0, "right" if found.by_class else "all rows")
        own.data = {
            "left": d.column(EDGES[:-1]),
            "right": d.column(EDGES[1:]),
            "correct": d.column(right),
            "wrong": d.column(bad),
            "top": d.column(right + bad),
        }
        line.location = 100 * shown.knobs.threshold

    reading = "Rows to the right of the dotted threshold count as pseudo-labels; orange there is over-confidence."
    return d.card("Confidence of right and wrong pseudo-labels", reading, d.pane(made), dark), fill


CURVES = (  # name of the curve, legend, colour, marker; shares
    ("pseudo_mask_rate", "accepted", d.BLUE, "circle"),
    ("pseudo_accuracy", "right, of accepted", d.GREEN, "triangle"),
    ("pseudo_wrong_confidence", "confidence of wrong ones", d.ORANGE, "square"),
)


def _over_time(dark: bool) -> Drawn:
    made = d.plot("training step", "share (%)", dark)
    items, sources = [], {}
    for name, title, color, marker in CURVES:
        sources[name], dots = _line(made, name, color, marker, (title, "@y{0.0} %"))
        items.append((title, [dots]))
    d.legend(made, items, dark)
    line = d.scrubber(made, dark)

    def fill(shown: Shown) -> None:
        for name, own in sources.items():
            own.data = _curve_of(shown, 100 * shown.insight.curves.get(name, np.array([])))
        line.location = float(shown.insight.steps[shown.place])

    reading = "As the run was trained, at its threshold. The dotted line is the step in view."
    return d.card("Pseudo-labels over training", reading, d.pane(made), dark), fill


def _distance(dark: bool) -> Drawn:
    made = d.plot("training step", "KL (nats)", dark)
    made.y_range.start = 0
    accepted, dots = _line(made, "pseudo_kl", d.PINK, "diamond", ("KL", "@y{0.000} nats"))
    estimate, marks = _line(made, "prior_kl", d.SKY, "square", ("KL", "@y{0.000} nats"))
    d.legend(made, [("accepted labels", [dots]), ("estimated prior Q", [marks])], dark)
    line = d.scrubber(made, dark)

    def fill(shown: Shown) -> None:
        accepted.data = _curve_of(shown, shown.insight.curves.get("pseudo_kl", np.array([])))
        estimate.data = _curve_of(shown, shown.insight.curves.get("prior_kl", np.array([])))
        line.location = float(shown.insight.steps[shown.place])

    reading = "From the true classes of the pool; 0 is unbiased, and a curve that rises is a bias that feeds itself."
    return d.card("Distance from the true prior over training", reading, d.pane(made), dark), fill


def _line(made: Any, name: str, color: str, marker: str, tip: tuple[str, str]) -> tuple[Any, Any]:
    """The source and the marks of an empty curve."""
    own = d.source(name, x=[], y=[])
    made.line("x", "y", source=own, line_color=color, line_width=2)
    dots = made.scatter("x", "y", source=own, color=color, marker=marker, size=6)
    d.hover(made, [("step", "@x"), tip], dots)
    return own, dots


def _curve_of(shown: Shown, values: np.ndarray) -> dict[str, Any]:
    return {"x": d.column(shown.insight.steps[: len(values)]), "y": d.column(values)}


def _confusion(dark: bool) -> Drawn:
    mapper = LinearColorMapper(palette=Cividis256, low=0, high=100, nan_color="rgba(0, 0, 0, 0)")
    made = d.plot("pseudo-label, most labelled first", "true class", dark, 420, tools="reset,save")
    own = d.source("confusion", image=[np.zeros((1, 1))], rows=[np.zeros((1, 1))], x=[0], y=[0], size=[1])
    image = made.image("image", "x", "y", "size", "size", source=own, color_mapper=mapper)
    made.x_range.range_padding = made.y_range.range_padding = 0
    made.y_range.flipped = True
    made.ygrid.visible = False
    bar = ColorBar(color_mapper=mapper, width=8, title="% of the true class's accepted rows", title_standoff=6)
    bar.title_text_font_size, bar.title_text_font_style = "11px", "normal"
    bar.background_fill_color, bar.title_text_color, bar.major_label_text_color = None, *(d.INK[dark][:1] * 2)
    made.add_layout(bar, "right")
    order = d.source("order", name=[])
    named = {axis: CustomJSHover(code=f"return order.data.name[Math.round(special_vars.{axis})]", args={"order": order})
             for axis in ("x", "y")}  # fmt: skip
    tips = [("true class", "$y{custom}"), ("taken for", "$x{custom}"), ("rows", "@rows"), ("share", "@image{0.0} %")]
    d.hover(made, tips, image, formatters={f"${axis}": each for axis, each in named.items()})
    pairs = d.text("", dark, width=330, sizing_mode="fixed", margin=(0, 10))

    def fill(shown: Shown) -> None:
        confusion, places, names = shown.summary and shown.summary.confusion, shown.ranked, shown.insight.classes
        if confusion is None:
            own.data = dict(own.data) | {"image": [np.full((1, 1), np.nan)], "rows": [np.zeros((1, 1))]}
            pairs.object = d.note("The pool has no true labels, so nothing tells right from wrong.")
            return
        order.data = {"name": [names[k] for k in places]}
        for axis in (made.xaxis[0], made.yaxis[0]):
            d.class_axis(made, order.data["name"], axis)
        made.height = max(420, 180 + 11 * min(len(places), d.LABELLED_CLASSES))
        sorted_ = confusion[places][:, places].numpy()
        whole = sorted_.sum(axis=1, keepdims=True)
        share = np.where(whole > 0, 100 * sorted_ / np.maximum(1, whole), np.nan)
        own.data = {
            "image": [share.astype(np.float32)],
            "rows": [sorted_.astype(np.float32)],
            "x": [-0.5],
            "y": [-0.5],
            "size": [len(places)],
        }
        worst = mistakes(confusion, WORST)
        lines = [[names[pair.true], names[pair.label], f"{pair.rows:,}"] for pair in worst]
        pairs.object = d.table(["true class", "taken for", "rows"], lines) if lines else d.note("No false ones.")

    reading = (
        "Off the diagonal is what is taken for what, accepted rows only; columns that light up are sinks, and a row "
        "without colour has nothing accepted."
    )
    body = pn.Row(d.pane(made), pairs, sizing_mode="stretch_width")
    return d.card("Confusion, and the worst pairs", reading, body, dark), fill


def _lines(session: Session) -> list[dict[str, Any]]:
    """What the plots show at the sliders, which are in every line; the first column names the plot."""
    shown = session.shown
    if shown is None or shown.summary is None:
        return []
    found, names = shown.summary, shown.insight.classes
    lines: list[dict[str, Any]] = []
    for k in shown.ranked:
        line = {"plot": "classes", "class": names[k], "labelled": int(shown.insight.counts[k])}
        line["accepted"] = int(found.accepted[k])
        if found.by_class:
            own = found.by_class
            line |= {"right": int(own.right[k]), "true": int(own.true[k])}
            line |= {f"{name}_percent": 100 * float(getattr(own, name)[k]) for name in ("precision", "recall")}
        lines.append(line)
    histograms = found.right_histogram.tolist(), found.wrong_histogram.tolist()
    bins = zip(EDGES[:-1], EDGES[1:], *histograms, strict=True)
    for low, high, right, wrong in bins:
        rows = {"right": right, "wrong": wrong} if found.by_class else {"rows": right}
        lines.append({"plot": "confidence", "from_percent": low, "to_percent": high} | rows)
    if found.by_group is not None:
        false = {group: int(found.by_group[f"false_{group}"]) for group in metrics.GROUPS}
        lines += [{"plot": "false by group", "group": group, "wrong": rows} for group, rows in false.items()]
    if found.confusion is not None:
        lines += [
            {"plot": "confusion", "class": names[pair.true], "taken_for": names[pair.label], "rows": pair.rows}
            for pair in mistakes(found.confusion, len(names) ** 2)
        ]
    state = {"step": int(shown.insight.steps[shown.place])} | Knobs(*shown.knobs)._asdict()
    return [line | state for line in lines]
