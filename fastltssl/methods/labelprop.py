"""Label propagation (Zhou et al. 2004) on a nearest-neighbour graph (arXiv 1904.04717): labels diffuse, nothing trains.

| code | symbol | meaning |
| --- | --- | --- |
| key | | unit features of labelled and unlabelled rows, less their mean |
| affinity | A, W, S | max(cos, 0)^gamma of the nearest neighbours; A + A^T; D^-1/2 W D^-1/2 |
| seeds, mass | Y, Z | one-hot labels of the labelled rows, zero elsewhere; (I - alpha S)^-1 Y |

Differs: features are centred, as CLIP images lie in a narrow cone, where all cosines are alike; k 20, gamma 10 and
alpha .8 for 50, 3 and .99 of the paper, which blur small graphs; columns of Z are scaled to equal sums (Zhu et al.
2003) and new rows are scored by their neighbours in the graph (ours). The paper trains a network on Z; here Z predicts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from fastltssl.functional.bias import log_prior, one_hot
from fastltssl.functional.neighbors import nearest
from fastltssl.knobs import Knob, choice, knob, size
from fastltssl.types import Problem, Scores

ROWS = 2048  # scored at once


class State(NamedTuple):
    mean: Float[Tensor, " D"]
    key: Float[Tensor, "N D"]
    mass: Float[Tensor, "N C"]


def graph(key: Float[Tensor, "N D"], k: int, gamma: Knob) -> Tensor:
    """S = D^-1/2 (A + A^T) D^-1/2 [N N], sparse, without self-loops."""
    cosine, neighbour = nearest(key, key, k + 1)
    row = torch.arange(len(key), device=key.device)[:, None].expand_as(neighbour)
    affinity = torch.where(neighbour == row, 0.0, cosine.clamp_min(0) ** gamma)
    edges = torch.stack([row, neighbour]).flatten(1)
    edges = torch.cat([edges, edges.flip(0)], dim=1)  # in both directions
    values = affinity.flatten().repeat(2)
    degree = torch.zeros_like(key[:, 0]).index_add(0, edges[0], values)
    scale = torch.where(degree > 0, degree.clamp_min(1e-300).rsqrt(), 0.0)  # D^-1/2
    weights = scale[edges[0]] * values * scale[edges[1]]
    return torch.sparse_coo_tensor(edges, weights, (len(key),) * 2, check_invariants=False).coalesce()


def diffuse(links: Tensor, seeds: Float[Tensor, "N C"], alpha: Knob, iterations: int) -> Float[Tensor, "N C"]:
    """Z = (I - alpha S)^-1 Y by the conjugate gradient method, run for each class on its own; negative values are 0."""
    z, residual, direction = torch.zeros_like(seeds), seeds, seeds
    square = (residual**2).sum(dim=0)
    for _ in range(iterations):
        product = direction - alpha * torch.sparse.mm(links, direction)
        length = square / (direction * product).sum(dim=0).clamp_min(1e-300)
        z, residual = z + length * direction, residual - length * product
        before, square = square, (residual**2).sum(dim=0)
        direction = residual + square / before.clamp_min(1e-300) * direction
    return z.clamp_min(0)


@dataclass(frozen=True, eq=False)
class Method:
    """z = sharpness log norm(sum over the k nearest keys of max(cos, 0)^gamma Z), columns of Z scaled to equal sums."""

    neighbours: int = size(20, 1, 100, "nearest neighbours k of a row, in the graph and when it is scored")
    gamma: Knob = knob(10.0, 1.0, 50.0, "power of the cosine in an affinity", log=True)
    alpha: Knob = knob(0.8, 0.0, 0.99, "how far labels travel; 0 is a nearest-neighbour vote of the labelled rows")
    sharpness: Knob = knob(2.0, 0.1, 10.0, "multiplier of the log-probabilities", log=True)
    iterations: int = size(30, 1, 100, "steps of the conjugate gradient")
    masses: str = choice("uniform", ("uniform", "labelled", "none"), "class masses of Z: equal, as pi_l, as they come")
    centre: str = choice("on", ("on", "off"), "take the mean of all rows from the features")
    views = (1, 0)

    def init(self, problem: Problem, generator: Generator) -> dict[str, Tensor]:
        return {}

    def start(self, problem: Problem) -> State:
        rows = torch.cat([problem.x[:, 0].double(), problem.u[:, 0].double()])
        unit = F.normalize(rows, dim=-1)
        mean = unit.mean(dim=0) * (self.centre == "on")
        key, seeds = F.normalize(unit - mean, dim=-1), torch.zeros(len(unit), problem.prior.numel()).to(unit)
        seeds = torch.cat([one_hot(problem.y, seeds.shape[1], unit.dtype), seeds[len(problem.y) :]])
        mass = diffuse(graph(key, self.neighbours, self.gamma), seeds, self.alpha, self.iterations)
        if self.masses != "none":
            wanted = problem.prior.to(mass) if self.masses == "labelled" else 1.0
            mass = mass * wanted / mass.sum(dim=0).clamp_min(1e-300)
        mass = mass / mass.max()  # one factor for all classes, to suit float32
        return State(*(tensor.to(problem.x) for tensor in (mean, key, mass)))

    def _vote(self, state: State, x: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        cosine = F.normalize(F.normalize(x, dim=-1) - state.mean, dim=-1) @ state.key.T
        near, neighbour = cosine.topk(min(self.neighbours, len(state.key)), dim=-1)
        return (near.clamp_min(0)[:, :, None] ** self.gamma * state.mass[neighbour]).sum(dim=1)

    def scores(self, params: dict[str, Tensor], state: State, x: Float[Tensor, "n D"]) -> dict[str, Scores]:
        vote = torch.cat([self._vote(state, part) for part in x.split(ROWS)])
        share = vote / vote.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        scores = self.sharpness * log_prior(share)
        return {"test": scores, "pseudo": scores}
