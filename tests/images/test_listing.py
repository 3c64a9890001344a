"""Sources besides folders: lists, tars, ImageNet, hubs."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastltssl.errors import BrokenImage, SourceError
from fastltssl.images import open_source
from fastltssl.images.hub import from_splits
from fastltssl.images.tars import expanded


def png(red):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 7, 9)).save(file, "png")
    return file.getvalue()


def reds(images, rows):
    return [int(image[0, 0, 0]) for image in images.read(rows)]


# list:FILE.csv


@pytest.fixture
def listed(tmp_path):
    """A CSV of the given lines beside ten pictures, 0.png to 9.png, whose red is 20 times their number."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(png(20 * number))

    def write(*lines):
        (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
        return f"list:{tmp_path / 'set.csv'}"

    return write


def test_a_list_keeps_the_order_of_the_file_and_sorts_the_classes(listed):
    source = open_source(
        listed(
            "path,label,split", "3.png,owl,train", "1.png,cat,train", "5.png,cat,test", "2.png,,", "0.png,-1,unlabeled"
        )
    )
    assert source.classes == ("cat", "owl")
    train, test, unlabeled = (source.groups[name] for name in ("train", "test", "unlabeled"))
    assert (train.ids, train.labels.tolist()) == (("3.png", "1.png"), [1, 0])
    assert (test.ids, test.labels.tolist()) == (("5.png",), [0])
    assert (unlabeled.ids, unlabeled.labels.tolist()) == (("2.png", "0.png"), [-1, -1])
    assert reds(train, [1, 0]) == [20, 60]


def test_without_a_split_a_label_says_train_and_none_says_unlabeled_and_val_serves_as_test(listed):
    source = open_source(listed("path,label,split", "3.png,b,", "1.png,,", "4.png,a,val"))
    assert {name: group.ids for name, group in source.groups.items()} == {
        "train": ("3.png",), "test": ("4.png",), "unlabeled": ("1.png",),
    }  # fmt: skip
    assert set(open_source(listed("path,label", "3.png,b", "1.png,a")).groups) == {"train"}


def test_whole_numbers_are_spelt_out_by_a_file_of_class_names(listed, tmp_path):
    lines = ("path,label", "3.png,2", "1.png,0")
    assert open_source(listed(*lines)).classes == ("0", "1", "2")
    (tmp_path / "set.classes.txt").write_text("ant\nbee\ncow\n")
    source = open_source(listed(*lines))
    assert (source.classes, source.groups["train"].labels.tolist()) == (("ant", "bee", "cow"), [2, 0])


def test_the_fingerprint_of_a_list_follows_labels_and_sizes(listed, tmp_path):
    lines = ("path,label", "3.png,a", "1.png,b")
    known = open_source(listed(*lines)).fingerprint
    assert open_source(listed(*lines)).fingerprint == known
    assert open_source(listed("path,label", "3.png,b", "1.png,a")).fingerprint != known
    (tmp_path / "3.png").write_bytes(png(1) + b" ")
    assert open_source(listed(*lines)).fingerprint != known


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("file,label", "1.png,a"), "has no column 'path', only file, label"),
        (("path,label",), "has a header and no rows"),
        (("path,label,split", "1.png,a,dev"), "line 2: split 'dev' is not one of train, test, val, unlabeled"),
        (("path,label", "1.png,a", "x.png,a", "y.png,a"), r"line 3: no file 'x.png' \(2 of them are absent\)"),
        (("path,label,split", "1.png,,train"), "line 2: no label, but the split is train"),
        (("path,label,split", "1.png,a,test"), "has no row of the split train"),
        (("path,label", "1.png,a", "1.png,a"), "names '1.png' twice in train"),
    ],
)
def test_a_list_that_cannot_be_read_names_the_line(lines, message, listed):
    with pytest.raises(SourceError, match=message):
        open_source(listed(*lines))


def test_a_label_that_is_no_class_is_named(listed, tmp_path):
    (tmp_path / "set.classes.txt").write_text("ant\nbee\n")
    with pytest.raises(SourceError, match="line 3: label 'cow' is none of the 2 classes"):
        open_source(listed("path,label", "1.png,ant", "2.png,cow"))
    with pytest.raises(SourceError, match=r"is no file"):
        open_source(f"list:{tmp_path / 'none.csv'}")


# wds:PATTERN


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, raw in samples:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


@pytest.fixture
def tars(tmp_path):
    write_tar(
        tmp_path / "a-000.tar",
        [("x/5.png", png(50)), ("x/5.cls", b"2\n"), ("7.txt", b"?"), ("7.png", png(70)), ("7.json", b'{"label": 1}')],
    )
    write_tar(tmp_path / "a-001.tar", [("9.cls", b"0"), ("9.PNG", png(90))])
    return tmp_path


@pytest.mark.parametrize("pattern", ["a-{000..001}.tar", "a-*.tar", "a-{000,001}.tar"])
def test_tars_are_read_at_any_row_in_their_own_order(pattern, tars):
    source = open_source(f"wds:{tars}/{pattern}")
    train = source.groups["train"]
    assert train.ids == ("a-000.tar/x/5", "a-000.tar/7", "a-001.tar/9")
    assert train.labels.tolist() == [2, 1, 0]
    assert reds(train, [2, 0, 1]) == [90, 50, 70]
    assert source.classes == ("0", "1", "2")


def test_tars_of_other_groups_and_class_names_beside_them(tars):
    write_tar(tars / "u.tar", [("1.png", png(10))])
    (tars / "classes.txt").write_text("ant\nbee\ncow\n")
    source = open_source(f"wds:{tars}/a-000.tar,test={tars}/a-001.tar,unlabeled={tars}/u.tar")
    assert source.classes == ("ant", "bee", "cow")
    assert {name: group.labels.tolist() for name, group in source.groups.items()} == {
        "train": [2, 1], "test": [0], "unlabeled": [-1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("1.png", png(1))], "sample '1' has no label"),
        ([("1.png", png(1)), ("1.cls", b"one")], "cannot be read as an uncompressed tar"),
        ([("1.txt", b"a")], "hold no images"),
    ],
)
def test_a_tar_that_cannot_be_used_says_why(samples, message, tmp_path):
    write_tar(tmp_path / "b.tar", samples)
    with pytest.raises(SourceError, match=message):
        open_source(f"wds:{tmp_path}/b.tar")


def test_a_damaged_tar_and_a_pattern_without_tars_are_named(tars):
    (tars / "c.tar").write_bytes(b"no tar" * 400)
    with pytest.raises(SourceError, match=r"c\.tar cannot be read"):
        open_source(f"wds:{tars}/c.tar")
    with pytest.raises(SourceError, match="no tar fits"):
        open_source(f"wds:{tars}/z-*.tar")
    with pytest.raises(SourceError, match="'dev' is no group"):
        open_source(f"wds:dev={tars}/a-000.tar")


def test_a_broken_image_in_a_tar_is_named(tmp_path):
    write_tar(tmp_path / "d.tar", [("1.png", png(1)[:30]), ("1.cls", b"0")])
    images = open_source(f"wds:{tmp_path}/d.tar").groups["train"]
    with pytest.raises(BrokenImage, match=r"image 'd\.tar/1' cannot be decoded"):
        images.read([0])


def test_braces_expand_as_in_a_shell():
    assert expanded("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expanded("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]


# ImageNet


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's layout with three of its folders."""
    for split in ("train", "val"):
        for place, wnid in enumerate(("n01", "n02", "n03")):
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            (folder / "a.JPEG").write_bytes(png(10 * place))
    return tmp_path


def test_imagenet127_groups_folders_as_the_file_says(imagenet):
    (imagenet / "imagenet127.txt").write_text("n02 sea bird\nn01 fish\nn03 sea bird\n")
    source = open_source("imagenet127", root=imagenet)
    assert source.classes == ("sea bird", "fish")
    assert source.groups["train"].labels.tolist() == [1, 0, 0]
    assert source.groups["test"].ids == ("val/n01/a.JPEG", "val/n02/a.JPEG", "val/n03/a.JPEG")


def test_imagenet127_says_what_its_mapping_lacks(imagenet):
    with pytest.raises(SourceError, match=r"needs a mapping .* 'n01440764 fish'"):
        open_source("imagenet127", root=imagenet)
    (imagenet / "imagenet127.txt").write_text("n01 fish\nn02\n")
    with pytest.raises(SourceError, match=r"line 2: .* is not a WordNet id and a class name"):
        open_source("imagenet127", root=imagenet)
    (imagenet / "imagenet127.txt").write_text("n01 fish\n")
    with pytest.raises(SourceError, match=r"does not say the class of n02 \(2 folders"):
        open_source("imagenet127", root=imagenet)


def test_imagenet_wants_its_thousand_folders(imagenet, tmp_path):
    with pytest.raises(SourceError, match="holds 3 classes, not 1000"):
        open_source("imagenet", root=imagenet)
    with pytest.raises(SourceError, match="ImageNet cannot be downloaded for you"):
        open_source("imagenet", root=tmp_path / "nowhere")


# hf:NAME


class ClassLabel:
    names = ("sea_bird", "fish")


def test_a_hub_set_gives_its_columns_and_splits():
    """The library stays outside: a split behaves as its Dataset does, with rows, columns and features."""

    class Split:
        def __init__(self, labels):
            self.features = {"img": type("Image", (), {})(), "kind": ClassLabel()}
            self.rows = [{"img": Image.new("L", (2, 2), 30 * label), "kind": label} for label in labels]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, key):
            return self.rows[key] if isinstance(key, int) else [row[key] for row in self.rows]

    source = from_splits("hf:birds", {"train": Split([1, 0, 1]), "validation": Split([0])})
    assert source.classes == ("sea bird", "fish")
    assert source.groups["train"].labels.tolist() == [1, 0, 1]
    assert source.groups["test"].ids == ("validation/0000000",)
    assert [image.shape for image in source.groups["train"].read([0])] == [(2, 2, 3)]
    assert np.unique(source.groups["train"].read([2])[0]).tolist() == [30]
    with pytest.raises(SourceError, match="has no split train, only test"):
        from_splits("hf:birds", {"test": Split([0])})


def test_the_hub_without_its_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SourceError, match=r'pip install "fastltssl\[data\]"'):
        open_source("hf:birds")
