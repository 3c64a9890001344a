"""One task of a live experiment: its images, the part of the encoder that trains on them, the memory that it takes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastltssl.cache.catalogue import Cache
from fastltssl.encoder.clip import DTYPES, Encoder
from fastltssl.encoder.towers import split_tower
from fastltssl.images.source import Source
from fastltssl.images.views import parse_recipe
from fastltssl.live.images import Augmented, Pictures, Seen, pictures_of, recipes_of
from fastltssl.live.memory import check_memory, recompute, step_bytes
from fastltssl.live.modes import first_trained, parse_mode
from fastltssl.live.step import Trainee, on_cpu, views_at
from fastltssl.live.tokens import make_tokens, plan_tokens
from fastltssl.machine import ALONE, Ranks, available_memory
from fastltssl.progress import Note, Work
from fastltssl.runs.evaluation import Task, evaluate
from fastltssl.runs.experiment import evals_of, stream_of, tested_rows
from fastltssl.training.streams import Stream
from fastltssl.types import Method, Run

LIVE_VIEWS = ("center", "weak0", "strong0")  # Problem.views of a stream of fresh views: one of each role


class Opened(NamedTuple):
    """What a live experiment reads beside its cache, and on what it runs."""

    source: Source
    encoder: Encoder
    ranks: Ranks = ALONE
    workers: int = 2  # threads that decode images


class TaskImages:
    """The images of one task: labelled rows, pool, validation and test rows, in this order."""

    def __init__(self, task: Task, cache: Cache, opened: Opened) -> None:
        self.task, self.opened = task, opened
        config, split = task.config, task.split
        pool, val = (split.unlabelled_group, split.unlabelled), ("train", split.val)
        self.rows = [("train", split.labelled), pool, val, *tested_rows(config, split, cache)]  # (group, rows in it)
        ids = [(name, [cache.groups[name].ids[row] for row in rows]) for name, rows in self.rows]
        self.pictures: Pictures = pictures_of(opened.source, opened.encoder, ids)
        self.labels = torch.cat([torch.from_numpy(cache.groups[name].labels[rows]) for name, rows in self.rows])
        provenance: Any = cache.attributes["provenance"]
        self.recipes = recipes_of({name: parse_recipe(text) for name, text in provenance["views"].items()})
        self.is_fresh = config.live is not None and config.live.views == "fresh"
        self.view_seed = task.seed if self.is_fresh else provenance["seed"]

    def stream(self, method: Method) -> Stream:
        """The index stream of the task; with fresh views every view has its role only."""
        task = self.task
        if self.is_fresh:
            task = task._replace(problem=dataclasses.replace(task.problem, views=LIVE_VIEWS))
        return stream_of(task, method)

    def trainee(self, method: Method, tower: nn.Module, is_first: bool) -> Work[Trainee]:
        """The Trainee: the tower on images, or its last blocks on tokens, if all before is frozen and tokens fit."""
        live = self.task.config.live
        assert live is not None
        encoder, ranks = self.opened.encoder, self.opened.ranks
        images = Augmented(self.pictures, self.recipes, self.view_seed)
        dtype = DTYPES[
            ("bf16" if encoder.device.type == "cuda" else "fp32") if live.precision == "auto" else live.precision
        ]
        trainee = Trainee(tower, images, dtype, ranks, workers=self.opened.workers)
        block = first_trained(tower, parse_mode(live.mode))
        if block and not self.is_fresh:
            front, rest = split_tower(tower, block)
            every = self._every(method)
            plan = plan_tokens(every, images, front, rest)
            if plan.fits:
                if is_first:
                    yield Note(str(plan))
                tokens = yield from make_tokens(every, images, front)
                trainee = dataclasses.replace(trainee, tower=rest, inputs=tokens)
                if is_first:
                    yield Note(f"{plan.visits - plan.views:,} of {plan.visits:,} passes through them are saved")
            elif is_first:
                yield Note(f"{plan}. They do not fit, so every view is encoded at each visit")
        if live.recompute:
            recompute(trainee.tower)
        views = views_at(self.task.problem, on_cpu(self.stream(method)), 0, self.is_fresh).trained
        free = available_memory() if encoder.device.type == "cpu" else torch.cuda.mem_get_info(encoder.device)[0]
        per_image = step_bytes(trainee, trainee.inputs(views.part(0, 1)))
        check_memory(per_image, len(views.picture), live.accumulate * ranks.size, free)
        return dataclasses.replace(trainee, compiled=torch.compile(trainee.tower)) if live.compiled else trainee

    def _every(self, method: Method) -> list[Seen]:
        """All views that a run will encode, evaluations included."""
        problem, stream = self.task.problem, on_cpu(self.stream(method))
        steps = [seen for t in range(problem.steps) for seen in views_at(problem, stream, t, self.is_fresh)]
        evaluations = [seen for seen in self._measured_views(method).values() if len(seen.picture)]
        return steps + evaluations * evals_of(self.task.config)

    def _measured_views(self, method: Method) -> dict[str, Seen]:
        """The views of an evaluation: a weak view of the pool if the method labels it, center views of other rows."""
        sizes = [len(rows) for _, rows in self.rows]
        ends = np.cumsum([0, *sizes])
        parts = {"pool": (ends[1], ends[2]), "val": (ends[2], ends[3]), "test": (ends[3], ends[-1])}
        weak = next((name for name in self.task.problem.views if name.startswith("weak")), "center")
        name_of = {"pool": "weak@pool" if self.is_fresh else weak, "val": "center", "test": "center"}
        if not method.views[0]:
            parts["pool"] = (ends[1], ends[1])
        return {name: Seen(np.arange(a, b), (name_of[name],) * int(b - a)) for name, (a, b) in parts.items()}

    def measured(self, trainee: Trainee, method: Method, run: Run) -> dict[str, Tensor]:
        """The metrics of a run, on features of the tower as it is now."""
        rows: dict[str, Any] = {}
        nothing = self.task.problem.x.new_zeros(0, self.task.problem.x.shape[-1])
        for name, seen in self._measured_views(method).items():
            rows[f"{name}_x"] = trainee.encoded(seen) if len(seen.picture) else nothing
            rows[f"{name}_y"] = self.labels[torch.from_numpy(seen.picture)].to(trainee.device)
        return evaluate(method, run, self.task.measured._replace(**rows), self.task.problem.x.dtype)
