"""M13: kill -9 at random moments, flipped bytes, a full disk, a second writer.

    python benchmarks/durability.py --kills 200 --flips 200
    python benchmarks/durability.py --kills 50 --flips 0 --processes 2

Extractions of the embedded world are killed at random moments and resumed until 200 kills have happened; every cache
must equal an unbroken one, file by file. Then one byte is flipped in each of 200 random places of a complete cache, and
`verify` must tell each. A child process is forked for each extraction, so that only the extraction is waited for.
"""

import os
import random
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import click
import torch

from fastltssl.cache.catalogue import open_cache, verify
from fastltssl.cache.manifest import read_manifest
from fastltssl.encoder.clip import Encoder, load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.errors import CacheError, CacheLocked
from fastltssl.images import open_source
from fastltssl.images.source import Source
from fastltssl.images.views import parse_views
from fastltssl.machine import ALONE, Ranks, joined
from fastltssl.show.terminal import show

VIEWS = "center,weak:2,strong:2"


def run(source: Source, encoder: Encoder, path: Path, done: int | None = None, ranks: Ranks = ALONE) -> None:
    """Extract or resume; the rows encoded so far are written to the pipe `done`."""
    work = extract(source, encoder, parse_views(VIEWS), path, templates="world", resume=True, ranks=ranks)
    for record in work:
        if done is not None and record.total:
            os.write(done, record.done.to_bytes(4, "little"))


def forked(source: Source, encoder: Encoder, path: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Process number of a child that extracts, and the end of its pipe to read from."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            os.environ.update(environment)
            run(source, encoder, path, writing, joined())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def encoded_rows(reading: int) -> int:
    """The last number a child wrote."""
    with os.fdopen(reading, "rb") as file:
        raw = file.read()
    return int.from_bytes(raw[-4:], "little") if len(raw) >= 4 else 0


def committed_rows(path: Path) -> int:
    return sum(line["stop"] - line["start"] for line in read_manifest(path).blocks)


def is_same(path: Path, wanted: Path) -> bool:
    files, others = (
        {file.relative_to(top): file.read_bytes() for file in top.rglob("*") if file.is_file()}
        for top in (path, wanted)
    )
    return files == others


def environments(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank)} for rank in range(processes)]


def kill_often(
    source: Source, encoder: Encoder, folder: Path, wanted: Path, kills: int, unbroken_s: float, processes: int
) -> None:
    """Kill and resume until that many kills have happened; raises where a cache differs."""
    rng, done, caches, most_lost = random.Random(0), 0, 0, 0
    began = time.perf_counter()
    while done < kills:
        path = folder / f"killed{caches}.zarr"
        while done < kills:
            before = committed_rows(path)
            children = [forked(source, encoder, path, given) for given in environments(processes)]
            time.sleep(rng.uniform(0, 0.6 * unbroken_s))
            for child, _ in children:
                os.kill(child, signal.SIGKILL)
            ends = [os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child, _ in children]
            is_killed = any(ends)
            done += is_killed
            encoded = sum(encoded_rows(reading) for _, reading in children)
            if not is_killed:
                break
            most_lost = max(most_lost, encoded - (committed_rows(path) - before))
        run(source, encoder, path)
        if verify(path) or not is_same(path, wanted):
            raise SystemExit(f"{path} differs from an unbroken extraction")
        shutil.rmtree(path)
        caches += 1
    block = max(line["stop"] - line["start"] for line in read_manifest(wanted).blocks)
    show(
        f"{done} kills in {time.perf_counter() - began:.0f} s, {caches} caches finished, all equal to an unbroken one\n"
        f"most rows encoded twice after a kill: {most_lost}; a chunk has {block}"
    )


def flip_often(wanted: Path, folder: Path, flips: int) -> None:
    """Flip one bit in a byte of a random file, often; raises where verify does not tell."""
    rng, path = random.Random(1), folder / "flipped.zarr"
    shutil.copytree(wanted, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    kinds: dict[str, int] = {}
    for _ in range(flips):
        kind = rng.choice(["chunk", "manifest", "metadata"])
        chosen = [
            f
            for f in files
            if kind == ("manifest" if "manifest" in f.name else "chunk" if "features/c/" in str(f) else "metadata")
        ]
        file = rng.choice(chosen)
        raw = bytearray(file.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        whole = file.read_bytes()
        file.write_bytes(raw)
        try:
            is_told = bool(verify(path))
        except CacheError:
            is_told = True
        file.write_bytes(whole)
        if not is_told:
            raise SystemExit(f"a flipped bit in {file} was not found")
        kinds[kind] = kinds.get(kind, 0) + 1
    show(f"{flips} flipped bits, every one found by verify: {kinds}")


def fill_disk(source: Source, encoder: Encoder, folder: Path, wanted: Path) -> None:
    """A limit on the size of a file stands in for a full disk: from the start, then after the first chunks."""
    path, (_, hard) = folder / "full.zarr", resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for room in (0, 200):
        work = extract(source, encoder, parse_views(VIEWS), path, templates="world", resume=True)
        try:
            while room and next(work).done < room:
                pass
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
            for _ in work:
                pass
        except CacheError as error:
            show(f"full disk: {error}")
        else:
            raise SystemExit("writing past the limit went unnoticed")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    run(source, encoder, path)
    if not is_same(path, wanted):
        raise SystemExit("the cache resumed after a full disk differs")
    show("resumed after a full disk: equal to an unbroken one")


def write_twice(source: Source, encoder: Encoder, folder: Path) -> None:
    """A second writer is refused while the first is at work."""
    child, reading = forked(source, encoder, folder / "two.zarr", {})
    while not committed_rows(folder / "two.zarr"):
        time.sleep(0.01)
    try:
        run(source, encoder, folder / "two.zarr")
    except CacheLocked as error:
        show(f"second writer: {error}")
    else:
        raise SystemExit("two writers wrote one cache")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--flips", default=200, show_default=True)
@click.option("--processes", default=1, show_default=True, help="That share an extraction; all are killed at once.")
@click.option("--dataset", default="world:mild:20:3:10", show_default=True)
@click.option("--folder", default="cache/durability", show_default=True, type=click.Path(path_type=Path))
def main(kills: int, flips: int, processes: int, dataset: str, folder: Path) -> None:
    """Run all four; stops at the first failure. The folder is removed at the end."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source, encoder = open_source(dataset), load_encoder("tiny", None)
    began = time.perf_counter()
    run(source, encoder, folder / "unbroken.zarr")
    seconds = time.perf_counter() - began
    rows = {name: group.shape for name, group in open_cache(folder / "unbroken.zarr").groups.items()}
    show(f"unbroken: {rows}, {seconds:.1f} s, {len(read_manifest(folder / 'unbroken.zarr').blocks)} blocks")
    kill_often(source, encoder, folder, folder / "unbroken.zarr", kills, seconds, processes)
    flip_often(folder / "unbroken.zarr", folder, flips)
    fill_disk(source, encoder, folder, folder / "unbroken.zarr")
    write_twice(source, encoder, folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
