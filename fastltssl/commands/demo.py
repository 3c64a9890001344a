"""`fastltssl demo`: the whole path on the embedded world."""

import click

from fastltssl.commands.common import as_json, example, on_device, train_line, usable_device
from fastltssl.commands.extract import run_extract


@click.command(epilog=example("demo"))
@click.option("--steps", default=500, show_default=True, type=click.IntRange(1))
@click.option("--fresh", is_flag=True, help="Extract again even where the demo cache is complete.")
@on_device
@as_json
def demo(steps: int, fresh: bool, device: str, threads: int | None, is_json: bool) -> None:
    """The whole path on the embedded world: images, cache, methods, table. Needs no download."""
    from fastltssl.commands import demo_run as whole

    whole.demo(
        run_extract,
        follow_training=train_line,
        steps=steps,
        fresh=fresh,
        device=usable_device(device, threads),
        threads=threads or 1,
        is_json=is_json,
    )
