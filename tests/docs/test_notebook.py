"""docs/notebook.md, line by line, and the names it uses."""

import re
from pathlib import Path

import numpy as np
import pytest
import toy_cache

import fastltssl
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.images import open_source
from fastltssl.images.source import Subset
from fastltssl.images.views import parse_views
from fastltssl.progress import drain

ROOT = Path(__file__).parents[2]


def with_a_pool_of_its_own(path):
    """A cache of the world with a group "unlabeled", as the whole world has one."""
    source = open_source("world:mild:190:12")
    images = source.groups["train"]
    rank = np.zeros(len(images.labels), dtype=int)
    for label in np.unique(images.labels):
        rank[images.labels == label] = np.arange((images.labels == label).sum())

    def part(rows):
        return Subset(tuple(images.ids[row] for row in rows), images.labels[rows], images, rows)

    parts = {"train": part(np.flatnonzero(rank < 30)), "unlabeled": part(np.flatnonzero(rank >= 30))}
    views = parse_views("center,weak:1,strong:1")
    drain(extract(source._replace(groups=source.groups | parts), load_encoder("tiny", None), views, path,
                  templates="world"))  # fmt: skip


@pytest.mark.parametrize("kind", ["imported", "world"])
def test_every_line_of_the_notebook_page_runs(kind, tmp_path, monkeypatch, capsys):
    if kind == "world":
        with_a_pool_of_its_own(tmp_path / "world_tiny.zarr")
    else:
        toy_cache.write(tmp_path / "world_tiny.zarr", per_class=180)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLTSSL_CACHE", str(tmp_path))
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) < 75
    spoken: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(block, spoken)
    assert spoken["fitted"].history["accuracy"].shape == (3, 10)
    assert spoken["classifier"].score(spoken["test_x"], spoken["test_y"]) > (0.7 if kind == "imported" else 0.5)
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_names_of_the_page_are_names_of_the_package():
    for name in ("Classifier", "Split", "Protocol", "open_cache"):
        assert name in fastltssl.__all__
        assert getattr(fastltssl, name).__name__ == name
