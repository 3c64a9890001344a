"""kill -9 at random moments of whatever writes a cache; `python tests/encoder/test_kills.py 30` prints the counts."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW, MANY = "center,weak:1", "center,weak:3,strong:1"
COMMANDS = ("extract", "import", "add-views")


@pytest.mark.slow
def test_whatever_is_killed_is_read_as_whole_only_where_it_is_and_can_be_done_again():
    script = [sys.executable, __file__, "30"]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=590, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    counts = json.loads(done.stdout)
    assert [sum(counts[command].values()) for command in COMMANDS] == [30] * 3


def writers(folder):
    """For each command a function (path, again) that does it, again after a kill, and the cache it starts from."""
    import numpy as np

    from fastltssl.cache.imports import import_features
    from fastltssl.encoder.add_views import add_views, find_recovered
    from fastltssl.encoder.clip import load_encoder
    from fastltssl.encoder.extract import extract
    from fastltssl.images import open_source
    from fastltssl.images.views import parse_views
    from fastltssl.progress import drain

    source, encoder = open_source("world:mild:4:2:3"), load_encoder("tiny", None)
    x = np.random.default_rng(0).normal(size=(6_000, 64)).astype("f4")

    def extracted(path, again=False, views=MANY):
        drain(extract(source, encoder, parse_views(views), path, templates="world", resume=again))

    def imported(path, again=False):
        import_features(
            path, features=x, labels=np.arange(len(x)) % 10, emulate="weak:2:0.2,strong:1:0.5:0.1", overwrite=again
        )

    def grown(path, again=False):
        path = find_recovered(str(path))
        drain(add_views(path, source, encoder, parse_views(MANY)))

    extracted(folder / "few.zarr", views=FEW)
    return {"extract": (extracted, None), "import": (imported, None), "add-views": (grown, folder / "few.zarr")}


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def state(path, before, after):
    """What a look at a cache says after a kill, checked: it is whole, as it was before, or told to be unfinished."""
    from fastltssl.cache.catalogue import find_cache, open_cache
    from fastltssl.errors import CacheError

    try:
        cache = open_cache(find_cache(path))
    except CacheError as error:
        finish = "cache import with --overwrite" if "import" in path.name else "extract with --resume"
        told = str(error)
        assert "no cache" in told or "is not a fastltssl cache" in told or finish in told, told
        return "not begun" if finish not in told else "told to be unfinished"
    names = {name: raw for name, raw in tree(cache.path).items() if not name.startswith("fastltssl.lock")}
    assert names in (before, after), "what is read as whole is not"
    return "whole" if names == after else "as before"


def killed(work, path, moment):
    """Do the work in another process and kill it after so many seconds; False where it had ended by then."""
    child = os.fork()
    if not child:
        work(path)
        os._exit(0)
    deadline = time.perf_counter() + moment
    while time.perf_counter() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(kills):
    """Counts of what was found after so many kills of each command; raises where something is wrong."""
    import torch
    import zarr  # noqa: F401  # before any fork

    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # what a killed process wrote outlives it; only a power cut would lose it
    counts, moments = {}, random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command, (work, start) in writers(folder).items():
            wanted, path = folder / f"{command}-wanted.zarr", folder / f"{command}.zarr"
            for copy in (wanted, path) if start else ():
                shutil.copytree(start, copy)
            began = time.perf_counter()
            child = os.fork()
            if not child:
                work(wanted)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            elapsed, before, after = time.perf_counter() - began, tree(start) if start else None, tree(wanted)
            found = Counter()
            while sum(found.values()) < kills:
                began = time.perf_counter()
                is_killed = killed(work, path, moments.uniform(0, elapsed))
                seen = state(path, before, after)
                if is_killed:
                    found[seen] += 1
                else:  # it had ended before: not counted, and the next moments lie earlier
                    elapsed = min(elapsed, time.perf_counter() - began)
                    assert seen == "whole"
                child = os.fork()
                if not child:
                    try:
                        work(path, again=path.exists())
                    except ValueError as error:  # add-views that was through already
                        os._exit(0 if "has all of these views" in str(error) else 1)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0, f"{command} could not be done again"
                assert tree(path) == after
                left = {file.name for file in folder.iterdir()} - {"few.zarr", wanted.name, path.name}
                assert not {other for other in left if other.startswith(f"{command}.")}, left
                shutil.rmtree(path)
                if start:
                    shutil.copytree(start, path)
            counts[command] = dict(found)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
