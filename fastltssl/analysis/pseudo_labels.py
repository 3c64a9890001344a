"""How pseudo-labels suffer from the imbalance of the pool: methods x unlabelled pools, trained from one cache.

`fastltssl analyze pseudo-labels` prints and draws what is computed here. Numbers are in percent, KL is in nats.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.splits import ORDERS
from fastltssl.errors import RunError, SwitchError
from fastltssl.methods import configure
from fastltssl.progress import Work
from fastltssl.runs.config import Config, check
from fastltssl.runs.experiment import training, training_together
from fastltssl.training.rows import Rows

MEASURES = {  # of the study: the part of a run's record that holds it ("" for the record itself), and its name there
    "kl": ("audit", "kl"),
    "tail_recall": ("audit", "recall_tail"),
    "precision": ("audit", "accuracy"),
    "mask_rate": ("audit", "mask_rate"),
    "bacc": ("", "bacc"),
}
FURTHER = {  # only in the CSV and the JSON
    "kl_all": ("audit", "kl_all"),
    "prior_kl": ("audit", "prior_kl"),
    "recall": ("audit", "recall"),
    "wrong_confidence": ("audit", "wrong_confidence"),
    "right_confidence": ("audit", "right_confidence"),
    "test_tail": ("", "tail"),
}


class Pool(NamedTuple):
    """An unlabelled pool of the study: the order of its class counts, and its imbalance."""

    order: str
    gamma_u: float

    @property
    def name(self) -> str:
        return self.order if self.order == "uniform" else f"{self.order} {self.gamma_u:g}"


class Choice(NamedTuple):
    """A method of the study, with the knobs it was given as text."""

    name: str
    settings: dict[str, str]

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{knob}={value}" for knob, value in self.settings.items())])


def run_name(method: str, settings: Mapping[str, Any], *parts: str) -> str:
    """The name of a run's folder: the method, its settings and some parts, without characters that a shell reads."""
    words = [Path(method).stem, *(f"{knob}={value}" for knob, value in settings.items()), *parts]
    return re.sub(r"[^\w.=-]", "_", "-".join(words))


def pools(gammas: Sequence[float], orders: Sequence[str]) -> list[Pool]:
    """The different pools among orders x gammas: at gamma 1 every order is uniform, and uniform has no gamma."""
    if unknown := [order for order in orders if order not in ORDERS]:
        raise SwitchError(f"--orders {unknown[0]!r} is not one of {', '.join(ORDERS)}")
    named = {
        Pool("uniform", 1.0) if order == "uniform" or gamma == 1 else Pool(order, gamma)
        for order in orders
        for gamma in gammas
    }
    return sorted(named, key=lambda pool: (pool != ("uniform", 1.0), ORDERS.index(pool.order), pool.gamma_u))


def plan(base: Config, choices: Sequence[Choice], pools: Sequence[Pool], cache: Cache) -> list[list[Config]]:
    """The experiments, a list for each method, checked before anything is trained.

    Raises RunError where a method makes no pseudo-labels or the pool has no true labels to judge them by, SplitError
    where the cache cannot serve one of the pools.
    """
    for choice in choices:
        if not configure(choice.name, choice.settings).views[0]:
            raise RunError(
                f"{choice.name} makes no pseudo-labels; name semi-supervised methods in --methods (see `fastltssl "
                "methods`). The probe LP+LA is trained beside them anyway"
            )
    base = dataclasses.replace(base, protocol=check(base).protocol)
    if not isinstance(base.protocol.m1, int) or not base.protocol.m1:
        group, why = cache.groups.get("unlabeled"), "the study varies a pool that is counted by class"
        if group is not None and (group.labels < 0).any():
            why = "the group unlabeled has no true labels to judge pseudo-labels by"
        raise RunError(f"{base.cache}: {why}. Add --m1 n, to take the pool from rows whose labels are known")
    for pool in pools:
        protocol = dataclasses.replace(base.protocol, order=pool.order, gamma_u=pool.gamma_u)
        for seed in base.seeds:
            cache.split_of(protocol, seed)
    return [
        [
            dataclasses.replace(
                base,
                method=choice.name,
                settings=dict(choice.settings),
                protocol=dataclasses.replace(base.protocol, order=pool.order, gamma_u=pool.gamma_u),
            )
            for pool in pools
        ]
        for choice in choices
    ]


def reference(base: Config, cache: Cache, rows: Rows, out: Path | None) -> Work[dict[str, Any]]:
    """Train the logit-adjusted probe (LP+LA) on the same labels; a method below it has not gained from its pool.

    Returns the record.
    """
    protocol = dataclasses.replace(base.protocol, m1=0, gamma_u=1.0, order="consistent")
    config = dataclasses.replace(base, method="probe", settings={}, protocol=protocol)
    return (yield from training(config, cache, rows, out))


def studying(configs: Sequence[Config], cache: Cache, rows: Rows, folder: Path) -> Work[list[dict[str, Any]]]:
    """Train one method on every pool, seeds and pools of one size jointly, each run into a folder of its own.

    Returns the records.
    """
    folders = [
        folder / run_name(config.method, config.settings, config.protocol.order, f"{config.protocol.gamma_u:g}")
        for config in configs
    ]
    return (yield from training_together(configs, cache, rows, folders))


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of the study: the method by that name, its pool, and each measure as {mean, std, values} or None."""
    protocol = record["protocol"]
    measures = {
        key: (record[part] or {}).get(name_there) if part else record[name_there]
        for key, (part, name_there) in (MEASURES | FURTHER).items()
    }
    return {
        "method": name,
        "order": protocol["order"],
        "gamma_u": protocol["gamma_u"],
        "pool": Pool(protocol["order"], protocol["gamma_u"]).name,
        "unlabelled": record["unlabelled"],
        "seeds": record["seeds"],
        **measures,
        "is_below_la": bool(record.get("is_below_la")),
        "run": record["run"],
    }


def seed_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The study as a tidy table: a row for each method, pool and seed."""
    return [
        {
            **{name: row[name] for name in ("method", "order", "gamma_u")},
            "unlabelled": row["unlabelled"][place],
            "seed": seed,
            **{name: row[name]["values"][place] if row[name] else None for name in MEASURES | FURTHER},
        }
        for row in rows
        for place, seed in enumerate(row["seeds"])
    ]
