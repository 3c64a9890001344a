"""A gallery of pseudo-labels, at first the most confident wrong ones, and a closer look at one of them."""

import html
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import TapTool
from bokeh.palettes import Cividis256

from fastltssl.analysis.samples import Wanted, branch_scores, chosen, ids_of, neighbours, thumbnails
from fastltssl.errors import plain
from fastltssl.functional import metrics
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Page, Session, Shown, at_hand, moved

COLUMNS, ROWS = 8, 3  # of the gallery
FRAME = 100  # pixels of an image and its frame
LETTERS = 15  # of an id, in each line of a frame without an image
CLASSES = 6  # the number of likeliest classes shown for one sample
ANY = "any"


def page(session: Session) -> Page:
    """The tab "Samples"."""
    dark, view = session.is_dark, _Gallery(session)
    clear = pn.widgets.Button(label="Forget the map's choice", width=170, align="end")
    clear.on_click(view.forget_selection)
    reading = "Most confident first. Orange frames are wrong, blue ones right; click one to look closer."
    filters = pn.FlexBox(*view.filters.values(), clear)
    body = pn.Column(filters, view.note, view.plot, sizing_mode="stretch_width")
    layout = pn.Column(d.card("Samples", reading, body, dark), view.detail, sizing_mode="stretch_width")
    return Page(layout, view.repaint, lambda shown: _lines(shown, view.rows))


class _Gallery:
    """The widgets of the gallery, and what they show."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.filters = _filters(session)
        plot, self.frames, self.pictures = _gallery_plot(session.is_dark)
        self.plot, self.note = d.pane(plot), d.text("", session.is_dark)
        self.detail = pn.Column(sizing_mode="stretch_width")
        self.rows = np.array([], dtype=int)  # of the pool, those that the filters let through
        self.row = session.address.number("row")  # the sample looked at closely
        self.run: Any = None  # the key of the run that `row` is of; None: of the run that the address names
        self.detailed: Any = None  # what the closer look shows
        self.frames.selected.on_change("indices", self.select)
        session.address.keep(**self.filters)
        for widget in self.filters.values():
            widget.param.watch(lambda _: moved(session), "value")

    def repaint(self, shown: Shown) -> None:
        names = [ANY, *shown.insight.classes]
        for name in ("true", "label"):
            if self.filters[name].options != names:
                self.filters[name].options = names
        self.plot.visible = shown.labels is not None
        if shown.labels is None:
            self.rows, self.detail.objects = np.array([], dtype=int), []
            for source in (self.frames, self.pictures):
                source.data = {name: [] for name in source.data}
            self.note.object = d.note(f"{shown.insight.config.method} makes no pseudo-labels here. {shown.why}")
            return
        brushed = self.session.brushed
        self.rows = chosen(shown.insight, shown.labels, shown.truth, _wanted(shown, self.filters, brushed))
        pages = max(1, -(-len(self.rows) // (COLUMNS * ROWS)))
        number = self.filters["page"]
        number.param.update(options=list(range(1, pages + 1)), value=min(number.value, pages))
        start = (number.value - 1) * COLUMNS * ROWS
        _fill(self.session, shown, self.frames, self.pictures, self.rows[start : start + COLUMNS * ROWS])
        picked = "" if brushed is None else f" Of the {len(brushed):,} picked on the map."
        count = f"{len(self.rows):,} of {len(shown.labels.label):,} rows."
        self.note.object = d.note(f"{count}{picked} {self.session.album.why}")
        self.repaint_detail(shown, len(shown.labels.label))

    def repaint_detail(self, shown: Shown, count: int) -> None:
        """Look closely at the chosen row of the `count` in the pool, or at the first row if none of them is chosen."""
        is_other_run = self.run not in (None, shown.key)
        if is_other_run or self.row is None or self.row >= count:
            self.row = int(self.rows[0]) if len(self.rows) else None
            self.session.address.tell("row", None)
        wanted = shown.key, self.row, shown.knobs, shown.place
        if self.row is None:
            self.detail.objects = []
        elif self.detailed != wanted:
            self.detail.objects = _closer(self.session, shown, self.row)
        self.run, self.detailed = shown.key, wanted

    def select(self, attribute: str, old: Any, new: list[int]) -> None:
        """A frame was clicked in the browser."""
        if new and self.session.shown is not None:
            self.row = int(self.frames.data["row"][new[0]])
            self.session.address.tell("row", self.row)
            self.detail.objects = _closer(self.session, self.session.shown, self.row)

    def forget_selection(self, _: Any) -> None:
        """Show all rows again instead of those that are selected on the map."""
        self.session.brushed = None
        moved(self.session)


def _filters(session: Session) -> dict[str, Any]:
    """The widgets that filter the samples, by their names in the address."""
    classes = at_hand(session.folder, session.seed.value).classes
    names, first = [ANY, *classes], session.address.number("page") or 1
    return {
        "show": pn.widgets.Select(label="Show", options=["wrong", "right", "all"], width=90),
        "true": pn.widgets.Select(label="True class", options=names, value=ANY, width=150),
        "label": pn.widgets.Select(label="Pseudo-label", options=names, value=ANY, width=150),
        "group": pn.widgets.Select(label="Predicted group", options=[ANY, *metrics.GROUPS], value=ANY, width=120),
        "confidence": pn.widgets.RangeSlider(label="Confidence", start=0, end=1, step=0.01, value=(0, 1), width=190),
        "page": pn.widgets.Select(label="Page", options=[first], value=first, width=70),
    }


def _wanted(shown: Shown, filters: dict[str, Any], rows: np.ndarray | None) -> Wanted:
    """What the filters ask for, among `rows` if they are given."""
    classes = list(shown.insight.classes)
    true, label, group = (filters[name].value for name in ("true", "label", "group"))
    low, high = filters["confidence"].value
    return Wanted(
        kind=filters["show"].value,
        true=classes.index(true) if true in classes else None,
        label=classes.index(label) if label in classes else None,
        group=metrics.GROUPS.index(group) if group in metrics.GROUPS else None,
        low=low,
        high=high,
        rows=rows,
    )


def _gallery_plot(dark: bool) -> tuple[Any, Any, Any]:
    """The empty grid of images, the source of their frames, and the source of the images and captions."""
    plot = d.plot("", "", dark, 158 * ROWS, tools="tap", x_range=(-0.55, COLUMNS - 0.45), y_range=(ROWS - 0.42, -0.36),
                  toolbar_location=None)  # fmt: skip
    for axis in plot.axis:
        axis.visible = False
    plot.ygrid.visible, plot.min_border_left = False, 0
    ink = d.INK[dark][0]
    frames = d.source("gallery", x=[], y=[], row=[], color=[], true=[], label=[], confidence=[], id=[])
    pictures = d.source("pictures", x=[], y=[], url=[], inside=[], below=[], place=[])  # apart: clicks select frames
    frame = plot.rect(
        "x",
        "y",
        FRAME,
        FRAME,
        source=frames,
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
    side = FRAME - 8
    plot.image_url("url", "x", "y", side, side, w_units="screen", h_units="screen", anchor="center", source=pictures)
    plot.text("x", "y", text="inside", source=pictures, text_align="center", text_baseline="middle", text_color=ink,
              text_font_size="10px")  # fmt: skip
    plot.text("x", "place", text="below", source=pictures, text_align="center", text_baseline="top", text_color=ink,
              text_font_size="11px")  # fmt: skip
    d.hover(plot, [("id", "@id"), ("true class", "@true"), ("pseudo-label", "@label"),
                   ("confidence", "@confidence{0.0} %")], frame)  # fmt: skip
    plot.select_one(TapTool).renderers = [frame]
    return plot, frames, pictures


def _fill(session: Session, shown: Shown, frames: Any, pictures: Any, rows: np.ndarray) -> None:
    assert shown.labels is not None
    names, places = shown.insight.classes, np.arange(len(rows))
    label, confidence = (values[rows.tolist()].tolist() for values in shown.labels)
    truth = [-1] * len(rows) if shown.truth is None else shown.truth[rows.tolist()].tolist()
    ids = ids_of(shown.insight, rows)
    urls = thumbnails(session.album, _group(shown), ids)
    frames.selected.indices = []
    corner = {"x": d.column(places % COLUMNS), "y": d.column(places // COLUMNS)}
    pictures.data = corner | {
        "place": d.column(places // COLUMNS + 0.34),
        "url": urls,
        "inside": ["" if url else _folded(plain(image_id)) for url, image_id in zip(urls, ids, strict=True)],
        "below": [_caption(names, t, k, c) for t, k, c in zip(truth, label, confidence, strict=True)],
    }
    frames.data = corner | {
        "row": rows.tolist(),
        "color": [d.GREY if t < 0 else d.BLUE if t == k else d.ORANGE for t, k in zip(truth, label, strict=True)],
        "true": [names[k] if k >= 0 else "not known" for k in truth],
        "label": [names[k] for k in label],
        "confidence": d.column(100 * np.asarray(confidence)),
        "id": list(map(plain, ids)),
    }


def _folded(image_id: str) -> str:
    """The last 60 letters of an id, in lines that fit into a frame."""
    tail = image_id[-4 * LETTERS :]
    return "\n".join(tail[start : start + LETTERS] for start in range(0, len(tail), LETTERS))


def _caption(names: tuple[str, ...], true: int, label: int, confidence: float) -> str:
    true_name = names[true] if true >= 0 else "?"
    return f"{true_name[:18]}\nas {names[label][:16]} {100 * confidence:.0f} %"


def _group(shown: Shown) -> str | None:
    """The group of the cache that the pool is taken from, if it is known."""
    return shown.scored.task.split.unlabelled_group if shown.scored else None


def _closer(session: Session, shown: Shown, row: int) -> list[Any]:
    """Cards about one sample: its image, its scores by branch and by view, and the nearest labelled images."""
    dark = session.is_dark
    if shown.labels is None:
        return []
    names = shown.insight.classes
    true, label = None if shown.truth is None else int(shown.truth[row]), int(shown.labels.label[row])
    head = _head(session, shown, row, true, label)
    if shown.scored is None:
        body = d.text(head + d.note(shown.why), dark)
        return [d.card("This sample", "Its pseudo-label as recorded at the step.", body, dark)]
    scored = shown.scored
    near = "".join(_neighbour(session, shown, neighbour) for neighbour in neighbours(scored, row))
    scores = {name: branch.softmax(dim=-1).numpy() for name, branch in branch_scores(scored, row).items()}
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


def _head(session: Session, shown: Shown, row: int, true: int | None, label: int) -> str:
    """The image of a sample beside a table of its labels."""
    assert shown.labels is not None
    names, image_id = shown.insight.classes, ids_of(shown.insight, np.array([row]))[0]
    picture = thumbnails(session.album, _group(shown), [image_id])[0]
    image = (
        f'<img src="{picture}" width="128" style="image-rendering: pixelated; align-self: start">' if picture else ""
    )
    table = d.table(
        ["sample", ""],
        [
            ["id", image_id],
            ["true class", names[true] if true is not None else "not known"],
            ["pseudo-label", names[label]],
            ["confidence", f"{100 * float(shown.labels.confidence[row]):.1f} %"],
        ],
    )
    return f'<div style="display: flex; gap: 16px">{image}<div style="flex: 1">{table}</div></div>'


def _neighbour(session: Session, shown: Shown, neighbour: Any) -> str:
    picture = thumbnails(session.album, "train", [neighbour.image_id])[0]
    tip, name = html.escape(plain(neighbour.image_id)), html.escape(shown.insight.classes[neighbour.label])
    image = f'<img src="{picture}" width="84" style="image-rendering: pixelated"><br>' if picture else f"{tip}<br>"
    text = f"{image}{name}<br>cosine {neighbour.cosine:.2f}"
    return f'<div class="note" style="width:92px; overflow-wrap:anywhere" title="{tip}">{text}</div>'


def _classes(scores: dict[str, np.ndarray], first: list[int]) -> list[int]:
    """The classes `first`, then the likeliest classes of any branch."""
    best = np.max([probs[0] for probs in scores.values()], axis=0)
    return list(dict.fromkeys([*first, *np.argsort(-best)[:CLASSES].tolist()]))[:CLASSES]


def _branches(scores: dict[str, np.ndarray], top: list[int], names: tuple[str, ...], dark: bool) -> Any:
    """Bars of the probability of each class by each branch, on the center view."""
    plot = d.plot("probability (%)", "", dark, 60 + 40 * len(top), x_range=(0, 100))
    height, items = 0.8 / len(scores), []
    for index, (name, probs) in enumerate(scores.items()):
        y = np.arange(len(top)) - 0.4 + height * (index + 0.5)
        own = d.source(f"branch/{name}", y=y, p=100 * probs[0][top], name=[names[k] for k in top])
        bars = plot.hbar("y", right="p", height=height * 0.9, source=own, color=d.CURVES[index][0], line_color=None)
        d.hover(plot, [("class", "@name"), (name, "@p{0.0} %")], bars)
        items.append((name, [bars]))
    plot.y_range.flipped = True
    d.legend(plot, items, dark)
    d.class_axis(plot, [names[k] for k in top], plot.yaxis[0])
    return d.pane(plot)


def _views(probs: np.ndarray, views: tuple[str, ...], top: list[int], names: tuple[str, ...], dark: bool) -> Any:
    """A heat map of the probability of each class on each view, by the run."""
    plot = d.plot("view", "", dark, 60 + 40 * len(top), tools="reset,save")
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
    tiles = plot.rect("x", "y", 0.98, 0.96, source=own, color="color")
    if len(views) <= 20:
        plot.text("x", "y", text="text", source=own, text_align="center", text_baseline="middle", text_color="ink",
                  text_font_size="10px")  # fmt: skip
    d.hover(plot, [("view", "@view"), ("class", "@name"), ("probability", "@p{0.0} %")], tiles)
    plot.y_range.flipped = True
    plot.ygrid.visible = False
    d.class_axis(plot, list(views))
    d.class_axis(plot, [names[k] for k in top], plot.yaxis[0])
    return d.pane(plot)


def _lines(shown: Shown, rows: np.ndarray) -> list[dict[str, Any]]:
    """Every row that the filters let through, most confident first."""
    if shown.labels is None or not len(rows):
        return []
    names, ids = shown.insight.classes, ids_of(shown.insight, rows)
    label, confidence = shown.labels.label[rows].tolist(), (100 * shown.labels.confidence[rows]).tolist()
    truth = [None] * len(rows) if shown.truth is None else shown.truth[rows.tolist()].tolist()
    return [
        {"id": i, "row": int(r), "true": "" if t is None else names[t], "label": names[k], "confidence_percent": c}
        for i, r, t, k, c in zip(ids, rows, truth, label, confidence, strict=True)
    ]
