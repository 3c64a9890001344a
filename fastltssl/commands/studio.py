"""`fastltssl studio`: a local page on finished runs."""

from pathlib import Path

import click

from fastltssl.commands.common import PATH, example, finished, tell, usable_device, with_trust


@click.command(epilog=example("studio runs/RUN runs/OTHER_RUN"))
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one opens it to other machines.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to listen on (default: a free one).")
@click.option("--cache", "cache_name", help="Cache the runs were trained from, where it has moved.")
@click.option("--dataset", help="The data set, where the images of the cache have moved.")
@click.option("--root", type=PATH, help="Where torchvision keeps its files (default datasets).")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default 1: its products are small).")
@with_trust
def studio(
    runs: tuple[Path, ...], host: str, port: int, cache_name: str | None, dataset: str | None, root: Path | None,
    threads: int | None,
) -> None:  # fmt: skip
    """See where the bias of a run comes from, and try a cure: a local page with sliders.

    Nothing leaves this machine. Open to other hosts, it asks for the token in its address.
    """
    from fastltssl.errors import StudioError
    from fastltssl.show.studio import LOCAL, served
    from fastltssl.show.terminal import show

    usable_device("cpu", threads or 1)
    try:
        server, address = served(tuple(finished(runs)), host, port, cache_name, dataset, root)
    except StudioError as error:
        raise click.ClickException(str(error)) from None
    from fastltssl.show.studio.guard import tell_in_lines  # after `served`, which tells where panel is not installed

    tell_in_lines(tell)
    if host not in LOCAL:
        tell(f"warning: {host} can be reached from other machines. Only who has the token gets in.")
    show(f"studio: {address}\nstop it with Ctrl-C")
    server.run_until_shutdown()
