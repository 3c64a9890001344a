"""docs/notebook.md, line by line, and the names it uses."""

import re
from pathlib import Path

import toy_cache

import fastltssl

ROOT = Path(__file__).parent.parent


def test_every_line_of_the_notebook_page_runs(tmp_path, monkeypatch, capsys):
    toy_cache.write(tmp_path / "world_tiny.zarr", per_class=180)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLTSSL_CACHE", str(tmp_path))
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) < 75
    spoken: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(block, spoken)
    assert spoken["fitted"].history["accuracy"].shape == (3, 10)
    assert spoken["classifier"].score(spoken["test_x"], spoken["test_y"]) > 0.7
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_names_of_the_page_are_names_of_the_package():
    for name in ("Classifier", "Split", "Protocol", "open_cache"):
        assert name in fastltssl.__all__
        assert getattr(fastltssl, name).__name__ == name
