"""Two people on one cache at the same time: told or done right, and nothing is lost."""

import subprocess
import sys
import time

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.manifest import LOCK

EXTRACT = ("extract", "--model", "tiny", "--dataset", "world:mild:24:2", "--views", "center,weak:1", "--threads", "1")


def started(*words):
    command = [sys.executable, "-m", "fastltssl", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_of_two_extractions_into_one_cache_one_is_told_and_readers_are_told_meanwhile(tmp_path):
    out = tmp_path / "world.zarr"
    both = [started(*EXTRACT, "--out", out, "--resume") for _ in range(2)]
    while not (out / LOCK).exists() and any(process.poll() is None for process in both):
        time.sleep(0.05)
    readers = [started("cache", "verify", out), started("train", "zeroshot", "--cache", out, "--out", tmp_path / "run")]
    told = [process.communicate()[0] for process in (*both, *readers)]
    assert not any("Traceback" in text for text in told), told
    codes = [process.returncode for process in both]
    assert 0 in codes, told
    for code, text in zip(codes, told, strict=False):
        assert code == 0 or "is being written by process" in text, text
    for reader, text in zip(readers, told[2:], strict=True):  # it was read when it was whole, or is told not to be
        assert reader.returncode == 0 or any(word in text for word in ("unfinished", "written by", "rows")), text
    assert open_cache(out).groups["train"].shape == (960, 2, 128)
    assert not (out / LOCK).exists()
