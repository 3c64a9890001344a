"""Near-duplicates between groups are found, counted and listed."""

import csv

import numpy as np
import pytest
from PIL import Image

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.reader import read_features
from fastltssl.encoder import near_duplicates as duplicates
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.errors import CacheError, WriteError
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.images.world.world import STYLES, render
from fastltssl.progress import drain


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """A folder set whose test image 3 is training image 7, and whose test image 5 is unlabelled image 2."""
    top = tmp_path_factory.mktemp("leaky")
    index = np.arange(24)
    pixels = render(3, index, index % 2, STYLES["mild"])
    for row in range(12):
        folder = top / "set" / "train" / ("anchor", "apple")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / f"{row:02d}.png")
    for row, source in zip(range(8), (12, 13, 14, 7, 16, 22, 18, 19), strict=True):
        folder = top / "set" / "test" / ("anchor", "apple")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[source]).save(folder / f"{row:02d}.png")
    (top / "set" / "unlabeled").mkdir()
    for row in range(4):
        Image.fromarray(pixels[20 + row]).save(top / "set" / "unlabeled" / f"{row}.png")
    work = extract(
        open_source(f"folder:{top / 'set'}"), load_encoder("tiny", None), parse_views("center,weak:1"),
        top / "leaky.zarr", templates="world",
    )  # fmt: skip
    drain(work)
    return open_cache(top / "leaky.zarr")


def test_the_same_image_in_two_groups_is_found_and_written(leaky, tmp_path):
    pairs = duplicates.near_duplicates(leaky, 0.99999)
    assert sorted(pair[:3] for pair in pairs) == [
        ("test/apple/03.png", "train", "train/apple/07.png"), ("test/apple/05.png", "unlabeled", "unlabeled/2.png"),
    ]  # fmt: skip
    assert all(pair.cosine > 0.99999 for pair in pairs)
    duplicates.write_pairs(pairs, tmp_path / "pairs.csv")
    rows = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert {row["test"] for row in rows} == {"test/apple/03.png", "test/apple/05.png"}
    duplicates.write_pairs(pairs[:1], tmp_path / "pairs.csv")
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 2
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to(tmp_path / "mine.csv")
    for name in ("mine.csv", "link.csv"):
        with pytest.raises(CacheError, match=f"{name} is there and is no list of near-duplicates; it is left alone"):
            duplicates.write_pairs(pairs, tmp_path / name)
    assert (tmp_path / "mine.csv").read_text() == "mine"
    with pytest.raises(WriteError, match=r"nowhere/pairs.csv cannot be written: No such"):
        duplicates.write_pairs(pairs, tmp_path / "nowhere" / "pairs.csv")


def test_the_nearest_are_those_of_a_plain_product(leaky):
    pairs = duplicates.near_duplicates(leaky, -1.0)
    assert len(pairs) == 16
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)
    unit = {}
    for name, group in leaky.groups.items():
        x = read_features(group)[:, 0].astype(np.float64)
        unit[name] = x / np.linalg.norm(x, axis=1, keepdims=True)
    for pair in pairs:
        cosines = unit[pair.group] @ unit["test"][leaky.groups["test"].ids.index(pair.test)]
        assert pair.cosine == pytest.approx(cosines.max(), abs=1e-5)


def test_a_search_that_would_take_too_long_is_left_out_and_no_test_group_has_no_pairs(leaky, monkeypatch):
    groups = {"train": leaky.groups["train"]}
    assert duplicates.near_duplicates(leaky._replace(groups=groups), 0.0) == []
    monkeypatch.setattr(duplicates, "MOST_PRODUCTS", 10.0)
    assert duplicates.near_duplicates(leaky, 0.9) is None
