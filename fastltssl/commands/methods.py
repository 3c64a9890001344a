"""`fastltssl methods`: what can be trained, and its knobs."""

from typing import Any

import click

from fastltssl.commands.common import example


@click.command("methods", epilog=example("methods ulfine"))
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the knobs of one.

    NAME may be a file of your own, such as ./mine.py. A method file is code, and is run; one that comes with somebody
    else's run is only run with --trust-method.
    """
    from fastltssl.functional.heads import HEADS
    from fastltssl.methods import configure, head_name, load, names, summary
    from fastltssl.show.terminal import grid, show

    if name is None:
        show(grid(["method", "what"], [[known, summary(load(known))] for known in names()]))
        show(f"heads: {', '.join(HEADS)}\nnext: fastltssl methods {names()[0]}")
        return
    module = load(name)
    method = configure(name, {})
    show((module.__doc__ or "").strip())
    show(f"\n{_first_paragraph(module.Method)}\n")
    if rows := _knobs(method):
        show(grid(["knob", "default", "range", "meaning"], rows))
    if hasattr(method, "head"):
        own = head_name(method)
        heads = {head: method.head if head == own else of() for head, of in HEADS.items()}
        lines = [
            [f"{head} (default)" if head == own else head, _defaults(made), _first_paragraph(type(made))]
            for head, made in heads.items()
        ]
        show("")
        show(grid(["--set head=", "--set head.KNOB=, with its default", "scores"], lines))
    pool = " --m1 300 --gamma-u 10" if method.views[0] else ""
    setting = f" --set {rows[0][0]}={rows[0][1]}" if rows else ""
    show(f"\nexample: fastltssl train {name} --cache CACHE --n1 150 --gamma-l 10{pool}{setting}")


def _first_paragraph(owner: Any) -> str:
    """Of the docstring of a class, on one line; empty for the signature that a dataclass without docstring gets."""
    doc = (owner.__doc__ or "").strip()
    return "" if doc.startswith(f"{owner.__name__}(") else " ".join(doc.split("\n\n")[0].split())


def _knobs(method: Any) -> list[list[str]]:
    """Name, default, range and meaning of each knob, with those of the default head."""
    from fastltssl.methods import fields, values

    return [
        [key, _default(knob, values(method)[key]), _accepted(knob), knob.metadata["doc"] + _condition(knob)]
        for key, knob in fields(method).items()
    ]


def _condition(knob: Any) -> str:
    """The setting under which a knob has an effect, if there is one."""
    return f"; read with {knob.metadata['under']}" if knob.metadata.get("under") else ""


def _defaults(head: Any) -> str:
    from fastltssl.methods import fields

    return ", ".join(f"{key}={_default(knob, getattr(head, key))}" for key, knob in fields(head).items())


def _default(knob: Any, value: Any) -> str:
    if knob.default == "auto" and knob.metadata["kind"] == "knob":
        return "auto"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _accepted(knob: Any) -> str:
    """The options of a knob, or the range it is meant for."""
    if knob.metadata["kind"] == "choice":
        return ", ".join(knob.metadata["options"])
    text = f"{knob.metadata['low']:g} to {knob.metadata['high']:g}"
    return text + (" (log)" if knob.metadata.get("log") else "")
