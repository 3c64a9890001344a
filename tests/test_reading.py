"""The one reader of JSON and YAML: what it refuses, where it says it was, and how much of a value it shows."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from fastltssl.errors import ConfigError, RunError
from fastltssl.reading import dump_yaml, parse_json, read_json, read_yaml, typed


@dataclass(frozen=True)
class Row:
    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Inner:
    lr: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    count: int | Literal["all"] | None = None
    is_on: bool = False
    inner: Inner | None = None
    rows: list[Row] = field(default_factory=list)
    knobs: dict[str, Any] = field(default_factory=dict)


class Open(TypedDict):
    name: str


def test_values_become_what_their_fields_take_and_numbers_may_be_text():
    found = typed({"name": "a", "count": "7", "inner": {"lr": "1e-3"}, "rows": [{"name": "b", "values": [1, None]}]},
                  Outer, "f")  # fmt: skip
    assert found == Outer("a", 7, inner=Inner(0.001), rows=[Row("b", (1.0, None))])
    assert typed({"name": "a", "count": "all"}, Outer, "f").count == "all"
    assert typed({"name": "a", "more": 1}, Open, "f")["name"] == "a"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": 3}, "f, name: 3 is not text"),
        ({"name": "a", "count": 1.5}, "f, count: 1.5 is not a whole number or all"),
        ({"name": "a", "count": True}, "f, count: True is not a whole number or all"),
        ({"name": "a", "count": "most"}, "f, count: 'most' is not a whole number or all"),
        ({"name": "a", "is_on": "maybe"}, "f, is_on: 'maybe' is not true or false"),
        ({"name": "a", "inner": {"lr": "x"}}, "f, inner.lr: 'x' is not a number"),
        ({"name": "a", "inner": {"rate": 1}}, "f, inner: unknown key 'rate'. Known: lr"),
        ({"name": "a", "rows": [{"name": "b", "values": [1, "x"]}]}, "f, rows[0].values[1]: 'x' is not a number"),
        ({"name": "a", "rows": [{"nam": "b", "values": []}]}, "f, rows[0]: unknown key 'nam'. Did you mean 'name'?"),
        ({"name": "a", "rows": {}}, "f, rows: {} is not a list"),
        ({"name": "a", "knobs": []}, "f, knobs: [] is not a mapping"),
        ({"count": 1}, "f has no name"),
        ([1], "f: [1] is not a mapping"),
        ("x" * 999, f"f: '{'x' * 29}... (1,001 characters) is not a mapping"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_is_accepted(value, message):
    with pytest.raises(ConfigError) as told:
        typed(value, Outer, "f")
    assert str(told.value).startswith(message)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, b: {c: 1, c: 2}}", "key 'c' is given twice"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("[" * 9000, "cannot be read as YAML"),
        (
            "\n".join(f"x{n}: &x{n} [{', '.join(['*x' + str(n - 1)] * 10 if n else ['0'])}]" for n in range(20)),
            "this stands for .* values, aliases counted",
        ),
        ("a: &x [1, *x]", "an alias stands inside what it is an alias of"),
        ("a: x", "a: 'x' is not a number or a mapping"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(RunError, match=message):
        read_yaml(tmp_path / "f.yaml", dict[str, float | dict[str, float]], RunError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"), ("0808", "0808"), ("1_000", "1_000"), ("1:30", "1:30"), ("0b11", "0b11"), ("0o7", "0o7"),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("OFF", "OFF"), ("2026-01-01", "2026-01-01"), ("1_0.5", "1_0.5"),
        ("٣", "٣"), ("²", "²"), ("=", "="),
        ("0", 0), ("-12", -12), ("+3", 3), ("0x1F", 31), ("1.", 1.0), (".5e3", 500.0), ("1e3", 1000.0), ("00.5", 0.5),
        (".inf", float("inf")), ("-.INF", float("-inf")), ("1e400", float("inf")),
        ("true", True), ("FALSE", False), ("~", None), ("", None), ("Null", None), ("'7'", "7"),
    ],
)  # fmt: skip
def test_plain_words_are_those_of_yaml_1_2(tmp_path, text, value):
    (tmp_path / "f.yaml").write_text(f"a: {text}", encoding="utf-8")
    found = read_yaml(tmp_path / "f.yaml")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["!!int 010", "!!int x", "!!int ''", "!!float 1:30", "!!bool yes", "!!timestamp 2026-13-99", "!!binary x",
             "!!set {a}", "9" * 5000, "{[1]: 2}", "{{a: 1}: 2}", "{? [] : 1}", "- 1", "\0", "!!null x"],
)  # fmt: skip
def test_yaml_that_other_readers_fail_at_ends_in_a_message(tmp_path, text):
    (tmp_path / "f.yaml").write_text(f"a: {text}")
    with pytest.raises(ConfigError, match=r"f\.yaml cannot be read as YAML"):
        read_yaml(tmp_path / "f.yaml")


def test_only_regular_files_are_read_and_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero")):
        for read in (read_json, read_yaml):
            with pytest.raises(ConfigError, match=r"cannot be read.*: it is (no regular file|a folder)"):
                read(name)
    (tmp_path / "f").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "f") == read_yaml(tmp_path / "f") == {"a": 1}
    ends = os.pipe()
    os.write(ends[1], b"{a: 1}")
    os.close(ends[1])
    assert read_yaml(Path(f"/dev/fd/{ends[0]}")) == {"a": 1}  # as `--config <(...)` gives it
    os.close(ends[0])


def test_an_alias_stands_for_its_value(tmp_path):
    (tmp_path / "f.yaml").write_text("{a: &x {m: 1, n: 2}, b: {<<: *x, n: 3}, c: *x}")
    assert read_yaml(tmp_path / "f.yaml") == {"a": {"m": 1, "n": 2}, "b": {"m": 1, "n": 3}, "c": {"m": 1, "n": 2}}


def test_a_number_with_an_exponent_is_a_number_and_a_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "f.yaml").write_text("{a: 1e-3, b: -2.5E+4, c: 3, d: '1e-3'}")
    assert read_yaml(tmp_path / "f.yaml") == {"a": 0.001, "b": -25000.0, "c": 3, "d": "1e-3"}
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "f.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "f.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "f is damaged: key 'name' is given twice"),
        ('{"name": ', "f is damaged: Expecting value"),
        ("[" * 99999, "f is damaged"),
        ('{"name": 1}', "f, name: 1 is not text"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        parse_json(text, Open, "f")
    (tmp_path / "f").write_text(text)
    with pytest.raises(RunError):
        read_json(tmp_path / "f", Open, RunError)


def test_text_with_half_a_character_is_told():
    with pytest.raises(ConfigError, match=r"a.json holds text that is not UTF-8: '.ud800'"):
        parse_json('{"name": "\\ud800"}', dict[str, int], "a.json")


@pytest.mark.parametrize(
    "text", ["1e5", "yes", "010", "1:30", "0x1F", ".5", "null", "1_000", "", "~", "=", "<<", "a: b"]
)
def test_a_text_that_looks_like_something_else_is_written_in_quotes(tmp_path, text):
    (tmp_path / "a.yaml").write_text(dump_yaml({"cache": text, "lr": 1e-5, "n": 5, "on": True}))
    assert read_yaml(tmp_path / "a.yaml") == {"cache": text, "lr": 1e-5, "n": 5, "on": True}
