"""Writes a feature cache: creates or resumes it, commits it block by block and closes it, as cache/README.md says."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from jaxtyping import Bool, Float, Float16

from fastltssl.cache.emulated import storable
from fastltssl.cache.layout import (
    SLAB,
    Block,
    Contents,
    GroupSpec,
    all_blocks,
    check_new_classes,
    checked_contents,
    chunk_rows,
    differences,
)
from fastltssl.cache.lock import acquire_lock, release_lock
from fastltssl.cache.manifest import (
    FORMAT,
    LOCK,
    MANIFEST,
    OWN_FILES,
    VERSION,
    Manifest,
    append_line,
    clear,
    damaged,
    fault,
    files_of,
    fsync,
    is_cache,
    make_durable,
    read_manifest,
    refuse_links,
    told,
    unite,
    way_on,
)
from fastltssl.cache.stored import progress, read_checked, read_contents, stored_rows
from fastltssl.errors import CacheError, CacheLocked, CacheMismatch, byte_size, first_few
from fastltssl.machine import ALONE, Ranks

FAR = 1e9  # text and projections longer than this, or shorter than its inverse, are scaled: only direction matters
SMALLEST_HALF = 2.0**-14  # below it float16 loses digits


def create(
    path: str | Path,
    *,
    provenance: dict[str, Any],
    classes: Sequence[str],
    groups: dict[str, GroupSpec],
    width: int,
    text: np.ndarray | None = None,
    templates: Sequence[str] = (),
    projection: np.ndarray | None = None,
    logit_scale: float = 100.0,
    logit_bias: float = 0.0,
    ln_post: np.ndarray | None = None,
    taps: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> "Writer":
    """A Writer that holds the lock of a new cache, or, with `resume` or `overwrite`, of one that exists.

    text [C T E], projection [D E], ln_post [2 D]. `taps` name arrays of the shape of the features. Of several ranks the
    first creates the cache and the others join it. Raises CacheError on unfit arrays, and where it cannot be written.
    """
    path = Path(path)
    attributes = {
        FORMAT: VERSION,
        "provenance": provenance,
        "classes": list(classes),
        "templates": list(templates),
        "logit_scale": float(logit_scale),
        "logit_bias": float(logit_bias),
        "slab": SLAB,
        **({"taps": list(taps)} if taps else {}),
    }
    check_new_classes(list(classes))
    tables = {"text": _directed("text", text), "projection": _directed("projection", projection), "ln_post": ln_post}
    wanted = checked_contents(attributes, groups, width, tables)
    notes: list[str] = []
    problem: CacheError | None = None
    if ranks.rank == 0:
        try:
            _open(path, wanted, notes, resume, overwrite)
        except CacheError as error:
            problem = error
    if problem := next(filter(None, ranks.gather(problem)), None):
        raise problem
    if ranks.rank:
        _check_same(path, wanted)
    return _writer(path, notes, ranks)


def _directed(name: str, table: np.ndarray | None) -> np.ndarray | None:
    """Text, by row, or a projection, as a whole, scaled where float32 or its squares would lose the direction."""
    if table is None or table.ndim < 2 or not table.size:
        return table  # the check of the contents says what is wrong
    if table.dtype.kind not in "fiu":
        raise CacheError(f"{name} must be numbers, got {table.dtype}")
    rows = np.asarray(table, np.float64 if table.dtype.kind != "f" else None)
    rows = rows if name == "text" else rows.reshape(1, -1)
    if not rows.any(axis=-1).all():
        raise CacheError(f"{name} holds rows of zeros, which have no direction")
    return storable(rows, 1 / FAR, FAR).reshape(table.shape)


def _open(path: Path, wanted: Contents, notes: list[str], resume: bool, overwrite: bool) -> None:
    """Take the lock and prepare the cache for its blocks; raises CacheError, and releases the lock, where it cannot."""
    with told(path, "it cannot be a cache", "Choose another --out"):
        _refuse_existing(path, resume, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        acquire_lock(path, notes)
    try:
        with _writing(path, "metadata"):
            refuse_links(path, but_files=overwrite)
            if overwrite:
                _check_space(path, wanted)
                if kept := clear(path):
                    notes.append(f"{path}: not part of the cache, so they stay: {first_few(kept)}")
            manifest = read_manifest(path)
            if manifest.header is None and not manifest.blocks and len(manifest.faults) == 1:
                clear(path)  # left by a process that was killed before its first manifest line
                _check_space(path, wanted)
                _write_metadata(path, wanted)
            else:
                _check_resumable(path, manifest, wanted, notes)
    except BaseException:
        release_lock(path)
        raise


@dataclass
class Writer:
    """Writes a cache, or a rank's share of its blocks, as a context manager. The first rank holds the lock.

    Blocks are committed in the order of `pending`, and `close` completes the cache. It equals one written without a
    break, whether it was interrupted and resumed or written by several ranks.
    """

    path: Path
    is_complete: bool
    notes: list[str]
    header: dict[str, Any]
    shapes: dict[str, tuple[int, int, int]]
    parts: tuple[str, ...]  # arrays of those shapes: the features, then the taps
    rows: dict[str, int]  # of a chunk, for each group
    torn: dict[Block, dict[str, Any]]  # damaged blocks, to be written again, with their manifest lines
    waiting: list[Block]  # to be committed, in order
    rank: int
    lock: bytes  # content of the lock, to notice where another process takes it over
    is_locked: bool = True

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_locked and self.rank == 0:
            release_lock(self.path)
        self.is_locked = False

    def pending(self) -> list[Block]:
        """Damaged blocks, then those not committed yet, in the order in which to commit them."""
        return list(self.waiting)

    def commit(self, block: Block, features: np.ndarray, broken: Sequence[int] = ()) -> int:
        """Write features [rows V D], with taps [rows V P D], and flush them to the disk; returns the bytes written.

        `broken` are rows of the group, within the block, whose image could not be read: readers leave them out. Raises
        CacheError on values that float16 cannot hold.
        """
        if self.waiting[:1] != [block]:
            expected = _name(self.waiting[0]) if self.waiting else "none, all are committed"
            raise CacheError(f"{self.path}: {_name(block)} is not the next block to commit. Next: {expected}")
        chunks = self._chunks(block, features, broken)
        digests = {name: f"{crc32c(raw):08x}" for name, raw in chunks.items()}
        is_repair = block in self.torn
        if is_repair and digests != self.torn[block]["files"]:
            raise CacheError(
                f"{self.path}: {_name(block)} is damaged and cannot be made again to the same bytes: another device, "
                "thread count or library than it was made with. Replace the cache with --overwrite"
            )
        self._check_lock()
        with _writing(self.path, _name(block)):
            for name, raw in chunks.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).unlink(missing_ok=True)  # a link there is replaced, not followed
                (self.path / name).write_bytes(raw)
            make_durable(self.path, chunks)
            if not is_repair:
                line: dict[str, Any] = block._asdict()
                line |= {"broken": list(broken)} if broken else {}
                append_line(self.path, line | {"files": digests}, self.rank)
        self.waiting.pop(0)
        return sum(map(len, chunks.values()))

    def _check_lock(self) -> None:
        """Raise CacheLocked where another process has taken the cache over, or removed it."""
        lock = self.path / LOCK
        if not lock.is_file() or lock.read_bytes() != self.lock:
            raise CacheLocked(f"{self.path} was taken over by another process. Leave one of them running")

    def _chunks(self, block: Block, features: np.ndarray, broken: Sequence[int]) -> dict[str, bytes]:
        """The bytes of each file of a block."""
        _, views, width = self.shapes[block.group]
        taps = (len(self.parts),) if len(self.parts) > 1 else ()
        half = _as_float16(block, features, (block.stop - block.start, views, *taps, width))
        half, rows = half.reshape(len(half), views, len(self.parts), width), self.rows[block.group]
        _check_directions(block, features.reshape(half.shape), half, broken)
        chunks: dict[str, bytes] = {}
        for place, part in enumerate(self.parts):
            for view in range(views):
                chunk = np.zeros((rows, width), "<f2")  # the last chunk is padded with zeros to the size of the others
                chunk[: len(half)] = half[:, view, place]
                chunks[f"{block.group}/{part}/c/{block.start // rows}/{view}/0"] = chunk.tobytes()
        return chunks

    def close(self) -> None:
        """Complete the cache: check every chunk on disk, write the closing line and release the lock.

        Only the first rank may call it, once the others have committed their blocks.
        """
        order = [(block.group, block.start) for block in all_blocks(self.shapes, self.rows)]
        written = {(line["group"], line["start"]) for line in read_manifest(self.path).blocks}
        left = sum(place not in written for place in order)
        if self.waiting or left:
            left = left or len(self.waiting)
            raise CacheError(f"{self.path}: {left} blocks are not committed, the cache cannot be closed")
        if not self.is_complete:
            self._check_lock()
            with _writing(self.path, "the end of the manifest"):
                self._write_closing(order)
            self.is_complete = True
        self.__exit__()

    def _write_closing(self, order: list[tuple[str, int]]) -> None:
        unite(self.path, order)
        blocks, files = read_manifest(self.path).blocks, dict(self.header["files"])
        for name, digest in [pair for line in blocks for pair in line["files"].items()]:
            raw = (self.path / name).read_bytes() if (self.path / name).is_file() else b""
            if f"{crc32c(raw):08x}" != digest:
                raise damaged(self.path, f"{name} has changed since it was committed")
            files[name] = hashlib.sha256(raw).hexdigest()
        append_line(self.path, {"closed": len(blocks), "files": dict(sorted(files.items()))})


def _writer(path: Path, notes: list[str], ranks: Ranks) -> Writer:
    """The writer of a rank's share of the blocks that a prepared cache does not hold yet, or holds damaged."""
    manifest = read_manifest(path)
    stored = read_contents(path, manifest)
    assert manifest.header is not None  # checked or written just before
    rows = {name: stored_rows(path, name) for name in stored.shapes}
    lines = {Block(line["group"], line["start"], line["stop"]): line for line in manifest.blocks}
    is_complete = manifest.closing is not None
    torn = {
        block: line
        for block, line in lines.items()
        if any(fault(path / name, digest) for name, digest in line["files"].items())
    }
    if torn:
        notes.append(f"{len(torn)} damaged blocks are made again, first {_name(next(iter(torn)))}")
    elif is_complete:
        notes.append(f"{path} is complete already")
    waiting = [*torn, *(block for block in all_blocks(stored.shapes, rows) if block not in lines)]
    weights = [(block.stop - block.start) * stored.shapes[block.group][1] for block in waiting]
    return Writer(
        path=path,
        is_complete=is_complete,
        notes=notes,
        header=manifest.header,
        shapes=stored.shapes,
        parts=stored.parts,
        rows=rows,
        torn=torn,
        waiting=ranks.share(waiting, weights),
        rank=ranks.rank,
        lock=(path / LOCK).read_bytes(),
    )


def _refuse_existing(path: Path, resume: bool, overwrite: bool) -> None:
    """Raise CacheError where the folder holds something that these options do not allow to change."""
    if resume and overwrite:
        raise CacheError("--resume and --overwrite exclude each other")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if overwrite and path.is_symlink():
        raise CacheError(f"{path} is a link to {path.resolve()}, which is not replaced through it. Name that itself")
    if not is_cache(path):
        raise CacheError(f"{path} is there and is not a fastltssl cache; it is left alone. Choose another --out")
    if not resume and not overwrite:
        raise CacheError(
            f"{path} holds a cache already. Replace it with --overwrite, or finish an extraction with --resume"
        )


def size_on_disk(shapes: dict[str, tuple[int, int, int]], parts: int = 1) -> int:
    """Bytes that the features (and taps, counted by `parts`) of groups [N V D] take, the padding of chunks included."""
    size = 0
    for n, views, width in shapes.values():
        rows = chunk_rows(n, width)
        size += -(-n // rows) * rows * views * width * 2
    return parts * size


def _check_space(path: Path, wanted: Contents) -> None:
    """Raise CacheError where the disk has no room for the features, before hours are spent on encoding them."""
    needed, free = size_on_disk(wanted.shapes, len(wanted.parts)), shutil.disk_usage(path).free
    free += sum((path / name).lstat().st_size for name in files_of(path) if OWN_FILES.fullmatch(name))  # replaced
    if needed > free:
        raise CacheError(
            f"{path} needs {byte_size(needed)} and its disk has {byte_size(free)} free. "
            "Choose another --out, fewer --views or --limit n"
        )


def _write_metadata(path: Path, wanted: Contents) -> None:
    """Write everything but the chunks of features, then the header line that makes the cache valid."""
    import zarr  # a third of a second; only writing needs it

    root = zarr.create_group(path, attributes=wanted.attributes)
    for name in wanted.shapes:
        root.create_group(name)
    for name, array in wanted.arrays.items():
        # Stored as one chunk. Without this setting zarr writes no file for an array of zeros.
        config: Any = {"write_empty_chunks": True}
        root.create_array(name, data=array, chunks=array.shape, compressors=None, config=config)
    for name, shape in wanted.shapes.items():
        chunks = (chunk_rows(shape[0], shape[2]), 1, shape[2])
        for part in wanted.parts:
            root.create_array(f"{name}/{part}", shape=shape, chunks=chunks, dtype="float16", compressors=None)
    names = [name for name in files_of(path) if OWN_FILES.fullmatch(name)]
    make_durable(path, names)
    fsync(path.parent)
    digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    append_line(path, {FORMAT: VERSION, "files": digests})


def _check_resumable(path: Path, manifest: Manifest, wanted: Contents, notes: list[str]) -> None:
    """Raise where the cache on disk holds other contents; cut off a torn last line of the manifest."""
    stored = read_checked(path, manifest, with_chunks=False)
    if unequal := differences(stored, wanted):
        model = stored.attributes["provenance"].get("model", "MODEL")
        raise CacheMismatch(
            f"{path} cannot be resumed, it was made for something else: {'; '.join(unequal)}. "
            f"Re-extract: fastltssl extract --model {model} --out NEW.zarr, or replace it with --overwrite"
        )
    (path / f"{MANIFEST}.partial").unlink(missing_ok=True)
    if manifest.is_torn:
        with open(path / MANIFEST, "r+b") as file:
            file.truncate(len(manifest.whole))
            os.fsync(file.fileno())
        notes.append("dropped the last manifest line, which a kill had torn")
    unite(path)
    if not manifest.closing:
        notes.append("resumed at {} of {} rows".format(*progress(stored, manifest)))


def _check_same(path: Path, wanted: Contents) -> None:
    """Raise where this rank would write something else than the first rank has prepared."""
    if unequal := differences(read_contents(path), wanted):
        raise CacheMismatch(
            f"{path}: this process would make something else than the first one: {'; '.join(unequal)}. "
            "Give every process the same options, data and library versions"
        )


def _writing(path: Path, what: str) -> contextlib.AbstractContextManager[None]:
    """Turn an OSError while a part of the cache is written into a CacheError."""
    advice = f"What was committed before is safe: make room there, then go on with {way_on(path)}"
    return told(path, f"{what} could not be written", advice)


def _check_directions(
    block: Block,
    given: Float[np.ndarray, "rows V P D"],
    half: Float16[np.ndarray, "rows V P D"],
    broken: Sequence[int],
) -> None:
    """Raise CacheError on rows whose direction float16 loses, and on rows without one in the center view."""

    def refuse(is_bad: Bool[np.ndarray, "rows V P"], why: str) -> None:
        is_bad[[row - block.start for row in broken]] = False
        rows = block.start + np.flatnonzero(is_bad.reshape(len(is_bad), -1).any(axis=1))
        if len(rows):
            raise CacheError(f"{_name(block)}: the features of rows {first_few(rows.tolist())} {why}")

    stored = np.abs(half).max(axis=-1)
    if (stored < SMALLEST_HALF).any():
        largest = np.abs(given).max(axis=-1)
        is_lost = (largest > 0) & (largest < SMALLEST_HALF)
        is_lost &= (given != half).any(axis=-1)
        refuse(
            is_lost, f"are too small for float16 (first: {largest[is_lost].max(initial=0):g}). Scale them, by 1e4 say"
        )
        is_zero = largest == 0
        is_zero[:, 1:] = is_zero[:, :, 1:] = False
        refuse(is_zero, "are all zeros, which have no direction. Look at the encoder's precision and input")


def _as_float16(block: Block, features: np.ndarray, shape: tuple[int, ...]) -> Float16[np.ndarray, "rows V *P D"]:
    """The features as they are stored. Raises CacheError on another shape, and on values that float16 cannot hold."""
    if features.shape != shape or features.dtype not in (np.float16, np.float32):
        got = f"{features.dtype} {list(features.shape)}"
        raise CacheError(f"{_name(block)} takes float32 or float16 features {list(shape)}, got {got}")
    with np.errstate(over="ignore"):
        half = features.astype("<f2", copy=False)
    is_bad = (half.view(np.uint16) & 0x7C00) == 0x7C00  # exponent all ones: infinite or NaN
    if is_bad.any():
        rows = block.start + np.flatnonzero(is_bad.reshape(len(is_bad), -1).any(axis=1))
        raise CacheError(
            f"{_name(block)}: the features of rows {first_few(rows.tolist())} are not finite in float16 (first: "
            f"{features[is_bad][0]:g}; accepted: up to 65504 in size). Look at the encoder's precision and input"
        )
    return half


def _name(block: Block) -> str:
    """A block for a message."""
    return f"{block.group} rows {block.start} to {block.stop}"
