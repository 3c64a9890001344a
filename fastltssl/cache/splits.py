"""Long-tailed splits: which rows of a cache are labelled, unlabelled, for validation and for test.

A split holds row numbers alone, so that one cache serves every protocol. Published code agrees on the long-tailed
counts and differs in other choices, each of which is a field of `Protocol` and is recorded with the run.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from fastltssl.errors import SplitError, SwitchError
from fastltssl.reading import typed
from fastltssl.types import seeded

ORDERS = ("consistent", "uniform", "reversed", "middle", "head-tail", "random")
# No published code takes validation rows from the training set or draws which classes are frequent.
PUBLISHED: dict[str, object] = {"val": 0, "class_order": "given"}
PRESETS: dict[str, dict[str, object]] = {
    "usb": {"images": "seeded", "overlap": False} | PUBLISHED,
    "acr": {"images": "file-order", "overlap": True} | PUBLISHED,
    "adello": {"images": "seeded", "overlap": True} | PUBLISHED,
    "simpro": {"images": "file-order", "overlap": False} | PUBLISHED,
    "finessl": {"images": "file-order", "overlap": True} | PUBLISHED,
}
FEW_SHOT = ("finessl",)  # presets that imply --m1 all where no m1 is given


@dataclass(frozen=True)
class Protocol:
    """The choices that define a split.

    m1 "all" puts every row into the unlabelled pool that is not labelled, validation or test, so that n1 = n and
    gamma_l = 1 give the usual few-shot protocol. With m1 "all" or None a group "unlabeled" of the cache is the pool.
    """

    n1: int | None = None  # labelled rows of the most frequent class; None: every labelled training row
    m1: int | Literal["all"] | None = None  # unlabelled rows of the most frequent class; None: none of "train"
    gamma_l: float = 1.0  # imbalance of the labelled rows: largest over smallest class
    gamma_u: float = 1.0  # imbalance of the unlabelled pool
    order: str = "consistent"  # of ORDERS: which classes are frequent in the pool
    images: str = "seeded"  # which images of a class are taken: seeded, or the first ones (file-order)
    overlap: bool = False  # whether labelled rows are in the pool, too
    val: int = 0  # validation rows of each class, taken from "train"
    test_per_class: int = 0  # test rows of each class, taken from "train"; 0: the group "test"
    class_order: str = "given"  # which classes are frequent: the first ones (given), or seeded
    on_shortage: str = "refuse"  # where a class has too few rows: refuse, or take what there is (cap)
    preset: str | None = None  # of PRESETS: the choices of a published code base

    @classmethod
    def of(cls, switches: Mapping[str, Any], where: str = "protocol") -> "Protocol":
        """The protocol of named switches; numbers may be numpy's, or text. `where` is named by a message.

        Raises SwitchError on an unknown name, a value of another type, or one that the preset sets otherwise. Which
        values of a type are usable is checked where the split is made, by `checked`.
        """
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in switches.items()}
        protocol = typed(plain, cls, where, SwitchError)
        for name, value in PRESETS.get(str(protocol.preset), {}).items():
            if name in plain and getattr(protocol, name) != value:
                asked = getattr(protocol, name)
                raise SwitchError(f"preset {protocol.preset} sets {name} to {value}, and {asked} was asked for")
        return protocol


class Split(NamedTuple):
    """Rows of the cached groups by their use, and how many were missing."""

    labelled: np.ndarray  # [L] rows of "train"
    unlabelled: np.ndarray  # [M] rows of `unlabelled_group`
    unlabelled_group: str
    val: np.ndarray  # rows of "train"
    test: np.ndarray  # rows of `test_group`
    test_group: str
    counts: np.ndarray  # [C] labelled rows of each class
    shortage: int  # rows that were asked for and do not exist (on_shortage="cap")


def long_tailed_counts(n_classes: int, head: int, gamma: float) -> np.ndarray:
    """N_k = floor(N_1 gamma^(-k / (C - 1)) + 1e-9), k = 0 .. C - 1, int64."""
    if n_classes < 1 or head < 0 or gamma < 1:
        raise SplitError(f"counts need n_classes >= 1, head >= 0 and gamma >= 1, got {n_classes}, {head} and {gamma}")
    exponent = -np.arange(n_classes) / max(1, n_classes - 1)
    return np.floor(head * gamma**exponent + 1e-9).astype(np.int64)


def arrange(counts: np.ndarray, order: str, rng: np.random.Generator | None = None) -> np.ndarray:
    """Long-tailed counts, given from the largest to the smallest, in an order of the unlabelled pool."""
    if order == "uniform":
        return np.full_like(counts, counts[0])
    if order == "random":
        if rng is None:
            raise SplitError("order 'random' needs a generator")
        return rng.permutation(counts)
    places = np.arange(len(counts))
    odd, even = places[1::2], places[0::2]
    by_order = {
        "consistent": places,
        "reversed": places[::-1],
        "middle": np.concatenate([even[::-1], odd]),
        "head-tail": np.concatenate([odd, even[::-1]]),
    }
    if order not in by_order:
        raise SplitError(f"order {order!r} is not one of {', '.join(ORDERS)}")
    return counts[by_order[order]]


def checked(protocol: Protocol) -> Protocol:
    """The protocol with its preset applied; raises SwitchError on a value that no split can have."""
    if protocol.preset is not None:
        if protocol.preset not in PRESETS:
            raise SwitchError(f"preset {protocol.preset!r} is not one of {', '.join(PRESETS)}")
        protocol = dataclasses.replace(protocol, **PRESETS[protocol.preset])  # type: ignore[arg-type]
        if protocol.preset in FEW_SHOT and protocol.m1 is None:
            protocol = dataclasses.replace(protocol, m1="all")
    named = {
        "order": ORDERS,
        "images": ("file-order", "seeded"),
        "class_order": ("given", "seeded"),
        "on_shortage": ("refuse", "cap"),
    }
    for name, accepted in named.items():
        if getattr(protocol, name) not in accepted:
            flag = name.replace("_", "-")
            raise SwitchError(f"--{flag} {getattr(protocol, name)!r} is not one of {', '.join(accepted)}")
    for name in ("gamma_l", "gamma_u"):
        if not 1 <= getattr(protocol, name) < float("inf"):
            raise SwitchError(
                f"--{name.replace('_', '-')} {getattr(protocol, name)} is below 1; gamma is head count over tail "
                "count, and --order reversed turns the unlabelled pool around"
            )
    if protocol.m1 == "all" and (protocol.gamma_u != 1 or protocol.order != "consistent"):
        raise SwitchError(
            "--m1 all takes every row that is left, so --gamma-u and --order do nothing. Give --m1 a number"
        )
    for name in ("n1", "m1", "val", "test_per_class"):
        value = getattr(protocol, name)
        if value is None or (name, value) == ("m1", "all"):
            continue
        if not isinstance(value, int):
            raise SwitchError(f"--{name.replace('_', '-')} {value!r} is not a whole number{' or all' * (name == 'm1')}")
        if value < 0 or (name == "n1" and value < 1):
            raise SwitchError(f"--{name.replace('_', '-')} {value} is below {1 if name == 'n1' else 0}")
    return protocol


def long_tailed(labels: dict[str, np.ndarray], n_classes: int, protocol: Protocol, seed: int) -> Split:
    """The split of one seed, from the labels of the cached groups ("train", maybe "test" and "unlabeled").

    Raises SwitchError on a bad value of the protocol, SplitError where rows are missing.
    """
    protocol = checked(protocol)
    if "train" not in labels:
        raise SplitError(f"the cache has no group 'train', only {', '.join(sorted(labels))}")
    rng = np.random.default_rng(seeded(seed, "split").initial_seed())
    classes = rng.permutation(n_classes) if protocol.class_order == "seeded" else np.arange(n_classes)
    pools = _pools(labels["train"], n_classes, protocol.images, rng)
    taken = _Taken(pools, protocol.on_shortage)
    if protocol.test_per_class:
        test, test_group = taken.take(np.full(n_classes, protocol.test_per_class), "test"), "train"
    else:
        test_group = "test" if "test" in labels else ""
        test = np.flatnonzero(labels["test"] >= 0) if test_group else np.zeros(0, np.int64)
    val = taken.take(np.full(n_classes, protocol.val), "validation")
    if protocol.n1 is None:
        wanted = np.array([taken.left(k) for k in range(n_classes)])
    else:
        wanted = np.empty(n_classes, np.int64)
        wanted[classes] = long_tailed_counts(n_classes, protocol.n1, protocol.gamma_l)
    labelled = taken.take(wanted, "labelled")
    counts = np.bincount(labels["train"][labelled], minlength=n_classes)
    if (counts == 0).any():
        k = int(np.flatnonzero(counts == 0)[0])
        way_out = f"raise --n1 ({protocol.n1}), lower --gamma-l ({protocol.gamma_l:g}), or " if protocol.n1 else ""
        raise SplitError(
            f"class {k} gets no labelled image (asked for {wanted[k]}, there are {len(pools[k])}); "
            f"{way_out}cache a set that has images of it"
        )
    unlabelled, group = _unlabelled(labels, classes, protocol, taken, labelled, rng)
    return Split(
        labelled=labelled,
        unlabelled=unlabelled,
        unlabelled_group=group,
        val=val,
        test=test,
        test_group=test_group,
        counts=counts,
        shortage=taken.shortage,
    )


def _unlabelled(
    labels: dict[str, np.ndarray],
    classes: np.ndarray,
    protocol: Protocol,
    taken: "_Taken",
    labelled: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str]:
    """Rows of the unlabelled pool, and the group that they are in.

    A number m1 sets how many rows each class gets: from a group "unlabeled" whose labels are known (training does not
    see them), else from the training rows that are left. Without a number all of "unlabeled" is the pool.
    """
    if "unlabeled" in labels and protocol.m1 in (None, "all"):
        return np.arange(len(labels["unlabeled"])), "unlabeled"
    if not protocol.m1:
        return np.zeros(0, np.int64), "train"
    if protocol.m1 == "all":
        rest = np.setdiff1d(np.arange(len(labels["train"])), taken.rows())
        return np.sort(np.concatenate([labelled, rest])) if protocol.overlap else rest, "train"
    wanted = np.empty(len(classes), np.int64)
    tail = long_tailed_counts(len(classes), protocol.m1, protocol.gamma_u)
    wanted[classes] = arrange(tail, protocol.order, rng)
    if "unlabeled" in labels and (labels["unlabeled"] >= 0).all() and not protocol.overlap:
        pools = _pools(labels["unlabeled"], len(classes), protocol.images, rng)
        apart = _Taken(pools, protocol.on_shortage)
        pool = apart.take(wanted, "unlabelled")
        taken.shortage += apart.shortage
        return pool, "unlabeled"
    pool = taken.take(wanted, "unlabelled")
    if protocol.overlap:
        pool = np.sort(np.concatenate([labelled, pool]))
    return pool, "train"


def _pools(labels: np.ndarray, n_classes: int, images: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each class, shuffled or in the order of the cache."""
    pools = [np.flatnonzero(labels == k) for k in range(n_classes)]
    return [rng.permutation(pool) for pool in pools] if images == "seeded" else pools


class _Taken:
    """Takes rows of each class from the front of its pool, no row twice."""

    def __init__(self, pools: list[np.ndarray], on_shortage: str) -> None:
        self.pools, self.on_shortage, self.shortage = pools, on_shortage, 0
        self.used = [0] * len(pools)

    def left(self, k: int) -> int:
        """Rows of a class that are not taken yet."""
        return len(self.pools[k]) - self.used[k]

    def rows(self) -> np.ndarray:
        """All rows taken so far."""
        return np.concatenate([pool[:used] for pool, used in zip(self.pools, self.used, strict=True)])

    def take(self, wanted: np.ndarray, what: str) -> np.ndarray:
        """The next rows, so many of each class, sorted; `what` names their use in a message."""
        rows = []
        for k, count in enumerate(wanted.tolist()):
            if count > self.left(k):
                if self.on_shortage == "refuse":
                    if what == "unlabelled" or (what == "labelled" and self.left(k)):
                        way_out = "Lower the request, or pass --on-shortage cap"
                    elif not len(self.pools[k]):  # a cap does not help, as each class needs a labelled row
                        way_out = "Cache a set that has images of it"
                    else:
                        way_out = "Lower --val or --test-per-class"
                    raise SplitError(
                        f"class {k} has {self.left(k)} images left and {count} {what} ones were asked for "
                        f"({len(self.pools[k])} in the cache). {way_out}"
                    )
                self.shortage += count - self.left(k)
            rows.append(self.pools[k][self.used[k] : self.used[k] + count])
            self.used[k] += len(rows[-1])
        return np.sort(np.concatenate(rows))
