"""The studio in a headless browser: slider to repainted plots, a refit in the page, and page load.

    python benchmarks/studio.py
    python benchmarks/studio.py --case 1280000x127x32

A slider is moved from within the page; its time ends two animation frames after the last plot has its new numbers, so
it holds both ways over the socket, the numbers and the drawing. Features are random around class centers; the run is a
probe with 20 labels a class, all other rows are its pool. The refit trains a probe on every row, 500 steps.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastltssl.cache.imports import import_features
from fastltssl.cache.splits import Protocol
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import open_rows, training
from fastltssl.show.terminal import grid, show

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
MOVES = {  # slider -> values it is moved to in turn
    "Threshold (confidence)": (0.3, 0.6), "Temperature": (1.5, 0.8), "Logit adjustment tau": (0.5, 1.0),
    "Label-bias strength": (0.5, 1.0), "Fusion weight eta (1: the run alone)": (0.9, 0.7),
}  # fmt: skip
MOVE = """([title, value]) => new Promise(done => {
  const models = [...Bokeh.documents[0]._all_models.values()];
  const plot = models.find(each => each.name === 'confusion');
  const began = performance.now();
  const seen = () => { plot.properties.data.change.disconnect(seen);
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began))); };
  plot.properties.data.change.connect(seen);
  models.find(each => each.title === title && 'value' in each).value = value; })"""


def run(folder: Path, rows: int, n_classes: int, width: int, protocol: Protocol) -> Path:
    """A probe on random features, with 2,000 test rows."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((n_classes, width), np.float32)
    labels, test = np.arange(rows) % n_classes, np.arange(2000) % n_classes
    features = rng.standard_normal((rows, width), np.float32) * 1.5
    features += centers[labels]
    found = centers[test] + 1.5 * rng.standard_normal((len(test), width), np.float32)
    cache = folder / "cache.zarr"
    import_features(cache, features=features, labels=labels, text=centers, test_features=found, test_labels=test,
                    logit_scale=20.0, classes=[f"class {k}" for k in range(n_classes)])  # fmt: skip
    del features
    drain(training(Config("probe", str(cache), protocol), *open_rows(str(cache), "cpu"), folder / "probe"))
    return folder / "probe"


def served(folder: Path) -> tuple[Any, str]:
    """A studio as the command starts it, and its address."""
    line = [sys.executable, "-m", "fastltssl", "studio", str(folder)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    return process, found.group(0)


def moved(browser: Any, address: str, repeats: int) -> list[float]:
    """Milliseconds of each move of a slider, the first of each slider left out."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address + "?tab=1", timeout=180_000)
    page.wait_for_selector(".bk-Figure", timeout=180_000)
    page.wait_for_function("Bokeh.documents[0].is_idle", timeout=180_000)
    found = []
    for title, values in MOVES.items():
        each = [page.evaluate(MOVE, [title, values[turn % 2]]) for turn in range(repeats + 1)]
        found += each[1:]
    page.close()
    return found


def loaded(browser: Any, address: str, repeats: int) -> list[float]:
    """Seconds from the request to the first plot, the first visit left out."""
    found = []
    for _ in range(repeats + 1):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(".bk-Figure")
        found.append(time.perf_counter() - began)
        page.close()
    return found[1:]


def refitted(browser: Any, address: str, repeats: int) -> list[float]:
    """Seconds from the click to the new run in the page, the first left out."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address + "?tab=2")
    page.get_by_role("button", name="Train again").wait_for()
    found = []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        page.get_by_role("button", name="Train again").click()
        page.get_by_text(f"refit {turn + 1} is trained").wait_for(timeout=120_000)
        found.append(time.perf_counter() - began)
    page.close()
    return found[1:]


@click.command()
@click.option("--case", default="100000x100x64", show_default=True, help="ROWSxCLASSESxWIDTH of the sliders' pool.")
@click.option("--refit", default="50000x100x512", show_default=True, help="The same of the refit; none leaves it out.")
@click.option("--repeats", default=8, show_default=True, help="Moves of each slider; loads and refits are half of it.")
@click.option("--chromium", default=shutil.which("chromium"), help="The browser (default: chromium on the PATH).")
def main(case: str, refit: str, repeats: int, chromium: str) -> None:
    """Print medians and 95th percentiles."""
    from playwright.sync_api import sync_playwright

    lines = []
    with sync_playwright() as started, tempfile.TemporaryDirectory() as top:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        rows, n_classes, width = map(int, case.split("x"))
        folder = run(Path(top) / "sliders", rows, n_classes, width, Protocol(n1=20, m1="all"))
        process, address = served(folder)
        lines += [line(f"slider to repainted plots, {rows:,} x {n_classes}", moved(browser, address, repeats), "ms")]
        lines += [line("page load, overview", loaded(browser, address, repeats // 2), "s")]
        process.terminate()
        if refit != "none":
            rows, n_classes, width = map(int, refit.split("x"))
            process, address = served(run(Path(top) / "refit", rows, n_classes, width, Protocol()))
            lines += [line(f"refit of a probe, {rows:,} x {width}", refitted(browser, address, repeats // 2), "s")]
            process.terminate()
        browser.close()
    show(grid(["what", "median", "95th percentile", "times"], lines))


def line(what: str, values: list[float], unit: str) -> list[str]:
    digits = 0 if unit == "ms" else 2
    high = float(np.percentile(values, 95))
    return [what, f"{statistics.median(values):.{digits}f} {unit}", f"{high:.{digits}f} {unit}", str(len(values))]


if __name__ == "__main__":
    main()
