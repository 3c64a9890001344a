"""fastltssl: long-tailed semi-supervised learning on cached foundation-model features.

Names are loaded when first used, so that importing the package costs nothing. What a method of your own imports is in
`fastltssl.functional`.
"""

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastltssl.errors import (
    BrokenImage,
    CacheDamaged,
    CacheError,
    CacheLocked,
    CacheMismatch,
    ConfigError,
    EncoderError,
    ExportError,
    FastltsslError,
    FigureError,
    FitError,
    MapError,
    MethodError,
    MissingTaps,
    MissingText,
    MissingViews,
    NotFitted,
    PretrainError,
    PromptError,
    RunError,
    RunLocked,
    SourceError,
    SplitError,
    StudioError,
    SwitchError,
    TuningError,
    UnknownKnob,
    UnknownMethod,
    UntrustedMethod,
    UsageFault,
    ViewError,
    WriteError,
)

if TYPE_CHECKING:  # the same names as in the table below, for editors and type checkers
    from fastltssl.analysis.comparison import compare
    from fastltssl.analysis.history import read_insight as read_run
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.cache.imports import import_features
    from fastltssl.cache.splits import Protocol, Split, long_tailed
    from fastltssl.encoder.extraction import run_extraction as extract
    from fastltssl.functional.bias import estimate_label_bias
    from fastltssl.methods import configure
    from fastltssl.runs import train
    from fastltssl.runs.config import Config
    from fastltssl.runs.sweep.sweep import sweep
    from fastltssl.show.studio import studio
    from fastltssl.training.estimator import Classifier
    from fastltssl.training.fit import fit, fit_many
    from fastltssl.training.rows import make_problem, resident
    from fastltssl.training.streams import make_stream

    __version__: str

PLACES = {  # name -> where it is loaded from
    "Classifier": "fastltssl.training.estimator:Classifier",
    "Config": "fastltssl.runs.config:Config",
    "Protocol": "fastltssl.cache.splits:Protocol",
    "Split": "fastltssl.cache.splits:Split",
    "compare": "fastltssl.analysis.comparison:compare",
    "configure": "fastltssl.methods:configure",
    "estimate_label_bias": "fastltssl.functional.bias:estimate_label_bias",
    "extract": "fastltssl.encoder.extraction:run_extraction",
    "fit": "fastltssl.training.fit:fit",
    "fit_many": "fastltssl.training.fit:fit_many",
    "import_features": "fastltssl.cache.imports:import_features",
    "long_tailed": "fastltssl.cache.splits:long_tailed",
    "make_problem": "fastltssl.training.rows:make_problem",
    "make_stream": "fastltssl.training.streams:make_stream",
    "open_cache": "fastltssl.cache.catalogue:open_cache",
    "read_run": "fastltssl.analysis.history:read_insight",
    "resident": "fastltssl.training.rows:resident",
    "studio": "fastltssl.show.studio:studio",
    "sweep": "fastltssl.runs.sweep.sweep:sweep",
    "train": "fastltssl.runs:train",
}

__path__.append(str(Path(__file__).parent / "_moved"))  # fastltssl.heads, .losses and .bias of 0.1, for one release
__all__ = [
    *PLACES, "BrokenImage", "CacheDamaged", "CacheError", "CacheLocked", "CacheMismatch", "ConfigError",
    "EncoderError", "ExportError", "FastltsslError", "FigureError", "FitError", "MapError", "MethodError",
    "MissingTaps", "MissingText", "MissingViews", "NotFitted", "PretrainError", "PromptError", "RunError", "RunLocked",
    "SourceError", "SplitError", "StudioError", "SwitchError", "TuningError", "UnknownKnob", "UnknownMethod",
    "UntrustedMethod", "UsageFault", "ViewError", "WriteError", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastltssl")
    if name not in PLACES:
        raise AttributeError(f"module 'fastltssl' has no attribute {name!r}; it has {', '.join(__all__)}")
    return pkgutil.resolve_name(PLACES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
