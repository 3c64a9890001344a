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
    part: str = ""  # what is worked on: a group of images, a stage
    runs: int = 1  # that take each step together
    loss: float | None = None  # mean over the runs and over the steps since the last record
    accuracy: float | None = None  # of the batch, a fraction
    waited_s: float | None = None  # for data, the mean over the threads that wait
    earlier: int = 0  # of `done`, what an interrupted call had done before this one

    @property
    def rate(self) -> float:
        """Units a second in this call, those of all runs together."""
        return (self.done - self.earlier) * self.runs / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace of this call; None before there is one, and at the end."""
        own = self.done - self.earlier
        return self.elapsed_s / own * (self.total - self.done) if own > 0 and self.done < self.total else None

    def __str__(self) -> str:
        """What there is to say besides the count: "loss 1.205, 34 steps/s over 2 runs"."""
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
    """A line that the user should see, among the progress."""

    text: str


Work = Generator[Progress | Note, None, Result]


def drain(work: Work[Result], look: Callable[[Any], None] = lambda record: None) -> Result:
    """Run work to its end and return its result; `look` is called with each record."""
    while True:
        try:
            look(next(work))
        except StopIteration as end:
            return end.value


def relay(work: Work[Result], change: Callable[[Progress], Progress]) -> Work[Result]:
    """The same work with its progress changed; notes pass as they are."""
    while True:
        try:
            record = next(work)
        except StopIteration as end:
            return end.value
        yield change(record) if isinstance(record, Progress) else record


def scaled(work: Work[Result], place: int, count: int, began: float) -> Work[Result]:
    """One of `count` pieces of about equal size, its progress counted over all of them; `began` is a perf_counter."""

    def counted(record: Progress) -> Progress:
        done, total = place * record.total + record.done, count * record.total
        return record._replace(done=done, total=total, elapsed_s=time.perf_counter() - began)

    return relay(work, counted)
