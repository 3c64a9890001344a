"""Views added to a complete cache: the features it holds are copied, and only the new views are encoded.

The larger cache is written beside the old one, by an extraction that can be interrupted and resumed, and replaces it
once it is complete. It equals, byte for byte, a cache that was extracted with all views at once.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastltssl.cache.catalogue import Cache, find_cache, fingerprint, open_cache, places, remove
from fastltssl.cache.manifest import MORE, foreign_files, is_cache, told
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.extract import Summary, extract, provenance
from fastltssl.encoder.reopen import made_with
from fastltssl.errors import CacheError, CacheMismatch
from fastltssl.images.source import Source
from fastltssl.images.views import View
from fastltssl.progress import Work


def beside(path: Path) -> tuple[Path, Path]:
    """Paths of the larger cache until it is complete, and of the old one while the larger takes its place."""
    return path.with_name(f"{path.stem}{MORE}"), path.with_name(f"{path.stem}.before.zarr")


def find_recovered(name: str) -> Path:
    """What find_cache returns, once an exchange of the two caches that was interrupted half-way has been finished."""
    for path in places(name):
        more, before = beside(path)
        if not is_cache(before):
            continue
        if not os.path.lexists(path) and is_cache(more) and _is_grown(before, more):
            with told(path, f"{more} could not take its place"):
                more.rename(path)
        if is_cache(path) and _is_grown(before, path):
            remove(before)
    return find_cache(name)


def _is_grown(old: Path, new: Path) -> bool:
    """Whether a complete cache is another one with more views, so that the other is no longer needed."""
    try:
        few, many = open_cache(old), open_cache(new)
        made, made_more = few.attributes["provenance"], many.attributes["provenance"]
        is_same = made | {"views": None} == made_more | {"views": None} and few.groups.keys() == many.groups.keys()
        return is_same and made["views"].items() < made_more["views"].items()
    except (CacheError, KeyError, AttributeError, TypeError):
        return False


def add_views(
    path: Path, source: Source, encoder: Encoder, views: Sequence[View], *, workers: int = 2
) -> Work[Summary]:
    """Extend a cache to `views`, which must include those it has; yields progress, returns the summary.

    Raises CacheError where one of them is missing, or where other files are in the way, and CacheMismatch where the
    cache is of other images or another encoder.
    """
    cache = open_cache(path)
    check(cache, source, encoder, views)
    more, before = beside(path)
    _check_exchange(path, before)
    stored: dict[str, Any] = cache.attributes["provenance"]
    summary = yield from extract(
        source,
        encoder,
        views,
        more,
        templates=stored["templates"],
        seed=stored["seed"],
        workers=workers,
        skip_broken=any(group.broken for group in cache.groups.values()),
        resume=True,
        known=cache,
    )
    _check_exchange(path, before)
    if fingerprint(open_cache(path)) != fingerprint(cache):
        raise CacheError(f"{path} was replaced meanwhile; the one with more views is {more}")
    with told(path, f"{more} is complete, but could not take its place", "Make room there, then do the same again"):
        path.rename(before)
        more.rename(path)
    remove(before)
    return summary._replace(path=path)


def _check_exchange(path: Path, before: Path) -> None:
    """Raise CacheError where the larger cache could not take the place of the old one without loss."""
    if path.is_symlink():
        raise CacheError(f"{path} is a link to {path.resolve()}, which is not replaced through it. Name that itself")
    if foreign := foreign_files(path):
        raise CacheError(f"{path} holds {foreign[0]}, which is not part of the cache. Move it elsewhere first")
    if os.path.lexists(before):
        raise CacheError(f"{before} is in the way: the cache is named so for a moment. Move it elsewhere first")


def check(cache: Cache, source: Source, encoder: Encoder, views: Sequence[View]) -> None:
    """Raise where these images, this encoder and these views could not have made the cache and more."""
    stored = cache.attributes["provenance"]
    if not isinstance(stored.get("views"), dict) or "weights_sha256" not in stored:
        raise CacheError(f"{cache.path} was imported; only an extracted cache can be given more views")
    made_with(cache)
    wanted = provenance(source, encoder, views, stored["templates"], stored["seed"])
    old, new = stored["views"], wanted["views"]
    if missing := [f"{name} ({recipe})" for name, recipe in old.items() if new.get(name) != recipe]:
        raise CacheError(
            f"--views must name the views that {cache.path} has, and more. Missing or another recipe: {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    if len(new) == len(old):
        raise CacheError(f"{cache.path} has all of these views: {', '.join(old)}. Ask for more, such as weak:8")
    stored = {"exif": "ignore"} | stored | {"taps": cache.groups["train"].taps}
    wanted = {"exif": "ignore"} | wanted | {"taps": encoder.taps}
    unequal = [name for name in wanted if name != "views" and wanted[name] != stored.get(name)]
    if unequal:
        name = unequal[0]
        raise CacheMismatch(
            f"{cache.path} was made with another {name}: {stored.get(name)} there, {wanted[name]} now. "
            "Give the --dataset, --root, --limit and --pretrained it was made with; with other library versions "
            "extract anew"
        )
