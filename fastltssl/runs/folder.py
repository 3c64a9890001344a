"""Run folders: written after training, read again by every other command.

A run folder holds config.yaml (what `train --config` takes), rows.npz (rows of the splits and their ids), metrics.json
(the record), metrics.jsonl (one line per seed and evaluation), head.safetensors, pseudo_labels.zarr and
environment.json; that of a live run tower.safetensors, too.

pseudo_labels.zarr has a group seed<n> for each seed, with the arrays of `Recorded`, which `read_audit` returns.
"""

import contextlib
import itertools
import json
import platform
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.errors import RunError
from fastltssl.reading import read_json, read_yaml, typed
from fastltssl.runs.config import Config, as_dict
from fastltssl.runs.evaluation import Task
from fastltssl.runs.record import Results
from fastltssl.types import leaf_name, threshold_of

ROOT = Path("runs")
HISTORY = "pseudo_labels.zarr"
TOWER = "tower.safetensors"  # what a live run trained in the encoder


class Recorded(NamedTuple):
    """The history of one seed of a run, over T evaluations; None stands for what the run does not have."""

    classes: tuple[str, ...]
    steps: np.ndarray  # [T] training steps done at each evaluation
    counts: np.ndarray  # [C] labelled rows
    groups: np.ndarray | None  # [C] 0 head, 1 medium, 2 tail
    test_recall: np.ndarray  # [T C], nan for a class without test rows
    test_reliability: np.ndarray  # [T 4 16 3] rows, confidence, accuracy; of all test rows, head, medium, tail
    threshold: float  # from which a pseudo-label is accepted
    label: np.ndarray | None  # [T M] pseudo-label of each row of the pool, on its first weak view
    confidence: np.ndarray | None  # [T M]
    truth: np.ndarray | None  # [M] true labels of the pool, -1 for none
    prior_u: np.ndarray | None  # [T C] the method's estimate Q of the unlabelled prior


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
def left_clean(folder: Path) -> Iterator[None]:
    """If the code inside fails and has written nothing into the folder, remove the folder."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def write(
    out: Path, results: Results, record: dict[str, Any], towers: Sequence[dict[str, Tensor]] = ()
) -> dict[str, Any]:
    """Write a run folder and return its record; `towers` holds what each seed trained in the encoder.

    metrics.json is written last, so a folder that has it is complete.
    """
    import zarr
    from safetensors.torch import save_file

    config, method, cache, tasks, fitted = results
    record = record | {"run": str(out)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(as_dict(config), sort_keys=False))
    (out / "environment.json").write_text(json.dumps(environment(cache), indent=1))
    positions: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}
    lines: list[str] = []
    stored = zarr.open_group(str(out / HISTORY), mode="w")
    stored.attrs.update({"classes": list(cache.classes), "threshold": threshold_of(method)})
    for task, (run, history) in zip(tasks, fitted, strict=True):
        positions |= _positions(task, cache)
        for path, leaf in tree_flatten_with_path({"params": run.params, "state": run.state})[0]:
            tensors[f"seed{task.seed}.{leaf_name(path)}"] = leaf.detach().cpu().clone().contiguous()
        for name, array in _arrays(task, history).items():
            stored.create_array(f"seed{task.seed}/{name}", data=array)
        lines += _lines(task.seed, history)
    np.savez_compressed(out / "rows.npz", **positions)  # type: ignore[arg-type]
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    save_file(tensors, out / "head.safetensors")
    if towers:
        pairs = zip(config.seeds, towers, strict=True)
        save_file({f"seed{seed}.{name}": value for seed, tower in pairs for name, value in tower.items()}, out / TOWER)
    (out / "metrics.json").write_text(json.dumps(record, indent=1))
    return record


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
    """Remove the files of a run from a folder, the record first, and nothing else."""
    import shutil

    names = ("metrics.json", "config.yaml", "environment.json", "rows.npz", "metrics.jsonl", "head.safetensors", TOWER)
    for path in (*(out / name for name in names), *out.glob("seed*.checkpoint"), *out.glob("seed*.part")):
        path.unlink(missing_ok=True)
    if (out / HISTORY).is_dir():
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


def read_audit(path: Path, seed: int | None = None) -> Recorded:
    """The history of one seed (None: the first) of a finished run. Raises RunError where there is none."""
    import zarr

    seeds = read_record(path)["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise RunError(f"{path} has no seed {seed}, only {', '.join(map(str, seeds))}")
    try:
        stored: Any = zarr.open_group(str(path / HISTORY), mode="r")
        arrays = {name: np.asarray(array) for name, array in stored[f"seed{seed}"].arrays()}
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}/{HISTORY} cannot be read ({error}). Train the run again") from None
    if missing := {"steps", "counts", "test_recall"} - arrays.keys():
        raise RunError(f"{path}/{HISTORY} is of an older version: it has no {', '.join(sorted(missing))}. Train again")
    fields = {name: arrays.get(name) for name in Recorded._fields}
    own = {"classes": tuple(stored.attrs["classes"]), "threshold": stored.attrs["threshold"]}
    return Recorded(**(fields | own))


def environment(cache: Cache) -> dict[str, Any]:
    """What the numbers may depend on besides the config: versions, machine, cache."""
    packages = ("fastltssl", "torch", "numpy", "zarr", "open_clip_torch")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in packages},
        "cache": str(cache.path),
        "cache_fingerprint": fingerprint(cache),
    }


class Record(TypedDict):
    """The keys of metrics.json that are checked when it is read; record.py writes more."""

    method: str
    protocol: dict[str, Any]
    bacc: dict[str, Any] | None
    is_ssl: bool
    seeds: list[int]
    cache_fingerprint: str


def read_record(path: Path) -> dict[str, Any]:
    """The record of a finished run. Raises RunError where the folder holds none."""
    if not path.exists():
        raise RunError(f"{path} is not a finished run: there is no such folder. Runs are written by `fastltssl train`")
    if (path / "best" / "metrics.json").is_file():
        raise RunError(f"{path} is a sweep; its best run is {path}/best")
    if not (path / "metrics.json").is_file():
        raise RunError(f"{path} is not a finished run: it has no metrics.json. Runs are written by `fastltssl train`")
    record = read_json(path / "metrics.json", dict[str, Any], RunError)
    typed(record, Record, f"{path}/metrics.json is not a run's record", RunError)
    return record


def read_config(folder: Path) -> Config:
    """The config of a finished run. Raises RunError where there is none."""
    read_record(folder)  # raises for a folder that is no run
    file = folder / "config.yaml"
    return Config.read(read_yaml(file, dict[str, Any], RunError), where=str(file))
