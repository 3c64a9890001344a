"""The pool in two dimensions: what is near what, and where the wrong pseudo-labels lie."""

import asyncio
from functools import partial
from typing import Any

import numpy as np
import panel as pn
from bokeh.models.annotations import ColorBar
from bokeh.models.mappers import LinearColorMapper
from bokeh.palettes import Cividis256

from fastltssl.analysis.samples import NO_UMAP, flat_pca, flat_umap, has_umap, ids_of
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Session, Shown, moved

POINTS = 20_000  # at most; evenly spaced rows of a larger pool
COLORS = ("class", "correctness", "confidence", "group")
READING = {
    "class": "By pseudo-label, from the most labelled class (dark) to the least (light).",
    "correctness": "Orange is wrong, blue right: wrong ones inside another cluster are confident, on borders unsure.",
    "confidence": "From unsure (dark) to sure (light).",
    "group": "By the group of the pseudo-label: blue head, yellow medium, pink tail.",
}
LAYOUTS = {"PCA": flat_pca, "UMAP": flat_umap}
_KEPT: dict[Any, Any] = {}  # places of a pool, by cache, rows and layout


def page(session: Session) -> tuple[Any, Any, Any]:
    """The layout, what repaints it, and the CSV of what it shows."""
    dark = session.is_dark
    kind = pn.widgets.RadioButtonGroup(label="Layout", options=list(LAYOUTS), value="PCA")
    by = pn.widgets.RadioButtonGroup(label="Colour", options=list(COLORS), value="correctness")
    line, reading = d.text("", dark), d.text("", dark)
    made, own, bar = _plot(dark)
    whole, body = [pn.Row(by, kind), reading, d.pane(made), line], pn.Column(sizing_mode="stretch_width")
    state: dict[str, Any] = {"rows": np.array([], dtype=int)}

    async def lay_out(shown: Shown, document: Any) -> None:
        """Work UMAP out beside the server, which goes on answering."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, placed, shown, "UMAP")
        except (ValueError, TypeError, RuntimeError) as error:  # such as a pool of five rows
            state["failed"] = shown.key, f"UMAP cannot be had ({error}); this is PCA. "
        document.add_next_tick_callback(partial(moved, session))

    def waiting_for(shown: Shown) -> str:
        """Begin with UMAP if that can be; what is to be said meanwhile."""
        if not has_umap():
            return f"{NO_UMAP}. "
        if state.get("failed", [None])[0] == shown.key:
            return str(state["failed"][1])
        if state.get("waiting") != shown.key:
            state["waiting"] = shown.key
            pn.state.execute(partial(lay_out, shown, pn.state.curdoc))
        return "UMAP is being worked out, which can take a minute; this is PCA. "

    def repaint() -> None:
        shown = session.shown
        assert shown is not None
        is_there = shown.scored is not None and shown.labels is not None
        if len(body) != len(whole if is_there else [line]):
            body.objects = whole if is_there else [line]
        if shown.scored is None or shown.labels is None:
            state["rows"], own.data = np.array([], dtype=int), {name: [] for name in own.data}
            line.object = d.note(shown.why or f"{shown.insight.config.method} has no pool here.")
            return
        trouble, wanted = "", kind.value
        if wanted == "UMAP" and not is_placed(shown, wanted):
            trouble, wanted = waiting_for(shown), "PCA"
        rows, places = placed(shown, wanted)
        state["rows"] = rows
        _fill(shown, own, rows, places, by.value)
        picked = [] if session.brushed is None else np.flatnonzero(np.isin(rows, session.brushed)).tolist()
        if own.selected.indices != picked:
            own.selected.indices = picked
        reading.object = d.note(READING[by.value])
        _scale(shown, bar, by.value)
        many = f"{len(rows):,} of {len(shown.labels.label):,} rows, evenly spaced. " if len(rows) < len(
            shown.labels.label) else ""  # fmt: skip
        chosen = "" if session.brushed is None else f"{len(session.brushed):,} rows are picked: see Samples."
        line.object = d.note(f"{trouble}{many}{chosen or 'Draw around points to see them under Samples.'}")

    def brushed(attribute: str, old: Any, new: list[int]) -> None:
        session.brushed = state["rows"][new] if new else None
        picked = f"{len(new):,} rows are picked: see Samples." if new else ""
        line.object = d.note(picked or "Draw around points to see them under Samples.")

    own.selected.on_change("indices", brushed)
    session.address.keep(layout=kind, colour=by)
    for widget in (kind, by):
        widget.param.watch(lambda _: moved(session), "value")
    layout = d.card("Map of the pool", "Two dimensions of the features: rows that are near look alike to the encoder.",
                    body, dark)  # fmt: skip
    return layout, repaint, lambda: _lines(own)


def _plot(dark: bool) -> tuple[Any, Any, Any]:
    """The empty map, the source of its points and its scale."""
    made = d.plot(
        "first dimension (no unit)",
        "second dimension (no unit)",
        dark,
        560,
        output_backend="webgl",
        tools="lasso_select,box_select,pan,wheel_zoom,tap,reset,save",
        active_drag="lasso_select",
    )
    own = d.source("map", x=[], y=[], color=[], name=[], true=[], confidence=[], id=[])
    dots = made.scatter("x", "y", source=own, color="color", size=6, alpha=0.75, line_color=None,
                        nonselection_alpha=0.12)  # fmt: skip
    d.hover(made, [("id", "@id"), ("pseudo-label", "@name"), ("true class", "@true"),
                   ("confidence", "@confidence{0.0} %")], dots)  # fmt: skip
    made.toolbar.autohide = False
    bar = ColorBar(color_mapper=LinearColorMapper(palette=Cividis256, low=0, high=100), width=8, visible=False)
    bar.background_fill_color, bar.major_label_text_color = None, d.INK[dark][0]
    made.add_layout(bar, "right")
    return made, own, bar


def placed(shown: Shown, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pool and where they lie [K 2], worked out once for each split. Raises MapError."""
    assert shown.scored is not None
    count = len(shown.scored.task.problem.u)
    rows = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
    if not is_placed(shown, layout):
        _KEPT[_key(shown, layout)] = LAYOUTS[layout](shown.scored, rows)
    return rows, _KEPT[_key(shown, layout)]


def is_placed(shown: Shown, layout: str) -> bool:
    """Whether a layout of this pool has been worked out."""
    return _key(shown, layout) in _KEPT


def _key(shown: Shown, layout: str) -> Any:
    scored = shown.scored
    assert scored is not None
    split = scored.task.split.unlabelled
    return layout, str(scored.trained.cache.path), shown.insight.record["cache_fingerprint"], split.tobytes()


def _fill(shown: Shown, own: Any, rows: np.ndarray, places: np.ndarray, by: str) -> None:
    assert shown.labels is not None
    assert shown.scored is not None
    names = shown.insight.classes
    label, confidence = (each[rows.tolist()].numpy() for each in shown.labels)
    truth = None if shown.truth is None else shown.truth[rows.tolist()].numpy()
    own.data = {
        "x": d.column(places[:, 0]),
        "y": d.column(places[:, 1]),
        "color": _colors(shown, by, label, confidence, truth),
        "name": [names[k] for k in label],
        "true": ["not known"] * len(rows) if truth is None else [names[k] for k in truth],
        "confidence": d.column(100 * confidence),
        "id": ids_of(shown.insight, rows),
    }


def _colors(shown: Shown, by: str, label: np.ndarray, confidence: np.ndarray, truth: np.ndarray | None) -> list[str]:
    if by == "confidence":
        return [Cividis256[min(255, int(256 * value))] for value in confidence]
    if by == "class":
        rank = shown.insight.counts.argsort(descending=True, stable=True).argsort().numpy()
        return [Cividis256[int(255 * place / max(1, len(rank) - 1))] for place in rank[label]]
    if by == "group":
        groups = shown.insight.groups
        return [d.GREY] * len(label) if groups is None else [d.GROUP_COLORS[k] for k in groups.numpy()[label]]
    return [d.GREY] * len(label) if truth is None else [d.BLUE if ok else d.ORANGE for ok in label == truth]


def _scale(shown: Shown, bar: Any, by: str) -> None:
    bar.visible = by in ("confidence", "class")
    bar.title = {"confidence": "confidence (%)", "class": "labelled rank"}.get(by, "")
    bar.color_mapper.high = 100 if by == "confidence" else len(shown.insight.classes)


def _lines(own: Any) -> list[dict[str, Any]]:
    """Every point of the map."""
    columns = {"id": "id", "x": "x", "y": "y", "true": "true", "name": "label", "confidence": "confidence_percent"}
    rows = zip(*(own.data[name] for name in columns), strict=True)
    return [dict(zip(columns.values(), row, strict=True)) for row in rows]
