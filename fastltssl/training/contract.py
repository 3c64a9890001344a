"""What a method must return, checked once before it trains, and sentences for faults in a method of your own.

The members are listed under "What a method is" in docs/method.md, and in `fastltssl.types.Method`.
"""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map

from fastltssl.errors import METHOD_PAGE, FastltsslError, MethodError
from fastltssl.types import Batch, Method, Out, Problem, Run, Trained, is_trained, leaf_name, prior_of


def check_method(method: Method, problem: Problem, run: Run, batch: Batch | None) -> None:
    """Raise MethodError unless loss and scores return what a Method promises; `run` is one before its first step.

    The loss is computed once, on the batch, unless that is None.
    """
    if batch is not None:
        _check_loss(method, run, batch, problem.x.new_tensor(0.0))
    rows = problem.x[:2, 0]
    with torch.no_grad(), blamed(method, "scores"):
        scores = method.scores(run.params, run.state, rows)
    if not isinstance(scores, dict) or "test" not in scores:
        given = ", ".join(map(repr, scores)) or "nothing" if isinstance(scores, dict) else _kind(scores)
        raise _fault(method, "scores", f'must return a dict with "test", not {given}')
    if method.views[0] and "pseudo" not in scores:
        raise _fault(method, "scores", 'must return "pseudo", too: the method trains on views of unlabelled rows')
    n_classes = problem.prior.numel()
    prior = prior_of(run.state)
    if prior is not None and tuple(prior.shape) != (n_classes,):
        raise _fault(method, "start", f"gives prior_u as {_kind(prior)}, not [classes], here [{n_classes}]")
    wanted = (len(rows), n_classes)
    for name, z in scores.items():
        if not isinstance(z, Tensor) or tuple(z.shape) != wanted or not z.is_floating_point():
            shown = f"{_kind(z)} of {z.dtype}" if isinstance(z, Tensor) else _kind(z)
            what = f"floats [rows classes], here {list(wanted)}"
            raise _fault(method, "scores", f"returns {name!r} as {shown}, not {what}")


def check_out(method: Method, state: Any, out: Any) -> None:
    """Raise MethodError unless a loss, called with that state, returned what it must."""
    if not isinstance(out, Out):
        raise _fault(method, "loss", f"must return Out(loss, state, stats), not {_kind(out)}")
    if not isinstance(out.loss, Tensor) or out.loss.ndim:
        raise _fault(method, "loss", f"gives the loss as {_kind(out.loss)}, not as one number: take its mean()")
    before, after = _leaves(state), _leaves(out.state)
    for name in sorted(before.keys() | after.keys()):
        old, new = (_kind(leaves[name]) if name in leaves else "nothing" for leaves in (before, after))
        if old != new:
            what = f"{name!r} of the state" if name else "the state"
            raise _fault(method, "loss", f"turns {what} from {old} into {new}: it must keep names and shapes")
    if not isinstance(out.stats, dict):
        raise _fault(method, "loss", f"gives the stats as {_kind(out.stats)}, not as a dict of tensors")
    for name, value in out.stats.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise _fault(method, "loss", f"gives the stat {name!r} as {_kind(value)}, not as a tensor of one number")


def made(method: Method, member: str, *args: Any) -> Any:
    """What `init` or `start` returns. Raises MethodError unless that is a tree of tensors."""
    with blamed(method, member):
        tree = getattr(method, member)(*args)
    trains = member == "init"
    for name, leaf in _leaves(tree).items():
        if leaf is None and not trains and not is_trained(method):
            continue
        if not isinstance(leaf, Tensor):
            raise _fault(method, member, f"gives {name or 'one value'} as {_kind(leaf)}, not as a tensor")
        if trains and not leaf.is_floating_point():
            raise _fault(method, member, f"gives {name or 'a tensor'} in {leaf.dtype}, which cannot train: take floats")
    return tree


@contextmanager
def blamed(method: Any, member: str) -> Iterator[None]:
    """Make an exception that comes from a line of a user's method file a MethodError that names the line."""
    try:
        yield
    except (FastltsslError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        file = _file(method)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if type(method).__module__.startswith("fastltssl.") or not lines:
            raise
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if "vmap" in text:  # the rest of such a message is for the authors of torch
            text = text.partition(". ")[0] + ". Hundreds of configurations run at once here: a line may not read one "
            text += "number, choose rows or draw at random"
        raise MethodError(f"{file}, line {lines[-1]}, in {member}: {text}. {METHOD_PAGE}") from error


def _check_loss(method: Method, run: Run, batch: Batch, progress: Tensor) -> None:
    params = tree_map(lambda leaf: leaf.detach().requires_grad_(), run.params)
    with torch.enable_grad(), blamed(method, "loss"):
        out = cast(Trained, method).loss(params, run.state, batch, progress)
    check_out(method, run.state, out)
    if not out.loss.requires_grad and _leaves(params):
        raise _fault(method, "loss", "gives a loss that does not depend on what init returns, so nothing would train")


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their names, such as head.weight."""
    leaves, _ = tree_flatten_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def _kind(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.60}"


def _file(method: Any) -> str:
    try:
        return inspect.getfile(type(method))
    except (TypeError, OSError):
        return ""


def _fault(method: Any, member: str, text: str) -> MethodError:
    return MethodError(f"{member} of {_file(method) or type(method).__name__} {text}. {METHOD_PAGE}")
