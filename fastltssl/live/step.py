"""Training through the encoder: the batches of a Method are encoded from images, and its loss trains the tower, too.

A step encodes the labelled and the strong views with gradient and the weak ones without, computes the loss of the whole
batch, and backpropagates its gradient at the features through the encoder. The images may be encoded in parts, one
after the other or on several ranks: loss, running state and head see the whole batch, so the numbers stay the same.
The views of a step follow from the seed and the step's number, so a checkpoint needs no state of a random generator.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fastltssl.errors import RunError
from fastltssl.live.checkpoint import TrainingState
from fastltssl.live.images import Augmented, Seen, concatenated
from fastltssl.live.modes import Live, trainable
from fastltssl.live.tokens import Tokens
from fastltssl.machine import ALONE, Ranks
from fastltssl.progress import Progress, Work
from fastltssl.training.contract import blamed, check_method, check_out
from fastltssl.training.fit import intervals
from fastltssl.training.step import start
from fastltssl.training.streams import Stream, noise_at
from fastltssl.types import Batch, Method, Out, Problem, Run, Trained

AHEAD = 2  # steps, or lots, whose images are decoded in advance
LOT = 256  # images encoded at once without gradient
KEEP_S = 60.0  # seconds between two checkpoints; evaluations write one, too

Item = TypeVar("Item")
Inputs = Augmented | Tokens
Measure = Callable[[Method, Run], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Trainee:
    """The part of an encoder that each step runs, and its inputs: the tower on images, or its last blocks on tokens."""

    tower: nn.Module  # inputs to features [n D]
    inputs: Inputs
    dtype: torch.dtype | None  # of autocast; None: fp32
    ranks: Ranks = ALONE
    compiled: Callable[[Tensor], Tensor] | None = None  # the tower, for batches of training, whose shape is fixed
    workers: int = 2  # threads that decode ahead

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def features(self, x: Float[Tensor, " n *shape"], is_training: bool = False) -> Float[Tensor, "n D"]:
        """The features of pixels or tokens, in fp32."""
        run = self.compiled if is_training and self.compiled is not None else self.tower
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return run(x).float()

    def share(self, count: int) -> tuple[int, int]:
        """The range [first, last) of a list of views that this rank encodes."""
        rank, size = self.ranks.rank, self.ranks.size
        return count * rank // size, count * (rank + 1) // size

    def shared(self, own: Float[Tensor, "n D"], count: int, width: int) -> Float[Tensor, "count D"]:
        """The features of a whole list, from the share of each rank."""
        if self.ranks.size == 1:
            return own
        first, last = self.share(count)
        whole = torch.zeros(count, width, device=self.device)
        whole[first:last] = own
        return self.ranks.summed(whole)

    def encoded(self, seen: Seen, lot: int = LOT) -> Float[Tensor, "n D"]:
        """Features of a list of views through the tower as it is now, without gradient."""
        first, last = self.share(len(seen.picture))
        lots = [seen.part(start, min(start + lot, last)) for start in range(first, last, lot)]
        with torch.no_grad():
            parts = [self.features(self.inputs(part)) for part in self.ahead(lots, lambda part: [part])]
            own = torch.cat(parts) if parts else self.features(self.inputs(seen.part(0, 1)))[:0]
            return self.shared(own, len(seen.picture), own.shape[1])

    def ahead(self, items: Sequence[Item], seen_of: Callable[[Item], list[Seen]]) -> Iterator[Item]:
        """Yield the items, while threads decode the pictures of the next ones; `seen_of` lists the views of an item."""
        if not self.workers or not isinstance(self.inputs, Augmented):
            yield from items
            return
        pictures = self.inputs.pictures

        def load(lot: int) -> None:
            pictures.prepare(lot, np.concatenate([seen.picture for seen in seen_of(items[lot])]))

        with ThreadPoolExecutor(self.workers) as threads:
            loads = [threads.submit(load, lot) for lot in range(min(AHEAD, len(items)))]
            for lot, item in enumerate(items):
                if lot + AHEAD < len(items):
                    loads.append(threads.submit(load, lot + AHEAD))
                loads[lot].result()
                yield item
                pictures.forget(lot)


# ---------------------------------------------------------------------------------------------- one step


class StepViews(NamedTuple):
    """The views of one step: those encoded with gradient, and the weak ones, encoded without."""

    trained: Seen  # B labelled ones, then S x U strong ones
    weak: Seen  # W x U


def on_cpu(stream: Stream) -> Stream:
    """The stream for `views_at`, which would otherwise wait for the GPU at every step."""
    return Stream(*(indices.cpu() for indices in stream))


def views_at(problem: Problem, stream: Stream, step: int, is_fresh: bool) -> StepViews:
    """The views of a step, for a stream on the CPU; pictures are the labelled rows, then the pool."""
    x_row, row = (rows[step].numpy() for rows in (stream.x_row, stream.row))
    pool = len(problem.x) + row
    if is_fresh:
        labelled = Seen(x_row, (f"weak@{step}",) * len(x_row))
        strong = [Seen(pool, (f"strong{k}@{step}",) * len(row)) for k in range(stream.strong_view.shape[1])]
        weak = [Seen(pool, (f"weak{k}@{step}",) * len(row)) for k in range(stream.weak_view.shape[1])]
    else:

        def named(index: np.ndarray, views: Tensor) -> Seen:
            return Seen(index, tuple(problem.views[k] for k in views.tolist()))

        labelled = named(x_row, stream.x_view[step])
        strong, weak = ([named(pool, view) for view in views[step]] for views in (stream.strong_view, stream.weak_view))
    nothing = Seen(np.empty(0, np.int64), ())
    return StepViews(concatenated(labelled, *strong), concatenated(nothing, *weak))


def live_step(
    method: Method,
    trainee: Trainee,
    params: Any,
    state: Any,
    problem: Problem,
    stream: Stream,
    step: int,
    views: StepViews,
    parts: int = 1,
) -> Out:
    """What the loss of one step returns; gradients are added to the .grad of the tower's and the head's parameters.

    With several parts, each is encoded without gradient first, and again when the gradient at its features is known.
    """
    count = len(views.trained.picture)
    first, last = trainee.share(count)
    ends = np.linspace(first, last, parts + 1).astype(int).tolist()
    inputs = [trainee.inputs(views.trained.part(a, b)) for a, b in itertools.pairwise(ends) if b > a]
    with torch.set_grad_enabled(parts == 1):
        pieces = [trainee.features(x, is_training=True) for x in inputs]
    width = problem.x.shape[-1]
    own = torch.cat(pieces).detach() if pieces else torch.empty(0, width, device=trainee.device)
    features = trainee.shared(own, count, width).requires_grad_()
    weak = trainee.encoded(views.weak) if len(views.weak.picture) else features.new_empty(0, width)

    tensors = tree_leaves(params)
    with torch.enable_grad():
        batch = _batch(problem, stream, step, features, weak)
        with blamed(method, "loss"):
            out = cast(Trained, method).loss(params, state, batch, problem.x.new_tensor(step / problem.steps))
        check_out(method, state, out)
        features_grad, *grads = torch.autograd.grad(out.loss, [features, *tensors], allow_unused=True)
        for tensor, grad in zip(tensors, grads, strict=True):
            grad = torch.zeros_like(tensor) if grad is None else trainee.ranks.summed(grad) / trainee.ranks.size
            tensor.grad = grad if tensor.grad is None else tensor.grad + grad
        if features_grad is not None:
            slices = features_grad[first:last].split([len(x) for x in inputs])
            for place, (x, grad) in enumerate(zip(inputs, slices, strict=True)):
                piece = pieces[place] if parts == 1 else trainee.features(x, is_training=True)
                piece.backward(grad)
    _sum_gradients(trainee)
    return Out(out.loss.detach(), tree_map(torch.detach, out.state), {k: v.detach() for k, v in out.stats.items()})


def _batch(
    problem: Problem, stream: Stream, step: int, features: Float[Tensor, "n D"], weak: Float[Tensor, "k D"]
) -> Batch:
    x_row, row, width = stream.x_row[step], stream.row[step], features.shape[1]
    return Batch(
        x=features[: len(x_row)],
        y=problem.y[x_row],
        x_row=x_row,
        weak=weak.view(-1, len(row), width) if len(row) else weak.new_empty(stream.weak_view.shape[1], 0, width),
        strong=features[len(x_row) :].view(stream.strong_view.shape[1], len(row), width),
        row=row,
        noise=noise_at(problem, stream, step),
    )


def _sum_gradients(trainee: Trainee) -> None:
    """Sum the gradients of the tower over the ranks, each of which has that of its images, in one message."""
    if trainee.ranks.size == 1:
        return
    values = list(trainable(trainee.tower).values())
    own = [torch.zeros_like(value) if value.grad is None else value.grad for value in values]
    flat = trainee.ranks.summed(torch.cat([grad.flatten() for grad in own]))
    for value, grad in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.grad = grad.view_as(value)


# ---------------------------------------------------------------------------------------------- a run


def finetuning(
    method: Method,
    problem: Problem,
    stream: Stream,
    trainee: Trainee,
    live: Live,
    *,
    lr: float,
    weight_decay: float,
    seed: int,
    evals: int,
    evaluate: Measure,
    checkpoint: Path | None = None,
    identity: str = "",
) -> Work[tuple[Run, dict[str, Tensor], float]]:
    """Train head and tower together, yielding Progress after every step.

    Returns the run, its history with "step", and the seconds that earlier calls spent on it. The tower is left with its
    trained weights, or with `live.ema` with their running mean. An interrupted run continues from its checkpoint.
    Raises RunError where the checkpoint has another `identity`, and where loss or weights are not finite.
    """
    steps, is_fresh = problem.steps, live.views == "fresh"
    run = start(method, problem, seed)
    check_method(method, problem, run, None)  # its loss needs the features of images, and is looked at in every step
    params = tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), run.params)
    fit = TrainingState(params, run.state, trainee.tower, live, lr, weight_decay)
    first = fit.read(checkpoint, identity) if checkpoint and checkpoint.exists() else 0
    ends = {last for _, last in intervals(steps, evals)}
    began, kept = time.perf_counter(), time.perf_counter()
    indices = on_cpu(stream)

    def own_images(t: int) -> list[Seen]:
        return [seen.part(*trainee.share(len(seen.picture))) for seen in views_at(problem, indices, t, is_fresh)]

    for t in trainee.ahead(range(first, steps), own_images):
        fit.rate(t / steps, t)
        views = views_at(problem, indices, t, is_fresh)
        out = live_step(method, trainee, fit.params, fit.state, problem, stream, t, views, live.accumulate)
        fit.update(out)
        loss = float(out.loss)
        if not math.isfinite(loss) or (t + 1 in ends and not fit.is_finite()):
            raise RunError(f"the loss or the weights of step {t + 1} are not finite. Lower --lr or --encoder-lr")
        if t + 1 in ends:
            with fit.averaged():
                metrics = evaluate(method, Run(tree_map(torch.detach, fit.params), (), fit.state))
            fit.close(metrics | {"step": torch.tensor(t + 1)})
        now = time.perf_counter()
        if checkpoint and trainee.ranks.rank == 0 and (t + 1 in ends or now - kept > KEEP_S):
            fit.write(checkpoint, identity, t + 1, now - began)
            kept = now
        yield Progress(t + 1, steps, now - began, loss=loss, earlier=first)
    fit.settle()
    run = Run(tree_map(lambda leaf: leaf.detach().clone(), fit.params), (), fit.state)
    return run, fit.history.stacked(), fit.earlier_s
