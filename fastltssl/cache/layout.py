"""The layout of a feature cache: its chunks, and its Contents, which is all it holds but the features.

Contents are checked before they are written, read back from disk, and compared when an extraction is resumed.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from jaxtyping import Int

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

SLAB = 64  # rows the encoder computes at once; chunks start at multiples of it
CHUNK_BYTES = 4 * 2**20  # of a feature chunk, at most
MIN_CHUNKS = 16  # of each view of a group, where it has the rows
TABLES = ("text", "projection", "ln_post")
TAPS = ("mid", "mlp")
VIEW = re.compile(r"(weak|strong)\d+", re.ASCII)
OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)", re.MULTILINE)  # ids that leave a folder
LEAVING = ("..", "\n/", "\n\\", ":/", ":\\")  # one of which is in the text of ids where one of them does
IMAGENET_TWICE = {"missile", "sunglasses"}  # names that CLIP's own list of ImageNet's 1,000 classes gives to two each
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
    """The contents of a cache. Raises CacheError where they do not fit together."""
    classes, taps, arrays, shapes = attributes["classes"], attributes.get("taps", ()), {}, {}
    _check_classes(classes)
    _require(bool(groups) and set(groups) <= set(GROUPS), f"groups are of {', '.join(GROUPS)}, got {list(groups)}")
    _require(width >= 1, f"the feature width must be at least 1, got {width}")
    is_known = set(taps) <= set(TAPS) and len(set(taps)) == len(taps)
    _require(is_known, f"taps are of {', '.join(TAPS)}, once each, got {short(list(taps))}")
    for name, table in tables.items():
        if table is not None:
            with np.errstate(over="ignore"):
                arrays[name] = np.ascontiguousarray(table, dtype="<f4")
            ndim = 3 if name == "text" else 2
            _require(arrays[name].ndim == ndim, f"{name} must have {ndim} axes, got {list(arrays[name].shape)}")
            _require(bool(np.isfinite(arrays[name]).all()), f"{name} holds values that are not finite in float32")
    shared = arrays["projection"].shape[1] if "projection" in arrays else width
    prompts = len(attributes["templates"]) or (arrays["text"].shape[1] if "text" in arrays else 0)
    wanted = {"text": (len(classes), prompts, shared), "projection": (width, shared), "ln_post": (2, width)}
    for name, table in arrays.items():
        _require(table.shape == wanted[name], f"{name} must be {list(wanted[name])}, got {list(table.shape)}")
    views: dict[str, list[str]] = {}
    from_list = str(attributes["provenance"].get("dataset", "")).startswith("list:")
    for name in sorted(groups, key=GROUPS.index):
        group = groups[name]
        ids = _check_group(name, group, len(classes), may_leave=from_list)
        views[name] = list(group.views)
        shapes[name] = (len(group.ids), len(group.views), width)
        arrays[f"{name}/labels"] = np.ascontiguousarray(group.labels, dtype="<i8")
        arrays[f"{name}/ids"] = np.frombuffer(ids, dtype=np.uint8)
    try:
        attributes = json.loads(json.dumps(attributes | {"views": views}, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CacheError(f"provenance, names and scales must be plain JSON values: {error}") from error
    return Contents(attributes, arrays, shapes)


def check_new_classes(classes: Sequence[str]) -> None:
    """Raise CacheError on class names that a new cache does not take, beside those that none takes.

    Those are names that look alike (spaces around them, or another Unicode form of the same letters), and names of more
    than one line. Control characters are taken: every place that shows a name shows them as codes.
    """
    _check_classes(classes)
    alike = [unicodedata.normalize("NFC", " ".join(name.split())) for name in classes]
    for label, name in enumerate(classes):
        is_line = len(name.splitlines()) == 1
        _require(is_line, f"class {label} is named {short(name)}, which is not one line. Rename the class")
    _require_unique(classes, alike, "but for spaces and the form of their letters are alike")


def _check_classes(classes: Sequence[str]) -> None:
    """Raise CacheError on class names that are absent, empty, not UTF-8, or given twice."""
    _require(bool(classes), "a cache needs class names, got none")
    for label, name in enumerate(classes):
        is_text = bool(name.strip()) and _is_utf8(name)
        _require(is_text, f"class {label} is named {short(name)}, which is empty or not UTF-8. Give every class a name")
    _require_unique(classes, classes, "are the same")


def _require_unique(classes: Sequence[str], keys: Sequence[str], how: str) -> None:
    if len(set(keys)) == len(keys):
        return
    twice = {key for key, count in Counter(keys).items() if count > 1}
    if len(classes) == 1000 and twice == IMAGENET_TWICE:
        return
    key = next(key for key in keys if key in twice)
    first, second, *_ = (label for label, other in enumerate(keys) if other == key)
    raise CacheError(
        f"the names of classes {first} and {second}, {short(classes[first])} and {short(classes[second])}, {how}"
        f"{f' ({len(twice)} names are given twice)' if len(twice) > 1 else ''}. Give every class a name of its own"
    )


def _check_group(name: str, group: GroupSpec, classes: int, *, may_leave: bool) -> bytes:
    """The ids as they are stored. Raises CacheError on ids, labels or views that no cache can hold.

    `may_leave` accepts ids that as paths lead out of a folder, as a list of files may name them.
    """
    n, labels, views = len(group.ids), np.asarray(group.labels), group.views
    _require(n > 0, f"group {name} has no rows; leave it out")
    repeated = n - len(set(group.ids))
    _require(not repeated, f"group {name}: ids must be unique, {repeated} are repeated")
    text = "\n".join(group.ids)
    if "" in group.ids or text.count("\n") != n - 1 or not _is_utf8(text):
        wrong = next(row_id for row_id in group.ids if not row_id or "\n" in row_id or not _is_utf8(row_id))
        raise CacheError(f"group {name}: id {wrong!r} is empty, holds a newline or is not UTF-8. Rename the file")
    is_suspect = text.startswith(("/", "\\")) or any(part in text for part in LEAVING)  # quicker than the pattern
    if not may_leave and is_suspect and (outside := OUTSIDE.search(text)):
        wrong = text[text.rfind("\n", 0, outside.end()) + 1 :].partition("\n")[0]
        raise CacheError(f"group {name}: id {short(wrong)} leads out of the folder of its images. Rename the file")
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
    return text.encode()


def _is_utf8(text: str) -> bool:
    """Whether a text holds no half of a character, as file names of other encodings do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require(is_right: bool, message: str) -> None:
    if not is_right:
        raise CacheError(message)


# ----------------------------------------------------------------------------------------- read from disk


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
    _require(set(attributes["views"]) <= set(GROUPS), f"zarr.json, views: groups are of {', '.join(GROUPS)}")
    groups: dict[str, GroupSpec] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, views in attributes["views"].items():
        try:
            ids = tuple(_read_array(path, f"{name}/ids", "uint8", 1).tobytes().decode().split("\n"))
        except UnicodeDecodeError as error:
            raise CacheError(f"{name}/ids: the text is not UTF-8 ({error.reason} at byte {error.start})") from None
        groups[name] = GroupSpec(ids, _read_array(path, f"{name}/labels", "int64", 1), tuple(views))
        shapes[name] = _shape(path, f"{name}/features", "float16", 3)
    _require(bool(shapes), "zarr.json, views: there is no group")
    contents = checked_contents(attributes, groups, next(iter(shapes.values()))[2], tables)
    for name, shape in contents.shapes.items():
        grids = {
            (_shape(path, f"{name}/{part}", "float16", 3), stored_rows(path, name, part)) for part in contents.parts
        }
        is_same = {stored for stored, _ in grids} == {shape} and len(grids) == 1
        _require(
            is_same, f"{name}: features and taps are {sorted(map(str, grids))}, not {list(shape)} as ids and views"
        )
    read = ["zarr.json", *(f"{name}/{part}/zarr.json" for name in shapes for part in contents.parts)]
    for name, array in contents.arrays.items():
        read += [f"{name}/zarr.json", "/".join((name, "c", *["0"] * array.ndim))]
    unnamed = [name for name in read if name not in files]
    _require(not unnamed, f"{MANIFEST}: its header does not name {', '.join(unnamed[:3])}")
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
    _require(is_right, f"{array}/zarr.json: {what}")
    return tuple(shape)


def _read_array(path: Path, array: str, data_type: str, axes: int) -> np.ndarray:
    """An array that is stored as one chunk, as all are but the features. Raises CacheError, OSError."""
    shape = _shape(path, array, data_type, axes)
    name = "/".join((array, "c", *["0"] * axes))
    kind, raw = np.dtype(data_type).newbyteorder("<"), read_regular(path / name)
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    _require(len(raw) == size, f"{name} has {len(raw)} bytes, not {size} as its shape {list(shape)} says")
    return np.frombuffer(raw, kind).reshape(shape).copy()


def stored_rows(path: Path, group: str, part: str = "features") -> int:
    """Rows of a feature chunk of a group on disk. Raises CacheError, OSError."""
    name = f"{group}/{part}"
    chunk = _metadata(path, f"{name}/zarr.json", _Array)["chunk_grid"]["configuration"]["chunk_shape"]
    width = _shape(path, name, "float16", 3)[2]
    is_right = len(chunk) == 3 and 0 < chunk[0] < 2**48 and chunk[1:] == [1, width]
    _require(is_right, f"{name}/zarr.json: chunks {short(chunk)} are not [rows, 1, {width}]")
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


def chunk_names(block: Block, rows: int, contents: Contents) -> list[str]:
    """Names of the files of a block of so many rows a chunk: of each part, those of its views."""
    _, views, _ = contents.shapes[block.group]
    return [
        f"{block.group}/{part}/c/{block.start // rows}/{view}/0" for part in contents.parts for view in range(views)
    ]


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
