"""Finished runs, read again from their folders, whose files are those that folder.py writes, or damaged, or foreign."""

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from torch import Tensor

from fastltssl.cache.catalogue import Cache, open_cache
from fastltssl.cache.splits import Protocol
from fastltssl.errors import CacheError, RunError
from fastltssl.functional.measures import TEST
from fastltssl.methods import check_trusted, source_of
from fastltssl.reading import read_json, read_yaml, require_regular, typed
from fastltssl.runs.config import SWITCHES, Config
from fastltssl.runs.folder import HEAD, HISTORY, METHOD


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


class Summary(TypedDict):
    """A number of each seed."""

    mean: float
    std: float
    values: list[float | None]


class Record(TypedDict):
    """The keys of metrics.json that are checked when it is read; record.py writes more."""

    method: str
    protocol: dict[str, Any]
    bacc: Summary | None
    is_ssl: bool
    seeds: list[int]
    cache_fingerprint: str
    labelled: list[int]
    unlabelled: list[int]
    steps: int
    seconds: float
    settings: dict[str, Any]
    audit: NotRequired[dict[str, Summary | None] | None]  # of runs of 0.1, too


def read_record(path: Path) -> dict[str, Any]:
    """The record of a finished run. Raises RunError where the folder holds none."""
    if not path.exists():
        raise RunError(f"{path} is not a finished run: there is no such folder. Runs are written by `fastltssl train`")
    if (path / "best" / "metrics.json").is_file():
        raise RunError(f"{path} is a sweep; its best run is {path}/best")
    if not (path / "metrics.json").is_file():
        raise RunError(f"{path} is not a finished run: it has no metrics.json. Runs are written by `fastltssl train`")
    record = read_json(path / "metrics.json", dict[str, Any], RunError)
    where = f"{path}/metrics.json is not a run's record"
    typed(record, Record, where, RunError)
    if not record["seeds"]:
        raise RunError(f"{where}: it names no seeds")
    typed({name: value for name, value in record["protocol"].items() if name in SWITCHES}, Protocol,
          f"{where}: protocol", RunError)  # fmt: skip
    for name in (*TEST, "val_bacc"):
        summary = typed(record.get(name), Summary | None, f"{where}: {name}", RunError)
        if summary and len(summary["values"]) != len(record["seeds"]):
            raise RunError(f"{where}: {name} has {len(summary['values'])} values for {len(record['seeds'])} seeds")
    return record


def read_config(folder: Path) -> Config:
    """The config of a finished run; a method of the user's own is the copy in the folder.

    Raises RunError where there is none, and UntrustedMethod where that method's file is not known on this machine.
    """
    record = read_record(folder)  # raises for a folder that is no run
    file = folder / "config.yaml"
    config = Config.read(read_yaml(file, dict[str, Any], RunError), where=str(file))
    if not config.method.endswith(".py"):
        return config
    copy = own_method(folder, config.method)
    if copy.parent == folder / METHOD:
        if hashlib.sha256(source_of(copy)).hexdigest() != record.get("method_sha256"):
            raise RunError(f"{copy} is not the file that {folder} was trained with. Train the run again")
        config = dataclasses.replace(config, method=str(copy))
    check_trusted(copy, folder)
    return config


def own_method(folder: Path, method: str) -> Path:
    """The copy of a method file in a run folder; the file itself where there is none, as in runs of version 0.2.0."""
    copy = folder / METHOD / Path(method).name
    return copy if copy.is_file() else Path(method)


def read_audit(path: Path, seed: int | None = None) -> Recorded:
    """The history of one seed (None: the first) of a finished run. Raises RunError where there is none."""
    import zarr

    seeds = read_record(path)["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise RunError(f"{path} has no seed {seed}, only {', '.join(map(str, seeds))}")
    try:
        for file in (path / HISTORY).rglob("*"):
            if not file.is_dir():
                require_regular(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # zarr only warns of a file that is a folder
            stored: Any = zarr.open_group(str(path / HISTORY), mode="r")
            arrays = {name: np.asarray(array) for name, array in stored[f"seed{seed}"].arrays()}
            attributes = dict(stored.attrs)
    except Exception as error:  # zarr raises errors of many types on damaged files
        raise RunError(f"{path}/{HISTORY} cannot be read ({_line(error)}). Train the run again") from None
    if missing := {"steps", "counts", "test_recall"} - arrays.keys():
        raise RunError(f"{path}/{HISTORY} is of an older version: it has no {', '.join(sorted(missing))}. Train again")
    own = typed(attributes, _Attributes, f"{path}/{HISTORY}", RunError)
    fields: dict[str, Any] = {name: arrays.get(name) for name in Recorded._fields}
    recorded = Recorded(**(fields | {"classes": tuple(own["classes"]), "threshold": own["threshold"]}))
    _check_audit(recorded, f"{path}/{HISTORY}")
    return recorded


class _Attributes(TypedDict):
    """The attributes of pseudo_labels.zarr."""

    classes: list[str]
    threshold: float


def _check_audit(recorded: Recorded, where: str) -> None:
    """Raise RunError where the arrays of a history do not fit together."""
    n_classes, times = len(recorded.classes), len(np.atleast_1d(recorded.steps))
    pool = None if recorded.label is None else recorded.label.shape[-1]
    shapes: dict[str, tuple[int | None, ...]] = {
        "steps": (times,), "counts": (n_classes,), "groups": (n_classes,), "test_recall": (times, n_classes),
        "test_reliability": (times, 4, 16, 3), "label": (times, pool), "confidence": (times, pool), "truth": (pool,),
        "prior_u": (times, n_classes),
    }  # fmt: skip
    for name, shape in shapes.items():
        array = getattr(recorded, name)
        if array is not None and (array.shape != shape or array.dtype.kind not in "iuf" or not times):
            raise RunError(f"{where} is damaged: {name} is {array.dtype} {list(array.shape)}. Train the run again")


def read_tensors(folder: Path, name: str = HEAD) -> dict[str, Tensor]:
    """The tensors of a run, by the name of their file. Raises RunError where they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(require_regular(folder / name))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / name} cannot be read ({_line(error)}). Train the run again") from None


def read_rows(folder: Path, name: str) -> np.ndarray:
    """Rows of a run's splits or their ids, such as "seed0.test.ids". Raises RunError where they cannot be read."""
    try:
        with open(require_regular(folder / "rows.npz"), "rb") as file, np.load(file, allow_pickle=False) as stored:
            return np.asarray(stored[name])
    except Exception as error:  # numpy and zipfile raise errors of many types on a damaged file
        raise RunError(f"{folder / 'rows.npz'} cannot be read ({_line(error)}). Train the run again") from None


def _line(error: BaseException) -> str:
    """The first line of an error, or its type where it has none."""
    return str(getattr(error, "strerror", None) or error).strip().split("\n")[0] or type(error).__name__


def open_own_cache(folder: Path, config: Config, moved: str | None = None) -> Cache:
    """The cache that a run was trained from, or the one that `moved` names. Raises CacheError where it is not found."""
    if moved:
        return open_cache(moved)
    try:
        return open_cache(config.cache)
    except CacheError as error:
        stored = read_json(folder / "environment.json", dict[str, Any], RunError)
        if Path(str(stored.get("cache"))).is_dir():  # its whole path: that of the config may be relative
            return open_cache(str(stored["cache"]))
        raise CacheError(f"{error}. If the cache of {folder} has moved, name it with --cache") from None
