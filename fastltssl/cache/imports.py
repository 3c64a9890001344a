"""Caches made from features that were computed elsewhere, with emulated views where they are asked for.

An emulated view takes the place of augmented images, which were not encoded. With x the feature at unit norm, weak is
normalise(x + noise e) and strong is normalise(drop(x + noise e)), where e ~ N(0, I/D) and `drop` sets each coordinate
to zero with a given probability. Their recipes say "emulated", so fingerprint and tables tell them from real views.
"""

import hashlib
import json
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fastltssl.cache.emulated import Noise, emulated, parse_emulate, storable, unit
from fastltssl.cache.layout import GroupSpec, check_new_classes
from fastltssl.cache.manifest import IMPORTED
from fastltssl.cache.writer import create
from fastltssl.errors import CacheError, first_few
from fastltssl.reading import short

UNREADABLE = (  # errors of numpy, zipfile, safetensors and pyarrow on files that are damaged or of another kind
    OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, ArithmeticError, MemoryError, SyntaxError,
    AttributeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
SPACES = ("embedding", "pre")
PART = 8192  # rows checked at once
LAYOUTS = ("ctd", "tcd")


def import_file(
    file: str | Path,
    out: str | Path,
    *,
    features: str,
    labels: str,
    text: str | None = None,
    classes: str | None = None,
    test_features: str | None = None,
    test_labels: str | None = None,
    projection: str | None = None,
    **options: Any,
) -> str:
    """Import the named arrays of a .npz, .npy, .safetensors or .parquet file, with the options of import_features."""
    keys = {
        "features": features,
        "labels": labels,
        "text": text,
        "classes": classes,
        "test_features": test_features,
        "test_labels": test_labels,
        "projection": projection,
    }
    loaded = load_arrays(file, [key for key in keys.values() if key is not None])
    arrays: dict[str, Any] = {name: None if key is None else loaded[key] for name, key in keys.items()}
    name = Path(file).name.encode(errors="backslashreplace").decode()
    return import_features(out, **arrays, source_name=name, **options)


def load_arrays(file: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The named arrays of a file, or columns of a .parquet file. Pickled objects are refused.

    A key of a .npy file names a .npy file in the same folder. A key of a .parquet file is a column of it, a .npy file
    in the same folder, or OTHER.parquet:COLUMN, a column of another file there.
    """
    file = Path(file)
    suffix = file.suffix.lower()
    if suffix not in LOADERS:
        raise CacheError(f"{file.name} cannot be imported; accepted: {', '.join(LOADERS)}. Save it with numpy.savez")
    if not file.is_file():
        raise CacheError(f"{file} {'is no regular file' if file.exists() else 'is not there'}")
    try:
        return LOADERS[suffix](file, list(dict.fromkeys(keys)))
    except CacheError:
        raise
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise CacheError(
            f"{file.name} cannot be read: {reason}. Objects and bfloat16 must be saved as numbers"
        ) from error


def _load_npz(file: Path, keys: list[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        _refuse_twice(file, keys, [name.removesuffix(".npy") for name in archive.namelist()])
    with np.load(file, allow_pickle=False) as arrays:
        _require_keys(file, keys, arrays.files)
        return {key: arrays[key] for key in keys}


def _load_npy(file: Path, keys: list[str]) -> dict[str, np.ndarray]:
    beside = sorted(other.stem for other in file.parent.glob("*.npy"))
    _require_keys(file, [key.removesuffix(".npy") for key in keys], beside)
    return {
        key: np.load(file.with_name(key.removesuffix(".npy") + ".npy"), mmap_mode="r", allow_pickle=False)
        for key in keys
    }


def _load_safetensors(file: Path, keys: list[str]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as arrays:
            _require_keys(file, keys, arrays.keys())
            return {key: arrays.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(error) from error


def _load_parquet(file: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Columns of numbers, texts or lists of equal length, and arrays of other files as load_arrays says."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise CacheError(f"{file.name} needs pyarrow to be read: pip install 'fastltssl[data]'") from None
    arrays: dict[str, np.ndarray] = {}
    try:
        columns = parquet.read_schema(file).names
        _refuse_twice(file, keys, columns)
        for key in keys:
            other, colon, column = key.rpartition(":")
            if key in columns:
                arrays[key] = _column(file, key, parquet.read_table(file, columns=[key])[key])
            elif colon and other.endswith(".parquet"):
                arrays[key] = _load_parquet(file.with_name(other), [column])[column]
            else:
                beside = [other.stem for other in sorted(file.parent.glob("*.npy"))]
                _require_keys(file, [key.removesuffix(".npy")], [*columns, *beside])
                arrays |= _load_npy(file, [key])
    except ArrowException as error:
        raise ValueError(error) from error
    return arrays


def _column(file: Path, name: str, column: Any) -> np.ndarray:
    """A column of a table as an array [N], or [N D] where it holds lists."""
    if column.null_count:
        raise CacheError(f"{file.name}: column {name!r} has {column.null_count} empty cells. Fill or drop these rows")
    column = column.combine_chunks()
    if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
        return column.to_numpy(zero_copy_only=False)
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False)) if len(column) else np.zeros(1, int)
    if len(lengths) > 1:
        raise CacheError(
            f"{file.name}: column {name!r} holds lists of {lengths[0]} to {lengths[-1]} numbers, not of one"
        )
    values = column.flatten()
    if values.null_count:
        raise CacheError(f"{file.name}: column {name!r} has {values.null_count} empty numbers in its lists")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), int(lengths[0]))


LOADERS = {".npz": _load_npz, ".npy": _load_npy, ".safetensors": _load_safetensors, ".parquet": _load_parquet}


def _refuse_twice(file: Path, keys: list[str], present: Sequence[str]) -> None:
    """Raise CacheError where a key names two arrays of the file."""
    if twice := [key for key, count in Counter(present).items() if count > 1 and key in keys]:
        raise CacheError(f"{file.name} holds two arrays {twice[0]!r}. Give each array a name of its own")


def _require_keys(file: Path, keys: list[str], present: Sequence[str]) -> None:
    for key in keys:
        if key not in present:
            raise CacheError(f"{file.name} has no array {key!r}; it has {', '.join(present) or 'none'}")


def import_features(
    out: str | Path,
    *,
    features: np.ndarray,
    labels: np.ndarray,
    text: np.ndarray | None = None,
    classes: Sequence[str] | np.ndarray | None = None,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    projection: np.ndarray | None = None,
    logit_scale: float = 100.0,
    text_layout: str = "ctd",
    space: str = "embedding",
    emulate: str | None = None,
    seed: int = 0,
    source_name: str = "arrays",
    overwrite: bool = False,
) -> str:
    """Write a cache of these arrays; returns one line that says what it holds. Raises CacheError on unfit arrays.

    features [N D], labels [N], projection [D E] in space "pre"; text [C E], [C T E], or [T C E] with layout "tcd".
    The center view keeps the features as given; emulated views, of the train group only, have unit norm.
    """
    _check_options(space, text_layout, logit_scale, has_projection=projection is not None)
    if (test_features is None) != (test_labels is None):
        raise CacheError("a test group needs both --test-features KEY and --test-labels KEY")
    given = {"train": (features, labels)}
    if test_features is not None and test_labels is not None:
        given["test"] = (test_features, test_labels)
    for name, (x, y) in given.items():
        _check_rows(name, x, y, features.shape[-1] if name == "test" else None)
    prompts = None if text is None else _prompts(text, text_layout)
    given_labels = {name: y for name, (_, y) in given.items()}
    names = _class_names(classes, prompts, list(given_labels.values()))
    check_new_classes(names)
    _check_labels(given_labels, names)
    recipes = parse_emulate(emulate)
    views = {"train": ("center", *(recipe.view for recipe in recipes)), "test": ("center",)}
    with create(
        out,
        provenance=_provenance(source_name, given, space, recipes, seed),
        classes=names,
        groups={name: GroupSpec(_ids(name, len(x)), y.astype(np.int64), views[name]) for name, (x, y) in given.items()},
        width=features.shape[1],
        text=prompts,
        projection=projection,
        logit_scale=logit_scale,
        overwrite=overwrite,
    ) as writer:
        for block in writer.pending():
            x = storable(np.asarray(given[block.group][0][block.start : block.stop]))
            asked = recipes if block.group == "train" else ()
            noisy = [emulated(x, recipe, seed=seed, group=block.group, start=block.start) for recipe in asked]
            writer.commit(block, np.stack([x, *noisy], axis=1))
        writer.close()
    rows = " + ".join(f"{len(x):,} {name}" for name, (x, _) in given.items())
    count = "no text" if prompts is None else f"text of {prompts.shape[1]} prompts"
    summary = f"{rows} rows, {len(views['train'])} views, {features.shape[1]} wide, {len(names)} classes, {count}"
    return "\n".join([summary, *_notes(given_labels, names)])


def _check_options(space: str, text_layout: str, logit_scale: float, *, has_projection: bool) -> None:
    """Raise CacheError on a value that an option does not accept."""
    for name, value, accepted in (("space", space, SPACES), ("text layout", text_layout, LAYOUTS)):
        if value not in accepted:
            raise CacheError(f"{name} {value!r} is not one of {', '.join(accepted)}")
    if not 0 < logit_scale < float("inf"):
        raise CacheError(f"--logit-scale {logit_scale} is not above 0; CLIP's is 100")
    if (space == "pre") != has_projection:
        raise CacheError("features before the projection need --space pre and --projection KEY, both or neither")


def _check_rows(group: str, x: np.ndarray, y: np.ndarray, width: int | None) -> None:
    """Raise CacheError on features or labels that no cache can hold."""
    got = f"got {x.dtype} {list(x.shape)}"
    if x.ndim != 2 or x.dtype.kind != "f" or x.dtype.itemsize > 8 or not x.size:
        raise CacheError(f"{group} features must be floating-point numbers [N, D], {got}; 16, 32 or 64 bits each")
    if width is not None and x.shape[1] != width:
        raise CacheError(f"{group} features must be {width} wide as the train features are, {got}")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        got = f"got {y.dtype} {list(y.shape)}{f', such as {short(y.flat[0])}' if y.size else ''}"
        raise CacheError(
            f"{group} labels must be {len(x)} whole numbers, {got}. Number the classes from 0 and save the labels as "
            "integers; class names are given with --classes"
        )
    # In parts, so that a large array is never copied as a whole.
    parts = [np.abs(x[start : start + PART]).max(axis=1) for start in range(0, len(x), PART)]
    largest = np.concatenate(parts).astype(np.float64)
    rejected = {
        "hold values that are not finite": ~np.isfinite(largest),
        "are all zeros, which have no direction": largest == 0,
    }
    for why, rows in rejected.items():
        if rows.any():
            named = ", ".join(map(str, np.flatnonzero(rows)[:5]))
            raise CacheError(f"{group} features: {int(rows.sum())} rows {why} (rows {named})")


def _prompts(text: np.ndarray, layout: str) -> Float32[np.ndarray, "C T E"]:
    """Text features with unit norm for every prompt."""
    is_real = text.dtype.kind == "f" and text.dtype.itemsize <= 8
    if text.ndim not in (2, 3) or not is_real or not np.isfinite(text).all():
        raise CacheError(
            "text must be finite floating-point numbers [C, E], [C, T, E], or [T, C, E] with --text-layout tcd, "
            f"got {text.dtype} {list(text.shape)}"
        )
    prompts = text[:, None] if text.ndim == 2 else text if layout == "ctd" else text.transpose(1, 0, 2)
    if not prompts.any(axis=-1).all():
        raise CacheError("text holds rows of zeros, which have no direction")
    return unit(prompts)


def _check_labels(labels: dict[str, np.ndarray], names: list[str]) -> None:
    """Raise CacheError on labels that are no numbers of these classes."""
    for group, y in labels.items():
        low, high = int(y.min()), int(y.max())
        if low < -1 or high >= len(names):
            hint = ". Are they numbered from 1? Then subtract 1" if (low, high) == (1, len(names)) else ""
            raise CacheError(
                f"{group} labels run from {low} to {high}; accepted for {len(names)} classes: 0 to {len(names) - 1}, "
                f"or -1 for none{hint}"
            )


def _notes(labels: dict[str, np.ndarray], names: list[str]) -> list[str]:
    """Lines about labels that are accepted and perhaps not meant."""
    train, notes = labels["train"], []
    present = set(np.unique(train).tolist())
    if absent := [label for label in range(len(names)) if label not in present]:
        listed = first_few([f"{label} ({names[label]})" for label in absent])
        hint = ". If the labels are numbered from 1, subtract 1" if absent == [0] else ""
        notes.append(f"note: no train row has the label {listed}{hint}")
    for group, y in labels.items():
        if none := int((y == -1).sum()):
            meant = "they are not evaluated" if group == "test" else "they can be trained on as unlabelled rows alone"
            notes.append(f"note: {none:,} {group} rows have no label (-1): {meant}")
    return notes


def _class_names(given: Sequence[str] | np.ndarray | None, prompts: np.ndarray | None, labels: list) -> list[str]:
    """Names as given, or "class 0", "class 1", ...; their number must fit the text and the labels."""
    labelled = 1 + max(int(y.max()) for y in labels)
    if given is not None:
        array = np.asarray(given)
        if array.ndim != 1 or not all(isinstance(name, str | bytes) for name in array.tolist()):
            raise CacheError(f"class names must be a list of texts, got {array.dtype} {list(array.shape)}")
        names = [_text(label, name) for label, name in enumerate(array.tolist())]
    elif prompts is None and labelled > 10 * sum(map(len, labels)):
        raise CacheError(f"labels go up to {labelled - 1} for {sum(map(len, labels))} rows; they must be 0 to C - 1")
    else:
        names = [f"class {index}" for index in range(labelled if prompts is None else len(prompts))]
    if prompts is not None:
        first, second = prompts.shape[:2]
        expected = labelled if given is None else len(names)
        is_swapped = first != expected and second == expected > 1
        if is_swapped or first != len(names):
            hint = ". Is it in the other order? Then change --text-layout" if is_swapped else ""
            raise CacheError(
                f"text {[first, second]} does not fit {len(names)} class names, {labelled} in the labels{hint}"
            )
    return names


def _text(label: int, name: str | bytes) -> str:
    """A class name as text. Raises CacheError on bytes of another encoding than UTF-8."""
    if isinstance(name, str):
        return name
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise CacheError(
            f"class names: that of class {label}, {short(name)}, is not UTF-8 (in Latin-1 it reads "
            f"{short(name.decode('latin-1'))}). Save the names as text, such as numpy.array([...], dtype=str)"
        ) from None


def _ids(group: str, n: int) -> tuple[str, ...]:
    return tuple(f"{group}/{index:06d}" for index in range(n))


def _provenance(
    source_name: str, given: dict[str, tuple[np.ndarray, np.ndarray]], space: str, recipes: tuple[Noise, ...], seed: int
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, arrays in given.items():
        for array in arrays:
            digest.update(f"{name} {array.dtype.str} {json.dumps(array.shape)}".encode())
            digest.update(np.ascontiguousarray(array).data)
    views = {"center": "as imported"} | {recipe.view: recipe.recipe() for recipe in recipes}
    dataset = {"dataset": source_name, "dataset_fingerprint": digest.hexdigest()}
    libraries = {"numpy": np.__version__} if recipes else {}
    return {"model": IMPORTED, **dataset, "space": space, "views": views, "seed": seed, "libraries": libraries}
