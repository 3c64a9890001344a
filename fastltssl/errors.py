"""Every error raised on purpose: a command that ends with one prints its message and exits with its code."""

from collections.abc import Iterable


class FastltsslError(ValueError):
    """The base of all: something given, found or asked for that cannot be used as it is."""

    exit_code = 1  # of a command: what was asked for could not be done


class UsageFault(FastltsslError):
    """An option, a knob or a file of options that no run can have: the command was not typed as it is meant."""

    exit_code = 2


# ------------------------------------------------------------------------------ what is asked of a run


class SplitError(FastltsslError):
    """A protocol that the data cannot serve, or that is not one."""


class SwitchError(SplitError, UsageFault):
    """A value that no switch of a protocol takes."""


class RunError(FastltsslError):
    """An experiment that cannot be run or recorded as asked."""


class ConfigError(RunError, UsageFault):
    """A setting that no run can have."""


class UnknownMethod(UsageFault):
    """No method of that name, or a file without one."""


class UnknownKnob(UsageFault):
    """A knob the method does not have, or a value outside its options."""


class TuningError(UsageFault):
    """A mode of `--live` that is none or not one of this tower, or tensors that are not those of its mode."""


class MissingText(FastltsslError):
    """The cache holds no text features, and something asked for them."""


class MissingTaps(FastltsslError):
    """The cache holds no taps of the last block, and a head asked for them."""


class MissingViews(FastltsslError):
    """The cache lacks the rows or views a method trains on."""


class FitError(FastltsslError):
    """Rows, labels or parameters that a Classifier cannot take."""


class NotFitted(FastltsslError, AttributeError):
    """A Classifier was asked before `fit`; scikit-learn's own error is a ValueError and an AttributeError, too."""


# ------------------------------------------------------------------------------ images, encoder, cache


class SourceError(FastltsslError):
    """A data set that is unknown, absent or damaged."""


class BrokenImage(SourceError):
    """An image that cannot be decoded."""


class PromptError(UsageFault):
    """A set of templates that is not one."""


class ViewError(UsageFault):
    """A list of views that cannot be read."""


class EncoderError(FastltsslError):
    """A model or its weights that cannot be had."""


class PretrainError(UsageFault):
    """A recipe or a folder that the tiny CLIP cannot be trained with."""


class CacheError(FastltsslError):
    """A cache that cannot be made, found or read as asked."""


class CacheMismatch(CacheError):
    """A cache to be resumed that holds something other than what is asked."""


class CacheLocked(CacheError):
    """Another process writes this cache."""


class CacheDamaged(CacheError):
    """The files are not what the manifest says."""


# ------------------------------------------------------------------------------ what a run gives


class ExportError(FastltsslError):
    """A run that cannot be exported as asked."""


class FigureError(FastltsslError):
    """A picture that cannot be drawn here."""


class MapError(FastltsslError):
    """A map of a pool that cannot be drawn here."""


class StudioError(FastltsslError):
    """The studio cannot open here."""


CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
CONTROL |= {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(text: str) -> str:
    """Text from data as a terminal may show it: characters that steer a terminal or turn its lines are codes."""
    return text.translate(CONTROL)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Part of a message: " Did you mean 'cifar10'?", or nothing where no known word is near."""
    import difflib  # here, as an error is rare and the package is imported often

    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
