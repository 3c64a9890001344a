"""The layout of a feature cache: its chunks, and its Contents, which is all it holds but the features.

Contents are checked before they are written, read back from disk, and compared when an extraction is resumed.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fastltssl.cache.manifest import FORMAT, GROUPS, MANIFEST, VERSION, Manifest, damaged, fault
from fastltssl.errors import CacheError

SLAB = 64  # rows the encoder computes at once; chunks start at multiples of it
CHUNK_BYTES = 4 * 2**20  # of a feature chunk, at most
MIN_CHUNKS = 16  # of each view of a group, where it has the rows
VIEW = re.compile(r"(weak|strong)\d+")
TEXT_TOLERANCE = 0.01  # relative norm of a difference (cosine .9999), as between devices and thread counts


class GroupSpec(NamedTuple):
    """The rows and views of a group to be written. Labels are int64, -1 = none; the first view is "center"."""

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    views: tuple[str, ...]


class Block(NamedTuple):
    """Rows start to stop (exclusive) of a group, which fill one chunk of every view."""

    group: str
    start: int
    stop: int


class Contents(NamedTuple):
    """Everything that a cache holds but the values of its features and taps."""

    attributes: dict[str, Any]
    arrays: dict[str, np.ndarray]  # path in the cache -> array, all but the features
    shapes: dict[str, tuple[int, int, int]]  # group -> shape [N V D] of its features, and of each tap

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the arrays of that shape: the features, then the taps."""
        return ("features", *self.attributes.get("taps", ()))


def chunk_rows(n: int, width: int) -> int:
    """Rows of a feature chunk: a multiple of SLAB of at most CHUNK_BYTES, fewer where that gives under MIN_CHUNKS."""
    largest = CHUNK_BYTES // (2 * width)
    return max(SLAB, min(largest, n // MIN_CHUNKS) // SLAB * SLAB)


def all_blocks(shapes: dict[str, tuple[int, int, int]], rows: dict[str, int]) -> list[Block]:
    """All blocks of a cache in the order in which they are committed; `rows` are those of a chunk of each group."""
    return [
        Block(name, start, min(start + rows[name], n))
        for name, (n, _, _) in shapes.items()
        for start in range(0, n, rows[name])
    ]


# ----------------------------------------------------------------------------------- checked, to be written


def checked_contents(
    attributes: dict[str, Any], groups: dict[str, GroupSpec], width: int, tables: dict[str, np.ndarray | None]
) -> Contents:
    """The contents of a cache to be written. Raises CacheError where they do not fit together."""
    classes, arrays, shapes = attributes["classes"], {}, {}
    _require(bool(classes), "a cache needs class names, got none")
    _require(bool(groups) and set(groups) <= set(GROUPS), f"groups are of {', '.join(GROUPS)}, got {list(groups)}")
    _require(width >= 1, f"the feature width must be at least 1, got {width}")
    for name, table in tables.items():
        if table is not None:
            arrays[name] = np.ascontiguousarray(table, dtype="<f4")
            ndim = 3 if name == "text" else 2
            _require(arrays[name].ndim == ndim, f"{name} must have {ndim} axes, got {list(arrays[name].shape)}")
            _require(bool(np.isfinite(arrays[name]).all()), f"{name} holds values that are not finite")
    shared = arrays["projection"].shape[1] if "projection" in arrays else width
    prompts = len(attributes["templates"]) or (arrays["text"].shape[1] if "text" in arrays else 0)
    wanted = {"text": (len(classes), prompts, shared), "projection": (width, shared), "ln_post": (2, width)}
    for name, table in arrays.items():
        _require(table.shape == wanted[name], f"{name} must be {list(wanted[name])}, got {list(table.shape)}")
    views: dict[str, list[str]] = {}
    for name in sorted(groups, key=GROUPS.index):
        group = groups[name]
        _check_group(name, group, len(classes))
        views[name] = list(group.views)
        shapes[name] = (len(group.ids), len(group.views), width)
        arrays[f"{name}/labels"] = np.ascontiguousarray(group.labels, dtype="<i8")
        arrays[f"{name}/ids"] = np.frombuffer("\n".join(group.ids).encode(), dtype=np.uint8)
    try:
        attributes = json.loads(json.dumps(attributes | {"views": views}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CacheError(f"provenance, names and scales must be plain JSON values: {error}") from error
    return Contents(attributes, arrays, shapes)


def _check_group(name: str, group: GroupSpec, classes: int) -> None:
    """Raise CacheError on ids, labels or views that no cache can hold."""
    n, labels, views = len(group.ids), np.asarray(group.labels), group.views
    _require(n > 0, f"group {name} has no rows; leave it out")
    repeated = n - len(set(group.ids))
    _require(not repeated, f"group {name}: ids must be unique, {repeated} are repeated")
    for row_id in group.ids:
        is_text = bool(row_id) and "\n" not in row_id and not any("\ud800" <= letter <= "\udfff" for letter in row_id)
        _require(is_text, f"group {name}: id {row_id!r} is empty, holds a newline or is not UTF-8. Rename the file")
    is_whole = labels.shape == (n,) and labels.dtype.kind in "iu"
    _require(is_whole, f"group {name}: labels must be {n} whole numbers, got {list(labels.shape)} {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    is_inside = low >= -1 and high < classes
    _require(is_inside, f"group {name}: labels run from {low} to {high}, accepted: -1 to {classes - 1}")
    is_proper = views[:1] == ("center",) and all(VIEW.fullmatch(view) for view in views[1:])
    _require(
        is_proper and len(set(views)) == len(views),
        f"group {name}: views must be center, then any of weak0, weak1, ..., strong0, ..., got {', '.join(views)}",
    )


def _require(is_right: bool, message: str) -> None:
    if not is_right:
        raise CacheError(message)


# ----------------------------------------------------------------------------------------- read from disk


def read_contents(path: Path) -> Contents:
    """The contents of a cache on disk, whose metadata must have been checked against the manifest."""
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    arrays = {name: _read_array(path / name) for name in ("text", "projection", "ln_post") if (path / name).is_dir()}
    shapes: dict[str, tuple[int, int, int]] = {}
    for name in attributes["views"]:
        arrays |= {f"{name}/{part}": _read_array(path / name / part) for part in ("labels", "ids")}
        n, views, width = json.loads((path / name / "features" / "zarr.json").read_text())["shape"]
        shapes[name] = (n, views, width)
    return Contents(attributes, arrays, shapes)


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
    stored = read_contents(path)
    rows = {name: stored_rows(path, name) for name in stored.shapes}
    listed = [Block(line["group"], line["start"], line["stop"]) for line in manifest.blocks]
    grid = all_blocks(stored.shapes, rows)
    if listed != grid if manifest.closing else not set(listed) <= set(grid) or len(set(listed)) < len(listed):
        raise damaged(path, f"{MANIFEST}: its blocks are not those of the rows, in order and once each")
    for line in manifest.blocks if with_chunks else ():
        size = 2 * rows[line["group"]] * stored.shapes[line["group"]][2]
        for name in line["files"]:
            stored_size = (path / name).stat().st_size if (path / name).is_file() else "no"
            if stored_size != size:
                raise damaged(path, f"{name} has {stored_size} bytes, not {size}")
    return stored


def _read_array(folder: Path) -> np.ndarray:
    """An array that is stored as one chunk, as all are but the features."""
    metadata = json.loads((folder / "zarr.json").read_text())
    file = folder.joinpath("c", *["0"] * len(metadata["shape"]))
    return np.fromfile(file, np.dtype(metadata["data_type"]).newbyteorder("<")).reshape(metadata["shape"])


def stored_rows(path: Path, group: str) -> int:
    """Rows of a feature chunk of a group on disk."""
    grid = json.loads((path / group / "features" / "zarr.json").read_text())["chunk_grid"]
    return grid["configuration"]["chunk_shape"][0]


def progress(stored: Contents, manifest: Manifest) -> tuple[int, int]:
    """Number of rows that are committed, and of all rows, over all groups."""
    done = sum(line["stop"] - line["start"] for line in manifest.blocks)
    return done, sum(shape[0] for shape in stored.shapes.values())


# --------------------------------------------------------------------------------------------- compared


def differences(stored: Contents, asked: Contents) -> list[str]:
    """One line per field that differs, with both values."""
    ours, theirs = _fields(asked), _fields(stored)
    names = [*theirs, *(name for name in ours if name not in theirs)]
    lines = [_difference(name, theirs.get(name), ours.get(name)) for name in names]
    return [line for line in lines if line]


def _fields(contents: Contents) -> dict[str, Any]:
    """Every value of the contents by a dotted name such as provenance.model."""
    fields: dict[str, Any] = {"width": next(iter(contents.shapes.values()))[2]}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)
        else:
            fields[name] = value

    for name, value in contents.attributes.items():
        add(name, value)
    for name, array in contents.arrays.items():
        is_ids = name.endswith("/ids")
        fields[name.replace("/", ".")] = array.tobytes().decode(errors="replace").split("\n") if is_ids else array
    return fields


def _difference(name: str, stored: Any, asked: Any) -> str | None:
    """The first difference between two values of a field, as text; None where they are equal."""
    if name == "text" and _is_close(stored, asked):
        return None
    if isinstance(stored, np.ndarray) and isinstance(asked, np.ndarray) and stored.shape == asked.shape:
        stored, asked = stored.ravel().tolist(), asked.ravel().tolist()
    if isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        unequal = [place for place in range(len(asked)) if stored[place] != asked[place]]
        return _difference(f"{name}[{unequal[0]}]", stored[unequal[0]], asked[unequal[0]]) if unequal else None
    is_same = not isinstance(stored, np.ndarray) and not isinstance(asked, np.ndarray) and stored == asked
    return None if is_same else f"{name} is {_short(stored)} there, {_short(asked)} is asked"


def _is_close(stored: Any, asked: Any) -> bool:
    """Whether text features differ by rounding alone, as they do between devices and thread counts."""
    if stored is None or asked is None or stored.shape != asked.shape:
        return False
    return float(np.linalg.norm(stored - asked)) <= TEXT_TOLERANCE * float(np.linalg.norm(asked))


def _short(value: Any) -> str:
    """A value for a message."""
    if value is None:
        return "absent"
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)}"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} entries"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-12:]}"
