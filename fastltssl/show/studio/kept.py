"""What a method keeps of each class or over training, and the label bias with its error bars."""

from typing import Any

import numpy as np

from fastltssl.analysis.history import method_state
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Shown
from fastltssl.types import OverTime, PerClass


def cards(shown: Shown, dark: bool) -> list[Any]:
    """What the method keeps of each class or over training, and the label bias with its error bars."""
    found: list[PerClass | OverTime] = []
    bias = shown.scored and shown.scored.label_bias
    if bias:
        values = (bias.log_bias - bias.log_bias.mean()).numpy()
        reading = "Classes above 0 are predicted too often by the zero-shot model. Bars: 1.96 standard errors."
        found.append(PerClass("Label bias", "log bias, less its mean (nats)", reading, values,
                              1.96 * bias.standard_error.numpy()))  # fmt: skip
    found += method_state(shown.insight)
    return [
        _per_class(each, shown, dark) if isinstance(each, PerClass) else _curve(each, shown, dark) for each in found
    ]


def _per_class(found: PerClass, shown: Shown, dark: bool) -> Any:
    order = shown.ranked
    values, names = found.values[order], [shown.insight.classes[k] for k in order]
    made = d.plot("classes, most labelled first", found.unit, dark, 270)
    own = d.source(found.title, x=range(len(order)), y=d.column(values), name=names)
    if found.errors is None:
        glyph = made.vbar("x", top="y", width=0.8, source=own, color=d.BLUE, line_color=None)
    else:
        errors = np.where(np.isfinite(found.errors), found.errors, 0)[order]
        own.data.update(low=d.column(values - errors), high=d.column(values + errors))
        glyph = made.scatter("x", "y", source=own, size=7, color=d.BLUE)
        made.segment("x", "low", "x", "high", source=own, line_color=d.BLUE, line_width=1.2)
    d.hover(made, [("class", "@name"), (found.unit, "@y{0.000}")], glyph)
    d.class_axis(made, names)
    return d.card(found.title, found.reading, d.pane(made), dark)


def _curve(found: OverTime, shown: Shown, dark: bool) -> Any:
    made = d.plot("training step", found.unit, dark, 270)
    many, groups = found.values.shape[1] > 1, shown.insight.groups
    for k in range(found.values.shape[1]):
        color = d.GROUP_COLORS[int(groups[k])] if many and groups is not None else d.BLUE
        name = shown.insight.classes[k] if many else found.title
        own = d.source(f"{found.title}/{k}", x=found.steps, y=d.column(found.values[:, k]))
        own.data.update(name=[name] * len(found.steps))
        line = made.line("x", "y", source=own, line_color=color, line_width=1.2 if many else 2, alpha=0.7)
        if not many:
            made.scatter("x", "y", source=own, color=color, size=6)
        d.hover(made, [("", "@name"), ("step", "@x"), (found.unit, "@y{0.00}")], line)
    tail = " Blue head, yellow medium, pink tail." if many and groups is not None else ""
    return d.card(found.title, found.reading + tail, d.pane(made), dark)
