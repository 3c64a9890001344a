"""FineSSL (arXiv 2405.11756): balanced margin softmax on the main head, label smoothing on a decoupled auxiliary head.

| code | symbol | meaning |
| --- | --- | --- |
| status | sel | last pseudo-label of each unlabelled row with confidence >= threshold, -1 for none |
| sigma, margin | sigma_k, m_k | rows selected per class, and the margin that follows from them |
| q, is_learned | q, 1[c >= threshold] | pseudo-label of the main head, and whether its confidence c suffices |
| a | a | confidence of the auxiliary head, the weight of each row |

Differs: on frozen features the auxiliary head's stop-gradient on f has no effect; the paper's numbers need VPT-deep and
so `--live vpt`. status=running and ema are ours: with a status emptied each epoch the margin tracks class frequency on
long tails.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from fastltssl.functional.bias import auto_momentum, one_hot
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import (
    balanced_margin_cross_entropy,
    confident_labels,
    cross_entropy,
    smooth_labels,
    soft_cross_entropy,
)
from fastltssl.knobs import AutoKnob, Knob, choice, knob, size
from fastltssl.types import Batch, Head, Out, OverTime, PerClass, Problem, Scores, Trace


class State(NamedTuple):
    head: Any
    status: Int[Tensor, " M"]
    epoch: Int[Tensor, ""]
    ema: Float[Tensor, " C"]
    momentum: Float[Tensor, ""]


def margin(counts: Float[Tensor, " C"], alpha0: Knob, form: str = "code") -> Float[Tensor, " C"]:
    """m_k = A (1 - beta_k) / (1 + beta_k), or A (1 - beta_k) in the paper; beta = counts / max, A = alpha0 spread."""
    beta = counts / counts.max().clamp_min(torch.finfo(counts.dtype).tiny)
    strength = alpha0 * (beta.max() - beta.min())
    return strength * (1 - beta) / (1 + beta if form == "code" else 1)


def counts_of(status: Int[Tensor, " M"], n_classes: int, dtype: torch.dtype) -> Float[Tensor, " C"]:
    """sigma_k = #{i: sel[i] = k}; a status of -1 counts for no class."""
    ones = torch.ones_like(status, dtype=dtype)
    return ones.new_zeros(n_classes + 1).scatter_add(0, status + 1, ones)[1:]


@dataclass(frozen=True, eq=False)
class Method:
    """L = BMS(main(x), y) + CE(aux(x), y) + w_con mean a BMS(main(s), q) + CE(aux(s), smooth(q)) on learned rows."""

    alpha0: Knob = knob(8.0, 0.0, 16.0, "largest margin")
    w_con: Knob = knob(3.0, 0.1, 10.0, "weight of the main head's unlabelled loss", log=True)
    smoothing: Knob = knob(0.5, 0.0, 0.9, "label smoothing of the auxiliary head")
    threshold: Knob = knob(0.7, 0.5, 0.99, "confidence from which a row counts as learned")
    th_min: Knob = knob(0.0, 0.0, 0.9, "auxiliary confidence below which a row is left out")
    form: str = choice("code", ("code", "paper"), "margin and smoothing as the authors' code or as the paper has them")
    status: str = choice("epoch", ("epoch", "running", "ema"), "when the selected rows are forgotten")
    epochs: int = size(10, 1, 100, "times the status is emptied in a run")
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the counts with status=ema; auto is 1 - 5/steps")
    head: Head = field(default_factory=lambda: Cosine(scale=1 / 0.07, learn_scale="yes"))
    views = (1, 2)

    def init(self, problem: Problem, generator: Generator) -> Any:
        main = self.head.init(problem, generator)
        return {"main": main, "aux": tree_map(torch.clone, main)}

    def start(self, problem: Problem) -> State:
        status = torch.full((len(problem.u),), -1, device=problem.y.device)
        momentum = problem.x.new_tensor(auto_momentum(self.momentum, problem.steps))
        ema = torch.zeros_like(problem.prior).to(problem.x)
        return State(self.head.start(problem), status, status.new_tensor(0), ema, momentum)

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        parts = (batch.x, batch.weak[0], *batch.strong)
        main = together(partial(self.head.scores, params["main"], state.head), *parts)
        aux = together(partial(self.head.scores, params["aux"], state.head), *(part.detach() for part in parts))
        epoch = (progress * self.epochs + 1e-6).long()
        is_forgotten = (epoch != state.epoch) & (self.status == "epoch")
        before = torch.where(is_forgotten, -1, state.status)
        n_classes, dtype = state.ema.numel(), batch.x.dtype
        sigma = state.ema if self.status == "ema" else counts_of(before, n_classes, dtype)
        m = margin(sigma, self.alpha0, self.form)
        q, _, is_learned = confident_labels(main[1], self.threshold)
        _, a, is_kept = confident_labels(aux[1], self.th_min)
        target = smooth_labels(q, n_classes, self.smoothing, dtype, self.form)
        labelled = balanced_margin_cross_entropy(main[0], batch.y, m) + cross_entropy(aux[0], batch.y)
        consistent = smoothed = torch.zeros_like(labelled[0])
        for main_s, aux_s in zip(main[2:], aux[2:], strict=True):  # the strong views
            bms = balanced_margin_cross_entropy(main_s, q, m)
            consistent = consistent + (a * is_kept * bms).mean() / len(batch.strong)
            smoothed = smoothed + (is_learned * soft_cross_entropy(aux_s, target)).sum()
        smoothed = smoothed / (len(batch.strong) * is_learned.sum()).clamp_min(1)
        selected = torch.where(is_learned > 0, q, before[batch.row])
        fresh = (is_learned[:, None] * one_hot(q, n_classes, dtype)).mean(dim=0)
        ema = state.momentum * state.ema + (1 - state.momentum) * fresh
        after = State(state.head, before.scatter(0, batch.row, selected), epoch, ema, state.momentum)
        stats = {"mask_rate": is_learned.mean(), "margin_max": m.max()}
        return Out(labelled.mean() + self.w_con * consistent + smoothed, after, stats)

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        main = self.head.scores(params["main"], state.head, x)
        return {"test": main, "pseudo": main, "aux": self.head.scores(params["aux"], state.head, x)}

    def kept(self, state: Any, trace: Trace) -> list[PerClass | OverTime]:
        sigma = state.ema.float()
        if self.status != "ema":
            sigma = counts_of(state.status.long(), len(sigma), torch.float32)
        kept: list[PerClass | OverTime] = [
            PerClass("Margin m_k", "margin (score)", "A class with few selected rows must win by more while training.",
                     margin(sigma, self.alpha0, self.form)),
            PerClass("Selected rows sigma_k", "share" if self.status == "ema" else "rows", "Rows of the pool that the "
                     "main head has selected since the status was last emptied.", sigma),
        ]  # fmt: skip
        if "margin_max" in trace.curves:
            curve = trace.curves["margin_max"][:, None]
            kept.append(OverTime("Largest margin", "margin (score)", "The largest margin of any class.", trace.steps,
                                 curve))  # fmt: skip
        return kept
