"""What one visitor looks at: the widgets of the side bar, and the numbers they ask for.

Runs and caches are read once and shared by all visitors; everything else belongs to one page.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import panel as pn
import torch
from jaxtyping import Int
from torch import Tensor

from fastltssl.cache import CacheError, open_cache
from fastltssl.cure import Knobs, Scored, relabelled, score, tested
from fastltssl.insight import Insight, Labels, Summary, at_step, read_insight, summary
from fastltssl.runs import RunError
from fastltssl.scene import Album, open_album

WAIT_MS = 15  # moves of a slider that arrive within this time are drawn once, while it is dragged
DRAGGED_S = 0.06  # since the last move: a slider that rested longer is followed at once
QUICK_MS = 1  # instead of the 50 ms for which panel collects what a widget sends; WAIT_MS does that here
SLIDERS = ("threshold", "temperature", "tau", "bias", "eta", "prior")
UNREADABLE = (RunError, CacheError, OSError)  # a cache that is gone, or a run that no cache explains
AT_HAND = lru_cache(maxsize=64)(read_insight)


class Options(NamedTuple):
    """Where things are, as the command line has it."""

    folders: tuple[Path, ...]
    cache: str | None = None
    dataset: str | None = None
    root: Path | None = None


class Shown(NamedTuple):
    """The numbers of one moment: a run, a step and the sliders."""

    insight: Insight
    scored: Scored | None
    why: str  # there is no cure, "" where there is one
    place: int  # of the evaluation
    knobs: Knobs
    truth: Int[Tensor, "M"] | None
    labels: Labels | None
    summary: Summary | None
    metrics: dict[str, float | None] | None  # of the test rows under the sliders; None before the last step
    before: Summary | None  # of the run as it was trained
    metrics_before: dict[str, float | None] | None

    @property
    def ranked(self) -> list[int]:
        """Classes by labelled rows, most first."""
        return self.insight.counts.argsort(descending=True, stable=True).tolist()


@lru_cache(maxsize=4)
def scored_of(folder: Path, seed: int, cache: str | None) -> Scored:
    """A run with its cache; the last few are kept in memory."""
    insight = AT_HAND(folder, seed)
    return score(insight, open_cache(cache or insight.config.cache))


@lru_cache(maxsize=4)
def album_of(cache: str, dataset: str | None, root: Path | None) -> Album:
    return open_album(open_cache(cache), dataset, root)


@dataclass
class Session:
    """The widgets of one visitor, what they show, and what is repainted when they move."""

    options: Options
    is_dark: bool
    runs: dict[str, Path]
    run: Any = None
    seed: Any = None
    step: Any = None
    sliders: dict[str, Any] = field(default_factory=dict)
    shown: Shown | None = None
    brushed: np.ndarray | None = None  # rows of the pool picked on the map
    repaint: Callable[[], None] = lambda: None
    labelled: dict[Any, Any] = field(default_factory=dict)  # the last pseudo-labels and test metrics, by what made them
    is_waiting: bool = False
    drawn_s: float = 0.0  # when the plots were last repainted

    @property
    def folder(self) -> Path:
        return self.runs[self.run.value]

    @property
    def album(self) -> Album:
        """The images of the run's cache."""
        path = self.options.cache or AT_HAND(self.folder, self.seed.value).config.cache
        return album_of(path, self.options.dataset, self.options.root)


def open_session(options: Options, is_dark: bool, asked: dict[str, str]) -> Session:
    """The widgets at what the address asks for, else at the first run as it was trained."""
    runs = named(options.folders)
    session = Session(options, is_dark, runs)
    name = asked.get("run", "")
    session.run = pn.widgets.Select(label="Run", options=list(runs), value=name if name in runs else next(iter(runs)))
    seeds = list(AT_HAND(session.folder, None).config.seeds)
    seed = int(asked["seed"]) if asked.get("seed", "").isdigit() else seeds[0]
    session.seed = pn.widgets.Select(label="Seed", options=seeds, value=seed if seed in seeds else seeds[0])
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
    return session


def named(folders: tuple[Path, ...]) -> dict[str, Path]:
    """A short name for each run folder, all different."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        while name in found:
            name += "'"
        found[name] = folder
    return found


def reset(session: Session) -> None:
    """Put the step at the end and the sliders where they leave the run as it is."""
    insight = AT_HAND(session.folder, session.seed.value)
    steps = [int(step) for step in insight.steps]
    session.step.param.update(options=steps, value=steps[-1], disabled=len(steps) < 2)
    scored, _ = _scored(session)
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
    for name in SLIDERS[1:]:
        needs_text = name in ("bias", "eta")
        session.sliders[name].disabled = not (shown.scored and is_last and (has_text or not needs_text))


def _scored(session: Session) -> tuple[Scored | None, str]:
    try:
        return scored_of(session.folder, session.seed.value, session.options.cache), ""
    except UNREADABLE as error:
        return None, str(error)


def look(session: Session) -> Shown:
    """The numbers that the widgets ask for; what did not change since the last time is not worked out again."""
    insight = AT_HAND(session.folder, session.seed.value)
    scored, why = _scored(session)
    steps = [int(step) for step in insight.steps]
    place = int(np.abs(np.array(steps) - session.step.value).argmin())
    knobs = Knobs(**{name: within(widget) for name, widget in session.sliders.items()})
    neutral = scored.neutral if scored else Knobs(insight.recorded.threshold)
    truth = insight.truth if scored is None or scored.truth is None else scored.truth
    kept, key = session.labelled, (insight.folder, insight.seed)
    if kept.get("run") != key:
        labels, metrics = as_trained(*key, session.options.cache)
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
    return Shown(insight, scored, why, place, knobs, truth, labels, found, metrics, *kept["before"])


@lru_cache(maxsize=4)
def as_trained(folder: Path, seed: int, cache: str | None) -> tuple[Labels | None, dict[str, float | None] | None]:
    """Pseudo-labels and test metrics with the sliders untouched, worked out for the first visitor."""
    insight = AT_HAND(folder, seed)
    try:
        scored = scored_of(folder, seed, cache)
    except UNREADABLE:
        return _measured(insight, None, Knobs(insight.recorded.threshold))
    return _measured(insight, scored, scored.neutral)


def within(widget: Any) -> Any:
    """The value of a slider, inside its range: an address can ask for anything."""
    if not hasattr(widget, "start"):
        return widget.value if widget.value in widget.options else widget.options[0]
    value = float(widget.value)
    return float(np.clip(value, widget.start, widget.end)) if value == value else float(widget.start)


def _measured(
    insight: Insight, scored: Scored | None, knobs: Knobs
) -> tuple[Labels | None, dict[str, float | None] | None]:
    """Pseudo-labels and test metrics of the finished run under some knobs."""
    if scored is None:
        return at_step(insight), None
    return relabelled(scored, knobs) if len(scored.one.problem.u) else None, tested(scored, knobs)


def _summed(insight: Insight, labels: Labels | None, knobs: Knobs, truth: Int[Tensor, "M"] | None) -> Summary | None:
    return None if labels is None else summary(insight, labels, knobs.threshold, truth)


def moved(session: Session, *_: Any) -> None:
    """A widget moved: repaint soon, once for all the moves that arrive meanwhile."""
    document = pn.state.curdoc
    if session.is_waiting:
        return
    if document is None or document.session_context is None:
        return _refresh(session)
    session.is_waiting = True
    if time.monotonic() - session.drawn_s > DRAGGED_S:
        document.add_next_tick_callback(lambda: _refresh(session))
    else:
        document.add_timeout_callback(lambda: _refresh(session), WAIT_MS)


def _refresh(session: Session) -> None:
    session.is_waiting = False
    for slider in session.sliders.values():
        if slider.value != (inside := within(slider)):
            slider.value = inside
    with torch.no_grad(), pn.io.hold():
        session.shown = look(session)
        enable(session)
        session.repaint()
    session.drawn_s = time.monotonic()
