"""A visitor of the studio in a real browser, and the studio as the command serves it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from urllib.parse import urlparse

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
MODELS = "[...Bokeh.documents[0]._all_models.values()]"


@contextmanager
def served_and_told(folder, *runs):
    """The address of a studio in a process of its own, as the command starts it, and a function: what it has told."""
    line = [sys.executable, "-m", "fastltssl", "studio", *runs, "--threads", "1"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(line, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

        def told():
            return os.pread(log.fileno(), 2**24, 0).decode()

        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", told())):
                assert process.poll() is None, told()
                time.sleep(0.05)
            yield found.group(0), told
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def served_in(folder, *runs):
    """The address of a studio in a process of its own."""
    with served_and_told(folder, *runs) as (found, _):
        yield found


@contextmanager
def launched():
    """A browser without a window; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: fastltssl[dev]")
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=60_000)
            opened.new_page().close()
        except playwright.Error as error:
            pytest.skip(f"{CHROMIUM} does not start here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


class Visit:
    """One visitor: a page that keeps its errors and the hosts it asked."""

    def __init__(self, browser, address, query=""):
        self.errors, self.hosts = [], set()
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self.hosts.add(urlparse(asked.url).hostname))
        self.page.goto(address + query)
        self.page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")

    def columns(self, name):
        """A source of the page, once it is there."""
        found = f"{MODELS}.find(each => each.name === {name!r})"
        self.page.wait_for_function(f"() => {found}")
        text = f"Object.fromEntries(Object.entries({found}.data).map(([k, v]) => [k, Array.from(v)]))"
        return self.page.evaluate(text)

    def until(self, name, column, wanted):
        """Wait until a column of a source is what it should be."""
        found = f"{MODELS}.find(each => each.name === {name!r})"
        wanted = [float(value) for value in wanted]
        self.page.wait_for_function(
            f"wanted => {{ const one = {found}; if (!one) return false; const own = Array.from(one.data[{column!r}]);"
            "return own.length === wanted.length && own.every((v, i) => Math.abs(v - wanted[i]) < 1e-4 * (1 + "
            "Math.abs(wanted[i])) || (Number.isNaN(v) && wanted[i] === null)); }",
            arg=[None if value != value else value for value in wanted],
            timeout=30000,
        )

    def set(self, title, value):
        """Move a widget as the page does when it is dragged."""
        found = f"{MODELS}.find(each => each.title === {title!r} && 'value' in each)"
        self.page.evaluate(f"value => {{ {found}.value = value }}", value)

    def asked(self, name, wanted):
        """Wait until the address says so."""
        there = "([name, wanted]) => new URL(location).searchParams.get(name) === wanted"
        self.page.wait_for_function(there, arg=[name, wanted], timeout=30000)

    def text(self):
        return self.page.evaluate("(() => { const out = []; const walk = n => { if (n.shadowRoot) walk(n.shadowRoot);"
                                  "for (const c of n.childNodes) c.nodeType === 3 ? out.push(c.data) : walk(c) };"
                                  "walk(document.body); return out.join(' ') })()")  # fmt: skip

    def close(self):
        """No error in the console, and nobody was asked but the server."""
        self.page.close()
        assert self.errors == []
        assert self.hosts <= {"127.0.0.1", None, ""}
