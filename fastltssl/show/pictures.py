"""Settings of matplotlib under which every picture is drawn, and its file, written whole."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastltssl.errors import FigureError, plain
from fastltssl.machine import replacing


@contextmanager
def drawing(**settings: Any) -> Iterator[None]:
    """Draw and save inside with these settings of matplotlib, every text as it is: $x$ is no formula.

    A character that the font lacks becomes a box, without a warning. Raises FigureError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise FigureError('no picture without matplotlib: pip install "fastltssl[plots]"') from None
    with matplotlib.rc_context({"text.parse_math": False} | settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def save(figure: Any, path: Path, **settings: Any) -> Path:
    """Write a figure to a file whose ending says its format; returns the path. Raises WriteError."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(plain(text.get_text()))
    with replacing(path) as part:
        figure.savefig(part, bbox_inches="tight", **settings)
    return path
