"""A feature cache created or resumed, committed block by block, and closed. cache/README.md specifies it."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from jaxtyping import Float16

from fastltssl.cache.layout import (
    SLAB,
    Block,
    Contents,
    GroupSpec,
    all_blocks,
    checked_contents,
    chunk_rows,
    differences,
    progress,
    read_checked,
    read_contents,
    stored_rows,
)
from fastltssl.cache.lock import acquire_lock, release_lock
from fastltssl.cache.manifest import (
    FORMAT,
    LOCK,
    MANIFEST,
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
    unite,
)
from fastltssl.errors import CacheError, CacheLocked, CacheMismatch
from fastltssl.machine import ALONE, Ranks


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
    """A Writer that holds the lock of a new cache, or of the one that is there with `resume` or `overwrite`.

    text [C T E], projection [D E], ln_post [2 D]; shapes and values are checked here, with messages. `taps` name
    arrays of the same shape as the features. Of several ranks the first makes the cache and the others join it.
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
    asked = checked_contents(attributes, groups, width, {"text": text, "projection": projection, "ln_post": ln_post})
    notes: list[str] = []
    problem: CacheError | None = None
    if ranks.rank == 0:
        try:
            _open(path, asked, notes, resume, overwrite)
        except CacheError as error:
            problem = error
    if problem := next(filter(None, ranks.gather(problem)), None):
        raise problem
    if ranks.rank:
        _check_same(path, asked)
    return _writer(path, notes, ranks)


def _open(path: Path, asked: Contents, notes: list[str], resume: bool, overwrite: bool) -> None:
    """Take the lock of a cache that is ready to be written; raises CacheError without it."""
    _refuse_existing(path, resume, overwrite)
    path.mkdir(parents=True, exist_ok=True)
    acquire_lock(path, notes)
    try:
        if overwrite:
            clear(path)
        manifest = read_manifest(path)
        if manifest.header is None and not manifest.blocks and len(manifest.faults) == 1:
            clear(path)  # what a kill before the first manifest line left
            _check_space(path, asked)
            _write_metadata(path, asked)
        else:
            _check_resumable(path, manifest, asked, notes)
    except OSError as error:
        release_lock(path)
        raise _unwritable(path, "metadata", error) from error
    except BaseException:
        release_lock(path)
        raise


@dataclass
class Writer:
    """The writer of a cache, or of a rank's share of it, as a context manager. The first rank holds the lock.

    Blocks are committed in the order of `pending`; only `close` completes, and an interrupted and resumed cache, or one
    that several ranks wrote, equals an unbroken one.
    """

    path: Path
    is_complete: bool
    notes: list[str]
    header: dict[str, Any]
    shapes: dict[str, tuple[int, int, int]]
    parts: tuple[str, ...]  # arrays of those shapes: the features, then the taps
    rows: dict[str, int]  # of a chunk, per group
    torn: dict[Block, dict[str, Any]]  # damaged blocks, to be made again, with their lines
    waiting: list[Block]
    rank: int
    lock: bytes
    is_locked: bool = True

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_locked and self.rank == 0:
            release_lock(self.path)
        self.is_locked = False

    def pending(self) -> list[Block]:
        """Blocks whose files are damaged, then those not committed yet, in the order to commit them."""
        return list(self.waiting)

    def commit(self, block: Block, features: np.ndarray, broken: Sequence[int] = ()) -> int:
        """Bytes written for features [rows V D], with taps [rows V P D]. Durable when it returns.

        Refuses values that float16 cannot hold. `broken` are rows of the group, within the block, whose image could not
        be read: readers leave them out.
        """
        if self.waiting[:1] != [block]:
            due = _name(self.waiting[0]) if self.waiting else "none, all are committed"
            raise CacheError(f"{self.path}: {_name(block)} is not the next block to commit. Next: {due}")
        _, views, width = self.shapes[block.group]
        taps = (len(self.parts),) if len(self.parts) > 1 else ()
        half = _as_float16(block, features, (block.stop - block.start, views, *taps, width))
        half, rows = half.reshape(len(half), views, len(self.parts), width), self.rows[block.group]
        chunks: dict[str, bytes] = {}
        for place, part in enumerate(self.parts):
            for view in range(views):
                chunk = np.zeros((rows, width), "<f2")  # the last chunk is stored whole, padded with zeros
                chunk[: len(half)] = half[:, view, place]
                chunks[f"{block.group}/{part}/c/{block.start // rows}/{view}/0"] = chunk.tobytes()
        digests = {name: f"{crc32c(raw):08x}" for name, raw in chunks.items()}
        is_repair = block in self.torn
        if is_repair and digests != self.torn[block]["files"]:
            raise CacheError(
                f"{self.path}: {_name(block)} is damaged and cannot be made again to the same bytes: another device, "
                "thread count or library than it was made with. Replace the cache with --overwrite"
            )
        if (self.path / LOCK).read_bytes() != self.lock:
            raise CacheLocked(f"{self.path} was taken over by another process. Leave one of them running")
        try:
            for name, raw in chunks.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(raw)
            make_durable(self.path, chunks)
            if not is_repair:
                line: dict[str, Any] = block._asdict()
                line |= {"broken": list(broken)} if broken else {}
                append_line(self.path, line | {"files": digests}, self.rank)
        except OSError as error:
            raise _unwritable(self.path, _name(block), error) from error
        self.waiting.pop(0)
        return sum(map(len, chunks.values()))

    def close(self) -> None:
        """Complete the cache: read every chunk back, compare, and write the closing line. Releases the lock.

        Only the first rank may, once the others have committed their blocks.
        """
        grid = all_blocks(self.shapes, self.rows)
        written = {(line["group"], line["start"]) for line in read_manifest(self.path).blocks}
        left = sum((block.group, block.start) not in written for block in grid)
        if self.waiting or left:
            left = left or len(self.waiting)
            raise CacheError(f"{self.path}: {left} blocks are not committed, the cache cannot be closed")
        if not self.is_complete:
            unite(self.path, [(block.group, block.start) for block in grid])
            blocks, files = read_manifest(self.path).blocks, dict(self.header["files"])
            for name, digest in [pair for line in blocks for pair in line["files"].items()]:
                raw = (self.path / name).read_bytes() if (self.path / name).is_file() else b""
                if f"{crc32c(raw):08x}" != digest:
                    raise damaged(self.path, f"{name} has changed since it was committed")
                files[name] = hashlib.sha256(raw).hexdigest()
            append_line(self.path, {"closed": len(blocks), "files": dict(sorted(files.items()))})
            self.is_complete = True
        self.__exit__()


def _writer(path: Path, notes: list[str], ranks: Ranks) -> Writer:
    manifest, stored = read_manifest(path), read_contents(path)
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
    lock, own = (path / LOCK).read_bytes(), ranks.share(waiting, weights)
    return Writer(
        path, is_complete, notes, manifest.header, stored.shapes, stored.parts, rows, torn, own, ranks.rank, lock
    )


def _refuse_existing(path: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise CacheError("--resume and --overwrite exclude each other")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_cache(path):
        raise CacheError(f"{path} is there and is not a fastltssl cache; it is left alone. Choose another --out")
    if not resume and not overwrite:
        raise CacheError(f"{path} holds a cache already. Continue it with --resume, or replace it with --overwrite")


def size_on_disk(shapes: dict[str, tuple[int, int, int]], parts: int = 1) -> int:
    """Bytes that so many arrays of groups [N V D] will take; the last chunks are stored whole."""
    sizes = []
    for n, views, width in shapes.values():
        rows = chunk_rows(n, width)
        sizes.append(-(-n // rows) * rows * views * width * 2)
    return parts * sum(sizes)


def _check_space(path: Path, asked: Contents) -> None:
    """Raise where the disk has no room for the features, before hours are spent on them."""
    needed, free = size_on_disk(asked.shapes, len(asked.parts)), shutil.disk_usage(path).free
    if needed > free:
        raise CacheError(
            f"{path} needs {needed / 2**30:.2f} GiB and its disk has {free / 2**30:.2f} GiB free. "
            "Choose another --out, fewer --views or --limit n"
        )


def _write_metadata(path: Path, asked: Contents) -> None:
    """Write everything but the chunks of features, then the header line that makes it valid."""
    import zarr  # a third of a second; only writing needs it

    root = zarr.create_group(path, attributes=asked.attributes)
    for name in asked.shapes:
        root.create_group(name)
    for name, array in asked.arrays.items():
        # One raw chunk each. Without this setting zarr leaves out the file of an array of zeros.
        config: Any = {"write_empty_chunks": True}
        root.create_array(name, data=array, chunks=array.shape, compressors=None, config=config)
    for name, shape in asked.shapes.items():
        chunks = (chunk_rows(shape[0], shape[2]), 1, shape[2])
        for part in asked.parts:
            root.create_array(f"{name}/{part}", shape=shape, chunks=chunks, dtype="float16", compressors=None)
    names = files_of(path)
    make_durable(path, names)
    fsync(path.parent)
    digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    append_line(path, {FORMAT: VERSION, "files": digests})


def _check_resumable(path: Path, manifest: Manifest, asked: Contents, notes: list[str]) -> None:
    """Raise where the cache on disk cannot be continued as asked; drop a torn last line."""
    stored = read_checked(path, manifest, with_chunks=False)
    if unequal := differences(stored, asked):
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


def _check_same(path: Path, asked: Contents) -> None:
    """Raise where this rank would write something else than the first rank has prepared."""
    if unequal := differences(read_contents(path), asked):
        raise CacheMismatch(
            f"{path}: this process would make something else than the first one: {'; '.join(unequal)}. "
            "Give every process the same options, data and library versions"
        )


def _unwritable(path: Path, what: str, error: OSError) -> CacheError:
    return CacheError(
        f"{path}: {what} could not be written ({error.strerror}). What was committed before is safe: make room, then "
        "go on with --resume"
    )


def _as_float16(block: Block, features: np.ndarray, shape: tuple[int, ...]) -> Float16[np.ndarray, "rows V *P D"]:
    if features.shape != shape or features.dtype not in (np.float16, np.float32):
        got = f"{features.dtype} {list(features.shape)}"
        raise CacheError(f"{_name(block)} takes float32 or float16 features {list(shape)}, got {got}")
    with np.errstate(over="ignore"):
        half = features.astype("<f2", copy=False)
    is_bad = (half.view(np.uint16) & 0x7C00) == 0x7C00  # exponent all ones: infinite or NaN
    if is_bad.any():
        rows = block.start + np.flatnonzero(is_bad.reshape(len(is_bad), -1).any(axis=1))
        named = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        raise CacheError(
            f"{_name(block)}: the features of rows {named} are not finite in float16 (first: "
            f"{features[is_bad][0]:g}; accepted: up to 65504 in size). Look at the encoder's precision and input"
        )
    return half


def _name(block: Block) -> str:
    return f"{block.group} rows {block.start} to {block.stop}"
