"""What comes from a notebook: files of arrays to import, rows and labels for Classifier, class names, method files."""

import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

import fastltssl
from fastltssl.cache.catalogue import open_cache, verify
from fastltssl.cache.reader import read_features
from fuzz import valid, values
from fuzz.case import Area, Case
from fuzz.stored import check_run

FLOATS, OTHERS = ("f4", "f4", "f4", "f8", "f2"), ("i4", "i8", "u1", "u8", "?", "c8", "U3", "O", "S2", "M8[s]")
SHAPES = ((12, 4), (12, 4), (12, 4), (12, 1), (1, 4), (2, 4), (0, 4), (12, 0), (12,), (12, 2, 4), (4, 12), ())


def rows(rng: Random, shapes: Any = SHAPES) -> np.ndarray:
    """Features, often with an accident: another type or shape, values that are huge, tiny, zero, or no numbers."""
    noise = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.75:
        return noise.normal(size=shapes[0]).astype("f4")
    with np.errstate(all="ignore"):
        made = noise.normal(size=rng.choice(shapes))
        if made.size and rng.random() < 0.4:
            made.flat[rng.randrange(made.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e30, 1e-30, 1e300))
        made = np.asarray(made * rng.choice((1, 1, 1, 1, 0, 1e-9, 1e30, 1e6)))
        return made.astype(rng.choice(FLOATS if rng.random() < 0.8 else OTHERS))


def labels(rng: Random, count: int = 12) -> Any:
    """Labels, often with an accident: gaps, another type or length, numbers as text, values that are no labels."""
    y: Any = np.arange(count) % 3
    odd = y.copy()
    odd[rng.randrange(count)] = rng.choice((-1, -2, 7, 10**6, 2**40))
    with np.errstate(all="ignore"):
        accidents = (odd, y + 1, y.astype(rng.choice((*FLOATS, *OTHERS[:7]))), np.array(list("abc"))[y], y[:-1], y * 0,
                     y * 10**6, y + rng.choice((0.5, np.nan)))  # fmt: skip
    return y if rng.random() < 0.75 else rng.choice(accidents)


def imports(case: Case) -> None:
    """A file of arrays, sometimes damaged, imported by the command; the cache must be whole and can be trained from."""
    rng = case.rng
    arrays = {
        "x": rows(rng),
        "y": labels(rng),
        "t": rows(rng, ((3, 4), (3, 4), (3, 2, 4), (2, 3, 4), (4, 4), (3, 5))),
        "c": np.array(
            rng.choice((list("abc"), list("abc"), ["a", "a", "c"], ["", "b", "c"], ["[/b]", "\x1b[3m", "c"], ["a"]))
        ),
    }
    if rng.random() < 0.3:
        arrays["c"] = rng.choice(
            (np.arange(3), np.array(5), arrays["c"].astype("O"), np.array([values.text(rng), "b", "c"]))
        )
    file = _saved(case, arrays)
    case.say(
        {name: (str(np.asarray(array).dtype), np.shape(array)) for name, array in arrays.items()},
        arrays["y"],
        arrays["c"],
    )
    words = ["--features", "x", "--labels", "y", "--out", "out.zarr"]
    words += rng.choice(([], ["--text", "t"], ["--text", "t", "--text-layout", "tcd"]))
    words += rng.choice(([], ["--classes", "c"], ["--test-features", "x", "--test-labels", "y"], ["--logit-scale",
                         values.number(rng)], ["--emulate", rng.choice(("weak:1:0.2,strong:1:0.5:0.1", "weak:1:nan",
                         "weak:99999999:1", "strong:1:1e30:1", values.argument(rng)))]))  # fmt: skip
    if rng.random() < 0.1:
        file.write_bytes(values.mutated(rng, file.read_bytes()))
    case.command("cache", "import", file, *words)
    assert not verify("out.zarr"), "the cache is damaged"
    cache = open_cache("out.zarr")
    for group in cache.groups.values():
        features = read_features(group)
        assert np.isfinite(features).all(), "features that are not finite are stored"
        assert np.abs(features).max(axis=-1).min() > 0, "features are stored as zeros"
    assert cache.text is None or np.isfinite(cache.text).all(), "text that is not finite is stored"
    assert cache.text is None or np.abs(cache.text).max(axis=-1).min() > 0, "text is stored as zeros"
    assert len(set(cache.classes)) == len(cache.classes), "two classes of one name"
    case.command(
        "train", rng.choice(("probe", "zeroshot")), "--cache", "out.zarr", "--steps", 2, "--evals", 1, "--out", "out"
    )
    check_run(Path("out"))


def _saved(case: Case, arrays: dict[str, Any]) -> Path:
    """The arrays in a file of one of the forms that are accepted; a form that cannot hold them leaves them out."""
    form = case.rng.choice(("npz", "npz", "npy", "safetensors", "parquet"))
    file = case.given / f"x.{form}"
    if form == "npz":
        np.savez(file, **arrays)
    elif form == "npy":
        for name, array in arrays.items():
            np.save(case.given / f"{name}.npy", array)
    elif form == "safetensors":
        from safetensors.numpy import save_file

        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items() if array.dtype.kind in "fiu?"}, file
        )
    else:
        import pyarrow
        import pyarrow.parquet

        columns = {}
        for name, array in arrays.items():
            try:
                columns[name] = pyarrow.array(array.tolist() if np.ndim(array) else [array])
            except (pyarrow.ArrowException, ValueError, TypeError):
                continue
        longest = max((len(column) for column in columns.values()), default=0)
        pyarrow.parquet.write_table(
            pyarrow.table({name: column for name, column in columns.items() if len(column) == longest}), file
        )
    return file


def classifier(case: Case) -> None:
    """Classifier with odd rows, labels, text and parameters; what it predicts must be its own classes and finite."""
    rng = case.rng
    x: Any = rows(rng)
    y: Any = labels(rng, max(1, len(x) if x.ndim else 1))
    if rng.random() < 0.5 and y.dtype.kind in "iu" and y.ndim:
        y = np.where(np.arange(len(y)) % 2, y, -1)
    forms = (lambda a: a, lambda a: a.tolist(), lambda a: torch.as_tensor(a) if a.dtype.kind in "fi?" else a)
    options: dict[str, Any] = {"steps": 2, "batch": 4, "batch_u": 4}
    if rng.random() < 0.4:
        options["text"] = rows(rng, ((3, 4), (3, 4), (3, 2, 4), (2, 4), (3, 3)))
    for name in rng.choices(("steps", "lr", "weight_decay", "batch", "seed", "settings", "emulate", "class_names",
    "views",
                             "logit_scale", "projection", "device", "method"), k=rng.choice((0, 0, 1, 2))):  # fmt: skip
        options[name] = _parameter(rng, name)
    case.say("Classifier", options, "X", str(x.dtype), x.shape, "y", y)
    case.ready()
    model = fastltssl.Classifier(**({"method": rng.choice(("probe", "fixmatch", "ulfine", "zeroshot"))} | options))
    fitted = model.fit(rng.choice(forms)(x), rng.choice(forms)(y))
    asked = x if rng.random() < 0.6 else rows(rng)
    case.say("asked", str(asked.dtype), asked.shape)
    probabilities = fitted.predict_proba(asked)
    assert np.isfinite(probabilities).all(), "probabilities that are not finite"
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-3), "probabilities that do not sum to one"
    assert set(fitted.predict(asked).tolist()) <= set(fitted.classes_.tolist()), "a label that is no class"


def _parameter(rng: Random, name: str) -> Any:
    special = {
        "settings": ({"tau": values.argument(rng)}, {"head": "linear"}, {"no": 1}, {"tau": None}, {1: 2}),
        "class_names": (["a", "b", "c"], [2, 1, 0], [0, 0, 1], [0, 1], "abc"),
        "views": (("center", "weak0"), ("weak0", "center"), ("center",), "center"),
        "emulate": ("weak:1:0.1,strong:1:0.1", "weak:1:-1", "weak:0:1", None),
        "method": ("none", "./none.py", "ulfine", ""), "projection": (np.eye(4), np.zeros((4, 2)), np.ones((3, 4))),
        "device": ("cuda:9", "meta", "cpu", "gpu", ""),
    }  # fmt: skip
    numbers = (
        0,
        -1,
        1,
        2,
        1e-3,
        1e30,
        float("nan"),
        float("inf"),
        None,
        10**30,
        True,
        "2",
        np.int64(2),
        np.float32(0.5),
    )
    return rng.choice(special.get(name, numbers))


def names(case: Case) -> None:
    """Class names with markup, controls and other scripts: stored as given, shown as plain text in tables and pages."""
    rng = case.rng
    given = [f"{values.text(rng)}{rng.choice(('', place))}" for place in "123"]
    case.say(given)
    np.savez(case.given / "x.npz", x=rows(Random(0), ((12, 4),)).astype("f4") + 1, y=np.arange(12) % 3,
    c=np.array(given),
             t=np.eye(4, dtype="f4")[:3])  # fmt: skip
    case.command(
        "cache",
        "import",
        case.given / "x.npz",
        *["--features", "x", "--labels", "y", "--classes", "c", "--text", "t", "--out", "out.zarr"],
    )
    assert list(open_cache("out.zarr").classes) == [name.rstrip("\0") for name in given], "other names are stored"
    case.command("cache", "info", "out.zarr", "--json")
    case.command("train", "zeroshot", "--cache", "out.zarr", "--eval", "all", "--out", "out")
    kind = rng.random()
    if kind < 0.4:
        case.command("bias", "--cache", "out.zarr", "--out", "bias", "--json")
    elif kind < 0.5:
        case.command("report", "out", "--out", "out.html")
        page = Path("out.html").read_text(encoding="utf-8")
        assert "<script>alert" not in page, "a name is part of the page's code"


METHOD = '''
"""Mine: a method of the fuzzer."""
from dataclasses import dataclass, field
import torch
import fastltssl.functional as fl

@dataclass(frozen=True, eq=False)
class Method:
    """L = CE."""
    power: fl.Knob = fl.knob(POWER, 0.0, 8.0, "power")
    head: fl.Head = field(default_factory=fl.Cosine)
    views = VIEWS

    def init(self, problem, generator):
        return INIT

    def start(self, problem):
        return START

    def loss(self, params, state, batch, progress):
        z = self.head.scores(params, state, batch.x)
        loss = fl.cross_entropy(z, batch.y).mean()
        return OUT

    def scores(self, params, state, x):
        z = self.head.scores(params, state, x)
        return SCORES
'''
GOOD = {"POWER": "2.0", "VIEWS": "(1, 1)", "INIT": "self.head.init(problem, generator)",
        "START": "self.head.start(problem)", "OUT": "fl.Out(loss, state, {})",
        "SCORES": 'dict.fromkeys(("test", "pseudo"), z)'}  # fmt: skip
BAD = {
    "POWER": ("None", '"a"', "float('nan')", "1 / 0", "[]"),
    "VIEWS": ("(0, 0)", "(1,)", "None", "(9, 9)", "(-1, 1)", '("a", 1)', "(10**9, 1)", "property(lambda s: 1 / 0)",
    "(0, 1)"),
    "INIT": ("None", "{}", "[]", "3", "{'a': None}", "{'weight': torch.zeros(0)}", "1 / 0",
             "{'a': torch.zeros(2), 1: 'x'}",
             "{'weight': torch.full((6, 8), float('nan'))}", "(yield)", "open('none').read()"),
    "START": ("None", "3", "[1]", "{'a': 'x'}", "1 / 0", "problem.none", "{'prior_u': torch.zeros(2)}"),
    "OUT": ("None", "loss", "fl.Out(loss * float('nan'), state, {})", "fl.Out(loss, None, {})", "fl.Out(z, state, {})",
            "fl.Out(loss, state, None)", "fl.Out(loss, state, {'a': 3})", "fl.Out(loss, state, {1: loss})", "1 / 0",
            "fl.Out(loss.item(), state, {})", "fl.Out(loss, state, {'step': loss})", "fl.Out(loss.long(), state, {})",
            "fl.Out(loss.detach(), state, {})", "fl.Out(loss, state, {'loss': loss})",
            "fl.Out(-1e30 * loss, state, {})",
            "fl.Out(torch.tensor(3.0), state, {})", "batch.truth", "[loss][5]"),
    "SCORES": ("z", "{}", "{'test': None}", "{'test': z[:, :2]}", "{'test': z}",
               "{'test': z * float('nan'), 'pseudo': z}",
               "{'test': z.long(), 'pseudo': z}", "{'test': z.numpy()}", "{'test': z, 'pseudo': z[:1]}", "1 / 0",
               "{'test': z, 'pseudo': z, 3: z}", "{'test': z.T, 'pseudo': z}"),
}  # fmt: skip


def methods(case: Case) -> None:
    """A method file in which one to two members return something else, are no Python, or fail."""
    rng, parts = case.rng, dict(GOOD)
    for name in rng.choices(list(BAD), k=rng.choice((1, 1, 2))):
        parts[name] = rng.choice(BAD[name])
        case.say(name, parts[name])
    text = re.sub("|".join(GOOD), lambda found: parts[found[0]], METHOD)
    file = case.given / rng.choice(("mine.py", "mine.py", "a b.py", "torch.py", "1.py", "[x].py"))
    raw = text.encode() if rng.random() < 0.85 else values.mutated(rng, text.encode())
    file.write_bytes(raw)
    modules = dict(sys.modules)
    try:
        if rng.random() < 0.2:
            case.command("methods", file)
        case.command(
            "train",
            file,
            "--cache",
            valid.toy(),
            *["--n1", "4", "--m1", "4", "--steps", "2", "--evals", "1", "--out", "out"],
        )
        check_run(Path("out"))
    finally:
        is_whole = sys.modules["torch"] is torch
        sys.modules.update(modules)
        assert is_whole, "the file takes the place of a library"


AREAS = [
    Area("imports", "npz, npy, safetensors and parquet with odd types, shapes, labels, names", 700, imports),
    Area("classifier", "Classifier: rows, labels, text and parameters of any kind", 800, classifier),
    Area("names", "class names: markup, controls, right-to-left, other scripts", 100, names),
    Area("methods", "method files whose members return something else or fail", 350, methods),
]
