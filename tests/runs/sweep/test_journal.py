"""The journal of a sweep is as robust as the manifest of a cache: half lines, dead locks, full disks."""

import os
import subprocess
import sys
import time

import optuna
import pytest

from fastltssl.errors import WriteError
from fastltssl.runs.sweep import journal
from fastltssl.runs.sweep.journal import open_journal


def study_in(file):
    return optuna.create_study(storage=optuna.storages.JournalStorage(open_journal(file)), study_name="s",
                               load_if_exists=True)  # fmt: skip


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"\xff\xfe", b"{", b" "])
def test_half_a_line_is_cut_off_and_what_follows_is_not_glued_to_it(tmp_path, torn):
    file = tmp_path / "study.journal"
    study_in(file).ask()
    with file.open("ab") as lines:
        lines.write(torn)
    study_in(file).ask()
    assert len(study_in(file).trials) == 2
    assert torn not in file.read_bytes().split(b"\n")


def test_the_lock_of_a_dead_process_is_in_nobody_s_way(tmp_path, monkeypatch):
    """Optuna's own lock is a link to the journal; with a relative path it points nowhere, and it outlives a kill."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    study_in(tmp_path / "s" / "study.journal").ask()
    lock = "from optuna.storages.journal import JournalFileSymlinkLock as L; L('s/study.journal').acquire()"
    subprocess.run([sys.executable, "-c", f"{lock}; import os; os._exit(9)"], check=False)
    assert os.path.islink("s/study.journal.lock")
    before = time.process_time()
    assert len(study_in(tmp_path / "s" / "study.journal").trials) == 1
    assert time.process_time() - before < 10


def test_a_lock_ends_with_its_process(tmp_path):
    file = tmp_path / "study.journal"
    study_in(file)
    hold = (
        "import sys, time; from pathlib import Path; from fastltssl.runs.sweep.journal import open_journal;"
        "j = open_journal(Path(sys.argv[1])); j._lock.acquire(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    study_in(file).ask()


def test_a_journal_that_cannot_be_written_is_told_with_its_path(tmp_path, monkeypatch):
    study = study_in(tmp_path / "study.journal")
    monkeypatch.setattr(journal.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WriteError, match=r"study.journal cannot be written: No space left on device"):
        study.ask()
