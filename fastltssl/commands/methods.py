"""`fastltssl methods`: what can be trained, and its knobs."""

from typing import Any

import click

from fastltssl.commands.common import example


@click.command("methods", epilog=example("methods ulfine"))
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the knobs of one."""
    from fastltssl import methods as package
    from fastltssl.heads import HEADS
    from fastltssl.report import grid, show

    if name is None:
        show(grid(["method", "what"], [[one, package.summary(package.load(one))] for one in package.names()]))
        show(f"heads: {', '.join(HEADS)}\nnext: fastltssl methods NAME")
        return
    module = package.load(name)
    show((module.__doc__ or "").strip())
    show("")
    method = module.Method()
    rows = [
        [
            key,
            "auto" if one.default == "auto" else str(package.values(method)[key]),
            _accepted(one),
            one.metadata["doc"],
        ]
        for key, one in package.fields(method).items()
    ]
    if hasattr(method, "head"):
        rows.append(["head", package.head_name(method), ", ".join(HEADS), "what is trained on top of the features"])
    if rows:
        show(grid(["knob", "default", "range", "meaning"], rows))
    example = f" --set {rows[0][0]}={rows[0][1]}" if rows else ""
    show(f"example: fastltssl train {name} --cache CACHE --n1 150 --m1 300 --gamma-l 10 --gamma-u 10{example}")


def _accepted(field: Any) -> str:
    if field.metadata["kind"] == "choice":
        return ", ".join(field.metadata["options"])
    text = f"{field.metadata['low']:g} to {field.metadata['high']:g}"
    return text + (" (log)" if field.metadata.get("log") else "")
