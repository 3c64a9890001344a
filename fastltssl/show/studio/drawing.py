"""The building blocks of all tabs: cards, plots, tables and colours.

A card says under its title how to read its plot. A plot keeps its source, whose columns are replaced when it changes.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import panel as pn
from bokeh.core.properties import value as literal
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
)
from bokeh.models.annotations import Legend, Span
from bokeh.plotting import figure

from fastltssl.errors import plain
from fastltssl.show.names import short_name
from fastltssl.show.palette import BLACK, CURVES
from fastltssl.show.palette import BLUE as BLUE
from fastltssl.show.palette import GREEN as GREEN
from fastltssl.show.palette import GREY as GREY
from fastltssl.show.palette import GROUP_COLORS as GROUP_COLORS
from fastltssl.show.palette import ORANGE as ORANGE
from fastltssl.show.palette import PINK as PINK
from fastltssl.show.palette import SKY as SKY

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x")
FEW = 2000  # values; a shorter column is sent as a list, in one message with the others
LONG = 18  # letters; longer class names are cut on an axis
LABELLED_CLASSES = 60  # an axis of more classes has no names; they are in the tooltips
INK = {False: ("#3d4450", "#e3e6ea"), True: ("#d5d9df", "#3a4149")}  # is_dark -> text, lines

CSS = """
:host(.plate) { border: 1px solid var(--line); border-radius: 10px; padding: 12px 12px 8px; background: var(--paper);
                box-sizing: border-box; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 2px; color: var(--ink); }
p.reading { font-size: 12.5px; line-height: 1.35; margin: 0 0 4px; color: var(--soft); }
table { border-collapse: collapse; font-size: 13px; color: var(--ink); width: 100%;
        font-variant-numeric: tabular-nums; }
th { font-weight: 600; text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
.numbers { display: flex; gap: 10px; flex-wrap: wrap; }
.number { flex: 1; min-width: 108px; border: 1px solid var(--line); border-radius: 10px; padding: 8px 12px;
          background: var(--paper); color: var(--ink); }
.number b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
.number span { font-size: 12px; color: var(--soft); }
.note { font-size: 13px; color: var(--soft); line-height: 1.4; margin: 2px 0; }
.chip { display: inline-block; box-sizing: border-box; width: 11px; height: 11px; border-radius: 3px;
        margin-right: 6px; }
"""
LIGHT = ":host, :root { --ink: #2b313a; --soft: #69717d; --line: #e3e6ea; --paper: #ffffff; }"
DARK = ":host, :root { --ink: #e4e7eb; --soft: #9aa3af; --line: #3a4149; --paper: #262c33; }"


def sheet(is_dark: bool) -> str:
    """The CSS of cards, tables and numbers, in the light or the dark theme."""
    return (DARK if is_dark else LIGHT) + CSS


def text(markup: str, is_dark: bool, **settings: Any) -> pn.pane.HTML:
    """A pane of HTML with the CSS of `sheet`."""
    settings = {"sizing_mode": "stretch_width", "margin": (0, 5)} | settings
    return pn.pane.HTML(markup, stylesheets=[sheet(is_dark)], **settings)


def note(message: str) -> str:
    """A message as a paragraph of small text."""
    return f'<p class="note">{html.escape(plain(message))}</p>'


def card(title: str, reading: str, body: Any, is_dark: bool, **settings: Any) -> pn.Column:
    """A plot or other content under its title and a sentence on how to read it."""
    head = text(f'<h3>{html.escape(title)}</h3><p class="reading">{html.escape(reading)}</p>', is_dark)
    settings = {"sizing_mode": "stretch_width", "margin": 6, "styles": {"height": "calc(100% - 12px)"}} | settings
    return pn.Column(head, body, css_classes=["plate"], stylesheets=[sheet(is_dark)], **settings)


def grid(*cards: Any, columns: int = 2) -> pn.GridBox:
    """Cards side by side, of equal width."""
    return pn.GridBox(*cards, ncols=columns, sizing_mode="stretch_width")


def plot(x: str, y: str, is_dark: bool, height: int = 250, **settings: Any) -> Any:
    """An empty plot with labelled axes, in the colours of the theme."""
    ink, line = INK[is_dark]
    settings = {"tools": "pan,box_zoom,wheel_zoom,reset,save", "sizing_mode": "stretch_width"} | settings
    drawn = figure(height=height, x_axis_label=x, y_axis_label=y, **settings)
    drawn.toolbar.autohide = True
    drawn.toolbar.logo = None
    drawn.background_fill_color = drawn.border_fill_color = None
    drawn.outline_line_color = None
    drawn.min_border_left = 52
    for axis in drawn.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = ink
        axis.axis_label_text_font_size = "12px"
        axis.axis_line_color = axis.major_tick_line_color = line
        axis.minor_tick_line_color = None
    drawn.xgrid.grid_line_color = None
    drawn.ygrid.grid_line_color = line
    return drawn


def pane(target: Any) -> pn.pane.Bokeh:
    return pn.pane.Bokeh(target, sizing_mode="stretch_width", theme=None, margin=0)


def hover(target: Any, tips: Sequence[tuple[str, str]], *renderers: Any, **settings: Any) -> None:
    """Add a tooltip to some of the glyphs of a plot."""
    target.add_tools(HoverTool(tooltips=list(tips), renderers=list(renderers), **settings))


def legend(target: Any, items: Sequence[tuple[str, Sequence[Any]]], is_dark: bool) -> Any:
    """Add a legend in one line above the plot; it is returned so that `rename` can change a name."""
    ink, _ = INK[is_dark]
    added = Legend(
        items=[(name, list(glyphs)) for name, glyphs in items], orientation="horizontal", spacing=14, margin=0
    )
    added.label_text_color = ink
    added.label_text_font_size = "12px"
    added.background_fill_color = added.border_line_color = None
    added.glyph_width = added.glyph_height = 14
    target.add_layout(added, "above")
    return added


def class_axis(target: Any, names: Sequence[Any] | np.ndarray, axis: Any = None) -> None:
    """Name the ranks along an axis (default: x) by their classes; ranks stay if there are too many names to read."""
    axis = target.xaxis[0] if axis is None else axis
    if len(names) > LABELLED_CLASSES:
        if isinstance(axis.formatter, CustomJSTickFormatter):
            axis.ticker, axis.formatter, axis.major_label_orientation = (
                BasicTicker(),
                BasicTickFormatter(),
                "horizontal",
            )
        return
    names = [short_name(str(name), LONG) for name in names]
    if isinstance(axis.formatter, CustomJSTickFormatter) and axis.formatter.args["names"] == names:
        return
    axis.ticker = FixedTicker(ticks=list(range(len(names))))
    axis.formatter = CustomJSTickFormatter(code="return names[tick] ?? ''", args={"names": names})
    axis.major_label_text_font_size = "11px" if len(names) <= 30 else "9.5px"
    if axis in target.xaxis:
        axis.major_label_orientation = math.pi / 2


def rename(legend: Any, place: int, name: str) -> None:
    """Give the item at `place` of a legend another name."""
    if legend.items[place].label != literal(name):
        legend.items[place].label = literal(name)


def scrubber(target: Any, is_dark: bool) -> Span:
    """Add a vertical dotted line, such as that of the step in view."""
    line = Span(dimension="height", line_color=INK[is_dark][0], line_dash="dotted", line_width=1.2)
    target.add_layout(line)
    return line


def source(name: str, /, **columns: Any) -> ColumnDataSource:
    """The columns of a plot; `name` identifies them in the page."""
    return ColumnDataSource({column: list(values) for column, values in columns.items()}, name=name)


def numbers(items: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers side by side; an item is a title, a value and a line under the value."""
    boxes = (
        f'<div class="number"><span>{title}</span><b>{value}</b><span>{under}</span></div>'
        for title, value, under in items
    )
    return f'<div class="numbers">{"".join(boxes)}</div>'


class Markup(str):
    """A cell of a table that is HTML; other text is escaped."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, with its first column aligned to the left."""
    rows = [[cell if isinstance(cell, Markup) else html.escape(plain(str(cell))) for cell in row] for row in rows]
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit."""
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def look(place: int, is_dark: bool) -> tuple[str, str, str]:
    """Colour, marker and dash of the run at `place` among all runs; dotted from where the colours repeat."""
    color = CURVES[place % len(CURVES)][0]
    color = INK[is_dark][0] if color == BLACK else color
    return color, MARKERS[place % len(MARKERS)], "solid" if place < len(CURVES) else "dotted"


def chip(place: int, is_dark: bool) -> str:
    """A small square in the colour of a run; if its curves are dotted, only a dotted frame."""
    color, _, dash = look(place, is_dark)
    style = f"background:{color}" if dash == "solid" else f"border:2px dotted {color}"
    return f'<span class="chip" style="{style}"></span>'


def column(values: Any) -> Any:
    """Values for a source, as float64. A list if they are few, since each array takes two more messages."""
    array = np.asarray(values, dtype=np.float64)
    return array.tolist() if len(array) <= FEW else array
