"""`fastltssl doctor`: what works on this machine."""

import json

import click

from fastltssl.commands.common import as_json, example


@click.command(epilog=example("doctor"))
@as_json
def doctor(is_json: bool) -> None:
    """Check torch, the device, faiss, the embedded model, threads and the cache folder."""
    from fastltssl.commands.doctor_checks import findings
    from fastltssl.show.terminal import grid, show

    found = findings()
    show(grid(["part", "state", "what"], [[one.part, "ok" if one.is_ok else "problem", one.what] for one in found]))
    if is_json:
        click.echo(json.dumps([one._asdict() for one in found]))
    if not all(one.is_ok for one in found):
        raise click.exceptions.Exit(1)
