"""Runs on disk: what decides one, and the folder that records it.

A run folder holds config.yaml (what `train --config` takes), rows.npz (split positions and ids), metrics.json,
metrics.jsonl (one line per seed and evaluation), head.safetensors, pseudo_labels.zarr and environment.json; a live
run tower.safetensors, too.

pseudo_labels.zarr has a group seed<n> for each seed, T evaluations long: see `Recorded`, which `read_audit` returns.
"""

import dataclasses
import itertools
import json
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.cache.splits import Protocol, Split
from fastltssl.errors import RunError
from fastltssl.live.modes import Live
from fastltssl.runs.config import Config, as_dict
from fastltssl.training.step import leaf_name
from fastltssl.types import Fitted

ROOT = Path("runs")
HISTORY = "pseudo_labels.zarr"
TOWER = "tower.safetensors"  # what a live run trained in the encoder


class Recorded(NamedTuple):
    """The history of one seed of a run, T evaluations long; None where the run has no such thing."""

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
    """A new, empty run folder, named by time, method and cache; made here, so that nobody else gets the same."""
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


def write(
    out: Path,
    config: Config,
    cache: Cache,
    splits: list[Split],
    groups: list[Tensor | None],
    fitted: list[Fitted],
    record: dict[str, Any],
    threshold: float,
    towers: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Write a run folder; `towers` is what each seed trained in the encoder.

    metrics.json comes last, so a folder that has it is whole.
    """
    import zarr
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(as_dict(config), sort_keys=False))
    (out / "environment.json").write_text(json.dumps(environment(cache), indent=1))
    positions: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}
    lines: list[str] = []
    history = zarr.open_group(str(out / HISTORY), mode="w")
    history.attrs.update({"classes": list(cache.classes), "threshold": threshold})
    for seed, split, group_of, one in zip(config.seeds, splits, groups, fitted, strict=True):
        for name in ("labelled", "unlabelled", "val", "test"):
            group = {"unlabelled": split.unlabelled_group, "test": split.test_group}.get(name, "train")
            chosen = getattr(split, name)
            positions[f"seed{seed}.{name}"] = chosen
            positions[f"seed{seed}.{name}.ids"] = np.array(
                [cache.groups[group].ids[i] for i in chosen] if group else []
            )
        for path, leaf in tree_flatten_with_path({"params": one.run.params, "state": one.run.state})[0]:
            tensors[f"seed{seed}.{leaf_name(path)}"] = leaf.detach().cpu().clone().contiguous()
        for name, array in _arrays(cache, split, group_of, one.history).items():
            history.create_array(f"seed{seed}/{name}", data=array)
        curves = {name: curve for name, curve in one.history.items() if curve.ndim == 1}
        for index in range(len(next(iter(curves.values())))):
            row = {name: curve[index].item() for name, curve in curves.items()}
            known = {name: value for name, value in row.items() if value == value}
            lines.append(json.dumps({"seed": seed, "evaluation": index + 1} | known))
    np.savez_compressed(out / "rows.npz", **positions)  # type: ignore[arg-type]
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    save_file(tensors, out / "head.safetensors")
    if towers:
        pairs = zip(config.seeds, towers, strict=True)
        save_file({f"seed{seed}.{name}": value for seed, one in pairs for name, value in one.items()}, out / TOWER)
    (out / "metrics.json").write_text(json.dumps(record, indent=1))


def clear(out: Path) -> None:
    """Remove what a run left in a folder, the record first, and nothing else."""
    import shutil

    names = ("metrics.json", "config.yaml", "environment.json", "rows.npz", "metrics.jsonl", "head.safetensors", TOWER)
    for path in (*(out / name for name in names), *out.glob("seed*.checkpoint"), *out.glob("seed*.part")):
        path.unlink(missing_ok=True)
    if (out / HISTORY).is_dir():
        shutil.rmtree(out / HISTORY)


def _arrays(cache: Cache, split: Split, groups: Tensor | None, history: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The arrays of one seed, named as the fields of `Recorded`."""
    found = {"counts": split.counts.astype(np.int32), "steps": history["step"].numpy().astype(np.int32)}
    if groups is not None:
        found["groups"] = groups.numpy().astype(np.int8)
    if "pseudo_label" in history:
        found["truth"] = cache.groups[split.unlabelled_group].labels[split.unlabelled].astype(np.int16)
    for name in ("pseudo_label", "pseudo_confidence", "test_recall", "test_reliability", "prior_u"):
        if name in history:
            found[name.removeprefix("pseudo_")] = history[name].cpu().numpy()
    return found


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
    """What the numbers depend on besides the config."""
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


def read_record(path: Path) -> dict[str, Any]:
    """The record of a finished run folder."""
    if not (path / "metrics.json").is_file():
        raise RunError(f"{path} is not a finished run: it has no metrics.json. Runs are written by `fastltssl train`")
    try:
        record = json.loads((path / "metrics.json").read_text())
    except ValueError as error:
        raise RunError(f"{path}/metrics.json is damaged ({error}). Train the run again") from None
    if missing := {"method", "protocol", "bacc", "is_ssl", "seeds", "cache_fingerprint"} - set(record):
        raise RunError(f"{path}/metrics.json is not a run's record: it has no {', '.join(sorted(missing))}")
    return record


def read_config(folder: Path) -> Config:
    """The config of a finished run. Raises RunError where there is none."""
    read_record(folder)  # tells what is wrong with a folder that is no run
    found = yaml.safe_load((folder / "config.yaml").read_text())
    switches = {one.name for one in dataclasses.fields(Protocol)}
    protocol = Protocol(**{name: found.pop(name) for name in list(found) if name in switches})
    live = Live(**found.pop("live")) if "live" in found else None
    seeds = tuple(found.pop("seeds"))
    return Config(protocol=protocol, settings=found.pop("set"), seeds=seeds, live=live, **found)
