"""The pool in two dimensions: which rows are similar, and where the wrong pseudo-labels are."""

import asyncio
from functools import partial
from typing import Any

import numpy as np
import panel as pn
from bokeh.models.annotations import ColorBar
from bokeh.models.mappers import LinearColorMapper
from bokeh.palettes import Cividis256

from fastltssl.analysis.samples import NO_UMAP, flat_pca, flat_umap, has_umap, ids_of
from fastltssl.errors import plain
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Page, Session, Shown, moved, ranked

POINTS = 20_000  # a larger pool is shown by so many rows, evenly spaced
COLORS = ("class", "correctness", "confidence", "group")
READING = {
    "class": "By pseudo-label, from the most labelled class (dark) to the least (light).",
    "correctness": "Orange is wrong, blue right: wrong ones inside another cluster are confident, on borders unsure.",
    "confidence": "From unsure (dark) to sure (light).",
    "group": "By the group of the pseudo-label: blue head, yellow medium, pink tail.",
}
LAYOUTS = {"PCA": flat_pca, "UMAP": flat_umap}
_KEPT: dict[Any, Any] = {}  # coordinates of the rows, by `_key`; shared by all visitors


def page(session: Session) -> Page:
    """The tab "Map"."""
    drawn = _Map(session)
    reading = "Two dimensions of the features: rows that are near look alike to the encoder."
    layout = d.card("Map of the pool", reading, drawn.body, session.is_dark)
    return Page(layout, drawn.repaint, lambda shown: _lines(drawn.points))


class _Map:
    """The widgets of the map, and which rows of the pool it shows."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.rows = np.array([], dtype=int)
        self.computing: Any = None  # the key of the run whose UMAP is being computed
        self.failure: tuple[Any, str] = (None, "")  # the key of the run whose UMAP failed, and the message
        self.layout = pn.widgets.RadioButtonGroup(label="Layout", options=list(LAYOUTS), value="PCA")
        self.by = pn.widgets.RadioButtonGroup(label="Colour", options=list(COLORS), value="correctness")
        self.note, self.reading = d.text("", session.is_dark), d.text("", session.is_dark)
        plot, self.points, self.bar = _plot(session.is_dark)
        self.body = pn.Column(sizing_mode="stretch_width")
        self.parts = [pn.Row(self.by, self.layout), self.reading, d.pane(plot), self.note]
        self.points.selected.on_change("indices", self.select)
        session.address.keep(layout=self.layout, colour=self.by)
        for widget in (self.layout, self.by):
            widget.param.watch(lambda _: moved(session), "value")

    def repaint(self, shown: Shown) -> None:
        has_map = shown.scored is not None and shown.labels is not None
        parts = self.parts if has_map else [self.note]
        if len(self.body) != len(parts):
            self.body.objects = parts
        if shown.scored is None or shown.labels is None:
            self.rows, self.points.data = np.array([], dtype=int), {name: [] for name in self.points.data}
            self.note.object = d.note(shown.why or f"{shown.insight.config.method} has no pool here.")
            return
        message, layout = "", self.layout.value
        if layout == "UMAP" and not is_placed(shown, layout):
            message, layout = self.begin_umap(shown), "PCA"
        self.rows, places = placed(shown, layout)
        _fill(shown, self.points, self.rows, places, self.by.value)
        brushed = self.session.brushed
        selected = [] if brushed is None else np.flatnonzero(np.isin(self.rows, brushed)).tolist()
        if self.points.selected.indices != selected:
            self.points.selected.indices = selected
        self.reading.object = d.note(READING[self.by.value])
        _scale(shown, self.bar, self.by.value)
        shown_rows, all_rows = len(self.rows), len(shown.labels.label)
        share = f"{shown_rows:,} of {all_rows:,} rows, evenly spaced. " if shown_rows < all_rows else ""
        self.note.object = d.note(f"{message}{share}{self.selection()}")

    def select(self, attribute: str, old: Any, new: list[int]) -> None:
        """Rows were selected in the browser."""
        self.session.brushed = self.rows[new] if new else None
        self.note.object = d.note(self.selection())

    def selection(self) -> str:
        if self.session.brushed is None:
            return "Draw around points to see them under Samples."
        return f"{len(self.session.brushed):,} rows are picked: see Samples."

    def begin_umap(self, shown: Shown) -> str:
        """Start computing UMAP if it is installed and has not failed; returns the message for the meantime."""
        if not has_umap():
            return f"{NO_UMAP}. "
        if self.failure[0] == shown.key:
            return self.failure[1]
        if self.computing != shown.key:
            self.computing = shown.key
            pn.state.execute(partial(self.compute_umap, shown, pn.state.curdoc))
        return "UMAP is being worked out, which can take a minute; this is PCA. "

    async def compute_umap(self, shown: Shown, document: Any) -> None:
        """Compute UMAP in a thread, so that the server goes on answering, and repaint."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, placed, shown, "UMAP")
        except (ValueError, TypeError, RuntimeError) as error:  # for example a pool of five rows
            self.failure = shown.key, f"UMAP cannot be had ({error}); this is PCA. "
        document.add_next_tick_callback(partial(moved, self.session))


def _plot(dark: bool) -> tuple[Any, Any, Any]:
    """The empty map, the source of its points, and its colour bar."""
    plot = d.plot(
        "first dimension (no unit)",
        "second dimension (no unit)",
        dark,
        560,
        output_backend="webgl",
        tools="lasso_select,box_select,pan,wheel_zoom,tap,reset,save",
        active_drag="lasso_select",
    )
    points = d.source("map", x=[], y=[], color=[], name=[], true=[], confidence=[], id=[])
    dots = plot.scatter("x", "y", source=points, color="color", size=6, alpha=0.75, line_color=None,
                        nonselection_alpha=0.12)  # fmt: skip
    d.hover(plot, [("id", "@id"), ("pseudo-label", "@name"), ("true class", "@true"),
                   ("confidence", "@confidence{0.0} %")], dots)  # fmt: skip
    plot.toolbar.autohide = False
    bar = ColorBar(color_mapper=LinearColorMapper(palette=Cividis256, low=0, high=100), width=8, visible=False)
    bar.background_fill_color, bar.major_label_text_color = None, d.INK[dark][0]
    plot.add_layout(bar, "right")
    return plot, points, bar


def placed(shown: Shown, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pool and their coordinates [K 2], computed once for each split. Raises MapError."""
    assert shown.scored is not None
    count = len(shown.scored.task.problem.u)
    rows = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
    if not is_placed(shown, layout):
        _KEPT[_key(shown, layout)] = LAYOUTS[layout](shown.scored, rows)
    return rows, _KEPT[_key(shown, layout)]


def is_placed(shown: Shown, layout: str) -> bool:
    """Whether the coordinates of this pool have been computed."""
    return _key(shown, layout) in _KEPT


def _key(shown: Shown, layout: str) -> Any:
    """Equal for runs whose pools have the same coordinates."""
    scored = shown.scored
    assert scored is not None
    split = scored.task.split.unlabelled
    return layout, str(scored.trained.cache.path), shown.insight.record["cache_fingerprint"], split.tobytes()


def _fill(shown: Shown, points: Any, rows: np.ndarray, places: np.ndarray, by: str) -> None:
    assert shown.labels is not None
    names = shown.insight.classes
    label, confidence = (values[rows.tolist()].numpy() for values in shown.labels)
    truth = None if shown.truth is None else shown.truth[rows.tolist()].numpy()
    points.data = {
        "x": d.column(places[:, 0]),
        "y": d.column(places[:, 1]),
        "color": _colors(shown, by, label, confidence, truth),
        "name": [names[k] for k in label],
        "true": ["not known"] * len(rows) if truth is None else [names[k] for k in truth],
        "confidence": d.column(100 * confidence),
        "id": list(map(plain, ids_of(shown.insight, rows))),
    }


def _colors(shown: Shown, by: str, label: np.ndarray, confidence: np.ndarray, truth: np.ndarray | None) -> list[str]:
    if by == "confidence":
        return [Cividis256[min(255, int(256 * value))] for value in confidence]
    if by == "class":
        rank = np.argsort(ranked(shown.insight))
        return [Cividis256[int(255 * own / max(1, len(rank) - 1))] for own in rank[label]]
    if by == "group":
        groups = shown.insight.groups
        return [d.GREY] * len(label) if groups is None else [d.GROUP_COLORS[k] for k in groups.numpy()[label]]
    return [d.GREY] * len(label) if truth is None else [d.BLUE if ok else d.ORANGE for ok in label == truth]


def _scale(shown: Shown, bar: Any, by: str) -> None:
    """Set the colour bar to what the colours mean."""
    bar.visible = by in ("confidence", "class")
    bar.title = {"confidence": "confidence (%)", "class": "labelled rank"}.get(by, "")
    bar.color_mapper.high = 100 if by == "confidence" else len(shown.insight.classes)


def _lines(points: Any) -> list[dict[str, Any]]:
    """Every point of the map."""
    columns = {"id": "id", "x": "x", "y": "y", "true": "true", "name": "label", "confidence": "confidence_percent"}
    rows = zip(*(points.data[name] for name in columns), strict=True)
    return [dict(zip(columns.values(), row, strict=True)) for row in rows]
