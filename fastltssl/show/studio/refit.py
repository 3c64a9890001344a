"""Knobs of the method, a button that trains again from the cache, and the curve of one knob."""

import asyncio
import html
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn

from fastltssl import methods
from fastltssl.analysis.history import Insight
from fastltssl.analysis.refit import MEASURES, OPTIONS, changed, curve, knob_range, refitting
from fastltssl.errors import UnknownKnob
from fastltssl.functional.heads import HEADS
from fastltssl.progress import Progress, drain
from fastltssl.runs.config import Config
from fastltssl.runs.folder import new_folder
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Session, Shown, at_hand, insights_of, scored_of
from fastltssl.types import is_trained

TABLE = {  # measure -> title
    "bacc": "bACC", "top1": "top-1", "head": "head", "medium": "medium", "tail": "tail", "ece": "ECE",
    "pseudo_accuracy": "pseudo-labels right", "pseudo_mask_rate": "accepted",
}  # fmt: skip
COUNTS = (5, 9, 15)  # points of a curve
REFUSED = (ValueError, RuntimeError, OSError)  # a knob or an option that does not go, too little memory, a full disk

SHOWN = {  # measure -> legend, colour, marker
    "bacc": ("bACC", d.BLUE, "circle"), "tail": ("tail", d.PINK, "square"),
    "pseudo_accuracy": ("pseudo-labels right", d.GREEN, "triangle"),
    "pseudo_mask_rate": ("accepted", d.ORANGE, "diamond"), "val_bacc": ("validation bACC", d.SKY, "plus"),
}  # fmt: skip


def page(session: Session) -> tuple[Any, Any, Any]:
    """The layout, what repaints it, and the CSV of what it shows."""
    form, table = pn.FlexBox(sizing_mode="stretch_width"), d.text("", session.is_dark)
    message = d.text("", session.is_dark)
    train, begin_training = _training(session, form, message, table)
    sweep, begin_sweep, own = _sweeping(session, form, message)
    state: dict[str, Any] = {"run": None}

    def repaint() -> None:
        shown = session.shown
        assert shown is not None
        table.object = _table(session)
        if state["run"] == shown.key:
            return
        state["run"] = shown.key
        message.object = d.note(shown.why) if shown.why else ""
        for widget in form.objects:  # of the run before
            session.address.tell(f"set.{widget.label}", None)
        form.objects = _form(shown.insight.config)
        session.address.keep(**{f"set.{widget.label}": widget for widget in form.objects})
        begin_training(shown)
        begin_sweep(shown)

    reading = "Percent, at the last step; changed: what differs from the run in the side bar."
    runs = d.card("Runs at their last step", reading, table, session.is_dark)
    return pn.Column(train, runs, sweep, sizing_mode="stretch_width"), repaint, lambda: _lines(session, own)


def _training(session: Session, form: Any, message: Any, table: Any) -> tuple[Any, Any]:
    """The card that trains again and keeps what came of it, and what fits it to another run."""
    train = pn.widgets.Button(label="Train again", button_type="primary", width=140)
    which = pn.widgets.Select(label="Refit", options=[], width=140, visible=False)
    keep = pn.widgets.Button(label="Keep this run", width=140, visible=False, align="end")
    progress = pn.indicators.Progress(value=0, max=100, width=220, visible=False, bar_color="primary")

    def offer(names: list[str]) -> None:
        which.param.update(options=names, value=names[-1] if names else None)
        which.visible = keep.visible = bool(names)

    async def retrain(_: Any) -> None:
        train.disabled = train.loading = progress.visible = True
        try:
            config = _config(session, form)
            name = await _refit(session, config, progress)
        except REFUSED as error:
            message.object = d.note(str(error))
        else:
            beyond = methods.outside(methods.configure(config.method, config.settings))
            text = f"{name} is trained and stands beside the others on the overview."
            message.object = d.note(" ".join([text, *(f"{each}." for each in beyond)]))
            session.run.param.update(options=list(session.runs))
            table.object = _table(session)
            offer([*which.options, name])
        finally:
            train.loading = progress.visible = False
            train.disabled = session.shown is None or session.shown.scored is None

    def keep_run(_: Any) -> None:
        folder = session.runs[which.value]
        config = at_hand(folder, None).config
        target = new_folder(config)
        shutil.copytree(folder, target, dirs_exist_ok=True)
        offer([name for name in which.options if name != which.value])
        seeds = max((at_hand(each, None).config.seeds for each in session.runs.values()), key=len)
        words = ["compare", str(session.folder), str(target)]
        if len(seeds) > 1:  # the refit has one
            words = ["train", config.method, "--config", f"{target}/config.yaml", "--seeds", ",".join(map(str, seeds))]
        message.object = d.note(f"Kept as {target}. Next: {shlex.join(['fastltssl', *words])}")

    def begin(shown: Shown) -> None:
        train.disabled = shown.scored is None or train.loading

    train.on_click(retrain)
    keep.on_click(keep_run)
    reading = "From the cache, with the run's own split, seed and batches: what changes is the knobs alone."
    buttons = pn.Row(pn.Column(train, align="end"), which, keep, progress)
    body = pn.Column(form, buttons, message, sizing_mode="stretch_width")
    return d.card("Train again", reading, body, session.is_dark), begin


def _sweeping(session: Session, form: Any, message: Any) -> tuple[Any, Any, Any]:
    """The card that draws the curve of a knob, what fits it to another run, and the source of the curve."""
    knob = pn.widgets.Select(label="Knob", options=[], width=190)
    count = pn.widgets.Select(label="Points", options=list(COUNTS), value=COUNTS[0], width=80)
    draw = pn.widgets.Button(label="Draw the curve", width=140, align="end")
    made, own = _curve_plot(session.is_dark)
    drawn, controls = d.pane(made), pn.Row(knob, count, draw)
    body = pn.Column(controls, sizing_mode="stretch_width")

    def show(key: Any, name: str, values: list[float], found: dict[str, Any]) -> None:
        if session.shown is None or session.shown.key != key:  # another run is in view by now
            return
        nothing = [float("nan")] * len(values)
        columns = {each: d.column(100 * np.asarray(found.get(each, nothing))) for each in MEASURES}
        own.tags = [name]
        own.data = {"x": d.column(values)} | columns
        made.xaxis.axis_label = name
        body.objects = [controls, drawn]

    async def sweep(_: Any) -> None:
        document: Any = pn.state.curdoc
        draw.disabled = draw.loading = True
        try:
            assert session.shown is not None
            key, config, name = session.shown.key, _config(session, form), knob.value
            values = knob_range(config, name, count.value)
            work = partial(curve, config, _scored(session), name, values)
            found = await asyncio.get_running_loop().run_in_executor(None, work)
        except REFUSED as error:
            message.object = d.note(str(error))
        else:
            document.add_next_tick_callback(partial(show, key, name, values, found))  # its models want the lock
        finally:
            draw.loading, draw.disabled = False, not can_draw()

    def can_draw() -> bool:
        return session.shown is not None and session.shown.scored is not None and bool(knob.options)

    def begin(shown: Shown) -> None:
        config = shown.insight.config
        method = methods.configure(config.method, config.settings)
        real = [name for name, each in methods.fields(method).items() if each.metadata["kind"] == "knob"]
        options = real + (["lr", "weight_decay"] if is_trained(method) else [])
        knob.param.update(options=options, value=options[0] if options else None)
        session.address.restore("knob", knob)
        draw.disabled, body.objects = not can_draw(), [controls]
        own.tags, own.data = [], {name: [] for name in own.data}

    draw.on_click(sweep)
    session.address.keep(points=count)
    session.address.watch(knob=knob)
    reading = (
        "One run a point, trained together over the range the knob is meant for. Test rows are for looking: choose on "
        "validation rows (fastltssl sweep)."
    )
    return d.card("A small sweep", reading, body, session.is_dark), begin, own


def _curve_plot(dark: bool) -> tuple[Any, Any]:
    made = d.plot("value of the knob", "at the last step (%)", dark, 280)
    own = d.source("sweep", x=[], **{name: [] for name in MEASURES})
    items = []
    for name, (title, color, marker) in SHOWN.items():
        made.line("x", name, source=own, line_color=color, line_width=2)
        dots = made.scatter("x", name, source=own, color=color, marker=marker, size=7)
        d.hover(made, [("value", "@x"), (title, f"@{name}{{0.0}} %")], dots)
        items.append((title, [dots]))
    d.legend(made, items, dark)
    return made, own


def _config(session: Session, form: Any) -> Any:
    """The run's config with what the form says. Raises UnknownKnob."""
    settings, options = _read(form)
    return changed(at_hand(session.folder, session.seed.value), settings, options)


def _scored(session: Session) -> Any:
    return scored_of(session.folder, session.seed.value, session.options.cache)


def _form(config: Any) -> list[Any]:
    """A widget for each knob of the method and each option of its training."""
    method = methods.configure(config.method, config.settings)
    known, values = methods.fields(method), methods.values(method)
    found: list[Any] = []
    for name, value in values.items():
        if name == "head":
            found.append(pn.widgets.Select(label=name, options=list(HEADS), value=value, width=150))
            continue
        meant = known[name].metadata
        if meant["kind"] == "choice":
            made: Any = pn.widgets.Select(label=name, options=list(meant["options"]), value=value, width=150)
        else:
            made = pn.widgets.TextInput(label=name, value=f"{value:g}" if isinstance(value, float) else str(value),
                                        width=150)  # fmt: skip
        made.description = meant["doc"]
        found.append(made)
    for name in _options(method):
        found.append(pn.widgets.TextInput(label=name, value=f"{getattr(config, name):g}", width=150))
    return found


def _options(method: Any) -> list[str]:
    """What can be changed of a method's training."""
    if not is_trained(method):
        return []
    return [name for name in OPTIONS if name != "batch_u" or any(method.views)]


def _read(form: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the method, and the options beside them. Raises UnknownKnob on a value that is none."""
    values = {widget.label: widget.value for widget in form.objects}
    options: dict[str, Any] = {}
    for name in [name for name in OPTIONS if name in values]:
        kind = int if name in ("steps", "batch", "batch_u") else float
        try:
            options[name] = kind(values.pop(name))
        except ValueError:
            raise UnknownKnob(f"{name} must be {'a whole number' if kind is int else 'a number'}") from None
    head = values.get("head")
    own = {f"head.{name}" for name in methods.fields(HEADS[head]())} if head else set()
    kept = {name: value for name, value in values.items() if not name.startswith("head.") or name in own}
    return kept, options


async def _refit(session: Session, config: Any, progress: Any) -> str:
    """Train in a thread, moving the bar; returns the name of the new run, which is now among those of the visitor."""
    top = Path(tempfile.mkdtemp(prefix="fastltssl-refit-"))
    pn.state.on_session_destroyed(lambda _: shutil.rmtree(top, ignore_errors=True))
    folder = top / "run"
    work = refitting(config, _scored(session), folder)

    def move_bar(record: Progress) -> None:
        progress.value = int(100 * record.done / max(1, record.total))

    def train() -> None:
        drain(work, move_bar)

    await asyncio.get_running_loop().run_in_executor(None, train)
    number = sum(name.startswith("refit ") for name in session.runs) + 1
    name = f"refit {number}"
    session.runs[name] = folder
    return name


def _table(session: Session) -> str:
    titles = (*TABLE.values(), "changed")
    rows = []
    for name, insight, cells, away in _at_last(session):
        head = f"{d.chip(list(session.runs).index(name), session.is_dark)}{html.escape(name)}, seed {insight.seed}"
        text = ", ".join(away[:4]) + (" ..." if len(away) > 4 else "")
        rows.append([d.Markup(head), *(d.percent(cell) for cell in cells), text])
    return d.table(["run", *titles], rows)


def _at_last(session: Session) -> Iterator[tuple[str, Insight, list[float | None], list[str]]]:
    """Every run with its measures of TABLE at the last step, as fractions, and what it changes."""
    first = at_hand(session.folder, None).config
    for name, insight in insights_of(session).items():
        cells = [float(insight.curves[each][-1]) if each in insight.curves else None for each in TABLE]
        yield name, insight, cells, _changes(insight.config, first)


def _changes(config: Config, first: Config) -> list[str]:
    """Where a run differs from the one in the side bar: method, data and split first, else training and knobs."""
    if config.method != first.method:
        return [f"method {config.method}"]
    if (config.cache, config.protocol) != (first.cache, first.protocol):
        return ["another cache or protocol"]
    own, before = (methods.values(methods.configure(each.method, each.settings)) for each in (config, first))
    trained = [name for name in OPTIONS if getattr(config, name) != getattr(first, name)]
    return [f"{name} {getattr(config, name):g}" for name in trained] + [
        f"{name} {value}" for name, value in own.items() if before.get(name) != value
    ]


def _lines(session: Session, own: Any) -> list[dict[str, Any]]:
    """The runs at their last step, and the curve of the sweep."""
    found: list[dict[str, Any]] = []
    for name, insight, cells, away in _at_last(session):
        measured = {f"{each}_percent": cell and 100 * cell for each, cell in zip(TABLE, cells, strict=True)}
        found.append({"run": name, "seed": insight.seed} | measured | {"changed": ", ".join(away)})
    names = [*own.tags, *(f"{name}_percent" for name in MEASURES)]
    rows = zip(*(own.data[name] for name in ("x", *MEASURES)), strict=True)
    sweep = {"run": f"sweep of {session.run.value}", "seed": session.seed.value}
    return found + [sweep | dict(zip(names, row, strict=True)) for row in rows]
