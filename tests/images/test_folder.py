"""Folders of images as they come: how groups are spelt, what is left out, what is there twice, odd names."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastltssl.commands.cli import cli
from fastltssl.encoder.extraction import Extraction, file_stem
from fastltssl.errors import SourceError
from fastltssl.images import open_source
from fastltssl.images.folder import open_images


def draw(folder, count=2, suffix="png"):
    """Small pictures 0.png, 1.png, ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (5, 4), (40 * number, 7, 9)).save(folder / f"{number}.{suffix}", "PNG")


def opened(top):
    return open_source(f"folder:{top}")


def sizes(source):
    return {name: len(images.ids) for name, images in source.groups.items()}


def noted(source, text):
    """Whether a note of the source holds a text."""
    return any(text in note for note in source.notes)


@pytest.mark.parametrize(("train", "test", "pool"), [
    ("train", "test", "unlabeled"), ("Train", "TEST", "Unlabelled"), ("training", "valid", "unlabelled"),
    ("TRAIN", "Validation", "UNLABELED"), ("train", "val", "unlabeled"), ("Training", "testing", "unlabeled"),
])  # fmt: skip
def test_groups_are_found_however_their_folders_are_spelt(tmp_path, train, test, pool):
    for kind in ("cat", "dog"):
        draw(tmp_path / train / kind, 3)
        draw(tmp_path / test / kind, 2)
    draw(tmp_path / pool / "any", 5)
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert sizes(source) == {"train": 6, "test": 4, "unlabeled": 5}
    assert source.groups["test"].ids[0] == f"{test}/cat/0.png"
    assert source.notes == ()


def test_a_pool_beside_the_class_folders_is_no_class(tmp_path):
    for kind, count in (("cat", 3), ("dog", 2), ("unlabelled", 4)):
        draw(tmp_path / kind, count)
    source = opened(tmp_path)
    assert (source.classes, sizes(source)) == (("cat", "dog"), {"train": 5, "unlabeled": 4})


def test_a_pool_among_the_class_folders_of_train_is_no_class(tmp_path):
    for kind, count in (("cat", 3), ("dog", 2), ("Unlabelled", 4)):
        draw(tmp_path / "train" / kind, count)
    for kind in ("cat", "dog"):
        draw(tmp_path / "val" / kind)
    source = opened(tmp_path)
    assert (source.classes, sizes(source)) == (("cat", "dog"), {"train": 5, "test": 4, "unlabeled": 4})
    assert not source.notes


def test_what_is_in_no_group_is_named_and_counted(tmp_path):
    for kind in ("cat", "dog"):
        draw(tmp_path / "train" / kind)
        draw(tmp_path / "test" / kind)
        draw(tmp_path / "val" / kind, 4)
    draw(tmp_path / "extra", 3)
    draw(tmp_path, 1)
    (tmp_path / "annotations").mkdir()
    source = opened(tmp_path)
    assert sizes(source) == {"train": 4, "test": 4}
    assert noted(source, f"images of val/ (8), extra/ (3), {tmp_path}/* (1). Groups are")
    flat = opened(tmp_path / "train")
    draw(tmp_path / "train", 6)
    assert not flat.notes
    assert noted(opened(tmp_path / "train"), "left out, as they are in no class folder: images of")
    assert noted(opened(tmp_path), "train/* (6)")


def test_a_flat_test_folder_beside_train_is_told(tmp_path):
    draw(tmp_path / "train" / "cat")
    draw(tmp_path / "test", 5)
    assert noted(opened(tmp_path), "images of test/ (5)")


def test_groups_without_classes_are_refused_and_a_class_of_such_a_name_is_told(tmp_path):
    draw(tmp_path / "Train")
    draw(tmp_path / "Test")
    with pytest.raises(SourceError, match="holds Test/, Train/ without class folders in them"):
        opened(tmp_path)
    draw(tmp_path / "bus")
    assert noted(opened(tmp_path), "Test has no class folders in it, so it is taken as a class called Test")


def test_groups_of_another_name_are_told(tmp_path):
    for top in ("set_a", "set_b"):
        for kind in ("cat", "dog"):
            draw(tmp_path / top / kind)
    source = opened(tmp_path)
    assert noted(source, "set_a, set_b holds folders of the same names: cat, dog. If these are the classes")
    for kind in ("n01", "n02"):  # one folder for the images of each class is usual
        draw(tmp_path / "plain" / kind / "images")
    assert not opened(tmp_path / "plain").notes


def test_files_that_are_no_images_are_counted_by_suffix_and_jfif_is_read(tmp_path):
    draw(tmp_path / "cat")
    draw(tmp_path / "dog", suffix="jfif")
    for name in ("a.heic", "b.HEIC", "c.txt", "README", ".hidden.txt"):
        (tmp_path / "dog" / name).write_bytes(b"?")
    source = opened(tmp_path)
    assert sizes(source) == {"train": 4}
    assert noted(
        source,
        "train: files that are not read as images, 4, by suffix: .heic (2), .txt (1), without a suffix (1). Read",
    )
    for path in (tmp_path / "dog").glob("*.jfif"):
        path.unlink()
    with pytest.raises(SourceError, match=r"no images in class folder dog, only \.heic \(2\)"):
        opened(tmp_path)
    assert noted(open_images(tmp_path), ".heic (2)")


def test_pipes_sockets_devices_and_loops_are_no_images(tmp_path, monkeypatch):
    draw(tmp_path / "cat")
    draw(tmp_path / "dog")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "cat" / "loop.png").symlink_to("loop.png")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "dog" / "up").symlink_to("..")
    monkeypatch.chdir(tmp_path / "dog")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        source = opened(tmp_path)
        with pytest.raises(SourceError, match="neither a folder nor a regular file"):
            open_images(Path("s.png"))
    assert [name for name in source.groups["train"].ids if not name.startswith("dog/up")] == [
        "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png",
    ]  # fmt: skip
    assert noted(source, "no regular file (")
    with pytest.raises(SourceError, match="neither a folder nor a regular file"):
        open_images(Path("/dev/zero"))


def test_a_file_reached_twice_is_told(tmp_path):
    for kind in ("train/cat", "train/dog", "test/cat", "test/dog"):
        draw(tmp_path / kind)
    assert not opened(tmp_path).notes
    (tmp_path / "train" / "dog" / "link.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    (tmp_path / "test" / "dog" / "seen.png").symlink_to(tmp_path / "train" / "dog" / "1.png")
    source = opened(tmp_path)
    assert noted(source, "train: files that are there under two names (links), 1: train/cat/0.png = train/dog/link.png")
    assert noted(source, "files that are in both train and test, 1: train/dog/1.png = test/dog/seen.png")


@pytest.mark.parametrize("names", [("a_b", "a b"), (" ", "cat")])
def test_class_names_that_are_the_same_or_empty_are_refused(tmp_path, names):
    for name in names:
        draw(tmp_path / name)
    with pytest.raises(SourceError, match=r"two classes of .* are called 'a b'|has an empty name"):
        opened(tmp_path)


def test_class_names_that_a_tokenizer_reads_alike_are_told(tmp_path):
    for name in ("Cat", "cat", "dog"):
        draw(tmp_path / name)
    assert noted(opened(tmp_path), "classes 'Cat' and 'cat' differ in case")


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png"])
def test_a_name_that_no_cache_can_hold_is_refused_at_once(tmp_path, name):
    for kind in ("cat", "dog"):
        draw(tmp_path / kind)
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/" + name)
    for reads in (opened, open_images):
        with pytest.raises(SourceError, match=r"name 'cat/.*\\.*' is not UTF-8 or holds a newline. Rename the file"):
            reads(tmp_path)
    draw(tmp_path / "groups" / "train" / "cat")
    draw(tmp_path / "groups" / os.fsdecode(b"d\xf6g"))
    assert noted(opened(tmp_path / "groups"), r"images of d\udcf6g/ (2)")  # can be printed
    os.rename(tmp_path / "dog", os.fsencode(tmp_path) + b"/d\xf6g")
    with pytest.raises(SourceError, match=r"'d\\udcf6g' is not UTF-8"):
        opened(tmp_path)


def test_caches_and_runs_inside_the_data_are_no_classes(tmp_path):
    for kind in ("cat", "dog"):
        draw(tmp_path / kind)
    for name in ("cache/set.zarr/zarr.json", "cache/new.zarr/fastltssl.lock", "runs/first/head.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    draw(tmp_path / "runs" / "first")  # a report's pictures
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert noted(source, "cache holds caches or runs")


@pytest.mark.parametrize(("dataset", "stem"), [
    ("folder:.", "pets"), ("folder:./", "pets"), ("folder:cat/..", "pets"), ("folder:./cat", "cat"),
    ("folder:/", "folder"), ("folder:../pets/", "pets"), ("list:./x/set.csv", "set"), ("cifar10", "cifar10"),
])  # fmt: skip
def test_a_cache_is_called_as_the_folder_it_is_of(tmp_path, monkeypatch, dataset, stem):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert file_stem(dataset) == stem
    assert Extraction(model="tiny", dataset=dataset).path.name == f"{stem}_tiny.zarr"


def test_a_path_may_begin_with_home_and_a_folder_of_the_very_name_wins(tmp_path, monkeypatch):
    draw(tmp_path / "home" / "pets" / "cat", 1)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert sizes(open_source("folder:~/pets")) == {"train": 1}
    for name in ("~", "a=b", "[x]*?", "{1,2}"):
        draw(tmp_path / name / "pets" / "cat", 2)
        assert sizes(open_source(f"folder:./{name}/pets")) == {"train": 2}
    for name in ("~nobody-here/pets", "x" * 5000, "a\0b", "~" * 5000):
        for kind in ("folder:", "list:", "wds:", ""):
            with pytest.raises(SourceError, match=r"is not a folder|is no file|no tar fits|is unknown") as error:
                open_source(f"{kind}{name}")
            assert len(str(error.value)) < 1000


def test_extract_tells_what_was_left_out_and_predict_does_too(tmp_path, monkeypatch):
    draw(tmp_path / "pets" / "cat")
    draw(tmp_path / "pets" / "dog")
    (tmp_path / "pets" / "dog" / "a.heic").write_bytes(b"?")
    monkeypatch.chdir(tmp_path / "pets")
    line = ["extract", "--model", "tiny", "--dataset", "folder:.", "--views", "center", "--json"]
    for out in ((), ("--out", "../other.zarr")):  # the cache of the first call lies inside the data
        result = CliRunner().invoke(cli, [*line, *out])
        assert result.exit_code == 0, result.exception
        assert "train: files that are not read as images, 1, by suffix: .heic (1)" in result.output
        assert '"notes": ["' in result.output
    assert [path.name for path in Path("cache").iterdir()] == ["pets_tiny.zarr"]
    train = ["train", "probe", "--cache", "../other.zarr", "--steps", "2", "--eval", "all", "--out", "../run"]
    assert CliRunner().invoke(cli, train).exit_code == 0
    result = CliRunner().invoke(cli, ["predict", "../run", "dog", "--out", "../p.csv"])
    assert result.exit_code == 0, result.exception
    assert "'dog': files that are not read as images, 1, by suffix: .heic (1)" in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    draw(tmp_path / "cat" / "deep")
    (tmp_path / "cat" / "deep").chmod(0)
    with pytest.raises(SourceError, match="cannot be read"):
        opened(tmp_path)


def test_what_pillow_warns_of_stays_out_of_the_terminal(tmp_path):
    """Palette images with transparency and very large ones: read without lines of another library."""
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    (tmp_path / "cat").mkdir()
    picture.save(tmp_path / "cat" / "p.png", transparency=b"\0\x80")
    Image.new("1", (9500, 9500)).save(tmp_path / "cat" / "q.png")
    code = (
        "import sys; from fastltssl.images import open_source; "
        "a, b = open_source(f'folder:{sys.argv[1]}').groups['train'].read([0, 1]); print(a[0, 0].tolist(), b.shape)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[40, 50, 60] (9500, 9500, 3)\n", "")


def test_the_labels_of_an_unlabelled_pool_are_none(tmp_path):
    draw(tmp_path / "train" / "cat")
    draw(tmp_path / "unlabeled", 3)
    assert np.array_equal(opened(tmp_path).groups["unlabeled"].labels, [-1, -1, -1])
