import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fastltssl.cache.catalogue import info, open_cache, verify
from fastltssl.cache.manifest import LOCK, MANIFEST
from fastltssl.cache.reader import read_features
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract, provenance
from fastltssl.errors import BrokenImage, CacheError, CacheMismatch, EncoderError
from fastltssl.images import open_source
from fastltssl.images.prompts import prompts
from fastltssl.images.views import image_key, make_view, parse_views
from fastltssl.progress import Note, drain

DATASET, VIEWS = "world:mild:3:2", "center,weak:1,strong:2"  # 120 images x 4 views, 80 x 1: two blocks each
CHILD = """
import sys, torch
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.weights import EncoderError
from fastltssl.encoder.extract import extract
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
torch.set_num_threads(1)
dataset, views, out = sys.argv[1:]
source, encoder = open_source(dataset), load_encoder("tiny", None)
print("loaded", flush=True)
for _ in extract(source, encoder, parse_views(views), out, templates="world", resume=True):
    pass
"""


@pytest.fixture(scope="module")
def source():
    return open_source(DATASET)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("tiny", None)


@pytest.fixture(scope="module")
def unbroken(source, encoder, tmp_path_factory):
    """A cache extracted in one go, decoding inline, with its progress records and summary."""
    path = tmp_path_factory.mktemp("unbroken") / "a.zarr"
    return path, *run(source, encoder, path, workers=0)


def run(source, encoder, path, views=VIEWS, **options):
    """The progress records and the summary."""
    work, records = extract(source, encoder, parse_views(views), path, templates="world", **options), []
    while True:
        try:
            records.append(next(work))
        except StopIteration as end:
            return records, end.value


def tree(path):
    """Every file below a folder, by name, as bytes."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_bytes_are_the_same_for_any_number_of_workers_and_threads(source, encoder, unbroken, tmp_path):
    path, _, _ = unbroken
    run(source, encoder, tmp_path / "two.zarr", workers=2)
    assert tree(tmp_path / "two.zarr") == tree(path)
    torch.set_num_threads(3)
    try:
        run(source, encoder, tmp_path / "three.zarr", workers=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert tree(tmp_path / "three.zarr") == tree(path)


def test_every_feature_is_that_of_its_row_and_view(source, encoder, unbroken):
    cache = open_cache(unbroken[0])
    train, test = cache.groups["train"], cache.groups["test"]
    assert train.views == ("center", "weak0", "strong0", "strong1")
    assert (train.shape, test.shape) == ((120, 4, 128), (80, 1, 128))
    assert train.ids == source.groups["train"].ids
    np.testing.assert_array_equal(test.labels, source.groups["test"].labels)
    rows = [0, 63, 64, 119]  # both ends of both slabs
    for name, views in (("train", parse_views(VIEWS)), ("test", parse_views("center"))):
        images, group = source.groups[name], cache.groups[name]
        wanted_rows = [row for row in rows if row < len(images.ids)]
        pixels = np.stack([encoder.canvas(image) for image in images.read(wanted_rows)])
        keys = np.array([image_key(images.ids[row]) for row in wanted_rows], np.uint64)
        stored = read_features(group)[wanted_rows].astype(np.float32)
        for place, view in enumerate(views):
            wanted = encoder.encode(make_view(torch.from_numpy(pixels) / 255, view, keys, 0)).numpy()
            np.testing.assert_allclose(stored[:, place], wanted, rtol=2e-3, atol=2e-2)


def test_the_cache_holds_the_text_the_scale_and_all_that_the_features_depend_on(source, encoder, unbroken):
    cache = open_cache(unbroken[0])
    np.testing.assert_allclose(cache.text, encoder.encode_text(prompts(source.classes, "world")), atol=1e-6)
    assert cache.templates == ("a photo of a {}", "a picture of a {}", "a sketch of a {}", "{}")
    assert cache.logit_scale == pytest.approx(encoder.logit_scale)
    np.testing.assert_array_equal(cache.projection, encoder.projection)
    stored = cache.attributes["provenance"]
    assert stored == json.loads(json.dumps(provenance(source, encoder, parse_views(VIEWS), "world", 0)))
    assert stored["views"]["weak0"] == "weak(flip=0.5,shift=0.0625)"
    assert stored["weights_sha256"] == encoder.provenance["weights_sha256"]
    assert stored["dataset"] == DATASET
    assert stored["dataset_fingerprint"] == source.fingerprint
    assert set(stored["versions"]) == {"torch", "torchvision", "open_clip_torch", "numpy", "pillow"}


def test_progress_counts_images_up_to_the_total(unbroken):
    path, records, summary = unbroken
    assert [(record.part, record.done, record.total) for record in records] == [
        ("train", 64, 200), ("train", 120, 200), ("test", 184, 200), ("test", 200, 200),
    ]  # fmt: skip
    assert all(0 <= record.waited_s <= record.elapsed_s for record in records)
    assert (summary.images, summary.views) == (200, 120 * 4 + 80)
    assert summary.path == path
    assert summary.bytes == sum(len(raw) for name, raw in tree(path).items() if "/features/c/" in name)
    assert 0 < summary.waiting < 1
    assert summary.views_per_s == pytest.approx(summary.images_per_s * 560 / 200)


def test_another_seed_changes_the_augmented_views_only(source, encoder, unbroken, tmp_path):
    run(source, encoder, tmp_path / "b.zarr", seed=1)
    first, second = (read_features(open_cache(path).groups["train"]) for path in (unbroken[0], tmp_path / "b.zarr"))
    is_equal = (first == second).all(axis=(0, 2))
    assert is_equal.tolist() == [True, False, False, False]


def test_stopped_between_two_slabs_it_resumes_to_the_same_bytes(source, encoder, unbroken, tmp_path):
    path = tmp_path / "c.zarr"
    work = extract(source, encoder, parse_views(VIEWS), path, templates="world")
    next(work)
    work.close()
    assert torch.get_num_threads() == 1
    assert LOCK not in tree(path)
    records, summary = run(source, encoder, path, resume=True)
    assert records[0].text == "resumed at 64 of 200 rows" == summary.notes[0]
    assert [record.total for record in records[1:]] == [136] * 3
    assert summary.images == 136
    assert tree(path) == tree(unbroken[0])


def test_resume_on_a_complete_cache_says_so_and_writes_nothing(source, encoder, unbroken):
    path, _, _ = unbroken
    before = tree(path)
    records, summary = run(source, encoder, path, resume=True)
    assert "complete already" in summary.notes[0]
    assert [record.text for record in records] == list(summary.notes)
    assert (summary.images, summary.views, summary.bytes) == (0, 0, 0)
    assert tree(path) == before


def test_without_resume_a_cache_that_is_there_is_refused(source, encoder, unbroken):
    with pytest.raises(CacheError, match="--resume"):
        run(source, encoder, unbroken[0])


def test_resume_with_other_views_names_what_differs(source, encoder, unbroken):
    with pytest.raises(CacheMismatch) as error:
        run(source, encoder, unbroken[0], views="center,weak:2,strong:1", resume=True)
    assert "views.train" in str(error.value)
    assert "provenance.views.weak1" in str(error.value)
    with pytest.raises(CacheMismatch, match=r"provenance\.seed is 0 there, 7 is asked"):
        run(source, encoder, unbroken[0], seed=7, resume=True)


def test_an_unreadable_image_ends_the_extraction_and_can_be_resumed(source, encoder, unbroken, tmp_path):
    path = tmp_path / "d.zarr"

    class Broken:
        ids, labels = source.groups["test"].ids, source.groups["test"].labels

        def read(self, rows):
            raise OSError("test/0001.png is truncated")

    broken = source._replace(groups=source.groups | {"test": Broken()})
    for workers in (0, 2):
        with pytest.raises(OSError, match="is truncated"):
            run(broken, encoder, path, workers=workers, resume=True)
        assert torch.get_num_threads() == 1
    run(source, encoder, path, resume=True)
    assert tree(path) == tree(unbroken[0])


def kill_while_it_writes(path, dataset, views, moment):
    """Start an extraction in a process of its own and kill it `moment` seconds after it began to write or later."""
    command = [sys.executable, "-c", CHILD, dataset, views, str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    child.stdout.readline()  # "loaded"
    time.sleep(moment)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=60)
    child.stdout.close()


def lines_of(path):
    return (path / MANIFEST).read_text().count("\n") if (path / MANIFEST).exists() else 0


def test_killed_at_a_random_moment_it_resumes_to_the_same_bytes(source, encoder, unbroken, tmp_path):
    path = tmp_path / "e.zarr"
    kill_while_it_writes(path, DATASET, VIEWS, random.uniform(0.1, 0.5))
    run(source, encoder, path, resume=True)
    assert tree(path) == tree(unbroken[0])


@pytest.mark.slow
def test_killed_ten_times_it_resumes_to_the_same_bytes(encoder, tmp_path):
    dataset, views = "world:mild:30:2", "center,weak:6,strong:6"
    source = open_source(dataset)
    run(source, encoder, tmp_path / "unbroken.zarr", views=views)
    path, seen = tmp_path / "f.zarr", set()
    for _ in range(10):
        kill_while_it_writes(path, dataset, views, random.uniform(0.0, 1.0))
        seen.add(lines_of(path))
    run(source, encoder, path, views=views, resume=True)
    assert len(seen) > 1, "every kill came before the first line or after the last"
    assert tree(path) == tree(tmp_path / "unbroken.zarr")


def test_a_low_precision_is_compared_with_fp32_first_and_refused_where_it_is_too_far(source, tmp_path):
    low = load_encoder("tiny", None, precision="bf16")
    records = list(extract(source, low, parse_views("center"), tmp_path / "a", templates="world"))
    notes = [record.text for record in records if isinstance(record, Note)]
    assert re.fullmatch(r"bf16 against fp32 on 64 images: mean cosine 0\.99\d+", notes[0])
    broken = dataclasses.replace(low, encode_parts=lambda canvas: low.encode_parts(canvas) + 3)
    with pytest.raises(EncoderError, match=r"mean cosine 0\.\d+, below 0\.999\. Use --precision fp32"):
        next(extract(source, broken, parse_views("center"), tmp_path / "b", templates="world"))
    assert not (tmp_path / "b").exists()


def test_broken_images_end_it_by_name_or_are_left_out_and_counted(encoder, tmp_path):
    for place in range(70):
        folder = tmp_path / "set" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (3 * place, 40, 9)).save(folder / f"{place:02d}.png")
    whole = run_to_end(open_source(f"folder:{tmp_path / 'set'}"), encoder, tmp_path / "whole.zarr")
    for name in ("cat/04.png", "dog/69.png"):
        (tmp_path / "set" / name).write_bytes(b"no picture")
    source = open_source(f"folder:{tmp_path / 'set'}")
    with pytest.raises(BrokenImage, match=r"image 'cat/04\.png' cannot be decoded .* --skip-broken"):
        run_to_end(source, encoder, tmp_path / "none.zarr")
    summary = run_to_end(source, encoder, tmp_path / "kept.zarr", skip_broken=True)
    assert (whole.broken, summary.broken) == ((), ("cat/04.png", "dog/69.png"))
    all_rows, kept = (open_cache(tmp_path / name).groups["train"] for name in ("whole.zarr", "kept.zarr"))
    there = [row for row, name in enumerate(all_rows.ids) if name not in summary.broken]
    assert kept.ids == tuple(all_rows.ids[row] for row in there)
    assert kept.labels.tolist() == all_rows.labels[there].tolist()
    assert (kept.shape, kept.broken) == ((68, 2, 128), (2, 69))
    np.testing.assert_array_equal(read_features(kept), read_features(all_rows)[there])
    assert info(tmp_path / "kept.zarr")["groups"]["train"]["broken"] == 2
    assert not verify(tmp_path / "kept.zarr")


def run_to_end(source, encoder, path, **options):
    return drain(extract(source, encoder, parse_views("center,weak:1"), path, templates="simple", **options))


def test_a_resumed_extraction_makes_damaged_chunks_again_and_only_those(source, encoder, unbroken, tmp_path):
    path = tmp_path / "hurt.zarr"
    shutil.copytree(unbroken[0], path)
    chunks = sorted(path.glob("train/features/c/*/*/0"))
    flipped = bytearray(chunks[1].read_bytes())
    flipped[77] ^= 4
    chunks[1].write_bytes(flipped)
    chunks[-1].unlink()
    assert len(verify(path)) == 2
    work, records = extract(source, encoder, parse_views(VIEWS), path, templates="world", resume=True), []
    records += work
    assert "2 damaged blocks are made again, first train rows 0 to 64" in records[0].text
    assert records[-1].total == records[-1].done == 120
    assert not verify(path)
    for file in unbroken[0].rglob("*"):
        assert file.is_dir() or file.read_bytes() == (path / file.relative_to(unbroken[0])).read_bytes()


def test_a_damaged_chunk_that_comes_out_otherwise_is_not_replaced(source, encoder, unbroken, tmp_path):
    path = tmp_path / "hurt.zarr"
    shutil.copytree(unbroken[0], path)
    next(path.glob("train/features/c/0/0/0")).unlink()
    other = dataclasses.replace(encoder, encode_parts=lambda canvas: encoder.encode_parts(canvas) * 1.01)
    with pytest.raises(CacheError, match="cannot be made again to the same bytes: another device"):
        drain(extract(source, other, parse_views(VIEWS), path, templates="world", resume=True))
