"""The manifest of a feature cache: which of its files are complete. cache/README.md specifies it.

Files are flushed to the disk first and then named in a manifest line with a checksum. Readers trust the manifest alone,
so a process that is killed at any moment loses at most the block that it was writing.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google_crc32c import value as crc32c

from fastltssl.errors import CacheDamaged

FORMAT = "fastltssl_cache"  # the key that marks a manifest header and the root attributes; its value is the version
VERSION = 1
GROUPS = ("train", "test", "unlabeled")
MANIFEST, LOCK = "manifest-0.jsonl", "fastltssl.lock"
PARTS = "manifest-*.jsonl"  # of the other processes, while there are any
_META = r"zarr\.json|zarr(\.\w+)?\.partial"  # partial: left by a process that was killed while it wrote the file
_ARRAY = rf"({_META}|c(/\d+)+((\.\w+)?\.partial)?)"
OWN_FILES = re.compile(  # everything that a cache consists of, by its path below the cache
    rf"{_META}|manifest-\d+\.jsonl(\.partial)?|{re.escape(LOCK)}(\.\d+)?"
    rf"|(text|projection|ln_post)/{_ARRAY}"
    rf"|({'|'.join(GROUPS)})/({_META}|(labels|ids|features|mid|mlp)/{_ARRAY})"
)


def damaged(path: Path, what: str) -> CacheDamaged:
    """The error that says what is damaged, how to see all of it and how to mend or replace it."""
    return CacheDamaged(
        f"{path} is damaged. {what}. See all of it: fastltssl cache verify {path}; make damaged chunks again: the same "
        "fastltssl extract with --resume; replace it: with --overwrite"
    )


class Manifest(NamedTuple):
    """The lines of a manifest, and what is wrong with it."""

    header: dict[str, Any] | None
    blocks: list[dict[str, Any]]
    closing: dict[str, Any] | None
    faults: list[str]
    is_torn: bool  # the last line, and no other, is broken: its process was killed while it wrote it
    whole: bytes  # the bytes without such a line


def append_line(path: Path, body: dict[str, Any], rank: int = 0) -> None:
    """Append a line that ends with the crc32c of the bytes before it, and flush it to the disk."""
    file = path / f"manifest-{rank}.jsonl"
    is_new = not file.exists()
    with open(file, "ab", buffering=0) as handle:
        handle.write(_line(body))
        os.fsync(handle.fileno())
    if is_new:
        fsync(path)


def _line(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":"))[:-1].encode()
    return text + b',"line_crc32c":"%08x"}\n' % crc32c(text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of a manifest; None where it does not match its checksum."""
    body, _, ending = line.rpartition(b',"line_crc32c":"')
    return json.loads(body + b"}") if body and ending == b'%08x"}' % crc32c(body) else None


def read_manifest(path: Path) -> Manifest:
    """The lines that match their checksums, and what is wrong with the others. Damage raises no error.

    While several processes write, the blocks of the others, which have manifests of their own, come after the first's.
    """
    raw, parsed, torn = _lines(path / MANIFEST)
    good = [line for line in parsed if line is not None]
    header = good[0] if good and FORMAT in good[0] else None
    blocks = [line for line in good if "group" in line]
    closing = good[-1] if good and "closed" in good[-1] else None
    faults = [f"line {place} does not match its checksum" for place, line in enumerate(parsed, 1) if line is None]
    if header is None and (good or not parsed):
        faults.append("it has no header line" if good else "it is missing or empty")
    elif header is not None and header[FORMAT] != VERSION:
        faults.insert(0, f"format version {header[FORMAT]}, this fastltssl reads {VERSION}. Use the one that wrote it")
    if closing and closing["closed"] != len(blocks):
        faults.append(f"{len(blocks)} block lines, its closing line counts {closing['closed']}")
    is_torn = bool(parsed) and parsed[-1] is None and len(good) == len(parsed) - 1 and closing is None
    whole = raw[: len(raw) - len(torn)] if is_torn else raw
    seen = {(block["group"], block["start"]) for block in blocks}
    for file in _parts(path) if closing is None else ():
        _, parsed, _ = _lines(file)
        faults += [
            f"{file.name}: line {place} does not match its checksum"
            for place, line in enumerate(parsed[:-1], 1)
            if not line
        ]
        blocks += [line for line in parsed if line and (line["group"], line["start"]) not in seen]
    return Manifest(header, blocks, closing, faults, is_torn, whole)


def _lines(file: Path) -> tuple[bytes, list[dict[str, Any] | None], bytes]:
    """Bytes of a manifest, its lines (None: wrong checksum), and the bytes of its last line."""
    raw = file.read_bytes() if file.is_file() else b""
    *lines, rest = raw.split(b"\n")
    parsed = [_parsed(line) for line in lines] + ([None] if rest else [])
    return raw, parsed, rest or (lines[-1] + b"\n" if lines else b"")


def _parts(path: Path) -> list[Path]:
    """The manifests of the processes but the first, in the order of their ranks."""
    return sorted((file for file in path.glob(PARTS) if file.name != MANIFEST), key=lambda file: (len(file.name), file))


def unite(path: Path, order: Sequence[tuple[str, int]] | None = None) -> None:
    """Move the lines of other processes into the one manifest, and sort them by `order`, (group, start) of all blocks.

    Where the process is killed in between, this can be done again.
    """
    if parts := _parts(path):
        own = sum(line is not None and "group" in line for line in _lines(path / MANIFEST)[1])
        for line in read_manifest(path).blocks[own:]:
            append_line(path, line)
        for file in parts:
            file.unlink()
    manifest = read_manifest(path)
    places = [(line["group"], line["start"]) for line in manifest.blocks]
    if order is not None and places != list(order):
        lines = dict(zip(places, manifest.blocks, strict=True))
        assert manifest.header is not None  # the cache was checked when it was opened for writing
        sorted_manifest = path / f"{MANIFEST}.partial"
        sorted_manifest.write_bytes(b"".join(map(_line, [manifest.header, *(lines[place] for place in order)])))
        fsync(sorted_manifest)
        sorted_manifest.replace(path / MANIFEST)
    fsync(path)


def fault(file: Path, digest: str) -> str | None:
    """What is wrong with a file: missing, unreadable, or not of this digest, a crc32c (8 digits) or sha256 (64)."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kind, actual = ("crc32c", f"{crc32c(raw):08x}") if len(digest) == 8 else ("sha256", hashlib.sha256(raw).hexdigest())
    return None if actual == digest else f"its {kind} is {actual[:8]}, the manifest says {digest[:8]}"


def is_cache(path: Path) -> bool:
    """Whether a folder is a fastltssl cache: its root says so, or it was only begun and holds nothing else."""
    mark = f'"{FORMAT}"'.encode()
    if any((path / name).is_file() and mark in (path / name).read_bytes() for name in (MANIFEST, "zarr.json")):
        return True
    return (path / LOCK).is_file() and not foreign_files(path)


# ------------------------------------------------------------------------------------------------ files


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_durable(path: Path, names: Iterable[str]) -> None:
    """Flush files to the disk, then the folders that lead to them, up to `path`."""
    for name in names:
        fsync(path / name)
    for folder in sorted({parent for name in names for parent in Path(name).parents}, reverse=True):
        fsync(path / folder)


def files_of(path: Path) -> list[str]:
    """Names of all files below a cache but the manifest and the lock, sorted, with forward slashes.

    A link to a folder counts as a file: what it leads to is not part of the cache.
    """
    names = []
    for folder, folders, files in os.walk(path):
        below = Path(folder)
        links = [name for name in folders if (below / name).is_symlink()]
        names += [(below / name).relative_to(path).as_posix() for name in (*files, *links)]
    return sorted(name for name in names if name != MANIFEST and not re.fullmatch(rf"{LOCK}(\.\d+)?", name))


def foreign_files(path: Path) -> list[str]:
    """Files below a cache that are none of its own; nobody but their owner may remove them."""
    return [name for name in files_of(path) if not OWN_FILES.fullmatch(name)]


def clear(path: Path) -> list[str]:
    """Remove the files of a cache but the lock, the manifest first, and name what was not part of it and stays.

    Only what the layout of a cache names is removed. A link is removed as a link, never what it leads to.
    """
    foreign = foreign_files(path)
    own = [file for file in path.glob("manifest-*.jsonl") if OWN_FILES.fullmatch(file.name)]
    own += [path / name for name in files_of(path) if OWN_FILES.fullmatch(name)]
    for file in own:
        file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(path, topdown=False):
        if Path(folder) != path and not any(Path(folder).iterdir()) and _is_own_folder(Path(folder), path):
            Path(folder).rmdir()
    return foreign


def _is_own_folder(folder: Path, path: Path) -> bool:
    """Whether the layout of a cache has a folder of this name, such as train/features/c/0."""
    name = folder.relative_to(path).as_posix()
    return any(OWN_FILES.fullmatch(f"{name}/{inner}") for inner in ("zarr.json", "0", "c/0")) or name.endswith("/c")
