"""fastltssl: long-tailed semi-supervised learning on cached foundation-model features.

Names are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import Any

_WHERE = {
    "open_cache": "cache.catalogue",
    "Protocol": "cache.splits",
    "Split": "cache.splits",
    "long_tailed": "cache.splits",
    "resident": "training.rows",
    "make_problem": "training.rows",
    "make_stream": "training.rows",
    "configure": "methods",
    "fit": "training.fit",
    "fit_many": "training.fit",
    "sweep": "runs.sweep.sweep",
    "Classifier": "training.estimator",
    "estimate_label_bias": "functional.bias",
    "studio": "show.studio",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastltssl' has no attribute {name!r}; it has {', '.join(_WHERE)}")
    return getattr(importlib.import_module(f"fastltssl.{_WHERE[name]}"), name)
