"""The images that a training through the encoder reads: decoded once, their views made whenever they are encoded.

Where the first blocks are frozen and views recur, `fastltssl.live.tokens` takes the place of this.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt64
from torch import Tensor

from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.pipeline import LOT
from fastltssl.errors import SourceError
from fastltssl.images.source import Source
from fastltssl.images.views import CENTER, STRONG, WEAK, Recipe, View, image_key, make_view
from fastltssl.machine import SPARE, available_memory


class Seen(NamedTuple):
    """A list of n views to be encoded."""

    picture: Int[np.ndarray, " n"]  # indices in Pictures
    names: tuple[str, ...]  # of the views, such as "center" or "weak0"; n of them

    def part(self, first: int, last: int) -> "Seen":
        """The views [first, last)."""
        return Seen(self.picture[first:last], self.names[first:last])


def concatenated(*parts: Seen) -> Seen:
    """All views of the parts, as one list."""
    return Seen(np.concatenate([part.picture for part in parts]), tuple(name for part in parts for name in part.names))


@dataclass(frozen=True, eq=False)
class Pictures:
    """N images as canvases, squares of the side S that the encoder takes; once decoded kept in memory, if all fit."""

    source: Source
    encoder: Encoder
    group: tuple[str, ...]  # of the source, for each picture
    row: Int[np.ndarray, " N"]  # in that group
    keys: UInt64[np.ndarray, " N"]  # that seed the random numbers of views
    store: UInt8[Tensor, "_ 3 S S"]  # [N 3 S S], or [0 3 S S] where pictures are decoded whenever they are encoded
    is_ready: np.ndarray  # bool [N]: decoded into the store
    lots: dict[int, tuple[np.ndarray, Tensor]] = field(default_factory=dict)  # decoded ahead where there is no store

    def prepare(self, lot: int, index: Int[np.ndarray, " n"]) -> None:
        """Decode pictures ahead; without a store they are kept under the number `lot` until `forget(lot)`."""
        index = np.unique(index)
        if len(self.store):
            self.canvases(index)
        else:
            self.lots[lot] = index, self._decoded(index)

    def forget(self, lot: int) -> None:
        """Free the pictures decoded for a lot."""
        self.lots.pop(lot, None)

    def canvases(self, index: Int[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 S S"]:
        """The pictures with these indices, decoded now unless they are in memory."""
        if not len(self.store):
            for ready, decoded in list(self.lots.values()):
                if np.isin(index, ready).all():
                    return decoded[np.searchsorted(ready, index)]
            return self._decoded(index)
        missing = np.unique(index[~self.is_ready[index]])
        if len(missing):
            self.store[missing] = self._decoded(missing)
            self.is_ready[missing] = True
        return self.store[index]

    def _decoded(self, index: Int[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 S S"]:
        side = self.encoder.size
        canvases = np.empty((len(index), 3, side, side), np.uint8)
        for name in dict.fromkeys(self.group[i] for i in index):
            places = [place for place, i in enumerate(index) if self.group[i] == name]
            for start in range(0, len(places), LOT):
                lot = places[start : start + LOT]
                images = self.source.groups[name].read([int(self.row[index[place]]) for place in lot])
                for place, image in zip(lot, images, strict=True):
                    canvases[place] = self.encoder.canvas(image)
        return torch.from_numpy(canvases)


def pictures_of(source: Source, encoder: Encoder, wanted: Sequence[tuple[str, Sequence[str]]]) -> Pictures:
    """The images of `wanted`, pairs of a group and ids in it, in this order. Raises SourceError for an absent one."""
    row_of = {name: {id_: row for row, id_ in enumerate(images.ids)} for name, images in source.groups.items()}
    for name, ids in wanted:
        if lost := next((id_ for id_ in ids if id_ not in row_of.get(name, {})), None):
            raise SourceError(
                f"{source.name} has no image {lost!r} in its group {name!r}, and the cache was made of one that has. "
                "Give the --dataset and --root it was made with"
            )
    ids = [id_ for _, of_group in wanted for id_ in of_group]
    row = np.array([row_of[name][id_] for name, of_group in wanted for id_ in of_group], np.int64)
    shape = (3, encoder.size, encoder.size)
    fits = len(ids) * int(np.prod(shape)) <= SPARE / 2 * available_memory()
    return Pictures(
        source,
        encoder,
        tuple(name for name, of_group in wanted for _ in of_group),
        row,
        np.array([image_key(id_) for id_ in ids], np.uint64),
        torch.empty(len(ids) if fits else 0, *shape, dtype=torch.uint8),
        np.zeros(len(ids), bool),
    )


class Augmented(NamedTuple):
    """Makes a list of views into the pixels that the encoder takes: normalised, on its device."""

    pictures: Pictures
    recipes: dict[str, Recipe]  # of "center", "weak" and "strong"
    seed: int

    def __call__(self, seen: Seen) -> Float[Tensor, "n 3 S S"]:
        encoder, keys = self.pictures.encoder, self.pictures.keys[seen.picture]
        canvas = self.pictures.canvases(seen.picture).to(encoder.device).float().div_(255)
        places: dict[str, list[int]] = {}
        for place, name in enumerate(seen.names):
            places.setdefault(name, []).append(place)
        pixels = torch.empty_like(canvas)
        for name, rows in places.items():
            view = View(name, self.recipes[role_of(name)], 0)
            pixels[rows] = make_view(canvas[rows], view, keys[rows], self.seed)
        return encoder.normalised(pixels)


def role_of(view: str) -> str:
    """ "weak" of "weak3" or of "weak@17"."""
    return re.split(r"[^a-z]", view, maxsplit=1)[0]


def recipes_of(stored: dict[str, Recipe]) -> dict[str, Recipe]:
    """The recipe of each role: that of the views of a cache, `stored` by view name, else the default."""
    own = {role_of(name): recipe for name, recipe in stored.items()}
    return {"center": CENTER, "weak": WEAK, "strong": STRONG} | own
