"""What a training through the encoder sees: pictures, decoded once, and the views made of them at each visit.

Where the first blocks are frozen and the views come back, the tokens that enter the rest are computed once instead.
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
from fastltssl.errors import SourceError
from fastltssl.images.source import Source
from fastltssl.images.views import CENTER, STRONG, WEAK, Recipe, View, image_key, make_view
from fastltssl.machine import SPARE, available_memory


class Seen(NamedTuple):
    """Views of pictures: the number of a picture, and the name of the view."""

    picture: Int[np.ndarray, " n"]
    names: tuple[str, ...]  # such as "center" or "weak0", n of them

    def part(self, first: int, last: int) -> "Seen":
        return Seen(self.picture[first:last], self.names[first:last])


def together(*parts: Seen) -> Seen:
    """One after the other."""
    return Seen(np.concatenate([one.picture for one in parts]), tuple(name for one in parts for name in one.names))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures 0 .. N - 1 as the encoder's canvases; in memory once decoded, where it holds them all."""

    source: Source
    encoder: Encoder
    group: tuple[str, ...]  # N
    row: Int[np.ndarray, " N"]  # in that group of the source
    keys: UInt64[np.ndarray, " N"]
    store: UInt8[Tensor, "_ 3 S S"]  # N, or none where they are decoded at each visit
    is_ready: np.ndarray  # bool [N]
    lots: dict[int, tuple[np.ndarray, Tensor]] = field(default_factory=dict)  # decoded ahead where there is no store

    def prepare(self, lot: int, index: Int[np.ndarray, " n"]) -> None:
        """Decode pictures before they are asked for; those of a lot are kept until `forget`."""
        index = np.unique(index)
        if len(self.store):
            self.canvases(index)
        else:
            self.lots[lot] = index, self._decoded(index)

    def forget(self, lot: int) -> None:
        self.lots.pop(lot, None)

    def canvases(self, index: Int[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 S S"]:
        if not len(self.store):
            for own, decoded in list(self.lots.values()):
                if np.isin(index, own).all():
                    return decoded[np.searchsorted(own, index)]
            return self._decoded(index)
        missing = np.unique(index[~self.is_ready[index]])
        if len(missing):
            self.store[missing] = self._decoded(missing)
            self.is_ready[missing] = True
        return self.store[index]

    def _decoded(self, index: Int[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 S S"]:
        side = self.encoder.size
        found = np.empty((len(index), 3, side, side), np.uint8)
        for name in dict.fromkeys(self.group[i] for i in index):
            places = [place for place, i in enumerate(index) if self.group[i] == name]
            images = self.source.groups[name].read([int(self.row[index[place]]) for place in places])
            for place, image in zip(places, images, strict=True):
                found[place] = self.encoder.canvas(image)
        return torch.from_numpy(found)


def pictures_of(source: Source, encoder: Encoder, wanted: Sequence[tuple[str, Sequence[str]]]) -> Pictures:
    """The images with these ids, group by group. Raises SourceError where the source lacks one."""
    places = {name: {each: row for row, each in enumerate(images.ids)} for name, images in source.groups.items()}
    for name, ids in wanted:
        if lost := next((each for each in ids if each not in places.get(name, {})), None):
            raise SourceError(
                f"{source.name} has no image {lost!r} in its group {name!r}, and the cache was made of one that has. "
                "Give the --dataset and --root it was made with"
            )
    ids = [each for _, of_group in wanted for each in of_group]
    row = np.array([places[name][each] for name, of_group in wanted for each in of_group], np.int64)
    shape = (3, encoder.size, encoder.size)
    fits = len(ids) * int(np.prod(shape)) <= SPARE / 2 * available_memory()
    return Pictures(
        source,
        encoder,
        tuple(name for name, of_group in wanted for _ in of_group),
        row,
        np.array([image_key(each) for each in ids], np.uint64),
        torch.empty(len(ids) if fits else 0, *shape, dtype=torch.uint8),
        np.zeros(len(ids), bool),
    )


class Augmented(NamedTuple):
    """Seen pictures as the encoder takes them: normalised, on its device."""

    pictures: Pictures
    recipes: dict[str, Recipe]  # of "center", "weak" and "strong"
    seed: int

    def __call__(self, seen: Seen) -> Float[Tensor, "n 3 S S"]:
        encoder, keys = self.pictures.encoder, self.pictures.keys[seen.picture]
        canvas = self.pictures.canvases(seen.picture).to(encoder.device).float().div_(255)
        places: dict[str, list[int]] = {}
        for place, name in enumerate(seen.names):
            places.setdefault(name, []).append(place)
        found = torch.empty_like(canvas)
        for name, own in places.items():
            view = View(name, self.recipes[role_of(name)], 0)
            found[own] = make_view(canvas[own], view, keys[own], self.seed)
        return encoder.normalised(found)


def role_of(view: str) -> str:
    """ "weak" of "weak3" or of "weak@17"."""
    return re.split(r"[^a-z]", view, maxsplit=1)[0]


def recipes_of(stored: dict[str, Recipe]) -> dict[str, Recipe]:
    """The recipe of each role: that of a cache's views, given by name, else the default."""
    return {"center": CENTER, "weak": WEAK, "strong": STRONG} | {role_of(name): each for name, each in stored.items()}
