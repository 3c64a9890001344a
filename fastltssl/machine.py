"""The machine: processes that torchrun started to share one job, CPU threads, free memory, and files written whole."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastltssl.errors import UsageFault, WriteError

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


def available_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: the least of what the machine and each limit leave.

    The machine leaves MemAvailable. A control group (a container, a job of a cluster), of version 1 or 2, leaves
    limit - (usage - inactive_file), as the kernel drops file cache that is not in use; so does every group above it.
    The limits of the process (ulimit -v and -d) leave limit - VmSize and limit - VmData. `system` is the folder in
    which /proc and the mounted control groups are read; what cannot be read there limits nothing.
    """
    free = [*_machine_memory(system), *_group_memory(system), *_process_memory(system)]
    return max(0, min(free, default=2**62))


def _machine_memory(system: Path) -> Iterator[int]:
    if "MemAvailable" in (fields := _fields(system / "proc/meminfo")):
        yield 1024 * fields["MemAvailable"]


def _process_memory(system: Path) -> Iterator[int]:
    try:
        import resource
    except ImportError:  # there is none on Windows
        return
    used = _fields(system / "proc/self/status")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and name in used:
            yield soft - 1024 * used[name]


def _group_memory(system: Path) -> Iterator[int]:
    """Bytes that each control group leaves, from the group of this process up to the top of what is mounted here."""
    limits = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
    used = {"cgroup2": ("memory.current", "inactive_file"), "cgroup": ("memory.usage_in_bytes", "total_inactive_file")}
    for kind, folder, mounted_at in _groups(system):
        while True:
            usage, inactive = used[kind]
            for name in limits[kind]:
                limit, taken = _number(folder / name), _number(folder / usage)
                if limit is not None and taken is not None:
                    yield limit - (taken - _fields(folder / "memory.stat").get(inactive, 0))
            if folder == mounted_at:
                break
            folder = folder.parent


def _groups(system: Path) -> Iterator[tuple[str, Path, Path]]:
    """The kind (cgroup or cgroup2) of each hierarchy that counts memory, this process's folder in it, and its top."""
    own = {}
    for line in _lines(system / "proc/self/cgroup"):  # number:controllers:path, of version 2 without controllers
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(",") or (number == "0" and not controllers):
            own["cgroup" if controllers else "cgroup2"] = path
    for line in _lines(system / "proc/self/mountinfo"):  # see proc(5): root and folder of the mount, " - ", its type
        mount, _, rest = line.partition(" - ")
        fields, kind, options = mount.split(), (rest.split() or [""])[0], rest.split()[2:]
        is_memory = kind == "cgroup2" or (kind == "cgroup" and options and "memory" in options[0].split(","))
        if is_memory and kind in own and len(fields) > 4:
            top, place = system / fields[4].lstrip("/"), Path(own[kind])
            inner = place.relative_to(fields[3]) if place.is_relative_to(fields[3]) else Path()
            is_below = (
                ".." not in inner.parts and (top / inner).is_dir()
            )  # a container may see its own group as the top
            yield kind, top / inner if is_below else top, top


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The whole number in a file; None where there is no such file, or another word in it ("max")."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """The whole numbers in a file by their names: lines such as "MemAvailable: 12 kB" or "inactive_file 4096"."""
    words = [line.replace(":", " ").split() for line in _lines(path)]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isascii() and line[1].isdigit()}


def usable_device(name: str) -> str:
    """The name of a device to compute on: cpu, cuda, cuda:N, or auto, which stands for a GPU where there is one.

    Raises UsageFault for any other name, and where the device is not there.
    """
    import torch

    if name == "auto":
        return f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UsageFault(f"--device {name!r} is none that fastltssl computes on. Accepted: cpu, cuda, cuda:N, auto")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageFault(f"--device {name} cannot be used here ({reason}); try cpu") from None
    return name


def most_threads() -> int:
    """The most threads that may be asked for: four times the cores, and on a small machine 64."""
    return max(64, 4 * (os.cpu_count() or 1))


def check_threads(count: int, flag: str = "--threads", least: int = 1) -> int:
    """The count, if it is from `least` to `most_threads`; else raises UsageFault that names the flag."""
    if not least <= count <= most_threads():
        raise UsageFault(f"{flag} {count} is not from {least} to {most_threads()} (four times the cores, at least 64)")
    return count


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads inside (None: as many as it does now), and as many as before afterwards.

    Raises UsageFault for a count that `check_threads` refuses.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else check_threads(count))
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
        if path.is_fifo():
            reader = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody reads, as writing would not end
            yield path
            os.close(reader)
            return
        if path.exists() and not path.is_file():
            yield path  # of a folder the writing fails
            return
        target = Path(os.path.realpath(path))  # of a loop of links the writing fails
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


def check_place(path: Path) -> Path:
    """The path, if a file can be written there; else raises WriteError, before the work that fills the file is done."""
    with telling_writes(path):
        folder = Path(os.path.realpath(path)).parent
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only" if path.exists() else f"{path.parent} is read-only")
    return path


def make_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing; returns it. Raises WriteError where it cannot be made."""
    with telling_writes(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
