"""The feature cache: written once, verified when opened, split into protocols."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`fastltssl.cache.open_cache` of version 0.1, for one release; it is `fastltssl.open_cache` now."""
    if name != "open_cache":
        raise AttributeError(f"module 'fastltssl.cache' has no attribute {name!r}")
    from fastltssl.cache.catalogue import open_cache

    return open_cache
