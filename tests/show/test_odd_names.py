"""Names of classes, images, runs and files that look like markup, scripts, formulas or commands: all shown as text."""

import csv
import json
import sys
from html.parser import HTMLParser

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from shell import invoke
from visitor import Visit, launched, served_in

from fastltssl.__main__ import main
from fastltssl.analysis.history import read_insight
from fastltssl.errors import plain
from fastltssl.show.names import names_of, short_name
from fastltssl.show.pictures import drawing, save
from fastltssl.show.study_figures import bias_figure
from fastltssl.show.tables import Entry, Sheet, latex, markdown

NAMES = (
    "[b]<script>alert(1)<b>", '"><img src=x onerror=alert(2)>', "{{7*7}} $x_1^2$ \\frac{ $$y$$",
    "\N{RIGHT-TO-LEFT OVERRIDE}reve \x1b[31m\x07", "&amp; [link=x]z[link] `|* %s", "漢字 \U0001f600",
)  # fmt: skip
FOLDERS = ("r<img src=x onerror=alert(3)>[red]", "q\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}e $y$ {{7*7}}")


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A cache of images in folders of odd names, two runs in odd folders, and their report."""
    top, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    for name in NAMES:
        (top / "images" / name).mkdir(parents=True)
        for number in range(14):
            pixels = rng.integers(0, 255, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(top / "images" / name / f"{name[:20]}{number}.png")
    cache = top / "[b]<i>.zarr"
    invoke("extract", "--model", "tiny", "--dataset", f"folder:{top / 'images'}", "--views", "center,weak:1,strong:1",
           "--out", cache, "--duplicates", 1)  # fmt: skip
    for folder in FOLDERS:
        invoke("train", "fixmatch", "--cache", cache, "--n1", 4, "--m1", 5, "--test-per-class", 3, "--gamma-l", 2,
               "--steps", 4, "--evals", 2, "--set", "threshold=0.2", "--out", top / folder)  # fmt: skip
    invoke("report", *(top / folder for folder in FOLDERS), "--out", top / "report.html")
    return top


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_report_holds_names_as_text_alone(top):
    page = (top / "report.html").read_text(encoding="utf-8")
    found = Elements(page)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "i", "iframe", "object", "base"}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert page == plain(page)  # no character steers what is shown
    assert sum(tag == "b" for tag, _ in found.tags) == 1  # the page's own: Contents
    for text in (*(short_name(name.replace("_", " ")) for name in NAMES), *map(plain, FOLDERS)):
        assert text in found.text


def test_a_report_is_opened_in_a_browser_as_text(top):
    with launched() as browser:
        page, told = browser.new_page(), []
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: told.append(message.text))
        page.on(
            "request", lambda asked: told.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
        )
        page.goto((top / "report.html").as_uri())
        text = page.evaluate("document.body.textContent")
        assert page.locator("img, script").count() == 0
    assert told == []
    assert short_name(NAMES[1]) in text
    assert plain(FOLDERS[1]) in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_studio_shows_names_as_text_on_every_tab(top):
    odd = (
        "() => { const odd = []; const walk = node => { if (node.shadowRoot) walk(node.shadowRoot); "
        "for (const child of node.children ?? []) { const own = child.getAttributeNames(); "
        "if (own.includes('onerror') || /^MJX/.test(child.tagName) || child.textContent === 'alert(1)') "
        "odd.push(child.outerHTML); walk(child) } }; walk(document.body); return odd }"
    )
    with launched() as browser, served_in(top, *FOLDERS) as address:
        sources = (f"bacc/{_names(top)[0]}", "counts", None, "gallery", "map")  # by tab
        for tab, source in enumerate(sources):
            visit, dialogs = Visit(browser, address, f"?tab={tab}"), []
            visit.page.on("dialog", lambda dialog, dialogs=dialogs: (dialogs.append(dialog.message), dialog.dismiss()))
            if source is None:
                visit.page.get_by_role("button", name="Train again").wait_for()
            else:
                visit.columns(source)
            visit.page.wait_for_timeout(500)  # a picture that cannot be loaded takes a moment to say so
            assert (visit.page.evaluate(odd), dialogs) == ([], [])
            text = visit.text()
            assert plain(text) == text
            assert tab or plain(FOLDERS[0]) in text
            visit.close()


def _names(top):
    folders = [top / folder for folder in FOLDERS]
    return names_of([read_insight(folder).record for folder in folders], folders)


def test_a_picture_has_no_formulas_and_draws_what_its_font_lacks_as_boxes(tmp_path):
    rows = [
        {"class": name, "labelled": 3, "log_bias": 0.1, "error": 0.1, "known_log_prior": None}
        for name in (*NAMES, "$\\nothing{$", "a" * 900, "$$", "\udcff", "x\ny")
    ]
    width = matplotlib.image.imread(bias_figure(rows, tmp_path / "bias.png")).shape[1]
    assert width < 1500
    with drawing():
        figure = matplotlib.figure.Figure()
        axes = figure.add_subplot()
        axes.set_title("$x_1^2$ \x1b[31m \udcff")
        axes.set_xticks([0], [short_name("$\\frac{1}{2}$")])
        save(figure, tmp_path / "text.svg")
        assert axes.get_title() == "$x_1^2$ \\x1b[31m \\udcff"
        assert not axes.title.get_parse_math()


def test_tables_for_markdown_and_latex_hold_names_as_text():
    cells = tuple(
        Entry(text) for text in ("<b>[x](http://e) $a_1$ &lt; ~~no~~ _so_ a_b|c", "\x1b\N{RIGHT-TO-LEFT OVERRIDE}")
    )
    sheet = Sheet(("$x$", "[b]"), (cells,))
    row = markdown(sheet).splitlines()[2]
    assert row == r"| \<b>\[x\](http://e) \$a_1\$ \&lt; \~\~no\~\~ \_so\_ a_b\|c | \\x1b\\u202e |"
    assert r"\textbackslash{}x1b\textbackslash{}u202e" in latex(sheet)


@pytest.fixture
def typed(top, monkeypatch, capsys):
    """A command as typed in the folder: its exit code, and what it writes to both outputs."""

    def run(*arguments):
        monkeypatch.chdir(top)
        monkeypatch.setattr(sys, "argv", ["fastltssl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told, error = capsys.readouterr()
        return ended.value.code, told, error

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", *FOLDERS, "none\x1b[31m", "--csv", "[b]$x.csv"),
        ("compare", "none\x1b[31m\udcff"),
        ("cache", "info", "[b]<i>.zarr"),
        ("bias", "--cache", "[b]<i>.zarr", "--n1", "4", "--test-per-class", "3", "--out", "\x1b[1mbias"),
        ("train", "[/b]\x1b[31m", "--cache", "[b]<i>.zarr"),
        ("train", "probe", "--cache", "no\x1b[31m[/b]\udcff"),
        ("train", "probe", "--cache", "[b]<i>.zarr", "--set", "\x1b[31m[red]=1"),
        ("train", "probe", "--cache", "[b]<i>.zarr", "--config", "\x1b[31m"),
        ("methods", "\x1b[31m[link=x]"),
        ("\x1b[31m",),
        ("world", "sheet", "--style", "\x1b[31m"),
        ("report", "\udcff\x1b[31m"),
    ],
)
def test_nothing_on_the_terminal_steers_it(typed, arguments):
    code, told, error = typed(*arguments)
    assert plain(told + error) == told + error
    assert code == 0 or error


def test_a_grid_and_its_files_hold_names_as_text(top, typed):
    protocols = [{"name": "[red]\x1b[31m $x_1$ \\frac", "gamma_l": 1}, {"name": "[/b]", "gamma_l": 2}]
    config = {"cache": "[b]<i>.zarr", "n1": 4, "test_per_class": 3, "steps": 2, "evals": 1, "protocols": protocols}
    (top / "[g]$x_1.yaml").write_text(json.dumps(config))
    line = ("compare", "--protocol-grid", "[g]$x_1.yaml", "--methods", "probe", "--seeds", "1", "--out", "grid[b]")
    code, told, error = typed(*line, "--csv", "g.csv", "--markdown", "g.md", "--latex", "g.tex")
    assert (code, plain(told + error)) == (0, told + error)
    assert "[red]" in told
    assert "[/b]" in told
    rows = list(csv.DictReader((top / "g.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0]["column"] == protocols[0]["name"]  # data stays as it is
    assert "\x1b" not in (top / "g.md").read_text() + (top / "g.tex").read_text()
