"""Runs on disk: what decides one, and the folder that records it.

A run folder holds config.yaml (what `train --config` takes), rows.npz (split positions and ids), metrics.json,
metrics.jsonl (one line per seed and evaluation), head.safetensors, pseudo_labels.zarr and environment.json.
"""

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from fastltssl import metrics
from fastltssl.cache import Cache, fingerprint
from fastltssl.splits import Protocol, Split, checked
from fastltssl.types import Fitted

ROOT = Path("runs")


class RunError(ValueError):
    """An experiment that cannot be run or recorded as asked."""


class ConfigError(RunError):
    """A setting that no run can have."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run."""

    method: str
    cache: str
    protocol: Protocol = Protocol()
    seeds: tuple[int, ...] = (0,)
    steps: int = 500
    lr: float = 0.03
    weight_decay: float = 5e-4
    batch: int = 32
    batch_u: int = 32
    settings: dict[str, Any] = field(default_factory=dict)
    templates: str | None = None
    eval: str = "test"  # or "all": every labelled row of every group
    report: str = "last"  # or "mean20" (last 20 evaluations) or "val" (best on validation)
    groups: str = "thirds"  # or "counts"
    evals: int = 10


def check(config: Config) -> Config:
    """The config with the protocol's preset applied; raises RunError on what cannot be run."""
    accepted = {"eval": ("test", "all"), "report": ("last", "mean20", "val"), "groups": tuple(metrics.GROUPINGS)}
    for name, options in accepted.items():
        if getattr(config, name) not in options:
            raise ConfigError(f"--{name} {getattr(config, name)!r} is not one of {', '.join(options)}")
    for name in ("steps", "batch", "batch_u", "evals"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)} is below 1")
    if not 0 < config.lr < float("inf") or not 0 <= config.weight_decay < float("inf"):
        raise ConfigError(f"--lr {config.lr} must be above 0 and --weight-decay {config.weight_decay} at least 0")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(f"--seeds {config.seeds} must name at least one seed, each once")
    if config.report == "val" and not config.protocol.val:
        raise ConfigError("--report val needs validation rows: add --val n (rows per class held out of training)")
    return dataclasses.replace(config, protocol=checked(config.protocol))


def new_folder(config: Config, root: Path = ROOT) -> Path:
    """A run folder that does not exist yet, named by time, method and cache."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(config.method).stem}-{Path(config.cache).stem}"
    tries = [root / stem, *(root / f"{stem}-{n}" for n in range(2, 1000))]
    return next(path for path in tries if not path.exists())


def write(
    out: Path,
    config: Config,
    cache: Cache,
    splits: list[Split],
    fitted: list[Fitted],
    record: dict[str, Any],
) -> None:
    """Write a run folder; metrics.json comes last, so a folder that has it is whole."""
    import zarr
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(as_dict(config), sort_keys=False))
    (out / "environment.json").write_text(json.dumps(environment(cache), indent=1))
    positions: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}
    lines: list[str] = []
    pseudo = zarr.open_group(str(out / "pseudo_labels.zarr"), mode="w")
    for seed, split, one in zip(config.seeds, splits, fitted, strict=True):
        for name in ("labelled", "unlabelled", "val", "test"):
            group = {"unlabelled": split.unlabelled_group, "test": split.test_group}.get(name, "train")
            chosen = getattr(split, name)
            positions[f"seed{seed}.{name}"] = chosen
            positions[f"seed{seed}.{name}.ids"] = np.array(
                [cache.groups[group].ids[i] for i in chosen] if group else []
            )
        for path, leaf in tree_flatten_with_path({"params": one.run.params, "state": one.run.state})[0]:
            parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
            tensors[f"seed{seed}." + ".".join(parts)] = leaf.detach().cpu().clone().contiguous()
        for name in ("pseudo_label", "pseudo_confidence"):
            if name in one.history:
                pseudo.create_array(f"seed{seed}/{name.removeprefix('pseudo_')}", data=one.history[name].cpu().numpy())
        curves = {name: curve for name, curve in one.history.items() if curve.ndim == 1}
        for index in range(len(next(iter(curves.values())))):
            row = {name: float(curve[index]) for name, curve in curves.items()}
            known = {name: value for name, value in row.items() if value == value}
            lines.append(json.dumps({"seed": seed, "evaluation": index + 1} | known))
    np.savez_compressed(out / "rows.npz", **positions)  # type: ignore[arg-type]
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    save_file(tensors, out / "head.safetensors")
    (out / "metrics.json").write_text(json.dumps(record, indent=1))


def as_dict(config: Config) -> dict[str, Any]:
    """The config as `--config` reads it: the protocol's switches beside the rest."""
    flat = dataclasses.asdict(config)
    protocol, settings = flat.pop("protocol"), flat.pop("settings")
    return flat | {"seeds": list(config.seeds)} | protocol | {"set": settings}


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
