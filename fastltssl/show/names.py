"""How a run and its protocol are named in tables and legends."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def label(row: dict[str, Any]) -> str:
    """A method with the settings it was given, and steps and learning rate where they are unusual."""
    parts = [row["method"], *_live_parts(row.get("live"))]
    parts += [f"{name}={_short(value)}" for name, value in row.get("settings", {}).items()]
    if row["steps"]:
        parts += [f"{name}={_short(row[name])}" for name, usual in (("steps", 500), ("lr", 0.03)) if row[name] != usual]
    return " ".join(parts)


def names_of(records: Sequence[dict[str, Any]], folders: Sequence[Path]) -> list[str]:
    """A name for each run: its method and settings, with its pool or its folder where that tells it from others."""
    labels = [label(record) for record in records]
    pools = [f"{name}, {one['protocol'].get('order')} pool" for name, one in zip(labels, records, strict=True)]
    short = [f"{name} ({folder.resolve().name})" for name, folder in zip(labels, folders, strict=True)]
    long = [f"{name} ({folder.resolve()})" for name, folder in zip(labels, folders, strict=True)]
    kinds = (labels, pools, short)

    def name(place: int) -> str:
        return next((names[place] for names in kinds if names.count(names[place]) == 1), long[place])

    return [name(place) for place in range(len(labels))]


def _live_parts(how: dict[str, Any] | None) -> list[str]:
    """How a run trained through the encoder, as far as it is unusual."""
    if not how:
        return []
    usual = {"lr": None, "optimizer": "sgd", "warmup": 0, "ema": 0.0, "views": "fresh"}
    names = {"lr": "encoder-lr"}
    parts = [f"{names.get(name, name)}={_short(how[name])}" for name, value in usual.items() if how[name] != value]
    return [f"live {how['mode']}", *parts]


def mark_below_la(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, semi-supervised ones marked where they end below the logit-adjusted probe on the same labels."""

    def labels_of(row: dict[str, Any]) -> str:
        switches = {k: v for k, v in row["protocol"].items() if k not in ("m1", "gamma_u", "order", "overlap")}
        return json.dumps([row["cache_fingerprint"], row["seeds"], switches], sort_keys=True)

    baseline: dict[str, float] = {}
    for row in rows:
        if row["method"] == "probe" and not {k: v for k, v in row["settings"].items() if (k, v) != ("tau", 1)}:
            baseline[labels_of(row)] = max(row["bacc"]["mean"], baseline.get(labels_of(row), 0.0))
    return [
        row | {"is_below_la": row["is_ssl"] and row["bacc"]["mean"] < baseline.get(labels_of(row), 0.0)} for row in rows
    ]


def protocol_line(row: dict[str, Any]) -> str:
    """The protocol of a record in one line."""
    protocol = row["protocol"]
    if protocol["n1"] is None:
        labelled = "every labelled row"
    else:
        labelled = f"N1 {protocol['n1']} gamma {protocol['gamma_l']:g}"
    gamma = "" if protocol["m1"] == "all" else f" gamma {protocol['gamma_u']:g}"
    pool = f", M1 {protocol['m1']}{gamma}" if protocol["m1"] else ""
    usual = {"val": 0, "test_per_class": 0, "images": "seeded", "overlap": False, "class_order": "given",
             "preset": None, "report": "last", "eval": "test", "groups": "thirds"}  # fmt: skip
    extra = "".join(f", {name.replace('_', ' ')} {protocol[name]}" for name in usual if protocol[name] != usual[name])
    if protocol["groups"] != "thirds" and row.get("group_sizes"):
        sizes = (f"{name} {_range(each)}" for name, each in row["group_sizes"].items())
        extra += f" ({', '.join(sizes)} classes)"
    extra += f", templates {row['templates']}" if row.get("templates") else ""
    seeds = len(row["seeds"])
    emulated = ", emulated views" if row.get("emulated") else ""
    rows = f"{_range(row['labelled'])} labelled, {_range(row['unlabelled'])} unlabelled rows"
    return f"{row['cache']}: {labelled}{pool} ({rows}), {seeds} seed{'s' if seeds > 1 else ''}{extra}{emulated}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
