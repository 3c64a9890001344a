import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastltssl.errors import SourceError
from fastltssl.images import open_source, torchvision_sets
from fastltssl.images.folder import FileImages, decoded
from fastltssl.images.source import evenly_spaced
from fastltssl.images.source import fingerprint as digest
from fastltssl.images.torchvision_sets import SETS, SIGNS
from fastltssl.images.world import world
from fastltssl.images.world.pictograms import atlas
from fastltssl.images.world.scenery import COLORS


def save(path, red, mode="RGB", size=(4, 3)):
    """A picture whose red channel (or only channel) is one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (red, 7, 9) if mode == "RGB" else red).save(path)


def reds(images):
    return [int(image[0, 0, 0]) for image in images]


def fingerprint(dataset, **options):
    return open_source(dataset, **options).fingerprint


# The embedded world


def test_world_renders_the_very_bytes_it_was_shipped_with():
    digest, index = hashlib.sha256(), np.arange(80)
    for style in world.STYLES.values():
        digest.update(world.render(5, index, index % 40, style).tobytes())
    assert digest.hexdigest() == world.PIXELS


def test_a_world_image_does_not_depend_on_the_images_around_it():
    images = open_source("world:hard").groups["train"]
    rows = np.random.default_rng(0).permutation(len(images.ids))[:37]
    together = images.read(rows)
    assert all(np.array_equal(images.read(rows[place : place + 1])[0], image) for place, image in enumerate(together))


def test_world_groups_have_the_asked_sizes_and_classes_take_turns():
    source = open_source("world:caption:3:2")
    train, test = source.groups["train"], source.groups["test"]
    assert train.labels.tolist() == 3 * list(range(40))
    assert (len(train.ids), len(test.ids), train.ids[119], test.ids[0]) == (120, 80, "train/000119", "test/000000")
    assert len(open_source("world:mild:3").groups["test"].ids) == 40 * world.PER_CLASS["test"]
    assert train.labels.dtype == np.int64


def test_world_has_unlabelled_images_by_default_and_where_they_are_asked_for():
    assert {name: len(group.ids) for name, group in open_source("world:mild:3:2:5").groups.items()} == {
        "train": 120, "test": 80, "unlabeled": 200,
    }  # fmt: skip
    assert set(open_source("world:mild:3:2").groups) == {"train", "test"}
    usual = {name: len(group.ids) // 40 for name, group in open_source("world").groups.items()}
    assert usual == world.PER_CLASS


def test_no_world_image_is_in_two_groups():
    groups = open_source("world").groups.values()
    images = [image.tobytes() for group in groups for image in group.read(range(40))]
    assert len(set(images)) == 120


def test_world_fingerprint_tells_styles_and_sizes_apart_but_not_spellings():
    assert fingerprint("world") == fingerprint("world:mild") == fingerprint("world:mild:200:50:300")
    assert len({fingerprint(name) for name in ("world", "world:hard", "world:caption", "world:mild:200:50")}) == 4


def test_a_caption_names_the_class_and_the_colour_that_the_image_shows():
    plain = replace(
        world.STYLES["mild"], rotation=0, scale=(0.9, 0.9), shift=0, bend=0, outlined=0, noise=(0, 0), blur=(0, 0),
        contrast=(1, 1), occluded=0, tint=0, tone=0,
    )  # fmt: skip
    index, label = np.arange(60), np.full(60, world.CLASSES.index("star"))
    centers = world.render(3, index, label, plain)[:, 24, 24].astype(int)
    shown = [list(COLORS)[np.abs(np.array(list(COLORS.values())) - center).sum(1).argmin()] for center in centers]
    sentences = world.captions(3, index, label, plain)
    assert all("star" in text and "small" not in text for text in sentences)
    mentioned = [
        (color, word) for color, text in zip(shown, sentences, strict=True) for word in text.split() if word in COLORS
    ]
    assert len(mentioned) > 20
    assert all(color == word for color, word in mentioned)


def test_outlined_images_are_called_sketches_only_where_they_are_outlined():
    index, label = np.arange(400), np.arange(400) % 40
    filled, outlined = (replace(world.STYLES["caption"], outlined=share) for share in (0.0, 1.0))
    assert not any("sketch" in text for text in world.captions(1, index, label, filled))
    sketches = np.mean(["sketch" in text for text in world.captions(1, index, label, outlined)])
    photos = np.mean(["photo" in text for text in world.captions(1, index, label, filled)])
    assert 0.6 * photos < sketches < photos


def test_caption_prior_is_a_power_law_with_ratio_fifty():
    prior = world.caption_prior()
    assert (prior.shape, prior.dtype) == ((40,), np.float64)
    assert prior.sum() == pytest.approx(1)
    assert prior.max() / prior.min() == pytest.approx(50)
    steps = np.diff(np.log(np.sort(prior)[::-1])) / np.diff(np.log(np.arange(1, 41)))
    assert np.allclose(steps, steps[0])
    assert np.any(np.diff(prior) > 0)  # the order of classes is not the order of frequency


def test_no_two_pictograms_look_alike_and_outlines_lie_within_them():
    filled, outlined = np.split(atlas(), 2)
    gaps = np.abs(filled[:, None] - filled[None]).mean(axis=(2, 3)) + np.eye(40)
    assert gaps.min() > 0.03
    assert np.all(outlined <= filled)
    assert np.all(outlined.sum(axis=(1, 2)) > 0.2 * filled.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("world:milt", r"no style 'milt'. Did you mean 'mild'\? Known: mild, hard, caption"),
        ("world:hard:0", "sizes '0' are not one to three whole numbers"),
        ("world:hard:5:5:5:5", "sizes '5:5:5:5' .*world:hard:200:50:300"),
    ],
)
def test_a_misspelt_world_says_what_is_accepted(name, message):
    with pytest.raises(SourceError, match=message):
        open_source(name)


# Limits


def test_a_limit_takes_every_class_evenly_whatever_the_order_of_rows():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [50, 7, 1, 3]))
    for limit in range(1, 70):
        rows = evenly_spaced(labels, limit)
        assert len(set(rows.tolist())) == min(limit, 61)
        assert np.all(np.diff(rows) > 0)
        assert limit < 4 or set(labels[rows]) == {0, 1, 2, 5}
    assert np.bincount(labels[evenly_spaced(labels, 32)]).tolist()[:2] == [25, 4]


def test_a_limited_world_holds_two_images_of_each_class_and_they_are_the_same_images():
    whole, part = open_source("world"), open_source("world", limit=80)
    images = part.groups["test"]
    assert np.bincount(images.labels).tolist() == [2] * 40
    rows = [whole.groups["test"].ids.index(name) for name in images.ids]
    assert rows == sorted(rows)
    expected = whole.groups["test"].read(rows[5:9])
    assert all(np.array_equal(a, b) for a, b in zip(images.read([5, 6, 7, 8]), expected, strict=True))
    assert part.fingerprint != whole.fingerprint


def test_a_limit_above_the_size_changes_nothing():
    assert fingerprint("world:mild:3:2", limit=120) == fingerprint("world:mild:3:2")


def test_a_limit_of_zero_is_refused():
    with pytest.raises(SourceError, match="--limit 0 leaves no image"):
        open_source("world", limit=0)


# Folders


@pytest.fixture
def pets(tmp_path):
    """Train (3 cats, 2 big dogs), test (1, 2) and unlabeled (2, nested); red says which."""
    for red, name in enumerate(["cat/10.png", "cat/9.png", "cat/sub/1.png", "big_dog/b.png", "big_dog/a.png"]):
        save(tmp_path / "pets" / "train" / name, red)
    for red, name in enumerate(["cat/x.png", "big_dog/2.png", "big_dog/01.png"], start=100):
        save(tmp_path / "pets" / "test" / name, red)
    for red, name in enumerate(["z.png", "deep/er/y.png"], start=200):
        save(tmp_path / "pets" / "unlabeled" / name, red)
    return tmp_path / "pets"


def test_a_folder_lists_classes_by_name_and_files_in_natural_order(pets):
    source = open_source(f"folder:{pets}")
    train, test, unlabeled = (source.groups[name] for name in ("train", "test", "unlabeled"))
    assert source.classes == ("big dog", "cat")
    assert train.ids == (
        "train/big_dog/a.png", "train/big_dog/b.png", "train/cat/9.png", "train/cat/10.png", "train/cat/sub/1.png",
    )  # fmt: skip
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert test.ids == ("test/big_dog/01.png", "test/big_dog/2.png", "test/cat/x.png")
    assert unlabeled.labels.tolist() == [-1, -1]
    assert reds(train.read(range(5))) == [4, 3, 1, 0, 2]
    assert reds(unlabeled.read([1, 0])) == [200, 201]


def test_images_come_in_the_order_asked_as_rgb_whatever_their_mode(tmp_path):
    save(tmp_path / "a" / "gray.png", 40, mode="L", size=(5, 2))
    save(tmp_path / "a" / "rgb.png", 50)
    save(tmp_path / "b" / "palette.png", 0, mode="P")
    images = open_source(f"folder:{tmp_path}").groups["train"]
    read = images.read([2, 1, 0, 1])
    assert [image.shape for image in read] == [(3, 4, 3), (3, 4, 3), (2, 5, 3), (3, 4, 3)]
    assert read[1][0, 0].tolist() == [50, 7, 9]
    assert read[2][1, 4].tolist() == [40, 40, 40]
    assert all(image.dtype == np.uint8 for image in read)


def test_hidden_files_other_files_and_stray_folders_are_left_out(pets):
    save(pets / "train" / ".thumbs" / "a.png", 1)
    save(pets / "train" / "cat" / "._9.png", 1)
    (pets / "train" / "cat" / "labels.txt").write_text("9")
    assert len(open_source(f"folder:{pets}").groups["train"].ids) == 5


def test_a_folder_of_classes_alone_has_a_train_group_only_and_may_have_a_class_called_train(tmp_path):
    for name in ("bus/1.png", "train/1.png"):
        save(tmp_path / name, 0)
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("bus", "train")
    assert list(source.groups) == ["train"]


def test_a_val_folder_serves_as_test_where_there_is_no_test_folder(pets):
    (pets / "test").rename(pets / "val")
    assert open_source(f"folder:{pets}").groups["test"].ids[0] == "val/big_dog/01.png"


def test_train_and_test_with_different_classes_are_refused_by_name(pets):
    (pets / "test" / "cat").rename(pets / "test" / "kat")
    with pytest.raises(SourceError, match="only in train cat, only in test kat"):
        open_source(f"folder:{pets}")


def test_an_empty_class_folder_is_refused(pets):
    (pets / "test" / "cat" / "x.png").unlink()
    with pytest.raises(SourceError, match="test: no images in class folder cat"):
        open_source(f"folder:{pets}")


def test_a_test_folder_without_a_train_folder_is_refused(pets):
    shutil.rmtree(pets / "train")
    with pytest.raises(SourceError, match="holds test/ but no train/"):
        open_source(f"folder:{pets}")


def test_the_unlabelled_group_is_there_only_with_images_in_it(pets):
    shutil.rmtree(pets / "unlabeled")
    assert list(open_source(f"folder:{pets}").groups) == ["train", "test"]
    (pets / "unlabeled").mkdir()
    assert list(open_source(f"folder:{pets}").groups) == ["train", "test"]


def test_a_folder_that_is_not_there_or_holds_no_classes_says_which_layout_it_needs(tmp_path):
    with pytest.raises(SourceError, match=r"absent is not a folder. Accepted: folder:PATH with PATH/CLASS"):
        open_source(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(SourceError, match=r"holds no class folders. Accepted: PATH/CLASS"):
        open_source(f"folder:{tmp_path}")


def test_a_broken_image_is_named_by_its_id(pets):
    path = pets / "train" / "cat" / "10.png"
    path.write_bytes(path.read_bytes()[:40])
    images = open_source(f"folder:{pets}").groups["train"]
    with pytest.raises(
        SourceError, match=r"image 'train/cat/10.png' cannot be decoded .* --skip-broken .*, or replace or"
    ):
        images.read(range(5))
    assert reds(images.read([0])) == [4]


def test_a_folder_fingerprint_follows_its_files_but_not_its_place(pets, tmp_path):
    before = fingerprint(f"folder:{pets}")
    moved = pets.rename(tmp_path / "moved")
    assert fingerprint(f"folder:{moved}") == before
    save(moved / "test" / "cat" / "x.png", 100, size=(40, 30))
    larger = fingerprint(f"folder:{moved}")
    (moved / "test" / "cat" / "x.png").rename(moved / "test" / "cat" / "y.png")
    assert len({before, larger, fingerprint(f"folder:{moved}")}) == 3


def test_a_fingerprint_follows_labels_and_class_names_where_ids_stay():
    def group(labels):
        return {"train": FileImages(("a", "b"), np.array(labels), ())}

    digests = [digest(names, group(labels)) for names in ("xy", "xz") for labels in ([0, 1], [1, 0])]
    assert len(set(digests)) == 4
    assert digest("xy", group([0, 1])) == digests[0]


# torchvision's sets, in the layout torchvision looks for


def make_dtd(root):
    top = root / "dtd" / "dtd"
    for red, (split, names) in enumerate({"train": "ab", "val": "c", "test": "d"}.items()):
        lines = [f"{kind}/{kind}_{name}.jpg" for kind in ("dotted", "zig_zag") for name in names]
        (top / "labels").mkdir(parents=True, exist_ok=True)
        (top / "labels" / f"{split}1.txt").write_text("\n".join(lines))
        for line in lines:
            save(top / "images" / line, 80 * red)


def make_food101(root):
    for split, name in (("train", "11"), ("test", "22")):
        meta = {kind: [f"{kind}/{name}"] for kind in ("apple_pie", "miso_soup")}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(meta))
        for kind in meta:
            save(root / "food-101" / "images" / kind / f"{name}.jpg", 0)


def make_eurosat(root):
    for kind in ("Forest", "AnnualCrop"):
        save(root / "eurosat" / "2750" / kind / f"{kind}_1.jpg", 0)


def make_sun397(root):
    kinds = ("/a/abbey", "/a/apartment_building/outdoor")
    for kind in kinds[::-1]:
        save(root / "SUN397" / kind[1:] / "sun_a.jpg", 0)
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(kinds))


def make_caltech101(root):
    for kind in ("BACKGROUND_Google", "ant", "sea_horse"):
        save(root / "caltech101" / "101_ObjectCategories" / kind / "image_0001.jpg", 0)


def make_gtsrb(root):
    for label in range(43):
        save(root / "gtsrb" / "GTSRB" / "Training" / f"{label:05d}" / "1.ppm", label)
    save(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 14)
    (root / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;14\n")


def make_oxford_pets(root):
    top = root / "oxford-iiit-pet"
    (top / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines = [f"{kind}_{split} {label} 1 1" for label, kind in ((1, "Birman"), (2, "great_pyrenees"))]
        (top / "annotations" / f"{split}.txt").write_text("\n".join(lines))
        for line in lines:
            save(top / "images" / f"{line.split()[0]}.jpg", 0)


def make_fgvc_aircraft(root):
    top = root / "fgvc-aircraft-2013b" / "data"
    top.mkdir(parents=True)
    (top / "variants.txt").write_text("707-320\nDC-3\n")
    for split in ("trainval", "test"):
        (top / f"images_variant_{split}.txt").write_text(f"{split}a 707-320\n{split}b DC-3\n")
        for name in "ab":
            save(top / "images" / f"{split}{name}.jpg", 0)


TWO = {"train": [0, 1], "test": [0, 1]}
LAYOUTS = {
    "dtd": (make_dtd, ("dotted", "zig zag"), {"train": [0, 0, 1, 1, 0, 1], "test": [0, 1]}),
    "food101": (make_food101, ("apple pie", "miso soup"), TWO),
    "eurosat": (make_eurosat, ("annual crop land", "forest"), {"train": [0, 1]}),
    "sun397": (make_sun397, ("abbey", "outdoor apartment building"), {"train": [0, 1]}),
    "caltech101": (make_caltech101, ("ant", "sea horse"), {"train": [0, 1]}),
    "gtsrb": (make_gtsrb, SIGNS, {"train": list(range(43)), "test": [14]}),
    "oxford_pets": (make_oxford_pets, ("Birman", "Great Pyrenees"), TWO),
    "fgvc_aircraft": (make_fgvc_aircraft, ("707-320", "DC-3"), TWO),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_local_copy_in_torchvisions_layout_is_read_without_a_network(name, tmp_path):
    make, classes, labels = LAYOUTS[name]
    make(tmp_path)
    source = open_source(name, tmp_path)
    assert source.classes == classes
    assert {group: images.labels.tolist() for group, images in source.groups.items()} == labels
    for group, images in source.groups.items():
        assert len(set(images.ids)) == len(images.ids) == len(images.read(range(len(labels[group]))))
        assert (tmp_path / images.ids[0]).is_file()


def test_sun397_is_sorted_whatever_order_the_file_system_has(tmp_path):
    make_sun397(tmp_path)
    for number in np.random.default_rng(0).permutation(30):
        save(tmp_path / "SUN397" / "a" / "abbey" / f"sun_{number:02d}.jpg", 0)
    ids = open_source("sun397", tmp_path).groups["train"].ids
    assert list(ids) == sorted(ids)


def test_traffic_signs_have_a_name_for_each_of_the_43_labels():
    assert len(set(SIGNS)) == 43
    assert (SIGNS[14], SIGNS[17], SIGNS[40]) == ("stop", "no entry", "roundabout")


def test_cifar100_pixels_are_read_in_rows_of_rgb(tmp_path, monkeypatch):
    top = tmp_path / "cifar-100-python"
    top.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)  # stored channel by channel
    for split, rows in (("train", slice(0, 2)), ("test", slice(2, 3))):
        content = {"data": pixels[rows].reshape(-1, 3072), "fine_labels": [1, 0, 1][rows]}
        (top / split).write_bytes(pickle.dumps(content))
    (top / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "aquarium_fish"]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    source = open_source("cifar100", tmp_path)
    assert source.classes == ("apple", "aquarium fish")
    assert source.groups["train"].labels.tolist() == [1, 0]
    assert source.groups["test"].ids == ("test/000000",)
    assert np.array_equal(source.groups["train"].read([1])[0], pixels[1].transpose(1, 2, 0))


def test_stl10_has_its_unlabelled_split_and_upright_images(tmp_path, monkeypatch):
    top = tmp_path / "stl10_binary"
    top.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)  # channel, column, row
    for split in ("train", "test", "unlabeled"):
        (top / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (top / f"{split}_y.bin").write_bytes(bytes([2, 1, 2]))
    (top / "class_names.txt").write_text("airplane\nbird\n")
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5: True)
    source = open_source("stl10", tmp_path)
    assert source.classes == ("airplane", "bird")
    assert {name: images.labels.tolist() for name, images in source.groups.items()} == {
        "train": [1, 0, 1], "test": [1, 0, 1], "unlabeled": [-1, -1, -1],
    }  # fmt: skip
    assert np.array_equal(source.groups["test"].read([2])[0], pixels[2].transpose(2, 1, 0))


def test_svhn_counts_the_digit_zero_as_class_zero(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io", reason="SVHN comes in Matlab files, which scipy reads")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        labels = np.array([[10], [1], [9], [10]], np.uint8)
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5: True)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda path, md5: True)
    source = open_source("svhn", tmp_path)
    assert source.classes == tuple("0123456789")
    assert source.groups["train"].labels.tolist() == [0, 1, 9, 0]
    assert np.array_equal(source.groups["train"].read([3])[0], pixels[..., 3])


def test_without_a_connection_the_error_names_the_set_the_place_and_the_way_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again when the block ends
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("torchvision.datasets.CIFAR100.url", f"http://127.0.0.1:{port}/cifar-100-python.tar.gz")
    with pytest.raises(SourceError) as caught:
        open_source("cifar100", tmp_path)
    message = str(caught.value)
    assert "cifar100: torchvision.datasets.CIFAR100 could not be read from" in message
    assert str(tmp_path / "cifar-100-python") in message
    assert "Connection refused" in message
    assert "--root DIR where DIR holds cifar-100-python, or --dataset folder:PATH" in message


def test_a_silent_server_is_given_up_on_and_the_socket_setting_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision_sets, "SERVER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("torchvision.datasets.CIFAR100.url", f"http://127.0.0.1:{server.getsockname()[1]}/x")
        with pytest.raises(SourceError, match="timed out"):
            open_source("cifar100", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_an_incomplete_copy_is_an_error_with_the_missing_file(tmp_path):
    make_dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "val1.txt").unlink()
    with pytest.raises(SourceError, match=r"No such file.*val1\.txt"):
        open_source("dtd", tmp_path)


# Names


def test_an_unknown_name_gets_the_nearest_one_and_the_accepted_forms():
    with pytest.raises(SourceError, match=r"'cifar101' is unknown. Did you mean 'cifar10.*Accepted: world, .*stl10"):
        open_source("cifar101")


def test_the_path_of_a_folder_without_its_prefix_gets_the_prefix(tmp_path):
    with pytest.raises(SourceError, match=f"--dataset folder:{tmp_path}"):
        open_source(str(tmp_path))


def test_sources_load_without_torch():
    modules = "fastltssl.images.world.world, fastltssl.images.folder, fastltssl.images.torchvision_sets"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'torchvision', 'PIL'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"cifar10", "stl10", "flowers102"} < set(SETS)


def test_a_loop_of_links_is_walked_once_and_what_is_no_regular_file_is_no_image(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    (tmp_path / "cat" / "again").symlink_to(".")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    train = open_source(f"folder:{tmp_path}").groups["train"]
    assert train.ids == ("cat/0.png", "dog/0.png")


@pytest.mark.parametrize(("name", "dtype", "top"), [
    ("deep.png", "u2", 65535), ("deep.tif", "u2", 65535), ("deep.pgm", "u2", 65535), ("whole.tif", "i4", 65535),
    ("wide.tif", "i4", 2**31 - 1), ("byte.tif", "i4", 255), ("unit.tif", "f4", 1.0), ("float.tif", "f4", 65535.0),
])  # fmt: skip
def test_deep_grey_images_keep_their_shades(tmp_path, name, dtype, top):
    grey = np.linspace(0, top, 2400).reshape(40, 60)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 60 40 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey.astype(dtype)).save(tmp_path / name)
    image = decoded(tmp_path / name, "x", "x")
    assert image.dtype == np.uint8
    assert np.abs(image[..., 0].astype(int) - 255 * grey / top).max() <= 1.01
    assert (image == image[..., :1]).all()
