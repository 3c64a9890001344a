"""A trained run on new images: they are encoded as those of its cache, and scored by its method."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.cache.layout import all_blocks
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.pipeline import pipeline
from fastltssl.encoder.reopen import encoder_for
from fastltssl.errors import RunError
from fastltssl.functional.adapters import wants_taps
from fastltssl.images.source import Source
from fastltssl.images.views import parse_views
from fastltssl.live.modes import Live, load_state, parse_mode, tuned
from fastltssl.methods import configure
from fastltssl.progress import Progress, Work
from fastltssl.runs.experiment import task_of
from fastltssl.runs.finished import read_config, read_record, read_tensors
from fastltssl.runs.folder import TOWER
from fastltssl.training.rows import rows_for
from fastltssl.training.step import start
from fastltssl.types import Method, Run, leaf_name, seeded

ROWS = 64  # images encoded between two Progress


class TrainedRun(NamedTuple):
    """One seed of a finished run, ready to score rows like those of its cache."""

    method: Method
    run: Run
    cache: Cache
    seed: int
    live: Live | None
    tower: dict[str, Tensor]  # what was trained in the encoder, by name

    def scores(self, features: Float[Tensor, "n _"]) -> Float[Tensor, "n C"]:
        """Scores of rows as the cache stores them: features, or taps for a head that reads taps."""
        with torch.no_grad():
            return self.method.scores(self.run.params, self.run.state, features.float())["test"]


class Predictions(NamedTuple):
    """Class probabilities of the images that could be read, and the ids of those that could not."""

    ids: tuple[str, ...]
    probs: Float[Tensor, "n C"]
    broken: tuple[str, ...]


def load_run(folder: Path, cache: Cache, seed: int | None = None) -> TrainedRun:
    """One seed (None: the first) of a run, on the CPU. Raises RunError where the cache or the tensors do not fit."""
    config = read_config(folder)
    if config.ensemble:
        raise RunError(f"{folder} adds zero-shot scores to those of {config.ensemble}: it has no head. Name that run")
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise RunError(f"{folder} has no seed {seed}, only {', '.join(map(str, config.seeds))}")
    check_cache(folder, cache)
    method = configure(config.method, config.settings)
    problem = task_of(config, seed, cache, rows_for(cache, method, templates=config.templates)).problem
    untrained = start(method, problem, seed)
    leaves, spec = tree_flatten_with_path({"params": untrained.params, "state": untrained.state})
    stored = read_tensors(folder)
    tensors = []
    for path, leaf in leaves:
        name = f"seed{seed}.{leaf_name(path)}"
        if name not in stored or stored[name].shape != leaf.shape:
            held = f"of shape {tuple(stored[name].shape)}" if name in stored else "not there"
            raise RunError(
                f"{folder}/head.safetensors: {name} is {held}, and {config.method} on {cache.path} needs "
                f"{tuple(leaf.shape)}. Name the run's own cache with --cache, or train again"
            )
        tensors.append(stored[name])
    tree = tree_unflatten(tensors, spec)
    prefix = f"seed{seed}."
    towers = read_tensors(folder, TOWER) if config.live else {}
    tower = {name.removeprefix(prefix): value for name, value in towers.items() if name.startswith(prefix)}
    return TrainedRun(method, Run(tree["params"], (), tree["state"]), cache, seed, config.live, tower)


def check_cache(folder: Path, cache: Cache) -> None:
    """Raise RunError where a run was trained on another cache, whose classes, images or weights may differ."""
    known = read_record(folder)["cache_fingerprint"]
    if fingerprint(cache) != known:
        raise RunError(
            f"{folder} was trained on a cache with fingerprint {known}, and {cache.path} has {fingerprint(cache)}. "
            "Name the run's own cache with --cache, or train the run again"
        )


def encoder_of(trained: TrainedRun, pretrained: str | None, device: str) -> Encoder:
    """The encoder of a run: that of its cache, with the trained weights of a live run.

    Raises RunError where the cache was imported, or was made with other weights.
    """
    encoder = encoder_for(trained.cache, device, pretrained, taps=wants_taps(trained.method))
    if trained.live is None:
        return encoder
    mode, generator = parse_mode(trained.live.mode), seeded(trained.seed, "tower")
    tower = tuned(encoder.tower, mode, n_classes=len(trained.cache.classes), generator=generator)
    load_state(tower, trained.tower)
    return dataclasses.replace(encoder, tower=tower, encode_parts=encoder.through(tower))


def predicting(
    trained: TrainedRun, source: Source, encoder: Encoder, *, workers: int = 2, skip_broken: bool = False
) -> Work[Predictions]:
    """Encode the center view of every image of the group "images" and score it, yielding progress.

    Features are rounded to float16, as a cache stores them: an image gets the scores it would have there.
    """
    images, began, waited = source.groups["images"], time.perf_counter(), 0.0
    shapes = {"images": (len(images.ids), 1, encoder.width)}
    probs: list[Tensor] = []
    broken: list[int] = []
    done = 0
    with pipeline(encoder.device, workers) as threads:
        views = {"images": parse_views("center")}
        blocks = all_blocks(shapes, {"images": ROWS})
        for block in threads.encoded(source, encoder, views, blocks, seed=0, skip_broken=skip_broken):
            parts = block.features[:, 0].astype(np.float16)
            rows = np.concatenate(list(parts[:, 1:].transpose(1, 0, 2)), axis=-1) if encoder.taps else parts[:, 0]
            probs.append(trained.scores(torch.from_numpy(rows)).softmax(dim=-1))
            broken += block.broken
            done += len(rows)
            waited += block.waited_s
            yield Progress(done, len(images.ids), time.perf_counter() - began, unit="images", waited_s=waited)
    kept = [row for row in range(len(images.ids)) if row not in set(broken)]
    ids = tuple(images.ids[row] for row in kept)
    return Predictions(ids, torch.cat(probs)[kept], tuple(images.ids[row] for row in broken))
