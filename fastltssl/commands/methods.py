"""`fastltssl methods`: what can be trained, and its knobs."""

from typing import Any

import click

from fastltssl.commands.common import example


@click.command("methods", epilog=example("methods ulfine"))
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the knobs of one.

    NAME may be a file of your own, such as ./mine.py.
    """
    from fastltssl import methods as package
    from fastltssl.functional.heads import HEADS
    from fastltssl.show.terminal import grid, show

    if name is None:
        show(grid(["method", "what"], [[one, package.summary(package.load(one))] for one in package.names()]))
        show(f"heads: {', '.join(HEADS)}\nnext: fastltssl methods NAME")
        return
    module = package.load(name)
    method = module.Method()
    show((module.__doc__ or "").strip())
    show(f"\n{_text(module.Method)}\n")
    if rows := _knobs(package, method):
        show(grid(["knob", "default", "range", "meaning"], rows))
    if hasattr(method, "head"):
        own = package.head_name(method)
        lines = [
            [
                f"{head} (default)" if head == own else head,
                _defaults(package, method.head if head == own else of()),
                _text(of),
            ]
            for head, of in HEADS.items()
        ]
        show("")
        show(grid(["--set head=", "--set head.KNOB=, with its default", "scores"], lines))
    pool = " --m1 300 --gamma-u 10" if method.views[0] else ""
    setting = f" --set {rows[0][0]}={rows[0][1]}" if rows else ""
    show(f"\nexample: fastltssl train {name} --cache CACHE --n1 150 --gamma-l 10{pool}{setting}")


def _text(owner: Any) -> str:
    """First paragraph of a docstring on one line; empty where a dataclass has none but its generated signature."""
    doc = (owner.__doc__ or "").strip()
    return "" if doc.startswith(f"{owner.__name__}(") else " ".join(doc.split("\n\n")[0].split())


def _knobs(package: Any, method: Any) -> list[list[str]]:
    """Name, default, range and meaning of every knob, those of the default head among them."""
    return [
        [key, _default(one, package.values(method)[key]), _accepted(one), one.metadata["doc"] + _under(one)]
        for key, one in package.fields(method).items()
    ]


def _under(field: Any) -> str:
    return f"; read with {field.metadata['under']}" if field.metadata.get("under") else ""


def _defaults(package: Any, head: Any) -> str:
    found = {key: getattr(head, key) for key in package.fields(head)}
    return ", ".join(f"{key}={_default(one, found[key])}" for key, one in package.fields(head).items())


def _default(field: Any, value: Any) -> str:
    if field.default == "auto" and field.metadata["kind"] == "knob":
        return "auto"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _accepted(field: Any) -> str:
    if field.metadata["kind"] == "choice":
        return ", ".join(field.metadata["options"])
    text = f"{field.metadata['low']:g} to {field.metadata['high']:g}"
    return text + (" (log)" if field.metadata.get("log") else "")
