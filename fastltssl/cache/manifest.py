"""The manifest of a feature cache: which of its files are complete. cache/README.md specifies it.

Files are flushed to the disk first and then named in a manifest line with a checksum. Readers trust the manifest alone,
so a process that is killed at any moment loses at most the block that it was writing.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from google_crc32c import value as crc32c

from fastltssl.errors import CacheDamaged, CacheError
from fastltssl.reading import parse_json, require_regular, short, typed

FORMAT = "fastltssl_cache"  # the key that marks a manifest header and the root attributes; its value is the version
VERSION = 1
GROUPS = ("train", "test", "unlabeled")
MANIFEST, LOCK = "manifest-0.jsonl", "fastltssl.lock"
PARTS = "manifest-*.jsonl"  # of the other processes, while there are any
_META = r"zarr\.json|zarr(\.\w+)?\.partial"  # partial: left by a process that was killed while it wrote the file


def _array(axes: int) -> str:
    """The files of an array that is chunked along so many axes."""
    return rf"({_META}|c(/\d+){{{axes}}}((\.\w+)?\.partial)?)"


OWN_FILES = re.compile(  # everything that a cache consists of, by its path below the cache
    rf"{_META}|manifest-\d+\.jsonl(\.partial)?|{re.escape(LOCK)}(\.\d+)?"
    rf"|text/{_array(3)}|(projection|ln_post)/{_array(2)}"
    rf"|({'|'.join(GROUPS)})/({_META}|(labels|ids)/{_array(1)}|(features|mid|mlp)/{_array(3)})",
    re.ASCII,
)
IMPORTED = "imported"  # the model in the provenance of a cache whose features were computed elsewhere
UNMATCHED = "does not match its checksum"
MORE = ".more.zarr"  # the ending of the larger cache that add-views is writing


class _Header(TypedDict):
    fastltssl_cache: int
    files: dict[str, str]


class _BlockLine(TypedDict):
    group: Literal["train", "test", "unlabeled"]
    start: int
    stop: int
    files: dict[str, str]
    broken: NotRequired[list[int]]


class _Closing(TypedDict):
    closed: int
    files: dict[str, str]


def damaged(path: Path, what: str) -> CacheDamaged:
    """The error that says what is damaged, how to see all of it and how to mend or replace it."""
    finish = way_on(path)
    if finish.endswith("--resume"):
        anew = f"make damaged chunks again: {finish}; replace it: with --overwrite"
    else:
        anew = f"make it anew: {f'fastltssl cache rm {path}, then ' if path.name.endswith(MORE) else ''}{finish}"
    return CacheDamaged(f"{path} is damaged. {what}. See all of it: fastltssl cache verify {path}; {anew}")


def way_on(path: Path) -> str:
    """The command that finishes the cache in a folder, by how it was begun."""
    if path.name.endswith(MORE):
        return f"the same fastltssl cache add-views {path.name.removesuffix(MORE)}"
    try:
        model = json.loads(read_regular(path / "zarr.json"))["attributes"]["provenance"]["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "the same fastltssl extract with --resume, or cache import with --overwrite"
    return f"the same fastltssl {'cache import with --overwrite' if model == IMPORTED else 'extract with --resume'}"


@contextlib.contextmanager
def told(path: Path, what: str, advice: str = "") -> Iterator[None]:
    """Turn an OSError, such as a full disk or a folder that may not be written, into a CacheError with the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = "" if error.filename in (None, str(path), path) else f", {error.filename}"
        raise CacheError(f"{path}: {what} ({reason}{where}).{advice and ' '}{advice}") from error


def read_regular(file: Path) -> bytes:
    """The bytes of a regular file. Raises OSError on anything else, such as a pipe, which would never end."""
    return require_regular(file).read_bytes()


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
    with open(file, "ab") as handle:  # buffered: what a nearly full disk takes is not taken for all
        handle.write(_line(body))
        handle.flush()
        os.fsync(handle.fileno())
    if is_new:
        fsync(path)


def _line(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":"))[:-1].encode()
    return text + b',"line_crc32c":"%08x"}\n' % crc32c(text)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    """A line of a manifest. Raises CacheError where it does not match its checksum or holds something else."""
    body, _, ending = line.rpartition(b',"line_crc32c":"')
    if not body or ending != b'%08x"}' % crc32c(body):
        raise CacheDamaged(f"{where} {UNMATCHED}")
    values = parse_json(body + b"}", dict[str, Any], where, CacheError)
    if FORMAT in values and values[FORMAT] != VERSION:
        return {FORMAT: values[FORMAT], "files": {}}  # what else the header of another version holds is not known here
    if FORMAT in values or "closed" in values:
        outer = typed(values, _Header if FORMAT in values else _Closing, where, CacheError)
        _check_files(outer["files"], 64, where)
        return outer
    block = typed(values, _BlockLine, where, CacheError)
    _check_files(block["files"], 8, where)
    start, stop, broken = block["start"], block["stop"], block.get("broken", [])
    if not 0 <= start < stop or broken != sorted({*broken} & {*range(start, stop)} if broken else ()):
        raise CacheError(f"{where}: rows {start} to {stop}, broken {short(broken)}, are no block of rows")
    return block


def _check_files(files: dict[str, str], digits: int, where: str) -> None:
    """Raise CacheError on a name that the layout of a cache does not have, and on what is no digest."""
    for name, digest in files.items():
        if not OWN_FILES.fullmatch(name):
            raise CacheError(f"{where}: {short(name)} is no file of a cache")
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", digest):
            raise CacheError(f"{where}: {short(digest)} of {name} is no checksum of {digits} hexadecimal digits")


def read_manifest(path: Path) -> Manifest:
    """The lines that match their checksums, and what is wrong with the others. Damage raises no error.

    While several processes write, the blocks of the others, which have manifests of their own, come after the first's.
    """
    with told(path, "its manifest cannot be read"):
        raw, parsed, torn = _lines(path / MANIFEST)
    good = [line for line in parsed if isinstance(line, dict)]
    header = good[0] if good and FORMAT in good[0] else None
    blocks = [line for line in good if "group" in line]
    closing = good[-1] if good and "closed" in good[-1] else None
    faults = [line for line in parsed if isinstance(line, str)]
    if header is None and (good or not parsed):
        faults.append("it has no header line" if good else "it is missing or empty")
    elif header is not None and header[FORMAT] != VERSION:
        version = short(header[FORMAT])
        faults.insert(0, f"format version {version}, this fastltssl reads {VERSION}. Use the one that wrote it")
    if closing and closing["closed"] != len(blocks):
        faults.append(f"{len(blocks)} block lines, its closing line counts {closing['closed']}")
    is_torn = _is_unmatched(parsed) and len(good) == len(parsed) - 1 and closing is None
    whole = raw[: len(raw) - len(torn)] if is_torn else raw
    seen = {(block["group"], block["start"]) for block in blocks}
    for file in _parts(path) if closing is None else ():
        with told(path, "its manifest cannot be read"):
            _, parsed, _ = _lines(file)
        wrong = [line for line in (parsed[:-1] if _is_unmatched(parsed) else parsed) if isinstance(line, str)]
        faults += [f"{file.name}: {line}" for line in wrong]
        blocks += [
            line
            for line in parsed
            if isinstance(line, dict) and "group" in line and (line["group"], line["start"]) not in seen
        ]
    return Manifest(header, blocks, closing, faults, is_torn, whole)


def _is_unmatched(parsed: Sequence[dict[str, Any] | str]) -> bool:
    """Whether the last line of a manifest does not match its checksum, as one that a kill has torn."""
    return bool(parsed) and isinstance(parsed[-1], str) and parsed[-1].endswith(UNMATCHED)


def _lines(file: Path) -> tuple[bytes, list[dict[str, Any] | str], bytes]:
    """Bytes of a manifest, its lines (as text what is wrong with one), and the bytes of its last line."""
    raw = read_regular(file) if file.exists() else b""
    *lines, rest = raw.split(b"\n")
    parsed: list[dict[str, Any] | str] = []
    for place, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            parsed.append(_parsed(line, f"line {place}"))
        except CacheError as error:
            parsed.append(str(error))
    if rest:
        parsed[-1] = f"line {len(parsed)} {UNMATCHED}"  # without its end it may still be being written
    return raw, parsed, rest or (lines[-1] + b"\n" if lines else b"")


def _parts(path: Path) -> list[Path]:
    """The manifests of the processes but the first, in the order of their ranks."""
    return sorted((file for file in path.glob(PARTS) if file.name != MANIFEST), key=lambda file: (len(file.name), file))


def unite(path: Path, order: Sequence[tuple[str, int]] | None = None) -> None:
    """Move the lines of other processes into the one manifest, and sort them by `order`, (group, start) of all blocks.

    Where the process is killed in between, this can be done again.
    """
    if parts := _parts(path):
        own = sum(isinstance(line, dict) and "group" in line for line in _lines(path / MANIFEST)[1])
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
        raw = read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kind, actual = ("crc32c", f"{crc32c(raw):08x}") if len(digest) == 8 else ("sha256", hashlib.sha256(raw).hexdigest())
    return None if actual == digest else f"its {kind} is {actual[:8]}, the manifest says {digest[:8]}"


def is_cache(path: Path) -> bool:
    """Whether a folder is a fastltssl cache: its root says so, or it was only begun and holds nothing else."""
    if _holds(path / "zarr.json", "attributes", FORMAT) or _holds(path / MANIFEST, FORMAT):
        return True
    is_begun = os.path.isfile(path / LOCK) and not os.path.lexists(path / "zarr.json")
    return is_begun and not foreign_files(path)


def _holds(file: Path, *keys: str) -> bool:
    """Whether the first line of a file, or all of it, is JSON in which these keys lead to something."""
    try:
        raw = read_regular(file)
        value = json.loads(raw.partition(b"\n")[0] if file.suffix == ".jsonl" else raw)
        for key in keys:
            value = value[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


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

    Only what the layout of a cache names is removed. A link is removed as a link, never what it leads to. The root goes
    last, so that what a killed process leaves still counts as a cache.
    """
    foreign = foreign_files(path)
    own = [file for file in path.glob("manifest-*.jsonl*") if OWN_FILES.fullmatch(file.name)]
    names = [name for name in files_of(path) if OWN_FILES.fullmatch(name)]
    own += [path / name for name in sorted(names, key=lambda name: (name == "zarr.json", name))]
    for file in own:
        file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(path, topdown=False):
        if Path(folder) != path and not any(Path(folder).iterdir()) and _is_own_folder(Path(folder), path):
            Path(folder).rmdir()
    return foreign


def refuse_links(path: Path, *, but_files: bool = False) -> None:
    """Raise CacheError where a write into a cache would follow a link out of it, or find a file in place of a folder.

    With `but_files` links in place of files are accepted, as they are removed before anything is written.
    """
    for name in [*files_of(path), *(file.name for file in path.glob(PARTS))]:
        is_link = (path / name).is_symlink()
        if _is_own_folder(path / name, path) or (is_link and OWN_FILES.fullmatch(name) and not but_files):
            kind = "a link" if is_link else "a file where the cache has a folder"
            raise CacheError(
                f"{path / name} is {kind}: nothing is written there. Move it away, or choose another --out"
            )


def _is_own_folder(folder: Path, path: Path) -> bool:
    """Whether the layout of a cache has a folder of this name, such as train/features/c/0."""
    name = folder.relative_to(path).as_posix()
    return any(OWN_FILES.fullmatch(f"{name}/{inner}") for inner in ("zarr.json", "0", "0/0", "0/0/0"))
