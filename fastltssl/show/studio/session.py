"""The state of one visitor: the widgets of the side bar, and the numbers that they ask for.

Runs and caches are read once and shared by all visitors; everything else belongs to one visitor.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import panel as pn
import torch
from jaxtyping import Int
from torch import Tensor

from fastltssl.analysis.cure import Knobs, Scored, relabelled, score, tested
from fastltssl.analysis.history import Insight, Labels, Summary, at_step, read_insight, summary
from fastltssl.analysis.samples import Album, no_album, open_album
from fastltssl.cache.catalogue import open_cache
from fastltssl.errors import CacheError, RunError, plain
from fastltssl.runs.finished import open_own_cache
from fastltssl.show.names import names_of
from fastltssl.show.studio.address import Address
from fastltssl.show.studio.drawing import note, text

WAIT_MS = 15  # while a slider is dragged, all its moves within this time are drawn at once
DRAGGED_S = 0.06  # a move that comes later than this after the last repaint is drawn without waiting
QUICK_MS = 1  # panel collects the moves of a widget for 50 ms before it sends them; WAIT_MS replaces that here
SLIDERS = ("threshold", "temperature", "tau", "bias", "eta", "prior")
UNREADABLE = (RunError, CacheError, OSError)  # the cache or the run is gone, or the two do not belong together
_WRITTEN: dict[Path, int] = {}  # by run folder: its last known time of writing


class Options(NamedTuple):
    """The paths given on the command line."""

    folders: tuple[Path, ...]
    cache: str | None = None
    dataset: str | None = None
    root: Path | None = None


class Shown(NamedTuple):
    """The numbers in view: of a run, a step and the positions of the sliders."""

    key: Any  # of the run; changes if it is trained again, or if its cache appears or disappears
    insight: Insight
    scored: Scored | None  # None if the cache cannot be read; the sliders are disabled then
    why: str  # the reason for that, else ""
    place: int  # index of the evaluation
    knobs: Knobs  # the positions of the sliders
    truth: Int[Tensor, " M"] | None
    labels: Labels | None
    summary: Summary | None
    metrics: dict[str, float | None] | None  # of the test rows with the sliders applied; None before the last step
    before: Summary | None  # with the sliders at neutral, which is the run as it was trained
    metrics_before: dict[str, float | None] | None

    @property
    def ranked(self) -> list[int]:
        return ranked(self.insight)


class Page(NamedTuple):
    """A tab of the studio, for one visitor."""

    layout: Any  # the panel object in the tab
    repaint: Callable[[Shown], None]  # update the layout to other numbers
    lines: Callable[[Shown], list[dict[str, Any]]]  # what the tab shows, as rows of a CSV


class Result(NamedTuple):
    """A finished run with the sliders applied."""

    labels: Labels | None  # of the pool
    metrics: dict[str, float | None] | None  # of the test rows


class Computed(NamedTuple):
    """What `look` computed last; a result is computed again only if a slider other than the threshold moves."""

    key: Any  # of the run
    before: Summary | None
    metrics_before: dict[str, float | None] | None
    knobs: Knobs  # of the result, with the threshold at 0
    result: Result


def ranked(insight: Insight) -> list[int]:
    """Class indices, most labelled first."""
    return insight.counts.argsort(descending=True, stable=True).tolist()


def written(folder: Path) -> int:
    """The time at which a run was written; the last known one if the run is gone or is being trained again."""
    with suppress(OSError):
        _WRITTEN[folder] = (folder / "metrics.json").stat().st_mtime_ns
    return _WRITTEN.get(folder, 0)


def at_hand(folder: Path, seed: int | None) -> Insight:
    """The history of a run, kept in memory until the run is trained again. Raises RunError if there never was one."""
    return _insight(folder, seed, written(folder))


def scored_of(folder: Path, seed: int, cache: str | None) -> Scored:
    """A run with its scores from the cache; the last four are kept in memory. Raises the errors in UNREADABLE."""
    return _scored(folder, seed, cache, written(folder))


@lru_cache(maxsize=64)
def _insight(folder: Path, seed: int | None, written_ns: int) -> Insight:
    insight = read_insight(folder, seed)
    return insight._replace(classes=tuple(map(plain, insight.classes)))  # as every page shows them


@lru_cache(maxsize=4)
def _scored(folder: Path, seed: int, cache: str | None, written_ns: int) -> Scored:
    insight = _insight(folder, seed, written_ns)
    return score(insight, open_own_cache(folder, insight.config, cache))


@lru_cache(maxsize=4)
def album_of(cache: str, dataset: str | None, root: Path | None) -> Album:
    """The images of a cache; an album without images if they cannot be found."""
    try:
        return open_album(open_cache(cache), dataset, root)
    except (CacheError, OSError) as error:
        return no_album(str(error))


@dataclass
class Session:
    """The widgets of one visitor, the numbers they show, and the function that repaints the tab in view."""

    options: Options
    is_dark: bool
    address: Address
    runs: dict[str, Path]
    run: Any = None
    seed: Any = None
    step: Any = None
    sliders: dict[str, Any] = field(default_factory=dict)
    shown: Shown | None = None
    brushed: np.ndarray | None = None  # rows of the pool that are selected on the map
    repaint: Callable[[Shown], None] = lambda shown: None
    notice: Any = None  # a pane above the tabs, for errors
    computed: Computed | None = None
    is_waiting: bool = False  # whether a repaint is scheduled
    drawn_s: float = 0.0  # time of the last repaint

    @property
    def folder(self) -> Path:
        return self.runs[self.run.value]

    @property
    def album(self) -> Album:
        """The images of the cache that the run was trained from."""
        path = self.options.cache or at_hand(self.folder, self.seed.value).config.cache
        return album_of(str(path), self.options.dataset, self.options.root)


def open_session(options: Options, is_dark: bool, address: Address) -> Session:
    """A session whose widgets are where the address asks for, else at the first run as it was trained."""
    folders = list({folder.resolve(): folder for folder in options.folders}.values())
    runs = dict(zip(names_of([at_hand(folder, None).record for folder in folders], folders), folders, strict=True))
    by_folder = {folder.resolve().name: name for name, folder in runs.items()}  # a link may name a run by its folder
    address.asked["run"] = by_folder.get(address.asked.get("run", ""), address.asked.get("run", ""))
    session = Session(options, is_dark, address, runs, notice=text("", is_dark))
    session.run = pn.widgets.Select(label="Run", options=list(runs), value=next(iter(runs)))
    address.keep(run=session.run)
    seeds = list(at_hand(session.folder, None).config.seeds)
    session.seed = pn.widgets.Select(label="Seed", options=seeds, value=seeds[0])
    address.keep(seed=session.seed)
    session.step = pn.widgets.DiscreteSlider(label="Training step", options=[0])
    session.sliders = {
        "threshold": pn.widgets.FloatSlider(label="Threshold (confidence)", start=0, end=1, step=0.01),
        "temperature": pn.widgets.FloatSlider(label="Temperature", start=0.25, end=4, step=0.05, value=1),
        "tau": pn.widgets.FloatSlider(label="Logit adjustment tau", start=-1, end=2, step=0.05),
        "prior": pn.widgets.Select(label="Prior that tau takes off", options=["labelled"]),
        "bias": pn.widgets.FloatSlider(label="Label-bias strength", start=-1, end=2, step=0.05),
        "eta": pn.widgets.FloatSlider(label="Fusion weight eta (1: the run alone)", start=0, end=1, step=0.01),
    }
    for slider in (session.step, *session.sliders.values()):
        slider._debounce = QUICK_MS
    reset(session)
    address.keep(step=session.step, **session.sliders)
    return session


def insights_of(session: Session) -> dict[str, Insight]:
    """Every run that can still be read, at the chosen seed if it has that seed."""
    insights = {}
    for name, folder in session.runs.items():
        with suppress(*UNREADABLE):
            first = at_hand(folder, None)
            insights[name] = at_hand(folder, session.seed.value) if session.seed.value in first.config.seeds else first
    return insights


def reset(session: Session) -> None:
    """Set the step to the last one and the sliders to neutral."""
    insight = at_hand(session.folder, session.seed.value)
    steps = [int(step) for step in insight.steps]
    session.step.param.update(options=steps, value=steps[-1], disabled=len(steps) < 2)
    scored, _ = _with_cache(session)
    neutral = scored.neutral if scored else Knobs(insight.recorded.threshold)
    sliders = session.sliders
    if scored:
        sliders["prior"].param.update(options=list(scored.priors), value="labelled")
    for name in SLIDERS:
        sliders[name].param.update(value=getattr(neutral, name))


def enable(session: Session, shown: Shown) -> None:
    """Disable the sliders that have no effect on what is shown, and enable the others."""
    is_last = shown.place == len(shown.insight.steps) - 1
    has_text = shown.scored is not None and shown.scored.label_bias is not None
    session.sliders["threshold"].disabled = shown.summary is None
    for name in SLIDERS[1:]:
        needs_text = name in ("bias", "eta")
        session.sliders[name].disabled = not (shown.scored and is_last and (has_text or not needs_text))


def _with_cache(session: Session) -> tuple[Scored | None, str]:
    """The run with its scores and "", or None and the reason why they cannot be computed."""
    try:
        return scored_of(session.folder, session.seed.value, session.options.cache), ""
    except UNREADABLE as error:
        return None, str(error)


def look(session: Session) -> Shown:
    """The numbers for the current positions of the widgets; only what depends on a widget that moved is computed."""
    insight = at_hand(session.folder, session.seed.value)
    scored, why = _with_cache(session)
    steps = [int(step) for step in insight.steps]
    place = int(np.abs(np.array(steps) - session.step.value).argmin())
    knobs = Knobs(**{name: widget.value for name, widget in session.sliders.items()})
    neutral = scored.neutral if scored else Knobs(insight.recorded.threshold)
    truth = insight.truth if scored is None or scored.truth is None else scored.truth
    last, key = session.computed, (insight.folder, insight.seed, written(insight.folder), scored is None)
    if last is None or last.key != key:
        result = as_trained(key, session.options.cache)
        before = _summed(insight, result.labels, neutral, truth)
        last = Computed(key, before, result.metrics, neutral._replace(threshold=0.0), result)
    if place < len(steps) - 1 or scored is None:
        result = Result(at_step(insight, place), None)
    else:
        if last.knobs != (scores := knobs._replace(threshold=0.0)):
            last = last._replace(knobs=scores, result=_result(scored, knobs))
        result = last.result
    session.computed = last
    summary = _summed(insight, result.labels, knobs, truth)
    return Shown(
        key, insight, scored, why, place, knobs, truth, result.labels, summary, result.metrics, last.before,
        last.metrics_before,
    )  # fmt: skip


@lru_cache(maxsize=4)
def as_trained(key: Any, cache: str | None) -> Result:
    """The result with the sliders at neutral, computed once for all visitors."""
    folder, seed, *_ = key
    insight = at_hand(folder, seed)
    try:
        scored = scored_of(folder, seed, cache)
    except UNREADABLE:
        return Result(at_step(insight), None)
    return _result(scored, scored.neutral)


def _result(scored: Scored, knobs: Knobs) -> Result:
    return Result(relabelled(scored, knobs) if len(scored.task.problem.u) else None, tested(scored, knobs))


def _summed(insight: Insight, labels: Labels | None, knobs: Knobs, truth: Int[Tensor, " M"] | None) -> Summary | None:
    return None if labels is None else summary(insight, labels, knobs.threshold, truth)


@contextmanager
def telling(session: Session) -> Iterator[None]:
    """Report above the tabs if something cannot be read, such as a deleted run; the tabs then keep what they show."""
    try:
        yield
        session.notice.object = ""
    except UNREADABLE as error:
        session.notice.object = note(f"{session.run.value} cannot be read: {error}. What is shown is of before.")


def moved(session: Session, *_: Any) -> None:
    """Schedule a repaint after a move of a widget; all moves until then are drawn together."""
    document = pn.state.curdoc
    if session.is_waiting:
        return
    if document is None or document.session_context is None:
        return _refresh(session)
    session.is_waiting = True
    if time.monotonic() - session.drawn_s > DRAGGED_S:
        document.add_next_tick_callback(lambda: _held(session, document))
    else:
        document.add_timeout_callback(lambda: _held(session, document), WAIT_MS)


def _held(session: Session, document: Any) -> None:
    """Repaint, and send all changes in one message, in order. With panel's own `hold` they may arrive out of order."""
    document.hold("combine")
    try:
        _refresh(session)
    finally:
        document.unhold()


def _refresh(session: Session) -> None:
    session.is_waiting = False
    session.address.write()
    with torch.no_grad(), telling(session):
        session.shown = shown = look(session)
        enable(session, shown)
        session.repaint(shown)
    session.drawn_s = time.monotonic()
