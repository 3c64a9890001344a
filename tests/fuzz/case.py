"""One input of the fuzzer: made in a folder of its own, run under limits of time and memory, and judged.

It fails where it ends in an exception that is not ours, takes too long or too much memory, prints a traceback, a
warning of another library or a character that steers the terminal, changes what it was given,
or writes beside its folder.
"""

import contextlib
import faulthandler
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import click

from fastltssl.__main__ import main
from fastltssl.errors import CONTROL, FastltsslError

MOST_BYTES = 2**30  # of memory that one input may take on top of what the process holds
LONGEST = 4000  # characters of a message
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # Python shows them to nobody
PACKAGE = f"{os.sep}fastltssl{os.sep}"
CRASH = re.compile(r"Traceback \(most recent|Exception ignored in|Fatal Python error")
NOTES = "notes.txt"  # a file of the user in each folder that is given; nothing may ever remove or change it


class Area(NamedTuple):
    """A kind of inputs. `act` makes one input from case.rng below case.given, and runs it."""

    name: str
    what: str  # the inputs in words
    share: int  # of 10,000
    act: Callable[["Case"], None]
    seconds: float = 20.0  # that an input may take


class Outcome(NamedTuple):
    """How an input ended: "success", "message", or "failure" with the reason, where it was, and the input in words."""

    kind: str
    why: str = ""
    where: str = ""  # the innermost line of the package
    lines: tuple[str, ...] = ()
    details: str = ""


class Message(Exception):
    """A command ended with a message and the exit code 1, 2 or 130."""


class Overdue(BaseException):
    """An input took longer than it may."""


class Case:
    """The place of one input, and its random numbers."""

    def __init__(self, rng: Random, place: Path, said: Path) -> None:
        self.rng, self.place, self.said = rng, place, said
        self.given = place / "given"  # what is below it may not be changed, unless `is_free`
        self.given.mkdir(parents=True)
        self.is_free = False  # the input asks for a change of what is given, so only its notes must stay
        self.lines: list[str] = []
        self.before: dict[str, Any] | None = None

    def say(self, *parts: Any) -> None:
        """Note what the input is, for the report of a failure."""
        line = " ".join(part if isinstance(part, str) else repr(part) for part in parts)
        self.lines.append(line.replace(str(self.place) + os.sep, "")[:600])

    def ready(self) -> None:
        """Remember what is given; to be called when the input is made, before it is run."""
        for folder in [path for path in self.given.iterdir() if path.is_dir() and not path.is_symlink()]:
            (folder / NOTES).write_text("mine")
        self.before = seen(self.given)

    def command(self, *arguments: Any) -> str:
        """What `fastltssl` prints with these arguments. Raises Message where it ends with an error of its own."""
        words = [str(part) for part in arguments]
        self.say("fastltssl", shlex.join(words))
        if self.before is None:
            self.ready()
        begin = self.said.stat().st_size
        argv, sys.argv = sys.argv, ["fastltssl", *words]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = argv
            sys.stdout.flush()
            sys.stderr.flush()
        text = self.said.read_bytes()[begin:].decode(errors="replace")
        if steering := sorted({letter for letter in text if ord(letter) in CONTROL}):
            raise AssertionError(f"the terminal is sent {steering}")
        if code == 0:
            return text
        assert code in (1, 2, 130), f"exit code {code}"
        raise Message(text.strip())

    def faults(self) -> list[str]:
        """What the run changed that it must leave alone."""
        lines = []
        before, after = self.before or {}, seen(self.given)
        for name in before if self.before is not None else ():
            if name not in after and (name.endswith(NOTES) or not self.is_free):
                lines.append(f"{name} is gone")
            elif before[name] != after.get(name) and not self.is_free:
                lines.append(f"{name} is changed")
        if not self.is_free and self.before is not None:
            lines += [f"{name} is new among what was given" for name in after if name not in before]
        beside = {path.name for path in self.place.parent.iterdir()} - {self.place.name, self.said.name}
        return lines + [f"{name} is written beside the folder" for name in sorted(beside)]


def seen(folder: Path) -> dict[str, Any]:
    """Kind, size and time of everything below a folder, by its place there; links are not followed."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            mark = () if is_folder else (status.st_size, status.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (status.st_mode, *mark)
    return found


def run(area: Area, number: int, seed: int, root: Path) -> Outcome:
    """Make and run one input of an area; its folder stays below `root`."""
    outer = root / f"{area.name}-{number}"
    place, said = outer / "work", outer / "said.txt"
    place.mkdir(parents=True)
    case = Case(Random(f"{seed}/{area.name}/{number}"), place, said)
    with told_to(said), contextlib.chdir(place):
        outcome = judged(area, lambda: area.act(case))
        if outcome.kind != "failure" and (faults := case.faults()):
            outcome = Outcome("failure", "; ".join(faults[:5]))
    text = said.read_text(errors="replace")
    if outcome.kind != "failure" and CRASH.search(text):
        outcome = Outcome("failure", "a traceback is printed: " + text.strip().splitlines()[-1], where_in(text))
    details = f"{outcome.details}\n{text[-3000:]}" if outcome.kind == "failure" else outcome.details
    return outcome._replace(lines=tuple(case.lines), details=details)


def judged(area: Area, act: Callable[[], Any]) -> Outcome:
    """The outcome of a call under the limits of an area."""
    held = reset_peak()
    outcome = Outcome("success")
    try:
        with limited(area.seconds), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            act()
    except (FastltsslError, click.ClickException, Message) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        outcome = Outcome("message", details=text[:600])
        if not text.strip() or len(text) > LONGEST:
            outcome = Outcome("failure", f"a message of {len(text)} characters: {text[:200]!r}", innermost(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = f"{type(error).__name__}: {str(error)[:300]}"
        outcome = Outcome("failure", why, innermost(error), details="".join(traceback.format_exception(error)[-12:]))
    loud = [warning for warning in warned if not issubclass(warning.category, HIDDEN)]
    if loud and outcome.kind != "failure":
        why = f"{loud[0].category.__name__}: {str(loud[0].message)[:300]}"
        outcome = Outcome("failure", f"a warning of another library: {why}", f"{loud[0].filename}:{loud[0].lineno}")
    if held and (grown := reset_peak() - held) > MOST_BYTES and outcome.kind != "failure":
        outcome = Outcome("failure", f"took {grown / 2**30:.1f} GiB of memory")
    return outcome


def innermost(error: BaseException) -> str:
    """The innermost line of the package in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in frame.filename]
    return f"{frames[-1].filename.rpartition(PACKAGE)[2]}:{frames[-1].lineno}" if frames else ""


def where_in(text: str) -> str:
    """The innermost line of the package in a printed traceback."""
    found = re.findall(rf'File "[^"]*{PACKAGE}([^"]+)", line (\d+)', text)
    return ":".join(found[-1]) if found else ""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Overdue inside after so many seconds, and again each second; end the process where nothing helps."""

    def stop(*_: Any) -> None:
        raise Overdue(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def told_to(file: Path) -> Iterator[None]:
    """Write what this process prints, by Python or by a C library, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    handle = os.open(file, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")  # strict, as on a terminal
    sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        sys.stdout, sys.stderr = streams
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(handle)


def reset_peak() -> int:
    """Bytes of memory that the process held at most since the last call; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", text)[1])  # type: ignore[index]
