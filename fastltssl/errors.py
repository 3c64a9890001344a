"""Every error raised on purpose: a command that ends with one prints its message and exits with its code."""

from collections.abc import Iterable, Sequence
from typing import Any


class FastltsslError(ValueError):
    """The base class: an input, a file or a request that cannot be used as it is."""

    exit_code = 1  # of a command that failed


class UsageFault(FastltsslError):
    """A wrong option, knob or file of options: the command itself must be changed."""

    exit_code = 2


# ------------------------------------------------------------------------------ experiments


class SplitError(FastltsslError):
    """A protocol that is invalid, or that asks for rows the data does not have."""


class SwitchError(SplitError, UsageFault):
    """A value that a switch of the protocol does not accept."""


class RunError(FastltsslError):
    """An experiment that cannot be run or recorded as asked."""


class RunLocked(RunError):
    """Another process is writing this folder of runs."""


class ConfigError(RunError, UsageFault):
    """An invalid setting of an experiment."""


class UnknownMethod(UsageFault):
    """There is no method of that name, or the file given defines none."""


class UnknownKnob(UsageFault):
    """A knob the method does not have, or a value outside its options."""


class TuningError(UsageFault):
    """A mode of `--live` that is unknown or does not suit the image tower, or tensors that do not fit the mode."""


class UntrustedMethod(RunError):
    """A method file that came with a run or a config, and that this user has not run on this machine before."""


class MissingText(FastltsslError):
    """A method or head needs text features and the cache holds none."""


class MissingTaps(FastltsslError):
    """A head needs taps of the last block and the cache holds none."""


class MissingViews(FastltsslError):
    """The cache lacks the rows or views a method trains on."""


class FitError(FastltsslError):
    """Rows, labels or parameters that a Classifier cannot be fitted with."""


METHOD_PAGE = 'See "What a method is" in docs/method.md'  # the end of a message about a method


class MethodError(RunError):
    """A method whose loss, scores or start cannot be used, or whose own code fails; the message names its line."""


class NotFitted(FastltsslError, AttributeError):
    """A Classifier was used before `fit`; both a ValueError and an AttributeError, like scikit-learn's own error."""


# ------------------------------------------------------------------------------ stage one: images, encoder, cache


class SourceError(FastltsslError):
    """A data set that is unknown, absent or damaged."""


class BrokenImage(SourceError):
    """An image that cannot be decoded."""


class PromptError(UsageFault):
    """Prompt templates that are unknown or invalid."""


class ViewError(UsageFault):
    """A list of views that cannot be read."""


class EncoderError(FastltsslError):
    """A model or its weights that cannot be found or loaded."""


class PretrainError(UsageFault):
    """A recipe or a folder that the tiny CLIP cannot be trained with."""


class CacheError(FastltsslError):
    """A cache that cannot be made, found or read as asked."""


class CacheMismatch(CacheError):
    """An unfinished cache that cannot be resumed, as it was begun with other options."""


class CacheLocked(CacheError):
    """Another process is writing this cache."""


class CacheDamaged(CacheError):
    """The files of a cache differ from what its manifest says."""


# ------------------------------------------------------------------------------ results


class ExportError(FastltsslError):
    """A run that cannot be exported as asked."""


class FigureError(FastltsslError):
    """A picture that cannot be drawn here."""


class MapError(FastltsslError):
    """A map of an unlabelled pool that cannot be drawn."""


class StudioError(FastltsslError):
    """The studio cannot open here."""


class WriteError(UsageFault):
    """A file or folder that cannot be written: a full disk, a read-only place, a folder that is not there."""


# ------------------------------------------------------------------------------ words of messages


CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
TURNING = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))  # the direction, or the line
CONTROL |= {code: f"\\u{code:04x}" for code in (*TURNING, *range(0xD800, 0xE000))}  # also halves of characters


def plain(text: str) -> str:
    """Text from data as a terminal, a page or a picture may show it: what would steer it, or turn a line, is a code.

    So are the bytes of a file name that are no UTF-8, which nothing can print. Line ends and tabs stay.
    """
    return text.translate(CONTROL)


def first_few(names: Sequence[Any], count: int | None = None, most: int = 5) -> str:
    """The first of some names for a message: "a, b, c, d, e and 3 more"; `count` is how many there are in all."""
    count = len(names) if count is None else count
    more = f" and {count - most:,} more" if count > most else ""
    return ", ".join(map(str, names[:most])) + more


def byte_size(count: float) -> str:
    """A number of bytes in the unit that suits it: "12 bytes", "3.4 KiB", "56.7 MiB", "2.0 GiB"."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(size) < 1000:  # so that no more than three digits stand before the point
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Part of a message: " Did you mean 'cifar10'?", or nothing where no known word is near."""
    import difflib  # here, as an error is rare and the package is imported often

    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
