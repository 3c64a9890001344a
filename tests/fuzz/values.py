"""Odd values: numbers, texts, paths, bytes and trees such as people, editors and other tools leave behind."""

import copy
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import yaml

NUMBERS = (
    "0", "-1", "1", "2", "3", "-0", "+1", "1.5", "-1.5", "0.5", "1e-320", "1e-9", "1e308", "1e309", "-1e309", "nan",
    "inf",
    "-inf", "1_000", "010", "0x10", "1e3.5", "²", "½", "٣", "१२", "", " ", " 2 ", "2,3", "2;3", "0-2", "2-0", "0-",
    "0-1000000000", "99999999999999999999", "-99999999999999999999", "1000000000000", "9" * 400, "true", "null", "None",
    "1:2", "3:", ":", "=", "all", "auto", "2\n",
)  # fmt: skip
TEXTS = (
    "", " ", "-", "--", "-1", ".", "..", "a b", "a,b", ",", "a:b", ":", "a=b", "=", "=1", "a=", "[/b]", "[red]x",
    "[", "]",
    "*", "?", "[a-z]", "{}", "{0}", "{a.b}", "{", "}", "{0..3}", "{0..999999999}", "%s", "%", "$HOME", "~", "~nobody/x",
    "../../x", "a/b", "/", "\\", "'", '"', "`", "é", "e\u0301", "日本語", "عربي", "\u202eabc", "\u200f", "\u200b",
    "\ufeffx", "🙂", "x" * 300, "\x1b[31mred", "\x07", "\r\n", "a\tb", "a\nb", "\udcff", "NaN", "None", "null", "true",
    "yes", "no", "0", "1e5", "<script>alert(1)</script>", "&lt;", "</script>", "CON", "a\u0000b", "ﬁ", "ß", "I",
)  # fmt: skip
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**70, -(2**70), [],
    {}, "",
    [[]], [None], {"a": None}, [1, 2, 3],
)  # fmt: skip
BOMB = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else '0'] * 9)}]" for n in range(12))


def number(rng: Random) -> str:
    """A number as somebody may write it, or nearly one."""
    return rng.choice(NUMBERS)


def text(rng: Random) -> str:
    """A text with something special in it; it may hold what no argument of a command can, see `argument`."""
    return rng.choice(TEXTS) if rng.random() < 0.8 else rng.choice(TEXTS) + rng.choice(TEXTS)


def argument(rng: Random) -> str:
    """A text that a shell can pass on."""
    return rng.choice((text, number))(rng).replace("\0", "")


def scalar(rng: Random) -> Any:
    """A value of JSON or YAML."""
    return rng.choice(SCALARS) if rng.random() < 0.5 else rng.choice((text, number))(rng)


def path(rng: Random, given: Path) -> str:
    """The path of something below `given`: a file, a folder, a link, a pipe, or nothing that can be read or written."""
    kinds = ("file", "folder", "link", "broken", "loop", "pipe", "absent", "deep", "special", "long", "odd")
    kind = rng.choice(kinds)
    made = given / f"{kind}{rng.randrange(10**6)}"
    if kind == "file":
        made.write_bytes(rng.choice((b"", b"\0" * 9, b"a,b\n1,2\n", b"{}", b"\xff\xfe", b"[1", b"PK\x03\x04")))
    elif kind == "folder":
        made.mkdir()
        (made / "inside.txt").write_text("something")
    elif kind in ("link", "broken", "loop"):
        made.symlink_to({"link": given, "broken": given / "none", "loop": made}[kind])
    elif kind == "pipe":
        os.mkfifo(made)
    elif kind == "deep":
        return str(made / "a" / "b")
    elif kind == "special":
        return rng.choice(("/dev/null", "/dev/full", "/proc/none/x", "/dev/null/x", ".", "", "given"))
    elif kind == "long":
        return str(given / ("n" * 300))
    elif kind == "odd":
        return text(rng).replace("\0", "").replace("/", "_").replace("..", "_") or "_"
    return str(made)


def mutated(rng: Random, raw: bytes) -> bytes:
    """The bytes after an accident: bits flipped, a part lost, doubled, cut off, replaced or put into another coding."""
    at = rng.randrange(len(raw) + 1)
    end = min(len(raw), at + rng.choice((1, 4, 64, 1000)))
    kind = rng.randrange(11)
    if kind <= 2 and raw:
        broken = bytearray(raw)
        for _ in range(rng.choice((1, 2, 20))):
            broken[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(broken)
    return {
        3: raw[:at], 4: raw[:at] + raw[end:], 5: raw[:end] + raw[at:], 6: raw[:at] + rng.randbytes(8) + raw[end:],
        7: b"",
        8: raw + rng.randbytes(100), 9: b"\xef\xbb\xbf" + raw, 10: raw.decode("latin-1").encode("utf-16"),
    }.get(kind, rng.randbytes(50))  # fmt: skip


def bent(rng: Random, tree: Any, times: int = 1) -> Any:
    """A tree of JSON values in which a few places hold another value, are gone, renamed, or hold what another holds."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        places = list(_places(tree))
        if not places:
            return scalar(rng)
        owner, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[rng.choice((text(rng), f"{key}x", str(key).upper()))] = owner.pop(key)
        elif kind == 2:
            other, name = rng.choice(places)
            owner[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        elif kind == 3:
            owner[key] = rng.choice(([owner[key]], {"a": owner[key]}, str(owner[key])))
        else:
            owner[key] = scalar(rng)
    return tree


def _keys(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else range(len(owner))


def _places(tree: Any) -> Any:
    """(owner, key) of every value of a tree."""
    for key in list(_keys(tree)) if isinstance(tree, dict | list) else ():
        yield tree, key
        yield from _places(tree[key])


def as_yaml(rng: Random, tree: Any) -> bytes:
    """A tree as YAML or JSON, seldom with an accident in the text or as a trap."""
    try:
        raw = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        raw = as_json(tree)
    traps = (BOMB.encode(), b"[" * 5000, b"!!python/object/apply:os.getcwd []", raw + b"\n" + raw, b"a: &x [1, *x]",
             b"\t" + raw, b"<<: *none", b"? [a]\n: 1\n", b"- 1\n- 2\n", b"2001-99-99", b"!!binary x", b"!!timestamp z",
             b"!!int x", b"a: !!set {b: 1}", b"0x: 1\n1: 2\n")  # fmt: skip
    kind = rng.random()
    return raw if kind < 0.75 else mutated(rng, raw) if kind < 0.88 else rng.choice(traps)


def as_json(tree: Any) -> bytes:
    """A tree as JSON, with whatever characters and numbers it holds."""
    return json.dumps(tree, default=str).encode("utf-8", "surrogatepass")
