"""Long work as a generator: it yields Progress and Note while it runs, and returns its result at the end."""

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

Result = TypeVar("Result")


class Progress(NamedTuple):
    """How far a piece of work is."""

    done: int
    total: int
    elapsed_s: float  # of this call
    unit: str = "steps"  # what is counted: steps or images
    part: str = ""  # what is being worked on: a group of images, a stage
    runs: int = 1  # trained jointly: each step is one of all of them
    loss: float | None = None  # mean over the runs and over the steps since the last Progress
    accuracy: float | None = None  # of the batch, a fraction
    waited_s: float | None = None  # seconds spent waiting for data, the mean over the threads that wait
    earlier: int = 0  # the part of `done` that an earlier, interrupted call did

    @property
    def rate(self) -> float:
        """Units per second in this call, summed over the runs."""
        return (self.done - self.earlier) * self.runs / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace of this call; None before the first unit and at the end."""
        done = self.done - self.earlier
        return self.elapsed_s / done * (self.total - self.done) if done > 0 and self.done < self.total else None

    def __str__(self) -> str:
        """Everything but the count, in words: "loss 1.205, 34 steps/s over 2 runs"."""
        parts = [self.part] if self.part else []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.accuracy is not None:
            parts.append(f"accuracy {100 * self.accuracy:.0f} %")
        over = f" over {self.runs:,} runs" if self.runs > 1 else ""
        parts.append(f"{self.rate:,.{0 if self.rate >= 10 else 1}f} {self.unit}/s{over}")
        if self.waited_s is not None:
            parts.append(f"{100 * self.waited_s / max(self.elapsed_s, 1e-9):.0f} % waiting for data")
        return ", ".join(parts)


class Note(NamedTuple):
    """A line that the user should see, yielded between two Progress."""

    text: str


Work = Generator[Progress | Note, None, Result]


def drain(work: Work[Result], look: Callable[[Any], None] = lambda record: None) -> Result:
    """The result of work, run to its end; `look` is called with each Progress and Note."""
    while True:
        try:
            look(next(work))
        except StopIteration as end:
            return end.value


def relay(work: Work[Result], change: Callable[[Progress], Progress]) -> Work[Result]:
    """The same work with `change` applied to each Progress; a Note is passed on as it is."""
    while True:
        try:
            record = next(work)
        except StopIteration as end:
            return end.value
        yield change(record) if isinstance(record, Progress) else record


def scaled(work: Work[Result], place: int, count: int, began: float) -> Work[Result]:
    """Piece `place` of `count` pieces of work of about equal size, its progress counted over all of them.

    `began` is time.perf_counter() at the start of the first piece.
    """

    def counted(record: Progress) -> Progress:
        done, total = place * record.total + record.done, count * record.total
        return record._replace(done=done, total=total, elapsed_s=time.perf_counter() - began)

    return relay(work, counted)
