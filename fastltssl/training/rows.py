"""The rows of a cache on the device, and the Problem of a split: what a method may know of them."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.cache.reader import Group, read_features
from fastltssl.cache.splits import Split
from fastltssl.errors import RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.functional.bias import class_prior
from fastltssl.images.prompts import templates as template_set
from fastltssl.machine import usable_device
from fastltssl.types import Problem


class Rows(NamedTuple):
    """The features, labels and text of a cache, on a device."""

    features: dict[str, Float[Tensor, "N V D"]]  # float16, as stored; [N V 2D] with taps
    labels: dict[str, Int[Tensor, " N"]]
    views: tuple[str, ...]  # V of the group "train"
    text: Float[Tensor, "C T E"] | None
    projection: Float[Tensor, "D E"] | None
    logit_scale: float
    logit_bias: float
    ln_post: Float[Tensor, "2 D"] | None = None  # where the features are taps


def resident(cache: Cache, device: str = "cpu", taps: bool = False) -> Rows:
    """All features and labels of a cache, read once; with `taps` concat(mid, mlp) in place of the features."""
    arrays, device = ("mid", "mlp") if taps else ("features",), usable_device(device)
    return Rows(
        features={name: _read(group, arrays).to(device) for name, group in cache.groups.items()},
        labels={name: torch.from_numpy(group.labels).to(device) for name, group in cache.groups.items()},
        views=cache.groups["train"].views,
        text=None if cache.text is None else torch.from_numpy(cache.text).to(device),
        projection=None if cache.projection is None else torch.from_numpy(cache.projection).to(device),
        logit_scale=cache.logit_scale,
        logit_bias=cache.logit_bias,
        ln_post=torch.from_numpy(cache.ln_post).to(device) if taps and cache.ln_post is not None else None,
    )


def rows_for(cache: Cache, method: Any, rows: Rows | None = None, *, templates: str | None = None) -> Rows:
    """The rows that a method reads, features or taps: `rows` if these hold them already, else read from the cache.

    `templates` names a set of prompts: of the prompts in the cache only those of the set stay in the text. Raises
    RunError where the cache holds none of them.
    """
    taps = wants_taps(method)
    if rows is None or taps != (rows.ln_post is not None):
        rows = resident(cache, "cpu" if rows is None else str(rows.features["train"].device), taps=taps)
    if templates is None or rows.text is None:
        return rows
    wanted = template_set(templates)
    kept = [index for index, template in enumerate(cache.templates) if template in wanted]
    if not cache.templates:
        raise RunError(f"--templates {templates}: the prompts of this cache's text are not known, as it was imported")
    if not kept:
        raise RunError(
            f"--templates {templates}: the cache holds none of them, only {len(cache.templates)} such as "
            f"{cache.templates[0]!r}. Extract again with --templates {templates}"
        )
    return rows._replace(text=torch.from_numpy(cache.text)[:, kept].to(rows.text) if cache.text is not None else None)


def _read(group: Group, arrays: tuple[str, ...]) -> Float[Tensor, "N V _"]:
    parts = [torch.from_numpy(read_features(group, array=name)) for name in arrays]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def problem_bytes(rows: Rows, split: Split) -> int:
    """Bytes of memory that `make_problem` takes: copies of the labelled rows in float32 and of the pool in float16."""
    sizes = {name: features[:1].numel() for name, features in rows.features.items()}  # values of a row
    return 4 * sizes["train"] * len(split.labelled) + 2 * sizes.get(split.unlabelled_group, 0) * len(split.unlabelled)


def make_problem(rows: Rows, split: Split, steps: int, dtype: torch.dtype = torch.float32) -> Problem:
    """What a method may know of a split: everything but the labels of the unlabelled rows."""
    labelled = torch.from_numpy(split.labelled).to(rows.labels["train"].device)
    unlabelled = torch.from_numpy(split.unlabelled).to(labelled.device)
    y = rows.labels["train"][labelled]
    return Problem(
        x=rows.features["train"][labelled].to(dtype),
        y=y,
        u=rows.features[split.unlabelled_group][unlabelled],
        views=rows.views,
        steps=max(1, steps),
        prior=class_prior(y, len(split.counts)).to(dtype),
        text=rows.text,
        projection=rows.projection,
        logit_scale=rows.logit_scale,
        logit_bias=rows.logit_bias,
        ln_post=rows.ln_post,
    )
