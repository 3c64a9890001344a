"""The knobs of the method, training again with other values from the cache, and the curve of one knob."""

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
from fastltssl.analysis.refit import MEASURES, changed, curve, knob_range, refitting
from fastltssl.errors import UnknownKnob, WriteError
from fastltssl.functional.heads import HEADS
from fastltssl.functional.measures import measure
from fastltssl.machine import telling_writes
from fastltssl.methods import OF_TRAINING
from fastltssl.progress import Progress, drain
from fastltssl.runs.config import Config
from fastltssl.runs.folder import new_folder
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio.session import Page, Session, Shown, at_hand, insights_of, scored_of
from fastltssl.types import is_trained

TABLE = ("bacc", "top1", "head", "medium", "tail", "ece", "pseudo_accuracy", "pseudo_mask_rate")  # columns
LOOKS = {  # of the curves of a knob: colour, marker
    "bacc": (d.BLUE, "circle"), "tail": (d.PINK, "square"), "pseudo_accuracy": (d.GREEN, "triangle"),
    "pseudo_mask_rate": (d.ORANGE, "diamond"), "val_bacc": (d.SKY, "plus"),
}  # fmt: skip
COUNTS = (5, 9, 15)  # points of a curve
REFUSED = (ValueError, RuntimeError, OSError)  # an invalid value of a knob, too little memory, a full disk


def page(session: Session) -> Page:
    """The tab "Refit"."""
    form, table = pn.FlexBox(sizing_mode="stretch_width"), d.text("", session.is_dark)
    message = d.text("", session.is_dark)
    training, sweep = _Training(session, form, message, table), _Sweep(session, form, message)
    drawn: dict[str, Any] = {"run": None}

    def repaint(shown: Shown) -> None:
        table.object = _table(session)
        if drawn["run"] == shown.key:
            return
        drawn["run"] = shown.key
        message.object = d.note(shown.why) if shown.why else ""
        for widget in form.objects:  # those of the previous run
            session.address.tell(f"set.{widget.label}", None)
        form.objects = _form(shown.insight.config)
        session.address.keep(**{f"set.{widget.label}": widget for widget in form.objects})
        training.begin(shown)
        sweep.begin(shown)

    reading = "Percent, at the last step; changed: what differs from the run in the side bar."
    runs = d.card("Runs at their last step", reading, table, session.is_dark)
    layout = pn.Column(training.card, runs, sweep.card, sizing_mode="stretch_width")
    return Page(layout, repaint, lambda shown: _lines(session, sweep.points))


class _Training:
    """The card that trains the run again with the values of the form, and keeps what was trained."""

    def __init__(self, session: Session, form: Any, message: Any, table: Any) -> None:
        self.session, self.form, self.message, self.table = session, form, message, table
        self.train = pn.widgets.Button(label="Train again", button_type="primary", width=140)
        self.which = pn.widgets.Select(label="Refit", options=[], width=140, visible=False)
        self.keep = pn.widgets.Button(label="Keep this run", width=140, visible=False, align="end")
        self.progress = pn.indicators.Progress(value=0, max=100, width=220, visible=False, bar_color="primary")
        self.train.on_click(self.retrain)
        self.keep.on_click(self.keep_run)
        reading = "From the cache, with the run's own split, seed and batches: what changes is the knobs alone."
        buttons = pn.Row(pn.Column(self.train, align="end"), self.which, self.keep, self.progress)
        body = pn.Column(form, buttons, message, sizing_mode="stretch_width")
        self.card = d.card("Train again", reading, body, session.is_dark)

    def begin(self, shown: Shown) -> None:
        """Another run is in view."""
        self.train.disabled = shown.scored is None or self.train.loading

    async def retrain(self, _: Any) -> None:
        self.train.disabled = self.train.loading = self.progress.visible = True
        try:
            config = _config(self.session, self.form)
            name = await _refit(self.session, config, self.progress)
        except REFUSED as error:
            self.message.object = d.note(str(error))
        else:
            beyond = methods.outside(methods.configure(config.method, config.settings))
            text = f"{name} is trained and stands beside the others on the overview."
            self.message.object = d.note(" ".join([text, *(f"{warning}." for warning in beyond)]))
            self.session.run.param.update(options=list(self.session.runs))
            self.table.object = _table(self.session)
            self.offer([*self.which.options, name])
        finally:
            self.train.loading = self.progress.visible = False
            self.train.disabled = self.session.shown is None or self.session.shown.scored is None

    def offer(self, names: list[str]) -> None:
        """Offer to keep one of the new runs."""
        self.which.param.update(options=names, value=names[-1] if names else None)
        self.which.visible = self.keep.visible = bool(names)

    def keep_run(self, _: Any) -> None:
        """Copy the chosen new run from its temporary folder to the run folders."""
        folder = self.session.runs[self.which.value]
        config = at_hand(folder, None).config
        try:
            target = _copied(folder, config)
        except REFUSED as error:
            self.message.object = d.note(str(error))
            return
        self.offer([name for name in self.which.options if name != self.which.value])
        seeds = max((at_hand(run, None).config.seeds for run in self.session.runs.values()), key=len)
        words = ["compare", str(self.session.folder), str(target)]
        if len(seeds) > 1:  # the new run has a single seed
            words = ["train", config.method, "--config", f"{target}/config.yaml", "--seeds", ",".join(map(str, seeds))]
        self.message.object = d.note(f"Kept as {target}. Next: {shlex.join(['fastltssl', *words])}")


def _copied(folder: Path, config: Config) -> Path:
    """A new run folder with the files of another. Raises RunError or WriteError, and leaves no half of it then."""
    target = new_folder(config)
    part = target.with_name(f".{target.name}.part")
    try:
        with telling_writes(target):
            shutil.copytree(folder, part)
            part.replace(target)
    except WriteError:
        shutil.rmtree(part, ignore_errors=True)
        target.rmdir()
        raise
    return target


class _Sweep:
    """The card that draws the measures of the run over the values of one knob."""

    def __init__(self, session: Session, form: Any, message: Any) -> None:
        self.session, self.form, self.message = session, form, message
        self.knob = pn.widgets.Select(label="Knob", options=[], width=190)
        self.count = pn.widgets.Select(label="Points", options=list(COUNTS), value=COUNTS[0], width=80)
        self.draw = pn.widgets.Button(label="Draw the curve", width=140, align="end")
        self.plot, self.points = _curve_plot(session.is_dark)
        self.pane, self.controls = d.pane(self.plot), pn.Row(self.knob, self.count, self.draw)
        self.body = pn.Column(self.controls, sizing_mode="stretch_width")
        self.draw.on_click(self.sweep)
        session.address.keep(points=self.count)
        session.address.watch(knob=self.knob)
        reading = (
            "One run a point, trained together over the range the knob is meant for. Test rows are for looking: choose "
            "on validation rows (fastltssl sweep)."
        )
        self.card = d.card("A small sweep", reading, self.body, session.is_dark)

    def begin(self, shown: Shown) -> None:
        """Another run is in view: offer its knobs, without a curve."""
        config = shown.insight.config
        method = methods.configure(config.method, config.settings)
        knobs = [name for name, field in methods.fields(method).items() if field.metadata["kind"] == "knob"]
        options = knobs + (["lr", "weight_decay"] if is_trained(method) else [])
        self.knob.param.update(options=options, value=options[0] if options else None)
        self.session.address.restore("knob", self.knob)
        self.draw.disabled, self.body.objects = not self.can_draw(), [self.controls]
        self.points.tags, self.points.data = [], {name: [] for name in self.points.data}

    def can_draw(self) -> bool:
        shown = self.session.shown
        return shown is not None and shown.scored is not None and bool(self.knob.options)

    async def sweep(self, _: Any) -> None:
        document: Any = pn.state.curdoc
        self.draw.disabled = self.draw.loading = True
        try:
            assert self.session.shown is not None
            key, config, name = self.session.shown.key, _config(self.session, self.form), self.knob.value
            values = knob_range(config, name, self.count.value)
            work = partial(curve, config, _scored(self.session), name, values)
            curves = await asyncio.get_running_loop().run_in_executor(None, work)
        except REFUSED as error:
            self.message.object = d.note(str(error))
        else:
            show = partial(self.show, key, name, values, curves)
            document.add_next_tick_callback(show)  # models may only change while the document is locked
        finally:
            self.draw.loading, self.draw.disabled = False, not self.can_draw()

    def show(self, key: Any, name: str, values: list[float], curves: dict[str, Any]) -> None:
        """Show curves that were computed for the run `key`, unless another run has come into view since."""
        if self.session.shown is None or self.session.shown.key != key:
            return
        missing = [float("nan")] * len(values)
        columns = {measured: d.column(100 * np.asarray(curves.get(measured, missing))) for measured in MEASURES}
        self.points.tags = [name]
        self.points.data = {"x": d.column(values)} | columns
        self.plot.xaxis.axis_label = name
        self.body.objects = [self.controls, self.pane]


def _curve_plot(dark: bool) -> tuple[Any, Any]:
    """The empty plot of the curves of a knob, and the source of its points."""
    plot = d.plot("value of the knob", "at the last step (%)", dark, 280)
    points = d.source("sweep", x=[], **{name: [] for name in MEASURES})
    items = []
    for name, (color, marker) in LOOKS.items():
        title = measure(name).title
        plot.line("x", name, source=points, line_color=color, line_width=2)
        dots = plot.scatter("x", name, source=points, color=color, marker=marker, size=7)
        d.hover(plot, [("value", "@x"), (title, f"@{name}{{0.0}} %")], dots)
        items.append((title, [dots]))
    d.legend(plot, items, dark)
    return plot, points


def _config(session: Session, form: Any) -> Any:
    """The configuration of the run with the values of the form. Raises UnknownKnob."""
    settings, options = _read(form)
    return changed(at_hand(session.folder, session.seed.value), settings, options)


def _scored(session: Session) -> Any:
    return scored_of(session.folder, session.seed.value, session.options.cache)


def _form(config: Any) -> list[Any]:
    """A widget for each knob of the method and each option of its training."""
    method = methods.configure(config.method, config.settings)
    known, values = methods.fields(method), methods.values(method)
    widgets: list[Any] = []
    for name, value in values.items():
        if name == "head":
            widgets.append(pn.widgets.Select(label=name, options=list(HEADS), value=value, width=150))
            continue
        about = known[name].metadata
        if about["kind"] == "choice":
            widget: Any = pn.widgets.Select(label=name, options=list(about["options"]), value=value, width=150)
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            widget = pn.widgets.TextInput(label=name, value=text, width=150)
        widget.description = about["doc"]
        widgets.append(widget)
    for name in _options(method):
        widgets.append(pn.widgets.TextInput(label=name, value=f"{getattr(config, name):g}", width=150))
    return widgets


def _options(method: Any) -> list[str]:
    """The training options that have an effect on this method."""
    if not is_trained(method):
        return []
    return [name for name in OF_TRAINING if name != "batch_u" or any(method.views)]


def _read(form: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the method and the training options in the form. Raises UnknownKnob if one is not a number."""
    values = {widget.label: widget.value for widget in form.objects}
    options: dict[str, Any] = {}
    for name in [name for name in OF_TRAINING if name in values]:
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
    """Train in a thread with a progress bar; returns the name of the new run, which the visitor can choose then."""
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
    """All runs at their last step, as HTML."""
    rows = []
    for name, insight, cells, changes in _at_last(session):
        head = f"{d.chip(list(session.runs).index(name), session.is_dark)}{html.escape(name)}, seed {insight.seed}"
        text = ", ".join(changes[:4]) + (" ..." if len(changes) > 4 else "")
        rows.append([d.Markup(head), *(d.percent(cell) for cell in cells), text])
    return d.table(["run", *(measure(column).title for column in TABLE), "changed"], rows)


def _at_last(session: Session) -> Iterator[tuple[str, Insight, list[float | None], list[str]]]:
    """Every run with its values of TABLE at the last step, as fractions, and where it differs from the run in view."""
    first = at_hand(session.folder, None).config
    for name, insight in insights_of(session).items():
        cells = [float(insight.curves[column][-1]) if column in insight.curves else None for column in TABLE]
        yield name, insight, cells, _changes(insight.config, first)


def _changes(config: Config, first: Config) -> list[str]:
    """Where a run differs from another: the method, else the data and split, else training options and knobs."""
    if config.method != first.method:
        return [f"method {config.method}"]
    if (config.cache, config.protocol) != (first.cache, first.protocol):
        return ["another cache or protocol"]
    knobs, before = (methods.values(methods.configure(run.method, run.settings)) for run in (config, first))
    options = [name for name in OF_TRAINING if getattr(config, name) != getattr(first, name)]
    return [f"{name} {getattr(config, name):g}" for name in options] + [
        f"{name} {value}" for name, value in knobs.items() if before.get(name) != value
    ]


def _lines(session: Session, points: Any) -> list[dict[str, Any]]:
    """The runs at their last step, and the points of the sweep."""
    lines: list[dict[str, Any]] = []
    for name, insight, cells, changes in _at_last(session):
        measured = {f"{column}_percent": cell and 100 * cell for column, cell in zip(TABLE, cells, strict=True)}
        lines.append({"run": name, "seed": insight.seed} | measured | {"changed": ", ".join(changes)})
    names = [*points.tags, *(f"{name}_percent" for name in MEASURES)]
    rows = zip(*(points.data[name] for name in ("x", *MEASURES)), strict=True)
    sweep = {"run": f"sweep of {session.run.value}", "seed": session.seed.value}
    return lines + [sweep | dict(zip(names, row, strict=True)) for row in rows]
