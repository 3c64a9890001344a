"""JSON and YAML read into typed values: one reader, so that every file and every mapping of options is checked alike.

Errors are a key given twice, an unknown key, a missing key and a value of another type. The message names the place
("grid.yaml, protocols[1].n1"), the value, shortened where it is long, and what is accepted.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
import yaml

from fastltssl.errors import ConfigError, FastltsslError, did_you_mean

LONGEST = 60  # characters of a value in a message
MOST_VALUES = 10**6  # of a YAML file
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}


def read_yaml(path: Path, kind: Any = Any, error: type[FastltsslError] = ConfigError) -> Any:
    """A YAML or JSON file as a value of a type: a dataclass, a TypedDict, list[...], dict[...]."""
    try:
        loader = _Loader(_text(path))
        loader.name = path.name  # in messages, with line and column
        value = loader.get_single_data()
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as failure:
        raise error(f"{path} cannot be read as YAML: {_reason(failure)}") from None
    return typed(value, kind, str(path), error)


def read_json(path: Path, kind: Any = Any, error: type[FastltsslError] = ConfigError) -> Any:
    """A JSON file as a value of a type."""
    try:
        text = _text(path)
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"{path} cannot be read: {_reason(failure)}") from None
    return parse_json(text, kind, str(path), error)


def _text(path: Path) -> str:
    """The text of a file, without the byte order mark it may begin with. Raises OSError on all but regular files.

    A pipe that a shell puts under /dev, as `--config <(...)` does, is read, too; any other might never end.
    """
    if not (path.is_fifo() and path.is_relative_to("/dev")):
        require_regular(path)
    return path.read_text(encoding="utf-8-sig")


def _reason(failure: Exception) -> str:
    """What is wrong with a file, without the path, which the message begins with."""
    return str(getattr(failure, "strerror", None) or failure)


def require_regular(path: Path) -> Path:
    """The path. Raises OSError for what is there and no file: a folder, or a pipe, whose reading might never end."""
    if path.exists() and not path.is_file():
        raise OSError(None, "it is a folder" if path.is_dir() else "it is no regular file", str(path))
    return path


def is_utf8(text: str) -> bool:
    """Whether a text holds no half of a character, as file names of other encodings do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def dump_yaml(value: Any, **layout: Any) -> str:
    """YAML that `read_yaml`, and readers of YAML 1.1, read as the same value again, such as a cache called 1e5."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, **layout)


def parse_json(text: str | bytes, kind: Any, where: str, error: type[FastltsslError] = ConfigError) -> Any:
    """JSON text as a value of a type."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as failure:
        raise error(f"{where} is damaged: {failure}") from None
    return typed(value, kind, where, error)


def typed(value: Any, kind: Any, where: str, error: type[FastltsslError] = ConfigError) -> Any:
    """The value converted to a type; numbers may be text, as a shell gives them. Messages begin with `where`."""
    _check_keys(value, kind, where, error)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as failure:
        raise error(_explained(str(failure), value, kind, where)) from None
    except UnicodeEncodeError as failure:  # "\ud800" in JSON
        raise error(f"{where} holds text that is not UTF-8: {short(failure.object)}") from None


def known(given: Any, names: Any, where: str, error: type[FastltsslError] = ConfigError) -> dict[str, Any]:
    """The mapping with underscores for hyphens in its keys. Raises where a key is not among `names`."""
    if not isinstance(given, Mapping):
        raise error(f"{where} must be a mapping, not {short(given)}")
    options = {str(key).replace("-", "_"): value for key, value in given.items()}
    if unknown := sorted(options.keys() - {*names}):
        name = unknown[0]
        raise error(f"{where}: unknown key {short(name)}.{did_you_mean(name, names)} Known: {', '.join(sorted(names))}")
    return options


def short(value: Any) -> str:
    """A value as messages show it, shortened to at most a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}... ({len(text):,} characters)"


class _Loader(yaml.SafeLoader):
    """YAML 1.2, of mappings, lists, text, numbers, true, false and null, as JSON has them.

    PyYAML reads YAML 1.1, to which 010 is eight, 1_000 and 1:30 are numbers, yes, no, on and off truth values, and 1e-3
    is text. A whole number that begins with 0 stays text, as it is rather the name of a folder than a number.
    A key stands once, and aliases stand for a bounded number of values.
    """

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        if root is not None:
            _count(root, {})
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {short(key.value)} is given twice",
                                                        key.start_mark)  # fmt: skip
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, a truth value or null, also one whose tag is given by hand, as in !!int 7."""
        text, kind = node.value, node.tag.rpartition(":")[2]
        if not re.fullmatch(PLAIN[kind][1], text) or (kind == "int" and len(text) > LONGEST):
            raise yaml.constructor.ConstructorError(None, None, f"{short(text)} is no {kind}", node.start_mark)
        if kind == "int":
            return int(text, 0)
        if kind == "float":
            return float(re.sub(r"\.(?=[in])", "", text.lower()))  # .inf and .nan, which Python writes without a point
        return text.lower() == "true" if kind == "bool" else None


PLAIN = {  # what a word without quotes may be beside text, by the letters it begins with
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    "float": ("-+.0123456789", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
                               r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    "null": (["~", "n", "N", ""], r"~|null|Null|NULL|"),
    "merge": ("<", r"<<"),
}  # fmt: skip
_PREFIX = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in (None, *(_PREFIX + kind for kind in ("map", "seq", "str")))
}
for _kind, (_letters, _pattern) in PLAIN.items():
    _Loader.add_implicit_resolver(_PREFIX + _kind, re.compile(rf"({_pattern})\Z"), list(_letters))
    if _kind != "merge":
        _Loader.add_constructor(_PREFIX + _kind, _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """Writes YAML in which a text that YAML 1.1 or 1.2 would read as something else stands in quotes."""


for _kind, (_first, _pattern) in PLAIN.items():
    _Dumper.add_implicit_resolver(_PREFIX + _kind, re.compile(f"(?:{_pattern})$"), list(_first))


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node of YAML stands for; `counts` holds those of nodes seen before, 0 while they are open.

    Raises a YAMLError above MOST_VALUES, as a few lines of aliases can stand for more than any memory holds.
    """
    size = counts.get(id(node))
    if size == 0:
        raise yaml.composer.ComposerError(None, None, "an alias stands inside what it is an alias of", node.start_mark)
    if size is None:
        counts[id(node)] = 0
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        size = counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    if size > MOST_VALUES:
        raise yaml.composer.ComposerError(
            None, None, f"this stands for {size:,} values, aliases counted; at most {MOST_VALUES:,}", node.start_mark
        )
    return size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {short(next(name for name in names if names.count(name) > 1))} is given twice")
    return mapping


def _fields(kind: Any) -> dict[str, Any] | None:
    """Field names of a dataclass or a TypedDict with their types; None for any other type."""
    return get_type_hints(kind) if dataclasses.is_dataclass(kind) or is_typeddict(kind) else None


def _check_keys(value: Any, kind: Any, where: str, error: type[FastltsslError]) -> None:
    """Refuse unknown keys, at any depth; for a TypedDict, which names the keys that are read, others are accepted."""
    for option in _options(kind):
        fields, inner = _fields(option), [part for part in get_args(option) if part is not Ellipsis]
        if fields is not None and isinstance(value, Mapping):
            if not is_typeddict(option):
                known(value, fields, where, error)
            for name, part in value.items():
                if name in fields:
                    _check_keys(part, fields[name], f"{where}, {name}", error)
        elif get_origin(option) in (list, tuple) and isinstance(value, list | tuple):
            for place, part in enumerate(value):
                _check_keys(part, inner[0], f"{where}[{place}]", error)
        elif get_origin(option) is dict and isinstance(value, Mapping):
            for name, part in value.items():
                _check_keys(part, inner[1], f"{where}, {name}", error)


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union; the type itself of any other."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _explained(message: str, value: Any, kind: Any, where: str) -> str:
    """The message of a ValidationError in our words: the place, the value there, and what is accepted."""
    text, _, place = message.partition(" - at `$")
    shown = ""
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place.rstrip("`")):
        fields = next((fields for option in _options(kind) if (fields := _fields(option))), None)
        inner = [part for option in _options(kind) for part in get_args(option) if part is not Ellipsis]
        kind = fields[name] if name and fields else inner[-1] if inner else Any
        key = _misfit(value, kind) if index == "..." else name or int(index)
        value = value[key]
        shown += f".{key}" if isinstance(key, str) else f"[{key}]"
    at = ", ".join(filter(None, (where, shown.lstrip("."))))
    if missing := re.search(r"missing required field `(\w+)`", text):
        return f"{at} has no {missing[1]}"
    return f"{at}: {short(value)} is not {accepted(kind)}"


def _misfit(mapping: Mapping[Any, Any], kind: Any) -> Any:
    """The first key whose value is not of a type."""
    for key, value in mapping.items():
        try:
            msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError:
            return key
    raise AssertionError("every value is of the type")


def accepted(kind: Any) -> str:
    """A type in words: "a whole number or all"."""
    words = []
    for option in _options(kind):
        if get_origin(option) is Literal:
            words += [str(value) for value in get_args(option)]
        elif option is not type(None):
            origin = get_origin(option) or option
            words.append(WORDS.get(origin, "a list" if origin in (list, tuple) else "a mapping"))
    return " or ".join(words)
