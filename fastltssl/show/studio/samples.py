"""A gallery of pseudo-labels that are wrong and sure of it, and one of them from close by."""

import html
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import TapTool
from bokeh.palettes import Cividis256

from fastltssl.analysis.samples import Wanted, branch_scores, chosen, ids_of, neighbours, thumbnails
from fastltssl.functional import metrics
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Session, Shown, moved

COLUMNS, ROWS = 8, 3  # of the gallery
FRAME = 100  # pixels of an image and its frame
LETTERS = 15  # of an id, a line in a frame without an image
CLASSES = 6  # of one sample, most likely first
ANY = "any"


def page(session: Session) -> tuple[Any, Any, Any]:
    """The layout, what repaints it, and the CSV of what it shows."""
    dark = session.is_dark
    filters = _filters(session)
    made, own, pictures = _gallery(dark)
    line, detail = d.text("", dark), pn.Column(sizing_mode="stretch_width")
    found: dict[str, Any] = {"rows": np.array([], dtype=int), "row": session.address.number("row")}
    gallery = d.pane(made)

    def repaint() -> None:
        shown = session.shown
        assert shown is not None
        names = [ANY, *shown.insight.classes]
        for name in ("true", "label"):
            if filters[name].options != names:
                filters[name].options = names
        gallery.visible = shown.labels is not None
        if shown.labels is None:
            found["rows"], detail.objects = np.array([], dtype=int), []
            own.data, pictures.data = ({name: [] for name in each.data} for each in (own, pictures))
            line.object = d.note(f"{shown.insight.config.method} makes no pseudo-labels here. {shown.why}")
            return
        found["rows"] = rows = chosen(shown.insight, shown.labels, shown.truth, _wanted(session, filters))
        pages = max(1, -(-len(rows) // (COLUMNS * ROWS)))
        filters["page"].param.update(options=list(range(1, pages + 1)), value=min(filters["page"].value, pages))
        start = (filters["page"].value - 1) * COLUMNS * ROWS
        _fill(session, own, pictures, rows[start : start + COLUMNS * ROWS])
        picked = "" if session.brushed is None else f" Of the {len(session.brushed):,} picked on the map."
        line.object = d.note(f"{len(rows):,} of {len(shown.labels.label):,} rows.{picked} {session.album.why}")
        is_other = found.get("run", shown.key) != shown.key
        if is_other or found["row"] is None or found["row"] >= len(shown.labels.label):
            found["row"] = int(rows[0]) if len(rows) else None
            session.address.tell("row", None)
        seen = shown.key, found["row"], shown.knobs, shown.place
        if found["row"] is None:
            detail.objects = []
        elif found.get("seen") != seen:
            detail.objects = _closer(session, found["row"])
        found["run"], found["seen"] = shown.key, seen

    def picked(attribute: str, old: Any, new: list[int]) -> None:
        if new and session.shown is not None:
            found["row"] = int(own.data["row"][new[0]])
            session.address.tell("row", found["row"])
            detail.objects = _closer(session, found["row"])

    def unbrush(_: Any) -> None:
        session.brushed = None
        moved(session)

    own.selected.on_change("indices", picked)
    session.address.keep(**filters)
    for widget in filters.values():
        widget.param.watch(lambda _: moved(session), "value")
    clear = pn.widgets.Button(label="Forget the map's choice", width=170, align="end")
    clear.on_click(unbrush)
    reading = "Most confident first. Orange frames are wrong, blue ones right; click one to look closer."
    body = pn.Column(pn.FlexBox(*filters.values(), clear), line, gallery, sizing_mode="stretch_width")
    layout = pn.Column(d.card("Samples", reading, body, dark), detail, sizing_mode="stretch_width")
    return layout, repaint, lambda: _lines(session, found["rows"])


def _filters(session: Session) -> dict[str, Any]:
    """What picks the samples, by the names that the address has for them."""
    assert session.shown is not None
    names, first = [ANY, *session.shown.insight.classes], session.address.number("page") or 1
    return {
        "show": pn.widgets.Select(label="Show", options=["wrong", "right", "all"], width=90),
        "true": pn.widgets.Select(label="True class", options=names, value=ANY, width=150),
        "label": pn.widgets.Select(label="Pseudo-label", options=names, value=ANY, width=150),
        "group": pn.widgets.Select(label="Predicted group", options=[ANY, *metrics.GROUPS], value=ANY, width=120),
        "confidence": pn.widgets.RangeSlider(label="Confidence", start=0, end=1, step=0.01, value=(0, 1), width=190),
        "page": pn.widgets.Select(label="Page", options=[first], value=first, width=70),
    }


def _wanted(session: Session, filters: dict[str, Any]) -> Wanted:
    assert session.shown is not None
    classes = list(session.shown.insight.classes)
    true, label, group = (filters[name].value for name in ("true", "label", "group"))
    low, high = filters["confidence"].value
    return Wanted(
        kind=filters["show"].value,
        true=classes.index(true) if true in classes else None,
        label=classes.index(label) if label in classes else None,
        group=metrics.GROUPS.index(group) if group in metrics.GROUPS else None,
        low=low,
        high=high,
        rows=session.brushed,
    )


def _gallery(dark: bool) -> tuple[Any, Any, Any]:
    """The grid of images, of which a tap picks one, the source of its frames and that of what is in them."""
    made = d.plot("", "", dark, 158 * ROWS, tools="tap", x_range=(-0.55, COLUMNS - 0.45), y_range=(ROWS - 0.42, -0.36),
                  toolbar_location=None)  # fmt: skip
    for axis in made.axis:
        axis.visible = False
    made.ygrid.visible, made.min_border_left = False, 0
    ink = d.INK[dark][0]
    own = d.source(
        "gallery", x=[], y=[], url=[], row=[], color=[], true=[], label=[], confidence=[], id=[]
    )  # fmt: skip
    pictures = d.source("pictures", x=[], y=[], url=[], inside=[], below=[], place=[])  # a tap selects frames alone
    frame = made.rect(
        "x",
        "y",
        FRAME,
        FRAME,
        source=own,
        width_units="screen",
        height_units="screen",
        fill_color=d.GREY,
        fill_alpha=0.12,
        line_color="color",
        line_width=2.5,
        nonselection_alpha=1,
        nonselection_fill_alpha=0.12,
        selection_line_width=5,
    )
    made.image_url(
        "url",
        "x",
        "y",
        FRAME - 8,
        FRAME - 8,
        w_units="screen",
        h_units="screen",
        anchor="center",
        source=pictures,
    )
    made.text("x", "y", text="inside", source=pictures, text_align="center", text_baseline="middle", text_color=ink,
              text_font_size="10px")  # fmt: skip
    made.text("x", "place", text="below", source=pictures, text_align="center", text_baseline="top", text_color=ink,
              text_font_size="11px")  # fmt: skip
    d.hover(made, [("id", "@id"), ("true class", "@true"), ("pseudo-label", "@label"),
                   ("confidence", "@confidence{0.0} %")], frame)  # fmt: skip
    made.select_one(TapTool).renderers = [frame]
    return made, own, pictures


def _fill(session: Session, own: Any, pictures: Any, rows: np.ndarray) -> None:
    shown = session.shown
    assert shown is not None
    assert shown.labels is not None
    names, places = shown.insight.classes, np.arange(len(rows))
    label, confidence = (each[rows.tolist()].tolist() for each in shown.labels)
    truth = [-1] * len(rows) if shown.truth is None else shown.truth[rows.tolist()].tolist()
    ids = ids_of(shown.insight, rows)
    urls = thumbnails(session.album, _group(shown), ids)
    own.selected.indices = []
    corner = {"x": d.column(places % COLUMNS), "y": d.column(places // COLUMNS)}
    pictures.data = corner | {
        "place": d.column(places // COLUMNS + 0.34),
        "url": urls,
        "inside": ["" if url else _folded(image_id) for url, image_id in zip(urls, ids, strict=True)],
        "below": [_caption(names, t, k, c) for t, k, c in zip(truth, label, confidence, strict=True)],
    }
    own.data = corner | {
        "url": urls,
        "row": rows.tolist(),
        "color": [d.GREY if a < 0 else d.BLUE if a == b else d.ORANGE for a, b in zip(truth, label, strict=True)],
        "true": [names[k] if k >= 0 else "not known" for k in truth],
        "label": [names[k] for k in label],
        "confidence": d.column(100 * np.asarray(confidence)),
        "id": ids,
    }


def _folded(image_id: str) -> str:
    """The end of an id in lines that fit into a frame."""
    tail = image_id[-4 * LETTERS :]
    return "\n".join(tail[start : start + LETTERS] for start in range(0, len(tail), LETTERS))


def _caption(names: tuple[str, ...], true: int, label: int, confidence: float) -> str:
    first = names[true] if true >= 0 else "?"
    return f"{first[:18]}\nas {names[label][:16]} {100 * confidence:.0f} %"


def _group(shown: Shown) -> str | None:
    """The group of the cache that the pool is of, where that is known."""
    return shown.scored.task.split.unlabelled_group if shown.scored else None


def _closer(session: Session, row: int) -> list[Any]:
    """One sample: its image, the scores of its branches, of its views, and its labelled neighbours."""
    shown, dark = session.shown, session.is_dark
    assert shown is not None
    if shown.labels is None:
        return []
    names, image_id = shown.insight.classes, ids_of(shown.insight, np.array([row]))[0]
    true, label = None if shown.truth is None else int(shown.truth[row]), int(shown.labels.label[row])
    picture = thumbnails(session.album, _group(shown), [image_id])[0]
    lines = [
        ("id", image_id),
        ("true class", names[true] if true is not None else "not known"),
        ("pseudo-label", names[label]),
        ("confidence", f"{100 * float(shown.labels.confidence[row]):.1f} %"),
    ]
    image = (
        f'<img src="{picture}" width="128" style="image-rendering: pixelated; align-self: start">' if picture else ""
    )
    cells = d.table(["sample", ""], [[name, value] for name, value in lines])
    head = f'<div style="display: flex; gap: 16px">{image}<div style="flex: 1">{cells}</div></div>'
    if shown.scored is None:
        body = d.text(head + d.note(shown.why), dark)
        return [d.card("This sample", "Its pseudo-label as recorded at the step.", body, dark)]
    scored = shown.scored
    near = "".join(_neighbour(session, one) for one in neighbours(scored, row))
    scores = {name: each.softmax(dim=-1).numpy() for name, each in branch_scores(scored, row).items()}
    top = _classes(scores, [label] if true is None else [label, true])
    return [
        d.grid(
            d.card("This sample", "Its first weak view, at the sliders.", d.text(head, dark), dark),
            d.card("Nearest labelled images", "By the cosine of their features; a wrong class here misleads any head.",
                   d.text(f'<div style="display:flex;gap:10px;flex-wrap:wrap">{near}</div>', dark), dark),
            d.card("Scores of each branch", "Probability of the likeliest classes by each branch, on the center view, "
                   "as trained: the pseudo-label is that of a weak view.", _branches(scores, top, names, dark), dark),
            d.card("Scores of each view", "Probability by the run, on every cached view: views that disagree are a "
                   "warning.", _views(scores["run"], scored.task.problem.views, top, names, dark), dark),
        )
    ]  # fmt: skip


def _neighbour(session: Session, one: Any) -> str:
    picture = thumbnails(session.album, "train", [one.image_id])[0]
    assert session.shown is not None
    name = session.shown.insight.classes[one.label]
    tip, name = html.escape(one.image_id), html.escape(name)
    image = f'<img src="{picture}" width="84" style="image-rendering: pixelated"><br>' if picture else f"{tip}<br>"
    return f'<div class="note" style="width:92px" title="{tip}">{image}{name}<br>cosine {one.cosine:.2f}</div>'


def _classes(scores: dict[str, np.ndarray], kept: list[int]) -> list[int]:
    """The likeliest classes of any branch, the ones that matter first."""
    best = np.max([each[0] for each in scores.values()], axis=0)
    return list(dict.fromkeys([*kept, *np.argsort(-best)[:CLASSES].tolist()]))[:CLASSES]


def _branches(scores: dict[str, np.ndarray], top: list[int], names: tuple[str, ...], dark: bool) -> Any:
    made = d.plot("probability (%)", "", dark, 60 + 40 * len(top), x_range=(0, 100))
    height, items = 0.8 / len(scores), []
    for place, (name, each) in enumerate(scores.items()):
        y = np.arange(len(top)) - 0.4 + height * (place + 0.5)
        own = d.source(f"branch/{name}", y=y, p=100 * each[0][top], name=[names[k] for k in top])
        bars = made.hbar("y", right="p", height=height * 0.9, source=own, color=d.CURVES[place][0], line_color=None)
        d.hover(made, [("class", "@name"), (name, "@p{0.0} %")], bars)
        items.append((name, [bars]))
    made.y_range.flipped = True
    d.legend(made, items, dark)
    d.class_axis(made, [names[k] for k in top], made.yaxis[0])
    return d.pane(made)


def _views(probs: np.ndarray, views: tuple[str, ...], top: list[int], names: tuple[str, ...], dark: bool) -> Any:
    made = d.plot("view", "", dark, 60 + 40 * len(top), tools="reset,save")
    cells = [(v, c) for v in range(len(views)) for c in range(len(top))]
    shade = [Cividis256[min(255, int(256 * probs[v][top[c]]))] for v, c in cells]
    own = d.source("views", x=[v for v, _ in cells], y=[c for _, c in cells], color=shade)
    own.data.update(
        view=[views[v] for v, _ in cells],
        name=[names[top[c]] for _, c in cells],
        p=[100 * float(probs[v][top[c]]) for v, c in cells],
        text=[f"{100 * float(probs[v][top[c]]):.0f}" for v, c in cells],
        ink=["#111111" if probs[v][top[c]] > 0.5 else "#ffffff" for v, c in cells],
    )
    tiles = made.rect("x", "y", 0.98, 0.96, source=own, color="color")
    if len(views) <= 20:
        made.text("x", "y", text="text", source=own, text_align="center", text_baseline="middle", text_color="ink",
                  text_font_size="10px")  # fmt: skip
    d.hover(made, [("view", "@view"), ("class", "@name"), ("probability", "@p{0.0} %")], tiles)
    made.y_range.flipped = True
    made.ygrid.visible = False
    d.class_axis(made, list(views))
    d.class_axis(made, [names[k] for k in top], made.yaxis[0])
    return d.pane(made)


def _lines(session: Session, rows: np.ndarray) -> list[dict[str, Any]]:
    """Every row that the filters let through, most confident first."""
    shown = session.shown
    if shown is None or shown.labels is None or not len(rows):
        return []
    names = shown.insight.classes
    ids = ids_of(shown.insight, rows)
    label, confidence = shown.labels.label[rows].tolist(), (100 * shown.labels.confidence[rows]).tolist()
    truth = [None] * len(rows) if shown.truth is None else shown.truth[rows.tolist()].tolist()
    return [
        {"id": i, "row": int(r), "true": "" if t is None else names[t], "label": names[k], "confidence_percent": c}
        for i, r, t, k, c in zip(ids, rows, truth, label, confidence, strict=True)
    ]
