"""The studio: a local web page that shows where the bias of a run comes from and tries to correct it."""

import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastltssl.errors import StudioError

LOCAL = ("127.0.0.1", "localhost")
EVERY = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Studio:
    """A studio that is being served. A notebook shows it in a frame."""

    address: str
    stop: Callable[[], None]

    def _repr_html_(self) -> str:
        return f'<iframe src="{self.address}" width="100%" height="860" style="border: 0"></iframe>'


def studio(
    *runs: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    cache: str | None = None,
    dataset: str | None = None,
    root: str | Path | None = None,
) -> Studio:
    """Serve the studio of some run folders from a thread of this process; port 0 takes a free port.

    `cache`, `dataset` and `root` are needed if the cache or the images have moved since the runs were trained.
    """
    server, address = served(
        tuple(Path(run) for run in runs),
        host,
        port,
        cache,
        dataset,
        None if root is None else Path(root),
        in_thread=True,
    )
    return Studio(address, server.stop)


def served(
    folders: tuple[Path, ...],
    host: str,
    port: int,
    cache: str | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    *,
    in_thread: bool = False,
) -> tuple[Any, str]:
    """A server and its address. With `in_thread` the server is running, else it has to be started.

    If other hosts can reach it, it asks for a token, which is part of the address. Raises RunError if a folder is not a
    run, and StudioError without panel or if the port is taken.
    """
    try:
        import panel as pn
    except ImportError:
        raise StudioError('no studio without panel: pip install "fastltssl[studio]"') from None
    from fastltssl.show.studio.app import guarded_page
    from fastltssl.show.studio.guard import guard
    from fastltssl.show.studio.session import Options, at_hand

    if not folders:
        raise StudioError("the studio needs a run folder, such as runs/RUN. Runs are written by `fastltssl train`")
    for folder in folders:
        at_hand(folder, None)
    token = None if host in LOCAL else secrets.token_urlsafe(16)
    port = _free_port(host, port)
    options = Options(folders, cache, dataset, root)
    hosts = [f"{name}:{port}" for name in LOCAL] if token is None else None
    secret = secrets.token_bytes(32)
    pn.extension()
    logging.getLogger("bokeh.server.util").setLevel(logging.ERROR)  # it warns of the origin "*", which the token guards
    server = pn.serve(
        {"/": lambda: guarded_page(options, token)}, address=host, port=port, websocket_origin=hosts or ["*"],
        show=False, start=in_thread, threaded=in_thread, verbose=False, title="fastltssl studio",
        sign_sessions=True, secret_key=secret,
    )  # fmt: skip
    guard(server, hosts, secret)
    return server, f"http://{_reachable(host)}:{port}/" + (f"?token={token}" if token else "")


def _reachable(host: str) -> str:
    """The host in an address: the name of this machine if it listens on all addresses, IPv6 in brackets."""
    if host in EVERY:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _free_port(host: str, port: int) -> int:
    """The port, or a free port for 0. Raises StudioError if it cannot be opened."""
    if not 0 <= port <= 65535:
        raise StudioError(f"--port {port} is not from 0 to 65535")
    if not host:
        raise StudioError("--host is empty. Accepted: 127.0.0.1 for this machine alone, 0.0.0.0 for all others, too")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, TypeError) as error:  # TypeError of an odd name
            raise StudioError(
                f"--host {host} --port {port} cannot be opened ({error}). Choose another --port"
            ) from None
        return probe.getsockname()[1]
