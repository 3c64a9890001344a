"""Run folders: written after training; finished.py reads them again.

A run folder holds config.yaml (what `train --config` takes), rows.npz (rows of the splits and their ids), metrics.json
(the record), metrics.jsonl (one line per seed and evaluation), head.safetensors, pseudo_labels.zarr and
environment.json; that of a live run tower.safetensors, too; that of a method of your own a copy of its file, method/.

pseudo_labels.zarr has a group seed<n> for each seed, with the arrays of `finished.Recorded`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.cache.lock import acquire_lock, release_lock
from fastltssl.errors import ConfigError, RunError, RunLocked, WriteError
from fastltssl.machine import telling_writes
from fastltssl.methods import source_that_ran
from fastltssl.reading import dump_yaml
from fastltssl.runs.config import Config, as_dict
from fastltssl.runs.evaluation import Task
from fastltssl.runs.record import Results
from fastltssl.types import leaf_name, threshold_of

ROOT = Path("runs")
HISTORY = "pseudo_labels.zarr"
HEAD = "head.safetensors"
TOWER = "tower.safetensors"  # what a live run trained in the encoder
RECORD = "metrics.json"
METHOD = "method"  # folder of the copy of a method file
FILES = (RECORD, "config.yaml", "environment.json", "rows.npz", "metrics.jsonl", HEAD, TOWER)
CLAIM = "run.lock"  # there while a process writes into the folder
PART = ".run-part-"  # beginning of the name of a folder in which the files of a run are written first


def new_folder(config: Config, root: Path = ROOT) -> Path:
    """The path of a new, empty run folder, named by time, method and cache. It exists, so no other run takes it."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(config.method).stem}-{Path(config.cache).stem}"
    for n in itertools.count(1):
        path = root / (f"{stem}-{n}" if n > 1 else stem)
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{path} cannot be made ({error}). Choose another folder with --out") from None
    return path


@contextlib.contextmanager
def claimed(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """The folder, made if it is missing, into which no other process can write while the code inside runs.

    It is removed if it is empty in the end. Raises what `usable` does, and RunLocked if another process writes there.
    """
    usable(folder, overwrite=True)
    try:
        acquire_lock(folder, [], RunLocked, CLAIM)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        for part in folder.glob(f"{PART}*"):  # of a process that was killed
            shutil.rmtree(part)
        yield usable(folder, overwrite)
    finally:
        release_lock(folder, CLAIM)
        with contextlib.suppress(OSError):
            folder.rmdir()


def usable(folder: Path, overwrite: bool = False) -> Path:
    """The folder, made if it is missing.

    Raises ConfigError where it cannot be made, and where it holds files and `overwrite` is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_taken = any(path.name != CLAIM for path in folder.iterdir())
    except OSError as error:
        raise _unusable(folder, error) from None
    if is_taken and not overwrite:
        begun = ", --resume to go on with the run in it" if any(folder.glob("seed*.checkpoint")) else ""
        raise ConfigError(f"{folder} is not empty; choose another --out{begun}, or pass --overwrite")
    return folder


def _unusable(folder: Path, error: OSError) -> ConfigError:
    reason = "it is a file" if folder.is_file() else error.strerror
    return ConfigError(f"--out {folder} cannot be a run folder: {reason}. Choose another --out")


@contextlib.contextmanager
def left_clean(folder: Path) -> Iterator[None]:
    """If the code inside fails and has written nothing into the folder, remove the folder."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder for the files of a run; once all are written, they take the place of those of the run in `out`.

    The old record goes first and the new one comes last, so that a process that is killed leaves no mixture that could
    be read as a run. Raises WriteError where the files cannot be written.
    """
    from safetensors import SafetensorError

    part = out / f"{PART}{os.getpid()}"
    try:
        with telling_writes(out):
            part.mkdir(parents=True)
            yield part
            _remove_files(out)
            for path in sorted(part.iterdir(), key=lambda path: path.name == RECORD):
                path.replace(out / path.name)
    except SafetensorError as error:  # in which safetensors wraps an error of the system
        raise WriteError(f"{out} cannot be written: {error}. Free some space there, or choose another place") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write(
    out: Path, results: Results, record: dict[str, Any], towers: Sequence[dict[str, Tensor]] = ()
) -> dict[str, Any]:
    """Write a run folder and return its record; `towers` holds what each seed trained in the encoder.

    A folder that has metrics.json is complete. Raises WriteError where it cannot be written.
    """
    record = record | {"run": str(out)}
    if results.config.method.endswith(".py"):
        record["method_sha256"] = hashlib.sha256(source_that_ran(Path(results.config.method))).hexdigest()
    with _replacing(out) as part:
        _write_into(part, results, record, towers)
    return record


def _write_into(folder: Path, results: Results, record: dict[str, Any], towers: Sequence[dict[str, Tensor]]) -> None:
    import zarr
    from safetensors.torch import save_file

    config, method, cache, tasks, fitted = results
    if config.method.endswith(".py"):
        (folder / METHOD).mkdir()
        (folder / METHOD / Path(config.method).name).write_bytes(source_that_ran(Path(config.method)))
    (folder / "config.yaml").write_text(dump_yaml(as_dict(config)))
    (folder / "environment.json").write_text(json.dumps(environment(cache), indent=1))
    positions: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}
    lines: list[str] = []
    stored = zarr.open_group(str(folder / HISTORY), mode="w")
    stored.attrs.update({"classes": list(cache.classes), "threshold": threshold_of(method)})
    for task, (run, history) in zip(tasks, fitted, strict=True):
        positions |= _positions(task, cache)
        for path, leaf in tree_flatten_with_path({"params": run.params, "state": run.state})[0]:
            tensors[f"seed{task.seed}.{leaf_name(path)}"] = leaf.detach().cpu().clone().contiguous()
        for name, array in _arrays(task, history).items():
            stored.create_array(f"seed{task.seed}/{name}", data=array)
        lines += _lines(task.seed, history)
    np.savez_compressed(folder / "rows.npz", **positions)  # type: ignore[arg-type]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    save_file(tensors, folder / HEAD)
    if towers:
        pairs = zip(config.seeds, towers, strict=True)
        named = {f"seed{seed}.{name}": value for seed, tower in pairs for name, value in tower.items()}
        save_file(named, folder / TOWER)
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def _positions(task: Task, cache: Cache) -> dict[str, np.ndarray]:
    """The rows of a split in their groups of the cache, and their ids."""
    split, positions = task.split, {}
    for name in ("labelled", "unlabelled", "val", "test"):
        group = {"unlabelled": split.unlabelled_group, "test": split.test_group}.get(name, "train")
        rows = getattr(split, name)
        positions[f"seed{task.seed}.{name}"] = rows
        positions[f"seed{task.seed}.{name}.ids"] = np.array(
            [cache.groups[group].ids[row] for row in rows] if group else []
        )
    return positions


def _lines(seed: int, history: dict[str, Tensor]) -> list[str]:
    """A line of metrics.jsonl for each evaluation of a seed: its scalars, without those that are nan."""
    curves = {name: curve for name, curve in history.items() if curve.ndim == 1}
    lines = []
    for place in range(len(next(iter(curves.values())))):
        values = {name: curve[place].item() for name, curve in curves.items()}
        known = {name: value for name, value in values.items() if value == value}
        lines.append(json.dumps({"seed": seed, "evaluation": place + 1} | known))
    return lines


def clear(out: Path) -> None:
    """Remove the files of a run from a folder, the record first, and its checkpoints, and nothing else."""
    _remove_files(out)
    for path in (*out.glob("seed*.checkpoint"), *out.glob("seed*.part")):
        path.unlink()


def _remove_files(out: Path) -> None:
    """Remove the files of a finished run from a folder, the record first, and nothing else; links are not followed."""
    for path in (*(out / name for name in FILES), *(out / METHOD).glob("*.py")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or with files of somebody else
        (out / METHOD).rmdir()
    if (out / HISTORY).is_dir() and not (out / HISTORY).is_symlink():
        shutil.rmtree(out / HISTORY)


def _arrays(task: Task, history: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The arrays of one seed, by the names of the fields of `Recorded`."""
    groups = task.measured.groups
    arrays = {"counts": task.split.counts.astype(np.int32), "steps": history["step"].numpy().astype(np.int32)}
    if groups is not None:
        arrays["groups"] = groups.numpy().astype(np.int8)
    if "pseudo_label" in history:
        arrays["truth"] = task.measured.pool_y.cpu().numpy().astype(np.int16)
    for name in ("pseudo_label", "pseudo_confidence", "test_recall", "test_reliability", "prior_u"):
        if name in history:
            arrays[name.removeprefix("pseudo_")] = history[name].cpu().numpy()
    return arrays


def environment(cache: Cache) -> dict[str, Any]:
    """What the numbers may depend on besides the config: versions, machine, cache."""
    packages = ("fastltssl", "torch", "numpy", "zarr", "open_clip_torch")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in packages},
        "cache": str(cache.path.resolve()),
        "cache_fingerprint": fingerprint(cache),
    }
