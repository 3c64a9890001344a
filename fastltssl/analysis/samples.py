"""One sample of a pool, and the pool as a map: images, scores by view and branch, neighbours, two dimensions."""

import base64
import importlib.util
import io
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastltssl.analysis.cure import Scored
from fastltssl.analysis.history import Insight, Labels
from fastltssl.cache.catalogue import Cache
from fastltssl.errors import MapError, SourceError
from fastltssl.functional.adapters import feature_of, last_norm
from fastltssl.functional.neighbors import nearest
from fastltssl.functional.zero_shot import text_branch, text_scores
from fastltssl.images import open_source

SIDE = 112  # pixels of a thumbnail
NO_UMAP = "no UMAP without umap-learn: pip install umap-learn. PCA needs nothing"


class Album(NamedTuple):
    """The images of a cache's groups, where the data set is at hand; else why not."""

    images: dict[str, Any]  # Images, which a cache of thumbnails is keyed by
    place: dict[str, dict[str, int]]  # id -> row, of each group
    why: str


class Neighbour(NamedTuple):
    """A labelled row near a sample."""

    image_id: str
    label: int
    cosine: float


class Wanted(NamedTuple):
    """Which rows of the pool a gallery shows, most confident first; None takes all."""

    kind: str = "wrong"  # or "right" or "all"; without the truth every row is shown
    true: int | None = None
    label: int | None = None
    group: int | None = None  # of the predicted class: 0 head, 1 medium, 2 tail
    low: float = 0.0  # confidence
    high: float = 1.0
    rows: Int[np.ndarray, " K"] | None = None


def open_album(cache: Cache, dataset: str | None = None, root: Path | None = None) -> Album:
    """The images that a cache was made from; `dataset` and `root` where they have moved."""
    made = cache.attributes["provenance"]
    if made.get("model") == "imported":
        return no_album("the cache was imported from features, and does not know which images they are of")
    name = dataset or made.get("dataset")
    try:
        source = open_source(str(name), root)
    except (SourceError, OSError) as error:
        return no_album(f"{str(error).split('. ')[0]}. Say where they are with --dataset")
    groups: dict[str, Any] = {group: images for group, images in source.groups.items() if group in cache.groups}
    place = {group: {image_id: row for row, image_id in enumerate(images.ids)} for group, images in groups.items()}
    first = {group: rows.ids[0] for group, rows in cache.groups.items() if rows.ids}
    if any(image_id not in place.get(group, {}) for group, image_id in first.items()):
        return no_album(f"{name} holds other images than the cache")
    return Album(groups, place, "")


def no_album(why: str) -> Album:
    """No images, and the reason."""
    return Album({}, {}, f"Images are not at hand, so ids are shown: {why}")


def thumbnails(album: Album, group: str | None, ids: list[str]) -> list[str]:
    """A square PNG of each image as a data address, "" where there is none or it cannot be read.

    Without a group, it is the first one that has all the ids.
    """
    if group is None:
        group = next((name for name, rows in album.place.items() if all(each in rows for each in ids)), "")
    if group not in album.images:
        return [""] * len(ids)
    return [_thumbnail(album.images[group], album.place[group].get(image_id, -1)) for image_id in ids]


@lru_cache(maxsize=4096)
def _thumbnail(images: Any, row: int) -> str:
    from PIL import Image

    try:
        picture = Image.fromarray(images.read([row])[0]) if row >= 0 else None
    except (SourceError, OSError):
        picture = None
    if picture is None:
        return ""
    picture.thumbnail((SIDE, SIDE))
    whole = max(1, SIDE // max(picture.size))  # small images grow by whole pixels
    picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    held = io.BytesIO()
    square.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def chosen(insight: Insight, labels: Labels, truth: Int[Tensor, " M"] | None, wanted: Wanted) -> Int[np.ndarray, " K"]:
    """The rows of the pool that a gallery shows, most confident first."""
    label, confidence = labels
    kept = (confidence >= wanted.low) & (confidence <= wanted.high)
    if truth is not None and wanted.kind != "all":
        kept &= (label == truth) == (wanted.kind == "right")
    if truth is not None and wanted.true is not None:
        kept &= truth == wanted.true
    if wanted.label is not None:
        kept &= label == wanted.label
    if wanted.group is not None and insight.groups is not None:
        kept &= insight.groups[label] == wanted.group
    if wanted.rows is not None:
        kept &= torch.zeros_like(kept).scatter(0, torch.from_numpy(wanted.rows), True)
    rows = kept.nonzero()[:, 0]
    return rows[confidence[rows].argsort(descending=True, stable=True)].numpy()


def ids_of(insight: Insight, rows: Int[np.ndarray, " K"]) -> list[str]:
    """The ids of rows of the pool, as the run has kept them."""
    stamp = (insight.folder / "rows.npz").stat().st_mtime_ns
    return _pool_ids(insight.folder, insight.seed, stamp)[rows].tolist()


@lru_cache(maxsize=4)
def _pool_ids(folder: Path, seed: int, written_ns: int) -> np.ndarray:
    with np.load(folder / "rows.npz") as stored:
        return np.asarray(stored[f"seed{seed}.unlabelled.ids"])


def branch_scores(scored: Scored, row: int) -> dict[str, Float[Tensor, "V C"]]:
    """Scores of every cached view of a row of the pool, by branch: "run", and "text", "probe" and such as there are."""
    problem, trained = scored.task.problem, scored.trained
    x = problem.u[row].float()
    with torch.no_grad():
        found = dict(trained.method.scores(trained.run.params, trained.run.state, x))
        own = found.pop("pseudo", None)
        test = found.pop("test")
        own = test if own is None else own
        if problem.text is not None:
            found["zero-shot"] = text_scores(text_branch(problem), x)
    return {"run": own} | found


def neighbours(scored: Scored, row: int, count: int = 6) -> list[Neighbour]:
    """The labelled rows nearest to a row of the pool, by the cosine of the center views."""
    problem, split = scored.task.problem, scored.task.split
    norm = last_norm(problem)
    query, keys = (feature_of(x[:, 0].float(), norm) for x in (problem.u[row : row + 1], problem.x))
    cosine, found = nearest(query, keys, count)
    ids = scored.trained.cache.groups["train"].ids
    pairs = zip(found[0].tolist(), cosine[0].tolist(), strict=True)
    return [Neighbour(ids[split.labelled[place]], int(problem.y[place]), near) for place, near in pairs]


def flat_pca(scored: Scored, rows: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K 2"]:
    """The two principal components of the normalised center views of rows of the pool.

    The largest loading of each is positive, so that the map lies the same way everywhere.
    """
    x = _unit(scored, rows)
    centred = x - x.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    loadings = vectors[:, -2:].flip(1)
    signs = loadings.gather(0, loadings.abs().argmax(dim=0, keepdim=True)).sign()
    return (centred @ (loadings * signs)).numpy()


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def flat_umap(scored: Scored, rows: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K 2"]:
    """UMAP of the same; raises MapError where umap-learn is not installed."""
    if not has_umap():
        raise MapError(NO_UMAP)
    import umap

    made: Any = umap.UMAP(n_components=2, metric="cosine", random_state=0, n_jobs=1)
    return np.asarray(made.fit_transform(_unit(scored, rows).numpy()))


def _unit(scored: Scored, rows: Int[np.ndarray, " K"]) -> Float[Tensor, "K D"]:
    x = feature_of(scored.task.problem.u[torch.from_numpy(rows), 0].float(), last_norm(scored.task.problem))
    return torch.nn.functional.normalize(x, dim=-1)
