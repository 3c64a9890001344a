"""vmap over S splits x R configurations, whose tensors are the leaves [S, R, ...] of one tree, the joint tree.

A leaf that is the same for all splits or all configurations is shared: an expanded view with stride 0 on that axis,
stored once. `jointly` does not batch over a shared axis, so that R products with one batch become one wide product.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

log = logging.getLogger(__name__)


def jointly(
    fn: Callable[..., Any], shape: tuple[int, int], *args: Any, calls: dict[Any, Callable[..., Any]] | None = None
) -> Any:
    """fn of every run, batched by vmap over the axes S and R of its arguments; `shape` is (S, R).

    Leaves of args are [S or 1, R or 1, ...] or None; fn, of one run, returns a tree of tensors, whose leaves become
    [S, R, ...], shared where no argument varies. Given a dict `calls`, fn is compiled and stored there, once for each
    set of shared axes and shapes: pass the same dict with the same fn only.
    """
    leaves, spec = tree_flatten(args)
    inner = tuple(None if _is_shared(leaf, 1) else 0 for leaf in leaves)
    outer = tuple(None if _is_shared(leaf, 0) else 0 for leaf in leaves)
    inputs = [_drop(_drop(leaf, 1, i), 0, o) for leaf, i, o in zip(leaves, inner, outer, strict=True)]

    def flat(*leaves: Any) -> Any:
        return fn(*tree_unflatten(list(leaves), spec))

    call = vmap(flat, in_dims=inner) if 0 in inner else flat
    call = vmap(call, in_dims=outer) if 0 in outer else call
    if calls is not None:
        key = (inner, outer, tuple(None if leaf is None else leaf.shape for leaf in inputs))
        if key not in calls:
            calls[key] = compiled(call, inputs)
        call = calls[key]

    def expanded(leaf: Tensor) -> Tensor:  # to [S, R, ...]
        leaf = leaf if 0 in inner else leaf.unsqueeze(1 if 0 in outer else 0)
        leaf = leaf if 0 in outer else leaf.unsqueeze(0)
        return leaf.expand(*shape, *leaf.shape[2:])

    return tree_map(expanded, call(*inputs))


def compiled(call: Callable[..., Any], args: Sequence[Any]) -> Callable[..., Any]:
    """A function compiled for the shapes of args; the function itself, with a warning, where that fails."""
    try:
        traced = make_fx(call)(*args)
        for node in traced.graph.nodes:  # the compiler may choose strides of which no view can be taken
            if node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        traced.recompile()
        fast = torch.compile(traced, dynamic=False)
        fast(*args)
    except Exception as error:  # a compiler may raise anything; the result is the same without it
        log.warning("this step cannot be compiled here and runs as it is: %s", str(error).split("\n")[0])
        return call
    return fast


def stack(runs: Sequence[Sequence[Any]]) -> Any:
    """The joint tree of the runs, a tree for each split and configuration: runs[s][r]."""
    rows = [tree_map(lambda *leaves: _stacked(leaves), *row) for row in runs]
    return tree_map(lambda *leaves: _stacked(leaves), *rows)


def pick(tree: Any, *index: Any) -> Any:
    """The tree of one run of a joint tree, or of some: `index`, numbers or slices, is on its leading axes."""
    return tree_map(lambda leaf: None if leaf is None else leaf[index], tree)


def _stacked(leaves: Sequence[Any]) -> Any:
    """Tensors stacked on a new first axis, shared where all are equal; None where the first is None."""
    first = leaves[0]
    if first is None:
        return None
    if all(leaf is first or torch.equal(leaf, first) for leaf in leaves[1:]):
        return first.expand(len(leaves), *first.shape)
    return torch.stack(tuple(leaves))


def concatenate(parts: Sequence[Sequence[Any]]) -> Any:
    """The joint tree of a grid of smaller ones: a row holds the same splits, a column the same configurations."""
    rows = [tree_map(lambda *leaves: _concatenated(leaves, 1), *row) for row in parts]
    return tree_map(lambda *leaves: _concatenated(leaves, 0), *rows)


def take(tree: Any, chosen: Int[Tensor, " K"]) -> Any:
    """The joint tree of the chosen configurations, in that order."""

    def taken(leaf: Tensor) -> Tensor:
        if _is_shared(leaf, 1):
            return leaf[:, :1].expand(-1, len(chosen), *leaf.shape[2:])
        return leaf.index_select(1, chosen.to(leaf.device))

    return tree_map(taken, tree)


def _concatenated(leaves: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors concatenated on an axis of the joint tree, shared where all are shared there and equal."""
    if len(leaves) == 1:
        return leaves[0]
    firsts = [leaf.narrow(axis, 0, 1) for leaf in leaves]
    if all(_is_shared(leaf, axis) for leaf in leaves) and all(torch.equal(firsts[0], first) for first in firsts[1:]):
        size = list(leaves[0].shape)
        size[axis] = sum(leaf.shape[axis] for leaf in leaves)
        return firsts[0].expand(size)
    return torch.cat(tuple(leaves), dim=axis)


def _is_shared(leaf: Tensor | None, axis: int) -> bool:
    return leaf is None or leaf.shape[axis] == 1 or leaf.stride(axis) == 0


def _drop(leaf: Tensor | None, axis: int, dim: int | None) -> Tensor | None:
    return leaf.select(axis, 0) if leaf is not None and dim is None else leaf
