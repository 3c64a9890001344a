"""The methods, one file each. The import system is the registry: a file here with a `Method` dataclass is a method."""

import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fastltssl.errors import METHOD_PAGE, UnknownKnob, UnknownMethod, did_you_mean
from fastltssl.functional.heads import HEADS

OF_TRAINING = ("steps", "lr", "weight_decay", "batch", "batch_u")  # fields of Config: options, not knobs


def names() -> list[str]:
    """Names of the methods in the package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a method, by name or by the path of a file outside the package."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            beside = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise UnknownMethod(
                f"method file {name} does not exist.{did_you_mean(path.name, beside)}".removesuffix(".")
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UnknownMethod(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
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
    method = load(name).Method()
    if "head" in settings and hasattr(method, "head"):
        method = dataclasses.replace(method, head=_head(str(settings["head"])))
    views = method.views
    if not (isinstance(views, tuple) and len(views) == 2 and all(isinstance(n, int) and n >= 0 for n in views)):
        raise UnknownMethod(f"views of {name} must be a pair (weak, strong) of whole numbers, not {views!r}")
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
    if number != number or number in (float("inf"), float("-inf")) or (kind == "size" and number < 1):
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
