"""More views for a cache that is there: what it holds is taken over, only new views are encoded.

The larger cache is written beside the old one, as an extraction that can be killed and resumed, and takes its place
once it is complete. It equals one that was extracted with all views at once, byte for byte.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastltssl.cache.catalogue import Cache, cache_folder, find_cache, open_cache, remove
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.extract import Summary, extract, provenance
from fastltssl.errors import CacheError, CacheMismatch
from fastltssl.images.source import Source
from fastltssl.images.views import View
from fastltssl.progress import Work


def beside(path: Path) -> tuple[Path, Path]:
    """Where the larger cache is written, and where the old one waits while they change places."""
    return path.with_name(f"{path.stem}.more.zarr"), path.with_name(f"{path.stem}.before.zarr")


def found(name: str) -> Path:
    """The path of a cache, as find_cache finds it, after a change of places that was killed half-way is finished."""
    for path in (Path(name), cache_folder() / name, cache_folder() / f"{name}.zarr"):
        more, before = beside(path)
        if before.exists() and not path.exists():
            (more if more.exists() else before).rename(path)
        if before.exists():
            remove(before)
    return find_cache(name)


def add_views(
    path: Path, source: Source, encoder: Encoder, views: Sequence[View], *, workers: int = 2
) -> Work[Summary]:
    """Give the cache all of `views`, which name those it has and more; yields progress, returns the summary.

    Raises CacheError where a view it has is not among them, CacheMismatch where it was made of something else.
    """
    cache = open_cache(path)
    check(cache, source, encoder, views)
    more, before = beside(path)
    given: dict[str, Any] = cache.attributes["provenance"]
    summary = yield from extract(
        source,
        encoder,
        views,
        more,
        templates=given["templates"],
        seed=given["seed"],
        workers=workers,
        skip_broken=any(group.broken for group in cache.groups.values()),
        resume=True,
        known=cache,
    )
    path.rename(before)
    more.rename(path)
    remove(before)
    return summary._replace(path=path)


def check(cache: Cache, source: Source, encoder: Encoder, views: Sequence[View]) -> None:
    """Raise where the views, the images or the encoder are not those of the cache."""
    given = cache.attributes["provenance"]
    if not isinstance(given.get("views"), dict) or "weights_sha256" not in given:
        raise CacheError(f"{cache.path} was imported; only an extracted cache can be given more views")
    asked = provenance(source, encoder, views, given["templates"], given["seed"])
    old, new = given["views"], asked["views"]
    if lost := [f"{name} ({recipe})" for name, recipe in old.items() if new.get(name) != recipe]:
        raise CacheError(
            f"--views must name the views that {cache.path} has, and more. Missing or another recipe: {lost[0]}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
        )
    if len(new) == len(old):
        raise CacheError(f"{cache.path} has all of these views: {', '.join(old)}. Ask for more, such as weak:8")
    unequal = [name for name in asked if name != "views" and asked[name] != given.get(name)]
    if unequal or encoder.taps != cache.groups["train"].taps:
        name = unequal[0] if unequal else "taps"
        stored, wanted = (given.get(name), asked[name]) if unequal else (cache.groups["train"].taps, encoder.taps)
        raise CacheMismatch(
            f"{cache.path} was made with another {name}: {stored} there, {wanted} now. Give the --dataset, --root, "
            "--limit and --pretrained it was made with; with other library versions extract anew"
        )
