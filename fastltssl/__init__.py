"""fastltssl: long-tailed semi-supervised learning on cached foundation-model features.

Names are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import Any

_WHERE = {
    "open_cache": "cache",
    "Protocol": "splits",
    "Split": "splits",
    "long_tailed": "splits",
    "resident": "batches",
    "make_problem": "batches",
    "make_stream": "batches",
    "configure": "methods",
    "fit": "train",
    "fit_many": "train",
    "sweep": "sweeps",
    "Classifier": "estimator",
    "estimate_label_bias": "bias",
    "studio": "pages",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastltssl' has no attribute {name!r}; it has {', '.join(_WHERE)}")
    return getattr(importlib.import_module(f"fastltssl.{_WHERE[name]}"), name)
