"""Feature caches on disk: opened, verified, listed, found and removed. writer.py creates, reader.py reads features."""

import hashlib
import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float32

from fastltssl.cache.layout import Block
from fastltssl.cache.lock import acquire_lock, refuse_writing, release_lock
from fastltssl.cache.manifest import (
    GROUPS,
    MANIFEST,
    Manifest,
    clear,
    fault,
    files_of,
    is_cache,
    read_manifest,
    told,
    way_on,
)
from fastltssl.cache.reader import Group
from fastltssl.cache.stored import check_whole, progress, read_checked, stored_rows
from fastltssl.errors import CacheError, first_few

if TYPE_CHECKING:
    import fastltssl.cache.splits

MAKE_ONE = "Make one: fastltssl extract, or fastltssl cache import FILE"
SUMMARY = ("name", "state", "model", "dataset", "classes", "rows", "views", "width", "size_mib")


class Cache(NamedTuple):
    """An opened, complete cache. `attributes` are those of the root group, and "fingerprint"."""

    path: Path
    attributes: dict[str, Any]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    text: Float32[np.ndarray, "C T E"] | None
    projection: Float32[np.ndarray, "D E"] | None
    logit_scale: float
    logit_bias: float
    ln_post: Float32[np.ndarray, "2 D"] | None
    groups: dict[str, Group]

    def split(self, seed: SupportsIndex = 0, **switches: Any) -> "fastltssl.cache.splits.Split":
        """The rows that `train` takes with these options of a protocol (gamma_l for --gamma-l) and this seed.

        Raises SwitchError on an unknown option or value, SplitError where the cache holds too few rows.
        """
        from fastltssl.cache.splits import Protocol

        return self.split_of(Protocol.of(switches, "split"), operator.index(seed))

    def split_of(self, protocol: "fastltssl.cache.splits.Protocol", seed: int) -> "fastltssl.cache.splits.Split":
        """The split of one seed of a protocol. Raises SplitError where the cache holds too little."""
        from fastltssl.cache.splits import long_tailed  # it loads torch, which a look into a cache does without

        labels = {name: group.labels for name, group in self.groups.items()}
        return long_tailed(labels, len(self.classes), protocol, seed)


class Damage(NamedTuple):
    """A file that is not as the manifest says, and the rows of a group that it holds, where it holds some."""

    file: str
    group: str | None
    start: int | None
    stop: int | None
    why: str


def open_cache(path: str | Path) -> Cache:
    """A complete cache, checked against its manifest but for the contents of the chunks, which `verify` reads.

    A bare name is looked for in the cache folder, too. Raises CacheError where it is absent, damaged or incomplete.
    """
    path = find_cache(path)
    manifest = read_manifest(path)
    stored = read_checked(path, manifest)
    if manifest.closing is None:
        done, rows = progress(stored, manifest)
        raise CacheError(f"{path} is not complete: {done} of {rows} rows. Finish it with {way_on(path)}")
    attributes, arrays, taps = stored.attributes, stored.arrays, stored.parts[1:]
    groups: dict[str, Group] = {}
    for name, shape in stored.shapes.items():
        ids = tuple(arrays[f"{name}/ids"].tobytes().decode().split("\n"))
        views = tuple(attributes["views"][name])
        broken = broken_rows(manifest, name)
        kept = np.setdiff1d(np.arange(shape[0]), broken)
        ids, labels = tuple(ids[row] for row in kept) if broken else ids, arrays[f"{name}/labels"][kept]
        groups[name] = Group(
            path=path / name,
            name=name,
            ids=ids,
            labels=labels,
            views=views,
            shape=(len(kept), *shape[1:]),
            broken=broken,
            taps=taps,
            chunk_rows=stored_rows(path, name),
            digests={
                file: digest
                for line in manifest.blocks
                if line["group"] == name
                for file, digest in line["files"].items()
            },
        )
    return Cache(
        path=path,
        attributes=attributes | {"fingerprint": _fingerprint(attributes, manifest.closing)},
        classes=tuple(attributes["classes"]),
        templates=tuple(attributes["templates"]),
        text=arrays.get("text"),
        projection=arrays.get("projection"),
        logit_scale=attributes["logit_scale"],
        logit_bias=attributes["logit_bias"],
        ln_post=arrays.get("ln_post"),
        groups=groups,
    )


def broken_rows(manifest: Manifest, group: str) -> tuple[int, ...]:
    """Stored rows of a group whose image could not be read, ascending."""
    return tuple(row for line in manifest.blocks if line["group"] == group for row in line.get("broken", ()))


def fingerprint(cache: Cache) -> str:
    """A short hash, in hex, of the provenance and of the hashes of all files; every run stores that of its cache."""
    return cache.attributes["fingerprint"]


def _fingerprint(attributes: dict[str, Any], closing: dict[str, Any]) -> str:
    parts = json.dumps([attributes["provenance"], closing], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------- verify, list, find


def verify(path: str | Path) -> list[Damage]:
    """Files that are missing, changed or not part of the cache, and faults of the manifest. Reads every file."""
    path = find_cache(path)
    refuse_writing(path)
    manifest = read_manifest(path)
    damages = [Damage(MANIFEST, None, None, None, why) for why in manifest.faults]
    digests: dict[str, str] = {}
    rows: dict[str, Block] = {}
    for line in manifest.blocks:
        digests |= line["files"]
        rows |= dict.fromkeys(line["files"], Block(line["group"], line["start"], line["stop"]))
    for outer in (manifest.header, manifest.closing):
        digests |= outer["files"] if outer else {}
    if manifest.closing is None:
        damages.append(Damage(MANIFEST, None, None, None, "no closing line: incomplete"))  # way_on says how to go on
    for name in sorted(digests):
        if why := fault(path / name, digests[name]):
            damages.append(Damage(name, *rows[name], why) if name in rows else _file_damage(name, why))
    damages += [_file_damage(name, "not in the manifest") for name in files_of(path) if name not in digests]
    if manifest.header and not manifest.faults and not any(d.file in manifest.header["files"] for d in damages):
        try:
            check_whole(path, manifest, with_chunks=not damages)
        except CacheError as error:
            damages.append(Damage(MANIFEST, None, None, None, str(error)))
    return damages


def _file_damage(name: str, why: str) -> Damage:
    """The damage of a file that is no chunk."""
    group = name.partition("/")[0]
    return Damage(name, group if group in GROUPS else None, None, None, why)


def info(path: str | Path) -> dict[str, Any]:
    """Attributes, shapes, size in MiB and state of a cache, which may be incomplete. Raises CacheError on damage."""
    path = find_cache(path)
    manifest = read_manifest(path)
    summary: dict[str, Any] = {"path": str(path), "is_complete": manifest.closing is not None and not manifest.faults}
    summary["size_mib"] = round(sum((path / name).lstat().st_size for name in files_of(path)) / 2**20, 2)
    if manifest.header is None:
        return summary | {"faults": manifest.faults}
    stored = read_checked(path, manifest)
    summary["groups"] = {}
    for name, (n, views, width) in stored.shapes.items():
        done = sum(line["stop"] - line["start"] for line in manifest.blocks if line["group"] == name)
        rows: dict[str, int] = {"rows": n, "rows_done": done, "chunk_rows": stored_rows(path, name)}
        rows |= {"broken": len(broken_rows(manifest, name))} if broken_rows(manifest, name) else {}
        summary["groups"][name] = rows | {"views": views, "width": width}
    summary["arrays"] = {name: list(array.shape) for name, array in stored.arrays.items() if "/" not in name}
    summary["fingerprint"] = _fingerprint(stored.attributes, manifest.closing) if manifest.closing else None
    return summary | {"faults": manifest.faults} | stored.attributes


def cache_folder() -> Path:
    """The folder of caches: FASTLTSSL_CACHE, or ./cache."""
    return Path(os.environ.get("FASTLTSSL_CACHE") or "cache")


def places(name: str | Path) -> tuple[Path, ...]:
    """Where a cache of that name may be: the path itself and, for a bare name, in the cache folder."""
    given, folder = Path(name), cache_folder()
    is_bare = len(given.parts) == 1 and given.name == str(name)
    return (given, folder / given, folder / f"{given}.zarr") if is_bare else (given,)


def find_cache(name: str | Path) -> Path:
    """The path of a cache, given by its path or by its bare name in the cache folder, with or without ".zarr"."""
    given, folder = Path(name), cache_folder()
    if path := next(filter(is_cache, places(name)), None):
        return path
    if os.path.lexists(given):
        raise CacheError(f"{given} is not a fastltssl cache. {MAKE_ONE}")
    there = ", ".join(path.name for path in _caches(folder)) or "none"
    raise CacheError(f"no cache {str(name)!r}. Caches in {folder}: {there}. {MAKE_ONE}")


def list_caches(folder: str | Path) -> list[dict[str, Any]]:
    """One summary per cache in a folder, damaged and incomplete ones included."""
    return [_summary(path) for path in _caches(Path(folder))]


def _caches(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.is_dir() and is_cache(path))


def _summary(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SUMMARY)
    row["name"] = path.name
    try:
        details = info(path)
    except CacheError:
        return row | {"state": "damaged"}
    row["size_mib"] = details["size_mib"]
    if "groups" not in details:
        return row | {"state": "not begun"}
    groups, provenance = details["groups"], details["provenance"]
    done, total = (sum(group[part] for group in groups.values()) for part in ("rows_done", "rows"))
    return row | {
        "state": "complete" if details["is_complete"] else f"{done}/{total} rows",
        "model": provenance.get("model"),
        "dataset": provenance.get("dataset"),
        "classes": len(details["classes"]),
        "rows": " + ".join(f"{group['rows']} {name}" for name, group in groups.items()),
        "views": max(group["views"] for group in groups.values()),
        "width": next(iter(groups.values()))["width"],
    }


def remove(path: str | Path) -> None:
    """Delete a cache that no process is writing. Raises CacheError where its folder holds other files, which stay.

    Of a link to a cache the link alone is removed.
    """
    path = find_cache(path)
    with told(path, "it cannot be removed"):
        if path.is_symlink():
            path.unlink()
            return
        acquire_lock(path, [])
        try:
            kept = clear(path)
        finally:
            release_lock(path)
        if not kept and not any(path.iterdir()):
            path.rmdir()
            return
    names = first_few(kept or [child.name for child in path.iterdir()])
    raise CacheError(f"{path}: the cache is removed, but these were not part of it and stay: {names}")
