"""ULFine (arXiv 2505.05062): prototypes fitted to the data (PAF), and their scores fused with a probe's (DLF).

| code | symbol | meaning |
| --- | --- | --- |
| text, visual, fitted | c^t, c^v, c | textual prototypes, class means of labelled embeddings, and their mixture |
| z_t, z_l | z_t, z_l | prototype scores less their label bias, and probe scores |
| prior_u | P = Q | running estimate of the unlabelled prior |

Differs: the authors' code is not public; beyond the PAF equation all of this is our reading. alpha=confidence is the
paper's form, which collapses on frozen features: images lie in a narrow cone, so that a prototype moved towards class
means scores higher on every image. By default alpha is the same for all classes, and c starts from the text at each
step. The weights a, c of the branches are learned on scores of rows that neither branch was trained on: those of a head
trained on the other fold, and the zero-shot scores (fitted prototypes have seen the labelled rows). `pull` regularises
a and c towards 1/2 where labels are few.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from fastltssl.functional.bias import auto_momentum, log_prior, one_hot, two_folds, update_prior
from fastltssl.functional.heads import Cosine, together
from fastltssl.functional.losses import confident_labels, cross_entropy
from fastltssl.functional.zero_shot import (
    TextBranch,
    class_means,
    embed,
    spread,
    text_branch,
    text_scores,
    zero_shot_bias,
)  # fmt: skip
from fastltssl.knobs import AutoKnob, Knob, choice, knob
from fastltssl.types import Batch, Head, Out, OverTime, PerClass, Problem, Scores, Trace


class State(NamedTuple):
    head: Any
    text: TextBranch
    visual: Float[Tensor, "C E"]
    fitted: Float[Tensor, "C E"]
    log_bias: Float[Tensor, " C"]
    log_prior: Float[Tensor, " C"]
    prior_u: Float[Tensor, " C"]
    fold: Int[Tensor, " L"]
    momentum: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class Method:
    """L = LA(z_l, y) + lambda_u mean 1[max p >= threshold] CE(z(u_s) + tau_u log Q, q); z fuses z_l and z_t."""

    mu: Knob = knob(0.3, 0.0, 1.0, "largest share of the visual prototype")
    eta: Knob = knob(0.5, 0.0, 1.0, "share of the probe in the fusion")
    threshold: Knob = knob(0.7, 0.5, 0.99, "confidence from which a pseudo-label counts")
    lambda_u: Knob = knob(1.0, 0.1, 10.0, "weight of the unlabelled loss", log=True)
    tau: Knob = knob(1.0, 0.0, 2.0, "logit adjustment of the labelled loss")
    tau_u: Knob = knob(1.0, 0.0, 2.0, "logit adjustment of the unlabelled loss by the estimated prior")
    prototype_momentum: Knob = knob(0.9, 0.0, 0.999, "momentum of the visual prototypes")
    momentum: AutoKnob = knob("auto", 0.5, 0.9999, "momentum of the estimated prior; auto is 1 - 5/steps")
    pull: Knob = knob(100.0, 1.0, 1000.0, "pull of a, c to 1/2, worth so many labelled rows", True, under="align=stack")
    orth_rate: Knob = knob(1.0, 0.0, 10.0, "size of the orthogonality step", under="orth=step")
    align: str = choice("stack", ("stack", "none", "zscore"), "weights of the branches: learned, both 1/2, z-scored")
    alpha: str = choice("uniform", ("uniform", "confidence", "off"), "prototype fitting: anchored, the paper's, none")
    debias: str = choice("on", ("on", "off"), "subtract the label bias from the prototype scores")
    orth: str = choice("off", ("off", "step"), "orthogonality step on the prototypes")
    head: Head = field(default_factory=Cosine)
    views = (1, 1)

    def init(self, problem: Problem, generator: Generator) -> Any:
        params = {"head": self.head.init(problem, generator)}
        if self.align != "stack":
            return params
        weights = {name: problem.x.new_tensor(0.5) for name in ("a", "c")}
        return params | weights | {f"fold{k}": tree_map(torch.clone, params["head"]) for k in (0, 1)}

    def start(self, problem: Problem) -> State:
        text, like, n_classes = text_branch(problem), problem.x, problem.prior.numel()
        log_bias, center = like.new_zeros(n_classes), like[:, 0]
        if self.debias == "on":
            log_bias = zero_shot_bias(problem).log_bias
        state = State(
            head=self.head.start(problem),
            text=text,
            visual=class_means(embed(center, text.projection, text.ln_post), problem.y, n_classes),
            fitted=text.anchor,
            log_bias=log_bias,
            log_prior=log_prior(problem.prior).to(like),
            prior_u=like.new_full((n_classes,), 1 / n_classes),
            fold=two_folds(problem.y),
            momentum=like.new_tensor(auto_momentum(self.momentum, problem.steps)),
        )
        return self._fit(state) if self.alpha == "uniform" else state

    def _fit(self, state: State) -> State:
        """PAF: c <- (1 - alpha_k) c + alpha_k c^v with alpha_k = mu P_k / max P; uniform: c = (1 - mu) c^t + mu c^v."""
        if self.alpha == "off":
            return state
        share, before = self.mu, state.text.anchor
        if self.alpha == "confidence":
            share, before = (self.mu * state.prior_u / state.prior_u.max())[:, None], state.fitted
        fitted = F.normalize((1 - share) * before + share * state.visual, dim=-1)
        return state._replace(fitted=spread(fitted, self.orth_rate) if self.orth == "step" else fitted)

    def _text(self, state: State, x: Float[Tensor, "n D"]) -> Scores:
        """z_t: scores of the fitted prototypes, less the label bias."""
        return text_scores(state.text._replace(anchor=state.fitted), x) - state.log_bias

    def _fuse(self, params: Any, z_l: Scores, z_t: Scores) -> Scores:
        """DLF: the weighted sum of the two scores; a and c get no gradient from it."""
        if self.align == "stack":
            return 2 * self.eta * params["a"].detach() * z_l + 2 * (1 - self.eta) * params["c"].detach() * z_t
        if self.align == "zscore":
            z_l, z_t = (F.layer_norm(z, z.shape[-1:]) for z in (z_l, z_t))
        return self.eta * z_l + (1 - self.eta) * z_t

    def loss(self, params: Any, state: State, batch: Batch, progress: Float[Tensor, ""]) -> Out:
        z_l = self.head.scores(params["head"], state.head, batch.x)
        loss = cross_entropy(z_l + self.tau * state.log_prior, batch.y).mean()
        weak, strong = together(lambda x: self.scores(params, state, x)["pseudo"], batch.weak[0], batch.strong[0])
        q, _, mask = confident_labels(weak, self.threshold)
        strong = strong + self.tau_u * log_prior(state.prior_u)
        loss = loss + self.lambda_u * (mask * cross_entropy(strong, q)).mean()
        if self.align == "stack":
            loss = loss + self._stack(params, state, batch)
        prior_u = update_prior(state.prior_u, weak, state.momentum)
        after = state._replace(visual=self._visual(state, batch), prior_u=prior_u)
        return Out(loss, self._fit(after), {"mask_rate": mask.mean()})

    def _visual(self, state: State, batch: Batch) -> Float[Tensor, "C E"]:
        """c^v after a batch: m c^v + (1 - m) class mean, unit norm; unchanged for classes without rows in the batch."""
        x, n_classes = embed(batch.x, state.text.projection, state.text.ln_post), len(state.visual)
        m = self.prototype_momentum
        is_seen = one_hot(batch.y, n_classes, x.dtype).sum(dim=0)[:, None] > 0
        mean = class_means(x, batch.y, n_classes)
        return torch.where(is_seen, F.normalize(m * state.visual + (1 - m) * mean, dim=-1), state.visual)

    def _stack(self, params: Any, state: State, batch: Batch) -> Float[Tensor, ""]:
        """The losses that train a and c: LA of a head on each fold; CE(a sg(z_l) + c z_zs + log pi_l, y); pull to 1/2.

        z_l are the scores of the head of the other fold, which has not seen the row.
        """
        own = one_hot(state.fold[batch.x_row], 2, batch.x.dtype)
        scores = [self.head.scores(params[f"fold{k}"], state.head, batch.x) for k in (0, 1)]
        losses = torch.stack([cross_entropy(z + self.tau * state.log_prior, batch.y) for z in scores], dim=1)
        trained = ((own * losses).sum(dim=0) / own.sum(dim=0).clamp_min(1)).sum()
        z_l = (own[:, :1] * scores[1] + own[:, 1:] * scores[0]).detach()
        fused = params["a"] * z_l + params["c"] * text_scores(state.text, batch.x) + state.log_prior
        share = len(state.fold) / (len(state.fold) + self.pull)
        pulled = (params["a"] - 0.5) ** 2 + (params["c"] - 0.5) ** 2
        return trained + share * cross_entropy(fused, batch.y).mean() + (1 - share) * pulled

    def scores(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        z_l, z_t = self.head.scores(params["head"], state.head, x), self._text(state, x)
        fused = self._fuse(params, z_l, z_t)
        return {"test": fused, "pseudo": fused, "text": z_t, "probe": z_l}

    @property
    def share(self) -> Knob:
        """The fusion weight."""
        return self.eta

    def ends(self, params: Any, state: State, x: Float[Tensor, "n D"]) -> tuple[Scores, Scores]:
        """Fused scores at eta = 1, the probe's, and at eta = 0, the text's."""
        run, text = (replace(self, eta=eta).scores(params, state, x)["test"] for eta in (1.0, 0.0))
        return run, text

    def kept(self, state: Any, trace: Trace) -> list[PerClass | OverTime]:
        drift, target = (1 - (state.text.anchor * other).sum(dim=-1) for other in (state.fitted, state.visual))
        share = torch.full_like(drift, 0.0 if self.alpha == "off" else float(self.mu))
        if self.alpha == "confidence":
            share = self.mu * state.prior_u / state.prior_u.max()
        return [
            PerClass("Share alpha_k of the visual prototype", "alpha_k", "How much of a class's text prototype gives "
                     "way to the mean of its images; equal bars mean one share for all classes.", share),
            PerClass("Prototype drift", "1 - cosine with the text", "How far the fitted prototype has moved from the "
                     "text; 0 is the zero-shot classifier.", drift),
            PerClass("Distance of the class mean from the text", "1 - cosine with the text", "Where the prototype "
                     "would go at alpha_k = 1.", target),
        ]  # fmt: skip
