"""The methods, one file each. The import system is the registry: a file here with a `Method` dataclass is a method."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fastltssl.errors import METHOD_PAGE, UnknownKnob, UnknownMethod, UntrustedMethod, did_you_mean
from fastltssl.functional.heads import HEADS
from fastltssl.knobs import LARGEST

OF_TRAINING = ("steps", "lr", "weight_decay", "batch", "batch_u")  # fields of Config: options, not knobs
VIEWS = 1000  # of a kind that a method may train on
MOST_OF_RANGE = 1000  # a whole number so many times the end of its range would never end, or need all memory


def names() -> list[str]:
    """Names of the methods in the package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a method, by name or by the path of a file outside the package, which is run as code.

    Whoever calls this with the path of a file trusts it; a path that came with a run or a config is first looked at by
    `check_trusted`.
    """
    if name.endswith(".py"):
        module = _run_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        hint = did_you_mean(name, names())
        raise UnknownMethod(f"no method {name!r}.{hint} Known: {', '.join(names())}, or the path of a .py file")
    if not dataclasses.is_dataclass(getattr(module, "Method", None)):
        raise UnknownMethod(f"{name} defines no dataclass named Method")
    if missing := [part for part in ("views", "init", "start", "scores") if not hasattr(module.Method, part)]:
        raise UnknownMethod(f"the Method of {name} has no {', '.join(missing)}. {METHOD_PAGE}")
    return module


def _run_file(file: Path) -> ModuleType:
    """The module that a method file defines. Only its text is run, never a compiled file that lies beside it."""
    source = source_of(file)
    place = hashlib.sha256(f"{file.resolve()}\0".encode(errors="surrogateescape") + source).hexdigest()
    module = ModuleType(f"fastltssl_method_{place[:16]}")  # one module for each text, and never that of a library
    if module.__name__ in sys.modules:
        _RAN[file.resolve()] = source
        return sys.modules[module.__name__]
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise UnknownMethod(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    _remember(source)
    _RAN[file.resolve()] = source
    return module


_RAN: dict[Path, bytes] = {}  # the text of each method file as this process has run it


def source_that_ran(file: Path) -> bytes:
    """The text of a method file as this process has run it; the file may have been changed since."""
    return _RAN.get(file.resolve()) or source_of(file)


def source_of(file: Path) -> bytes:
    """The text of a method file. Raises UnknownMethod where it cannot be read."""
    if not file.is_file():
        beside = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UnknownMethod(f"method file {file} does not exist.{did_you_mean(file.name, beside)}".removesuffix("."))
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnknownMethod(f"method file {file} cannot be read: {error.strerror}") from None


# ------------------------------------------------------------------------------ files that came from someone else

_is_trusting = False  # inside `trusting`


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """A context in which method files that came with a run are run without a question: `--trust-method`."""
    global _is_trusting
    before, _is_trusting = _is_trusting, True
    try:
        yield
    finally:
        _is_trusting = before


def check_trusted(file: Path, origin: Path) -> None:
    """Raise UntrustedMethod unless this user has run the very file, by its SHA-256, on this machine before.

    `origin` is the run folder or the config that names the file. Inside `trusting` every file is trusted.
    """
    source = source_of(file)
    if not _is_trusting and not (_memory() / hashlib.sha256(source).hexdigest()).is_file():
        raise UntrustedMethod(
            f"{origin} was made with the method file {file}, which is code that you have not run on this machine "
            "before. Read it; if you trust it, pass --trust-method (from Python: inside fastltssl.methods.trusting())"
        )


def identity(name: str) -> str:
    """What decides what a method does: the name of one of the package, the name and the SHA-256 of a file."""
    if not name.endswith(".py"):
        return name
    return f"{Path(name).name} {hashlib.sha256(source_of(Path(name))).hexdigest()}"


def _memory() -> Path:
    """The folder of this user with an empty file for each method file that was run, named by its SHA-256."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fastltssl" / "methods"


def _remember(source: bytes) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written only means that --trust-method is asked for
        _memory().mkdir(parents=True, exist_ok=True)
        (_memory() / hashlib.sha256(source).hexdigest()).touch()


# ------------------------------------------------------------------------------ knobs


def summary(module: ModuleType) -> str:
    """First line of a method's docstring: its name, paper and one phrase."""
    return (module.__doc__ or "").strip().split("\n")[0].rstrip(".")


def fields(method: Any, prefix: str = "") -> dict[str, dataclasses.Field]:
    """The knobs of a method and of its head, by the name `--set` takes ("threshold", "head.scale")."""
    knobs = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.metadata.get("kind"):
            knobs[prefix + field.name] = field
        elif dataclasses.is_dataclass(value):
            knobs |= fields(value, f"{prefix}{field.name}.")
    return knobs


def configure(name: str, settings: dict[str, Any]) -> Any:
    """A method with its settings, text or numbers: {"threshold": ".8", "head": "linear", "head.scale": 30}."""
    module, settings = load(name), {str(key): value for key, value in settings.items()}
    try:
        method = module.Method()
        if "head" in settings and hasattr(method, "head"):
            method = dataclasses.replace(method, head=_head(str(settings["head"])))
        views = method.views
    except UnknownKnob:
        raise
    except Exception as error:  # of a user's method
        reason = f"{type(error).__name__}: {error}"
        raise UnknownMethod(f"the Method of {name} cannot be made with its defaults: {reason}") from error
    if not (isinstance(views, tuple) and len(views) == 2 and all(type(n) is int and 0 <= n <= VIEWS for n in views)):
        raise UnknownMethod(
            f"views of {name} must be a pair (weak, strong) of whole numbers from 0 to {VIEWS}, not {views!r:.60}"
        )
    known = fields(method)
    for key, value in settings.items():
        if key == "head" and hasattr(method, "head"):
            continue
        if key not in known:
            hint = did_you_mean(key, known)
            hint = f" It is an option: --{key.replace('_', '-')} {value}." if key in OF_TRAINING else hint
            raise UnknownKnob(f"{name} has no knob {key!r}.{hint} Its knobs: {', '.join(known) or 'none'}")
        method = _set(method, key.split("."), converted(key, known[key], value))
    return method


def converted(key: str, field: dataclasses.Field, value: Any) -> Any:
    """A knob's value from text, checked against its kind."""
    kind, options = field.metadata["kind"], field.metadata.get("options", ())
    if kind == "choice":
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        if text not in options:
            raise UnknownKnob(f"{key}={value!r} is not one of {', '.join(options)}")
        return text
    if field.default == "auto" and value == "auto":
        return "auto"
    try:
        number = int(value) if kind == "size" else float(value)
        if isinstance(value, float) and value == value and number != value:
            raise ValueError(f"{value} is not whole")
    except (TypeError, ValueError, OverflowError):
        accepted = "a whole number" if kind == "size" else "a number"
        raise UnknownKnob(
            f"{key}={value!r} is not {accepted}{_or_auto(field)}; the sweep range is {_range(field)}"
        ) from None
    most = MOST_OF_RANGE * field.metadata["high"] if kind == "size" else float("inf")
    if not abs(number) <= LARGEST or (kind == "size" and not 1 <= number <= most):
        raise UnknownKnob(f"{key}={value!r} is not usable; the sweep range is {_range(field)}{_or_auto(field)}")
    return number


def values(method: Any) -> dict[str, Any]:
    """Every knob of a method with its value, and the name of its head."""
    head = {"head": head_name(method)} if hasattr(method, "head") else {}
    return head | {key: _get(method, key.split(".")) for key in fields(method)}


def head_name(method: Any) -> str:
    """Name of the method's head, that of its class for one of your own."""
    kind = type(method.head)
    return next((name for name, head in HEADS.items() if kind is head), kind.__name__)


def outside(method: Any) -> list[str]:
    """One line for each knob outside the range it is meant for."""
    lines = []
    for key, field in fields(method).items():
        value = _get(method, key.split("."))
        if isinstance(value, int | float) and not field.metadata["low"] <= value <= field.metadata["high"]:
            lines.append(f"{key}={value:g} is outside {_range(field)}, the range it is meant for")
    return lines


def _head(name: str) -> Any:
    if name not in HEADS:
        hint = did_you_mean(name, HEADS)
        raise UnknownKnob(f"no head {name!r}.{hint} Known: {', '.join(HEADS)}")
    return HEADS[name]()


def _set(owner: Any, path: list[str], value: Any) -> Any:
    inner = value if len(path) == 1 else _set(getattr(owner, path[0]), path[1:], value)
    return dataclasses.replace(owner, **{path[0]: inner})


def _get(owner: Any, path: list[str]) -> Any:
    return getattr(owner, path[0]) if len(path) == 1 else _get(getattr(owner, path[0]), path[1:])


def _range(field: dataclasses.Field) -> str:
    return f"{field.metadata['low']:g} to {field.metadata['high']:g}"


def _or_auto(field: dataclasses.Field) -> str:
    return " (or auto)" if field.default == "auto" else ""
