"""vmap over runs: splits x configurations, kept as trees whose leaves are [S, R, ...].

A leaf that is the same for all splits or all configurations is an expanded view, its stride 0 on that axis. vmap leaves
such a leaf unbatched, so a batch shared by all configurations gives one wide product.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


def jointly(fn: Callable[..., Any], shape: tuple[int, int], *args: Any) -> Any:
    """fn over the two leading axes of every leaf of args; a result that does not vary stays an expanded view.

    Leaves of args are [S or 1, R or 1, ...] or None; fn returns a tree of tensors.
    """
    leaves, spec = tree_flatten(args)
    inner = tuple(None if _is_shared(leaf, 1) else 0 for leaf in leaves)
    outer = tuple(None if _is_shared(leaf, 0) else 0 for leaf in leaves)
    taken = [_drop(_drop(leaf, 1, i), 0, o) for leaf, i, o in zip(leaves, inner, outer, strict=True)]

    def flat(*leaves: Any) -> Any:
        return fn(*tree_unflatten(list(leaves), spec))

    call = vmap(flat, in_dims=inner) if 0 in inner else flat
    call = vmap(call, in_dims=outer) if 0 in outer else call

    def lifted(leaf: Tensor) -> Tensor:  # back to [S, R, ...]
        leaf = leaf if 0 in inner else leaf.unsqueeze(1 if 0 in outer else 0)
        leaf = leaf if 0 in outer else leaf.unsqueeze(0)
        return leaf.expand(*shape, *leaf.shape[2:])

    return tree_map(lifted, call(*taken))


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


def _is_shared(leaf: Tensor | None, axis: int) -> bool:
    return leaf is None or leaf.shape[axis] == 1 or leaf.stride(axis) == 0


def _drop(leaf: Tensor | None, axis: int, dim: int | None) -> Tensor | None:
    return leaf.select(axis, 0) if leaf is not None and dim is None else leaf
