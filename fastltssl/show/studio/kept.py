"""Cards about the state that a method keeps, and about the label bias of the zero-shot model."""

from typing import Any

import numpy as np

from fastltssl.analysis.cure import label_bias_of
from fastltssl.analysis.history import method_state
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Shown
from fastltssl.types import OverTime, PerClass


def cards(shown: Shown, dark: bool) -> list[Any]:
    """A card for the label bias with its error bars, and one for each part of the method's state."""
    bias = label_bias_of(shown.insight, shown.scored)
    items = [*([bias] if bias else []), *method_state(shown.insight)]
    return [
        _per_class(item, shown, dark) if isinstance(item, PerClass) else _over_time(item, shown, dark) for item in items
    ]


def _per_class(item: PerClass, shown: Shown, dark: bool) -> Any:
    """A bar for each class, or a point with an interval of 1.96 standard errors if there are errors."""
    order = shown.ranked
    values, names = item.values[order], [shown.insight.classes[k] for k in order]
    plot = d.plot("classes, most labelled first", item.unit, dark, 270)
    own = d.source(item.title, x=range(len(order)), y=d.column(values), name=names)
    if item.errors is None:
        glyph = plot.vbar("x", top="y", width=0.8, source=own, color=d.BLUE, line_color=None)
    else:
        errors = 1.96 * np.where(np.isfinite(item.errors), item.errors, 0)[order]
        own.data.update(low=d.column(values - errors), high=d.column(values + errors))
        glyph = plot.scatter("x", "y", source=own, size=7, color=d.BLUE)
        plot.segment("x", "low", "x", "high", source=own, line_color=d.BLUE, line_width=1.2)
    d.hover(plot, [("class", "@name"), (item.unit, "@y{0.000}")], glyph)
    d.class_axis(plot, names)
    return d.card(item.title, item.reading, d.pane(plot), dark)


def _over_time(item: OverTime, shown: Shown, dark: bool) -> Any:
    """A curve over training, or one for each class in the colour of its group."""
    plot = d.plot("training step", item.unit, dark, 270)
    is_by_class, groups = item.values.shape[1] > 1, shown.insight.groups
    for k in range(item.values.shape[1]):
        color = d.GROUP_COLORS[int(groups[k])] if is_by_class and groups is not None else d.BLUE
        name = shown.insight.classes[k] if is_by_class else item.title
        own = d.source(f"{item.title}/{k}", x=item.steps, y=d.column(item.values[:, k]))
        own.data.update(name=[name] * len(item.steps))
        line = plot.line("x", "y", source=own, line_color=color, line_width=1.2 if is_by_class else 2, alpha=0.7)
        if not is_by_class:
            plot.scatter("x", "y", source=own, color=color, size=6)
        d.hover(plot, [("", "@name"), ("step", "@x"), (item.unit, "@y{0.00}")], line)
    colors = " Blue head, yellow medium, pink tail." if is_by_class and groups is not None else ""
    return d.card(item.title, item.reading + colors, d.pane(plot), dark)
