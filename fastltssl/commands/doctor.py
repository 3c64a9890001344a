"""`fastltssl doctor`: what works on this machine, each finding the result of trying it, not of reading a version."""

import json
import os
import platform
import shutil
from importlib import metadata
from typing import NamedTuple

import click

from fastltssl.commands.common import as_json, example


@click.command(epilog=example("doctor"))
@as_json
def doctor(is_json: bool) -> None:
    """Check torch, the device, faiss, the embedded model, threads and the cache folder."""
    from fastltssl.show.terminal import grid, show

    found = findings()
    show(grid(["part", "state", "what"], [[one.part, "ok" if one.is_ok else "problem", one.what] for one in found]))
    if is_json:
        click.echo(json.dumps([one._asdict() for one in found]))
    if not all(one.is_ok for one in found):
        raise click.exceptions.Exit(1)


class Finding(NamedTuple):
    part: str
    is_ok: bool
    what: str


def findings() -> list[Finding]:
    """One finding per part, in the order a run needs them."""
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
    _, found = index.search(np.eye(4, dtype=np.float32), 1)
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return Finding("faiss", found[:, 0].tolist() == [0, 1, 2, 3], f"{faiss.__version__}, {gpus} GPUs, search tried")


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
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free / 2**30
    text = f"{folder} ({len(list_caches(folder))} caches, {free:.0f} GiB free); FASTLTSSL_CACHE moves it"
    return Finding("cache folder", os.access(nearest, os.W_OK), text)
