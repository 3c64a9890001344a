"""What the studio's server answers before panel and bokeh see it, and what of theirs reaches the terminal.

A request is answered in one word where it asks another host than this server, where a page of another host sends it, or
where its token is not one that this server has made: panel and bokeh would end it in tracebacks. Of their errors a line
is told.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import panel as pn
from bokeh.util.token import check_token_signature
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import RequestHandler

LONGEST = 8000  # characters of an address
LOUD = ("bokeh", "panel", "tornado")  # libraries that log with tracebacks


class Unwanted(Matcher):
    """Matches the requests that are not answered, and says with which status and word."""

    def __init__(self, hosts: Collection[str] | None, secret: bytes) -> None:
        self.hosts = hosts  # host:port that may be asked, and from whose pages; None: any
        self.secret = secret  # signs the tokens of this server

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """The arguments of `Refusal`, or None for a request that is answered."""
        reason = self.reason(request)
        return None if reason is None else {"target_kwargs": {"status": reason[0], "word": reason[1]}}

    def reason(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Status and word with which a request is refused, or None."""
        origin = request.headers.get("Origin")
        asked = [request.host, *([] if origin is None else [urlparse(origin).netloc])]
        if self.hosts is not None and not {host.lower() for host in asked} <= {*self.hosts}:
            return 403, "This studio is for its own address, as the terminal shows it."
        if len(request.uri or "") > LONGEST:
            return 414, "This address is too long."
        tokens = [value.decode(errors="replace") for value in request.arguments.get("bokeh-token", [])]
        if request.path.endswith("/ws"):
            tokens.append(request.headers.get("Sec-WebSocket-Protocol", "").removeprefix("bokeh,").strip())
        return None if all(map(self.is_own, tokens)) else (400, "This is no token of this studio.")

    def is_own(self, token: str) -> bool:
        """Whether this server has made the token."""
        try:
            return token.isascii() and check_token_signature(token, secret_key=self.secret, signed=True)
        except (ValueError, TypeError, KeyError, RecursionError):  # it cannot even be decoded
            return False


class Refusal(RequestHandler):
    """Answers any method with a status and a sentence."""

    def initialize(self, status: int, word: str) -> None:
        """What is answered."""
        self.status, self.word = status, word

    def prepare(self) -> None:
        """Answer before any method is looked at."""
        self.set_status(self.status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self.word}\n")


def guard(server: Any, hosts: Collection[str] | None, secret: bytes) -> None:
    """Refuse what is unwanted, before any other rule of the server; it may be panel's thread of a running one."""
    rule = Rule(Unwanted(hosts, secret), Refusal)

    async def guard_running() -> None:  # in the loop of the thread, which begins once the server is made
        guard_made(pn.state._servers[server.server_id][0])

    def guard_made(made: Any) -> None:
        made._tornado.wildcard_router.rules.insert(0, rule)

    if loop := getattr(server, "asyncio_loop", None):
        asyncio.run_coroutine_threadsafe(guard_running(), loop).result(timeout=60)
    else:
        guard_made(server)


class OneLine(logging.Handler):
    """Tells an error in one line: what happened, and where."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a record without its traceback."""
        text = record.getMessage().splitlines()[0]
        if record.exc_info and (error := record.exc_info[1]) is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text += f": {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        self.tell(f"studio: {' '.join(text.split())}")


def tell_in_lines(tell: Callable[[str], None]) -> None:
    """From now on, libraries that serve the page tell errors in a line, and nothing else."""
    for name in LOUD:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [OneLine(tell)], False
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)  # the answers are the browser's
