"""Several processes share an extraction: the same bytes as one, killed or not."""

import os
import socket
import subprocess
import sys
import time

import pytest

from fastltssl.cache.catalogue import info, verify
from fastltssl.cache.manifest import read_manifest
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.errors import CacheError
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.machine import Ranks
from fastltssl.progress import drain

DATASET, VIEWS = "world:mild:16:4", "center,weak:1"  # 640 + 160 images: ten blocks and three


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def together(path, processes=2):
    """Processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    asked = ["--model", "tiny", "--dataset", DATASET, "--views", VIEWS, "--out", str(path), "--resume"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fastltssl", "extract", *asked, "--workers", "0", "--duplicates", "1"],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_the_shares_of_all_ranks_are_contiguous_even_and_everything(size):
    items, weights = list(range(23)), [9, 1, 1, 1, *[4] * 19]
    shares = [Ranks(rank, size).share(items, weights) for rank in range(size)]
    assert [item for share in shares for item in share] == items
    loads = [sum(weights[item] for item in share) for share in shares]
    assert max(loads) - sum(weights) / size <= max(weights)


def test_two_processes_killed_and_resumed_write_the_bytes_of_one(tmp_path):
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    work = extract(open_source(DATASET), load_encoder("tiny", None), parse_views(VIEWS), one, templates="world")
    drain(work)
    running, deadline = together(two), time.monotonic() + 90
    while not (two / "manifest-1.jsonl").exists() and time.monotonic() < deadline:
        assert [process.poll() for process in running] == [None, None], running[0].communicate()[1]
        time.sleep(0.002)
    for process in running:
        process.kill()
        process.communicate()
    blocks = read_manifest(two).blocks
    assert any(block["group"] == "test" or block["start"] >= 384 for block in blocks), "the second has written none"
    details = info(two)
    assert not details["is_complete"]
    assert sum(group["rows_done"] for group in details["groups"].values()) == sum(
        b["stop"] - b["start"] for b in blocks
    )
    (out, errors), (second, _) = [process.communicate(timeout=120) for process in together(two)]
    assert "of 800 rows" in errors
    assert (out.count("wrote"), second) == (1, "")
    assert tree(two) == tree(one)
    assert verify(two) == []


def test_a_process_with_another_data_set_is_told_what_differs(tmp_path, monkeypatch):
    """The second rank alone, beside a cache that the first has prepared for other views."""
    source, encoder, path = open_source(DATASET), load_encoder("tiny", None), tmp_path / "a.zarr"
    begun = extract(source, encoder, parse_views(VIEWS), path, templates="world")
    next(begun)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [None, value])  # the first process has nothing to object
    with pytest.raises(CacheError, match=r"would make something else than the first one: .*weak1 is absent there"):
        drain(extract(source, encoder, parse_views("center,weak:2"), path, templates="world", ranks=Ranks(1, 2)))
    begun.close()
