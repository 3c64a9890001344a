"""`fastltssl doctor`: what works on this machine, found by trying each part, not by reading versions."""

import json
import os
import platform
import shutil
from importlib import metadata
from typing import NamedTuple

import click

from fastltssl.commands.common import as_json, example
from fastltssl.errors import byte_size


@click.command(epilog=example("doctor"))
@as_json
def doctor(is_json: bool) -> None:
    """Check torch, the device, faiss, the embedded model, threads and the cache folder."""
    from fastltssl.show.terminal import grid, show

    parts = findings()
    rows = [[finding.part, "ok" if finding.is_ok else "problem", finding.what] for finding in parts]
    is_whole = all(finding.is_ok for finding in parts)
    show(grid(["part", "state", "what"], rows))
    if is_whole:
        show("next: fastltssl demo")
    if is_json:
        click.echo(json.dumps([finding._asdict() for finding in parts]))
    if not is_whole:
        raise click.exceptions.Exit(1)


class Finding(NamedTuple):
    """Whether a part works here, and what it is or what is wrong."""

    part: str
    is_ok: bool
    what: str


def findings() -> list[Finding]:
    """A finding for each part, in the order a run needs them."""
    return [_python(), _torch(), _encoder(), _faiss(), _zarr(), _cache()]


def _python() -> Finding:
    names = ("fastltssl", "torch", "torchvision", "open_clip_torch", "zarr", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return Finding("python", True, f"{platform.python_version()} on {platform.machine()}; {versions}")


def _torch() -> Finding:
    import torch

    product = torch.ones(8, 8) @ torch.ones(8, 8)
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu (no GPU found)"
    text = f"{device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return Finding("torch", bool((product == 8).all()), text)


def _encoder() -> Finding:
    from fastltssl.encoder.clip import load_encoder
    from fastltssl.errors import EncoderError

    try:
        encoder = load_encoder("tiny", None)
    except EncoderError as error:
        return Finding("embedded model", False, str(error))
    return Finding("embedded model", True, f"tiny CLIP, features {encoder.width} wide, {encoder.size} px")


def _faiss() -> Finding:
    try:
        import faiss
        import numpy as np
    except ImportError as error:
        return Finding("faiss", False, f"{error}; pip install faiss-gpu (Linux x86-64) or faiss-cpu")
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    _, nearest = index.search(np.eye(4, dtype=np.float32), 1)
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return Finding("faiss", nearest[:, 0].tolist() == [0, 1, 2, 3], f"{faiss.__version__}, {gpus} GPUs, search tried")


def _zarr() -> Finding:
    import numpy as np
    import zarr

    array = zarr.create_array(zarr.storage.MemoryStore(), data=np.arange(6, dtype=np.float16).reshape(2, 3))
    return Finding(
        "zarr", float(np.asarray(array[1, 2])) == 5.0, f"{zarr.__version__}, written and read back in memory"
    )


def _cache() -> Finding:
    from fastltssl.cache.catalogue import cache_folder, list_caches

    folder = cache_folder()
    present = folder.absolute()  # the folder itself, or the nearest one above it
    while not present.exists():
        present = present.parent
    free = byte_size(shutil.disk_usage(present).free)
    text = f"{folder} ({len(list_caches(folder))} caches, {free} free); FASTLTSSL_CACHE moves it"
    return Finding("cache folder", os.access(present, os.W_OK), text)
