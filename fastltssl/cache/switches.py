"""The switches of a protocol as keyword arguments: what a notebook writes where a shell has flags."""

import dataclasses
import difflib
from typing import Any

import numpy as np

from fastltssl.cache.splits import PRESETS, Protocol, SwitchError

KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # those that `splits.checked` takes as they come
    "gamma_l": ((int, float), "a number"),
    "gamma_u": ((int, float), "a number"),
    "overlap": ((bool,), "True or False"),
}


def protocol_of(switches: dict[str, Any]) -> Protocol:
    """The Protocol of named switches; numbers may be numpy's.

    Raises SwitchError on a name there is none of, a value of the wrong kind, or one that the preset sets otherwise.
    The values themselves are checked where the split is made.
    """
    known = [field.name for field in dataclasses.fields(Protocol)]
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in switches.items()}
    fixed = PRESETS.get(str(given.get("preset")), {})
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SwitchError(f"no switch {name!r}.{hint} Known: seed, {', '.join(known)}")
        kinds, meaning = KINDS.get(name, ((object,), ""))
        if not isinstance(value, kinds):
            raise SwitchError(f"{name}={value!r} is not {meaning}")
        if name in fixed and fixed[name] != value:
            raise SwitchError(f"preset {given['preset']} sets {name} to {fixed[name]}, and {value} was asked for")
    return Protocol(**given)
