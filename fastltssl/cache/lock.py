"""The lock of a cache or a run folder, which one process writes at a time; that of a dead process is taken over."""

import json
import os
import socket
import time
from pathlib import Path

from fastltssl.cache.manifest import LOCK
from fastltssl.errors import CacheLocked, FastltsslError


def acquire_lock(path: Path, notes: list[str], error: type[FastltsslError] = CacheLocked, name: str = LOCK) -> None:
    """Create the lock in a folder, or take it over from a dead process. Raises `error` where its process may be alive.

    An OSError is raised where nothing can be written there.
    """
    lock = path / name
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    for _ in range(3):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            notes += _take_over(lock, error)
            continue
        with open(handle, "wb") as file:
            file.write(json.dumps(holder).encode())
        return
    raise error(f"{path}: several processes want to write there at once. Leave one of them running")


def _take_over(lock: Path, error: type[FastltsslError]) -> list[str]:
    """Remove the lock of a dead process. Returns the note to show to the user."""
    content = _read_lock(lock)
    pid, host, started = _holder(content)
    if _may_live(pid, host, started):
        raise error(
            f"{lock.parent} is being written by process {pid} on {host}. "
            f"Wait for it; if you are sure that it is gone, delete {lock}"
        )
    aside = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return []  # it has just been released
    if aside.is_file() and aside.read_bytes() != content:  # meanwhile another process took the lock over: put it back
        os.rename(aside, lock)
        raise error(f"{lock.parent} was taken over by another process a moment ago. Wait for it")
    aside.unlink()
    return [f"took over the lock of process {pid} on {host}, which is gone" if pid else "took over an unfinished lock"]


def refuse_writing(path: Path) -> None:
    """Raise CacheLocked where a process that may be alive is writing a cache."""
    if (path / LOCK).is_file():
        pid, host, started = _holder(_read_lock(path / LOCK))
        if _may_live(pid, host, started):
            raise CacheLocked(f"{path} is being written by process {pid} on {host}. Wait for it")


def _holder(content: bytes) -> tuple[int, str, str | None]:
    """Process, host and start time in a lock; process 0 where it was killed before it had written them."""
    try:
        holder = json.loads(content)
        return int(holder["pid"]), str(holder["host"]), holder["started"] and str(holder["started"])
    except (ValueError, KeyError, TypeError):
        return 0, "", None


def _may_live(pid: int, host: str, started: str | None) -> bool:
    """Whether the process of a lock may be alive; one on another host always may."""
    return bool(pid) and (host != socket.gethostname() or _is_alive(pid, started))


def _read_lock(lock: Path) -> bytes:
    """The content of the lock, waiting a moment while it is incomplete: it may just be being written."""
    for _ in range(10):
        content = lock.read_bytes() if lock.is_file() else b"}"
        if content.endswith(b"}"):
            return content
        time.sleep(0.05)
    return content


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether the process exists and, where the system tells when it started, is not a later one of the same number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return started is None or _started(pid) in (started, None)


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None where there is no /proc to tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def release_lock(path: Path, name: str = LOCK) -> None:
    """Delete the lock, which this process must hold."""
    (path / name).unlink(missing_ok=True)
