"""Files of features that others saved: what is told of them, and what of them is stored."""

import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from shell import invoke

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.imports import import_features, import_file, load_arrays
from fastltssl.cache.reader import read_features
from fastltssl.errors import CacheError, FastltsslError

X, Y = np.random.default_rng(0).normal(size=(12, 4)).astype("f4"), np.arange(12) % 3


def imported(path, **changes):
    return import_features(path, **({"features": X, "labels": Y} | changes))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y.astype("f4"), r"labels must be 12 whole numbers, got float32 \[12\], such as .*0.0.*save the labels as int"),
        (Y.astype(str), r"got <U21 \[12\], such as .*'0'.*Number the classes from 0 and save the labels as integers"),
        (np.array(["cat", "dog", "elk"])[Y], r"such as .*'cat'.*class names are given with --classes"),
        (np.array(["cat", "dog", "elk"], object)[Y], r"got object \[12\]"),
        (Y > 0, r"got bool \[12\]"),
        (Y - 2, r"labels run from -2 to 0; accepted for 3 classes: 0 to 2, or -1 for none"),
        (Y + 1, r"labels run from 1 to 3; accepted for 3 classes.*numbered from 1\? Then subtract 1"),
        (Y.astype("u8") + np.uint64(2**63), r"labels run from 9223372036854775808 to"),
        (np.full(12, -2), "labels run from -2 to -2"),
    ],
)
def test_labels_that_are_no_numbers_of_the_classes_are_told_with_what_to_do(tmp_path, labels, message):
    with pytest.raises(CacheError, match=message):
        imported(tmp_path / "x.zarr", labels=labels, classes=["cat", "dog", "elk"])
    assert not (tmp_path / "x.zarr").exists()


def test_labels_numbered_from_1_that_do_not_fit_the_text_are_told_as_such(tmp_path):
    with pytest.raises(CacheError, match=r"labels run from 1 to 3; accepted for 3 classes.*numbered from 1\?"):
        imported(tmp_path / "x.zarr", labels=Y + 1, text=np.eye(3, 4))


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        ({"labels": Y + 1}, ["no train row has the label 0 (class 0). If the labels are numbered from 1, subtract 1"]),
        ({"labels": Y * 2}, ["no train row has the label 1 (class 1), 3 (class 3)"]),
        ({"classes": list("abcd")}, ["no train row has the label 3 (d)"]),
        ({"labels": Y - 1}, [
            "no train row has the label 2 (c)",
            "4 train rows have no label (-1): they can be trained on as unlabelled rows alone",
        ]),
        ({"test_features": X, "test_labels": Y - 1}, ["4 test rows have no label (-1): they are not evaluated"]),
    ],
)  # fmt: skip
def test_gaps_and_missing_labels_are_noted_when_features_are_imported(tmp_path, changes, notes):
    named = {"classes": list("abc")} if changes.get("labels") is None or "classes" in changes else {}
    named = {"classes": list("abc")} if notes and "(c)" in notes[0] else named
    _, *lines = imported(tmp_path / "x.zarr", **(named | changes)).splitlines()
    assert lines == [f"note: {note}" for note in notes]


def test_the_command_shows_the_notes(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y + 1)
    out = tmp_path / "a.zarr"
    result = invoke("cache", "import", tmp_path / "a.npz", "--features", "x", "--labels", "y", "--out", out)
    assert "note: no train row has the label 0" in result.output.replace("\n", " ")


def test_names_in_another_encoding_are_told_by_class_and_what_they_read_in_latin_1(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y, c=np.array([b"cat", b"caf\xe9", b"elk"]), d=np.array([b"caf\xc3\xa9"] * 3))
    with pytest.raises(CacheError, match=r"that of class 1, b'caf.xe9', is not UTF-8 \(in Latin-1 it reads 'café'\)"):
        import_file(tmp_path / "a.npz", tmp_path / "x.zarr", features="x", labels="y", classes="c")
    with pytest.raises(CacheError, match="the names of classes 0 and 1, 'café' and 'café', are the same"):
        import_file(tmp_path / "a.npz", tmp_path / "x.zarr", features="x", labels="y", classes="d")


def test_names_from_a_column_of_a_table_are_taken(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": X.tolist(), "y": Y}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"name": ["cat", "dog", "elk"]}), tmp_path / "names.parquet")
    keys = {"features": "x", "labels": "y", "classes": "names.parquet:name"}
    import_file(tmp_path / "a.parquet", tmp_path / "x.zarr", **keys)
    assert open_cache(tmp_path / "x.zarr").classes == ("cat", "dog", "elk")


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_logit_scale_that_ranks_nothing_is_refused(tmp_path, scale):
    with pytest.raises(CacheError, match=r"--logit-scale .* is not above 0; CLIP's is 100"):
        imported(tmp_path / "x.zarr", logit_scale=float(scale))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_told(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.save(tmp_path / "x.npy", -X)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    parquet.write_table(pa.table([Y, Y, Y], names=["y", "y", "z"]), tmp_path / "a.parquet")
    for name, key in (("a.npz", "x"), ("a.parquet", "y")):
        with pytest.raises(CacheError, match=f"{name} holds two arrays '{key}'. Give each array a name of its own"):
            load_arrays(tmp_path / name, [key])
    assert list(load_arrays(tmp_path / "a.npz", ["y"])) == ["y"]
    assert list(load_arrays(tmp_path / "a.parquet", ["z"])) == ["z"]


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


def test_pickled_objects_are_refused_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.array([Evil()], object))
    np.save("x.npy", np.array([Evil()], object))
    for name in ("a.npz", "x.npy"):
        with pytest.raises(CacheError, match=f"{name} cannot be read: .*Objects and bfloat16 must be saved as numbers"):
            load_arrays(name, ["x"])
    assert not Path("was-run").exists()


def test_bfloat16_and_pipes_are_told(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.ones(3, 2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(CacheError, match=r"b.safetensors cannot be read: .*bfloat16 must be saved as numbers"):
        load_arrays(tmp_path / "b.safetensors", ["x"])
    os.mkfifo(tmp_path / "p.npz")
    with pytest.raises(CacheError, match=r"p.npz is no regular file"):
        load_arrays(tmp_path / "p.npz", ["x"])
    with pytest.raises(CacheError, match=r"q.npz is not there"):
        load_arrays(tmp_path / "q.npz", ["x"])


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1, 6e4])
def test_features_of_every_type_and_length_keep_their_direction(tmp_path, kind, scale):
    x = (scale * X / np.abs(X).max(axis=1, keepdims=True)).astype(kind)
    imported(tmp_path / "x.zarr", features=x)
    stored = read_features(open_cache(tmp_path / "x.zarr").groups["train"])[:, 0].astype("f8")
    given = x.astype("f8")
    cosines = (stored * given).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(given, axis=1)
    assert cosines.min() > 1 - 1e-6


def test_files_changed_at_random_are_read_or_told(tmp_path):
    """150 changes of bytes, in files of every kind."""
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save_file

    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez_compressed(tmp_path / "b.npz", x=X, y=Y)
    save_file({"x": X, "y": Y}, tmp_path / "a.safetensors")
    parquet.write_table(pa.table({"x": X.tolist(), "y": Y}), tmp_path / "a.parquet")
    np.save(tmp_path / "x.npy", X)
    raws = {file: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    told = 0
    for seed in range(150):
        rng = random.Random(seed)
        file, raw = rng.choice(list(raws.items()))
        changed = bytearray(raw)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.choice([rng.randrange(len(raw)), rng.randrange(80), -rng.randrange(1, 200)])] = rng.randrange(
                256
            )
        file.write_bytes(changed[: rng.choice([len(raw), rng.randrange(len(raw))])])
        try:
            load_arrays(file, ["x"])
        except FastltsslError:
            told += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {file.name}") from error
        file.write_bytes(raw)
    assert told > 50
    shutil.rmtree(tmp_path)
