"""The machine: processes that torchrun started to share one job, CPU threads, free memory, and files written whole."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastltssl.errors import WriteError

Item = TypeVar("Item")
WAIT = timedelta(days=7)  # ranks end hours apart; where one fails, torchrun ends the others


class Ranks(NamedTuple):
    """The number of this process, and how many there are; one process without torchrun."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank; waits until every rank has called this."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def summed(self, tensor: Any) -> Any:
        """The sum of a tensor over the ranks, written into it."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def first(self, make: Callable[[], Item]) -> Item:
        """The result of `make`, called on every rank, on rank 0 before the others, as it may download files."""
        if self.rank:
            self.gather(None)
        made = make()
        if self.rank == 0:
            self.gather(None)
        return made

    def share(self, items: Sequence[Item], weights: Sequence[int]) -> list[Item]:
        """This rank's contiguous range of the items; the ranges of all ranks have about equal weight."""
        total, before, own = max(1, sum(weights)), 0, []
        for item, weight in zip(items, weights, strict=True):
            if (2 * before + weight) * self.size // (2 * total) == self.rank:
                own.append(item)
            before += weight
        return own


ALONE = Ranks()


def joined() -> Ranks:
    """The Ranks of this process; under torchrun it first joins the process group."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return Ranks(distributed.get_rank(), size)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)
    return Ranks(distributed.get_rank(), size)


def local_rank() -> int:
    """Number of this process on its host, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


SPARE = 0.8  # share of the free memory that features may take


def available_memory() -> int:
    """Bytes of memory that this process may still take; a control group (container) may allow less than the machine."""
    free = []
    if (table := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    group = Path("/sys/fs/cgroup")
    if (limit := group / "memory.max").is_file() and (text := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        free.append(int(text) - used)
    return min(free, default=2**62)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads inside (None: as many as it does now), and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def telling_writes(path: Path) -> Iterator[None]:
    """Turn an OSError inside, which writes to a path, into a WriteError of one line that names the path."""
    try:
        yield
    except OSError as failure:
        is_full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some space there, or choose another place" if is_full else "Choose another place"
        raise WriteError(f"{path} cannot be written: {failure.strerror or failure}. {advice}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes the place of `path` at the end.

    Where the writing fails or is killed, the file that was there before stays as it was. The path given has the same
    ending, as libraries read the format of a file from it. Links are followed; what is no regular file, such as
    /dev/stdout, is written itself. Raises WriteError where the file cannot be written.
    """
    with telling_writes(path):
        if path.exists() and not path.is_file():
            yield path  # of a folder the writing fails
            return
        target = path.resolve()
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        part = target.with_name(f".{uuid.uuid4().hex[:12]}.part{target.suffix}")
        try:
            yield part
            if target.exists():
                shutil.copymode(target, part)
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes or text to a file, whole or not at all. Raises WriteError.

    Text is written as UTF-8, with the line ends it has; what no UTF-8 can hold, as parts of odd file names, as codes.
    """
    with replacing(path) as part:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def make_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing; returns it. Raises WriteError where it cannot be made."""
    with telling_writes(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
