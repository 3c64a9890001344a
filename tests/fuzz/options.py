"""Options of every command, found by its own parameters: numbers, texts and paths of any kind."""

from functools import cache
from typing import Any

import click
import numpy as np
from PIL import Image

from fastltssl.commands.cli import cli
from fuzz import valid, values
from fuzz.case import Area, Case

SMALL = "--n1 4 --steps 2 --evals 1"
BASES = {  # command -> arguments that work and take a moment; {names} are made by `_filled`
    "extract": "--model tiny --dataset world:mild:1:1 --views center --templates world --out out.zarr",
    "cache ls": "",
    "cache info": "{toy}",
    "cache verify": "{toy}",
    "cache rm": "{own} --yes",
    "cache add-views": "{own} --views center,weak:2",
    "cache import": "{npz} --features x --labels y --out out.zarr",
    "train": f"{{method}} --cache {{toy}} {SMALL} --m1 4 --out out",
    "sweep": f"probe --cache {{toy}} {SMALL} --val 1 --trials 2 --out out",
    "compare": "{run} {probe}",
    "studio": "{folder}",
    "report": "{run} --out out.html",
    "predict": "{live} {png} --out out.csv",
    "export": "{probe} --out out",
    "analyze pseudo-labels": f"--cache {{toy}} --methods fixmatch --gamma-u 1 --orders uniform {SMALL} --m1 4",
    "analyze lp-lft-fft": f"--cache {{toy}} {SMALL} --out out",
    "bias": "--cache {toy} --n1 4 --out out",
    "methods": "{method}",
    "world sheet": "--each 1 --out out.png",
    "doctor": "",
}
SLOW = {"report": 0.1, "extract": 0.3, "sweep": 0.4, "analyze pseudo-labels": 0.4, "world sheet": 0.2, "doctor": 0.1}
METHODS = ("probe", "fixmatch", "ulfine", "zeroshot", "ridge", "tip", "gla", "labelprop", "simpro")
OUTPUTS = {"out", "figures", "csv_file", "markdown_file", "latex_file", "parquet", "storage", "overwrite"}


@cache
def command(name: str) -> click.Command:
    """A command by its words."""
    found: Any = cli
    for word in name.split():
        found = found.get_command(click.Context(cli), word)
    return found


def act(case: Case) -> None:
    """A command with arguments that work, of which one to three are replaced or added."""
    rng = case.rng
    name = rng.choices(list(BASES), [SLOW.get(name, 1.0) for name in BASES])[0]
    words = [_filled(case, word) for word in BASES[name].split()]
    parameters = [item for item in command(name).params if item.name != "help"]
    case.is_free = name == "cache rm"
    for item in rng.choices(parameters, k=rng.choice((1, 1, 2, 3))) if parameters else ():
        case.is_free |= item.name in OUTPUTS
        if isinstance(item, click.Argument):
            places = [place for place, word in enumerate(words) if place == 0 and not word.startswith("-")]
            words = [*(value if place in places else word for place, word in enumerate(words)
                       for value in [_value(case, item)])]  # fmt: skip
        else:
            words.append(rng.choice((*item.opts, *item.secondary_opts)))
            words += [] if item.is_flag else [_value(case, item)]
    case.command(*name.split(), *words)


def _filled(case: Case, word: str) -> str:
    """A word of BASES with what its {name} stands for."""
    given = case.given
    made = {
        "{toy}": valid.toy,
        "{own}": lambda: valid.copied(valid.toy(), given / "own.zarr"),
        "{run}": valid.run,
        "{probe}": lambda: valid.run("probe"),
        "{live}": lambda: valid.run("live"),
        "{folder}": lambda: given,
        "{method}": lambda: case.rng.choice(METHODS),
        "{npz}": lambda: _saved(given / "x.npz"),
        "{png}": lambda: _drawn(given / "x.png"),
    }
    return str(made[word]()) if word in made else word


def _saved(file: Any) -> Any:
    rng = np.random.default_rng(0)
    np.savez(file, x=rng.normal(size=(12, 4)).astype("f4"), y=np.arange(12) % 3)
    return file


def _drawn(file: Any) -> Any:
    Image.new("RGB", (20, 30), (200, 30, 90)).save(file)
    return file


def _value(case: Case, item: click.Parameter) -> str:
    """A value for a parameter: mostly of its own kind, though an odd one."""
    rng = case.rng
    if rng.random() < 0.15:
        return values.argument(rng)
    if isinstance(item.type, click.Path | click.File) or item.name in ("cache", "name", "run", "storage", "groups"):
        return values.path(rng, case.given)
    if isinstance(item.type, click.Choice):
        return rng.choice((*item.type.choices, values.argument(rng)))
    if item.name == "dataset":
        kind = rng.choice(("folder:", "list:", "wds:", "world:", "", "folder", "world:mild:", "world:mild:1:"))
        return kind + rng.choice((values.path(rng, case.given), values.argument(rng)))
    if item.type in (click.INT, click.FLOAT) or isinstance(item.type, click.IntRange | click.FloatRange):
        return values.number(rng).replace("\0", "")
    if item.name in ("set", "ranges"):
        return f"{rng.choice(('tau', 'head', 'lr', 'head.scale', 'no'))}={values.argument(rng)}"
    return values.argument(rng)


AREAS = [Area("options", "options and arguments of every command but demo and world train", 1500, act, 30)]
