"""Junk that is sent to the studio: a plain answer, and no traceback on the terminal."""

import base64
import json
import os
import re
import socket
import struct
from urllib.parse import urlparse

import pytest
import toy_cache
from shell import invoke
from visitor import served_and_told

SOCKET = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: "
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The address of a studio on one run, and what it has told."""
    top = tmp_path_factory.mktemp("guard")
    cache = toy_cache.write(top / "toy.zarr").path
    invoke("train", "probe", "--cache", cache, "--n1", 9, "--steps", 2, "--out", top / "run")
    with served_and_told(top, "run") as found:
        yield found


def answer(address, path="/", *headers, host=None, frames=()):
    """Status and text of the answer to a request; then `frames` are sent, as to a websocket."""
    port = urlparse(address).port
    lines = [f"GET {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", *headers]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sent:
        sent.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        head = b""
        while b"\r\n\r\n" not in head and (part := sent.recv(2**16)):
            head += part
        for frame in frames:
            mask = os.urandom(4)
            masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(frame))
            sent.sendall(bytes([0x81, 0x80 | 126]) + struct.pack(">H", len(frame)) + mask + masked)
        text = head.partition(b"\r\n\r\n")[2]
        length = re.search(rb"(?i)content-length: (\d+)", head)
        while length and len(text) < int(length[1]) and (part := sent.recv(2**16)):
            text += part
        while frames and b"\x88" not in text and (part := sent.recv(2**16)):  # until it says that it hangs up
            text += part
        return int(head.split()[1]) if head else 0, text.decode(errors="replace")


@pytest.mark.parametrize(
    "query",
    ["seed=%C2%B2", "seed=²", "page=%C2%B2&tab=3", "row=%D9%A3", f"row={'9' * 5000}&tab=3", "step=1e400", "tab=99",
     "step=nan&threshold=inf~nan", "seed=-1", "theme=%3Cscript%3E", "run=%00%ff", "set.tau=%7B%7B7*7%7D%7D", "=&&=;"],
)  # fmt: skip
def test_an_address_that_means_nothing_opens_the_page(studio, query):
    address, told = studio
    status, text = answer(address, f"/?{query}")
    assert (status, "<title>fastltssl studio</title>" in text) == (200, True)
    assert "Traceback" not in told()
    assert "Error" not in told()


@pytest.mark.parametrize(
    ("path", "headers", "host", "status"),
    [
        ("/", (), "evil.example", 403),
        ("/", (), "127.0.0.1", 403),
        ("/", ("Origin: http://evil.example",), None, 403),
        ("/ws", (f"{SOCKET}bokeh, junk", "Origin: http://evil.example"), None, 403),
        ("/ws", (f"{SOCKET}bokeh, junk",), None, 400),
        ("/ws", (f"{SOCKET}bokeh, a.b",), None, 400),
        ("/ws", (f"{SOCKET}bokeh, ÿþ",), None, 400),
        ("/ws", (f"{SOCKET}bokeh, {'A' * 5000}.{'A' * 43}",), None, 400),
        (
            "/ws",
            (f"{SOCKET}bokeh, {base64.b64encode(json.dumps({'session_id': 'x'}).encode()).decode()}.x",),
            None,
            400,
        ),
        ("/ws", (f"{SOCKET}junk",), None, 400),
        ("/ws", (), None, 400),
        ("/?bokeh-token=junk", (), None, 400),
        ("/?bokeh-session-id=junk", (), None, 403),
        (f"/?{'x' * 9000}", (), None, 414),
        (f"/{'../' * 9}etc/passwd", (), None, 404),
        (f"/static/{'../' * 9}etc/passwd", (), None, 403),
        (f"/static/{'%2e%2e/' * 9}etc/passwd", (), None, 403),
        (f"/static/extensions/panel/{'..%2f' * 9}etc/passwd", (), None, 403),
        ("/static//etc/passwd", (), None, 403),
        ("/nothing", (), None, 404),
        ("/components/a/b", (), None, 400),
    ],
)
def test_what_is_not_for_this_studio_gets_a_plain_answer(studio, path, headers, host, status):
    address, told = studio
    found, text = answer(address, path, *headers, host=host)
    assert found == status
    assert "root:" not in text
    assert "Traceback" not in text + told()


@pytest.mark.parametrize("frame", [b"junk", b"{}", b"[]", b"\xff", b'{"msgid": "1", "msgtype": "NOPE"}'])
def test_junk_on_an_open_websocket_ends_it_and_is_told_in_a_line(studio, frame):
    address, told = studio
    token = re.search(r'"token":"([^"]+)"', answer(address)[1])[1]
    status, text = answer(address, "/ws", f"{SOCKET}bokeh, {token}", frames=[frame] * 3)  # a message has three parts
    assert status == 101
    assert "Traceback" not in text + told()
    assert all(line.startswith(("studio: ", "stop it with")) for line in told().strip().splitlines())
    assert answer(address)[0] == 200
