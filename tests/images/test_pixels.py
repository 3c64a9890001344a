"""What becomes of the pixels of a file: depth, modes, EXIF orientation, extreme shapes, bytes that are no image."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.reader import read_features
from fastltssl.commands.cli import cli
from fastltssl.encoder import clip
from fastltssl.encoder.clip import load_encoder
from fastltssl.errors import BrokenImage, SourceError
from fastltssl.images import open_source
from fastltssl.images.folder import decoded
from fastltssl.images.hub import from_splits
from fastltssl.images.source import Orientation
from fastltssl.runs.export import example

RAMP = np.linspace(0, 1, 2400).reshape(40, 60)


def tiff(grey, bits, sample_format=1, photometric=1, order="<"):
    """An uncompressed TIFF of one channel, written by hand as Pillow writes but few kinds."""
    raw = grey.tobytes()
    tags = [(256, 60), (257, 40), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, 40),
            (279, len(raw)), (339, sample_format)]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII" if order == "<" else ">HHIHH", tag, 4 if order == "<" else 3, 1,
                                   *([start if tag == 273 else value] + [0] * (order == ">")))
                       for tag, value in tags)  # fmt: skip
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + raw


def packed(values):
    """12-bit values, two in three bytes."""
    first, second = values.reshape(-1, 2).astype(np.uint16).T
    return np.stack((first >> 4, (first & 15) << 4 | second >> 8, second & 255), axis=1).astype(np.uint8)


@pytest.mark.parametrize("raw", [
    pytest.param(tiff((65535 * RAMP).astype("<u2"), 16), id="16-bit"),
    pytest.param(tiff((65535 * RAMP).astype(">u2"), 16, order=">"), id="16-bit big-endian"),
    pytest.param(tiff((65535 * (1 - RAMP)).astype("<u2"), 16, photometric=0), id="16-bit from white"),
    pytest.param(tiff(packed(4095 * RAMP), 12), id="12-bit"),
    pytest.param(tiff(((2**32 - 1) * RAMP).astype("<u4"), 32), id="32-bit unsigned"),
    pytest.param(tiff(((2**31 - 1) * RAMP).astype("<i4"), 32, sample_format=2), id="32-bit signed"),
    pytest.param(tiff(RAMP.astype("<f4"), 32, sample_format=3), id="float"),
    pytest.param(tiff((1e12 * RAMP).astype("<f4"), 32, sample_format=3), id="float of any size"),
    pytest.param(b"P5 60 40 65535\n" + (65535 * RAMP).astype(">u2").tobytes(), id="pgm"),
    pytest.param(b"P5 60 40 4095\n" + (4095 * RAMP).astype(">u2").tobytes(), id="pgm of 12 bits"),
    pytest.param(b"P6 60 40 65535\n" + (65535 * RAMP[..., None].repeat(3, 2)).astype(">u2").tobytes(), id="ppm"),
])  # fmt: skip
def test_deep_images_of_every_kind_keep_their_shades(raw):
    image = decoded(io.BytesIO(raw), "x", "x")
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    assert np.abs(image.astype(int) - 255 * RAMP[..., None]).max() <= 1.07


def test_values_that_are_no_numbers_do_not_darken_an_image(tmp_path):
    grey = RAMP.astype("f4")
    grey[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(grey).save(tmp_path / "a.tif")
    image = decoded(tmp_path / "a.tif", "x", "x")
    assert image[0, :3, 0].tolist() == [0, 255, 0]
    assert image[-1, -1, 0] == 255
    Image.fromarray(np.full((4, 4), np.nan, "f4")).save(tmp_path / "b.tif")
    assert decoded(tmp_path / "b.tif", "x", "x").max() == 0


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("1", 1, [255, 255, 255]), ("L", 9, [9, 9, 9]), ("LA", (9, 0), [9, 9, 9]), ("P", 1, [40, 50, 60]),
    ("RGBA", (1, 2, 3, 0), [1, 2, 3]), ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
])  # fmt: skip
def test_shallow_images_are_as_pillow_converts_them(tmp_path, mode, colour, expected):
    image = Image.new(mode, (4, 3), colour)
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.tif")
    assert decoded(tmp_path / "a.tif", "x", "x")[2, 3].tolist() == expected
    if mode == "P":
        image.save(tmp_path / "a.png", transparency=b"\0\x80")
        assert decoded(tmp_path / "a.png", "x", "x")[2, 3].tolist() == expected


@pytest.mark.parametrize("raw", [
    b"", b"no image", b"GIF89a", b"P5 60 40 65535\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    b"\xff\xd8\xff\xe0" + b"\0" * 99,
    tiff(RAMP.astype("<f8"), 64, sample_format=3), b"BM" + b"\xff" * 60, b"RIFF\0\0\0\0WEBPVP8 ",
    b"P5 60000 60000 255\n" + b"\0" * 99,
])  # fmt: skip
def test_bytes_that_are_no_image_are_a_broken_image(raw):
    with pytest.raises(BrokenImage, match=r"image 'the id' cannot be decoded \(.+\)\. Leave .* --skip-broken .* here"):
        decoded(io.BytesIO(raw), "the id", "here")


# EXIF orientation


def photo(orientation, kind="JPEG"):
    """A picture of 8 x 16 pixels, black but for a bright corner, that carries this EXIF orientation (0: none)."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :4] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, kind, **({"exif": exif} if orientation else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_orientation_is_applied_only_where_it_is_asked_for(orientation, kind):
    raw = photo(orientation, kind)
    with Image.open(io.BytesIO(raw)) as image:
        as_stored, upright = np.array(image.convert("RGB")), np.array(ImageOps.exif_transpose(image).convert("RGB"))
    ignore, apply = Orientation(), Orientation("apply")
    np.testing.assert_array_equal(decoded(io.BytesIO(raw), "x", "x", ignore), as_stored)
    np.testing.assert_array_equal(decoded(io.BytesIO(raw), "x", "x", apply), upright)
    np.testing.assert_array_equal(decoded(io.BytesIO(raw), "x", "x"), as_stored)
    assert ignore.carriers == apply.carriers == ({"x"} if orientation in range(2, 9) else set())


def test_damaged_exif_is_as_none():
    raw = photo(6)
    place = raw.index(b"Exif\0\0") + 6
    for junk in (b"no TIFF!", b"II*\0\xff\xff\xff\xff"):
        torn = raw[:place] + junk + raw[place + len(junk) :]
        apply = Orientation("apply")
        assert decoded(io.BytesIO(torn), "x", "x", apply).shape == (8, 16, 3)
        assert not apply.carriers


class ClassLabel:
    names = ("a", "b")


class Split:
    """Rows of a hub data set; the library stays outside."""

    features = {"img": type("Image", (), {})(), "kind": ClassLabel()}  # noqa: RUF012

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        return {"img": Image.open(io.BytesIO(photo(6)))} if isinstance(key, int) else self.labels


def write_photos(top):
    """The same two turned pictures as a folder, a list and a tar."""
    with tarfile.open(top / "a.tar", "w") as tar:
        for label, kind in enumerate("ab"):
            (top / "set" / kind).mkdir(parents=True)
            (top / "set" / kind / "0.jpg").write_bytes(photo(6))
            for name, raw in ((f"{kind}.jpg", photo(6)), (f"{kind}.cls", b"%d" % label)):
                member = tarfile.TarInfo(name)
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
    (top / "l.csv").write_text("path,label\nset/a/0.jpg,a\nset/b/0.jpg,b\n")


def test_folders_lists_tars_and_hubs_turn_images_alike(tmp_path):
    write_photos(tmp_path)
    stored, upright = (decoded(io.BytesIO(photo(6)), "x", "x", Orientation(exif)) for exif in ("ignore", "apply"))
    assert stored.shape != upright.shape
    for name in (f"folder:{tmp_path}/set", f"list:{tmp_path}/l.csv", f"wds:{tmp_path}/a.tar", "hub"):
        for exif, expected in (("ignore", stored), ("apply", upright)):
            source = (
                from_splits("hub", {"train": Split([0, 1])}, exif) if name == "hub" else open_source(name, exif=exif)
            )
            for image in source.groups["train"].read([0, 1]):
                np.testing.assert_array_equal(image, expected)
            assert len(source.orientation.carriers) == 2
    with pytest.raises(SourceError, match="--exif 'upright' is not one of ignore, apply"):
        open_source(f"folder:{tmp_path}/set", exif="upright")


def ran(*line):
    result = CliRunner().invoke(cli, [str(part) for part in line])
    assert result.exit_code == 0, result.exception
    return result.output


def test_a_cache_remembers_how_its_images_were_turned(tmp_path, monkeypatch):
    """add-views, resume, predict and live training read images as the cache was made; the default changes nothing."""
    write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = ["extract", "--model", "tiny", "--dataset", "folder:set", "--views", "center"]
    note = "images read that carry an EXIF orientation: 2; "
    assert f"{note}it was ignored" in ran(*line, "--out", "i.zarr")
    assert f"{note}they were turned upright" in ran(*line, "--out", "a.zarr", "--exif", "apply")
    ignored, applied = (open_cache(tmp_path / name) for name in ("i.zarr", "a.zarr"))
    assert "exif" not in ignored.attributes["provenance"]
    assert applied.attributes["provenance"]["exif"] == "apply"
    assert ignored.attributes["fingerprint"] != applied.attributes["fingerprint"]
    center = {cache.path.name: read_features(cache.groups["train"])[:, 0] for cache in (ignored, applied)}
    assert np.abs(center["i.zarr"] - center["a.zarr"]).max() > 0.01
    assert "is complete already" in ran(*line, "--out", "a.zarr", "--exif", "apply", "--resume")
    refused = CliRunner().invoke(cli, [*line, "--out", "a.zarr", "--resume"])
    assert 'provenance.exif is "apply" there' in str(refused.exception)
    ran("cache", "add-views", "a.zarr", "--views", "center,weak:1")
    added = open_cache(tmp_path / "a.zarr")
    whole = open_cache(tmp_path / "b.zarr") if ran(
        *line[:-1], "center,weak:1", "--out", "b.zarr", "--exif", "apply"
    ) else None  # fmt: skip
    np.testing.assert_array_equal(read_features(added.groups["train"]), read_features(whole.groups["train"]))
    for name, cache in (("i", "i.zarr"), ("a", "a.zarr")):
        ran("train", "probe", "--cache", cache, "--steps", 2, "--eval", "all", "--out", f"run-{name}")
        output = ran("predict", f"run-{name}", "set", "--out", f"{name}.csv", "--probabilities", "--json")
        assert "images read that carry an EXIF orientation: 2; " in output
        assert json.loads(output.splitlines()[-1])["images"] == 2
    ran("train", "probe", "--live", "bitfit", "--cache", "a.zarr", "--steps", 1, "--eval", "all", "--out", "live")


def test_predict_encodes_as_the_cache_was_made(tmp_path, monkeypatch):
    """The features of predict are those of the cache: an image that is turned gets the scores of its row."""
    from fastltssl.cache.layout import all_blocks
    from fastltssl.encoder.pipeline import pipeline
    from fastltssl.encoder.reopen import exif_of, source_of
    from fastltssl.images.folder import open_images
    from fastltssl.images.views import parse_views

    write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran(
        "extract",
        "--model",
        "tiny",
        "--dataset",
        "folder:set",
        "--views",
        "center",
        "--out",
        "a.zarr",
        "--exif",
        "apply",
    )
    cache, encoder = open_cache(tmp_path / "a.zarr"), load_encoder("tiny", None)
    source = open_images(tmp_path / "set", exif_of(cache))
    with pipeline(encoder.device, 0) as threads:
        blocks = all_blocks({"images": (2, 1, encoder.width)}, {"images": 64})
        (slab,) = threads.encoded(source, encoder, {"images": parse_views("center")}, blocks, seed=0)
    np.testing.assert_array_equal(slab.features[:, 0, 0].astype(np.float16), read_features(cache.groups["train"])[:, 0])
    again = source_of(cache).groups["train"].read([0])[0]
    np.testing.assert_array_equal(again, source.groups["images"].read([0])[0])


@pytest.mark.parametrize("reader", ["squash", "shortest", "named", "tiny"])
def test_the_example_of_an_export_turns_images_as_the_cache_did(reader):
    applied = example("probe", reader, "apply")
    compile(applied, "example.py", "exec")
    assert "import Image, ImageOps" in applied
    assert "ImageOps.exif_transpose(Image.open(path))" in applied
    assert "ImageOps" not in example("probe", reader)


# Extreme shapes


@pytest.mark.parametrize("shape", [(1, 130), (2, 421), (421, 2), (7, 900), (30, 3500), (3500, 30), (60, 7000)])
def test_an_image_of_extreme_shape_is_cropped_first_to_the_same_bytes(monkeypatch, shape):
    encoder = load_encoder("tiny", None)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    first = encoder.canvas(image)
    monkeypatch.setattr(clip, "EXTREME", 10**9)  # resize the whole, as for every other image
    np.testing.assert_array_equal(first, encoder.canvas(image))


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1)])
def test_a_very_long_image_takes_little_memory(monkeypatch, shape):
    resized = []
    real = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest, **named: (
        resized.append(size), real(self, size, *rest, **named))[1])  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert load_encoder("tiny", None).canvas(image).shape == (3, 48, 48)
    assert resized
    assert max(width * height for width, height in resized) <= 48 * 48
