"""What one visitor looks at: the widgets of the side bar, and the numbers they ask for.

Runs and caches are read once and shared by all visitors; everything else belongs to one page.
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
from fastltssl.errors import CacheError, RunError
from fastltssl.show.names import names_of
from fastltssl.show.studio.address import Address
from fastltssl.show.studio.drawing import note, text

WAIT_MS = 15  # moves of a slider that arrive within this time are drawn once, while it is dragged
DRAGGED_S = 0.06  # since the last move: a slider that rested longer is followed at once
QUICK_MS = 1  # instead of the 50 ms for which panel collects what a widget sends; WAIT_MS does that here
SLIDERS = ("threshold", "temperature", "tau", "bias", "eta", "prior")
UNREADABLE = (RunError, CacheError, OSError)  # a cache that is gone, or a run that no cache explains
_WRITTEN: dict[Path, int] = {}  # when a run was last seen to be written


class Options(NamedTuple):
    """Where things are, as the command line has it."""

    folders: tuple[Path, ...]
    cache: str | None = None
    dataset: str | None = None
    root: Path | None = None


class Shown(NamedTuple):
    """The numbers of one moment: a run, a step and the sliders."""

    key: Any  # of the run: another one where it was trained anew, or its cache came back
    insight: Insight
    scored: Scored | None
    why: str  # there is no cure, "" where there is one
    place: int  # of the evaluation
    knobs: Knobs
    truth: Int[Tensor, " M"] | None
    labels: Labels | None
    summary: Summary | None
    metrics: dict[str, float | None] | None  # of the test rows under the sliders; None before the last step
    before: Summary | None  # of the run as it was trained
    metrics_before: dict[str, float | None] | None

    @property
    def ranked(self) -> list[int]:
        """Classes by labelled rows, most first."""
        return self.insight.counts.argsort(descending=True, stable=True).tolist()


def written(folder: Path) -> int:
    """When a run was written; where it is gone or being trained anew, when it was last seen."""
    with suppress(OSError):
        _WRITTEN[folder] = (folder / "metrics.json").stat().st_mtime_ns
    return _WRITTEN.get(folder, 0)


def at_hand(folder: Path, seed: int | None) -> Insight:
    """The history of a run, kept in memory until it is trained anew. Raises RunError where there never was one."""
    return _insight(folder, seed, written(folder))


def scored_of(folder: Path, seed: int, cache: str | None) -> Scored:
    """A run with its cache; the last few are kept in memory. Raises one of UNREADABLE."""
    return _scored(folder, seed, cache, written(folder))


@lru_cache(maxsize=64)
def _insight(folder: Path, seed: int | None, written_ns: int) -> Insight:
    return read_insight(folder, seed)


@lru_cache(maxsize=4)
def _scored(folder: Path, seed: int, cache: str | None, written_ns: int) -> Scored:
    insight = _insight(folder, seed, written_ns)
    return score(insight, open_cache(cache or insight.config.cache))


@lru_cache(maxsize=4)
def album_of(cache: str, dataset: str | None, root: Path | None) -> Album:
    try:
        return open_album(open_cache(cache), dataset, root)
    except (CacheError, OSError) as error:
        return no_album(str(error))


@dataclass
class Session:
    """The widgets of one visitor, what they show, and what is repainted when they move."""

    options: Options
    is_dark: bool
    address: Address
    runs: dict[str, Path]
    run: Any = None
    seed: Any = None
    step: Any = None
    sliders: dict[str, Any] = field(default_factory=dict)
    shown: Shown | None = None
    brushed: np.ndarray | None = None  # rows of the pool picked on the map
    repaint: Callable[[], None] = lambda: None
    notice: Any = None  # a pane above the tabs, for what cannot be read
    labelled: dict[Any, Any] = field(default_factory=dict)  # the last pseudo-labels and test metrics, by what made them
    is_waiting: bool = False
    drawn_s: float = 0.0  # when the plots were last repainted

    @property
    def folder(self) -> Path:
        return self.runs[self.run.value]

    @property
    def album(self) -> Album:
        """The images of the run's cache."""
        path = self.options.cache or at_hand(self.folder, self.seed.value).config.cache
        return album_of(str(path), self.options.dataset, self.options.root)


def open_session(options: Options, is_dark: bool, address: Address) -> Session:
    """The widgets at what the address asks for, else at the first run as it was trained."""
    folders = list({folder.resolve(): folder for folder in options.folders}.values())
    runs = dict(zip(names_of([at_hand(folder, None).record for folder in folders], folders), folders, strict=True))
    by_folder = {folder.resolve().name: name for name, folder in runs.items()}  # which a link may name too
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
    """Every run that can still be read, at the chosen seed where it has that."""
    found = {}
    for name, folder in session.runs.items():
        with suppress(*UNREADABLE):
            first = at_hand(folder, None)
            found[name] = at_hand(folder, session.seed.value) if session.seed.value in first.config.seeds else first
    return found


def reset(session: Session) -> None:
    """Put the step at the end and the sliders where they leave the run as it is."""
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


def enable(session: Session) -> None:
    """Take away the sliders that cannot do anything here."""
    shown = session.shown
    assert shown is not None
    is_last = shown.place == len(shown.insight.steps) - 1
    has_text = shown.scored is not None and shown.scored.label_bias is not None
    session.sliders["threshold"].disabled = shown.summary is None
    for name in SLIDERS[1:]:
        needs_text = name in ("bias", "eta")
        session.sliders[name].disabled = not (shown.scored and is_last and (has_text or not needs_text))


def _with_cache(session: Session) -> tuple[Scored | None, str]:
    try:
        return scored_of(session.folder, session.seed.value, session.options.cache), ""
    except UNREADABLE as error:
        return None, str(error)


def look(session: Session) -> Shown:
    """The numbers that the widgets ask for; what did not change since the last time is not worked out again."""
    insight = at_hand(session.folder, session.seed.value)
    scored, why = _with_cache(session)
    steps = [int(step) for step in insight.steps]
    place = int(np.abs(np.array(steps) - session.step.value).argmin())
    knobs = Knobs(**{name: widget.value for name, widget in session.sliders.items()})
    neutral = scored.neutral if scored else Knobs(insight.recorded.threshold)
    truth = insight.truth if scored is None or scored.truth is None else scored.truth
    kept, key = session.labelled, (insight.folder, insight.seed, written(insight.folder), scored is None)
    if kept.get("run") != key:
        labels, metrics = as_trained(key, session.options.cache)
        kept.clear()
        kept |= {"run": key, "before": (_summed(insight, labels, neutral, truth), metrics)}
        kept |= {"knobs": neutral._replace(threshold=0.0), "now": (labels, metrics)}
    if place < len(steps) - 1 or scored is None:
        labels, metrics = at_step(insight, place), None
    else:
        if kept["knobs"] != (scores := knobs._replace(threshold=0.0)):
            kept |= {"knobs": scores, "now": _measured(insight, scored, knobs)}
        labels, metrics = kept["now"]
    found = _summed(insight, labels, knobs, truth)
    return Shown(key, insight, scored, why, place, knobs, truth, labels, found, metrics, *kept["before"])


@lru_cache(maxsize=4)
def as_trained(key: Any, cache: str | None) -> tuple[Labels | None, dict[str, float | None] | None]:
    """Pseudo-labels and test metrics with the sliders untouched, worked out for the first visitor."""
    folder, seed, *_ = key
    insight = at_hand(folder, seed)
    try:
        scored = scored_of(folder, seed, cache)
    except UNREADABLE:
        return _measured(insight, None, Knobs(insight.recorded.threshold))
    return _measured(insight, scored, scored.neutral)


def _measured(
    insight: Insight, scored: Scored | None, knobs: Knobs
) -> tuple[Labels | None, dict[str, float | None] | None]:
    """Pseudo-labels and test metrics of the finished run under some knobs."""
    if scored is None:
        return at_step(insight), None
    return relabelled(scored, knobs) if len(scored.task.problem.u) else None, tested(scored, knobs)


def _summed(insight: Insight, labels: Labels | None, knobs: Knobs, truth: Int[Tensor, " M"] | None) -> Summary | None:
    return None if labels is None else summary(insight, labels, knobs.threshold, truth)


@contextmanager
def telling(session: Session) -> Iterator[None]:
    """Say above the tabs what cannot be read, such as a run that was deleted; they keep what they showed."""
    try:
        yield
        session.notice.object = ""
    except UNREADABLE as error:
        session.notice.object = note(f"{session.run.value} cannot be read: {error}. What is shown is of before.")


def moved(session: Session, *_: Any) -> None:
    """A widget moved: repaint soon, once for all the moves that arrive meanwhile."""
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
    """Repaint, and send all that changed at once and in its order; messages of panel's own hold may overtake others."""
    document.hold("combine")
    try:
        _refresh(session)
    finally:
        document.unhold()


def _refresh(session: Session) -> None:
    session.is_waiting = False
    session.address.write()
    with torch.no_grad(), telling(session):
        session.shown = look(session)
        enable(session)
        session.repaint()
    session.drawn_s = time.monotonic()
