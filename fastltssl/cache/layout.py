"""The layout of a feature cache: its chunks, and its Contents, which is all it holds but the features.

Contents are checked before they are written and when they are read (stored.py), and compared when an extraction is
resumed.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fastltssl.cache.manifest import (
    GROUPS,
)
from fastltssl.errors import CacheError
from fastltssl.reading import is_utf8, short

SLAB = 64  # rows the encoder computes at once; chunks start at multiples of it
CHUNK_BYTES = 4 * 2**20  # of a feature chunk, at most
MIN_CHUNKS = 16  # of each view of a group, where it has the rows
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


def chunk_names(block: Block, rows: int, contents: Contents) -> list[str]:
    """Names of the files of a block of so many rows a chunk: of each part, those of its views."""
    _, views, _ = contents.shapes[block.group]
    return [
        f"{block.group}/{part}/c/{block.start // rows}/{view}/0" for part in contents.parts for view in range(views)
    ]


# ----------------------------------------------------------------------------------- checked, to be written


def checked_contents(
    attributes: dict[str, Any], groups: dict[str, GroupSpec], width: int, tables: dict[str, np.ndarray | None]
) -> Contents:
    """The contents of a cache. Raises CacheError where they do not fit together."""
    classes, taps, arrays, shapes = attributes["classes"], attributes.get("taps", ()), {}, {}
    _check_classes(classes)
    require(bool(groups) and set(groups) <= set(GROUPS), f"groups are of {', '.join(GROUPS)}, got {list(groups)}")
    require(width >= 1, f"the feature width must be at least 1, got {width}")
    is_known = set(taps) <= set(TAPS) and len(set(taps)) == len(taps)
    require(is_known, f"taps are of {', '.join(TAPS)}, once each, got {short(list(taps))}")
    for name, table in tables.items():
        if table is not None:
            with np.errstate(over="ignore"):
                arrays[name] = np.ascontiguousarray(table, dtype="<f4")
            ndim = 3 if name == "text" else 2
            require(arrays[name].ndim == ndim, f"{name} must have {ndim} axes, got {list(arrays[name].shape)}")
            require(bool(np.isfinite(arrays[name]).all()), f"{name} holds values that are not finite in float32")
    shared = arrays["projection"].shape[1] if "projection" in arrays else width
    prompts = len(attributes["templates"]) or (arrays["text"].shape[1] if "text" in arrays else 0)
    wanted = {"text": (len(classes), prompts, shared), "projection": (width, shared), "ln_post": (2, width)}
    for name, table in arrays.items():
        require(table.shape == wanted[name], f"{name} must be {list(wanted[name])}, got {list(table.shape)}")
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
        require(is_line, f"class {label} is named {short(name)}, which is not one line. Rename the class")
    _require_unique(classes, alike, "but for spaces and the form of their letters are alike")


def _check_classes(classes: Sequence[str]) -> None:
    """Raise CacheError on class names that are absent, empty, not UTF-8, or given twice."""
    require(bool(classes), "a cache needs class names, got none")
    for label, name in enumerate(classes):
        is_text = bool(name.strip()) and is_utf8(name)
        require(is_text, f"class {label} is named {short(name)}, which is empty or not UTF-8. Give every class a name")
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
    require(n > 0, f"group {name} has no rows; leave it out")
    repeated = n - len(set(group.ids))
    require(not repeated, f"group {name}: ids must be unique, {repeated} are repeated")
    text = "\n".join(group.ids)
    if "" in group.ids or text.count("\n") != n - 1 or not is_utf8(text):
        wrong = next(row_id for row_id in group.ids if not row_id or "\n" in row_id or not is_utf8(row_id))
        raise CacheError(f"group {name}: id {wrong!r} is empty, holds a newline or is not UTF-8. Rename the file")
    is_suspect = text.startswith(("/", "\\")) or any(part in text for part in LEAVING)  # quicker than the pattern
    if not may_leave and is_suspect and (outside := OUTSIDE.search(text)):
        wrong = text[text.rfind("\n", 0, outside.end()) + 1 :].partition("\n")[0]
        raise CacheError(f"group {name}: id {short(wrong)} leads out of the folder of its images. Rename the file")
    is_whole = labels.shape == (n,) and labels.dtype.kind in "iu"
    require(is_whole, f"group {name}: labels must be {n} whole numbers, got {list(labels.shape)} {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    is_inside = low >= -1 and high < classes
    require(is_inside, f"group {name}: labels run from {low} to {high}, accepted: -1 to {classes - 1}")
    is_proper = views[:1] == ("center",) and all(VIEW.fullmatch(view) for view in views[1:])
    require(
        is_proper and len(set(views)) == len(views),
        f"group {name}: views must be center, then any of weak0, weak1, ..., strong0, ..., got {', '.join(views)}",
    )
    return text.encode()


def require(is_right: bool, message: str) -> None:
    """Raise CacheError with the message unless something is right."""
    if not is_right:
        raise CacheError(message)


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
