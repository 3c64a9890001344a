"""Lists and tars as they come: what is incomplete, there twice, oddly named or numbered, in another encoding."""

import contextlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastltssl.errors import BrokenImage, SourceError
from fastltssl.images import open_source
from fastltssl.images.hub import from_splits
from fastltssl.images.listing import class_names, text_of
from fastltssl.images.source import check_ids, sealed


def png(red=1):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 7, 9)).save(file, "png")
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def samples(count, labels=None):
    """Members of so many samples 0, 1, ... with their labels, in turns 0 and 1."""
    labels = [number % 2 for number in range(count)] if labels is None else labels
    return [
        member
        for number, label in enumerate(labels)
        for member in ((f"{number}.png", png(number)), (f"{number}.cls", f"{label}".encode()))
    ]


def noted(source, text):
    return any(text in note for note in source.notes)


@pytest.fixture
def listed(tmp_path):
    """A CSV of the given text beside the pictures 0.png to 4.png."""
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))

    def write(text, encoding="utf-8"):
        (tmp_path / "set.csv").write_bytes(text.encode(encoding) if isinstance(text, str) else text)
        return f"list:{tmp_path / 'set.csv'}"

    return write


# Lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\n\r\n", "\n , \n"])
def test_a_list_is_read_in_every_encoding_that_it_tells(listed, tmp_path, encoding, end):
    source = open_source(listed(end.join(("path,label", "0.png,café", "1.png,owl", "")), encoding))
    assert source.classes == ("café", "owl")
    (tmp_path / "set.classes.txt").write_bytes("owl\r\ncafé\r\n\n \n".encode(encoding))
    assert open_source(f"list:{tmp_path / 'set.csv'}").groups["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(("raw", "message"), [
    ("path,label\n0.png,café\n".encode("latin-1"), r"line 2: byte 0xe9 is not UTF-8, which may be Latin-1: 'é' there"),
    ("path,label\n0.png,cat\n".encode("utf-16-le"), r"holds zero bytes, as UTF-16 without a byte order mark does. Sa"),
    (b"path,label\n0.png,cat,dog\n", r"line 2: 3 fields, but the header has 2. A path with a comma stands in quotes"),
    (b"path,label\n0.png\n", r"line 2: fewer fields, but the header has 2"),
    (b"path,label,label\n0.png,a,b\n", r"has two columns 'label'"),
    (b'path,label\n0.png,"cat\n1.png,dog\n', r"cannot be read as CSV \(unexpected end of data\)"),
    (b"path,label\n0.png," + b"x" * 200_000 + b"\n", r"line 2 cannot be read as CSV \(field larger than"),
    (b"path,label\n" + b"x" * 5000 + b".png,a\n", r"line 2: no file 'x{20,}\.\.\. \(5,0\d\d characters\)"),
    (b"path,label\n0.png," + b"x" * 5000 + b"\n", r"class name 'x+\.\.\. .* is too long: 1000 characters"),
    (b"", r"has no column 'path', only none"),
])  # fmt: skip
def test_a_list_that_cannot_be_read_says_what_to_do(listed, raw, message):
    with pytest.raises(SourceError, match=message) as error:
        open_source(listed(raw))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("second", ["0.png", "./0.png", "sub/../0.png", ".//0.png", "ABSOLUTE", "link.png"])
def test_a_file_that_a_list_names_twice_is_refused(listed, tmp_path, second):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.png").symlink_to("0.png")
    second = str(tmp_path / "0.png") if second == "ABSOLUTE" else second
    with pytest.raises(SourceError, match=r"names '.* twice in train: in lines 2 and 4"):
        open_source(listed(f"path,label\n0.png,a\n1.png,b\n{second},b\n"))
    shared = open_source(listed(f"path,label,split\n0.png,a,train\n1.png,b,\n{second},a,test\n2.png,b,test\n"))
    assert noted(shared, f"files that are in both train and test, 1: 0.png = {second}")


def test_hard_links_are_told(listed, tmp_path):
    os.link(tmp_path / "0.png", tmp_path / "twin.png")
    source = open_source(listed("path,label\n0.png,a\ntwin.png,a\n1.png,b\n"))
    assert noted(source, "train: files that are there under two names (links), 1: 0.png = twin.png")


def test_what_is_no_regular_file_is_refused(listed, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "set.classes.txt")
    name = listed("path,label\npipe.png,a\n")
    with pytest.raises(SourceError, match=r"set\.classes\.txt is no regular file"):
        open_source(name)
    (tmp_path / "set.classes.txt").unlink()
    with pytest.raises(SourceError, match=r"no file 'pipe\.png'"):
        open_source(name)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SourceError, match=r"pipe\.csv is no file"):
        open_source(f"list:{tmp_path}/pipe.csv")


def test_splits_may_be_spelt_otherwise_and_rows_that_are_left_out_are_counted(listed):
    text = "path,label,split\n0.png,a,TRAIN\n1.png,b,training\n2.png,a,Valid\n3.png,a,validation\n4.png,,Unlabelled\n"
    source = open_source(listed(text))
    assert {name: len(images.ids) for name, images in source.groups.items()} == {"train": 2, "test": 2, "unlabeled": 1}
    assert noted(source, "test has no image of 1 of 2 classes: 1 ('b')")
    source = open_source(listed(text.replace("2.png,a,Valid", "2.png,a,Test")))
    assert source.groups["test"].ids == ("2.png",)
    assert noted(source, "left out, as there is a split test: rows of the split val (1)")


def test_labels_that_leave_classes_without_an_image_are_told(listed, tmp_path):
    source = open_source(listed("path,label\n0.png,1\n1.png,2\n2.png,5\n"))
    assert noted(source, "train has no image of 3 of 6 classes: 0, 3, 4. Training needs images of every class. "
                         "Labels run from 1, and classes are numbered from 0")  # fmt: skip
    (tmp_path / "set.classes.txt").write_text("ant\nbee\n")
    with pytest.raises(SourceError, match=r"line 3: label '2' is none of the 2 classes. Numbers run from 0 to 1"):
        open_source(listed("path,label\n0.png,1\n1.png,2\n"))
    assert noted(open_source(listed("path,label\n0.png,1\n")), "train has no image of 1 of 2 classes: 0 ('ant')")
    assert not open_source(listed("path,label\n0.png,1\n1.png,0\n")).notes


@pytest.mark.parametrize(("labels", "text"), [
    (("0.0", "1.0", "10.0"), "labels such as '0.0' are taken as class names, in the order of text"),
    (("3", "cat", "dog"), "labels such as '3' are taken as class names"),
    (("-2", "0", "1"), "labels such as '-2' are taken as class names"),
])  # fmt: skip
def test_numbers_that_are_taken_as_names_are_told(listed, labels, text):
    source = open_source(listed("path,label\n" + "".join(f"{k}.png,{label}\n" for k, label in enumerate(labels))))
    assert source.classes == tuple(sorted(labels))
    assert noted(source, text)


def test_a_class_name_that_is_a_number_of_another_class_is_told(listed, tmp_path):
    (tmp_path / "set.classes.txt").write_text("1\n0\n")
    source = open_source(listed("path,label\n0.png,1\n1.png,0\n"))
    assert source.groups["train"].labels.tolist() == [0, 1]
    assert noted(source, "label 0 is taken as the class of that name in set.classes.txt, not as its number")


@pytest.mark.parametrize("label", ["100000", "9" * 30, "9" * 5000])
def test_labels_that_would_make_too_many_classes_are_refused(listed, label):
    with pytest.raises(SourceError, match=r"is too large, at most 100,000 classes"):
        open_source(listed(f"path,label\n0.png,{label}\n"))


@pytest.mark.parametrize(("text", "message"), [
    ("cat\n\ndog\n", r"line 2 is empty, and line 2 names class 1"), ("cat\ndog\ncat\n", "names 'cat' in two lines"),
    ("\n\n", "line 1 is empty"), ("", "line 1 is empty"),
])  # fmt: skip
def test_class_names_that_are_empty_or_there_twice_are_refused(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(SourceError, match=message):
        class_names(tmp_path / "classes.txt")
    write_tar(tmp_path / "a.tar", samples(2))
    with pytest.raises(SourceError, match=message):
        open_source(f"wds:{tmp_path}/a.tar")


def test_a_list_may_lie_below_home_and_hold_any_letter(listed, tmp_path, monkeypatch):
    listed("path,label\n0.png,a\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("list:~/set.csv").classes == ("a",)
    (tmp_path / "[a]=b,{c}.csv").write_text("path,label\n[0]=a.png,b\n")
    (tmp_path / "[0]=a.png").write_bytes(png())
    assert open_source(f"list:{tmp_path}/[a]=b,{{c}}.csv").classes == ("b",)


# Tars


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "{000,001,002,003}.tar", "0{00..03}.tar"])
def test_missing_shards_are_named(tmp_path, pattern):
    write_tar(tmp_path / "000.tar", samples(2))
    with pytest.raises(
        SourceError, match=r"no tar fits 3 of the 4 tars of .*/001\.tar, .*/002\.tar, .*/003\.tar\. Fetch"
    ):
        open_source(f"wds:{tmp_path}/{pattern}")


def test_a_tar_that_breaks_off_anywhere_is_refused(tmp_path):
    """Cut at every length, a tar is the whole one (its end mark is there) or an error, and never a part of it."""
    whole = write_tar(tmp_path / "a.tar", samples(3, labels=[0, 1, 2])).read_bytes()
    ids = open_source(f"wds:{tmp_path}/a.tar").groups["train"].ids
    end = whole.rindex(b"2") // 512 * 512 + 512  # of the last member, whose content is one digit
    assert not whole[end:].strip(b"\0")
    cuts = [0, 1, 511, 512, 600, 1024, 1300, 2048, *range(end - 700, end, 100), end - 512, end - 1, end, end + 1,
            end + 512, end + 1023]  # fmt: skip
    for cut in cuts:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"a\.tar (cannot be read|breaks off at byte|is damaged, cut)"):
            open_source(f"wds:{tmp_path}/a.tar")
    for cut in (end + 1024, len(whole)):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        assert open_source(f"wds:{tmp_path}/a.tar").groups["train"].ids == ids


def test_a_tar_with_more_behind_its_end_or_a_damaged_header_is_refused(tmp_path):
    whole = write_tar(tmp_path / "a.tar", samples(3)).read_bytes()
    hurt = bytearray(whole)
    hurt[whole.index(b"1.png")] ^= 1  # the checksum of this header no longer fits
    for raw in (whole + whole, bytes(hurt), whole[:1024] + b"junk" * 128 + whole[1536:]):
        (tmp_path / "a.tar").write_bytes(raw)
        with pytest.raises(SourceError, match=r"a\.tar (cannot be read|is damaged, cut or joined)"):
            open_source(f"wds:{tmp_path}/a.tar")


def test_members_that_are_not_read_are_counted(tmp_path):
    dotted = [(f"photo.v{k}.{kind}", raw) for k in range(3) for kind, raw in (("png", png()), ("cls", b"0"))]
    apple = [("._0.png", b"?"), ("7.heic", b"?"), ("7.cls", b"1"), ("8.cls", b"1"), ("README", b"?")]
    write_tar(tmp_path / "a.tar", samples(5) + dotted + apple)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert len(source.groups["train"].ids) == 5
    assert noted(source, "train: members that are not read, 9, by their ending: .")
    assert noted(source, ".v0.cls (1), ")
    assert noted(source, "train: left out, as they have no image: samples a.tar/photo, ")
    write_tar(tmp_path / "a.tar", dotted)
    with pytest.raises(SourceError, match=r"hold no images \(.*; members that are not read, 6, by their ending: \.v0"):
        open_source(f"wds:{tmp_path}/a.tar")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, raw in samples(2):
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    assert noted(open_source(f"wds:{tmp_path}/a.tar"), "links, sparse files and the like (1)")


@pytest.mark.parametrize(("more", "message"), [
    ([("0.png", png())], "holds '0.png' twice"), ([("./0.png", png())], "holds './0.png' twice"),
    ([("x//1.png", png()), ("x/1.png", png())], "holds 'x/1.png' twice"),
    ([("0.jpg", png())], "sample '0' has two images, '0.png' and '0.jpg'"),
    ([("0.CLS", b"1")], r"sample '0' has two members \.cls"),
])  # fmt: skip
def test_a_key_that_stands_for_two_images_is_refused(tmp_path, more, message):
    write_tar(tmp_path / "a.tar", samples(2) + more)
    with pytest.raises(SourceError, match=message):
        open_source(f"wds:{tmp_path}/a.tar")


def test_a_tar_or_a_group_that_is_named_twice_is_refused(tmp_path):
    for name in ("a/0.tar", "b/0.tar", "c/1.tar"):
        write_tar(tmp_path / name, samples(2))
    (tmp_path / "l.tar").symlink_to("c/1.tar")
    for text, message in (
        ("{top}/{{a,a}}/0.tar", "names the tar .*a/0.tar twice"), ("{top}/{{c/1,l}}.tar", "names the tar .* twice"),
        ("{top}/a/0.tar,{top}/c/1.tar", "names the group train twice"),
        ("{top}/a/0.tar,test={top}/c/1.tar,val={top}/c/1.tar", "names the group test twice"),
        ("{top}/{{a,b}}/0.tar", "two images have the id '0.tar/0'"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=message):
            open_source("wds:" + text.format(top=tmp_path))


def test_pools_of_img2dataset_are_read_and_cls_decides_beside_metadata(tmp_path):
    meta = json.dumps({"caption": "x", "url": "u", "status": "success"}).encode()
    pool = [member for k in range(4) for member in ((f"{k}.png", png()), (f"{k}.txt", b"x"), (f"{k}.json", meta))]
    write_tar(tmp_path / "a.tar", samples(2))
    write_tar(tmp_path / "pool.tar", pool)
    source = open_source(f"wds:{tmp_path}/a.tar,Unlabelled={tmp_path}/pool.tar")
    assert source.groups["unlabeled"].labels.tolist() == [-1] * 4
    assert noted(source, "unlabeled: members that are not read, 4, by their ending: .txt (4)")
    both = [(f"{k}.cls", f"{k % 2}".encode()) for k in range(4)]
    write_tar(tmp_path / "both.tar", pool + both)
    assert open_source(f"wds:{tmp_path}/both.tar").groups["train"].labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(SourceError, match=r"sample '0' has no label. Accepted: .*, or name the tar unlabeled=PATTERN"):
        open_source(f"wds:{tmp_path}/pool.tar")
    labels = (b"[1]", b"{", b'{"label": "cat"}', b'{"label": 1}', b"[" * 9999)
    odd = [member for k, raw in enumerate(labels) for member in ((f"{k}.png", png()), (f"{k}.json", raw))]
    write_tar(tmp_path / "pool.tar", odd)
    pool = open_source(f"wds:{tmp_path}/a.tar,unlabeled={tmp_path}/pool.tar").groups["unlabeled"]
    assert pool.labels.tolist() == [-1, -1, -1, 1, -1]


@pytest.mark.parametrize(("suffix", "raw"), [
    ("cls", b"1_0"), ("cls", b"1.5"), ("cls", b"cat"), ("cls", b"-2"), ("cls", b"9" * 30), ("cls", b"\xff\xfe1"),
    ("cls", b"-1"), ("cls", b"100000"), ("cls", b""), ("json", b"{}"), ("json", b"[" * 100_000),
    *(("json", b'{"label": %s' % raw) for raw in (b"true}", b"1.7}", b"[1]}", b'"cat"}', b"1")),
])  # fmt: skip
def test_a_label_that_is_no_class_number_is_refused(tmp_path, suffix, raw):
    write_tar(tmp_path / "a.tar", [*samples(2), ("x.png", png()), (f"x.{suffix}", raw)])
    with pytest.raises(SourceError, match=r"sample 'x' (is|has no label)") as error:
        open_source(f"wds:{tmp_path}/a.tar")
    assert len(str(error.value)) < 500


def test_numbering_from_one_and_gaps_are_told(tmp_path):
    write_tar(tmp_path / "a.tar", samples(3, labels=[1, 2, 4]))
    assert noted(open_source(f"wds:{tmp_path}/a.tar"), "train has no image of 2 of 5 classes: 0, 3. Training needs")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\nelk\n")
    with pytest.raises(
        SourceError, match=r"names 4 classes, the tars hold labels from 1 up to 4. Classes are numbered"
    ):
        open_source(f"wds:{tmp_path}/a.tar")


@pytest.mark.parametrize("name", ["a=b", "[1]", "{1,2}", "x,y", "test=1", "w*", "~"])
def test_a_tar_of_the_very_name_wins_over_a_pattern(tmp_path, monkeypatch, name):
    write_tar(tmp_path / f"{name}.tar", samples(2))
    write_tar(tmp_path / name / "s.tar", samples(3))
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / name / "t.tar", [])
    for count, text in ((2, f"{name}.tar"), (3, f"{name}/s.tar"), (3, f"{name}/{{s,t}}.tar"), (3, f"{name}/?.tar")):
        assert len(open_source(f"wds:{text}").groups["train"].ids) == count
        assert len(open_source(f"wds:./{text}").groups["train"].ids) == count
    assert noted(open_source(f"wds:{name}/*.tar"), "train: tars that hold no image, 1 of 2: t.tar")


def test_tars_below_home_and_class_names_in_other_encodings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tar(tmp_path / "w" / "0.tar", samples(2))
    (tmp_path / "w" / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n\r\n".encode())
    source = open_source("wds:~/w/0.tar,test=~/w/*.tar")
    assert (source.classes, sorted(source.groups)) == (("cat", "dog"), ["test", "train"])
    (tmp_path / "w" / "classes.txt").write_bytes("café\ndog\n".encode("latin-1"))
    with pytest.raises(SourceError, match="line 1: byte 0xe9 is not UTF-8"):
        open_source("wds:~/w/0.tar")


@pytest.mark.parametrize(
    "pattern", ["{0..99999999}.tar", "{0..999}{0..999}{0..999}.tar", "{5..1}.tar", "{0..3.tar", "{}x"]
)
def test_braces_that_stand_for_too_many_tars_or_none_are_refused(tmp_path, pattern):
    with pytest.raises(SourceError, match=r"stands for (more than 1,000,000 tars|no tar)|no tar fits"):
        open_source(f"wds:{tmp_path}/{pattern}")


def test_a_tar_that_is_a_pipe_or_holds_other_names_is_refused(tmp_path):
    os.mkfifo(tmp_path / "p.tar")
    with pytest.raises(SourceError, match=r"p\.tar is no regular file"):
        open_source(f"wds:{tmp_path}/p.*")
    write_tar(tmp_path / "a.tar", [(os.fsdecode(b"caf\xe9.png"), png()), (os.fsdecode(b"caf\xe9.cls"), b"0")])
    with pytest.raises(SourceError, match=r"'a\.tar/caf\\udce9' is not UTF-8"):
        open_source(f"wds:{tmp_path}/a.tar")


# ImageNet-127 and hubs


def test_a_mapping_is_read_in_its_encoding_and_gives_each_folder_one_class(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01", "n02"):
            (tmp_path / "imagenet" / split / wnid).mkdir(parents=True)
            (tmp_path / "imagenet" / split / wnid / "a.JPEG").write_bytes(png())
    (tmp_path / "imagenet" / "unlabeled").mkdir()
    (tmp_path / "imagenet" / "unlabeled" / "u.JPEG").write_bytes(png())
    mapping = tmp_path / "imagenet127.txt"
    mapping.write_bytes("\ufeffn01 fish\r\nn02 bird\r\nn03 tree\r\n\r\nn01 fish\n".encode())
    source = open_source("imagenet127", root=tmp_path)
    assert source.classes == ("fish", "bird", "tree")
    assert source.groups["unlabeled"].labels.tolist() == [-1]
    assert noted(source, "train has no image of 1 of 3 classes: 2 ('tree')")
    mapping.write_text("n01 fish\nn02 bird\nn01 cow\n")
    with pytest.raises(SourceError, match="line 3: n01 is given two classes"):
        open_source("imagenet127", root=tmp_path)
    mapping.unlink()
    os.mkfifo(mapping)
    with pytest.raises(SourceError, match="there is no file"):
        open_source("imagenet127", root=tmp_path)


def hub_split(labels, names=("a_b", "c"), image=None):
    label, picture = type("ClassLabel", (), {"names": names})(), type("Image", (), {})()

    class Split:
        features = {"img": picture, "kind": label}  # noqa: RUF012

        def __len__(self):
            return len(labels)

        def __getitem__(self, key):
            return {"img": image} if isinstance(key, int) else labels

    return Split()


def test_a_hub_set_tells_its_splits_and_refuses_other_classes():
    splits = {
        "Train": hub_split([0, 1]),
        "test": hub_split([0, 1]),
        "validation": hub_split([1]),
        "extra": hub_split([0]),
    }
    source = from_splits("hf:x", splits | {"unlabelled": hub_split([None, -1])})
    assert {name: len(images.ids) for name, images in source.groups.items()} == {"train": 2, "test": 2, "unlabeled": 2}
    assert source.groups["unlabeled"].labels.tolist() == [-1, -1]
    assert noted(source, "left out, as they are no group of a cache: splits extra (1), validation (1)")
    with pytest.raises(SourceError, match="the classes of split test are not those of train"):
        from_splits("hf:x", {"train": hub_split([0]), "test": hub_split([0], names=("c", "a_b"))})
    with pytest.raises(SourceError, match="two classes of hf:x are called 'a b'"):
        from_splits("hf:x", {"train": hub_split([0], names=("a_b", "a b"))})
    with pytest.raises(BrokenImage, match=r"image 'train/0000000' cannot be decoded"):
        from_splits("hf:x", {"train": hub_split([0])}).groups["train"].read([0])
    deep = Image.fromarray(np.linspace(0, 65535, 12).reshape(3, 4).astype(np.uint16))
    image = from_splits("hf:x", {"train": hub_split([0], image=deep)}).groups["train"].read([0])[0]
    assert image[..., 0].ravel().tolist() == [23 * k for k in range(11)] + [255] or np.ptp(image) == 255


# What every source is checked for


@pytest.mark.parametrize("ids", [("a", "b", "a"), ("a", "b\nc"), ("a", "\udce9"), ("a\0", "b")])
def test_ids_that_no_cache_can_hold_are_refused(ids):
    with pytest.raises(SourceError, match=r"group train: (two images have the id 'a'|the name .* is not UTF-8)"):
        check_ids(ids, "group train")


def test_a_name_of_a_data_set_that_is_no_text_is_refused():
    with pytest.raises(SourceError, match="is not UTF-8"):
        sealed("folder:\udce9", ("a",), {})


def test_a_text_of_any_bytes_ends_in_text_or_a_message(tmp_path):
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(200):
        (tmp_path / "t").write_bytes(bytes(rng.choice([10, 65, 66, 195, 169, 255, 254, 0], 4).tolist()))
        with contextlib.suppress(SourceError):
            texts.append(text_of(tmp_path / "t"))
    assert 10 < len(texts) < 190
    assert "\0" not in "".join(texts)
