"""Everything that changes while a run trains through the encoder, and how it is written to a file."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from fastltssl.errors import RunError
from fastltssl.live.modes import Live, trainable
from fastltssl.reading import parse_json
from fastltssl.training.fit import History
from fastltssl.training.step import MOMENTUM, cosine
from fastltssl.types import Out, leaf_name

FFT_SHARE = 30  # learning rate of the head over that of the encoder with mode fft: at equal rates the encoder forgets


@dataclass(frozen=True)
class Meta:
    """What a checkpoint holds beside its tensors."""

    identity: str  # everything that decides the numbers of the run, as JSON
    step: int  # steps done
    seconds: float  # spent on them
    evaluations: int  # done
    outs: int  # steps since the last evaluation


class TrainingState:
    """Parameters of tower and head, running state, optimiser, mean of the weights and history of one run."""

    def __init__(self, params: Any, state: Any, tower: nn.Module, live: Live, lr: float, weight_decay: float) -> None:
        self.params, self.state, self.live, self.lr = params, state, live, lr
        self.head = {leaf_name(path): leaf for path, leaf in tree_flatten_with_path(params)[0]}
        self.tower = trainable(tower)
        self.weights = [*self.tower.values(), *self.head.values()]
        groups = [{"params": list(self.tower.values())}, {"params": list(self.head.values())}]
        if live.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
        else:
            self.optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=MOMENTUM)
        self.mean = [value.detach().clone() for value in self.weights] if live.ema else []
        usual = lr / FFT_SHARE if live.mode == "fft" else lr
        self.encoder_lr, self.earlier_s = usual if live.lr is None else live.lr, 0.0
        self.history, self.outs = History(0), []  # type: ignore[var-annotated]

    def rate(self, progress: float, step: int) -> None:
        """Set the learning rates of tower and head for a step: cosine to zero, with a linear warm-up."""
        factor = cosine(progress) * min(1.0, (step + 1) / max(1, self.live.warmup))
        rates = self.encoder_lr, self.lr
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    def update(self, out: Out) -> None:
        """Finish a step whose gradients are in .grad: update the weights, take over the new state, record the loss."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state = out.state
        self.outs.append({"loss": out.loss, **out.stats})
        if self.mean:
            for mean, value in zip(self.mean, self.weights, strict=True):
                mean.lerp_(value.detach(), 1 - self.live.ema)

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(bool(value.isfinite().all()) for value in self.weights)

    def close(self, metrics: dict[str, Tensor]) -> None:
        """Record an evaluation in the history."""
        self.history.close({name: torch.stack([out[name] for out in self.outs]) for name in self.outs[0]}, metrics)
        self.history.rows[-1] = {name: value.cpu() for name, value in self.history.rows[-1].items()}
        self.outs = []

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the weights are replaced by their running mean; no change where none is kept."""
        before = [value.detach().clone() for value in self.weights] if self.mean else []
        self.settle()
        yield
        with torch.no_grad():
            for value, old in zip(self.weights, before, strict=False):
                value.copy_(old)

    def settle(self) -> None:
        """Replace the weights by their running mean, where one is kept."""
        with torch.no_grad():
            for value, mean in zip(self.weights, self.mean, strict=False):
                value.copy_(mean)

    def write(self, path: Path, identity: str, step: int, seconds: float) -> None:
        """Write everything to a file of safetensors, replaced as a whole; `seconds` are those of this call."""
        from safetensors.torch import save_file

        tensors = {f"weight.{k}": value for k, value in enumerate(self.weights)}
        tensors |= {f"mean.{k}": value for k, value in enumerate(self.mean)}
        for k, buffers in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{k}.{name}": value for name, value in buffers.items()}
        tensors |= {f"state.{leaf_name(place)}": leaf for place, leaf in tree_flatten_with_path(self.state)[0]}
        for name, rows in (("history", self.history.rows), ("out", self.outs)):
            tensors |= {f"{name}.{k}.{key}": value for k, row in enumerate(rows) for key, value in row.items()}
        meta = Meta(identity, step, self.earlier_s + seconds, len(self.history.rows), len(self.outs))
        part = path.with_suffix(".part")
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(copies, part, metadata={"fastltssl": json.dumps(dataclasses.asdict(meta))})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def read(self, path: Path, identity: str) -> int:
        """Continue from a checkpoint; returns the steps done. Raises RunError where it is damaged or of another run."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                meta = parse_json(file.metadata()["fastltssl"], Meta, str(path))
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}). Remove that file and this seed begins anew") from None
        if meta.identity != identity:
            difference = _difference(meta.identity, identity)
            raise RunError(f"{path} was written by {difference}. Use the same, another --out, or --overwrite")

        def rows_of(name: str, count: int) -> list[dict[str, Tensor]]:
            rows: list[dict[str, Tensor]] = [{} for _ in range(count)]
            for key, value in stored.items():
                kind, _, rest = key.partition(".")
                if kind == name:
                    place, _, field = rest.partition(".")
                    rows[int(place)][field] = value
            return rows

        with torch.no_grad():
            for kind, values in (("weight", self.weights), ("mean", self.mean)):
                for k, value in enumerate(values):
                    value.copy_(stored[f"{kind}.{k}"])
        buffers = self.optimizer.state_dict()
        buffers["state"] = {k: row for k, row in enumerate(rows_of("optimizer", len(self.weights))) if row}
        self.optimizer.load_state_dict(buffers)
        leaves, spec = tree_flatten_with_path(self.state)
        self.state = tree_unflatten([stored[f"state.{leaf_name(place)}"].to(leaf) for place, leaf in leaves], spec)
        self.history.rows = rows_of("history", meta.evaluations)
        device = self.weights[0].device
        self.outs = [{name: value.to(device) for name, value in row.items()} for row in rows_of("out", meta.outs)]
        self.earlier_s = meta.seconds
        return meta.step


def _difference(stored: str, asked: str) -> str:
    """The first settings, in words, in which two configurations, given as JSON, differ."""
    old, new = json.loads(stored), json.loads(asked)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)!r} and now it is {new.get(name)!r}" for name in names[:3])
