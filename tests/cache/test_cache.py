"""The feature cache on disk: round trips, kills, damage, locks, names, imports, and every message by its text."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c

from fastltssl.cache import catalogue as c
from fastltssl.cache import imports, manifest
from fastltssl.cache import layout as contents
from fastltssl.cache.emulated import emulated, parse_emulate
from fastltssl.cache.reader import read_features
from fastltssl.cache.writer import create
from fastltssl.errors import CacheDamaged, CacheError, CacheLocked, CacheMismatch

N, TEST, V, D, C, T, E = 150, 70, 3, 5, 4, 2, 6  # three blocks of train, two of test
VIEWS = ("center", "weak0", "strong0")
ROOT = Path(c.__file__).parents[2]


def arguments(**changes):
    rng = np.random.default_rng(0)
    groups = {
        "test": contents.GroupSpec(tuple(f"test/{i}" for i in range(TEST)), np.arange(TEST) % C, ("center",)),
        "train": contents.GroupSpec(tuple(f"train/ä {i}.png" for i in range(N)), np.arange(N) % (C + 1) - 1, VIEWS),
    }
    made = {
        "provenance": {"model": "ViT-X", "dataset": "world", "seed": 3, "views": {"weak0": "shift 1/8"}},
        "classes": ("cat", "dog", "emu", "fox"),
        "groups": groups,
        "width": D,
        "text": rng.standard_normal((C, T, E)).astype(np.float32),
        "templates": ("a {}", "the {}"),
        "projection": rng.standard_normal((D, E)).astype(np.float32),
        "ln_post": rng.standard_normal((2, D)).astype(np.float32),
        "logit_scale": 50.0,
        "logit_bias": -2.5,
    }
    return made | changes


def features(group):
    rows, views = (N, V) if group == "train" else (TEST, 1)
    return np.random.default_rng(len(group)).standard_normal((rows, views, D)).astype(np.float32)


def fill(writer, blocks=None):
    for block in writer.pending()[:blocks]:
        writer.commit(block, features(block.group)[block.start : block.stop])
    if not writer.pending():
        writer.close()


def make(path, blocks=None, resume=False, overwrite=False, **changes):
    with create(path, resume=resume, overwrite=overwrite, **arguments(**changes)) as writer:
        fill(writer, blocks)
    return writer


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    make(path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy.zarr"))


# ------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(
    ("n", "width", "rows"),
    [(150, 5, 64), (2047, 512, 64), (2048, 512, 128), (50_000, 512, 3072), (1_281_167, 768, 2688), (9999, 70_000, 64)],
)
def test_chunks_are_whole_slabs_of_about_4_mb_and_at_least_16_where_there_are_rows(n, width, rows):
    assert contents.chunk_rows(n, width) == rows


def test_what_was_stored_comes_back_and_zarr_reads_the_same(whole):
    opened, wanted, root = c.open_cache(whole), arguments(), zarr.open_group(whole, mode="r")
    assert opened.classes == wanted["classes"]
    assert opened.templates == wanted["templates"]
    assert (opened.logit_scale, opened.logit_bias) == (50.0, -2.5)
    assert opened.attributes["provenance"] == wanted["provenance"]
    assert list(opened.groups) == ["train", "test"]
    for name in ("text", "projection", "ln_post"):
        np.testing.assert_array_equal(getattr(opened, name), wanted[name])
        np.testing.assert_array_equal(root[name][:], wanted[name])
    for name, group in opened.groups.items():
        spec, half = wanted["groups"][name], features(name).astype(np.float16)
        assert group.ids == spec.ids
        assert (group.views, group.shape) == (spec.views, half.shape)
        assert bytes(root[f"{name}/ids"][:]).decode().split("\n") == list(spec.ids)
        np.testing.assert_array_equal(group.labels, spec.labels)
        np.testing.assert_array_equal(root[f"{name}/labels"][:], spec.labels)
        np.testing.assert_array_equal(read_features(group), half)
        np.testing.assert_array_equal(root[f"{name}/features"][:], half)
        assert root[f"{name}/features"].chunks == (64, 1, D)
        assert not root[f"{name}/features"].compressors
    assert not c.verify(whole)


def test_views_are_read_by_name_in_the_order_asked(whole):
    train = c.open_cache(whole).groups["train"]
    read = read_features(train, ["strong0", "center"])
    np.testing.assert_array_equal(read, features("train")[:, [2, 0]].astype(np.float16))
    with pytest.raises(CacheError, match=r"has no view 'weak7', only center, weak0, strong0"):
        read_features(train, ["weak7"])


def test_every_manifest_line_ends_with_the_crc32c_of_the_bytes_before_it(whole):
    lines = (whole / manifest.MANIFEST).read_bytes().splitlines()
    assert len(lines) == 1 + 5 + 1
    for line in lines:
        body, ending = line[:-26], line[-26:]
        assert ending == b',"line_crc32c":"%08x"}' % crc32c(body)
        assert json.loads(line)["line_crc32c"]


def test_the_reader_in_the_specification_reads_the_same(copy, monkeypatch):
    specification = (ROOT / "cache" / "README.md").read_text()
    monkeypatch.chdir(copy.rename(copy.with_name("NAME.zarr")).parent)
    names: dict = {}
    exec(specification.split("```python\n")[1].split("```")[0], names)
    np.testing.assert_array_equal(names["features"], features("train").astype(np.float16))


def test_labels_that_are_all_zero_are_on_disk_too(tmp_path):
    spec = contents.GroupSpec(("a", "b"), np.zeros(2, int), ("center",))
    with create(tmp_path / "z.zarr", provenance={}, classes=["x"], groups={"train": spec}, width=3) as writer:
        writer.commit(writer.pending()[0], np.ones((2, 1, 3), np.float32))
        writer.close()
    opened = c.open_cache(tmp_path / "z.zarr")
    assert (opened.text, opened.projection, opened.ln_post, opened.templates) == (None, None, None, ())
    assert opened.groups["train"].labels.tolist() == [0, 0]


def test_fingerprints_are_equal_for_equal_caches_and_tell_others_apart(whole, tmp_path):
    make(tmp_path / "same.zarr")
    make(tmp_path / "seed.zarr", provenance={"model": "ViT-X", "seed": 4})
    prints = [c.fingerprint(c.open_cache(path)) for path in (whole, tmp_path / "same.zarr", tmp_path / "seed.zarr")]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (65520.0, "65520"), (-1e6, "-1e+06")])
def test_features_that_float16_cannot_hold_are_refused_by_row_before_anything_is_written(tmp_path, value, shown):
    with create(tmp_path / "f.zarr", **arguments()) as writer:
        fill(writer, 1)
        block, x = writer.pending()[0], features("train")[64:128]
        x[[7, 9], 1, 2] = value
        message = (
            rf"train rows 64 to 128: the features of rows 71, 73 are not finite in float16 \(first: {shown}".replace(
                "+", r"\+"
            )
        )
        with pytest.raises(CacheError, match=message):
            writer.commit(block, x)
        assert writer.pending()[0] == block
        x[[7, 9], 1, 2] = 65504.0
        assert writer.commit(block, x) == V * 64 * D * 2


def test_blocks_come_in_order_and_in_their_shape(tmp_path):
    with create(tmp_path / "o.zarr", **arguments()) as writer:
        first, second, *_ = writer.pending()
        with pytest.raises(
            CacheError, match=r"train rows 64 to 128 is not the next block to commit. Next: train rows 0 to 64"
        ):
            writer.commit(second, features("train")[64:128])
        with pytest.raises(
            CacheError, match=r"takes float32 or float16 features \[64, 3, 5\], got float32 \[64, 5, 3\]"
        ):
            writer.commit(first, features("train")[:64].transpose(0, 2, 1))
        with pytest.raises(CacheError, match=r"features \[64, 3, 5\], got float64"):
            writer.commit(first, features("train")[:64].astype(np.float64))
        with pytest.raises(CacheError, match=r"5 blocks are not committed, the cache cannot be closed"):
            writer.close()


def group(ids=("a", "b"), labels=(0, 1), views=("center",)):
    return {"train": contents.GroupSpec(tuple(ids), np.array(labels), tuple(views))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "needs class names, got none"),
        ({"groups": {}}, r"groups are of train, test, unlabeled, got \[\]"),
        ({"groups": {"val": group()["train"]}}, r"got \['val'\]"),
        ({"groups": group(ids=())}, "group train has no rows; leave it out"),
        ({"groups": group(ids=("a", "a"))}, "ids must be unique, 1 are repeated"),
        ({"groups": group(ids=("a", "b\nc"))}, r"id 'b\\nc' is empty, holds a newline or is not UTF-8. Rename"),
        ({"groups": group(ids=("a", "b\udc80"))}, "is not UTF-8"),
        ({"groups": group(labels=(0, 4))}, "labels run from 0 to 4, accepted: -1 to 3"),
        ({"groups": group(labels=(0.0, 1.0))}, r"labels must be 2 whole numbers, got \[2\] float64"),
        ({"groups": group(views=("weak0",))}, "views must be center, then any of weak0, .* got weak0"),
        ({"groups": group(views=("center", "weak0", "weak0"))}, "got center, weak0, weak0"),
        ({"width": 7}, r"projection must be \[7, 6\], got \[5, 6\]"),
        ({"text": np.ones((C, 3, E))}, r"text must be \[4, 2, 6\], got \[4, 3, 6\]"),
        ({"text": np.full((C, T, E), np.nan)}, "text holds values that are not finite"),
        ({"ln_post": np.ones(D)}, r"ln_post must have 2 axes, got \[5\]"),
        ({"provenance": {"path": Path("x")}}, "must be plain JSON values: .*PosixPath"),
        ({"logit_scale": float("nan")}, "must be plain JSON values"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_disk_is_touched(tmp_path, changes, message):
    with pytest.raises(CacheError, match=message):
        create(tmp_path / "new.zarr", **arguments(**changes))
    assert not (tmp_path / "new.zarr").exists()


# ------------------------------------------------------------------------------------- kills and resume

KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import zarr  # before any fork, so that the children need not; its thread starts at its first call
from pathlib import Path
from test_cache import make

def run(path, last):
    child = os.fork()
    if not child:
        calls = iter(range(10**6))
        def fsync(handle):  # flushes nothing: what a killed process wrote outlives it, only a power cut loses it
            if next(calls) == last:
                os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = fsync
        make(path, resume=True)
        os._exit(0)
    return os.waitpid(child, 0)[1]

for last in range(0, 10**6, {stride}):
    path = Path({folder!r}) / f"{{last}}.zarr"
    if run(path, last) == 0:
        break
    if run(path, -1) != 0:
        raise SystemExit(f"resuming after kill {{last}} failed")
print(last)
"""


def test_killed_at_any_flush_and_resumed_it_equals_an_unbroken_one_byte_for_byte(whole, tmp_path):
    stride = 7  # a block of three views flushes ten times, so this visits each of its ten moments
    places = {"root": str(ROOT), "tests": str(Path(__file__).parent), "folder": str(tmp_path)}
    script = [sys.executable, "-c", KILLED.format(stride=stride, **places)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills, expected = int(done.stdout), tree(whole)
    assert kills > 90  # 5 blocks of up to 3 chunks, 8 arrays, and their folders
    for kill in range(0, kills + 1, stride):
        assert tree(tmp_path / f"{kill}.zarr") == expected, f"kill {kill}"


SLOW = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_cache import arguments, create, features

with create({path!r}, resume=True, **arguments()) as writer:
    for block in writer.pending():
        time.sleep(0.05)
        writer.commit(block, features(block.group)[block.start : block.stop])
    writer.close()
"""


def test_killed_at_random_moments_until_it_gets_through_it_equals_an_unbroken_one(whole, tmp_path):
    path, moments = tmp_path / "k.zarr", random.Random(0)
    script = SLOW.format(root=str(ROOT), tests=str(Path(__file__).parent), path=str(path))
    codes = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script]) as child:
            while child.poll() is None and not (path / manifest.LOCK).exists():
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.25))
            child.kill()
        codes.append(child.returncode)
    assert -signal.SIGKILL in codes
    make(path, resume=True)
    assert tree(path) == tree(whole)


def test_a_manifest_line_torn_anywhere_is_dropped_and_done_again(whole, tmp_path):
    path = tmp_path / "t.zarr"
    raw = (whole / manifest.MANIFEST).read_bytes()
    lines = raw.splitlines(keepends=True)
    for kept in (0, 2, 6):  # the header, a block line, the closing line
        start = sum(map(len, lines[:kept]))
        for cut in (1, len(lines[kept]) - 1):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(whole, path)
            (path / manifest.MANIFEST).write_bytes(raw[: start + cut])
            with pytest.raises(CacheError, match=r"is damaged" if kept == 0 else "is not complete"):
                c.open_cache(path)
            assert f"line {kept + 1} does not match its checksum" in [damage.why for damage in c.verify(path)]
            writer = make(path, resume=True)
            assert ("dropped the last manifest line, which a kill had torn" in writer.notes) == (kept > 0)
            assert tree(path) == tree(whole)


def test_an_incomplete_cache_says_how_far_it_is_and_goes_on_from_there(tmp_path):
    path = tmp_path / "half.zarr"
    assert not make(path, blocks=2).is_complete
    with pytest.raises(CacheError, match=r"is not complete: 128 of 220 rows. Finish it with .* --resume"):
        c.open_cache(path)
    assert [damage.why for damage in c.verify(path)] == ["no closing line: incomplete"]
    with create(path, resume=True, **arguments()) as writer:
        assert writer.notes == ["resumed at 128 of 220 rows"]
        assert writer.pending()[0] == contents.Block("train", 128, 150)


def test_resuming_a_complete_cache_says_so_and_changes_nothing(copy):
    before = tree(copy)
    with create(copy, resume=True, **arguments()) as writer:
        assert writer.is_complete
        assert writer.notes == [f"{copy} is complete already"]
        assert writer.pending() == []
        writer.close()
    assert tree(copy) == before


def other(name, **changes):
    groups = arguments()["groups"]
    return {"groups": groups | {name: groups[name]._replace(**changes)}}


MISMATCHES = {
    "provenance.seed is 3 there, 4 is asked": {
        "provenance": arguments()["provenance"] | {"seed": 4, "views": {"weak0": "shift 1/8"}}
    },
    'provenance.views.weak0 is "shift 1/8" there, "shift 1/4" is asked': {
        "provenance": arguments()["provenance"] | {"views": {"weak0": "shift 1/4"}}
    },
    "provenance.seed is 3 there, absent is asked": {"provenance": {"model": "ViT-X", "dataset": "world"}},
    'classes[2] is "emu" there, "elk" is asked': {"classes": ("cat", "dog", "elk", "fox")},
    "templates[1] is": {"templates": ("a {}", "one {}")},
    "logit_scale is 50.0 there, 100.0 is asked": {"logit_scale": 100.0},
    "train.labels[3] is 2 there, 0 is asked": other(
        "train", labels=np.where(np.arange(N) == 3, 0, np.arange(N) % 5 - 1)
    ),
    'test.ids[69] is "test/69" there, "test/x" is asked': other(
        "test", ids=(*map("test/{}".format, range(69)), "test/x")
    ),
    'views.train[1] is "weak0" there, "weak1" is asked': other("train", views=("center", "weak1", "strong0")),
    "text[0] is": {"text": -arguments()["text"]},
    "projection is an array [5, 6] there, absent is asked": {"projection": None, "text": np.ones((C, T, D))},
}


@pytest.mark.parametrize(("message", "changes"), MISMATCHES.items(), ids=[text[:18] for text in MISMATCHES])
def test_resuming_with_something_else_names_the_field_and_both_values(whole, message, changes):
    before = tree(whole)
    with pytest.raises(CacheMismatch) as raised:
        create(whole, resume=True, **arguments(**changes))
    assert message in str(raised.value)
    assert "Re-extract: fastltssl extract --model ViT-X --out NEW.zarr, or replace it with --overwrite" in str(
        raised.value
    )
    assert tree(whole) == before


def test_text_that_differs_by_rounding_can_be_resumed_and_the_stored_one_stays(tmp_path, whole):
    make(tmp_path / "r.zarr", blocks=1)
    make(tmp_path / "r.zarr", resume=True, text=arguments()["text"] * np.float32(1.001))
    assert tree(tmp_path / "r.zarr") == tree(whole)


# ------------------------------------------------------------------------------- overwriting and removing


def test_a_cache_that_is_there_is_neither_continued_nor_replaced_unasked(copy, tmp_path):
    with pytest.raises(
        CacheError, match=r"holds a cache already. Replace it with --overwrite, or finish an extraction with --resume"
    ):
        make(copy)
    with pytest.raises(CacheError, match=r"--resume and --overwrite exclude each other"):
        make(copy, resume=True, overwrite=True)
    make(copy, overwrite=True, classes=("a", "b", "c", "d"))
    assert c.open_cache(copy).classes == ("a", "b", "c", "d")
    assert not c.verify(copy)


def test_a_folder_that_is_no_cache_is_never_touched(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    (path / "zarr.json").write_text('{"attributes": {"mine": 1}}')
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(CacheError, match=r"photos is there and is not a fastltssl cache; it is left alone"):
            make(path, **flags)
    with pytest.raises(CacheError, match=r"photos is not a fastltssl cache. Make one: fastltssl extract"):
        c.remove(path)
    with pytest.raises(CacheError, match=r"zarr.json is there and is not a fastltssl cache"):
        make(path / "zarr.json", overwrite=True)
    assert tree(path) == {"zarr.json": b'{"attributes": {"mine": 1}}'}


def test_removing_a_cache_leaves_nothing_but_what_was_never_part_of_it(copy):
    shutil.copytree(copy, copy.with_name("other.zarr"))
    c.remove(copy)
    assert not copy.exists()
    (copy.with_name("other.zarr") / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"these were not part of it and stay: notes.txt"):
        c.remove(copy.with_name("other.zarr"))
    assert tree(copy.with_name("other.zarr")) == {"notes.txt": b"mine"}


def test_files_of_the_user_inside_a_cache_stay_wherever_they_lie(copy, tmp_path):
    mine = ("train/mine/notes.txt", "train/features/c/0/photo.png", "text/notes.txt", "fastltssl.lock.bak")
    for name in mine:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("kept")
    (copy / "test" / "album").symlink_to(tmp_path / "elsewhere")
    damages = {damage.file: damage.why for damage in c.verify(copy)}
    assert damages == dict.fromkeys([*mine, "test/album"], "not in the manifest")
    assert "not part of the cache, so they stay: fastltssl.lock.bak" in make(copy, overwrite=True).notes[0]
    with pytest.raises(
        CacheError, match=r"stay: fastltssl\.lock\.bak, test/album, text/notes.txt, train/features/c/0/ph"
    ):
        c.remove(copy)
    assert all((copy / name).read_text() == "mine" for name in mine)
    assert (tmp_path / "elsewhere" / "kept.txt").read_text() == "kept"


@pytest.mark.parametrize("name", ["fastltssl.lock.bak", "fastltssl.lock", "train/0.png"])
def test_a_folder_of_photos_is_no_cache_whatever_its_files_are_called(tmp_path, name):
    folder = tmp_path / "photos"
    for own in ("holiday.jpg", name):
        (folder / own).parent.mkdir(parents=True, exist_ok=True)
        (folder / own).write_text("{}")
    before = tree(folder)
    with pytest.raises(CacheError, match="is not a fastltssl cache"):
        c.remove(folder)
    with pytest.raises(CacheError, match="is not a fastltssl cache"):
        make(folder, overwrite=True)
    assert tree(folder) == before


# ------------------------------------------------------------------------------------------------ damage


def flip(file, place):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 0x10
    file.write_bytes(raw)


METADATA = (
    *("zarr.json", "train/zarr.json", "train/features/zarr.json", "train/ids/zarr.json", "ln_post/zarr.json"),
    *("test/labels/c/0", "train/ids/c/0", "text/c/0/0/0", "projection/c/0/0"),
)


@pytest.mark.parametrize("name", METADATA)
def test_a_flipped_byte_in_the_metadata_is_found_by_verify_and_refused_on_opening(copy, name):
    for place in (0, (copy / name).stat().st_size // 2, -1):
        flip(copy / name, place)
        damages = c.verify(copy)
        assert [(damage.file, damage.start) for damage in damages] == [(name, None)]
        assert damages[0].why.startswith("its sha256 is ")
        with pytest.raises(CacheDamaged, match=f"is damaged. {name}: its sha256 .* fastltssl cache verify"):
            c.open_cache(copy)
        with pytest.raises(CacheDamaged):
            make(copy, resume=True)
        flip(copy / name, place)
    assert not c.verify(copy)


def test_a_flipped_byte_in_a_chunk_is_found_with_its_rows_complete_or_not(copy, tmp_path):
    name = "train/features/c/1/2/0"
    flip(copy / name, 17)
    (damage,) = c.verify(copy)
    assert damage[:4] == (name, "train", 64, 128)
    make(tmp_path / "half.zarr", blocks=2)
    flip(tmp_path / "half.zarr" / name, 17)
    damages = c.verify(tmp_path / "half.zarr")
    assert (name, "train", 64, 128) in [damage[:4] for damage in damages]
    make(tmp_path / "half.zarr", resume=True)
    assert not c.verify(tmp_path / "half.zarr")  # made again


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(whole, copy):
    lines = (whole / manifest.MANIFEST).read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        start = sum(map(len, lines[: number - 1]))
        for place in {start, start + len(line) // 3, start + len(line) - 12, start + len(line) - 1}:
            flip(copy / manifest.MANIFEST, place)
            assert any(
                damage.file == manifest.MANIFEST and f"line {number} does not" in damage.why
                for damage in c.verify(copy)
            )
            with pytest.raises(CacheError):
                c.open_cache(copy)
            flip(copy / manifest.MANIFEST, place)
    assert not c.verify(copy)


def test_missing_and_unexpected_files_and_lines_are_found(copy):
    (copy / "train/features/c/2/0/0").unlink()
    (copy / "test/features/c/0/0/0").write_bytes(b"short")
    (copy / "text/c/0/0/0").unlink()
    (copy / "text/c/0/0/0").mkdir()
    (copy / "train/extra.bin").write_bytes(b"x")
    whys = {damage.file: (damage.group, damage.start, damage.stop, damage.why) for damage in c.verify(copy)}
    assert whys["train/features/c/2/0/0"] == ("train", 128, 150, "missing")
    assert whys["test/features/c/0/0/0"][:3] == ("test", 0, 64)
    assert whys["text/c/0/0/0"] == (None, None, None, "cannot be read: it is a folder")
    assert whys["train/extra.bin"] == ("train", None, None, "not in the manifest")
    assert len(whys) == 4


def test_a_missing_or_short_chunk_is_refused_on_opening_and_on_reading(copy):
    train = c.open_cache(copy).groups["train"]
    (copy / "train/features/c/1/0/0").write_bytes(b"short")
    with pytest.raises(CacheDamaged, match=r"train/features/c/1/0/0 has 5 bytes, not 640"):
        c.open_cache(copy)
    with pytest.raises(CacheDamaged, match=r"train/features/c/1/0/0 has 5 bytes, not 640"):
        read_features(train)
    (copy / "train/features/c/1/0/0").unlink()
    with pytest.raises(CacheDamaged, match=r"train/features/c/1/0/0 has no bytes"):
        c.open_cache(copy)
    with pytest.raises(CacheDamaged, match=r"has 0 bytes"):
        read_features(train)


def test_a_lost_manifest_line_or_manifest_is_found(copy):
    raw = (copy / manifest.MANIFEST).read_bytes().splitlines(keepends=True)
    (copy / manifest.MANIFEST).write_bytes(b"".join(raw[:2] + raw[3:]))
    assert [damage.why for damage in c.verify(copy)] == ["4 block lines, its closing line counts 5"]
    with pytest.raises(CacheDamaged, match=r"4 block lines, its closing line counts 5"):
        c.open_cache(copy)
    (copy / manifest.MANIFEST).write_bytes(b"".join([*raw[:-1], raw[2]]))
    with pytest.raises(CacheDamaged, match=r"its blocks are not those of the rows, in order and once each"):
        c.open_cache(copy)
    (copy / manifest.MANIFEST).unlink()
    assert "it is missing or empty" in [damage.why for damage in c.verify(copy)]
    with pytest.raises(CacheDamaged, match=r"it is missing or empty"):
        c.open_cache(copy)


def test_another_format_version_is_refused_by_name(copy):
    lines = (copy / manifest.MANIFEST).read_bytes().splitlines(keepends=True)
    body = lines[0][:-27].replace(b'"fastltssl_cache":1', b'"fastltssl_cache":2')
    (copy / manifest.MANIFEST).write_bytes(b"".join([body + b',"line_crc32c":"%08x"}\n' % crc32c(body), *lines[1:]]))
    with pytest.raises(CacheError, match=r"has format version 2, this fastltssl reads 1. Use the one that wrote it"):
        c.open_cache(copy)


# -------------------------------------------------------------------------------------------------- lock


def lock(path, **changes):
    path.mkdir(exist_ok=True)
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": None} | changes
    (path / manifest.LOCK).write_text(json.dumps(holder))


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_a_lock_held_by_a_live_process_or_another_host_is_respected(tmp_path):
    path = tmp_path / "l.zarr"
    with create(path, **arguments()) as writer:
        with pytest.raises(
            CacheLocked, match=rf"is being written by process {os.getpid()} on .* delete .*{manifest.LOCK}"
        ):
            make(path, resume=True)
        with pytest.raises(CacheLocked):
            c.remove(path)
        fill(writer)
        assert not (path / manifest.LOCK).exists()
        lock(path, pid=dead_pid(), host="elsewhere")
    assert (path / manifest.LOCK).exists(), "a closed writer must not release the lock of its successor"
    with pytest.raises(CacheLocked, match=r"on elsewhere. Wait for it; if you are sure that it is gone, delete"):
        make(path, resume=True)


def test_a_dead_process_s_lock_is_taken_over_with_a_note(whole, tmp_path):
    path, pid = tmp_path / "d.zarr", dead_pid()
    lock(path, pid=pid)
    assert (
        f"took over the lock of process {pid} on {socket.gethostname()}, which is gone" in make(path, resume=True).notes
    )
    assert tree(path) == tree(whole)
    lock(path, started="12345")  # this pid, but another process had it when the lock was made
    assert "which is gone" in make(path, resume=True).notes[0]
    (path / manifest.LOCK).write_bytes(b"")
    assert make(path, resume=True).notes[0] == "took over an unfinished lock"
    assert tree(path) == tree(whole)


# ------------------------------------------------------------------------------------------ names, lists


def test_bare_names_are_found_in_the_cache_folder_and_unknown_ones_list_what_is_there(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLTSSL_CACHE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert c.open_cache("copy").path == c.open_cache("copy.zarr").path == copy
    with pytest.raises(CacheError, match=r"no cache 'cpoy'. Caches in .*: copy.zarr. Make one: .* cache import FILE"):
        c.open_cache("cpoy")
    with pytest.raises(CacheError, match=r"no cache './copy'"):
        c.open_cache("./copy")
    (tmp_path / "elsewhere" / "copy").mkdir()  # a folder of that name that is no cache does not hide it
    assert c.find_cache("copy") == copy
    monkeypatch.delenv("FASTLTSSL_CACHE")
    assert c.cache_folder() == Path("cache")


def test_info_and_the_list_cover_complete_incomplete_and_damaged_caches(copy, tmp_path):
    make(tmp_path / "a.zarr", blocks=4)
    details = c.info(tmp_path / "a.zarr")
    assert details["groups"]["test"] == {"rows": TEST, "rows_done": 64, "chunk_rows": 64, "views": 1, "width": D}
    assert (details["is_complete"], details["fingerprint"], details["arrays"]["text"]) == (False, None, [C, T, E])
    assert c.info(copy)["fingerprint"] == c.fingerprint(c.open_cache(copy))
    assert c.info(copy)["provenance"]["seed"] == 3
    assert c.info(copy)["size_mib"] > 0
    lock(tmp_path / "b.zarr")
    flip(Path(shutil.copytree(copy, tmp_path / "d.zarr")) / "zarr.json", 9)
    (tmp_path / "photos").mkdir()
    rows = c.list_caches(tmp_path)
    assert {row["name"]: row["state"] for row in rows} == {
        "a.zarr": "214/220 rows", "b.zarr": "not begun", "copy.zarr": "complete", "d.zarr": "damaged"
    }  # fmt: skip
    assert all(list(row) == list(rows[0]) for row in rows)
    assert rows[2] | {"size_mib": 0} == {
        "name": "copy.zarr", "state": "complete", "model": "ViT-X", "dataset": "world", "classes": C,
        "rows": "150 train + 70 test", "views": V, "width": D, "size_mib": 0,
    }  # fmt: skip


def test_opening_and_reading_load_neither_torch_nor_zarr(whole):
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom fastltssl.cache import catalogue, imports, reader\n"
        f"reader.read_features(catalogue.open_cache({str(whole)!r}).groups['train'])\n"
        "assert not {'torch', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# ----------------------------------------------------------------------------------------------- imports


def arrays():
    rng = np.random.default_rng(1)
    return {
        "image": rng.standard_normal((70, 8)).astype(np.float16), "label": np.arange(70) % 4,
        "test_x": rng.standard_normal((9, 8)).astype(np.float32), "test_y": np.arange(9) % 3,
        "prompts": rng.standard_normal((3, 4, 8)).astype(np.float32), "average": rng.standard_normal((4, 8)),
        "names": np.array(["ant", "bee", "cow", "doe"]),
    }  # fmt: skip


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays())
    return tmp_path / "set.npz"


def test_an_imported_file_keeps_its_features_and_normalises_its_text_per_prompt(npz, tmp_path):
    given = arrays()
    summary = imports.import_file(
        npz, tmp_path / "i.zarr", features="image", labels="label", text="prompts", text_layout="tcd", classes="names",
        test_features="test_x", test_labels="test_y", emulate="weak:2:0.2,strong:1:0.5:0.1",
    )  # fmt: skip
    assert summary == "70 train + 9 test rows, 4 views, 8 wide, 4 classes, text of 3 prompts"
    opened = c.open_cache(tmp_path / "i.zarr")
    assert opened.classes == ("ant", "bee", "cow", "doe")
    assert opened.projection is None
    norms = np.linalg.norm(given["prompts"], axis=-1, keepdims=True)
    np.testing.assert_allclose(opened.text, (given["prompts"] / norms).transpose(1, 0, 2), rtol=1e-6)
    train, test = opened.groups["train"], opened.groups["test"]
    assert (train.views, test.views) == (("center", "weak0", "weak1", "strong0"), ("center",))
    assert (train.ids[69], test.ids[0]) == ("train/000069", "test/000000")
    np.testing.assert_array_equal(read_features(train)[:, 0], given["image"])
    np.testing.assert_array_equal(read_features(test)[:, 0], given["test_x"].astype(np.float16))
    np.testing.assert_array_equal(test.labels, given["test_y"])
    provenance = opened.attributes["provenance"]
    assert provenance["dataset"] == "set.npz"
    assert provenance["views"]["strong0"] == "emulated: normalise(drop 10 % of (x + 0.5 e)), e ~ N(0, I/D)"
    assert provenance["views"]["center"] == "as imported"


def test_npy_and_safetensors_files_import_the_same(npz, tmp_path):
    from safetensors.numpy import save_file

    given = arrays()
    save_file({name: given[name] for name in ("image", "label", "average")}, tmp_path / "set.safetensors")
    for name in ("image", "label", "average"):
        np.save(tmp_path / f"{name}.npy", given[name])
    keys = {"features": "image", "labels": "label", "text": "average"}
    opened = []
    for file in (npz, tmp_path / "set.safetensors", tmp_path / "image.npy"):
        imports.import_file(file, tmp_path / f"{file.suffix[1:]}.zarr", **keys)
        opened.append(c.open_cache(tmp_path / f"{file.suffix[1:]}.zarr"))
    for cache in opened:
        assert cache.classes == ("class 0", "class 1", "class 2", "class 3")
        assert cache.text.shape == (4, 1, 8)
        np.testing.assert_array_equal(read_features(cache.groups["train"]), given["image"][:, None])


def test_parquet_columns_and_files_beside_import_the_same(npz, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    given = arrays()
    fixed = pa.FixedSizeListArray.from_arrays(given["image"].ravel(), 8)
    names = [["ant", "bee", "cow", "doe"][label] for label in given["label"]]
    table = pa.table({"emb": fixed, "lists": given["image"].tolist(), "label": given["label"], "name": names})
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=20)
    parquet.write_table(pa.table({"emb": given["test_x"].tolist(), "y": given["test_y"]}), tmp_path / "test.parquet")
    np.save(tmp_path / "average.npy", given["average"])
    test = {"test_features": "test.parquet:emb", "test_labels": "test.parquet:y"}
    for name in ("emb", "lists"):
        out = tmp_path / f"{name}.zarr"
        imports.import_file(tmp_path / "set.parquet", out, features=name, labels="label", text="average", **test)
        opened = c.open_cache(out)
        np.testing.assert_array_equal(read_features(opened.groups["train"]), given["image"][:, None])
        np.testing.assert_array_equal(opened.groups["train"].labels, given["label"])
        np.testing.assert_array_equal(opened.groups["test"].labels, given["test_y"])
        assert opened.text.shape == (4, 1, 8)
    assert imports.load_arrays(tmp_path / "set.parquet", ["name"])["name"].tolist() == names


def test_parquet_columns_that_do_not_fit_are_named(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"ragged": [[1.0], [1.0, 2.0]], "empty": [None, 1.0], "hole": [[1.0, None], [1.0, 2.0]]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    for key, message in {
        "ragged": "column 'ragged' holds lists of 1 to 2 numbers, not of one",
        "empty": "column 'empty' has 1 empty cells",
        "hole": "column 'hole' has 1 empty numbers in its lists",
        "none": "a.parquet has no array 'none'; it has ragged, empty, hole",
    }.items():
        with pytest.raises(CacheError, match=message):
            imports.load_arrays(tmp_path / "a.parquet", [key])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CacheError, match=r"b.parquet cannot be read"):
        imports.load_arrays(tmp_path / "b.parquet", ["x"])


def test_features_before_the_projection_come_with_it(tmp_path):
    given, projection = arrays(), np.random.default_rng(2).standard_normal((8, 6)).astype(np.float32)
    x = {"features": given["image"], "labels": given["label"]}
    imports.import_features(tmp_path / "p.zarr", **x, text=np.ones((4, 6)), projection=projection, space="pre")
    np.testing.assert_array_equal(c.open_cache(tmp_path / "p.zarr").projection, projection)
    for wrong in ({"projection": projection}, {"space": "pre"}):
        with pytest.raises(CacheError, match=r"need --space pre and --projection KEY, both or neither"):
            imports.import_features(tmp_path / "q.zarr", **x, **wrong)


IMPORT_ERRORS = {
    "train features must be floating-point numbers [N, D], got int64 [70]": {"features": "label"},
    "train labels must be 70 whole numbers, got float16 [70, 8]": {"labels": "image"},
    "train labels must be 70 whole numbers, got int64 [9]": {"labels": "test_y"},
    "set.npz has no array 'imgae'; it has image, label, test_x,": {"features": "imgae"},
    "a test group needs both --test-features KEY and --test-labels KEY": {"test_features": "test_x"},
    "text [3, 4] does not fit 4 class names, 4 in the labels. Is it": {"text": "prompts", "classes": "names"},
    "text [3, 4] does not fit 3 class names, 4 in the labels. Is it in the other order? Then": {"text": "prompts"},
    "class names must be a list of texts, got int64 [70]": {"classes": "label"},
    "text must be finite floating-point numbers [C, E], [C, T, E], or": {"text": "label"},
    "space 'post' is not one of embedding, pre": {"space": "post"},
    "text layout 'cdt' is not one of ctd, tcd": {"text_layout": "cdt"},
}  # fmt: skip


@pytest.mark.parametrize(("message", "changes"), IMPORT_ERRORS.items(), ids=[text[:25] for text in IMPORT_ERRORS])
def test_an_import_that_does_not_fit_names_the_array_and_writes_nothing(npz, tmp_path, message, changes):
    with pytest.raises(CacheError) as raised:
        imports.import_file(npz, tmp_path / "x.zarr", **({"features": "image", "labels": "label"} | changes))
    assert message in str(raised.value)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 rows hold values that are not finite (rows 5)"),
        (0, "are all zeros"),
    ],
)
def test_imported_rows_that_cannot_be_used_are_named(tmp_path, value, message):
    x = np.ones((7, 3), np.float32)
    x[5] = value
    with pytest.raises(CacheError) as raised:
        imports.import_features(tmp_path / "x.zarr", features=x, labels=np.arange(7) % 2)
    assert message in str(raised.value)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e5, 1e30, 1e300])
def test_the_direction_of_imported_rows_is_stored_whatever_their_length(tmp_path, scale):
    x, text = np.random.default_rng(0).normal(size=(12, 8)), np.random.default_rng(1).normal(size=(3, 8))
    given = {"labels": np.arange(12) % 3, "emulate": "weak:1:0.2"}
    imports.import_features(tmp_path / "plain.zarr", features=x, text=text, **given)
    imports.import_features(tmp_path / "scaled.zarr", features=scale * x, text=scale * text, **given)
    plain, scaled = (c.open_cache(tmp_path / f"{name}.zarr") for name in ("plain", "scaled"))
    for ours, theirs in [(plain.text, scaled.text), *zip(
        *(read_features(cache.groups["train"]).swapaxes(0, 1).astype("f8") for cache in (plain, scaled)), strict=True
    )]:  # fmt: skip
        ours, theirs = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (ours, theirs))
        assert np.abs(ours - theirs).max() < 1e-3


def test_pickles_broken_files_and_other_formats_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CacheError, match=r"p.npz cannot be read: Object arrays cannot be loaded"):
        imports.load_arrays(tmp_path / "p.npz", ["x"])
    for name in ("b.npz", "b.safetensors", "b.npy"):
        (tmp_path / name).write_bytes(b"\x93NUMPY nonsense")
        with pytest.raises(CacheError, match=f"{name} cannot be read"):
            imports.load_arrays(tmp_path / name, ["b"])
    with pytest.raises(CacheError, match=r"x.pt cannot be imported; accepted: .npz, .npy, .safetensors"):
        imports.load_arrays(tmp_path / "x.pt", ["x"])


# --------------------------------------------------------------------------------------- emulated views


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weak", "'weak' is not understood; accepted: weak:COUNT:NOISE or strong:COUNT:NOISE:DROP"),
        ("mild:2:0.1", "'mild:2:0.1' is not understood"),
        ("weak:0:0.1", "the count is 1 to 64, the noise above 0, the dropped share below 1"),
        ("weak:2:0", "the noise above 0"),
        ("strong:2:0.5:1", "the dropped share below 1"),
        ("weak:2:0.1,weak:3:0.2", "names weak twice"),
    ],
)
def test_an_emulation_that_is_not_understood_is_refused(text, message):
    with pytest.raises(CacheError, match=message):
        parse_emulate(text)
    assert parse_emulate(None) == ()


def test_emulated_rows_depend_on_their_position_only_and_differ_between_views_groups_and_seeds():
    x = np.random.default_rng(0).standard_normal((150, 7)).astype(np.float32)
    weak, weak1, strong = parse_emulate("weak:2:0.2,strong:1:0.5:0.1")
    whole = emulated(x, strong, seed=0, group="train", start=0)
    np.testing.assert_array_equal(whole[64:128], emulated(x[64:128], strong, seed=0, group="train", start=64))
    np.testing.assert_array_equal(whole[:10], emulated(x[:10], strong, seed=0, group="train", start=0))
    np.testing.assert_array_equal(whole[128:], emulated(x[128:], strong, seed=0, group="train", start=128))
    first = emulated(x, weak, seed=0, group="train", start=0)
    others = [
        emulated(x, weak1, seed=0, group="train", start=0),
        emulated(x, weak, seed=1, group="train", start=0),
        emulated(x, weak, seed=0, group="test", start=0),
        emulated(x, weak, seed=0, group="train", start=64),
    ]
    for noise in others:
        assert not (noise == first).all(axis=1).any()
    assert not np.isclose(first[:64], first[64:128]).all(axis=1).any()


def test_emulated_views_have_unit_norm_and_the_stated_noise_and_dropped_share():
    x = 7 * np.random.default_rng(0).standard_normal((640, 256)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    weak, strong = parse_emulate("weak:1:0.2,strong:1:0.5:0.1")
    soft = emulated(x, weak, seed=0, group="train", start=0)
    hard = emulated(x, strong, seed=0, group="train", start=0)
    for view in (soft, hard):
        np.testing.assert_allclose(np.linalg.norm(view, axis=1), 1, rtol=1e-5)
    # |x + a e| is about sqrt(1 + a^2), so the cosine with x is 1 / sqrt(1 + a^2), times sqrt(kept share) if dropped
    assert (soft * unit).sum(1).mean() == pytest.approx(1 / np.sqrt(1.04), abs=0.003)
    assert (hard == 0).mean() == pytest.approx(0.1, abs=0.005)
    assert (hard * unit).sum(1).mean() == pytest.approx(np.sqrt(0.9 / 1.25), abs=0.005)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("fastltssl.cache.writer.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CacheError, match=r"needs 6\.9 KiB and its disk has 1\.0 KiB free"):
        make(tmp_path / "full.zarr")
    assert not list((tmp_path / "full.zarr").rglob("*"))


def test_the_size_foretold_is_the_size_on_disk(whole):
    from fastltssl.cache.writer import size_on_disk

    cache = c.open_cache(whole)
    stored = sum(file.stat().st_size for file in whole.glob("*/features/c/*/*/0"))
    assert size_on_disk({name: group.shape for name, group in cache.groups.items()}) == stored
