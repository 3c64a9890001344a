"""Places that cannot be written: every command says so in a line that names the path, and leaves what was there."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import toy_cache
from shell import invoke

from fastltssl import __main__


@contextmanager
def full_disk(most=2000):
    """No file may grow beyond so many bytes inside, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A cache, a run from it, and a file that stands where a folder is asked for."""
    top = tmp_path_factory.mktemp("places")
    cache = toy_cache.write(top / "toy.zarr").path
    invoke("train", "fixmatch", "--cache", cache, "--n1", 9, "--m1", 9, "--steps", 3, "--out", top / "run")
    (top / "grid.yaml").write_text(f"{{cache: {cache}, n1: 9, steps: 3, protocols: [{{name: a}}]}}")
    (top / "file").touch()
    return top


WRITES = {  # what a command writes, and the command
    "page.html": "report {top}/run --out {out}",
    "figures/2-test-accuracy-by-class-fixmatch-steps=3.png": "report {top}/run --out /dev/null --figures {folder}",
    "runs.csv": "compare {top}/run --csv {out}",
    "runs.md": "compare {top}/run --markdown {out}",
    "runs.tex": "compare {top}/run --latex {out}",
    "grid.csv": "compare --protocol-grid {top}/grid.yaml --methods probe --out {top}/grid --csv {out}",
    "study/bias.json": "bias --cache {top}/toy.zarr --n1 9 --overwrite --out {folder}",
    "sheet.png": "world sheet --each 1 --out {out}",
}


def typed(text, top, out):
    return [part.format(top=top, out=out, folder=out.parent) for part in text.split()]


@pytest.mark.parametrize("name", [name for name in WRITES if "/" not in name])
def test_a_place_that_is_not_there_is_told_before_any_work(top, tmp_path, name):
    for place, reason in ((tmp_path / "none" / name, "there is no folder"), (top / "file" / name, ""), (tmp_path, "")):
        if name == "page.html" and "none" in str(place):
            continue  # its folder is made
        told = invoke(*typed(WRITES[name], top, place), code=2).told
        assert str(place) in told or str(place.parent) in told
        assert reason in told
    assert not (top / "grid").exists()


@pytest.mark.parametrize("name", [name for name in WRITES if name[-3:] not in ("csv", "tex", ".md")])
def test_a_full_disk_is_told_and_the_former_file_stays(top, tmp_path, name):
    out = tmp_path / name
    out.parent.mkdir(exist_ok=True)
    out.write_text("before")
    with full_disk(300):
        told = invoke(*typed(WRITES[name], top, out), code=2).told
    assert "cannot be written: File too large. Choose another place" in told
    assert str(out.parent) in told
    assert len(told.splitlines()) == 1
    assert out.read_text() == "before"
    assert not [path for path in out.parent.iterdir() if ".part" in path.name]


@pytest.mark.parametrize("name", ["runs.csv", "runs.md", "runs.tex"])
def test_a_table_on_a_full_disk_leaves_the_former_one(top, tmp_path, name):
    (tmp_path / name).write_text("before")
    with full_disk(100):
        told = invoke(*typed(WRITES[name], top, tmp_path / name), code=2).told
    assert f"{tmp_path / name} cannot be written" in told
    assert (tmp_path / name).read_text() == "before"


def test_a_table_goes_to_standard_output_and_to_devices_too(top):
    assert "fixmatch" in invoke("compare", top / "run", "--csv", "-").stdout
    invoke("compare", top / "run", "--csv", os.devnull)


def test_memory_that_runs_out_is_told_in_a_line(monkeypatch, capsys):
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
                  OSError(12, "Cannot allocate memory")):  # fmt: skip
        monkeypatch.setattr(__main__, "cli", lambda error=error, **_: (_ for _ in ()).throw(error))
        with pytest.raises(SystemExit):
            __main__.main()
        assert capsys.readouterr().err.startswith("Error: there is too little memory (")
    monkeypatch.setattr(__main__, "cli", lambda **_: (_ for _ in ()).throw(RuntimeError("a fault of the code")))
    with pytest.raises(RuntimeError):
        __main__.main()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
def test_a_device_that_is_full_and_a_reader_that_has_gone_end_in_no_traceback(top):
    def shell(command):
        done = subprocess.run(["sh", "-c", command], cwd=top, capture_output=True, text=True, check=False)
        return done.stderr

    fastltssl = f"{sys.executable} -m fastltssl"
    assert shell(f"{fastltssl} compare run --csv /dev/full").startswith("Error: /dev/full cannot be written: No space")
    told = shell(f"{fastltssl} methods > /dev/full")
    assert told == "Error: No space left on device. Choose another place, or free some space\n"
    assert shell(f"{fastltssl} methods | true") == ""
