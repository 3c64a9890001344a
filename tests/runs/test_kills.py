"""Commands that are killed at random moments leave what they wrote whole, or nothing that could be read as whole.

Takes minutes: python -m pytest -m slow tests/runs/test_kills.py -s prints the counts.
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastltssl.errors import RunError
from fastltssl.runs.finished import read_audit, read_config, read_record, read_tensors

KILLS = 30
GRID = "protocols: [{name: a, n1: 12, m1: 20, gamma_l: 2}, {name: b, n1: 9, m1: 20}]\nseeds: 2\nsteps: 40\n"


def lines_of(cache, world, folder):
    """A command by name, and whether it goes on where the last one was killed."""
    (folder / "grid.yaml").write_text(f"cache: {cache.path}\n{GRID}")
    train = ("train", "fixmatch", "--cache", cache.path, "--n1", 12, "--m1", 20, "--steps", 150, "--seeds", "0-1")
    live = ("train", "probe", "--cache", world.path, "--n1", 4, "--live", "bitfit", "--steps", 8, "--batch", 4)
    sweep = ("sweep", "probe", "--cache", cache.path, "--n1", 12, "--val", 4, "--steps", 20, "--trials", 8)
    compare = ("compare", "--protocol-grid", folder / "grid.yaml", "--methods", "probe,fixmatch")
    return {
        "train": ((*train, "--out", folder / "out"), False),
        "train --overwrite": ((*train, "--out", folder / "out", "--overwrite"), True),
        "sweep": ((*sweep, "--out", folder / "out"), True),
        "grid": ((*compare, "--out", folder / "out"), True),
        "live": ((*live, "--out", folder / "out", "--resume"), True),
        "export": (("export", folder / "run", "--out", folder / "out", "--overwrite"), True),
        "report": (("report", folder / "run", "--out", folder / "out" / "report.html"), True),
    }


def runs_below(folder):
    """Run folders, whole or not, below a folder."""
    return sorted({path.parent for path in folder.rglob("config.yaml")} | {path.parent for path in
                   folder.rglob("metrics.json")})  # fmt: skip


def check(out):
    """How many folders below are whole; one that reads as whole must be so in every part."""
    whole = 0
    for run in runs_below(out) if out.exists() else []:
        if run.name.startswith("."):
            continue
        try:
            record = read_record(run)
        except RunError:
            continue
        for seed in record["seeds"]:
            assert read_audit(run, seed).steps[-1] >= 1
        assert read_config(run).method == record["method"]
        assert read_tensors(run)
        whole += 1
    if (out / "report.html").exists():
        assert (out / "report.html").read_text().rstrip().endswith("</html>")
        whole += 1
    if (out / "model.json").exists():
        assert {"model.pt2", "head.safetensors", "example.py"} <= {path.name for path in out.iterdir()}
        whole += 1
    return whole


def started(line):
    command = [sys.executable, "-m", "fastltssl", *map(str, line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", ["train", "train --overwrite", "sweep", "grid", "live", "export", "report"])
def test_a_command_killed_at_random_moments_leaves_nothing_half(cache, world, tmp_path, name):
    line, goes_on = lines_of(cache, world, tmp_path)[name]
    out = tmp_path / "out"
    train = started(lines_of(cache, world, tmp_path)["train"][0])
    told = train.communicate()[0]
    assert train.returncode == 0, told
    shutil.move(out, tmp_path / "run")
    began = time.perf_counter()
    process = started(line)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    draw, killed, ended, whole = random.Random(0), 0, 0, 0
    while killed < KILLS:
        process = started(line)
        try:
            process.wait(draw.uniform(0.3, 1.02) * seconds)
            told = process.communicate()[0]
            assert process.returncode == 0 or "is not empty" in told or "holds a" in told, told
            ended += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            process.stdout.close()
            killed += 1
        whole += check(out)
        if not goes_on or ended > killed // 3 + 1:
            shutil.rmtree(out, ignore_errors=True)
            ended = 0 if goes_on else ended
    process = started(line)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    assert check(out) >= 1
    left = [path.name for path in Path(out).rglob(".*")] + [path.name for path in Path(out).rglob("*.lock")]
    print(f"\n{name}: {killed} kills of {seconds:.1f} s, {whole} times whole, none half; left over: {left}")
    assert not left
