"""vmap over runs: splits x configurations, kept as trees whose leaves are [S, R, ...].

A leaf that is the same for all splits or all configurations is an expanded view, its stride 0 on that axis. vmap leaves
such a leaf unbatched, so a batch shared by all configurations gives one wide product.
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
    """fn over the two leading axes of every leaf of args; a result that does not vary stays an expanded view.

    Leaves of args are [S or 1, R or 1, ...] or None; fn returns a tree of tensors. Given `calls`, fn is compiled, once
    for each set of shared axes and shapes, and kept there for the calls that follow with the same fn.
    """
    leaves, spec = tree_flatten(args)
    inner = tuple(None if _is_shared(leaf, 1) else 0 for leaf in leaves)
    outer = tuple(None if _is_shared(leaf, 0) else 0 for leaf in leaves)
    taken = [_drop(_drop(leaf, 1, i), 0, o) for leaf, i, o in zip(leaves, inner, outer, strict=True)]

    def flat(*leaves: Any) -> Any:
        return fn(*tree_unflatten(list(leaves), spec))

    call = vmap(flat, in_dims=inner) if 0 in inner else flat
    call = vmap(call, in_dims=outer) if 0 in outer else call
    if calls is not None:
        key = (inner, outer, tuple(None if leaf is None else leaf.shape for leaf in taken))
        if key not in calls:
            calls[key] = compiled(call, taken)
        call = calls[key]

    def lifted(leaf: Tensor) -> Tensor:  # back to [S, R, ...]
        leaf = leaf if 0 in inner else leaf.unsqueeze(1 if 0 in outer else 0)
        leaf = leaf if 0 in outer else leaf.unsqueeze(0)
        return leaf.expand(*shape, *leaf.shape[2:])

    return tree_map(lifted, call(*taken))


def compiled(call: Callable[..., Any], args: Sequence[Any]) -> Callable[..., Any]:
    """A function traced on args and compiled for their shapes; itself where the compiler fails, with a warning."""
    try:
        traced = make_fx(call)(*args)
        for node in traced.graph.nodes:  # the compiler may lay tensors out in another way than the trace did
            if node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        traced.recompile()
        fast = torch.compile(traced, dynamic=False)
        fast(*args)
    except Exception as error:  # whatever a compiler raises, the answer is the same without one
        log.warning("this step cannot be compiled here and runs as it is: %s", str(error).split("\n")[0])
        return call
    return fast


def stack(runs: Sequence[Sequence[Any]]) -> Any:
    """[S][R] trees as one tree with leaves [S, R, ...], equal ones expanded."""
    rows = [tree_map(lambda *leaves: join(leaves), *row) for row in runs]
    return tree_map(lambda *leaves: join(leaves), *rows)


def pick(tree: Any, *index: int) -> Any:
    """One run of a joint tree."""
    return tree_map(lambda leaf: leaf[index], tree)


def join(leaves: Sequence[Any]) -> Any:
    """Tensors stacked on a new first axis, an expanded view where all are equal; None where the first is."""
    first = leaves[0]
    if first is None:
        return None
    if all(leaf is first or torch.equal(leaf, first) for leaf in leaves[1:]):
        return first.expand(len(leaves), *first.shape)
    return torch.stack(tuple(leaves))


def glue(parts: Sequence[Sequence[Any]]) -> Any:
    """A grid of trees, [S / s][R / r] with leaves [s, r, ...], as one tree; leaves that are equal stay expanded."""
    rows = [tree_map(lambda *leaves: _cat(leaves, 1), *row) for row in parts]
    return tree_map(lambda *leaves: _cat(leaves, 0), *rows)


def take(tree: Any, chosen: Int[Tensor, " K"]) -> Any:
    """Some configurations of a joint tree, in that order."""

    def taken(leaf: Tensor) -> Tensor:
        if _is_shared(leaf, 1):
            return leaf[:, :1].expand(-1, len(chosen), *leaf.shape[2:])
        return leaf.index_select(1, chosen.to(leaf.device))

    return tree_map(taken, tree)


def _cat(leaves: Sequence[Tensor], axis: int) -> Tensor:
    if len(leaves) == 1:
        return leaves[0]
    firsts = [leaf.narrow(axis, 0, 1) for leaf in leaves]
    if all(_is_shared(leaf, axis) for leaf in leaves) and all(torch.equal(firsts[0], each) for each in firsts[1:]):
        size = list(leaves[0].shape)
        size[axis] = sum(leaf.shape[axis] for leaf in leaves)
        return firsts[0].expand(size)
    return torch.cat(tuple(leaves), dim=axis)


def _is_shared(leaf: Tensor | None, axis: int) -> bool:
    return leaf is None or leaf.shape[axis] == 1 or leaf.stride(axis) == 0


def _drop(leaf: Tensor | None, axis: int, dim: int | None) -> Tensor | None:
    return leaf.select(axis, 0) if leaf is not None and dim is None else leaf
