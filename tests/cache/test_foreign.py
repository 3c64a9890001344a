"""Caches that others made: damaged, crafted with valid checksums, full of links and pipes. All end in a message."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google_crc32c import value as crc32c
from shell import invoke

from fastltssl.cache import catalogue as c
from fastltssl.cache import layout, manifest
from fastltssl.cache.imports import import_features
from fastltssl.cache.reader import read_features
from fastltssl.cache.writer import create
from fastltssl.errors import CacheDamaged, CacheError, FastltsslError

ROOT = Path(c.__file__).parents[2]
PROVENANCE = {"model": "ViT-X", "dataset": "world", "seed": 0, "views": {"center": "center"}}


def make(path, n=5, **changes):
    """A small cache with everything that one may hold: text, projection, two groups, taps."""
    rng = np.random.default_rng(0)
    groups = {
        "train": layout.GroupSpec(tuple(f"train/{row}.png" for row in range(n)), np.arange(n) % 2, ("center", "weak0")),
        "test": layout.GroupSpec(("test/0.png", "test/1.png"), np.array([0, 1]), ("center",)),
    }
    given = {"provenance": PROVENANCE, "classes": ("cat", "dog"), "groups": groups, "width": 4, "templates": ("a {}",)}
    given |= {"text": rng.normal(size=(2, 1, 3)), "projection": rng.normal(size=(4, 3)), "taps": ("mid", "mlp")}
    flags = {name: changes.pop(name) for name in ("resume", "overwrite") if name in changes}
    with create(path, **(given | changes), **flags) as writer:
        for block in writer.pending():
            views = writer.shapes[block.group][1]
            writer.commit(block, rng.normal(size=(block.stop - block.start, views, 3, 4)).astype("f4"))
        writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole") / "whole.zarr")


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy.zarr"))


def lines_of(path):
    return [json.loads(line) for line in (path / manifest.MANIFEST).read_bytes().splitlines()]


def seal(path, lines=None):
    """Write a manifest whose checksums are right, whatever the files of the cache and its lines hold."""
    lines = lines_of(path) if lines is None else lines
    for line in lines:
        for name in line["files"] if isinstance(line, dict) and isinstance(line.get("files"), dict) else ():
            if (path / name).is_file() and len(str(line["files"][name])) in (8, 64):
                raw = (path / name).read_bytes()
                is_chunk = len(line["files"][name]) == 8
                line["files"][name] = f"{crc32c(raw):08x}" if is_chunk else hashlib.sha256(raw).hexdigest()
    raw = b""
    for line in lines:
        body = line
        if isinstance(line, dict):
            line.pop("line_crc32c", None)
            body = json.dumps(line, separators=(",", ":"))[:-1].encode()
        raw += body + b',"line_crc32c":"%08x"}\n' % crc32c(body)
    (path / manifest.MANIFEST).write_bytes(raw)


def looks(path):
    """What every look at a cache says: texts of the errors, or None for success. Any other error is raised."""
    told = []
    for look in (c.verify, c.info, read_all):
        try:
            result = look(path)
            told.append("; ".join(map(str, result)) if look is c.verify and result else None)
        except FastltsslError as error:
            told.append(str(error))
    return told


def read_all(path):
    cache = c.open_cache(path)
    for group in cache.groups.values():
        for part in ("features", *group.taps):
            read_features(group, None, part)
    return cache


# ------------------------------------------------------------------------------- valid checksums, wrong contents


def edited(path, name, edit):
    """Change a zarr.json by a function of its value, and seal the cache again."""
    value = json.loads((path / name).read_text())
    edit(value)
    (path / name).write_text(json.dumps(value))
    seal(path)


ROOT_EDITS = {
    "attributes.views": lambda a: a.pop("views"),
    "has no classes": lambda a: a.pop("classes"),
    "has no provenance": lambda a: a.pop("provenance"),
    "attributes.classes[1]: 7 is not text": lambda a: a["classes"].__setitem__(1, 7),
    "attributes.logit_scale: 'hot' is not a number": lambda a: a.__setitem__("logit_scale", "hot"),
    "provenance, names and scales must be plain JSON": lambda a: a.__setitem__("logit_scale", float("nan")),
    "'cat' and 'cat', are the same": lambda a: a.__setitem__("classes", ["cat", "cat"]),
    "class 1 is named '  ', which is empty or not UTF-8": lambda a: a.__setitem__("classes", ["cat", "  "]),
    "ud800', which is empty or not UTF-8": lambda a: a.__setitem__("classes", ["cat", "\ud800"]),
    "text must be [1, 1, 3], got [2, 1, 3]": lambda a: a.__setitem__("classes", ["cat"]),
    "zarr.json, views: groups are of train, test": lambda a: a["views"].__setitem__("../../x", ["center"]),
    "views must be center, then any of weak0": lambda a: a["views"].__setitem__("train", ["center", "../x"]),
    "features and taps are": lambda a: a["views"].__setitem__("train", ["center"]),
    "taps are of mid, mlp, once each": lambda a: a.__setitem__("taps", ["../../mid"]),
    "text must be [2, 2, 3], got [2, 1, 3]": lambda a: a.__setitem__("templates", ["a", "b"]),
    "zarr.json, views: there is no group": lambda a: a.__setitem__("views", {}),
}


@pytest.mark.parametrize(("message", "edit"), ROOT_EDITS.items(), ids=[text[:22] for text in ROOT_EDITS])
def test_attributes_that_do_not_fit_are_told_by_their_place(copy, message, edit):
    edited(copy, "zarr.json", lambda value: edit(value["attributes"]))
    message = "has no views" if message == "attributes.views" else message
    with pytest.raises(CacheDamaged, match="is damaged") as raised:
        c.open_cache(copy)
    assert message in str(raised.value)
    assert message in looks(copy)[0], "verify says it, too"


ARRAY_EDITS = {
    ("train/features", "is not the shape of an array of 3 axes"): lambda v: v.__setitem__("shape", [-5, 2, 4]),
    ("train/features", " is not the shape of"): lambda v: v.__setitem__("shape", [10**30, 2, 4]),
    ("train/features", "zarr.json has no shape"): lambda v: v.pop("shape"),
    ("train/features", "chunks [0, 1, 4] are not [rows, 1, 4]"): lambda v: chunk(v, [0, 1, 4]),
    ("train/features", "chunks [] are not"): lambda v: chunk(v, []),
    ("test/features", "'object' is not the shape"): lambda v: v.__setitem__("data_type", "object"),
    ("test/mid", "features and taps are"): lambda v: v.__setitem__("shape", [1, 1, 4]),
    ("train/ids", "is not the shape of an array of 1 axes and uint8"): lambda v: v.__setitem__("data_type", {"a": 1}),
    ("train/labels", "labels/c/0 has 40 bytes, not 8000"): lambda v: v.__setitem__("shape", [1000]),
    ("text", "text/c/0/0/0 has 24 bytes, not 9671406556917033397649408"): lambda v: v.__setitem__(
        "shape", [2**40, 2**40, 2]
    ),
    ("projection", "'int64' is not the shape"): lambda v: v.__setitem__("data_type", "int64"),
}


def chunk(value, shape):
    value["chunk_grid"]["configuration"]["chunk_shape"] = shape


@pytest.mark.parametrize(("place", "edit"), ARRAY_EDITS.items(), ids=[" ".join(key)[:30] for key in ARRAY_EDITS])
def test_arrays_that_cannot_be_are_told_by_their_file(copy, place, edit):
    array, message = place
    edited(copy, f"{array}/zarr.json", edit)
    with pytest.raises(CacheDamaged) as raised:
        c.open_cache(copy)
    if "data_type" in message or array == "train/ids":
        message = "train/ids/zarr.json, data_type: {'a': 1} is not text"
    assert message in str(raised.value)
    assert all(looks(copy)), "verify and info say it, too"


def store_ids(path, ids):
    raw = ids if isinstance(ids, bytes) else "\n".join(ids).encode()
    (path / "train/ids/c/0").write_bytes(raw)
    value = json.loads((path / "train/ids/zarr.json").read_text())
    value["shape"] = value["chunk_grid"]["configuration"]["chunk_shape"] = [len(raw)]
    (path / "train/ids/zarr.json").write_text(json.dumps(value))
    seal(path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "c", "d", "a"], "group train: ids must be unique, 1 are repeated"),
        (["a", "b", "", "c", "d"], "id '' is empty"),
        (["a", "b", "x/../../y.png", "c", "d"], "id 'x/../../y.png' leads out of the folder of its images"),
        (["a", "b", "c", "d", ".."], "id '..' leads out"),
        (["a", "/etc/passwd", "c", "d", "e"], "id '/etc/passwd' leads out"),
        (["C:\\x.png", "b", "c", "d", "e"], "leads out"),
        (["a\\..\\b", "b", "c", "d", "e"], "leads out"),
        (["a", "b", "c"], "labels must be 3 whole numbers, got [5]"),
        (b"a\nb\nc\nd\n\xff", "train/ids: the text is not UTF-8 (invalid start byte at byte 8)"),
    ],
)
def test_ids_that_no_cache_may_hold_are_refused_on_opening(copy, ids, message):
    store_ids(copy, ids)
    with pytest.raises(CacheDamaged) as raised:
        c.open_cache(copy)
    assert message in str(raised.value)


def test_ids_that_only_look_as_if_they_led_out_are_kept_and_a_list_may_name_files_elsewhere(copy, tmp_path):
    ids = ["..a", "b../c", "a...b", "d/. /e", "x:y"]
    store_ids(copy, ids)
    assert c.open_cache(copy).groups["train"].ids == tuple(ids)
    ids = ("../a.png", "/data/b.png")
    group = {"train": layout.GroupSpec(ids, np.array([0, 1]), ("center",))}
    with pytest.raises(CacheError, match=r"id '\.\./a\.png' leads out of the folder"):
        make(tmp_path / "x.zarr", groups=group)
    make(tmp_path / "y.zarr", groups=group, provenance=PROVENANCE | {"dataset": "list:set.csv"})
    assert c.open_cache(tmp_path / "y.zarr").groups["train"].ids == ids


def test_labels_out_of_range_are_refused_on_opening(copy):
    np.array([0, 1, 2, -2, 0]).tofile(copy / "train/labels/c/0")
    seal(copy)
    with pytest.raises(CacheDamaged, match="labels run from -2 to 2, accepted: -1 to 1"):
        c.open_cache(copy)


LINE_EDITS = {
    "line 2 has no files": lambda lines: lines[1].pop("files"),
    "line 2 has no stop": lambda lines: lines[1].pop("stop"),
    "line 2, start: 'a' is not a whole number": lambda lines: lines[1].__setitem__("start", "a"),
    "line 2, group: 'val' is not train or test or unlabeled": lambda lines: lines[1].__setitem__("group", "val"),
    "line 2: rows 5 to 5": lambda lines: lines[1].__setitem__("start", 5),
    "broken [9], are no block of rows": lambda lines: lines[1].__setitem__("broken", [9]),
    "line 2: '../../x' is no file of a cache": lambda lines: lines[1]["files"].__setitem__("../../x", "00000000"),
    "line 2: '/dev/zero' is no file of a cache": lambda lines: lines[1]["files"].__setitem__("/dev/zero", "00000000"),
    "line 2, files.train/features": lambda lines: lines[1]["files"].__setitem__("train/features/c/0/0/0", 7),
    "'xyz' of train/features/c/0/0/0 is no checksum": lambda lines: lines[1]["files"].__setitem__(
        "train/features/c/0/0/0", "xyz"
    ),
    "train rows 0 to 5 name other files than theirs": lambda lines: lines[1]["files"].pop("train/mid/c/0/1/0"),
    "its header does not name train/labels/c/0": lambda lines: [
        line["files"].pop("train/labels/c/0") for line in (lines[0], lines[-1])
    ],
    "its closing line does not name the files": lambda lines: lines[-1]["files"].pop("train/labels/c/0"),
    "line 4, closed: None is not a whole number": lambda lines: lines[-1].__setitem__("closed", None),
    "line 1 has no files": lambda lines: lines[0].pop("files"),
    "format version 'two', this fastltssl reads 1": lambda lines: lines[0].__setitem__("fastltssl_cache", "two"),
    "line 2, group: [] is not": lambda lines: lines[1].__setitem__("group", []),
    "line 2 has no group": lambda lines: lines.__setitem__(1, b'{"groop":1'),
    "line 2 is damaged: Expecting": lambda lines: lines.__setitem__(1, b'{"group":'),
    "line 2 is damaged: key 'start' is given twice": lambda lines: lines.__setitem__(1, b'{"start":0,"start":1'),
}  # fmt: skip


@pytest.mark.parametrize(("message", "edit"), LINE_EDITS.items(), ids=[text[:30] for text in LINE_EDITS])
def test_manifest_lines_with_a_valid_checksum_and_wrong_fields_are_told_by_their_line(copy, message, edit):
    lines = lines_of(copy)
    edit(lines)
    seal(copy, lines)
    with pytest.raises(CacheError) as raised:
        c.open_cache(copy)
    assert message in str(raised.value)
    assert message in looks(copy)[0]


# --------------------------------------------------------------------------------------------------- fuzzer


def mutate(path, rng):
    """Change one file of a cache in one of many ways, half of the time with the checksums made right again."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    file = path / rng.choice([name for name in names if rng.random() < 0.5 or "zarr.json" in name] or names)
    raw, way = file.read_bytes(), rng.randrange(9)
    if way == 0:
        file.write_bytes(raw[: rng.randrange(len(raw) + 1)])
    elif way == 1:
        place = rng.randrange(len(raw))
        file.write_bytes(raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :])
    elif way == 2:
        file.unlink()
        file.mkdir()
    elif way == 3:
        file.unlink()
        os.mkfifo(file)
    elif way == 4:
        file.unlink()
        file.symlink_to(rng.choice(["/dev/zero", "nowhere", ".", file.name]))
    elif way == 5:
        file.write_bytes(raw + rng.randbytes(9))
    elif file.suffix in (".json", ".jsonl"):
        lines = [json.loads(line) for line in raw.splitlines()] if file.suffix == ".jsonl" else [json.loads(raw)]
        line = rng.randrange(len(lines))
        lines[line] = changed(lines[line], rng)
        if file.suffix == ".jsonl":
            seal(path, [line if isinstance(line, dict) else json.dumps(line).encode() for line in lines])
            return
        file.write_text(json.dumps(lines[0]))
    if rng.random() < 0.6 and (path / manifest.MANIFEST).is_file() and file.name != manifest.MANIFEST:
        seal(path)


def changed(value, rng):
    """A JSON value in which one inner value is gone, or another."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.25:
            return {name: inner for name, inner in value.items() if name != key}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], *([changed(value[place], rng)] if rng.random() < 0.75 else []), *value[place + 1 :]]
    return rng.choice([None, True, 0, -1, 10**30, 1e400, 0.5, "", "../..", "\ud800", "x" * 99, [], {}, [[]], {"a": 1}])


def test_a_cache_changed_at_random_ends_in_success_or_in_a_message(whole, tmp_path):
    """400 changes; nothing hangs (a test takes ten minutes at most), and no error is of Python or another library."""
    outcomes = {"read": 0, "told": 0}
    for seed in range(400):
        path = Path(shutil.copytree(whole, tmp_path / f"{seed}.zarr"))
        mutate(path, random.Random(seed))
        try:
            verified, _, opened = looks(path)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        outcomes["told" if opened else "read"] += 1
        assert opened is None or verified is not None, f"seed {seed}: verify finds nothing, and {opened}"
        shutil.rmtree(path)
    assert outcomes["read"] > 10
    assert outcomes["told"] > 250


# ----------------------------------------------------------------------------------------- links and pipes


def test_a_pipe_or_a_device_in_place_of_a_chunk_is_told_and_waited_for_by_nobody(copy):
    group = c.open_cache(copy).groups["train"]
    for name in ("train/features/c/0/0/0", "train/labels/c/0", "zarr.json", manifest.MANIFEST):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        os.mkfifo(copy / name)
        if name.startswith("train/features"):
            with pytest.raises(CacheDamaged, match="has 0 bytes"):
                read_features(group)
        assert all(looks(copy)), name
        (copy / name).unlink()
        (copy / name).write_bytes(kept)
    assert not any(looks(copy))


def elsewhere(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    (folder / "zarr.json").write_text("mine")
    (folder / "0").write_text("mine")
    return folder


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["train", "train/features", "train/features/c", "train/features/c/0", "text"])
@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_a_link_in_place_of_a_folder_of_a_cache_is_never_written_through(copy, tmp_path, name, flag):
    folder = elsewhere(tmp_path)
    shutil.rmtree(copy / name)
    (copy / name).symlink_to(folder)
    with pytest.raises(CacheError, match="is a link: nothing is written there"):
        make(copy, **{flag: True})
    with pytest.raises(CacheError, match=f"these were not part of it and stay: {name}"):
        c.remove(copy)
    assert contents(folder) == {"zarr.json": "mine", "0": "mine"}


@pytest.mark.parametrize("name", ["zarr.json", manifest.MANIFEST, "train/features/c/0/1/0", "train/labels/c/0"])
def test_a_link_in_place_of_a_file_of_a_cache_goes_as_a_link(copy, tmp_path, name):
    target = tmp_path / "target"
    (copy / name).rename(target)
    (copy / name).symlink_to(target)
    before = target.read_bytes()
    read_all(copy)
    with pytest.raises(CacheError, match="is a link: nothing is written there"):
        make(copy, resume=True)
    make(copy, overwrite=True, classes=("eel", "fox"))
    assert not (copy / name).is_symlink()
    assert c.open_cache(copy).classes == ("eel", "fox")
    assert target.read_bytes() == before
    (copy / name).unlink()
    (copy / name).symlink_to(target)
    c.remove(copy)
    assert not copy.exists()
    assert target.read_bytes() == before


def test_of_a_link_to_a_cache_the_link_alone_is_removed_and_nothing_is_replaced_through_it(copy, tmp_path):
    link = tmp_path / "link.zarr"
    link.symlink_to(copy)
    with pytest.raises(CacheError, match=r"link.zarr is a link to .*copy.zarr, which is not replaced through it"):
        make(link, overwrite=True)
    result = invoke("cache", "rm", link, "--yes")
    assert f"removed the link {link}; the cache it led to stays: {copy}" in result.output
    assert not link.is_symlink()
    read_all(copy)


@pytest.mark.parametrize("mark", ['{"note": "my \\"fastltssl_cache\\" list"}', '"fastltssl_cache"', "{", "[]"])
def test_a_folder_is_a_cache_by_its_root_and_not_by_a_word_in_it(tmp_path, mark):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "zarr.json").write_text(mark)
    (folder / manifest.MANIFEST).write_text(mark)
    (folder / manifest.LOCK).write_text("{}")
    with pytest.raises(CacheError, match="is not a fastltssl cache"):
        c.remove(folder)
    with pytest.raises(CacheError, match="is not a fastltssl cache"):
        make(folder, overwrite=True)
    assert len(list(folder.iterdir())) == 3


def test_digits_deeper_than_a_chunk_lies_are_not_the_caches(copy):
    mine = copy / "train/features/c/0/0/5/2019/07"
    mine.parent.mkdir(parents=True)
    mine.write_text("holiday")
    with pytest.raises(CacheError, match="stay: train/features/c/0/0/5/2019/07"):
        c.remove(copy)
    assert mine.read_text() == "holiday"


# -------------------------------------------------------------------------- replaced while it is read, no room


def test_a_cache_replaced_or_removed_while_it_is_read_is_told_as_such(copy):
    cache = c.open_cache(copy)
    make(copy, overwrite=True, n=4)
    with pytest.raises(CacheError, match="was replaced, removed or is being written anew since it was opened"):
        read_features(cache.groups["train"])
    cache = c.open_cache(copy)
    c.remove(copy)
    with pytest.raises(CacheError, match="was replaced, removed"):
        read_features(cache.groups["train"])


def test_a_cache_replaced_by_an_equal_one_is_read_on(copy):
    cache = c.open_cache(copy)
    wanted = read_features(cache.groups["train"]).copy()
    make(copy, overwrite=True)
    np.testing.assert_array_equal(read_features(cache.groups["train"]), wanted)


FULL = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
import zarr, numpy
from pathlib import Path
from test_foreign import make
from fastltssl.errors import FastltsslError
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    make(Path({path!r}), n=200)
except FastltsslError as error:
    print(error)
"""


@pytest.mark.parametrize("size", [0, 100, 700, 1100, 3000])
def test_a_disk_that_takes_no_more_ends_in_a_line_with_the_path_and_the_rest_can_be_done_later(tmp_path, size):
    """A limit on the size of files stands for a full disk: a write takes a part, or fails."""
    path, tests = tmp_path / "full.zarr", str(Path(__file__).parents[1])
    script = FULL.format(root=str(ROOT), tests=f"{tests}/cache", path=str(path), size=size)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": tests},
    )
    assert done.returncode == 0, done.stderr
    assert f"{path}: " in done.stdout
    assert "File too large" in done.stdout
    make(path, n=200, resume=path.exists())
    assert looks(path) == [None] * 3


# ------------------------------------------------------------------------------------- what a new cache takes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cat"), "the names of classes 0 and 1, 'cat' and 'cat', are the same"),
        (("cat", " cat "), "but for spaces and the form of their letters are alike"),
        (("caf\u00e9", "cafe\u0301"), "but for spaces and the form of their letters are alike"),
        (("red  fox", "red fox"), "but for spaces"),
        (("cat", ""), "class 1 is named '', which is empty"),
        (("cat", "\t"), "class 1 is named '.t', which is empty"),
        (("cat", "a\nb"), "class 1 is named 'a.nb', which is not one line"),
        (("cat", "a\udcff"), "not UTF-8"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(tmp_path, names, message):
    with pytest.raises(CacheError, match=message):
        make(tmp_path / "x.zarr", classes=names)
    with pytest.raises(CacheError, match=message):
        import_features(tmp_path / "x.zarr", features=np.eye(2), labels=np.arange(2), classes=names)
    assert not (tmp_path / "x.zarr").exists()


def test_names_of_imagenet_and_names_with_control_characters_are_taken(tmp_path):
    from open_clip import IMAGENET_CLASSNAMES

    for place, names in enumerate((list(IMAGENET_CLASSNAMES), ["[red]cat[/]", "\x1b[31mdog"])):
        path = tmp_path / f"{place}.zarr"
        import_features(path, features=np.eye(2), labels=np.arange(2), classes=names)
        assert list(c.open_cache(path).classes) == names
    with pytest.raises(CacheError, match="'missile' and 'missile', are the same"):
        import_features(tmp_path / "x.zarr", features=np.eye(2), labels=np.arange(2), classes=["missile"] * 2)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e60])
def test_text_and_projection_of_any_length_keep_their_direction(tmp_path, scale):
    rng = np.random.default_rng(0)
    text, projection = rng.normal(size=(2, 1, 3)), rng.normal(size=(4, 3))
    make(tmp_path / "plain.zarr", text=text, projection=projection)
    make(tmp_path / "scaled.zarr", text=scale * text, projection=scale * projection)
    plain, scaled = (c.open_cache(tmp_path / f"{name}.zarr") for name in ("plain", "scaled"))
    np.testing.assert_allclose(
        scaled.projection / scaled.projection[0, 0], plain.projection / plain.projection[0, 0], 1e-5
    )
    for ours, theirs in zip(scaled.text[:, 0], plain.text[:, 0], strict=True):
        np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), 1e-5)
    np.testing.assert_array_equal(plain.text, text.astype("f4"))


def test_rows_without_a_direction_are_refused_when_they_are_stored(tmp_path):
    zero = np.ones((2, 1, 3)) * np.array([0, 1])[:, None, None]
    with pytest.raises(CacheError, match="text holds rows of zeros, which have no direction"):
        make(tmp_path / "x.zarr", text=zero)
    with pytest.raises(CacheError, match="projection holds rows of zeros"):
        make(tmp_path / "x.zarr", projection=np.zeros((4, 3)))
    group = {"train": layout.GroupSpec(tuple("abc"), np.zeros(3, int), ("center", "weak0"))}
    with create(tmp_path / "y.zarr", provenance={}, classes=["a"], groups=group, width=2) as writer:
        (block,) = writer.pending()
        x = np.ones((3, 2, 2), np.float32)
        x[1, 1] = [1e-9, 1e-9]
        with pytest.raises(CacheError, match=r"features of rows 1 are too small for float16 \(first: 1e-09\)"):
            writer.commit(block, x)
        x[1, 1], x[2, 0] = 1, 0
        with pytest.raises(CacheError, match="features of rows 2 are all zeros, which have no direction"):
            writer.commit(block, x)
        writer.commit(block, x, broken=[2])
        writer.close()
