"""The journal of a sweep: a file of Optuna, one line for each operation, to which several processes append.

A process that is killed may leave half a line, which is cut off, and no lock, as the system takes that back.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from fastltssl.errors import RunError
from fastltssl.machine import telling_writes


def open_journal(file: Path) -> JournalFileBackend:
    """The journal in a file, made if it is missing, without the half line of a process that was killed."""
    file = file.expanduser().absolute()  # a relative path would mean another file from another folder
    lock = _Lock(file) if _Lock.is_known else JournalFileOpenLock(str(file))
    journal = _Journal(str(file), lock)
    lock.acquire()
    try:
        _cut_torn_line(file)
    finally:
        lock.release()
    return journal


class _Journal(JournalFileBackend):
    """A journal that tells where it cannot be written."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise RunError(
                f"{self._file_path} is damaged ({error}). Move it away to begin anew, or choose another --out"
            ) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with telling_writes(Path(self._file_path)):
            super().append_logs(logs)


class _Lock(JournalFileOpenLock):
    """An exclusive lock on the journal file itself, which waits without work and ends with its process."""

    try:
        import fcntl

        is_known = True
    except ImportError:  # a system without it
        is_known = False

    def __init__(self, file: Path) -> None:
        self.file = file
        self.handle = -1

    def acquire(self) -> bool:
        handle = os.open(self.file, os.O_RDWR)
        self.fcntl.flock(handle, self.fcntl.LOCK_EX)
        self.handle = handle
        return True

    def release(self) -> None:
        handle, self.handle = self.handle, -1
        os.close(handle)


def _cut_torn_line(file: Path) -> None:
    """Cut the last line of a file if it has no end, so that the next one is not glued to it."""
    with file.open("r+b") as journal:
        text = journal.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            journal.truncate(whole)
            os.fsync(journal.fileno())
