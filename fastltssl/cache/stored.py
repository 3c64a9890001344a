"""A cache on disk, read without its features and checked: what its files hold must fit together and to the manifest."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from fastltssl.cache.layout import Block, Contents, GroupSpec, all_blocks, checked_contents, chunk_names, require
from fastltssl.cache.manifest import (
    FORMAT,
    GROUPS,
    MANIFEST,
    VERSION,
    Manifest,
    damaged,
    fault,
    read_manifest,
    read_regular,
    told,
)
from fastltssl.errors import CacheError
from fastltssl.reading import parse_json, short

TABLES = ("text", "projection", "ln_post")


class _Attributes(TypedDict):
    """Attributes of the root that are read; others are kept as they are."""

    fastltssl_cache: int
    provenance: dict[str, Any]
    classes: list[str]
    templates: list[str]
    logit_scale: float
    logit_bias: float
    views: dict[str, list[str]]
    taps: NotRequired[list[str]]


class _Root(TypedDict):
    attributes: _Attributes


class _Chunk(TypedDict):
    chunk_shape: list[int]


class _Grid(TypedDict):
    configuration: _Chunk


class _Array(TypedDict):
    """What is read of the zarr.json of an array."""

    shape: list[int]
    data_type: str
    chunk_grid: _Grid


def read_contents(path: Path, manifest: Manifest | None = None) -> Contents:
    """The contents of a cache on disk, whose metadata must match their hashes in the manifest.

    Raises CacheDamaged where they do not fit together, or are not what a cache holds.
    """
    header = (manifest or read_manifest(path)).header
    try:
        return _contents(path, header["files"] if header else {})
    except CacheError as error:
        raise damaged(path, str(error)) from error


def _contents(path: Path, files: dict[str, str]) -> Contents:
    """The contents of a cache whose header names these files. Raises CacheError."""
    with told(path, "it cannot be read"):
        return _read_all(path, files)


def _read_all(path: Path, files: dict[str, str]) -> Contents:
    root = parse_json(read_regular(path / "zarr.json"), dict[str, Any], "zarr.json", CacheError)
    attributes = (root.get("attributes") or {}) | _metadata(path, "zarr.json", _Root)["attributes"]
    tables: dict[str, np.ndarray | None] = {
        name: _read_array(path, name, "float32", 3 if name == "text" else 2)
        for name in TABLES
        if f"{name}/zarr.json" in files
    }
    require(set(attributes["views"]) <= set(GROUPS), f"zarr.json, views: groups are of {', '.join(GROUPS)}")
    groups: dict[str, GroupSpec] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, views in attributes["views"].items():
        try:
            ids = tuple(_read_array(path, f"{name}/ids", "uint8", 1).tobytes().decode().split("\n"))
        except UnicodeDecodeError as error:
            raise CacheError(f"{name}/ids: the text is not UTF-8 ({error.reason} at byte {error.start})") from None
        groups[name] = GroupSpec(ids, _read_array(path, f"{name}/labels", "int64", 1), tuple(views))
        shapes[name] = _shape(path, f"{name}/features", "float16", 3)
    require(bool(shapes), "zarr.json, views: there is no group")
    contents = checked_contents(attributes, groups, next(iter(shapes.values()))[2], tables)
    for name, shape in contents.shapes.items():
        grids = {
            (_shape(path, f"{name}/{part}", "float16", 3), stored_rows(path, name, part)) for part in contents.parts
        }
        is_same = {stored for stored, _ in grids} == {shape} and len(grids) == 1
        require(is_same, f"{name}: features and taps are {sorted(map(str, grids))}, not {list(shape)} as ids and views")
    read = ["zarr.json", *(f"{name}/{part}/zarr.json" for name in shapes for part in contents.parts)]
    for name, array in contents.arrays.items():
        read += [f"{name}/zarr.json", "/".join((name, "c", *["0"] * array.ndim))]
    unnamed = [name for name in read if name not in files]
    require(not unnamed, f"{MANIFEST}: its header does not name {', '.join(unnamed[:3])}")
    return contents


def _metadata(path: Path, name: str, kind: Any) -> Any:
    """A zarr.json of a cache, by its path below the cache, as a value of a type. Raises CacheError, OSError."""
    return parse_json(read_regular(path / name), kind, name, CacheError)


def _shape(path: Path, array: str, data_type: str, axes: int) -> tuple[int, ...]:
    """The shape of an array of that type and so many axes. Raises CacheError where it is another."""
    metadata = _metadata(path, f"{array}/zarr.json", _Array)
    shape, kind = metadata["shape"], metadata["data_type"]
    is_right = kind == data_type and len(shape) == axes and all(0 < size < 2**48 for size in shape)
    what = f"{short(shape)} {short(kind)} is not the shape of an array of {axes} axes and {data_type}"
    require(is_right, f"{array}/zarr.json: {what}")
    return tuple(shape)


def _read_array(path: Path, array: str, data_type: str, axes: int) -> np.ndarray:
    """An array that is stored as one chunk, as all are but the features. Raises CacheError, OSError."""
    shape = _shape(path, array, data_type, axes)
    name = "/".join((array, "c", *["0"] * axes))
    kind, raw = np.dtype(data_type).newbyteorder("<"), read_regular(path / name)
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    require(len(raw) == size, f"{name} has {len(raw)} bytes, not {size} as its shape {list(shape)} says")
    return np.frombuffer(raw, kind).reshape(shape).copy()


def stored_rows(path: Path, group: str, part: str = "features") -> int:
    """Rows of a feature chunk of a group on disk. Raises CacheError, OSError."""
    name = f"{group}/{part}"
    chunk = _metadata(path, f"{name}/zarr.json", _Array)["chunk_grid"]["configuration"]["chunk_shape"]
    width = _shape(path, name, "float16", 3)[2]
    is_right = len(chunk) == 3 and 0 < chunk[0] < 2**48 and chunk[1:] == [1, width]
    require(is_right, f"{name}/zarr.json: chunks {short(chunk)} are not [rows, 1, {width}]")
    return chunk[0]


def read_checked(path: Path, manifest: Manifest, *, with_chunks: bool = True) -> Contents:
    """The contents of a cache on disk, checked: hashes of the metadata, blocks of the manifest, sizes of the chunks.

    Raises CacheError. Without `with_chunks` the chunks are not looked at: a resumed extraction repairs damaged ones.
    """
    if manifest.header and manifest.header[FORMAT] != VERSION:
        raise CacheError(f"{path} has {manifest.faults[0]}")
    if manifest.header is None or (manifest.faults and not manifest.is_torn):
        raise damaged(path, f"{MANIFEST}: {manifest.faults[0]}")
    for name, digest in manifest.header["files"].items():
        if why := fault(path / name, digest):
            raise damaged(path, f"{name}: {why}")
    try:
        return check_whole(path, manifest, with_chunks=with_chunks)
    except CacheError as error:
        raise damaged(path, str(error)) from error


def check_whole(path: Path, manifest: Manifest, *, with_chunks: bool = False) -> Contents:
    """The contents of a cache whose manifest is without a fault and whose metadata are as it says.

    Raises CacheError where what the lines of the manifest name is not what such contents consist of.
    """
    stored = _contents(path, manifest.header["files"] if manifest.header else {})
    rows = {name: stored_rows(path, name) for name in stored.shapes}
    listed = [Block(line["group"], line["start"], line["stop"]) for line in manifest.blocks]
    grid = all_blocks(stored.shapes, rows)
    if listed != grid if manifest.closing else not set(listed) <= set(grid) or len(set(listed)) < len(listed):
        raise CacheError(f"{MANIFEST}: its blocks are not those of the rows, in order and once each")
    names = set(manifest.header["files"]) if manifest.header else set()
    for block, line in zip(listed, manifest.blocks, strict=True):
        if set(line["files"]) != set(chunk_names(block, rows[block.group], stored)):
            raise CacheError(
                f"{MANIFEST}: {block.group} rows {block.start} to {block.stop} name other files than theirs"
            )
        names |= set(line["files"])
    if manifest.closing and set(manifest.closing["files"]) != names:
        raise CacheError(f"{MANIFEST}: its closing line does not name the files of the other lines")
    for line in manifest.blocks if with_chunks else ():
        size = 2 * rows[line["group"]] * stored.shapes[line["group"]][2]
        for name in line["files"]:
            stored_size = (path / name).stat().st_size if (path / name).is_file() else "no"
            if stored_size != size:
                raise CacheError(f"{name} has {stored_size} bytes, not {size}")
    return stored


def progress(stored: Contents, manifest: Manifest) -> tuple[int, int]:
    """Number of rows that are committed, and of all rows, over all groups."""
    done = sum(line["stop"] - line["start"] for line in manifest.blocks)
    return done, sum(shape[0] for shape in stored.shapes.values())
