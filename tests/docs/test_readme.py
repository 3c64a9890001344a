"""README.md and the pages of docs/: short, true links, and code that runs as it stands."""

import re
from pathlib import Path

import pytest
from shell import invoke

import fastltssl

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_tree_names_every_folder_of_the_package():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Files")[2]
    folders = {path.parent.name for path in (ROOT / "fastltssl").glob("*/*.py")} - {"_moved"}
    assert not [name for name in folders if f"  {name}/" not in tree]


@pytest.mark.parametrize("page", ["README.md", "docs/method.md"])
def test_the_method_of_the_page_trains_sweeps_and_shows_its_knobs(page, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = next(block for block in blocks(ROOT / page) if "class Method" in block)
    assert page != "README.md" or len(source.splitlines()) <= 26
    Path("mine.py").write_text(source)
    assert "power" in invoke("methods", "./mine.py").stdout
    split = ["--cache", world.path, "--n1", 10, "--m1", 20, "--gamma-l", 5, "--steps", 30]
    invoke("train", "./mine.py", *split, "--seeds", "0-1", "--out", "run")
    invoke("sweep", "./mine.py", *split, "--val", 3, "--trials", 4, "--out", "sweep")
    invoke("report", "run", "--out", "page.html")
    has_prior = "prior_u" in source
    assert (fastltssl.read_run(Path("run")).recorded.prior_u is not None) == has_prior


def test_the_python_of_the_readme_runs(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = next(block for block in blocks(ROOT / "README.md") if "open_cache" in block)
    assert len(source.splitlines()) <= 10
    assert source.count('"seeds"') == 1
    source = source.replace("cache/demo.zarr", str(world.path)).replace('"seeds"', '"steps": 20, "seeds"')
    exec(compile(source, "README.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["probe", "ulfine"]
