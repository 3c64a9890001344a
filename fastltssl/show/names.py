"""The names of runs and protocols in tables and legends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastltssl.errors import plain

LONGEST = 20  # letters of the name of a class on an axis


def label(record: dict[str, Any]) -> str:
    """The method of a run with the settings it was given, and its steps and learning rate if not the defaults."""
    parts = [record["method"], *_live_parts(record.get("live"))]
    parts += [f"{name}={_short(value)}" for name, value in record.get("settings", {}).items()]
    if record["steps"]:
        defaults = {"steps": 500, "lr": 0.03}
        parts += [f"{name}={_short(record[name])}" for name, value in defaults.items() if record[name] != value]
    return " ".join(parts)


def names_of(records: Sequence[dict[str, Any]], folders: Sequence[Path]) -> list[str]:
    """A unique name for each run: its label, followed by its pool or its folder if several runs have that label.

    Names are plain text, whatever a folder is called.
    """
    labels = [label(record) for record in records]
    pools = [f"{name}, {record['protocol'].get('order')} pool" for name, record in zip(labels, records, strict=True)]
    short = [f"{name} ({folder.resolve().name})" for name, folder in zip(labels, folders, strict=True)]
    long = [f"{name} ({folder.resolve()})" for name, folder in zip(labels, folders, strict=True)]

    def name(index: int) -> str:
        return next((names[index] for names in (labels, pools, short) if names.count(names[index]) == 1), long[index])

    return [plain(name(index)) for index in range(len(labels))]


def short_name(name: str, longest: int = LONGEST) -> str:
    """The name of a class as an axis shows it: in one line, plain, and cut where it is long."""
    text = plain(" ".join(name.split()))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def pool_of(record: dict[str, Any]) -> str:
    """How the pool of a run is ordered; "" where it has none, or holds all rows there are, so that no order is kept."""
    protocol = record["protocol"]
    return protocol["order"] if isinstance(protocol["m1"], int) and protocol["m1"] else ""


def _live_parts(live: dict[str, Any] | None) -> list[str]:
    """The mode of a run that trained through the encoder, and its options that are not the defaults."""
    if not live:
        return []
    defaults = {"lr": None, "optimizer": "sgd", "warmup": 0, "ema": 0.0, "views": "fresh"}
    titles = {"lr": "encoder-lr"}
    parts = [
        f"{titles.get(name, name)}={_short(live[name])}" for name, value in defaults.items() if live[name] != value
    ]
    return [f"live {live['mode']}", *parts]


def protocol_line(record: dict[str, Any]) -> str:
    """The protocol of a record in one line; switches with their default value are left out."""
    protocol = record["protocol"]
    if protocol["n1"] is None:
        labelled = "every labelled row"
    else:
        labelled = f"N1 {protocol['n1']} gamma {protocol['gamma_l']:g}"
    gamma = "" if protocol["m1"] == "all" else f" gamma {protocol['gamma_u']:g}"
    pool = f", M1 {protocol['m1']}{gamma}" if protocol["m1"] else ""
    defaults = {"val": 0, "test_per_class": 0, "images": "seeded", "overlap": False, "class_order": "given",
                "preset": None, "report": "last", "eval": "test", "groups": "thirds"}  # fmt: skip
    changed = {name: protocol[name] for name, value in defaults.items() if protocol[name] != value}
    extra = "".join(f", {name.replace('_', ' ')} {value}" for name, value in changed.items())
    if protocol["groups"] != "thirds" and record.get("group_sizes"):
        sizes = (f"{name} {_range(counts)}" for name, counts in record["group_sizes"].items())
        extra += f" ({', '.join(sizes)} classes)"
    extra += f", templates {record['templates']}" if record.get("templates") else ""
    seeds = len(record["seeds"])
    emulated = ", emulated views" if record.get("emulated") else ""
    rows = f"{_range(record['labelled'])} labelled, {_range(record['unlabelled'])} unlabelled rows"
    return f"{record['cache']}: {labelled}{pool} ({rows}), {seeds} seed{'s' if seeds > 1 else ''}{extra}{emulated}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
