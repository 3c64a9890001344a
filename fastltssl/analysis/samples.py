"""Samples of a pool: their images, scores by view and branch, and nearest labelled rows; and the pool as a 2-D map."""

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
from fastltssl.encoder.reopen import exif_of
from fastltssl.errors import MapError, SourceError
from fastltssl.functional.adapters import feature_of, last_norm
from fastltssl.functional.neighbors import nearest
from fastltssl.functional.zero_shot import text_branch, text_scores
from fastltssl.images import open_source
from fastltssl.runs.finished import read_rows

SIDE = 112  # pixels of a thumbnail
NO_UMAP = "no UMAP without umap-learn: pip install umap-learn. PCA needs nothing"


class Album(NamedTuple):
    """The images of a cache's groups if its data set can be opened; else no images and the reason."""

    images: dict[str, Any]  # by group; a value is the Images of a source
    place: dict[str, dict[str, int]]  # by group: the row of each image id
    why: str  # why there are no images, else ""


class Neighbour(NamedTuple):
    """A labelled row that is similar to a sample."""

    image_id: str
    label: int
    cosine: float


class Wanted(NamedTuple):
    """The rows of the pool that a gallery shows; a field that is None sets no condition."""

    kind: str = "wrong"  # or "right" or "all"; if the true labels are not known, all are shown
    true: int | None = None
    label: int | None = None
    group: int | None = None  # of the predicted class: 0 head, 1 medium, 2 tail
    low: float = 0.0  # the least confidence
    high: float = 1.0  # the greatest confidence
    rows: Int[np.ndarray, " K"] | None = None


def open_album(cache: Cache, dataset: str | None = None, root: Path | None = None) -> Album:
    """The images that a cache was made from; `dataset` and `root` tell where they are if they have been moved."""
    made = cache.attributes["provenance"]
    if made.get("model") == "imported":
        return no_album("the cache was imported from features, and does not know which images they are of")
    name = dataset or made.get("dataset")
    try:
        source = open_source(str(name), root, exif=exif_of(cache))
    except (SourceError, OSError) as error:
        return no_album(f"{str(error).split('. ')[0]}. Say where they are with --dataset")
    groups: dict[str, Any] = {group: images for group, images in source.groups.items() if group in cache.groups}
    place = {group: {image_id: row for row, image_id in enumerate(images.ids)} for group, images in groups.items()}
    first = {group: rows.ids[0] for group, rows in cache.groups.items() if rows.ids}
    if any(image_id not in place.get(group, {}) for group, image_id in first.items()):
        return no_album(f"{name} holds other images than the cache")
    return Album(groups, place, "")


def no_album(why: str) -> Album:
    """An album without images, with the reason."""
    return Album({}, {}, f"Images are not at hand, so ids are shown: {why}")


def thumbnails(album: Album, group: str | None, ids: list[str]) -> list[str]:
    """A square PNG of each image as a data URL; "" if there is no such image, or it cannot be read.

    Without a group, the first group that holds all the ids is used.
    """
    if group is None:
        group = next((name for name, rows in album.place.items() if rows.keys() >= {*ids}), "")
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
    file = io.BytesIO()
    square.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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
    """The image ids of rows of the pool, from the run's rows.npz. Raises RunError where they are not there."""
    stamp = (insight.folder / "rows.npz").stat().st_mtime_ns
    return _pool_ids(insight.folder, insight.seed, stamp)[rows].tolist()


@lru_cache(maxsize=4)
def _pool_ids(folder: Path, seed: int, written_ns: int) -> np.ndarray:
    return read_rows(folder, f"seed{seed}.unlabelled.ids")


def branch_scores(scored: Scored, row: int) -> dict[str, Float[Tensor, "V C"]]:
    """Scores of each cached view of a row of the pool: those of the "run", of each branch of its method, and zero-shot.

    The branches are called as the method calls them, such as "text" and "probe".
    """
    problem, trained = scored.task.problem, scored.trained
    x = problem.u[row].float()
    with torch.no_grad():
        branches = dict(trained.method.scores(trained.run.params, trained.run.state, x))
        test = branches.pop("test")
        own = branches.pop("pseudo", test)
        if problem.text is not None:
            branches["zero-shot"] = text_scores(text_branch(problem), x)
    return {"run": own} | branches


def neighbours(scored: Scored, row: int, count: int = 6) -> list[Neighbour]:
    """The labelled rows most similar to a row of the pool, by the cosine of their center views."""
    problem, split = scored.task.problem, scored.task.split
    norm = last_norm(problem)
    query, keys = (feature_of(x[:, 0].float(), norm) for x in (problem.u[row : row + 1], problem.x))
    cosines, places = nearest(query, keys, count)
    ids = scored.trained.cache.groups["train"].ids
    pairs = zip(places[0].tolist(), cosines[0].tolist(), strict=True)
    return [Neighbour(ids[split.labelled[place]], int(problem.y[place]), cosine) for place, cosine in pairs]


def flat_pca(scored: Scored, rows: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K 2"]:
    """The first two principal components of the normalised center views of rows of the pool.

    The sign of each is chosen so that its largest loading is positive, so the map is not mirrored from run to run.
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
    """A two-dimensional UMAP of the same views. Raises MapError if umap-learn is not installed."""
    if not has_umap():
        raise MapError(NO_UMAP)
    import umap

    reducer: Any = umap.UMAP(n_components=2, metric="cosine", random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(_unit(scored, rows).numpy()))


def _unit(scored: Scored, rows: Int[np.ndarray, " K"]) -> Float[Tensor, "K D"]:
    """The center views of rows of the pool, normalised to length 1."""
    x = feature_of(scored.task.problem.u[torch.from_numpy(rows), 0].float(), last_norm(scored.task.problem))
    return torch.nn.functional.normalize(x, dim=-1)
