"""Texts and mappings for everything that parses in memory, drawn by hypothesis, which finds the smallest that fails."""

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import panel as pn
from hypothesis import strategies as st

import fastltssl
from fastltssl.cache.emulated import parse_emulate
from fastltssl.cache.splits import Protocol, Split, long_tailed
from fastltssl.errors import ConfigError
from fastltssl.images.prompts import prompts, templates
from fastltssl.images.tars import expanded
from fastltssl.images.views import parse_recipe, parse_views
from fastltssl.live.modes import parse_mode
from fastltssl.methods import configure, names
from fastltssl.reading import parse_json
from fastltssl.runs.config import OPTIONS, SWITCHES, Config, as_dict, counted_seeds, parse_seeds
from fastltssl.show.studio.address import Address
from fuzz import valid, values
from fuzz.case import Area, Case

WORDS = st.sampled_from((*values.NUMBERS, *values.TEXTS)) | st.text(max_size=30)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.sampled_from(values.SCALARS)
TREE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=9
)
PIECES = ("center", "weak", "strong", "fixmatch", "lift", ":", ",", "=", "(", ")", "{", "}", "..", "-", "0", "1",
"64", "65",
          "99999999", "0.5", "1e9", "nan", "²", " ", "lora", "lastk", "vpt", "flip", "simple", "openai7",
          "mid")  # fmt: skip
GRAMMAR = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | WORDS


def texts(parse: Callable[[str], Any]) -> Callable[[str], None]:
    """A check that a parser returns something, twice the same, or raises an error of ours."""

    def check(text: str) -> None:
        assert parse(text) == parse(text)

    return check


def seeds(given: Any) -> None:
    """Seeds are whole numbers, at most 10,000 of them."""
    for parse in (parse_seeds, counted_seeds):
        with contextlib.suppress(ConfigError):
            found = parse(given)
            assert (
                0 < len(found) <= 10**4 and all(isinstance(seed, int) and seed >= 0 for seed in found)
            ) or found == ()


def config(options: dict[str, Any]) -> None:
    """A config that is accepted is the same after it was written and read."""
    made = Config.of({"method": "probe", "cache": "c"} | options)
    assert as_dict(Config.of(as_dict(made))) == as_dict(made)


def split(given: tuple[dict[str, Any], list[int], int]) -> None:
    """A split takes no row twice, and no row of another class than it counts."""
    switches, labels, seed = given
    y = np.array(labels, np.int64)
    made: Split = long_tailed({"train": y}, 3, Protocol.of(switches), seed)
    rows = np.concatenate([made.labelled, made.val])
    assert len(set(rows.tolist())) == len(rows), "a row is taken twice"
    assert np.array_equal(np.bincount(y[made.labelled], minlength=3), made.counts), "other counts than rows"
    if not switches.get("overlap"):
        assert not set(rows.tolist()) & set(made.unlabelled.tolist()), "a labelled row is in the pool"


def knobs(given: tuple[str, dict[str, Any]]) -> None:
    """A method with settings of any kind."""
    configure(*given)


def named(given: tuple[list[str], str]) -> None:
    """Prompts of odd class names: each holds the name as it is."""
    for name, texts in zip(given[0], prompts(*given), strict=True):
        assert all(name in text for text in texts), "a prompt without the name"


def address(asked: dict[str, str]) -> None:
    """An address of the studio sets widgets to values that they can have."""
    link = Address(asked)
    slider = pn.widgets.FloatSlider(start=0, end=1, value=0.5)
    pair = pn.widgets.RangeSlider(start=0, end=9, value=(1, 2))
    seed = pn.widgets.Select(options=[0, 1, 2], value=0)
    run = pn.widgets.Select(options={"a": 1, "b": 2})
    tabs = pn.Tabs(("a", "b"), ("c", "d"))
    link.keep(tau=slider, bias=pair, seed=seed, run=run)
    link.keep("active", tab=tabs)
    row = link.number("row")
    assert 0 <= slider.value <= 1
    assert 0 <= pair.value[0] <= pair.value[1] <= 9
    assert seed.value in (0, 1, 2)
    assert tabs.active in (0, 1)
    assert row is None or row >= 0


FRAGMENT = st.dictionaries(st.sampled_from(sorted(SWITCHES)), SCALAR, max_size=4)
LABELS = st.lists(st.integers(-1, 2), min_size=3, max_size=40)
NUMBER = st.sampled_from((0, 1, 2, 3, 5, 1.0, 2.5, 1e9, "2", "all", None))
SOUND = st.dictionaries(
    st.sampled_from(("n1", "m1", "gamma_l", "gamma_u", "val", "test_per_class")), NUMBER, max_size=4
)
CHOICES = st.fixed_dictionaries({}, optional={"order": st.sampled_from(("reversed", "random", "middle", "head-tail",
"x")),
                                              "on_shortage": st.sampled_from(("cap", "refuse")),
                                              "overlap": st.booleans(),
                                              "images": st.sampled_from(("seeded", "file-order"))})  # fmt: skip
DRAWN: dict[str, tuple[Any, Callable[[Any], None]]] = {  # parser -> what it is given, and a check
    "parse_views": (GRAMMAR, texts(parse_views)),
    "parse_recipe": (GRAMMAR, texts(parse_recipe)),
    "parse_emulate": (GRAMMAR, texts(parse_emulate)),
    "parse_mode": (GRAMMAR, texts(parse_mode)),
    "templates": (GRAMMAR, texts(templates)),
    "expanded": (GRAMMAR, texts(expanded)),
    "parse_json": (WORDS | TREE.map(lambda tree: values.as_json(tree).decode(errors="replace")),
                   lambda text: parse_json(text, Any, "f")),
    "seeds": (GRAMMAR | TREE, seeds),
    "Config.of": (st.dictionaries(st.sampled_from(sorted(OPTIONS)) | WORDS, SCALAR | TREE, max_size=3), config),
    "Protocol.of": (FRAGMENT, lambda switches: Protocol.of(switches) and None),
    "split": (st.tuples(st.builds(dict.__or__, SOUND, CHOICES), LABELS, st.integers(0, 3)), split),
    "configure": (st.tuples(st.sampled_from(names()), st.dictionaries(
        st.sampled_from(("tau", "tau_u", "head", "head.scale", "threshold", "mu", "scale", "align")) | WORDS, SCALAR,
        max_size=2)
    ), knobs),
    "prompts": (st.tuples(st.lists(WORDS, max_size=3), st.sampled_from(("simple", "world", "openai7"))), named),
    "Address": (st.dictionaries(st.sampled_from(("tau", "bias", "seed", "run", "tab", "row")), GRAMMAR, max_size=4),
    address),
}  # fmt: skip


@cache
def studio() -> Any:
    """A studio of two runs, served from a thread of this process."""
    served = fastltssl.studio(valid.run(), valid.run("probe"))
    parts = urlsplit(served.address)
    for _ in range(100):  # its thread takes a moment to listen
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((parts.hostname, parts.port)).close()
            break
        time.sleep(0.05)
    return served


def addresses(case: Case) -> None:
    """Requests that a studio may get, and hosts and ports that it may be asked to open."""
    rng = case.rng
    kind = rng.choice(("get", "get", "get", "socket", "open"))
    case.ready()
    if kind == "open":
        options = {"host": rng.choice(("127.0.0.1", "localhost", "::1", "none.invalid", "", "[::1]", "0",
        values.text(rng))),
                   "port": rng.choice((0, -1, 1, 65535, 65536, 10**9, 2**70))}  # fmt: skip
        case.say(options)
        fastltssl.studio(valid.run("probe"), **options).stop()
        return
    parts = urlsplit(studio().address)
    names = ("seed", "run", "step", "tab", "row", "page", "theme", "token", "threshold", "tau", "set.tau", "label", "")
    query = "&".join(f"{rng.choice(names)}={quote(values.argument(rng), errors='surrogateescape')}" for _ in range(3))
    if kind == "get":
        case.say(query)
        with (
            contextlib.suppress(urllib.error.HTTPError),
            urllib.request.urlopen(f"{studio().address}?{query}", timeout=9) as got,
        ):
            assert b"<html" in got.read()
        return
    token = rng.choice(
        ("junk", "a.b", "é".encode().hex(), "eyJ.x", values.argument(rng).encode("utf-8", "replace").hex())
    )
    path = rng.choice(("/ws", "/ws?" + query, "/autoload.js?" + query, "/none", "/static/../../x", "/%ff", "//"))
    lines = (f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13",
             f"Origin: http://{parts.netloc}",
             f"Sec-WebSocket-Protocol: bokeh, {token}")  # fmt: skip
    case.say(path, token)
    with socket.create_connection((parts.hostname, parts.port), timeout=9) as line:
        line.sendall("\r\n".join((*lines, "", "")).encode("utf-8", "replace"))
        line.settimeout(2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            line.recv(1000)


AREAS = [Area("addresses", "requests to the studio, its hosts and ports", 90, addresses, 30)]
