"""Run folders: one writer at a time, written whole, read as what they are, and no foreign code."""

import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from shell import invoke

from fastltssl import methods, read_run, train
from fastltssl.analysis.grid import Cell, Choice, finished
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.commands.cli import cli
from fastltssl.errors import ConfigError, FastltsslError, RunError, RunLocked, UntrustedMethod, WriteError
from fastltssl.methods import probe
from fastltssl.progress import drain
from fastltssl.runs import experiment
from fastltssl.runs.config import Config
from fastltssl.runs.finished import open_own_cache, read_audit, read_config, read_record, read_rows, read_tensors
from fastltssl.runs.folder import CLAIM, PART, claimed
from fastltssl.runs.trained import load_run

OWN = Path(probe.__file__).read_text()
HEADER = '"""Mine. A probe of my own."""\n'


def config(cache, method="probe", **settings):
    return Config(method, str(cache.path), Protocol(n1=12, m1=20), **({"steps": 3, "evals": 1} | settings))


def trained(cache, rows, out, method="probe", **settings):
    drain(experiment.training(config(cache, method, **settings), cache, rows, out))
    return out


@pytest.fixture(scope="module")
def run(cache, rows, tmp_path_factory):
    return trained(cache, rows, tmp_path_factory.mktemp("runs") / "probe", "fixmatch")


@pytest.fixture
def own(tmp_path):
    """A method file that notes each time that it is run."""
    file = tmp_path / "mine.py"
    witness = tmp_path / "witness"
    file.write_text(f"{HEADER}with open({str(witness)!r}, 'a') as note:\n    note.write('ran ')\n{OWN}")
    return file, witness


def received(run, tmp_path, monkeypatch):
    """The run as somebody else gets it: copied, in a home where nothing has been run before."""
    copy = tmp_path / "received"
    shutil.copytree(run, copy)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other home"))
    for name in [name for name in sys.modules if name.startswith("fastltssl_method_")]:
        monkeypatch.delitem(sys.modules, name)
    return copy


# ------------------------------------------------------------------------------------------- foreign code


def test_a_received_method_file_runs_only_where_it_is_trusted(cache, rows, own, tmp_path, monkeypatch):
    file, witness = own
    run = received(trained(cache, rows, tmp_path / "run", str(file)), tmp_path, monkeypatch)
    file.unlink()
    witness.unlink()
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    out = tmp_path / "out"
    for command in (
        ("report", run, "--out", out), ("export", run, "--out", out), ("predict", run, image, "--out", out),
        ("studio", run), ("train", "gla", "--ensemble", run), ("train", "--config", run / "config.yaml"),
    ):  # fmt: skip
        told = invoke(*command, code=1).told
        assert "--trust-method" in told
        assert "mine.py" in told
        assert not witness.exists()
        assert not out.exists()
    with pytest.raises(UntrustedMethod, match="Read it"):
        read_run(run)
    invoke("report", run, "--out", out, "--trust-method")
    assert witness.exists()
    assert read_run(run).config.method == str(run / "method" / "mine.py")  # this user has run it here, so it is known
    invoke("compare", run)


def test_a_grid_does_not_train_over_a_received_run(cache, rows, own, tmp_path, monkeypatch):
    file = str(own[0])
    run = received(trained(cache, rows, tmp_path / "run", file), tmp_path, monkeypatch)
    with pytest.raises(UntrustedMethod):
        finished(Cell(Choice(file, {}), "a", config(cache, file), run), cache)


def test_with_trusting_a_run_is_read_from_python(cache, rows, own, tmp_path, monkeypatch):
    run = received(trained(cache, rows, tmp_path / "run", str(own[0])), tmp_path, monkeypatch)
    with methods.trusting():
        assert torch.isfinite(load_run(run, cache).scores(torch.zeros(2, 8))).all()
    load_run(run, cache)


def test_a_method_file_that_differs_from_that_of_the_run_is_refused(cache, rows, own, tmp_path):
    run = trained(cache, rows, tmp_path / "run", str(own[0]))
    copy = run / "method" / "mine.py"
    assert read_record(run)["method_sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    copy.write_text(copy.read_text() + "\n")
    with pytest.raises(RunError, match="is not the file that"):
        read_config(run)


def test_the_copy_is_what_ran_though_the_file_was_changed_while_it_trained(cache, rows, own, tmp_path):
    file, _ = own
    ran, work = file.read_bytes(), experiment.training(config(cache, str(file)), cache, rows, tmp_path / "run")
    next(work)
    file.write_text("raise SystemExit('changed meanwhile')")
    drain(work)
    assert (tmp_path / "run" / "method" / "mine.py").read_bytes() == ran
    read_config(tmp_path / "run")


def test_a_run_goes_on_where_its_method_file_has_moved_or_changed(cache, rows, own, tmp_path):
    file, _ = own
    run = trained(cache, rows, tmp_path / "run", str(file))
    file.write_text("raise SystemExit('another file')")
    assert load_run(run, cache).scores(torch.zeros(2, 8)).shape == (2, 6)


def test_a_compiled_file_beside_a_method_is_never_run(own, tmp_path):
    file, witness = own
    evil = tmp_path / "evil.py"
    evil.write_text(file.read_text().replace("'ran '", "'EVIL'"))
    assert evil.stat().st_size == file.stat().st_size
    os.utime(evil, (1, 1))
    os.utime(file, (1, 1))
    compiled = py_compile.compile(str(evil), doraise=True)
    (tmp_path / "__pycache__").mkdir(exist_ok=True)
    shutil.move(compiled, tmp_path / "__pycache__" / Path(compiled).name.replace("evil", "mine"))
    methods.load(str(file))
    assert "EVIL" not in witness.read_text()


def test_a_method_file_does_not_take_the_place_of_a_module(tmp_path):
    (tmp_path / "json.py").write_text(HEADER + OWN)
    methods.load(str(tmp_path / "json.py"))
    assert sys.modules["json"] is json


# ------------------------------------------------------------------------------------------- one writer


def test_a_folder_that_another_process_writes_is_told(cache, run, tmp_path):
    out = tmp_path / "out"
    with claimed(out):
        for words in (
            ("train", "probe", "--cache", cache.path, "--steps", 2),
            ("bias", "--cache", cache.path, "--n1", 5),
            ("analyze", "pseudo-labels", "--cache", cache.path, "--n1", 5, "--m1", 9),
            ("export", run),
        ):
            assert f"{out} is being written by process {os.getpid()}" in invoke(*words, "--out", out, code=1).told
        with pytest.raises(RunLocked):
            train("probe", cache, out=out, n1=5, steps=2)
    assert not out.exists()


def test_of_two_processes_that_train_into_one_folder_one_is_told(cache, tmp_path):
    out, line = tmp_path / "out", ["train", "probe", "--cache", str(cache.path), "--steps", "400", "--out"]
    command = [sys.executable, "-m", "fastltssl", *line, str(out)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = [process.communicate()[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 1], [0, 2]), told  # told that it is being written, or that it is not empty
    assert any("is being written by process" in text or "is not empty" in text for text in told)
    assert read_record(out)["steps"] == 400
    assert not (out / CLAIM).exists()


def test_the_lock_and_the_half_written_files_of_a_dead_process_are_in_nobody_s_way(cache, rows, tmp_path):
    out = tmp_path / "out"
    (out / f"{PART}1").mkdir(parents=True)
    (out / f"{PART}1" / "metrics.json").write_text("{")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (out / CLAIM).write_text(json.dumps({"pid": process.pid, "host": os.uname().nodename, "started": "0"}))
    invoke("train", "probe", "--cache", cache.path, "--steps", 2, "--out", out)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".") or path.name == CLAIM) == []
    read_record(out)


def test_overwrite_keeps_the_run_that_is_there_until_the_new_one_is_whole(cache, rows, tmp_path, monkeypatch):
    out = trained(cache, rows, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(WriteError, match="out cannot be written: No space left on device"):
            trained(cache, rows, out, "fixmatch")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    trained(cache, rows, out, "fixmatch")
    assert read_record(out)["method"] == "fixmatch"
    assert (out / "notes.txt").read_text() == "mine"


def test_no_moment_of_writing_leaves_what_could_be_read_as_a_run(cache, rows, tmp_path, monkeypatch):
    """A process is stopped before each replacement of a file; what is left is the old run, or none."""
    out = trained(cache, rows, tmp_path / "out", steps=2)
    replace, left = Path.replace, []

    def stopped(path, target):
        if Path(target).parent == out:
            left.append(sorted(item.name for item in out.iterdir()))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    trained(cache, rows, out, steps=3)
    assert len(left) >= 6
    assert all("metrics.json" not in names for names in left)
    assert read_record(out)["steps"] == 3


def test_a_place_that_cannot_be_written_is_told_with_its_path(cache, tmp_path):
    (tmp_path / "file").write_text("")
    told = invoke("train", "probe", "--cache", cache.path, "--out", tmp_path / "file" / "run", code=2).told
    assert f"{tmp_path / 'file' / 'run'} cannot be a run folder" in told


# ------------------------------------------------------------------------------------------- damaged and foreign files


def test_a_run_finds_its_cache_from_another_folder(rows, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(cache.path.parent)
    relative = open_cache(cache.path.name)
    run = trained(relative, rows, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert open_own_cache(run, read_config(run)).path == cache.path
    environment = json.loads((run / "environment.json").read_text()) | {"cache": "/not/there"}
    (run / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(FastltsslError, match="name it with --cache"):
        open_own_cache(run, read_config(run))


DAMAGE = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: b"[]",
    "null": lambda text: b"null",
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "flipped": lambda text: bytes(byte ^ 0xFF for byte in text),
    "words for numbers": lambda text: text.replace(b"0", b'"x"'),
    "other keys": lambda text: text.replace(b"e", b"f"),
    "deep": lambda text: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    ["metrics.json", "config.yaml", "environment.json", "rows.npz", "head.safetensors", "metrics.jsonl",
     "pseudo_labels.zarr/zarr.json", "pseudo_labels.zarr/seed0/label/zarr.json", "pseudo_labels.zarr/seed0/zarr.json",
     "pseudo_labels.zarr/seed0/counts/c/0"],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_told_or_not_needed(run, cache, tmp_path, name, damage):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / name).write_bytes(DAMAGE[damage]((run / name).read_bytes()))
    readers = (
        lambda: read_audit(copy), lambda: read_config(copy), lambda: load_run(copy, cache), lambda: read_run(copy),
        lambda: read_rows(copy, "seed0.test.ids"), lambda: open_own_cache(copy, read_config(copy)),
    )  # fmt: skip
    for reader in readers:
        try:
            reader()
        except FastltsslError as error:
            assert str(error)  # noqa: PT017
    if name in ("metrics.jsonl", "environment.json") and damage in ("list", "other keys"):  # what a report reads, too
        result = CliRunner().invoke(cli, ["report", str(copy), "--out", str(tmp_path / "report.html")])
        assert result.exception is None or isinstance(result.exception, FastltsslError), result.exception


@pytest.mark.parametrize("name", ["counts", "steps", "label", "confidence", "truth", "test_recall"])
def test_arrays_of_a_history_that_do_not_fit_together_are_refused(run, tmp_path, name):
    import zarr

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    group = zarr.open_group(str(copy / "pseudo_labels.zarr"))["seed0"]
    group.create_array(name, data=np.zeros((2, 3, 4)), overwrite=True)
    with pytest.raises(RunError, match=f"damaged: {name} is"):
        read_audit(copy)


def test_a_missing_file_is_told_by_name(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "head.safetensors").unlink()
    with pytest.raises(RunError, match=r"head.safetensors cannot be read"):
        read_tensors(copy)
    (copy / "rows.npz").unlink()
    with pytest.raises(RunError, match=r"rows.npz cannot be read"):
        read_rows(copy, "seed0.test.ids")


# ------------------------------------------------------------------------------------------- silently wrong


def test_a_run_that_diverges_in_its_last_step_is_told_and_not_written(cache, rows, tmp_path):
    with pytest.raises(RunError, match=r"not finite.*Lower --lr"):
        trained(cache, rows, tmp_path / "out", steps=1, lr=1e38, weight_decay=1e38)
    assert not (tmp_path / "out").exists()


def test_knobs_that_would_never_end_are_refused():
    with pytest.raises(FastltsslError, match="sweep range is 1 to 100"):
        methods.configure("labelprop", {"iterations": 10**12})
    methods.configure("labelprop", {"iterations": 1000})


def test_a_folder_with_files_is_taken_only_with_overwrite(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"), claimed(tmp_path):
        pass
    with claimed(tmp_path, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
