"""Files that people write or other tools leave: YAML, JSON, CSV and the journal of a sweep, bent from valid ones."""

import json
import shutil
from functools import cache
from typing import Any

from fastltssl.reading import read_json
from fuzz import valid, values
from fuzz.case import Area, Case

CONFIG: dict[str, Any] = {
    "method": "probe", "seeds": [0, 1], "steps": 2, "evals": 1, "lr": 0.03, "weight_decay": 5e-4, "batch": 4,
    "batch_u": 4,
    "n1": 4, "m1": 4, "gamma_l": 1, "gamma_u": 1.0, "order": "consistent", "images": "seeded", "overlap": False,
    "val": 1,
    "class_order": "given", "on_shortage": "refuse", "report": "last", "groups": "thirds", "eval": "test",
    "set": {"tau": 1.0, "head": "cosine"},
}  # fmt: skip
GRID: dict[str, Any] = {
    "n1": 3, "steps": 2, "seeds": "0-1", "protocols": [{"name": "a", "order": "consistent"}, {"name": "b", "m1": 3}],
    "published": [{"method": "m", "source": "s", "differs": "d", "values": [50.0, None], "metric": "bacc"}],
}  # fmt: skip
SPACE: dict[str, Any] = {"tau": "0:2", "lr": "0.01:0.1:log", "head": ["cosine", "linear"], "batch": "4|8"}
GROUPS: dict[str, Any] = {"head": ["ant", "bee"], "medium": ["cat", "dog"], "tail": ["elk", "fox"]}
PRIOR = "class,prior\nant,0.3\nbee,0.2\ncat,0.2\ndog,0.1\nelk,0.1\nfox,0.1\n"
TRAIN = ("train", "probe", "--cache", "{toy}", "--n1", 4, "--steps", 2, "--evals", 1, "--out", "out")


def config(case: Case) -> None:
    """`train --config` with a bent file of options; what it writes must be read again."""
    file = case.given / "config.yaml"
    tree = values.bent(case.rng, CONFIG | {"cache": str(valid.toy())}, case.rng.choice((1, 1, 2)))
    file.write_bytes(values.as_yaml(case.rng, tree))
    case.say(file.read_bytes()[:400])
    case.command("train", "--config", file, "--out", "out")
    case.command("compare", "out")


def other(case: Case) -> None:
    """The files of a grid, of a space, of groups and of a prior, and the journal of a sweep."""
    rng, given, toy = case.rng, case.given, str(valid.toy())
    kind = rng.choice(("grid", "space", "groups", "prior", "journal", "json"))
    file = given / f"{kind}.yaml"
    train = [toy if word == "{toy}" else word for word in TRAIN]
    if kind in ("grid", "space", "groups"):
        tree = {"grid": GRID | {"cache": toy}, "space": SPACE, "groups": GROUPS}[kind]
        file.write_bytes(values.as_yaml(rng, values.bent(rng, tree, rng.choice((1, 1, 2)))))
    elif kind == "prior":
        file.write_bytes(values.mutated(rng, PRIOR.encode()))
    case.say(kind, file.read_bytes()[:400] if file.exists() else "")
    if kind == "grid":
        case.command("compare", "--protocol-grid", file, "--methods", "probe", "--out", "out")
    elif kind == "space":
        case.command("sweep", *train[1:], "--val", 1, "--trials", 2, "--space", file)
    elif kind == "groups":
        case.command(*train, "--groups", file)
    elif kind == "prior":
        case.command("bias", "--cache", toy, "--n1", 4, "--known-prior", file, "--out", "out")
    elif kind == "journal":
        shutil.copytree(_sweep(), "out")
        _bend_journal(case)
        case.command("sweep", *train[1:], "--val", 1, "--trials", 3)
    else:
        file.write_bytes(values.mutated(rng, values.as_json(values.bent(rng, CONFIG))))
        case.ready()
        read_json(file)


@cache
def _sweep() -> Any:
    """A finished sweep of two trials."""
    from click.testing import CliRunner

    from fastltssl.commands.cli import cli

    folder = valid.root() / "sweep"
    words = ["--cache", valid.toy(), *TRAIN[4:-1], folder, "--val", 1, "--trials", 2]
    result = CliRunner().invoke(cli, ["sweep", "probe", *map(str, words)])
    assert result.exit_code == 0, result.output
    return folder


def _bend_journal(case: Case) -> None:
    """Damage the journal of a sweep: its bytes, or a value in a line."""
    file = case.place / "out" / "study.journal"
    lines = file.read_bytes().splitlines(keepends=True)
    place = case.rng.randrange(len(lines))
    if case.rng.random() < 0.5:
        bent = values.as_json(values.bent(case.rng, json.loads(lines[place]))) + b"\n"
        file.write_bytes(b"".join([*lines[:place], bent, *lines[place + 1 :]]))
        case.say(bent[:300])
    else:
        file.write_bytes(values.mutated(case.rng, file.read_bytes()))


AREAS = [
    Area("configs", "YAML of `train --config`, bent", 600, config),
    Area("documents", "grids, spaces, groups, priors, journals, JSON, bent", 500, other, 30),
]
